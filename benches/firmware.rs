//! What the `echo` firmware costs a message on rv32: guest instructions, and nanoseconds of host time.
//!
//! Run with `cargo bench --bench firmware`. One thread, no sockets, no daemon: the engine, its RAM,
//! and a driver for the two vrings that is as simple as can be and is not timed. What is timed is
//! [`Engine::run`] from a kick to the wait, so this is the firmware's share of a message's way and
//! nothing else. Instructions are exact; times drift with the machine, so compare them within one run.
//! Every answer is checked.
//!
//! What belongs here: the core's share alone. The whole path is `vring`'s. Tests do not time things;
//! benchmarks do not test.
#![allow(
    missing_docs,
    dead_code,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a benchmark, and the folder that it shares with the tests"
)]

#[path = "../tests/frontend/mod.rs"]
mod frontend;

use std::sync::Arc;
use std::time::{Duration, Instant};

use frontend::process::firmware_dir;
use rprocd::engine::rv32::{Rv32, board};
use rprocd::engine::{Engine, ImageRules, NotifyId, RunEnd};
use rprocd::firmware::{Entry, Image};
use rprocd::memory::{DeviceAddress, Ram};
use vm_memory::Bytes;

/// Behind the carveout of the images.
const RINGS: [u64; 2] = [0x8010_0000, 0x8010_4000];
const BUFFERS: [u64; 2] = [0x8011_0000, 0x8015_0000];
const NUM: u16 = 256;
const BUFFER: u64 = 512;
const USED: u64 = 8192;
const AVAILABLE: u64 = 16 * NUM as u64;
const WRITE: u16 = 2;
const NAME_SERVICE: u32 = 1 << 0;
const EVENT_IDX: u32 = 1 << 29;
const DRIVER_OK: u8 = 7;
const BUDGET: u64 = 100_000;
const ROUNDS: usize = 15;

/// The driver's half of one vring.
struct Driver {
    ram: Arc<Ram>,
    id: u8,
    event_idx: bool,
    at: u64,
    available: u16,
    published: u16,
    used: u16,
}

impl Driver {
    fn load<T: vm_memory::ByteValued>(&self, at: u64) -> T {
        let size = size_of::<T>() as u64;
        let slice = self.ram.slice(DeviceAddress(at), size).unwrap();
        slice.read_obj(0).unwrap()
    }

    fn store<T: vm_memory::ByteValued>(&self, at: u64, value: T) {
        let size = size_of::<T>() as u64;
        let slice = self.ram.slice(DeviceAddress(at), size).unwrap();
        slice.write_obj(value, 0).unwrap();
    }

    fn buffer(&self, head: u16) -> u64 {
        BUFFERS[usize::from(self.id)] + BUFFER * u64::from(head)
    }

    fn offer(&mut self, head: u16, len: u32) {
        let descriptor = self.at + 16 * u64::from(head);
        self.store(descriptor, self.buffer(head));
        self.store(descriptor + 8, len);
        self.store(descriptor + 12, if self.id == 0 { WRITE } else { 0 });
        let slot = u64::from(self.available % NUM);
        self.store(self.at + AVAILABLE + 4 + 2 * slot, head);
        self.available = self.available.wrapping_add(1);
    }

    /// Shows what was offered; says whether the firmware wants a kick.
    fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.available);
        self.published = new;
        self.store(self.at + AVAILABLE + 2, new);
        if self.event_idx {
            let event: u16 = self.load(self.at + USED + 4 + 8 * u64::from(NUM));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.load::<u16>(self.at + USED) & 1 == 0
        }
    }

    /// What the firmware gave back next.
    fn collect(&mut self) -> Option<(u16, u32)> {
        if self.load::<u16>(self.at + USED + 2) == self.used {
            return None;
        }
        let entry = self.at + USED + 4 + 8 * u64::from(self.used % NUM);
        self.used = self.used.wrapping_add(1);
        Some((self.load::<u32>(entry) as u16, self.load(entry + 4)))
    }

    /// The firmware need not tell of what it gives back before `more` more are there.
    fn ask_for_kick(&self, more: u16) {
        let event = self.used.wrapping_add(more).wrapping_sub(1);
        self.store(self.at + AVAILABLE + 4 + 2 * u64::from(NUM), event);
    }
}

