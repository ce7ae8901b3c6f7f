//! `cargo xtask test`: everything that must hold.
//!
//! What belongs here: the steps, in their order, with what each needs and how long it may take. What
//! does not: how a step does its work, if that is more than a command or two.

use std::fs::OpenOptions;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::kit::{self, INSTALLED_VARIABLE, KIT_VARIABLE, OTHERS_VARIABLE, VARLINKCTL_VARIABLE};
use crate::limit::{self, minutes};
use crate::tools::{Gap, Need, program};
use crate::{cargo, deb, deny, dkms, firmware, fuzz, instructions, suite, tools};

/// All that is built, but for the model, which is a build of its own.
const FEATURES: &str = "rprocd/rprocfs";

/// A project of its own, which the tests copy out and build; here it is read.
const TEMPLATE: &str = "examples/firmware-rust";

/// `cargo xtask test`.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Leave out the tests that boot a guest, and fetch nothing for them
    #[arg(long)]
    no_vm: bool,
    /// Go on after a step that failed
    #[arg(long)]
    keep_going: bool,
    /// Only tests whose names contain this, on the host and in a VM; no lints, no fuzzing
    #[arg(value_name = "NAME")]
    filter: Option<String>,
}

/// One step.
struct Step<'a> {
    name: &'static str,
    /// Without this it cannot run.
    needs: Vec<Need>,
    /// Ten times what it takes on two idle cores that have built nothing yet, or more: it is for
    /// what hangs, and not for what is slow.
    limit: Duration,
    run: Box<dyn Fn() -> Result<()> + 'a>,
}

/// While tests run, one of them must end from time to time.
const SILENCE: Duration = minutes(15);
/// Longer than `tests/vm` gives one of them.
const VM_SILENCE: Duration = minutes(45);

