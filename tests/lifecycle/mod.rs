//! The states of a core and what leads from one to another, with an engine that writes down what is
//! asked of it.
//!
//! What belongs here: order, refusals, failures, holders. What does not: what a real engine or a
//! real guest shows as well (`crash`, `guest`).

mod collisions;
mod guests;
mod order;
mod own_ways;
mod shadow;
mod verbs;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rprocd::coredump::{Limits, Mode};
use rprocd::engine::scripted::{Journal, Scripted};
use rprocd::engine::{Abilities, Crash, CrashKind, LoadedTable};
use rprocd::firmware::Snapshot;
use rprocd::memory::DeviceAddress;
use rprocd::rproc::{
    BootPlan, Core, Coredumps, DevmemGrant, Firmware, Grants, Machine, Policies, RecoveryPolicy,
    Refusal, Subdevice, VendorRule,
};
use rprocd::vdev::Listening;
use vm_memory::Bytes;

use crate::firmware::elf_builder::Elf;
use crate::firmware::table_builder::{ANY, Table};

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(120);
pub const RAM: u64 = 0x8000_0000;
pub const RAM_LEN: u64 = 0x10_0000;
/// Where images have their table.
pub const TABLE: u32 = 0x8000_1000;

/// Everything that an engine or a subdevice is asked about, and one vdev.
pub fn table() -> Table {
    Table::new()
        .carveout(0x8000_0000, 0x2000, "image")
        .devmem(0x1000_0000, 0x1000_0000, 0x1000, "uart")
        .raw(200, &[1; 4])
        .vdev(7, 1, &[(ANY, 16, 8); 2], &[])
}

pub fn image(table: &Table) -> Snapshot {
    let file = Elf::new(0x8000_0000)
        .load(0x8000_0000, &[0x13; 16], 16)
        .table(TABLE, &table.build())
        .build();
    Snapshot::from_bytes("script.elf", file)
}

pub fn grants() -> Grants {
    Grants {
        devmem: vec![DevmemGrant {
            pa: 0x1000_0000,
            length: 0x1000,
            name: String::new(),
        }],
        vendor: VendorRule::Refuse,
        ..Grants::default()
    }
}

pub fn engine() -> Scripted {
    Scripted::new(DeviceAddress(RAM), RAM_LEN).unwrap()
}

/// An engine whose core runs already, with `table` in its memory.
pub fn running_engine(table: &Table) -> Scripted {
    let mut engine = engine();
    let bytes = table.build();
    let place = DeviceAddress(u64::from(TABLE));
    let len = bytes.len() as u64;
    let memory = rprocd::engine::Engine::ram(&engine).clone();
    memory
        .slice(place, len)
        .unwrap()
        .write_slice(&bytes, 0)
        .unwrap();
    engine
        .set_running_already(Some(LoadedTable { da: place, len }))
        .set_abilities(Abilities {
            attaches: true,
            attaches_on_recovery: true,
            ..Abilities::BOOTS
        });
    engine
}

/// Recovery at once, however often.
pub fn eager() -> Policies {
    Policies {
        recovery: RecoveryPolicy {
            minimum_run_time: Duration::ZERO,
            hold_after: 0,
            ..RecoveryPolicy::default()
        },
        ..Policies::default()
    }
}

pub fn without_recovery() -> Policies {
    Policies {
        recovery: RecoveryPolicy {
            enabled: false,
            ..RecoveryPolicy::default()
        },
        ..Policies::default()
    }
}

pub fn dumps(folder: &Path) -> Coredumps {
    let limits = Limits {
        count: 4,
        bytes: 1 << 20,
    };
    Coredumps::new(folder, "core", limits, Mode::Inline, Duration::ZERO).unwrap()
}

/// A machine, and the journal of its engine.
pub fn machine(mut engine: Scripted, policies: Policies, dumps: Coredumps) -> (Machine, Journal) {
    let journal = engine.journal();
    let firmware = Firmware::new(image(&table()), &mut engine, 1, grants()).unwrap();
    journal.take();
    let machine = Machine::new("core", Box::new(engine), firmware, policies, dumps);
    (machine, journal)
}

/// The same with a thread of its own, and no dumps.
pub fn core(engine: Scripted, policies: Policies) -> (Core, Journal) {
    core_with_dumps(engine, policies, Coredumps::disabled())
}

/// The same with a thread of its own.
pub fn core_with_dumps(
    mut engine: Scripted,
    policies: Policies,
    dumps: Coredumps,
) -> (Core, Journal) {
    let journal = engine.journal();
    let firmware = Firmware::new(image(&table()), &mut engine, 1, grants()).unwrap();
    journal.take();
    let core = Core::new("core", Box::new(engine), firmware, policies, dumps);
    (core.unwrap(), journal)
}

/// The same without a vdev, with what `table` says, as it is without a configuration.
pub fn core_without_vdevs(mut engine: Scripted, table: &Table) -> Core {
    let firmware = Firmware::new(image(table), &mut engine, 0, Grants::default()).unwrap();
    let core = Core::new(
        "core",
        Box::new(engine),
        firmware,
        Policies::default(),
        Coredumps::disabled(),
    );
    core.unwrap()
}

/// A core whose vdev 0 a VMM can connect to.
pub struct Served {
    pub path: PathBuf,
    _listening: Listening,
    _folder: tempfile::TempDir,
}

pub fn served(core: &Core) -> Served {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    Served {
        _listening: Listening::start(
            &path,
            &rprocd::vdev::Permissions::default(),
            core.face(0, true).unwrap(),
        )
        .unwrap(),
        path,
        _folder: folder,
    }
}

/// Fails if the core does not come to be in that state.
#[track_caller]
pub fn wait_for(core: &Core, state: &str) {
    let end = Instant::now() + PATIENCE;
    while core.status().state != state {
        assert!(Instant::now() < end, "{:?}", core.status());
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn crash(detail: &str) -> Crash {
    Crash {
        kind: CrashKind::FatalError,
        detail: detail.to_owned(),
    }
}

/// A subdevice that writes into the engine's journal, and fails when it is told to.
pub struct Noting {
    pub name: &'static str,
    pub journal: Journal,
    /// "prepare" or "start".
    pub fails_at: Option<&'static str>,
}

impl Noting {
    fn step(&self, step: &str) -> Result<(), Refusal> {
        if self.fails_at == Some(step) {
            self.journal.note(format!("{} {step} failed", self.name));
            return Err(format!("{} is told not to {step}", self.name).into());
        }
        self.journal.note(format!("{} {step}", self.name));
        Ok(())
    }
}

impl Subdevice for Noting {
    fn name(&self) -> &str {
        self.name
    }

    fn prepare(&mut self, _plan: &BootPlan) -> Result<(), Refusal> {
        self.step("prepare")
    }

    fn start(&mut self, _plan: &BootPlan) -> Result<(), Refusal> {
        self.step("start")
    }

    fn stop(&mut self, _plan: &BootPlan, crashed: bool) {
        let step = if crashed { "stop crashed" } else { "stop" };
        self.journal.note(format!("{} {step}", self.name));
    }

    fn unprepare(&mut self) {
        self.journal.note(format!("{} unprepare", self.name));
    }
}
