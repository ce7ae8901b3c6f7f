//! From an encoded instruction to an op.
//!
//! What belongs here: the encodings of RV32IMAC, Zicsr and Zifencei ("The RISC-V Instruction Set
//! Manual, Volume I", chapters RV32I, "M", "A" and "C"). What does not: memory, and anything with
//! state; decoding is a pure function of the bits and the address.
//!
//! Reserved encodings are illegal instructions. SYSTEM instructions stay encoded: they leave the
//! fast path in any case.

use super::op::{Kind, Op, SINK};

/// The length in bytes of the instruction whose first 16 bits are given. Encodings for lengths
/// above 4 bytes are taken as 4 (and are illegal).
pub(super) fn length(first: u16) -> u32 {
    if first & 3 == 3 { 4 } else { 2 }
}

/// Decodes one instruction at `pc`. Of a 2-byte instruction only the low half of `raw` counts.
pub(super) fn decode(raw: u32, pc: u32) -> Op {
    let op = if raw & 3 == 3 {
        full(raw, pc)
    } else {
        compressed(raw & 0xffff, pc)
    };
    op.unwrap_or_else(|| {
        let bits = if raw & 3 == 3 { raw } else { raw & 0xffff };
        Op::new(Kind::Illegal, pc, bits)
    })
}

/// Bits `low ..= high` of an encoding, at bit 0.
fn bits(raw: u32, high: u32, low: u32) -> u32 {
    (raw >> low) & ((1 << (high - low + 1)) - 1)
}

/// A field of `bits` bits, sign-extended.
fn signed(value: u32, bits: u32) -> u32 {
    let shift = 32 - bits;
    (((value << shift).cast_signed()) >> shift).cast_unsigned()
}

/// A register number in a 5-bit field at `low`.
fn reg(raw: u32, low: u32) -> u8 {
    bits(raw, low + 4, low) as u8
}

/// One of x8 to x15, in the 3-bit field at `low` of a compressed instruction.
fn short_reg(raw: u32, low: u32) -> u8 {
    8 + bits(raw, low + 2, low) as u8
}

fn destination(number: u8) -> u8 {
    if number == 0 { SINK } else { number }
}

struct Build {
    pc: u32,
}

impl Build {
    fn op(&self, kind: Kind, rd: u8, rs1: u8, rs2: u8, imm: u32) -> Op {
        Op {
            rd: destination(rd),
            rs1,
            rs2,
            ..Op::new(kind, self.pc, imm)
        }
    }

    /// A branch by `offset`.
    fn branch(&self, kind: Kind, rs1: u8, rs2: u8, offset: u32) -> Op {
        Op {
            rs1,
            rs2,
            ..Op::new(kind, self.pc, self.pc.wrapping_add(offset))
        }
    }

    fn jal(&self, rd: u8, offset: u32, length: u8) -> Op {
        Op {
            rd: destination(rd),
            rs2: length,
            ..Op::new(Kind::Jal, self.pc, self.pc.wrapping_add(offset))
        }
    }

    fn jalr(&self, rd: u8, rs1: u8, offset: u32, length: u32) -> Op {
        Op {
            rd: destination(rd),
            rs1,
            link: self.pc.wrapping_add(length),
            ..Op::new(Kind::Jalr, self.pc, offset)
        }
    }
}

