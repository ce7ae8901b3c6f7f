//! What a firmware writes into its trace buffers, kept for those who follow it.
//!
//! What belongs here: deducing from the bytes of one trace buffer what was appended since the last
//! look, and a bounded log of it. What does not: where the buffer is and when to look (the
//! machine), showing text to a person ([`printable`](crate::report::printable)).
//!
//! A trace buffer has no header, so nothing says where the firmware writes next. The follower keeps
//! a copy of the buffer and a *position*, where the last text that it found ends, and holds the two
//! against the buffer. What it takes for text, and from which writers:
//!
//! - The position begins at the start of the buffer with each incarnation. Bytes from the position
//!   to the last byte that changed are new, whether they changed or not.
//! - A writer may stop at the end of the buffer, go on at its start (a ring, of all bytes or of all
//!   but the last), or go back to the start early, because a line does not fit. The last kind must
//!   leave a NUL where its text ends; otherwise what is behind it is taken for text again.
//! - A NUL is never text. It may end the text, move with it, or not be there. Text behind a NUL
//!   that does not go away may be half of a line whose first byte comes last: it is held back for
//!   [`PATIENCE`] looks between which the firmware ran, then it counts.
//!
//! # What is promised
//!
//! Every byte that is no NUL is found, in order and once, if less than the buffer's length minus
//! [`margin`] is written between two *close* looks (what a writer leaves free at the end when it
//! goes back early counts as written). If more is written, an *overrun* is counted: text was
//! overwritten before it was looked at, and nobody knows how much. What is left is then reported,
//! in the order that a NUL after the last byte gives away, or else in a guessed one.
//!
//! [`TraceFollower::look`] is cheaper than a close look. It compares [`WINDOW`] bytes at the
//! position and at the start, where text appears, and the next [`STRIDE`] bytes of a round through
//! the whole buffer, and looks closely if any of them changed. Text that repeats, in place, the
//! whole window of what was there before is thus found up to `len / STRIDE + 1` looks later.
//!
//! What nobody can see is not found:
//!
//! - A byte that is written over the same byte shows when a later one changes, and not before. A
//!   firmware that fills the buffer with the same bytes lap after lap writes nothing.
//! - An overrun that leaves [`margin`] bytes in a row as they were is not noticed.
//! - Bytes behind the first [`MAX_FOLLOWED`] of a buffer, and behind the first
//!   [`MAX_FOLLOWED_OF_CORE`] of all buffers of a core.
//! - An incarnation that goes on where the last one ended, in memory that was kept: the text in
//!   front of it is taken for new.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use vm_memory::VolatileSlice;

use super::boot::TraceBuffer;
use super::console::Console;
use super::status::TraceCount;
use crate::engine;
use crate::memory::Ram;

/// Bytes of a buffer that are followed, from its start.
pub const MAX_FOLLOWED: usize = 256 << 10;
/// Bytes that are followed of all buffers of a core together, the first buffers first. A table can
/// name hundreds.
pub const MAX_FOLLOWED_OF_CORE: usize = 1 << 20;
/// Bytes of text kept for readers of one buffer.
pub const LOG_BYTES: usize = 64 << 10;
/// Bytes that each look compares at the position, and at the start.
pub const WINDOW: usize = 64;
/// Bytes that each look compares somewhere else.
pub const STRIDE: usize = 256;
/// So many looks text behind a NUL is held back. Those of readers do not count: between them the
/// firmware may not have run.
pub const PATIENCE: u8 = 3;
/// Overruns that a log remembers the places of.
const MAX_OVERRUNS: usize = 256;
/// Incarnations that a log remembers the first bytes of.
const MAX_BEGINNINGS: usize = 256;

/// How much of a buffer of `len` bytes must be left when the follower looks: changes this close
/// behind the position mean that the writer has come round.
pub const fn margin(len: usize) -> usize {
    let margin = len / 8;
    if margin == 0 {
        1
    } else if margin > 1024 {
        1024
    } else {
        margin
    }
}

/// What is in a trace buffer when an incarnation begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OldText {
    /// Nothing of an older incarnation. What is there comes with the image, and is new.
    None,
    /// What the last incarnation left. It is not reported again.
    Kept,
}

/// A piece of a trace.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct TraceText {
    /// The number of the first byte: bytes of text since the follower was made.
    pub first: u64,
    /// The text.
    pub bytes: Vec<u8>,
    /// Bytes between what was asked for and [`TraceText::first`], which the log has forgotten.
    pub lost: u64,
    /// How often, right in front of this text or in what the log has forgotten, the firmware
    /// overwrote text before it was looked at. Nobody knows how much that was.
    pub overruns: u64,
    /// The incarnation that wrote it; where there is no text, the one that writes next. 0 if that is
    /// not known.
    pub incarnation: u32,
    /// When that incarnation was booted: microseconds since 1970; 0 if that is not known.
    pub booted: u64,
}

impl TraceText {
    /// What to ask for next.
    pub fn next(&self) -> u64 {
        self.first + self.bytes.len() as u64
    }
}

/// Where the text of an incarnation begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Beginning {
    /// The number of its first byte.
    at: u64,
    incarnation: u32,
    /// Microseconds since 1970.
    booted: u64,
}

/// A piece of one of a core's traces.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct NamedTrace {
    /// Which: the buffer's name in the resource table, or `uart`.
    pub name: String,
    /// The piece.
    pub text: TraceText,
    /// The number of the byte that comes next.
    pub end: u64,
}

