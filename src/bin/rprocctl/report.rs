//! Everything about all cores, in one file: what a bug report needs.
//!
//! What belongs here: asking for all of it, and the page. What does not: a server, a script, anything
//! from a network: the page is one file, and stays what it was.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use addr2line::Loader;
use rustc_demangle::demangle;
use rustix::system::uname;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::daemons::{Daemon, Daemons};
use crate::failure::{FAILED, Failure, Result};
use crate::show;
use crate::terminal::{Screen, duration, time};
use crate::{Entries, Info, Regions, dumps, info};
use rprocd::control::TracePiece;
use rprocd::control::client::CallError;
use rprocd::firmware::Snapshot;
use rprocd::memory::DeviceAddress;
use rprocd::rproc::{CoreStatus, Event, Histogram, Region, Resource};

/// Lines of a trace that are shown of each crash.
const TRACE_LINES: usize = 50;
/// Events in the list at the end.
const LAST_EVENTS: usize = 200;
/// Width of the pictures.
const WIDTH: f64 = 860.0;

/// All that is known.
#[derive(Serialize)]
struct Report {
    /// Microseconds since 1970.
    time: u64,
    rprocctl: String,
    host: String,
    daemons: Vec<DaemonReport>,
    cores: Vec<CoreReport>,
    events: Vec<Told>,
}

#[derive(Serialize)]
struct DaemonReport {
    socket: PathBuf,
    version: String,
    /// Events before the first one of the report, which are not kept.
    lost: u64,
}

/// An event, and the daemon that told it.
#[derive(Serialize)]
struct Told {
    daemon: PathBuf,
    #[serde(flatten)]
    event: Event,
}

#[derive(Serialize)]
struct CoreReport {
    daemon: PathBuf,
    status: CoreStatus,
    memory: Vec<Region>,
    resources: Vec<Resource>,
    coredumps: Vec<crate::Dump>,
    crashes: Vec<Crash>,
    /// The end of each trace buffer's text.
    traces: Vec<TracePiece>,
}

/// A crash, and what is known of it.
#[derive(Serialize)]
struct Crash {
    time: u64,
    incarnation: u32,
    reason: String,
    /// Where, in the firmware's source.
    frames: Vec<String>,
    dump: Option<String>,
    /// The last lines of each trace buffer.
    trace: Vec<String>,
}

/// The report as text: a page, or JSON.
pub fn text(daemons: &Daemons, html: bool, symbols: &[PathBuf]) -> Result<String> {
    let mut report = gather(daemons, symbols)?;
    if html {
        call_by_names_of_their_own(&mut report);
        return Ok(page(&report));
    }
    let text = serde_json::to_string_pretty(&report).map_err(|cause| {
        let text = format!("the report cannot be shown: {cause}");
        Failure::new(FAILED, text)
    })?;
    Ok(text + "\n")
}

/// On the page, where two daemons have a core of one name, the socket is in it.
fn call_by_names_of_their_own(report: &mut Report) {
    let names: Vec<_> = report
        .cores
        .iter()
        .map(|it| it.status.name.clone())
        .collect();
    let called = |name: &mut String, daemon: &PathBuf| {
        if names.iter().filter(|it| *it == name).count() > 1 {
            *name = format!("{name} ({})", daemon.display());
        }
    };
    for core in &mut report.cores {
        called(&mut core.status.name, &core.daemon);
    }
    for told in &mut report.events {
        called(&mut told.event.core, &told.daemon);
    }
}

