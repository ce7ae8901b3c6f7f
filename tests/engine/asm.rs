//! A small assembler, so that the tests show instructions and not numbers.

/// A register by number.
pub type Reg = u32;

pub const ZERO: Reg = 0;
pub const RA: Reg = 1;
pub const SP: Reg = 2;
pub const T0: Reg = 5;
pub const T1: Reg = 6;
pub const T2: Reg = 7;
pub const S0: Reg = 8;
pub const S1: Reg = 9;
pub const A0: Reg = 10;
pub const A1: Reg = 11;
pub const A2: Reg = 12;
pub const A3: Reg = 13;

pub const MSTATUS: u32 = 0x300;
pub const MISA: u32 = 0x301;
pub const MIE: u32 = 0x304;
pub const MTVEC: u32 = 0x305;
pub const MEPC: u32 = 0x341;
pub const MCAUSE: u32 = 0x342;
pub const MTVAL: u32 = 0x343;
pub const MIP: u32 = 0x344;
pub const MCYCLE: u32 = 0xb00;
pub const MINSTRET: u32 = 0xb02;
pub const MINSTRETH: u32 = 0xb82;

pub const ECALL: u32 = 0x0000_0073;
pub const EBREAK: u32 = 0x0010_0073;
pub const MRET: u32 = 0x3020_0073;
pub const WFI: u32 = 0x1050_0073;
pub const FENCE: u32 = 0x0ff0_000f;
pub const FENCE_I: u32 = 0x0000_100f;
pub const NOP: u32 = 0x0000_0013;

pub fn r_type(opcode: u32, funct3: u32, funct7: u32, rd: Reg, rs1: Reg, rs2: Reg) -> u32 {
    funct7 << 25 | rs2 << 20 | rs1 << 15 | funct3 << 12 | rd << 7 | opcode
}

pub fn i_type(opcode: u32, funct3: u32, rd: Reg, rs1: Reg, imm: i32) -> u32 {
    (imm as u32 & 0xfff) << 20 | rs1 << 15 | funct3 << 12 | rd << 7 | opcode
}

pub fn addi(rd: Reg, rs1: Reg, imm: i32) -> u32 {
    i_type(0x13, 0, rd, rs1, imm)
}

pub fn add(rd: Reg, rs1: Reg, rs2: Reg) -> u32 {
    r_type(0x33, 0, 0, rd, rs1, rs2)
}

pub fn lui(rd: Reg, value: u32) -> u32 {
    value & 0xffff_f000 | rd << 7 | 0x37
}

pub fn lb(rd: Reg, base: Reg, offset: i32) -> u32 {
    i_type(0x03, 0, rd, base, offset)
}

pub fn lh(rd: Reg, base: Reg, offset: i32) -> u32 {
    i_type(0x03, 1, rd, base, offset)
}

pub fn lw(rd: Reg, base: Reg, offset: i32) -> u32 {
    i_type(0x03, 2, rd, base, offset)
}

fn store(funct3: u32, rs2: Reg, base: Reg, offset: i32) -> u32 {
    let imm = offset as u32 & 0xfff;
    imm >> 5 << 25 | rs2 << 20 | base << 15 | funct3 << 12 | (imm & 31) << 7 | 0x23
}

pub fn sb(rs2: Reg, base: Reg, offset: i32) -> u32 {
    store(0, rs2, base, offset)
}

pub fn sh(rs2: Reg, base: Reg, offset: i32) -> u32 {
    store(1, rs2, base, offset)
}

pub fn sw(rs2: Reg, base: Reg, offset: i32) -> u32 {
    store(2, rs2, base, offset)
}

pub fn jal(rd: Reg, offset: i32) -> u32 {
    let o = offset as u32;
    (o >> 20 & 1) << 31
        | (o >> 1 & 0x3ff) << 21
        | (o >> 11 & 1) << 20
        | (o >> 12 & 0xff) << 12
        | rd << 7
        | 0x6f
}

pub fn jalr(rd: Reg, rs1: Reg, offset: i32) -> u32 {
    i_type(0x67, 0, rd, rs1, offset)
}

