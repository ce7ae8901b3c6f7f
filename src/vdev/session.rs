//! Guests come and go: one listener that stays, one connection at a time.
//!
//! What belongs here: accepting, serving, listening again, and the end of a connection. What does
//! not: what is said on it.
//!
//! This module may use `unsafe` for one thing: closing descriptors that vhost-user-backend forgets.
#![expect(
    unsafe_code,
    reason = "closes descriptors that a crate has let go of as raw numbers"
)]

use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use log::{error, info, warn};
use nix::unistd::Group;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{Gid, Mode, chmod, chown};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, listen, socket_with};
use thiserror::Error;
use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::{Error as BackendError, ShutdownHandle, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use super::backend::{Backend, GuestFace};
use super::socket::Socket;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Why a vdev cannot be served.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SessionError {
    /// Another process listens on the path.
    #[error(
        "{} is in use: another process listens on it; stop that one, or choose another path",
        path.display()
    )]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// There is something at the path that is no socket.
    #[error("{} exists and is no socket; remove it, or choose another path", path.display())]
    NoSocket {
        /// The socket's path.
        path: PathBuf,
    },
    /// Its group does not exist.
    #[error("{} cannot be given to group {group:?}: there is none of that name", path.display())]
    NoGroup {
        /// The socket's path.
        path: PathBuf,
        /// The name.
        group: String,
    },
    /// The socket cannot be given the group or the mode that it is to have.
    #[error(
        "{} cannot be given its group and mode; a process that is not root can give its own \
         groups only",
        path.display()
    )]
    Permissions {
        /// The socket's path.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// A socket that was passed cannot be used.
    #[error("a socket that was passed cannot be used: {reason}")]
    Passed {
        /// Why not.
        reason: String,
    },
    /// The socket cannot be made.
    #[error("cannot listen on {}", path.display())]
    Bind {
        /// The socket's path.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The thread cannot be made.
    #[error("cannot start a thread for {}", path.display())]
    Thread {
        /// The socket's path.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

/// Who may connect to a socket: whoever may write to it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Permissions {
    /// The name of the group that it belongs to; without one, that of the process.
    pub group: Option<String>,
    /// Its mode, as in `chmod`; without one, what the process's umask leaves.
    pub mode: Option<u32>,
}

impl Permissions {
    fn give(&self, path: &Path) -> Result<(), SessionError> {
        let refused = |source| SessionError::Permissions {
            path: path.to_owned(),
            source,
        };
        if let Some(name) = &self.group {
            let group = Group::from_name(name).map_err(|cause| refused(cause.into()))?;
            let group = group.ok_or_else(|| SessionError::NoGroup {
                path: path.to_owned(),
                group: name.clone(),
            })?;
            let group = Gid::from_raw(group.gid.as_raw());
            chown(path, None, Some(group)).map_err(|cause| refused(cause.into()))?;
        }
        if let Some(mode) = self.mode {
            let mode = Mode::from_raw_mode(mode);
            chmod(path, mode).map_err(|cause| refused(cause.into()))?;
        }
        Ok(())
    }
}

/// Listens on a Unix socket at `path`, in place of one that nobody listens on any more.
///
/// # Errors
/// [`SessionError`]; nothing is left behind.
pub fn bind(path: &Path, permissions: &Permissions) -> Result<UnixListener, SessionError> {
    if let Ok(found) = fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(SessionError::NoSocket {
                path: path.to_owned(),
            });
        }
        if UnixStream::connect(path).is_ok() {
            return Err(SessionError::InUse {
                path: path.to_owned(),
            });
        }
        // Left behind by a process that was killed.
        let _ = fs::remove_file(path);
    }
    let failed = |cause: Errno| SessionError::Bind {
        path: path.to_owned(),
        source: cause.into(),
    };
    let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None).map_err(failed)?;
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    rustix::net::bind(&socket, &address).map_err(failed)?;
    // Nobody can connect before it listens, so nobody gets in before the permissions are right.
    let listening = permissions
        .give(path)
        .and_then(|()| listen(&socket, BACKLOG).map_err(failed));
    if let Err(cause) = listening {
        let _ = fs::remove_file(path);
        return Err(cause);
    }
    Ok(socket.into())
}

/// A vdev that is being served on a socket. Dropping it ends the connection, if there is one,
/// and removes the socket.
pub struct Listening {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    socket: Socket,
    ending: AtomicBool,
    /// Readable when it ends. The socket itself cannot wake who waits for a connection: one that was
    /// passed has to stay as it is for others, and its path may be gone.
    end: OwnedFd,
    session: Mutex<Option<ShutdownHandle>>,
}

