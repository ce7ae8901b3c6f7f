//! rprocd as a VMM and its guest see it: the real daemon, real firmware, a real socket.
//!
//! What belongs here: what holds for a guest with an ordinary driver, on every VMM, over every
//! start and stop. What does not: attacks on the protocol or the rings (beyond showing that one
//! mistake is not the end), crashes of the firmware, the operator's side.

use std::time::{Duration, Instant};

use vhost::vhost_user::message::VhostUserProtocolFeatures;

use crate::frontend::driver::{DESC_NEXT, DESC_WRITE, Descriptor, Segment};
use crate::frontend::exchange::{Exchange, Sizes, exchange};
use crate::frontend::process::{Core, Daemon};
use crate::frontend::rpmsg::{Announcement, Channel, HEADER, PAYLOAD, RpmsgDriver};
use crate::frontend::vmm::{
    F_EVENT_IDX, F_INDIRECT, F_NAME_SERVICE, F_PACKED, F_PROTOCOL_FEATURES, F_VERSION_1, Manner,
    Options, Vmm,
};

const PATIENCE: Duration = Duration::from_secs(120);

/// What the echo image announces.
const NAME: &str = "rpmsg-raw";
/// Where it listens.
const ADDRESS: u32 = 1024;

fn echo_daemon() -> Daemon {
    Daemon::start(&[Core::default()])
}

fn connect(daemon: &Daemon, options: Options) -> Vmm {
    Vmm::connect(&daemon.socket("echo"), options).unwrap()
}

/// Binds a driver and waits for the announcement, where there can be one.
fn bind(vmm: &mut Vmm) -> RpmsgDriver {
    let mut driver = RpmsgDriver::probe(vmm).unwrap();
    if vmm.guest_features() & F_NAME_SERVICE != 0 {
        assert_eq!(driver.wait_for_channel(NAME, PATIENCE).unwrap(), ADDRESS);
    }
    driver
}

fn bound(options: Options) -> (Daemon, Vmm, RpmsgDriver) {
    let daemon = echo_daemon();
    let mut vmm = connect(&daemon, options);
    let driver = bind(&mut vmm);
    (daemon, vmm, driver)
}

fn created() -> Announcement {
    Announcement::Created(Channel {
        name: NAME.to_owned(),
        address: ADDRESS,
    })
}

/// A million messages, every byte checked.
fn exchange_a_million(in_flight: u64) {
    let (_daemon, _vmm, mut driver) = bound(Options::default());
    let report = exchange(
        &mut driver,
        ADDRESS,
        1_000_000,
        Sizes::UpTo(PAYLOAD),
        in_flight,
    );
    assert_eq!(report.messages, 1_000_000);
    println!("{in_flight} in flight: {report:?}");
}

#[test]
fn a_million_messages_come_back_right_one_at_a_time() {
    exchange_a_million(1);
}

#[test]
fn a_million_messages_come_back_right_with_8_in_flight() {
    exchange_a_million(8);
}

#[test]
fn a_million_messages_come_back_right_with_256_in_flight() {
    exchange_a_million(256);
}

#[test]
fn the_longest_and_the_empty_message_come_back_right() {
    let (_daemon, _vmm, mut driver) = bound(Options::default());
    for size in [0, 1, PAYLOAD - 1, PAYLOAD] {
        exchange(&mut driver, ADDRESS, 2_000, Sizes::Fixed(size), 256);
    }
}

#[test]
fn messages_come_back_right_whatever_the_driver_accepts() {
    let daemon = echo_daemon();
    for (event_idx, indirect, name_service, regions) in [
        (false, false, true, 2),
        (false, true, false, 1),
        (true, false, false, 2),
        (true, true, true, 1),
    ] {
        let options = Options {
            event_idx,
            indirect,
            name_service,
            regions,
            ..Options::default()
        };
        let mut vmm = connect(&daemon, options);
        let mut driver = bind(&mut vmm);
        for in_flight in [1, 256] {
            exchange(&mut driver, ADDRESS, 3_000, Sizes::UpTo(PAYLOAD), in_flight);
        }
        assert_eq!(driver.announcements().len(), usize::from(name_service));
        assert_eq!(driver.stray_announcements(), 0);
    }
}

