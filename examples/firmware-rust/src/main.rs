//! Firmware for a core of rprocd: it answers each message with its text in capitals.

#![no_std]
#![no_main]

use rprocd_guest_fw::{Board, Endpoint, Full, Message, Outbox, Payload, Service, Turn};
use rprocd_guest_fw::{image, rpmsg, trace};

#[derive(Default)]
struct Capitals {
    answered: u32,
}

impl Service for Capitals {
    fn receive(&mut self, message: &Message, out: &mut Outbox<'_>) -> Turn {
        let mut text = [0; rpmsg::MTU as usize];
        let len = message.payload.read_bytes(0, &mut text);
        text[..len].make_ascii_uppercase();
        match out.reply(message, Payload::Bytes(&text[..len])) {
            Ok(()) => {
                self.answered = self.answered.wrapping_add(1);
                // Not for each message: a guest may send very many.
                if self.answered.is_power_of_two() {
                    trace!("{} message(s) answered", self.answered);
                }
                Turn::Done
            }
            // All buffers for answers are in use. The message comes again when one is free.
            Err(Full) => Turn::Later,
        }
    }
}

fn main(board: Board) -> ! {
    // Linux makes a device node, /dev/rpmsg0, of what has the name rpmsg-raw.
    board.serve(&mut [Endpoint::new("rpmsg-raw", 1024, &mut Capitals::default())])
}

image!("my-firmware", main);
