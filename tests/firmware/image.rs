//! One test for each refusal of an image, then what holds for all.

use std::error::Error as _;

use proptest::prelude::*;
use rprocd::engine::{ImageRules, TableRule};
use rprocd::firmware::{Image, ImageError};
use rprocd::memory::DeviceAddress;

use super::elf_builder::{Elf, field, put16, put32, sample};
use super::invariants;
use super::table_builder::Table;

pub const RISCV: ImageRules = ImageRules::RV32;

fn parse(bytes: &[u8]) -> Result<Image, ImageError> {
    Image::parse(bytes, &RISCV)
}

/// The message with which an image is refused.
#[track_caller]
fn refused(bytes: &[u8]) -> String {
    parse(bytes).unwrap_err().to_string()
}

/// The sample with a change.
fn sample_with(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = sample().build();
    change(&mut bytes);
    bytes
}

fn program_word(index: usize, at: usize, value: u32) -> Vec<u8> {
    sample_with(|bytes| put32(bytes, field::program(index, at), value))
}

fn section_word(index: usize, at: usize, value: u32) -> Vec<u8> {
    sample_with(|bytes| {
        let at = field::section(bytes, index, at);
        put32(bytes, at, value);
    })
}

#[test]
fn a_good_image_gives_segments_boot_address_and_table() {
    let bytes = sample().build();
    let image = parse(&bytes).unwrap();
    invariants::image(&image, &bytes);
    assert_eq!(image.boot, DeviceAddress(0x8000_0004));
    assert_eq!(image.segments.len(), 2);
    assert_eq!(image.segments[0].da, DeviceAddress(0x8000_0000));
    assert_eq!(bytes[image.segments[0].file.clone()], [0x13; 16]);
    assert_eq!(image.segments[0].memsz, 0x100);
    let table = image.table.as_ref().unwrap();
    assert_eq!(table.da, DeviceAddress(0x8000_1000));
    assert_eq!(table.table.bytes(), Table::sample().build());
    assert!(image.table_is_loaded());
}

#[test]
fn the_description_has_one_line_for_each_fact() {
    let image = parse(&sample().build()).unwrap();
    let shown = image.to_string();
    let lines: Vec<_> = shown.lines().collect();
    assert_eq!(lines[0], "segment 0: da 0x80000000, 16 bytes of 256");
    assert_eq!(lines[2], "boot address 0x80000004");
    assert_eq!(lines[3], "resource table: da 0x80001000, 288 bytes");
    assert_eq!(lines.len(), 4 + 6);
    let none = parse(&Elf::new(0).load(0, &[0], 1).build()).unwrap();
    assert!(
        none.to_string()
            .ends_with("boot address 0x00000000\nno resource table")
    );
}

#[test]
fn an_image_without_a_table_is_accepted() {
    let bytes = Elf::new(0x100).load(0x100, &[1, 2], 8).build();
    let image = parse(&bytes).unwrap();
    assert_eq!(image.table, None);
    assert!(image.table_is_loaded());
}

#[test]
fn an_image_without_sections_is_accepted_and_has_no_table() {
    let bytes = sample_with(|bytes| {
        put32(bytes, field::E_SHOFF, 0);
        put16(bytes, field::E_SHNUM, 0);
        put16(bytes, field::E_SHSTRNDX, 0);
    });
    assert_eq!(parse(&bytes).unwrap().table, None);
}

#[test]
fn sections_without_names_have_no_table() {
    let bytes = sample_with(|bytes| put16(bytes, field::E_SHSTRNDX, 0));
    assert_eq!(parse(&bytes).unwrap().table, None);
}

#[test]
fn only_pt_load_with_bytes_in_memory_is_loaded() {
    let bytes = Elf::new(0)
        .segment(0x7000_0003, 0, &[1; 8], 0)
        .load(0x5000, &[], 0)
        .load(0, &[1], 1)
        .build();
    let image = parse(&bytes).unwrap();
    assert_eq!(image.segments.len(), 1);
    assert_eq!(image.segments[0].index, 2);
}

#[test]
fn a_segment_of_zeroes_has_no_bytes_whatever_its_offset() {
    let mut bytes = Elf::new(0).load(0, &[], 64).build();
    put32(&mut bytes, field::program(0, field::P_OFFSET), u32::MAX);
    assert!(parse(&bytes).unwrap().segments[0].file.is_empty());
}

