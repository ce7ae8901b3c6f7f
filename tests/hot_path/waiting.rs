//! Cores that linger and cores that never sleep, in the real daemon.
//!
//! Each takes a processor while a guest is there, so these tests keep to few messages.

use std::thread;
use std::time::{Duration, Instant};

use rprocd::rproc::CoreStatus;

use crate::frontend::bursts::Bursts;
use crate::frontend::exchange::{Sizes, exchange};
use crate::frontend::process::{Core, Daemon};
use crate::frontend::rpmsg::{Announcement, PAYLOAD, RpmsgDriver};
use crate::frontend::usage::{Usage, all_asleep, at_rest};
use crate::frontend::vmm::{Options, Vmm};

const PATIENCE: Duration = Duration::from_secs(120);
/// In which a core has nothing to do.
const SILENCE: Duration = Duration::from_millis(500);
const NAME: &str = "rpmsg-raw";
const OWN_ADDRESS: u32 = 1030;
/// What `chaos` announces: its own channel, a terminal, and that of the client sample.
const OF_CHAOS: usize = 3;

const LINGERS: &str = "linger-us = 100";
const BUSY: &str = "busy = true";

fn daemon(image: &str, settings: &str) -> Daemon {
    Daemon::start(&[Core {
        name: "core",
        image,
        settings,
        ..Core::default()
    }])
}

/// A core with a guest, and where the guest's service is.
fn served(image: &str, settings: &str) -> (Daemon, Vmm, RpmsgDriver, u32) {
    let daemon = daemon(image, settings);
    let mut vmm = Vmm::connect(&daemon.socket("core"), Options::default()).unwrap();
    let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
    let address = driver.wait_for_channel(NAME, PATIENCE).unwrap();
    (daemon, vmm, driver, address)
}

fn status(daemon: &Daemon) -> CoreStatus {
    daemon.status().swap_remove(0)
}

#[track_caller]
fn ask(daemon: &Daemon, words: &[&str]) {
    let output = daemon.rprocctl(words);
    assert!(output.status.success(), "{output:?}");
}

fn wait_for_announcements(driver: &mut RpmsgDriver, count: usize) {
    let end = Instant::now() + PATIENCE;
    while driver.announcements().len() < count {
        let heard = driver.announcements();
        assert!(Instant::now() < end, "only these: {heard:?}");
        let message = driver.recv_within(Duration::from_millis(50));
        assert_eq!(message, None, "nothing else is sent");
    }
}

/// Time on a processor and wake-ups of all the daemon's threads in a silence, once they sleep.
#[track_caller]
fn uses_nothing(daemon: &Daemon, when: &str) {
    println!("{when}:");
    let before = at_rest(|| all_asleep(daemon.pid()), || Usage::of(daemon.pid()));
    thread::sleep(SILENCE);
    let spent = Usage::of(daemon.pid()).since(before);
    assert_eq!((spent.cpu, spent.switches), (Duration::ZERO, 0), "{when}");
}

/// Messages come back, and the operator is answered all the while.
fn serves(settings: &str) {
    let (daemon, _vmm, mut driver, address) = served("echo", settings);
    for in_flight in [1, 32, 256] {
        exchange(&mut driver, address, 2_000, Sizes::UpTo(PAYLOAD), in_flight);
        assert_eq!(status(&daemon).state, "running");
    }
    assert_eq!(status(&daemon).vdevs[0].to_guest.messages, 6_001);
}

#[test]
fn a_core_that_lingers_echoes_all_messages_and_its_operator_is_answered() {
    serves(LINGERS);
}

#[test]
fn a_busy_core_echoes_all_messages_and_its_operator_is_answered() {
    serves(BUSY);
}

/// Stopped and started under its guest, three times.
fn stops_and_starts(settings: &str) {
    let (daemon, _vmm, mut driver, mut address) = served("echo", settings);
    for round in 1..=3 {
        exchange(&mut driver, address, 500, Sizes::UpTo(PAYLOAD), 32);
        ask(&daemon, &["stop", "core"]);
        wait_for_announcements(&mut driver, 2 * round);
        assert!(driver.channels().is_empty());
        ask(&daemon, &["start", "core"]);
        address = driver.wait_for_channel(NAME, PATIENCE).unwrap();
    }
    exchange(&mut driver, address, 500, Sizes::UpTo(PAYLOAD), 32);
}

#[test]
fn a_core_that_lingers_is_stopped_and_started_under_its_guest() {
    stops_and_starts(LINGERS);
}

#[test]
fn a_busy_core_is_stopped_and_started_under_its_guest() {
    stops_and_starts(BUSY);
}

