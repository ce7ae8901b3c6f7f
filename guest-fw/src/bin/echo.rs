//! Answers every message with its own payload: the image for benchmarks and first steps.

#![no_std]
#![no_main]

use rprocd_guest_fw::{Board, Endpoint, Full, Message, Outbox, Payload, Service, Turn, image};

struct Echo;

impl Service for Echo {
    #[inline(always)] // into the loop over the messages
    fn receive(&mut self, message: &Message, out: &mut Outbox<'_>) -> Turn {
        match out.reply(message, Payload::Shared(message.payload)) {
            Ok(()) => Turn::Done,
            Err(Full) => Turn::Later,
        }
    }
}

fn main(board: Board) -> ! {
    board.serve(&mut [Endpoint::new("rpmsg-raw", 1024, &mut Echo)])
}

image!("echo", main);
