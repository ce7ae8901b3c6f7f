//! The state of a core and everything that changes it.
//!
//! ```text
//!              start                              crash
//!   Offline ───────────────────► Running ◄──────────────────────► Crashed
//!      ▲ ▲                         │ │   restart, as recovery       │
//!      │ └── power off: the firm-  │ │   decides, or start: the     │
//!      │     ware ended its run ───┘ │   next incarnation           │
//!      │                             │ stop                         │ stop, or the
//!      └─────────────────────────────┴──────────────────────────────┘ restart failed
//! ```
//!
//! A crash is handled evidence first: the engine is stopped with its memory as it was, what is
//! wanted of it is taken, and only then is anything restarted. A restart that fails leaves an
//! offline core, which start and stop treat like any other (Linux leaves one that neither can
//! move).
//!
//! What belongs here: those transitions, and one turn of driving a running core. What does not:
//! threads and locks (see [`core`](super::core)), how an image is judged (see
//! [`boot`](super::boot)), whether and when a crashed core is restarted (see
//! [`recovery`](super::recovery)).
//!
//! The states own what exists in them: there is no table, no vring and no trace buffer without an
//! incarnation. The guests' sides of the vdevs outlive incarnations: a guest stays attached while
//! its core is down, and is told by name service which endpoints are gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{error, info, warn};
use thiserror::Error;
use vm_memory::GuestMemoryMmap;

use super::boot::{BootError, BootPlan, Clean};
use super::grants::Grants;
use super::recovery::{CrashHistory, Decision, RecoveryPolicy};
use super::status::{CoreStatus, VdevStatus};
use crate::engine::{Crash, Engine, Run, RunEnd};
use crate::firmware::{Image, ImageError, Snapshot};
use crate::vdev::{GuestQueue, GuestState, QUEUE_TO_GUEST, RingFault, Round, Vdev};

/// Instructions (or what the engine counts) that the firmware runs before others are looked at.
const BUDGET: u64 = 100_000;
/// Rounds of relay and run in one turn; then whoever waits for the core gets a chance.
const ROUNDS_PER_TURN: u32 = 64;
/// How many budgets a firmware has to notice that its vdev was reset.
const BUDGETS_TO_NOTICE_A_RESET: u32 = 16;

/// `VIRTIO_CONFIG_S_ACKNOWLEDGE` of virtio 1.2, section 2.1.
const STATUS_ACKNOWLEDGE: u8 = 1;
/// `VIRTIO_CONFIG_S_DRIVER`.
const STATUS_DRIVER: u8 = 2;
/// `VIRTIO_CONFIG_S_DRIVER_OK`.
const STATUS_DRIVER_OK: u8 = 4;
/// `VIRTIO_CONFIG_S_FAILED`.
const STATUS_FAILED: u8 = 0x80;

/// A firmware that has been read and judged.
pub struct Firmware {
    snapshot: Snapshot,
    image: Image,
    grants: Grants,
}

/// Why a firmware cannot be used on a core.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FirmwareError {
    /// The image is refused as it is.
    #[error("firmware {name} is refused")]
    Image {
        /// The file's name.
        name: String,
        /// What is wrong.
        source: Box<ImageError>,
    },
    /// The image does not go with this core.
    #[error("firmware {name} cannot be used on this core")]
    Core {
        /// The file's name.
        name: String,
        /// Why not.
        source: Box<BootError>,
    },
}

/// Why a core is not started or stopped.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RequestError {
    /// Start, and the core runs.
    #[error("core {core} is running already")]
    Running {
        /// The core's name.
        core: String,
    },
    /// Stop, and nothing runs.
    #[error("core {core} is offline already")]
    Offline {
        /// The core's name.
        core: String,
    },
    /// The boot failed; the core is offline.
    #[error("core {core} cannot be booted")]
    Boot {
        /// The core's name.
        core: String,
        /// Why not.
        source: Box<BootError>,
    },
}

impl Firmware {
    /// Judges a firmware for an engine, a number of configured vdevs and what it is granted.
    ///
    /// # Errors
    /// [`FirmwareError`]; nothing of the firmware has been used.
    pub fn new(
        snapshot: Snapshot,
        engine: &mut dyn Engine,
        configured: usize,
        grants: Grants,
    ) -> Result<Self, FirmwareError> {
        let name = snapshot.name().to_owned();
        let image = Image::parse(snapshot.bytes(), &engine.image_rules()).map_err(|cause| {
            FirmwareError::Image {
                name: name.clone(),
                source: Box::new(cause),
            }
        })?;
        // The plan is made again at each boot; here it only must be possible.
        BootPlan::new(&image, engine, configured, &grants).map_err(|cause| {
            FirmwareError::Core {
                name,
                source: Box::new(cause),
            }
        })?;
        Ok(Self {
            snapshot,
            image,
            grants,
        })
    }

