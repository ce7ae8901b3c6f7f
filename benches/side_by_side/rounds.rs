//! The rounds: every contestant in turn, in every way, again and again.
//!
//! What belongs here: the order of samples, and which of them count. What does not: how one is
//! taken.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::contest::{Contestant, Kind, Programs, QUIET, Sample};
use crate::floor::Yardstick;
use crate::guest::Wait;
use crate::peer::{OUR_CPU, Peer, stay_on};
use crate::serve::Manner;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// So many quiet samples of each are enough.
    pub samples: usize,
    /// No round begins after that.
    pub limit: Duration,
    /// What a sample takes.
    pub time: Duration,
}

/// What is in flight.
pub const DEPTHS: [u64; 4] = [1, 8, 32, 256];
/// Bytes in a message, its header included; the last is that of the tables.
pub const SIZES: [usize; 3] = [16, 64, 512];
const FULL: usize = 512;

/// One thing that is measured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Cell {
    pub kind: Kind,
    pub wait: Wait,
    pub depth: u64,
    pub size: usize,
}

/// What was found.
#[derive(Default)]
pub struct Found {
    pub quiet: BTreeMap<Cell, Vec<Sample>>,
    pub noisy: BTreeMap<Cell, Vec<Sample>>,
    /// Nanoseconds of a cache line and of an event, to and fro.
    pub yardsticks: [Vec<f64>; 2],
    /// Who is not there, or failed, and why.
    pub gaps: BTreeMap<String, String>,
    pub dropped: usize,
}

fn cells(contestants: &[Contestant]) -> Vec<Cell> {
    let mut cells = Vec::new();
    let mut kinds: Vec<Kind> = contestants.iter().map(|it| it.kind).collect();
    kinds.dedup();
    let mut add = |wait, depth, size| {
        for &kind in &kinds {
            if kind.manner(wait).is_some() {
                cells.push(Cell {
                    kind,
                    wait,
                    depth,
                    size,
                });
            }
        }
    };
    for depth in DEPTHS {
        add(Wait::Polled, depth, FULL);
        add(Wait::Asleep, depth, FULL);
    }
    for size in SIZES {
        if size != FULL {
            add(Wait::Polled, 256, size);
            add(Wait::Asleep, 256, size);
        }
    }
    for depth in [1, 32, 256] {
        add(Wait::Lingering, depth, FULL);
    }
    cells
}

/// Lowest, middle, highest.
pub fn spread(values: impl Iterator<Item = f64>) -> Option<[f64; 3]> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = *values.get(values.len() / 2)?;
    Some([values[0], middle, values[values.len() - 1]])
}

impl Found {
    /// The samples that count, and whether they were quiet.
    pub fn samples(&self, cell: &Cell) -> (&[Sample], bool) {
        match (self.quiet.get(cell), self.noisy.get(cell)) {
            (Some(samples), _) => (samples, true),
            (None, Some(samples)) => (samples, false),
            (None, None) => (&[], true),
        }
    }

    fn json(&self) -> Value {
        let mut cells: Vec<&Cell> = self.quiet.keys().chain(self.noisy.keys()).collect();
        cells.sort();
        cells.dedup();
        let cell = |cell: &Cell| {
            let (samples, quiet) = self.samples(cell);
            let middle =
                |figure: fn(&Sample) -> f64| spread(samples.iter().map(figure)).map(|it| it[1]);
            let ns = self.spread(cell, |sample| sample.ns);
            json!({
                "contestant": cell.kind.word(),
                "wait": cell.wait.word(),
                "in_flight": cell.depth,
                "size": cell.size,
                "ns": ns,
                "messages_a_second": ns.map(|[_, middle, _]| 1e9 / middle),
                "round_trip_ns": [
                    middle(|sample| sample.trips[0]),
                    middle(|sample| sample.trips[1]),
                    middle(|sample| sample.trips[2]),
                ],
                "kicks": middle(|sample| sample.kicks),
                "calls": middle(|sample| sample.calls),
                "switches": middle(|sample| sample.switches),
                "cpu_seconds_a_million": middle(|sample| sample.cpu),
                "peers_cpu_seconds_a_million": middle(|sample| sample.peers_cpu),
                "samples": samples.len(),
                "quiet": quiet,
            })
        };
        cells.into_iter().map(cell).collect()
    }

    /// Lowest, middle and highest of one figure.
    pub fn spread(&self, cell: &Cell, figure: impl Fn(&Sample) -> f64) -> Option<[f64; 3]> {
        spread(self.samples(cell).0.iter().map(figure))
    }
}

