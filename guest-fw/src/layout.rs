//! Where things are in the RAM of the core.
//!
//! The linker script says it: its fixed part is `link.x`, which `build.rs` writes, and the sizes
//! are the image's own choice, in its `memory.x`. Here are the linker's symbols, for the code and
//! for the resource table, so that the three cannot disagree. Nothing else may state an address in
//! RAM.
//!
//! The stack is lowest, so that an overflow leaves RAM at its lower end and faults, where it would
//! otherwise overwrite data. The trap handler has a stack of its own, above it.

#![allow(unsafe_code)]

#[cfg(target_os = "none")]
mod linked {
    /// A number that the linker fills in, as the address of a symbol.
    pub type Word = *const u8;

    unsafe extern "C" {
        static __carveout: u8;
        static __carveout_size: u8;
        static __trace: u8;
        static __trace_size: u8;
    }

    // The symbols are numbers: none is ever read.
    pub const CARVEOUT: Word = &raw const __carveout;
    pub const CARVEOUT_SIZE: Word = &raw const __carveout_size;
    pub const TRACE: Word = &raw const __trace;
    pub const TRACE_SIZE: Word = &raw const __trace_size;

    pub fn number(word: Word) -> u32 {
        word.addr() as u32
    }
}

/// A host's tests are linked without the script. They look at the table's shape, not at its places.
#[cfg(not(target_os = "none"))]
mod linked {
    pub type Word = u32;

    pub const CARVEOUT: Word = crate::board::ram::BASE;
    pub const CARVEOUT_SIZE: Word = 256 * 1024;
    pub const TRACE: Word = CARVEOUT + 36 * 1024;
    pub const TRACE_SIZE: Word = 8 * 1024;

    pub fn number(word: Word) -> u32 {
        word
    }
}

pub(crate) use linked::{CARVEOUT, CARVEOUT_SIZE, TRACE, TRACE_SIZE, Word};

/// The first byte behind the carveout that holds the whole image.
pub fn carveout_end() -> u32 {
    linked::number(CARVEOUT).wrapping_add(linked::number(CARVEOUT_SIZE))
}

/// The trace buffer: its first byte, and how many there are.
pub fn trace() -> (u32, u32) {
    (linked::number(TRACE), linked::number(TRACE_SIZE))
}
