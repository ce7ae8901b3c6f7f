//! The order in which an engine and subdevices are asked, held against Linux's.
//!
//! Each list is what `drivers/remoteproc/remoteproc_core.c` of Linux 6.12 does, with our names: its
//! `rproc_fw_boot()` and `rproc_start()`, `rproc_shutdown()`, `rproc_boot_recovery()`,
//! `rproc_attach()`, `rproc_detach()`, `rproc_attach_recovery()`. Linux has no operation for devmem
//! (it asks the IOMMU, in the same place). Where we go another way a comment says so.

use rprocd::engine::scripted::{Journal, Op, Scripted};
use rprocd::rproc::{CoreState, Driver, Holder, Machine};

use super::{
    Noting, crash, dumps, eager, engine, machine, running_engine, table, without_recovery,
};

/// A machine with subdevices `a` and `b`, one of which may fail.
struct Bench {
    machine: Machine,
    journal: Journal,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new(engine: Scripted, fails: Option<(&'static str, &'static str)>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (mut machine, journal) = machine(engine, without_recovery(), dumps(folder.path()));
        for name in ["a", "b"] {
            machine.add_subdevice(Box::new(Noting {
                name,
                journal: journal.clone(),
                fails_at: fails.filter(|fails| fails.0 == name).map(|fails| fails.1),
            }));
        }
        Self {
            machine,
            journal,
            _folder: folder,
        }
    }

    fn booted() -> Self {
        let mut bench = Self::new(engine(), None);
        bench.machine.start(Holder::Operator).unwrap();
        bench.journal.take();
        bench
    }

    fn attached() -> Self {
        let mut bench = Self::new(running_engine(&table()), None);
        bench.machine.start(Holder::Operator).unwrap();
        bench.journal.take();
        bench
    }

    /// Does `what`, with the next call of `failing` failing; says whether that went well, and what
    /// was called.
    fn with(
        &mut self,
        failing: Option<Op>,
        what: impl FnOnce(&mut Machine) -> bool,
    ) -> (bool, Vec<String>) {
        if let Some(op) = failing {
            self.journal.fail_next(op);
        }
        let went_well = what(&mut self.machine);
        self.journal.forgive();
        (went_well, self.journal.take())
    }

    #[track_caller]
    fn expect(&mut self, state: CoreState, calls: &[&str]) {
        assert_eq!(self.journal.take(), calls);
        assert_eq!(self.machine.state(), state);
    }
}

/// The steps of a boot in Linux's order.
const BOOT: [&str; 13] = [
    "sanity_check",
    "prepare",
    "get_boot_addr",
    "parse_fw",
    "map_devmem",
    "handle_rsc",
    "load",
    "find_loaded_rsc_table",
    "a prepare",
    "b prepare",
    "start",
    "a start",
    "b start",
];

const ATTACH: [&str; 9] = [
    "prepare",
    "get_loaded_rsc_table",
    "map_devmem",
    "handle_rsc",
    "a prepare",
    "b prepare",
    "attach",
    "a start",
    "b start",
];

/// `steps` up to `last`, which failed, then `unwound`.
fn until(steps: &[&str], last: &str, unwound: &[&str]) -> Vec<String> {
    let end = steps.iter().position(|step| *step == last).unwrap();
    let mut calls: Vec<_> = steps[..end].iter().map(|step| (*step).to_owned()).collect();
    calls.push(format!("{last} failed"));
    calls.extend(unwound.iter().map(|step| (*step).to_owned()));
    calls
}

#[test]
fn a_boot_is_in_linux_s_order() {
    let mut bench = Bench::new(engine(), None);
    bench.machine.start(Holder::Operator).unwrap();
    bench.expect(CoreState::Running, &BOOT);
}

