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

use std::sync::atomic::{Ordering, fence};

use thiserror::Error;
use vm_memory::{Bytes, VolatileSlice};

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

/// The driver side of one vring and the buffers that belong to it.
#[derive(Debug)]
pub struct DriverRing {
    da: DeviceAddress,
    shape: VringShape,
    buffers: DeviceAddress,
    buffer_size: u32,
    /// Which descriptors the firmware holds.
    held: Vec<bool>,
    held_count: u16,
    available: u16,
    used: u16,
    /// `available` when it was last published.
    published: u16,
}

impl DriverRing {
    /// A ring at `da` whose `shape.num` buffers of `buffer_size` bytes lie one after the other at
    /// `buffers`. Zeroes the ring's memory.
    ///
    /// # Errors
    /// [`MemoryError`] if ring or buffers are not inside `ram`.
    pub fn new(
        ram: &Ram,
        da: DeviceAddress,
        shape: VringShape,
        buffers: DeviceAddress,
        buffer_size: u32,
    ) -> Result<Self, MemoryError> {
        ram.slice(buffers, u64::from(shape.num) * u64::from(buffer_size))?;
        let memory = ram.slice(da, shape.len)?;
        let zeroes = vec![0u8; memory.len()];
        memory.copy_from(&zeroes);
        Ok(Self {
            da,
            shape,
            buffers,
            buffer_size,
            held: vec![false; usize::from(shape.num)],
            held_count: 0,
            available: 0,
            used: 0,
            published: 0,
        })
    }

    /// Entries in the ring.
    pub fn num(&self) -> u16 {
        self.shape.num
    }

    /// Bytes in each buffer.
    pub fn buffer_size(&self) -> u32 {
        self.buffer_size
    }

    /// How many descriptors the firmware holds.
    pub fn held(&self) -> u16 {
        self.held_count
    }

    /// Opens the ring for a burst of work.
    ///
    /// # Errors
    /// [`MemoryError`] if it is not inside `ram`; checked when the ring was made.
    pub fn open<'a>(&'a mut self, ram: &'a Ram) -> Result<DriverBurst<'a>, MemoryError> {
        let memory = ram.slice(self.da, self.shape.len)?;
        let seen = self.used;
        Ok(DriverBurst {
            ring: self,
            ram,
            memory,
            seen,
        })
    }
}

/// One burst of work on a ring.
pub struct DriverBurst<'a> {
    ring: &'a mut DriverRing,
    ram: &'a Ram,
    memory: VolatileSlice<'a>,
    /// The used index as last read.
    seen: u16,
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a vring is far smaller than 4 GiB"
)]
fn offset(bytes: u64) -> usize {
    bytes as usize
}

impl<'a> DriverBurst<'a> {
    fn load(&self, at: u64, order: Ordering) -> u16 {
        u16::from_le(self.memory.load(offset(at), order).unwrap_or_default())
    }

    fn store(&self, at: u64, value: u16, order: Ordering) {
        let stored = self.memory.store(value.to_le(), offset(at), order);
        debug_assert!(
            stored.is_ok(),
            "the vring's memory was checked when it was opened"
        );
    }

