//! Inside a Linux guest: our device beside a vsock and a virtio-serial port, in one boot.
//!
//! What belongs here: bringing the three up with an echo behind each, running the guest's
//! `compare`, and what its rounds come to. What does not: measuring, which the guest does
//! (`vmm-config/guest/check/src/compare`), and saying whether that is good enough.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::vsock;
use crate::kit::{self, Cache, Kit};
use crate::vm::{Daemon, Guest, GuestOptions, Vdev, args, wait_until};
use crate::{cargo, firmware};

/// One core that echoes.
const CONFIG: &str = r#"
firmware-directory = "firmware"

[control]
socket = "control.sock"

[[core]]
name = "echo"
engine = "rv32"
memory-mib = 4
firmware = "echo.elf"

[[core.vdev]]
socket = "echo.sock"
announce = true
"#;
const RPMSG: &str = "rpmsg";
const VSOCK: &str = "vsock";
const SERIAL: &str = "serial";
/// In vhost-device-vsock's words: the guest's address, and where it connects to.
const GUEST_CID: u32 = 4;
const VSOCK_PORT: u32 = 5000;
/// The virtio-serial port's name in the guest.
const SERIAL_NAME: &str = "rprocd.echo";
const SHORT: Duration = Duration::from_secs(60);
/// For anything but what was asked for: opening, round trips on a busy machine.
const SLACK: Duration = Duration::from_secs(120);

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// So many times each way has its turn.
    pub rounds: usize,
    /// Of each way in each round.
    pub round_trips: usize,
    /// So long a stream of each way in each round.
    pub stream: Duration,
}

impl Options {
    /// Two minutes, or half a minute, and the boot.
    pub fn new(quick: bool) -> Self {
        Self {
            rounds: if quick { 5 } else { 20 },
            round_trips: if quick { 500 } else { 2000 },
            stream: Duration::from_millis(if quick { 500 } else { 1000 }),
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct GuestFigures {
    /// The guest's kernel.
    pub kernel: String,
    /// What QEMU says of itself.
    pub qemu: String,
    /// `kvm` or `tcg`.
    pub accel: String,
    /// Each message's payload.
    pub message_bytes: u64,
    /// Messages on their way while a stream runs.
    pub in_flight: u64,
    /// How many rounds there were.
    pub rounds: usize,
    /// `rpmsg`, and those of `vsock` and `serial` that were there.
    pub ways: Vec<WayFigures>,
    /// rpmsg against each of the others, round by round.
    pub ratios: Vec<Ratio>,
    /// Why a way is not there, a sentence each.
    pub gaps: Vec<String>,
}

/// One way's figures.
#[derive(Clone, Debug, Serialize)]
pub struct WayFigures {
    /// Its name.
    pub way: String,
    /// One message at a time: each round's median, in microseconds.
    pub rtt_us_p50: Spread,
    /// The same, the 99th percentile.
    pub rtt_us_p99: Spread,
    /// Echoed in a stream.
    pub messages_per_second: Spread,
}

/// rpmsg's figure over the other way's, of the same round.
#[derive(Clone, Debug, Serialize)]
pub struct Ratio {
    /// The other way.
    pub to: String,
    /// Of the medians of round trips. Less is better.
    pub rtt: Spread,
    /// Of messages a second. More is better.
    pub rate: Spread,
}

/// Over all rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// In the middle; of an even number of rounds the mean of the two that are.
    pub median: f64,
    /// The lowest.
    pub low: f64,
    /// The highest.
    pub high: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Result<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (Some(low), Some(high)) = (values.first(), values.last()) else {
            bail!("the guest measured no round");
        };
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values[middle]
        };
        Ok(Self {
            median,
            low: *low,
            high: *high,
        })
    }
}

