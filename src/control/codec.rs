//! From bytes to messages: each is ended by a NUL.
//!
//! What belongs here: framing and its limit, as a pure function of the bytes. What does not:
//! sockets, JSON.

use thiserror::Error;

/// The longest message, its NUL not counted.
pub const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// Why a stream of messages cannot be read further.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum CodecError {
    /// A message does not end within the limit.
    #[error("a message is longer than {MAX_MESSAGE_BYTES} bytes")]
    TooLong,
}

/// Splits a stream of bytes into messages.
#[derive(Default, Debug)]
pub struct Codec {
    partial: Vec<u8>,
}

impl Codec {
    /// Takes the next bytes of the stream and returns the messages that they complete, without
    /// their NULs. How the stream is cut into calls makes no difference.
    ///
    /// # Errors
    /// [`CodecError::TooLong`]; the stream is then of no use any more.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CodecError> {
        let mut messages = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == 0) {
            let (content, complete) = match piece.split_last() {
                Some((0, content)) => (content, true),
                _ => (piece, false),
            };
            if self.partial.len() + content.len() > MAX_MESSAGE_BYTES {
                return Err(CodecError::TooLong);
            }
            self.partial.extend_from_slice(content);
            if complete {
                messages.push(std::mem::take(&mut self.partial));
            }
        }
        Ok(messages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_of_the_limit_passes_and_one_more_byte_does_not() {
        let mut stream = vec![b'x'; MAX_MESSAGE_BYTES];
        stream.push(0);
        assert_eq!(
            Codec::default().push(&stream).unwrap()[0].len(),
            MAX_MESSAGE_BYTES
        );
        stream.insert(0, b'x');
        assert_eq!(Codec::default().push(&stream), Err(CodecError::TooLong));
    }

    proptest! {
        #[test]
        fn how_the_bytes_are_cut_makes_no_difference(
            stream in prop::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..300),
            cuts in prop::collection::vec(0usize..300, 0..10),
        ) {
            let whole = Codec::default().push(&stream).unwrap();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(stream.len())).collect();
            cuts.push(0);
            cuts.push(stream.len());
            cuts.sort_unstable();
            let mut codec = Codec::default();
            let mut pieces = Vec::new();
            for pair in cuts.windows(2) {
                pieces.extend(codec.push(&stream[pair[0]..pair[1]]).unwrap());
            }
            prop_assert_eq!(pieces, whole);
        }
    }
}
