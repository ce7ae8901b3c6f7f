//! Firmware that floods, scribbles, or dies at a bad moment: who else notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rprocd::engine::{NotifySet, RunEnd};
use rprocd::memory::Ram;
use rprocd::rproc::{Holder, Policies};

use super::vrings::{delivered, guest_memory};
use super::{
    BUFFER, Bench, Device, NUM, PATIENCE, RAM, RAM_LEN, RING_LEN, difference, exchange, guest,
    honest, vdev_offset, write,
};
use crate::frontend::rpmsg::Announcement;
use crate::lifecycle::{crash, without_recovery};

/// Numbers without order.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[test]
fn a_storm_of_kicks_with_all_ids_starves_nobody_and_what_no_vring_has_is_counted() {
    let mut other = Bench::honest();
    let mut bench = Bench::with(1, Policies::default(), |engine| {
        let mut device = Device::new();
        engine.set_storm(NotifySet(u64::MAX), 1000);
        engine.set_script(move |ram, _| {
            device.turn(ram, honest);
            // It never waits.
            RunEnd::BudgetSpent
        });
    });
    for round in 0..100 {
        bench.exchange("in the storm");
        other.exchange("beside it");
        let status = bench.core.status();
        assert_eq!(status.state, "running");
        // All but the two that its vrings have, and those that do not exist, in every turn.
        assert_eq!(status.unknown_kicks % 1062, 0, "{round}");
        assert!(status.unknown_kicks > 0);
    }
    assert_eq!(other.core.status().unknown_kicks, 0);
    bench.core.stop().unwrap();
    let after = bench.core.status().unknown_kicks;
    bench.core.start(Holder::Operator).unwrap();
    bench.until("more", |bench| bench.core.status().unknown_kicks > after);
    other.exchange("after");
}

#[test]
fn a_firmware_that_scribbles_on_all_its_memory_reaches_nothing_of_a_guest_but_buffers_to_be_filled()
{
    let mut other = Bench::honest();
    for seed in 1..=20 {
        let (wild, turns) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let mut bench = {
            let (wild, turns) = (wild.clone(), turns.clone());
            let (mut device, mut dice) = (Device::new(), Dice(seed));
            Bench::new(move |ram, _| {
                if wild.load(Ordering::SeqCst) {
                    let many = [1, 8, 200][(seed % 3) as usize];
                    for _ in 0..many {
                        // Of its vrings and buffers more than of the rest.
                        let span = [RAM_LEN, 0x4000, 0x3000][(dice.roll() % 3) as usize];
                        let at = RAM + dice.roll() % (span - 8);
                        write(ram, at, &dice.roll().to_le_bytes());
                    }
                } else {
                    device.turn(ram, honest);
                }
                turns.fetch_add(1, Ordering::SeqCst);
                RunEnd::Waiting { until: None }
            })
        };
        bench.exchange("before");
        for _ in 0..4 {
            bench.driver.send(1030, 1024, b"never answered").unwrap();
        }
        let end = std::time::Instant::now() + PATIENCE;
        while !bench.driver.is_sent() {
            assert!(std::time::Instant::now() < end, "they are not taken");
            bench
                .driver
                .recv_within(std::time::Duration::from_millis(10));
        }
        // From here on the guest does nothing at all.
        bench.vmm.settle().unwrap();
        let ram = bench.vmm.ram().clone();
        let before = guest_memory(&ram);
        let spans = delivered(&mut bench);
        wild.store(true, Ordering::SeqCst);
        let begun = turns.load(Ordering::SeqCst);
        for turn in 1..200 {
            bench.journal.wake();
            bench.until("a turn", |_| turns.load(Ordering::SeqCst) >= begun + turn);
        }
        let touched = difference(0, &before, &guest_memory(&ram), &spans);
        assert_eq!(touched, None, "seed {seed}");
        other.exchange("beside it");
        // The core is the operator's as before.
        wild.store(false, Ordering::SeqCst);
        bench.core.stop().unwrap();
        assert_eq!(bench.core.status().state, "offline");
    }
}

