//! `rprocctl`: the operator's tool. It knows only the control socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::{Parser, Subcommand};
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
/// Exit status: 0 done, 1 failed, 2 wrong usage, 3 no such core, 4 not in that state, 5 rprocd cannot be reached.
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
    /// Start a core that is offline or crashed
    Start {
        /// The core's name
        core: String,
    },
    /// Stop a core; guests stay attached, and it stays stopped
    Stop {
        /// The core's name
        core: String,
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

/// Why there is no result: a sentence and an exit status.
struct Failure(u8, String);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.verb {
        Verb::Status { json } => status(&arguments.socket, *json),
        Verb::Start { core } => change(&arguments.socket, "io.rprocd.Start", core),
        Verb::Stop { core } => change(&arguments.socket, "io.rprocd.Stop", core),
        Verb::Trace { core, follow } => trace(&arguments.socket, core, *follow),
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
    #[derive(Deserialize)]
    struct Answer {
        cores: Vec<CoreStatus>,
    }
    let answer = call(socket, "io.rprocd.List", &json!({}))?;
    if as_json {
        return Ok(format!("{answer:#}\n"));
    }
    let Answer { cores } = serde_json::from_value(answer)
        .map_err(|cause| Failure(1, format!("the answer is not understood: {cause}")))?;
    Ok(table(&cores))
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
        if let Some(crash) = &core.last_crash {
            let crashes = core.crashes;
            notes.push(format!("{}: crash {crashes}: {crash}", core.name));
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
    let mut since: Vec<u64> = Vec::new();
    // Where the buffers were when they were first asked: a firmware that goes on writing is
    // not waited for.
    let mut goal: Option<Vec<u64>> = None;
    let mut in_line = false;
    loop {
        let parameters = json!({ "core": core, "since": since });
        let answer = call(socket, "io.rprocd.Trace", &parameters)?;
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
    let unreachable = |cause: io::Error| {
        Failure(
            5,
            format!(
                "rprocd cannot be reached at {}: {cause}; is it running, and is this the socket \
                 of its configuration?",
                socket.display()
            ),
        )
    };
    let mut stream = UnixStream::connect(socket).map_err(unreachable)?;
    stream
        .set_read_timeout(Some(TIMEOUT))
        .map_err(unreachable)?;
    stream
        .set_write_timeout(Some(TIMEOUT))
        .map_err(unreachable)?;
    let mut message = json!({ "method": method, "parameters": parameters }).to_string();
    message.push('\0');
    stream.write_all(message.as_bytes()).map_err(unreachable)?;
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while bytes.last() != Some(&0) {
        match stream.read(&mut buffer).map_err(unreachable)? {
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
            "io.rprocd.NoSuchCore" => Failure(
                3,
                format!("there is no such core: {about}; `rprocctl status` lists them"),
            ),
            "io.rprocd.Refused" => {
                let reason = answer["parameters"]["reason"].as_str();
                Failure(
                    4,
                    reason
                        .unwrap_or("rprocd refuses, and gives no reason")
                        .to_owned(),
                )
            }
            other => Failure(1, format!("rprocd refuses: {other} {about}")),
        });
    }
    Ok(answer
        .get_mut("parameters")
        .map(Value::take)
        .unwrap_or_default())
}
