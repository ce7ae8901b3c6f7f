//! The other end of the socket: a VMM and a guest driver in this process.
//!
//! What belongs here: everything that plays QEMU (or cloud-hypervisor, or crosvm) and a Linux
//! `virtio_rpmsg_bus` towards a vhost-user socket, the reference device that this harness is held
//! against, and the tests that need both ends. The benchmarks include this folder as well, so what
//! is not a test may not depend on the test harness. What does not belong here: knowledge of how
//! rprocd works inside; all that may be known is the protocol, the configuration file and the
//! command line.

// The benchmarks and the hostile tests use parts that the tests of this folder do not.
#![allow(dead_code)]

pub mod driver;
pub mod echo_device;
pub mod exchange;
pub mod process;
pub mod ram;
pub mod rpmsg;
pub mod vmm;

#[cfg(test)]
mod harness;
#[cfg(test)]
mod rprocd;
