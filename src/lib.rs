//! rprocd.

pub mod engine;
pub mod memory;