#[test]
fn a_boot_that_fails_at_any_step_of_the_engine_is_undone_as_linux_does() {
    let unprepared = ["b unprepare", "a unprepare", "unprepare"];
    for (op, unwound) in [
        (Op::SanityCheck, &[][..]),
        (Op::Prepare, &[]),
        (Op::ParseFw, &["unprepare"]),
        (Op::MapDevmem, &["unprepare"]),
        (Op::HandleRsc, &["unprepare"]),
        (Op::Load, &["unprepare"]),
        (Op::Start, &unprepared),
    ] {
        let mut bench = Bench::new(engine(), None);
        let (went_well, calls) =
            bench.with(Some(op), |machine| machine.start(Holder::Operator).is_ok());
        assert!(!went_well, "{op:?}");
        assert_eq!(calls, until(&BOOT, op.name(), unwound), "{op:?}");
        assert_eq!(bench.machine.state(), CoreState::Offline);
        assert!(bench.machine.holders().is_empty());
        // Nothing is stuck.
        bench.machine.start(Holder::Operator).unwrap();
        bench.expect(CoreState::Running, &BOOT);
    }
}

#[test]
fn a_table_that_is_nowhere_in_memory_does_not_keep_a_core_from_booting() {
    let mut bench = Bench::new(engine(), None);
    let (went_well, calls) = bench.with(Some(Op::FindLoadedRscTable), |machine| {
        machine.start(Holder::Operator).is_ok()
    });
    assert!(went_well);
    assert_eq!(calls.len(), BOOT.len());
    assert_eq!(calls[7], "find_loaded_rsc_table failed");
}

#[test]
fn a_boot_address_that_cannot_be_is_refused_when_nothing_else_is_wrong() {
    // Linux's cannot fail.
    let mut bench = Bench::new(engine(), None);
    let (went_well, calls) = bench.with(Some(Op::GetBootAddr), |machine| {
        machine.start(Holder::Operator).is_ok()
    });
    assert!(!went_well);
    let mut expected: Vec<_> = BOOT[..6].iter().map(|step| (*step).to_owned()).collect();
    expected[2].push_str(" failed");
    expected.push("unprepare".to_owned());
    assert_eq!(calls, expected);
}

#[test]
fn a_boot_that_fails_at_a_subdevice_is_undone_as_linux_does() {
    let unprepared = ["b unprepare", "a unprepare", "unprepare"];
    for (fails, unwound) in [
        (("a", "prepare"), &["unprepare"][..]),
        (("b", "prepare"), &["a unprepare", "unprepare"]),
        (("a", "start"), &[&["stop"][..], &unprepared].concat()),
        (
            ("b", "start"),
            &[&["a stop crashed", "stop"][..], &unprepared].concat(),
        ),
    ] {
        let mut bench = Bench::new(engine(), Some(fails));
        let error = bench.machine.start(Holder::Operator).unwrap_err();
        let text = rprocd::report::sentence(&error);
        assert!(text.contains("is told not to"), "{text}");
        let last = format!("{} {}", fails.0, fails.1);
        assert_eq!(bench.journal.take(), until(&BOOT, &last, unwound));
        assert_eq!(bench.machine.state(), CoreState::Offline);
    }
}

const STOP: [&str; 6] = [
    "b stop",
    "a stop",
    "stop",
    "b unprepare",
    "a unprepare",
    "unprepare",
];

#[test]
fn a_stop_is_in_linux_s_order() {
    let mut bench = Bench::booted();
    bench.machine.stop().unwrap();
    bench.expect(CoreState::Offline, &STOP);
}

#[test]
fn a_stop_that_fails_changes_no_state_and_what_went_down_is_not_stopped_twice() {
    let mut bench = Bench::booted();
    let (went_well, calls) = bench.with(Some(Op::Stop), |machine| machine.stop().is_ok());
    assert!(!went_well);
    assert_eq!(calls, ["b stop", "a stop", "stop failed"]);
    assert_eq!(bench.machine.state(), CoreState::Running);
    assert_eq!(bench.machine.holders(), ["operator"]);
    bench.machine.stop().unwrap();
    bench.expect(CoreState::Offline, &STOP[2..]);
}