#[test]
fn a_segment_may_end_at_4_gib() {
    let bytes = Elf::new(0xffff_ffff)
        .load(0xffff_f000, &[1], 0x1000)
        .build();
    assert!(parse(&bytes).is_ok());
}

#[test]
fn a_table_outside_of_what_is_loaded_is_noticed() {
    let bytes = Elf::new(0)
        .load(0, &[1], 1)
        .section(".resource_table", 1, 0x8000_0000, &Table::new().build())
        .build();
    let image = parse(&bytes).unwrap();
    assert!(image.table.is_some());
    assert!(!image.table_is_loaded());
}

#[test]
fn a_section_whose_name_only_begins_like_the_table_is_none() {
    let bytes = Elf::new(0)
        .load(0, &[1], 1)
        .section(".resource_table.old", 1, 0, &[0; 3])
        .section(".resource_tabl", 1, 0, &[0; 3])
        .build();
    assert_eq!(parse(&bytes).unwrap().table, None);
}

#[test]
fn an_image_cut_off_anywhere_is_refused() {
    let bytes = sample().build();
    for len in 0..bytes.len() {
        assert!(
            parse(&bytes[..len]).is_err(),
            "{len} of {} bytes",
            bytes.len()
        );
    }
}

#[test]
fn an_image_shorter_than_its_header_is_refused() {
    for len in [0, 1, 4, 51] {
        assert_eq!(
            refused(&sample().build()[..len]),
            format!("image has {len} bytes, must have at least 52")
        );
    }
}

#[test]
fn what_is_not_elf_is_refused() {
    let text = "#!/bin/sh\necho this is a script and no firmware at all\n";
    assert_eq!(
        refused(text.as_bytes()),
        "image begins with #!/b, must begin with \\x7fELF"
    );
}

#[test]
fn elf64_says_the_same_as_elf32() {
    let narrow = parse(&sample().build()).unwrap();
    let bytes = sample().wide().build();
    let wide = Image::parse(&bytes, &ImageRules::ANY).unwrap();
    invariants::image(&wide, &bytes);
    assert_eq!(wide.to_string(), narrow.to_string());
    assert_eq!(
        wide.table.unwrap().table.bytes(),
        narrow.table.unwrap().table.bytes()
    );
}

#[test]
fn an_elf64_image_cut_off_anywhere_is_refused() {
    let bytes = sample().wide().build();
    for len in 0..bytes.len() {
        assert!(
            Image::parse(&bytes[..len], &ImageRules::ANY).is_err(),
            "{len} of {} bytes",
            bytes.len()
        );
    }
    let error = Image::parse(&bytes[..63], &ImageRules::ANY).unwrap_err();
    assert_eq!(
        error.to_string(),
        "image has 63 bytes, must have at least 64"
    );
}

#[test]
fn sums_of_64_bits_that_wrap_are_refused() {
    let program = |at: usize, value: u64| {
        let mut bytes = sample().wide().build();
        bytes[64 + at..64 + at + 8].copy_from_slice(&value.to_le_bytes());
        Image::parse(&bytes, &ImageRules::ANY).unwrap_err()
    };
    // p_offset, p_paddr, p_filesz, p_memsz.
    assert!(matches!(
        program(8, u64::MAX),
        ImageError::SegmentOutside { .. }
    ));
    assert!(matches!(
        program(24, u64::MAX - 8),
        ImageError::SegmentWraps { .. }
    ));
    assert!(matches!(
        program(32, u64::MAX),
        ImageError::SegmentSize { .. }
    ));
    for memsz in [1 << 60, u64::MAX] {
        assert!(matches!(
            program(40, memsz),
            ImageError::SegmentWraps { .. }
        ));
    }
    let mut bytes = sample().wide().build();
    bytes[40..48].copy_from_slice(&u64::MAX.to_le_bytes());
    let error = Image::parse(&bytes, &ImageRules::ANY).unwrap_err();
    assert!(matches!(error, ImageError::TableOutside { .. }), "{error}");
}

#[test]
fn a_class_that_the_core_does_not_take_is_refused() {
    assert_eq!(
        refused(&sample().wide().build()),
        "image is ELF64, must be ELF32 for this core"
    );
}

