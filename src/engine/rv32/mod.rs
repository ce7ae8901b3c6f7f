//! The embedded engine: a RISC-V hart and the [`board`] around it.
//!
//! RV32IMAC with Zicsr and Zifencei, machine mode only: traps (direct and vectored), software,
//! timer and external interrupts, `mcycle` and `minstret` (each instruction one cycle, writable),
//! `time`. Loads and stores may be misaligned; LR, SC and AMOs may not. No PMP, no triggers, no
//! U-mode.
//!
//! What belongs here: executing firmware, and the devices the firmware sees. What does not:
//! guests, vrings and images; nobody here knows what a kick means.
//!
//! The firmware is hostile. Whatever it does ends in a trap, a crash or a spent budget, never in
//! a panic, and the memory it can make the engine use is bounded.
//!
//! - `op`, `decode`: what an instruction is once decoded, and how it becomes that
//! - `code`: decoded blocks by address
//! - `execute`, `fast_ram`: the fast path, and the memory it works on
//! - `hart`: CSRs and traps
//! - `devices`, `time`: what is not RAM
//! - this module: the turn, which puts them together, and the slow half of instructions

pub mod board;
mod code;
mod decode;
mod devices;
mod execute;
mod fast_ram;
mod hart;
mod op;
mod time;

use std::sync::Arc;
use std::time::{Duration, Instant};

use code::CodeCache;
use devices::{Devices, Effect, WINDOWS, Width};
use execute::{Exit, execute};
use fast_ram::FastRam;
use hart::{Cause, Exception, Hart, MEI, MSI, NoSuchCsr, Outside, cause_name};
use op::{Kind, Op};
pub use time::Clock;
use time::Time;

use super::{
    Activity, Console, Crash, CrashKind, Engine, EngineError, Evidence, ImageRules, NotifyId, Run,
    RunEnd,
};
use crate::coredump;
use crate::firmware::Image;
use crate::memory::{DeviceAddress, Ram};

/// How many instructions may pass before the clock is looked at: some 30 us, so that a busy loop
/// has its timer interrupts, and cheap, as a look costs 30 ns.
const CLOCK_INTERVAL: u64 = 16 * 1024;

/// The registers, for a coredump.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Registers {
    /// The program counter. After a crash by an instruction it is that instruction's address.
    pub pc: u32,
    /// x0 (always 0) to x31.
    pub x: [u32; 32],
}

/// What was counted since the core was started, unless said otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Statistics {
    /// Instructions retired (Volume II, "Hardware Performance Monitor").
    pub retired: u64,
    /// Kicks of the firmware with a notify id that does not exist.
    pub ignored_kicks: u64,
}

enum State {
    Stopped,
    Running {
        /// In WFI.
        waiting: bool,
    },
    PoweredOff,
    Crashed(Crash),
}

/// Why the core's run is over.
enum Over {
    PoweredOff,
    Crashed(Crash),
}

/// One embedded RISC-V core.
pub struct Rv32 {
    ram: Arc<Ram>,
    hart: Hart,
    code: CodeCache,
    devices: Devices,
    time: Time,
    state: State,
    suspended: bool,
    /// Kicks with ids that do not exist, as far as they have been reported.
    strays_told: u64,
    /// How long instructions were executed, in all incarnations.
    ran: Duration,
}

impl Rv32 {
    /// A stopped core on `ram`. What it writes to its UART goes nowhere before
    /// [`Engine::set_console`].
    ///
    /// # Errors
    /// The RAM does not begin where the board has it ([`board::ram::BASE`]).
    pub fn new(ram: Arc<Ram>) -> Result<Self, EngineError> {
        Self::with_clock(ram, Box::new(Instant::now))
    }

    /// As [`Rv32::new`], with another source of time than the host's monotonic clock.
    ///
    /// # Errors
    /// As [`Rv32::new`].
    pub fn with_clock(ram: Arc<Ram>, clock: Clock) -> Result<Self, EngineError> {
        let base = DeviceAddress(u64::from(board::ram::BASE));
        if ram.base() != base {
            return Err(EngineError(format!(
                "engine rv32 has its RAM at {base}, not at {}",
                ram.base()
            )));
        }
        Ok(Self {
            ram,
            hart: Hart::new(board::ram::BASE),
            code: CodeCache::new(),
            devices: Devices::new(),
            time: Time::new(clock),
            state: State::Stopped,
            suspended: false,
            strays_told: 0,
            ran: Duration::ZERO,
        })
    }