/// Linux does the first half of this when it recovers, we do it when the core crashes.
const CRASH: [&str; 6] = [
    "b stop crashed",
    "a stop crashed",
    "stop",
    "b unprepare",
    "a unprepare",
    "coredump",
];

/// Not again: sanity check, `prepare`, boot address, resources.
const RELOAD: [&str; 7] = [
    "load",
    "find_loaded_rsc_table",
    "a prepare",
    "b prepare",
    "start",
    "a start",
    "b start",
];

#[test]
fn a_crash_and_its_recovery_are_in_linux_s_order() {
    let mut bench = Bench::booted();
    bench.machine.report_crash(1, crash("first"));
    bench.expect(CoreState::Crashed, &CRASH);
    bench.machine.report_crash(1, crash("second"));
    bench.expect(CoreState::Crashed, &[]);
    bench.machine.recover().unwrap();
    bench.expect(CoreState::Running, &RELOAD);
    assert_eq!(bench.machine.status().incarnation, 2);
    assert_eq!(bench.machine.status().crashes, 1);
}

#[test]
fn with_recovery_enabled_it_follows_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let (mut machine, journal) = machine(engine(), eager(), dumps(folder.path()));
    machine.start(Holder::Operator).unwrap();
    journal.take();
    machine.report_crash(1, crash("by itself"));
    assert_eq!(machine.state(), CoreState::Crashed);
    machine.drive(&Driver::PATIENT);
    assert_eq!(machine.state(), CoreState::Running);
    assert_eq!(
        journal.take(),
        ["stop", "coredump", "load", "find_loaded_rsc_table", "start"]
    );
}

#[test]
fn a_core_that_cannot_be_stopped_after_a_crash_stays_crashed_and_is_tried_again() {
    for verb in [Machine::recover, Machine::stop] {
        let mut bench = Bench::booted();
        let (_, calls) = bench.with(Some(Op::Stop), |machine| {
            machine.report_crash(1, crash("stuck"));
            true
        });
        assert_eq!(calls, ["b stop crashed", "a stop crashed", "stop failed"]);
        assert_eq!(bench.machine.state(), CoreState::Crashed);
        let (went_well, calls) = bench.with(Some(Op::Stop), |machine| verb(machine).is_ok());
        assert!(!went_well);
        assert_eq!(calls, ["stop failed"]);
        assert_eq!(bench.machine.state(), CoreState::Crashed);
        verb(&mut bench.machine).unwrap();
        let calls = bench.journal.take();
        assert_eq!(calls[..4], CRASH[2..]);
        let (state, rest) = match bench.machine.state() {
            CoreState::Offline => (CoreState::Offline, &["unprepare"][..]),
            _ => (CoreState::Running, &RELOAD[..]),
        };
        assert_eq!(&calls[4..], rest);
        assert_eq!(bench.machine.state(), state);
    }
}

#[test]
fn a_recovery_that_fails_leaves_an_offline_core_that_starts() {
    // Linux leaves resources and power behind, and a core that nothing moves.
    for (op, unwound) in [
        (Op::Load, &["unprepare"][..]),
        (Op::Start, &["b unprepare", "a unprepare", "unprepare"]),
    ] {
        let mut bench = Bench::booted();
        bench.machine.report_crash(1, crash("worse to come"));
        bench.journal.take();
        let (went_well, calls) = bench.with(Some(op), |machine| machine.recover().is_ok());
        assert!(!went_well);
        assert_eq!(calls, until(&RELOAD, op.name(), unwound));
        assert_eq!(bench.machine.state(), CoreState::Offline);
        assert!(bench.machine.holders().is_empty());
        bench.machine.start(Holder::Operator).unwrap();
        bench.expect(CoreState::Running, &BOOT);
    }
}

