//! What `examples/` shows, done.
//!
//! What belongs here: that each file of that folder works as it says, and the pages that print a
//! file's text. What does not: the guest that runs `guest-script.sh` (`tests/vm`).

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use rprocd::engine::ImageRules;
use rprocd::firmware::{Entry, Image};
use rprocd::memory::DeviceAddress;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::frontend::process::{Core, Daemon, firmware_dir, wait_for_end};
use crate::frontend::rpmsg::{PAYLOAD, RpmsgDriver};
use crate::frontend::vmm::{Options, Vmm};

const PATIENCE: Duration = Duration::from_secs(120);

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The text of a file of the repository.
fn text(name: &str) -> String {
    fs::read_to_string(repository().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The first block of `language` in a page.
fn block(page: &str, language: &str) -> String {
    let page = text(page);
    let (_, rest) = page.split_once(&format!("\n```{language}\n")).unwrap();
    rest.split_once("```\n").unwrap().0.to_owned()
}

/// Runs shell commands as a stranger does, in `folder`: nothing of this build is in their
/// environment, and nothing can be fetched.
fn shell(folder: &Path, commands: &str) -> Output {
    let mut command = Command::new("sh");
    for name in [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_TARGET_DIR",
        "CARGO_BUILD_TARGET_DIR",
        "RUSTUP_TOOLCHAIN",
    ] {
        command.env_remove(name);
    }
    command
        .args(["-euc", commands])
        .current_dir(folder)
        .env("RPROCD", repository())
        .env("CARGO_NET_OFFLINE", "true")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn well(output: Output) {
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Where the template's image is, from the folder of the project on.
const IMAGE: &str = "target/riscv32imac-unknown-none-elf/release/my-firmware";

/// An empty folder after the commands of the template's page.
fn template() -> TempDir {
    // Not below this repository: cargo would take the copy for a part of it.
    let folder = tempfile::tempdir().unwrap();
    let commands = block("examples/firmware-rust/README.md", "sh");
    assert!(commands.contains("cargo build --release\n"), "{commands}");
    well(shell(folder.path(), &commands));
    folder
}

/// Sends the image of the template some text, and wants it in capitals.
fn answers_in_capitals(image: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        "firmware-directory = {:?}\n[control]\nsocket = \"control.sock\"\n[[core]]\n\
         name = \"mine\"\nengine = \"rv32\"\nfirmware = {:?}\n[[core.vdev]]\n\
         socket = \"mine.sock\"\n",
        image.parent().unwrap(),
        image.file_name().unwrap(),
    );
    fs::write(folder.path().join("rprocd.toml"), config).unwrap();
    let daemon = Daemon::start_in(folder);
    let mut vmm = Vmm::connect(&daemon.socket("mine"), Options::default()).unwrap();
    let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
    let address = driver.wait_for_channel("rpmsg-raw", PATIENCE).unwrap();
    assert_eq!(address, 1024);
    for (sent, wanted) in [
        (&b"a line, and 12"[..], &b"A LINE, AND 12"[..]),
        (b"", b""),
        (&[b'z'; PAYLOAD], &[b'Z'; PAYLOAD]),
    ] {
        driver.send(1030, address, sent).unwrap();
        let answer = driver.recv_within(PATIENCE).unwrap();
        assert_eq!((answer.source, answer.destination), (address, 1030));
        assert_eq!(answer.payload, wanted);
    }
    let trace = daemon.rprocctl(&["trace", "mine"]);
    let trace = String::from_utf8(trace.stdout).unwrap();
    assert!(trace.contains("2 message(s) answered"), "{trace}");
}

#[test]
fn the_template_builds_in_an_empty_folder_as_its_page_prints_it_and_answers() {
    let folder = template();
    answers_in_capitals(&folder.path().join("my-firmware").join(IMAGE));
}

#[test]
fn the_templates_sizes_are_choices_down_to_the_least() {
    let folder = template();
    let project = folder.path().join("my-firmware");
    let sizes = "CARVEOUT_SIZE = 1M;\nSTACK_SIZE = 8192;\nTRACE_SIZE = 1024;\n";
    fs::write(project.join("memory.x"), sizes).unwrap();
    well(shell(&project, "cargo build --release"));
    let image = project.join(IMAGE);
    // The table says what the linker was told.
    let bytes = fs::read(&image).unwrap();
    let section = Image::parse(&bytes, &ImageRules::RV32).unwrap().table;
    let mut sizes = Vec::new();
    for entry in section.unwrap().table.entries() {
        match entry {
            Entry::Carveout(carveout) => sizes.push((carveout.da, carveout.len)),
            Entry::Trace(trace) => sizes.push((Some(trace.da), trace.len)),
            _ => {}
        }
    }
    let at = |da| Some(DeviceAddress(da));
    assert_eq!(sizes, [(at(0x8000_0000), 1 << 20), (at(0x8000_3000), 1024)]);
    answers_in_capitals(&image);
}

#[test]
fn sizes_of_the_template_that_cannot_work_end_the_build_with_a_sentence() {
    let folder = template();
    let project = folder.path().join("my-firmware");
    let right = text("examples/firmware-rust/memory.x");
    for (from, to, sentence) in [
        (
            "STACK_SIZE = 32K",
            "STACK_SIZE = 4096",
            "memory.x: STACK_SIZE must be a multiple of 16, and 8192 bytes or more",
        ),
        (
            "STACK_SIZE = 32K",
            "STACK_SIZE = 8200",
            "memory.x: STACK_SIZE must be a multiple of 16",
        ),
        (
            "TRACE_SIZE = 8K",
            "TRACE_SIZE = 512",
            "memory.x: TRACE_SIZE must be a multiple of 16, and 1024 bytes or more",
        ),
        (
            "CARVEOUT_SIZE = 256K",
            "CARVEOUT_SIZE = 250000",
            "memory.x: CARVEOUT_SIZE must be a multiple of 4096 (a page)",
        ),
        (
            "CARVEOUT_SIZE = 256K",
            "CARVEOUT_SIZE = 3072M",
            "memory.x: CARVEOUT_SIZE must be a multiple of 4096 (a page), and less than 2 GiB",
        ),
        (
            "CARVEOUT_SIZE = 256K",
            "CARVEOUT_SIZE = 48K",
            "the image does not fit its carveout: raise CARVEOUT_SIZE in memory.x",
        ),
        (
            "STACK_SIZE = 32K",
            "STAK_SIZE = 32K",
            "symbol not found: STACK_SIZE",
        ),
    ] {
        assert!(right.contains(from), "{from}");
        fs::write(project.join("memory.x"), right.replace(from, to)).unwrap();
        let output = shell(&project, "cargo build --release");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{to} is taken");
        assert!(said.contains(sentence), "{to}: {said}");
    }
    fs::remove_file(project.join("memory.x")).unwrap();
    let output = shell(&project, "cargo build --release");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("cannot find linker script memory.x"),
        "{said}"
    );
}

#[test]
fn what_the_firmwares_page_calls_all_of_echo_is_all_of_echo() {
    let printed = block("guest-fw/README.md", "rust");
    assert_eq!(printed, text("guest-fw/src/bin/echo.rs"));
}

/// A configuration of `examples`, with its paths in `folder` and the images of this build.
fn configured(name: &str, folder: &Path) -> PathBuf {
    let here = |name: &str| format!("{}/{name}", folder.display());
    let config = text(&format!("examples/{name}"))
        .replace(
            "/usr/lib/rprocd/firmware",
            &firmware_dir().display().to_string(),
        )
        .replace("/var/lib/rprocd/coredumps", &here(""))
        .replace("/run/rprocd/control", &here("control.sock"))
        .replace("/run/rprocd/", &here(""));
    let path = folder.join("rprocd.toml");
    fs::write(&path, config).unwrap();
    path
}

#[test]
fn the_configurations_are_good_and_rprocd_runs_with_them() {
    for (name, cores) in [
        ("minimal.toml", &[("m0", "running")][..]),
        ("full.toml", &[("m0", "running"), ("tty", "offline")]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let config = configured(name, folder.path());
        let checked = Command::new(env!("CARGO_BIN_EXE_rprocd"))
            .args(["--check-config", "--config"])
            .arg(&config)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(checked.status.success(), "{name}: {checked:?}");
        let names: Vec<_> = cores.iter().map(|(name, _)| *name).collect();
        let end = format!(": ok, {} core(s): {}\n", cores.len(), names.join(", "));
        assert!(said.ends_with(&end), "{said}");
        let daemon = Daemon::start_in(folder);
        let status = daemon.status();
        let states: Vec<_> = status
            .iter()
            .map(|core| (&*core.name, &*core.state))
            .collect();
        assert_eq!(states, cores, "{name}");
    }
}

#[test]
fn the_full_configuration_has_every_section() {
    let full = text("examples/full.toml");
    for section in [
        "[control]",
        "[[core]]",
        "[[core.vdev]]",
        "[core.recovery]",
        "[core.coredump]",
        "[[core.devmem]]",
    ] {
        assert!(full.lines().any(|line| line == section), "{section}");
    }
}

#[test]
fn the_python_client_lists_the_cores_and_follows_what_happens() {
    let daemon = Daemon::start(&[Core::default()]);
    let mut vmm = Vmm::connect(&daemon.socket("echo"), Options::default()).unwrap();
    let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
    driver.wait_for_channel("rpmsg-raw", PATIENCE).unwrap();
    let client = Command::new("python3")
        .arg(repository().join("examples/control.py"))
        .arg(daemon.socket("control"))
        .stdout(Stdio::piped())
        .spawn();
    let mut client = match client {
        Ok(client) => client,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: there is no python3 (package python3)");
            return;
        }
        Err(cause) => panic!("{cause}"),
    };
    let (tell, lines) = channel();
    let output = BufReader::new(client.stdout.take().unwrap());
    thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            let _ = tell.send(line);
        }
    });
    let wait_for = |wanted: &str| {
        let mut seen = Vec::new();
        loop {
            let line = lines
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|_| panic!("{wanted:?} is not in {seen:?}"));
            if line == wanted {
                return;
            }
            seen.push(line);
        }
    };
    wait_for("core echo: running, echo.elf");
    let socket = daemon.socket("echo");
    wait_for(&format!("  vdev 0: {}, with a guest", socket.display()));
    wait_for("    announces rpmsg-raw at 1024");
    wait_for("watching");
    let stopped = daemon.rprocctl(&["stop", "echo"]);
    assert!(stopped.status.success(), "{stopped:?}");
    wait_for("event echo: state offline");
    // As Ctrl-C does.
    kill_process(Pid::from_child(&client), Signal::INT).unwrap();
    let status = wait_for_end(&mut client, PATIENCE).unwrap();
    assert!(status.success(), "{status}");

    let output = Command::new("python3")
        .arg(repository().join("examples/control.py"))
        .arg("/nowhere/control")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert_eq!(
        said,
        "cannot reach rprocd at /nowhere/control: No such file or directory\n"
    );
}

#[test]
fn alerts_are_on_metrics_that_there_are() {
    let daemon = Daemon::start(&[Core::default()]);
    let metrics = daemon.rprocctl(&["metrics"]);
    let metrics = String::from_utf8(metrics.stdout).unwrap();
    let alerts = text("examples/alerts.yml");
    let mut count = 0;
    for line in alerts.lines().filter(|line| line.contains("expr:")) {
        let (_, rest) = line.split_once("rprocd_").unwrap();
        let name: String = rest
            .chars()
            .take_while(|it| it.is_ascii_alphanumeric() || *it == '_')
            .collect();
        let kind = format!("# TYPE rprocd_{name} ");
        assert!(metrics.contains(&kind), "{line}: no such metric");
        // A rate is of what only grows.
        if line.contains("increase(") {
            assert!(metrics.contains(&format!("{kind}counter")), "{line}");
        }
        count += 1;
    }
    assert_eq!(count, alerts.matches("- alert:").count());
}

#[test]
fn the_index_of_the_examples_names_each_of_them() {
    let index = text("examples/README.md");
    for entry in fs::read_dir(repository().join("examples")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name != "README.md" {
            assert!(index.contains(&format!("({name}")), "{name} is not in it");
        }
    }
}
