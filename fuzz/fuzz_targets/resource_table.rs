//! No resource table makes the parser panic, and an accepted one satisfies the invariants.
#![no_main]

#[path = "../../tests/firmware/invariants.rs"]
mod invariants;

use libfuzzer_sys::fuzz_target;
use rprocd::firmware::ResourceTable;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(table) = ResourceTable::parse(bytes) {
        invariants::table(&table, bytes);
    }
});