/// What one daemon tells.
fn gather_from(daemon: &Daemon) -> Result<(DaemonReport, Vec<CoreReport>, Vec<Event>)> {
    let failed = |cause| daemon.failed(cause);
    let Info { version, .. } = info(daemon)?;
    // A method of those that look, so that the monitor socket will do.
    let mut connection = daemon.connect("io.rprocd.Events")?;
    let (mut events, mut since, mut lost) = (Vec::new(), None, 0);
    loop {
        #[derive(Deserialize)]
        struct Excerpt {
            events: Vec<Event>,
            lost: u64,
            next: u64,
        }
        let parameters = json!({ "since": since });
        let asked = connection.call("io.rprocd.Events", &parameters);
        let excerpt: Excerpt = asked.map_err(failed)?;
        lost += excerpt.lost;
        events.extend(excerpt.events);
        if since == Some(excerpt.next) {
            break;
        }
        since = Some(excerpt.next);
    }
    if let Some(first) = events.first() {
        lost += first.seq;
    }
    let mut cores = Vec::new();
    for status in daemon.list()?.cores {
        let about = json!({ "core": status.name });
        let regions = connection.call("io.rprocd.Memory", &about);
        let Regions { regions } = regions.map_err(failed)?;
        let entries = connection.call("io.rprocd.Resources", &about);
        let Entries { entries } = entries.map_err(failed)?;
        cores.push(CoreReport {
            daemon: daemon.socket.clone(),
            memory: regions,
            resources: entries,
            coredumps: dumps(daemon, &status.name)?,
            crashes: Vec::new(),
            traces: traces(&mut connection, &status.name).map_err(failed)?,
            status,
        });
    }
    let daemon = DaemonReport {
        socket: daemon.socket.clone(),
        version,
        lost,
    };
    Ok((daemon, cores, events))
}

fn gather(daemons: &Daemons, symbols: &[PathBuf]) -> Result<Report> {
    let symbols: Vec<_> = symbols.iter().map(Symbols::open).collect::<Result<_>>()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_micros());
    let host = uname();
    let mut report = Report {
        time: u64::try_from(now).unwrap_or(u64::MAX),
        rprocctl: env!("CARGO_PKG_VERSION").to_owned(),
        host: format!(
            "{} {} {}",
            host.sysname().to_string_lossy(),
            host.release().to_string_lossy(),
            host.machine().to_string_lossy()
        ),
        daemons: Vec::new(),
        cores: Vec::new(),
        events: Vec::new(),
    };
    for (daemon, (told, mut cores, events)) in daemons.each(gather_from)? {
        for core in &mut cores {
            let symbols = symbols.iter().find(|it| it.are_of(&core.status));
            core.crashes = crashes(&core.status.name, &events, &core.traces, symbols);
        }
        report.daemons.push(told);
        report.cores.extend(cores);
        report.events.extend(events.into_iter().map(|event| Told {
            daemon: daemon.socket.clone(),
            event,
        }));
    }
    // Each daemon's own are in order.
    report.events.sort_by_key(|it| it.event.time);
    Ok(report)
}

/// All that is kept of a core's traces, each in one piece.
fn traces(
    connection: &mut rprocd::control::client::Connection,
    core: &str,
) -> std::result::Result<Vec<TracePiece>, CallError> {
    #[derive(Deserialize)]
    struct Buffers {
        buffers: Vec<TracePiece>,
    }
    let mut whole: Vec<TracePiece> = Vec::new();
    loop {
        let since: Vec<u64> = whole.iter().map(|piece| piece.next).collect();
        let parameters = json!({ "core": core, "since": since });
        let Buffers { buffers } = connection.call("io.rprocd.Trace", &parameters)?;
        let more = buffers.iter().any(|piece| !piece.text.is_empty());
        if whole.is_empty() {
            whole = buffers;
        } else {
            for (whole, piece) in whole.iter_mut().zip(buffers) {
                whole.text += &piece.text;
                whole.next = piece.next;
                whole.end = piece.end;
                // Of its end.
                whole.incarnation = piece.incarnation;
                whole.booted = piece.booted;
            }
        }
        // A firmware that goes on writing is not waited for.
        let done = whole.iter().all(|piece| piece.next >= piece.end);
        if done || !more || whole.iter().any(|piece| piece.text.len() > 1 << 20) {
            return Ok(whole);
        }
    }
}

