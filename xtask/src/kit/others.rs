//! Firmware that others made, for a test that reads it: the images of companion processors in
//! Debian's packages. They may be passed on and not be part of this tree.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::apt::{Apt, Choice};
use super::cache::Cache;

/// The package, since and before the vendors' files were told apart.
const PACKAGES: [&str; 2] = ["firmware-mediatek", "firmware-misc-nonfree"];
const PIECE: &str = "others-";
const IMAGE: &str = "scp.img";

/// The folder with the images, one folder a chip, if an earlier run has made it.
pub fn there(cache: &Cache) -> Option<PathBuf> {
    let entries = fs::read_dir(cache.root()).ok()?;
    let mut pieces: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with(PIECE) && !name.ends_with(".part")
        })
        .map(|entry| entry.path())
        .collect();
    pieces.sort();
    pieces.pop()
}

/// The folder with the images.
pub fn get(cache: &Cache, apt: &mut Apt, choice: &Choice) -> Result<PathBuf> {
    if let Some(folder) = there(cache) {
        return Ok(folder);
    }
    let mut package = PACKAGES[1];
    if apt.has(choice, PACKAGES[0])? {
        package = PACKAGES[0];
    }
    let version = apt.version(choice, package)?;
    let name = format!("{PIECE}{package}-{}", version.replace(':', "_"));
    let folder = cache.piece(&name, |folder| {
        let tree = folder.join("tree");
        apt.unpack_one(choice, package, &tree)?;
        let kept = keep(&tree, folder)?;
        ensure!(kept > 0, "package {package} has no {IMAGE}");
        fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))
    })?;
    cache.remove_others(PIECE, &name)?;
    Ok(folder)
}

/// Copies each image from wherever it lies in `tree` to `folder/CHIP`; says how many there were.
fn keep(tree: &Path, folder: &Path) -> Result<usize> {
    let mut kept = 0;
    for entry in fs::read_dir(tree)
        .with_context(|| format!("cannot read {}", tree.display()))?
        .flatten()
    {
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            kept += keep(&path, folder)?;
        } else if entry.file_name() == IMAGE
            && let Some(chip) = tree.file_name()
        {
            let place = folder.join(chip);
            fs::create_dir_all(&place)?;
            // Some are links to a file of another name.
            fs::copy(&path, place.join(IMAGE))
                .with_context(|| format!("cannot copy {}", path.display()))?;
            kept += 1;
        }
    }
    Ok(kept)
}
