//! Which vdevs a turn looks at.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::AtomicU16;

use proptest::prelude::*;
use vhost_user_backend::VringT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryAtomic, GuestMemoryMmap};

use super::*;
use crate::engine::{EngineError, ImageRules};
use crate::firmware::Snapshot;
use crate::memory::{DeviceAddress, Ram};
use crate::rproc::{Coredumps, Firmware, Grants, Holder, Policies};
use crate::vdev::{
    GuestQueue, MESSAGES_PER_BURST, QUEUE_TO_CORE, QUEUES, RING_F_EVENT_IDX, RingLayout, Vring,
};

#[path = "../../../../tests/firmware/elf_builder.rs"]
#[expect(dead_code, reason = "the integration tests use the rest")]
mod elf_builder;
#[path = "../../../../tests/firmware/table_builder.rs"]
mod table_builder;

use elf_builder::Elf;
use table_builder::{ANY, Table};

const RAM: u32 = 0x8000_0000;
/// Entries of the guests' rings and of the vrings.
const SIZE: u16 = 256;
const VDEVS: usize = 4;
const BURST: u16 = MESSAGES_PER_BURST as u16;
/// Bytes of a message: a header and as good as nothing.
const LENGTH: u32 = 24;

/// A guest's driver, which kicks when it is asked to.
struct Guest {
    vdev: usize,
    memory: Arc<GuestMemoryMmap>,
    offered: AtomicU16,
    kicked: Arc<AtomicU32>,
}

/// Where a queue's ring begins in a guest's memory.
const fn ring(queue: usize) -> u64 {
    0x4000 * (1 + queue as u64)
}

fn layout(queue: usize) -> RingLayout {
    RingLayout {
        size: SIZE,
        descriptors: GuestAddress(ring(queue)),
        available: GuestAddress(ring(queue) + 0x1000),
        used: GuestAddress(ring(queue) + 0x2000),
    }
}

impl Guest {
    /// One with all buffers described, and those for receiving offered.
    fn new(vdev: usize, kicked: Arc<AtomicU32>) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        let guest = Self {
            vdev,
            memory: Arc::new(memory),
            offered: AtomicU16::new(0),
            kicked,
        };
        for queue in 0..QUEUES {
            for id in 0..SIZE {
                let buffer = 0x2_0000 * (1 + queue as u64) + 512 * u64::from(id);
                let (len, flags) = [(512, 2), (LENGTH, 0)][queue];
                let words = [buffer, u64::from(len) | flags << 32];
                let at = ring(queue) + 16 * u64::from(id);
                guest.memory.write_obj(words, GuestAddress(at)).unwrap();
                guest.store(ring(queue) + 0x1004 + 2 * u64::from(id), id);
                let mut message = [0; LENGTH as usize];
                message[4] = 9;
                message[12] = LENGTH as u8 - 16;
                let to = GuestAddress(buffer);
                guest.memory.write_slice(&message, to).unwrap();
            }
        }
        guest.store(ring(0) + 0x1002, SIZE);
        guest
    }

    fn store(&self, at: u64, value: u16) {
        let at = GuestAddress(at);
        self.memory.store(value, at, Ordering::SeqCst).unwrap();
    }

    fn load(&self, at: u64) -> u16 {
        let at = GuestAddress(at);
        self.memory.load(at, Ordering::SeqCst).unwrap()
    }

    /// Messages that it has offered.
    fn offered(&self) -> u16 {
        self.offered.load(Ordering::SeqCst)
    }

    /// Messages that were taken.
    fn taken(&self) -> u16 {
        self.load(ring(QUEUE_TO_CORE) + 0x2002)
    }

    /// Messages that it got.
    fn received(&self) -> u16 {
        self.load(ring(QUEUE_TO_GUEST) + 0x2002)
    }

    /// Offers messages; whether a kick was asked for.
    fn offer_unkicked(&self, count: u16) -> bool {
        let old = self.offered.fetch_add(count, Ordering::SeqCst);
        let new = old.wrapping_add(count);
        self.store(ring(QUEUE_TO_CORE) + 0x1002, new);
        let event = self.load(ring(QUEUE_TO_CORE) + 0x2004 + 8 * u64::from(SIZE));
        new.wrapping_sub(event).wrapping_sub(1) < count
    }

    fn kick(&self) {
        self.kicked.fetch_or(1 << self.vdev, Ordering::SeqCst);
    }

    /// Offers messages and does as it was asked.
    fn offer(&self, count: u16) -> bool {
        let asked = self.offer_unkicked(count);
        if asked {
            self.kick();
        }
        asked
    }
}

