//! `cargo xtask check-firmware`: what a loader would do with an image.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use rprocd::engine::ImageRules;
use rprocd::firmware::Snapshot;
use rprocd::memory::DeviceAddress;
use rprocd::report::sentence;
use rprocd::rproc::{Check, CheckOptions, check};

/// So much of a path is shown in a summary.
const PATH_COLUMNS: usize = 32;

/// `cargo xtask check-firmware`.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Images; of several each gets a line, of one all is told
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The core's memory, in MiB
    #[arg(long, value_name = "N", default_value_t = 4,
          value_parser = clap::value_parser!(u64).range(1..=4096))]
    memory_mib: u64,
    /// Where the core's memory begins
    #[arg(long, value_name = "ADDRESS", default_value = "0x80000000", value_parser = address)]
    memory_base: DeviceAddress,
    /// Which cores' images are taken; riscv is engine rv32
    #[arg(long, default_value = "riscv")]
    machine: Machine,
}

/// Which images are taken.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Machine {
    /// Every machine, ELF32 and ELF64
    Any,
    /// RISC-V, ELF32
    Riscv,
}

fn address(text: &str) -> Result<DeviceAddress, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(&digits.replace('_', ""), 16),
        None => text.parse(),
    };
    number
        .map(DeviceAddress)
        .map_err(|_| "must be a number, as in 0x80000000".to_owned())
}

/// Checks all of them; an error if one is refused.
pub fn run(options: &Options) -> Result<()> {
    let mut refused = 0;
    for file in &options.files {
        match look_at(file, options) {
            Ok(check) => {
                refused += usize::from(check.refusal().is_some());
                if options.files.len() == 1 {
                    println!("{check}");
                } else {
                    println!("{}", check.summary());
                }
            }
            Err(why) => {
                refused += 1;
                println!("{why}");
            }
        }
    }
    match (refused, options.files.len()) {
        (0, _) => Ok(()),
        (_, 1) => bail!("the image is refused"),
        (some, all) => bail!("{some} of {all} images are refused"),
    }
}

/// The end of the path, short enough to leave room for more in a line.
fn end_of(file: &Path) -> String {
    let path = file.display().to_string();
    let too_long = path.chars().count().saturating_sub(PATH_COLUMNS);
    if too_long == 0 {
        return path;
    }
    let kept: String = path.chars().skip(too_long + 3).collect();
    format!("...{kept}")
}

fn look_at(file: &Path, options: &Options) -> Result<Check, String> {
    let folder = match file.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let name = file.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let mut snapshot = Snapshot::read(folder, name).map_err(|error| sentence(&error))?;
    if options.files.len() > 1 {
        // Firmware of several chips has one name in several folders.
        snapshot = Snapshot::from_bytes(&end_of(file), snapshot.bytes().to_vec());
    }
    let rules = match options.machine {
        Machine::Any => ImageRules::ANY,
        Machine::Riscv => ImageRules::RV32,
    };
    let options = CheckOptions {
        rules,
        base: options.memory_base,
        memory_bytes: options.memory_mib << 20,
        ..CheckOptions::default()
    };
    check(&snapshot, &options).map_err(|error| sentence(&error))
}
