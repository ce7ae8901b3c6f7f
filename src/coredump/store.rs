//! The folder of dumps: names, quota, leftovers.
//!
//! | name | what |
//! |---|---|
//! | `core.CORE.INCARNATION.N.elf` | a dump; N only grows, so the smallest N is the oldest |
//! | `core.CORE.INCARNATION.N.partial.elf` | one that was cut short |
//! | `.core.CORE.INCARNATION.N.writing` | one being written, by one process at a time |
//!
//! Nothing else in the folder is touched, nor is anything that is no regular file. The folder is
//! opened once, so it may be moved, and a sandbox may hide its path.
//!
//! Nothing is synced to the disk: a dump outlives the daemon, not the host. A wait for the disk
//! would be a wait of the recovery.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use log::warn;
use rustix::fs::{
    Access, AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, Stat, accessat, fstat, open, openat,
    renameat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use thiserror::Error;

use super::dump::Dump;
use super::stream::{Output, stream};

/// Numbers above are not ours.
const MAX_NUMBER: u64 = 1_000_000_000_000;
/// As in the configuration; no dots, so that a file belongs to one core at most.
const NAME_MAX_BYTES: usize = 31;

/// How much is kept of one core.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Dumps.
    pub count: usize,
    /// Bytes on the disk, of all dumps together. Also no single dump is larger, holes not counted.
    pub bytes: u64,
}

/// Why there is no place for dumps.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The folder cannot be used.
    #[error("the folder for coredumps, {}, cannot be used; it must exist and be writable",
            directory.display())]
    Directory {
        /// The folder.
        directory: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The core's name cannot be part of a file name.
    #[error(
        "core name is {name:?}, must be 1 to {NAME_MAX_BYTES} characters of a-z, 0-9, '-' and '_'"
    )]
    Core {
        /// The name.
        name: String,
    },
}

/// What became of a dump. None of it is a reason not to recover the core.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub enum Outcome {
    /// It is there, whole.
    Written {
        /// Where.
        path: PathBuf,
        /// Bytes on the disk.
        bytes: u64,
        /// Bytes of the core that could not be read and are 0xFF.
        unreadable: u64,
    },
    /// There is one with the notes (registers, reason) and the beginning of the memory.
    Partial {
        /// Where.
        path: PathBuf,
        /// Bytes on the disk.
        bytes: u64,
        /// Why it is not whole.
        why: String,
    },
    /// There is none.
    Failed {
        /// Why.
        why: String,
    },
    /// There is none, and none was wanted.
    Skipped {
        /// Why.
        why: String,
    },
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Written {
                path,
                bytes,
                unreadable,
            } => {
                write!(f, "coredump {} ({bytes} bytes on disk)", path.display())?;
                if *unreadable > 0 {
                    write!(f, "; {unreadable} bytes could not be read and are 0xff")?;
                }
                Ok(())
            }
            Self::Partial { path, bytes, why } => write!(
                f,
                "partial coredump {} ({bytes} bytes on disk): {why}",
                path.display()
            ),
            Self::Failed { why } => write!(f, "no coredump: {why}"),
            Self::Skipped { why } => write!(f, "no coredump wanted: {why}"),
        }
    }
}

/// A dump in the folder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredDump {
    /// Where.
    pub path: PathBuf,
    /// Which incarnation died.
    pub incarnation: u32,
    /// The N of its name.
    pub number: u64,
    /// Was it cut short?
    pub partial: bool,
    /// Bytes on the disk.
    pub bytes: u64,
}

/// One core's dumps in a folder. Only one at a time may exist for a core and a folder.
#[derive(Debug)]
pub struct DumpStore {
    directory: PathBuf,
    folder: OwnedFd,
    core: String,
    limits: Limits,
    /// The last number given.
    last: u64,
}

/// What a file name says.
struct Name {
    incarnation: u32,
    number: u64,
    partial: bool,
}

