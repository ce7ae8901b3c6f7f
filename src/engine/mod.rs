//! What runs the firmware.
//!
//! The [`Engine`] trait is Linux's `struct rproc_ops` for userspace. What belongs here: the trait,
//! and one folder for each kind of engine. What does not: anything about guests, sockets or what
//! the vrings mean; an engine sees addresses, notify ids and time.
//!
//! | module | |
//! |---|---|
//! | `rv32` | the embedded RISC-V core |
//! | `scripted` | no core at all: a script, and a record of what was asked in which order |

pub mod rv32;
pub mod scripted;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::coredump::{Class, Registers, Segment};
use crate::firmware::{Image, TableSection};
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

    /// The ids that are in this set and not in `other`.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// How many ids are in it.
    pub fn len(self) -> u32 {
        self.0.count_ones()
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

/// What a RISC-V core has, for images that say what they need.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RiscvRules {
    /// Its base and its extensions by their names in an `-march` string, in lower case, each that
    /// another one implies as well.
    pub extensions: &'static [&'static str],
    /// What to build firmware with, for messages: `-march`.
    pub march: &'static str,
    /// And `-mabi`.
    pub mabi: &'static str,
}

impl RiscvRules {
    /// Has the core this extension?
    pub fn has(&self, extension: &str) -> bool {
        self.extensions.contains(&extension)
    }
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
    /// image's, so that `e_entry` is not even looked at.
    pub boot: Option<DeviceAddress>,
    /// For engines of RISC-V: what the core has. `None` asks no image what it needs.
    pub riscv: Option<RiscvRules>,
}

impl ImageRules {
    /// RISC-V of 32 bits, with or without a table.
    ///
    /// What is built for the base of 16 registers runs on one of 32. `time`, `cycle` and `instret`
    /// are there. Whatever is stored becomes visible in the order of the program: nothing says so
    /// to firmware, though, so Ztso is not promised.
    pub const RV32: Self = Self {
        machine: Some((243, "RISC-V")),
        class: Some(ElfClass::Elf32),
        table: TableRule::Optional,
        boot: None,
        riscv: Some(RiscvRules {
            extensions: &[
                "i", "e", "m", "a", "c", "zicsr", "zifencei", "zicntr", "zmmul", "zaamo", "zalrsc",
                "zca",
            ],
            march: "rv32imac_zicsr_zifencei",
            mabi: "ilp32",
        }),
    };

    /// Every machine, both classes, with or without a table: for looking at an image.
    pub const ANY: Self = Self {
        machine: None,
        class: None,
        table: TableRule::Optional,
        boot: None,
        riscv: None,
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

impl CrashKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::MmuFault, Self::Watchdog, Self::FatalError];

    /// The signal that a debugger shows for it: SIGSEGV, SIGALRM or SIGABRT.
    pub fn signal(self) -> u16 {
        match self {
            Self::MmuFault => 11,
            Self::Watchdog => 14,
            Self::FatalError => 6,
        }
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
    /// Kicks with ids that cannot exist ([`NotifyId::LIMIT`]).
    pub stray_kicks: u64,
    /// Why the turn ended.
    pub end: RunEnd,
}

impl Run {
    /// A turn in which nobody was kicked.
    pub fn quiet(end: RunEnd) -> Self {
        Self {
            kicks: NotifySet::default(),
            stray_kicks: 0,
            end,
        }
    }
}

/// What a core has done so far, as far as its engine knows.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Activity {
    /// How long it has executed instructions, in all its incarnations together: waiting for an
    /// interrupt is not executing.
    pub ran: Option<Duration>,
    /// The program counter: of the next instruction, or of the one with which the core waits or
    /// died.
    pub pc: Option<DeviceAddress>,
}

/// Why an engine refused.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct EngineError(pub String);

