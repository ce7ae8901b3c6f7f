//! Which test holds which hostile input. The inputs are numbered; 39 to 58 are about images.
//! What belongs here: the list, and the test that nothing in it is made up.

const IMAGE: &str = include_str!("image.rs");
const PLAN: &str = include_str!("plan.rs");
const TABLE: &str = include_str!("resource_table.rs");
const SNAPSHOT: &str = include_str!("../../src/firmware/snapshot.rs");

/// Number, what is done to us, and the tests, by file.
type Row = (
    u32,
    &'static str,
    &'static [(&'static str, &'static [&'static str])],
);

const ROWS: &[Row] = &[
    (
        39,
        "cut off at every byte, empty, not ELF",
        &[
            (
                IMAGE,
                &[
                    "an_image_cut_off_anywhere_is_refused",
                    "an_elf64_image_cut_off_anywhere_is_refused",
                    "an_image_shorter_than_its_header_is_refused",
                    "what_is_not_elf_is_refused",
                ],
            ),
            (SNAPSHOT, &["an_empty_file_is_an_empty_snapshot"]),
        ],
    ),
    (
        40,
        "numbers and sizes of headers",
        &[(
            IMAGE,
            &[
                "extended_numbering_is_refused",
                "header_sizes_must_be_those_of_the_class",
                "a_program_header_table_outside_the_file_is_refused",
                "a_section_header_table_outside_the_file_is_refused",
                "an_image_without_program_headers_is_refused",
                "section_headers_without_a_number_are_refused",
                "sums_of_64_bits_that_wrap_are_refused",
            ],
        )],
    ),
    (
        41,
        "more bytes in the file than in memory",
        &[(
            IMAGE,
            &["a_segment_larger_in_the_file_than_in_memory_is_refused"],
        )],
    ),
    (
        42,
        "sums that wrap",
        &[(
            IMAGE,
            &[
                "a_segment_outside_the_file_is_refused",
                "a_segment_past_4_gib_is_refused_without_allocating",
                "sums_of_64_bits_that_wrap_are_refused",
                "a_table_past_4_gib_is_refused",
            ],
        )],
    ),
    (
        43,
        "2^60 bytes of memory",
        &[(IMAGE, &["sums_of_64_bits_that_wrap_are_refused"])],
    ),
    (
        44,
        "segments outside or across carveouts",
        &[(
            PLAN,
            &[
                "a_segment_outside_of_the_tables_carveouts_is_refused_by_its_number",
                "without_carveouts_for_them_segments_must_lie_in_the_memory",
            ],
        )],
    ),
    (
        45,
        "segments that overlap",
        &[(
            IMAGE,
            &["overlapping_segments_are_refused_and_adjacent_ones_are_not"],
        )],
    ),
    (
        46,
        "wrong class, byte order, machine",
        &[(
            IMAGE,
            &[
                "a_class_that_the_core_does_not_take_is_refused",
                "an_unknown_class_is_refused",
                "big_endian_is_refused",
                "another_machine_is_refused",
            ],
        )],
    ),
    (
        47,
        "names of sections",
        &[(
            IMAGE,
            &[
                "a_section_of_names_that_does_not_exist_is_refused",
                "a_section_of_names_of_another_type_is_refused",
                "names_that_do_not_end_in_nul_are_refused",
                "a_section_name_past_the_names_is_refused",
                "many_sections_over_one_long_list_of_names_are_judged_quickly",
            ],
        )],
    ),
    (
        48,
        "two tables",
        &[(IMAGE, &["two_resource_tables_are_refused"])],
    ),
    (
        49,
        "the table's header and offsets",
        &[(
            TABLE,
            &[
                "more_than_256_entries_are_refused",
                "an_offset_array_past_the_end_is_refused",
                "an_offset_into_the_header_or_the_array_or_past_the_end_is_refused",
                "overlapping_entries_are_refused",
                "one_entry_listed_twice_is_refused",
                "an_entry_may_lie_at_any_alignment",
                "another_version_is_refused",
                "reserved_words_of_the_header_must_be_0",
            ],
        )],
    ),
    (
        50,
        "rings and config space of a vdev",
        &[(
            TABLE,
            &[
                "a_vdev_has_one_or_two_vrings",
                "a_vdev_past_the_end_is_refused_with_its_vrings_and_config",
            ],
        )],
    ),
    (
        51,
        "sizes and alignments of rings",
        &[(
            TABLE,
            &[
                "a_ring_size_must_be_a_power_of_two_up_to_32768",
                "a_ring_alignment_must_be_a_power_of_two_from_4_to_1_mib",
            ],
        )],
    ),
    (
        52,
        "carveouts: none, too large, overlapping, too many, with a pa",
        &[
            (TABLE, &["an_empty_span_is_refused"]),
            (
                PLAN,
                &[
                    "a_carveout_of_4_gib_is_refused",
                    "carveouts_that_overlap_are_refused",
                    "more_carveouts_than_the_core_may_have_are_refused",
                    "carveouts_over_the_quota_are_refused_rings_and_buffers_included",
                    "the_pa_of_a_carveout_is_a_placeholder_and_is_replaced",
                ],
            ),
        ],
    ),
    (
        53,
        "notify ids in the file",
        &[
            (TABLE, &["notify_ids_in_the_file_do_not_matter"]),
            (
                include_str!("look_alikes.rs"),
                &["notify_ids_of_the_file_are_replaced_by_the_lowest_free_ones"],
            ),
        ],
    ),
    (
        54,
        "trace buffers outside, empty",
        &[
            (
                PLAN,
                &["a_trace_buffer_outside_of_every_carveout_is_refused"],
            ),
            (TABLE, &["an_empty_span_is_refused"]),
        ],
    ),
    (
        55,
        "unknown types, vendors' types",
        &[(
            PLAN,
            &[
                "an_entry_of_unknown_type_is_skipped_with_a_notice",
                "a_vendor_entry_that_the_engine_does_not_know_is_ignored_or_refused_by_policy",
                "a_vendor_entry_is_offered_to_the_engine_whatever_the_policy",
            ],
        )],
    ),
    (
        56,
        "an entry point outside",
        &[
            (IMAGE, &["a_boot_address_outside_the_segments_is_refused"]),
            (
                PLAN,
                &["a_boot_address_that_the_engine_cannot_begin_at_is_refused_before_the_load"],
            ),
        ],
    ),
    (
        57,
        "a file that changes during the load",
        &[(
            SNAPSHOT,
            &[
                "a_snapshot_does_not_change_with_its_file",
                "a_regular_file_is_read_whole_and_hashed_as_sha256sum_does",
                "a_file_over_the_limit_is_refused_before_it_is_read",
            ],
        )],
    ),
    (
        58,
        "names that lead elsewhere, files that are none",
        &[(
            SNAPSHOT,
            &[
                "a_name_cannot_lead_out_of_the_folder",
                "what_is_no_regular_file_is_refused_by_its_kind_and_never_waited_for",
            ],
        )],
    ),
];

#[test]
fn every_hostile_image_has_a_test() {
    let numbers: Vec<u32> = ROWS.iter().map(|(number, ..)| *number).collect();
    assert_eq!(numbers, (39..=58).collect::<Vec<_>>());
    for (number, what, tests) in ROWS {
        assert!(!tests.is_empty(), "{number}: {what}");
        for (source, names) in *tests {
            for name in *names {
                let lines: Vec<&str> = source.lines().map(str::trim).collect();
                let is_there = lines
                    .windows(2)
                    .any(|pair| pair[0] == "#[test]" && pair[1] == format!("fn {name}() {{"));
                assert!(is_there, "{number} ({what}): there is no test {name}");
            }
        }
    }
}
