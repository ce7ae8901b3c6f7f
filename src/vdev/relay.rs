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
use vm_memory::{VolatileMemory, VolatileSlice};

use super::driver_ring::{DriverBurst, DriverRing, FirmwareFault};
use super::guest_ring::{Burst, GuestRing, Next, RingFault};
use super::rpmsg::{Announcements, HEADER_LEN, Header, NS_ADDRESS, NS_LEN};
use crate::memory::MemoryError;

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
    /// Messages that died with an incarnation of the core: sent and not taken, or answered and
    /// not delivered.
    pub lost: u64,
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
    /// It ended because the guest offers nothing: before sleeping, it must be asked to kick.
    pub wants_guest: bool,
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

    /// Is there a buffer for a message, by the look of it?
    #[inline]
    pub fn has_room(&self) -> bool {
        !self.free.is_empty() || self.ring.has_more()
    }

    /// Were there no buffers left, and has the firmware given one back since? Then messages of the
    /// guest may wait, and with them nobody else: the guest does not kick for them any more.
    pub fn can_go_on(&self) -> bool {
        self.free.is_empty() && self.ring.has_more()
    }

    /// The incarnation is gone: how many messages it had been given and never gave back.
    pub fn untaken(mut self) -> u64 {
        if let Ok(mut core) = self.ring.open() {
            while let Ok(Some(_)) = core.take_returned() {}
        }
        u64::from(self.ring.held())
    }

    /// Moves up to [`MESSAGES_PER_BURST`] messages from the guest to the core. What `moved` then
    /// says has happened, whatever ended the burst.
    ///
    /// # Errors
    /// [`RelayFault`]: this direction is broken, by the guest or by the firmware.
    pub fn relay(
        &mut self,
        guest: &mut GuestRing,
        counters: &mut Counters,
        moved: &mut Moved,
    ) -> Result<(), RelayFault> {
        let mut core = self.ring.open()?;
        while let Some((id, _)) = core.take_returned()? {
            self.free.push(id);
            moved.progress = true;
        }
        let mut burst = guest.open()?;
        let ended = to_core(&mut burst, &mut core, &mut self.free, counters, moved);
        // Also after a fault: what was moved before it has been moved, and both sides must see it.
        burst.publish();
        moved.call_guest = burst.wants_call();
        moved.kick_core = core.publish();
        counters.notifications += u64::from(moved.kick_core);
        ended
    }
}

/// Moves messages until there are none, or no buffers for them, or the burst's share is used up.
fn to_core(
    burst: &mut Burst<'_>,
    core: &mut DriverBurst<'_>,
    free: &mut Vec<u16>,
    counters: &mut Counters,
    moved: &mut Moved,
) -> Result<(), RelayFault> {
    let mut looked_at = 0;
    while looked_at < MESSAGES_PER_BURST {
        let (head, len) = match burst.peek()? {
            Next::Nothing => {
                moved.wants_guest = true;
                break;
            }
            Next::Bad { head, .. } => {
                counters.bad_chains += 1;
                burst.complete(head, 0);
                looked_at += 1;
                moved.progress = true;
                continue;
            }
            Next::Chain { head, len } => (head, len),
        };
        // Kicks stay refused while we are out of buffers: the firmware, by giving one back,
        // brings us here again.
        let Some(id) = free.last().copied() else {
            break;
        };
        let header = read_header(burst.buffers());
        let message_len = Header::from_words(header).message_len();
        if len < HEADER_LEN || message_len > len {
            counters.malformed += 1;
        } else if message_len > core.buffer_size() as usize {
            counters.too_long += 1;
        } else {
            let Some(buffer) = core.buffer(id) else { break };
            copy_message(header, burst.buffers(), &[buffer], message_len);
            free.pop();
            #[expect(clippy::cast_possible_truncation, reason = "at most a buffer's size")]
            core.offer(id, message_len as u32, false);
            counters.messages += 1;
            counters.bytes += message_len as u64;
        }
        burst.complete(head, 0);
        looked_at += 1;
        moved.progress = true;
    }
    Ok(())
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
    pub fn new(mut ring: DriverRing) -> Result<Self, MemoryError> {
        let (num, size) = (ring.num(), ring.buffer_size());
        let mut core = ring.open()?;
        for id in 0..num {
            core.offer(id, size, true);
        }
        core.publish();
        Ok(Self {
            ring,
            waiting: None,
        })
    }

    /// Is there, by the look of it, a message for the guest?
    #[inline]
    pub fn has_more(&self) -> bool {
        self.waiting.is_some() || self.ring.has_more()
    }

    /// Does a message wait for a buffer of the guest?
    pub fn is_starved(&self) -> bool {
        self.waiting.is_some()
    }

    /// The incarnation is gone: how many of its messages have not reached the guest.
    pub fn undelivered(mut self) -> u64 {
        let mut count = u64::from(self.waiting.is_some());
        if let Ok(mut core) = self.ring.open() {
            while let Ok(Some(_)) = core.take_returned() {
                count += 1;
            }
        }
        count
    }

    /// Moves up to [`MESSAGES_PER_BURST`] messages from the core to the guest, and enters what is
    /// announced in `book`. Without one the guest has no name service, and announcements are held
    /// back. What `moved` then says has happened, whatever ended the burst.
    ///
    /// # Errors
    /// [`RelayFault`]: this direction is broken, by the guest or by the firmware.
    pub fn relay(
        &mut self,
        guest: &mut GuestRing,
        book: Option<&mut Announcements>,
        counters: &mut Counters,
        moved: &mut Moved,
    ) -> Result<(), RelayFault> {
        if !self.has_more() {
            return Ok(());
        }
        let mut core = self.ring.open()?;
        let mut burst = guest.open()?;
        let waiting = &mut self.waiting;
        let ended = to_guest(&mut burst, &mut core, waiting, book, counters, moved);
        // Also after a fault, as in the other direction.
        burst.publish();
        moved.call_guest = burst.wants_call();
        counters.notifications += u64::from(moved.call_guest);
        moved.kick_core = core.publish();
        ended
    }
}

