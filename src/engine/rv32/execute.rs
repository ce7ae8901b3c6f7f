//! The fast path: decoded blocks, registers and RAM.
//!
//! What belongs here: every instruction that needs nothing but these three. What does not: traps,
//! CSRs, device registers, time, accesses that are not aligned. An op that turns out to need one of
//! them is handed back undone ([`Exit::Slow`]), so nothing here can fail.
//!
//! A pair is two ops one after the other with the way from the first to the second left out, which
//! costs the host as much as a simple op does. Either can be handed back, and is told by its place.
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

/// How the loop ends.
enum End {
    /// The op last taken is for the slow path.
    Slow,
    /// With a jump, direct or not.
    Jump { pc: u32, direct: bool },
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

    // What ends the loop is made an exit in one place, behind it: the less there is in the loop,
    // the better its variables keep to the host's registers. For the same reason nothing is called.
    macro_rules! leave {
        ($pc:expr, $direct:expr) => {
            break End::Jump {
                pc: $pc,
                direct: $direct,
            }
        };
    }
    // A direct jump: `position` instructions of this block are done.
    macro_rules! jump {
        ($op:expr, $position:expr, $pc:expr) => {{
            retired = retired.wrapping_add(u64::from($position));
            if $op.link == 0 || retired >= limit {
                leave!($pc, true);
            }
            start = $op.link as usize;
            rest = ops[start..].iter();
        }};
    }
    macro_rules! slow {
        () => {
            break End::Slow
        };
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

    macro_rules! jalr {
        ($op:expr) => {{
            // Before rd is written: it may be the same register.
            let target = rs1!($op).wrapping_add($op.imm) & !1;
            x[usize::from($op.rd)] = $op.link;
            retired = retired.wrapping_add(u64::from($op.rs2));
            let entry = code.find(target);
            if entry == 0 || retired >= limit {
                leave!(target, false);
            }
            start = entry as usize;
            rest = ops[start..].iter();
        }};
    }
    // What is part of a pair, on its own.
    macro_rules! one {
        (Add, $op:expr) => {
            reg!($op, u32::wrapping_add)
        };
        (Addi, $op:expr) => {
            imm!($op, u32::wrapping_add)
        };
        (And, $op:expr) => {
            reg!($op, |a, b| a & b)
        };
        (Andi, $op:expr) => {
            imm!($op, |a, b| a & b)
        };
        (Beq, $op:expr) => {
            branch!($op, |a, b| a == b)
        };
        (Bgeu, $op:expr) => {
            branch!($op, |a, b| a >= b)
        };
        (Bltu, $op:expr) => {
            branch!($op, |a, b| a < b)
        };
        (Bne, $op:expr) => {
            branch!($op, |a, b| a != b)
        };
        (Jalr, $op:expr) => {
            jalr!($op)
        };
        (Lbu, $op:expr) => {
            load!($op, load_byte_at, u32::from)
        };
        (Lhu, $op:expr) => {
            load!($op, load_half_at, u32::from)
        };
        (Lui, $op:expr) => {
            x[usize::from($op.rd)] = $op.imm
        };
        (Lw, $op:expr) => {
            load!($op, load_word_at, |v| v)
        };
        (Or, $op:expr) => {
            reg!($op, |a, b| a | b)
        };
        (Sh, $op:expr) => {
            store!($op, store_half_at, u16)
        };
        (Slli, $op:expr) => {
            imm!($op, u32::wrapping_shl)
        };
        (Srli, $op:expr) => {
            imm!($op, u32::wrapping_shr)
        };
        (Sub, $op:expr) => {
            reg!($op, u32::wrapping_sub)
        };
        (Sw, $op:expr) => {
            store!($op, store_word_at, u32)
        };
    }
    macro_rules! next {
        () => {{
            let Some(op): Option<&Op> = rest.next() else {
                unreachable!("each block ends in an op that leaves it");
            };
            op
        }};
    }
    macro_rules! pair {
        ($op:expr, $first:tt, $second:tt) => {{
            one!($first, $op);
            let second = next!();
            one!($second, second);
        }};
    }

    let end = loop {
        let op = next!();
        match op.kind {
            Kind::Lui => one!(Lui, op),
            Kind::Addi => one!(Addi, op),
            Kind::Slti => imm!(op, slt),
            Kind::Sltiu => imm!(op, sltu),
            Kind::Xori => imm!(op, |a, b| a ^ b),
            Kind::Ori => imm!(op, |a, b| a | b),
            Kind::Andi => one!(Andi, op),
            Kind::Slli => one!(Slli, op),
            Kind::Srli => one!(Srli, op),
            Kind::Srai => imm!(op, sra),
            Kind::Add => one!(Add, op),
            Kind::Sub => one!(Sub, op),
            Kind::Sll => reg!(op, u32::wrapping_shl),
            Kind::Slt => reg!(op, slt),
            Kind::Sltu => reg!(op, sltu),
            Kind::Xor => reg!(op, |a, b| a ^ b),
            Kind::Srl => reg!(op, u32::wrapping_shr),
            Kind::Sra => reg!(op, sra),
            Kind::Or => one!(Or, op),
            Kind::And => one!(And, op),
            Kind::Mul => reg!(op, u32::wrapping_mul),
            Kind::Mulh => reg!(op, mulh),
            Kind::Mulhsu => reg!(op, mulhsu),
            Kind::Mulhu => reg!(op, mulhu),
            Kind::Div => reg!(op, div),
            Kind::Divu => reg!(op, divu),
            Kind::Rem => reg!(op, rem),
            Kind::Remu => reg!(op, remu),
            Kind::Lb => load!(op, load_byte_at, |v: u8| i32::from(v.cast_signed())
                .cast_unsigned()),
            Kind::Lh => load!(op, load_half_at, |v: u16| i32::from(v.cast_signed())
                .cast_unsigned()),
            Kind::Lw => one!(Lw, op),
            Kind::Lbu => one!(Lbu, op),
            Kind::Lhu => one!(Lhu, op),
            Kind::Sb => store!(op, store_byte_at, u8),
            Kind::Sh => one!(Sh, op),
            Kind::Sw => one!(Sw, op),
            Kind::Beq => one!(Beq, op),
            Kind::Bne => one!(Bne, op),
            Kind::Blt => branch!(op, |a: u32, b: u32| a.cast_signed() < b.cast_signed()),
            Kind::Bge => branch!(op, |a: u32, b: u32| a.cast_signed() >= b.cast_signed()),
            Kind::Bltu => one!(Bltu, op),
            Kind::Bgeu => one!(Bgeu, op),
            Kind::Jal => {
                x[usize::from(op.rd)] = op.pc.wrapping_add(u32::from(op.rs2));
                jump!(op, op.rs1, op.imm);
            }
            Kind::Jalr => one!(Jalr, op),
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
            Kind::LwLw => pair!(op, Lw, Lw),
            Kind::LwLhu => pair!(op, Lw, Lhu),
            Kind::LwAddi => pair!(op, Lw, Addi),
            Kind::LwAdd => pair!(op, Lw, Add),
            Kind::LwSub => pair!(op, Lw, Sub),
            Kind::LwSlli => pair!(op, Lw, Slli),
            Kind::LwBeq => pair!(op, Lw, Beq),
            Kind::LwBne => pair!(op, Lw, Bne),
            Kind::LwBltu => pair!(op, Lw, Bltu),
            Kind::LwBgeu => pair!(op, Lw, Bgeu),
            Kind::LhuLw => pair!(op, Lhu, Lw),
            Kind::LhuLhu => pair!(op, Lhu, Lhu),
            Kind::LhuBne => pair!(op, Lhu, Bne),
            Kind::LbuAddi => pair!(op, Lbu, Addi),
            Kind::SwSw => pair!(op, Sw, Sw),
            Kind::SwSh => pair!(op, Sw, Sh),
            Kind::SwAddi => pair!(op, Sw, Addi),
            Kind::SwLw => pair!(op, Sw, Lw),
            Kind::AddiAddi => pair!(op, Addi, Addi),
            Kind::AddiAdd => pair!(op, Addi, Add),
            Kind::AddiAnd => pair!(op, Addi, And),
            Kind::AddiSlli => pair!(op, Addi, Slli),
            Kind::AddiLw => pair!(op, Addi, Lw),
            Kind::AddiSw => pair!(op, Addi, Sw),
            Kind::AddiSh => pair!(op, Addi, Sh),
            Kind::AddiBeq => pair!(op, Addi, Beq),
            Kind::AddiBne => pair!(op, Addi, Bne),
            Kind::AddiBltu => pair!(op, Addi, Bltu),
            Kind::AddiBgeu => pair!(op, Addi, Bgeu),
            Kind::LuiAddi => pair!(op, Lui, Addi),
            Kind::LuiJalr => pair!(op, Lui, Jalr),
            Kind::SlliAdd => pair!(op, Slli, Add),
            Kind::SlliSrli => pair!(op, Slli, Srli),
            Kind::SlliAddi => pair!(op, Slli, Addi),
            Kind::AndSlli => pair!(op, And, Slli),
            Kind::AndiBne => pair!(op, Andi, Bne),
            Kind::AndiBeq => pair!(op, Andi, Beq),
            Kind::AddAdd => pair!(op, Add, Add),
            Kind::AddAddi => pair!(op, Add, Addi),
            Kind::AddLw => pair!(op, Add, Lw),
            Kind::AddLhu => pair!(op, Add, Lhu),
            Kind::AddLbu => pair!(op, Add, Lbu),
            Kind::AddSw => pair!(op, Add, Sw),
            Kind::AddSh => pair!(op, Add, Sh),
            Kind::AddBne => pair!(op, Add, Bne),
            Kind::SubBltu => pair!(op, Sub, Bltu),
            Kind::SubAndi => pair!(op, Sub, Andi),
            Kind::OrBne => pair!(op, Or, Bne),
            Kind::Head
            | Kind::FetchFault
            | Kind::Illegal
            | Kind::System
            | Kind::FenceI
            | Kind::Lr
            | Kind::Sc => slow!(),
        }
    };
    // The op last taken from `rest`.
    let index = ops.len().wrapping_sub(rest.as_slice().len() + 1);
    let exit = match end {
        End::Slow => {
            retired = retired.wrapping_add(index.wrapping_sub(start) as u64);
            Exit::Slow {
                index: index as u32,
            }
        }
        End::Jump { pc, direct } => Exit::Jump {
            pc,
            from: direct.then_some(index as u32),
        },
    };
    Stay { retired, exit }
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
