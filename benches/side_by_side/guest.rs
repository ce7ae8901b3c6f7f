//! The frontend that all contestants are driven with: a VMM's side of the socket, and a driver
//! that costs a few nanoseconds a message besides the copies.
//!
//! What belongs here: connecting, sending, receiving and checking, and three ways to wait. What
//! does not: what is measured with it. A peer that does not do as it should is an error, and a
//! sentence.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VringConfigData};

use crate::memory::{ENTRIES, Memory, Model, Ring, buffer, crossed, event, guest_address};

/// From one buffer to the next.
pub const STRIDE: usize = 512;
/// Bytes of a header.
const HEADER: usize = 16;
/// So many messages are made available, or taken, at a time.
const BURST: u16 = 32;
/// How long nothing at all may happen.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How long a guest that lingers looks before it sleeps.
pub const LINGER: Duration = Duration::from_micros(50);

const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;
const PROTOCOL: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// How the driver passes the time until something comes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Wait {
    /// It looks at the ring, and wants no calls.
    Polled,
    /// It looks for [`LINGER`], yields, and then sleeps.
    Lingering,
    /// It sleeps on the call.
    Asleep,
}

impl Wait {
    /// The word for it on the command line and in the results.
    pub fn word(self) -> &'static str {
        match self {
            Self::Polled => "polled",
            Self::Lingering => "lingering",
            Self::Asleep => "asleep",
        }
    }
}

/// What a peer wants before the payload and writes there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Header {
    /// That of rpmsg, 16 bytes; the answer has source and destination swapped.
    Rpmsg,
    /// That of virtio-net, 12 bytes, and the first 4 of a frame.
    Net,
}

const LOCAL: u32 = 1030;
const REMOTE: u32 = 1024;

impl Header {
    fn sent(self, len: usize) -> Model {
        self.model(LOCAL, REMOTE, len)
    }

    fn received(self, len: usize) -> Model {
        self.model(REMOTE, LOCAL, len)
    }

    fn model(self, source: u32, destination: u32, len: usize) -> Model {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        Model::new(match self {
            Self::Rpmsg => [pair(source, destination), pair(0, (len - HEADER) as u32)],
            // Zeroes, and where the frame goes. The number of buffers that it is in is left zero as
            // well by a device that was not asked to merge any.
            Self::Net => [0, 0x0700_0002 << 32],
        })
    }
}

/// Rings and the descriptors that belong to them, in memory of their own.
pub struct Rings {
    /// The memory.
    pub memory: Memory,
    /// The rings.
    pub rings: Vec<Ring>,
    /// Towards the peer.
    pub kicks: Vec<OwnedFd>,
    /// From the peer.
    pub calls: Vec<OwnedFd>,
}

impl Rings {
    /// `count` empty rings.
    pub fn new(count: usize) -> Result<Self, String> {
        let memory = Memory::new()?;
        let event = || {
            let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
            eventfd(0, flags).map_err(|errno| format!("the host has no eventfd: {errno}"))
        };
        Ok(Self {
            rings: (0..count).map(|index| memory.ring(index)).collect(),
            kicks: (0..count).map(|_| event()).collect::<Result<_, _>>()?,
            calls: (0..count).map(|_| event()).collect::<Result<_, _>>()?,
            memory,
        })
    }

