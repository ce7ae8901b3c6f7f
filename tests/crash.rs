//! A firmware that dies, one that ends, and one that is stopped: what the operator sees, and what
//! the guest sees and does not see.
//!
//! What belongs here: the real daemon with the `chaos` image, or with `echo` and an operator. What
//! does not: what is in a dump, real Linux drivers.

use std::time::{Duration, Instant};

use rprocd::rproc::CoreStatus;

use crate::frontend::process::{Core, Daemon};
use crate::frontend::rpmsg::{Announcement, RpmsgDriver};
use crate::frontend::vmm::{Options, Vmm};

const PATIENCE: Duration = Duration::from_secs(120);
const OWN_ADDRESS: u32 = 1030;
const NAME: &str = "rpmsg-raw";
/// What `chaos` announces: its own channel, a terminal, and that of the client sample.
const OF_CHAOS: usize = 3;

const NO_RECOVERY: &str = "[core.recovery]\nenabled = false";
/// Restarts at once, as often as it takes.
const EAGER: &str = "[core.recovery]\nminimum-run-time-ms = 0\nhold-after = 0";

fn started(image: &str, settings: &str, announce: bool) -> (Daemon, Vmm, RpmsgDriver, u32) {
    let daemon = Daemon::start(&[
        Core {
            name: "core",
            image,
            announce,
            settings,
            ..Core::default()
        },
        Core::default(),
    ]);
    let mut vmm = Vmm::connect(&daemon.socket("core"), Options::default()).unwrap();
    let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
    let address = if announce {
        driver.wait_for_channel(NAME, PATIENCE).unwrap()
    } else {
        1024
    };
    (daemon, vmm, driver, address)
}

/// The core's status as soon as `wanted` says so.
fn wait_for(daemon: &Daemon, wanted: impl Fn(&CoreStatus) -> bool) -> CoreStatus {
    let end = Instant::now() + PATIENCE;
    loop {
        let core = daemon.status().swap_remove(0);
        if wanted(&core) {
            return core;
        }
        assert!(Instant::now() < end, "this is how it stays: {core:?}");
    }
}

fn not_running(daemon: &Daemon) -> CoreStatus {
    wait_for(daemon, |core| core.state != "running")
}

/// Waits until the name service has spoken `count` times, with nothing else among it.
fn wait_for_announcements(driver: &mut RpmsgDriver, count: usize) {
    let end = Instant::now() + PATIENCE;
    while driver.announcements().len() < count {
        let left = end.saturating_duration_since(Instant::now());
        assert!(
            left > Duration::ZERO,
            "only these: {:?}",
            driver.announcements()
        );
        if let Some(message) = driver.recv_within(left.min(Duration::from_millis(50))) {
            panic!("an unexpected message: {message:?}");
        }
    }
}

