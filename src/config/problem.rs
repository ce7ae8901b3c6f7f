//! What is wrong with a configuration, and where.
//!
//! What belongs here: a problem, how it is shown, and which key is where in the text. What does not:
//! what is looked for.

use std::collections::HashMap;
use std::fmt;
use std::fmt::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::report::printable;

/// The most characters of a line that are shown around what is meant.
const EXCERPT_CHARACTERS: usize = 100;

/// Does it keep rprocd from starting?
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It does.
    Error,
    /// It does not, or depends on who asks and when.
    Warning,
}

/// One thing that is wrong. Shown as `FILE:line:column: what is wrong`.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// The file.
    pub file: PathBuf,
    /// Counted from 1.
    pub line: usize,
    /// Counted from 1, in characters.
    pub column: usize,
    /// Which key: `core[0].recovery.enabled`; empty where it is about none.
    pub key: String,
    /// Its value, as it is written in the file.
    pub value: Option<String>,
    /// Which key, its value, what it must be and what to do.
    #[serde(rename = "message")]
    pub what: String,
    /// The line itself.
    #[serde(skip)]
    excerpt: String,
    /// Where in it, and over how many characters.
    #[serde(skip)]
    marked: Range<usize>,
}

impl Problem {
    /// The problem, and below it the line with a mark under what is meant. No line feed at the end.
    pub fn shown(&self) -> String {
        let mut text = self.to_string();
        if self.excerpt.trim().is_empty() {
            return text;
        }
        let number = self.line.to_string();
        let (gap, blank) = (" ".repeat(number.len()), " ".repeat(self.marked.start));
        let marks = "^".repeat(self.marked.len());
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "\n  {number} | {}\n  {gap} | {blank}{marks}",
            self.excerpt
        );
        text
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file.display(), self.line, self.column)?;
        if self.severity == Severity::Warning {
            f.write_str("warning: ")?;
        }
        f.write_str(&self.what)
    }
}

/// Are there some that keep rprocd from starting?
pub fn any_error(problems: &[Problem]) -> bool {
    problems.iter().any(|it| it.severity == Severity::Error)
}

/// The text of a file, and where in it each key is that it has.
#[derive(Clone, Debug)]
pub struct Source {
    file: PathBuf,
    text: String,
    /// By path: the value of a key, the header of a section.
    places: HashMap<String, Range<usize>>,
}

impl Source {
    pub(super) fn new(text: &str, file: &Path) -> Self {
        Self {
            file: file.to_owned(),
            text: text.to_owned(),
            places: HashMap::new(),
        }
    }

    /// The file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Is there such a key or section?
    #[cfg(test)]
    pub(super) fn has(&self, path: &str) -> bool {
        self.places.contains_key(path)
    }

    /// What is there in the file.
    pub(super) fn at(&self, place: Range<usize>) -> &str {
        self.text.get(place).unwrap_or_default()
    }

    pub(super) fn note(&mut self, path: String, place: Range<usize>) {
        self.places.insert(path, place);
    }

    /// A problem with a key, `core[0].firmware`. Where the file does not have it, the section is
    /// shown that it would be in.
    pub fn problem(&self, severity: Severity, key: &str, what: String) -> Problem {
        let mut path = key;
        loop {
            if let Some(place) = self.places.get(path) {
                let has_value = path == key && !path.ends_with(']');
                let mut problem = self.problem_at(severity, key, place.clone(), what);
                problem.value = has_value.then(|| self.at(place.clone()).to_owned());
                return problem;
            }
            match path.rsplit_once('.') {
                Some((section, _)) => path = section,
                None => return self.problem_at(severity, key, 0..0, what),
            }
        }
    }

    /// A problem at a place of the text.
    pub(super) fn problem_at(
        &self,
        severity: Severity,
        key: &str,
        place: Range<usize>,
        what: String,
    ) -> Problem {
        let before = self.text.get(..place.start).unwrap_or(&self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let rest = &self.text[line_start..];
        let line = rest.lines().next().unwrap_or_default();
        let column = before[line_start..].chars().count();
        let width = self.at(place);
        let width = width.lines().next().unwrap_or_default().chars().count();
        let (excerpt, marked) = excerpt(line, column, width.max(1));
        Problem {
            severity,
            file: self.file.clone(),
            line: before.matches('\n').count() + 1,
            column: column + 1,
            key: key.to_owned(),
            value: None,
            what,
            excerpt,
            marked,
        }
    }
}

/// A line such that a terminal shows it, cut where it is long, and what is marked in it.
fn excerpt(line: &str, column: usize, width: usize) -> (String, Range<usize>) {
    let length = line.chars().count();
    let (first, ellipsis) = if length > EXCERPT_CHARACTERS && column > EXCERPT_CHARACTERS / 2 {
        (column - EXCERPT_CHARACTERS / 2, "... ")
    } else {
        (0, "")
    };
    let shown = |from: usize, to: usize| {
        let part: String = line.chars().skip(from).take(to - from).collect();
        printable(part.replace('\t', " ").as_bytes(), true).0
    };
    let last = length.min(first + EXCERPT_CHARACTERS);
    let (column, end) = (column.clamp(first, last), (column + width).min(last));
    let before = shown(first, column);
    let marked = shown(column, end.max(column));
    let after = shown(end.max(column), last);
    let start = ellipsis.len() + before.chars().count();
    let width = marked.chars().count().max(1);
    let more = if last < length { " ..." } else { "" };
    (
        format!("{ellipsis}{before}{marked}{after}{more}"),
        start..start + width,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, place: Range<usize>) -> String {
        let source = Source::new(text, Path::new("a.toml"));
        let what = "it is wrong".to_owned();
        source.problem_at(Severity::Error, "", place, what).shown()
    }

    #[test]
    fn a_problem_is_shown_with_its_line_and_a_mark_under_what_is_meant() {
        assert_eq!(
            shown("a = 1\n\tbcd = 234\n", 13..16),
            "a.toml:2:8: it is wrong\n  2 |  bcd = 234\n    |        ^^^"
        );
        // What spans lines is marked to the end of the first; what is at the end is marked as well.
        assert_eq!(
            shown("a = [\n1]", 4..8),
            "a.toml:1:5: it is wrong\n  1 | a = [\n    |     ^"
        );
        assert_eq!(
            shown("a = ", 4..4),
            "a.toml:1:5: it is wrong\n  1 | a = \n    |     ^"
        );
        assert_eq!(shown("", 0..0), "a.toml:1:1: it is wrong");
    }

    #[test]
    fn a_long_line_is_cut_around_what_is_meant_and_acts_on_no_terminal() {
        let text = format!("a = \"{}\x1b[2J{}\"", "x".repeat(200), "y".repeat(200));
        let lines: Vec<_> = shown(&text, 205..206).lines().map(str::to_owned).collect();
        assert!(lines[1].starts_with("  1 | ... xxx"), "{lines:?}");
        assert!(lines[1].contains("xx\\x1b[2Jyy"), "{lines:?}");
        assert!(lines[1].ends_with("yy ..."), "{lines:?}");
        let mark = lines[2].find('^').unwrap();
        assert_eq!(&lines[1][mark..mark + 4], "\\x1b", "{lines:?}");
        assert_eq!(lines[2].matches('^').count(), 4, "{lines:?}");
    }
}
