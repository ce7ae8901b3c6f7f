//! One test for each refusal of a table, then what holds for all.

use proptest::prelude::*;
use rprocd::firmware::{
    Entry, EntryKind, ResourceTable, TABLE_MAX_BYTES, TABLE_MAX_ENTRIES, TableError,
};
use rprocd::memory::DeviceAddress;

use super::elf_builder::put32;
use super::invariants;
use super::table_builder::{ANY, Table};

/// The message with which a table is refused.
#[track_caller]
fn refused(bytes: &[u8]) -> String {
    ResourceTable::parse(bytes).unwrap_err().to_string()
}

/// A table with one word replaced, `at` bytes into entry `index`.
fn with_word(table: &Table, index: usize, at: usize, value: u32) -> Vec<u8> {
    let mut bytes = table.build();
    put32(&mut bytes, table.offset(index) + at, value);
    bytes
}

fn one_vdev(vring: (u32, u32, u32)) -> Vec<u8> {
    Table::new()
        .vdev(7, 1, &[(ANY, 16, 16), vring], &[])
        .build()
}

#[test]
fn every_kind_of_entry_is_read_with_its_places() {
    let bytes = Table::sample().build();
    let table = ResourceTable::parse(&bytes).unwrap();
    invariants::table(&table, &bytes);

    let carveout = table.carveouts().next().unwrap();
    assert_eq!(carveout.da, Some(DeviceAddress(0x8010_0000)));
    assert_eq!(carveout.len, 0x1000);
    assert!(carveout.name.is("heap"));

    let trace = table.traces().next().unwrap();
    assert_eq!((trace.da, trace.len), (DeviceAddress(0x8000_0080), 0x80));
    assert!(trace.name.is("log"));

    let vdev = table.vdevs().next().unwrap();
    assert_eq!((vdev.index, vdev.number, vdev.device_id), (2, 0, 7));
    assert_eq!(vdev.dfeatures, 1);
    assert_eq!(vdev.config, [1, 2, 3, 4]);
    assert_eq!(vdev.vrings[0].da, None);
    assert_eq!(vdev.vrings[1].da, Some(DeviceAddress(0x8020_0000)));
    assert_eq!((vdev.vrings[1].num, vdev.vrings[1].align), (8, 4096));
    let start = Table::sample().offset(2);
    assert_eq!(vdev.gfeatures_offset(), start + 16);
    assert_eq!(vdev.status_offset(), start + 24);
    assert_eq!(vdev.vrings[0].da_offset(), start + 28);
    assert_eq!(vdev.vrings[1].da_offset(), start + 48);
    assert_eq!(vdev.vrings[1].notifyid_offset(), start + 60);
    assert_eq!(vdev.config_offset(), start + 68);

    let devmem = table.devmems().next().unwrap();
    assert_eq!(
        (devmem.da, devmem.pa),
        (DeviceAddress(0x1000_0000), 0x2000_0000)
    );

    let Entry::Vendor(vendor) = &table.entries()[4] else {
        panic!("{:?}", table.entries()[4]);
    };
    assert_eq!(
        (vendor.kind, vendor.payload.as_slice()),
        (200, [9; 8].as_slice())
    );
}

#[test]
fn the_description_has_one_line_for_each_entry() {
    let table = ResourceTable::parse(&Table::sample().build()).unwrap();
    assert_eq!(
        table.to_string(),
        "0: carveout \"heap\", da 0x80100000, len 0x1000, flags 0x0\n\
         1: trace \"log\", da 0x80000080, len 0x80\n\
         2: vdev 0, virtio id 7, features 0x1, config 4 bytes, \
         vring 0: da any, num 256, align 16, vring 1: da 0x80200000, num 8, align 4096\n\
         3: devmem \"uart\", da 0x10000000, pa 0x20000000, len 0x1000, flags 0x0\n\
         4: vendor type 200, 8 bytes\n\
         5: unknown type 77, skipped"
    );
}

#[test]
fn a_table_without_entries_is_accepted() {
    assert!(
        ResourceTable::parse(&Table::new().build())
            .unwrap()
            .entries()
            .is_empty()
    );
}

