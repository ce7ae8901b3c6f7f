//! What an operator reads: each verb of rprocctl in front of a real daemon.
//!
//! What belongs here: text, JSON, exit statuses, pages. What does not: what the verbs do to a core
//! (see `operator`, `crash`, `dumps`), and how answers come about (`control`, `watching`).

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::frontend::process::{Core, Daemon, firmware_dir};
use crate::frontend::rpmsg::RpmsgDriver;
use crate::frontend::vmm::{Options, Vmm};

const PATIENCE: Duration = Duration::from_secs(120);
const OWN_ADDRESS: u32 = 1030;
const ALL_DUMPS: &str = "[core.recovery]\nminimum-run-time-ms = 0\n[core.coredump]\nmode = \
                         \"inline\"\ndirectory = \".\"";

#[track_caller]
fn done(output: Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn has_all(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in\n{text}");
    }
}

fn daemon() -> Daemon {
    Daemon::start(&[
        Core {
            settings: ALL_DUMPS,
            ..Core::default()
        },
        Core {
            name: "dsp",
            image: "chaos",
            settings: ALL_DUMPS,
            ..Core::default()
        },
    ])
}

#[test]
fn each_verb_that_looks_has_text_for_people_and_json_for_programs() {
    let daemon = daemon();
    done(daemon.rprocctl(&["crash", "echo"]));
    let socket = daemon.socket("echo").display().to_string();
    let verbs: [(&[&str], &[&str]); 17] = [
        (
            &["list"],
            &["CORE", "echo", "dsp", "running", "held by operator"],
        ),
        (
            &["info", "echo"],
            &["held by        operator", "4 MiB from 0x80000000", &socket],
        ),
        (&["queues", "echo"], &["to guest", "0x80040000", "256"]),
        (&["endpoints", "echo"], &["and there is none"]),
        (
            &["mem", "echo"],
            &["carveout \"vdev0buffer\"", "trace buffer", "(free)"],
        ),
        (
            &["resources", "echo"],
            &["0: carveout \"firmware\"", "2: vdev: id 7", "vring 1"],
        ),
        (
            &["timings", "echo"],
            &["recovery", "coredump", "start vdevs"],
        ),
        (&["coredump", "list", "echo"], &["core.echo.1.1.elf", "yes"]),
        (&["coredump", "mode", "echo"], &["inline"]),
        (&["firmware", "get", "echo"], &["echo.elf (sha256 "]),
        (
            &["firmware", "check", "echo", "chaos.elf"],
            &["chaos.elf is accepted", "segment 1"],
        ),
        (&["recovery", "get", "echo"], &["enabled"]),
        (
            &["vmm", "qemu", "echo"],
            &["vhost-user-test-device-pci", "num_vqs=2", &socket],
        ),
        (
            &["vmm", "cloud-hypervisor", "echo"],
            &["queue_sizes=[256,256]", "shared=on"],
        ),
        (&["ping"], &["rprocd 0", "answers after"]),
        (&["version"], &["rprocctl 0", "rprocd 0"]),
        (&["report"], &["\"crashes\"", "an operator had it crash"]),
    ];
    for (verb, words) in verbs {
        has_all(&done(daemon.rprocctl(verb)), words);
        let json = done(daemon.rprocctl(&[verb, &["--json"]].concat()));
        serde_json::from_str::<Value>(&json).unwrap_or_else(|cause| panic!("{verb:?}: {cause}"));
    }
}

