//! What a firmware writes into its trace buffer, as an operator follows it.
//!
//! What belongs here: the real daemon, `rprocctl trace`, and the control socket's `Trace`. What
//! does not: the follower alone (`rproc/trace.rs` has its tests).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rprocd::control::TracePiece;
use serde_json::json;

use crate::frontend::process::{Core, Daemon};
use crate::frontend::rpmsg::RpmsgDriver;
use crate::frontend::vmm::{Options, Vmm};

const PATIENCE: Duration = Duration::from_secs(120);
const OWN_ADDRESS: u32 = 1030;

fn chaos() -> Daemon {
    Daemon::start(&[Core {
        name: "core",
        image: "chaos",
        settings: "[core.recovery]\nminimum-run-time-ms = 0\nhold-after = 0",
        ..Core::default()
    }])
}

/// One call of `Trace` for the one buffer that our firmware has.
fn piece(daemon: &Daemon, since: u64) -> TracePiece {
    let mut stream = UnixStream::connect(daemon.socket("control")).unwrap();
    let call = json!({
        "method": "io.rprocd.Trace",
        "parameters": { "core": "core", "since": [since] },
    });
    stream.write_all(format!("{call}\0").as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let mut answer = Vec::new();
    reader.read_until(0, &mut answer).unwrap();
    answer.pop();
    let mut answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
    let buffers = answer["parameters"]["buffers"].take();
    let mut pieces: Vec<TracePiece> = serde_json::from_value(buffers).unwrap();
    // It writes its last words to the UART as well, for boards without a table.
    assert!(pieces[1..].iter().all(|piece| piece.name == "uart"));
    pieces.remove(0)
}

/// All from `since` on: the text, how much of it was lost, how often it was overrun, what is next.
fn all_from(daemon: &Daemon, mut since: u64) -> (String, u64, u64, u64) {
    let (mut text, mut lost, mut overruns) = (String::new(), 0, 0);
    loop {
        let piece = piece(daemon, since);
        text.push_str(&piece.text);
        lost += piece.lost;
        overruns += piece.overruns;
        since = piece.next;
        if piece.next == piece.end {
            return (text, lost, overruns, since);
        }
    }
}

fn bound(daemon: &Daemon) -> (Vmm, RpmsgDriver, u32) {
    let mut vmm = Vmm::connect(&daemon.socket("core"), Options::default()).unwrap();
    let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
    let address = driver.wait_for_channel("rpmsg-raw", PATIENCE).unwrap();
    (vmm, driver, address)
}

fn tell(driver: &mut RpmsgDriver, address: u32, command: &str) {
    driver
        .send(OWN_ADDRESS, address, command.as_bytes())
        .unwrap();
}

fn wait_for_incarnation(daemon: &Daemon, incarnation: u32) {
    let end = Instant::now() + PATIENCE;
    while daemon.status()[0].incarnation < incarnation {
        assert!(Instant::now() < end, "{:?}", daemon.status());
    }
}

#[test]
fn each_line_of_each_incarnation_is_there_once_and_in_order() {
    let daemon = chaos();
    let (_vmm, mut driver, mut address) = bound(&daemon);
    for incarnation in 2..6 {
        tell(&mut driver, address, "illegal");
        wait_for_incarnation(&daemon, incarnation);
        // Its channels go and come.
        let announced = driver.announcements().len();
        let end = Instant::now() + PATIENCE;
        while driver.channels().is_empty() || driver.announcements().len() == announced {
            assert!(Instant::now() < end, "{:?}", driver.announcements());
            driver.wait(Duration::from_millis(10));
            while driver.recv().is_some() {}
        }
        address = driver.wait_for_channel("rpmsg-raw", PATIENCE).unwrap();
    }
    let (text, lost, overruns, _) = all_from(&daemon, 0);
    assert_eq!((lost, overruns), (0, 0), "{text}");
    let found: Vec<_> = text
        .lines()
        .filter(|line| line.contains("incarnation") || line.contains("illegal instruction"))
        .collect();
    // Each begins, and dies; the last one lives.
    for incarnation in 1..6 {
        let starts = text.matches(&format!("incarnation {incarnation}")).count();
        assert_eq!(starts, 1, "{found:#?}");
    }
    assert_eq!(text.matches("as told: illegal").count(), 4, "{found:#?}");
    let places: Vec<_> = (1..6)
        .map(|incarnation| text.find(&format!("incarnation {incarnation}")).unwrap())
        .collect();
    assert!(places.is_sorted(), "{places:?}");
}

#[test]
fn a_flood_is_told_line_by_line_or_its_gaps_are_counted() {
    let daemon = chaos();
    let (_vmm, mut driver, address) = bound(&daemon);
    let (_, _, _, mut since) = all_from(&daemon, 0);
    tell(&mut driver, address, "trace-flood 2000");
    // While it writes, to see pieces.
    let (mut text, mut gaps) = (String::new(), 0);
    let end = Instant::now() + PATIENCE;
    while !text.contains("flood 2000 of 2000") {
        assert!(
            Instant::now() < end,
            "{gaps} gaps, and the last: {text:.200}"
        );
        let (more, lost, overruns, next) = all_from(&daemon, since);
        text.push_str(&more);
        gaps += lost + overruns;
        since = next;
    }
    let numbers: Vec<u32> = text
        .lines()
        .filter_map(|line| line.split_once("flood ")?.1.split(' ').next()?.parse().ok())
        .collect();
    assert!(numbers.is_sorted(), "lines are never out of order");
    if gaps == 0 {
        let missing: Vec<_> = (1..=2000)
            .filter(|number| !numbers.contains(number))
            .collect();
        assert!(
            missing.is_empty() && numbers.len() == 2000,
            "{missing:?} are missing"
        );
    } else {
        assert!(numbers.len() <= 2000);
    }
}

#[test]
fn the_trace_of_a_core_that_is_offline_can_still_be_read() {
    let daemon = chaos();
    assert!(daemon.rprocctl(&["stop", "core"]).status.success());
    let output = daemon.rprocctl(&["trace", "core"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("incarnation 1"), "{text}");
}

#[test]
fn rprocctl_follows_a_trace_until_it_is_ended() {
    let daemon = chaos();
    let (_vmm, mut driver, address) = bound(&daemon);
    let mut follower = Command::new(env!("CARGO_BIN_EXE_rprocctl"))
        .arg("--socket")
        .arg(daemon.socket("control"))
        .args(["trace", "--follow", "core"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let mut until = |wanted: &str| {
        let found = lines.by_ref().find(|line| {
            let line = line.as_ref().expect("a line");
            line.contains(wanted)
        });
        assert!(found.is_some(), "{wanted}");
    };
    until("incarnation 1");
    tell(&mut driver, address, "trace-flood 3");
    until("flood 3 of 3");
    tell(&mut driver, address, "illegal");
    until("incarnation 2");
    follower.kill().unwrap();
    follower.wait().unwrap();
    drop(driver);
    assert_eq!(daemon.status()[0].crashes, 1);
}

#[test]
fn nothing_in_a_trace_acts_on_a_terminal() {
    use rprocd::engine::RunEnd;
    use rprocd::memory::DeviceAddress;
    use rprocd::rproc::Holder;
    use vm_memory::Bytes;

    use crate::firmware::table_builder::Table;
    use crate::lifecycle::{core_without_vdevs, engine};

    // No NUL, an escape sequence, a torn character at the end, over and over.
    let hostile = b"\x1b]0;owned\x07\x9b2J\r\xe2\x80\xae\xff tail \xe2\x82";
    let mut engine = engine();
    engine.set_script(move |ram, _| {
        let slice = ram.slice(DeviceAddress(0x8000_0800), 0x80).unwrap();
        for at in (0..0x80 - hostile.len()).step_by(hostile.len()) {
            slice.write_slice(hostile, at).unwrap();
        }
        RunEnd::Waiting { until: None }
    });
    let table = Table::new()
        .carveout(0x8000_0000, 0x2000, "image")
        .trace(0x8000_0800, 0x80, "log");
    let core = core_without_vdevs(engine, &table);
    core.start(Holder::Operator).unwrap();
    let end = Instant::now() + PATIENCE;
    let piece = loop {
        let trace = core.traces(vec![0], 1 << 16).remove(0);
        if !trace.text.bytes.is_empty() {
            break TracePiece::new(trace);
        }
        assert!(Instant::now() < end);
    };
    assert!(piece.text.contains("\\x1b]0;owned\\x07"), "{}", piece.text);
    let acts = |c: char| c != '\n' && c != '\t' && (c.is_control() || c == '\u{202e}');
    assert!(!piece.text.contains(acts), "{:?}", piece.text);
}

/// What rprocctl shows, and says beside it.
fn shown(daemon: &Daemon, words: &[&str]) -> (i32, String, String) {
    let output = daemon.rprocctl(&[&["trace", "core"], words].concat());
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn a_line_stands_where_an_incarnation_begins_and_one_can_be_chosen() {
    let daemon = chaos();
    for _ in 0..2 {
        assert!(daemon.rprocctl(&["crash", "core"]).status.success());
    }
    wait_for_incarnation(&daemon, 3);
    let heads = |text: &str| -> Vec<String> {
        let heads = text.lines().filter(|line| line.starts_with("--- "));
        let number = |line: &str| {
            Some(
                line.strip_prefix("--- incarnation ")?
                    .split_once(',')?
                    .0
                    .to_owned(),
            )
        };
        heads.map(|line| number(line).unwrap()).collect()
    };
    // The third may not have written anything yet.
    let end = Instant::now() + PATIENCE;
    let text = loop {
        let (status, text, error) = shown(&daemon, &[]);
        assert_eq!((status, error.as_str()), (0, ""));
        if heads(&text) == ["1", "2", "3"] {
            break text;
        }
        assert!(Instant::now() < end, "{text}");
    };
    let begin = text.lines().next().unwrap();
    assert!(
        begin.contains(", booted at 2") && begin.ends_with("Z ---"),
        "{begin}"
    );
    for (which, number) in [("1", "1"), ("3", "3"), ("0", "3"), ("-1", "2"), ("-2", "1")] {
        let (status, text, _) = shown(&daemon, &["--incarnation", which]);
        assert_eq!(status, 0, "{which}");
        assert_eq!(heads(&text), [number], "{which}: {text}");
        assert!(
            text.contains(&format!("incarnation {number}")),
            "{which}: {text}"
        );
    }
    let (status, _, error) = shown(&daemon, &["-i", "7"]);
    assert_eq!(status, 1);
    assert!(
        error.contains("kept is text of incarnation 1, 2, 3"),
        "{error}"
    );
    let (_, text, _) = shown(&daemon, &["--lines", "1"]);
    assert_eq!(heads(&text), ["3"]);
    assert_eq!(text.lines().count(), 2, "{text}");
    let (status, _, error) = shown(&daemon, &["--buffer", "none"]);
    assert_eq!(status, 1);
    assert!(
        error.contains("has no trace buffer \"none\"; it has: "),
        "{error}"
    );
    // The same for programs, in one document.
    let (_, text, _) = shown(&daemon, &["--json"]);
    let pieces: serde_json::Value = serde_json::from_str(&text).unwrap();
    let numbers: Vec<_> = pieces
        .as_array()
        .unwrap()
        .iter()
        .filter(|it| it["buffer"] == 0)
        .map(|it| it["incarnation"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, [1, 2, 3]);
}

#[test]
fn text_whose_beginning_is_lost_begins_with_a_whole_line_and_says_how_much_is_missing() {
    let daemon = chaos();
    let (_vmm, mut driver, address) = bound(&daemon);
    // More than is kept.
    tell(&mut driver, address, "trace-flood 9000");
    let end = Instant::now() + PATIENCE;
    while !all_from(&daemon, 0).0.contains("flood 9000 of 9000") {
        assert!(Instant::now() < end);
    }
    let (status, text, error) = shown(&daemon, &[]);
    assert_eq!(status, 0);
    let mut lines = text.lines();
    assert!(
        lines.next().unwrap().starts_with("--- incarnation 1, "),
        "{text:.200}"
    );
    let first = lines.next().unwrap();
    let whole = text.lines().nth_back(1).unwrap();
    let word = |line: &str| line.split_once("flood").map(|(front, _)| front.to_owned());
    assert_eq!(
        word(first).map(|it| it.is_empty()),
        word(whole).map(|it| it.is_empty()),
        "{first}"
    );
    assert!(
        error.contains(" bytes in front of this are not kept any more"),
        "{error}"
    );
    assert!(error.contains("nor the line in which they end"), "{error}");
    // Who wants the last lines only is told nothing of it.
    let (_, text, error) = shown(&daemon, &["-n", "5"]);
    assert_eq!((text.lines().count(), error.as_str()), (6, ""), "{text}");
}

#[test]
fn who_follows_a_trace_is_told_that_the_daemon_ended() {
    let mut daemon = chaos();
    let mut follower = Command::new(env!("CARGO_BIN_EXE_rprocctl"))
        .arg("--socket")
        .arg(daemon.socket("control"))
        .args(["trace", "--follow", "core"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut output = BufReader::new(follower.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    assert!(line.starts_with("--- incarnation 1, "), "{line}");
    daemon.ask_to_end();
    daemon.wait_for_end().unwrap();
    let output = follower.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(9));
    let error = String::from_utf8(output.stderr).unwrap();
    let socket = daemon.socket("control");
    assert_eq!(
        error,
        format!("rprocctl: rprocd at {} ended\n", socket.display())
    );
}
