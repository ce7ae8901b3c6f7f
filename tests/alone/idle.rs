//! What vdevs cost whose guests have nothing to say.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rprocd::engine::Engine;
use rprocd::rproc::Policies;

use crate::frontend::bursts::Bursts;
use crate::frontend::usage::{Usage, at_rest, others_asleep};
use crate::frontend::vmm::Vmm;
use crate::guest;
use crate::in_process::native::{self, FAILED, MAX_VDEVS, Native};
use crate::in_process::{serve, serve_native, socket};

/// Two cores' worth.
const VDEVS: usize = 2 * MAX_VDEVS;
const ROUNDS: u64 = 1000;
const PATIENCE: Duration = Duration::from_secs(120);

/// Guests of the vdevs `0..count`, each of which has exchanged something.
fn guests(prefix: &Path, count: usize) -> Vec<(Vmm, Bursts)> {
    (0..count)
        .map(|vdev| {
            let (vmm, mut bursts) = guest(&socket(prefix, vdev));
            bursts.exchange(2, 32);
            (vmm, bursts)
        })
        .collect()
}

/// What all threads but this one have used when they have come to rest.
fn others_at_rest() -> Usage {
    at_rest(others_asleep, Usage::of_our_other_threads)
}

/// Of the process's own memory; the guests' is shared. What the guest's side has in this process
/// is counted as well, so a vdev takes less.
pub fn a_vdev_with_an_idle_guest_takes_256_kib_at_most() {
    const MORE: usize = 32;
    let folder = tempfile::tempdir().unwrap();
    let [one, more] = ["one", "more"].map(|name| folder.path().join(name));
    let policies = Policies::default();
    let _one = serve_native(&one, 1, &policies).unwrap();
    let _guest = guests(&one, 1);
    let before = Usage::ours();
    let _more = serve_native(&more, MORE, &policies).unwrap();
    let _guests = guests(&more, MORE);
    let after = Usage::ours();
    let each = after.anonymous.saturating_sub(before.anonymous) / MORE as u64;
    println!("an idle vdev takes {each} bytes");
    assert!(each <= 256 << 10, "an idle vdev takes {each} bytes");
}

pub fn nobody_runs_while_64_guests_are_idle() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("native");
    let _served = serve_native(&prefix, VDEVS, &Policies::default()).unwrap();
    let _guests = guests(&prefix, VDEVS);
    let before = others_at_rest();
    assert!(before.threads > VDEVS as u64, "{before:?}");
    thread::sleep(Duration::from_secs(1));
    let spent = Usage::of_our_other_threads().since(before);
    assert_eq!((spent.cpu, spent.switches), (Duration::ZERO, 0));
}

pub fn a_busy_guest_wakes_nobody_else_s_thread() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("native");
    let _served = serve_native(&prefix, VDEVS, &Policies::default()).unwrap();
    let mut guests = guests(&prefix, VDEVS);
    // Neither the first nor the last of its core.
    let (_, busy) = &mut guests[MAX_VDEVS / 2];
    for burst in [1, 32, 256] {
        busy.exchange(1, burst);
        let (before, counts) = (others_at_rest(), busy.counts());
        busy.exchange(ROUNDS, burst);
        let switches = others_at_rest().since(before).switches;
        let kicks = busy.counts().since(counts).kicks;
        println!("{burst} in flight: {kicks} kicks, {switches} wake-ups");
        // Some more, for a thread may have to wait for another's page.
        let stray = 8;
        assert!(
            switches <= kicks + stray,
            "{kicks} kicks of one guest woke {switches} threads"
        );
    }
}

pub fn vrings_of_idle_vdevs_are_not_opened_while_another_is_busy() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("native");
    let engine = Native::new(MAX_VDEVS).unwrap();
    let ram = Arc::clone(engine.ram());
    let image = native::image(MAX_VDEVS);
    let engine = Box::new(engine);
    let _served = serve(&prefix, 0, MAX_VDEVS, engine, image, Policies::default()).unwrap();
    let mut guests = guests(&prefix, MAX_VDEVS);
    others_at_rest();
    let busy = MAX_VDEVS / 2;
    for vdev in (0..MAX_VDEVS).filter(|vdev| *vdev != busy) {
        native::lay_trap(&ram, MAX_VDEVS, vdev).unwrap();
    }
    // Nothing is asked of the core: it looks at all vdevs after an answer.
    let failed = || -> Vec<usize> {
        (0..MAX_VDEVS)
            .filter(|vdev| native::status(&ram, MAX_VDEVS, *vdev) & FAILED != 0)
            .collect()
    };
    for burst in [1, 32, 256] {
        guests[busy].1.exchange(ROUNDS, burst);
        assert_eq!(failed(), Vec::<usize>::new(), "{burst} in flight");
    }
    // The traps are good ones.
    for vdev in [0, MAX_VDEVS - 1] {
        guests[vdev].1.kick_anyway();
    }
    let end = Instant::now() + PATIENCE;
    while failed() != [0, MAX_VDEVS - 1] {
        assert!(Instant::now() < end, "{:?}", failed());
        thread::sleep(Duration::from_millis(1));
    }
}
