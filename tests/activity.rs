//! What a core does, as its operator is told: cores in this process, on the real engine, with
//! programs of a few instructions.
//!
//! What belongs here: that a firmware which spins, waits, ends or writes to its UART can be told
//! from the others by what a status, an event or a trace says. What does not: how the engine comes
//! to know it (`engine`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use rprocd::engine::rv32::Rv32;
use rprocd::engine::rv32::board::uart;
use rprocd::firmware::Snapshot;
use rprocd::memory::{DeviceAddress, Ram};
use rprocd::rproc::{
    Core, CoreStatus, Coredumps, Event, EventLog, Firmware, Grants, Holder, LOG_BYTES, Policies,
};

use crate::engine::asm::*;
use crate::firmware::elf_builder::Elf;
use crate::frontend::process::{self, Daemon};
use crate::frontend::rpmsg::RpmsgDriver;
use crate::frontend::vmm::{Options, Vmm};

const PATIENCE: Duration = Duration::from_secs(120);
const BASE: u32 = 0x8000_0000;
const RAM_LEN: u64 = 0x10_0000;

/// A core whose firmware has no resource table and is what `write` writes.
struct Bench {
    core: Core,
    log: Arc<EventLog>,
}

impl Bench {
    fn new(write: impl FnOnce(&mut Asm)) -> Self {
        Self::with(write, Coredumps::disabled())
    }

    fn with(write: impl FnOnce(&mut Asm), coredumps: Coredumps) -> Self {
        let mut asm = Asm::at(BASE);
        write(&mut asm);
        let ram = Ram::new("test", DeviceAddress(BASE.into()), RAM_LEN).unwrap();
        let mut engine = Rv32::new(ram).unwrap();
        let code = asm.bytes();
        let image = Elf::new(BASE).load(BASE, code, code.len() as u32).build();
        let snapshot = Snapshot::from_bytes("program.elf", image);
        let firmware = Firmware::new(snapshot, &mut engine, 0, Grants::default()).unwrap();
        let engine = Box::new(engine);
        let core = Core::new("core", engine, firmware, Policies::default(), coredumps).unwrap();
        let log = Arc::new(EventLog::new().unwrap());
        core.tell(log.clone());
        core.start(Holder::Operator).unwrap();
        Self { core, log }
    }

    /// The status as soon as something holds of it.
    #[track_caller]
    fn until(&self, holds: impl Fn(&CoreStatus) -> bool) -> CoreStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            let status = self.core.status();
            if holds(&status) {
                return status;
            }
            assert!(Instant::now() < end, "never: {status:?}");
            std::thread::yield_now();
        }
    }

    fn events(&self, what: &str) -> Vec<Event> {
        let mut events = self.log.since(None, usize::MAX).events;
        events.retain(|event| event.what == what);
        events
    }
}

#[test]
fn a_firmware_that_spins_is_told_from_one_that_waits() {
    let spins = Bench::new(|asm| {
        let here = asm.here();
        asm.jump(here);
    });
    let waits = Bench::new(|asm| {
        asm.op(WFI);
        asm.op(jal(ZERO, -4));
    });
    let waiting = waits.until(|it| it.pc == Some(BASE.into()));
    let spinning = spins.until(|it| it.ran_microseconds > Some(20_000));
    assert_eq!(spinning.pc, Some(BASE.into()));
    assert_eq!(
        spinning.ran_microseconds,
        spinning.incarnation_ran_microseconds
    );
    let ran = |status: &CoreStatus| status.ran_microseconds.unwrap();
    assert!(ran(&spinning) <= spinning.uptime_microseconds.unwrap());
    assert_eq!(ran(&waits.core.status()), ran(&waiting));

    // Another incarnation has run for less than all together have.
    spins.core.stop().unwrap();
    let stopped = spins.core.status();
    assert_eq!(
        (stopped.pc, stopped.incarnation_ran_microseconds),
        (None, None)
    );
    assert!(ran(&stopped) >= ran(&spinning));
    spins.core.start(Holder::Operator).unwrap();
    let again = spins.until(|it| it.incarnation_ran_microseconds > Some(0));
    let before = ran(&again) - again.incarnation_ran_microseconds.unwrap();
    assert!(before.abs_diff(ran(&stopped)) <= 1, "{again:?} {stopped:?}");
}