/// Runs the steps, cheapest first, and ends with the time of each.
pub fn run(options: &Options) -> Result<()> {
    let start = Instant::now();
    let mut times = Vec::new();
    let mut failed = Vec::new();
    let mut steps = steps(options);
    let needs = steps.iter_mut();
    let needs: Vec<_> = needs
        .map(|step| (step.name, std::mem::take(&mut step.needs)))
        .collect();
    let first = Step {
        name: "tools",
        needs: Vec::new(),
        limit: minutes(60),
        run: Box::new(move || tools::prepare(&needs)),
    };
    for Step {
        name, limit, run, ..
    } in std::iter::once(first).chain(steps)
    {
        println!("test: {name}");
        let begun = Instant::now();
        let result = limit::within(&format!("the step `{name}`"), limit, run);
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
    let with_vm = !options.no_vm;
    let mut steps: Vec<Step> = Vec::new();
    if filter.is_none() {
        steps.push(Step {
            name: "format",
            needs: vec![Need::Component("fmt", "rustfmt")],
            limit: minutes(10),
            run: Box::new(format),
        });
        steps.push(Step {
            name: "dependencies",
            needs: deny::needs(),
            limit: minutes(30),
            run: Box::new(deny::check),
        });
        steps.push(Step {
            name: "clippy",
            needs: vec![
                Need::Component("clippy", "clippy"),
                Need::Target(firmware::TARGET),
            ],
            limit: minutes(60),
            run: Box::new(clippy),
        });
        steps.push(Step {
            name: "documentation",
            needs: vec![Need::Target(firmware::TARGET)],
            limit: minutes(60),
            run: Box::new(documentation),
        });
    }
    steps.push(Step {
        name: "firmware images",
        needs: vec![Need::Target(firmware::TARGET)],
        limit: minutes(30),
        run: Box::new(|| firmware::build().map(drop)),
    });
    if filter.is_none() && with_vm {
        steps.push(Step {
            name: "firmware of others",
            needs: kit::needs(),
            limit: minutes(30),
            run: Box::new(|| kit::others().map(drop)),
        });
        steps.push(Step {
            name: "varlinkctl",
            needs: kit::needs(),
            limit: minutes(30),
            run: Box::new(|| kit::varlinkctl().map(drop)),
        });
    }
    steps.push(Step {
        name: "tests",
        // The tests of coredumps, of the client in Python and of the unit are skipped without.
        needs: vec![
            program("gdb-multiarch", "gdb-multiarch"),
            program("python3", "python3"),
            program("readelf", "binutils"),
            program("systemd-analyze", "systemd"),
        ],
        limit: minutes(90),
        run: Box::new(move || tests(filter, with_vm)),
    });
    steps.push(Step {
        name: "tests of rprocfs",
        needs: Vec::new(),
        limit: minutes(5),
        run: Box::new(can_mount),
    });
    if filter.is_none() {
        steps.push(Step {
            name: "model of who drives a core",
            needs: Vec::new(),
            limit: minutes(60),
            run: Box::new(|| {
                let words = ["test", "--features", "loom", "--lib", "drive::model"];
                suite::show(cargo::cargo().args(words), minutes(45))
            }),
        });
        steps.push(Step {
            name: "instructions a message",
            needs: instructions::needs(),
            limit: minutes(60),
            run: Box::new(instructions::test),
        });
        steps.push(Step {
            name: "fuzz targets, shortly",
            needs: fuzz::needs(),
            limit: minutes(60),
            run: Box::new(|| fuzz::run(&fuzz::SHORTLY)),
        });
    }
    // Its library is for both machines, and tested on this one.
    steps.push(Step {
        name: "tests, guest-fw",
        needs: Vec::new(),
        limit: minutes(30),
        run: Box::new(move || {
            let mut command = in_firmware(&["test", "--lib"], &tools::host_target()?)?;
            suite::show(command.args(filter), SILENCE)
        }),
    });
    if filter.is_none() && with_vm {
        steps.push(Step {
            name: "the guest's package",
            needs: kit::debian_needs(),
            limit: minutes(60),
            run: Box::new(module_package),
        });
    }
    if with_vm {
        steps.push(Step {
            name: "tests in a VM",
            // With a name there may be none to run, and then nothing is needed.
            needs: filter.map_or_else(vm_needs, |_| Vec::new()),
            limit: minutes(180),
            run: Box::new(move || vm_tests(filter)),
        });
    }
    steps
}

/// The tests on the host. Firmware of others is used where there is some.
fn tests(filter: Option<&str>, fetches: bool) -> Result<()> {
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
    suite::show(&mut command, SILENCE)
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

/// The guest's kernel module, as a package that DKMS builds.
fn module_package() -> Result<()> {
    let folder = cargo::target_directory()?.join("debian");
    kit::module_package(&dkms::build(&folder)?)
}

fn vm_needs() -> Vec<Need> {
    let mut needs = kit::debian_needs();
    needs.extend(deb::needs());
    needs
}

/// Whether a test in a VM has `filter` in its name. That is asked of a quick build.
fn has_vm_tests(filter: &str) -> Result<bool> {
    let mut command = cargo::cargo();
    command
        .args(["test", "--package", "rprocd", "--features", "rprocfs"])
        .args(["--test", "vm", "--", "--list", filter])
        // Without it those in the guest with systemd are not listed.
        .env(INSTALLED_VARIABLE, "none")
        .stderr(Stdio::inherit());
    let output = command.output().context("cannot run cargo")?;
    ensure!(
        output.status.success(),
        "`{}` failed",
        cargo::words(&command)
    );
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().any(|line| line.ends_with(": test")))
}

/// The tests in `tests/vm`, with a kit, a daemon as it is released, and the package.
fn vm_tests(filter: Option<&str>) -> Result<()> {
    if let Some(filter) = filter
        && !has_vm_tests(filter)?
    {
        println!("test: no test in a VM has `{filter}` in its name");
        return Ok(());
    }
    tools::prepare(&[("tests in a VM", vm_needs())])?;
    let (kit, description) = kit::prepare(&kit::Options::default())?;
    let firmware = firmware::build()?;
    let packages = deb::build()?;
    let mut command: Command = cargo::cargo();
    command.args(["test", "--release", "--package", "rprocd", "--test", "vm"]);
    // As in the package, so that it is built once.
    command.args(["--features", "rprocfs"]);
    command.args(filter).env(KIT_VARIABLE, description);
    let gap = match kit::installed(&kit, &[packages.rprocd]) {
        Ok(description) => {
            command.env(INSTALLED_VARIABLE, description);
            None
        }
        Err(error) if error.is::<Gap>() => Some(error),
        Err(error) => return Err(error),
    };
    command.env("RPROCD_VM_FIRMWARE", firmware);
    suite::show(&mut command, VM_SILENCE)?;
    gap.map_or(Ok(()), Err)
}
