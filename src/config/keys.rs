//! Every key of the configuration file: its type, bounds and default, and what it is for.
//!
//! What belongs here: the table, and nothing else. The file is read by it, the messages about a file
//! are made from it, and so are `docs/configuration.md` and rprocd.toml(5) (`cargo xtask pages`), so
//! none of them can say what another does not. What does not belong here: what a key's value is
//! used for, and checks that need more than the value itself.
//!
//! A new key is a constant, in the list of its [`Section`], and is read where its section is read; a
//! test finds the one that was forgotten. Texts are for users: `like this` is what they type.

use crate::coredump::{Mode, Style};
use crate::memory::CarveoutLimits;
use crate::rproc::{Departure, VendorRule};

/// The version of rprocd that has the first of all keys.
const FIRST: &str = "0.1.0";

/// A file in which each key stands once, with a value that is worth showing.
pub const EXAMPLE: &str = include_str!("example.toml");

/// A table of the file, or an array of tables.
pub struct Section {
    /// How it is written, without brackets: `core.vdev`. The file itself has none.
    pub name: &'static str,
    /// May there be several, each `[[so]]`?
    pub is_array: bool,
    /// What it is for, and whether it must be there.
    pub doc: &'static str,
    /// Its keys.
    pub keys: &'static [&'static dyn Described],
    /// Sections within it.
    pub sections: &'static [&'static Section],
}

impl Section {
    /// The section as it is written in a file.
    pub fn header(&self) -> String {
        if self.is_array {
            format!("[[{}]]", self.name)
        } else {
            format!("[{}]", self.name)
        }
    }

    /// The last part of its name, which is its key in the section that it is in.
    pub fn key(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }

    /// It and all that are within it, in the order of the documentation.
    pub fn all(&'static self) -> Vec<&'static Section> {
        let mut all = vec![self];
        for section in self.sections {
            all.extend(section.all());
        }
        all
    }
}

/// What happens where a key is absent.
#[derive(Clone, Copy)]
pub enum Need<V> {
    /// The file is refused.
    Required,
    /// It is as if this value were there.
    Default(V),
    /// What then holds, in words.
    Otherwise(&'static str),
}

/// A key whose value is of kind `K`.
pub struct Key<K: Kind> {
    /// As it is written in a file.
    pub name: &'static str,
    /// What is allowed.
    pub kind: K,
    /// What happens without it.
    pub need: Need<K::Value>,
    /// The first version of rprocd that takes it.
    pub since: &'static str,
    /// What it is for.
    pub doc: &'static str,
}

/// A kind of value.
pub trait Kind: Sync {
    /// What the value is when it has been read.
    type Value: Copy + Sync;

    /// The type, as TOML calls it.
    fn type_name(&self) -> &'static str;

    /// What is allowed, as the end of "must be".
    fn allowed(&self) -> String;

    /// A value as it is written in a file.
    fn written(&self, value: Self::Value) -> String;

    /// What the number counts.
    fn unit(&self) -> Option<&'static str> {
        None
    }

    /// The words that are allowed and what each means, where only some are.
    fn words(&self) -> Vec<(&'static str, &'static str)> {
        Vec::new()
    }
}

/// An integer from `min` to `max`.
pub struct Integer {
    /// The least.
    pub min: i64,
    /// The most.
    pub max: i64,
    /// What it counts.
    pub unit: Option<&'static str>,
    /// Is it an address or the length of a span, and so written in hexadecimal?
    pub is_hex: bool,
}

/// `true` or `false`.
pub struct Flag;

/// Text, the form of which is said in words.
pub struct Text {
    /// As the end of "must be".
    pub form: &'static str,
}

/// One of a few words.
pub struct Choice<T: 'static> {
    /// Each, what it stands for, and what it means.
    pub words: &'static [(&'static str, T, &'static str)],
}

impl Kind for Integer {
    type Value = i64;

