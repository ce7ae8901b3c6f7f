//! A vring as vhost-user-backend sees it, guarded.
//!
//! The crate's own vring is used inside; this wrapper puts right what a hostile or merely unusual
//! front-end could otherwise do to us:
//!
//! * reading the kick descriptor never fails (an error there ends the crate's worker thread
//!   without a word) and never blocks;
//! * a ring that was given a size that no ring can have is refused, not worked with another;
//! * calling the guest never blocks and happens outside the ring's lock;
//! * when a ring is disabled or stopped, the core has let go of it before the front-end gets its
//!   answer.
//!
//! What belongs here: those guards. What does not: what is in the ring.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use log::debug;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use vhost_user_backend::{VringMutex, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error as QueueError, QueueT};
use vm_memory::{GuestAddress, GuestMemoryAtomic, GuestMemoryMmap};

use super::guest_ring::RingLayout;

/// Guest memory as the vhost-user crates share it.
pub type SharedMemory = GuestMemoryAtomic<GuestMemoryMmap>;

/// Takes a queue away from the core; returns the ring's position if it had it.
type Detach = Box<dyn Fn() -> Option<u16> + Send + Sync>;

/// A guarded vring. Clones are the same vring.
#[derive(Clone)]
pub struct Vring {
    state: VringMutex<SharedMemory>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    call: Mutex<Option<Arc<File>>>,
    error: Mutex<Option<Arc<File>>>,
    /// Held while the ring is attached or detached, so that the two cannot cross.
    gate: Mutex<()>,
    attached: AtomicBool,
    /// Entries that the front-end asked for, 0 if it has not: the crate acknowledges a number that
    /// no queue can have, and keeps the one before.
    asked_size: AtomicU16,
    detach: OnceLock<Detach>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The values behind these locks are replaced whole; a panic cannot leave them half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a received descriptor non-blocking. QEMU's are; a pipe of a hostile VMM need not be.
fn nonblocking(file: File) -> Option<File> {
    let set = fcntl_getfl(&file).and_then(|flags| fcntl_setfl(&file, flags | OFlags::NONBLOCK));
    match set {
        Ok(()) => Some(file),
        Err(errno) => {
            debug!(
                "a descriptor from the VMM cannot be made non-blocking and is not used: {errno}"
            );
            None
        }
    }
}

fn signal(slot: &Mutex<Option<Arc<File>>>) {
    let Some(file) = lock(slot).clone() else {
        return;
    };
    // Full (EAGAIN): the guest has a call pending already. Anything else is the VMM's own doing,
    // and there is nobody to tell.
    if let Err(errno) = rustix::io::write(&*file, &1u64.to_ne_bytes()) {
        debug!("a descriptor of the VMM does not take a signal: {errno}");
    }
}

impl Vring {
    /// Calls the guest, if the VMM gave a descriptor for it. Never blocks.
    pub fn call(&self) {
        signal(&self.shared.call);
    }

    /// Tells the VMM that the ring is broken, if it gave a descriptor for it. Never blocks.
    pub fn report_error(&self) {
        signal(&self.shared.error);
    }

    /// Does the core have the ring?
    pub fn is_attached(&self) -> bool {
        self.shared.attached.load(Ordering::Acquire)
    }

    /// If the ring is started and enabled and the core does not have it yet, `attach` gives it to
    /// the core and says whether it took it; `detach` will take it away again.
    pub fn attach_if_up(&self, attach: impl FnOnce(RingLayout) -> bool, detach: Detach) {
        let _gate = lock(&self.shared.gate);
        if self.is_attached() {
            return;
        }
        let layout = {
            let state = self.state.get_ref();
            let queue = state.get_queue();
            if !queue.ready() || !state.is_enabled() {
                return;
            }
            RingLayout {
                size: match self.shared.asked_size.load(Ordering::Acquire) {
                    0 => queue.size(),
                    asked => asked,
                },
                descriptors: GuestAddress(queue.desc_table()),
                available: GuestAddress(queue.avail_ring()),
                used: GuestAddress(queue.used_ring()),
            }
        };
        if attach(layout) {
            // The same vring always belongs to the same queue of the same session.
            let _ = self.shared.detach.set(detach);
            self.shared.attached.store(true, Ordering::Release);
        }
    }

