//! Firmware that turns hostile while it runs, as a script in this process: each attack is made in
//! the one moment in which it could do harm.
//!
//! What belongs here: what a firmware can do to its own memory, its vrings, its table and its
//! guest, with the library's cores and sockets, and that another core does not notice. What does
//! not: images (`firmware`), what any crash leads to (`crash`, `lifecycle`).

mod conduct;
mod table;
mod vrings;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rprocd::engine::scripted::{Journal, Scripted};
use rprocd::engine::{Engine, NotifySet, RunEnd};
use rprocd::firmware::Snapshot;
use rprocd::memory::{DeviceAddress, Ram};
use rprocd::rproc::{Core, Coredumps, Firmware, Grants, Holder, Policies};
use rprocd::vdev::{Listening, Permissions};

use crate::firmware::elf_builder::Elf;
use crate::firmware::table_builder::{ANY, Table};
use crate::frontend::rpmsg::RpmsgDriver;
use crate::frontend::vmm::{Options, Vmm};

const PATIENCE: Duration = Duration::from_secs(120);

const RAM: u64 = 0x8000_0000;
const RAM_LEN: u64 = 0x1_0000;
const TABLE: u64 = RAM + 0x1000;
const TRACE: u64 = RAM + 0x800;

const NUM: u16 = 8;
const AVAILABLE: u64 = 16 * NUM as u64;
const USED: u64 = (AVAILABLE + 6 + 2 * NUM as u64).next_multiple_of(16);
const RING_LEN: u64 = USED + 6 + 8 * NUM as u64;
const BUFFER: u64 = 512;

const DRIVER_OK: u8 = 4;
const FAILED: u8 = 0x80;

/// The configuration space of the vdev.
const CONFIG: [u8; 4] = [1, 2, 3, 4];

/// A carveout, a trace buffer, and `vdevs` vdevs with a configuration space.
fn table(vdevs: usize) -> Table {
    let table = Table::new()
        .carveout(0x8000_0000, 0x2000, "image")
        .trace(0x8000_0800, 0x80, "log");
    (0..vdevs).fold(table, |table, _| {
        table.vdev(7, 1, &[(ANY, 16, NUM.into()); 2], &CONFIG)
    })
}

/// Offset of a vdev's entry in the table, after the type.
fn vdev_offset(vdevs: usize, index: usize) -> u64 {
    table(vdevs).offset(2 + index) as u64 + 4
}

fn read<const N: usize>(ram: &Ram, da: u64) -> [u8; N] {
    let mut bytes = [0; N];
    let slice = ram.slice(DeviceAddress(da), N as u64).unwrap();
    slice.copy_to(&mut bytes);
    bytes
}

fn read_u16(ram: &Ram, da: u64) -> u16 {
    u16::from_le_bytes(read(ram, da))
}

fn read_u32(ram: &Ram, da: u64) -> u32 {
    u32::from_le_bytes(read(ram, da))
}

fn write(ram: &Ram, da: u64, bytes: &[u8]) {
    let slice = ram.slice(DeviceAddress(da), bytes.len() as u64).unwrap();
    slice.copy_from(bytes);
}

/// All of a core's memory.
fn memory(ram: &Ram) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(RAM_LEN).unwrap()];
    let slice = ram.slice(DeviceAddress(RAM), RAM_LEN).unwrap();
    slice.copy_to(&mut bytes);
    bytes
}

/// One vring, as a firmware remembers it: what it does to its own memory later does not confuse it.
#[derive(Clone)]
struct Vring {
    at: u64,
    /// What was available and is not taken yet.
    heads: VecDeque<u16>,
    /// The available index as far as it was looked at.
    seen: u16,
    /// What it wrote there itself, which says nothing.
    own: Option<u16>,
    used: u16,
    /// Where the buffer of each descriptor is; 0 if it was not offered yet.
    buffers: [u64; NUM as usize],
}

impl Vring {
    fn take_up(ram: &Ram, at: u64) -> Self {
        let mut vring = Self {
            at,
            heads: VecDeque::new(),
            seen: 0,
            own: None,
            used: 0,
            buffers: [0; NUM as usize],
        };
        vring.look(ram);
        vring
    }

    /// Copies out what has become available.
    fn look(&mut self, ram: &Ram) {
        let available = read_u16(ram, self.at + AVAILABLE + 2);
        if self.own == Some(available) {
            return;
        }
        self.own = None;
        while self.seen != available {
            let slot = u64::from(self.seen % NUM);
            let id = read_u16(ram, self.at + AVAILABLE + 4 + 2 * slot);
            let buffer = &mut self.buffers[usize::from(id)];
            if *buffer == 0 {
                *buffer = u64::from_le_bytes(read(ram, self.at + 16 * u64::from(id)));
            }
            self.heads.push_back(id);
            self.seen = self.seen.wrapping_add(1);
        }
    }