/// What an engine can do at all, asked before anything is undone for it. In Linux: which of the
/// optional operations a driver has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Abilities {
    /// It can boot an image.
    pub boots: bool,
    /// It can take over a core that runs already, and let go of it again while it runs on.
    pub attaches: bool,
    /// A core that was attached and has crashed comes back by itself and is attached again; it is
    /// not booted. Linux's feature `RPROC_FEAT_ATTACH_ON_RECOVERY`.
    pub attaches_on_recovery: bool,
}

impl Abilities {
    /// Boots images, and nothing else.
    pub const BOOTS: Self = Self {
        boots: true,
        attaches: false,
        attaches_on_recovery: false,
    };
}

/// Who loads an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loader {
    /// rprocd writes the segments into the engine's memory.
    Rprocd,
    /// The engine has done it.
    Engine,
}

/// Where a core that runs already has its resource table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LoadedTable {
    /// First byte.
    pub da: DeviceAddress,
    /// Bytes, with whatever lies behind the last entry.
    pub len: u64,
}

/// What only the engine knows of a core that is to be dumped.
#[derive(Debug)]
pub struct Evidence<'a> {
    /// How wide its addresses are.
    pub class: Class,
    /// `e_machine`; 0 (`EM_NONE`) if the engine cannot say.
    pub machine: u16,
    /// The registers as the core left them.
    pub registers: Option<Registers>,
    /// Where its stack was, so that a dump that is cut short has it.
    pub stack: Option<DeviceAddress>,
    /// What there is besides the carveouts: memory and devices of the engine's own. Linux's custom
    /// segments.
    pub segments: Vec<Segment<'a>>,
}

/// What an engine tells rprocd without being asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Report {
    /// The core died.
    Crash {
        /// In which incarnation. One that is over is not believed.
        incarnation: u32,
        /// How.
        crash: Crash,
    },
    /// There is something for [`Engine::run`] to tell.
    Wake,
}

/// Where what a core writes to a console of its own (a UART) goes, piece by piece: bytes as they
/// were written, and no promise that a piece is a line.
pub type Console = Box<dyn FnMut(&[u8]) + Send>;

/// How an engine reports from any thread, at any time, without waiting. Linux's
/// `rproc_report_crash()`, which may be called in any context, and `rproc_vq_interrupt()`.
#[derive(Clone)]
pub struct Reporter(Arc<dyn Fn(Report) + Send + Sync>);

impl Reporter {
    /// One that hands each report to `take`.
    pub fn new(take: impl Fn(Report) + Send + Sync + 'static) -> Self {
        Self(Arc::new(take))
    }

    /// One that nobody listens to.
    pub fn deaf() -> Self {
        Self::new(drop)
    }

    /// The core of this incarnation has died. Only the first report of an incarnation counts.
    pub fn crash(&self, incarnation: u32, crash: Crash) {
        (self.0)(Report::Crash { incarnation, crash });
    }

    /// [`Engine::run`] has something to tell: the core kicked, for instance.
    pub fn wake(&self) {
        (self.0)(Report::Wake);
    }
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reporter")
    }
}

/// What runs a firmware: one remote core.
///
/// Every method is called by the one thread that drives the core at that moment, never by two at
/// once. A kick from the firmware is reported by [`Engine::run`]; an engine whose core runs
/// elsewhere reports what came since the last turn, and calls [`Reporter::wake`] so that there is
/// one.
///
/// # The order of calls
///
/// It is Linux's (`drivers/remoteproc/remoteproc_core.c`), and a test holds it against Linux's;
/// `-` is what rprocd does itself.
///
/// | boot | stop | crash, then recovery | attach | detach |
/// |---|---|---|---|---|
/// | `sanity_check` | - vdevs, subdevices stop | - the same, "crashed" | `prepare` | - as for stop |
/// | `prepare` | `stop` | `stop` | `get_loaded_rsc_table` | - table made pristine |
/// | `get_boot_addr` | - subdevices unprepare | - subdevices unprepare | `map_devmem`, `handle_rsc` | `detach` |
/// | `parse_fw` | `unprepare` | `coredump` | - subdevices prepare | - subdevices unprepare |
/// | `map_devmem`, `handle_rsc` | | `load` and what follows it | `attach` | `unprepare` |
/// | `load` | | | - subdevices, vdevs start | |
/// | `find_loaded_rsc_table` | | | | |
/// | - subdevices prepare | | | | |
/// | `start` | | | | |
/// | - subdevices, vdevs start | | | | |
///
/// `get_boot_addr`, `parse_fw`, `map_devmem`, `handle_rsc` and `sanity_check` are also called
/// without a boot, when a firmware is looked at: what they arrange may have no effect before
/// [`Engine::start`], and the last call counts.
pub trait Engine: Send {
    /// The kind's name in configuration and logs.
    fn kind(&self) -> &'static str;

