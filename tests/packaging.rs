//! What an installed rprocd is to its system.
//!
//! What belongs here: the systemd unit, and what the daemon tells systemd. What does not: what the
//! daemon does (see `operator`).

use std::fs::{self, File};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::fs::MetadataExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rprocd::control::client::Connection;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::frontend::process::{Core, Daemon, firmware_dir, wait_for_end};
use crate::frontend::rpmsg::RpmsgDriver;
use crate::frontend::vmm::{Options, Vmm};

const PATIENCE: Duration = Duration::from_secs(120);

/// Where the daemon is to tell systemd something, and the variable that says so.
fn notify_socket(folder: &TempDir) -> (UnixDatagram, String) {
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    (socket, format!("NOTIFY_SOCKET={}", path.display()))
}

/// Its scale goes from 0 to 10, in tenths; a service that nobody has hardened has 9.6.
const MOST_EXPOSED: &str = "--threshold=10";

#[test]
fn the_units_give_the_daemon_little_to_abuse() {
    let analyze = Command::new("systemd-analyze")
        .args(["security", "--offline=true", MOST_EXPOSED])
        .args(["rprocd.service", "rprocd@.service"].map(packaged))
        .output();
    let output = match analyze {
        Ok(output) => output,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: there is no systemd-analyze (package systemd)");
            return;
        }
        Err(cause) => panic!("{cause}"),
    };
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn systemd_hears_when_the_daemon_is_ready_and_when_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, variable) = notify_socket(&folder);
    let mut daemon = Daemon::start_under(&["env", &variable], &[Core::default()]);
    let next = || loop {
        let mut bytes = [0; 512];
        let len = socket.recv(&mut bytes).unwrap();
        let said = String::from_utf8(bytes[..len].to_vec()).unwrap();
        // What it gives systemd to keep is told of elsewhere.
        if !said.starts_with("FDSTORE") {
            break said;
        }
    };
    let said = next();
    assert!(said.lines().any(|line| line == "READY=1"), "{said}");
    assert!(
        said.lines().any(|line| line == "STATUS=1 core(s)"),
        "{said}"
    );
    daemon.ask_to_end();
    assert_eq!(next().trim_end(), "STOPPING=1");
    assert!(daemon.wait_for_end().unwrap().success());
}

/// A file of the package.
fn packaged(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("packaging")
        .join(name)
}

/// Where the package has the example firmware.
const FIRMWARE: &str = "/usr/lib/rprocd/firmware";

#[test]
fn the_packaged_configurations_are_accepted_with_the_packaged_firmware() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["m0.toml", "rprocd.toml"] {
        let text = fs::read_to_string(packaged(name)).unwrap();
        let value: toml::Table = text.parse().unwrap();
        assert_eq!(value["firmware-directory"].as_str(), Some(FIRMWARE));
        // As built here, in place of where the package has it; and a folder that is there, in place
        // of the one that the package makes.
        let dumps = value["core"][0]["coredump"]["directory"].as_str().unwrap();
        assert!(
            fs::read_to_string(packaged("rprocd.tmpfiles"))
                .unwrap()
                .contains(dumps)
        );
        let text = text
            .replace(FIRMWARE, firmware_dir().to_str().unwrap())
            .replace(dumps, folder.path().to_str().unwrap());
        let config = folder.path().join(name);
        fs::write(&config, text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_rprocd"))
            .arg("--config")
            .arg(&config)
            .arg("--check-config")
            .output()
            .unwrap();
        assert!(output.status.success(), "{name}: {output:?}");
    }
    let manifest = include_str!("../Cargo.toml");
    let folder = FIRMWARE.strip_prefix('/').unwrap();
    assert!(manifest.contains(&format!("/firmware/*.elf\", \"{folder}/\"")));
}

/// The values that a packaged unit of the core m0 has for a key.
fn values(unit: &str, key: &str) -> Vec<String> {
    let text = fs::read_to_string(packaged(unit)).unwrap();
    let value = |line: &str| line.strip_prefix(key)?.strip_prefix('=').map(str::to_owned);
    let values = text.lines().filter_map(value);
    values.map(|value| value.replace("%i", "m0")).collect()
}

