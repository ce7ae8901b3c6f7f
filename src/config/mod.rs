//! The daemon's configuration file: TOML as a person wrote it, then [`Config`] as it is used.
//!
//! What belongs here: the file's format, its defaults and every check that needs nothing but the
//! file itself. What does not: whether a firmware file exists or fits; the daemon finds that out
//! from [`crate::firmware`] and [`crate::rproc`] before it starts anything.
//!
//! ```toml
//! firmware-directory = "/usr/lib/rprocd/firmware" # this is the default
//!
//! [control]                      # without this section there is no control socket
//! socket = "/run/rprocd/control"
//! group = "rprocd"               # whom the socket belongs to; the default is the daemon's group
//! mode = "0660"                  # who may connect: who may write. The default is what the
//!                                # daemon's umask leaves
//! monitor = "/run/rprocd/monitor" # a second socket, for those who may look and change nothing;
//!                                # without this line there is none
//! monitor-group = "adm"          # as group and mode
//! monitor-mode = "0666"
//!
//! [[core]]                       # at least one
//! name = "echo"                  # 1 to 31 of a-z, 0-9, '-' and '_'; unique
//! engine = "rv32"                # the only kind
//! memory-mib = 4                 # 1 to 1024; this is the default
//! huge-pages = false             # this is the default; true: memory-mib is even, and the host
//!                                # must have so many huge pages of 2 MiB reserved
//! carveout-quota-mib = 4         # how much of it carveouts may take; the default is all of it
//! carveout-count = 128           # how many there may be, vrings and buffers included; 1 to 4096,
//!                                # this is the default
//! vendor-resources = "ignore"    # this is the default: entries of the resource table's vendor
//!                                # range (128 to 512) that the engine does not know; or "refuse"
//! firmware = "echo.elf"          # a file in firmware-directory
//! auto-boot = true               # this is the default: started with the daemon, and held by the
//!                                # operator from then on
//! boot-on-guest = false          # this is the default; true: a guest that arrives starts the core
//!                                # and holds it until it is gone, and a core that nobody holds any
//!                                # more is stopped. With auto-boot the operator holds it too, so
//!                                # guests alone do not stop it: set that to false
//! linger-us = 0                  # this is the default; up to 1000: before it sleeps, the core
//!                                # looks at its guests' rings for up to so many microseconds, and
//!                                # less the seldomer something comes; saves kicks and wake-ups
//! busy = false                   # this is the default; true: it looks without end as long as a
//!                                # guest is there, and takes a processor for that
//!
//! [[core.vdev]]                  # one for each vdev of the firmware, in the order of its table
//! socket = "/run/rprocd/echo"    # unique in the file, at most 107 bytes
//! group = "libvirt-qemu"         # as for the control socket
//! mode = "0660"
//! announce = true                # this is the default; false hides name service from the guest
//! on-departure = "restart-core"  # or "reset-vdev": when the guest is gone; the default is the
//!                                # first where the core has one vdev, else the second
//!
//! [core.recovery]                # what follows from a crash; these are the defaults
//! enabled = true
//! minimum-run-time-ms = 1000     # a shorter run makes the next start wait:
//! back-off-ms = 100              # so long, doubled with each such run in a row,
//! back-off-limit-ms = 10000      # up to this; these three at most an hour
//! hold-after = 10                # so many crashes, 0 (any number) to 1000,
//! hold-window-s = 60             # within this time, at most a day, hold the core
//!
//! [core.coredump]                # an ELF core of each incarnation that crashes
//! mode = "disabled"              # this is the default; "enabled": what is not written within
//!                                # patience-ms is missing; "inline": recovery waits for all of it
//! directory = "/var/lib/rprocd/coredumps" # this is the default; it must be there unless disabled
//! count = 8                      # dumps of this core kept, the oldest goes first; 0 to 1000, this
//!                                # is the default
//! quota-mib = 256                # all of them together, on the disk; 1 to 65536, this is the
//!                                # default
//! patience-ms = 2000             # this is the default; at most an hour
//! style = "program-headers"      # this is the default, for gdb; or "sections", for tools that
//!                                # look a segment up by its name
//!
//! [[core.devmem]]                # a span of the host's devices that a devmem entry may name;
//!                                # without one every such entry is refused
//! pa = 0x1000_0000               # for rv32: an address of a device of its own board
//! length = 0x100
//! name = "uart"                  # the entry's name; the default, "", is any
//! ```
//!
//! A relative path is relative to the folder that holds the file. Keys that are not listed above
//! are refused. Cores and vdevs are counted from 0, in messages too.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;
use toml::Spanned;

