//! A terminal whose far side echoes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{read, write};
use rustix::termios::{OptionalActions, QueueSelector, tcflush, tcgetattr, tcsetattr};

use crate::wait::{Readiness, readable};

const LIMIT: Duration = Duration::from_secs(10);

/// Writes `text` and a line end; true if it came back. Raw mode first: else the guest's own
/// terminal layer would echo, and echo the echo.
pub fn check_echo(device: &str, text: &str) -> Result<bool> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = open(device, flags, Mode::empty()).with_context(|| format!("cannot open {device}"))?;
    let mut attributes = tcgetattr(&fd).with_context(|| format!("{device} is no terminal"))?;
    attributes.make_raw();
    tcsetattr(&fd, OptionalActions::Now, &attributes)
        .with_context(|| format!("{device} cannot be set to raw mode"))?;
    tcflush(&fd, QueueSelector::IFlush)?;

    let line = format!("{text}\n");
    let mut rest = line.as_bytes();
    while !rest.is_empty() {
        let taken = write(&fd, rest).with_context(|| format!("cannot write to {device}"))?;
        rest = &rest[taken..];
    }
    let mut seen = Vec::new();
    let deadline = Instant::now() + LIMIT;
    let mut buffer = [0; 512];
    // A terminal may send its line end as it likes: the text is what must come back.
    while !contains(&seen, text.as_bytes()) {
        let left = deadline.saturating_duration_since(Instant::now());
        if readable(&fd, left)? != Readiness::Readable {
            break;
        }
        match read(&fd, &mut buffer).with_context(|| format!("cannot read from {device}"))? {
            0 => break,
            length => seen.extend_from_slice(&buffer[..length]),
        }
    }
    println!("{device}: sent {line:?}");
    println!("{device}: got  {:?}", String::from_utf8_lossy(&seen));
    let echoed = contains(&seen, text.as_bytes());
    println!(
        "{device} {}",
        if echoed { "echoes" } else { "does not echo" }
    );
    Ok(echoed)
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    part.is_empty() || bytes.windows(part.len()).any(|window| window == part)
}
