//! rprocd.

pub mod config;
pub mod engine;
pub mod firmware;
pub mod memory;
pub mod rproc;
pub mod vdev;
