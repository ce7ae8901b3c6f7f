//! The state of a core and everything that changes it.
//!
//! ```text
//!                    start                               crash
//!        Offline ────────────► Running ────────────────────────────────► Crashed
//!          ▲  ▲  ▲              ▲ │ ▲ │          restart, as recovery      │ │
//!          │  │  │       resume │ │ └─┼──── decides, start or recover ◄────┘ │
//!          │  │  │              │ ▼ suspend                                 │
//!          │  │  └───────── Suspended                                       │
//!          │  └─ stop; power off: the firmware ended its run                │
//!          └──── stop; or the restart failed ◄──────────────────────────────┘
//!
//!                 attach, start                         crash
//!       Detached ──────────────► Attached ─────────────────────────────► Crashed
//!          ▲                       │ │       attached again, or booted:     │
//!          └───────── detach ──────┘ └► stop: Offline    as the engine can ◄┘
//!
//!                 any state ── delete ──► Deleted
//! ```
//!
//! - *start* boots: see [`Engine`](crate::engine::Engine#the-order-of-calls) for the steps. What
//!   fails on the way is undone in reverse, and the core is offline.
//! - *crash*: evidence first. Channels of guests are withdrawn and the engine is stopped with its
//!   memory as it was, a dump is taken, and only then is anything restarted. Linux leaves the
//!   channels up until the recovery.
//! - *restart*: segments and table are loaded again, with the plan of the boot. Carveouts keep
//!   their content, as in Linux.
//! - A restart that fails leaves an offline core, which start and stop treat like any other. Linux
//!   leaves one that neither can move.
//! - *attach* takes over a core that runs, with its table as it is in memory; *detach* puts the
//!   table back as it was found. The core runs on.
//! - *suspend* pauses; guests wait.
//!
//! A core that is not offline or detached is *held*: by its operator, a guest, a control connection
//! (see [`Holder`]). When the last lets go it is stopped, or detached if it was attached. A stop by
//! an operator ends all holds.
//!
//! What may be asked in which state is in [`admission`](super::admission), a table. What belongs
//! here: carrying it out. What does not: threads and locks (see [`core`](super::core)), how an
//! image is judged (see [`boot`](super::boot)), whether and when a crashed core is restarted (see
//! [`recovery`](super::recovery)).
//!
//! | file | |
//! |---|---|
//! | this one | the states, and what is asked of a core |
//! | `steps` | coming up and going down, step by step |
//! | `crash` | crash and recovery |
//! | `turn` | driving a core that runs |
//! | `guests` | what guests do to it |
//!
//! The states own what exists in them: there is no table, no vring and no trace buffer without an
//! incarnation. The guests' sides of the vdevs outlive incarnations: a guest stays attached while
//! its core is down, and is told by name service which endpoints are gone.

mod crash;
mod guests;
mod steps;
mod turn;

use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::{Duration, Instant};

use log::{debug, error, info};
use thiserror::Error;

use super::admission::{Admission, CoreState, Verb, admit};
use super::boot::{BootError, BootPlan, VdevPlan};
use super::check::CheckOptions;
use super::events::{Teller, What};
use super::evidence::Coredumps;
use super::firmware::{Firmware, FirmwareError, Identities};
use super::histogram::{Histogram, RECOVERY_BOUNDS};
use super::holders::{Holder, Holders};
use super::pulse::Pulse;
use super::recovery::{CrashHistory, RecoveryPolicy};
use super::resources::{Region, Resource, resources};
use super::status::{CoreStatus, CrashCount, VdevStatus, VringStatus};
use super::subdevice::{Subdevice, Subdevices};
use super::timeline::{Stopwatch, Timeline, micros};
use super::trace::{NamedTrace, Traces};
use crate::coredump::{Mode, StoredDump};
use crate::engine::{Activity, Crash, CrashKind, Engine, EngineError, Reporter};
use crate::firmware::Snapshot;
use crate::report::sentence;
use crate::vdev::{News, Vdev, offered};
pub use turn::{Driver, Later, Linger};
use turn::{Owners, Watch};

