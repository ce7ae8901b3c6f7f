//! The relay between two sides that are modelled: honest ones, to whom every message must arrive
//! once, in order and unchanged, and hostile ones, who must get nowhere.
//!
//! Honest sides here act only when they are told to, as real ones do: the relay runs when somebody
//! kicks, the guest looks at its used ring when it is called, the firmware when it is kicked. So a
//! notification that is missing is a message that never arrives.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::guest_ring::{Direction, GuestRing, RingFeatures};
use super::mock::{
    CORE_BUFFERS, Driver, Firmware, GUEST_BUFFERS, GUEST_END, INDIRECT, NEXT, RAM, RAM_LEN, VRING,
    WRITE, announcement, layout, message,
};
use super::relay::{Counters, MESSAGES_PER_BURST, Moved, RelayFault, ToCore, ToGuest};
use super::rpmsg::{Announcements, HEADER_LEN};

/// Bytes of each buffer; small, so that whole memories can be compared after each burst.
const BUFFER: u32 = 64;
/// Where the guest keeps indirect tables, one for each descriptor of the ring.
const TABLES: u64 = 0x6000;

/// Numbers that look random, the same for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }

    fn small(&mut self, bound: u16) -> u16 {
        u16::try_from(self.below(bound.into())).unwrap()
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[derive(Clone, Copy, Debug)]
struct Setting {
    guest: u16,
    core: u16,
    /// Where the guest's indexes begin.
    start: u16,
    features: RingFeatures,
    seed: u64,
}

fn setting() -> impl Strategy<Value = Setting> {
    let size = || (2u32..=4).prop_map(|bits| 1u16 << bits);
    let features = (any::<bool>(), any::<bool>()).prop_map(|(event_idx, indirect)| RingFeatures {
        event_idx,
        indirect,
    });
    (size(), size(), any::<u16>(), features, 1..u64::MAX).prop_map(
        |(guest, core, start, features, seed)| Setting {
            guest,
            core,
            start,
            features,
            seed,
        },
    )
}

/// A chain that was offered: its descriptors in the ring, and its buffers.
type Chain = (Vec<u16>, Vec<(u64, u32)>);

/// An honest driver's book of its ring. Chains have one to three buffers, or one indirect table.
struct Honest {
    driver: Driver,
    features: RingFeatures,
    flags: u16,
    free: Vec<u16>,
    /// Chains that the device has, oldest first.
    out: VecDeque<Chain>,
    last_used: u16,
    called: bool,
}

impl Honest {
    fn new(setting: Setting, direction: Direction) -> Self {
        Self {
            driver: Driver::at(setting.guest, setting.start),
            features: setting.features,
            flags: if direction == Direction::ToGuest {
                WRITE
            } else {
                0
            },
            free: (0..setting.guest).collect(),
            out: VecDeque::new(),
            last_used: setting.start,
            called: false,
        }
    }

    /// Offers a chain of `len` bytes in all, holding `bytes`. Says whether it kicks; `None` if
    /// there are no descriptors.
    fn offer(&mut self, dice: &mut Dice, len: u32, bytes: &[u8]) -> Option<bool> {
        let parts = usize::from(1 + dice.small(3));
        let indirect = self.features.indirect && dice.one_in(2);
        let needed = if indirect { 1 } else { parts };
        if self.free.len() < needed {
            return None;
        }
        let ids = self.free.split_off(self.free.len() - needed);
        let mut at = GUEST_BUFFERS + u64::from(ids[0]) * 0x100;
        let mut left = len;
        let mut buffers = Vec::new();
        for part in 1..=parts {
            let most = u16::try_from(left).unwrap() + 1;
            let part_len = if part == parts {
                left
            } else {
                u32::from(dice.small(most))
            };
            buffers.push((at, part_len));
            at += u64::from(part_len) + 1;
            left -= part_len;
        }
        let mut rest = bytes;
        for (address, len) in &buffers {
            let (now, later) = rest.split_at(rest.len().min(*len as usize));
            self.driver.write(*address, now);
            rest = later;
        }
        if indirect {
            let table = TABLES + u64::from(ids[0]) * 0x40;
            for (index, buffer) in (0u16..).zip(&buffers) {
                let more = usize::from(index) + 1 < parts;
                let next = if more { NEXT } else { 0 };
                self.driver
                    .describe_at(table, index, *buffer, self.flags | next, index + 1);
            }
            let len = 16 * u32::try_from(parts).unwrap();
            self.driver.describe(ids[0], (table, len), INDIRECT, 0);
        } else {
            self.driver.chain(&ids, &buffers, self.flags);
        }
        let old = self.driver.available;
        self.driver.offer(ids[0]);
        self.out.push_back((ids, buffers));
        Some(self.driver.would_kick(self.features.event_idx, old))
    }

    /// Takes what the device gave back, if it was called for it: what is in each chain.
    fn collect(&mut self) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        if !std::mem::take(&mut self.called) {
            return found;
        }
        while self.last_used != self.driver.used_index() {
            let (id, len) = self.driver.used(self.last_used);
            let (ids, buffers) = self.out.pop_front().expect("more than was offered");
            assert_eq!(id, u32::from(ids[0]), "given back in order");
            let mut bytes: Vec<u8> = buffers
                .iter()
                .flat_map(|(at, len)| self.driver.read(*at, *len as usize))
                .collect();
            bytes.truncate(len as usize);
            found.push(bytes);
            self.free.extend(ids);
            self.last_used = self.last_used.wrapping_add(1);
        }
        self.driver.set_used_event(self.last_used);
        found
    }
}

