//! Talks to the `chaos` firmware, has it die, and sees what the guest's drivers make of it: each
//! read must end with an error and not with a hang, and the channel must come back by itself.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Mode, OFlags, fcntl_setfl, open};
use rustix::io::{Errno, read, write};

use crate::wait::{Readiness, readable};

/// So long for a channel to go, or to come.
const LIMIT: Duration = Duration::from_secs(30);
/// Sent before each death, not waiting for answers.
const LOAD: u64 = 50;
/// The ways to die that `chaos` knows.
const DEATHS: [&str; 4] = ["illegal", "wild-store", "stack-overflow", "hang"];

/// What became of the messages.
#[derive(Default)]
struct Counts {
    sent: u64,
    answered: u64,
}

/// Has the firmware die `deaths` times, one way after the other. Ends with
/// `survived N deaths, sent S, answered A`.
pub fn survive(deaths: usize) -> Result<bool> {
    let mut counts = Counts::default();
    let start = Instant::now();
    for (number, death) in DEATHS.iter().cycle().take(deaths).enumerate() {
        let at = || format!("death {number} ({death})");
        let (node, fd) = wait_for_channel().with_context(at)?;
        ask(&fd, "ping", b"pong", &mut counts).with_context(at)?;
        for _ in 0..LOAD {
            say(&fd, "ping", &mut counts).with_context(at)?;
        }
        say(&fd, death, &mut counts).with_context(at)?;
        hear_the_end(&node, &fd, &mut counts).with_context(at)?;
    }
    let (_, fd) = wait_for_channel()?;
    let expected = (deaths + 1).to_string();
    ask(&fd, "incarnation", expected.as_bytes(), &mut counts)?;
    println!("{:.1} s", start.elapsed().as_secs_f64());
    println!(
        "survived {deaths} deaths, sent {}, answered {}",
        counts.sent, counts.answered
    );
    Ok(true)
}

/// The one `/dev/rpmsgN` there is, as soon as it can be opened.
fn wait_for_channel() -> Result<(String, OwnedFd)> {
    let deadline = Instant::now() + LIMIT;
    loop {
        for entry in fs::read_dir("/dev").context("cannot read /dev")? {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else { continue };
            let number = name.strip_prefix("rpmsg").unwrap_or_default();
            if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
                continue;
            }
            let node = format!("/dev/{name}");
            // A node that is about to go cannot be opened.
            let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
            if let Ok(fd) = open(&node, flags, Mode::empty()) {
                return Ok((node, fd));
            }
        }
        ensure!(
            Instant::now() < deadline,
            "no /dev/rpmsgN for {} s",
            LIMIT.as_secs()
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Sends a message. A channel that has just gone takes none: that shows at the next read.
fn say(fd: &OwnedFd, text: &str, counts: &mut Counts) -> Result<()> {
    match write(fd, text.as_bytes()) {
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

fn ask(fd: &OwnedFd, text: &str, expected: &[u8], counts: &mut Counts) -> Result<()> {
    say(fd, text, counts)?;
    ensure!(
        readable(fd, LIMIT)? == Readiness::Readable,
        "no answer to {text}"
    );
    let mut answer = [0; 512];
    let length = read(fd, &mut answer).context("cannot read the answer")?;
    ensure!(
        &answer[..length] == expected,
        "the answer to {text} is {:?}",
        String::from_utf8_lossy(&answer[..length])
    );
    counts.answered += 1;
    Ok(())
}

/// Reads answers until the channel ends, which it must: a hang shows as the caller's time-out.
///
/// By reads that block, not by poll: Linux's character device looks at its endpoint without a lock
/// when it is polled, and warns if the channel goes at that moment.
fn hear_the_end(node: &str, fd: &OwnedFd, counts: &mut Counts) -> Result<()> {
    fcntl_setfl(fd, OFlags::empty()).context("cannot make reads block")?;
    let mut answer = [0; 512];
    loop {
        match read(fd, &mut answer) {
            Ok(length) => {
                ensure!(
                    &answer[..length] == b"pong",
                    "an answer is {:?}",
                    String::from_utf8_lossy(&answer[..length])
                );
                counts.answered += 1;
            }
            Err(Errno::PIPE) => return Ok(()),
            Err(error) => bail!("{node}: a read ended with {error} instead of EPIPE"),
        }
    }
}