#[test]
fn events_are_a_line_each_and_follow_what_happens() {
    let daemon = daemon();
    let mut follower = Command::new(env!("CARGO_BIN_EXE_rprocctl"))
        .arg("--socket")
        .arg(daemon.socket("control"))
        .args(["events", "--follow", "--since", "0", "--json", "echo"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let mut events = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    let mut until = |what: &str, detail: &str| {
        let found = events.find(|it| it["what"] == what && it["detail"] == detail);
        found.unwrap()
    };
    until("state", "running");
    let vmm = Vmm::connect(&daemon.socket("echo"), Options::default());
    let mut vmm = vmm.unwrap();
    let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
    let address = driver.wait_for_channel("rpmsg-raw", PATIENCE).unwrap();
    assert_eq!(until("guest", "attached")["vdev"], 0);
    assert_eq!(
        until("announced", &format!("rpmsg-raw {address}"))["incarnation"],
        1
    );
    drop(driver);
    drop(vmm);
    until("guest", "gone");
    done(daemon.rprocctl(&["crash", "echo"]));
    until("withdrawn", &format!("rpmsg-raw {address}"));
    follower.kill().unwrap();
    follower.wait().unwrap();
    // All that is kept, in the order of their numbers.
    let text = done(daemon.rprocctl(&["events"]));
    has_all(
        &text,
        &[
            " echo: state: offline\n",
            " echo: crash: fatal error: an operator",
        ],
    );
    let numbers = text
        .lines()
        .map(|line| line.split(' ').next().unwrap().parse::<u64>().unwrap());
    assert!(numbers.is_sorted());
    assert!(!text.contains(": step: "));
    let steps = done(daemon.rprocctl(&["events", "--steps", "dsp"]));
    has_all(&steps, &[" dsp: step: boot: load ("]);
    assert!(!steps.contains(" echo: "));
}

#[test]
fn a_change_shows_its_steps_when_asked() {
    let daemon = daemon();
    let text = done(daemon.rprocctl(&["restart", "--progress", "echo"]));
    has_all(
        &text,
        &[
            "step: stop: stop",
            "state: offline",
            "step: boot: load",
            "state: running",
        ],
    );
    assert_eq!(done(daemon.rprocctl(&["restart", "echo"])), "");
    assert_eq!(daemon.status()[0].incarnation, 3);
    // What does not run needs no stop.
    done(daemon.rprocctl(&["stop", "echo"]));
    done(daemon.rprocctl(&["stop", "--if-running", "echo"]));
    done(daemon.rprocctl(&["restart", "echo"]));
    assert_eq!(daemon.status()[0].state, "running");
}

#[test]
fn a_coredump_is_fetched_into_a_new_file() {
    let daemon = daemon();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fetched.elf");
    let get = [
        "coredump",
        "get",
        "echo",
        "--output",
        path.to_str().unwrap(),
    ];
    let none = daemon.rprocctl(&get);
    assert_eq!(none.status.code(), Some(1));
    has_all(
        &String::from_utf8(none.stderr).unwrap(),
        &["core echo has no coredumps"],
    );
    done(daemon.rprocctl(&["crash", "echo"]));
    done(daemon.rprocctl(&get));
    assert_eq!(&fs::read(&path).unwrap()[..4], b"\x7fELF");
    // What is there is not written over.
    let again = daemon.rprocctl(&get);
    assert_eq!(again.status.code(), Some(1));
    has_all(
        &String::from_utf8(again.stderr).unwrap(),
        &["cannot write", "exists"],
    );
    done(daemon.rprocctl(&["coredump", "mode", "echo", "disabled"]));
    done(daemon.rprocctl(&["crash", "echo"]));
    let list = done(daemon.rprocctl(&["coredump", "list", "echo", "--json"]));
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 1);
}

#[test]
fn a_firmware_anywhere_on_the_disk_is_given_as_an_open_file() {
    let daemon = daemon();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.elf");
    fs::copy(firmware_dir().join("tty.elf"), &path).unwrap();
    let path = path.to_str().unwrap();
    let judged = done(daemon.rprocctl(&["firmware", "check", "echo", path]));
    has_all(&judged, &["mine.elf is accepted"]);
    done(daemon.rprocctl(&["stop", "echo"]));
    done(daemon.rprocctl(&["start", "echo", "--firmware", path]));
    assert_eq!(daemon.status()[0].firmware, "mine.elf");
    let bad = daemon.rprocctl(&["firmware", "check", "echo", "/etc/passwd"]);
    assert_eq!(bad.status.code(), Some(4));
    has_all(
        &String::from_utf8(bad.stdout).unwrap(),
        &["passwd is refused"],
    );
    let missing = daemon.rprocctl(&["firmware", "check", "echo", "./missing.elf"]);
    assert_eq!(missing.status.code(), Some(1));
}

#[test]
fn a_configuration_is_checked_without_a_daemon_and_nothing_is_made_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new.toml");
    let check = |text: &str, json: bool| {
        fs::write(&path, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_rprocctl"));
        command
            .env_remove("RPROCD_SOCKET")
            .args(["config", "check"]);
        command.arg(&path).args(json.then_some("--json"));
        command.output().unwrap()
    };
    let good = format!(
        "firmware-directory = {:?}\n[[core]]\nname = \"m4\"\nengine = \"rv32\"\n\
         firmware = \"echo.elf\"\n[[core.vdev]]\nsocket = \"vdev0\"\n",
        firmware_dir()
    );
    let text = done(check(&good, false));
    has_all(&text, &["new.toml: ok, 1 core(s): m4"]);
    let json: serde_json::Value = serde_json::from_str(&done(check(&good, true))).unwrap();
    let path = path.to_str().unwrap();
    let expected = serde_json::json!({
        "file": path, "accepted": true, "cores": ["m4"], "problems": []
    });
    assert_eq!(json, expected);
    let bad = check(&good.replace("rv32", "z80"), false);
    assert_eq!(bad.status.code(), Some(4));
    has_all(
        &String::from_utf8(bad.stderr).unwrap(),
        &["new.toml:4:10: core 0 (name \"m4\"): engine is \"z80\", must be \"rv32\""],
    );
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn crosvm_is_not_told_what_it_cannot_do() {
    let daemon = daemon();
    let output = daemon.rprocctl(&["vmm", "crosvm", "echo"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    has_all(
        &said,
        &["virtio device 7", "3 (console)", "cloud-hypervisor"],
    );
}

#[test]
fn a_daemon_that_does_not_answer_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let _silent = UnixListener::bind(&path).unwrap();
    let begun = Instant::now();
    let output = Command::new(env!("CARGO_BIN_EXE_rprocctl"))
        .args(["--timeout", "0.2", "--socket"])
        .args([path.to_str().unwrap(), "ping"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert!(begun.elapsed() < PATIENCE);
    has_all(
        &String::from_utf8(output.stderr).unwrap(),
        &["has not answered", "200ms"],
    );
}

#[test]
fn a_daemon_that_accepts_nobody_is_not_waited_for() {
    use rustix::net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket,
        socket_with,
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let address = SocketAddrUnix::new(&path).unwrap();
    let hanging = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    bind(&hanging, &address).unwrap();
    listen(&hanging, 0).unwrap();
    // Until one more would have to wait.
    let mut waiting = Vec::new();
    loop {
        let flags = SocketFlags::NONBLOCK;
        let client = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        match connect(&client, &address) {
            Ok(()) => waiting.push(client),
            Err(cause) => {
                assert_eq!(cause, rustix::io::Errno::AGAIN);
                break;
            }
        }
    }
    let output = Command::new(env!("CARGO_BIN_EXE_rprocctl"))
        .args(["--timeout", "0.2", "--socket"])
        .args([path.to_str().unwrap(), "stop", "m0"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(7));
    has_all(
        &String::from_utf8(output.stderr).unwrap(),
        &["has not answered at", "200ms"],
    );
}

#[test]
fn top_shows_what_happens_each_second() {
    let daemon = daemon();
    let mut vmm = Vmm::connect(&daemon.socket("echo"), Options::default()).unwrap();
    let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
    let address = driver.wait_for_channel("rpmsg-raw", PATIENCE).unwrap();
    let mut top = Command::new(env!("CARGO_BIN_EXE_rprocctl"))
        .arg("--socket")
        .arg(daemon.socket("control"))
        .args(["top", "--iterations", "2", "--delay", "0.3"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    while top.try_wait().unwrap().is_none() {
        driver.send(OWN_ADDRESS, address, b"ping").unwrap();
        driver.recv_within(PATIENCE).unwrap();
    }
    let mut text = String::new();
    top.stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    has_all(
        &text,
        &["2 core(s), 2 up", "FIRMWARE HOLDS", "echo/0", "attached"],
    );
    let columns = |name: &str| -> Vec<String> {
        let line = text.lines().rfind(|line| line.starts_with(name)).unwrap();
        line.split("  ")
            .map(|it| it.trim().to_owned())
            .filter(|it| !it.is_empty())
            .collect()
    };
    // Messages in and out, and the time of a relay.
    let echo = columns("echo ");
    assert_ne!((echo[7].as_str(), echo[8].as_str()), ("0", "0"), "{text}");
    assert!(echo[11].ends_with('s'), "{text}");
    assert_eq!(columns("dsp ")[7], "0", "{text}");
    // Without a terminal it says what it needs.
    let output = daemon.rprocctl(&["top"]);
    assert_eq!(output.status.code(), Some(2));
    has_all(
        &String::from_utf8(output.stderr).unwrap(),
        &["--iterations"],
    );
}

#[test]
fn a_report_is_one_page_with_the_crash_in_the_firmwares_source() {
    let daemon = daemon();
    let mut vmm = Vmm::connect(&daemon.socket("dsp"), Options::default()).unwrap();
    let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
    for deadly in ["wild-store", "illegal"] {
        let address = driver.wait_for_channel("rpmsg-raw", PATIENCE).unwrap();
        for _ in 0..100 {
            driver.send(OWN_ADDRESS, address, b"ping").unwrap();
            driver.recv_within(PATIENCE).unwrap();
        }
        let crashes = daemon.status()[1].crashes;
        driver
            .send(OWN_ADDRESS, address, deadly.as_bytes())
            .unwrap();
        let end = Instant::now() + PATIENCE;
        while daemon.status()[1].crashes == crashes {
            assert!(Instant::now() < end);
        }
        // Three channels go, and come back.
        let told = driver.announcements().len() + 6;
        while driver.announcements().len() < told {
            assert!(Instant::now() < end);
            driver.recv_within(Duration::from_millis(5));
        }
    }
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("report.html");
    let symbols = firmware_dir().join("chaos.elf");
    let words = [
        "report",
        "--html",
        "--symbols",
        symbols.to_str().unwrap(),
        "--output",
    ];
    done(daemon.rprocctl(&[&words[..], &[path.to_str().unwrap()]].concat()));
    let page = fs::read_to_string(&path).unwrap();
    has_all(
        &page,
        &[
            "<svg",
            "States",
            "illegal instruction",
            "misbehave::illegal_instruction at ",
            "Last lines of trace buffer 0",
        ],
    );
    // One file that needs nothing and runs nothing.
    for word in ["<script", "http://", "https://", "src=", "url("] {
        assert!(!page.contains(word), "{word}");
    }
    for tag in [
        "html", "body", "table", "svg", "figure", "details", "pre", "td", "tr", "h2",
    ] {
        let (open, close) = (format!("<{tag}"), format!("</{tag}>"));
        let opened =
            page.matches(&format!("{open}>")).count() + page.matches(&format!("{open} ")).count();
        assert_eq!(opened, page.matches(&close).count(), "{tag}");
    }
}

#[test]
fn a_change_says_to_programs_what_was_done() {
    let daemon = daemon();
    let said = |words: &[&str]| {
        let text = done(daemon.rprocctl(&[words, &["--json"]].concat()));
        serde_json::from_str::<Value>(&text).unwrap_or_else(|cause| panic!("{words:?}: {cause}"))
    };
    for (words, done) in [
        (&["suspend", "echo"][..], &["suspend"][..]),
        (&["resume", "echo"], &["resume"]),
        (&["restart", "echo"], &["stop", "start"]),
        (&["stop", "echo"], &["stop"]),
        (&["stop", "--if-running", "echo"], &[]),
        (&["restart", "echo"], &["start"]),
        (&["recovery", "set", "echo", "disabled"], &["recovery set"]),
        (
            &["coredump", "mode", "echo", "disabled"],
            &["coredump mode"],
        ),
        (&["crash", "echo"], &["crash"]),
        (&["recovery", "now", "echo"], &["recovery now"]),
        (&["stop", "echo"], &["stop"]),
        (&["firmware", "set", "echo", "tty.elf"], &["firmware set"]),
        (
            &["start", "echo", "--firmware", "echo.elf"],
            &["firmware set", "start"],
        ),
    ] {
        let value = said(words);
        assert_eq!(value["core"], "echo", "{words:?}");
        assert_eq!(value["done"], serde_json::json!(done), "{words:?}");
        assert_eq!(value["daemon"], daemon.socket("control").to_str().unwrap());
    }
    // With steps, the last line is that.
    let text = done(daemon.rprocctl(&["restart", "echo", "--progress", "--json"]));
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.last().unwrap()["done"][0], "stop");
    assert_eq!(lines[0]["what"], "step");
    // Lists are of the verb's own subject.
    assert_eq!(said(&["queues", "echo"])[1]["way"], "to-core");
    assert!(said(&["timings", "echo"])[0]["steps"].is_array());
    assert_eq!(said(&["endpoints", "echo"]), serde_json::json!([]));
}

#[test]
fn an_error_is_an_object_for_programs_and_nothing_is_on_the_output() {
    let daemon = daemon();
    for (words, status, kind) in [
        (&["info", "nobody"][..], 3, "no-such-core"),
        (&["attach", "echo"], 4, "refused"),
        (&["resume", "echo"], 8, "already-so"),
        (&["frobnicate"], 2, "usage"),
        (&["info"], 2, "usage"),
        (&["vmm", "qemu", "echo", "--memory", "garbage"], 2, "usage"),
        (&["coredump", "get", "echo"], 1, "failed"),
        (
            &["--socket", "/nowhere/control", "--timeout", "1", "list"],
            5,
            "unreachable",
        ),
    ] {
        let output = daemon.rprocctl(&[&["--json"], words].concat());
        assert_eq!(output.status.code(), Some(status), "{words:?}: {output:?}");
        let error = String::from_utf8(output.stderr).unwrap();
        let first = error.lines().next().unwrap();
        let error: Value = serde_json::from_str(first).unwrap_or_else(|_| panic!("{error}"));
        assert_eq!(error["error"]["status"], status, "{words:?}");
        assert_eq!(error["error"]["kind"], kind, "{words:?}");
        assert!(error["error"]["message"].as_str().unwrap().len() > 10);
        // One of several that does not answer hides nobody else.
        assert_eq!(output.stdout.is_empty(), status != 5, "{words:?}");
    }
}

#[test]
fn the_help_lists_every_exit_status() {
    let output = Command::new(env!("CARGO_BIN_EXE_rprocctl"))
        .arg("--help")
        .output()
        .unwrap();
    let text = done(output);
    has_all(
        &text,
        &[
            "  3  no such core",
            "  8  nothing to do",
            "  9  rprocd ended",
            "RPROCD_SOCKET",
        ],
    );
}

#[test]
fn a_guests_memory_is_a_size_or_refused_with_what_it_may_be() {
    let daemon = daemon();
    let vmm = |size: &str| daemon.rprocctl(&["vmm", "qemu", "echo", "--memory", size]);
    for (size, shown) in [
        ("512", "512M"),
        ("2g", "2G"),
        ("1536M", "1536M"),
        ("1048576k", "1G"),
        ("1T", "1024G"),
    ] {
        let words = [format!("size={shown},"), format!("-m {shown} ")];
        has_all(&done(vmm(size)), &[&words[0], &words[1]]);
    }
    for (size, sentence) in [
        ("garbage", "a whole number with K, M, G or T behind it"),
        ("", "a whole number"),
        ("-1", "a whole number"),
        ("1.5G", "a whole number"),
        ("0", "at least 1M and at most 16T"),
        ("17T", "at least 1M and at most 16T"),
        ("99999999999999999999", "a whole number"),
        ("18446744073709551615G", "at least 1M and at most 16T"),
        ("1025K", "a multiple of 1M, which every VMM takes: 1M or 2M"),
    ] {
        let output = daemon.rprocctl(&["vmm", "qemu", "echo", &format!("--memory={size}")]);
        assert_eq!(output.status.code(), Some(2), "{size}");
        has_all(&String::from_utf8(output.stderr).unwrap(), &[sentence]);
    }
}

#[test]
fn a_name_that_is_nearly_a_cores_is_answered_with_that_core() {
    let daemon = daemon();
    for (name, sentence) in [
        ("ehco", "there is no core \"ehco\"; did you mean \"echo\"?"),
        ("other", "there is no core \"other\"; there are: echo, dsp"),
    ] {
        for verb in ["info", "stop", "trace", "mem"] {
            let output = daemon.rprocctl(&[verb, name]);
            assert_eq!(output.status.code(), Some(3), "{verb} {name}");
            has_all(&String::from_utf8(output.stderr).unwrap(), &[sentence]);
        }
    }
}
