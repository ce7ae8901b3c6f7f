//! The watchdog.

use std::time::{Duration, Instant};

use crate::engine::rv32::board::watchdog as map;

/// After reset, in milliseconds.
const DEFAULT_TIMEOUT: u32 = 1000;

pub(super) struct Watchdog {
    timeout_ms: u32,
    armed: Option<Armed>,
}

struct Armed {
    period: Duration,
    /// `None`: beyond what the host's clock can say.
    bites_at: Option<Instant>,
}

impl Watchdog {
    pub(super) fn new() -> Self {
        Self {
            timeout_ms: DEFAULT_TIMEOUT,
            armed: None,
        }
    }

    /// When it bites if nobody feeds it.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.armed.as_ref()?.bites_at
    }

    /// The period that has passed unfed, if it has at `now`.
    pub(super) fn bitten(&self, now: Instant) -> Option<Duration> {
        let armed = self.armed.as_ref()?;
        (now >= armed.bites_at?).then_some(armed.period)
    }

    fn begin_period(&mut self, now: Instant) {
        let period = Duration::from_millis(u64::from(self.timeout_ms.max(1)));
        self.armed = Some(Armed {
            period,
            bites_at: now.checked_add(period),
        });
    }

    pub(super) fn load(&self, offset: u32, now: Instant) -> Option<u32> {
        Some(match offset {
            map::TIMEOUT_MS => self.timeout_ms,
            map::CONTROL => u32::from(self.armed.is_some()),
            map::FEED => 0,
            map::LEFT_MS => match self.deadline() {
                // Rounded up: 0 is for "not armed".
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(now).as_nanos();
                    u32::try_from(left.div_ceil(1_000_000)).unwrap_or(u32::MAX)
                }
                None => 0,
            },
            _ => return None,
        })
    }

    pub(super) fn store(&mut self, offset: u32, value: u32, now: Instant) -> Option<()> {
        match offset {
            map::TIMEOUT_MS => self.timeout_ms = value,
            map::CONTROL => {
                if value & 1 == 0 {
                    self.armed = None;
                } else if self.armed.is_none() {
                    self.begin_period(now);
                }
            }
            map::FEED => {
                if value == map::FEED_VALUE && self.armed.is_some() {
                    self.begin_period(now);
                }
            }
            map::LEFT_MS => {}
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, milliseconds: u64) -> Instant {
        start + Duration::from_millis(milliseconds)
    }

    #[test]
    fn it_bites_when_the_period_has_passed_and_not_before() {
        let start = Instant::now();
        let mut dog = Watchdog::new();
        assert_eq!(dog.load(map::LEFT_MS, start), Some(0));
        dog.store(map::CONTROL, 1, start).unwrap();
        assert_eq!(dog.deadline(), Some(after(start, 1000)));
        assert_eq!(dog.bitten(after(start, 999)), None);
        assert_eq!(dog.load(map::LEFT_MS, after(start, 999)), Some(1));
        assert_eq!(
            dog.bitten(after(start, 1000)),
            Some(Duration::from_millis(1000))
        );
    }

    #[test]
    fn a_new_timeout_counts_from_the_next_feeding() {
        let start = Instant::now();
        let mut dog = Watchdog::new();
        dog.store(map::CONTROL, 1, start).unwrap();
        dog.store(map::TIMEOUT_MS, 50, start).unwrap();
        assert_eq!(dog.deadline(), Some(after(start, 1000)));
        dog.store(map::FEED, map::FEED_VALUE, after(start, 10))
            .unwrap();
        assert_eq!(dog.deadline(), Some(after(start, 60)));
    }

    #[test]
    fn only_the_right_value_feeds_and_arming_again_does_not() {
        let start = Instant::now();
        let mut dog = Watchdog::new();
        dog.store(map::CONTROL, 1, start).unwrap();
        dog.store(map::FEED, 1, after(start, 500)).unwrap();
        dog.store(map::CONTROL, 1, after(start, 500)).unwrap();
        assert_eq!(dog.deadline(), Some(after(start, 1000)));
    }

    #[test]
    fn feeding_does_not_arm_it() {
        let start = Instant::now();
        let mut dog = Watchdog::new();
        dog.store(map::FEED, map::FEED_VALUE, start).unwrap();
        assert_eq!(dog.deadline(), None);
    }

    #[test]
    fn a_disarmed_watchdog_never_bites() {
        let start = Instant::now();
        let mut dog = Watchdog::new();
        dog.store(map::CONTROL, 1, start).unwrap();
        dog.store(map::CONTROL, 0, start).unwrap();
        assert_eq!(dog.bitten(after(start, 1_000_000)), None);
        assert_eq!(dog.load(map::CONTROL, start), Some(0));
    }

    #[test]
    fn a_timeout_of_0_is_1() {
        let start = Instant::now();
        let mut dog = Watchdog::new();
        dog.store(map::TIMEOUT_MS, 0, start).unwrap();
        dog.store(map::CONTROL, 1, start).unwrap();
        assert_eq!(dog.deadline(), Some(after(start, 1)));
        assert_eq!(dog.load(map::TIMEOUT_MS, start), Some(0));
    }
}