    /// Where the program counter begins.
    fn entry_point(&self, boot: DeviceAddress) -> Result<u32, EngineError> {
        u32::try_from(boot.0)
            .ok()
            .filter(|pc| pc.is_multiple_of(2) && FastRam::new(&self.ram).contains(*pc, 2))
            .ok_or_else(|| {
                EngineError(format!(
                    "engine rv32 cannot start at {boot}: \
                     an entry point is even and in the RAM ({} to {})",
                    self.ram.base(),
                    self.ram.end()
                ))
            })
    }

    /// The registers now. Those of a core that ended stay as they were, until the next start.
    pub fn registers(&self) -> Registers {
        let mut x = [0; 32];
        x.copy_from_slice(&self.hart.x[..32]);
        Registers {
            pc: self.hart.pc,
            x,
        }
    }

    /// The counts now.
    pub fn statistics(&self) -> Statistics {
        Statistics {
            retired: self.hart.retired,
            ignored_kicks: self.devices.ignored_kicks(),
        }
    }

    /// Nothing of the core runs any more.
    fn halt(&mut self) {
        self.suspended = false;
        if let State::Stopped = self.state {
            return;
        }
        self.state = State::Stopped;
        self.devices.take_kicks();
        self.code.release();
    }

    /// Runs until the core waits, has used up `budget`, or ends.
    ///
    /// The clock has been looked at just before. Where the core waits it is looked at as the last
    /// thing, so what lies between the two looks is the time that it ran.
    ///
    /// The budget pays for instructions retired, traps taken, what the copier does, and (so that
    /// firmware cannot make the engine decode for nothing) ops decoded.
    fn turn(&mut self, budget: u64) -> Result<RunEnd, Over> {
        let mut spent: u64 = 0;
        let mut look_at = CLOCK_INTERVAL;
        // A direct jump that led to an address nothing is linked to yet.
        let mut unlinked: Option<(u32, u64, u32)> = None;
        loop {
            if let Some(period) = self.devices.bitten(&self.time) {
                return Err(self.bite(period));
            }
            if self.devices.copying() {
                let limit = budget.min(look_at).saturating_sub(spent);
                spent = spent.saturating_add(self.devices.copy(&self.ram, limit));
                if self.devices.copying() {
                    if spent >= budget {
                        return Ok(RunEnd::BudgetSpent);
                    }
                    self.time.refresh();
                    look_at = spent.saturating_add(CLOCK_INTERVAL);
                    continue;
                }
            }
            let pending = self.devices.interrupts(&self.time) & self.hart.mie;
            if let State::Running { waiting: true } = self.state {
                if pending == 0 {
                    let until = self
                        .devices
                        .next_event(self.hart.mie, &self.time)
                        .and_then(|until| self.time.on_host(until));
                    return Ok(RunEnd::Waiting { until });
                }
                self.state = State::Running { waiting: false };
            }
            if pending != 0 && self.hart.interrupts_enabled() {
                self.trap(Cause::Interrupt(most_urgent(pending)), 0)?;
                spent += 1;
            }
            if spent >= budget {
                return Ok(RunEnd::BudgetSpent);
            }
            if spent >= look_at {
                self.time.refresh();
                look_at = spent.saturating_add(CLOCK_INTERVAL);
                continue;
            }

            let pc = self.hart.pc;
            let ram = FastRam::new(&self.ram);
            let mut entry = self.code.find(pc);
            if entry == 0 {
                let decoded = self.code.translate(ram, pc);
                entry = decoded.entry;
                spent = spent.saturating_add(decoded.cost);
            }
            if let Some((from, generation, target)) = unlinked.take()
                && target == pc
            {
                self.code.link(from, generation, entry);
            }

            let limit = budget.min(look_at).saturating_sub(spent);
            let stay = execute(&mut self.hart.x, &self.code, ram, entry, limit);
            spent = spent.saturating_add(stay.retired);
            self.hart.retired = self.hart.retired.wrapping_add(stay.retired);
            match stay.exit {
                Exit::Jump { pc, from } => {
                    self.hart.pc = pc;
                    unlinked = from.map(|from| (from, self.code.generation(), pc));
                }
                Exit::Slow { index } => {
                    self.slow(index)?;
                    spent = spent.saturating_add(1);
                }
            }
        }
    }

