//! What the relay itself costs: one vdev, both its sides played on one thread, no socket, no engine.
//!
//! Run with `cargo bench --bench relay`. Nobody is waited for here, and no cache line comes from
//! another processor, so what is printed is work: nanoseconds of the two relay calls, and under
//! callgrind (`--rounds N` for a run of known length) instructions, which do not depend on what
//! else the machine does.
//!
//! What belongs here: this one loop. What does not: the two sides' own work, which is outside of
//! what is measured, and comparisons with others.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a benchmark"
)]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rprocd::engine::NotifyId;
use rprocd::firmware::VringEntry;
use rprocd::memory::{DeviceAddress, Ram};
use rprocd::vdev::{
    DriverRing, GuestQueue, QUEUE_TO_CORE, QUEUE_TO_GUEST, RingLayout, Vdev, Vring, VringShape,
};
use vhost_user_backend::VringT;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice,
};

const SIZE: u16 = 256;
const BUFFER: u64 = 512;
const RAM: u64 = 0x8000_0000;
/// `VIRTIO_RING_F_EVENT_IDX`.
const EVENT_IDX: u64 = 1 << 29;
const WRITE: u16 = 2;

/// One split ring, by offsets from its parts' memory, as either side sees it.
struct Ring<'m> {
    descriptors: VolatileSlice<'m>,
    available: VolatileSlice<'m>,
    used: VolatileSlice<'m>,
    available_index: u16,
    used_index: u16,
}

fn slot(index: u16) -> usize {
    usize::from(index % SIZE)
}

impl Ring<'_> {
    fn describe(&self, id: u16, address: u64, len: u32, flags: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        self.descriptors
            .write_slice(&bytes, 16 * usize::from(id))
            .unwrap();
    }

    fn offer(&mut self, id: u16) {
        let at = 4 + 2 * slot(self.available_index);
        self.available.store(id, at, Ordering::Relaxed).unwrap();
        self.available_index = self.available_index.wrapping_add(1);
    }

    fn show(&self) {
        self.available
            .store(self.available_index, 2, Ordering::Release)
            .unwrap();
    }

    /// The driver takes what the device gave back.
    fn take_used(&mut self) -> Option<(u16, u32)> {
        let index: u16 = self.used.load(2, Ordering::Acquire).unwrap();
        if index == self.used_index {
            return None;
        }
        let entry: [u32; 2] = self.used.read_obj(4 + 8 * slot(self.used_index)).unwrap();
        self.used_index = self.used_index.wrapping_add(1);
        Some((entry[0] as u16, entry[1]))
    }

    /// The device takes what the driver offers: number, address, length.
    fn take_available(&mut self) -> Option<(u16, u64, u32)> {
        let index: u16 = self.available.load(2, Ordering::Acquire).unwrap();
        if index == self.available_index {
            return None;
        }
        let at = 4 + 2 * slot(self.available_index);
        let id: u16 = self.available.load(at, Ordering::Relaxed).unwrap();
        self.available_index = self.available_index.wrapping_add(1);
        let at = 16 * usize::from(id);
        let address: u64 = self.descriptors.read_obj(at).unwrap();
        let len: u32 = self.descriptors.read_obj(at + 8).unwrap();
        Some((id, address, len))
    }

    /// The device gives back.
    fn give_back(&mut self, id: u16, len: u32) {
        let entry = [u32::from(id), len];
        self.used
            .write_obj(entry, 4 + 8 * slot(self.used_index))
            .unwrap();
        self.used_index = self.used_index.wrapping_add(1);
        self.used
            .store(self.used_index, 2, Ordering::Release)
            .unwrap();
    }
}

fn guest_layout(base: u64) -> RingLayout {
    RingLayout {
        size: SIZE,
        descriptors: GuestAddress(base),
        available: GuestAddress(base + 0x1000),
        used: GuestAddress(base + 0x2000),
    }
}

fn guest_ring(memory: &GuestMemoryMmap, layout: RingLayout) -> Ring<'_> {
    let part = |address, len| memory.get_slice(address, len).unwrap();
    Ring {
        descriptors: part(layout.descriptors, 0x1000),
        available: part(layout.available, 0x1000),
        used: part(layout.used, 0x1000),
        available_index: 0,
        used_index: 0,
    }
}

fn core_ring(ram: &Ram, at: u64, shape: VringShape) -> Ring<'_> {
    let part = |offset, len| ram.slice(DeviceAddress(at + offset), len).unwrap();
    Ring {
        descriptors: part(0, 16 * u64::from(SIZE)),
        available: part(shape.available, 6 + 2 * u64::from(SIZE)),
        used: part(shape.used, 6 + 8 * u64::from(SIZE)),
        available_index: 0,
        used_index: 0,
    }
}