#[test]
fn units_and_configuration_of_a_core_name_the_same_paths() {
    for (unit, config) in [
        ("rprocd@.service", "m0.toml"),
        ("rprocd.service", "rprocd.toml"),
    ] {
        let text = fs::read_to_string(packaged(config)).unwrap();
        let value: toml::Table = text.parse().unwrap();
        assert_eq!(
            values(unit, "ExecStart"),
            [format!("/usr/bin/rprocd --config /etc/rprocd/{config}")]
        );
        let control = value["control"]["socket"].as_str().unwrap();
        let monitor = value["control"]["monitor"].as_str().unwrap();
        let core = &value["core"].as_array().unwrap()[0];
        let vdevs = core["vdev"].as_array().unwrap();
        let vdevs: Vec<_> = vdevs
            .iter()
            .map(|it| it["socket"].as_str().unwrap())
            .collect();
        // systemd makes the folders, and the daemon can write to no others.
        let [run] = &values(unit, "RuntimeDirectory")[..] else {
            panic!("{unit} has not one RuntimeDirectory");
        };
        for socket in [control, monitor].iter().chain(&vdevs) {
            let folder = Path::new(socket).parent().unwrap();
            assert_eq!(folder, Path::new("/run").join(run), "{config}: {socket}");
        }
        let [state] = &values(unit, "StateDirectory")[..] else {
            panic!("{unit} has not one StateDirectory");
        };
        let dumps = core["coredump"]["directory"].as_str().unwrap();
        let state = Path::new("/var/lib").join(state);
        assert!(Path::new(dumps).starts_with(&state), "{config}: {dumps}");
        if config == "m0.toml" {
            // Else systemd would listen where nobody connects.
            let listen = values("rprocd@.socket", "ListenStream");
            assert_eq!(listen, [&[control][..], &vdevs].concat());
            // Names can be replaced: the page makes a second core of the file in this way.
            assert_eq!(core["name"].as_str(), Some("m0"));
        }
    }
}

/// Configures a daemon with one core in `folder`.
fn configure(folder: &Path) {
    let config = format!(
        "firmware-directory = {:?}\n[control]\nsocket = {:?}\n[[core]]\nname = \"echo\"\n\
         engine = \"rv32\"\nfirmware = \"echo.elf\"\n[[core.vdev]]\nsocket = {:?}\n",
        firmware_dir(),
        folder.join("control"),
        folder.join("vdev"),
    );
    fs::write(folder.join("rprocd.toml"), config).unwrap();
}

/// The daemon of `folder`, which starts when somebody connects to one of the sockets; nothing if
/// nobody here passes sockets.
fn activate(folder: &Path, sockets: &[&str]) -> Option<Child> {
    let mut command = Command::new("systemd-socket-activate");
    for socket in sockets {
        command.arg("--listen").arg(folder.join(socket));
    }
    command.arg(env!("CARGO_BIN_EXE_rprocd")).arg("--config");
    command
        .arg(folder.join("rprocd.toml"))
        .stderr(Stdio::null());
    let daemon = match command.spawn() {
        Ok(daemon) => daemon,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: there is no systemd-socket-activate (package systemd)");
            return None;
        }
        Err(cause) => panic!("{cause}"),
    };
    let end = Instant::now() + PATIENCE;
    while sockets.iter().any(|socket| !folder.join(socket).exists()) {
        assert!(Instant::now() < end);
        thread::sleep(Duration::from_millis(5));
    }
    Some(daemon)
}

#[test]
fn a_daemon_ends_though_the_path_of_a_socket_that_was_passed_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    configure(folder.path());
    let Some(mut daemon) = activate(folder.path(), &["control", "vdev"]) else {
        return;
    };
    let control = folder.path().join("control");
    let mut connection = Connection::open(&control, PATIENCE).unwrap();
    let _: Value = connection.call("io.rprocd.List", &json!({})).unwrap();
    // As systemd does when the socket's unit ends with the service.
    for socket in ["control", "vdev"] {
        fs::remove_file(folder.path().join(socket)).unwrap();
    }
    let pid = Pid::from_child(&daemon);
    kill_process(pid, Signal::TERM).unwrap();
    let Some(status) = wait_for_end(&mut daemon, PATIENCE) else {
        kill_process(pid, Signal::KILL).unwrap();
        daemon.wait().unwrap();
        panic!("it has not ended");
    };
    assert!(status.success());
}

