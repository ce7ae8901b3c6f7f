//! Instructions, CSRs, traps and interrupts.

use std::time::Duration;

use rprocd::engine::{CrashKind, Engine, RunEnd};

use super::asm::*;
use super::machine::{BASE, Machine, PLENTY, RAM_LEN, da};

/// Where the tests have their trap handler.
const HANDLER: u32 = BASE + 0x1000;
const DATA: u32 = BASE + 0x8000;
const MSI: u32 = 1 << 3;
const MTI: u32 = 1 << 7;
const MIE_BIT: u32 = 1 << 3;
const MTIMECMP: u32 = 0x0200_4000;
const MSIP: u32 = 0x0200_0000;

/// A machine whose program sets a trap handler (which puts mcause into a0, mepc into a1, mtval
/// into a2, and powers off) and then is what `write` writes.
fn trapping(write: impl FnOnce(&mut Asm)) -> Machine {
    let mut machine = Machine::running(|asm| {
        asm.set(MTVEC, HANDLER);
        write(asm);
    });
    let mut handler = Asm::at(HANDLER);
    handler
        .op(csrr(A0, MCAUSE))
        .op(csrr(A1, MEPC))
        .op(csrr(A2, MTVAL))
        .power_off();
    machine.load(HANDLER, handler.bytes());
    machine
}

/// Checks that the program traps with these values of mcause, mepc and mtval.
#[track_caller]
fn assert_traps(machine: &mut Machine, cause: u32, pc: u32, mtval: u32) {
    let x = machine.finish();
    let got = [x[A0 as usize], x[A1 as usize], x[A2 as usize]];
    assert_eq!(got, [cause, pc, mtval], "{got:#x?}");
}

/// Checks that one instruction, after some preparation, traps.
#[track_caller]
fn assert_instruction_traps(raw: u32, prepare: impl FnOnce(&mut Asm), cause: u32, mtval: u32) {
    let mut pc = 0;
    let mut machine = trapping(|asm| {
        prepare(asm);
        pc = asm.here();
        asm.op(raw);
    });
    assert_traps(&mut machine, cause, pc, mtval);
}

#[test]
fn calls_breakpoints_and_illegal_instructions_trap_with_their_cause() {
    assert_instruction_traps(ECALL, |_| {}, 11, 0);
    assert_instruction_traps(EBREAK, |_| {}, 3, 0);
    assert_instruction_traps(0xffff_ffff, |_| {}, 2, 0xffff_ffff);
    // The defined illegal instruction has two bytes.
    assert_instruction_traps(0x1234_0000, |_| {}, 2, 0);
    // c.ebreak
    assert_instruction_traps(0x9002, |_| {}, 3, 0);
}

#[test]
fn what_this_machine_leaves_out_is_illegal() {
    let sret = 0x1020_0073;
    let sfence = 0x1200_0073;
    let fadd = 0x0000_0053;
    for raw in [sret, sfence, fadd] {
        assert_instruction_traps(raw, |_| {}, 2, raw);
    }
    // satp, medeleg, pmpcfg0, tselect, mcounteren, and the read-only mhartid and cycle.
    for csr in [0x180, 0x302, 0x3a0, 0x7a0, 0x306] {
        assert_instruction_traps(csrr(A0, csr), |_| {}, 2, csrr(A0, csr));
    }
    for csr in [0xf14, 0xc00] {
        assert_instruction_traps(csrw(csr, ZERO), |_| {}, 2, csrw(csr, ZERO));
    }
}

#[test]
fn a_csr_instruction_that_is_illegal_changes_no_register() {
    let mut machine = trapping(|asm| {
        asm.li(A3, 77).op(csrrw(A3, 0xf14, ZERO));
    });
    assert_eq!(machine.finish()[A3 as usize], 77);
}

#[test]
fn setting_no_bits_of_a_read_only_csr_is_no_write() {
    let mut machine = Machine::running(|asm| {
        asm.li(A0, 1).op(csrrs(A0, 0xf14, ZERO)).power_off();
    });
    assert_eq!(machine.finish()[A0 as usize], 0);
}