#[test]
fn an_unknown_type_is_skipped_with_a_notice() {
    for kind in [4, 127, 513, u32::MAX] {
        let table = ResourceTable::parse(&Table::new().raw(kind, &[]).build()).unwrap();
        let notice = table.skipped().next().unwrap();
        assert_eq!(notice.kind, EntryKind::Unknown(kind));
        assert_eq!(
            notice.to_string(),
            format!("resource table entry 0 (unknown type {kind})")
        );
    }
}

#[test]
fn both_ends_of_the_vendor_range_are_vendor_entries() {
    for kind in [128, 512] {
        let table = ResourceTable::parse(&Table::new().raw(kind, &[1, 2, 3, 4]).build()).unwrap();
        assert_eq!(table.entries()[0].id().kind, EntryKind::Vendor(kind));
        assert_eq!(table.skipped().count(), 0);
    }
}

#[test]
fn notify_ids_in_the_file_do_not_matter() {
    for id in [0, 31, 64, u32::MAX] {
        let table = Table::sample();
        let mut bytes = with_word(&table, 2, 8, id);
        put32(&mut bytes, table.offset(2) + 28 + 12, id);
        put32(&mut bytes, table.offset(2) + 48 + 12, id);
        assert!(ResourceTable::parse(&bytes).is_ok());
    }
}

#[test]
fn entries_may_lie_in_any_order() {
    let mut bytes = Table::sample().build();
    let (first, second) = (bytes[16..20].to_vec(), bytes[20..24].to_vec());
    bytes[16..20].copy_from_slice(&second);
    bytes[20..24].copy_from_slice(&first);
    let table = ResourceTable::parse(&bytes).unwrap();
    assert!(matches!(table.entries()[0], Entry::Trace(_)));
    assert!(matches!(table.entries()[1], Entry::Carveout(_)));
}

#[test]
fn ring_sizes_follow_linux() {
    for (num, align, bytes) in [(256, 4096, 10246), (8, 4096, 4166), (16, 16, 438)] {
        let bytes_of_table = one_vdev((ANY, align, num));
        let table = ResourceTable::parse(&bytes_of_table).unwrap();
        let vring = &table.vdevs().next().unwrap().vrings[1];
        assert_eq!(vring.ring_bytes(), bytes);
    }
}

#[test]
fn a_table_shorter_than_its_header_is_refused() {
    for len in 0..16 {
        assert_eq!(
            refused(&Table::sample().build()[..len]),
            format!("resource table has {len} bytes, must have at least 16")
        );
    }
}

#[test]
fn a_table_over_64_kib_is_refused() {
    let mut bytes = Table::new().build();
    bytes.resize(TABLE_MAX_BYTES, 0);
    assert!(ResourceTable::parse(&bytes).is_ok());
    bytes.push(0);
    assert_eq!(
        refused(&bytes),
        "resource table has 65537 bytes, must have at most 65536"
    );
}

#[test]
fn another_version_is_refused() {
    for ver in [0, 2, u32::MAX] {
        let mut bytes = Table::sample().build();
        put32(&mut bytes, 0, ver);
        assert_eq!(
            refused(&bytes),
            format!("resource table: ver is {ver}, must be 1")
        );
    }
}

#[test]
fn reserved_words_of_the_header_must_be_0() {
    for word in [0, 1] {
        let mut bytes = Table::sample().build();
        put32(&mut bytes, 8 + 4 * word, 0x80);
        assert_eq!(
            refused(&bytes),
            format!("resource table: reserved[{word}] is 0x80, must be 0")
        );
    }
}

#[test]
fn more_than_256_entries_are_refused() {
    for num in [TABLE_MAX_ENTRIES + 1, 0x4000_0000, u32::MAX] {
        let mut bytes = Table::sample().build();
        put32(&mut bytes, 4, num);
        assert_eq!(
            refused(&bytes),
            format!("resource table: num is {num}, must be at most 256")
        );
    }
}

#[test]
fn an_offset_array_past_the_end_is_refused() {
    let mut bytes = Table::new().build();
    put32(&mut bytes, 4, 3);
    bytes.resize(27, 0);
    assert_eq!(
        refused(&bytes),
        "resource table: num is 3, which needs a table of 28 bytes or more, it has 27"
    );
}

