//! What is counted over a whole process, which therefore is this one, and runs one test at a time.
//!
//! What belongs here: allocations, memory, and threads that must not run, with the library's cores
//! and a guest that allocates nothing. What does not: what can be counted beside other tests
//! (`tests/hot_path`), and time.
#![allow(
    clippy::unwrap_used,
    reason = "a test that unwraps an error fails, as it should"
)]

mod allocations;
#[path = "../firmware/elf_builder.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod elf_builder;
#[path = "../frontend/mod.rs"]
mod frontend;
mod idle;
#[path = "../in_process/mod.rs"]
mod in_process;
#[path = "../firmware/table_builder.rs"]
mod table_builder;

use std::alloc::System;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

use frontend::bursts::Bursts;
use frontend::vmm::{Options, Vmm};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// A guest of the vdev at `socket`.
fn guest(socket: &Path) -> (Vmm, Bursts) {
    let mut vmm = Vmm::connect(socket, Options::default()).unwrap();
    let bursts = Bursts::probe(&mut vmm).unwrap();
    (vmm, bursts)
}

fn trial(name: &str, test: fn()) -> Trial {
    Trial::test(name, move || {
        let panicked = |_| "see above".into();
        catch_unwind(AssertUnwindSafe(test)).map_err(panicked)
    })
}

macro_rules! trials {
    ($($room:ident: $($test:ident)*;)*) => {
        vec![$($(trial(concat!(stringify!($room), "::", stringify!($test)), $room::$test),)*)*]
    };
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    // Memory first: what another test has freed would hide what it takes.
    let trials = trials! {
        idle:
            a_vdev_with_an_idle_guest_takes_256_kib_at_most
            nobody_runs_while_64_guests_are_idle
            a_busy_guest_wakes_nobody_else_s_thread
            vrings_of_idle_vdevs_are_not_opened_while_another_is_busy;
        allocations:
            a_message_allocates_nothing_with_1_32_or_256_in_flight
            with_the_echo_image_a_message_allocates_nothing_either;
    };
    libtest_mimic::run(&arguments, trials).exit_code()
}