#[test]
fn a_core_that_requires_a_table_refuses_an_image_without_one() {
    let rules = ImageRules {
        table: TableRule::Required,
        ..RISCV
    };
    let parse = |bytes: &[u8]| Image::parse(bytes, &rules);
    assert!(parse(&sample().build()).is_ok());
    let without = Elf::new(0).load(0, &[1], 1);
    assert_eq!(
        parse(&without.build()).unwrap_err().to_string(),
        "image has no section .resource_table, which this core requires; \
         it says what memory and devices the firmware wants"
    );
    let empty = without.section(".resource_table", 1, 0, &[]);
    assert_eq!(
        parse(&empty.build()).unwrap_err().to_string(),
        "image, section 1 (.resource_table): it has 0 bytes, and this core requires a table"
    );
}

/// What current compilers write for the engine's own `-march`.
const OWN: &str = "rv32i2p1_m2p0_a2p1_c2p0_zicsr2p0_zifencei2p0_zmmul1p0_zaamo1p0_zalrsc1p0_zca1p0";
const HARD_FLOAT: &str = "rv32i2p1_m2p0_a2p1_f2p2_d2p2_c2p0_zicsr2p0_zifencei2p0";

fn built(flags: u32, arch: &str) -> Elf {
    sample().flags(flags).attributes(arch)
}

#[test]
fn an_image_for_a_hard_float_abi_is_refused_with_what_to_build_it_with() {
    for (flags, needs) in [(0x3, "32 bits"), (0x5, "64 bits"), (0x7, "128 bits")] {
        let message = refused(&built(flags, OWN).build());
        let begin = format!("image: e_flags is {flags:#x}, so it needs floating-point numbers in");
        assert!(message.starts_with(&begin), "{message}");
        assert!(message.contains(needs), "{message}");
        assert!(
            message.ends_with("build it with -march=rv32imac_zicsr_zifencei -mabi=ilp32"),
            "{message}"
        );
    }
}

#[test]
fn an_image_built_for_extensions_that_the_core_has_not_is_refused_by_name() {
    let section = built(1, HARD_FLOAT).build();
    let index = sample_sections(&section) - 2;
    assert_eq!(
        refused(&section),
        format!(
            "image, section {index} (.riscv.attributes): Tag_RISCV_arch is \"{HARD_FLOAT}\"; this \
             core is rv32imac_zicsr_zifencei and lacks f, d; build it with \
             -march=rv32imac_zicsr_zifencei -mabi=ilp32"
        )
    );
    // Stripped of its sections.
    let mut stripped = section;
    put32(&mut stripped, field::E_SHOFF, 0);
    put16(&mut stripped, field::E_SHNUM, 0);
    put16(&mut stripped, field::E_SHSTRNDX, 0);
    let message = refused(&stripped);
    assert!(
        message.starts_with("image, segment 2 (PT_RISCV_ATTRIBUTES): "),
        "{message}"
    );
}

fn sample_sections(bytes: &[u8]) -> usize {
    usize::from(u16::from_le_bytes([
        bytes[field::E_SHNUM],
        bytes[field::E_SHNUM + 1],
    ]))
}

#[test]
fn an_image_that_needs_what_the_core_has_or_does_not_say_is_taken() {
    for image in [
        built(1, OWN),
        built(0x9, "rv32e2p0_m2p0_c2p0"),
        built(0, "rv32imac_xown1p0"),
        sample(),
        sample().section(".riscv.attributes", 0x7000_0003, 0, b""),
        sample().section(
            ".riscv.attributes",
            0x7000_0003,
            0,
            b"A\xff\xff\xff\xffriscv",
        ),
    ] {
        let bytes = image.build();
        let image = parse(&bytes).unwrap();
        invariants::image(&image, &bytes);
    }
    let odd = sample()
        .section(".riscv.attributes", 0x7000_0003, 0, b"B")
        .build();
    let notices = parse(&odd).unwrap().notices;
    assert!(
        notices
            .iter()
            .any(|it| it.contains("(.riscv.attributes) says nothing of the extensions")),
        "{notices:?}"
    );
}

