//! Memory that somebody else writes to at the same time: rings, message buffers, the resource
//! table, the trace.
//!
//! The one place that turns an address into memory. A [`Span`] is checked once when it is made;
//! from then on every access through it is bounded and safe. What the bytes mean belongs
//! elsewhere. All accesses are volatile: what is read may differ at the next reading, so callers
//! copy out first and judge the copy.

#![allow(unsafe_code)]

/// A stretch of shared memory, aligned to 4 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Aligned to 4 bytes.
    first: *mut u8,
    len: u32,
}

impl Span {
    /// A span of `len` bytes from `first`.
    ///
    /// # Panics
    /// When `first` is not aligned to 4 bytes.
    ///
    /// # Safety
    /// The bytes must stay valid for reads and writes to the end of the program, and no Rust
    /// reference may cover them while the span (or one derived from it) is used.
    pub unsafe fn new(first: *mut u8, len: u32) -> Self {
        assert!(
            first.addr().is_multiple_of(4),
            "a span starts at an odd address"
        );
        Self { first, len }
    }

    /// Bytes in the span.
    pub fn len(self) -> u32 {
        self.len
    }

    /// Is it zero bytes long?
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The part of `len` bytes from `offset`, or nothing when it reaches beyond the end or
    /// `offset` is not a multiple of 4.
    #[inline]
    pub fn part(self, offset: u32, len: u32) -> Option<Self> {
        if offset > self.len || len > self.len - offset || !offset.is_multiple_of(4) {
            return None;
        }
        Some(Self {
            first: self.first.wrapping_add(offset as usize),
            len,
        })
    }

    /// The `SIZE` bytes from `offset`, a multiple of 4, if they are not beyond the end.
    #[inline]
    pub fn slot<const SIZE: u32>(self, offset: u32) -> Option<Slot<SIZE>> {
        Some(Slot(self.part(offset, SIZE)?.first))
    }

    /// `count` slots of `SIZE` bytes from `offset`, a multiple of 4; nothing when they reach beyond
    /// the end, are not aligned, or are not a power of two that a `u16` can count.
    pub fn slots<const SIZE: u32>(self, offset: u32, count: u32) -> Option<Slots<SIZE>> {
        let fits = count.is_power_of_two() && count <= 1 << 15;
        let bytes = self.part(offset, SIZE.checked_mul(count).filter(|_| fits)?)?;
        Some(Slots {
            first: bytes.first,
            mask: count - 1,
        })
    }

    /// A pointer to the `T` at `offset`: in bounds, and aligned because spans are.
    #[inline(always)]
    fn at<T>(self, offset: u32) -> *mut T {
        const { assert!(align_of::<T>() <= 4) };
        let bytes = size_of::<T>() as u32;
        assert!(
            offset <= self.len && bytes <= self.len - offset,
            "access beyond the span"
        );
        assert!(
            offset.is_multiple_of(align_of::<T>() as u32),
            "access at an odd offset"
        );
        self.first.wrapping_add(offset as usize).cast()
    }

    /// The byte at `offset`. Panics beyond the end, as do all accesses.
    #[inline(always)]
    pub fn read_u8(self, offset: u32) -> u8 {
        // SAFETY: `at` gives a pointer into the span, which `new`'s caller keeps valid.
        unsafe { self.at::<u8>(offset).read_volatile() }
    }

    /// The 16-bit little-endian word at `offset`, a multiple of 2.
    #[inline(always)]
    pub fn read_u16(self, offset: u32) -> u16 {
        // SAFETY: `at` gives an aligned pointer into the span, which `new`'s caller keeps valid.
        u16::from_le(unsafe { self.at::<u16>(offset).read_volatile() })
    }

    /// The 32-bit little-endian word at `offset`, a multiple of 4.
    #[inline(always)]
    pub fn read_u32(self, offset: u32) -> u32 {
        // SAFETY: `at` gives an aligned pointer into the span, which `new`'s caller keeps valid.
        u32::from_le(unsafe { self.at::<u32>(offset).read_volatile() })
    }