    /// Takes the ring away from the core, if it has it. The core does not touch it after this.
    fn detach(&self) {
        let _gate = lock(&self.shared.gate);
        if !self.shared.attached.swap(false, Ordering::AcqRel) {
            return;
        }
        if let Some(position) = self.shared.detach.get().and_then(|detach| detach()) {
            self.state.set_queue_next_avail(position);
        }
    }
}

impl<'a> VringStateGuard<'a, SharedMemory> for Vring {
    type G = <VringMutex<SharedMemory> as VringStateGuard<'a, SharedMemory>>::G;
}

impl<'a> VringStateMutGuard<'a, SharedMemory> for Vring {
    type G = <VringMutex<SharedMemory> as VringStateMutGuard<'a, SharedMemory>>::G;
}

impl VringT<SharedMemory> for Vring {
    fn new(mem: SharedMemory, max_queue_size: u16) -> Result<Self, QueueError> {
        Ok(Self {
            state: VringMutex::new(mem, max_queue_size)?,
            shared: Arc::default(),
        })
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, SharedMemory>>::G {
        self.state.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, SharedMemory>>::G {
        self.state.get_mut()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), QueueError> {
        self.state.add_used(desc_index, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.call();
        Ok(())
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.state.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.state.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.state.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.state.set_enabled(enabled);
        if !enabled {
            self.detach();
        }
    }

    fn set_queue_info(
        &self,
        desc_table: u64,
        avail_ring: u64,
        used_ring: u64,
    ) -> Result<(), QueueError> {
        self.state.set_queue_info(desc_table, avail_ring, used_ring)
    }

    fn queue_next_avail(&self) -> u16 {
        self.state.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.state.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, idx: u16) {
        self.state.set_queue_next_used(idx);
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.state.queue_used_idx()
    }

    fn set_queue_size(&self, num: u16) {
        self.state.set_queue_size(num);
        self.shared.asked_size.store(num, Ordering::Release);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.state.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.state.set_queue_ready(ready);
        if !ready {
            self.detach();
        }
    }

    fn set_kick(&self, file: Option<File>) {
        self.state.set_kick(file.and_then(nonblocking));
    }

    fn read_kick(&self) -> io::Result<bool> {
        let state = self.state.get_ref();
        if let Some(kick) = state.get_kick()
            && let Err(error) = kick.consume()
        {
            // Spurious, or no eventfd at all: a kick is only a hint, the ring tells the truth.
            debug!("reading a kick failed: {error}");
        }
        Ok(state.is_enabled())
    }

    fn set_call(&self, file: Option<File>) {
        *lock(&self.shared.call) = file.and_then(nonblocking).map(Arc::new);
    }

    fn set_err(&self, file: Option<File>) {
        *lock(&self.shared.error) = file.and_then(nonblocking).map(Arc::new);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, pipe};
    use std::os::fd::OwnedFd;
    use std::sync::atomic::AtomicU32;

    use super::*;

    fn vring() -> Vring {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        Vring::new(GuestMemoryAtomic::new(memory), 256).unwrap()
    }

    fn up(vring: &Vring) {
        vring.set_queue_info(0x1000, 0x2000, 0x3000).unwrap();
        vring.set_queue_size(8);
        vring.set_queue_ready(true);
        vring.set_enabled(true);
    }

    #[test]
    fn a_kick_descriptor_that_is_closed_or_empty_is_read_without_an_error() {
        let vring = vring();
        let (reader, writer) = pipe().unwrap();
        vring.set_kick(Some(OwnedFd::from(reader).into()));
        assert!(
            vring.read_kick().is_ok(),
            "nothing to read, and it does not block"
        );
        drop(writer);
        assert!(vring.read_kick().is_ok(), "the end of the pipe");
        vring.set_kick(Some(File::open("/dev/null").unwrap()));
        assert!(vring.read_kick().is_ok());
        vring.set_kick(None);
        assert!(vring.read_kick().is_ok());
    }

    #[test]
    fn a_call_or_error_descriptor_that_is_full_or_closed_blocks_nobody() {
        let vring = vring();
        let (mut calls, call) = pipe().unwrap();
        let (errors, error) = pipe().unwrap();
        vring.set_call(Some(OwnedFd::from(call).into()));
        vring.set_err(Some(OwnedFd::from(error).into()));
        for _ in 0..100_000 {
            vring.call();
            vring.report_error();
        }
        vring.set_call(None);
        let mut bytes = Vec::new();
        calls.read_to_end(&mut bytes).unwrap();
        assert!(!bytes.is_empty() && bytes.len() < 800_000);
        drop(errors);
        vring.report_error();
        vring.call();
    }

    #[test]
    fn a_ring_is_given_to_the_core_once_and_only_when_it_is_up() {
        let vring = vring();
        let never = |_| panic!("the ring is not up");
        vring.attach_if_up(never, Box::new(|| None));
        vring.set_queue_info(0x1000, 0x2000, 0x3000).unwrap();
        vring.set_queue_ready(true);
        vring.attach_if_up(never, Box::new(|| None));
        up(&vring);
        vring.attach_if_up(|_| false, Box::new(|| None));
        assert!(!vring.is_attached(), "it was refused");
        let mut given = None;
        vring.attach_if_up(
            |layout| {
                given = Some(layout);
                true
            },
            Box::new(|| None),
        );
        let layout = RingLayout {
            size: 8,
            descriptors: GuestAddress(0x1000),
            available: GuestAddress(0x2000),
            used: GuestAddress(0x3000),
        };
        assert_eq!(given, Some(layout));
        assert!(vring.is_attached());
        vring.attach_if_up(|_| panic!("it has it already"), Box::new(|| None));
    }

    #[test]
    fn a_ring_that_is_disabled_or_stopped_is_taken_from_the_core_with_its_position() {
        for stop in [
            (|vring: &Vring| vring.set_enabled(false)) as fn(&Vring),
            |vring| vring.set_queue_ready(false),
        ] {
            let (vring, times) = (vring(), Arc::new(AtomicU32::new(0)));
            up(&vring);
            for round in 1..3 {
                up(&vring);
                let counted = times.clone();
                let detach = move || {
                    counted.fetch_add(1, Ordering::Relaxed);
                    Some(77)
                };
                vring.attach_if_up(|_| true, Box::new(detach));
                assert!(vring.is_attached());
                stop(&vring);
                stop(&vring);
                assert!(!vring.is_attached());
                assert_eq!(times.load(Ordering::Relaxed), round, "once each time");
                assert_eq!(vring.queue_next_avail(), 77);
            }
        }
    }
}
