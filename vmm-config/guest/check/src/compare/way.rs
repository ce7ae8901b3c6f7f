//! The ways from a guest to its host: opened, written to, read from.
//!
//! What is the same for all stays the same: one write for a message, a wait, and reads until
//! nothing is left or nothing more is owed. What differs is what a read gives: rpmsg one message,
//! the others a piece of a stream.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, read, write};
use vsock::{VMADDR_CID_HOST, VsockStream};

use super::samples::Samples;
use super::{IN_FLIGHT, MESSAGE};

/// So long no answer: the way is dead.
const SILENCE_LIMIT: Timespec = Timespec {
    tv_sec: 120,
    tv_nsec: 0,
};
const PORTS: &str = "/sys/class/virtio-ports";

/// One way, open.
pub struct Way {
    name: &'static str,
    fd: OwnedFd,
    /// A read gives a message, and a write takes a whole one.
    keeps_messages: bool,
    /// What was read; of it the first `filled` bytes are a message's beginning.
    input: Vec<u8>,
    filled: usize,
    /// The end of a message of which the beginning is written.
    unsent: Vec<u8>,
}

impl Way {
    fn new(name: &'static str, fd: OwnedFd, keeps_messages: bool) -> Self {
        Self {
            name,
            fd,
            keeps_messages,
            // One byte more than a message, or a message that is too long would seem whole.
            input: vec![0; (MESSAGE + 1).max(MESSAGE * IN_FLIGHT as usize)],
            filled: 0,
            unsent: Vec::new(),
        }
    }

    /// An endpoint of an rpmsg channel.
    pub fn rpmsg(device: &str) -> Result<Self> {
        Ok(Self::new("rpmsg", open_device(device)?, true))
    }

    /// A stream socket to `port` on the host.
    pub fn vsock(port: u32) -> Result<Self> {
        let stream = VsockStream::connect_with_cid_port(VMADDR_CID_HOST, port)
            .with_context(|| format!("cannot connect to vsock port {port} of the host"))?;
        stream.set_nonblocking(true)?;
        Ok(Self::new("vsock", stream.into(), false))
    }

    /// The virtio-serial port that the host calls `name`.
    pub fn serial(name: &str) -> Result<Self> {
        let ports = fs::read_dir(PORTS).with_context(|| {
            format!("cannot read {PORTS}: does the kernel have virtio_console?")
        })?;
        for port in ports.flatten() {
            let label = fs::read_to_string(port.path().join("name")).unwrap_or_default();
            if label.trim() == name {
                let device = format!("/dev/{}", port.file_name().display());
                return Ok(Self::new("serial", open_device(&device)?, false));
            }
        }
        bail!("no virtio-serial port is called {name}")
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Writes one message. False if none of it was taken: an answer must come first.
    pub fn send(&mut self, message: &[u8; MESSAGE]) -> Result<bool> {
        if !self.flush()? {
            return Ok(false);
        }
        match write(&self.fd, message) {
            Ok(MESSAGE) => Ok(true),
            Ok(length) if self.keeps_messages => {
                bail!("only {length} bytes of a message were taken")
            }
            Ok(length) => {
                self.unsent.extend_from_slice(&message[length..]);
                Ok(true)
            }
            // An rpmsg driver says NOMEM when it is out of buffers.
            Err(Errno::AGAIN | Errno::NOMEM) => Ok(false),
            Err(error) => Err(error).context("cannot send"),
        }
    }

    /// True if nothing is left of an earlier message.
    fn flush(&mut self) -> Result<bool> {
        if self.unsent.is_empty() {
            return Ok(true);
        }
        match write(&self.fd, &self.unsent) {
            Ok(length) => {
                self.unsent.drain(..length);
                Ok(self.unsent.is_empty())
            }
            Err(Errno::AGAIN) => Ok(false),
            Err(error) => Err(error).context("cannot send"),
        }
    }

    /// Waits until something can be read, or written if something is left to write.
    pub fn wait(&mut self) -> Result<()> {
        self.flush()?;
        let wanted = if self.unsent.is_empty() {
            PollFlags::IN
        } else {
            PollFlags::IN | PollFlags::OUT
        };
        loop {
            let mut fds = [PollFd::new(&self.fd, wanted)];
            match poll(&mut fds, Some(&SILENCE_LIMIT)) {
                Ok(0) => bail!("no answer for {} s", SILENCE_LIMIT.tv_sec),
                Ok(_) => {
                    let gone = !fds[0].revents().intersects(wanted);
                    ensure!(!gone, "the far side went away");
                    return Ok(());
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("poll failed"),
            }
        }
    }

    /// Reads and checks what is there.
    pub fn receive(&mut self, samples: &mut Samples) -> Result<()> {
        while samples.in_flight() > 0 {
            let length = match read(self.fd.as_fd(), &mut self.input[self.filled..]) {
                Ok(0) => bail!("the far side went away"),
                Ok(length) => length,
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error).context("cannot receive"),
            };
            if self.keeps_messages {
                samples.check(&self.input[..length])?;
                continue;
            }
            let end = self.filled + length;
            let whole = end - end % MESSAGE;
            for message in self.input[..whole].chunks_exact(MESSAGE) {
                samples.check(message)?;
            }
            self.input.copy_within(whole..end, 0);
            self.filled = end - whole;
        }
        Ok(())
    }
}

fn open_device(path: &str) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).with_context(|| format!("cannot open {path}"))
}
