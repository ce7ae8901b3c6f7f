//! The relay: one copy of each message, from guest memory to the core's memory or back, judged on
//! the way and counted.
//!
//! What belongs here: moving messages between the two rings of one direction, and deciding which
//! are not fit to be moved. What does not: when to relay (the core's driver decides), ring
//! formats, addresses.
//!
//! Back-pressure, not drops: without a free buffer on the far side a message stays where it is.
//! What is dropped is only what nobody could receive, and each drop is counted by its reason.
//!
//! A header is copied out once, judged, and written from that copy; neither side can change it
//! between the check and the use.

use thiserror::Error;
use vm_memory::{GuestMemoryMmap, VolatileSlice};

use super::driver_ring::{DriverRing, FirmwareFault};
use super::guest_ring::{GuestRing, Next, RingFault};
use super::rpmsg::{Announcements, HEADER_LEN, Header, NS_ADDRESS, NS_LEN};
use crate::memory::{MemoryError, Ram};

/// Messages moved before the indexes are shown to the other side. Publishing much more seldom or
/// for every message makes the two sides fight over, or wait for, the index's cache line.
pub const MESSAGES_PER_BURST: usize = 32;

/// What one direction of a vdev has moved and dropped since the daemon started.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counters {
    /// Messages relayed.
    pub messages: u64,
    /// Their bytes, headers included.
    pub bytes: u64,
    /// Times the receiving side was notified: kicks of the core, calls of the guest.
    pub notifications: u64,
    /// Chains of the guest that could not be used.
    pub bad_chains: u64,
    /// Messages shorter than a header, or than their header says.
    pub malformed: u64,
    /// Messages larger than the buffers of the receiving side.
    pub too_long: u64,
    /// Announcements held back because the guest has no name service.
    pub withheld: u64,
}

