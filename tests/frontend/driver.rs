//! The driver's side of one split virtqueue.
//!
//! What belongs here: descriptors, the two rings, suppression of kicks and calls, counters; and
//! the raw accessors with which a test can break every rule. What does not: what the buffers mean.
//! It is written without virtio-queue so that one reading of the specification does not judge
//! itself. The machine is taken to be little-endian, as everything else here does.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::ram::GuestRam;

/// The descriptor goes on in `next`.
pub const DESC_NEXT: u16 = 1;
/// The device writes to the buffer.
pub const DESC_WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const DESC_INDIRECT: u16 = 4;
/// In `avail.flags`: no calls please.
pub const AVAIL_NO_INTERRUPT: u16 = 1;
/// In `used.flags`: no kicks please.
pub const USED_NO_NOTIFY: u16 = 1;

/// One entry of a descriptor table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptor {
    /// Guest-physical address of the buffer.
    pub address: u64,
    /// Its length in bytes.
    pub length: u32,
    /// `DESC_*`.
    pub flags: u16,
    /// The next entry, if the flags say so.
    pub next: u16,
}

impl Descriptor {
    /// As it lies in memory.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// One part of a chain to be made available.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Guest-physical address.
    pub address: u64,
    /// Length in bytes.
    pub length: u32,
    /// May the device write to it?
    pub writable: bool,
}

/// A completed chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Used {
    /// The head that was made available.
    pub head: u16,
    /// What the device says it wrote.
    pub length: u32,
}

/// Guest-physical addresses of a queue's three parts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingLayout {
    /// Entries.
    pub size: u16,
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring.
    pub avail: u64,
    /// The used ring.
    pub used: u64,
}

impl RingLayout {
    /// Takes zeroed memory for the rings of a queue.
    pub fn allocate(ram: &GuestRam, size: u16) -> Self {
        let entries = u64::from(size);
        Self {
            size,
            descriptors: ram.allocate(0, 16 * entries, 16),
            avail: ram.allocate(0, 6 + 2 * entries, 2),
            used: ram.allocate(0, 6 + 8 * entries, 4),
        }
    }

    fn slot(self, index: u16) -> u64 {
        u64::from(index % self.size)
    }

    fn used_event(self) -> u64 {
        self.avail + 4 + 2 * u64::from(self.size)
    }

    fn avail_event(self) -> u64 {
        self.used + 4 + 8 * u64::from(self.size)
    }
}

/// The two event descriptors of a queue, as the VMM and the driver share them.
pub struct Events {
    /// Towards the device.
    pub kick: EventFd,
    /// Towards the driver.
    pub call: EventFd,
}

impl Events {
    /// Two new ones.
    pub fn new() -> Self {
        let event = || EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        Self {
            kick: event(),
            call: event(),
        }
    }

    /// The same two once more.
    pub fn share(&self) -> Self {
        let share = |event: &EventFd| event.try_clone().expect("a second eventfd");
        Self {
            kick: share(&self.kick),
            call: share(&self.call),
        }
    }
}

