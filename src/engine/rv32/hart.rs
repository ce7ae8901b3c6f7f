//! The architectural state of the hart outside the fast path: CSRs and traps.
//!
//! What belongs here: the machine-mode CSRs and what a trap and `mret` do to them ("The RISC-V
//! Instruction Set Manual, Volume II: Privileged Architecture", chapters "Control and Status
//! Registers" and "Machine-Level ISA"). What does not: where interrupts come from, and what
//! becomes of a trap that nobody takes.
//!
//! There is machine mode only: no PMP, no triggers, no counters but `mcycle` and `minstret`.

use super::execute::RegisterFile;

/// Bits of `mip` and `mie`.
pub(super) const MSI: u32 = 1 << 3;
pub(super) const MTI: u32 = 1 << 7;
pub(super) const MEI: u32 = 1 << 11;

const MSTATUS_MIE: u32 = 1 << 3;
const MSTATUS_MPIE: u32 = 1 << 7;
/// The previous mode, which is always machine.
const MSTATUS_MPP: u32 = 3 << 11;
/// RV32, and the letters A, C, I and M.
const MISA: u32 = 1 << 30 | 1 << 0 | 1 << 2 | 1 << 8 | 1 << 12;
const INTERRUPT: u32 = 1 << 31;

/// A synchronous exception, as `mcause` encodes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(super) enum Exception {
    InstructionAccess = 1,
    IllegalInstruction = 2,
    Breakpoint = 3,
    LoadMisaligned = 4,
    LoadAccess = 5,
    StoreMisaligned = 6,
    StoreAccess = 7,
    MachineCall = 11,
}

/// Why a trap is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cause {
    Exception(Exception),
    /// By the number of its bit in `mip`.
    Interrupt(u32),
}

impl Cause {
    /// As in `mcause`.
    pub(super) fn code(self) -> u32 {
        match self {
            Self::Exception(exception) => exception as u32,
            Self::Interrupt(number) => INTERRUPT | number,
        }
    }
}

/// What a value of `mcause` is called, if it is one the architecture defines.
pub(super) fn cause_name(code: u32) -> Option<&'static str> {
    Some(match code {
        0 => "instruction address misaligned",
        1 => "instruction access fault",
        2 => "illegal instruction",
        3 => "breakpoint",
        4 => "load address misaligned",
        5 => "load access fault",
        6 => "store/AMO address misaligned",
        7 => "store/AMO access fault",
        8 => "environment call from U-mode",
        9 => "environment call from S-mode",
        11 => "environment call from M-mode",
        12 => "instruction page fault",
        13 => "load page fault",
        15 => "store/AMO page fault",
        0x8000_0003 => "machine software interrupt",
        0x8000_0007 => "machine timer interrupt",
        0x8000_000b => "machine external interrupt",
        _ => return None,
    })
}

/// There is no such CSR, or it is read-only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NoSuchCsr;

/// What the CSRs show of the world outside the hart.
#[derive(Clone, Copy)]
pub(super) struct Outside {
    pub(super) mip: u32,
    pub(super) mtime: u64,
}

/// One hart.
pub(super) struct Hart {
    pub(super) x: RegisterFile,
    pub(super) pc: u32,
    /// Instructions retired since the start; what `minstret` counts on from.
    pub(super) retired: u64,
    pub(super) mie: u32,
    interrupts_enabled: bool,
    previously_enabled: bool,
    mtvec: u32,
    mscratch: u32,
    mepc: u32,
    mcause: u32,
    mtval: u32,
    /// What to add to `retired` to get the counter; not zero once the firmware wrote it.
    instret_offset: u64,
    cycle_offset: u64,
    /// The address and the value that the last LR read.
    pub(super) reservation: Option<(u32, u32)>,
}

impl Hart {
    /// A hart as after reset, about to execute at `pc`.
    pub(super) fn new(pc: u32) -> Self {
        Self {
            x: [0; 256],
            pc,
            retired: 0,
            mie: 0,
            interrupts_enabled: false,
            previously_enabled: false,
            mtvec: 0,
            mscratch: 0,
            mepc: 0,
            mcause: 0,
            mtval: 0,
            instret_offset: 0,
            cycle_offset: 0,
            reservation: None,
        }
    }

    /// `mstatus.MIE`: is any interrupt taken at all?
    pub(super) fn interrupts_enabled(&self) -> bool {
        self.interrupts_enabled
    }

    /// Where a trap would go (`mtvec`, direct or vectored).
    pub(super) fn handler(&self, cause: Cause) -> u32 {
        let base = self.mtvec & !3;
        match cause {
            Cause::Interrupt(number) if self.mtvec & 1 != 0 => base.wrapping_add(4 * number),
            _ => base,
        }
    }

