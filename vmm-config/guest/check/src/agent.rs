//! Runs commands for the host, over a serial port.
//!
//! The host writes lines, the agent answers each:
//!
//! | line | answer |
//! |---|---|
//! | `ping ID` | `pong ID BOOT` + newline; `BOOT` is this boot's own id |
//! | `run ID SECONDS COMMAND` | `done ID EXIT LENGTH` + newline, then `LENGTH` bytes of output |
//!
//! `COMMAND` goes to `sh -c`; its output holds both streams. `EXIT` is its exit code, 128 + the
//! signal, or 124 if it was killed after `SECONDS`. Anything else is line noise and not answered:
//! the host pings until it hears its own id, and is then in step.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

/// What `timeout(1)` says too.
const EXIT_TIMED_OUT: i32 = 124;
const EXIT_NOT_STARTED: i32 = 126;

pub fn serve(device: &str) -> Result<()> {
    let port = OpenOptions::new()
        .read(true)
        .write(true)
        .open(device)
        .with_context(|| format!("cannot open {device}"))?;
    let mut attributes = tcgetattr(&port).with_context(|| format!("{device} is no terminal"))?;
    attributes.make_raw();
    tcsetattr(&port, OptionalActions::Now, &attributes)?;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .context("cannot read this boot's id")?;

    let mut lines = BufReader::new(port.try_clone()?);
    let mut line = Vec::new();
    loop {
        line.clear();
        if lines.read_until(b'\n', &mut line)? == 0 {
            // The host's side was closed. It may come back.
            thread::sleep(Duration::from_millis(100));
            continue;
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches(['\n', '\r']);
        match text.splitn(4, ' ').collect::<Vec<_>>()[..] {
            ["ping", id] => writeln!(&port, "pong {id} {}", boot.trim())?,
            ["run", id, seconds, command] => {
                let Ok(seconds) = seconds.parse() else {
                    continue;
                };
                let (exit, output) = run(command, Duration::from_secs(seconds));
                answer(&port, id, exit, &output)?;
            }
            _ => {}
        }
    }
}

fn answer(mut port: &File, id: &str, exit: i32, output: &[u8]) -> Result<()> {
    writeln!(port, "done {id} {exit} {}", output.len())?;
    port.write_all(output)?;
    Ok(())
}

fn run(command: &str, limit: Duration) -> (i32, Vec<u8>) {
    // The shell joins the streams, so that their order is kept.
    let child = Command::new("/bin/sh")
        .args(["-c", &format!("exec 2>&1\n{command}")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            return (
                EXIT_NOT_STARTED,
                format!("cannot start sh: {error}\n").into(),
            );
        }
    };
    let (sender, receiver) = mpsc::channel();
    if let Some(mut pipe) = child.stdout.take() {
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = pipe.read(&mut chunk) {
                if sender.send(chunk[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
    }
    let deadline = Instant::now() + limit;
    let mut output = Vec::new();
    let mut exit = None;
    loop {
        match receiver.recv_timeout(Duration::from_millis(20)) {
            Ok(chunk) => output.extend(chunk),
            Err(mpsc::RecvTimeoutError::Disconnected) => thread::sleep(Duration::from_millis(1)),
            // The command has ended and its pipe is quiet: what still holds the pipe is a
            // process that it left behind on purpose.
            Err(mpsc::RecvTimeoutError::Timeout) if exit.is_some() => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        if exit.is_none() {
            exit = child.try_wait().ok().flatten().map(exit_code);
        }
        if exit.is_some() && receiver_is_done(&receiver, &mut output) {
            break;
        }
        if exit.is_none() && Instant::now() >= deadline {
            if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = child.wait();
            output.extend(format!("\nkilled after {} s\n", limit.as_secs()).into_bytes());
            exit = Some(EXIT_TIMED_OUT);
            break;
        }
    }
    (exit.unwrap_or(EXIT_TIMED_OUT), output)
}

/// Takes what is there; true once the pipe has closed.
fn receiver_is_done(receiver: &mpsc::Receiver<Vec<u8>>, output: &mut Vec<u8>) -> bool {
    loop {
        match receiver.try_recv() {
            Ok(chunk) => output.extend(chunk),
            Err(mpsc::TryRecvError::Empty) => return false,
            Err(mpsc::TryRecvError::Disconnected) => return true,
        }
    }
}

fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_gives_its_output_and_exit_code() {
        let (exit, output) = run("echo one; echo two >&2; exit 3", Duration::from_secs(600));
        assert_eq!((exit, &output[..]), (3, &b"one\ntwo\n"[..]));
    }

    #[test]
    fn a_command_that_takes_too_long_is_killed() {
        let (exit, output) = run("echo begun; sleep 6000", Duration::from_secs(5));
        assert_eq!(exit, EXIT_TIMED_OUT);
        assert_eq!(output, b"begun\n\nkilled after 5 s\n");
    }

    #[test]
    fn a_command_may_leave_a_process_behind() {
        let start = Instant::now();
        let (exit, _) = run("sleep 3000 & echo left", Duration::from_secs(600));
        assert_eq!(exit, 0);
        assert!(start.elapsed() < Duration::from_secs(600));
    }
}
