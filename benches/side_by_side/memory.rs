//! Memory that is shared with a peer, and the split rings in it, by bare pointers.
//!
//! This is what the others are measured with, and the floor that they are measured against: it must
//! cost next to nothing. So this is the one module of the benchmarks that may be unsafe. What
//! belongs here: loads, stores and copies, each within its bounds whatever it is asked for. What
//! does not: what they are good for.
#![expect(
    unsafe_code,
    reason = "a checked look-up for each access would be most of what is measured"
)]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::slice;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{FileOffset, MmapRegion};
use vmm_sys_util::eventfd::EventFd;

/// Entries of a ring.
pub const ENTRIES: u16 = 256;
const MASK: u16 = ENTRIES - 1;
/// Where a guest sees its memory. Not where it lies in the file, as in any VMM.
const GUEST: u64 = 0x4000_0000;
/// Where the VMM says that it sees it.
const USER: u64 = 0x7f31_0000_0000;
/// A guest's memory begins there in the file.
const OFFSET: u64 = 0x1_0000;
/// Bytes of a guest's memory.
const SIZE: usize = 1 << 20;
/// From one ring to the next.
const RING: usize = 0x4000;
const RINGS: usize = 3;
const AVAIL: usize = 0x1000;
const USED: usize = 0x2000;
/// The first buffer.
const BUFFERS: usize = 0x1_0000;
/// Words in a message of full length, its header included.
pub const WORDS: usize = 64;

/// A guest's memory: mapped once and for ever.
#[derive(Clone, Copy)]
pub struct Memory {
    file: &'static File,
    start: *mut u8,
    wide: bool,
}

// SAFETY: `start` is the start of a shared mapping of SIZE bytes that is never unmapped; any thread
// may access it, and all access is by atomics or by copies that no reference outlives.
unsafe impl Send for Memory {}

impl Memory {
    /// New and zeroed.
    pub fn new() -> Result<Self, String> {
        let make = || {
            let fd = memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
            ftruncate(&fd, OFFSET + SIZE as u64)?;
            fcntl_add_seals(&fd, SealFlags::SHRINK)?;
            Ok(fd)
        };
        let fd = make().map_err(|errno: rustix::io::Errno| {
            format!("the host has no memory for a guest: {errno}")
        })?;
        Self::open(fd)
    }

    /// That of somebody else.
    pub fn open(fd: OwnedFd) -> Result<Self, String> {
        let file = std::sync::Arc::new(File::from(fd));
        let len = file.metadata().map_err(|error| error.to_string())?.len();
        if len < OFFSET + SIZE as u64 {
            return Err(format!(
                "a guest's memory has {len} bytes, which is too few"
            ));
        }
        let region = MmapRegion::<()>::from_file(FileOffset::from_arc(file.clone(), OFFSET), SIZE)
            .map_err(|error| format!("a guest's memory cannot be mapped: {error}"))?;
        // For ever: the benchmark ends with its guests.
        let region = Box::leak(Box::new(region));
        Ok(Self {
            file: Box::leak(Box::new(file)),
            start: region.as_ptr(),
            wide: has_wide_registers(),
        })
    }

