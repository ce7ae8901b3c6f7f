//! The folder: quota, leftovers, what is not ours, and a disk that is full.

use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use rprocd::coredump::{
    Class, Dump, DumpStore, Limits, Outcome, Registers, Segment, Source, StoreError, Style, within,
};
use rprocd::memory::DeviceAddress;

const PLENTY: Limits = Limits {
    count: 100,
    bytes: 1 << 30,
};
/// Where the test of the full disk finds its small disk.
const SMALL_DISK: &str = "RPROCD_TEST_SMALL_DISK";

/// A dump of `len` bytes, none of them zero.
fn dump<'a>(incarnation: u32, len: u64) -> Dump<'a> {
    Dump {
        incarnation,
        time: UNIX_EPOCH,
        reason: "a test",
        firmware: None,
        class: Class::Elf32,
        machine: 243,
        boot: DeviceAddress(0),
        registers: Some(Registers::riscv32(0, 0, &[0; 32])),
        segments: vec![Segment {
            name: "full".to_owned(),
            da: DeviceAddress(0),
            len,
            source: Source::Custom(Box::new(|_, piece| {
                piece.fill(0x77);
                Ok(())
            })),
        }],
        style: Style::ProgramHeaders,
    }
}

fn go_on() -> ControlFlow<String> {
    ControlFlow::Continue(())
}

fn save(store: &mut DumpStore, incarnation: u32, len: u64) -> Outcome {
    store.save(&mut dump(incarnation, len), &mut go_on)
}

/// What is in the folder, in order.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_dump_is_named_after_core_incarnation_and_number_and_is_private() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = DumpStore::open(folder.path(), "dsp_0-b", PLENTY).unwrap();
    assert!(matches!(save(&mut store, 4, 10), Outcome::Written { .. }));
    // After a new start of the daemon incarnations begin again, numbers do not.
    let mut store = DumpStore::open(folder.path(), "dsp_0-b", PLENTY).unwrap();
    let outcome = save(&mut store, 1, 10);
    let name = "core.dsp_0-b.1.2.elf";
    let Outcome::Written { path, bytes, .. } = &outcome else {
        panic!("{outcome}");
    };
    assert_eq!(*path, folder.path().join(name));
    let figures = fs::metadata(path).unwrap();
    assert_eq!(figures.permissions().mode() & 0o777, 0o600);
    assert_eq!(figures.blocks() * 512, *bytes);
    assert_eq!(names(folder.path()), [name, "core.dsp_0-b.4.1.elf"]);
    let list = store.list().unwrap();
    let found: Vec<_> = list
        .iter()
        .map(|one| (one.incarnation, one.number))
        .collect();
    assert_eq!(found, [(4, 1), (1, 2)]);
}

#[test]
fn the_oldest_go_first_when_there_are_too_many() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { count: 3, ..PLENTY };
    let mut store = DumpStore::open(folder.path(), "dsp", limits).unwrap();
    // Twelve, so that 10 comes after 9 and not after 1.
    for incarnation in (1..=12).rev() {
        assert!(matches!(
            save(&mut store, incarnation, 10),
            Outcome::Written { .. }
        ));
    }
    let expected = [
        "core.dsp.1.12.elf",
        "core.dsp.2.11.elf",
        "core.dsp.3.10.elf",
    ];
    assert_eq!(names(folder.path()), expected);
}

#[test]
fn the_oldest_go_first_when_they_are_too_large() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits {
        bytes: 300 << 10,
        ..PLENTY
    };
    let mut store = DumpStore::open(folder.path(), "dsp", limits).unwrap();
    for incarnation in 1..=5 {
        assert!(matches!(
            save(&mut store, incarnation, 128 << 10),
            Outcome::Written { .. }
        ));
    }
    assert_eq!(
        names(folder.path()),
        ["core.dsp.4.4.elf", "core.dsp.5.5.elf"]
    );
}

#[test]
fn one_that_is_larger_than_the_quota_is_cut_short() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits {
        bytes: 100 << 10,
        ..PLENTY
    };
    let mut store = DumpStore::open(folder.path(), "dsp", limits).unwrap();
    let outcome = save(&mut store, 1, 1 << 20);
    let Outcome::Partial { bytes, why, .. } = &outcome else {
        panic!("{outcome}");
    };
    assert!(*bytes <= 100 << 10, "{bytes}");
    assert!(why.contains("quota of 102400 bytes"), "{why}");
    assert_eq!(names(folder.path()), ["core.dsp.1.1.partial.elf"]);
    assert!(store.list().unwrap()[0].partial);

    let none = Limits {
        bytes: 100,
        ..PLENTY
    };
    let mut store = DumpStore::open(folder.path(), "other", none).unwrap();
    let outcome = save(&mut store, 1, 10);
    assert!(matches!(&outcome, Outcome::Failed { why } if why.contains("quota is 100")));
    assert_eq!(names(folder.path()).len(), 1);
}

#[test]
fn without_a_quota_or_anything_to_say_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    for none in [Limits { count: 0, ..PLENTY }, Limits { bytes: 0, ..PLENTY }] {
        let mut store = DumpStore::open(folder.path(), "dsp", none).unwrap();
        assert!(matches!(save(&mut store, 1, 10), Outcome::Skipped { .. }));
    }
    let mut store = DumpStore::open(folder.path(), "dsp", PLENTY).unwrap();
    let mut nothing = dump(1, 1);
    nothing.segments.clear();
    nothing.registers = None;
    let outcome = store.save(&mut nothing, &mut go_on);
    assert!(matches!(outcome, Outcome::Skipped { .. }));
    assert!(names(folder.path()).is_empty());
}

