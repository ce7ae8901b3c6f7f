//! The `chaos` image on the rv32 engine, with nothing around it: no daemon, no guest.

use std::path::PathBuf;
use std::time::SystemTime;

use rprocd::coredump::{Class, Dump, FirmwareId, Registers, Segment, Source, Style};
use rprocd::engine::rv32::{self, Rv32};
use rprocd::engine::{Crash, Engine, RunEnd};
use rprocd::firmware::{Image, Snapshot};
use rprocd::memory::{DeviceAddress, Ram};
use rprocd::rproc::{BootPlan, Clean, Grants};
use sha2::{Digest, Sha256};
use vm_memory::Bytes;

use crate::frontend::process::firmware_dir;

const PLENTY: u64 = 10_000_000;
const RAM_BASE: u64 = 0x8000_0000;
/// Where chaos listens.
const COMMANDS: u32 = 1024;
const RISCV: u16 = 243;
const SIGSEGV: u16 = 11;

/// A chaos that has died.
pub struct Dead {
    pub image: PathBuf,
    pub sha256: [u8; 32],
    pub crash: Crash,
    pub registers: rv32::Registers,
    pub plan: BootPlan,
}

/// Boots chaos, greets it as a driver would, and sends it a command that it does not survive.
pub fn dies_of(command: &str) -> Dead {
    let ram = Ram::new("chaos", DeviceAddress(RAM_BASE), 4 << 20).unwrap();
    let mut engine = Rv32::new(ram).unwrap();
    let snapshot = Snapshot::read(firmware_dir(), "chaos.elf").unwrap();
    let image = Image::parse(snapshot.bytes(), &engine.image_rules()).unwrap();
    let mut plan =
        BootPlan::new(&image, snapshot.bytes(), &mut engine, 1, &Grants::default()).unwrap();
    plan.load(&image, snapshot.bytes(), &mut engine, Clean::All)
        .unwrap();
    engine.start(plan.boot, 1).unwrap();
    assert!(matches!(engine.run(PLENTY).end, RunEnd::Waiting { .. }));

    let [to_guest, to_core] = plan.vdevs[0].make_rings(&plan.carveouts).unwrap();
    let mut rings = [to_guest, to_core];
    let mut inbox = rings[0].open().unwrap();
    for id in 0..4 {
        inbox.offer(id, 512, true);
    }
    inbox.publish();
    let vdev = &plan.vdevs[0];
    let ids = vdev.ids();
    let (gfeatures, status) = (
        vdev.entry().gfeatures_offset(),
        vdev.entry().status_offset(),
    );
    let places: Vec<_> = vdev.vring_places().collect();
    plan.table.write_u32(gfeatures, 1);
    for (offset, da) in places {
        plan.table.write_u32(offset, u32::try_from(da.0).unwrap());
    }
    plan.table.write_u8(status, 7);
    engine.kick(ids[0]);
    assert!(matches!(engine.run(PLENTY).end, RunEnd::Waiting { .. }));

    let mut message = Vec::new();
    for word in [1030, COMMANDS, 0, u32::try_from(command.len()).unwrap()] {
        message.extend(word.to_le_bytes());
    }
    message.extend(command.as_bytes());
    let mut outbox = rings[1].open().unwrap();
    let buffer = outbox.buffer(0).unwrap();
    buffer.write_slice(&message, 0).unwrap();
    outbox.offer(0, u32::try_from(message.len()).unwrap(), false);
    outbox.publish();
    engine.kick(ids[1]);
    let RunEnd::Crashed(crash) = engine.run(PLENTY).end else {
        panic!("chaos has survived {command}");
    };
    Dead {
        image: firmware_dir().join("chaos.elf"),
        sha256: Sha256::digest(snapshot.bytes()).into(),
        crash,
        registers: engine.registers(),
        plan,
    }
}

impl Dead {
    /// What is known of it, with a segment for each carveout.
    pub fn dump(&self) -> Dump<'_> {
        let memory: &Ram = self.plan.carveouts.ram();
        let segments = self.plan.carveouts.iter().map(|carveout| Segment {
            name: carveout.name.clone(),
            da: carveout.da,
            len: carveout.len,
            source: Source::Memory(memory),
        });
        Dump {
            incarnation: 1,
            time: SystemTime::now(),
            reason: &self.crash.detail,
            firmware: Some(FirmwareId {
                name: "chaos.elf",
                sha256: self.sha256,
            }),
            class: Class::Elf32,
            machine: RISCV,
            boot: self.plan.boot,
            registers: Some(Registers::riscv32(
                SIGSEGV,
                self.registers.pc,
                &self.registers.x,
            )),
            segments: segments.collect(),
            style: Style::ProgramHeaders,
        }
    }
}
