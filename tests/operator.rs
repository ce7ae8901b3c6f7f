//! What an operator types, and what comes back.
//!
//! What belongs here: the command lines of `rprocd` and `rprocctl`, their output and exit status,
//! and the real daemon's control socket. What does not: what each method does (see `control`), and
//! guests, but for their coming and going.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rprocd::vdev::{Permissions, bind};
use rustix::process::{Pid, Signal, kill_process};

use crate::frontend::process::{Core, Daemon, firmware_dir};
use crate::frontend::rpmsg::RpmsgDriver;
use crate::frontend::vmm::{Options, Vmm};

const PATIENCE: Duration = Duration::from_secs(120);

fn check(config: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rprocd.toml");
    std::fs::write(&path, config).unwrap();
    Command::new(env!("CARGO_BIN_EXE_rprocd"))
        .args(["--check-config", "--config"])
        .arg(&path)
        .output()
        .unwrap()
}

fn config(core: &str, vdevs: usize) -> String {
    let vdevs: String = (0..vdevs)
        .map(|index| format!("[[core.vdev]]\nsocket = \"{index}.sock\"\n"))
        .collect();
    format!(
        "firmware-directory = {:?}\n[[core]]\nname = \"m0\"\nengine = \"rv32\"\n{core}\n{vdevs}",
        firmware_dir()
    )
}

fn refused(config: &str, words: &[&str]) {
    let output = check(config);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in:\n{text}");
    }
}

#[test]
fn a_good_configuration_is_checked_and_nothing_is_started() {
    let output = check(&config("firmware = \"echo.elf\"", 1));
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.ends_with(": ok, 1 core(s): m0\n"), "{text}");
}

#[test]
fn an_unknown_key_is_refused_with_line_and_column() {
    let config = config("firmware = \"echo.elf\"\nmemory-mb = 4", 1);
    refused(
        &config,
        &[
            "rprocd.toml:6:1: core 0 (name \"m0\"): there is no key memory-mb in [[core]]",
            "did you mean memory-mib?\n  6 | memory-mb = 4\n    | ^^^^^^^^^\n",
            "rprocd.toml: refused, 1 error\n",
        ],
    );
}

#[test]
fn a_firmware_that_is_not_there_is_refused_by_its_path() {
    refused(
        &config("firmware = \"nothing.elf\"", 1),
        &["core m0", "nothing.elf"],
    );
    refused(
        &config("firmware = \"ehco.elf\"", 1),
        &["ehco.elf: No such file", "did you mean \"echo.elf\"?"],
    );
}

#[test]
fn a_firmware_that_is_no_elf_is_refused_before_anything_is_started() {
    std::fs::write(
        firmware_dir().join("text.elf"),
        "not an ELF at all\n".repeat(9),
    )
    .unwrap();
    refused(
        &config("firmware = \"text.elf\"", 1),
        &["core m0", "text.elf", "ELF"],
    );
}

#[test]
fn everything_that_is_wrong_is_told_at_once_at_the_start_and_in_both_checks() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.toml");
    let text = format!(
        "firmware-directory = {:?}\n\
         [control]\nsocket = \"missing/control\"\ngroup = \"no-such-group\"\n\
         [[core]]\nname = \"m0\"\nengine = \"rv32\"\nfirmware = \"nothing.elf\"\n\
         [core.coredump]\nmode = \"inline\"\ndirectory = \"/nonexistent\"\n\
         [[core]]\nname = \"m1\"\nengine = \"rv32\"\nfirmware = \"nothing.elf\"\n",
        firmware_dir()
    );
    std::fs::write(&file, text).unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program)
            .args(arguments)
            .arg(&file)
            .output()
            .unwrap();
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (rprocd, rprocctl) = (env!("CARGO_BIN_EXE_rprocd"), env!("CARGO_BIN_EXE_rprocctl"));
    let (status, _, checked) = run(rprocd, &["--check-config", "--config"]);
    assert_eq!(status, 78);
    let places: Vec<_> = checked
        .lines()
        .filter_map(|line| line.split_once("a.toml:")?.1.split_once(": "))
        .map(|(place, _)| place)
        .collect();
    assert_eq!(
        places,
        ["3:10", "4:9", "8:12", "11:13", "15:12"],
        "{checked}"
    );
    for what in [
        "missing does not exist, and rprocd does not make it",
        "this host has no such group",
        "core m0: cannot open firmware",
        "/nonexistent, cannot be used; it must exist and be writable",
        "core m1: cannot open firmware",
        "a.toml: refused, 3 errors, 2 warnings\n",
    ] {
        assert!(checked.contains(what), "{what:?} is not in:\n{checked}");
    }

    let (status, _, by_rprocctl) = run(rprocctl, &["config", "check"]);
    assert_eq!(status, 4);
    assert_eq!(by_rprocctl, checked.replace("rprocd: ", "rprocctl: "));

    let (status, json, _) = run(rprocctl, &["--json", "config", "check"]);
    assert_eq!(status, 4);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["accepted"], false);
    assert_eq!(json["cores"], serde_json::json!(["m0", "m1"]));
    let problem = &json["problems"][2];
    assert_eq!(problem["severity"], "error");
    assert_eq!(problem["line"], 8);
    assert_eq!(problem["column"], 12);
    assert_eq!(problem["key"], "core[0].firmware");
    assert_eq!(problem["value"], "\"nothing.elf\"");
    assert!(problem["message"].as_str().unwrap().contains("nothing.elf"));

    // At the start, what depends on nobody but the daemon.
    let (status, _, started) = run(rprocd, &["--config"]);
    assert_eq!(status, 78);
    for place in ["8:12", "11:13", "15:12"] {
        assert!(
            started.contains(&format!("a.toml:{place}: core m")),
            "{started}"
        );
    }
    assert!(
        started.contains("a.toml is refused, as told above; nothing was started"),
        "{started}"
    );
}

