//! What an engine may do in its own way: memory that no carveout says, loading by itself, a table
//! elsewhere, no boot at all; and what is asked of it when the process ends by a defect.

use rprocd::engine::{Abilities, Engine, RunEnd};
use rprocd::memory::DeviceAddress;
use rprocd::report::sentence;
use rprocd::rproc::{CoreState, Coredumps, Firmware, Grants, Holder, Machine, Policies};
use vm_memory::Bytes;

use super::{RAM, core_without_vdevs, engine, machine, running_engine, table, without_recovery};
use crate::firmware::elf_builder::Elf;
use crate::firmware::table_builder::Table;

/// An image with a segment in memory that the core sees at 0 and nobody carves out.
fn image_in_tightly_coupled_memory() -> rprocd::firmware::Snapshot {
    let table = Table::new()
        .carveout(0x8000_0000, 0x2000, "image")
        .trace(0x80, 0x40, "log");
    let file = Elf::new(0)
        .load(0, b"vectors, and then some text", 0x100)
        .table(0x8000_1000, &table.build())
        .build();
    rprocd::firmware::Snapshot::from_bytes("tcm.elf", file)
}

#[test]
fn a_segment_may_lie_where_the_engine_translates_to() {
    let place = DeviceAddress(RAM + 0x8_0000);
    let mut refusing = engine();
    let refused = Firmware::new(
        image_in_tightly_coupled_memory(),
        &mut refusing,
        0,
        Grants::default(),
    );
    let text = sentence(&refused.err().unwrap());
    assert!(text.contains("segment 0"), "{text}");

    let mut engine = engine();
    engine.set_alias(DeviceAddress(0), 0x1000, place);
    let ram = engine.ram().clone();
    let firmware = Firmware::new(
        image_in_tightly_coupled_memory(),
        &mut engine,
        0,
        Grants::default(),
    )
    .unwrap();
    let mut machine = Machine::new(
        "core",
        Box::new(engine),
        firmware,
        Policies::default(),
        Coredumps::disabled(),
    );
    machine.start(Holder::Operator).unwrap();
    let mut loaded = [0; 7];
    ram.slice(place, 7)
        .unwrap()
        .read_slice(&mut loaded, 0)
        .unwrap();
    assert_eq!(&loaded, b"vectors");
    // The trace buffer is there as well.
    let log = DeviceAddress(place.0 + 0x80);
    ram.slice(log, 5).unwrap().write_slice(b"hello", 0).unwrap();
    assert_eq!(machine.traces(&[0], 100)[0].text.bytes, b"hello");
}

#[test]
fn an_engine_that_loads_by_itself_is_left_to_it() {
    let mut engine = engine();
    engine.set_loads_by_itself();
    let ram = engine.ram().clone();
    let (mut machine, _) = machine(engine, Policies::default(), Coredumps::disabled());
    machine.start(Holder::Operator).unwrap();
    let first: u32 = ram
        .slice(DeviceAddress(RAM), 4)
        .unwrap()
        .read_obj(0)
        .unwrap();
    assert_eq!(first, 0, "rprocd would have loaded 0x13131313");
}

#[test]
fn an_engine_that_cannot_boot_is_not_asked_to() {
    let mut engine = engine();
    engine.set_abilities(Abilities {
        boots: false,
        attaches: true,
        ..Abilities::BOOTS
    });
    let (mut machine, journal) = machine(engine, Policies::default(), Coredumps::disabled());
    let error = machine.start(Holder::Operator).unwrap_err();
    assert_eq!(
        sentence(&error),
        "core core cannot be booted: the engine does not start: engine scripted cannot boot a core"
    );
    assert!(journal.take().is_empty());
    assert_eq!(machine.state(), CoreState::Offline);
}

#[test]
fn an_engine_that_cannot_let_go_is_not_half_detached() {
    let mut engine = running_engine(&table());
    engine.set_abilities(Abilities::BOOTS);
    let (mut machine, journal) = machine(engine, without_recovery(), Coredumps::disabled());
    machine.attach_running().unwrap();
    journal.take();
    let error = machine.detach_running().unwrap_err();
    let text = sentence(&error);
    assert!(
        text.contains("engine scripted cannot let go of a core"),
        "{text}"
    );
    assert!(journal.take().is_empty());
    assert_eq!(machine.state(), CoreState::Attached);
}

#[test]
fn a_defect_ends_the_process_after_the_engine_had_its_word() {
    // In a process of its own: this very test, told to be the one that dies.
    const ROLE: &str = "RPROCD_TEST_DIES";
    if std::env::var_os(ROLE).is_some() {
        let mut engine = engine();
        let journal = engine.journal();
        engine.set_script(|_, _| -> RunEnd { panic!("a defect") });
        let table = Table::new().carveout(0x8000_0000, 0x2000, "image");
        let core = core_without_vdevs(engine, &table);
        // Printed when the engine is asked, before the process is gone.
        journal.print(true);
        let _ = core.start(Holder::Operator);
        std::thread::sleep(super::PATIENCE);
        unreachable!("the process is gone");
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "--nocapture",
            "lifecycle::own_ways::a_defect_ends_the_process_after_the_engine_had_its_word",
        ])
        .env(ROLE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("scripted: panic"), "{text}");
    let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
    assert_eq!(signal, Some(6), "SIGABRT: {text}");
}
