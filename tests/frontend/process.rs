//! A real rprocd in a process of its own, with real firmware.
//!
//! What belongs here: building the firmware, writing a configuration, starting and ending the
//! daemon. What does not: anything said over its sockets.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rprocd::rproc::CoreStatus;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long a start or an end may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// The firmware images that guest-fw makes.
const IMAGES: [&str; 4] = ["echo", "tty", "client-sample", "chaos"];

/// A folder with `NAME.elf` for each image, built once in this process.
pub fn firmware_dir() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(build_firmware)
}

fn build_firmware() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest-fw");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest-fw");
    let machine = "riscv32imac-unknown-none-elf";
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // In its own folder, because its settings lie there; without this build's flags, because they
    // would replace its linker arguments.
    let output = Command::new(cargo)
        .current_dir(&source)
        .args(["build", "--release", "--target", machine, "--target-dir"])
        .arg(&target)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .output()
        .expect("cargo for the firmware");
    assert!(
        output.status.success(),
        "the firmware in {} cannot be built:\n{}",
        source.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("firmware");
    std::fs::create_dir_all(&folder).expect("a folder for the firmware");
    for image in IMAGES {
        let built = target.join(machine).join("release").join(image);
        // Another test process may be reading the old one.
        let fresh = folder.join(format!(".{image}.{}", std::process::id()));
        std::fs::copy(&built, &fresh)
            .unwrap_or_else(|error| panic!("no firmware at {}: {error}", built.display()));
        std::fs::rename(&fresh, folder.join(format!("{image}.elf"))).expect("a firmware image");
    }
    folder
}

/// One core of a configuration.
pub struct Core<'a> {
    /// Its name; the socket is called after it.
    pub name: &'a str,
    /// The image, without `.elf`.
    pub image: &'a str,
    /// Is the name service offered?
    pub announce: bool,
    /// More lines for its section in the configuration.
    pub settings: &'a str,
    /// What happens when the guest is gone, if not the default.
    pub departure: Option<&'a str>,
}

impl Default for Core<'_> {
    fn default() -> Self {
        Self {
            name: "echo",
            image: "echo",
            announce: true,
            settings: "",
            departure: None,
        }
    }
}

/// A running rprocd.
pub struct Daemon {
    child: Child,
    folder: Arc<TempDir>,
    log: Arc<Mutex<String>>,
}

