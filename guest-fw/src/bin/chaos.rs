//! Dies on demand: for tests of what the host and the guest's drivers make of it.
//!
//! It announces a terminal and the client sample's channel beside its own, so that three drivers of
//! Linux hold one core when it dies.
//!
//! A message to its own channel (or, on a board without a mailbox, a line on the serial port) is
//! one command. Nothing deadly happens, and no watchdog runs, before one comes.

#![no_std]
#![no_main]

use core::fmt::Write;

use rprocd_guest_fw::registers::{finisher, uart, watchdog};
use rprocd_guest_fw::services::{Sample, Terminal};
use rprocd_guest_fw::text::{Line, Shown};
use rprocd_guest_fw::{Board, Endpoint, Full, Message, Outbox, Payload, Service, Turn};
use rprocd_guest_fw::{image, misbehave, trace};

const HELP: &str = "commands: ping, incarnation, trace-flood N, illegal, wild-store, hang, \
                    stack-overflow, panic, exit";

/// How long `hang` lasts before the watchdog bites.
const HANG_MS: u32 = 200;

/// What to do after the answer, if there is one.
#[derive(Clone, Copy)]
enum Deed {
    Illegal,
    WildStore,
    Hang,
    StackOverflow,
    Panic,
    Exit,
}

struct Chaos {
    incarnation: Option<u32>,
}

impl Chaos {
    /// Acts on `command`; returns the answer. `before` runs before anything that cannot be
    /// returned from.
    fn act(&self, command: &[u8], before: impl FnOnce()) -> Text {
        let mut words = command.trim_ascii().splitn(2, |byte| *byte == b' ');
        let (verb, rest) = (
            words.next().unwrap_or_default(),
            words.next().unwrap_or_default(),
        );
        let deed = match verb {
            b"ping" => return Text::new("pong"),
            b"incarnation" => {
                let mut text = Text::new("");
                // A number always fits.
                let _ = write!(text, "{}", self.incarnation.unwrap_or(0));
                return text;
            }
            b"trace-flood" => return trace_flood(rest),
            b"illegal" => Deed::Illegal,
            b"wild-store" => Deed::WildStore,
            b"hang" => Deed::Hang,
            b"stack-overflow" => Deed::StackOverflow,
            b"panic" => Deed::Panic,
            b"exit" => Deed::Exit,
            _ => return Text::new(HELP),
        };
        trace!("as told: {}", Shown(verb));
        before();
        deed.perform();
        Text::new("survived")
    }
}

impl Deed {
    fn perform(self) {
        match self {
            Self::Illegal => misbehave::illegal_instruction(),
            Self::WildStore => misbehave::wild_store(),
            Self::Hang => {
                watchdog::arm(HANG_MS);
                misbehave::hang()
            }
            Self::StackOverflow => {
                misbehave::overflow_stack(0);
            }
            Self::Panic => panic!("as told"),
            Self::Exit => finisher::pass(),
        }
    }
}

fn trace_flood(count: &[u8]) -> Text {
    let count = core::str::from_utf8(count)
        .ok()
        .and_then(|text| text.trim().parse::<u32>().ok());
    let Some(count) = count else {
        return Text::new("trace-flood takes a number of lines");
    };
    for number in 1..=count {
        trace!("flood {number} of {count}");
    }
    Text::new("flooded")
}

/// A short answer.
struct Text {
    bytes: [u8; Line::LIMIT],
    len: usize,
}

impl Text {
    fn new(text: &str) -> Self {
        let mut new = Self {
            bytes: [0; Line::LIMIT],
            len: 0,
        };
        // All texts here fit.
        let _ = new.write_str(text);
        new
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let place = self.bytes.get_mut(self.len..self.len + text.len());
        place
            .ok_or(core::fmt::Error)?
            .copy_from_slice(text.as_bytes());
        self.len += text.len();
        Ok(())
    }
}

impl Service for Chaos {
    fn receive(&mut self, message: &Message, out: &mut Outbox<'_>) -> Turn {
        let mut command = [0; 64];
        let len = message.payload.read_bytes(0, &mut command);
        // Earlier answers go out first: who asked for those is not to blame.
        let answer = self.act(&command[..len], || out.flush());
        match out.reply(message, Payload::Bytes(answer.as_bytes())) {
            Ok(()) => Turn::Done,
            Err(Full) => Turn::Later,
        }
    }
}

/// Takes commands from the serial port.
fn shell(chaos: &Chaos) -> ! {
    uart::write(b"no rprocd mailbox on this board; commands come from the serial port\n");
    loop {
        let mut command = [0; 64];
        let mut len = 0;
        loop {
            let byte = uart::read();
            if matches!(byte, b'\r' | b'\n') {
                break;
            }
            if let Some(place) = command.get_mut(len) {
                *place = byte;
                len += 1;
            }
        }
        if len > 0 {
            uart::write(chaos.act(&command[..len], || ()).as_bytes());
            uart::write(b"\n");
        }
    }
}

fn main(board: Board) -> ! {
    let mut chaos = Chaos {
        incarnation: board.incarnation(),
    };
    if chaos.incarnation.is_none() {
        shell(&chaos);
    }
    let (mut terminal, mut sample) = (Terminal::default(), Sample::default());
    board.serve(&mut [
        Endpoint::new("rpmsg-raw", 1024, &mut chaos),
        Endpoint::new(Terminal::NAME, 1025, &mut terminal),
        Endpoint::new(Sample::NAME, 1026, &mut sample),
    ])
}

image!("chaos", main);
