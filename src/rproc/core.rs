//! A core that runs: the machine, who drives it, and its own thread.
//!
//! What belongs here: bringing work to the machine (see [`drive`](super::drive)) and waiting for
//! what no event brings. What does not: what the work is.
//!
//! Whoever has an event drives: a vdev's worker that a guest kicked, the control socket, or the
//! core's own thread. That thread is for timers, for a firmware that is busy, and for a core
//! without a guest; it sleeps as long as none of these is the case.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use log::error;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vm_memory::GuestMemoryMmap;

use super::drive::Driven;
use super::machine::{Later, Machine, RequestError, vdev_label};
use super::status::CoreStatus;
use crate::engine::Engine;
use crate::firmware::VdevEntry;
use crate::rproc::machine::Firmware;
use crate::vdev::{GuestFace, GuestQueue, GuestState, RingFault, VIRTIO_RPMSG_F_NS};

/// An event: a guest's kick, a timer. What happened shows in the rings.
const WORK_EVENT: u32 = 1 << 0;
/// A job waits in the queue.
const WORK_JOB: u32 = 1 << 1;

type Job = Box<dyn FnOnce(&mut Machine) + Send>;

/// The core is not driven any more: a thread panicked while it drove it. That is a bug of rprocd.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the core is not driven any more after an internal error; see the log, restart rprocd")]
pub struct Gone;

/// Nanoseconds after [`Alarm::epoch`] that mean "never".
const NEVER: u64 = u64::MAX;

/// When the core wants to be driven without an event, and until when its thread sleeps.
struct Alarm {
    epoch: Instant,
    wanted: AtomicU64,
    /// Until when the thread sleeps; 0 while it is awake.
    sleeps_until: AtomicU64,
    bell: OwnedFd,
}

impl Alarm {
    fn new() -> io::Result<Self> {
        Ok(Self {
            epoch: Instant::now(),
            wanted: AtomicU64::new(NEVER),
            sleeps_until: AtomicU64::new(0),
            bell: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        })
    }

    fn now(&self) -> u64 {
        nanoseconds(self.epoch.elapsed())
    }

    fn ring(&self) {
        // Full means that it is ringing already.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// Called by whoever drives, one at a time.
    fn set(&self, later: Later) {
        let at = match later {
            Later::Nothing => NEVER,
            Later::At(at) => nanoseconds(at.saturating_duration_since(self.epoch)),
            Later::AtOnce => 0,
        };
        // Pairs with the two accesses in `sleep`: either we see how long the thread sleeps, or it
        // sees what is wanted.
        self.wanted.store(at, Ordering::SeqCst);
        if at < self.sleeps_until.load(Ordering::SeqCst) {
            self.ring();
        }
    }

    /// Sleeps until the alarm is due or the bell rings.
    fn sleep(&self) {
        let mut until;
        loop {
            until = self.wanted.load(Ordering::SeqCst);
            self.sleeps_until.store(until, Ordering::SeqCst);
            if self.wanted.load(Ordering::SeqCst) >= until {
                break;
            }
        }
        let timeout = match until {
            NEVER => None,
            until => {
                let left = Duration::from_nanos(until.saturating_sub(self.now()));
                Timespec::try_from(left).ok()
            }
        };
        if until == NEVER || timeout.is_some_and(|left| left.tv_sec != 0 || left.tv_nsec != 0) {
            let mut fds = [PollFd::new(&self.bell, PollFlags::IN)];
            // Interrupted or not: the caller looks at the core and comes back.
            let _ = poll(&mut fds, timeout.as_ref());
        }
        self.sleeps_until.store(0, Ordering::SeqCst);
        let mut count = [0u8; 8];
        let _ = rustix::io::read(&self.bell, &mut count);
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(NEVER - 1)
}

struct Shared {
    name: String,
    machine: Driven<Machine>,
    jobs: Mutex<VecDeque<Job>>,
    alarm: Alarm,
    ending: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Brings work. Returns when it is done or when another thread is at it.
    fn bring(&self, work: u32) {
        self.machine.drive(work, |machine, work| {
            // What was wanted is being done: the core's thread has nothing to wake up for.
            self.alarm.set(Later::Nothing);
            if work & WORK_JOB != 0 {
                loop {
                    let Some(job) = lock(&self.jobs).pop_front() else {
                        break;
                    };
                    job(machine);
                }
            }
            let later = machine.drive(|| self.machine.is_pending());
            self.alarm.set(later);
        });
    }

    /// Has `job` done by whoever drives the core, and waits for its result.
    fn ask<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Machine) -> R + Send + 'static,
    ) -> Result<R, Gone> {
        let (answer, wait) = mpsc::sync_channel(1);
        lock(&self.jobs).push_back(Box::new(move |machine| {
            let _ = answer.send(job(machine));
        }));
        self.bring(WORK_JOB);
        wait.recv().map_err(|_| Gone)
    }

