//! The daemon under test.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::wait_until;

/// Both on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(180);
const END_LIMIT: Duration = Duration::from_secs(180);
/// The word that the daemon logs once its sockets are there.
const READY: &str = "ready";

/// A running `rprocd`, with its configuration, sockets and log in a folder of its own. It is
/// killed when it is dropped.
pub struct Daemon {
    child: Child,
    folder: TempDir,
}

impl Daemon {
    /// Starts `program` with the configuration text `config`, in which paths are relative to a new
    /// folder that has `firmware` as its `firmware`. Waits until it says that it is ready.
    pub fn start(program: &Path, config: &str, firmware: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("rprocd-").tempdir()?;
        let file = folder.path().join("rprocd.toml");
        fs::write(&file, config)?;
        std::os::unix::fs::symlink(firmware, folder.path().join("firmware"))?;
        let log = File::create(folder.path().join("rprocd.log"))?;
        let child = Command::new(program)
            .arg("--config")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let mut daemon = Self { child, folder };
        let ready = wait_until(START_LIMIT, || match daemon.child.try_wait() {
            Ok(None) => daemon
                .log()
                .split(|c: char| !c.is_alphanumeric())
                .any(|word| word == READY)
                .then_some(Ok(())),
            Ok(Some(status)) => Some(Err(format!("ended with {status}"))),
            Err(error) => Some(Err(error.to_string())),
        });
        match ready {
            Some(Ok(())) => Ok(daemon),
            Some(Err(what)) => bail!("rprocd {what}{}", daemon.evidence()),
            None => {
                bail!(
                    "rprocd was not ready after {} s{}",
                    START_LIMIT.as_secs(),
                    daemon.evidence()
                )
            }
        }
    }

    /// A file in its folder: a socket of the configuration.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// All that it has logged.
    pub fn log(&self) -> String {
        fs::read(self.path("rprocd.log")).map_or_else(
            |_| String::new(),
            |bytes| String::from_utf8_lossy(&bytes).into_owned(),
        )
    }

    /// The end of its log, for an error message.
    pub fn evidence(&self) -> String {
        format!(
            "\n--- rprocd's log ends with\n{}",
            crate::kit::tail(&self.path("rprocd.log"), 25)
        )
    }

    /// Processor time that its threads have used, in clock ticks. Source: proc(5), fields 14
    /// (utime) and 15 (stime) of `/proc/PID/task/TID/stat`.
    pub fn cpu_ticks(&self) -> Result<u64> {
        let mut ticks = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let Ok(stat) = fs::read_to_string(task?.path().join("stat")) else {
                continue;
            };
            // The name, in brackets, may hold anything.
            let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
            let mut fields = fields.split_whitespace().skip(11);
            for _ in 0..2 {
                let field = fields
                    .next()
                    .context("a line of /proc/PID/stat is too short")?;
                ticks += field.parse::<u64>()?;
            }
        }
        Ok(ticks)
    }

    /// Bytes of memory that are its own: resident, less what is shared through a memfd (carveouts
    /// and guests' memory).
    pub fn own_memory(&self) -> Result<u64> {
        let smaps = fs::read_to_string(format!("/proc/{}/smaps", self.child.id()))?;
        Ok(own_bytes(&smaps))
    }

    /// Asks it to end, and checks that it does so cleanly.
    pub fn stop(mut self) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("rprocd has no process id")?, Signal::TERM)?;
        let status =
            wait_until(END_LIMIT, || self.child.try_wait().ok().flatten()).with_context(|| {
                format!(
                    "rprocd did not end within {} s of SIGTERM{}",
                    END_LIMIT.as_secs(),
                    self.evidence()
                )
            })?;
        ensure!(
            status.success(),
            "rprocd ended with {status} on SIGTERM{}",
            self.evidence()
        );
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The sum of `Rss:` over the mappings of an smaps text that are not of a memfd.
fn own_bytes(smaps: &str) -> u64 {
    let mut counts = false;
    let mut kilobytes = 0;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("Rss:") if counts => {
                kilobytes += words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
            }
            // A mapping's first line begins with its addresses.
            Some(word) if !word.ends_with(':') => counts = !line.contains("/memfd:"),
            _ => {}
        }
    }
    kilobytes * 1024
}

#[cfg(test)]
mod tests {
    use super::own_bytes;

    #[test]
    fn shared_memory_files_are_not_its_own() {
        let smaps = "55d0-55e0 r-xp 00000000 fe:00 42   /usr/bin/rprocd\nSize: 64 kB\nRss: 40 kB\n\
            7f00-7f80 rw-s 00000000 00:01 7  /memfd:carveout (deleted)\nRss: 4096 kB\n\
            7f90-7fa0 rw-p 00000000 00:00 0 \nRss: 8 kB\n";
        assert_eq!(own_bytes(smaps), 48 * 1024);
    }
}
