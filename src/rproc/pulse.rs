//! Whether whoever drives a core gets anywhere.
//!
//! What belongs here: a count that a watchdog can look at without waiting. What does not: the
//! watchdog.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Beats while a core is driven.
#[derive(Default, Debug)]
pub(super) struct Pulse {
    driven: AtomicBool,
    beats: AtomicU64,
}

/// Somebody drives, until it is dropped.
pub(super) struct Driving<'a>(&'a Pulse);

impl Drop for Driving<'_> {
    fn drop(&mut self) {
        self.0.driven.store(false, Ordering::Relaxed);
    }
}

impl Pulse {
    /// Somebody drives from here on.
    pub(super) fn begin(&self) -> Driving<'_> {
        self.beat();
        self.driven.store(true, Ordering::Relaxed);
        Driving(self)
    }

    /// It goes on. Only the driver counts, so there is no need to do it in one step.
    #[inline]
    pub(super) fn beat(&self) {
        let beats = self.beats.load(Ordering::Relaxed);
        self.beats.store(beats.wrapping_add(1), Ordering::Relaxed);
    }

    /// The count, if somebody drives.
    pub(super) fn read(&self) -> Option<u64> {
        let driven = self.driven.load(Ordering::Relaxed);
        driven.then(|| self.beats.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pulse_is_there_while_somebody_drives_and_moves_with_each_beat() {
        let pulse = Pulse::default();
        assert_eq!(pulse.read(), None);
        let driving = pulse.begin();
        let first = pulse.read();
        assert!(first.is_some());
        assert_eq!(pulse.read(), first);
        pulse.beat();
        assert_ne!(pulse.read(), first);
        drop(driving);
        assert_eq!(pulse.read(), None);
    }
}