    /// The file itself.
    pub fn fd(&self) -> BorrowedFd<'static> {
        self.file.as_fd()
    }

    /// As the protocol carries it.
    pub fn table(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: GUEST,
            memory_size: SIZE as u64,
            userspace_addr: USER,
            mmap_offset: OFFSET,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    /// `N` bytes at `offset` are in the memory.
    fn at(&self, offset: usize, bytes: usize) -> *mut u8 {
        assert!(
            offset <= SIZE && bytes <= SIZE - offset,
            "outside of a guest's memory"
        );
        // SAFETY: `add` wants the offset to be within the mapping, which has SIZE bytes.
        unsafe { self.start.add(offset) }
    }

    fn words16(&self, offset: usize, count: usize) -> &'static [AtomicU16] {
        assert!(offset.is_multiple_of(2));
        let start = self.at(offset, 2 * count).cast();
        // SAFETY: `from_raw_parts` wants memory that is aligned, there for the lifetime, and of
        // initialised values that nobody writes to but through the cells: it begins on a page and
        // `offset` is even, it is never unmapped, any bits are an AtomicU16, and all processes
        // access the rings atomically.
        unsafe { slice::from_raw_parts(start, count) }
    }

    fn words32(&self, offset: usize, count: usize) -> &'static [AtomicU32] {
        assert!(offset.is_multiple_of(4));
        let start = self.at(offset, 4 * count).cast();
        // SAFETY: as for `words16`; `offset` is a multiple of 4.
        unsafe { slice::from_raw_parts(start, count) }
    }

    /// Cells of 64 bits.
    pub fn words64(&self, offset: usize, count: usize) -> &'static [AtomicU64] {
        assert!(offset.is_multiple_of(8));
        let start = self.at(offset, 8 * count).cast();
        // SAFETY: as for `words16`; `offset` is a multiple of 8.
        unsafe { slice::from_raw_parts(start, count) }
    }

    /// Ring `index`.
    pub fn ring(&self, index: usize) -> Ring {
        assert!(index < RINGS);
        let base = RING * index;
        let entries = usize::from(ENTRIES);
        let avail = self.words16(base + AVAIL, 3 + entries);
        let used16 = self.words16(base + USED, 2);
        let used = self.words32(base + USED + 4, 2 * entries);
        Ring {
            offset: base,
            descriptors: self.words64(base, 2 * entries),
            avail_index: &avail[1],
            avail: &avail[2..2 + entries],
            used_event: &avail[2 + entries],
            used_index: &used16[1],
            used,
            avail_event: &self.words16(base + USED + 4 + 8 * entries, 1)[0],
            used_flags: &used16[0],
        }
    }

    /// Writes a message of `words` words to a buffer: the model's, with `number` added to each that
    /// carries it.
    #[inline]
    pub fn write_message(&self, offset: usize, model: &Model, words: usize, number: u64) {
        let words = words.min(WORDS);
        let to = self.at(offset, 8 * words).cast();
        if self.wide {
            // SAFETY: `write_wide` wants a CPU with AVX-512, which was looked for; and what `write`
            // wants, which follows from `at`: `words` words from `offset` on are in the mapping,
            // and the ring says that the peer has nothing to do with this buffer until it is
            // made available.
            unsafe { write_wide(to, model, words, number) }
        } else {
            // SAFETY: as above.
            unsafe { write(to, model, words, number) }
        }
    }

    /// Is this message there? See [`Memory::write_message`].
    #[inline]
    pub fn has_message(&self, offset: usize, model: &Model, words: usize, number: u64) -> bool {
        let words = words.min(WORDS);
        let from = self.at(offset, 8 * words).cast();
        if self.wide {
            // SAFETY: as for `write_message`; the peer has given the buffer back, and that was
            // read with acquire ordering.
            unsafe { is_there_wide(from, model, words, number) }
        } else {
            // SAFETY: as above.
            unsafe { is_there(from, model, words, number) }
        }
    }

    /// Copies out.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        let from = self.at(offset, into.len());
        // SAFETY: `copy_nonoverlapping` wants two spans of this length that do not overlap: `at`
        // has checked one, the other is a slice of this process that is not in the mapping.
        unsafe { from.copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) }
    }

    /// Copies in.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        // SAFETY: as for `read`.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }

    /// Copies from one buffer to another, with the first two words of 32 bits swapped.
    #[inline]
    pub fn copy_swapped(&self, from: usize, to: usize, len: usize) {
        assert!(len >= 8 && from.abs_diff(to) >= len, "buffers overlap");
        let (from, to) = (self.at(from, len), self.at(to, len));
        // SAFETY: `copy_to_nonoverlapping` wants two spans of this length that do not overlap: all
        // of that was just checked.
        unsafe { from.copy_to_nonoverlapping(to, len) };
        // SAFETY: `read_unaligned` wants 8 bytes that may be read, and there are `len`.
        let addresses = unsafe { from.cast::<u64>().read_unaligned() };
        // SAFETY: `write_unaligned` wants 8 bytes that may be written to, and there are `len`.
        unsafe { to.cast::<u64>().write_unaligned(addresses.rotate_left(32)) };
    }
}

/// What messages look like.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub struct Model {
    words: [u64; WORDS],
    /// All ones where the message's number is added.
    numbered: [u64; WORDS],
}

impl Model {
    /// One that begins with these words, which do not change, and goes on with words that are all
    /// different and all carry the number.
    pub fn new(header: [u64; 2]) -> Self {
        let fixed = header.len();
        Self {
            words: std::array::from_fn(|index| {
                let word = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(2 * index as u64 + 1);
                header.get(index).copied().unwrap_or(word)
            }),
            numbered: std::array::from_fn(|index| if index < fixed { 0 } else { u64::MAX }),
        }
    }

    #[inline(always)]
    fn word(&self, index: usize, number: u64) -> u64 {
        self.words[index].wrapping_add(self.numbered[index] & number)
    }

    /// By its first numbered word, which message is it?
    pub fn number_of(&self, word: u64) -> u64 {
        word.wrapping_sub(self.words[2])
    }
}

/// # Safety
/// `words` words from `to` on may be written to.
#[inline(always)]
unsafe fn write(to: *mut u64, model: &Model, words: usize, number: u64) {
    let put = |index| {
        let to = to.wrapping_add(index);
        // SAFETY: `write_unaligned` wants a word that may be written to; the caller has said so.
        unsafe { to.write_unaligned(model.word(index, number)) }
    };
    // The usual length is known to the compiler.
    if words == WORDS {
        (0..WORDS).for_each(put);
    } else {
        (0..words.min(WORDS)).for_each(put);
    }
}

/// # Safety
/// As [`write`], on a CPU with AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn write_wide(to: *mut u64, model: &Model, words: usize, number: u64) {
    // SAFETY: the caller has promised all that `write` wants.
    unsafe { write(to, model, words, number) }
}