#[test]
fn every_queue_size_works() {
    let daemon = echo_daemon();
    for queue_size in [2, 64, 256, 1024, 32768] {
        let mut vmm = connect(
            &daemon,
            Options {
                queue_size,
                ..Options::default()
            },
        );
        let mut driver = bind(&mut vmm);
        exchange(&mut driver, ADDRESS, 5_000, Sizes::UpTo(PAYLOAD), 300);
    }
}

#[test]
fn exactly_what_can_be_served_is_offered() {
    let daemon = echo_daemon();
    let vmm = connect(&daemon, Options::default());
    let needed = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT | F_NAME_SERVICE | F_PROTOCOL_FEATURES;
    assert_eq!(
        vmm.offered() & needed,
        needed,
        "offered: {:#x}",
        vmm.offered()
    );
    // ACCESS_PLATFORM, NOTIFICATION_DATA, RING_RESET.
    let impossible = F_PACKED | 1 << 33 | 1 << 38 | 1 << 40;
    assert_eq!(
        vmm.offered() & impossible,
        0,
        "offered: {:#x}",
        vmm.offered()
    );

    let needed = VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::REPLY_ACK;
    let impossible = VhostUserProtocolFeatures::STATUS | VhostUserProtocolFeatures::INFLIGHT_SHMFD;
    assert!(
        vmm.protocol_offered().contains(needed),
        "{:?}",
        vmm.protocol_offered()
    );
    assert!(
        !vmm.protocol_offered().intersects(impossible),
        "{:?}",
        vmm.protocol_offered()
    );
    assert_eq!(vmm.queue_count(), 2);
}

#[test]
fn the_configuration_space_answers_any_legal_read_with_the_exact_length() {
    let daemon = echo_daemon();
    let mut vmm = connect(&daemon, Options::default());
    for (offset, size) in [
        (0, 1),
        (0, 4),
        (1, 3),
        (0, 255),
        (0, 256),
        (255, 1),
        (252, 4),
        (1000, 64),
        (4095, 1),
    ] {
        let bytes = vmm.get_config(offset, size).unwrap();
        assert_eq!(bytes.len(), size as usize, "at {offset}");
    }
    // A VMM may write all of it back.
    vmm.set_config(0, &[0; 256]).unwrap();
    let mut driver = bind(&mut vmm);
    exchange(&mut driver, ADDRESS, 100, Sizes::UpTo(PAYLOAD), 8);
}

#[test]
fn without_announcements_the_bit_is_not_offered_and_the_endpoint_answers() {
    let daemon = Daemon::start(&[Core {
        announce: false,
        ..Core::default()
    }]);
    let mut vmm = connect(&daemon, Options::default());
    assert_eq!(vmm.offered() & F_NAME_SERVICE, 0);
    let mut driver = bind(&mut vmm);
    exchange(&mut driver, ADDRESS, 5_000, Sizes::UpTo(PAYLOAD), 64);
    assert_eq!(driver.stray_announcements(), 0);
}

#[test]
fn each_fresh_start_of_the_driver_is_announced_to_once() {
    let (_daemon, mut vmm, mut driver) = bound(Options::default());
    for _ in 0..20 {
        exchange(&mut driver, ADDRESS, 500, Sizes::UpTo(PAYLOAD), 64);
        assert_eq!(driver.announcements(), [created()]);
        vmm.driver_stop().unwrap();
        driver = bind(&mut vmm);
    }
}

#[test]
fn a_driver_may_come_back_with_other_features_and_sizes() {
    let (_daemon, mut vmm, mut driver) = bound(Options::default());
    for (queue_size, event_idx) in [(64, false), (1024, true), (2, false), (256, true)] {
        exchange(&mut driver, ADDRESS, 500, Sizes::UpTo(PAYLOAD), 64);
        vmm.driver_stop().unwrap();
        vmm.set_driver(|options| {
            options.queue_size = queue_size;
            options.event_idx = event_idx;
        });
        driver = bind(&mut vmm);
    }
    exchange(&mut driver, ADDRESS, 500, Sizes::UpTo(PAYLOAD), 64);
}

