//! A small rpmsg device on the stock crates that echoes: what the harness itself is tried on.
//!
//! What belongs here: the least that a device must do. What does not: anything of rprocd; if both
//! this device and rprocd pass the same tests, the tests say something about rprocd.

use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use vhost::vhost_user::Listener;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringMutex, VringState, VringT};
use virtio_queue::{DescriptorChain, Error, Queue, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use super::rpmsg::{BUFFER, HEADER};
use super::vmm::{
    F_EVENT_IDX, F_INDIRECT, F_NAME_SERVICE, F_PROTOCOL_FEATURES, F_VERSION_1, QUEUES,
};

/// The announced channel.
pub const NAME: &str = "rpmsg-raw";
/// Where it listens.
pub const ADDRESS: u32 = 1024;

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// What a device can do wrong, to show that the harness notices. Each happens once in a thousand
/// messages, unless it says otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The last bit of a payload is not what was sent.
    FlippedBit,
    /// A message is not answered.
    LostMessage,
    /// A message is answered twice.
    DoubledMessage,
    /// The used length is the buffer's and not the message's.
    WholeBufferUsed,
    /// A buffer is completed before the one that was available before it.
    SwappedCompletions,
    /// Always: a ring starts where the VMM says, and not where the device left it.
    TrustedBase,
}

/// The device of one connection.
struct Device {
    fault: Option<Fault>,
    /// Messages answered so far.
    answered: u64,
    memory: Memory,
    features: u64,
    config: Vec<u8>,
    accepted: u64,
    /// For each queue: it was stopped since it was last looked at.
    stopped: [bool; QUEUES],
    announce: bool,
}

/// A message that is to go to the driver.
struct Outgoing {
    bytes: [u8; BUFFER],
    length: usize,
}

impl Outgoing {
    fn new(source: u32, destination: u32, payload: &[u8]) -> Self {
        let mut bytes = [0; BUFFER];
        let length = HEADER + payload.len();
        bytes[..4].copy_from_slice(&source.to_le_bytes());
        bytes[4..8].copy_from_slice(&destination.to_le_bytes());
        bytes[12..14].copy_from_slice(&(payload.len() as u16).to_le_bytes());
        bytes[HEADER..length].copy_from_slice(payload);
        Self { bytes, length }
    }

    fn announcement() -> Self {
        let mut payload = [0; 40];
        payload[..NAME.len()].copy_from_slice(NAME.as_bytes());
        payload[32..36].copy_from_slice(&ADDRESS.to_le_bytes());
        Self::new(ADDRESS, 53, &payload)
    }
}

fn is_ready(ring: &VringState<Memory>) -> bool {
    ring.is_enabled() && ring.get_queue().ready()
}

fn has_available(queue: &Queue, memory: &GuestMemoryMmap) -> Result<bool, Error> {
    Ok(queue.avail_idx(memory, Ordering::Acquire)?.0 != queue.next_avail())
}

fn pop<M>(queue: &mut Queue, memory: M) -> Result<DescriptorChain<M>, Error>
where
    M: Clone + Deref<Target = GuestMemoryMmap>,
{
    queue
        .pop_descriptor_chain(memory)
        .ok_or(Error::InvalidAvailRingIndex)
}

impl Device {
    /// Moves what can be moved. Pops a chain only when it can be completed at once, so that used
    /// and available indices say all there is to say about a stopped ring.
    fn work(&mut self, rings: &[VringMutex<Memory>]) -> Result<(), Error> {
        let memory = self.memory.memory();
        let mut rx = rings[0].get_mut();
        let mut tx = rings[1].get_mut();
        if !is_ready(&rx) || !is_ready(&tx) {
            return Ok(());
        }
        for (index, ring) in [&mut rx, &mut tx].into_iter().enumerate() {
            if !std::mem::take(&mut self.stopped[index]) {
                continue;
            }
            let queue = ring.get_queue_mut();
            let used = queue.used_idx(&*memory, Ordering::Acquire)?.0;
            if self.fault != Some(Fault::TrustedBase) {
                queue.set_next_avail(used);
                queue.set_next_used(used);
            }
            if index == 0 {
                // A driver that already received something knows the channel.
                self.announce = used == 0 && self.accepted & F_NAME_SERVICE != 0;
            }
        }
        loop {
            if self.announce && has_available(rx.get_queue(), &memory)? {
                self.announce = false;
                self.deliver(&mut rx, &Outgoing::announcement())?;
            }
            while has_available(rx.get_queue(), &memory)? && has_available(tx.get_queue(), &memory)?
            {
                let chain = pop(tx.get_queue_mut(), memory.clone())?;
                let head = chain.head_index();
                let mut bytes = [0; BUFFER];
                let mut reader = chain.reader(&memory)?;
                let length = reader.available_bytes().min(BUFFER);
                io::Read::read_exact(&mut reader, &mut bytes[..length])
                    .map_err(|_| Error::InvalidChain)?;
                let word = |at: usize| {
                    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
                };
                if length >= HEADER && word(4) == ADDRESS {
                    let answer = Outgoing::new(ADDRESS, word(0), &bytes[HEADER..length]);
                    self.answer(&mut rx, answer)?;
                }
                tx.add_used(head, 0)?;
            }
            for ring in [&mut rx, &mut tx] {
                if ring.needs_notification()? {
                    ring.signal_used_queue().map_err(|_| Error::InvalidChain)?;
                }
            }
            rx.enable_notification()?;
            tx.enable_notification()?;
            let receiving = has_available(rx.get_queue(), &memory)?;
            if !(receiving && (self.announce || has_available(tx.get_queue(), &memory)?)) {
                return Ok(());
            }
        }
    }

