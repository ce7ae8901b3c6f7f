//! A guest that sends a burst, sleeps until all of it is back, and sends the next.
//!
//! What belongs here: a driver whose kicks, calls and sleeps do not depend on who runs when, so
//! that they can be counted exactly, and which allocates nothing for a message. What does not: how
//! Linux's driver paces itself (`rpmsg`).
//!
//! A burst is shown with one step of the available index, and one kick at most. The call is asked
//! for before that, at the position that completes the burst. Linux asks so with
//! `virtqueue_enable_cb_delayed`; were it asked for at the next completion, as with
//! `virtqueue_enable_cb`, then the number of calls would be that of how often the guest gets to
//! look while the burst is being answered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::driver::{DriverQueue, Segment};
use super::ram::GuestRam;
use super::rpmsg::{BUFFER, HEADER};
use super::vmm::{Failure, Vmm};

/// How long the answers to a burst may take.
const PATIENCE: Duration = Duration::from_secs(120);
const LOCAL: u32 = 1030;
const REMOTE: u32 = 1024;
/// Bytes of a message: the header, its number, and as much again.
const LENGTH: usize = HEADER + 16;

/// What was counted since the driver was bound.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// Messages that came back.
    pub messages: u64,
    /// Kicks sent, on both queues.
    pub kicks: u64,
    /// Calls that came, on both queues.
    pub calls: u64,
    /// Times that the guest waited for a call.
    pub sleeps: u64,
}

impl Counts {
    /// What was counted since an earlier look.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            messages: self.messages - earlier.messages,
            kicks: self.kicks - earlier.kicks,
            calls: self.calls - earlier.calls,
            sleeps: self.sleeps - earlier.sleeps,
        }
    }
}

/// The driver.
pub struct Bursts {
    rx: DriverQueue,
    tx: DriverQueue,
    epoll: Epoll,
    ram: Arc<GuestRam>,
    /// For each head: its buffer.
    rx_buffers: Vec<u64>,
    /// In the order of use.
    tx_buffers: Vec<u64>,
    messages: u64,
    sleeps: u64,
}

impl Bursts {
    /// Binds to the device. Nobody may announce anything: see [`super::vmm::Options`].
    pub fn probe(vmm: &mut Vmm) -> Result<Self, Failure> {
        let mut queues = vmm.new_queues();
        let mut tx = queues.pop().expect("two queues");
        let rx = queues.pop().expect("two queues");
        tx.disable_callbacks();
        let epoll = Epoll::new().expect("an epoll");
        for fd in [rx.call_fd(), tx.call_fd()] {
            epoll
                .ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0))
                .expect("a call eventfd in an epoll");
        }
        let ram = Arc::clone(vmm.ram());
        let size = u64::from(vmm.options().queue_size);
        let base = ram.allocate(1, 2 * size * BUFFER as u64, 4096);
        let buffers = |from: u64| (from..from + size).map(|index| base + index * BUFFER as u64);
        let mut driver = Self {
            rx,
            tx,
            epoll,
            ram,
            rx_buffers: vec![0; size as usize],
            tx_buffers: buffers(size).collect(),
            messages: 0,
            sleeps: 0,
        };
        for buffer in buffers(0) {
            driver.post(buffer);
        }
        driver.rx.show();
        driver.rx.disable_callbacks();
        vmm.driver_start()?;
        driver.rx.kick();
        // The driver is there when the device has answered something else.
        vmm.settle()?;
        Ok(driver)
    }

    fn post(&mut self, buffer: u64) {
        let segment = Segment {
            address: buffer,
            length: BUFFER as u32,
            writable: true,
        };
        let head = self.rx.add_unshown(&[segment]);
        let head = head.expect("a descriptor for each receive buffer");
        self.rx_buffers[usize::from(head)] = buffer;
    }

    /// Sends `count` bursts of `burst` messages, each after the last one is back.
    pub fn exchange(&mut self, count: u64, burst: u16) {
        for _ in 0..count {
            let idle = self.rx.enable_callbacks_after(burst);
            assert!(idle, "an answer came that nobody asked for");
            self.send(burst);
            self.sleep(burst);
            self.receive(burst);
        }
        assert!(!self.rx.has_used(), "an answer too many");
    }

    fn send(&mut self, burst: u16) {
        while self.tx.pop_used().is_some() {}
        // The wish for none is one for an index far ahead, which must stay far ahead.
        self.tx.disable_callbacks();
        for place in 0..burst {
            let buffer = self.tx_buffers[usize::from(place)];
            let message = message(LOCAL, REMOTE, self.messages + u64::from(place));
            self.ram.write(buffer, &message);
            let segment = Segment {
                address: buffer,
                length: LENGTH as u32,
                writable: false,
            };
            let head = self.tx.add_unshown(&[segment]);
            head.expect("all messages were taken before their answers came");
        }
        self.tx.show();
        self.tx.kick();
    }

    fn sleep(&mut self, burst: u16) {
        let end = Instant::now() + PATIENCE;
        while self.rx.used() < burst {
            self.sleeps += 1;
            let mut events = [EpollEvent::default(); 2];
            // Interrupted or not: the loop looks again.
            let _ = self.epoll.wait(PATIENCE.as_millis() as i32, &mut events);
            self.take_calls();
            assert!(
                Instant::now() < end,
                "{} of {burst} answers after {PATIENCE:?}",
                self.rx.used()
            );
        }
    }

    fn receive(&mut self, burst: u16) {
        for _ in 0..burst {
            let used = self.rx.pop_used().expect("a whole burst");
            let buffer = self.rx_buffers[usize::from(used.head)];
            let mut bytes = [0; LENGTH];
            self.ram.read(buffer, &mut bytes);
            assert_eq!(used.length as usize, LENGTH);
            assert_eq!(bytes, message(REMOTE, LOCAL, self.messages));
            self.messages += 1;
            self.post(buffer);
        }
        self.rx.show();
        self.rx.kick();
    }

    fn take_calls(&mut self) {
        self.rx.take_calls();
        self.tx.take_calls();
    }

    /// Kicks although there is nothing to tell.
    pub fn kick_anyway(&mut self) {
        self.tx.kick_anyway();
    }

    /// What was counted so far.
    pub fn counts(&mut self) -> Counts {
        self.take_calls();
        Counts {
            messages: self.messages,
            kicks: self.rx.kicks() + self.tx.kicks(),
            calls: self.rx.calls() + self.tx.calls(),
            sleeps: self.sleeps,
        }
    }
}

/// Message `number`, all of it.
fn message(source: u32, destination: u32, number: u64) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    bytes[..4].copy_from_slice(&source.to_le_bytes());
    bytes[4..8].copy_from_slice(&destination.to_le_bytes());
    bytes[12..14].copy_from_slice(&((LENGTH - HEADER) as u16).to_le_bytes());
    bytes[HEADER..HEADER + 8].copy_from_slice(&number.to_le_bytes());
    bytes[HEADER + 8..].copy_from_slice(&(!number).to_le_bytes());
    bytes
}
