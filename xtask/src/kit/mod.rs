//! What a guest VM needs: QEMU, a kernel, rpmsg modules, an initramfs.
//!
//! All of it lies in a cache folder, never in the source tree. Each piece has a folder of its own,
//! named by version, and by a hash of those of our files that go into it; it is made aside and
//! renamed into place. What is there is not made again, so that a second run needs no network.
//! Which versions those are is decided once (`choice.json`) and again with `--update`.
//!
//! No rights of an administrator are needed, except to install a missing tool: packages are
//! unpacked and not installed, and QEMU runs from its folder with the libraries beside it.

mod accel;
mod apt;
mod cache;
mod debian;
mod hash;
mod initramfs;
mod installed;
mod kernel;
mod module_package;
mod modules;
mod others;
mod qemu;
mod ready_made;
mod tree;
mod varlink;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

pub use self::apt::{MachineArchive, machine_archive};
pub use self::cache::{Cache, command, tail};
pub use self::installed::Installed;
use crate::tools::{self, Need, program};

/// Names the kit's description, for the VM tests.
pub const KIT_VARIABLE: &str = "RPROCD_VM_KIT";

/// Names a folder with firmware that others made, for the test that reads it.
pub const OTHERS_VARIABLE: &str = "RPROCD_TEST_FIRMWARE";

/// Names systemd's Varlink client, for the tests that call rprocd with it.
pub const VARLINKCTL_VARIABLE: &str = "RPROCD_VARLINKCTL";

/// Names the description of a guest in which the packages are installed.
pub const INSTALLED_VARIABLE: &str = "RPROCD_VM_INSTALLED";

/// `cargo xtask kit`.
#[derive(clap::Args, Debug, Default)]
pub struct Options {
    /// Look for newer versions, though there is a kit that works
    #[arg(long)]
    pub update: bool,
}

/// What a guest VM is started with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kit {
    /// A QEMU that can create `vhost-user-test-device-pci`.
    pub qemu: PathBuf,
    /// What it says of itself.
    pub qemu_version: String,
    /// `kvm` or `tcg`.
    pub accel: String,
    /// The kernel image.
    pub kernel: PathBuf,
    /// Its release, as `uname -r` has it.
    pub kernel_version: String,
    /// Busybox, the modules, the check program, our init.
    pub initramfs: PathBuf,
}

impl Kit {
    /// Reads the description that [`KIT_VARIABLE`] names.
    pub fn from_environment() -> Result<Self> {
        let path = std::env::var_os(KIT_VARIABLE).with_context(|| {
            format!("{KIT_VARIABLE} is not set: run the VM tests with `cargo xtask test`")
        })?;
        let path = PathBuf::from(path);
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text)
            .with_context(|| format!("{} is no description of a kit", path.display()))
    }

    /// The same kit with an initramfs of its own in `folder`, which has the executable file `name`
    /// too.
    pub fn with_file(&self, name: &str, content: &[u8], folder: &Path) -> Result<Self> {
        let mut archive = initramfs::Archive::new();
        archive.file(name, content);
        let bytes = initramfs::followed_by(&self.initramfs, archive)?;
        let initramfs = folder.join("initramfs.cpio");
        fs::write(&initramfs, bytes)
            .with_context(|| format!("cannot write {}", initramfs.display()))?;
        let kit = self.clone();
        Ok(Self { initramfs, ..kit })
    }

    /// The same kit with an initramfs of its own, which has those of [`vsock_modules`] too.
    pub fn with_vsock(self) -> Result<Self> {
        let cache = Cache::open()?;
        let choice = apt::Choice::load(&cache)
            .context("nothing says which kernel the kit has: run `cargo xtask kit`")?;
        let modules = ready_made::VSOCK.get(&cache, &mut apt::Apt::new(&cache), &choice)?;
        let initramfs = initramfs::with(&cache, &self.initramfs, &modules)?;
        Ok(Self { initramfs, ..self })
    }
}

/// `cargo xtask kit`: prepares everything and prints where it is.
pub fn run(options: &Options) -> Result<()> {
    let (kit, description) = prepare(options)?;
    println!(
        "kit: QEMU       {} ({})",
        kit.qemu.display(),
        kit.qemu_version
    );
    println!(
        "kit: kernel     {} ({})",
        kit.kernel.display(),
        kit.kernel_version
    );
    println!("kit: initramfs  {}", kit.initramfs.display());
    println!("kit: runs with  {}", kit.accel);
    println!("kit: all this   {}", description.display());
    Ok(())
}

