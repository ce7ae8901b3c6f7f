//! The embedded engine.

pub mod board;
