//! What CI runs is what a person runs.
//!
//! - [`kit`] makes what a guest VM needs: QEMU, kernel, modules, initramfs.
//! - [`vm`] runs a guest and the daemon; the demo and the VM tests both stand on it.
//! - [`pages`] and [`deb`] make what is installed beside the programs, and a package of it.
//! - [`firmware`], [`check`], [`demo`], [`guest`], [`bench`](mod@bench), [`test`](mod@test) are the commands of `cargo xtask`.

pub mod bench;
pub mod cargo;
pub mod check;
pub mod deb;
pub mod demo;
pub mod firmware;
pub mod fuzz;
pub mod guest;
pub mod instructions;
pub mod kit;
pub mod pages;
pub mod test;
pub mod tools;
pub mod vm;
