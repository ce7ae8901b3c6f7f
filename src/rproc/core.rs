//! A core that runs: the machine, who drives it, and its own thread.
//!
//! What belongs here: bringing work to the machine (see [`drive`](super::drive)) and waiting for
//! what no event brings. What does not: what the work is.
//!
//! Whoever has an event drives: a vdev's worker that a guest kicked, the control socket, or the
//! core's own thread. That thread is for timers, for a firmware that is busy, and for a core
//! without a guest; it sleeps as long as none of these is the case.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use log::error;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vm_memory::GuestMemoryMmap;

use super::check::CheckOptions;
use super::drive::Driven;
use super::events::{EventLog, Teller};
use super::evidence::Coredumps;
use super::firmware::{Firmware, Identities};
use super::histogram::RelayTimes;
use super::holders::Holder;
use super::machine::{Driver, Later, Linger, Machine, Policies, RequestError, vdev_label};
use super::pulse::Pulse;
use super::resources::{Region, Resource};
use super::status::CoreStatus;
use super::subdevice::Subdevice;
use super::trace::NamedTrace;
use crate::coredump::{Mode, StoredDump};
use crate::engine::{Engine, Report, Reporter};
use crate::firmware::Snapshot;
use crate::vdev::{self, GuestFace, GuestQueue, GuestState, RingFault};

/// An event: a guest's kick, a timer. What happened shows in the rings.
const WORK_EVENT: u32 = 1 << 0;
/// A job waits in the queue.
const WORK_JOB: u32 = 1 << 1;

/// How long a process that is ending because of a defect waits for an engine at most.
const PANIC_PATIENCE: Duration = Duration::from_secs(1);

/// How long a thread that has something else to do goes on driving while there is always more.
const PATIENCE: Duration = Duration::from_millis(10);

/// Which thread brings work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum By {
    /// The core's own.
    Own,
    /// The one that hears a guest's kicks.
    Guest,
    /// One that asks for something and wants its answer.
    Asker,
}

type Job = Box<dyn FnOnce(&mut Machine) + Send>;

/// When the core wants to be driven without an event, and until when its thread sleeps.
struct Alarm {
    times: Mutex<Times>,
    bell: OwnedFd,
}

struct Times {
    wanted: Later,
    /// What was wanted when the thread went to sleep; `None` while it is awake.
    asleep: Option<Later>,
}

impl Alarm {
    fn new() -> io::Result<Self> {
        Ok(Self {
            times: Mutex::new(Times {
                wanted: Later::Nothing,
                asleep: None,
            }),
            bell: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        })
    }