    /// Writes the next used entry and does not show it.
    fn fill(&self, ram: &Ram, ahead: u16, id: u32, len: u32) {
        let slot = u64::from(self.used.wrapping_add(ahead) % NUM);
        let at = self.at + USED + 4 + 8 * slot;
        write(ram, at, &id.to_le_bytes());
        write(ram, at + 4, &len.to_le_bytes());
    }

    fn show(&mut self, ram: &Ram, used: u16) {
        self.used = used;
        write(ram, self.at + USED + 2, &used.to_le_bytes());
    }

    fn give_back(&mut self, ram: &Ram, id: u32, len: u32) {
        self.fill(ram, 0, id, len);
        self.show(ram, self.used.wrapping_add(1));
    }
}

/// A message that a firmware has taken, and its answer, which it has written: what is left is to
/// give both buffers back.
#[derive(Clone, Copy)]
struct Answer {
    /// Descriptor of the message, in vring 1.
    message: u16,
    /// Descriptor of the answer, in vring 0.
    answer: u16,
    /// Where the answer is.
    at: u64,
    /// Bytes of the answer, its header included.
    len: u32,
}

/// A firmware that is the device of one vdev and answers each message with itself.
struct Device {
    entry: u64,
    vrings: Option<[Vring; 2]>,
    /// It does not look at the status any more.
    deaf: bool,
}

/// What a firmware does where an honest one gives both buffers back.
type Deed = fn(&Ram, &mut [Vring; 2], Answer);

fn honest(ram: &Ram, [to_guest, to_core]: &mut [Vring; 2], answer: Answer) {
    to_core.give_back(ram, answer.message.into(), 0);
    to_guest.give_back(ram, answer.answer.into(), answer.len);
}

impl Device {
    /// The device whose vdev's entry is at `entry` in the table.
    fn at(entry: u64) -> Self {
        Self {
            entry: TABLE + entry,
            vrings: None,
            deaf: false,
        }
    }

    fn new() -> Self {
        Self::at(vdev_offset(1, 0))
    }

    fn status(&self, ram: &Ram) -> u8 {
        read::<1>(ram, self.entry + 20)[0]
    }

    /// Takes up the vrings when a driver is there, and forgets them when it is gone.
    fn look(&mut self, ram: &Ram) {
        let status = self.status(ram);
        if self.deaf {
        } else if status & DRIVER_OK == 0 || status & FAILED != 0 {
            self.vrings = None;
        } else if self.vrings.is_none() {
            let place = |vring: u64| u64::from(read_u32(ram, self.entry + 24 + 20 * vring));
            self.vrings = Some([0, 1].map(|vring| Vring::take_up(ram, place(vring))));
        }
        for vring in self.vrings.iter_mut().flatten() {
            vring.look(ram);
        }
    }

    /// Answers all messages; those that begin with "attack" with `deed`.
    fn turn(&mut self, ram: &Ram, deed: Deed) {
        self.look(ram);
        while let Some([to_guest, to_core]) = &mut self.vrings {
            let (Some(&answer), Some(&message)) = (to_guest.heads.front(), to_core.heads.front())
            else {
                return;
            };
            to_guest.heads.pop_front();
            to_core.heads.pop_front();
            let from = to_core.buffers[usize::from(message)];
            let to = to_guest.buffers[usize::from(answer)];
            let mut bytes = read::<{ BUFFER as usize }>(ram, from);
            let (source, destination) = bytes[..8].split_at_mut(4);
            source.swap_with_slice(destination);
            let len = u16::from_le_bytes([bytes[12], bytes[13]]);
            write(ram, to, &bytes);
            let attacks = bytes[16..].starts_with(b"attack");
            let answer = Answer {
                message,
                answer,
                at: to,
                len: 16 + u32::from(len),
            };
            let deed = if attacks { deed } else { honest };
            deed(ram, self.vrings.as_mut().unwrap(), answer);
        }
    }

    /// Announces a channel, if there is a buffer.
    fn announce(&mut self, ram: &Ram, name: &str, address: u32) {
        let Some([to_guest, _]) = &mut self.vrings else {
            return;
        };
        let Some(id) = to_guest.heads.pop_front() else {
            return;
        };
        let mut message = [0; 56];
        message[..4].copy_from_slice(&53_u32.to_le_bytes());
        message[4..8].copy_from_slice(&53_u32.to_le_bytes());
        message[12] = 40;
        message[16..16 + name.len()].copy_from_slice(name.as_bytes());
        message[48..52].copy_from_slice(&address.to_le_bytes());
        write(ram, to_guest.buffers[usize::from(id)], &message);
        to_guest.give_back(ram, id.into(), 56);
    }
}

/// Starts and lengths.
type Spans = Vec<(u64, u64)>;