/// What fetching and making the kit needs.
pub fn needs() -> Vec<Need> {
    vec![
        program("apt-get", "apt"),
        program("dpkg-deb", "dpkg"),
        program("tar", "tar"),
        program("xz", "xz-utils"),
        program("unshare", "util-linux"),
        program("mount", "mount"),
        program("chroot", "coreutils"),
        Need::Target(initramfs::TARGET),
    ]
}

/// What making whole Debian systems needs: for the guest in which the package is installed, and for
/// the package of the guest's module.
pub fn debian_needs() -> Vec<Need> {
    let mut needs = needs();
    needs.extend([
        program("mmdebstrap", "mmdebstrap"),
        program("genext2fs", "genext2fs"),
        program("resize2fs", "e2fsprogs"),
    ]);
    needs
}

/// Makes what is missing; returns the kit and the file that describes it.
pub fn prepare(options: &Options) -> Result<(Kit, PathBuf)> {
    tools::prepare(&[("the VM kit", needs())])?;
    let cache = Cache::open()?;
    let mut apt = apt::Apt::new(&cache);
    let choice = if options.update {
        None
    } else {
        apt::Choice::load(&cache)
    };
    let choice = match choice {
        Some(choice) => choice,
        None => apt.choose()?,
    };
    let qemu = qemu::get(&cache, &mut apt, &choice)?;
    let kernel = kernel::get(&cache, &mut apt, &choice)?;
    let modules = modules::get(&cache, &mut apt, &choice)?;
    let initramfs = initramfs::get(&cache, &mut apt, &choice, &modules)?;
    let mut kit = Kit {
        qemu: qemu.program,
        qemu_version: qemu.version,
        accel: "tcg".to_owned(),
        kernel,
        kernel_version: choice.kernel.clone(),
        initramfs,
    };
    kit.accel = accel::choose(&cache, &kit)?;
    let description = cache.root().join("kit.json");
    write_atomically(&description, &serde_json::to_vec_pretty(&kit)?)?;
    Ok((kit, description))
}

/// In the order in which a guest loads them, what [`Kit::with_vsock`] adds to `/modules`.
pub fn vsock_modules() -> impl Iterator<Item = &'static str> {
    ready_made::VSOCK.names()
}

/// The folder with firmware that others made, for [`OTHERS_VARIABLE`]; fetched if it is not there.
pub fn others() -> Result<PathBuf> {
    tools::prepare(&[("what is unpacked of Debian's packages", needs())])?;
    let cache = Cache::open()?;
    let mut apt = apt::Apt::new(&cache);
    let choice = match apt::Choice::load(&cache) {
        Some(choice) => choice,
        None => apt.choose()?,
    };
    others::get(&cache, &mut apt, &choice)
}

/// The description for [`INSTALLED_VARIABLE`]: a Debian, with `packages` in the operator's home.
///
/// # Errors
/// A [`tools::Gap`] if the programs cannot run there.
pub fn installed(kit: &Kit, packages: &[PathBuf]) -> Result<PathBuf> {
    installed::get(&Cache::open()?, kit, packages)
}

/// Installs the package of the guest's kernel module where DKMS and the kernel's headers are, and
/// removes it.
///
/// # Errors
/// A [`tools::Gap`] if this user cannot install packages in a folder.
pub fn module_package(package: &Path) -> Result<()> {
    module_package::check(&Cache::open()?, package)
}

/// systemd's Varlink client, for [`VARLINKCTL_VARIABLE`]; fetched if it is not there.
pub fn varlinkctl() -> Result<PathBuf> {
    varlink::get(&Cache::open()?)
}

/// The same folder, if an earlier run has fetched it.
pub fn others_if_there() -> Option<PathBuf> {
    others::there(&Cache::open().ok()?)
}

/// A folder of the cache with `packages` and all that they depend on in a folder `tree`, unpacked
/// and not installed; `finish` adds what is needed to run them. Made once for each suite.
pub fn unpacked(
    cache: &Cache,
    name: &str,
    packages: &[&str],
    finish: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    tools::prepare(&[("what is unpacked of Debian's packages", needs())])?;
    let mut apt = apt::Apt::new(cache);
    let choice = match apt::Choice::load(cache) {
        Some(choice) => choice,
        None => apt.choose()?,
    };
    cache.piece(&format!("peers/{name}-{}", choice.suite), |folder| {
        let tree = folder.join("tree");
        tree::skeleton(&tree)?;
        apt.unpack_closure(&choice, name, packages, &tree)?;
        finish(folder)
    })
}

/// Nobody ever sees half of the file.
fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    let aside = path.with_extension("new");
    fs::write(&aside, content).with_context(|| format!("cannot write {}", aside.display()))?;
    fs::rename(&aside, path).with_context(|| format!("cannot write {}", path.display()))
}