/// The last text of a trace, its bytes numbered.
#[derive(Default, Debug)]
pub(super) struct Log {
    bytes: VecDeque<u8>,
    /// The number of the byte that comes next.
    end: u64,
    /// The numbers of the bytes with an overrun in front of them, rising.
    overruns: VecDeque<u64>,
    /// Of the incarnations with text in the log, and of the one that writes next; rising.
    beginnings: VecDeque<Beginning>,
}

impl Log {
    /// The number of the byte that comes next.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    fn oldest(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    pub(super) fn push(&mut self, text: &[u8]) {
        self.end += text.len() as u64;
        let kept = &text[text.len().saturating_sub(LOG_BYTES)..];
        let excess = (self.bytes.len() + kept.len()).saturating_sub(LOG_BYTES);
        self.bytes.drain(..excess);
        self.bytes.extend(kept);
    }

    fn overrun(&mut self) {
        if self.overruns.len() == MAX_OVERRUNS {
            self.overruns.pop_front();
        }
        self.overruns.push_back(self.end);
    }

    /// What follows is written by another incarnation.
    pub(super) fn begin(&mut self, incarnation: u32, booted: u64) {
        let at = self.end;
        // One that has written nothing is of no interest any more.
        self.beginnings.retain(|it| it.at < at);
        // Nor is one whose last byte is forgotten.
        let oldest = self.oldest();
        while self.beginnings.get(1).is_some_and(|it| it.at <= oldest)
            || self.beginnings.len() == MAX_BEGINNINGS
        {
            self.beginnings.pop_front();
        }
        self.beginnings.push_back(Beginning {
            at,
            incarnation,
            booted,
        });
    }

    pub(super) fn since(&self, number: u64, max: usize) -> TraceText {
        // A number that is still to come is from another run of the daemon.
        let asked = if number > self.end { 0 } else { number };
        let first = asked.max(self.oldest());
        let before = |number: u64| self.overruns.partition_point(|at| *at < number);
        // Text does not go past an overrun or into another incarnation, so that a reader can show
        // where it was.
        let next = self.overruns.get(before(first + 1)).copied();
        let behind = self.beginnings.partition_point(|it| it.at <= first);
        let by = behind.checked_sub(1).and_then(|it| self.beginnings.get(it));
        let begins = self.beginnings.get(behind).map(|it| it.at);
        let end = [next, begins].into_iter().flatten().min();
        let end = end.unwrap_or(self.end);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "both are at most the log's size"
        )]
        let (skip, len) = (
            (first - self.oldest()) as usize,
            ((end - first) as usize).min(max),
        );
        TraceText {
            first,
            bytes: self.bytes.range(skip..skip + len).copied().collect(),
            lost: if number > self.end { 0 } else { first - asked },
            // Who asks for no byte will ask again.
            overruns: if len == 0 {
                0
            } else {
                (before(first + 1) - before(asked)) as u64
            },
            incarnation: by.map_or(0, |it| it.incarnation),
            booted: by.map_or(0, |it| it.booted),
        }
    }
}

/// Where the next text is expected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Position {
    At(usize),
    /// After an overrun without a NUL: most likely here, but the next change tells.
    Unsure(usize),
}

/// Who looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Looker {
    /// Whoever drives the core, after the firmware ran.
    Driver,
    /// Somebody who wants to read, at any time.
    Reader,
    /// The machine, when the firmware will not run any more.
    Last,
}

/// Follows one trace buffer. Its memory is bounded by [`MAX_FOLLOWED`] and [`LOG_BYTES`], its work
/// at each look by the buffer.
#[derive(Debug)]
pub struct TraceFollower {
    /// What was in the buffer and has been judged.
    shadow: Vec<u8>,
    /// What is in the buffer: read once a look, so that it cannot change meanwhile.
    now: Vec<u8>,
    position: Position,
    /// Where the round through the buffer has come to.
    round: usize,
    /// How many looks in a row text behind a NUL was held back.
    held: u8,
    overruns: u64,
    log: Log,
}

impl Default for TraceFollower {
    fn default() -> Self {
        Self::new()
    }
}

/// The last place where two slices of the same length differ.
fn last_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    const PIECE: usize = 256;
    let pieces = a.chunks(PIECE).zip(b.chunks(PIECE));
    let (index, (a, b)) = pieces.enumerate().rfind(|(_, (a, b))| a != b)?;
    let inside = a.iter().zip(b).rposition(|(a, b)| a != b)?;
    Some(index * PIECE + inside)
}

/// The place of the first NUL.
fn nul(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == 0)
}

fn is_text(byte: &u8) -> bool {
    *byte != 0
}

impl TraceFollower {
    /// A follower without a buffer; [`TraceFollower::begin`] gives it one.
    pub fn new() -> Self {
        Self {
            shadow: Vec::new(),
            now: Vec::new(),
            position: Position::At(0),
            round: 0,
            held: 0,
            overruns: 0,
            log: Log::default(),
        }
    }

    /// An incarnation begins: `buffer` holds what it will find, and none of its instructions has
    /// been executed. What the log holds stays.
    pub fn begin(&mut self, buffer: &VolatileSlice<'_>, old: OldText) {
        let len = buffer.len().min(MAX_FOLLOWED);
        self.shadow.clear();
        self.shadow.resize(len, 0);
        self.now = vec![0; len];
        if old == OldText::Kept {
            buffer.copy_to(&mut self.shadow);
        }
        self.position = Position::At(0);
        self.round = 0;
        self.held = 0;
    }

    /// What is found from now on was written by this incarnation, booted at this time
    /// (microseconds since 1970).
    pub fn set_incarnation(&mut self, incarnation: u32, booted: u64) {
        self.log.begin(incarnation, booted);
    }

