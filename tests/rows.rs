//! Which test holds which hostile input. The inputs are numbered; 39 to 58 are about images, 59 to
//! 67 about firmware that runs, 68 to 77 about operators and the host. What belongs here: the list, and the test that nothing in it is
//! made up.

const IMAGE: &str = include_str!("firmware/image.rs");
const PLAN: &str = include_str!("firmware/plan.rs");
const TABLE: &str = include_str!("firmware/resource_table.rs");
const SNAPSHOT: &str = include_str!("../src/firmware/snapshot.rs");
const VRINGS: &str = include_str!("running/vrings.rs");
const REWRITTEN: &str = include_str!("running/table.rs");
const CONDUCT: &str = include_str!("running/conduct.rs");
const COLLISIONS: &str = include_str!("lifecycle/collisions.rs");
const ORDER: &str = include_str!("lifecycle/order.rs");
const GUESTS: &str = include_str!("lifecycle/guests.rs");
const CRASH: &str = include_str!("crash.rs");
const BOARD: &str = include_str!("engine/board.rs");
const MODEL: &str = include_str!("../src/vdev/model.rs");
const RELAY: &str = include_str!("../src/vdev/relay.rs");
const DRIVER_RING: &str = include_str!("../src/vdev/driver_ring.rs");
const RECOVERY: &str = include_str!("../src/rproc/recovery.rs");
const FOLLOWER: &str = include_str!("../src/rproc/trace.rs");