#[test]
fn an_offset_into_the_header_or_the_array_or_past_the_end_is_refused() {
    let len = u32::try_from(Table::sample().build().len()).unwrap();
    for offset in [0, 15, 16, 36, len - 3, len, 0xffff_ff00, u32::MAX] {
        let mut bytes = Table::sample().build();
        put32(&mut bytes, 16, offset);
        assert_eq!(
            refused(&bytes),
            format!(
                "resource table entry 0: offset is {offset}, must be 40 or more \
                 and leave 4 bytes of the table's {len}"
            )
        );
    }
}

#[test]
fn an_entry_may_lie_at_any_alignment() {
    let aligned = Table::sample();
    let plain = aligned.build();
    for shift in 1..4 {
        // All entries further on by a few bytes.
        let mut bytes = plain[..aligned.offset(0)].to_vec();
        bytes.resize(bytes.len() + shift, 0);
        bytes.extend(&plain[aligned.offset(0)..]);
        for index in 0..6 {
            let offset = u32::try_from(aligned.offset(index) + shift).unwrap();
            put32(&mut bytes, 16 + 4 * index, offset);
        }
        let table = ResourceTable::parse(&bytes).unwrap();
        invariants::table(&table, &bytes);
        assert_eq!(
            table.to_string(),
            ResourceTable::parse(&plain).unwrap().to_string()
        );
    }
}

#[test]
fn an_entry_past_the_end_is_refused_for_every_kind_and_length() {
    let kinds = [
        ("carveout", 56, Table::new().carveout(0, 1, "a")),
        ("devmem", 56, Table::new().devmem(0, 0, 1, "a")),
        ("trace", 48, Table::new().trace(0, 1, "a")),
    ];
    for (kind, needs, table) in kinds {
        let bytes = table.build();
        for has in 4..needs {
            assert_eq!(
                refused(&bytes[..20 + has]),
                format!(
                    "resource table entry 0 ({kind}) needs {needs} bytes, \
                     {has} are left in the table"
                )
            );
        }
    }
}

#[test]
fn a_vdev_past_the_end_is_refused_with_its_vrings_and_config() {
    let bytes = Table::new()
        .vdev(7, 0, &[(ANY, 16, 16); 2], &[0; 8])
        .build();
    for has in 4..76 {
        let needs = if has < 28 { 28 } else { 76 };
        assert_eq!(
            refused(&bytes[..20 + has]),
            format!(
                "resource table entry 0 (vdev 0) needs {needs} bytes, {has} are left in the table"
            )
        );
    }
    let table = Table::new().vdev(7, 0, &[(ANY, 16, 16); 2], &[0; 8]);
    assert_eq!(
        refused(&with_word(&table, 0, 20, u32::MAX)),
        "resource table entry 0 (vdev 0) needs 4294967363 bytes, 76 are left in the table"
    );
}

#[test]
fn overlapping_entries_are_refused() {
    // The trace begins inside the carveout.
    let table = Table::new().carveout(0, 1, "a").trace(0, 1, "b");
    let mut bytes = table.build();
    put32(&mut bytes, 20, 24 + 48);
    put32(&mut bytes, 24 + 48, 2);
    put32(&mut bytes, 24 + 48 + 12, 0);
    assert_eq!(
        refused(&bytes),
        "resource table entry 1 (trace) begins at offset 72, inside entry 0, which ends at 80"
    );
}

#[test]
fn one_entry_listed_twice_is_refused() {
    for table in [
        Table::new().trace(0, 1, "a").trace(0, 1, "b"),
        Table::new().raw(200, &[]).raw(200, &[]),
    ] {
        let mut bytes = table.build();
        put32(&mut bytes, 20, 24);
        assert!(matches!(
            ResourceTable::parse(&bytes),
            Err(TableError::EntriesOverlap {
                other: 0,
                offset: 24,
                ..
            })
        ));
    }
}

#[test]
fn reserved_fields_of_entries_must_be_0() {
    let table = Table::sample();
    for (index, at, kind) in [(0, 20, "carveout"), (1, 12, "trace"), (3, 20, "devmem")] {
        assert_eq!(
            refused(&with_word(&table, index, at, 5)),
            format!("resource table entry {index} ({kind}): reserved is 0x5, must be 0")
        );
    }
    for (byte, shown) in [(26, "0x1"), (27, "0x100")] {
        let mut bytes = table.build();
        bytes[table.offset(2) + byte] = 1;
        assert_eq!(
            refused(&bytes),
            format!("resource table entry 2 (vdev 0): reserved is {shown}, must be 0")
        );
    }
}

