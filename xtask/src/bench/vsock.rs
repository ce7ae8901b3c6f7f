//! The vsock device of the rust-vmm project, as its authors publish it.
//!
//! What belongs here: getting the program, once. What does not: driving it.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cargo;
use crate::kit::Cache;

/// The program and the package.
const NAME: &str = "vhost-device-vsock";
/// The version that is compared with; its figures are part of what the project promises.
pub const VERSION: &str = "0.3.0";

/// The program, built if that was not done before.
pub fn binary(cache: &Cache) -> Result<PathBuf> {
    let name = format!("peers/{NAME}-{VERSION}");
    let folder = cache.piece(&name, |folder| {
        println!("bench: building {NAME} {VERSION} (a minute or two, once)");
        let mut install = cargo::cargo();
        install
            .args(["install", "--locked", "--version", VERSION, "--root"])
            .arg(folder)
            .arg(NAME)
            // Its build is not part of ours.
            .env_remove("CARGO_TARGET_DIR")
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS");
        cache
            .run("peers", &mut install)
            .with_context(|| format!("cannot build {NAME} {VERSION}, which needs the network once"))
    })?;
    Ok(folder.join("bin").join(NAME))
}
