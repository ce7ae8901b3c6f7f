//! The floor: the least that an echo can cost, and what the machine takes for a hand-over.
//!
//! What belongs here: an echo over the same rings with nothing checked and nothing between, and two
//! yardsticks: a cache line and an eventfd that go to and fro between two processes. What does
//! not: anything that a user could pick instead.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::guest::{Guest, Rings};
use crate::memory::{ENTRIES, Memory, Ring, crossed, offset_of};

/// The rings' index is shown so often.
const BURST: u16 = 32;
/// Memory, kicks and calls.
const DESCRIPTORS: usize = 5;
const RX: usize = 0;
const TX: usize = 1;

/// Gives rings to the peer that listens at `path`.
fn hand_over(path: &Path, rings: &Rings) -> Result<UnixStream, String> {
    let stream = UnixStream::connect(path)
        .map_err(|error| format!("cannot connect to {}: {error}", path.display()))?;
    let fds = [
        rings.memory.fd(),
        rings.kicks[RX].as_fd(),
        rings.kicks[TX].as_fd(),
        rings.calls[RX].as_fd(),
        rings.calls[TX].as_fd(),
    ];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let byte = [std::io::IoSlice::new(b"r")];
    sendmsg(&stream, &byte, &mut control, SendFlags::empty())
        .map_err(|errno| format!("the peer takes no descriptors: {errno}"))?;
    Ok(stream)
}

/// Takes rings from whoever comes.
fn take_over(path: &Path) -> Result<(UnixStream, Memory, [OwnedFd; 4]), String> {
    let listener = UnixListener::bind(path).map_err(|error| error.to_string())?;
    let (stream, _) = listener.accept().map_err(|error| error.to_string())?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut into = [std::io::IoSliceMut::new(&mut byte)];
    recvmsg(&stream, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)
        .map_err(|errno| errno.to_string())?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let memory = Memory::open(fds.remove(0))?;
    let events = fds.try_into().map_err(|_| "too few descriptors")?;
    Ok((stream, memory, events))
}

/// The guest of a floor.
pub fn connect(path: &Path) -> Result<Guest, String> {
    let rings = Rings::new(2)?;
    let guest = Guest::with(rings)?;
    let stream = hand_over(path, guest.rings())?;
    // It stays open as long as the benchmark runs.
    std::mem::forget(stream);
    Ok(guest)
}