/// One burst with what every burst must hold.
fn burst(
    guest: &mut GuestRing,
    counters: &mut Counters,
    relay: impl FnOnce(&mut GuestRing, &mut Counters, &mut Moved) -> Result<(), RelayFault>,
) -> (Moved, Result<(), RelayFault>) {
    let (position, before) = (guest.position(), *counters);
    let mut moved = Moved::default();
    let ended = relay(guest, counters, &mut moved);
    let share = MESSAGES_PER_BURST as u64;
    assert!(u64::from(guest.position().wrapping_sub(position)) <= share);
    let looked_at = |counters: &Counters| {
        counters.messages
            + counters.bad_chains
            + counters.malformed
            + counters.too_long
            + counters.withheld
    };
    assert!(looked_at(counters) - looked_at(&before) <= share);
    // Nobody looks again by himself after a burst that moved nothing.
    if !moved.progress && moved.wants_guest && ended.is_ok() && !guest.is_armed() {
        match guest.open().expect("it was open just now").ask_for_kick() {
            Ok(more) => moved.progress = more,
            Err(fault) => return (moved, Err(fault.into())),
        }
    }
    (moved, ended)
}

/// Moves `steps` random steps' worth of messages from the guest to the core.
fn honest_to_core(setting: Setting, steps: u32) -> u64 {
    let mut dice = Dice(setting.seed);
    let mut honest = Honest::new(setting, Direction::FromGuest);
    honest.driver.set_used_event(setting.start);
    let (mut firmware, ring) = Firmware::new(setting.core, BUFFER, 0xa5);
    let mut core = ToCore::new(ring);
    let mut guest = honest.driver.ring(setting.features, Direction::FromGuest);
    let mut counters = Counters::default();
    let mut sent = VecDeque::new();
    // The first look at a ring that was taken up.
    let (mut kicked, mut core_kicked, mut seed) = (true, false, 0);
    let (mut step, mut lull) = (0, false);
    loop {
        // In a lull nothing new is sent, and all that was sent arrives by itself.
        lull |= step >= steps || dice.one_in(200);
        let quiet = !kicked && !core_kicked && !honest.called;
        if lull && quiet {
            assert!(sent.is_empty(), "{} messages never arrive", sent.len());
            if step >= steps {
                break;
            }
            lull = false;
        }
        step += 1;
        match dice.below(4) {
            0 if !lull => {
                let len = dice.small(u16::try_from(BUFFER).unwrap() - 15);
                let message = message(7, len, seed);
                let room = u32::from(len) + 16 + u32::from(dice.small(20));
                if let Some(kick) = honest.offer(&mut dice, room, &message) {
                    seed += 1;
                    kicked |= kick;
                    sent.push_back(message);
                }
            }
            1 if kicked => {
                let (moved, ended) = burst(&mut guest, &mut counters, |guest, counters, moved| {
                    core.relay(guest, counters, moved)
                });
                ended.unwrap();
                assert_eq!(honest.driver.used_index(), guest.position());
                kicked = moved.progress;
                core_kicked |= moved.kick_core;
                honest.called |= moved.call_guest;
            }
            2 if core_kicked => {
                for _ in 0..=dice.below(setting.core.into()) {
                    let Some(received) = firmware.receive() else {
                        core_kicked = false;
                        break;
                    };
                    assert_eq!(Some(received), sent.pop_front());
                    kicked = true;
                }
            }
            3 => {
                honest.collect();
            }
            _ => {}
        }
    }
    assert_eq!(counters.messages, u64::from(seed));
    counters.messages
}