    /// Gives them to the vhost-user device at `path`. No feature of the device's own is accepted.
    pub fn connect(&self, path: &Path) -> Result<Frontend, String> {
        let said =
            |what: &'static str| move |error: vhost::Error| format!("{what} failed: {error}");
        let count = self.rings.len();
        let mut frontend = Frontend::connect(path, count as u64)
            .map_err(|error| format!("cannot connect to {}: {error}", path.display()))?;
        frontend.set_owner().map_err(said("SET_OWNER"))?;
        let offered = frontend.get_features().map_err(said("GET_FEATURES"))?;
        if offered & EVENT_IDX == 0 || offered & VERSION_1 == 0 {
            return Err(format!("the device offers only {offered:#x}"));
        }
        if offered & PROTOCOL != 0 {
            let known = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK;
            let offered = frontend
                .get_protocol_features()
                .map_err(|error| format!("GET_PROTOCOL_FEATURES failed: {error}"))?;
            frontend
                .set_protocol_features(offered & known)
                .map_err(|error| format!("SET_PROTOCOL_FEATURES failed: {error}"))?;
        }
        let wanted = VERSION_1 | EVENT_IDX | PROTOCOL;
        frontend
            .set_features(offered & wanted)
            .map_err(said("SET_FEATURES"))?;
        frontend
            .set_mem_table(&[self.memory.table()])
            .map_err(said("SET_MEM_TABLE"))?;
        for (index, ring) in self.rings.iter().enumerate() {
            let [descriptors, avail, used] = ring.user_addresses();
            frontend
                .set_vring_num(index, ENTRIES)
                .map_err(said("SET_VRING_NUM"))?;
            frontend
                .set_vring_base(index, 0)
                .map_err(said("SET_VRING_BASE"))?;
            let data = VringConfigData {
                queue_max_size: ENTRIES,
                queue_size: ENTRIES,
                flags: 0,
                desc_table_addr: descriptors,
                used_ring_addr: used,
                avail_ring_addr: avail,
                log_addr: None,
            };
            frontend
                .set_vring_addr(index, &data)
                .map_err(said("SET_VRING_ADDR"))?;
            frontend
                .set_vring_call(index, &event(&self.calls[index])?)
                .map_err(said("SET_VRING_CALL"))?;
            frontend
                .set_vring_kick(index, &event(&self.kicks[index])?)
                .map_err(said("SET_VRING_KICK"))?;
        }
        if offered & PROTOCOL != 0 {
            for index in 0..count {
                frontend
                    .set_vring_enable(index, true)
                    .map_err(said("SET_VRING_ENABLE"))?;
            }
        }
        // All was heard when something is answered.
        frontend.get_features().map_err(said("GET_FEATURES"))?;
        Ok(frontend)
    }
}

/// What was counted, from the first message on.
#[derive(Clone, Copy, Default, Debug)]
pub struct Counts {
    /// Kicks sent.
    pub kicks: u64,
    /// Calls taken.
    pub calls: u64,
    /// Times that the driver went to sleep.
    pub sleeps: u64,
}

/// A guest that exchanges messages with a peer that echoes them.
pub trait Echo {
    /// Messages are of so many bytes from now on, their header included.
    fn set_size(&mut self, size: usize);

    /// Sends `count` messages, `depth` at a time, and takes the answers.
    fn exchange(&mut self, count: u64, depth: u64, wait: Wait) -> Result<(), String>;

    /// What was counted so far.
    fn counts(&mut self) -> Counts;

    /// Sends `count` messages, one at a time; how long each took until its answer was there.
    fn round_trips(
        &mut self,
        count: u64,
        wait: Wait,
        into: &mut Vec<Duration>,
    ) -> Result<(), String> {
        for _ in 0..count {
            let begun = Instant::now();
            self.exchange(1, 1, wait)?;
            into.push(begun.elapsed());
        }
        Ok(())
    }
}

/// A connected guest.
pub struct Guest {
    rings: Rings,
    _frontend: Option<Frontend>,
    driver: Driver,
}

/// The driver's own state.
struct Driver {
    /// From the peer.
    rx: Ring,
    /// To the peer.
    tx: Ring,
    /// Bytes in each message, its header included.
    size: usize,
    header: Header,
    sending: Model,
    receiving: Model,
    sent: u64,
    received: u64,
    rx_avail: u16,
    rx_used: u16,
    rx_kicked: u16,
    tx_avail: u16,
    tx_used: u16,
    tx_kicked: u16,
    /// Descriptors that can be sent with: a ring of them, from `tx_used` on.
    free: [u16; ENTRIES as usize],
    /// The last send found too few of them.
    starved: bool,
    counts: Counts,
}

