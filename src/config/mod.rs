//! The daemon's configuration file: TOML as a person wrote it, then [`Config`] as it is used.
//!
//! What belongs here: the file's format, its defaults and every check that needs nothing but the
//! file itself. What does not: whether a firmware file exists or fits, and what the host has of what
//! the file names: see [`crate::prepare`].
//!
//! | file | |
//! |---|---|
//! | `keys.rs` | every key: type, bounds, default, what it is for; messages and documentation are made from it |
//! | `fields.rs` | a value by its key, and what is wrong with keys and values |
//! | `problem.rs` | what is wrong, where, and how it is shown |
//! | this one | from the sections to [`Config`], and checks of more than one value |
//!
//! Every key, with a value that is worth showing:
//!
//! ```toml
#![doc = include_str!("example.toml")]
//! ```
//!
//! A relative path is relative to the folder that holds the file. Keys that are not listed above
//! are refused. Cores and vdevs are counted from 0, in messages too.

mod fields;
pub mod keys;
mod problem;

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use toml::de::DeTable;

use crate::coredump::{Limits, Mode, Style};
use crate::firmware;
use crate::memory::{CarveoutLimits, HUGE_PAGE, Pages};
use crate::rproc::{Departure, DevmemGrant, Grants, Linger, RecoveryPolicy, VendorRule};
use crate::vdev::Permissions;
use fields::{Fields, Found, Reader};
use keys::{END_OF_32_BITS, Key, NAME_MAX_BYTES, SOCKET_PATH_MAX_BYTES, Text};

pub(crate) use fields::closest;
pub use problem::{Problem, Severity, Source, any_error};

/// A file that is longer is no configuration.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Mistakes of syntax that are told; one often brings others.
const MAX_SYNTAX_PROBLEMS: usize = 10;

/// A configuration in which everything has been checked that can be checked without the host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The one folder that firmware is read from.
    pub firmware_directory: PathBuf,
    /// The control socket, if there is to be one.
    pub control: Option<ControlConfig>,
    /// The cores, at least one, in the order of the file.
    pub cores: Vec<CoreConfig>,
}

/// Section `[control]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ControlConfig {
    /// Where operators connect.
    pub socket: PathBuf,
    /// Who may.
    pub permissions: Permissions,
    /// Where those connect who may look and change nothing, if there is to be such a place, and who
    /// may.
    pub monitor: Option<(PathBuf, Permissions)>,
}

/// One `[[core]]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CoreConfig {
    /// Unique; 1 to 31 bytes of `a-z`, `0-9`, `-`, `_`.
    pub name: String,
    /// What runs the firmware.
    pub engine: EngineConfig,
    /// The name of a file in [`Config::firmware_directory`]; never a path.
    pub firmware: String,
    /// Is the core started with the daemon?
    pub auto_boot: bool,
    /// Does a guest that arrives start the core, and hold it?
    pub boot_on_guest: bool,
    /// What it does between events.
    pub linger: Linger,
    /// What is kept of an incarnation that crashes: section `[core.coredump]`.
    pub coredump: CoredumpConfig,
    /// What follows from a crash: section `[core.recovery]`.
    pub recovery: RecoveryPolicy,
    /// What its firmware is granted.
    pub grants: Grants,
    /// One for each vdev that the firmware declares, in the order of its resource table.
    pub vdevs: Vec<VdevConfig>,
}

/// The kinds of engine, each with what it must know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EngineConfig {
    /// The embedded RISC-V engine.
    Rv32 {
        /// Bytes of RAM, a whole number of MiB from 1 MiB to 1 GiB.
        memory_bytes: u64,
        /// What it is made of.
        pages: Pages,
    },
}

/// Section `[core.coredump]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CoredumpConfig {
    /// Whether, and whether the recovery waits for all of it.
    pub mode: Mode,
    /// The folder for the files. Nothing is asked of it if none are written.
    pub directory: PathBuf,
    /// How much is kept there of this core.
    pub limits: Limits,
    /// How long a recovery waits in [`Mode::Enabled`].
    pub patience: Duration,
    /// How the files are laid out.
    pub style: Style,
}

/// One `[[core.vdev]]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VdevConfig {
    /// Where the VMM connects. Unique in the file, at most 107 bytes.
    pub socket: PathBuf,
    /// Who may connect.
    pub permissions: Permissions,
    /// Is the name service (`VIRTIO_RPMSG_F_NS`) offered to the guest? By default it is, since a
    /// guest finds the firmware's services by it alone. Linux's driver takes mutexes for each
    /// announcement, in interrupt context where the device is virtio-pci or virtio-mmio: a stock
    /// guest needs the module `virtio_rpmsg_defer`, else its kernel reports it, and may panic.
    pub announce: bool,
    /// What happens when the guest is gone. Without the key: the core is restarted where it
    /// serves one vdev, else the vdev is reset.
    pub on_departure: Departure,
}

/// Why there is no configuration.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The text cannot be used: everything that is wrong is listed.
    #[error("{}", Lines(.0))]
    Refused(Vec<Problem>),
}

