//! `rprocctl`: the operator's tool. It knows only the control socket.
//!
//! | module | |
//! |---|---|
//! | this one | from a verb to calls, and from a failure to an exit status |
//! | `arguments` | the command line |
//! | `show` | cores as tables and blocks |
//! | `watch` | what goes on until it is ended: traces, events, progress |
//! | `top` | the live view |
//! | `report` | everything in one file |
//! | `vmm` | what a VMM is told |
//! | `terminal` | columns, colour, width |

mod arguments;
mod report;
mod show;
mod terminal;
mod top;
mod vmm;
mod watch;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use rustix::event::{PollFd, PollFlags, poll};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use arguments::{Arguments, Change, Config, Coredump, Firmware, OfCore, Recovery, Setting, Verb};
use rprocd::control::client::{self, CallError, Connection};
use rprocd::prepare;
use rprocd::report::sentence;
use rprocd::rproc::{CoreStatus, Region, Resource};
use rprocd::sysfs::namespace::{self, NamespaceError};
use terminal::{Screen, Table, duration, size, write};

/// Why there is no result: a sentence and an exit status.
struct Failure {
    status: u8,
    text: String,
}

impl Failure {
    fn new(status: u8, text: impl Into<String>) -> Self {
        Self {
            status,
            text: text.into(),
        }
    }
}

impl From<CallError> for Failure {
    fn from(cause: CallError) -> Self {
        let status = match cause {
            CallError::NoSuchCore(_) => 3,
            CallError::Refused(_) => 4,
            CallError::Unreachable { .. } => 5,
            CallError::Denied(_) => 6,
            CallError::TimedOut { .. } => 7,
            _ => 1,
        };
        Self::new(status, cause.to_string())
    }
}

type Result<T> = std::result::Result<T, Failure>;

/// Where rprocd is, and how it is talked to.
struct Daemon {
    socket: PathBuf,
    patience: Duration,
    json: bool,
}

impl Daemon {
    fn connect(&self) -> Result<Connection> {
        Ok(Connection::open(&self.socket, self.patience)?)
    }

    /// One call, one answer.
    fn call<T: DeserializeOwned>(&self, method: &str, parameters: &Value) -> Result<T> {
        Ok(self.connect()?.call(method, parameters)?)
    }

    /// The same, with an open file.
    fn call_with(&self, method: &str, parameters: &Value, file: &File) -> Result<Value> {
        let mut connection = self.connect()?;
        connection.send(method, parameters, false, &[file.as_fd()])?;
        Ok(connection.answer(method)?.parameters)
    }

    fn cores(&self) -> Result<Vec<CoreStatus>> {
        let List { cores } = self.call("io.rprocd.List", &json!({}))?;
        Ok(cores)
    }

    /// One core of that name.
    fn core(&self, of: &OfCore) -> Result<CoreStatus> {
        let found = self.cores()?.into_iter().find(|it| it.name == of.core);
        found.ok_or_else(|| CallError::NoSuchCore(of.core.clone()).into())
    }

    /// Text, or with `--json` the value.
    fn shown(
        &self,
        value: &impl serde::Serialize,
        text: impl FnOnce() -> String,
    ) -> Result<String> {
        if !self.json {
            return Ok(text());
        }
        let text = serde_json::to_string_pretty(value)
            .map_err(|cause| Failure::new(1, format!("the answer cannot be shown: {cause}")))?;
        Ok(text + "\n")
    }
}

/// The answer to `List`.
#[derive(Deserialize)]
struct List {
    cores: Vec<CoreStatus>,
}

fn main() -> ExitCode {
    let Arguments {
        socket,
        timeout,
        json,
        verb,
    } = Arguments::parse();
    let daemon = Daemon {
        socket,
        patience: timeout,
        json,
    };
    match perform(&daemon, &verb).and_then(|text| write(&text)) {
        Ok(_) => ExitCode::SUCCESS,
        Err(Failure { status, text }) => {
            eprintln!("rprocctl: {text}");
            ExitCode::from(status)
        }
    }
}

