//! The mailbox: kicks by notify id, both ways.

use crate::engine::rv32::board::mailbox as map;
use crate::engine::{NotifyId, NotifySet};

use super::Effect;

pub(super) struct Mailbox {
    incarnation: u32,
    pending: u64,
    enabled: u64,
    fault_address: u32,
    /// What the firmware has kicked and nobody has taken yet.
    kicks: NotifySet,
    ignored_kicks: u64,
}

impl Mailbox {
    pub(super) fn new(incarnation: u32) -> Self {
        Self {
            incarnation,
            pending: 0,
            enabled: 0,
            fault_address: 0,
            kicks: NotifySet::default(),
            ignored_kicks: 0,
        }
    }

    /// The host kicks. Ids that do not exist have no bit to set.
    pub(super) fn raise(&mut self, id: NotifyId) {
        if id.0 < NotifyId::LIMIT {
            self.pending |= 1 << id.0;
        }
    }

    pub(super) fn line(&self) -> bool {
        self.pending & self.enabled != 0
    }

    pub(super) fn take_kicks(&mut self) -> NotifySet {
        std::mem::take(&mut self.kicks)
    }

    pub(super) fn ignored_kicks(&self) -> u64 {
        self.ignored_kicks
    }

    pub(super) fn load(&self, offset: u32) -> Option<u32> {
        Some(match offset {
            map::ID => map::ID_VALUE,
            map::VERSION => 1,
            map::INCARNATION => self.incarnation,
            map::KICK | map::FAULT => 0,
            map::PENDING_LO => self.pending as u32,
            map::PENDING_HI => (self.pending >> 32) as u32,
            map::ENABLE_LO => self.enabled as u32,
            map::ENABLE_HI => (self.enabled >> 32) as u32,
            map::FAULT_ADDRESS => self.fault_address,
            _ => return None,
        })
    }

    pub(super) fn store(&mut self, offset: u32, value: u32) -> Option<Effect> {
        let wide = u64::from(value);
        match offset {
            map::ID | map::VERSION | map::INCARNATION => {}
            map::KICK => match u8::try_from(value) {
                Ok(id) if id < NotifyId::LIMIT => self.kicks.insert(NotifyId(id)),
                _ => self.ignored_kicks = self.ignored_kicks.saturating_add(1),
            },
            map::PENDING_LO => self.pending &= !wide,
            map::PENDING_HI => self.pending &= !(wide << 32),
            map::ENABLE_LO => self.enabled = self.enabled & !0xffff_ffff | wide,
            map::ENABLE_HI => self.enabled = self.enabled & 0xffff_ffff | wide << 32,
            map::FAULT => {
                return Some(Effect::Fault {
                    value,
                    address: self.fault_address,
                });
            }
            map::FAULT_ADDRESS => self.fault_address = value,
            _ => return None,
        }
        Some(Effect::None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_it_is() {
        let mailbox = Mailbox::new(7);
        assert_eq!(mailbox.load(map::ID), Some(map::ID_VALUE));
        assert_eq!(mailbox.load(map::VERSION), Some(1));
        assert_eq!(mailbox.load(map::INCARNATION), Some(7));
    }

    #[test]
    fn a_kick_is_pending_until_a_one_is_written_to_its_bit() {
        let mut mailbox = Mailbox::new(1);
        mailbox.raise(NotifyId(0));
        mailbox.raise(NotifyId(3));
        mailbox.raise(NotifyId(63));
        assert_eq!(mailbox.load(map::PENDING_LO), Some(9));
        assert_eq!(mailbox.load(map::PENDING_HI), Some(1 << 31));
        mailbox.store(map::PENDING_LO, 8).unwrap();
        assert_eq!(mailbox.load(map::PENDING_LO), Some(1));
        mailbox.store(map::PENDING_HI, u32::MAX).unwrap();
        assert_eq!(mailbox.load(map::PENDING_HI), Some(0));
        assert_eq!(mailbox.load(map::PENDING_LO), Some(1));
    }

    #[test]
    fn the_line_is_up_while_something_pending_is_enabled() {
        let mut mailbox = Mailbox::new(1);
        mailbox.raise(NotifyId(40));
        assert!(!mailbox.line());
        mailbox.store(map::ENABLE_LO, u32::MAX).unwrap();
        assert!(!mailbox.line());
        mailbox.store(map::ENABLE_HI, 1 << 8).unwrap();
        assert!(mailbox.line());
        assert_eq!(mailbox.load(map::ENABLE_LO), Some(u32::MAX));
        mailbox.store(map::PENDING_HI, 1 << 8).unwrap();
        assert!(!mailbox.line());
    }

    #[test]
    fn ids_above_63_are_counted_and_kick_nobody() {
        let mut mailbox = Mailbox::new(1);
        for id in [64, 255, 256, u32::MAX] {
            assert_eq!(mailbox.store(map::KICK, id), Some(Effect::None));
        }
        assert_eq!(mailbox.ignored_kicks(), 4);
        assert!(mailbox.take_kicks().is_empty());
        mailbox.raise(NotifyId(64));
        mailbox.raise(NotifyId(255));
        assert_eq!(mailbox.load(map::PENDING_LO), Some(0));
    }

    #[test]
    fn kicks_of_one_id_merge_until_they_are_taken() {
        let mut mailbox = Mailbox::new(1);
        for id in [5, 63, 5] {
            mailbox.store(map::KICK, id).unwrap();
        }
        assert_eq!(mailbox.take_kicks(), NotifySet(1 << 63 | 1 << 5));
        assert!(mailbox.take_kicks().is_empty());
    }

    #[test]
    fn a_fault_carries_the_address_written_before() {
        let mut mailbox = Mailbox::new(1);
        mailbox.store(map::FAULT_ADDRESS, 0x8000_0010).unwrap();
        assert_eq!(
            mailbox.store(map::FAULT, 2),
            Some(Effect::Fault {
                value: 2,
                address: 0x8000_0010
            })
        );
    }

    #[test]
    fn gaps_do_not_answer() {
        let mut mailbox = Mailbox::new(1);
        assert_eq!(mailbox.load(0x0c), None);
        assert_eq!(mailbox.store(0x38, 0), None);
    }
}
