//! No image makes the parser panic, and an accepted one satisfies the invariants.
#![no_main]

#[path = "../../tests/firmware/invariants.rs"]
mod invariants;

use libfuzzer_sys::fuzz_target;
use rprocd::engine::ImageRules;
use rprocd::firmware::Image;

fuzz_target!(|bytes: &[u8]| {
    // The second one also reads what the image says that it needs.
    for rules in [ImageRules::ANY, ImageRules::RV32] {
        if let Ok(image) = Image::parse(bytes, &rules) {
            invariants::image(&image, bytes);
        }
    }
});
