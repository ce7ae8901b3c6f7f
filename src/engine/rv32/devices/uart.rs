//! The 16550A UART, and what becomes of what it transmits.
//!
//! A byte is transmitted the moment it is written. Bytes are gathered into lines; the lines go to
//! a [`UartSink`]. The firmware decides how many lines there are and what is in them, so they are
//! cut at [`LINE_LIMIT`] bytes, escaped to printable ASCII, and no more than
//! [`LINES_PER_SECOND`] are let through; what is left out is counted and said.

use std::time::{Duration, Instant};

use crate::engine::rv32::board::uart as map;

/// Where a core's console output goes: one call for each line, without its end. The text is
/// printable ASCII.
pub type UartSink = Box<dyn FnMut(&str) + Send>;

/// Bytes of one line; a longer one is cut into several.
pub const LINE_LIMIT: usize = 256;
/// Lines that reach the sink before a second has passed since the first of them.
pub const LINES_PER_SECOND: u32 = 200;

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
        console: &mut Console,
        now: impl FnOnce() -> Instant,
    ) -> Option<()> {
        match offset {
            map::THR if self.divisor_latched() => self.divisor[0] = value,
            map::THR => {
                self.transmitter_empty = true;
                console.put(value, now);
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

/// Lines on their way to the sink. It outlives the incarnations of a core, so that crashing and
/// starting again does not get around the limit.
pub(super) struct Console {
    sink: UartSink,
    line: Vec<u8>,
    window: Option<Instant>,
    lines_in_window: u32,
    /// Since the last time it was said.
    suppressed: u64,
    suppressed_total: u64,
}

impl Console {
    pub(super) fn new(sink: UartSink) -> Self {
        Self {
            sink,
            line: Vec::new(),
            window: None,
            lines_in_window: 0,
            suppressed: 0,
            suppressed_total: 0,
        }
    }

    pub(super) fn set_sink(&mut self, sink: UartSink) {
        self.sink = sink;
    }

    pub(super) fn suppressed_total(&self) -> u64 {
        self.suppressed_total
    }

    fn put(&mut self, byte: u8, now: impl FnOnce() -> Instant) {
        if byte == b'\n' {
            self.end_line(now());
            return;
        }
        self.line.push(byte);
        if self.line.len() >= LINE_LIMIT {
            self.end_line(now());
        }
    }

    /// The core's run is over: says what is still to be said.
    pub(super) fn finish(&mut self, now: Instant) {
        if !self.line.is_empty() {
            self.end_line(now);
        }
        self.report_suppressed();
    }

    fn end_line(&mut self, now: Instant) {
        let fresh = self
            .window
            .is_none_or(|start| now.saturating_duration_since(start) >= Duration::from_secs(1));
        if fresh {
            self.report_suppressed();
            self.window = Some(now);
            self.lines_in_window = 0;
        }
        if self.lines_in_window < LINES_PER_SECOND {
            self.lines_in_window += 1;
            let line = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
            (self.sink)(&escaped(line));
        } else {
            self.suppressed = self.suppressed.saturating_add(1);
            self.suppressed_total = self.suppressed_total.saturating_add(1);
        }
        self.line.clear();
    }

    fn report_suppressed(&mut self) {
        if self.suppressed > 0 {
            (self.sink)(&format!("({} lines left out)", self.suppressed));
            self.suppressed = 0;
        }
    }
}

fn escaped(line: &[u8]) -> String {
    let mut text = String::with_capacity(line.len());
    for &byte in line {
        match byte {
            b'\\' => text.push_str("\\\\"),
            b'\t' => text.push_str("\\t"),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => text.push_str(&format!("\\x{byte:02x}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    struct Bench {
        uart: Uart,
        console: Console,
        now: Instant,
        lines: Arc<Mutex<Vec<String>>>,
    }

    impl Bench {
        fn new() -> Self {
            let lines = Arc::new(Mutex::new(Vec::new()));
            let sink = lines.clone();
            Self {
                uart: Uart::new(),
                console: Console::new(Box::new(move |line| {
                    sink.lock().unwrap().push(line.to_owned());
                })),
                now: Instant::now(),
                lines,
            }
        }

        fn store(&mut self, offset: u32, value: u8) -> Option<()> {
            let now = self.now;
            self.uart
                .store(offset, value, &mut self.console, move || now)
        }

        fn send(&mut self, bytes: &[u8]) {
            for &byte in bytes {
                self.store(map::THR, byte).unwrap();
            }
        }

        fn lines(&self) -> Vec<String> {
            self.lines.lock().unwrap().clone()
        }
    }

    #[test]
    fn bytes_become_lines() {
        let mut bench = Bench::new();
        bench.send(b"one\r\ntwo\n\nthr");
        assert_eq!(bench.lines(), ["one", "two", ""]);
        bench.console.finish(bench.now);
        assert_eq!(bench.lines()[3], "thr");
        bench.console.finish(bench.now);
        assert_eq!(bench.lines().len(), 4);
    }

    #[test]
    fn what_is_not_printable_is_escaped() {
        let mut bench = Bench::new();
        bench.send(b"a\x1b[2J\\\t\xff\x00\n");
        assert_eq!(bench.lines(), ["a\\x1b[2J\\\\\\t\\xff\\x00"]);
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let mut bench = Bench::new();
        bench.send(&[b'x'; 2 * LINE_LIMIT + 1]);
        assert_eq!(
            bench.lines(),
            ["x".repeat(LINE_LIMIT), "x".repeat(LINE_LIMIT)]
        );
    }

    #[test]
    fn a_flood_is_cut_and_what_was_left_out_is_said_once() {
        let mut bench = Bench::new();
        for _ in 0..LINES_PER_SECOND + 50 {
            bench.send(b"x\n");
        }
        assert_eq!(bench.lines().len(), LINES_PER_SECOND as usize);
        assert_eq!(bench.console.suppressed_total(), 50);
        bench.now += Duration::from_secs(1);
        bench.send(b"y\nz\n");
        assert_eq!(
            bench.lines()[LINES_PER_SECOND as usize..],
            ["(50 lines left out)", "y", "z"]
        );
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
        bench.console.finish(bench.now);
        assert!(bench.lines().is_empty());
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
