//! `rprocctl`: the operator's tool. It knows only control sockets.
//!
//! | module | |
//! |---|---|
//! | this one | from a verb to calls |
//! | `arguments` | the command line |
//! | `daemons` | which rprocd is asked: all of the host, or the one that has a core |
//! | `failure` | a sentence and an exit status, for people and for programs |
//! | `show` | cores as tables and blocks |
//! | `watch` | what goes on until it is ended: events, progress |
//! | `trace` | what firmware wrote |
//! | `top` | the live view |
//! | `report` | everything in one file |
//! | `vmm` | what a VMM is told |
//! | `complete` | names that a shell completes |
//! | `terminal` | columns, colour, width |

mod arguments;
mod complete;
mod daemons;
mod failure;
mod report;
mod show;
mod terminal;
mod top;
mod trace;
mod vmm;
mod watch;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::time::Instant;

use clap::{Parser, ValueEnum};
use rustix::event::{PollFd, PollFlags, poll};
use serde::Deserialize;
use serde_json::{Value, json};

use arguments::{Arguments, Change, Config, Coredump, Firmware, OfCore, Recovery, Setting, Verb};
use daemons::{Daemon, Daemons, shown};
use failure::{ALREADY_SO, ENDED, Failure, REFUSED, Result, USAGE};
use rprocd::control::client::{self, Connection};
use rprocd::prepare;
use rprocd::report::sentence;
use rprocd::rproc::{CoreStatus, Region, Resource};
use rprocd::sysfs::namespace::{self, NamespaceError};
use terminal::{Screen, Table, duration, size, write};

fn main() -> ExitCode {
    complete::answer_a_shell();
    let Arguments {
        sockets,
        timeout,
        json,
        verb,
    } = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(cause) => return misused(&cause),
    };
    let daemons = Daemons::find(sockets, timeout, json);
    match perform(&daemons, &verb).and_then(|text| write(&text)) {
        Ok(_) => ExitCode::from(daemons.status()),
        Err(failure) => {
            let failure = daemons.suggest(failure);
            failure.tell(json);
            ExitCode::from(failure.status)
        }
    }
}

/// The command line is not understood, or asks for help.
fn misused(cause: &clap::Error) -> ExitCode {
    // It was not understood, so nobody has said yet who reads this.
    let words = std::env::args_os().take_while(|word| word != "--");
    let json = words.skip(1).any(|word| word == "--json" || word == "-j");
    if cause.use_stderr() && json {
        let text = cause.render().to_string();
        // The usage and the hints that follow are for people.
        let text = text.split("\n\nUsage:").next().unwrap_or_default();
        let text = text.split("\n\nFor more").next().unwrap_or_default();
        let text = text.trim_start_matches("error: ").trim();
        Failure::new(USAGE, text).tell(true);
    } else {
        // Nobody is left to be told.
        let _ = cause.print();
    }
    ExitCode::from(if cause.use_stderr() { USAGE } else { 0 })
}