#[test]
fn a_pause_with_messages_in_flight_loses_nothing_on_any_vmm() {
    let daemon = echo_daemon();
    for manner in [Manner::Qemu, Manner::CloudHypervisor, Manner::Crosvm] {
        let mut vmm = connect(
            &daemon,
            Options {
                manner,
                ..Options::default()
            },
        );
        let mut driver = bind(&mut vmm);
        let mut exchange = Exchange::new(ADDRESS, 40_000, Sizes::UpTo(PAYLOAD), 256);
        for pause in 1..=30 {
            exchange.advance(&mut driver, pause * 1_000);
            exchange.send(&mut driver);
            vmm.pause().unwrap();
            vmm.resume().unwrap();
        }
        exchange.finish(&mut driver);
        let announced = usize::from(manner != Manner::CloudHypervisor);
        assert_eq!(
            driver.announcements().len(),
            announced,
            "a pause is not a new start"
        );
    }
}

#[test]
fn the_base_of_a_stopped_ring_is_where_the_driver_may_go_on() {
    let (_daemon, mut vmm, mut driver) = bound(Options::default());
    let mut exchange = Exchange::new(ADDRESS, 10_000, Sizes::UpTo(PAYLOAD), 256);
    for pause in 1..=5 {
        exchange.advance(&mut driver, pause * 1_000);
        exchange.send(&mut driver);
        let bases = vmm.pause().unwrap();
        // Nothing is held back: what was taken was also completed.
        let used = [driver.rx().read_used_index(), driver.tx().read_used_index()];
        assert_eq!(bases, used);
        vmm.resume().unwrap();
    }
    exchange.finish(&mut driver);
}

#[test]
fn a_ring_base_at_the_available_index_starves_nobody() {
    let options = Options {
        manner: Manner::CloudHypervisor,
        ..Options::default()
    };
    let (_daemon, _vmm, mut driver) = bound(options);
    exchange(&mut driver, ADDRESS, 20_000, Sizes::UpTo(PAYLOAD), 256);
}

#[test]
fn a_guest_s_rings_survive_a_new_connection() {
    let options = Options {
        manner: Manner::CloudHypervisor,
        ..Options::default()
    };
    let (daemon, mut vmm, mut driver) = bound(options);
    let mut exchange = Exchange::new(ADDRESS, 20_000, Sizes::UpTo(PAYLOAD), 64);
    for part in 1..=5 {
        exchange.advance(&mut driver, part * 2_000);
        vmm.reconnect(&daemon.socket("echo")).unwrap();
        vmm.driver_start().unwrap();
    }
    exchange.finish(&mut driver);
}

#[test]
fn addresses_before_bases_and_features_only_once_work() {
    let options = Options {
        manner: Manner::Crosvm,
        ..Options::default()
    };
    let (_daemon, mut vmm, mut driver) = bound(options);
    for _ in 0..5 {
        exchange(&mut driver, ADDRESS, 4_000, Sizes::UpTo(PAYLOAD), 256);
        vmm.driver_stop().unwrap();
        driver = bind(&mut vmm);
    }
}

#[test]
fn a_new_vmm_is_served_after_the_last_one_hung_up() {
    let daemon = echo_daemon();
    for round in 0..20 {
        let mut vmm = connect(&daemon, Options::default());
        // Some come to look only, some go without a word in the middle of the traffic.
        if round % 3 == 0 {
            continue;
        }
        let mut driver = bind(&mut vmm);
        let mut exchange = Exchange::new(ADDRESS, 2_000, Sizes::UpTo(PAYLOAD), 128);
        exchange.advance(&mut driver, 1_000);
        exchange.send(&mut driver);
        if round % 3 == 1 {
            exchange.finish(&mut driver);
        }
    }
}

#[test]
fn a_long_absence_of_the_driver_delays_nobody_and_leaves_nothing_behind() {
    let (mut daemon, mut vmm, mut driver) = bound(Options::default());
    // The firmware has answers that nobody will take.
    let mut lost = Exchange::new(ADDRESS, 10_000, Sizes::UpTo(PAYLOAD), 256);
    lost.advance(&mut driver, 1_000);
    lost.send(&mut driver);
    vmm.driver_stop().unwrap();
    let before = driver.rx().read_used_index();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        vmm.settle().unwrap();
    }
    assert_eq!(
        driver.rx().read_used_index(),
        before,
        "a stopped ring was written to"
    );
    assert!(daemon.is_running());
    // The next driver sees the announcement first, and no answer to its predecessor.
    let mut driver = bind(&mut vmm);
    exchange(&mut driver, ADDRESS, 5_000, Sizes::UpTo(PAYLOAD), 256);
    assert_eq!(driver.announcements(), [created()]);
}