impl GuestFigures {
    /// A table for the terminal.
    pub fn show(&self) {
        println!(
            "bench: in a guest, Linux {} in {} ({}), {} bytes, {} rounds: median (lowest to \
             highest)",
            self.kernel, self.qemu, self.accel, self.message_bytes, self.rounds
        );
        println!(
            "  {:8} {:>24} {:>24} {:>28}",
            "way",
            "round trip p50, us",
            "p99, us",
            format!("a second, {} in flight", self.in_flight)
        );
        let cell = |spread: &Spread, digits: usize| {
            let Spread { median, low, high } = spread;
            format!("{median:.digits$} ({low:.digits$} to {high:.digits$})")
        };
        for way in &self.ways {
            println!(
                "  {:8} {:>24} {:>24} {:>28}",
                way.way,
                cell(&way.rtt_us_p50, 0),
                cell(&way.rtt_us_p99, 0),
                cell(&way.messages_per_second, 0)
            );
        }
        for ratio in &self.ratios {
            println!(
                "  rpmsg / {:8} round trip {}, rate {}",
                ratio.to,
                cell(&ratio.rtt, 2),
                cell(&ratio.rate, 2)
            );
        }
        for gap in &self.gaps {
            println!("  {gap}");
        }
    }
}

/// What the guest prints. See its `compare`.
#[derive(Deserialize)]
struct Answer {
    message_bytes: u64,
    in_flight: u64,
    rounds: Vec<Round>,
}

#[derive(Deserialize)]
struct Round {
    rpmsg: Measured,
    vsock: Option<Measured>,
    serial: Option<Measured>,
}

#[derive(Clone, Copy, Deserialize)]
struct Measured {
    rtt_ns_p50: u64,
    rtt_ns_p99: u64,
    messages_per_second: u64,
}

impl Round {
    fn get(&self, way: &str) -> Option<Measured> {
        match way {
            RPMSG => Some(self.rpmsg),
            VSOCK => self.vsock,
            SERIAL => self.serial,
            _ => None,
        }
    }
}

/// Boots the guest, has it measure, and counts.
pub fn run(options: &Options) -> Result<GuestFigures> {
    let (kit, _) = kit::prepare(&kit::Options::default())?;
    let mut gaps = Vec::new();
    let peer = vsock_peer(kit.clone())
        .inspect_err(|error| {
            let gap = format!("the vsock is left out: {error:#}");
            println!("bench: {gap}");
            gaps.push(gap);
        })
        .ok();
    let (kit, peer) = peer.map_or_else(|| (kit, None), |(kit, program)| (kit, Some(program)));
    let images = firmware::build()?;
    println!("bench: building rprocd");
    cargo::show(cargo::cargo().args(["build", "--release", "--package", "rprocd", "--bins"]))?;
    let program = cargo::target_directory()?.join("release/rprocd");

    let daemon = Daemon::start(&program, CONFIG, &images)?;
    let answer = with_guest(options, &kit, &daemon, peer.as_deref())
        .map_err(|error| anyhow!("{error:#}{}", daemon.evidence()))?;
    daemon.stop()?;
    figures(&kit, &answer, gaps)
}

/// A kit whose guest can have a vsock, and the program behind it.
fn vsock_peer(kit: Kit) -> Result<(Kit, PathBuf)> {
    let program = vsock::binary(&Cache::open()?)?;
    Ok((kit.with_vsock()?, program))
}