#[test]
fn all_sockets_that_cannot_be_made_are_told_at_once_and_nothing_is_started() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.toml");
    let held = folder.path().join("held");
    let _holder = std::os::unix::net::UnixListener::bind(&held).unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let text = format!(
        "[control]\nsocket = \"held\"\nmonitor = \"missing/monitor\"\n{}",
        config("firmware = \"echo.elf\"", 1)
    );
    let text = text.replace("\"0.sock\"", "\"file\"");
    // A key of the top must come first.
    let (control, rest) = text.split_once("firmware-directory").unwrap();
    let (directory, cores) = rest.split_once('\n').unwrap();
    let text = format!("firmware-directory{directory}\n{control}{cores}");
    std::fs::write(&file, &text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_rprocd"))
        .arg("--config")
        .arg(&file)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    for what in [
        "held is in use: another process listens on it; stop that one, or choose another path",
        "file exists and is no socket; remove it, or choose another path",
        "missing does not exist, and rprocd does not make it; systemd does",
        "not all sockets can be made, as told above; nothing was started",
    ] {
        assert!(said.contains(what), "{what:?} is not in:\n{said}");
    }
    // What was there is left.
    assert!(held.exists() && folder.path().join("file").exists());
}

#[test]
fn a_daemon_without_a_configuration_says_which_file_it_wants_and_how_to_name_another() {
    for arguments in [&["--check-config"][..], &[]] {
        let output = Command::new(env!("CARGO_BIN_EXE_rprocd"))
            .args(arguments)
            .args(["--config", "/nonexistent/rprocd.toml"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        let what = "cannot read the configuration /nonexistent/rprocd.toml: No such file or \
                    directory (os error 2); name a file with --config FILE (rprocd.toml(5) has an \
                    example)";
        assert!(said.contains(what), "{said}");
    }
}

#[test]
fn as_many_vdevs_must_be_configured_as_the_firmware_declares() {
    refused(
        &config("firmware = \"echo.elf\"", 2),
        &["declares 1 vdev", "has 2 [[core.vdev]]"],
    );
}

#[test]
fn status_shows_each_core_in_columns() {
    let daemon = Daemon::start(&[
        Core::default(),
        Core {
            name: "tty",
            image: "tty",
            ..Core::default()
        },
    ]);
    let output = daemon.rprocctl(&["status"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        lines[0][..6],
        ["CORE", "STATE", "BOOT", "RUN", "PC", "FIRMWARE"]
    );
    for (line, name, file) in [
        (&lines[1], "echo", "echo.elf"),
        (&lines[2], "tty", "tty.elf"),
    ] {
        assert_eq!(line[..3], [name, "running", "1"]);
        assert!(
            line[3].ends_with('%') && line[4].starts_with("0x8"),
            "{text}"
        );
        assert_eq!(line[5..8], [file, "0", "none"]);
    }
}

#[test]
fn trace_shows_what_the_firmware_wrote() {
    let daemon = Daemon::start(&[Core::default()]);
    let text = String::from_utf8(daemon.rprocctl(&["trace", "echo"]).stdout).unwrap();
    assert!(text.contains("incarnation 1"), "{text}");
}

#[test]
fn a_core_that_does_not_exist_and_a_daemon_that_is_not_there_have_exit_statuses_of_their_own() {
    let daemon = Daemon::start(&[Core::default()]);
    let output = daemon.rprocctl(&["trace", "nobody"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nobody"));
    let output = Command::new(env!("CARGO_BIN_EXE_rprocctl"))
        .args(["--socket", "/nonexistent/control", "status"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nonexistent/control"));
}

fn wait_until_offline(daemon: &Daemon) {
    let deadline = Instant::now() + PATIENCE;
    while daemon.status()[0].state != "offline" {
        assert!(Instant::now() < deadline, "{:?}", daemon.status());
    }
}

/// `rprocctl start --while-connected` on the first core, that says it has begun.
fn start_while_connected(daemon: &Daemon) -> (Child, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_rprocctl"))
        .arg("--socket")
        .arg(daemon.socket("control"))
        .args(["start", "--while-connected", "echo"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let output = child.stdout.as_mut().unwrap();
    BufReader::new(output).read_line(&mut line).unwrap();
    (child, line)
}

#[test]
fn a_core_started_while_connected_lasts_as_long_as_rprocctl() {
    let daemon = Daemon::start(&[Core {
        settings: "auto-boot = false",
        ..Core::default()
    }]);
    let (mut child, line) = start_while_connected(&daemon);
    assert!(
        line.starts_with("echo: held until this rprocctl ends"),
        "{line}"
    );
    let core = daemon.status().swap_remove(0);
    assert_eq!(core.state, "running");
    let [holder] = &core.holders[..] else {
        panic!("{:?}", core.holders);
    };
    assert!(holder.starts_with("control connection "), "{holder}");
    let caller = format!("{holder} (pid {}, ", child.id());
    daemon.wait_for_log(&caller);
    daemon.wait_for_log("): io.rprocd.Start echo");
    child.stdin.as_mut().unwrap().write_all(b"typed\n").unwrap();
    assert_eq!(daemon.status()[0].state, "running");
    // The end of its input; by the time it is gone the core is stopped.
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    assert_eq!(daemon.status()[0].state, "offline");

    let (mut child, _) = start_while_connected(&daemon);
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until_offline(&daemon);
    let (mut child, _) = start_while_connected(&daemon);
    assert!(daemon.rprocctl(&["start", "echo"]).status.success());
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    assert_eq!(daemon.status()[0].state, "running");
    assert_eq!(daemon.status()[0].holders, ["operator"]);
}

#[test]
fn a_daemon_that_ends_ends_who_waits_for_it() {
    let mut daemon = Daemon::start(&[Core::default()]);
    let (child, _) = start_while_connected(&daemon);
    daemon.ask_to_end();
    assert!(daemon.wait_for_end().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(9));
}

#[test]
fn status_names_the_holders_below_the_table() {
    let daemon = Daemon::start(&[Core::default()]);
    let text = String::from_utf8(daemon.rprocctl(&["status"]).stdout).unwrap();
    assert_eq!(
        text.lines().nth(2),
        Some("echo: held by operator"),
        "{text}"
    );
    assert!(daemon.rprocctl(&["stop", "echo"]).status.success());
    let text = String::from_utf8(daemon.rprocctl(&["status"]).stdout).unwrap();
    assert_eq!(text.lines().count(), 2, "{text}");
}

/// The text, and the exit status.
fn said(daemon: &Daemon, arguments: &[&str]) -> (String, i32) {
    let output = daemon.rprocctl(arguments);
    let text = [output.stdout, output.stderr].concat();
    (
        String::from_utf8(text).unwrap(),
        output.status.code().unwrap(),
    )
}

#[test]
fn every_verb_does_what_it_says_or_says_why_not() {
    let daemon = Daemon::start(&[Core::default()]);
    for (arguments, status, words, state) in [
        (&["attach", "echo"][..], 4, "drives it already", "running"),
        (
            &["detach", "echo"],
            4,
            "rprocd booted it; stop it",
            "running",
        ),
        (&["resume", "echo"], 8, "running already", "running"),
        (&["suspend", "echo"], 0, "", "suspended"),
        (&["start", "echo"], 4, "resume it, or stop it", "suspended"),
        (&["resume", "echo"], 0, "", "running"),
        (
            &["recovery", "now", "echo"],
            8,
            "running already",
            "running",
        ),
        (&["recovery", "get", "echo"], 0, "enabled\n", "running"),
        (&["recovery", "set", "echo", "disabled"], 0, "", "running"),
        (&["recovery", "get", "echo"], 0, "disabled\n", "running"),
        (
            &["recovery", "set", "echo", "off"],
            2,
            "[possible values: enabled, disabled]",
            "running",
        ),
        (
            &["firmware", "get", "echo"],
            0,
            "echo.elf (sha256 ",
            "running",
        ),
        (
            &["firmware", "set", "echo", "chaos.elf"],
            4,
            "stop it first",
            "running",
        ),
        (&["stop", "echo"], 0, "", "offline"),
        (&["stop", "echo"], 8, "offline already", "offline"),
        (&["crash", "echo"], 4, "nothing runs", "offline"),
        (
            &["firmware", "set", "echo", "../no.elf"],
            1,
            "cannot open ../no.elf",
            "offline",
        ),
        (&["firmware", "set", "echo", "chaos.elf"], 0, "", "offline"),
        (
            &["firmware", "get", "echo"],
            0,
            "chaos.elf (sha256 ",
            "offline",
        ),
        (&["start", "echo"], 0, "", "running"),
        (&["timings", "nobody"], 3, "nobody", "running"),
        (&["firmware", "get", "nobody"], 3, "nobody", "running"),
        (
            &["recovery", "set", "nobody", "enabled"],
            3,
            "nobody",
            "running",
        ),
    ] {
        let (text, code) = said(&daemon, arguments);
        assert_eq!(code, status, "{arguments:?}: {text}");
        assert!(text.contains(words), "{arguments:?}: {text}");
        assert_eq!(text.is_empty(), words.is_empty(), "{arguments:?}: {text}");
        assert_eq!(daemon.status()[0].state, state, "{arguments:?}");
    }
}

#[test]
fn timings_are_a_table_of_changes_and_their_steps() {
    let daemon = Daemon::start(&[Core::default()]);
    assert!(daemon.rprocctl(&["stop", "echo"]).status.success());
    let (text, _) = said(&daemon, &["timings", "echo"]);
    let rows: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0], ["CHANGE", "STEP", "MICROSECONDS"]);
    assert_eq!(rows[1][..2], ["boot", "all"], "{text}");
    let all: u64 = rows[1][2].parse().unwrap();
    let steps = rows[2..].iter().take_while(|row| row[0] != "stop");
    let sum: u64 = steps
        .map(|row| row.last().unwrap().parse::<u64>().unwrap())
        .sum();
    // Each is rounded down.
    assert!(sum <= all && all <= sum + 20, "{text}");
    assert!(rows.iter().any(|row| row[..2] == ["stop", "all"]), "{text}");
    assert!(rows.iter().any(|row| row[0] == "load"), "{text}");
}

#[test]
fn a_core_booted_for_guests_runs_while_there_is_one() {
    let daemon = Daemon::start(&[Core {
        settings: "auto-boot = false\nboot-on-guest = true",
        ..Core::default()
    }]);
    assert_eq!(daemon.status()[0].state, "offline");
    for _ in 0..2 {
        let mut vmm = Vmm::connect(&daemon.socket("echo"), Options::default()).unwrap();
        let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
        driver.wait_for_channel("rpmsg-raw", PATIENCE).unwrap();
        let core = daemon.status().swap_remove(0);
        assert_eq!(
            (core.state.as_str(), &core.holders[..]),
            ("running", &["guest of vdev 0".to_owned()][..])
        );
        vmm.hang_up();
        wait_until_offline(&daemon);
    }
}

fn call(stream: &mut UnixStream, message: &str) -> serde_json::Value {
    stream.write_all(message.as_bytes()).unwrap();
    stream.write_all(&[0]).unwrap();
    let mut bytes = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).unwrap() == 1 && byte != [0] {
        bytes.push(byte[0]);
    }
    serde_json::from_slice(&bytes).unwrap()
}

#[test]
fn the_control_socket_answers_varlink_calls_one_after_the_other() {
    let daemon = Daemon::start(&[Core::default()]);
    let mut stream = UnixStream::connect(daemon.socket("control")).unwrap();
    let answer = call(&mut stream, r#"{"method":"org.varlink.service.GetInfo"}"#);
    assert_eq!(answer["parameters"]["product"], "rprocd");
    let answer = call(
        &mut stream,
        r#"{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"io.rprocd"}}"#,
    );
    let text = answer["parameters"]["description"].as_str().unwrap();
    assert!(text.contains("interface io.rprocd"));
    let answer = call(&mut stream, r#"{"method":"io.rprocd.Nonsense"}"#);
    assert_eq!(answer["error"], "org.varlink.service.MethodNotFound");
    let answer = call(
        &mut stream,
        r#"{"method":"io.rprocd.List","parameters":{"x":1}}"#,
    );
    assert_eq!(answer["error"], "org.varlink.service.InvalidParameter");
    let answer = call(&mut stream, r#"{"method":"io.rprocd.List"}"#);
    assert_eq!(answer["parameters"]["cores"][0]["name"], "echo");
}

#[test]
fn a_client_that_talks_nonsense_is_hung_up_on_and_others_are_served() {
    let daemon = Daemon::start(&[Core::default()]);
    let mut stream = UnixStream::connect(daemon.socket("control")).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n\0").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("this is no Varlink call"), "{answer}");
    assert_eq!(daemon.status().len(), 1);
}

#[test]
fn a_socket_left_behind_by_a_killed_daemon_is_taken_over() {
    let mut daemon = Daemon::start(&[Core::default()]);
    let path = daemon.socket("echo");
    let pid = Pid::from_raw(daemon.pid().cast_signed()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    daemon.wait_for_end().unwrap();
    assert!(path.exists());
    let listener = bind(&path, &Permissions::default()).unwrap();
    let error = bind(&path, &Permissions::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("another process listens"), "{error}");
    drop(listener);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "a file").unwrap();
    let error = bind(&path, &Permissions::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("is no socket"), "{error}");
}

#[test]
fn a_change_is_logged_with_who_asked_for_it() {
    let daemon = Daemon::start(&[Core::default()]);
    let before = daemon.log().len();
    let output = daemon.rprocctl(&["stop", "echo"]);
    assert!(output.status.success(), "{output:?}");
    daemon.wait_for_log("io.rprocd.Stop echo");
    let log = daemon.log().split_off(before);
    let uid = rustix::process::getuid().as_raw();
    assert!(
        log.contains(&format!(", uid {uid}): io.rprocd.Stop echo")),
        "{log}"
    );
    assert!(log.contains("(pid "), "{log}");
}

#[test]
fn through_the_monitor_socket_rprocctl_shows_and_is_denied_changes() {
    let daemon = Daemon::start(&[Core::default()]);
    let through_monitor = |words: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_rprocctl"))
            .arg("--socket")
            .arg(daemon.socket("monitor"))
            .args(words)
            .output()
            .unwrap()
    };
    let status = through_monitor(&["status"]);
    assert!(status.status.success(), "{status:?}");
    let stop = through_monitor(&["stop", "echo"]);
    assert_eq!(stop.status.code(), Some(6), "{stop:?}");
    let text = String::from_utf8(stop.stderr).unwrap();
    assert!(text.contains("through the control socket"), "{text}");
    assert_eq!(daemon.status()[0].state, "running");
}

#[test]
fn sockets_have_the_mode_and_the_group_of_the_configuration() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    // The process's own group, since not everybody who runs this may give others.
    let gid = nix::unistd::getegid();
    let group = nix::unistd::Group::from_gid(gid).unwrap().unwrap().name;
    let permissions = Permissions {
        group: Some(group.clone()),
        mode: Some(0o640),
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = bind(&path, &permissions).unwrap();
    let found = std::fs::metadata(&path).unwrap();
    assert_eq!(found.permissions().mode() & 0o7777, 0o640);
    assert_eq!(found.gid(), gid.as_raw());
    UnixStream::connect(&path).unwrap();
    drop(listener);

    let nobody = Permissions {
        group: Some("no such group".into()),
        mode: None,
    };
    let error = bind(&path, &nobody).unwrap_err().to_string();
    assert!(error.contains("group \"no such group\""), "{error}");
    assert!(!path.exists(), "a socket is left behind");

    let daemon = Daemon::start(&[Core::default()]);
    for (socket, expected) in [("control", 0o600), ("monitor", 0o666)] {
        let found = std::fs::metadata(daemon.socket(socket)).unwrap();
        assert_eq!(found.permissions().mode() & 0o7777, expected, "{socket}");
    }
}

#[test]
fn metrics_are_printed_or_written_whole_beside_what_was_there() {
    let daemon = Daemon::start(&[Core::default()]);
    let printed = daemon.rprocctl(&["metrics"]);
    let printed = String::from_utf8(printed.stdout).unwrap();
    let line = "rprocd_core_state{core=\"echo\",state=\"running\"} 1\n";
    assert!(printed.contains(line), "{printed}");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rprocd.prom");
    std::fs::write(&path, "old").unwrap();
    let output = daemon.rprocctl(&["metrics", "--output", path.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    assert!(std::fs::read_to_string(&path).unwrap().contains(line));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

    let output = daemon.rprocctl(&["metrics", "-o", folder.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("what was there is left"), "{text}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}
