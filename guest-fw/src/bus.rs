//! The device's side of an rpmsg bus: one vdev, its two rings, and the endpoints behind it.
//!
//! [`Bus::poll`] does all there is to do and returns when only a kick can bring more. What an
//! endpoint answers belongs to the image, how a kick arrives to `machine`, how a ring is walked
//! to [`crate::virtqueue`].
//!
//! # When the rings exist
//! They exist while the vdev entry has DRIVER_OK, and they are looked at only then. The host ends
//! their life by clearing the status; later it may lay out new ones, zeroed, and set DRIVER_OK
//! again. Each change is followed by a kick, but changes can follow each other faster than this
//! side looks, so the rings themselves are asked as well: the used index is written by this side
//! only, and one that differs from what was written is that of a new ring. So is a ring at another
//! address. (A new ring goes unnoticed only if both used indices stood at zero, that is, before
//! the first message, or after a multiple of 65536 on both rings at once.)
//!
//! # Nothing is dropped for want of a buffer
//! A message that cannot be answered, for there is no buffer towards the driver, stays where it
//! is, and so do those behind it. What is dropped is what cannot be right, or is for nobody; it
//! is counted, and each count is traced at 1, 2, 4, 8 and so on.

use core::fmt;
use core::sync::atomic::{Ordering, fence};

use crate::memory::{Copies, Slot, Span, Window};
use crate::rpmsg::{self, Announcement, Header};
use crate::table::{FEATURE_EVENT_IDX, FEATURE_NAME_SERVICE, VdevEntry};
use crate::text::Shown;
use crate::virtqueue::{Broken, Buffer, Direction, Expected, Malformed, Notify, Queue, Unusable};

/// Buffers towards the driver: any answer fits.
const TO_DRIVER: Expected = Expected {
    direction: Direction::ToDriver,
    min: rpmsg::BUFFER_SIZE,
    max: u32::MAX,
};
/// Buffers from the driver: a header at least.
const FROM_DRIVER: Expected = Expected {
    direction: Direction::FromDriver,
    min: rpmsg::HEADER_SIZE,
    max: rpmsg::BUFFER_SIZE,
};

/// What the bus needs of its surroundings.
pub trait Host {
    /// Kicks the host on the vring with this notify id.
    fn kick(&self, notify_id: u32);
    /// Makes the copies, all of them, and leaves none.
    fn copy(&self, copies: &mut Copies) {
        copies.make();
    }
    /// Writes a line to the trace.
    fn trace(&self, text: fmt::Arguments<'_>);
}

/// There is no buffer towards the driver now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// What became of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// It is dealt with.
    Done,
    /// It must be offered again once there are buffers towards the driver. Whoever answers with
    /// this remembers how far it got.
    Later,
}

/// What serves an endpoint.
pub trait Service {
    /// Takes a message. At least one [`Outbox::send`] will find a buffer.
    fn receive(&mut self, message: &Message, out: &mut Outbox<'_>) -> Turn;

    /// The rings are new: what was remembered about unfinished messages is void.
    fn driver_up(&mut self) {}

    /// Takes a message and those behind it as far as they are for the same endpoint. Not for an
    /// image to write: it is here so that the loop is compiled for each service, with its
    /// `receive` inside.
    fn serve(&mut self, first: Incoming, out: &mut Outbox<'_>) -> Served {
        let mut incoming = first;
        loop {
            let turn = if out.has_room() {
                self.receive(&incoming.message, out)
            } else {
                Turn::Later
            };
            match turn {
                Turn::Done => out.rings.from_driver.give_back(incoming.head, 0),
                Turn::Later => return out.later(incoming),
            }
            match out.next_message() {
                Ok(next) if next.message.dst == incoming.message.dst => incoming = next,
                Ok(next) => return Served::Other(next),
                Err(end) => return Served::End(end),
            }
        }
    }
}

/// A local address with a name that is announced, and what serves it.
pub struct Endpoint<'a> {
    name: &'static str,
    address: u32,
    service: &'a mut dyn Service,
}

impl<'a> Endpoint<'a> {
    /// An endpoint called `name` (31 bytes at most) at `address`.
    pub fn new(name: &'static str, address: u32, service: &'a mut dyn Service) -> Self {
        Self {
            name,
            address,
            service,
        }
    }
}

/// A message from the driver.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// The sender's address.
    pub src: u32,
    /// The address of the endpoint that it is for.
    pub dst: u32,
    /// The payload, still in the driver's buffer: it can change while it is looked at.
    pub payload: Span,
}

