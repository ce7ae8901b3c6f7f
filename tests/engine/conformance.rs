//! The engine against the riscv-tests that come with the crate `embive`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use goblin::elf::Elf;
use goblin::elf::program_header::PT_LOAD;
use rprocd::engine::CrashKind;

use super::machine::{BASE, Machine};

const A0: usize = 10;
const A7: usize = 17;
/// What the tests put into a7 before the `ecall` that reports.
const EXIT: u32 = 93;

/// The folder of the crate in cargo's registry.
fn embive() -> PathBuf {
    // Offline, and so for this platform only: what others need may not have been downloaded.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline"])
        .args(["--filter-platform", &platform])
        .arg("--manifest-path")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let package = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .find(|package| package["name"] == "embive")
        .unwrap();
    let manifest = Path::new(package["manifest_path"].as_str().unwrap());
    manifest.parent().unwrap().join("tests/riscv")
}

fn images() -> Vec<PathBuf> {
    let mut images: Vec<PathBuf> = fs::read_dir(embive())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .flat_map(|folder| fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "elf"))
        .collect();
    images.sort();
    images
}

/// Runs one image; the error says how it failed.
fn run(path: &Path) -> Result<(), String> {
    let image = fs::read(path).unwrap();
    let elf = Elf::parse(&image).unwrap();
    let mut machine = Machine::new();
    for segment in elf.program_headers.iter().filter(|h| h.p_type == PT_LOAD) {
        let address = u32::try_from(segment.p_paddr).unwrap();
        machine.load(address, &image[segment.file_range()]);
    }
    assert_eq!(elf.entry, u64::from(BASE));
    machine.start(BASE);
    // The images set up no trap handler, so their last ecall is a crash of the core.
    let crash = machine.crash();
    let x = machine.registers().x;
    let reported = crash.kind == CrashKind::FatalError
        && crash.detail.starts_with("environment call from M-mode")
        && x[A7] == EXIT;
    match x[A0] {
        0 if reported => Ok(()),
        code if reported => Err(format!("case {} failed", code >> 1)),
        _ => Err(crash.detail),
    }
}

#[test]
fn all_58_riscv_tests_pass() {
    let images = images();
    assert_eq!(images.len(), 58);
    let failures: Vec<String> = images
        .iter()
        .filter_map(|path| Some(format!("{}: {}", path.display(), run(path).err()?)))
        .collect();
    assert!(failures.is_empty(), "{failures:#?}");
}
