//! A guest that is a Debian with systemd as its PID 1, an operator's account and a QEMU: where the
//! packages are installed and used as a user's host would.
//!
//! What belongs here: what such a guest consists of. What does not: what must hold in it
//! (`tests/vm/installed.rs`).
//!
//! mmdebstrap makes the disk, so that the system is one that apt and dpkg know: all packages are
//! installed, none is only unpacked. What changes with each build comes in the initramfs, which
//! copies it onto the disk. The disk itself is never written to: QEMU keeps changes in a file that
//! goes with it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::apt::{Apt, Choice};
use super::cache::{Cache, command};
use super::initramfs::{self, Archive, read};
use super::ready_made::HYPERVISOR;
use super::{INSTALLED_VARIABLE, Kit, debian, write_atomically};
use crate::tools::Gap;

/// Changes with what is made of the packages.
const RECIPE: u32 = 3;

/// systemd and what a host has, what the operators' page says that it needs, and what the checks
/// call.
const PACKAGES: &str = "adduser,bsdutils,dbus,fuse3,gdb-multiarch,jq,libpam-systemd,\
    qemu-system-x86,socat,sudo,systemd,systemd-sysv,udev";

/// What is done once the packages are installed. mmdebstrap's settings name a suite whose package
/// lists are gone, and apt would install nothing with them. Nobody logs in on the console, which is for the
/// kernel. The operator, alice, is an ordinary user who may use sudo and KVM.
const FINISH: &str = "\
set -eu
rm /etc/apt/apt.conf.d/99mmdebstrap
echo rprocd-host > /etc/hostname
echo 127.0.1.1 rprocd-host >> /etc/hosts
useradd --create-home --shell /bin/bash --groups sudo,kvm alice
echo 'alice ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/alice
chmod 440 /etc/sudoers.d/alice
systemctl set-default multi-user.target
systemctl mask serial-getty@ttyS0.service getty.target systemd-modules-load.service
systemctl enable rprocd-agent.service
";

/// Carries out the host's commands, as in the other guest.
const AGENT_UNIT: &str = "\
[Unit]
Description=The host's commands

[Service]
ExecStart=/usr/local/bin/rprocd-guest-check agent /dev/ttyS1
Restart=always

[Install]
WantedBy=multi-user.target
";

/// PID 1 of the initramfs: loads what it takes to mount the disk, and to run guests; copies what
/// came with it onto the disk, and goes on there.
const INIT: &str = "\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in @MODULES@; do
	insmod /modules/$module.ko || echo \"$module: not for this processor\"
