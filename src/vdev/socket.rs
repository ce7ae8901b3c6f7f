//! Sockets to listen on: made here, or passed by whoever started the process.
//!
//! What belongs here: where they come from, who may connect, and what is left of them. What does
//! not: what is said on them.
//!
//! This module may use `unsafe` for one thing: taking descriptors that were passed by number.
#![expect(
    unsafe_code,
    reason = "a descriptor that was passed is a number until it is taken"
)]

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};

use super::session::{Permissions, SessionError, bind};

/// A socket that somebody can connect to. Dropping it removes it, if it was made here.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    listener: UnixListener,
    passed: bool,
}

impl Socket {
    /// Makes one at `path`, for those who have the permission.
    ///
    /// # Errors
    /// [`SessionError`]; nothing is left behind.
    pub fn bind(path: &Path, permissions: &Permissions) -> Result<Self, SessionError> {
        Ok(Self {
            path: path.to_owned(),
            listener: bind(path, permissions)?,
            passed: false,
        })
    }

    /// Takes one that was passed. It is whose it was: its mode is not changed, and it stays.
    ///
    /// # Errors
    /// [`SessionError::Passed`] if it is no Unix stream socket that listens.
    pub fn from_passed(socket: OwnedFd) -> Result<Self, SessionError> {
        let refused = |reason: String| SessionError::Passed { reason };
        let look = |cause: rustix::io::Errno| refused(format!("it is no socket: {cause}"));
        if socket_domain(&socket).map_err(look)? != AddressFamily::UNIX
            || socket_type(&socket).map_err(look)? != SocketType::STREAM
        {
            return Err(refused("it is no Unix stream socket".to_owned()));
        }
        if !socket_acceptconn(&socket).map_err(look)? {
            return Err(refused("nobody listens on it".to_owned()));
        }
        fcntl_setfd(&socket, FdFlags::CLOEXEC).map_err(look)?;
        let listener = UnixListener::from(socket);
        let address = listener.local_addr().ok();
        let path = address.and_then(|it| it.as_pathname().map(Path::to_owned));
        // It may be blocking or not; whoever uses it says so again.
        Ok(Self {
            path: path.unwrap_or_default(),
            listener,
            passed: true,
        })
    }

    /// Takes descriptor `number`, which nobody else in this process may have.
    ///
    /// # Errors
    /// As [`Socket::from_passed`].
    pub fn from_number(number: RawFd) -> Result<Self, SessionError> {
        Self::from_passed(take(number)?)
    }

    /// Where it is; empty if a socket that was passed has no path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same socket, for a thread of its own.
    ///
    /// # Errors
    /// What the host says when it has no descriptor left.
    pub fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.passed {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Takes a descriptor that was passed by its number.
fn take(number: RawFd) -> Result<OwnedFd, SessionError> {
    // Whether there is such a descriptor is asked by way of its name: nothing is taken by that.
    if fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_err() {
        return Err(SessionError::Passed {
            reason: format!("there is no descriptor {number}"),
        });
    }
    // SAFETY: it is open, as was just seen. It is owned by nobody else: who started the process
    // passed it by its number, and each number is taken once, at the start.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// What the name of a core's memory begins with, where systemd keeps it.
pub const MEMORY_NAME: &str = "ram-";

/// Descriptors that were passed, until each is asked for: sockets by their paths, memory that a
/// process before this one left behind by its core's name.
#[derive(Default, Debug)]
pub struct Passed {
    sockets: Vec<Socket>,
    memories: Vec<(String, OwnedFd)>,
}

impl Passed {
    /// Those that systemd passes (`sd_listen_fds(3)`). To be called once.
    ///
    /// # Errors
    /// [`SessionError::Passed`] if one is no Unix stream socket that listens.
    pub fn from_systemd() -> Result<Self, SessionError> {
        let passed = sd_notify::listen_fds_with_names().map_err(|cause| SessionError::Passed {
            reason: format!("what systemd says of them is not understood: {cause}"),
        })?;
        let mut found = Self::default();
        for (number, name) in passed {
            match name.strip_prefix(MEMORY_NAME) {
                Some(core) => found.memories.push((core.to_owned(), take(number)?)),
                None => found.sockets.push(Socket::from_number(number)?),
            }
        }
        Ok(found)
    }

    /// The memory that a process before this one left behind for a core.
    pub fn take_memory(&mut self, core: &str) -> Option<OwnedFd> {
        let place = self.memories.iter().position(|(name, _)| name == core)?;
        Some(self.memories.swap_remove(place).1)
    }

    /// The socket that was passed for `path`, or one that is made there.
    ///
    /// # Errors
    /// As [`Socket::bind`].
    pub fn take_or_bind(
        &mut self,
        path: &Path,
        permissions: &Permissions,
    ) -> Result<Socket, SessionError> {
        // The configuration may say it in another way.
        let same = |other: &Path| {
            other == path
                || matches!(
                    (fs::canonicalize(other), fs::canonicalize(path)),
                    (Ok(other), Ok(path)) if other == path
                )
        };
        match self.sockets.iter().position(|socket| same(&socket.path)) {
            Some(place) => Ok(self.sockets.swap_remove(place)),
            None => Socket::bind(path, permissions),
        }
    }

    /// The paths that nobody has asked for.
    pub fn left(&self) -> impl Iterator<Item = &Path> {
        self.sockets.iter().map(Socket::path)
    }
}
