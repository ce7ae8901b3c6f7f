//! Messages a second through rprocd: frontend, guest ring, relay, vring, `echo` firmware, and back.
//!
//! Run with `cargo bench --bench vring`. Beside it, in the same run and driven by the same frontend
//! with the same messages, a device made of vhost-user-backend and virtio-queue as they come, which
//! echoes without a core behind it: what rprocd's whole path costs is given as a ratio to that, in
//! rounds that take turns, because the machine's speed drifts. Every byte of every answer is
//! checked, here too.
//!
//! What belongs here: this one comparison. Tests do not time things; benchmarks do not test.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a benchmark, and the folder that it shares with the tests"
)]

#[path = "../tests/frontend/mod.rs"]
mod frontend;

use std::path::Path;
use std::time::Duration;

use frontend::echo_device::EchoDevice;
use frontend::exchange::{Sizes, exchange};
use frontend::process::{Core, Daemon};
use frontend::rpmsg::{PAYLOAD, RpmsgDriver};
use frontend::vmm::{Options, Vmm};

const ROUNDS: usize = 7;
const PATIENCE: Duration = Duration::from_secs(20);

struct Contestant {
    name: &'static str,
    _vmm: Vmm,
    driver: RpmsgDriver,
    address: u32,
}

impl Contestant {
    fn new(name: &'static str, socket: &Path) -> Self {
        let mut vmm = Vmm::connect(socket, Options::default()).unwrap();
        let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
        let address = driver.wait_for_channel("rpmsg-raw", PATIENCE).unwrap();
        Self {
            name,
            _vmm: vmm,
            driver,
            address,
        }
    }

    /// Nanoseconds a message.
    fn measure(&mut self, count: u64, in_flight: u64) -> f64 {
        let sizes = Sizes::Fixed(PAYLOAD);
        let report = exchange(&mut self.driver, self.address, count, sizes, in_flight);
        report.elapsed.as_secs_f64() * 1e9 / count as f64
    }
}

/// Lowest, middle, highest.
fn spread(samples: &mut [f64]) -> [f64; 3] {
    samples.sort_by(f64::total_cmp);
    [
        samples[0],
        samples[samples.len() / 2],
        samples[samples.len() - 1],
    ]
}

fn main() {
    let daemon = Daemon::start(&[Core::default()]);
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("plain.sock");
    let _plain = EchoDevice::serve(&socket, true, None);
    let mut contestants = [
        Contestant::new("rprocd, echo firmware", &daemon.socket("echo")),
        Contestant::new("plain device, no core", &socket),
    ];
    println!("{PAYLOAD} bytes a message, both sides asleep when idle, {ROUNDS} rounds");
    println!(
        "{:<24}{:>10}{:>14}{:>24}",
        "", "in flight", "ns a message", "(lowest to highest)"
    );
    for (in_flight, count) in [(1, 20_000), (8, 50_000), (32, 100_000), (256, 200_000)] {
        let mut samples = [const { Vec::new() }; 2];
        for _ in 0..ROUNDS {
            for (contestant, samples) in contestants.iter_mut().zip(&mut samples) {
                samples.push(contestant.measure(count, in_flight));
            }
        }
        let mut ratios: Vec<_> = samples[0]
            .iter()
            .zip(&samples[1])
            .map(|(ours, plain)| ours / plain)
            .collect();
        for (contestant, samples) in contestants.iter().zip(&mut samples) {
            let [low, middle, high] = spread(samples);
            let range = format!("({low:.0} to {high:.0})");
            println!(
                "{:<24}{in_flight:>10}{middle:>14.0}{range:>24}",
                contestant.name
            );
        }
        let [low, middle, high] = spread(&mut ratios);
        println!(
            "{:<24}{in_flight:>10}{middle:>14.2}{:>24}",
            "ratio",
            format!("({low:.2} to {high:.2})")
        );
    }
}
