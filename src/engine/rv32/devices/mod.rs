//! The board's devices, behind one address decoder.
//!
//! What belongs here: everything an access outside RAM can reach. What does not: the hart, and
//! the decision what a report of the firmware means for the core ([`Effect`] is handed up).

mod clint;
mod copier;
mod mailbox;
mod plic;
mod uart;
mod watchdog;

use std::time::{Duration, Instant};

use clint::Clint;
use copier::Copier;
use mailbox::Mailbox;
use plic::Plic;
use uart::{Transmitted, Uart};
use watchdog::Watchdog;

use super::board;
use super::hart::{MEI, MTI};
use super::time::Time;
use crate::engine::{Console, NotifyId, NotifySet};
use crate::memory::Ram;

/// The size of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Width {
    Byte,
    Half,
    Word,
}

impl Width {
    pub(in crate::engine::rv32) fn bytes(self) -> u32 {
        match self {
            Self::Byte => 1,
            Self::Half => 2,
            Self::Word => 4,
        }
    }
}

/// What a store means for the core as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Effect {
    None,
    PowerOff,
    /// The finisher's FAIL, with its code.
    Fail(u16),
    Reset,
    /// The mailbox's FAULT.
    Fault {
        value: u32,
        address: u32,
    },
}

/// All devices of one incarnation, and what was transmitted.
pub(super) struct Devices {
    clint: Clint,
    plic: Plic,
    uart: Uart,
    mailbox: Mailbox,
    watchdog: Watchdog,
    copier: Copier,
    transmitted: Transmitted,
}

/// Which device answers at an address, and at which offset.
enum Place {
    Finisher(u32),
    Clint(u32),
    Plic(u32),
    Uart(u32),
    Mailbox(u32),
    Watchdog(u32),
    Copier(u32),
}

fn place(address: u32) -> Option<Place> {
    let within = |base: u32, size: u32| {
        let offset = address.wrapping_sub(base);
        (offset < size).then_some(offset)
    };
    use board::{clint, copier, finisher, mailbox, plic, uart, watchdog};
    None.or_else(|| within(mailbox::BASE, mailbox::SIZE).map(Place::Mailbox))
        .or_else(|| within(copier::BASE, copier::SIZE).map(Place::Copier))
        .or_else(|| within(plic::BASE, plic::SIZE).map(Place::Plic))
        .or_else(|| within(clint::BASE, clint::SIZE).map(Place::Clint))
        .or_else(|| within(watchdog::BASE, watchdog::SIZE).map(Place::Watchdog))
        .or_else(|| within(uart::BASE, uart::SIZE).map(Place::Uart))
        .or_else(|| within(finisher::BASE, finisher::SIZE).map(Place::Finisher))
}

/// A device's registers: its name, its first byte and its bytes.
pub(super) struct Window {
    pub name: &'static str,
    pub base: u32,
    pub size: u32,
}

impl Window {
    const fn new(name: &'static str, base: u32, size: u32) -> Self {
        Self { name, base, size }
    }
}

/// All of them, for a person.
pub(super) const WINDOWS: [Window; 7] = {
    use board::{clint, copier, finisher, mailbox, plic, uart, watchdog};
    [
        Window::new("finisher", finisher::BASE, finisher::SIZE),
        Window::new("clint", clint::BASE, clint::SIZE),
        Window::new("plic", plic::BASE, plic::SIZE),
        Window::new("uart", uart::BASE, uart::SIZE),
        Window::new("mailbox", mailbox::BASE, mailbox::SIZE),
        Window::new("watchdog", watchdog::BASE, watchdog::SIZE),
        Window::new("copier", copier::BASE, copier::SIZE),
    ]
};

/// Is it an access that 32-bit registers take?
fn whole(width: Width, offset: u32) -> Option<()> {
    (width == Width::Word && offset.is_multiple_of(4)).then_some(())
}