fn with_guest(
    options: &Options,
    kit: &Kit,
    daemon: &Daemon,
    peer: Option<&Path>,
) -> Result<Answer> {
    let folder = tempfile::Builder::new().prefix("rprocd-ways-").tempdir()?;
    let mut more = Vec::new();
    // Each lives until the guest is gone.
    let _vsock = match peer {
        None => None,
        Some(program) => {
            let device = VsockDevice::start(program, &folder)?;
            more.extend(device.words("port1")?);
            Some(device)
        }
    };
    let path = folder.path().join("serial.sock");
    listen_and_echo(&path)?;
    more.extend(serial_words(&path, "port2")?);

    println!(
        "bench: booting Linux {} in {}",
        kit.kernel_version, kit.qemu_version
    );
    let guest_options = GuestOptions {
        vdevs: vec![Vdev::new(&daemon.path("echo.sock"), 0)],
        more,
        ..GuestOptions::default()
    };
    let mut guest = Guest::boot(kit, &guest_options)?;
    if peer.is_some() {
        for module in kit::vsock_modules() {
            guest.run(&format!("insmod /modules/{module}.ko"), SHORT)?;
        }
    }
    guest.wait_for("rprocd-guest-check list", SHORT, |list| {
        list.contains("/dev/rpmsg0")
    })?;

    let mut command = format!(
        "rprocd-guest-check compare --rpmsg /dev/rpmsg0 --serial {SERIAL_NAME} --rounds {} \
         --round-trips {} --stream-ms {}",
        options.rounds,
        options.round_trips,
        options.stream.as_millis()
    );
    if peer.is_some() {
        command.push_str(&format!(" --vsock {VSOCK_PORT}"));
    }
    let streams = options.stream * u32::try_from(options.rounds * 3).unwrap_or(u32::MAX);
    println!(
        "bench: measuring in the guest, {} s at least",
        streams.as_secs()
    );
    let output = guest.run(&command, streams * 3 + SLACK)?;
    let line = output
        .lines()
        .find(|line| line.starts_with('{'))
        .with_context(|| format!("`{command}` in the guest says no figures:\n{output}"))?;
    let answer = serde_json::from_str(line)
        .with_context(|| format!("`{command}` in the guest says what has no meaning: {line}"))?;
    guest.power_off()?;
    Ok(answer)
}

fn figures(kit: &Kit, answer: &Answer, gaps: Vec<String>) -> Result<GuestFigures> {
    let rounds = &answer.rounds;
    let mut ways = Vec::new();
    let mut ratios = Vec::new();
    for way in [RPMSG, VSOCK, SERIAL] {
        let pairs: Vec<(Measured, Measured)> = rounds
            .iter()
            .filter_map(|round| Some((round.rpmsg, round.get(way)?)))
            .collect();
        if pairs.is_empty() {
            continue;
        }
        ensure!(
            pairs.len() == rounds.len(),
            "the guest measured {way} in {} of {} rounds",
            pairs.len(),
            rounds.len()
        );
        let spread = |value: fn(&Measured, &Measured) -> f64| {
            Spread::of(pairs.iter().map(|(ours, other)| value(ours, other)))
        };
        ways.push(WayFigures {
            way: way.to_owned(),
            rtt_us_p50: spread(|_, other| other.rtt_ns_p50 as f64 / 1000.0)?,
            rtt_us_p99: spread(|_, other| other.rtt_ns_p99 as f64 / 1000.0)?,
            messages_per_second: spread(|_, other| other.messages_per_second as f64)?,
        });
        if way != RPMSG {
            ratios.push(Ratio {
                to: way.to_owned(),
                rtt: spread(|ours, other| ours.rtt_ns_p50 as f64 / other.rtt_ns_p50 as f64)?,
                rate: spread(|ours, other| {
                    ours.messages_per_second as f64 / other.messages_per_second as f64
                })?,
            });
        }
    }
    ensure!(!ways.is_empty(), "the guest measured no round");
    Ok(GuestFigures {
        kernel: kit.kernel_version.clone(),
        qemu: kit.qemu_version.clone(),
        accel: kit.accel.clone(),
        message_bytes: answer.message_bytes,
        in_flight: answer.in_flight,
        rounds: rounds.len(),
        ways,
        ratios,
        gaps,
    })
}

/// A running vhost-device-vsock, with an echo where the guest connects to. Killed when dropped.
struct VsockDevice {
    child: Child,
    socket: PathBuf,
}