#[test]
fn flags_and_attributes_are_read_for_engines_of_risc_v_only() {
    let bytes = built(5, HARD_FLOAT).build();
    Image::parse(&bytes, &ImageRules::ANY).unwrap();
    let other = built(5, HARD_FLOAT).machine(40).build();
    let rules = ImageRules {
        machine: None,
        ..RISCV
    };
    Image::parse(&other, &rules).unwrap();
}

#[test]
fn an_empty_table_is_none() {
    for kind in [1, 8] {
        let bytes = Elf::new(0)
            .load(0, &[1], 1)
            .section(".resource_table", kind, 0x8000_0000, &[])
            .build();
        assert_eq!(parse(&bytes).unwrap().table, None);
    }
}

#[test]
fn a_core_with_a_boot_address_of_its_own_begins_there() {
    let rules = ImageRules {
        boot: Some(DeviceAddress(0x1000)),
        ..RISCV
    };
    let bytes = Elf::new(0xdead).load(0x8000_0000, &[1], 1).build();
    let image = Image::parse(&bytes, &rules).unwrap();
    assert_eq!(image.boot, DeviceAddress(0x1000));
    assert_eq!(
        image.notices,
        ["e_entry is 0x0000dead, and this core begins at 0x00001000 whatever the image says"]
    );
}

#[test]
fn a_boot_address_may_be_virtual() {
    let bytes = Elf::new(8).load_from(0, 0x5000, &[1; 16], 16).build();
    let image = parse(&bytes).unwrap();
    invariants::image(&image, &bytes);
    assert_eq!(image.boot, DeviceAddress(8));
    assert_eq!(image.segments[0].da, DeviceAddress(0x5000));
    assert_eq!(
        image.notices,
        [
            "e_entry, 0x00000008, is a virtual address: no segment is loaded there; the core begins \
          at that address as it is"
        ]
    );
}

#[test]
fn a_table_by_virtual_address_is_looked_for_at_its_section() {
    let bytes = Elf::new(0x5000)
        .load(0x5000, &[1; 16], 16)
        .table_from(0x100, 0x6000, &Table::new().build())
        .build();
    let image = parse(&bytes).unwrap();
    assert_eq!(image.table.as_ref().unwrap().da, DeviceAddress(0x100));
    assert!(!image.table_is_loaded());
    assert_eq!(
        image.notices,
        [
            "the resource table's sh_addr, 0x00000100, is in segment 1 by p_vaddr, which is loaded \
          to 0x00006000: the live copy is looked for at sh_addr, as Linux does"
        ]
    );
}

#[test]
fn an_unknown_class_is_refused() {
    let bytes = sample_with(|bytes| bytes[field::EI_CLASS] = 3);
    assert_eq!(
        refused(&bytes),
        "image: EI_CLASS is 3, must be 1 (ELF32) or 2 (ELF64)"
    );
}

#[test]
fn big_endian_is_refused() {
    for data in [0, 2, 255] {
        let bytes = sample_with(|bytes| bytes[field::EI_DATA] = data);
        assert_eq!(
            refused(&bytes),
            format!("image: EI_DATA is {data}, must be 1 (little-endian)")
        );
    }
}

#[test]
fn another_elf_version_is_refused_in_both_places() {
    let bytes = sample_with(|bytes| bytes[field::EI_VERSION] = 0);
    assert_eq!(refused(&bytes), "image: EI_VERSION is 0, must be 1");
    let bytes = sample_with(|bytes| put32(bytes, field::E_VERSION, 2));
    assert_eq!(refused(&bytes), "image: e_version is 2, must be 1");
}

#[test]
fn what_is_no_program_is_refused() {
    for (kind, name) in [(0, "NONE"), (1, "REL"), (3, "DYN"), (4, "CORE")] {
        let bytes = sample_with(|bytes| put16(bytes, field::E_TYPE, kind));
        assert_eq!(
            refused(&bytes),
            format!("image: e_type is {kind} ({name}), must be 2 (EXEC)")
        );
    }
}

#[test]
fn another_machine_is_refused() {
    let bytes = sample_with(|bytes| put16(bytes, field::E_MACHINE, 40));
    assert_eq!(
        refused(&bytes),
        "image: e_machine is 40 (ARM), must be 243 (RISC-V)"
    );
}