/// A 4-byte instruction; `None` is illegal.
fn full(raw: u32, pc: u32) -> Option<Op> {
    let b = Build { pc };
    let rd = reg(raw, 7);
    let rs1 = reg(raw, 15);
    let rs2 = reg(raw, 20);
    let funct3 = bits(raw, 14, 12);
    let funct7 = bits(raw, 31, 25);
    let imm_i = signed(bits(raw, 31, 20), 12);
    Some(match bits(raw, 6, 0) {
        0x37 => b.op(Kind::Lui, rd, 0, 0, raw & 0xffff_f000),
        0x17 => b.op(Kind::Lui, rd, 0, 0, pc.wrapping_add(raw & 0xffff_f000)),
        0x6f => {
            let offset = bits(raw, 31, 31) << 20
                | bits(raw, 19, 12) << 12
                | bits(raw, 20, 20) << 11
                | bits(raw, 30, 21) << 1;
            b.jal(rd, signed(offset, 21), 4)
        }
        0x67 if funct3 == 0 => b.jalr(rd, rs1, imm_i, 4),
        0x63 => {
            let kind = match funct3 {
                0 => Kind::Beq,
                1 => Kind::Bne,
                4 => Kind::Blt,
                5 => Kind::Bge,
                6 => Kind::Bltu,
                7 => Kind::Bgeu,
                _ => return None,
            };
            let offset = bits(raw, 31, 31) << 12
                | bits(raw, 7, 7) << 11
                | bits(raw, 30, 25) << 5
                | bits(raw, 11, 8) << 1;
            b.branch(kind, rs1, rs2, signed(offset, 13))
        }
        0x03 => {
            let kind = match funct3 {
                0 => Kind::Lb,
                1 => Kind::Lh,
                2 => Kind::Lw,
                4 => Kind::Lbu,
                5 => Kind::Lhu,
                _ => return None,
            };
            b.op(kind, rd, rs1, 0, imm_i)
        }
        0x23 => {
            let kind = match funct3 {
                0 => Kind::Sb,
                1 => Kind::Sh,
                2 => Kind::Sw,
                _ => return None,
            };
            let offset = funct7 << 5 | bits(raw, 11, 7);
            b.op(kind, 0, rs1, rs2, signed(offset, 12))
        }
        0x13 => {
            let (kind, imm) = match (funct3, funct7) {
                (0, _) => (Kind::Addi, imm_i),
                (2, _) => (Kind::Slti, imm_i),
                (3, _) => (Kind::Sltiu, imm_i),
                (4, _) => (Kind::Xori, imm_i),
                (6, _) => (Kind::Ori, imm_i),
                (7, _) => (Kind::Andi, imm_i),
                (1, 0) => (Kind::Slli, u32::from(rs2)),
                (5, 0) => (Kind::Srli, u32::from(rs2)),
                (5, 0x20) => (Kind::Srai, u32::from(rs2)),
                _ => return None,
            };
            b.op(kind, rd, rs1, 0, imm)
        }
        0x33 => {
            let kind = match (funct7, funct3) {
                (0, 0) => Kind::Add,
                (0x20, 0) => Kind::Sub,
                (0, 1) => Kind::Sll,
                (0, 2) => Kind::Slt,
                (0, 3) => Kind::Sltu,
                (0, 4) => Kind::Xor,
                (0, 5) => Kind::Srl,
                (0x20, 5) => Kind::Sra,
                (0, 6) => Kind::Or,
                (0, 7) => Kind::And,
                (1, 0) => Kind::Mul,
                (1, 1) => Kind::Mulh,
                (1, 2) => Kind::Mulhsu,
                (1, 3) => Kind::Mulhu,
                (1, 4) => Kind::Div,
                (1, 5) => Kind::Divu,
                (1, 6) => Kind::Rem,
                (1, 7) => Kind::Remu,
                _ => return None,
            };
            b.op(kind, rd, rs1, rs2, 0)
        }
        // The fields of fences are to be ignored by machines that do not know finer ones.
        0x0f if funct3 == 0 => b.op(Kind::Fence, 0, 0, 0, 0),
        0x0f if funct3 == 1 => b.op(Kind::FenceI, 0, 0, 0, 0),
        0x73 => b.op(Kind::System, rd, rs1, 0, raw),
        0x2f if funct3 == 2 => {
            let kind = match bits(raw, 31, 27) {
                0x02 if rs2 == 0 => Kind::Lr,
                0x03 => Kind::Sc,
                0x01 => Kind::AmoSwap,
                0x00 => Kind::AmoAdd,
                0x04 => Kind::AmoXor,
                0x0c => Kind::AmoAnd,
                0x08 => Kind::AmoOr,
                0x10 => Kind::AmoMin,
                0x14 => Kind::AmoMax,
                0x18 => Kind::AmoMinu,
                0x1c => Kind::AmoMaxu,
                _ => return None,
            };
            b.op(kind, rd, rs1, rs2, 0)
        }
        _ => return None,
    })
}