/// The crashes of a core that the events tell of.
fn crashes(
    core: &str,
    events: &[Event],
    traces: &[TracePiece],
    symbols: Option<&Symbols>,
) -> Vec<Crash> {
    let mut crashes: Vec<Crash> = Vec::new();
    // Where the incarnation before ended.
    let mut begins = vec![0; traces.len()];
    for event in events.iter().filter(|event| event.core == core) {
        match (event.what.as_str(), crashes.last_mut()) {
            ("crash", _) => crashes.push(Crash {
                time: event.time,
                incarnation: event.incarnation,
                reason: event.detail.clone(),
                frames: symbols.map_or_else(Vec::new, |it| it.frames(&event.detail)),
                dump: None,
                trace: Vec::new(),
            }),
            ("dump", Some(crash)) => crash.dump = Some(event.detail.clone()),
            ("state", Some(crash)) if event.detail == "crashed" => {
                // A trace that was not there yet begins at 0.
                let known = begins.iter().copied().chain(std::iter::repeat(0));
                let spans = known.zip(&event.trace).zip(traces);
                crash.trace = spans
                    .map(|((begin, end), piece)| lines(piece, begin, *end))
                    .collect();
                begins.clone_from(&event.trace);
            }
            _ => {}
        }
    }
    crashes
}

/// The last lines of a trace from byte `begin` to byte `end`. A byte that is not printable takes more
/// than one in the text, so what was written before such bytes is cut a little late.
fn lines(piece: &TracePiece, begin: u64, end: u64) -> String {
    let place = |number: u64| {
        let behind = piece.next.saturating_sub(number);
        let place = (piece.text.len() as u64).saturating_sub(behind);
        let place = usize::try_from(place).unwrap_or(0);
        (0..=place).rfind(|it| piece.text.is_char_boundary(*it))
    };
    let span = place(begin).unwrap_or(0)..place(end).unwrap_or(0);
    let lines: Vec<_> = piece.text.get(span).unwrap_or_default().lines().collect();
    lines[lines.len().saturating_sub(TRACE_LINES)..].join("\n")
}

/// A firmware file, for the names in it.
struct Symbols {
    name: String,
    hash: String,
    loader: Loader,
}

impl Symbols {
    fn open(path: &PathBuf) -> Result<Self> {
        let failed = |cause: &dyn std::fmt::Display| {
            let path = path.display();
            Failure::new(
                FAILED,
                format!("cannot read the symbols of {path}: {cause}"),
            )
        };
        let bytes = fs::read(path).map_err(|cause| failed(&cause))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Ok(Self {
            hash: Snapshot::from_bytes(&name, bytes).short_hash().to_owned(),
            name: name.into_owned(),
            loader: Loader::new(path).map_err(|cause| failed(&cause))?,
        })
    }

    /// The same file; or one of that name, which may have been stripped since.
    fn are_of(&self, core: &CoreStatus) -> bool {
        self.hash == core.firmware_sha256 || self.name == core.firmware
    }

    /// Functions and lines of each address that a reason names, the innermost first.
    fn frames(&self, reason: &str) -> Vec<String> {
        let mut frames = Vec::new();
        for (register, address) in addresses(reason) {
            let mut found = false;
            if let Ok(mut inner) = self.loader.find_frames(address) {
                while let Ok(Some(frame)) = inner.next() {
                    let function = frame.function.as_ref();
                    let function = function.and_then(|it| it.raw_name().ok());
                    let function = function.as_deref().unwrap_or("?");
                    let function = format!("{:#}", demangle(function));
                    let place = frame.location.and_then(|it| Some((it.file?, it.line?)));
                    let place = place.map(|(file, line)| format!(" at {file}:{line}"));
                    let place = place.unwrap_or_default();
                    frames.push(format!("{register} {address:#010x}: {function}{place}"));
                    found = true;
                }
            }
            if !found && let Some(symbol) = self.loader.find_symbol(address) {
                frames.push(format!(
                    "{register} {address:#010x}: {:#}",
                    demangle(symbol)
                ));
            }
        }
        frames
    }
}

