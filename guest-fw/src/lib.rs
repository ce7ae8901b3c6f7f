//! Firmware for the remote cores of rprocd, and the library it is made of.
//!
//! An image is a `main` that gets a [`Board`] and serves [`Endpoint`]s; see `src/bin/echo.rs` for
//! a whole one. It is linked with `-Tlink.x`, which this library puts on the linker's search path,
//! and a `memory.x` of its own; `examples/firmware-rust` in the repository is a package that does.
//!
//! What belongs here: everything that an image needs and that is not about what the image does, and
//! what more than one image does ([`services`]). The ring and protocol code ([`virtqueue`],
//! [`rpmsg`], [`bus`], [`table`], [`memory`], [`text`]) knows no registers and is tested on a host.
//!
//! `unsafe` is allowed where memory or the machine is touched and nowhere else: `memory`, and the
//! three places that make its spans (`table`, `trace`, `machine`); `registers`; and the assembly in
//! `start` and `misbehave`.

#![cfg_attr(target_os = "none", no_std)]

#[path = "../../src/engine/rv32/board.rs"]
pub mod board;
pub mod bus;
pub mod layout;
pub mod memory;
pub mod rpmsg;
pub mod table;
pub mod text;
pub mod virtqueue;

#[cfg(target_os = "none")]
mod fatal;
#[cfg(target_os = "none")]
mod machine;
#[cfg(target_os = "none")]
pub mod misbehave;
#[cfg(target_os = "none")]
pub mod registers;
#[cfg(target_os = "none")]
pub mod services;
#[cfg(target_os = "none")]
mod start;
#[cfg(target_os = "none")]
pub mod trace;

pub use bus::{Endpoint, Full, Message, Outbox, Payload, Service, Turn};
#[cfg(target_os = "none")]
pub use machine::Board;

/// Makes a program an image: `image!("name", main)` with a `fn main(board: Board) -> !`.
///
/// The name and the version of the calling package go to the trace.
#[macro_export]
macro_rules! image {
    ($name:literal, $main:path) => {
        #[allow(unsafe_code, reason = "the start-up code looks for this name")]
        #[unsafe(no_mangle)]
        extern "C" fn rprocd_image_main() -> ! {
            let main: fn($crate::Board) -> ! = $main;
            main($crate::Board::bring_up($name, env!("CARGO_PKG_VERSION")))
        }
    };
}
