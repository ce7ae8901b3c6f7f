//! What a process has used, as the kernel counts it.
//!
//! What belongs here: reading `/proc`. What does not: what is right and what is too much.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// How long threads may take to come to rest.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a process, or some of its threads, has used.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Usage {
    /// Time on a CPU.
    pub cpu: Duration,
    /// Times that a thread went to sleep.
    pub switches: u64,
    /// Threads.
    pub threads: u64,
    /// Bytes of memory that the process has now.
    pub resident: u64,
    /// Those of them that are its own: neither files nor shared.
    pub anonymous: u64,
}

impl Usage {
    /// That of a process; nothing if it is gone.
    pub fn of(pid: u32) -> Self {
        Self::of_threads(pid, |_| true)
    }

    /// That of this process.
    pub fn ours() -> Self {
        Self::of(std::process::id())
    }

    /// That of this process without the thread that asks.
    pub fn of_our_other_threads() -> Self {
        let asks = asking();
        Self::of_threads(std::process::id(), |thread| thread != asks)
    }

    fn of_threads(pid: u32, counts: impl Fn(&str) -> bool) -> Self {
        let folder = format!("/proc/{pid}");
        let mut usage = Self::default();
        let tasks = fs::read_dir(format!("{folder}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            if counts(&task.file_name().to_string_lossy()) {
                usage.add_thread(&task.path());
            }
        }
        let status = fs::read_to_string(format!("{folder}/status")).unwrap_or_default();
        usage.resident = field(&status, "VmRSS:") << 10;
        usage.anonymous = field(&status, "RssAnon:") << 10;
        usage
    }

    fn add_thread(&mut self, task: &Path) {
        let read = |name: &str| fs::read_to_string(task.join(name)).unwrap_or_default();
        let spent = read("schedstat");
        let spent = spent.split(' ').next().and_then(|word| word.parse().ok());
        self.cpu += Duration::from_nanos(spent.unwrap_or_default());
        self.switches += field(&read("status"), "voluntary_ctxt_switches:");
        self.threads += 1;
    }

    /// Both.
    pub fn plus(self, other: Self) -> Self {
        Self {
            cpu: self.cpu + other.cpu,
            switches: self.switches + other.switches,
            threads: self.threads + other.threads,
            resident: self.resident + other.resident,
            anonymous: self.anonymous + other.anonymous,
        }
    }

    /// What was used since an earlier look; threads and memory are those of now.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(earlier.cpu),
            switches: self.switches.saturating_sub(earlier.switches),
            ..self
        }
    }
}

/// The thread that asks.
fn asking() -> String {
    rustix::thread::gettid().as_raw_nonzero().to_string()
}

/// Do all threads of a process sleep, at this moment?
pub fn all_asleep(pid: u32) -> bool {
    are_asleep(pid, |_| true)
}

/// Do all threads of this process sleep but the one that asks?
pub fn others_asleep() -> bool {
    let asks = asking();
    are_asleep(std::process::id(), |thread| thread != asks)
}

/// Waits until all threads of a process sleep that count, and have slept for a while: they are
/// looked at one after the other, and one may wake another meanwhile. What they have used by then.
pub fn at_rest(asleep: impl Fn() -> bool, usage: impl Fn() -> Usage) -> Usage {
    let end = Instant::now() + PATIENCE;
    let mut before = usage();
    loop {
        thread::sleep(Duration::from_millis(20));
        let after = usage();
        if asleep() && (after.cpu, after.switches) == (before.cpu, before.switches) {
            return after;
        }
        assert!(Instant::now() < end, "threads run on and on: {after:?}");
        before = after;
    }
}

fn are_asleep(pid: u32, counts: impl Fn(&str) -> bool) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let mut tasks = tasks.into_iter().flatten().flatten();
    tasks.all(|task| {
        // A name, which may have any character in it, is in brackets before the state.
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        !counts(&task.file_name().to_string_lossy())
            || stat
                .rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with('S'))
    })
}

fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or_default()
}
