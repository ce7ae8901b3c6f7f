//! How text comes to the terminal: columns, colour, width.
//!
//! What belongs here: those, and writing to the standard output. What does not: what the text says.

use std::env;
use std::io::{self, IsTerminal, Write};

use rustix::termios::tcgetwinsize;

use crate::failure::{FAILED, Failure};

/// What the standard output can show.
#[derive(Clone, Copy)]
pub struct Screen {
    /// Columns; `None` for a file or a pipe.
    pub width: Option<usize>,
    /// Rows.
    pub height: Option<usize>,
    /// Does it show colours, and are they wanted?
    pub colour: bool,
}

impl Screen {
    /// Of the standard output.
    pub fn of_output() -> Self {
        let output = io::stdout();
        if !output.is_terminal() {
            return Self::PLAIN;
        }
        let size = tcgetwinsize(&output).ok();
        let told = |size: u16| (size > 0).then_some(usize::from(size));
        let plain = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            width: size.and_then(|size| told(size.ws_col)),
            height: size.and_then(|size| told(size.ws_row)),
            colour: !plain,
        }
    }

    /// A file.
    pub const PLAIN: Self = Self {
        width: None,
        height: None,
        colour: false,
    };

    /// A word for a state, in its colour.
    pub fn state(&self, state: &str) -> String {
        let colour = match state {
            "running" | "attached" => "32",
            "crashed" => "1;31",
            "suspended" => "33",
            _ => "2",
        };
        self.paint(colour, state)
    }

    /// Text in a colour (the numbers of SGR), if there are colours.
    pub fn paint(&self, colour: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{colour}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// A line, cut to the width.
    pub fn cut(&self, line: &str) -> String {
        match self.width {
            Some(width) if width_of(line) > width => cut(line, width),
            _ => line.to_owned(),
        }
    }
}

/// Columns that a text takes: what is between an escape and its `m` takes none.
pub fn width_of(text: &str) -> usize {
    visible(text).count()
}

/// The characters that take a column, with the places behind them.
fn visible(text: &str) -> impl Iterator<Item = usize> {
    let mut escape = false;
    text.char_indices().filter_map(move |(at, character)| {
        let hidden = escape || character == '\x1b';
        escape = hidden && character != 'm';
        (!hidden).then_some(at + character.len_utf8())
    })
}

fn cut(line: &str, width: usize) -> String {
    let keep = width.saturating_sub(3);
    let end = keep
        .checked_sub(1)
        .and_then(|last| visible(line).nth(last))
        .unwrap_or(0);
    let reset = if line.contains('\x1b') { "\x1b[0m" } else { "" };
    let dots = &"..."[..width.min(3)];
    format!("{}{reset}{dots}", &line[..end])
}

/// Columns that the first cell of a row keeps as long as another one can go.
const SHORT: usize = 16;
/// Columns that it keeps on any screen.
const SHORTEST: usize = 8;

/// Rows in columns, the first row being the titles.
#[derive(Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
    /// Columns that are numbers.
    right: Vec<usize>,
    /// Titles of the columns that a narrow screen does without, the first ones first.
    least_wanted: &'static [&'static str],
}

impl Table {
    /// One with these titles.
    pub fn new(titles: &[&str]) -> Self {
        Self {
            rows: vec![titles.iter().map(|it| (*it).to_owned()).collect()],
            right: Vec::new(),
            least_wanted: &[],
        }
    }

    /// On a narrow screen these columns go, the first ones first.
    #[must_use]
    pub fn narrow(mut self, least_wanted: &'static [&'static str]) -> Self {
        self.least_wanted = least_wanted;
        self
    }

    /// These columns stand at the right.
    #[must_use]
    pub fn right(mut self, columns: &[usize]) -> Self {
        self.right = columns.to_vec();
        self
    }

    /// One row more.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// How many rows there are, titles not counted.
    pub fn len(&self) -> usize {
        self.rows.len() - 1
    }

    /// The text. Where it is wider than the screen its columns move together, then the first one is
    /// shortened, then those go that are least wanted, then the first one is shortened more; what is
    /// still too wide is cut.
    pub fn text(&self, screen: &Screen) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut widths = vec![0; columns];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(width_of(cell));
            }
        }
        let mut shown: Vec<usize> = (0..columns).collect();
        let width = |shown: &[usize], widths: &[usize], gap: usize| -> usize {
            let cells: usize = shown.iter().map(|column| widths[*column]).sum();
            cells + gap * shown.len().saturating_sub(1)
        };
        let most = match screen.width {
            Some(width) if !self.least_wanted.is_empty() => width,
            _ => usize::MAX,
        };
        let gap = if width(&shown, &widths, 2) > most {
            1
        } else {
            2
        };
        let shorten = |shown: &[usize], widths: &mut [usize], least: usize| {
            let excess = width(shown, widths, gap).saturating_sub(most);
            if let Some(first) = widths.first_mut() {
                *first = first.saturating_sub(excess).max(least.min(*first));
            }
        };
        shorten(&shown, &mut widths, SHORT);
        let title = |column: usize| self.rows[0].get(column).map(String::as_str);
        for name in self.least_wanted {
            if width(&shown, &widths, gap) > most {
                shown.retain(|column| title(*column) != Some(name));
            }
        }
        shorten(&shown, &mut widths, SHORTEST);
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (place, column) in shown.iter().enumerate() {
                let Some(cell) = row.get(*column) else {
                    continue;
                };
                let cell = if width_of(cell) > widths[*column] {
                    cut(cell, widths[*column])
                } else {
                    cell.clone()
                };
                let blank = " ".repeat(widths[*column] - width_of(&cell));
                if place > 0 {
                    line.push_str(&" ".repeat(gap));
                }
                if self.right.contains(column) {
                    line.push_str(&blank);
                    line.push_str(&cell);
                } else {
                    line.push_str(&cell);
                    line.push_str(&blank);
                }
            }
            text.push_str(&screen.cut(line.trim_end()));
            text.push('\n');
        }
        text
    }
}