/// What to send.
#[derive(Clone, Copy)]
pub enum Payload<'a> {
    /// Bytes of this side.
    Bytes(&'a [u8]),
    /// Bytes in a buffer of the driver, copied straight to another one, at the end of the batch.
    Shared(Span),
}

impl Payload<'_> {
    fn len(&self) -> u32 {
        match self {
            Self::Bytes(bytes) => u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            Self::Shared(span) => span.len(),
        }
    }
}

/// Things that happened, each worth a line in the trace now and then.
#[derive(Clone, Copy, Default)]
struct Counts {
    received: u32,
    sent: u32,
    unknown_destination: u32,
    malformed_message: u32,
    malformed_buffer: u32,
    too_long: u32,
    announced_to_us: u32,
}

/// Counts, and says whether it is time for a line.
fn notable(count: &mut u32) -> bool {
    *count = count.wrapping_add(1);
    count.is_power_of_two()
}

/// A buffer towards the driver.
#[derive(Clone, Copy)]
struct Outgoing {
    /// As it goes into the ring.
    head: u32,
    bytes: Slot<{ rpmsg::BUFFER_SIZE }>,
}

impl Outgoing {
    #[inline(always)]
    fn new(buffer: Buffer) -> Option<Self> {
        let Buffer { head, bytes } = buffer;
        Some(Self {
            head: head.into(),
            bytes: bytes.slot(0)?,
        })
    }
}

/// A message taken from the driver that is not dealt with yet.
pub struct Incoming {
    /// As it goes into the ring.
    head: u32,
    message: Message,
}

/// How a run of messages ended.
pub enum Served {
    /// With a message for somebody else.
    Other(Incoming),
    /// With no more to be served.
    End(End),
}

/// Why no more messages can be served.
#[derive(Clone, Copy)]
pub enum End {
    /// There are none.
    Empty,
    /// There is no buffer for an answer.
    Full,
    /// A ring is broken.
    Broken,
}

/// The rings of a driver that is up.
struct Rings {
    places: [u32; 2],
    notify_ids: [u32; 2],
    to_driver: Queue,
    from_driver: Queue,
    /// Taken from `to_driver` and not used yet.
    spare: Option<Outgoing>,
    /// Taken from `from_driver` and not given back yet.
    current: Option<Incoming>,
    /// To be made before anything is given back for others to see.
    copies: Copies,
    /// Endpoints announced so far.
    announced: usize,
    /// Left alone until they are new.
    broken: bool,
}

#[allow(
    clippy::large_enum_variant,
    reason = "there is one of them, and no heap"
)]
enum Link<'a> {
    Down,
    /// The driver is up, but its rings cannot be used; so said in the trace, once.
    Refused([u32; 2]),
    Up(Outbox<'a>),
}

/// What the firmware waits for when it has nothing more to do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wants {
    /// Messages from the driver.
    Messages,
    /// Buffers towards the driver.
    Buffers,
}

/// The rings are no longer what they were: stop, and look at the vdev entry.
struct Stop;

/// The way out for an endpoint that was given a message.
///
/// It has the rings in itself, not behind a reference: the compiler then knows that what is written
/// to shared memory does not change them.
pub struct Outbox<'a> {
    entry: VdevEntry,
    window: Window,
    host: &'a dyn Host,
    rings: Rings,
    counts: Counts,
}

