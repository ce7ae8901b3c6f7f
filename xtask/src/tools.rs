//! The tools of other people: found, installed, or named.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cargo;

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
    println!("kit: installing {}", packages.join(", "));
    for words in [
        &["update"][..],
        &["install", "--yes", "--no-install-recommends"],
    ] {
        let mut command = Command::new(apt[0]);
        command.args(&apt[1..]).args(words).stdin(Stdio::null());
        // Packages must not ask: nobody may be there.
        command.env("DEBIAN_FRONTEND", "noninteractive");
        if words[0] == "install" {
            command.args(&packages);
        }
        let output = command.output().context("cannot run apt-get")?;
        if !output.status.success() {
            bail!(
                "`{}` failed:\n{}\nRun `{by_hand}` as root and try again",
                cargo::words(&command),
                String::from_utf8_lossy(&output.stderr).trim()
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
    println!("fw: adding the Rust target {target}");
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
