//! Who drives a core: the thread that brings the work.
//!
//! A core is an object with a word of pending work beside it; one bit of the word says that a
//! thread is driving. Whoever has work sets its bits and that one in a single step. If nobody was
//! driving, that thread drives now; if somebody was, it goes its way, because the driver cannot
//! leave while there are bits. So no event waits for a second thread to be woken, and none is lost.
//!
//! What belongs here: that hand-over and nothing else; it is proved with loom below. What does
//! not: what the work is.
//!
//! A first version had a lock and a word, and two fences between them. Its loom model passed with
//! the fences taken out, because loom does not switch threads at an unlock: one word says it all,
//! and is proved.

use std::ops::ControlFlow;

#[cfg(feature = "loom")]
use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU32, Ordering},
};
#[cfg(not(feature = "loom"))]
use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU32, Ordering},
};

/// The bit that says that a thread is driving.
const DRIVEN: u32 = 1 << 31;

/// State that is driven by the thread that brings work for it.
pub struct Driven<T> {
    word: AtomicU32,
    /// Locked by the driver only, so nobody ever waits for it; it is what makes the state's
    /// sharing safe without a proof of our own.
    state: Mutex<T>,
}

impl<T> Driven<T> {
    /// Nobody drives, nothing is pending.
    pub fn new(state: T) -> Self {
        Self {
            word: AtomicU32::new(0),
            state: Mutex::new(state),
        }
    }

    /// Leaves `work` (a set of bits, the highest excepted) and, unless another thread is driving,
    /// drives: `turn` gets the state and the bits that were pending, again and again until none
    /// are, or until it breaks off.
    ///
    /// When this returns, the bits have been handed to a turn that began after they were left, or
    /// the thread that drives at this moment will hand them to one. A turn that breaks off leaves
    /// what is pending to the next who comes; it must have seen to it that somebody does.
    ///
    /// A turn that panics leaves the state in doubt, and others waiting for it: the process is
    /// aborted.
    pub fn drive(&self, work: u32, mut turn: impl FnMut(&mut T, u32) -> ControlFlow<()>) {
        debug_assert_eq!(work & DRIVEN, 0, "the highest bit is taken");
        if self.word.fetch_or(work | DRIVEN, Ordering::AcqRel) & DRIVEN != 0 {
            return;
        }
        let doubt = AbortOnDrop;
        loop {
            let mut state = self.state();
            loop {
                let work = self.word.swap(DRIVEN, Ordering::AcqRel) & !DRIVEN;
                if work == 0 {
                    break;
                }
                if turn(&mut state, work).is_break() {
                    drop(state);
                    self.word.fetch_and(!DRIVEN, Ordering::AcqRel);
                    std::mem::forget(doubt);
                    return;
                }
            }
            drop(state);
            let left = self
                .word
                .compare_exchange(DRIVEN, 0, Ordering::AcqRel, Ordering::Acquire);
            if left.is_ok() {
                break;
            }
        }
        std::mem::forget(doubt);
    }

    /// Leaves `work` without driving: for a thread that must not drive, and has seen to it that
    /// somebody does if nobody is driving. A driver hands it to a turn.
    pub fn leave(&self, work: u32) {
        debug_assert_eq!(work & DRIVEN, 0, "the highest bit is taken");
        self.word.fetch_or(work, Ordering::AcqRel);
    }

    /// Is more work waiting? For a turn that wants to know whether to end early.
    pub fn is_pending(&self) -> bool {
        self.word.load(Ordering::Relaxed) & !DRIVEN != 0
    }

    fn state(&self) -> MutexGuard<'_, T> {
        // Never poisoned: a panic with the lock held ends the process.
        #[cfg(not(feature = "loom"))]
        return self
            .state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        #[cfg(feature = "loom")]
        return self.state.lock().expect("loom's locks are not poisoned");
    }
}