    fn answer(&mut self, rx: &mut VringState<Memory>, mut answer: Outgoing) -> Result<(), Error> {
        self.answered += 1;
        let fault = self.fault.filter(|_| self.answered % 1000 == 999);
        match fault {
            None | Some(Fault::TrustedBase) => self.deliver(rx, &answer),
            Some(Fault::FlippedBit) => {
                answer.bytes[answer.length - 1] ^= 1;
                self.deliver(rx, &answer)
            }
            Some(Fault::LostMessage) => Ok(()),
            Some(Fault::DoubledMessage) => {
                self.deliver(rx, &answer)?;
                self.deliver(rx, &answer)
            }
            Some(Fault::WholeBufferUsed) => {
                let head = self.fill(rx, &answer)?;
                rx.add_used(head, BUFFER as u32)
            }
            Some(Fault::SwappedCompletions) => {
                let first = self.fill(rx, &answer)?;
                self.deliver(rx, &answer)?;
                rx.add_used(first, answer.length as u32)
            }
        }
    }

    fn deliver(&self, rx: &mut VringState<Memory>, message: &Outgoing) -> Result<(), Error> {
        let head = self.fill(rx, message)?;
        rx.add_used(head, message.length as u32)
    }

    /// Copies a message to the next receive buffer; which one.
    fn fill(&self, rx: &mut VringState<Memory>, message: &Outgoing) -> Result<u16, Error> {
        let memory = self.memory.memory();
        let chain = pop(rx.get_queue_mut(), memory.clone())?;
        let head = chain.head_index();
        let mut writer = chain.writer(&memory)?;
        io::Write::write_all(&mut writer, &message.bytes[..message.length])
            .map_err(|_| Error::InvalidChain)?;
        Ok(head)
    }
}

impl VhostUserBackendMut for Device {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        32768
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn acked_features(&mut self, features: u64) {
        self.accepted = features;
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&mut self, _enabled: bool) {
        // The rings were told already.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let byte = |at: u32| self.config.get(at as usize).copied().unwrap_or(0);
        (offset..offset.saturating_add(size)).map(byte).collect()
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        for (at, byte) in (offset as usize..).zip(bytes) {
            if let Some(place) = self.config.get_mut(at) {
                *place = *byte;
            }
        }
        Ok(())
    }

    fn update_memory(&mut self, memory: Memory) -> io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC).ok()
    }

    fn stop_vring(&mut self, index: u32) -> io::Result<()> {
        if let Some(stopped) = self.stopped.get_mut(index as usize) {
            *stopped = true;
        }
        Ok(())
    }

    fn handle_event(
        &mut self,
        _event: u16,
        _set: EventSet,
        rings: &[VringMutex],
        _thread: usize,
    ) -> io::Result<()> {
        // A broken ring ends here; an error would end the worker for good.
        if let Err(error) = self.work(rings) {
            eprintln!("the reference device gave up on a ring: {error}");
        }
        Ok(())
    }
}

/// The reference device behind a socket, one connection after the other, until it is dropped.
pub struct EchoDevice {
    path: PathBuf,
    ending: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl EchoDevice {
    /// Serves the device at `path`; listens when this returns.
    pub fn serve(path: &Path, announce: bool, fault: Option<Fault>) -> Self {
        let mut features = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT | F_PROTOCOL_FEATURES;
        if announce {
            features |= F_NAME_SERVICE;
        }
        let mut listener = Listener::new(path, true).expect("a socket for the reference device");
        let ending = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&ending);
        let server = thread::spawn(move || {
            while !until.load(Ordering::Acquire) {
                serve_once(&mut listener, features, fault);
            }
        });
        Self {
            path: path.to_owned(),
            ending,
            server: Some(server),
        }
    }
}

fn serve_once(listener: &mut Listener, features: u64, fault: Option<Fault>) {
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let device = Device {
        fault,
        answered: 0,
        memory: memory.clone(),
        features,
        config: b"reference".to_vec(),
        accepted: 0,
        stopped: [true; QUEUES],
        announce: false,
    };
    let device = Arc::new(Mutex::new(device));
    let mut daemon =
        VhostUserDaemon::new("reference".to_owned(), device, memory).expect("a reference device");
    daemon
        .start(listener)
        .expect("a connection to the reference device");
    // A hang-up is an error here, and the usual end.
    let _ = daemon.wait();
}

impl Drop for EchoDevice {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Release);
        // The server waits for a connection; give it one that ends at once.
        let _ = std::os::unix::net::UnixStream::connect(&self.path);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}
