//! The cores' files where scripts look for them: in `/sys`, for one command and nobody else.
//!
//! What belongs here: a mount namespace of the command's own, and what is mounted in it. What does
//! not: the files (`rprocfs` serves them, a process of its own).
//!
//! This module may use `unsafe` for one thing: to leave the namespaces of the process.
#![expect(unsafe_code, reason = "unshare has no safe form")]

use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{
    MountFlags, MountPropagationFlags, mount, mount_bind, mount_bind_recursive, mount_change,
};
use rustix::process::{getegid, geteuid};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use thiserror::Error;

/// Where Linux has its classes of devices.
const CLASSES: &str = "/sys/class";
/// Where debugfs is mounted.
const DEBUG: &str = "/sys/kernel/debug";
/// The folder of a class, and of a part of debugfs, that is made.
const NAME: &str = "remoteproc";
/// What serves the files.
pub const SERVER: &str = "rprocfs";
/// What `rprocfs` says, as the end of a line, once its files are there.
pub const READY: &str = "is served";

/// Why the command was not run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NamespaceError {
    /// No namespace of one's own.
    #[error(
        "there can be no mount namespace for the command: {source}; run this as root, or where \
         users may make namespaces (sysctl user.max_user_namespaces)"
    )]
    Unshare {
        /// What the host says.
        source: io::Error,
    },
    /// A step in it failed.
    #[error("cannot {what}: {source}")]
    Step {
        /// What was tried.
        what: String,
        /// What the host says.
        source: io::Error,
    },
    /// The files are not served.
    #[error("{} did not mount the files; it says why above", program.display())]
    NotServed {
        /// The program.
        program: PathBuf,
    },
    /// The program that serves the files cannot be run.
    #[error(
        "cannot run {}: {source}; it is built with `--features rprocfs`, and belongs beside rprocctl",
        program.display()
    )]
    NoServer {
        /// The program.
        program: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// The command cannot be run.
    #[error("cannot run {}: {source}", command.display())]
    Command {
        /// The command.
        command: OsString,
        /// What the host says.
        source: io::Error,
    },
}

fn step<T, E: Into<io::Error>>(result: Result<T, E>, what: String) -> Result<T, NamespaceError> {
    result.map_err(|source| NamespaceError::Step {
        what,
        source: source.into(),
    })
}

/// Becomes `command`, in a mount namespace in which `/sys` has the cores behind `socket`. The
/// process must have one thread. Comes back only if that fails.
///
/// The program that serves the files is a child of the command, and ends with it.
pub fn run(socket: &Path, command: &[OsString]) -> NamespaceError {
    match prepare(socket) {
        Ok(()) => {}
        Err(cause) => return cause,
    }
    let (program, arguments) = match command {
        [program, arguments @ ..] => (program.as_os_str(), arguments),
        [] => (OsStr::new(""), command),
    };
    let source = Command::new(program).args(arguments).exec();
    NamespaceError::Command {
        command: program.to_owned(),
        source,
    }
}

fn prepare(socket: &Path) -> Result<(), NamespaceError> {
    // The command may be somewhere else by the time that the socket is asked.
    let socket = step(
        std::path::absolute(socket),
        "tell where the socket is".to_owned(),
    )?;
    leave()?;
    step(
        mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        ),
        "keep mounts from the rest of the host".to_owned(),
    )?;
    let class = over(Path::new(CLASSES))?;
    // Both trees are one file system, which is mounted where the first one goes; then each is put
    // in its place.
    serve(&socket, &class)?;
    let root = handle(&class)?;
    let debug = Path::new(DEBUG);
    if debug.is_dir() {
        let debug = over(debug)?;
        put(&root, "debug/remoteproc", &debug)?;
    } else {
        eprintln!("rprocctl: there is no {DEBUG}, so no trace, crash and resource_table files");
    }
    put(&root, "class/remoteproc", &class)
}

