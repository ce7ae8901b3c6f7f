//! Every verb in every state, as the table says.

use std::time::Duration;

use rprocd::engine::scripted::Journal;
use rprocd::rproc::{
    Admission, CoreState, Coredumps, Driver, Holder, Machine, Policies, RecoveryPolicy,
    RequestError, Verb, admit,
};

use super::{crash, engine, image, machine, running_engine, table, without_recovery};

/// A core in that state.
fn in_state(state: CoreState) -> (Machine, Journal) {
    let engine = match state {
        CoreState::Attached | CoreState::Detached => running_engine(&table()),
        _ => engine(),
    };
    let (mut machine, journal) = machine(engine, without_recovery(), Coredumps::disabled());
    match state {
        CoreState::Offline | CoreState::Detached => {}
        CoreState::Running | CoreState::Attached => machine.start(Holder::Operator).unwrap(),
        CoreState::Suspended => {
            machine.start(Holder::Operator).unwrap();
            machine.suspend().unwrap();
        }
        CoreState::Crashed => {
            machine.start(Holder::Operator).unwrap();
            machine.report_crash(1, crash("on purpose"));
        }
        CoreState::Deleted => machine.delete(),
    }
    assert_eq!(machine.state(), state);
    journal.take();
    (machine, journal)
}

/// What the verb answers; the two without an answer say what they did by what they called.
fn ask(machine: &mut Machine, verb: Verb) -> Option<Result<(), RequestError>> {
    Some(match verb {
        Verb::Start => machine.start(Holder::Operator),
        Verb::Stop => machine.stop(),
        Verb::Attach => machine.attach_running(),
        Verb::Detach => machine.detach_running(),
        Verb::Suspend => machine.suspend(),
        Verb::Resume => machine.resume(),
        Verb::Recover => machine.recover(),
        Verb::SetFirmware => machine.set_firmware(image(&table())),
        Verb::ReportCrash => {
            machine.report_crash(1, crash("reported"));
            return None;
        }
        Verb::Delete => {
            machine.delete();
            return None;
        }
    })
}

#[test]
fn each_verb_in_each_state_is_answered_as_the_table_says() {
    for state in CoreState::ALL {
        for verb in Verb::ALL {
            let (mut machine, journal) = in_state(state);
            let expected = admit(state, verb);
            let answer = ask(&mut machine, verb);
            let calls = journal.take();
            let what = format!("{verb} in {state}: {answer:?}, {calls:?}");
            match (expected, &answer) {
                (Admission::Accept, Some(Ok(())) | None) => {}
                (Admission::AlreadySo, Some(Err(RequestError::AlreadySo { .. })) | None)
                | (Admission::Refuse(_), Some(Err(RequestError::Refused { .. })) | None) => {
                    assert!(calls.is_empty(), "{what}");
                    assert_eq!(machine.state(), state, "{what}");
                }
                _ => panic!("{what}, where the table says {expected:?}"),
            }
            if expected == Admission::Accept {
                assert!(
                    machine.state() != state || !calls.is_empty() || verb == Verb::SetFirmware,
                    "{what}"
                );
            }
        }
    }
}

#[test]
fn a_refusal_names_the_core_the_verb_the_state_and_what_to_do() {
    let (mut machine, _) = in_state(CoreState::Running);
    assert_eq!(
        machine
            .set_firmware(image(&table()))
            .unwrap_err()
            .to_string(),
        "cannot change the firmware of core core, which is running: its firmware is in use; stop \
         it first"
    );
    assert_eq!(
        machine.start(Holder::Operator).unwrap_err().to_string(),
        "core core is running already"
    );
}

#[test]
fn a_core_without_holders_is_offline_or_detached_and_one_with_holders_is_neither() {
    for state in CoreState::ALL {
        let (machine, _) = in_state(state);
        let up = !matches!(
            state,
            CoreState::Offline | CoreState::Detached | CoreState::Deleted
        );
        assert_eq!(!machine.holders().is_empty(), up, "{state}");
    }
}

#[test]
fn a_core_runs_until_its_last_holder_lets_go() {
    let (mut machine, journal) = in_state(CoreState::Running);
    let other = Holder::Connection { number: 7 };
    machine.start(other.clone()).unwrap();
    assert_eq!(machine.holders(), ["operator", "control connection 7"]);
    assert!(journal.take().is_empty());
    machine.release(&Holder::Operator).unwrap();
    assert_eq!(machine.state(), CoreState::Running);
    machine.release(&Holder::Operator).unwrap();
    assert_eq!(machine.state(), CoreState::Running);
    machine.release(&other).unwrap();
    assert_eq!(machine.state(), CoreState::Offline);
    machine.release(&other).unwrap();
}

#[test]
fn a_stop_ends_all_holds() {
    let (mut machine, _) = in_state(CoreState::Running);
    machine.start(Holder::Guest { vdev: 0 }).unwrap();
    machine.stop().unwrap();
    assert!(machine.holders().is_empty());
    machine.release(&Holder::Operator).unwrap();
    assert_eq!(machine.state(), CoreState::Offline);
}

#[test]
fn an_attached_core_is_detached_when_its_last_holder_lets_go() {
    let (mut machine, _) = in_state(CoreState::Attached);
    machine.release(&Holder::Operator).unwrap();
    assert_eq!(machine.state(), CoreState::Detached);
}