done
mount -t ext4 /dev/vda /disk
cp -r /more/* /disk
chown -R 1000:1000 /disk/home/alice
umount /proc /sys
exec switch_root /disk /sbin/init
";

const MACHINE_ID: &[u8] = b"5f2c0e7a9d1b4c68835e7f6a0b1d2c3e\n";

/// Free space on the disk.
const FREE_MIB: u64 = 512;

/// What such a guest is started with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Installed {
    /// Mounts the disk. It has the packages, which it puts into the operator's home.
    pub initramfs: PathBuf,
    /// An image of the disk, which is not to be written to.
    pub disk: PathBuf,
}

impl Installed {
    /// Reads the description that [`INSTALLED_VARIABLE`] names; nothing if it names none.
    pub fn from_environment() -> Result<Option<Self>> {
        let Some(path) = std::env::var_os(INSTALLED_VARIABLE) else {
            return Ok(None);
        };
        let path = PathBuf::from(path);
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text)
            .with_context(|| format!("{} is no description of a guest", path.display()))
    }
}

/// Makes what is missing; returns the file that describes it. The guest's own guest is that of
/// `kit`.
pub fn get(cache: &Cache, kit: &Kit, packages: &[PathBuf]) -> Result<PathBuf> {
    let mut apt = Apt::new(cache);
    let choice = match Choice::load(cache) {
        Some(choice) => choice,
        None => apt.choose()?,
    };
    let disk = disk(cache, &mut apt, &choice)?;
    for package in packages {
        fits(package, &read(&disk.with_file_name(LIBC_VERSION))?)?;
    }
    let mut archive = Archive::new();
    archive.folder("disk");
    let names: Vec<&str> = HYPERVISOR.names().collect();
    archive.file(
        "init",
        INIT.replace("@MODULES@", &names.join(" ")).as_bytes(),
    );
    archive.modules(&HYPERVISOR.get(cache, &mut apt, &choice)?)?;
    for folder in [
        "",
        "/etc",
        "/home",
        "/home/alice",
        "/srv",
        "/usr",
        "/usr/local",
        "/usr/local/bin",
    ] {
        archive.folder(&format!("more{folder}"));
    }
    // Without one systemd takes this for a first boot, and asks on the console.
    archive.file("more/etc/machine-id", MACHINE_ID);
    for package in packages {
        let name = package.file_name().unwrap_or_default().to_string_lossy();
        archive.file(&format!("more/home/alice/{name}"), &read(package)?);
    }
    let check = read(&initramfs::check_program()?)?;
    archive.file("more/usr/local/bin/rprocd-guest-check", &check);
    archive.file("more/srv/vmlinuz", &read(&kit.kernel)?);
    archive.file("more/srv/initramfs.cpio", &read(&kit.initramfs)?);
    let installed = Installed {
        initramfs: initramfs::joined(cache, "debian-initramfs-", &kit.initramfs, archive)?,
        disk,
    };
    let description = cache.root().join("installed.json");
    write_atomically(&description, &serde_json::to_vec_pretty(&installed)?)?;
    Ok(description)
}

const DISK: &str = "disk.ext2";
const LIBC_VERSION: &str = "libc-version";

/// The disk, made once for each suite.
fn disk(cache: &Cache, apt: &mut Apt, choice: &Choice) -> Result<PathBuf> {
    let prefix = "debian-disk-";
    let name = format!("{prefix}{RECIPE}-{}", choice.suite);
    let folder = cache.piece(&name, |folder| {
        fs::write(folder.join(LIBC_VERSION), apt.version(choice, "libc6")?)?;
        let unit = folder.join("rprocd-agent.service");
        fs::write(&unit, AGENT_UNIT)?;
        let finish = folder.join("finish");
        fs::write(&finish, FINISH)?;
        let disk = folder.join(DISK);
        println!("kit: installing a Debian with QEMU on a disk for a guest (takes minutes, once)");
        let hooks = [
            format!(
                "upload {} /etc/systemd/system/rprocd-agent.service",
                unit.display()
            ),
            format!("upload {} /finish", finish.display()),
            "chroot \"$1\" sh /finish && rm \"$1/finish\"".to_owned(),
        ];
        debian::make(cache, apt, choice, PACKAGES, &hooks, ("ext2", &disk))?;
        let size = fs::metadata(&disk)?.len() + (FREE_MIB << 20);
        fs::OpenOptions::new()
            .write(true)
            .open(&disk)?
            .set_len(size)?;
        cache.run("debian-disk", command("resize2fs").arg(&disk))
    })?;
    cache.remove_others(prefix, &name)?;
    Ok(folder.join(DISK))
}

/// A program that was built against a newer C library than the guest's does not run there, and
/// its package cannot be installed there.
fn fits(package: &Path, libc: &[u8]) -> Result<()> {
    let output = command("dpkg-deb")
        .arg("--field")
        .arg(package)
        .arg("Depends")
        .output()
        .context("cannot run dpkg-deb")?;
    ensure!(
        output.status.success(),
        "{} is no Debian package: {}",
        package.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let depends = String::from_utf8_lossy(&output.stdout);
    let Some(wanted) = libc_of(&depends) else {
        return Ok(());
    };
    let libc = String::from_utf8_lossy(libc);
    let compare = command("dpkg")
        .args(["--compare-versions", libc.trim(), "ge", wanted])
        .status()
        .context("cannot run dpkg")?;
    if !compare.success() {
        let gap = format!(
            "this machine's C library is newer than that of the guest in which the package would \
             be installed: the package needs {wanted}, and the guest has {libc}"
        );
        return Err(Gap(gap).into());
    }
    Ok(())
}

/// The version in `libc6 (>= VERSION)`.
fn libc_of(depends: &str) -> Option<&str> {
    depends
        .split(',')
        .find_map(|package| package.trim().strip_prefix("libc6 (>= ")?.strip_suffix(')'))
}

#[cfg(test)]
mod tests {
    use super::libc_of;

    #[test]
    fn the_wanted_c_library_is_read_from_the_dependencies() {
        assert_eq!(
            libc_of("libgcc-s1 (>= 4.2), libc6 (>= 2.34)\n"),
            Some("2.34")
        );
        assert_eq!(libc_of("dkms, libc6-dev\n"), None);
    }
}
