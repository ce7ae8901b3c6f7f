//! The other end of the socket: a VMM and a guest driver in this process.
//!
//! What belongs here: everything that plays QEMU (or cloud-hypervisor, or crosvm) and a Linux
//! `virtio_rpmsg_bus` towards a vhost-user socket, and the reference device that this harness is
//! held against. The benchmarks include this folder as well, so there are no tests in it. What
//! does not belong here: knowledge of how rprocd works inside; all that may be known is the
//! protocol, the configuration file and the command line.

// Tests and benchmarks each use parts that the other does not.
#![allow(dead_code)]

pub mod bursts;
pub mod driver;
pub mod echo_device;
pub mod exchange;
pub mod process;
pub mod ram;
pub mod rpmsg;
pub mod usage;
pub mod vmm;
