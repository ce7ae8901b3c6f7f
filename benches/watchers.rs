//! What those who watch cost those who do not: round trips of one core with and without sixteen
//! watchers, while another core dies all the time.
//!
//! Run with `cargo bench --bench watchers`. One rprocd with two cores. The guest of the first sends
//! a message and waits for its echo, both asleep in between; the guest of the second sends its
//! firmware a deadly message every 10 ms, which makes some fifteen events each time. Three
//! situations take turns:
//!
//! - nobody watches;
//! - sixteen connections, all that the control socket takes, are told every event, and one of them
//!   never reads;
//! - nobody watches, but somebody who has nothing to do with rprocd says as much to sixteen
//!   sockets, and takes as much of a CPU for it. Watchers share the machine's CPUs with the relay
//!   like anybody else; what is over and above this would be rprocd's own doing.
//!
//! Given are ratios of the round trips, the memory that is the daemon's own after each round with
//! watchers, and what part of a CPU the daemon took.
//!
//! What belongs here: this one comparison. Tests do not time things; benchmarks do not test.
#![allow(
    missing_docs,
    dead_code,
    clippy::unwrap_used,
    reason = "a benchmark, and the folder that it shares with the tests"
)]

#[path = "../tests/frontend/mod.rs"]
mod frontend;

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use frontend::process::{Core, Daemon};
use frontend::rpmsg::RpmsgDriver;
use frontend::usage::Usage;
use frontend::vmm::{Options, Vmm};
use rprocd::control::client::Connection;
use rprocd::rproc::EVENTS_KEPT;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

const ROUNDS: usize = 15;
const ROUND_TRIPS: usize = 20_000;
/// Connections that the control socket takes.
const LISTENERS: usize = 16;
const BETWEEN_DEATHS: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(20);
/// What the memory may be more at the end than after the first round with watchers.
const GROWTH_KIB: u64 = 256;

const SITUATIONS: [&str; 3] = [
    "nobody watches",
    "sixteen watch",
    "a stranger tells sixteen",
];
const NOBODY: usize = 0;
const SIXTEEN: usize = 1;

/// Kills a core until it is told to stop, and counts.
fn kill_again_and_again(socket: &Path, stop: &AtomicBool, deaths: &AtomicU64) {
    let mut vmm = Vmm::connect(socket, Options::default()).unwrap();
    let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
    while !stop.load(Ordering::Relaxed) {
        let address = driver.wait_for_channel("rpmsg-raw", PATIENCE).unwrap();
        let heard = driver.announcements().len();
        driver.send(1030, address, b"illegal").unwrap();
        let begun = Instant::now();
        // Gone, and there again.
        while driver.announcements().len() < heard + 2 {
            assert!(begun.elapsed() < PATIENCE, "{:?}", driver.announcements());
            driver.wait(BETWEEN_DEATHS);
            while driver.recv().is_some() {}
        }
        deaths.fetch_add(1, Ordering::Relaxed);
        thread::sleep(BETWEEN_DEATHS);
    }
}

/// A connection that has been told its first events.
fn watch(control: &Path) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(control)?;
    let call = json!({ "method": "io.rprocd.Events", "more": true, "parameters": {} });
    writeln!(stream, "{call}")?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

/// Sixteen who listen, one of whom does not.
struct Listeners {
    stop: Arc<AtomicBool>,
    /// What those who read have read.
    bytes: JoinHandle<u64>,
    _silent: UnixStream,
}

impl Listeners {
    /// Who watches: all are told every event.
    fn watching(control: &Path) -> Self {
        let watch = |_| {
            let begun = Instant::now();
            // It takes sixteen, and those of before may not have been noticed to be gone.
            loop {
                if let Ok(stream) = watch(control) {
                    return stream;
                }
                assert!(begun.elapsed() < PATIENCE, "rprocd takes no sixteen");
            }
        };
        Self::new((0..LISTENERS).map(watch).collect())
    }

    fn new(mut streams: Vec<UnixStream>) -> Self {
        for stream in &streams {
            stream.set_nonblocking(true).unwrap();
        }
        let silent = streams.remove(0);
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let bytes = thread::spawn(move || read_all(&mut streams, &told));
        Self {
            stop,
            bytes,
            _silent: silent,
        }
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.bytes.join().unwrap()
    }
}