#[test]
fn a_crashed_core_that_is_stopped_has_been_stopped_and_one_that_is_started_boots_afresh() {
    let mut bench = Bench::booted();
    bench.machine.report_crash(1, crash("once"));
    bench.journal.take();
    bench.machine.stop().unwrap();
    bench.expect(CoreState::Offline, &["unprepare"]);

    let mut bench = Bench::booted();
    bench.machine.report_crash(1, crash("once"));
    bench.journal.take();
    bench.machine.start(Holder::Operator).unwrap();
    let calls = bench.journal.take();
    assert_eq!(calls[0], "unprepare");
    assert_eq!(calls[1..], BOOT);
}

#[test]
fn an_attachment_is_in_linux_s_order() {
    let mut bench = Bench::new(running_engine(&table()), None);
    assert_eq!(bench.machine.state(), CoreState::Detached);
    bench.machine.attach_running().unwrap();
    bench.expect(CoreState::Attached, &ATTACH);
}

#[test]
fn an_attachment_that_fails_at_any_step_of_the_engine_is_undone_as_linux_does() {
    for (op, unwound) in [
        (Op::Prepare, &[][..]),
        (Op::GetLoadedRscTable, &["unprepare"]),
        (Op::MapDevmem, &["unprepare"]),
        (Op::HandleRsc, &["unprepare"]),
        (Op::Attach, &["b unprepare", "a unprepare", "unprepare"]),
    ] {
        let mut bench = Bench::new(running_engine(&table()), None);
        let (went_well, calls) = bench.with(Some(op), |machine| machine.attach_running().is_ok());
        assert!(!went_well);
        assert_eq!(calls, until(&ATTACH, op.name(), unwound), "{op:?}");
        assert_eq!(bench.machine.state(), CoreState::Detached);
        assert!(bench.machine.holders().is_empty());
        bench.machine.attach_running().unwrap();
        bench.expect(CoreState::Attached, &ATTACH);
    }
}

#[test]
fn an_attachment_that_fails_at_a_subdevice_is_undone_as_linux_does() {
    let unprepared = ["b unprepare", "a unprepare", "unprepare"];
    for (fails, unwound) in [
        (("a", "prepare"), &["unprepare"][..]),
        (("b", "prepare"), &["a unprepare", "unprepare"]),
        // Linux stops it, though detaching would be kinder.
        (("a", "start"), &[&["stop"][..], &unprepared].concat()),
        (
            ("b", "start"),
            &[&["a stop crashed", "stop"][..], &unprepared].concat(),
        ),
    ] {
        let mut bench = Bench::new(running_engine(&table()), Some(fails));
        assert!(bench.machine.attach_running().is_err());
        let last = format!("{} {}", fails.0, fails.1);
        assert_eq!(bench.journal.take(), until(&ATTACH, &last, unwound));
        assert_eq!(bench.machine.state(), CoreState::Detached);
    }
}

const DETACH: [&str; 6] = [
    "b stop",
    "a stop",
    "detach",
    "b unprepare",
    "a unprepare",
    "unprepare",
];

#[test]
fn a_detachment_is_in_linux_s_order() {
    let mut bench = Bench::attached();
    bench.machine.detach_running().unwrap();
    bench.expect(CoreState::Detached, &DETACH);
    bench.machine.attach_running().unwrap();
    bench.expect(CoreState::Attached, &ATTACH);
}

#[test]
fn a_detachment_that_fails_changes_no_state_and_is_tried_again() {
    let mut bench = Bench::attached();
    let (went_well, calls) =
        bench.with(Some(Op::Detach), |machine| machine.detach_running().is_ok());
    assert!(!went_well);
    assert_eq!(calls, ["b stop", "a stop", "detach failed"]);
    assert_eq!(bench.machine.state(), CoreState::Attached);
    bench.machine.detach_running().unwrap();
    bench.expect(CoreState::Detached, &DETACH[2..]);
}

#[test]
fn an_attached_core_is_stopped_like_a_booted_one() {
    let mut bench = Bench::attached();
    bench.machine.stop().unwrap();
    bench.expect(CoreState::Offline, &STOP);
}

