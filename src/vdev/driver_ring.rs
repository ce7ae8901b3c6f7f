//! The driver side of a split virtqueue in a core's memory: rprocd is the driver, the firmware is
//! the device.
//!
//! What belongs here: the ring, its descriptors and which of them the firmware holds. What does
//! not: what the buffers carry, and guests. The firmware is hostile: nothing that it can write is
//! used before it has been copied out and judged, and our own state (which descriptors are out,
//! where the buffers lie) is kept where it cannot reach.
//!
//! Descriptor `i` always carries buffer `i`, so a descriptor number is all there is to say.
//!
//! Wire format: as in [`guest_ring`](super::guest_ring). The ring lies in one piece: descriptors
//! at 0, available ring at `16 * num`, used ring at the next multiple of the vring's alignment
//! (Linux `vring_init()` in `include/uapi/linux/virtio_ring.h`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use thiserror::Error;
use vm_memory::VolatileSlice;

use super::guest_ring::passes_event;
use super::words::{Word, Words};

use crate::firmware::VringEntry;
use crate::memory::{DeviceAddress, MemoryError, Ram};

const F_WRITE: u16 = 2;
const USED_F_NO_NOTIFY: u16 = 1;

/// Shape of a vring in one piece, in bytes from its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VringShape {
    /// Entries: a power of two.
    pub num: u16,
    /// Offset of the available ring.
    pub available: u64,
    /// Offset of the used ring.
    pub used: u64,
    /// Bytes in all.
    pub len: u64,
}

impl VringShape {
    /// The shape that the resource table asks for.
    pub fn of(vring: &VringEntry) -> Self {
        Self {
            num: vring.num,
            available: vring.avail_offset(),
            used: vring.used_offset(),
            len: vring.ring_bytes(),
        }
    }
}

/// What a firmware did that no device may do. The ring is not used any more until it is made anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum FirmwareFault {
    /// It gave back a descriptor that it does not hold.
    #[error("it returned descriptor {id}, which it does not hold (the vring has {num})")]
    NotHeld {
        /// The number found in the used ring.
        id: u32,
        /// Entries in the vring.
        num: u16,
    },
    /// The used index moved further than there are descriptors out.
    #[error("its used index jumped from {from} to {to} with {out} descriptors out")]
    UsedJump {
        /// The next entry we had to look at.
        from: u16,
        /// The index found.
        to: u16,
        /// Descriptors that it holds.
        out: u16,
    },
}

/// The parts of a vring in the core's memory.
#[derive(Debug)]
struct Areas {
    ram: Arc<Ram>,
    /// Two words for each descriptor.
    descriptors: Words<AtomicU64>,
    /// Flags, index, the ring, the used event.
    available: Words<AtomicU16>,
    /// Flags, index, and, behind the elements, the available event.
    used: Words<AtomicU16>,
    /// Two words for each used element.
    elements: Words<AtomicU32>,
}

/// The driver side of one vring and the buffers that belong to it.
#[derive(Debug)]
pub struct DriverRing {
    areas: Areas,
    num: u16,
    buffers: DeviceAddress,
    buffer_size: u32,
    /// Which descriptors the firmware holds.
    held: Vec<bool>,
    held_count: u16,
    available: u16,
    used: u16,
    /// `available` when it was last published.
    published: u16,
    /// Kicks of both sides are asked for by index (`VIRTIO_RING_F_EVENT_IDX`).
    event_idx: bool,
}

impl DriverRing {
    /// A ring at `da` whose `shape.num` buffers of `buffer_size` bytes lie one after the other at
    /// `buffers`. Zeroes the ring's memory.
    ///
    /// # Errors
    /// [`MemoryError`] if ring or buffers are not inside `ram`, or the ring is not aligned to 16
    /// bytes.
    pub fn new(
        ram: &Arc<Ram>,
        da: DeviceAddress,
        shape: VringShape,
        buffers: DeviceAddress,
        buffer_size: u32,
    ) -> Result<Self, MemoryError> {
        ram.slice(buffers, u64::from(shape.num) * u64::from(buffer_size))?;
        let memory = ram.slice(da, shape.len)?;
        let zeroes = vec![0u8; memory.len()];
        memory.copy_from(&zeroes);
        let num = usize::from(shape.num);
        // All of them are inside what was just looked up.
        let areas = Areas {
            ram: ram.clone(),
            descriptors: words(ram, da, 0, 2 * num)?,
            available: words(ram, da, shape.available, 3 + num)?,
            used: words(ram, da, shape.used, 3 + 4 * num)?,
            elements: words(ram, da, shape.used + 4, 2 * num)?,
        };
        Ok(Self {
            areas,
            num: shape.num,
            buffers,
            buffer_size,
            held: vec![false; num],
            held_count: 0,
            available: 0,
            used: 0,
            published: 0,
            event_idx: false,
        })
    }