    /// Which images it takes.
    fn image_rules(&self) -> ImageRules;

    /// The memory that carveouts are placed in and images are loaded to.
    fn ram(&self) -> &Arc<Ram>;

    /// What it can do. The default boots images and does nothing else.
    fn abilities(&self) -> Abilities {
        Abilities::BOOTS
    }

    /// Does the core run already, started by somebody else? Asked once, before anything is done:
    /// such a core begins as detached.
    fn runs_already(&self) -> bool {
        false
    }

    /// Where to report what happens while no method is being called. The default has nothing to
    /// report.
    fn set_reporter(&mut self, reporter: Reporter) {
        drop(reporter);
    }

    /// Where a console of the core's own goes from now on. What [`Engine::run`] has the firmware
    /// write is there when that returns. The default has no console.
    fn set_console(&mut self, console: Console) {
        drop(console);
    }

    /// Has the engine anything against an image that passed rprocd's own checks? Linux's
    /// `sanity_check`.
    ///
    /// # Errors
    /// What is wrong with it. The default takes every image.
    fn sanity_check(&self, image: &Image, file: &[u8]) -> Result<(), EngineError> {
        let _ = (image, file);
        Ok(())
    }

    /// Makes the core ready to be loaded or attached: power, clocks, memory. Linux's `prepare`.
    ///
    /// # Errors
    /// Why it cannot be; it is then as before. The default has nothing to do.
    fn prepare(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    /// Undoes [`Engine::prepare`], once the core is stopped or detached. Linux's `unprepare`.
    fn unprepare(&mut self) {}

    /// Where the core begins. Asked before anything is loaded. Linux's `get_boot_addr`.
    ///
    /// # Errors
    /// Why it cannot begin there. The default takes what the image says: `e_entry`, or
    /// [`ImageRules::boot`].
    fn get_boot_addr(&self, image: &Image) -> Result<DeviceAddress, EngineError> {
        Ok(image.boot)
    }

    /// Reads in the image what only this kind of engine knows (sections, segments of its own).
    /// The resource table has been read by then. Linux's `parse_fw`.
    ///
    /// # Errors
    /// What cannot be done with it. The default reads nothing.
    fn parse_fw(&mut self, image: &Image, file: &[u8]) -> Result<(), EngineError> {
        let _ = (image, file);
        Ok(())
    }

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

    /// Where in [`Engine::ram`] the `len` bytes are that the core sees at `da`, if that is memory
    /// the core has without any carveout, or sees at another address (tightly coupled memory, an
    /// uncached alias). Asked before the carveouts are looked at. Linux's `da_to_va`.
    ///
    /// The default knows of none: what is in no carveout is not there.
    fn translate(&self, da: DeviceAddress, len: u64) -> Option<DeviceAddress> {
        let _ = (da, len);
        None
    }

    /// Loads the image's segments, if the engine's memory wants that done in a way of its own.
    /// Linux's `load`.
    ///
    /// # Errors
    /// Why it cannot be loaded. The default leaves it to rprocd.
    fn load(&mut self, image: &Image, file: &[u8]) -> Result<Loader, EngineError> {
        let _ = (image, file);
        Ok(Loader::Rprocd)
    }

    /// Where the core sees the table of an image that has just been loaded; `None` if nowhere.
    /// Linux's `find_loaded_rsc_table`.
    ///
    /// The default is the address of the section, `sh_addr`.
    fn find_loaded_rsc_table(&mut self, section: &TableSection) -> Option<DeviceAddress> {
        Some(section.da)
    }

    /// Where a core that runs already has its table; `None` if it has none. Linux's
    /// `get_loaded_rsc_table`.
    ///
    /// # Errors
    /// Why that cannot be said; the core is then not attached. The default knows of none.
    fn get_loaded_rsc_table(&mut self) -> Result<Option<LoadedTable>, EngineError> {
        Ok(None)
    }

    /// Starts the loaded image at `boot`, as incarnation `incarnation`. All state of an earlier
    /// run but the RAM is gone.
    ///
    /// # Errors
    /// The reason why the core cannot start; it is then as after `stop`.
    fn start(&mut self, boot: DeviceAddress, incarnation: u32) -> Result<(), EngineError>;

    /// Stops the core; nothing of it runs any more when this returns. Memory and registers stay
    /// as they were, for [`Engine::coredump`]. Stopping a stopped core does nothing.
    ///
    /// # Errors
    /// Why it goes on running. It may be asked again.
    fn stop(&mut self) -> Result<(), EngineError>;

    /// Takes over the core that runs already, as incarnation `incarnation`.
    ///
    /// # Errors
    /// Why not. The default refuses.
    fn attach(&mut self, incarnation: u32) -> Result<(), EngineError> {
        let _ = incarnation;
        Err(self.cannot("attach to a core that runs already"))
    }

    /// Lets go of a core that was attached. It runs on.
    ///
    /// # Errors
    /// Why not; the core is still attached. The default refuses.
    fn detach(&mut self) -> Result<(), EngineError> {
        Err(self.cannot("let go of a core"))
    }

    /// Pauses the core: nothing of it runs, no timer of its own goes on, until
    /// [`Engine::resume`]. Kicks are kept.
    ///
    /// # Errors
    /// Why not; it runs on. The default refuses.
    fn suspend(&mut self) -> Result<(), EngineError> {
        Err(self.cannot("suspend a core"))
    }

    /// Lets a suspended core go on.
    ///
    /// # Errors
    /// Why not; it is still suspended. The default refuses.
    fn resume(&mut self) -> Result<(), EngineError> {
        Err(self.cannot("resume a core"))
    }

    /// Kicks the core on a vring. Never blocks; kicks of one id merge.
    fn kick(&mut self, id: NotifyId);

    /// Lets the firmware run until it waits, dies, or has used up `budget` instructions (or what
    /// the engine counts instead).
    fn run(&mut self, budget: u64) -> Run;

    /// What the core has done so far. Asked at any time, and not by each turn.
    ///
    /// The default knows nothing.
    fn activity(&self) -> Activity {
        Activity::default()
    }

    /// The process is about to end because of a defect: brings the core into a state that the
    /// host survives. Returns how long that takes. Linux's `panic`.
    ///
    /// The default has nothing to do.
    fn panic(&mut self) -> Duration {
        Duration::ZERO
    }

    /// What a dump of the core that crashed should say besides its carveouts. Called after `stop`
    /// and before anything is loaded again. Linux's `coredump`.
    ///
    /// The default knows no registers.
    fn coredump(&mut self, crash: &Crash) -> Evidence<'_> {
        let _ = crash;
        let rules = self.image_rules();
        Evidence {
            class: match rules.class {
                Some(ElfClass::Elf64) => Class::Elf64,
                Some(ElfClass::Elf32) | None => Class::Elf32,
            },
            machine: rules.machine.map_or(0, |(machine, _)| machine),
            registers: None,
            stack: None,
            segments: Vec::new(),
        }
    }

    /// For engines: the words of a refusal to do what the kind cannot do.
    fn cannot(&self, what: &str) -> EngineError {
        EngineError(format!("engine {} cannot {what}", self.kind()))
    }
}