const RX: usize = 0;
const TX: usize = 1;

impl Guest {
    /// The guest of a vhost-user device with two queues, to the guest and from it.
    pub fn connect(path: &Path, header: Header) -> Result<Self, String> {
        let rings = Rings::new(2)?;
        let driver = Driver::new(&rings, header);
        let frontend = rings.connect(path)?;
        let mut guest = Self {
            rings,
            _frontend: Some(frontend),
            driver,
        };
        guest.give_buffers();
        guest.kick()?;
        Ok(guest)
    }

    /// The guest of somebody who was given the rings in another way.
    pub fn with(rings: Rings) -> Result<Self, String> {
        let driver = Driver::new(&rings, Header::Rpmsg);
        let mut guest = Self {
            rings,
            _frontend: None,
            driver,
        };
        guest.give_buffers();
        guest.kick()?;
        Ok(guest)
    }

    /// Its rings.
    pub fn rings(&self) -> &Rings {
        &self.rings
    }

    fn prepare(&mut self, wait: Wait) {
        let driver = &self.driver;
        let event = match wait {
            Wait::Asleep => driver.rx_used,
            // As far from where the device is as can be.
            Wait::Polled | Wait::Lingering => driver.rx_used.wrapping_add(0x8000),
        };
        driver.rx.used_event.store(event, Ordering::Relaxed);
        let never = driver.tx_used.wrapping_add(0x8000);
        driver.tx.used_event.store(never, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Sends up to message `limit`; how many there were.
    #[inline]
    fn send(&mut self, limit: u64) -> Result<u16, String> {
        let wanted = limit.saturating_sub(self.driver.sent).min(BURST.into()) as u16;
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.driver.fill(&self.rings.memory, wanted)?;
        if count == 0 {
            return Ok(0);
        }
        let driver = &mut self.driver;
        driver
            .tx
            .avail_index
            .store(driver.tx_avail, Ordering::Release);
        self.kick()?;
        Ok(count)
    }

    /// Takes what has come, a burst at most; how much there was.
    #[inline]
    fn receive(&mut self) -> Result<u16, String> {
        let came = self.driver.take(&self.rings.memory)?;
        if came != 0 {
            self.give_buffers();
        }
        Ok(came)
    }

    #[inline]
    fn give_buffers(&mut self) {
        let driver = &mut self.driver;
        driver
            .rx
            .avail_index
            .store(driver.rx_avail, Ordering::Release);
    }

    /// Kicks for all that was made available since the last time, where that is wanted.
    #[inline]
    fn kick(&mut self) -> Result<(), String> {
        fence(Ordering::SeqCst);
        let driver = &mut self.driver;
        let event = driver.tx.avail_event.load(Ordering::Relaxed);
        if crossed(event, driver.tx_avail, driver.tx_kicked) {
            driver.counts.kicks += 1;
            kick(&self.rings.kicks[TX])?;
        }
        driver.tx_kicked = driver.tx_avail;
        let event = driver.rx.avail_event.load(Ordering::Relaxed);
        if crossed(event, driver.rx_avail, driver.rx_kicked) {
            driver.counts.kicks += 1;
            kick(&self.rings.kicks[RX])?;
        }
        driver.rx_kicked = driver.rx_avail;
        Ok(())
    }

    fn is_ready(&self) -> bool {
        self.driver.is_ready()
    }

    fn wait(&mut self, wait: Wait) -> Result<(), String> {
        if self.driver.rx_kicked != self.driver.rx_avail {
            self.kick()?;
        }
        match wait {
            Wait::Polled => self
                .look(PATIENCE, 1 << 14)
                .then_some(())
                .ok_or_else(|| self.nothing()),
            Wait::Lingering if self.look(LINGER, 64) => Ok(()),
            Wait::Lingering => {
                let slept = self.sleep();
                let rx = &self.driver.rx;
                let never = self.driver.rx_used.wrapping_add(0x8000);
                rx.used_event.store(never, Ordering::Relaxed);
                slept
            }
            Wait::Asleep => self.sleep(),
        }
    }

    /// Looks at the ring for so long, and yields after so many looks; whether something came.
    fn look(&self, limit: Duration, looks: u32) -> bool {
        let mut begun = None;
        loop {
            // Time and the scheduler are asked rarely: each costs more than many looks.
            for _ in 0..looks {
                if self.is_ready() {
                    return true;
                }
                std::hint::spin_loop();
            }
            let begun = begun.get_or_insert_with(Instant::now);
            if begun.elapsed() >= limit {
                return false;
            }
            std::thread::yield_now();
        }
    }

    fn sleep(&mut self) -> Result<(), String> {
        let end = Instant::now() + PATIENCE;
        loop {
            let driver = &mut self.driver;
            driver
                .rx
                .used_event
                .store(driver.rx_used, Ordering::Relaxed);
            if driver.starved {
                driver
                    .tx
                    .used_event
                    .store(driver.tx_used, Ordering::Relaxed);
            }
            fence(Ordering::SeqCst);
            if driver.is_ready() {
                return Ok(());
            }
            driver.counts.sleeps += 1;
            let mut fds = [
                PollFd::new(&self.rings.calls[RX], PollFlags::IN),
                PollFd::new(&self.rings.calls[TX], PollFlags::IN),
            ];
            let timeout = Timespec::try_from(PATIENCE).ok();
            let _ = poll(&mut fds, timeout.as_ref());
            self.take_calls();
            if self.is_ready() {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(self.nothing());
            }
        }
    }

    fn take_calls(&mut self) {
        let calls: u64 = self.rings.calls.iter().map(taken).sum();
        self.driver.counts.calls += calls;
    }

    fn nothing(&self) -> String {
        let Driver { sent, received, .. } = self.driver;
        format!("nothing came for {PATIENCE:?}: {sent} messages sent, {received} answers received")
    }
}

impl Echo for Guest {
    fn set_size(&mut self, size: usize) {
        self.driver.set_size(size);
    }

    fn exchange(&mut self, count: u64, depth: u64, wait: Wait) -> Result<(), String> {
        self.prepare(wait);
        let (goal, limit) = (self.driver.received + count, self.driver.sent + count);
        while self.driver.received < goal {
            let sent = self.send(limit.min(self.driver.received + depth))?;
            let received = self.receive()?;
            if sent == 0 && received == 0 {
                self.wait(wait)?;
            }
        }
        Ok(())
    }

    fn counts(&mut self) -> Counts {
        self.take_calls();
        self.driver.counts
    }
}

/// Adds one to an eventfd.
pub fn kick(fd: &OwnedFd) -> Result<(), String> {
    match rustix::io::write(fd, &1_u64.to_ne_bytes()) {
        // Full: it was not looked at for long, and will be.
        Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
        Err(errno) => Err(format!("the kick eventfd takes no kick: {errno}")),
    }
}

/// What an eventfd has counted since the last time.
pub fn taken(fd: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    match rustix::io::read(fd, &mut count) {
        Ok(_) => u64::from_ne_bytes(count),
        Err(_) => 0,
    }
}

impl Driver {
    fn new(rings: &Rings, header: Header) -> Self {
        let mut driver = Self {
            rx: rings.rings[RX],
            tx: rings.rings[TX],
            size: 0,
            header,
            sending: header.sent(STRIDE),
            receiving: header.received(STRIDE),
            sent: 0,
            received: 0,
            rx_avail: 0,
            rx_used: 0,
            rx_kicked: 0,
            tx_avail: 0,
            tx_used: 0,
            tx_kicked: 0,
            free: std::array::from_fn(|index| index as u16),
            starved: false,
            counts: Counts::default(),
        };
        for id in 0..ENTRIES {
            let rx = guest_address(buffer(RX, id, STRIDE));
            driver.rx.set_descriptor(id, rx, STRIDE as u32, true);
            driver.rx.set_avail(id, id);
        }
        driver.rx_avail = ENTRIES;
        driver.set_size(STRIDE);
        driver
    }

    fn set_size(&mut self, size: usize) {
        self.size = size.clamp(HEADER, STRIDE);
        self.sending = self.header.sent(self.size);
        self.receiving = self.header.received(self.size);
        for id in 0..ENTRIES {
            let tx = guest_address(buffer(TX, id, STRIDE));
            self.tx.set_descriptor(id, tx, self.size as u32, false);
        }
    }

    fn words(&self) -> usize {
        self.size / 8
    }

    /// Something to take, or to send with after there was too little of it.
    #[inline]
    fn is_ready(&self) -> bool {
        let used = |ring: &Ring| ring.used_index.load(Ordering::Acquire);
        used(&self.rx) != self.rx_used || (self.starved && used(&self.tx) != self.tx_used)
    }

    /// Fills up to `wanted` buffers and puts them into the ring, unpublished.
    #[inline]
    fn fill(&mut self, memory: &Memory, wanted: u16) -> Result<u16, String> {
        let out = self.tx_avail.wrapping_sub(self.tx_used);
        if ENTRIES - out < wanted {
            self.take_back()?;
        }
        let free = ENTRIES - self.tx_avail.wrapping_sub(self.tx_used);
        self.starved = free < wanted;
        let count = wanted.min(free);
        let words = self.words();
        for _ in 0..count {
            let id = self.free[usize::from(self.tx_avail % ENTRIES)];
            let at = buffer(TX, id, STRIDE);
            memory.write_message(at, &self.sending, words, self.sent);
            self.tx.set_avail(self.tx_avail, id);
            self.tx_avail = self.tx_avail.wrapping_add(1);
            self.sent += 1;
        }
        Ok(count)
    }

    /// Takes back the buffers that the peer has read.
    fn take_back(&mut self) -> Result<(), String> {
        let used = self.tx.used_index.load(Ordering::Acquire);
        let count = used.wrapping_sub(self.tx_used);
        let out = self.tx_avail.wrapping_sub(self.tx_used);
        if count > out {
            return Err(format!("the peer gave back {count} of {out} messages"));
        }
        for _ in 0..count {
            let (id, _) = self.tx.used(self.tx_used);
            self.free[usize::from(self.tx_used % ENTRIES)] = id as u16 % ENTRIES;
            self.tx_used = self.tx_used.wrapping_add(1);
        }
        Ok(())
    }

    /// Takes a burst of answers, checks them, and gives their buffers back, unpublished.
    #[inline]
    fn take(&mut self, memory: &Memory) -> Result<u16, String> {
        let used = self.rx.used_index.load(Ordering::Acquire);
        let came = used.wrapping_sub(self.rx_used);
        if came == 0 {
            return Ok(0);
        }
        if came > ENTRIES {
            return Err(format!("the peer filled {came} of {ENTRIES} buffers"));
        }
        let came = came.min(BURST);
        let words = self.words();
        for _ in 0..came {
            let (id, len) = self.rx.used(self.rx_used);
            let id = id as u16 % ENTRIES;
            let at = buffer(RX, id, STRIDE);
            if len as usize != self.size
                || !memory.has_message(at, &self.receiving, words, self.received)
            {
                return Err(self.wrong(memory, at, len));
            }
            self.received += 1;
            self.rx_used = self.rx_used.wrapping_add(1);
            self.rx.set_avail(self.rx_avail, id);
            self.rx_avail = self.rx_avail.wrapping_add(1);
        }
        Ok(came)
    }

    #[cold]
    fn wrong(&self, memory: &Memory, at: usize, len: u32) -> String {
        let mut bytes = [0; 24];
        memory.read(at, &mut bytes);
        let (header, first) = bytes.split_at(HEADER);
        let first = first.try_into().map(u64::from_le_bytes);
        let number = self.receiving.number_of(first.unwrap_or_default());
        format!(
            "answer {} is wrong: {len} bytes for {} sent, header {header:02x?}, and by its first \
             word it is answer {number}",
            self.received, self.size
        )
    }
}