/// The same from the core to the guest, with announcements among the messages.
fn honest_to_guest(setting: Setting, steps: u32) -> u64 {
    let mut dice = Dice(setting.seed);
    let mut honest = Honest::new(setting, Direction::ToGuest);
    honest.driver.set_used_event(setting.start);
    let (mut firmware, ring) = Firmware::new(setting.core, BUFFER, 0xa5);
    let mut core = ToGuest::new(ring).unwrap();
    let mut guest = honest.driver.ring(setting.features, Direction::ToGuest);
    let mut counters = Counters::default();
    let mut book = Announcements::default();
    let mut sent = VecDeque::new();
    let (mut kicked, mut core_kicked, mut seed) = (true, true, 0);
    let (mut step, mut lull) = (0, false);
    loop {
        // In a lull nothing new is sent, and the guest gives one buffer at a time.
        lull |= step >= steps || dice.one_in(200);
        if lull && !kicked && !honest.called && sent.is_empty() {
            if step >= steps {
                break;
            }
            lull = false;
        }
        assert!(
            step < steps + 100_000,
            "{} messages never arrive",
            sent.len()
        );
        step += 1;
        match dice.below(4) {
            0 if !lull || honest.out.is_empty() => {
                if let Some(kick) = honest.offer(&mut dice, BUFFER, &[]) {
                    kicked |= kick;
                }
            }
            1 if kicked => {
                let (moved, ended) = burst(&mut guest, &mut counters, |guest, counters, moved| {
                    core.relay(guest, Some(&mut book), counters, moved)
                });
                ended.unwrap();
                assert_eq!(honest.driver.used_index(), guest.position());
                kicked = moved.progress;
                core_kicked |= moved.kick_core;
                honest.called |= moved.call_guest;
            }
            2 if !lull && core_kicked => {
                for _ in 0..=dice.below(setting.core.into()) {
                    let len = dice.small(u16::try_from(BUFFER).unwrap() - 15);
                    let message = if dice.one_in(8) {
                        announcement("endpoint", seed % 300, u32::from(dice.small(2)))
                    } else {
                        message(7, len, seed)
                    };
                    if !firmware.send(&message) {
                        core_kicked = false;
                        break;
                    }
                    seed += 1;
                    kicked = true;
                    sent.push_back(message);
                }
            }
            3 => {
                for received in honest.collect() {
                    assert_eq!(Some(received), sent.pop_front());
                }
            }
            _ => {}
        }
    }
    assert_eq!(counters.messages, u64::from(seed));
    counters.messages
}

#[test]
fn every_message_arrives_once_in_order_unchanged_while_all_indexes_wrap() {
    let mut setting = Setting {
        guest: 16,
        core: 8,
        start: 0xfff0,
        features: RingFeatures {
            event_idx: true,
            indirect: true,
        },
        seed: 42,
    };
    for event_idx in [true, false] {
        setting.features.event_idx = event_idx;
        assert!(honest_to_core(setting, 500_000) > 70_000);
        assert!(honest_to_guest(setting, 500_000) > 70_000);
    }
}

/// All of a guest's memory, and all of a core's.
fn guest_memory(driver: &Driver) -> Vec<u8> {
    driver.read(0, usize::try_from(GUEST_END).unwrap())
}

fn core_memory(firmware: &Firmware) -> Vec<u8> {
    firmware.read(RAM, u32::try_from(RAM_LEN).unwrap())
}

/// Asserts that two images of a memory at `base` differ only within `spans` (start and length).
fn only_changed(before: &[u8], after: &[u8], base: u64, spans: &[(u64, u64)]) {
    let mut at = 0;
    let end = before.len();
    let mut spans: Vec<_> = spans
        .iter()
        .map(|(start, len)| {
            let start = usize::try_from(start - base).unwrap();
            (start, start + usize::try_from(*len).unwrap())
        })
        .collect();
    spans.sort_unstable();
    for (start, stop) in spans.into_iter().chain([(end, end)]) {
        assert!(before[at..start.max(at)] == after[at..start.max(at)]);
        at = stop.max(at);
    }
}

fn used_span(size: u16) -> (u64, u64) {
    (layout(size).used.0, 6 + 8 * u64::from(size))
}

fn vring_span(firmware: &Firmware) -> (u64, u64) {
    (VRING, firmware.shape.len)
}