/// A file being written. Goes away unless it is kept.
struct Aside<'a> {
    folder: &'a OwnedFd,
    name: String,
}

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        // Gone already if it was renamed.
        let _ = unlinkat(self.folder, &self.name, AtFlags::empty());
    }
}

fn bytes_on_disk(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks)
        .unwrap_or(0)
        .saturating_mul(512)
}

fn refused(directory: &Path, error: Errno) -> StoreError {
    StoreError::Directory {
        directory: directory.to_owned(),
        source: error.into(),
    }
}

/// Opens the folder for the dumps of `core`.
fn folder_of(directory: &Path, core: &str) -> Result<OwnedFd, StoreError> {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    if core.is_empty() || core.len() > NAME_MAX_BYTES || !core.bytes().all(allowed) {
        return Err(StoreError::Core {
            name: core.to_owned(),
        });
    }
    let refused = |error| refused(directory, error);
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let folder = open(directory, flags, Mode::empty()).map_err(refused)?;
    // Found out now and not when a core has died.
    let access = Access::WRITE_OK | Access::EXEC_OK;
    accessat(&folder, ".", access, AtFlags::empty()).map_err(refused)?;
    Ok(folder)
}

/// A decimal number without a sign or superfluous zeros.
fn number<N: std::str::FromStr>(text: &str) -> Option<N> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let short = text == "0" || !text.starts_with('0');
    if plain && short {
        text.parse().ok()
    } else {
        None
    }
}

