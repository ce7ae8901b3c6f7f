//! `cargo xtask fw`: the firmware images, from `guest-fw`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::{cargo, tools};

/// What the remote cores run.
pub const TARGET: &str = "riscv32imac-unknown-none-elf";

/// Builds every image, and prints where they are.
pub fn run() -> Result<()> {
    let folder = build()?;
    println!("fw: images are in {}", folder.display());
    Ok(())
}

/// Builds every image; returns the folder with one `NAME.elf` each.
pub fn build() -> Result<PathBuf> {
    tools::need_target(TARGET)?;
    let source = cargo::root().join("guest-fw");
    let target = cargo::target_directory()?;
    let build = target.join("guest-fw");
    println!("fw: building the firmware images");
    cargo::show(
        cargo::cargo()
            .current_dir(&source)
            .args([
                "build",
                "--release",
                "--bins",
                "--target",
                TARGET,
                "--target-dir",
            ])
            .arg(&build),
    )?;

    let images = target.join("firmware");
    fs::create_dir_all(&images)
        .with_context(|| format!("cannot make the folder {}", images.display()))?;
    let names = cargo::programs(&source)?;
    ensure!(!names.is_empty(), "{} builds no image", source.display());
    for name in names {
        let from = build.join(TARGET).join("release").join(&name);
        let to = images.join(format!("{name}.elf"));
        // Renamed into place: a daemon may be loading the old one.
        let aside = images.join(format!("{name}.elf.new"));
        fs::copy(&from, &aside).with_context(|| format!("cannot copy {}", from.display()))?;
        fs::rename(&aside, &to).with_context(|| format!("cannot write {}", to.display()))?;
    }
    Ok(images)
}
