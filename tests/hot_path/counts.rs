//! Kicks, calls and wake-ups with both sides asleep between bursts.

use std::path::Path;
use std::time::{Duration, Instant};

use rprocd::rproc::Policies;
use tempfile::TempDir;

use crate::frontend::bursts::{Bursts, Counts};
use crate::frontend::process::{Core, Daemon};
use crate::frontend::usage::{Usage, all_asleep};
use crate::frontend::vmm::{Options, Vmm};
use crate::in_process::{Served, serve_native, socket};

const PATIENCE: Duration = Duration::from_secs(120);
/// More than once around a ring, and more than once around its indexes with 256 in flight.
const ROUNDS: u64 = 1000;
/// Of all threads of a daemon: what their start and their last look may add.
const STRAY_SWITCHES: u64 = 8;

fn guest(path: &Path) -> (Vmm, Bursts) {
    let options = Options {
        name_service: false,
        ..Options::default()
    };
    let mut vmm = Vmm::connect(path, options).unwrap();
    let bursts = Bursts::probe(&mut vmm).unwrap();
    (vmm, bursts)
}

fn native() -> (TempDir, Vec<Served>, Vmm, Bursts) {
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("native");
    let served = serve_native(&prefix, 1, &Policies::default()).unwrap();
    let (vmm, bursts) = guest(&socket(&prefix, 0));
    (folder, served, vmm, bursts)
}

/// The real daemon with the echo image.
fn daemon() -> (Daemon, Vmm, Bursts) {
    let daemon = Daemon::start(&[Core {
        announce: false,
        ..Core::default()
    }]);
    let (vmm, bursts) = guest(&daemon.socket("echo"));
    (daemon, vmm, bursts)
}

/// Kicks and calls that nobody wants: one at the start, and one each time that a queue's index comes
/// by the last place where one was wanted, for "never again" cannot be said with event indices.
fn stray(messages: u64) -> u64 {
    1 + messages.div_ceil(1 << 16)
}

/// What the rounds take, after one that is not counted.
fn counted(bursts: &mut Bursts, burst: u16) -> Counts {
    bursts.exchange(1, burst);
    let before = bursts.counts();
    bursts.exchange(ROUNDS, burst);
    let counts = bursts.counts().since(before);
    println!("{burst} in flight: {counts:?}");
    assert_eq!(counts.messages, ROUNDS * u64::from(burst));
    counts
}

/// One kick and one call a burst are 1, 0.031 and 0.0039 a message.
fn takes_one_kick_and_one_call_a_burst(bursts: &mut Bursts) {
    for (burst, limit) in [(1, 1.0), (32, 0.035), (256, 0.006)] {
        let counts = counted(bursts, burst);
        let stray = stray(counts.messages);
        assert!(counts.kicks <= ROUNDS + stray, "{burst}: {counts:?}");
        assert!(counts.calls <= ROUNDS + stray, "{burst}: {counts:?}");
        let most = (counts.messages as f64 * limit) as u64 + 1;
        assert!(counts.kicks <= most, "{burst}: {counts:?}");
        assert!(counts.calls <= most, "{burst}: {counts:?}");
    }
}

#[test]
fn a_burst_of_1_32_or_256_takes_one_kick_and_the_one_call_at_its_end_that_the_guest_asked_for() {
    let (_folder, _served, _vmm, mut bursts) = native();
    takes_one_kick_and_one_call_a_burst(&mut bursts);
}

#[test]
fn with_the_echo_image_a_burst_takes_one_kick_and_the_one_call_that_the_guest_asked_for_as_well() {
    let (_daemon, _vmm, mut bursts) = daemon();
    takes_one_kick_and_one_call_a_burst(&mut bursts);
}

#[test]
fn a_round_trip_between_sleepers_wakes_one_thread_of_the_daemon_and_the_guest_once() {
    let (daemon, _vmm, mut bursts) = daemon();
    for burst in [1, 32, 256] {
        bursts.exchange(1, burst);
        // Its threads have all come to where they wait, those that it has just started too.
        until_asleep(&daemon);
        let (before, counts) = (Usage::of(daemon.pid()), bursts.counts());
        for _ in 0..ROUNDS {
            until_asleep(&daemon);
            bursts.exchange(1, burst);
        }
        let switches = Usage::of(daemon.pid()).since(before).switches;
        let counts = bursts.counts().since(counts);
        println!("{burst} in flight: {switches} wake-ups of the daemon's threads, {counts:?}");
        assert!(
            switches <= ROUNDS + stray(counts.messages) + STRAY_SWITCHES,
            "{burst} in flight: {ROUNDS} rounds woke threads of the daemon {switches} times"
        );
        // Nothing but a kick wakes a thread, and a kick wakes one.
        assert!(
            switches <= counts.kicks + STRAY_SWITCHES,
            "{burst} in flight: {} kicks woke threads of the daemon {switches} times",
            counts.kicks
        );
        assert!(counts.sleeps <= ROUNDS, "{counts:?}");
        // If they do not sleep, nothing has been shown.
        assert!(counts.kicks > ROUNDS / 10 * 9, "{counts:?}");
    }
}

/// Waits until no thread of the daemon has anything to do.
fn until_asleep(daemon: &Daemon) {
    let end = Instant::now() + PATIENCE;
    while !all_asleep(daemon.pid()) {
        assert!(Instant::now() < end, "the daemon does not come to rest");
    }
}
