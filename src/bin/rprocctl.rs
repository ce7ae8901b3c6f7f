//! `rprocctl`: the operator's tool. It knows only the control socket.

use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::thread;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use rustix::event::{PollFd, PollFlags, poll};
use serde::Deserialize;
use serde_json::{Value, json};

use rprocd::control::TracePiece;
use rprocd::rproc::CoreStatus;

/// How long the daemon may take for an answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long who follows a trace waits when there is nothing new.
const POLL: Duration = Duration::from_millis(200);

/// Shows what rprocd's cores do, starts them and stops them.
///
/// Exit status: 0 done, 1 failed, 2 wrong usage, 3 no such core, 4 refused, 5 rprocd cannot be
/// reached, 6 denied.
#[derive(Parser)]
#[command(version, max_term_width = 80)]
struct Arguments {
    /// rprocd's control socket (`socket` in section `control` of its configuration)
    #[arg(
        short,
        long,
        value_name = "PATH",
        default_value = "/run/rprocd/control",
        global = true
    )]
    socket: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// All cores: state, firmware, guests, messages
    Status {
        /// One JSON document instead of the table
        #[arg(short, long)]
        json: bool,
    },
    /// Start a core that is offline or crashed, or attach one
    Start {
        /// Only for as long as this rprocctl runs: until Ctrl-C, or the end of its input
        #[arg(short, long)]
        while_connected: bool,
        /// The core's name
        core: String,
    },
    /// Stop a core, whoever holds it; guests stay attached
    Stop {
        /// The core's name
        core: String,
    },
    /// Take over a core that runs already
    Attach {
        /// The core's name
        core: String,
    },
    /// Let go of a core that was attached; it runs on
    Detach {
        /// The core's name
        core: String,
    },
    /// Pause a core; its guests wait
    Suspend {
        /// The core's name
        core: String,
    },
    /// Let a suspended core go on
    Resume {
        /// The core's name
        core: String,
    },
    /// Restart a crashed core now, whatever was to come next
    Recover {
        /// The core's name
        core: String,
    },
    /// Show or set whether a core that crashes is restarted
    Recovery {
        /// The core's name
        core: String,
        /// Until rprocd ends; enabling it restarts a crashed core at once
        setting: Option<Setting>,
    },
    /// Show a core's firmware, or give an offline core another one
    Firmware {
        /// The core's name
        core: String,
        /// A file in rprocd's firmware directory; it is used until rprocd ends
        name: Option<String>,
    },
    /// How long a core's last boot, stop, recovery and so on took
    Timings {
        /// The core's name
        core: String,
    },
    /// What all cores have done, as Prometheus reads it
    Metrics {
        /// Write it to a file, whole or not at all, for node_exporter's textfile collector
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// What a core's firmware wrote into its trace buffers
    Trace {
        /// Go on with what it writes from now on, until interrupted
        #[arg(short, long)]
        follow: bool,
        /// The core's name
        core: String,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Setting {
    Enabled,
    Disabled,
}

/// Why there is no result: a sentence and an exit status.
struct Failure(u8, String);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let socket = &arguments.socket;
    let result = match &arguments.verb {
        Verb::Status { json } => status(socket, *json),
        Verb::Metrics { output } => metrics(socket, output.as_deref()),
        Verb::Start {
            core,
            while_connected: true,
        } => start_while_connected(socket, core),
        Verb::Start { core, .. } => change(socket, "io.rprocd.Start", core),
        Verb::Stop { core } => change(socket, "io.rprocd.Stop", core),
        Verb::Attach { core } => change(socket, "io.rprocd.Attach", core),
        Verb::Detach { core } => change(socket, "io.rprocd.Detach", core),
        Verb::Suspend { core } => change(socket, "io.rprocd.Suspend", core),
        Verb::Resume { core } => change(socket, "io.rprocd.Resume", core),
        Verb::Recover { core } => change(socket, "io.rprocd.Recover", core),
        Verb::Recovery { core, setting } => recovery(socket, core, *setting),
        Verb::Firmware { core, name } => firmware(socket, core, name.as_deref()),
        Verb::Timings { core } => timings(socket, core),
        Verb::Trace { core, follow } => trace(socket, core, *follow),
    };
    match result.and_then(|text| write(&text)) {
        Ok(_) => ExitCode::SUCCESS,
        Err(Failure(status, text)) => {
            eprintln!("rprocctl: {text}");
            ExitCode::from(status)
        }
    }
}

fn status(socket: &Path, as_json: bool) -> Result<String, Failure> {
    let answer = call(socket, "io.rprocd.List", &json!({}))?;
    if as_json {
        return Ok(format!("{answer:#}\n"));
    }
    Ok(table(&cores(answer)?))
}

fn metrics(socket: &Path, output: Option<&Path>) -> Result<String, Failure> {
    let text = rprocd::metrics::text(&cores(call(socket, "io.rprocd.List", &json!({}))?)?);
    let Some(path) = output else {
        return Ok(text);
    };
    let failed = |cause: io::Error| {
        let path = path.display();
        Failure(
            1,
            format!("cannot write {path}: {cause}; what was there is left"),
        )
    };
    // Beside its place, under a name that the collector does not read.
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", process::id()));
    let beside = PathBuf::from(beside);
    fs::write(&beside, text)
        .and_then(|()| fs::rename(&beside, path))
        .map_err(|cause| {
            let _ = fs::remove_file(&beside);
            failed(cause)
        })?;
    Ok(String::new())
}

/// What the answer to `List` says.
fn cores(answer: Value) -> Result<Vec<CoreStatus>, Failure> {
    #[derive(Deserialize)]
    struct Answer {
        cores: Vec<CoreStatus>,
    }
    let Answer { cores } = serde_json::from_value(answer)
        .map_err(|cause| Failure(1, format!("the answer is not understood: {cause}")))?;
    Ok(cores)
}

/// One core of that name.
fn core(socket: &Path, name: &str) -> Result<CoreStatus, Failure> {
    let cores = cores(call(socket, "io.rprocd.List", &json!({}))?)?;
    let found = cores.into_iter().find(|core| core.name == name);
    found.ok_or_else(|| no_such_core(&json!({ "core": name }).to_string()))
}

fn no_such_core(about: &str) -> Failure {
    Failure(
        3,
        format!("there is no such core: {about}; `rprocctl status` lists them"),
    )
}

fn table(cores: &[CoreStatus]) -> String {
    let mut rows = vec![
        [
            "CORE",
            "STATE",
            "BOOT",
            "FIRMWARE",
            "VDEV",
            "GUEST",
            "TO GUEST",
            "TO CORE",
            "ANNOUNCED",
        ]
        .map(str::to_owned),
    ];
    let mut notes = Vec::new();
    for core in cores {
        let mut lead = [
            core.name.clone(),
            core.state.clone(),
            core.incarnation.to_string(),
            core.firmware.clone(),
        ];
        if core.vdevs.is_empty() {
            let [a, b, c, d] = lead.clone();
            rows.push([
                a,
                b,
                c,
                d,
                "-".into(),
                "-".into(),
                "-".into(),
                "-".into(),
                "-".into(),
            ]);
        }
        for (index, vdev) in core.vdevs.iter().enumerate() {
            let guest = match (vdev.guest_attached, vdev.driver_ok) {
                (false, _) => "none",
                (true, false) => "waiting",
                (true, true) => "attached",
            };
            let announced: Vec<_> = vdev
                .announced
                .iter()
                .map(|endpoint| format!("{}:{}", endpoint.name, endpoint.address))
                .collect();
            let [a, b, c, d] = std::mem::take(&mut lead);
            rows.push([
                a,
                b,
                c,
                d,
                index.to_string(),
                guest.to_owned(),
                vdev.to_guest.messages.to_string(),
                vdev.to_core.messages.to_string(),
                if announced.is_empty() {
                    "-".to_owned()
                } else {
                    announced.join(" ")
                },
            ]);
        }
        if !core.holders.is_empty() {
            let holders = core.holders.join(", ");
            notes.push(format!("{}: held by {holders}", core.name));
        }
        if let Some(crash) = &core.last_crash {
            let crashes = core.crashes;
            notes.push(format!("{}: crash {crashes}: {crash}", core.name));
        }
        if let Some(dump) = &core.last_dump {
            notes.push(format!("{}: {dump}", core.name));
        }
        if let Some(next) = &core.next {
            notes.push(format!("{}: {next}", core.name));
        }
    }
    let mut text = columns(&rows);
    for note in notes {
        text.push_str(&note);
        text.push('\n');
    }
    text
}

fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.len());
        }
    }
    let mut text = String::new();
    for row in rows {
        let line: String = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}  "))
            .collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn change(socket: &Path, method: &str, core: &str) -> Result<String, Failure> {
    call(socket, method, &json!({ "core": core })).map(|_| String::new())
}

