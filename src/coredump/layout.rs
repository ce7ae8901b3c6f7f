//! Headers and notes, and where in the file each segment lies.
//!
//! Wire format: the System V ABI's ELF (`elf.h`), always little-endian.

use super::dump::{Class, Dump, Segment, Source, Style};
use super::notes::{
    self, FLAG_CUSTOM, FLAG_LEFT_OUT, NOTE_OWNER, NOTE_SEGMENT, SEGMENT_UNREADABLE, SegmentNote,
    State,
};

/// The most segments in one dump. It keeps both styles away from ELF's extended numbering.
pub const MAX_SEGMENTS: usize = 4096;
/// The longest name of a segment.
pub const MAX_NAME_BYTES: usize = 255;
/// The longest reason, and the longest name of a firmware.
pub const MAX_REASON_BYTES: usize = 4096;

/// Segments begin on a multiple of this in the file, and holes are made of it.
pub(super) const PAGE: u64 = 4096;

const END_OF_32_BITS: u64 = 1 << 32;
/// A segment that is too long for one ELF32 header is cut into such parts.
const HALF: u64 = 1 << 31;
/// The end of the largest file that a `off_t` can address.
const END_OF_FILES: u64 = i64::MAX as u64;

const ET_CORE: u16 = 4;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const SHT_PROGBITS: u32 = 1;
const SHT_STRTAB: u32 = 3;
const SHT_NOTE: u32 = 7;
const SHF_WRITE: u64 = 1;
const NAMES_SECTION: &str = "STR_TBL";
const NOTES_SECTION: &str = ".note.rprocd";

/// A segment's place in the file.
#[derive(Debug)]
pub(super) struct Placed {
    /// Index in [`Dump::segments`].
    pub index: usize,
    /// Where its bytes begin in the file.
    pub offset: u64,
    /// Where in the file the number of its unreadable bytes is noted.
    pub unreadable_at: u64,
}

/// What the beginning of the file is, and what comes after it.
pub(super) struct Layout {
    /// The first bytes of the file: headers and notes.
    pub head: Vec<u8>,
    /// In the order of the file.
    pub placed: Vec<Placed>,
    /// Where in the file the state note's descriptor is.
    pub state_at: u64,
    /// Segments that are not in the file.
    pub left_out: u32,
    /// The file's length.
    pub len: u64,
}