    /// Kicks are asked for by index from here on; said before the firmware sees the ring, and only
    /// if it declares that it does the same.
    pub fn set_event_idx(&mut self) {
        self.event_idx = true;
    }

    /// Entries in the ring.
    pub fn num(&self) -> u16 {
        self.num
    }

    /// Bytes in each buffer.
    pub fn buffer_size(&self) -> u32 {
        self.buffer_size
    }

    /// How many descriptors the firmware holds.
    pub fn held(&self) -> u16 {
        self.held_count
    }

    /// Has the firmware given back anything that has not been taken? A look at one index, for
    /// those who look often; whether it is sound, a burst finds out.
    #[inline]
    pub fn has_more(&self) -> bool {
        u16::from_le(self.areas.used[1].load(Ordering::Relaxed)) != self.used
    }

    /// Opens the ring for a burst of work.
    ///
    /// # Errors
    /// [`MemoryError`] if its buffers are not in the core's memory; checked when the ring was made.
    pub fn open(&mut self) -> Result<DriverBurst<'_>, MemoryError> {
        let len = u64::from(self.num) * u64::from(self.buffer_size);
        let areas = &self.areas;
        let buffers = areas.ram.slice(self.buffers, len)?;
        Ok(DriverBurst {
            seen: self.used,
            taken: self.used,
            num: self.num,
            buffers_at: self.buffers,
            buffer_size: self.buffer_size,
            event_idx: self.event_idx,
            descriptors: &areas.descriptors,
            available_ring: &areas.available,
            used_ring: &areas.used,
            elements: &areas.elements,
            buffers,
            held: &mut self.held,
            held_count: &mut self.held_count,
            available: &mut self.available,
            used: &mut self.used,
            published: &mut self.published,
        })
    }
}

fn words<T: Word>(
    ram: &Arc<Ram>,
    da: DeviceAddress,
    offset: u64,
    count: usize,
) -> Result<Words<T>, MemoryError> {
    let at = DeviceAddress(da.0 + offset);
    Words::of_core(ram, at, count).map_err(|_| MemoryError::Misaligned {
        da: at,
        align: size_of::<T>(),
    })
}

/// One burst of work on a ring.
pub struct DriverBurst<'a> {
    num: u16,
    buffers_at: DeviceAddress,
    buffer_size: u32,
    event_idx: bool,
    descriptors: &'a [AtomicU64],
    available_ring: &'a [AtomicU16],
    used_ring: &'a [AtomicU16],
    elements: &'a [AtomicU32],
    /// All of them, one after the other.
    buffers: VolatileSlice<'a>,
    held: &'a mut [bool],
    held_count: &'a mut u16,
    available: &'a mut u16,
    used: &'a mut u16,
    published: &'a mut u16,
    /// The used index as last read.
    seen: u16,
    /// `used` when the firmware was last told that it was taken.
    taken: u16,
}

