//! A terminal whose far side echoes.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{read, write};
use rustix::termios::{OptionalActions, QueueSelector, tcflush, tcgetattr, tcsetattr};

use crate::wait::{Readiness, readable};

const LIMIT: Duration = Duration::from_secs(120);

/// Writes `text` and a line end; true if it came back.
pub fn check_echo(device: &str, text: &str) -> Result<bool> {
    let fd = open_raw(device)?;
    let Seen { bytes, ok } = echoes(&fd, text).with_context(|| device.to_owned())?;
    println!("{device}: sent {:?}", format!("{text}\n"));
    println!("{device}: got  {:?}", String::from_utf8_lossy(&bytes));
    println!("{device} {}", if ok { "echoes" } else { "does not echo" });
    Ok(ok)
}

/// Opens a terminal in raw mode: else the guest's own terminal layer would echo, and echo the echo.
pub fn open_raw(device: &str) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = open(device, flags, Mode::empty()).with_context(|| format!("cannot open {device}"))?;
    let mut attributes = tcgetattr(&fd).with_context(|| format!("{device} is no terminal"))?;
    attributes.make_raw();
    tcsetattr(&fd, OptionalActions::Now, &attributes)
        .with_context(|| format!("{device} cannot be set to raw mode"))?;
    tcflush(&fd, QueueSelector::IFlush)?;
    Ok(fd)
}

/// Writes all of `text` to a terminal.
pub fn type_in(fd: &OwnedFd, text: &str) -> Result<()> {
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let taken = write(fd, rest).context("cannot write to the terminal")?;
        rest = &rest[taken..];
    }
    Ok(())
}

/// What came back of a text, and whether that is the text.
pub struct Seen {
    pub bytes: Vec<u8>,
    pub ok: bool,
}

/// Writes `text` and a line end, and waits until the text came back.
pub fn echoes(fd: &OwnedFd, text: &str) -> Result<Seen> {
    type_in(fd, &format!("{text}\n"))?;
    let mut seen = Vec::new();
    let deadline = Instant::now() + LIMIT;
    let mut buffer = [0; 512];
    // A terminal may send its line end as it likes: the text is what must come back.
    while !contains(&seen, text.as_bytes()) {
        let left = deadline.saturating_duration_since(Instant::now());
        if readable(fd, left)? != Readiness::Readable {
            break;
        }
        match read(fd, &mut buffer).context("cannot read from the terminal")? {
            0 => break,
            length => seen.extend_from_slice(&buffer[..length]),
        }
    }
    let ok = contains(&seen, text.as_bytes());
    Ok(Seen { bytes: seen, ok })
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    part.is_empty() || bytes.windows(part.len()).any(|window| window == part)
}