fn read_all(streams: &mut [UnixStream], stop: &AtomicBool) -> u64 {
    let mut bytes = 0;
    let mut buffer = vec![0; 64 << 10];
    let a_while = Timespec {
        tv_sec: 0,
        tv_nsec: 100_000_000,
    };
    while !stop.load(Ordering::Relaxed) {
        let mut fds: Vec<_> = streams
            .iter()
            .map(|stream| PollFd::new(stream, PollFlags::IN))
            .collect();
        poll(&mut fds, Some(&a_while)).unwrap();
        for stream in &mut *streams {
            loop {
                match stream.read(&mut buffer) {
                    Ok(0) => panic!("a listener that reads was hung up on"),
                    Ok(read) => bytes += read as u64,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }
    bytes
}

/// What telling the watchers takes.
#[derive(Clone, Copy, Default)]
struct Telling {
    /// Bytes to each listener, each time that the other core dies.
    bytes: usize,
    /// CPU time, each time.
    cpu: Duration,
}

/// Somebody who tells sixteen listeners as much as rprocd does, and is not rprocd.
struct Stranger {
    stop: Arc<AtomicBool>,
    telling: JoinHandle<()>,
    listeners: Listeners,
}

impl Stranger {
    fn new(telling: Telling, deaths: &Arc<AtomicU64>) -> Self {
        let pair = |_| UnixStream::pair().unwrap();
        let (ours, theirs): (Vec<_>, Vec<_>) = (0..LISTENERS).map(pair).unzip();
        for stream in &ours {
            stream.set_nonblocking(true).unwrap();
        }
        let listeners = Listeners::new(theirs);
        let stop = Arc::new(AtomicBool::new(false));
        let (told, deaths) = (Arc::clone(&stop), Arc::clone(deaths));
        let telling = thread::spawn(move || {
            let mut seen = deaths.load(Ordering::Relaxed);
            let text = vec![b'e'; telling.bytes];
            while !told.load(Ordering::Relaxed) {
                thread::sleep(BETWEEN_DEATHS / 10);
                let now = deaths.load(Ordering::Relaxed);
                if now == seen {
                    continue;
                }
                seen = now;
                let begun = cpu_of_this_thread();
                for mut stream in &ours {
                    // Full, if it is the one that never reads.
                    let _ = stream.write(&text);
                }
                while cpu_of_this_thread() < begun + telling.cpu {
                    std::hint::spin_loop();
                }
            }
        });
        Self {
            stop,
            telling,
            listeners,
        }
    }

    fn end(self) {
        self.listeners.end();
        self.stop.store(true, Ordering::Relaxed);
        self.telling.join().unwrap();
    }
}

fn cpu_of_this_thread() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Round trips of one round: the middle one, and the one that 99 of 100 do not exceed, in µs.
struct Trips {
    p50: f64,
    p99: f64,
}

fn round_trips(driver: &mut RpmsgDriver, address: u32) -> Trips {
    let trip = |_| {
        let begun = Instant::now();
        driver.send(1030, address, b"ping").unwrap();
        let answer = driver.recv_within(PATIENCE).unwrap();
        let took = begun.elapsed().as_secs_f64() * 1e6;
        assert_eq!(answer.payload, b"ping");
        took
    };
    let mut trips: Vec<_> = (0..ROUND_TRIPS).map(trip).collect();
    trips.sort_by(f64::total_cmp);
    let at = |percent: usize| trips[trips.len() * percent / 100];
    Trips {
        p50: at(50),
        p99: at(99),
    }
}

/// Middle (lowest to highest).
fn spread(mut values: Vec<f64>) -> (f64, String) {
    values.sort_by(f64::total_cmp);
    let middle = values[values.len() / 2];
    let text = format!(
        "{middle:.2} ({:.2} to {:.2})",
        values[0],
        values[values.len() - 1]
    );
    (middle, text)
}

/// The number that the next event gets.
fn next_event(control: &Path) -> u64 {
    let mut connection = Connection::open(control, PATIENCE).unwrap();
    let list: Value = connection.call("io.rprocd.List", &json!({})).unwrap();
    list["nextEvent"].as_u64().unwrap()
}

/// What one round shows.
struct Round {
    trips: Trips,
    /// Part of a CPU that the daemon took.
    cpu: f64,
    /// Memory of its own, in bytes.
    memory: u64,
    /// How often the other core died.
    deaths: u64,
    took: Duration,
}

struct Bench {
    daemon: Daemon,
    driver: RpmsgDriver,
    address: u32,
    deaths: Arc<AtomicU64>,
}

impl Bench {
    fn round(&mut self) -> Round {
        let deaths = self.deaths.load(Ordering::Relaxed);
        let (before, begun) = (Usage::of(self.daemon.pid()), Instant::now());
        let trips = round_trips(&mut self.driver, self.address);
        let took = begun.elapsed();
        let used = Usage::of(self.daemon.pid()).since(before);
        Round {
            trips,
            cpu: used.cpu.as_secs_f64() / took.as_secs_f64(),
            memory: used.anonymous,
            deaths: self.deaths.load(Ordering::Relaxed) - deaths,
            took,
        }
    }

    fn watched(&mut self) -> (Round, u64) {
        let watchers = Listeners::watching(&self.daemon.socket("control"));
        let round = self.round();
        (round, watchers.end())
    }

    /// Somebody else is to do what this took; whatever grows once has grown then.
    fn telling(&mut self) -> Telling {
        self.watched();
        let without = self.round();
        let (with, bytes) = self.watched();
        let deaths = with.deaths.max(1);
        let cpu = (with.cpu - without.cpu).max(0.0) * with.took.as_secs_f64() / deaths as f64;
        let telling = Telling {
            bytes: (bytes / deaths) as usize / (LISTENERS - 1),
            cpu: Duration::from_secs_f64(cpu),
        };
        println!(
            "telling sixteen of a death takes {:.2} ms of a CPU and {} bytes to each",
            telling.cpu.as_secs_f64() * 1e3,
            telling.bytes
        );
        telling
    }

    fn contest(&mut self) {
        let control = self.daemon.socket("control");
        let telling = self.telling();
        let first_event = next_event(&control);
        let mut rounds: [Vec<Round>; 3] = Default::default();
        for number in 0..ROUNDS {
            // Who comes first changes from round to round.
            for turn in 0..3 {
                let situation = (number + turn) % 3;
                rounds[situation].push(match situation {
                    NOBODY => self.round(),
                    SIXTEEN => self.watched().0,
                    _ => {
                        let stranger = Stranger::new(telling, &self.deaths);
                        let round = self.round();
                        stranger.end();
                        round
                    }
                });
            }
        }
        let events = next_event(&control) - first_event;
        println!(
            "{} deaths, {events} events, {} times what the log keeps",
            self.deaths.load(Ordering::Relaxed),
            events / EVENTS_KEPT as u64,
        );
        for (name, rounds) in SITUATIONS.iter().zip(&rounds) {
            let all = |value: fn(&Round) -> f64| spread(rounds.iter().map(value).collect()).1;
            println!(
                "{name}: p50 {} µs, p99 {} µs, CPUs of the daemon {}",
                all(|round| round.trips.p50),
                all(|round| round.trips.p99),
                all(|round| round.cpu),
            );
        }
        let [nobody, sixteen, stranger] = &rounds;
        let ratio = |ones: &[Round], others: &[Round], value: fn(&Trips) -> f64| {
            let pairs = ones.iter().zip(others);
            spread(
                pairs
                    .map(|(one, other)| value(&one.trips) / value(&other.trips))
                    .collect(),
            )
        };
        let verdicts = [
            (
                "p50, sixteen watch / nobody watches",
                ratio(sixteen, nobody, |it| it.p50),
                Some(1.05),
            ),
            (
                "p99, sixteen watch / nobody watches",
                ratio(sixteen, nobody, |it| it.p99),
                None,
            ),
            (
                "p99, sixteen watch / a stranger",
                ratio(sixteen, stranger, |it| it.p99),
                Some(1.1),
            ),
        ];
        for (name, (middle, text), aim) in verdicts {
            let verdict =
                aim.map(|aim| format!("{}, the aim is at most {aim}", verdict(middle <= aim)));
            println!("{name}: {text} {}", verdict.unwrap_or_default());
        }
        let memory = sixteen.iter().map(|round| round.memory >> 10);
        let memory: Vec<_> = memory.collect();
        println!("KiB of the daemon, round after round with watchers: {memory:?}");
        let held = memory[ROUNDS - 1] <= memory[0] + GROWTH_KIB;
        println!(
            "memory at the end: {}, the aim is at most {GROWTH_KIB} KiB more",
            verdict(held)
        );
    }
}

fn verdict(held: bool) -> &'static str {
    if held { "PASS" } else { "MISS" }
}

fn main() {
    let daemon = Daemon::start(&[
        Core::default(),
        Core {
            name: "dsp",
            image: "chaos",
            settings: "[core.recovery]\nminimum-run-time-ms = 0\nhold-after = 0",
            ..Core::default()
        },
    ]);
    let mut vmm = Vmm::connect(&daemon.socket("echo"), Options::default()).unwrap();
    let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
    let address = driver.wait_for_channel("rpmsg-raw", PATIENCE).unwrap();
    let dsp = daemon.socket("dsp");
    let stop = Arc::new(AtomicBool::new(false));
    let deaths = Arc::new(AtomicU64::new(0));
    let killer = {
        let (stop, deaths) = (Arc::clone(&stop), Arc::clone(&deaths));
        thread::spawn(move || kill_again_and_again(&dsp, &stop, &deaths))
    };
    let mut bench = Bench {
        daemon,
        driver,
        address,
        deaths,
    };
    bench.contest();
    stop.store(true, Ordering::Relaxed);
    killer.join().unwrap();
}
