//! The package of the guest's kernel module, installed as a guest would: DKMS builds the module.
//!
//! What belongs here: that it does so with the headers of the kit's kernel, and is gone when the
//! package is removed. What does not: what is in the package (`crate::dkms`), and what the module
//! does (`tests/vm`).

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::apt::{Apt, Choice};
use super::cache::Cache;
use super::debian;
use super::hash::Hash;
use super::initramfs::read;

/// Installs the package, looks for the module and for what has modprobe load it first, and removes
/// the package. `-x`, so that the log says how far it came; no terminal, since one that is still
/// open keeps mmdebstrap from removing the Debian.
const CHECK: &str = "\
set -eux
cd /root
apt-get -o Dpkg::Use-Pty=false install --yes ./virtio-rpmsg-defer-dkms_*.deb
dkms status -m virtio-rpmsg-defer | grep installed
modinfo --field vermagic $(find /usr/lib/modules/@KERNEL@ -name 'virtio_rpmsg_defer.ko*') | grep @KERNEL@
modprobe --showconfig | grep 'softdep virtio_rpmsg_bus pre: virtio_rpmsg_defer'
apt-get -o Dpkg::Use-Pty=false remove --yes virtio-rpmsg-defer-dkms
test -z \"$(dkms status -m virtio-rpmsg-defer)\"
test -z \"$(find /usr/lib/modules -name 'virtio_rpmsg_defer*')\"
";

/// Does all that, unless it was done for the same package and kernel before.
pub fn check(cache: &Cache, package: &Path) -> Result<()> {
    let mut apt = Apt::new(cache);
    let choice = match Choice::load(cache) {
        Some(choice) => choice,
        None => apt.choose()?,
    };
    let script = CHECK.replace("@KERNEL@", &choice.kernel);
    let mut hash = Hash::new();
    hash.add(&read(package)?)
        .add(script.as_bytes())
        .add(choice.kernel_package.as_bytes());
    let prefix = "module-package-";
    let name = format!("{prefix}{}", hash.name());
    cache.piece(&name, |folder| {
        println!("kit: installing the guest's package on a Debian with DKMS (takes minutes, once)");
        let file = folder.join("check");
        fs::write(&file, &script)?;
        let package_name = package.file_name().unwrap_or_default().to_string_lossy();
        let hooks = [
            format!("upload {} /root/{package_name}", package.display()),
            format!("upload {} /root/check", file.display()),
            "chroot \"$1\" sh /root/check".to_owned(),
        ];
        let packages = format!("dkms,linux-headers-{}", choice.kernel);
        let target = ("null", Path::new("-"));
        debian::make(cache, &apt, &choice, &packages, &hooks, target)
    })?;
    cache.remove_others(prefix, &name)
}
