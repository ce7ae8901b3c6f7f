//! A core whose firmware is a few lines of Rust in this process: rprocd's relay alone.
//!
//! What belongs here: an [`Engine`] that answers each message with itself over the two vrings of
//! each of its vdevs, in plain safe Rust, and the image that declares them. What does not: serving
//! it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use rprocd::engine::{Engine, EngineError, ImageRules, NotifyId, NotifySet, Run, RunEnd};
use rprocd::firmware::Snapshot;
use rprocd::memory::{DeviceAddress, Ram};
use vm_memory::{Bytes, VolatileMemory, VolatileSlice};

use crate::elf_builder::Elf;
use crate::table_builder::{ANY, Table};

const BASE: u32 = 0x8000_0000;
const TABLE: u32 = BASE + 0x1000;
const IMAGE: u32 = 0x4000;
/// Entries of a vring.
const NUM: u16 = 256;
const ALIGN: u32 = 64;
const AVAIL: usize = 16 * NUM as usize;
const USED: usize = (AVAIL + 6 + 2 * NUM as usize).next_multiple_of(ALIGN as usize);
const RING: usize = USED + 6 + 8 * NUM as usize;
/// The used indices are shown so often.
const BURST: u16 = 32;
/// A core has at most 64 vrings.
pub const MAX_VDEVS: usize = 32;
/// What a vdev's rings and buffers take.
const VDEV_BYTES: u64 = 320 << 10;

const DRIVER_OK: u8 = 4;
/// `VIRTIO_CONFIG_S_FAILED`: the host does not go on with the vdev.
pub const FAILED: u8 = 0x80;
const VIRTIO_ID_RPMSG: u32 = 7;

fn table(vdevs: usize) -> Table {
    let table = Table::new().carveout(BASE, IMAGE, "image");
    (0..vdevs).fold(table, |table, _| {
        table.vdev(VIRTIO_ID_RPMSG, 1, &[(ANY, ALIGN, NUM.into()); 2], &[])
    })
}

/// Where the entry of a vdev is, behind its type.
fn entry(table: &Table, vdev: usize) -> u64 {
    // The carveout is entry 0.
    u64::from(TABLE) + table.offset(1 + vdev) as u64 + 4
}

/// The status of a vdev, of `vdevs`.
pub fn status(ram: &Ram, vdevs: usize, vdev: usize) -> u8 {
    read(ram, DeviceAddress(entry(&table(vdevs), vdev) + 20))
}

/// Says of a vdev's vring towards the core that more was given back than there is. Whoever opens
/// that vring finds it, and sets the status to [`FAILED`].
pub fn lay_trap(ram: &Ram, vdevs: usize, vdev: usize) -> Result<(), String> {
    let place = DeviceAddress(entry(&table(vdevs), vdev) + 44);
    let vring: u32 = read(ram, place);
    let used_index = DeviceAddress(u64::from(vring) + USED as u64 + 2);
    let slice = ram
        .slice(used_index, 2)
        .map_err(|error| error.to_string())?;
    slice
        .write_obj(NUM + 1, 0)
        .map_err(|error| error.to_string())
}

/// An image with so many vdevs; there is no code in it.
pub fn image(vdevs: usize) -> Snapshot {
    let image = Elf::new(BASE)
        .load(BASE, &[0x13; 16], 16)
        .table(TABLE, &table(vdevs).build())
        .build();
    Snapshot::from_bytes("native.elf", image)
}

/// The engine.
pub struct Native {
    ram: Arc<Ram>,
    vdevs: Vec<Device>,
    /// Vdevs that have been kicked.
    due: u64,
    running: bool,
}

/// One vdev, as its firmware sees it.
struct Device {
    /// Where its entry's status is.
    status: DeviceAddress,
    /// Where the addresses of its vrings are.
    places: [DeviceAddress; 2],
    /// Its vrings, while there is a driver.
    rings: Option<[Vring; 2]>,
}

struct Vring {
    da: DeviceAddress,
    /// Both indices: what is taken is given back at once.
    at: u16,
}

impl Native {
    /// A stopped one, with `vdevs` vdevs.
    pub fn new(vdevs: usize) -> Result<Self, String> {
        let len = ((1 << 20) + VDEV_BYTES * vdevs as u64).next_multiple_of(4096);
        let ram = Ram::new("native", DeviceAddress(BASE.into()), len)
            .map_err(|error| error.to_string())?;
        let table = table(vdevs);
        let device = |index| {
            let entry = entry(&table, index);
            Device {
                status: DeviceAddress(entry + 20),
                places: [24, 44].map(|at| DeviceAddress(entry + at)),
                rings: None,
            }
        };
        Ok(Self {
            ram,
            vdevs: (0..vdevs).map(device).collect(),
            due: 0,
            running: false,
        })
    }
}

