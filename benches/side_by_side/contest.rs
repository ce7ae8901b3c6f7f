//! The contestants, and one sample of one of them.
//!
//! What belongs here: how each is started and connected, and what is noted of a sample. What does
//! not: which samples are taken, and what they say.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::floor;
use crate::guest::{Counts, Echo, Guest, Header, Wait};
use crate::peer::{Peer, Usage, busy};
use crate::serve::Manner;
use crate::vsock::{self, VsockGuest};

/// Others may use so much of a CPU during a sample that counts.
pub const QUIET: f64 = 0.15;

/// A way to have messages echoed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// rprocd with the engine of [`native`](crate::in_process::native).
    Relay,
    /// rprocd with the `echo` firmware.
    Whole,
    /// DPDK's testpmd.
    Dpdk,
    /// A device made of the rust-vmm crates as they come.
    Plain,
    /// vhost-device-vsock, with an echo on a Unix socket behind it.
    Vsock,
    /// Nothing but the rings.
    Floor,
}

impl Kind {
    /// All of them, in the order of the tables.
    pub const ALL: [Self; 6] = [
        Self::Relay,
        Self::Whole,
        Self::Dpdk,
        Self::Plain,
        Self::Vsock,
        Self::Floor,
    ];

    /// Its name on the command line and in the results.
    pub fn word(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Whole => "rv32",
            Self::Dpdk => "dpdk",
            Self::Plain => "plain",
            Self::Vsock => "vsock",
            Self::Floor => "floor",
        }
    }

    /// Its name in tables.
    pub fn title(self) -> &'static str {
        match self {
            Self::Relay => "rprocd, relay alone",
            Self::Whole => "rprocd, rv32 echo",
            Self::Dpdk => "DPDK testpmd",
            Self::Plain => "rust-vmm, plain",
            Self::Vsock => "vhost-device-vsock",
            Self::Floor => "bare rings (floor)",
        }
    }

    /// How the peer waits while the guest waits in a given way; `None` if that is not compared.
    pub fn manner(self, wait: Wait) -> Option<Manner> {
        match (self, wait) {
            (Self::Relay, Wait::Lingering) => Some(Manner::Lingers),
            (_, Wait::Lingering) => None,
            (Self::Dpdk, _) => Some(Manner::Polls),
            (Self::Plain, _) => Some(Manner::Sleeps),
            (Self::Vsock, Wait::Polled) => None,
            (_, Wait::Polled) => Some(Manner::Polls),
            (_, Wait::Asleep) => Some(Manner::Sleeps),
        }
    }
}

/// Where the peers' programs are.
#[derive(Default, Debug)]
pub struct Programs {
    /// DPDK's testpmd.
    pub dpdk: Option<PathBuf>,
    /// The host has hugepages for it.
    pub hugepages: bool,
    /// vhost-device-vsock.
    pub vsock: Option<PathBuf>,
    /// The `echo` firmware.
    pub echo: PathBuf,
}

/// A contestant that is ready, in one manner.
pub struct Contestant {
    /// Which.
    pub kind: Kind,
    /// How it waits.
    pub manner: Manner,
    peer: Peer,
    guest: Box<dyn Echo>,
}

impl Contestant {
    /// Starts one and connects to it; its socket is in `folder`.
    pub fn start(
        kind: Kind,
        manner: Manner,
        programs: &Programs,
        folder: &Path,
    ) -> Result<Self, String> {
        let socket = folder.join(format!("{}-{}", kind.word(), manner.word()));
        let text = socket.to_string_lossy().into_owned();
        let first = folder.join(format!("{}-{}.0", kind.word(), manner.word()));
        let word = manner.word();
        let (peer, guest): (Peer, Box<dyn Echo>) = match kind {
            Kind::Relay => {
                let mut peer = Peer::serve(&["native", &text, word, "1"])?;
                peer.wait_for(&first)?;
                (peer, Box::new(Guest::connect(&first, Header::Rpmsg)?))
            }
            Kind::Whole => {
                let image = programs.echo.to_string_lossy();
                let mut peer = Peer::serve(&["rv32", &text, word, &image])?;
                peer.wait_for(&first)?;
                (peer, Box::new(Guest::connect(&first, Header::Rpmsg)?))
            }
            Kind::Plain => {
                let mut peer = Peer::serve(&["plain", &text])?;
                peer.wait_for(&socket)?;
                (peer, Box::new(Guest::connect(&socket, Header::Rpmsg)?))
            }
            Kind::Floor => {
                let mut peer = Peer::serve(&["floor", &text, word])?;
                peer.wait_for(&socket)?;
                (peer, Box::new(floor::connect(&socket)?))
            }
            Kind::Dpdk => {
                let mut peer = Peer::start(vec![testpmd(programs, &text)?])?;
                peer.wait_for(&socket)?;
                (peer, Box::new(Guest::connect(&socket, Header::Net)?))
            }
            Kind::Vsock => {
                let program = programs.vsock.as_ref().ok_or("it is not installed")?;
                let ourselves = std::env::current_exe().map_err(|error| error.to_string())?;
                let host = folder.join("vsock-host");
                let echo = folder.join(format!("vsock-host_{}", vsock::PORT));
                let mut stream = Command::new(ourselves);
                stream.arg("--serve").arg("stream").arg(&echo);
                let mut device = Command::new(program);
                let vm = format!(
                    "guest-cid={},socket={text},uds-path={},queue-size=256",
                    vsock::GUEST_CID,
                    host.display()
                );
                device.args(["--vm", &vm]).stderr(Stdio::null());
                let mut peer = Peer::start(vec![stream, device])?;
                peer.wait_for(&echo)?;
                peer.wait_for(&socket)?;
                (peer, Box::new(VsockGuest::connect(&socket)?))
            }
        };
        let mut contestant = Self {
            kind,
            manner,
            peer,
            guest,
        };
        // The first answer shows that it works. A device may drop what comes before it is ready.
        contestant.guest.exchange(1000, 1, Wait::Polled)?;
        contestant.peer.pause();
        Ok(contestant)
    }