#[test]
fn a_socket_that_is_passed_is_used_and_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    configure(folder.path());
    let Some(mut daemon) = activate(folder.path(), &["control", "vdev"]) else {
        return;
    };
    // A VMM starts it, and is served on the socket that was there before.
    let mut vmm = Vmm::connect(&path("vdev"), Options::default()).unwrap();
    let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
    driver.wait_for_channel("rpmsg-raw", PATIENCE).unwrap();
    let mut control = Connection::open(&path("control"), PATIENCE).unwrap();
    let list: Value = control.call("io.rprocd.List", &json!({})).unwrap();
    let socket = &list["cores"][0]["vdevs"][0]["socket"];
    assert_eq!(*socket, json!(path("vdev")));
    let pid = Pid::from_child(&daemon);
    kill_process(pid, Signal::TERM).unwrap();
    assert!(daemon.wait().unwrap().success());
    // They are systemd's, for the next one.
    assert!(path("vdev").exists() && path("control").exists());
}

#[test]
fn a_socket_that_nobody_asks_for_is_refused_by_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let stranger = folder.path().join("stranger");
    let config = folder.path().join("rprocd.toml");
    fs::write(
        &config,
        format!(
            "firmware-directory = {:?}\n[[core]]\nname = \"echo\"\nengine = \"rv32\"\n\
             firmware = \"echo.elf\"\n[[core.vdev]]\nsocket = \"vdev\"\n",
            firmware_dir()
        ),
    )
    .unwrap();
    let daemon = Command::new("systemd-socket-activate")
        .arg("--listen")
        .arg(&stranger)
        .arg(env!("CARGO_BIN_EXE_rprocd"))
        .arg("--config")
        .arg(&config)
        .stderr(Stdio::piped())
        .spawn();
    let Ok(daemon) = daemon else {
        eprintln!("skipped: there is no systemd-socket-activate (package systemd)");
        return;
    };
    let end = Instant::now() + PATIENCE;
    while UnixStream::connect(&stranger).is_err() {
        assert!(Instant::now() < end);
    }
    let output = daemon.wait_with_output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    let path = stranger.display().to_string();
    assert!(
        said.contains("systemd passes a socket at") && said.contains(&path),
        "{said}"
    );
}

#[test]
fn qemus_tools_find_the_backend_and_what_it_can() {
    let description = fs::read(packaged("50-rprocd.json")).unwrap();
    let description: Value = serde_json::from_slice(&description).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_rprocd"))
        .arg("--print-capabilities")
        .output()
        .unwrap();
    assert!(output.status.success());
    let capabilities: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(capabilities["type"], description["type"]);
    // What it names is what the package installs.
    let manifest = include_str!("../Cargo.toml");
    let binary = Path::new(description["binary"].as_str().unwrap());
    let name = binary.file_name().unwrap().to_str().unwrap();
    let folder = binary.parent().unwrap().strip_prefix("/").unwrap();
    let asset = format!("[\"packaging/{name}\", \"{}/\", \"755\"]", folder.display());
    assert!(manifest.contains(&asset), "{asset}");
    let script = fs::read_to_string(packaged(name)).unwrap();
    assert!(script.contains("exec /usr/bin/rprocd \"$@\""));
}

#[test]
fn the_guests_socket_can_come_from_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let core = |name: &str| {
        format!(
            "[[core]]\nname = {name:?}\nengine = \"rv32\"\nfirmware = \"echo.elf\"\n\
             [[core.vdev]]\nsocket = \"{name}.sock\"\n"
        )
    };
    let directory = format!("firmware-directory = {:?}\n", firmware_dir());
    fs::write(path("one.toml"), format!("{directory}{}", core("a"))).unwrap();
    fs::write(
        path("two.toml"),
        format!("{directory}{}{}", core("a"), core("b")),
    )
    .unwrap();
    let rprocd = |config: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rprocd"));
        command.arg("--config").arg(path(config));
        command
    };
    let serves = |mut daemon: Child, socket: &str| {
        let end = Instant::now() + PATIENCE;
        let mut vmm = loop {
            match Vmm::connect(&path(socket), Options::default()) {
                Ok(vmm) => break vmm,
                Err(cause) => assert!(Instant::now() < end, "{cause}"),
            }
        };
        let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
        driver.wait_for_channel("rpmsg-raw", PATIENCE).unwrap();
        kill_process(Pid::from_child(&daemon), Signal::TERM).unwrap();
        assert!(daemon.wait().unwrap().success());
    };
    let by_path = rprocd("one.toml")
        .arg("--socket-path")
        .arg(path("by-path"))
        .spawn();
    serves(by_path.unwrap(), "by-path");
    // As standard input it comes with a number of its own; a shell gives it another.
    let listener = UnixListener::bind(path("by-fd")).unwrap();
    let by_fd = Command::new("sh")
        .args(["-c", "exec \"$0\" --config \"$1\" --fd 7 7<&0"])
        .arg(env!("CARGO_BIN_EXE_rprocd"))
        .arg(path("one.toml"))
        .stdin(OwnedFd::from(listener))
        .spawn();
    serves(by_fd.unwrap(), "by-fd");
    for (words, reason) in [
        (&["two.toml", "--fd", "7"][..], "has 2"),
        (&["one.toml", "--fd", "77"], "there is no descriptor 77"),
        (&["one.toml", "--fd", "1"], "1 is not in 3.."),
    ] {
        let output = rprocd(words[0]).args(&words[1..]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(reason), "{said}");
    }
}