    /// Does the op at `index`, which the fast path could not.
    fn slow(&mut self, index: u32) -> Result<(), Over> {
        let ops = self.code.ops();
        let op = ops[index as usize];
        // Only ops that end a block have none after them in it, and those know where they go.
        let next = ops.get(index as usize + 1).map_or(0, |next| next.pc);
        self.hart.pc = op.pc;
        let kind = op.kind.first();
        let base = if kind.is_access() {
            board::ram::BASE
        } else {
            0
        };
        let address = self.hart.x[usize::from(op.rs1)]
            .wrapping_add(op.imm)
            .wrapping_add(base);
        let value = self.hart.x[usize::from(op.rs2)];
        match kind {
            Kind::FetchFault => self.exception(Exception::InstructionAccess, op.imm),
            Kind::Illegal => self.exception(Exception::IllegalInstruction, op.imm),
            Kind::System => self.system(op),
            Kind::FenceI => {
                self.code.flush();
                self.retire(op.pc.wrapping_add(4));
                Ok(())
            }
            Kind::Lb | Kind::Lbu => self.load(op, address, Width::Byte, next),
            Kind::Lh | Kind::Lhu => self.load(op, address, Width::Half, next),
            Kind::Lw => self.load(op, address, Width::Word, next),
            Kind::Sb => self.store(address, Width::Byte, value & 0xff, next),
            Kind::Sh => self.store(address, Width::Half, value & 0xffff, next),
            Kind::Sw => self.store(address, Width::Word, value, next),
            Kind::Lr => self.load_reserved(op, next),
            Kind::Sc => self.store_conditional(op, next),
            // A word that is aligned and still not for the host's atomics is not RAM, and
            // registers of devices take no AMOs.
            Kind::AmoSwap
            | Kind::AmoAdd
            | Kind::AmoXor
            | Kind::AmoAnd
            | Kind::AmoOr
            | Kind::AmoMin
            | Kind::AmoMax
            | Kind::AmoMinu
            | Kind::AmoMaxu => match address & 3 {
                0 => self.exception(Exception::StoreAccess, address),
                _ => self.exception(Exception::StoreMisaligned, address),
            },
            // Never handed back; were it, the core would end and not the daemon.
            other => Err(self.crash(
                CrashKind::FatalError,
                format!("defect of the engine: {other:?} has no slow half"),
            )),
        }
    }

    fn retire(&mut self, next: u32) {
        self.hart.retired = self.hart.retired.wrapping_add(1);
        self.hart.pc = next;
    }

    fn load(&mut self, op: Op, address: u32, width: Width, next: u32) -> Result<(), Over> {
        // What is not aligned is left to this half.
        let value = match FastRam::new(&self.ram).load(address, width.bytes()) {
            Some(value) => Some(value),
            None => {
                self.look_at_time_for(address)?;
                self.devices.load(address, width, &self.time)
            }
        };
        let Some(value) = value else {
            return self.exception(Exception::LoadAccess, address);
        };
        let value = match op.kind.first() {
            Kind::Lb => i32::from((value as u8).cast_signed()).cast_unsigned(),
            Kind::Lh => i32::from((value as u16).cast_signed()).cast_unsigned(),
            _ => value,
        };
        self.hart.x[usize::from(op.rd)] = value;
        self.retire(next);
        Ok(())
    }

    fn store(&mut self, address: u32, width: Width, value: u32, next: u32) -> Result<(), Over> {
        let in_ram = FastRam::new(&self.ram).store(address, value, width.bytes());
        if in_ram.is_some() {
            self.retire(next);
            return Ok(());
        }
        self.look_at_time_for(address)?;
        let effect = self.devices.store(address, width, value, &self.time);
        let pc = self.hart.pc;
        let reason = match effect {
            None => return self.exception(Exception::StoreAccess, address),
            Some(Effect::None) => {
                self.retire(next);
                return Ok(());
            }
            Some(Effect::PowerOff) => return Err(Over::PoweredOff),
            Some(Effect::Fail(code)) => {
                format!("the firmware ended its run with failure code {code}, pc {pc:#010x}")
            }
            Some(Effect::Reset) => format!("the firmware asked for a reset, pc {pc:#010x}"),
            Some(Effect::Fault { value, address }) => match cause_name(value) {
                Some(name) => format!(
                    "the firmware reported fault {value:#x} ({name}) \
                     at {address:#010x}, pc {pc:#010x}"
                ),
                None => format!(
                    "the firmware reported fault {value:#x} at {address:#010x}, pc {pc:#010x}"
                ),
            },
        };
        Err(self.crash(CrashKind::FatalError, reason))
    }

    /// Looks at the clock if the access about to happen depends on it. A feeding that comes after
    /// the bite comes too late, however seldom the clock is looked at otherwise.
    fn look_at_time_for(&mut self, address: u32) -> Result<(), Over> {
        if !Devices::looks_at_time(address) {
            return Ok(());
        }
        self.time.refresh();
        match self.devices.bitten(&self.time) {
            Some(period) => Err(self.bite(period)),
            None => Ok(()),
        }
    }