use crate::coredump::{Limits, Mode, Style};
use crate::firmware;
use crate::memory::{CarveoutLimits, HUGE_PAGE, Pages};
use crate::rproc::{Departure, DevmemGrant, Grants, Linger, RecoveryPolicy, VendorRule};
use crate::vdev::Permissions;

/// Where firmware is looked for unless the file says otherwise.
pub const DEFAULT_FIRMWARE_DIRECTORY: &str = "/usr/lib/rprocd/firmware";

/// Where coredumps go unless the file says otherwise.
pub const DEFAULT_COREDUMP_DIRECTORY: &str = "/var/lib/rprocd/coredumps";

const NAME_MAX_BYTES: usize = 31;
/// An hour.
const RECOVERY_MAX_MS: u32 = 3_600_000;
const HOLD_AFTER_MAX: u32 = 1000;
/// A day.
const HOLD_WINDOW_MAX_S: u32 = 86_400;
const COREDUMP_COUNT_DEFAULT: i64 = 8;
const COREDUMP_COUNT_MAX: i64 = 1000;
const COREDUMP_QUOTA_MIB_DEFAULT: i64 = 256;
const COREDUMP_QUOTA_MIB_MAX: i64 = 65_536;
const COREDUMP_PATIENCE_DEFAULT_MS: i64 = 2000;
/// An hour.
const COREDUMP_PATIENCE_MAX_MS: i64 = 3_600_000;
const MEMORY_MIB_DEFAULT: i64 = 4;
/// A wake-up takes some tens of microseconds; who lingers much longer only burns a processor.
const LINGER_US_MAX: i64 = 1000;
const MEMORY_MIB_MAX: i64 = 1024;
const CARVEOUT_COUNT_MAX: i64 = 4096;
const END_OF_32_BITS: i64 = 1 << 32;
/// `sun_path` of `struct sockaddr_un` has 108 bytes, the last of which is a NUL.
const SOCKET_PATH_MAX_BYTES: usize = 107;

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
    /// Is the name service (`VIRTIO_RPMSG_F_NS`) offered to the guest?
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
        source: std::io::Error,
    },
    /// The text is no TOML, or has an unknown key, a missing key or a value of the wrong type.
    /// The source shows the line.
    #[error("{} is not a configuration of rprocd", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What and where, with the line itself.
        source: Box<toml::de::Error>,
    },
    /// The file is well-formed, and some values cannot be used: all of them are listed.
    #[error("{}", Lines(.0))]
    Values(Vec<Problem>),
}

