//! The engine against QEMU's `virt` board: random programs must leave the same bytes.
//!
//! The image is one program of many blocks. After each block it stores its registers; what traps
//! is logged by a handler. Both machines run the same image until it powers off.

use std::fs;
use std::process::Command;

use super::asm::*;
use super::machine::{BASE, Machine};
use rprocd::engine::{Engine, RunEnd};

const RAM_LEN: u32 = 16 << 20;
/// What is compared. QEMU puts a device tree further up.
const COMPARED: u32 = 4 << 20;
const HANDLER: u32 = BASE + 0x100;
const CODE: u32 = BASE + 0x1000;
const DATA: u32 = BASE + (2 << 20);
const LOG: u32 = DATA + 0x1_0000;
const BLOCKS: u32 = 300;
const BLOCK_LEN: u32 = 200;
const SEED: u64 = 0x5eed_0f27_32f3;

// Registers that the random part must leave alone: pointers into the data, the handler's scratch,
// and where the log goes on.
const STACK: Reg = SP;
const SHORT: Reg = S0;
const SCRATCH: Reg = 28;
const LOG_AT: Reg = 29;
const WORD: Reg = 30;
const BYTES: Reg = 31;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) as u32
    }

    fn below(&mut self, limit: u32) -> u32 {
        self.next() % limit
    }

    fn pick(&mut self, list: &[u32]) -> u32 {
        list[self.below(list.len() as u32) as usize]
    }

    /// A register to write.
    fn target(&mut self) -> Reg {
        loop {
            let register = self.below(28);
            if ![STACK, SHORT].contains(&register) {
                return register;
            }
        }
    }

    /// A value as arithmetic likes them: often near a boundary.
    fn value(&mut self) -> u32 {
        match self.below(4) {
            0 => self.pick(&[0, 1, 2, 0xffff_ffff, 0x8000_0000, 0x7fff_ffff]),
            1 => self.below(64),
            _ => self.next(),
        }
    }

    /// Any 4-byte instruction that goes on to the next and touches at most the data.
    fn plain(&mut self) -> u32 {
        let rd = self.target();
        let (rs1, rs2) = (self.below(32), self.below(32));
        let imm = (self.next() as i32) >> 20;
        match self.below(12) {
            0..=2 => r_type(0x33, self.below(8), 0, rd, rs1, rs2),
            3 => r_type(0x33, self.pick(&[0, 5]), 0x20, rd, rs1, rs2),
            4..=5 => r_type(0x33, self.below(8), 1, rd, rs1, rs2),
            6 => i_type(0x13, self.pick(&[0, 2, 3, 4, 6, 7]), rd, rs1, imm),
            7 => {
                let funct3 = self.pick(&[1, 5]);
                let funct7 = if funct3 == 5 {
                    self.pick(&[0, 0x20])
                } else {
                    0
                };
                r_type(0x13, funct3, funct7, rd, rs1, rs2)
            }
            8 => self.next() & 0xffff_f000 | rd << 7 | self.pick(&[0x37, 0x17]),
            9 => i_type(0x03, self.pick(&[0, 1, 2, 4, 5]), rd, BYTES, imm),
            10 => {
                let make = [sb, sh, sw][self.below(3) as usize];
                make(rs2, BYTES, imm)
            }
            _ => {
                let kind = self.pick(&[0, 1, 4, 8, 12, 16, 20, 24, 28]);
                r_type(0x2f, 2, kind << 2 | self.below(4), rd, WORD, rs2)
            }
        }
    }

    fn compressed(&mut self) -> u16 {
        let rd = self.target();
        let bits = self.next();
        let imm6 = (bits >> 5 & 1) << 12 | (bits & 31) << 2;
        // One of x9 to x15, as a 3-bit field: x8 is a pointer.
        let short = 1 + self.below(7);
        let other = self.below(8);
        let raw = match self.below(14) {
            0 => imm6 | rd << 7 | 0x0001,
            1 => imm6 | rd << 7 | 0x4001,
            // An immediate of zero is reserved.
            2 => (imm6 | 4) | rd << 7 | 0x6001,
            3 => imm6 & !0x1000 | short << 7 | 0x8001,
            4 => imm6 & !0x1000 | short << 7 | 0x8401,
            5 => imm6 | short << 7 | 0x8801,
            6..=7 => 0x8c01 | short << 7 | (bits & 3) << 5 | other << 2,
            8 => imm6 & !0x1000 | rd << 7 | 0x0002,
            9 => 0x8002 | (bits & 1) << 12 | rd.max(1) << 7 | (1 + self.below(31)) << 2,
            // c.addi4spn, c.lw, c.sw, c.lwsp, c.swsp
            10 => (bits & 0xff | 1) << 5 | short << 2,
            11 => 0x4000 | (bits & 7) << 10 | (bits >> 3 & 3) << 5 | short << 2,
            12 => 0xc000 | (bits & 7) << 10 | (bits >> 3 & 3) << 5 | other << 2,
            _ if bits & 1 == 0 => 0x4002 | imm6 | rd.max(1) << 7,
            _ => 0xc002 | (bits >> 8 & 0x3f) << 7 | self.below(32) << 2,
        };
        raw as u16
    }

    /// A few instructions that belong together.
    fn step(&mut self, asm: &mut Asm) {
        let (rs1, rs2) = (self.below(32), self.below(32));
        match self.below(40) {
            0..=19 => asm.op(self.plain()),
            20..=31 => asm.half(self.compressed()),
            32..=34 => {
                // A branch over one instruction.
                let branch = beq(rs1, rs2, 8) | self.pick(&[0, 1, 4, 5, 6, 7]) << 12;
                asm.op(branch).op(self.plain())
            }
            35 => {
                // c.beqz or c.bnez over one instruction.
                let raw = 0xc001 | self.below(2) << 13 | self.below(8) << 7 | 3 << 3;
                asm.half(raw as u16).op(self.plain())
            }
            36 => asm.op(jal(self.target(), 8)).op(self.plain()),
            37 => {
                let value = self.target();
                asm.op(lr(value, WORD));
                if self.below(3) == 0 {
                    asm.op(sw(rs2, WORD, 0));
                }
                asm.op(sc(self.target(), rs1, WORD))
            }
            38 => {
                let funct3 = self.pick(&[1, 2, 3, 5, 6, 7]);
                asm.op(0x340 << 20 | rs1 << 15 | funct3 << 12 | self.target() << 7 | 0x73)
            }
            _ => {
                // Something that traps. All of them 4 bytes long. No AMO on what is not there:
                // QEMU 7.2 calls that a load access fault, the architecture a store/AMO one.
                let target = self.target();
                let custom_csr = csrw(0x7c0, target);
                asm.op([
                    ECALL,
                    0xffff_ffff,
                    0x0000_0053,
                    r_type(0x33, 0, 0x7f, target, rs1, rs2),
                    csrw(0xf14, target),
                    custom_csr,
                    lw(target, ZERO, 16),
                    sw(target, ZERO, 20),
                ][self.below(8) as usize])
            }
        };
    }
}

