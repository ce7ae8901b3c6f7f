//! The two sides that the tests of this room play: a guest's driver and a firmware, on plain
//! memory.
//!
//! What belongs here: writing and reading the rings as the other side does. What does not: any
//! check. Nothing here is judged, so a test can be as honest or as hostile as it likes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::driver_ring::{DriverRing, VringShape};
use super::guest_ring::{Direction, GuestRing, RingFeatures, RingLayout};
use super::rpmsg::HEADER_LEN;
use crate::firmware::VringEntry;
use crate::memory::{DeviceAddress, Ram};

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Two regions that touch, a hole behind them.
pub const GUEST_MEMORY: [(u64, usize); 2] = [(0, 0x1_0000), (0x1_0000, 0x1_0000)];
/// Where the two regions of guest memory touch.
pub const SEAM: u64 = 0x1_0000;
/// The first guest address after all of guest memory.
pub const GUEST_END: u64 = 0x2_0000;
/// Where tests keep the guest's buffers, far from its ring.
pub const GUEST_BUFFERS: u64 = 0x8000;

const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x3000;
const USED: u64 = 0x4000;

/// A layout for a ring of up to 256 entries.
pub fn layout(size: u16) -> RingLayout {
    RingLayout {
        size,
        descriptors: GuestAddress(DESCRIPTORS),
        available: GuestAddress(AVAILABLE),
        used: GuestAddress(USED),
    }
}

/// A guest's driver.
pub struct Driver {
    pub mem: GuestMemoryMmap,
    pub layout: RingLayout,
    pub available: u16,
}

impl Driver {
    pub fn new(size: u16) -> Self {
        let regions = GUEST_MEMORY.map(|(start, len)| (GuestAddress(start), len));
        Self {
            mem: GuestMemoryMmap::from_ranges(&regions).unwrap(),
            layout: layout(size),
            available: 0,
        }
    }

    /// A driver whose ring has been used `position` times.
    pub fn at(size: u16, position: u16) -> Self {
        let mut driver = Self::new(size);
        driver.available = position;
        driver.set_available(position);
        driver.write_u16(USED + 2, position);
        driver
    }

    pub fn ring(&self, features: RingFeatures, direction: Direction) -> GuestRing {
        let memory = Arc::new(self.mem.clone());
        GuestRing::take_up(self.layout, features, direction, &memory).unwrap()
    }

    pub fn read_u16(&self, at: u64) -> u16 {
        self.mem.load(GuestAddress(at), Ordering::Acquire).unwrap()
    }

    pub fn write_u16(&self, at: u64, value: u16) {
        self.mem
            .store(value, GuestAddress(at), Ordering::Release)
            .unwrap();
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.mem.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// Writes a descriptor into a table anywhere.
    pub fn describe_at(
        &self,
        table: u64,
        index: u16,
        (address, len): (u64, u32),
        flags: u16,
        next: u16,
    ) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.write(table + 16 * u64::from(index), &bytes);
    }

    /// Writes a descriptor of the ring.
    pub fn describe(&self, index: u16, buffer: (u64, u32), flags: u16, next: u16) {
        self.describe_at(DESCRIPTORS, index, buffer, flags, next);
    }

    /// Writes a chain over the descriptors `ids`, one for each buffer.
    pub fn chain(&self, ids: &[u16], buffers: &[(u64, u32)], flags: u16) {
        for (at, (id, buffer)) in ids.iter().zip(buffers).enumerate() {
            match ids.get(at + 1).filter(|_| at + 1 < buffers.len()) {
                Some(next) => self.describe(*id, *buffer, flags | NEXT, *next),
                None => self.describe(*id, *buffer, flags, 0),
            }
        }
    }

    /// Makes the chain at `head` available.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.available & (self.layout.size - 1));
        self.write_u16(AVAILABLE + 4 + 2 * slot, head);
        self.available = self.available.wrapping_add(1);
        self.set_available(self.available);
    }

    pub fn set_available(&self, index: u16) {
        self.write_u16(AVAILABLE + 2, index);
    }

    pub fn set_flags(&self, flags: u16) {
        self.write_u16(AVAILABLE, flags);
    }

    pub fn set_used_event(&self, event: u16) {
        self.write_u16(AVAILABLE + 4 + 2 * u64::from(self.layout.size), event);
    }

    pub fn used_index(&self) -> u16 {
        self.read_u16(USED + 2)
    }

    pub fn used_flags(&self) -> u16 {
        self.read_u16(USED)
    }

    pub fn kick_event(&self) -> u16 {
        self.read_u16(USED + 4 + 8 * u64::from(self.layout.size))
    }

    /// The used entry at `index`: chain and bytes written.
    pub fn used(&self, index: u16) -> (u32, u32) {
        let slot = u64::from(index & (self.layout.size - 1));
        let entry: [u32; 2] = self
            .mem
            .read_obj(GuestAddress(USED + 4 + 8 * slot))
            .unwrap();
        (entry[0], entry[1])
    }

    /// Would an honest driver kick, after its index went from `old` to where it is?
    pub fn would_kick(&self, event_idx: bool, old: u16) -> bool {
        if event_idx {
            let event = self.kick_event();
            self.available.wrapping_sub(event).wrapping_sub(1) < self.available.wrapping_sub(old)
        } else {
            self.used_flags() & 1 == 0
        }
    }
}

/// Where tests keep the core's memory.
pub const RAM: u64 = 0x8000_0000;
/// Bytes of the core's memory.
pub const RAM_LEN: u64 = 0x2_0000;
/// Where the vring is: neither first nor last.
pub const VRING: u64 = RAM + 0x1000;
/// Where the buffers of the vring are, far from it.
pub const CORE_BUFFERS: u64 = RAM + 0x8000;

