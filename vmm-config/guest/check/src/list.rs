//! What is on the rpmsg bus, read from sysfs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const DEVICES: &str = "/sys/bus/rpmsg/devices";

/// One line a device, `key=value` pairs, and `N devices` at the end.
pub fn list() -> Result<bool> {
    let mut devices: Vec<PathBuf> = fs::read_dir(DEVICES)
        .with_context(|| format!("cannot read {DEVICES}: is rpmsg_core loaded?"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    devices.sort();
    for device in &devices {
        let driver = fs::read_link(device.join("driver")).ok();
        let driver = driver
            .as_deref()
            .and_then(Path::file_name)
            .unwrap_or("none".as_ref());
        let nodes = nodes(device);
        println!(
            "device={} name={} src={} dst={} driver={} node={}",
            device.file_name().unwrap_or_default().display(),
            attribute(device, "name"),
            attribute(device, "src"),
            attribute(device, "dst"),
            driver.display(),
            if nodes.is_empty() {
                "none".to_owned()
            } else {
                nodes.join(",")
            },
        );
    }
    println!("{} devices", devices.len());
    Ok(true)
}

fn attribute(device: &Path, name: &str) -> String {
    fs::read_to_string(device.join(name)).map_or("?".to_owned(), |text| text.trim().to_owned())
}

/// The nodes in /dev that belong to `device`: those of class devices below it, which lie in a
/// folder with the class's name or directly in the device's folder.
fn nodes(device: &Path) -> Vec<String> {
    let mut nodes = Vec::new();
    let mut folders = vec![(device.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.path().join("dev").exists() {
                nodes.push(format!("/dev/{}", entry.file_name().display()));
            } else if depth < 2 {
                folders.push((entry.path(), depth + 1));
            }
        }
    }
    nodes.sort();
    nodes
}
