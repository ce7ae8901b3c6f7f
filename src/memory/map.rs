//! A core's memory as a person looks at it: rows of address, size and what is there.
//!
//! What belongs here: order, holes, columns. What does not: where the rows come from, and whether
//! anything is right; a row is marked because the caller says so.
//!
//! ```text
//!    address             size  what
//!    0x80000000        64 KiB  carveout "image"
//!    0x80000000       12345 B    segment 0
//!    0x80010000       960 KiB  (free)
//! >> 0x80100000       256 KiB  segment 3
//!                              ^ segment 3 lies outside every carveout
//! ```
//!
//! Every line fits into 80 columns; what is longer is cut and ends in `...`.

use std::fmt;

use super::{Carveout, DeviceAddress};

/// Columns of a terminal that nobody has made wider.
const COLUMNS: usize = 80;
/// Where the last column begins.
const WHAT: usize = 29;

/// What kind of row it is, in the order in which rows of one address come.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Level {
    /// Memory that is taken.
    Taken,
    /// What lies in memory that is taken.
    Inside,
    /// What cannot stay where it is, and why.
    Offender(String),
    /// Memory that is not taken.
    Hole,
}

#[derive(Clone, Debug)]
struct Row {
    da: DeviceAddress,
    len: u64,
    level: Level,
    what: String,
}

/// Rows in the making. [`fmt::Display`] sorts them and puts in the holes.
#[derive(Clone, Debug)]
pub struct MemoryMap {
    base: DeviceAddress,
    end: DeviceAddress,
    rows: Vec<Row>,
}

impl MemoryMap {
    /// The map of memory from `base` to `end`, with nothing in it.
    pub fn new(base: DeviceAddress, end: DeviceAddress) -> Self {
        Self {
            base,
            end,
            rows: Vec::new(),
        }
    }

    /// Adds a carveout.
    pub fn carveout(&mut self, carveout: &Carveout) {
        let what = format!("carveout \"{}\"", carveout.name);
        self.row(carveout.da, carveout.len, Level::Taken, what);
    }

    /// Adds something that lies in a carveout.
    pub fn inside(&mut self, da: DeviceAddress, len: u64, what: impl Into<String>) {
        self.row(da, len, Level::Inside, what.into());
    }

    /// Adds what is refused, and why.
    pub fn offender(
        &mut self,
        da: DeviceAddress,
        len: u64,
        what: impl Into<String>,
        why: impl Into<String>,
    ) {
        self.row(da, len, Level::Offender(why.into()), what.into());
    }

    fn row(&mut self, da: DeviceAddress, len: u64, level: Level, what: String) {
        self.rows.push(Row {
            da,
            len,
            level,
            what,
        });
    }

    /// What no carveout takes.
    fn holes(&self) -> Vec<Row> {
        let mut taken: Vec<(u64, u64)> = self
            .rows
            .iter()
            .filter(|row| row.level == Level::Taken)
            .map(|row| (row.da.0, row.da.0.saturating_add(row.len)))
            .collect();
        taken.sort_unstable();
        taken.push((self.end.0, self.end.0));
        let mut holes = Vec::new();
        let mut at = self.base.0;
        for (start, end) in taken {
            if start > at {
                holes.push(Row {
                    da: DeviceAddress(at),
                    len: start - at,
                    level: Level::Hole,
                    what: "(free)".to_owned(),
                });
            }
            at = at.max(end);
        }
        holes
    }
}

impl fmt::Display for MemoryMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "   {:10}  {:>12}  what", "address", "size")?;
        let mut rows = self.rows.clone();
        rows.extend(self.holes());
        rows.sort_by(|a, b| {
            (a.da, &a.level, std::cmp::Reverse(a.len)).cmp(&(
                b.da,
                &b.level,
                std::cmp::Reverse(b.len),
            ))
        });
        for Row {
            da,
            len,
            level,
            what,
        } in &rows
        {
            let mark = match level {
                Level::Offender(_) => ">>",
                Level::Taken | Level::Inside | Level::Hole => "",
            };
            let indent = match level {
                Level::Inside => "  ",
                Level::Taken | Level::Offender(_) | Level::Hole => "",
            };
            let what = cut(&format!("{indent}{what}"), COLUMNS - WHAT);
            let line = format!("{mark:3}{da}  {:>12}  {what}", Size(*len).to_string());
            write!(f, "\n{}", cut(line.trim_end(), COLUMNS))?;
            if let Level::Offender(why) = level {
                let mut lead = format!("{:WHAT$}^ ", "");
                for line in wrap(why, COLUMNS - WHAT - 2).lines() {
                    write!(f, "\n{lead}{line}")?;
                    lead = format!("{:WHAT$}  ", "");
                }
            }
        }
        Ok(())
    }
}

