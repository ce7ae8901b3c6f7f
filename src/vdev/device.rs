//! One vdev between its two sides, as the core's driver holds it.
//!
//! What belongs here: which rings of which side are there, and the relay between those that are.
//! What does not: the resource table (the lifecycle writes it), threads, sockets.
//!
//! ```text
//!  guest side: queues attached one by one     core side: none until the guest's driver is up,
//!  and detached one by one; all up = the      none again after a reset of the vdev, a fault of
//!  guest's driver is up                       the firmware, or a stop of the core
//! ```

use std::sync::Arc;

use log::{error, warn};
use vm_memory::GuestMemoryMmap;

use super::driver_ring::DriverRing;
use super::farewell::{Farewells, discard};
use super::guest_ring::{Direction, GuestRing, RingFault, RingFeatures, RingLayout};
use super::relay::{Counters, MESSAGES_PER_BURST, Moved, RelayFault, ToCore, ToGuest};
use super::rpmsg::{Announcements, News, VIRTIO_RPMSG_F_NS};
use super::vring::Vring;
use super::{MAX_QUEUE_SIZE, QUEUE_TO_CORE, QUEUE_TO_GUEST, QUEUES};
use crate::engine::NotifyId;
use crate::memory::MemoryError;

/// `VIRTIO_RING_F_INDIRECT_DESC`.
pub const RING_F_INDIRECT: u64 = 1 << 28;
/// `VIRTIO_RING_F_EVENT_IDX`.
pub const RING_F_EVENT_IDX: u64 = 1 << 29;

/// Bursts that see all of the largest ring there is. A guest refills its rings while we work on
/// them, so "until nothing is left" might never end.
const BURSTS_OF_A_RING: usize = MAX_QUEUE_SIZE / MESSAGES_PER_BURST + 1;

/// What a guest brings when it attaches a queue.
pub struct GuestQueue {
    /// Where the ring is.
    pub layout: RingLayout,
    /// The features the guest acknowledged, the ring's and the device's.
    pub features: u64,
    /// The memory that the ring and its buffers are in.
    pub memory: Arc<GuestMemoryMmap>,
    /// How to call the guest.
    pub vring: Vring,
}

struct Attached {
    ring: GuestRing,
    vring: Vring,
    broken: bool,
    /// The last burst ended because the guest offered nothing.
    wanting: bool,
}

/// What the guest's side looks like after a queue was attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestState {
    /// Queues are missing.
    Incomplete,
    /// All queues are up and none has been used yet: a driver that has just been set up.
    Fresh,
    /// All queues are up and go on where they stopped (a paused and continued VM).
    Resumed,
}

struct CoreSide {
    to_guest: ToGuest,
    to_core: ToCore,
    ids: [NotifyId; QUEUES],
}

/// What a round of relaying asks of the core.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Round {
    /// Something happened: another round may find more.
    pub progress: bool,
    /// Kick the core on this vring.
    pub kick: Option<NotifyId>,
    /// The firmware broke the rules; the core's side of the vdev is gone.
    pub failed: bool,
}

/// A vdev's figures for an operator.
#[derive(Clone, Debug)]
pub struct VdevSnapshot {
    /// Are all queues of a guest attached?
    pub guest_up: bool,
    /// The features that the guest accepted, while its queues are attached.
    pub accepted: Option<u64>,
    /// Does the firmware see a driver (DRIVER_OK)?
    pub core_up: bool,
    /// From the core to the guest.
    pub to_guest: Counters,
    /// From the guest to the core.
    pub to_core: Counters,
    /// Messages that the firmware has been given and has not given back.
    pub core_holds: u16,
    /// Does a message of the firmware wait for a buffer of the guest?
    pub starved: bool,
    /// What the firmware has announced.
    pub announcements: Announcements,
}

/// One vdev.
pub struct Vdev {
    label: String,
    guest: [Option<Attached>; QUEUES],
    features: u64,
    core: Option<CoreSide>,
    announcements: Announcements,
    farewells: Farewells,
    /// The guest may have sent messages to endpoints of an incarnation that is gone.
    stale: bool,
    to_guest: Counters,
    to_core: Counters,
}

impl Vdev {
    /// A vdev with nobody on either side. `label` names it in messages.
    pub fn new(label: String) -> Self {
        Self {
            label,
            guest: [const { None }; QUEUES],
            features: 0,
            core: None,
            announcements: Announcements::default(),
            farewells: Farewells::default(),
            stale: false,
            to_guest: Counters::default(),
            to_core: Counters::default(),
        }
    }

