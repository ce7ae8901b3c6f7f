//! The harness held against the reference device, so that a failure against rprocd can be believed.

use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use crate::frontend::driver::crossed;
use crate::frontend::echo_device::{ADDRESS, EchoDevice, Fault, NAME};
use crate::frontend::exchange::{Exchange, Sizes, exchange, fill};
use crate::frontend::rpmsg::{Announcement, Channel, PAYLOAD, RpmsgDriver, SendError, Waiting};
use crate::frontend::vmm::{F_EVENT_IDX, F_NAME_SERVICE, Manner, Options, Vmm};

const PATIENCE: Duration = Duration::from_secs(120);

/// A served reference device.
struct Served {
    path: PathBuf,
    _device: EchoDevice,
    _folder: TempDir,
}

fn served(announce: bool) -> Served {
    served_with(announce, None)
}

fn served_with(announce: bool, fault: Option<Fault>) -> Served {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("echo.sock");
    let _device = EchoDevice::serve(&path, announce, fault);
    Served {
        path,
        _device,
        _folder: folder,
    }
}

fn bound(options: Options) -> (Served, Vmm, RpmsgDriver) {
    let served = served(true);
    let mut vmm = Vmm::connect(&served.path, options).unwrap();
    let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
    if vmm.guest_features() & F_NAME_SERVICE != 0 {
        assert_eq!(driver.wait_for_channel(NAME, PATIENCE).unwrap(), ADDRESS);
    }
    (served, vmm, driver)
}

#[test]
fn the_handshake_ends_with_an_announced_channel() {
    let (_served, vmm, driver) = bound(Options::default());
    assert_eq!(vmm.queue_count(), 2);
    let channel = Channel {
        name: NAME.to_owned(),
        address: ADDRESS,
    };
    assert_eq!(driver.channels(), std::slice::from_ref(&channel));
    assert_eq!(driver.announcements(), [Announcement::Created(channel)]);
    assert_eq!(driver.buffers(), 256);
}

#[test]
fn a_second_connection_is_served_after_the_first_hung_up() {
    let served = served(true);
    for _ in 0..3 {
        let mut vmm = Vmm::connect(&served.path, Options::default()).unwrap();
        let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
        driver.wait_for_channel(NAME, PATIENCE).unwrap();
        exchange(&mut driver, ADDRESS, 100, Sizes::UpTo(PAYLOAD), 8);
    }
}

#[test]
fn all_messages_come_back_right_at_1_8_and_256_in_flight() {
    let (_served, _vmm, mut driver) = bound(Options::default());
    for in_flight in [1, 8, 256] {
        let report = exchange(
            &mut driver,
            ADDRESS,
            20_000,
            Sizes::UpTo(PAYLOAD),
            in_flight,
        );
        assert_eq!(report.messages, 20_000);
        // One call more: the announcement's may be taken late.
        assert!(report.calls <= 20_001, "{report:?}");
        // A kick for each message, and one for each receive buffer given back, at the most; a
        // device that never finds the ring empty needs none.
        assert!(report.kicks <= 40_000, "{report:?}");
        println!("{in_flight} in flight: {report:?}");
    }
}

#[test]
fn all_messages_come_back_right_without_event_indices() {
    let (_served, vmm, mut driver) = bound(Options {
        event_idx: false,
        indirect: false,
        ..Options::default()
    });
    assert_eq!(vmm.guest_features() & F_EVENT_IDX, 0);
    for in_flight in [1, 256] {
        exchange(&mut driver, ADDRESS, 5_000, Sizes::UpTo(PAYLOAD), in_flight);
    }
}

