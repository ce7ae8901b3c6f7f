//! The engines, through the `Engine` trait.
//!
//! What belongs here: what an engine does with firmware. What does not: the inside of its devices
//! (unit tests beside them), and images or vrings.

#![expect(
    clippy::unwrap_used,
    reason = "clippy allows it in tests, but does not count the helpers of an integration binary"
)]

pub mod asm;
mod board;
mod conformance;
mod hart;
mod hostile;
mod machine;
mod qemu;
