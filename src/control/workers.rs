//! Threads that answer calls, so that the event loop need not wait for a core.
//!
//! What belongs here: having something done, and hearing when it is. What does not: what it is.
//!
//! There is one thread for each client, made when the socket is: a host that has no room for them
//! says so then, and not in the middle of a call.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, eventfd};

/// A thread's stack.
const STACK_BYTES: usize = 512 << 10;

type Job = Box<dyn FnOnce() + Send>;

/// What is done, by the number that it was given.
struct Finished {
    numbers: Mutex<Vec<i32>>,
    bell: OwnedFd,
}

/// Says that something is done, whether it ended well or in a panic.
struct AtEnd {
    number: i32,
    finished: Arc<Finished>,
}

impl Drop for AtEnd {
    fn drop(&mut self) {
        let numbers = self.finished.numbers.lock();
        numbers
            .unwrap_or_else(PoisonError::into_inner)
            .push(self.number);
        // Full means that it is ringing already.
        let _ = rustix::io::write(&self.finished.bell, &1u64.to_ne_bytes());
    }
}

/// The threads.
pub(super) struct Workers {
    /// `None` at the end.
    jobs: Option<Sender<Job>>,
    finished: Arc<Finished>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// So many threads.
    ///
    /// # Errors
    /// What the host says when it has no thread or descriptor left.
    pub(super) fn new(count: usize) -> io::Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        let mut workers = Self {
            jobs: Some(jobs),
            finished: Arc::new(Finished {
                numbers: Mutex::default(),
                bell: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
            }),
            threads: Vec::new(),
        };
        for number in 0..count {
            let queue = queue.clone();
            let thread = thread::Builder::new()
                .name(format!("control {number}"))
                .stack_size(STACK_BYTES)
                .spawn(move || work(&queue))?;
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    /// Has something done. When it is, the bell rings for `number`, and the result is there; if it
    /// panicked there is none.
    pub(super) fn have_done<R: Send + 'static>(
        &self,
        number: i32,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Receiver<R> {
        let (give, result): (SyncSender<R>, _) = sync_channel(1);
        let at_end = AtEnd {
            number,
            finished: self.finished.clone(),
        };
        let job = move || {
            // The last to go, behind the result.
            let _at_end = at_end;
            let give = give;
            // Nobody waits for it any more, perhaps.
            let _ = give.send(work());
        };
        if let Some(jobs) = &self.jobs {
            // There are threads as long as there is somebody to ask.
            let _ = jobs.send(Box::new(job));
        }
        result
    }

    /// What is readable when something is done.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.finished.bell.as_fd()
    }

    /// The numbers of what is done since the last time.
    pub(super) fn take_finished(&self) -> Vec<i32> {
        let _ = rustix::io::read(&self.finished.bell, &mut [0u8; 8]);
        let numbers = self.finished.numbers.lock();
        std::mem::take(&mut *numbers.unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // It catches its jobs' panics, and has none of its own.
            let _ = thread.join();
        }
    }
}

fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        let job = {
            let queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.recv()
        };
        let Ok(job) = job else { return };
        // The panic has been printed; who asked finds no result.
        let _ = catch_unwind(AssertUnwindSafe(job));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};

    fn wait(workers: &Workers) -> Vec<i32> {
        let mut fds = [PollFd::new(workers, PollFlags::IN)];
        poll(&mut fds, None).unwrap();
        workers.take_finished()
    }

    impl AsFd for Workers {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.bell()
        }
    }

    #[test]
    fn a_result_is_there_when_the_bell_rings_and_none_after_a_panic() {
        let workers = Workers::new(1).unwrap();
        let good = workers.have_done(7, || 42);
        assert_eq!(wait(&workers), [7]);
        assert_eq!(good.try_recv(), Ok(42));
        let bad = workers.have_done(8, || -> u32 { panic!("on purpose") });
        assert_eq!(wait(&workers), [8]);
        assert!(bad.try_recv().is_err());
        // The thread is still there.
        let good = workers.have_done(9, || 43);
        assert_eq!(wait(&workers), [9]);
        assert_eq!(good.recv(), Ok(43));
    }
}