impl Outbox<'_> {
    /// Answers `message`: from the address it was sent to, to the address it came from.
    ///
    /// # Errors
    /// [`Full`], and nothing was sent.
    #[inline(always)]
    pub fn reply(&mut self, message: &Message, payload: Payload<'_>) -> Result<(), Full> {
        self.send(message.dst, message.src, payload)
    }

    /// Sends a message. One longer than [`rpmsg::MTU`] is dropped and counted: it could never go.
    ///
    /// # Errors
    /// [`Full`], and nothing was sent.
    #[inline(always)]
    pub fn send(&mut self, src: u32, dst: u32, payload: Payload<'_>) -> Result<(), Full> {
        let buffer = match self.rings.spare.take() {
            Some(buffer) => buffer,
            None => {
                self.look_for_room();
                self.rings.spare.take().ok_or(Full)?
            }
        };
        let len = payload.len();
        if len > rpmsg::MTU {
            self.rings.spare = Some(buffer);
            self.too_long();
            return Ok(());
        }
        // No longer than the MTU, so there is room.
        let place = buffer
            .bytes
            .part::<{ rpmsg::HEADER_SIZE }>(len)
            .ok_or(Full)?;
        Header {
            src,
            dst,
            len: len as u16,
        }
        .write(buffer.bytes);
        match payload {
            Payload::Bytes(bytes) => place.write_bytes(bytes),
            Payload::Shared(span) => {
                if !self.rings.copies.add(place, span) {
                    self.copy_now(place, span);
                }
            }
        }
        let written = rpmsg::HEADER_SIZE + len;
        self.rings.to_driver.give_back(buffer.head, written);
        Ok(())
    }

    /// Makes the copies that were put off, and one more.
    #[cold]
    #[inline(never)]
    fn copy_now(&mut self, to: Span, from: Span) {
        self.host.copy(&mut self.rings.copies);
        to.copy_from(from);
    }

    /// Is there a buffer for one more message?
    #[inline(always)]
    pub fn has_room(&mut self) -> bool {
        // Put back in any case: what follows is then known to find it, and found in a register.
        self.rings.spare = match self.rings.spare {
            Some(buffer) => Some(buffer),
            None => match self.rings.to_driver.peek(&self.window, TO_DRIVER) {
                Ok(Some(Ok(buffer))) => {
                    self.rings.to_driver.advance();
                    Outgoing::new(buffer)
                }
                _ => {
                    self.look_for_room();
                    self.rings.spare
                }
            },
        };
        self.rings.spare.is_some()
    }

    /// Takes a buffer towards the driver to have at hand, if there is a good one.
    #[cold]
    #[inline(never)]
    fn look_for_room(&mut self) {
        loop {
            match self.rings.to_driver.take(&self.window, TO_DRIVER) {
                Ok(None) => return,
                Ok(Some(Ok(buffer))) => {
                    self.rings.spare = Outgoing::new(buffer);
                    return;
                }
                Ok(Some(Err(malformed))) => self.malformed_buffer(malformed),
                Err(Broken) => return self.broke("towards"),
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn too_long(&mut self) {
        if notable(&mut self.counts.too_long) {
            let count = self.counts.too_long;
            self.host.trace(format_args!(
                "{count} message(s) longer than the MTU were not sent"
            ));
        }
    }

    /// Such a buffer is not given back: that would hand the driver a message nobody wrote.
    #[cold]
    #[inline(never)]
    fn malformed_buffer(&mut self, malformed: Malformed) {
        if notable(&mut self.counts.malformed_buffer) {
            let count = self.counts.malformed_buffer;
            self.host.trace(format_args!(
                "{count} buffer(s) towards the driver were left unused: {malformed:?}"
            ));
        }
    }

    #[cold]
    #[inline(never)]
    fn malformed_message(&mut self, head: Option<u16>, reason: &str) {
        if notable(&mut self.counts.malformed_message) {
            let count = self.counts.malformed_message;
            self.host.trace(format_args!(
                "{count} malformed message(s) dropped: {reason}"
            ));
        }
        if let Some(head) = head {
            self.rings.from_driver.give_back(head, 0);
            // All that is given back counts as received; this was none.
            self.counts.received = self.counts.received.wrapping_sub(1);
        }
    }

    /// Shows the driver what was sent so far, without waiting for the end of the batch. For an
    /// endpoint that may not come back.
    pub fn flush(&mut self) {
        let _ = self.publish();
    }

    /// Publishes and kicks, if the rings are still those that this was meant for.
    fn publish(&mut self) -> Result<(), Stop> {
        if !self.rings.intact(&self.entry) {
            self.rings.copies.forget();
            return Err(Stop);
        }
        if !self.rings.copies.is_empty() {
            self.host.copy(&mut self.rings.copies);
        }
        let count = |count: &mut u32, more: u16| *count = count.wrapping_add(u32::from(more));
        count(&mut self.counts.sent, self.rings.to_driver.unpublished());
        count(
            &mut self.counts.received,
            self.rings.from_driver.unpublished(),
        );
        if self.rings.to_driver.publish() {
            self.host.kick(self.rings.notify_ids[0]);
        }
        if self.rings.from_driver.publish() {
            self.host.kick(self.rings.notify_ids[1]);
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn broke(&mut self, which: &str) {
        if !self.rings.broken {
            self.rings.broken = true;
            self.host.trace(format_args!(
                "the ring {which} the driver is broken: its avail index jumped; left alone \
                 until it is made anew"
            ));
        }
    }

    /// Sends what announcements are left. False when there are too few buffers.
    #[cold]
    #[inline(never)]
    fn announce(&mut self, endpoints: &[Endpoint<'_>]) -> bool {
        while let Some(endpoint) = endpoints.get(self.rings.announced) {
            let announcement = Announcement::create(endpoint.name, endpoint.address).to_bytes();
            let payload = Payload::Bytes(&announcement);
            if self
                .send(endpoint.address, rpmsg::NAME_SERVICE, payload)
                .is_err()
            {
                return false;
            }
            self.host.trace(format_args!(
                "announced {} at {}",
                endpoint.name, endpoint.address
            ));
            self.rings.announced += 1;
        }
        true
    }

    /// Serves messages until there are none, or one has to wait.
    fn work(&mut self, endpoints: &mut [Endpoint<'_>]) -> Result<Wants, Stop> {
        if self.rings.announced < endpoints.len() && !self.announce(endpoints) {
            return if self.rings.broken {
                Err(Stop)
            } else {
                Ok(Wants::Buffers)
            };
        }
        let mut served = match self.rings.current.take() {
            Some(incoming) => Served::Other(incoming),
            None => self.next_message().map_or_else(Served::End, Served::Other),
        };
        loop {
            let incoming = match served {
                Served::Other(incoming) => incoming,
                Served::End(End::Empty) => return Ok(Wants::Messages),
                Served::End(End::Full) => return Ok(Wants::Buffers),
                Served::End(End::Broken) => return Err(Stop),
            };
            let dst = incoming.message.dst;
            let endpoint = endpoints.iter_mut().find(|known| known.address == dst);
            served = match endpoint {
                Some(endpoint) => endpoint.service.serve(incoming, self),
                None => {
                    self.for_nobody(&incoming.message);
                    self.rings.from_driver.give_back(incoming.head, 0);
                    self.next_message().map_or_else(Served::End, Served::Other)
                }
            };
        }
    }

    /// The message has to wait, if there is no room for an answer indeed.
    #[cold]
    #[inline(never)]
    fn later(&mut self, incoming: Incoming) -> Served {
        // Without this, a service that says Later while there is room would end in a wait that
        // nothing ends.
        if self.has_room() {
            return Served::Other(incoming);
        }
        if self.rings.broken {
            return Served::End(End::Broken);
        }
        self.rings.current = Some(incoming);
        Served::End(End::Full)
    }

    /// The next message.
    #[inline(always)]
    fn next_message(&mut self) -> Result<Incoming, End> {
        loop {
            let buffer = match self.rings.from_driver.take(&self.window, FROM_DRIVER) {
                Ok(Some(Ok(buffer))) => buffer,
                Ok(Some(Err(Malformed::Descriptor(head)))) => {
                    self.malformed_message(Some(head), "bad descriptor");
                    continue;
                }
                Ok(Some(Err(Malformed::NoSuchDescriptor))) => {
                    self.malformed_message(None, "no such descriptor");
                    continue;
                }
                Ok(None) => return Err(End::Empty),
                Err(Broken) => {
                    self.broke("from");
                    return Err(End::Broken);
                }
            };
            let Some((header, payload)) = Header::read(buffer.bytes) else {
                self.malformed_message(Some(buffer.head), "longer than its buffer");
                continue;
            };
            return Ok(Incoming {
                head: u32::from(buffer.head),
                message: Message {
                    src: header.src,
                    dst: header.dst,
                    payload,
                },
            });
        }
    }

    /// A message to no endpoint: an announcement of the driver's, or a stray.
    #[cold]
    #[inline(never)]
    fn for_nobody(&mut self, message: &Message) {
        if message.dst == rpmsg::NAME_SERVICE
            && let Some(announcement) = Announcement::read(message.payload)
        {
            if notable(&mut self.counts.announced_to_us) {
                self.host.trace(format_args!(
                    "the driver {} {} at {}; nothing here looks for channels",
                    if announcement.destroy {
                        "withdraws"
                    } else {
                        "announces"
                    },
                    Shown(announcement.name()),
                    announcement.address,
                ));
            }
        } else if notable(&mut self.counts.unknown_destination) {
            let count = self.counts.unknown_destination;
            let Message { src, dst, .. } = message;
            self.host.trace(format_args!(
                "{count} message(s) for nobody dropped, the last from {src} to {dst}"
            ));
        }
    }
}

impl Rings {
    /// The rings that `entry` speaks of.
    fn open(entry: &VdevEntry, window: &Window, endpoints: usize) -> Result<Self, (u32, Unusable)> {
        let vrings = [entry.vring(0), entry.vring(1)];
        let features = entry.gfeatures();
        let notify = if features & FEATURE_EVENT_IDX != 0 {
            Notify::ByIndex
        } else {
            Notify::ByFlags
        };
        let to_driver = Queue::new(window, &vrings[0], notify).map_err(|why| (0, why))?;
        let from_driver = Queue::new(window, &vrings[1], notify).map_err(|why| (1, why))?;
        let name_service = features & FEATURE_NAME_SERVICE != 0;
        Ok(Self {
            places: vrings.map(|vring| vring.da),
            notify_ids: vrings.map(|vring| vring.notify_id),
            to_driver,
            from_driver,
            spare: None,
            current: None,
            copies: Copies::default(),
            announced: if name_service { 0 } else { endpoints },
            broken: false,
        })
    }

    /// Are these still the rings of a driver that is up?
    #[inline]
    fn intact(&self, entry: &VdevEntry) -> bool {
        entry.driver_ok()
            && self.places == entry.vring_das()
            && !self.to_driver.made_anew()
            && !self.from_driver.made_anew()
    }

    /// Asks for kicks on the ring that is waited for, and on that one only.
    fn listen(&mut self, wants: Option<Wants>) {
        self.to_driver.want_kicks(wants == Some(Wants::Buffers));
        self.from_driver.want_kicks(wants == Some(Wants::Messages));
    }

    /// Did what is waited for arrive? A broken ring counts as news.
    fn has_news(&mut self, wants: Wants) -> bool {
        match wants {
            Wants::Messages => self.from_driver.has_available() != Ok(false),
            Wants::Buffers => self.to_driver.has_available() != Ok(false),
        }
    }
}

/// One vdev, its rings and its endpoints.
pub struct Bus<'a, 'h> {
    entry: VdevEntry,
    window: Window,
    endpoints: &'a mut [Endpoint<'a>],
    host: &'h dyn Host,
    link: Link<'h>,
    /// As of the last time that the driver went away.
    counts: Counts,
}

impl<'a, 'h> Bus<'a, 'h> {
    /// The bus of the vdev `entry`, whose rings and buffers lie in `window`.
    pub fn new(
        entry: VdevEntry,
        window: Window,
        endpoints: &'a mut [Endpoint<'a>],
        host: &'h dyn Host,
    ) -> Self {
        Self {
            entry,
            window,
            endpoints,
            host,
            link: Link::Down,
            counts: Counts::default(),
        }
    }

    /// Does what there is to do. To be called at the start and after every kick, with the kick
    /// cleared first.
    pub fn poll(&mut self) {
        loop {
            self.follow_status();
            let Link::Up(out) = &mut self.link else {
                return;
            };
            if out.rings.broken {
                return;
            }
            out.rings.listen(None);
            let worked = out.work(self.endpoints);
            let published = out.publish();
            let (Ok(wants), Ok(())) = (worked, published) else {
                continue;
            };
            out.rings.listen(Some(wants));
            // The driver writes its index and then looks at the flag; this is the other half.
            fence(Ordering::SeqCst);
            if !out.rings.has_news(wants) {
                return;
            }
        }
    }

    /// Brings `link` in line with what the vdev entry and the rings say.
    fn follow_status(&mut self) {
        if !self.entry.driver_ok() {
            if !matches!(self.link, Link::Down) {
                self.down("the driver is gone");
            }
            return;
        }
        // The status was written last, so what it vouches for is read after it.
        fence(Ordering::Acquire);
        match &self.link {
            Link::Down => {}
            Link::Up(out) if out.rings.intact(&self.entry) => return,
            Link::Up(_) => self.down("the rings are new"),
            Link::Refused(places) => {
                if *places == self.entry.vring_das() {
                    return;
                }
            }
        }
        self.up();
    }

    #[cold]
    #[inline(never)]
    fn up(&mut self) {
        match Rings::open(&self.entry, &self.window, self.endpoints.len()) {
            Ok(rings) => {
                for endpoint in self.endpoints.iter_mut() {
                    endpoint.service.driver_up();
                }
                self.host.trace(format_args!(
                    "vdev up: gfeatures {:#x}, vrings at {:#010x} and {:#010x}, {} and {} buffers",
                    self.entry.gfeatures(),
                    rings.places[0],
                    rings.places[1],
                    rings.to_driver.size(),
                    rings.from_driver.size(),
                ));
                self.link = Link::Up(Outbox {
                    entry: self.entry,
                    window: self.window,
                    host: self.host,
                    rings,
                    counts: self.counts,
                });
            }
            Err((index, why)) => {
                let vring = self.entry.vring(index);
                self.host.trace(format_args!(
                    "vring {index} cannot be used ({why:?}): {vring:x?}"
                ));
                self.link = Link::Refused(self.entry.vring_das());
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn down(&mut self, why: &str) {
        if let Link::Up(out) = &self.link {
            self.counts = out.counts;
        }
        self.link = Link::Down;
        let Counts { received, sent, .. } = self.counts;
        self.host.trace(format_args!(
            "vdev down: {why}; {received} message(s) received and {sent} sent so far"
        ));
    }
}

#[cfg(test)]
#[path = "bus_tests.rs"]
mod tests;