#[test]
fn header_sizes_must_be_those_of_the_class() {
    for (name, at, needs) in [
        ("e_ehsize", field::E_EHSIZE, 52),
        ("e_phentsize", field::E_PHENTSIZE, 32),
        ("e_shentsize", field::E_SHENTSIZE, 40),
    ] {
        for size in [0, needs - 1, needs + 1, 65535] {
            let bytes = sample_with(|bytes| put16(bytes, at, size));
            assert_eq!(
                refused(&bytes),
                format!("image: {name} is {size}, must be {needs}")
            );
        }
    }
}

#[test]
fn an_image_without_program_headers_is_refused() {
    let bytes = sample_with(|bytes| put16(bytes, field::E_PHNUM, 0));
    assert_eq!(refused(&bytes), "image: e_phnum is 0, must be at least 1");
}

#[test]
fn extended_numbering_is_refused() {
    for (name, at, value, limit) in [
        ("e_phnum", field::E_PHNUM, 0xffff, "0xffff"),
        ("e_shnum", field::E_SHNUM, 0xffff, "0xff00"),
        ("e_shstrndx", field::E_SHSTRNDX, 0xffff, "0xff00"),
    ] {
        let bytes = sample_with(|bytes| put16(bytes, at, value));
        assert_eq!(
            refused(&bytes),
            format!("image: {name} is 0xffff, extended numbering, must be below {limit}")
        );
    }
}

#[test]
fn a_program_header_table_outside_the_file_is_refused() {
    let len = u32::try_from(sample().build().len()).unwrap();
    for offset in [0, 51, len - 63, len, u32::MAX] {
        let bytes = sample_with(|bytes| put32(bytes, field::E_PHOFF, offset));
        assert_eq!(
            refused(&bytes),
            format!(
                "image: the program headers are 2 times 32 bytes at offset {offset}, \
                 must lie after the ELF header and within the file's {len} bytes"
            )
        );
    }
    let bytes = sample_with(|bytes| put16(bytes, field::E_PHNUM, 0xfffe));
    assert!(refused(&bytes).contains("65534 times 32 bytes at offset 52"));
}

#[test]
fn a_section_header_table_outside_the_file_is_refused() {
    let len = u32::try_from(sample().build().len()).unwrap();
    for offset in [0, 51, len - 119, len, u32::MAX] {
        let bytes = sample_with(|bytes| put32(bytes, field::E_SHOFF, offset));
        assert_eq!(
            refused(&bytes),
            format!(
                "image: the section headers are 3 times 40 bytes at offset {offset}, \
                 must lie after the ELF header and within the file's {len} bytes"
            )
        );
    }
    let bytes = sample_with(|bytes| put16(bytes, field::E_SHNUM, 0xfeff));
    assert!(refused(&bytes).contains("65279 times 40 bytes"));
}

#[test]
fn section_headers_without_a_number_are_refused() {
    let bytes = sample_with(|bytes| put16(bytes, field::E_SHNUM, 0));
    assert!(refused(&bytes).ends_with("and e_shnum is 0, must both be 0 or neither"));
}

#[test]
fn a_section_of_names_that_does_not_exist_is_refused() {
    let bytes = sample_with(|bytes| put16(bytes, field::E_SHSTRNDX, 3));
    assert_eq!(
        refused(&bytes),
        "image: e_shstrndx is 3, must be below e_shnum, 3"
    );
}

#[test]
fn a_section_of_names_of_another_type_is_refused() {
    assert_eq!(
        refused(&section_word(2, field::SH_TYPE, 1)),
        "image, section 2: sh_type is 1, must be 3 (STRTAB) for names"
    );
}

#[test]
fn names_that_do_not_end_in_nul_are_refused() {
    let shown = refused(&section_word(2, field::SH_SIZE, 5));
    assert_eq!(
        shown,
        "image, section 2: the names are 5 bytes, must be 1 or more and end in NUL"
    );
    assert!(refused(&section_word(2, field::SH_SIZE, 0)).contains("the names are 0 bytes"));
}

