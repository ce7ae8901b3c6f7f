//! The device side of a split virtqueue in guest memory.
//!
//! What belongs here: reading what a guest's driver offers, judging it, and giving it back. What
//! does not: what the bytes mean, and any other memory. The driver is hostile: indexes,
//! descriptors and addresses are copied out once and then judged, and whatever is found leads to
//! a value and never to a panic.
//!
//! This ring holds nothing: a chain is looked at, used, and given back before the next one is
//! looked at. So one index is both the next available and the next used entry, completion is in
//! order, and a ring can be taken up again from `used.idx` alone.
//!
//! Wire format: virtio 1.2, section 2.7 "Split Virtqueues"; Linux `include/uapi/linux/virtio_ring.h`.
//! All fields are little-endian.
//!
//! | area | bytes | fields |
//! |---|---|---|
//! | descriptor table | 16 * size | address u64, length u32 (bytes), flags u16, next u16 |
//! | available ring | 6 + 2 * size | flags u16, idx u16, head u16 * size, used_event u16 |
//! | used ring | 6 + 8 * size | flags u16, idx u16, (id u32, len u32) * size, avail_event u16 |

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use thiserror::Error;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, VolatileSlice,
};

use super::words::{NoWords, Word, Words};

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;
const AVAIL_F_NO_INTERRUPT: u16 = 1;
const USED_F_NO_NOTIFY: u16 = 1;

/// The most buffers that one chain may have. No driver of a message device comes near; without a
/// limit one kick could make us walk millions of descriptors.
pub const MAX_BUFFERS_PER_CHAIN: usize = 64;

/// A descriptor, as it was copied out.
#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "fields of a word")]
    fn from_words([address, rest]: [u64; 2]) -> Self {
        let rest = u64::from_le(rest);
        Self {
            address: u64::from_le(address),
            len: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        }
    }
}

/// Where a ring lies in guest-physical memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingLayout {
    /// Entries: a power of two from 1 to 32768.
    pub size: u16,
    /// Descriptor table, 16-byte aligned.
    pub descriptors: GuestAddress,
    /// Available ring, 2-byte aligned.
    pub available: GuestAddress,
    /// Used ring, 4-byte aligned.
    pub used: GuestAddress,
}

/// Why a ring cannot be worked any more until the guest sets it up anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum RingFault {
    /// The number of entries is not one that virtio allows.
    #[error("the ring has {0} entries; it must be a power of two from 1 to 32768")]
    Size(u16),
    /// An area of the ring is not aligned as virtio asks, in guest memory or in our mapping of it.
    #[error("the ring's {area} at guest address {address:#x} is not aligned to {align} bytes")]
    Alignment {
        /// Which area.
        area: &'static str,
        /// Where the guest put it.
        address: u64,
        /// What virtio asks for, in bytes.
        align: u64,
    },
    /// An area of the ring is not inside one region of guest memory.
    #[error(
        "the ring's {area}, {len} bytes at guest address {address:#x}, is not inside guest memory"
    )]
    Outside {
        /// Which area.
        area: &'static str,
        /// Where the guest put it.
        address: u64,
        /// Its size in bytes.
        len: u64,
    },
    /// The available index is further ahead than the ring has entries.
    #[error("the available index jumped from {from} to {to} in a ring of {size} entries")]
    AvailableJump {
        /// The next entry we had to look at.
        from: u16,
        /// The index found.
        to: u16,
        /// Entries in the ring.
        size: u16,
    },
    /// A chain starts at a descriptor that does not exist.
    #[error("available entry {entry} names descriptor {head} in a ring of {size} entries")]
    Head {
        /// Index of the available entry.
        entry: u16,
        /// The descriptor it names.
        head: u16,
        /// Entries in the ring.
        size: u16,
    },
}

/// What is wrong with one chain. The chain is given back; the ring goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ChainFault {
    /// A descriptor's `next` is out of the table.
    #[error("a descriptor's next is {next}, its table has {table} entries")]
    Next {
        /// The value found.
        next: u16,
        /// Entries in the table.
        table: u32,
    },
    /// Too many descriptors: a loop, or more than any driver needs.
    #[error("the chain has more than {MAX_BUFFERS_PER_CHAIN} descriptors, or is a loop")]
    TooLong,
    /// A buffer goes the wrong way for this queue.
    #[error("a buffer of the chain goes the wrong way for this queue")]
    Direction,
    /// A buffer is not inside guest memory.
    #[error("a buffer of {len} bytes at guest address {address:#x} is not inside guest memory")]
    Unmapped {
        /// Where the guest said it is.
        address: u64,
        /// Its length in bytes.
        len: u32,
    },
    /// An indirect table that virtio does not allow.
    #[error(
        "an indirect table of {len} bytes is refused: not negotiated, nested, with a next, \
         or not 1 to {MAX_BUFFERS_PER_CHAIN} descriptors of 16 bytes"
    )]
    Indirect {
        /// Its length in bytes.
        len: u32,
    },
}

/// Which way the buffers of a queue go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// The guest fills them, the device reads (the guest's transmit queue).
    FromGuest,
    /// The device fills them (the guest's receive queue).
    ToGuest,
}

/// What the next entry of the ring is.
#[derive(Debug)]
pub enum Next {
    /// The guest has nothing more to offer.
    Nothing,
    /// A chain; its buffers are in [`Burst::buffers`]. Give it back with [`Burst::complete`].
    Chain {
        /// Names the chain when it is given back.
        head: u16,
        /// Bytes in all its buffers.
        len: usize,
    },
    /// A chain that cannot be used; it still must be given back.
    Bad {
        /// Names the chain when it is given back.
        head: u16,
        /// What is wrong with it.
        fault: ChainFault,
    },
}

/// Features of the ring itself that the guest acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RingFeatures {
    /// `VIRTIO_RING_F_EVENT_IDX`: kicks and calls are asked for by index.
    pub event_idx: bool,
    /// `VIRTIO_RING_F_INDIRECT_DESC`: a chain may be one table elsewhere.
    pub indirect: bool,
}

/// The parts of a ring as they lie in one layout of guest memory.
#[derive(Debug)]
struct Areas {
    memory: Arc<GuestMemoryMmap>,
    /// Two words for each descriptor.
    descriptors: Words<AtomicU64>,
    /// Flags, index, the ring, the used event.
    available: Words<AtomicU16>,
    /// Flags, index, and, behind the elements, the available event.
    used: Words<AtomicU16>,
    /// Two words for each used element.
    elements: Words<AtomicU32>,
}

