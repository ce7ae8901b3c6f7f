//! An engine without a core: what its firmware does is a script in this process, and what is asked
//! of it is written down in order.
//!
//! For tests of everything around an engine, ours and those of people who build on this crate:
//! each call can be made to fail, a crash can be reported from any thread, and the memory is real.
//! What belongs here: that, and nothing that a real engine would need.
//!
//! ```
//! use rprocd::engine::scripted::{Op, Scripted};
//! use rprocd::engine::{Engine, RunEnd};
//! use rprocd::memory::DeviceAddress;
//!
//! let mut engine = Scripted::new(DeviceAddress(0x8000_0000), 0x10_0000).unwrap();
//! let journal = engine.journal();
//! engine.set_script(|_ram, kicks| {
//!     assert!(kicks.is_empty());
//!     RunEnd::Waiting { until: None }
//! });
//! journal.fail_next(Op::Start);
//! assert!(engine.start(DeviceAddress(0x8000_0000), 1).is_err());
//! assert_eq!(journal.take(), ["start failed"]);
//! ```

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{
    Abilities, Crash, Engine, EngineError, Evidence, ImageRules, LoadedTable, Loader, NotifyId,
    NotifySet, Reporter, Run, RunEnd, VendorEntry,
};
use crate::coredump::{Class, Registers};
use crate::firmware::{Image, TableSection};
use crate::memory::{DeviceAddress, MemoryError, Ram};

/// What can be asked of an engine, and can fail or be refused. The names in a [`Journal`] are those
/// of the methods of [`Engine`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// [`Engine::sanity_check`].
    SanityCheck,
    /// [`Engine::prepare`].
    Prepare,
    /// [`Engine::unprepare`]; cannot fail.
    Unprepare,
    /// [`Engine::get_boot_addr`].
    GetBootAddr,
    /// [`Engine::parse_fw`].
    ParseFw,
    /// [`Engine::map_devmem`].
    MapDevmem,
    /// [`Engine::handle_rsc`].
    HandleRsc,
    /// [`Engine::load`].
    Load,
    /// [`Engine::find_loaded_rsc_table`]; "failing" is finding none.
    FindLoadedRscTable,
    /// [`Engine::get_loaded_rsc_table`].
    GetLoadedRscTable,
    /// [`Engine::start`].
    Start,
    /// [`Engine::stop`].
    Stop,
    /// [`Engine::attach`].
    Attach,
    /// [`Engine::detach`].
    Detach,
    /// [`Engine::suspend`].
    Suspend,
    /// [`Engine::resume`].
    Resume,
    /// [`Engine::coredump`]; cannot fail.
    Coredump,
    /// [`Engine::panic`]; cannot fail.
    Panic,
}

impl Op {
    /// The method's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::SanityCheck => "sanity_check",
            Self::Prepare => "prepare",
            Self::Unprepare => "unprepare",
            Self::GetBootAddr => "get_boot_addr",
            Self::ParseFw => "parse_fw",
            Self::MapDevmem => "map_devmem",
            Self::HandleRsc => "handle_rsc",
            Self::Load => "load",
            Self::FindLoadedRscTable => "find_loaded_rsc_table",
            Self::GetLoadedRscTable => "get_loaded_rsc_table",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Attach => "attach",
            Self::Detach => "detach",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
            Self::Coredump => "coredump",
            Self::Panic => "panic",
        }
    }
}

/// What happens while a call is under way.
type Meanwhile = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Notes {
    lines: Vec<String>,
    failing: Vec<Op>,
    meanwhile: Vec<(Op, Meanwhile)>,
    reporter: Option<Reporter>,
    incarnation: u32,
    printed: bool,
}

impl Notes {
    fn write(&mut self, line: String) {
        if self.printed {
            eprintln!("scripted: {line}");
        }
        self.lines.push(line);
    }
}

/// The record of one engine, and the strings it is pulled by. Clones are the same journal; any
/// thread may hold one.
#[derive(Clone, Default)]
pub struct Journal(Arc<Mutex<Notes>>);

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.notes().lines).finish()
    }
}

impl Journal {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a line of the caller's own, in order with the engine's.
    pub fn note(&self, line: impl Into<String>) {
        self.notes().write(line.into());
    }