    fn ring(&self) {
        // Full means that it is ringing already.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// Called by whoever drives.
    fn set(&self, wanted: Later) {
        let mut times = lock(&self.times);
        times.wanted = wanted;
        let oversleeps = times.asleep.is_some_and(|until| wanted < until);
        drop(times);
        if oversleeps {
            self.ring();
        }
    }

    /// Sleeps until the alarm is due or the bell rings.
    fn sleep(&self) {
        let until = {
            let mut times = lock(&self.times);
            times.asleep = Some(times.wanted);
            times.wanted
        };
        let left = match until {
            Later::AtOnce => Some(Duration::ZERO),
            Later::At(at) => Some(at.saturating_duration_since(Instant::now())),
            Later::Nothing => None,
        };
        if left != Some(Duration::ZERO) {
            let mut fds = [PollFd::new(&self.bell, PollFlags::IN)];
            // Interrupted or not: the caller looks at the core and comes back. A time too far
            // away for the host's clock is never.
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            let _ = poll(&mut fds, timeout.as_ref());
        }
        lock(&self.times).asleep = None;
        let mut count = [0u8; 8];
        let _ = rustix::io::read(&self.bell, &mut count);
    }
}

struct Shared {
    name: String,
    machine: Driven<Machine>,
    /// A bit for each vdev whose guest has kicked.
    kicked: Arc<AtomicU32>,
    linger: Linger,
    jobs: Mutex<VecDeque<Job>>,
    alarm: Alarm,
    ending: AtomicBool,
    relay_times: RelayTimes,
    pulse: Arc<Pulse>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Brings work. Returns when it is done, when another thread is at it, or when it has taken
    /// more than the thread has time for: then the core's own thread goes on with it.
    fn bring(&self, work: u32, by: By) {
        let begun = Instant::now();
        let overdue = || by != By::Own && begun.elapsed() > PATIENCE;
        let pending = || self.machine.is_pending();
        // Only what a guest waits for is timed, and once a kick.
        let timed = Cell::new(by == By::Guest);
        let relayed = || {
            if timed.take() {
                self.relay_times.count(begun.elapsed());
            }
        };
        let driver = Driver {
            own: by == By::Own,
            lingers: by != By::Asker,
            pending: &pending,
            overdue: &overdue,
            relayed: &relayed,
        };
        // In busy mode the core's own thread is to have it, and nobody else for longer than needed.
        let goes_on = by == By::Own || self.linger != Linger::Always;
        let turn = |machine: &mut Machine, work| {
            let _driving = self.pulse.begin();
            // What was wanted is being done: the core's thread has nothing to wake up for.
            self.alarm.set(Later::Nothing);
            if work & WORK_JOB != 0 {
                loop {
                    let Some(job) = lock(&self.jobs).pop_front() else {
                        break;
                    };
                    job(machine);
                    machine.wake();
                }
            }
            let later = loop {
                let later = machine.drive(&driver);
                self.pulse.beat();
                let again = later == Later::AtOnce && goes_on && !pending() && !overdue();
                if !again || self.ending.load(Ordering::Relaxed) {
                    break later;
                }
            };
            if pending() {
                if overdue() {
                    self.alarm.set(Later::AtOnce);
                    return ControlFlow::Break(());
                }
                // Another turn follows.
                return ControlFlow::Continue(());
            }
            self.alarm.set(later);
            ControlFlow::Continue(())
        };
        self.machine.drive(work, |machine, work| {
            let ended = catch_unwind(AssertUnwindSafe(|| turn(machine, work)));
            ended.unwrap_or_else(|defect| {
                // The state is in doubt and the process ends here; only the engine's hardware
                // may need a word. It gets one chance.
                let wanted = catch_unwind(AssertUnwindSafe(|| machine.panic()));
                thread::sleep(wanted.unwrap_or_default().min(PANIC_PATIENCE));
                resume_unwind(defect)
            })
        });
    }

    /// Takes what an engine reports, from any thread, and leaves it to the core's own.
    fn take(&self, report: Report) {
        if let Report::Crash { incarnation, crash } = report {
            lock(&self.jobs).push_back(Box::new(move |machine| {
                machine.report_crash(incarnation, crash);
            }));
        }
        // For whoever drives, and for the core's thread if nobody does.
        self.machine.leave(WORK_EVENT | WORK_JOB);
        self.alarm.ring();
    }

    /// Has `job` done by whoever drives the core, and waits for its result.
    fn ask<R: Send + 'static>(&self, job: impl FnOnce(&mut Machine) -> R + Send + 'static) -> R {
        let (answer, wait) = mpsc::sync_channel(1);
        lock(&self.jobs).push_back(Box::new(move |machine| {
            let _ = answer.send(job(machine));
        }));
        self.bring(WORK_JOB, By::Asker);
        // Every job is done: whoever drives empties the queue, or the process is aborted.
        wait.recv().expect("jobs are not thrown away")
    }

    fn run(&self) {
        while !self.ending.load(Ordering::SeqCst) {
            self.alarm.sleep();
            // An engine's report is a job that nobody else drives for.
            self.bring(WORK_EVENT | WORK_JOB, By::Own);
        }
    }
}