impl Areas {
    fn find(layout: &RingLayout, memory: &Arc<GuestMemoryMmap>) -> Result<Self, RingFault> {
        let size = usize::from(layout.size);
        let [descriptors, available, used] = layout.areas();
        let elements = Area {
            address: GuestAddress(used.address.0.saturating_add(4)),
            ..used
        };
        Ok(Self {
            memory: memory.clone(),
            descriptors: descriptors.words(memory, 2 * size)?,
            available: available.words(memory, 3 + size)?,
            used: used.words(memory, 3 + 4 * size)?,
            elements: elements.words(memory, 2 * size)?,
        })
    }
}

/// One part of a ring, for messages about it.
#[derive(Clone, Copy)]
struct Area {
    name: &'static str,
    address: GuestAddress,
    align: u64,
}

impl Area {
    fn words<T: Word>(
        self,
        memory: &Arc<GuestMemoryMmap>,
        count: usize,
    ) -> Result<Words<T>, RingFault> {
        let (area, address) = (self.name, self.address.0);
        Words::of_guest(memory, self.address, count).map_err(|cause| match cause {
            NoWords::Outside => RingFault::Outside {
                area,
                address,
                len: (count * size_of::<T>()) as u64,
            },
            // Addresses that are aligned in guest memory are aligned here only if their region
            // begins on a page, and where regions begin is the VMM's word.
            NoWords::Misaligned => RingFault::Alignment {
                area,
                address,
                align: self.align,
            },
        })
    }
}

impl RingLayout {
    fn areas(&self) -> [Area; 3] {
        [
            ("descriptor table", self.descriptors, 16),
            ("available ring", self.available, 2),
            ("used ring", self.used, 4),
        ]
        .map(|(name, address, align)| Area {
            name,
            address,
            align,
        })
    }
}

/// The device side of one ring.
#[derive(Debug)]
pub struct GuestRing {
    layout: RingLayout,
    features: RingFeatures,
    direction: Direction,
    areas: Result<Areas, RingFault>,
    /// The next available entry to look at, and the next used entry to write.
    next: u16,
    /// `next` when it was last asked whether to call the guest, or when the ring was taken up.
    called: u16,
    /// The guest has been asked to kick when it adds, and nothing has been found since.
    armed: bool,
    /// The region of guest memory in which the last buffer was, by its number.
    region: usize,
}

/// Does an index that moved from `old` to `new` pass the event index `event`?
/// (virtio 1.2, section 2.7.7.2: all modulo 2^16.)
pub(super) fn passes_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

impl GuestRing {
    /// Takes a ring up where the guest's memory says it stands: at `used.idx`.
    ///
    /// What a VMM says the base is does not count: cloud-hypervisor sends the available index,
    /// by which every receive buffer posted before the start would be lost.
    ///
    /// # Errors
    /// A [`RingFault`] if the layout is none that virtio allows or not inside `memory`.
    pub fn take_up(
        layout: RingLayout,
        features: RingFeatures,
        direction: Direction,
        memory: &Arc<GuestMemoryMmap>,
    ) -> Result<Self, RingFault> {
        if !layout.size.is_power_of_two() {
            return Err(RingFault::Size(layout.size));
        }
        for area in layout.areas() {
            if area.address.0 % area.align != 0 {
                return Err(RingFault::Alignment {
                    area: area.name,
                    address: area.address.0,
                    align: area.align,
                });
            }
        }
        let areas = Areas::find(&layout, memory)?;
        let next = u16::from_le(areas.used[1].load(Ordering::Acquire));
        Ok(Self {
            layout,
            features,
            direction,
            areas: Ok(areas),
            next,
            called: next,
            armed: false,
            region: 0,
        })
    }

    /// The index the ring stands at: next available and next used entry.
    pub fn position(&self) -> u16 {
        self.next
    }

    /// The guest's memory was laid out anew. If the ring is not in it, the next burst says so.
    pub fn set_memory(&mut self, memory: &Arc<GuestMemoryMmap>) {
        self.areas = Areas::find(&self.layout, memory);
        self.region = 0;
    }

    /// Has the guest been asked to kick, and has nothing been found since?
    pub fn is_armed(&self) -> bool {
        self.armed
    }

    /// Has the guest offered anything that has not been looked at? A look at one index, for those
    /// who look often; what it is, and whether it is sound, a burst finds out.
    #[inline]
    pub fn has_more(&self) -> bool {
        self.areas.as_ref().is_ok_and(|areas| {
            u16::from_le(areas.available[1].load(Ordering::Relaxed)) != self.next
        })
    }

    /// Opens the ring for a burst of work.
    ///
    /// # Errors
    /// A [`RingFault`] if an area of the ring is no longer inside guest memory.
    pub fn open(&mut self) -> Result<Burst<'_>, RingFault> {
        let areas = self.areas.as_ref().map_err(|fault| *fault)?;
        Ok(Burst {
            next: self.next,
            seen: self.next,
            published: self.next,
            size: self.layout.size,
            features: self.features,
            plain: match self.direction {
                Direction::ToGuest => F_WRITE,
                Direction::FromGuest => 0,
            },
            descriptors: &areas.descriptors,
            available: &areas.available,
            used: &areas.used,
            elements: &areas.elements,
            memory: &areas.memory,
            region: Region::number(&areas.memory, self.region),
            region_number: &mut self.region,
            position: &mut self.next,
            called: &mut self.called,
            armed: &mut self.armed,
            one: None,
            more: Vec::new(),
        })
    }
}

/// A region of guest memory, found once for all buffers in it.
struct Region<'a> {
    start: u64,
    bytes: VolatileSlice<'a>,
}

impl<'a> Region<'a> {
    fn number(memory: &'a GuestMemoryMmap, number: usize) -> Option<Self> {
        let region = memory.iter().nth(number)?;
        Some(Self {
            start: region.start_addr().0,
            bytes: region.as_volatile_slice().ok()?,
        })
    }

    /// The bytes at a guest address, if all of them are in this region.
    #[inline]
    fn part(&self, address: u64, len: u32) -> Option<VolatileSlice<'a>> {
        let offset = usize::try_from(address.checked_sub(self.start)?).ok()?;
        self.bytes.subslice(offset, len as usize).ok()
    }
}

