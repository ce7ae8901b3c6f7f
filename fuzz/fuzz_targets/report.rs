//! No image makes the judgement of a boot panic, and the report about it can be read.
#![no_main]

#[path = "../../tests/firmware/invariants.rs"]
mod invariants;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| invariants::report(bytes));