    /// What the image says.
    pub fn image(&self) -> &Image {
        &self.image
    }
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
}

/// One boot of a core, and what it owns.
struct Incarnation {
    plan: BootPlan,
    since: Instant,
}

/// What comes after a crash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    Restart(Instant),
    Held { crashes: u32 },
    Disabled,
}

enum State {
    Offline,
    Running(Incarnation),
    Crashed(Incarnation, Next),
}

/// What a turn of driving leaves for later; the sooner, the smaller.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Later {
    /// Drive again at once: the firmware is busy.
    AtOnce,
    /// Drive again at that time, unless an event comes before.
    At(Instant),
    /// Nothing until an event comes.
    Nothing,
}

/// A core: its engine, its firmware, its state, its vdevs.
pub struct Machine {
    name: String,
    engine: Box<dyn Engine>,
    firmware: Firmware,
    state: State,
    vdevs: Vec<Vdev>,
    policies: Policies,
    history: CrashHistory,
    incarnations: u32,
    crashes: u32,
    /// In which incarnation, and what.
    last_crash: Option<(u32, Crash)>,
}

impl Machine {
    /// An offline core.
    pub fn new(
        name: &str,
        engine: Box<dyn Engine>,
        firmware: Firmware,
        policies: Policies,
    ) -> Self {
        let count = firmware
            .image
            .table
            .as_ref()
            .map_or(0, |table| table.table.vdevs().count());
        let vdevs = (0..count)
            .map(|index| Vdev::new(vdev_label(name, index)))
            .collect();
        Self {
            name: name.to_owned(),
            engine,
            firmware,
            state: State::Offline,
            vdevs,
            policies,
            history: CrashHistory::default(),
            incarnations: 0,
            crashes: 0,
            last_crash: None,
        }
    }