impl Shared {
    fn new(socket: Socket) -> io::Result<Self> {
        Ok(Self {
            socket,
            ending: AtomicBool::new(false),
            end: eventfd(0, EventfdFlags::CLOEXEC)?,
            session: Mutex::default(),
        })
    }

    /// Waits until somebody connects, or until it ends: then false.
    fn wait_for_connection(&self) -> bool {
        while !self.ending.load(Ordering::SeqCst) {
            let mut fds = [
                PollFd::new(&self.socket, PollFlags::IN),
                PollFd::new(&self.end, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) if fds[0].revents().is_empty() => {}
                // Whatever is wrong with the listener, accepting says it.
                _ => return !self.ending.load(Ordering::SeqCst),
            }
        }
        false
    }
}

impl Listening {
    /// Listens on `path`, for those who have the permission, and serves `face` to one guest after
    /// the other, on threads of its own.
    ///
    /// # Errors
    /// [`SessionError`]; nothing is left behind.
    pub fn start(
        path: &Path,
        permissions: &Permissions,
        face: Arc<dyn GuestFace>,
    ) -> Result<Self, SessionError> {
        Self::on(Socket::bind(path, permissions)?, face)
    }

    /// The same on a socket that is there.
    ///
    /// # Errors
    /// [`SessionError::Thread`].
    pub fn on(socket: Socket, face: Arc<dyn GuestFace>) -> Result<Self, SessionError> {
        let path = socket.path().to_owned();
        let start = || {
            let accepting = socket.listener()?;
            accepting.set_nonblocking(false)?;
            let shared = Arc::new(Shared::new(socket)?);
            let thread = thread::Builder::new().name(face.label().to_owned());
            let serving = shared.clone();
            let thread = thread.spawn(move || serve(accepting, &face, &serving))?;
            Ok(Self {
                shared,
                thread: Some(thread),
            })
        };
        start().map_err(|source| SessionError::Thread { path, source })
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::SeqCst);
        // Wakes the thread whether it waits for a connection or for the end of one.
        if let Err(errno) = rustix::io::write(&self.shared.end, &1u64.to_ne_bytes()) {
            error!(
                "{}: cannot be ended: {errno}",
                self.shared.socket.path().display()
            );
        }
        if let Some(session) = &*self
            .shared
            .session
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
        {
            session.shutdown();
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!(
                "{}: the thread that served it has panicked",
                self.shared.socket.path().display()
            );
        }
    }
}

fn serve(listener: UnixListener, face: &Arc<dyn GuestFace>, shared: &Shared) {
    let mut listener = Listener::from(listener);
    while shared.wait_for_connection() {
        let backend = Arc::new(Backend::new(face.clone()));
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::<()>::new());
        let daemon = VhostUserDaemon::new(face.label().to_owned(), backend.clone(), memory);
        let ended = daemon.and_then(|mut daemon| {
            daemon.start(&mut listener)?;
            info!("{}: a VMM has connected", face.label());
            {
                let mut session = shared
                    .session
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                *session = daemon.shutdown_handle();
            }
            if shared.ending.load(Ordering::SeqCst) {
                daemon.request_shutdown();
            }
            let ended = daemon.wait();
            *shared
                .session
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = None;
            // Joins the workers: none can attach a queue any more.
            drop(daemon);
            face.gone();
            ended
        });
        for descriptor in backend.take_exit_descriptors() {
            // SAFETY: `from_raw_fd` wants an open descriptor that nobody else owns or will close.
            // - Open, and owned by nobody: the crate turned its owner into this number with
            //   `into_raw_fd` when the session was made and has no code that closes it.
            // - Not used any more: its only user, the worker's epoll, is gone since the daemon
            //   was dropped, which joins the worker (or was never made).
            drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
        }
        match ended {
            _ if shared.ending.load(Ordering::SeqCst) => break,
            Ok(())
            | Err(BackendError::HandleRequest(
                VhostUserError::Disconnected | VhostUserError::PartialMessage,
            )) => info!("{}: the VMM has disconnected", face.label()),
            Err(BackendError::HandleRequest(error)) => {
                warn!("{}: the connection was ended: {error}", face.label());
            }
            Err(error) => {
                // Nothing of a guest's doing: descriptors, threads or the listener itself.
                error!(
                    "{}: cannot serve a connection, trying again: {error}",
                    face.label()
                );
                thread::sleep(std::time::Duration::from_millis(200));
            }
        }
    }
}
