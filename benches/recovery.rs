//! From a crash to a running core: rv32 with an image of 1 MiB.
//!
//! Run with `cargo bench --bench recovery`. The firmware fills a segment of 1 MiB, polls a word of
//! its memory, and executes an illegal instruction when there is something in it. What is timed is
//! what rprocd itself times and shows as "recovery": from the engine's report to the running next
//! incarnation, by steps. In the same run, because the machine's speed drifts: how long it takes to
//! copy 1 MiB, and the same recovery with a whole coredump. The last line is what a guest sees: from
//! the deadly message to the channel that is announced anew, with the `chaos` firmware.
//!
//! What belongs here: these. Tests do not time things; benchmarks do not test.
#![allow(
    missing_docs,
    dead_code,
    clippy::unwrap_used,
    reason = "a benchmark, and the folders that it shares with the tests"
)]

#[path = "../tests/engine/asm.rs"]
mod asm;
#[path = "../tests/firmware/elf_builder.rs"]
mod elf_builder;
#[path = "../tests/frontend/mod.rs"]
mod frontend;
#[path = "../tests/firmware/table_builder.rs"]
mod table_builder;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use asm::{Asm, T0, T1, ZERO, beq, lw};
use elf_builder::Elf;
use frontend::process::Daemon;
use frontend::rpmsg::RpmsgDriver;
use frontend::vmm::{Options, Vmm};
use rprocd::coredump::{Limits, Mode};
use rprocd::engine::rv32::{Rv32, board};
use rprocd::firmware::Snapshot;
use rprocd::memory::{DeviceAddress, Ram};
use rprocd::rproc::{Core, Coredumps, Firmware, Grants, Holder, Policies, RecoveryPolicy};
use table_builder::Table;
use vm_memory::Bytes;

const BASE: u32 = board::ram::BASE;
const IMAGE: u32 = 1 << 20;
/// The last word of the image.
const COMMAND: u32 = BASE + IMAGE - 4;
const TABLE: u32 = BASE + IMAGE;
const ROUNDS: usize = 51;
const PATIENCE: Duration = Duration::from_secs(20);
/// What the project promises, without a dump.
const AIM: Duration = Duration::from_millis(20);

/// 1 MiB that ends its run when it is told to.
fn image() -> Snapshot {
    let mut program = Asm::at(BASE);
    program.li(T0, COMMAND);
    program.op(lw(T1, T0, 0)).op(beq(T1, ZERO, -4)).op(0);
    // Nothing that could be left out for being zero.
    let mut bytes: Vec<u8> = (0..IMAGE).map(|at| (at % 251 + 1) as u8).collect();
    bytes[..program.bytes().len()].copy_from_slice(program.bytes());
    let end = bytes.len() - 4;
    bytes[end..].fill(0);
    let table = Table::new().carveout(BASE, IMAGE + 0x1000, "image");
    let file = Elf::new(BASE)
        .load(BASE, &bytes, IMAGE)
        .table(TABLE, &table.build())
        .build();
    Snapshot::from_bytes("megabyte.elf", file)
}

struct Recovered {
    total: Vec<Duration>,
    steps: BTreeMap<String, Vec<Duration>>,
    order: Vec<String>,
}

/// Kills the core again and again.
fn recoveries(dumps: Coredumps) -> Recovered {
    let ram = Ram::new("bench", DeviceAddress(u64::from(BASE)), 4 << 20).unwrap();
    let mut engine = Box::new(Rv32::new(Arc::clone(&ram)).unwrap());
    let firmware = Firmware::new(image(), &mut *engine, 0, Grants::default()).unwrap();
    let policies = Policies {
        recovery: RecoveryPolicy {
            minimum_run_time: Duration::ZERO,
            hold_after: 0,
            ..RecoveryPolicy::default()
        },
        ..Policies::default()
    };
    let core = Core::new("bench", engine, firmware, policies, dumps).unwrap();
    core.start(Holder::Operator).unwrap();
    let mut recovered = Recovered {
        total: Vec::new(),
        steps: BTreeMap::new(),
        order: Vec::new(),
    };
    let micros = Duration::from_micros;
    for round in 0..ROUNDS {
        // A recovery after a few turns, not in the middle of the first.
        std::thread::sleep(Duration::from_millis(2));
        let command = ram.slice(DeviceAddress(u64::from(COMMAND)), 4).unwrap();
        command.write_obj(1_u32, 0).unwrap();
        let end = Instant::now() + PATIENCE;
        let status = loop {
            let status = core.status();
            if status.incarnation as usize == round + 2 {
                break status;
            }
            assert!(Instant::now() < end, "{status:?}");
            std::thread::sleep(Duration::from_millis(1));
        };
        let lines = &status.timelines;
        let line = lines.iter().find(|line| line.what == "recovery").unwrap();
        recovered.total.push(micros(line.microseconds));
        recovered.order = line.steps.iter().map(|step| step.step.clone()).collect();
        for step in &line.steps {
            let times = recovered.steps.entry(step.step.clone()).or_default();
            times.push(micros(step.microseconds));
        }
    }
    recovered
}

