//! A QEMU whose generic vhost-user device can be created: from PATH, or from Debian's packages.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use super::apt::{Apt, Choice};
use super::cache::{Cache, command};
use super::tree;
use crate::tools;

const PROGRAM: &str = "qemu-system-x86_64";
const DEVICE: &str = "vhost-user-test-device-pci";

/// A QEMU that will do.
pub struct Qemu {
    pub program: PathBuf,
    pub version: String,
}

/// Runs the tree's QEMU on any machine: with the tree's own loader, libraries and firmware.
const WRAPPER: &str = r#"#!/bin/sh
# Made by `cargo xtask kit`.
tree=$(dirname "$(readlink -f "$0")")/tree
libraries=$tree/usr/lib/x86_64-linux-gnu
QEMU_MODULE_DIR=$libraries/qemu
export QEMU_MODULE_DIR
exec "$tree/usr/lib64/ld-linux-x86-64.so.2" --library-path "$libraries" \
	"$tree/usr/bin/qemu-system-x86_64" -L "$tree/usr/share/qemu" -L "$tree/usr/share/seabios" "$@"
"#;

/// Finds one, or makes one.
pub fn get(cache: &Cache, apt: &mut Apt, choice: &Choice) -> Result<Qemu> {
    if let Some(program) = tools::find(PROGRAM)
        && let Ok(qemu) = examine(&program)
    {
        return Ok(qemu);
    }
    let name = format!("qemu-{}", choice.qemu.replace(':', "_"));
    let folder = cache.piece(&name, |folder| {
        let tree = folder.join("tree");
        tree::skeleton(&tree)?;
        apt.unpack_closure(choice, "QEMU", &["qemu-system-x86"], &tree)?;
        let wrapper = folder.join(PROGRAM);
        fs::write(&wrapper, WRAPPER)?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
        examine(&wrapper).map(|_| ())
    })?;
    cache.remove_others("qemu-", &name)?;
    examine(&folder.join(PROGRAM))
}

/// Asks it.
fn examine(program: &Path) -> Result<Qemu> {
    let help = command(program)
        .args(["-device", &format!("{DEVICE},help")])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let properties = String::from_utf8_lossy(&help.stdout);
    ensure!(
        help.status.success() && properties.contains("num_vqs="),
        "{} cannot create {DEVICE}: {}",
        program.display(),
        String::from_utf8_lossy(&help.stderr).trim()
    );
    let version = command(program).arg("--version").output()?;
    let version = String::from_utf8_lossy(&version.stdout);
    Ok(Qemu {
        program: program.to_owned(),
        version: version.lines().next().unwrap_or_default().to_owned(),
    })
}
