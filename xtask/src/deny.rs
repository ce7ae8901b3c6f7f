//! What may be among the dependencies: `cargo deny`, with `deny.toml`.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::cargo;
use crate::tools::{self, Gap, Need};

/// What it needs.
pub fn needs() -> Vec<Need> {
    vec![Need::CargoDeny]
}

/// Licences, versions and sources. An exception that is needed no more is to be taken off the list.
///
/// # Errors
/// A [`Gap`] if all that is in order, and known weaknesses cannot be asked for: their list comes
/// from the network.
pub fn check() -> Result<()> {
    let program = tools::cargo_deny()?;
    let deny = |words: &[&str]| {
        let mut command = Command::new(&program);
        command.current_dir(cargo::root()).arg("check").args(words);
        command
    };
    cargo::show(&mut deny(&[
        "--deny",
        "unmatched-skip",
        "licenses",
        "bans",
        "sources",
    ]))?;
    let output = deny(&["advisories"])
        .output()
        .context("cannot run cargo-deny")?;
    let text = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        println!("test: advisories ok");
        return Ok(());
    }
    ensure!(
        text.contains("failed to fetch advisory database"),
        "`cargo deny check advisories` failed:\n{}",
        text.trim()
    );
    bail!(Gap(
        "the list of known weaknesses cannot be fetched; licences, versions and sources are \
         in order"
            .to_owned()
    ))
}
