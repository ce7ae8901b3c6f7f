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

use std::sync::atomic::{Ordering, fence};

use thiserror::Error;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

const DESCRIPTOR_SIZE: u64 = 16;
const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;
const AVAIL_F_NO_INTERRUPT: u16 = 1;
const USED_F_NO_NOTIFY: u16 = 1;

/// The most buffers that one chain may have. No driver of a message device comes near; without a
/// limit one kick could make us walk millions of descriptors.
pub const MAX_BUFFERS_PER_CHAIN: usize = 64;

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

/// The device side of one ring.
#[derive(Debug)]
pub struct GuestRing {
    layout: RingLayout,
    features: RingFeatures,
    direction: Direction,
    /// The next available entry to look at, and the next used entry to write.
    next: u16,
    /// `next` when it was last asked whether to call the guest, or when the ring was taken up.
    called: u16,
}

/// Does an index that moved from `old` to `new` pass the event index `event`?
/// (virtio 1.2, section 2.7.7.2: all modulo 2^16.)
fn passes_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

impl GuestRing {
    /// Takes a ring up where the guest's memory says it stands: at `used.idx`.
    ///
    /// What a VMM says the base is does not count: cloud-hypervisor sends the available index,
    /// by which every receive buffer posted before the start would be lost.
    ///
    /// # Errors
    /// A [`RingFault`] if the layout is none that virtio allows or not inside `mem`.
    pub fn take_up(
        layout: RingLayout,
        features: RingFeatures,
        direction: Direction,
        mem: &GuestMemoryMmap,
    ) -> Result<Self, RingFault> {
        if !layout.size.is_power_of_two() {
            return Err(RingFault::Size(layout.size));
        }
        for (area, address, align) in [
            ("descriptor table", layout.descriptors.0, 16),
            ("available ring", layout.available.0, 2),
            ("used ring", layout.used.0, 4),
        ] {
            if address % align != 0 {
                return Err(RingFault::Alignment {
                    area,
                    address,
                    align,
                });
            }
        }
        let mut ring = Self {
            layout,
            features,
            direction,
            next: 0,
            called: 0,
        };
        let next = {
            let burst = ring.open(mem)?;
            u16::from_le(load(&burst.used, 2, Ordering::Acquire))
        };
        ring.next = next;
        ring.called = next;
        Ok(ring)
    }

    /// The index the ring stands at: next available and next used entry.
    pub fn position(&self) -> u16 {
        self.next
    }

    /// Opens the ring for a burst of work.
    ///
    /// # Errors
    /// [`RingFault::Outside`] if an area of the ring is no longer inside guest memory.
    pub fn open<'a>(&'a mut self, mem: &'a GuestMemoryMmap) -> Result<Burst<'a>, RingFault> {
        let size = u64::from(self.layout.size);
        let area = |area, address: GuestAddress, len: u64| {
            usize::try_from(len)
                .ok()
                .and_then(|len| mem.get_slice(address, len).ok())
                .ok_or(RingFault::Outside {
                    area,
                    address: address.0,
                    len,
                })
        };
        let descriptors = area(
            "descriptor table",
            self.layout.descriptors,
            DESCRIPTOR_SIZE * size,
        )?;
        let available = area("available ring", self.layout.available, 6 + 2 * size)?;
        let used = area("used ring", self.layout.used, 6 + 8 * size)?;
        // Addresses that are aligned in guest memory are aligned here only if their region begins
        // on a page, and where regions begin is the VMM's word.
        for (name, area, address, align) in [
            ("available ring", &available, self.layout.available.0, 2),
            ("used ring", &used, self.layout.used.0, 4),
        ] {
            if area.load::<u16>(0, Ordering::Relaxed).is_err() {
                return Err(RingFault::Alignment {
                    area: name,
                    address,
                    align,
                });
            }
        }
        Ok(Burst {
            seen: self.next,
            published: self.next,
            ring: self,
            mem,
            descriptors,
            available,
            used,
            buffers: Vec::new(),
        })
    }
}