    fn type_name(&self) -> &'static str {
        "integer"
    }

    fn allowed(&self) -> String {
        let (min, max) = (self.written(self.min), self.written(self.max));
        format!("{min} to {max}")
    }

    fn written(&self, value: i64) -> String {
        if self.is_hex && value > 9 {
            format!("{value:#x}")
        } else {
            value.to_string()
        }
    }

    fn unit(&self) -> Option<&'static str> {
        self.unit
    }
}

impl Kind for Flag {
    type Value = bool;

    fn type_name(&self) -> &'static str {
        "boolean"
    }

    fn allowed(&self) -> String {
        "true or false".to_owned()
    }

    fn written(&self, value: bool) -> String {
        value.to_string()
    }
}

impl Kind for Text {
    type Value = &'static str;

    fn type_name(&self) -> &'static str {
        "string"
    }

    fn allowed(&self) -> String {
        self.form.to_owned()
    }

    fn written(&self, value: &'static str) -> String {
        format!("{value:?}")
    }
}

impl<T: Copy + PartialEq + Sync> Kind for Choice<T> {
    type Value = T;

    fn type_name(&self) -> &'static str {
        "string"
    }

    fn allowed(&self) -> String {
        let words: Vec<_> = self.words.iter().map(|it| format!("{:?}", it.0)).collect();
        match words.split_last() {
            Some((last, [])) => last.clone(),
            Some((last, others)) => format!("{} or {last}", others.join(", ")),
            None => String::new(),
        }
    }

    fn written(&self, value: T) -> String {
        let word = self.words.iter().find(|it| it.1 == value);
        word.map_or_else(String::new, |it| format!("{:?}", it.0))
    }

    fn words(&self) -> Vec<(&'static str, &'static str)> {
        self.words.iter().map(|it| (it.0, it.2)).collect()
    }
}

/// A key of any kind, as the documentation shows it.
pub trait Described: Sync {
    /// As it is written in a file.
    fn name(&self) -> &'static str;
    /// The type, as TOML calls it.
    fn type_name(&self) -> &'static str;
    /// What the number counts.
    fn unit(&self) -> Option<&'static str>;
    /// What is allowed, as the end of "must be".
    fn allowed(&self) -> String;
    /// The words that are allowed and what each means, where only some are.
    fn words(&self) -> Vec<(&'static str, &'static str)>;
    /// What happens without it; a default as it is written in a file.
    fn need(&self) -> Need<String>;
    /// The first version of rprocd that takes it.
    fn since(&self) -> &'static str;
    /// What it is for.
    fn doc(&self) -> &'static str;
}

impl<K: Kind> Described for Key<K> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn type_name(&self) -> &'static str {
        self.kind.type_name()
    }

    fn unit(&self) -> Option<&'static str> {
        self.kind.unit()
    }

    fn allowed(&self) -> String {
        self.kind.allowed()
    }

    fn words(&self) -> Vec<(&'static str, &'static str)> {
        self.kind.words()
    }

    fn need(&self) -> Need<String> {
        match self.need {
            Need::Required => Need::Required,
            Need::Default(value) => Need::Default(self.kind.written(value)),
            Need::Otherwise(words) => Need::Otherwise(words),
        }
    }

    fn since(&self) -> &'static str {
        self.since
    }

    fn doc(&self) -> &'static str {
        self.doc
    }
}

/// A number of something, from `min` to `max`.
const fn number(min: i64, max: i64, unit: Option<&'static str>) -> Integer {
    let is_hex = false;
    Integer {
        min,
        max,
        unit,
        is_hex,
    }
}

const SOCKET_FORM: Text = Text {
    form: "the path of a socket, at most 107 bytes, which no other key of the file has",
};

const GROUP_FORM: Text = Text {
    form: "the name of a group of this host",
};

const MODE_FORM: Text = Text {
    form: "octal digits from \"0000\" to \"0777\"",
};

const GROUP_ABSENT: Need<&str> = Need::Otherwise("the group of the daemon's process");

const MODE_ABSENT: Need<&str> =
    Need::Otherwise("what the umask of the daemon leaves; its service units set 0077");