/// Moves messages until there are none, or no buffers for them, or the burst's share is used up.
fn to_guest(
    burst: &mut Burst<'_>,
    core: &mut DriverBurst<'_>,
    waiting: &mut Option<(u16, u32)>,
    mut book: Option<&mut Announcements>,
    counters: &mut Counters,
    moved: &mut Moved,
) -> Result<(), RelayFault> {
    let size = core.buffer_size();
    let mut looked_at = 0;
    while looked_at < MESSAGES_PER_BURST {
        if waiting.is_none() {
            *waiting = core.take_returned()?;
        }
        // It waits until it is known what becomes of it.
        let Some((id, len)) = *waiting else { break };
        let Some(buffer) = core.buffer(id) else { break };
        let header = read_header(&[buffer]);
        let parsed = Header::from_words(header);
        let message_len = parsed.message_len();
        let is_announcement =
            parsed.destination == NS_ADDRESS && usize::from(parsed.payload_len) == NS_LEN;
        // The length in the used ring may be that of the whole buffer (OpenAMP's devices do
        // that); what counts is the header, and that it does not claim more.
        if message_len > len.min(size) as usize {
            counters.malformed += 1;
        } else if is_announcement && book.is_none() {
            counters.withheld += 1;
        } else {
            match burst.peek()? {
                Next::Nothing => {
                    moved.wants_guest = true;
                    break;
                }
                Next::Bad { head, .. } => {
                    counters.bad_chains += 1;
                    burst.complete(head, 0);
                    looked_at += 1;
                    moved.progress = true;
                    continue;
                }
                Next::Chain { len: room, .. } if room < message_len => counters.too_long += 1,
                Next::Chain { head, .. } => {
                    if let Some(book) = book.as_mut().filter(|_| is_announcement) {
                        let mut payload = [0u8; NS_LEN];
                        // From here on the copy counts, for the guest and for our book.
                        if let Ok(rest) = buffer.subslice(HEADER_LEN, NS_LEN) {
                            rest.copy_to(&mut payload);
                        }
                        book.note(&payload);
                        let mut to = Cursor::new(burst.buffers());
                        put(&header_bytes(header), &mut to);
                        put(&payload, &mut to);
                    } else {
                        copy_message(header, &[buffer], burst.buffers(), message_len);
                    }
                    #[expect(clippy::cast_possible_truncation, reason = "at most a buffer's size")]
                    burst.complete(head, message_len as u32);
                    counters.messages += 1;
                    counters.bytes += message_len as u64;
                }
            }
        }
        *waiting = None;
        core.offer(id, size, true);
        looked_at += 1;
        moved.progress = true;
    }
    Ok(())
}