fn perform(daemons: &Daemons, verb: &Verb) -> Result<String> {
    let screen = &Screen::of_output();
    match verb {
        Verb::List => list(daemons, screen),
        Verb::Info(of) => {
            let (daemon, core) = core(daemons, &of.core)?;
            daemon.shown(&core, || show::info(&core, screen))
        }
        Verb::Queues(of) => {
            let (daemon, core) = core(daemons, &of.core)?;
            daemon.shown(&show::queue_values(&core), || show::queues(&core, screen))
        }
        Verb::Endpoints(of) => {
            let (daemon, core) = core(daemons, &of.core)?;
            daemon.shown(&show::endpoint_values(&core), || {
                show::endpoints(&core, screen)
            })
        }
        Verb::Timings(of) => {
            let (daemon, core) = core(daemons, &of.core)?;
            daemon.shown(&core.timelines, || show::timings(&core, screen))
        }
        Verb::Top { delay, iterations } => top::run(daemons, *delay, *iterations),
        Verb::Start {
            while_connected,
            firmware,
            change,
        } => {
            let daemon = &daemons.of_core(&change.core)?;
            let mut done = Vec::new();
            if let Some(file) = firmware {
                set_firmware(daemon, &change.core, file)?;
                done.push("firmware set");
            }
            done.push("start");
            if *while_connected {
                return start_while_connected(daemon, &change.core, &done);
            }
            self::change(daemon, "io.rprocd.Start", change)?;
            changed(daemon, &change.core, &done)
        }
        Verb::Stop { if_running, change } => {
            let daemon = &daemons.of_core(&change.core)?;
            // The daemon decides: a firmware may end by itself at any time.
            match self::change(daemon, "io.rprocd.Stop", change) {
                Err(failure) if *if_running && failure.status == ALREADY_SO => {
                    changed(daemon, &change.core, &[])
                }
                done => done.and_then(|_| changed(daemon, &change.core, &["stop"])),
            }
        }
        Verb::Restart(change) => {
            let daemon = &daemons.of_core(&change.core)?;
            let mut done = Vec::new();
            if daemon.core(&change.core)?.state != "detached" {
                match self::change(daemon, "io.rprocd.Stop", change) {
                    Err(failure) if failure.status == ALREADY_SO => {}
                    stopped => {
                        stopped?;
                        done.push("stop");
                    }
                }
            }
            self::change(daemon, "io.rprocd.Start", change)?;
            done.push("start");
            changed(daemon, &change.core, &done)
        }
        Verb::Attach(change) => simply_change(daemons, "attach", "io.rprocd.Attach", change),
        Verb::Detach(change) => simply_change(daemons, "detach", "io.rprocd.Detach", change),
        Verb::Suspend(of) => simply(daemons, "suspend", "io.rprocd.Suspend", of),
        Verb::Resume(of) => simply(daemons, "resume", "io.rprocd.Resume", of),
        Verb::Crash(of) => simply(daemons, "crash", "io.rprocd.Crash", of),
        Verb::Firmware(what) => firmware(daemons, what, screen),
        Verb::Recovery(what) => recovery(daemons, what),
        Verb::Coredump(what) => coredump(daemons, what, screen),
        Verb::Trace {
            follow,
            lines,
            incarnation,
            buffer,
            of,
        } => {
            let wanted = trace::Wanted {
                core: &of.core,
                follow: *follow,
                lines: *lines,
                incarnation: *incarnation,
                buffer: buffer.as_deref(),
            };
            trace::run(&daemons.of_core(&of.core)?, &wanted)
        }
        Verb::Events {
            follow,
            lines,
            steps,
            since,
            core,
        } => {
            let wanted = watch::Wanted {
                core: core.as_deref(),
                since: *since,
                lines: *lines,
                follow: *follow,
                steps: *steps,
            };
            watch::events(daemons, &wanted)
        }
        Verb::Mem(of) => {
            let daemon = daemons.of_core(&of.core)?;
            let Regions { regions } = daemon.call("io.rprocd.Memory", &about(of))?;
            daemon.shown(&regions, || show::memory(&regions))
        }
        Verb::Resources(of) => {
            let daemon = daemons.of_core(&of.core)?;
            let Entries { entries } = daemon.call("io.rprocd.Resources", &about(of))?;
            daemon.shown(&entries, || show::resources(&entries, screen))
        }
        Verb::Metrics { output } => metrics(daemons, output.as_deref()),
        Verb::Vmm { vmm, memory, of } => {
            let (daemon, core) = core(daemons, &of.core)?;
            let words = vmm::arguments(*vmm, &core, *memory)?;
            daemon.shown(&words, || vmm::for_a_shell(&words))
        }
        Verb::Report {
            html,
            symbols,
            output,
        } => {
            if *html && daemons.json && output.is_none() {
                let text = "--html is a page and --json is none: leave one of them out, or have the \
                            page written to a file with --output";
                return Err(Failure::new(USAGE, text));
            }
            let text = report::text(daemons, *html, symbols)?;
            match output {
                None => Ok(text),
                Some(path) => put(daemons, path, text),
            }
        }
        Verb::Config(Config::Check { file }) => check_config(daemons.json, file),
        Verb::Sysfs { command } => Err(sysfs(&daemons.only("sysfs")?, command)),
        Verb::Ping => ping(daemons, screen),
        Verb::Version => version(daemons),
    }
}

