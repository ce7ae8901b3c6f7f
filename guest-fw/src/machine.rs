//! The board as an image sees it: brought up, with a bus to serve.
//!
//! Here registers, trace and bus come together; how each works belongs to its own module.
//!
//! # Waking without losing a kick
//! Interrupts are never taken. The mailbox's line goes through the interrupt controller to the
//! hart, where it ends a wait. After waking: clear the mailbox, look at the rings. A kick that
//! arrives after the clearing raises the line again and ends the next wait at once; one that
//! arrives before it is in the rings that are looked at. The source is never claimed: the line is
//! what is waited for, and it falls with the clearing.

#![allow(unsafe_code)]

use core::fmt;

use crate::board::ram;
use crate::bus::{Bus, Endpoint, Host};
use crate::layout;
use crate::memory::{Copies, Span, Window};
use crate::registers::{copier, hart, mailbox, plic};
use crate::start::probe;
use crate::table::VdevEntry;
use crate::trace;

/// The board, brought up.
pub struct Board {
    incarnation: Option<u32>,
}

impl Board {
    /// Finds out where it is and says so. Called by [`image!`](crate::image!).
    pub fn bring_up(name: &str, version: &str) -> Self {
        let incarnation = mailbox::exists().then(mailbox::incarnation);
        match incarnation {
            Some(number) => trace::write(format_args!("{name} {version}, incarnation {number}")),
            None => trace::alarm(format_args!("{name} {version}, no rprocd board")),
        }
        Self { incarnation }
    }

    /// The number of this boot; nothing on a board that is not rprocd's.
    pub fn incarnation(&self) -> Option<u32> {
        self.incarnation
    }

    /// Serves the endpoints for ever. Uses no time while there is nothing to do.
    pub fn serve<'a>(self, endpoints: &'a mut [Endpoint<'a>]) -> ! {
        if self.incarnation.is_none() {
            trace::alarm(format_args!("no rprocd mailbox on this board; waiting"));
            hart::wake_on_nothing();
            loop {
                hart::wait();
            }
        }
        let surroundings = Surroundings {
            copier: copier::exists(),
        };
        let mut bus = Bus::new(
            VdevEntry::of_image(),
            shared_ram(),
            endpoints,
            &surroundings,
        );
        mailbox::enable_all();
        plic::enable_mailbox();
        hart::wake_on_external();
        loop {
            bus.poll();
            wait_for_kick();
        }
    }
}

/// The RAM beyond the image's own carveout: all that the host can place rings and buffers in.
///
/// No register says how much RAM there is, so it is tried out, by halving: RAM is one piece.
fn shared_ram() -> Window {
    const PAGE: u32 = 4096;
    let first = layout::carveout_end();
    // RAM ends after `there` pages at least, and not after `not_there` of them.
    let (mut there, mut not_there) = ((first - ram::BASE) / PAGE, (u32::MAX - ram::BASE) / PAGE);
    while not_there - there > 1 {
        let middle = there + (not_there - there) / 2;
        match probe(ram::BASE + (middle - 1) * PAGE) {
            Some(_) => there = middle,
            None => not_there = middle,
        }
    }
    let len = ram::BASE + there * PAGE - first;
    trace::write(format_args!(
        "{len:#x} bytes of RAM from {first:#010x} are the host's to use"
    ));
    let bytes = core::ptr::with_exposed_provenance_mut(first as usize);
    // SAFETY: RAM to its end, as was just tried out. The linker script places nothing there and
    // there is no heap, so no reference ever covers it; the address is a multiple of 4.
    Window::new(unsafe { Span::new(bytes, len) }, first)
}

/// Waits until the host has kicked, and takes all kicks.
fn wait_for_kick() {
    loop {
        hart::wait();
        if mailbox::take() {
            return;
        }
    }
}

struct Surroundings {
    copier: bool,
}

impl Host for Surroundings {
    fn kick(&self, notify_id: u32) {
        mailbox::kick(notify_id);
    }

    fn copy(&self, copies: &mut Copies) {
        // Spans are RAM and no longer than a ring's buffers, so a copier has no reason to refuse.
        if !(self.copier && copier::make(copies)) {
            copies.make();
        }
    }

    fn trace(&self, text: fmt::Arguments<'_>) {
        trace::write(text);
    }
}