    /// One sample.
    pub fn sample(
        &mut self,
        wait: Wait,
        depth: u64,
        size: usize,
        time: Duration,
    ) -> Result<Sample, String> {
        self.peer.resume();
        let sample = self.measure(wait, depth, size, time);
        self.peer.pause();
        sample
    }

    fn measure(
        &mut self,
        wait: Wait,
        depth: u64,
        size: usize,
        time: Duration,
    ) -> Result<Sample, String> {
        let guest = &mut self.guest;
        guest.set_size(size);
        // Until all is warm, and the rate is known.
        let mut chunk = 4 * depth;
        let warm = Instant::now();
        let rate = loop {
            let begun = Instant::now();
            guest.exchange(chunk, depth, wait)?;
            let took = begun.elapsed();
            if warm.elapsed() > time / 6 && took > time / 50 {
                break chunk as f64 / took.as_secs_f64();
            }
            if took < time / 40 {
                chunk *= 2;
            }
        };
        let count = ((rate * time.as_secs_f64()) as u64).max(4 * depth);
        let (counts, ours, peers, others) =
            (guest.counts(), Usage::ours(), self.peer.usage(), busy());
        let begun = Instant::now();
        guest.exchange(count, depth, wait)?;
        let took = begun.elapsed();
        let others = busy().saturating_sub(others);
        let (ours, peers) = (Usage::ours().since(ours), self.peer.usage().since(peers));
        let after = guest.counts();
        let mut trips = Vec::new();
        if depth == 1 {
            guest.round_trips(count / 2, wait, &mut trips)?;
        }
        trips.sort_unstable();
        let per = |number: u64| number as f64 / count as f64;
        let others = others.saturating_sub(ours.cpu + peers.cpu);
        let Counts { kicks, calls, .. } = counts;
        Ok(Sample {
            ns: took.as_secs_f64() * 1e9 / count as f64,
            trips: [0.5, 0.99, 0.999].map(|share| percentile(&trips, share)),
            kicks: per(after.kicks - kicks),
            calls: per(after.calls - calls),
            switches: per(ours.switches + peers.switches),
            cpu: (ours.cpu + peers.cpu).as_secs_f64() * 1e6 / count as f64,
            peers_cpu: peers.cpu.as_secs_f64() * 1e6 / count as f64,
            others: others.as_secs_f64() / took.as_secs_f64(),
        })
    }

    /// What its process has now.
    pub fn usage(&self) -> Usage {
        self.peer.usage()
    }
}

/// In nanoseconds; 0 of nothing.
fn percentile(sorted: &[Duration], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let index = (last as f64 * share).round() as usize;
    sorted
        .get(index)
        .map_or(0.0, |trip| trip.as_secs_f64() * 1e9)
}

/// What one sample gave.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Nanoseconds a message, there and back.
    pub ns: f64,
    /// Round trips in nanoseconds: 50, 99 and 99.9 of 100 took no longer. One in flight only.
    pub trips: [f64; 3],
    /// Kicks a message.
    pub kicks: f64,
    /// Calls a message.
    pub calls: f64,
    /// Times that somebody went to sleep, a message.
    pub switches: f64,
    /// CPU seconds a million messages, both sides.
    pub cpu: f64,
    /// The peer's part of it.
    pub peers_cpu: f64,
    /// How much of a CPU others used.
    pub others: f64,
}

impl Sample {
    /// Did others keep quiet?
    pub fn is_quiet(&self) -> bool {
        self.others <= QUIET
    }
}

fn testpmd(programs: &Programs, socket: &str) -> Result<Command, String> {
    let program = programs.dpdk.as_ref().ok_or("it is not installed")?;
    let mut command = Command::new(program);
    let prefix = format!("--file-prefix=rprocd{}", std::process::id());
    let port = format!("net_vhost0,iface={socket}");
    if programs.hugepages {
        // They need not be mounted anywhere.
        command.args(["--in-memory", "-m", "256"]);
    } else {
        command.args(["--no-huge", "-m", "256"]);
    }
    // Its main thread does nothing and needs a CPU of its own: both are the peers'.
    let cpu = crate::peer::PEERS_CPU;
    command
        .arg(format!("--lcores=0@{cpu},1@{cpu}"))
        .args(["--no-pci", &prefix, "--vdev", &port, "--"])
        .args(["--forward-mode=io", "--port-topology=loop", "--auto-start"])
        .args([
            "--total-num-mbufs=8192",
            "--disable-link-check",
            "--stats-period=3600",
        ])
        .stderr(Stdio::null());
    Ok(command)
}
