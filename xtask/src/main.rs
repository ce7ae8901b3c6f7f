//! `cargo xtask`: what CI runs is what a person runs.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    bin_name = "cargo xtask",
    about = "What CI runs is what a person runs",
    max_term_width = 80
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the main job: a Linux guest exchanges messages with firmware that rprocd runs
    Demo(xtask::demo::Options),
    /// Boot a Linux guest against firmware of yours, run a script in it, and end with its status
    Guest(xtask::guest::Options),
    /// Everything that must hold: format, dependencies, lints, documentation and every test, those
    /// in a VM included
    Test(xtask::test::Options),
    /// What CI runs: README's two commands on a fresh machine, a bare Debian tree with a clone of
    /// HEAD
    Fresh(xtask::fresh::Options),
    /// Measure rprocd beside its peers, in one run
    Bench(xtask::bench::Options),
    /// Run the fuzz targets
    Fuzz(xtask::fuzz::Options),
    /// Say what a loader would do with firmware images; status 1 if one is refused
    CheckFirmware(xtask::check::Options),
    /// Build the firmware images into target/firmware
    Fw,
    /// Make manual pages and completions for shells in target/pages
    Pages,
    /// Build the Debian packages: rprocd, its debug information, the guest's kernel module
    Deb,
    /// Fetch and build what a guest VM needs, and print where it is
    Kit(xtask::kit::Options),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Demo(options) => xtask::demo::run(&options),
        // It ends with the script's own status.
        Command::Guest(options) => return xtask::guest::run(&options),
        Command::Test(options) => xtask::test::run(&options),
        Command::Fresh(options) => xtask::fresh::run(&options),
        Command::Bench(options) => xtask::bench::run(&options),
        Command::Fuzz(options) => xtask::fuzz::run(&options),
        Command::CheckFirmware(options) => xtask::check::run(&options),
        Command::Fw => xtask::firmware::run(),
        Command::Pages => xtask::pages::run(),
        Command::Deb => xtask::deb::run(),
        Command::Kit(options) => xtask::kit::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            match error.downcast_ref::<xtask::fresh::Failed>() {
                Some(failed) => ExitCode::from(failed.code),
                None => ExitCode::FAILURE,
            }
        }
    }
}
