//! No image makes the parser panic, and an accepted one satisfies the invariants.
#![no_main]

#[path = "../../tests/firmware/invariants.rs"]
mod invariants;

use libfuzzer_sys::fuzz_target;
use rprocd::engine::ImageRules;
use rprocd::firmware::Image;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(image) = Image::parse(bytes, &ImageRules::ANY) {
        invariants::image(&image, bytes);
    }
});