/// Why something that was asked of a core is not done.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RequestError {
    /// There is nothing to do.
    #[error("core {core} is {state} already")]
    AlreadySo {
        /// The core's name.
        core: String,
        /// Its state.
        state: CoreState,
    },
    /// Not in this state.
    #[error("cannot {verb} core {core}, which is {state}: {why}")]
    Refused {
        /// The core's name.
        core: String,
        /// What was asked.
        verb: Verb,
        /// Its state.
        state: CoreState,
        /// Why not, and what to do.
        why: &'static str,
    },
    /// The boot failed; the core is offline.
    #[error("core {core} cannot be booted")]
    Boot {
        /// The core's name.
        core: String,
        /// Why not.
        source: Box<BootError>,
    },
    /// The core is not attached; it runs as it did.
    #[error("core {core} cannot be attached")]
    Attach {
        /// The core's name.
        core: String,
        /// Why not.
        source: Box<BootError>,
    },
    /// The engine did not do it. The core's state is as it was.
    #[error("core {core} does not {verb}; it may be tried again")]
    Engine {
        /// The core's name.
        core: String,
        /// What was asked.
        verb: Verb,
        /// Why not.
        source: EngineError,
    },
    /// The core has no place for coredumps.
    #[error(
        "core {core} was configured without coredumps; set `mode` and `directory` in its section \
         [core.coredump] and restart rprocd"
    )]
    NoDumps {
        /// The core's name.
        core: String,
    },
    /// The firmware is not taken; the core keeps the one it has.
    #[error("the firmware of core {core} is not changed")]
    Firmware {
        /// The core's name.
        core: String,
        /// Why not.
        source: Box<FirmwareError>,
    },
}

/// What happens to the core when the guest of a vdev is gone (its VMM hung up, or another driver
/// begins: a reboot, an unbind and bind).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Departure {
    /// The vdev is reset: status 0 and a kick. The firmware must start over with that vdev.
    ResetVdev,
    /// The core is restarted. For firmware that cannot start over with one vdev; others notice.
    RestartCore,
}

/// How a core is to be run.
#[derive(Clone, Default, Debug)]
pub struct Policies {
    /// What follows from a crash.
    pub recovery: RecoveryPolicy,
    /// For each vdev, in the order of the resource table; where none is given the vdev is reset.
    pub departures: Vec<Departure>,
    /// Does a guest that arrives start the core, and hold it?
    pub boot_on_guest: bool,
    /// What it does between events.
    pub linger: Linger,
}

/// One boot of a core, or one time of being attached, and what it owns.
struct Incarnation {
    plan: BootPlan,
    /// Whose its notify ids are.
    owners: Owners,
    since: Instant,
    /// How long the core had run before.
    ran_before: Duration,
    origin: Origin,
}

impl Incarnation {
    /// One that begins now.
    fn new(plan: BootPlan, origin: Origin, engine: &dyn Engine) -> Self {
        Self {
            owners: Owners::new(plan.vdevs.iter().map(VdevPlan::ids)),
            plan,
            since: Instant::now(),
            ran_before: engine.activity().ran.unwrap_or_default(),
            origin,
        }
    }
}

/// How an incarnation began.
enum Origin {
    Booted,
    Attached {
        /// The table as it was found.
        pristine: Vec<u8>,
    },
}

/// What comes after a crash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    Restart(Instant),
    Held {
        crashes: u32,
    },
    Disabled,
    /// The engine could not be stopped.
    Stuck,
}

/// Instructions (or what the engine counts) that the firmware runs before others are looked at.
const BUDGET: u64 = 100_000;

enum State {
    Offline,
    Suspended(Incarnation),
    Running(Incarnation),
    Crashed(Incarnation, Next, Stopwatch),
    Attached(Incarnation),
    Detached,
    Deleted,
}

impl State {
    fn incarnation(&self) -> Option<&Incarnation> {
        match self {
            Self::Suspended(incarnation)
            | Self::Running(incarnation)
            | Self::Crashed(incarnation, ..)
            | Self::Attached(incarnation) => Some(incarnation),
            Self::Offline | Self::Detached | Self::Deleted => None,
        }
    }

