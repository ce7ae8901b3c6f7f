//! The devices, as firmware and daemon meet in them.

use std::time::Duration;

use rprocd::engine::rv32::Rv32;
use rprocd::engine::rv32::board::{copier, finisher, mailbox, plic, uart, watchdog};
use rprocd::engine::{CrashKind, Engine, ImageRules, NotifyId, RunEnd};
use rprocd::memory::Ram;

use super::asm::*;
use super::machine::{BASE, Machine, da};

const HANDLER: u32 = BASE + 0x1000;
const MEI: u32 = 1 << 11;
const MIE_BIT: u32 = 1 << 3;

/// Enables the mailbox's interrupt for all ids.
fn enable_mailbox(asm: &mut Asm) {
    let irq = plic::MAILBOX_IRQ;
    asm.poke(plic::BASE + plic::PRIORITY + 4 * irq, 1);
    asm.poke(plic::BASE + plic::ENABLE, 1 << irq);
    asm.poke(mailbox::BASE + mailbox::ENABLE_LO, u32::MAX);
    asm.poke(mailbox::BASE + mailbox::ENABLE_HI, u32::MAX);
    asm.set(MIE, MEI);
}

/// Firmware that answers each kick with a kick on the next id.
fn echo() -> Machine {
    let mut machine = Machine::running(|asm| {
        asm.set(MTVEC, HANDLER);
        enable_mailbox(asm);
        asm.op(csrrsi(ZERO, MSTATUS, MIE_BIT))
            .op(WFI)
            .op(jal(ZERO, -4));
    });
    let mut handler = Asm::at(HANDLER);
    handler.peek(S0, plic::BASE + plic::CLAIM);
    handler
        .peek(S1, mailbox::BASE + mailbox::PENDING_LO)
        .op(sw(S1, T0, 0));
    // From the (one) pending bit to the number of the next id.
    handler.op(addi(A0, ZERO, 0));
    handler
        .op(addi(A0, A0, 1))
        .op(i_type(0x13, 5, S1, S1, 1))
        .op(bne(S1, ZERO, -8));
    handler
        .li(T0, mailbox::BASE)
        .op(sw(A0, T0, mailbox::KICK as i32));
    handler
        .li(T0, plic::BASE + plic::CLAIM)
        .op(sw(S0, T0, 0))
        .op(MRET);
    machine.load(HANDLER, handler.bytes());
    machine
}

#[test]
fn a_kick_wakes_the_firmware_and_its_answer_is_in_the_same_turn() {
    let mut machine = echo();
    machine.assert_waits();
    for id in [0, 4, 30, 0] {
        machine.kick(id);
        let run = machine.run();
        assert_eq!(run.end, RunEnd::Waiting { until: None });
        assert_eq!(run.kicks.0, 1 << (id + 1));
    }
    assert_eq!(machine.registers().x[S0 as usize], plic::MAILBOX_IRQ);
    assert!(machine.run().kicks.is_empty());
}

#[test]
fn a_kick_before_the_firmware_enables_it_is_not_lost() {
    let mut machine = echo();
    machine.kick(2);
    let run = machine.run();
    assert!(run.kicks.contains(NotifyId(3)));
}

#[test]
fn kicks_and_incarnation_do_not_outlive_a_start() {
    let mut machine = Machine::running(|asm| {
        asm.poke(mailbox::BASE + mailbox::KICK, 9);
        asm.peek(A0, mailbox::BASE + mailbox::PENDING_LO);
        asm.peek(A1, mailbox::BASE + mailbox::INCARNATION);
        asm.peek(A2, mailbox::BASE + mailbox::ID);
        asm.power_off();
    });
    machine.kick(0);
    machine.core.start(da(BASE), 77).unwrap();
    let run = machine.run();
    assert_eq!(run.end, RunEnd::PoweredOff);
    assert!(run.kicks.contains(NotifyId(9)));
    assert_eq!(machine.registers().x[10..13], [0, 77, mailbox::ID_VALUE]);
    // Powered off it stays.
    let again = machine.run();
    assert!(again.kicks.is_empty());
    assert_eq!(again.end, RunEnd::PoweredOff);
}

#[test]
fn kicks_of_a_turn_that_ends_in_a_crash_are_reported() {
    let mut machine = Machine::running(|asm| {
        asm.poke(mailbox::BASE + mailbox::KICK, 5).op(EBREAK);
    });
    let run = machine.run();
    assert!(matches!(run.end, RunEnd::Crashed(_)));
    assert!(run.kicks.contains(NotifyId(5)));
}

