//! `cargo xtask test`: everything that must hold.

use std::fs::OpenOptions;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::kit::{self, INSTALLED_VARIABLE, KIT_VARIABLE, OTHERS_VARIABLE, VARLINKCTL_VARIABLE};
use crate::tools::{Gap, tool};
use crate::{cargo, deb, firmware, fuzz, instructions, tools};

/// All that is built, but for the model, which is a build of its own.
const FEATURES: &str = "rprocd/rprocfs";

/// A project of its own, which the tests copy out and build; here it is read.
const TEMPLATE: &str = "examples/firmware-rust";

/// `cargo xtask test`.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Leave out the tests that boot a guest, and fetch nothing
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
        let gap = |error: &anyhow::Error| error.downcast_ref::<Gap>().map(Gap::to_string);
        let (word, note) = match &result {
            Ok(()) => ("ok", None),
            Err(error) => gap(error).map_or(("FAILED", None), |gap| ("GAP", Some(gap))),
        };
        times.push((name, begun.elapsed(), word, note));
        if let Err(error) = result {
            eprintln!("test: {name}: {error:#}");
            if word == "FAILED" {
                failed.push(name);
                if !options.keep_going {
                    break;
                }
            }
        }
    }
    println!("test: summary");
    for (name, time, word, note) in times {
        let note = note.map(|note| format!(": {note}")).unwrap_or_default();
        println!(
            "test: {:>7.1} s  {word:6}  {name}{note}",
            time.as_secs_f64()
        );
    }
    println!("test: {:>7.1} s  in all", start.elapsed().as_secs_f64());
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn steps(options: &Options) -> Vec<Step<'_>> {
    let filter = options.filter.as_deref();
    let mut steps: Vec<Step> = Vec::new();
    if filter.is_none() {
        steps.push(("format", Box::new(format)));
        steps.push(("clippy", Box::new(clippy)));
        steps.push(("documentation", Box::new(documentation)));
    }
    steps.push(("firmware images", Box::new(|| firmware::build().map(drop))));
    if filter.is_none() && !options.no_vm {
        steps.push(("firmware of others", Box::new(|| kit::others().map(drop))));
        steps.push(("varlinkctl", Box::new(|| kit::varlinkctl().map(drop))));
    }
    let fetches = !options.no_vm;
    steps.push(("tests", Box::new(move || tests(filter, fetches))));
    steps.push(("tests of rprocfs", Box::new(can_mount)));
    if filter.is_none() {
        let words = ["test", "--features", "loom", "--lib", "drive::model"];
        steps.push((
            "model of who drives a core",
            Box::new(move || cargo::show(cargo::cargo().args(words))),
        ));
    }
    if filter.is_none() {
        steps.push(("instructions a message", Box::new(instructions::test)));
        steps.push((
            "fuzz targets, shortly",
            Box::new(|| fuzz::run(&fuzz::SHORTLY)),
        ));
    }
    // Its library is for both machines, and tested on this one.
    steps.push((
        "tests, guest-fw",
        Box::new(move || {
            cargo::show(in_firmware(&["test", "--lib"], &tools::host_target()?)?.args(filter))
        }),
    ));
    if !options.no_vm {
        steps.push(("tests in a VM", Box::new(move || vm_tests(filter))));
    }
    steps
}

/// The tests on the host. Firmware of others is used where there is some.
fn tests(filter: Option<&str>, fetches: bool) -> Result<()> {
    // The tests of coredumps, of the client in Python and of the unit are skipped without.
    tools::need(&[
        tool("gdb-multiarch", "gdb-multiarch"),
        tool("python3", "python3"),
        tool("readelf", "binutils"),
        tool("systemd-analyze", "systemd"),
    ])?;
    let mut command = cargo::cargo();
    command.args(["test", "--workspace", "--features", FEATURES]);
    command.args(filter);
    if std::env::var_os(OTHERS_VARIABLE).is_none()
        && let Some(folder) = kit::others_if_there()
    {
        command.env(OTHERS_VARIABLE, folder);
    }
    if std::env::var_os(VARLINKCTL_VARIABLE).is_none() && fetches {
        command.env(VARLINKCTL_VARIABLE, kit::varlinkctl()?);
    }
    cargo::show(&mut command)
}