#[test]
fn a_section_outside_the_file_is_refused() {
    let len = sample().build().len();
    for (at, value) in [
        (field::SH_OFFSET, u32::MAX),
        (field::SH_SIZE, u32::MAX),
        (field::SH_SIZE, u32::try_from(len).unwrap()),
    ] {
        for section in [1, 2] {
            let shown = refused(&section_word(section, at, value));
            assert!(shown.starts_with(&format!("image, section {section}: sh_offset is ")));
            assert!(shown.ends_with(&format!("must end within the file's {len} bytes")));
        }
    }
}

#[test]
fn a_section_name_past_the_names_is_refused() {
    // "", ".resource_table", ".shstrtab", each with its NUL.
    for name in [27, u32::MAX] {
        assert_eq!(
            refused(&section_word(1, field::SH_NAME, name)),
            format!("image, section 1: sh_name is {name}, must be below 27, the bytes of names")
        );
    }
}

#[test]
fn a_segment_larger_in_the_file_than_in_memory_is_refused() {
    assert_eq!(
        refused(&program_word(0, field::P_MEMSZ, 15)),
        "image, segment 0: p_filesz is 0x10, must be at most p_memsz, 0xf"
    );
    // Even one without any memory, which is not loaded.
    assert!(refused(&program_word(0, field::P_MEMSZ, 0)).contains("must be at most p_memsz, 0x0"));
}

#[test]
fn a_segment_outside_the_file_is_refused() {
    let len = u32::try_from(sample().build().len()).unwrap();
    for offset in [len - 15, len, u32::MAX] {
        assert_eq!(
            refused(&program_word(0, field::P_OFFSET, offset)),
            format!(
                "image, segment 0: p_offset is {offset} and p_filesz is 16, \
                 must end within the file's {len} bytes"
            )
        );
    }
    let bytes = sample_with(|bytes| {
        put32(bytes, field::program(0, field::P_FILESZ), u32::MAX);
        put32(bytes, field::program(0, field::P_MEMSZ), u32::MAX);
    });
    assert!(refused(&bytes).contains("p_filesz is 4294967295"));
}

#[test]
fn a_segment_past_4_gib_is_refused_without_allocating() {
    assert_eq!(
        refused(&program_word(0, field::P_MEMSZ, 0x8000_0001)),
        "image, segment 0: p_paddr is 0x80000000 and p_memsz is 0x80000001, \
         must end at most at 0x100000000"
    );
    assert!(refused(&program_word(0, field::P_PADDR, u32::MAX)).contains("p_paddr is 0xffffffff"));
}

#[test]
fn overlapping_segments_are_refused_and_adjacent_ones_are_not() {
    assert_eq!(
        refused(&program_word(0, field::P_MEMSZ, 0x1001)),
        "image, segment 1: p_paddr is 0x80001000, inside segment 0, which ends at 0x80001001"
    );
    assert!(parse(&program_word(0, field::P_MEMSZ, 0x1000)).is_ok());
    let same = Elf::new(0).load(0, &[1], 1).load(0, &[2], 1).build();
    assert!(refused(&same).starts_with("image, segment 1: p_paddr is 0x0, inside segment 0"));
}

#[test]
fn an_image_that_loads_nothing_is_refused() {
    let nothing = "image has no PT_LOAD segment with bytes in memory, must have at least one";
    assert_eq!(
        refused(&Elf::new(0).segment(4, 0, &[1], 1).build()),
        nothing
    );
    assert_eq!(refused(&Elf::new(0).load(0, &[], 0).build()), nothing);
}

#[test]
fn a_boot_address_outside_the_segments_is_refused() {
    for entry in [0, 0x7fff_ffff, 0x8000_0100, 0x8000_0fff, 0xffff_ffff] {
        let bytes = sample_with(|bytes| put32(bytes, 24, entry));
        assert_eq!(
            refused(&bytes),
            format!(
                "image: e_entry is {entry:#010x}, must be inside a loaded segment \
                 (by p_vaddr or p_paddr)"
            )
        );
    }
}

#[test]
fn two_resource_tables_are_refused() {
    let bytes = sample()
        .section(".resource_table", 1, 0, &Table::new().build())
        .build();
    assert_eq!(
        refused(&bytes),
        "image: sections 1 and 2 are both .resource_table, must be one at most"
    );
}

#[test]
fn a_table_without_bytes_in_the_file_is_refused() {
    assert_eq!(
        refused(&section_word(1, field::SH_TYPE, 8)),
        "image, section 1 (.resource_table): it has no bytes in the file (NOBITS)"
    );
}