impl Engine for Native {
    fn kind(&self) -> &'static str {
        "native"
    }

    fn image_rules(&self) -> ImageRules {
        ImageRules::RV32
    }

    fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    fn start(&mut self, _boot: DeviceAddress, _incarnation: u32) -> Result<(), EngineError> {
        self.running = true;
        self.due = u64::MAX;
        Ok(())
    }

    fn stop(&mut self) -> Result<(), EngineError> {
        self.running = false;
        for vdev in &mut self.vdevs {
            vdev.rings = None;
        }
        Ok(())
    }

    fn kick(&mut self, NotifyId(id): NotifyId) {
        // Ids are given lowest first, in the order of the table.
        self.due |= 1 << (id / 2 % 64);
    }

    fn run(&mut self, _budget: u64) -> Run {
        let mut kicks = NotifySet::default();
        let due = std::mem::take(&mut self.due);
        if self.running {
            for (index, vdev) in self.vdevs.iter_mut().enumerate() {
                if due & (1 << index) != 0 {
                    let [to_guest, to_core] = vdev.turn(&self.ram);
                    for (ring, kicked) in [to_guest, to_core].into_iter().enumerate() {
                        if kicked {
                            kicks.insert(NotifyId((2 * index + ring) as u8));
                        }
                    }
                }
            }
        }
        Run {
            kicks,
            stray_kicks: 0,
            end: RunEnd::Waiting { until: None },
        }
    }
}

impl Device {
    /// Answers what there is; whether there is something to kick for on each vring.
    fn turn(&mut self, ram: &Ram) -> [bool; 2] {
        let nothing = [false; 2];
        let status: u8 = read(ram, self.status);
        if status & DRIVER_OK == 0 || status & FAILED != 0 {
            self.rings = None;
            return nothing;
        }
        let places = self.places;
        let [to_guest, to_core] = self.rings.get_or_insert_with(|| {
            places.map(|place| Vring {
                da: DeviceAddress(read::<u32>(ram, place).into()),
                at: 0,
            })
        });
        let memory = |ring: &Vring| ram.slice(ring.da, RING as u64);
        let (Ok(guests), Ok(cores)) = (memory(to_guest), memory(to_core)) else {
            return nothing;
        };
        let (Some(guests), Some(cores)) = (View::new(&guests), View::new(&cores)) else {
            return nothing;
        };
        let mut answered = false;
        loop {
            let messages = cores.available().wrapping_sub(to_core.at);
            let room = guests.available().wrapping_sub(to_guest.at);
            let count = messages.min(room).min(BURST);
            if count == 0 {
                let kicked = |view: &View<'_>| answered && view.wants_kicks();
                if answered {
                    fence(Ordering::SeqCst);
                }
                return [kicked(&guests), kicked(&cores)];
            }
            for _ in 0..count {
                let (message, answer) = (cores.head(to_core.at), guests.head(to_guest.at));
                let (from, len) = cores.buffer(message);
                let (to, _) = guests.buffer(answer);
                echo(ram, from, to, len);
                guests.give_back(to_guest.at, answer, len);
                cores.give_back(to_core.at, message, 0);
                to_guest.at = to_guest.at.wrapping_add(1);
                to_core.at = to_core.at.wrapping_add(1);
            }
            guests.show(to_guest.at);
            cores.show(to_core.at);
            answered = true;
        }
    }
}

/// Copies a message with source and destination swapped.
fn echo(ram: &Ram, from: u64, to: u64, len: u32) {
    let slice = |at| ram.slice(DeviceAddress(at), len.into());
    let (Ok(from), Ok(to)) = (slice(from), slice(to)) else {
        return;
    };
    from.copy_to_volatile_slice(to);
    let addresses: u64 = from.read_obj(0).unwrap_or_default();
    let _ = to.write_obj(addresses.rotate_left(32), 0);
}

fn read<T: vm_memory::ByteValued + Default>(ram: &Ram, da: DeviceAddress) -> T {
    let slice = ram.slice(da, size_of::<T>() as u64);
    slice
        .ok()
        .and_then(|slice| slice.read_obj(0).ok())
        .unwrap_or_default()
}

/// A vring, opened.
struct View<'a> {
    descriptors: vm_memory::volatile_memory::VolatileArrayRef<'a, u64>,
    avail_flags: &'a AtomicU16,
    avail_index: &'a AtomicU16,
    avail: vm_memory::volatile_memory::VolatileArrayRef<'a, u16>,
    used_index: &'a AtomicU16,
    used: vm_memory::volatile_memory::VolatileArrayRef<'a, u32>,
}

impl<'a> View<'a> {
    fn new(memory: &'a VolatileSlice<'a>) -> Option<Self> {
        let entries = usize::from(NUM);
        Some(Self {
            descriptors: memory.get_array_ref(0, 2 * entries).ok()?,
            avail_flags: memory.get_atomic_ref(AVAIL).ok()?,
            avail_index: memory.get_atomic_ref(AVAIL + 2).ok()?,
            avail: memory.get_array_ref(AVAIL + 4, entries).ok()?,
            used_index: memory.get_atomic_ref(USED + 2).ok()?,
            used: memory.get_array_ref(USED + 4, 2 * entries).ok()?,
        })
    }

    fn available(&self) -> u16 {
        self.avail_index.load(Ordering::Acquire)
    }

    fn wants_kicks(&self) -> bool {
        self.avail_flags.load(Ordering::Relaxed) & 1 == 0
    }

    fn head(&self, at: u16) -> u16 {
        self.avail.load(usize::from(at % NUM))
    }

    fn buffer(&self, id: u16) -> (u64, u32) {
        let index = 2 * usize::from(id % NUM);
        (
            self.descriptors.load(index),
            self.descriptors.load(index + 1) as u32,
        )
    }

    fn give_back(&self, at: u16, id: u16, len: u32) {
        let index = 2 * usize::from(at % NUM);
        self.used.store(index, id.into());
        self.used.store(index + 1, len);
    }

    fn show(&self, at: u16) {
        self.used_index.store(at, Ordering::Release);
    }
}