impl Devices {
    pub(super) fn new() -> Self {
        Self {
            clint: Clint::new(),
            plic: Plic::new(),
            uart: Uart::new(),
            mailbox: Mailbox::new(0),
            watchdog: Watchdog::new(),
            copier: Copier::new(),
            transmitted: Transmitted::new(),
        }
    }

    /// Puts every device into its reset state, for `incarnation`.
    pub(super) fn reset(&mut self, incarnation: u32) {
        self.clint = Clint::new();
        self.plic = Plic::new();
        self.uart = Uart::new();
        self.mailbox = Mailbox::new(incarnation);
        self.watchdog = Watchdog::new();
        self.copier = Copier::new();
    }

    pub(super) fn set_console(&mut self, console: Console) {
        self.transmitted.set_console(console);
    }

    /// Hands on what was transmitted.
    #[inline]
    pub(super) fn flush(&mut self) {
        self.transmitted.flush();
    }

    pub(super) fn ignored_kicks(&self) -> u64 {
        self.mailbox.ignored_kicks()
    }

    pub(super) fn kick(&mut self, id: NotifyId) {
        self.mailbox.raise(id);
    }

    pub(super) fn take_kicks(&mut self) -> NotifySet {
        self.mailbox.take_kicks()
    }

    /// The interrupt lines into the PLIC.
    fn lines(&self) -> u32 {
        u32::from(self.uart.line()) << board::plic::UART_IRQ
            | u32::from(self.mailbox.line()) << board::plic::MAILBOX_IRQ
    }

    /// `mip`.
    pub(super) fn interrupts(&self, time: &Time) -> u32 {
        let external = if self.plic.interrupts(self.lines()) {
            MEI
        } else {
            0
        };
        self.clint.pending(time.ticks()) | external
    }

    /// When the first of the devices will want the core to run, given the interrupts enabled in
    /// `mie`.
    pub(super) fn next_event(&self, mie: u32, time: &Time) -> Option<Instant> {
        let timer = if mie & MTI != 0 {
            time.instant_of(self.clint.mtimecmp())
        } else {
            None
        };
        timer.into_iter().chain(self.watchdog.deadline()).min()
    }

    /// The watchdog's period, if it has passed unfed.
    pub(super) fn bitten(&self, time: &Time) -> Option<Duration> {
        self.watchdog.bitten(time.now())
    }

    /// Is a list of copies under way? Then the hart stands still.
    pub(super) fn copying(&self) -> bool {
        self.copier.busy()
    }

    /// Goes on with the copies; see [`Copier::work`].
    pub(super) fn copy(&mut self, ram: &Ram, limit: u64) -> u64 {
        self.copier.work(ram, limit)
    }

    /// Does an access at `address` depend on what time it is?
    pub(super) fn looks_at_time(address: u32) -> bool {
        matches!(place(address), Some(Place::Clint(_) | Place::Watchdog(_)))
    }

    /// Reads a register; narrow ones zero-extended. `None` is an access fault.
    pub(super) fn load(&mut self, address: u32, width: Width, time: &Time) -> Option<u32> {
        let lines = self.lines();
        match place(address)? {
            Place::Uart(offset) if width == Width::Byte => self.uart.load(offset).map(u32::from),
            Place::Uart(_) => None,
            Place::Finisher(offset) => {
                whole(width, offset)?;
                (offset == board::finisher::CONTROL).then_some(0)
            }
            Place::Clint(offset) => {
                whole(width, offset)?;
                self.clint.load(offset, time.ticks())
            }
            Place::Plic(offset) => {
                whole(width, offset)?;
                self.plic.load(offset, lines)
            }
            Place::Mailbox(offset) => {
                whole(width, offset)?;
                self.mailbox.load(offset)
            }
            Place::Watchdog(offset) => {
                whole(width, offset)?;
                self.watchdog.load(offset, time.now())
            }
            Place::Copier(offset) => {
                whole(width, offset)?;
                self.copier.load(offset)
            }
        }
    }