fn recovery(socket: &Path, name: &str, setting: Option<Setting>) -> Result<String, Failure> {
    let Some(setting) = setting else {
        let enabled = core(socket, name)?.recovery;
        return Ok(format!(
            "{}\n",
            if enabled { "enabled" } else { "disabled" }
        ));
    };
    let enabled = setting == Setting::Enabled;
    let parameters = json!({ "core": name, "enabled": enabled });
    call(socket, "io.rprocd.SetRecovery", &parameters).map(|_| String::new())
}

fn firmware(socket: &Path, name: &str, file: Option<&str>) -> Result<String, Failure> {
    let Some(file) = file else {
        let core = core(socket, name)?;
        return Ok(format!(
            "{} (sha256 {})\n",
            core.firmware, core.firmware_sha256
        ));
    };
    let parameters = json!({ "core": name, "firmware": file });
    call(socket, "io.rprocd.SetFirmware", &parameters).map(|_| String::new())
}

fn timings(socket: &Path, name: &str) -> Result<String, Failure> {
    let mut rows = vec![["CHANGE", "STEP", "MICROSECONDS"].map(str::to_owned)];
    for timeline in core(socket, name)?.timelines {
        let all = timeline.microseconds.to_string();
        rows.push([timeline.what, "all".to_owned(), all]);
        for step in timeline.steps {
            let time = step.microseconds.to_string();
            rows.push([String::new(), step.step, time]);
        }
    }
    Ok(columns(&rows))
}