    /// The incarnation, unless it is dead.
    fn alive(&mut self) -> Option<&mut Incarnation> {
        match self {
            Self::Suspended(incarnation)
            | Self::Running(incarnation)
            | Self::Attached(incarnation) => Some(incarnation),
            Self::Crashed(..) | Self::Offline | Self::Detached | Self::Deleted => None,
        }
    }

    /// The incarnation, if it is being driven.
    fn driven(&mut self) -> Option<&mut Incarnation> {
        match self {
            Self::Running(incarnation) | Self::Attached(incarnation) => Some(incarnation),
            Self::Suspended(_)
            | Self::Crashed(..)
            | Self::Offline
            | Self::Detached
            | Self::Deleted => None,
        }
    }
}

/// How an incarnation ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Stop,
    Detach,
}

/// A core: its engine, its firmware, its state, its vdevs.
pub struct Machine {
    name: String,
    engine: Box<dyn Engine>,
    firmware: Firmware,
    identities: Arc<Identities>,
    state: State,
    holders: Holders,
    vdevs: Vec<Vdev>,
    /// Vdevs that were reset while the firmware was busy, and until when their next start waits
    /// for it to look.
    unnoticed: Vec<(usize, Instant)>,
    subdevices: Subdevices,
    watch: Watch,
    policies: Policies,
    coredumps: Coredumps,
    traces: Traces,
    history: CrashHistory,
    incarnations: u32,
    crashes: u32,
    /// In which incarnation, and what.
    last_crash: Option<(u32, Crash)>,
    last_dump: Option<String>,
    /// That the last incarnation ended by itself, and what follows.
    ended: Option<String>,
    /// Kicks of the firmware with ids that no vring has.
    unknown_kicks: u64,
    /// The last of each kind.
    timelines: Vec<Timeline>,
    /// By [`CrashKind`].
    crashes_by_reason: [u64; CrashKind::ALL.len()],
    recovery_time: Histogram,
    /// Where the vdevs are listened for.
    sockets: Vec<Option<PathBuf>>,
    /// Whether VMMs are offered the name service, once there is a face for them.
    announces: Vec<Option<bool>>,
    teller: Teller,
    pulse: Arc<Pulse>,
}

impl Machine {
    /// A core that is offline; or detached, if the engine says that it runs already.
    pub fn new(
        name: &str,
        mut engine: Box<dyn Engine>,
        firmware: Firmware,
        policies: Policies,
        coredumps: Coredumps,
    ) -> Self {
        let traces = Traces::new(name);
        engine.set_console(traces.console());
        let identities = Arc::new(Identities::of(&firmware));
        let vdevs = (0..identities.len())
            .map(|index| Vdev::new(vdev_label(name, index)))
            .collect();
        let sockets = vec![None; identities.len()];
        let announces = vec![None; identities.len()];
        let state = if engine.runs_already() {
            State::Detached
        } else {
            State::Offline
        };
        Self {
            name: name.to_owned(),
            engine,
            firmware,
            identities,
            state,
            holders: Holders::default(),
            vdevs,
            unnoticed: Vec::new(),
            subdevices: Subdevices::default(),
            watch: Watch::new(policies.linger),
            policies,
            coredumps,
            traces,
            history: CrashHistory::default(),
            incarnations: 0,
            crashes: 0,
            last_crash: None,
            last_dump: None,
            ended: None,
            unknown_kicks: 0,
            timelines: Vec::new(),
            crashes_by_reason: [0; CrashKind::ALL.len()],
            recovery_time: Histogram::new(&RECOVERY_BOUNDS),
            sockets,
            announces,
            teller: Teller::default(),
            pulse: Arc::default(),
        }
    }

    /// Adds something that goes up and down with the core, behind those that were added before.
    /// It is in use from the next start on.
    pub fn add_subdevice(&mut self, subdevice: Box<dyn Subdevice>) {
        self.subdevices.add(subdevice);
    }

    /// Where the engine reports to.
    pub(super) fn set_reporter(&mut self, reporter: Reporter) {
        self.engine.set_reporter(reporter);
    }

