//! From a configuration to cores that can be started, and what the host has of what the file names.
//!
//! What belongs here: everything that can be found wrong before anything is started: firmware,
//! folders, groups, sockets' places. `rprocd` begins with it, `rprocd --check-config` and
//! `rprocctl config check` are nothing else, so what one of them takes the others take. What does
//! not: what the file says (see [`crate::config`]), and starting.

use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::Group;
use rustix::fs::{Access, AtFlags, CWD, accessat};
use serde::Serialize;

use crate::config::{Config, ConfigError, CoreConfig, EngineConfig, Problem, Severity, Source};
use crate::config::{any_error, closest, keys};
use crate::coredump::{DumpStore, Mode, StoreError};
use crate::engine::Engine;
use crate::engine::rv32::{Rv32, board};
use crate::firmware::{Snapshot, SnapshotError};
use crate::memory::{DeviceAddress, HUGE_PAGE, Pages, Ram};
use crate::report::sentence;
use crate::rproc::Firmware;
use crate::vdev::Permissions;

/// Files that are looked at for one that was meant.
const MAX_FILES: usize = 1000;

/// A core that can be started: its engine, and a firmware that was judged for it.
pub type Prepared = (Box<dyn Engine>, Firmware);

/// What cores are prepared for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// To be started by this process.
    Start,
    /// Only to be judged, perhaps by another user than the daemon's and beside a daemon that runs:
    /// no huge pages are taken, and what depends on the user is a warning.
    Check,
}

/// What came of checking a file.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct Verdict {
    /// The file.
    pub file: PathBuf,
    /// Would rprocd start with it?
    pub accepted: bool,
    /// The names of its cores; none if the text itself cannot be used.
    pub cores: Vec<String>,
    /// What is wrong, in the order of the file.
    pub problems: Vec<Problem>,
}

impl Verdict {
    /// The end of it all in one sentence.
    pub fn summary(&self) -> String {
        let file = self.file.display();
        let count = |severity, one: &str| {
            let count = self.problems.iter().filter(|it| it.severity == severity);
            match count.count() {
                0 => None,
                1 => Some(format!("1 {one}")),
                count => Some(format!("{count} {one}s")),
            }
        };
        let errors = count(Severity::Error, "error");
        let warnings = count(Severity::Warning, "warning");
        let counts: Vec<_> = errors.into_iter().chain(warnings).collect();
        let counts = counts.join(", ");
        if !self.accepted {
            return format!("{file}: refused, {counts}");
        }
        let cores = self.cores.len();
        let names = self.cores.join(", ");
        let counts = if counts.is_empty() {
            counts
        } else {
            format!(" ({counts})")
        };
        format!("{file}: ok{counts}, {cores} core(s): {names}")
    }
}

/// Checks a file, and what the host has of what it names, without a daemon and without changing
/// anything.
///
/// # Errors
/// [`ConfigError::Read`]; everything else is in the verdict.
pub fn check(file: &Path) -> Result<Verdict, ConfigError> {
    let checked = Config::check_file(file)?;
    let mut problems = checked.problems;
    let mut cores = Vec::new();
    if let Some(config) = &checked.config {
        cores.extend(config.cores.iter().map(|core| core.name.clone()));
        let (_, found) = prepare(config, &checked.source, Purpose::Check);
        problems.extend(found);
        problems.extend(sockets(config, &checked.source));
        problems.extend(huge_pages(config, &checked.source));
        problems.sort_by_key(|it| (it.line, it.column));
    }
    Ok(Verdict {
        file: file.to_owned(),
        accepted: !any_error(&problems),
        cores,
        problems,
    })
}