/// A size for a person: 4096 is "4 KiB".
pub fn size(bytes: u64) -> String {
    for (unit, name) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
        let unit = 1u64 << unit;
        if bytes >= unit {
            return if bytes.is_multiple_of(unit) {
                format!("{} {name}", bytes / unit)
            } else {
                format!("{:.1} {name}", bytes as f64 / unit as f64)
            };
        }
    }
    format!("{bytes} B")
}

/// A time for a person: "2 d 3 h", "1.5 s", "250 us".
pub fn duration(microseconds: u64) -> String {
    let seconds = microseconds / 1_000_000;
    match seconds {
        0 if microseconds < 1000 => format!("{microseconds} us"),
        0 => format!("{:.1} ms", microseconds as f64 / 1e3),
        1..60 => format!("{:.1} s", microseconds as f64 / 1e6),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// A time as people and programs read it: `2026-11-24T08:05:00.123456Z`.
pub fn time(microseconds: u64) -> String {
    let seconds = microseconds / 1_000_000;
    let (days, left) = (seconds / 86_400, seconds % 86_400);
    // Days since the first of March of the year 0, in eras of 400 years.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}Z",
        left / 3600,
        left / 60 % 60,
        left % 60,
        microseconds % 1_000_000
    )
}

/// Writes to the standard output. `false` says that it was closed (`rprocctl trace x | head`),
/// which is no failure of ours.
pub fn write(text: &str) -> Result<bool, Failure> {
    let mut output = io::stdout();
    let written = output.write_all(text.as_bytes());
    match written.and_then(|()| output.flush()) {
        Ok(()) => Ok(true),
        Err(cause) if cause.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(cause) => Err(Failure::new(
            FAILED,
            format!("cannot write the result: {cause}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_fits_the_screen_and_colours_take_no_column() {
        let mut table = Table::new(&["CORE", "N"]).right(&[1]);
        table.row(["\x1b[32mm4\x1b[0m".to_owned(), "12345".to_owned()]);
        assert_eq!(
            table.text(&Screen::PLAIN),
            "CORE      N\n\x1b[32mm4\x1b[0m    12345\n"
        );
        let narrow = Screen {
            width: Some(8),
            ..Screen::PLAIN
        };
        assert_eq!(
            table.text(&narrow),
            "CORE ...\n\x1b[32mm4\x1b[0m   \x1b[0m...\n"
        );
    }

    #[test]
    fn a_narrow_screen_shows_the_columns_that_are_wanted_most() {
        let mut table = Table::new(&["CORE", "PC", "UP", "N"]).narrow(&["PC", "UP"]);
        let row = ["a-core-of-a-long-name", "0x80001234", "3 s", "12345"];
        table.row(row.map(str::to_owned));
        let at = |width: usize| {
            let screen = Screen {
                width: Some(width),
                ..Screen::PLAIN
            };
            let text = table.text(&screen);
            assert!(text.lines().all(|line| width_of(line) <= width), "{text}");
            text.lines().nth(1).unwrap().to_owned()
        };
        assert_eq!(at(45), "a-core-of-a-long-name  0x80001234  3 s  12345");
        assert_eq!(at(42), "a-core-of-a-long-name 0x80001234 3 s 12345");
        assert_eq!(at(41), "a-core-of-a-long-... 0x80001234 3 s 12345");
        assert_eq!(at(36), "a-core-of-a-l... 3 s 12345");
        assert_eq!(at(25), "a-core-of-a-l... 12345");
        assert_eq!(at(20), "a-core-of-a... 12345");
        assert_eq!(at(14), "a-cor... 12345");
        assert_eq!(at(10), "a-cor.....");
    }

    #[test]
    fn times_and_sizes_are_for_people() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(time(951_782_399_000_001), "2000-02-28T23:59:59.000001Z");
        assert_eq!(time(951_782_400_000_000), "2000-02-29T00:00:00.000000Z");
        assert_eq!(time(1_798_761_600_000_000), "2027-01-01T00:00:00.000000Z");
        let durations = [
            250,
            1500,
            1_500_000,
            61_000_000,
            3_660_000_000,
            90_000_000_000,
        ]
        .map(duration);
        assert_eq!(
            durations,
            [
                "250 us",
                "1.5 ms",
                "1.5 s",
                "1 min 1 s",
                "1 h 1 min",
                "1 d 1 h"
            ]
        );
        let sizes = [0, 1023, 4096, 1536, 4 << 20].map(size);
        assert_eq!(sizes, ["0 B", "1023 B", "4 KiB", "1.5 KiB", "4 MiB"]);
    }
}