fn branch(funct3: u32, rs1: Reg, rs2: Reg, offset: i32) -> u32 {
    let o = offset as u32;
    (o >> 12 & 1) << 31
        | (o >> 5 & 0x3f) << 25
        | rs2 << 20
        | rs1 << 15
        | funct3 << 12
        | (o >> 1 & 0xf) << 8
        | (o >> 11 & 1) << 7
        | 0x63
}

pub fn beq(rs1: Reg, rs2: Reg, offset: i32) -> u32 {
    branch(0, rs1, rs2, offset)
}

pub fn bne(rs1: Reg, rs2: Reg, offset: i32) -> u32 {
    branch(1, rs1, rs2, offset)
}

pub fn csrrw(rd: Reg, csr: u32, rs1: Reg) -> u32 {
    csr << 20 | rs1 << 15 | 1 << 12 | rd << 7 | 0x73
}

pub fn csrrs(rd: Reg, csr: u32, rs1: Reg) -> u32 {
    csr << 20 | rs1 << 15 | 2 << 12 | rd << 7 | 0x73
}

pub fn csrrsi(rd: Reg, csr: u32, imm: u32) -> u32 {
    csr << 20 | imm << 15 | 6 << 12 | rd << 7 | 0x73
}

pub fn csrr(rd: Reg, csr: u32) -> u32 {
    csrrs(rd, csr, ZERO)
}

pub fn csrw(csr: u32, rs1: Reg) -> u32 {
    csrrw(ZERO, csr, rs1)
}

pub fn lr(rd: Reg, address: Reg) -> u32 {
    r_type(0x2f, 2, 0x02 << 2, rd, address, 0)
}

pub fn sc(rd: Reg, rs2: Reg, address: Reg) -> u32 {
    r_type(0x2f, 2, 0x03 << 2, rd, address, rs2)
}

pub fn amoadd(rd: Reg, rs2: Reg, address: Reg) -> u32 {
    r_type(0x2f, 2, 0, rd, address, rs2)
}

/// A program being written, from some address on.
pub struct Asm {
    base: u32,
    bytes: Vec<u8>,
}

impl Asm {
    pub fn at(base: u32) -> Self {
        Self {
            base,
            bytes: Vec::new(),
        }
    }

    /// The address of the next instruction.
    pub fn here(&self) -> u32 {
        self.base + self.bytes.len() as u32
    }

    /// Appends a 4-byte instruction.
    pub fn op(&mut self, raw: u32) -> &mut Self {
        self.bytes.extend_from_slice(&raw.to_le_bytes());
        self
    }

    /// Appends a 2-byte instruction.
    pub fn half(&mut self, raw: u16) -> &mut Self {
        self.bytes.extend_from_slice(&raw.to_le_bytes());
        self
    }

    /// Appends two instructions that load any value.
    pub fn li(&mut self, rd: Reg, value: u32) -> &mut Self {
        // The low part is added sign-extended, so the high part makes up for it.
        self.op(lui(rd, value.wrapping_add(0x800)));
        self.op(addi(rd, rd, (value as i32) << 20 >> 20))
    }

    /// Appends three instructions (using t0 and t1) that store a word.
    pub fn poke(&mut self, address: u32, value: u32) -> &mut Self {
        self.li(T0, address).li(T1, value).op(sw(T1, T0, 0))
    }

    /// Appends instructions (using t0) that load a word.
    pub fn peek(&mut self, rd: Reg, address: u32) -> &mut Self {
        self.li(T0, address).op(lw(rd, T0, 0))
    }

    /// Appends instructions (using t0) that set a CSR.
    pub fn set(&mut self, csr: u32, value: u32) -> &mut Self {
        self.li(T0, value).op(csrw(csr, T0))
    }

    /// Appends a jump to `target`.
    pub fn jump(&mut self, target: u32) -> &mut Self {
        let offset = target.wrapping_sub(self.here()) as i32;
        self.op(jal(ZERO, offset))
    }

    /// Appends zeros up to `address`.
    pub fn pad_to(&mut self, address: u32) -> &mut Self {
        self.bytes.resize((address - self.base) as usize, 0);
        self
    }

    /// Appends what powers the core off.
    pub fn power_off(&mut self) -> &mut Self {
        self.poke(0x0010_0000, 0x5555)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