    /// Names the vdev in messages.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Attaches queue `index` of a guest.
    ///
    /// # Errors
    /// A [`RingFault`] if the ring cannot be used; the queue stays unattached.
    pub fn attach(&mut self, index: usize, queue: GuestQueue) -> Result<GuestState, RingFault> {
        let features = RingFeatures {
            event_idx: queue.features & RING_F_EVENT_IDX != 0,
            indirect: queue.features & RING_F_INDIRECT != 0,
        };
        let direction = if index == QUEUE_TO_GUEST {
            Direction::ToGuest
        } else {
            Direction::FromGuest
        };
        let ring = GuestRing::take_up(queue.layout, features, direction, &queue.memory)?;
        self.guest[index] = Some(Attached {
            ring,
            vring: queue.vring,
            broken: false,
            wanting: false,
        });
        self.features = queue.features;
        // A driver starts with zeroed rings. A ring that has been used exactly a multiple of
        // 65536 times looks the same; if all do, a resumed guest is taken for a fresh one, and
        // hears its announcements twice, which its driver ignores.
        Ok(match &self.guest {
            [Some(a), Some(b)] if a.ring.position() == 0 && b.ring.position() == 0 => {
                GuestState::Fresh
            }
            [Some(_), Some(_)] => GuestState::Resumed,
            _ => GuestState::Incomplete,
        })
    }

    /// Detaches queue `index`; neither its ring nor its call descriptor is touched after this.
    /// Returns the ring's position.
    pub fn detach(&mut self, index: usize) -> Option<u16> {
        let attached = self.guest.get_mut(index)?.take()?;
        Some(attached.ring.position())
    }

    /// The guest's memory was laid out anew.
    pub fn set_memory(&mut self, memory: &Arc<GuestMemoryMmap>) {
        for queue in self.guest.iter_mut().flatten() {
            queue.ring.set_memory(memory);
        }
    }

    /// Is the guest's driver up?
    pub fn guest_is_up(&self) -> bool {
        self.guest.iter().all(Option::is_some)
    }

    /// Are there a guest's driver and a firmware, so that messages may move?
    pub fn is_served(&self) -> bool {
        self.core_is_up() && self.guest_is_up()
    }

    /// Does the firmware see a driver?
    pub fn core_is_up(&self) -> bool {
        self.core.is_some()
    }

    /// The features that the guest acknowledged.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The core's rings are there, in the order of the resource table: relaying may begin.
    ///
    /// # Errors
    /// [`MemoryError`] if a ring's buffers are not in the core's memory.
    pub fn start(
        &mut self,
        [to_guest, to_core]: [DriverRing; QUEUES],
        ids: [NotifyId; QUEUES],
    ) -> Result<(), MemoryError> {
        if std::mem::take(&mut self.stale) {
            self.discard_sent();
        }
        self.core = Some(CoreSide {
            to_guest: ToGuest::new(to_guest)?,
            to_core: ToCore::new(to_core),
            ids,
        });
        Ok(())
    }

    /// The guest's driver is gone, or is a new one: nothing from before belongs to it.
    pub fn reset(&mut self) {
        self.core = None;
        self.announcements.take();
        self.farewells.clear();
        self.stale = false;
    }

    /// The incarnation is gone and the guest is still there. What the firmware had finished goes
    /// to the guest; its endpoints are withdrawn; what the guest had sent and the firmware had not
    /// taken is given back and counted as lost.
    ///
    /// A guest with name service is told, so what it sends from here on until the next start is
    /// meant for the dead too. A guest without keeps its endpoints over the gap, and what it sends
    /// waits for the next incarnation.
    pub fn core_gone(&mut self) {
        if self.core.is_none() {
            return;
        }
        for _ in 0..BURSTS_OF_A_RING {
            if !self.relay_to_guest().progress {
                break;
            }
        }
        self.core_lost();
    }

    /// There is no firmware behind the vdev any more: it died, or broke its vring.
    fn core_lost(&mut self) {
        let Some(core) = self.core.take() else { return };
        self.to_guest.lost += core.to_guest.undelivered();
        self.to_core.lost += core.to_core.untaken();
        self.stale = self.features & VIRTIO_RPMSG_F_NS != 0;
        self.farewells.add(self.announcements.take());
        self.discard_sent();
        self.relay_farewells();
    }

