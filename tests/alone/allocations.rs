//! Allocations of a message: of all threads of the process, the guest's included.

use rprocd::rproc::Policies;
use stats_alloc::{Region, Stats};

use crate::frontend::process::firmware_dir;
use crate::frontend::usage::{Usage, at_rest, others_asleep};
use crate::in_process::{serve_native, serve_rv32, socket};
use crate::{ALLOCATOR, guest};

const MESSAGES: u64 = 10_000;
/// Until all that grows has grown.
const WARM_UP: u64 = 64;

fn allocates_nothing(socket: &std::path::Path) {
    let (_vmm, mut bursts) = guest(socket);
    for burst in [1, 32, 256] {
        bursts.exchange(WARM_UP, burst);
        // Whoever set the session up has let go of what that took.
        at_rest(others_asleep, Usage::of_our_other_threads);
        let region = Region::new(ALLOCATOR);
        bursts.exchange(MESSAGES.div_ceil(burst.into()), burst);
        let changed = region.change();
        assert_eq!(changed, Stats::default(), "{burst} in flight");
    }
}

pub fn a_message_allocates_nothing_with_1_32_or_256_in_flight() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("native");
    let _served = serve_native(&prefix, 1, &Policies::default()).unwrap();
    allocates_nothing(&socket(&prefix, 0));
}

pub fn with_the_echo_image_a_message_allocates_nothing_either() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("rv32");
    let image = firmware_dir().join("echo.elf");
    let _served = serve_rv32(&prefix, &image, Policies::default()).unwrap();
    allocates_nothing(&socket(&prefix, 0));
}
