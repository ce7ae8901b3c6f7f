//! A core's figures as Prometheus reads them: text format 0.0.4.
//!
//! What belongs here: the list of metrics, and the text. What does not: where the figures come
//! from ([`CoreStatus`], as the control socket tells it), files, sockets.
//!
//! Counters count since the daemon started; after a restart they begin again at 0, which
//! Prometheus's `rate()` knows how to take. Names and labels are a contract: they are added to, and
//! not changed.

use std::fmt::Write;

use serde::{Serialize, Serializer};

use crate::rproc::{CoreStatus, CrashCount, DirectionStatus, DumpCount, Histogram, TraceCount};

/// What a metric is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How often it was how much.
    Histogram,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One series of a metric: its labels, and its value.
type Sample = (Vec<(&'static str, String)>, f64);

/// A figure of one direction of a vdev.
type Count = fn(&DirectionStatus) -> u64;

/// A metric: what it is called, what it says, and how it is read off a core.
pub struct Metric {
    /// Its name, with its unit.
    pub name: &'static str,
    /// Counter or gauge.
    pub kind: Kind,
    /// What it says, in a line.
    pub help: &'static str,
    read: Read,
}

/// How a metric is read off a core.
enum Read {
    Samples(fn(&CoreStatus) -> Vec<Sample>),
    Histogram(fn(&CoreStatus) -> &Histogram),
}

/// The states of a core, in Linux's spelling.
const STATES: [&str; 6] = [
    "offline",
    "suspended",
    "running",
    "crashed",
    "attached",
    "detached",
];

/// All metrics, in the order in which they are shown.
pub const METRICS: [Metric; 24] = [
    Metric {
        name: "rprocd_core_state",
        kind: Kind::Gauge,
        help: "1 for the state that the core is in, 0 for the others.",
        read: Read::Samples(|core| {
            let sample = |state: &&'static str| {
                let is = f64::from(u8::from(core.state == *state));
                (vec![("state", (*state).to_owned())], is)
            };
            STATES.iter().map(sample).collect()
        }),
    },
    Metric {
        name: "rprocd_core_firmware_info",
        kind: Kind::Gauge,
        help: "Always 1; the labels name the firmware and the engine.",
        read: Read::Samples(|core| {
            let labels = vec![
                ("firmware", core.firmware.clone()),
                ("sha256", core.firmware_sha256.clone()),
                ("engine", core.engine.clone()),
            ];
            vec![(labels, 1.0)]
        }),
    },
    Metric {
        name: "rprocd_core_boots_total",
        kind: Kind::Counter,
        help: "Incarnations booted; the last one's number.",
        read: Read::Samples(|core| vec![(Vec::new(), core.incarnation.into())]),
    },
    Metric {
        name: "rprocd_core_crashes_total",
        kind: Kind::Counter,
        help: "Crashes of the firmware, by reason.",
        read: Read::Samples(|core| {
            let reasons = core.crashes_by_reason.iter();
            let sample = |it: &CrashCount| (vec![("reason", it.reason.clone())], it.count as f64);
            reasons.map(sample).collect()
        }),
    },
    Metric {
        name: "rprocd_core_recovery_duration_seconds",
        kind: Kind::Histogram,
        help: "From a crash to the next incarnation, the wait in front of it included.",
        read: Read::Histogram(|core| &core.recovery_time),
    },
    Metric {
        name: "rprocd_core_relay_duration_seconds",
        kind: Kind::Histogram,
        help: "From a guest's kick until all that came of it was relayed, both ways.",
        read: Read::Histogram(|core| &core.relay_time),
    },
    Metric {
        name: "rprocd_core_uptime_seconds",
        kind: Kind::Gauge,
        help: "How long the incarnation that is there has been; nothing where there is none.",
        read: Read::Samples(|core| {
            let uptime = core.uptime_microseconds.into_iter();
            uptime.map(|it| (Vec::new(), it as f64 / 1e6)).collect()
        }),
    },
    Metric {
        name: "rprocd_core_run_seconds_total",
        kind: Kind::Counter,
        help: "Time in which the core executed instructions; nothing where its engine cannot tell.",
        read: Read::Samples(|core| {
            let ran = core.ran_microseconds.into_iter();
            ran.map(|it| (Vec::new(), it as f64 / 1e6)).collect()
        }),
    },
    Metric {
        name: "rprocd_core_coredumps_total",
        kind: Kind::Counter,
        help: "Coredumps, by what became of them.",
        read: Read::Samples(|core| {
            let DumpCount {
                written,
                partial,
                skipped,
                failed,
                ..
            } = core.coredumps;
            let outcomes = [
                ("written", written),
                ("partial", partial),
                ("skipped", skipped),
                ("failed", failed),
            ];
            let sample = |(outcome, count): (&str, u64)| {
                (vec![("outcome", outcome.to_owned())], count as f64)
            };
            outcomes.into_iter().map(sample).collect()
        }),
    },
    Metric {
        name: "rprocd_core_coredump_bytes_total",
        kind: Kind::Counter,
        help: "Bytes of coredumps written, as the disk has them.",
        read: Read::Samples(|core| vec![(Vec::new(), core.coredumps.bytes as f64)]),
    },
    Metric {
        name: "rprocd_core_coredump_seconds_total",
        kind: Kind::Counter,
        help: "Time that coredumps took.",
        read: Read::Samples(|core| vec![(Vec::new(), core.coredumps.microseconds as f64 / 1e6)]),
    },
    Metric {
        name: "rprocd_core_trace_bytes_total",
        kind: Kind::Counter,
        help: "Bytes of text found in a trace buffer, or written to the UART.",
        read: Read::Samples(|core| of_traces(core, |it| it.bytes)),
    },
    Metric {
        name: "rprocd_core_trace_overruns_total",
        kind: Kind::Counter,
        help: "Times that the firmware overwrote text before it was looked at.",
        read: Read::Samples(|core| of_traces(core, |it| it.overruns)),
    },
    Metric {
        name: "rprocd_core_recovery_enabled",
        kind: Kind::Gauge,
        help: "1 if a crash is followed by a restart without being asked.",
        read: Read::Samples(|core| vec![(Vec::new(), u8::from(core.recovery).into())]),
    },
    Metric {
        name: "rprocd_core_holders",
        kind: Kind::Gauge,
        help: "Those who want the core running: operator, guests, control connections.",
        read: Read::Samples(|core| vec![(Vec::new(), core.holders.len() as f64)]),
    },
    Metric {
        name: "rprocd_core_unknown_kicks_total",
        kind: Kind::Counter,
        help: "Kicks of the firmware with notify ids that no vring has.",
        read: Read::Samples(|core| vec![(Vec::new(), core.unknown_kicks as f64)]),
    },
    Metric {
        name: "rprocd_core_change_duration_seconds",
        kind: Kind::Gauge,
        help: "How long the last change of each kind took.",
        read: Read::Samples(|core| {
            core.timelines
                .iter()
                .map(|timeline| {
                    let seconds = timeline.microseconds as f64 / 1e6;
                    (vec![("change", timeline.what.clone())], seconds)
                })
                .collect()
        }),
    },
    Metric {
        name: "rprocd_vdev_guest_attached",
        kind: Kind::Gauge,
        help: "1 if a guest's driver is attached.",
        read: Read::Samples(|core| of_vdevs(core, |vdev| vdev.guest_attached.into())),
    },
    Metric {
        name: "rprocd_vdev_core_holds",
        kind: Kind::Gauge,
        help: "Messages that the firmware has been given and has not given back.",
        read: Read::Samples(|core| of_vdevs(core, |vdev| vdev.core_holds.into())),
    },
    Metric {
        name: "rprocd_vdev_starved",
        kind: Kind::Gauge,
        help: "1 if a message of the firmware waits for a buffer of the guest.",
        read: Read::Samples(|core| of_vdevs(core, |vdev| u8::from(vdev.starved).into())),
    },
    Metric {
        name: "rprocd_vdev_messages_total",
        kind: Kind::Counter,
        help: "Messages relayed.",
        read: Read::Samples(|core| of_directions(core, |it| it.messages)),
    },
    Metric {
        name: "rprocd_vdev_bytes_total",
        kind: Kind::Counter,
        help: "Bytes of the messages relayed, headers included.",
        read: Read::Samples(|core| of_directions(core, |it| it.bytes)),
    },
    Metric {
        name: "rprocd_vdev_notifications_total",
        kind: Kind::Counter,
        help: "Kicks of the core (to_core) and calls of the guest (to_guest).",
        read: Read::Samples(|core| of_directions(core, |it| it.notifications)),
    },
    Metric {
        name: "rprocd_vdev_dropped_total",
        kind: Kind::Counter,
        help: "Messages and chains that nobody could receive, by reason.",
        read: Read::Samples(|core| {
            let mut samples = Vec::new();
            let reasons: [(&str, Count); 5] = [
                ("bad_chain", |it| it.bad_chains),
                ("malformed", |it| it.malformed),
                ("too_long", |it| it.too_long),
                ("withheld", |it| it.withheld),
                ("lost", |it| it.lost),
            ];
            for (reason, count) in reasons {
                for (mut labels, value) in of_directions(core, count) {
                    labels.push(("reason", reason.to_owned()));
                    samples.push((labels, value));
                }
            }
            samples
        }),
    },
];

fn of_traces(core: &CoreStatus, read: fn(&TraceCount) -> u64) -> Vec<Sample> {
    let sample = |(index, trace): (usize, &TraceCount)| {
        let labels = vec![
            ("buffer", usize::to_string(&index)),
            ("name", trace.name.clone()),
        ];
        (labels, read(trace) as f64)
    };
    core.traces.iter().enumerate().map(sample).collect()
}

fn of_vdevs(core: &CoreStatus, read: fn(&crate::rproc::VdevStatus) -> f64) -> Vec<Sample> {
    let sample = |(index, vdev)| (vec![("vdev", usize::to_string(&index))], read(vdev));
    core.vdevs.iter().enumerate().map(sample).collect()
}

fn of_directions(core: &CoreStatus, read: Count) -> Vec<Sample> {
    let mut samples = Vec::new();
    for (index, vdev) in core.vdevs.iter().enumerate() {
        for (direction, counted) in [("to_guest", &vdev.to_guest), ("to_core", &vdev.to_core)] {
            let labels = vec![
                ("vdev", index.to_string()),
                ("direction", direction.to_owned()),
            ];
            samples.push((labels, read(counted) as f64));
        }
    }
    samples
}

/// A metric and its series.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Family {
    /// The metric's name.
    pub name: &'static str,
    /// Its kind, in Prometheus's words.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// What it says.
    pub help: &'static str,
    /// Its series; never empty.
    pub series: Vec<Series>,
}