#[test]
fn all_messages_come_back_right_however_the_driver_waits() {
    let (_served, _vmm, mut driver) = bound(Options::default());
    let lingering = Waiting::Lingering(Duration::from_micros(50));
    for waiting in [Waiting::Polling, lingering, Waiting::Sleeping] {
        driver.set_waiting(waiting);
        for in_flight in [1, 32, 256] {
            let report = exchange(&mut driver, ADDRESS, 5_000, Sizes::UpTo(PAYLOAD), in_flight);
            if waiting == Waiting::Polling {
                // Unwanted ones are rare: one of each queue in 65536 messages, and a late one.
                assert!(report.calls <= 4, "{report:?}");
            }
            println!("{waiting:?}, {in_flight} in flight: {report:?}");
        }
    }
}

fn exchange_with(fault: Fault) {
    let served = served_with(true, Some(fault));
    let mut vmm = Vmm::connect(&served.path, Options::default()).unwrap();
    let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
    exchange(&mut driver, ADDRESS, 2_000, Sizes::UpTo(PAYLOAD), 64);
}

#[test]
#[should_panic(expected = "differs at byte")]
fn a_flipped_bit_is_noticed() {
    exchange_with(Fault::FlippedBit);
}

#[test]
#[should_panic(expected = "lost, doubled or out of order")]
fn a_lost_message_is_noticed() {
    exchange_with(Fault::LostMessage);
}

#[test]
#[should_panic(expected = "doubled")]
fn a_doubled_message_is_noticed() {
    exchange_with(Fault::DoubledMessage);
}

#[test]
#[should_panic(expected = "the used length must be 16 more")]
fn a_wrong_used_length_is_noticed() {
    exchange_with(Fault::WholeBufferUsed);
}

#[test]
#[should_panic(expected = "which was available first")]
fn a_completion_out_of_order_is_noticed() {
    exchange_with(Fault::SwappedCompletions);
}

#[test]
fn a_device_that_trusts_the_ring_base_starves_under_cloud_hypervisor_alone() {
    for manner in [Manner::Qemu, Manner::CloudHypervisor, Manner::Crosvm] {
        let served = served_with(true, Some(Fault::TrustedBase));
        let mut vmm = Vmm::connect(
            &served.path,
            Options {
                manner,
                ..Options::default()
            },
        )
        .unwrap();
        let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
        driver.send(1030, ADDRESS, b"text").unwrap();
        let limit = if manner == Manner::CloudHypervisor {
            100
        } else {
            120_000
        };
        let answer = driver.recv_within(Duration::from_millis(limit));
        assert_eq!(
            answer.is_none(),
            manner == Manner::CloudHypervisor,
            "{manner:?}"
        );
    }
}

#[test]
fn every_queue_size_works() {
    for queue_size in [2, 64, 256, 1024, 32768] {
        let (_served, _vmm, mut driver) = bound(Options {
            queue_size,
            ..Options::default()
        });
        assert_eq!(driver.buffers(), usize::from(queue_size).min(256));
        exchange(&mut driver, ADDRESS, 2_000, Sizes::UpTo(PAYLOAD), 300);
    }
}

#[test]
fn a_driver_that_starts_again_is_greeted_again() {
    let (_served, mut vmm, mut driver) = bound(Options::default());
    for _ in 0..3 {
        exchange(&mut driver, ADDRESS, 1_000, Sizes::UpTo(PAYLOAD), 32);
        vmm.driver_stop().unwrap();
        driver = RpmsgDriver::probe(&mut vmm).unwrap();
        driver.wait_for_channel(NAME, PATIENCE).unwrap();
    }
}

#[test]
fn a_pause_loses_nothing_and_is_not_a_new_start() {
    for manner in [Manner::Qemu, Manner::Crosvm, Manner::CloudHypervisor] {
        let (_served, mut vmm, mut driver) = bound(Options {
            manner,
            ..Options::default()
        });
        let mut exchange = Exchange::new(ADDRESS, 20_000, Sizes::UpTo(PAYLOAD), 256);
        for pause in 1..=10 {
            exchange.advance(&mut driver, pause * 1_500);
            exchange.send(&mut driver);
            vmm.pause().unwrap();
            vmm.resume().unwrap();
        }
        exchange.finish(&mut driver);
        let announced = usize::from(manner != Manner::CloudHypervisor);
        assert_eq!(driver.announcements().len(), announced);
    }
}

