//! The real gdb on dumps of a real firmware: who was it, and at which line?

use std::ops::ControlFlow;
use std::path::Path;

use rprocd::coredump::{DumpStore, Limits, Outcome};

use super::chaos::dies_of;
use super::printed;

const LIMITS: Limits = Limits {
    count: 4,
    bytes: 64 << 20,
};

/// What gdb says to `commands` about a firmware and a dump of it.
pub fn gdb(image: &Path, core: &Path, commands: &[&str]) -> Option<String> {
    let mut arguments = vec!["--nx", "--batch"];
    for command in commands {
        arguments.extend(["-ex", command]);
    }
    arguments.extend([image.to_str().unwrap(), core.to_str().unwrap()]);
    printed("gdb-multiarch", &arguments)
}

/// The backtrace of a chaos that died of `command`.
fn backtrace(command: &str) -> Option<String> {
    let dead = dies_of(command);
    let folder = tempfile::tempdir().unwrap();
    let mut store = DumpStore::open(folder.path(), "chaos", LIMITS).unwrap();
    let outcome = store.save(&mut dead.dump(), &mut || ControlFlow::Continue(()));
    let Outcome::Written { path, .. } = outcome else {
        panic!("{outcome}");
    };
    let text = gdb(&dead.image, &path, &["bt 20", "bt -10", "info auxv"])?;
    println!("{command}:\n{text}");
    // None of our own notes is taken for one of the system's.
    assert!(text.contains("No auxiliary vector"), "{text}");
    for bad in ["warning", "truncated", "Backtrace stopped", "corrupt"] {
        assert!(!text.contains(bad), "{bad}:\n{text}");
    }
    Some(text)
}

/// Does the backtrace have a frame of `function` at a line of `file`?
pub fn assert_frame(text: &str, function: &str, file: &str) {
    let found = text.lines().any(|line| {
        line.starts_with('#')
            && line.contains(function)
            && line
                .split_once(&format!("{file}:"))
                .is_some_and(|(_, number)| number.trim().parse::<u32>().is_ok())
    });
    assert!(found, "no frame of {function} at {file}:\n{text}");
}

#[test]
fn gdb_shows_the_line_of_an_illegal_instruction() {
    let Some(text) = backtrace("illegal") else {
        return;
    };
    assert_frame(&text, "illegal_instruction", "misbehave.rs");
    assert_frame(&text, "perform", "chaos.rs");
}

#[test]
fn gdb_shows_the_line_of_a_wild_store() {
    let Some(text) = backtrace("wild-store") else {
        return;
    };
    assert_frame(&text, "wild_store", "misbehave.rs");
    assert_frame(&text, "act", "chaos.rs");
}

#[test]
fn gdb_shows_the_line_of_a_stack_overflow() {
    let Some(text) = backtrace("stack-overflow") else {
        return;
    };
    assert_frame(&text, "overflow_stack", "misbehave.rs");
    assert_frame(&text, "act", "chaos.rs");
}

#[test]
fn gdb_shows_the_line_of_a_panic() {
    let Some(text) = backtrace("panic") else {
        return;
    };
    assert_frame(&text, "perform", "chaos.rs");
}

#[test]
fn gdb_shows_the_line_in_a_dump_that_ran_out_of_time() {
    let dead = dies_of("illegal");
    let folder = tempfile::tempdir().unwrap();
    let mut store = DumpStore::open(folder.path(), "chaos", LIMITS).unwrap();
    // The stacks are in the first 64 KiB; that of the firmware begins with pages never touched.
    let mut pieces = 0;
    let outcome = store.save(&mut dead.dump(), &mut || {
        pieces += 1;
        match pieces {
            1 | 2 => ControlFlow::Continue(()),
            _ => ControlFlow::Break("that was enough".to_owned()),
        }
    });
    let Outcome::Partial { path, why, .. } = outcome else {
        panic!("{outcome}");
    };
    assert_eq!(why, "that was enough");
    let ring = dead.plan.vdevs[0].vring_places().next().unwrap().1;
    let missing = format!("x/x {ring}");
    let Some(text) = gdb(&dead.image, &path, &["bt 20", &missing]) else {
        return;
    };
    println!("{text}");
    assert!(
        text.contains("segment extending past end of file"),
        "{text}"
    );
    // What is missing is not taken for zeros.
    assert!(text.contains("Cannot access memory at address"), "{text}");
    assert_frame(&text, "illegal_instruction", "misbehave.rs");
    assert_frame(&text, "perform", "chaos.rs");
}
