//! What is said on the command line.
//!
//! What belongs here: verbs, options and their help, and nothing that needs more than clap: the man
//! page and the completions of the shells are made from it. What does not: what the verbs do.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// The exit statuses: number, the word for it in JSON, what it means.
pub const STATUSES: [(u8, &str, &str); 10] = [
    (0, "done", "done"),
    (1, "failed", "failed"),
    (2, "usage", "wrong usage"),
    (3, "no-such-core", "no such core"),
    (
        4,
        "refused",
        "refused: not in the core's state, or not at all",
    ),
    (
        5,
        "unreachable",
        "rprocd, or one of several, cannot be reached",
    ),
    (
        6,
        "denied",
        "denied: not for this user, or not through this socket",
    ),
    (7, "timed-out", "rprocd has not answered in time"),
    (8, "already-so", "nothing to do: it was so already"),
    (9, "ended", "rprocd ended while it was followed"),
];

/// [`STATUSES`], as help.
fn statuses() -> String {
    let mut text = "Exit status:\n".to_owned();
    for (status, _, meaning) in STATUSES {
        text.push_str(&format!("  {status}  {meaning}\n"));
    }
    text + "\nWith --json the standard output has one JSON document and nothing else, or while \
            something is followed one a line. An error is an object on the standard error: \
            {\"error\": {\"status\": 3, \"kind\": \"no-such-core\", \"message\": \"...\"}}. Fields are added \
            in later versions; those that are there keep their name and meaning."
}

/// Shows what rprocd's cores do, starts them and stops them.
///
/// Without --socket it finds every rprocd of this host. Verbs that look show the cores of all of
/// them; a verb for one core goes to the rprocd that has it.
#[derive(Parser)]
#[command(name = "rprocctl", version, max_term_width = 80, after_help = statuses())]
pub struct Arguments {
    /// rprocd's control socket; may be given more than once
    ///
    /// Without it: the paths in the environment variable RPROCD_SOCKET, separated by colons, or else
    /// /run/rprocd/control and /run/rprocd/*/control. Who may not use a control socket, and only
    /// looks, is served by the monitor socket beside it (its name with "monitor" for "control").
    #[arg(short, long = "socket", value_name = "PATH", global = true)]
    pub sockets: Vec<PathBuf>,
    /// How long rprocd may take for an answer
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds, global = true)]
    pub timeout: Duration,
    /// One JSON document instead of text; one a line while following
    #[arg(short, long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub verb: Verb,
}

/// The smallest guest's memory.
const LEAST_MEMORY: u64 = 1 << 20;
/// The largest: more than hosts have.
const MOST_MEMORY: u64 = 16 << 40;

/// A guest's memory in bytes, as QEMU's `-m` reads it: MiB without a suffix.
fn memory(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let (digits, shift) = match lower.strip_suffix(['k', 'm', 'g', 't']) {
        Some(digits) => match lower.as_bytes()[digits.len()] {
            b'k' => (digits, 10),
            b'm' => (digits, 20),
            b'g' => (digits, 30),
            _ => (digits, 40),
        },
        None => (lower.as_str(), 20),
    };
    let number: u64 = digits.parse().map_err(|_| {
        "it must be a whole number with K, M, G or T behind it, as in 512M; without a letter it \
         is in MiB, as for QEMU's -m"
            .to_owned()
    })?;
    let bytes = number.checked_mul(1 << shift);
    let bytes = bytes.filter(|bytes| (LEAST_MEMORY..=MOST_MEMORY).contains(bytes));
    let bytes = bytes.ok_or("it must be at least 1M and at most 16T")?;
    if !bytes.is_multiple_of(LEAST_MEMORY) {
        let below = bytes / LEAST_MEMORY;
        return Err(format!(
            "it must be a multiple of 1M, which every VMM takes: {below}M or {}M",
            below + 1
        ));
    }
    Ok(bytes)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is no number".to_owned())?;
    let time = Duration::try_from_secs_f64(seconds).map_err(|cause| cause.to_string())?;
    if time < Duration::from_millis(1) || time > Duration::from_secs(86_400) {
        return Err("it must be between 0.001 and 86400".to_owned());
    }
    Ok(time)
}

