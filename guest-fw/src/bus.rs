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

use crate::memory::{Span, Window};
use crate::rpmsg::{self, Announcement, Header};
use crate::table::{FEATURE_NAME_SERVICE, VdevEntry};
use crate::text::Shown;
use crate::virtqueue::{Broken, Buffer, Direction, Lengths, Malformed, Queue, Unusable};

/// Buffers towards the driver: any answer fits.
const TO_DRIVER: Lengths = Lengths {
    min: rpmsg::BUFFER_SIZE,
    max: u32::MAX,
};
/// Buffers from the driver: a header at least.
const FROM_DRIVER: Lengths = Lengths {
    min: rpmsg::HEADER_SIZE,
    max: rpmsg::BUFFER_SIZE,
};

/// What the bus needs of its surroundings.
pub trait Host {
    /// Kicks the host on the vring with this notify id.
    fn kick(&mut self, notify_id: u32);
    /// Writes a line to the trace.
    fn trace(&mut self, text: fmt::Arguments<'_>);
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
    /// Bytes in a buffer of the driver, copied straight to another one.
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
#[derive(Default)]
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

/// A message taken from the driver that is not dealt with yet.
struct Current {
    head: u16,
    endpoint: usize,
    message: Message,
}

/// The rings of a driver that is up.
struct Rings {
    places: [u32; 2],
    notify_ids: [u32; 2],
    to_driver: Queue,
    from_driver: Queue,
    /// Taken from `to_driver` and not used yet.
    spare: Option<Buffer>,
    /// Taken from `from_driver` and not given back yet.
    current: Option<Current>,
    /// Endpoints announced so far.
    announced: usize,
    /// Left alone until they are new.
    broken: bool,
}

#[allow(
    clippy::large_enum_variant,
    reason = "there is one of them, and no heap"
)]
enum Link {
    Down,
    /// The driver is up, but its rings cannot be used; so said in the trace, once.
    Refused([u32; 2]),
    Up(Rings),
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
pub struct Outbox<'b> {
    entry: &'b VdevEntry,
    window: &'b Window,
    host: &'b mut dyn Host,
    rings: &'b mut Rings,
    counts: &'b mut Counts,
}

