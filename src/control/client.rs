//! The other end of the control socket: what `rprocctl` and `rprocfs` ask through.
//!
//! What belongs here: a connection, calls and their answers, descriptors that go with them, and
//! how each kind of failure is called. What does not: what is made of an answer.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, recvmsg, sendmsg,
    socket_with,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use thiserror::Error;

use super::MAX_CLIENTS;

/// The longest answer that is read.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// Why there is no answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CallError {
    /// Nobody answers at the socket.
    #[error("{}", unreachable(path, source))]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// It takes too long.
    #[error(
        "rprocd has not answered {method} within {patience:?}; what was asked may still happen"
    )]
    TimedOut {
        /// What was asked.
        method: String,
        /// How long it had.
        patience: Duration,
    },
    /// The connection ended in front of the answer.
    #[error(
        "rprocd hung up without an answer: it ended, or has {MAX_CLIENTS} clients already; its log \
         says which"
    )]
    HungUp,
    /// The answer is not what the interface says.
    #[error(
        "the answer to {method} is not understood: {source}; are rprocctl and rprocd of one version?"
    )]
    NotUnderstood {
        /// What was asked.
        method: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// `io.rprocd.NoSuchCore`.
    #[error("there is no core \"{0}\"; `rprocctl list` shows those that there are")]
    NoSuchCore(String),
    /// `io.rprocd.Refused`: a sentence.
    #[error("{0}")]
    Refused(String),
    /// `io.rprocd.AlreadySo`: a sentence.
    #[error("{0}")]
    AlreadySo(String),
    /// `io.rprocd.Denied`: a sentence.
    #[error("denied: {0}")]
    Denied(String),
    /// Any other error that a service may answer with.
    #[error("rprocd refuses: {name} {parameters}")]
    Other {
        /// The error's name.
        name: String,
        /// Its parameters.
        parameters: Value,
    },
}

/// One answer of perhaps several.
#[derive(Debug)]
pub struct Answer {
    /// Its parameters.
    pub parameters: Value,
    /// More answers follow.
    pub continues: bool,
    /// Descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// A connection to rprocd.
pub struct Connection {
    stream: UnixStream,
    path: PathBuf,
    patience: Option<Duration>,
    input: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Connection {
    /// Connects to the socket at `path`. Every answer may take `patience`.
    ///
    /// # Errors
    /// [`CallError::Unreachable`].
    pub fn open(path: &Path, patience: Duration) -> Result<Self, CallError> {
        let unreachable = |source| CallError::Unreachable {
            path: path.to_owned(),
            source,
        };
        let stream = connect(path, patience).map_err(|cause| match cause.kind() {
            io::ErrorKind::PermissionDenied => CallError::Denied(format!(
                "you may not connect to {}; its mode and group say who may (`mode` and `group` in \
                 section `control` of rprocd's configuration)",
                path.display()
            )),
            io::ErrorKind::WouldBlock => CallError::TimedOut {
                method: format!("at {}", path.display()),
                patience,
            },
            _ => unreachable(cause),
        })?;
        let mut connection = Self {
            stream,
            path: path.to_owned(),
            patience: None,
            input: Vec::new(),
            fds: VecDeque::new(),
        };
        connection.set_patience(Some(patience))?;
        Ok(connection)
    }

    /// How long the next answers may take; `None` is any time.
    ///
    /// # Errors
    /// [`CallError::Unreachable`] if the host refuses.
    pub fn set_patience(&mut self, patience: Option<Duration>) -> Result<(), CallError> {
        self.stream
            .set_read_timeout(patience)
            .and_then(|()| self.stream.set_write_timeout(patience))
            .map_err(|source| self.unreachable(source))?;
        self.patience = patience;
        Ok(())
    }

    fn unreachable(&self, source: io::Error) -> CallError {
        CallError::Unreachable {
            path: self.path.clone(),
            source,
        }
    }

    /// One call, one answer.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn call<T: DeserializeOwned>(
        &mut self,
        method: &str,
        parameters: &Value,
    ) -> Result<T, CallError> {
        self.send(method, parameters, false, &[])?;
        let answer = self.answer(method)?;
        read(method, answer.parameters)
    }

    /// Asks; the answers are fetched with [`Connection::answer`]. `more` wants any number of them,
    /// `fds` go with the call.
    ///
    /// # Errors
    /// [`CallError::Unreachable`], [`CallError::TimedOut`].
    pub fn send(
        &mut self,
        method: &str,
        parameters: &Value,
        more: bool,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), CallError> {
        let mut call = json!({ "method": method, "parameters": parameters });
        if more {
            call["more"] = json!(true);
        }
        let mut message = call.to_string().into_bytes();
        message.push(0);
        let mut rest = &message[..];
        if !fds.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !control.push(SendAncillaryMessage::ScmRights(fds)) {
                let cause = io::Error::other("one descriptor goes with a call, not more");
                return Err(self.unreachable(cause));
            }
            let iov = [IoSlice::new(rest)];
            let sent = sendmsg(&self.stream, &iov, &mut control, SendFlags::NOSIGNAL)
                .map_err(|cause| self.failed(method, cause.into()))?;
            rest = &rest[sent..];
        }
        self.stream
            .write_all(rest)
            .map_err(|cause| self.failed(method, cause))
    }