/// The bytes of a Unix socket's path: `sun_path` of `struct sockaddr_un` has 108, the last of which
/// is a NUL.
pub const SOCKET_PATH_MAX_BYTES: usize = 107;

/// The bytes of a core's name, and of the name of an entry of a resource table.
pub const NAME_MAX_BYTES: usize = 31;

/// An hour.
const HOUR_MS: i64 = 3_600_000;

/// One past the last address of a core.
pub const END_OF_32_BITS: i64 = 1 << 32;

/// `firmware-directory`
pub static FIRMWARE_DIRECTORY: Key<Text> = Key {
    name: "firmware-directory",
    kind: Text {
        form: "the path of a folder",
    },
    need: Need::Default("/usr/lib/rprocd/firmware"),
    since: FIRST,
    doc: "The folder that firmware files are read from: at the start the file that `firmware` \
          names, and later each file that an operator names without a path.",
};

/// `control.socket`
pub static CONTROL_SOCKET: Key<Text> = Key {
    name: "socket",
    kind: SOCKET_FORM,
    need: Need::Required,
    since: FIRST,
    doc: "The control socket, on which operators and programs connect. A user who may write to the \
          socket may call every method. `rprocctl` finds `/run/rprocd/control` and \
          `/run/rprocd/NAME/control` by itself; give it any other path with `--socket`.",
};

/// `control.group`
pub static CONTROL_GROUP: Key<Text> = Key {
    name: "group",
    kind: GROUP_FORM,
    need: GROUP_ABSENT,
    since: FIRST,
    doc: "The group that the socket belongs to. A daemon that is not root can give it to a group \
          that it is in itself.",
};

/// `control.mode`
pub static CONTROL_MODE: Key<Text> = Key {
    name: "mode",
    kind: MODE_FORM,
    need: MODE_ABSENT,
    since: FIRST,
    doc: "The permissions of the socket, in quotes, as for `chmod`. A user who may write to the \
          socket may connect: \"0660\" admits the daemon's user and the group.",
};

/// `control.monitor`
pub static CONTROL_MONITOR: Key<Text> = Key {
    name: "monitor",
    kind: SOCKET_FORM,
    need: Need::Otherwise("there is no such socket"),
    since: FIRST,
    doc: "The monitor socket: a second socket, for users who may look at everything but coredumps, \
          and may change nothing.",
};

/// `control.monitor-group`
pub static CONTROL_MONITOR_GROUP: Key<Text> = Key {
    name: "monitor-group",
    kind: GROUP_FORM,
    need: GROUP_ABSENT,
    since: FIRST,
    doc: "The group that the monitor socket belongs to.",
};

/// `control.monitor-mode`
pub static CONTROL_MONITOR_MODE: Key<Text> = Key {
    name: "monitor-mode",
    kind: MODE_FORM,
    need: MODE_ABSENT,
    since: FIRST,
    doc: "The permissions of the monitor socket. \"0666\" lets every user of the host look.",
};

/// `core.name`
pub static CORE_NAME: Key<Text> = Key {
    name: "name",
    kind: Text {
        form: "1 to 31 characters out of a-z, 0-9, '-' and '_', which no other core has",
    },
    need: Need::Required,
    since: FIRST,
    doc: "What the core is called: in every command of `rprocctl`, in the log, in metrics and in \
          the names of coredumps.",
};

/// The kinds of engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Engine {
    /// The embedded RISC-V engine.
    Rv32,
}

/// `core.engine`
pub static CORE_ENGINE: Key<Choice<Engine>> = Key {
    name: "engine",
    kind: Choice {
        words: &[(
            "rv32",
            Engine::Rv32,
            "an RV32IMAC core, interpreted in the daemon; CLINT, PLIC, UART and finisher as on QEMU's \
             `virt` board, and a mailbox, a watchdog and a copier",
        )],
    },
    need: Need::Required,
    since: FIRST,
    doc: "What executes the firmware.",
};

