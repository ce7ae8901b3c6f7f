//! rprocd beside its peers, in one run.
#![allow(
    missing_docs,
    dead_code,
    clippy::unwrap_used,
    reason = "a benchmark, and the folders that it shares with the tests"
)]

#[path = "side_by_side/contest.rs"]
mod contest;
#[path = "../tests/firmware/elf_builder.rs"]
mod elf_builder;
#[path = "side_by_side/floor.rs"]
mod floor;
#[path = "../tests/frontend/mod.rs"]
mod frontend;
#[path = "side_by_side/guest.rs"]
mod guest;
#[path = "../tests/in_process/mod.rs"]
mod in_process;
#[path = "side_by_side/memory.rs"]
mod memory;
#[path = "side_by_side/peer.rs"]
mod peer;
#[path = "side_by_side/rounds.rs"]
mod rounds;
#[path = "side_by_side/scaling.rs"]
mod scaling;
#[path = "side_by_side/serve.rs"]
mod serve;
#[path = "../tests/firmware/table_builder.rs"]
mod table_builder;
#[path = "side_by_side/vsock.rs"]
mod vsock;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use contest::{Kind, Programs};

#[derive(Parser, Debug)]
struct Arguments {
    /// Be a contestant: its kind, its socket, and what it wants besides
    #[arg(long, num_args = 1.., value_name = "WORD")]
    serve: Vec<String>,
    /// Where DPDK's testpmd is
    #[arg(long)]
    dpdk: Option<PathBuf>,
    /// The host has hugepages for it
    #[arg(long)]
    hugepages: bool,
    /// Where vhost-device-vsock is
    #[arg(long)]
    vsock: Option<PathBuf>,
    /// Measure only many vdevs in one process
    #[arg(long)]
    scaling: bool,
    /// Measure only these contestants
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Measure only with so many in flight
    #[arg(long, value_delimiter = ',')]
    depth: Vec<u64>,
    /// Measure only messages of so many bytes
    #[arg(long, value_delimiter = ',')]
    size: Vec<usize>,
    /// Measure only guests that wait like this: polled, lingering, asleep
    #[arg(long, value_delimiter = ',')]
    wait: Vec<String>,
    /// In about two minutes
    #[arg(long)]
    quick: bool,
    /// Where the results go, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = if arguments.serve.is_empty() {
        measure(&arguments)
    } else {
        serve::serve(&arguments.serve)
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("side_by_side: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Result<(), String> {
    if arguments.scaling {
        peer::stay_on(peer::OUR_CPU)?;
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        return scaling::run(folder.path(), arguments.quick).map(drop);
    }
    let only = |kind: &Kind| {
        arguments.only.is_empty() || arguments.only.iter().any(|word| word == kind.word())
    };
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(only).collect();
    if kinds.is_empty() {
        let words = Kind::ALL.map(Kind::word).join(", ");
        return Err(format!("there is no such contestant; there are {words}"));
    }
    let programs = Programs {
        dpdk: arguments.dpdk.clone(),
        hugepages: arguments.hugepages,
        vsock: arguments.vsock.clone(),
        echo: frontend::process::firmware_dir().join("echo.elf"),
    };
    let plan = if arguments.quick {
        rounds::Plan {
            samples: 5,
            limit: Duration::from_secs(75),
            time: Duration::from_millis(60),
        }
    } else {
        rounds::Plan {
            samples: 9,
            limit: Duration::from_secs(400),
            time: Duration::from_millis(150),
        }
    };
    let wanted = |cell: &rounds::Cell| {
        (arguments.depth.is_empty() || arguments.depth.contains(&cell.depth))
            && (arguments.size.is_empty() || arguments.size.contains(&cell.size))
            && (arguments.wait.is_empty() || arguments.wait.iter().any(|it| it == cell.wait.word()))
    };
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let mut results = rounds::run(&kinds, &programs, plan, wanted, folder.path())?;
    results["hugepages"] = arguments.hugepages.into();
    let all = arguments.only.is_empty()
        && arguments.wait.is_empty()
        && arguments.depth.is_empty()
        && arguments.size.is_empty();
    if all {
        results["scaling"] = scaling::run(folder.path(), arguments.quick)?;
    }
    if let Some(path) = &arguments.json {
        let text = serde_json::to_vec_pretty(&results).map_err(|error| error.to_string())?;
        std::fs::write(path, text)
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(())
}
