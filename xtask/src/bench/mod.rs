//! `cargo xtask bench`: rprocd beside its peers, in one run.
//!
//! What belongs here: getting the peers, running the measurement (`benches/side_by_side.rs`), and
//! showing what came of it. What does not: measuring.
//!
//! - [`dpdk`], [`vsock`]: the peers
//! - [`guest`]: the comparison inside a Linux guest
//! - [`promises`][]: what must hold
//! - [`plot`][]: pictures

pub mod dpdk;
pub mod guest;
pub mod plot;
pub mod promises;
pub mod vsock;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use self::plot::{Line, Plot};
use self::promises::Results;
use crate::cargo;
use crate::kit::Cache;
use crate::limit::{self, minutes};

/// `cargo xtask bench`.
#[derive(clap::Args, Debug, Default)]
pub struct Options {
    /// Take about three minutes: fewer rounds, less of each
    #[arg(long)]
    quick: bool,
    /// Measure only these contestants: relay, rv32, dpdk, plain, vsock, floor
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// Measure only inside a Linux guest
    #[arg(long)]
    guest_only: bool,
}

impl Options {
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}

/// The program of a peer, or nothing and why it leaves a gap.
fn peer(name: &str, program: Result<PathBuf>) -> Option<PathBuf> {
    program
        .inspect_err(|error| println!("bench: {name} leaves a gap: {error:#}"))
        .ok()
}

/// Measures and shows.
pub fn run(options: &Options) -> Result<()> {
    if options.guest_only {
        let figures = in_guest(options)?;
        figures.show();
        return Ok(());
    }
    let folder = cargo::target_directory()?.join("bench");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join("results.json");
    // What is there afterwards is of this run.
    let _ = fs::remove_file(&path);
    limit::within("the comparison", minutes(180), || measure(options, &path))?;
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut results: Value = serde_json::from_slice(&text)
        .with_context(|| format!("{} holds no results", path.display()))?;
    if options.only.is_empty() {
        match limit::within("the benchmark of recoveries", minutes(60), recovery) {
            Ok(line) => {
                println!("\nRecovery: {line}");
                results["recovery"] = line.into();
            }
            Err(error) => println!("bench: recovery leaves a gap: {error:#}"),
        }
        println!();
        match in_guest(options) {
            Ok(figures) => {
                figures.show();
                results["in_guest"] = serde_json::to_value(figures)?;
            }
            Err(error) => println!("bench: the guest leaves a gap: {error:#}"),
        }
    }
    let promises = promises::all(&Results(&results));
    promises::show(&promises);
    results["promises"] = promises.iter().map(promises::Promise::json).collect();
    let text = serde_json::to_vec_pretty(&results)?;
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("\nbench: results in {}", path.display());
    for (name, plot) in plots(&Results(&results)) {
        if let Some(svg) = plot.svg() {
            let path = folder.join(name);
            fs::write(&path, svg).with_context(|| format!("cannot write {}", path.display()))?;
            println!("bench: plot in    {}", path.display());
        }
    }
    Ok(())
}

fn in_guest(options: &Options) -> Result<guest::GuestFigures> {
    limit::within("the comparison in a guest", minutes(120), || {
        guest::run(&guest::Options::new(options.quick))
    })
}

/// Runs the measurement with what peers there are.
fn measure(options: &Options, json: &Path) -> Result<()> {
    let bench = || {
        let mut bench = cargo::cargo();
        bench.args(["bench", "--bench", "side_by_side"]);
        bench
    };
    // Before hugepages are taken from others.
    cargo::show(bench().arg("--no-run"))?;
    let mut bench = bench();
    bench.args(["--", "--json"]).arg(json);
    let cache = Cache::open()?;
    let mut hugepages = None;
    if options.wants("dpdk")
        && let Some(program) = peer("DPDK", dpdk::binary(&cache))
    {
        bench.arg("--dpdk").arg(program);
        match dpdk::Hugepages::reserve() {
            Ok(pages) => {
                println!("bench: DPDK runs with hugepages");
                hugepages = Some(pages);
                bench.arg("--hugepages");
            }
            Err(error) => println!("bench: DPDK runs without hugepages: {error:#}"),
        }
    }
    if options.wants("vsock")
        && let Some(program) = peer("vhost-device-vsock", vsock::binary(&cache))
    {
        bench.arg("--vsock").arg(program);
    }
    drop(cache);
    if options.quick {
        bench.arg("--quick");
    }
    if !options.only.is_empty() {
        bench.arg("--only").arg(options.only.join(","));
    }
    let done = cargo::show(&mut bench);
    drop(hugepages);
    done
}

