//! The control socket: what an operator asks, in Varlink.
//!
//! What belongs here: framing, the methods of `io.rprocd.varlink`, and who is connected. What does
//! not: what the methods do, beyond asking a core.
//!
//! Varlink is one JSON object a message, each followed by a NUL byte: a call is
//! `{"method": NAME, "parameters": {...}}`, an answer `{"parameters": {...}}` or
//! `{"error": NAME, "parameters": {...}}` (varlink.org, "Method Call"). A call that is ended by a
//! line feed is answered by a line. A call with `"more": true` can have many answers; each but the last
//! says `"continues": true`.

mod access;
pub mod client;
mod codec;
mod server;
mod trace;
mod verbs;
mod workers;

pub use access::{Access, Class, class};
pub use codec::{Codec, CodecError, End, MAX_DEPTH, MAX_MESSAGE_BYTES, Message};
pub use server::{ControlServer, MAX_CLIENTS, MESSAGE_PATIENCE};
pub use trace::{MAX_TRACE_BYTES, TracePiece};
pub use verbs::Service;

/// The interface, as text: the contract.
pub const INTERFACE: &str = include_str!("io.rprocd.varlink");
/// The interface's name.
pub const INTERFACE_NAME: &str = "io.rprocd";