/// Would somebody who published `event` want to know of the step from `old` to `new`?
pub fn crossed(event: u16, new: u16, old: u16) -> bool {
    // The step covers the indices old + 1 to new, and the wish is for event + 1.
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// The driver's side of a queue.
pub struct DriverQueue {
    ram: Arc<GuestRam>,
    layout: RingLayout,
    event_idx: bool,
    events: Events,
    /// Free descriptors, a stack: what was freed last is used first, so ids do not stay sorted.
    free: Vec<u16>,
    /// Heads in the order in which they were made available.
    in_flight: VecDeque<(u16, u16)>,
    avail_index: u16,
    /// The available index at the last decision about a kick.
    kicked_at: u16,
    used_index: u16,
    callbacks: bool,
    kicks: u64,
    calls: u64,
}

impl DriverQueue {
    /// A driver for rings that are zeroed.
    pub fn new(ram: Arc<GuestRam>, layout: RingLayout, event_idx: bool, events: Events) -> Self {
        Self {
            ram,
            layout,
            event_idx,
            events,
            free: (0..layout.size).rev().collect(),
            in_flight: VecDeque::with_capacity(usize::from(layout.size)),
            avail_index: 0,
            kicked_at: 0,
            used_index: 0,
            callbacks: true,
            kicks: 0,
            calls: 0,
        }
    }

    /// Where the rings lie.
    pub fn layout(&self) -> RingLayout {
        self.layout
    }

    /// Kicks sent so far.
    pub fn kicks(&self) -> u64 {
        self.kicks
    }

    /// Calls taken so far.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// Chains that the device has not given back.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// What to poll for calls.
    pub fn call_fd(&self) -> RawFd {
        self.events.call.as_raw_fd()
    }

    /// Makes a chain available; its head, or nothing if there are not enough descriptors. Does not
    /// kick.
    pub fn add(&mut self, segments: &[Segment]) -> Option<u16> {
        let head = self.add_unshown(segments)?;
        self.show();
        Some(head)
    }

    /// The same, but the device does not see it before [`DriverQueue::show`].
    pub fn add_unshown(&mut self, segments: &[Segment]) -> Option<u16> {
        let count = u16::try_from(segments.len()).expect("a chain of a sensible length");
        if segments.is_empty() || self.free.len() < segments.len() {
            return None;
        }
        let mut next = 0;
        for (position, segment) in segments.iter().enumerate().rev() {
            let index = self.free.pop()?;
            let mut flags = if segment.writable { DESC_WRITE } else { 0 };
            if position + 1 < segments.len() {
                flags |= DESC_NEXT;
            }
            let Segment {
                address, length, ..
            } = *segment;
            self.write_descriptor(
                index,
                Descriptor {
                    address,
                    length,
                    flags,
                    next,
                },
            );
            next = index;
        }
        self.in_flight.push_back((next, count));
        self.write_avail_slot(self.avail_index, next);
        self.avail_index = self.avail_index.wrapping_add(1);
        Some(next)
    }

    /// Shows the device all that was added.
    pub fn show(&mut self) {
        self.write_avail_index(self.avail_index);
    }

    /// Kicks if the device asked for it; whether it did.
    pub fn kick(&mut self) -> bool {
        // The device looks at the available index after it asked for kicks; here the index is
        // written before the request is read. One of the two sees the other.
        fence(Ordering::SeqCst);
        let (old, new) = (self.kicked_at, self.avail_index);
        self.kicked_at = new;
        let wanted = if self.event_idx {
            crossed(self.read_avail_event(), new, old)
        } else {
            self.read_used_flags() & USED_NO_NOTIFY == 0
        };
        if wanted {
            self.kick_anyway();
        }
        wanted
    }

    /// Kicks, whatever the device asked for.
    pub fn kick_anyway(&mut self) {
        self.events
            .kick
            .write(1)
            .expect("the kick eventfd takes a kick");
        self.kicks += 1;
    }

    /// Is there a completed chain?
    pub fn has_used(&self) -> bool {
        self.used() != 0
    }

    /// Completed chains that have not been taken.
    pub fn used(&self) -> u16 {
        self.read_used_index().wrapping_sub(self.used_index)
    }

    /// Takes the next completed chain. Panics if it is not the one that was made available first.
    pub fn pop_used(&mut self) -> Option<Used> {
        if !self.has_used() {
            return None;
        }
        let used = self.read_used_slot(self.used_index);
        let Some((head, count)) = self.in_flight.pop_front() else {
            panic!("the device completed {used:?}, but nothing is in flight");
        };
        assert_eq!(
            used.0,
            u32::from(head),
            "the device completed chain {} before chain {head}, which was available first",
            used.0
        );
        self.release(head, count);
        self.used_index = self.used_index.wrapping_add(1);
        if self.callbacks && self.event_idx {
            self.write_used_event(self.used_index);
            fence(Ordering::SeqCst);
        }
        Some(Used {
            head,
            length: used.1,
        })
    }

    fn release(&mut self, head: u16, count: u16) {
        let mut index = head;
        for _ in 1..count {
            self.free.push(index);
            index = self.read_descriptor_next(index);
        }
        self.free.push(index);
    }

    /// Asks for calls. False if something was completed meanwhile, so that waiting would be wrong.
    pub fn enable_callbacks(&mut self) -> bool {
        self.callbacks = true;
        if self.event_idx {
            self.write_used_event(self.used_index);
        } else {
            self.write_avail_flags(0);
        }
        fence(Ordering::SeqCst);
        !self.has_used()
    }

    /// Asks for one call, when `count` chains are completed. False if they are already, so that
    /// waiting would be wrong. With event indices only.
    pub fn enable_callbacks_after(&mut self, count: u16) -> bool {
        assert!(self.event_idx && count != 0, "one call, at an index");
        // Taking a chain does not ask for the next.
        self.callbacks = false;
        self.write_used_event(self.used_index.wrapping_add(count - 1));
        fence(Ordering::SeqCst);
        self.used() < count
    }

    /// Asks for no calls. With event indices this is a wish: one may come once in 65536.
    pub fn disable_callbacks(&mut self) {
        self.callbacks = false;
        if self.event_idx {
            // As far from where the device is as can be.
            self.write_used_event(self.used_index.wrapping_add(0x8000));
        } else {
            self.write_avail_flags(AVAIL_NO_INTERRUPT);
        }
    }

    /// Takes the calls that have come, and counts them.
    pub fn take_calls(&mut self) -> u64 {
        match self.events.call.read() {
            Ok(calls) => {
                self.calls += calls;
                calls
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => panic!("the call eventfd cannot be read: {error}"),
        }
    }

    // Raw access. Nothing below keeps the books above in order.

    /// Writes one entry of the descriptor table.
    pub fn write_descriptor(&self, index: u16, descriptor: Descriptor) {
        let address = self.layout.descriptors + 16 * u64::from(index);
        self.ram.write(address, &descriptor.to_bytes());
    }

    fn read_descriptor_next(&self, index: u16) -> u16 {
        let address = self.layout.descriptors + 16 * u64::from(index) + 14;
        self.ram.load(address, Ordering::Relaxed)
    }

    /// Writes one slot of the available ring.
    pub fn write_avail_slot(&self, index: u16, head: u16) {
        let address = self.layout.avail + 4 + 2 * self.layout.slot(index);
        self.ram.store(address, head, Ordering::Relaxed);
    }

    /// Publishes an available index.
    pub fn write_avail_index(&self, index: u16) {
        self.ram
            .store(self.layout.avail + 2, index, Ordering::Release);
    }

    /// The available index.
    pub fn read_avail_index(&self) -> u16 {
        self.ram.load(self.layout.avail + 2, Ordering::Acquire)
    }

    /// Sets the available ring's flags.
    pub fn write_avail_flags(&self, flags: u16) {
        self.ram.store(self.layout.avail, flags, Ordering::Relaxed);
    }

    /// Sets the index at which a call is wanted.
    pub fn write_used_event(&self, index: u16) {
        self.ram
            .store(self.layout.used_event(), index, Ordering::Relaxed);
    }

    /// The index at which the device wants a kick.
    pub fn read_avail_event(&self) -> u16 {
        self.ram.load(self.layout.avail_event(), Ordering::Relaxed)
    }

    /// The used ring's flags.
    pub fn read_used_flags(&self) -> u16 {
        self.ram.load(self.layout.used, Ordering::Relaxed)
    }

    /// The used index.
    pub fn read_used_index(&self) -> u16 {
        self.ram.load(self.layout.used + 2, Ordering::Acquire)
    }

    /// One slot of the used ring: id and length.
    pub fn read_used_slot(&self, index: u16) -> (u32, u32) {
        let address = self.layout.used + 4 + 8 * self.layout.slot(index);
        let id = self.ram.load(address, Ordering::Relaxed);
        (id, self.ram.load(address + 4, Ordering::Relaxed))
    }
}
