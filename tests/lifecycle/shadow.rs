//! Random requests, held against a model that fits on a page.

use std::collections::BTreeSet;

use proptest::prelude::*;
use rprocd::engine::Abilities;
use rprocd::engine::scripted::Op;
use rprocd::rproc::{Admission, CoreState, Coredumps, Driver, Holder, Verb, admit};

use super::{crash, engine, image, machine, running_engine, table, without_recovery};

#[derive(Clone, Debug)]
enum Request {
    Start(Holder),
    Release(Holder),
    Stop,
    Attach,
    Detach,
    Suspend,
    Resume,
    Recover,
    SetRecovery(bool),
    SetFirmware,
    Crash,
    StaleCrash,
    PowerOff,
}

fn holders() -> impl Strategy<Value = Holder> {
    prop_oneof![
        Just(Holder::Operator),
        Just(Holder::Guest { vdev: 0 }),
        (0..2u64).prop_map(|number| Holder::Connection { number }),
    ]
}

fn requests() -> impl Strategy<Value = Request> {
    prop_oneof![
        3 => holders().prop_map(Request::Start),
        3 => holders().prop_map(Request::Release),
        1 => Just(Request::Stop),
        1 => Just(Request::Attach),
        1 => Just(Request::Detach),
        1 => Just(Request::Suspend),
        1 => Just(Request::Resume),
        1 => Just(Request::Recover),
        1 => any::<bool>().prop_map(Request::SetRecovery),
        1 => Just(Request::SetFirmware),
        2 => Just(Request::Crash),
        1 => Just(Request::StaleCrash),
        1 => Just(Request::PowerOff),
    ]
}

/// Which operation fails the next time it is called, if any.
fn failures() -> impl Strategy<Value = Option<Op>> {
    prop_oneof![
        3 => Just(None),
        1 => prop::sample::select(vec![
            Op::SanityCheck, Op::Prepare, Op::ParseFw, Op::HandleRsc, Op::Load, Op::Start,
            Op::Stop, Op::Attach, Op::Detach, Op::GetLoadedRscTable, Op::Suspend, Op::Resume,
        ])
        .prop_map(Some),
    ]
}

/// What the core should be.
#[derive(Clone, Debug)]
struct Shadow {
    state: CoreState,
    holders: BTreeSet<Holder>,
    /// Crashed, and the engine could not be stopped.
    stuck: bool,
    /// The incarnation that is there was attached.
    attached: bool,
    attaches_on_recovery: bool,
    incarnations: u32,
    crashes: u32,
}

impl Shadow {
    fn down(&mut self, state: CoreState) {
        self.state = state;
        self.holders.clear();
        self.stuck = false;
    }

    /// Fails if `failing` is one of the operations that this change needs.
    fn boot(&mut self, failing: Option<Op>, whole: bool) {
        let needed: &[Op] = if whole {
            &[
                Op::SanityCheck,
                Op::Prepare,
                Op::ParseFw,
                Op::HandleRsc,
                Op::Load,
                Op::Start,
            ]
        } else {
            &[Op::Load, Op::Start]
        };
        if failing.is_some_and(|op| needed.contains(&op)) {
            self.down(CoreState::Offline);
        } else {
            self.state = CoreState::Running;
            self.attached = false;
            self.stuck = false;
            self.incarnations += 1;
        }
    }

    fn attach(&mut self, failing: Option<Op>) {
        let needed = [
            Op::Prepare,
            Op::GetLoadedRscTable,
            Op::HandleRsc,
            Op::Attach,
        ];
        if failing.is_some_and(|op| needed.contains(&op)) {
            self.down(CoreState::Detached);
        } else {
            self.state = CoreState::Attached;
            self.attached = true;
            self.stuck = false;
            self.incarnations += 1;
        }
    }

    fn again(&self) -> bool {
        self.attached && self.attaches_on_recovery
    }

    /// How a crashed core's engine is let go of.
    fn end(&self) -> Op {
        if self.again() { Op::Detach } else { Op::Stop }
    }

    fn restart(&mut self, failing: Option<Op>) {
        if self.stuck && failing == Some(self.end()) {
            return;
        }
        if self.again() {
            self.attach(failing);
        } else {
            self.boot(failing, self.attached);
        }
    }

    fn stop(&mut self, failing: Option<Op>) {
        let needed = match (self.state, self.stuck) {
            (CoreState::Crashed, false) => None,
            (CoreState::Crashed, true) => Some(self.end()),
            _ => Some(Op::Stop),
        };
        if needed.is_none() || failing != needed {
            self.down(CoreState::Offline);
        }
    }

    fn detach(&mut self, failing: Option<Op>) {
        if failing != Some(Op::Detach) {
            self.down(CoreState::Detached);
        }
    }

    fn accepts(&self, verb: Verb) -> bool {
        admit(self.state, verb) == Admission::Accept
    }

