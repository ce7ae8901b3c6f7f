//! How long each step of a change took.
//!
//! What belongs here: the clock's readings and their names. What does not: what is made of them.

use std::fmt;
use std::time::{Duration, Instant};

use super::events::{Teller, What};

/// One change of a core's state, step by step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Timeline {
    /// Which change: "boot", "stop", "crash", "recovery", "attach", "detach".
    pub what: &'static str,
    /// The steps in order, each with the time it took.
    pub steps: Vec<(&'static str, Duration)>,
}

impl Timeline {
    /// All steps together.
    pub fn total(&self) -> Duration {
        self.steps.iter().map(|(_, time)| *time).sum()
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {} us (", self.what, self.total().as_micros())?;
        for (index, (step, time)) in self.steps.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{step} {}", time.as_micros())?;
        }
        f.write_str(")")
    }
}

/// Whole microseconds.
pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// A timeline in the making.
pub(super) struct Stopwatch {
    line: Timeline,
    last: Instant,
    teller: Teller,
    incarnation: u32,
}

impl Stopwatch {
    /// Each step is told when it is done, as one of `incarnation`.
    pub(super) fn start(what: &'static str, teller: &Teller, incarnation: u32) -> Self {
        Self {
            line: Timeline {
                what,
                steps: Vec::new(),
            },
            last: Instant::now(),
            teller: teller.clone(),
            incarnation,
        }
    }

    /// The step that has just ended.
    pub(super) fn lap(&mut self, step: &'static str) {
        let now = Instant::now();
        let time = now.saturating_duration_since(self.last);
        self.line.steps.push((step, time));
        self.teller.tell(self.incarnation, What::Step, None, || {
            format!("{}: {step} ({} us)", self.line.what, time.as_micros())
        });
        self.last = now;
    }

    /// All steps so far together.
    pub(super) fn total(&self) -> Duration {
        self.line.total()
    }

    pub(super) fn finish(self) -> Timeline {
        self.line
    }
}
