//! The far side of Linux's `rpmsg_client_sample`.
//!
//! The sample greets, and greets again for each answer, a hundred times by default. What the
//! answers say is of no matter to it.

#![no_std]
#![no_main]

use rprocd_guest_fw::{Board, Endpoint, Full, Message, Outbox, Payload, Service, Turn};
use rprocd_guest_fw::{image, trace};

const ANSWER: &[u8] = b"hello from the core!";
/// Messages that make a run of the sample, unless told otherwise.
const RUN: u32 = 100;

struct Sample {
    answered: u32,
}

impl Service for Sample {
    fn receive(&mut self, message: &Message, out: &mut Outbox<'_>) -> Turn {
        if out.reply(message, Payload::Bytes(ANSWER)) == Err(Full) {
            return Turn::Later;
        }
        self.answered = self.answered.wrapping_add(1);
        if self.answered == 1 {
            trace!("the sample at {} greets", message.src);
        } else if self.answered.is_multiple_of(RUN) {
            trace!("{} greetings answered", self.answered);
        }
        Turn::Done
    }

    fn driver_up(&mut self) {
        self.answered = 0;
    }
}

fn main(board: Board) -> ! {
    let mut sample = Sample { answered: 0 };
    board.serve(&mut [Endpoint::new("rpmsg-client-sample", 1024, &mut sample)])
}

image!("client-sample", main);