/// Dies, and its guest is served by the next incarnation.
fn recovers(settings: &str) {
    let eager = "[core.recovery]\nminimum-run-time-ms = 0\nhold-after = 0";
    let settings = format!("{settings}\n{eager}");
    let (daemon, _vmm, mut driver, mut address) = served("chaos", &settings);
    for (died, death) in ["illegal", "panic", "wild-store"].iter().enumerate() {
        driver.send(OWN_ADDRESS, address, death.as_bytes()).unwrap();
        wait_for_announcements(&mut driver, (2 * died + 3) * OF_CHAOS);
        let come = &driver.announcements()[(2 * died + 2) * OF_CHAOS..];
        let announced = |one: &_| matches!(one, Announcement::Created(_));
        assert!(come.iter().all(announced), "{come:?}");
        address = driver.wait_for_channel(NAME, PATIENCE).unwrap();
        driver.send(OWN_ADDRESS, address, b"incarnation").unwrap();
        let answer = driver.recv_within(PATIENCE).unwrap();
        assert_eq!(answer.payload, (died + 2).to_string().as_bytes(), "{death}");
    }
    assert_eq!(status(&daemon).crashes, 3);
}

#[test]
fn a_core_that_lingers_recovers_from_a_crash_under_its_guest() {
    recovers(LINGERS);
}

#[test]
fn a_busy_core_recovers_from_a_crash_under_its_guest() {
    recovers(BUSY);
}

#[test]
fn a_core_that_lingers_sleeps_as_soon_as_there_is_nothing_to_do() {
    let (daemon, mut vmm, mut driver, address) = served("echo", LINGERS);
    for in_flight in [1, 256] {
        exchange(&mut driver, address, 2_000, Sizes::UpTo(PAYLOAD), in_flight);
        uses_nothing(&daemon, "after an exchange");
    }
    ask(&daemon, &["stop", "core"]);
    uses_nothing(&daemon, "stopped");
    ask(&daemon, &["start", "core"]);
    uses_nothing(&daemon, "started");
    vmm.driver_stop().unwrap();
    uses_nothing(&daemon, "without a driver");
}

#[test]
fn a_busy_core_uses_no_processor_while_it_is_stopped_or_nobody_is_there() {
    let daemon = daemon("echo", BUSY);
    uses_nothing(&daemon, "before the first guest");
    let mut vmm = Vmm::connect(&daemon.socket("core"), Options::default()).unwrap();
    uses_nothing(&daemon, "before the guest's driver");
    let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
    let address = driver.wait_for_channel(NAME, PATIENCE).unwrap();
    exchange(&mut driver, address, 500, Sizes::UpTo(PAYLOAD), 32);
    ask(&daemon, &["stop", "core"]);
    uses_nothing(&daemon, "stopped");
    ask(&daemon, &["start", "core"]);
    let address = driver.wait_for_channel(NAME, PATIENCE).unwrap();
    exchange(&mut driver, address, 500, Sizes::UpTo(PAYLOAD), 32);
    vmm.driver_stop().unwrap();
    uses_nothing(&daemon, "without a driver");
    let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
    let address = driver.wait_for_channel(NAME, PATIENCE).unwrap();
    exchange(&mut driver, address, 500, Sizes::UpTo(PAYLOAD), 32);
    drop(vmm);
    uses_nothing(&daemon, "after the guest");
}

#[test]
fn a_busy_core_that_crashed_and_is_not_recovered_uses_no_processor() {
    let settings = format!("{BUSY}\n[core.recovery]\nenabled = false");
    let (daemon, _vmm, mut driver, address) = served("chaos", &settings);
    driver.send(OWN_ADDRESS, address, b"illegal").unwrap();
    wait_for_announcements(&mut driver, 2 * OF_CHAOS);
    uses_nothing(&daemon, "crashed");
    assert_eq!(status(&daemon).state, "crashed");
}

#[test]
fn a_busy_core_wants_no_kicks() {
    let daemon = Daemon::start(&[Core {
        settings: BUSY,
        announce: false,
        ..Core::default()
    }]);
    let options = Options {
        name_service: false,
        ..Options::default()
    };
    let mut vmm = Vmm::connect(&daemon.socket("echo"), options).unwrap();
    let mut bursts = Bursts::probe(&mut vmm).unwrap();
    // One for the core to find out that there is something to be looked at.
    bursts.exchange(1, 1);
    let before = bursts.counts();
    bursts.exchange(500, 1);
    let counts = bursts.counts().since(before);
    assert_eq!((counts.messages, counts.kicks), (500, 0), "{counts:?}");
}