/// What the relay calls of so many rounds took, and how many messages they moved each way.
fn run(rounds: u64, burst: u16, message: u32) -> (Duration, u64) {
    // As a VM has it: memory below and above 4 GiB, buffers in one and rings in the other.
    let memory = GuestMemoryMmap::from_ranges(&[
        (GuestAddress(0), 0x40_0000),
        (GuestAddress(0x1_0000_0000), 0x40_0000),
    ])
    .unwrap();
    let memory = Arc::new(memory);
    let ram = Ram::new("bench", DeviceAddress(RAM), 0x10_0000).unwrap();
    let shape = VringShape::of(&VringEntry {
        offset: 0,
        da: None,
        align: 4096,
        num: SIZE,
    });
    let vring_at = [RAM, RAM + 0x8000];
    let buffers_at = [RAM + 0x1_0000, RAM + 0x4_0000];
    let rings = [0, 1].map(|index: usize| {
        let (da, buffers) = (
            DeviceAddress(vring_at[index]),
            DeviceAddress(buffers_at[index]),
        );
        DriverRing::new(&ram, da, shape, buffers, BUFFER as u32).unwrap()
    });
    let layouts = [guest_layout(0x10_0000), guest_layout(0x11_0000)];
    let guest_buffers = [0x1_0000_0000, 0x1_0010_0000];
    let mut vdev = Vdev::new("bench".to_owned());
    for (index, layout) in layouts.into_iter().enumerate() {
        let vring = Vring::new(GuestMemoryAtomic::from(memory.clone()), SIZE).unwrap();
        let queue = GuestQueue {
            layout,
            features: EVENT_IDX,
            memory: memory.clone(),
            vring,
        };
        vdev.attach(index, queue).unwrap();
    }
    let mut guest = layouts.map(|layout| guest_ring(&memory, layout));
    let mut core = vring_at.map(|at| core_ring(&ram, at, shape));
    vdev.start(rings, [NotifyId(0), NotifyId(1)]).unwrap();
    for id in 0..SIZE {
        let buffer = |index: usize| guest_buffers[index] + BUFFER * u64::from(id);
        let rx = buffer(QUEUE_TO_GUEST);
        guest[QUEUE_TO_GUEST].describe(id, rx, BUFFER as u32, WRITE);
        guest[QUEUE_TO_GUEST].offer(id);
        let mut bytes = vec![id as u8; message as usize];
        bytes[..16].fill(0);
        bytes[4..8].copy_from_slice(&1024u32.to_le_bytes());
        bytes[12..14].copy_from_slice(&((message - 16) as u16).to_le_bytes());
        let tx = buffer(QUEUE_TO_CORE);
        memory.write_slice(&bytes, GuestAddress(tx)).unwrap();
        guest[QUEUE_TO_CORE].describe(id, tx, message, 0);
    }
    guest[QUEUE_TO_GUEST].show();

    let (mut elapsed, mut received) = (Duration::ZERO, 0);
    let mut next = 0u16;
    for _ in 0..rounds {
        for _ in 0..burst {
            guest[QUEUE_TO_CORE].offer(next % SIZE);
            next = next.wrapping_add(1);
        }
        guest[QUEUE_TO_CORE].show();

        let begun = Instant::now();
        black_box(vdev.relay_to_core());
        elapsed += begun.elapsed();

        while let Some((id, from, len)) = core[QUEUE_TO_CORE].take_available() {
            let (answer, to, _) = core[QUEUE_TO_GUEST].take_available().unwrap();
            let slice = |at| ram.slice(DeviceAddress(at), u64::from(len)).unwrap();
            slice(from).copy_to_volatile_slice(slice(to));
            core[QUEUE_TO_GUEST].give_back(answer, len);
            core[QUEUE_TO_CORE].give_back(id, 0);
        }

        let begun = Instant::now();
        black_box(vdev.relay_to_guest());
        elapsed += begun.elapsed();

        while guest[QUEUE_TO_CORE].take_used().is_some() {}
        while let Some((id, len)) = guest[QUEUE_TO_GUEST].take_used() {
            assert_eq!(len, message);
            received += 1;
            guest[QUEUE_TO_GUEST].offer(id);
        }
        guest[QUEUE_TO_GUEST].show();
    }
    assert_eq!(received, rounds * u64::from(burst));
    (elapsed, received)
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let fixed = arguments.iter().position(|it| it == "--rounds");
    if let Some(at) = fixed {
        let rounds = arguments[at + 1].parse().expect("a number of rounds");
        let (_, messages) = run(rounds, 32, 512);
        println!("{messages} messages there and back");
        return;
    }
    println!("ns a message there and back, in the relay, lowest and middle of 15 runs");
    for message in [16, 64, 512] {
        for burst in [1, 8, 32] {
            let rounds = 400_000 / u64::from(burst).max(4);
            let mut samples: Vec<f64> = (0..15)
                .map(|_| {
                    let (elapsed, messages) = run(rounds, burst, message);
                    elapsed.as_nanos() as f64 / messages as f64
                })
                .collect();
            samples.sort_by(f64::total_cmp);
            println!(
                "{message:>5} bytes, {burst:>3} at a time: {:>7.1} {:>7.1}",
                samples[0], samples[7]
            );
        }
    }
}