    /// Logs what is new, if a glance at the buffer finds anything. For a caller that looks very
    /// often; see the module for what it may overlook, and for how long. Says whether text was
    /// found.
    pub fn look(&mut self, buffer: &VolatileSlice<'_>) -> bool {
        if self.held == 0 && !self.glance(buffer) {
            return false;
        }
        self.take(buffer, Looker::Driver)
    }

    /// Logs what is new, wherever it is in the buffer. For a reader: the firmware may not have run
    /// since the last look, so text that is held back stays held back. Says whether text was found.
    pub fn look_closely(&mut self, buffer: &VolatileSlice<'_>) -> bool {
        self.take(buffer, Looker::Reader)
    }

    /// The last look at an incarnation that has stopped or crashed: as
    /// [`TraceFollower::look_closely`], and nothing is held back.
    pub fn look_last(&mut self, buffer: &VolatileSlice<'_>) -> bool {
        self.take(buffer, Looker::Last)
    }

    /// Text from byte `number` on, at most `max` bytes, and none that follows an overrun or is another
    /// incarnation's; the next piece begins with that. A number that the log has forgotten is answered with what is left,
    /// one that was never reached with all that there is.
    pub fn since(&self, number: u64, max: usize) -> TraceText {
        self.log.since(number, max)
    }

    /// The number of the next byte: bytes of text found since the follower was made.
    pub fn end(&self) -> u64 {
        self.log.end
    }

    /// How often text was overwritten before it was looked at.
    pub fn overruns(&self) -> u64 {
        self.overruns
    }

    /// Whether one of the places where text appears, or the next of the round, has changed.
    fn glance(&mut self, buffer: &VolatileSlice<'_>) -> bool {
        let (Position::At(position) | Position::Unsure(position)) = self.position;
        let round = self.round;
        self.round = round + STRIDE;
        if self.round >= self.shadow.len() {
            self.round = 0;
        }
        self.differs::<WINDOW>(buffer, position)
            || (position >= WINDOW && self.differs::<WINDOW>(buffer, 0))
            || self.differs::<STRIDE>(buffer, round)
    }

    fn differs<const N: usize>(&self, buffer: &VolatileSlice<'_>, from: usize) -> bool {
        let Some(known) = self.shadow.get(from..) else {
            return false;
        };
        let Ok(there) = buffer.offset(from) else {
            return false;
        };
        let mut bytes = [0; N];
        let len = there.copy_to(&mut bytes).min(known.len());
        bytes[..len] != known[..len]
    }

    fn take(&mut self, buffer: &VolatileSlice<'_>, looker: Looker) -> bool {
        // A buffer that became shorter has bytes that cannot have changed.
        buffer.copy_to(&mut self.now);
        if self.now == self.shadow {
            self.held = 0;
            return false;
        }
        let before = self.log.end;
        match self.position {
            Position::At(position) if !self.has_come_round(position) => {
                self.follow(position, looker);
            }
            _ => self.resume(),
        }
        self.log.end != before
    }

    /// The last place in `from..to` that changed.
    fn last_change(&self, from: usize, to: usize) -> Option<usize> {
        last_difference(&self.now[from..to], &self.shadow[from..to]).map(|at| from + at)
    }

    /// Whether text has appeared so close behind the position that the writer may have come round.
    fn has_come_round(&self, position: usize) -> bool {
        let appeared = |from: usize, to: usize| {
            let (now, shadow) = (&self.now[from..to], &self.shadow[from..to]);
            now != shadow
                && now
                    .iter()
                    .zip(shadow)
                    .any(|(now, old)| now != old && *now != 0)
        };
        let margin = margin(self.now.len());
        match position.checked_sub(margin) {
            Some(from) => appeared(from, position),
            None => {
                let len = self.now.len();
                appeared(0, position) || appeared(len - (margin - position), len)
            }
        }
    }

    /// Takes the text from the position on, which is known.
    fn follow(&mut self, position: usize, looker: Looker) {
        let len = self.now.len();
        let found = self.log.end;
        let accept = match looker {
            Looker::Driver => self.held >= PATIENCE,
            Looker::Reader => false,
            Looker::Last => true,
        };
        let ahead = self.last_change(position, len);
        // NULs at the start are no sign that the writer has gone back to it: it may be clearing.
        let behind = self
            .last_change(0, position)
            .filter(|at| self.now[..=*at].iter().any(is_text));
        // Where the text ahead ends: if the writer has gone back to the start, at the first NUL
        // that is not followed by changes, or at the end of the buffer.
        let end = match (ahead, behind) {
            (None, None) => position,
            (Some(at), None) => at + 1,
            (_, Some(_)) => {
                let from = ahead.map_or(position, |at| if self.now[at] == 0 { at } else { at + 1 });
                nul(&self.now[from..]).map_or(len, |at| from + at)
            }
        };
        let mut at = position;
        let whole = self.take_from(&mut at, end, accept);
        let held = match behind {
            _ if !whole => at..len,
            None => 0..0,
            Some(behind) => {
                let mut start = 0;
                let whole = self.take_from(&mut start, behind + 1, accept);
                // A line at the start whose first byte is still to come: until then the old
                // position says more, since there is a NUL.
                if start > 0 {
                    at = start;
                }
                if whole { 0..0 } else { start..behind + 1 }
            }
        };
        self.position = Position::At(if at == len { 0 } else { at });
        if held.is_empty() {
            self.held = 0;
            self.shadow.copy_from_slice(&self.now);
            return;
        }
        // What is held back stays a change. If it is ahead, nothing behind was looked at. Text in
        // front of it was found, so this is other text than what was held back before: its looks
        // are counted from here.
        if self.log.end != found {
            self.held = 0;
        }
        self.held = match looker {
            Looker::Driver | Looker::Last => self.held + 1,
            // The next look of the driver is a close one.
            Looker::Reader => self.held.max(1),
        };
        if whole {
            self.shadow[held.end..].copy_from_slice(&self.now[held.end..]);
        }
    }