    /// Writes the byte at `offset`.
    #[inline(always)]
    pub fn write_u8(self, offset: u32, value: u8) {
        // SAFETY: `at` gives a pointer into the span, which `new`'s caller keeps valid.
        unsafe { self.at::<u8>(offset).write_volatile(value) };
    }

    /// Writes the 16-bit word at `offset`, a multiple of 2.
    #[inline(always)]
    pub fn write_u16(self, offset: u32, value: u16) {
        // SAFETY: `at` gives an aligned pointer into the span, which `new`'s caller keeps valid.
        unsafe { self.at::<u16>(offset).write_volatile(value.to_le()) };
    }

    /// Writes the 32-bit word at `offset`, a multiple of 4.
    #[inline(always)]
    pub fn write_u32(self, offset: u32, value: u32) {
        // SAFETY: `at` gives an aligned pointer into the span, which `new`'s caller keeps valid.
        unsafe { self.at::<u32>(offset).write_volatile(value.to_le()) };
    }

    /// Copies all of `from` to the start of this span, a word at a time: an interpreter runs
    /// this, and each instruction saved is time on the wire.
    ///
    /// Not inlined: on its own it gets by without saving registers.
    #[inline(never)]
    pub fn copy_from(self, from: Span) {
        assert!(from.len <= self.len, "copy beyond the span");
        let mut to = self.first;
        let mut source = from.first.cast_const();
        let mut left = from.len;
        while left >= 32 {
            // SAFETY: both spans have at least `left` bytes from here, and both are aligned.
            unsafe { copy_block(to.cast(), source.cast()) };
            to = to.wrapping_add(32);
            source = source.wrapping_add(32);
            left -= 32;
        }
        while left >= 4 {
            // SAFETY: the source has four bytes from here, aligned.
            let word = unsafe { source.cast::<u32>().read_volatile() };
            // SAFETY: the target is no shorter than the source, and aligned.
            unsafe { to.cast::<u32>().write_volatile(word) };
            to = to.wrapping_add(4);
            source = source.wrapping_add(4);
            left -= 4;
        }
        while left > 0 {
            // SAFETY: the source has a byte left.
            let byte = unsafe { source.read_volatile() };
            // SAFETY: the target is no shorter than the source.
            unsafe { to.write_volatile(byte) };
            to = to.wrapping_add(1);
            source = source.wrapping_add(1);
            left -= 1;
        }
    }

    /// Copies `bytes` to the start of this span.
    pub fn write_bytes(self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<4>();
        let mut offset = 0;
        for word in words {
            self.write_u32(offset, u32::from_le_bytes(*word));
            offset += 4;
        }
        for byte in rest {
            self.write_u8(offset, *byte);
            offset += 1;
        }
    }

    /// Copies the bytes from `offset` (any) into `bytes`; returns how many there were.
    pub fn read_bytes(self, offset: u32, bytes: &mut [u8]) -> usize {
        let there = self.len.saturating_sub(offset);
        let count = bytes.len().min(there as usize);
        for (index, byte) in bytes[..count].iter_mut().enumerate() {
            *byte = self.read_u8(offset + index as u32);
        }
        count
    }
}

/// `SIZE` bytes of shared memory, aligned to 4 bytes. Where in them an access goes is known when it
/// is compiled, and checked then.
#[derive(Clone, Copy, Debug)]
pub struct Slot<const SIZE: u32>(*mut u8);

impl<const SIZE: u32> Slot<SIZE> {
    /// A pointer to the `T` at `OFFSET`: in bounds, and aligned because slots are.
    #[inline(always)]
    fn at<T, const OFFSET: u32>(self) -> *mut T {
        const {
            let align = align_of::<T>() as u32;
            assert!(align <= 4 && OFFSET.is_multiple_of(align));
            assert!(OFFSET + size_of::<T>() as u32 <= SIZE);
        }
        self.0.wrapping_add(OFFSET as usize).cast()
    }

