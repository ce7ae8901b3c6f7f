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
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use log::debug;
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
        let refused = |reason: String| SessionError::Passed { reason };
        // Whether there is such a descriptor is asked by way of its name: nothing is taken by that.
        if fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_err() {
            return Err(refused(format!("there is no descriptor {number}")));
        }
        // SAFETY: it is open, as was just seen. It is owned by nobody else: who started the process
        // passed it by its number, and the caller vouches that it takes each number once.
        Self::from_passed(unsafe { OwnedFd::from_raw_fd(number) })
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

    /// Wakes whoever waits for a connection.
    pub fn wake(&self) {
        if self.passed {
            // It must stay as it is, for who comes after us.
            if UnixStream::connect(&self.path).is_err() {
                debug!("{}: cannot be woken", self.path.display());
            }
        } else if let Err(errno) =
            rustix::net::shutdown(self.listener.as_fd(), rustix::net::Shutdown::Both)
        {
            debug!(
                "{}: shutting the listener down: {errno}",
                self.path.display()
            );
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.passed {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Sockets that were passed, until each is asked for by its path.
#[derive(Default, Debug)]
pub struct Passed(Vec<Socket>);

impl Passed {
    /// Those that systemd passes (`sd_listen_fds(3)`). To be called once.
    ///
    /// # Errors
    /// [`SessionError::Passed`] if one is no Unix stream socket that listens.
    pub fn from_systemd() -> Result<Self, SessionError> {
        let numbers = sd_notify::listen_fds().map_err(|cause| SessionError::Passed {
            reason: format!("what systemd says of them is not understood: {cause}"),
        })?;
        let sockets: Result<_, _> = numbers.map(Socket::from_number).collect();
        sockets.map(Self)
    }

    /// One more.
    pub fn add(&mut self, socket: Socket) {
        self.0.push(socket);
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
        match self.0.iter().position(|socket| same(&socket.path)) {
            Some(place) => Ok(self.0.swap_remove(place)),
            None => Socket::bind(path, permissions),
        }
    }

    /// The paths that nobody has asked for.
    pub fn left(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(Socket::path)
    }
}
