//! A contestant's process: started, let run, stopped, and what it costs.
//!
//! What belongs here: processes and CPUs. What does not: what is said to a contestant.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_setaffinity};

pub use crate::frontend::usage::Usage;

/// Where the frontend runs.
pub const OUR_CPU: usize = 0;
/// Where all peers run.
pub const PEERS_CPU: usize = 1;

/// The thread that asks, and what it starts from now on, stays on this CPU.
pub fn stay_on(cpu: usize) -> Result<(), String> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set)
        .map_err(|errno| format!("the host lets us not stay on CPU {cpu}: {errno}"))
}

/// Processes that are let run only while they are measured.
pub struct Peer {
    children: Vec<Child>,
}

impl Peer {
    /// Starts this benchmark again, as a contestant; see [`serve`](crate::serve::serve).
    pub fn serve(words: &[&str]) -> Result<Self, String> {
        let ourselves = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new(ourselves);
        command.arg("--serve").args(words);
        Self::start(vec![command])
    }

    /// Starts programs, in this order.
    pub fn start(commands: Vec<Command>) -> Result<Self, String> {
        let mut peer = Self {
            children: Vec::new(),
        };
        stay_on(PEERS_CPU)?;
        for mut command in commands {
            let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
            match child {
                Ok(child) => peer.children.push(child),
                Err(error) => {
                    stay_on(OUR_CPU)?;
                    let program = command.get_program().display();
                    return Err(format!("cannot run {program}: {error}"));
                }
            }
        }
        stay_on(OUR_CPU)?;
        Ok(peer)
    }

    /// Waits until there is a socket at `path`.
    pub fn wait_for(&mut self, path: &Path) -> Result<(), String> {
        let end = Instant::now() + Duration::from_secs(20);
        while !path.exists() {
            for child in &mut self.children {
                if let Ok(Some(status)) = child.try_wait() {
                    return Err(format!("the peer has ended ({status})"));
                }
            }
            if Instant::now() > end {
                return Err(format!("there is no socket at {}", path.display()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // Bound, and listening a moment later.
        std::thread::sleep(Duration::from_millis(20));
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        for child in &self.children {
            let _ = kill_process(Pid::from_child(child), signal);
        }
    }

    /// Lets it run.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Lets it run no more.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// What all its processes have used so far.
    pub fn usage(&self) -> Usage {
        let all = self.children.iter().map(|child| Usage::of(child.id()));
        all.fold(Usage::default(), Usage::plus)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Time that all CPUs together were not idle, since the host was started.
pub fn busy() -> Duration {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    // user, nice, system, idle, iowait, irq, softirq: in hundredths of a second.
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .filter_map(|word| word.parse().ok())
        .collect();
    let busy: u64 = [0, 1, 2, 5, 6]
        .into_iter()
        .filter_map(|index| ticks.get(index))
        .sum();
    Duration::from_millis(10 * busy)
}
