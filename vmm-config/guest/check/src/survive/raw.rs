//! The firmware's own channel: commands through a character device.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Mode, OFlags, fcntl_setfl, open};
use rustix::io::{Errno, read, write};

use super::{Counts, LIMIT, node, wait_for};
use crate::wait::{Readiness, readable};

/// Sent before each death, not waiting for answers.
const LOAD: u64 = 50;

/// The open device.
pub struct Raw {
    path: String,
    fd: OwnedFd,
}

impl Raw {
    /// Opens it as soon as that can be done, and has an answer.
    pub fn take(counts: &mut Counts) -> Result<Self> {
        let raw = wait_for("/dev/rpmsgN that can be opened", || {
            let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
            // A node that is about to go cannot be opened.
            let opened = node("rpmsg")?.and_then(|(path, _)| {
                let fd = open(&path, flags, Mode::empty()).ok()?;
                Some(Self { path, fd })
            });
            Ok(opened)
        })?;
        let answer = raw.ask("ping", counts)?;
        ensure!(answer == "pong", "the answer to ping is {answer:?}");
        Ok(raw)
    }

    /// Sends a message. A channel that has just gone takes none: that shows at the next read.
    pub fn say(&self, text: &str, counts: &mut Counts) -> Result<()> {
        match write(&self.fd, text.as_bytes()) {
            Ok(length) => {
                ensure!(length == text.len(), "only {length} bytes of {text} taken");
                counts.sent += 1;
            }
            // Out of buffers: the load is as large as it gets.
            Err(Errno::AGAIN | Errno::NOMEM) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot send {text}")),
        }
        Ok(())
    }

    /// Sends a message; its answer.
    pub fn ask(&self, text: &str, counts: &mut Counts) -> Result<String> {
        self.say(text, counts)?;
        ensure!(
            readable(&self.fd, LIMIT)? == Readiness::Readable,
            "no answer to {text}"
        );
        let mut answer = [0; 512];
        let length = read(&self.fd, &mut answer).context("cannot read the answer")?;
        counts.answered += 1;
        Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
    }

    /// Sends many, and leaves the answers to [`Raw::hear_the_end`].
    pub fn load(&self, counts: &mut Counts) -> Result<()> {
        (0..LOAD).try_for_each(|_| self.say("ping", counts))
    }

    /// Reads answers until the channel ends, which it must: a hang shows as the caller's time-out.
    ///
    /// By reads that block, not by poll: Linux's character device looks at its endpoint without a
    /// lock when it is polled, and warns if the channel goes at that moment.
    pub fn hear_the_end(&self, counts: &mut Counts) -> Result<()> {
        fcntl_setfl(&self.fd, OFlags::empty()).context("cannot make reads block")?;
        let mut answer = [0; 512];
        loop {
            match read(&self.fd, &mut answer) {
                Ok(length) => {
                    ensure!(
                        &answer[..length] == b"pong",
                        "an answer is {:?}",
                        String::from_utf8_lossy(&answer[..length])
                    );
                    counts.answered += 1;
                }
                Err(Errno::PIPE) => return Ok(()),
                Err(error) => {
                    bail!("{}: a read ended with {error} instead of EPIPE", self.path)
                }
            }
        }
    }
}
