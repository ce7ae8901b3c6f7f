//! The fast path: decoded blocks, registers and RAM.
//!
//! What belongs here: every instruction that needs nothing but these three. What does not: traps,
//! CSRs, device registers, time. An op that turns out to need one of them is handed back undone
//! ([`Exit::Slow`]), so nothing here can fail.
//!
//! Instructions are counted where control leaves a block, from the position that each such op
//! carries: exact, and free between jumps.

use std::sync::atomic::{Ordering, fence};

use super::code::CodeCache;
use super::fast_ram::FastRam;
use super::op::{Kind, Op};

/// x0 to x31, the sink for writes to x0 at 32, and nothing above: 256 of them, so that an index
/// of type `u8` needs no check.
pub(super) type RegisterFile = [u32; 256];

/// Why the fast path was left.
pub(super) enum Exit {
    /// To go on at `pc`, which no link and no block answers to yet, or at which the limit is
    /// reached. `from` is the direct jump that led there.
    Jump { pc: u32, from: Option<u32> },
    /// The op at `index` is for the slow path. Nothing of it has happened.
    Slow { index: u32 },
}

/// What a stay on the fast path brought.
pub(super) struct Stay {
    pub(super) retired: u64,
    pub(super) exit: Exit,
}

/// Executes from the op at `entry` (a block's first) until something is in the way, or a jump is
/// taken with `limit` instructions retired. Between two jumps or falls lie at most
/// [`BLOCK_LIMIT`](super::code::BLOCK_LIMIT) instructions.
pub(super) fn execute(
    x: &mut RegisterFile,
    code: &CodeCache,
    ram: FastRam<'_>,
    entry: u32,
    limit: u64,
) -> Stay {
    let ops = code.ops();
    let mut retired: u64 = 0;
    let mut start = entry as usize;
    let mut rest = ops[start..].iter();

    // The index of the op last taken from `rest`.
    macro_rules! index {
        () => {
            ops.len() - rest.as_slice().len() - 1
        };
    }
    macro_rules! leave {
        ($pc:expr, $from:expr) => {
            return Stay {
                retired,
                exit: Exit::Jump {
                    pc: $pc,
                    from: $from,
                },
            }
        };
    }
    // A direct jump: `position` instructions of this block are done.
    macro_rules! jump {
        ($op:expr, $position:expr, $pc:expr) => {{
            retired = retired.wrapping_add(u64::from($position));
            if $op.link == 0 || retired >= limit {
                leave!($pc, Some(index!() as u32));
            }
            start = $op.link as usize;
            rest = ops[start..].iter();
        }};
    }
    macro_rules! slow {
        () => {{
            let index = index!();
            return Stay {
                retired: retired.wrapping_add((index - start) as u64),
                exit: Exit::Slow {
                    index: index as u32,
                },
            };
        }};
    }
    macro_rules! rs1 {
        ($op:expr) => {
            x[usize::from($op.rs1)]
        };
    }
    macro_rules! rs2 {
        ($op:expr) => {
            x[usize::from($op.rs2)]
        };
    }
    // rd = f(rs1, rs2)
    macro_rules! reg {
        ($op:expr, $f:expr) => {
            x[usize::from($op.rd)] = $f(rs1!($op), rs2!($op))
        };
    }
    // rd = f(rs1, imm)
    macro_rules! imm {
        ($op:expr, $f:expr) => {
            x[usize::from($op.rd)] = $f(rs1!($op), $op.imm)
        };
    }
    macro_rules! branch {
        ($op:expr, $condition:expr) => {
            if $condition(rs1!($op), rs2!($op)) {
                jump!($op, $op.rd, $op.imm);
            }
        };
    }
    macro_rules! load {
        ($op:expr, $load:ident, $extend:expr) => {
            match ram.$load(rs1!($op).wrapping_add($op.imm)) {
                Some(value) => x[usize::from($op.rd)] = $extend(value),
                None => slow!(),
            }
        };
    }
    macro_rules! store {
        ($op:expr, $store:ident, $narrow:ty) => {
            if ram
                .$store(rs1!($op).wrapping_add($op.imm), rs2!($op) as $narrow)
                .is_none()
            {
                slow!();
            }
        };
    }

    loop {
        let Some(op): Option<&Op> = rest.next() else {
            unreachable!("each block ends in an op that leaves it");
        };
        match op.kind {
            Kind::Lui => x[usize::from(op.rd)] = op.imm,
            Kind::Addi => imm!(op, u32::wrapping_add),
            Kind::Slti => imm!(op, slt),
            Kind::Sltiu => imm!(op, sltu),
            Kind::Xori => imm!(op, |a, b| a ^ b),
            Kind::Ori => imm!(op, |a, b| a | b),
            Kind::Andi => imm!(op, |a, b| a & b),
            Kind::Slli => imm!(op, u32::wrapping_shl),
            Kind::Srli => imm!(op, u32::wrapping_shr),
            Kind::Srai => imm!(op, sra),
            Kind::Add => reg!(op, u32::wrapping_add),
            Kind::Sub => reg!(op, u32::wrapping_sub),
            Kind::Sll => reg!(op, u32::wrapping_shl),
            Kind::Slt => reg!(op, slt),
            Kind::Sltu => reg!(op, sltu),
            Kind::Xor => reg!(op, |a, b| a ^ b),
            Kind::Srl => reg!(op, u32::wrapping_shr),
            Kind::Sra => reg!(op, sra),
            Kind::Or => reg!(op, |a, b| a | b),
            Kind::And => reg!(op, |a, b| a & b),
            Kind::Mul => reg!(op, u32::wrapping_mul),
            Kind::Mulh => reg!(op, mulh),
            Kind::Mulhsu => reg!(op, mulhsu),
            Kind::Mulhu => reg!(op, mulhu),
            Kind::Div => reg!(op, div),
            Kind::Divu => reg!(op, divu),
            Kind::Rem => reg!(op, rem),
            Kind::Remu => reg!(op, remu),
            Kind::Lb => load!(op, load_byte, |v: u8| i32::from(v.cast_signed())
                .cast_unsigned()),
            Kind::Lh => load!(op, load_half, |v: u16| i32::from(v.cast_signed())
                .cast_unsigned()),
            Kind::Lw => load!(op, load_word, |v| v),
            Kind::Lbu => load!(op, load_byte, u32::from),
            Kind::Lhu => load!(op, load_half, u32::from),
            Kind::Sb => store!(op, store_byte, u8),
            Kind::Sh => store!(op, store_half, u16),
            Kind::Sw => store!(op, store_word, u32),
            Kind::Beq => branch!(op, |a, b| a == b),
            Kind::Bne => branch!(op, |a, b| a != b),
            Kind::Blt => branch!(op, |a: u32, b: u32| a.cast_signed() < b.cast_signed()),
            Kind::Bge => branch!(op, |a: u32, b: u32| a.cast_signed() >= b.cast_signed()),
            Kind::Bltu => branch!(op, |a, b| a < b),
            Kind::Bgeu => branch!(op, |a, b| a >= b),
            Kind::Jal => {
                x[usize::from(op.rd)] = op.pc.wrapping_add(u32::from(op.rs2));
                jump!(op, op.rs1, op.imm);
            }
            Kind::Jalr => {
                // Before rd is written: it may be the same register.
                let target = rs1!(op).wrapping_add(op.imm) & !1;
                x[usize::from(op.rd)] = op.link;
                retired = retired.wrapping_add(u64::from(op.rs2));
                let entry = code.find(target);
                if entry == 0 || retired >= limit {
                    leave!(target, None);
                }
                start = entry as usize;
                rest = ops[start..].iter();
            }
            Kind::Fall => jump!(op, op.rd, op.pc),
            Kind::Fence => fence(Ordering::SeqCst),
            Kind::AmoSwap
            | Kind::AmoAdd
            | Kind::AmoXor
            | Kind::AmoAnd
            | Kind::AmoOr
            | Kind::AmoMin
            | Kind::AmoMax
            | Kind::AmoMinu
            | Kind::AmoMaxu => match ram.amo(op.kind, rs1!(op), rs2!(op)) {
                Some(old) => x[usize::from(op.rd)] = old,
                None => slow!(),
            },
            Kind::Head
            | Kind::FetchFault
            | Kind::Illegal
            | Kind::System
            | Kind::FenceI
            | Kind::Lr
            | Kind::Sc => slow!(),
        }
    }
}