/// Bytes in the largest unit that leaves no remainder.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(bytes) = *self;
        for (unit, name) in [(1 << 20, "MiB"), (1 << 10, "KiB")] {
            if bytes >= unit && bytes.is_multiple_of(unit) {
                return write!(f, "{} {name}", bytes / unit);
            }
        }
        write!(f, "{bytes} B")
    }
}

/// At most `columns` characters of `text`.
fn cut(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    let kept: String = text.chars().take(columns.saturating_sub(3)).collect();
    kept + "..."
}

/// `text` in lines of at most `columns` characters, broken at blanks where there are any.
pub fn wrap(text: &str, columns: usize) -> String {
    let columns = columns.max(1);
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let mut word = word;
        let taken = |line: &String| line.chars().count() + 1 + word.chars().count();
        if let Some(line) = lines.last_mut()
            && taken(line) <= columns
        {
            line.push(' ');
            line.push_str(word);
            continue;
        }
        while let Some((at, _)) = word.char_indices().nth(columns) {
            let (head, rest) = word.split_at(at);
            lines.push(head.to_owned());
            word = rest;
        }
        lines.push(word.to_owned());
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carveout(name: &str, da: u64, len: u64) -> Carveout {
        Carveout {
            name: name.to_owned(),
            da: DeviceAddress(da),
            len,
        }
    }

    #[test]
    fn rows_are_sorted_and_holes_are_shown() {
        let mut map = MemoryMap::new(DeviceAddress(0x8000_0000), DeviceAddress(0x8020_0000));
        map.carveout(&carveout("late", 0x8018_0000, 2000));
        map.inside(DeviceAddress(0x8000_1000), 0x10, "segment 1");
        map.inside(DeviceAddress(0x8000_0000), 0x400, "segment 0");
        map.carveout(&carveout("image", 0x8000_0000, 0x10_0000));
        map.offender(
            DeviceAddress(0x8010_0000),
            0x400,
            "segment 3",
            "segment 3 lies outside every carveout",
        );
        assert_eq!(
            map.to_string(),
            "   address             size  what\n   \
             0x80000000         1 MiB  carveout \"image\"\n   \
             0x80000000         1 KiB    segment 0\n   \
             0x80001000          16 B    segment 1\n\
             >> 0x80100000         1 KiB  segment 3\n                             \
             ^ segment 3 lies outside every carveout\n   \
             0x80100000       512 KiB  (free)\n   \
             0x80180000        2000 B  carveout \"late\"\n   \
             0x801807d0      522288 B  (free)"
        );
    }

    #[test]
    fn offenders_outside_of_the_memory_are_shown_too_and_wrap_harmlessly() {
        let mut map = MemoryMap::new(DeviceAddress(0x8000_0000), DeviceAddress(0x8000_1000));
        map.offender(DeviceAddress(0x1234_5678), 2000, "carveout", "not here");
        map.offender(DeviceAddress(u64::MAX), u64::MAX, "carveout", "nor here");
        map.carveout(&carveout("odd", u64::MAX, u64::MAX));
        let shown = map.to_string();
        assert!(shown.lines().nth(1).unwrap().starts_with(">> 0x12345678"));
        assert!(shown.lines().count() >= 6);
    }

    #[test]
    fn every_line_fits_into_80_columns() {
        let mut map = MemoryMap::new(DeviceAddress(0), DeviceAddress(1 << 32));
        map.carveout(&carveout(&"\\xc3".repeat(31), 0, 1));
        map.inside(DeviceAddress(u64::MAX), u64::MAX, "x".repeat(100));
        map.offender(
            DeviceAddress(1 << 40),
            u64::MAX,
            "y".repeat(100),
            "z ".repeat(300),
        );
        map.offender(DeviceAddress(1 << 40), 1, "y", "z".repeat(300));
        for line in map.to_string().lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn text_is_wrapped_at_blanks_and_long_words_are_broken() {
        assert_eq!(wrap("a bb ccc", 4), "a bb\nccc");
        assert_eq!(wrap("abcdefghij k", 4), "abcd\nefgh\nij k");
        assert_eq!(wrap("", 4), "");
    }
}