impl DumpStore {
    /// Could `directory` be the folder for the dumps of `core`? Changes nothing there, so it may
    /// be asked while another process writes one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn check(directory: &Path, core: &str) -> Result<(), StoreError> {
        folder_of(directory, core).map(drop)
    }

    /// Takes `directory` as the folder for the dumps of `core`, and removes what a process that
    /// was killed has left there of it.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is created.
    pub fn open(directory: &Path, core: &str, limits: Limits) -> Result<Self, StoreError> {
        let refused = |error| refused(directory, error);
        let mut store = Self {
            directory: directory.to_owned(),
            folder: folder_of(directory, core)?,
            core: core.to_owned(),
            limits,
            last: 0,
        };
        for name in store.names().map_err(refused)? {
            if store.is_leftover(&name) && store.regular(&name).is_some() {
                match unlinkat(&store.folder, &name, AtFlags::empty()) {
                    Ok(()) => warn!("{core}: removed {name}, a coredump that was never finished"),
                    Err(error) => warn!("{core}: {name} cannot be removed: {error}"),
                }
            }
        }
        store.last = store.highest().map_err(refused)?;
        Ok(store)
    }

    /// The dumps of this core, the oldest first.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self) -> io::Result<Vec<StoredDump>> {
        let mut dumps: Vec<_> = self
            .names()?
            .into_iter()
            .filter_map(|text| {
                let name = self.parse(&text)?;
                let stat = self.regular(&text)?;
                Some(StoredDump {
                    path: self.directory.join(&text),
                    incarnation: name.incarnation,
                    number: name.number,
                    partial: name.partial,
                    bytes: bytes_on_disk(&stat),
                })
            })
            .collect();
        dumps.sort_by_key(|dump| dump.number);
        Ok(dumps)
    }

    /// Writes a dump. `proceed` is asked before each piece of memory, never before the notes; it
    /// may end the dump with a reason (see [`within`](super::within)).
    ///
    /// Old dumps are removed once the new one is written, so for that time the folder may hold one
    /// more than the quota allows.
    pub fn save(
        &mut self,
        dump: &mut Dump<'_>,
        proceed: &mut dyn FnMut() -> ControlFlow<String>,
    ) -> Outcome {
        self.save_through(dump, proceed, |file| file)
    }

    fn save_through<O: Output>(
        &mut self,
        dump: &mut Dump<'_>,
        proceed: &mut dyn FnMut() -> ControlFlow<String>,
        through: impl FnOnce(File) -> O,
    ) -> Outcome {
        if self.limits.count == 0 || self.limits.bytes == 0 {
            let why = "the quota for coredumps is 0".to_owned();
            return Outcome::Skipped { why };
        }
        if dump.segments.is_empty() && dump.registers.is_none() {
            let why = "neither memory nor registers are known".to_owned();
            return Outcome::Skipped { why };
        }
        match self.try_save(dump, proceed, through) {
            Ok(outcome) => outcome,
            Err(why) => Outcome::Failed { why },
        }
    }

    fn try_save<O: Output>(
        &mut self,
        dump: &mut Dump<'_>,
        proceed: &mut dyn FnMut() -> ControlFlow<String>,
        through: impl FnOnce(File) -> O,
    ) -> Result<Outcome, String> {
        let Self { core, folder, .. } = &*self;
        let in_folder = |error: Errno| format!("{}: {error}", self.directory.display());
        let number = self.last.max(self.highest().map_err(in_folder)?) + 1;
        let stem = format!("core.{core}.{}.{number}", dump.incarnation);
        let aside = Aside {
            folder,
            name: format!(".{stem}.writing"),
        };
        let file = create(folder, &aside.name).map_err(in_folder)?;
        let same = file.try_clone().map_err(|error| error.to_string())?;
        let mut output = through(file);
        let streamed = stream(core, dump, &mut output, self.limits.bytes, proceed)?;
        drop(output);

        let bytes = fstat(&same).map_or(0, |stat| bytes_on_disk(&stat));
        self.make_room_for(bytes);
        let name = match streamed.cut_short {
            None => format!("{stem}.elf"),
            Some(_) => format!("{stem}.partial.elf"),
        };
        rename(folder, &aside.name, &name).map_err(in_folder)?;
        drop(aside);
        self.last = number;
        let path = self.directory.join(name);
        Ok(match streamed.cut_short {
            None => Outcome::Written {
                path,
                bytes,
                unreadable: streamed.unreadable,
            },
            Some(why) => Outcome::Partial { path, bytes, why },
        })
    }

    /// Removes the oldest dumps until one more of `bytes` is within the quota.
    fn make_room_for(&self, bytes: u64) {
        let dumps = match self.list() {
            Ok(dumps) => dumps,
            Err(error) => {
                let directory = self.directory.display();
                warn!(
                    "{}: no old coredumps removed, {directory}: {error}",
                    self.core
                );
                return;
            }
        };
        let mut count = dumps.len().saturating_add(1);
        let mut total: u64 = bytes.saturating_add(dumps.iter().map(|dump| dump.bytes).sum());
        for dump in dumps {
            if count <= self.limits.count && total <= self.limits.bytes {
                return;
            }
            let Some(name) = dump.path.file_name() else {
                continue;
            };
            match unlinkat(&self.folder, name, AtFlags::empty()) {
                Ok(()) => {
                    count -= 1;
                    total -= dump.bytes;
                }
                Err(error) => warn!(
                    "{}: the old coredump {} cannot be removed: {error}",
                    self.core,
                    dump.path.display()
                ),
            }
        }
    }

    /// All names in the folder that are text; the others are not ours.
    fn names(&self) -> rustix::io::Result<Vec<String>> {
        Dir::read_from(&self.folder)?
            .filter_map(|entry| match entry {
                Ok(entry) => entry
                    .file_name()
                    .to_str()
                    .ok()
                    .map(|name| Ok(name.to_owned())),
                Err(error) => Some(Err(error)),
            })
            .collect()
    }

    /// The highest number in use, of whatever kind of file.
    fn highest(&self) -> rustix::io::Result<u64> {
        let numbers = self
            .names()?
            .into_iter()
            .filter_map(|name| Some(self.parse(&name)?.number));
        Ok(numbers.max().unwrap_or(0))
    }

    /// What `name` says, if it is the name of a dump of this core.
    fn parse(&self, name: &str) -> Option<Name> {
        let rest = name.strip_prefix("core.")?.strip_prefix(&self.core)?;
        let rest = rest.strip_prefix('.')?.strip_suffix(".elf")?;
        let (rest, partial) = match rest.strip_suffix(".partial") {
            Some(rest) => (rest, true),
            None => (rest, false),
        };
        let (incarnation, count) = rest.split_once('.')?;
        Some(Name {
            incarnation: number(incarnation)?,
            number: number(count).filter(|count| *count <= MAX_NUMBER)?,
            partial,
        })
    }

    /// Is it the name of a dump of this core that was being written?
    fn is_leftover(&self, name: &str) -> bool {
        name.strip_prefix('.')
            .and_then(|name| name.strip_suffix(".writing"))
            .is_some_and(|stem| self.parse(&format!("{stem}.elf")).is_some())
    }

    /// The figures of the file, if it is a regular one.
    fn regular(&self, name: &str) -> Option<Stat> {
        let stat = statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        (FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile).then_some(stat)
    }
}

