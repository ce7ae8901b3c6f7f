//! Firmware that others made and that cannot lie in our tree: the companion processors' images of
//! Debian's package `firmware-mediatek`. `cargo xtask test` fetches them.

use std::path::{Path, PathBuf};

use rprocd::engine::ImageRules;
use rprocd::firmware::{Image, Segment, Snapshot};
use rprocd::memory::DeviceAddress;
use rprocd::rproc::{CheckOptions, check};

use super::image::RISCV;
use super::invariants;

/// Names the folder with the files.
const VARIABLE: &str = "RPROCD_TEST_FIRMWARE";
/// The machines that the files are for.
const ARM: u16 = 40;
const RISC_V: u16 = 243;

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, found);
        } else if path.file_name().is_some_and(|name| name == "scp.img") {
            found.push(path);
        }
    }
}

/// Where its segments lie: first page, and bytes of memory that hold them all.
fn span(image: &Image) -> (DeviceAddress, u64) {
    let first = image.segments.iter().map(|segment| segment.da.0).min();
    let end = image.segments.iter().map(|segment| segment.end().0).max();
    let base = first.unwrap() & !0xfff;
    (
        DeviceAddress(base),
        (end.unwrap() - base).next_multiple_of(4096),
    )
}

#[test]
fn firmware_of_companion_processors_is_planned_or_refused_precisely() {
    let Some(folder) = std::env::var_os(VARIABLE) else {
        println!(
            "not run: {VARIABLE} names no folder with firmware of others; `cargo xtask test` does"
        );
        return;
    };
    let mut found = Vec::new();
    files(Path::new(&folder), &mut found);
    assert!(!found.is_empty(), "no scp.img in {}", folder.display());
    let mut machines = Vec::new();
    let mut single_bytes = false;
    for path in found {
        let shown = path.display();
        let bytes = std::fs::read(&path).unwrap();
        let machine = u16::from_le_bytes([bytes[18], bytes[19]]);
        machines.push(machine);
        let image = Image::parse(&bytes, &ImageRules::ANY)
            .unwrap_or_else(|error| panic!("{shown}: {error}"));
        invariants::image(&image, &bytes);
        invariants::report(&bytes);
        assert_eq!(image.table, None, "{shown}");
        let any = |shape: fn(&Segment) -> bool| image.segments.iter().any(shape);
        single_bytes |= any(|segment| segment.memsz == 1);
        assert!(any(|segment| segment.va != segment.da.0), "{shown}");

        // Where its memory is, it has a plan.
        let snapshot = Snapshot::from_bytes("scp.img", bytes.clone());
        let (base, memory_bytes) = span(&image);
        let there = CheckOptions {
            rules: ImageRules::ANY,
            base,
            memory_bytes,
            ..CheckOptions::default()
        };
        let report = check(&snapshot, &there).unwrap();
        assert_eq!(report.refusal(), None, "{shown}");
        println!("{shown}: {}", report.summary());

        // On our board it has not, and it is said why.
        let report = check(&snapshot, &CheckOptions::default()).unwrap();
        let expected = match machine {
            ARM => "image: e_machine is 40 (ARM), must be 243 (RISC-V)".to_owned(),
            RISC_V => {
                assert!(Image::parse(&bytes, &RISCV).is_ok(), "{shown}");
                let first = &image.segments[0];
                format!(
                    "segment {} must lie in the core's memory: {:#x} bytes at {} are outside the \
                     core's memory (0x80000000 to 0x80400000)",
                    first.index, first.memsz, first.da
                )
            }
            other => panic!("{shown}: machine {other}"),
        };
        assert_eq!(report.refusal(), Some(&*expected), "{shown}");
    }
    assert!(single_bytes, "no file has a segment of one byte");
    assert!(machines.contains(&ARM), "{machines:?}");
    assert!(machines.contains(&RISC_V), "{machines:?}");
}
