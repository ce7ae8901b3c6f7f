//! A core under test, with a clock that the test moves.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rprocd::engine::rv32::{Registers, Rv32};
use rprocd::engine::{Crash, CrashKind, Engine, NotifyId, Run, RunEnd};
use rprocd::memory::{DeviceAddress, Ram};
use vm_memory::Bytes;

use super::asm::Asm;

/// Where programs begin.
pub const BASE: u32 = 0x8000_0000;
pub const RAM_LEN: u32 = 0x10_0000;
/// More than any program of the tests needs.
pub const PLENTY: u64 = 1_000_000;

struct TestClock {
    now: Instant,
    step: Duration,
}

pub struct Machine {
    pub core: Rv32,
    ram: Arc<Ram>,
    clock: Arc<Mutex<TestClock>>,
    start: Instant,
    printed: Arc<Mutex<Vec<u8>>>,
}

impl Machine {
    pub fn new() -> Self {
        Self::with_ram(RAM_LEN)
    }

    pub fn with_ram(len: u32) -> Self {
        let ram = Ram::new("test", da(BASE), u64::from(len)).unwrap();
        let start = Instant::now();
        let clock = Arc::new(Mutex::new(TestClock {
            now: start,
            step: Duration::ZERO,
        }));
        let hands = clock.clone();
        let look = move || {
            let mut clock = hands.lock().unwrap();
            let step = clock.step;
            clock.now += step;
            clock.now
        };
        let mut core = Rv32::with_clock(ram.clone(), Box::new(look)).unwrap();
        let printed = Arc::new(Mutex::new(Vec::new()));
        let sink = printed.clone();
        core.set_console(Box::new(move |piece| {
            sink.lock().unwrap().extend(piece);
        }));
        Self {
            core,
            ram,
            clock,
            start,
            printed,
        }
    }

    /// A started machine whose program is what `write` writes from [`BASE`] on.
    pub fn running(write: impl FnOnce(&mut Asm)) -> Self {
        let mut asm = Asm::at(BASE);
        write(&mut asm);
        let mut machine = Self::new();
        machine.load(BASE, asm.bytes());
        machine.start(BASE);
        machine
    }

    pub fn load(&mut self, address: u32, bytes: &[u8]) {
        let slice = self.ram.slice(da(address), bytes.len() as u64).unwrap();
        slice.write_slice(bytes, 0).unwrap();
    }

    pub fn bytes(&self, address: u32, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        let slice = self.ram.slice(da(address), u64::from(len)).unwrap();
        slice.read_slice(&mut bytes, 0).unwrap();
        bytes
    }

    pub fn word(&self, address: u32) -> u32 {
        u32::from_le_bytes(self.bytes(address, 4).try_into().unwrap())
    }

    pub fn start(&mut self, pc: u32) {
        self.core.start(da(pc), 1).unwrap();
    }

    pub fn run(&mut self) -> Run {
        self.core.run(PLENTY)
    }

    pub fn kick(&mut self, id: u8) {
        self.core.kick(NotifyId(id));
    }

    /// Moves the clock.
    pub fn pass(&mut self, time: Duration) {
        self.clock.lock().unwrap().now += time;
    }

    /// From now on the clock moves on by `step` whenever the core looks at it.
    pub fn clock_moves_at_each_look(&mut self, step: Duration) {
        self.clock.lock().unwrap().step = step;
    }

    /// Where the clock is.
    pub fn now(&self) -> Instant {
        self.clock.lock().unwrap().now
    }

    /// The moment `time` after the machine was made.
    pub fn at(&self, time: Duration) -> Instant {
        self.start + time
    }

    /// What the core has written to its UART.
    pub fn printed(&self) -> Vec<u8> {
        self.printed.lock().unwrap().clone()
    }

    pub fn registers(&self) -> Registers {
        self.core.registers()
    }

    /// Runs a program that powers itself off, and gives its registers.
    #[track_caller]
    pub fn finish(&mut self) -> [u32; 32] {
        assert_eq!(self.run().end, RunEnd::PoweredOff);
        self.registers().x
    }

    /// Runs a program that crashes.
    #[track_caller]
    pub fn crash(&mut self) -> Crash {
        match self.run().end {
            RunEnd::Crashed(crash) => crash,
            other => panic!("no crash but {other:?}"),
        }
    }

    /// Runs a program that crashes, and checks how.
    #[track_caller]
    pub fn assert_crash(&mut self, kind: CrashKind, parts: &[&str]) {
        let crash = self.crash();
        assert_eq!(crash.kind, kind, "{}", crash.detail);
        for part in parts {
            assert!(
                crash.detail.contains(part),
                "{part} not in {}",
                crash.detail
            );
        }
    }

    /// Runs a program that comes to wait, for no particular time.
    #[track_caller]
    pub fn assert_waits(&mut self) {
        assert_eq!(self.run().end, RunEnd::Waiting { until: None });
    }
}

pub fn da(address: u32) -> DeviceAddress {
    DeviceAddress(u64::from(address))
}
