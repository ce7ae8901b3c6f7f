//! The end of an image that cannot go on: traps and panics.
//!
//! Both write one line to the trace and the serial port and then report to the host. Nothing here
//! may rely on the rest of the firmware being sane; in particular it runs on a small stack.
//!
//! | | mailbox FAULT | FAULT_ADDRESS | finisher, where there is no mailbox |
//! |---|---|---|---|
//! | trap | mcause | mepc | FAIL 64 + mcause |
//! | panic | [`PANIC_CODE`] | 0 (the line names file and line) | FAIL 101 |

use core::sync::atomic::{AtomicBool, Ordering};

use crate::board::ram;
use crate::registers::{finisher, hart, mailbox};
use crate::trace;

/// What a panic writes to the mailbox's FAULT register; no mcause looks like it ("PANC").
pub const PANIC_CODE: u32 = 0x5041_4E43;
const PANIC_EXIT: u16 = 101;
const TRAP_EXIT: u16 = 64;

/// Accesses this far below RAM are taken for a stack that grew out of it.
const OVERFLOW_REACH: u32 = 64 * 1024;

/// Is somebody dying already?
static DYING: AtomicBool = AtomicBool::new(false);

/// What the trap entry found.
#[derive(Clone, Copy)]
pub struct Cause {
    /// mcause.
    pub cause: u32,
    /// mepc.
    pub pc: u32,
    /// mtval.
    pub value: u32,
}

/// The end by a trap.
pub fn trap(trap: Cause) -> ! {
    let Cause { cause, pc, value } = trap;
    // A second trap is one in the report of the first, so this time without a report.
    if !DYING.swap(true, Ordering::Relaxed) {
        let below_ram = ram::BASE - OVERFLOW_REACH..ram::BASE;
        let hint = if matches!(cause, 5 | 7) && below_ram.contains(&value) {
            ": stack overflow"
        } else {
            ""
        };
        trace::alarm(format_args!(
            "fatal: {} (mcause {cause:#x}) mepc {pc:#010x} mtval {value:#010x}{hint}",
            name(cause)
        ));
    }
    end(cause, pc, TRAP_EXIT.saturating_add((cause & 0x3F) as u16))
}

/// What mcause says.
fn name(cause: u32) -> &'static str {
    match cause {
        0 => "instruction address misaligned",
        1 => "instruction access fault",
        2 => "illegal instruction",
        3 => "breakpoint",
        4 => "load address misaligned",
        5 => "load access fault",
        6 => "store address misaligned",
        7 => "store access fault",
        11 => "environment call",
        _ if cause >> 31 != 0 => "unexpected interrupt",
        _ => "unknown exception",
    }
}

/// The end by a panic.
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    if !DYING.swap(true, Ordering::Relaxed) {
        let message = info.message();
        match info.location() {
            Some(at) => trace::alarm(format_args!(
                "panic: {message} at {}:{}:{}",
                at.file(),
                at.line(),
                at.column()
            )),
            None => trace::alarm(format_args!("panic: {message}")),
        }
    }
    end(PANIC_CODE, 0, PANIC_EXIT)
}

fn end(code: u32, address: u32, exit: u16) -> ! {
    // Asked anew, for the board may have died before it was ever asked.
    if mailbox::exists() {
        mailbox::fault(code, address);
    }
    finisher::fail(exit);
    hart::wake_on_nothing();
    loop {
        hart::wait();
    }
}
