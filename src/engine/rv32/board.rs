//! The register map of the `rv32` board: one description, read by two sides.
//!
//! The engine builds its devices from these constants, and `guest-fw` includes this very file for
//! its drivers, so the two cannot drift apart. It holds constants and their documentation only:
//! no code, no types, nothing that needs `std`.
//!
//! The board resembles QEMU's `virt` machine, so one image can run on either, plus three pages
//! that `virt` leaves empty: the [`mailbox`], the [`watchdog`] and the [`copier`]. All registers are 32 bits wide and
//! little-endian. Unless a register says otherwise they take aligned 32-bit accesses only (the
//! UART takes bytes); any other access, and any address that nothing answers to, raises a load or
//! store access fault. A write-only register reads as zero; a write to a read-only register is
//! ignored. LR, SC and AMOs reach RAM only.
//!
//! | from | bytes | what | interrupt |
//! |---|---|---|---|
//! | `0x0010_0000` | 4 KiB | [`finisher`] (test finisher, `sifive,test1`) | |
//! | `0x0200_0000` | 64 KiB | [`clint`] (software interrupt, timer) | MSI, MTI |
//! | `0x0C00_0000` | 4 MiB | [`plic`] (external interrupts) | MEI |
//! | `0x1000_0000` | 256 B | [`uart`] (16550) | PLIC 10 |
//! | `0x1100_0000` | 4 KiB | [`mailbox`] (kicks by notify id) | PLIC 12 |
//! | `0x1100_1000` | 4 KiB | [`watchdog`] | |
//! | `0x1100_2000` | 4 KiB | [`copier`] (copies within RAM) | |
//! | `0x8000_0000` | configured | [`ram`] | |

/// RAM: carveout memory of the daemon, zeroed when the core is created.
pub mod ram {
    /// First byte of RAM. The reset value of the program counter is the image's entry point, not
    /// this address.
    pub const BASE: u32 = 0x8000_0000;
}

/// Test finisher (`sifive,test1`): the firmware ends its own run.
pub mod finisher {
    /// First byte of the page.
    pub const BASE: u32 = 0x0010_0000;
    /// Bytes in the page.
    pub const SIZE: u32 = 0x1000;
    /// Offset of the one register. Write-only (reads as zero). The low 16 bits are one of the
    /// verbs below, the high 16 bits an exit code for [`FAIL`]; other values are ignored.
    pub const CONTROL: u32 = 0x0;
    /// The run ends and all is well: the core powers off.
    pub const PASS: u32 = 0x5555;
    /// The run ends with a failure, code in the high half: a crash of type "fatal error".
    pub const FAIL: u32 = 0x3333;
    /// The firmware asks for a reset: a crash of type "fatal error" that says so.
    pub const RESET: u32 = 0x7777;
}

/// Core-local interruptor (`riscv,clint0`), hart 0 only.
pub mod clint {
    /// First byte of the block.
    pub const BASE: u32 = 0x0200_0000;
    /// Bytes in the block.
    pub const SIZE: u32 = 0x1_0000;
    /// `msip`, read-write, bit 0: machine software interrupt pending.
    pub const MSIP: u32 = 0x0;
    /// `mtimecmp`, low half, read-write. The timer interrupt is pending while
    /// `mtime >= mtimecmp`. All ones after reset.
    pub const MTIMECMP: u32 = 0x4000;
    /// `mtimecmp`, high half.
    pub const MTIMECMP_HI: u32 = 0x4004;
    /// `mtime`, low half, read-only: ticks of [`TICKS_PER_SECOND`] since the core was started, from the
    /// host's monotonic clock.
    pub const MTIME: u32 = 0xBFF8;
    /// `mtime`, high half.
    pub const MTIME_HI: u32 = 0xBFFC;
    /// The unit of `mtime` and `mtimecmp`: 10 MHz, as on `virt`.
    pub const TICKS_PER_SECOND: u64 = 10_000_000;
}

