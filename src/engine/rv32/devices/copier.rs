//! The copier: copies within RAM, from a list in RAM.
//!
//! What belongs here: its registers, and one copy after the other. What does not: that the hart
//! stands still meanwhile, and what of the budget is left, which is the turn's business.

use crate::engine::rv32::board::copier as map;
use crate::engine::rv32::fast_ram::FastRam;
use crate::memory::{DeviceAddress, Ram};

/// What a copy costs, in instructions that take the host as long: its entry, and each of its
/// [`BYTES_A_UNIT`].
const ENTRY_COST: u64 = 8;
const BYTES_A_UNIT: u64 = 16;

pub(super) struct Copier {
    status: u32,
    list: u32,
    done: u32,
    /// Entries still to be done, while a list is under way.
    left: u32,
}

impl Copier {
    pub(super) fn new() -> Self {
        Self {
            status: map::STATUS_OK,
            list: 0,
            done: 0,
            left: 0,
        }
    }

    pub(super) fn load(&self, offset: u32) -> Option<u32> {
        Some(match offset {
            map::ID => map::ID_VALUE,
            map::STATUS => self.status,
            map::DONE => self.done,
            map::LIST => self.list,
            map::START => 0,
            _ => return None,
        })
    }

    pub(super) fn store(&mut self, offset: u32, value: u32) -> Option<()> {
        match offset {
            map::ID | map::STATUS | map::DONE => {}
            map::LIST => self.list = value,
            map::START => {
                self.status = map::STATUS_OK;
                self.done = 0;
                self.left = value;
            }
            _ => return None,
        }
        Some(())
    }

    /// Is a list under way?
    pub(super) fn busy(&self) -> bool {
        self.left > 0
    }

    /// Goes on with the list until it is done or has cost `limit`; says what it cost. At least one
    /// copy is made.
    pub(super) fn work(&mut self, ram: &Ram, limit: u64) -> u64 {
        let mut cost = 0;
        while self.left > 0 {
            match copy(ram, self.list, self.done) {
                Ok(len) => {
                    self.done += 1;
                    self.left -= 1;
                    cost += ENTRY_COST + u64::from(len) / BYTES_A_UNIT;
                }
                Err(status) => {
                    self.status = status;
                    self.left = 0;
                    cost += ENTRY_COST;
                }
            }
            if cost >= limit {
                break;
            }
        }
        cost
    }
}

