//! The guest's whole file system: busybox, the modules, the check program, our init.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::apt::{Apt, Choice};
use super::cache::Cache;
use super::hash::Hash;
use crate::{cargo, tools};

const CHECK: &str = "rprocd-guest-check";
/// What the guest's programs are built for: they need no library there.
pub const TARGET: &str = "x86_64-unknown-linux-musl";

/// Makes it, if one of its parts has changed.
pub fn get(cache: &Cache, apt: &mut Apt, choice: &Choice, modules: &[PathBuf]) -> Result<PathBuf> {
    let mut archive = Archive::new();
    for folder in ["bin", "dev", "proc", "sys", "root", "tmp", "modules"] {
        archive.folder(folder);
    }
    // Before the kernel has mounted anything, init's messages need this one.
    archive.character_device("dev/console", 5, 1);
    archive.file("init", &read(&cargo::root().join("vmm-config/guest/init"))?);
    archive.file("bin/busybox", &read(&busybox(cache, apt, choice)?)?);
    archive.file(&format!("bin/{CHECK}"), &read(&check_program()?)?);
    archive.modules(modules)?;
    keep(cache, "initramfs-", &archive.finish())
}

/// Another one: what is in `base`, and `modules`.
pub fn with(cache: &Cache, base: &Path, modules: &[PathBuf]) -> Result<PathBuf> {
    let mut archive = Archive::new();
    archive.modules(modules)?;
    joined(cache, "more-initramfs-", base, archive)
}

/// What is in `base`, and what is in `archive`.
pub fn joined(cache: &Cache, kind: &str, base: &Path, archive: Archive) -> Result<PathBuf> {
    keep(cache, kind, &followed_by(base, archive)?)
}

/// The content of `base`, and what is in `archive` behind it.
pub fn followed_by(base: &Path, archive: Archive) -> Result<Vec<u8>> {
    // The kernel unpacks archives that follow each other, one into the other.
    let mut bytes = read(base)?;
    bytes.extend(archive.finish());
    Ok(bytes)
}

/// Writes it, if it is not there, and removes earlier ones of its kind.
fn keep(cache: &Cache, kind: &str, bytes: &[u8]) -> Result<PathBuf> {
    let name = format!("{kind}{}", Hash::new().add(bytes).name());
    let folder = cache.piece(&name, |folder| {
        fs::write(folder.join("initramfs.cpio"), bytes)?;
        Ok(())
    })?;
    cache.remove_others(kind, &name)?;
    Ok(folder.join("initramfs.cpio"))
}

pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn busybox(cache: &Cache, apt: &mut Apt, choice: &Choice) -> Result<PathBuf> {
    let name = format!(
        "busybox-{}",
        choice.addition.as_ref().unwrap_or(&choice.suite)
    );
    let folder = cache.piece(&name, |folder| {
        let unpacked = folder.join("unpacked");
        apt.unpack_one(choice, "busybox-static", &unpacked)?;
        let places = ["usr/bin/busybox", "bin/busybox"].map(|place| unpacked.join(place));
        let program = places
            .iter()
            .find(|place| place.exists())
            .context("package busybox-static has no busybox")?;
        fs::rename(program, folder.join("busybox"))?;
        fs::remove_dir_all(&unpacked)?;
        Ok(())
    })?;
    Ok(folder.join("busybox"))
}

/// Builds the check program, static, and without what only a debugger reads.
pub fn check_program() -> Result<PathBuf> {
    tools::need_target(TARGET)?;
    println!("kit: building the guest's check program");
    let target = cargo::target_directory()?.join("guest-check");
    cargo::show(
        cargo::cargo()
            .args(["build", "--release", "--package", CHECK, "--target", TARGET])
            .arg("--target-dir")
            .arg(&target)
            .envs([
                ("CARGO_PROFILE_RELEASE_STRIP", "true"),
                ("CARGO_PROFILE_RELEASE_DEBUG", "0"),
            ]),
    )?;
    Ok(target.join(TARGET).join("release").join(CHECK))
}

/// A cpio archive in the "newc" format, which the kernel unpacks. Each entry is a header of
/// thirteen 8-digit hexadecimal numbers behind a magic number, its name with a closing zero, and
/// its content; name and content are filled up to multiples of four bytes.
/// Source: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

struct Entry {
    mode: u32,
    major: u32,
    minor: u32,
}

impl Entry {
    /// No device.
    fn new(mode: u32) -> Self {
        Self {
            mode,
            major: 0,
            minor: 0,
        }
    }
}

const FILE: u32 = 0o100_000;
const FOLDER: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

impl Archive {
    pub fn new() -> Self {
        Self {
            bytes: Vec::new(),
            entries: 0,
        }
    }

    pub fn folder(&mut self, name: &str) {
        self.entry(name, &Entry::new(FOLDER | 0o755), &[]);
    }

    pub fn modules(&mut self, files: &[PathBuf]) -> Result<()> {
        for file in files {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            self.file(&format!("modules/{name}"), &read(file)?);
        }
        Ok(())
    }

    pub fn character_device(&mut self, name: &str, major: u32, minor: u32) {
        self.entry(
            name,
            &Entry {
                mode: CHARACTER_DEVICE | 0o600,
                major,
                minor,
            },
            &[],
        );
    }

    pub fn file(&mut self, name: &str, content: &[u8]) {
        self.entry(name, &Entry::new(FILE | 0o755), content);
    }

    fn entry(&mut self, name: &str, entry: &Entry, content: &[u8]) {
        self.entries += 1;
        // No file of ours is near 4 GiB.
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        let header = [
            self.entries, // inode
            entry.mode,
            0, // user
            0, // group
            1, // links
            0, // time: the same parts make the same archive
            size,
            0, // device, major
            0, // device, minor
            entry.major,
            entry.minor,
            name_size,
            0, // checksum, not used
        ];
        self.bytes.extend_from_slice(b"070701");
        for number in header {
            self.bytes
                .extend_from_slice(format!("{number:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.fill_up();
        self.bytes.extend_from_slice(content);
        self.fill_up();
    }

    fn fill_up(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", &Entry::new(0), &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;

    #[test]
    fn entries_are_headers_names_and_contents_in_fours() {
        let mut archive = Archive::new();
        archive.file("init", b"abcde");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[14..22], b"000081ed", "the mode");
        assert_eq!(&bytes[54..62], b"00000005", "the size");
        assert_eq!(&bytes[94..102], b"00000005", "the size of the name");
        // 110 bytes of header, 5 of name, 1 to fill up.
        assert_eq!(&bytes[110..124], b"init\0\0abcde\0\0\0");
        assert_eq!(&bytes[124..130], b"070701");
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    }
}