/// Prepares all cores, as far as each can be. The cores are only all there if no problem is an
/// error.
pub fn prepare(
    config: &Config,
    source: &Source,
    purpose: Purpose,
) -> (Vec<Prepared>, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut prepared = Vec::new();
    for (index, core) in config.cores.iter().enumerate() {
        let path = format!("core[{index}]");
        if core.coredump.mode != Mode::Disabled {
            problems.extend(coredumps(core, &path, source, purpose));
        }
        match prepare_core(config, core, purpose) {
            Ok(core) => prepared.push(core),
            Err((key, cause)) => {
                let what = format!("core {}: {}", core.name, sentence(&*cause));
                let key = format!("{path}.{key}");
                problems.push(source.problem(Severity::Error, &key, what));
            }
        }
    }
    (prepared, problems)
}

/// What is wrong with a core, and which key it is about.
type Cause = (&'static str, Box<dyn Error>);

fn prepare_core(config: &Config, core: &CoreConfig, purpose: Purpose) -> Result<Prepared, Cause> {
    let EngineConfig::Rv32 {
        memory_bytes,
        pages,
    } = core.engine;
    let pages = match purpose {
        Purpose::Start => pages,
        Purpose::Check => Pages::Normal,
    };
    let base = DeviceAddress(u64::from(board::ram::BASE));
    let about_memory = match pages {
        Pages::Normal => keys::CORE_MEMORY_MIB.name,
        Pages::Huge => keys::CORE_HUGE_PAGES.name,
    };
    let ram = Ram::with_pages(&format!("rprocd-{}", core.name), base, memory_bytes, pages)
        .map_err(|cause| -> Cause { (about_memory, cause.into()) })?;
    let engine = Rv32::new(ram).map_err(|cause| -> Cause { (about_memory, cause.into()) })?;
    let mut engine: Box<dyn Engine> = Box::new(engine);
    let about_firmware = |cause: Box<dyn Error>| (keys::CORE_FIRMWARE.name, cause);
    let snapshot = Snapshot::read(&config.firmware_directory, &core.firmware).map_err(|cause| {
        let meant = match &cause {
            SnapshotError::Open { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                similar_file(&config.firmware_directory, &core.firmware)
            }
            _ => None,
        };
        about_firmware(match meant {
            None => cause.into(),
            Some(meant) => format!("{}; did you mean {meant:?}?", sentence(&cause)).into(),
        })
    })?;
    let firmware = Firmware::new(
        snapshot,
        &mut *engine,
        core.vdevs.len(),
        core.grants.clone(),
    )
    .map_err(|cause| about_firmware(cause.into()))?;
    Ok((engine, firmware))
}

/// A file of the firmware directory that is called much like one that is not there.
fn similar_file(directory: &Path, name: &str) -> Option<String> {
    let names: Vec<_> = fs::read_dir(directory)
        .ok()?
        .take(MAX_FILES)
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    closest(name, names.iter().map(String::as_str)).map(str::to_owned)
}

/// Can the folder for coredumps be used?
fn coredumps(core: &CoreConfig, path: &str, source: &Source, purpose: Purpose) -> Option<Problem> {
    let cause = DumpStore::check(&core.coredump.directory, &core.name).err()?;
    let key = format!("{path}.coredump.{}", keys::COREDUMP_DIRECTORY.name);
    let mut severity = Severity::Error;
    let mut what = format!("core {}: {}", core.name, sentence(&cause));
    // Root is denied nothing that the daemon's user is not.
    let uid = rustix::process::geteuid();
    if let StoreError::Directory { source, .. } = &cause
        && purpose == Purpose::Check
    {
        match source.kind() {
            io::ErrorKind::PermissionDenied if !uid.is_root() => {
                severity = Severity::Warning;
                what += &format!(" (for uid {uid}, who checks; what counts is the daemon's user)");
            }
            io::ErrorKind::NotFound => {
                severity = Severity::Warning;
                what += " (rprocd makes no folders: systemd makes it where it is the unit's \
                         StateDirectory=, else make it before rprocd starts)";
            }
            _ => {}
        }
    }
    Some(source.problem(severity, &key, what))
}

/// What is wrong with the places of sockets, and with those who are to use them.
fn sockets(config: &Config, source: &Source) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut look = |section: &str, keys: [&str; 2], path: &Path, permissions: &Permissions| {
        let [socket, group] = keys;
        if let Some((severity, what)) = place_of_socket(path) {
            let key = format!("{section}.{socket}");
            problems.push(source.problem(severity, &key, what));
        }
        if let Some(name) = &permissions.group
            && let Ok(None) = Group::from_name(name)
        {
            let key = format!("{section}.{group}");
            let what = format!(
                "{group} is {name:?}, and this host has no such group; make it (`groupadd \
                 --system`), or name another"
            );
            problems.push(source.problem(Severity::Error, &key, what));
        }
    };
    if let Some(control) = &config.control {
        let keys = [keys::CONTROL_SOCKET.name, keys::CONTROL_GROUP.name];
        look("control", keys, &control.socket, &control.permissions);
        if let Some((path, permissions)) = &control.monitor {
            let keys = [keys::CONTROL_MONITOR.name, keys::CONTROL_MONITOR_GROUP.name];
            look("control", keys, path, permissions);
        }
    }
    for (index, core) in config.cores.iter().enumerate() {
        for (vdev, config) in core.vdevs.iter().enumerate() {
            let section = format!("core[{index}].vdev[{vdev}]");
            let keys = [keys::VDEV_SOCKET.name, keys::VDEV_GROUP.name];
            look(&section, keys, &config.socket, &config.permissions);
        }
    }
    problems
}

