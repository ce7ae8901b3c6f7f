//! What the fuzz targets begin with: small images and tables, checked in under `fuzz/seeds`.

use std::fs;
use std::path::Path;

use super::elf_builder::{Elf, sample};
use super::table_builder::{ANY, Table};

/// Set to write the seeds instead of comparing them.
const WRITE: &str = "RPROCD_WRITE_SEEDS";

#[test]
fn the_seeds_are_what_the_builders_make() {
    let rpmsg = Table::new().vdev(7, 1, &[(ANY, 16, 256), (ANY, 16, 256)], &[]);
    let seeds = [
        ("image/sample", sample().build()),
        ("image/plain", Elf::new(0).load(0, &[0x13; 4], 64).build()),
        (
            "image/rpmsg",
            Elf::new(0x8000_0000)
                .table(0x8000_0000, &rpmsg.build())
                .build(),
        ),
        ("resource_table/sample", Table::sample().build()),
        ("resource_table/empty", Table::new().build()),
        ("resource_table/rpmsg", rpmsg.build()),
    ];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    for (name, bytes) in seeds {
        let path = folder.join(name);
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
