//! From bytes to messages, each a JSON object.
//!
//! What belongs here: framing and its limits, as a pure function of the bytes. What does not:
//! sockets, what the JSON says, and whether it is sound.
//!
//! Varlink ends a message with a NUL (varlink.org, "Message Format"). For those who have a shell
//! and no Varlink client, a line feed does too, where the braces are closed again; this is an
//! extension of ours. Neither means anything between two messages.

use thiserror::Error;

/// The longest message, what ends it not counted.
pub const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// How deep a message may nest objects and lists.
pub const MAX_DEPTH: usize = 32;

/// Why a stream of messages cannot be read further.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum CodecError {
    /// A message does not end within the limit.
    #[error("a message is longer than {MAX_MESSAGE_BYTES} bytes")]
    TooLong,
    /// A message has too many brackets in brackets.
    #[error("a message nests objects and lists more than {MAX_DEPTH} deep")]
    TooDeep,
}

/// What ended a message; its answers are ended by the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// A NUL, as Varlink has it.
    Nul,
    /// A line feed.
    LineFeed,
}

impl End {
    /// The byte to put behind an answer.
    pub fn byte(self) -> u8 {
        match self {
            Self::Nul => 0,
            Self::LineFeed => b'\n',
        }
    }
}

/// A whole message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// Its text, without what ended it.
    pub text: Vec<u8>,
    /// What ended it.
    pub end: End,
}

/// Splits a stream of bytes into messages.
#[derive(Default, Debug)]
pub struct Codec {
    partial: Vec<u8>,
    depth: usize,
    in_string: bool,
    /// The last byte was a backslash in a string.
    escaped: bool,
}

impl Codec {
    /// Takes the next bytes of the stream and adds the messages that they complete to `messages`.
    /// How the stream is cut into calls makes no difference.
    ///
    /// # Errors
    /// [`CodecError`]; the stream is then of no use any more. What was complete before has been
    /// added.
    pub fn push(
        &mut self,
        bytes: &[u8],
        messages: &mut impl Extend<Message>,
    ) -> Result<(), CodecError> {
        for byte in bytes {
            if let Some(end) = self.ends(*byte) {
                let text = std::mem::take(self).partial;
                messages.extend([Message { text, end }]);
            } else if self.partial.is_empty() && byte.is_ascii_whitespace() || *byte == 0 {
                // Between two messages.
            } else {
                self.follow(*byte)?;
            }
        }
        Ok(())
    }

    /// Is there the beginning of a message whose end has not come?
    pub fn is_within_message(&self) -> bool {
        !self.partial.is_empty()
    }

    /// Does this byte end the message that has begun?
    fn ends(&self, byte: u8) -> Option<End> {
        match byte {
            _ if self.partial.is_empty() => None,
            0 => Some(End::Nul),
            // In a string it is a mistake, and nothing that comes later would mend it.
            b'\n' if self.depth == 0 || self.in_string => Some(End::LineFeed),
            _ => None,
        }
    }

