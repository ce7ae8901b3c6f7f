//! Modules of the kernel that its Debian package has: they are taken as they are.
//!
//! They come from the same package version as the kernel. What is built from source is in
//! `modules`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::apt::{Apt, Choice};
use super::cache::{Cache, command};

/// A set of modules.
pub struct Set {
    /// Names the set in the cache.
    pub name: &'static str,
    /// Each module's file below the kernel's folder of modules, without its extension. In the
    /// order in which a guest loads them: each may need those before it.
    pub files: &'static [&'static str],
}

/// For sockets of the family vsock, which only the comparison inside a guest uses.
pub const VSOCK: Set = Set {
    name: "vsock",
    files: &[
        "net/vmw_vsock/vsock",
        "net/vmw_vsock/vmw_vsock_virtio_transport_common",
        "net/vmw_vsock/vmw_vsock_virtio_transport",
    ],
};

/// For a guest that has a disk and runs guests of its own. Of the last two, one fits the
/// processor.
pub const HYPERVISOR: Set = Set {
    name: "hypervisor",
    files: &[
        "drivers/block/virtio_blk",
        "virt/lib/irqbypass",
        "arch/x86/kvm/kvm",
        "arch/x86/kvm/kvm-amd",
        "arch/x86/kvm/kvm-intel",
    ],
};

impl Set {
    /// The modules' names, in the order in which they are loaded.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.files.iter().map(|file| name_of(file))
    }

    /// The modules, as files.
    pub fn get(&self, cache: &Cache, apt: &mut Apt, choice: &Choice) -> Result<Vec<PathBuf>> {
        let prefix = format!("{}-", self.name);
        let piece = format!("{prefix}{}-{}", choice.kernel, choice.kernel_package);
        let folder = cache.piece(&piece, |folder| self.make(cache, apt, choice, folder))?;
        cache.remove_others(&prefix, &piece)?;
        Ok(self
            .names()
            .map(|name| folder.join(format!("{name}.ko")))
            .collect())
    }

    fn make(&self, cache: &Cache, apt: &mut Apt, choice: &Choice, folder: &Path) -> Result<()> {
        // Newer kernels have their modules in a package of their own.
        let modules = format!("linux-modules-{}", choice.kernel);
        let package = if apt.has(choice, &modules)? {
            modules
        } else {
            format!("linux-image-{}", choice.kernel)
        };
        let version = apt.version(choice, &package)?;
        ensure!(
            version == choice.kernel_package,
            "package {package} is there in version {version}, and the kit's kernel is {}: \
             `cargo xtask kit --update` takes a newer kernel",
            choice.kernel_package
        );
        let unpacked = folder.join("unpacked");
        apt.unpack_one(choice, &package, &unpacked)?;
        let places = ["usr/lib/modules", "lib/modules"]
            .map(|place| unpacked.join(place).join(&choice.kernel).join("kernel"));
        let place = places
            .iter()
            .find(|place| place.is_dir())
            .with_context(|| format!("package {package} has no modules"))?;
        for file in self.files {
            take(cache, &place.join(file), folder)?;
        }
        fs::remove_dir_all(&unpacked)?;
        Ok(())
    }
}

fn name_of(file: &str) -> &str {
    file.rsplit_once('/').map_or(file, |(_, name)| name)
}

/// Moves the module `file` to `folder`, where it is not compressed.
fn take(cache: &Cache, file: &Path, folder: &Path) -> Result<()> {
    let plain = file.with_extension("ko");
    let compressed = file.with_extension("ko.xz");
    if compressed.exists() {
        cache.run("modules", command("xz").arg("-d").arg(&compressed))?;
    }
    let name = plain.file_name().unwrap_or_default();
    fs::rename(&plain, folder.join(name))
        .with_context(|| format!("the kernel's package has no {name:?} that can be taken"))
}