#[test]
fn a_recovery_by_attaching_is_a_detachment_and_an_attachment_without_a_dump() {
    let mut bench = Bench::attached();
    bench
        .machine
        .report_crash(1, crash("it comes back by itself"));
    bench.expect(CoreState::Crashed, &DETACH[..5]);
    bench.machine.recover().unwrap();
    let calls = bench.journal.take();
    assert_eq!(calls[0], DETACH[5]);
    assert_eq!(calls[1..], ATTACH);
    assert_eq!(bench.machine.state(), CoreState::Attached);
}

#[test]
fn a_recovery_by_attaching_that_fails_leaves_a_detached_core_or_a_crashed_one() {
    let mut bench = Bench::attached();
    let (_, calls) = bench.with(Some(Op::Detach), |machine| {
        machine.report_crash(1, crash("held on to"));
        true
    });
    assert_eq!(calls, ["b stop", "a stop", "detach failed"]);
    assert_eq!(bench.machine.state(), CoreState::Crashed);
    let (went_well, calls) = bench.with(Some(Op::Attach), |machine| machine.recover().is_ok());
    assert!(!went_well);
    let mut expected: Vec<_> = DETACH[2..].iter().map(|step| (*step).to_owned()).collect();
    expected.extend(until(
        &ATTACH,
        "attach",
        &["b unprepare", "a unprepare", "unprepare"],
    ));
    assert_eq!(calls, expected);
    assert_eq!(bench.machine.state(), CoreState::Detached);
    bench.machine.attach_running().unwrap();
    bench.expect(CoreState::Attached, &ATTACH);
}

#[test]
fn an_attached_core_whose_engine_does_not_attach_again_is_dumped_and_booted() {
    let mut engine = running_engine(&table());
    engine.set_abilities(rprocd::engine::Abilities {
        attaches: true,
        ..rprocd::engine::Abilities::BOOTS
    });
    let mut bench = Bench::new(engine, None);
    bench.machine.start(Holder::Operator).unwrap();
    bench.journal.take();
    bench.machine.report_crash(1, crash("gone for good"));
    bench.expect(CoreState::Crashed, &CRASH);
    bench.machine.recover().unwrap();
    let calls = bench.journal.take();
    assert_eq!(calls[0], "unprepare");
    // Linux loads with the table that it attached to; we have an image, and its table.
    assert_eq!(calls[1..], BOOT);
    assert_eq!(bench.machine.state(), CoreState::Running);
}

#[test]
fn a_core_that_is_deleted_is_stopped_and_an_attached_one_let_go_of() {
    let mut bench = Bench::booted();
    bench.machine.delete();
    bench.expect(CoreState::Deleted, &STOP);
    bench.machine.report_crash(1, crash("too late"));
    bench.expect(CoreState::Deleted, &[]);
    let mut bench = Bench::attached();
    bench.machine.delete();
    bench.expect(CoreState::Deleted, &DETACH);
}

#[test]
fn a_core_is_suspended_and_resumed_with_everything_up() {
    let mut bench = Bench::booted();
    bench.machine.suspend().unwrap();
    bench.expect(CoreState::Suspended, &["suspend"]);
    bench.machine.resume().unwrap();
    bench.expect(CoreState::Running, &["resume"]);
    let (went_well, _) = bench.with(Some(Op::Suspend), |machine| machine.suspend().is_ok());
    assert!(!went_well);
    assert_eq!(bench.machine.state(), CoreState::Running);
    bench.machine.suspend().unwrap();
    let (went_well, _) = bench.with(Some(Op::Resume), |machine| machine.resume().is_ok());
    assert!(!went_well);
    assert_eq!(bench.machine.state(), CoreState::Suspended);
    bench.journal.take();
    bench.machine.stop().unwrap();
    bench.expect(CoreState::Offline, &STOP);
}
