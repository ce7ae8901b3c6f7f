//! A Linux guest in QEMU, and the commands that it carries out.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::agent::{Agent, Heard};
use super::args::{self, escape};
use super::qmp::Qmp;
use super::wait_until;
use crate::kit::Kit;

/// Emulated on a busy machine, from QEMU's start to the agent. KVM needs a tenth of it.
const BOOT_LIMIT: Duration = Duration::from_secs(900);
const POWER_OFF_LIMIT: Duration = Duration::from_secs(600);
/// For the answer to a ping of a guest that is starting, at first, and later: what it does not read is
/// kept by the socket, which must not become full of it.
const PATIENCE: Duration = Duration::from_millis(300);
const LATER_PATIENCE: Duration = Duration::from_secs(5);
/// So many pings are at first.
const FIRST_PINGS: u32 = 100;
/// For a device that is pulled out.
const UNPLUG_LIMIT: Duration = Duration::from_secs(300);
const TAIL_LINES: usize = 25;
const MEMORY_MIB: u32 = 256;
/// `panic=-1`: a guest that panics reboots at once, and the test sees it at once. `no_timer_check`: a
/// kernel that starts counts ticks of the timer, and panics when they come late, as they do where a
/// busy machine emulates it. Under KVM kernels leave that out by themselves.
const APPEND: &str = "console=ttyS0 panic=-1 quiet loglevel=5 no_timer_check";

/// Where the guest's console goes. It is kept in a file, except with `Terminal`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Console {
    /// To the file only.
    #[default]
    Kept,
    /// And on our standard output, each line with a mark.
    Shown,
    /// It is this terminal, for a person to type in.
    Terminal,
}

/// How a guest is started.
#[derive(Clone, Debug, Default)]
pub struct GuestOptions {
    /// Its devices from the start.
    pub vdevs: Vec<Vdev>,
    /// More words for the kernel's command line.
    pub append: String,
    /// Where its console goes.
    pub console: Console,
    /// Its memory, if it needs more than others.
    pub memory_mib: Option<u32>,
    /// More words for QEMU, after all others.
    pub more: Vec<String>,
}

/// One vdev of a firmware, as one device of the guest.
#[derive(Clone, Debug)]
pub struct Vdev {
    /// Unique in the guest.
    pub id: String,
    /// The daemon's socket for it.
    pub socket: PathBuf,
    /// One of machine.args's ports.
    pub port: String,
}

impl Vdev {
    /// On port `number`, named after the socket's file.
    pub fn new(socket: &Path, number: usize) -> Self {
        let id = socket
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        Self {
            id,
            socket: socket.to_owned(),
            port: format!("port{number}"),
        }
    }

    fn words(&self) -> Result<Vec<String>> {
        let socket = escape(&self.socket.to_string_lossy());
        let values = [
            ("ID", self.id.as_str()),
            ("SOCKET", &socket),
            ("PORT", &self.port),
        ];
        args::read("rpmsg-vdev.args", &values)
    }
}

/// What a command in the guest ended with.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its exit code.
    pub exit: i32,
    /// Both its streams.
    pub output: String,
}

/// A running guest. QEMU is killed when it is dropped.
pub struct Guest {
    qemu: Child,
    agent: Option<Agent>,
    qmp: Option<Qmp>,
    next_id: u64,
    boot: String,
    files: Files,
    shown: Option<Shown>,
}

struct Files {
    folder: TempDir,
}