#[test]
fn kicks_on_ids_that_do_not_exist_are_counted() {
    let mut machine = Machine::running(|asm| {
        asm.poke(mailbox::BASE + mailbox::KICK, 64);
        asm.poke(mailbox::BASE + mailbox::KICK, u32::MAX).op(WFI);
    });
    let run = machine.run();
    assert!(run.kicks.is_empty());
    assert_eq!(machine.core.statistics().ignored_kicks, 2);
    machine.kick(64);
    machine.kick(255);
    machine.assert_waits();
}

#[test]
fn a_fault_reported_by_the_firmware_is_a_crash_with_its_words() {
    let mut machine = Machine::running(|asm| {
        asm.poke(mailbox::BASE + mailbox::FAULT_ADDRESS, 0x8000_1234);
        asm.poke(mailbox::BASE + mailbox::FAULT, 5);
    });
    machine.assert_crash(
        CrashKind::FatalError,
        &["load access fault", "0x80001234", "pc 0x80000024"],
    );
    let mut machine = Machine::running(|asm| {
        asm.poke(mailbox::BASE + mailbox::FAULT, 0xdead);
    });
    machine.assert_crash(CrashKind::FatalError, &["0xdead", "0x00000000"]);
}

#[test]
fn the_finisher_fails_with_a_code_or_asks_for_a_reset() {
    let mut machine = Machine::running(|asm| {
        asm.poke(finisher::BASE, 3 << 16 | finisher::FAIL);
    });
    machine.assert_crash(CrashKind::FatalError, &["failure code 3"]);
    let mut machine = Machine::running(|asm| {
        asm.poke(finisher::BASE, finisher::RESET);
    });
    machine.assert_crash(CrashKind::FatalError, &["reset"]);
}

#[test]
fn the_watchdog_bites_a_busy_loop() {
    let mut machine = Machine::running(|asm| {
        asm.poke(watchdog::BASE + watchdog::CONTROL, 1)
            .op(jal(ZERO, 0));
    });
    assert_eq!(machine.run().end, RunEnd::BudgetSpent);
    machine.pass(Duration::from_millis(999));
    assert_eq!(machine.run().end, RunEnd::BudgetSpent);
    machine.pass(Duration::from_millis(1));
    machine.assert_crash(CrashKind::Watchdog, &["1000 ms", "pc 0x80000014"]);
}

#[test]
fn the_watchdog_bites_within_one_long_turn() {
    let mut machine = Machine::running(|asm| {
        asm.poke(watchdog::BASE + watchdog::CONTROL, 1)
            .op(jal(ZERO, 0));
    });
    machine.clock_moves_at_each_look(Duration::from_millis(50));
    machine.assert_crash(CrashKind::Watchdog, &[]);
}

#[test]
fn a_waiting_core_is_to_be_run_again_when_the_watchdog_would_bite() {
    let mut machine = Machine::running(|asm| {
        asm.poke(watchdog::BASE + watchdog::TIMEOUT_MS, 20);
        asm.poke(watchdog::BASE + watchdog::CONTROL, 1);
        asm.poke(0x0200_4000, 500_000).poke(0x0200_4004, 0);
        asm.set(MIE, 1 << 7).op(WFI);
    });
    // The timer's 50 ms come later.
    let until = Some(machine.at(Duration::from_millis(20)));
    assert_eq!(machine.run().end, RunEnd::Waiting { until });
    machine.pass(Duration::from_millis(20));
    machine.assert_crash(CrashKind::Watchdog, &["20 ms"]);
}

#[test]
fn a_feeding_after_the_bite_is_too_late() {
    let mut machine = Machine::running(|asm| {
        asm.poke(watchdog::BASE + watchdog::TIMEOUT_MS, 1);
        asm.poke(watchdog::BASE + watchdog::CONTROL, 1);
        asm.poke(watchdog::BASE + watchdog::FEED, watchdog::FEED_VALUE);
        asm.power_off();
    });
    machine.clock_moves_at_each_look(Duration::from_millis(1));
    machine.assert_crash(CrashKind::Watchdog, &["0x80000038"]);
}

#[test]
fn a_fed_watchdog_lets_the_core_live() {
    let mut machine = Machine::running(|asm| {
        asm.poke(watchdog::BASE + watchdog::CONTROL, 1);
        asm.poke(watchdog::BASE + watchdog::FEED, watchdog::FEED_VALUE);
        asm.op(jal(ZERO, -4));
    });
    for _ in 0..10 {
        assert_eq!(machine.run().end, RunEnd::BudgetSpent);
        machine.pass(Duration::from_millis(900));
        // The loop stores to FEED again and again.
    }
}