/// The cores of all daemons.
fn list(daemons: &Daemons, screen: &Screen) -> Result<String> {
    let lists = daemons.each(Daemon::list)?;
    let told: Vec<_> = lists
        .iter()
        .map(|(daemon, list)| json!({ "socket": daemon.socket, "nextEvent": list.next_event }))
        .collect();
    let seen = daemons::seen(lists);
    let value = json!({ "cores": seen, "daemons": told });
    shown(daemons.json, &value, || {
        let mut text = show::list(&daemons::named(&seen), screen);
        for daemon in told.iter().filter(|_| told.len() > 1) {
            let socket = daemon["socket"].as_str().unwrap_or_default();
            let of = seen.iter().filter(|it| it.daemon == Path::new(socket));
            let names: Vec<_> = of.map(|it| it.core.name.as_str()).collect();
            text += &format!("rprocd at {socket}: {}\n", names.join(", "));
        }
        text
    })
}

fn metrics(daemons: &Daemons, output: Option<&Path>) -> Result<String> {
    let seen = daemons.cores()?;
    let cores: Vec<_> = seen
        .iter()
        .map(|it| {
            let same = seen.iter().filter(|other| other.core.name == it.core.name);
            let daemon = (same.count() > 1).then(|| it.daemon.display().to_string());
            (daemon, &it.core)
        })
        .collect();
    let families = rprocd::metrics::families(&cores);
    match output {
        Some(path) => put(daemons, path, rprocd::metrics::text(&families)),
        None => shown(daemons.json, &json!({ "metrics": families }), || {
            rprocd::metrics::text(&families)
        }),
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

/// A core, and the daemon that has it.
fn core(daemons: &Daemons, name: &str) -> Result<(Daemon, CoreStatus)> {
    let daemon = daemons.of_core(name)?;
    let core = daemon.core(name)?;
    Ok((daemon, core))
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

/// What was done to a core, for programs; people see that nothing is wrong.
fn changed(daemon: &Daemon, core: &str, done: &[&str]) -> Result<String> {
    changed_with(daemon, core, done, json!({}))
}

/// The same, and what it is now.
fn changed_with(daemon: &Daemon, core: &str, done: &[&str], mut value: Value) -> Result<String> {
    if !daemon.json {
        return Ok(String::new());
    }
    value["core"] = json!(core);
    value["daemon"] = json!(daemon.socket);
    value["done"] = json!(done);
    watch::json_line(&value)
}

/// A change that takes no time.
fn simply(daemons: &Daemons, done: &str, method: &str, of: &OfCore) -> Result<String> {
    let daemon = daemons.of_core(&of.core)?;
    let _: Value = daemon.call(method, &about(of))?;
    changed(&daemon, &of.core, &[done])
}

/// A change that may take its time.
fn simply_change(daemons: &Daemons, done: &str, method: &str, change: &Change) -> Result<String> {
    let daemon = daemons.of_core(&change.core)?;
    self::change(&daemon, method, change)?;
    changed(&daemon, &change.core, &[done])
}

fn change(daemon: &Daemon, method: &str, change: &Change) -> Result<()> {
    let parameters = json!({ "core": change.core });
    if change.progress {
        return watch::progress(daemon, method, &parameters);
    }
    let _: Value = daemon.call(method, &parameters)?;
    Ok(())
}

/// Text to a file, whole or not at all.
fn put(daemons: &Daemons, path: &Path, text: String) -> Result<String> {
    // Beside its place, under a name that node_exporter's collector does not read.
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", process::id()));
    let beside = PathBuf::from(beside);
    // Never through a link that somebody has put there.
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&beside);
    made.and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&beside, path))
        .map_err(|cause| {
            let _ = fs::remove_file(&beside);
            let path = path.display();
            Failure::new(
                1,
                format!("cannot write {path}: {cause}; what was there is left"),
            )
        })?;
    shown(daemons.json, &json!({ "file": path }), String::new)
}