/// Why no socket can be made at a path, and what to do, if that can be seen.
pub fn why_no_socket(path: &Path) -> Option<String> {
    place_of_socket(path).map(|(_, what)| what)
}

/// What is wrong with the place of a socket.
fn place_of_socket(path: &Path) -> Option<(Severity, String)> {
    use std::os::unix::fs::FileTypeExt;

    if let Ok(found) = fs::symlink_metadata(path)
        && !found.file_type().is_socket()
    {
        let what = format!(
            "{} exists and is no socket; remove it, or choose another path",
            path.display()
        );
        return Some((Severity::Error, what));
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let shown = folder.display();
    match fs::metadata(folder) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Some((
            Severity::Warning,
            format!(
                "the folder {shown} does not exist, and rprocd does not make it; systemd does, with \
                 `RuntimeDirectory=` in the unit; else make it before rprocd starts"
            ),
        )),
        Err(cause) => Some((
            Severity::Warning,
            format!("the folder {shown} cannot be looked at: {cause}"),
        )),
        Ok(found) if !found.is_dir() => Some((
            Severity::Error,
            format!("{shown} is no folder, so no socket can be in it"),
        )),
        Ok(_) => {
            let access = Access::WRITE_OK | Access::EXEC_OK;
            accessat(CWD, folder, access, AtFlags::EACCESS).err()?;
            let uid = rustix::process::geteuid();
            let what = format!(
                "uid {uid} may not write to the folder {shown}; the daemon's user must be able to, \
                 since it makes the socket there"
            );
            Some((Severity::Warning, what))
        }
    }
}

/// Has the host as many huge pages as the cores want?
fn huge_pages(config: &Config, source: &Source) -> Option<Problem> {
    let mut wanted = 0;
    let mut first = None;
    for (index, core) in config.cores.iter().enumerate() {
        let EngineConfig::Rv32 {
            memory_bytes,
            pages,
        } = core.engine;
        if pages == Pages::Huge {
            wanted += memory_bytes / HUGE_PAGE;
            first.get_or_insert(index);
        }
    }
    let reserved = fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages");
    let reserved: u64 = reserved.ok()?.trim().parse().ok()?;
    if reserved >= wanted {
        return None;
    }
    let key = format!("core[{}].{}", first?, keys::CORE_HUGE_PAGES.name);
    let what = format!(
        "the cores want {wanted} huge pages of 2 MiB, and this host has reserved {reserved}; \
         reserve more (`sysctl vm.nr_hugepages={wanted}`), or leave huge-pages out"
    );
    Some(source.problem(Severity::Warning, &key, what))
}
