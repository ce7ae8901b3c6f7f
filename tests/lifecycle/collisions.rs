//! Crashes that are reported, from another thread, in the middle of something else: one change
//! wins, and the core is in a state that it can leave.

use std::sync::mpsc;
use std::time::Duration;

use rprocd::engine::Abilities;
use rprocd::engine::scripted::{Journal, Op};
use rprocd::rproc::{Core, Holder};

use super::{
    core, core_with_dumps, crash, dumps, engine, machine, running_engine, table, wait_for,
    without_recovery,
};

const PATIENCE: Duration = Duration::from_secs(120);

/// Reports, on a thread of its own that has ended when this returns, a crash of each incarnation
/// that there may be.
fn report(journal: &Journal) {
    let journal = journal.clone();
    let reports = std::thread::spawn(move || {
        for incarnation in 0..4 {
            journal.crash_of(incarnation, crash("in the middle of it"));
        }
    });
    reports.join().unwrap();
}

/// Fails instead of waiting for ever.
fn in_time(what: impl FnOnce() + Send + 'static) {
    let (done, wait) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        what();
        let _ = done.send(());
    });
    let ended = wait.recv_timeout(PATIENCE);
    assert!(ended != Err(mpsc::RecvTimeoutError::Timeout), "a deadlock");
    thread.join().unwrap();
}

/// What an engine was asked agrees with itself: up and down take turns, and a dump is of one that
/// is down.
fn is_consistent(calls: &[String], mut up: bool) {
    for call in calls {
        match call.as_str() {
            "start" | "attach" => assert!(!std::mem::replace(&mut up, true), "{calls:?}"),
            "stop" | "detach" => assert!(std::mem::replace(&mut up, false), "{calls:?}"),
            "coredump" => assert!(!up, "{calls:?}"),
            _ => {}
        }
    }
}

/// The state when all that was reported has been dealt with.
fn settled(core: &Core) -> (String, u32) {
    let status = core.status();
    (status.state, status.crashes)
}

#[test]
fn a_crash_in_the_middle_of_a_start_ends_what_was_started_and_counts_once() {
    for op in [
        Op::SanityCheck,
        Op::Prepare,
        Op::ParseFw,
        Op::Load,
        Op::Start,
    ] {
        for fails in [false, true] {
            in_time(move || {
                let (core, journal) = core(engine(), without_recovery());
                let reports = journal.clone();
                journal.at_next(op, move || report(&reports));
                if fails {
                    journal.fail_next(op);
                }
                assert_eq!(core.start(Holder::Operator).is_ok(), !fails);
                let expected = if fails {
                    ("offline", 0)
                } else {
                    ("crashed", 1)
                };
                let (state, crashes) = settled(&core);
                assert_eq!((state.as_str(), crashes), expected, "{op:?}");
                is_consistent(&journal.take(), false);
                core.start(Holder::Operator).unwrap();
                assert_eq!(core.status().state, "running");
            });
        }
    }
}

#[test]
fn a_crash_in_the_middle_of_a_stop_is_not_news_unless_the_stop_fails() {
    for op in [Op::Stop, Op::Unprepare] {
        in_time(move || {
            let (core, journal) = core(engine(), without_recovery());
            core.start(Holder::Operator).unwrap();
            let reports = journal.clone();
            journal.at_next(op, move || report(&reports));
            core.stop().unwrap();
            assert_eq!(settled(&core), ("offline".to_owned(), 0), "{op:?}");
            is_consistent(&journal.take(), false);
            core.start(Holder::Operator).unwrap();
        });
    }
    in_time(|| {
        let (core, journal) = core(engine(), without_recovery());
        core.start(Holder::Operator).unwrap();
        let reports = journal.clone();
        journal.at_next(Op::Stop, move || report(&reports));
        journal.fail_next(Op::Stop);
        assert!(core.stop().is_err());
        assert_eq!(settled(&core), ("crashed".to_owned(), 1));
        is_consistent(&journal.take(), false);
        core.start(Holder::Operator).unwrap();
    });
}