/// Measures, and prints what was found.
pub fn run(
    kinds: &[Kind],
    programs: &Programs,
    plan: Plan,
    wanted: impl Fn(&Cell) -> bool,
    folder: &Path,
) -> Result<Value, String> {
    stay_on(OUR_CPU)?;
    let mut found = Found::default();
    let mut contestants = Vec::new();
    for &kind in kinds {
        for manner in [Manner::Polls, Manner::Lingers, Manner::Sleeps] {
            let waits = [Wait::Polled, Wait::Lingering, Wait::Asleep];
            if !waits.iter().any(|wait| kind.manner(*wait) == Some(manner)) {
                continue;
            }
            match Contestant::start(kind, manner, programs, folder) {
                Ok(contestant) => contestants.push(contestant),
                Err(error) => {
                    found.gaps.insert(kind.title().to_owned(), error);
                }
            }
        }
    }
    let yardstick = |word: &str| {
        let socket = folder.join(word);
        let mut peer = Peer::serve(&[word, &socket.to_string_lossy()])?;
        peer.wait_for(&socket)?;
        let yardstick = Yardstick::connect(&socket)?;
        peer.pause();
        Ok::<_, String>((peer, yardstick))
    };
    let mut line = yardstick("line")?;
    let mut event = yardstick("event")?;
    let begun = Instant::now();
    let mut round = 0;
    let mut cells = cells(&contestants);
    cells.retain(wanted);
    loop {
        let enough = |cell: &Cell| {
            let samples = found.quiet.get(cell).map_or(0, Vec::len);
            samples >= plan.samples
        };
        if begun.elapsed() > plan.limit || cells.iter().all(enough) || cells.is_empty() {
            break;
        }
        line.0.resume();
        found.yardsticks[0].push(line.1.line(plan.time / 5));
        line.0.pause();
        event.0.resume();
        found.yardsticks[1].push(event.1.event(plan.time));
        event.0.pause();
        for at in 0..cells.len() {
            let cell = cells[(at + round) % cells.len()];
            take(&mut found, &mut contestants, cell, plan.time);
        }
        cells.retain(|cell| !found.gaps.contains_key(cell.kind.title()));
        round += 1;
        eprintln!(
            "round {round}: {:.0} s, {} samples dropped for noise",
            begun.elapsed().as_secs_f64(),
            found.dropped
        );
    }
    show(&found);
    let usage = contestants.iter().map(|it| {
        let usage = it.usage();
        json!({
            "contestant": it.kind.word(),
            "manner": it.manner.word(),
            "resident_bytes": usage.resident,
            "threads": usage.threads,
        })
    });
    Ok(json!({
        "cells": found.json(),
        "yardsticks": {
            "cache_line_ns": spread(found.yardsticks[0].iter().copied()),
            "eventfd_ns": spread(found.yardsticks[1].iter().copied()),
        },
        "processes": usage.collect::<Vec<_>>(),
        "gaps": found.gaps,
        "dropped": found.dropped,
        "seconds": begun.elapsed().as_secs_f64(),
    }))
}

fn take(found: &mut Found, contestants: &mut [Contestant], cell: Cell, time: Duration) {
    let manner = cell.kind.manner(cell.wait);
    let contestant = contestants
        .iter_mut()
        .find(|it| it.kind == cell.kind && Some(it.manner) == manner);
    let Some(contestant) = contestant else {
        return;
    };
    // A noisy sample is worth another try, as noise comes and goes.
    for _ in 0..2 {
        match contestant.sample(cell.wait, cell.depth, cell.size, time) {
            Err(error) => {
                found.gaps.insert(cell.kind.title().to_owned(), error);
                return;
            }
            Ok(sample) if sample.is_quiet() => {
                found.quiet.entry(cell).or_default().push(sample);
                return;
            }
            Ok(sample) => {
                found.noisy.entry(cell).or_default().push(sample);
                found.dropped += 1;
            }
        }
    }
}

/// Three digits or so.
fn short(value: f64) -> String {
    if value < 99.5 {
        format!("{value:.1}")
    } else if value < 99_500.0 {
        format!("{value:.0}")
    } else {
        format!("{:.0}k", value / 1e3)
    }
}