    fn run(&self) {
        while !self.ending.load(Ordering::SeqCst) {
            self.alarm.sleep();
            self.bring(WORK_EVENT);
        }
    }
}

/// A core with a thread of its own. Dropping it stops the core.
pub struct Core {
    shared: Arc<Shared>,
    vdevs: Vec<VdevEntry>,
    thread: Option<JoinHandle<()>>,
}

impl Core {
    /// An offline core.
    ///
    /// # Errors
    /// What the host says when it has no descriptor or thread left.
    pub fn new(name: &str, engine: Box<dyn Engine>, firmware: Firmware) -> io::Result<Self> {
        let vdevs = firmware
            .image()
            .table
            .as_ref()
            .map_or_else(Vec::new, |table| table.table.vdevs().cloned().collect());
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            machine: Driven::new(Machine::new(name, engine, firmware)),
            jobs: Mutex::default(),
            alarm: Alarm::new()?,
            ending: AtomicBool::new(false),
        });
        let thread = {
            let shared = shared.clone();
            thread::Builder::new()
                .name(format!("core {name}"))
                .spawn(move || shared.run())?
        };
        Ok(Self {
            shared,
            vdevs,
            thread: Some(thread),
        })
    }

    /// The core's name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Boots the core.
    ///
    /// # Errors
    /// [`Gone`], or why not: see [`Machine::start`].
    pub fn start(&self) -> Result<Result<(), RequestError>, Gone> {
        self.shared.ask(Machine::start)
    }

    /// Stops the core.
    ///
    /// # Errors
    /// [`Gone`], or why not: see [`Machine::stop`].
    pub fn stop(&self) -> Result<Result<(), RequestError>, Gone> {
        self.shared.ask(Machine::stop)
    }

    /// The core's figures.
    ///
    /// # Errors
    /// [`Gone`].
    pub fn status(&self) -> Result<CoreStatus, Gone> {
        self.shared.ask(|machine| machine.status())
    }

    /// The text in the core's trace buffers.
    ///
    /// # Errors
    /// [`Gone`].
    pub fn trace(&self) -> Result<Vec<Vec<u8>>, Gone> {
        self.shared.ask(|machine| machine.trace())
    }

    /// The face of vdev `index` for a guest; `None` if the firmware has no such vdev. Without
    /// `announce` the guest is not offered the name service.
    pub fn face(&self, index: usize, announce: bool) -> Option<Arc<dyn GuestFace>> {
        let entry = self.vdevs.get(index)?;
        // Buffer sizes of the firmware's own (VIRTIO_RPMSG_F_BUFSZ) are not relayed, so of the
        // bits that rpmsg has, only the name service is passed on.
        let offered = if announce { VIRTIO_RPMSG_F_NS } else { 0 };
        Some(Arc::new(Face {
            shared: self.shared.clone(),
            label: vdev_label(&self.shared.name, index),
            vdev: index,
            features: u64::from(entry.dfeatures) & offered,
        }))
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        // Offline already, or gone: either way nothing runs.
        let _ = self.stop();
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
    label: String,
    vdev: usize,
    features: u64,
}

impl GuestFace for Face {
    fn label(&self) -> &str {
        &self.label
    }

    fn device_features(&self) -> u64 {
        self.features
    }

    fn attach(&self, index: usize, queue: GuestQueue) -> Option<Result<GuestState, RingFault>> {
        let vdev = self.vdev;
        self.shared
            .ask(move |machine| machine.attach(vdev, index, queue))
            .ok()
    }

    fn detach(&self, index: usize) -> Option<u16> {
        let vdev = self.vdev;
        self.shared
            .ask(move |machine| machine.detach(vdev, index))
            .ok()?
    }

    fn set_memory(&self, memory: Arc<GuestMemoryMmap>) {
        let vdev = self.vdev;
        let _ = self
            .shared
            .ask(move |machine| machine.set_memory(vdev, memory));
    }

    fn kicked(&self) {
        self.shared.bring(WORK_EVENT);
    }

    fn gone(&self) {
        let vdev = self.vdev;
        let _ = self.shared.ask(move |machine| machine.guest_gone(vdev));
    }

    fn read_config(&self, offset: u32, into: &mut [u8]) {
        let (vdev, len) = (self.vdev, into.len());
        let read = self.shared.ask(move |machine| {
            let mut bytes = vec![0; len];
            machine.read_config(vdev, offset, &mut bytes);
            bytes
        });
        if let Ok(bytes) = read {
            into.copy_from_slice(&bytes);
        }
    }

    fn write_config(&self, offset: u32, bytes: &[u8]) {
        let (vdev, bytes) = (self.vdev, bytes.to_vec());
        let _ = self
            .shared
            .ask(move |machine| machine.write_config(vdev, offset, &bytes));
    }
}