    /// Gives back all that the guest has sent so far. One that goes on sending does not keep us.
    fn discard_sent(&mut self) {
        for _ in 0..BURSTS_OF_A_RING {
            if !self.guest_is_up() {
                return;
            }
            let Some(queue) = usable(&mut self.guest[QUEUE_TO_CORE]) else {
                return;
            };
            let mut moved = Moved::default();
            let ended = discard(&mut queue.ring, &mut self.to_core, &mut moved);
            let ended = ended.map_err(RelayFault::from);
            if !self.conclude(QUEUE_TO_CORE, None, moved, ended).progress {
                return;
            }
        }
    }

    /// Withdraws what is still to be withdrawn, as far as the guest has buffers. With or without
    /// a core.
    pub fn relay_farewells(&mut self) -> Round {
        if self.farewells.is_empty() || !self.guest_is_up() {
            return Round::default();
        }
        let Some(queue) = usable(&mut self.guest[QUEUE_TO_GUEST]) else {
            return Round::default();
        };
        let mut moved = Moved::default();
        let ended = self
            .farewells
            .relay(&mut queue.ring, &mut self.to_guest, &mut moved);
        self.conclude(QUEUE_TO_GUEST, None, moved, ended.map_err(RelayFault::from))
    }

    /// Relays a burst from the guest to the core.
    ///
    /// Nothing moves in either direction before all queues are there: only then is it known
    /// whether the driver is a fresh one, to whom nothing from before belongs.
    // Its instructions are counted by its name: xtask/src/instructions.rs.
    #[inline(never)]
    pub fn relay_to_core(&mut self) -> Round {
        if !self.guest_is_up() {
            return Round::default();
        }
        let Some(core) = &mut self.core else {
            return Round::default();
        };
        let Some(queue) = usable(&mut self.guest[QUEUE_TO_CORE]) else {
            return Round::default();
        };
        let mut moved = Moved::default();
        let ended = core
            .to_core
            .relay(&mut queue.ring, &mut self.to_core, &mut moved);
        let id = core.ids[QUEUE_TO_CORE];
        let round = self.conclude(QUEUE_TO_CORE, Some(id), moved, ended);
        if round.failed {
            self.core_lost();
        }
        round
    }

    /// Must the relay to the core be looked at again, though nothing came from the guest?
    pub fn can_go_on(&self) -> bool {
        self.guest_is_up()
            && is_usable(&self.guest[QUEUE_TO_CORE])
            && self
                .core
                .as_ref()
                .is_some_and(|core| core.to_core.can_go_on())
    }

    /// Would a burst in one of the two directions move anything, by the look of the indexes? For
    /// those who look often: it costs a few loads.
    #[inline]
    pub fn may_move(&self) -> bool {
        let (Some(core), [Some(to_guest), Some(to_core)]) = (&self.core, &self.guest) else {
            return false;
        };
        let up = !to_core.broken && to_core.ring.has_more() && core.to_core.has_room();
        let down = !to_guest.broken
            && if core.to_guest.is_starved() || !self.farewells.is_empty() {
                to_guest.ring.has_more()
            } else {
                core.to_guest.has_more()
            };
        up || down
    }

    /// Nobody will look for a while: asks the guest to kick where it offered nothing that could be
    /// used. `true` if something has come meanwhile, so that looking must go on.
    pub fn ask_for_kicks(&mut self) -> bool {
        if !self.guest_is_up() {
            return false;
        }
        let mut found = false;
        for index in 0..QUEUES {
            let Some(queue) = usable(&mut self.guest[index]).filter(|queue| queue.wanting) else {
                continue;
            };
            if queue.ring.is_armed() {
                continue;
            }
            let asked = queue.ring.open().and_then(|mut burst| burst.ask_for_kick());
            match asked {
                Ok(more) => found |= more,
                Err(fault) => {
                    self.conclude(index, None, Moved::default(), Err(fault.into()));
                }
            }
        }
        found
    }

    /// Relays a burst from the core to the guest, on the same condition
    /// and after everything that is to be withdrawn.
    // As above.
    #[inline(never)]
    pub fn relay_to_guest(&mut self) -> Round {
        if !self.guest_is_up() || !self.farewells.is_empty() {
            return Round::default();
        }
        let Some(core) = &mut self.core else {
            return Round::default();
        };
        let Some(queue) = usable(&mut self.guest[QUEUE_TO_GUEST]) else {
            return Round::default();
        };
        let name_service = self.features & VIRTIO_RPMSG_F_NS != 0;
        let mut moved = Moved::default();
        let ended = core.to_guest.relay(
            &mut queue.ring,
            name_service.then_some(&mut self.announcements),
            &mut self.to_guest,
            &mut moved,
        );
        let id = core.ids[QUEUE_TO_GUEST];
        let round = self.conclude(QUEUE_TO_GUEST, Some(id), moved, ended);
        if round.failed {
            self.core_lost();
        }
        round
    }

