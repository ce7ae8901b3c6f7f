//! Cargo, called again: where the workspace is, where it builds, what it builds.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// The workspace's root folder.
pub fn root() -> &'static Path {
    // xtask/ lies in it.
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
}

/// The cargo that runs us, in the workspace's root.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.current_dir(root());
    // Set for us by `cargo run`. A nested build would see it as a change and build all anew.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// `cargo metadata` of the workspace in `folder`.
fn metadata(folder: &Path) -> Result<Value> {
    let output = cargo()
        .current_dir(folder)
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(
        output.status.success(),
        "`cargo metadata` failed in {}",
        folder.display()
    );
    serde_json::from_slice(&output.stdout).context("`cargo metadata` answered no JSON")
}

/// Where the workspace's build goes.
pub fn target_directory() -> Result<PathBuf> {
    let metadata = metadata(root())?;
    let folder = metadata["target_directory"]
        .as_str()
        .context("cargo names no target folder")?;
    Ok(folder.into())
}

/// The names of the programs that the workspace in `folder` builds.
pub fn programs(folder: &Path) -> Result<Vec<String>> {
    let metadata = metadata(folder)?;
    let mut names = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        for target in package["targets"].as_array().into_iter().flatten() {
            if target["kind"]
                .as_array()
                .is_some_and(|kinds| kinds.contains(&"bin".into()))
            {
                names.extend(target["name"].as_str().map(str::to_owned));
            }
        }
    }
    names.sort();
    Ok(names)
}

/// Runs `command` with its output shown.
pub fn show(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", words(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", words(command));
    }
    Ok(())
}

/// The command as a person would type it; the program without its folder.
pub fn words(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut words = program
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    for word in command.get_args() {
        words.push(' ');
        words.push_str(&word.to_string_lossy());
    }
    words
}
