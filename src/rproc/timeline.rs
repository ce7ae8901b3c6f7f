//! How long each step of a change took.
//!
//! What belongs here: the clock's readings and their names. What does not: what is made of them.

use std::fmt;
use std::time::{Duration, Instant};

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

/// A timeline in the making.
pub(super) struct Stopwatch {
    line: Timeline,
    last: Instant,
}

impl Stopwatch {
    pub(super) fn start(what: &'static str) -> Self {
        Self {
            line: Timeline {
                what,
                steps: Vec::new(),
            },
            last: Instant::now(),
        }
    }

    /// The step that has just ended.
    pub(super) fn lap(&mut self, step: &'static str) {
        let now = Instant::now();
        self.line
            .steps
            .push((step, now.saturating_duration_since(self.last)));
        self.last = now;
    }

    pub(super) fn finish(self) -> Timeline {
        self.line
    }
}