/// # Safety
/// `words` words from `from` on may be read.
#[inline(always)]
unsafe fn is_there(from: *const u64, model: &Model, words: usize, number: u64) -> bool {
    let difference = |index| {
        let from = from.wrapping_add(index);
        // SAFETY: `read_unaligned` wants a word that may be read; the caller has said so.
        let found = unsafe { from.read_unaligned() };
        found ^ model.word(index, number)
    };
    let either = |one: u64, other: u64| one | other;
    if words == WORDS {
        (0..WORDS).map(difference).fold(0, either) == 0
    } else {
        (0..words.min(WORDS)).map(difference).fold(0, either) == 0
    }
}

/// # Safety
/// As [`is_there`], on a CPU with AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn is_there_wide(from: *const u64, model: &Model, words: usize, number: u64) -> bool {
    // SAFETY: the caller has promised all that `is_there` wants.
    unsafe { is_there(from, model, words, number) }
}

/// There are no such CPUs of this kind.
#[cfg(not(target_arch = "x86_64"))]
use {is_there as is_there_wide, write as write_wide};

fn has_wide_registers() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Where buffer `index` of a ring is in a guest's memory.
pub fn buffer(ring: usize, index: u16, stride: usize) -> usize {
    BUFFERS + (ring * usize::from(ENTRIES) + usize::from(index)) * stride
}

/// What a guest calls that.
pub fn guest_address(offset: usize) -> u64 {
    GUEST + offset as u64
}

/// The reverse.
pub fn offset_of(guest: u64) -> usize {
    guest.wrapping_sub(GUEST) as usize
}

/// A split ring of [`ENTRIES`] entries, with event indices.
#[derive(Clone, Copy)]
pub struct Ring {
    offset: usize,
    descriptors: &'static [AtomicU64],
    /// Release and acquire: what was made available.
    pub avail_index: &'static AtomicU16,
    avail: &'static [AtomicU16],
    /// Where the driver wants a call.
    pub used_event: &'static AtomicU16,
    /// Release and acquire: what was given back.
    pub used_index: &'static AtomicU16,
    used: &'static [AtomicU32],
    /// Where the device wants a kick.
    pub avail_event: &'static AtomicU16,
    /// What the device wants if it does not know event indices.
    pub used_flags: &'static AtomicU16,
}

impl Ring {
    /// What the VMM calls its three parts: descriptors, available ring, used ring.
    pub fn user_addresses(&self) -> [u64; 3] {
        [0, AVAIL, USED].map(|part| USER + (self.offset + part) as u64)
    }

    /// Writes a descriptor.
    #[inline]
    pub fn set_descriptor(&self, id: u16, address: u64, len: u32, writable: bool) {
        let index = 2 * usize::from(id & MASK);
        let flags = if writable { 2 } else { 0 };
        self.descriptors[index].store(address, Ordering::Relaxed);
        self.descriptors[index + 1].store(u64::from(len) | flags << 32, Ordering::Relaxed);
    }

    /// A descriptor's address and length.
    #[inline]
    pub fn descriptor(&self, id: u16) -> (u64, u32) {
        let index = 2 * usize::from(id & MASK);
        let address = self.descriptors[index].load(Ordering::Relaxed);
        (
            address,
            self.descriptors[index + 1].load(Ordering::Relaxed) as u32,
        )
    }

    /// Writes a slot of the available ring.
    #[inline]
    pub fn set_avail(&self, at: u16, id: u16) {
        self.avail[usize::from(at & MASK)].store(id, Ordering::Relaxed);
    }

    /// Reads one.
    #[inline]
    pub fn avail(&self, at: u16) -> u16 {
        self.avail[usize::from(at & MASK)].load(Ordering::Relaxed)
    }

    /// Writes a slot of the used ring.
    #[inline]
    pub fn set_used(&self, at: u16, id: u16, len: u32) {
        let index = 2 * usize::from(at & MASK);
        self.used[index].store(id.into(), Ordering::Relaxed);
        self.used[index + 1].store(len, Ordering::Relaxed);
    }

    /// Reads one.
    #[inline]
    pub fn used(&self, at: u16) -> (u32, u32) {
        let index = 2 * usize::from(at & MASK);
        let id = self.used[index].load(Ordering::Relaxed);
        (id, self.used[index + 1].load(Ordering::Relaxed))
    }
}

/// The same eventfd once more, as the protocol's crate has them.
pub fn event(fd: &OwnedFd) -> Result<EventFd, String> {
    let copy = fd.try_clone().map_err(|error| error.to_string())?;
    // SAFETY: `from_raw_fd` wants an open descriptor of an eventfd that nobody else owns: `copy`
    // is one, and gives up its ownership here.
    Ok(unsafe { EventFd::from_raw_fd(copy.into_raw_fd()) })
}

/// Does somebody who published `event` want to know of the step from `old` to `new`?
#[inline]
pub fn crossed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
