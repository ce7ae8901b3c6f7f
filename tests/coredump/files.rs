//! The files themselves: goblin and readelf read what was written.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use goblin::elf::Elf;
use goblin::elf::header::ET_CORE;
use goblin::elf::program_header::{PT_LOAD, PT_NOTE};
use goblin::elf::section_header::{SHT_NOTE, SHT_NULL, SHT_PROGBITS, SHT_STRTAB};
use rprocd::coredump::{
    Class, Dump, DumpStore, FirmwareId, Limits, MAX_SEGMENTS, Memory, NOTE_CORE, NOTE_FIRMWARE,
    NOTE_OWNER, NOTE_REASON, NOTE_SEGMENT, NOTE_STATE, Outcome, Registers, Segment, Source, Style,
    Unreadable,
};
use rprocd::memory::{DeviceAddress, Ram};
use tempfile::TempDir;
use vm_memory::Bytes;

use super::printed;

const PAGE: u64 = 4096;
const LIMITS: Limits = Limits {
    count: 8,
    bytes: 64 << 20,
};
const STYLES: [Style; 2] = [Style::ProgramHeaders, Style::Sections];
const CLASSES: [Class; 2] = [Class::Elf32, Class::Elf64];

/// Every byte tells its address, but for two pages of zeros in each sixteen, and for the addresses
/// from `holes` on, which cannot be read.
struct Pattern {
    hole: std::ops::Range<u64>,
}

const WHOLE: Pattern = Pattern { hole: 0..0 };

impl Pattern {
    fn byte(da: u64) -> u8 {
        match da / PAGE % 16 {
            3 | 4 => 0,
            _ => (da % 251) as u8 ^ (da >> 12) as u8,
        }
    }
}

impl Memory for Pattern {
    fn read(&self, da: DeviceAddress, piece: &mut [u8]) -> Result<(), Unreadable> {
        let end = da.0 + piece.len() as u64;
        if da.0 < self.hole.end && self.hole.start < end {
            return Err(Unreadable);
        }
        for (byte, at) in piece.iter_mut().zip(da.0..) {
            *byte = Pattern::byte(at);
        }
        Ok(())
    }
}

fn segment<'a>(name: &str, da: u64, len: u64, memory: &'a dyn Memory) -> Segment<'a> {
    Segment {
        name: name.to_owned(),
        da: DeviceAddress(da),
        len,
        source: Source::Memory(memory),
    }
}

