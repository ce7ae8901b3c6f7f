//! Time as the board's devices see it.
//!
//! What belongs here: one reading of the host's monotonic clock, kept until the next, and its
//! conversion to ticks of `mtime`. What does not: deadlines; whoever has one, keeps it.

use std::time::{Duration, Instant};

use super::board::clint::TICKS_PER_SECOND;

/// Where the time comes from. Must be monotonic; [`Instant::now`] outside of tests.
pub type Clock = Box<dyn Fn() -> Instant + Send>;

const NANOSECONDS_PER_TICK: u64 = 1_000_000_000 / TICKS_PER_SECOND;

pub(super) struct Time {
    clock: Clock,
    started: Instant,
    now: Instant,
    ticks: u64,
}

impl Time {
    pub(super) fn new(clock: Clock) -> Self {
        let now = clock();
        Self {
            clock,
            started: now,
            now,
            ticks: 0,
        }
    }

    /// Begins `mtime` anew at zero.
    pub(super) fn restart(&mut self) {
        self.started = (self.clock)();
        self.now = self.started;
        self.ticks = 0;
    }

    /// Looks at the clock.
    pub(super) fn refresh(&mut self) {
        self.now = (self.clock)();
        let elapsed = self.now.saturating_duration_since(self.started);
        let ticks = elapsed.as_nanos() / u128::from(NANOSECONDS_PER_TICK);
        self.ticks = u64::try_from(ticks).unwrap_or(u64::MAX);
    }

    /// As of the last look.
    pub(super) fn now(&self) -> Instant {
        self.now
    }

    /// `mtime` as of the last look.
    pub(super) fn ticks(&self) -> u64 {
        self.ticks
    }

    /// When `mtime` reaches `ticks`, or `None` if that is beyond what the host can say.
    pub(super) fn instant_of(&self, ticks: u64) -> Option<Instant> {
        let nanoseconds = ticks.checked_mul(NANOSECONDS_PER_TICK)?;
        self.started.checked_add(Duration::from_nanos(nanoseconds))
    }
}