/// Platform-level interrupt controller (`sifive,plic-1.0.0`), one context: hart 0, machine mode.
pub mod plic {
    /// First byte of the block.
    pub const BASE: u32 = 0x0C00_0000;
    /// Bytes in the block.
    pub const SIZE: u32 = 0x40_0000;
    /// Priority of source `n` at `PRIORITY + 4 * n`, read-write, 0 (never) to 7.
    pub const PRIORITY: u32 = 0x0;
    /// Pending bits, read-only, source `n` in bit `n` (there is one word). A source is pending
    /// while its line is up and it is not claimed; a line that falls unclaimed is not latched.
    pub const PENDING: u32 = 0x1000;
    /// Enable bits of context 0, read-write, laid out like [`PENDING`].
    pub const ENABLE: u32 = 0x2000;
    /// Priority threshold of context 0, read-write: only higher priorities interrupt.
    pub const THRESHOLD: u32 = 0x20_0000;
    /// Claim (read: the enabled pending source of highest priority, the lowest of equals, or 0; the
    /// threshold has no say) and complete (write that source, which must be enabled).
    pub const CLAIM: u32 = 0x20_0004;
    /// Sources 1 to 31 exist.
    pub const SOURCES: u32 = 32;
    /// The UART's source.
    pub const UART_IRQ: u32 = 10;
    /// The mailbox's source.
    pub const MAILBOX_IRQ: u32 = 12;
}

/// 16550A UART, byte registers. What it transmits is the core's trace `uart`, and lines of the
/// daemon's log; nothing is ever received.
pub mod uart {
    /// First byte of the block.
    pub const BASE: u32 = 0x1000_0000;
    /// Bytes in the block.
    pub const SIZE: u32 = 0x100;
    /// Transmit holding register (write), receive buffer (read), divisor low while DLAB is set.
    pub const THR: u32 = 0;
    /// Interrupt enable; divisor high while DLAB is set.
    pub const IER: u32 = 1;
    /// Interrupt identification (read), FIFO control (write). The one interrupt there is,
    /// "transmitter empty", comes with each byte sent and goes when this register was read.
    pub const IIR: u32 = 2;
    /// Line control; bit 7 is DLAB.
    pub const LCR: u32 = 3;
    /// Modem control.
    pub const MCR: u32 = 4;
    /// Line status, read-only. Bits 5 and 6 (transmitter empty) are always set.
    pub const LSR: u32 = 5;
    /// Modem status, read-only.
    pub const MSR: u32 = 6;
    /// Scratch.
    pub const SCR: u32 = 7;
    /// [`LSR`]: the transmit holding register takes a byte.
    pub const LSR_THRE: u8 = 0x20;
}

/// Mailbox: kicks by notify id, both ways, and the way a firmware reports its own death.
///
/// Notify ids are the ones the daemon wrote into the resource table. Ids 0 to 63 exist, so a core
/// has at most 64 vrings.
pub mod mailbox {
    /// First byte of the page.
    pub const BASE: u32 = 0x1100_0000;
    /// Bytes in the page.
    pub const SIZE: u32 = 0x1000;
    /// Read-only, [`ID_VALUE`]: is this board an `rv32` of rprocd, or a plain `virt`?
    pub const ID: u32 = 0x00;
    /// What [`ID`] reads as ("RPRC", little-endian).
    pub const ID_VALUE: u32 = 0x4352_5052;
    /// Read-only, the version of this page: 1.
    pub const VERSION: u32 = 0x04;
    /// Read-only: the incarnation, one more at every boot of the core, from 1 (wraps at 2^32).
    pub const INCARNATION: u32 = 0x08;
    /// Write-only: kick the host on the vring with the notify id written. Ids above 63 are
    /// ignored and counted.
    pub const KICK: u32 = 0x10;
    /// Notify ids 0 to 31 that the host has kicked and the firmware not yet cleared; bit n is
    /// id n. Writing a one clears the bit (clear first, then look at the ring).
    pub const PENDING_LO: u32 = 0x20;
    /// The same for ids 32 to 63.
    pub const PENDING_HI: u32 = 0x24;
    /// Read-write mask, zero after reset: the interrupt line is up while
    /// `PENDING & ENABLE` is not zero.
    pub const ENABLE_LO: u32 = 0x28;
    /// The same for ids 32 to 63.
    pub const ENABLE_HI: u32 = 0x2C;
    /// Write-only: the firmware gives up. The core stops at once, as a crash of type "fatal
    /// error" whose detail is the value written (by custom: `mcause` of the trap).
    pub const FAULT: u32 = 0x30;
    /// Read-write: an address the next write to [`FAULT`] is about (by custom: `mepc`).
    pub const FAULT_ADDRESS: u32 = 0x34;
}