    fn apply(&mut self, request: &Request, failing: Option<Op>) {
        match request {
            Request::Start(holder) => {
                match self.state {
                    CoreState::Running | CoreState::Attached => {}
                    CoreState::Offline => self.boot(failing, true),
                    CoreState::Detached => self.attach(failing),
                    CoreState::Crashed if matches!(holder, Holder::Guest { .. }) => {
                        self.holders.insert(holder.clone());
                        return;
                    }
                    CoreState::Crashed if self.stuck && failing == Some(self.end()) => return,
                    CoreState::Crashed => self.boot(failing, true),
                    CoreState::Suspended | CoreState::Deleted => return,
                }
                if matches!(self.state, CoreState::Running | CoreState::Attached) {
                    self.holders.insert(holder.clone());
                }
            }
            Request::Release(holder) => {
                let last = self.holders.remove(holder) && self.holders.is_empty();
                match (last, self.state) {
                    (false, _) => {}
                    (true, CoreState::Attached) => self.detach(failing),
                    (true, _) => self.stop(failing),
                }
            }
            Request::Stop if self.accepts(Verb::Stop) => self.stop(failing),
            Request::Attach if self.accepts(Verb::Attach) => {
                self.attach(failing);
                if self.state == CoreState::Attached {
                    self.holders.insert(Holder::Operator);
                }
            }
            Request::Detach if self.accepts(Verb::Detach) => self.detach(failing),
            Request::Suspend if self.accepts(Verb::Suspend) && failing != Some(Op::Suspend) => {
                self.state = CoreState::Suspended;
            }
            Request::Resume if self.accepts(Verb::Resume) && failing != Some(Op::Resume) => {
                self.state = CoreState::Running;
            }
            Request::Recover if self.accepts(Verb::Recover) => self.restart(failing),
            Request::SetRecovery(true) if self.state == CoreState::Crashed => {
                self.restart(failing);
            }
            Request::Crash if self.accepts(Verb::ReportCrash) => {
                self.crashes += 1;
                self.stuck = failing == Some(self.end());
                self.state = CoreState::Crashed;
            }
            Request::PowerOff if matches!(self.state, CoreState::Running | CoreState::Attached) => {
                self.down(CoreState::Offline);
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn whatever_is_asked_and_fails_the_core_is_what_the_model_says(
        already in any::<bool>(),
        attaches_on_recovery in any::<bool>(),
        sequence in prop::collection::vec((requests(), failures()), 1..40),
    ) {
        let mut engine = if already { running_engine(&table()) } else { engine() };
        engine.set_abilities(Abilities {
            attaches: true,
            attaches_on_recovery,
            ..Abilities::BOOTS
        });
        let off = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let switch = off.clone();
        engine.set_script(move |_, _| {
            if switch.swap(false, std::sync::atomic::Ordering::SeqCst) {
                rprocd::engine::RunEnd::PoweredOff
            } else {
                rprocd::engine::RunEnd::Waiting { until: None }
            }
        });
        let (mut machine, journal) = machine(engine, without_recovery(), Coredumps::disabled());
        let mut shadow = Shadow {
            state: if already { CoreState::Detached } else { CoreState::Offline },
            holders: BTreeSet::new(),
            stuck: false,
            attached: false,
            attaches_on_recovery,
            incarnations: 0,
            crashes: 0,
        };
        for (request, failing) in sequence {
            if let Some(op) = failing {
                journal.fail_next(op);
            }
            match &request {
                Request::Start(holder) => drop(machine.start(holder.clone())),
                Request::Release(holder) => drop(machine.release(holder)),
                Request::Stop => drop(machine.stop()),
                Request::Attach => drop(machine.attach_running()),
                Request::Detach => drop(machine.detach_running()),
                Request::Suspend => drop(machine.suspend()),
                Request::Resume => drop(machine.resume()),
                Request::Recover => drop(machine.recover()),
                Request::SetRecovery(enabled) => {
                    drop(machine.set_recovery(*enabled));
                    journal.forgive();
                    drop(machine.set_recovery(false));
                }
                Request::SetFirmware => drop(machine.set_firmware(image(&table()))),
                Request::Crash => machine.report_crash(machine.status().incarnation, crash("now")),
                Request::StaleCrash => {
                    machine.report_crash(machine.status().incarnation.wrapping_sub(1), crash("old"));
                }
                Request::PowerOff => {
                    off.store(true, std::sync::atomic::Ordering::SeqCst);
                    machine.drive(&Driver::PATIENT);
                    off.store(false, std::sync::atomic::Ordering::SeqCst);
                }
            }
            journal.forgive();
            shadow.apply(&request, failing);

            let status = machine.status();
            prop_assert_eq!(machine.state(), shadow.state, "{:?} {:?}", request, failing);
            let expected: Vec<_> = shadow.holders.iter().map(Holder::to_string).collect();
            prop_assert_eq!(machine.holders(), expected);
            prop_assert_eq!(status.incarnation, shadow.incarnations);
            prop_assert_eq!(status.crashes, shadow.crashes);
        }
        machine.delete();
        prop_assert_eq!(machine.state(), CoreState::Deleted);
    }
}