/// Where the host may write while a vdev runs: the table, the vrings, their buffers.
fn spans(vrings: &[Vring; 2]) -> Spans {
    let pool = vrings[0].buffers.iter().min().copied().unwrap_or(RAM);
    vec![
        (TABLE, table(1).build().len() as u64),
        (vrings[0].at, RING_LEN),
        (vrings[1].at, RING_LEN),
        (pool, 2 * u64::from(NUM) * BUFFER),
    ]
}

/// The first address outside of `spans` at which two images of a memory at `base` differ.
fn difference(base: u64, before: &[u8], after: &[u8], spans: &[(u64, u64)]) -> Option<u64> {
    let inside = |at: u64| {
        spans
            .iter()
            .any(|(start, len)| (*start..start + len).contains(&at))
    };
    (base..)
        .zip(before.iter().zip(after))
        .find(|(at, (before, after))| before != after && !inside(*at))
        .map(|(at, _)| at)
}

/// Looks whether the host writes where it may not while the firmware does not run.
#[derive(Default)]
struct Watch {
    last: Option<(Vec<u8>, Spans)>,
    found: Arc<Mutex<Option<u64>>>,
}

impl Watch {
    fn turn_begins(&mut self, ram: &Ram) {
        if let Some((before, spans)) = self.last.take()
            && let Some(at) = difference(RAM, &before, &memory(ram), &spans)
        {
            *self.found.lock().unwrap() = Some(at);
        }
    }

    fn turn_ends(&mut self, ram: &Ram, device: &Device) {
        self.last = device
            .vrings
            .as_ref()
            .map(|vrings| (memory(ram), spans(vrings)));
    }
}

/// A core with a script, its guests, and what the script's engine notes.
struct Bench {
    driver: RpmsgDriver,
    vmm: Vmm,
    /// Of each vdev.
    listening: Vec<(std::path::PathBuf, Listening)>,
    core: Core,
    journal: Journal,
    ram: Arc<Ram>,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new(script: impl FnMut(&Ram, NotifySet) -> RunEnd + Send + 'static) -> Self {
        Self::with(1, Policies::default(), |engine| {
            engine.set_script(script);
        })
    }

    /// A core that does as it should.
    fn honest() -> Self {
        let mut device = Device::new();
        Self::new(move |ram, _| {
            device.turn(ram, honest);
            RunEnd::Waiting { until: None }
        })
    }

    /// With a guest for vdev 0.
    fn with(vdevs: usize, policies: Policies, change: impl FnOnce(&mut Scripted)) -> Self {
        let mut engine = Scripted::new(DeviceAddress(RAM), RAM_LEN).unwrap();
        change(&mut engine);
        let (journal, ram) = (engine.journal(), engine.ram().clone());
        let image = Elf::new(0x8000_0000)
            .load(0x8000_0000, &[0x13; 16], 16)
            .table(0x8000_1000, &table(vdevs).build())
            .build();
        let snapshot = Snapshot::from_bytes("script.elf", image);
        let firmware = Firmware::new(snapshot, &mut engine, vdevs, Grants::default()).unwrap();
        let engine = Box::new(engine);
        let core = Core::new("core", engine, firmware, policies, Coredumps::disabled()).unwrap();
        core.start(Holder::Operator).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let listening: Vec<_> = (0..vdevs)
            .map(|index| {
                let path = folder.path().join(format!("{index}"));
                let face = core.face(index, true).unwrap();
                (
                    path.clone(),
                    Listening::start(&path, &Permissions::default(), face).unwrap(),
                )
            })
            .collect();
        let (vmm, driver) = guest(&listening[0].0);
        Self {
            driver,
            vmm,
            listening,
            core,
            journal,
            ram,
            _folder: folder,
        }
    }

    /// Sends `text` and wants it back.
    #[track_caller]
    fn exchange(&mut self, text: &str) {
        exchange(&mut self.driver, text);
    }

    /// The guest's driver is taken away and comes again.
    fn probe_again(&mut self) {
        self.vmm.driver_stop().unwrap();
        self.driver = RpmsgDriver::probe(&mut self.vmm).unwrap();
    }

    #[track_caller]
    fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(
                Instant::now() < end,
                "never: {what}; {:?}",
                self.core.status()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A guest with small queues, bound.
fn guest(path: &std::path::Path) -> (Vmm, RpmsgDriver) {
    let options = Options {
        queue_size: 16,
        ..Options::default()
    };
    let mut vmm = Vmm::connect(path, options).unwrap();
    let driver = RpmsgDriver::probe(&mut vmm).unwrap();
    (vmm, driver)
}

/// Sends `text` and wants it back.
#[track_caller]
fn exchange(driver: &mut RpmsgDriver, text: &str) {
    driver.send(1030, 1024, text.as_bytes()).unwrap();
    let answer = driver.recv_within(PATIENCE).expect(text);
    assert_eq!(answer.payload, text.as_bytes());
}
