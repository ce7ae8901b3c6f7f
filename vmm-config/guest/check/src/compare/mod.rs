//! The same messages by each way to the host, in turn: what a round trip takes, and how many
//! messages pass in a second.
//!
//! What belongs here: what is measured, and the line that says it. What does not: how a way is
//! opened and driven (`way`), and any judgement: who runs this compares the rounds.
//!
//! The line is one JSON object:
//!
//! ```text
//! {"message_bytes":496,"in_flight":32,"rounds":[{"rpmsg":{"rtt_ns_p50":1,"rtt_ns_p99":1,
//!   "messages_per_second":1},"vsock":{...}},...]}
//! ```

mod samples;
mod way;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use self::samples::Samples;
use self::way::Way;

/// What an rpmsg message holds over virtio.
const MESSAGE: usize = 496;
const IN_FLIGHT: u64 = 32;
/// Round trips before those that count.
const WARM_UP: u64 = 50;

/// Which ways there are, and how long it takes.
#[derive(Debug, PartialEq, Eq)]
pub struct Options<'a> {
    /// A device node of `rpmsg_char`.
    rpmsg: Option<&'a str>,
    /// A port on the host.
    vsock: Option<u32>,
    /// A virtio-serial port, by its name.
    serial: Option<&'a str>,
    rounds: usize,
    round_trips: u64,
    stream: Duration,
}

impl<'a> Options<'a> {
    pub fn parse(words: &[&'a str]) -> Result<Self> {
        let mut options = Self {
            rpmsg: None,
            vsock: None,
            serial: None,
            rounds: 5,
            round_trips: 1000,
            stream: Duration::from_secs(1),
        };
        for pair in words.chunks(2) {
            let &[name, value] = pair else {
                bail!("{} has no value", pair[0])
            };
            let number = || {
                value
                    .parse::<u32>()
                    .ok()
                    .filter(|number| *number > 0)
                    .with_context(|| format!("{name} {value}: must be a number, and not 0"))
            };
            match name {
                "--rpmsg" => options.rpmsg = Some(value),
                "--vsock" => options.vsock = Some(number()?),
                "--serial" => options.serial = Some(value),
                "--rounds" => options.rounds = number()? as usize,
                "--round-trips" => options.round_trips = number()?.into(),
                "--stream-ms" => options.stream = Duration::from_millis(number()?.into()),
                _ => bail!("unknown option {name}"),
            }
        }
        Ok(options)
    }

    fn open(&self) -> Result<Vec<Way>> {
        let mut ways = Vec::new();
        if let Some(device) = self.rpmsg {
            ways.push(Way::rpmsg(device)?);
        }
        if let Some(port) = self.vsock {
            ways.push(Way::vsock(port)?);
        }
        if let Some(name) = self.serial {
            ways.push(Way::serial(name)?);
        }
        ensure!(
            !ways.is_empty(),
            "nothing to compare: give --rpmsg, --vsock or --serial"
        );
        Ok(ways)
    }
}

/// What one round said of one way.
struct Figures {
    p50: Duration,
    p99: Duration,
    rate: f64,
}

impl Figures {
    fn json(&self, name: &str) -> String {
        format!(
            "\"{name}\":{{\"rtt_ns_p50\":{},\"rtt_ns_p99\":{},\"messages_per_second\":{:.0}}}",
            self.p50.as_nanos(),
            self.p99.as_nanos(),
            self.rate
        )
    }
}

/// An answer that is late, out of order or not what was sent ends it with an error.
pub fn compare(options: &Options) -> Result<bool> {
    let mut ways = options.open()?;
    let mut samples = Samples::new();
    let mut rounds = Vec::new();
    for round in 0..options.rounds {
        let mut line = vec![String::new(); ways.len()];
        for turn in 0..ways.len() {
            // Whoever comes after somebody else's stream does so in one round of each.
            let at = (round + turn) % ways.len();
            let way = &mut ways[at];
            let name = way.name();
            let figures = measure(way, &mut samples, options).context(name)?;
            line[at] = figures.json(name);
        }
        rounds.push(format!("{{{}}}", line.join(",")));
    }
    println!(
        "{{\"message_bytes\":{MESSAGE},\"in_flight\":{IN_FLIGHT},\"rounds\":[{}]}}",
        rounds.join(",")
    );
    Ok(true)
}

fn measure(way: &mut Way, samples: &mut Samples, options: &Options) -> Result<Figures> {
    for _ in 0..WARM_UP {
        round_trip(way, samples)?;
    }
    let mut times = Vec::new();
    let mut before = Instant::now();
    for _ in 0..options.round_trips {
        round_trip(way, samples)?;
        let after = Instant::now();
        times.push(after - before);
        before = after;
    }
    times.sort_unstable();
    Ok(Figures {
        p50: percentile(&times, 50),
        p99: percentile(&times, 99),
        rate: stream(way, samples, options.stream)?,
    })
}

fn round_trip(way: &mut Way, samples: &mut Samples) -> Result<()> {
    let message = samples.next();
    while !way.send(message)? {
        way.wait()?;
    }
    while samples.in_flight() > 0 {
        way.wait()?;
        way.receive(samples)?;
    }
    Ok(())
}

/// Messages a second. Sends for as long as `time`, and waits for what is then on its way.
fn stream(way: &mut Way, samples: &mut Samples, time: Duration) -> Result<f64> {
    let start = Instant::now();
    let before = samples.received();
    let mut sending = true;
    while sending || samples.in_flight() > 0 {
        while sending && samples.in_flight() < IN_FLIGHT {
            if !way.send(samples.next())? {
                samples.take_back();
                break;
            }
        }
        way.wait()?;
        way.receive(samples)?;
        sending = start.elapsed() < time;
    }
    Ok((samples.received() - before) as f64 / start.elapsed().as_secs_f64())
}

/// The value that `percent` of all are not above. 0 if there are none.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_micros).collect();
        assert_eq!(percentile(&times, 50), Duration::from_micros(100));
        assert_eq!(percentile(&times, 99), Duration::from_micros(198));
        assert_eq!(percentile(&times[..1], 99), Duration::from_micros(1));
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }

    #[test]
    fn ways_are_optional_and_numbers_are_numbers() {
        let words = ["--rpmsg", "/dev/rpmsg0", "--vsock", "5000", "--rounds", "3"];
        let options = Options::parse(&words).unwrap();
        assert_eq!(options.rpmsg, Some("/dev/rpmsg0"));
        assert_eq!(options.vsock, Some(5000));
        assert_eq!((options.serial, options.rounds), (None, 3));
        assert!(Options::parse(&["--rounds", "0"]).is_err());
        assert!(Options::parse(&["--rounds"]).is_err());
        assert!(Options::parse(&["--vsock", "x"]).is_err());
        assert!(Options::parse(&[]).unwrap().open().is_err());
    }
}
