//! Firmware that means no good: whatever it does, turns end and nothing panics.

use proptest::prelude::*;
use rprocd::engine::{Engine, RunEnd};

use super::asm::*;
use super::machine::{BASE, Machine, PLENTY, RAM_LEN};

/// What a turn may retire beyond its budget: one block.
const BLOCK: u64 = 64;
/// `c.j .+2`
const JUMP_TO_NEXT: u16 = 0xa009;

/// Runs a few turns, with kicks in between, and checks that each ends in time.
fn abuse(machine: &mut Machine, budget: u64) {
    for turn in 0..8 {
        let before = machine.core.statistics().retired;
        let run = machine.core.run(budget);
        let retired = machine.core.statistics().retired - before;
        assert!(retired <= budget + BLOCK, "{retired} of {budget}: {run:?}");
        machine.kick(turn * 9);
        machine.pass(std::time::Duration::from_millis(100));
    }
}

/// Words that are likely to be instructions, and some that are likely not to be.
fn word() -> impl Strategy<Value = u32> {
    let opcodes = prop::sample::select(vec![
        0x03u32, 0x0f, 0x13, 0x17, 0x23, 0x2f, 0x33, 0x37, 0x63, 0x67, 0x6f, 0x73,
    ]);
    let systems = vec![ECALL, EBREAK, MRET, WFI, FENCE_I];
    prop_oneof![
        8 => (any::<u32>(), opcodes).prop_map(|(word, opcode)| word & !0x7f | opcode),
        // AMOs, and CSR instructions on the registers there are.
        2 => any::<u32>().prop_map(|word| word & 0xf9ff_8f80 | 0x202f),
        2 => (any::<u32>(), prop::sample::select(vec![MSTATUS, MIE, MTVEC, MEPC, MIP, MCYCLE]))
            .prop_map(|(word, csr)| csr << 20 | word & 0x000f_7f80 | 0x73),
        1 => prop::sample::select(systems),
        4 => any::<u32>(),
    ]
}

/// Addresses where something is to be found.
fn address() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => (0..0x1_0000u32).prop_map(|offset| BASE + offset),
        1 => (0..8u32).prop_map(|offset| BASE + 0x1_0000 - offset),
        1 => (0..0x40u32).prop_map(|offset| 0x1100_0000 + offset),
        1 => (0..0x10u32).prop_map(|offset| 0x1100_1000 + offset),
        1 => (0..8u32).prop_map(|offset| 0x1000_0000 + offset),
        1 => prop::sample::select(vec![0x0200_0000, 0x0200_4000, 0x0c00_2000, 0x0c20_0004]),
        1 => any::<u32>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_end_within_the_budget(
        bytes in prop::collection::vec(any::<u8>(), 2..4096),
        pc in 0..0x8000u32,
        budget in 0..20_000u64,
    ) {
        let mut machine = Machine::with_ram(0x1_0000);
        machine.load(BASE, &bytes);
        machine.start(BASE + 2 * pc);
        abuse(&mut machine, budget);
    }

    #[test]
    fn random_instructions_on_likely_addresses_end_within_the_budget(
        words in prop::collection::vec(word(), 1..200),
        pointers in prop::collection::vec(address(), 31),
        handler in address(),
        budget in 0..20_000u64,
    ) {
        let mut machine = Machine::with_ram(0x1_0000);
        let mut asm = Asm::at(BASE);
        asm.set(MTVEC, handler);
        for (register, pointer) in (1..).zip(pointers) {
            asm.li(register, pointer);
        }
        for word in words {
            asm.op(word);
        }
        asm.jump(BASE + 12);
        machine.load(BASE, asm.bytes());
        machine.start(BASE);
        abuse(&mut machine, budget);
    }
}

#[test]
fn a_handler_that_traps_itself_ends_with_the_budget() {
    let mut machine = Machine::running(|asm| {
        asm.set(MTVEC, BASE + 0x100).pad_to(BASE + 0x100).op(0);
    });
    assert_eq!(machine.run().end, RunEnd::BudgetSpent);
    assert_eq!(machine.core.statistics().retired, 3);
}

#[test]
fn a_loop_of_fence_i_ends_with_the_budget() {
    let mut machine = Machine::running(|asm| {
        asm.op(FENCE_I).op(jal(ZERO, -4));
    });
    assert_eq!(machine.run().end, RunEnd::BudgetSpent);
}

#[test]
fn more_blocks_than_the_cache_holds_run_all_the_same() {
    let mut machine = Machine::new();
    let last = BASE + RAM_LEN - 4096;
    let mut asm = Asm::at(BASE);
    while asm.here() < last {
        asm.half(JUMP_TO_NEXT);
    }
    asm.op(addi(A0, A0, 1)).op(csrr(A1, MINSTRET));
    asm.li(T2, 3)
        .op(beq(A0, T2, 16))
        .li(T2, BASE)
        .op(jalr(ZERO, T2, 0));
    asm.power_off();
    machine.load(BASE, asm.bytes());
    machine.start(BASE);
    let mut turns = 0;
    while machine.run().end == RunEnd::BudgetSpent {
        turns += 1;
        assert!(turns < PLENTY);
    }
    let x = machine.registers().x;
    let jumps = (last - BASE) / 2;
    assert_eq!(x[A0 as usize], 3);
    // Three rounds of jumps; two of them with the 8 instructions that lead back.
    assert_eq!(x[A1 as usize], 3 * jumps + 2 * 8 + 1);
}

#[test]
fn blocks_whose_addresses_collide_are_all_found() {
    // Addresses 64 KiB apart share a chain in the cache, and the 15 here are more than it keeps.
    const STEP: u32 = 0x1_0000;
    let mut machine = Machine::new();
    for number in 1..16 {
        let mut asm = Asm::at(BASE + number * STEP);
        asm.op(addi(A0, A0, 1))
            .op(add(S0, S0, S1))
            .op(jalr(ZERO, S0, 0));
        machine.load(BASE + number * STEP, asm.bytes());
    }
    let mut asm = Asm::at(BASE);
    asm.li(S1, STEP).li(T2, 100);
    let again = asm.here();
    asm.li(S0, BASE + STEP).li(T0, BASE + 15 * STEP + 8);
    // The last of them comes back here.
    let back = again + 40;
    asm.li(RA, back).op(NOP).op(jalr(ZERO, S0, 0)).pad_to(back);
    asm.op(addi(T2, T2, -1)).op(beq(T2, ZERO, 8));
    asm.jump(again).power_off();
    machine.load(BASE, asm.bytes());
    machine.load(BASE + 15 * STEP + 8, &jalr(ZERO, RA, 0).to_le_bytes());
    machine.start(BASE);
    assert_eq!(machine.finish()[A0 as usize], 1500);
}

#[test]
fn code_that_rewrites_itself_without_fence_i_does_no_harm() {
    let mut machine = Machine::running(|asm| {
        // Overwrites the code from here on with what is in x5, forever.
        asm.li(T0, 0xffff_ffff).li(T1, BASE + 0x20);
        asm.op(sw(T0, T1, 0)).op(addi(T1, T1, 4)).op(jal(ZERO, -8));
    });
    let end = machine.run().end;
    // At the latest when the end of RAM is reached.
    assert!(matches!(end, RunEnd::Crashed(_)), "{end:?}");
}