impl<'a> DriverBurst<'a> {
    /// The bytes of buffer `id`; nothing for an id out of range.
    #[inline]
    pub fn buffer(&self, id: u16) -> Option<VolatileSlice<'a>> {
        let size = self.buffer_size as usize;
        self.buffers.subslice(usize::from(id) * size, size).ok()
    }

    /// Bytes in each buffer.
    pub fn buffer_size(&self) -> u32 {
        self.buffer_size
    }

    /// Makes descriptor `id`, which the firmware does not hold, available to it: `len` bytes of
    /// its buffer, for the firmware to fill (`writable`) or to read. The firmware sees it at the
    /// next [`DriverBurst::publish`].
    #[inline(always)]
    pub fn offer(&mut self, id: u16, len: u32, writable: bool) {
        let Some(held) = self.held.get_mut(usize::from(id)) else {
            return;
        };
        debug_assert!(!*held, "descriptor {id} is offered twice");
        *held = true;
        *self.held_count = self.held_count.wrapping_add(1);
        let address = self.buffers_at.0 + u64::from(id) * u64::from(self.buffer_size);
        let flags = if writable { F_WRITE } else { 0 };
        let rest = u64::from(len) | (u64::from(flags) << 32);
        let at = 2 * usize::from(id);
        self.descriptors[at].store(address.to_le(), Ordering::Relaxed);
        self.descriptors[at + 1].store(rest.to_le(), Ordering::Relaxed);
        let slot = usize::from(*self.available & (self.num - 1));
        self.available_ring[2 + slot].store(id.to_le(), Ordering::Relaxed);
        *self.available = self.available.wrapping_add(1);
    }

    /// Shows the firmware everything offered so far, and that what was taken has been. `true` if
    /// it wants a kick.
    pub fn publish(&mut self) -> bool {
        let (old, new) = (*self.published, *self.available);
        let asks = self.event_idx && self.taken != *self.used;
        if asks {
            // A kick for the next that it gives back, and for no other until that is taken.
            let event = &self.available_ring[2 + usize::from(self.num)];
            event.store(self.used.to_le(), Ordering::Relaxed);
            self.taken = *self.used;
        }
        if old != new {
            self.available_ring[1].store(new.to_le(), Ordering::Release);
            *self.published = new;
        }
        if asks || old != new {
            // What was asked for must be visible before the used index is looked at again, and the
            // available index before we look whether the firmware wants to hear of it.
            fence(Ordering::SeqCst);
        }
        if old == new {
            return false;
        }
        if self.event_idx {
            let event = &self.used_ring[2 + 4 * usize::from(self.num)];
            passes_event(u16::from_le(event.load(Ordering::Relaxed)), new, old)
        } else {
            u16::from_le(self.used_ring[0].load(Ordering::Relaxed)) & USED_F_NO_NOTIFY == 0
        }
    }

    /// Has the firmware given anything back? Looks at memory when nothing is known.
    ///
    /// # Errors
    /// [`FirmwareFault::UsedJump`].
    #[inline]
    pub fn has_returned(&mut self) -> Result<bool, FirmwareFault> {
        if self.seen == *self.used {
            let seen = u16::from_le(self.used_ring[1].load(Ordering::Acquire));
            if seen.wrapping_sub(*self.used) > *self.held_count {
                return Err(FirmwareFault::UsedJump {
                    from: *self.used,
                    to: seen,
                    out: *self.held_count,
                });
            }
            self.seen = seen;
        }
        Ok(self.seen != *self.used)
    }

    /// Takes the next descriptor that the firmware gave back: its number and the length that the
    /// firmware says it wrote, which is an allegation.
    ///
    /// # Errors
    /// A [`FirmwareFault`]: the ring cannot be used any more.
    #[inline(always)]
    pub fn take_returned(&mut self) -> Result<Option<(u16, u32)>, FirmwareFault> {
        if !self.has_returned()? {
            return Ok(None);
        }
        let num = self.num;
        let slot = 2 * usize::from(*self.used & (num - 1));
        let elements = self.elements;
        let id = u32::from_le(elements[slot].load(Ordering::Relaxed));
        let len = u32::from_le(elements[slot + 1].load(Ordering::Relaxed));
        let held = usize::try_from(id)
            .ok()
            .and_then(|id| self.held.get_mut(id))
            .filter(|held| **held)
            .ok_or(FirmwareFault::NotHeld { id, num })?;
        *held = false;
        *self.held_count = self.held_count.wrapping_sub(1);
        *self.used = self.used.wrapping_add(1);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the number of a descriptor"
        )]
        Ok(Some((id as u16, len)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    fn offset(bytes: u64) -> usize {
        usize::try_from(bytes).unwrap()
    }

    const BASE: u64 = 0x8000_0000;
    const BUFFERS: u64 = BASE + 0x8000;

    fn shape(num: u16, align: u32) -> VringShape {
        VringShape::of(&VringEntry {
            offset: 0,
            da: None,
            align,
            num,
        })
    }

    fn ring(num: u16) -> (Arc<Ram>, DriverRing) {
        let ram = Ram::new("test", DeviceAddress(BASE), 0x10_0000).unwrap();
        let shape = shape(num, 4096);
        let ring = DriverRing::new(
            &ram,
            DeviceAddress(BASE),
            shape,
            DeviceAddress(BUFFERS),
            512,
        )
        .unwrap();
        (ram, ring)
    }

    fn give_back(ram: &Ram, shape: VringShape, index: u16, id: u32, len: u32) {
        let memory = ram.slice(DeviceAddress(BASE), shape.len).unwrap();
        let slot = u64::from((index.wrapping_sub(1)) & (shape.num - 1));
        memory
            .write_obj(id, offset(shape.used + 4 + 8 * slot))
            .unwrap();
        memory
            .write_obj(len, offset(shape.used + 8 + 8 * slot))
            .unwrap();
        memory
            .store(index, offset(shape.used + 2), Ordering::Release)
            .unwrap();
    }

    #[test]
    fn a_vring_has_the_size_that_linux_gives_it() {
        assert_eq!(shape(256, 4096).len, 10246);
        assert_eq!(shape(8, 4096).len, 4166);
        assert_eq!(shape(16, 16).len, 438);
    }

    #[test]
    fn what_is_offered_comes_back_once() {
        let (ram, mut ring) = ring(8);
        let shape = shape(8, 4096);
        let mut burst = ring.open().unwrap();
        burst.offer(3, 40, true);
        assert!(burst.publish());
        assert_eq!(burst.take_returned().unwrap(), None);
        give_back(&ram, shape, 1, 3, 40);
        assert_eq!(burst.take_returned().unwrap(), Some((3, 40)));
        assert_eq!(burst.take_returned().unwrap(), None);
        assert_eq!(ring.held(), 0);
    }

    #[test]
    fn a_descriptor_that_the_firmware_does_not_hold_is_a_fault() {
        for id in [4, 8, 0x1_0003, u32::MAX] {
            let (ram, mut ring) = ring(8);
            let shape = shape(8, 4096);
            let mut burst = ring.open().unwrap();
            burst.offer(3, 40, true);
            burst.publish();
            give_back(&ram, shape, 1, id, 40);
            assert_eq!(
                burst.take_returned(),
                Err(FirmwareFault::NotHeld { id, num: 8 })
            );
        }
    }

    #[test]
    fn a_descriptor_returned_twice_is_a_fault() {
        let (ram, mut ring) = ring(8);
        let shape = shape(8, 4096);
        let mut burst = ring.open().unwrap();
        burst.offer(3, 40, true);
        burst.offer(4, 40, true);
        burst.publish();
        give_back(&ram, shape, 1, 3, 40);
        give_back(&ram, shape, 2, 3, 40);
        assert_eq!(burst.take_returned(), Ok(Some((3, 40))));
        assert_eq!(
            burst.take_returned(),
            Err(FirmwareFault::NotHeld { id: 3, num: 8 })
        );
    }

    #[test]
    fn a_used_index_that_jumps_is_a_fault() {
        for to in [2, 9, 0x8000, u16::MAX] {
            let (ram, mut ring) = ring(8);
            let shape = shape(8, 4096);
            let mut burst = ring.open().unwrap();
            burst.offer(3, 40, true);
            burst.publish();
            give_back(&ram, shape, to, 3, 40);
            assert_eq!(
                burst.take_returned(),
                Err(FirmwareFault::UsedJump {
                    from: 0,
                    to,
                    out: 1
                })
            );
        }
    }

    #[test]
    fn indexes_wrap_at_65536() {
        let (ram, mut ring) = ring(4);
        let shape = shape(4, 4096);
        let mut burst = ring.open().unwrap();
        for round in 1..=70_000u32 {
            #[expect(clippy::cast_possible_truncation, reason = "indexes wrap")]
            let (index, id) = (round as u16, (round % 4) as u16);
            burst.offer(id, 16, false);
            burst.publish();
            give_back(&ram, shape, index, u32::from(id), round);
            assert_eq!(burst.take_returned().unwrap(), Some((id, round)));
        }
    }

    #[test]
    fn a_firmware_that_refuses_kicks_is_not_kicked() {
        let (ram, mut ring) = ring(8);
        let shape = shape(8, 4096);
        let memory = ram.slice(DeviceAddress(BASE), shape.len).unwrap();
        memory
            .store(USED_F_NO_NOTIFY, offset(shape.used), Ordering::Relaxed)
            .unwrap();
        let mut burst = ring.open().unwrap();
        burst.offer(0, 16, false);
        assert!(!burst.publish());
        assert!(!burst.publish(), "nothing new, no kick");
    }

    #[test]
    fn with_event_indexes_each_side_is_kicked_when_it_asked_to_be() {
        let (ram, mut ring) = ring(8);
        ring.set_event_idx();
        let shape = shape(8, 4096);
        let memory = ram.slice(DeviceAddress(BASE), shape.len).unwrap();
        let ask = |event: u16| {
            let at = offset(shape.used + 4 + 8 * 8);
            memory.store(event, at, Ordering::Relaxed).unwrap();
        };
        let mut burst = ring.open().unwrap();
        // The firmware asked for the first; the second and third are no news to it.
        for (id, wanted) in [(0, true), (1, false), (2, false)] {
            burst.offer(id, 16, false);
            assert_eq!(burst.publish(), wanted, "descriptor {id}");
        }
        ask(3);
        burst.offer(3, 16, false);
        assert!(burst.publish());
        // We ask for a kick with what comes next, each time we have taken what there was.
        let asked = || {
            let at = offset(shape.available + 4 + 2 * 8);
            memory.load::<u16>(at, Ordering::Relaxed).unwrap()
        };
        assert_eq!(asked(), 0);
        give_back(&ram, shape, 1, 0, 0);
        give_back(&ram, shape, 2, 1, 0);
        while burst.take_returned().unwrap().is_some() {}
        assert!(!burst.publish(), "nothing is offered");
        assert_eq!(asked(), 2);
    }
}