struct Bench {
    core: Rv32,
    to_driver: Driver,
    from_driver: Driver,
    next: u16,
    sequence: u32,
}

/// What a number of messages cost.
#[derive(Clone, Copy, Default)]
struct Cost {
    messages: u64,
    instructions: u64,
    time: Duration,
    /// Kicks of the firmware, and turns that it took.
    kicks: u64,
    turns: u64,
}

impl Bench {
    fn new(event_idx: bool) -> Self {
        let base = DeviceAddress(u64::from(board::ram::BASE));
        let ram = Ram::new("bench", base, 16 << 20).unwrap();
        let file = std::fs::read(firmware_dir().join("echo.elf")).unwrap();
        let image = Image::parse(&file, &ImageRules::RV32).unwrap();
        for segment in &image.segments {
            let bytes = &file[segment.file.clone()];
            let slice = ram.slice(segment.da, bytes.len() as u64).unwrap();
            slice.write_slice(bytes, 0).unwrap();
        }
        let section = image.table.as_ref().unwrap();
        let vdev = section
            .table
            .entries()
            .iter()
            .find_map(|entry| match entry {
                Entry::Vdev(vdev) => Some(vdev),
                _ => None,
            });
        let vdev = vdev.unwrap();
        let driver = |id: u8| Driver {
            ram: Arc::clone(&ram),
            id,
            event_idx,
            at: RINGS[usize::from(id)],
            available: 0,
            published: 0,
            used: 0,
        };
        let mut bench = Self {
            core: Rv32::new(Arc::clone(&ram)).unwrap(),
            to_driver: driver(0),
            from_driver: driver(1),
            next: 0,
            sequence: 0,
        };
        let table = section.da.0;
        for (id, vring) in vdev.vrings.iter().enumerate() {
            let ring = &bench.to_driver;
            ring.store(table + vring.da_offset() as u64, RINGS[id] as u32);
            ring.store(table + vring.notifyid_offset() as u64, id as u32);
        }
        let event = if event_idx { EVENT_IDX } else { 0 };
        let features = vdev.dfeatures & (NAME_SERVICE | event);
        assert_eq!(
            features & EVENT_IDX,
            event,
            "the firmware offers no EVENT_IDX"
        );
        let gfeatures = table + vdev.gfeatures_offset() as u64;
        bench.to_driver.store(gfeatures, features);
        let status = table + vdev.status_offset() as u64;
        bench.to_driver.store(status, DRIVER_OK);
        for head in 0..NUM {
            bench.to_driver.offer(head, BUFFER as u32);
        }
        bench.to_driver.publish();
        bench.core.start(image.boot, 1).unwrap();
        bench.run(&mut Cost::default());
        let (head, len) = bench.to_driver.collect().expect("an announcement");
        assert_eq!(len, 56);
        bench.to_driver.offer(head, BUFFER as u32);
        bench.to_driver.publish();
        bench
    }

    /// Lets the core run until it waits.
    fn run(&mut self, cost: &mut Cost) {
        let before = self.core.statistics().retired;
        let start = Instant::now();
        loop {
            let run = self.core.run(BUDGET);
            cost.turns += 1;
            cost.kicks += u64::from(run.kicks.len());
            match run.end {
                RunEnd::Waiting { .. } => break,
                RunEnd::BudgetSpent => {}
                end => panic!("{end:?}"),
            }
        }
        cost.time += start.elapsed();
        cost.instructions += self.core.statistics().retired - before;
    }