/// The code addresses in a reason: `at 0x80000124`, which a firmware says of itself, `pc` and `ra`.
fn addresses(reason: &str) -> Vec<(&'static str, u64)> {
    let mut found = Vec::new();
    let words: Vec<_> = reason
        .split(|c: char| c.is_whitespace() || ",;:()".contains(c))
        .filter(|word| !word.is_empty())
        .collect();
    for pair in words.windows(2) {
        for register in ["at", "pc", "ra"] {
            if pair[0] == register
                && let Some(digits) = pair[1].strip_prefix("0x")
                && let Ok(address) = u64::from_str_radix(digits, 16)
            {
                found.push((register, address));
            }
        }
    }
    found
}

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #fff; --soft: #6a7078; --line: #d9dde2;
  --band: #f4f6f8; --run: #2e9e5b; --dead: #d0352b; --off: #b4bac2; --other: #d99a1c; --bar: #3b78c2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6e8; --paper: #16181b; --soft: #9aa1a9;
  --line: #363b41; --band: #1f2226; --off: #555c64; --bar: #6aa0e0; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 900px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; margin-bottom: 0; } h2 { margin-top: 2.2em; border-bottom: 1px solid
  var(--line); padding-bottom: .2em; } h3 { margin: 1.6em 0 .4em; font-size: 1.05em; }
p.sub, figcaption { color: var(--soft); font-size: .9em; margin: .2em 0; }
pre { background: var(--band); padding: .7em .9em; overflow-x: auto; border-radius: 5px;
  font: 12.5px/1.45 ui-monospace, monospace; margin: .5em 0; }