#[test]
fn a_firmware_that_spoils_one_vdev_serves_the_guest_of_the_other() {
    let spoils = Arc::new(AtomicBool::new(false));
    let mut bench = Bench::with(2, Policies::default(), |engine| {
        let spoils = spoils.clone();
        let mut devices = [0, 1].map(|index| Device::at(vdev_offset(2, index)));
        engine.set_script(move |ram, _| {
            for device in &mut devices {
                device.turn(ram, honest);
            }
            if spoils.load(Ordering::SeqCst)
                && let Some(vrings) = &mut devices[0].vrings
            {
                for vring in vrings {
                    write(ram, vring.at, &[0xff; RING_LEN as usize]);
                    vring.own = Some(0xffff);
                    for buffer in vring.buffers.iter().filter(|buffer| **buffer != 0) {
                        write(ram, *buffer, &[0xff; BUFFER as usize]);
                    }
                }
            }
            RunEnd::Waiting { until: None }
        });
    });
    let path = bench.listening[1].0.clone();
    let (vmm, mut neighbour) = guest(&path);
    bench.exchange("before");
    exchange(&mut neighbour, "before");
    let ram = bench.vmm.ram().clone();
    let before = guest_memory(&ram);
    let spans = delivered(&mut bench);
    spoils.store(true, Ordering::SeqCst);
    for _ in 0..100 {
        exchange(&mut neighbour, "beside it");
    }
    let status = bench.core.status();
    assert_eq!(
        [0, 1].map(|index| status.vdevs[index].driver_ok),
        [false, true]
    );
    assert_eq!(difference(0, &before, &guest_memory(&ram), &spans), None);
    spoils.store(false, Ordering::SeqCst);
    bench.probe_again();
    bench.exchange("after");
    exchange(&mut neighbour, "after");
    drop(vmm);
}

/// A firmware that announces a channel, takes what it is sent and keeps it.
fn hoarder() -> impl FnMut(&Ram, NotifySet) -> RunEnd + Send {
    let mut device = Device::new();
    move |ram, _| {
        let fresh = device.vrings.is_none();
        device.look(ram);
        if fresh {
            device.announce(ram, "rpmsg-raw", 1024);
        }
        RunEnd::Waiting { until: None }
    }
}

/// All that a guest sent is given back to it, its channel is withdrawn, and what was lost counted.
fn is_told(bench: &mut Bench, sent: u64) {
    let end = std::time::Instant::now() + PATIENCE;
    while !(bench.driver.is_sent() && bench.driver.announcements().len() == 2) {
        let heard = bench.driver.announcements();
        assert!(
            std::time::Instant::now() < end,
            "{heard:?} {:?}",
            bench.core.status()
        );
        assert_eq!(bench.driver.recv(), None);
    }
    let last = bench.driver.announcements().last();
    assert!(matches!(last, Some(Announcement::Destroyed(_))), "{last:?}");
    assert_eq!(bench.core.status().vdevs[0].to_core.lost, sent);
}

/// Sends more than the core has buffers for.
fn fill(bench: &mut Bench) -> u64 {
    bench
        .driver
        .wait_for_channel("rpmsg-raw", PATIENCE)
        .unwrap();
    let mut sent = 0;
    while bench.driver.send(1030, 1024, b"kept").is_ok() {
        sent += 1;
        // The first fill the vring, and then the guest's own.
        bench.until("taken", |bench| {
            let holds = bench.core.status().vdevs[0].core_holds;
            u64::from(holds) == sent.min(NUM.into())
        });
    }
    assert!(sent > u64::from(NUM));
    sent
}

#[test]
fn a_guest_whose_buffers_a_core_holds_when_it_dies_gets_them_back_and_is_told() {
    let mut bench = Bench::with(1, without_recovery(), |engine| {
        engine.set_script(hoarder());
    });
    let sent = fill(&mut bench);
    bench.journal.crash(crash("with all that it holds"));
    is_told(&mut bench, sent);
    assert_eq!(bench.core.status().state, "crashed");
}

#[test]
fn a_guest_whose_buffers_a_core_holds_when_it_breaks_its_vring_gets_them_back_and_is_told() {
    let broken = Arc::new(AtomicBool::new(false));
    let mut bench = Bench::with(1, without_recovery(), |engine| {
        let (broken, mut keeps) = (broken.clone(), hoarder());
        let mut device = Device::new();
        engine.set_script(move |ram, kicks| {
            device.look(ram);
            let end = keeps(ram, kicks);
            if broken.load(Ordering::SeqCst)
                && let Some([to_guest, _]) = &mut device.vrings
            {
                to_guest.show(ram, 0x8000);
            }
            end
        });
    });
    let sent = fill(&mut bench);
    broken.store(true, Ordering::SeqCst);
    bench.journal.wake();
    is_told(&mut bench, sent);
    let core = bench.core.status();
    assert_eq!(
        (core.state.as_str(), core.vdevs[0].driver_ok),
        ("running", false)
    );
}
