//! The trace: lines for people, in memory that the host reads while the core runs.
//!
//! Here is the one trace buffer and where its end is; how a line gets in is [`crate::text`]'s
//! business. Use [`trace!`](crate::trace!) for what an operator wants to read and
//! [`alarm`] for last words, which go to the serial port as well. Nothing on the path of a
//! message may write a line for each message.

#![allow(unsafe_code)]

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::layout;
use crate::memory::Span;
use crate::registers::{clint, uart};
use crate::text::{self, Line};

/// The end of the text. Atomic only because statics must be: there is one hart, and a trap in the
/// middle of a line starts its own over the unfinished one.
static END: AtomicU32 = AtomicU32::new(0);

fn buffer() -> Span {
    let (first, len) = layout::trace();
    let first = core::ptr::with_exposed_provenance_mut(first as usize);
    // SAFETY: the linker script keeps this part of RAM free of everything else, so it is valid for
    // ever and no reference covers it; the address is a multiple of 4, as the script asserts of the sizes before it.
    unsafe { Span::new(first, len) }
}

/// Writes a line, with the time in seconds in front.
pub fn write(text: fmt::Arguments<'_>) {
    put(&line(text));
}

/// Writes a line to the trace and to the serial port.
pub fn alarm(text: fmt::Arguments<'_>) {
    let line = line(text);
    put(&line);
    uart::write(line.as_bytes());
}

fn line(text: fmt::Arguments<'_>) -> Line {
    let now = clint::microseconds();
    Line::new(format_args!(
        "[{:5}.{:06}] {text}",
        now / 1_000_000,
        now % 1_000_000
    ))
}

fn put(line: &Line) {
    let end = text::append(buffer(), END.load(Ordering::Relaxed), line.as_bytes());
    END.store(end, Ordering::Relaxed);
}

/// Writes a line to the trace; takes what `format_args!` takes.
#[macro_export]
macro_rules! trace {
    ($($text:tt)*) => { $crate::trace::write(format_args!($($text)*)) };
}