    /// The part of `len` bytes from `OFFSET`, a multiple of 4; nothing when it reaches beyond the
    /// end.
    #[inline(always)]
    pub fn part<const OFFSET: u32>(self, len: u32) -> Option<Span> {
        const { assert!(OFFSET <= SIZE && OFFSET.is_multiple_of(4)) };
        (len <= SIZE - OFFSET).then(|| Span {
            first: self.0.wrapping_add(OFFSET as usize),
            len,
        })
    }

    /// The byte at `OFFSET`.
    #[inline(always)]
    pub fn read_u8<const OFFSET: u32>(self) -> u8 {
        // SAFETY: `at` gives a pointer into the span that this is a part of.
        unsafe { self.at::<u8, OFFSET>().read_volatile() }
    }

    /// The 16-bit little-endian word at `OFFSET`.
    #[inline(always)]
    pub fn read_u16<const OFFSET: u32>(self) -> u16 {
        // SAFETY: `at` gives an aligned pointer into the span that this is a part of.
        u16::from_le(unsafe { self.at::<u16, OFFSET>().read_volatile() })
    }

    /// The 32-bit little-endian word at `OFFSET`.
    #[inline(always)]
    pub fn read_u32<const OFFSET: u32>(self) -> u32 {
        // SAFETY: `at` gives an aligned pointer into the span that this is a part of.
        u32::from_le(unsafe { self.at::<u32, OFFSET>().read_volatile() })
    }

    /// Writes the 16-bit word at `OFFSET`.
    #[inline(always)]
    pub fn write_u16<const OFFSET: u32>(self, value: u16) {
        // SAFETY: `at` gives an aligned pointer into the span that this is a part of.
        unsafe { self.at::<u16, OFFSET>().write_volatile(value.to_le()) };
    }

    /// Writes the 32-bit word at `OFFSET`.
    #[inline(always)]
    pub fn write_u32<const OFFSET: u32>(self, value: u32) {
        // SAFETY: `at` gives an aligned pointer into the span that this is a part of.
        unsafe { self.at::<u32, OFFSET>().write_volatile(value.to_le()) };
    }
}

/// The slots of a ring, a power of two of them.
#[derive(Clone, Copy, Debug)]
pub struct Slots<const SIZE: u32> {
    /// Aligned to 4 bytes.
    first: *mut u8,
    /// Slots minus one.
    mask: u32,
}

impl<const SIZE: u32> Slots<SIZE> {
    /// The slot at `index` once it has wrapped around the ring.
    #[inline(always)]
    pub fn wrapped(self, index: u16) -> Slot<SIZE> {
        self.slot(u32::from(index) & self.mask)
    }

    /// The slot at `index`, or nothing if the ring is not that long.
    #[inline(always)]
    pub fn get(self, index: u16) -> Option<Slot<SIZE>> {
        let index = u32::from(index);
        (index <= self.mask).then(|| self.slot(index))
    }

    #[inline(always)]
    fn slot(self, index: u32) -> Slot<SIZE> {
        Slot(self.first.wrapping_add(index.wrapping_mul(SIZE) as usize))
    }
}

/// A copy to be made. The layout is that of the board's copier, on the board.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Entry {
    to: *mut u8,
    from: *mut u8,
    len: u32,
    reserved: u32,
}

/// Copies that are put off, to be made all at once: by the board's copier, which is fast and slow
/// to start, or by the core.
pub struct Copies {
    list: [Entry; Self::LIMIT],
    len: usize,
}

impl Copies {
    /// So many fit.
    pub const LIMIT: usize = 64;

    /// Puts off the copy of all of `from` to the start of `to`. False when there is no room for one
    /// more: then those before it must be made first.
    ///
    /// # Panics
    /// When `to` is shorter than `from`.
    #[inline(always)]
    #[must_use]
    pub fn add(&mut self, to: Span, from: Span) -> bool {
        assert!(from.len <= to.len, "copy beyond the span");
        let index = self.len;
        let Some(place) = self.list.get_mut(index) else {
            return false;
        };
        (place.to, place.from, place.len) = (to.first, from.first, from.len);
        // Below the limit, or there would have been no place.
        self.len = index.wrapping_add(1);
        true
    }

