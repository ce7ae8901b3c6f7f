//! Dumps of cores, held against those who read such files: gdb, readelf and goblin.
//!
//! What belongs here: whole files in a real folder. What does not: when a core is dumped. A test
//! whose tool is not installed says so and is skipped; `cargo xtask test` installs the tools.

mod chaos;
pub mod debugger;
mod files;
pub mod folder;

use std::process::Command;

/// What `program` prints, both streams, or nothing (and a sentence on why) if it is not installed.
fn printed(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .output();
    match output {
        Ok(output) => Some(format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )),
        Err(error) => {
            println!("skipped: {program} cannot be run ({error}); `cargo xtask test` installs it");
            None
        }
    }
}