    /// The bytes of buffer `id`.
    ///
    /// # Errors
    /// [`MemoryError`] for an id out of range.
    pub fn buffer(&self, id: u16) -> Result<VolatileSlice<'a>, MemoryError> {
        let size = u64::from(self.ring.buffer_size);
        self.ram.slice(
            DeviceAddress(self.ring.buffers.0 + u64::from(id) * size),
            if id < self.ring.shape.num {
                size
            } else {
                u64::MAX
            },
        )
    }

    /// Bytes in each buffer.
    pub fn buffer_size(&self) -> u32 {
        self.ring.buffer_size
    }

    /// Makes descriptor `id`, which the firmware does not hold, available to it: `len` bytes of
    /// its buffer, for the firmware to fill (`writable`) or to read. The firmware sees it at the
    /// next [`DriverBurst::publish`].
    pub fn offer(&mut self, id: u16, len: u32, writable: bool) {
        let ring = &mut *self.ring;
        let Some(held) = ring.held.get_mut(usize::from(id)) else {
            return;
        };
        debug_assert!(!*held, "descriptor {id} is offered twice");
        *held = true;
        ring.held_count += 1;
        let address = ring.buffers.0 + u64::from(id) * u64::from(ring.buffer_size);
        let flags = if writable { F_WRITE } else { 0 };
        let mut descriptor = [0u8; 16];
        descriptor[..8].copy_from_slice(&address.to_le_bytes());
        descriptor[8..12].copy_from_slice(&len.to_le_bytes());
        descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
        let written = self.memory.write_slice(&descriptor, 16 * usize::from(id));
        debug_assert!(
            written.is_ok(),
            "the vring's memory was checked when it was opened"
        );
        let slot = u64::from(ring.available & (ring.shape.num - 1));
        let at = ring.shape.available + 4 + 2 * slot;
        ring.available = ring.available.wrapping_add(1);
        self.store(at, id, Ordering::Relaxed);
    }

    /// Shows the firmware everything offered so far. `true` if it wants a kick for it.
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.ring.published, self.ring.available);
        if old == new {
            return false;
        }
        self.store(self.ring.shape.available + 2, new, Ordering::Release);
        // The index must be visible before we look whether the firmware wants to hear of it.
        fence(Ordering::SeqCst);
        self.ring.published = new;
        self.load(self.ring.shape.used, Ordering::Relaxed) & USED_F_NO_NOTIFY == 0
    }

    /// Has the firmware given anything back? Looks at memory when nothing is known.
    ///
    /// # Errors
    /// [`FirmwareFault::UsedJump`].
    pub fn has_returned(&mut self) -> Result<bool, FirmwareFault> {
        if self.seen == self.ring.used {
            let seen = self.load(self.ring.shape.used + 2, Ordering::Acquire);
            if seen.wrapping_sub(self.ring.used) > self.ring.held_count {
                return Err(FirmwareFault::UsedJump {
                    from: self.ring.used,
                    to: seen,
                    out: self.ring.held_count,
                });
            }
            self.seen = seen;
        }
        Ok(self.seen != self.ring.used)
    }

    /// Takes the next descriptor that the firmware gave back: its number and the length that the
    /// firmware says it wrote, which is an allegation.
    ///
    /// # Errors
    /// A [`FirmwareFault`]: the ring cannot be used any more.
    pub fn take_returned(&mut self) -> Result<Option<(u16, u32)>, FirmwareFault> {
        if !self.has_returned()? {
            return Ok(None);
        }
        let num = self.ring.shape.num;
        let slot = u64::from(self.ring.used & (num - 1));
        let entry: u64 = self
            .memory
            .read_obj(offset(self.ring.shape.used + 4 + 8 * slot))
            .unwrap_or(u64::MAX);
        let entry = u64::from_le(entry);
        #[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
        let (id, len) = (entry as u32, (entry >> 32) as u32);
        let short = u16::try_from(id).ok().filter(|id| *id < num);
        let Some(id) = short.filter(|id| self.ring.held[usize::from(*id)]) else {
            return Err(FirmwareFault::NotHeld { id, num });
        };
        self.ring.held[usize::from(id)] = false;
        self.ring.held_count -= 1;
        self.ring.used = self.ring.used.wrapping_add(1);
        Ok(Some((id, len)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

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
        let shape = ring.shape;
        let mut burst = ring.open(&ram).unwrap();
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
            let shape = ring.shape;
            let mut burst = ring.open(&ram).unwrap();
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
        let shape = ring.shape;
        let mut burst = ring.open(&ram).unwrap();
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
            let shape = ring.shape;
            let mut burst = ring.open(&ram).unwrap();
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
        let shape = ring.shape;
        let mut burst = ring.open(&ram).unwrap();
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
        let shape = ring.shape;
        let memory = ram.slice(DeviceAddress(BASE), shape.len).unwrap();
        memory
            .store(USED_F_NO_NOTIFY, offset(shape.used), Ordering::Relaxed)
            .unwrap();
        let mut burst = ring.open(&ram).unwrap();
        burst.offer(0, 16, false);
        assert!(!burst.publish());
        assert!(!burst.publish(), "nothing new, no kick");
    }
}
