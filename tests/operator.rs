//! What an operator types, and what comes back.
//!
//! What belongs here: the command lines of `rprocd` and `rprocctl`, their output and exit status,
//! and the control socket as any client sees it. What does not: guests.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Output};

use crate::frontend::process::{Core, Daemon, firmware_dir};

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
    assert!(text.ends_with(": ok, 1 core(s)\n"), "{text}");
}

#[test]
fn an_unknown_key_is_refused_with_line_and_column() {
    let config = config("firmware = \"echo.elf\"\nmemory-mb = 4", 1);
    refused(
        &config,
        &[
            "line 6, column 1",
            "memory-mb",
            "unknown field",
            "memory-mib",
        ],
    );
}

#[test]
fn a_firmware_that_is_not_there_is_refused_by_its_path() {
    refused(
        &config("firmware = \"nothing.elf\"", 1),
        &["core m0", "nothing.elf"],
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
    assert_eq!(lines[0][..4], ["CORE", "STATE", "BOOT", "FIRMWARE"]);
    assert_eq!(
        lines[1][..6],
        ["echo", "running", "1", "echo.elf", "0", "none"]
    );
    assert_eq!(
        lines[2][..6],
        ["tty", "running", "1", "tty.elf", "0", "none"]
    );
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
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(daemon.status().len(), 1);
}

#[test]
fn a_socket_left_behind_by_a_killed_daemon_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("left.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let listener = rprocd::vdev::bind(&path).unwrap();
    let error = rprocd::vdev::bind(&path).unwrap_err().to_string();
    assert!(error.contains("another process listens"), "{error}");
    drop(listener);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "a file").unwrap();
    let error = rprocd::vdev::bind(&path).unwrap_err().to_string();
    assert!(error.contains("is no socket"), "{error}");
}