/// A core with a thread of its own. Dropping it stops the core; one that was attached is let go of,
/// and runs on.
pub struct Core {
    shared: Arc<Shared>,
    identities: Arc<Identities>,
    trace_looks: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Core {
    /// A core that is offline; or detached, if the engine says that it runs already.
    ///
    /// # Errors
    /// What the host says when it has no descriptor or thread left.
    pub fn new(
        name: &str,
        engine: Box<dyn Engine>,
        firmware: Firmware,
        policies: Policies,
        coredumps: Coredumps,
    ) -> io::Result<Self> {
        let linger = policies.linger;
        let machine = Machine::new(name, engine, firmware, policies, coredumps);
        let identities = machine.identities();
        let kicked = machine.kicked();
        let trace_looks = machine.trace_looks();
        let pulse = machine.pulse();
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            machine: Driven::new(machine),
            kicked,
            linger,
            jobs: Mutex::default(),
            alarm: Alarm::new()?,
            ending: AtomicBool::new(false),
            relay_times: RelayTimes::default(),
            pulse,
        });
        let reporter = {
            let shared = Arc::downgrade(&shared);
            Reporter::new(move |report| {
                if let Some(shared) = shared.upgrade() {
                    shared.take(report);
                }
            })
        };
        shared.ask(move |machine| machine.set_reporter(reporter));
        let thread = {
            let shared = shared.clone();
            thread::Builder::new()
                .name(format!("core {name}"))
                .spawn(move || shared.run())?
        };
        Ok(Self {
            shared,
            identities,
            trace_looks,
            thread: Some(thread),
        })
    }

    /// The core's name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// `holder` wants the core running.
    ///
    /// # Errors
    /// Why not: see [`Machine::start`].
    pub fn start(&self, holder: Holder) -> Result<(), RequestError> {
        self.shared.ask(|machine| machine.start(holder))
    }

    /// `holder` does not want the core running any more.
    ///
    /// # Errors
    /// See [`Machine::release`].
    pub fn release(&self, holder: Holder) -> Result<(), RequestError> {
        self.shared.ask(move |machine| machine.release(&holder))
    }

    /// Stops the core.
    ///
    /// # Errors
    /// Why not: see [`Machine::stop`].
    pub fn stop(&self) -> Result<(), RequestError> {
        self.shared.ask(Machine::stop)
    }

    /// Takes over a core that runs already.
    ///
    /// # Errors
    /// Why not: see [`Machine::attach_running`].
    pub fn attach(&self) -> Result<(), RequestError> {
        self.shared.ask(Machine::attach_running)
    }

    /// Lets go of a core that was attached.
    ///
    /// # Errors
    /// Why not: see [`Machine::detach_running`].
    pub fn detach(&self) -> Result<(), RequestError> {
        self.shared.ask(Machine::detach_running)
    }

    /// Pauses the core.
    ///
    /// # Errors
    /// Why not: see [`Machine::suspend`].
    pub fn suspend(&self) -> Result<(), RequestError> {
        self.shared.ask(Machine::suspend)
    }

    /// Lets a suspended core go on.
    ///
    /// # Errors
    /// Why not: see [`Machine::resume`].
    pub fn resume(&self) -> Result<(), RequestError> {
        self.shared.ask(Machine::resume)
    }

    /// Restarts a crashed core now.
    ///
    /// # Errors
    /// Why not: see [`Machine::recover`].
    pub fn recover(&self) -> Result<(), RequestError> {
        self.shared.ask(Machine::recover)
    }

    /// Enables or disables recovery.
    ///
    /// # Errors
    /// See [`Machine::set_recovery`].
    pub fn set_recovery(&self, enabled: bool) -> Result<(), RequestError> {
        self.shared
            .ask(move |machine| machine.set_recovery(enabled))
    }

    /// Gives an offline core another firmware.
    ///
    /// # Errors
    /// Why not: see [`Machine::set_firmware`].
    pub fn set_firmware(&self, snapshot: Snapshot) -> Result<(), RequestError> {
        self.shared.ask(|machine| machine.set_firmware(snapshot))
    }

    /// Adds something that goes up and down with the core.
    pub fn add_subdevice(&self, subdevice: Box<dyn Subdevice>) {
        self.shared.ask(|machine| machine.add_subdevice(subdevice));
    }

    /// Has what happens to the core told in `log` from now on.
    pub fn tell(&self, log: Arc<EventLog>) {
        let teller = Teller::new(log, &self.shared.name);
        self.shared.ask(|machine| machine.set_teller(teller));
    }

    /// Says where a VMM finds a vdev, for those who ask.
    pub fn set_socket(&self, vdev: usize, path: PathBuf) {
        self.shared
            .ask(move |machine| machine.set_socket(vdev, path));
    }

    /// Sets whether and how coredumps are written.
    ///
    /// # Errors
    /// See [`Machine::set_coredump`].
    pub fn set_coredump(&self, mode: Mode) -> Result<(), RequestError> {
        self.shared.ask(move |machine| machine.set_coredump(mode))
    }

    /// The coredumps that are kept, the oldest first.
    ///
    /// # Errors
    /// What the host says of the folder.
    pub fn coredumps(&self) -> io::Result<Vec<StoredDump>> {
        self.shared.ask(|machine| machine.coredumps())
    }

    /// Has the firmware die.
    ///
    /// # Errors
    /// Why not: see [`Machine::inject_crash`].
    pub fn inject_crash(&self) -> Result<(), RequestError> {
        self.shared.ask(Machine::inject_crash)
    }

    /// Which firmware it would take; see [`check`](super::check()).
    pub fn check_options(&self) -> CheckOptions {
        self.shared.ask(|machine| machine.check_options())
    }

    /// A number that is another one the next time, unless the core has been driven all the while
    /// and nothing has come of it; `None` while nobody drives it. Asking waits for nobody.
    pub fn pulse(&self) -> Option<u64> {
        self.shared.pulse.read()
    }

    /// How often something new was found in a trace buffer. Asking waits for nobody.
    pub fn looks_with_text(&self) -> u64 {
        self.trace_looks.load(Ordering::Relaxed)
    }

    /// What is where in the core's memory.
    pub fn regions(&self) -> Vec<Region> {
        self.shared.ask(|machine| machine.regions())
    }

    /// The core's resource table.
    pub fn resources(&self) -> Vec<Resource> {
        self.shared.ask(|machine| machine.resources())
    }

    /// The core's figures.
    pub fn status(&self) -> CoreStatus {
        CoreStatus {
            relay_time: self.shared.relay_times.histogram(),
            ..self.shared.ask(|machine| machine.status())
        }
    }

    /// What was written into the core's traces; see [`Machine::traces`].
    pub fn traces(&self, since: Vec<u64>, max: usize) -> Vec<NamedTrace> {
        self.shared.ask(move |machine| machine.traces(&since, max))
    }

    /// The face of vdev `index` for a guest; `None` if the firmware has no such vdev. Without
    /// `announce` the guest is not offered the name service.
    pub fn face(&self, index: usize, announce: bool) -> Option<Arc<dyn GuestFace>> {
        (index < self.identities.len()).then(|| {
            self.shared
                .ask(move |machine| machine.set_announce(index, announce));
            let face = Face {
                shared: self.shared.clone(),
                identities: self.identities.clone(),
                label: vdev_label(&self.shared.name, index),
                vdev: index,
                announce,
            };
            Arc::new(face) as Arc<dyn GuestFace>
        })
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.shared.ask(Machine::delete);
        self.shared.ending.store(true, Ordering::SeqCst);
        self.shared.alarm.ring();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("{}: the core's thread has panicked", self.shared.name);
        }
    }
}