#[test]
fn csrs_hold_only_what_is_legal() {
    let mut machine = Machine::running(|asm| {
        asm.li(T2, 0xffff_ffff);
        for (csr, rd) in [
            (MSTATUS, 10),
            (MISA, 11),
            (MIE, 12),
            (MTVEC, 13),
            (MEPC, 14),
        ] {
            asm.op(csrw(csr, T2)).op(csrr(rd, csr));
            asm.op(csrw(csr, ZERO)).op(csrr(rd + 8, csr));
        }
        asm.op(csrw(MIP, T2)).op(csrr(15, MIP));
        asm.power_off();
    });
    let x = machine.finish();
    assert_eq!(
        x[10..15],
        [0x1888, 0x4000_1105, 0x888, 0xffff_fffd, 0xffff_fffe]
    );
    assert_eq!(x[18..23], [0x1800, 0x4000_1105, 0, 0, 0]);
    assert_eq!(x[15], 0);
}

#[test]
fn accesses_where_nothing_answers_trap_with_their_address() {
    let address = 0x4000_0010;
    let point = move |asm: &mut Asm| {
        asm.li(T0, address);
    };
    assert_instruction_traps(lw(A3, T0, 4), point, 5, address + 4);
    assert_instruction_traps(lb(A3, T0, -1), point, 5, address - 1);
    assert_instruction_traps(sw(A3, T0, 0), point, 7, address);
    assert_instruction_traps(sb(A3, T0, 0), point, 7, address);
    assert_instruction_traps(lr(A3, T0), point, 5, address);
    assert_instruction_traps(sc(A3, A3, T0), point, 7, address);
    assert_instruction_traps(amoadd(A3, A3, T0), point, 7, address);
}

#[test]
fn atomics_do_not_reach_registers_of_devices() {
    let point = |asm: &mut Asm| {
        asm.li(T0, MTIMECMP);
    };
    assert_instruction_traps(lr(A3, T0), point, 5, MTIMECMP);
    assert_instruction_traps(sc(A3, A3, T0), point, 7, MTIMECMP);
    assert_instruction_traps(amoadd(A3, A3, T0), point, 7, MTIMECMP);
}

#[test]
fn of_two_instructions_done_at_once_each_traps_for_itself() {
    // Two loads, two stores, and an addition with each: pairs to the interpreter.
    let pairs = [
        [lw(A0, T0, 0), lw(A1, T1, 0)],
        [sw(A2, T0, 0), sw(A3, T1, 0)],
        [lw(A0, T0, 0), addi(A1, A1, 5)],
        [addi(A1, A1, 5), lw(A0, T1, 0)],
        [add(A1, A1, A1), sw(A2, T1, 0)],
    ];
    for [first, second] in pairs {
        for bad in [0, 1] {
            let mut at = 0;
            let mut machine = trapping(|asm| {
                let nowhere = |here: bool| if here { 0x1000 } else { BASE + 0x8000 };
                asm.li(T0, nowhere(bad == 0)).li(T1, nowhere(bad == 1));
                asm.li(A1, 7);
                // A block of its own.
                asm.op(jal(ZERO, 4));
                at = asm.here();
                asm.op(first).op(second).power_off();
            });
            let memory = |raw: u32| raw & 0x7f != 0x13 && raw & 0x7f != 0x33;
            if !memory([first, second][bad]) {
                continue;
            }
            let raw = [first, second][bad];
            let cause = if raw & 0x7f == 0x23 { 7 } else { 5 };
            assert_traps(&mut machine, cause, at + 4 * bad as u32, 0x1000);
        }
    }
}