    /// Where guests' kicks are left before the core is driven: a bit for each vdev.
    pub(super) fn kicked(&self) -> Arc<AtomicU32> {
        self.watch.kicked()
    }

    /// What beats while it is driven.
    pub(super) fn pulse(&self) -> Arc<Pulse> {
        self.pulse.clone()
    }

    /// See [`Traces::found`].
    pub(super) fn trace_looks(&self) -> Arc<AtomicU64> {
        self.traces.found()
    }

    /// Which firmware it would take.
    pub(super) fn check_options(&self) -> CheckOptions {
        let ram = self.engine.ram();
        CheckOptions {
            rules: self.engine.image_rules(),
            base: ram.base(),
            memory_bytes: ram.len(),
            grants: Some(self.firmware.grants.clone()),
        }
    }

    /// Something other than a kick has happened to it: the next turn looks at every vdev.
    pub(super) fn wake(&mut self) {
        self.watch.wake_all();
    }

    pub(super) fn identities(&self) -> Arc<Identities> {
        self.identities.clone()
    }

    /// Its state.
    pub fn state(&self) -> CoreState {
        match self.state {
            State::Offline => CoreState::Offline,
            State::Suspended(_) => CoreState::Suspended,
            State::Running(_) => CoreState::Running,
            State::Crashed(..) => CoreState::Crashed,
            State::Attached(_) => CoreState::Attached,
            State::Detached => CoreState::Detached,
            State::Deleted => CoreState::Deleted,
        }
    }

    /// Who wants it running, in words.
    pub fn holders(&self) -> Vec<String> {
        self.holders.names()
    }

    /// Asks the table.
    fn admit(&self, verb: Verb) -> Result<(), RequestError> {
        let state = self.state();
        match admit(state, verb) {
            Admission::Accept => Ok(()),
            Admission::AlreadySo => Err(RequestError::AlreadySo {
                core: self.name.clone(),
                state,
            }),
            Admission::Refuse(why) => Err(RequestError::Refused {
                core: self.name.clone(),
                verb,
                state,
                why,
            }),
        }
    }

    fn engine_failed(&self, verb: Verb, source: EngineError) -> RequestError {
        RequestError::Engine {
            core: self.name.clone(),
            verb,
            source,
        }
    }

    fn stopwatch(&self, what: &'static str) -> Stopwatch {
        Stopwatch::start(what, &self.teller, self.incarnations)
    }

    /// Where what happens to the core is told.
    pub(super) fn set_teller(&mut self, teller: Teller) {
        self.teller = teller;
        let state = self.state();
        self.teller.tell_state(self.incarnations, state, Vec::new());
    }

    /// Tells those who watch.
    fn tell(&self, what: What, vdev: Option<usize>, detail: impl FnOnce(&Self) -> String) {
        self.teller
            .tell(self.incarnations, what, vdev, || detail(self));
    }

    /// The core is in another state from here on.
    fn enter(&mut self, state: State) {
        self.state = state;
        let state = self.state();
        let traces = match state {
            CoreState::Crashed => self.traces.counts().iter().map(|it| it.bytes).collect(),
            _ => Vec::new(),
        };
        self.teller.tell_state(self.incarnations, state, traces);
    }

    /// Tells of the endpoints that came and went.
    fn tell_news(&mut self) {
        for (index, vdev) in self.vdevs.iter_mut().enumerate() {
            for news in vdev.take_news() {
                let (what, announced) = match news {
                    News::Announced(announced) => (What::Announced, announced),
                    News::Withdrawn(announced) => (What::Withdrawn, announced),
                };
                self.teller.tell(self.incarnations, what, Some(index), || {
                    format!("{} {}", announced.name.escape_ascii(), announced.address)
                });
            }
        }
    }

    fn record(&mut self, stopwatch: Stopwatch) {
        let timeline = stopwatch.finish();
        debug!("{}: {timeline}", self.name);
        self.timelines.retain(|other| other.what != timeline.what);
        self.timelines.push(timeline);
    }