    /// Writes a register. `None` is an access fault, and nothing has changed.
    pub(super) fn store(
        &mut self,
        address: u32,
        width: Width,
        value: u32,
        time: &Time,
    ) -> Option<Effect> {
        let done = match place(address)? {
            Place::Uart(offset) if width == Width::Byte => {
                self.uart.store(offset, value as u8, &mut self.transmitted)
            }
            Place::Uart(_) => None,
            Place::Finisher(offset) => {
                whole(width, offset)?;
                return finish_verb(offset, value);
            }
            Place::Clint(offset) => {
                whole(width, offset)?;
                self.clint.store(offset, value)
            }
            Place::Plic(offset) => {
                whole(width, offset)?;
                self.plic.store(offset, value)
            }
            Place::Mailbox(offset) => {
                whole(width, offset)?;
                return self.mailbox.store(offset, value);
            }
            Place::Watchdog(offset) => {
                whole(width, offset)?;
                self.watchdog.store(offset, value, time.now())
            }
            Place::Copier(offset) => {
                whole(width, offset)?;
                self.copier.store(offset, value)
            }
        };
        done.map(|()| Effect::None)
    }
}

fn finish_verb(offset: u32, value: u32) -> Option<Effect> {
    use board::finisher::{CONTROL, FAIL, PASS, RESET};
    if offset != CONTROL {
        return None;
    }
    Some(match value & 0xffff {
        PASS => Effect::PowerOff,
        FAIL => Effect::Fail((value >> 16) as u16),
        RESET => Effect::Reset,
        _ => Effect::None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bench() -> (Devices, Time) {
        let start = Instant::now();
        (Devices::new(), Time::new(Box::new(move || start)))
    }

    #[test]
    fn word_registers_take_aligned_words_only() {
        let (mut devices, time) = bench();
        for base in [
            board::finisher::BASE,
            board::clint::BASE,
            board::plic::BASE,
            board::mailbox::BASE,
            board::watchdog::BASE,
            board::copier::BASE,
        ] {
            assert!(devices.load(base, Width::Word, &time).is_some());
            assert!(devices.store(base, Width::Word, 0, &time).is_some());
            for (address, width) in [
                (base, Width::Byte),
                (base, Width::Half),
                (base + 1, Width::Word),
                (base + 2, Width::Word),
            ] {
                assert_eq!(devices.load(address, width, &time), None);
                assert_eq!(devices.store(address, width, 0, &time), None);
            }
        }
    }

    #[test]
    fn the_uart_takes_bytes_only() {
        let (mut devices, time) = bench();
        let base = board::uart::BASE;
        assert!(devices.load(base, Width::Byte, &time).is_some());
        assert_eq!(devices.load(base, Width::Word, &time), None);
        assert_eq!(devices.store(base, Width::Half, 0, &time), None);
    }

    #[test]
    fn nothing_answers_between_the_devices() {
        let (mut devices, time) = bench();
        for address in [
            0,
            board::finisher::BASE - 4,
            board::finisher::BASE + 4,
            board::clint::BASE + board::clint::SIZE,
            board::uart::BASE + board::uart::SIZE,
            board::copier::BASE + board::copier::SIZE,
            0x7fff_fffc,
            0xffff_fffc,
        ] {
            for width in [Width::Byte, Width::Word] {
                assert_eq!(devices.load(address, width, &time), None, "{address:#x}");
                assert_eq!(devices.store(address, width, 0, &time), None);
            }
        }
    }

    #[test]
    fn the_finisher_knows_three_verbs_and_reads_zero() {
        let (mut devices, time) = bench();
        let base = board::finisher::BASE;
        let mut say = |value| devices.store(base, Width::Word, value, &time).unwrap();
        assert_eq!(say(0x5555), Effect::PowerOff);
        assert_eq!(say(0x0007_3333), Effect::Fail(7));
        assert_eq!(say(0x7777), Effect::Reset);
        assert_eq!(say(0x1234), Effect::None);
        assert_eq!(devices.load(base, Width::Word, &time), Some(0));
    }
}