fn slt(a: u32, b: u32) -> u32 {
    u32::from(a.cast_signed() < b.cast_signed())
}

fn sltu(a: u32, b: u32) -> u32 {
    u32::from(a < b)
}

fn sra(a: u32, b: u32) -> u32 {
    a.cast_signed().wrapping_shr(b).cast_unsigned()
}

fn mulh(a: u32, b: u32) -> u32 {
    ((i64::from(a.cast_signed()) * i64::from(b.cast_signed())) >> 32) as u32
}

fn mulhsu(a: u32, b: u32) -> u32 {
    ((i64::from(a.cast_signed()) * i64::from(b)) >> 32) as u32
}

fn mulhu(a: u32, b: u32) -> u32 {
    ((u64::from(a) * u64::from(b)) >> 32) as u32
}

// Division by zero and the one overflow have defined results and never trap (Volume I, "M").

fn div(a: u32, b: u32) -> u32 {
    match b {
        0 => u32::MAX,
        _ => a
            .cast_signed()
            .wrapping_div(b.cast_signed())
            .cast_unsigned(),
    }
}

fn divu(a: u32, b: u32) -> u32 {
    a.checked_div(b).unwrap_or(u32::MAX)
}

fn rem(a: u32, b: u32) -> u32 {
    match b {
        0 => a,
        _ => a
            .cast_signed()
            .wrapping_rem(b.cast_signed())
            .cast_unsigned(),
    }
}

fn remu(a: u32, b: u32) -> u32 {
    a.checked_rem(b).unwrap_or(a)
}
