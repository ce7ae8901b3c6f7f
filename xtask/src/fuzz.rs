//! `cargo xtask fuzz`: the fuzz targets, for as long as one likes.
//!
//! They are built with the compiler that builds everything else: the flags are those that cargo-fuzz
//! uses where there is no sanitizer. (With a nightly compiler and cargo-fuzz, `cargo +nightly fuzz
//! run TARGET` has address sanitizing as well.)

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::limit::{self, minutes};
use crate::tools::{Need, program};
use crate::{cargo, tools};

/// `cargo xtask fuzz`.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// How long each target runs
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u32,
    /// Only this target
    target: Option<String>,
}

/// How long each target runs among the tests.
pub const SHORTLY: Options = Options {
    seconds: 5,
    target: None,
};

/// libFuzzer's instrumentation, and the checks of a debug build.
const FLAGS: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks --cfg fuzzing";

/// What building them needs: libFuzzer itself is C++.
pub fn needs() -> Vec<Need> {
    vec![program("c++", "g++")]
}

/// Builds and runs the targets, one after the other. What they find that is new is kept in
/// `target/fuzz/corpus`; what breaks something is named by libFuzzer.
pub fn run(options: &Options) -> Result<()> {
    let workspace = cargo::root().join("fuzz");
    let mut targets = cargo::programs(&workspace)?;
    if let Some(wanted) = &options.target {
        ensure!(
            targets.contains(wanted),
            "there is no fuzz target {wanted:?}; there are {}",
            targets.join(", ")
        );
        targets.retain(|target| target == wanted);
    }
    tools::prepare(&[("the fuzz targets", needs())])?;
    let host = tools::host_target()?;
    let folder = cargo::target_directory()?.join("fuzz");
    limit::within("building the fuzz targets", minutes(60), || {
        cargo::show(
            cargo::cargo()
                .current_dir(&workspace)
                // With a target named, build scripts and macros are not instrumented.
                .args(["build", "--release", "--target", &host, "--target-dir"])
                .arg(&folder)
                .env("RUSTFLAGS", FLAGS),
        )
    })?;
    let programs = folder.join(host).join("release");
    for target in targets {
        // libFuzzer ends by itself, if the target does not hang in a way that it does not see.
        let time = Duration::from_secs(options.seconds.into()) + minutes(15);
        limit::within(&format!("fuzz target {target}"), time, || {
            fuzz(&programs.join(&target), &target, &folder, options.seconds)
        })?;
    }
    Ok(())
}

fn fuzz(program: &Path, target: &str, folder: &Path, seconds: u32) -> Result<()> {
    println!("fuzz: {target}, {seconds} s");
    let corpus = folder.join("corpus").join(target);
    let artifacts = folder.join("artifacts");
    for folder in [&corpus, &artifacts] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let log = folder.join(format!("{target}.log"));
    let file = fs::File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
    let seeds = cargo::root().join("fuzz/seeds");
    // The report is about images.
    let seeds = seeds.join(if target == "report" { "image" } else { target });
    let mut command = Command::new(program);
    command
        .arg(&corpus)
        .args(seeds.exists().then_some(&seeds))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!(
            "-artifact_prefix={}/{target}-",
            artifacts.display()
        ))
        .args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"])
        .stderr(file);
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let text = fs::read_to_string(&log).unwrap_or_default();
    if !status.success() {
        let end: Vec<_> = text.lines().rev().take(40).collect();
        let end: Vec<_> = end.into_iter().rev().collect();
        bail!(
            "fuzz target {target} has found something ({status}); the input is in {}:\n{}",
            artifacts.display(),
            end.join("\n")
        );
    }
    let figure = text
        .lines()
        .find(|line| line.contains("number_of_executed_units"))
        .and_then(|line| line.split_whitespace().last())
        .context("libFuzzer gave no figures")?;
    println!("fuzz: {target}: {figure} inputs");
    Ok(())
}