    fn batch(&mut self, count: u16, payload: usize, cost: &mut Cost) {
        let mut bytes = [0; BUFFER as usize];
        bytes[..4].copy_from_slice(&7_u32.to_le_bytes());
        bytes[4..8].copy_from_slice(&1024_u32.to_le_bytes());
        bytes[12..14].copy_from_slice(&(payload as u16).to_le_bytes());
        let len = 16 + payload;
        let first = self.sequence;
        let fill = |bytes: &mut [u8], sequence: u32| {
            for (word, bytes) in bytes[16..].as_chunks_mut::<4>().0.iter_mut().enumerate() {
                *bytes = (sequence.wrapping_mul(31).wrapping_add(word as u32)).to_le_bytes();
            }
        };
        for _ in 0..count {
            fill(&mut bytes, self.sequence);
            self.sequence += 1;
            let head = self.next % NUM;
            self.next = self.next.wrapping_add(1);
            let at = DeviceAddress(self.from_driver.buffer(head));
            let slice = self.from_driver.ram.slice(at, BUFFER).unwrap();
            slice.write_slice(&bytes[..len], 0).unwrap();
            self.from_driver.offer(head, len as u32);
        }
        self.to_driver.ask_for_kick(count);
        self.from_driver.ask_for_kick(NUM);
        if self.from_driver.publish() {
            self.core.kick(NotifyId(1));
        }
        self.run(cost);
        while self.from_driver.collect().is_some() {}
        for sequence in first..self.sequence {
            let (head, used) = self.to_driver.collect().expect("an answer to each");
            assert_eq!(used as usize, len);
            let mut answer = [0; BUFFER as usize];
            let at = DeviceAddress(self.to_driver.buffer(head));
            let slice = self.to_driver.ram.slice(at, BUFFER).unwrap();
            slice.read_slice(&mut answer, 0).unwrap();
            fill(&mut bytes, sequence);
            assert_eq!(answer[16..len], bytes[16..len]);
            self.to_driver.offer(head, BUFFER as u32);
        }
        assert_eq!(self.to_driver.collect(), None);
        if self.to_driver.publish() {
            self.core.kick(NotifyId(0));
        }
        cost.messages += u64::from(count);
    }
}

fn main() {
    let messages: u64 = std::env::var("MESSAGES")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(51_200);
    println!("the echo firmware on rv32, {ROUNDS} rounds; ns: median (lowest to highest)");
    println!(
        "{:<10}{:>8}{:>7}{:>14}{:>14}{:>20}{:>12}{:>8}",
        "", "payload", "batch", "instructions", "ns a message", "", "ns/instr.", "kicks"
    );
    for event_idx in [false, true] {
        let mut bench = Bench::new(event_idx);
        for payload in [0, 48, 496] {
            for batch in [1, 32, 256] {
                let mut samples = Vec::new();
                let mut all = Cost::default();
                // The first round only warms the caches.
                for round in 0..=ROUNDS {
                    let mut cost = Cost::default();
                    while cost.messages < messages / ROUNDS as u64 {
                        bench.batch(batch, payload, &mut cost);
                    }
                    if round > 0 {
                        samples.push(cost.time.as_secs_f64() * 1e9 / cost.messages as f64);
                        all.messages += cost.messages;
                        all.instructions += cost.instructions;
                        all.kicks += cost.kicks;
                    }
                }
                samples.sort_by(f64::total_cmp);
                let median = samples[ROUNDS / 2];
                let instructions = all.instructions as f64 / all.messages as f64;
                println!(
                    "{:<10}{payload:>8}{batch:>7}{instructions:>14.1}{median:>14.1}{:>20}{:>12.2}{:>8.3}",
                    if event_idx { "EVENT_IDX" } else { "flags" },
                    format!("({:.0} to {:.0})", samples[0], samples[ROUNDS - 1]),
                    median / instructions,
                    all.kicks as f64 / all.messages as f64,
                );
            }
        }
    }
}
