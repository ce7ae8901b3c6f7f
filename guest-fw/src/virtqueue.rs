//! The device's side of a split virtqueue.
//!
//! It walks one ring: which buffers the driver made available, which ones are given back. What is
//! in a buffer, and when the rings exist at all, belongs to [`crate::bus`]. Nothing the driver
//! writes can make it panic or leave the window: what cannot be right is returned as
//! [`Malformed`] or [`Broken`] for the caller to count.

use core::sync::atomic::{Ordering, fence};

use crate::memory::{Slot, Slots, Span, Window};
use crate::table::VringPlace;

const DESCRIPTOR_SIZE: u32 = 16;
const USED_SIZE: u32 = 8;
const AVAIL_SIZE: u32 = 2;
const DESCRIPTOR_NEXT: u16 = 1 << 0;
const DESCRIPTOR_WRITE: u16 = 1 << 1;
const DESCRIPTOR_INDIRECT: u16 = 1 << 2;
/// In avail.flags: the driver wants no kick for buffers given back.
pub const AVAIL_NO_INTERRUPT: u16 = 1;
/// In used.flags: the device wants no kick for buffers made available.
pub const USED_NO_NOTIFY: u16 = 1;

const FLAGS: u32 = 0;
const INDEX: u32 = 2;
/// Flags and index: the ring's entries follow.
const RING: u32 = 4;

/// The ring cannot be followed any further: its avail index jumped by more than it can hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Broken;

/// One entry cannot be used; the ring is fine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// The avail ring names a descriptor that does not exist: there is nothing to give back.
    NoSuchDescriptor,
    /// This descriptor is a chain, goes the wrong way, has the wrong size or lies outside of the
    /// memory it may lie in.
    Descriptor(u16),
}

/// Which way a buffer goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Filled by this side.
    ToDriver,
    /// Filled by the driver.
    FromDriver,
}

/// What a buffer must be.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// Which way it goes.
    pub direction: Direction,
    /// Bytes in the shortest.
    pub min: u32,
    /// Bytes in the longest.
    pub max: u32,
}

/// A buffer that the driver made available.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    /// What names it when it is given back.
    pub head: u16,
    /// Its bytes.
    pub bytes: Span,
}

/// Why a ring cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unusable {
    /// `num` or `align` is no power of two, or out of range.
    Shape,
    /// It does not lie in the memory it may lie in.
    Place,
}

/// When a side hears of what the other one put into the ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notify {
    /// Always, unless it says in its flags that it does not want to.
    ByFlags,
    /// When an index that it names is passed: VIRTIO_RING_F_EVENT_IDX.
    ByIndex,
}

/// The indices that the sides name.
#[derive(Clone, Copy)]
struct Events {
    /// The available part of the ring: its last 16 bits are the driver's.
    used_event: Span,
    /// The used part: its last 16 bits are this side's.
    avail_event: Span,
}

/// The device's side of one ring.
pub struct Queue {
    descriptors: Slots<DESCRIPTOR_SIZE>,
    avail: Slot<RING>,
    avail_ring: Slots<AVAIL_SIZE>,
    used: Slot<RING>,
    used_ring: Slots<USED_SIZE>,
    /// What the driver names, and what this side does, if that is how they notify each other.
    events: Option<Events>,
    /// Descriptors in the ring, a power of two.
    size: u16,
    /// The next avail entry to look at.
    next_avail: u16,
    /// avail.idx as last read: entries before it are there for certain.
    seen_avail: u16,
    /// The next used entry to write.
    next_used: u16,
    /// used.idx as last written, and so as it must still be.
    published: u16,
    /// used.flags as last written.
    flags: u16,
}

impl Queue {
    /// Descriptors in the largest ring.
    const MAX_SIZE: u32 = 1024;