#[test]
fn what_the_core_writes_to_its_uart_arrives_as_it_is_with_the_turn() {
    let mut machine = Machine::running(|asm| {
        asm.li(T0, uart::BASE);
        for byte in b"hello\r\nworld\x07" {
            asm.op(addi(T1, ZERO, i32::from(*byte))).op(sb(T1, T0, 0));
        }
        asm.op(WFI);
    });
    machine.assert_waits();
    assert_eq!(machine.printed(), b"hello\r\nworld\x07");
}

#[test]
fn the_uart_interrupts_through_the_plic() {
    let irq = plic::UART_IRQ;
    let mut machine = Machine::running(|asm| {
        asm.poke(plic::BASE + plic::PRIORITY + 4 * irq, 1);
        asm.poke(plic::BASE + plic::ENABLE, 1 << irq).set(MIE, MEI);
        asm.li(T0, uart::BASE).op(addi(T1, ZERO, 2));
        asm.op(sb(T1, T0, uart::IER as i32)).op(WFI);
        asm.peek(A0, plic::BASE + plic::CLAIM).op(csrr(A1, MIP));
        asm.power_off();
    });
    assert_eq!(machine.finish()[10..12], [irq, 0]);
}

#[test]
fn stopping_twice_is_stopping_once() {
    let mut machine = echo();
    machine.assert_waits();
    machine.core.stop().unwrap();
    machine.core.stop().unwrap();
    machine.kick(1);
    let run = machine.run();
    assert_eq!(run.end, RunEnd::Waiting { until: None });
    assert!(run.kicks.is_empty());
    machine.start(BASE);
    machine.kick(1);
    assert!(machine.run().kicks.contains(NotifyId(2)));
}

#[test]
fn ram_must_be_where_the_board_has_it() {
    let ram = Ram::new("elsewhere", da(0x4000_0000), 4096).unwrap();
    assert!(Rv32::new(ram).is_err());
}

#[test]
fn it_says_what_it_is_and_takes() {
    let machine = Machine::new();
    assert_eq!(machine.core.kind(), "rv32");
    assert_eq!(machine.core.image_rules(), ImageRules::RV32);
    assert_eq!(machine.core.ram().base(), da(BASE));
}

#[test]
fn a_core_that_spins_runs_all_the_time_and_one_that_waits_runs_not_at_all() {
    let step = Duration::from_micros(1);
    let (mut wait, mut spin) = (0, 0);
    let mut machine = Machine::running(|asm| {
        wait = asm.here();
        asm.op(WFI);
        spin = asm.here();
        asm.jump(spin);
    });
    machine.clock_moves_at_each_look(step);
    machine.assert_waits();
    let began = machine.core.activity();
    assert_eq!(began.pc, Some(da(wait)), "it waits at its WFI");
    // It came there, and has not run since.
    for _ in 0..10 {
        machine.pass(Duration::from_secs(3600));
        machine.assert_waits();
    }
    assert_eq!(machine.core.activity(), began);
    assert!(began.ran.unwrap() <= Duration::from_millis(1), "{began:?}");

    machine.start(spin);
    let mut ran = Duration::ZERO;
    for _ in 0..10 {
        let before = machine.now();
        assert_eq!(machine.run().end, RunEnd::BudgetSpent);
        // From the first look at the clock to the last one.
        ran += machine.now() - before - step;
        // What passes between two turns is not the core's.
        machine.pass(Duration::from_secs(3600));
    }
    let spun = machine.core.activity();
    assert_eq!(spun.ran.unwrap() - began.ran.unwrap(), ran);
    assert!(ran > Duration::from_micros(100), "{ran:?}");
    assert_eq!(spun.pc, Some(da(spin)));
}

#[test]
fn a_core_that_died_is_where_it_died() {
    let mut at = 0;
    let mut machine = Machine::running(|asm| {
        asm.op(addi(T0, ZERO, 1));
        at = asm.here();
        asm.op(EBREAK);
    });
    machine.crash();
    assert_eq!(machine.core.activity().pc, Some(da(at)));
    machine.core.stop().unwrap();
    assert_eq!(machine.core.activity().pc, Some(da(at)));
}

#[test]
fn a_suspended_core_does_not_run_and_its_time_stands_still() {
    let mut machine = Machine::running(|asm| {
        asm.poke(watchdog::BASE + watchdog::TIMEOUT_MS, 100);
        asm.poke(watchdog::BASE + watchdog::CONTROL, 1);
        let here = asm.here();
        asm.jump(here);
    });
    assert_eq!(machine.core.run(1000).end, RunEnd::BudgetSpent);
    let retired = machine.core.statistics().retired;
    machine.core.suspend().unwrap();
    machine.pass(Duration::from_secs(3600));
    machine.assert_waits();
    assert_eq!(machine.core.statistics().retired, retired);
    machine.core.resume().unwrap();
    machine.pass(Duration::from_millis(50));
    assert_eq!(machine.core.run(1000).end, RunEnd::BudgetSpent);
    machine.pass(Duration::from_millis(60));
    assert!(matches!(machine.core.run(1000).end, RunEnd::Crashed(_)));
}