/// A firmware that is the device of one vring.
pub struct Firmware {
    pub ram: Arc<Ram>,
    pub shape: VringShape,
    /// The next available entry to take.
    pub next: u16,
    pub used: u16,
}

impl Firmware {
    /// A firmware in RAM that is full of `canary`, and the host's side of its vring.
    pub fn new(num: u16, buffer_size: u32, canary: u8) -> (Self, DriverRing) {
        let ram = Ram::new("test", DeviceAddress(RAM), RAM_LEN).unwrap();
        let all = ram.slice(DeviceAddress(RAM), RAM_LEN).unwrap();
        all.copy_from(&vec![canary; all.len()]);
        let shape = VringShape::of(&VringEntry {
            offset: 0,
            da: None,
            align: 16,
            num,
        });
        let firmware = Self {
            ram,
            shape,
            next: 0,
            used: 0,
        };
        let ring = firmware.make_ring(buffer_size);
        (firmware, ring)
    }

    /// The host's side of the vring, made anew.
    pub fn make_ring(&self, buffer_size: u32) -> DriverRing {
        let (da, buffers) = (DeviceAddress(VRING), DeviceAddress(CORE_BUFFERS));
        DriverRing::new(&self.ram, da, self.shape, buffers, buffer_size).unwrap()
    }

    pub fn write(&self, da: u64, bytes: &[u8]) {
        let len = bytes.len() as u64;
        let slice = self.ram.slice(DeviceAddress(da), len).unwrap();
        slice.copy_from(bytes);
    }

    pub fn read(&self, da: u64, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        let slice = self.ram.slice(DeviceAddress(da), len.into()).unwrap();
        slice.copy_to(&mut bytes);
        bytes
    }

    pub fn read_u16(&self, offset: u64) -> u16 {
        let bytes = self.read(VRING + offset, 2);
        u16::from_le_bytes([bytes[0], bytes[1]])
    }

    /// The available index: what the host has shown so far.
    pub fn available(&self) -> u16 {
        self.read_u16(self.shape.available + 2)
    }

    /// Takes the next available entry: a descriptor's number.
    pub fn take_number(&mut self) -> Option<u16> {
        if self.available() == self.next {
            return None;
        }
        let slot = u64::from(self.next & (self.shape.num - 1));
        let id = self.read_u16(self.shape.available + 4 + 2 * slot);
        self.next = self.next.wrapping_add(1);
        Some(id)
    }

    /// Takes the next descriptor: its number, address and length.
    pub fn take(&mut self) -> Option<(u16, u64, u32)> {
        let id = self.take_number()?;
        let descriptor = self.read(VRING + 16 * u64::from(id), 16);
        let address = u64::from_le_bytes(descriptor[..8].try_into().unwrap());
        let len = u32::from_le_bytes(descriptor[8..12].try_into().unwrap());
        Some((id, address, len))
    }

    /// Writes a used entry and shows it.
    pub fn give_back(&mut self, id: u32, len: u32) {
        let slot = u64::from(self.used & (self.shape.num - 1));
        let at = VRING + self.shape.used + 4 + 8 * slot;
        self.write(at, &id.to_le_bytes());
        self.write(at + 4, &len.to_le_bytes());
        self.used = self.used.wrapping_add(1);
        self.set_used(self.used);
    }

    pub fn set_used(&self, index: u16) {
        self.write(VRING + self.shape.used + 2, &index.to_le_bytes());
    }

    /// Takes a descriptor to be filled, fills it, and gives it back with its true length.
    /// `false` if there is none.
    pub fn send(&mut self, message: &[u8]) -> bool {
        let Some((id, address, _)) = self.take() else {
            return false;
        };
        self.write(address, message);
        self.give_back(id.into(), u32::try_from(message.len()).unwrap());
        true
    }

    /// Takes the next filled descriptor, reads it and gives it back.
    pub fn receive(&mut self) -> Option<Vec<u8>> {
        let (id, address, len) = self.take()?;
        let message = self.read(address, len);
        self.give_back(id.into(), 0);
        Some(message)
    }
}

/// A message with a payload of `len` bytes that are all different for different `seed`s.
pub fn message(destination: u32, len: u16, seed: u32) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_LEN];
    bytes[..4].copy_from_slice(&seed.to_le_bytes());
    bytes[4..8].copy_from_slice(&destination.to_le_bytes());
    bytes[8..12].copy_from_slice(&0x0bad_cafe_u32.to_le_bytes());
    bytes[12..14].copy_from_slice(&len.to_le_bytes());
    bytes[14..].copy_from_slice(&0x5a5a_u16.to_le_bytes());
    let mut state = seed ^ 0x9e37_79b9;
    for _ in 0..len {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bytes.push(state.to_le_bytes()[3]);
    }
    bytes
}

/// A message of name service.
pub fn announcement(name: &str, address: u32, flags: u32) -> Vec<u8> {
    let mut bytes = message(super::NS_ADDRESS, 40, 0);
    bytes[HEADER_LEN..].fill(0);
    bytes[HEADER_LEN..HEADER_LEN + name.len()].copy_from_slice(name.as_bytes());
    bytes[HEADER_LEN + 32..HEADER_LEN + 36].copy_from_slice(&address.to_le_bytes());
    bytes[HEADER_LEN + 36..].copy_from_slice(&flags.to_le_bytes());
    bytes
}
