//! `cargo xtask test`: everything that must hold.

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::cargo;
use crate::firmware;
use crate::kit::{self, KIT_VARIABLE};

/// `cargo xtask test`.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Leave out the tests that boot a guest
    #[arg(long)]
    no_vm: bool,
    /// Go on after a step that failed
    #[arg(long)]
    keep_going: bool,
    /// Only tests whose names contain this, and no lints
    filter: Option<String>,
}

/// One step: its name and what it does.
type Step<'a> = (&'static str, Box<dyn Fn() -> Result<()> + 'a>);

/// Runs the steps, cheapest first, and ends with the time of each.
pub fn run(options: &Options) -> Result<()> {
    let start = Instant::now();
    let mut times = Vec::new();
    let mut failed = Vec::new();
    for (name, step) in steps(options) {
        println!("test: {name}");
        let begun = Instant::now();
        let result = step();
        times.push((name, begun.elapsed(), result.is_ok()));
        if let Err(error) = result {
            eprintln!("test: {name}: {error:#}");
            failed.push(name);
            if !options.keep_going {
                break;
            }
        }
    }
    println!("test: summary");
    for (name, time, passed) in times {
        let word = if passed { "ok" } else { "FAILED" };
        println!("test: {:>7.1} s  {word:6}  {name}", time.as_secs_f64());
    }
    println!("test: {:>7.1} s  in all", start.elapsed().as_secs_f64());
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn steps(options: &Options) -> Vec<Step<'_>> {
    let filter: Vec<&str> = options.filter.iter().map(String::as_str).collect();
    let mut steps: Vec<Step> = Vec::new();
    if options.filter.is_none() {
        steps.push((
            "format",
            Box::new(|| each(&["fmt", "--all", "--check"], &[])),
        ));
        steps.push((
            "format, guest-fw",
            Box::new(|| in_firmware(&["fmt", "--all", "--check"], &[])),
        ));
        steps.push((
            "clippy",
            Box::new(|| {
                each(
                    &[
                        "clippy",
                        "--workspace",
                        "--all-targets",
                        "--",
                        "-D",
                        "warnings",
                    ],
                    &[],
                )
            }),
        ));
        // Its library is for both machines, its images only for the remote one.
        steps.push((
            "clippy, guest-fw",
            Box::new(|| {
                crate::tools::need_target(firmware::TARGET)?;
                let target = ["--target", firmware::TARGET];
                in_firmware(
                    &["clippy", "--lib", "--bins", "--", "-D", "warnings"],
                    &target,
                )
            }),
        ));
        steps.push((
            "documentation",
            Box::new(|| {
                cargo::show(
                    cargo::cargo()
                        .args([
                            "doc",
                            "--workspace",
                            "--no-deps",
                            "--document-private-items",
                        ])
                        .env("RUSTDOCFLAGS", "-D warnings"),
                )
            }),
        ));
    }
    let images = filter.clone();
    steps.push(("firmware images", Box::new(|| firmware::build().map(drop))));
    steps.push((
        "tests",
        Box::new(move || each(&["test", "--workspace"], &filter)),
    ));
    steps.push((
        "tests, guest-fw",
        Box::new(move || {
            let mut words = vec!["test", "--lib"];
            words.extend(&images);
            in_firmware(&words, &[])
        }),
    ));
    if !options.no_vm {
        steps.push((
            "tests in a VM",
            Box::new(|| vm_tests(options.filter.as_deref())),
        ));
    }
    steps
}

/// Cargo in the workspace.
fn each(words: &[&str], more: &[&str]) -> Result<()> {
    cargo::show(cargo::cargo().args(words).args(more))
}

/// Cargo in guest-fw, a workspace of its own; `options` come right after the subcommand.
fn in_firmware(words: &[&str], options: &[&str]) -> Result<()> {
    let mut command = cargo::cargo();
    command.current_dir(cargo::root().join("guest-fw"));
    if words[0] != "fmt" {
        command.env(
            "CARGO_TARGET_DIR",
            cargo::target_directory()?.join("guest-fw"),
        );
    }
    cargo::show(command.arg(words[0]).args(options).args(&words[1..]))
}

/// The tests in `tests/vm`, with a kit and a daemon as it is released.
fn vm_tests(filter: Option<&str>) -> Result<()> {
    let (_, description) = kit::prepare(&kit::Options::default())?;
    let mut command: Command = cargo::cargo();
    command.args(["test", "--release", "--package", "rprocd", "--test", "vm"]);
    command.args(filter).env(KIT_VARIABLE, description);
    command.env("RPROCD_VM_FIRMWARE", firmware::build()?);
    cargo::show(&mut command)
}