/// The line that counts of the benchmark of recoveries.
fn recovery() -> Result<String> {
    let output = cargo::cargo()
        .args(["bench", "--bench", "recovery"])
        .output()
        .context("cannot run cargo")?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .find(|line| line.starts_with("PASS") || line.starts_with("MISS"))
        .map(str::to_owned)
        .with_context(|| {
            let log = String::from_utf8_lossy(&output.stderr);
            format!(
                "`cargo bench --bench recovery` says no verdict:\n{}",
                log.trim()
            )
        })
}

const NAMES: [(&str, &str); 6] = [
    ("relay", "rprocd, relay alone"),
    ("rv32", "rprocd, rv32 echo"),
    ("dpdk", "DPDK testpmd"),
    ("plain", "rust-vmm, plain"),
    ("vsock", "vhost-device-vsock"),
    ("floor", "bare rings (floor)"),
];

/// The pictures and what their files are called.
fn plots<'a>(results: &Results<'_>) -> Vec<(&'static str, Plot<'a>)> {
    let rates = |wait: &str| {
        let line = |(word, name): &(&str, &str)| {
            let point = |in_flight: &u64| {
                let ns = results.ns(word, wait, *in_flight)?;
                Some((*in_flight as f64, 1e9 / ns))
            };
            Line {
                name: (*name).to_owned(),
                points: [1, 8, 32, 256].iter().filter_map(point).collect(),
            }
        };
        NAMES.iter().map(line).collect()
    };
    let crowd = |name: &str, manner: &str, figure: &dyn Fn(&Value) -> Option<f64>| Line {
        name: name.to_owned(),
        points: [1, 4, 16, 32, 64, 256]
            .into_iter()
            .filter_map(|vdevs| {
                let value = figure(results.crowd(manner, vdevs)?)?;
                Some((vdevs as f64, value))
            })
            .collect(),
    };
    let ns = |value: &Value| value["ns_in_turn"]["spread"][1].as_f64();
    let trip = |value: &Value| value["round_trip_ns"]["spread"][1].as_f64();
    vec![
        (
            "rate-polled.svg",
            Plot {
                title: "512 bytes, both sides poll",
                across: "messages in flight",
                up: "messages a second",
                lines: rates("polled"),
            },
        ),
        (
            "rate-asleep.svg",
            Plot {
                title: "512 bytes, both sides sleep",
                across: "messages in flight",
                up: "messages a second",
                lines: rates("asleep"),
            },
        ),
        (
            "scaling.svg",
            Plot {
                title: "Vdevs of one process, driven in turn (relay alone)",
                across: "vdevs",
                up: "ns",
                lines: vec![
                    crowd("a message, polled", "polls", &ns),
                    crowd("a message, asleep", "sleeps", &ns),
                    crowd("round trip, polled", "polls", &trip),
                    crowd("round trip, asleep", "sleeps", &trip),
                ],
            },
        ),
        (
            "memory.svg",
            Plot {
                title: "Vdevs of one process: memory and threads",
                across: "vdevs",
                up: "MiB, threads",
                lines: vec![
                    crowd("MiB, idle", "sleeps", &|value| {
                        Some(value["idle_bytes"].as_f64()? / f64::from(1 << 20))
                    }),
                    crowd("MiB, all used", "sleeps", &|value| {
                        Some(value["used_bytes"].as_f64()? / f64::from(1 << 20))
                    }),
                    crowd("threads", "sleeps", &|value| value["threads"].as_f64()),
                ],
            },
        ),
    ]
}
