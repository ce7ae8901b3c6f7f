//! What a core's firmware wrote into its trace buffers.
//!
//! What belongs here: gathering the text, cutting it to what is wanted, and showing whose it is. What
//! does not: events.
//!
//! The text of a buffer goes through all incarnations of the core. A line says where one begins:
//! `--- incarnation 3, booted at 2026-11-28T12:01:02Z ---`, with the buffer's name in front where
//! there is more than one. What is shown first begins with a whole line.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::daemons::{Daemon, shown};
use crate::failure::{FAILED, Failure, Result};
use crate::terminal::{time, write};
use crate::watch::{ended, json_line};
use rprocd::control::TracePiece;
use rprocd::control::client;

const METHOD: &str = "io.rprocd.Trace";

/// Which text is shown.
pub struct Wanted<'a> {
    /// The core.
    pub core: &'a str,
    /// And what is written from now on.
    pub follow: bool,
    /// So many lines of each buffer.
    pub lines: Option<usize>,
    /// Of this incarnation; 0 is the last one, -1 the one before it.
    pub incarnation: Option<i64>,
    /// Of this buffer.
    pub buffer: Option<&'a str>,
}

#[derive(Deserialize)]
struct Buffers {
    buffers: Vec<TracePiece>,
}

/// Text of one incarnation in one buffer.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Piece {
    incarnation: u32,
    booted: u64,
    text: String,
    lost: u64,
    overruns: u64,
    /// The line that this text begins in began in what is lost.
    cut: bool,
}

impl From<&TracePiece> for Piece {
    fn from(piece: &TracePiece) -> Self {
        Self {
            incarnation: piece.incarnation,
            booted: piece.booted,
            text: piece.text.clone(),
            lost: piece.lost,
            overruns: piece.overruns,
            cut: false,
        }
    }
}

/// One buffer.
#[derive(Default)]
struct Buffer {
    name: String,
    pieces: Vec<Piece>,
    /// What to ask for next.
    next: u64,
    /// The incarnation that writes now, or did last.
    writes: u32,
}

impl Buffer {
    /// Adds what follows.
    fn push(&mut self, piece: &TracePiece) {
        self.name.clone_from(&piece.name);
        self.next = piece.next;
        self.writes = piece.incarnation;
        if piece.text.is_empty() && piece.lost == 0 && piece.overruns == 0 {
            return;
        }
        match self.pieces.last_mut() {
            Some(last)
                if last.incarnation == piece.incarnation
                    && piece.lost == 0
                    && piece.overruns == 0 =>
            {
                last.text += &piece.text;
            }
            _ => self.pieces.push(piece.into()),
        }
    }

    /// What is left of a line whose beginning is lost goes, unless nothing else is there.
    fn begin_with_a_line(&mut self) {
        if let Some(first) = self.pieces.first_mut().filter(|it| it.lost > 0)
            && let Some((_, rest)) = first.text.split_once('\n')
        {
            first.text = rest.to_owned();
            first.cut = true;
        }
    }

    /// Keeps so many lines.
    fn keep(&mut self, lines: usize) {
        let mut left = lines;
        let mut kept = Vec::new();
        for piece in self.pieces.drain(..).rev() {
            if left == 0 {
                break;
            }
            let lines = piece.text.split_inclusive('\n').count();
            if lines <= left {
                left -= lines;
                kept.push(piece);
                continue;
            }
            let rest = piece
                .text
                .split_inclusive('\n')
                .skip(lines - left)
                .collect();
            left = 0;
            // What is missing is in front of what nobody wanted.
            kept.push(Piece {
                text: rest,
                lost: 0,
                overruns: 0,
                cut: false,
                ..piece
            });
        }
        kept.reverse();
        self.pieces = kept;
    }
}

