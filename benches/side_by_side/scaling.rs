//! Many vdevs in one process.
//!
//! What belongs here: what a vdev costs that is busy and one that is not, with rprocd's relay
//! alone. What does not: peers.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

use crate::contest::QUIET;
use crate::guest::{Echo, Guest, Header, Wait};
use crate::in_process::native::MAX_VDEVS;
use crate::peer::{Peer, Usage, busy};
use crate::rounds::spread;
use crate::serve::Manner;

/// How many vdevs.
const COUNTS: [usize; 5] = [1, 4, 16, 64, 256];
/// How many messages a vdev sends and takes when it has its turn.
const TURN: u64 = 256;

/// A process with vdevs and a guest for each.
struct Crowd {
    manner: Manner,
    peer: Peer,
    guests: Vec<Guest>,
    /// Before the first message.
    idle: Usage,
    /// Time on a CPU in a second without a message.
    silence: Duration,
    /// Nanoseconds a message: all guests in turn, and only the first. Quiet ones, and all.
    turns: Samples,
    alone: Samples,
    /// One in flight, the guests in turn.
    trips: Samples,
}

#[derive(Default)]
struct Samples {
    quiet: Vec<f64>,
    all: Vec<f64>,
}

impl Samples {
    fn add(&mut self, value: f64, quiet: bool) {
        self.all.push(value);
        if quiet {
            self.quiet.push(value);
        }
    }

    fn spread(&self) -> Option<[f64; 3]> {
        let best = if self.quiet.is_empty() {
            &self.all
        } else {
            &self.quiet
        };
        spread(best.iter().copied())
    }

    fn json(&self) -> Value {
        json!({ "spread": self.spread(), "quiet": self.quiet.len(), "all": self.all.len() })
    }
}

impl Crowd {
    fn start(folder: &Path, manner: Manner, count: usize) -> Result<Self, String> {
        let socket = folder.join(format!("crowd-{}-{count}", manner.word()));
        let text = socket.to_string_lossy();
        let mut peer = Peer::serve(&["native", &text, manner.word(), &count.to_string()])?;
        let path = |index: usize| format!("{text}.{index}");
        peer.wait_for(Path::new(&path(count - 1)))?;
        let mut guests = Vec::new();
        for index in 0..count {
            guests.push(Guest::connect(Path::new(&path(index)), Header::Rpmsg)?);
        }
        std::thread::sleep(Duration::from_millis(50));
        let idle = peer.usage();
        std::thread::sleep(Duration::from_secs(1));
        let silence = peer.usage().since(idle).cpu;
        let mut crowd = Self {
            manner,
            peer,
            guests,
            idle,
            silence,
            turns: Samples::default(),
            alone: Samples::default(),
            trips: Samples::default(),
        };
        for guest in &mut crowd.guests {
            guest.exchange(2 * TURN, TURN, Wait::Polled)?;
        }
        crowd.peer.pause();
        Ok(crowd)
    }

    fn wait(&self) -> Wait {
        match self.manner {
            Manner::Polls => Wait::Polled,
            Manner::Sleeps | Manner::Lingers => Wait::Asleep,
        }
    }

    /// Nanoseconds a message of the first `active` guests, which take turns; and whether others
    /// kept quiet.
    fn drive(
        &mut self,
        active: usize,
        turn: u64,
        depth: u64,
        time: Duration,
    ) -> Result<(f64, bool), String> {
        let wait = self.wait();
        self.peer.resume();
        let (ours, peers, others) = (Usage::ours(), self.peer.usage(), busy());
        let begun = Instant::now();
        let mut count = 0;
        while begun.elapsed() < time {
            for guest in &mut self.guests[..active] {
                guest.exchange(turn, depth, wait)?;
                count += turn;
            }
        }
        let took = begun.elapsed();
        let others = busy().saturating_sub(others);
        let spent = Usage::ours().since(ours).cpu + self.peer.usage().since(peers).cpu;
        self.peer.pause();
        let others = others.saturating_sub(spent).as_secs_f64() / took.as_secs_f64();
        Ok((took.as_secs_f64() * 1e9 / count as f64, others <= QUIET))
    }

    fn json(&self) -> Value {
        let used = self.peer.usage();
        json!({
            "manner": self.manner.word(),
            "vdevs": self.guests.len(),
            "ns_in_turn": self.turns.json(),
            "ns_one_of_them": self.alone.json(),
            "round_trip_ns": self.trips.json(),
            "idle_bytes": self.idle.resident,
            "used_bytes": used.resident,
            "threads": used.threads,
            "cpu_in_a_silent_second": self.silence.as_secs_f64(),
        })
    }
}

/// Measures, prints, and says it as JSON.
pub fn run(folder: &Path, quick: bool) -> Result<Value, String> {
    // Each guest has several descriptors, on both sides.
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, most).map_err(|errno| errno.to_string())?;
    let mut crowds = Vec::new();
    for count in COUNTS {
        crowds.push(Crowd::start(folder, Manner::Sleeps, count)?);
        // More have more cores, which would poll side by side on one CPU.
        if count <= MAX_VDEVS {
            crowds.push(Crowd::start(folder, Manner::Polls, count)?);
        }
    }
    crowds.push(Crowd::start(folder, Manner::Polls, MAX_VDEVS)?);
    let (rounds, time) = if quick { (3, 30) } else { (9, 80) };
    let time = Duration::from_millis(time);
    for _ in 0..rounds {
        for crowd in &mut crowds {
            let all = crowd.guests.len();
            let (ns, quiet) = crowd.drive(all, TURN, TURN, time)?;
            crowd.turns.add(ns, quiet);
            let (ns, quiet) = crowd.drive(1, TURN, TURN, time)?;
            crowd.alone.add(ns, quiet);
            let (ns, quiet) = crowd.drive(all, 4, 1, time)?;
            crowd.trips.add(ns, quiet);
        }
    }
    println!("\nMany vdevs in one process (rprocd, relay alone), 512 bytes, by turns of {TURN}");
    println!(
        "{:<8}{:>6}{:>12}{:>12}{:>12}{:>10}{:>9}{:>10}",
        "waits", "vdevs", "ns in turn", "ns of one", "trip, ns", "KiB idle", "threads", "idle CPU"
    );
    for crowd in &crowds {
        let middle = |samples: &Samples| samples.spread().map_or(0.0, |[_, middle, _]| middle);
        println!(
            "{:<8}{:>6}{:>12.1}{:>12.1}{:>12.0}{:>10}{:>9}{:>8.1}ms",
            crowd.manner.word(),
            crowd.guests.len(),
            middle(&crowd.turns),
            middle(&crowd.alone),
            middle(&crowd.trips),
            crowd.idle.resident >> 10,
            crowd.idle.threads,
            crowd.silence.as_secs_f64() * 1e3,
        );
    }
    Ok(crowds.iter().map(Crowd::json).collect())
}