#[test]
fn misaligned_atomics_trap_and_misaligned_loads_and_stores_work() {
    let point = |asm: &mut Asm| {
        asm.li(T0, DATA + 2);
    };
    assert_instruction_traps(lr(A3, T0), point, 4, DATA + 2);
    assert_instruction_traps(sc(A3, A3, T0), point, 6, DATA + 2);
    assert_instruction_traps(amoadd(A3, A3, T0), point, 6, DATA + 2);

    let mut machine = Machine::running(|asm| {
        asm.li(T0, DATA).li(T1, 0x8899_aabb);
        asm.op(sw(T1, T0, 1)).op(lw(A0, T0, 1));
        asm.op(lh(A1, T0, 3)).op(sh(T1, T0, 7)).op(lh(A2, T0, 7));
        asm.power_off();
    });
    let x = machine.finish();
    assert_eq!(x[10..13], [0x8899_aabb, 0xffff_8899, 0xffff_aabb]);
    assert_eq!(machine.word(DATA), 0x99aa_bb00);
    assert_eq!(machine.word(DATA + 4), 0xbb00_0088);
    assert_eq!(machine.word(DATA + 8), 0x0000_00aa);
}

#[test]
fn an_access_that_is_not_wholly_in_ram_traps_and_stores_nothing() {
    let end = BASE + RAM_LEN;
    for offset in [-1, -2, -3] {
        let point = |asm: &mut Asm| {
            asm.li(T0, end);
        };
        let address = end.wrapping_add_signed(offset);
        assert_instruction_traps(lw(A3, T0, offset), point, 5, address);
        assert_instruction_traps(sw(T0, T0, offset), point, 7, address);
    }
    let mut machine = trapping(|asm| {
        asm.li(T0, end).li(T1, 0xffff_ffff).op(sw(T1, T0, -2));
    });
    machine.finish();
    assert_eq!(machine.word(end - 4), 0);
    // The last word is fine, and so is the wrap around the end of the address space.
    let mut machine = trapping(|asm| {
        asm.li(T0, end).op(sw(T0, T0, -4)).op(lw(A3, T0, -4));
        asm.op(lw(A3, ZERO, -2));
    });
    let x = machine.finish();
    assert_eq!((x[A3 as usize], x[A2 as usize]), (end, 0xffff_fffe));
}

#[test]
fn a_jump_to_where_nothing_is_traps_at_the_target() {
    for target in [0, 0x1000_0000, 0x7fff_fffe, BASE + RAM_LEN, 0xffff_fffe] {
        let mut machine = trapping(|asm| {
            asm.li(T0, target).op(jalr(ZERO, T0, 0));
        });
        assert_traps(&mut machine, 1, target, target);
    }
}

#[test]
fn a_jump_to_an_odd_address_goes_to_the_even_one_below() {
    let mut machine = Machine::running(|asm| {
        asm.li(T0, BASE + 0x101).op(jalr(RA, T0, 0));
        asm.pad_to(BASE + 0x100);
        asm.power_off();
    });
    assert_eq!(machine.finish()[RA as usize], BASE + 12);
}

#[test]
fn an_instruction_across_the_end_of_ram_faults_in_its_second_half() {
    let last = BASE + RAM_LEN - 2;
    let mut machine = trapping(|asm| {
        asm.li(T0, last).op(jalr(ZERO, T0, 0));
    });
    machine.load(last, &0x0013u16.to_le_bytes());
    assert_traps(&mut machine, 1, last, last + 2);

    // c.nop fits; what follows is outside.
    let mut machine = trapping(|asm| {
        asm.li(T0, last).op(jalr(ZERO, T0, 0));
    });
    machine.load(last, &0x0001u16.to_le_bytes());
    assert_traps(&mut machine, 1, last + 2, last + 2);
}

#[test]
fn a_link_register_that_is_the_target_is_read_before_it_is_written() {
    let mut machine = Machine::running(|asm| {
        asm.li(RA, BASE + 0x40).op(jalr(RA, RA, 0));
        asm.pad_to(BASE + 0x40);
        asm.power_off();
    });
    assert_eq!(machine.finish()[RA as usize], BASE + 12);
}

#[test]
fn writes_to_x0_are_lost_whatever_writes() {
    let mut machine = Machine::running(|asm| {
        asm.li(T0, DATA).li(T1, 5).op(sw(T1, T0, 0));
        asm.op(addi(ZERO, T1, 1)).op(lw(ZERO, T0, 0));
        asm.op(lui(ZERO, 0x5000)).op(amoadd(ZERO, T1, T0));
        asm.op(lr(ZERO, T0)).op(csrrs(ZERO, MISA, ZERO));
        asm.op(jal(ZERO, 4)).op(add(A0, ZERO, ZERO));
        asm.power_off();
    });
    let x = machine.finish();
    assert_eq!((x[0], x[A0 as usize]), (0, 0));
    assert_eq!(machine.word(DATA), 10);
}

