//! rprocd.

pub mod engine;
pub mod memory;
pub mod vdev;
