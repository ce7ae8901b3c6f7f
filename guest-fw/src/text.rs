//! Lines of text: how they are put together, and how they get into the trace buffer.
//!
//! No heap and no registers; where a line goes is the business of `trace`.

use core::fmt;

use crate::memory::Span;

/// One line, put together before it is written anywhere. What does not fit is cut off.
pub struct Line {
    bytes: [u8; Self::LIMIT],
    len: usize,
}

impl Line {
    /// Bytes in the longest line, its line feed included.
    pub const LIMIT: usize = 200;

    /// The line that `text` makes, line feed included.
    pub fn new(text: fmt::Arguments<'_>) -> Self {
        let mut line = Self {
            bytes: [0; Self::LIMIT],
            len: 0,
        };
        // Only an error of a Display implementation gets here, and half a line beats none.
        let _ = fmt::Write::write_fmt(&mut line, text);
        line.bytes[line.len] = b'\n';
        line.len += 1;
        line
    }

    /// What to write.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // One byte stays free for the line feed.
        let room = Self::LIMIT - 1 - self.len;
        let count = text.len().min(room);
        for (to, byte) in self.bytes[self.len..]
            .iter_mut()
            .zip(&text.as_bytes()[..count])
        {
            // A NUL would end the whole trace for its readers.
            *to = if *byte == 0 { b'?' } else { *byte };
        }
        self.len += count;
        Ok(())
    }
}

/// Text from outside, shown so that it cannot upset a terminal or a log.
pub struct Shown<'a>(pub &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            let shown = if byte.is_ascii_graphic() || *byte == b' ' {
                *byte
            } else {
                b'?'
            };
            fmt::Write::write_char(f, char::from(shown))?;
        }
        Ok(())
    }
}

/// Appends `line` to the text in `buffer`, whose end is at `position`; returns the new end.
///
/// The buffer always holds text and then a NUL. A line that does not fit into the rest restarts
/// the text at the beginning of the buffer: a reader who stops at the NUL then sees the lines
/// since the restart, a dump also holds the older ones behind it. The NUL moves before the text
/// becomes visible, so a reader who looks in between sees the old text and never a torn line.
pub fn append(buffer: Span, position: u32, line: &[u8]) -> u32 {
    let len = line.len() as u32;
    if len == 0 || len >= buffer.len() {
        return position;
    }
    let start = if len < buffer.len().saturating_sub(position) {
        position
    } else {
        0
    };
    buffer.write_u8(start, 0);
    buffer.write_u8(start + len, 0);
    for (index, byte) in line.iter().enumerate().skip(1) {
        buffer.write_u8(start + index as u32, *byte);
    }
    buffer.write_u8(start, line[0]);
    start + len
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::testing::leak;

    fn text(buffer: Span) -> String {
        let bytes = (0..buffer.len()).map(|at| buffer.read_u8(at));
        String::from_utf8(bytes.take_while(|byte| *byte != 0).collect()).unwrap()
    }

    #[test]
    fn lines_follow_each_other_and_end_in_a_nul() {
        let buffer = leak(64);
        let end = append(buffer, 0, b"one\n");
        let end = append(buffer, end, b"two\n");
        assert_eq!((end, text(buffer).as_str()), (8, "one\ntwo\n"));
    }

    #[test]
    fn a_full_buffer_restarts_and_keeps_lines_whole() {
        let buffer = leak(12);
        let mut end = append(buffer, 0, b"12345\n");
        end = append(buffer, end, b"abcd\n");
        assert_eq!(text(buffer), "12345\nabcd\n");
        end = append(buffer, end, b"x\n");
        assert_eq!((end, text(buffer).as_str()), (2, "x\n"));
    }

    #[test]
    fn there_is_a_nul_in_the_buffer_after_any_number_of_lines() {
        let buffer = leak(64);
        let mut end = 0;
        for count in 0..500 {
            end = append(
                buffer,
                end,
                format!("line {}\n", "z".repeat(count % 40)).as_bytes(),
            );
            assert_eq!(buffer.read_u8(end), 0);
            assert!(text(buffer).ends_with("z\n") || count % 40 == 0);
        }
    }

    #[test]
    fn a_line_longer_than_the_buffer_is_left_out() {
        let buffer = leak(8);
        assert_eq!(append(buffer, 0, b"12345678"), 0);
        assert_eq!(append(buffer, 0, b"1234567"), 7);
    }

    #[test]
    fn an_overlong_line_is_cut_and_still_ends() {
        let line = Line::new(format_args!("{}", "q".repeat(1000)));
        assert_eq!(line.as_bytes().len(), Line::LIMIT);
        assert_eq!(line.as_bytes().last(), Some(&b'\n'));
    }

    #[test]
    fn a_line_never_holds_a_nul() {
        assert_eq!(Line::new(format_args!("a\0b")).as_bytes(), b"a?b\n");
        assert_eq!(
            Line::new(format_args!("{}", Shown(b"\x1b[2Jok\0"))).as_bytes(),
            b"?[2Jok?\n"
        );
    }
}