    /// What was written since the last time, oldest first: the name of each method called, with
    /// " failed" behind those that were made to. `kick` has its notify id.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.notes().lines)
    }

    /// Each line is also printed to standard error as it is written, for a process that will not
    /// live to take them.
    pub fn print(&self, printed: bool) {
        self.notes().printed = printed;
    }

    /// The next call of `op` fails.
    pub fn fail_next(&self, op: Op) {
        self.notes().failing.push(op);
    }

    /// No call fails any more that has not failed yet.
    pub fn forgive(&self) {
        self.notes().failing.clear();
    }

    /// In the middle of the next call of `op`, on the thread that calls, `what` happens. It may
    /// report and start threads; it may not ask the core for anything, which waits for this call.
    pub fn at_next(&self, op: Op, what: impl FnOnce() + Send + 'static) {
        self.notes().meanwhile.push((op, Box::new(what)));
    }

    /// Reports a crash of the incarnation that runs, from the calling thread.
    pub fn crash(&self, crash: Crash) {
        let incarnation = self.notes().incarnation;
        self.crash_of(incarnation, crash);
    }

    /// Reports a crash of a certain incarnation.
    pub fn crash_of(&self, incarnation: u32, crash: Crash) {
        let reporter = self.notes().reporter.clone();
        if let Some(reporter) = reporter {
            reporter.crash(incarnation, crash);
        }
    }

    /// Asks for a turn of the script, from the calling thread.
    pub fn wake(&self) {
        let reporter = self.notes().reporter.clone();
        if let Some(reporter) = reporter {
            reporter.wake();
        }
    }

    /// Notes a call; an error if it is to fail.
    fn call(&self, op: Op) -> Result<(), EngineError> {
        let mut notes = self.notes();
        let failing = notes.failing.iter().position(|failing| *failing == op);
        let answer = match failing {
            None => {
                notes.write(op.name().to_owned());
                Ok(())
            }
            Some(index) => {
                notes.failing.remove(index);
                notes.write(format!("{} failed", op.name()));
                Err(EngineError(format!(
                    "the script says that {} fails",
                    op.name()
                )))
            }
        };
        let meanwhile = notes.meanwhile.iter().position(|(at, _)| *at == op);
        let meanwhile = meanwhile.map(|index| notes.meanwhile.remove(index).1);
        // It may use this journal.
        drop(notes);
        if let Some(what) = meanwhile {
            what();
        }
        answer
    }
}

/// One turn of the firmware: its memory, and on which vrings it was kicked since the last.
pub type Script = Box<dyn FnMut(&Ram, NotifySet) -> RunEnd + Send>;

/// The engine. Without [`Scripted::set_script`] its firmware waits for ever.
pub struct Scripted {
    ram: Arc<Ram>,
    rules: ImageRules,
    abilities: Abilities,
    runs_already: bool,
    loads: bool,
    table: Option<LoadedTable>,
    alias: Option<(DeviceAddress, u64, DeviceAddress)>,
    journal: Journal,
    script: Script,
    kicked: NotifySet,
    kicks: NotifySet,
    storm: (NotifySet, u64),
    running: bool,
}

impl Scripted {
    /// A stopped core with `len` bytes of memory at `base`, that takes images of RV32.
    ///
    /// # Errors
    /// As [`Ram::new`].
    pub fn new(base: DeviceAddress, len: u64) -> Result<Self, MemoryError> {
        Ok(Self {
            ram: Ram::new("scripted", base, len)?,
            rules: ImageRules::RV32,
            abilities: Abilities::BOOTS,
            runs_already: false,
            loads: false,
            table: None,
            alias: None,
            journal: Journal::default(),
            script: Box::new(|_, _| RunEnd::Waiting { until: None }),
            kicked: NotifySet::default(),
            kicks: NotifySet::default(),
            storm: (NotifySet::default(), 0),
            running: false,
        })
    }

    /// The record of what is asked of it.
    pub fn journal(&self) -> Journal {
        self.journal.clone()
    }

    /// What its firmware does when it is let run.
    pub fn set_script(
        &mut self,
        script: impl FnMut(&Ram, NotifySet) -> RunEnd + Send + 'static,
    ) -> &mut Self {
        self.script = Box::new(script);
        self
    }

    /// Which images it takes.
    pub fn set_rules(&mut self, rules: ImageRules) -> &mut Self {
        self.rules = rules;
        self
    }

    /// What it can do.
    pub fn set_abilities(&mut self, abilities: Abilities) -> &mut Self {
        self.abilities = abilities;
        self
    }

    /// The core runs already, and has its resource table at `table`.
    pub fn set_running_already(&mut self, table: Option<LoadedTable>) -> &mut Self {
        self.runs_already = true;
        self.running = true;
        self.table = table;
        self.abilities.attaches = true;
        self
    }

    /// It says that it has loaded each image, and loads nothing.
    pub fn set_loads_by_itself(&mut self) -> &mut Self {
        self.loads = true;
        self
    }

    /// The core sees the `len` bytes at `da` at `seen` as well, without any carveout.
    pub fn set_alias(&mut self, seen: DeviceAddress, len: u64, da: DeviceAddress) -> &mut Self {
        self.alias = Some((seen, len, da));
        self
    }

    /// The kicks that the next turn reports, whatever the script does.
    pub fn set_kicks(&mut self, kicks: NotifySet) -> &mut Self {
        self.kicks = kicks;
        self
    }