#[test]
fn a_table_may_lie_at_any_alignment() {
    let bytes = Elf::new(0x8000_0000)
        .table(0x8000_0001, &Table::sample().build())
        .load(0x8000_0000, &[1], 1)
        .build();
    let image = parse(&bytes).unwrap();
    invariants::image(&image, &bytes);
    assert!(image.table_is_loaded());
}

#[test]
fn a_table_past_4_gib_is_refused() {
    assert_eq!(
        refused(&section_word(1, field::SH_ADDR, 0xffff_fffc)),
        "image, section 1 (.resource_table): sh_addr is 0xfffffffc and sh_size is 0x120, \
         must end at most at 0x100000000"
    );
}

#[test]
fn a_bad_table_refuses_the_image_and_is_the_source() {
    let table = Table::new().carveout(0, 0, "a").build();
    let bytes = Elf::new(0x8000_0000).table(0x8000_0000, &table).build();
    let error = parse(&bytes).unwrap_err();
    assert_eq!(
        error.to_string(),
        "image, section 1 (.resource_table): the table is refused"
    );
    assert_eq!(
        error.source().unwrap().to_string(),
        "resource table entry 0 (carveout): len is 0, must be at least 1"
    );
}

#[test]
fn many_sections_over_one_long_list_of_names_are_judged_quickly() {
    // A reader that looks for the end of each name would look at 65 GB here.
    const SECTIONS: usize = 65_000;
    let mut bytes = Elf::new(0).load(0, &[1], 1).build();
    let names = bytes.len();
    bytes.extend(std::iter::repeat_n(b'a', 1 << 20));
    bytes.push(0);
    let start = bytes.len();
    for index in 0..SECTIONS {
        let mut header = [0; 40];
        put32(&mut header, field::SH_TYPE, 3);
        put32(&mut header, field::SH_OFFSET, u32::try_from(names).unwrap());
        put32(&mut header, field::SH_SIZE, (1 << 20) + 1);
        put32(
            &mut header,
            field::SH_NAME,
            u32::try_from(index % 16).unwrap(),
        );
        bytes.extend(header);
    }
    put32(&mut bytes, field::E_SHOFF, u32::try_from(start).unwrap());
    put16(&mut bytes, field::E_SHNUM, u16::try_from(SECTIONS).unwrap());
    put16(&mut bytes, field::E_SHSTRNDX, 1);
    let before = std::time::Instant::now();
    assert_eq!(parse(&bytes).unwrap().table, None);
    // On a busy machine; each section looked at for each other one takes minutes.
    assert!(before.elapsed() < std::time::Duration::from_secs(30));
}

/// Words that are likely to be wrong in an interesting way.
fn any_word() -> impl Strategy<Value = u32> {
    prop_oneof![
        0_u32..600,
        (0_u32..32).prop_map(|bit| 1 << bit),
        (0_u32..64).prop_map(|back| u32::MAX - back),
        (0_u32..0x2000).prop_map(|offset| 0x8000_0000 + offset),
        any::<u32>(),
    ]
}

proptest! {
    #[test]
    fn random_bytes_after_the_magic_never_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 8..256),
        class in 1_u8..=2,
    ) {
        bytes[..8].copy_from_slice(b"\x7fELF\x01\x01\x01\0");
        bytes[field::EI_CLASS] = class;
        if let Ok(image) = Image::parse(&bytes, &ImageRules::ANY) {
            invariants::image(&image, &bytes);
        }
    }

    #[test]
    fn a_mutated_image_is_refused_or_holds_its_invariants(
        wide in any::<bool>(),
        words in prop::collection::vec((any::<prop::sample::Index>(), any_word()), 0..4),
        bits in prop::collection::vec(any::<prop::sample::Index>(), 1..4),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        let mut bytes = if wide { sample().wide() } else { sample() }.build();
        for (place, word) in words {
            let at = 2 * place.index(bytes.len() / 2 - 1);
            put32(&mut bytes, at, word);
        }
        for place in bits {
            let bit = place.index(8 * bytes.len());
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(image) = Image::parse(&bytes, &ImageRules::ANY) {
            invariants::image(&image, &bytes);
        }
    }
}