/// One burst of work on a ring, with guest memory held in place.
pub struct Burst<'a> {
    size: u16,
    features: RingFeatures,
    /// The flags of a chain that has one descriptor only.
    plain: u16,
    descriptors: &'a [AtomicU64],
    available: &'a [AtomicU16],
    used: &'a [AtomicU16],
    elements: &'a [AtomicU32],
    memory: &'a GuestMemoryMmap,
    region: Option<Region<'a>>,
    region_number: &'a mut usize,
    /// The ring's `next`, which follows ours when it is published.
    position: &'a mut u16,
    called: &'a mut u16,
    armed: &'a mut bool,
    next: u16,
    /// The available index as last read.
    seen: u16,
    /// The used index as last written.
    published: u16,
    /// The chain's buffer, if it has one only and no list was needed to find it.
    one: Option<VolatileSlice<'a>>,
    /// The chain's buffers otherwise.
    more: Vec<VolatileSlice<'a>>,
}

impl<'a> Burst<'a> {
    /// The buffers of the chain that [`Burst::peek`] found, in order; none is empty.
    #[inline]
    pub fn buffers(&self) -> &[VolatileSlice<'a>] {
        if self.one.is_some() {
            self.one.as_slice()
        } else {
            &self.more
        }
    }

    /// Looks at the next chain without taking it.
    ///
    /// # Errors
    /// A [`RingFault`]: the ring cannot be worked any more.
    #[inline(always)]
    pub fn peek(&mut self) -> Result<Next, RingFault> {
        let next = self.next;
        if self.seen == next && !self.look_again()? {
            return Ok(Next::Nothing);
        }
        if *self.armed {
            self.refuse_kicks();
        }
        let slot = usize::from(next & (self.size - 1));
        let head = u16::from_le(self.available[2 + slot].load(Ordering::Relaxed));
        if head >= self.size {
            return Err(RingFault::Head {
                entry: next,
                head,
                size: self.size,
            });
        }
        // Most chains are one buffer in the region where the last one was.
        let descriptor = self.descriptor(head);
        if descriptor.flags == self.plain
            && let Some(region) = &self.region
            && let Some(buffer) = region.part(descriptor.address, descriptor.len)
            && descriptor.len != 0
        {
            self.one = Some(buffer);
            return Ok(Next::Chain {
                head,
                len: descriptor.len as usize,
            });
        }
        Ok(match self.collect(head) {
            Ok(len) => Next::Chain { head, len },
            Err(fault) => Next::Bad { head, fault },
        })
    }

    /// A descriptor of the ring, copied out once. `index` is below the ring's size.
    #[inline]
    fn descriptor(&self, index: u16) -> Descriptor {
        let at = 2 * usize::from(index);
        Descriptor::from_words([
            self.descriptors[at].load(Ordering::Relaxed),
            self.descriptors[at + 1].load(Ordering::Relaxed),
        ])
    }

    /// Reads the available index anew: is there anything to look at?
    #[inline]
    fn look_again(&mut self) -> Result<bool, RingFault> {
        let next = self.next;
        let seen = u16::from_le(self.available[1].load(Ordering::Acquire));
        if seen.wrapping_sub(next) > self.size {
            return Err(RingFault::AvailableJump {
                from: next,
                to: seen,
                size: self.size,
            });
        }
        self.seen = seen;
        Ok(seen != next)
    }

    /// Walks the chain at `head` and collects its buffers. Returns the bytes in them.
    #[cold]
    fn collect(&mut self, head: u16) -> Result<usize, ChainFault> {
        self.one = None;
        self.more.clear();
        let memory: &'a GuestMemoryMmap = self.memory;
        // An indirect table, once there is one.
        let mut table: Option<VolatileSlice<'a>> = None;
        let mut entries = u32::from(self.size);
        let mut index = head;
        let mut total = 0usize;
        let mut steps = 0;
        loop {
            if steps == MAX_BUFFERS_PER_CHAIN {
                return Err(ChainFault::TooLong);
            }
            steps += 1;
            let out_of_table = ChainFault::Next {
                next: index,
                table: entries,
            };
            if u32::from(index) >= entries {
                return Err(out_of_table);
            }
            // Copied out once; everything below judges the copy.
            let Descriptor {
                address,
                len,
                flags,
                next,
            } = match &table {
                None => self.descriptor(index),
                Some(table) => {
                    let words = table.read_obj(usize::from(index) * 16);
                    Descriptor::from_words(words.map_err(|_| out_of_table)?)
                }
            };
            if flags & F_INDIRECT != 0 {
                let fault = ChainFault::Indirect { len };
                let count = len / 16;
                if !self.features.indirect
                    || table.is_some()
                    || flags & F_NEXT != 0
                    || !len.is_multiple_of(16)
                    || count == 0
                    || count as usize > MAX_BUFFERS_PER_CHAIN
                {
                    return Err(fault);
                }
                let found = memory.get_slice(GuestAddress(address), len as usize);
                table = Some(found.map_err(|_| ChainFault::Unmapped { address, len })?);
                entries = count;
                index = 0;
                // It names buffers and is none.
                steps -= 1;
                continue;
            }
            if flags & F_WRITE != self.plain {
                return Err(ChainFault::Direction);
            }
            if len != 0 {
                self.collect_buffer(memory, address, len)?;
                total = total.saturating_add(len as usize);
            }
            if flags & F_NEXT == 0 {
                return Ok(total);
            }
            index = next;
        }
    }

    /// Adds a buffer to the list, and has the next ones looked for in its region first.
    fn collect_buffer(
        &mut self,
        memory: &'a GuestMemoryMmap,
        address: u64,
        len: u32,
    ) -> Result<(), ChainFault> {
        let unmapped = ChainFault::Unmapped { address, len };
        if let Some(buffer) = self.region.as_ref().and_then(|it| it.part(address, len)) {
            self.more.push(buffer);
            return Ok(());
        }
        if address.checked_add(u64::from(len)).is_none() {
            return Err(unmapped);
        }
        // More than one slice only where the buffer crosses regions.
        for slice in memory.get_slices(GuestAddress(address), len as usize) {
            self.more.push(slice.map_err(|_| unmapped)?);
        }
        let number = memory.iter().position(|region| {
            let offset = address.checked_sub(region.start_addr().0);
            offset.is_some_and(|offset| offset < region.len())
        });
        if let Some(number) = number {
            *self.region_number = number;
            self.region = Region::number(memory, number);
        }
        Ok(())
    }

