//! The guest's rpmsg driver: what `virtio_rpmsg_bus` does with its two queues.
//!
//! What belongs here: buffers, the 16-byte header, the name service's messages, and when Linux
//! kicks, waits and recycles. What does not: endpoints and what they say to each other.

use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::driver::{DriverQueue, Segment};
use super::vmm::{F_NAME_SERVICE, Failure, Vmm};

/// One buffer.
pub const BUFFER: usize = 512;
/// The header of every message.
pub const HEADER: usize = 16;
/// The longest payload.
pub const PAYLOAD: usize = BUFFER - HEADER;
/// Buffers of both directions together, at most.
const BUFFERS: u32 = 512;
/// The address of the name service.
const NAME_SERVICE: u32 = 53;
/// The length of its messages.
const ANNOUNCEMENT: usize = 40;

/// A message as it was received.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// Who sent it.
    pub source: u32,
    /// Whom it is for.
    pub destination: u32,
    /// What it says.
    pub payload: Vec<u8>,
}

/// A message's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Who sent it.
    pub source: u32,
    /// Whom it is for.
    pub destination: u32,
    /// Bytes of payload.
    pub length: usize,
}

impl Header {
    fn message(self, bytes: &[u8]) -> Message {
        let Self {
            source,
            destination,
            length,
        } = self;
        Message {
            source,
            destination,
            payload: bytes[HEADER..HEADER + length].to_vec(),
        }
    }
}

/// How the driver passes the time until something comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waiting {
    /// It sleeps on the calls, as a guest does.
    Sleeping,
    /// It looks at the rings, and wants no calls.
    Polling,
    /// It looks at the rings for so long, and then sleeps.
    Lingering(Duration),
}

/// A service that the device announced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Channel {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub address: u32,
}

/// What the name service said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Announcement {
    /// A channel is there.
    Created(Channel),
    /// A channel is gone.
    Destroyed(Channel),
}

/// Why a message was not sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SendError {
    /// All buffers are with the device; wait and try again.
    NoBuffer,
    /// Longer than 496 bytes.
    TooLong,
}

/// The driver.
pub struct RpmsgDriver {
    rx: DriverQueue,
    tx: DriverQueue,
    epoll: Epoll,
    ram: std::sync::Arc<super::ram::GuestRam>,
    /// For each direction and head: its buffer.
    rx_buffers: Vec<u64>,
    tx_buffers: Vec<u64>,
    tx_base: u64,
    /// Transmit buffers that were never used, lowest first.
    tx_untouched: std::ops::Range<u64>,
    /// A send found no buffer: calls are wanted for the transmit queue.
    starved: bool,
    /// Receive buffers were given back since the last kick.
    unkicked: bool,
    waiting: Waiting,
    name_service: bool,
    channels: Vec<Channel>,
    announcements: Vec<Announcement>,
    stray_announcements: u64,
}

impl RpmsgDriver {
    /// Binds to the device: new rings, all receive buffers posted, DRIVER_OK, one kick.
    pub fn probe(vmm: &mut Vmm) -> Result<Self, Failure> {
        let mut driver = Self::prepare(vmm);
        vmm.driver_start()?;
        driver.rx.kick();
        Ok(driver)
    }