fn dump(class: Class, style: Style, segments: Vec<Segment<'_>>) -> Dump<'_> {
    Dump {
        incarnation: 7,
        time: UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        reason: "watchdog: not fed in 200 ms",
        firmware: Some(FirmwareId {
            name: "dsp.elf",
            sha256: [0xab; 32],
        }),
        class,
        machine: 243,
        boot: DeviceAddress(0x8000_1234),
        registers: Some(Registers {
            signal: 6,
            values: (100..132).collect(),
        }),
        segments,
        style,
    }
}

fn save(dump: &mut Dump<'_>) -> (TempDir, Outcome) {
    let folder = tempfile::tempdir().unwrap();
    let mut store = DumpStore::open(folder.path(), "dsp", LIMITS).unwrap();
    let outcome = store.save(dump, &mut || ControlFlow::Continue(()));
    (folder, outcome)
}

fn path(outcome: &Outcome) -> PathBuf {
    match outcome {
        Outcome::Written { path, .. } | Outcome::Partial { path, .. } => path.clone(),
        other => panic!("{other}"),
    }
}

/// The notes of a dump in either style: owner, type, descriptor.
fn notes(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
    let elf = Elf::parse(bytes).unwrap();
    let found = match elf.program_headers.is_empty() {
        false => elf.iter_note_headers(bytes),
        true => elf.iter_note_sections(bytes, Some(".note.rprocd")),
    };
    found
        .unwrap()
        .map(|note| {
            let note = note.unwrap();
            let owner = note.name.trim_end_matches('\0').to_owned();
            (owner, note.n_type, note.desc.to_vec())
        })
        .collect()
}

fn of_type(notes: &[(String, u32, Vec<u8>)], kind: u32) -> Vec<Vec<u8>> {
    notes
        .iter()
        .filter(|(owner, found, _)| owner == NOTE_OWNER && *found == kind)
        .map(|(_, _, descriptor)| descriptor.clone())
        .collect()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// What the file says of segments: address, where in the file, bytes.
fn spans(bytes: &[u8]) -> Vec<(u64, u64, u64)> {
    let elf = Elf::parse(bytes).unwrap();
    let programs = elf
        .program_headers
        .iter()
        .filter(|header| header.p_type == PT_LOAD)
        .map(|header| (header.p_vaddr, header.p_offset, header.p_filesz));
    let sections = elf
        .section_headers
        .iter()
        .filter(|header| header.sh_type == SHT_PROGBITS)
        .map(|header| (header.sh_addr, header.sh_offset, header.sh_size));
    programs.chain(sections).collect()
}

fn no_complaints(file: &Path, options: &str) {
    let Some(text) = printed("readelf", &[options, file.to_str().unwrap()]) else {
        return;
    };
    for bad in ["Warning", "Error", "corrupt", "<unknown>: "] {
        assert!(!text.contains(bad), "{bad}: {text}");
    }
}

#[test]
fn each_style_and_class_holds_every_byte_at_its_address() {
    let places = [(0x8000_0000, 0x3_2001), (0x9000_0ffd, 5), (0xa000_0000, 0)];
    for style in STYLES {
        for class in CLASSES {
            let segments = places
                .iter()
                .map(|(da, len)| segment("memory", *da, *len, &WHOLE));
            let (_folder, outcome) = save(&mut dump(class, style, segments.collect()));
            let Outcome::Written { path, .. } = &outcome else {
                panic!("{outcome}");
            };
            let bytes = std::fs::read(path).unwrap();
            let found = spans(&bytes);
            assert_eq!(found.len(), places.len());
            for ((da, len), (address, offset, size)) in places.into_iter().zip(found) {
                assert_eq!((da, len), (address, size));
                assert_eq!(offset % PAGE, 0);
                let from = usize::try_from(offset).unwrap();
                let content = &bytes[from..from + usize::try_from(len).unwrap()];
                for (at, byte) in content.iter().enumerate() {
                    assert_eq!(*byte, Pattern::byte(da + at as u64), "{style:?} {at:#x}");
                }
            }
            no_complaints(path, "-aW");
        }
    }
}

#[test]
fn the_elf_header_is_that_of_linux() {
    for style in STYLES {
        for class in CLASSES {
            let segments = vec![segment("a", 0x8000_0000, 1, &WHOLE)];
            let (_folder, outcome) = save(&mut dump(class, style, segments));
            let bytes = std::fs::read(path(&outcome)).unwrap();
            let elf = Elf::parse(&bytes).unwrap();
            assert_eq!(elf.is_64, class == Class::Elf64);
            assert!(elf.little_endian);
            assert_eq!(bytes[7..16], [0; 9]);
            let header = elf.header;
            assert_eq!(
                (header.e_type, header.e_machine, header.e_version),
                (ET_CORE, 243, 1)
            );
            assert_eq!((header.e_entry, header.e_flags), (0x8000_1234, 0));
            let counts = (header.e_phnum, header.e_shnum, header.e_shstrndx);
            match style {
                Style::ProgramHeaders => {
                    assert_eq!(counts, (2, 0, 0));
                    assert_eq!(header.e_phoff, u64::from(header.e_ehsize));
                    assert_eq!(elf.program_headers[0].p_type, PT_NOTE);
                    let load = &elf.program_headers[1];
                    assert_eq!((load.p_flags, load.p_align), (7, 0));
                    assert_eq!(load.p_paddr, load.p_vaddr);
                    assert_eq!(load.p_filesz, load.p_memsz);
                }
                Style::Sections => {
                    assert_eq!(counts, (0, 4, 1));
                    assert_eq!(header.e_shoff, u64::from(header.e_ehsize));
                    let kinds: Vec<_> = elf.section_headers.iter().map(|one| one.sh_type).collect();
                    assert_eq!(kinds, [SHT_NULL, SHT_STRTAB, SHT_PROGBITS, SHT_NOTE]);
                    let names: Vec<_> = elf
                        .section_headers
                        .iter()
                        .map(|one| elf.shdr_strtab.get_at(one.sh_name).unwrap())
                        .collect();
                    assert_eq!(names, ["", "STR_TBL", "a", ".note.rprocd"]);
                    assert_eq!(elf.section_headers[2].sh_flags, 1);
                }
            }
        }
    }
}

#[test]
fn the_notes_say_who_when_why_and_what() {
    for style in STYLES {
        for class in CLASSES {
            let segments = vec![
                segment("vdev0buffer", 0x8000_0000, 0x2000, &WHOLE),
                Segment {
                    name: "engine".to_owned(),
                    da: DeviceAddress(0x1000),
                    len: 3,
                    source: Source::Custom(Box::new(|at, piece| {
                        assert_eq!(at, 0);
                        piece.copy_from_slice(b"abc");
                        Ok(())
                    })),
                },
            ];
            let (_folder, outcome) = save(&mut dump(class, style, segments));
            let bytes = std::fs::read(path(&outcome)).unwrap();
            let notes = notes(&bytes);
            let spans = spans(&bytes);

            assert_eq!(notes[0].1, NOTE_STATE);
            let state = &of_type(&notes, NOTE_STATE)[0];
            assert_eq!((u32_at(state, 0), u32_at(state, 4)), (1, 1));
            assert_eq!(u64_at(state, 8), bytes.len() as u64);
            assert_eq!((u64_at(state, 16), u32_at(state, 24)), (0, 0));

            let core = &of_type(&notes, NOTE_CORE)[0];
            assert_eq!((u32_at(core, 0), u64_at(core, 8)), (7, 1_700_000_000));
            assert_eq!(&core[16..], b"dsp");
            let reason = &of_type(&notes, NOTE_REASON)[0];
            assert_eq!(reason, b"watchdog: not fed in 200 ms");
            let firmware = &of_type(&notes, NOTE_FIRMWARE)[0];
            assert_eq!(firmware[..32], [0xab; 32]);
            assert_eq!(&firmware[32..], b"dsp.elf");

            let segments = of_type(&notes, NOTE_SEGMENT);
            for (note, (da, offset, len)) in segments.iter().zip(&spans) {
                assert_eq!(
                    (u64_at(note, 0), u64_at(note, 8), u64_at(note, 16)),
                    (*da, *len, *offset)
                );
            }
            assert_eq!(u32_at(&segments[0], 32), 0);
            assert_eq!(&segments[0][40..], b"vdev0buffer");
            assert_eq!(u32_at(&segments[1], 32), 2);
            let at = usize::try_from(spans[1].1).unwrap();
            assert_eq!(&bytes[at..at + 3], b"abc");

            let status = notes.iter().find(|note| note.0 == "CORE").unwrap();
            assert_eq!(status.1, 1);
            let (len, process, first, width) = match class {
                Class::Elf32 => (204, 24, 72, 4),
                Class::Elf64 => (376, 32, 112, 8),
            };
            assert_eq!(status.2.len(), len);
            assert_eq!(status.2[12], 6);
            assert_eq!(u32_at(&status.2, process), 7);
            for register in 0..32 {
                let value = u32_at(&status.2, first + width * register);
                assert_eq!(value as usize, 100 + register);
            }
        }
    }
}

#[test]
fn what_cannot_be_read_is_0xff_and_noted_and_its_neighbours_are_not() {
    let memory = Pattern {
        hole: 0x8001_2000..0x8001_4000,
    };
    let segments = vec![
        segment("torn", 0x8000_0000, 0x3_0000, &memory),
        Segment {
            name: "refused".to_owned(),
            da: DeviceAddress(0),
            len: 100,
            source: Source::Custom(Box::new(|_, _| Err(Unreadable))),
        },
    ];
    let (_folder, outcome) = save(&mut dump(Class::Elf32, Style::ProgramHeaders, segments));
    let Outcome::Written {
        path, unreadable, ..
    } = &outcome
    else {
        panic!("{outcome}");
    };
    assert_eq!(*unreadable, 0x2064);
    assert!(outcome.to_string().contains("8292 bytes could not be read"));
    let bytes = std::fs::read(path).unwrap();
    let notes = notes(&bytes);
    assert_eq!(u64_at(&of_type(&notes, NOTE_STATE)[0], 16), 0x2064);
    let counts: Vec<_> = of_type(&notes, NOTE_SEGMENT)
        .iter()
        .map(|note| u64_at(note, 24))
        .collect();
    assert_eq!(counts, [0x2000, 100]);
    let from = usize::try_from(spans(&bytes)[0].1).unwrap();
    for at in 0..0x3_0000 {
        let expected = match at {
            0x1_2000..0x1_4000 => 0xff,
            _ => Pattern::byte(0x8000_0000 + at as u64),
        };
        assert_eq!(bytes[from + at], expected, "{at:#x}");
    }
}

#[test]
fn four_gib_of_nearly_nothing_are_a_small_file_and_cost_no_memory() {
    let ram = Ram::new("large", DeviceAddress(0), 1 << 32).unwrap();
    let marks = [5, (1 << 31) - 1, 1 << 31, (1 << 32) - 1];
    for mark in marks {
        let slice = ram.slice(DeviceAddress(mark), 1).unwrap();
        slice.write_obj(0x5a_u8, 0).unwrap();
    }
    for class in CLASSES {
        for style in STYLES {
            let segments = vec![segment("all", 0, 1 << 32, &*ram)];
            let (_folder, outcome) = save(&mut dump(class, style, segments));
            let Outcome::Written { path, bytes, .. } = &outcome else {
                panic!("{outcome}");
            };
            let file = File::open(path).unwrap();
            let figures = file.metadata().unwrap();
            assert!(figures.len() > 1 << 32);
            assert_eq!(figures.blocks() * 512, *bytes);
            assert!(*bytes < 1 << 20, "{bytes}");
            let mut head = vec![0; 4096];
            file.read_exact_at(&mut head, 0).unwrap();
            // Two halves where one header cannot hold the size.
            let count = if class == Class::Elf32 { 2 } else { 1 };
            let numbers = Elf::parse_header(&head).unwrap();
            match style {
                Style::ProgramHeaders => assert_eq!(numbers.e_phnum, 1 + count),
                Style::Sections => assert_eq!(numbers.e_shnum, 3 + count),
            }
            let begin = figures.len() - (1 << 32);
            for mark in marks {
                let mut found = [0; 1];
                file.read_exact_at(&mut found, begin + mark).unwrap();
                assert_eq!(found, [0x5a], "{mark:#x}");
            }
            no_complaints(path, "-hlSW");
        }
    }
    // The host backs the four pages that were touched, and no others.
    assert_eq!(ram.untouched_from(DeviceAddress(PAGE), 1 << 30), 1 << 30);
}

#[test]
fn a_segment_that_the_class_cannot_express_is_left_out_and_noted() {
    let hostile = [
        (Class::Elf32, 0xffff_ffff, 2),
        (Class::Elf32, 1 << 32, 1),
        (Class::Elf32, u64::MAX, 1),
        (Class::Elf32, 0, u64::MAX),
        (Class::Elf32, 0, (1 << 32) + 1),
        (Class::Elf64, u64::MAX, 2),
        (Class::Elf64, 0, u64::MAX),
        (Class::Elf64, 1, i64::MAX as u64),
    ];
    for (class, da, len) in hostile {
        for style in STYLES {
            let segments = vec![
                segment("hostile", da, len, &WHOLE),
                segment("good", 0x8000_0000, 0x1000, &WHOLE),
            ];
            let (_folder, outcome) = save(&mut dump(class, style, segments));
            let Outcome::Partial { path, why, .. } = &outcome else {
                panic!("{class:?} {da:#x} {len:#x}: {outcome}");
            };
            assert!(why.contains("1 of its 2 segments are left out"), "{why}");
            assert!(path.to_str().unwrap().ends_with(".partial.elf"));
            let bytes = std::fs::read(path).unwrap();
            let spans = spans(&bytes);
            assert_eq!(spans.len(), 1);
            assert_eq!((spans[0].0, spans[0].2), (0x8000_0000, 0x1000));
            let notes = notes(&bytes);
            assert_eq!(u32_at(&of_type(&notes, NOTE_STATE)[0], 24), 1);
            let flags: Vec<_> = of_type(&notes, NOTE_SEGMENT)
                .iter()
                .map(|note| u32_at(note, 32))
                .collect();
            assert_eq!(flags, [1, 0]);
            no_complaints(path, "-hlSW");
        }
    }
}

#[test]
fn more_segments_than_there_may_be_are_counted() {
    for style in STYLES {
        let segments = (0..MAX_SEGMENTS as u64 + 3)
            .map(|number| segment("many", number * PAGE, 1, &WHOLE))
            .collect();
        let (_folder, outcome) = save(&mut dump(Class::Elf32, style, segments));
        let Outcome::Partial { path, .. } = &outcome else {
            panic!("{outcome}");
        };
        let bytes = std::fs::read(path).unwrap();
        assert_eq!(spans(&bytes).len(), MAX_SEGMENTS);
        assert_eq!(u32_at(&of_type(&notes(&bytes), NOTE_STATE)[0], 24), 3);
    }
}

#[test]
fn texts_of_any_length_and_content_do_no_harm() {
    let long = "\u{20ac}".repeat(100_000);
    for style in STYLES {
        let segments = vec![
            segment(&long, 0x8000_0000, 1, &WHOLE),
            segment("a\0b", 0x9000_0000, 1, &WHOLE),
            segment("", 0xa000_0000, 1, &WHOLE),
        ];
        let mut dump = dump(Class::Elf32, style, segments);
        dump.reason = &long;
        dump.registers = None;
        dump.firmware = None;
        let (_folder, outcome) = save(&mut dump);
        let path = path(&outcome);
        let bytes = std::fs::read(&path).unwrap();
        let notes = notes(&bytes);
        let reason = &of_type(&notes, NOTE_REASON)[0];
        assert_eq!(std::str::from_utf8(reason).unwrap().len(), 4095);
        let names: Vec<_> = of_type(&notes, NOTE_SEGMENT)
            .iter()
            .map(|note| std::str::from_utf8(&note[40..]).unwrap().len())
            .collect();
        assert_eq!(names, [255, 1, 0]);
        assert!(of_type(&notes, NOTE_FIRMWARE).is_empty());
        no_complaints(&path, "-hlSW");
    }
}