    /// Gives the chain at `head` back with `len` bytes written into it. The guest sees it at the
    /// next [`Burst::publish`].
    #[inline]
    pub fn complete(&mut self, head: u16, len: u32) {
        let slot = 2 * usize::from(self.next & (self.size - 1));
        let elements = self.elements;
        elements[slot].store(u32::from(head).to_le(), Ordering::Relaxed);
        elements[slot + 1].store(len.to_le(), Ordering::Relaxed);
        self.next = self.next.wrapping_add(1);
    }

    /// Shows the guest everything completed so far.
    #[inline]
    pub fn publish(&mut self) {
        if self.published != self.next {
            self.used[1].store(self.next.to_le(), Ordering::Release);
            self.published = self.next;
            *self.position = self.next;
        }
    }

    /// After [`Burst::publish`]: does the guest want to be called for what was published since
    /// this was last asked?
    pub fn wants_call(&mut self) -> bool {
        let (old, new) = (*self.called, self.published);
        if old == new {
            return false;
        }
        // The used index must be visible before we look whether the guest wants to hear of it.
        fence(Ordering::SeqCst);
        // Also if the guest does not want to be called: it looks by itself when it does again.
        *self.called = new;
        if self.features.event_idx {
            let at = 2 + usize::from(self.size);
            let event = u16::from_le(self.available[at].load(Ordering::Relaxed));
            passes_event(event, new, old)
        } else {
            let flags = u16::from_le(self.available[0].load(Ordering::Relaxed));
            flags & AVAIL_F_NO_INTERRUPT == 0
        }
    }