    /// The ring at `place`, taken up where it stands.
    ///
    /// Used index and avail index of a new ring are zero. A ring that was not made anew goes on
    /// where its used index is, as everything before has been given back.
    ///
    /// # Errors
    /// When shape or place are impossible; nothing has been touched then.
    pub fn new(window: &Window, place: &VringPlace, notify: Notify) -> Result<Self, Unusable> {
        let VringPlace { da, align, num, .. } = *place;
        let shape = num.is_power_of_two() && num <= Self::MAX_SIZE;
        if !shape || !align.is_power_of_two() || !(4..=65536).contains(&align) {
            return Err(Unusable::Shape);
        }
        let avail_offset = DESCRIPTOR_SIZE * num;
        let avail_size = RING + AVAIL_SIZE * num + 2;
        let used_offset = (avail_offset + avail_size).next_multiple_of(align);
        let used_size = RING + USED_SIZE * num + 2;
        let ring = window
            .span(da, used_offset + used_size)
            .ok_or(Unusable::Place)?;
        let part = |offset, len| ring.part(offset, len).ok_or(Unusable::Place);
        let avail = part(avail_offset, avail_size)?;
        let used = part(used_offset, used_size)?;
        let events = Events {
            used_event: avail,
            avail_event: used,
        };
        let mut queue = Self {
            descriptors: ring.slots(0, num).ok_or(Unusable::Place)?,
            avail: avail.slot(0).ok_or(Unusable::Place)?,
            avail_ring: avail.slots(RING, num).ok_or(Unusable::Place)?,
            used: used.slot(0).ok_or(Unusable::Place)?,
            used_ring: used.slots(RING, num).ok_or(Unusable::Place)?,
            events: (notify == Notify::ByIndex).then_some(events),
            size: num as u16,
            next_avail: 0,
            seen_avail: 0,
            next_used: 0,
            published: 0,
            flags: 0,
        };
        let start = queue.used.read_u16::<INDEX>();
        queue.next_avail = start;
        queue.seen_avail = start;
        queue.next_used = start;
        queue.published = start;
        queue.flags = queue.used.read_u16::<FLAGS>();
        Ok(queue)
    }

    /// Descriptors in the ring.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Has somebody else written used.idx? Only a driver that made the ring anew does.
    #[inline]
    pub fn made_anew(&self) -> bool {
        self.used.read_u16::<INDEX>() != self.published
    }

    /// Is a buffer available?
    ///
    /// # Errors
    /// [`Broken`] when the avail index cannot be right.
    #[inline(always)]
    pub fn has_available(&mut self) -> Result<bool, Broken> {
        if self.next_avail != self.seen_avail {
            return Ok(true);
        }
        let index = self.avail.read_u16::<INDEX>();
        if index.wrapping_sub(self.next_avail) > self.size {
            return Err(Broken);
        }
        self.seen_avail = index;
        // What the index covers was written before it.
        fence(Ordering::Acquire);
        Ok(index != self.next_avail)
    }

    /// Takes the next available buffer, which must be as `expected`.
    ///
    /// A malformed entry is taken as well. The outer result is about the ring, the inner one
    /// about the entry.
    ///
    /// # Errors
    /// [`Broken`] when the avail index cannot be right, [`Malformed`] when the entry cannot.
    #[inline(always)]
    #[allow(clippy::type_complexity, reason = "two questions, two results")]
    pub fn take(
        &mut self,
        window: &Window,
        expected: Expected,
    ) -> Result<Option<Result<Buffer, Malformed>>, Broken> {
        let taken = self.peek(window, expected)?;
        if taken.is_some() {
            self.advance();
        }
        Ok(taken)
    }

    /// As [`Self::take`], but nothing is taken before [`Self::advance`].
    ///
    /// # Errors
    /// As [`Self::take`].
    #[inline(always)]
    #[allow(clippy::type_complexity, reason = "two questions, two results")]
    pub fn peek(
        &mut self,
        window: &Window,
        expected: Expected,
    ) -> Result<Option<Result<Buffer, Malformed>>, Broken> {
        if !self.has_available()? {
            return Ok(None);
        }
        let head = self.avail_ring.wrapped(self.next_avail).read_u16::<0>();
        Ok(Some(self.buffer(window, head, expected)))
    }