    /// What happens before DRIVER_OK, for those who want to do the rest themselves.
    pub fn prepare(vmm: &mut Vmm) -> Self {
        let mut queues = vmm.new_queues();
        let mut tx = queues.pop().expect("two queues");
        let rx = queues.pop().expect("two queues");
        let ram = std::sync::Arc::clone(vmm.ram());
        let size = vmm.options().queue_size;
        let half = u64::from((2 * u32::from(size)).min(BUFFERS) / 2);
        let base = ram.allocate(1, 2 * half * BUFFER as u64, 4096);

        let epoll = Epoll::new().expect("an epoll");
        for fd in [rx.call_fd(), tx.call_fd()] {
            epoll
                .ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0))
                .expect("a call eventfd in an epoll");
        }
        tx.disable_callbacks();
        let mut driver = Self {
            rx,
            tx,
            epoll,
            ram,
            rx_buffers: vec![0; usize::from(size)],
            tx_buffers: vec![0; usize::from(size)],
            tx_base: base + half * BUFFER as u64,
            tx_untouched: 0..half,
            starved: false,
            unkicked: false,
            waiting: Waiting::Sleeping,
            name_service: vmm.guest_features() & F_NAME_SERVICE != 0,
            channels: Vec::new(),
            announcements: Vec::new(),
            stray_announcements: 0,
        };
        for index in 0..half {
            driver.post(base + index * BUFFER as u64);
        }
        driver.unkicked = false;
        driver
    }

    fn post(&mut self, buffer: u64) {
        let segment = Segment {
            address: buffer,
            length: BUFFER as u32,
            writable: true,
        };
        let head = self
            .rx
            .add(&[segment])
            .expect("a descriptor for each receive buffer");
        self.rx_buffers[usize::from(head)] = buffer;
        self.unkicked = true;
    }

    /// Sends a message, without waiting.
    pub fn send(&mut self, source: u32, destination: u32, payload: &[u8]) -> Result<(), SendError> {
        if payload.len() > PAYLOAD {
            return Err(SendError::TooLong);
        }
        let buffer = self.take_buffer()?;
        let mut message = [0; BUFFER];
        let length = HEADER + payload.len();
        message[..4].copy_from_slice(&source.to_le_bytes());
        message[4..8].copy_from_slice(&destination.to_le_bytes());
        message[12..14].copy_from_slice(&(payload.len() as u16).to_le_bytes());
        message[HEADER..length].copy_from_slice(payload);
        self.ram.write(buffer, &message[..length]);
        let segment = Segment {
            address: buffer,
            length: length as u32,
            writable: false,
        };
        let head = self
            .tx
            .add(&[segment])
            .expect("a descriptor for each transmit buffer");
        self.tx_buffers[usize::from(head)] = buffer;
        self.tx.kick();
        Ok(())
    }

    /// Buffers that were never used come first; then those that the device gave back, and only
    /// then is it looked at which those are.
    fn take_buffer(&mut self) -> Result<u64, SendError> {
        if let Some(index) = self.tx_untouched.next() {
            return Ok(self.tx_base + index * BUFFER as u64);
        }
        match self.tx.pop_used() {
            Some(used) => {
                if self.starved {
                    self.starved = false;
                    self.tx.disable_callbacks();
                }
                Ok(self.tx_buffers[usize::from(used.head)])
            }
            None => {
                self.starved = true;
                Err(SendError::NoBuffer)
            }
        }
    }

    /// The next message that is not the name service's, without waiting.
    pub fn recv(&mut self) -> Option<Message> {
        let mut bytes = [0; BUFFER];
        let header = self.recv_into(&mut bytes)?;
        Some(header.message(&bytes))
    }

    /// The same, without an allocation: the payload is in `bytes` from [`HEADER`] on.
    pub fn recv_into(&mut self, bytes: &mut [u8; BUFFER]) -> Option<Header> {
        loop {
            let Some(used) = self.rx.pop_used() else {
                self.kick_rx();
                return None;
            };
            let buffer = self.rx_buffers[usize::from(used.head)];
            let length = used.length as usize;
            assert!(
                (HEADER..=BUFFER).contains(&length),
                "the device says that it wrote {length} bytes to a buffer of {BUFFER}"
            );
            self.ram.read(buffer, &mut bytes[..length]);
            let header = decode(&bytes[..length]);
            self.post(buffer);
            if header.destination != NAME_SERVICE {
                return Some(header);
            }
            if self.name_service {
                self.learn(&bytes[HEADER..length]);
            } else {
                self.stray_announcements += 1;
            }
        }
    }

    /// Kicks the receive queue, once for all buffers that were given back since the last time.
    fn kick_rx(&mut self) {
        if std::mem::take(&mut self.unkicked) {
            self.rx.kick();
        }
    }

    fn learn(&mut self, payload: &[u8]) {
        assert_eq!(
            payload.len(),
            ANNOUNCEMENT,
            "an announcement has {ANNOUNCEMENT} bytes"
        );
        let name = &payload[..32];
        let end = name
            .iter()
            .position(|byte| *byte == 0)
            .expect("a name that ends");
        let name = String::from_utf8(name[..end].to_vec()).expect("a name in UTF-8");
        let word = |at: usize| {
            u32::from_le_bytes([
                payload[at],
                payload[at + 1],
                payload[at + 2],
                payload[at + 3],
            ])
        };
        let channel = Channel {
            name,
            address: word(32),
        };
        let flags = word(36);
        assert!(flags <= 1, "an announcement with flags {flags:#x}");
        let known = self.channels.iter().position(|other| *other == channel);
        let announcement = if flags == 0 {
            assert!(known.is_none(), "{channel:?} was announced twice");
            self.channels.push(channel.clone());
            Announcement::Created(channel)
        } else {
            let known = known.unwrap_or_else(|| panic!("{channel:?} was destroyed, but not there"));
            self.channels.remove(known);
            Announcement::Destroyed(channel)
        };
        self.announcements.push(announcement);
    }

    /// Changes how [`RpmsgDriver::wait`] waits.
    pub fn set_waiting(&mut self, waiting: Waiting) {
        self.waiting = waiting;
        self.tx.disable_callbacks();
        if waiting == Waiting::Sleeping {
            self.rx.enable_callbacks();
        } else {
            self.rx.disable_callbacks();
        }
    }

    /// Waits until there may be something to receive, or a transmit buffer after a send found
    /// none. False if nothing came in time.
    pub fn wait(&mut self, timeout: Duration) -> bool {
        self.kick_rx();
        let end = Instant::now() + timeout;
        let came = match self.waiting {
            Waiting::Sleeping => false,
            Waiting::Polling => return self.look_until(end),
            Waiting::Lingering(limit) => self.look_until(end.min(Instant::now() + limit)),
        };
        came || self.sleep_until(end)
    }

    fn look_until(&self, end: Instant) -> bool {
        loop {
            // Time and the scheduler are asked rarely: each costs more than many looks.
            for _ in 0..256 {
                if self.rx.has_used() || (self.starved && self.tx.has_used()) {
                    return true;
                }
                std::hint::spin_loop();
            }
            if Instant::now() >= end {
                return false;
            }
            std::thread::yield_now();
        }
    }

    fn sleep_until(&mut self, end: Instant) -> bool {
        let mut events = [EpollEvent::default(); 2];
        loop {
            let idle = self.rx.enable_callbacks();
            let starving = !self.starved || self.tx.enable_callbacks();
            if !(idle && starving) {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            // Rounded up: a wait of 0 would spin.
            let left = i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX);
            match self.epoll.wait(left, &mut events) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => panic!("waiting for a call failed: {error}"),
            }
            self.take_calls();
            if matches!(self.waiting, Waiting::Lingering(_)) {
                self.rx.disable_callbacks();
            }
        }
    }

    /// Receives, and waits for it as long as needed.
    pub fn recv_within(&mut self, timeout: Duration) -> Option<Message> {
        let end = Instant::now() + timeout;
        loop {
            if let Some(message) = self.recv() {
                return Some(message);
            }
            if !self.wait(end.saturating_duration_since(Instant::now())) {
                return None;
            }
        }
    }

    /// Waits until a channel of this name is announced; its address. Other messages that come
    /// meanwhile are an error.
    pub fn wait_for_channel(&mut self, name: &str, timeout: Duration) -> Result<u32, Failure> {
        let end = Instant::now() + timeout;
        loop {
            if let Some(message) = self.recv() {
                return Err(format!(
                    "before {name:?} was announced, this came: {message:?}"
                ));
            }
            if let Some(channel) = self.channels.iter().find(|channel| channel.name == name) {
                return Ok(channel.address);
            }
            if !self.wait(end.saturating_duration_since(Instant::now())) {
                return Err(format!(
                    "no channel {name:?} within {timeout:?}; channels: {:?}",
                    self.channels
                ));
            }
        }
    }

    /// Has everything that was sent been taken by the device?
    pub fn is_sent(&mut self) -> bool {
        self.tx.read_used_index() == self.tx.read_avail_index()
    }

    /// The channels that are there now.
    pub fn channels(&self) -> &[Channel] {
        &self.channels
    }

    /// All that the name service ever said, in order.
    pub fn announcements(&self) -> &[Announcement] {
        &self.announcements
    }

    /// Messages to the name service although it was not negotiated.
    pub fn stray_announcements(&self) -> u64 {
        self.stray_announcements
    }

    /// Receive buffers, and transmit buffers: there are as many of each.
    pub fn buffers(&self) -> usize {
        self.rx.in_flight()
    }

    /// The queue towards the driver.
    pub fn rx(&mut self) -> &mut DriverQueue {
        &mut self.rx
    }

    /// The queue towards the device.
    pub fn tx(&mut self) -> &mut DriverQueue {
        &mut self.tx
    }

    /// Kicks sent on both queues.
    pub fn kicks(&self) -> u64 {
        self.rx.kicks() + self.tx.kicks()
    }

    /// Takes the calls that have come, so that they are counted.
    pub fn take_calls(&mut self) {
        self.rx.take_calls();
        self.tx.take_calls();
    }

    /// Calls taken on both queues.
    pub fn calls(&self) -> u64 {
        self.rx.calls() + self.tx.calls()
    }
}

fn decode(bytes: &[u8]) -> Header {
    let word =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let length = usize::from(u16::from_le_bytes([bytes[12], bytes[13]]));
    assert_eq!(
        bytes.len(),
        HEADER + length,
        "the used length must be 16 more than the header's length"
    );
    assert_eq!(word(8), 0, "the reserved word must be 0");
    assert_eq!([bytes[14], bytes[15]], [0, 0], "the flags must be 0");
    Header {
        source: word(0),
        destination: word(4),
        length,
    }
}