/// What a firmware does in its next run.
#[derive(Default)]
struct Strings {
    kicks: NotifySet,
    /// Its vdevs whose messages it takes and gives back, in each run.
    takes: u32,
    /// What guests offer while it runs.
    offers: VecDeque<(usize, u16)>,
    /// Of each vdev.
    vrings: Vec<[u64; QUEUES]>,
}

/// An engine whose firmware is pulled by strings.
struct Puppet {
    ram: Arc<Ram>,
    strings: Arc<Mutex<Strings>>,
    guests: Arc<Mutex<Vec<Arc<Guest>>>>,
}

impl Engine for Puppet {
    fn kind(&self) -> &'static str {
        "puppet"
    }

    fn image_rules(&self) -> ImageRules {
        ImageRules::RV32
    }

    fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    fn start(&mut self, _boot: DeviceAddress, _incarnation: u32) -> Result<(), EngineError> {
        Ok(())
    }

    fn stop(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn kick(&mut self, _id: NotifyId) {}

    fn run(&mut self, _budget: u64) -> Run {
        let mut strings = self.strings.lock().unwrap();
        for index in bits(strings.takes) {
            let vring = strings.vrings[index][QUEUE_TO_CORE];
            while give_back(&self.ram, vring, 0) {}
        }
        if let Some((vdev, count)) = strings.offers.pop_front() {
            self.guests.lock().unwrap()[vdev].offer(count);
        }
        Run {
            kicks: std::mem::take(&mut strings.kicks),
            stray_kicks: 0,
            end: RunEnd::Waiting { until: None },
        }
    }
}

/// The firmware gives the next buffer of a vring back; `false` if it has none.
fn give_back(ram: &Ram, vring: u64, len: u32) -> bool {
    let slice = ram.slice(DeviceAddress(vring), 0x2000).unwrap();
    let available = 16 * usize::from(SIZE);
    let used = (available + 6 + 2 * usize::from(SIZE)).next_multiple_of(16);
    let offered: u16 = slice.read_obj(available + 2).unwrap();
    let given: u16 = slice.read_obj(used + 2).unwrap();
    if offered == given {
        return false;
    }
    let slot = usize::from(given % SIZE);
    let id: u16 = slice.read_obj(available + 4 + 2 * slot).unwrap();
    if len != 0 {
        let buffer: u64 = slice.read_obj(16 * usize::from(id)).unwrap();
        let to = ram.slice(DeviceAddress(buffer), len.into()).unwrap();
        let mut message = vec![0; len as usize];
        message[12] = len as u8 - 16;
        to.copy_from(&message);
    }
    let element = [u32::from(id), len];
    slice.write_obj(element, used + 4 + 8 * slot).unwrap();
    slice.write_obj(given.wrapping_add(1), used + 2).unwrap();
    true
}

/// A core that runs, with a guest for each vdev, asleep.
struct Bench {
    machine: Machine,
    guests: Vec<Arc<Guest>>,
    strings: Arc<Mutex<Strings>>,
    ram: Arc<Ram>,
}

impl Bench {
    fn new(linger: Linger) -> Self {
        let table = Table::new().carveout(RAM, 0x4000, "image");
        let table = (0..VDEVS).fold(table, |table, _| {
            table.vdev(7, 1, &[(ANY, 16, SIZE.into()); QUEUES], &[])
        });
        let image = Elf::new(RAM)
            .load(RAM, &[0x13; 16], 16)
            .table(RAM + 0x1000, &table.build())
            .build();
        let ram = Ram::new("puppet", DeviceAddress(RAM.into()), 4 << 20).unwrap();
        let (strings, guests) = <(Arc<Mutex<Strings>>, Arc<Mutex<Vec<_>>>)>::default();
        let mut engine = Box::new(Puppet {
            ram: ram.clone(),
            strings: strings.clone(),
            guests: guests.clone(),
        });
        let image = Snapshot::from_bytes("puppet.elf", image);
        let firmware = Firmware::new(image, &mut *engine, VDEVS, Grants::default()).unwrap();
        let policies = Policies {
            linger,
            ..Policies::default()
        };
        let coredumps = Coredumps::disabled();
        let mut machine = Machine::new("core", engine, firmware, policies, coredumps);
        machine.start(Holder::Operator).unwrap();
        for vdev in 0..VDEVS {
            let guest = Guest::new(vdev, machine.kicked());
            for queue in 0..QUEUES {
                let memory = guest.memory.clone();
                let vring = Vring::new(GuestMemoryAtomic::from(memory.clone()), SIZE).unwrap();
                let queue_of_guest = GuestQueue {
                    layout: layout(queue),
                    features: RING_F_EVENT_IDX,
                    memory,
                    vring,
                };
                machine.attach(vdev, queue, queue_of_guest).unwrap();
            }
            guests.lock().unwrap().push(Arc::new(guest));
        }
        let plan = &machine.state.incarnation().unwrap().plan;
        strings.lock().unwrap().vrings = plan
            .vdevs
            .iter()
            .map(|vdev| {
                let mut places = vdev.vrings().map(|(da, ..)| da.0);
                std::array::from_fn(|_| places.next().unwrap())
            })
            .collect();
        let guests = guests.lock().unwrap().clone();
        let mut bench = Self {
            machine,
            guests,
            strings,
            ram,
        };
        // As the core's own thread does it.
        bench.drive();
        bench.machine.watch.still = [0; 32];
        bench
    }

