//! The firmware's terminal: a line that echoes, and a reader that blocks until there is nobody more.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, Receiver};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use rustix::io::{Errno, read};

use super::{Counts, LIMIT, node, wait_for};
use crate::tty::{echoes, open_raw, type_in};

/// Lines typed before each death, not waiting for their echo.
const LOAD: usize = 10;

/// The open terminal.
pub struct Terminal {
    path: String,
    inode: u64,
    fd: OwnedFd,
    reader: Option<Receiver<Ended>>,
}

/// What the reader's last read said, and the lines that came before.
struct Ended {
    how: Result<usize, Errno>,
    lines: u64,
}

impl Terminal {
    /// Opens it and sees that it echoes. Not the one with the inode `gone`: Linux hangs a terminal
    /// up before it removes the node, and reads of one that is opened in between would never end.
    pub fn take(gone: Option<u64>, counts: &mut Counts) -> Result<Self> {
        let (path, inode) = wait_for("new /dev/ttyRPMSGN", || {
            Ok(node("ttyRPMSG")?.filter(|(_, inode)| Some(*inode) != gone))
        })?;
        let fd = open_raw(&path)?;
        counts.sent += 1;
        let text = "a line";
        let seen = echoes(&fd, text)?;
        ensure!(
            seen.ok,
            "{path}: {text:?} was typed, {:?} came back",
            String::from_utf8_lossy(&seen.bytes)
        );
        counts.answered += 1;
        Ok(Self {
            path,
            inode,
            fd,
            reader: None,
        })
    }

    /// Tells it from one that gets the same name.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Types lines, and has their echo read by somebody who then blocks.
    pub fn load(&mut self, counts: &mut Counts) -> Result<()> {
        for number in 0..LOAD {
            // Raw mode hands a line over in one piece: it is one message.
            type_in(&self.fd, &format!("line {number}\n"))?;
            counts.sent += 1;
        }
        let fd = self.fd.try_clone().context("cannot share the terminal")?;
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || sender.send(read_to_the_end(&fd)));
        self.reader = Some(receiver);
        Ok(())
    }

    /// The reader must have ended, or end soon.
    pub fn hear_the_end(&mut self, counts: &mut Counts) -> Result<()> {
        let path = &self.path;
        let reader = self.reader.take().context("nobody reads the terminal")?;
        let Ok(Ended { how, lines }) = reader.recv_timeout(LIMIT) else {
            bail!(
                "{path}: a read still hangs {} s after the core's death",
                LIMIT.as_secs()
            )
        };
        counts.answered += lines;
        match how {
            // A terminal that was hung up is at its end.
            Ok(_) | Err(Errno::IO) => Ok(()),
            Err(error) => bail!("{path}: a read ended with {error} instead of EIO or nothing"),
        }
    }
}

fn read_to_the_end(fd: &OwnedFd) -> Ended {
    let mut lines = 0;
    let mut bytes = [0; 512];
    loop {
        match read(fd, &mut bytes) {
            Ok(length @ 1..) => {
                let ends = bytes[..length].iter().filter(|byte| **byte == b'\n');
                lines += ends.count() as u64;
            }
            Err(Errno::INTR) => {}
            how => return Ended { how, lines },
        }
    }
}
