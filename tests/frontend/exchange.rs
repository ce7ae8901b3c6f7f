//! Sends numbered messages to an endpoint that echoes, and checks every byte of every answer.
//!
//! What belongs here: what is sent, how many are in flight, and what must come back. What does
//! not: how messages travel. It never sleeps; it waits on the driver's calls, with a limit.

use std::time::{Duration, Instant};

use super::rpmsg::{BUFFER, HEADER, Header, PAYLOAD, RpmsgDriver, SendError};

/// How long nothing at all may happen.
const PATIENCE: Duration = Duration::from_secs(120);

/// The sizes of the payloads.
#[derive(Clone, Copy, Debug)]
pub enum Sizes {
    /// All the same.
    Fixed(usize),
    /// All from 0 to this one, in a scattered order.
    UpTo(usize),
}

impl Sizes {
    fn of(self, sequence: u64) -> usize {
        match self {
            Self::Fixed(size) => size,
            // 257 has no factor in common with 497, the number of legal sizes.
            Self::UpTo(largest) => (sequence.wrapping_mul(257) % (largest as u64 + 1)) as usize,
        }
    }
}

/// What an exchange cost.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// Messages that went there and came back.
    pub messages: u64,
    /// Bytes of payload, one way.
    pub bytes: u64,
    /// Kicks during the exchange.
    pub kicks: u64,
    /// Calls during the exchange.
    pub calls: u64,
    /// From the first message to the last answer.
    pub elapsed: Duration,
}

/// An exchange, which can be carried out in pieces.
pub struct Exchange {
    local: u32,
    remote: u32,
    count: u64,
    sizes: Sizes,
    in_flight: u64,
    sent: u64,
    received: u64,
    bytes: u64,
}

/// The bytes of a message: each depends on the message's number and on its own position.
pub fn fill(sequence: u64, payload: &mut [u8]) {
    for (position, chunk) in payload.chunks_mut(8).enumerate() {
        let mut word = sequence ^ ((position as u64) << 48);
        // Multiplications by odd numbers and shifts lose nothing, so different words stay so.
        word = word.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word ^= word >> 29;
        word = word.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word ^= word >> 32;
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
    }
}

impl Exchange {
    /// Plans an exchange with the endpoint `remote`.
    pub fn new(remote: u32, count: u64, sizes: Sizes, in_flight: u64) -> Self {
        let local = 0x400 + (count as u32 & 0xff);
        Self {
            local,
            remote,
            count,
            sizes,
            in_flight,
            sent: 0,
            received: 0,
            bytes: 0,
        }
    }

    /// Messages sent so far.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Answers received so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Sends as many as may be in flight, without waiting.
    pub fn send(&mut self, driver: &mut RpmsgDriver) {
        let mut payload = [0; PAYLOAD];
        while self.sent < self.count && self.sent - self.received < self.in_flight {
            let payload = &mut payload[..self.sizes.of(self.sent)];
            fill(self.sent, payload);
            match driver.send(self.local, self.remote, payload) {
                Ok(()) => self.sent += 1,
                Err(SendError::NoBuffer) => return,
                Err(SendError::TooLong) => panic!("a message of {} bytes", payload.len()),
            }
        }
    }

    /// Receives what is there, without waiting; how many.
    pub fn receive(&mut self, driver: &mut RpmsgDriver) -> u64 {
        let before = self.received;
        let mut bytes = [0; BUFFER];
        while self.received < self.count {
            let Some(header) = driver.recv_into(&mut bytes) else {
                break;
            };
            self.check(header, &bytes[HEADER..HEADER + header.length]);
            self.received += 1;
            self.bytes += header.length as u64;
        }
        self.received - before
    }

    fn check(&self, header: Header, payload: &[u8]) {
        let sequence = self.received;
        assert!(
            sequence < self.sent,
            "an answer came that nobody asked for, or one is doubled: {header:?}"
        );
        assert_eq!(
            (header.source, header.destination),
            (self.remote, self.local),
            "answer {sequence} has the wrong addresses"
        );
        let mut expected = [0; PAYLOAD];
        let expected = &mut expected[..self.sizes.of(sequence)];
        fill(sequence, expected);
        assert_eq!(
            payload.len(),
            expected.len(),
            "answer {sequence} has the wrong length: lost, doubled or out of order"
        );
        if payload == expected {
            return;
        }
        let different = expected
            .iter()
            .zip(payload)
            .position(|(right, it)| right != it);
        let at = different.unwrap_or_default();
        panic!(
            "answer {sequence} of {} bytes differs at byte {at}: {:#x} instead of {:#x}",
            expected.len(),
            payload[at],
            expected[at]
        );
    }

    /// Goes on until so many answers have come.
    pub fn advance(&mut self, driver: &mut RpmsgDriver, received: u64) {
        let goal = received.min(self.count);
        while self.received < goal {
            self.send(driver);
            if self.receive(driver) == 0 && !driver.wait(PATIENCE) {
                panic!(
                    "nothing came for {PATIENCE:?}: {} messages sent, {} answers received, {} \
                     transmit and {} receive buffers are with the device",
                    self.sent,
                    self.received,
                    driver.tx().in_flight(),
                    driver.rx().in_flight(),
                );
            }
        }
    }

    /// Goes on to the end.
    pub fn finish(&mut self, driver: &mut RpmsgDriver) {
        self.advance(driver, self.count);
        assert_eq!(driver.recv(), None, "an answer too many");
    }
}

/// A whole exchange: `count` messages to `remote` and back, `in_flight` at a time.
pub fn exchange(
    driver: &mut RpmsgDriver,
    remote: u32,
    count: u64,
    sizes: Sizes,
    in_flight: u64,
) -> Report {
    driver.take_calls();
    let (kicks, calls, start) = (driver.kicks(), driver.calls(), Instant::now());
    let mut exchange = Exchange::new(remote, count, sizes, in_flight);
    exchange.finish(driver);
    let elapsed = start.elapsed();
    driver.take_calls();
    Report {
        messages: exchange.received,
        bytes: exchange.bytes,
        kicks: driver.kicks() - kicks,
        calls: driver.calls() - calls,
        elapsed,
    }
}