/// Dropped by a panic of the turn only: whoever gets to the end of it forgets it. Whether the thread
/// is panicking does not say that; a core may be driven while a panic from elsewhere unwinds.
struct AbortOnDrop;

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        log::error!("a core is in doubt after an internal error; aborting");
        std::process::abort();
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;

    fn note(turns: &mut Vec<u32>, work: u32) -> ControlFlow<()> {
        turns.push(work);
        ControlFlow::Continue(())
    }

    fn turns(driven: &Driven<Vec<u32>>) -> Vec<u32> {
        driven.state().clone()
    }

    #[test]
    fn work_left_during_a_turn_is_handed_to_a_later_turn() {
        let driven = Driven::new(Vec::new());
        driven.drive(1, |turns: &mut Vec<u32>, work| {
            if work == 1 {
                // Somebody is driving: this call only leaves its bit.
                driven.drive(2, |turns, _| note(turns, u32::MAX));
            }
            note(turns, work)
        });
        driven.drive(0, |turns, _| note(turns, u32::MAX));
        assert_eq!(turns(&driven), [1, 2]);
    }

    #[test]
    fn a_panic_from_elsewhere_does_not_put_a_turn_in_doubt() {
        struct DrivesAtItsEnd<'a>(&'a Driven<Vec<u32>>);
        impl Drop for DrivesAtItsEnd<'_> {
            fn drop(&mut self) {
                self.0.drive(1, note);
            }
        }
        let driven = Driven::new(Vec::new());
        let unwound = std::panic::catch_unwind(|| {
            let _drives = DrivesAtItsEnd(&driven);
            panic!("from elsewhere");
        });
        assert!(unwound.is_err());
        assert_eq!(turns(&driven), [1]);
    }

    #[test]
    fn a_turn_that_breaks_off_leaves_what_is_pending_to_the_next() {
        let driven = Driven::new(Vec::new());
        driven.drive(1, |turns: &mut Vec<u32>, work| {
            driven.drive(2, |turns, _| note(turns, u32::MAX));
            let _ = note(turns, work);
            ControlFlow::Break(())
        });
        assert!(driven.is_pending());
        driven.drive(4, note);
        assert_eq!(turns(&driven), [1, 6]);
    }
}

/// Run with `cargo test --features loom --lib drive::model`.
#[cfg(all(test, feature = "loom"))]
mod model {
    use super::*;
    use loom::{sync::Arc, thread};

    fn note(seen: &mut Vec<u32>, work: u32) -> ControlFlow<()> {
        seen.push(work);
        ControlFlow::Continue(())
    }

    fn all_heard_once(driven: &Driven<Vec<u32>>, all: u32) {
        assert!(!driven.is_pending());
        let seen = driven.state();
        assert_eq!(seen.iter().fold(0, |all, bits| all | bits), all);
        let heard: u32 = seen.iter().map(|bits| bits.count_ones()).sum();
        assert_eq!(heard, all.count_ones());
    }

    /// Every interleaving of two bringers.
    #[test]
    fn no_bit_is_lost_and_none_is_seen_twice() {
        loom::model(|| {
            let driven = Arc::new(Driven::new(Vec::new()));
            let other = {
                let driven = driven.clone();
                thread::spawn(move || driven.drive(1, note))
            };
            driven.drive(2, note);
            other.join().unwrap();
            all_heard_once(&driven, 3);
        });
    }

    /// Every interleaving of two bringers that break off after each turn, and one who comes after.
    #[test]
    fn what_is_left_by_a_turn_that_breaks_off_is_heard_by_the_next() {
        fn note_and_break(seen: &mut Vec<u32>, work: u32) -> ControlFlow<()> {
            seen.push(work);
            ControlFlow::Break(())
        }
        loom::model(|| {
            let driven = Arc::new(Driven::new(Vec::new()));
            let other = {
                let driven = driven.clone();
                thread::spawn(move || driven.drive(1, note_and_break))
            };
            driven.drive(2, note_and_break);
            other.join().unwrap();
            driven.drive(0, note);
            all_heard_once(&driven, 3);
        });
    }

    /// Every interleaving of a bringer with one who must not drive, and rings for somebody to come.
    #[test]
    fn what_is_left_without_driving_is_heard_once_somebody_comes() {
        loom::model(|| {
            let driven = Arc::new(Driven::new(Vec::new()));
            let other = {
                let driven = driven.clone();
                thread::spawn(move || driven.leave(1))
            };
            driven.drive(2, note);
            other.join().unwrap();
            driven.drive(4, note);
            all_heard_once(&driven, 7);
        });
    }

    /// Three bringers. All interleavings of three threads are too many; those with at most two
    /// preemptions are where lost wake-ups are found.
    #[test]
    fn of_three_bringers_none_is_left_unheard() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(2);
        model.check(|| {
            let driven = Arc::new(Driven::new(Vec::new()));
            let others: Vec<_> = [1, 2]
                .into_iter()
                .map(|bit| {
                    let driven = driven.clone();
                    thread::spawn(move || driven.drive(bit, note))
                })
                .collect();
            driven.drive(4, note);
            for other in others {
                other.join().unwrap();
            }
            all_heard_once(&driven, 7);
        });
    }
}
