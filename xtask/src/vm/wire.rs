//! A stream socket on which no read and no write waits longer than it may.
//!
//! What belongs here: bytes, lines, and deadlines. What does not: what the lines mean.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::limit;

/// The socket, and what was read of it and not asked for yet.
pub struct Wire {
    stream: UnixStream,
    read: Vec<u8>,
}

impl Wire {
    /// Connects, if that can be done at once: a peer that takes no connection must not hold us.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(false)?;
        Ok(Self::new(stream))
    }

    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            read: Vec::new(),
        }
    }

    /// Writes all of `bytes`, within `limit`.
    pub fn send(&mut self, bytes: &[u8], limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut rest = bytes;
        while !rest.is_empty() {
            self.stream.set_write_timeout(Some(left(deadline)))?;
            match self.stream.write(rest) {
                Ok(0) => bail!("the connection takes no more bytes"),
                Ok(length) => rest = &rest[length..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if !is_timeout(&error) => bail!(error),
                Err(_) if Instant::now() >= deadline => bail!(
                    "nobody reads at the other end: {} of {} bytes were taken within {}",
                    bytes.len() - rest.len(),
                    bytes.len(),
                    limit::text(limit)
                ),
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// The next line without its end, or nothing if none has come by `deadline`. What has come of it
    /// is kept.
    pub fn line(&mut self, deadline: Instant) -> Result<Option<String>> {
        loop {
            if let Some(at) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=at).collect();
                return Ok(Some(String::from_utf8_lossy(&line).trim().to_owned()));
            }
            if !self.fill(deadline)? {
                return Ok(None);
            }
        }
    }

    /// The next `length` bytes, or nothing if they have not come by `deadline`.
    pub fn bytes(&mut self, length: usize, deadline: Instant) -> Result<Option<Vec<u8>>> {
        while self.read.len() < length {
            if !self.fill(deadline)? {
                return Ok(None);
            }
        }
        Ok(Some(self.read.drain(..length).collect()))
    }

    /// Reads what is there, or waits for it; false when `deadline` was reached.
    fn fill(&mut self, deadline: Instant) -> Result<bool> {
        let mut chunk = [0; 4096];
        loop {
            self.stream.set_read_timeout(Some(left(deadline)))?;
            match self.stream.read(&mut chunk) {
                Ok(0) => bail!("the other end has closed the connection"),
                Ok(length) => {
                    self.read.extend_from_slice(&chunk[..length]);
                    return Ok(true);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if !is_timeout(&error) => bail!(error),
                Err(_) if Instant::now() >= deadline => return Ok(false),
                Err(_) => {}
            }
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// The time that is left; no time at all would mean for ever.
fn left(deadline: Instant) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    left.max(Duration::from_millis(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(50)
    }

    #[test]
    fn a_line_that_comes_in_pieces_is_kept_until_it_is_whole() {
        let (mut peer, stream) = UnixStream::pair().unwrap();
        let mut wire = Wire::new(stream);
        peer.write_all(b"one\ntw").unwrap();
        assert_eq!(wire.line(soon()).unwrap().unwrap(), "one");
        assert_eq!(wire.line(soon()).unwrap(), None);
        peer.write_all(b"o\nthree").unwrap();
        assert_eq!(wire.line(soon()).unwrap().unwrap(), "two");
        assert_eq!(wire.bytes(6, soon()).unwrap(), None);
        assert_eq!(wire.bytes(5, soon()).unwrap().unwrap(), b"three");
        drop(peer);
        let error = wire.line(soon()).unwrap_err().to_string();
        assert!(error.contains("closed"), "{error}");
    }

    #[test]
    fn a_peer_that_never_reads_holds_nobody() {
        let (_peer, stream) = UnixStream::pair().unwrap();
        let mut wire = Wire::new(stream);
        let error = wire.send(&vec![0; 64 << 20], Duration::from_millis(50));
        let error = error.unwrap_err().to_string();
        assert!(
            error.starts_with("nobody reads at the other end"),
            "{error}"
        );
    }

    #[test]
    fn a_peer_that_takes_no_connection_holds_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let address = SocketAddrUnix::new(&path).unwrap();
        let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&listener, &address).unwrap();
        rustix::net::listen(&listener, 1).unwrap();
        let mut waiting = Vec::new();
        // Until the queue of those who wait to be taken is full.
        let refused = (0..100).find_map(|_| match Wire::connect(&path) {
            Ok(wire) => {
                waiting.push(wire);
                None
            }
            Err(error) => Some(error.kind()),
        });
        assert_eq!(refused, Some(ErrorKind::WouldBlock));
    }
}