/// A new file that nobody else can read.
fn create(folder: &OwnedFd, name: &str) -> rustix::io::Result<File> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    match openat(folder, name, flags, mode) {
        Err(Errno::EXIST) => {
            unlinkat(folder, name, AtFlags::empty())?;
            openat(folder, name, flags, mode)
        }
        result => result,
    }
    .map(File::from)
}

/// Renames without replacing anything, where the file system can do that.
fn rename(folder: &OwnedFd, from: &str, to: &str) -> rustix::io::Result<()> {
    match renameat_with(folder, from, folder, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS) => renameat(folder, from, folder, to),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::super::dump::{Class, Dump, Registers, Style};
    use super::*;
    use crate::memory::DeviceAddress;
    use std::time::UNIX_EPOCH;

    /// Fails at the write with that number.
    struct Failing {
        file: File,
        left: u32,
        set_len: bool,
    }

    impl Output for Failing {
        fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
            self.left = self.left.checked_sub(1).ok_or(io::ErrorKind::TimedOut)?;
            self.file.write_at(offset, bytes)
        }

        fn set_len(&mut self, len: u64) -> io::Result<()> {
            if self.set_len {
                Output::set_len(&mut self.file, len)
            } else {
                Err(io::ErrorKind::Unsupported.into())
            }
        }
    }

    #[test]
    fn a_write_error_is_no_dump_or_a_partial_one_and_leaves_nothing_aside() {
        let cases = [
            (0, true, None),
            (1, true, Some("note")),
            (2, false, Some("length")),
        ];
        for (left, set_len, partial) in cases {
            let folder = tempfile::tempdir().unwrap();
            let limits = Limits {
                count: 2,
                bytes: 1 << 20,
            };
            let mut store = DumpStore::open(folder.path(), "dsp", limits).unwrap();
            let mut dump = Dump {
                incarnation: 1,
                time: UNIX_EPOCH,
                reason: "",
                firmware: None,
                class: Class::Elf32,
                machine: 243,
                boot: DeviceAddress(0),
                registers: Some(Registers::riscv32(0, 0, &[0; 32])),
                segments: Vec::new(),
                style: Style::ProgramHeaders,
            };
            let outcome =
                store.save_through(&mut dump, &mut || ControlFlow::Continue(()), |file| {
                    Failing {
                        file,
                        left,
                        set_len,
                    }
                });
            let names = store.names().unwrap();
            let files: Vec<_> = names.iter().filter(|name| name.contains("core")).collect();
            match (partial, &outcome) {
                (None, Outcome::Failed { .. }) => assert!(files.is_empty(), "{files:?}"),
                (Some(word), Outcome::Partial { why, .. }) => {
                    assert!(why.contains(word), "{why}");
                    assert_eq!(files, ["core.dsp.1.1.partial.elf"]);
                }
                _ => panic!("{outcome}"),
            }
        }
    }

    #[test]
    fn numbers_are_plain() {
        assert_eq!(number::<u32>("0"), Some(0));
        assert_eq!(number::<u32>("4294967295"), Some(u32::MAX));
        for other in ["", "00", "01", "+1", "-1", " 1", "1 ", "4294967296", "1e3"] {
            assert_eq!(number::<u32>(other), None, "{other:?}");
        }
    }
}
