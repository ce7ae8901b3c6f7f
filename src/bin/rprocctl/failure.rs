//! Why there is no result.
//!
//! What belongs here: a sentence with an exit status, as text and as JSON. What does not: deciding
//! that something has failed.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::arguments::STATUSES;
use rprocd::control::client::CallError;

/// It was not possible.
pub const FAILED: u8 = 1;
/// What was said makes no sense.
pub const USAGE: u8 = 2;
/// There is no such core.
pub const NO_SUCH_CORE: u8 = 3;
/// rprocd does not do it.
pub const REFUSED: u8 = 4;
/// Nobody answers.
pub const UNREACHABLE: u8 = 5;
/// Not for this user.
pub const DENIED: u8 = 6;
/// It took too long.
pub const TIMED_OUT: u8 = 7;
/// There was nothing to do.
pub const ALREADY_SO: u8 = 8;
/// rprocd ended while it was followed.
pub const ENDED: u8 = 9;

/// A sentence and an exit status.
#[derive(Clone, Debug)]
pub struct Failure {
    /// One of [`STATUSES`].
    pub status: u8,
    /// The sentence.
    pub text: String,
    /// Which rprocd it is about.
    pub socket: Option<PathBuf>,
    /// The core that is not there.
    pub unknown_core: Option<String>,
}

/// A result, or why there is none.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// It is about no rprocd in particular.
    pub fn new(status: u8, text: impl Into<String>) -> Self {
        Self {
            status,
            text: text.into(),
            socket: None,
            unknown_core: None,
        }
    }

    /// It is about the rprocd at this socket.
    #[must_use]
    pub fn at(mut self, socket: &Path) -> Self {
        self.socket = Some(socket.to_owned());
        self
    }

    /// Tells it: a line for people, or an object for programs.
    pub fn tell(&self, json: bool) {
        let Self {
            status,
            text,
            socket,
            ..
        } = self;
        if !json {
            eprintln!("rprocctl: {text}");
            return;
        }
        let kind = STATUSES.iter().find(|(it, ..)| it == status);
        let kind = kind.map_or("failed", |(_, word, _)| word);
        let mut error = json!({ "status": status, "kind": kind, "message": text });
        if let Some(socket) = socket {
            error["socket"] = json!(socket);
        }
        eprintln!("{}", json!({ "error": error }));
    }
}

impl From<CallError> for Failure {
    fn from(cause: CallError) -> Self {
        let status = match &cause {
            CallError::NoSuchCore(_) => NO_SUCH_CORE,
            CallError::Refused(_) => REFUSED,
            CallError::AlreadySo(_) => ALREADY_SO,
            CallError::Unreachable { .. } => UNREACHABLE,
            CallError::Denied(_) => DENIED,
            CallError::TimedOut { .. } => TIMED_OUT,
            _ => FAILED,
        };
        let mut failure = Self::new(status, cause.to_string());
        if let CallError::NoSuchCore(core) = cause {
            failure.unknown_core = Some(core);
        }
        failure
    }
}
