//! A firmware that dies, and one that ends: what the operator sees and what the guest does not.
//!
//! What belongs here: the real daemon with the `chaos` image. What does not: recovery.

use std::time::{Duration, Instant};

use rprocd::rproc::CoreStatus;

use crate::frontend::process::{Core, Daemon};
use crate::frontend::rpmsg::RpmsgDriver;
use crate::frontend::vmm::{Options, Vmm};

const PATIENCE: Duration = Duration::from_secs(20);
const OWN_ADDRESS: u32 = 1030;

fn started() -> (Daemon, Vmm, RpmsgDriver, u32) {
    let daemon = Daemon::start(&[
        Core {
            name: "chaos",
            image: "chaos",
            announce: true,
        },
        Core::default(),
    ]);
    let mut vmm = Vmm::connect(&daemon.socket("chaos"), Options::default()).unwrap();
    let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
    let address = driver.wait_for_channel("rpmsg-raw", PATIENCE).unwrap();
    (daemon, vmm, driver, address)
}

/// The core's status as soon as it is no longer running.
fn not_running(daemon: &Daemon) -> CoreStatus {
    let end = Instant::now() + PATIENCE;
    loop {
        let core = daemon.status().swap_remove(0);
        if core.state != "running" {
            return core;
        }
        assert!(Instant::now() < end, "the core still runs: {core:?}");
    }
}

/// Sends a deadly command; then the core must be crashed for the reasons given, the connection
/// must live, and the other core must serve.
fn dies_of(command: &str, reasons: &[&str]) {
    let (mut daemon, mut vmm, mut driver, address) = started();
    driver
        .send(OWN_ADDRESS, address, command.as_bytes())
        .unwrap();
    let core = not_running(&daemon);
    assert_eq!((core.state.as_str(), core.crashes), ("crashed", 1));
    let crash = core.last_crash.expect("a reason");
    for reason in reasons {
        assert!(crash.contains(reason), "{reason:?} is not in {crash:?}");
    }
    let what = crash.trim_start_matches("incarnation 1: ");
    daemon.wait_for_log(what);

    // The guest goes on, unserved: it may send, and it may take its driver away and bring it back.
    let _ = driver.send(OWN_ADDRESS, address, b"ping");
    vmm.settle().unwrap();
    vmm.driver_stop().unwrap();
    drop(driver);
    let _driver = RpmsgDriver::probe(&mut vmm).unwrap();
    vmm.settle().unwrap();
    assert!(daemon.is_running());

    let mut other = Vmm::connect(&daemon.socket("echo"), Options::default()).unwrap();
    let mut driver = RpmsgDriver::probe(&mut other).unwrap();
    let address = driver.wait_for_channel("rpmsg-raw", PATIENCE).unwrap();
    driver.send(OWN_ADDRESS, address, b"still there?").unwrap();
    assert_eq!(
        driver.recv_within(PATIENCE).unwrap().payload,
        b"still there?"
    );
}

#[test]
fn an_illegal_instruction_is_a_fatal_error_with_its_cause() {
    dies_of("illegal", &["fatal error", "illegal instruction"]);
}

#[test]
fn a_wild_store_is_a_fatal_error_with_its_cause() {
    dies_of("wild-store", &["fatal error", "store"]);
}

#[test]
fn an_endless_loop_ends_with_the_watchdog() {
    dies_of("hang", &["watchdog", "pc"]);
}

#[test]
fn a_stack_overflow_is_a_fatal_error_with_its_cause() {
    dies_of("stack-overflow", &["fatal error", "store"]);
}

#[test]
fn a_panic_of_the_firmware_is_a_fatal_error() {
    dies_of("panic", &["fatal error"]);
}

#[test]
fn a_firmware_that_powers_off_leaves_an_offline_core_and_a_living_guest() {
    let (mut daemon, vmm, mut driver, address) = started();
    driver.send(OWN_ADDRESS, address, b"exit").unwrap();
    let core = not_running(&daemon);
    assert_eq!((core.state.as_str(), core.crashes), ("offline", 0));
    vmm.settle().unwrap();
    assert!(daemon.is_running());
}

#[test]
fn the_last_words_of_a_crashed_core_can_be_read() {
    let (daemon, _vmm, mut driver, address) = started();
    driver.send(OWN_ADDRESS, address, b"illegal").unwrap();
    not_running(&daemon);
    let output = daemon.rprocctl(&["trace", "chaos"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("illegal instruction"), "{text}");
}

#[test]
fn a_flood_of_trace_text_delays_nobody_for_long() {
    let (daemon, _vmm, mut driver, address) = started();
    driver
        .send(OWN_ADDRESS, address, b"trace-flood 2000")
        .unwrap();
    driver.send(OWN_ADDRESS, address, b"ping").unwrap();
    let answers = [
        driver.recv_within(PATIENCE).unwrap(),
        driver.recv_within(PATIENCE).unwrap(),
    ];
    assert_eq!(answers[1].payload, b"pong");
    assert_eq!(daemon.status()[0].state, "running");
}