/// `core.firmware`
pub static CORE_FIRMWARE: Key<Text> = Key {
    name: "firmware",
    kind: Text {
        form: "the name of a file in firmware-directory",
    },
    need: Need::Required,
    since: FIRST,
    doc: "The ELF file that the core runs: a regular file in `firmware-directory`, named without a \
          path. The daemon reads it once, at its start, and checks all of it; an operator can give \
          the core another file while the core is offline.",
};

/// `core.memory-mib`
pub static CORE_MEMORY_MIB: Key<Integer> = Key {
    name: "memory-mib",
    kind: number(1, 1024, Some("MiB")),
    need: Need::Default(4),
    since: FIRST,
    doc: "The core's RAM. For `rv32` it begins at address 0x80000000.",
};

/// `core.huge-pages`
pub static CORE_HUGE_PAGES: Key<Flag> = Key {
    name: "huge-pages",
    kind: Flag,
    need: Need::Default(false),
    since: FIRST,
    doc: "Backs the RAM with huge pages of 2 MiB. `memory-mib` must then be even, and the host \
          must have reserved enough huge pages (`vm.nr_hugepages`).",
};

/// `core.carveout-quota-mib`
pub static CORE_CARVEOUT_QUOTA_MIB: Key<Integer> = Key {
    name: "carveout-quota-mib",
    kind: number(1, 1024, Some("MiB")),
    need: Need::Otherwise("the value of `memory-mib`"),
    since: FIRST,
    doc: "How much of its RAM the firmware may claim as carveouts, vrings and their buffers \
          included; at most `memory-mib`.",
};

/// `core.carveout-count`
pub static CORE_CARVEOUT_COUNT: Key<Integer> = Key {
    name: "carveout-count",
    kind: number(1, 4096, None),
    need: Need::Default(CarveoutLimits::DEFAULT_COUNT as i64),
    since: FIRST,
    doc: "How many carveouts the firmware may have, vrings and their buffers included.",
};

/// `core.vendor-resources`
pub static CORE_VENDOR_RESOURCES: Key<Choice<VendorRule>> = Key {
    name: "vendor-resources",
    kind: Choice {
        words: &[
            ("ignore", VendorRule::Ignore, "they are skipped"),
            ("refuse", VendorRule::Refuse, "the firmware is refused"),
        ],
    },
    need: Need::Default(VendorRule::Ignore),
    since: FIRST,
    doc: "What happens to vendor entries of the resource table (types 128 to 512) that the engine \
          does not know.",
};

/// `core.auto-boot`
pub static CORE_AUTO_BOOT: Key<Flag> = Key {
    name: "auto-boot",
    kind: Flag,
    need: Need::Default(true),
    since: FIRST,
    doc: "Starts the core with the daemon. The operator holds the core from then on, so it runs \
          until `rprocctl stop`.",
};

/// `core.boot-on-guest`
pub static CORE_BOOT_ON_GUEST: Key<Flag> = Key {
    name: "boot-on-guest",
    kind: Flag,
    need: Need::Default(false),
    since: FIRST,
    doc: "A guest starts the core when its driver comes up, and holds the core until its VMM \
          disconnects. A core that nobody holds is stopped. With `auto-boot` the operator holds \
          the core as well: set `auto-boot` to false for a core that runs only while a guest is \
          there.",
};

/// `core.linger-us`
pub static CORE_LINGER_US: Key<Integer> = Key {
    name: "linger-us",
    kind: number(0, 1000, Some("microseconds")),
    need: Need::Default(0),
    since: FIRST,
    doc: "Before the core sleeps, it polls its guests' rings for at most this long, and for a \
          shorter time where messages are rare. Polling saves kicks and wake-ups, and costs \
          processor time.",
};

/// `core.busy`
pub static CORE_BUSY: Key<Flag> = Key {
    name: "busy",
    kind: Flag,
    need: Need::Default(false),
    since: FIRST,
    doc: "The core polls its guests' rings without a pause while a guest is there. That takes a \
          whole processor. `busy` cannot be used together with `linger-us`.",
};

