//! One pre-decoded instruction.
//!
//! What belongs here: the 16 bytes that the interpreter executes, and what each field means for
//! each kind. What does not: how raw instructions become ops (`decode`) and what an op does
//! (`execute`, and the slow half of the interpreter in the parent).

/// Where a write to `x0` goes: a register slot that nothing reads.
pub(super) const SINK: u8 = 32;

/// What an op does. The first group always leaves the fast path, the last is made of two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Kind {
    /// Not an instruction: the head of a block. `pc` is the block's, `link` the next head with
    /// the same hash.
    Head,
    /// Not an instruction: the block was cut off here; go on at `pc`. `rd` is the instructions
    /// before it, `link` the op to go on with.
    Fall,
    /// Not an instruction: there is none to fetch. `imm` is the address that does not answer.
    FetchFault,
    /// No instruction this machine has; `imm` is the encoding.
    Illegal,
    /// Everything of the SYSTEM opcode; `imm` is the encoding.
    System,
    FenceI,
    Lr,
    Sc,

    Fence,
    /// `rd = imm`: LUI and, its `pc` being known, AUIPC.
    Lui,
    Addi,
    Slti,
    Sltiu,
    Xori,
    Ori,
    Andi,
    Slli,
    Srli,
    Srai,
    Add,
    Sub,
    Sll,
    Slt,
    Sltu,
    Xor,
    Srl,
    Sra,
    Or,
    And,
    Mul,
    Mulh,
    Mulhsu,
    Mulhu,
    Div,
    Divu,
    Rem,
    Remu,
    /// Loads and stores: `imm` is the offset, less the address at which RAM begins, so that what
    /// they add up to is a place in RAM.
    Lb,
    Lh,
    Lw,
    Lbu,
    Lhu,
    Sb,
    Sh,
    Sw,
    /// Branches: `imm` is the target, `rd` the instructions of the block up to and including
    /// this one, `link` the op at the target.
    Beq,
    Bne,
    Blt,
    Bge,
    Bltu,
    Bgeu,
    /// `imm` is the target, `rs1` the instructions of the block up to and including this one,
    /// `rs2` the instruction's length, `link` the op at the target.
    Jal,
    /// `imm` is the offset, `rs2` the instructions of the block up to and including this one,
    /// `link` the return address.
    Jalr,
    AmoSwap,
    AmoAdd,
    AmoXor,
    AmoAnd,
    AmoOr,
    AmoMin,
    AmoMax,
    AmoMinu,
    AmoMaxu,

    // Two ops that the interpreter does at once, because they often follow each other: the kind of
    // the first one says so, and the second one stays what it is.
    LwLw,
    LwLhu,
    LwAddi,
    LwAdd,
    LwSub,
    LwSlli,
    LwBeq,
    LwBne,
    LwBltu,
    LwBgeu,
    LhuLw,
    LhuLhu,
    LhuBne,
    LbuAddi,
    SwSw,
    SwSh,
    SwAddi,
    SwLw,
    AddiAddi,
    AddiAdd,
    AddiAnd,
    AddiSlli,
    AddiLw,
    AddiSw,
    AddiSh,
    AddiBeq,
    AddiBne,
    AddiBltu,
    AddiBgeu,
    LuiAddi,
    LuiJalr,
    SlliAdd,
    SlliSrli,
    SlliAddi,
    AndSlli,
    AndiBne,
    AndiBeq,
    AddAdd,
    AddAddi,
    AddLw,
    AddLhu,
    AddLbu,
    AddSw,
    AddSh,
    AddBne,
    SubBltu,
    SubAndi,
    OrBne,
}

/// Says of each pair what it is made of.
macro_rules! pairs {
    ($($pair:ident = $first:ident $second:ident,)*) => {
        impl Kind {
            /// Both kinds at once, if that is a kind.
            pub(super) fn with(self, next: Self) -> Option<Self> {
                match (self, next) {
                    $((Self::$first, Self::$second) => Some(Self::$pair),)*
                    _ => None,
                }
            }

            /// The first of a pair; any other kind is itself.
            pub(super) fn first(self) -> Self {
                match self {
                    $(Self::$pair => Self::$first,)*
                    other => other,
                }
            }
        }
    };
}

pairs! {
    LwLw = Lw Lw,
    LwLhu = Lw Lhu,
    LwAddi = Lw Addi,
    LwAdd = Lw Add,
    LwSub = Lw Sub,
    LwSlli = Lw Slli,
    LwBeq = Lw Beq,
    LwBne = Lw Bne,
    LwBltu = Lw Bltu,
    LwBgeu = Lw Bgeu,
    LhuLw = Lhu Lw,
    LhuLhu = Lhu Lhu,
    LhuBne = Lhu Bne,
    LbuAddi = Lbu Addi,
    SwSw = Sw Sw,
    SwSh = Sw Sh,
    SwAddi = Sw Addi,
    SwLw = Sw Lw,
    AddiAddi = Addi Addi,
    AddiAdd = Addi Add,
    AddiAnd = Addi And,
    AddiSlli = Addi Slli,
    AddiLw = Addi Lw,
    AddiSw = Addi Sw,
    AddiSh = Addi Sh,
    AddiBeq = Addi Beq,
    AddiBne = Addi Bne,
    AddiBltu = Addi Bltu,
    AddiBgeu = Addi Bgeu,
    LuiAddi = Lui Addi,
    LuiJalr = Lui Jalr,
    SlliAdd = Slli Add,
    SlliSrli = Slli Srli,
    SlliAddi = Slli Addi,
    AndSlli = And Slli,
    AndiBne = Andi Bne,
    AndiBeq = Andi Beq,
    AddAdd = Add Add,
    AddAddi = Add Addi,
    AddLw = Add Lw,
    AddLhu = Add Lhu,
    AddLbu = Add Lbu,
    AddSw = Add Sw,
    AddSh = Add Sh,
    AddBne = Add Bne,
    SubBltu = Sub Bltu,
    SubAndi = Sub Andi,
    OrBne = Or Bne,
}

impl Kind {
    /// Does the op load or store at `rs1` and an offset?
    pub(super) fn is_access(self) -> bool {
        matches!(
            self,
            Self::Lb | Self::Lh | Self::Lw | Self::Lbu | Self::Lhu | Self::Sb | Self::Sh | Self::Sw
        )
    }

    /// Is the op the last of its block? Nothing after it would be reached from it.
    pub(super) fn ends_block(self) -> bool {
        matches!(
            self,
            Self::Fall
                | Self::FetchFault
                | Self::Illegal
                | Self::System
                | Self::FenceI
                | Self::Jal
                | Self::Jalr
        )
    }
}

/// One op. Register numbers are 0 to 31, or [`SINK`] for `rd`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Op {
    pub(super) kind: Kind,
    pub(super) rd: u8,
    pub(super) rs1: u8,
    pub(super) rs2: u8,
    /// The immediate, sign-extended, or what [`Kind`] says.
    pub(super) imm: u32,
    /// The instruction's address. In a block the next op's `pc` is the address after it.
    pub(super) pc: u32,
    /// What [`Kind`] says. As an op's index, 0 is "not known yet".
    pub(super) link: u32,
}

// Four ops to a cache line; the interpreter's speed hangs on it.
const _: () = assert!(size_of::<Op>() == 16);

impl Op {
    /// An op of this kind with all other fields zero, writing nothing.
    pub(super) fn new(kind: Kind, pc: u32, imm: u32) -> Self {
        Self {
            kind,
            rd: SINK,
            rs1: 0,
            rs2: 0,
            imm,
            pc,
            link: 0,
        }
    }
}
