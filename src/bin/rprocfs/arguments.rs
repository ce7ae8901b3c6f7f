//! What is said on the command line.
//!
//! What belongs here: options and their help, and nothing that needs more than clap: the man page
//! and the completions of the shells are made from it. What does not: what the options do.

use std::path::PathBuf;

use clap::Parser;

/// Shows rprocd's cores as Linux shows remote processors: class/remoteproc as in /sys/class,
/// debug/remoteproc as in /sys/kernel/debug.
///
/// It stays in the foreground until the folder is unmounted, or SIGTERM or SIGINT comes. For
/// scripts with hard-coded paths see `rprocctl sysfs`.
#[derive(Parser)]
#[command(name = "rprocfs", version, max_term_width = 80)]
pub struct Arguments {
    /// rprocd's control socket; with the monitor socket nothing can be changed
    #[arg(
        short,
        long,
        value_name = "PATH",
        default_value = "/run/rprocd/control"
    )]
    pub socket: PathBuf,
    /// End with the process that started this one
    #[arg(long, hide = true)]
    pub with_parent: bool,
    /// The folder to mount on
    pub mountpoint: PathBuf,
}