/// `core.vdev.socket`
pub static VDEV_SOCKET: Key<Text> = Key {
    name: "socket",
    kind: SOCKET_FORM,
    need: Need::Required,
    since: FIRST,
    doc: "The vhost-user socket, on which the VMM connects.",
};

/// `core.vdev.group`
pub static VDEV_GROUP: Key<Text> = Key {
    name: "group",
    kind: GROUP_FORM,
    need: GROUP_ABSENT,
    since: FIRST,
    doc: "The group that the socket belongs to: one that the VMM's process is in.",
};

/// `core.vdev.mode`
pub static VDEV_MODE: Key<Text> = Key {
    name: "mode",
    kind: MODE_FORM,
    need: MODE_ABSENT,
    since: FIRST,
    doc: "The permissions of the socket. A VMM that may write to the socket may connect.",
};

/// `core.vdev.announce`
pub static VDEV_ANNOUNCE: Key<Flag> = Key {
    name: "announce",
    kind: Flag,
    need: Need::Default(true),
    since: FIRST,
    doc: "Offers name service (`VIRTIO_RPMSG_F_NS`): the guest is told by name which endpoints the \
          firmware has, and its driver makes a channel for each. A stock Linux guest needs the \
          kernel module `virtio_rpmsg_defer` for that: without the module, its kernel reports \
          `scheduling while atomic` or a warning at each announcement, and may crash. With false \
          the guest is told nothing; programs in the guest make the channels through \
          `/dev/rpmsg_ctrl0`.",
};

/// `core.vdev.on-departure`
pub static VDEV_ON_DEPARTURE: Key<Choice<Departure>> = Key {
    name: "on-departure",
    kind: Choice {
        words: &[
            (
                "restart-core",
                Departure::RestartCore,
                "the core is stopped and booted again; guests of its other vdevs see their \
                 channels disappear and come back",
            ),
            (
                "reset-vdev",
                Departure::ResetVdev,
                "only this vdev is reset; the firmware must notice from the vdev's status that the \
                 driver is gone",
            ),
        ],
    },
    need: Need::Otherwise(
        "\"restart-core\" where the core has one vdev, \"reset-vdev\" where it has more",
    ),
    since: FIRST,
    doc: "What happens when the guest is gone: its VMM disconnected, the guest rebooted, or its \
          driver was unbound.",
};

/// `core.recovery.enabled`
pub static RECOVERY_ENABLED: Key<Flag> = Key {
    name: "enabled",
    kind: Flag,
    need: Need::Default(true),
    since: FIRST,
    doc: "Restarts the core after a crash. With false the core stays crashed, with its memory as \
          it was, until `rprocctl recovery now` or `rprocctl start`.",
};

/// `core.recovery.minimum-run-time-ms`
pub static RECOVERY_MINIMUM_RUN_TIME_MS: Key<Integer> = Key {
    name: "minimum-run-time-ms",
    kind: number(0, HOUR_MS, Some("milliseconds")),
    need: Need::Default(1000),
    since: FIRST,
    doc: "A core that crashed after a shorter run than this waits for `back-off-ms` before it is \
          restarted. After a longer run it is restarted at once.",
};

/// `core.recovery.back-off-ms`
pub static RECOVERY_BACK_OFF_MS: Key<Integer> = Key {
    name: "back-off-ms",
    kind: number(0, HOUR_MS, Some("milliseconds")),
    need: Need::Default(100),
    since: FIRST,
    doc: "The wait after the first such short run. It doubles with each further short run in a \
          row.",
};

/// `core.recovery.back-off-limit-ms`
pub static RECOVERY_BACK_OFF_LIMIT_MS: Key<Integer> = Key {
    name: "back-off-limit-ms",
    kind: number(0, HOUR_MS, Some("milliseconds")),
    need: Need::Default(10_000),
    since: FIRST,
    doc: "The longest wait, however often it has doubled.",
};