    /// Asks the guest to kick when it adds to the ring, and looks once more: `true` if there is
    /// already something.
    ///
    /// # Errors
    /// A [`RingFault`]: the ring cannot be worked any more.
    pub fn ask_for_kick(&mut self) -> Result<bool, RingFault> {
        *self.armed = true;
        if self.features.event_idx {
            self.set_kick_event(self.next);
        } else {
            self.used[0].store(0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        self.look_again()
    }

    /// Tells the guest that kicks are not needed for now.
    pub fn refuse_kicks(&mut self) {
        *self.armed = false;
        if self.features.event_idx {
            // An event that the guest's index has passed long ago.
            self.set_kick_event(self.next.wrapping_sub(1));
        } else {
            self.used[0].store(USED_F_NO_NOTIFY.to_le(), Ordering::Relaxed);
        }
    }

    fn set_kick_event(&mut self, event: u16) {
        let at = 2 + 4 * usize::from(self.size);
        self.used[at].store(event.to_le(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::mock::{
        Driver, GUEST_BUFFERS, GUEST_END, INDIRECT, NEXT, SEAM, WRITE, layout,
    };
    use super::*;

    const EVENT_IDX: RingFeatures = RingFeatures {
        event_idx: true,
        indirect: false,
    };
    const WITH_INDIRECT: RingFeatures = RingFeatures {
        event_idx: false,
        indirect: true,
    };
    const PLAIN: RingFeatures = RingFeatures {
        event_idx: false,
        indirect: false,
    };
    /// Where these tests put indirect tables.
    const TABLE: u64 = 0x6000;

    fn take_up(driver: &Driver, layout: RingLayout) -> Result<GuestRing, RingFault> {
        GuestRing::take_up(
            layout,
            PLAIN,
            Direction::FromGuest,
            &Arc::new(driver.mem.clone()),
        )
    }

    /// What the first entry of the ring is.
    fn first(driver: &Driver, features: RingFeatures, direction: Direction) -> Next {
        let mut ring = driver.ring(features, direction);
        let next = ring.open().unwrap().peek();
        next.unwrap()
    }

    fn fault(driver: &Driver, features: RingFeatures) -> ChainFault {
        match first(driver, features, Direction::FromGuest) {
            Next::Bad { fault, .. } => fault,
            other => panic!("accepted: {other:?}"),
        }
    }

    fn len(driver: &Driver, features: RingFeatures) -> usize {
        match first(driver, features, Direction::FromGuest) {
            Next::Chain { len, .. } => len,
            other => panic!("no chain: {other:?}"),
        }
    }

    #[test]
    fn a_ring_is_taken_up_at_the_used_index() {
        for position in [0, 1, 7, 0x8000, u16::MAX] {
            let mut driver = Driver::at(8, position);
            driver.describe(3, (GUEST_BUFFERS, 16), 0, 0);
            driver.offer(3);
            driver.offer(3);
            let mut ring = driver.ring(PLAIN, Direction::FromGuest);
            assert_eq!(ring.position(), position);
            let mut burst = ring.open().unwrap();
            assert!(matches!(burst.peek(), Ok(Next::Chain { head: 3, len: 16 })));
        }
    }

    #[test]
    fn a_size_that_virtio_does_not_allow_is_refused() {
        let driver = Driver::new(8);
        for size in [0, 3, 6, 255, 257, 0x7fff, 0x8001, u16::MAX] {
            let refused = take_up(&driver, layout(size)).unwrap_err();
            assert_eq!(refused, RingFault::Size(size));
        }
        for size in [1, 2, 256] {
            take_up(&driver, layout(size)).unwrap();
        }
    }

    #[test]
    fn an_area_that_is_not_aligned_is_refused_by_name() {
        let driver = Driver::new(8);
        let good = layout(8);
        for (area, align) in [
            ("descriptor table", 16),
            ("available ring", 2),
            ("used ring", 4),
        ] {
            for off in (1..align).filter(|off| *off < 3 || *off == align - 1) {
                let mut layout = good;
                let address = match area {
                    "descriptor table" => &mut layout.descriptors,
                    "available ring" => &mut layout.available,
                    _ => &mut layout.used,
                };
                address.0 += off;
                let address = address.0;
                assert_eq!(
                    take_up(&driver, layout).unwrap_err(),
                    RingFault::Alignment {
                        area,
                        address,
                        align
                    }
                );
            }
        }
    }

    #[test]
    fn an_area_that_is_not_inside_one_region_is_refused_by_name() {
        let driver = Driver::new(8);
        let good = layout(8);
        for (area, len) in [
            ("descriptor table", 128),
            ("available ring", 22),
            ("used ring", 70),
        ] {
            // In the hole, over the end, over the seam of two regions, around the address space.
            for address in [GUEST_END, GUEST_END - 16, SEAM - 16, u64::MAX - 15, 1 << 63] {
                let mut layout = good;
                match area {
                    "descriptor table" => layout.descriptors.0 = address,
                    "available ring" => layout.available.0 = address,
                    _ => layout.used.0 = address,
                }
                assert_eq!(
                    take_up(&driver, layout).unwrap_err(),
                    RingFault::Outside { area, address, len }
                );
            }
        }
    }

    #[test]
    fn an_area_that_our_mapping_does_not_align_is_refused() {
        // A VMM may say that a region begins at any guest address; its mapping here begins on a
        // page, so what is aligned there is not aligned here.
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0xfff), 0x1_0000)]).unwrap();
        let mem = Arc::new(mem);
        let refused = GuestRing::take_up(layout(8), PLAIN, Direction::FromGuest, &mem).unwrap_err();
        assert!(
            matches!(
                refused,
                RingFault::Alignment {
                    area: "descriptor table",
                    ..
                }
            ),
            "{refused}"
        );
    }

    #[test]
    fn a_ring_whose_memory_went_away_is_not_opened() {
        let driver = Driver::new(8);
        let mut ring = driver.ring(PLAIN, Direction::FromGuest);
        let other = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2000)]).unwrap();
        ring.set_memory(&Arc::new(other));
        let fault = ring.open().err();
        assert!(matches!(
            fault,
            Some(RingFault::Outside {
                area: "available ring",
                ..
            })
        ));
        ring.set_memory(&Arc::new(driver.mem.clone()));
        assert!(ring.open().is_ok());
    }

    #[test]
    fn what_is_completed_is_seen_when_it_is_published() {
        let mut driver = Driver::new(8);
        driver.describe(5, (GUEST_BUFFERS, 512), WRITE, 0);
        driver.describe(2, (GUEST_BUFFERS + 512, 512), WRITE, 0);
        driver.offer(5);
        driver.offer(2);
        let mut ring = driver.ring(PLAIN, Direction::ToGuest);
        let mut burst = ring.open().unwrap();
        assert!(matches!(burst.peek(), Ok(Next::Chain { head: 5, .. })));
        assert!(
            matches!(burst.peek(), Ok(Next::Chain { head: 5, .. })),
            "looking takes nothing"
        );
        burst.complete(5, 100);
        assert!(matches!(burst.peek(), Ok(Next::Chain { head: 2, .. })));
        burst.complete(2, 512);
        assert!(matches!(burst.peek(), Ok(Next::Nothing)));
        assert_eq!(driver.used_index(), 0, "not published yet");
        burst.publish();
        assert_eq!(driver.used_index(), 2);
        assert_eq!((driver.used(0), driver.used(1)), ((5, 100), (2, 512)));
        assert_eq!(ring.position(), 2);
    }

    #[test]
    fn publishing_nothing_writes_nothing() {
        let driver = Driver::new(8);
        let mut ring = driver.ring(PLAIN, Direction::FromGuest);
        let mut burst = ring.open().unwrap();
        driver.write_u16(layout(8).used.0 + 2, 77);
        burst.publish();
        assert_eq!(driver.used_index(), 77);
    }

    #[test]
    fn indexes_wrap_at_65536() {
        for features in [PLAIN, EVENT_IDX] {
            let mut driver = Driver::at(4, 0xff00);
            let mut ring = driver.ring(features, Direction::FromGuest);
            for round in 0..70_000u32 {
                let head = u16::try_from(round % 4).unwrap();
                driver.describe(head, (GUEST_BUFFERS, 16), 0, 0);
                driver.offer(head);
                let mut burst = ring.open().unwrap();
                let next = burst.peek().unwrap();
                assert!(matches!(next, Next::Chain { head: found, .. } if found == head));
                burst.complete(head, round);
                burst.publish();
                assert_eq!(
                    driver.used(driver.available.wrapping_sub(1)),
                    (head.into(), round)
                );
                assert_eq!(driver.used_index(), driver.available);
            }
        }
    }

    #[test]
    fn a_ring_can_be_full_and_even_have_one_entry() {
        for size in [1, 2, 16] {
            let mut driver = Driver::at(size, u16::MAX);
            for head in 0..size {
                driver.describe(head, (GUEST_BUFFERS, 16), 0, 0);
                driver.offer(head);
            }
            let mut ring = driver.ring(PLAIN, Direction::FromGuest);
            let mut burst = ring.open().unwrap();
            for expected in 0..size {
                let next = burst.peek().unwrap();
                assert!(matches!(next, Next::Chain { head, .. } if head == expected));
                burst.complete(expected, 0);
            }
            assert!(matches!(burst.peek(), Ok(Next::Nothing)));
        }
    }

    #[test]
    fn a_chain_is_all_its_buffers_in_order() {
        let mut driver = Driver::new(8);
        let buffers = [(GUEST_BUFFERS, 16), (GUEST_BUFFERS + 0x100, 3), (0x50, 493)];
        driver.chain(&[6, 0, 3], &buffers, 0);
        driver.offer(6);
        for (address, len) in buffers {
            driver.write(
                address,
                &vec![u8::try_from(len & 0xff).unwrap(); len as usize],
            );
        }
        let mut ring = driver.ring(PLAIN, Direction::FromGuest);
        let mut burst = ring.open().unwrap();
        assert!(matches!(
            burst.peek(),
            Ok(Next::Chain { head: 6, len: 512 })
        ));
        assert_eq!(burst.buffers().len(), 3);
        for (slice, (_, len)) in burst.buffers().iter().zip(buffers) {
            let mut bytes = vec![0; slice.len()];
            slice.copy_to(&mut bytes);
            assert_eq!(bytes, vec![u8::try_from(len & 0xff).unwrap(); len as usize]);
        }
    }

    #[test]
    fn a_buffer_that_crosses_regions_is_two_pieces() {
        let mut driver = Driver::new(8);
        driver.describe(0, (SEAM - 10, 30), 0, 0);
        driver.offer(0);
        let mut ring = driver.ring(PLAIN, Direction::FromGuest);
        let mut burst = ring.open().unwrap();
        assert!(matches!(burst.peek(), Ok(Next::Chain { len: 30, .. })));
        let lens: Vec<_> = burst.buffers().iter().map(VolatileSlice::len).collect();
        assert_eq!(lens, [10, 20]);
    }

    #[test]
    fn a_buffer_of_no_bytes_is_passed_over() {
        let mut driver = Driver::new(8);
        // Its address does not matter: it is never touched.
        let buffers = [(u64::MAX, 0), (GUEST_BUFFERS, 16), (GUEST_END, 0)];
        driver.chain(&[0, 1, 2], &buffers, 0);
        driver.offer(0);
        let mut ring = driver.ring(PLAIN, Direction::FromGuest);
        let mut burst = ring.open().unwrap();
        assert!(matches!(burst.peek(), Ok(Next::Chain { len: 16, .. })));
        assert_eq!(burst.buffers().len(), 1);
    }

    #[test]
    fn a_buffer_outside_guest_memory_makes_a_bad_chain() {
        for (address, len) in [
            (GUEST_END, 1),
            (GUEST_END - 1, 2),
            (GUEST_BUFFERS, u32::MAX),
            (u64::MAX, 1),
            (u64::MAX - 15, 16),
            (u64::MAX - 15, 32),
            (1 << 63, 16),
        ] {
            let mut driver = Driver::new(8);
            driver.chain(&[0, 1], &[(GUEST_BUFFERS, 16), (address, len)], 0);
            driver.offer(0);
            assert_eq!(fault(&driver, PLAIN), ChainFault::Unmapped { address, len });
        }
    }

    #[test]
    fn a_buffer_that_goes_the_wrong_way_makes_a_bad_chain() {
        for (direction, wrong) in [(Direction::FromGuest, WRITE), (Direction::ToGuest, 0)] {
            for position in 0..2 {
                let mut driver = Driver::new(8);
                let right = wrong ^ WRITE;
                let buffers = [(GUEST_BUFFERS, 16), (GUEST_BUFFERS, 16)];
                driver.chain(&[0, 1], &buffers, right);
                let (flags, next) = if position == 0 { (NEXT, 1) } else { (0, 0) };
                driver.describe(position, buffers[0], wrong | flags, next);
                driver.offer(0);
                assert!(matches!(
                    first(&driver, PLAIN, direction),
                    Next::Bad {
                        head: 0,
                        fault: ChainFault::Direction
                    }
                ));
            }
        }
    }

    #[test]
    fn a_next_outside_the_table_makes_a_bad_chain() {
        for next in [8, 9, 0x7fff, u16::MAX] {
            let mut driver = Driver::new(8);
            driver.describe(0, (GUEST_BUFFERS, 16), NEXT, next);
            driver.offer(0);
            assert_eq!(fault(&driver, PLAIN), ChainFault::Next { next, table: 8 });
        }
    }

    #[test]
    fn a_loop_makes_a_bad_chain() {
        for len in [1, 2, 8] {
            for bytes in [0, 16] {
                let mut driver = Driver::new(8);
                for id in 0..len {
                    driver.describe(id, (GUEST_BUFFERS, bytes), NEXT, (id + 1) % len);
                }
                driver.offer(0);
                assert_eq!(fault(&driver, PLAIN), ChainFault::TooLong);
            }
        }
    }

    #[test]
    fn a_chain_may_have_64_buffers_and_no_more() {
        for (buffers, fits) in [(64, true), (65, false), (128, false)] {
            let mut driver = Driver::new(128);
            let ids: Vec<u16> = (0..buffers).collect();
            let spans = vec![(GUEST_BUFFERS, 4); ids.len()];
            driver.chain(&ids, &spans, 0);
            driver.offer(0);
            match first(&driver, PLAIN, Direction::FromGuest) {
                Next::Chain { len, .. } => assert!(fits && len == 4 * ids.len()),
                Next::Bad { fault, .. } => assert!(!fits && fault == ChainFault::TooLong),
                Next::Nothing => panic!("nothing found"),
            }
        }
    }

    #[test]
    fn an_indirect_table_is_walked_as_the_ring_is() {
        let mut driver = Driver::new(8);
        // The write flag of the descriptor that names the table does not count.
        driver.describe(4, (TABLE, 48), INDIRECT | WRITE, 0);
        driver.describe_at(TABLE, 0, (GUEST_BUFFERS, 16), NEXT, 2);
        driver.describe_at(TABLE, 2, (GUEST_BUFFERS + 16, 100), 0, 0);
        driver.offer(4);
        assert_eq!(len(&driver, WITH_INDIRECT), 116);
    }

    #[test]
    fn an_indirect_table_may_end_a_chain_of_plain_buffers() {
        let mut driver = Driver::new(8);
        driver.describe(0, (GUEST_BUFFERS, 16), NEXT, 1);
        driver.describe(1, (TABLE, 16), INDIRECT, 0);
        driver.describe_at(TABLE, 0, (GUEST_BUFFERS + 16, 100), 0, 0);
        driver.offer(0);
        assert_eq!(len(&driver, WITH_INDIRECT), 116);
    }

    #[test]
    fn buffers_of_ring_and_indirect_table_count_together() {
        for (in_table, fits) in [(32, true), (33, false)] {
            let mut driver = Driver::new(64);
            for id in 0..32 {
                driver.describe(id, (GUEST_BUFFERS, 1), NEXT, id + 1);
            }
            driver.describe(32, (TABLE, 16 * u32::from(in_table)), INDIRECT, 0);
            for id in 0..in_table {
                let flags = if id + 1 < in_table { NEXT } else { 0 };
                driver.describe_at(TABLE, id, (GUEST_BUFFERS, 1), flags, id + 1);
            }
            driver.offer(0);
            let next = first(&driver, WITH_INDIRECT, Direction::FromGuest);
            assert_eq!(
                matches!(next, Next::Chain { len: 64, .. }),
                fits,
                "{next:?}"
            );
        }
    }

    #[test]
    fn an_indirect_table_that_was_not_negotiated_makes_a_bad_chain() {
        let mut driver = Driver::new(8);
        driver.describe(0, (TABLE, 16), INDIRECT, 0);
        driver.describe_at(TABLE, 0, (GUEST_BUFFERS, 16), 0, 0);
        driver.offer(0);
        assert_eq!(fault(&driver, PLAIN), ChainFault::Indirect { len: 16 });
        assert_eq!(len(&driver, WITH_INDIRECT), 16);
    }

    #[test]
    fn an_indirect_table_of_a_wrong_length_makes_a_bad_chain() {
        for len in [0, 1, 15, 17, 65 * 16, 65_535 * 16, u32::MAX - 15, u32::MAX] {
            let mut driver = Driver::new(8);
            driver.describe(0, (TABLE, len), INDIRECT, 0);
            driver.offer(0);
            assert_eq!(fault(&driver, WITH_INDIRECT), ChainFault::Indirect { len });
        }
    }

    #[test]
    fn an_indirect_table_with_a_next_or_in_another_makes_a_bad_chain() {
        let mut driver = Driver::new(8);
        driver.describe(0, (TABLE, 16), INDIRECT | NEXT, 1);
        driver.describe(1, (GUEST_BUFFERS, 16), 0, 0);
        driver.offer(0);
        assert_eq!(
            fault(&driver, WITH_INDIRECT),
            ChainFault::Indirect { len: 16 }
        );
        driver.describe(0, (TABLE, 32), INDIRECT, 0);
        driver.describe_at(TABLE, 0, (GUEST_BUFFERS, 16), NEXT, 1);
        driver.describe_at(TABLE, 1, (TABLE, 48), INDIRECT, 0);
        assert_eq!(
            fault(&driver, WITH_INDIRECT),
            ChainFault::Indirect { len: 48 }
        );
    }

    #[test]
    fn an_indirect_table_is_bounded_by_its_length_and_by_guest_memory() {
        let mut driver = Driver::new(8);
        driver.describe(0, (TABLE, 32), INDIRECT, 0);
        driver.describe_at(TABLE, 0, (GUEST_BUFFERS, 16), NEXT, 2);
        driver.describe_at(TABLE, 2, (GUEST_BUFFERS, 16), 0, 0);
        driver.offer(0);
        assert_eq!(
            fault(&driver, WITH_INDIRECT),
            ChainFault::Next { next: 2, table: 2 }
        );
        driver.describe_at(TABLE, 0, (GUEST_BUFFERS, 16), NEXT, 0);
        assert_eq!(fault(&driver, WITH_INDIRECT), ChainFault::TooLong);
        for address in [GUEST_END, GUEST_END - 16, u64::MAX - 15] {
            driver.describe(0, (address, 32), INDIRECT, 0);
            assert_eq!(
                fault(&driver, WITH_INDIRECT),
                ChainFault::Unmapped { address, len: 32 }
            );
        }
    }

    #[test]
    fn a_bad_chain_is_given_back_and_the_next_one_is_found() {
        let mut driver = Driver::new(8);
        driver.describe(0, (GUEST_END, 16), 0, 0);
        driver.describe(1, (GUEST_BUFFERS, 16), 0, 0);
        driver.offer(0);
        driver.offer(1);
        let mut ring = driver.ring(PLAIN, Direction::FromGuest);
        let mut burst = ring.open().unwrap();
        assert!(matches!(burst.peek(), Ok(Next::Bad { head: 0, .. })));
        burst.complete(0, 0);
        assert!(matches!(burst.peek(), Ok(Next::Chain { head: 1, .. })));
    }

    #[test]
    fn a_head_outside_the_ring_is_a_fault() {
        for head in [8, 9, u16::MAX] {
            let mut driver = Driver::at(8, 21);
            driver.offer(head);
            let mut ring = driver.ring(PLAIN, Direction::FromGuest);
            let mut burst = ring.open().unwrap();
            assert_eq!(
                burst.peek().unwrap_err(),
                RingFault::Head {
                    entry: 21,
                    head,
                    size: 8
                }
            );
        }
    }

    #[test]
    fn an_available_index_that_jumps_or_steps_back_is_a_fault() {
        for from in [0u16, 5, u16::MAX] {
            for by in [9, 10, 0x8000, 0xfffe, 0xffff] {
                let driver = Driver::at(8, from);
                let to = from.wrapping_add(by);
                driver.set_available(to);
                let mut ring = driver.ring(PLAIN, Direction::FromGuest);
                let mut burst = ring.open().unwrap();
                let fault = RingFault::AvailableJump { from, to, size: 8 };
                assert_eq!(burst.peek().unwrap_err(), fault);
                assert_eq!(burst.ask_for_kick(), Err(fault));
            }
        }
    }

    #[test]
    fn one_read_of_the_index_does_not_reach_past_it() {
        // What was offered after the index was read is found by reading it again.
        let mut driver = Driver::new(8);
        driver.describe(0, (GUEST_BUFFERS, 16), 0, 0);
        driver.offer(0);
        let mut ring = driver.ring(PLAIN, Direction::FromGuest);
        let mut burst = ring.open().unwrap();
        assert!(matches!(burst.peek(), Ok(Next::Chain { .. })));
        burst.complete(0, 0);
        assert!(matches!(burst.peek(), Ok(Next::Nothing)));
        driver.offer(0);
        assert!(matches!(burst.peek(), Ok(Next::Chain { .. })));
    }

    #[test]
    fn an_event_is_passed_only_by_the_step_over_it() {
        for base in [0u16, 100, 0x7fff, 0xfffa, u16::MAX] {
            let at = |by: u16| base.wrapping_add(by);
            // From `base` to `base + 3` the entries base, base+1 and base+2 are added.
            for (event, passed) in [(0, true), (1, true), (2, true), (3, false), (4, false)] {
                assert_eq!(
                    passes_event(at(event), at(3), base),
                    passed,
                    "{base} {event}"
                );
            }
            assert!(!passes_event(base.wrapping_sub(1), at(3), base));
            assert!(!passes_event(at(0x8000), at(3), base));
            assert!(!passes_event(base, base, base), "no step passes nothing");
        }
    }

    /// Completes `count` entries that are already available and publishes them.
    fn work(driver: &mut Driver, ring: &mut GuestRing, count: u16) -> bool {
        for _ in 0..count {
            driver.offer(0);
            let mut burst = ring.open().unwrap();
            assert!(matches!(burst.peek(), Ok(Next::Chain { .. })));
            burst.complete(0, 0);
            burst.publish();
        }
        ring.open().unwrap().wants_call()
    }

    #[test]
    fn a_guest_is_called_when_its_event_is_passed() {
        for start in [0u16, 0xfffe, u16::MAX] {
            let at = |by: u16| start.wrapping_add(by);
            let mut driver = Driver::at(8, start);
            driver.describe(0, (GUEST_BUFFERS, 16), 0, 0);
            let mut ring = driver.ring(EVENT_IDX, Direction::FromGuest);
            assert!(!work(&mut driver, &mut ring, 0), "nothing was completed");
            driver.set_used_event(at(2));
            assert!(!work(&mut driver, &mut ring, 2));
            assert!(work(&mut driver, &mut ring, 1), "entry 2 is there");
            assert!(!work(&mut driver, &mut ring, 0), "once for each event");
            assert!(!work(&mut driver, &mut ring, 3), "the event is behind");
            driver.set_used_event(at(8));
            assert!(work(&mut driver, &mut ring, 4), "passed in the middle");
        }
    }

    #[test]
    fn a_stale_event_of_the_guest_calls_once_in_65536() {
        let mut driver = Driver::at(8, 10);
        driver.describe(0, (GUEST_BUFFERS, 16), 0, 0);
        let mut ring = driver.ring(EVENT_IDX, Direction::FromGuest);
        driver.set_used_event(9);
        let calls = (0..65_536)
            .filter(|_| work(&mut driver, &mut ring, 1))
            .count();
        assert_eq!(calls, 1);
    }

    #[test]
    fn a_guest_that_wants_no_interrupt_is_not_called() {
        let mut driver = Driver::new(8);
        driver.describe(0, (GUEST_BUFFERS, 16), 0, 0);
        let mut ring = driver.ring(PLAIN, Direction::FromGuest);
        assert!(!work(&mut driver, &mut ring, 0), "nothing was completed");
        assert!(work(&mut driver, &mut ring, 1));
        driver.set_flags(AVAIL_F_NO_INTERRUPT);
        assert!(!work(&mut driver, &mut ring, 3));
        driver.set_flags(0);
        assert!(work(&mut driver, &mut ring, 1));
        driver.set_flags(!AVAIL_F_NO_INTERRUPT);
        assert!(work(&mut driver, &mut ring, 1), "other flags do not count");
    }

    #[test]
    fn a_guest_that_wanted_no_interrupt_for_65536_entries_is_called_for_the_next() {
        // Where the guest wanted to be called last must not be taken for where it is now.
        let mut driver = Driver::new(8);
        driver.describe(0, (GUEST_BUFFERS, 16), 0, 0);
        let mut ring = driver.ring(PLAIN, Direction::FromGuest);
        assert!(work(&mut driver, &mut ring, 1));
        driver.set_flags(AVAIL_F_NO_INTERRUPT);
        for _ in 0..65_535 {
            assert!(!work(&mut driver, &mut ring, 1));
        }
        driver.set_flags(0);
        assert!(work(&mut driver, &mut ring, 1));
    }

    #[test]
    fn kicks_are_refused_and_asked_for_by_flag() {
        let mut driver = Driver::new(8);
        driver.describe(0, (GUEST_BUFFERS, 16), 0, 0);
        let mut ring = driver.ring(PLAIN, Direction::FromGuest);
        let mut burst = ring.open().unwrap();
        burst.refuse_kicks();
        assert_eq!(driver.used_flags(), USED_F_NO_NOTIFY);
        assert_eq!(burst.ask_for_kick(), Ok(false));
        assert_eq!(driver.used_flags(), 0);
        driver.offer(0);
        assert_eq!(burst.ask_for_kick(), Ok(true), "already there");
        assert_eq!(driver.kick_event(), 0, "the event was not negotiated");
    }

    #[test]
    fn kicks_are_refused_and_asked_for_by_event() {
        for start in [0u16, 0xfffc, u16::MAX] {
            let mut driver = Driver::at(8, start);
            driver.describe(0, (GUEST_BUFFERS, 16), 0, 0);
            let mut ring = driver.ring(EVENT_IDX, Direction::FromGuest);
            let mut burst = ring.open().unwrap();
            for _ in 0..6 {
                assert_eq!(burst.ask_for_kick(), Ok(false));
                let old = driver.available;
                driver.offer(0);
                assert!(driver.would_kick(true, old), "asked for");
                burst.refuse_kicks();
                for _ in 1..8 {
                    let old = driver.available;
                    driver.offer(0);
                    assert!(!driver.would_kick(true, old), "refused");
                }
                assert_eq!(burst.ask_for_kick(), Ok(true), "already there");
                while matches!(burst.peek(), Ok(Next::Chain { .. })) {
                    burst.complete(0, 0);
                }
                burst.publish();
            }
            assert_eq!(driver.used_flags(), 0, "the flag was not negotiated");
        }
    }

    /// Where the seed of the fuzz target `guest_ring` is; `RPROCD_WRITE_SEEDS` set: write it.
    #[test]
    fn the_fuzz_targets_seed_is_a_ring_that_works() {
        let mut seed = Vec::new();
        for address in [0u64, 0x100, 0x140] {
            seed.extend(address.to_le_bytes());
        }
        seed.extend(8u16.to_le_bytes());
        seed.extend([3, 0, 0, 0, 0, 0]);
        // A plain buffer, one across the regions' seam, an indirect table, a loop.
        let descriptors: [(u64, u32, u16, u16); 8] = [
            (0x200, 16, NEXT, 1),
            (0x1ff8, 16, 0, 0),
            (0x1c0, 32, INDIRECT, 0),
            (0x200, 16, NEXT, 3),
            (0, 0, 0, 0),
            (0, 0, 0, 0),
            (0, 0, 0, 0),
            (0, 0, 0, 0),
        ];
        let table = [(0x200, 16, NEXT, 1), (0x300, 100, 0, 0)];
        let mut content = vec![0u8; 0x1e0];
        let all = descriptors.iter().zip((0..).step_by(16));
        for ((address, len, flags, next), at) in all.chain(table.iter().zip([0x1c0, 0x1d0])) {
            content[at..at + 8].copy_from_slice(&address.to_le_bytes());
            content[at + 8..at + 12].copy_from_slice(&len.to_le_bytes());
            content[at + 12..at + 14].copy_from_slice(&flags.to_le_bytes());
            content[at + 14..at + 16].copy_from_slice(&next.to_le_bytes());
        }
        content[0x102] = 4;
        content[0x104..0x10c].copy_from_slice(&[0, 0, 2, 0, 3, 0, 0, 0]);
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
        mem.write_slice(&content, GuestAddress(0)).unwrap();
        let layout = RingLayout {
            size: 8,
            descriptors: GuestAddress(0),
            available: GuestAddress(0x100),
            used: GuestAddress(0x140),
        };
        let features = RingFeatures {
            event_idx: true,
            indirect: true,
        };
        let mut ring =
            GuestRing::take_up(layout, features, Direction::FromGuest, &Arc::new(mem)).unwrap();
        let mut burst = ring.open().unwrap();
        let mut found = Vec::new();
        while let Ok(next @ (Next::Chain { head, .. } | Next::Bad { head, .. })) = burst.peek() {
            let len = if let Next::Chain { len, .. } = next {
                len
            } else {
                0
            };
            found.push((head, len));
            burst.complete(head, 0);
        }
        assert_eq!(found, [(0, 32), (2, 116), (3, 0), (0, 32)]);

        seed.extend(content);
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/fuzz/seeds/guest_ring/four_chains"
        );
        if std::env::var_os("RPROCD_WRITE_SEEDS").is_some() {
            std::fs::write(path, &seed).unwrap();
        }
        assert!(std::fs::read(path).unwrap_or_default() == seed);
    }
}
