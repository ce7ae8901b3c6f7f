//! Who drives a core: the thread that brings the work.
//!
//! A core is an object under a lock with a word of pending work beside it. Whoever has work for
//! it leaves a bit in the word and tries the lock. If the lock is free, that thread drives the
//! core; if not, it goes its way, because the holder looks at the word again before it leaves.
//! So no event waits for a second thread to be woken, and none is lost.
//!
//! What belongs here: that hand-over and nothing else; it is proved with loom below. What does
//! not: what the work is.

#[cfg(loom)]
use loom::sync::{
    Mutex,
    atomic::{AtomicU32, Ordering, fence},
};
#[cfg(not(loom))]
use std::sync::{
    Mutex, TryLockError,
    atomic::{AtomicU32, Ordering, fence},
};

/// State that is driven by the thread that brings work for it.
pub struct Driven<T> {
    pending: AtomicU32,
    state: Mutex<T>,
}

impl<T> Driven<T> {
    /// Nobody drives, nothing is pending.
    pub fn new(state: T) -> Self {
        Self {
            pending: AtomicU32::new(0),
            state: Mutex::new(state),
        }
    }

    /// Leaves `work` (a set of bits) and, unless another thread is driving, drives: `turn` gets
    /// the state and the bits that were pending, again and again until none are.
    ///
    /// When this returns, the bits have been handed to a turn that began after they were left, or
    /// the thread that drives at this moment will hand them to one.
    ///
    /// A thread that panicked in a turn has left the state in doubt: the core is then never
    /// driven again, here or anywhere.
    pub fn drive(&self, work: u32, mut turn: impl FnMut(&mut T, u32)) {
        self.pending.fetch_or(work, Ordering::AcqRel);
        loop {
            // Pairs with the fence below. Either we see the lock free, or its holder, who looks
            // at the word after it let go, sees our bits.
            fence(Ordering::SeqCst);
            let Some(mut state) = self.try_state() else {
                return;
            };
            loop {
                let work = self.pending.swap(0, Ordering::AcqRel);
                if work == 0 {
                    break;
                }
                turn(&mut state, work);
            }
            drop(state);
            fence(Ordering::SeqCst);
            if self.pending.load(Ordering::Acquire) == 0 {
                return;
            }
        }
    }

    /// Is more work waiting? For a turn that wants to know whether to end early.
    pub fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed) != 0
    }

    #[cfg(not(loom))]
    fn try_state(&self) -> Option<std::sync::MutexGuard<'_, T>> {
        match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::WouldBlock) => None,
            Err(TryLockError::Poisoned(_)) => {
                log::error!("a core is in doubt after a panic and is not driven any more");
                None
            }
        }
    }

    #[cfg(loom)]
    fn try_state(&self) -> Option<loom::sync::MutexGuard<'_, T>> {
        self.state.try_lock().ok()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn work_left_during_a_turn_is_handed_to_a_later_turn() {
        let driven = Driven::new(Vec::new());
        driven.drive(1, |turns: &mut Vec<u32>, work| {
            turns.push(work);
            if work == 1 {
                // The lock is held: this call only leaves its bit.
                driven.drive(2, |_, _| unreachable!());
                assert!(driven.is_pending());
            }
        });
        driven.drive(0, |_, _| unreachable!("nothing is pending"));
        let mut seen = Vec::new();
        driven.drive(4, |turns, work| {
            turns.push(work);
            seen.clone_from(turns);
        });
        assert_eq!(seen, [1, 2, 4]);
    }
}

/// Run with `RUSTFLAGS="--cfg loom" cargo test --release --lib drive::model`.
#[cfg(all(test, loom))]
mod model {
    use super::*;
    use loom::{sync::Arc, thread};

    /// Every interleaving of two bringers: each bit is seen by exactly one turn.
    #[test]
    fn no_bit_is_lost_and_none_is_seen_twice() {
        loom::model(|| {
            let driven = Arc::new(Driven::new(Vec::<u32>::new()));
            let other = {
                let driven = driven.clone();
                thread::spawn(move || driven.drive(1, |seen, work| seen.push(work)))
            };
            driven.drive(2, |seen, work| seen.push(work));
            other.join().unwrap();
            assert!(!driven.is_pending());
            let seen = driven.state.lock().unwrap();
            assert_eq!(seen.iter().fold(0, |all, bits| all | bits), 3);
            assert_eq!(seen.iter().map(|bits| bits.count_ones()).sum::<u32>(), 2);
        });
    }

    /// Three bringers, one of them twice.
    #[test]
    fn a_bringer_that_comes_twice_is_heard_twice_or_once_for_both() {
        loom::model(|| {
            let driven = Arc::new(Driven::new(0u32));
            let others: Vec<_> = [1, 2]
                .into_iter()
                .map(|bit| {
                    let driven = driven.clone();
                    thread::spawn(move || driven.drive(bit, |seen, work| *seen |= work))
                })
                .collect();
            driven.drive(4, |seen, work| *seen |= work);
            for other in others {
                other.join().unwrap();
            }
            assert!(!driven.is_pending());
            assert_eq!(*driven.state.lock().unwrap(), 7);
        });
    }
}
