//! A Debian in which packages are installed, and not only unpacked: mmdebstrap makes it.
//!
//! What belongs here: how it is called. What does not: what is in such a Debian, and what for.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::apt::{Apt, Choice};
use super::cache::{Cache, command};
use crate::tools::{self, Gap};

/// Makes one of the chosen suites with `packages`, of a format of mmdebstrap, at `target`. `hooks`
/// are carried out when the packages are installed, as mmdebstrap's `--customize-hook` says it.
///
/// # Errors
/// A [`Gap`] if this user can make none.
pub fn make(
    cache: &Cache,
    apt: &Apt,
    choice: &Choice,
    packages: &str,
    hooks: &[String],
    (format, target): (&str, &Path),
) -> Result<()> {
    if let Some(gap) = gap() {
        return Err(Gap(gap).into());
    }
    let mut make = command("mmdebstrap");
    make.arg("--variant=apt")
        .arg(format!("--format={format}"))
        .arg(format!("--include={packages}"))
        .arg(format!(
            "--aptopt=APT::Default-Release \"{}\"",
            choice.addition.as_ref().unwrap_or(&choice.suite)
        ))
        .arg("--aptopt=Acquire::Languages \"none\"")
        // Nothing of it is to survive a power cut.
        .arg("--dpkgopt=force-unsafe-io");
    for folder in ["doc", "info", "locale", "man"] {
        make.arg(format!("--dpkgopt=path-exclude=/usr/share/{folder}/*"));
    }
    for hook in hooks {
        make.arg(format!("--customize-hook={hook}"));
    }
    make.arg(&choice.suite)
        .arg(target)
        .args(apt.sources(choice)?);
    cache.run("debian", &mut make)
}

/// Why this user can install packages nowhere: their files belong to several users.
fn gap() -> Option<String> {
    if rustix::process::geteuid().is_root() {
        return None;
    }
    let user = std::env::var("USER").unwrap_or_default();
    let is_ours = |line: &str| line.split(':').next() == Some(&user);
    let has_range = |file| fs::read_to_string(file).is_ok_and(|text| text.lines().any(is_ours));
    if tools::find("newuidmap").is_some() && has_range("/etc/subuid") && has_range("/etc/subgid") {
        return None;
    }
    Some(
        "to install packages in a folder takes root, or the package uidmap and ranges of ids for \
         this user in /etc/subuid and /etc/subgid; run this as root"
            .to_owned(),
    )
}