#[test]
fn a_driver_that_takes_nothing_for_long_is_pressed_back_and_loses_nothing() {
    let (_daemon, vmm, mut driver) = bound(Options::default());
    let mut slow = Exchange::new(ADDRESS, 20_000, Sizes::UpTo(PAYLOAD), 20_000);
    let (mut last, mut since) = (0, Instant::now());
    while since.elapsed() < Duration::from_secs(2) {
        slow.send(&mut driver);
        vmm.settle().unwrap();
        if slow.sent() != last {
            (last, since) = (slow.sent(), Instant::now());
        }
    }
    // All buffers of both directions are full, and what lies between is bounded.
    let buffers = driver.buffers() as u64;
    assert!(
        (2 * buffers..10 * buffers).contains(&last),
        "{last} messages are under way"
    );
    slow.finish(&mut driver);
}

#[test]
fn a_request_to_end_during_traffic_is_followed_cleanly() {
    let (mut daemon, _vmm, mut driver) = bound(Options::default());
    let mut exchange = Exchange::new(ADDRESS, 1_000_000, Sizes::UpTo(PAYLOAD), 256);
    exchange.advance(&mut driver, 5_000);
    exchange.send(&mut driver);
    daemon.ask_to_end();
    let status = daemon.wait_for_end().expect("rprocd ends when asked to");
    assert!(status.success(), "{status}; rprocd said:\n{}", daemon.log());
    assert!(!daemon.socket("echo").exists(), "the socket is left behind");
}

#[test]
fn a_request_to_end_with_nobody_there_is_followed_cleanly() {
    let mut daemon = echo_daemon();
    daemon.ask_to_end();
    let status = daemon.wait_for_end().expect("rprocd ends when asked to");
    assert!(status.success(), "{status}; rprocd said:\n{}", daemon.log());
}

#[test]
fn two_cores_serve_two_guests_that_do_not_notice_each_other() {
    let second = Core {
        name: "other",
        ..Core::default()
    };
    let daemon = Daemon::start(&[Core::default(), second]);
    let mut one = Vmm::connect(&daemon.socket("echo"), Options::default()).unwrap();
    let mut two = Vmm::connect(&daemon.socket("other"), Options::default()).unwrap();
    let (mut left, mut right) = (bind(&mut one), bind(&mut two));
    let mut here = Exchange::new(ADDRESS, 10_000, Sizes::UpTo(PAYLOAD), 64);
    let mut there = Exchange::new(ADDRESS, 10_001, Sizes::UpTo(PAYLOAD), 16);
    for part in 1..=10 {
        here.advance(&mut left, part * 1_000);
        there.advance(&mut right, part * 1_000);
        if part == 5 {
            // What becomes of one guest is nothing to the other.
            two.driver_stop().unwrap();
            right = bind(&mut two);
            there = Exchange::new(ADDRESS, 10_001, Sizes::UpTo(PAYLOAD), 16);
            there.advance(&mut right, 5_000);
        }
    }
    here.finish(&mut left);
    there.finish(&mut right);
}

/// Makes a mistake on the transmit or the receive queue.
type Mistake = fn(&mut RpmsgDriver);

/// Makes a chain of one descriptor available by hand.
fn offer(driver: &mut RpmsgDriver, descriptor: Descriptor) {
    let tx = driver.tx();
    let index = tx.read_avail_index();
    tx.write_descriptor(0, descriptor);
    tx.write_avail_slot(index, 0);
    tx.write_avail_index(index.wrapping_add(1));
    tx.kick_anyway();
}

