//! `cargo xtask deb`: Debian packages: of the programs with their units, pages and completions, of
//! their debug information, and of the guest's kernel module.
//!
//! What is in the first is said in `[package.metadata.deb]` of Cargo.toml; cargo-deb makes it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::tools::{self, Need, program};
use crate::{cargo, dkms, firmware, pages};

/// Beside the built programs: what else is made and goes into a package. cargo-deb finds the target
/// folder, wherever it is, by assets' paths that begin with `target/release` and by no others.
const STAGE: &str = "package";

/// The packages that were made.
#[derive(Debug)]
pub struct Packages {
    /// The programs and all that goes with them.
    pub rprocd: PathBuf,
    /// Their debug information, for backtraces with files and lines.
    pub debug: PathBuf,
    /// The source of the guest's kernel module, for DKMS.
    pub module: PathBuf,
}

/// Makes them, and says where.
pub fn run() -> Result<()> {
    let packages = build()?;
    for package in [packages.rprocd, packages.debug, packages.module] {
        let size = fs::metadata(&package).map_or(0, |data| data.len());
        println!("deb: {} ({} kB)", package.display(), size / 1000);
    }
    Ok(())
}

/// What making them needs.
pub fn needs() -> Vec<Need> {
    vec![
        program("dpkg-deb", "dpkg"),
        program("dpkg-shlibdeps", "dpkg-dev"),
        program("objcopy", "binutils"),
        Need::Target(firmware::TARGET),
        Need::CargoDeb,
    ]
}

/// Makes them.
pub fn build() -> Result<Packages> {
    tools::prepare(&[("the package", needs())])?;
    let cargo_deb = tools::cargo_deb()?;
    let release = cargo::target_directory()?.join("release");
    stage(&pages::build()?, &release.join(STAGE).join("pages"))?;
    stage(&firmware::build()?, &release.join(STAGE).join("firmware"))?;
    let mut build = cargo::cargo();
    build.args(["build", "--release", "--features", "rprocfs", "--bins"]);
    cargo::show(build.args(["--package", "rprocd"]))?;
    let output = Command::new(cargo_deb)
        .current_dir(cargo::root())
        .args(["deb", "--package", "rprocd", "--no-build"])
        // The standard library reads zlib where it prints a backtrace.
        .args(["--dbgsym", "--compress-debug-symbols=zlib"])
        .output()
        .context("cannot run cargo-deb")?;
    ensure!(
        output.status.success(),
        "cargo-deb failed:\n{}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    // It says where they are, one a line.
    let text = String::from_utf8_lossy(&output.stdout);
    let made = |extension: &str| {
        let path = |line: &str| PathBuf::from(line.trim());
        text.lines()
            .map(path)
            .find(|path| path.extension().is_some_and(|found| found == extension))
            .with_context(|| format!("cargo-deb names no .{extension} file, it says\n{text}"))
    };
    let (rprocd, ddeb) = (made("deb")?, made("ddeb")?);
    // As Debian calls them: apt installs no file of another name.
    let debug = ddeb.with_extension("deb");
    fs::rename(&ddeb, &debug).with_context(|| format!("cannot rename {}", ddeb.display()))?;
    let module = dkms::build(rprocd.parent().context("cargo-deb names no folder")?)?;
    Ok(Packages {
        rprocd,
        debug,
        module,
    })
}

/// Copies the folder `from` to `to`, and nothing that was there before stays.
fn stage(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("cannot remove {}", to.display()))?;
    }
    copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_named_as_cargo_deb_finds_it_in_any_target_folder() {
        let manifest = fs::read_to_string(cargo::root().join("Cargo.toml")).unwrap();
        let (_, table) = manifest.split_once("[package.metadata.deb]").unwrap();
        let built: Vec<&str> = table
            .split('"')
            .filter(|word| word.starts_with("target/"))
            .collect();
        assert!(built.len() > 3, "{built:?}");
        for path in built {
            assert!(
                path.starts_with("target/release/"),
                "{path} is not found where CARGO_TARGET_DIR is set: have it copied to \
                 target/release/{STAGE} (xtask/src/deb.rs)"
            );
        }
    }
}
