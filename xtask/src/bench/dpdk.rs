//! DPDK's test program, from Debian's packages.
//!
//! What belongs here: getting the program, and hugepages for it. What does
//! not: driving it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};

use crate::kit::{Cache, command, unpacked};
use crate::tools;

const PROGRAM: &str = "dpdk-testpmd";
/// It is with the tools for developers. The drivers' names end in the version of their interface.
const PACKAGES: [&str; 3] = [
    "dpdk-dev",
    "^librte-net-vhost[0-9]+$",
    "^librte-mempool-ring[0-9]+$",
];

/// Runs the tree's program on any machine, with the tree's own loader, libraries and drivers.
const WRAPPER: &str = r#"#!/bin/sh
# Made by `cargo xtask bench`.
tree=$(dirname "$(readlink -f "$0")")/tree
libraries=$tree/usr/lib/x86_64-linux-gnu
for drivers in "$libraries"/dpdk/pmds-*; do
	:
done
exec "$tree/usr/lib64/ld-linux-x86-64.so.2" --library-path "$libraries" \
	"$tree/usr/bin/dpdk-testpmd" -d "$drivers" "$@"
"#;

/// The program, unpacked if that was not done before.
pub fn binary(cache: &Cache) -> Result<PathBuf> {
    if let Some(program) = tools::find(PROGRAM) {
        return Ok(program);
    }
    let folder = unpacked(cache, "dpdk", &PACKAGES, |folder| {
        let wrapper = folder.join(PROGRAM);
        fs::write(&wrapper, WRAPPER)?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
        examine(&wrapper)
    })?;
    Ok(folder.join(PROGRAM))
}

/// Asks it.
fn examine(program: &Path) -> Result<()> {
    let prefix = format!("--file-prefix=examine{}", std::process::id());
    let help = command(program)
        .args(["--no-huge", "--no-pci", "-m", "64", &prefix, "--", "--help"])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    ensure!(
        help.status.success(),
        "{} does not run: {}",
        program.display(),
        String::from_utf8_lossy(&help.stderr).trim()
    );
    Ok(())
}

const HUGEPAGES: &str = "/proc/sys/vm/nr_hugepages";
/// Of 2 MiB: what testpmd asks for, and some for its rings.
const PAGES: u64 = 160;

/// Gives the pages back at the end of its input, which is when we end, in whatever way.
const KEEPER: &str = "trap '' INT TERM HUP; read -r nothing; echo \"$1\" > \"$2\"";

/// Hugepages that were reserved for the program; given back when this is dropped, and also if that
/// does not come about.
pub struct Hugepages {
    before: u64,
    keeper: Child,
}

impl Hugepages {
    /// Reserves them.
    pub fn reserve() -> Result<Self> {
        let before = reserved()?;
        let keeper = command("sh")
            .args(["-c", KEEPER, "keeper", &before.to_string(), HUGEPAGES])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run sh")?;
        let pages = Self { before, keeper };
        fs::write(HUGEPAGES, (before + PAGES).to_string())
            .with_context(|| format!("cannot write {HUGEPAGES}, which takes root"))?;
        let now = reserved()?;
        ensure!(
            now >= before + PAGES,
            "the host gave {} hugepages of {PAGES}",
            now.saturating_sub(before)
        );
        Ok(pages)
    }
}

impl Drop for Hugepages {
    fn drop(&mut self) {
        // Waiting closes its input first.
        let _ = self.keeper.wait();
        if !reserved().is_ok_and(|now| now == self.before) {
            println!("bench: {HUGEPAGES} is not {} as before", self.before);
        }
    }
}

fn reserved() -> Result<u64> {
    let text = fs::read_to_string(HUGEPAGES).with_context(|| format!("cannot read {HUGEPAGES}"))?;
    text.trim()
        .parse()
        .with_context(|| format!("{HUGEPAGES} says {text:?}"))
}