    /// Asleep, unless it lingers for ever.
    fn drive(&mut self) -> Later {
        self.machine.drive(&Driver::PATIENT)
    }

    fn active(&self) -> u32 {
        self.machine.watch.active & self.machine.vdev_mask()
    }

    /// The firmware says that it has something to say.
    fn firmware_kicks(&self, vdev: usize) {
        // Ids are given in the order of the table.
        let id = NotifyId(2 * vdev as u8);
        self.strings.lock().unwrap().kicks.insert(id);
    }
}

#[test]
fn a_vdev_is_active_from_its_guest_s_kick_until_the_guest_is_asked_to_kick_again() {
    let mut bench = Bench::new(Linger::Never);
    assert_eq!(bench.active(), 0);
    assert!(
        bench.guests[1].offer(1),
        "a guest of a core asleep is asked to kick"
    );
    assert_eq!(bench.active(), 0, "nobody has looked");
    bench.machine.round();
    assert_eq!(bench.active(), 1 << 1);
    assert_eq!(bench.guests[1].taken(), 1);
    bench.machine.round();
    assert_eq!(bench.active(), 1 << 1, "the guest has not been asked yet");
    assert!(!bench.guests[1].offer(1), "nobody wants a kick");
    assert_eq!(bench.drive(), Later::Nothing);
    assert_eq!(bench.guests[1].taken(), 2);
    assert_eq!(bench.active(), 0);
    assert!(bench.guests[1].offer(1), "the guest is asked again");
}

#[test]
fn a_vdev_is_active_from_its_firmware_s_kick_until_the_core_sleeps() {
    let mut bench = Bench::new(Linger::Never);
    let vring = bench.strings.lock().unwrap().vrings[2][QUEUE_TO_GUEST];
    assert!(give_back(&bench.ram, vring, LENGTH));
    bench.firmware_kicks(2);
    bench.machine.round();
    assert_eq!(bench.active(), 1 << 2);
    assert_eq!(bench.guests[2].received(), 1, "in the round of the kick");
    assert_eq!(bench.drive(), Later::Nothing);
    assert_eq!(bench.active(), 0);
}

#[test]
fn a_kick_for_nothing_makes_a_vdev_active_and_is_forgotten() {
    let mut bench = Bench::new(Linger::Never);
    bench.guests[3].kick();
    bench.firmware_kicks(0);
    bench.machine.round();
    assert_eq!(bench.active(), 1 << 3 | 1 << 0);
    assert_eq!(bench.drive(), Later::Nothing);
    assert_eq!(bench.active(), 0);
}

#[test]
fn of_a_vdev_with_more_than_a_turn_takes_nothing_is_left_when_the_core_sleeps() {
    let mut bench = Bench::new(Linger::Never);
    bench.guests[0].offer(SIZE);
    assert_eq!(bench.drive(), Later::Nothing);
    assert_eq!(bench.guests[0].taken(), SIZE);
    assert_eq!(bench.active(), 0);
}

#[test]
fn a_vdev_whose_guest_offers_something_while_it_is_asked_to_kick_stays_active() {
    let mut bench = Bench::new(Linger::Never);
    for vdev in [1, 2] {
        bench.guests[vdev].offer(1);
    }
    bench.machine.round();
    bench.machine.round();
    // Between the last look and the request.
    assert!(!bench.guests[2].offer(1));
    assert!(bench.machine.ask_for_kicks());
    assert_eq!(bench.active(), 1 << 2);
    bench.machine.round();
    assert_eq!(bench.guests[2].taken(), 2);
    bench.machine.round();
    assert!(!bench.machine.ask_for_kicks());
    assert_eq!(bench.active(), 0);
}

