//! The channel to the guest's agent: a serial port, at whose other end is a socket of QEMU's.
//!
//! What belongs here: the lines that the agent takes and gives (`vmm-config/guest/check/src/agent.rs`
//! says which). What does not: what the guest is told to do.
//!
//! A guest that is starting reads nothing, and what it is sent meanwhile is lost, or taken by whatever
//! reads the port first. So the host pings until it hears the answer to a ping of its own.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Answer;
use super::wire::Wire;

/// A guest that is up takes what it is sent at once, if the machine is not very busy.
const SEND_LIMIT: Duration = Duration::from_secs(60);
/// More than the guest may take for a command, which it ends itself.
const MORE: Duration = Duration::from_secs(60);

/// A connection.
pub struct Agent {
    wire: Wire,
}

/// What was heard after a ping.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// The answer, with the boot's id.
    Pong(String),
    /// A command that was told and not waited for has ended, with this exit code and output.
    Done(i32, String),
    Nothing,
}

impl Agent {
    pub fn connect(path: &Path) -> Result<Self> {
        Self::new(Wire::connect(path)?)
    }

    fn new(mut wire: Wire) -> Result<Self> {
        // Ends what an earlier connection may have left half-written.
        wire.send(b"\n", SEND_LIMIT)?;
        Ok(Self { wire })
    }

    /// Pings, and listens for as long as `patience`. With the id of a command in `told` listens for
    /// its end too.
    ///
    /// # Errors
    /// Nothing is taken or given any more: a new connection is needed.
    pub fn ping(&mut self, id: u64, told: Option<u64>, patience: Duration) -> Result<Heard> {
        self.wire
            .send(format!("ping {id}\n").as_bytes(), patience)?;
        let deadline = Instant::now() + patience;
        // Before its own answer there may be those to earlier pings.
        while let Some(line) = self.wire.line(deadline)? {
            if let Some(boot) = line.strip_prefix(&format!("pong {id} ")) {
                return Ok(Heard::Pong(boot.to_owned()));
            }
            if let Some(told) = told
                && let Some(rest) = line.strip_prefix(&format!("done {told} "))
            {
                let answer = self.rest(rest, Instant::now() + SEND_LIMIT)?;
                return Ok(Heard::Done(answer.exit, answer.output));
            }
        }
        Ok(Heard::Nothing)
    }

    /// Tells a command, and does not wait for its end.
    pub fn tell(&mut self, id: u64, command: &str, limit: Duration) -> Result<()> {
        let seconds = limit.as_secs().max(1);
        let line = format!("run {id} {seconds} {command}\n");
        self.wire.send(line.as_bytes(), SEND_LIMIT)
    }

    /// Runs a command. The guest keeps the limit; where it does not, it is kept here, a little later.
    pub fn ask(&mut self, id: u64, command: &str, limit: Duration) -> Result<Answer> {
        self.tell(id, command, limit)?;
        let deadline = Instant::now() + limit + MORE;
        let head = format!("done {id} ");
        loop {
            let Some(line) = self.wire.line(deadline)? else {
                bail!(
                    "the guest's agent did not answer within {} s; the command might take {} s",
                    (limit + MORE).as_secs(),
                    limit.as_secs()
                );
            };
            if let Some(rest) = line.strip_prefix(&head) {
                return self.rest(rest, deadline);
            }
        }
    }

    /// What follows `done ID `: the exit code, the length of the output, and the output.
    fn rest(&mut self, rest: &str, deadline: Instant) -> Result<Answer> {
        let numbers = rest.split_once(' ');
        let (exit, length) = numbers.context("an answer without a length")?;
        let length = length.parse().context("an answer without a length")?;
        let output = self.wire.bytes(length, deadline)?;
        let output = output.context("an answer that breaks off")?;
        Ok(Answer {
            exit: exit.parse().context("an answer without an exit code")?,
            output: String::from_utf8_lossy(&output).into_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;

    const PATIENCE: Duration = Duration::from_millis(50);

    fn pair() -> (UnixStream, Agent) {
        let (peer, stream) = UnixStream::pair().unwrap();
        (peer, Agent::new(Wire::new(stream)).unwrap())
    }

    #[test]
    fn a_ping_comes_back_though_nobody_has_ever_read_one() {
        let (_peer, mut agent) = pair();
        // The socket takes some, and then no more.
        let error = (0..1_000_000).find_map(|id| agent.ping(id, None, Duration::ZERO).err());
        let error = error.unwrap().to_string();
        assert!(
            error.starts_with("nobody reads at the other end"),
            "{error}"
        );
    }

    #[test]
    fn only_the_answer_to_its_own_ping_counts_and_what_comes_in_pieces_is_not_lost() {
        let (mut peer, mut agent) = pair();
        peer.write_all(b"\xff\0noise\npong 1 old\npong 2 n")
            .unwrap();
        assert_eq!(agent.ping(2, None, PATIENCE).unwrap(), Heard::Nothing);
        peer.write_all(b"ew\npong 3 newer\n").unwrap();
        let heard = agent.ping(3, None, PATIENCE).unwrap();
        assert_eq!(heard, Heard::Pong("newer".to_owned()));
    }

    #[test]
    fn a_command_that_was_to_end_the_boot_and_ended_itself_is_heard_of() {
        let (mut peer, mut agent) = pair();
        agent.tell(7, "reboot", PATIENCE).unwrap();
        peer.write_all(b"done 7 127 9\nnot found").unwrap();
        let heard = agent.ping(8, Some(7), PATIENCE).unwrap();
        assert_eq!(heard, Heard::Done(127, "not found".to_owned()));
    }

    #[test]
    fn a_command_is_answered_with_its_exit_code_and_output() {
        let (mut peer, mut agent) = pair();
        peer.write_all(b"pong 4 late\ndone 5 3 6\na\nb\xff\n\n")
            .unwrap();
        let answer = agent.ask(5, "false", PATIENCE).unwrap();
        assert_eq!((answer.exit, &*answer.output), (3, "a\nb\u{fffd}\n\n"));
        let mut lines = BufReader::new(peer).lines();
        // What an earlier connection left is ended by an empty line.
        assert_eq!(lines.next().unwrap().unwrap(), "");
        assert_eq!(lines.next().unwrap().unwrap(), "run 5 1 false");
    }
}