/// `core.recovery.hold-after`
pub static RECOVERY_HOLD_AFTER: Key<Integer> = Key {
    name: "hold-after",
    kind: number(0, 1000, Some("crashes")),
    need: Need::Default(10),
    since: FIRST,
    doc: "After this many crashes within `hold-window-s` the core is not restarted any more: it \
          stays crashed until somebody starts it. With 0 there is no such limit.",
};

/// `core.recovery.hold-window-s`
pub static RECOVERY_HOLD_WINDOW_S: Key<Integer> = Key {
    name: "hold-window-s",
    kind: number(0, 86_400, Some("seconds")),
    need: Need::Default(60),
    since: FIRST,
    doc: "The time in which crashes are counted for `hold-after`.",
};

/// `core.coredump.mode`
pub static COREDUMP_MODE: Key<Choice<Mode>> = Key {
    name: "mode",
    kind: Choice {
        words: &[
            ("disabled", Mode::Disabled, "nothing is written"),
            (
                "enabled",
                Mode::Enabled,
                "the core is restarted when the dump is written, after `patience-ms` at the \
                 latest; what is not written by then is missing from the dump",
            ),
            (
                "inline",
                Mode::Inline,
                "the core is restarted when the whole dump is written",
            ),
        ],
    },
    need: Need::Default(Mode::Disabled),
    since: FIRST,
    doc: "Whether an ELF core file is written of each incarnation (one boot of the core) that \
          crashes. `rprocctl coredump mode` changes it until the daemon ends, but cannot switch \
          coredumps on where the file has \"disabled\".",
};

/// `core.coredump.directory`
pub static COREDUMP_DIRECTORY: Key<Text> = Key {
    name: "directory",
    kind: Text {
        form: "the path of a folder",
    },
    need: Need::Default("/var/lib/rprocd/coredumps"),
    since: FIRST,
    doc: "The folder for the files. Unless `mode` is \"disabled\" it must exist, and the daemon \
          must be able to write to it. Cores may share a folder: the name of each file contains \
          the name of its core.",
};

/// `core.coredump.count`
pub static COREDUMP_COUNT: Key<Integer> = Key {
    name: "count",
    kind: number(0, 1000, Some("files")),
    need: Need::Default(8),
    since: FIRST,
    doc: "How many dumps of this core are kept; the oldest is removed first.",
};

/// `core.coredump.quota-mib`
pub static COREDUMP_QUOTA_MIB: Key<Integer> = Key {
    name: "quota-mib",
    kind: number(1, 65_536, Some("MiB")),
    need: Need::Default(256),
    since: FIRST,
    doc: "How much disk space all dumps of this core may take together. A dump is sparse: memory \
          that was never written takes no space.",
};

/// `core.coredump.patience-ms`
pub static COREDUMP_PATIENCE_MS: Key<Integer> = Key {
    name: "patience-ms",
    kind: number(0, HOUR_MS, Some("milliseconds")),
    need: Need::Default(2000),
    since: FIRST,
    doc: "How long a recovery waits for a dump with `mode = \"enabled\"`.",
};

/// `core.coredump.style`
pub static COREDUMP_STYLE: Key<Choice<Style>> = Key {
    name: "style",
    kind: Choice {
        words: &[
            (
                "program-headers",
                Style::ProgramHeaders,
                "memory is in program headers, as gdb reads it",
            ),
            (
                "sections",
                Style::Sections,
                "memory is in sections, for tools that look a segment up by its name",
            ),
        ],
    },
    need: Need::Default(Style::ProgramHeaders),
    since: FIRST,
    doc: "How the files are laid out.",
};

/// `core.devmem.pa`
pub static DEVMEM_PA: Key<Integer> = Key {
    name: "pa",
    kind: Integer {
        min: 0,
        max: END_OF_32_BITS - 1,
        unit: None,
        is_hex: true,
    },
    need: Need::Required,
    since: FIRST,
    doc: "Where the span begins. For `rv32`: an address of a device of its board.",
};

/// `core.devmem.length`
pub static DEVMEM_LENGTH: Key<Integer> = Key {
    name: "length",
    kind: Integer {
        min: 1,
        max: END_OF_32_BITS,
        unit: Some("bytes"),
        is_hex: true,
    },
    need: Need::Required,
    since: FIRST,
    doc: "How long the span is. It must end at 0x100000000 or below.",
};