#[test]
fn a_name_without_a_nul_is_refused_and_31_bytes_are_not() {
    let longest = "1234567890123456789012345678901";
    let table = Table::new()
        .carveout(0, 1, longest)
        .trace(0, 1, longest)
        .devmem(0, 0, 1, longest);
    assert!(ResourceTable::parse(&table.build()).is_ok());
    for (index, at, kind) in [(0, 55, "carveout"), (1, 47, "trace"), (2, 55, "devmem")] {
        let mut bytes = table.build();
        bytes[table.offset(index) + at] = b'x';
        assert_eq!(
            refused(&bytes),
            format!(
                "resource table entry {index} ({kind}): name has no NUL in its 32 bytes, \
                 must have at most 31 and a NUL"
            )
        );
    }
}

#[test]
fn a_name_is_shown_escaped() {
    let table = ResourceTable::parse(&Table::new().trace(0, 1, "\x1b[2Jé\n").build()).unwrap();
    let name = &table.traces().next().unwrap().name;
    assert_eq!(name.to_string(), "\\x1b[2J\\xc3\\xa9\\n");
    assert_eq!(name.as_bytes(), "\x1b[2Jé\n".as_bytes());
}

#[test]
fn an_empty_span_is_refused() {
    for (table, kind) in [
        (Table::new().carveout(ANY, 0, "a"), "carveout"),
        (Table::new().carveout(0, 0, "a"), "carveout"),
        (Table::new().devmem(0, 0, 0, "a"), "devmem"),
        (Table::new().trace(0, 0, "a"), "trace"),
    ] {
        assert_eq!(
            refused(&table.build()),
            format!("resource table entry 0 ({kind}): len is 0, must be at least 1")
        );
    }
}

#[test]
fn a_span_past_4_gib_is_refused_and_one_that_ends_there_is_not() {
    type Make = fn(u32, u32) -> Table;
    let makes: [(&str, &str, Make); 4] = [
        ("carveout", "da", |da, len| {
            Table::new().carveout(da, len, "a")
        }),
        ("devmem", "da", |da, len| {
            Table::new().devmem(da, 0, len, "a")
        }),
        ("devmem", "pa", |pa, len| {
            Table::new().devmem(0, pa, len, "a")
        }),
        ("trace", "da", |da, len| Table::new().trace(da, len, "a")),
    ];
    for (kind, field, make) in makes {
        assert!(ResourceTable::parse(&make(0xffff_f000, 0x1000).build()).is_ok());
        assert_eq!(
            refused(&make(0xffff_f000, 0x1001).build()),
            format!(
                "resource table entry 0 ({kind}): {field} is 0xfffff000 and len is 0x1001, \
                 must end at most at 0x100000000"
            )
        );
    }
}

#[test]
fn a_carveout_anywhere_may_have_any_length() {
    let table = ResourceTable::parse(&Table::new().carveout(ANY, ANY, "a").build()).unwrap();
    let carveout = table.carveouts().next().unwrap();
    assert_eq!((carveout.da, carveout.len), (None, 0xffff_ffff));
}

#[test]
fn two_carveouts_with_one_name_are_refused() {
    for name in ["a", ""] {
        let table = Table::new()
            .carveout(0, 1, name)
            .trace(0, 1, name)
            .carveout(4096, 1, name);
        assert_eq!(
            refused(&table.build()),
            format!(
                "resource table entry 2 (carveout): name is \"{name}\", taken by entry 0, \
                 must be unique among carveouts"
            )
        );
    }
}

#[test]
fn a_vdev_has_one_or_two_vrings() {
    for count in [0, 3, 255] {
        let table = Table::new().vdev(7, 0, &[(ANY, 16, 16); 2], &[0; 64]);
        let mut bytes = table.build();
        bytes[table.offset(0) + 25] = count;
        assert_eq!(
            refused(&bytes),
            format!("resource table entry 0 (vdev 0): num_of_vrings is {count}, must be 1 to 2")
        );
    }
    assert!(ResourceTable::parse(&Table::new().vdev(7, 0, &[(ANY, 16, 16)], &[]).build()).is_ok());
}

