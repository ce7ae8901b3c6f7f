//! What a firmware image says.
//!
//! An image is a file that somebody else made: nothing of it is believed before it is checked,
//! and nothing is acted on before all of it is checked. The way through this room is
//!
//! ```text
//! file ── Snapshot ── Image (ELF) ── ResourceTable
//!         one read     segments,      what the core wants from its host
//!                      boot address
//! ```
//!
//! What belongs here: reading the file once, and judging its bytes. What does not: memory of a
//! core, policy (which carveouts are granted), anything that changes the host. Only
//! [`Snapshot::read`] touches the outside; the rest is functions from bytes to values.
#![forbid(unsafe_code)]

mod image;
mod resource_table;
mod riscv;
mod snapshot;

pub use image::{Image, ImageError, Segment, TableSection};
pub use resource_table::{
    ADDRESS_ANY, CarveoutEntry, DevmemEntry, Entry, EntryId, EntryKind, Name, RawEntry,
    ResourceTable, TABLE_MAX_BYTES, TABLE_MAX_ENTRIES, TableError, TraceEntry, VDEV_MAX_VRINGS,
    VRING_MAX_ALIGN, VRING_MAX_NUM, VRING_MIN_ALIGN, VdevEntry, VringEntry,
};
pub use snapshot::{SNAPSHOT_MAX_BYTES, Snapshot, SnapshotError, check_name};
