//! The 16550A UART, and what it transmits.
//!
//! A byte is transmitted the moment it is written. Bytes are gathered for the length of a turn, and
//! then go to a [`Console`] as they are.

use crate::engine::Console;
use crate::engine::rv32::board::uart as map;

/// Bytes that are gathered at most before they go on.
const PIECE: usize = 4096;

const DLAB: u8 = 1 << 7;
const IER_TRANSMITTER: u8 = 1 << 1;
const IIR_NONE: u8 = 0x01;
const IIR_TRANSMITTER: u8 = 0x02;
const IIR_FIFOS: u8 = 0xc0;
/// Transmitter empty, holding register and shift register both; there is nothing to wait for.
const LSR_IDLE: u8 = map::LSR_THRE | 0x40;
/// The other side is there: DCD, DSR, CTS.
const MSR_PRESENT: u8 = 0xb0;

/// The registers.
pub(super) struct Uart {
    interrupt_enable: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: [u8; 2],
    fifos: bool,
    /// The "transmitter empty" interrupt: comes with each byte sent, goes when IIR was read.
    transmitter_empty: bool,
}

impl Uart {
    pub(super) fn new() -> Self {
        Self {
            interrupt_enable: 0,
            line_control: 0,
            modem_control: 0,
            scratch: 0,
            divisor: [0; 2],
            fifos: false,
            transmitter_empty: false,
        }
    }

    pub(super) fn line(&self) -> bool {
        self.transmitter_empty && self.interrupt_enable & IER_TRANSMITTER != 0
    }

    fn divisor_latched(&self) -> bool {
        self.line_control & DLAB != 0
    }

    pub(super) fn load(&mut self, offset: u32) -> Option<u8> {
        Some(match offset {
            map::THR if self.divisor_latched() => self.divisor[0],
            map::THR => 0,
            map::IER if self.divisor_latched() => self.divisor[1],
            map::IER => self.interrupt_enable,
            map::IIR => {
                let fifos = if self.fifos { IIR_FIFOS } else { 0 };
                if self.line() {
                    self.transmitter_empty = false;
                    fifos | IIR_TRANSMITTER
                } else {
                    fifos | IIR_NONE
                }
            }
            map::LCR => self.line_control,
            map::MCR => self.modem_control,
            map::LSR => LSR_IDLE,
            map::MSR => MSR_PRESENT,
            map::SCR => self.scratch,
            _ => return None,
        })
    }

    pub(super) fn store(
        &mut self,
        offset: u32,
        value: u8,
        transmitted: &mut Transmitted,
    ) -> Option<()> {
        match offset {
            map::THR if self.divisor_latched() => self.divisor[0] = value,
            map::THR => {
                self.transmitter_empty = true;
                transmitted.put(value);
            }
            map::IER if self.divisor_latched() => self.divisor[1] = value,
            map::IER => {
                // Enabling it while the transmitter is empty, which it always is, raises it.
                if value & !self.interrupt_enable & IER_TRANSMITTER != 0 {
                    self.transmitter_empty = true;
                }
                self.interrupt_enable = value & 0x0f;
            }
            map::IIR => self.fifos = value & 1 != 0,
            map::LCR => self.line_control = value,
            map::MCR => self.modem_control = value & 0x1f,
            map::LSR | map::MSR => {}
            map::SCR => self.scratch = value,
            _ => return None,
        }
        Some(())
    }
}

/// What was transmitted, on its way to the console.
pub(super) struct Transmitted {
    console: Console,
    bytes: Vec<u8>,
}

impl Transmitted {
    /// Nothing, and nobody listens.
    pub(super) fn new() -> Self {
        Self {
            console: Box::new(|_| {}),
            bytes: Vec::new(),
        }
    }

    pub(super) fn set_console(&mut self, console: Console) {
        self.flush();
        self.console = console;
    }

    fn put(&mut self, byte: u8) {
        self.bytes.push(byte);
        if self.bytes.len() >= PIECE {
            self.flush();
        }
    }