/// Shows what is wanted; to follow is to be told more.
pub fn run(daemon: &Daemon, wanted: &Wanted<'_>) -> Result<String> {
    let failed = |cause| daemon.failed(cause);
    let mut connection = daemon.connect(METHOD)?;
    let mut buffers: Vec<Buffer> = Vec::new();
    // Where the buffers were when they were first asked: a firmware that goes on writing is not
    // waited for.
    let mut goal: Option<Vec<u64>> = None;
    loop {
        let since: Vec<_> = buffers.iter().map(|it| it.next).collect();
        let parameters = json!({ "core": wanted.core, "since": since });
        let answer: Buffers = connection.call(METHOD, &parameters).map_err(failed)?;
        let pieces = &answer.buffers;
        let goal = goal.get_or_insert_with(|| pieces.iter().map(|piece| piece.end).collect());
        buffers.resize_with(pieces.len().max(buffers.len()), Buffer::default);
        for (buffer, piece) in buffers.iter_mut().zip(pieces) {
            buffer.push(piece);
        }
        // One that is short of its goal and made no step has nothing but the beginning of a character.
        let mut goals = pieces.iter().zip(&*goal).enumerate();
        if !goals.any(|(at, (it, goal))| it.next < *goal && since.get(at) != Some(&it.next)) {
            break;
        }
    }
    for buffer in &mut buffers {
        buffer.begin_with_a_line();
    }
    let chosen = choose(&buffers, wanted)?;
    if let Some(number) = wanted.incarnation {
        keep_incarnation(&mut buffers, &chosen, number, wanted)?;
    }
    for buffer in &mut buffers {
        if let Some(lines) = wanted.lines {
            buffer.keep(lines);
        }
    }
    let mut out = Shown {
        daemon,
        core: wanted.core,
        names: buffers.iter().map(|it| it.name.clone()).collect(),
        last: None,
        in_line: false,
    };
    if daemon.json && !wanted.follow {
        let mut values = Vec::new();
        for index in chosen {
            let pieces = buffers[index].pieces.iter();
            values.extend(pieces.map(|piece| out.value(index, piece)));
        }
        return shown(true, &values, String::new);
    }
    if buffers.is_empty() && !wanted.follow {
        return Ok(format!(
            "core {} has no trace buffer: it was never booted, or its firmware has none\n",
            wanted.core
        ));
    }
    for index in &chosen {
        for piece in &buffers[*index].pieces {
            if !out.show(*index, piece)? {
                return Ok(String::new());
            }
        }
    }
    if !wanted.follow {
        return Ok(out.end());
    }
    let since: Vec<_> = buffers.iter().map(|it| it.next).collect();
    let parameters = json!({ "core": wanted.core, "since": since });
    // Any time may pass until something is written.
    connection
        .send(METHOD, &parameters, true, &[])
        .and_then(|()| connection.set_patience(None))
        .map_err(|cause| ended(daemon, cause))?;
    loop {
        let answer = connection.answer(METHOD).map_err(|cause| {
            // What is said about it begins a line of its own.
            let _ = write(&out.end());
            ended(daemon, cause)
        })?;
        let Buffers { buffers } = client::read(METHOD, answer.parameters)?;
        out.names = buffers.iter().map(|it| it.name.clone()).collect();
        for (index, piece) in buffers.iter().enumerate() {
            // Those that were not there when it began are wanted too, if none was chosen.
            let wanted = wanted.buffer.is_none() || chosen.contains(&index);
            if wanted && !out.show(index, &piece.into())? {
                return Ok(String::new());
            }
        }
    }
}

/// The numbers of the buffers that are wanted.
fn choose(buffers: &[Buffer], wanted: &Wanted<'_>) -> Result<Vec<usize>> {
    let Some(word) = wanted.buffer else {
        return Ok((0..buffers.len()).collect());
    };
    let named = buffers.iter().position(|it| it.name == word);
    let number = word.parse().ok().filter(|it| *it < buffers.len());
    if let Some(index) = named.or(number) {
        return Ok(vec![index]);
    }
    let names: Vec<_> = buffers.iter().map(|it| it.name.as_str()).collect();
    Err(Failure::new(
        FAILED,
        if names.is_empty() {
            format!("core {} has no trace buffer yet", wanted.core)
        } else {
            format!(
                "core {} has no trace buffer \"{word}\"; it has: {}",
                wanted.core,
                names.join(", ")
            )
        },
    ))
}

/// Keeps the text of one incarnation, in the buffers that are wanted.
fn keep_incarnation(
    buffers: &mut [Buffer],
    chosen: &[usize],
    number: i64,
    wanted: &Wanted<'_>,
) -> Result<()> {
    let last = buffers.iter().map(|it| it.writes).max().unwrap_or(0);
    let number = if number > 0 {
        number
    } else {
        i64::from(last) + number
    };
    let mut kept: Vec<u32> = chosen
        .iter()
        .flat_map(|index| &buffers[*index].pieces)
        .map(|piece| piece.incarnation)
        .collect();
    kept.sort_unstable();
    kept.dedup();
    if !kept.iter().any(|it| i64::from(*it) == number) {
        let kept: Vec<_> = kept.iter().map(u32::to_string).collect();
        let kept = if kept.is_empty() {
            "no text at all".to_owned()
        } else {
            format!("text of incarnation {}", kept.join(", "))
        };
        let core = wanted.core;
        let text = format!("incarnation {number} of core {core} has no text here; kept is {kept}");
        return Err(Failure::new(FAILED, text));
    }
    for buffer in buffers {
        buffer
            .pieces
            .retain(|piece| i64::from(piece.incarnation) == number);
    }
    Ok(())
}

/// A trace on its way to the output.
struct Shown<'a> {
    daemon: &'a Daemon,
    core: &'a str,
    names: Vec<String>,
    /// The buffer and the incarnation of the text that was shown last.
    last: Option<(usize, u32)>,
    in_line: bool,
}

