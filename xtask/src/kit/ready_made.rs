//! The kernel's own modules for vsock sockets, which only the comparison inside a guest loads.
//!
//! They come ready-made, from the same Debian package version as the kernel. What is built from
//! source is in `modules`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::apt::{Apt, Choice};
use super::cache::{Cache, command};

/// In the order in which a guest loads them: each needs the one before.
pub const MODULES: [&str; 3] = [
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
];

/// The modules, as files.
pub fn get(cache: &Cache, apt: &mut Apt, choice: &Choice) -> Result<Vec<PathBuf>> {
    let name = format!("vsock-{}-{}", choice.kernel, choice.kernel_package);
    let folder = cache.piece(&name, |folder| {
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
        let places = ["usr/lib/modules", "lib/modules"].map(|place| {
            let tree = unpacked.join(place).join(&choice.kernel);
            tree.join("kernel/net/vmw_vsock")
        });
        let place = places
            .iter()
            .find(|place| place.is_dir())
            .with_context(|| format!("package {package} has no modules for vsock"))?;
        for name in MODULES {
            take(cache, place, name, folder)?;
        }
        fs::remove_dir_all(&unpacked)?;
        Ok(())
    })?;
    cache.remove_others("vsock-", &name)?;
    Ok(MODULES
        .iter()
        .map(|name| folder.join(format!("{name}.ko")))
        .collect())
}

/// Moves one module from `place` to `folder`, where it is not compressed.
fn take(cache: &Cache, place: &Path, name: &str, folder: &Path) -> Result<()> {
    let plain = place.join(format!("{name}.ko"));
    let compressed = place.join(format!("{name}.ko.xz"));
    if compressed.exists() {
        cache.run("modules", command("xz").arg("-d").arg(&compressed))?;
    }
    fs::rename(&plain, folder.join(format!("{name}.ko")))
        .with_context(|| format!("the kernel's package has no {name}.ko that can be taken"))
}