    /// Hands on what there is.
    #[inline]
    pub(super) fn flush(&mut self) {
        if !self.bytes.is_empty() {
            (self.console)(&self.bytes);
            self.bytes.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    struct Bench {
        uart: Uart,
        transmitted: Transmitted,
        pieces: Arc<Mutex<Vec<Vec<u8>>>>,
    }

    impl Bench {
        fn new() -> Self {
            let pieces = Arc::new(Mutex::new(Vec::new()));
            let sink = pieces.clone();
            let mut transmitted = Transmitted::new();
            transmitted.set_console(Box::new(move |piece| {
                sink.lock().unwrap().push(piece.to_owned());
            }));
            Self {
                uart: Uart::new(),
                transmitted,
                pieces,
            }
        }

        fn store(&mut self, offset: u32, value: u8) -> Option<()> {
            self.uart.store(offset, value, &mut self.transmitted)
        }

        fn send(&mut self, bytes: &[u8]) {
            for &byte in bytes {
                self.store(map::THR, byte).unwrap();
            }
        }

        fn pieces(&self) -> Vec<Vec<u8>> {
            self.pieces.lock().unwrap().clone()
        }
    }

    #[test]
    fn bytes_go_on_as_they_are_when_they_are_asked_for() {
        let mut bench = Bench::new();
        bench.send(b"one\r\n\0\xff> ");
        assert!(bench.pieces().is_empty());
        bench.transmitted.flush();
        bench.transmitted.flush();
        assert_eq!(bench.pieces(), [b"one\r\n\0\xff> "]);
    }

    #[test]
    fn no_more_than_a_piece_is_held() {
        let mut bench = Bench::new();
        bench.send(&[b'x'; 2 * PIECE + 1]);
        assert_eq!(bench.pieces(), [[b'x'; PIECE]; 2]);
        bench.transmitted.flush();
        assert_eq!(bench.pieces()[2], b"x");
    }

    #[test]
    fn the_divisor_hides_data_and_interrupt_enable() {
        let mut bench = Bench::new();
        bench.store(map::LCR, DLAB | 3).unwrap();
        bench.store(map::THR, b'x').unwrap();
        bench.store(map::IER, 0x12).unwrap();
        assert_eq!(bench.uart.load(map::THR), Some(b'x'));
        assert_eq!(bench.uart.load(map::IER), Some(0x12));
        bench.store(map::LCR, 3).unwrap();
        assert_eq!(bench.uart.load(map::THR), Some(0));
        assert_eq!(bench.uart.load(map::IER), Some(0));
        bench.transmitted.flush();
        assert!(bench.pieces().is_empty());
    }

    #[test]
    fn the_transmitter_interrupt_goes_when_it_was_read_and_comes_with_the_next_byte() {
        let mut bench = Bench::new();
        assert_eq!(bench.uart.load(map::IIR), Some(IIR_NONE));
        bench.store(map::IER, IER_TRANSMITTER).unwrap();
        assert!(bench.uart.line());
        assert_eq!(bench.uart.load(map::IIR), Some(IIR_TRANSMITTER));
        assert!(!bench.uart.line());
        assert_eq!(bench.uart.load(map::IIR), Some(IIR_NONE));
        bench.send(b"x");
        assert!(bench.uart.line());
        bench.store(map::IER, 0).unwrap();
        assert!(!bench.uart.line());
    }

    #[test]
    fn the_transmitter_is_always_ready() {
        let mut bench = Bench::new();
        bench.send(b"x");
        assert_eq!(bench.uart.load(map::LSR), Some(0x60));
    }

    #[test]
    fn there_are_eight_registers() {
        let mut bench = Bench::new();
        assert_eq!(bench.store(map::SCR, 0xa5), Some(()));
        assert_eq!(bench.uart.load(map::SCR), Some(0xa5));
        assert_eq!(bench.uart.load(8), None);
        assert_eq!(bench.store(8, 0), None);
    }
}
