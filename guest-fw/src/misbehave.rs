//! Ways to die, for images that test what the host makes of them.
//!
//! Each function does one thing wrong, and does it the way that real firmware does. Nothing here is
//! of use to an image that means well.

#![allow(unsafe_code)]

use core::arch::asm;

/// An address that nothing answers to, on this board and on QEMU's `virt`.
pub const NOWHERE: u32 = 0x0040_0000;

/// Executes an instruction that does not exist.
#[inline(never)]
pub fn illegal_instruction() -> ! {
    // SAFETY: does not return, and the trap it raises is handled.
    unsafe { asm!("unimp", options(noreturn)) }
}

/// Stores to an address that nothing answers to.
#[inline(never)]
pub fn wild_store() {
    let nowhere = core::ptr::without_provenance_mut::<u32>(NOWHERE as usize);
    // SAFETY: there is no memory there, so none that Rust knows of; the store raises a trap, which
    // is handled. On a board that has something there it is a device that this image does not use.
    unsafe { nowhere.write_volatile(0xDEAD_BEEF) };
}

/// Calls itself until the stack runs out of RAM.
#[inline(never)]
#[allow(unconditional_recursion, reason = "that is the point")]
pub fn overflow_stack(depth: u32) -> u32 {
    // Kept on the stack by being looked at after the call.
    let frame = core::hint::black_box([depth; 64]);
    let below = overflow_stack(depth.wrapping_add(1));
    core::hint::black_box(&frame)[0].wrapping_add(below)
}

/// Never comes back, and never waits.
#[inline(never)]
pub fn hang() -> ! {
    loop {
        core::hint::spin_loop();
    }
}