/// Starts a core for this connection, which then stays as long as this process does.
fn start_while_connected(socket: &Path, core: &str) -> Result<String, Failure> {
    let mut connection = Connection::open(socket)?;
    let parameters = json!({ "core": core, "whileConnected": true });
    connection.call("io.rprocd.Start", &parameters)?;
    // Nobody has to read it.
    write(&format!(
        "{core}: held until this rprocctl ends (Ctrl-C, or the end of its input); it is then \
         stopped, unless somebody else holds it\n"
    ))?;
    connection.wait_for_end_of_input()?;
    connection.end()?;
    Ok(String::new())
}

/// Writes to the standard output. `false` says that it was closed (`rprocctl trace x | head`),
/// which is no failure of ours.
fn write(text: &str) -> Result<bool, Failure> {
    let mut output = io::stdout();
    let written = output.write_all(text.as_bytes());
    match written.and_then(|()| output.flush()) {
        Ok(()) => Ok(true),
        Err(cause) if cause.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(cause) => Err(Failure(1, format!("cannot write the result: {cause}"))),
    }
}

/// Writes what is there, piece by piece; to follow is to go on asking. Returns the line feed that
/// is missing at the end.
fn trace(socket: &Path, core: &str, follow: bool) -> Result<String, Failure> {
    #[derive(Deserialize)]
    struct Answer {
        buffers: Vec<TracePiece>,
    }
    let mut connection = Connection::open(socket)?;
    let mut since: Vec<u64> = Vec::new();
    // Where the buffers were when they were first asked: a firmware that goes on writing is
    // not waited for.
    let mut goal: Option<Vec<u64>> = None;
    let mut in_line = false;
    loop {
        let parameters = json!({ "core": core, "since": since });
        let answer = connection.call("io.rprocd.Trace", &parameters)?;
        let Answer { buffers } = serde_json::from_value(answer)
            .map_err(|cause| Failure(1, format!("the answer is not understood: {cause}")))?;
        let goal = goal.get_or_insert_with(|| buffers.iter().map(|piece| piece.end).collect());
        for (index, piece) in buffers.iter().enumerate() {
            for gap in gaps(piece) {
                eprintln!("rprocctl: {core}: trace buffer {index}: {gap}");
            }
            if !write(&piece.text)? {
                return Ok(String::new());
            }
            if let Some(last) = piece.text.chars().next_back() {
                in_line = last != '\n';
            }
        }
        let next: Vec<_> = buffers.iter().map(|piece| piece.next).collect();
        // Without a step there is nothing but, perhaps, the beginning of a character.
        let moved = next != since && buffers.iter().any(|piece| !piece.text.is_empty());
        let reached = next.iter().zip(&*goal).all(|(next, goal)| next >= goal);
        since = next;
        if follow && !moved {
            thread::sleep(POLL);
        } else if !follow && (!moved || reached) {
            return Ok(if in_line { "\n".into() } else { String::new() });
        }
    }
}