impl VsockDevice {
    fn start(program: &Path, folder: &TempDir) -> Result<Self> {
        let socket = folder.path().join("vsock.sock");
        let host = folder.path().join("vsock-host.sock");
        // A guest's connection to port N comes out at the path with `_N` behind it.
        let mut port = host.clone().into_os_string();
        port.push(format!("_{VSOCK_PORT}"));
        listen_and_echo(Path::new(&port))?;
        let path = folder.path().join("vsock.log");
        let log = File::create(&path)?;
        let child = Command::new(program)
            .arg("--vm")
            .arg(format!(
                "guest-cid={GUEST_CID},socket={},uds-path={},queue-size=256",
                socket.display(),
                host.display()
            ))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let mut device = Self { child, socket };
        let ready = wait_until(SHORT, || {
            let ended = !matches!(device.child.try_wait(), Ok(None));
            (ended || device.socket.exists()).then_some(!ended)
        });
        ensure!(
            ready == Some(true),
            "{} made no socket; it said\n{}",
            program.display(),
            fs::read_to_string(&path).unwrap_or_default().trim_end()
        );
        Ok(device)
    }

    fn words(&self, port: &str) -> Result<Vec<String>> {
        let socket = args::escape(&self.socket.to_string_lossy());
        args::read("vsock.args", &[("SOCKET", &socket), ("PORT", port)])
    }
}

impl Drop for VsockDevice {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serial_words(socket: &Path, port: &str) -> Result<Vec<String>> {
    let socket = args::escape(&socket.to_string_lossy());
    let values = [("NAME", SERIAL_NAME), ("SOCKET", &socket), ("PORT", port)];
    args::read("serial.args", &values)
}

/// Sends back what comes, on each connection until its far side closes it. The listener itself
/// lives as long as this process.
fn listen_and_echo(path: &Path) -> Result<()> {
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // An error is the far side's end, which says why.
            thread::spawn(move || echo(stream));
        }
    });
    Ok(())
}

fn echo(mut stream: UnixStream) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..length])?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kit() -> Kit {
        Kit {
            qemu: PathBuf::new(),
            qemu_version: "QEMU".to_owned(),
            accel: "tcg".to_owned(),
            kernel: PathBuf::new(),
            kernel_version: "1.2.3".to_owned(),
            initramfs: PathBuf::new(),
        }
    }

    fn parse(rounds: &str) -> Answer {
        serde_json::from_str(&format!(
            "{{\"message_bytes\":496,\"in_flight\":32,\"rounds\":[{rounds}]}}"
        ))
        .unwrap()
    }

    fn way(name: &str, p50: u64, rate: u64) -> String {
        format!(
            "\"{name}\":{{\"rtt_ns_p50\":{p50},\"rtt_ns_p99\":{},\"messages_per_second\":{rate}}}",
            p50 * 2
        )
    }

    fn spread(median: f64, low: f64, high: f64) -> Spread {
        Spread { median, low, high }
    }

    #[test]
    fn ratios_are_those_of_each_round() {
        let round =
            |ours, other| format!("{{{},{}}}", way(RPMSG, ours, 400), way(VSOCK, other, 100));
        let text = [round(1000, 2000), round(1000, 4000), round(1500, 1500)].join(",");
        let figures = figures(&kit(), &parse(&text), Vec::new()).unwrap();
        let names: Vec<&str> = figures.ways.iter().map(|way| way.way.as_str()).collect();
        assert_eq!(names, [RPMSG, VSOCK]);
        assert_eq!(figures.ways[0].rtt_us_p99, spread(2.0, 2.0, 3.0));
        assert_eq!(figures.ratios.len(), 1);
        assert_eq!(figures.ratios[0].rtt, spread(0.5, 0.25, 1.0));
        assert_eq!(figures.ratios[0].rate, spread(4.0, 4.0, 4.0));
    }

    #[test]
    fn a_way_that_is_there_in_some_rounds_only_is_an_error() {
        let (with, without) = (
            format!("{{{},{}}}", way(RPMSG, 1, 1), way(SERIAL, 1, 1)),
            format!("{{{}}}", way(RPMSG, 1, 1)),
        );
        let answer = parse(&[with, without].join(","));
        let error = figures(&kit(), &answer, Vec::new()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the guest measured serial in 1 of 2 rounds"
        );
        assert!(figures(&kit(), &parse(""), Vec::new()).is_err());
    }
}