#[test]
fn what_nobody_has_kicked_for_is_found_before_the_core_sleeps() {
    let mut bench = Bench::new(Linger::Never);
    bench.guests[1].offer_unkicked(1);
    let vring = bench.strings.lock().unwrap().vrings[3][QUEUE_TO_GUEST];
    assert!(give_back(&bench.ram, vring, LENGTH));
    bench.guests[0].offer(1);
    assert_eq!(bench.drive(), Later::Nothing);
    assert_eq!(bench.guests[1].taken(), 1);
    assert_eq!(bench.guests[3].received(), 1);
    assert_eq!(bench.active(), 0);
}

#[test]
fn active_vdevs_are_served_by_turns() {
    let mut bench = Bench::new(Linger::Never);
    for vdev in [0, 2, 3] {
        bench.guests[vdev].offer(6 * BURST);
    }
    for round in 1..=6 {
        bench.machine.round();
        let taken: Vec<u16> = bench.guests.iter().map(|guest| guest.taken()).collect();
        let share = round * BURST;
        assert_eq!(taken, [share, 0, share, share]);
    }
}

#[test]
fn a_vdev_that_always_has_something_makes_an_active_one_wait_for_a_few_rounds_only() {
    let mut bench = Bench::new(Linger::Never);
    bench.strings.lock().unwrap().takes = u32::MAX >> (32 - VDEVS);
    for vdev in [0, 2] {
        bench.guests[vdev].offer(1);
    }
    for _ in 0..100 {
        // Both are active, so neither kicks.
        bench.guests[0].offer(BURST);
        bench.machine.round();
        let before = bench.guests[2].taken();
        assert!(!bench.guests[2].offer(1));
        for _ in 0..ROUNDS_BETWEEN_LOOKS {
            bench.guests[0].offer(BURST);
            bench.machine.round();
        }
        assert_eq!(bench.guests[2].taken(), before + 1);
    }
}

#[test]
fn a_busy_core_drops_a_vdev_that_is_still_for_long_and_takes_it_up_at_its_next_kick() {
    let mut bench = Bench::new(Linger::Always);
    bench.strings.lock().unwrap().takes = u32::MAX >> (32 - VDEVS);
    for vdev in [0, 2] {
        bench.guests[vdev].offer(1);
    }
    let all = (1 << VDEVS) - 1;
    bench.machine.round();
    assert_eq!(bench.active(), all);
    for _ in 0..u32::from(ROUNDS_TO_INACTIVE) + 1 {
        bench.guests[0].offer(1);
        bench.machine.round();
    }
    assert_eq!(bench.active(), 1 << 0, "one that moves is never dropped");
    assert!(
        bench.guests[2].offer(1),
        "one that is dropped is asked to kick"
    );
    bench.machine.round();
    assert_eq!(bench.active(), 1 << 0 | 1 << 2);
    assert_eq!(bench.guests[2].taken(), 2);
}

/// What happens next: a guest offers something, now or while the firmware runs; and then the core
/// is driven for a round, for a turn, or not at all, if somebody has kicked or it is still awake.
type Step = (usize, u16, bool, u8);

proptest! {
    #[test]
    fn what_guests_offer_is_taken_if_they_kick_when_they_are_asked(
        steps in proptest::collection::vec((0..VDEVS, 1..=BURST + 8, any::<bool>(), 0..3_u8), 1..60)
    ) {
        let mut bench = Bench::new(Linger::Never);
        bench.strings.lock().unwrap().takes = u32::MAX >> (32 - VDEVS);
        let steps: Vec<Step> = steps;
        let mut awake = false;
        for (vdev, count, while_running, then) in steps {
            let guest = &bench.guests[vdev];
            let planned: u16 = {
                let strings = bench.strings.lock().unwrap();
                let of_vdev = strings.offers.iter().filter(|(other, _)| *other == vdev);
                of_vdev.map(|(_, count)| count).sum()
            };
            // More than the ring has room for would be the guest's own fault.
            let out = guest.offered().wrapping_sub(guest.taken()) + planned;
            let count = count.min(SIZE - out);
            if count == 0 {
            } else if while_running {
                bench.strings.lock().unwrap().offers.push_back((vdev, count));
            } else {
                awake |= guest.offer(count);
            }
            match then {
                0 if awake => drop(bench.machine.round()),
                1 if awake => awake = bench.drive() != Later::Nothing,
                _ => {}
            }
            // A kick while it ran, after its last look at them.
            awake |= bench.machine.kicked().load(Ordering::SeqCst) != 0;
        }
        for _ in 0..100 {
            if awake {
                awake = bench.drive() != Later::Nothing
                    || bench.machine.kicked().load(Ordering::SeqCst) != 0;
            }
        }
        prop_assert!(!awake, "the core never sleeps");
        for guest in &bench.guests {
            prop_assert_eq!(guest.taken(), guest.offered(), "vdev {}", guest.vdev);
        }
        prop_assert_eq!(bench.active(), 0);
    }
}
