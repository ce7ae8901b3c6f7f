//! Crash and recovery: evidence, a decision, the next incarnation.

use std::time::{Duration, Instant};

use log::{error, info};

use super::{End, Incarnation, Machine, Next, Origin, RequestError, State};
use crate::engine::{Crash, EngineError};
use crate::report::sentence;
use crate::rproc::admission::Verb;
use crate::rproc::boot::Clean;
use crate::rproc::events::What;
use crate::rproc::recovery::Decision;
use crate::rproc::timeline::Stopwatch;

impl Machine {
    /// The incarnation has died: evidence, then a decision.
    pub(super) fn crashed(&mut self, crash: Crash) {
        self.crashes += 1;
        error!(
            "{}: crash #{} in incarnation {}: type {}: {}",
            self.name, self.crashes, self.incarnations, crash.kind, crash.detail
        );
        let mut stopwatch = self.stopwatch("recovery");
        self.crashes_by_reason[crash.kind as usize] += 1;
        self.tell(What::Crash, None, |_| {
            format!("{}: {}", crash.kind, crash.detail)
        });
        self.last_crash = Some((self.incarnations, crash));
        let stopped = self.end_after_crash(&mut stopwatch);
        let (State::Running(incarnation)
        | State::Suspended(incarnation)
        | State::Attached(incarnation)) = std::mem::replace(&mut self.state, State::Offline)
        else {
            return;
        };
        let next = match stopped {
            Ok(()) => {
                let now = Instant::now();
                let ran_for = now.saturating_duration_since(incarnation.since);
                match self.history.crashed(&self.policies.recovery, now, ran_for) {
                    Decision::RestartAfter(wait) => Next::Restart(now + wait),
                    Decision::Hold { crashes } => Next::Held { crashes },
                    Decision::Stay => Next::Disabled,
                }
            }
            Err(cause) => {
                error!("{}: cannot be stopped after the crash: {cause}", self.name);
                Next::Stuck
            }
        };
        self.enter(State::Crashed(incarnation, next, stopwatch));
        if let Some(next) = self.next_in_words() {
            info!("{}: {next}", self.name);
        }
    }

    /// Ends the incarnation that died, and takes the evidence. A core that comes back by itself is
    /// let go of and not dumped, as in Linux: its memory is its own again.
    ///
    /// # Errors
    /// What the engine says; there is no evidence yet.
    pub(super) fn end_after_crash(&mut self, stopwatch: &mut Stopwatch) -> Result<(), EngineError> {
        if self.is_attached_again() {
            return self.take_down(false, End::Detach, stopwatch);
        }
        self.take_down(true, End::Stop, stopwatch)?;
        if let (Some(Incarnation { plan, origin, .. }), Some((number, crash))) =
            (self.state.incarnation(), &self.last_crash)
        {
            let booted = matches!(origin, Origin::Booted);
            let dumped = self.coredumps.save(
                &self.name,
                &mut *self.engine,
                plan,
                booted.then_some(&self.firmware.snapshot),
                (*number, crash),
                &self.pulse,
            );
            self.last_dump = dumped.map(|outcome| outcome.to_string());
            if let Some(dump) = &self.last_dump {
                self.tell(What::Dump, None, |_| dump.clone());
            }
            stopwatch.lap("coredump");
        }
        Ok(())
    }

    /// Does the incarnation that is there come back by itself after a crash?
    pub(super) fn is_attached_again(&self) -> bool {
        self.engine.abilities().attaches_on_recovery
            && self
                .state
                .incarnation()
                .is_some_and(|incarnation| matches!(incarnation.origin, Origin::Attached { .. }))
    }

    /// What comes after a crash, while the core is crashed.
    pub(super) fn next_in_words(&self) -> Option<String> {
        let State::Crashed(_, next, _) = &self.state else {
            return None;
        };
        Some(match next {
            Next::Restart(at) => {
                let left = at.saturating_duration_since(Instant::now());
                if left == Duration::ZERO {
                    "restarting".to_owned()
                } else {
                    format!("restart in {:.1} s", left.as_secs_f64())
                }
            }
            Next::Held { crashes } => {
                let window = self.policies.recovery.hold_window.as_secs();
                format!(
                    "held after {crashes} crashes within {window} s; start it when it is mended"
                )
            }
            Next::Disabled => "recovery is disabled; start it when it is mended".to_owned(),
            Next::Stuck => "the engine could not stop it; start or stop it to try again".to_owned(),
        })
    }

    /// Starts a crashed core again when its time has come.
    pub(super) fn recover_if_due(&mut self) {
        let State::Crashed(_, Next::Restart(at), _) = self.state else {
            return;
        };
        if at > Instant::now() {
            return;
        }
        if let Err(cause) = self.restart() {
            error!(
                "{}: recovery failed, the core is {}: {}",
                self.name,
                self.state(),
                sentence(&cause)
            );
        }
    }

    /// From crashed to the next incarnation: booted with the plan that there is, or attached
    /// again. Offline, or detached, if that fails.
    pub(super) fn restart(&mut self) -> Result<(), RequestError> {
        let again = self.is_attached_again();
        if matches!(self.state, State::Crashed(_, Next::Stuck, _)) {
            self.end_after_crash(&mut self.stopwatch("stop"))
                .map_err(|cause| self.engine_failed(Verb::Recover, cause))?;
        }
        let State::Crashed(incarnation, _, mut stopwatch) =
            std::mem::replace(&mut self.state, State::Offline)
        else {
            return Ok(());
        };
        match incarnation.origin {
            Origin::Attached { .. } if again => {
                self.engine.unprepare();
                return self.attach_core();
            }
            Origin::Attached { .. } => {
                // The plan is of what was found, not of the image.
                self.engine.unprepare();
                return self.boot_afresh();
            }
            Origin::Booted => {}
        }
        stopwatch.lap("wait");
        // Linux keeps the carveouts' content over a recovery, and so do we: firmware may leave
        // itself notes there.
        match self.bring_up(incarnation.plan, Clean::Bss, &mut stopwatch) {
            Ok(incarnation) => {
                self.enter(State::Running(incarnation));
                let took = stopwatch.total();
                self.recovery_time.count(took);
                self.tell(What::Recovery, None, |_| format!("{} us", took.as_micros()));
                self.record(stopwatch);
                Ok(())
            }
            Err(cause) => {
                self.gone(State::Offline);
                Err(RequestError::Boot {
                    core: self.name.clone(),
                    source: Box::new(cause),
                })
            }
        }
    }
}
