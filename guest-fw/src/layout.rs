//! Where things are in the RAM of the core.
//!
//! Constants only, read three times: by the code, by the resource table and by `build.rs`, which
//! writes the linker script from them. Nothing else may state an address in RAM.
//!
//! The stack is lowest, so that an overflow leaves RAM at its lower end and faults, where it would
//! otherwise eat data. The trap handler has a stack of its own, above it.

use crate::board::ram;

/// The carveout that holds everything below: first byte.
pub const CARVEOUT_BASE: u32 = ram::BASE;
/// Bytes in the carveout.
pub const CARVEOUT_SIZE: u32 = 256 * 1024;

/// The stack grows down from here to [`CARVEOUT_BASE`].
pub const STACK_TOP: u32 = CARVEOUT_BASE + 32 * 1024;
/// The trap handler's stack grows down from here to [`STACK_TOP`].
pub const TRAP_STACK_TOP: u32 = STACK_TOP + 4 * 1024;

/// The trace buffer: first byte.
pub const TRACE_BASE: u32 = TRAP_STACK_TOP;
/// Bytes in the trace buffer.
pub const TRACE_SIZE: u32 = 8 * 1024;

/// Code, constants, resource table and data follow from here on.
pub const IMAGE_BASE: u32 = TRACE_BASE + TRACE_SIZE;