impl Files {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Guest {
    /// Starts QEMU; the guest is not up yet.
    pub fn start(kit: &Kit, options: &GuestOptions) -> Result<Self> {
        let files = Files {
            folder: tempfile::Builder::new().prefix("rprocd-vm-").tempdir()?,
        };
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let console = match options.console {
            Console::Terminal => "stdio,id=console,signal=off".to_owned(),
            _ => format!(
                "file,id=console,path={}",
                escape(&text(&files.path("console.log")))
            ),
        };
        File::create(files.path("console.log"))?;
        let append = format!("{APPEND} {}", options.append);
        let memory = format!("{}M", options.memory_mib.unwrap_or(MEMORY_MIB));
        let mut words = args::read(
            "machine.args",
            &[
                ("MEMORY", &memory),
                ("CPU", if kit.accel == "kvm" { "host" } else { "max" }),
                ("ACCEL", &kit.accel),
                ("KERNEL", &text(&kit.kernel)),
                ("INITRAMFS", &text(&kit.initramfs)),
                ("APPEND", append.trim()),
                ("CONSOLE", &console),
                ("AGENT", &escape(&text(&files.path("agent.sock")))),
                ("QMP", &escape(&text(&files.path("qmp.sock")))),
            ],
        )?;
        for vdev in &options.vdevs {
            words.extend(vdev.words()?);
        }
        words.extend_from_slice(&options.more);
        let log = File::create(files.path("qemu.log"))?;
        let terminal = options.console == Console::Terminal;
        let qemu = Command::new(&kit.qemu)
            .args(&words)
            .stdin(if terminal {
                Stdio::inherit()
            } else {
                Stdio::null()
            })
            .stdout(if terminal {
                Stdio::inherit()
            } else {
                log.try_clone()?.into()
            })
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot run {}", kit.qemu.display()))?;
        let shown =
            (options.console == Console::Shown).then(|| Shown::start(files.path("console.log")));
        Ok(Self {
            qemu,
            agent: None,
            qmp: None,
            next_id: 1,
            boot: String::new(),
            files,
            shown,
        })
    }

    /// Starts QEMU and waits until the guest carries out commands.
    pub fn boot(kit: &Kit, options: &GuestOptions) -> Result<Self> {
        let mut guest = Self::start(kit, options)?;
        guest.wait_for_boot(None)?;
        Ok(guest)
    }

    /// Waits for the agent of a boot that is not the one known so far. `told` is the command that
    /// ends that one, if any.
    fn wait_for_boot(&mut self, told: Option<u64>) -> Result<()> {
        let path = self.files.path("agent.sock");
        let deadline = Instant::now() + BOOT_LIMIT;
        let (mut pings, mut last) = (0, "nothing was tried".to_owned());
        while Instant::now() < deadline {
            if let Some(status) = self.qemu.try_wait()? {
                bail!(
                    "QEMU ended with {status} before the guest was up{}",
                    self.evidence()
                );
            }
            if self.agent.is_none() {
                match Agent::connect(&path) {
                    Ok(agent) => self.agent = Some(agent),
                    Err(error) => last = format!("{}: {error:#}", path.display()),
                }
            }
            let id = self.take_id();
            if let Some(agent) = &mut self.agent {
                pings += 1;
                let patience = if pings < FIRST_PINGS {
                    PATIENCE
                } else {
                    LATER_PATIENCE
                };
                match agent.ping(id, told, patience) {
                    Ok(Heard::Pong(boot)) if boot != self.boot => {
                        self.boot = boot;
                        return Ok(());
                    }
                    Ok(Heard::Pong(_)) => last = "it is still the boot from before".to_owned(),
                    Ok(Heard::Done(exit, output)) => bail!(
                        "the guest was told to end, and the command ended with {exit}:\n{}{}",
                        output.trim_end(),
                        self.evidence()
                    ),
                    Ok(Heard::Nothing) => last = "the last one was not answered".to_owned(),
                    Err(error) => {
                        // A new one has nothing in it that waits to be read.
                        self.agent = None;
                        last = format!("{error:#}");
                    }
                }
            }
            thread::sleep(Duration::from_millis(50));
        }
        bail!(
            "the guest was not up after {} s and {pings} pings; {last}{}",
            BOOT_LIMIT.as_secs(),
            self.evidence()
        )
    }

    fn take_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Runs a shell command in the guest, whatever it ends with.
    pub fn ask(&mut self, command: &str, limit: Duration) -> Result<Answer> {
        ensure!(!command.contains('\n'), "a command is one line");
        let id = self.take_id();
        let agent = self.agent()?;
        let result = agent.ask(id, command, limit);
        if result.is_err() {
            // A half of a line may be on its way, in either direction.
            self.agent = None;
        }
        result.with_context(|| format!("`{command}` in the guest{}", self.evidence()))
    }

