//! A small Debian tree in a folder: unpacked packages, on which no installation script ran.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result};

use super::cache::{Cache, command};

/// The folders and links without which packages would land in the wrong place.
pub fn skeleton(tree: &Path) -> Result<()> {
    for folder in [
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "usr/lib64",
        "dev",
        "proc",
        "tmp",
        "work",
    ] {
        fs::create_dir_all(tree.join(folder))
            .with_context(|| format!("cannot make {folder} in {}", tree.display()))?;
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        link(&format!("usr/{name}"), &tree.join(name))?;
    }
    Ok(())
}

/// Makes the link `at`, if nothing is there.
pub fn link(to: &str, at: &Path) -> Result<()> {
    if at.symlink_metadata().is_ok() {
        return Ok(());
    }
    symlink(to, at).with_context(|| format!("cannot link {}", at.display()))
}

/// Runs a shell script inside `tree`, with `work` as /work. In namespaces of its own, so that no
/// mount is left behind, and so that it works without an administrator's rights where the kernel
/// lets users make namespaces.
pub fn run_inside(cache: &Cache, step: &str, tree: &Path, work: &Path, script: &str) -> Result<()> {
    let enter = "mount --rbind /dev \"$1/dev\" && mount -t proc proc \"$1/proc\" \
        && mount --bind \"$2\" \"$1/work\" && exec chroot \"$1\" /bin/sh -euc \"$3\"";
    let mut unshare = command("unshare");
    if !rustix::process::geteuid().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    unshare
        .args(["--mount", "--pid", "--fork", "sh", "-c", enter, "enter"])
        .args([tree, work])
        .arg(script)
        .env("PATH", "/usr/bin:/usr/sbin:/bin:/sbin");
    let needs = if rustix::process::geteuid().is_root() {
        "root must be allowed to mount, in a mount namespace of its own: a container needs \
         CAP_SYS_ADMIN, the root of a chroot must be a mount point"
    } else {
        "as an ordinary user this needs user namespaces, see the sysctls \
         kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns; or run \
         it once as root, and copy its cache folder"
    };
    cache
        .run(step, &mut unshare)
        .with_context(|| format!("cannot work inside {} ({needs})", tree.display()))
}