impl Bench {
    /// All that is kept of the traces: their names and texts.
    fn traces(&self) -> Vec<(String, String)> {
        let traces = self.core.traces(Vec::new(), usize::MAX);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let traces = traces.into_iter();
        traces.map(|it| (it.name, text(&it.text.bytes))).collect()
    }
}

#[test]
fn a_firmware_that_powers_off_is_said_to_have_ended_by_itself_until_it_is_started_again() {
    let bench = Bench::new(|asm| {
        asm.power_off();
    });
    let ended = bench.until(|it| it.state == "offline" && it.incarnation == 1);
    let said = ended.ended.unwrap();
    assert!(
        said.starts_with("incarnation 1 ended by itself (power off) after "),
        "{said}"
    );
    assert!(
        said.ends_with("the core stays offline until it is started"),
        "{said}"
    );
    assert_eq!((ended.crashes, ended.holders.len(), ended.pc), (0, 0, None));
    let events = bench.events("ended");
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].incarnation, &events[0].detail), (1, &said));
    // What it says comes before the state that it leads to.
    let offline = bench.events("state").pop().unwrap();
    assert_eq!(offline.detail, "offline");
    assert!(events[0].seq < offline.seq);
    bench.core.start(Holder::Operator).unwrap();
    let again = bench.until(|it| it.state == "offline" && it.incarnation == 2);
    assert!(again.ended.unwrap().starts_with("incarnation 2 ended"));

    let waits = Bench::new(|asm| {
        asm.op(WFI);
    });
    waits.core.stop().unwrap();
    assert_eq!(waits.core.status().ended, None, "it was stopped");
}

/// Writes a text to the UART.
fn print(asm: &mut Asm, text: &str) {
    asm.li(T0, uart::BASE);
    for byte in text.bytes() {
        asm.op(addi(T1, ZERO, byte.into())).op(sb(T1, T0, 0));
    }
}

#[test]
fn a_uart_is_a_trace_of_its_own_and_a_prompt_without_a_line_feed_is_in_it_at_once() {
    let bench = Bench::new(|asm| {
        print(asm, "hello\r\nuart> ");
        asm.op(WFI);
        asm.op(jal(ZERO, -4));
    });
    let status = bench.until(|it| !it.traces.is_empty() && it.traces[0].bytes == 13);
    assert_eq!(status.state, "running");
    assert_eq!(
        (status.traces.len(), status.traces[0].name.as_str()),
        (1, "uart")
    );
    let uart = |text: &str| vec![("uart".to_owned(), text.to_owned())];
    assert_eq!(bench.traces(), uart("hello\r\nuart> "));
    assert!(bench.core.looks_with_text() > 0, "who follows is told");
    // The numbers go on over incarnations, as those of trace buffers do.
    bench.core.inject_crash().unwrap();
    bench.until(|it| it.incarnation == 2 && it.traces[0].bytes == 26);
    // A piece is of one incarnation.
    for (since, incarnation) in [(0, 1), (13, 2)] {
        let piece = bench.core.traces(vec![since], usize::MAX).remove(0).text;
        assert_eq!(piece.bytes, b"hello\r\nuart> ");
        assert_eq!(piece.incarnation, incarnation);
    }
    let later = bench.core.traces(vec![20], 3).remove(0);
    assert_eq!(
        (later.text.first, &later.text.bytes[..], later.end),
        (20, &b"uar"[..], 26)
    );
    let crashed = bench.events("state");
    let crashed = crashed.iter().find(|it| it.detail == "crashed").unwrap();
    assert_eq!(crashed.trace, [13]);
    let quiet = Bench::new(|asm| {
        asm.op(WFI);
    });
    assert_eq!(quiet.traces(), [], "nothing was written");
}

#[test]
fn a_flood_on_the_uart_takes_no_more_memory_than_a_trace_does() {
    let bench = Bench::new(|asm| {
        asm.li(T0, uart::BASE).op(addi(T1, ZERO, i32::from(b'x')));
        asm.op(sb(T1, T0, 0)).op(jal(ZERO, -4));
    });
    bench.until(|it| it.traces.first().is_some_and(|it| it.bytes > 1 << 20));
    let flood = bench.core.traces(vec![1], usize::MAX).remove(0);
    assert_eq!(flood.text.bytes.len(), LOG_BYTES);
    assert_eq!(flood.text.lost, flood.text.first - 1);
}