/// A firmware as an operator names it: a file that is opened here, or a name for rprocd.
fn open(file: &str) -> Result<(String, Option<File>)> {
    if !file.contains('/') {
        return Ok((file.to_owned(), None));
    }
    let path = Path::new(file);
    let opened = File::open(path)
        .map_err(|cause| Failure::new(1, format!("cannot open {file}: {cause}")))?;
    if opened.metadata().is_ok_and(|it| !it.is_file()) {
        let text = format!("{file} is no regular file, so it is no firmware");
        return Err(Failure::new(1, text));
    }
    let name = path.file_name().map(|name| name.to_string_lossy());
    let name = name.ok_or_else(|| Failure::new(1, format!("{file} is no file's name")))?;
    Ok((name.into_owned(), Some(opened)))
}

/// Calls a method about a firmware.
fn about_firmware(daemon: &Daemon, method: &str, core: &str, file: &str) -> Result<Value> {
    let (name, opened) = open(file)?;
    let mut parameters = json!({ "core": core, "firmware": name });
    match opened {
        None => daemon.call(method, &parameters).map_err(|mut failure| {
            // Perhaps it was meant for the folder that the operator is in.
            if failure.status == REFUSED && Path::new(file).is_file() {
                failure.text += &format!(
                    "; that is a name in rprocd's firmware directory, the file here is ./{file}"
                );
            } else if failure.text.contains("cannot open firmware") {
                failure.text += "; `rprocctl firmware list` shows the files that there are";
            }
            failure
        }),
        Some(file) => {
            parameters["fileDescriptor"] = json!(0);
            daemon.call_with(method, &parameters, &file)
        }
    }
}

fn set_firmware(daemon: &Daemon, core: &str, file: &str) -> Result<()> {
    about_firmware(daemon, "io.rprocd.SetFirmware", core, file).map(drop)
}

fn firmware(daemons: &Daemons, what: &Firmware, screen: &Screen) -> Result<String> {
    match what {
        Firmware::Get(of) => {
            let (daemon, core) = core(daemons, &of.core)?;
            let value = json!({ "firmware": core.firmware, "sha256": core.firmware_sha256 });
            daemon.shown(&value, || {
                format!("{} (sha256 {})\n", core.firmware, core.firmware_sha256)
            })
        }
        Firmware::List => firmware_files(daemons, screen),
        Firmware::Set { core, file } => {
            let daemon = daemons.of_core(core)?;
            set_firmware(&daemon, core, file)?;
            let value = json!({ "firmware": file });
            changed_with(&daemon, core, &["firmware set"], value)
        }
        Firmware::Check { core, file } => {
            #[derive(Deserialize, serde::Serialize)]
            struct Judged {
                accepted: bool,
                report: String,
            }
            let method = "io.rprocd.CheckFirmware";
            let daemon = daemons.of_core(core)?;
            let answer = about_firmware(&daemon, method, core, file)?;
            let judged: Judged = client::read(method, answer)?;
            let text = daemon.shown(&judged, || judged.report.clone() + "\n")?;
            if judged.accepted {
                return Ok(text);
            }
            write(&text)?;
            Err(Failure::new(
                REFUSED,
                format!("core {core} would not take {file}"),
            ))
        }
    }
}