impl Shown<'_> {
    fn name(&self, index: usize) -> &str {
        self.names.get(index).map_or("", String::as_str)
    }

    fn value(&self, index: usize, piece: &Piece) -> Value {
        json!({
            "core": self.core,
            "daemon": self.daemon.socket,
            "buffer": index,
            "name": self.name(index),
            "incarnation": piece.incarnation,
            "booted": piece.booted,
            "lost": piece.lost,
            "overruns": piece.overruns,
            "text": piece.text,
        })
    }

    /// Says whether anybody still reads it.
    fn show(&mut self, index: usize, piece: &Piece) -> Result<bool> {
        if self.daemon.json {
            if piece.text.is_empty() && piece.lost == 0 && piece.overruns == 0 {
                return Ok(true);
            }
            return write(&json_line(&self.value(index, piece))?);
        }
        for gap in gaps(piece) {
            let name = self.name(index);
            eprintln!(
                "rprocctl: {}: trace buffer {index} \"{name}\": {gap}",
                self.core
            );
        }
        if piece.text.is_empty() {
            return Ok(true);
        }
        let mut text = String::new();
        let of = (index, piece.incarnation);
        if self.last.replace(of) != Some(of) {
            text.push_str(if self.in_line { "\n" } else { "" });
            let name = match self.names.len() {
                0 | 1 => String::new(),
                _ => format!("{}, ", self.name(index)),
            };
            text.push_str(&format!("--- {name}{} ---\n", of_incarnation(piece)));
        }
        text.push_str(&piece.text);
        self.in_line = !text.ends_with('\n');
        write(&text)
    }

    /// The line feed that is missing at the end.
    fn end(&self) -> String {
        if self.in_line { "\n" } else { "" }.to_owned()
    }
}

fn of_incarnation(piece: &Piece) -> String {
    match piece.incarnation {
        0 => "an incarnation whose number is not kept any more".to_owned(),
        number => {
            // To the second.
            let booted = time(piece.booted);
            let booted = booted.split_once('.').map_or(&*booted, |(it, _)| it);
            format!("incarnation {number}, booted at {booted}Z")
        }
    }
}

/// What is missing in front of a piece, in words.
fn gaps(piece: &Piece) -> Vec<String> {
    let mut gaps = Vec::new();
    if piece.lost > 0 {
        let lost = piece.lost;
        let line = if piece.cut {
            ", nor the line in which they end"
        } else {
            ""
        };
        gaps.push(format!(
            "{lost} bytes in front of this are not kept any more{line}"
        ));
    }
    if piece.overruns > 0 {
        let times = piece.overruns;
        gaps.push(format!(
            "text was overwritten before rprocd looked ({times} times)"
        ));
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(pieces: &[(u32, &str, u64)]) -> Buffer {
        let mut buffer = Buffer::default();
        for (incarnation, text, lost) in pieces {
            buffer.push(&TracePiece {
                text: (*text).to_owned(),
                incarnation: *incarnation,
                lost: *lost,
                ..TracePiece::default()
            });
        }
        buffer
    }

    fn texts(buffer: &Buffer) -> Vec<(u32, &str)> {
        let pieces = buffer.pieces.iter();
        pieces
            .map(|it| (it.incarnation, it.text.as_str()))
            .collect()
    }

    #[test]
    fn pieces_of_one_incarnation_are_one_and_gaps_stay() {
        let buffer = buffer(&[
            (1, "a", 0),
            (1, "b\n", 0),
            (2, "c", 0),
            (2, "d", 9),
            (2, "", 0),
        ]);
        assert_eq!(texts(&buffer), [(1, "ab\n"), (2, "c"), (2, "d")]);
    }

    #[test]
    fn what_is_left_of_a_line_is_not_shown_unless_nothing_else_is_there() {
        let mut cut = buffer(&[(1, "rest\nwhole\n", 5)]);
        cut.begin_with_a_line();
        assert_eq!(texts(&cut), [(1, "whole\n")]);
        assert!(cut.pieces[0].cut && cut.pieces[0].lost == 5);
        let mut only = buffer(&[(1, "no end", 5)]);
        only.begin_with_a_line();
        assert_eq!(texts(&only), [(1, "no end")]);
        let mut whole = buffer(&[(1, "first\n", 0)]);
        whole.begin_with_a_line();
        assert_eq!(texts(&whole), [(1, "first\n")]);
    }

    #[test]
    fn the_last_lines_are_those_of_the_last_incarnations() {
        let pieces = [(1, "a\nb\n", 7), (2, "c\nd\ne", 0)];
        for (lines, expected) in [
            (0, vec![]),
            (1, vec![(2, "e")]),
            (3, vec![(2, "c\nd\ne")]),
            (4, vec![(1, "b\n"), (2, "c\nd\ne")]),
            (9, vec![(1, "a\nb\n"), (2, "c\nd\ne")]),
        ] {
            let mut buffer = buffer(&pieces);
            buffer.keep(lines);
            assert_eq!(texts(&buffer), expected, "{lines}");
            let told = buffer.pieces.first().is_some_and(|it| it.lost > 0);
            assert_eq!(told, lines == 9);
        }
    }
}
