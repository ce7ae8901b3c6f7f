//! `cargo xtask bench`: rprocd beside its peers, in one run.
//!
//! What belongs here: getting the peers, running the measurement (`benches/side_by_side.rs`), and
//! showing what came of it. What does not: measuring.

pub mod dpdk;
pub mod vsock;

use std::path::PathBuf;

use anyhow::Result;

use crate::cargo;
use crate::kit::Cache;

/// `cargo xtask bench`.
#[derive(clap::Args, Debug, Default)]
pub struct Options {
    /// Take about two minutes: fewer rounds, less of each
    #[arg(long)]
    quick: bool,
    /// Measure only these contestants
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
}

/// What there is of a peer, or why it leaves a gap.
fn peer(name: &str, program: Result<PathBuf>) -> Option<PathBuf> {
    program
        .inspect_err(|error| println!("bench: {name} leaves a gap: {error:#}"))
        .ok()
}

/// Measures and shows.
pub fn run(options: &Options) -> Result<()> {
    let cache = Cache::open()?;
    let mut bench = cargo::cargo();
    bench.args(["bench", "--bench", "side_by_side", "--"]);
    for (name, program) in [
        ("dpdk", dpdk::binary(&cache)),
        ("vsock", vsock::binary(&cache)),
    ] {
        if let Some(program) = peer(name, program) {
            bench.arg(format!("--{name}")).arg(program);
        }
    }
    drop(cache);
    if options.quick {
        bench.arg("--quick");
    }
    if !options.only.is_empty() {
        bench.arg("--only").arg(options.only.join(","));
    }
    cargo::show(&mut bench)
}