    fn state_name(&self) -> &'static str {
        // Linux's spelling, `drivers/remoteproc/remoteproc_sysfs.c`.
        match self.state {
            State::Offline => "offline",
            State::Running(_) => "running",
            State::Crashed(..) => "crashed",
        }
    }

    /// Boots the core. A crashed core is started again at once, and its crashes are forgiven.
    ///
    /// # Errors
    /// [`RequestError::Running`], or [`RequestError::Boot`] and then the core is offline.
    pub fn start(&mut self) -> Result<(), RequestError> {
        match self.state {
            State::Running(_) => {
                return Err(RequestError::Running {
                    core: self.name.clone(),
                });
            }
            State::Offline | State::Crashed(..) => {}
        }
        self.history.forgive();
        self.boot(Clean::All)
    }

    /// From any state but running to running; offline if that fails.
    fn boot(&mut self, clean: Clean) -> Result<(), RequestError> {
        self.state = State::Offline;
        let begun = Instant::now();
        let failed = |cause| RequestError::Boot {
            core: self.name.clone(),
            source: Box::new(cause),
        };
        let Firmware {
            snapshot,
            image,
            grants,
        } = &self.firmware;
        let plan =
            BootPlan::new(image, &mut *self.engine, self.vdevs.len(), grants).map_err(failed)?;
        let number = self.incarnations.wrapping_add(1);
        plan.carry_out(image, snapshot.bytes(), &mut *self.engine, number, clean)
            .map_err(failed)?;
        self.incarnations = number;
        info!(
            "{}: incarnation {number} boots firmware {} (sha256 {}) at {} on engine {} after {} us",
            self.name,
            snapshot.name(),
            snapshot.short_hash(),
            plan.boot,
            self.engine.kind(),
            begun.elapsed().as_micros(),
        );
        if number == 1 {
            plan.log(&self.name);
        }
        self.state = State::Running(Incarnation {
            plan,
            since: Instant::now(),
        });
        for index in 0..self.vdevs.len() {
            if self.vdevs[index].guest_is_up() {
                self.start_vdev(index);
            }
        }
        Ok(())
    }

    /// Stops the core, whatever it does. It stays stopped until somebody starts it.
    ///
    /// # Errors
    /// [`RequestError::Offline`] if there is nothing to stop.
    pub fn stop(&mut self) -> Result<(), RequestError> {
        if matches!(self.state, State::Offline) {
            return Err(RequestError::Offline {
                core: self.name.clone(),
            });
        }
        self.down();
        self.state = State::Offline;
        info!("{}: stopped", self.name);
        Ok(())
    }

    /// Nothing of the incarnation runs after this, no vdev has rings on the core's side, and the
    /// guests know. The core's memory is as the incarnation left it.
    fn down(&mut self) {
        self.engine.stop();
        let State::Running(Incarnation { plan, .. }) = &self.state else {
            return;
        };
        for vdev in &mut self.vdevs {
            vdev.core_gone(plan.carveouts.ram());
        }
    }

    /// Drives the core: relays, lets the firmware run, relays again, until nothing moves any more
    /// or others should get a chance. `interrupted` says whether a firmware that is busy should be
    /// left for later: somebody waits for the core, or the caller has something else to do.
    pub fn drive(&mut self, interrupted: impl Fn() -> bool) -> Later {
        self.recover_if_due();
        for vdev in &mut self.vdevs {
            vdev.relay_farewells();
        }
        for _ in 0..ROUNDS_PER_TURN {
            let plan = match &mut self.state {
                State::Running(Incarnation { plan, .. }) => plan,
                State::Crashed(_, Next::Restart(at)) => return Later::At(*at),
                State::Offline | State::Crashed(..) => return Later::Nothing,
            };
            let ram = plan.carveouts.ram().clone();
            let mut progress = false;
            let mut conclude = |round: Round, index: usize, engine: &mut dyn Engine| {
                progress |= round.progress;
                if round.failed {
                    let vdev = &plan.vdevs[index];
                    plan.table
                        .write_u8(vdev.entry().status_offset(), STATUS_FAILED);
                    engine.kick(vdev.ids()[QUEUE_TO_GUEST]);
                } else if let Some(id) = round.kick {
                    engine.kick(id);
                }
            };
            for (index, vdev) in self.vdevs.iter_mut().enumerate() {
                conclude(vdev.relay_to_core(&ram), index, &mut *self.engine);
            }
            let Run { kicks: _, end } = self.engine.run(BUDGET);
            // Whether or not it kicked: the rings say what there is, a kick is only a hint.
            for (index, vdev) in self.vdevs.iter_mut().enumerate() {
                conclude(vdev.relay_to_guest(&ram), index, &mut *self.engine);
            }
            // A firmware may give buffers back and have nothing to say.
            progress |= self.vdevs.iter_mut().any(|vdev| vdev.can_go_on(&ram));
            match end {
                RunEnd::Waiting { until } if !progress => {
                    return until.map_or(Later::Nothing, Later::At);
                }
                RunEnd::Waiting { .. } => {}
                RunEnd::BudgetSpent => {
                    if interrupted() {
                        return Later::AtOnce;
                    }
                }
                RunEnd::PoweredOff => {
                    info!("{}: the firmware ended its run (power off)", self.name);
                    self.down();
                    self.state = State::Offline;
                    return Later::Nothing;
                }
                RunEnd::Crashed(crash) => {
                    self.crashed(crash);
                    self.recover_if_due();
                }
            }
        }
        Later::AtOnce
    }

    fn crashed(&mut self, crash: Crash) {
        self.crashes += 1;
        error!(
            "{}: crash #{} in incarnation {}: type {}: {}",
            self.name, self.crashes, self.incarnations, crash.kind, crash.detail
        );
        self.down();
        self.last_crash = Some((self.incarnations, crash));
        let State::Running(incarnation) = std::mem::replace(&mut self.state, State::Offline) else {
            return;
        };
        let now = Instant::now();
        let ran_for = now.saturating_duration_since(incarnation.since);
        let next = match self.history.crashed(&self.policies.recovery, now, ran_for) {
            Decision::RestartAfter(wait) => Next::Restart(now + wait),
            Decision::Hold { crashes } => Next::Held { crashes },
            Decision::Stay => Next::Disabled,
        };
        self.state = State::Crashed(incarnation, next);
        if let Some(next) = self.next_in_words() {
            info!("{}: {next}", self.name);
        }
    }

    /// What comes after a crash, while the core is crashed.
    fn next_in_words(&self) -> Option<String> {
        let State::Crashed(_, next) = &self.state else {
            return None;
        };
        Some(match next {
            Next::Restart(at) => {
                let left = at.saturating_duration_since(Instant::now());
                if left == Duration::ZERO {
                    "restarting".to_owned()
                } else {
                    format!("restart in {:.1} s", left.as_secs_f64())
                }
            }
            Next::Held { crashes } => {
                let window = self.policies.recovery.hold_window.as_secs();
                format!(
                    "held after {crashes} crashes within {window} s; start it when it is mended"
                )
            }
            Next::Disabled => "recovery is disabled; start it when it is mended".to_owned(),
        })
    }

    /// Starts a crashed core again when its time has come.
    fn recover_if_due(&mut self) {
        let State::Crashed(_, Next::Restart(at)) = self.state else {
            return;
        };
        if at > Instant::now() {
            return;
        }
        // Linux keeps the carveouts' content over a recovery, and so do we: firmware may leave
        // itself notes there.
        if let Err(cause) = self.boot(Clean::Bss) {
            error!(
                "{}: recovery failed, the core is offline: {}",
                self.name,
                crate::report::sentence(&cause)
            );
        }
    }

    /// The guest that a vdev had is gone.
    fn departed(&mut self, vdev: usize) {
        let was_served = self.vdevs[vdev].core_is_up();
        match self.policies.departures.get(vdev) {
            Some(Departure::RestartCore) if was_served => {
                // The next guest hears nothing of what this one was told.
                self.vdevs[vdev].reset();
                info!(
                    "{}: the guest is gone, the core is restarted",
                    self.vdevs[vdev].label()
                );
                self.down();
                if let Err(cause) = self.boot(Clean::All) {
                    error!("{}: {}", self.name, crate::report::sentence(&cause));
                }
            }
            _ => self.reset_vdev(vdev),
        }
    }

    /// A guest gives a queue of a vdev.
    ///
    /// # Errors
    /// A [`RingFault`] if the queue's ring cannot be used.
    pub fn attach(
        &mut self,
        vdev: usize,
        index: usize,
        queue: GuestQueue,
    ) -> Result<GuestState, RingFault> {
        let state = self.vdevs[vdev].attach(index, queue)?;
        match state {
            GuestState::Incomplete => {}
            GuestState::Fresh => {
                self.departed(vdev);
                if !self.vdevs[vdev].core_is_up() {
                    self.start_vdev(vdev);
                }
            }
            GuestState::Resumed if self.vdevs[vdev].core_is_up() => {}
            GuestState::Resumed => self.start_vdev(vdev),
        }
        Ok(state)
    }

    /// A guest takes a queue of a vdev back.
    pub fn detach(&mut self, vdev: usize, index: usize) -> Option<u16> {
        self.vdevs[vdev].detach(index)
    }

    /// The guest of a vdev is gone, and its queues with it.
    pub fn guest_gone(&mut self, vdev: usize) {
        for index in 0..crate::vdev::QUEUES {
            self.vdevs[vdev].detach(index);
        }
        self.departed(vdev);
    }

    /// The memory of a vdev's guest was laid out anew.
    pub fn set_memory(&mut self, vdev: usize, memory: Arc<GuestMemoryMmap>) {
        self.vdevs[vdev].set_memory(memory);
    }

    /// Reads a vdev's configuration space, from the core if it runs; zeroes past its end.
    pub fn read_config(&self, vdev: usize, offset: u32, into: &mut [u8]) {
        into.fill(0);
        let Some((config, at)) = self.config_span(vdev, offset, into.len()) else {
            return;
        };
        let into = &mut into[..config.len()];
        match &self.state {
            State::Running(incarnation) => incarnation.plan.table.read(at, into),
            State::Offline | State::Crashed(..) => into.copy_from_slice(config),
        }
    }

    /// Writes a vdev's configuration space, if the core runs; what lies past its end is ignored.
    pub fn write_config(&mut self, vdev: usize, offset: u32, bytes: &[u8]) {
        let Some((config, at)) = self.config_span(vdev, offset, bytes.len()) else {
            return;
        };
        let len = config.len();
        if let State::Running(incarnation) = &mut self.state {
            incarnation.plan.table.write(at, &bytes[..len]);
        }
    }

    /// The part of a vdev's configuration space that an access touches: its bytes in the image,
    /// and their offset in the table.
    fn config_span(&self, vdev: usize, offset: u32, len: usize) -> Option<(&[u8], usize)> {
        let entry = self
            .firmware
            .image
            .table
            .as_ref()?
            .table
            .vdevs()
            .nth(vdev)?;
        let rest = entry.config.get(offset as usize..)?;
        let part = &rest[..len.min(rest.len())];
        (!part.is_empty()).then(|| (part, entry.config_offset() + offset as usize))
    }

    /// Tells the firmware that the driver of a vdev is gone: status 0, and a kick so that it
    /// looks. Linux writes the same and leaves the firmware to find out by itself.
    fn reset_vdev(&mut self, index: usize) {
        let vdev = &mut self.vdevs[index];
        let was_up = vdev.core_is_up();
        vdev.reset();
        if !was_up {
            return;
        }
        let State::Running(incarnation) = &mut self.state else {
            return;
        };
        let plan = &incarnation.plan.vdevs[index];
        incarnation
            .plan
            .table
            .write_u8(plan.entry().status_offset(), 0);
        self.engine.kick(plan.ids()[QUEUE_TO_GUEST]);
        info!("{}: reset", vdev.label());
        // Whether or not it looks in time, the rings are made anew at the next start, and a
        // firmware that knows the rules finds its used index gone.
        for _ in 0..BUDGETS_TO_NOTICE_A_RESET {
            match self.engine.run(BUDGET).end {
                RunEnd::BudgetSpent => {}
                // A crash or a power off is still there when the core is driven next.
                RunEnd::Waiting { .. } | RunEnd::PoweredOff | RunEnd::Crashed(_) => return,
            }
        }
        warn!(
            "{}: the firmware is busy and has not seen the reset yet",
            vdev.label()
        );
    }

    /// Makes the core's rings and tells the firmware that a driver is there, in Linux's order
    /// (`rproc_virtio.c`): rings, features, addresses, then the status, then a kick of vring 0.
    fn start_vdev(&mut self, index: usize) {
        let State::Running(Incarnation { plan, .. }) = &mut self.state else {
            return;
        };
        let vdev = &mut self.vdevs[index];
        let BootPlan {
            carveouts,
            table,
            vdevs,
            ..
        } = plan;
        let plan = &vdevs[index];
        let entry = plan.entry();
        let started = plan
            .make_rings(carveouts)
            .and_then(|rings| vdev.start(rings, plan.ids(), carveouts.ram()));
        if let Err(cause) = started {
            error!("{}: cannot be started: {cause}", vdev.label());
            table.write_u8(entry.status_offset(), STATUS_FAILED);
            return;
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the table has the low 32 bits"
        )]
        let features = vdev.features() as u32 & entry.dfeatures & DEVICE_FEATURES;
        table.write_u8(entry.status_offset(), STATUS_ACKNOWLEDGE);
        table.write_u8(entry.status_offset(), STATUS_ACKNOWLEDGE | STATUS_DRIVER);
        table.write_u32(entry.gfeatures_offset(), features);
        for (offset, da) in plan.vring_places() {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "a core's memory ends in 4 GiB"
            )]
            table.write_u32(offset, da.0 as u32);
        }
        table.write_u8(
            entry.status_offset(),
            STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_DRIVER_OK,
        );
        self.engine.kick(plan.ids()[QUEUE_TO_GUEST]);
        info!("{}: driver ok (features {features:#x})", vdev.label());
    }

    /// The text in the trace buffers, in table order: the bytes up to the first NUL, as Linux
    /// shows them. Empty when the core is offline.
    pub fn trace(&self) -> Vec<Vec<u8>> {
        let (State::Running(incarnation) | State::Crashed(incarnation, _)) = &self.state else {
            return Vec::new();
        };
        let plan = &incarnation.plan;
        let read = |da, len: u64| {
            let memory = plan.carveouts.slice(da, len).ok()?;
            let mut text = vec![0; memory.len()];
            memory.copy_to(&mut text);
            text.truncate(
                text.iter()
                    .position(|byte| *byte == 0)
                    .unwrap_or(text.len()),
            );
            Some(text)
        };
        plan.traces
            .iter()
            .map(|trace| read(trace.da, trace.len).unwrap_or_default())
            .collect()
    }

    /// The core's figures.
    pub fn status(&self) -> CoreStatus {
        CoreStatus {
            name: self.name.clone(),
            state: self.state_name().to_owned(),
            engine: self.engine.kind().to_owned(),
            firmware: self.firmware.snapshot.name().to_owned(),
            firmware_sha256: self.firmware.snapshot.short_hash().to_owned(),
            incarnation: self.incarnations,
            crashes: self.crashes,
            next: self.next_in_words(),
            last_crash: self.last_crash.as_ref().map(|(incarnation, crash)| {
                format!(
                    "incarnation {incarnation}: {}: {}",
                    crash.kind, crash.detail
                )
            }),
            vdevs: self
                .vdevs
                .iter()
                .map(|vdev| VdevStatus::from(&vdev.snapshot()))
                .collect(),
        }
    }
}

/// The device's own feature bits, of the 32 in the table (virtio 1.2, section 2.2): the others
/// belong to ring and transport.
const DEVICE_FEATURES: u32 = 0x00ff_ffff;

/// What a vdev is called in messages.
pub fn vdev_label(core: &str, index: usize) -> String {
    format!("{core}/vdev{index}")
}
