//! rprocd owns remote cores and serves them to guest VMs over vhost-user.
//!
//! ```text
//!    guest VM                        rprocd, on the host                        remote core
//!  virtio_rpmsg_bus   vhost-user   vdev ─── relay ─── driver ring    carveouts    firmware
//!   rings in guest  ◄────────────► guest    copies    in carveout  ◄────────────► (ELF)
//!   memory            kick / call   ring    one hop   memory         notify ids
//!                                     │
//!                                 lifecycle (rproc) ── control socket ── rprocctl
//! ```
//!
//! Two parties that trust nobody meet in the relay. The guest cannot reach the core's memory, the
//! firmware cannot reach the guest's: each message is copied once, judged on the way, and counted.
//!
//! | room | what it is for |
//! |---|---|
//! | [`config`] | raw TOML, then a checked configuration |
//! | [`prepare`] | what the host has of what the configuration names; cores that can be started |
//! | [`firmware`] | what an image says: ELF, resource table; pure, nothing acted on |
//! | [`memory`] | device addresses become bytes: RAM, carveouts |
//! | [`engine`] | what runs a firmware: the `Engine` trait, and one folder a kind |
//! | [`rproc`] | the lifecycle of a core, and who drives it |
//! | [`coredump`] | what is kept of a core that died: ELF core files |
//! | [`vdev`] | one firmware vdev, one vhost-user socket: both sides' rings and the relay |
//! | [`control`] | the operator's socket |
//! | [`metrics`] | what the cores have done, as Prometheus reads it |
//! | [`sysfs`] | the cores as files, for scripts that know Linux's remoteproc |
//! | [`report`] | how errors and firmware's words become text for people |
//!
//! Words: a *core* is a remote processor, its *engine* is what executes it. A *firmware* (its file:
//! an *image*) runs on it, in *carveouts* of its memory, at *device addresses* (da). A *vdev* is a
//! virtio device that the firmware declares; it has *vrings*, each with a *notify id*; a *kick* is
//! a notification either way. An *incarnation* is one boot of a core, a number that only grows. A
//! *guest* is a VM, its *VMM* the process that runs it. A firmware *announces* its endpoints by
//! name service.

pub mod config;
pub mod control;
pub mod coredump;
pub mod engine;
pub mod firmware;
pub mod memory;
pub mod metrics;
pub mod prepare;
pub mod report;
pub mod rproc;
pub mod sysfs;
pub mod vdev;
