//! The coredumps that the daemon writes when a firmware dies, and what stands in their way.
//!
//! What belongs here: the real daemon with the `chaos` image, and the files that it leaves. What
//! does not: how a dump is laid out (see `coredump`), what guests notice of a crash (see `crash`).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use goblin::elf::Elf;
use rprocd::coredump::{NOTE_CORE, NOTE_FIRMWARE, NOTE_OWNER, NOTE_REASON, NOTE_STATE};
use rprocd::rproc::CoreStatus;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::coredump::debugger::{assert_frame, gdb};
use crate::coredump::folder::names;
use crate::frontend::process::{Core, Daemon, check, firmware_dir, refusal_at_start};
use crate::frontend::rpmsg::RpmsgDriver;
use crate::frontend::vmm::{Options, Vmm};

const PATIENCE: Duration = Duration::from_secs(120);
const OWN_ADDRESS: u32 = 1030;
/// Restarts at once, as often as it takes.
const EAGER: &str = "[core.recovery]\nminimum-run-time-ms = 0\nhold-after = 0";

/// A daemon with one core, `chaos`, and a guest of it.
struct Bench {
    daemon: Daemon,
    _vmm: Vmm,
    driver: RpmsgDriver,
    folder: TempDir,
}

impl Bench {
    fn new(coredump: &str) -> Self {
        Self::under(&[], coredump, tempfile::tempdir().unwrap())
    }

    fn under(wrapper: &[&str], coredump: &str, folder: TempDir) -> Self {
        let settings = settings(coredump, folder.path());
        let core = Core {
            name: "chaos",
            image: "chaos",
            settings: &settings,
            ..Core::default()
        };
        let daemon = Daemon::start_under(wrapper, &[core]);
        let mut vmm = Vmm::connect(&daemon.socket("chaos"), Options::default()).unwrap();
        let driver = RpmsgDriver::probe(&mut vmm).unwrap();
        Self {
            daemon,
            _vmm: vmm,
            driver,
            folder,
        }
    }

    /// Lets the core die, waits for the next incarnation, and sees that it serves.
    fn die(&mut self, command: &str) -> CoreStatus {
        let address = self.driver.wait_for_channel("rpmsg-raw", PATIENCE).unwrap();
        let heard = self.driver.announcements().len();
        self.driver
            .send(OWN_ADDRESS, address, command.as_bytes())
            .unwrap();
        let end = Instant::now() + PATIENCE;
        while self.driver.announcements().len() < heard + 2 {
            assert!(Instant::now() < end, "{:?}", self.driver.announcements());
            let message = self.driver.recv_within(Duration::from_millis(50));
            assert!(message.is_none(), "{message:?}");
        }
        let address = self.driver.channels()[0].address;
        self.driver.send(OWN_ADDRESS, address, b"ping").unwrap();
        let answer = self.driver.recv_within(PATIENCE).unwrap();
        assert_eq!(answer.payload, b"pong");
        let status = self.daemon.status().swap_remove(0);
        assert_eq!(status.state, "running");
        status
    }

    fn names(&self) -> Vec<String> {
        names(self.folder.path())
    }
}

fn settings(coredump: &str, folder: &Path) -> String {
    format!("{EAGER}\n[core.coredump]\ndirectory = {folder:?}\n{coredump}")
}

/// The content of our own note of a kind.
fn note(file: &[u8], kind: u32) -> Vec<u8> {
    let elf = Elf::parse(file).unwrap();
    let mut notes = elf.iter_note_headers(file).unwrap().map(Result::unwrap);
    let found =
        notes.find(|note| note.name.trim_end_matches('\0') == NOTE_OWNER && note.n_type == kind);
    found.unwrap().desc.to_vec()
}

fn word(note: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(note[at..at + 4].try_into().unwrap())
}

#[test]
fn a_death_leaves_a_whole_and_sparse_dump_that_says_who_when_and_why() {
    let mut bench = Bench::new("mode = \"enabled\"\npatience-ms = 3600000");
    bench.die("illegal");
    let status = bench.die("wild-store");
    assert_eq!(bench.names(), ["core.chaos.1.1.elf", "core.chaos.2.2.elf"]);

    let path = bench.folder.path().join("core.chaos.2.2.elf");
    let said = status.last_dump.unwrap();
    assert!(
        said.starts_with(&format!("coredump {}", path.display())),
        "{said}"
    );
    let file = fs::read(&path).unwrap();
    let on_disk = fs::metadata(&path).unwrap().blocks() * 512;
    assert!(
        on_disk < file.len() as u64 / 2,
        "{on_disk} of {}",
        file.len()
    );

    let finished = word(&note(&file, NOTE_STATE), 4);
    assert_eq!(finished, 1);
    assert_eq!(word(&note(&file, NOTE_CORE), 0), 2);
    assert_eq!(note(&file, NOTE_CORE)[16..], *b"chaos");
    let reason = String::from_utf8(note(&file, NOTE_REASON)).unwrap();
    assert_eq!(
        format!("incarnation 2: {reason}"),
        status.last_crash.unwrap()
    );
    let image = fs::read(firmware_dir().join("chaos.elf")).unwrap();
    let firmware = note(&file, NOTE_FIRMWARE);
    assert_eq!(firmware[..32], Sha256::digest(image)[..]);
    assert_eq!(firmware[32..], *b"chaos.elf");
}

