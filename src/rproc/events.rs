//! What happens to cores, numbered and kept for those who watch.
//!
//! What belongs here: one bounded log for all cores of the daemon. What does not: who watches, and
//! how they are told.
//!
//! A watcher has no queue of its own: it remembers the number that it wants next, and asks. One
//! that is slow finds that the log has moved on, and how many it has missed. So watchers cost no
//! memory, and whoever drives a core never waits for one.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::event::{EventfdFlags, eventfd};
use serde::{Deserialize, Serialize};

use super::admission::CoreState;

/// Events that are kept.
pub const EVENTS_KEPT: usize = 2048;
/// The longest detail, in bytes; the rest of it is cut off.
const MAX_DETAIL_BYTES: usize = 512;

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// The core's state is now the detail.
    State,
    /// The firmware ended its run by itself; what follows is in the detail.
    Ended,
    /// The firmware died, of the detail.
    Crash,
    /// A core that crashed runs again.
    Recovery,
    /// What became of a coredump.
    Dump,
    /// The guest of a vdev has come or gone.
    Guest,
    /// An endpoint was announced.
    Announced,
    /// An endpoint was withdrawn.
    Withdrawn,
    /// A step of a change is done.
    Step,
    /// An operator has set whether a crashed core is restarted.
    RecoveryPolicy,
    /// An operator has set whether coredumps are written.
    CoredumpMode,
    /// The core has another firmware.
    Firmware,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::State => "state",
            Self::Ended => "ended",
            Self::Crash => "crash",
            Self::Recovery => "recovery",
            Self::Dump => "dump",
            Self::Guest => "guest",
            Self::Announced => "announced",
            Self::Withdrawn => "withdrawn",
            Self::Step => "step",
            Self::RecoveryPolicy => "recovery-policy",
            Self::CoredumpMode => "coredump-mode",
            Self::Firmware => "firmware",
        })
    }
}

/// `Event` of `io.rprocd.varlink`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// Its number: over all cores, without gaps.
    pub seq: u64,
    /// Microseconds since 1970.
    pub time: u64,
    /// The core's name.
    pub core: String,
    /// The core's incarnation at that time.
    pub incarnation: u32,
    /// A word for [`What`].
    pub what: String,
    /// Which vdev, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vdev: Option<usize>,
    /// More, depending on what it is.
    pub detail: String,
    /// When a core has crashed: for each trace buffer, the number of the byte that the next
    /// incarnation begins with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trace: Vec<u64>,
}

/// A piece of the log.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Excerpt {
    /// In order.
    pub events: Vec<Event>,
    /// How many between what was asked for and the first one here are not kept any more.
    pub lost: u64,
    /// What to ask for next.
    pub next: u64,
}

#[derive(Default)]
struct Kept {
    events: VecDeque<Event>,
    next: u64,
}

/// The log.
pub struct EventLog {
    kept: Mutex<Kept>,
    /// Does anybody want to hear the bell?
    watched: AtomicBool,
    bell: OwnedFd,
}

impl EventLog {
    /// An empty one.
    ///
    /// # Errors
    /// What the host says when it has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            kept: Mutex::default(),
            watched: AtomicBool::new(false),
            bell: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        })
    }

    fn with<R>(&self, work: impl FnOnce(&mut Kept) -> R) -> R {
        work(&mut self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds an event.
    pub fn tell(
        &self,
        core: &str,
        incarnation: u32,
        what: What,
        vdev: Option<usize>,
        mut detail: String,
        trace: Vec<u64>,
    ) {
        let end = (0..=MAX_DETAIL_BYTES).rfind(|end| detail.is_char_boundary(*end));
        detail.truncate(end.unwrap_or(0));
        let time = SystemTime::now().duration_since(UNIX_EPOCH);
        let time = time.map_or(0, |time| time.as_micros());
        self.with(|kept| {
            if kept.events.len() == EVENTS_KEPT {
                kept.events.pop_front();
            }
            kept.events.push_back(Event {
                seq: kept.next,
                time: u64::try_from(time).unwrap_or(u64::MAX),
                core: core.to_owned(),
                incarnation,
                what: what.to_string(),
                vdev,
                detail,
                trace,
            });
            kept.next += 1;
        });
        if self.watched.load(Ordering::SeqCst) {
            // Full means that it is ringing already.
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        }
    }

    /// The number of the next event.
    pub fn next(&self) -> u64 {
        self.with(|kept| kept.next)
    }

    /// At most `max` events from number `since` on; without a number, from the first that is kept.
    /// A number that is not there yet is the next one's.
    pub fn since(&self, since: Option<u64>, max: usize) -> Excerpt {
        self.with(|kept| {
            let first = kept.next - kept.events.len() as u64;
            let since = since.unwrap_or(first).min(kept.next);
            let from = since.max(first);
            #[expect(
                clippy::cast_possible_truncation,
                reason = "not more than events are kept"
            )]
            let skip = (from - first) as usize;
            let events: Vec<_> = kept.events.iter().skip(skip).take(max).cloned().collect();
            Excerpt {
                next: from + events.len() as u64,
                events,
                lost: from - since,
            }
        })
    }

    /// Has the bell rung at each event from now on, or not any more.
    pub fn set_watched(&self, watched: bool) {
        self.watched.store(watched, Ordering::SeqCst);
    }

    /// What is readable when something has happened.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Silences the bell.
    pub fn heard(&self) {
        let _ = rustix::io::read(&self.bell, &mut [0u8; 8]);
    }
}