/// Makes the copy at `index` in `list`. How long it was, or the status that says why it was not.
fn copy(ram: &Ram, list: u32, index: u32) -> Result<u32, u32> {
    // Multiples of 4 from here on, so that each word is read whole.
    let at = u64::from(list) + u64::from(map::ENTRY_SIZE) * u64::from(index);
    let at = u32::try_from(at)
        .ok()
        .filter(|at| at.is_multiple_of(4))
        .ok_or(map::STATUS_LIST)?;
    let view = FastRam::new(ram);
    let word = |offset: u32| {
        at.checked_add(offset)
            .and_then(|address| view.load_word(address))
            .ok_or(map::STATUS_LIST)
    };
    let (to, from, len) = (word(map::TO)?, word(map::FROM)?, word(map::LEN)?);
    if len > map::LIMIT {
        return Err(map::STATUS_LENGTH);
    }
    let bytes = |address: u32| {
        ram.slice(DeviceAddress(u64::from(address)), u64::from(len))
            .map_err(|_| map::STATUS_ADDRESS)
    };
    let (to, from) = (bytes(to)?, bytes(from)?);
    from.copy_to_volatile_slice(to);
    Ok(len)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vm_memory::Bytes;

    use super::*;
    use crate::engine::rv32::board::ram::BASE;

    const LEN: u32 = 0x4_0000;
    const LIST: u32 = BASE + 0x1000;
    const DATA: u32 = BASE + 0x2000;
    const END: u32 = BASE + LEN;

    fn ram() -> Arc<Ram> {
        let ram = Ram::new("test", DeviceAddress(BASE.into()), LEN.into()).unwrap();
        let bytes: Vec<u8> = (0..1000_u32).map(|at| (at % 251) as u8).collect();
        let slice = ram.slice(DeviceAddress(DATA.into()), 1000).unwrap();
        slice.write_slice(&bytes, 0).unwrap();
        ram
    }

    fn bytes(ram: &Ram, address: u32, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let slice = ram
            .slice(DeviceAddress(address.into()), len as u64)
            .unwrap();
        slice.read_slice(&mut bytes, 0).unwrap();
        bytes
    }

    fn list_at(ram: &Ram, list: u32, copies: &[(u32, u32, u32)]) {
        let view = FastRam::new(ram);
        for (index, copy) in copies.iter().enumerate() {
            let at = list + map::ENTRY_SIZE * index as u32;
            view.store_word(at + map::TO, copy.0).unwrap();
            view.store_word(at + map::FROM, copy.1).unwrap();
            view.store_word(at + map::LEN, copy.2).unwrap();
        }
    }

    /// Status and copies made.
    fn start(ram: &Ram, list: u32, count: u32) -> (u32, u32) {
        let mut copier = Copier::new();
        copier.store(map::LIST, list).unwrap();
        copier.store(map::START, count).unwrap();
        while copier.busy() {
            copier.work(ram, u64::MAX);
        }
        (
            copier.load(map::STATUS).unwrap(),
            copier.load(map::DONE).unwrap(),
        )
    }

    #[test]
    fn a_list_is_copied_in_its_order_at_any_alignment() {
        let ram = ram();
        let source = bytes(&ram, DATA, 1000);
        let copies = [
            (BASE + 0x4001, DATA + 3, 333),
            (BASE + 0x5003, BASE + 0x4001, 333),
            (BASE + 0x6000, DATA, 0),
            (END - 7, DATA, 7),
        ];
        list_at(&ram, LIST, &copies);
        assert_eq!(start(&ram, LIST, 4), (map::STATUS_OK, 4));
        assert_eq!(bytes(&ram, BASE + 0x5003, 333), source[3..336]);
        assert_eq!(bytes(&ram, BASE + 0x5000, 3), [0; 3]);
        assert_eq!(bytes(&ram, BASE + 0x5003 + 333, 4), [0; 4]);
        assert_eq!(bytes(&ram, END - 7, 7), source[..7]);
    }

    #[test]
    fn what_overlaps_is_read_before_it_is_written() {
        for (to, from) in [(DATA + 5, DATA), (DATA, DATA + 5)] {
            let ram = ram();
            let source = bytes(&ram, from, 600);
            list_at(&ram, LIST, &[(to, from, 600)]);
            assert_eq!(start(&ram, LIST, 1), (map::STATUS_OK, 1));
            assert_eq!(bytes(&ram, to, 600), source);
        }
    }

    #[test]
    fn the_first_copy_that_cannot_be_made_ends_the_list_untouched() {
        let good = (BASE + 0x4000, DATA, 16);
        for (bad, status) in [
            ((END - 15, DATA, 16), map::STATUS_ADDRESS),
            ((BASE + 0x5000, END - 15, 16), map::STATUS_ADDRESS),
            ((BASE - 4, DATA, 16), map::STATUS_ADDRESS),
            ((0, DATA, 16), map::STATUS_ADDRESS),
            ((0xffff_fff8, DATA, 16), map::STATUS_ADDRESS),
            ((BASE + 0x5000, 0x1100_0000, 4), map::STATUS_ADDRESS),
            ((BASE + 0x5000, DATA, map::LIMIT + 1), map::STATUS_LENGTH),
            ((BASE + 0x5000, DATA, u32::MAX), map::STATUS_LENGTH),
        ] {
            let ram = ram();
            list_at(&ram, LIST, &[good, bad, (BASE + 0x6000, DATA, 16)]);
            assert_eq!(start(&ram, LIST, 3), (status, 1), "{bad:x?}");
            assert_eq!(bytes(&ram, BASE + 0x4000, 16), bytes(&ram, DATA, 16));
            assert_eq!(bytes(&ram, BASE + 0x5000, 16), [0; 16], "{bad:x?}");
            assert_eq!(bytes(&ram, BASE + 0x6000, 16), [0; 16], "{bad:x?}");
            assert_eq!(bytes(&ram, END - 15, 15), [0; 15], "{bad:x?}");
        }
        let ram = ram();
        list_at(&ram, LIST, &[(BASE + 0x8000, BASE + 0x2_0000, map::LIMIT)]);
        assert_eq!(start(&ram, LIST, 1), (map::STATUS_OK, 1), "the longest");
    }

    #[test]
    fn a_list_that_is_not_in_ram_is_not_followed() {
        let ram = ram();
        for list in [0, LIST + 2, LIST + 1, END, END - 8, u32::MAX, 0xffff_fffc] {
            assert_eq!(start(&ram, list, 1), (map::STATUS_LIST, 0), "{list:#x}");
        }
        list_at(&ram, END - 16, &[(BASE + 0x4000, DATA, 16)]);
        assert_eq!(start(&ram, END - 16, 2), (map::STATUS_LIST, 1));
        assert_eq!(start(&ram, END - 16, u32::MAX), (map::STATUS_LIST, 1));
    }

    #[test]
    fn work_stops_at_its_limit_and_is_taken_up_again() {
        let ram = ram();
        list_at(&ram, LIST, &[(BASE + 0x4000, DATA, 160); 10]);
        let mut copier = Copier::new();
        copier.store(map::LIST, LIST).unwrap();
        copier.store(map::START, 10).unwrap();
        assert_eq!(copier.work(&ram, 1), 18);
        assert_eq!(copier.load(map::DONE), Some(1));
        assert_eq!(copier.work(&ram, 37), 54);
        assert_eq!(copier.load(map::DONE), Some(4));
        assert!(copier.busy());
        assert_eq!(copier.work(&ram, u64::MAX), 6 * 18);
        assert!(!copier.busy());
        assert_eq!(copier.load(map::DONE), Some(10));
    }
}