/// The tables.
fn show(found: &Found) {
    println!(
        "Samples during which others used more than {:.0} per cent of a CPU: {} dropped",
        QUIET * 100.0,
        found.dropped
    );
    for (name, values) in ["cache line", "eventfd, two CPUs"]
        .iter()
        .zip(&found.yardsticks)
    {
        if let Some([low, middle, high]) = spread(values.iter().copied()) {
            println!("{name}, to and fro: {middle:.0} ns ({low:.0} to {high:.0})");
        }
    }
    for (wait, title) in [
        (Wait::Polled, "both sides poll"),
        (Wait::Asleep, "both sides sleep"),
        (Wait::Lingering, "both sides linger"),
    ] {
        println!("\n512 bytes, {title}: ns a message (lowest-highest), by messages in flight");
        print!("{:<20}", "");
        for depth in DEPTHS {
            print!("{depth:>15}");
        }
        println!();
        for kind in Kind::ALL {
            let row: Vec<String> = DEPTHS
                .iter()
                .map(|&depth| {
                    let cell = Cell {
                        kind,
                        wait,
                        depth,
                        size: FULL,
                    };
                    found.spread(&cell, |sample| sample.ns).map_or_else(
                        || "-".to_owned(),
                        |[low, middle, high]| {
                            let mark = if found.samples(&cell).1 { "" } else { "~" };
                            let range = format!("{}-{}", short(low), short(high));
                            format!("{mark}{} {range}", short(middle))
                        },
                    )
                })
                .collect();
            if row.iter().any(|text| text != "-") {
                print!("{:<20}", kind.title());
                for text in row {
                    print!(" {text:>14}");
                }
                println!();
            }
        }
    }
    show_sizes(found);
    show_costs(found);
    for (name, why) in &found.gaps {
        println!("gap: {name}: {why}");
    }
}

/// By size.
fn show_sizes(found: &Found) {
    println!("\n256 in flight, both sides poll: ns a message (lowest-highest), by bytes in each");
    print!("{:<20}", "");
    for size in SIZES {
        print!("{size:>15}");
    }
    println!("{:>12}{:>12}", 2048, 4096);
    for kind in Kind::ALL {
        let ns = |size| {
            let cell = Cell {
                kind,
                wait: Wait::Polled,
                depth: 256,
                size,
            };
            found.spread(&cell, |sample| sample.ns)
        };
        if SIZES.iter().all(|size| ns(*size).is_none()) {
            continue;
        }
        print!("{:<20}", kind.title());
        for size in SIZES {
            let text = ns(size).map_or_else(
                || "-".to_owned(),
                |[low, middle, high]| format!("{} {}-{}", short(middle), short(low), short(high)),
            );
            print!(" {text:>14}");
        }
        println!("{:>12}{:>12}", "-", "-");
    }
    println!("(2048 and 4096: the vdevs have buffers of 512 bytes)");
}

/// What is counted, and what is used.
fn show_costs(found: &Found) {
    println!("\nA message of 512 bytes, middles; round trips in us; CPU: s a million messages");
    println!(
        "{:<20}{:<7}{:>4}{:>8}{:>8}{:>8}{:>7}{:>7}{:>7}{:>7}",
        "", "waits", "", "p50", "p99", "p99.9", "kicks", "calls", "sleeps", "CPU"
    );
    for kind in Kind::ALL {
        for wait in [Wait::Polled, Wait::Asleep, Wait::Lingering] {
            for depth in [1, 32, 256] {
                let cell = Cell {
                    kind,
                    wait,
                    depth,
                    size: FULL,
                };
                let middle =
                    |figure: fn(&Sample) -> f64| found.spread(&cell, figure).map(|it| it[1]);
                let Some(kicks) = middle(|sample| sample.kicks) else {
                    continue;
                };
                let figure = |value: Option<f64>| value.unwrap_or_default();
                let trip = |value: Option<f64>| match value {
                    Some(ns) if depth == 1 => format!("{:.1}", ns / 1e3),
                    _ => "-".to_owned(),
                };
                println!(
                    "{:<20}{:<7.6}{depth:>4}{:>8}{:>8}{:>8}{kicks:>7.3}{:>7.3}{:>7.3}{:>7.2}",
                    kind.title(),
                    wait.word(),
                    trip(middle(|sample| sample.trips[0])),
                    trip(middle(|sample| sample.trips[1])),
                    trip(middle(|sample| sample.trips[2])),
                    figure(middle(|sample| sample.calls)),
                    figure(middle(|sample| sample.switches)),
                    figure(middle(|sample| sample.cpu)),
                );
            }
        }
    }
}
