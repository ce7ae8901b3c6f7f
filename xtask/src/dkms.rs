//! The Debian package of the guest's kernel module: its source, for DKMS to build.
//!
//! What belongs here: what is in it, and where. What does not: the module, and what its scripts do
//! (`vmm-config/guest/module`, `packaging/dkms`).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cargo;

const NAME: &str = "virtio-rpmsg-defer";
/// What DKMS needs, and the licence.
const SOURCES: [&str; 5] = [
    "COPYING",
    "Kbuild",
    "Makefile",
    "dkms.conf",
    "virtio_rpmsg_defer.c",
];

/// Files of the package are not newer than this: the beginning of 2026.
const NO_NEWER: &str = "1767225600";

/// Makes it in `folder`, and says where.
pub fn build(folder: &Path) -> Result<PathBuf> {
    let module = cargo::root().join("vmm-config/guest/module");
    let packaging = cargo::root().join("packaging/dkms");
    let version = version(&text(&module.join("dkms.conf"))?)?;
    let tree = folder.join(format!("{NAME}-dkms"));
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))?;
    }
    let source = format!("usr/src/{NAME}-{version}");
    for name in SOURCES {
        put(
            &tree,
            &format!("{source}/{name}"),
            &text(&module.join(name))?,
            0o644,
        )?;
    }
    let modprobe = text(&module.join("modprobe.conf"))?;
    put(
        &tree,
        "usr/lib/modprobe.d/virtio_rpmsg_defer.conf",
        &modprobe,
        0o644,
    )?;
    let documentation = format!("usr/share/doc/{NAME}-dkms");
    let readme = text(&module.join("README.md"))?;
    put(&tree, &format!("{documentation}/README.md"), &readme, 0o644)?;
    let copyright = text(&packaging.join("copyright"))?;
    put(
        &tree,
        &format!("{documentation}/copyright"),
        &copyright,
        0o644,
    )?;
    for (name, mode) in [("control", 0o644), ("postinst", 0o755), ("prerm", 0o755)] {
        let content = text(&packaging.join(name))?.replace("@VERSION@", &version);
        put(&tree, &format!("DEBIAN/{name}"), &content, mode)?;
    }
    let package = folder.join(format!("{NAME}-dkms_{version}_all.deb"));
    let output = Command::new("dpkg-deb")
        // All of it is root's, whoever builds it.
        .args(["--root-owner-group", "--build"])
        .args([&tree, &package])
        // The same files make the same package.
        .env("SOURCE_DATE_EPOCH", NO_NEWER)
        .output()
        .context("cannot run dpkg-deb")?;
    ensure!(
        output.status.success(),
        "dpkg-deb failed:\n{}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    fs::remove_dir_all(&tree)?;
    Ok(package)
}

/// The module's version, from its `dkms.conf`.
fn version(conf: &str) -> Result<String> {
    conf.lines()
        .find_map(|line| line.strip_prefix("PACKAGE_VERSION=\"")?.strip_suffix('"'))
        .map(str::to_owned)
        .context("dkms.conf has no line PACKAGE_VERSION=\"...\"")
}

fn text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Writes a file of the package; its folders are readable by all, whatever our umask is.
fn put(tree: &Path, name: &str, content: &str, mode: u32) -> Result<()> {
    let path = tree.join(name);
    let write = || {
        let mut folder = tree.to_owned();
        for part in Path::new(name).parent().into_iter().flatten() {
            fs::create_dir_all(&folder)?;
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
            folder.push(part);
        }
        fs::create_dir_all(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
        fs::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dpkg_deb(words: &[&str], package: &Path) -> String {
        let output = Command::new("dpkg-deb").args(words).arg(package).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn the_guests_package_has_what_dkms_needs_and_names_the_version_of_its_source() {
        let folder = tempfile::tempdir().unwrap();
        let package = build(folder.path()).unwrap();
        let conf = cargo::root().join("vmm-config/guest/module/dkms.conf");
        let version = version(&text(&conf).unwrap()).unwrap();
        let field = |name| dpkg_deb(&["--show", &format!("--showformat=${{{name}}}")], &package);
        assert_eq!(field("Package"), "virtio-rpmsg-defer-dkms");
        assert_eq!(field("Version"), version);
        assert_eq!(field("Architecture"), "all");
        assert!(field("Depends").contains("dkms"));
        let contents = dpkg_deb(&["--contents"], &package);
        let source = format!("./usr/src/virtio-rpmsg-defer-{version}");
        for file in [
            format!("{source}/dkms.conf"),
            format!("{source}/Kbuild"),
            format!("{source}/Makefile"),
            format!("{source}/virtio_rpmsg_defer.c"),
            "./usr/lib/modprobe.d/virtio_rpmsg_defer.conf".to_owned(),
        ] {
            let line = contents.lines().find(|line| line.ends_with(&file));
            let line = line.unwrap_or_else(|| panic!("no {file} in\n{contents}"));
            assert!(line.starts_with("-rw-r--r-- root/root"), "{line}");
        }
        let scripts = folder.path().join("scripts");
        let mut take = Command::new("dpkg-deb");
        take.arg("--control").args([&package, &scripts]);
        assert!(take.status().unwrap().success());
        for script in ["postinst", "prerm"] {
            let content = text(&scripts.join(script)).unwrap();
            assert!(
                content.contains(&version) && !content.contains('@'),
                "{content}"
            );
        }
    }
}
