//! A guest that is a small Debian with systemd as its PID 1: where the package is installed, and its
//! units run as they will on a user's machine.
//!
//! What belongs here: what such a guest consists of. What does not: what must hold in it
//! (`tests/vm/installed.rs`).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::cache::{Cache, command};
use super::initramfs::{self, Archive, read};
use super::tree;
use crate::tools::Gap;

/// Changes with what is made of the packages.
const RECIPE: u32 = 2;

/// systemd, what dpkg needs to install a package, and what the checks call.
const PACKAGES: [&str; 12] = [
    "systemd",
    "base-passwd",
    "coreutils",
    "dash",
    "diffutils",
    "dpkg",
    "findutils",
    "grep",
    "libc-bin",
    "sed",
    "tar",
    "util-linux",
];

/// What the packages' installation scripts would have done, as far as it is needed. Nobody logs in
/// on the console, which is for the kernel.
const FINISH: &str = "
    ldconfig
    cp /usr/share/base-passwd/passwd.master /etc/passwd
    cp /usr/share/base-passwd/group.master /etc/group
    systemd-sysusers
    mkdir -p /var/lib/dpkg/info /var/lib/dpkg/updates /var/lib/dpkg/triggers
    touch /var/lib/dpkg/status /etc/machine-id
    echo rprocd-guest > /etc/hostname
    systemctl set-default multi-user.target
    systemctl mask serial-getty@ttyS0.service getty.target systemd-modules-load.service
    systemctl enable rprocd-agent.service
";

/// Carries out the host's commands, as in the other guest.
const AGENT_UNIT: &str = "\
[Unit]
Description=The host's commands

[Service]
ExecStart=/usr/bin/rprocd-guest-check agent /dev/ttyS1
Restart=always

[Install]
WantedBy=multi-user.target
";

/// An initramfs with Debian, the package and images for its cores, neither of them installed yet.
pub fn get(cache: &Cache, package: &Path, rprocd: &Path, firmware: &Path) -> Result<PathBuf> {
    let folder = super::unpacked(
        cache,
        &format!("debian-guest-{RECIPE}"),
        &PACKAGES,
        |folder| finish(cache, folder),
    )?;
    runs_there(rprocd, &folder.join("tree"))?;
    let mut archive = Archive::new();
    archive.file("root/rprocd.deb", &read(package)?);
    archive.file(
        "usr/bin/rprocd-guest-check",
        &read(&initramfs::check_program()?)?,
    );
    for image in ["echo", "chaos"] {
        let name = format!("{image}.elf");
        archive.file(&format!("root/{name}"), &read(&firmware.join(&name))?);
    }
    let base = folder.join("initramfs.cpio");
    initramfs::joined(cache, "debian-initramfs-", &base, archive)
}

fn finish(cache: &Cache, folder: &Path) -> Result<()> {
    println!("kit: making a Debian guest of the packages");
    let tree = folder.join("tree");
    tree::link("dash", &tree.join("usr/bin/sh"))?;
    // The kernel starts it.
    tree::link("usr/lib/systemd/systemd", &tree.join("init"))?;
    let units = tree.join("etc/systemd/system");
    fs::create_dir_all(&units)?;
    fs::write(units.join("rprocd-agent.service"), AGENT_UNIT)?;
    for name in ["sys", "run", "root"] {
        fs::create_dir_all(tree.join(name))?;
    }
    let work = tree.join("work");
    tree::run_inside(cache, "debian-guest", &tree, &work, FINISH)?;
    let mut archive = Archive::new();
    archive.tree(&tree)?;
    // For what is said before devtmpfs is mounted.
    archive.character_device("dev/console", 5, 1);
    fs::write(folder.join("initramfs.cpio"), archive.finish())?;
    Ok(())
}

/// A program that was built against a newer C library than the guest's does not run there.
fn runs_there(program: &Path, tree: &Path) -> Result<()> {
    let libraries = tree.join("usr/lib/x86_64-linux-gnu");
    let output = command(tree.join("usr/lib64/ld-linux-x86-64.so.2"))
        .arg("--library-path")
        .arg(libraries)
        .arg(program)
        .arg("--version")
        .output()
        .context("cannot run the guest's loader")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if errors.contains("GLIBC_") {
        let gap = format!(
            "this machine's C library is newer than that of the guest in which the package would \
             be installed: {}",
            errors.trim()
        );
        return Err(Gap(gap).into());
    }
    ensure!(
        output.status.success(),
        "{} does not run with the guest's libraries: {}",
        program.display(),
        errors.trim()
    );
    Ok(())
}
