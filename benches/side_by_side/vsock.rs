//! The guest of a vsock device: one stream to a host process that echoes it.
//!
//! What belongs here: as much of the protocol (virtio 1.2, section 5.10) as one stream needs. What
//! does not: connections that come and go.
//!
//! The rings and the ways to wait are those of [`guest`](crate::guest); the 496 bytes of a message
//! lie behind vsock's own header of 44. A stream knows no messages: what comes is checked byte
//! by byte, and a message has come when its last byte has.

use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost::vhost_user::Frontend;

use crate::guest::{Counts, Echo, PATIENCE, Rings, Wait, kick, taken};
use crate::memory::{ENTRIES, Ring, buffer, crossed, guest_address};

/// Where the guest is.
pub const GUEST_CID: u64 = 7;
/// Where the echo listens, at the host.
pub const PORT: u32 = 1234;
const HOST_CID: u64 = 2;
const OUR_PORT: u32 = 5678;

const HEADER: usize = 44;
/// Of a message, at most.
const PAYLOAD: usize = 496;
/// From one buffer to the next.
const STRIDE: usize = 1024;
/// What of the guest's the peer may fill without being told that it was read.
const ROOM: u32 = 256 << 10;
const BURST: u64 = 32;
const RX: usize = 0;
const TX: usize = 1;

const STREAM: u16 = 1;
const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RW: u16 = 5;
const CREDIT_UPDATE: u16 = 6;
const CREDIT_REQUEST: u16 = 7;

/// The guest.
pub struct VsockGuest {
    rings: Rings,
    _frontend: Frontend,
    tx_avail: u16,
    tx_used: u16,
    tx_kicked: u16,
    rx_avail: u16,
    rx_used: u16,
    rx_kicked: u16,
    connected: bool,
    /// Bytes of a message.
    size: usize,
    sent: u64,
    received: u64,
    /// How far the next message has come.
    partial: usize,
    /// Bytes of the stream that went out, that came, and that the peer has read.
    bytes_out: u32,
    bytes_in: u32,
    peers_room: u32,
    peer_read: u32,
    credit_asked: bool,
    counts: Counts,
}

fn message(number: u64, into: &mut [u8]) {
    for (index, chunk) in into.chunks_mut(8).enumerate() {
        let word = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(2 * index as u64 + 1);
        let bytes = word.wrapping_add(number).to_le_bytes();
        chunk.copy_from_slice(&bytes[..chunk.len()]);
    }
}

impl VsockGuest {
    /// The guest of the device at `path`, with a stream that is open.
    pub fn connect(path: &Path) -> Result<Self, String> {
        let rings = Rings::new(2)?;
        for id in 0..ENTRIES {
            let at = guest_address(buffer(RX, id, STRIDE));
            rings.rings[RX].set_descriptor(id, at, (HEADER + PAYLOAD) as u32, true);
            rings.rings[RX].set_avail(id, id);
        }
        rings.rings[RX]
            .avail_index
            .store(ENTRIES, Ordering::Release);
        let frontend = rings.connect(path)?;
        let mut guest = Self {
            rings,
            _frontend: frontend,
            tx_avail: 0,
            tx_used: 0,
            tx_kicked: 0,
            rx_avail: ENTRIES,
            rx_used: 0,
            rx_kicked: 0,
            connected: false,
            size: PAYLOAD,
            sent: 0,
            received: 0,
            partial: 0,
            bytes_out: 0,
            bytes_in: 0,
            peers_room: 0,
            peer_read: 0,
            credit_asked: false,
            counts: Counts::default(),
        };
        guest.put(REQUEST, &[])?;
        guest.publish()?;
        while !guest.connected {
            if guest.receive()? == 0 {
                guest.wait(Wait::Asleep)?;
            }
        }
        Ok(guest)
    }

    fn tx(&self) -> &Ring {
        &self.rings.rings[TX]
    }

    fn rx(&self) -> &Ring {
        &self.rings.rings[RX]
    }

    /// Puts a packet into the ring, unpublished; false if there is no room.
    fn put(&mut self, op: u16, payload: &[u8]) -> Result<bool, String> {
        if self.tx_avail.wrapping_sub(self.tx_used) == ENTRIES {
            // In order, and nothing else is wanted to know of them.
            self.tx_used = self.tx().used_index.load(Ordering::Acquire);
        }
        if self.tx_avail.wrapping_sub(self.tx_used) >= ENTRIES {
            return Ok(false);
        }
        let mut bytes = [0; HEADER + PAYLOAD];
        bytes[..8].copy_from_slice(&GUEST_CID.to_le_bytes());
        bytes[8..16].copy_from_slice(&HOST_CID.to_le_bytes());
        bytes[16..20].copy_from_slice(&OUR_PORT.to_le_bytes());
        bytes[20..24].copy_from_slice(&PORT.to_le_bytes());
        bytes[24..28].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        bytes[28..30].copy_from_slice(&STREAM.to_le_bytes());
        bytes[30..32].copy_from_slice(&op.to_le_bytes());
        bytes[36..40].copy_from_slice(&ROOM.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.bytes_in.to_le_bytes());
        let len = HEADER + payload.len();
        bytes[HEADER..len].copy_from_slice(payload);
        let id = self.tx_avail % ENTRIES;
        let at = buffer(TX, id, STRIDE);
        self.rings.memory.write(at, &bytes[..len]);
        self.tx()
            .set_descriptor(id, guest_address(at), len as u32, false);
        self.tx().set_avail(self.tx_avail, id);
        self.tx_avail = self.tx_avail.wrapping_add(1);
        self.bytes_out = self.bytes_out.wrapping_add(payload.len() as u32);
        Ok(true)
    }