    /// The connection to the agent; a new one if the last one was given up.
    fn agent(&mut self) -> Result<&mut Agent> {
        ensure!(!self.boot.is_empty(), "the guest is not up");
        let agent = match self.agent.take() {
            Some(agent) => agent,
            None => {
                let agent = Agent::connect(&self.files.path("agent.sock"));
                agent.with_context(|| {
                    format!(
                        "cannot connect to the guest's agent again{}",
                        self.evidence()
                    )
                })?
            }
        };
        Ok(self.agent.insert(agent))
    }

    /// Tells the guest a command that ends its boot. Nobody waits for an answer: on a busy machine
    /// the guest may be gone before it has given one.
    fn tell(&mut self, command: &str) -> Result<u64> {
        let id = self.take_id();
        let agent = self.agent()?;
        let told = agent.tell(id, command, POWER_OFF_LIMIT);
        told.with_context(|| format!("`{command}` in the guest{}", self.evidence()))?;
        Ok(id)
    }

    /// Runs a shell command in the guest, which must succeed; returns its output.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<String> {
        let answer = self.ask(command, limit)?;
        ensure!(
            answer.exit == 0,
            "`{command}` in the guest ended with {}:\n{}{}",
            answer.exit,
            answer.output.trim_end(),
            self.evidence()
        );
        Ok(answer.output)
    }