    /// `holder` wants the core running: boots it if it is offline, attaches it if it is detached.
    /// A crashed core is booted at once, and its crashes are forgiven; but not for a guest, which
    /// waits for what recovery decides: coming back would be a way around a hold. One that runs
    /// gets one holder more.
    ///
    /// # Errors
    /// [`RequestError::AlreadySo`] if it runs and is held by `holder`; [`RequestError::Refused`];
    /// [`RequestError::Boot`] or [`RequestError::Attach`], and then nobody holds it.
    pub fn start(&mut self, holder: Holder) -> Result<(), RequestError> {
        match self.admit(Verb::Start) {
            Err(RequestError::AlreadySo { .. }) if !self.holders.contains(&holder) => {
                info!("{}: held by {holder} as well", self.name);
            }
            refused @ Err(_) => return refused,
            Ok(()) if holder.is_guest() && self.state() == CoreState::Crashed => {
                info!("{}: {holder} waits for it", self.name);
            }
            Ok(()) => {
                if !holder.is_guest() {
                    self.history.forgive();
                }
                match self.state {
                    State::Detached => self.attach_core()?,
                    _ => self.boot_afresh()?,
                }
            }
        }
        self.holders.add(holder);
        Ok(())
    }

    /// `holder` does not want the core running any more. If it was the last, the core is stopped,
    /// or detached if it was attached. Does nothing if it did not hold the core.
    ///
    /// # Errors
    /// [`RequestError::Engine`] if the engine fails; the core then goes on unheld.
    pub fn release(&mut self, holder: &Holder) -> Result<(), RequestError> {
        if !self.holders.remove(holder) {
            return Ok(());
        }
        info!("{}: {holder} was the last to hold it", self.name);
        if matches!(self.state, State::Attached(_)) {
            self.detach_core()
        } else {
            self.stop_core()
        }
    }

    /// Stops the core, whatever it does and whoever holds it. It stays stopped until somebody
    /// starts it.
    ///
    /// # Errors
    /// [`RequestError::AlreadySo`] or [`RequestError::Refused`]; [`RequestError::Engine`] if the
    /// engine fails, and then its state is as it was, and no vdev is served.
    pub fn stop(&mut self) -> Result<(), RequestError> {
        self.admit(Verb::Stop)?;
        self.stop_core()
    }

    fn stop_core(&mut self) -> Result<(), RequestError> {
        let mut stopwatch = self.stopwatch("stop");
        let ended = match &self.state {
            State::Crashed(_, Next::Stuck, _) => self.end_after_crash(&mut stopwatch),
            // It has been stopped.
            State::Crashed(..) => Ok(()),
            _ => self.take_down(false, End::Stop, &mut stopwatch),
        };
        ended.map_err(|cause| self.engine_failed(Verb::Stop, cause))?;
        self.gone(State::Offline);
        stopwatch.lap("unprepare");
        self.record(stopwatch);
        info!("{}: stopped", self.name);
        Ok(())
    }

    /// Takes over a core that runs already, for the operator.
    ///
    /// # Errors
    /// As [`Machine::start`].
    pub fn attach_running(&mut self) -> Result<(), RequestError> {
        self.admit(Verb::Attach)?;
        self.attach_core()?;
        self.holders.add(Holder::Operator);
        Ok(())
    }

    /// Lets go of a core that was attached, whoever holds it. It runs on.
    ///
    /// # Errors
    /// As [`Machine::stop`].
    pub fn detach_running(&mut self) -> Result<(), RequestError> {
        self.admit(Verb::Detach)?;
        self.detach_core()
    }

    fn detach_core(&mut self) -> Result<(), RequestError> {
        if !self.engine.abilities().attaches {
            let cause = self.engine.cannot("let go of a core");
            return Err(self.engine_failed(Verb::Detach, cause));
        }
        let mut stopwatch = self.stopwatch("detach");
        self.take_down(false, End::Detach, &mut stopwatch)
            .map_err(|cause| self.engine_failed(Verb::Detach, cause))?;
        self.gone(State::Detached);
        stopwatch.lap("unprepare");
        self.record(stopwatch);
        info!("{}: detached, and runs on", self.name);
        Ok(())
    }