/// One value that cannot be used. Shown as `FILE:line:column: what is wrong`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// Counted from 1.
    pub line: usize,
    /// Counted from 1, in characters.
    pub column: usize,
    /// Which key, its value and what it must be.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}:{}: {}",
            self.file.display(),
            self.line,
            self.column,
            self.what
        )
    }
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

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError::Read`] when the file cannot be read as text, else as [`Config::parse`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, path)
    }

    /// Checks the text of a file. `origin` is the file's path: messages carry it, and relative
    /// paths are relative to its folder. Nothing is read.
    ///
    /// # Errors
    /// [`ConfigError::Syntax`] for the first thing that is not of the format;
    /// [`ConfigError::Values`] with every value that cannot be used.
    pub fn parse(text: &str, origin: &Path) -> Result<Self, ConfigError> {
        let raw: RawConfig = toml::from_str(text).map_err(|source| ConfigError::Syntax {
            path: origin.to_owned(),
            source: Box::new(source),
        })?;
        let mut check = Check {
            text,
            origin,
            problems: Vec::new(),
            sockets: HashMap::new(),
        };
        let config = check.config(raw);
        if check.problems.is_empty() {
            return Ok(config);
        }
        check.problems.sort_by_key(|p| (p.line, p.column));
        Err(ConfigError::Values(check.problems))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawConfig {
    firmware_directory: Option<Spanned<String>>,
    control: Option<RawControl>,
    #[serde(default)]
    core: Vec<RawCore>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawControl {
    socket: Spanned<String>,
    group: Option<String>,
    mode: Option<Spanned<String>>,
    monitor: Option<Spanned<String>>,
    monitor_group: Option<String>,
    monitor_mode: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawCore {
    name: Spanned<String>,
    engine: Spanned<String>,
    memory_mib: Option<Spanned<i64>>,
    #[serde(default)]
    huge_pages: bool,
    carveout_quota_mib: Option<Spanned<i64>>,
    carveout_count: Option<Spanned<i64>>,
    vendor_resources: Option<Spanned<String>>,
    firmware: Spanned<String>,
    #[serde(default = "yes")]
    auto_boot: bool,
    #[serde(default)]
    boot_on_guest: bool,
    linger_us: Option<Spanned<i64>>,
    #[serde(default)]
    busy: bool,
    #[serde(default)]
    coredump: RawCoredump,
    #[serde(default)]
    recovery: RawRecovery,
    #[serde(default)]
    vdev: Vec<RawVdev>,
    #[serde(default)]
    devmem: Vec<RawDevmem>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawDevmem {
    pa: Spanned<i64>,
    length: Spanned<i64>,
    name: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawCoredump {
    mode: Option<Spanned<String>>,
    directory: Option<Spanned<String>>,
    count: Option<Spanned<i64>>,
    quota_mib: Option<Spanned<i64>>,
    patience_ms: Option<Spanned<i64>>,
    style: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawRecovery {
    enabled: Option<bool>,
    minimum_run_time_ms: Option<Spanned<i64>>,
    back_off_ms: Option<Spanned<i64>>,
    back_off_limit_ms: Option<Spanned<i64>>,
    hold_after: Option<Spanned<i64>>,
    hold_window_s: Option<Spanned<i64>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawVdev {
    socket: Spanned<String>,
    group: Option<String>,
    mode: Option<Spanned<String>>,
    #[serde(default = "yes")]
    announce: bool,
    on_departure: Option<RawDeparture>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawDeparture {
    ResetVdev,
    RestartCore,
}

fn yes() -> bool {
    true
}

/// Turns the raw file into a [`Config`] and notes every problem on the way. What it returns is
/// only good if there was none.
struct Check<'a> {
    text: &'a str,
    origin: &'a Path,
    problems: Vec<Problem>,
    /// Every socket so far, and whose it is.
    sockets: HashMap<PathBuf, String>,
}

impl Check<'_> {
    fn config(&mut self, raw: RawConfig) -> Config {
        let firmware_directory = self.folder(
            "firmware-directory",
            raw.firmware_directory.as_ref(),
            DEFAULT_FIRMWARE_DIRECTORY,
        );
        let control = raw.control.map(|control| ControlConfig {
            socket: self.socket("control", &control.socket),
            permissions: self.permissions(
                "control: mode",
                control.group.as_ref(),
                control.mode.as_ref(),
            ),
            monitor: self.monitor(&control),
        });
        if raw.core.is_empty() {
            self.problem(0..0, "there is no [[core]], must be at least one".into());
        }
        let mut names = HashMap::new();
        let cores = raw
            .core
            .into_iter()
            .enumerate()
            .map(|(index, core)| self.core(index, core, &mut names))
            .collect();
        Config {
            firmware_directory,
            control,
            cores,
        }
    }

    fn core(
        &mut self,
        index: usize,
        raw: RawCore,
        names: &mut HashMap<String, usize>,
    ) -> CoreConfig {
        let name = raw.name.as_ref();
        let place = format!("core {index} (name {name:?})");

        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b);
        if name.is_empty() || name.len() > NAME_MAX_BYTES || !name.bytes().all(allowed) {
            self.problem(
                raw.name.span(),
                format!(
                    "{place}: name must be 1 to {NAME_MAX_BYTES} characters \
                     out of a-z, 0-9, '-' and '_'"
                ),
            );
        }
        match names.get(name) {
            Some(first) => self.problem(
                raw.name.span(),
                format!("{place}: name is taken by core {first}, must be unique"),
            ),
            None => {
                names.insert(name.to_owned(), index);
            }
        }

        if raw.engine.as_ref() != "rv32" {
            self.problem(
                raw.engine.span(),
                format!(
                    "{place}: engine is {:?}, must be \"rv32\"",
                    raw.engine.as_ref()
                ),
            );
        }

        let memory_mib = raw
            .memory_mib
            .as_ref()
            .map_or(MEMORY_MIB_DEFAULT, |m| *m.as_ref());
        if let Some(span) = raw.memory_mib.as_ref().map(Spanned::span)
            && !(1..=MEMORY_MIB_MAX).contains(&memory_mib)
        {
            self.problem(
                span,
                format!("{place}: memory-mib is {memory_mib}, must be 1 to {MEMORY_MIB_MAX}"),
            );
        }
        // A value that does not fit has been refused above.
        let memory_bytes = u64::try_from(memory_mib)
            .unwrap_or(0)
            .saturating_mul(1 << 20);

        if let Some(span) = raw.memory_mib.as_ref().map(Spanned::span)
            && raw.huge_pages
            && !memory_bytes.is_multiple_of(HUGE_PAGE)
        {
            self.problem(
                span,
                format!(
                    "{place}: memory-mib is {memory_mib}, must be even with huge-pages: a huge \
                     page is 2 MiB"
                ),
            );
        }
        let grants = self.grants(&place, &raw, memory_mib);

        if let Err(reason) = firmware::check_name(raw.firmware.as_ref()) {
            self.problem(
                raw.firmware.span(),
                format!(
                    "{place}: firmware is {:?}, must be the name of a file in \
                     firmware-directory: {reason}",
                    raw.firmware.as_ref()
                ),
            );
        }

        let linger = self.linger(&place, raw.linger_us.as_ref(), raw.busy);

        let departure = if raw.vdev.len() == 1 {
            Departure::RestartCore
        } else {
            Departure::ResetVdev
        };
        let vdevs = raw
            .vdev
            .iter()
            .enumerate()
            .map(|(vdev, raw)| VdevConfig {
                socket: self.socket(&format!("{place}, vdev {vdev}"), &raw.socket),
                permissions: self.permissions(
                    &format!("{place}, vdev {vdev}: mode"),
                    raw.group.as_ref(),
                    raw.mode.as_ref(),
                ),
                announce: raw.announce,
                on_departure: match raw.on_departure {
                    None => departure,
                    Some(RawDeparture::ResetVdev) => Departure::ResetVdev,
                    Some(RawDeparture::RestartCore) => Departure::RestartCore,
                },
            })
            .collect();
        let recovery = self.recovery(&place, &raw.recovery);
        let coredump = self.coredump(&place, &raw.coredump);

        CoreConfig {
            name: raw.name.into_inner(),
            engine: EngineConfig::Rv32 {
                memory_bytes,
                pages: if raw.huge_pages {
                    Pages::Huge
                } else {
                    Pages::Normal
                },
            },
            firmware: raw.firmware.into_inner(),
            auto_boot: raw.auto_boot,
            boot_on_guest: raw.boot_on_guest,
            linger,
            coredump,
            recovery,
            grants,
            vdevs,
        }
    }

    fn recovery(&mut self, place: &str, raw: &RawRecovery) -> RecoveryPolicy {
        let default = RecoveryPolicy::default();
        let mut number = |key: &str, raw: &Option<Spanned<i64>>, max: u32| {
            let raw = raw.as_ref()?;
            match u32::try_from(*raw.as_ref()) {
                Ok(value) if value <= max => Some(value),
                _ => {
                    let value = raw.as_ref();
                    self.problem(
                        raw.span(),
                        format!("{place}: recovery.{key} is {value}, must be 0 to {max}"),
                    );
                    None
                }
            }
        };
        let millis = |value: u32| Duration::from_millis(value.into());
        RecoveryPolicy {
            enabled: raw.enabled.unwrap_or(default.enabled),
            minimum_run_time: number(
                "minimum-run-time-ms",
                &raw.minimum_run_time_ms,
                RECOVERY_MAX_MS,
            )
            .map_or(default.minimum_run_time, millis),
            back_off: number("back-off-ms", &raw.back_off_ms, RECOVERY_MAX_MS)
                .map_or(default.back_off, millis),
            back_off_limit: number("back-off-limit-ms", &raw.back_off_limit_ms, RECOVERY_MAX_MS)
                .map_or(default.back_off_limit, millis),
            hold_after: number("hold-after", &raw.hold_after, HOLD_AFTER_MAX)
                .unwrap_or(default.hold_after),
            hold_window: number("hold-window-s", &raw.hold_window_s, HOLD_WINDOW_MAX_S)
                .map_or(default.hold_window, |value| {
                    Duration::from_secs(value.into())
                }),
        }
    }

    fn coredump(&mut self, place: &str, raw: &RawCoredump) -> CoredumpConfig {
        let mode = match raw.mode.as_ref().map(|mode| (mode, mode.as_ref().parse())) {
            None => Mode::default(),
            Some((_, Ok(mode))) => mode,
            Some((mode, Err(cause))) => {
                self.problem(mode.span(), format!("{place}: {cause}"));
                Mode::default()
            }
        };
        let style = match raw
            .style
            .as_ref()
            .map(|style| (style, style.as_ref().as_str()))
        {
            None | Some((_, "program-headers")) => Style::ProgramHeaders,
            Some((_, "sections")) => Style::Sections,
            Some((style, other)) => {
                self.problem(
                    style.span(),
                    format!(
                        "{place}: coredump.style is {other:?}, must be \"program-headers\" or \
                         \"sections\""
                    ),
                );
                Style::default()
            }
        };
        let directory = self.folder(
            &format!("{place}: coredump.directory"),
            raw.directory.as_ref(),
            DEFAULT_COREDUMP_DIRECTORY,
        );
        let mut number = |key, raw: &Option<Spanned<i64>>, default, range| {
            self.number(place, key, raw.as_ref(), default, range)
        };
        let count = number(
            "coredump.count",
            &raw.count,
            COREDUMP_COUNT_DEFAULT,
            0..=COREDUMP_COUNT_MAX,
        );
        let quota_mib = number(
            "coredump.quota-mib",
            &raw.quota_mib,
            COREDUMP_QUOTA_MIB_DEFAULT,
            1..=COREDUMP_QUOTA_MIB_MAX,
        );
        let patience_ms = number(
            "coredump.patience-ms",
            &raw.patience_ms,
            COREDUMP_PATIENCE_DEFAULT_MS,
            0..=COREDUMP_PATIENCE_MAX_MS,
        );
        CoredumpConfig {
            mode,
            directory,
            limits: Limits {
                count: usize::try_from(count).unwrap_or(0),
                bytes: quota_mib.saturating_mul(1 << 20),
            },
            patience: Duration::from_millis(patience_ms),
            style,
        }
    }

    fn grants(&mut self, place: &str, raw: &RawCore, memory_mib: i64) -> Grants {
        let quota = raw.carveout_quota_mib.as_ref();
        let quota = self.number(
            place,
            "carveout-quota-mib",
            quota,
            memory_mib,
            1..=memory_mib,
        );
        let count = raw.carveout_count.as_ref();
        let default = i64::try_from(CarveoutLimits::DEFAULT_COUNT).unwrap_or(CARVEOUT_COUNT_MAX);
        let range = 1..=CARVEOUT_COUNT_MAX;
        let count = self.number(place, "carveout-count", count, default, range);
        let vendor = match raw.vendor_resources.as_ref() {
            None => VendorRule::default(),
            Some(value) => match value.as_ref().as_str() {
                "ignore" => VendorRule::Ignore,
                "refuse" => VendorRule::Refuse,
                other => {
                    self.problem(
                        value.span(),
                        format!(
                            "{place}: vendor-resources is {other:?}, must be \"ignore\" or \
                             \"refuse\""
                        ),
                    );
                    VendorRule::default()
                }
            },
        };
        let devmem = raw
            .devmem
            .iter()
            .enumerate()
            .map(|(index, raw)| self.devmem(&format!("{place}, devmem {index}"), raw))
            .collect();
        Grants {
            carveouts: CarveoutLimits {
                bytes: quota.saturating_mul(1 << 20),
                count: usize::try_from(count).unwrap_or(0),
            },
            devmem,
            vendor,
        }
    }

    /// What a core does between events.
    fn linger(&mut self, place: &str, raw: Option<&Spanned<i64>>, busy: bool) -> Linger {
        let microseconds = self.number(place, "linger-us", raw, 0, 0..=LINGER_US_MAX);
        if let Some(raw) = raw
            && busy
        {
            let what = format!(
                "{place}: linger-us is {microseconds} and busy is true: a busy core lingers \
                 without end; take one of them out"
            );
            self.problem(raw.span(), what);
        }
        match (busy, microseconds) {
            (true, _) => Linger::Always,
            (false, 0) => Linger::Never,
            (false, _) => Linger::UpTo(Duration::from_micros(microseconds)),
        }
    }

    /// A number that `range` contains.
    fn number(
        &mut self,
        place: &str,
        key: &str,
        raw: Option<&Spanned<i64>>,
        default: i64,
        range: RangeInclusive<i64>,
    ) -> u64 {
        let value = raw.map_or(default, |raw| *raw.as_ref());
        if let Some(raw) = raw
            && !range.contains(&value)
        {
            let (min, max) = range.into_inner();
            let what = format!("{place}: {key} is {value}, must be {min} to {max}");
            self.problem(raw.span(), what);
        }
        // A value that does not fit has been refused above.
        u64::try_from(value).unwrap_or(0)
    }

    fn devmem(&mut self, place: &str, raw: &RawDevmem) -> DevmemGrant {
        let (pa, length) = (*raw.pa.as_ref(), *raw.length.as_ref());
        if !(0..END_OF_32_BITS).contains(&pa) {
            self.problem(
                raw.pa.span(),
                format!("{place}: pa is {pa}, must be 0 to 0xffffffff, as in a resource table"),
            );
        } else if length < 1 || length > END_OF_32_BITS - pa {
            self.problem(
                raw.length.span(),
                format!(
                    "{place}: length is {length}, must be at least 1 and end at most at \
                     0x100000000"
                ),
            );
        }
        if let Some(name) = &raw.name
            && name.as_ref().len() > NAME_MAX_BYTES
        {
            self.problem(
                name.span(),
                format!(
                    "{place}: name is {:?}, must be at most {NAME_MAX_BYTES} bytes, as in a \
                     resource table",
                    name.as_ref()
                ),
            );
        }
        DevmemGrant {
            pa: u64::try_from(pa).unwrap_or(0),
            length: u64::try_from(length).unwrap_or(0),
            name: raw
                .name
                .as_ref()
                .map_or_else(String::new, |n| n.as_ref().clone()),
        }
    }

    /// The mode of a socket, in octal digits as for `chmod`.
    fn permissions(
        &mut self,
        what: &str,
        group: Option<&String>,
        mode: Option<&Spanned<String>>,
    ) -> Permissions {
        let mode = mode.and_then(|raw| {
            let digits = raw.as_ref();
            let mode = u32::from_str_radix(digits, 8).ok();
            let mode = mode.filter(|mode| *mode <= 0o777 && !digits.starts_with('+'));
            if mode.is_none() {
                let wrong =
                    format!("{what} is {digits:?}, must be octal digits from \"0000\" to \"0777\"");
                self.problem(raw.span(), wrong);
            }
            mode
        });
        Permissions {
            group: group.cloned(),
            mode,
        }
    }

    fn monitor(&mut self, raw: &RawControl) -> Option<(PathBuf, Permissions)> {
        let (group, mode) = (raw.monitor_group.as_ref(), raw.monitor_mode.as_ref());
        let permissions = self.permissions("control: monitor-mode", group, mode);
        let Some(socket) = &raw.monitor else {
            if permissions != Permissions::default() {
                let at = raw.socket.span();
                let what = "control: monitor-group and monitor-mode are of no use without monitor";
                self.problem(at, what.into());
            }
            return None;
        };
        Some((self.socket("control: monitor", socket), permissions))
    }

    fn socket(&mut self, place: &str, raw: &Spanned<String>) -> PathBuf {
        let text = raw.as_ref();
        let path = self.resolve(text);
        let bytes = path.as_os_str().len();
        let last = text.rsplit('/').next().unwrap_or("");
        if ["", ".", ".."].contains(&last) || text.contains('\0') {
            self.problem(
                raw.span(),
                format!("{place}: socket is {text:?}, must be the path of a socket"),
            );
        } else if bytes > SOCKET_PATH_MAX_BYTES {
            self.problem(
                raw.span(),
                format!(
                    "{place}: socket is {path:?}, {bytes} bytes, \
                     must be at most {SOCKET_PATH_MAX_BYTES}"
                ),
            );
        } else if let Some(other) = self.sockets.get(&path) {
            let what = format!("{place}: socket is {path:?}, taken by {other}, must be unique");
            self.problem(raw.span(), what);
        } else {
            self.sockets.insert(path.clone(), place.to_owned());
        }
        path
    }

    /// The path of a folder.
    fn folder(&mut self, key: &str, raw: Option<&Spanned<String>>, default: &str) -> PathBuf {
        let Some(raw) = raw else {
            return PathBuf::from(default);
        };
        let text = raw.as_ref();
        if text.is_empty() || text.contains('\0') {
            self.problem(
                raw.span(),
                format!("{key} is {text:?}, must be the path of a folder"),
            );
        }
        self.resolve(text)
    }

    /// A relative path is relative to the folder of the file.
    fn resolve(&self, path: &str) -> PathBuf {
        self.origin.parent().unwrap_or(Path::new("")).join(path)
    }

    fn problem(&mut self, span: Range<usize>, what: String) {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        self.problems.push(Problem {
            file: self.origin.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            what,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    const MINIMAL: &str = "[[core]]\nname = \"echo\"\nengine = \"rv32\"\nfirmware = \"echo.elf\"\n";

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("/etc/rprocd/a.toml"))
    }

    /// The problems, one a line.
    #[track_caller]
    fn refused(text: &str) -> String {
        match parse(text) {
            Err(error @ ConfigError::Values(_)) => error.to_string(),
            other => panic!("expected refused values, got {other:?}"),
        }
    }

    #[track_caller]
    fn syntax(text: &str) -> String {
        let error = parse(text).unwrap_err();
        assert!(matches!(error, ConfigError::Syntax { .. }), "{error:?}");
        assert_eq!(
            error.to_string(),
            "/etc/rprocd/a.toml is not a configuration of rprocd"
        );
        error.source().unwrap().to_string()
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
    fn the_example_in_the_documentation_is_accepted() {
        let text: String = include_str!("mod.rs")
            .lines()
            .skip_while(|line| *line != "//! ```toml")
            .skip(1)
            .take_while(|line| *line != "//! ```")
            .map(|line| line.trim_start_matches("//!").trim_start().to_owned() + "\n")
            .collect();
        let config = parse(&text).unwrap();
        assert_eq!(config.cores[0].vdevs.len(), 1);
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
    fn broken_toml_is_shown_with_its_line() {
        let shown = syntax("[[core]]\nname = \n");
        assert!(shown.contains("line 2, column"), "{shown}");
        assert!(shown.contains('^'), "{shown}");
    }

    #[test]
    fn unknown_keys_are_refused_at_every_level() {
        for text in [
            format!("cores = 1\n{MINIMAL}"),
            format!("[control]\nsocket = \"a\"\ncolour = 1\n{MINIMAL}"),
            format!("{MINIMAL}memory = 4\n"),
            format!("{MINIMAL}[core.coredump]\nquota = 4\n"),
            format!("{MINIMAL}[[core.vdev]]\nsocket = \"a\"\nqueue = 1\n"),
        ] {
            let shown = syntax(&text);
            assert!(shown.contains("unknown field"), "{shown}");
        }
    }

    #[test]
    fn missing_keys_are_refused() {
        for key in ["name", "engine", "firmware"] {
            let text: String = MINIMAL
                .lines()
                .filter(|line| !line.starts_with(key))
                .map(|line| format!("{line}\n"))
                .collect();
            assert!(syntax(&text).contains(&format!("missing field `{key}`")));
        }
        assert!(syntax(&format!("[control]\n{MINIMAL}")).contains("missing field `socket`"));
        assert!(syntax(&format!("{MINIMAL}[[core.vdev]]\n")).contains("missing field `socket`"));
    }

    #[test]
    fn values_of_the_wrong_type_are_refused() {
        assert!(syntax(&format!("{MINIMAL}memory-mib = \"4\"\n")).contains("invalid type"));
        assert!(syntax(&format!("{MINIMAL}auto-boot = 1\n")).contains("invalid type"));
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
        for (key, max, values) in [
            ("carveout-quota-mib", 4, [0, -1, 5]),
            ("carveout-count", 4096, [0, -1, 4097]),
        ] {
            for value in values {
                assert_eq!(
                    refused(&format!("{MINIMAL}{key} = {value}\n")),
                    format!(
                        "/etc/rprocd/a.toml:5:{}: core 0 (name \"echo\"): {key} is {value}, must \
                         be 1 to {max}",
                        key.len() + 4
                    )
                );
            }
            assert!(parse(&format!("{MINIMAL}{key} = {max}\n")).is_ok());
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
            assert!(
                shown.contains("must be at least 1 and end at most"),
                "{shown}"
            );
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
            ConfigError::Values(problems) => problems.iter().map(|p| (p.line, p.column)).collect(),
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
