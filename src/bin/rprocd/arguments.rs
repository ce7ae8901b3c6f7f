//! What is said on the command line.
//!
//! What belongs here: options and their help, and nothing that needs more than clap: the man page
//! and the completions of the shells are made from it. What does not: what the options do.

use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// The configuration is refused: to start again without a change is of no use. It is `EX_CONFIG` of
/// `sysexits.h`, the name that systemd knows it by.
pub const REFUSED: u8 = 78;

/// What an exit status says.
pub const EXIT_STATUS: &[(u8, &str)] = &[
    (0, "a signal asked it to end; or the configuration is good"),
    (
        1,
        "something failed; the last line on standard error says what",
    ),
    (2, "wrong usage"),
    (
        REFUSED,
        "the configuration is refused; standard error has each mistake",
    ),
];

/// The end of the help: the exit statuses, and where to read on.
fn after_help() -> String {
    let mut text = "Exit status:\n".to_owned();
    for (status, meaning) in EXIT_STATUS {
        text += &format!("{status:>4}  {meaning}\n");
    }
    text + "\nEvery key of the configuration: rprocd.toml(5). The operator's tool: rprocctl(1)."
}

/// Owns remote cores and serves them to guest VMs over vhost-user.
///
/// Logs go to standard error. SIGTERM and SIGINT end it: guests are disconnected, cores are stopped,
/// sockets are removed. Sockets that systemd passes are used in place of those that would be made
/// at the same paths.
#[derive(Parser)]
#[command(name = "rprocd", version, max_term_width = 80, after_help = after_help())]
pub struct Arguments {
    /// The configuration (TOML)
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = "/etc/rprocd/rprocd.toml"
    )]
    pub config: PathBuf,
    /// Check the configuration and what it names: firmware, folders, groups; start nothing
    #[arg(long)]
    pub check_config: bool,
    /// What to log: error, warn, info, debug, trace, off
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: Level,
    /// Listen here for the guest, whatever the configuration says; it must have one core with one
    /// vdev
    #[arg(long, value_name = "PATH")]
    pub socket_path: Option<PathBuf>,
    /// Take this open socket for the guest, on which somebody listens already; the configuration
    /// must have one core with one vdev
    #[arg(
        long,
        value_name = "NUMBER",
        visible_alias = "socket-fd",
        conflicts_with = "socket_path",
        value_parser = clap::value_parser!(RawFd).range(3..)
    )]
    pub fd: Option<RawFd>,
    /// Say what this program can do as a vhost-user backend of QEMU, as JSON, and end
    #[arg(long)]
    pub print_capabilities: bool,
}

/// How much is logged.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// Nothing
    Off,
    /// What failed
    Error,
    /// What is wrong as well
    Warn,
    /// What happens as well
    Info,
    /// What is of use to developers as well
    Debug,
    /// Everything
    Trace,
}