/// `core.devmem.name`
pub static DEVMEM_NAME: Key<Text> = Key {
    name: "name",
    kind: Text {
        form: "at most 31 bytes, as in a resource table",
    },
    need: Need::Default(""),
    since: FIRST,
    doc: "The name that the entry must have. With \"\" every name is accepted.",
};

/// The file.
pub static FILE: Section = Section {
    name: "",
    is_array: false,
    doc: "Keys that stand before the first section.",
    keys: &[&FIRMWARE_DIRECTORY],
    sections: &[&CONTROL, &CORE],
};

/// `[control]`
pub static CONTROL: Section = Section {
    name: "control",
    is_array: false,
    doc: "The sockets on which operators and programs connect. Without this section there is none, \
          and `rprocctl` cannot reach the daemon.",
    keys: &[
        &CONTROL_SOCKET,
        &CONTROL_GROUP,
        &CONTROL_MODE,
        &CONTROL_MONITOR,
        &CONTROL_MONITOR_GROUP,
        &CONTROL_MONITOR_MODE,
    ],
    sections: &[],
};

/// `[[core]]`
pub static CORE: Section = Section {
    name: "core",
    is_array: true,
    doc: "A remote core. There must be at least one. The sections below belong to the `[[core]]` \
          above them.",
    keys: &[
        &CORE_NAME,
        &CORE_ENGINE,
        &CORE_FIRMWARE,
        &CORE_MEMORY_MIB,
        &CORE_HUGE_PAGES,
        &CORE_CARVEOUT_QUOTA_MIB,
        &CORE_CARVEOUT_COUNT,
        &CORE_VENDOR_RESOURCES,
        &CORE_AUTO_BOOT,
        &CORE_BOOT_ON_GUEST,
        &CORE_LINGER_US,
        &CORE_BUSY,
    ],
    sections: &[&VDEV, &RECOVERY, &COREDUMP, &DEVMEM],
};

/// `[[core.vdev]]`
pub static VDEV: Section = Section {
    name: "core.vdev",
    is_array: true,
    doc: "A virtio device that the firmware declares. There must be one section for each such \
          device, in the order of the firmware's resource table. A guest attaches to the device by \
          vhost-user.",
    keys: &[
        &VDEV_SOCKET,
        &VDEV_GROUP,
        &VDEV_MODE,
        &VDEV_ANNOUNCE,
        &VDEV_ON_DEPARTURE,
    ],
    sections: &[],
};

/// `[core.recovery]`
pub static RECOVERY: Section = Section {
    name: "core.recovery",
    is_array: false,
    doc: "What happens after a crash of the core.",
    keys: &[
        &RECOVERY_ENABLED,
        &RECOVERY_MINIMUM_RUN_TIME_MS,
        &RECOVERY_BACK_OFF_MS,
        &RECOVERY_BACK_OFF_LIMIT_MS,
        &RECOVERY_HOLD_AFTER,
        &RECOVERY_HOLD_WINDOW_S,
    ],
    sections: &[],
};

/// `[core.coredump]`
pub static COREDUMP: Section = Section {
    name: "core.coredump",
    is_array: false,
    doc: "What is written to disk when the core crashes.",
    keys: &[
        &COREDUMP_MODE,
        &COREDUMP_DIRECTORY,
        &COREDUMP_COUNT,
        &COREDUMP_QUOTA_MIB,
        &COREDUMP_PATIENCE_MS,
        &COREDUMP_STYLE,
    ],
    sections: &[],
};

/// `[[core.devmem]]`
pub static DEVMEM: Section = Section {
    name: "core.devmem",
    is_array: true,
    doc: "A span of device addresses that a devmem entry of the firmware's resource table may name. \
          Without one, every such entry is refused.",
    keys: &[&DEVMEM_PA, &DEVMEM_LENGTH, &DEVMEM_NAME],
    sections: &[],
};