impl Outbox<'_> {
    /// Answers `message`: from the address it was sent to, to the address it came from.
    ///
    /// # Errors
    /// [`Full`], and nothing was sent.
    #[inline]
    pub fn reply(&mut self, message: &Message, payload: Payload<'_>) -> Result<(), Full> {
        self.send(message.dst, message.src, payload)
    }

    /// Sends a message. One longer than [`rpmsg::MTU`] is dropped and counted: it could never go.
    ///
    /// # Errors
    /// [`Full`], and nothing was sent.
    #[inline]
    pub fn send(&mut self, src: u32, dst: u32, payload: Payload<'_>) -> Result<(), Full> {
        let len = payload.len();
        if len > rpmsg::MTU {
            self.too_long();
            return Ok(());
        }
        if !self.has_room() {
            return Err(Full);
        }
        let Some(buffer) = self.rings.spare.take() else {
            return Err(Full);
        };
        // Buffers are BUFFER_SIZE or they are not taken, so there is room for header and payload.
        let Some(place) = buffer.bytes.part(rpmsg::HEADER_SIZE, len) else {
            return Err(Full);
        };
        Header {
            src,
            dst,
            len: len as u16,
        }
        .write(buffer.bytes);
        match payload {
            Payload::Bytes(bytes) => place.write_bytes(bytes),
            Payload::Shared(span) => place.copy_from(span),
        }
        self.rings
            .to_driver
            .give_back(buffer.head, rpmsg::HEADER_SIZE + len);
        self.counts.sent = self.counts.sent.wrapping_add(1);
        Ok(())
    }

    /// Is there a buffer for one more message?
    #[inline(always)]
    pub fn has_room(&mut self) -> bool {
        self.rings.spare.is_some() || self.take_spare()
    }

    /// Takes a buffer towards the driver to have at hand.
    #[inline(never)]
    fn take_spare(&mut self) -> bool {
        loop {
            match self.rings.to_driver.take(self.window, TO_DRIVER) {
                Ok(None) => return false,
                Ok(Some(Ok(buffer))) => {
                    self.rings.spare = Some(buffer);
                    return true;
                }
                Ok(Some(Err(malformed))) => self.malformed_buffer(malformed),
                Err(Broken) => {
                    self.broke("towards");
                    return false;
                }
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
        }
    }

    /// Shows the driver what was sent so far, without waiting for the end of the batch. For an
    /// endpoint that may not come back.
    pub fn flush(&mut self) {
        let _ = self.publish();
    }

    /// Publishes and kicks, if the rings are still those that this was meant for.
    fn publish(&mut self) -> Result<(), Stop> {
        if !self.rings.intact(self.entry) {
            return Err(Stop);
        }
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
        loop {
            let current = match self.rings.current.take() {
                Some(current) => current,
                None => match self.next_message(endpoints)? {
                    Some(current) => current,
                    None => return Ok(Wants::Messages),
                },
            };
            let turn = if self.has_room() {
                endpoints[current.endpoint]
                    .service
                    .receive(&current.message, self)
            } else {
                Turn::Later
            };
            if self.rings.broken {
                return Err(Stop);
            }
            match turn {
                Turn::Done => self.rings.from_driver.give_back(current.head, 0),
                Turn::Later => {
                    self.rings.current = Some(current);
                    // Without this, a service that says Later while there is room would end in a
                    // wait that nothing ends.
                    if !self.has_room() {
                        return Ok(Wants::Buffers);
                    }
                }
            }
        }
    }

    /// The next message that is for somebody.
    #[inline(always)]
    fn next_message(&mut self, endpoints: &[Endpoint<'_>]) -> Result<Option<Current>, Stop> {
        loop {
            let buffer = match self.rings.from_driver.take(self.window, FROM_DRIVER) {
                Ok(Some(Ok(buffer))) => buffer,
                Ok(Some(Err(Malformed::Descriptor(head)))) => {
                    self.malformed_message(Some(head), "bad descriptor");
                    continue;
                }
                Ok(Some(Err(Malformed::NoSuchDescriptor))) => {
                    self.malformed_message(None, "no such descriptor");
                    continue;
                }
                Ok(None) => return Ok(None),
                Err(Broken) => {
                    self.broke("from");
                    return Err(Stop);
                }
            };
            let Some((header, payload)) = Header::read(buffer.bytes) else {
                self.malformed_message(Some(buffer.head), "longer than its buffer");
                continue;
            };
            self.counts.received = self.counts.received.wrapping_add(1);
            let message = Message {
                src: header.src,
                dst: header.dst,
                payload,
            };
            let found = endpoints
                .iter()
                .position(|known| known.address == header.dst);
            if let Some(endpoint) = found {
                return Ok(Some(Current {
                    head: buffer.head,
                    endpoint,
                    message,
                }));
            }
            self.for_nobody(&message);
            self.rings.from_driver.give_back(buffer.head, 0);
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
        let to_driver =
            Queue::new(window, &vrings[0], Direction::ToDriver).map_err(|why| (0, why))?;
        let from_driver =
            Queue::new(window, &vrings[1], Direction::FromDriver).map_err(|why| (1, why))?;
        let name_service = entry.gfeatures() & FEATURE_NAME_SERVICE != 0;
        Ok(Self {
            places: vrings.map(|vring| vring.da),
            notify_ids: vrings.map(|vring| vring.notify_id),
            to_driver,
            from_driver,
            spare: None,
            current: None,
            announced: if name_service { 0 } else { endpoints },
            broken: false,
        })
    }

    /// Are these still the rings of a driver that is up?
    #[inline]
    fn intact(&self, entry: &VdevEntry) -> bool {
        entry.driver_ok()
            && self.places == [entry.vring_da(0), entry.vring_da(1)]
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
pub struct Bus<'a, H: Host> {
    entry: VdevEntry,
    window: Window,
    endpoints: &'a mut [Endpoint<'a>],
    host: H,
    link: Link,
    counts: Counts,
}

impl<'a, H: Host> Bus<'a, H> {
    /// The bus of the vdev `entry`, whose rings and buffers lie in `window`.
    pub fn new(
        entry: VdevEntry,
        window: Window,
        endpoints: &'a mut [Endpoint<'a>],
        host: H,
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
            let Link::Up(rings) = &mut self.link else {
                return;
            };
            if rings.broken {
                return;
            }
            rings.listen(None);
            let mut out = Outbox {
                entry: &self.entry,
                window: &self.window,
                host: &mut self.host,
                rings,
                counts: &mut self.counts,
            };
            let worked = out.work(self.endpoints);
            let published = out.publish();
            let (Ok(wants), Ok(())) = (worked, published) else {
                continue;
            };
            rings.listen(Some(wants));
            // The driver writes its index and then looks at the flag; this is the other half.
            fence(Ordering::SeqCst);
            if !rings.has_news(wants) {
                return;
            }
        }
    }

    /// Brings `link` in line with what the vdev entry and the rings say.
    fn follow_status(&mut self) {
        if !self.entry.driver_ok() {
            if !matches!(self.link, Link::Down) {
                self.link = Link::Down;
                self.down("the driver is gone");
            }
            return;
        }
        // The status was written last, so what it vouches for is read after it.
        fence(Ordering::Acquire);
        match &self.link {
            Link::Down => {}
            Link::Up(rings) if rings.intact(&self.entry) => return,
            Link::Up(_) => {
                self.link = Link::Down;
                self.down("the rings are new");
            }
            Link::Refused(places) => {
                if *places == [self.entry.vring_da(0), self.entry.vring_da(1)] {
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
                self.link = Link::Up(rings);
            }
            Err((index, why)) => {
                let vring = self.entry.vring(index);
                self.host.trace(format_args!(
                    "vring {index} cannot be used ({why:?}): {vring:x?}"
                ));
                let places = [self.entry.vring_da(0), self.entry.vring_da(1)];
                self.link = Link::Refused(places);
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn down(&mut self, why: &str) {
        let Counts { received, sent, .. } = self.counts;
        self.host.trace(format_args!(
            "vdev down: {why}; {received} message(s) received and {sent} sent so far"
        ));
    }
}

#[cfg(test)]
#[path = "bus_tests.rs"]
mod tests;
