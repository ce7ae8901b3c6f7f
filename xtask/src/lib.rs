//! What CI runs is what a person runs.
//!
//! - [`kit`] makes what a guest VM needs: QEMU, kernel, modules, initramfs.
//! - [`vm`] runs a guest and the daemon; the demo and the VM tests both stand on it.
//! - [`pages`], [`deb`] and [`dkms`] make what is installed beside the programs, and the packages.
//! - [`page`] reads the commands of a page of the documentation, for the test that runs them.
//! - [`firmware`], [`check`], [`demo`], [`guest`], [`bench`](mod@bench), [`fuzz`],
//!   [`test`](mod@test), [`fresh`] are the commands of `cargo xtask`; [`deny`], [`instructions`] are steps of `test`.
//! - [`tools`] gets what others make, [`limit`] and [`suite`] see to it that nothing hangs.

pub mod bench;
pub mod cargo;
pub mod check;
pub mod deb;
pub mod demo;
pub mod deny;
pub mod dkms;
pub mod firmware;
pub mod fresh;
pub mod fuzz;
pub mod guest;
pub mod instructions;
pub mod kit;
pub mod limit;
pub mod page;
pub mod pages;
pub mod suite;
pub mod test;
pub mod tools;
pub mod vm;