/// Loads from an area of the ring. The offset is inside and aligned by construction: areas are
/// sized for the ring, and their alignment was checked when they were opened.
fn load(area: &VolatileSlice<'_>, offset: usize, order: Ordering) -> u16 {
    area.load(offset, order).unwrap_or_default()
}

/// Stores to an area of the ring; see [`load`].
fn store(area: &VolatileSlice<'_>, offset: usize, value: u16, order: Ordering) {
    let stored = area.store(value, offset, order);
    debug_assert!(
        stored.is_ok(),
        "ring areas are checked when they are opened"
    );
}

/// One burst of work on a ring, with guest memory held in place.
pub struct Burst<'a> {
    ring: &'a mut GuestRing,
    mem: &'a GuestMemoryMmap,
    descriptors: VolatileSlice<'a>,
    available: VolatileSlice<'a>,
    used: VolatileSlice<'a>,
    /// The available index as last read.
    seen: u16,
    /// The used index as last written.
    published: u16,
    buffers: Vec<VolatileSlice<'a>>,
}

impl<'a> Burst<'a> {
    /// The buffers of the chain that [`Burst::peek`] found, in order; none is empty.
    pub fn buffers(&self) -> &[VolatileSlice<'a>] {
        &self.buffers
    }

    /// Looks at the next chain without taking it.
    ///
    /// # Errors
    /// A [`RingFault`]: the ring cannot be worked any more.
    pub fn peek(&mut self) -> Result<Next, RingFault> {
        let next = self.ring.next;
        let size = self.ring.layout.size;
        if self.seen == next && !self.look_again()? {
            return Ok(Next::Nothing);
        }
        let slot = usize::from(next & (size - 1));
        let head = u16::from_le(load(&self.available, 4 + 2 * slot, Ordering::Relaxed));
        if head >= size {
            return Err(RingFault::Head {
                entry: next,
                head,
                size,
            });
        }
        Ok(match self.collect(head) {
            Ok(len) => Next::Chain { head, len },
            Err(fault) => Next::Bad { head, fault },
        })
    }

    /// Reads the available index anew: is there anything to look at?
    fn look_again(&mut self) -> Result<bool, RingFault> {
        let next = self.ring.next;
        let size = self.ring.layout.size;
        let seen = u16::from_le(load(&self.available, 2, Ordering::Acquire));
        if seen.wrapping_sub(next) > size {
            return Err(RingFault::AvailableJump {
                from: next,
                to: seen,
                size,
            });
        }
        self.seen = seen;
        Ok(seen != next)
    }

    /// Walks the chain at `head` and collects its buffers. Returns the bytes in them.
    fn collect(&mut self, head: u16) -> Result<usize, ChainFault> {
        self.buffers.clear();
        let mut table = self.descriptors;
        let mut entries = u32::from(self.ring.layout.size);
        let mut indirect = false;
        let mut index = head;
        let mut total = 0usize;
        let mut steps = 0;
        loop {
            if steps == MAX_BUFFERS_PER_CHAIN {
                return Err(ChainFault::TooLong);
            }
            steps += 1;
            if u32::from(index) >= entries {
                return Err(ChainFault::Next {
                    next: index,
                    table: entries,
                });
            }
            // Copied out once; everything below judges the copy.
            let descriptor: Descriptor =
                table
                    .read_obj(usize::from(index) * 16)
                    .map_err(|_| ChainFault::Next {
                        next: index,
                        table: entries,
                    })?;
            let (address, len, flags) = (descriptor.addr().0, descriptor.len(), descriptor.flags());
            if flags & F_INDIRECT != 0 {
                let fault = ChainFault::Indirect { len };
                let count = len / 16;
                if !self.ring.features.indirect
                    || indirect
                    || flags & F_NEXT != 0
                    || !len.is_multiple_of(16)
                    || count == 0
                    || count as usize > MAX_BUFFERS_PER_CHAIN
                {
                    return Err(fault);
                }
                table = self
                    .mem
                    .get_slice(GuestAddress(address), len as usize)
                    .map_err(|_| ChainFault::Unmapped { address, len })?;
                entries = count;
                indirect = true;
                index = 0;
                // It names buffers and is none.
                steps -= 1;
                continue;
            }
            if (flags & F_WRITE != 0) != (self.ring.direction == Direction::ToGuest) {
                return Err(ChainFault::Direction);
            }
            if len != 0 {
                let unmapped = ChainFault::Unmapped { address, len };
                if address.checked_add(u64::from(len)).is_none() {
                    return Err(unmapped);
                }
                // More than one slice only where the buffer crosses regions.
                for slice in self.mem.get_slices(GuestAddress(address), len as usize) {
                    self.buffers.push(slice.map_err(|_| unmapped)?);
                }
                total = total.saturating_add(len as usize);
            }
            if flags & F_NEXT == 0 {
                return Ok(total);
            }
            index = descriptor.next();
        }
    }