    /// The next answer to what was asked last.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn answer(&mut self, method: &str) -> Result<Answer, CallError> {
        let end = loop {
            if let Some(end) = self.input.iter().position(|byte| *byte == 0) {
                break end;
            }
            if self.input.len() > MAX_ANSWER_BYTES {
                return Err(CallError::HungUp);
            }
            if self.receive().map_err(|cause| self.failed(method, cause))? == 0 {
                return Err(CallError::HungUp);
            }
        };
        let message: Vec<u8> = self.input.drain(..=end).collect();
        let mut answer: Value =
            serde_json::from_slice(&message[..end]).map_err(|source| CallError::NotUnderstood {
                method: method.to_owned(),
                source,
            })?;
        let parameters = answer.get_mut("parameters").map(Value::take);
        let parameters = parameters.unwrap_or_else(|| json!({}));
        if let Some(name) = answer.get("error").and_then(Value::as_str) {
            return Err(error(name, parameters));
        }
        Ok(Answer {
            parameters,
            continues: answer["continues"] == json!(true),
            fds: self.fds.drain(..).collect(),
        })
    }

    fn receive(&mut self) -> io::Result<usize> {
        let mut bytes = [0; 16 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &self.stream,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        self.input.extend_from_slice(&bytes[..received.bytes]);
        Ok(received.bytes)
    }

    fn failed(&self, method: &str, cause: io::Error) -> CallError {
        match (cause.kind(), self.patience) {
            (io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut, Some(patience)) => {
                CallError::TimedOut {
                    method: method.to_owned(),
                    patience,
                }
            }
            (io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset, _) => CallError::HungUp,
            _ => self.unreachable(cause),
        }
    }

    /// Hangs up, and waits until rprocd has done what follows from that.
    ///
    /// # Errors
    /// [`CallError::TimedOut`], [`CallError::Unreachable`].
    pub fn end(mut self) -> Result<(), CallError> {
        self.stream
            .shutdown(Shutdown::Write)
            .map_err(|cause| self.unreachable(cause))?;
        while self
            .receive()
            .map_err(|cause| self.failed("the end of the connection", cause))?
            > 0
        {}
        Ok(())
    }
}

/// Connects, within a time: a daemon that hangs accepts nobody, and the kernel would wait for it.
fn connect(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let stream = UnixStream::from(socket);
    stream.set_write_timeout(Some(patience))?;
    rustix::net::connect(&stream, &address)?;
    Ok(stream)
}

/// Why nobody answers, and what to do.
fn unreachable(path: &Path, cause: &io::Error) -> String {
    let is_something_else = fs::metadata(path).is_ok_and(|it| !it.file_type().is_socket());
    let path = path.display();
    match cause.kind() {
        io::ErrorKind::NotFound => format!(
            "there is no socket {path}, so no rprocd that listens there; start it (`systemctl start \
             rprocd`, or `rprocd --config FILE`), or name another socket with --socket"
        ),
        _ if is_something_else => format!(
            "{path} is no socket; name the one of section `control` in rprocd's configuration with \
             --socket"
        ),
        io::ErrorKind::ConnectionRefused => format!(
            "nobody listens at {path}: the rprocd that made this socket has ended; start it again, \
             and it makes the socket anew"
        ),
        _ => format!(
            "rprocd cannot be reached at {path}: {cause}; is it running, and is this the socket of \
             its configuration?"
        ),
    }
}

/// What parameters say.
///
/// # Errors
/// [`CallError::NotUnderstood`].
pub fn read<T: DeserializeOwned>(method: &str, parameters: Value) -> Result<T, CallError> {
    serde_json::from_value(parameters).map_err(|source| CallError::NotUnderstood {
        method: method.to_owned(),
        source,
    })
}

fn error(name: &str, parameters: Value) -> CallError {
    let word = |field: &str| parameters[field].as_str().map(str::to_owned);
    match name {
        "io.rprocd.NoSuchCore" => CallError::NoSuchCore(word("core").unwrap_or_default()),
        "io.rprocd.Refused" => CallError::Refused(
            word("reason").unwrap_or_else(|| "rprocd refuses, and gives no reason".to_owned()),
        ),
        "io.rprocd.AlreadySo" => CallError::AlreadySo(
            word("reason").unwrap_or_else(|| "rprocd has nothing to do for that".to_owned()),
        ),
        "io.rprocd.Denied" => {
            CallError::Denied(word("reason").unwrap_or_else(|| "rprocd gives no reason".to_owned()))
        }
        name => CallError::Other {
            name: name.to_owned(),
            parameters,
        },
    }
}
