//! The core-local interruptor: software interrupt and timer of the one hart.

use crate::engine::rv32::board::clint as map;
use crate::engine::rv32::hart::{MSI, MTI};

pub(super) struct Clint {
    msip: bool,
    mtimecmp: u64,
}

impl Clint {
    pub(super) fn new() -> Self {
        Self {
            msip: false,
            mtimecmp: u64::MAX,
        }
    }

    /// The bits of `mip` that come from here.
    pub(super) fn pending(&self, mtime: u64) -> u32 {
        let software = if self.msip { MSI } else { 0 };
        let timer = if mtime >= self.mtimecmp { MTI } else { 0 };
        software | timer
    }

    pub(super) fn mtimecmp(&self) -> u64 {
        self.mtimecmp
    }

    pub(super) fn load(&self, offset: u32, mtime: u64) -> Option<u32> {
        Some(match offset {
            map::MSIP => u32::from(self.msip),
            map::MTIMECMP => self.mtimecmp as u32,
            map::MTIMECMP_HI => (self.mtimecmp >> 32) as u32,
            map::MTIME => mtime as u32,
            map::MTIME_HI => (mtime >> 32) as u32,
            _ => return None,
        })
    }

    pub(super) fn store(&mut self, offset: u32, value: u32) -> Option<()> {
        match offset {
            map::MSIP => self.msip = value & 1 != 0,
            map::MTIMECMP => {
                self.mtimecmp = self.mtimecmp & !0xffff_ffff | u64::from(value);
            }
            map::MTIMECMP_HI => {
                self.mtimecmp = self.mtimecmp & 0xffff_ffff | u64::from(value) << 32;
            }
            map::MTIME | map::MTIME_HI => {}
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timer_is_pending_from_the_tick_in_mtimecmp_on() {
        let mut clint = Clint::new();
        assert_eq!(clint.pending(u64::MAX - 1), 0);
        clint.store(map::MTIMECMP_HI, 1).unwrap();
        clint.store(map::MTIMECMP, 5).unwrap();
        assert_eq!(clint.mtimecmp(), 0x1_0000_0005);
        assert_eq!(clint.pending(0x1_0000_0004), 0);
        assert_eq!(clint.pending(0x1_0000_0005), MTI);
    }

    #[test]
    fn msip_keeps_only_bit_0() {
        let mut clint = Clint::new();
        clint.store(map::MSIP, 0xffff_fffe).unwrap();
        assert_eq!(clint.load(map::MSIP, 0), Some(0));
        clint.store(map::MSIP, 0xffff_ffff).unwrap();
        assert_eq!(clint.load(map::MSIP, 0), Some(1));
        assert_eq!(clint.pending(0), MSI);
    }

    #[test]
    fn mtime_reads_the_time_and_takes_no_value() {
        let mut clint = Clint::new();
        assert_eq!(clint.store(map::MTIME, 7), Some(()));
        assert_eq!(clint.load(map::MTIME, 0x2_0000_0003), Some(3));
        assert_eq!(clint.load(map::MTIME_HI, 0x2_0000_0003), Some(2));
    }

    #[test]
    fn registers_of_other_harts_do_not_answer() {
        let mut clint = Clint::new();
        assert_eq!(clint.load(4, 0), None);
        assert_eq!(clint.store(map::MTIMECMP + 8, 0), None);
    }
}