#[test]
fn a_crash_in_the_middle_of_an_attachment_or_a_detachment_counts_once_or_not_at_all() {
    for op in [Op::Prepare, Op::GetLoadedRscTable, Op::Attach, Op::Detach] {
        in_time(move || {
            let mut engine = running_engine(&table());
            engine.set_abilities(Abilities {
                attaches: true,
                ..Abilities::BOOTS
            });
            let (core, journal) = core(engine, without_recovery());
            let reports = journal.clone();
            journal.at_next(op, move || report(&reports));
            core.attach().unwrap();
            let expected = if op == Op::Detach {
                core.detach().unwrap();
                ("detached", 0)
            } else {
                ("crashed", 1)
            };
            let (state, crashes) = settled(&core);
            assert_eq!((state.as_str(), crashes), expected, "{op:?}");
            is_consistent(&journal.take(), false);
            core.start(Holder::Operator).unwrap();
        });
    }
}

#[test]
fn a_crash_in_the_middle_of_a_dump_or_a_recovery_counts_once() {
    in_time(|| {
        let folder = tempfile::tempdir().unwrap();
        let (mut machine, journal) = machine(engine(), without_recovery(), dumps(folder.path()));
        machine.start(Holder::Operator).unwrap();
        journal.take();
        let (reports, of_dump) = mpsc::channel();
        journal.at_next(Op::Coredump, move || reports.send(1).unwrap());
        machine.report_crash(1, crash("first"));
        // What came meanwhile is looked at when the dump is there.
        for incarnation in of_dump {
            machine.report_crash(incarnation, crash("second"));
        }
        assert_eq!(machine.status().crashes, 1);
        assert!(machine.status().last_crash.unwrap().contains("first"));
        is_consistent(&journal.take(), true);
    });
    in_time(|| {
        let folder = tempfile::tempdir().unwrap();
        let dumps = dumps(folder.path());
        let (core, journal) = core_with_dumps(engine(), without_recovery(), dumps);
        core.start(Holder::Operator).unwrap();
        let reports = journal.clone();
        journal.at_next(Op::Coredump, move || report(&reports));
        journal.crash(crash("first"));
        wait_for(&core, "crashed");
        let status = core.status();
        assert_eq!(status.crashes, 1);
        assert!(status.last_crash.unwrap().contains("first"));
        assert!(status.last_dump.unwrap().starts_with("coredump "));
        is_consistent(&journal.take(), false);
        core.start(Holder::Operator).unwrap();
    });
    for op in [Op::Load, Op::Start] {
        in_time(move || {
            let (core, journal) = core(engine(), without_recovery());
            core.start(Holder::Operator).unwrap();
            journal.crash(crash("first"));
            wait_for(&core, "crashed");
            let reports = journal.clone();
            // Of the first, which is over, and of the second, which begins.
            journal.at_next(op, move || report(&reports));
            core.recover().unwrap();
            assert_eq!(settled(&core), ("crashed".to_owned(), 2), "{op:?}");
            is_consistent(&journal.take(), false);
        });
    }
}

#[test]
fn a_late_crash_of_a_start_that_failed_is_not_one_of_the_next_start() {
    let (mut machine, journal) =
        machine(engine(), without_recovery(), super::Coredumps::disabled());
    machine.start(Holder::Operator).unwrap();
    machine.stop().unwrap();
    machine.add_subdevice(Box::new(FailsOnce(true)));
    assert!(machine.start(Holder::Operator).is_err());
    machine.start(Holder::Operator).unwrap();
    // The engine had started, as number 2, when the subdevice refused.
    machine.report_crash(2, crash("of the start that failed"));
    assert_eq!(machine.status().crashes, 0);
    is_consistent(&journal.take(), false);
}

struct FailsOnce(bool);

impl rprocd::rproc::Subdevice for FailsOnce {
    fn name(&self) -> &str {
        "fails once"
    }

    fn start(&mut self, _plan: &rprocd::rproc::BootPlan) -> Result<(), rprocd::rproc::Refusal> {
        if std::mem::take(&mut self.0) {
            return Err("not yet".into());
        }
        Ok(())
    }
}