    /// Every turn reports these kicks, and `stray` with ids that cannot exist, whatever the script
    /// does.
    pub fn set_storm(&mut self, kicks: NotifySet, stray: u64) -> &mut Self {
        self.storm = (kicks, stray);
        self
    }
}

impl Engine for Scripted {
    fn kind(&self) -> &'static str {
        "scripted"
    }

    fn image_rules(&self) -> ImageRules {
        self.rules
    }

    fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    fn abilities(&self) -> Abilities {
        self.abilities
    }

    fn runs_already(&self) -> bool {
        self.runs_already
    }

    fn set_reporter(&mut self, reporter: Reporter) {
        self.journal.notes().reporter = Some(reporter);
    }

    fn sanity_check(&self, _image: &Image, _file: &[u8]) -> Result<(), EngineError> {
        self.journal.call(Op::SanityCheck)
    }

    fn prepare(&mut self) -> Result<(), EngineError> {
        self.journal.call(Op::Prepare)
    }

    fn unprepare(&mut self) {
        let _ = self.journal.call(Op::Unprepare);
    }

    fn get_boot_addr(&self, image: &Image) -> Result<DeviceAddress, EngineError> {
        self.journal.call(Op::GetBootAddr)?;
        Ok(image.boot)
    }

    fn parse_fw(&mut self, _image: &Image, _file: &[u8]) -> Result<(), EngineError> {
        self.journal.call(Op::ParseFw)
    }

    fn map_devmem(&mut self, _da: DeviceAddress, _pa: u64, _len: u64) -> Result<(), EngineError> {
        self.journal.call(Op::MapDevmem)
    }

    fn handle_rsc(&mut self, _kind: u32, _payload: &[u8]) -> Result<VendorEntry, EngineError> {
        self.journal.call(Op::HandleRsc)?;
        Ok(VendorEntry::Handled)
    }

    fn translate(&self, da: DeviceAddress, len: u64) -> Option<DeviceAddress> {
        let (seen, size, real) = self.alias?;
        let offset = da.offset_from(seen)?;
        (offset.checked_add(len)? <= size).then(|| DeviceAddress(real.0 + offset))
    }

    fn load(&mut self, _image: &Image, _file: &[u8]) -> Result<Loader, EngineError> {
        self.journal.call(Op::Load)?;
        Ok(if self.loads {
            Loader::Engine
        } else {
            Loader::Rprocd
        })
    }

    fn find_loaded_rsc_table(&mut self, section: &TableSection) -> Option<DeviceAddress> {
        self.journal
            .call(Op::FindLoadedRscTable)
            .ok()
            .map(|()| section.da)
    }

    fn get_loaded_rsc_table(&mut self) -> Result<Option<LoadedTable>, EngineError> {
        self.journal.call(Op::GetLoadedRscTable)?;
        Ok(self.table)
    }

    fn start(&mut self, _boot: DeviceAddress, incarnation: u32) -> Result<(), EngineError> {
        self.journal.call(Op::Start)?;
        self.journal.notes().incarnation = incarnation;
        self.kicked = NotifySet::default();
        self.running = true;
        Ok(())
    }

    fn stop(&mut self) -> Result<(), EngineError> {
        self.journal.call(Op::Stop)?;
        self.running = false;
        Ok(())
    }

    fn attach(&mut self, incarnation: u32) -> Result<(), EngineError> {
        self.journal.call(Op::Attach)?;
        self.journal.notes().incarnation = incarnation;
        Ok(())
    }

    fn detach(&mut self) -> Result<(), EngineError> {
        self.journal.call(Op::Detach)
    }

    fn suspend(&mut self) -> Result<(), EngineError> {
        self.journal.call(Op::Suspend)
    }

    fn resume(&mut self) -> Result<(), EngineError> {
        self.journal.call(Op::Resume)
    }

    fn kick(&mut self, id: NotifyId) {
        self.journal.note(format!("kick {}", id.0));
        self.kicked.insert(id);
    }

    fn run(&mut self, _budget: u64) -> Run {
        if !self.running {
            return Run::quiet(RunEnd::Waiting { until: None });
        }
        let end = (self.script)(&self.ram, std::mem::take(&mut self.kicked));
        let NotifySet(kicks) = std::mem::take(&mut self.kicks);
        let (NotifySet(storm), stray_kicks) = self.storm;
        Run {
            kicks: NotifySet(kicks | storm),
            stray_kicks,
            end,
        }
    }

    fn panic(&mut self) -> Duration {
        let _ = self.journal.call(Op::Panic);
        Duration::ZERO
    }

    fn coredump(&mut self, crash: &Crash) -> Evidence<'_> {
        let _ = self.journal.call(Op::Coredump);
        Evidence {
            class: Class::Elf32,
            machine: self.rules.machine.map_or(0, |(machine, _)| machine),
            registers: Some(Registers {
                signal: crash.kind.signal(),
                values: vec![0; 32],
            }),
            stack: None,
            segments: Vec::new(),
        }
    }
}