/// The echo, until the process is ended.
pub fn serve_echo(path: &Path, polled: bool) -> Result<(), String> {
    let (_stream, memory, [_, kick, call, _]) = take_over(path)?;
    let mut echo = Echo {
        rx: memory.ring(RX),
        tx: memory.ring(TX),
        memory,
        at: 0,
        called: 0,
        call,
    };
    let never = 0x8000;
    loop {
        while echo.burst() {}
        if polled {
            let event = echo.at.wrapping_add(never);
            echo.tx.avail_event.store(event, Ordering::Relaxed);
            let mut looks = 0_u32;
            while echo.is_idle() {
                std::hint::spin_loop();
                looks += 1;
                if looks.is_multiple_of(1024) {
                    std::thread::yield_now();
                }
            }
            continue;
        }
        echo.tx.avail_event.store(echo.at, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if echo.is_idle() {
            let mut fds = [PollFd::new(&kick, PollFlags::IN)];
            let _ = poll(&mut fds, None);
            let _ = rustix::io::read(&kick, &mut [0; 8]);
        }
    }
}

struct Echo {
    memory: Memory,
    rx: Ring,
    tx: Ring,
    /// All four indices: each message takes one entry of each ring.
    at: u16,
    called: u16,
    call: OwnedFd,
}

impl Echo {
    fn is_idle(&self) -> bool {
        self.tx.avail_index.load(Ordering::Acquire) == self.at
            || self.rx.avail_index.load(Ordering::Acquire) == self.at
    }

    /// Answers a burst; false if there was nothing.
    fn burst(&mut self) -> bool {
        let sent = self
            .tx
            .avail_index
            .load(Ordering::Acquire)
            .wrapping_sub(self.at);
        let room = self
            .rx
            .avail_index
            .load(Ordering::Acquire)
            .wrapping_sub(self.at);
        let count = sent.min(room).min(BURST);
        if count == 0 || count > ENTRIES {
            return false;
        }
        for _ in 0..count {
            let (from, to) = (self.tx.avail(self.at), self.rx.avail(self.at));
            let (source, len) = self.tx.descriptor(from);
            let (place, _) = self.rx.descriptor(to);
            let (source, place) = (offset_of(source), offset_of(place));
            self.memory.copy_swapped(source, place, len as usize);
            self.rx.set_used(self.at, to, len);
            self.tx.set_used(self.at, from, 0);
            self.at = self.at.wrapping_add(1);
        }
        self.tx.used_index.store(self.at, Ordering::Release);
        self.rx.used_index.store(self.at, Ordering::Release);
        fence(Ordering::SeqCst);
        let wanted = self.rx.used_event.load(Ordering::Relaxed);
        if crossed(wanted, self.at, self.called) {
            let _ = rustix::io::write(&self.call, &1_u64.to_ne_bytes());
        }
        self.called = self.at;
        true
    }
}

/// A yardstick's two ends.
pub struct Yardstick {
    rings: Rings,
    _stream: UnixStream,
    turn: u64,
}

/// Two cache lines, each written by one side.
fn lines(memory: &Memory) -> [&'static AtomicU64; 2] {
    let words = memory.words64(0, 64);
    [&words[16], &words[48]]
}

impl Yardstick {
    /// Towards the peer that listens at `path`.
    pub fn connect(path: &Path) -> Result<Self, String> {
        let rings = Rings::new(2)?;
        // The least that an event can cost: a write and a read that waits.
        for fd in rings.kicks.iter().chain(&rings.calls) {
            fcntl_setfl(fd, OFlags::empty()).map_err(|errno| errno.to_string())?;
        }
        let stream = hand_over(path, &rings)?;
        Ok(Self {
            rings,
            _stream: stream,
            turn: 0,
        })
    }

    /// Nanoseconds for a cache line to the peer and one back.
    pub fn line(&mut self, time: Duration) -> f64 {
        let [mine, theirs] = lines(&self.rings.memory);
        let (begun, mut count) = (Instant::now(), 0_u64);
        while begun.elapsed() < time {
            for _ in 0..1000 {
                self.turn += 1;
                mine.store(self.turn, Ordering::Release);
                while theirs.load(Ordering::Acquire) != self.turn {
                    std::hint::spin_loop();
                }
            }
            count += 1000;
        }
        begun.elapsed().as_secs_f64() * 1e9 / count as f64
    }

    /// Nanoseconds for an event to the peer, which sleeps, and one back, which is slept for.
    pub fn event(&mut self, time: Duration) -> f64 {
        let (begun, mut count) = (Instant::now(), 0_u64);
        while begun.elapsed() < time {
            let _ = rustix::io::write(&self.rings.kicks[TX], &1_u64.to_ne_bytes());
            let _ = rustix::io::read(&self.rings.calls[RX], &mut [0; 8]);
            count += 1;
        }
        begun.elapsed().as_secs_f64() * 1e9 / count as f64
    }
}

/// The other end of the line.
pub fn serve_line(path: &Path) -> Result<(), String> {
    let (_stream, memory, _) = take_over(path)?;
    let [theirs, mine] = lines(&memory);
    let mut turn = 0;
    loop {
        let mut looks = 0_u32;
        while theirs.load(Ordering::Acquire) == turn {
            std::hint::spin_loop();
            looks = looks.wrapping_add(1);
            if looks.is_multiple_of(1 << 16) {
                std::thread::yield_now();
            }
        }
        turn = theirs.load(Ordering::Acquire);
        mine.store(turn, Ordering::Release);
    }
}

/// The other end of the event.
pub fn serve_event(path: &Path) -> Result<(), String> {
    let (_stream, _memory, [_, kick, call, _]) = take_over(path)?;
    loop {
        let _ = rustix::io::read(&kick, &mut [0; 8]);
        let _ = rustix::io::write(&call, &1_u64.to_ne_bytes());
    }
}
