//! How the daemon's log lines look, and how many there are.
//!
//! What belongs here: time, level and where a line is from; for the journal, only what it does not
//! know by itself; and that guests and firmware cannot fill a disk with lines. What does not: what
//! is logged.
//!
//! A line about a core or a vdev begins with its name. For each name and each place in the code that
//! logs, [`BURST`] lines may come at once, and then one every [`PERIOD`]; how many were left out is
//! said with the next line, or when it has been quiet. Lines about operators are not limited, since
//! they say who did what; but refusals are.

use std::collections::HashMap;
use std::io::Write;
use std::os::linux::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{env, fs};

use log::{Level, Log, Metadata, Record};

use rprocd::report::printable;

/// Lines of one kind that may come at once.
const BURST: u32 = 32;
/// And how long it takes until one more may.
const PERIOD: Duration = Duration::from_secs(2);
/// After so long without one more, what was left out is told.
const QUIET: Duration = Duration::from_secs(10);
/// Kinds that are told apart; more than that are one.
const MAX_KINDS: usize = 4096;
/// The longest line.
const MAX_LINE_BYTES: usize = 2048;

/// Who reads standard error.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// systemd's journal, in which a message is one line.
    Journal,
    /// A terminal or a file, read as it is.
    Person,
}

/// Begins to log to standard error.
pub fn begin(filter: log::LevelFilter) -> Destination {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(filter);
    let journal = is_journal();
    if journal {
        // `sd-daemon(3)`: a number of syslog in front of each line. The journal has a time and the
        // unit's name.
        builder.format(|out, record| {
            let priority = match record.level() {
                Level::Error => 3,
                Level::Warn => 4,
                Level::Info => 6,
                Level::Debug | Level::Trace => 7,
            };
            writeln!(out, "<{priority}>{}", record.args())
        });
    }
    let logger = Limited {
        to: builder.build(),
        journal,
        limiter: Mutex::default(),
    };
    log::set_max_level(filter);
    // Nobody else sets one.
    let _ = log::set_boxed_logger(Box::new(logger));
    if journal {
        Destination::Journal
    } else {
        Destination::Person
    }
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

/// The logger.
struct Limited {
    to: env_logger::Logger,
    journal: bool,
    limiter: Mutex<Limiter>,
}

impl Limited {
    fn write(&self, level: Level, target: &str, text: &str) {
        let mut record = Record::builder();
        record.level(level).target(target);
        self.to.log(&record.args(format_args!("{text}")).build());
    }
}

impl Log for Limited {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.to.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.to.matches(record) {
            return;
        }
        let target = record.target();
        let mut text = record.args().to_string();
        // What is wrong with a configuration is shown on several lines; the journal would give the
        // others no priority.
        if self.journal || target != env!("CARGO_BIN_NAME") {
            text = line(&text);
        }
        let now = Instant::now();
        let is_limited = target.starts_with("rprocd::vdev")
            || target.starts_with("rprocd::rproc")
            || target.starts_with("rprocd::engine")
            || (target.starts_with("rprocd::control") && record.level() == Level::Warn);
        let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        let late = limiter.take_quiet(now);
        let passes = if is_limited {
            let name = name(&text).to_owned();
            match limiter.pass(record.module_path(), record.line(), &name, now) {
                Pass::Yes => true,
                Pass::YesAfter(left_out) => {
                    text = format!("{text} ({left_out} lines like this were left out)");
                    true
                }
                Pass::No => false,
            }
        } else {
            true
        };
        drop(limiter);
        for (name, left_out) in late {
            let text = format!("{name}: {left_out} lines were left out");
            self.write(Level::Warn, target, &text);
        }
        if passes {
            self.write(record.level(), target, &text);
        }
    }

    fn flush(&self) {
        self.to.flush();
    }
}