/// Watchdog: bites with a crash of type "watchdog" when it is not fed in time.
///
/// It counts the host's monotonic clock, also while the core waits for an interrupt.
pub mod watchdog {
    /// First byte of the page.
    pub const BASE: u32 = 0x1100_1000;
    /// Bytes in the page.
    pub const SIZE: u32 = 0x1000;
    /// Read-write: milliseconds from one feeding to the bite. 1000 after reset; 0 is taken as 1.
    /// Takes effect at the next feeding or arming.
    pub const TIMEOUT_MS: u32 = 0x00;
    /// Read-write, bit 0: armed. Setting it starts a full period (but not if it is set already:
    /// that is what feeding is for), clearing it stops the count.
    pub const CONTROL: u32 = 0x04;
    /// Write-only: [`FEED_VALUE`] starts a new period if armed; anything else is ignored. A
    /// feeding after the period has passed is too late.
    pub const FEED: u32 = 0x08;
    /// What to write to [`FEED`].
    pub const FEED_VALUE: u32 = 0x600D_D06E;
    /// Read-only: milliseconds left, rounded up, 0 while not armed.
    pub const LEFT_MS: u32 = 0x0C;
}

/// Copier: copies within RAM, at the speed of the host's memory and not of the hart.
///
/// The firmware writes a list of copies into RAM, each [`ENTRY_SIZE`](copier::ENTRY_SIZE) bytes,
/// and starts it. The hart stands still until the list is done, so what it stored before is copied
/// and what it loads after is the copy; there is no interrupt. Copies are made one after the other,
/// each as if all of it were read before any is written. The first one that cannot be made ends the
/// list, and nothing of it is done; [`STATUS`](copier::STATUS) then says why, and
/// [`DONE`](copier::DONE) how many were made before it. What is copied over code needs a `fence.i`,
/// as stores do.
pub mod copier {
    /// First byte of the page.
    pub const BASE: u32 = 0x1100_2000;
    /// Bytes in the page.
    pub const SIZE: u32 = 0x1000;
    /// Read-only, [`ID_VALUE`]: is there a copier on this board?
    pub const ID: u32 = 0x00;
    /// What [`ID`] reads as ("COPY", little-endian).
    pub const ID_VALUE: u32 = 0x5950_4F43;
    /// Read-only: how the last list ended, [`STATUS_OK`] or one of those that follow it.
    pub const STATUS: u32 = 0x04;
    /// Read-only: how many copies of the last list were made.
    pub const DONE: u32 = 0x08;
    /// Read-write: the address of the list, a multiple of 4.
    pub const LIST: u32 = 0x0C;
    /// Write-only: makes as many copies as the number written says.
    pub const START: u32 = 0x10;

    /// [`STATUS`]: every copy was made. So it is after reset.
    pub const STATUS_OK: u32 = 0;
    /// [`STATUS`]: an entry of the list is not in RAM, or not at a multiple of 4.
    pub const STATUS_LIST: u32 = 1;
    /// [`STATUS`]: not all bytes that are to be read or written are RAM.
    pub const STATUS_ADDRESS: u32 = 2;
    /// [`STATUS`]: more than [`LIMIT`] bytes.
    pub const STATUS_LENGTH: u32 = 3;

    /// Bytes in an entry of the list, four words. The last one is not looked at.
    pub const ENTRY_SIZE: u32 = 16;
    /// Offset in an entry: the address of the first byte to write.
    pub const TO: u32 = 0;
    /// Offset in an entry: the address of the first byte to read.
    pub const FROM: u32 = 4;
    /// Offset in an entry: how many bytes, 0 to [`LIMIT`].
    pub const LEN: u32 = 8;
    /// Bytes in the longest copy.
    pub const LIMIT: u32 = 0x1_0000;
}