#[test]
fn leftovers_of_a_killed_process_go_and_nothing_else_does() {
    let folder = tempfile::tempdir().unwrap();
    let mut others = vec![
        ".core.dsp.1.1.elf",
        ".core.dsp.1.writing",
        ".core.dsp.01.1.writing",
        ".core.dsp2.1.1.writing",
        ".core.dsp.1.1.2.writing",
        "core.dsp.1.1.writing",
        "core.dsp.+1.1.elf",
        "core.dsp.1.1.elf.bak",
        "core.dsp.4294967296.1.elf",
        "core.dsp.1.99999999999999999999.elf",
        "core.dsp.1.18446744073709551615.elf",
        "core.other.1.1.elf",
        "notes.txt",
    ];
    for name in &others {
        fs::write(folder.path().join(name), "mine").unwrap();
    }
    for leftover in [".core.dsp.1.3.writing", ".core.dsp.1.4.partial.writing"] {
        fs::write(folder.path().join(leftover), "half").unwrap();
    }
    // Named as ours are, and still not ours.
    fs::create_dir(folder.path().join("core.dsp.1.5.elf")).unwrap();
    symlink("notes.txt", folder.path().join("core.dsp.1.6.elf")).unwrap();
    symlink("notes.txt", folder.path().join(".core.dsp.1.7.writing")).unwrap();
    others.extend([
        "core.dsp.1.5.elf",
        "core.dsp.1.6.elf",
        ".core.dsp.1.7.writing",
    ]);

    let limits = Limits { count: 1, ..PLENTY };
    let mut store = DumpStore::open(folder.path(), "dsp", limits).unwrap();
    others.sort_unstable();
    assert_eq!(names(folder.path()), others);
    // The next number is free, and whatever lies where it is written makes way.
    for _ in 0..2 {
        assert!(matches!(save(&mut store, 1, 10), Outcome::Written { .. }));
    }
    others.retain(|name| *name != ".core.dsp.1.7.writing");
    others.push("core.dsp.1.8.elf");
    others.sort_unstable();
    assert_eq!(names(folder.path()), others);
    assert_eq!(fs::read(folder.path().join("notes.txt")).unwrap(), b"mine");
}

#[test]
fn time_that_is_over_leaves_a_partial_dump() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = DumpStore::open(folder.path(), "dsp", PLENTY).unwrap();
    let outcome = store.save(&mut dump(1, 1 << 20), &mut within(Duration::ZERO));
    let Outcome::Partial { why, bytes, .. } = &outcome else {
        panic!("{outcome}");
    };
    assert!(why.contains("is over"), "{why}");
    assert!(*bytes <= 8192);
    let mut no_end = within(Duration::from_secs(3600));
    let outcome = store.save(&mut dump(1, 1 << 20), &mut no_end);
    assert!(matches!(outcome, Outcome::Written { .. }));
}

#[test]
fn a_folder_or_a_name_that_cannot_be_used_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error = DumpStore::open(&folder.path().join("none"), "dsp", PLENTY).unwrap_err();
    assert!(error.to_string().contains("must exist and be writable"));
    // A file, and a folder where not even root can make one.
    for place in ["/proc/version", "/proc/self"] {
        for refusal in [
            DumpStore::check(Path::new(place), "dsp").err(),
            DumpStore::open(Path::new(place), "dsp", PLENTY).err(),
        ] {
            let error = refusal.unwrap();
            assert!(error.to_string().contains(place), "{error}");
        }
    }
    for name in ["", "a.b", "a/b", "A", "..", &"a".repeat(32)] {
        let error = DumpStore::open(folder.path(), name, PLENTY).unwrap_err();
        assert!(matches!(error, StoreError::Core { .. }), "{name}");
    }
    // A folder that goes away afterwards is a dump that fails.
    let mut store = DumpStore::open(folder.path(), "dsp", PLENTY).unwrap();
    drop(folder);
    assert!(matches!(save(&mut store, 1, 10), Outcome::Failed { .. }));
}

/// This very test runs itself again where a small disk is mounted.
#[test]
fn a_full_disk_leaves_a_partial_dump_and_then_none() {
    if let Some(disk) = std::env::var_os(SMALL_DISK) {
        let mut store = DumpStore::open(disk.as_ref(), "dsp", PLENTY).unwrap();
        let outcome = save(&mut store, 1, 4 << 20);
        let Outcome::Partial { bytes, why, .. } = &outcome else {
            panic!("{outcome}");
        };
        assert!(why.contains("No space left"), "{why}");
        assert!(*bytes > 512 << 10, "{bytes}");
        // What is left is not enough for the headers.
        fs::write(Path::new(&disk).join("filler"), vec![1; 1 << 20]).unwrap_err();
        let outcome = save(&mut store, 2, 10);
        assert!(matches!(&outcome, Outcome::Failed { why } if why.contains("No space left")));
        assert_eq!(names(disk.as_ref()), ["core.dsp.1.1.partial.elf", "filler"]);
        println!("filled");
        return;
    }
    let disk = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=1m small \"$1\" || exit 77; \
                  exec \"$2\" --exact \"$3\" --nocapture";
    let me = std::env::current_exe().unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-c", script, "sh"])
        .args([disk.path(), &me])
        .arg("coredump::folder::a_full_disk_leaves_a_partial_dump_and_then_none")
        .env(SMALL_DISK, disk.path())
        .output();
    let Ok(output) = output else {
        println!("skipped: no unshare (package util-linux)");
        return;
    };
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    if !text.contains("running 1 test") {
        println!("skipped: this system lets nobody mount a small disk: {text}");
        return;
    }
    assert!(output.status.success() && text.contains("filled"), "{text}");
}
