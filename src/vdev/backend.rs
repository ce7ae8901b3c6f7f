//! The vhost-user face of a vdev: what a VMM is told, and what it tells us.
//!
//! What belongs here: the answers that vhost-user-backend wants, and handing queues over to the
//! core. What does not: anything that happens to a queue afterwards. One [`Backend`] serves one
//! connection; everything that outlives a connection is behind [`GuestFace`].
//!
//! Protocol: "Vhost-user Protocol", QEMU `docs/interop/vhost-user.rst`.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use log::{debug, info, warn};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::VhostUserBackend;
use vm_memory::{
    GuestAddressSpace, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use super::QUEUES;
use super::device::{GuestQueue, GuestState};
use super::features::with_ring_features;
use super::guest_ring::RingFault;
use super::vring::{SharedMemory, Vring};

/// Entries that a queue may have. It is virtio's own limit: crosvm asks for it by default, and a
/// smaller one makes QEMU abort when its own is larger. What the firmware's vring has does not
/// limit the guest's.
pub const MAX_QUEUE_SIZE: usize = 32768;

/// What a connection may do to its vdev. The core implements it.
pub trait GuestFace: Send + Sync {
    /// Names the vdev in messages.
    fn label(&self) -> &str;

    /// The device's own feature bits that are offered to the guest.
    fn device_features(&self) -> u64;

    /// Gives a queue to the core.
    ///
    /// # Errors
    /// A [`RingFault`] if the ring cannot be used.
    fn attach(&self, index: usize, queue: GuestQueue) -> Result<GuestState, RingFault>;

    /// Takes a queue away from the core, which does not touch it after this; returns its
    /// position if it was there.
    fn detach(&self, index: usize) -> Option<u16>;

    /// The guest's memory was laid out anew.
    fn set_memory(&self, memory: Arc<GuestMemoryMmap>);

    /// The guest kicked a queue.
    fn kicked(&self);

    /// The connection is gone, and the guest with it. All queues have been detached.
    fn gone(&self);

    /// Reads the device's configuration space into `into`; past its end there are zeroes.
    fn read_config(&self, offset: u32, into: &mut [u8]);

    /// Writes the device's configuration space; what lies past its end is ignored.
    fn write_config(&self, offset: u32, bytes: &[u8]);
}

/// The face of one connection.
pub(super) struct Backend {
    face: Arc<dyn GuestFace>,
    acked: AtomicU64,
    memory: Mutex<Option<Arc<GuestMemoryMmap>>>,
    /// Why a queue was refused the last time.
    refused: Mutex<[Option<RingFault>; QUEUES]>,
    exit: Mutex<Vec<std::os::fd::RawFd>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The values behind these locks are replaced whole; a panic cannot leave them half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Backend {
    pub(super) fn new(face: Arc<dyn GuestFace>) -> Self {
        Self {
            face,
            acked: AtomicU64::new(0),
            memory: Mutex::new(None),
            refused: Mutex::default(),
            exit: Mutex::new(Vec::new()),
        }
    }

    /// The descriptors that the crate took out of [`VhostUserBackend::exit_event`]'s consumers
    /// and never closes.
    pub(super) fn take_exit_descriptors(&self) -> Vec<std::os::fd::RawFd> {
        std::mem::take(&mut *lock(&self.exit))
    }

    fn attach(&self, index: usize, vring: &Vring) {
        // Held until the core has the queue: a memory table that comes meanwhile must reach the
        // core after the queue, or the core would go on with the old one.
        let held = lock(&self.memory);
        let Some(memory) = held.clone() else {
            debug!(
                "{}: queue {index} was started before there is any memory",
                self.face.label()
            );
            return;
        };
        // The VMM's own bit is no feature of the device's, and no guest has accepted it.
        let features =
            self.acked.load(Ordering::Acquire) & !VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let detach = {
            let face = self.face.clone();
            Box::new(move || face.detach(index))
        };
        vring.attach_if_up(
            |layout| {
                let queue = GuestQueue {
                    layout,
                    features,
                    memory,
                    vring: vring.clone(),
                };
                match self.face.attach(index, queue) {
                    Ok(state) => {
                        lock(&self.refused)[index] = None;
                        debug!("{}: queue {index} attached: {layout:?}", self.face.label());
                        if state != GuestState::Incomplete {
                            info!(
                                "{}: guest {} (features {features:#x})",
                                self.face.label(),
                                if state == GuestState::Fresh {
                                    "attached"
                                } else {
                                    "resumed"
                                },
                            );
                        }
                        true
                    }
                    Err(fault) => {
                        // Each kick comes here again; what has been said once is enough.
                        if lock(&self.refused)[index].replace(fault) != Some(fault) {
                            warn!("{}: queue {index} is refused: {fault}", self.face.label());
                            vring.report_error();
                        }
                        false
                    }
                }
            },
            detach,
        );
    }
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        with_ring_features(self.face.device_features())
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn acked_features(&self, features: u64) {
        self.acked.store(features, Ordering::Release);
    }

    /// CONFIG is always there: crosvm asks for configuration whether or not it is offered.
    /// STATUS and INFLIGHT_SHMFD are not: the crate ends the session when they are used, and QEMU
    /// then aborts. CONFIGURE_MEM_SLOTS is not: the crate does not check the sums of a region
    /// that is added alone.
    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE
    }

    fn set_event_idx(&self, _enabled: bool) {
        // Part of the acknowledged features.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        // The crate has bounded both: offset + size is at most 4096.
        let mut bytes = vec![0; size as usize];
        self.face.read_config(offset, &mut bytes);
        bytes
    }

    fn set_config(&self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        self.face.write_config(offset, bytes);
        Ok(())
    }

    fn update_memory(&self, memory: SharedMemory) -> io::Result<()> {
        let memory = memory.memory().into_inner();
        for region in memory.iter() {
            check_backing(region)?;
        }
        let mut held = lock(&self.memory);
        *held = Some(memory.clone());
        self.face.set_memory(memory);
        Ok(())
    }

    fn exit_event(&self, _thread_index: usize) -> Option<(EventConsumer, EventNotifier)> {
        // A fresh pair for each session: without one, ending a session waits for ever.
        match new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC) {
            Ok((consumer, notifier)) => {
                lock(&self.exit).push(consumer.as_raw_fd());
                Some((consumer, notifier))
            }
            Err(error) => {
                warn!(
                    "{}: no event descriptor for the session's end: {error}",
                    self.face.label()
                );
                None
            }
        }
    }

    /// Never an `Err`: it would end the worker thread for the rest of the session.
    fn handle_event(
        &self,
        device_event: u16,
        _events: EventSet,
        vrings: &[Vring],
        _thread_id: usize,
    ) -> io::Result<()> {
        let index = usize::from(device_event);
        if let Some(vring) = vrings.get(index) {
            if vring.is_attached() {
                self.face.kicked();
            } else {
                self.attach(index, vring);
            }
        }
        Ok(())
    }
}

