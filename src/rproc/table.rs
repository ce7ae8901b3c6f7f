//! The resource table of a running core: what the host writes back into it.
//!
//! There are three copies: the *cached* one, with what is known before the core starts (places,
//! notify ids), which each start of the core begins with; the *live* one in the core's memory; and
//! what we know the live one to be, which stands in for it where the core has none.
//!
//! What belongs here: those copies, and which of them is written. What does not: what the fields
//! mean; their offsets come from [`firmware`](crate::firmware). The firmware can write the live
//! copy at any time, so nothing that was checked when the image was read is ever read back from it.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vm_memory::Bytes;

use crate::memory::{DeviceAddress, Ram};

/// The table of one incarnation.
#[derive(Debug)]
pub struct LiveTable {
    ram: Arc<Ram>,
    /// Where the core sees it; `None` if the image does not load its table, and then the core
    /// never sees what is written here (as in Linux).
    place: Option<DeviceAddress>,
    cached: Vec<u8>,
    bytes: Vec<u8>,
}

impl LiveTable {
    /// A working copy that nobody has seen yet.
    pub fn new(ram: Arc<Ram>, pristine: &[u8]) -> Self {
        Self {
            ram,
            place: None,
            cached: pristine.to_vec(),
            bytes: pristine.to_vec(),
        }
    }

    /// Says where the core sees the table, if it does: a place that was checked to be in its
    /// memory for the whole of the table.
    pub fn place_at(&mut self, place: Option<DeviceAddress>) {
        self.place = place;
    }

    /// Does the core see the table?
    pub fn is_seen(&self) -> bool {
        self.place.is_some()
    }

    /// Where the core sees the table, if it does, and its bytes.
    pub fn place(&self) -> Option<(DeviceAddress, u64)> {
        self.place.map(|place| (place, self.bytes.len() as u64))
    }

    /// Before the core starts: writes a word into the cached copy.
    pub fn prepare_u32(&mut self, offset: usize, value: u32) {
        if let Some(field) = self.cached.get_mut(offset..offset + 4) {
            field.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Before the core starts: writes a byte into the cached copy.
    pub fn prepare_u8(&mut self, offset: usize, value: u8) {
        if let Some(field) = self.cached.get_mut(offset) {
            *field = value;
        }
    }

    /// Copies the cached table to where the core sees it: what an earlier run wrote is gone.
    pub fn publish(&mut self) {
        self.bytes.clone_from(&self.cached);
        self.write_live(0, &self.bytes);
    }

    /// Copies `pristine`, a table as long as this one, to where the core sees it.
    pub fn restore(&self, pristine: &[u8]) {
        if pristine.len() == self.bytes.len() {
            self.write_live(0, pristine);
        }
    }

    /// While the core runs: writes a word.
    pub fn write_u32(&mut self, offset: usize, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }

    /// While the core runs: writes a byte, after all that was written before.
    pub fn write_u8(&mut self, offset: usize, value: u8) {
        // The status byte says that the other fields are there.
        fence(Ordering::SeqCst);
        self.write(offset, &[value]);
        fence(Ordering::SeqCst);
    }

    /// While the core runs: writes bytes (configuration space).
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        if let Some(field) = self.bytes.get_mut(offset..offset + bytes.len()) {
            field.copy_from_slice(bytes);
            self.write_live(offset, bytes);
        }
    }

    /// While the core runs: reads bytes (configuration space), from where the core has them.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        if let Some(field) = self.bytes.get(offset..offset + into.len()) {
            into.copy_from_slice(field);
        }
        if let Some(place) = self.place {
            let at = DeviceAddress(place.0 + offset as u64);
            if let Ok(slice) = self.ram.slice(at, into.len() as u64) {
                slice.copy_to(into);
            }
        }
    }

    /// The whole table as it is known to be well-formed, and as it is now.
    pub fn pristine_and_now(&self) -> (&[u8], Vec<u8>) {
        let mut now = vec![0; self.bytes.len()];
        self.read(0, &mut now);
        (&self.cached, now)
    }

    fn write_live(&self, offset: usize, bytes: &[u8]) {
        let Some(place) = self.place else { return };
        let at = DeviceAddress(place.0 + offset as u64);
        let written = self
            .ram
            .slice(at, bytes.len() as u64)
            .is_ok_and(|slice| slice.write_slice(bytes, 0).is_ok());
        debug_assert!(
            written,
            "the table's place was checked when the boot was planned"
        );
    }
}