/// The files of the firmware directories, and which core has one.
fn firmware_files(daemons: &Daemons, screen: &Screen) -> Result<String> {
    let found = daemons.each(|daemon| {
        let files = complete::firmware_files(daemon)?;
        Ok((files, daemon.list()?.cores))
    })?;
    let mut values = Vec::new();
    let several = found.len() > 1;
    let mut table = Table::new(if several {
        &["FILE", "CORES THAT HAVE IT", "RPROCD AT"][..]
    } else {
        &["FILE", "CORES THAT HAVE IT"]
    });
    for (daemon, (files, cores)) in &found {
        for file in files {
            let have = cores.iter().filter(|core| core.firmware == *file);
            let have: Vec<_> = have.map(|core| core.name.as_str()).collect();
            let at = several.then(|| daemon.socket.display().to_string());
            table.row([file.clone(), have.join(", ")].into_iter().chain(at));
            values.push(json!({ "file": file, "cores": have, "daemon": daemon.socket }));
        }
    }
    shown(daemons.json, &values, || {
        if values.is_empty() {
            return "there is no file in rprocd's firmware directory (`firmware-directory` in its \
                    configuration)\n"
                .to_owned();
        }
        table.text(screen)
    })
}

fn recovery(daemons: &Daemons, what: &Recovery) -> Result<String> {
    match what {
        Recovery::Get(of) => {
            let (daemon, core) = core(daemons, &of.core)?;
            let word = if core.recovery { "enabled" } else { "disabled" };
            daemon.shown(&json!({ "recovery": word }), || format!("{word}\n"))
        }
        Recovery::Set { core, setting } => {
            let enabled = *setting == Setting::Enabled;
            let daemon = daemons.of_core(core)?;
            let parameters = json!({ "core": core, "enabled": enabled });
            let _: Value = daemon.call("io.rprocd.SetRecovery", &parameters)?;
            let word = if enabled { "enabled" } else { "disabled" };
            let value = json!({ "recovery": word });
            changed_with(&daemon, core, &["recovery set"], value)
        }
        Recovery::Now(change) => {
            simply_change(daemons, "recovery now", "io.rprocd.Recover", change)
        }
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

fn coredump(daemons: &Daemons, what: &Coredump, screen: &Screen) -> Result<String> {
    match what {
        Coredump::Mode { core, mode: None } => {
            let (daemon, core) = self::core(daemons, core)?;
            let mode = core.coredump_mode;
            daemon.shown(&json!({ "mode": mode }), || format!("{mode}\n"))
        }
        Coredump::Mode {
            core,
            mode: Some(mode),
        } => {
            let mode = mode.to_possible_value();
            let mode = mode.as_ref().map_or("", |mode| mode.get_name());
            let daemon = daemons.of_core(core)?;
            let parameters = json!({ "core": core, "mode": mode });
            let _: Value = daemon.call("io.rprocd.SetCoredump", &parameters)?;
            let value = json!({ "mode": mode });
            changed_with(&daemon, core, &["coredump mode"], value)
        }
        Coredump::List(of) => {
            let daemon = daemons.of_core(&of.core)?;
            let dumps = dumps(&daemon, &of.core)?;
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
            let daemon = &daemons.of_core(core)?;
            let name = match name {
                Some(name) => name.clone(),
                None => match dumps(daemon, core)?.pop() {
                    Some(last) => last.name,
                    None => {
                        let text = format!(
                            "core {core} has no coredumps; `rprocctl coredump mode {core}` tells \
                             whether any are written"
                        );
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
    let mut connection = daemon.connect(method)?;
    let parameters = json!({ "core": core, "name": name });
    let answer = connection
        .send(method, &parameters, false, &[])
        .and_then(|()| connection.answer(method));
    let fd = answer.map_err(|cause| daemon.failed(cause))?.fds.pop();
    let fd = fd.ok_or_else(|| Failure::new(1, "rprocd's answer came without the dump"))?;
    let failed = |cause: io::Error| {
        let path = path.display();
        Failure::new(1, format!("cannot write {path}: {cause}"))
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        // It holds all that the core's memory held.
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    io::copy(&mut File::from(fd), &mut file).map_err(|cause| {
        let _ = fs::remove_file(path);
        failed(cause)
    })?;
    Ok(())
}

/// Judges a configuration as `rprocd --check-config` does; no daemon is asked.
fn check_config(json: bool, file: &Path) -> Result<String> {
    let verdict = prepare::check(file).map_err(|cause| Failure::new(1, sentence(&cause)))?;
    let text = shown(json, &verdict, || verdict.summary() + "\n")?;
    if !json {
        for problem in &verdict.problems {
            eprintln!("{}", problem.shown());
        }
    }
    if verdict.accepted {
        return Ok(text);
    }
    if json {
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

fn ping(daemons: &Daemons, screen: &Screen) -> Result<String> {
    let answers = daemons.each(|daemon| {
        let begun = Instant::now();
        let info = info(daemon)?;
        let time = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        Ok((info, time))
    })?;
    let value = |(daemon, (info, time)): &(Daemon, (Info, u64))| {
        json!({
            "socket": daemon.socket, "product": info.product, "version": info.version,
            "microseconds": time,
        })
    };
    let values: Vec<_> = answers.iter().map(value).collect();
    shown(daemons.json, &json!({ "daemons": values }), || {
        let mut text = String::new();
        for (daemon, (Info { product, version }, time)) in &answers {
            let line = format!(
                "{product} {version} at {} answers after {}",
                daemon.socket.display(),
                duration(*time)
            );
            text += &(screen.cut(&line) + "\n");
        }
        text
    })
}

fn version(daemons: &Daemons) -> Result<String> {
    let ours = env!("CARGO_PKG_VERSION");
    let found = daemons.each(info);
    let answers = found.as_ref().map_or(&[][..], |it| it);
    let value = |(daemon, info): &(Daemon, Info)| json!({ "socket": daemon.socket, "version": info.version });
    let values: Vec<_> = answers.iter().map(value).collect();
    let value = json!({ "rprocctl": ours, "daemons": values });
    let text = shown(daemons.json, &value, || {
        let mut text = format!("rprocctl {ours}\n");
        for (daemon, Info { product, version }) in answers {
            text += &format!("{product} {version} at {}\n", daemon.socket.display());
        }
        text
    })?;
    // Our own is known whether or not anybody answers.
    write(&text)?;
    found.map(|_| String::new())
}

/// Starts a core for this connection, which then stays as long as this process does.
fn start_while_connected(daemon: &Daemon, core: &str, done: &[&str]) -> Result<String> {
    let method = "io.rprocd.Start";
    let mut connection = daemon.connect(method)?;
    let parameters = json!({ "core": core, "whileConnected": true });
    let started = connection.call::<Value>(method, &parameters);
    started.map_err(|cause| daemon.failed(cause))?;
    // Nobody has to read it.
    if daemon.json {
        write(&changed_with(daemon, core, done, json!({ "held": true }))?)?;
    } else {
        write(&format!(
            "{core}: held until this rprocctl ends (Ctrl-C, or the end of its input); it is then \
             stopped, unless somebody else holds it\n"
        ))?;
    }
    wait_for_end_of_input(daemon, core, &connection)?;
    connection.end()?;
    if daemon.json {
        return changed_with(daemon, core, &["release"], json!({ "held": false }));
    }
    Ok(String::new())
}

/// Reads and forgets the standard input.
fn wait_for_end_of_input(daemon: &Daemon, core: &str, connection: &Connection) -> Result<()> {
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
            let socket = &daemon.socket;
            let text = format!(
                "rprocd at {} ended, and with it core {core}",
                socket.display()
            );
            return Err(Failure::new(ENDED, text).at(socket));
        }
        if typed && !matches!(input.read(&mut [0; 4096]), Ok(1..)) {
            return Ok(());
        }
    }
}