    /// Logs the text in `at..end` and moves `at` behind it. Without `accept` it goes to the first
    /// NUL; text behind that is not touched, and `false` says that there is some.
    fn take_from(&mut self, at: &mut usize, end: usize, accept: bool) -> bool {
        let start = *at;
        let stop = nul(&self.now[start..end]).map_or(end, |nul| start + nul);
        self.log.push(&self.now[start..stop]);
        self.shadow[start..stop].copy_from_slice(&self.now[start..stop]);
        *at = stop;
        if !self.now[stop..end].iter().any(is_text) {
            return true;
        }
        if !accept {
            return false;
        }
        // What did not change may be the rest of old text.
        let appeared = |at: &usize| self.now[*at] != self.shadow[*at] && self.now[*at] != 0;
        let (Some(first), Some(last)) =
            ((stop..end).find(appeared), (stop..end).rev().find(appeared))
        else {
            return true;
        };
        let text: Vec<_> = self.now[first..=last]
            .iter()
            .copied()
            .filter(is_text)
            .collect();
        self.log.push(&text);
        *at = last + 1;
        true
    }

    /// Takes what changed where the position says nothing, and finds a position.
    fn resume(&mut self) {
        let len = self.now.len();
        let (Position::At(position) | Position::Unsure(position)) = self.position;
        self.held = 0;
        // All but the longest stretch in which no text appeared.
        let appeared = |at: &usize| self.now[*at] != self.shadow[*at] && self.now[*at] != 0;
        let mut changes = (0..len).filter(appeared);
        let Some(lowest) = changes.next() else {
            self.shadow.copy_from_slice(&self.now);
            return;
        };
        let (mut highest, mut longest, mut first, mut last) = (lowest, 0, lowest, lowest);
        for at in changes {
            if at - highest - 1 > longest {
                (longest, first, last) = (at - highest - 1, at, highest);
            }
            highest = at;
        }
        let round_the_end = lowest + len - highest - 1;
        if round_the_end >= longest {
            (longest, first, last) = (round_the_end, lowest, highest);
        }
        let mut text = Vec::new();
        if longest >= margin(len) {
            // No lap, but text that was written somewhere, or over what was there.
            self.collect(first, last, &mut text);
            self.position = Position::At((last + 1) % len);
        } else {
            self.overruns += 1;
            self.log.overrun();
            // A NUL in the very last byte is rather one that never moves.
            if let Some(nul) = nul(&self.now[..len - 1]) {
                if highest > nul {
                    let first = (nul..len).find(appeared).unwrap_or(nul);
                    self.collect(first, highest, &mut text);
                }
                text.extend_from_slice(&self.now[..nul]);
                self.position = Position::At(nul);
            } else {
                let start = match self.position {
                    Position::At(position) => position,
                    Position::Unsure(_) => first,
                };
                self.collect(start, (start + len - 1) % len, &mut text);
                self.position = Position::Unsure(position);
            }
        }
        self.log.push(&text);
        self.shadow.copy_from_slice(&self.now);
    }

    /// The text from `first` to `last`, round the end of the buffer if `last` is before `first`.
    fn collect(&self, first: usize, last: usize, text: &mut Vec<u8>) {
        let (ahead, behind) = if first <= last {
            (first..last + 1, 0..0)
        } else {
            (first..self.now.len(), 0..last + 1)
        };
        let bytes = self.now[ahead].iter().chain(&self.now[behind]);
        text.extend(bytes.copied().filter(is_text));
    }
}

/// All traces of one core: its trace buffers in table order, and its console behind those that there
/// were when it began to be used. They outlive incarnations, as their logs do.
pub(super) struct Traces {
    /// With the names of the buffers, as the last incarnation has them.
    followers: Vec<(String, TraceFollower)>,
    console: Console,
    /// Looks that found something.
    found: Arc<AtomicU64>,
}

impl Traces {
    /// Those of a core that has not been booted.
    pub(super) fn new(core: &str) -> Self {
        Self {
            followers: Vec::new(),
            console: Console::new(core),
            found: Arc::default(),
        }
    }

    /// Where the engine is to write what comes from a console of the core's own.
    pub(super) fn console(&self) -> engine::Console {
        self.console.sink(self.found.clone())
    }

    /// An incarnation of this number begins; see [`TraceFollower::begin`].
    pub(super) fn begin(
        &mut self,
        buffers: &[TraceBuffer],
        ram: &Ram,
        old: OldText,
        incarnation: u32,
    ) {
        if self.followers.len() < buffers.len() {
            self.followers
                .resize_with(buffers.len(), || (String::new(), TraceFollower::new()));
        }
        let booted = SystemTime::now().duration_since(UNIX_EPOCH);
        let booted = booted.map_or(0, |time| time.as_micros());
        let booted = u64::try_from(booted).unwrap_or(u64::MAX);
        for (_, follower) in &mut self.followers {
            follower.set_incarnation(incarnation, booted);
        }
        for ((name, _), buffer) in self.followers.iter_mut().zip(buffers) {
            name.clone_from(&buffer.name);
        }
        self.console
            .begin(self.followers.len(), incarnation, booted);
        self.each(buffers, ram, |follower, buffer| {
            follower.begin(buffer, old);
            false
        });
    }