/// `text` up to its first NUL and at most `limit` bytes of it.
pub(super) fn cut(text: &str, limit: usize) -> &str {
    let text = text.split('\0').next().unwrap_or_default();
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// One header for a segment or a part of one.
struct Part {
    name: usize,
    da: u64,
    offset: u64,
    len: u64,
}

/// The headers of a class being written.
struct Headers {
    class: Class,
    bytes: Vec<u8>,
}

impl Headers {
    fn half(&mut self, value: u16) {
        self.bytes.extend(value.to_le_bytes());
    }

    fn word(&mut self, value: u32) {
        self.bytes.extend(value.to_le_bytes());
    }

    /// An address, an offset or a size.
    fn wide(&mut self, value: u64) {
        match self.class {
            Class::Elf32 => self.bytes.extend(&value.to_le_bytes()[..4]),
            Class::Elf64 => self.bytes.extend(value.to_le_bytes()),
        }
    }

    fn program(&mut self, kind: u32, flags: u32, part: &Part, align: u64) {
        let memory = if kind == PT_LOAD { part.len } else { 0 };
        self.word(kind);
        if self.class == Class::Elf64 {
            self.word(flags);
        }
        for value in [part.offset, part.da, part.da, part.len, memory] {
            self.wide(value);
        }
        if self.class == Class::Elf32 {
            self.word(flags);
        }
        self.wide(align);
    }

    fn section(&mut self, kind: u32, flags: u64, part: &Part, align: u64) {
        // There is one name for each segment and all are bounded: they end within 4 GiB.
        self.word(u32::try_from(part.name).unwrap_or(0));
        self.word(kind);
        for value in [flags, part.da, part.offset, part.len] {
            self.wide(value);
        }
        self.word(0); // sh_link
        self.word(0); // sh_info
        self.wide(align);
        self.wide(0); // sh_entsize
    }
}

/// Bytes of the ELF header, of a program header, of a section header.
fn sizes(class: Class) -> (u16, u16, u16) {
    match class {
        Class::Elf32 => (52, 32, 40),
        Class::Elf64 => (64, 56, 64),
    }
}

impl Layout {
    /// Lays out a dump of the core called `core`.
    pub fn new(core: &str, dump: &Dump<'_>) -> Self {
        // Whether a segment fits depends on where it lies, and that on the number of headers. So
        // there is room for all, also for those that turn out not to fit; and the first notes are
        // made for their length alone.
        let segments = &dump.segments[..dump.segments.len().min(MAX_SEGMENTS)];
        let names = Names::new(segments);
        let notes_len = Notes::new(core, dump, &vec![None; segments.len()], 0)
            .bytes
            .len();
        let names_at = headers_len(dump, segments);
        let notes_at = match dump.style {
            Style::ProgramHeaders => names_at,
            Style::Sections => names_at + names.bytes.len(),
        }
        .next_multiple_of(4);

        let (places, len) = place(dump, segments, (notes_at + notes_len) as u64);
        let missing = dump.segments.len() - places.iter().flatten().count();
        let left_out = u32::try_from(missing).unwrap_or(u32::MAX);
        let notes = Notes::new(core, dump, &places, left_out);
        debug_assert_eq!(notes.bytes.len(), notes_len);

        let parts = parts(dump.class, segments, &places, &names);
        let note = Part {
            name: names.notes,
            da: 0,
            offset: notes_at as u64,
            len: notes_len as u64,
        };
        let table = Part {
            name: 1,
            da: 0,
            offset: names_at as u64,
            len: names.bytes.len() as u64,
        };
        let mut head = match dump.style {
            Style::ProgramHeaders => program_headers(dump, &note, &parts),
            Style::Sections => section_headers(dump, &table, &parts, &note),
        };
        head.resize(names_at, 0);
        if dump.style == Style::Sections {
            head.extend(names.bytes);
        }
        head.resize(notes_at, 0);
        head.extend(notes.bytes);

        let unreadable_at = |index: usize| notes_at + notes.segments[index];
        let placed = places
            .iter()
            .enumerate()
            .filter_map(|(index, offset)| {
                Some(Placed {
                    index,
                    offset: (*offset)?,
                    unreadable_at: unreadable_at(index) as u64 + SEGMENT_UNREADABLE,
                })
            })
            .collect();
        Self {
            head,
            placed,
            state_at: (notes_at + notes.state) as u64,
            left_out,
            len,
        }
    }
}

/// All notes, and where the descriptors that are written to later begin in them.
struct Notes {
    bytes: Vec<u8>,
    state: usize,
    segments: Vec<usize>,
}

impl Notes {
    /// `places` has where each segment begins in the file, if it does.
    fn new(core: &str, dump: &Dump<'_>, places: &[Option<u64>], left_out: u32) -> Self {
        let state = State {
            left_out,
            ..State::default()
        };
        let (mut bytes, state) = notes::general(core, dump, state);
        let mut segments = Vec::new();
        for (segment, place) in dump.segments.iter().zip(places) {
            let mut flags = 0;
            if place.is_none() {
                flags |= FLAG_LEFT_OUT;
            }
            if let Source::Custom(_) = segment.source {
                flags |= FLAG_CUSTOM;
            }
            let note = SegmentNote {
                da: segment.da.0,
                len: segment.len,
                offset: place.unwrap_or(0),
                flags,
                name: cut(&segment.name, MAX_NAME_BYTES),
            };
            let at = notes::add(&mut bytes, NOTE_OWNER, NOTE_SEGMENT, &note.bytes());
            segments.push(at);
        }
        Self {
            bytes,
            state,
            segments,
        }
    }
}

/// The content of the section of the names.
struct Names {
    bytes: Vec<u8>,
    /// Where each segment's name begins.
    segments: Vec<usize>,
    /// Where the name of the notes' section begins.
    notes: usize,
}

impl Names {
    fn new(segments: &[Segment<'_>]) -> Self {
        let mut bytes = vec![0];
        let mut add = |name: &str| {
            let at = bytes.len();
            bytes.extend(name.as_bytes());
            bytes.push(0);
            at
        };
        add(NAMES_SECTION);
        let segments = segments
            .iter()
            .map(|segment| add(cut(&segment.name, MAX_NAME_BYTES)))
            .collect();
        let notes = add(NOTES_SECTION);
        Self {
            bytes,
            segments,
            notes,
        }
    }
}

/// How many headers a segment of that length takes.
fn part_count(class: Class, len: u64) -> usize {
    if class == Class::Elf32 && len >= END_OF_32_BITS {
        2
    } else {
        1
    }
}

/// Bytes of the ELF header and of the headers behind it, were all segments to fit.
fn headers_len(dump: &Dump<'_>, segments: &[Segment<'_>]) -> usize {
    let (header, program, section) = sizes(dump.class);
    let parts: usize = segments
        .iter()
        .map(|segment| part_count(dump.class, segment.len))
        .sum();
    let more = match dump.style {
        Style::ProgramHeaders => (parts + 1) * usize::from(program),
        Style::Sections => (parts + 3) * usize::from(section),
    };
    usize::from(header) + more
}

/// Where in the file each segment begins, if the class can say so, and where the last one ends.
fn place(dump: &Dump<'_>, segments: &[Segment<'_>], begin: u64) -> (Vec<Option<u64>>, u64) {
    let mut end = begin;
    let places = segments
        .iter()
        .map(|segment| {
            let offset = end.checked_next_multiple_of(PAGE)?;
            let after = offset.checked_add(segment.len)?;
            let last_da = segment.da.0.checked_add(segment.len)?;
            let fits = match dump.class {
                // The second half of one that takes two headers needs an offset as well.
                Class::Elf32 => {
                    let halves = part_count(dump.class, segment.len) as u64 - 1;
                    last_da <= END_OF_32_BITS && offset + halves * HALF < END_OF_32_BITS
                }
                Class::Elf64 => after <= END_OF_FILES,
            };
            fits.then(|| {
                end = after;
                offset
            })
        })
        .collect();
    (places, end)
}

