//! What is left of a session when it is over, and what a daemon does when nothing happens: nothing.
//!
//! What belongs here: what can be counted in `/proc/PID`. What does not: memory in bytes, and CPU
//! time; the tests with a real guest measure those.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::frontend::exchange::{Sizes, exchange};
use crate::frontend::process::{Core, Daemon};
use crate::frontend::rpmsg::{PAYLOAD, RpmsgDriver};
use crate::frontend::vmm::{Options, Vmm};

const PATIENCE: Duration = Duration::from_secs(120);
const NAME: &str = "rpmsg-raw";
const ADDRESS: u32 = 1024;

/// What a process holds of its host.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Held {
    descriptors: usize,
    threads: usize,
    /// Of memory that a VMM or a core shares.
    mappings: usize,
}

fn held(daemon: &Daemon) -> Held {
    let entries = |what| {
        let folder = format!("/proc/{}/{what}", daemon.pid());
        fs::read_dir(folder).unwrap().count()
    };
    let maps = fs::read_to_string(format!("/proc/{}/maps", daemon.pid())).unwrap();
    Held {
        descriptors: entries("fd"),
        threads: entries("task"),
        mappings: maps.lines().filter(|line| line.contains("memfd")).count(),
    }
}

/// Waits for the end of what the last session has left to do.
fn comes_to_hold(daemon: &Daemon, wanted: &Held) {
    let end = Instant::now() + PATIENCE;
    while held(daemon) != *wanted {
        assert!(
            Instant::now() < end,
            "held: {:?}, wanted: {wanted:?}",
            held(daemon)
        );
        thread::sleep(Duration::from_millis(5));
    }
}

fn connect(daemon: &Daemon) -> Vmm {
    Vmm::connect(&daemon.socket("echo"), Options::default()).unwrap()
}

fn bind(vmm: &mut Vmm) -> RpmsgDriver {
    let mut driver = RpmsgDriver::probe(vmm).unwrap();
    driver.wait_for_channel(NAME, PATIENCE).unwrap();
    driver
}

#[test]
fn two_hundred_sessions_leave_nothing_behind() {
    let daemon = Daemon::start(&[Core::default()]);
    // One session's worth of things is made before the first VMM comes, and stays.
    drop(connect(&daemon));
    let mut vmm = connect(&daemon);
    bind(&mut vmm);
    let during = held(&daemon);
    drop(vmm);
    for round in 0..200 {
        let mut vmm = connect(&daemon);
        if round % 4 != 0 {
            let mut driver = bind(&mut vmm);
            exchange(&mut driver, ADDRESS, 20, Sizes::UpTo(PAYLOAD), 8);
        }
    }
    let mut vmm = connect(&daemon);
    bind(&mut vmm);
    comes_to_hold(&daemon, &during);
}

#[test]
fn two_hundred_starts_of_a_driver_leave_nothing_behind() {
    let daemon = Daemon::start(&[Core::default()]);
    let mut vmm = connect(&daemon);
    bind(&mut vmm);
    let during = held(&daemon);
    for _ in 0..200 {
        vmm.driver_stop().unwrap();
        let mut driver = bind(&mut vmm);
        exchange(&mut driver, ADDRESS, 20, Sizes::UpTo(PAYLOAD), 8);
    }
    comes_to_hold(&daemon, &during);
}

/// How often the process's threads have been put on a CPU.
fn switches(daemon: &Daemon) -> u64 {
    let threads = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let of_thread = |path: std::path::PathBuf| -> u64 {
        let status = fs::read_to_string(path.join("status")).unwrap_or_default();
        status
            .lines()
            .filter(|line| line.contains("ctxt_switches:"))
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
            .sum()
    };
    threads.map(|entry| of_thread(entry.unwrap().path())).sum()
}

/// Waits for half a second in which no thread of the daemon has run, come or gone.
fn comes_to_rest(daemon: &Daemon) {
    let end = Instant::now() + PATIENCE;
    loop {
        let before = switches(daemon);
        thread::sleep(Duration::from_millis(500));
        let after = switches(daemon);
        if before == after {
            return;
        }
        assert!(
            Instant::now() < end,
            "threads were woken ({before} times, then {after}) while nothing happened"
        );
    }
}

#[test]
fn a_quiet_daemon_never_wakes_up_with_or_without_a_guest() {
    let daemon = Daemon::start(&[Core::default()]);
    comes_to_rest(&daemon);
    let mut vmm = connect(&daemon);
    comes_to_rest(&daemon);
    let mut driver = bind(&mut vmm);
    comes_to_rest(&daemon);
    exchange(&mut driver, ADDRESS, 20_000, Sizes::UpTo(PAYLOAD), 64);
    comes_to_rest(&daemon);
    vmm.driver_stop().unwrap();
    comes_to_rest(&daemon);
    drop(vmm);
    comes_to_rest(&daemon);
}
