//! How what happened becomes text for people: errors, and what a firmware wrote.
//!
//! What belongs here: those two printers. An error's own text never repeats its cause.

use std::error::Error;
use std::fmt::Write;

/// The error and its causes in one line (more where a cause has more): `cannot X: because Y`.
pub fn sentence(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string cannot fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

/// Text of a firmware, such that a terminal shows it and does nothing else.
///
/// What UTF-8 has to show, line feeds and tabs stay as they are; a carriage return in front of a
/// line feed is left out. All else is shown by its number: bytes that are no UTF-8 and control
/// characters of ASCII as `\x1b`, characters that a reader would not see or that change the
/// order of others (C1, bidirectional controls, marks without a width)
/// as `\u{202e}`. A backslash stays too, so the text cannot be turned back into the bytes.
///
/// Returns the text and how many of the bytes it stands for: the end of `bytes` may be the
/// beginning of a character, or a carriage return before a line feed that is still to come. These
/// (3 bytes at most) are left for the next time, unless `ends` says that nothing comes after
/// them.
pub fn printable(bytes: &[u8], ends: bool) -> (String, usize) {
    let mut text = String::with_capacity(bytes.len());
    let mut used = 0;
    for chunk in bytes.utf8_chunks() {
        let mut characters = chunk.valid().chars().peekable();
        while let Some(character) = characters.next() {
            let at_end = characters.peek().is_none() && chunk.invalid().is_empty();
            if character == '\r' {
                let last = at_end && used + 1 == bytes.len();
                if last && !ends {
                    return (text, used);
                }
                if characters.peek() == Some(&'\n') {
                    used += 1;
                    continue;
                }
            }
            used += character.len_utf8();
            match character {
                '\n' | '\t' => text.push(character),
                _ if character.is_ascii_control() => {
                    let _ = write!(text, "\\x{:02x}", u32::from(character));
                }
                _ if is_invisible(character) => {
                    let _ = write!(text, "\\u{{{:x}}}", u32::from(character));
                }
                _ => text.push(character),
            }
        }
        let invalid = chunk.invalid();
        let is_torn = used + invalid.len() == bytes.len()
            && std::str::from_utf8(invalid).is_err_and(|cause| cause.error_len().is_none());
        if is_torn && !ends {
            return (text, used);
        }
        used += invalid.len();
        for byte in invalid {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    (text, used)
}

/// Whether a character is not seen, or decides how others are (Unicode's categories Cc, Zl and
/// Zp, and those of Cf that are used to hide or turn text).
fn is_invisible(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn causes_follow_what_they_cause() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read the manual")]
        struct Outer(#[source] std::fmt::Error);
        let text = sentence(&Outer(std::fmt::Error));
        assert_eq!(text, format!("cannot read the manual: {}", std::fmt::Error));
    }

    #[test]
    fn text_stays_and_what_acts_on_a_terminal_is_shown() {
        let shown = |bytes: &[u8]| printable(bytes, true).0;
        assert_eq!(
            shown("größer\tals 2 µs\r\n日本 🚀\\".as_bytes()),
            "größer\tals 2 µs\n日本 🚀\\"
        );
        assert_eq!(
            shown(b"\x1b[2J\x07\0\x7f\r-\r\r\n"),
            "\\x1b[2J\\x07\\x00\\x7f\\x0d-\\x0d\n"
        );
        assert_eq!(
            shown(b"\xff-\xc3-\xe2\x82-\xe2\x82"),
            "\\xff-\\xc3-\\xe2\\x82-\\xe2\\x82"
        );
        assert_eq!(
            shown("\u{9b}2J \u{202e}abc\u{2069} \u{200b}\u{2028}\u{feff}".as_bytes()),
            "\\u{9b}2J \\u{202e}abc\\u{2069} \\u{200b}\\u{2028}\\u{feff}"
        );
        // Overlong, a surrogate, past the end of Unicode.
        assert_eq!(
            shown(b"\xc0\x9b\xed\xa0\x80\xf4\x90\x80\x80"),
            "\\xc0\\x9b\\xed\\xa0\\x80\\xf4\\x90\\x80\\x80"
        );
    }

    #[test]
    fn half_a_character_is_left_for_the_next_time() {
        assert_eq!(printable(b"a\xe2\x82", false), ("a".into(), 1));
        assert_eq!(printable(b"a\xe2\x82", true), ("a\\xe2\\x82".into(), 3));
        assert_eq!(printable(b"a\r", false), ("a".into(), 1));
        assert_eq!(printable(b"a\r", true), ("a\\x0d".into(), 2));
        assert_eq!(printable(b"a\xff", false), ("a\\xff".into(), 2));
    }

    proptest! {
        #[test]
        fn how_text_is_cut_makes_no_difference_and_nothing_acts_on_a_terminal(
            pieces in prop::collection::vec(
                prop_oneof![
                    "\\PC{0,4}".prop_map(String::into_bytes),
                    prop::collection::vec(any::<u8>(), 0..6),
                    Just(b"\r\n".to_vec()),
                    Just("\u{202e}".as_bytes().to_vec()),
                ],
                0..12,
            ),
            step in 4usize..9,
        ) {
            let bytes = pieces.concat();
            let (whole, used) = printable(&bytes, true);
            prop_assert_eq!(used, bytes.len());
            prop_assert!(whole.chars().all(|c| c == '\n' || c == '\t' || !is_invisible(c)));
            let (mut text, mut at) = (String::new(), 0);
            while at < bytes.len() {
                let end = (at + step).min(bytes.len());
                let (more, used) = printable(&bytes[at..end], end == bytes.len());
                prop_assert!(used > 0 && used + 3 >= end - at);
                text += &more;
                at += used;
            }
            prop_assert_eq!(text, whole);
        }
    }
}