    /// Adds a byte to the message, and follows its brackets.
    fn follow(&mut self, byte: u8) -> Result<(), CodecError> {
        if self.partial.len() == MAX_MESSAGE_BYTES {
            return Err(CodecError::TooLong);
        }
        self.partial.push(byte);
        match byte {
            _ if std::mem::take(&mut self.escaped) => {}
            b'\\' => self.escaped = self.in_string,
            b'"' => self.in_string = !self.in_string,
            b'{' | b'[' if !self.in_string => {
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    return Err(CodecError::TooDeep);
                }
            }
            // One too many is the JSON parser's to refuse.
            b'}' | b']' if !self.in_string => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(text: &str, end: End) -> Message {
        let text = text.as_bytes().to_vec();
        Message { text, end }
    }

    /// What a stream brings, and how it ends.
    fn read(stream: &[u8]) -> (Vec<Message>, Result<(), CodecError>) {
        let mut messages = Vec::new();
        let ended = Codec::default().push(stream, &mut messages);
        (messages, ended)
    }

    fn messages(stream: &str) -> Vec<Message> {
        let (messages, ended) = read(stream.as_bytes());
        ended.unwrap();
        messages
    }

    #[test]
    fn a_message_of_the_limit_passes_and_one_more_byte_does_not() {
        for end in [0, b'\n'] {
            let mut stream = vec![b'x'; MAX_MESSAGE_BYTES];
            stream.push(end);
            let (whole, ended) = read(&stream);
            assert_eq!((whole[0].text.len(), ended), (MAX_MESSAGE_BYTES, Ok(())));
            stream.insert(0, b'x');
            assert_eq!(read(&stream), (vec![], Err(CodecError::TooLong)));
        }
    }

    #[test]
    fn a_message_of_the_greatest_depth_passes_and_one_more_does_not() {
        let nested = |depth| "[".repeat(depth) + &"]".repeat(depth) + "\n";
        assert_eq!(messages(&nested(MAX_DEPTH)).len(), 1);
        assert_eq!(messages(&nested(MAX_DEPTH).repeat(2)).len(), 2);
        let deeper = format!("{{}}\n{}", nested(MAX_DEPTH + 1));
        let before = vec![message("{}", End::LineFeed)];
        assert_eq!(read(deeper.as_bytes()), (before, Err(CodecError::TooDeep)));
        let quoted = format!("{{\"a\": \"{}\"}}\0", "{[".repeat(MAX_DEPTH));
        assert_eq!(messages(&quoted).len(), 1);
    }

    #[test]
    fn a_line_feed_ends_a_message_where_its_braces_are_closed() {
        assert_eq!(
            messages("{\"a\":\n 1}\n{}\n"),
            [
                message("{\"a\":\n 1}", End::LineFeed),
                message("{}", End::LineFeed)
            ]
        );
        // What no JSON parser takes is handed to one as soon as it is plain.
        assert_eq!(messages("hello\n"), [message("hello", End::LineFeed)]);
        assert_eq!(messages("{\"a\n"), [message("{\"a", End::LineFeed)]);
    }

    #[test]
    fn a_nul_ends_whatever_has_begun() {
        assert_eq!(
            messages("{\"a\": \"\\\"{\"}\0{\"b\0"),
            [
                message("{\"a\": \"\\\"{\"}", End::Nul),
                message("{\"b", End::Nul)
            ]
        );
    }

    #[test]
    fn between_two_messages_neither_means_anything() {
        assert_eq!(messages("\0\n\r\n \t\0"), []);
        let expected = [message("{}", End::Nul), message("{}", End::LineFeed)];
        assert_eq!(messages("\n{}\0\n\0{}\n"), expected);
    }

    #[test]
    fn a_message_that_has_begun_is_known_to() {
        let mut codec = Codec::default();
        for (bytes, within) in [("\n", false), ("{", true), ("}", true), ("\n", false)] {
            codec.push(bytes.as_bytes(), &mut Vec::new()).unwrap();
            assert_eq!(codec.is_within_message(), within, "after {bytes:?}");
        }
    }

    /// Bytes that mean something here, more often than others.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let special = prop::sample::select(b"\0\n\"\\{}[] ".to_vec());
        prop::collection::vec(prop_oneof![special, any::<u8>()], 0..300)
    }

    proptest! {
        #[test]
        fn how_the_bytes_are_cut_makes_no_difference(
            stream in bytes(),
            cuts in prop::collection::vec(0usize..300, 0..10),
        ) {
            let whole = read(&stream);
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(stream.len())).collect();
            cuts.push(0);
            cuts.push(stream.len());
            cuts.sort_unstable();
            let mut codec = Codec::default();
            let mut messages = Vec::new();
            let ended = cuts
                .windows(2)
                .try_for_each(|pair| codec.push(&stream[pair[0]..pair[1]], &mut messages));
            prop_assert_eq!((messages, ended), whole);
        }

        #[test]
        fn what_is_between_the_ends_is_all_there_and_in_order(stream in bytes()) {
            let mut codec = Codec::default();
            let mut whole = Vec::new();
            prop_assume!(codec.push(&stream, &mut whole).is_ok());
            let kept = |bytes: &[u8]| -> Vec<u8> {
                bytes.iter().copied().filter(|it| *it != 0 && !it.is_ascii_whitespace()).collect()
            };
            let mut told: Vec<u8> = whole.iter().flat_map(|it| kept(&it.text)).collect();
            told.extend(kept(&codec.partial));
            prop_assert_eq!(told, kept(&stream));
        }
    }
}