/// A 2-byte instruction; `None` is illegal.
fn compressed(raw: u32, pc: u32) -> Option<Op> {
    let b = Build { pc };
    // rd or rs1, and rs2, of the full-size register fields.
    let r = reg(raw, 7);
    let r2 = reg(raw, 2);
    // The short ones: rd or rs2, and rs1 or rd.
    let low = short_reg(raw, 2);
    let high = short_reg(raw, 7);
    let imm6 = signed(bits(raw, 12, 12) << 5 | bits(raw, 6, 2), 6);
    // In RV32 the sixth bit of a shift amount must be zero.
    let shamt = || (bits(raw, 12, 12) == 0).then(|| bits(raw, 6, 2));
    let jump = || {
        let offset = bits(raw, 12, 12) << 11
            | bits(raw, 11, 11) << 4
            | bits(raw, 10, 9) << 8
            | bits(raw, 8, 8) << 10
            | bits(raw, 7, 7) << 6
            | bits(raw, 6, 6) << 7
            | bits(raw, 5, 3) << 1
            | bits(raw, 2, 2) << 5;
        signed(offset, 12)
    };
    let branch = || {
        let offset = bits(raw, 12, 12) << 8
            | bits(raw, 11, 10) << 3
            | bits(raw, 6, 5) << 6
            | bits(raw, 4, 3) << 1
            | bits(raw, 2, 2) << 5;
        signed(offset, 9)
    };
    let word_offset = || bits(raw, 12, 10) << 3 | bits(raw, 6, 6) << 2 | bits(raw, 5, 5) << 6;
    const SP: u8 = 2;
    const RA: u8 = 1;
    Some(match (raw & 3, bits(raw, 15, 13)) {
        // C.ADDI4SPN; all zero bits are the defined illegal instruction.
        (0, 0) => {
            let imm = bits(raw, 12, 11) << 4
                | bits(raw, 10, 7) << 6
                | bits(raw, 6, 6) << 2
                | bits(raw, 5, 5) << 3;
            if imm == 0 {
                return None;
            }
            b.op(Kind::Addi, low, SP, 0, imm)
        }
        (0, 2) => b.op(Kind::Lw, low, high, 0, word_offset()),
        (0, 6) => b.op(Kind::Sw, 0, high, low, word_offset()),
        (1, 0) => b.op(Kind::Addi, r, r, 0, imm6),
        (1, 1) => b.jal(RA, jump(), 2),
        (1, 2) => b.op(Kind::Lui, r, 0, 0, imm6),
        (1, 3) if imm6 == 0 => return None,
        (1, 3) if r == SP => {
            let imm = bits(raw, 12, 12) << 9
                | bits(raw, 6, 6) << 4
                | bits(raw, 5, 5) << 6
                | bits(raw, 4, 3) << 7
                | bits(raw, 2, 2) << 5;
            b.op(Kind::Addi, SP, SP, 0, signed(imm, 10))
        }
        (1, 3) => b.op(Kind::Lui, r, 0, 0, imm6 << 12),
        (1, 4) => match (bits(raw, 11, 10), bits(raw, 12, 12), bits(raw, 6, 5)) {
            (0, ..) => b.op(Kind::Srli, high, high, 0, shamt()?),
            (1, ..) => b.op(Kind::Srai, high, high, 0, shamt()?),
            (2, ..) => b.op(Kind::Andi, high, high, 0, imm6),
            (_, 0, 0) => b.op(Kind::Sub, high, high, low, 0),
            (_, 0, 1) => b.op(Kind::Xor, high, high, low, 0),
            (_, 0, 2) => b.op(Kind::Or, high, high, low, 0),
            (_, 0, _) => b.op(Kind::And, high, high, low, 0),
            _ => return None,
        },
        (1, 5) => b.jal(0, jump(), 2),
        (1, 6) => b.branch(Kind::Beq, high, 0, branch()),
        (1, 7) => b.branch(Kind::Bne, high, 0, branch()),
        (2, 0) => b.op(Kind::Slli, r, r, 0, shamt()?),
        (2, 2) if r != 0 => {
            let imm = bits(raw, 12, 12) << 5 | bits(raw, 6, 4) << 2 | bits(raw, 3, 2) << 6;
            b.op(Kind::Lw, r, SP, 0, imm)
        }
        (2, 4) => match (bits(raw, 12, 12), r, r2) {
            (0, 0, 0) => return None,
            (0, _, 0) => b.jalr(0, r, 0, 2),
            (0, ..) => b.op(Kind::Add, r, 0, r2, 0),
            (_, 0, 0) => b.op(Kind::System, 0, 0, 0, raw),
            (_, _, 0) => b.jalr(RA, r, 0, 2),
            _ => b.op(Kind::Add, r, r, r2, 0),
        },
        (2, 6) => {
            let imm = bits(raw, 12, 9) << 2 | bits(raw, 8, 7) << 6;
            b.op(Kind::Sw, 0, SP, r2, imm)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What an instruction at 0x8000_0000 decodes to: kind, rd, rs1, rs2, imm.
    fn fields(raw: u32) -> (Kind, u8, u8, u8, u32) {
        let op = decode(raw, 0x8000_0000);
        (op.kind, op.rd, op.rs1, op.rs2, op.imm)
    }

    #[test]
    fn immediates_are_put_together_and_sign_extended() {
        // addi a0, a1, -1; lui a0, 0xfffff; auipc a0, 1; sw a0, -4(sp)
        assert_eq!(fields(0xfff5_8513), (Kind::Addi, 10, 11, 0, 0xffff_ffff));
        assert_eq!(fields(0xffff_f537), (Kind::Lui, 10, 0, 0, 0xffff_f000));
        assert_eq!(fields(0x0000_1517), (Kind::Lui, 10, 0, 0, 0x8000_1000));
        assert_eq!(fields(0xfea1_2e23), (Kind::Sw, SINK, 2, 10, 0xffff_fffc));
        // beq a0, a1, .-4096; jal ra, .-2
        assert_eq!(fields(0x80b5_0063), (Kind::Beq, SINK, 10, 11, 0x7fff_f000));
        assert_eq!(fields(0xffff_f0ef), (Kind::Jal, 1, 0, 4, 0x7fff_fffe));
    }

    #[test]
    fn reserved_encodings_are_illegal() {
        for raw in [
            0x0000_0000, // the defined illegal instruction
            0x0000_2000, // c.fld
            0x0000_6101, // c.addi16sp 0
            0x0000_6081, // c.lui ra, 0
            0x0000_9001, // c.srli with the sixth bit
            0x0000_9c01, // c.subw
            0x0000_1002, // c.slli with the sixth bit
            0x0000_4002, // c.lwsp x0
            0x0000_8002, // c.jr x0
            0x0200_1013, // slli by 32
            0x0000_3003, // ld
            0x0000_3023, // sd
            0x0000_2063, // branch, funct3 2
            0x0000_1067, // jalr, funct3 1
            0x0000_302f, // amoadd.d
            0x1010_202f, // lr.w with rs2
            0x0000_001f, // longer than 32 bits
        ] {
            assert_eq!(decode(raw, 0).kind, Kind::Illegal, "{raw:#010x}");
        }
    }

    proptest! {
        #[test]
        fn no_op_writes_x0_or_names_a_register_that_is_not(raw: u32, pc: u32) {
            let op = decode(raw, pc & !1);
            prop_assert!((1..=SINK).contains(&op.rd));
            prop_assert!(op.rs1 < SINK);
            prop_assert!(op.rs2 < SINK);
            prop_assert_eq!(op.pc, pc & !1);
            if matches!(op.kind, Kind::Illegal) && raw & 3 != 3 {
                prop_assert_eq!(op.imm, raw & 0xffff);
            }
        }
    }
}