/// Copies a header out, in two words that are kept in registers, or as much of it as there is, and
/// zeroes.
///
/// Not as bytes: those would be put in memory in pieces and read back whole, for which a processor
/// waits until everything that was written before has left it, and that is the last message.
#[inline]
fn read_header(from: &[VolatileSlice<'_>]) -> [u64; 2] {
    if let Some(first) = from.first()
        && let (Ok(low), Ok(high)) = (first.get_ref::<u64>(0), first.get_ref::<u64>(8))
    {
        return [u64::from_le(low.load()), u64::from_le(high.load())];
    }
    read_header_in_pieces(from)
}

#[cold]
fn read_header_in_pieces(from: &[VolatileSlice<'_>]) -> [u64; 2] {
    let mut header = [0; HEADER_LEN];
    let mut done = 0;
    for slice in from {
        if done == header.len() {
            break;
        }
        done += slice.copy_to(&mut header[done..]);
    }
    let (low, high) = header.split_at(8);
    [low, high].map(|half| {
        let mut word = [0; 8];
        word.copy_from_slice(half);
        u64::from_le_bytes(word)
    })
}

fn header_bytes([low, high]: [u64; 2]) -> [u8; HEADER_LEN] {
    (u128::from(low) | (u128::from(high) << 64)).to_le_bytes()
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

/// Writes a whole message to a guest's buffers, which have room for it.
pub(super) fn write_message(message: &[u8], to: &[VolatileSlice<'_>]) {
    put(message, &mut Cursor::new(to));
}

/// Copies a message of `len` bytes, with `header` in place of its first bytes.
#[inline(always)]
fn copy_message(
    header: [u64; 2],
    from: &[VolatileSlice<'_>],
    to: &[VolatileSlice<'_>],
    len: usize,
) {
    // One buffer on each side: what every driver that we know does. The header is copied with the
    // rest, which is quicker, and put right before anybody is shown the message.
    if let ([from], [to]) = (from, to)
        && let Ok(message) = from.subslice(0, len)
        && let (Ok(low), Ok(high)) = (to.get_ref::<u64>(0), to.get_ref::<u64>(8))
    {
        message.copy_to_volatile_slice(*to);
        low.store(header[0].to_le());
        high.store(header[1].to_le());
        return;
    }
    copy_in_pieces(header, from, to, len);
}

#[cold]
fn copy_in_pieces(
    header: [u64; 2],
    from: &[VolatileSlice<'_>],
    to: &[VolatileSlice<'_>],
    len: usize,
) {
    let (mut from, mut to) = (Cursor::new(from), Cursor::new(to));
    put(&header_bytes(header), &mut to);
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

#[cfg(test)]
mod tests {
    use super::super::guest_ring::{Direction, RingFeatures};
    use super::super::mock::{
        CORE_BUFFERS, Driver, Firmware, GUEST_BUFFERS, GUEST_END, VRING, WRITE, announcement,
        message,
    };
    use super::super::rpmsg::BUFFER_LEN;
    use super::*;

    const EVENT_IDX: RingFeatures = RingFeatures {
        event_idx: true,
        indirect: false,
    };

    /// A burst's outcome: what it moved, and what ended it.
    type Outcome = (Moved, Option<RelayFault>);

    fn healthy((moved, fault): Outcome) -> Moved {
        assert!(fault.is_none(), "{fault:?}");
        moved
    }

    fn is_guests(outcome: &Outcome) -> bool {
        matches!(outcome.1, Some(RelayFault::Guest(_)))
    }

    fn is_firmwares(outcome: &Outcome) -> bool {
        matches!(outcome.1, Some(RelayFault::Firmware(_)))
    }

    /// What a vdev does before it sleeps.
    fn ask_if_wanted(guest: &mut GuestRing, moved: &mut Moved) {
        if std::mem::take(&mut moved.wants_guest) {
            let more = guest.open().unwrap().ask_for_kick();
            assert_eq!(more, Ok(false), "nothing comes meanwhile");
        }
    }

    /// The direction from the guest to the core.
    struct Up {
        driver: Driver,
        guest: GuestRing,
        firmware: Firmware,
        core: ToCore,
        counters: Counters,
    }

    impl Up {
        fn new(guest: u16, core: u16) -> Self {
            Self::with(guest, core, BUFFER_LEN)
        }

        fn with(guest: u16, core: u16, buffer_size: u32) -> Self {
            let driver = Driver::new(guest);
            let (firmware, ring) = Firmware::new(core, buffer_size, 0xa5);
            Self {
                guest: driver.ring(EVENT_IDX, Direction::FromGuest),
                driver,
                firmware,
                core: ToCore::new(ring),
                counters: Counters::default(),
            }
        }

        /// One burst. Whatever came of it, what was completed is published.
        fn relay(&mut self) -> Outcome {
            let mut moved = Moved::default();
            let (core, guest) = (&mut self.core, &mut self.guest);
            let ended = core.relay(guest, &mut self.counters, &mut moved);
            ask_if_wanted(guest, &mut moved);
            assert_eq!(self.driver.used_index(), self.guest.position());
            (moved, ended.err())
        }

        /// Offers a message in one buffer of its own.
        fn offer(&mut self, id: u16, message: &[u8]) {
            let at = GUEST_BUFFERS + 512 * u64::from(id);
            self.driver.write(at, message);
            let len = u32::try_from(message.len()).unwrap();
            self.driver.describe(id, (at, len), 0, 0);
            self.driver.offer(id);
        }
    }

    /// The direction from the core to the guest.
    struct Down {
        driver: Driver,
        guest: GuestRing,
        firmware: Firmware,
        core: ToGuest,
        counters: Counters,
        name_service: bool,
        book: Announcements,
    }

    impl Down {
        fn new(guest: u16, core: u16) -> Self {
            let driver = Driver::new(guest);
            let (firmware, ring) = Firmware::new(core, BUFFER_LEN, 0xa5);
            Self {
                guest: driver.ring(EVENT_IDX, Direction::ToGuest),
                driver,
                core: ToGuest::new(ring).unwrap(),
                firmware,
                counters: Counters::default(),
                name_service: true,
                book: Announcements::default(),
            }
        }

        /// One burst. Whatever came of it, what was completed is published.
        fn relay(&mut self) -> Outcome {
            let mut moved = Moved::default();
            let ended = self.core.relay(
                &mut self.guest,
                self.name_service.then_some(&mut self.book),
                &mut self.counters,
                &mut moved,
            );
            ask_if_wanted(&mut self.guest, &mut moved);
            assert_eq!(self.driver.used_index(), self.guest.position());
            (moved, ended.err())
        }

        fn buffer(id: u16) -> u64 {
            GUEST_BUFFERS + 512 * u64::from(id)
        }

        /// Offers a whole buffer.
        fn offer(&mut self, id: u16) {
            self.driver.describe(id, (Self::buffer(id), 512), WRITE, 0);
            self.driver.offer(id);
        }

        /// What the guest finds in the used entry at `index`.
        fn received(&self, index: u16) -> Vec<u8> {
            let (id, len) = self.driver.used(index);
            let at = Self::buffer(u16::try_from(id).unwrap());
            self.driver.read(at, usize::try_from(len).unwrap())
        }
    }

    #[test]
    fn a_message_of_any_length_reaches_the_core_unchanged() {
        let mut up = Up::new(4, 4);
        for len in 0..=496 {
            let sent = message(1024, len, u32::from(len));
            up.offer(len % 4, &sent);
            let moved = healthy(up.relay());
            assert!(moved.progress && moved.kick_core);
            assert_eq!(up.firmware.receive().unwrap(), sent);
            assert_eq!(up.driver.used(len), (u32::from(len % 4), 0));
        }
        assert_eq!(up.counters.messages, 497);
        assert_eq!(
            up.counters.bytes,
            (0..=496).map(|len| 16 + len).sum::<u64>()
        );
        assert_eq!(up.counters.notifications, 497);
    }

    #[test]
    fn a_message_of_any_length_reaches_the_guest_unchanged() {
        let mut down = Down::new(4, 4);
        for len in 0..=496 {
            let sent = message(1024, len, u32::from(len));
            down.offer(len % 4);
            assert!(down.firmware.send(&sent));
            let moved = healthy(down.relay());
            assert!(moved.progress && moved.kick_core);
            assert_eq!(down.received(len), sent);
        }
        assert_eq!(down.counters.messages, 497);
        assert_eq!(
            down.counters.bytes,
            (0..=496).map(|len| 16 + len).sum::<u64>()
        );
    }

    #[test]
    fn a_message_may_be_split_anywhere_on_the_guests_side() {
        let splits: [&[u32]; 8] = [
            &[16, 496],
            &[1, 511],
            &[15, 497],
            &[17, 495],
            &[8, 4, 500],
            &[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 495],
            &[7, 0, 9, 0, 100, 396],
            &[511, 1],
        ];
        for split in splits {
            for len in [0, 1, 40, 300, 496] {
                let sent = message(7, len, 99);
                let mut buffers = Vec::new();
                let mut at = GUEST_BUFFERS;
                for part in split {
                    buffers.push((at, *part));
                    at += u64::from(*part) + 3;
                }
                let ids: Vec<u16> = (0..32).collect();

                let mut up = Up::new(32, 4);
                up.driver.chain(&ids, &buffers, 0);
                let mut rest = &sent[..];
                for (at, part) in &buffers {
                    let (now, later) = rest.split_at(rest.len().min(*part as usize));
                    up.driver.write(*at, now);
                    rest = later;
                }
                up.driver.offer(0);
                healthy(up.relay());
                assert_eq!(up.firmware.receive().unwrap(), sent, "{split:?} {len}");

                let mut down = Down::new(32, 4);
                down.driver.chain(&ids, &buffers, WRITE);
                down.driver.offer(0);
                assert!(down.firmware.send(&sent));
                healthy(down.relay());
                let mut received = Vec::new();
                for (at, part) in &buffers {
                    received.extend(down.driver.read(*at, *part as usize));
                    assert_eq!(down.driver.read(at + u64::from(*part), 3), [0; 3]);
                }
                assert!(received[sent.len()..].iter().all(|byte| *byte == 0));
                received.truncate(sent.len());
                assert_eq!(received, sent, "{split:?} {len}");
            }
        }
    }

    #[test]
    fn a_buffer_longer_than_its_message_brings_only_the_message() {
        let mut up = Up::new(4, 4);
        let sent = message(7, 10, 1);
        let mut padded = sent.clone();
        padded.resize(512, 0xee);
        up.offer(0, &padded);
        healthy(up.relay());
        assert_eq!(up.firmware.receive().unwrap(), sent);
        assert_eq!(up.firmware.read(CORE_BUFFERS + 26, 486), [0xa5; 486]);
    }

    #[test]
    fn a_malformed_message_of_the_guest_is_dropped_counted_and_given_back() {
        let mut claims_more = message(7, 100, 1);
        claims_more.pop();
        let mut claims_most = message(7, 0, 1);
        claims_most[12..14].copy_from_slice(&u16::MAX.to_le_bytes());
        let cases = [claims_more, claims_most, vec![0; 15], vec![0; 1], vec![]];
        let mut up = Up::new(8, 8);
        for (id, case) in (0..).zip(&cases) {
            up.offer(id, case);
        }
        let good = message(7, 5, 2);
        up.offer(7, &good);
        healthy(up.relay());
        assert_eq!(up.counters.malformed, 5);
        assert_eq!(up.counters.messages, 1);
        assert_eq!(up.firmware.receive().unwrap(), good);
        assert_eq!(up.firmware.receive(), None);
        for (index, id) in [0, 1, 2, 3, 4, 7].into_iter().enumerate() {
            assert_eq!(up.driver.used(u16::try_from(index).unwrap()), (id, 0));
        }
    }

    #[test]
    fn a_malformed_message_of_the_core_is_dropped_counted_and_its_buffer_offered_again() {
        let mut down = Down::new(8, 2);
        down.offer(0);
        for (claimed, said) in [
            (497u16, 512u32),
            (u16::MAX, u32::MAX),
            (100, 115),
            (0, 15),
            (0, 0),
        ] {
            let (id, address, _) = down.firmware.take().unwrap();
            let mut bytes = message(7, 0, 1);
            bytes[12..14].copy_from_slice(&claimed.to_le_bytes());
            down.firmware.write(address, &bytes);
            down.firmware.give_back(id.into(), said);
            assert!(healthy(down.relay()).kick_core);
        }
        assert_eq!(down.counters.malformed, 5);
        assert_eq!(down.guest.position(), 0, "the guest's buffer was not used");
        let good = message(7, 5, 2);
        assert!(down.firmware.send(&good));
        healthy(down.relay());
        assert_eq!(down.received(0), good);
    }

    #[test]
    fn a_message_too_long_for_the_core_is_dropped_and_counted() {
        let mut up = Up::with(4, 4, 256);
        up.offer(0, &message(7, 241, 1));
        let good = message(7, 240, 2);
        up.offer(1, &good);
        healthy(up.relay());
        assert_eq!((up.counters.too_long, up.counters.messages), (1, 1));
        assert_eq!(up.firmware.receive().unwrap(), good);
        assert_eq!((up.driver.used(0), up.driver.used(1)), ((0, 0), (1, 0)));
    }

    #[test]
    fn a_message_too_long_for_the_guests_buffer_is_dropped_and_counted() {
        let mut down = Down::new(4, 4);
        let at = Down::buffer(0);
        down.driver.describe(0, (at, 99), WRITE, 0);
        down.driver.offer(0);
        assert!(down.firmware.send(&message(7, 84, 1)));
        let good = message(7, 83, 2);
        assert!(down.firmware.send(&good));
        healthy(down.relay());
        assert_eq!((down.counters.too_long, down.counters.messages), (1, 1));
        assert_eq!(down.received(0), good);
        assert_eq!(down.driver.used_index(), 1);
        assert_eq!(
            down.firmware.available(),
            6,
            "both buffers were offered again"
        );
    }

    #[test]
    fn a_bad_chain_of_the_guest_costs_no_message_in_either_direction() {
        let mut up = Up::new(8, 8);
        let (a, b) = (message(7, 5, 1), message(7, 6, 2));
        up.offer(0, &a);
        up.driver.describe(1, (GUEST_END, 16), 0, 0);
        up.driver.offer(1);
        up.offer(2, &b);
        healthy(up.relay());
        assert_eq!(up.counters.bad_chains, 1);
        assert_eq!(up.firmware.receive().unwrap(), a);
        assert_eq!(up.firmware.receive().unwrap(), b);
        let used: Vec<_> = (0..3).map(|index| up.driver.used(index)).collect();
        assert_eq!(used, [(0, 0), (1, 0), (2, 0)]);

        let mut down = Down::new(8, 8);
        down.offer(0);
        down.driver.describe(1, (GUEST_BUFFERS, 512), 0, 0);
        down.driver.offer(1);
        down.offer(2);
        assert!(down.firmware.send(&a) && down.firmware.send(&b));
        healthy(down.relay());
        assert_eq!(down.counters.bad_chains, 1);
        assert_eq!((down.received(0), down.received(2)), (a, b));
        assert_eq!(down.driver.used(1), (1, 0));
    }

    #[test]
    fn without_a_buffer_of_the_core_the_guests_message_stays_where_it_is() {
        let mut up = Up::new(8, 2);
        let sent: Vec<_> = (0..5).map(|seed| message(7, 9, seed)).collect();
        for (id, message) in (0..).zip(&sent) {
            up.offer(id, message);
        }
        healthy(up.relay());
        assert_eq!((up.driver.used_index(), up.core.in_flight()), (2, 2));
        assert_eq!(healthy(up.relay()), Moved::default());
        let old = up.driver.available;
        up.offer(5, &message(7, 9, 5));
        assert!(!up.driver.would_kick(true, old), "the firmware brings us");
        let mut received = Vec::new();
        for used in [3, 4, 5, 6, 6] {
            received.extend(up.firmware.receive());
            healthy(up.relay());
            assert_eq!(up.driver.used_index(), used);
        }
        assert_eq!(received, sent);
        let old = up.driver.available;
        up.offer(6, &message(7, 9, 6));
        assert!(
            up.driver.would_kick(true, old),
            "nothing is left to wait for"
        );
    }

    #[test]
    fn without_a_buffer_of_the_guest_the_cores_message_waits() {
        let mut down = Down::new(8, 4);
        let sent: Vec<_> = (0..4).map(|seed| message(7, 9, seed)).collect();
        for message in &sent {
            assert!(down.firmware.send(message));
        }
        assert!(!healthy(down.relay()).progress);
        assert!(down.core.is_starved());
        assert_eq!(down.core.ring.held(), 3, "at most one was taken");
        assert!(!healthy(down.relay()).progress);
        assert_eq!(down.core.ring.held(), 3);
        let old = down.driver.available;
        down.offer(0);
        assert!(down.driver.would_kick(true, old), "the guest brings us");
        healthy(down.relay());
        assert_eq!(down.driver.used_index(), 1);
        for id in 1..4 {
            down.offer(id);
        }
        healthy(down.relay());
        assert!(!down.core.is_starved());
        let received: Vec<_> = (0..4).map(|index| down.received(index)).collect();
        assert_eq!(received, sent);
        let old = down.driver.available;
        down.offer(4);
        assert!(!down.driver.would_kick(true, old), "a refill is no news");
    }

    #[test]
    fn the_guest_is_told_the_messages_length_whatever_the_firmware_says() {
        let mut down = Down::new(4, 4);
        for (index, said) in (0..).zip([512, 26, u32::MAX]) {
            down.offer(index);
            let (id, address, _) = down.firmware.take().unwrap();
            down.firmware.write(address, &message(7, 10, 3));
            down.firmware.give_back(id.into(), said);
            healthy(down.relay());
            assert_eq!(down.driver.used(index), (index.into(), 26));
        }
    }

    #[test]
    fn announcements_are_withheld_from_a_guest_without_name_service() {
        let mut down = Down::new(4, 4);
        down.name_service = false;
        down.offer(0);
        let data = message(7, 40, 1);
        let not_quite = message(NS_ADDRESS, 39, 1);
        assert!(down.firmware.send(&announcement("rpmsg-raw", 1024, 0)));
        assert!(down.firmware.send(&data));
        healthy(down.relay());
        assert_eq!((down.counters.withheld, down.counters.messages), (1, 1));
        assert_eq!(down.received(0), data);
        assert_eq!(down.book.iter().count(), 0);
        down.offer(1);
        assert!(down.firmware.send(&not_quite));
        healthy(down.relay());
        assert_eq!(down.received(1), not_quite, "not of name service's length");
        assert_eq!(down.firmware.available(), 7);
    }

    #[test]
    fn an_announcement_is_booked_when_the_guest_gets_it_and_not_before() {
        let mut down = Down::new(4, 4);
        let sent = announcement("rpmsg-raw", 1024, 0);
        assert!(down.firmware.send(&sent));
        healthy(down.relay());
        assert_eq!(down.book.iter().count(), 0);
        // In small pieces, to be sure that the copy is put together right.
        let buffers: Vec<_> = (0..4).map(|at| (Down::buffer(0) + 14 * at, 14)).collect();
        down.driver.chain(&[0, 1, 2, 3], &buffers, WRITE);
        down.driver.offer(0);
        healthy(down.relay());
        assert_eq!(down.received(0), sent);
        let known: Vec<_> = down.book.iter().map(|known| known.address).collect();
        assert_eq!(known, [1024]);
    }

    #[test]
    fn the_header_that_was_judged_is_the_header_that_is_written() {
        // The buffer it was read from holds another one by the time of the copy.
        let judged: [u8; HEADER_LEN] = message(7, 8, 1)[..HEADER_LEN].try_into().unwrap();
        let changed = message(9, 0xffff, 2);
        let mut from = changed[..24].to_vec();
        let mut into = [0u8; 24];
        let len = Header::parse(&judged).message_len();
        copy_message(
            [&judged[..8], &judged[8..]].map(|half| u64::from_le_bytes(half.try_into().unwrap())),
            &[VolatileSlice::from(&mut from[..])],
            &[VolatileSlice::from(&mut into[..])],
            len,
        );
        assert_eq!(into[..HEADER_LEN], judged);
        assert_eq!(into[HEADER_LEN..], changed[HEADER_LEN..24]);
    }

    #[test]
    fn a_header_that_changes_all_the_time_reaches_no_side_unjudged() {
        use std::sync::atomic::{AtomicBool, Ordering};
        // One thread flips the length between a good and a bad one. What arrives is one of the
        // lengths that were acceptable, and header and length agree.
        let mut up = Up::new(4, 4);
        up.offer(0, &message(7, 20, 1));
        let mem = up.driver.mem.clone();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                use vm_memory::{Bytes, GuestAddress};
                while !done.load(Ordering::Relaxed) {
                    for len in [20u16, 4, 21, u16::MAX] {
                        mem.write_obj(len, GuestAddress(GUEST_BUFFERS + 12))
                            .unwrap();
                    }
                }
            });
            for _ in 0..20_000 {
                healthy(up.relay());
                if let Some(received) = up.firmware.receive() {
                    let said = u16::from_le_bytes([received[12], received[13]]);
                    assert_eq!(received.len(), 16 + usize::from(said));
                    assert!(said == 20 || said == 4, "{said}");
                }
                up.driver.offer(0);
            }
            done.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn one_burst_moves_at_most_its_share() {
        let mut up = Up::new(128, 64);
        for id in 0..100 {
            up.offer(id % 16, &message(7, 4, 1));
        }
        let share = u16::try_from(MESSAGES_PER_BURST).unwrap();
        assert!(healthy(up.relay()).progress);
        assert_eq!(up.driver.used_index(), share);
        assert_eq!(up.firmware.available(), share);

        let mut down = Down::new(128, 64);
        for id in 0..100 {
            down.offer(id % 16);
        }
        for _ in 0..64 {
            assert!(down.firmware.send(&message(7, 4, 1)));
        }
        assert!(healthy(down.relay()).progress);
        assert_eq!(down.driver.used_index(), share);
    }

    #[test]
    fn bad_chains_and_bad_messages_count_against_the_share() {
        let mut up = Up::new(128, 64);
        up.driver.describe(0, (GUEST_END, 16), 0, 0);
        for _ in 0..100 {
            up.driver.offer(0);
        }
        healthy(up.relay());
        assert_eq!(up.counters.bad_chains, MESSAGES_PER_BURST as u64);

        let mut down = Down::new(128, 64);
        down.driver.describe(0, (GUEST_END, 16), WRITE, 0);
        for _ in 0..100 {
            down.driver.offer(0);
        }
        assert!(down.firmware.send(&message(7, 4, 1)));
        healthy(down.relay());
        assert_eq!(down.counters.bad_chains, MESSAGES_PER_BURST as u64);
        assert!(down.core.is_starved(), "the message is not lost");

        let mut down = Down::new(16, 64);
        for _ in 0..64 {
            let (id, ..) = down.firmware.take().unwrap();
            down.firmware.give_back(id.into(), 0);
        }
        healthy(down.relay());
        assert_eq!(down.counters.malformed, MESSAGES_PER_BURST as u64);
    }

    #[test]
    fn what_was_relayed_before_the_guest_broke_its_ring_is_shown_to_both() {
        let mut up = Up::new(8, 8);
        let sent = message(7, 5, 1);
        up.offer(0, &sent);
        up.driver.offer(8);
        let outcome = up.relay();
        assert!(is_guests(&outcome));
        assert!(outcome.0.kick_core && outcome.0.call_guest);
        assert_eq!(up.driver.used_index(), 1);
        assert_eq!(up.firmware.receive().unwrap(), sent);

        let mut down = Down::new(8, 2);
        let lost = message(7, 6, 2);
        down.offer(0);
        down.driver.offer(8);
        assert!(down.firmware.send(&sent) && down.firmware.send(&lost));
        let outcome = down.relay();
        assert!(is_guests(&outcome));
        assert!(outcome.0.kick_core && outcome.0.call_guest);
        assert_eq!(down.driver.used_index(), 1);
        assert_eq!(down.received(0), sent);
        assert_eq!(down.firmware.available(), 3, "the buffer is there again");
    }

    #[test]
    fn a_message_waits_through_a_fault_of_the_guests_ring() {
        let mut down = Down::new(8, 2);
        let sent = message(7, 5, 1);
        assert!(down.firmware.send(&sent));
        down.driver.offer(8);
        assert!(is_guests(&down.relay()));
        assert!(down.core.is_starved());
        // The guest sets its ring up anew.
        let mut driver = Driver::new(8);
        std::mem::swap(&mut down.driver, &mut driver);
        down.guest = down.driver.ring(EVENT_IDX, Direction::ToGuest);
        down.offer(3);
        healthy(down.relay());
        assert_eq!(down.received(0), sent);
        assert_eq!(down.core.ring.held(), 2, "no buffer of the core is lost");
    }

    #[test]
    fn what_was_relayed_before_the_firmware_broke_its_vring_is_shown_to_the_guest() {
        let mut down = Down::new(8, 8);
        let sent = message(7, 5, 1);
        down.offer(0);
        down.offer(1);
        assert!(down.firmware.send(&sent));
        down.firmware.give_back(8, 21);
        let outcome = down.relay();
        assert!(is_firmwares(&outcome));
        assert!(outcome.0.call_guest);
        assert_eq!(down.received(0), sent);
    }

    #[test]
    fn a_firmware_that_breaks_its_vring_touches_no_ring_of_the_guest() {
        let mut up = Up::new(8, 8);
        up.offer(0, &message(7, 5, 1));
        up.firmware.set_used(1);
        assert!(is_firmwares(&up.relay()));
        assert_eq!(up.driver.used_index(), 0);

        let mut down = Down::new(8, 8);
        down.offer(0);
        down.firmware.give_back(8, 20);
        assert!(is_firmwares(&down.relay()));
        assert_eq!(down.driver.used_index(), 0);
    }

    #[test]
    fn a_descriptor_that_the_firmware_rewrites_leads_nowhere() {
        // The vring's descriptors are ours to write; what the firmware puts there is not read.
        let mut down = Down::new(8, 2);
        down.offer(0);
        let sent = message(7, 5, 1);
        let (id, address, _) = down.firmware.take().unwrap();
        down.firmware.write(address, &sent);
        let at = VRING + 16 * u64::from(id);
        down.firmware.write(at, &[0xff; 16]);
        down.firmware.give_back(id.into(), 512);
        healthy(down.relay());
        assert_eq!(down.received(0), sent);
        let again = down.firmware.read(at, 8);
        assert_eq!(again, address.to_le_bytes(), "written anew with each offer");
    }

    #[test]
    fn nobody_is_notified_of_nothing() {
        let mut up = Up::new(4, 4);
        assert_eq!(healthy(up.relay()), Moved::default());
        let mut down = Down::new(4, 4);
        down.offer(0);
        assert_eq!(healthy(down.relay()), Moved::default());
        assert_eq!(up.counters, Counters::default());
        assert_eq!(down.counters, Counters::default());
    }
}