/// Whether those of the tests ran that mount. They skip themselves, and a run that passed must not
/// hide that.
fn can_mount() -> Result<()> {
    let fuse = "/dev/fuse";
    if let Err(cause) = OpenOptions::new().read(true).write(true).open(fuse) {
        let gap = format!("{fuse} cannot be opened ({cause}), so nothing of rprocfs was mounted");
        return Err(Gap(gap).into());
    }
    if !rustix::process::geteuid().is_root() {
        let gap = "only root can mount, so nothing of rprocfs was mounted; run this as root";
        return Err(Gap(gap.to_owned()).into());
    }
    Ok(())
}

fn format() -> Result<()> {
    for workspace in [".", "guest-fw", "fuzz", TEMPLATE] {
        let folder = cargo::root().join(workspace);
        if folder.exists() {
            cargo::show(
                cargo::cargo()
                    .current_dir(folder)
                    .args(["fmt", "--all", "--check"]),
            )?;
        }
    }
    Ok(())
}

fn clippy() -> Result<()> {
    let lints = ["--", "-D", "warnings"];
    cargo::show(
        cargo::cargo()
            .args(["clippy", "--workspace", "--all-targets"])
            .args(["--features", FEATURES])
            .args(lints),
    )?;
    tools::need_target(firmware::TARGET)?;
    cargo::show(in_firmware(&["clippy", "--lib", "--bins"], firmware::TARGET)?.args(lints))?;
    let mut template = in_firmware(&["clippy"], firmware::TARGET)?;
    cargo::show(
        template
            .current_dir(cargo::root().join(TEMPLATE))
            .args(lints),
    )?;
    cargo::show(in_firmware(&["clippy", "--lib", "--tests"], &tools::host_target()?)?.args(lints))
}

fn documentation() -> Result<()> {
    let strict = ("RUSTDOCFLAGS", "-D warnings");
    let words = ["doc", "--no-deps", "--document-private-items"];
    cargo::show(
        cargo::cargo()
            .args(words)
            .args(["--workspace", "--features", FEATURES])
            .envs([strict]),
    )?;
    // The images are programs of a few lines on this library.
    cargo::show(
        in_firmware(&words, firmware::TARGET)?
            .arg("--lib")
            .envs([strict]),
    )
}

/// Cargo in guest-fw, which is a workspace of its own, for `target`.
fn in_firmware(words: &[&str], target: &str) -> Result<Command> {
    let mut command = cargo::cargo();
    command
        .current_dir(cargo::root().join("guest-fw"))
        .args(words)
        .args(["--target", target, "--target-dir"])
        .arg(cargo::target_directory()?.join("guest-fw"));
    Ok(command)
}

/// The tests in `tests/vm`, with a kit, a daemon as it is released, and the package.
fn vm_tests(filter: Option<&str>) -> Result<()> {
    let (_, description) = kit::prepare(&kit::Options::default())?;
    let firmware = firmware::build()?;
    let package = deb::build()?;
    let rprocd = cargo::target_directory()?.join("release/rprocd");
    let mut command: Command = cargo::cargo();
    command.args(["test", "--release", "--package", "rprocd", "--test", "vm"]);
    // As in the package, so that it is built once.
    command.args(["--features", "rprocfs"]);
    command.args(filter).env(KIT_VARIABLE, description);
    let gap = match kit::installed(&package, &rprocd, &firmware) {
        Ok(initramfs) => {
            command.env(INSTALLED_VARIABLE, initramfs);
            None
        }
        Err(error) if error.is::<Gap>() => Some(error),
        Err(error) => return Err(error),
    };
    command.env("RPROCD_VM_FIRMWARE", firmware);
    cargo::show(&mut command)?;
    gap.map_or(Ok(()), Err)
}
