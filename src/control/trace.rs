//! A piece of a trace, as the control socket tells it.
//!
//! What belongs here: from numbered bytes to text that can be shown, and the message's fields.
//! What does not: where the bytes come from.

use serde::{Deserialize, Serialize};

use crate::report::printable;
use crate::rproc::NamedTrace;

/// Bytes of one trace buffer in one answer, before they are made printable.
pub const MAX_TRACE_BYTES: usize = 16 << 10;

/// `TracePiece` of `io.rprocd.varlink`.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct TracePiece {
    /// The name of the trace: that of its buffer in the resource table, or `uart`.
    #[serde(default)]
    pub name: String,
    /// What the firmware wrote, printable.
    pub text: String,
    /// The number to ask for next.
    pub next: u64,
    /// The number of the first byte that the firmware has not written yet.
    pub end: u64,
    /// Bytes that nobody has kept, in front of this text.
    pub lost: u64,
    /// How often the firmware overwrote text unseen, in front of this text.
    pub overruns: u64,
    /// The incarnation that wrote the text; 0 if that is not known.
    #[serde(default)]
    pub incarnation: u32,
    /// When that was booted, in microseconds since 1970; 0 if that is not known.
    #[serde(default)]
    pub booted: u64,
}

impl TracePiece {
    /// A piece of a trace. The beginning of a character stays where it is, if more may follow.
    pub fn new(trace: NamedTrace) -> Self {
        let NamedTrace {
            name,
            text: piece,
            end,
        } = trace;
        // A piece that fills the answer is cut anywhere; one that does not and still is not the
        // last is in front of an overrun or of another incarnation, and nothing completes it.
        let complete = piece.next() < end && piece.bytes.len() < MAX_TRACE_BYTES;
        let (text, used) = printable(&piece.bytes, complete);
        // Without a step nothing is told: it will be asked for again.
        let stays = used == 0 && !piece.bytes.is_empty();
        Self {
            name,
            text,
            next: if stays {
                piece.first - piece.lost
            } else {
                piece.first + used as u64
            },
            end,
            lost: if stays { 0 } else { piece.lost },
            overruns: if stays { 0 } else { piece.overruns },
            incarnation: piece.incarnation,
            booted: piece.booted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rproc::TraceText;

    fn piece(bytes: &[u8], end: u64) -> TracePiece {
        let piece = TraceText {
            first: 100,
            bytes: bytes.to_vec(),
            lost: 7,
            overruns: 1,
            ..TraceText::default()
        };
        TracePiece::new(NamedTrace {
            name: "log".to_owned(),
            text: piece,
            end,
        })
    }

    #[test]
    fn half_a_character_is_asked_for_again_with_all_that_was_lost_in_front_of_it() {
        let whole = piece(b"a\xe2\x82", 103);
        assert_eq!((whole.text.as_str(), whole.next), ("a", 101));
        assert_eq!((whole.lost, whole.overruns), (7, 1));
        let half = piece(b"\xe2\x82", 102);
        assert_eq!((half.text.as_str(), half.next), ("", 93));
        assert_eq!((half.lost, half.overruns), (0, 0));
    }

    #[test]
    fn half_a_character_in_front_of_an_overrun_is_shown() {
        let half = piece(b"\xe2\x82", 200);
        assert_eq!((half.text.as_str(), half.next), ("\\xe2\\x82", 102));
    }

    #[test]
    fn a_full_answer_may_end_inside_a_character() {
        let mut bytes = vec![b'a'; MAX_TRACE_BYTES];
        bytes[MAX_TRACE_BYTES - 1] = 0xe2;
        assert_eq!(
            piece(&bytes, 1 << 20).next,
            100 + MAX_TRACE_BYTES as u64 - 1
        );
    }
}