#[test]
fn gdb_shows_function_line_and_registers_from_the_daemon_s_file() {
    let mut bench = Bench::new("mode = \"enabled\"\npatience-ms = 3600000");
    let status = bench.die("illegal");
    let path = bench.folder.path().join("core.chaos.1.1.elf");
    let image = firmware_dir().join("chaos.elf");
    let Some(text) = gdb(&image, &path, &["bt 20", "info registers pc sp", "p/x $pc"]) else {
        return;
    };
    println!("{text}");
    for bad in ["warning", "truncated", "Backtrace stopped", "corrupt"] {
        assert!(!text.contains(bad), "{bad}:\n{text}");
    }
    assert_frame(&text, "illegal_instruction", "misbehave.rs");
    assert_frame(&text, "perform", "chaos.rs");
    // Where gdb says it stands is where the daemon says it died.
    let pc = text
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("$1 = "));
    let crash = status.last_crash.unwrap();
    assert!(crash.contains(pc.unwrap()), "{crash}\n{text}");
}

#[test]
fn the_quota_holds_over_many_deaths_and_the_oldest_go() {
    let mut bench = Bench::new("mode = \"enabled\"\npatience-ms = 3600000\ncount = 3");
    for death in 1..=5 {
        bench.die("illegal");
        assert_eq!(bench.names().len(), death.min(3));
    }
    let expected = [
        "core.chaos.3.3.elf",
        "core.chaos.4.4.elf",
        "core.chaos.5.5.elf",
    ];
    assert_eq!(bench.names(), expected);
}

#[test]
fn a_dump_that_is_not_finished_in_time_is_partial_and_inline_takes_its_time() {
    let mut bench = Bench::new("mode = \"enabled\"\npatience-ms = 0");
    let said = bench.die("illegal").last_dump.unwrap();
    assert!(said.starts_with("partial coredump"), "{said}");
    assert!(said.contains("the time for it"), "{said}");
    assert_eq!(bench.names(), ["core.chaos.1.1.partial.elf"]);
    let mut bench = Bench::new("mode = \"inline\"\npatience-ms = 0");
    let said = bench.die("illegal").last_dump.unwrap();
    assert!(said.starts_with("coredump "), "{said}");
    let file = fs::read(bench.folder.path().join("core.chaos.1.1.elf")).unwrap();
    assert_eq!(word(&note(&file, NOTE_STATE), 4), 1);
}

#[test]
fn disabled_is_the_default_and_nothing_is_written() {
    for coredump in ["", "mode = \"disabled\""] {
        let mut bench = Bench::new(coredump);
        assert_eq!(bench.die("illegal").last_dump, None);
        assert!(bench.names().is_empty());
    }
}

#[test]
fn a_limit_on_the_size_of_files_leaves_a_partial_dump_and_a_running_core() {
    let mut bench = Bench::new("mode = \"enabled\"\npatience-ms = 3600000");
    // Only now: the core's memory is a file, too.
    let limit = Rlimit {
        current: Some(16 << 10),
        maximum: Some(16 << 10),
    };
    let daemon = Pid::from_raw(bench.daemon.pid().cast_signed());
    prlimit(daemon, Resource::Fsize, limit).unwrap();
    for death in 1..=2 {
        let said = bench.die("illegal").last_dump.unwrap();
        assert!(said.starts_with("partial coredump"), "{said}");
        assert!(said.contains("File too large"), "{said}");
        let name = format!("core.chaos.{death}.{death}.partial.elf");
        let file = fs::read(bench.folder.path().join(&name)).unwrap();
        assert!(file.len() <= 16 << 10, "{}", file.len());
        assert_eq!(word(&note(&file, NOTE_STATE), 4), 0);
        assert_eq!(word(&note(&file, NOTE_CORE), 0), death);
    }
    assert!(bench.daemon.is_running());
}

/// In a name space of its own, where it is root.
const SMALL_DISK: [&str; 6] = [
    "unshare",
    "--mount",
    "--map-root-user",
    "sh",
    "-c",
    "mount -t tmpfs -o size=32k small \"$0\" && exec \"$@\"",
];