/// Lowest, middle, highest.
fn spread(times: &mut [Duration]) -> [f64; 3] {
    times.sort();
    [times[0], times[times.len() / 2], times[times.len() - 1]].map(|time| time.as_secs_f64() * 1e3)
}

fn row(name: &str, times: &mut [Duration]) -> f64 {
    let [low, middle, high] = spread(times);
    println!("{name:<44}{middle:>10.3}   ({low:.3} to {high:.3})");
    middle
}

fn show(name: &str, recovered: &mut Recovered) -> f64 {
    let total = row(name, &mut recovered.total);
    for step in &recovered.order {
        row(&format!("  {step}"), recovered.steps.get_mut(step).unwrap());
    }
    total
}

/// A megabyte from here to there.
fn copies() -> Vec<Duration> {
    let ram = Ram::new("copy", DeviceAddress(0), 4 << 20).unwrap();
    let bytes = vec![1; 1 << 20];
    let copy = |_| {
        let begun = Instant::now();
        let slice = ram.slice(DeviceAddress(0), bytes.len() as u64).unwrap();
        slice.write_slice(&bytes, 0).unwrap();
        begun.elapsed()
    };
    (0..ROUNDS).map(copy).collect()
}

/// From a deadly message to the next announcement.
fn as_the_guest_sees_it() -> Vec<Duration> {
    let daemon = Daemon::start(&[frontend::process::Core {
        name: "core",
        image: "chaos",
        settings: "[core.recovery]\nminimum-run-time-ms = 0\nhold-after = 0",
        ..frontend::process::Core::default()
    }]);
    let mut vmm = Vmm::connect(&daemon.socket("core"), Options::default()).unwrap();
    let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
    let mut address = driver.wait_for_channel("rpmsg-raw", PATIENCE).unwrap();
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        // Whatever it announces besides.
        while driver.recv_within(Duration::from_millis(20)).is_some() {}
        let heard = driver.announcements().len();
        let begun = Instant::now();
        driver.send(1030, address, b"illegal").unwrap();
        while driver.announcements().len() < heard + 2 {
            assert!(begun.elapsed() < PATIENCE, "{:?}", driver.announcements());
            driver.wait(Duration::from_millis(10));
            while driver.recv().is_some() {}
        }
        address = driver.wait_for_channel("rpmsg-raw", PATIENCE).unwrap();
        times.push(begun.elapsed());
    }
    times
}

fn main() {
    println!("{ROUNDS} crashes each; milliseconds, middle (lowest to highest)");
    let copied = row("copying 1 MiB of memory", &mut copies());
    let mut plain = recoveries(Coredumps::disabled());
    let without = show("crash to running, without a dump", &mut plain);
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits {
        count: 4,
        bytes: 64 << 20,
    };
    let dumps = Coredumps::new(folder.path(), "bench", limits, Mode::Inline, PATIENCE).unwrap();
    let with = show(
        "crash to running, with a whole dump",
        &mut recoveries(dumps),
    );
    row(
        "deadly message to announced anew (chaos)",
        &mut as_the_guest_sees_it(),
    );
    println!("without a dump, against the copy: {:.1}", without / copied);
    println!("with a dump, against without: {:.1}", with / without);
    let verdict = if without < AIM.as_secs_f64() * 1e3 {
        "PASS"
    } else {
        "MISS"
    };
    println!("{verdict}: {without:.3} ms without a dump, the aim is {AIM:?}");
}
