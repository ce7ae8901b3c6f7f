//! The first and the last instructions: start-up, trap entry, and the load that may fail.
//!
//! Assembly and what it calls, nothing else.

#![allow(unsafe_code)]

use core::arch::{asm, global_asm};

use crate::fatal;

/// What the trap entry saves, in this order. Slot 0 would be register x0, which needs no saving;
/// it holds mepc.
#[repr(C)]
struct Frame {
    pc: u32,
    registers: [u32; 31],
}

const FRAME_SIZE: usize = size_of::<Frame>();
const _: () = assert!(FRAME_SIZE == 128 && FRAME_SIZE.is_multiple_of(16));

/// Register numbers in [`Frame::registers`], which starts at x1.
const A0: usize = 10 - 1;
const A1: usize = 11 - 1;

const LOAD_ACCESS_FAULT: u32 = 5;

// Start-up. The loader has zeroed .bss already; an image loaded by something else is made safe too.
global_asm!(
    r#"
    .cfi_sections .debug_frame
    .section .text.start, "ax"
    .globl _start
    .type _start, @function
_start:
    .cfi_startproc
    .cfi_undefined ra
    csrw mie, zero
    csrci mstatus, 8
    la t0, rprocd_trap_entry
    csrw mtvec, t0
    la t0, __trap_stack_top
    csrw mscratch, t0
    la sp, __stack_top
    csrr t0, mhartid
1:  beqz t0, 2f
    wfi
    j 1b
2:  la t0, __bss_start
    la t1, __bss_end
3:  bgeu t0, t1, 4f
    sw zero, 0(t0)
    addi t0, t0, 4
    j 3b
4:  li fp, 0
    li ra, 0
    call rprocd_image_main
    unimp
    .cfi_endproc
    .size _start, . - _start
"#
);

// The trap entry. It changes to the trap stack before it touches memory, because the stack may be
// what the trap is about. The frame description lets a debugger walk from the report into the code
// that trapped. It is written by hand, as the assembler's directives cannot give one function a
// return address of its own: column 64, which the psABI sets aside for signal frames, here mepc.
// It holds while the handler runs, when all is saved.
global_asm!(
    r#"
    .section .text.trap, "ax"
    .option push
    .option norelax
    .globl rprocd_trap_entry
    .type rprocd_trap_entry, @function
    .balign 4
rprocd_trap_entry:
    csrrw sp, mscratch, sp
    addi sp, sp, -{size}
    sw x1, 4(sp)
    .irp n, 3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    sw x\n, 4*\n(sp)
    .endr
    csrr a1, mscratch
    sw a1, 8(sp)
    csrr a1, mepc
    sw a1, 0(sp)
    addi a1, sp, {size}
    csrw mscratch, a1
    mv a0, sp
    csrr a1, mcause
    csrr a2, mtval
    call {handler}
    lw t0, 0(sp)
    csrw mepc, t0
    lw x1, 4(sp)
    .irp n, 3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    lw x\n, 4*\n(sp)
    .endr
    lw sp, 8(sp)
    mret
.Ltrap_end:
    .size rprocd_trap_entry, . - rprocd_trap_entry
    .option pop

    .section .debug_frame, "", @progbits
    .balign 4
.Ltrap_common:
    .long .Ltrap_common_end - . - 4
    .long 0xFFFFFFFF            // a common entry
    .byte 4                     // DWARF version
    .asciz "S"                  // a signal frame: the address is that of the instruction itself
    .byte 4, 0                  // bytes in an address, in a segment
    .uleb128 1                  // code alignment
    .sleb128 -4                 // data alignment
    .uleb128 64                 // the column of the return address
    .byte 0x0c                  // the frame ends at sp + size
    .uleb128 2
    .uleb128 {size}
    .balign 4
.Ltrap_common_end:
    .long .Ltrap_frame_end - . - 4
    .long .Ltrap_common
    .long rprocd_trap_entry
    .long .Ltrap_end - rprocd_trap_entry
    .byte 0x05                  // column 64 is saved in the lowest word
    .uleb128 64
    .uleb128 {size} / 4
    .irp n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    .byte 0x80 + \n             // register n in word n
    .uleb128 {size} / 4 - \n
    .endr
    .balign 4
.Ltrap_frame_end:
    .text
"#,
    size = const FRAME_SIZE,
    handler = sym on_trap,
);

// The load that may fail: a0 is the address and becomes the value, a1 says whether there is one.
global_asm!(
    r#"
    .section .text.probe, "ax"
    .globl rprocd_probe
    .globl rprocd_probe_load
    .type rprocd_probe, @function
rprocd_probe:
    .cfi_startproc
    li a1, 1
    .option push
    .option norvc
rprocd_probe_load:
    lw a0, 0(a0)
    .option pop
    ret
    .cfi_endproc
    .size rprocd_probe, . - rprocd_probe
"#
);

unsafe extern "C" {
    /// The load in `rprocd_probe`, four bytes long. Only its address is of use.
    static rprocd_probe_load: u8;
}

/// The word at `address`, or nothing when the board has nothing there. `address` must be a multiple
/// of 4.
pub fn probe(address: u32) -> Option<u32> {
    assert!(address.is_multiple_of(4), "probe at an odd address");
    let (value, there): (u32, u32);
    // SAFETY: the routine loads one aligned word and changes a0 and a1 only (and ra, by the call).
    // A load that faults is stepped over by `on_trap`. Loading from memory that Rust knows of would
    // do no harm either, as nothing is written.
    unsafe {
        asm!(
            "call rprocd_probe",
            inlateout("a0") address => value,
            lateout("a1") there,
            out("ra") _,
            options(nostack, readonly),
        );
    }
    (there != 0).then_some(value)
}

/// Called by the trap entry, on the trap stack.
extern "C" fn on_trap(frame: &mut Frame, cause: u32, value: u32) {
    // Only the address of the static is taken, it is not read.
    let probe_load = (&raw const rprocd_probe_load).addr() as u32;
    if cause == LOAD_ACCESS_FAULT && frame.pc == probe_load {
        frame.registers[A0] = 0;
        frame.registers[A1] = 0;
        frame.pc += 4;
        return;
    }
    fatal::trap(fatal::Cause {
        cause,
        pc: frame.pc,
        value,
    });
}
