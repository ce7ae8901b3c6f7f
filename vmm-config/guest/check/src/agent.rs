//! Runs commands for the host, over a serial port; and the host's side of it, for a host that is
//! itself a guest of the tests.
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
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
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

/// Has the agent behind `socket` run a command; waits until there is one. All of it within `limit`.
pub fn ask(socket: &str, limit: Duration, command: &str) -> Result<(i32, Vec<u8>)> {
    ensure!(!command.contains('\n'), "a command is one line");
    let deadline = Instant::now() + limit;
    let late = |what| format!("{what} at {socket} within {} s", limit.as_secs());
    let mut lines = connect(socket, deadline).with_context(|| late("nobody listens"))?;
    in_step(&mut lines, deadline).with_context(|| late("no agent answers"))?;
    let left = deadline.saturating_duration_since(Instant::now());
    writeln!(
        lines.get_mut(),
        "run run {} {command}",
        left.as_secs().max(1)
    )?;
    // The agent keeps the limit; this is for one that does not.
    let patience = left + Duration::from_secs(5);
    lines.get_mut().set_read_timeout(Some(patience))?;
    let header = loop {
        let mut line = String::new();
        let length = lines.read_line(&mut line).context("no answer")?;
        ensure!(length > 0, "the agent's connection closed");
        if let Some(rest) = line.trim().strip_prefix("done run ") {
            break rest.to_owned();
        }
    };
    let (exit, length) = header.split_once(' ').context("no length")?;
    let mut output = vec![0; length.parse().context("no length")?];
    lines
        .read_exact(&mut output)
        .context("the answer breaks off")?;
    Ok((exit.parse().context("no exit code")?, output))
}

fn connect(socket: &str, deadline: Instant) -> Result<BufReader<UnixStream>> {
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => {
                let patience = Some(Duration::from_millis(300));
                stream.set_read_timeout(patience)?;
                stream.set_write_timeout(patience)?;
                return Ok(BufReader::new(stream));
            }
            Err(error) if Instant::now() >= deadline => return Err(error.into()),
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Pings until an answer comes to that very ping: there may be noise on the line, and answers to
/// whoever asked before.
fn in_step(lines: &mut BufReader<UnixStream>, deadline: Instant) -> Result<()> {
    for id in 0_u64.. {
        // With nobody to read the line may be full.
        let _ = writeln!(lines.get_mut(), "ping {id}");
        let mut line = Vec::new();
        while lines
            .read_until(b'\n', &mut line)
            .is_ok_and(|length| length > 0)
        {
            let text = String::from_utf8_lossy(&line);
            if text.starts_with(&format!("pong {id} ")) {
                return Ok(());
            }
            line.clear();
        }
        if Instant::now() >= deadline {
            bail!("{id} pings without an answer");
        }
        thread::sleep(Duration::from_millis(50));
    }
    bail!("no more numbers for pings")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_asked_once_it_is_there_and_its_noise_is_passed_over() {
        use std::os::unix::net::UnixListener;

        let path = std::env::temp_dir().join(format!("rprocd-agent-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let agent = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream);
            let mut line = String::new();
            lines.read_line(&mut line).unwrap();
            let number = line.trim().strip_prefix("ping ").unwrap().to_owned();
            write!(lines.get_mut(), "noise\npong {number} boot\n").unwrap();
            loop {
                line.clear();
                lines.read_line(&mut line).unwrap();
                if let Some(rest) = line.strip_prefix("run run ") {
                    let (_, command) = rest.trim_end().split_once(' ').unwrap();
                    let (exit, output) = run(command, Duration::from_secs(10));
                    writeln!(lines.get_mut(), "done run {exit} {}", output.len()).unwrap();
                    lines.get_mut().write_all(&output).unwrap();
                    return;
                }
            }
        });
        let answer = ask(
            path.to_str().unwrap(),
            Duration::from_secs(30),
            "echo a b; exit 4",
        );
        std::fs::remove_file(&path).unwrap();
        assert_eq!(answer.unwrap(), (4, b"a b\n".to_vec()));
        agent.join().unwrap();
    }

    #[test]
    fn an_agent_that_is_not_there_is_not_waited_for_without_end() {
        let error = ask("/nowhere", Duration::ZERO, "true").unwrap_err();
        assert!(format!("{error:#}").contains("nobody listens at /nowhere"));
    }

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