#[test]
fn the_watchdog_is_told_that_all_is_well() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, variable) = notify_socket(&folder);
    let wrapper = ["env", &variable, "WATCHDOG_USEC=200000"];
    let _daemon = Daemon::start_under(&wrapper, &[Core::default()]);
    let mut told = 0;
    while told < 3 {
        let mut bytes = [0; 512];
        let len = socket.recv(&mut bytes).unwrap();
        told += u32::from(bytes[..len].starts_with(b"WATCHDOG=1"));
    }
}

#[test]
fn in_the_journal_a_line_has_a_priority_and_no_time() {
    let folder = tempfile::tempdir().unwrap();
    let log = File::create(folder.path().join("log")).unwrap();
    let stat = log.metadata().unwrap();
    let run = |stream: String| {
        let output = Command::new(env!("CARGO_BIN_EXE_rprocd"))
            .args(["--config", "/nowhere"])
            .env("JOURNAL_STREAM", stream)
            .stderr(log.try_clone().unwrap())
            .output()
            .unwrap();
        assert!(!output.status.success());
        let text = fs::read_to_string(folder.path().join("log")).unwrap();
        text.lines().last().unwrap().to_owned()
    };
    let line = run(format!("{}:{}", stat.st_dev(), stat.st_ino()));
    assert!(
        line.starts_with("<3>cannot read the configuration /nowhere"),
        "{line}"
    );
    // Somebody else's journal.
    let line = run(format!("{}:{}", stat.st_dev(), stat.st_ino() + 1));
    assert!(line.starts_with('['), "{line}");
}

#[test]
fn memory_of_a_daemon_that_was_killed_is_dumped_by_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, variable) = notify_socket(&folder);
    let settings = "[core.coredump]\nmode = \"enabled\"\ndirectory = \".\"";
    let core = || Core {
        settings,
        ..Core::default()
    };
    let mut daemon = Daemon::start_under(&["env", &variable], &[core()]);
    // systemd keeps what it is given under a name.
    let memory = loop {
        let mut bytes = [0; 512];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
        .unwrap();
        let said = String::from_utf8(bytes[..received.bytes].to_vec()).unwrap();
        if said.contains("FDSTORE=1") {
            assert!(said.contains("FDNAME=ram-echo"), "{said}");
            let Some(RecvAncillaryMessage::ScmRights(mut fds)) = control.drain().next() else {
                panic!("{said} came without a descriptor");
            };
            break fds.next().unwrap();
        }
    };
    let pid = Pid::from_raw(daemon.pid().cast_signed()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    daemon.wait_for_end().unwrap();
    // It gives it back to the next one, as descriptor 3.
    rustix::io::fcntl_setfd(&memory, rustix::io::FdFlags::empty()).unwrap();
    let give = format!(
        "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=ram-echo exec \"$0\" \"$@\" 3<>/proc/self/fd/{}",
        memory.as_raw_fd()
    );
    let next = daemon.again_under(&["sh", "-c", &give]);
    let list = next.rprocctl(&["coredump", "list", "echo", "--json"]);
    let list: Value = serde_json::from_slice(&list.stdout).unwrap();
    let name = list[0]["name"].as_str().unwrap();
    assert_eq!(list[0]["complete"], true, "{list}");
    let dump = fs::read(next.socket("control").parent().unwrap().join(name)).unwrap();
    let has = |text: &[u8]| dump.windows(text.len()).any(|it| it == text);
    assert!(has(b"rprocd ended without a word"));
    // What the firmware had traced when it was cut off.
    assert!(has(b"incarnation 1"));
    next.wait_for_log("left behind by an rprocd");
    assert_eq!(next.status()[0].state, "running");
}