    /// Gives the chain at `head` back with `len` bytes written into it. The guest sees it at the
    /// next [`Burst::publish`].
    pub fn complete(&mut self, head: u16, len: u32) {
        let slot = usize::from(self.ring.next & (self.ring.layout.size - 1));
        let entry = u64::from(head) | (u64::from(len) << 32);
        let written = self.used.write_obj(entry.to_le(), 4 + 8 * slot);
        debug_assert!(
            written.is_ok(),
            "ring areas are checked when they are opened"
        );
        self.ring.next = self.ring.next.wrapping_add(1);
    }

    /// Shows the guest everything completed so far.
    pub fn publish(&mut self) {
        if self.published != self.ring.next {
            store(&self.used, 2, self.ring.next.to_le(), Ordering::Release);
            self.published = self.ring.next;
        }
    }

    /// After [`Burst::publish`]: does the guest want to be called for what was published since
    /// this was last asked?
    pub fn wants_call(&mut self) -> bool {
        let (old, new) = (self.ring.called, self.ring.next);
        if old == new {
            return false;
        }
        // The used index must be visible before we look whether the guest wants to hear of it.
        fence(Ordering::SeqCst);
        // Also if the guest does not want to be called: it looks by itself when it does again.
        self.ring.called = new;
        if self.ring.features.event_idx {
            let offset = 4 + 2 * usize::from(self.ring.layout.size);
            let event = u16::from_le(load(&self.available, offset, Ordering::Relaxed));
            passes_event(event, new, old)
        } else {
            let flags = u16::from_le(load(&self.available, 0, Ordering::Relaxed));
            flags & AVAIL_F_NO_INTERRUPT == 0
        }
    }

    /// Asks the guest to kick when it adds to the ring, and looks once more: `true` if there is
    /// already something.
    ///
    /// # Errors
    /// A [`RingFault`]: the ring cannot be worked any more.
    pub fn ask_for_kick(&mut self) -> Result<bool, RingFault> {
        if self.ring.features.event_idx {
            self.set_kick_event(self.ring.next);
        } else {
            store(&self.used, 0, 0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        self.look_again()
    }

    /// Tells the guest that kicks are not needed for now.
    pub fn refuse_kicks(&mut self) {
        if self.ring.features.event_idx {
            // An event that the guest's index has passed long ago.
            self.set_kick_event(self.ring.next.wrapping_sub(1));
        } else {
            store(&self.used, 0, USED_F_NO_NOTIFY.to_le(), Ordering::Relaxed);
        }
    }

    fn set_kick_event(&mut self, event: u16) {
        let offset = 4 + 8 * usize::from(self.ring.layout.size);
        store(&self.used, offset, event.to_le(), Ordering::Relaxed);
    }
}
