//! The rpmsg modules, which Debian's kernels leave out, and ours.
//!
//! The kernel's own are built from Debian's source package of the same version, against its
//! headers, by its compiler: all that lies in a tree of its own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::apt::{Apt, Choice};
use super::cache::{Cache, command};
use super::hash::Hash;
use super::tree;
use crate::cargo;

const STOCK: [&str; 7] = [
    "rpmsg_core",
    "rpmsg_ns",
    "rpmsg_char",
    "rpmsg_ctrl",
    "virtio_rpmsg_bus",
    "rpmsg_tty",
    "rpmsg_client_sample",
];
/// The macros that the kernel's configuration would have set.
const CONFIGURATION: &str = "-DCONFIG_RPMSG_MODULE=1 -DCONFIG_RPMSG_CHAR_MODULE=1 \
    -DCONFIG_RPMSG_CTRL_MODULE=1 -DCONFIG_RPMSG_NS_MODULE=1 -DCONFIG_RPMSG_VIRTIO_MODULE=1";
/// Where they are in the kernel's source.
const SOURCES: [&str; 3] = [
    "*/drivers/rpmsg",
    "*/drivers/tty/rpmsg_tty.c",
    "*/samples/rpmsg/rpmsg_client_sample.c",
];
const OURS: &str = "virtio_rpmsg_defer";
/// Changes with the way that the tree and the modules are made.
const RECIPE: &str = "1";

/// All modules, as files.
pub fn get(cache: &Cache, apt: &mut Apt, choice: &Choice) -> Result<Vec<PathBuf>> {
    let stock_name = format!(
        "modules-{}-{}-{RECIPE}",
        choice.kernel, choice.kernel_package
    );
    let stock = cache.piece(&stock_name, |folder| {
        let toolchain = toolchain(cache, apt, choice)?;
        let source = folder.join("source");
        fetch_source(cache, apt, choice, &source)?;
        println!("kit: building the kernel's rpmsg modules");
        let names = STOCK.map(|name| format!("{name}.o")).join(" ");
        fs::write(source.join("Kbuild"), format!("obj-m := {names}\n"))?;
        let options = format!("KCFLAGS='{CONFIGURATION}'");
        build(cache, choice, &toolchain, &source, &options)?;
        take(&source, folder, &STOCK)?;
        fs::remove_dir_all(&source)?;
        Ok(())
    })?;
    cache.remove_others("modules-", &stock_name)?;

    let sources = cargo::root().join("vmm-config/guest/module");
    let files = [format!("{OURS}.c"), "Kbuild".to_owned()];
    let mut hash = Hash::new();
    hash.add(RECIPE.as_bytes()).add(stock_name.as_bytes());
    for file in &files {
        hash.add(&fs::read(sources.join(file)).with_context(|| format!("cannot read {file}"))?);
    }
    let our_name = format!("defer-{}", hash.name());
    let ours = cache.piece(&our_name, |folder| {
        let toolchain = toolchain(cache, apt, choice)?;
        let source = folder.join("source");
        fs::create_dir(&source)?;
        for file in &files {
            fs::copy(sources.join(file), source.join(file))?;
        }
        println!("kit: building the guest module {OURS}");
        // All of the kernel's own warnings, and each an error.
        build(cache, choice, &toolchain, &source, "W=1 KCFLAGS=-Werror")?;
        take(&source, folder, &[OURS])?;
        fs::remove_dir_all(&source)?;
        Ok(())
    })?;
    cache.remove_others("defer-", &our_name)?;

    let mut modules: Vec<PathBuf> = STOCK
        .iter()
        .map(|name| stock.join(format!("{name}.ko")))
        .collect();
    modules.push(ours.join(format!("{OURS}.ko")));
    Ok(modules)
}

/// A tree with the kernel's headers and the compiler that they want.
fn toolchain(cache: &Cache, apt: &mut Apt, choice: &Choice) -> Result<PathBuf> {
    let name = format!(
        "toolchain-{}-{}-{RECIPE}",
        choice.kernel, choice.kernel_package
    );
    let path = cache.piece(&name, |tree| {
        tree::skeleton(tree)?;
        let headers = format!("linux-headers-{}", choice.kernel);
        let packages = [
            headers.as_str(),
            "make",
            "dash",
            "bash",
            "coreutils",
            "sed",
            "grep",
            "findutils",
            "mawk",
            "perl-base",
        ];
        apt.unpack_closure(choice, "the kernel's headers and compiler", &packages, tree)?;
        // What installation scripts would have done.
        tree::link("dash", &tree.join("usr/bin/sh"))?;
        tree::link("mawk", &tree.join("usr/bin/awk"))?;
        for tool in [
            "ar", "as", "ld", "nm", "objcopy", "objdump", "ranlib", "readelf", "strip",
        ] {
            tree::link(
                &format!("x86_64-linux-gnu-{tool}"),
                &tree.join("usr/bin").join(tool),
            )?;
        }
        Ok(())
    })?;
    cache.remove_others("toolchain-", &name)?;
    Ok(path)
}

/// The few files that are wanted of the kernel's source, all in `folder`.
fn fetch_source(cache: &Cache, apt: &mut Apt, choice: &Choice, folder: &Path) -> Result<()> {
    let package = choice.source_package()?;
    let unpacked = folder.join("unpacked");
    apt.unpack_one(choice, &package, &unpacked)?;
    let archive = unpacked.join(format!("usr/src/{package}.tar.xz"));
    println!("kit: unpacking the rpmsg drivers from {package}");
    let mut tar = command("tar");
    tar.arg("-xJf")
        .arg(&archive)
        .arg("-C")
        .arg(folder)
        .arg("--transform=s,.*/,,");
    tar.arg("--wildcards")
        .args(SOURCES)
        .arg("--exclude=Makefile")
        .arg("--exclude=Kconfig");
    cache.run("modules", &mut tar)?;
    fs::remove_dir_all(&unpacked)?;
    Ok(())
}

fn build(cache: &Cache, choice: &Choice, tree: &Path, source: &Path, options: &str) -> Result<()> {
    let script = format!(
        "make -C /usr/src/linux-headers-{} M=/work {options} modules",
        choice.kernel
    );
    tree::run_inside(cache, "modules", tree, source, &script)
}

fn take(source: &Path, folder: &Path, names: &[&str]) -> Result<()> {
    for name in names {
        let file = format!("{name}.ko");
        let from = source.join(&file);
        ensure!(from.exists(), "the build made no {file}");
        fs::rename(&from, folder.join(&file))?;
    }
    Ok(())
}