const MISTAKES: &[(&str, Mistake)] = &[
    ("a buffer outside of memory", |driver| {
        offer(
            driver,
            Descriptor {
                address: 1 << 45,
                length: 64,
                flags: 0,
                next: 0,
            },
        );
    }),
    ("a buffer that wraps around", |driver| {
        offer(
            driver,
            Descriptor {
                address: u64::MAX - 8,
                length: 64,
                flags: 0,
                next: 0,
            },
        );
    }),
    ("a message shorter than its header", |driver| {
        let address = driver.tx().layout().descriptors;
        offer(
            driver,
            Descriptor {
                address,
                length: HEADER as u32 - 1,
                flags: 0,
                next: 0,
            },
        );
    }),
    ("an empty buffer", |driver| {
        let address = driver.tx().layout().descriptors;
        offer(
            driver,
            Descriptor {
                address,
                length: 0,
                flags: 0,
                next: 0,
            },
        );
    }),
    ("a message longer than any buffer", |driver| {
        let address = driver.tx().layout().descriptors;
        offer(
            driver,
            Descriptor {
                address,
                length: 4096,
                flags: 0,
                next: 0,
            },
        );
    }),
    ("a chain that is its own end", |driver| {
        let address = driver.tx().layout().descriptors;
        offer(
            driver,
            Descriptor {
                address,
                length: 64,
                flags: DESC_NEXT,
                next: 0,
            },
        );
    }),
    ("a chain that goes on outside of the table", |driver| {
        let address = driver.tx().layout().descriptors;
        offer(
            driver,
            Descriptor {
                address,
                length: 64,
                flags: DESC_NEXT,
                next: 0xffff,
            },
        );
    }),
    ("a writable buffer to be sent", |driver| {
        let address = driver.tx().layout().descriptors;
        offer(
            driver,
            Descriptor {
                address,
                length: 64,
                flags: DESC_WRITE,
                next: 0,
            },
        );
    }),
    ("a head outside of the table", |driver| {
        let tx = driver.tx();
        let index = tx.read_avail_index();
        tx.write_avail_slot(index, 0x7fff);
        tx.write_avail_index(index.wrapping_add(1));
        tx.kick_anyway();
    }),
    ("an available index far ahead", |driver| {
        let tx = driver.tx();
        tx.write_avail_index(tx.read_avail_index().wrapping_add(0x4000));
        tx.kick_anyway();
    }),
    ("an available index that went back", |driver| {
        let tx = driver.tx();
        tx.write_avail_index(tx.read_avail_index().wrapping_sub(1));
        tx.kick_anyway();
    }),
    ("receive buffers that cannot be written", |driver| {
        // Those that come next: all descriptors of the receive queue.
        let rx = driver.rx();
        for index in 0..rx.layout().size {
            let address = rx.layout().descriptors;
            rx.write_descriptor(
                index,
                Descriptor {
                    address,
                    length: 512,
                    flags: 0,
                    next: 0,
                },
            );
        }
        let _ = driver.send(1030, ADDRESS, b"an answer is wanted");
    }),
    ("receive buffers outside of memory", |driver| {
        let rx = driver.rx();
        for index in 0..rx.layout().size {
            let descriptor = Descriptor {
                address: 0x10,
                length: 512,
                flags: DESC_WRITE,
                next: 0,
            };
            rx.write_descriptor(index, descriptor);
        }
        let _ = driver.send(1030, ADDRESS, b"an answer is wanted");
    }),
];

#[test]
fn a_mistake_in_a_ring_costs_the_guest_a_reset_and_nothing_more() {
    let (mut daemon, mut vmm, mut driver) = bound(Options::default());
    for (what, make) in MISTAKES {
        exchange(&mut driver, ADDRESS, 300, Sizes::UpTo(PAYLOAD), 64);
        make(&mut driver);
        vmm.settle()
            .unwrap_or_else(|failure| panic!("after {what}: {failure}"));
        vmm.driver_stop()
            .unwrap_or_else(|failure| panic!("after {what}: {failure}"));
        assert!(daemon.is_running(), "after {what}");
        driver = bind(&mut vmm);
    }
    exchange(&mut driver, ADDRESS, 5_000, Sizes::UpTo(PAYLOAD), 256);
}

#[test]
fn a_message_in_several_descriptors_is_as_good_as_one() {
    let (_daemon, vmm, mut driver) = bound(Options::default());
    let text = b"in three parts";
    let mut message = [0; HEADER + 14];
    message[..4].copy_from_slice(&1030_u32.to_le_bytes());
    message[4..8].copy_from_slice(&ADDRESS.to_le_bytes());
    message[12..14].copy_from_slice(&14_u16.to_le_bytes());
    message[HEADER..].copy_from_slice(text);
    let address = vmm.ram().allocate(1, 64, 64);
    vmm.ram().write(address, &message);
    let part = |from: u64, to: u64| Segment {
        address: address + from,
        length: (to - from) as u32,
        writable: false,
    };
    driver
        .tx()
        .add(&[part(0, 7), part(7, 20), part(20, 30)])
        .unwrap();
    driver.tx().kick();
    let answer = driver.recv_within(PATIENCE).expect("an answer");
    assert_eq!((answer.source, answer.destination), (ADDRESS, 1030));
    assert_eq!(answer.payload, text);
}
