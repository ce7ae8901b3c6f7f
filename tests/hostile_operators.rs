//! Operators and hosts that mean no good, or have nothing left.
//!
//! What belongs here: what comes over the control socket from anybody, who may come, and a host that
//! runs out of something, in front of the real daemon. What does not: guests and firmware.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rprocd::control::client::{CallError, Connection};
use rprocd::control::{MAX_DEPTH, MAX_MESSAGE_BYTES};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use serde_json::{Value, json};

use crate::frontend::process::{Core, Daemon};
use crate::frontend::rpmsg::RpmsgDriver;
use crate::frontend::vmm::{Options, Vmm};

const PATIENCE: Duration = Duration::from_secs(120);
const OWN_ADDRESS: u32 = 1030;
/// The user nobody.
const NOBODY: u32 = 65534;

fn connect(daemon: &Daemon) -> Connection {
    Connection::open(&daemon.socket("control"), PATIENCE).unwrap()
}

fn serves(daemon: &Daemon) {
    let list: Value = connect(daemon).call("io.rprocd.List", &json!({})).unwrap();
    assert_eq!(list["cores"][0]["state"], "running");
}

/// What is answered until the daemon hangs up.
fn answers(daemon: &Daemon, said: &[u8]) -> String {
    let mut stream = UnixStream::connect(daemon.socket("control")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // It may hang up before it has heard all.
    let _ = stream.write_all(said);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

#[test]
fn what_is_no_call_is_told_so_and_hung_up_on_and_others_are_served() {
    let daemon = Daemon::start(&[Core::default()]);
    let list = r#"{"method": "io.rprocd.List"}"#;
    let deep = format!(
        "{}{}\0",
        "[".repeat(MAX_DEPTH + 1),
        "]".repeat(MAX_DEPTH + 1)
    );
    let long = format!("{{\"method\": \"{}\"}}\0", "x".repeat(MAX_MESSAGE_BYTES));
    for (said, reason) in [
        (deep.as_str(), "deep"),
        (&long, "longer than"),
        (
            r#"{"method": "io.rprocd.List", "method": "io.rprocd.Stop"}"#,
            "duplicate field",
        ),
        ("{\"method\": \"io.rprocd\0.List\"}", "EOF while parsing"),
        (r#"{"method": "\ud800"}"#, "hex escape"),
        (r#"{"method": 7}"#, "expected a string"),
        ("[]", "invalid length"),
        ("{]", "key must be a string"),
        ("\u{feff}{}", "expected value"),
    ] {
        for end in ["\0", "\n"] {
            let answer = answers(&daemon, format!("{list}{end}{said}{end}").as_bytes());
            let (first, rest) = answer.split_once(end).unwrap();
            assert!(first.contains("\"cores\""), "{said:.80}: {first}");
            assert!(
                rest.contains("io.rprocd.NotACall") && rest.contains(reason),
                "{said:.80}: {rest}"
            );
        }
    }
    // What is a call, and asks for what is not there.
    for (said, error) in [
        (r#"{"method": "io.rprocd.Explode"}"#, "MethodNotFound"),
        (r#"{"method": ""}"#, "MethodNotFound"),
        (
            r#"{"method": "io.rprocd.Start", "parameters": 7}"#,
            "InvalidParameter",
        ),
        (
            r#"{"method": "io.rprocd.Start", "parameters": {"core": 1e999}}"#,
            "NotACall",
        ),
        (
            r#"{"method": "io.rprocd.Events", "parameters": {"since": -1}}"#,
            "InvalidParameter",
        ),
        (
            r#"{"method": "io.rprocd.Start", "parameters": {"core": "\u0000"}}"#,
            "NoSuchCore",
        ),
    ] {
        let answer = answers(&daemon, format!("{said}\0").as_bytes());
        assert!(answer.contains(error), "{said}: {answer}");
    }
    serves(&daemon);
}

#[test]
fn a_message_may_come_byte_by_byte() {
    let daemon = Daemon::start(&[Core::default()]);
    let mut stream = UnixStream::connect(daemon.socket("control")).unwrap();
    for byte in b"{\"method\": \"org.varlink.service.GetInfo\"}\0{\"method\": \"x\"}\0" {
        stream.write_all(&[*byte]).unwrap();
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let answers: Vec<_> = answer.split_terminator('\0').collect();
    assert_eq!(answers.len(), 2);
    assert!(answers[0].contains("product") && answers[1].contains("MethodNotFound"));
}

#[test]
fn another_user_is_kept_out_or_may_only_look_and_that_is_logged() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can be somebody else");
        return;
    }
    let daemon = Daemon::start(&[Core::default()]);
    let folder = daemon.socket("control");
    let folder = folder.parent().unwrap();
    fs::set_permissions(folder, Permissions::from_mode(0o711)).unwrap();
    // The program itself may lie where nobody may go.
    let program = folder.join("rprocctl");
    // A link and not a copy, which another test's child might hold open for writing.
    fs::hard_link(env!("CARGO_BIN_EXE_rprocctl"), &program)
        .or_else(|_| {
            let mut copy = Command::new("cp");
            let copy = copy.arg(env!("CARGO_BIN_EXE_rprocctl")).arg(&program);
            copy.status().map(drop)
        })
        .unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let said = |socket: &str, words: &[&str]| {
        let output = Command::new(&program)
            .arg("--socket")
            .arg(daemon.socket(socket))
            .args(words)
            .uid(NOBODY)
            .gid(NOBODY)
            .current_dir("/")
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), error)
    };
    let (status, error) = said("control", &["stop", "echo"]);
    assert_eq!(status, Some(6), "{error}");
    assert!(error.contains("you may not connect to"), "{error}");
    // Who only looks is served by the socket beside it, if that is for them.
    assert_eq!(said("control", &["list"]), (Some(0), String::new()));
    let monitor = daemon.socket("monitor");
    fs::set_permissions(&monitor, Permissions::from_mode(0o600)).unwrap();
    let (status, error) = said("control", &["list"]);
    assert_eq!(status, Some(6), "{error}");
    assert!(error.contains("control.sock"), "{error}");
    fs::set_permissions(&monitor, Permissions::from_mode(0o666)).unwrap();
    assert_eq!(said("monitor", &["list"]).0, Some(0));
    for words in [["stop", "echo"], ["crash", "echo"], ["suspend", "echo"]] {
        let (status, error) = said("monitor", &words);
        assert_eq!(status, Some(6), "{error}");
    }
    daemon.wait_for_log(&format!("uid {NOBODY}): io.rprocd.Stop is refused"));
    serves(&daemon);
}

#[test]
fn of_many_who_start_and_stop_at_once_one_wins_each_time() {
    let daemon = Daemon::start(&[Core::default()]);
    for (round, method) in ["io.rprocd.Stop", "io.rprocd.Start"]
        .repeat(20)
        .iter()
        .enumerate()
    {
        let outcomes: Vec<bool> = thread::scope(|scope| {
            let askers: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let mut connection = connect(&daemon);
                        match connection.call::<Value>(method, &json!({ "core": "echo" })) {
                            Ok(_) => true,
                            Err(CallError::AlreadySo(why)) => {
                                assert!(why.contains("already"), "{why}");
                                false
                            }
                            Err(cause) => panic!("{cause}"),
                        }
                    })
                })
                .collect();
            askers
                .into_iter()
                .map(|asker| asker.join().unwrap())
                .collect()
        });
        let winners = outcomes.iter().filter(|won| **won).count();
        assert_eq!(winners, 1, "round {round}");
    }
    assert_eq!(daemon.status()[0].incarnation, 21);
    serves(&daemon);
}

