//! Time as the board's devices see it.
//!
//! What belongs here: one reading of the host's monotonic clock, kept until the next, its
//! conversion to ticks of `mtime`, and the pauses that the board does not see. What does not:
//! deadlines; whoever has one, keeps it.

use std::time::{Duration, Instant};

use super::board::clint::TICKS_PER_SECOND;

/// Where the time comes from. Must be monotonic; [`Instant::now`] outside of tests.
pub type Clock = Box<dyn Fn() -> Instant + Send>;

const NANOSECONDS_PER_TICK: u64 = 1_000_000_000 / TICKS_PER_SECOND;

pub(super) struct Time {
    clock: Clock,
    /// How long the board was paused: its time is the host's less this.
    paused: Duration,
    /// Since when, by the host's clock, if it is paused now.
    paused_since: Option<Instant>,
    started: Instant,
    now: Instant,
    ticks: u64,
}

impl Time {
    pub(super) fn new(clock: Clock) -> Self {
        let now = clock();
        Self {
            clock,
            paused: Duration::ZERO,
            paused_since: None,
            started: now,
            now,
            ticks: 0,
        }
    }

    /// Begins `mtime` anew at zero.
    pub(super) fn restart(&mut self) {
        self.paused = Duration::ZERO;
        self.paused_since = None;
        self.started = (self.clock)();
        self.now = self.started;
        self.ticks = 0;
    }

    /// Looks at the clock.
    pub(super) fn refresh(&mut self) {
        let host = self.paused_since.unwrap_or_else(|| (self.clock)());
        self.now = host.checked_sub(self.paused).unwrap_or(self.started);
        let elapsed = self.now.saturating_duration_since(self.started);
        let ticks = elapsed.as_nanos() / u128::from(NANOSECONDS_PER_TICK);
        self.ticks = u64::try_from(ticks).unwrap_or(u64::MAX);
    }

    /// Stops the board's time.
    pub(super) fn pause(&mut self) {
        self.paused_since.get_or_insert((self.clock)());
    }

    /// Lets it go on from where it stopped.
    pub(super) fn resume(&mut self) {
        if let Some(since) = self.paused_since.take() {
            self.paused += (self.clock)().saturating_duration_since(since);
        }
    }

    /// When by the host's clock it is `instant` by the board's.
    pub(super) fn on_host(&self, instant: Instant) -> Option<Instant> {
        instant.checked_add(self.paused)
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
