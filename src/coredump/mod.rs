//! What is kept of a core that died: an ELF core file.
//!
//! What belongs here: what a dump says ([`Dump`]), how that is laid out in a file, and the folder
//! of such files with its quota ([`DumpStore`]). What does not: when a core is dumped, its states,
//! its threads; who has a dead core describes it and says where the bytes come from.
//!
//! | module | |
//! |---|---|
//! | `dump` | the description: segments, registers, reason |
//! | `layout` | headers and notes, and where in the file each segment lies |
//! | `notes` | the notes' content |
//! | `stream` | from the description to a file, piece by piece, zeros left out |
//! | `store` | the folder: names, quota, leftovers |
//!
//! # The file
//!
//! ```text
//! ELF header | program headers | notes | .. | segment 0 | .. | segment 1 | ...
//! ELF header | section headers | section names | notes | .. | segment 0 | .. | segment 1 | ...
//! ```
//!
//! The first is [`Style::ProgramHeaders`], which gdb reads: `gdb-multiarch firmware.elf core`. The
//! second is [`Style::Sections`], for tools that look a segment up by its name.
//!
//! It is the file that Linux writes (`drivers/remoteproc/remoteproc_coredump.c`): little-endian,
//! `e_type` CORE, `e_entry` the boot address, `e_flags` 0; one `PT_LOAD` for each segment in the
//! order given, address and physical address both its device address, flags 7, alignment 0; or
//! from section 2 on one writable `PROGBITS` for each segment, section 1 being the names and called
//! `STR_TBL`. A span that cannot be read is filled with 0xFF. Where it is another:
//!
//! - Notes. Linux has none, so its dumps have no registers and no reason. `PT_NOTE` is the first
//!   program header; the section `.note.rprocd` is the last section, so that the others keep their
//!   numbers.
//! - Segments begin on multiples of 4096 in the file, with holes between them, so that a page of
//!   zeros in memory is a hole in the file. Linux packs them.
//! - A segment that the ELF class cannot express is left out, and noted. Linux truncates its
//!   address and size. One of 4 GiB in an ELF32 file becomes two headers of 2 GiB.
//! - There may be unreadable pages within a segment; in Linux it is the whole piece asked for. How
//!   many bytes of a segment were unreadable is noted.
//! - Names end at the first NUL and are at most 255 bytes.
//!
//! # The notes
//!
//! `CORE`, type 1 (`NT_PRSTATUS`): the registers, where the engine knows them. In an ELF32 file
//! (ELF64 in brackets): signal u16 at 12; at 24 (32) the "process" u32, which is the incarnation;
//! from 72 (112) on the registers in the order of the machine's `gregset`, for RISC-V pc, then x1
//! to x31; then a word that is 0.
//!
//! `RPROCD`: our own, little-endian. A text fills the rest of its note, is UTF-8 and has no NUL at
//! its end. Their types begin at 0x5250_0000, because readers (gdb's among them) tell notes of core
//! files by type and ignore the owner.
//!
//! | type | at | what |
//! |---|---|---|
//! | 0x5250_0001, state; the first of all notes | 0 | u32: version of these notes, 1 |
//! | | 4 | u32: 1 if the dump was finished, 0 if not |
//! | | 8 | u64: bytes of the file that hold what they should; 0 if nobody came to note it |
//! | | 16 | u64: bytes that could not be read and are 0xFF |
//! | | 24 | u32: segments left out, for the ELF class cannot express them or there were too many |
//! | | 28 | u32: 0 |
//! | 0x5250_0002, core | 0 | u32: incarnation |
//! | | 4 | u32: 0 |
//! | | 8 | u64: when, in seconds since 1970 |
//! | | 16 | text: the core's name |
//! | 0x5250_0003, reason | 0 | text: why the core is dumped |
//! | 0x5250_0004, firmware | 0 | 32 bytes: SHA-256 of the file |
//! | | 32 | text: the file's name |
//! | 0x5250_0005, segment; one each, in order | 0 | u64: device address |
//! | | 8 | u64: bytes |
//! | | 16 | u64: where in the file they begin; 0 if left out |
//! | | 24 | u64: bytes of it that could not be read and are 0xFF |
//! | | 32 | u32: bit 0 left out, bit 1 filled by the engine and not plain memory |
//! | | 36 | u32: 0 |
//! | | 40 | text: its name |
//!
//! # A dump that was cut short
//!
//! Headers and notes are written first, and the state says "not finished" until the very end. So
//! whatever ends the writing (a full disk, a quota, the time that the caller gives), what is there
//! says truly what it is. The file then ends where the writing did, and its name ends in
//! `.partial.elf`. The headers keep the whole sizes: gdb warns that segments extend past the end of
//! the file, reads what is there, and does not take for zeros what is not. (With sizes cut to what
//! is there it would say nothing, and show what the firmware's file has at those addresses.)
#![forbid(unsafe_code)]

mod dump;
mod layout;
mod notes;
mod store;
mod stream;

pub use dump::{
    Class, Dump, Fill, FirmwareId, Memory, Mode, Registers, Segment, Source, Style, UnknownMode,
    Unreadable,
};
pub use layout::{MAX_NAME_BYTES, MAX_REASON_BYTES, MAX_SEGMENTS};
pub use notes::{NOTE_CORE, NOTE_FIRMWARE, NOTE_OWNER, NOTE_REASON, NOTE_SEGMENT, NOTE_STATE};
pub use store::{DumpStore, Limits, Outcome, StoreError, StoredDump};
pub use stream::{PIECE, within};
