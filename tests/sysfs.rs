//! The cores as files in front of a real daemon, and scripts that know Linux's paths.
//!
//! What belongs here: what a shell, or a program with one system call, meets. What does not: words
//! and formats one by one (the unit tests of `rprocd::sysfs`).

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tempfile::TempDir;

use crate::frontend::process::{Core, Daemon};

const PATIENCE: Duration = Duration::from_secs(120);

/// May this machine mount? If not, a test says so where it cannot be overlooked, and is skipped.
#[must_use]
fn can_mount() -> bool {
    let fuse = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let root = rustix::process::geteuid().is_root();
    let why = match fuse {
        Err(cause) => format!("/dev/fuse cannot be opened: {cause}"),
        Ok(_) if !root => "only root can mount here".to_owned(),
        Ok(_) => return true,
    };
    // Not captured, as what `eprintln` writes is.
    let _ = writeln!(
        std::io::stderr(),
        "\nTHE TESTS OF rprocfs ARE SKIPPED: {why}. Nothing is known about rprocfs from this run.\n"
    );
    false
}

/// A daemon, and its cores as files.
struct Mounted {
    server: Child,
    place: TempDir,
    // Keeps the pipe open.
    _said: BufReader<ChildStdout>,
    daemon: Daemon,
}

impl Mounted {
    fn start(socket: &str, cores: &[Core<'_>]) -> Self {
        let daemon = Daemon::start(cores);
        let place = tempfile::tempdir().unwrap();
        let mut server = Command::new(env!("CARGO_BIN_EXE_rprocfs"))
            .arg("--socket")
            .arg(daemon.socket(socket))
            .arg(place.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(server.stdout.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert!(line.ends_with("is served\n"), "{line}");
        Self {
            server,
            place,
            _said: said,
            daemon,
        }
    }

    fn class(&self, file: &str) -> PathBuf {
        let place = self.place.path();
        place.join("class/remoteproc/remoteproc0").join(file)
    }

    fn debug(&self, file: &str) -> PathBuf {
        let place = self.place.path();
        place.join("debug/remoteproc/remoteproc0").join(file)
    }

    fn state(&self) -> String {
        fs::read_to_string(self.class("state")).unwrap()
    }

    #[track_caller]
    fn wait_for_state(&self, state: &str) {
        let end = Instant::now() + PATIENCE;
        while self.state() != state {
            assert!(Instant::now() < end, "{} is not {state}", self.state());
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What it mounted goes with it, so that the folder can go.
        if let Ok(Some(_)) = self.server.try_wait() {
            return;
        }
        let pid = rustix::process::Pid::from_child(&self.server);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.server.wait();
    }
}

/// One write of a program that opens a file as `echo >` does.
fn put(file: impl AsRef<Path>, bytes: &[u8]) -> Result<usize, Errno> {
    let options = OpenOptions::new().write(true).truncate(true).open(file);
    let mut file = options.map_err(errno)?;
    file.write(bytes).map_err(errno)
}

#[allow(clippy::needless_pass_by_value, reason = "it is used as a function")]
fn errno(cause: std::io::Error) -> Errno {
    Errno::from_io_error(&cause).unwrap()
}

fn under_sysfs(daemon: &Daemon, words: &[&str]) -> Output {
    daemon.rprocctl(&[&["sysfs", "--"], words].concat())
}

/// As a board vendor ships it: it knows nothing of rprocd.
const VENDOR: &str = r#"
set -e
echo stop > /sys/class/remoteproc/remoteproc0/state
echo -n chaos.elf > /sys/class/remoteproc/remoteproc0/firmware
echo start > /sys/class/remoteproc/remoteproc0/state
cat /sys/class/remoteproc/remoteproc0/state
cat /sys/class/remoteproc/remoteproc0/firmware
cat /sys/kernel/debug/remoteproc/remoteproc0/trace0
echo 1 > /sys/kernel/debug/remoteproc/remoteproc0/crash
for core in /sys/class/remoteproc/remoteproc*; do cat "$core/name"; done
exit 7
"#;

#[test]
fn a_vendor_s_script_runs_unchanged() {
    if !can_mount() {
        return;
    }
    let daemon = Daemon::start(&[
        Core::default(),
        Core {
            name: "tty",
            image: "tty",
            ..Core::default()
        },
    ]);
    let output = under_sysfs(&daemon, &["sh", "-c", VENDOR]);
    let text = String::from_utf8(output.stdout).unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(7), "{text}{said}");
    assert!(text.starts_with("running\nchaos.elf\n"), "{text}{said}");
    assert!(text.contains("incarnation 2"), "{text}{said}");
    assert!(text.ends_with("echo\ntty\n"), "{text}{said}");
    let core = daemon.status().swap_remove(0);
    assert_eq!((core.firmware.as_str(), core.crashes), ("chaos.elf", 1));
}

#[test]
fn a_command_has_its_own_sys_with_all_else_in_it_and_nobody_else_sees_it() {
    if !can_mount() {
        return;
    }
    let daemon = Daemon::start(&[Core::default()]);
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts();
    let script = "ls /sys/class; readlink -f /sys/class/net/lo; kill -TERM $$";
    let output = under_sysfs(&daemon, &["sh", "-c", script]);
    let text = String::from_utf8(output.stdout).unwrap();
    for class in fs::read_dir("/sys/class").unwrap() {
        let class = class.unwrap().file_name().into_string().unwrap();
        assert!(text.lines().any(|line| line == class), "{class}: {text}");
    }
    assert!(text.lines().any(|line| line == "remoteproc"), "{text}");
    assert!(text.contains("/sys/devices/virtual/net/lo"), "{text}");
    // The signal is the command's end, not a number that stands for it.
    assert_eq!(output.status.code(), None);
    // Another test may mount something of its own.
    let fuse_in = |text: &str| text.matches("/sys/class").count();
    assert_eq!(fuse_in(&mounts()), fuse_in(&before));

    let output = under_sysfs(&daemon, &["/nonexistent/command"]);
    assert_eq!(output.status.code(), Some(127), "{output:?}");
    // What serves the files ends with the command.
    let end = Instant::now() + PATIENCE;
    let socket = daemon.socket("control");
    while serves(&socket) {
        assert!(Instant::now() < end, "an rprocfs is left behind");
    }
}

/// Does any process serve the files of the daemon behind this socket?
fn serves(socket: &Path) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes.into_iter().any(|process| {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        words.next().is_some_and(|it| it.ends_with(b"rprocfs"))
            && words.any(|it| it == socket.as_os_str().as_encoded_bytes())
    })
}

#[test]
fn without_a_daemon_the_files_say_that_there_is_no_device() {
    if !can_mount() {
        return;
    }
    let mut mounted = Mounted::start("control", &[Core::default()]);
    assert_eq!(mounted.state(), "running\n");
    mounted.daemon.ask_to_end();
    mounted.daemon.wait_for_end().unwrap();
    let cause = fs::read_to_string(mounted.class("state")).unwrap_err();
    assert_eq!(errno(cause), Errno::NODEV);
}

#[test]
fn states_and_words_are_refused_as_linux_refuses_them() {
    if !can_mount() {
        return;
    }
    let mounted = Mounted::start("control", &[Core::default()]);
    let state = mounted.class("state");
    let firmware = mounted.class("firmware");
    assert_eq!(mounted.state(), "running\n");
    assert_eq!(put(&state, b"start\n"), Err(Errno::BUSY));
    assert_eq!(put(&state, b"junk\n"), Err(Errno::INVAL));
    assert_eq!(put(&state, b"detach\n"), Err(Errno::INVAL));
    assert_eq!(put(&firmware, b"chaos.elf"), Err(Errno::BUSY));
    assert_eq!(put(&state, b"stop"), Ok(4));
    assert_eq!(mounted.state(), "offline\n");
    assert_eq!(put(&state, b"stop\n"), Err(Errno::INVAL));
    assert_eq!(put(&firmware, b"\n"), Err(Errno::INVAL));
    assert_eq!(put(&firmware, b"nothing.elf\n"), Err(Errno::INVAL));
    assert_eq!(put(&firmware, b"../echo.elf\n"), Err(Errno::INVAL));
    let table = fs::read_to_string(mounted.debug("resource_table")).unwrap();
    assert_eq!(table, "No resource table found\n");
    let carveouts = fs::read_to_string(mounted.debug("carveout_memories")).unwrap();
    assert_eq!(carveouts, "");
    assert_eq!(put(&state, b"start\n"), Ok(6));
    let table = fs::read_to_string(mounted.debug("resource_table")).unwrap();
    assert!(table.contains("  ID 7\n"), "{table}");
    let carveouts = fs::read_to_string(mounted.debug("carveout_memories")).unwrap();
    assert!(carveouts.contains("\tName: vdev0vring0\n"), "{carveouts}");

    let recovery = mounted.class("recovery");
    assert_eq!(put(&recovery, b"disabled\n"), Ok(9));
    assert_eq!(fs::read(&recovery).unwrap(), b"disabled\n");
    assert_eq!(put(mounted.debug("crash"), b"one"), Err(Errno::INVAL));
    assert_eq!(put(mounted.debug("crash"), b"1\n"), Ok(2));
    assert_eq!(mounted.state(), "crashed\n");
    assert_eq!(put(mounted.class("coredump"), b"inline"), Err(Errno::BUSY));
    // A second report of it is passed over.
    assert_eq!(put(mounted.debug("crash"), b"1\n"), Ok(2));
    assert_eq!(put(mounted.debug("recovery"), b"r"), Ok(1));
    mounted.wait_for_state("running\n");
    assert_eq!(fs::read(&recovery).unwrap(), b"disabled\n");
}

#[test]
fn a_write_that_is_too_long_or_in_pieces_is_refused() {
    if !can_mount() {
        return;
    }
    let mounted = Mounted::start("control", &[Core::default()]);
    let state = mounted.class("state");
    for length in [4097, 70_000, 1 << 20] {
        let mut bytes = b"stop\n".to_vec();
        bytes.resize(length, b'\n');
        assert_eq!(put(&state, &bytes), Err(Errno::INVAL), "{length}");
        bytes.fill(0);
        bytes[..4].copy_from_slice(b"stop");
        assert_eq!(put(&state, &bytes), Err(Errno::INVAL), "{length}");
    }
    let open = || OpenOptions::new().write(true).open(&state).unwrap();
    let refused = |result: std::io::Result<usize>| errno(result.unwrap_err());
    let mut file = open();
    assert_eq!(refused(file.write(b"st")), Errno::INVAL);
    assert_eq!(refused(file.write_at(b"op", 2)), Errno::INVAL);
    assert_eq!(refused(file.write_at(b"stop", 1)), Errno::INVAL);
    assert_eq!(refused(file.write_at(b"stop", 4096)), Errno::INVAL);
    assert_eq!(mounted.state(), "running\n");
    let mut appended = OpenOptions::new().append(true).open(&state).unwrap();
    assert_eq!(appended.write(b"stop\n").unwrap(), 5);
    assert_eq!(mounted.state(), "offline\n");
}

#[test]
fn modes_are_linux_s_and_nothing_is_made_or_removed() {
    if !can_mount() {
        return;
    }
    let mounted = Mounted::start("control", &[Core::default()]);
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    for (path, expected) in [
        (mounted.class("name"), 0o444),
        (mounted.class("state"), 0o644),
        (mounted.debug("crash"), 0o200),
        (mounted.debug("trace0"), 0o400),
        (mounted.debug("recovery"), 0o600),
        (mounted.place.path().join("debug"), 0o700),
    ] {
        assert_eq!(mode(&path), expected, "{}", path.display());
    }
    assert_eq!(put(mounted.class("name"), b"x"), Err(Errno::ACCESS));
    assert_eq!(put(mounted.debug("name"), b"x"), Err(Errno::INVAL));
    assert!(
        File::open(mounted.debug("crash"))
            .unwrap()
            .read(&mut [0])
            .is_err()
    );
    assert!(File::create(mounted.class("new")).is_err());
    assert!(fs::remove_file(mounted.class("state")).is_err());
    assert!(fs::create_dir(mounted.class("new")).is_err());
    let names = fs::read_dir(mounted.debug("")).unwrap();
    let mut names: Vec<_> = names.map(|it| it.unwrap().file_name()).collect();
    names.sort();
    let expected = [
        "carveout_memories",
        "coredump",
        "crash",
        "name",
        "recovery",
        "resource_table",
        "trace0",
    ];
    assert_eq!(names, expected.map(OsStr::new));
    let nobody = mounted.place.path().join("class/remoteproc/remoteproc1");
    assert_eq!(errno(fs::metadata(nobody).unwrap_err()), Errno::NOENT);
}

#[test]
fn through_the_monitor_socket_files_are_read_and_not_written() {
    if !can_mount() {
        return;
    }
    let mounted = Mounted::start("monitor", &[Core::default()]);
    assert_eq!(mounted.state(), "running\n");
    assert_eq!(put(mounted.class("state"), b"stop\n"), Err(Errno::ACCESS));
    assert_eq!(put(mounted.debug("crash"), b"1\n"), Err(Errno::ACCESS));
    assert_eq!(mounted.state(), "running\n");
}