    /// See [`TraceFollower::look`].
    pub(super) fn look(&mut self, buffers: &[TraceBuffer], ram: &Ram) {
        self.each(buffers, ram, TraceFollower::look);
    }

    /// See [`TraceFollower::look_closely`].
    pub(super) fn look_closely(&mut self, buffers: &[TraceBuffer], ram: &Ram) {
        self.each(buffers, ram, TraceFollower::look_closely);
    }

    /// See [`TraceFollower::look_last`].
    pub(super) fn look_last(&mut self, buffers: &[TraceBuffer], ram: &Ram) {
        self.each(buffers, ram, TraceFollower::look_last);
        self.console.finish();
    }

    /// Of each trace what follows a number (where one is missing, 0).
    pub(super) fn since(&self, numbers: &[u64], max: usize) -> Vec<NamedTrace> {
        let piece = |name: &str, log: &Log, place: usize| NamedTrace {
            name: name.to_owned(),
            text: log.since(numbers.get(place).copied().unwrap_or(0), max),
            end: log.end(),
        };
        let console = self
            .console
            .look(|name, log, place| (place, piece(name, log, place)));
        let behind = console.as_ref().map_or(usize::MAX, |(place, _)| *place);
        let mut pieces: Vec<_> = self
            .followers
            .iter()
            .enumerate()
            .map(|(index, (name, it))| piece(name, &it.log, index + usize::from(index >= behind)))
            .collect();
        if let Some((place, piece)) = console {
            pieces.insert(place, piece);
        }
        pieces
    }

    /// What was found so far, trace by trace.
    pub(super) fn counts(&self) -> Vec<TraceCount> {
        let mut counts: Vec<_> = self
            .followers
            .iter()
            .map(|(name, follower)| TraceCount {
                name: name.clone(),
                bytes: follower.end(),
                overruns: follower.overruns(),
            })
            .collect();
        let console = self.console.look(|name, log, place| {
            let count = TraceCount {
                name: name.to_owned(),
                bytes: log.end(),
                overruns: 0,
            };
            (place, count)
        });
        if let Some((place, count)) = console {
            counts.insert(place, count);
        }
        counts
    }

    /// How many looks found something, for those who must not wait for the core.
    pub(super) fn found(&self) -> Arc<AtomicU64> {
        self.found.clone()
    }

