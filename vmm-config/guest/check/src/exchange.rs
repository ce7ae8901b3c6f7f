//! Sends messages through a `/dev/rpmsgN` whose far side answers each with its own content.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, read, write};

use crate::wait::{Readiness, readable};

/// The largest payload of an rpmsg message over virtio: 512 bytes less the header.
const MAX_PAYLOAD: usize = 496;
/// With the usual queue size the guest's driver has 256 buffers to send with.
const MAX_WINDOW: u64 = 256;
/// So long no answer at all: the channel is dead.
const SILENCE_LIMIT: Duration = Duration::from_secs(120);
/// An answer too many must show itself within this time.
const SURPLUS_WAIT: Duration = Duration::from_millis(100);

/// How many messages, how long each, and how many without an answer at a time.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    pub count: u64,
    pub size: usize,
    pub window: u64,
}

impl Options {
    pub fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self {
            count: 10_000,
            size: MAX_PAYLOAD,
            window: 64,
        };
        for pair in words.chunks(2) {
            let &[name, value] = pair else {
                bail!("{} has no value", pair[0])
            };
            let number: u64 = value
                .parse()
                .with_context(|| format!("{name} {value}: not a number"))?;
            match name {
                "--count" => options.count = number,
                "--size" if number <= MAX_PAYLOAD as u64 => options.size = number as usize,
                "--size" => bail!("--size {number}: a message holds at most {MAX_PAYLOAD} bytes"),
                "--window" if (1..=MAX_WINDOW).contains(&number) => options.window = number,
                "--window" => bail!("--window {number}: must be 1 to {MAX_WINDOW}"),
                _ => bail!("unknown option {name}"),
            }
        }
        Ok(options)
    }
}

/// The content of message `sequence`: its number first, as far as it fits, then a stream of bytes
/// that depends on it. One byte can only say which of 256 it is.
pub fn fill(message: &mut [u8], sequence: u64) {
    let mut state = sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for byte in message.iter_mut() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state as u8;
    }
    let tag = sequence.to_le_bytes();
    let tagged = message.len().min(tag.len());
    message[..tagged].copy_from_slice(&tag[..tagged]);
}

/// Answers must come in the order of the messages, each once. True if all did.
pub fn exchange(device: &str, options: &Options) -> Result<bool> {
    let fd = open(
        device,
        OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .with_context(|| format!("cannot open {device}"))?;
    let start = Instant::now();
    let mut message = vec![0; options.size];
    let mut expected = vec![0; options.size];
    let mut answer = vec![0; MAX_PAYLOAD + 1];
    let (mut sent, mut received, mut wrong) = (0, 0, 0);
    let mut first_wrong = None;
    let mut last_answer = Instant::now();

    while received < options.count {
        while sent < options.count && sent - received < options.window {
            fill(&mut message, sent);
            match write(&fd, &message) {
                Ok(length) if length == options.size => sent += 1,
                Ok(length) => bail!("message {sent}: only {length} bytes were taken"),
                // The driver is out of buffers. An answer will bring one.
                Err(Errno::AGAIN | Errno::NOMEM) => break,
                Err(error) => return Err(error).with_context(|| format!("message {sent}")),
            }
        }
        match readable(
            &fd,
            Duration::from_millis(if sent == received { 1 } else { 1000 }),
        )? {
            Readiness::Readable => {}
            Readiness::Gone => bail!("{device} went away after {received} answers"),
            Readiness::TimedOut if last_answer.elapsed() < SILENCE_LIMIT => continue,
            Readiness::TimedOut => {
                wrong += options.count - received;
                println!(
                    "no answer to message {received} of {} for {} s ({sent} sent)",
                    options.count,
                    SILENCE_LIMIT.as_secs()
                );
                break;
            }
        }
        loop {
            let length = match read(&fd, &mut answer) {
                Ok(length) => length,
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error).with_context(|| format!("answer {received}")),
            };
            if received == sent {
                wrong += 1;
                first_wrong.get_or_insert(format!("an answer nobody asked for, {length} bytes"));
                break;
            }
            fill(&mut expected, received);
            if answer[..length] != expected[..] {
                wrong += 1;
                first_wrong.get_or_insert_with(|| describe(received, &expected, &answer[..length]));
            }
            received += 1;
            last_answer = Instant::now();
        }
    }
    if wrong == 0 && readable(&fd, SURPLUS_WAIT)? == Readiness::Readable {
        wrong += 1;
        first_wrong.get_or_insert("an answer more than messages".to_owned());
    }
    if let Some(text) = first_wrong {
        println!("first wrong answer: {text}");
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{} bytes each, {} in flight: {seconds:.2} s, {:.0} a second",
        options.size,
        options.window,
        received as f64 / seconds
    );
    println!("exchanged {received} messages, {wrong} wrong");
    Ok(wrong == 0)
}

fn describe(sequence: u64, expected: &[u8], answer: &[u8]) -> String {
    if expected.len() != answer.len() {
        return format!(
            "message {sequence}: {} bytes were sent, {} came back",
            expected.len(),
            answer.len()
        );
    }
    let at = expected
        .iter()
        .zip(answer)
        .position(|(a, b)| a != b)
        .unwrap_or(0);
    format!(
        "message {sequence}, byte {at}: {:#04x} was sent, {:#04x} came back",
        expected[at], answer[at]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_messages_differ_at_every_size() {
        for size in 1..=MAX_PAYLOAD {
            let (mut a, mut b) = (vec![0; size], vec![0; size]);
            fill(&mut a, 7);
            fill(&mut b, 8);
            assert_ne!(a, b, "size {size}");
        }
    }

    #[test]
    fn a_wrong_byte_is_named() {
        assert_eq!(
            describe(3, &[1, 2], &[1, 9]),
            "message 3, byte 1: 0x02 was sent, 0x09 came back"
        );
        assert_eq!(
            describe(3, &[1, 2], &[]),
            "message 3: 2 bytes were sent, 0 came back"
        );
    }

    #[test]
    fn options_have_limits() {
        assert!(Options::parse(&["--size", "497"]).is_err());
        assert!(Options::parse(&["--window", "0"]).is_err());
        assert!(Options::parse(&["--count"]).is_err());
        assert_eq!(
            Options::parse(&["--count", "5", "--size", "0", "--window", "1"]).unwrap(),
            Options {
                count: 5,
                size: 0,
                window: 1
            }
        );
    }
}