const CODEC: &str = include_str!("../src/control/codec.rs");
const CONTROL: &str = include_str!("control.rs");
const WATCHING: &str = include_str!("watching.rs");
const OPERATORS: &str = include_str!("hostile_operators.rs");
const DUMPS: &str = include_str!("dumps.rs");
const PACKAGING: &str = include_str!("packaging.rs");
const SYSFS: &str = include_str!("sysfs.rs");
const DUMP_FOLDER: &str = include_str!("coredump/folder.rs");

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
                include_str!("firmware/look_alikes.rs"),
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
    (
        59,
        "the running firmware rewrites its table",
        &[(
            REWRITTEN,
            &[
                "a_table_that_is_rewritten_while_the_core_runs_changes_nothing_but_configuration_space",
            ],
        )],
    ),
    (
        60,
        "attacks on vrings from the core's side",
        &[
            (
                VRINGS,
                &[
                    "each_attack_on_a_vring_by_its_device_costs_the_attacker_alone",
                    "what_a_core_changes_between_check_and_use_is_judged_once_and_delivered_as_judged",
                ],
            ),
            (
                MODEL,
                &["a_hostile_firmware_reaches_nothing_but_its_own_memory"],
            ),
            (
                RELAY,
                &["a_header_that_changes_all_the_time_reaches_no_side_unjudged"],
            ),
            (
                DRIVER_RING,
                &[
                    "a_descriptor_that_the_firmware_does_not_hold_is_a_fault",
                    "a_descriptor_returned_twice_is_a_fault",
                    "a_used_index_that_jumps_is_a_fault",
                ],
            ),
        ],
    ),
    (
        61,
        "trace text without end, with escape sequences, torn",
        &[
            (
                include_str!("trace.rs"),
                &["nothing_in_a_trace_acts_on_a_terminal"],
            ),
            (
                include_str!("../src/report.rs"),
                &[
                    "text_stays_and_what_acts_on_a_terminal_is_shown",
                    "half_a_character_is_left_for_the_next_time",
                ],
            ),
            (
                FOLLOWER,
                &[
                    "a_firmware_that_scribbles_costs_no_more_than_its_buffer",
                    "a_line_that_a_crash_tears_is_shown_as_far_as_it_got",
                    "a_buffer_longer_than_what_is_followed_is_followed_to_there",
                ],
            ),
        ],
    ),
    (
        62,
        "one crash after the other",
        &[
            (
                CRASH,
                &[
                    "a_core_that_dies_young_waits_before_the_next_try",
                    "a_core_that_dies_too_often_is_held_until_somebody_starts_it",
                ],
            ),
            (
                RECOVERY,
                &[
                    "short_runs_in_a_row_double_the_wait_up_to_its_limit_and_a_long_run_ends_the_row",
                    "too_many_crashes_in_the_window_hold_the_core_until_it_is_forgiven",
                ],
            ),
        ],
    ),
    (
        63,
        "a crash in the middle of a start, a stop, a dump, an attachment",
        &[
            (
                COLLISIONS,
                &[
                    "a_crash_in_the_middle_of_a_start_ends_what_was_started_and_counts_once",
                    "a_crash_in_the_middle_of_a_stop_is_not_news_unless_the_stop_fails",
                    "a_crash_in_the_middle_of_an_attachment_or_a_detachment_counts_once_or_not_at_all",
                    "a_crash_in_the_middle_of_a_dump_or_a_recovery_counts_once",
                    "a_late_crash_of_a_start_that_failed_is_not_one_of_the_next_start",
                ],
            ),
            (
                GUESTS,
                &["a_crash_that_is_reported_from_another_thread_is_handled_once"],
            ),
            (ORDER, &["a_crash_and_its_recovery_are_in_linux_s_order"]),
        ],
    ),
    (
        64,
        "a firmware that hangs and says nothing",
        &[
            (CRASH, &["an_endless_loop_ends_with_the_watchdog"]),
            (
                BOARD,
                &[
                    "the_watchdog_bites_a_busy_loop",
                    "the_watchdog_bites_within_one_long_turn",
                ],
            ),
        ],
    ),
    (
        65,
        "storms of kicks, ids that nobody has",
        &[
            (
                CONDUCT,
                &["a_storm_of_kicks_with_all_ids_starves_nobody_and_what_no_vring_has_is_counted"],
            ),
            (GUESTS, &["kicks_with_ids_that_no_vring_has_are_counted"]),
            (BOARD, &["kicks_on_ids_that_do_not_exist_are_counted"]),
        ],
    ),
    (
        66,
        "a firmware that scribbles on what it shares",
        &[
            (
                CONDUCT,
                &[
                    "a_firmware_that_scribbles_on_all_its_memory_reaches_nothing_of_a_guest_but_buffers_to_be_filled",
                    "a_firmware_that_spoils_one_vdev_serves_the_guest_of_the_other",
                ],
            ),
            (
                MODEL,
                &["a_hostile_firmware_reaches_nothing_but_its_own_memory"],
            ),
        ],
    ),
    (
        67,
        "a crash while buffers of a guest are out",
        &[
            (
                CONDUCT,
                &[
                    "a_guest_whose_buffers_a_core_holds_when_it_dies_gets_them_back_and_is_told",
                    "a_guest_whose_buffers_a_core_holds_when_it_breaks_its_vring_gets_them_back_and_is_told",
                ],
            ),
            (
                CRASH,
                &[
                    "each_death_is_followed_by_the_next_incarnation_and_working_channels",
                    "what_was_sent_is_what_was_answered_and_what_was_counted_as_lost",
                ],
            ),
        ],
    ),
    (
        68,
        "JSON of every bad kind, cut anywhere",
        &[
            (
                OPERATORS,
                &[
                    "what_is_no_call_is_told_so_and_hung_up_on_and_others_are_served",
                    "a_message_may_come_byte_by_byte",
                ],
            ),
            (
                CODEC,
                &[
                    "a_message_of_the_limit_passes_and_one_more_byte_does_not",
                    "a_message_of_the_greatest_depth_passes_and_one_more_does_not",
                    "how_the_bytes_are_cut_makes_no_difference",
                ],
            ),
            (
                CONTROL,
                &["a_message_that_takes_too_long_is_hung_up_on_however_much_of_it_comes"],
            ),
        ],
    ),
    (
        69,
        "a watcher that never reads",
        &[(
            WATCHING,
            &[
                "a_watcher_that_does_not_read_loses_counted_events_and_the_daemon_keeps_nothing_for_it",
            ],
        )],
    ),
    (
        70,
        "somebody else",
        &[(
            OPERATORS,
            &["another_user_is_kept_out_or_may_only_look_and_that_is_logged"],
        )],
    ),
    (
        71,
        "many who start and stop at once",
        &[(
            OPERATORS,
            &["of_many_who_start_and_stop_at_once_one_wins_each_time"],
        )],
    ),
    (
        72,
        "a disk that is full or slow during a dump",
        &[
            (
                DUMPS,
                &[
                    "a_full_disk_leaves_a_partial_dump_then_none_and_a_running_core",
                    "a_limit_on_the_size_of_files_leaves_a_partial_dump_and_a_running_core",
                ],
            ),
            (
                DUMP_FOLDER,
                &["a_full_disk_leaves_a_partial_dump_and_then_none"],
            ),
            (
                WATCHING,
                &["while_one_call_waits_for_a_core_others_are_answered"],
            ),
        ],
    ),
    (
        73,
        "large carveouts of which little is used",
        &[(
            DUMPS,
            &["a_death_leaves_a_whole_and_sparse_dump_that_says_who_when_and_why"],
        )],
    ),
    (
        74,
        "SIGKILL in every state",
        &[
            (
                OPERATORS,
                &["a_daemon_that_is_killed_in_any_state_leaves_nothing_that_the_next_one_minds"],
            ),
            (
                PACKAGING,
                &["memory_of_a_daemon_that_was_killed_is_dumped_by_the_next_one"],
            ),
        ],
    ),
    (
        75,
        "no descriptor, no thread left",
        &[(
            OPERATORS,
            &[
                "without_descriptors_verbs_fail_and_the_core_goes_on",
                "without_room_for_another_thread_all_goes_on",
            ],
        )],
    ),
    (
        76,
        "a write to a file of sysfs that is too long, or in pieces",
        &[(SYSFS, &["a_write_that_is_too_long_or_in_pieces_is_refused"])],
    ),
    (
        77,
        "a clock that is set",
        &[(OPERATORS, &["every_timer_runs_on_a_clock_that_nobody_sets"])],
    ),
];

#[test]
fn every_hostile_input_has_a_test() {
    let numbers: Vec<u32> = ROWS.iter().map(|(number, ..)| *number).collect();
    assert_eq!(numbers, (39..=77).collect::<Vec<_>>());
    for (number, what, tests) in ROWS {
        assert!(!tests.is_empty(), "{number}: {what}");
        for (source, names) in *tests {
            for name in *names {
                let lines: Vec<&str> = source.lines().map(str::trim).collect();
                let is_there = lines.windows(2).any(|pair| {
                    pair[0] == "#[test]" && pair[1].starts_with(&format!("fn {name}("))
                });
                assert!(is_there, "{number} ({what}): there is no test {name}");
            }
        }
    }
}