#[test]
fn a_ring_size_must_be_a_power_of_two_up_to_32768() {
    for num in [0, 3, 300, 65535, 65536, 0x8000_0000, u32::MAX] {
        assert_eq!(
            refused(&one_vdev((ANY, 16, num))),
            format!(
                "resource table entry 0 (vdev 0), vring 1: num is {num}, \
                 must be a power of two from 1 to 32768"
            )
        );
    }
    for num in [1, 32768] {
        assert!(ResourceTable::parse(&one_vdev((ANY, 1 << 20, num))).is_ok());
    }
}

#[test]
fn a_ring_alignment_must_be_a_power_of_two_from_4_to_1_mib() {
    for align in [0, 1, 2, 5, 1 << 21, u32::MAX] {
        assert_eq!(
            refused(&one_vdev((ANY, align, 16))),
            format!(
                "resource table entry 0 (vdev 0), vring 1: align is {align}, \
                 must be a power of two from 4 to 1048576"
            )
        );
    }
}

#[test]
fn a_fixed_ring_must_lie_on_its_alignment_and_on_16() {
    for (da, align, multiple) in [(0x8000_0800, 4096, 4096), (0x8000_0004, 4, 16)] {
        assert_eq!(
            refused(&one_vdev((da, align, 16))),
            format!(
                "resource table entry 0 (vdev 0), vring 1: da is {da:#x}, \
                 must be a multiple of {multiple}"
            )
        );
    }
    assert!(ResourceTable::parse(&one_vdev((0, 16, 16))).is_ok());
}

#[test]
fn a_fixed_ring_past_4_gib_is_refused() {
    assert_eq!(
        refused(&one_vdev((0xffff_fff0, 16, 16))),
        "resource table entry 0 (vdev 0), vring 1: da is 0xfffffff0 and the ring has 438 bytes, \
         must end at most at 0x100000000"
    );
}

#[test]
fn more_than_64_vrings_in_all_are_refused() {
    let vdevs = |count| {
        (0..count).fold(Table::new(), |table, _| {
            table.vdev(7, 0, &[(ANY, 16, 16); 2], &[])
        })
    };
    assert!(ResourceTable::parse(&vdevs(32).build()).is_ok());
    assert_eq!(
        refused(&vdevs(33).build()),
        "resource table entry 32 (vdev 32): the table has 66 vrings up to here, \
         must have at most 64"
    );
}

#[test]
fn a_table_cut_off_anywhere_is_refused_or_holds_its_invariants() {
    // Only the last entry, of unknown size, can be cut without harm.
    let bytes = Table::sample().build();
    for len in 0..bytes.len() {
        assert!(ResourceTable::parse(&bytes[..len]).is_err(), "{len}");
    }
}

/// Words that are likely to be wrong in an interesting way.
fn any_word() -> impl Strategy<Value = u32> {
    prop_oneof![
        0_u32..600,
        (0_u32..32).prop_map(|bit| 1 << bit),
        (0_u32..64).prop_map(|back| u32::MAX - back),
        any::<u32>(),
    ]
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        if let Ok(table) = ResourceTable::parse(&bytes) {
            invariants::table(&table, &bytes);
        }
    }

    #[test]
    fn random_words_after_a_good_header_never_panic(
        num in 0_u32..6,
        words in prop::collection::vec(any_word(), 0..80),
    ) {
        let mut bytes = Vec::new();
        for word in [1, num, 0, 0].into_iter().chain(words) {
            bytes.extend(word.to_le_bytes());
        }
        if let Ok(table) = ResourceTable::parse(&bytes) {
            invariants::table(&table, &bytes);
        }
    }

    #[test]
    fn a_mutated_table_is_refused_or_holds_its_invariants(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any_word()), 1..4),
        bits in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
    ) {
        let mut bytes = Table::sample().build();
        for (place, word) in changes {
            let at = 4 * place.index(bytes.len() / 4);
            put32(&mut bytes, at, word);
        }
        for place in bits {
            let bit = place.index(8 * bytes.len());
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        if let Ok(table) = ResourceTable::parse(&bytes) {
            invariants::table(&table, &bytes);
        }
    }
}