fn image(seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut asm = Asm::at(BASE);
    asm.set(MTVEC, HANDLER).jump(CODE).pad_to(HANDLER);
    for (csr, offset) in [(MCAUSE, 0), (MTVAL, 4), (MEPC, 8)] {
        asm.op(csrr(SCRATCH, csr)).op(sw(SCRATCH, LOG_AT, offset));
    }
    asm.op(addi(LOG_AT, LOG_AT, 12))
        .op(addi(SCRATCH, SCRATCH, 4));
    asm.op(csrw(MEPC, SCRATCH)).op(MRET).pad_to(CODE);
    asm.li(LOG_AT, LOG).op(csrw(0x340, ZERO));
    for _ in 0..BLOCKS {
        for register in (1..32).filter(|&register| register != LOG_AT) {
            let value = match register {
                STACK | SHORT | WORD => DATA + 0x4000 + 4 * random.below(16),
                BYTES => DATA + 0x4000 + random.below(16),
                _ => random.value(),
            };
            asm.li(register, value);
        }
        for _ in 0..BLOCK_LEN {
            random.step(&mut asm);
        }
        for register in 1..32 {
            asm.op(sw(register, LOG_AT, 4 * register as i32));
        }
        asm.op(addi(LOG_AT, LOG_AT, 128));
    }
    asm.power_off().op(jal(ZERO, 0));
    assert!(asm.here() < DATA);
    asm.bytes().to_vec()
}

fn run_here(image: &[u8]) -> Vec<u8> {
    let mut machine = Machine::with_ram(RAM_LEN);
    machine.load(BASE, image);
    machine.start(BASE);
    let end = machine.core.run(u64::MAX).end;
    assert_eq!(end, RunEnd::PoweredOff, "at {:#x?}", machine.registers());
    machine.bytes(BASE, COMPARED)
}

/// Runs the image in QEMU; `None` if there is none.
fn run_in_qemu(image: &[u8]) -> Option<Vec<u8>> {
    let qemu = "qemu-system-riscv32";
    if Command::new(qemu).arg("--version").output().is_err() {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let ram = folder.path().join("ram");
    let mut bytes = image.to_vec();
    bytes.resize(RAM_LEN as usize, 0);
    fs::write(&ram, bytes).unwrap();
    let backend = format!(
        "memory-backend-file,id=ram,size={RAM_LEN},share=on,mem-path={}",
        ram.display()
    );
    // Should the program not end there, `timeout` ends it.
    let status = Command::new("timeout")
        .args(["60", qemu, "-M", "virt,memory-backend=ram", "-m", "16M"])
        .args(["-object", &backend, "-bios", "none", "-nodefaults"])
        .args(["-display", "none", "-monitor", "none", "-serial", "none"])
        .args(["-device", "loader,addr=0x80000000,cpu-num=0"])
        .status()
        .unwrap();
    assert!(status.success(), "QEMU: {status}");
    let mut bytes = fs::read(&ram).unwrap();
    bytes.truncate(COMPARED as usize);
    Some(bytes)
}

#[test]
fn random_programs_leave_the_same_bytes_as_in_qemu() {
    let seed = std::env::var("RPROCD_TEST_SEED")
        .ok()
        .map_or(SEED, |seed| seed.parse().unwrap());
    let image = image(seed);
    let here = run_here(&image);
    let Some(there) = run_in_qemu(&image) else {
        println!("Skipped the comparison: there is no qemu-system-riscv32 here.");
        return;
    };
    let differences: Vec<String> = here
        .chunks_exact(4)
        .zip(there.chunks_exact(4))
        .zip((BASE..).step_by(4))
        .filter(|((here, there), _)| here != there)
        .map(|((here, there), at)| format!("{at:#x}: {here:02x?} here, {there:02x?} in QEMU"))
        .take(20)
        .collect();
    assert!(differences.is_empty(), "seed {seed}: {differences:#?}");
    // The log was written at all.
    let log = (LOG - BASE) as usize;
    assert!(
        here[log..]
            .chunks_exact(4)
            .filter(|word| *word != [0; 4])
            .count()
            > 5000
    );
}
