//! Waiting on a file descriptor, with a limit.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// What a wait ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// There is something to read.
    Readable,
    /// Nothing came in time.
    TimedOut,
    /// The device is gone.
    Gone,
}

/// Waits until `fd` can be read, `limit` at most.
pub fn readable(fd: impl AsFd, limit: Duration) -> Result<Readiness> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Ok(Readiness::TimedOut),
            Ok(_) if fds[0].revents().contains(PollFlags::IN) => return Ok(Readiness::Readable),
            Ok(_) => return Ok(Readiness::Gone),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("poll failed"),
        }
    }
}