    fn load_reserved(&mut self, op: Op, next: u32) -> Result<(), Over> {
        let address = self.hart.x[usize::from(op.rs1)];
        if address & 3 != 0 {
            return self.exception(Exception::LoadMisaligned, address);
        }
        let Some(value) = FastRam::new(&self.ram).load_reserved(address) else {
            return self.exception(Exception::LoadAccess, address);
        };
        self.hart.reservation = Some((address, value));
        self.hart.x[usize::from(op.rd)] = value;
        self.retire(next);
        Ok(())
    }

    fn store_conditional(&mut self, op: Op, next: u32) -> Result<(), Over> {
        let address = self.hart.x[usize::from(op.rs1)];
        let value = self.hart.x[usize::from(op.rs2)];
        if address & 3 != 0 {
            return self.exception(Exception::StoreMisaligned, address);
        }
        let ram = FastRam::new(&self.ram);
        if !ram.contains(address, 4) {
            return self.exception(Exception::StoreAccess, address);
        }
        let stored = match self.hart.reservation.take() {
            Some((reserved, expected)) if reserved == address => ram
                .store_conditional(address, expected, value)
                .unwrap_or(false),
            _ => false,
        };
        self.hart.x[usize::from(op.rd)] = u32::from(!stored);
        self.retire(next);
        Ok(())
    }

    /// An instruction of the SYSTEM opcode, or `c.ebreak`.
    fn system(&mut self, op: Op) -> Result<(), Over> {
        let raw = op.imm;
        let next = op.pc.wrapping_add(4);
        match raw {
            0x0000_0073 => return self.exception(Exception::MachineCall, 0),
            0x0010_0073 | 0x9002 => return self.exception(Exception::Breakpoint, 0),
            0x3020_0073 => {
                self.retire(next);
                self.hart.return_from_trap();
                return Ok(());
            }
            0x1050_0073 => {
                self.retire(next);
                // Whether there is something to wait for depends on the time now.
                self.time.refresh();
                self.state = State::Running { waiting: true };
                return Ok(());
            }
            _ => {}
        }
        // `time` and the timer's bit in `mip` shall be as fresh as `mtime` itself.
        if matches!(raw >> 20, 0x344 | 0xc01 | 0xc81) {
            self.time.refresh();
        }
        let outside = Outside {
            mip: self.devices.interrupts(&self.time),
            mtime: self.time.ticks(),
        };
        match self.hart.csr_instruction(raw, outside) {
            Ok(()) => {
                self.retire(next);
                Ok(())
            }
            Err(NoSuchCsr) => self.exception(Exception::IllegalInstruction, raw),
        }
    }

    fn exception(&mut self, exception: Exception, mtval: u32) -> Result<(), Over> {
        self.trap(Cause::Exception(exception), mtval)
    }

    /// Enters the trap handler; a crash if there is nothing to execute where it should be.
    fn trap(&mut self, cause: Cause, mtval: u32) -> Result<(), Over> {
        let handler = self.hart.handler(cause);
        if FastRam::new(&self.ram).contains(handler, 2) {
            self.hart.enter_trap(cause, mtval);
            return Ok(());
        }
        let kind = match cause {
            Cause::Exception(
                Exception::InstructionAccess | Exception::LoadAccess | Exception::StoreAccess,
            ) => CrashKind::MmuFault,
            _ => CrashKind::FatalError,
        };
        let name = cause_name(cause.code()).unwrap_or("trap");
        let pc = self.hart.pc;
        Err(self.crash(
            kind,
            format!(
                "{name} at pc {pc:#010x}, mtval {mtval:#010x}, \
                 and no handler in RAM (mtvec leads to {handler:#010x})"
            ),
        ))
    }

    fn bite(&self, period: Duration) -> Over {
        self.crash(
            CrashKind::Watchdog,
            format!(
                "the watchdog was not fed for {} ms, pc {:#010x}",
                period.as_millis(),
                self.hart.pc
            ),
        )
    }

    fn crash(&self, kind: CrashKind, detail: String) -> Over {
        Over::Crashed(Crash { kind, detail })
    }
}

/// The interrupt to take first (Volume II, "Machine Interrupt Registers"): external, software,
/// timer.
fn most_urgent(pending: u32) -> u32 {
    let first = if pending & MEI != 0 {
        MEI
    } else if pending & MSI != 0 {
        MSI
    } else {
        pending
    };
    first.trailing_zeros()
}