    /// Takes what [`Self::peek`] gave.
    #[inline(always)]
    pub fn advance(&mut self) {
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    #[inline(always)]
    fn buffer(&self, window: &Window, head: u16, expected: Expected) -> Result<Buffer, Malformed> {
        let Some(descriptor) = self.descriptors.get(head) else {
            return Err(Malformed::NoSuchDescriptor);
        };
        let low = descriptor.read_u32::<0>();
        let high = descriptor.read_u32::<4>();
        let len = descriptor.read_u32::<8>();
        let flags = descriptor.read_u16::<12>();
        let right = match expected.direction {
            Direction::ToDriver => DESCRIPTOR_WRITE,
            Direction::FromDriver => 0,
        };
        let kinds = DESCRIPTOR_NEXT | DESCRIPTOR_WRITE | DESCRIPTOR_INDIRECT;
        let wrong = u32::from(flags & kinds ^ right) | high;
        let too_long = len.wrapping_sub(expected.min) > expected.max - expected.min;
        if wrong != 0 || too_long {
            return Err(Malformed::Descriptor(head));
        }
        match window.span(low, len) {
            Some(bytes) => Ok(Buffer { head, bytes }),
            None => Err(Malformed::Descriptor(head)),
        }
    }

    /// Gives a buffer back, `len` bytes of it written. The driver sees it after [`Self::publish`].
    #[inline(always)]
    pub fn give_back(&mut self, head: impl Into<u32>, len: u32) {
        let entry = self.used_ring.wrapped(self.next_used);
        entry.write_u32::<0>(head.into());
        entry.write_u32::<4>(len);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Buffers given back that the driver does not see yet.
    pub fn unpublished(&self) -> u16 {
        self.next_used.wrapping_sub(self.published)
    }

    /// Shows the driver what was given back since the last call. Returns whether it wants a kick.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let count = self.unpublished();
        if count == 0 {
            return false;
        }
        // The entries, and what is in the buffers, must be there before the index that covers them.
        fence(Ordering::Release);
        self.used.write_u16::<INDEX>(self.next_used);
        self.published = self.next_used;
        // The driver says what it wants and then looks at the index; this is the other half of that.
        fence(Ordering::SeqCst);
        match self.events {
            None => self.avail.read_u16::<FLAGS>() & AVAIL_NO_INTERRUPT == 0,
            // Is the entry that the driver waits for among those that it sees now?
            Some(Events { used_event, .. }) => {
                let used_event = used_event.read_u16(used_event.len() - 2);
                let behind = self.next_used.wrapping_sub(used_event);
                (1..=count).contains(&behind)
            }
        }
    }

    /// Tells the driver whether to kick when it makes buffers available.
    ///
    /// After asking for kicks the caller must look at the ring once more, behind a full fence.
    #[inline]
    pub fn want_kicks(&mut self, want: bool) {
        match self.events {
            None => {
                let flags = if want { 0 } else { USED_NO_NOTIFY };
                if flags != self.flags {
                    self.used.write_u16::<FLAGS>(flags);
                    self.flags = flags;
                }
            }
            Some(Events { avail_event, .. }) if want => {
                avail_event.write_u16(avail_event.len() - 2, self.next_avail);
            }
            // The index named last is one that the driver has passed: there is nothing to undo.
            Some(_) => {}
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! The driver's side of a ring, for tests: it can also do everything a driver must not.

    use super::*;

    pub(crate) struct DriverQueue {
        pub(crate) da: u32,
        descriptors: Span,
        avail: Span,
        used: Span,
        size: u16,
        pub(crate) avail_index: u16,
        pub(crate) used_index: u16,
    }

    impl DriverQueue {
        pub(crate) const BYTES: u32 = 12288;

        pub(crate) fn new(window: &Window, da: u32, size: u16) -> Self {
            let ring = window.span(da, Self::BYTES).unwrap();
            for offset in (0..Self::BYTES).step_by(4) {
                ring.write_u32(offset, 0);
            }
            let num = u32::from(size);
            let used = (18 * num + 6).next_multiple_of(4096);
            Self {
                da,
                descriptors: ring.part(0, 16 * num).unwrap(),
                avail: ring.part(16 * num, 6 + 2 * num).unwrap(),
                used: ring.part(used, 6 + 8 * num).unwrap(),
                size,
                avail_index: 0,
                used_index: 0,
            }
        }

        pub(crate) fn start_at(&mut self, index: u16) {
            self.avail_index = index;
            self.used_index = index;
            self.avail.write_u16(INDEX, index);
            self.used.write_u16(INDEX, index);
        }

        pub(crate) fn describe(&self, head: u16, address: u64, len: u32, flags: u16) {
            let at = u32::from(head) * 16;
            self.descriptors.write_u32(at, address as u32);
            self.descriptors.write_u32(at + 4, (address >> 32) as u32);
            self.descriptors.write_u32(at + 8, len);
            self.descriptors.write_u16(at + 12, flags);
        }

        pub(crate) fn offer(&mut self, head: u16) {
            let slot = u32::from(self.avail_index % self.size);
            self.avail.write_u16(RING + 2 * slot, head);
            self.set_avail_index(self.avail_index.wrapping_add(1));
        }

        pub(crate) fn set_avail_index(&mut self, index: u16) {
            self.avail_index = index;
            self.avail.write_u16(INDEX, index);
        }

        pub(crate) fn set_no_interrupt(&self, on: bool) {
            self.avail.write_u16(FLAGS, u16::from(on));
        }

        pub(crate) fn kicks_wanted(&self) -> bool {
            self.used.read_u16(FLAGS) & USED_NO_NOTIFY == 0
        }

        /// The driver wants a kick for the used entry at `index`.
        pub(crate) fn name_used_event(&self, index: u16) {
            self.avail.write_u16(self.avail.len() - 2, index);
        }

        /// The avail entry that the device wants a kick for.
        pub(crate) fn avail_event(&self) -> u16 {
            self.used.read_u16(self.used.len() - 2)
        }

        pub(crate) fn collect(&mut self) -> Option<(u32, u32)> {
            if self.used.read_u16(INDEX) == self.used_index {
                return None;
            }
            let slot = RING + 8 * u32::from(self.used_index % self.size);
            self.used_index = self.used_index.wrapping_add(1);
            Some((self.used.read_u32(slot), self.used.read_u32(slot + 4)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::DriverQueue;
    use super::*;
    use crate::memory::testing::leak;

    const BASE: u32 = 0x8004_0000;
    const BUFFERS: u64 = 0x8005_0000;
    const TO_DRIVER: Expected = Expected {
        direction: Direction::ToDriver,
        min: 0,
        max: 512,
    };
    const FROM_DRIVER: Expected = Expected {
        direction: Direction::FromDriver,
        ..TO_DRIVER
    };
    const MESSAGE: Expected = Expected {
        min: 16,
        ..FROM_DRIVER
    };

    fn place(da: u32, num: u32, align: u32) -> VringPlace {
        VringPlace {
            da,
            align,
            num,
            notify_id: 0,
        }
    }

    fn setup(size: u16, start: u16) -> (Window, DriverQueue, Queue) {
        setup_with(size, start, Notify::ByFlags)
    }

    fn setup_with(size: u16, start: u16, notify: Notify) -> (Window, DriverQueue, Queue) {
        let window = Window::new(leak(0x2_0000), BASE);
        let mut driver = DriverQueue::new(&window, BASE, size);
        driver.start_at(start);
        let place = place(BASE, u32::from(size), 4096);
        let queue = Queue::new(&window, &place, notify).unwrap();
        (window, driver, queue)
    }

    #[test]
    fn buffers_come_in_the_order_offered_and_go_back_with_their_length() {
        let (window, mut driver, mut queue) = setup(8, 0);
        for head in [3, 1] {
            driver.describe(head, BUFFERS + 512 * u64::from(head), 512, DESCRIPTOR_WRITE);
            driver.offer(head);
        }
        for head in [3, 1] {
            let buffer = queue.take(&window, TO_DRIVER).unwrap().unwrap().unwrap();
            assert_eq!((buffer.head, buffer.bytes.len()), (head, 512));
            queue.give_back(head, 100 + u32::from(head));
        }
        assert!(queue.take(&window, TO_DRIVER).unwrap().is_none());
        assert_eq!(
            driver.collect(),
            None,
            "nothing shows before it is published"
        );
        assert!(queue.publish());
        assert_eq!(driver.collect(), Some((3, 103)));
        assert_eq!(driver.collect(), Some((1, 101)));
        assert!(!queue.publish(), "no kick for nothing");
    }

    #[test]
    fn indices_wrap_at_65536() {
        let (window, mut driver, mut queue) = setup(8, 65533);
        for round in 0..20_u16 {
            driver.describe(round % 8, BUFFERS, 20, 0);
            driver.offer(round % 8);
            let buffer = queue.take(&window, FROM_DRIVER).unwrap().unwrap().unwrap();
            assert_eq!(buffer.head, round % 8);
            queue.give_back(buffer.head, 0);
            queue.publish();
            assert_eq!(driver.collect(), Some((u32::from(round % 8), 0)));
            assert!(!queue.made_anew());
        }
        assert_eq!(driver.used_index, 65533_u16.wrapping_add(20));
    }

    #[test]
    fn a_driver_that_wants_no_interrupt_gets_no_kick() {
        let (window, mut driver, mut queue) = setup(8, 0);
        driver.set_no_interrupt(true);
        driver.describe(0, BUFFERS, 20, 0);
        driver.offer(0);
        queue.take(&window, FROM_DRIVER).unwrap().unwrap().unwrap();
        queue.give_back(0_u16, 0);
        assert!(!queue.publish());
        assert!(driver.collect().is_some());
    }

    #[test]
    fn entries_that_cannot_be_right_are_named_and_the_next_one_is_served() {
        let (window, mut driver, mut queue) = setup(8, 0);
        let bad: [(u64, u32, u16); 8] = [
            (BUFFERS, 513, 0),
            (BUFFERS, 15, 0),
            (BUFFERS, 20, DESCRIPTOR_WRITE),
            (BUFFERS, 20, DESCRIPTOR_NEXT),
            (BUFFERS, 20, DESCRIPTOR_INDIRECT),
            (BUFFERS + 2, 20, 0),
            (0x8000_0000, 20, 0),
            (BUFFERS + (1 << 32), 20, 0),
        ];
        for (address, len, flags) in bad {
            driver.describe(2, address, len, flags);
            driver.offer(2);
            let taken = queue.take(&window, MESSAGE).unwrap().unwrap();
            assert_eq!(
                taken.unwrap_err(),
                Malformed::Descriptor(2),
                "{address:#x} {len} {flags}"
            );
        }
        for head in [8, 0xFFFF] {
            driver.offer(head);
            let taken = queue.take(&window, MESSAGE).unwrap().unwrap();
            assert_eq!(taken.unwrap_err(), Malformed::NoSuchDescriptor);
        }
        driver.describe(2, BUFFERS, 20, 0);
        driver.offer(2);
        assert!(queue.take(&window, MESSAGE).unwrap().unwrap().is_ok());
    }

    #[test]
    fn an_avail_index_that_jumps_breaks_the_ring() {
        let (window, mut driver, mut queue) = setup(8, 0);
        driver.set_avail_index(9);
        assert_eq!(queue.take(&window, FROM_DRIVER).unwrap_err(), Broken);
        driver.set_avail_index(65535);
        assert_eq!(queue.has_available(), Err(Broken));
        driver.set_avail_index(8);
        assert_eq!(queue.has_available(), Ok(true), "a full ring is fine");
    }

    #[test]
    fn a_ring_made_anew_is_noticed_by_its_used_index() {
        let (window, mut driver, mut queue) = setup(8, 0);
        driver.describe(0, BUFFERS, 20, 0);
        driver.offer(0);
        queue.take(&window, FROM_DRIVER).unwrap().unwrap().unwrap();
        queue.give_back(0_u16, 0);
        queue.publish();
        assert!(!queue.made_anew());
        DriverQueue::new(&window, BASE, 8);
        assert!(queue.made_anew());
    }

    #[test]
    fn impossible_rings_are_refused() {
        let window = Window::new(leak(0x1_0000), BASE);
        let new = |da, num, align| {
            let place = place(da, num, align);
            Queue::new(&window, &place, Notify::ByFlags).err()
        };
        assert_eq!(new(BASE, 256, 4096), None);
        for (num, align) in [
            (0, 4096),
            (255, 4096),
            (2048, 4096),
            (256, 0),
            (256, 3),
            (256, 2),
            (256, 1 << 31),
        ] {
            assert_eq!(
                new(BASE, num, align),
                Some(Unusable::Shape),
                "{num} {align}"
            );
        }
        for da in [0, 0xFFFF_FFFF, 0x8000_0000, BASE + 2, BASE + 0xE000] {
            assert_eq!(new(da, 256, 4096), Some(Unusable::Place), "{da:#x}");
        }
    }

    #[test]
    fn the_wish_for_kicks_is_in_the_ring() {
        let (_, driver, mut queue) = setup(8, 0);
        assert!(driver.kicks_wanted());
        queue.want_kicks(false);
        assert!(!driver.kicks_wanted());
        queue.want_kicks(true);
        assert!(driver.kicks_wanted());
    }

    #[test]
    fn with_event_idx_a_kick_comes_when_the_index_named_is_passed() {
        // From just below the wrap, so that it is passed on the way.
        let start = 65534_u16;
        let (window, mut driver, mut queue) = setup_with(8, start, Notify::ByIndex);
        // The flag has no say.
        driver.set_no_interrupt(true);
        let mut batch = |driver: &mut DriverQueue, count: u16| {
            for head in 0..count {
                driver.describe(head, BUFFERS, 20, 0);
                driver.offer(head);
                queue.take(&window, FROM_DRIVER).unwrap().unwrap().unwrap();
                queue.give_back(head, 0);
            }
            queue.publish()
        };
        driver.name_used_event(start.wrapping_add(3));
        assert!(!batch(&mut driver, 3), "entry 3 is the fourth");
        assert!(batch(&mut driver, 1));
        assert!(!batch(&mut driver, 8), "passed is passed");
        driver.name_used_event(start.wrapping_add(14));
        assert!(batch(&mut driver, 8), "in the middle of a batch");
        assert!(!batch(&mut driver, 0), "no kick for nothing");
    }

    #[test]
    fn with_event_idx_the_wish_for_kicks_is_the_next_index() {
        let (window, mut driver, mut queue) = setup_with(8, 65535, Notify::ByIndex);
        queue.want_kicks(true);
        assert_eq!(driver.avail_event(), 65535);
        driver.describe(0, BUFFERS, 20, 0);
        driver.offer(0);
        queue.take(&window, FROM_DRIVER).unwrap().unwrap().unwrap();
        queue.want_kicks(false);
        assert_eq!(driver.avail_event(), 65535, "which the driver has passed");
        assert!(driver.kicks_wanted(), "the flag stays as it is");
        queue.want_kicks(true);
        assert_eq!(driver.avail_event(), 0);
    }
}