/// One vdev of a core, as a guest's connection sees it.
struct Face {
    shared: Arc<Shared>,
    identities: Arc<Identities>,
    label: String,
    vdev: usize,
    announce: bool,
}

impl GuestFace for Face {
    fn label(&self) -> &str {
        &self.label
    }

    fn device_features(&self) -> u64 {
        vdev::offered(self.identities.tell(self.vdev), self.announce)
    }

    fn attach(&self, index: usize, queue: GuestQueue) -> Result<GuestState, RingFault> {
        let vdev = self.vdev;
        self.shared
            .ask(move |machine| machine.attach(vdev, index, queue))
    }

    fn detach(&self, index: usize) -> Option<u16> {
        let vdev = self.vdev;
        self.shared.ask(move |machine| machine.detach(vdev, index))
    }

    fn set_memory(&self, memory: Arc<GuestMemoryMmap>) {
        let vdev = self.vdev;
        self.shared
            .ask(move |machine| machine.set_memory(vdev, memory));
    }

    fn kicked(&self) {
        self.shared.kicked.fetch_or(
            1u32.checked_shl(self.vdev as u32).unwrap_or(0),
            Ordering::Release,
        );
        self.shared.bring(WORK_EVENT, By::Guest);
    }

    fn gone(&self) {
        let vdev = self.vdev;
        self.identities.forget(vdev);
        self.shared.ask(move |machine| machine.guest_gone(vdev));
    }

    fn read_config(&self, offset: u32, into: &mut [u8]) {
        let (vdev, len) = (self.vdev, into.len());
        let read = self.shared.ask(move |machine| {
            let mut bytes = vec![0; len];
            machine.read_config(vdev, offset, &mut bytes);
            bytes
        });
        into.copy_from_slice(&read);
    }

    fn write_config(&self, offset: u32, bytes: &[u8]) {
        let (vdev, bytes) = (self.vdev, bytes.to_vec());
        self.shared
            .ask(move |machine| machine.write_config(vdev, offset, &bytes));
    }
}