    /// Enters the handler; `pc` must be what `mepc` is to hold.
    pub(super) fn enter_trap(&mut self, cause: Cause, mtval: u32) {
        self.mepc = self.pc;
        self.mcause = cause.code();
        self.mtval = mtval;
        self.previously_enabled = self.interrupts_enabled;
        self.interrupts_enabled = false;
        // What a handler does in between, an SC of the interrupted code must not overlook.
        self.reservation = None;
        self.pc = self.handler(cause);
    }

    /// `mret`.
    pub(super) fn return_from_trap(&mut self) {
        self.interrupts_enabled = self.previously_enabled;
        self.previously_enabled = true;
        self.reservation = None;
        self.pc = self.mepc;
    }

    /// Executes one of the six Zicsr instructions; `raw` is its encoding. The hart must not have
    /// counted it as retired yet.
    ///
    /// # Errors
    /// [`NoSuchCsr`]: an illegal instruction; nothing has changed.
    pub(super) fn csr_instruction(&mut self, raw: u32, outside: Outside) -> Result<(), NoSuchCsr> {
        let csr = raw >> 20;
        let rd = (raw >> 7 & 31) as usize;
        let source = raw >> 15 & 31;
        let immediate = raw & 1 << 14 != 0;
        let operand = if immediate {
            source
        } else {
            self.x[source as usize]
        };
        let old = self.read(csr, outside)?;
        let new = match raw >> 12 & 3 {
            1 => Some(operand),
            // Setting or clearing nothing, by x0 or an immediate 0, is not a write.
            2 => (source != 0).then_some(old | operand),
            3 => (source != 0).then_some(old & !operand),
            _ => return Err(NoSuchCsr),
        };
        if let Some(new) = new {
            self.write(csr, new)?;
        }
        if rd != 0 {
            self.x[rd] = old;
        }
        Ok(())
    }

    fn read(&self, csr: u32, outside: Outside) -> Result<u32, NoSuchCsr> {
        let instret = self.retired.wrapping_add(self.instret_offset);
        let cycle = self.retired.wrapping_add(self.cycle_offset);
        let high = |counter: u64| (counter >> 32) as u32;
        Ok(match csr {
            0x300 => {
                let mut mstatus = MSTATUS_MPP;
                if self.interrupts_enabled {
                    mstatus |= MSTATUS_MIE;
                }
                if self.previously_enabled {
                    mstatus |= MSTATUS_MPIE;
                }
                mstatus
            }
            0x301 => MISA,
            0x304 => self.mie,
            0x305 => self.mtvec,
            0x340 => self.mscratch,
            0x341 => self.mepc,
            0x342 => self.mcause,
            0x343 => self.mtval,
            0x344 => outside.mip,
            0xb00 | 0xc00 => cycle as u32,
            0xb02 | 0xc02 => instret as u32,
            0xb80 | 0xc80 => high(cycle),
            0xb82 | 0xc82 => high(instret),
            0xc01 => outside.mtime as u32,
            0xc81 => high(outside.mtime),
            // mstatush, mcountinhibit and the event counters that machines may leave at zero;
            // mvendorid to mconfigptr, where zero is "not telling" and hart 0.
            0x310 | 0x320 | 0x323..=0x33f | 0xb03..=0xb1f | 0xb83..=0xb9f | 0xf11..=0xf15 => 0,
            _ => return Err(NoSuchCsr),
        })
    }

    /// Writes a CSR that [`Hart::read`] knows.
    fn write(&mut self, csr: u32, value: u32) -> Result<(), NoSuchCsr> {
        // The two top bits of the number say "read-only" (Volume II, "CSR Address Mapping").
        if csr >> 10 == 3 {
            return Err(NoSuchCsr);
        }
        // A write to a counter, of either half, replaces the writing instruction's own count.
        let (before, after) = (self.retired, self.retired.wrapping_add(1));
        let low = |offset: &mut u64| {
            let old = before.wrapping_add(*offset);
            *offset = (old & !0xffff_ffff | u64::from(value)).wrapping_sub(after);
        };
        let high = |offset: &mut u64| {
            let old = before.wrapping_add(*offset);
            *offset = (old & 0xffff_ffff | u64::from(value) << 32).wrapping_sub(after);
        };
        match csr {
            0x300 => {
                self.interrupts_enabled = value & MSTATUS_MIE != 0;
                self.previously_enabled = value & MSTATUS_MPIE != 0;
            }
            0x304 => self.mie = value & (MSI | MTI | MEI),
            // Modes 2 and 3 are reserved; their low bit decides.
            0x305 => self.mtvec = value & !2,
            0x340 => self.mscratch = value,
            0x341 => self.mepc = value & !1,
            0x342 => self.mcause = value,
            0x343 => self.mtval = value,
            0xb00 => low(&mut self.cycle_offset),
            0xb02 => low(&mut self.instret_offset),
            0xb80 => high(&mut self.cycle_offset),
            0xb82 => high(&mut self.instret_offset),
            // The rest takes no value: misa, mip (its bits belong to the devices), and the zeros.
            _ => {}
        }
        Ok(())
    }
}