    /// Does what a burst asks for, also if a fault ended it. Nothing of the ring is held any more,
    /// so the guest is called outside of it.
    fn conclude(
        &mut self,
        index: usize,
        id: Option<NotifyId>,
        moved: Moved,
        ended: Result<(), RelayFault>,
    ) -> Round {
        if let Some(queue) = &mut self.guest[index] {
            queue.wanting = moved.wants_guest;
            if moved.call_guest {
                queue.vring.call();
            }
        }
        match &ended {
            Ok(()) => {}
            Err(fault @ RelayFault::Guest(cause)) => {
                warn!("{}: queue {index}: {fault}: {cause}", self.label);
                if let Some(queue) = &mut self.guest[index] {
                    queue.broken = true;
                    queue.vring.report_error();
                }
            }
            Err(fault @ RelayFault::Firmware(cause)) => {
                error!("{}: vring {index}: {fault}: {cause}", self.label);
            }
            Err(fault @ RelayFault::Memory(cause)) => {
                error!("{}: vring {index}: {fault}: {cause}", self.label);
            }
        }
        let failed = matches!(ended, Err(RelayFault::Firmware(_) | RelayFault::Memory(_)));
        Round {
            progress: moved.progress || ended.is_err(),
            kick: id.filter(|_| moved.kick_core && !failed),
            failed,
        }
    }

    /// Endpoints that came and went since the last time.
    pub fn take_news(&mut self) -> Vec<News> {
        self.announcements.take_news()
    }

    /// Has an endpoint come or gone?
    #[inline]
    pub fn has_news(&self) -> bool {
        self.announcements.has_news()
    }

    /// The vdev's figures.
    pub fn snapshot(&self) -> VdevSnapshot {
        VdevSnapshot {
            guest_up: self.guest_is_up(),
            accepted: self.guest_is_up().then_some(self.features),
            core_up: self.core_is_up(),
            to_guest: self.to_guest,
            to_core: self.to_core,
            core_holds: self
                .core
                .as_ref()
                .map_or(0, |core| core.to_core.in_flight()),
            starved: self
                .core
                .as_ref()
                .is_some_and(|core| core.to_guest.is_starved()),
            announcements: self.announcements.clone(),
        }
    }
}

fn is_usable(queue: &Option<Attached>) -> bool {
    queue.as_ref().is_some_and(|queue| !queue.broken)
}