/// A mount namespace of our own; for who is not root, in a user namespace.
fn leave() -> Result<(), NamespaceError> {
    let (uid, gid) = (geteuid(), getegid());
    let mut flags = UnshareFlags::NEWNS;
    if !uid.is_root() {
        flags |= UnshareFlags::NEWUSER;
    }
    // SAFETY: descriptors stay shared between all threads: FILES is not among the flags.
    unsafe { unshare_unsafe(flags) }.map_err(|cause| NamespaceError::Unshare {
        source: cause.into(),
    })?;
    if uid.is_root() {
        return Ok(());
    }
    let (uid, gid) = (uid.as_raw(), gid.as_raw());
    // Who maps a group without privilege must first give up changing groups.
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{uid} {uid} 1")),
        ("gid_map", format!("{gid} {gid} 1")),
    ] {
        step(
            fs::write(format!("/proc/self/{file}"), text),
            format!("write /proc/self/{file}"),
        )?;
    }
    Ok(())
}

/// A descriptor by which a folder is found when something is mounted over it.
fn handle(folder: &Path) -> Result<OwnedFd, NamespaceError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    step(
        open(folder, flags, Mode::empty()),
        format!("open {}", folder.display()),
    )
}

/// What a path beneath a descriptor is called.
fn beneath(folder: &OwnedFd, path: impl AsRef<Path>) -> PathBuf {
    Path::new("/proc/self/fd")
        .join(folder.as_raw_fd().to_string())
        .join(path)
}

/// Mounts a tmpfs over `folder`, in which everything is found that was there, and an empty folder
/// for ours. Returns that.
fn over(folder: &Path) -> Result<PathBuf, NamespaceError> {
    let below = handle(folder)?;
    // Who may not see what is there sees nothing of it afterwards either.
    let entries: Vec<_> = fs::read_dir(folder)
        .map(|entries| entries.flatten().collect())
        .unwrap_or_default();
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    step(
        mount("rprocctl", folder, "tmpfs", flags, c"mode=0755,size=1m"),
        format!("mount a tmpfs over {}", folder.display()),
    )?;
    for entry in entries {
        let name = entry.file_name();
        if name == NAME {
            continue;
        }
        let (from, to) = (beneath(&below, &name), folder.join(&name));
        if let Err(cause) = mirror(&from, &to) {
            eprintln!("rprocctl: {} is left out: {cause}", to.display());
        }
    }
    let ours = folder.join(NAME);
    step(
        fs::create_dir(&ours),
        format!("make the folder {}", ours.display()),
    )?;
    Ok(ours)
}

/// Has `to`, which is not there yet, be what `from` is.
fn mirror(from: &Path, to: &Path) -> io::Result<()> {
    let kind = fs::symlink_metadata(from)?.file_type();
    if kind.is_symlink() {
        return std::os::unix::fs::symlink(fs::read_link(from)?, to);
    }
    if kind.is_dir() {
        fs::create_dir(to)?;
    } else {
        OpenOptions::new().write(true).create_new(true).open(to)?;
    }
    // In a user namespace, what is mounted beneath must come along.
    Ok(mount_bind_recursive(from, to)?)
}

/// Has a tree of the mounted files be in its place.
fn put(root: &OwnedFd, tree: &str, place: &Path) -> Result<(), NamespaceError> {
    step(
        mount_bind(beneath(root, tree), place),
        format!("put the cores at {}", place.display()),
    )
}

/// Starts what serves the files, and waits until they are there.
fn serve(socket: &Path, place: &Path) -> Result<(), NamespaceError> {
    // Beside this program, as they are installed and built together; else where programs are.
    let beside = std::env::current_exe().ok();
    let beside = beside.and_then(|it| Some(it.parent()?.join(SERVER)));
    let program = beside.filter(|it| it.is_file());
    let program = program.unwrap_or_else(|| PathBuf::from(SERVER));
    let no_server = |source| NamespaceError::NoServer {
        program: program.clone(),
        source,
    };
    let mut child = Command::new(&program)
        .arg("--with-parent")
        .arg("--socket")
        .arg(socket)
        .arg(place)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // An interrupt that is meant for the command does not take its files away.
        .process_group(0)
        .spawn()
        .map_err(no_server)?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        // What cannot be read does not say that it is ready.
        let _ = BufReader::new(output).read_line(&mut line);
    }
    if line.trim_end().ends_with(READY) {
        return Ok(());
    }
    // What is over is waited for by nobody else.
    let _ = child.kill();
    let _ = child.wait();
    Err(NamespaceError::NotServed { program })
}
