//! `cargo xtask deb`: a Debian package of the programs, their units, pages and completions.
//!
//! What is in it is said in `[package.metadata.deb]` of Cargo.toml; cargo-deb makes it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::kit::Cache;
use crate::tools::{self, tool};
use crate::{cargo, pages};

/// The version that is known to do; installed into the cache where there is none.
const CARGO_DEB: &str = "3";

/// Makes it, and says where.
pub fn run() -> Result<()> {
    println!("deb: {}", build()?.display());
    Ok(())
}

/// Makes it.
pub fn build() -> Result<PathBuf> {
    tools::need(&[tool("dpkg-deb", "dpkg"), tool("dpkg-shlibdeps", "dpkg-dev")])?;
    pages::build()?;
    let program = cargo_deb()?;
    let mut build = cargo::cargo();
    build.args(["build", "--release", "--features", "rprocfs", "--bins"]);
    cargo::show(build.args(["--package", "rprocd"]))?;
    let output = Command::new(program)
        .current_dir(cargo::root())
        .args(["deb", "--package", "rprocd", "--no-build"])
        .output()
        .context("cannot run cargo-deb")?;
    ensure!(
        output.status.success(),
        "cargo-deb failed:\n{}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    // It ends with where it is.
    let text = String::from_utf8_lossy(&output.stdout);
    let package = text.lines().next_back().map(|line| line.trim().into());
    package.context("cargo-deb does not say where the package is")
}

fn cargo_deb() -> Result<PathBuf> {
    if let Some(program) = tools::find("cargo-deb") {
        return Ok(program);
    }
    let root = Cache::open()?.root().join("tools");
    let program = root.join("bin/cargo-deb");
    if !program.exists() {
        println!("deb: installing cargo-deb");
        let mut install = cargo::cargo();
        install.args(["install", "cargo-deb", "--locked", "--version", CARGO_DEB]);
        cargo::show(install.arg("--root").arg(&root))?;
    }
    Ok(program)
}