#[test]
fn lines_of_a_uart_name_their_core_in_the_log_and_followers_see_text_without_an_end() {
    let mut asm = Asm::at(BASE);
    print(&mut asm, "booted\nlogin: ");
    asm.op(WFI);
    asm.op(jal(ZERO, -4));
    let code = asm.bytes().to_vec();
    let image = Elf::new(BASE).load(BASE, &code, code.len() as u32).build();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("uart.elf");
    std::fs::write(&path, image).unwrap();
    let daemon = Daemon::start_alone("m0", &path);
    daemon.wait_for_log("m0: uart: booted");
    assert!(!daemon.log().contains("login"), "the line has not ended");
    let trace = printed(&daemon, &["trace", "m0"]);
    let (header, text) = trace.split_once('\n').unwrap();
    assert!(
        header.starts_with("--- incarnation 1, booted at "),
        "{trace}"
    );
    assert_eq!(text, "booted\nlogin: \n");
    has(&printed(&daemon, &["info", "m0"]), "uart: 14 B written");
    has(
        &printed(&daemon, &["metrics"]),
        "rprocd_core_trace_bytes_total{core=\"m0\",buffer=\"0\",name=\"uart\"} 14",
    );
    printed(&daemon, &["stop", "m0"]);
    daemon.wait_for_log("m0: uart: login: ");
}

#[track_caller]
fn printed(daemon: &Daemon, words: &[&str]) -> String {
    let output = daemon.rprocctl(words);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn has(text: &str, words: &str) {
    assert!(text.contains(words), "{words:?} is not in\n{text}");
}

#[test]
fn endpoints_say_the_true_reason_why_a_guest_sees_no_announcement() {
    let daemon = Daemon::start(&[
        process::Core::default(),
        process::Core {
            name: "quiet",
            announce: false,
            ..process::Core::default()
        },
    ]);
    let endpoints = |core: &str| printed(&daemon, &["endpoints", core]);
    has(
        &endpoints("echo"),
        "echo/vdev0 announces when a guest's driver is there, and there is none",
    );
    has(
        &endpoints("quiet"),
        "quiet/vdev0 announces nothing to guests: the configuration says announce = false",
    );
    has(
        &printed(&daemon, &["info", "echo"]),
        "accepted     no guest",
    );
    // As a VMM does that passes on only the bits that it knows.
    let options = Options {
        name_service: false,
        ..Options::default()
    };
    let mut vmm = Vmm::connect(&daemon.socket("echo"), options).unwrap();
    let driver = RpmsgDriver::probe(&mut vmm).unwrap();
    has(
        &endpoints("echo"),
        "the VMM or the guest's driver has not accepted it",
    );
    let vdev = &daemon.status()[0].vdevs[0];
    assert_eq!(vdev.offered_features, Some(1 << 32 | 1 << 29 | 1 << 28 | 1));
    assert_eq!(
        vdev.accepted_features.unwrap() & (1 << 32 | 1 << 30 | 1),
        1 << 32
    );
    let info = printed(&daemon, &["info", "echo"]);
    has(
        &info,
        "offered      0x130000001 (rpmsg name service, INDIRECT_DESC, EVENT_IDX, VERSION_1)",
    );
    drop(driver);
    drop(vmm);
    // One that passes all of them on.
    let mut vmm = Vmm::connect(&daemon.socket("echo"), Options::default()).unwrap();
    let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
    let address = driver.wait_for_channel("rpmsg-raw", PATIENCE).unwrap();
    let text = endpoints("echo");
    has(&text, &format!("{address}  rpmsg-raw"));
    assert!(!text.contains("vdev0 "), "{text}");
    assert_eq!(
        daemon.status()[0].vdevs[0].accepted_features.unwrap() & 1,
        1
    );
    printed(&daemon, &["stop", "echo"]);
    has(
        &endpoints("echo"),
        "echo/vdev0 has nothing to announce: the core is offline",
    );
}
