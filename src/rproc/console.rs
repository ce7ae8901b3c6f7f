//! What a core writes to a console of its own (a UART): kept for those who follow it, and logged.
//!
//! What belongs here: from bytes as they come to a bounded log of them and to lines in the daemon's
//! log. What does not: the device, and the trace buffers of the resource table
//! ([`trace`](super::trace)), beside which this log is shown.
//!
//! The firmware decides how much there is and what is in it. Of the text the last
//! [`LOG_BYTES`](super::trace::LOG_BYTES) are kept, as they are. Lines for the daemon's log are cut
//! at [`LINE_LIMIT`] bytes and escaped to printable ASCII, and no more than [`LINES_PER_SECOND`] are
//! let through; what is left out is counted and said. A core that crashes and is started again does
//! not get around that.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::info;

use super::trace::Log;
use crate::engine;

/// What the log is called beside the trace buffers.
const NAME: &str = "uart";

/// Bytes of one line; a longer one is cut into several.
const LINE_LIMIT: usize = 256;
/// Lines that are logged before a second has passed since the first of them.
const LINES_PER_SECOND: u32 = 200;

/// The console of one core. Clones are the same one.
#[derive(Clone)]
pub(super) struct Console(Arc<Mutex<Kept>>);

struct Kept {
    core: String,
    log: Log,
    lines: Lines,
    /// How many trace buffers the core has had so far.
    buffers: usize,
    /// Behind how many trace buffers this log is shown: those that there were when the first byte
    /// came. It stays there, so that who follows by place is not confused.
    place: Option<usize>,
}

impl Console {
    /// The console of a core, without anything in it.
    pub(super) fn new(core: &str) -> Self {
        Self(Arc::new(Mutex::new(Kept {
            core: core.to_owned(),
            log: Log::default(),
            lines: Lines::default(),
            buffers: 0,
            place: None,
        })))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Text and counts: a panic leaves nothing in them that is wrong.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the engine is to write. `found` is counted up each time.
    pub(super) fn sink(&self, found: Arc<AtomicU64>) -> engine::Console {
        let console = self.clone();
        Box::new(move |bytes| {
            console.kept().write(bytes);
            found.fetch_add(1, Ordering::Relaxed);
        })
    }

    /// Another incarnation writes from now on, and the core has so many trace buffers by now.
    /// `booted` is in microseconds since 1970.
    pub(super) fn begin(&self, buffers: usize, incarnation: u32, booted: u64) {
        let mut kept = self.kept();
        kept.buffers = buffers;
        kept.log.begin(incarnation, booted);
    }

    /// The incarnation is over: a line that was begun is logged.
    pub(super) fn finish(&self) {
        let Kept { core, lines, .. } = &mut *self.kept();
        lines.finish(Instant::now(), say(core));
    }

    /// Its name, its log and its place among the trace buffers, once there was anything.
    pub(super) fn look<R>(&self, look: impl FnOnce(&str, &Log, usize) -> R) -> Option<R> {
        let kept = self.kept();
        kept.place.map(|place| look(NAME, &kept.log, place))
    }
}

impl Kept {
    fn write(&mut self, bytes: &[u8]) {
        self.place.get_or_insert(self.buffers);
        self.log.push(bytes);
        self.lines.write(bytes, Instant::now, say(&self.core));
    }
}

fn say(core: &str) -> impl FnMut(&str) {
    move |line| info!("{core}: uart: {line}")
}

/// Lines on their way to the daemon's log.
#[derive(Default)]
struct Lines {
    line: Vec<u8>,
    window: Option<Instant>,
    lines_in_window: u32,
    /// Since the last time it was said.
    suppressed: u64,
}

impl Lines {
    fn write(&mut self, bytes: &[u8], now: impl Fn() -> Instant, mut say: impl FnMut(&str)) {
        for &byte in bytes {
            if byte == b'\n' {
                self.end_line(now(), &mut say);
                continue;
            }
            self.line.push(byte);
            if self.line.len() >= LINE_LIMIT {
                self.end_line(now(), &mut say);
            }
        }
    }

    fn finish(&mut self, now: Instant, mut say: impl FnMut(&str)) {
        if !self.line.is_empty() {
            self.end_line(now, &mut say);
        }
        self.report_suppressed(&mut say);
    }

    fn end_line(&mut self, now: Instant, say: &mut impl FnMut(&str)) {
        let fresh = self
            .window
            .is_none_or(|start| now.saturating_duration_since(start) >= Duration::from_secs(1));
        if fresh {
            self.report_suppressed(say);
            self.window = Some(now);
            self.lines_in_window = 0;
        }
        if self.lines_in_window < LINES_PER_SECOND {
            self.lines_in_window += 1;
            let line = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
            say(&escaped(line));
        } else {
            self.suppressed = self.suppressed.saturating_add(1);
        }
        self.line.clear();
    }

    fn report_suppressed(&mut self, say: &mut impl FnMut(&str)) {
        if self.suppressed > 0 {
            say(&format!(
                "({} lines left out: more than {LINES_PER_SECOND} in a second; `rprocctl trace` \
                 has them)",
                self.suppressed
            ));
            self.suppressed = 0;
        }
    }
}

fn escaped(line: &[u8]) -> String {
    let mut text = String::with_capacity(line.len());
    for &byte in line {
        match byte {
            b'\\' => text.push_str("\\\\"),
            b'\t' => text.push_str("\\t"),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => text.push_str(&format!("\\x{byte:02x}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        lines: Lines,
        now: Instant,
        said: Vec<String>,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                lines: Lines::default(),
                now: Instant::now(),
                said: Vec::new(),
            }
        }

        fn send(&mut self, bytes: &[u8]) {
            let (now, said) = (self.now, &mut self.said);
            self.lines
                .write(bytes, || now, |line| said.push(line.to_owned()));
        }

        fn finish(&mut self) {
            let said = &mut self.said;
            self.lines
                .finish(self.now, |line| said.push(line.to_owned()));
        }
    }

    #[test]
    fn bytes_become_lines_whatever_pieces_they_come_in() {
        let mut bench = Bench::new();
        for piece in [&b"one\r"[..], b"\ntwo\n\nt", b"hr"] {
            bench.send(piece);
        }
        assert_eq!(bench.said, ["one", "two", ""]);
        bench.finish();
        assert_eq!(bench.said[3], "thr");
        bench.finish();
        assert_eq!(bench.said.len(), 4);
    }

    #[test]
    fn what_is_not_printable_is_escaped() {
        let mut bench = Bench::new();
        bench.send(b"a\x1b[2J\\\t\xff\x00\n");
        assert_eq!(bench.said, ["a\\x1b[2J\\\\\\t\\xff\\x00"]);
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let mut bench = Bench::new();
        bench.send(&[b'x'; 2 * LINE_LIMIT + 1]);
        assert_eq!(bench.said, ["x".repeat(LINE_LIMIT), "x".repeat(LINE_LIMIT)]);
    }

    #[test]
    fn a_flood_is_cut_and_what_was_left_out_is_said_once() {
        let mut bench = Bench::new();
        for _ in 0..LINES_PER_SECOND + 50 {
            bench.send(b"x\n");
        }
        assert_eq!(bench.said.len(), LINES_PER_SECOND as usize);
        bench.now += Duration::from_secs(1);
        bench.send(b"y\nz\n");
        let rest = &bench.said[LINES_PER_SECOND as usize..];
        assert!(rest[0].starts_with("(50 lines left out"), "{rest:?}");
        assert_eq!(rest[1..], ["y", "z"]);
    }
}
