//! The far side of Linux's `rpmsg_client_sample`.
//!
//! The sample greets, and greets again for each answer, a hundred times by default. What the
//! answers say is of no matter to it.

use crate::trace;
use crate::{Full, Message, Outbox, Payload, Service, Turn};

const ANSWER: &[u8] = b"hello from the core!";
/// Messages that make a run of the sample, unless told otherwise.
const RUN: u32 = 100;

/// Who answers it.
#[derive(Default)]
pub struct Sample {
    answered: u32,
}

impl Sample {
    /// What Linux's driver looks for.
    pub const NAME: &'static str = "rpmsg-client-sample";
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