/// A message as one line that a terminal only shows.
fn line(text: &str) -> String {
    let mut end = text.len().min(MAX_LINE_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let (mut line, _) = printable(&text.as_bytes()[..end], true);
    line = line.replace(['\n', '\t'], " ");
    if end < text.len() {
        line.push_str("...");
    }
    line
}

/// The core or vdev that a line begins with.
fn name(line: &str) -> &str {
    match line.split_once(": ") {
        Some((name, _)) if name.len() <= 64 && !name.contains(' ') => name,
        _ => "",
    }
}

/// May a line pass?
#[derive(PartialEq, Eq, Debug)]
enum Pass {
    Yes,
    /// And so many before it did not.
    YesAfter(u64),
    No,
}

/// Lines of one kind.
struct Kind {
    left: u32,
    since: Instant,
    left_out: u64,
    last: Instant,
}

#[derive(Default)]
struct Limiter {
    kinds: HashMap<(String, u32, String), Kind>,
}

impl Limiter {
    fn pass(&mut self, module: Option<&str>, line: Option<u32>, name: &str, now: Instant) -> Pass {
        let mut key = (
            module.unwrap_or_default().to_owned(),
            line.unwrap_or(0),
            name.to_owned(),
        );
        if self.kinds.len() >= MAX_KINDS && !self.kinds.contains_key(&key) {
            key = (String::new(), 0, String::new());
        }
        let kind = self.kinds.entry(key).or_insert(Kind {
            left: BURST,
            since: now,
            left_out: 0,
            last: now,
        });
        kind.last = now;
        let periods = now.saturating_duration_since(kind.since).as_secs() / PERIOD.as_secs();
        if periods > 0 {
            let more = u32::try_from(periods).unwrap_or(u32::MAX);
            kind.left = kind.left.saturating_add(more).min(BURST);
            kind.since = now;
        }
        if kind.left == 0 {
            kind.left_out += 1;
            return Pass::No;
        }
        kind.left -= 1;
        match std::mem::take(&mut kind.left_out) {
            0 => Pass::Yes,
            left_out => Pass::YesAfter(left_out),
        }
    }

    /// Names whose lines were left out, and for which it has been quiet since.
    fn take_quiet(&mut self, now: Instant) -> Vec<(String, u64)> {
        let mut found = Vec::new();
        for ((.., name), kind) in &mut self.kinds {
            if kind.left_out > 0 && now.saturating_duration_since(kind.last) >= QUIET {
                found.push((name.clone(), std::mem::take(&mut kind.left_out)));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_one_kind_come_in_a_burst_and_then_now_and_then_and_are_counted() {
        let mut limiter = Limiter::default();
        let begun = Instant::now();
        let mut pass = |name: &str, after: u64| {
            limiter.pass(Some("m"), Some(1), name, begun + Duration::from_secs(after))
        };
        for _ in 0..BURST {
            assert_eq!(pass("m4", 0), Pass::Yes);
        }
        for _ in 0..100 {
            assert_eq!(pass("m4", 1), Pass::No);
        }
        // Another core is not meant.
        assert_eq!(pass("dsp", 1), Pass::Yes);
        assert_eq!(pass("m4", 3), Pass::YesAfter(100));
        assert_eq!(pass("m4", 3), Pass::No);
        let quiet =
            |limiter: &mut Limiter, after| limiter.take_quiet(begun + Duration::from_secs(after));
        assert_eq!(quiet(&mut limiter, 4), []);
        assert_eq!(quiet(&mut limiter, 14), [("m4".to_owned(), 1)]);
        assert_eq!(quiet(&mut limiter, 24), []);
    }

    #[test]
    fn a_message_is_one_line_that_acts_on_nothing() {
        assert_eq!(line("m4: a\nb\x1b[2J"), "m4: a b\\x1b[2J");
        assert_eq!(line(&"é".repeat(MAX_LINE_BYTES)).len(), MAX_LINE_BYTES + 3);
        assert_eq!(name("m4/vdev0: reset"), "m4/vdev0");
        assert_eq!(name("of no core: x"), "");
    }
}
