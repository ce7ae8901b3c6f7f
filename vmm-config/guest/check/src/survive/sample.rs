//! The kernel's own client sample, `rpmsg_client_sample`: the module as Linux has it, bound to the
//! channel. It greets when it is bound and again for each answer, and tells the kernel's log of each
//! step, which is how it is followed here.

use std::fs;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Mode, OFlags, SeekFrom, open, seek};
use rustix::io::{Errno, read};

use super::{Counts, wait_for};

const MODULE: &str = "rpmsg_client_sample";
/// Greetings after which it stops; never, as far as a test goes.
const ENDLESS: &str = "count=1000000000";
/// What it answers once this is written, is its last.
const COUNT: &str = "/sys/module/rpmsg_client_sample/parameters/count";
/// So long no news: it has stopped.
const QUIET: Duration = Duration::from_millis(500);

/// The module, loaded.
pub struct Sample {
    log: OwnedFd,
    /// Each time it was bound it greeted once, and for each answer but the last it greeted again.
    bound: u64,
    answers: u64,
    last_words: u64,
    unbound: u64,
    /// So many ends were waited for.
    ends: u64,
    /// Since it was bound last.
    answers_since: u64,
}

impl Sample {
    /// Loads the module, and waits until it is bound and answered.
    pub fn take() -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let log = open("/dev/kmsg", flags, Mode::empty()).context("cannot open /dev/kmsg")?;
        seek(&log, SeekFrom::End(0)).context("cannot go to the end of /dev/kmsg")?;
        busybox("insmod", &[&format!("/modules/{MODULE}.ko"), ENDLESS])?;
        let mut sample = Self {
            log,
            bound: 0,
            answers: 0,
            last_words: 0,
            unbound: 0,
            ends: 0,
            answers_since: 0,
        };
        sample.wait_for_an_answer()?;
        Ok(sample)
    }

    /// Waits until it is bound and answered.
    pub fn wait_for_an_answer(&mut self) -> Result<()> {
        wait_for("answer to the client sample", || {
            self.catch_up()?;
            let served = self.bound > self.ends && self.answers_since > 0;
            Ok(served.then_some(()))
        })
    }

    /// Waits until its channel has gone. The next one may be there by then.
    pub fn wait_for_the_end(&mut self) -> Result<()> {
        self.ends += 1;
        wait_for("end of the client sample's channel", || {
            self.catch_up()?;
            Ok((self.unbound >= self.ends).then_some(()))
        })
    }

    /// Has it stop, unless its channel has gone, and unloads the module.
    pub fn let_go(mut self) -> Result<Counts> {
        fs::write(COUNT, "0").with_context(|| format!("cannot write {COUNT}"))?;
        let mut last = None;
        while last != Some(self.answers) {
            last = Some(self.answers);
            std::thread::sleep(QUIET);
            self.catch_up()?;
        }
        busybox("rmmod", &[MODULE])?;
        Ok(Counts {
            sent: self.bound + self.answers - self.last_words,
            answered: self.answers,
        })
    }

    /// Reads what the log has to say by now.
    fn catch_up(&mut self) -> Result<()> {
        let mut record = [0; 8192];
        loop {
            match read(&self.log, &mut record) {
                Ok(length) => self.learn(&String::from_utf8_lossy(&record[..length]))?,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::PIPE) => bail!(
                    "the kernel's log has dropped lines before they were read; give the guest a \
                     larger one (log_buf_len=16M)"
                ),
                Err(error) => return Err(error).context("cannot read /dev/kmsg"),
            }
        }
    }

    /// Takes note of a record of the log: numbers, `;`, and the text's line.
    fn learn(&mut self, record: &str) -> Result<()> {
        let text = record.split_once(';').map_or("", |(_, rest)| rest);
        let line = text.lines().next().unwrap_or_default();
        let Some((_, words)) = line
            .strip_prefix(MODULE)
            .and_then(|rest| rest.split_once(": "))
        else {
            return Ok(());
        };
        if words.starts_with("new channel") {
            self.bound += 1;
            self.answers_since = 0;
        } else if words.starts_with("incoming msg") {
            self.answers += 1;
            self.answers_since += 1;
        } else if words.starts_with("goodbye") {
            self.last_words += 1;
        } else if words.contains("is removed") {
            self.unbound += 1;
        } else {
            bail!("the client sample complains: {line}");
        }
        Ok(())
    }
}

fn busybox(command: &str, words: &[&str]) -> Result<()> {
    let output = Command::new(command)
        .args(words)
        .output()
        .with_context(|| format!("cannot run {command}"))?;
    ensure!(
        output.status.success(),
        "{command} {} fails: {}",
        words.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