/// Refuses a region whose file is too small for it: the first access past the file's end would
/// kill the process.
fn check_backing(region: &GuestRegionMmap) -> io::Result<()> {
    let Some(backing) = region.file_offset() else {
        return Ok(());
    };
    let file = backing.file().metadata()?;
    let need = backing.start().checked_add(region.len());
    if file.is_file() && need.is_none_or(|need| file.len() < need) {
        return Err(io::Error::other(format!(
            "guest memory at {:#x} is refused: its file has {:#x} bytes, the region needs {:#x} \
             bytes from offset {:#x}",
            region.start_addr().0,
            file.len(),
            region.len(),
            backing.start(),
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read as _;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use rustix::event::{EventfdFlags, eventfd};
    use vhost_user_backend::VringT;
    use vm_memory::{GuestAddress, GuestMemoryAtomic};

    use crate::vdev::RingLayout;

    /// A core that answers an attachment when it is told to.
    struct Slow {
        attaching: mpsc::SyncSender<RingLayout>,
        answers: Mutex<mpsc::Receiver<Result<GuestState, RingFault>>>,
        seen: Mutex<Vec<&'static str>>,
    }

    impl GuestFace for Slow {
        fn label(&self) -> &'static str {
            "slow"
        }
        fn device_features(&self) -> u64 {
            0
        }
        fn attach(&self, _index: usize, queue: GuestQueue) -> Result<GuestState, RingFault> {
            self.attaching.send(queue.layout).unwrap();
            let answer = lock(&self.answers).recv().unwrap();
            lock(&self.seen).push("queue");
            answer
        }
        fn detach(&self, _index: usize) -> Option<u16> {
            None
        }
        fn set_memory(&self, _memory: Arc<GuestMemoryMmap>) {
            lock(&self.seen).push("memory");
        }
        fn kicked(&self) {}
        fn gone(&self) {}
        fn read_config(&self, _offset: u32, _into: &mut [u8]) {}
        fn write_config(&self, _offset: u32, _bytes: &[u8]) {}
    }

    struct Bench {
        face: Arc<Slow>,
        backend: Backend,
        vring: Vring,
        memory: SharedMemory,
        attaching: mpsc::Receiver<RingLayout>,
        answer: mpsc::SyncSender<Result<GuestState, RingFault>>,
    }

    /// A backend with memory, and a queue of `size` entries that is up.
    fn bench(size: u16) -> Bench {
        let (attaching, told) = mpsc::sync_channel(8);
        let (answer, answers) = mpsc::sync_channel(8);
        let face = Arc::new(Slow {
            attaching,
            answers: Mutex::new(answers),
            seen: Mutex::default(),
        });
        let backend = Backend::new(face.clone());
        let memory = SharedMemory::new(
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap(),
        );
        backend.update_memory(memory.clone()).unwrap();
        lock(&face.seen).clear();
        let vring = Vring::new(GuestMemoryAtomic::clone(&memory), 32768).unwrap();
        vring.set_queue_size(size);
        vring.set_queue_info(0x1000, 0x2000, 0x3000).unwrap();
        vring.set_queue_ready(true);
        vring.set_enabled(true);
        Bench {
            face,
            backend,
            vring,
            memory,
            attaching: told,
            answer,
        }
    }

    #[test]
    fn a_memory_table_that_comes_while_a_queue_is_attached_is_the_last_word() {
        let bench = bench(256);
        thread::scope(|scope| {
            scope.spawn(|| bench.backend.attach(0, &bench.vring));
            bench.attaching.recv().unwrap();
            let table = scope.spawn(|| bench.backend.update_memory(bench.memory.clone()));
            // As long as a table that does not wait would need.
            thread::sleep(Duration::from_millis(50));
            bench.answer.send(Ok(GuestState::Incomplete)).unwrap();
            table.join().unwrap().unwrap();
        });
        assert_eq!(*lock(&bench.face.seen), ["queue", "memory"]);
    }

    #[test]
    fn a_queue_that_is_refused_at_each_kick_is_reported_once() {
        let bench = bench(256);
        let mut reports = File::from(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        bench.vring.set_err(Some(reports.try_clone().unwrap()));
        for fault in [3, 3, 5, 5, 3].map(RingFault::Size) {
            bench.answer.send(Err(fault)).unwrap();
            bench.backend.attach(0, &bench.vring);
        }
        let mut count = [0; 8];
        reports.read_exact(&mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 3);
    }

    #[test]
    fn a_queue_is_attached_with_the_size_that_was_asked_for_even_if_there_is_no_such() {
        for size in [256, 3] {
            let bench = bench(size);
            bench.answer.send(Err(RingFault::Size(size))).unwrap();
            bench.backend.attach(0, &bench.vring);
            assert_eq!(bench.attaching.recv().unwrap().size, size);
        }
    }
}