    /// Is there nothing to copy?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The list for the copier: its address and its length. It is void after [`Self::forget`].
    #[cfg(target_os = "none")]
    pub fn list(&self) -> (u32, u32) {
        const {
            use crate::board::copier::{ENTRY_SIZE, FROM, LEN, TO};
            assert!(size_of::<Entry>() == ENTRY_SIZE as usize);
            assert!(core::mem::offset_of!(Entry, to) == TO as usize);
            assert!(core::mem::offset_of!(Entry, from) == FROM as usize);
            assert!(core::mem::offset_of!(Entry, len) == LEN as usize);
        }
        let first = self.list.as_ptr().expose_provenance();
        (first as u32, self.len as u32)
    }

    /// The copies are made.
    pub fn forget(&mut self) {
        self.len = 0;
    }

    /// Makes the copies, by hand.
    pub fn make(&mut self) {
        for copy in &self.list[..self.len] {
            // Both are the first `len` bytes of a span.
            let [to, from] = [copy.to, copy.from].map(|first| Span {
                first,
                len: copy.len,
            });
            to.copy_from(from);
        }
        self.len = 0;
    }
}

impl Default for Copies {
    fn default() -> Self {
        let none = Entry {
            to: core::ptr::null_mut(),
            from: core::ptr::null_mut(),
            len: 0,
            reserved: 0,
        };
        Self {
            list: [none; Self::LIMIT],
            len: 0,
        }
    }
}

/// Copies eight words.
///
/// # Safety
/// `from` must be valid for reading and `to` for writing 32 bytes, both aligned to 4.
#[inline(always)]
#[allow(
    clippy::multiple_unsafe_ops_per_block,
    reason = "sixteen times the same one"
)]
unsafe fn copy_block(to: *mut u32, from: *const u32) {
    // SAFETY: the caller vouches for eight words at both ends; the indices are below eight.
    // All reads go first: the loads of one block have no store between them to wait for.
    unsafe {
        let block = [
            from.read_volatile(),
            from.add(1).read_volatile(),
            from.add(2).read_volatile(),
            from.add(3).read_volatile(),
            from.add(4).read_volatile(),
            from.add(5).read_volatile(),
            from.add(6).read_volatile(),
            from.add(7).read_volatile(),
        ];
        to.write_volatile(block[0]);
        to.add(1).write_volatile(block[1]);
        to.add(2).write_volatile(block[2]);
        to.add(3).write_volatile(block[3]);
        to.add(4).write_volatile(block[4]);
        to.add(5).write_volatile(block[5]);
        to.add(6).write_volatile(block[6]);
        to.add(7).write_volatile(block[7]);
    }
}

/// The device addresses at which the host may place rings and buffers.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    bytes: Span,
    first: u32,
}

impl Window {
    /// The memory `bytes`, which the host knows as the device addresses from `first`.
    ///
    /// # Panics
    /// When the addresses do not end at 4 GiB or before.
    pub fn new(bytes: Span, first: u32) -> Self {
        assert!(bytes.len <= first.wrapping_neg(), "addresses beyond 4 GiB");
        Self { bytes, first }
    }

