//! What runs the firmware.
//!
//! The [`Engine`] trait is Linux's `struct rproc_ops` for userspace. What belongs here: the trait,
//! and one folder for each kind of engine. What does not: anything about guests, sockets or what
//! the vrings mean; an engine sees addresses, notify ids and time.

pub mod rv32;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use thiserror::Error;

use crate::memory::{DeviceAddress, Ram};

/// Identifies one vring of one core, both ways. Assigned by rprocd, lowest free first (Linux's
/// rule); a value that an image carries is only a placeholder.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NotifyId(pub u8);

impl NotifyId {
    /// Ids 0 to 63 exist: a core has at most 64 vrings.
    pub const LIMIT: u8 = 64;
}

/// A set of notify ids, one bit each.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct NotifySet(pub u64);

impl NotifySet {
    /// Adds an id. One past [`NotifyId::LIMIT`] does not exist and is not added.
    pub fn insert(&mut self, id: NotifyId) {
        self.0 |= Self::bit(id);
    }

    /// Is the id in the set?
    pub fn contains(self, id: NotifyId) -> bool {
        self.0 & Self::bit(id) != 0
    }

    fn bit(id: NotifyId) -> u64 {
        1u64.checked_shl(u32::from(id.0)).unwrap_or(0)
    }

    /// Is nothing in it?
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// The class of an ELF file: the width of its addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ElfClass {
    /// `ELFCLASS32`.
    Elf32,
    /// `ELFCLASS64`.
    Elf64,
}

impl fmt::Display for ElfClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Elf32 => "ELF32",
            Self::Elf64 => "ELF64",
        })
    }
}

/// Must an image have a resource table? Linux's own loader insists; most of its drivers do not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableRule {
    /// An image without one, or with an empty one, is refused.
    Required,
    /// Such an image is taken. It has no vdev, and its memory is what its segments need.
    Optional,
}

/// Which ELF images an engine takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ImageRules {
    /// `e_machine` and its name, for messages; `None` takes every machine.
    pub machine: Option<(u16, &'static str)>,
    /// `None` takes both. RV32 and RV64 have one `e_machine`: only the class tells them apart.
    pub class: Option<ElfClass>,
    /// Must there be a resource table?
    pub table: TableRule,
    /// Where the core begins whatever `e_entry` says: a reset vector that is no choice of the
    /// image's. Linux's `get_boot_addr`.
    pub boot: Option<DeviceAddress>,
}

impl ImageRules {
    /// RISC-V of 32 bits, with or without a table.
    pub const RV32: Self = Self {
        machine: Some((243, "RISC-V")),
        class: Some(ElfClass::Elf32),
        table: TableRule::Optional,
        boot: None,
    };

    /// Every machine, both classes, with or without a table: for looking at an image.
    pub const ANY: Self = Self {
        machine: None,
        class: None,
        table: TableRule::Optional,
        boot: None,
    };
}

/// What an engine did with a resource table entry of a vendor's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VendorEntry {
    /// It knows the type and has done what the entry asks for.
    Handled,
    /// It does not know the type.
    Unknown,
}

/// How a core died. Linux's `enum rproc_crash_type`, same names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CrashKind {
    /// An access that the core's memory map does not answer, with nobody to handle the trap.
    MmuFault,
    /// The watchdog was not fed.
    Watchdog,
    /// Everything else, the firmware's own reports included.
    FatalError,
}

impl fmt::Display for CrashKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MmuFault => "mmufault",
            Self::Watchdog => "watchdog",
            Self::FatalError => "fatal error",
        })
    }
}

/// A crash as the engine saw it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Crash {
    /// The type.
    pub kind: CrashKind,
    /// One line for a person: what happened and where (`pc`, cause, address).
    pub detail: String,
}

/// Why [`Engine::run`] came back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RunEnd {
    /// The firmware waits for an interrupt. Nothing will happen before a kick or, if there is
    /// one, the given time.
    Waiting {
        /// When a timer or the watchdog wants the core to run again.
        until: Option<Instant>,
    },
    /// The budget is used up and the firmware would run on.
    BudgetSpent,
    /// The firmware ended its own run and all is well.
    PoweredOff,
    /// The core died; only `stop` is left.
    Crashed(Crash),
}

/// What one turn of [`Engine::run`] brought.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// The vrings on which the firmware kicked the host during the turn.
    pub kicks: NotifySet,
    /// Why the turn ended.
    pub end: RunEnd,
}

/// Why an engine refused.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct EngineError(pub String);

/// What runs a firmware: one remote core.
///
/// Every method is called by the one thread that drives the core at that moment, never by two at
/// once. A kick from the firmware is reported by [`Engine::run`]; an engine whose core runs
/// elsewhere reports what came since the last turn.
pub trait Engine: Send {
    /// The kind's name in configuration and logs.
    fn kind(&self) -> &'static str;

    /// Which images it takes.
    fn image_rules(&self) -> ImageRules;

    /// The memory that carveouts are placed in and images are loaded to.
    fn ram(&self) -> &Arc<Ram>;

    /// May the firmware use the host-physical span `pa .. pa + len` at `da` (a devmem entry)?
    ///
    /// # Errors
    /// The reason why not. The default refuses all.
    fn map_devmem(&mut self, da: DeviceAddress, pa: u64, len: u64) -> Result<(), EngineError> {
        Err(EngineError(format!(
            "engine {} has no devices of the host to map at {da} (pa {pa:#x}, {len:#x} bytes)",
            self.kind()
        )))
    }

    /// Takes an entry of the vendor range (types 128 to 512) of the resource table, or not. What
    /// `payload` means is between the firmware and the engine. Linux's `handle_rsc`.
    ///
    /// # Errors
    /// The engine knows the type and cannot do what is asked; the boot is then refused.
    fn handle_rsc(&mut self, kind: u32, payload: &[u8]) -> Result<VendorEntry, EngineError> {
        let _ = (kind, payload);
        Ok(VendorEntry::Unknown)
    }

    /// Could the core begin at `boot`? Asked before anything is loaded.
    ///
    /// # Errors
    /// The reason why not. The default takes every address.
    fn check_boot(&self, boot: DeviceAddress) -> Result<(), EngineError> {
        let _ = boot;
        Ok(())
    }

    /// Starts the loaded image at `boot`, as incarnation `incarnation`. All state of an earlier
    /// run but the RAM is gone.
    ///
    /// # Errors
    /// The reason why the core cannot start; it is then as after `stop`.
    fn start(&mut self, boot: DeviceAddress, incarnation: u32) -> Result<(), EngineError>;

    /// Stops the core; nothing of it runs any more when this returns. Stopping a stopped core
    /// does nothing.
    fn stop(&mut self);

    /// Kicks the core on a vring. Never blocks; kicks of one id merge.
    fn kick(&mut self, id: NotifyId);

    /// Lets the firmware run until it waits, dies, or has used up `budget` instructions (or what
    /// the engine counts instead).
    fn run(&mut self, budget: u64) -> Run;
}
