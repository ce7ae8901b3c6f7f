//! A terminal that echoes: the far side of Linux's `rpmsg_tty`.
//!
//! Printable bytes come back as typed, a carriage return or line feed as both, and erasing erases
//! as far back as the line goes. There is no prompt: Linux does not say where its end is before its
//! first message, so nothing could be sent before somebody types.

use crate::{Full, Message, Outbox, Payload, Service, Turn};
use crate::{rpmsg, trace};

const BACKSPACE: u8 = 0x08;
const DELETE: u8 = 0x7F;

/// Bytes taken from a message at a time; each becomes three at most.
const PIECE: usize = rpmsg::MTU as usize / 3;

/// The terminal.
#[derive(Default)]
pub struct Terminal {
    /// Bytes of the unfinished message that are dealt with.
    done: u32,
    /// Characters in the line so far.
    column: u32,
    lines: u32,
}

impl Terminal {
    /// What Linux's driver looks for.
    pub const NAME: &'static str = "rpmsg-tty";

    /// What the terminal shows when `byte` is typed.
    fn typed(&mut self, byte: u8) -> &'static [u8] {
        match byte {
            b'\r' | b'\n' => {
                self.column = 0;
                self.lines = self.lines.wrapping_add(1);
                if self.lines.is_power_of_two() {
                    trace!("{} line(s) typed", self.lines);
                }
                b"\r\n"
            }
            BACKSPACE | DELETE if self.column > 0 => {
                self.column -= 1;
                b"\x08 \x08"
            }
            _ => b"",
        }
    }

    /// Fills `shown` with the echo of `typed`; returns how much of it is used.
    fn echo(&mut self, typed: &[u8], shown: &mut [u8]) -> usize {
        let mut len = 0;
        for byte in typed {
            // From 0x80 on it is a part of a character in UTF-8.
            if matches!(*byte, b'\t' | b' '..=b'~' | 0x80..) {
                shown[len] = *byte;
                len += 1;
                // The rest of a character takes no column of its own.
                if !matches!(*byte, 0x80..=0xBF) {
                    self.column = self.column.saturating_add(1);
                }
            } else {
                let echo = self.typed(*byte);
                shown[len..len + echo.len()].copy_from_slice(echo);
                len += echo.len();
            }
        }
        len
    }
}

impl Service for Terminal {
    fn receive(&mut self, message: &Message, out: &mut Outbox<'_>) -> Turn {
        while self.done < message.payload.len() {
            // Looked at before the bytes are, so that what was typed is acted on once.
            if !out.has_room() {
                return Turn::Later;
            }
            let mut typed = [0; PIECE];
            let count = message.payload.read_bytes(self.done, &mut typed);
            self.done += count as u32;
            let mut shown = [0; 3 * PIECE];
            let len = self.echo(&typed[..count], &mut shown);
            // Linux takes an empty message for an error.
            if len > 0 && out.reply(message, Payload::Bytes(&shown[..len])) == Err(Full) {
                return Turn::Later;
            }
        }
        self.done = 0;
        Turn::Done
    }

    fn driver_up(&mut self) {
        self.done = 0;
        self.column = 0;
    }
}