    /// The `len` bytes at device address `da`, or nothing when they are not all in the window or
    /// not aligned to 4 bytes.
    #[inline]
    pub fn span(&self, da: u32, len: u32) -> Option<Span> {
        // An address below the first comes out above all that are in the window.
        self.bytes.part(da.wrapping_sub(self.first), len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::testing::leak;

    #[test]
    fn copies_of_every_length_move_exactly_that_many_bytes() {
        for len in 0..=496 {
            let from = leak(512);
            let to = leak(512);
            for offset in 0..512 {
                from.write_u8(offset, (offset * 7 + 1) as u8);
                to.write_u8(offset, 0xEE);
            }
            to.copy_from(from.part(0, len).unwrap());
            for offset in 0..512 {
                let expected = if offset < len {
                    (offset * 7 + 1) as u8
                } else {
                    0xEE
                };
                assert_eq!(
                    to.read_u8(offset),
                    expected,
                    "length {len}, offset {offset}"
                );
            }
        }
    }

    #[test]
    fn copies_that_were_put_off_are_made_all_at_once() {
        let from = leak(512);
        let to = leak(512);
        let mut copies = Copies::default();
        assert!(copies.is_empty());
        for index in 0..Copies::LIMIT as u32 {
            from.write_u32(4 * index, index + 1);
            let part = |span: Span| span.part(4 * index, 4).unwrap();
            assert!(copies.add(part(to), part(from)));
        }
        assert!(!copies.add(to, from), "there is no room for another");
        assert_eq!(to.read_u32(0), 0);
        copies.make();
        assert!(copies.is_empty());
        for index in 0..Copies::LIMIT as u32 {
            assert_eq!(to.read_u32(4 * index), index + 1);
        }
        assert_eq!(to.read_u32(4 * Copies::LIMIT as u32), 0);
    }

    #[test]
    fn slots_are_in_their_span_and_wrap_at_their_number() {
        let span = leak(64);
        let slots = span.slots::<8>(16, 4).unwrap();
        slots.wrapped(6).write_u32::<4>(7);
        assert_eq!(span.read_u32(16 + 2 * 8 + 4), 7);
        assert_eq!(slots.get(2).unwrap().read_u16::<4>(), 7);
        assert!(slots.get(3).is_some() && slots.get(4).is_none());
        for (offset, count) in [(16, 8), (16, 3), (16, 0), (2, 4), (36, 4), (0, 1 << 16)] {
            assert!(span.slots::<8>(offset, count).is_none(), "{offset} {count}");
        }
        assert!(span.slot::<64>(0).is_some() && span.slot::<64>(4).is_none());
        let slot = span.slot::<64>(0).unwrap();
        assert_eq!(slot.part::<16>(48).map(Span::len), Some(48));
        assert!(slot.part::<16>(49).is_none());
    }

    #[test]
    fn slices_go_in_and_come_out_again() {
        let span = leak(16);
        span.write_bytes(b"hello world");
        let mut out = [0; 8];
        assert_eq!(span.read_bytes(3, &mut out), 8);
        assert_eq!(&out, b"lo world");
        assert_eq!(span.read_bytes(12, &mut out), 4);
        assert_eq!(span.read_bytes(99, &mut out), 0);
    }

    #[test]
    fn a_window_gives_nothing_outside_of_itself() {
        let window = Window::new(leak(4096), 0x8004_0000);
        assert!(window.span(0x8004_0000, 4096).is_some());
        assert!(window.span(0x8004_0FFC, 4).is_some());
        for (da, len) in [
            (0x8003_FFFC, 8),
            (0x8004_0000, 4097),
            (0x8004_1000, 4),
            (0x8004_0FFC, u32::MAX),
            (0x8004_0002, 4),
            (u32::MAX, 1),
            (0, 0),
        ] {
            assert!(window.span(da, len).is_none(), "{da:#x}, {len:#x}");
        }
    }

    #[test]
    #[should_panic(expected = "beyond the span")]
    fn an_access_beyond_a_span_does_not_happen() {
        leak(8).part(0, 6).unwrap().read_u32(4);
    }
}

/// Memory for tests.
#[cfg(test)]
pub(crate) mod testing {
    use super::Span;

    /// Zeroed memory that is never given back, so that spans stay valid.
    pub(crate) fn leak(bytes: usize) -> Span {
        let words = Box::leak(vec![0_u32; bytes.div_ceil(4)].into_boxed_slice());
        // SAFETY: leaked, so valid for ever, and the only reference to it ends here.
        unsafe { Span::new(words.as_mut_ptr().cast(), bytes as u32) }
    }
}