#[test]
fn a_trap_disables_interrupts_and_mret_brings_them_back() {
    let mut machine = Machine::running(|asm| {
        asm.set(MTVEC, HANDLER).op(csrrsi(ZERO, MSTATUS, MIE_BIT));
        asm.op(ECALL).op(csrr(A1, MSTATUS)).power_off();
    });
    let mut handler = Asm::at(HANDLER);
    handler.op(csrr(A0, MSTATUS)).op(csrr(T0, MEPC));
    handler.op(addi(T0, T0, 4)).op(csrw(MEPC, T0)).op(MRET);
    machine.load(HANDLER, handler.bytes());
    let x = machine.finish();
    assert_eq!((x[A0 as usize], x[A1 as usize]), (0x1880, 0x1888));
}

#[test]
fn interrupts_go_to_their_vector_and_exceptions_to_the_base() {
    let handlers = |machine: &mut Machine| {
        let mut asm = Asm::at(HANDLER);
        asm.op(addi(A0, ZERO, 1)).jump(HANDLER + 0x100);
        asm.pad_to(HANDLER + 4 * 3);
        asm.jump(HANDLER + 0xf8);
        asm.pad_to(HANDLER + 0xf8);
        asm.op(addi(A0, ZERO, 2)).op(NOP);
        asm.op(csrr(A1, MCAUSE)).power_off();
        machine.load(HANDLER, asm.bytes());
    };
    let mut machine = Machine::running(|asm| {
        asm.set(MTVEC, HANDLER | 1).set(MIE, MSI).poke(MSIP, 1);
        asm.op(csrrsi(ZERO, MSTATUS, MIE_BIT)).op(ECALL);
    });
    handlers(&mut machine);
    assert_eq!(machine.finish()[10..12], [2, 0x8000_0003]);
    let mut machine = Machine::running(|asm| {
        asm.set(MTVEC, HANDLER | 1).op(ECALL);
    });
    handlers(&mut machine);
    assert_eq!(machine.finish()[10..12], [1, 11]);
}

#[test]
fn the_software_interrupt_comes_before_the_timer() {
    let mut machine = trapping(|asm| {
        asm.set(MIE, MSI | MTI).poke(MSIP, 1).poke(MTIMECMP, 0);
        asm.poke(MTIMECMP + 4, 0);
        asm.op(csrrsi(ZERO, MSTATUS, MIE_BIT)).op(NOP);
    });
    assert_eq!(machine.finish()[A0 as usize], 0x8000_0003);
}

#[test]
fn an_interrupt_is_taken_right_after_the_store_that_raised_it() {
    let mut after = 0;
    let mut machine = trapping(|asm| {
        asm.set(MIE, MSI).op(csrrsi(ZERO, MSTATUS, MIE_BIT));
        asm.poke(MSIP, 1);
        after = asm.here();
        asm.op(NOP).op(NOP);
    });
    assert_traps(&mut machine, 0x8000_0003, after, 0);
}

#[test]
fn wfi_waits_until_the_timer_and_then_interrupts() {
    let mut machine = trapping(|asm| {
        asm.poke(MTIMECMP, 10_000).poke(MTIMECMP + 4, 0);
        asm.set(MIE, MTI).op(csrrsi(ZERO, MSTATUS, MIE_BIT)).op(WFI);
    });
    let after_wfi = BASE + 12 + 2 * 20 + 12 + 8;
    // 10,000 ticks of 10 MHz are 1 ms.
    let until = Some(machine.at(Duration::from_millis(1)));
    assert_eq!(machine.run().end, RunEnd::Waiting { until });
    machine.pass(Duration::from_nanos(999_999));
    assert_eq!(machine.run().end, RunEnd::Waiting { until });
    machine.pass(Duration::from_nanos(1));
    assert_traps(&mut machine, 0x8000_0007, after_wfi, 0);
}

