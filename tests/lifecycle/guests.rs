//! A core and the guests of its vdev.

use std::time::Instant;

use rprocd::rproc::{Departure, Holder, Policies, RequestError};

use super::{Noting, PATIENCE, Table, core, crash, eager, engine, image, served, table, wait_for};
use crate::frontend::rpmsg::RpmsgDriver;
use crate::frontend::vmm::{Options, Vmm};

fn on_guest() -> Policies {
    Policies {
        boot_on_guest: true,
        ..eager()
    }
}

#[test]
fn the_first_guest_starts_a_core_and_the_last_one_s_departure_stops_it() {
    let (core, journal) = core(engine(), on_guest());
    let socket = served(&core);
    for incarnation in 1..4 {
        assert_eq!(core.status().state, "offline");
        let mut vmm = Vmm::connect(&socket.path, Options::default()).unwrap();
        assert!(journal.take().is_empty(), "a VMM is no guest yet");
        let _driver = RpmsgDriver::probe(&mut vmm).unwrap();
        wait_for(&core, "running");
        let status = core.status();
        assert_eq!(status.holders, ["guest of vdev 0"]);
        assert_eq!(status.incarnation, incarnation);
        assert!(status.vdevs[0].driver_ok);
        drop(vmm);
        wait_for(&core, "offline");
        journal.take();
    }
}

#[test]
fn a_core_that_stops_with_its_last_guest_is_not_restarted_for_nobody_first() {
    let policies = Policies {
        departures: vec![Departure::RestartCore],
        ..on_guest()
    };
    let (core, journal) = core(engine(), policies);
    let socket = served(&core);
    let mut vmm = Vmm::connect(&socket.path, Options::default()).unwrap();
    let _driver = RpmsgDriver::probe(&mut vmm).unwrap();
    wait_for(&core, "running");
    journal.take();
    drop(vmm);
    wait_for(&core, "offline");
    let calls = journal.take();
    assert!(!calls.contains(&"start".to_owned()), "{calls:?}");
    assert_eq!(core.status().incarnation, 1);
}

#[test]
fn a_core_that_an_operator_holds_outlives_its_guests() {
    let (core, _) = core(engine(), on_guest());
    let socket = served(&core);
    core.start(Holder::Operator).unwrap();
    let mut vmm = Vmm::connect(&socket.path, Options::default()).unwrap();
    let _driver = RpmsgDriver::probe(&mut vmm).unwrap();
    let end = Instant::now() + PATIENCE;
    while core.status().holders.len() < 2 {
        assert!(Instant::now() < end);
    }
    drop(vmm);
    while core.status().holders.len() > 1 {
        assert!(Instant::now() < end);
    }
    assert_eq!(core.status().state, "running");
    assert_eq!(core.status().holders, ["operator"]);
}

#[test]
fn vdevs_start_after_the_subdevices_and_stop_before_them() {
    let (core, journal) = core(engine(), Policies::default());
    core.add_subdevice(Box::new(Noting {
        name: "a",
        journal: journal.clone(),
        fails_at: None,
    }));
    let socket = served(&core);
    let mut vmm = Vmm::connect(&socket.path, Options::default()).unwrap();
    let _driver = RpmsgDriver::probe(&mut vmm).unwrap();
    let end = Instant::now() + PATIENCE;
    while !core.status().vdevs[0].guest_attached {
        assert!(Instant::now() < end);
    }
    core.start(Holder::Operator).unwrap();
    let calls = journal.take();
    assert_eq!(
        calls[calls.len() - 4..],
        ["a prepare", "start", "a start", "kick 0"]
    );
}

#[test]
fn a_crash_that_is_reported_from_another_thread_is_handled_once() {
    let (core, journal) = core(engine(), eager());
    core.start(Holder::Operator).unwrap();
    let threads: Vec<_> = (0..4)
        .map(|number| {
            let journal = journal.clone();
            std::thread::spawn(move || journal.crash_of(1, crash(&format!("thread {number}"))))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let end = Instant::now() + PATIENCE;
    while core.status().incarnation != 2 {
        assert!(Instant::now() < end, "{:?}", core.status());
    }
    let status = core.status();
    assert_eq!((status.crashes, status.state.as_str()), (1, "running"));
}

#[test]
fn a_firmware_that_would_change_what_a_vmm_was_told_waits_until_it_is_gone() {
    let (core, _) = core(engine(), Policies::default());
    let socket = served(&core);
    let other = image(&Table::new().carveout(0x8000_0000, 0x2000, "image").vdev(
        7,
        0,
        &[(super::ANY, 16, 8); 2],
        &[1, 2],
    ));
    let mut vmm = Vmm::connect(&socket.path, Options::default()).unwrap();
    let _driver = RpmsgDriver::probe(&mut vmm).unwrap();
    // The same identity, and another image.
    let same = image(&table().trace(0x8000_0800, 0x80, "log"));
    core.set_firmware(same).unwrap();
    let error = core.set_firmware(other.clone()).unwrap_err();
    assert!(matches!(error, RequestError::Firmware { .. }));
    let text = rprocd::report::sentence(&error);
    assert!(
        text.contains("vdev 0") && text.contains("a VMM that has been told the former"),
        "{text}"
    );
    drop(vmm);
    let end = Instant::now() + PATIENCE;
    while core.set_firmware(other.clone()).is_err() {
        assert!(Instant::now() < end, "the VMM is gone");
    }
    let vmm = Vmm::connect(&socket.path, Options::default()).unwrap();
    drop(vmm);
    core.start(Holder::Operator).unwrap();
    assert_eq!(core.status().state, "running");
}

#[test]
fn a_firmware_with_another_number_of_vdevs_is_refused_and_the_old_one_kept() {
    let (core, _) = core(engine(), Policies::default());
    let hash = core.status().firmware_sha256;
    let error = core
        .set_firmware(image(&Table::new().carveout(0x8000_0000, 0x2000, "image")))
        .unwrap_err();
    let text = rprocd::report::sentence(&error);
    assert!(text.contains("declares 0 vdev(s)"), "{text}");
    assert_eq!(core.status().firmware_sha256, hash);
    core.start(Holder::Operator).unwrap();
}

#[test]
fn a_guest_that_arrives_while_the_core_is_suspended_is_served_when_it_goes_on() {
    let (core, _) = core(engine(), Policies::default());
    let socket = served(&core);
    core.start(Holder::Operator).unwrap();
    core.suspend().unwrap();
    let mut vmm = Vmm::connect(&socket.path, Options::default()).unwrap();
    let _driver = RpmsgDriver::probe(&mut vmm).unwrap();
    let end = Instant::now() + PATIENCE;
    while !core.status().vdevs[0].guest_attached {
        assert!(Instant::now() < end);
    }
    assert!(!core.status().vdevs[0].driver_ok);
    core.resume().unwrap();
    assert!(core.status().vdevs[0].driver_ok);
}

#[test]
fn kicks_with_ids_that_no_vring_has_are_counted() {
    use rprocd::engine::NotifySet;
    let mut engine = engine();
    engine.set_kicks(NotifySet(0b1_0110));
    let (core, _) = core(engine, Policies::default());
    core.start(Holder::Operator).unwrap();
    let end = Instant::now() + PATIENCE;
    while core.status().unknown_kicks != 2 {
        assert!(Instant::now() < end, "{:?}", core.status());
    }
}