table { border-collapse: collapse; width: 100%; font-size: .92em; }
td pre { white-space: pre-wrap; overflow-wrap: anywhere; } td { overflow-wrap: anywhere; }
td:last-child { width: 100%; } th { white-space: nowrap; }
th { text-align: left; color: var(--soft); font-weight: 600; }
th, td { padding: .35em .8em .35em 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n { font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: .5em 0; overflow-x: auto; }
svg { width: 100%; min-width: 640px; height: auto; display: block; }
svg text { fill: var(--ink); font: 11px system-ui, sans-serif; } svg text.s { fill: var(--soft); }
.state { font-weight: 600; } .running, .attached { color: var(--run); } .crashed { color: var(--dead); }
summary { cursor: pointer; color: var(--soft); }
@media (max-width: 640px) { table, tbody, tr, td { display: block; } tr:first-child { display: none; }
  tr { border-bottom: 1px solid var(--line); padding: .4em 0; } td { border: none; padding: .1em 0; }
  td[data-of]::before { content: attr(data-of) \" \"; color: var(--soft); } }
";

fn page(report: &Report) -> String {
    let mut page = String::new();
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>rprocd report</title>\n<style>{STYLE}</style></head>\n<body>\n\
         <h1>rprocd report</h1>\n<p class=\"sub\">{} · rprocctl {} · {}</p>\n",
        time(report.time),
        escape(&report.rprocctl),
        escape(&report.host)
    );
    for daemon in &report.daemons {
        let _ = writeln!(
            page,
            "<p class=\"sub\">rprocd {} at {}</p>",
            escape(&daemon.version),
            escape(&daemon.socket.display().to_string())
        );
    }
    page.push_str("<h2>States</h2>\n");
    page.push_str(&timeline(report));
    for core in &report.cores {
        one_core(&mut page, core);
    }
    events(&mut page, report);
    page.push_str("</body></html>\n");
    page
}

fn one_core(page: &mut String, core: &CoreReport) {
    let status = &core.status;
    let _ = writeln!(
        page,
        "<h2>{} <span class=\"state {}\">{}</span></h2>",
        escape(&status.name),
        escape(&status.state),
        escape(&status.state)
    );
    let block = show::info(status, &Screen::PLAIN);
    let _ = writeln!(page, "<pre>{}</pre>", escape(&block));
    page.push_str("<h3>Crashes</h3>\n");
    crash_table(page, core);
    page.push_str("<h3>From a guest's kick until all that came of it was relayed</h3>\n");
    page.push_str(&histogram(&status.relay_time));
    if status.recovery_time.total() > 0 {
        page.push_str("<h3>From a crash to the next incarnation</h3>\n");
        page.push_str(&histogram(&status.recovery_time));
    }
    page.push_str("<h3>Memory</h3>\n");
    page.push_str(&memory_map(&core.memory));
    let detail = [
        ("Memory as a list", show::memory(&core.memory)),
        (
            "Resource table",
            show::resources(&core.resources, &Screen::PLAIN),
        ),
        ("Queues", show::queues(status, &Screen::PLAIN)),
        ("Timings", show::timings(status, &Screen::PLAIN)),
    ];
    for (title, text) in detail {
        let _ = writeln!(
            page,
            "<details><summary>{title}</summary><pre>{}</pre></details>",
            escape(&text)
        );
    }
    for (index, piece) in core.traces.iter().enumerate() {
        let _ = writeln!(
            page,
            "<details><summary>Trace buffer {index} \"{}\", the end of it</summary><pre>{}</pre>\
             </details>",
            escape(&piece.name),
            escape(&lines(piece, 0, piece.next))
        );
    }
}

fn crash_table(page: &mut String, core: &CoreReport) {
    if core.crashes.is_empty() {
        page.push_str("<p>None that is still known of.</p>\n");
        return;
    }
    page.push_str("<table><tr><th>When</th><th>Incarnation</th><th>What</th></tr>\n");
    for crash in core.crashes.iter().rev() {
        let _ = write!(
            page,
            "<tr><td class=\"n\">{}</td><td class=\"n\" data-of=\"incarnation\">{}</td><td>{}",
            time(crash.time),
            crash.incarnation,
            escape(&crash.reason)
        );
        if !crash.frames.is_empty() {
            let _ = write!(page, "<pre>{}</pre>", escape(&crash.frames.join("\n")));
        }
        if let Some(dump) = &crash.dump {
            let _ = write!(page, "<p class=\"sub\">{}</p>", escape(dump));
        }
        for (index, text) in crash
            .trace
            .iter()
            .enumerate()
            .filter(|(_, it)| !it.is_empty())
        {
            let _ = write!(
                page,
                "<details><summary>Last lines of trace buffer {index} \"{}\"</summary><pre>{}</pre>\
                 </details>",
                escape(core.traces.get(index).map_or("", |it| &it.name)),
                escape(text)
            );
        }
        page.push_str("</td></tr>\n");
    }
    page.push_str("</table>\n");
}

fn events(page: &mut String, report: &Report) {
    page.push_str("<h2>Events</h2>\n");
    let told: Vec<_> = report
        .events
        .iter()
        .map(|it| &it.event)
        .filter(|it| it.what != "step")
        .collect();
    let lost: u64 = report.daemons.iter().map(|it| it.lost).sum();
    let shown = &told[told.len().saturating_sub(LAST_EVENTS)..];
    if lost > 0 || shown.len() < told.len() {
        let _ = writeln!(
            page,
            "<p class=\"sub\">The last {}; {lost} before them are not kept any more.</p>",
            shown.len()
        );
    }
    let mut text = String::new();
    for event in shown {
        let about = match event.vdev {
            Some(vdev) => format!("{}/vdev{vdev}", event.core),
            None => event.core.clone(),
        };
        let _ = writeln!(
            text,
            "{} {} {about}: {}: {}",
            event.seq,
            time(event.time),
            event.what,
            event.detail
        );
    }
    let _ = writeln!(page, "<pre>{}</pre>", escape(&text));
}

/// A text of so many letters at most.
fn shortened(text: &str, letters: usize) -> String {
    match text.char_indices().nth(letters) {
        None => text.to_owned(),
        Some(_) => text.chars().take(letters - 1).chain(['…']).collect(),
    }
}

/// A colour for a state.
fn colour(state: &str) -> &'static str {
    match state {
        "running" | "attached" => "var(--run)",
        "crashed" => "var(--dead)",
        "offline" | "detached" | "deleted" => "var(--off)",
        _ => "var(--other)",
    }
}

/// When each core was in which state.
fn timeline(report: &Report) -> String {
    const ROW: f64 = 30.0;
    /// Letters of a name that there is room for.
    const LETTERS: usize = 40;
    let longest = report.cores.iter().map(|it| it.status.name.chars().count());
    // About seven units a letter.
    let left = 10.0 + 7.0 * longest.max().unwrap_or(0).clamp(14, LETTERS) as f64;
    let begin = report
        .events
        .first()
        .map_or(report.time, |told| told.event.time);
    let span = report.time.saturating_sub(begin).max(1) as f64;
    let at =
        |time: u64| left + (WIDTH - left) * (time.saturating_sub(begin) as f64 / span).min(1.0);
    let height = ROW * report.cores.len() as f64 + 26.0;
    let mut svg = format!("<figure><svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n");
    for (row, core) in report.cores.iter().enumerate() {
        let name = &core.status.name;
        let top = ROW * row as f64;
        let _ = writeln!(
            svg,
            "<text x=\"0\" y=\"{}\">{}<title>{}</title></text>",
            top + 17.0,
            escape(&shortened(name, LETTERS)),
            escape(name)
        );
        let states: Vec<_> = report
            .events
            .iter()
            .map(|told| &told.event)
            .filter(|event| event.core == *name && event.what == "state")
            .collect();
        for (index, event) in states.iter().enumerate() {
            let end = states.get(index + 1).map_or(report.time, |next| next.time);
            let (from, to) = (at(event.time), at(end));
            let _ = writeln!(
                svg,
                "<rect x=\"{from:.2}\" y=\"{}\" width=\"{:.2}\" height=\"16\" fill=\"{}\">\
                 <title>{} from {}</title></rect>",
                top + 5.0,
                (to - from).max(0.3),
                colour(&event.detail),
                escape(&event.detail),
                time(event.time)
            );
        }
        for crash in &core.crashes {
            let x = at(crash.time);
            let _ = writeln!(
                svg,
                "<path d=\"M{x:.2} {} l4 -5 h-8 z\" fill=\"var(--dead)\"><title>crash: {}</title>\
                 </path>",
                top + 5.0,
                escape(&crash.reason)
            );
        }
    }
    let foot = height - 8.0;
    let clock = |time: u64| self::time(time)[11..19].to_owned();
    let _ = writeln!(
        svg,
        "<text class=\"s\" x=\"{left}\" y=\"{foot}\">{}</text>\
         <text class=\"s\" x=\"{WIDTH}\" y=\"{foot}\" text-anchor=\"end\">{} UTC</text>\n</svg>",
        clock(begin),
        clock(report.time)
    );
    let mut key = String::new();
    for (state, word) in [
        ("running", "running or attached"),
        ("crashed", "crashed"),
        ("suspended", "suspended"),
        ("offline", "offline or detached"),
    ] {
        let _ = write!(
            key,
            "<span style=\"color:{}\">■</span> {word} &nbsp; ",
            colour(state)
        );
    }
    svg + "<figcaption>"
        + &key
        + "<span style=\"color:var(--dead)\">▼</span> crash</figcaption></figure>\n"
}

/// Bars, one for each bound.
fn histogram(histogram: &Histogram) -> String {
    let total = histogram.total();
    if total == 0 {
        return "<p>None yet.</p>\n".to_owned();
    }
    const HEIGHT: f64 = 120.0;
    let bars = histogram.counts.len();
    let step = WIDTH / bars as f64;
    let most = histogram.counts.iter().copied().max().unwrap_or(1).max(1) as f64;
    let mut svg = format!(
        "<figure><svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\">\n",
        HEIGHT + 40.0
    );
    for (index, count) in histogram.counts.iter().enumerate() {
        let tall = HEIGHT * *count as f64 / most;
        let x = step * index as f64;
        let middle = x + step / 2.0;
        let label = match histogram.bounds_microseconds.get(index) {
            // The bounds are round, and there is little room.
            Some(bound) => format!("≤ {}", duration(*bound))
                .replace(".0 ", " ")
                .replace(" min 0 s", " min"),
            None => "more".to_owned(),
        };
        let _ = writeln!(
            svg,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{tall:.1}\" fill=\"var(--bar)\"/>\
             <text class=\"s\" x=\"{middle:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
            x + 4.0,
            HEIGHT + 16.0 - tall,
            step - 8.0,
            HEIGHT + 32.0
        );
        if *count > 0 {
            let _ = writeln!(
                svg,
                "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{count}</text>",
                HEIGHT + 12.0 - tall
            );
        }
    }
    let mean = histogram.sum_microseconds as f64 / total as f64;
    svg + &format!(
        "</svg><figcaption>{total} of them, {mean:.1} us each on average</figcaption></figure>\n"
    )
}

/// The memory, in proportion, where there is room for a name.
fn memory_map(regions: &[Region]) -> String {
    let Some(ram) = regions.iter().find(|region| region.kind == "ram") else {
        return String::new();
    };
    // What is free at the end would squeeze all else.
    let used = regions
        .iter()
        .filter(|region| region.kind != "ram")
        .map(|region| region.da.saturating_add(region.bytes))
        .max()
        .unwrap_or(ram.da + ram.bytes);
    let end = (used + (used - ram.da) / 12).min(ram.da + ram.bytes);
    let scale = WIDTH / (end - ram.da).max(1) as f64;
    let mut svg = format!("<figure><svg viewBox=\"0 0 {WIDTH} 112\" role=\"img\">\n");
    let _ = writeln!(
        svg,
        "<rect x=\"0\" y=\"4\" width=\"{WIDTH}\" height=\"30\" fill=\"var(--band)\" \
         stroke=\"var(--line)\"/>"
    );
    for region in regions.iter().filter(|region| region.kind != "ram") {
        let (row, fill) = match region.kind.as_str() {
            "carveout" => (4.0, "var(--bar)"),
            "segment" => (40.0, "var(--run)"),
            _ => (66.0, "var(--other)"),
        };
        let tall = if row < 10.0 { 30.0 } else { 20.0 };
        let x = (region.da.saturating_sub(ram.da)) as f64 * scale;
        let wide = (region.bytes as f64 * scale).max(1.5);
        let name = if region.name.is_empty() {
            &region.kind
        } else {
            &region.name
        };
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{row}\" width=\"{wide:.1}\" height=\"{tall}\" fill=\"{fill}\" \
             stroke=\"var(--paper)\"><title>{} {}: {} to {}</title></rect>",
            escape(&region.kind),
            escape(&region.name),
            DeviceAddress(region.da),
            DeviceAddress(region.da + region.bytes)
        );
        // About six units a letter.
        if wide > 6.5 * name.chars().count() as f64 {
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{}\" style=\"fill:#fff\">{}</text>",
                x + 4.0,
                row + tall / 2.0 + 4.0,
                escape(name)
            );
        }
    }
    let _ = writeln!(
        svg,
        "<text class=\"s\" x=\"0\" y=\"106\">{}</text>\
         <text class=\"s\" x=\"{WIDTH}\" y=\"106\" text-anchor=\"end\">{}</text></svg>",
        DeviceAddress(ram.da),
        DeviceAddress(end)
    );
    let rest = if end < ram.da + ram.bytes {
        format!(
            "; nothing from there to {}",
            DeviceAddress(ram.da + ram.bytes)
        )
    } else {
        String::new()
    };
    svg + &format!(
        "<figcaption><span style=\"color:var(--bar)\">■</span> carveouts &nbsp; \
         <span style=\"color:var(--run)\">■</span> segments of the file &nbsp; \
         <span style=\"color:var(--other)\">■</span> trace buffers and resource table{rest}\
         </figcaption></figure>\n"
    )
}

/// Text that is text, in an element and in an attribute.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_firmware_cannot_write_markup_into_the_page() {
        assert_eq!(escape("<script>\"'&"), "&lt;script&gt;&quot;&#39;&amp;");
    }

    #[test]
    fn code_addresses_are_found_in_a_reason() {
        let reason = "fatal error: trap: cause 5 (load access fault), pc 0x80001234, ra 0x8000aa00";
        assert_eq!(
            addresses(reason),
            [("pc", 0x8000_1234), ("ra", 0x8000_aa00)]
        );
        assert!(addresses("pc nowhere").is_empty());
    }

    #[test]
    fn the_lines_in_front_of_a_crash_are_those_of_its_incarnation() {
        let piece = TracePiece {
            name: "log".to_owned(),
            text: "one\ntwo\nthree\n".to_owned(),
            next: 114,
            end: 114,
            ..TracePiece::default()
        };
        assert_eq!(lines(&piece, 0, 114), "one\ntwo\nthree");
        assert_eq!(lines(&piece, 0, 108), "one\ntwo");
        assert_eq!(lines(&piece, 104, 108), "two");
        assert_eq!(lines(&piece, 0, 3), "");
        assert_eq!(lines(&piece, 110, 108), "");
    }
}
