//! Driving a core that runs: one turn.

use std::time::Instant;

use log::{error, info};

use super::guests::STATUS_FAILED;
use super::{BUDGET, End, Incarnation, Machine, Next, State, Stopwatch};
use crate::engine::{Engine, Run, RunEnd};
use crate::vdev::{QUEUE_TO_GUEST, Round};

/// Rounds of relay and run in one turn; then whoever waits for the core gets a chance.
const ROUNDS_PER_TURN: u32 = 64;

/// What a turn of driving leaves for later; the sooner, the smaller.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Later {
    /// Drive again at once: the firmware is busy.
    AtOnce,
    /// Drive again at that time, unless an event comes before.
    At(Instant),
    /// Nothing until an event comes.
    Nothing,
}

impl Machine {
    /// Drives the core: relays, lets the firmware run, relays again, until nothing moves any more
    /// or others should get a chance. `interrupted` says whether a firmware that is busy should be
    /// left for later: somebody waits for the core, or the caller has something else to do.
    pub fn drive(&mut self, interrupted: impl Fn() -> bool) -> Later {
        self.recover_if_due();
        for vdev in &mut self.vdevs {
            vdev.relay_farewells();
        }
        for _ in 0..ROUNDS_PER_TURN {
            let incarnation = match &mut self.state {
                State::Running(incarnation) | State::Attached(incarnation) => incarnation,
                State::Crashed(_, Next::Restart(at), _) => return Later::At(*at),
                State::Crashed(..)
                | State::Offline
                | State::Suspended(_)
                | State::Detached
                | State::Deleted => return Later::Nothing,
            };
            let Incarnation { plan, ids, .. } = incarnation;
            let ram = plan.carveouts.ram().clone();
            let mut progress = false;
            let mut conclude = |round: Round, index: usize, engine: &mut dyn Engine| {
                progress |= round.progress;
                if round.failed {
                    let vdev = &plan.vdevs[index];
                    plan.table
                        .write_u8(vdev.entry().status_offset(), STATUS_FAILED);
                    engine.kick(vdev.ids()[QUEUE_TO_GUEST]);
                } else if let Some(id) = round.kick {
                    engine.kick(id);
                }
            };
            for (index, vdev) in self.vdevs.iter_mut().enumerate() {
                conclude(vdev.relay_to_core(&ram), index, &mut *self.engine);
            }
            let Run {
                kicks,
                stray_kicks,
                end,
            } = self.engine.run(BUDGET);
            self.traces.look(&plan.traces, &ram);
            // Whether or not it kicked: the rings say what there is, a kick is only a hint.
            for (index, vdev) in self.vdevs.iter_mut().enumerate() {
                conclude(vdev.relay_to_guest(&ram), index, &mut *self.engine);
            }
            self.unknown_kicks = self
                .unknown_kicks
                .saturating_add(stray_kicks)
                .saturating_add(u64::from(kicks.without(*ids).len()));
            // A firmware may give buffers back and have nothing to say.
            progress |= self.vdevs.iter_mut().any(|vdev| vdev.can_go_on(&ram));
            if !self.unnoticed.is_empty() {
                progress |= self.start_late_vdevs(matches!(end, RunEnd::Waiting { .. }));
            }
            match end {
                RunEnd::Waiting { until } if !progress => {
                    return until.map_or(Later::Nothing, Later::At);
                }
                RunEnd::Waiting { .. } => {}
                RunEnd::BudgetSpent => {
                    if interrupted() {
                        return Later::AtOnce;
                    }
                }
                RunEnd::PoweredOff => {
                    self.powered_off();
                    return Later::Nothing;
                }
                RunEnd::Crashed(crash) => {
                    self.crashed(crash);
                    self.recover_if_due();
                }
            }
        }
        Later::AtOnce
    }

    fn powered_off(&mut self) {
        info!("{}: the firmware ended its run (power off)", self.name);
        let mut stopwatch = Stopwatch::start("stop");
        if let Err(cause) = self.take_down(false, End::Stop, &mut stopwatch) {
            error!("{}: cannot be stopped: {cause}", self.name);
        }
        // It has ended, whatever the engine says.
        self.gone(State::Offline);
        self.record(stopwatch);
    }
}