#[test]
fn a_stopped_ring_is_left_alone() {
    let (_served, mut vmm, mut driver) = bound(Options::default());
    vmm.driver_stop().unwrap();
    let before = driver.tx().read_used_index();
    driver.send(1030, ADDRESS, b"too late").unwrap();
    driver.tx().kick_anyway();
    vmm.settle().unwrap();
    assert!(!driver.wait(Duration::from_millis(50)));
    assert_eq!(driver.tx().read_used_index(), before);
}

#[test]
fn the_guest_s_rings_survive_a_new_connection() {
    let (served, mut vmm, mut driver) = bound(Options {
        manner: Manner::CloudHypervisor,
        ..Options::default()
    });
    let mut exchange = Exchange::new(ADDRESS, 9_000, Sizes::UpTo(PAYLOAD), 64);
    for part in 1..=3 {
        exchange.advance(&mut driver, part * 2_000);
        exchange.send(&mut driver);
        vmm.reconnect(&served.path).unwrap();
        vmm.driver_start().unwrap();
    }
    exchange.finish(&mut driver);
}

#[test]
fn the_manners_of_all_three_vmms_work_in_both_memory_layouts() {
    for manner in [Manner::Qemu, Manner::CloudHypervisor, Manner::Crosvm] {
        for regions in [1, 2] {
            let (_served, _vmm, mut driver) = bound(Options {
                manner,
                regions,
                ..Options::default()
            });
            exchange(&mut driver, ADDRESS, 1_000, Sizes::UpTo(PAYLOAD), 32);
        }
    }
}

#[test]
fn the_configuration_space_is_read_and_written() {
    let served = served(false);
    let mut vmm = Vmm::connect(&served.path, Options::default()).unwrap();
    assert_eq!(vmm.offered() & F_NAME_SERVICE, 0);
    assert_eq!(vmm.get_config(0, 9).unwrap(), b"reference");
    vmm.set_config(2, b"v").unwrap();
    assert_eq!(vmm.get_config(1, 3).unwrap(), b"eve");
}

#[test]
fn a_driver_without_buffers_says_so_and_recovers() {
    let (_served, mut vmm, mut driver) = bound(Options {
        queue_size: 2,
        ..Options::default()
    });
    vmm.pause().unwrap();
    assert_eq!(
        driver.send(1030, ADDRESS, &[0; PAYLOAD + 1]),
        Err(SendError::TooLong)
    );
    for _ in 0..2 {
        driver.send(1030, ADDRESS, b"text").unwrap();
    }
    assert_eq!(
        driver.send(1030, ADDRESS, b"text"),
        Err(SendError::NoBuffer)
    );
    assert!(!driver.is_sent());
    vmm.resume().unwrap();
    for _ in 0..2 {
        let message = driver.recv_within(PATIENCE).unwrap();
        assert_eq!((message.source, message.destination), (ADDRESS, 1030));
        assert_eq!(message.payload, b"text");
    }
    assert!(driver.is_sent());
    driver.send(1030, ADDRESS, b"text").unwrap();
}

proptest! {
    #[test]
    fn a_step_is_reported_exactly_if_it_passes_the_wish(event: u16, old: u16, step in 0_u16..2048) {
        let new = old.wrapping_add(step);
        let passed = (0..step).any(|done| old.wrapping_add(done) == event);
        prop_assert_eq!(crossed(event, new, old), passed);
    }

    #[test]
    fn messages_of_different_numbers_differ(one in 0_u64..1_000_000, other in 0_u64..1_000_000) {
        prop_assume!(one != other);
        let (mut left, mut right) = ([0; 8], [0; 8]);
        fill(one, &mut left);
        fill(other, &mut right);
        prop_assert_ne!(left, right);
    }
}