/// Which core.
#[derive(Args)]
pub struct OfCore {
    /// The core's name
    pub core: String,
}

/// A verb.
#[derive(Subcommand)]
pub enum Verb {
    /// All cores: state, firmware, guests, messages
    #[command(visible_alias = "status")]
    List,
    /// One core, in full
    Info(OfCore),
    /// Live view of all cores; q ends it. An rprocd that ends is waited for
    Top {
        /// The time between two views
        #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
        delay: Duration,
        /// Print COUNT views one after the other and end, for a file or a pipe
        #[arg(short = 'n', long, value_name = "COUNT")]
        iterations: Option<u32>,
    },
    /// Start a core that is offline or crashed, or attach one
    Start {
        /// Only for as long as this rprocctl runs: until Ctrl-C, or the end of its input
        #[arg(short, long)]
        while_connected: bool,
        /// With this firmware from now on: a file in rprocd's firmware directory, or with a slash
        /// in it any file
        #[arg(long, value_name = "FILE")]
        firmware: Option<String>,
        #[command(flatten)]
        change: Change,
    },
    /// Stop a core, whoever holds it; guests stay attached
    Stop {
        /// It is well if it does not run
        #[arg(long)]
        if_running: bool,
        #[command(flatten)]
        change: Change,
    },
    /// Stop a core if it runs, and start it; guests stay attached
    Restart(Change),
    /// Take over a core that runs already
    Attach(Change),
    /// Let go of a core that was attached; it runs on
    Detach(Change),
    /// Pause a core; its guests wait
    Suspend(OfCore),
    /// Let a suspended core go on
    Resume(OfCore),
    /// A core's firmware: show it, change it, judge a file
    #[command(subcommand)]
    Firmware(Firmware),
    /// What follows from a crash of a core
    #[command(subcommand)]
    Recovery(Recovery),
    /// Have a core crash: evidence, coredump and recovery follow as if its firmware had died
    Crash(OfCore),
    /// Coredumps of a core
    #[command(subcommand)]
    Coredump(Coredump),
    /// What a core's firmware wrote into its trace buffers, under a line for each incarnation
    Trace {
        /// Go on with what it writes from now on, until interrupted or rprocd ends
        #[arg(short, long)]
        follow: bool,
        /// Begin with the last COUNT lines of each buffer; the default is all that are kept
        #[arg(short = 'n', long, value_name = "COUNT")]
        lines: Option<usize>,
        /// What this incarnation wrote and no other; 0 is the last one, -1 the one before it
        #[arg(short, long, value_name = "NUMBER", allow_negative_numbers = true)]
        incarnation: Option<i64>,
        /// Of this buffer only: its name, or its number from 0
        #[arg(short, long, value_name = "BUFFER")]
        buffer: Option<String>,
        #[command(flatten)]
        of: OfCore,
    },
    /// What has happened
    Events {
        /// Begin with the last 10, and go on with what happens until interrupted or rprocd ends
        #[arg(short, long)]
        follow: bool,
        /// Begin with the last COUNT; the default is all that are kept, with --follow 10
        #[arg(short = 'n', long, value_name = "COUNT", conflicts_with = "since")]
        lines: Option<usize>,
        /// Each step of a boot, a stop and so on as well
        #[arg(long)]
        steps: bool,
        /// From this event on; the first number in each line. They are one rprocd's
        #[arg(long, value_name = "NUMBER")]
        since: Option<u64>,
        /// Of this core only
        core: Option<String>,
    },
    /// A map of a core's memory
    Mem(OfCore),
    /// A core's resource table, as it is now
    Resources(OfCore),
    /// The queues of a core's vdevs: where they are and what goes through them
    Queues(OfCore),
    /// The endpoints that a core's firmware has announced
    Endpoints(OfCore),
    /// How long a core's last boot, stop, recovery and so on took
    Timings(OfCore),
    /// What all cores have done, as Prometheus reads it
    Metrics {
        /// Write it to a file, whole or not at all, for node_exporter's textfile collector
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// What a VMM is told to attach to each vdev of a core
    Vmm {
        /// Which VMM
        vmm: Vmm,
        /// The guest's memory: a number with K, M, G or T behind it, without a letter in MiB
        #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = memory)]
        memory: u64,
        #[command(flatten)]
        of: OfCore,
    },
    /// All about all cores in one file, for a bug report
    Report {
        /// As a page for a browser; it needs nothing else. Without it, as JSON
        #[arg(long)]
        html: bool,
        /// The firmware file with its symbols, so that a crash is shown with function and line
        #[arg(long, value_name = "FILE")]
        symbols: Vec<PathBuf>,
        /// The file; the default is the standard output
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// rprocd's configuration
    #[command(subcommand)]
    Config(Config),
    /// Does each rprocd answer, and how fast?
    Ping,
    /// The versions of rprocctl and rprocd
    Version,
    /// Run a command for which /sys/class/remoteproc and /sys/kernel/debug/remoteproc have
    /// rprocd's cores
    ///
    /// Nobody else sees them there, and they go with the command. Its exit status is the
    /// command's. Needs rprocfs.
    Sysfs {
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
}

/// A change that may take its time.
#[derive(Args)]
pub struct Change {
    /// Show each step when it is done
    #[arg(short, long)]
    pub progress: bool,
    /// The core's name
    pub core: String,
}

/// What is done about a firmware.
#[derive(Subcommand)]
pub enum Firmware {
    /// Show which one it is
    Get(OfCore),
    /// The files of rprocd's firmware directory
    List,
    /// Give an offline core another one, until rprocd ends
    Set {
        /// The core's name
        core: String,
        /// A file in rprocd's firmware directory, or with a slash in it any file
        file: String,
    },
    /// Judge a file as a boot of the core would, and change nothing
    Check {
        /// The core's name
        core: String,
        /// A file in rprocd's firmware directory, or with a slash in it any file
        file: String,
    },
}

/// What is done about recovery.
#[derive(Subcommand)]
pub enum Recovery {
    /// Is a core that crashes restarted by itself?
    Get(OfCore),
    /// Until rprocd ends; enabling it restarts a crashed core at once
    Set {
        /// The core's name
        core: String,
        /// Which
        setting: Setting,
    },
    /// Restart a crashed core now, whatever was to come next
    Now(Change),
}

/// What is done about coredumps.
#[derive(Subcommand)]
pub enum Coredump {
    /// Show or set whether they are written; until rprocd ends
    Mode {
        /// The core's name
        core: String,
        /// Which
        mode: Option<Mode>,
    },
    /// Those that are kept, the oldest first
    List(OfCore),
    /// Fetch one
    Get {
        /// The core's name
        core: String,
        /// Its name in the list; the default is the last one
        name: Option<String>,
        /// The file; the default is its own name, here. It must not be there yet
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

/// What is done about the configuration.
#[derive(Subcommand)]
pub enum Config {
    /// Would rprocd start with this file? Looks at the firmware, folders and groups that it names as
    /// well; needs no rprocd, and changes nothing
    Check {
        /// The file
        file: PathBuf,
    },
}

/// On or off.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Setting {
    /// It happens.
    Enabled,
    /// It does not.
    Disabled,
}

/// When a coredump is written.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Never
    Disabled,
    /// Before the core is restarted, as far as the configured time allows
    Enabled,
    /// Before the core is restarted, all of it
    Inline,
}

/// A virtual machine monitor.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Vmm {
    /// QEMU 10.2 or later
    Qemu,
    /// cloud-hypervisor 53 or later
    CloudHypervisor,
    /// crosvm
    Crosvm,
}