impl Daemon {
    /// Starts rprocd with these cores, and waits until it says that it is ready.
    pub fn start(cores: &[Core<'_>]) -> Self {
        Self::start_under(&[], cores)
    }

    /// The same, with a command that becomes rprocd: its words, which rprocd's own follow.
    pub fn start_under(wrapper: &[&str], cores: &[Core<'_>]) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the daemon");
        configuration(&folder, cores);
        Self::launch(wrapper, Arc::new(folder))
    }

    /// Another one in the same folder, with the same configuration.
    pub fn again(&self) -> Self {
        self.again_under(&[])
    }

    /// The same, with a command that becomes rprocd.
    pub fn again_under(&self, wrapper: &[&str]) -> Self {
        Self::launch(wrapper, Arc::clone(&self.folder))
    }

    /// With the `rprocd.toml` that is in `folder`. Sockets are called after the cores, with `.sock`.
    pub fn start_in(folder: TempDir) -> Self {
        Self::launch(&[], Arc::new(folder))
    }

    /// Starts rprocd with one core, whose firmware is any file and declares no vdev.
    pub fn start_alone(core: &str, image: &Path) -> Self {
        Self::start_alone_with(core, image, "")
    }

    /// The same, with more lines for its section in the configuration.
    pub fn start_alone_with(core: &str, image: &Path, settings: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the daemon");
        let path = configuration(&folder, &[]);
        let mut config = std::fs::read_to_string(&path).expect("a configuration");
        let place = image.parent().expect("a folder");
        let file = image.file_name().expect("a file");
        config = config.replacen(&format!("{:?}", firmware_dir()), &format!("{place:?}"), 1);
        write!(
            config,
            "\n[[core]]\nname = {core:?}\nengine = \"rv32\"\nmemory-mib = 4\nfirmware = {file:?}\n{settings}\n"
        )
        .expect("text");
        std::fs::write(&path, config).expect("a configuration");
        Self::launch(&[], Arc::new(folder))
    }

    fn launch(wrapper: &[&str], folder: Arc<TempDir>) -> Self {
        let config = folder.path().join("rprocd.toml");
        let words = [wrapper, &[env!("CARGO_BIN_EXE_rprocd")]].concat();
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("rprocd");
        let stderr = child.stderr.take().expect("a pipe");
        let log = Arc::new(Mutex::new(String::new()));
        let (tell, ready) = channel();
        let kept = Arc::clone(&log);
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let is_ready = line.contains("ready");
                let mut log = kept.lock().expect("the daemon's log");
                log.push_str(&line);
                log.push('\n');
                if is_ready {
                    // Nobody listens after the first time.
                    let _ = tell.send(());
                }
            }
        });
        let mut daemon = Self { child, folder, log };
        daemon.wait_until_ready(&ready);
        daemon
    }

    fn wait_until_ready(&mut self, ready: &Receiver<()>) {
        match ready.recv_timeout(PATIENCE) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => {
                panic!(
                    "rprocd was not ready within {PATIENCE:?}; it said:\n{}",
                    self.log()
                );
            }
            Err(RecvTimeoutError::Disconnected) => {
                panic!("rprocd ended before it was ready; it said:\n{}", self.log());
            }
        }
    }

    /// The socket of a core.
    pub fn socket(&self, core: &str) -> PathBuf {
        socket(&self.folder, core)
    }

    /// What rprocctl does with these arguments.
    pub fn rprocctl(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_rprocctl"))
            .arg("--socket")
            .arg(self.socket("control"))
            .args(arguments)
            .output()
            .expect("rprocctl")
    }

    /// The cores, as `rprocctl status` has them.
    pub fn status(&self) -> Vec<CoreStatus> {
        #[derive(serde::Deserialize)]
        struct Answer {
            cores: Vec<CoreStatus>,
        }
        let output = self.rprocctl(&["status", "--json"]);
        assert!(output.status.success(), "{output:?}");
        let answer: Answer = serde_json::from_slice(&output.stdout).expect("JSON");
        answer.cores
    }

    /// All that it has logged.
    pub fn log(&self) -> String {
        self.log.lock().expect("the daemon's log").clone()
    }

    /// Waits for a text in the log, which comes by another way than answers and messages do.
    pub fn wait_for_log(&self, text: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.log().contains(text) {
            assert!(Instant::now() < end, "{text:?} is not in the log");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Is it still there?
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// Sends SIGTERM.
    pub fn ask_to_end(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("a signal");
    }

    /// Waits for the end; what it ended with, or nothing if it does not end.
    pub fn wait_for_end(&mut self) -> Option<ExitStatus> {
        wait_for_end(&mut self.child, PATIENCE)
    }
}

/// Waits for the end of a process; what it ended with, or nothing if it does not end.
pub fn wait_for_end(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + patience;
    // There is no event to wait for that the standard library would offer.
    while Instant::now() < end {
        if let Some(status) = child.try_wait().expect("a child") {
            return Some(status);
        }
        thread::sleep(Duration::from_millis(5));
    }
    None
}

/// Writes the configuration of these cores.
fn configuration(folder: &TempDir, cores: &[Core<'_>]) -> PathBuf {
    let mut config = format!(
        "firmware-directory = {:?}\n\n[control]\nsocket = {:?}\nmode = \"0600\"\n\
         monitor = {:?}\nmonitor-mode = \"0666\"\n",
        firmware_dir(),
        socket(folder, "control"),
        socket(folder, "monitor"),
    );
    for core in cores {
        let socket = socket(folder, core.name);
        write!(
            config,
            "\n[[core]]\nname = {:?}\nengine = \"rv32\"\nmemory-mib = 4\nfirmware = {:?}\n\
             {}\n[[core.vdev]]\nsocket = {socket:?}\nannounce = {}\n",
            core.name,
            format!("{}.elf", core.image),
            core.settings,
            core.announce,
        )
        .expect("text");
        if let Some(departure) = core.departure {
            writeln!(config, "on-departure = {departure:?}").expect("text");
        }
    }
    let path = folder.path().join("rprocd.toml");
    std::fs::write(&path, config).expect("a configuration");
    path
}

/// What rprocd says when it does not start with these cores.
pub fn refusal_at_start(arguments: &[&str], cores: &[Core<'_>]) -> String {
    let (started, text) = run_to_end(arguments, cores);
    assert!(!started, "{text}");
    text
}

/// Whether `--check-config` takes these cores, and what it says.
pub fn check(cores: &[Core<'_>]) -> (bool, String) {
    run_to_end(&["--check-config"], cores)
}

fn run_to_end(arguments: &[&str], cores: &[Core<'_>]) -> (bool, String) {
    let folder = tempfile::tempdir().expect("a folder for the daemon");
    let output = Command::new(env!("CARGO_BIN_EXE_rprocd"))
        .arg("--config")
        .arg(configuration(&folder, cores))
        .args(arguments)
        .output()
        .expect("rprocd");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), text)
}

fn socket(folder: &TempDir, core: &str) -> PathBuf {
    folder.path().join(format!("{core}.sock"))
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("rprocd said:\n{}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