/// What is missing in front of a piece, in words.
fn gaps(piece: &TracePiece) -> Vec<String> {
    let mut gaps = Vec::new();
    if piece.lost > 0 {
        let lost = piece.lost;
        gaps.push(format!("{lost} bytes were gone before they were asked for"));
    }
    if piece.overruns > 0 {
        let times = piece.overruns;
        gaps.push(format!(
            "text was overwritten before rprocd looked ({times} times)"
        ));
    }
    gaps
}

/// One call, one answer.
fn call(socket: &Path, method: &str, parameters: &Value) -> Result<Value, Failure> {
    Connection::open(socket)?.call(method, parameters)
}

/// A connection to rprocd.
struct Connection<'a> {
    stream: UnixStream,
    socket: &'a Path,
}

impl<'a> Connection<'a> {
    fn open(socket: &'a Path) -> Result<Self, Failure> {
        let stream = UnixStream::connect(socket).and_then(|stream| {
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.set_write_timeout(Some(TIMEOUT))?;
            Ok(stream)
        });
        match stream {
            Ok(stream) => Ok(Self { stream, socket }),
            Err(cause) => Err(unreachable(socket, &cause)),
        }
    }

    fn unreachable(&self) -> impl Fn(io::Error) -> Failure + use<'a> {
        let socket = self.socket;
        move |cause| unreachable(socket, &cause)
    }

    fn call(&mut self, method: &str, parameters: &Value) -> Result<Value, Failure> {
        let unreachable = self.unreachable();
        let mut message = json!({ "method": method, "parameters": parameters }).to_string();
        message.push('\0');
        self.stream
            .write_all(message.as_bytes())
            .map_err(&unreachable)?;
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        while bytes.last() != Some(&0) {
            match self.stream.read(&mut buffer).map_err(&unreachable)? {
                0 => {
                    return Err(Failure(
                        1,
                        "rprocd hung up without an answer; see its log".into(),
                    ));
                }
                len => bytes.extend_from_slice(&buffer[..len]),
            }
        }
        bytes.pop();
        let mut answer: Value = serde_json::from_slice(&bytes)
            .map_err(|cause| Failure(1, format!("the answer is not understood: {cause}")))?;
        if let Some(error) = answer.get("error").and_then(Value::as_str) {
            let about = answer
                .get("parameters")
                .map(Value::to_string)
                .unwrap_or_default();
            return Err(match error {
                "io.rprocd.NoSuchCore" => no_such_core(&about),
                "io.rprocd.Refused" => {
                    let reason = answer["parameters"]["reason"].as_str();
                    Failure(
                        4,
                        reason
                            .unwrap_or("rprocd refuses, and gives no reason")
                            .to_owned(),
                    )
                }
                "io.rprocd.Denied" => {
                    let reason = answer["parameters"]["reason"].as_str();
                    Failure(6, format!("denied: {}", reason.unwrap_or(&about)))
                }
                other => Failure(1, format!("rprocd refuses: {other} {about}")),
            });
        }
        Ok(answer
            .get_mut("parameters")
            .map(Value::take)
            .unwrap_or_default())
    }

    /// Reads and forgets the standard input.
    fn wait_for_end_of_input(&self) -> Result<(), Failure> {
        let mut input = io::stdin().lock();
        loop {
            let mut fds = [
                PollFd::new(&input, PollFlags::IN),
                PollFd::new(&self.stream, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(cause) => return Err(Failure(1, format!("cannot wait: {cause}"))),
                Ok(_) => {}
            }
            let [typed, said] = fds.map(|fd| !fd.revents().is_empty());
            // Nothing was asked, so all that can come is the end.
            if said {
                let text = "rprocd hung up, and holds the core for nobody here; see its log";
                return Err(Failure(1, text.to_owned()));
            }
            if typed && !matches!(input.read(&mut [0; 4096]), Ok(1..)) {
                return Ok(());
            }
        }
    }

    /// Hangs up, and waits until rprocd has done what follows from that.
    fn end(mut self) -> Result<(), Failure> {
        let unreachable = self.unreachable();
        self.stream
            .shutdown(Shutdown::Write)
            .and_then(|()| self.stream.read_to_end(&mut Vec::new()))
            .map(drop)
            .map_err(unreachable)
    }
}

fn unreachable(socket: &Path, cause: &io::Error) -> Failure {
    Failure(
        5,
        format!(
            "rprocd cannot be reached at {}: {cause}; is it running, and is this the socket of its \
             configuration?",
            socket.display()
        ),
    )
}