/// Why a direction of a vdev cannot be relayed any more.
#[derive(Debug, Error)]
pub enum RelayFault {
    /// The guest broke its ring.
    #[error("the guest's ring cannot be used until the guest's driver sets it up anew")]
    Guest(#[from] RingFault),
    /// The firmware broke its ring.
    #[error("the firmware broke the rules of its vring; it is left alone until the vdev is reset")]
    Firmware(#[from] FirmwareFault),
    /// A ring is not where it was made.
    #[error("a vring of the core is not in its memory any more")]
    Memory(#[from] MemoryError),
}

/// What one burst brought.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Moved {
    /// Something was moved, dropped or freed: look again before sleeping.
    pub progress: bool,
    /// The core is to be kicked on this vring.
    pub kick_core: bool,
    /// The guest is to be called on this queue.
    pub call_guest: bool,
}

/// The core's side of the direction from the guest: a ring whose buffers we fill.
#[derive(Debug)]
pub struct ToCore {
    ring: DriverRing,
    free: Vec<u16>,
}

impl ToCore {
    /// All buffers are free.
    pub fn new(ring: DriverRing) -> Self {
        let free = (0..ring.num()).rev().collect();
        Self { ring, free }
    }

    /// Messages that the firmware holds.
    pub fn in_flight(&self) -> u16 {
        self.ring.held()
    }

    /// Moves up to [`MESSAGES_PER_BURST`] messages from the guest to the core.
    ///
    /// # Errors
    /// [`RelayFault`]: this direction is broken, by the guest or by the firmware.
    pub fn relay(
        &mut self,
        guest: &mut GuestRing,
        mem: &GuestMemoryMmap,
        ram: &Ram,
        counters: &mut Counters,
    ) -> Result<Moved, RelayFault> {
        let mut moved = Moved::default();
        let mut core = self.ring.open(ram)?;
        while let Some((id, _)) = core.take_returned()? {
            self.free.push(id);
            moved.progress = true;
        }
        let mut burst = guest.open(mem)?;
        burst.refuse_kicks();
        let mut looked_at = 0;
        while looked_at < MESSAGES_PER_BURST {
            let (head, len) = match burst.peek()? {
                Next::Nothing => {
                    if burst.ask_for_kick()? {
                        burst.refuse_kicks();
                        continue;
                    }
                    break;
                }
                Next::Bad { head, .. } => {
                    counters.bad_chains += 1;
                    burst.complete(head, 0);
                    looked_at += 1;
                    continue;
                }
                Next::Chain { head, len } => (head, len),
            };
            // Kicks stay refused while we are out of buffers: the firmware, by giving one back,
            // brings us here again.
            let Some(id) = self.free.last().copied() else {
                break;
            };
            looked_at += 1;
            let mut header = [0u8; HEADER_LEN];
            gather(burst.buffers(), &mut header);
            let message_len = Header::parse(&header).message_len();
            if len < HEADER_LEN || message_len > len {
                counters.malformed += 1;
            } else if message_len > core.buffer_size() as usize {
                counters.too_long += 1;
            } else {
                copy_message(&header, burst.buffers(), &[core.buffer(id)?], message_len);
                self.free.pop();
                #[expect(clippy::cast_possible_truncation, reason = "at most a buffer's size")]
                core.offer(id, message_len as u32, false);
                counters.messages += 1;
                counters.bytes += message_len as u64;
            }
            burst.complete(head, 0);
        }
        moved.progress |= looked_at != 0;
        burst.publish();
        moved.call_guest = burst.wants_call();
        moved.kick_core = core.publish();
        counters.notifications += u64::from(moved.kick_core);
        Ok(moved)
    }
}

/// The core's side of the direction to the guest: a ring whose buffers the firmware fills.
#[derive(Debug)]
pub struct ToGuest {
    ring: DriverRing,
    /// A message that the firmware gave us and that has not found a buffer of the guest yet.
    waiting: Option<(u16, u32)>,
}

impl ToGuest {
    /// Offers all buffers to the firmware.
    ///
    /// # Errors
    /// [`MemoryError`] if the ring is not inside `ram`.
    pub fn new(mut ring: DriverRing, ram: &Ram) -> Result<Self, MemoryError> {
        let (num, size) = (ring.num(), ring.buffer_size());
        let mut core = ring.open(ram)?;
        for id in 0..num {
            core.offer(id, size, true);
        }
        core.publish();
        Ok(Self {
            ring,
            waiting: None,
        })
    }

    /// Does a message wait for a buffer of the guest?
    pub fn is_starved(&self) -> bool {
        self.waiting.is_some()
    }

    /// Moves up to [`MESSAGES_PER_BURST`] messages from the core to the guest. `name_service`
    /// says whether the guest understands announcements; if not they are held back.
    ///
    /// # Errors
    /// [`RelayFault`]: this direction is broken, by the guest or by the firmware.
    pub fn relay(
        &mut self,
        guest: &mut GuestRing,
        mem: &GuestMemoryMmap,
        ram: &Ram,
        name_service: bool,
        announcements: &mut Announcements,
        counters: &mut Counters,
    ) -> Result<Moved, RelayFault> {
        let mut moved = Moved::default();
        let mut core = self.ring.open(ram)?;
        if self.waiting.is_none() && !core.has_returned()? {
            return Ok(moved);
        }
        let mut burst = guest.open(mem)?;
        // The guest's driver kicks this queue after every refill. We look when we have a message,
        // so a kick is worth something only while we are out of buffers.
        burst.refuse_kicks();
        let mut looked_at = 0;
        while looked_at < MESSAGES_PER_BURST {
            let Some((id, len)) = self
                .waiting
                .take()
                .map_or_else(|| core.take_returned(), |m| Ok(Some(m)))?
            else {
                break;
            };
            let size = core.buffer_size();
            let buffer = core.buffer(id)?;
            let mut header = [0u8; HEADER_LEN];
            buffer.copy_to(&mut header);
            let parsed = Header::parse(&header);
            let message_len = parsed.message_len();
            // The length in the used ring may be that of the whole buffer (OpenAMP's devices do
            // that); what counts is the header, and that it does not claim more.
            if message_len > len.min(size) as usize {
                counters.malformed += 1;
                core.offer(id, size, true);
                looked_at += 1;
                continue;
            }
            let is_announcement =
                parsed.destination == NS_ADDRESS && usize::from(parsed.payload_len) == NS_LEN;
            if is_announcement && !name_service {
                counters.withheld += 1;
                core.offer(id, size, true);
                looked_at += 1;
                continue;
            }
            match burst.peek()? {
                Next::Nothing => {
                    self.waiting = Some((id, len));
                    if burst.ask_for_kick()? {
                        burst.refuse_kicks();
                        continue;
                    }
                    break;
                }
                Next::Bad { head, .. } => {
                    counters.bad_chains += 1;
                    burst.complete(head, 0);
                    self.waiting = Some((id, len));
                    looked_at += 1;
                    continue;
                }
                Next::Chain { len: room, .. } if room < message_len => counters.too_long += 1,
                Next::Chain { head, .. } => {
                    let mut payload = [0u8; NS_LEN];
                    if is_announcement {
                        // From here on the copy counts, for the guest and for our book.
                        if let Ok(rest) = buffer.subslice(HEADER_LEN, NS_LEN) {
                            rest.copy_to(&mut payload);
                        }
                        announcements.note(&payload);
                        let mut to = Cursor::new(burst.buffers());
                        put(&header, &mut to);
                        put(&payload, &mut to);
                    } else {
                        copy_message(&header, &[buffer], burst.buffers(), message_len);
                    }
                    #[expect(clippy::cast_possible_truncation, reason = "at most a buffer's size")]
                    burst.complete(head, message_len as u32);
                    counters.messages += 1;
                    counters.bytes += message_len as u64;
                }
            }
            core.offer(id, size, true);
            looked_at += 1;
        }
        moved.progress = looked_at != 0;
        burst.publish();
        moved.call_guest = burst.wants_call();
        counters.notifications += u64::from(moved.call_guest);
        moved.kick_core = core.publish();
        Ok(moved)
    }
}

/// Copies from the start of `from` until `into` is full or `from` ends.
fn gather(from: &[VolatileSlice<'_>], into: &mut [u8]) {
    let mut done = 0;
    for slice in from {
        if done == into.len() {
            break;
        }
        done += slice.copy_to(&mut into[done..]);
    }
}

/// Writes `bytes` at the cursor, as far as there is room.
fn put(mut bytes: &[u8], to: &mut Cursor<'_, '_>) {
    while !bytes.is_empty() {
        let Some(room) = to.take(bytes.len()) else {
            return;
        };
        let (now, later) = bytes.split_at(room.len());
        room.copy_from(now);
        bytes = later;
    }
}

/// Copies `len` bytes, or what the shorter side has, from one list of buffers to another.
fn copy(from: &mut Cursor<'_, '_>, to: &mut Cursor<'_, '_>, mut len: usize) {
    while len != 0 {
        let Some(room) = to.peek().map(|room| room.len().min(len)) else {
            return;
        };
        let Some(part) = from.take(room) else { return };
        let Some(room) = to.take(part.len()) else {
            return;
        };
        part.copy_to_volatile_slice(room);
        len -= part.len();
    }
}

/// Copies a message of `len` bytes, with `header` in place of its first bytes.
fn copy_message(
    header: &[u8; HEADER_LEN],
    from: &[VolatileSlice<'_>],
    to: &[VolatileSlice<'_>],
    len: usize,
) {
    let (mut from, mut to) = (Cursor::new(from), Cursor::new(to));
    put(header, &mut to);
    from.skip(HEADER_LEN);
    copy(&mut from, &mut to, len - HEADER_LEN);
}

/// A place in a list of buffers.
struct Cursor<'s, 'm> {
    slices: &'s [VolatileSlice<'m>],
    offset: usize,
}

impl<'s, 'm> Cursor<'s, 'm> {
    fn new(slices: &'s [VolatileSlice<'m>]) -> Self {
        Self { slices, offset: 0 }
    }

    /// What is left of the buffer at the cursor.
    fn peek(&self) -> Option<VolatileSlice<'m>> {
        self.slices.first()?.offset(self.offset).ok()
    }

    fn skip(&mut self, mut bytes: usize) {
        while let Some(piece) = (bytes != 0).then(|| self.take(bytes)).flatten() {
            bytes -= piece.len();
        }
    }

    /// The next piece, at most `max` bytes, never empty; `None` at the end of the buffers.
    fn take(&mut self, max: usize) -> Option<VolatileSlice<'m>> {
        let (first, rest) = self.slices.split_first()?;
        let len = max.min(first.len() - self.offset);
        let piece = first.subslice(self.offset, len).ok()?;
        self.offset += len;
        if self.offset == first.len() {
            self.slices = rest;
            self.offset = 0;
        }
        Some(piece)
    }
}