#[test]
fn the_last_holder_of_a_crashed_core_stops_it() {
    let (mut machine, _) = in_state(CoreState::Crashed);
    machine.release(&Holder::Operator).unwrap();
    assert_eq!(machine.state(), CoreState::Offline);
}

#[test]
fn a_guest_that_comes_back_does_not_start_a_core_that_is_held() {
    let policies = Policies {
        recovery: RecoveryPolicy {
            minimum_run_time: Duration::ZERO,
            hold_after: 2,
            ..RecoveryPolicy::default()
        },
        ..Policies::default()
    };
    let guest = Holder::Guest { vdev: 0 };
    let (mut machine, _) = machine(engine(), policies, Coredumps::disabled());
    machine.start(guest.clone()).unwrap();
    machine.report_crash(1, crash("first"));
    machine.drive(&Driver::PATIENT);
    machine.report_crash(2, crash("second"));
    machine.drive(&Driver::PATIENT);
    assert!(machine.status().next.unwrap().contains("held after 2"));
    machine.start(guest.clone()).unwrap();
    assert_eq!(machine.state(), CoreState::Crashed);
    // Gone, and back: it is started, and what it did before is not forgotten.
    machine.release(&guest).unwrap();
    machine.start(guest.clone()).unwrap();
    assert_eq!(machine.state(), CoreState::Running);
    machine.report_crash(3, crash("third"));
    machine.drive(&Driver::PATIENT);
    assert!(machine.status().next.unwrap().contains("held after 2"));
    // An operator means it.
    machine.start(Holder::Operator).unwrap();
    assert_eq!(machine.holders(), ["operator", "guest of vdev 0"]);
    machine.report_crash(4, crash("fourth"));
    machine.drive(&Driver::PATIENT);
    assert_eq!(machine.state(), CoreState::Running);
}

#[test]
fn recovery_can_be_switched_while_a_core_is_crashed() {
    let (mut machine, _) = in_state(CoreState::Crashed);
    assert!(!machine.status().recovery);
    machine.set_recovery(true).unwrap();
    assert_eq!(machine.state(), CoreState::Running);
    machine.set_recovery(false).unwrap();
    machine.report_crash(2, crash("again"));
    machine.drive(&Driver::PATIENT);
    assert_eq!(machine.state(), CoreState::Crashed);
    assert!(machine.status().next.unwrap().contains("disabled"));
}

#[test]
fn a_crash_of_an_incarnation_that_is_over_is_not_believed() {
    let (mut machine, journal) = in_state(CoreState::Running);
    machine.stop().unwrap();
    machine.start(Holder::Operator).unwrap();
    journal.take();
    machine.report_crash(1, crash("of the first"));
    assert_eq!(machine.state(), CoreState::Running);
    assert_eq!(machine.status().crashes, 0);
    machine.report_crash(2, crash("of the second"));
    assert_eq!(machine.status().crashes, 1);
}

#[test]
fn every_step_of_a_change_is_timed() {
    let (mut machine, _) = in_state(CoreState::Crashed);
    machine.recover().unwrap();
    machine.stop().unwrap();
    let names: Vec<_> = machine.timelines().iter().map(|line| line.what).collect();
    assert_eq!(names, ["boot", "recovery", "stop"]);
    let steps = |index: usize| -> Vec<_> {
        let line = &machine.timelines()[index];
        line.steps.iter().map(|(step, _)| *step).collect()
    };
    assert_eq!(
        steps(0),
        [
            "sanity check",
            "prepare",
            "resources",
            "load",
            "prepare subdevices",
            "start",
            "start vdevs"
        ]
    );
    assert_eq!(
        steps(1),
        [
            "stop vdevs",
            "stop",
            "coredump",
            "wait",
            "load",
            "prepare subdevices",
            "start",
            "start vdevs"
        ]
    );
    assert_eq!(steps(2), ["stop vdevs", "stop", "unprepare"]);
}

#[test]
fn a_detached_core_is_not_attached_if_it_is_not_what_guests_were_told() {
    let other = super::Table::new()
        .carveout(0x8000_0000, 0x2000, "image")
        .vdev(7, 0, &[(super::ANY, 16, 8); 2], &[]);
    let (mut machine, journal) = machine(
        running_engine(&other),
        without_recovery(),
        Coredumps::disabled(),
    );
    let error = machine.attach_running().unwrap_err();
    let text = rprocd::report::sentence(&error);
    assert!(
        text.contains("vdev 0") && text.contains("features 0x0") && text.contains("features 0x1"),
        "{text}"
    );
    assert_eq!(machine.state(), CoreState::Detached);
    assert_eq!(
        journal.take(),
        ["prepare", "get_loaded_rsc_table", "unprepare"]
    );
}

#[test]
fn an_attached_table_is_written_to_and_put_back_as_it_was() {
    use rprocd::engine::Engine;
    use rprocd::memory::DeviceAddress;
    use vm_memory::Bytes;

    let engine = running_engine(&table());
    let ram = engine.ram().clone();
    let bytes = table().build();
    let live = || {
        let place = DeviceAddress(u64::from(super::TABLE));
        let slice = ram.slice(place, bytes.len() as u64).unwrap();
        let mut now = vec![0; bytes.len()];
        slice.read_slice(&mut now, 0).unwrap();
        now
    };
    let (mut machine, _) = machine(engine, without_recovery(), Coredumps::disabled());
    machine.attach_running().unwrap();
    assert_ne!(live(), bytes, "notify ids are there, for instance");
    machine.detach_running().unwrap();
    assert_eq!(live(), bytes);
}