#[test]
fn a_daemon_that_is_killed_in_any_state_leaves_nothing_that_the_next_one_minds() {
    let settings = "[core.recovery]\nenabled = false\n[core.coredump]\nmode = \"inline\"\n\
                    directory = \".\"";
    let core = || Core {
        settings,
        ..Core::default()
    };
    let mut daemon = Daemon::start(&[core()]);
    let states: [(&str, &[&[&str]]); 5] = [
        ("running", &[]),
        ("offline", &[&["stop", "echo"]]),
        ("suspended", &[&["suspend", "echo"]]),
        ("crashed", &[&["crash", "echo"]]),
        (
            "running",
            &[&["crash", "echo"], &["recovery", "now", "echo"]],
        ),
    ];
    for (state, verbs) in states {
        let vmm = Vmm::connect(&daemon.socket("echo"), Options::default());
        let mut vmm = vmm.unwrap();
        let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
        driver.wait_for_channel("rpmsg-raw", PATIENCE).unwrap();
        for verb in verbs {
            assert!(daemon.rprocctl(verb).status.success(), "{verb:?}");
        }
        assert_eq!(daemon.status()[0].state, state);
        let pid = Pid::from_raw(daemon.pid().cast_signed()).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
        daemon.wait_for_end().unwrap();
        drop(driver);
        drop(vmm);
        let next = daemon.again();
        daemon = next;
        // Another VMM finds a core that serves.
        let vmm = Vmm::connect(&daemon.socket("echo"), Options::default());
        let mut vmm = vmm.unwrap();
        let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
        let address = driver.wait_for_channel("rpmsg-raw", PATIENCE).unwrap();
        driver.send(OWN_ADDRESS, address, b"hello").unwrap();
        assert_eq!(driver.recv_within(PATIENCE).unwrap().payload, b"hello");
    }
    // The dumps that were there are there.
    let list = daemon.rprocctl(&["coredump", "list", "echo", "--json"]);
    let list: Value = serde_json::from_slice(&list.stdout).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 2);
}