/// One series.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Series {
    /// The metric's name; of a histogram with `_bucket`, `_sum` or `_count` behind it.
    pub name: String,
    /// Its labels, the core's name first.
    #[serde(serialize_with = "as_object")]
    pub labels: Vec<(&'static str, String)>,
    /// Its value now.
    pub value: f64,
}

fn as_object<S: Serializer>(
    labels: &[(&'static str, String)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(labels.iter().map(|(label, of)| (label, of)))
}

/// All metrics of these cores. A metric that nothing has a figure for is left out. A daemon is named
/// beside a core where another daemon has one of the same name: its series have one label more.
pub fn families(cores: &[(Option<String>, &CoreStatus)]) -> Vec<Family> {
    let mut families = Vec::new();
    for metric in &METRICS {
        let mut series = Vec::new();
        for (daemon, core) in cores {
            let mut add = |suffix: &str, labels: Vec<(&'static str, String)>, value: f64| {
                let mut all = vec![("core", core.name.clone())];
                all.extend(daemon.clone().map(|daemon| ("daemon", daemon)));
                all.extend(labels);
                series.push(Series {
                    name: format!("{}{suffix}", metric.name),
                    labels: all,
                    value,
                });
            };
            match metric.read {
                Read::Samples(read) => {
                    for (labels, value) in read(core) {
                        add("", labels, value);
                    }
                }
                Read::Histogram(read) => histogram(read(core), add),
            }
        }
        if !series.is_empty() {
            families.push(Family {
                name: metric.name,
                kind: metric.kind.word(),
                help: metric.help,
                series,
            });
        }
    }
    families
}

/// The series of a histogram: how many at most so much, for each bound.
fn histogram(histogram: &Histogram, mut add: impl FnMut(&str, Vec<(&'static str, String)>, f64)) {
    let bounds = histogram.bounds_microseconds.iter();
    let bounds = bounds.map(|bound| (*bound as f64 / 1e6).to_string());
    let mut count = 0;
    for (bound, more) in bounds.chain(["+Inf".to_owned()]).zip(&histogram.counts) {
        count += more;
        add("_bucket", vec![("le", bound)], count as f64);
    }
    let seconds = histogram.sum_microseconds as f64 / 1e6;
    add("_sum", Vec::new(), seconds);
    add("_count", Vec::new(), count as f64);
}

/// Metrics as Prometheus reads them.
pub fn text(families: &[Family]) -> String {
    let mut text = String::new();
    for Family {
        name,
        kind,
        help,
        series,
    } in families
    {
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for Series {
            name,
            labels,
            value,
        } in series
        {
            let labels = labels.iter();
            let labels = labels.map(|(label, of)| format!("{label}=\"{}\"", escaped(of)));
            let labels: Vec<_> = labels.collect();
            let _ = writeln!(text, "{name}{{{}}} {value}", labels.join(","));
        }
    }
    text
}

/// A label's value: backslash, quote and line feed are escaped.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rproc::{TimelineStatus, VdevStatus};

    fn direction(from: u64) -> DirectionStatus {
        DirectionStatus {
            messages: from,
            bytes: from + 1,
            notifications: from + 2,
            bad_chains: from + 3,
            malformed: from + 4,
            too_long: from + 5,
            withheld: from + 6,
            lost: from + 7,
        }
    }

    fn core() -> CoreStatus {
        CoreStatus {
            name: "m4".into(),
            state: "running".into(),
            holders: vec!["operator".into()],
            engine: "rv32".into(),
            firmware: "a\"b\\c\n.elf".into(),
            firmware_sha256: "00ff".into(),
            incarnation: 3,
            uptime_microseconds: Some(2_500_000),
            ran_microseconds: Some(250_000),
            incarnation_ran_microseconds: Some(125_000),
            pc: Some(0x8000_0000),
            memory_da: 0x8000_0000,
            memory_bytes: 4 << 20,
            crashes: 2,
            crashes_by_reason: vec![CrashCount {
                reason: "watchdog".into(),
                count: 2,
            }],
            recovery_time: Histogram {
                bounds_microseconds: vec![500, 1000],
                counts: vec![1, 0, 2],
                sum_microseconds: 4500,
            },
            relay_time: Histogram::new(&[1]),
            coredump_mode: "enabled".into(),
            coredumps: DumpCount {
                written: 1,
                bytes: 4096,
                microseconds: 1500,
                ..DumpCount::default()
            },
            traces: vec![TraceCount {
                name: "log".into(),
                bytes: 12,
                overruns: 1,
            }],
            recovery: true,
            next: None,
            last_crash: None,
            last_dump: None,
            ended: None,
            unknown_kicks: 5,
            timelines: vec![TimelineStatus {
                what: "recovery".into(),
                microseconds: 1500,
                steps: Vec::new(),
            }],
            vdevs: vec![VdevStatus {
                device_id: 7,
                features: 1,
                offered_features: Some(1),
                accepted_features: None,
                config_bytes: 0,
                socket: None,
                vrings: Vec::new(),
                guest_attached: true,
                driver_ok: true,
                core_holds: 7,
                starved: false,
                to_guest: direction(100),
                to_core: direction(200),
                announced: Vec::new(),
            }],
        }
    }

    fn text(cores: &[CoreStatus]) -> String {
        let cores: Vec<_> = cores.iter().map(|core| (None, core)).collect();
        super::text(&families(&cores))
    }

    #[test]
    fn cores_of_one_name_are_told_apart_by_their_daemons() {
        let core = core();
        let daemon = |socket: &str| (Some(socket.to_owned()), &core);
        let families = families(&[daemon("/a"), daemon("/b")]);
        let mut series: Vec<_> = families.iter().flat_map(|it| &it.series).collect();
        let all = series.len();
        assert!(series.iter().all(|it| it.labels[1].0 == "daemon"));
        series.sort_by_key(|it| format!("{} {:?}", it.name, it.labels));
        series.dedup_by_key(|it| (&it.name, &it.labels));
        assert_eq!(series.len(), all, "no two series are the same one");
        let text = super::text(&families);
        let line = "rprocd_core_boots_total{core=\"m4\",daemon=\"/b\"} 3\n";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn every_metric_is_told_once_with_its_help_and_its_kind_in_front_of_its_series() {
        let text = text(&[core(), core()]);
        let mut told = Vec::new();
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            let name = line
                .strip_prefix("# HELP ")
                .unwrap()
                .split_once(' ')
                .unwrap()
                .0;
            let metric = METRICS.iter().find(|it| it.name == name).unwrap();
            let kind = format!("# TYPE {name} {}", metric.kind.word());
            assert_eq!(lines.next().unwrap(), kind);
            let mut series = 0;
            while let Some(line) = lines.next_if(|it| !it.starts_with('#')) {
                let (labels, value) = line.rsplit_once("} ").unwrap();
                let (called, labels) = labels.split_once('{').unwrap();
                let suffix = called.strip_prefix(name).unwrap();
                let suffixes: &[_] = match metric.kind {
                    Kind::Histogram => &["_bucket", "_sum", "_count"],
                    Kind::Counter | Kind::Gauge => &[""],
                };
                assert!(suffixes.contains(&suffix), "{line}");
                assert!(labels.starts_with("core=\"m4\""), "{line}");
                value.parse::<f64>().unwrap();
                series += 1;
            }
            assert!(series >= 2, "{name} has {series} series for two cores");
            told.push(name);
        }
        let all: Vec<_> = METRICS.iter().map(|it| it.name).collect();
        assert_eq!(told, all);
    }

    #[test]
    fn counters_are_called_total_and_gauges_are_not() {
        for metric in &METRICS {
            let is_counter = metric.kind == Kind::Counter;
            assert_eq!(
                metric.name.ends_with("_total"),
                is_counter,
                "{}",
                metric.name
            );
        }
    }

    #[test]
    fn what_a_label_may_not_hold_is_escaped() {
        let text = text(&[core()]);
        let line = "rprocd_core_firmware_info{core=\"m4\",firmware=\"a\\\"b\\\\c\\n.elf\",\
                    sha256=\"00ff\",engine=\"rv32\"} 1\n";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn figures_are_those_of_the_core() {
        let text = text(&[core()]);
        for line in [
            "rprocd_core_state{core=\"m4\",state=\"running\"} 1\n",
            "rprocd_core_state{core=\"m4\",state=\"crashed\"} 0\n",
            "rprocd_core_boots_total{core=\"m4\"} 3\n",
            "rprocd_core_crashes_total{core=\"m4\",reason=\"watchdog\"} 2\n",
            "rprocd_core_recovery_duration_seconds_bucket{core=\"m4\",le=\"0.0005\"} 1\n",
            "rprocd_core_recovery_duration_seconds_bucket{core=\"m4\",le=\"0.001\"} 1\n",
            "rprocd_core_recovery_duration_seconds_bucket{core=\"m4\",le=\"+Inf\"} 3\n",
            "rprocd_core_recovery_duration_seconds_sum{core=\"m4\"} 0.0045\n",
            "rprocd_core_recovery_duration_seconds_count{core=\"m4\"} 3\n",
            "rprocd_core_run_seconds_total{core=\"m4\"} 0.25\n",
            "rprocd_core_change_duration_seconds{core=\"m4\",change=\"recovery\"} 0.0015\n",
            "rprocd_vdev_messages_total{core=\"m4\",vdev=\"0\",direction=\"to_guest\"} 100\n",
            "rprocd_vdev_messages_total{core=\"m4\",vdev=\"0\",direction=\"to_core\"} 200\n",
            "rprocd_vdev_dropped_total{core=\"m4\",vdev=\"0\",direction=\"to_core\",\
             reason=\"lost\"} 207\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn the_page_about_metrics_has_every_one_and_no_other() {
        let page = include_str!("../docs/metrics.md");
        let rows: Vec<_> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
            .map(|(name, _)| name)
            .collect();
        let all: Vec<_> = METRICS.iter().map(|it| it.name).collect();
        assert_eq!(rows, all);
    }
}