impl Engine for Rv32 {
    fn kind(&self) -> &'static str {
        "rv32"
    }

    fn image_rules(&self) -> ImageRules {
        ImageRules::RV32
    }

    fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// The board's devices are at fixed places that the firmware reaches anyway: a devmem entry
    /// can only confirm one of them.
    fn map_devmem(&mut self, da: DeviceAddress, pa: u64, len: u64) -> Result<(), EngineError> {
        let window = WINDOWS.iter().find(|window| {
            let first = u64::from(window.base);
            da.0 >= first && da.0 + len <= first + u64::from(window.size)
        });
        match window {
            Some(_) if da.0 == pa => Ok(()),
            Some(window) => Err(EngineError(format!(
                "engine rv32 has its {} at {:#010x} for good: pa is {pa:#010x}, must be da, {da}",
                window.name, window.base
            ))),
            None => Err(EngineError(format!(
                "engine rv32 has no device at {da} ({len:#x} bytes); it has {}",
                WINDOWS
                    .map(|window| format!("{} at {:#010x}", window.name, window.base))
                    .join(", ")
            ))),
        }
    }

    fn set_console(&mut self, console: Console) {
        self.devices.set_console(console);
    }

    fn get_boot_addr(&self, image: &Image) -> Result<DeviceAddress, EngineError> {
        self.entry_point(image.boot).map(|_| image.boot)
    }

    fn start(&mut self, boot: DeviceAddress, incarnation: u32) -> Result<(), EngineError> {
        self.halt();
        let pc = self.entry_point(boot)?;
        self.hart = Hart::new(pc);
        self.devices.reset(incarnation);
        self.strays_told = 0;
        self.time.restart();
        self.state = State::Running { waiting: false };
        Ok(())
    }

    fn stop(&mut self) -> Result<(), EngineError> {
        self.halt();
        Ok(())
    }

    fn suspend(&mut self) -> Result<(), EngineError> {
        self.suspended = true;
        self.time.pause();
        Ok(())
    }

    fn resume(&mut self) -> Result<(), EngineError> {
        self.suspended = false;
        self.time.resume();
        Ok(())
    }

    fn kick(&mut self, id: NotifyId) {
        if let State::Running { .. } = self.state {
            self.devices.kick(id);
        }
    }

    fn run(&mut self, budget: u64) -> Run {
        match &self.state {
            State::Stopped => return Run::quiet(RunEnd::Waiting { until: None }),
            State::PoweredOff => return Run::quiet(RunEnd::PoweredOff),
            State::Crashed(crash) => return Run::quiet(RunEnd::Crashed(crash.clone())),
            State::Running { .. } if self.suspended => {
                return Run::quiet(RunEnd::Waiting { until: None });
            }
            State::Running { .. } => {}
        }
        self.time.refresh();
        let begun = self.time.now();
        let end = match self.turn(budget) {
            // The clock was looked at when it began to wait.
            Ok(end @ RunEnd::Waiting { .. }) => end,
            Ok(end) => {
                self.time.refresh();
                end
            }
            Err(over) => {
                self.time.refresh();
                match over {
                    Over::PoweredOff => {
                        self.state = State::PoweredOff;
                        RunEnd::PoweredOff
                    }
                    Over::Crashed(crash) => {
                        self.state = State::Crashed(crash.clone());
                        RunEnd::Crashed(crash)
                    }
                }
            }
        };
        self.ran += self.time.now().saturating_duration_since(begun);
        self.devices.flush();
        let strays = self.devices.ignored_kicks();
        Run {
            kicks: self.devices.take_kicks(),
            stray_kicks: strays - std::mem::replace(&mut self.strays_told, strays),
            end,
        }
    }

    fn activity(&self) -> Activity {
        let pc = match self.state {
            // WFI has been retired: it is behind the program counter, and never compressed.
            State::Running { waiting: true } => self.hart.pc.wrapping_sub(4),
            _ => self.hart.pc,
        };
        Activity {
            ran: Some(self.ran),
            pc: Some(DeviceAddress(u64::from(pc))),
        }
    }

    fn coredump(&mut self, crash: &Crash) -> Evidence<'_> {
        let Registers { pc, x } = self.registers();
        Evidence {
            class: coredump::Class::Elf32,
            machine: ImageRules::RV32.machine.map_or(0, |(machine, _)| machine),
            registers: Some(coredump::Registers::riscv32(crash.kind.signal(), pc, &x)),
            // x2 is the stack pointer.
            stack: Some(DeviceAddress(u64::from(x[2]))),
            segments: Vec::new(),
        }
    }
}
