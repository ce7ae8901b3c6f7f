//! How often something took how long.
//!
//! What belongs here: counting, under a lock's protection or without one. What does not: how it is
//! shown.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::timeline::micros;

/// Bounds for a recovery: from a boot without work to a dump of a large core.
pub const RECOVERY_BOUNDS: [u64; 12] = [
    250, 500, 1000, 2500, 5000, 10_000, 25_000, 100_000, 500_000, 2_500_000, 10_000_000, 60_000_000,
];
/// Bounds for a relay: from one message to a firmware that thinks about it.
pub const RELAY_BOUNDS: [u64; 12] = [1, 2, 5, 10, 20, 50, 100, 250, 1000, 5000, 25_000, 250_000];

/// `Histogram` of `io.rprocd.varlink`.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Histogram {
    /// In microseconds, rising.
    pub bounds_microseconds: Vec<u64>,
    /// For each bound, how often it took at most so long and longer than the bound before; then
    /// how often it took longer than all of them.
    pub counts: Vec<u64>,
    /// All of them together.
    pub sum_microseconds: u64,
}

impl Histogram {
    /// An empty one.
    pub fn new(bounds: &[u64]) -> Self {
        Self {
            bounds_microseconds: bounds.to_vec(),
            counts: vec![0; bounds.len() + 1],
            sum_microseconds: 0,
        }
    }

    /// Counts one.
    pub fn count(&mut self, time: Duration) {
        let time = micros(time);
        let place = self
            .bounds_microseconds
            .partition_point(|bound| *bound < time);
        self.counts[place] += 1;
        self.sum_microseconds = self.sum_microseconds.saturating_add(time);
    }

    /// How many there are.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// Relay times, counted by any thread.
#[derive(Default)]
pub(super) struct RelayTimes {
    counts: [AtomicU64; RELAY_BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

impl RelayTimes {
    #[inline]
    pub(super) fn count(&self, time: Duration) {
        #[expect(clippy::cast_possible_truncation, reason = "centuries")]
        let nanoseconds = time.as_nanos() as u64;
        let place = RELAY_BOUNDS.partition_point(|bound| bound * 1000 < nanoseconds);
        self.counts[place].fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    pub(super) fn histogram(&self) -> Histogram {
        Histogram {
            bounds_microseconds: RELAY_BOUNDS.to_vec(),
            counts: self
                .counts
                .iter()
                .map(|count| count.load(Ordering::Relaxed))
                .collect(),
            sum_microseconds: self.nanoseconds.load(Ordering::Relaxed) / 1000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_counted_where_it_belongs() {
        let mut histogram = Histogram::new(&[10, 20]);
        for time in [0, 10, 11, 20, 21, 1000] {
            histogram.count(Duration::from_micros(time));
        }
        assert_eq!(histogram.counts, [2, 2, 2]);
        assert_eq!((histogram.sum_microseconds, histogram.total()), (1062, 6));
    }

    #[test]
    fn relay_times_are_counted_as_others_are() {
        let times = RelayTimes::default();
        let mut histogram = Histogram::new(&RELAY_BOUNDS);
        for time in [0, 1, 2, 3, 10, 250_000, 250_001] {
            times.count(Duration::from_micros(time));
            histogram.count(Duration::from_micros(time));
        }
        assert_eq!(times.histogram(), histogram);
    }
}
