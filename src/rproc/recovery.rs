//! Whether and when a crashed core is started again.
//!
//! What belongs here: the decision, a function of the policy, the clock and the crashes so far.
//! What does not: carrying it out.
//!
//! ```text
//!   crash ── recovery disabled ──────────────────────────────► Stay
//!     │
//!     ├── more crashes in the window than allowed ───────────► Hold
//!     │
//!     ├── it ran for the minimum run time, or longer ────────► restart at once
//!     │
//!     └── it did not ── restart after the back-off, doubled with each such crash in a row
//! ```

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What is done about crashes of a core.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecoveryPolicy {
    /// Is a crashed core started again without being asked?
    pub enabled: bool,
    /// A run that was shorter than this makes the next restart wait.
    pub minimum_run_time: Duration,
    /// How long the first restart waits after such a run; doubled for each one in a row.
    pub back_off: Duration,
    /// The longest that a restart waits.
    pub back_off_limit: Duration,
    /// Crashes within [`RecoveryPolicy::hold_window`] after which the core is held; 0 is never.
    pub hold_after: u32,
    /// See [`RecoveryPolicy::hold_after`].
    pub hold_window: Duration,
}

impl Default for RecoveryPolicy {
    fn default() -> Self {
        Self {
            enabled: true,
            minimum_run_time: Duration::from_secs(1),
            back_off: Duration::from_millis(100),
            back_off_limit: Duration::from_secs(10),
            hold_after: 10,
            hold_window: Duration::from_secs(60),
        }
    }
}

/// What follows from a crash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Recovery is disabled: the core stays crashed until somebody starts it.
    Stay,
    /// Too many crashes: the core stays crashed until somebody starts it.
    Hold {
        /// Crashes within the window.
        crashes: u32,
    },
    /// Start again after this time.
    RestartAfter(Duration),
}

/// The crashes of a core that still matter.
#[derive(Default, Debug)]
pub struct CrashHistory {
    /// When, oldest first; only those within the window.
    recent: VecDeque<Instant>,
    /// Runs in a row that were shorter than the minimum.
    short_runs: u32,
}

impl CrashHistory {
    /// Takes note of a crash at `now` after a run of `ran_for`, and says what follows.
    pub fn crashed(
        &mut self,
        policy: &RecoveryPolicy,
        now: Instant,
        ran_for: Duration,
    ) -> Decision {
        self.recent
            .retain(|crash| now.saturating_duration_since(*crash) < policy.hold_window);
        self.recent.push_back(now);
        // No more than are counted are kept.
        let kept = usize::try_from(policy.hold_after)
            .unwrap_or(usize::MAX)
            .max(1);
        while self.recent.len() > kept {
            self.recent.pop_front();
        }
        if ran_for < policy.minimum_run_time {
            self.short_runs = self.short_runs.saturating_add(1);
        } else {
            self.short_runs = 0;
        }
        if !policy.enabled {
            return Decision::Stay;
        }
        let crashes = u32::try_from(self.recent.len()).unwrap_or(u32::MAX);
        if policy.hold_after != 0 && crashes >= policy.hold_after {
            return Decision::Hold { crashes };
        }
        Decision::RestartAfter(match self.short_runs {
            0 => Duration::ZERO,
            runs => policy
                .back_off
                .saturating_mul(1u32.checked_shl(runs - 1).unwrap_or(u32::MAX))
                .min(policy.back_off_limit),
        })
    }

    /// Somebody started the core: what was before does not count any more.
    pub fn forgive(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);
    const SHORT: Duration = Duration::from_millis(1);

    #[test]
    fn a_core_that_ran_long_enough_is_started_again_at_once() {
        let policy = RecoveryPolicy::default();
        let decision = CrashHistory::default().crashed(&policy, Instant::now(), LONG);
        assert_eq!(decision, Decision::RestartAfter(Duration::ZERO));
    }

    #[test]
    fn short_runs_in_a_row_double_the_wait_up_to_its_limit_and_a_long_run_ends_the_row() {
        let policy = RecoveryPolicy {
            hold_after: 0,
            back_off: Duration::from_millis(100),
            back_off_limit: Duration::from_millis(350),
            ..RecoveryPolicy::default()
        };
        let mut history = CrashHistory::default();
        let now = Instant::now();
        let waits: Vec<_> = [SHORT, SHORT, SHORT, SHORT, LONG, SHORT]
            .into_iter()
            .map(|ran_for| match history.crashed(&policy, now, ran_for) {
                Decision::RestartAfter(wait) => wait.as_millis(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(waits, [100, 200, 350, 350, 0, 100]);
        for _ in 0..100 {
            history.crashed(&policy, now, SHORT);
        }
    }

    #[test]
    fn too_many_crashes_in_the_window_hold_the_core_until_it_is_forgiven() {
        let policy = RecoveryPolicy {
            hold_after: 3,
            hold_window: Duration::from_secs(60),
            ..RecoveryPolicy::default()
        };
        let mut history = CrashHistory::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for seconds in [0, 30, 70, 100] {
            let decision = history.crashed(&policy, at(seconds), LONG);
            assert_eq!(
                decision,
                Decision::RestartAfter(Duration::ZERO),
                "{seconds}"
            );
        }
        let decision = history.crashed(&policy, at(110), LONG);
        assert_eq!(decision, Decision::Hold { crashes: 3 });
        history.forgive();
        let decision = history.crashed(&policy, at(111), LONG);
        assert_eq!(decision, Decision::RestartAfter(Duration::ZERO));
    }

    #[test]
    fn without_recovery_the_core_stays_crashed() {
        let policy = RecoveryPolicy {
            enabled: false,
            ..RecoveryPolicy::default()
        };
        let decision = CrashHistory::default().crashed(&policy, Instant::now(), LONG);
        assert_eq!(decision, Decision::Stay);
    }

    #[test]
    fn a_core_that_is_never_held_keeps_no_history() {
        let policy = RecoveryPolicy {
            hold_after: 0,
            ..RecoveryPolicy::default()
        };
        let mut history = CrashHistory::default();
        let now = Instant::now();
        for _ in 0..10_000 {
            let decision = history.crashed(&policy, now, LONG);
            assert_eq!(decision, Decision::RestartAfter(Duration::ZERO));
        }
        assert_eq!(history.recent.len(), 1);
    }
}