fn perform(daemon: &Daemon, verb: &Verb) -> Result<String> {
    let screen = &Screen::of_output();
    match verb {
        Verb::List => {
            let answer: Value = daemon.call("io.rprocd.List", &json!({}))?;
            let List { cores } = client::read("io.rprocd.List", answer.clone())?;
            daemon.shown(&answer, || show::list(&cores, screen))
        }
        Verb::Info(of) => of_core(daemon, of, |core| show::info(core, screen)),
        Verb::Queues(of) => of_core(daemon, of, |core| show::queues(core, screen)),
        Verb::Endpoints(of) => of_core(daemon, of, |core| show::endpoints(core, screen)),
        Verb::Timings(of) => of_core(daemon, of, |core| show::timings(core, screen)),
        Verb::Top { delay, iterations } => top::run(daemon, *delay, *iterations),
        Verb::Start {
            while_connected,
            firmware,
            change,
        } => {
            if let Some(file) = firmware {
                set_firmware(daemon, &change.core, file)?;
            }
            if *while_connected {
                start_while_connected(daemon, &change.core)
            } else {
                self::change(daemon, "io.rprocd.Start", change)
            }
        }
        Verb::Stop { if_running, change } => {
            let of = OfCore {
                core: change.core.clone(),
            };
            if *if_running && daemon.core(&of)?.state == "offline" {
                return Ok(String::new());
            }
            self::change(daemon, "io.rprocd.Stop", change)
        }
        Verb::Restart(change) => {
            let of = OfCore {
                core: change.core.clone(),
            };
            if !matches!(&*daemon.core(&of)?.state, "offline" | "detached") {
                self::change(daemon, "io.rprocd.Stop", change)?;
            }
            self::change(daemon, "io.rprocd.Start", change)
        }
        Verb::Attach(change) => self::change(daemon, "io.rprocd.Attach", change),
        Verb::Detach(change) => self::change(daemon, "io.rprocd.Detach", change),
        Verb::Suspend(of) => simply(daemon, "io.rprocd.Suspend", of),
        Verb::Resume(of) => simply(daemon, "io.rprocd.Resume", of),
        Verb::Crash(of) => simply(daemon, "io.rprocd.Crash", of),
        Verb::Firmware(what) => firmware(daemon, what),
        Verb::Recovery(what) => recovery(daemon, what),
        Verb::Coredump(what) => coredump(daemon, what, screen),
        Verb::Trace { follow, of } => watch::trace(daemon, &of.core, *follow),
        Verb::Events {
            follow,
            steps,
            since,
            core,
        } => watch::events(daemon, core.as_deref(), *since, *follow, *steps),
        Verb::Mem(of) => {
            let Regions { regions } = daemon.call("io.rprocd.Memory", &about(of))?;
            daemon.shown(&regions, || show::memory(&regions))
        }
        Verb::Resources(of) => {
            let Entries { entries } = daemon.call("io.rprocd.Resources", &about(of))?;
            daemon.shown(&entries, || show::resources(&entries, screen))
        }
        Verb::Metrics { output } => {
            let text = rprocd::metrics::text(&daemon.cores()?);
            put(output.as_deref(), text)
        }
        Verb::Vmm { vmm, memory, of } => {
            let words = vmm::arguments(*vmm, &daemon.core(of)?, memory)?;
            daemon.shown(&words, || vmm::for_a_shell(&words))
        }
        Verb::Report {
            html,
            symbols,
            output,
        } => {
            let text = report::text(daemon, *html, symbols)?;
            put(output.as_deref(), text)
        }
        Verb::Config(Config::Check { file }) => check_config(daemon, file),
        Verb::Sysfs { command } => Err(sysfs(daemon, command)),
        Verb::Ping => ping(daemon),
        Verb::Version => version(daemon),
    }
}

