//! The notes' content, and the framing that all notes have. What the fields mean stands in the
//! room's description.

use std::time::UNIX_EPOCH;

use super::dump::{Class, Dump, Registers};
use super::layout::{MAX_REASON_BYTES, cut};

/// The owner of our own notes.
pub const NOTE_OWNER: &str = "RPROCD";
/// Was the dump finished? The first note of all.
pub const NOTE_STATE: u32 = 0x5250_0001;
/// Which core, incarnation, time.
pub const NOTE_CORE: u32 = 0x5250_0002;
/// Why.
pub const NOTE_REASON: u32 = 0x5250_0003;
/// Which firmware.
pub const NOTE_FIRMWARE: u32 = 0x5250_0004;
/// One segment.
pub const NOTE_SEGMENT: u32 = 0x5250_0005;

const NT_PRSTATUS: u32 = 1;
const VERSION: u32 = 1;

/// Bytes of the state note's descriptor.
pub(super) const STATE_LEN: u64 = 32;
/// Where in a segment note's descriptor the number of unreadable bytes is.
pub(super) const SEGMENT_UNREADABLE: u64 = 24;
pub(super) const FLAG_LEFT_OUT: u32 = 1 << 0;
pub(super) const FLAG_CUSTOM: u32 = 1 << 1;

/// What the state note says.
#[derive(Clone, Copy, Default)]
pub(super) struct State {
    pub finished: bool,
    /// Bytes of the file that hold what they should.
    pub end: u64,
    pub unreadable: u64,
    pub left_out: u32,
}

impl State {
    /// The descriptor.
    pub fn bytes(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(u32::from(self.finished).to_le_bytes());
        bytes.extend(self.end.to_le_bytes());
        bytes.extend(self.unreadable.to_le_bytes());
        bytes.extend(self.left_out.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        debug_assert_eq!(bytes.len() as u64, STATE_LEN);
        bytes
    }
}

/// What a segment note says before anything of the segment was read.
pub(super) struct SegmentNote<'a> {
    pub da: u64,
    pub len: u64,
    pub offset: u64,
    pub flags: u32,
    pub name: &'a str,
}

impl SegmentNote<'_> {
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for value in [self.da, self.len, self.offset, 0] {
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(self.name.as_bytes());
        bytes
    }
}

/// Adds a note to `notes`, which begins on a multiple of 4; returns where its descriptor begins.
#[expect(
    clippy::cast_possible_truncation,
    reason = "owners and descriptors are made here and bounded to some KiB"
)]
pub(super) fn add(notes: &mut Vec<u8>, owner: &str, kind: u32, descriptor: &[u8]) -> usize {
    notes.extend((owner.len() as u32 + 1).to_le_bytes());
    notes.extend((descriptor.len() as u32).to_le_bytes());
    notes.extend(kind.to_le_bytes());
    notes.extend(owner.as_bytes());
    notes.push(0);
    pad(notes);
    let begin = notes.len();
    notes.extend(descriptor);
    pad(notes);
    begin
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// All notes but those on segments; the state's descriptor begins at the offset returned.
pub(super) fn general(core: &str, dump: &Dump<'_>, state: State) -> (Vec<u8>, usize) {
    let mut notes = Vec::new();
    let state_at = add(&mut notes, NOTE_OWNER, NOTE_STATE, &state.bytes());
    if let Some(registers) = &dump.registers {
        let status = prstatus(dump.class, registers, dump.incarnation);
        add(&mut notes, "CORE", NT_PRSTATUS, &status);
    }

    let seconds = dump
        .time
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    let mut about = Vec::new();
    about.extend(dump.incarnation.to_le_bytes());
    about.extend(0u32.to_le_bytes());
    about.extend(seconds.to_le_bytes());
    about.extend(core.as_bytes());
    add(&mut notes, NOTE_OWNER, NOTE_CORE, &about);

    let reason = cut(dump.reason, MAX_REASON_BYTES);
    add(&mut notes, NOTE_OWNER, NOTE_REASON, reason.as_bytes());

    if let Some(firmware) = dump.firmware {
        let mut about = firmware.sha256.to_vec();
        about.extend(cut(firmware.name, MAX_REASON_BYTES).as_bytes());
        add(&mut notes, NOTE_OWNER, NOTE_FIRMWARE, &about);
    }
    (notes, state_at)
}

/// `struct elf_prstatus` (`linux/elfcore.h`) of the class; only signal, process and registers are
/// anything but 0.
fn prstatus(class: Class, registers: &Registers, incarnation: u32) -> Vec<u8> {
    let (process, first, width) = match class {
        Class::Elf32 => (24, 72, 4),
        Class::Elf64 => (32, 112, 8),
    };
    let mut bytes = vec![0; first];
    bytes[12..14].copy_from_slice(&registers.signal.to_le_bytes());
    // Debuggers take a process 0 for none.
    bytes[process..process + 4].copy_from_slice(&incarnation.max(1).to_le_bytes());
    for value in &registers.values {
        bytes.extend(&value.to_le_bytes()[..width]);
    }
    // `pr_fpvalid`, with what pads it.
    bytes.resize(bytes.len() + width, 0);
    bytes
}
