//! A guest and a daemon, run from the files in `vmm-config`.

mod agent;
pub mod args;
mod daemon;
mod guest;
mod qmp;
mod wire;

use std::thread;
use std::time::{Duration, Instant};

pub use self::daemon::Daemon;
pub use self::guest::{Answer, Console, Guest, GuestOptions, Vdev};

/// Asks `look` again and again until it has an answer, `limit` at most.
pub fn wait_until<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = look() {
            return Some(answer);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(Duration::from_millis(20));
    }
}