struct Lines<'a>(&'a [Problem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

/// A text that was checked.
#[derive(Clone, Debug)]
pub struct Checked {
    /// What it says, unless a problem is an error.
    pub config: Option<Config>,
    /// What is wrong, in the order of the file.
    pub problems: Vec<Problem>,
    /// The text, for problems that are found later.
    pub source: Source,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError::Read`] when the file cannot be read as text, else as [`Config::parse`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::check_file(path)?.accepted()
    }

    /// Checks the text of a file. `origin` is the file's path: messages carry it, and relative
    /// paths are relative to its folder. Nothing is read.
    ///
    /// # Errors
    /// [`ConfigError::Refused`] with everything that is wrong.
    pub fn parse(text: &str, origin: &Path) -> Result<Self, ConfigError> {
        Self::check(text, origin).accepted()
    }

    /// As [`Config::load`], with all that is wrong beside what the file says.
    ///
    /// # Errors
    /// [`ConfigError::Read`]
    pub fn check_file(path: &Path) -> Result<Checked, ConfigError> {
        let failed = |source| ConfigError::Read {
            path: path.to_owned(),
            source,
        };
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(failed)?;
        // A device may have no end.
        file.take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            let what = format!("it is longer than {MAX_FILE_BYTES} bytes");
            return Err(failed(io::Error::new(io::ErrorKind::InvalidData, what)));
        }
        Ok(match std::str::from_utf8(&bytes) {
            Ok(text) => Self::check(text, path),
            Err(cause) => {
                let at = cause.valid_up_to();
                let source = Source::new(&String::from_utf8_lossy(&bytes), path);
                let what = format!(
                    "byte {:#04x} is no UTF-8 text; save the file as UTF-8",
                    bytes[at]
                );
                let problem = source.problem_at(Severity::Error, "", at..at, what);
                Checked {
                    config: None,
                    problems: vec![problem],
                    source,
                }
            }
        })
    }

    /// As [`Config::parse`], with all that is wrong beside what the text says.
    pub fn check(text: &str, origin: &Path) -> Checked {
        let source = Source::new(text, origin);
        let (table, mistakes) = DeTable::parse_recoverable(text);
        if !mistakes.is_empty() {
            // Where a line was misread, what comes after it may be in the wrong section: to judge
            // it would be to guess.
            return Checked {
                config: None,
                problems: syntax(&source, &mistakes),
                source,
            };
        }
        let mut check = Check {
            origin,
            reader: Reader::new(source),
            sockets: HashMap::new(),
        };
        let config = check.config(table.get_ref());
        let (source, problems) = check.reader.finish();
        Checked {
            config: (!any_error(&problems)).then_some(config),
            problems,
            source,
        }
    }
}

impl Checked {
    fn accepted(self) -> Result<Config, ConfigError> {
        self.config.ok_or(ConfigError::Refused(self.problems))
    }
}

/// What is no TOML.
fn syntax(source: &Source, mistakes: &[toml::de::Error]) -> Vec<Problem> {
    let mut problems: Vec<_> = mistakes
        .iter()
        .take(MAX_SYNTAX_PROBLEMS)
        .map(|mistake| {
            let message = mistake.message().replace('\n', "; ");
            let place = mistake.span().unwrap_or(0..0);
            let what = format!("this is no TOML: {message}");
            source.problem_at(Severity::Error, "", place, what)
        })
        .collect();
    problems.sort_by_key(|it| (it.line, it.column));
    // A mistake that is seen twice is told once.
    problems.dedup_by_key(|it| (it.line, it.column));
    problems
}

/// Turns the file into a [`Config`] and notes every problem on the way. What it returns is only
/// good if there was none.
struct Check<'a> {
    origin: &'a Path,
    reader: Reader,
    /// Every socket so far, and whose it is.
    sockets: HashMap<PathBuf, String>,
}

impl Check<'_> {
    fn config(&mut self, table: &DeTable<'_>) -> Config {
        let file = self.reader.file(table);
        let firmware_directory = self.folder(&file, &keys::FIRMWARE_DIRECTORY);
        let control = self
            .reader
            .table(&file, &keys::CONTROL, "")
            .map(|control| self.control(&control));
        let name = |index: usize, table: &DeTable<'_>| match table
            .get(keys::CORE_NAME.name)
            .and_then(|it| it.get_ref().as_str())
        {
            Some(name) => format!("core {index} (name {name:?})"),
            None => format!("core {index}"),
        };
        let sections = self.reader.tables(&file, &keys::CORE, name);
        if sections.is_empty() && !table.contains_key(keys::CORE.name) {
            let what = "there is no [[core]], must be at least one".to_owned();
            self.reader.problem("core", 0..0, what);
        }
        let mut names = HashMap::new();
        let cores = sections
            .iter()
            .enumerate()
            .map(|(index, core)| self.core(index, core, &mut names))
            .collect();
        Config {
            firmware_directory,
            control,
            cores,
        }
    }

    fn control(&mut self, fields: &Fields) -> ControlConfig {
        let socket = self.socket(fields, &keys::CONTROL_SOCKET);
        let permissions = self.permissions(fields, &keys::CONTROL_GROUP, &keys::CONTROL_MODE);
        let monitor = self.socket(fields, &keys::CONTROL_MONITOR);
        let (group, mode) = (&keys::CONTROL_MONITOR_GROUP, &keys::CONTROL_MONITOR_MODE);
        let for_monitor = self.permissions(fields, group, mode);
        if monitor.is_none() && for_monitor != Permissions::default() {
            let what = "control: monitor-group and monitor-mode are of no use without monitor";
            let path = fields.path(keys::CONTROL_MONITOR.name);
            let place = fields.header();
            self.reader.problem(&path, place, what.to_owned());
        }
        ControlConfig {
            socket: socket.unwrap_or_default(),
            permissions,
            monitor: monitor.map(|path| (path, for_monitor)),
        }
    }

    fn core(
        &mut self,
        index: usize,
        fields: &Fields,
        names: &mut HashMap<String, usize>,
    ) -> CoreConfig {
        let name = self.name(index, fields, names);
        // What it is does not matter while there is one.
        let _ = self.reader.choice(fields, &keys::CORE_ENGINE);
        let firmware = self.reader.text(fields, &keys::CORE_FIRMWARE);
        if let Some(found) = &firmware
            && let Err(reason) = firmware::check_name(&found.value)
        {
            let why = format!(
                "is {:?}, must be {}: {reason}",
                found.value,
                keys::CORE_FIRMWARE.kind.form
            );
            self.reader
                .refuse(fields, keys::CORE_FIRMWARE.name, found, &why);
        }
        let (memory_mib, pages) = self.memory(fields);
        let grants = self.grants(fields, memory_mib);
        let auto_boot = self.reader.flag(fields, &keys::CORE_AUTO_BOOT);
        let boot_on_guest = self.reader.flag(fields, &keys::CORE_BOOT_ON_GUEST);
        let linger = self.linger(fields);

        let vdevs = self
            .reader
            .tables(fields, &keys::VDEV, |index, _| format!("vdev {index}"));
        let departure = if vdevs.len() == 1 {
            Departure::RestartCore
        } else {
            Departure::ResetVdev
        };
        let vdevs = vdevs
            .iter()
            .map(|fields| VdevConfig {
                socket: self.socket(fields, &keys::VDEV_SOCKET).unwrap_or_default(),
                permissions: self.permissions(fields, &keys::VDEV_GROUP, &keys::VDEV_MODE),
                announce: self.reader.flag(fields, &keys::VDEV_ANNOUNCE),
                on_departure: self
                    .reader
                    .choice(fields, &keys::VDEV_ON_DEPARTURE)
                    .unwrap_or(departure),
            })
            .collect();
        CoreConfig {
            name,
            engine: EngineConfig::Rv32 {
                memory_bytes: memory_mib.saturating_mul(1 << 20),
                pages,
            },
            firmware: firmware.map_or_else(String::new, |it| it.value),
            auto_boot,
            boot_on_guest,
            linger,
            coredump: self.coredump(fields),
            recovery: self.recovery(fields),
            grants,
            vdevs,
        }
    }

    fn name(
        &mut self,
        index: usize,
        fields: &Fields,
        names: &mut HashMap<String, usize>,
    ) -> String {
        let key = &keys::CORE_NAME;
        let Some(found) = self.reader.text(fields, key) else {
            return String::new();
        };
        let name = &found.value;
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b);
        if name.is_empty() || name.len() > NAME_MAX_BYTES || !name.bytes().all(allowed) {
            let why =
                format!("must be 1 to {NAME_MAX_BYTES} characters out of a-z, 0-9, '-' and '_'");
            self.reader.refuse(fields, key.name, &found, &why);
        }
        match names.get(name) {
            Some(first) => {
                let why = format!("is taken by core {first}, must be unique");
                self.reader.refuse(fields, key.name, &found, &why);
            }
            None => {
                names.insert(name.clone(), index);
            }
        }
        found.value
    }

    fn memory(&mut self, fields: &Fields) -> (u64, Pages) {
        let key = &keys::CORE_MEMORY_MIB;
        let found = self.reader.integer(fields, key);
        let pages = if self.reader.flag(fields, &keys::CORE_HUGE_PAGES) {
            Pages::Huge
        } else {
            Pages::Normal
        };
        let Some(found) = found else {
            let keys::Need::Default(default) = key.need else {
                return (0, pages);
            };
            return (default.unsigned_abs(), pages);
        };
        let mib = found.value.unsigned_abs();
        if pages == Pages::Huge && !(mib << 20).is_multiple_of(HUGE_PAGE) {
            let why = format!("is {mib}, must be even with huge-pages: a huge page is 2 MiB");
            self.reader.refuse(fields, key.name, &found, &why);
        }
        (mib, pages)
    }

    fn recovery(&mut self, core: &Fields) -> RecoveryPolicy {
        let fields = &self
            .reader
            .table_or_empty(core, &keys::RECOVERY, "recovery.");
        let enabled = self.reader.flag(fields, &keys::RECOVERY_ENABLED);
        let mut number = |key| self.reader.number(fields, key);
        let minimum_run_time = number(&keys::RECOVERY_MINIMUM_RUN_TIME_MS);
        let back_off = number(&keys::RECOVERY_BACK_OFF_MS);
        let hold_after = number(&keys::RECOVERY_HOLD_AFTER);
        let hold_window = number(&keys::RECOVERY_HOLD_WINDOW_S);
        let limit_key = &keys::RECOVERY_BACK_OFF_LIMIT_MS;
        let limit = self.reader.number(fields, limit_key);
        if back_off > limit {
            let why = format!(
                "is {back_off}, more than {} allows: each wait takes {limit} ms",
                limit_key.name
            );
            let key = keys::RECOVERY_BACK_OFF_MS.name;
            self.reader.warn(fields, key, &why);
        }
        RecoveryPolicy {
            enabled,
            minimum_run_time: Duration::from_millis(minimum_run_time),
            back_off: Duration::from_millis(back_off),
            back_off_limit: Duration::from_millis(limit),
            hold_after: u32::try_from(hold_after).unwrap_or(u32::MAX),
            hold_window: Duration::from_secs(hold_window),
        }
    }

    fn coredump(&mut self, core: &Fields) -> CoredumpConfig {
        let fields = &self
            .reader
            .table_or_empty(core, &keys::COREDUMP, "coredump.");
        let mode = self.reader.choice(fields, &keys::COREDUMP_MODE);
        let mode = mode.unwrap_or(Mode::Disabled);
        let directory = self.folder(fields, &keys::COREDUMP_DIRECTORY);
        let count = self.reader.number(fields, &keys::COREDUMP_COUNT);
        if count == 0 && mode != Mode::Disabled {
            let why = "is 0: no dump is kept; mode = \"disabled\" says the same and costs nothing";
            self.reader.warn(fields, keys::COREDUMP_COUNT.name, why);
        }
        CoredumpConfig {
            mode,
            directory,
            limits: Limits {
                count: usize::try_from(count).unwrap_or(0),
                bytes: self
                    .reader
                    .number(fields, &keys::COREDUMP_QUOTA_MIB)
                    .saturating_mul(1 << 20),
            },
            patience: Duration::from_millis(
                self.reader.number(fields, &keys::COREDUMP_PATIENCE_MS),
            ),
            style: self
                .reader
                .choice(fields, &keys::COREDUMP_STYLE)
                .unwrap_or(Style::ProgramHeaders),
        }
    }

    fn grants(&mut self, fields: &Fields, memory_mib: u64) -> Grants {
        let key = &keys::CORE_CARVEOUT_QUOTA_MIB;
        let quota = match self.reader.integer(fields, key) {
            None => memory_mib,
            Some(found) => {
                let quota = found.value.unsigned_abs();
                if quota > memory_mib {
                    let why = format!(
                        "is {quota}, must be 1 to {memory_mib}: the core has no more memory"
                    );
                    self.reader.refuse(fields, key.name, &found, &why);
                }
                quota
            }
        };
        let count = self.reader.number(fields, &keys::CORE_CARVEOUT_COUNT);
        let vendor = self.reader.choice(fields, &keys::CORE_VENDOR_RESOURCES);
        let devmem = self
            .reader
            .tables(fields, &keys::DEVMEM, |index, _| format!("devmem {index}"));
        Grants {
            carveouts: CarveoutLimits {
                bytes: quota.saturating_mul(1 << 20),
                count: usize::try_from(count).unwrap_or(0),
            },
            devmem: devmem.iter().map(|it| self.devmem(it)).collect(),
            vendor: vendor.unwrap_or(VendorRule::Ignore),
        }
    }

    /// What a core does between events.
    fn linger(&mut self, fields: &Fields) -> Linger {
        let key = &keys::CORE_LINGER_US;
        let found = self.reader.integer(fields, key);
        let busy = self.reader.flag(fields, &keys::CORE_BUSY);
        let microseconds = found.as_ref().map_or(0, |it| it.value.unsigned_abs());
        if let Some(found) = &found
            && busy
            && microseconds > 0
        {
            let why = format!(
                "is {microseconds} and busy is true: a busy core lingers without end; take one of \
                 them out"
            );
            self.reader.refuse(fields, key.name, found, &why);
        }
        match (busy, microseconds) {
            (true, _) => Linger::Always,
            (false, 0) => Linger::Never,
            (false, _) => Linger::UpTo(Duration::from_micros(microseconds)),
        }
    }

    fn devmem(&mut self, fields: &Fields) -> DevmemGrant {
        let pa = self.reader.integer(fields, &keys::DEVMEM_PA);
        let length = self.reader.integer(fields, &keys::DEVMEM_LENGTH);
        if let (Some(pa), Some(length)) = (&pa, &length)
            && length.value > END_OF_32_BITS - pa.value
        {
            let why = format!(
                "is {:#x}, must be at most {:#x}: a span that begins at {:#x} ends at \
                 {END_OF_32_BITS:#x} at the latest",
                length.value,
                END_OF_32_BITS - pa.value,
                pa.value
            );
            self.reader
                .refuse(fields, keys::DEVMEM_LENGTH.name, length, &why);
        }
        let name = self.reader.text(fields, &keys::DEVMEM_NAME);
        if let Some(found) = &name
            && found.value.len() > NAME_MAX_BYTES
        {
            let why = format!(
                "is {:?}, {} bytes, must be {}",
                found.value,
                found.value.len(),
                keys::DEVMEM_NAME.kind.form
            );
            self.reader
                .refuse(fields, keys::DEVMEM_NAME.name, found, &why);
        }
        let bytes = |it: Option<Found<i64>>| it.map_or(0, |it| it.value.unsigned_abs());
        DevmemGrant {
            pa: bytes(pa),
            length: bytes(length),
            name: name.map_or_else(String::new, |it| it.value),
        }
    }

    /// The group and the mode of a socket.
    fn permissions(&mut self, fields: &Fields, group: &Key<Text>, mode: &Key<Text>) -> Permissions {
        let name = self.reader.text(fields, group);
        if let Some(found) = &name
            && (found.value.is_empty() || found.value.contains('\0'))
        {
            let why = format!("is {:?}, must be {}", found.value, group.kind.form);
            self.reader.refuse(fields, group.name, found, &why);
        }
        let mode_key = mode;
        let mode = self.reader.text(fields, mode).and_then(|found| {
            let digits = &found.value;
            let mode = u32::from_str_radix(digits, 8).ok();
            let mode = mode.filter(|mode| *mode <= 0o777 && !digits.starts_with('+'));
            if mode.is_none() {
                let why = format!("is {digits:?}, must be {}", mode_key.kind.form);
                self.reader.refuse(fields, mode_key.name, &found, &why);
            }
            mode
        });
        Permissions {
            group: name.map(|it| it.value),
            mode,
        }
    }

    fn socket(&mut self, fields: &Fields, key: &Key<Text>) -> Option<PathBuf> {
        let found = self.reader.text(fields, key)?;
        let text = &found.value;
        let path = self.resolve(text);
        let bytes = path.as_os_str().len();
        let last = text.rsplit('/').next().unwrap_or("");
        let why = if ["", ".", ".."].contains(&last) || text.contains('\0') {
            format!("is {text:?}, must be the path of a socket")
        } else if bytes > SOCKET_PATH_MAX_BYTES {
            format!("is {path:?}, {bytes} bytes, must be at most {SOCKET_PATH_MAX_BYTES}")
        } else if let Some(other) = self.sockets.get(&path) {
            format!("is {path:?}, taken by {other}, must be unique")
        } else {
            self.sockets.insert(path.clone(), fields.place().to_owned());
            return Some(path);
        };
        self.reader.refuse(fields, key.name, &found, &why);
        Some(path)
    }

    /// The path of a folder.
    fn folder(&mut self, fields: &Fields, key: &Key<Text>) -> PathBuf {
        let Some(found) = self.reader.text(fields, key) else {
            return match key.need {
                keys::Need::Default(path) => PathBuf::from(path),
                _ => PathBuf::new(),
            };
        };
        let text = &found.value;
        if text.is_empty() || text.contains('\0') {
            let why = format!("is {text:?}, must be {}", key.kind.form);
            self.reader.refuse(fields, key.name, &found, &why);
        }
        self.resolve(text)
    }

    /// A relative path is relative to the folder of the file.
    fn resolve(&self, path: &str) -> PathBuf {
        self.origin.parent().unwrap_or(Path::new("")).join(path)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::error::Error as _;
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    const MINIMAL: &str = "[[core]]\nname = \"echo\"\nengine = \"rv32\"\nfirmware = \"echo.elf\"\n";

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("/etc/rprocd/a.toml"))
    }

    /// The problems, one a line.
    #[track_caller]
    fn refused(text: &str) -> String {
        match parse(text) {
            Err(error @ ConfigError::Refused(_)) => error.to_string(),
            other => panic!("expected refused values, got {other:?}"),
        }
    }

    /// The warnings, one a line; the text is taken.
    #[track_caller]
    fn warned(text: &str) -> String {
        let checked = Config::check(text, Path::new("/etc/rprocd/a.toml"));
        assert!(checked.config.is_some(), "{:?}", checked.problems);
        assert!(!any_error(&checked.problems), "{:?}", checked.problems);
        Lines(&checked.problems).to_string()
    }

    #[test]
    fn the_smallest_file_gets_the_documented_defaults() {
        assert_eq!(
            parse(MINIMAL).unwrap(),
            Config {
                firmware_directory: PathBuf::from("/usr/lib/rprocd/firmware"),
                control: None,
                cores: vec![CoreConfig {
                    name: "echo".into(),
                    engine: EngineConfig::Rv32 {
                        memory_bytes: 4 << 20,
                        pages: Pages::Normal,
                    },
                    firmware: "echo.elf".into(),
                    auto_boot: true,
                    boot_on_guest: false,
                    linger: Linger::Never,
                    coredump: CoredumpConfig {
                        mode: Mode::Disabled,
                        directory: PathBuf::from("/var/lib/rprocd/coredumps"),
                        limits: Limits {
                            count: 8,
                            bytes: 256 << 20,
                        },
                        patience: Duration::from_secs(2),
                        style: Style::ProgramHeaders,
                    },
                    recovery: RecoveryPolicy::default(),
                    grants: Grants {
                        carveouts: CarveoutLimits {
                            bytes: 4 << 20,
                            count: 128
                        },
                        devmem: vec![],
                        vendor: VendorRule::Ignore,
                    },
                    vdevs: vec![],
                }],
            }
        );
    }

    #[test]
    fn the_only_guest_of_a_core_takes_it_along_when_it_leaves() {
        let config = parse(&format!("{MINIMAL}[[core.vdev]]\nsocket = \"a\"\n")).unwrap();
        assert_eq!(
            config.cores[0].vdevs[0].on_departure,
            Departure::RestartCore
        );
    }

    #[test]
    fn recovery_figures_have_limits() {
        let text = format!("{MINIMAL}[core.recovery]\nback-off-ms = -1\nhold-after = 1001\n");
        let problems = refused(&text);
        assert!(
            problems.contains("recovery.back-off-ms is -1, must be 0 to 3600000"),
            "{problems}"
        );
        assert!(
            problems.contains("recovery.hold-after is 1001, must be 0 to 1000"),
            "{problems}"
        );
    }

    #[test]
    fn coredump_figures_have_limits() {
        for (key, range, values) in [
            ("count", "0 to 1000", ["-1", "1001"]),
            ("quota-mib", "1 to 65536", ["0", "65537"]),
            ("patience-ms", "0 to 3600000", ["-1", "3600001"]),
        ] {
            for value in values {
                assert_eq!(
                    refused(&format!("{MINIMAL}[core.coredump]\n{key} = {value}\n")),
                    format!(
                        "/etc/rprocd/a.toml:6:{}: core 0 (name \"echo\"): coredump.{key} is \
                         {value}, must be {range}",
                        key.len() + 4
                    )
                );
            }
        }
    }

    #[test]
    fn coredump_modes_and_styles_are_the_words_listed() {
        for (key, value, words) in [
            (
                "mode",
                "default",
                "must be \"disabled\", \"enabled\" or \"inline\"",
            ),
            (
                "style",
                "elf",
                "coredump.style is \"elf\", must be \"program-headers\" or",
            ),
            (
                "directory",
                "",
                "coredump.directory is \"\", must be the path of a folder",
            ),
        ] {
            let shown = refused(&format!("{MINIMAL}[core.coredump]\n{key} = \"{value}\"\n"));
            assert!(shown.starts_with("/etc/rprocd/a.toml:6:"), "{shown}");
            assert!(
                shown.contains("core 0 (name \"echo\"): coredump"),
                "{shown}"
            );
            assert!(shown.contains(words), "{shown}");
        }
    }

    #[test]
    fn every_key_is_honoured_and_relative_paths_start_at_the_files_folder() {
        let config = parse(
            r#"
            firmware-directory = "fw"
            [control]
            socket = "run/control"
            [[core]]
            name = "dsp_0-b"
            engine = "rv32"
            memory-mib = 1024
            huge-pages = true
            carveout-quota-mib = 1000
            carveout-count = 7
            vendor-resources = "refuse"
            firmware = "dsp.elf"
            auto-boot = false
            boot-on-guest = true
            linger-us = 50
            [core.coredump]
            mode = "inline"
            directory = "dumps"
            count = 0
            quota-mib = 65536
            patience-ms = 3600000
            style = "sections"
            [core.recovery]
            enabled = false
            minimum-run-time-ms = 1
            back-off-ms = 2
            back-off-limit-ms = 3
            hold-after = 4
            hold-window-s = 5
            [[core.devmem]]
            pa = 0x1000_0000
            length = 0x100
            name = "uart"
            [[core.devmem]]
            pa = 0xffff_f000
            length = 0x1000
            [[core.vdev]]
            socket = "/run/a"
            announce = false
            on-departure = "restart-core"
            [[core.vdev]]
            socket = "b"
            [[core]]
            name = "two"
            engine = "rv32"
            firmware = "two.elf"
            "#,
        )
        .unwrap();
        assert_eq!(config.firmware_directory, Path::new("/etc/rprocd/fw"));
        assert_eq!(
            config.control.unwrap().socket,
            Path::new("/etc/rprocd/run/control")
        );
        assert_eq!(
            config.cores[0],
            CoreConfig {
                name: "dsp_0-b".into(),
                engine: EngineConfig::Rv32 {
                    memory_bytes: 1 << 30,
                    pages: Pages::Huge,
                },
                firmware: "dsp.elf".into(),
                auto_boot: false,
                boot_on_guest: true,
                linger: Linger::UpTo(Duration::from_micros(50)),
                coredump: CoredumpConfig {
                    mode: Mode::Inline,
                    directory: "/etc/rprocd/dumps".into(),
                    limits: Limits {
                        count: 0,
                        bytes: 64 << 30,
                    },
                    patience: Duration::from_secs(3600),
                    style: Style::Sections,
                },
                recovery: RecoveryPolicy {
                    enabled: false,
                    minimum_run_time: Duration::from_millis(1),
                    back_off: Duration::from_millis(2),
                    back_off_limit: Duration::from_millis(3),
                    hold_after: 4,
                    hold_window: Duration::from_secs(5),
                },
                grants: Grants {
                    carveouts: CarveoutLimits {
                        bytes: 1000 << 20,
                        count: 7
                    },
                    devmem: vec![
                        DevmemGrant {
                            pa: 0x1000_0000,
                            length: 0x100,
                            name: "uart".into()
                        },
                        DevmemGrant {
                            pa: 0xffff_f000,
                            length: 0x1000,
                            name: String::new()
                        },
                    ],
                    vendor: VendorRule::Refuse,
                },
                vdevs: vec![
                    VdevConfig {
                        socket: "/run/a".into(),
                        permissions: Permissions::default(),
                        announce: false,
                        on_departure: Departure::RestartCore,
                    },
                    VdevConfig {
                        socket: "/etc/rprocd/b".into(),
                        permissions: Permissions::default(),
                        announce: true,
                        on_departure: Departure::ResetVdev,
                    },
                ],
            }
        );
        assert_eq!(config.cores[1].name, "two");
    }

    #[test]
    fn the_example_is_accepted_and_has_every_key_of_the_table_and_each_is_read() {
        let (table, mistakes) = DeTable::parse_recoverable(keys::EXAMPLE);
        assert!(mistakes.is_empty(), "{mistakes:?}");
        let mut check = Check {
            origin: Path::new("/etc/rprocd/a.toml"),
            reader: Reader::new(Source::new(keys::EXAMPLE, Path::new("a"))),
            sockets: HashMap::new(),
        };
        let config = check.config(table.get_ref());
        let mut in_table = BTreeSet::new();
        for section in keys::FILE.all() {
            let parent = match section.name.rsplit_once('.') {
                Some((parent, _)) => parent,
                None => "",
            };
            let of_parent = keys::FILE.all();
            let mut of_parent = of_parent.iter().filter(|it| it.name == parent);
            let is_child =
                |it: &&&keys::Section| it.sections.iter().any(|child| child.name == section.name);
            assert!(section.name.is_empty() || of_parent.any(|it| is_child(&it)));
            for key in section.keys {
                assert!(
                    in_table.insert((section.name, key.name())),
                    "twice: {}",
                    key.name()
                );
            }
        }
        assert_eq!(check.reader.asked, in_table, "asked for, and in the table");
        let (source, problems) = check.reader.finish();
        assert_eq!(problems, []);
        assert_eq!(config.cores[0].vdevs.len(), 1);
        for (section, key) in in_table {
            let section = section.replace("core", "core[0]");
            let section = section
                .replace("vdev", "vdev[0]")
                .replace("devmem", "devmem[0]");
            let path = if section.is_empty() {
                key.to_owned()
            } else {
                // "coredump" has "core" in it.
                format!("{}.{key}", section.replace("core[0]dump", "coredump"))
            };
            assert!(source.has(&path), "{path} is not in the example");
        }
    }

    #[test]
    fn a_default_is_within_its_bounds_and_what_the_example_calls_one_is_one() {
        let spelt_out = parse(keys::EXAMPLE).unwrap();
        let mut text = String::new();
        for line in keys::EXAMPLE.lines() {
            let is_default = line.contains("# the default") && !line.contains("# the default is");
            text += if is_default { "" } else { line };
            text.push('\n');
        }
        let left_out = parse(&text).unwrap();
        assert_eq!(left_out, spelt_out);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named_and_the_cause_is_the_source() {
        let error = Config::load(Path::new("/nonexistent/a.toml")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot read the configuration /nonexistent/a.toml"
        );
        assert!(error.source().unwrap().to_string().contains("No such file"));
    }

    #[test]
    fn load_reads_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        fs::write(&path, format!("firmware-directory = \"fw\"\n{MINIMAL}")).unwrap();
        let config = Config::load(&path).unwrap();
        assert_eq!(config.firmware_directory, folder.path().join("fw"));
    }

    #[test]
    fn what_is_no_text_or_has_no_end_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        fs::write(&path, b"a = 1\nb = \"\xff\"\n").unwrap();
        let shown = Config::load(&path).unwrap_err().to_string();
        assert!(
            shown.ends_with("a.toml:2:6: byte 0xff is no UTF-8 text; save the file as UTF-8"),
            "{shown}"
        );
        let error = Config::load(Path::new("/dev/zero")).unwrap_err();
        let source = error.source().unwrap().to_string();
        assert_eq!(source, "it is longer than 1048576 bytes");
        let error = Config::load(folder.path()).unwrap_err();
        assert!(matches!(error, ConfigError::Read { .. }), "{error:?}");
    }

    #[test]
    fn every_mistake_of_syntax_is_told_with_its_line() {
        let text = "[[core]]\nname = \nengine = rv32\nfirmware = \"a\"\n";
        let checked = Config::check(text, Path::new("/etc/rprocd/a.toml"));
        let lines: Vec<_> = checked.problems.iter().map(|it| it.line).collect();
        assert_eq!(lines, [2, 3], "{:?}", checked.problems);
        let shown = checked.problems[1].shown();
        assert!(
            shown.starts_with("/etc/rprocd/a.toml:3:10: this is no TOML: "),
            "{shown}"
        );
        assert!(
            shown.ends_with("\n  3 | engine = rv32\n    |          ^^^^"),
            "{shown}"
        );
        let twice = refused(&format!("{MINIMAL}name = \"b\"\n"));
        assert!(
            twice.contains(":5:1: this is no TOML: duplicate key"),
            "{twice}"
        );
    }

    #[test]
    fn unknown_keys_are_refused_at_every_level_and_what_was_meant_is_said() {
        let with = |line: &str| format!("{MINIMAL}{line}\n");
        for (text, said) in [
            (
                format!("cores = 1\n{MINIMAL}"),
                "1:1: there is no key cores at the top of the file; there is firmware-directory",
            ),
            (
                format!("firmware_directory = \"a\"\n{MINIMAL}"),
                "1:1: there is no key firmware_directory at the top of the file; did you mean \
                 firmware-directory?",
            ),
            (
                format!("[control]\nsocket = \"a\"\ncolour = 1\n{MINIMAL}"),
                "3:1: control: there is no key colour in [control]; there are socket, group, mode, \
                 monitor, monitor-group, monitor-mode",
            ),
            (
                with("memory = 4"),
                "5:1: core 0 (name \"echo\"): there is no key memory in [[core]]; did you mean \
                 memory-mib?",
            ),
            (
                with("autoBoot = true"),
                "5:1: core 0 (name \"echo\"): there is no key autoBoot in [[core]]; did you mean \
                 auto-boot?",
            ),
            (
                with("[core.coredump]\nquota = 4"),
                "6:1: core 0 (name \"echo\"): there is no key quota in [core.coredump]; did you mean \
                 quota-mib?",
            ),
            (
                with("[core.coredump]\nhold-after = 4"),
                "6:1: core 0 (name \"echo\"): there is no key hold-after in [core.coredump] but in \
                 [core.recovery]; a key belongs to the section header above it",
            ),
            (
                with("[[core.vdev]]\nsocket = \"a\"\nqueue = 1"),
                "7:1: core 0 (name \"echo\"), vdev 0: there is no key queue in [[core.vdev]]; there \
                 are socket, group, mode, announce, on-departure",
            ),
            (
                with("[recovery]\nenabled = true"),
                "5:2: there is no section [recovery]; did you mean [core.recovery]?",
            ),
            (
                with("[core.vdevs]\nsocket = \"a\""),
                "5:7: core 0 (name \"echo\"): there is no section [core.vdevs]; did you mean \
                 [[core.vdev]]?",
            ),
            (
                with("[logging]\nlevel = 1"),
                "5:2: there is no section [logging]; there are [control], [[core]], \
                 [[core.vdev]], [core.recovery], [core.coredump], [[core.devmem]]",
            ),
        ] {
            assert_eq!(refused(&text), format!("/etc/rprocd/a.toml:{said}"));
        }
    }

    #[test]
    fn missing_keys_are_refused() {
        for (key, must) in [
            ("name", "1 to 31 characters out of"),
            ("engine", "\"rv32\""),
            ("firmware", "the name of a file in firmware-directory"),
        ] {
            let text: String = MINIMAL
                .lines()
                .filter(|line| !line.starts_with(key))
                .map(|line| format!("{line}\n"))
                .collect();
            let shown = refused(&text);
            assert!(
                shown.starts_with("/etc/rprocd/a.toml:1:1: core 0"),
                "{shown}"
            );
            assert!(
                shown.contains(&format!(": {key} is missing, must be {must}")),
                "{shown}"
            );
            // One that is there, misspelt, is not missing as well.
            let misspelt = refused(&MINIMAL.replacen(&key[1..], &format!("{}x", &key[1..]), 1));
            assert!(
                misspelt.ends_with(&format!("did you mean {key}?")),
                "{misspelt}"
            );
        }
        let shown = refused(&format!("[control]\n{MINIMAL}"));
        assert!(
            shown.contains("a.toml:1:1: control: socket is missing"),
            "{shown}"
        );
        let shown = refused(&format!("{MINIMAL}[[core.vdev]]\n"));
        assert!(
            shown.contains("5:1: core 0 (name \"echo\"), vdev 0: socket is missing"),
            "{shown}"
        );
    }

    #[test]
    fn values_of_the_wrong_type_are_refused_and_how_to_write_them_is_said() {
        for (line, said) in [
            (
                "memory-mib = \"4\"",
                "memory-mib is the string \"4\", must be an integer, 1 to 1024; write 4 without \
                 quotes",
            ),
            (
                "memory-mib = 4.5",
                "memory-mib is the float 4.5, must be an integer, 1 to 1024",
            ),
            (
                "memory-mib = [4]",
                "memory-mib is an array, must be an integer, 1 to 1024",
            ),
            (
                "auto-boot = 1",
                "auto-boot is the integer 1, must be true or false",
            ),
            (
                "auto-boot = \"true\"",
                "auto-boot is the string \"true\", must be true or false; write true without \
                 quotes",
            ),
            (
                "vendor-resources = true",
                "vendor-resources is the boolean true, must be \"ignore\" or \"refuse\"; write it \
                 in quotes: \"true\"",
            ),
        ] {
            let shown = refused(&format!("{MINIMAL}{line}\n"));
            let (_, what) = shown.split_once("(name \"echo\"): ").unwrap();
            assert_eq!(what, said);
        }
        let shown = refused(&format!(
            "[control]\nsocket = \"/run/a\"\nmode = 660\n{MINIMAL}"
        ));
        assert!(
            shown.ends_with(
                "control: mode is the integer 660, must be a string, octal digits from \"0000\" to \
                 \"0777\"; write it in quotes: \"660\""
            ),
            "{shown}"
        );
    }

    #[test]
    fn brackets_of_a_section_are_counted_and_what_is_in_it_is_judged_all_the_same() {
        let text = MINIMAL
            .replace("[[core]]", "[core]")
            .replace("rv32", "rv64");
        let shown = refused(&text);
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines.len(), 2, "{shown}");
        assert!(
            lines[0].contains("1:1: [core] must be [[core]], with two brackets"),
            "{shown}"
        );
        assert!(lines[1].contains("engine is \"rv64\""), "{shown}");
        let shown = refused(&format!("{MINIMAL}[[core.recovery]]\nhold-after = -1\n"));
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines.len(), 2, "{shown}");
        assert!(
            lines[0].contains("[[core.recovery]] is written with two brackets, must be"),
            "{shown}"
        );
        assert!(lines[1].contains("recovery.hold-after is -1"), "{shown}");
        for (text, said) in [
            (
                format!("control = 1\n{MINIMAL}"),
                "control is an integer, must be a section",
            ),
            (
                "core = \"m0\"\n".to_owned(),
                "core is a string, must be a section: [[core]]",
            ),
            (
                "core = [1]\n".to_owned(),
                "core 0 is an integer, must be a section: [[core]]",
            ),
            (
                "[core.recovery]\nenabled = true\n".to_owned(),
                "[core] must be [[core]]",
            ),
        ] {
            let shown = refused(&text);
            assert!(shown.contains(said), "{shown}");
        }
    }

    #[test]
    fn a_value_that_changes_nothing_is_a_warning_and_the_file_is_taken() {
        assert_eq!(warned(MINIMAL), "");
        assert_eq!(
            warned(&format!(
                "{MINIMAL}[core.recovery]\nback-off-limit-ms = 50\n"
            )),
            "/etc/rprocd/a.toml:5:1: warning: core 0 (name \"echo\"): recovery.back-off-ms is 100, \
             more than back-off-limit-ms allows: each wait takes 50 ms"
        );
        let shown = warned(&format!(
            "{MINIMAL}[core.coredump]\nmode = \"inline\"\ncount = 0\n"
        ));
        assert!(shown.contains(":7:9: warning: core 0"), "{shown}");
        assert!(
            shown.contains("coredump.count is 0: no dump is kept"),
            "{shown}"
        );
    }

    #[test]
    fn more_problems_than_a_person_reads_are_counted() {
        let text = "[[core]]\n".repeat(200);
        let error = parse(&text).unwrap_err();
        let ConfigError::Refused(problems) = error else {
            panic!("{error:?}");
        };
        assert_eq!(problems.len(), 101);
        assert_eq!(problems[100].what, "500 more problems are not shown");
    }

    proptest! {
        #[test]
        fn whatever_a_file_has_it_is_taken_or_refused_with_places_that_exist(
            cuts in proptest::collection::vec((0usize..2000, 0usize..20, ".{0,4}"), 0..6),
        ) {
            let mut text = keys::EXAMPLE.to_owned();
            for (from, length, put) in cuts {
                let mut from = from.min(text.len());
                while !text.is_char_boundary(from) {
                    from -= 1;
                }
                let mut end = (from + length).min(text.len());
                while !text.is_char_boundary(end) {
                    end += 1;
                }
                text.replace_range(from..end, &put);
            }
            let checked = Config::check(&text, Path::new("a.toml"));
            prop_assert_eq!(checked.config.is_none(), any_error(&checked.problems));
            let lines = text.split('\n').count();
            for problem in &checked.problems {
                prop_assert!(problem.line <= lines, "{}", problem);
                prop_assert!(!problem.what.is_empty() && !problem.what.contains('\n'));
                prop_assert!(problem.shown().lines().count() <= 3);
            }
        }
    }

    #[test]
    fn a_file_without_a_core_is_refused() {
        assert_eq!(
            refused("firmware-directory = \"a\"\n"),
            "/etc/rprocd/a.toml:1:1: there is no [[core]], must be at least one"
        );
    }

    #[test]
    fn a_firmware_directory_must_be_a_path() {
        for value in ["", "a\\u0000b"] {
            assert_eq!(
                refused(&format!("firmware-directory = \"{value}\"\n{MINIMAL}")),
                format!(
                    "/etc/rprocd/a.toml:1:22: firmware-directory is \"{}\", \
                     must be the path of a folder",
                    value.replace("\\u0000", "\\0")
                )
            );
        }
    }

    #[test]
    fn a_core_name_is_bounded_and_plain() {
        for bad in [
            "",
            "A",
            "a b",
            "a/b",
            "é",
            "12345678901234567890123456789012",
        ] {
            let text = MINIMAL.replace("\"echo\"", &format!("\"{bad}\""));
            assert_eq!(
                refused(&text),
                format!(
                    "/etc/rprocd/a.toml:2:8: core 0 (name \"{bad}\"): name must be 1 to 31 \
                     characters out of a-z, 0-9, '-' and '_'"
                )
            );
        }
        let longest = MINIMAL.replace("echo\"", "1234567890123456789012345678901\"");
        assert_eq!(parse(&longest).unwrap().cores[0].name.len(), 31);
    }

    #[test]
    fn a_core_name_is_unique() {
        assert_eq!(
            refused(&format!("{MINIMAL}{MINIMAL}")),
            "/etc/rprocd/a.toml:6:8: core 1 (name \"echo\"): name is taken by core 0, \
             must be unique"
        );
    }

    #[test]
    fn only_engine_rv32_exists() {
        assert_eq!(
            refused(&MINIMAL.replace("rv32", "rv64")),
            "/etc/rprocd/a.toml:3:10: core 0 (name \"echo\"): engine is \"rv64\", must be \"rv32\""
        );
    }

    #[test]
    fn memory_is_1_to_1024_mib() {
        for bad in [
            "0",
            "-1",
            "1025",
            "9223372036854775807",
            "-9223372036854775808",
        ] {
            assert_eq!(
                refused(&format!("{MINIMAL}memory-mib = {bad}\n")),
                format!(
                    "/etc/rprocd/a.toml:5:14: core 0 (name \"echo\"): memory-mib is {bad}, \
                     must be 1 to 1024"
                )
            );
        }
    }

    #[test]
    fn huge_pages_want_an_even_number_of_mib() {
        assert_eq!(
            refused(&format!("{MINIMAL}memory-mib = 3\nhuge-pages = true\n")),
            "/etc/rprocd/a.toml:5:14: core 0 (name \"echo\"): memory-mib is 3, must be even with \
             huge-pages: a huge page is 2 MiB"
        );
        assert!(parse(&format!("{MINIMAL}huge-pages = true\n")).is_ok());
    }

    #[test]
    fn a_core_lingers_within_reason_or_without_end() {
        for bad in [-1, 1001, i64::MIN] {
            assert_eq!(
                refused(&format!("{MINIMAL}linger-us = {bad}\n")),
                format!(
                    "/etc/rprocd/a.toml:5:13: core 0 (name \"echo\"): linger-us is {bad}, must be \
                     0 to 1000"
                )
            );
        }
        assert_eq!(
            refused(&format!("{MINIMAL}linger-us = 50\nbusy = true\n")),
            "/etc/rprocd/a.toml:5:13: core 0 (name \"echo\"): linger-us is 50 and busy is true: a \
             busy core lingers without end; take one of them out"
        );
        let linger = |text: &str| parse(&format!("{MINIMAL}{text}\n")).unwrap().cores[0].linger;
        assert_eq!(linger("linger-us = 0"), Linger::Never);
        assert_eq!(linger("busy = true"), Linger::Always);
        let most = Duration::from_millis(1);
        assert_eq!(linger("linger-us = 1000"), Linger::UpTo(most));
    }

    #[test]
    fn quotas_are_within_what_there_is() {
        for (key, value, most) in [
            ("carveout-quota-mib", 0, "1024"),
            ("carveout-quota-mib", -1, "1024"),
            ("carveout-quota-mib", 5, "4: the core has no more memory"),
            ("carveout-count", 0, "4096"),
            ("carveout-count", -1, "4096"),
            ("carveout-count", 4097, "4096"),
        ] {
            assert_eq!(
                refused(&format!("{MINIMAL}{key} = {value}\n")),
                format!(
                    "/etc/rprocd/a.toml:5:{}: core 0 (name \"echo\"): {key} is {value}, must be 1 to \
                     {most}",
                    key.len() + 4
                )
            );
        }
        for line in ["carveout-quota-mib = 4", "carveout-count = 4096"] {
            assert!(parse(&format!("{MINIMAL}{line}\n")).is_ok());
        }
    }

    #[test]
    fn vendor_resources_are_ignored_or_refused() {
        assert_eq!(
            refused(&format!("{MINIMAL}vendor-resources = \"skip\"\n")),
            "/etc/rprocd/a.toml:5:20: core 0 (name \"echo\"): vendor-resources is \"skip\", must \
             be \"ignore\" or \"refuse\""
        );
    }

    #[test]
    fn a_devmem_grant_is_a_span_of_32_bit_addresses() {
        let with = |pa: &str, length: &str| {
            refused(&format!(
                "{MINIMAL}[[core.devmem]]\npa = {pa}\nlength = {length}\n"
            ))
        };
        for pa in ["-1", "0x1_0000_0000"] {
            let shown = with(pa, "1");
            assert!(shown.contains(":6:6: core 0"), "{shown}");
            assert!(shown.contains("must be 0 to 0xffffffff"), "{shown}");
        }
        for (pa, length) in [
            ("0", "0"),
            ("0", "-1"),
            ("0xffff_ffff", "2"),
            ("0", "0x1_0000_0001"),
        ] {
            let shown = with(pa, length);
            assert!(shown.contains(":7:10: core 0"), "{shown}");
            let must = match length {
                "2" => "length is 0x2, must be at most 0x1",
                _ => "must be 1 to 0x100000000",
            };
            assert!(shown.contains(must), "{shown}");
        }
        let long = refused(&format!(
            "{MINIMAL}[[core.devmem]]\npa = 0\nlength = 1\nname = \"{}\"\n",
            "a".repeat(32)
        ));
        assert!(long.contains("must be at most 31 bytes"), "{long}");
    }

    #[test]
    fn firmware_is_a_file_name_and_never_a_path() {
        for bad in ["", ".", "..", "a/b", "/a", "../a", "a\\u0000"] {
            let text = MINIMAL.replace("echo.elf", bad);
            let shown = refused(&text);
            assert!(
                shown.starts_with("/etc/rprocd/a.toml:4:12: core 0 (name \"echo\"): firmware is "),
                "{shown}"
            );
        }
    }

    #[test]
    fn a_socket_must_be_a_path_of_a_file() {
        for bad in ["", "/", ".", "..", "a/", "a/..", "a/.", "a\\u0000b"] {
            let shown = refused(&format!("{MINIMAL}[[core.vdev]]\nsocket = \"{bad}\"\n"));
            assert_eq!(
                shown,
                format!(
                    "/etc/rprocd/a.toml:6:10: core 0 (name \"echo\"), vdev 0: socket is \
                     \"{}\", must be the path of a socket",
                    bad.replace("\\u0000", "\\0")
                )
            );
        }
    }

    #[test]
    fn a_socket_path_fits_sun_path_after_it_was_made_absolute() {
        let with = |path: String| format!("[control]\nsocket = \"{path}\"\n{MINIMAL}");
        assert!(parse(&with(format!("/{}", "a".repeat(106)))).is_ok());
        let shown = refused(&with(format!("/{}", "a".repeat(107))));
        assert!(
            shown.starts_with("/etc/rprocd/a.toml:2:10: control: socket is \"/aaa"),
            "{shown}"
        );
        assert!(
            shown.ends_with("aa\", 108 bytes, must be at most 107"),
            "{shown}"
        );
        // "/etc/rprocd/" is 12 bytes.
        assert!(parse(&with("a".repeat(95))).is_ok());
        assert!(refused(&with("a".repeat(96))).contains("108 bytes"));
    }

    #[test]
    fn who_may_connect_is_a_group_and_octal_digits() {
        let control = |lines: &str| format!("[control]\nsocket = \"/run/a\"\n{lines}\n{MINIMAL}");
        let text = control("mode = \"0660\"\ngroup = \"wheel\"\nmonitor = \"/run/b\"");
        let parsed = parse(&text).unwrap().control.unwrap();
        let expected = Permissions {
            group: Some("wheel".into()),
            mode: Some(0o660),
        };
        assert_eq!(parsed.permissions, expected);
        assert_eq!(parsed.monitor.unwrap().1, Permissions::default());
        for wrong in ["", "0680", "1777", "rw-", "-1", "+660"] {
            let shown = refused(&control(&format!("mode = {wrong:?}")));
            let what = format!("control: mode is {wrong:?}, must be octal digits");
            assert!(shown.contains(&what), "{shown}");
        }
        let shown = refused(&control("monitor-mode = \"0666\""));
        assert!(shown.contains("of no use without monitor"), "{shown}");
        let vdev = format!("{MINIMAL}[[core.vdev]]\nsocket = \"/run/a\"\nmode = \"8\"\n");
        let shown = refused(&vdev);
        assert!(shown.contains("vdev 0: mode is \"8\""), "{shown}");
    }

    #[test]
    fn a_socket_is_unique_over_control_and_all_cores() {
        let text = format!(
            "[control]\nsocket = \"/run/a\"\n{MINIMAL}\
             [[core.vdev]]\nsocket = \"/run//./a\"\n\
             [[core.vdev]]\nsocket = \"/run/b\"\n\
             [[core.vdev]]\nsocket = \"/run/b\"\n"
        );
        assert_eq!(
            refused(&text),
            "/etc/rprocd/a.toml:8:10: core 0 (name \"echo\"), vdev 0: socket is \"/run//./a\", \
             taken by control, must be unique\n\
             /etc/rprocd/a.toml:12:10: core 0 (name \"echo\"), vdev 2: socket is \"/run/b\", \
             taken by core 0 (name \"echo\"), vdev 1, must be unique"
        );
    }

    #[test]
    fn all_bad_values_are_reported_together_in_the_order_of_the_file() {
        let text = "[[core]]\nfirmware = \"a/b\"\nmemory-mib = 0\nengine = \"x\"\nname = \"N\"\n\
                    [control]\nsocket = \"\"\n";
        let places: Vec<_> = match parse(text).unwrap_err() {
            ConfigError::Refused(problems) => problems.iter().map(|p| (p.line, p.column)).collect(),
            other => panic!("{other:?}"),
        };
        assert_eq!(places, [(2, 12), (3, 14), (4, 10), (5, 8), (7, 10)]);
    }

    #[test]
    fn columns_count_characters() {
        let shown = refused(
            "core = [{ name = 'é', engine = 'rv32', firmware = 'a' }, \
             { name = 'a', engine = 'rv32', firmware = 'b', memory-mib = 0 }]\n",
        );
        assert!(shown.contains(":1:18: core 0"), "{shown}");
        assert!(shown.contains(":1:118: core 1"), "{shown}");
    }
}