#[test]
fn a_waiting_core_that_was_suspended_is_to_be_run_again_by_the_host_s_clock() {
    let mut machine = Machine::running(|asm| {
        asm.poke(watchdog::BASE + watchdog::TIMEOUT_MS, 20);
        asm.poke(watchdog::BASE + watchdog::CONTROL, 1);
        asm.op(WFI);
    });
    machine.core.run(1000);
    machine.core.suspend().unwrap();
    machine.pass(Duration::from_secs(5));
    machine.core.resume().unwrap();
    let until = machine.at(Duration::from_millis(5020));
    let RunEnd::Waiting { until: Some(found) } = machine.core.run(1000).end else {
        panic!("it waits for the bite");
    };
    assert_eq!(found, until);
}

const LIST: u32 = BASE + 0x2000;
const FROM: u32 = BASE + 0x1_0000;
const TO: u32 = BASE + 0x8_0000;

/// Firmware that has `count` copies of `len` bytes made, and powers off with the copier's status in
/// A0, how many it made in A1, and in A2 what it found in the last word of the copy.
fn copying(count: u32, len: u32) -> Machine {
    let mut machine = Machine::running(|asm| {
        asm.poke(copier::BASE + copier::LIST, LIST);
        asm.poke(copier::BASE + copier::START, count);
        asm.peek(A2, TO + len - 4);
        asm.peek(A0, copier::BASE + copier::STATUS);
        asm.peek(A1, copier::BASE + copier::DONE);
        asm.power_off();
    });
    let entry: Vec<u8> = [TO, FROM, len, 0]
        .iter()
        .flat_map(|word: &u32| word.to_le_bytes())
        .collect();
    machine.load(LIST, &entry.repeat(count as usize));
    let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
    machine.load(FROM, &bytes);
    machine
}

#[test]
fn the_copier_has_copied_when_the_next_instruction_runs() {
    let mut machine = copying(3, 496);
    let x = machine.finish();
    assert_eq!((x[10], x[11]), (copier::STATUS_OK, 3));
    assert_eq!(x[12], machine.word(FROM + 492));
    assert_eq!(machine.bytes(TO, 496), machine.bytes(FROM, 496));
}

#[test]
fn copies_pay_from_the_budget_and_go_on_in_the_next_turn() {
    let mut machine = copying(64, copier::LIMIT);
    let mut turns = 1;
    loop {
        match machine.core.run(10_000).end {
            RunEnd::BudgetSpent => turns += 1,
            end => {
                assert_eq!(end, RunEnd::PoweredOff);
                break;
            }
        }
    }
    assert!(
        (16..=32).contains(&turns),
        "64 copies of 4104 each: {turns}"
    );
    let x = machine.registers().x;
    assert_eq!((x[10], x[11]), (copier::STATUS_OK, 64));
}

#[test]
fn a_core_suspended_amid_its_copies_takes_them_up_again() {
    let mut machine = copying(64, copier::LIMIT);
    assert_eq!(machine.core.run(10_000).end, RunEnd::BudgetSpent);
    machine.core.suspend().unwrap();
    assert_eq!(machine.run().end, RunEnd::Waiting { until: None });
    machine.core.resume().unwrap();
    let x = machine.finish();
    assert_eq!((x[10], x[11]), (copier::STATUS_OK, 64));
}

#[test]
fn copies_end_with_the_run_that_began_them() {
    let mut machine = copying(64, copier::LIMIT);
    assert_eq!(machine.core.run(10_000).end, RunEnd::BudgetSpent);
    let mut next = Asm::at(BASE);
    next.peek(A1, copier::BASE + copier::DONE).power_off();
    machine.load(BASE, next.bytes());
    machine.start(BASE);
    assert_eq!(machine.finish()[11], 0);
}

#[test]
fn a_watchdog_bites_amid_copies() {
    let mut machine = copying(64, copier::LIMIT);
    let mut program = Asm::at(BASE);
    program.poke(watchdog::BASE + watchdog::TIMEOUT_MS, 10);
    program.poke(watchdog::BASE + watchdog::CONTROL, 1);
    program.poke(copier::BASE + copier::LIST, LIST);
    program.poke(copier::BASE + copier::START, 64);
    machine.load(BASE, program.bytes());
    machine.start(BASE);
    assert_eq!(machine.core.run(10_000).end, RunEnd::BudgetSpent);
    machine.pass(Duration::from_millis(11));
    machine.assert_crash(CrashKind::Watchdog, &["not fed"]);
}