#[test]
fn a_timer_that_is_not_enabled_wakes_nobody() {
    let mut machine = Machine::running(|asm| {
        asm.poke(MTIMECMP, 10)
            .poke(MTIMECMP + 4, 0)
            .op(WFI)
            .power_off();
    });
    machine.assert_waits();
    machine.pass(Duration::from_secs(1));
    machine.assert_waits();
}

#[test]
fn wfi_goes_on_without_a_trap_when_interrupts_are_disabled_globally() {
    let mut machine = Machine::running(|asm| {
        asm.set(MIE, MSI).poke(MSIP, 1).op(WFI);
        asm.op(csrr(A0, MIP)).power_off();
    });
    assert_eq!(machine.finish()[A0 as usize], MSI);
}

#[test]
fn an_mtimecmp_beyond_all_time_is_no_deadline() {
    let mut machine = Machine::running(|asm| {
        asm.poke(MTIMECMP + 4, 0xffff_fff0).set(MIE, MTI).op(WFI);
    });
    machine.assert_waits();
}

#[test]
fn a_timer_fires_in_a_busy_loop_within_one_turn() {
    let mut machine = trapping(|asm| {
        asm.poke(MTIMECMP, 1000).poke(MTIMECMP + 4, 0).set(MIE, MTI);
        asm.op(csrrsi(ZERO, MSTATUS, MIE_BIT)).op(jal(ZERO, 0));
    });
    assert_eq!(machine.run().end, RunEnd::BudgetSpent);
    machine.pass(Duration::from_millis(1));
    assert_eq!(machine.finish()[A0 as usize], 0x8000_0007);

    // With the clock moving by itself, at each look, no second turn is needed.
    let mut machine = trapping(|asm| {
        asm.poke(MTIMECMP, 10_000)
            .poke(MTIMECMP + 4, 0)
            .set(MIE, MTI);
        asm.op(csrrsi(ZERO, MSTATUS, MIE_BIT)).op(jal(ZERO, 0));
    });
    machine.clock_moves_at_each_look(Duration::from_micros(100));
    assert_eq!(machine.finish()[A0 as usize], 0x8000_0007);
}

#[test]
fn mtime_counts_ten_million_ticks_a_second_from_the_start() {
    let mut machine = Machine::running(|asm| {
        asm.op(WFI);
        asm.peek(A0, 0x0200_bff8).peek(A1, 0x0200_bffc);
        asm.op(csrr(A2, 0xc01)).op(csrr(A3, 0xc81)).power_off();
    });
    machine.pass(Duration::from_secs(500));
    machine.start(BASE + 4);
    machine.pass(Duration::from_secs(500));
    let ticks: u64 = 5_000_000_000;
    let [low, high] = [ticks as u32, (ticks >> 32) as u32];
    assert_eq!(machine.finish()[10..14], [low, high, low, high]);
}

#[test]
fn minstret_counts_every_instruction_once() {
    let mut machine = Machine::running(|asm| {
        // Branches taken and not, jumps, RAM and register accesses, CSRs: all counted.
        asm.op(csrr(A0, MINSTRET)).li(T2, 10);
        asm.op(addi(T2, T2, -1))
            .op(beq(T2, ZERO, 8))
            .op(bne(T2, ZERO, -8));
        asm.peek(T1, DATA).peek(T1, MSIP).op(FENCE).op(FENCE_I);
        asm.op(jal(ZERO, 4)).op(csrr(A1, MINSTRET)).power_off();
    });
    let x = machine.finish();
    // csrr, li, the loop (9 times 3, once 2), two peeks, fences, jal.
    assert_eq!(x[11] - x[10], 1 + 2 + 29 + 2 * 3 + 2 + 1);
    assert_eq!(x[10], 0);
    // The store that powers off does not retire.
    let rest = 1 + 4;
    assert_eq!(machine.core.statistics().retired, u64::from(x[11] + rest));
}

