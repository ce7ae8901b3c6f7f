//! How the daemon's log lines look.
//!
//! What belongs here: time, level and where it is from; for the journal, only what it does not know
//! by itself. What does not: what is logged.

use std::io::Write;
use std::os::linux::fs::MetadataExt;
use std::{env, fs};

use log::Level;

/// Begins to log to standard error.
pub fn begin(filter: log::LevelFilter) {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(filter);
    if is_journal() {
        // `sd-daemon(3)`: a number of syslog in front of each line. The journal has a time and the
        // unit's name.
        builder.format(|out, record| {
            let priority = match record.level() {
                Level::Error => 3,
                Level::Warn => 4,
                Level::Info => 6,
                Level::Debug | Level::Trace => 7,
            };
            // A second line would be without a number.
            let text = record.args().to_string().replace('\n', " ");
            writeln!(out, "<{priority}>{text}")
        });
    }
    builder.init();
}

/// Does standard error go to systemd's journal? It says which file that is.
fn is_journal() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(error) = fs::metadata("/proc/self/fd/2") else {
        return false;
    };
    stream == format!("{}:{}", error.st_dev(), error.st_ino())
}
