//! The fuzz targets' corpus, checked in under `fuzz/seeds`: what our builders make is compared, and
//! every file, found ones included, is replayed through what must hold.

use std::fs;
use std::path::{Path, PathBuf};

use rprocd::engine::ImageRules;
use rprocd::firmware::{Image, ResourceTable};

use super::elf_builder::{Elf, sample};
use super::invariants;
use super::look_alikes::{companion_arm, companion_riscv, logger, rtos_rpmsg};
use super::table_builder::{ANY, Table};

/// Set to write the seeds instead of comparing them.
const WRITE: &str = "RPROCD_WRITE_SEEDS";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds")
}

#[test]
fn the_seeds_are_what_the_builders_make() {
    let rpmsg = Table::new().vdev(7, 1, &[(ANY, 16, 256), (ANY, 16, 256)], &[]);
    let small = Table::new().vdev(7, 1, &[(ANY, 16, 16); 2], &[]);
    let seeds = [
        ("image/sample", sample().build()),
        ("image/sample-64", sample().wide().build()),
        ("image/plain", Elf::new(0).load(0, &[0x13; 4], 64).build()),
        (
            "image/rpmsg",
            Elf::new(0x8000_0000)
                .table(0x8000_0000, &rpmsg.build())
                .build(),
        ),
        ("image/companion-riscv", companion_riscv().build()),
        ("image/companion-arm", companion_arm().build()),
        ("image/rtos-rpmsg", rtos_rpmsg().build()),
        (
            "image/hard-float",
            Elf::new(0)
                .flags(5)
                .load(0, &[0x13; 4], 64)
                .attributes("rv32i2p1_m2p0_a2p1_f2p2_d2p2_c2p0_zicsr2p0_zca1p0_zcd1p0_zcf1p0")
                .build(),
        ),
        (
            "image/attributes",
            Elf::new(0)
                .flags(1)
                .load(0, &[0x13; 4], 64)
                .attributes("rv32i2p1_m2p0_a2p1_c2p0_zicsr2p0_zifencei2p0_zmmul1p0_zca1p0")
                .build(),
        ),
        ("image/logger", logger(0x8000_0678).build()),
        (
            "image/virtual-table",
            Elf::new(0x8000_0000)
                .load(0x8000_0000, &[0x13; 4], 64)
                .table_from(0x8000_2000, 0x8000_1000, &small.build())
                .build(),
        ),
        ("resource_table/sample", Table::sample().build()),
        ("resource_table/empty", Table::new().build()),
        ("resource_table/rpmsg", rpmsg.build()),
    ];
    for (name, bytes) in seeds {
        let path = folder().join(name);
        if std::env::var_os(WRITE).is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &bytes).unwrap();
        }
        let stored = fs::read(&path).unwrap_or_default();
        assert!(
            stored == bytes,
            "{name} differs; write it anew with {WRITE}=1"
        );
    }
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let files: Vec<_> = fs::read_dir(folder().join(target))
        .unwrap()
        .map(|entry| fs::read(entry.unwrap().path()).unwrap())
        .collect();
    assert!(!files.is_empty());
    files
}

#[test]
fn the_images_of_the_corpus_hold_what_must_hold() {
    for bytes in corpus("image") {
        for rules in [ImageRules::ANY, ImageRules::RV32] {
            if let Ok(image) = Image::parse(&bytes, &rules) {
                invariants::image(&image, &bytes);
            }
        }
        invariants::report(&bytes);
    }
}

#[test]
fn the_tables_of_the_corpus_hold_what_must_hold() {
    for bytes in corpus("resource_table") {
        if let Ok(table) = ResourceTable::parse(&bytes) {
            invariants::table(&table, &bytes);
        }
    }
}