    fn each(
        &mut self,
        buffers: &[TraceBuffer],
        ram: &Ram,
        mut look: impl FnMut(&mut TraceFollower, &VolatileSlice<'_>) -> bool,
    ) {
        let mut left = MAX_FOLLOWED_OF_CORE as u64;
        let mut found = false;
        for ((_, follower), buffer) in self.followers.iter_mut().zip(buffers) {
            let len = buffer.len.min(left).min(MAX_FOLLOWED as u64);
            left -= len;
            // Its place was checked when the boot was planned.
            if let Ok(slice) = ram.slice(buffer.place, len) {
                found |= look(follower, &slice);
            }
        }
        if found {
            self.found.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// How a firmware goes on at the end of its buffer, and where it leaves NULs.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Kind {
        /// It stops.
        Once,
        /// At the start; no NUL.
        Ring,
        /// At the start; a NUL after the last byte.
        RingNul,
        /// At the start, from the last byte but one; the last is NUL.
        ShortRing,
        /// As `ShortRing`, and a NUL after the last byte.
        ShortRingNul,
        /// At the start, with a line that does not fit; a NUL after the last byte.
        Lines,
    }

    const KINDS: [Kind; 6] = [
        Kind::Once,
        Kind::Ring,
        Kind::RingNul,
        Kind::ShortRing,
        Kind::ShortRingNul,
        Kind::Lines,
    ];

    struct Writer {
        kind: Kind,
        buffer: Vec<u8>,
        at: usize,
        written: Vec<u8>,
        /// Bytes of the buffer passed, free ones at the end included.
        passed: usize,
        /// `passed` after each byte written.
        places: Vec<usize>,
    }

    impl Writer {
        fn new(kind: Kind, buffer: Vec<u8>) -> Self {
            let mut writer = Self {
                kind,
                buffer,
                at: 0,
                written: Vec::new(),
                passed: 0,
                places: Vec::new(),
            };
            if matches!(kind, Kind::ShortRing | Kind::ShortRingNul) {
                *writer.buffer.last_mut().unwrap() = 0;
            }
            writer
        }

        /// What `write` may pass.
        fn most(&self, text: &[u8]) -> usize {
            match self.kind {
                Kind::Lines if text.len() >= self.buffer.len() - self.at => {
                    self.buffer.len() - self.at + text.len()
                }
                // The byte that stays NUL is passed as well.
                _ => text.len() + 1,
            }
        }

        fn write(&mut self, text: &[u8]) {
            let len = self.buffer.len();
            if self.kind == Kind::Lines && text.len() >= len - self.at {
                self.passed += len - self.at;
                self.at = 0;
            }
            for byte in text {
                let end = match self.kind {
                    Kind::ShortRing | Kind::ShortRingNul => len - 1,
                    _ => len,
                };
                if self.at == end {
                    if self.kind == Kind::Once {
                        return;
                    }
                    self.passed += len - end;
                    self.at = 0;
                }
                self.buffer[self.at] = *byte;
                self.written.push(*byte);
                self.passed += 1;
                self.places.push(self.passed);
                self.at += 1;
            }
            match self.kind {
                Kind::RingNul => {
                    self.at %= len;
                    self.buffer[self.at] = 0;
                }
                Kind::ShortRingNul | Kind::Lines => self.buffer[self.at] = 0,
                _ => {}
            }
        }

        /// How far the writer is ahead of who has found `found` bytes.
        fn lead(&self, found: u64) -> usize {
            let found = usize::try_from(found).unwrap();
            let place = found.checked_sub(1).map_or(0, |last| self.places[last]);
            self.passed - place
        }
    }

    fn memory(bytes: &mut [u8]) -> VolatileSlice<'_> {
        VolatileSlice::from(bytes)
    }

    fn all(follower: &TraceFollower) -> Vec<u8> {
        let mut text = Vec::new();
        loop {
            let piece = follower.since(text.len() as u64, usize::MAX);
            assert_eq!((piece.first, piece.lost), (text.len() as u64, 0));
            if piece.bytes.is_empty() {
                return text;
            }
            text.extend(piece.bytes);
        }
    }

    fn shown(follower: &TraceFollower) -> String {
        String::from_utf8(all(follower)).unwrap()
    }

    fn text(most: usize) -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            3 => prop::collection::vec(prop::sample::select(b"ab\n".to_vec()), 1..=most),
            1 => prop::collection::vec(1u8..=254, 1..=most),
            1 => (1..=most).prop_map(|len| vec![b'a'; len]),
        ]
    }

    #[derive(Clone, Debug)]
    struct Run {
        kind: Kind,
        /// What was in the buffer, and must not be reported.
        old: Option<Vec<u8>>,
        len: usize,
        steps: Vec<(Vec<u8>, bool)>,
    }

    fn run() -> impl Strategy<Value = Run> {
        (prop::sample::select(KINDS.to_vec()), 24usize..1500).prop_flat_map(|(kind, len)| {
            let old = prop::collection::vec(prop::sample::select(b"ab\n\0".to_vec()), len);
            let steps = prop::collection::vec((text((len / 5).min(60)), any::<bool>()), 0..120);
            (prop::option::of(old), steps).prop_map(move |(old, steps)| Run {
                kind,
                old,
                len,
                steps,
            })
        })
    }

    /// A byte that differs from the one at the same place some laps before, and is no NUL.
    fn distinct(number: usize, len: usize) -> u8 {
        u8::try_from(33 + (number % len + number / len * 37) % 94).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

        #[test]
        fn whoever_looks_often_enough_finds_every_byte_in_order_and_once(run in run()) {
            let old = if run.old.is_some() { OldText::Kept } else { OldText::None };
            let mut writer = Writer::new(run.kind, run.old.unwrap_or(vec![0; run.len]));
            let mut follower = TraceFollower::new();
            follower.begin(&memory(&mut writer.buffer), old);
            let may_pass = run.len - margin(run.len);
            // A byte that is nowhere in the buffer shows all in front of it.
            let last = (vec![255], false);
            for (text, glances) in run.steps.iter().chain([&last]) {
                if *glances {
                    follower.look(&memory(&mut writer.buffer));
                }
                if writer.lead(follower.end()) + writer.most(text) > may_pass {
                    follower.look_closely(&memory(&mut writer.buffer));
                }
                // Written over the same bytes: nobody can know.
                if writer.lead(follower.end()) + writer.most(text) > may_pass {
                    continue;
                }
                writer.write(text);
            }
            follower.look_last(&memory(&mut writer.buffer));
            let found = all(&follower);
            prop_assert_eq!(follower.overruns(), 0);
            prop_assert!(
                writer.written.starts_with(&found),
                "{:?} is no beginning of {:?}",
                found.escape_ascii().to_string(),
                writer.written.escape_ascii().to_string()
            );
            if writer.written.ends_with(&[255]) {
                prop_assert_eq!(found.len(), writer.written.len());
            }
        }

        #[test]
        fn whoever_looks_too_rarely_is_told_and_finds_the_position_again(
            nul in any::<bool>(),
            len in 16usize..600,
            steps in prop::collection::vec(0.0..2.5f64, 0..12),
        ) {
            let kind = if nul { Kind::RingNul } else { Kind::Ring };
            let mut writer = Writer::new(kind, vec![0; len]);
            let mut follower = TraceFollower::new();
            follower.begin(&memory(&mut writer.buffer), OldText::None);
            for share in steps {
                let count = (share * len as f64) as usize;
                let begun = writer.written.len();
                let text: Vec<_> = (begun..begun + count).map(|at| distinct(at, len)).collect();
                writer.write(&text);
                let (end, overruns) = (follower.end(), follower.overruns());
                follower.look_closely(&memory(&mut writer.buffer));
                let found = follower.since(end, usize::MAX);
                prop_assert_eq!(found.overruns, follower.overruns() - overruns);
                if count > len {
                    prop_assert_eq!(found.overruns, 1);
                    prop_assert!(found.bytes.len() >= len - 1);
                    prop_assert!(found.bytes.len() <= len);
                } else if count < len - margin(len) {
                    prop_assert_eq!(found.overruns, 0);
                    prop_assert_eq!(found.bytes, text);
                } else if found.overruns == 0 {
                    prop_assert_eq!(found.bytes, text);
                }
            }
        }

        #[test]
        fn a_firmware_that_scribbles_costs_no_more_than_its_buffer(
            len in 0usize..80,
            steps in prop::collection::vec(
                (0u8..4, prop::collection::vec((0usize..80, 0u8..3), 0..80)),
                0..60,
            ),
        ) {
            let mut buffer = vec![0; len];
            let mut follower = TraceFollower::new();
            for (kind, bytes) in steps {
                for (at, byte) in bytes {
                    if let Some(place) = buffer.get_mut(at) {
                        *place = byte;
                    }
                }
                let end = follower.end();
                match kind {
                    0 => _ = follower.look(&memory(&mut buffer)),
                    1 => _ = follower.look_closely(&memory(&mut buffer)),
                    2 => _ = follower.look_last(&memory(&mut buffer)),
                    _ => follower.begin(&memory(&mut buffer), OldText::Kept),
                }
                prop_assert!(follower.end() - end <= len as u64);
                prop_assert!(follower.log.overruns.len() <= MAX_OVERRUNS);
            }
            prop_assert!(!all(&follower).contains(&0));
        }

        #[test]
        fn a_reader_gets_what_the_log_has_and_is_told_what_it_has_not(
            steps in prop::collection::vec((any::<bool>(), 1usize..LOG_BYTES, any::<bool>()), 0..20),
            max in 1usize..LOG_BYTES,
        ) {
            let mut log = Log::default();
            let (mut whole, mut read) = (Vec::new(), 0);
            let (mut overruns, mut told) = (0, 0);
            for (overrun, count, reads) in steps {
                if overrun {
                    log.overrun();
                    overruns += 1;
                }
                let text: Vec<_> = (0..count).map(|at| (whole.len() + at) as u8).collect();
                log.push(&text);
                whole.extend(text);
                prop_assert!(log.bytes.len() <= LOG_BYTES);
                if !reads {
                    continue;
                }
                loop {
                    let piece = log.since(read, max);
                    prop_assert_eq!(piece.first, read + piece.lost);
                    prop_assert!(piece.lost == 0 || piece.first == log.oldest());
                    let first = usize::try_from(piece.first).unwrap();
                    prop_assert_eq!(&piece.bytes, &whole[first..first + piece.bytes.len()]);
                    told += piece.overruns;
                    read = piece.next();
                    if piece.bytes.is_empty() {
                        break;
                    }
                }
                prop_assert_eq!((read, told), (whole.len() as u64, overruns));
            }
        }
    }

    #[test]
    fn a_number_from_another_daemon_is_answered_with_all_there_is() {
        let mut log = Log::default();
        log.push(b"boot\n");
        assert_eq!(log.since(99, 10).bytes, b"boot\n");
        assert_eq!(
            log.since(5, 10),
            TraceText {
                first: 5,
                ..TraceText::default()
            }
        );
    }

    #[test]
    fn text_is_of_one_incarnation_and_says_which() {
        let mut log = Log::default();
        log.begin(1, 10);
        log.push(b"one");
        log.begin(2, 20);
        // It writes nothing.
        log.begin(3, 30);
        log.push(b"three");
        let piece = log.since(0, 10);
        assert_eq!(piece.bytes, b"one");
        assert_eq!((piece.incarnation, piece.booted), (1, 10));
        let piece = log.since(piece.next(), 10);
        assert_eq!(piece.bytes, b"three");
        assert_eq!((piece.incarnation, piece.booted), (3, 30));
        // What comes next is of the one that runs.
        assert_eq!(log.since(8, 10).incarnation, 3);
        log.begin(4, 40);
        assert_eq!(log.since(8, 10).incarnation, 4);
        assert_eq!(log.since(7, 10).incarnation, 3);
    }

    #[test]
    fn any_number_of_incarnations_takes_bounded_memory() {
        let mut log = Log::default();
        for number in 1..2000 {
            log.begin(number, 0);
            log.push(b"x");
        }
        assert!(log.beginnings.len() <= MAX_BEGINNINGS);
        assert_eq!(log.since(0, 10).incarnation, 0);
        assert_eq!(log.since(1998, 10).incarnation, 1999);
        // Those whose text is forgotten are, too.
        log.push(&[b'y'; LOG_BYTES]);
        log.begin(2000, 0);
        assert_eq!(log.beginnings.len(), 2);
        assert_eq!(log.since(0, 10).incarnation, 1999);
    }

    #[test]
    fn text_does_not_go_past_an_overrun() {
        let mut log = Log::default();
        log.push(b"one");
        log.overrun();
        log.push(b"two");
        assert_eq!(log.since(0, 10).bytes, b"one");
        let piece = log.since(3, 10);
        assert_eq!(
            (piece.bytes.as_slice(), piece.overruns),
            (b"two".as_slice(), 1)
        );
    }

    #[test]
    fn a_line_appears_when_its_first_byte_does() {
        let mut follower = TraceFollower::new();
        let mut buffer = *b"one\n\0ld text\0\0\0\0";
        follower.begin(&memory(&mut [0; 16]), OldText::None);
        // The old text is from a lap that the follower knows.
        follower
            .shadow
            .copy_from_slice(b"\0\0\0\0\0ld text\0\0\0\0");
        follower.look_closely(&memory(&mut buffer));
        buffer[8] = 0;
        follower.look_closely(&memory(&mut buffer));
        buffer[5..8].copy_from_slice(b"wo\n");
        follower.look_closely(&memory(&mut buffer));
        assert_eq!(shown(&follower), "one\n");
        buffer[4] = b't';
        follower.look_closely(&memory(&mut buffer));
        assert_eq!(shown(&follower), "one\ntwo\n");
    }

    #[test]
    fn a_line_at_the_start_appears_when_its_first_byte_does() {
        let mut follower = TraceFollower::new();
        let mut writer = Writer::new(Kind::Lines, vec![0; 16]);
        follower.begin(&memory(&mut writer.buffer), OldText::None);
        for line in [&b"12345\n"[..], b"6789\n"] {
            writer.write(line);
            follower.look_closely(&memory(&mut writer.buffer));
        }
        let mut buffer = writer.buffer.clone();
        buffer[0] = 0;
        follower.look_closely(&memory(&mut buffer));
        buffer[6] = 0;
        buffer[1..4].copy_from_slice(b"bcd");
        follower.look_closely(&memory(&mut buffer));
        assert_eq!(shown(&follower), "12345\n6789\n");
        buffer[..7].copy_from_slice(b"abcde\n\0");
        follower.look_closely(&memory(&mut buffer));
        assert_eq!(shown(&follower), "12345\n6789\nabcde\n");
        assert_eq!(follower.overruns(), 0);
    }

    #[test]
    fn lines_of_which_every_look_catches_another_one_half_written_are_all_found_whole() {
        let mut follower = TraceFollower::new();
        let mut buffer = vec![0; 256];
        follower.begin(&memory(&mut buffer), OldText::None);
        let (mut at, mut written) = (0, String::new());
        for number in 0..40 {
            let line = format!("line {number:2}\n");
            if at + line.len() >= buffer.len() {
                at = 0;
            }
            let (first, rest) = line.as_bytes().split_at(1);
            buffer[at] = 0;
            buffer[at + line.len()] = 0;
            buffer[at + 1..at + 5].copy_from_slice(&rest[..4]);
            follower.look(&memory(&mut buffer));
            buffer[at + 1..at + line.len()].copy_from_slice(rest);
            buffer[at] = first[0];
            at += line.len();
            written.push_str(&line);
        }
        follower.look(&memory(&mut buffer));
        assert_eq!(shown(&follower), written);
        assert_eq!(follower.overruns(), 0);
    }

    #[test]
    fn a_line_that_a_crash_tears_is_shown_as_far_as_it_got() {
        let mut follower = TraceFollower::new();
        let mut buffer = *b"one\n\0\0\0\0\0\0\0\0\0\0\0\0";
        follower.begin(&memory(&mut [0; 16]), OldText::None);
        buffer[5..8].copy_from_slice(b"wo\n");
        follower.look_closely(&memory(&mut buffer));
        follower.look_last(&memory(&mut buffer));
        assert_eq!(shown(&follower), "one\nwo\n");
    }

    #[test]
    fn text_behind_a_nul_that_stays_is_held_back_for_a_while_only() {
        let mut follower = TraceFollower::new();
        let mut buffer = *b"one\0two\0three\0\0\0";
        follower.begin(&memory(&mut [0; 16]), OldText::None);
        for _ in 0..=PATIENCE {
            follower.look(&memory(&mut buffer));
        }
        assert_eq!(shown(&follower), "onetwothree");
    }

    #[test]
    fn old_text_is_not_reported_again_and_new_text_that_equals_it_is() {
        let mut follower = TraceFollower::new();
        let mut buffer = vec![0; 64];
        follower.begin(&memory(&mut buffer), OldText::None);
        buffer[..10].copy_from_slice(b"hello\none\n");
        follower.look_closely(&memory(&mut buffer));
        follower.begin(&memory(&mut buffer), OldText::Kept);
        assert!(!follower.look_last(&memory(&mut buffer)));
        buffer[..12].copy_from_slice(b"hello\nthree\n");
        follower.look_closely(&memory(&mut buffer));
        assert_eq!(shown(&follower), "hello\none\nhello\nthree\n");
    }

    #[test]
    fn text_that_comes_with_the_image_is_reported() {
        let mut follower = TraceFollower::new();
        let mut buffer = *b"ready\0\0\0\0\0\0\0\0\0\0\0";
        follower.begin(&memory(&mut buffer), OldText::None);
        assert!(follower.look(&memory(&mut buffer)));
        assert_eq!(shown(&follower), "ready");
    }

    #[test]
    fn a_firmware_that_clears_its_buffer_starts_over_and_loses_nothing() {
        let mut follower = TraceFollower::new();
        let mut buffer = vec![b'x'; 64];
        follower.begin(&memory(&mut buffer), OldText::Kept);
        for cleared in 0..=64 {
            buffer[..cleared].fill(0);
            follower.look_closely(&memory(&mut buffer));
        }
        buffer[..6].copy_from_slice(b"hello\n");
        follower.look_closely(&memory(&mut buffer));
        buffer.fill(0);
        buffer[..8].copy_from_slice(b"goodbye\n");
        follower.look_closely(&memory(&mut buffer));
        assert_eq!(shown(&follower), "hello\ngoodbye\n");
        assert_eq!(follower.overruns(), 0);
    }

    #[test]
    fn a_glance_finds_what_is_far_from_the_position_within_a_round() {
        let mut follower = TraceFollower::new();
        let mut buffer = vec![b'a'; 64 << 10];
        follower.begin(&memory(&mut buffer), OldText::Kept);
        // Everything in front of it was written over the same.
        buffer[40_000] = b'b';
        let looks = (0..)
            .take_while(|_| !follower.look(&memory(&mut buffer)))
            .count();
        assert!(looks <= buffer.len() / STRIDE, "{looks}");
        assert_eq!(follower.end(), 40_001);
    }

    #[test]
    fn a_buffer_longer_than_what_is_followed_is_followed_to_there() {
        let mut follower = TraceFollower::new();
        let mut buffer = vec![0; MAX_FOLLOWED + 100];
        follower.begin(&memory(&mut buffer), OldText::None);
        buffer[MAX_FOLLOWED..].fill(b'x');
        assert!(!follower.look_last(&memory(&mut buffer)));
        buffer[0] = b'y';
        assert!(follower.look(&memory(&mut buffer)));
        // A buffer that became shorter harms nobody.
        assert!(!follower.look_last(&memory(&mut buffer[..10])));
    }
}
