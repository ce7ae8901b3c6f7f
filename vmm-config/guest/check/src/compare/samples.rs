//! The messages of a comparison: numbered, each with a content of its own, and cheap to make and
//! to check: what a message costs must be the way and not us.

use anyhow::{Result, ensure};

use super::{IN_FLIGHT, MESSAGE};
use crate::exchange::fill;

/// More than are ever on their way: each of those has another content.
const KINDS: u64 = 2 * IN_FLIGHT;
const WORD: usize = size_of::<u64>();

/// What was sent, and what is expected.
pub struct Samples {
    kinds: Vec<[u8; MESSAGE]>,
    sent: u64,
    received: u64,
}

impl Samples {
    pub fn new() -> Self {
        let kinds = (0..KINDS).map(|number| {
            let mut message = [0; MESSAGE];
            fill(&mut message, number);
            message
        });
        Self {
            kinds: kinds.collect(),
            sent: 0,
            received: 0,
        }
    }

    pub fn received(&self) -> u64 {
        self.received
    }

    pub fn in_flight(&self) -> u64 {
        self.sent - self.received
    }

    /// The next message to be sent.
    pub fn next(&mut self) -> &[u8; MESSAGE] {
        let number = self.sent;
        self.sent += 1;
        self.message(number)
    }

    /// The last one was not sent after all.
    pub fn take_back(&mut self) {
        self.sent -= 1;
    }

    /// The content that belongs to `number`, with the number in it.
    fn message(&mut self, number: u64) -> &[u8; MESSAGE] {
        let message = &mut self.kinds[(number % KINDS) as usize];
        message[..WORD].copy_from_slice(&number.to_le_bytes());
        message
    }

    /// Checks what came back: the oldest message that has no answer, all of it.
    pub fn check(&mut self, answer: &[u8]) -> Result<()> {
        let number = self.received;
        ensure!(self.in_flight() > 0, "an answer that nobody asked for");
        ensure!(
            answer.len() == MESSAGE,
            "message {number}: {MESSAGE} bytes were sent, {} came back",
            answer.len()
        );
        ensure!(
            same(self.message(number), answer),
            "message {number} came back changed, or not in its turn"
        );
        self.received += 1;
        Ok(())
    }
}

/// As `a == b`, eight bytes at a time: musl compares byte by byte.
fn same(a: &[u8; MESSAGE], b: &[u8]) -> bool {
    const { assert!(MESSAGE.is_multiple_of(WORD)) };
    let (a, _) = a.as_chunks::<WORD>();
    let (b, _) = b.as_chunks::<WORD>();
    let words = a.iter().zip(b);
    let difference = words.fold(0, |difference, (a, b)| {
        difference | (u64::from_ne_bytes(*a) ^ u64::from_ne_bytes(*b))
    });
    a.len() == b.len() && difference == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_must_be_the_oldest_message_and_whole() {
        let mut samples = Samples::new();
        let first = *samples.next();
        let second = *samples.next();
        assert!(samples.check(&second).is_err(), "out of order");
        assert!(samples.check(&first[..8]).is_err(), "short");
        for at in [0, 8, MESSAGE - 1] {
            let mut wrong = first;
            wrong[at] ^= 0x80;
            assert!(samples.check(&wrong).is_err(), "byte {at}");
        }
        samples.check(&first).unwrap();
        samples.check(&second).unwrap();
        assert!(samples.check(&second).is_err(), "one too many");
        assert_eq!((samples.in_flight(), samples.received()), (0, 2));
    }
}