#[test]
fn a_trapping_instruction_does_not_retire() {
    let mut machine = Machine::running(|asm| {
        asm.set(MTVEC, HANDLER).op(csrr(A0, MINSTRET)).op(ECALL);
    });
    let mut handler = Asm::at(HANDLER);
    handler.op(csrr(A1, MINSTRET)).power_off();
    machine.load(HANDLER, handler.bytes());
    let x = machine.finish();
    assert_eq!(x[11] - x[10], 1);
}

#[test]
fn counters_go_on_from_what_was_written() {
    let mut machine = Machine::running(|asm| {
        asm.li(T0, 0xffff_ffff).op(csrw(MINSTRET, T0));
        asm.op(csrr(A0, MINSTRET)).op(csrr(A1, MINSTRETH));
        asm.op(csrw(MCYCLE, ZERO)).op(NOP).op(csrr(A2, MCYCLE));
        asm.op(csrw(MINSTRETH, T0))
            .op(csrr(A3, MINSTRETH))
            .power_off();
    });
    assert_eq!(machine.finish()[10..14], [0xffff_ffff, 1, 1, 0xffff_ffff]);
}

#[test]
fn sc_succeeds_once_after_lr_on_the_same_word() {
    let mut machine = Machine::running(|asm| {
        asm.li(T0, DATA).li(T1, 7).li(T2, DATA + 4);
        asm.op(sc(A0, T1, T0));
        asm.op(lr(A1, T0)).op(sc(A1, T1, T0)).op(sc(A2, T1, T0));
        asm.op(lr(A3, T0)).op(sc(A3, T1, T2)).power_off();
    });
    assert_eq!(machine.finish()[10..14], [1, 0, 1, 1]);
    assert_eq!((machine.word(DATA), machine.word(DATA + 4)), (7, 0));
}

#[test]
fn sc_fails_after_a_trap_or_another_write() {
    let mut machine = Machine::running(|asm| {
        asm.set(MTVEC, HANDLER).li(T1, DATA).li(T2, 9);
        asm.op(lr(A0, T1)).op(ECALL).op(sc(A0, T2, T1));
        asm.op(lr(A1, T1)).op(sw(T2, T1, 0)).op(sc(A1, T1, T1));
        asm.power_off();
    });
    let mut handler = Asm::at(HANDLER);
    handler.op(csrr(T0, MEPC)).op(addi(T0, T0, 4));
    handler.op(csrw(MEPC, T0)).op(MRET);
    machine.load(HANDLER, handler.bytes());
    assert_eq!(machine.finish()[10..12], [1, 1]);
    assert_eq!(machine.word(DATA), 9);
}

#[test]
fn changed_code_runs_after_fence_i() {
    let patch = addi(A0, ZERO, 2);
    let mut machine = Machine::running(|asm| {
        let target = BASE + 0x200;
        asm.li(S0, target).op(jalr(RA, S0, 0)).op(add(A1, A0, ZERO));
        asm.li(T1, patch).op(sw(T1, S0, 0)).op(FENCE_I);
        asm.op(jalr(RA, S0, 0)).power_off();
        asm.pad_to(target);
        asm.op(addi(A0, ZERO, 1)).op(jalr(ZERO, RA, 0));
    });
    assert_eq!(machine.finish()[10..12], [2, 1]);
}

#[test]
fn a_restart_runs_what_is_in_ram_by_then() {
    let mut machine = Machine::running(|asm| {
        asm.li(A0, 1).power_off();
    });
    assert_eq!(machine.finish()[A0 as usize], 1);
    let mut asm = Asm::at(BASE);
    asm.li(A0, 2).power_off();
    machine.load(BASE, asm.bytes());
    machine.start(BASE);
    assert_eq!(machine.finish()[A0 as usize], 2);
}

