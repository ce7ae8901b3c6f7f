//! Images that real toolchains made: the riscv-tests programs and the two applications that the
//! package embive carries. None of them has a resource table.

use std::path::{Path, PathBuf};
use std::process::Command;

use rprocd::firmware::{Image, ImageError};

use super::image::RISCV;
use super::invariants;

/// The folder `tests` of the package embive, wherever cargo keeps it.
fn embive_tests() -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--offline", "--locked"])
        // Without it packages for other systems would have to be there, too.
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .arg("--manifest-path")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let manifest = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .find(|package| package["name"] == "embive")
        .and_then(|package| package["manifest_path"].as_str())
        .unwrap();
    Path::new(manifest).with_file_name("tests")
}

fn elf_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            elf_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "elf") {
            files.push(path);
        }
    }
}

#[test]
fn riscv_tests_are_accepted_and_have_no_table() {
    let mut files = Vec::new();
    elf_files(&embive_tests().join("riscv"), &mut files);
    assert!(files.len() > 40, "{files:?}");
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        let image = Image::parse(&bytes, &RISCV)
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        invariants::image(&image, &bytes);
        assert_eq!(image.table, None, "{}", file.display());
    }
}

#[test]
fn an_application_that_keeps_its_data_in_rom_is_accepted() {
    let bytes = std::fs::read(embive_tests().join("test.elf")).unwrap();
    let image = Image::parse(&bytes, &RISCV).unwrap();
    invariants::image(&image, &bytes);
    assert_eq!(image.table, None);
}

#[test]
fn segments_that_overlap_by_load_address_are_refused_though_they_run_elsewhere() {
    // Its zeroed data was given a load address inside the image of its other data.
    let bytes = std::fs::read(embive_tests().join("app.elf")).unwrap();
    assert!(matches!(
        Image::parse(&bytes, &RISCV),
        Err(ImageError::SegmentsOverlap {
            segment: 3,
            other: 2,
            ..
        })
    ));
}