/// One core's way into the log. Without a log nobody hears anything.
#[derive(Clone, Default)]
pub(super) struct Teller {
    to: Option<(Arc<EventLog>, Arc<str>)>,
}

impl Teller {
    pub(super) fn new(log: Arc<EventLog>, core: &str) -> Self {
        Self {
            to: Some((log, core.into())),
        }
    }

    /// The detail is only made if somebody may hear it.
    pub(super) fn tell(
        &self,
        incarnation: u32,
        what: What,
        vdev: Option<usize>,
        detail: impl FnOnce() -> String,
    ) {
        if let Some((log, core)) = &self.to {
            log.tell(core, incarnation, what, vdev, detail(), Vec::new());
        }
    }

    /// The core is in another state; see [`Event::trace`].
    pub(super) fn tell_state(&self, incarnation: u32, state: CoreState, trace: Vec<u64>) {
        if let Some((log, core)) = &self.to {
            log.tell(
                core,
                incarnation,
                What::State,
                None,
                state.to_string(),
                trace,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(events: usize) -> EventLog {
        let log = EventLog::new().unwrap();
        for number in 0..events {
            log.tell("m4", 1, What::Step, None, number.to_string(), vec![]);
        }
        log
    }

    fn numbers(excerpt: &Excerpt) -> Vec<u64> {
        excerpt.events.iter().map(|event| event.seq).collect()
    }

    #[test]
    fn who_asks_on_gets_every_event_once() {
        let log = log(5);
        let first = log.since(None, 3);
        assert_eq!(
            (numbers(&first), first.lost, first.next),
            (vec![0, 1, 2], 0, 3)
        );
        let rest = log.since(Some(first.next), 3);
        assert_eq!((numbers(&rest), rest.lost, rest.next), (vec![3, 4], 0, 5));
        assert_eq!(log.since(Some(5), 3).next, 5);
        assert_eq!(log.since(Some(500), 3).next, 5);
    }

    #[test]
    fn who_is_slow_is_told_how_many_are_gone() {
        let log = log(EVENTS_KEPT + 10);
        let late = log.since(Some(3), 2);
        assert_eq!((numbers(&late), late.lost), (vec![10, 11], 7));
        assert_eq!(log.since(None, 1).lost, 0);
        assert_eq!(log.next(), EVENTS_KEPT as u64 + 10);
        assert_eq!(log.since(None, usize::MAX).events.len(), EVENTS_KEPT);
    }

    #[test]
    fn a_long_detail_is_cut_between_two_characters() {
        let log = log(0);
        log.tell("m4", 1, What::Crash, None, "é".repeat(1000), vec![]);
        log.tell(
            "m4",
            1,
            What::Crash,
            None,
            "x".to_owned() + &"é".repeat(1000),
            vec![],
        );
        for event in log.since(None, 2).events {
            assert!((MAX_DETAIL_BYTES - 1..=MAX_DETAIL_BYTES).contains(&event.detail.len()));
        }
    }

    #[test]
    fn the_bell_rings_for_those_who_watch() {
        let rings = |log: &EventLog| rustix::io::read(log.bell(), &mut [0u8; 8]).is_ok();
        let log = log(1);
        assert!(!rings(&log));
        log.set_watched(true);
        log.tell("m4", 1, What::Step, None, String::new(), vec![]);
        log.tell("m4", 1, What::Step, None, String::new(), vec![]);
        assert!(rings(&log));
        assert!(!rings(&log));
    }
}