fn buffer_span(firmware: &Firmware) -> (u64, u64) {
    let buffers = u64::from(firmware.shape.num) * u64::from(BUFFER);
    (CORE_BUFFERS, buffers)
}

/// A hostile guest's move: bytes, indexes, heads or descriptors, some of them almost right.
fn spoil_guest(dice: &mut Dice, driver: &mut Driver) {
    let size = driver.layout.size;
    let layout = driver.layout;
    match dice.below(8) {
        0 => {
            let areas = [
                (layout.descriptors.0, 16 * u64::from(size)),
                (layout.available.0, 6 + 2 * u64::from(size)),
                used_span(size),
                (TABLES, 0x400),
            ];
            let (start, len) = areas[usize::from(dice.small(4))];
            let byte = dice.roll().to_le_bytes()[0];
            driver.write(start + dice.below(len), &[byte]);
        }
        1 if dice.one_in(8) => driver.set_available(dice.small(u16::MAX)),
        2 => driver.set_used_event(dice.small(u16::MAX)),
        3 => {
            let out = u16::from(dice.one_in(30));
            let head = dice.small(size + out);
            driver.offer(head);
        }
        4 => {
            let message = message(dice.small(60).into(), dice.small(60), 1);
            driver.write(GUEST_BUFFERS + dice.below(0x100), &message);
        }
        _ => {
            let address = match dice.below(8) {
                0 => dice.roll().wrapping_mul(0x9e37_79b9_7f4a_7c15),
                1 => GUEST_END - dice.below(64),
                // Aliases of the ring itself.
                2 => layout.descriptors.0 + dice.below(0x4000),
                3 => TABLES + 16 * dice.below(8),
                _ => GUEST_BUFFERS + dice.below(0x100),
            };
            let len = match dice.below(8) {
                0 => u32::try_from(dice.roll() & 0xffff_ffff).unwrap(),
                1 => 0,
                2 => 16 * u32::from(dice.small(66)),
                _ => u32::from(dice.small(100)),
            };
            let flags = dice.small(8);
            let out = u16::from(dice.one_in(16));
            let next = dice.small(size + out);
            let table = if dice.one_in(3) {
                TABLES
            } else {
                layout.descriptors.0
            };
            driver.describe_at(table, dice.small(size), (address, len), flags, next);
        }
    }
}

/// A hostile firmware's move.
fn spoil_core(dice: &mut Dice, firmware: &mut Firmware) {
    match dice.below(6) {
        0 => {
            let (start, len) = if dice.one_in(2) {
                vring_span(firmware)
            } else {
                buffer_span(firmware)
            };
            let byte = dice.roll().to_le_bytes()[0];
            firmware.write(start + dice.below(len), &[byte]);
        }
        1 if dice.one_in(8) => firmware.set_used(dice.small(u16::MAX)),
        2 if dice.one_in(8) => {
            let id = u32::from(dice.small(firmware.shape.num + 1));
            firmware.give_back(id, u32::from(dice.small(u16::MAX)));
        }
        _ => {
            if let Some(id) = firmware.take_number() {
                let id = id % firmware.shape.num;
                let at = CORE_BUFFERS + u64::from(id) * u64::from(BUFFER);
                let len = dice.small(u16::try_from(BUFFER).unwrap() - 15);
                let mut bytes = message(if dice.one_in(4) { 53 } else { 7 }, len, 1);
                bytes[12] ^= u8::from(dice.one_in(8)) << 5;
                firmware.write(at, &bytes);
                firmware.give_back(id.into(), u32::from(dice.small(80)));
            }
        }
    }
}

/// Which side is hostile.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hostile {
    Guest,
    Core,
    Both,
}