    /// Pauses a core that runs.
    ///
    /// # Errors
    /// As [`Machine::stop`].
    pub fn suspend(&mut self) -> Result<(), RequestError> {
        self.admit(Verb::Suspend)?;
        self.engine
            .suspend()
            .map_err(|cause| self.engine_failed(Verb::Suspend, cause))?;
        if let State::Running(incarnation) = std::mem::replace(&mut self.state, State::Offline) {
            self.enter(State::Suspended(incarnation));
        }
        info!("{}: suspended", self.name);
        Ok(())
    }

    /// Lets a suspended core go on.
    ///
    /// # Errors
    /// As [`Machine::stop`].
    pub fn resume(&mut self) -> Result<(), RequestError> {
        self.admit(Verb::Resume)?;
        self.engine
            .resume()
            .map_err(|cause| self.engine_failed(Verb::Resume, cause))?;
        if let State::Suspended(incarnation) = std::mem::replace(&mut self.state, State::Offline) {
            self.enter(State::Running(incarnation));
        }
        info!("{}: resumed", self.name);
        // Those whose guest arrived meanwhile.
        for index in 0..self.vdevs.len() {
            if self.vdevs[index].guest_is_up() && !self.vdevs[index].core_is_up() {
                self.start_vdev(index);
            }
        }
        Ok(())
    }

    /// Restarts a crashed core now, whatever the recovery policy says. Its crashes still count.
    ///
    /// # Errors
    /// [`RequestError::AlreadySo`] if it has not crashed; as [`Machine::start`].
    pub fn recover(&mut self) -> Result<(), RequestError> {
        self.admit(Verb::Recover)?;
        self.restart()
    }

