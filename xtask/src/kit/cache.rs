//! The cache folder: its lock, its pieces, and the logs of what made them.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

use crate::cargo;

/// So much of a log is shown when a step fails.
const LOG_TAIL_LINES: usize = 15;

/// The open cache. While it lives no other run can change it.
pub struct Cache {
    root: PathBuf,
    _lock: File,
}

impl Cache {
    /// Opens the cache folder, and waits for another run that has it.
    pub fn open() -> Result<Self> {
        let root = folder()?;
        fs::create_dir_all(root.join("logs"))
            .with_context(|| format!("cannot make the cache folder {}", root.display()))?;
        let path = root.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            println!(
                "kit: another run is using {}, waiting for it",
                root.display()
            );
            flock(&lock, FlockOperation::LockExclusive).context("cannot lock the cache")?;
        }
        Ok(Self { root, _lock: lock })
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder `name`, made by `make` if it is not there. `make` is given an empty folder that
    /// gets its name only when all went well.
    pub fn piece(&self, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let path = self.root.join(name);
        if path.exists() {
            return Ok(path);
        }
        let aside = self.root.join(format!("{name}.part"));
        remove(&aside)?;
        fs::create_dir_all(&aside)
            .with_context(|| format!("cannot make the folder {}", aside.display()))?;
        make(&aside)?;
        fs::rename(&aside, &path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// Removes all pieces called `prefix...` but the one called `keep`: earlier versions of it.
    pub fn remove_others(&self, prefix: &str, keep: &str) -> Result<()> {
        for entry in fs::read_dir(&self.root)?.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(prefix) && name != keep {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Runs `command` with its output in the log `step`; on failure the error has the log's end.
    pub fn run(&self, step: &str, command: &mut Command) -> Result<()> {
        let path = self.root.join("logs").join(format!("{step}.log"));
        let mut log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        writeln!(log, "$ {}", cargo::words(command))?;
        let status = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .status()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        if !status.success() {
            bail!(
                "`{}` failed ({status}); its output is in {}, which ends with\n{}",
                command.get_program().display(),
                path.display(),
                tail(&path, LOG_TAIL_LINES)
            );
        }
        Ok(())
    }
}

/// The last `count` lines of the file, or why there are none.
pub fn tail(path: &Path, count: usize) -> String {
    match fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(count)..].join("\n")
        }
        Err(error) => format!("({}: {error})", path.display()),
    }
}

fn folder() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let folder = if let Some(folder) = set("RPROCD_CACHE") {
        PathBuf::from(folder)
    } else if let Some(folder) = set("XDG_CACHE_HOME") {
        Path::new(&folder).join("rprocd")
    } else if let Some(home) = set("HOME") {
        Path::new(&home).join(".cache/rprocd")
    } else {
        bail!("no place for the VM kit: set RPROCD_CACHE to a folder, 1 GB will do");
    };
    std::path::absolute(&folder).with_context(|| format!("{} is no folder", folder.display()))
}

/// Removes a file or folder, if it is there.
fn remove(path: &Path) -> Result<()> {
    let result = match fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(data) if data.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    result.with_context(|| format!("cannot remove {}", path.display()))
}

/// A command that is not disturbed by the user's language.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command
        .env("LC_ALL", "C")
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}