    /// Shows both rings, and kicks where that is wanted.
    fn publish(&mut self) -> Result<(), String> {
        self.tx()
            .avail_index
            .store(self.tx_avail, Ordering::Release);
        self.rx()
            .avail_index
            .store(self.rx_avail, Ordering::Release);
        fence(Ordering::SeqCst);
        let event = |ring: &Ring| ring.avail_event.load(Ordering::Relaxed);
        let mut wanted = Vec::new();
        if crossed(event(self.tx()), self.tx_avail, self.tx_kicked) {
            wanted.push(TX);
        }
        if crossed(event(self.rx()), self.rx_avail, self.rx_kicked) {
            wanted.push(RX);
        }
        (self.tx_kicked, self.rx_kicked) = (self.tx_avail, self.rx_avail);
        for ring in wanted {
            self.counts.kicks += 1;
            kick(&self.rings.kicks[ring])?;
        }
        Ok(())
    }

    fn send(&mut self, limit: u64) -> Result<u64, String> {
        let mut count = 0;
        let mut bytes = [0; PAYLOAD];
        while self.sent < limit && count < BURST {
            let out = self.bytes_out.wrapping_sub(self.peer_read);
            if out + self.size as u32 > self.peers_room {
                if !self.credit_asked {
                    self.credit_asked = self.put(CREDIT_REQUEST, &[])?;
                    self.publish()?;
                }
                break;
            }
            let payload = &mut bytes[..self.size];
            message(self.sent, payload);
            if !self.put(RW, payload)? {
                break;
            }
            self.sent += 1;
            count += 1;
        }
        if count != 0 {
            self.publish()?;
        }
        Ok(count)
    }

    /// Takes what has come; how many packets there were.
    fn receive(&mut self) -> Result<u64, String> {
        let used = self.rx().used_index.load(Ordering::Acquire);
        let mut count = 0;
        while self.rx_used != used && count < BURST {
            let (id, len) = self.rx().used(self.rx_used);
            let id = id as u16 % ENTRIES;
            let len = len as usize;
            let mut bytes = [0; HEADER + PAYLOAD];
            if !(HEADER..=bytes.len()).contains(&len) {
                return Err(format!("the device says that it wrote {len} bytes"));
            }
            let at = buffer(RX, id, STRIDE);
            self.rings.memory.read(at, &mut bytes[..len]);
            self.take(&bytes[..len])?;
            self.rx_used = self.rx_used.wrapping_add(1);
            self.rx().set_avail(self.rx_avail, id);
            self.rx_avail = self.rx_avail.wrapping_add(1);
            count += 1;
        }
        if count != 0 {
            self.publish()?;
        }
        Ok(count)
    }

    fn take(&mut self, packet: &[u8]) -> Result<(), String> {
        let word = |at: usize| {
            u32::from_le_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]])
        };
        (self.peers_room, self.peer_read) = (word(36), word(40));
        self.credit_asked = false;
        let op = (word(28) >> 16) as u16;
        match op {
            RESPONSE => self.connected = true,
            CREDIT_UPDATE => {}
            CREDIT_REQUEST => {
                self.put(CREDIT_UPDATE, &[])?;
            }
            RW => self.take_bytes(&packet[HEADER..])?,
            _ => return Err(format!("the peer said operation {op} in the stream")),
        }
        Ok(())
    }

    fn take_bytes(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        self.bytes_in = self.bytes_in.wrapping_add(bytes.len() as u32);
        let mut expected = [0; PAYLOAD];
        while !bytes.is_empty() {
            message(self.received, &mut expected[..self.size]);
            let rest = &expected[self.partial..self.size];
            let count = rest.len().min(bytes.len());
            if bytes[..count] != rest[..count] {
                return Err(format!("answer {} is wrong", self.received));
            }
            bytes = &bytes[count..];
            self.partial += count;
            if self.partial == self.size {
                self.partial = 0;
                self.received += 1;
            }
        }
        Ok(())
    }

    fn is_ready(&self) -> bool {
        self.rx().used_index.load(Ordering::Acquire) != self.rx_used
    }

    fn wait(&mut self, wait: Wait) -> Result<(), String> {
        let end = Instant::now() + PATIENCE;
        while !self.is_ready() {
            if Instant::now() > end {
                let Self { sent, received, .. } = self;
                return Err(format!(
                    "nothing came for {PATIENCE:?}: {sent} messages sent, {received} received"
                ));
            }
            if wait != Wait::Asleep {
                std::thread::yield_now();
                continue;
            }
            self.rx().used_event.store(self.rx_used, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if self.is_ready() {
                break;
            }
            self.counts.sleeps += 1;
            let mut fds = [PollFd::new(&self.rings.calls[RX], PollFlags::IN)];
            let timeout = Timespec::try_from(PATIENCE).ok();
            let _ = poll(&mut fds, timeout.as_ref());
            self.take_calls();
        }
        Ok(())
    }

    fn take_calls(&mut self) {
        let calls: u64 = self.rings.calls.iter().map(taken).sum();
        self.counts.calls += calls;
    }
}

impl Echo for VsockGuest {
    fn set_size(&mut self, size: usize) {
        // What an rpmsg message of that size carries; a stream cannot carry nothing.
        self.size = (size - 16).clamp(8, PAYLOAD);
    }

    fn exchange(&mut self, count: u64, depth: u64, wait: Wait) -> Result<(), String> {
        let (goal, limit) = (self.received + count, self.sent + count);
        while self.received < goal {
            let sent = self.send(limit.min(self.received + depth))?;
            let received = self.receive()?;
            if sent == 0 && received == 0 {
                self.wait(wait)?;
            }
        }
        Ok(())
    }

    fn counts(&mut self) -> Counts {
        self.take_calls();
        self.counts
    }
}