/// Sets a soft limit of a running daemon, and says what it was.
fn limit(daemon: &Daemon, resource: Resource, to: u64) -> Rlimit {
    let pid = Pid::from_raw(daemon.pid().cast_signed());
    let maximum = getrlimit(resource).maximum;
    let limit = Rlimit {
        current: Some(to),
        maximum,
    };
    prlimit(pid, resource, limit).unwrap()
}

#[test]
fn without_descriptors_verbs_fail_and_the_core_goes_on() {
    let daemon = Daemon::start(&[Core::default()]);
    let mut vmm = Vmm::connect(&daemon.socket("echo"), Options::default()).unwrap();
    let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
    let address = driver.wait_for_channel("rpmsg-raw", PATIENCE).unwrap();
    let mut before = connect(&daemon);
    let _: Value = before.call("io.rprocd.List", &json!({})).unwrap();
    let used = fs::read_dir(format!("/proc/{}/fd", daemon.pid()))
        .unwrap()
        .count();
    let old = limit(&daemon, Resource::Nofile, used as u64);
    let mut echoes = || {
        driver.send(OWN_ADDRESS, address, b"ping").unwrap();
        assert_eq!(driver.recv_within(PATIENCE).unwrap().payload, b"ping");
    };
    echoes();
    // A firmware cannot be opened; what needs nothing new is done.
    let check = json!({ "core": "echo", "firmware": "echo.elf" });
    let refused = before.call::<Value>("io.rprocd.CheckFirmware", &check);
    let Err(CallError::Refused(reason)) = refused else {
        panic!("{refused:?}");
    };
    assert!(reason.contains("open files"), "{reason}");
    let _: Value = before.call("io.rprocd.List", &json!({})).unwrap();
    // A new client waits, at worst, and does not make the daemon spin.
    let late = UnixStream::connect(daemon.socket("control")).unwrap();
    echoes();
    limit(&daemon, Resource::Nofile, old.current.unwrap_or(1024));
    drop(late);
    serves(&daemon);
    echoes();
}

#[test]
fn without_room_for_another_thread_all_goes_on() {
    let daemon = Daemon::start(&[Core::default()]);
    let mut vmm = Vmm::connect(&daemon.socket("echo"), Options::default()).unwrap();
    let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
    let address = driver.wait_for_channel("rpmsg-raw", PATIENCE).unwrap();
    let mut clients: Vec<_> = (0..8).map(|_| connect(&daemon)).collect();
    let statm = fs::read_to_string(format!("/proc/{}/statm", daemon.pid())).unwrap();
    let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
    // Too little for the stack of one more.
    limit(&daemon, Resource::As, pages * 4096 + (256 << 10));
    for client in &mut clients {
        let _: Value = client.call("io.rprocd.List", &json!({})).unwrap();
        let _: Value = client
            .call("io.rprocd.Suspend", &json!({ "core": "echo" }))
            .unwrap();
        let _: Value = client
            .call("io.rprocd.Resume", &json!({ "core": "echo" }))
            .unwrap();
    }
    driver.send(OWN_ADDRESS, address, b"ping").unwrap();
    assert_eq!(driver.recv_within(PATIENCE).unwrap().payload, b"ping");
}

#[test]
fn every_timer_runs_on_a_clock_that_nobody_sets() {
    let daemon = Daemon::start(&[Core::default()]);
    // Traces and half messages are what timers are for.
    let mut trace = connect(&daemon);
    trace
        .send("io.rprocd.Trace", &json!({ "core": "echo" }), true, &[])
        .unwrap();
    trace.answer("io.rprocd.Trace").unwrap();
    let mut half = UnixStream::connect(daemon.socket("control")).unwrap();
    half.write_all(b"{").unwrap();
    let mut clocks = Vec::new();
    for info in fs::read_dir(format!("/proc/{}/fdinfo", daemon.pid()))
        .unwrap()
        .flatten()
    {
        let text = fs::read_to_string(info.path()).unwrap_or_default();
        clocks.extend(
            text.lines()
                .filter_map(|it| it.strip_prefix("clockid: "))
                .map(str::to_owned),
        );
    }
    // CLOCK_MONOTONIC.
    assert!(!clocks.is_empty());
    assert!(clocks.iter().all(|clock| clock == "1"), "{clocks:?}");
}