/// Plays `bursts` bursts in both directions; checks what may change. Returns messages and faults.
fn hostile(setting: Setting, who: Hostile, bursts: u32) -> (u64, u64) {
    let mut dice = Dice(setting.seed);
    let (mut messages, mut faults) = (0, 0);
    for direction in [Direction::FromGuest, Direction::ToGuest] {
        let flags = if direction == Direction::ToGuest {
            WRITE
        } else {
            0
        };
        let mut driver = Driver::at(setting.guest, setting.start);
        for id in 0..setting.guest {
            let at = GUEST_BUFFERS + 0x100 + 0x40 * u64::from(id);
            driver.describe(id, (at, 64), flags, 0);
            driver.write(at, &message(7, 40, id.into()));
        }
        let (mut firmware, ring) = Firmware::new(setting.core, BUFFER, 0xa5);
        let mut guest = driver.ring(setting.features, direction);
        let mut counters = Counters::default();
        let mut book = Announcements::default();
        let mut ring = Some(ring);
        let (mut up, mut down) = (None, None);
        for _ in 0..bursts {
            // A vring that was broken, or is new, is made anew, by an incarnation of its own.
            if let Some(ring) = ring.take() {
                (firmware.next, firmware.used) = (0, 0);
                match direction {
                    Direction::FromGuest => up = Some(ToCore::new(ring)),
                    Direction::ToGuest => down = Some(ToGuest::new(ring).unwrap()),
                }
            }
            for _ in 0..dice.below(12) {
                if who == Hostile::Core {
                    if driver.available.wrapping_sub(driver.used_index()) < setting.guest {
                        driver.offer(dice.small(setting.guest));
                    }
                } else {
                    spoil_guest(&mut dice, &mut driver);
                }
                if who != Hostile::Guest {
                    spoil_core(&mut dice, &mut firmware);
                } else if direction == Direction::FromGuest {
                    if let Some(received) = firmware.receive() {
                        // An honest firmware only ever sees messages that agree with themselves.
                        let said = u16::from_le_bytes([received[12], received[13]]);
                        assert_eq!(received.len(), HEADER_LEN + usize::from(said));
                    }
                } else {
                    firmware.send(&message(7, 30, 5));
                }
            }
            let before = (guest_memory(&driver), core_memory(&firmware));
            let (_, ended) = burst(&mut guest, &mut counters, |guest, counters, moved| {
                if let Some(core) = &mut up {
                    core.relay(guest, counters, moved)
                } else if let Some(core) = &mut down {
                    core.relay(guest, Some(&mut book), counters, moved)
                } else {
                    Ok(())
                }
            });
            let mut guests = vec![used_span(setting.guest)];
            let mut cores = vec![vring_span(&firmware)];
            match direction {
                Direction::FromGuest => cores.push(buffer_span(&firmware)),
                // What a hostile guest calls its buffers may be anywhere in its own memory.
                Direction::ToGuest if who == Hostile::Core => {
                    guests.push((GUEST_BUFFERS + 0x100, 0x40 * u64::from(setting.guest)));
                }
                Direction::ToGuest => guests.push((0, GUEST_END)),
            }
            only_changed(&before.0, &guest_memory(&driver), 0, &guests);
            only_changed(&before.1, &core_memory(&firmware), RAM, &cores);
            if who == Hostile::Core {
                assert_eq!(driver.used_index(), guest.position());
            }
            match ended {
                Ok(()) => {}
                Err(RelayFault::Guest(fault)) => {
                    assert!(who != Hostile::Core, "{fault}");
                    faults += 1;
                    driver.available = driver.used_index();
                    driver.set_available(driver.available);
                    guest = driver.ring(setting.features, direction);
                }
                Err(RelayFault::Firmware(fault)) => {
                    assert!(who != Hostile::Guest, "{fault}");
                    faults += 1;
                    ring = Some(firmware.make_ring(BUFFER));
                }
                Err(RelayFault::Memory(fault)) => panic!("{fault}"),
            }
        }
        messages += counters.messages;
    }
    (messages, faults)
}

#[test]
fn hostile_sides_get_messages_through_and_break_their_rings() {
    // So that the properties below are known to be about something.
    let setting = Setting {
        guest: 8,
        core: 8,
        start: 0xfff0,
        features: RingFeatures {
            event_idx: true,
            indirect: true,
        },
        seed: 7,
    };
    for who in [Hostile::Guest, Hostile::Core, Hostile::Both] {
        let (messages, faults) = hostile(setting, who, 1000);
        assert!(messages > 20 && faults > 10, "{messages} {faults}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn honest_sides_lose_nothing_and_repeat_nothing(setting in setting()) {
        honest_to_core(setting, 30_000);
        honest_to_guest(setting, 30_000);
    }

    #[test]
    fn a_hostile_guest_reaches_nothing_but_its_own_memory(setting in setting()) {
        hostile(setting, Hostile::Guest, 150);
    }

    #[test]
    fn a_hostile_firmware_reaches_nothing_but_its_own_memory(setting in setting()) {
        hostile(setting, Hostile::Core, 150);
    }

    #[test]
    fn two_hostile_sides_reach_nothing_but_their_own_memory(setting in setting()) {
        hostile(setting, Hostile::Both, 150);
    }
}