    /// Asks again and again until the output of `command` is as `wanted` says.
    pub fn wait_for(
        &mut self,
        command: &str,
        limit: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            let answer = self.ask(command, limit)?;
            if wanted(&answer.output) {
                return Ok(answer.output);
            }
            if Instant::now() >= deadline {
                bail!(
                    "after {} s `{command}` in the guest still says\n{}{}",
                    limit.as_secs(),
                    answer.output.trim_end(),
                    self.evidence()
                );
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Runs a shell command that must succeed, and shows it and its output on the guest's console.
    /// All that it shows has been seen by the time this returns.
    pub fn run_shown(&mut self, command: &str, limit: Duration) -> Result<String> {
        // stty waits for what is still on its way out (TCSADRAIN).
        let output = self.run(
            &format!(
                "set -o pipefail; echo \"# {command}\" >/dev/console; \
                 {command} | tee /dev/console; code=$?; stty -F /dev/console onlcr; exit $code"
            ),
            limit,
        )?;
        self.show_all();
        Ok(output)
    }

    /// Prints what its console has shown by now, if that is shown at all.
    pub fn show_all(&self) {
        if let Some(shown) = &self.shown {
            shown.catch_up();
        }
    }

    /// Reboots the guest and waits until it is up again.
    pub fn reboot(&mut self) -> Result<()> {
        let told = self.tell("reboot -f")?;
        self.wait_for_boot(Some(told)).context("after a reboot")
    }

    /// Powers the guest off and waits for QEMU to end.
    pub fn power_off(mut self) -> Result<()> {
        self.tell("poweroff -f")?;
        let status = wait_until(POWER_OFF_LIMIT, || self.qemu.try_wait().ok().flatten())
            .with_context(|| {
                format!(
                    "the guest did not power off within {} s{}",
                    POWER_OFF_LIMIT.as_secs(),
                    self.evidence()
                )
            })?;
        ensure!(
            status.success(),
            "QEMU ended with {status}{}",
            self.evidence()
        );
        Ok(())
    }

    /// Waits for QEMU to end by itself, for as long as a person wants it.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.qemu.wait()?)
    }

    /// True when QEMU has ended.
    pub fn has_exited(&mut self) -> bool {
        !matches!(self.qemu.try_wait(), Ok(None))
    }

    /// A command of the monitor, which is connected at its first use.
    fn monitor(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let result = self.qmp().and_then(|qmp| qmp.execute(command, arguments));
        result.with_context(|| format!("QEMU's monitor{}", self.evidence()))
    }

    fn qmp(&mut self) -> Result<&mut Qmp> {
        let connected = match self.qmp.take() {
            Some(qmp) => qmp,
            None => Qmp::connect(&self.files.path("qmp.sock"))?,
        };
        Ok(self.qmp.insert(connected))
    }

    /// Stops the guest's processors; its devices are told.
    pub fn pause(&mut self) -> Result<()> {
        self.monitor("stop", json!({})).map(drop)
    }

    /// Undoes [`Guest::pause`].
    pub fn resume(&mut self) -> Result<()> {
        self.monitor("cont", json!({})).map(drop)
    }

    /// Plugs a device in, with the properties that `rpmsg-vdev.args` gives it.
    pub fn plug(&mut self, vdev: &Vdev) -> Result<()> {
        let words = vdev.words()?;
        for (option, value) in args::options(&words)? {
            match option {
                "-chardev" => {
                    // Not by the human monitor: that one remembers the names of chardevs given on
                    // the command line and refuses them for ever.
                    let id = format!("{}-socket", vdev.id);
                    let address = json!({ "type": "unix", "data": { "path": vdev.socket } });
                    let socket = json!({ "addr": address, "server": false });
                    let backend = json!({ "type": "socket", "data": socket });
                    let arguments = json!({ "id": id, "backend": backend });
                    self.monitor("chardev-add", arguments)?;
                }
                "-device" => {
                    let arguments = args::properties(value);
                    self.monitor("device_add", arguments)?;
                }
                other => bail!("{other} in rpmsg-vdev.args cannot be plugged in"),
            }
        }
        Ok(())
    }

    /// Pulls a device out, and its socket's chardev after it.
    pub fn unplug(&mut self, vdev: &Vdev) -> Result<()> {
        self.monitor("device_del", json!({ "id": vdev.id }))?;
        let gone = self
            .qmp()
            .and_then(|qmp| qmp.wait_deleted(&vdev.id, UNPLUG_LIMIT));
        gone.with_context(|| format!("QEMU's monitor{}", self.evidence()))?;
        let socket = format!("{}-socket", vdev.id);
        self.monitor("chardev-remove", json!({ "id": socket }))
            .map(drop)
    }

    /// What the guest's console has shown so far.
    pub fn console(&self) -> String {
        fs::read(self.files.path("console.log")).map_or_else(
            |_| String::new(),
            |bytes| String::from_utf8_lossy(&bytes).into_owned(),
        )
    }

    /// The last lines of it.
    pub fn console_tail(&self) -> String {
        crate::kit::tail(&self.files.path("console.log"), TAIL_LINES)
    }

    /// The end of the console and of QEMU's own messages, for an error message.
    fn evidence(&self) -> String {
        format!(
            "\n--- the guest's console ends with\n{}\n--- QEMU said\n{}",
            self.console_tail(),
            crate::kit::tail(&self.files.path("qemu.log"), TAIL_LINES)
        )
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        if let Some(shown) = self.shown.take() {
            shown.finish();
        }
    }
}

/// Copies a growing file to standard output, line by line.
struct Shown {
    path: PathBuf,
    /// So many bytes of the file have been printed.
    position: Arc<Mutex<u64>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Shown {
    fn start(path: PathBuf) -> Self {
        let position = Arc::new(Mutex::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (path, position, stop) = (path.clone(), position.clone(), stop.clone());
            move || {
                while !stop.load(Ordering::Acquire) {
                    print_new(&path, &position, Part::WholeLines);
                    thread::sleep(Duration::from_millis(50));
                }
            }
        });
        Self {
            path,
            position,
            stop,
            thread,
        }
    }

    /// Prints the lines that are there by now.
    fn catch_up(&self) {
        print_new(&self.path, &self.position, Part::WholeLines);
    }

    fn finish(self) {
        self.stop.store(true, Ordering::Release);
        let _ = self.thread.join();
        print_new(&self.path, &self.position, Part::All);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    WholeLines,
    /// A line that breaks off too: there is no more to come.
    All,
}

/// One printer at a time: the lock is held until the lines are out.
fn print_new(path: &Path, position: &Mutex<u64>, part: Part) {
    let mut position = position.lock().unwrap_or_else(PoisonError::into_inner);
    // A file that cannot be read now may be readable next time.
    *position = copy_lines(path, *position, part).unwrap_or(*position);
}

/// Prints what is new since `position`; returns where that ends.
fn copy_lines(path: &Path, position: u64, part: Part) -> Result<u64> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(position))?;
    let mut new = Vec::new();
    file.read_to_end(&mut new)?;
    if part == Part::WholeLines {
        let whole = new
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        new.truncate(whole);
    }
    for line in String::from_utf8_lossy(&new).lines() {
        println!("  guest| {}", line.trim_end());
    }
    Ok(position + new.len() as u64)
}