    /// Enables recovery, and then recovers a crashed core at once, as Linux does; or disables it.
    ///
    /// # Errors
    /// As [`Machine::recover`]; the setting is changed all the same.
    pub fn set_recovery(&mut self, enabled: bool) -> Result<(), RequestError> {
        self.policies.recovery.enabled = enabled;
        info!(
            "{}: recovery is {}",
            self.name,
            if enabled { "enabled" } else { "disabled" }
        );
        self.tell(What::RecoveryPolicy, None, |_| {
            if enabled { "enabled" } else { "disabled" }.to_owned()
        });
        match &mut self.state {
            State::Crashed(..) if enabled => self.restart(),
            State::Crashed(_, next @ Next::Restart(_), _) => {
                *next = Next::Disabled;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Gives an offline core another firmware.
    ///
    /// # Errors
    /// [`RequestError::Refused`] in any other state; [`RequestError::Firmware`] if the firmware is
    /// no good, or would change what a VMM that is connected has been told. The core keeps the
    /// one it has.
    pub fn set_firmware(&mut self, snapshot: Snapshot) -> Result<(), RequestError> {
        self.admit(Verb::SetFirmware)?;
        let grants = self.firmware.grants.clone();
        let firmware = Firmware::new(snapshot, &mut *self.engine, self.vdevs.len(), grants)
            .and_then(|firmware| {
                self.identities.replace(&firmware)?;
                Ok(firmware)
            })
            .map_err(|cause| RequestError::Firmware {
                core: self.name.clone(),
                source: Box::new(cause),
            })?;
        info!("{}: firmware is now {}", self.name, firmware.snapshot);
        self.firmware = firmware;
        self.tell(What::Firmware, None, |machine| {
            machine.firmware.snapshot.to_string()
        });
        Ok(())
    }

    /// Sets whether and how coredumps are written.
    ///
    /// # Errors
    /// [`RequestError::NoDumps`] if the core was configured without a place for them.
    pub fn set_coredump(&mut self, mode: Mode) -> Result<(), RequestError> {
        if !self.coredumps.set_mode(mode) {
            return Err(RequestError::NoDumps {
                core: self.name.clone(),
            });
        }
        info!("{}: coredumps are {mode}", self.name);
        self.tell(What::CoredumpMode, None, |_| mode.to_string());
        Ok(())
    }

    /// Its coredumps that are kept, the oldest first.
    ///
    /// # Errors
    /// What the host says of the folder.
    pub fn coredumps(&self) -> io::Result<Vec<StoredDump>> {
        self.coredumps.list()
    }

    /// Has the firmware die, as if it had crashed.
    ///
    /// # Errors
    /// [`RequestError::Refused`] if there is none that runs.
    pub fn inject_crash(&mut self) -> Result<(), RequestError> {
        self.admit(Verb::ReportCrash).map_err(|cause| match cause {
            // For an engine's report there is nothing to do; an operator has asked for what cannot be.
            RequestError::AlreadySo { core, state } if state != CoreState::Crashed => {
                RequestError::Refused {
                    core,
                    verb: Verb::ReportCrash,
                    state,
                    why: "nothing runs that could crash; start it",
                }
            }
            cause => cause,
        })?;
        let mut detail = "an operator had it crash".to_owned();
        if let Some(pc) = self.engine.activity().pc {
            // As in what engines say, so that a report can name the function.
            let _ = write!(detail, ", pc {pc}");
        }
        self.crashed(Crash {
            kind: CrashKind::FatalError,
            detail,
        });
        self.recover_if_due();
        Ok(())
    }

    /// Where a VMM finds a vdev.
    pub(super) fn set_socket(&mut self, vdev: usize, path: PathBuf) {
        if let Some(socket) = self.sockets.get_mut(vdev) {
            *socket = Some(path);
        }
    }

    /// Whether VMMs are offered the name service of a vdev.
    pub(super) fn set_announce(&mut self, vdev: usize, announce: bool) {
        if let Some(known) = self.announces.get_mut(vdev) {
            *known = Some(announce);
        }
    }

    /// Removes the core: whatever its engine reports from here on is ignored, a core that we
    /// booted is stopped, one that we attached is let go of. Linux stops the latter too.
    pub fn delete(&mut self) {
        if self.admit(Verb::Delete).is_err() {
            return;
        }
        let ended = match self.state {
            State::Attached(_) => self.detach_core().or_else(|_| self.stop_core()),
            State::Suspended(_) | State::Running(_) | State::Crashed(..) => self.stop_core(),
            State::Offline | State::Detached | State::Deleted => Ok(()),
        };
        if let Err(cause) = ended {
            error!("{}", sentence(&cause));
        }
        self.enter(State::Deleted);
    }

    /// The process is about to end because of a defect. Returns how long the engine needs.
    pub(super) fn panic(&mut self) -> Duration {
        match self.state {
            State::Running(_) | State::Attached(_) => self.engine.panic(),
            _ => Duration::ZERO,
        }
    }

    /// The engine says that an incarnation died.
    pub fn report_crash(&mut self, incarnation: u32, crash: Crash) {
        if let Err(why) = self.admit(Verb::ReportCrash) {
            debug!("{}: \"{}\" is not news: {why}", self.name, crash.detail);
        } else if incarnation != self.incarnations {
            debug!(
                "{}: \"{}\" is of incarnation {incarnation}, which is over",
                self.name, crash.detail
            );
        } else {
            self.crashed(crash);
        }
    }

    /// What the firmware wrote into each trace since a number (0 where none is given), at most `max`
    /// bytes. All incarnations are in it.
    pub fn traces(&mut self, since: &[u64], max: usize) -> Vec<NamedTrace> {
        if let Some(Incarnation { plan, .. }) = self.state.alive() {
            self.traces.look_closely(&plan.traces, plan.carveouts.ram());
        }
        self.traces.since(since, max)
    }

    /// How long the steps of the last changes took, one timeline for each kind of change.
    pub fn timelines(&self) -> &[Timeline] {
        &self.timelines
    }

    /// The core's figures.
    pub fn status(&self) -> CoreStatus {
        let Activity { ran, pc } = self.engine.activity();
        let incarnation = self.state.incarnation();
        CoreStatus {
            name: self.name.clone(),
            state: self.state().to_string(),
            holders: self.holders.names(),
            engine: self.engine.kind().to_owned(),
            firmware: self.firmware.snapshot.name().to_owned(),
            firmware_sha256: self.firmware.snapshot.short_hash().to_owned(),
            incarnation: self.incarnations,
            uptime_microseconds: incarnation.map(|it| micros(it.since.elapsed())),
            ran_microseconds: ran.map(micros),
            incarnation_ran_microseconds: incarnation
                .zip(ran)
                .map(|(it, ran)| micros(ran.saturating_sub(it.ran_before))),
            pc: incarnation.and(pc).map(|pc| pc.0),
            memory_da: self.engine.ram().base().0,
            memory_bytes: self.engine.ram().len(),
            crashes: self.crashes,
            crashes_by_reason: CrashKind::ALL
                .iter()
                .zip(self.crashes_by_reason)
                .map(|(reason, count)| CrashCount {
                    reason: reason.to_string(),
                    count,
                })
                .collect(),
            recovery_time: self.recovery_time.clone(),
            // The core's lock is not needed to count it: see `Core::status`.
            relay_time: Histogram::default(),
            coredump_mode: self.coredumps.mode().to_string(),
            coredumps: self.coredumps.counts(),
            traces: self.traces.counts(),
            recovery: self.policies.recovery.enabled,
            next: self.next_in_words(),
            last_crash: self.last_crash.as_ref().map(|(incarnation, crash)| {
                format!(
                    "incarnation {incarnation}: {}: {}",
                    crash.kind, crash.detail
                )
            }),
            last_dump: self.last_dump.clone(),
            ended: self.ended.clone(),
            unknown_kicks: self.unknown_kicks,
            timelines: self.timelines.iter().map(Into::into).collect(),
            vdevs: self.vdevs_status(),
        }
    }

    fn vdevs_status(&self) -> Vec<VdevStatus> {
        let plans = self.state.incarnation().map(|it| &it.plan.vdevs[..]);
        let entries: Vec<_> = match plans {
            Some(plans) => plans.iter().map(VdevPlan::entry).collect(),
            None => self.firmware.vdevs().collect(),
        };
        let mut list = Vec::new();
        for (index, (vdev, entry)) in self.vdevs.iter().zip(entries).enumerate() {
            let plan = plans.and_then(|plans| plans.get(index));
            let places: Vec<_> = plan.iter().flat_map(|plan| plan.vrings()).collect();
            let vrings = entry.vrings.iter().enumerate().map(|(number, vring)| {
                let place = places.get(number);
                VringStatus {
                    notify_id: place.map(|(_, _, id)| id.0.into()),
                    da: place.map(|(da, _, _)| da.0),
                    size: vring.num,
                    align: vring.align,
                }
            });
            list.push(VdevStatus {
                device_id: entry.device_id,
                features: entry.dfeatures,
                offered_features: self.announces[index]
                    .map(|announce| offered(entry.dfeatures, announce)),
                config_bytes: entry.config.len(),
                socket: self.sockets[index]
                    .as_ref()
                    .map(|path| path.display().to_string()),
                vrings: vrings.collect(),
                ..VdevStatus::from(&vdev.snapshot())
            });
        }
        list
    }

    /// What is where in the core's memory.
    pub fn regions(&self) -> Vec<Region> {
        let ram = self.engine.ram();
        let mut regions = vec![Region::new("ram", "", ram.base(), ram.len())];
        match self.state.incarnation() {
            Some(incarnation) => regions.extend(incarnation.plan.regions(&self.firmware.image)),
            None => regions.extend(self.firmware.regions()),
        }
        regions
    }

    /// The core's resource table, entry by entry: what is in its memory while there is an
    /// incarnation, else what the firmware's file says.
    pub fn resources(&self) -> Vec<Resource> {
        match self.state.incarnation() {
            Some(Incarnation { plan, .. }) => {
                let (pristine, now) = plan.table.pristine_and_now();
                resources(pristine, &now)
            }
            None => {
                let section = self.firmware.image.table.as_ref();
                let bytes = section.map(|section| section.table.bytes());
                bytes.map_or_else(Vec::new, |bytes| resources(bytes, bytes))
            }
        }
    }
}

/// What a vdev is called in messages.
pub fn vdev_label(core: &str, index: usize) -> String {
    format!("{core}/vdev{index}")
}