/// Becomes the command; what comes back is why not. 126 and 127 are a shell's.
fn sysfs(daemon: &Daemon, command: &[OsString]) -> Failure {
    let cause = namespace::run(&daemon.socket, command);
    let status = match &cause {
        NamespaceError::Command { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
        NamespaceError::Command { .. } => 126,
        _ => 1,
    };
    Failure::new(status, cause.to_string())
}

#[derive(Deserialize)]
struct Regions {
    regions: Vec<Region>,
}

#[derive(Deserialize)]
struct Entries {
    entries: Vec<Resource>,
}

fn about(of: &OfCore) -> Value {
    json!({ "core": of.core })
}

/// Something of one core's figures.
fn of_core(
    daemon: &Daemon,
    of: &OfCore,
    text: impl FnOnce(&CoreStatus) -> String,
) -> Result<String> {
    let core = daemon.core(of)?;
    daemon.shown(&core, || text(&core))
}

/// A change that has nothing to show.
fn simply(daemon: &Daemon, method: &str, of: &OfCore) -> Result<String> {
    let _: Value = daemon.call(method, &about(of))?;
    Ok(String::new())
}

fn change(daemon: &Daemon, method: &str, change: &Change) -> Result<String> {
    let parameters = json!({ "core": change.core });
    if change.progress {
        return watch::progress(daemon, method, &parameters);
    }
    let _: Value = daemon.call(method, &parameters)?;
    Ok(String::new())
}

/// Text to a file, whole or not at all, or to the standard output.
fn put(output: Option<&Path>, text: String) -> Result<String> {
    let Some(path) = output else {
        return Ok(text);
    };
    // Beside its place, under a name that node_exporter's collector does not read.
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", process::id()));
    let beside = PathBuf::from(beside);
    fs::write(&beside, text)
        .and_then(|()| fs::rename(&beside, path))
        .map_err(|cause| {
            let _ = fs::remove_file(&beside);
            let path = path.display();
            Failure::new(
                1,
                format!("cannot write {path}: {cause}; what was there is left"),
            )
        })?;
    Ok(String::new())
}

/// A firmware as an operator names it: a file that is opened here, or a name for rprocd.
fn open(file: &str) -> Result<(String, Option<File>)> {
    if !file.contains('/') {
        return Ok((file.to_owned(), None));
    }
    let path = Path::new(file);
    let opened = File::open(path)
        .map_err(|cause| Failure::new(1, format!("cannot open {file}: {cause}")))?;
    let name = path.file_name().map(|name| name.to_string_lossy());
    let name = name.ok_or_else(|| Failure::new(1, format!("{file} is no file's name")))?;
    Ok((name.into_owned(), Some(opened)))
}

/// Calls a method about a firmware.
fn about_firmware(daemon: &Daemon, method: &str, core: &str, file: &str) -> Result<Value> {
    let (name, opened) = open(file)?;
    let mut parameters = json!({ "core": core, "firmware": name });
    match opened {
        None => daemon.call(method, &parameters),
        Some(file) => {
            parameters["fileDescriptor"] = json!(0);
            daemon.call_with(method, &parameters, &file)
        }
    }
}

fn set_firmware(daemon: &Daemon, core: &str, file: &str) -> Result<()> {
    about_firmware(daemon, "io.rprocd.SetFirmware", core, file).map(drop)
}

fn firmware(daemon: &Daemon, what: &Firmware) -> Result<String> {
    match what {
        Firmware::Get(of) => {
            let core = daemon.core(of)?;
            let value = json!({ "firmware": core.firmware, "sha256": core.firmware_sha256 });
            daemon.shown(&value, || {
                format!("{} (sha256 {})\n", core.firmware, core.firmware_sha256)
            })
        }
        Firmware::Set { core, file } => {
            set_firmware(daemon, core, file)?;
            Ok(String::new())
        }
        Firmware::Check { core, file } => {
            #[derive(Deserialize, serde::Serialize)]
            struct Judged {
                accepted: bool,
                report: String,
            }
            let method = "io.rprocd.CheckFirmware";
            let answer = about_firmware(daemon, method, core, file)?;
            let judged: Judged = client::read(method, answer)?;
            let text = daemon.shown(&judged, || judged.report.clone() + "\n")?;
            if judged.accepted {
                return Ok(text);
            }
            write(&text)?;
            Err(Failure::new(
                4,
                format!("core {core} would not take {file}"),
            ))
        }
    }
}

fn recovery(daemon: &Daemon, what: &Recovery) -> Result<String> {
    match what {
        Recovery::Get(of) => {
            let enabled = daemon.core(of)?.recovery;
            let word = if enabled { "enabled" } else { "disabled" };
            daemon.shown(&json!({ "recovery": word }), || format!("{word}\n"))
        }
        Recovery::Set { core, setting } => {
            let enabled = *setting == Setting::Enabled;
            let parameters = json!({ "core": core, "enabled": enabled });
            let _: Value = daemon.call("io.rprocd.SetRecovery", &parameters)?;
            Ok(String::new())
        }
        Recovery::Now(change) => self::change(daemon, "io.rprocd.Recover", change),
    }
}

/// A coredump, as rprocd tells it.
#[derive(Clone, Deserialize, serde::Serialize)]
struct Dump {
    name: String,
    incarnation: u32,
    bytes: u64,
    time: u64,
    complete: bool,
}

fn dumps(daemon: &Daemon, core: &str) -> Result<Vec<Dump>> {
    #[derive(Deserialize)]
    struct Dumps {
        dumps: Vec<Dump>,
    }
    let Dumps { dumps } = daemon.call("io.rprocd.Coredumps", &json!({ "core": core }))?;
    Ok(dumps)
}

fn coredump(daemon: &Daemon, what: &Coredump, screen: &Screen) -> Result<String> {
    match what {
        Coredump::Mode { core, mode: None } => {
            let mode = daemon.core(&OfCore { core: core.clone() })?.coredump_mode;
            daemon.shown(&json!({ "mode": mode }), || format!("{mode}\n"))
        }
        Coredump::Mode {
            core,
            mode: Some(mode),
        } => {
            let mode = mode.to_possible_value();
            let mode = mode.as_ref().map_or("", |mode| mode.get_name());
            let parameters = json!({ "core": core, "mode": mode });
            let _: Value = daemon.call("io.rprocd.SetCoredump", &parameters)?;
            Ok(String::new())
        }
        Coredump::List(of) => {
            let dumps = dumps(daemon, &of.core)?;
            daemon.shown(&dumps, || {
                if dumps.is_empty() {
                    return format!("core {} has no coredumps\n", of.core);
                }
                let mut table = Table::new(&["WHEN", "INCARNATION", "ON DISK", "COMPLETE", "NAME"])
                    .right(&[1, 2]);
                for dump in &dumps {
                    table.row([
                        terminal::time(dump.time),
                        dump.incarnation.to_string(),
                        size(dump.bytes),
                        if dump.complete { "yes" } else { "no" }.to_owned(),
                        dump.name.clone(),
                    ]);
                }
                table.text(screen)
            })
        }
        Coredump::Get { core, name, output } => {
            let name = match name {
                Some(name) => name.clone(),
                None => match dumps(daemon, core)?.pop() {
                    Some(last) => last.name,
                    None => {
                        let text = format!("core {core} has no coredumps");
                        return Err(Failure::new(1, text));
                    }
                },
            };
            let path = output.clone().unwrap_or_else(|| PathBuf::from(&name));
            fetch(daemon, core, &name, &path)?;
            daemon.shown(&json!({ "file": path }), || format!("{}\n", path.display()))
        }
    }
}

/// Copies a coredump to a new file.
fn fetch(daemon: &Daemon, core: &str, name: &str, path: &Path) -> Result<()> {
    let method = "io.rprocd.OpenCoredump";
    let mut connection = daemon.connect()?;
    let parameters = json!({ "core": core, "name": name });
    connection.send(method, &parameters, false, &[])?;
    let fd = connection.answer(method)?.fds.pop();
    let fd = fd.ok_or_else(|| Failure::new(1, "rprocd's answer came without the dump"))?;
    let failed = |cause: io::Error| {
        let path = path.display();
        Failure::new(1, format!("cannot write {path}: {cause}"))
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(failed)?;
    io::copy(&mut File::from(fd), &mut file).map_err(|cause| {
        let _ = fs::remove_file(path);
        failed(cause)
    })?;
    Ok(())
}

/// Judges a configuration as `rprocd --check-config` does; no daemon is asked.
fn check_config(daemon: &Daemon, file: &Path) -> Result<String> {
    let verdict = prepare::check(file).map_err(|cause| Failure::new(1, sentence(&cause)))?;
    let text = daemon.shown(&verdict, || verdict.summary() + "\n")?;
    if !daemon.json {
        for problem in &verdict.problems {
            eprintln!("{}", problem.shown());
        }
    }
    if verdict.accepted {
        return Ok(text);
    }
    if daemon.json {
        write(&text)?;
    }
    Err(Failure::new(4, verdict.summary()))
}

/// What every Varlink service says of itself.
#[derive(Deserialize, serde::Serialize)]
struct Info {
    product: String,
    version: String,
}

fn info(daemon: &Daemon) -> Result<Info> {
    daemon.call("org.varlink.service.GetInfo", &json!({}))
}

fn ping(daemon: &Daemon) -> Result<String> {
    let begun = Instant::now();
    let Info { product, version } = info(daemon)?;
    let time = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    let value = json!({ "product": product, "version": version, "microseconds": time });
    daemon.shown(&value, || {
        format!("{product} {version} answers after {}\n", duration(time))
    })
}

fn version(daemon: &Daemon) -> Result<String> {
    let ours = env!("CARGO_PKG_VERSION");
    let info = info(daemon)?;
    let value = json!({ "rprocctl": ours, "rprocd": info.version });
    daemon.shown(&value, || {
        format!("rprocctl {ours}\n{} {}\n", info.product, info.version)
    })
}

/// Starts a core for this connection, which then stays as long as this process does.
fn start_while_connected(daemon: &Daemon, core: &str) -> Result<String> {
    let mut connection = daemon.connect()?;
    let parameters = json!({ "core": core, "whileConnected": true });
    let _: Value = connection.call("io.rprocd.Start", &parameters)?;
    // Nobody has to read it.
    write(&format!(
        "{core}: held until this rprocctl ends (Ctrl-C, or the end of its input); it is then \
         stopped, unless somebody else holds it\n"
    ))?;
    wait_for_end_of_input(&connection)?;
    connection.end()?;
    Ok(String::new())
}

/// Reads and forgets the standard input.
fn wait_for_end_of_input(connection: &Connection) -> Result<()> {
    let mut input = io::stdin().lock();
    loop {
        let mut fds = [
            PollFd::new(&input, PollFlags::IN),
            PollFd::new(connection, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(cause) => return Err(Failure::new(1, format!("cannot wait: {cause}"))),
            Ok(_) => {}
        }
        let [typed, said] = fds.map(|fd| !fd.revents().is_empty());
        // Nothing was asked, so all that can come is the end.
        if said {
            let text = "rprocd hung up, and holds the core for nobody here; see its log";
            return Err(Failure::new(1, text));
        }
        if typed && !matches!(input.read(&mut [0; 4096]), Ok(1..)) {
            return Ok(());
        }
    }
}