/// Sends a deadly command; then the core must be crashed for the reasons given, the connection
/// must live, and the other core must serve.
fn dies_of(command: &str, reasons: &[&str]) {
    let (mut daemon, mut vmm, mut driver, address) = started("chaos", NO_RECOVERY, true);
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

    // The channels go. The guest goes on, unserved: it may send, and it may take its driver away
    // and bring it back.
    wait_for_announcements(&mut driver, 2 * OF_CHAOS);
    assert!(driver.channels().is_empty());
    let _ = driver.send(OWN_ADDRESS, address, b"ping");
    vmm.settle().unwrap();
    vmm.driver_stop().unwrap();
    drop(driver);
    let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
    vmm.settle().unwrap();
    assert!(daemon.is_running());

    let mut other = Vmm::connect(&daemon.socket("echo"), Options::default()).unwrap();
    let mut other_driver = RpmsgDriver::probe(&mut other).unwrap();
    let other_address = other_driver.wait_for_channel(NAME, PATIENCE).unwrap();
    other_driver
        .send(OWN_ADDRESS, other_address, b"still there?")
        .unwrap();
    let answer = other_driver.recv_within(PATIENCE).unwrap();
    assert_eq!(answer.payload, b"still there?");

    // An operator starts it, and the guest is served.
    assert!(daemon.rprocctl(&["start", "core"]).status.success());
    let address = driver.wait_for_channel(NAME, PATIENCE).unwrap();
    driver.send(OWN_ADDRESS, address, b"incarnation").unwrap();
    assert_eq!(driver.recv_within(PATIENCE).unwrap().payload, b"2");
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
fn each_death_is_followed_by_the_next_incarnation_and_working_channels() {
    let (daemon, _vmm, mut driver, mut address) = started("chaos", EAGER, true);
    let deaths = ["illegal", "wild-store", "hang", "stack-overflow", "panic"];
    let mut died = 0;
    for round in 0..5 {
        for death in deaths {
            driver.send(OWN_ADDRESS, address, death.as_bytes()).unwrap();
            died += 1;
            // All withdrawn, then all announced by the next incarnation.
            let (before, after) = ((2 * died - 1) * OF_CHAOS, (2 * died + 1) * OF_CHAOS);
            wait_for_announcements(&mut driver, after);
            assert_eq!(driver.announcements().len(), after);
            let (gone, come) = driver.announcements()[before..].split_at(OF_CHAOS);
            let withdrawn = |one: &_| matches!(one, Announcement::Destroyed(_));
            let announced = |one: &_| matches!(one, Announcement::Created(_));
            assert!(gone.iter().all(withdrawn), "{gone:?}");
            assert!(come.iter().all(announced), "{come:?}");
            address = driver.wait_for_channel(NAME, PATIENCE).unwrap();
            driver.send(OWN_ADDRESS, address, b"incarnation").unwrap();
            let answer = driver.recv_within(PATIENCE).unwrap();
            let expected = (died + 1).to_string();
            assert_eq!(
                answer.payload,
                expected.as_bytes(),
                "{death}, round {round}"
            );
        }
    }
    let core = daemon.status().swap_remove(0);
    assert_eq!(core.crashes as usize, died);
    // Each deadly message was taken by nobody.
    assert_eq!(core.vdevs[0].to_core.lost as usize, died);
}

#[test]
fn what_was_sent_is_what_was_answered_and_what_was_counted_as_lost() {
    let (daemon, _vmm, mut driver, mut address) = started("chaos", EAGER, true);
    let (mut sent, mut answered) = (0, 0);
    let mut heard = OF_CHAOS;
    for _ in 0..20 {
        for _ in 0..40 {
            if driver.send(OWN_ADDRESS, address, b"ping").is_ok() {
                sent += 1;
            }
        }
        driver.send(OWN_ADDRESS, address, b"illegal").unwrap();
        sent += 1;
        for _ in 0..20 {
            if driver.send(OWN_ADDRESS, address, b"ping").is_ok() {
                sent += 1;
            }
        }
        heard += 2 * OF_CHAOS;
        let end = Instant::now() + PATIENCE;
        while driver.announcements().len() < heard {
            assert!(Instant::now() < end, "{:?}", driver.announcements());
            // From before the death, or sent after the next incarnation was up and before this
            // driver had heard of either.
            if let Some(message) = driver.recv_within(Duration::from_millis(50)) {
                assert_eq!(message.payload, b"pong");
                answered += 1;
            }
        }
        let own = driver.channels().iter().find(|own| own.name == NAME);
        address = own.unwrap().address;
    }
    // One that is answered, so that all before it has been judged.
    driver.send(OWN_ADDRESS, address, b"incarnation").unwrap();
    sent += 1;
    loop {
        let message = driver.recv_within(PATIENCE).unwrap();
        answered += 1;
        if message.payload == b"21" {
            break;
        }
        assert_eq!(message.payload, b"pong");
    }
    let core = daemon.status().swap_remove(0);
    let lost = core.vdevs[0].to_core.lost + core.vdevs[0].to_guest.lost;
    assert_eq!(sent, answered + lost, "{core:?}");
}

#[test]
fn without_name_service_endpoints_stay_and_what_is_sent_waits_for_the_next_incarnation() {
    let (daemon, _vmm, mut driver, address) = started("chaos", NO_RECOVERY, false);
    driver.send(OWN_ADDRESS, address, b"ping").unwrap();
    assert_eq!(driver.recv_within(PATIENCE).unwrap().payload, b"pong");
    driver.send(OWN_ADDRESS, address, b"illegal").unwrap();
    not_running(&daemon);
    driver.send(OWN_ADDRESS, address, b"incarnation").unwrap();
    assert!(daemon.rprocctl(&["start", "core"]).status.success());
    assert_eq!(driver.recv_within(PATIENCE).unwrap().payload, b"2");
    assert!(driver.announcements().is_empty());
}

#[test]
fn a_core_that_dies_too_often_is_held_until_somebody_starts_it() {
    let settings = "[core.recovery]\nminimum-run-time-ms = 0\nhold-after = 3\nhold-window-s = 3600";
    let (daemon, _vmm, mut driver, mut address) = started("chaos", settings, true);
    for death in 1..=3 {
        driver.send(OWN_ADDRESS, address, b"illegal").unwrap();
        if death < 3 {
            wait_for_announcements(&mut driver, (1 + 2 * death) * OF_CHAOS);
            address = driver.wait_for_channel(NAME, PATIENCE).unwrap();
        }
    }
    let core = not_running(&daemon);
    assert_eq!((core.state.as_str(), core.crashes), ("crashed", 3));
    let next = core.next.unwrap();
    assert!(
        next.contains("held after 3 crashes within 3600 s"),
        "{next}"
    );
    assert!(daemon.rprocctl(&["start", "core"]).status.success());
    let core = wait_for(&daemon, |core| core.state == "running");
    assert_eq!(core.incarnation, 4);
}

#[test]
fn a_core_that_dies_young_waits_before_the_next_try() {
    let settings = "[core.recovery]\nminimum-run-time-ms = 3600000\nback-off-ms = 3600000\n\
                    back-off-limit-ms = 3600000";
    let (daemon, _vmm, mut driver, address) = started("chaos", settings, true);
    driver.send(OWN_ADDRESS, address, b"illegal").unwrap();
    let core = not_running(&daemon);
    let next = core.next.unwrap();
    assert!(next.starts_with("restart in 3"), "{next}");
}

#[test]
fn a_stopped_core_takes_its_channels_along_and_a_started_one_brings_them() {
    let (daemon, vmm, mut driver, address) = started("echo", "", true);
    driver.send(OWN_ADDRESS, address, b"before").unwrap();
    assert_eq!(driver.recv_within(PATIENCE).unwrap().payload, b"before");
    for stop in 1..=3 {
        assert!(daemon.rprocctl(&["stop", "core"]).status.success());
        wait_for_announcements(&mut driver, 2 * stop);
        assert!(driver.channels().is_empty());
        assert_eq!(daemon.rprocctl(&["stop", "core"]).status.code(), Some(8));
        vmm.settle().unwrap();
        assert!(daemon.rprocctl(&["start", "core"]).status.success());
        assert_eq!(daemon.rprocctl(&["start", "core"]).status.code(), Some(8));
        let address = driver.wait_for_channel(NAME, PATIENCE).unwrap();
        driver.send(OWN_ADDRESS, address, b"after").unwrap();
        assert_eq!(driver.recv_within(PATIENCE).unwrap().payload, b"after");
    }
}

#[test]
fn a_guest_that_comes_before_the_first_boot_waits_and_is_served() {
    let (daemon, _vmm, mut driver, address) = started("echo", "auto-boot = false", false);
    driver.send(OWN_ADDRESS, address, b"early").unwrap();
    let core = daemon.status().swap_remove(0);
    assert_eq!((core.state.as_str(), core.incarnation), ("offline", 0));
    assert!(daemon.rprocctl(&["start", "core"]).status.success());
    assert_eq!(driver.recv_within(PATIENCE).unwrap().payload, b"early");
}

#[test]
fn a_departed_guest_restarts_the_core_or_resets_the_vdev_as_configured() {
    for (settings, incarnation) in [("restart-core", 2), ("reset-vdev", 1)] {
        let daemon = Daemon::start(&[Core {
            name: "core",
            departure: Some(settings),
            ..Core::default()
        }]);
        for _ in 0..2 {
            let mut vmm = Vmm::connect(&daemon.socket("core"), Options::default()).unwrap();
            let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
            let address = driver.wait_for_channel(NAME, PATIENCE).unwrap();
            driver.send(OWN_ADDRESS, address, b"hello").unwrap();
            assert_eq!(driver.recv_within(PATIENCE).unwrap().payload, b"hello");
            let core = daemon.status().swap_remove(0);
            assert!(core.incarnation <= incarnation, "{core:?}");
            vmm.hang_up();
            wait_for(&daemon, |core| !core.vdevs[0].guest_attached);
        }
        let core = daemon.status().swap_remove(0);
        assert!(core.incarnation >= incarnation, "{settings}: {core:?}");
    }
}

#[test]
fn a_firmware_that_powers_off_leaves_an_offline_core_and_a_living_guest() {
    let (mut daemon, vmm, mut driver, address) = started("chaos", EAGER, true);
    driver.send(OWN_ADDRESS, address, b"exit").unwrap();
    let core = not_running(&daemon);
    assert_eq!((core.state.as_str(), core.crashes), ("offline", 0));
    wait_for_announcements(&mut driver, 2 * OF_CHAOS);
    vmm.settle().unwrap();
    assert!(daemon.is_running());
}

#[test]
fn the_last_words_of_a_crashed_core_can_be_read() {
    let (daemon, _vmm, mut driver, address) = started("chaos", NO_RECOVERY, true);
    driver.send(OWN_ADDRESS, address, b"illegal").unwrap();
    not_running(&daemon);
    let output = daemon.rprocctl(&["trace", "core"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("illegal instruction"), "{text}");
}

#[test]
fn a_flood_of_trace_text_delays_nobody_for_long() {
    let (daemon, _vmm, mut driver, address) = started("chaos", NO_RECOVERY, true);
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

/// A firmware that dies again and again has its lines, and not a disk full of them.
#[test]
fn a_firmware_that_dies_all_the_time_fills_no_log() {
    let (daemon, vmm, mut driver, _) = started("chaos", EAGER, true);
    for _ in 0..200 {
        assert!(daemon.rprocctl(&["crash", "core"]).status.success());
    }
    // What is asked by an operator is all there; what the core says of it is not.
    let log = daemon.log();
    assert_eq!(log.matches("io.rprocd.Crash core").count(), 200);
    let crashes = log.matches("operator had it crash").count();
    assert!((32..100).contains(&crashes), "{crashes}");
    assert!(!log.contains("crash #150"));
    vmm.settle().unwrap();
    let _ = driver.recv_within(Duration::ZERO);
}