fn usable(queue: &mut Option<Attached>) -> Option<&mut Attached> {
    queue.as_mut().filter(|queue| !queue.broken)
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read, pipe};
    use std::os::fd::OwnedFd;

    use vhost_user_backend::VringT;
    use vm_memory::{GuestAddress, GuestMemoryAtomic};

    use super::super::mock::{Driver, Firmware, GUEST_BUFFERS, message};
    use super::super::rpmsg::BUFFER_LEN;
    use super::*;

    const IDS: [NotifyId; QUEUES] = [NotifyId(3), NotifyId(4)];

    /// A queue, and what the VMM hears of calls and of errors.
    fn queue(driver: &Driver, layout: RingLayout) -> (GuestQueue, PipeReader, PipeReader) {
        let memory = Arc::new(driver.mem.clone());
        let vring = Vring::new(GuestMemoryAtomic::from(memory.clone()), 256).unwrap();
        let (calls, call) = pipe().unwrap();
        let (errors, error) = pipe().unwrap();
        vring.set_call(Some(OwnedFd::from(call).into()));
        vring.set_err(Some(OwnedFd::from(error).into()));
        let queue = GuestQueue {
            layout,
            features: 0,
            memory,
            vring,
        };
        (queue, calls, errors)
    }

    /// How often was something signalled, once nobody can signal any more?
    fn signals(mut pipe: PipeReader) -> usize {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        bytes.len() / 8
    }

    /// A ring that nothing is ever offered in.
    fn idle(driver: &Driver) -> RingLayout {
        RingLayout {
            descriptors: GuestAddress(0x5000),
            available: GuestAddress(0x5800),
            used: GuestAddress(0x5c00),
            ..driver.layout
        }
    }

    #[test]
    fn a_guest_that_breaks_its_ring_is_left_alone_until_it_sets_it_up_anew() {
        let mut driver = Driver::new(8);
        let (mut firmware, ring) = Firmware::new(8, BUFFER_LEN, 0);
        let mut vdev = Vdev::new("test".to_owned());
        let (receive, ..) = queue(&driver, idle(&driver));
        let (transmit, calls, errors) = queue(&driver, driver.layout);
        assert_eq!(
            vdev.attach(QUEUE_TO_GUEST, receive).unwrap(),
            GuestState::Incomplete
        );
        assert_eq!(
            vdev.attach(QUEUE_TO_CORE, transmit).unwrap(),
            GuestState::Fresh
        );
        let (_, other) = Firmware::new(8, BUFFER_LEN, 0);
        vdev.start([other, ring], IDS).unwrap();

        let sent = message(7, 9, 1);
        driver.write(GUEST_BUFFERS, &sent);
        driver.describe(0, (GUEST_BUFFERS, 25), 0, 0);
        driver.offer(0);
        driver.offer(8);
        let round = vdev.relay_to_core();
        assert_eq!(round.kick, Some(IDS[QUEUE_TO_CORE]), "for what came before");
        assert_eq!(driver.used_index(), 1);
        for _ in 0..10 {
            assert_eq!(vdev.relay_to_core(), Round::default());
        }
        assert!(vdev.core_is_up(), "it is no fault of the firmware");
        assert_eq!(vdev.snapshot().to_core.messages, 1);

        assert_eq!(vdev.detach(QUEUE_TO_CORE), Some(1));
        assert_eq!((signals(calls), signals(errors)), (1, 1));
        driver.available = 1;
        driver.set_available(1);
        let (transmit, ..) = queue(&driver, driver.layout);
        let state = vdev.attach(QUEUE_TO_CORE, transmit).unwrap();
        assert_eq!(state, GuestState::Resumed);
        driver.offer(0);
        assert!(vdev.relay_to_core().progress);
        // Both vrings lie at one place here; only the second was written to last.
        assert_eq!(firmware.available(), 2);
        assert_eq!(firmware.take_number(), Some(0));
    }

    #[test]
    fn a_firmware_that_breaks_its_vring_loses_its_side_and_the_guest_keeps_its_own() {
        let mut driver = Driver::new(8);
        let (firmware, ring) = Firmware::new(8, BUFFER_LEN, 0);
        let mut vdev = Vdev::new("test".to_owned());
        let (receive, ..) = queue(&driver, idle(&driver));
        let (transmit, calls, errors) = queue(&driver, driver.layout);
        vdev.attach(QUEUE_TO_GUEST, receive).unwrap();
        vdev.attach(QUEUE_TO_CORE, transmit).unwrap();
        let (_, other) = Firmware::new(8, BUFFER_LEN, 0);
        vdev.start([other, ring], IDS).unwrap();
        driver.describe(0, (GUEST_BUFFERS, 25), 0, 0);
        driver.offer(0);
        firmware.set_used(1);
        let round = vdev.relay_to_core();
        assert_eq!((round.progress, round.kick), (true, None));
        assert!(!vdev.core_is_up() && vdev.guest_is_up());
        assert_eq!(vdev.relay_to_core(), Round::default());
        // What it had sent was for this incarnation: given back, counted, and told.
        assert_eq!(vdev.snapshot().to_core.lost, 1);
        assert_eq!(vdev.detach(QUEUE_TO_CORE), Some(1));
        assert_eq!((signals(calls), signals(errors)), (1, 0));
    }

    #[test]
    fn nothing_moves_before_all_queues_are_there_nor_after_one_is_gone() {
        let mut driver = Driver::new(8);
        let (_, ring) = Firmware::new(8, BUFFER_LEN, 0);
        let (_, other) = Firmware::new(8, BUFFER_LEN, 0);
        let mut vdev = Vdev::new("test".to_owned());
        vdev.start([other, ring], IDS).unwrap();
        driver.describe(0, (GUEST_BUFFERS, 25), 0, 0);
        driver.offer(0);
        let (transmit, ..) = queue(&driver, driver.layout);
        vdev.attach(QUEUE_TO_CORE, transmit).unwrap();
        assert_eq!(vdev.relay_to_core(), Round::default());
        let (receive, ..) = queue(&driver, idle(&driver));
        vdev.attach(QUEUE_TO_GUEST, receive).unwrap();
        assert!(vdev.relay_to_core().progress);
        driver.offer(0);
        vdev.detach(QUEUE_TO_GUEST);
        assert_eq!(vdev.relay_to_core(), Round::default());
        assert_eq!(driver.used_index(), 1);
    }
}
