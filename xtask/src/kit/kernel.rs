//! Debian's kernel for clouds: virtio and virtio-pci are built in.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::apt::{Apt, Choice};
use super::cache::Cache;

/// The kernel's image.
pub fn get(cache: &Cache, apt: &mut Apt, choice: &Choice) -> Result<PathBuf> {
    let name = format!("kernel-{}-{}", choice.kernel, choice.kernel_package);
    let folder = cache.piece(&name, |folder| {
        // Newer kernels have their image in a package of its own.
        let binary = format!("linux-binary-{}", choice.kernel);
        let package = if apt.has(choice, &binary)? {
            binary
        } else {
            format!("linux-image-{}", choice.kernel)
        };
        let unpacked = folder.join("unpacked");
        apt.unpack_one(choice, &package, &unpacked)?;
        let places = [
            unpacked.join(format!("usr/lib/modules/{}/vmlinuz", choice.kernel)),
            unpacked.join(format!("boot/vmlinuz-{}", choice.kernel)),
        ];
        let image = places
            .iter()
            .find(|place| place.exists())
            .with_context(|| format!("package {package} has no kernel image"))?;
        fs::rename(image, folder.join("vmlinuz"))?;
        fs::remove_dir_all(&unpacked)?;
        Ok(())
    })?;
    cache.remove_others("kernel-", &name)?;
    Ok(folder.join("vmlinuz"))
}
