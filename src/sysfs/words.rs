//! How Linux reads what is written into a file.
//!
//! What belongs here: from bytes to a word or a number. What does not: what it then does.

use rustix::io::Errno;

/// The bytes in front of the first NUL: where Linux's text ends.
fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Which of the words it is, as sysfs compares: whole, with or without one line feed.
pub fn whole<const N: usize>(bytes: &[u8], words: [&str; N]) -> Option<usize> {
    let text = text(bytes);
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    words.iter().position(|word| word.as_bytes() == text)
}

/// Which of the words it is, as these files of debugfs compare: the beginning of one is enough,
/// unless something ends it.
pub fn prefix<const N: usize>(bytes: &[u8], words: [&str; N]) -> Option<usize> {
    // A line feed becomes the NUL that ends the text, and is compared like any other byte.
    let (bytes, ended) = match bytes.strip_suffix(b"\n") {
        Some(bytes) => (bytes, true),
        None => (bytes, false),
    };
    let text = text(bytes);
    let ended = ended || text.len() < bytes.len();
    words.iter().position(|word| {
        let word = word.as_bytes();
        if ended {
            word == text
        } else {
            !text.is_empty() && word.starts_with(text)
        }
    })
}

/// An unsigned number of 32 bits: decimal, `0x` hexadecimal or `0` octal, with at most one plus
/// sign in front and one line feed behind.
///
/// # Errors
/// `EINVAL` if it is none, `ERANGE` if it is too large.
pub fn number(bytes: &[u8]) -> Result<u32, Errno> {
    let text = text(bytes);
    let text = text.strip_prefix(b"+").unwrap_or(text);
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let (digits, base) = match text {
        [b'0', b'x' | b'X', first, ..] if first.is_ascii_hexdigit() => (&text[2..], 16),
        [b'0', ..] => (text, 8),
        _ => (text, 10),
    };
    if digits.is_empty() {
        return Err(Errno::INVAL);
    }
    let mut value = 0_u64;
    let mut too_large = false;
    for digit in digits {
        let Some(digit) = char::from(*digit).to_digit(base) else {
            return Err(Errno::INVAL);
        };
        value = value * u64::from(base) + u64::from(digit);
        if value > u64::from(u32::MAX) {
            too_large = true;
            value = u64::from(u32::MAX);
        }
    }
    if too_large {
        return Err(Errno::RANGE);
    }
    u32::try_from(value).map_err(|_| Errno::RANGE)
}

/// A name: all in front of the first line feed.
pub fn line(bytes: &[u8]) -> &[u8] {
    text(bytes)
        .split(|byte| *byte == b'\n')
        .next()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: [&str; 3] = ["disabled", "enabled", "inline"];

    #[test]
    fn sysfs_wants_whole_words_and_tolerates_one_line_feed() {
        for (bytes, found) in [
            (&b"enabled"[..], Some(1)),
            (b"enabled\n", Some(1)),
            (b"disabled\n", Some(0)),
            (b"enabled\0junk", Some(1)),
            (b"enabled\n\n", None),
            (b"enabled ", None),
            (b" enabled", None),
            (b"enable", None),
            (b"Enabled", None),
            (b"", None),
            (b"\n", None),
            (b"\xff\xfe", None),
        ] {
            assert_eq!(whole(bytes, WORDS), found, "{bytes:?}");
        }
    }

    #[test]
    fn debugfs_takes_the_beginning_of_a_word_that_nothing_ends() {
        for (bytes, found) in [
            (&b"enabled"[..], Some(1)),
            (b"enabled\n", Some(1)),
            (b"e", Some(1)),
            (b"inl", Some(2)),
            (b"inline\0ab", Some(2)),
            (b"e\n", None),
            (b"enabledx", None),
            (b"enabled\n\n", None),
            (b"x", None),
            (b"", None),
            (b"\n", None),
            (b"\0", None),
        ] {
            assert_eq!(prefix(bytes, WORDS), found, "{bytes:?}");
        }
    }

    #[test]
    fn numbers_are_read_in_three_bases() {
        for (bytes, value) in [
            (&b"1"[..], 1),
            (b"1\n", 1),
            (b"+2\n", 2),
            (b"0", 0),
            (b"017", 15),
            (b"0x1F", 31),
            (b"4294967295\n", u32::MAX),
        ] {
            assert_eq!(number(bytes), Ok(value), "{bytes:?}");
        }
        for bytes in [
            &b""[..],
            b"\n",
            b"-1",
            b"1 ",
            b"1\n\n",
            b"one",
            b"0x",
            b"0xg",
            b"08",
            b"++1",
            b"99999999999x",
        ] {
            assert_eq!(number(bytes), Err(Errno::INVAL), "{bytes:?}");
        }
        for bytes in [
            &b"4294967296"[..],
            b"99999999999999999999999999",
            b"0x100000000",
        ] {
            assert_eq!(number(bytes), Err(Errno::RANGE), "{bytes:?}");
        }
    }

    #[test]
    fn a_name_ends_with_its_line() {
        assert_eq!(line(b"a.elf"), b"a.elf");
        assert_eq!(line(b"a.elf\nb.elf\n"), b"a.elf");
        assert_eq!(line(b"\na.elf"), b"");
    }
}