#[test]
fn a_trap_without_a_handler_is_a_crash_that_leaves_the_registers() {
    let mut machine = Machine::running(|asm| {
        asm.li(A0, 42).li(T0, 0x4000_0000).op(lw(A0, T0, 0));
    });
    let crash = machine.crash();
    assert_eq!(crash.kind, CrashKind::MmuFault);
    assert_eq!(
        crash.detail,
        "load access fault at pc 0x80000010, mtval 0x40000000, \
         and no handler in RAM (mtvec leads to 0x00000000)"
    );
    let registers = machine.registers();
    assert_eq!(registers.pc, BASE + 16);
    assert_eq!(registers.x[A0 as usize], 42);
    // It stays so.
    assert_eq!(machine.run().end, RunEnd::Crashed(crash.clone()));
    machine.kick(0);
    assert_eq!(machine.run().end, RunEnd::Crashed(crash));
    machine.core.stop().unwrap();
    assert_eq!(machine.registers(), registers);
    assert_eq!(machine.run().end, RunEnd::Waiting { until: None });
}

#[test]
fn faults_without_a_handler_are_told_apart_by_kind() {
    let mut jump = Machine::running(|asm| {
        asm.op(jalr(ZERO, ZERO, 0));
    });
    jump.assert_crash(CrashKind::MmuFault, &["instruction access fault"]);
    let mut store = Machine::running(|asm| {
        asm.op(sw(ZERO, ZERO, 0));
    });
    store.assert_crash(CrashKind::MmuFault, &["store/AMO access fault"]);
    let mut illegal = Machine::running(|asm| {
        asm.op(0);
    });
    illegal.assert_crash(
        CrashKind::FatalError,
        &["illegal instruction", "0x80000000"],
    );
    let mut interrupt = Machine::running(|asm| {
        asm.set(MTVEC, 0xc000_0001).set(MIE, MSI).poke(MSIP, 1);
        asm.op(csrrsi(ZERO, MSTATUS, MIE_BIT)).op(NOP);
    });
    interrupt.assert_crash(
        CrashKind::FatalError,
        &["machine software interrupt", "0xc000000c"],
    );
}

#[test]
fn a_budget_is_kept_to_within_a_block() {
    let mut machine = Machine::running(|asm| {
        asm.op(addi(A0, A0, 1)).op(jal(ZERO, -4));
    });
    // The first turns pay for decoding too.
    assert_eq!(machine.core.run(10).end, RunEnd::BudgetSpent);
    assert_eq!(machine.core.run(10).end, RunEnd::BudgetSpent);
    let mut before = machine.core.statistics().retired;
    for budget in [1, 2, 7, 64, 1000, 16 * 1024, 100_001] {
        assert_eq!(machine.core.run(budget).end, RunEnd::BudgetSpent);
        let after = machine.core.statistics().retired;
        let retired = after - before;
        assert!(
            (budget..budget + 64).contains(&retired),
            "{budget}: {retired}"
        );
        // Exact all the same: two instructions for each count.
        assert_eq!(machine.registers().x[A0 as usize], (after / 2) as u32);
        before = after;
    }
    assert_eq!(machine.core.run(0).end, RunEnd::BudgetSpent);
    assert_eq!(machine.core.statistics().retired, before);
}

#[test]
fn a_program_cut_by_budgets_computes_the_same() {
    let program = |asm: &mut Asm| {
        asm.li(T2, 500);
        asm.op(add(A0, A0, T2))
            .op(addi(T2, T2, -1))
            .op(bne(T2, ZERO, -8));
        asm.op(csrr(A1, MINSTRET)).power_off();
    };
    let whole = Machine::running(program).finish();
    for budget in [1, 3, 17] {
        let mut machine = Machine::running(program);
        let mut turns = 0;
        while machine.core.run(budget).end == RunEnd::BudgetSpent {
            turns += 1;
            assert!(turns < PLENTY);
        }
        assert_eq!(machine.registers().x, whole);
    }
}

#[test]
fn a_core_does_not_start_outside_its_ram_or_at_an_odd_address() {
    let mut machine = Machine::new();
    for address in [0, BASE - 2, BASE + 1, BASE + RAM_LEN] {
        assert!(machine.core.start(da(address), 1).is_err());
        assert_eq!(machine.run().end, RunEnd::Waiting { until: None });
    }
    let beyond = rprocd::memory::DeviceAddress(0x1_8000_0000);
    let error = machine.core.start(beyond, 1).unwrap_err();
    assert!(error.to_string().contains("0x180000000"), "{error}");
}