/// The headers that the placed segments take.
fn parts(
    class: Class,
    segments: &[Segment<'_>],
    places: &[Option<u64>],
    names: &Names,
) -> Vec<Part> {
    let mut parts = Vec::new();
    for ((segment, place), name) in segments.iter().zip(places).zip(&names.segments) {
        let Some(offset) = *place else { continue };
        let (mut done, count) = (0, part_count(class, segment.len));
        for number in 1..=count {
            let len = if number == count {
                segment.len - done
            } else {
                HALF
            };
            parts.push(Part {
                name: *name,
                da: segment.da.0 + done,
                offset: offset + done,
                len,
            });
            done += len;
        }
    }
    parts
}

/// The ELF header; its numbers of program headers and of section headers are given.
fn elf_header(dump: &Dump<'_>, programs: usize, sections: usize) -> Headers {
    let (header, program, section) = sizes(dump.class);
    let mut headers = Headers {
        class: dump.class,
        bytes: b"\x7fELF".to_vec(),
    };
    let class = match dump.class {
        Class::Elf32 => 1,
        Class::Elf64 => 2,
    };
    // Little-endian, version 1, and no particular system.
    headers.bytes.extend([class, 1, 1, 0]);
    headers.bytes.resize(16, 0);
    headers.half(ET_CORE);
    headers.half(dump.machine);
    headers.word(1);
    headers.wide(dump.boot.0);
    let offset = |count: usize| if count > 0 { u64::from(header) } else { 0 };
    headers.wide(offset(programs));
    headers.wide(offset(sections));
    headers.word(0); // e_flags
    headers.half(header);
    for (size, count) in [(program, programs), (section, sections)] {
        headers.half(if count > 0 { size } else { 0 });
        // Bounded by MAX_SEGMENTS.
        headers.half(u16::try_from(count).unwrap_or(0));
    }
    headers.half(u16::from(sections > 0)); // e_shstrndx
    headers
}

fn program_headers(dump: &Dump<'_>, notes: &Part, parts: &[Part]) -> Vec<u8> {
    let mut headers = elf_header(dump, parts.len() + 1, 0);
    headers.program(PT_NOTE, 0, notes, 4);
    for part in parts {
        headers.program(PT_LOAD, 7, part, 0);
    }
    headers.bytes
}

fn section_headers(dump: &Dump<'_>, names: &Part, parts: &[Part], notes: &Part) -> Vec<u8> {
    let mut headers = elf_header(dump, 0, parts.len() + 3);
    let (_, _, section) = sizes(dump.class);
    let first = headers.bytes.len() + usize::from(section);
    headers.bytes.resize(first, 0);
    headers.section(SHT_STRTAB, 0, names, 0);
    for part in parts {
        headers.section(SHT_PROGBITS, SHF_WRITE, part, 0);
    }
    headers.section(SHT_NOTE, 0, notes, 4);
    headers.bytes
}
