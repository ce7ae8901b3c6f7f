//! The registers of the board: its devices, and the hart's own.
//!
//! One function for each thing the firmware does with a device. When and why belongs to
//! `machine`, `fatal` and the images. There is one hart and interrupts are never taken, so no
//! access needs a lock.

#![allow(unsafe_code)]

use core::arch::asm;

use crate::board;

/// Reads the register at `address`.
fn read(address: u32) -> u32 {
    // SAFETY: private to this module, which passes addresses of the register map only: aligned,
    // and never memory that Rust knows of. One that the board lacks raises a trap, which is
    // reported and ends the run.
    unsafe { core::ptr::without_provenance::<u32>(address as usize).read_volatile() }
}

/// Writes the register at `address`.
fn write(address: u32, value: u32) {
    // SAFETY: as for `read`; no register makes a device write to memory, but for the copier's,
    // which is for spans.
    unsafe { core::ptr::without_provenance_mut::<u32>(address as usize).write_volatile(value) };
}

/// Kicks by notify id, and the last words of a firmware.
pub mod mailbox {
    use super::{board::mailbox::*, read, write};

    /// Is there a mailbox on this board?
    pub fn exists() -> bool {
        crate::start::probe(BASE + ID) == Some(ID_VALUE)
    }

    /// One more at every boot.
    pub fn incarnation() -> u32 {
        read(BASE + INCARNATION)
    }

    /// Kicks the host.
    pub fn kick(notify_id: u32) {
        write(BASE + KICK, notify_id);
    }

    /// Lets every kick raise the interrupt line.
    pub fn enable_all() {
        write(BASE + ENABLE_LO, u32::MAX);
        write(BASE + ENABLE_HI, u32::MAX);
    }

    /// Takes the kicks there are. Returns whether there were any.
    pub fn take() -> bool {
        let (low, high) = (read(BASE + PENDING_LO), read(BASE + PENDING_HI));
        if low != 0 {
            write(BASE + PENDING_LO, low);
        }
        if high != 0 {
            write(BASE + PENDING_HI, high);
        }
        low | high != 0
    }

    /// Reports the firmware's own death. The core stops here.
    pub fn fault(code: u32, address: u32) {
        write(BASE + FAULT_ADDRESS, address);
        write(BASE + FAULT, code);
    }
}

/// Copies made by the board.
pub mod copier {
    use super::{board::copier::*, read, write};
    use crate::memory::Copies;
    use core::sync::atomic::{Ordering, fence};

    /// Is there a copier on this board?
    pub fn exists() -> bool {
        crate::start::probe(BASE + ID) == Some(ID_VALUE)
    }

    /// Has the board make `copies`. Says whether it did, all of them.
    pub fn make(copies: &mut Copies) -> bool {
        let (list, count) = copies.list();
        // The list must be in memory before it is read by something the compiler knows nothing of.
        fence(Ordering::SeqCst);
        write(BASE + LIST, list);
        write(BASE + START, count);
        let made = read(BASE + STATUS) == STATUS_OK;
        if made {
            copies.forget();
        }
        made
    }
}

/// The interrupt controller, of which only the mailbox's source is used.
pub mod plic {
    use super::{board::plic::*, write};

    /// Lets the mailbox through to the hart.
    pub fn enable_mailbox() {
        write(BASE + PRIORITY + 4 * MAILBOX_IRQ, 1);
        write(BASE + THRESHOLD, 0);
        write(BASE + ENABLE, 1 << MAILBOX_IRQ);
    }
}

/// Time.
pub mod clint {
    use super::{board::clint::*, read};

    /// Microseconds since the core was started.
    pub fn microseconds() -> u64 {
        loop {
            let high = read(BASE + MTIME_HI);
            let low = read(BASE + MTIME);
            // The low half may have wrapped between the two.
            if high == read(BASE + MTIME_HI) {
                let ticks = u64::from(high) << 32 | u64::from(low);
                return ticks / (TICKS_PER_SECOND / 1_000_000);
            }
        }
    }
}

/// The serial port.
pub mod uart {
    use super::board::uart::*;

    /// In LSR: a byte was received. Never so on a board of rprocd.
    const LSR_DATA_READY: u8 = 0x01;

    fn status() -> u8 {
        let address = core::ptr::without_provenance::<u8>((BASE + LSR) as usize);
        // SAFETY: a byte register of the board, not memory that Rust knows of.
        unsafe { address.read_volatile() }
    }

    /// Sends `bytes`.
    pub fn write(bytes: &[u8]) {
        let address = core::ptr::without_provenance_mut::<u8>((BASE + THR) as usize);
        for byte in bytes {
            while status() & LSR_THRE == 0 {}
            // SAFETY: a byte register of the board, not memory that Rust knows of.
            unsafe { address.write_volatile(*byte) };
        }
    }

    /// Waits for a byte.
    pub fn read() -> u8 {
        while status() & LSR_DATA_READY == 0 {}
        let address = core::ptr::without_provenance::<u8>((BASE + THR) as usize);
        // SAFETY: a byte register of the board, not memory that Rust knows of.
        unsafe { address.read_volatile() }
    }
}

/// The end of a run.
pub mod finisher {
    use super::{board::finisher::*, write};

    /// The run ends and all is well.
    pub fn pass() {
        write(BASE + CONTROL, PASS);
    }

    /// The run ends with a failure.
    pub fn fail(code: u16) {
        write(BASE + CONTROL, u32::from(code) << 16 | FAIL);
    }
}

/// The watchdog.
pub mod watchdog {
    use super::{board::watchdog::*, write};

    /// Arms it: without [`feed`] it bites after `milliseconds`.
    pub fn arm(milliseconds: u32) {
        write(BASE + TIMEOUT_MS, milliseconds);
        write(BASE + CONTROL, 1);
    }

    /// Starts a new period.
    pub fn feed() {
        write(BASE + FEED, FEED_VALUE);
    }
}

/// The hart's own registers.
pub mod hart {
    use super::asm;

    const MIE_EXTERNAL: u32 = 1 << 11;

    /// Lets an external interrupt end [`wait`]. It is never taken: mstatus.MIE stays clear.
    pub fn wake_on_external() {
        // SAFETY: mie decides what ends a wait; with mstatus.MIE clear no handler is entered.
        unsafe { asm!("csrs mie, {}", in(reg) MIE_EXTERNAL, options(nostack)) };
    }

    /// Lets nothing end a [`wait`].
    pub fn wake_on_nothing() {
        // SAFETY: mie decides what ends a wait; clearing it takes no handler away.
        unsafe { asm!("csrw mie, zero", options(nostack, nomem)) };
    }

    /// Waits for an enabled interrupt to be pending; may return without.
    pub fn wait() {
        // SAFETY: changes no register. Not `nomem`: others write to memory while it waits.
        unsafe { asm!("wfi", options(nostack)) };
    }
}