#[test]
fn a_full_disk_leaves_a_partial_dump_then_none_and_a_running_core() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().to_str().unwrap().to_owned();
    let wrapper = [&SMALL_DISK[..], &[&disk]].concat();
    let tried = Command::new(wrapper[0])
        .args(&wrapper[1..])
        .arg("true")
        .output();
    if !tried.is_ok_and(|tried| tried.status.success()) {
        println!("skipped: this system lets nobody mount a small disk");
        return;
    }
    let mut bench = Bench::under(&wrapper, "mode = \"inline\"", folder);
    let said = bench.die("illegal").last_dump.unwrap();
    assert!(said.starts_with("partial coredump"), "{said}");
    assert!(said.contains("No space left"), "{said}");
    // As the daemon sees it: here there is no disk.
    let disk = PathBuf::from(format!("/proc/{}/root{disk}", bench.daemon.pid()));
    assert_eq!(names(&disk), ["core.chaos.1.1.partial.elf"]);
    let file = fs::read(disk.join("core.chaos.1.1.partial.elf")).unwrap();
    assert_eq!(word(&note(&file, NOTE_STATE), 4), 0);
    let _ = fs::write(disk.join("filler"), vec![1; 1 << 20]);
    let said = bench.die("illegal").last_dump.unwrap();
    assert!(said.starts_with("no coredump: "), "{said}");
    assert_eq!(names(&disk), ["core.chaos.1.1.partial.elf", "filler"]);
}

#[test]
fn a_folder_that_cannot_be_used_is_an_error_at_the_start_and_told_by_a_check() {
    for place in ["/nonexistent/dumps", "/proc/self"] {
        let settings = settings("mode = \"inline\"", Path::new(place));
        let core = Core {
            name: "chaos",
            image: "chaos",
            settings: &settings,
            ..Core::default()
        };
        let refused = refusal_at_start(&[], std::slice::from_ref(&core));
        let (accepted, checked) = check(std::slice::from_ref(&core));
        for text in [refused, checked] {
            for word in ["core chaos", place, "must exist and be writable"] {
                assert!(text.contains(word), "{word:?} is not in:\n{text}");
            }
        }
        // One that is not there yet may be made by the unit.
        assert_eq!(accepted, place == "/nonexistent/dumps");
        assert!(!Path::new("/nonexistent").exists());
    }
}

/// A firmware without a table has no carveout that its stack could be in: where it lies is between
/// the firmware and its linker script. In chaos it is in front of all segments.
#[test]
fn a_firmware_without_a_table_leaves_its_stack_and_all_other_memory_too() {
    let mut image = fs::read(firmware_dir().join("chaos.elf")).unwrap();
    let name = b".resource_table\0";
    let at = image.windows(name.len()).position(|it| it == name).unwrap();
    image[at + 1] = b'R';
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("bare.elf");
    fs::write(&path, &image).unwrap();
    let settings = format!(
        "[core.coredump]\nmode = \"inline\"\ndirectory = {:?}",
        files.path()
    );
    let daemon = Daemon::start_alone_with("bare", &path, &settings);
    // It has come to wait in its main loop.
    let end = Instant::now() + PATIENCE;
    let waits = |status: &CoreStatus| status.incarnation_ran_microseconds > Some(0);
    while !waits(&daemon.status()[0]) {
        assert!(Instant::now() < end, "{:?}", daemon.status());
    }
    let output = daemon.rprocctl(&["crash", "bare"]);
    assert!(output.status.success(), "{output:?}");
    let dump = files.path().join("core.bare.1.1.elf");
    let file = fs::read(&dump).unwrap();
    let elf = Elf::parse(&file).unwrap();
    let mut loaded: Vec<_> = elf
        .program_headers
        .iter()
        .filter(|header| header.p_type == goblin::elf::program_header::PT_LOAD)
        .map(|header| (header.p_paddr, header.p_memsz))
        .collect();
    loaded.sort_unstable();
    let mut end = 0x8000_0000;
    for (start, len) in loaded {
        assert_eq!(start, end, "all of the memory, without a gap");
        end += len;
    }
    assert_eq!(end, 0x8000_0000 + (4 << 20));
    // Pages that were never touched take no place.
    assert!(fs::metadata(&dump).unwrap().blocks() * 512 < 1 << 20);
    let Some(text) = gdb(&path, &dump, &["bt 20"]) else {
        return;
    };
    println!("{text}");
    for bad in ["Backtrace stopped", "Cannot access", "corrupt"] {
        assert!(!text.contains(bad), "{bad}:\n{text}");
    }
    assert_frame(&text, "main", "chaos.rs");
}
