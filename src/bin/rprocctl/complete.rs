//! Names that a shell completes: of cores, coredumps and firmware files.
//!
//! What belongs here: answering a shell while somebody types. What does not: the words of the command
//! line (`arguments`), and the scripts that ask (`cargo xtask pages` writes them).
//!
//! A shell asks by running rprocctl with `COMPLETE` in its environment. Whoever types waits for the
//! answer, so it is quick, and without a daemon it is empty: no message helps there.

use std::collections::HashSet;
use std::env;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, Command, CommandFactory, ValueHint};
use clap_complete::CompleteEnv;
use clap_complete::engine::{
    ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter,
};
use serde::Deserialize;
use serde_json::json;

use crate::arguments::Arguments;
use crate::daemons::{Daemon, Daemons};
use crate::failure::Result;

/// How long each rprocd may take.
const PATIENCE: Duration = Duration::from_millis(300);

/// If a shell asks, answers it and ends the process.
pub fn answer_a_shell() {
    CompleteEnv::with_factory(|| with_names(Arguments::command())).complete();
}

/// Adds who knows the names.
fn with_names(command: Command) -> Command {
    command.mut_args(with_name).mut_subcommands(with_names)
}

fn with_name(arg: Arg) -> Arg {
    let is_path = arg.get_value_hint() != ValueHint::Unknown;
    match arg.get_id().as_str() {
        "core" => arg.add(ArgValueCompleter::new(cores)),
        "name" => arg.add(ArgValueCompleter::new(coredumps)),
        "file" | "firmware" if !is_path && arg.get_action().takes_values() => {
            arg.add(ArgValueCompleter::new(firmware))
        }
        _ => arg,
    }
}

/// The words that have been typed.
fn words() -> Vec<OsString> {
    env::args_os().skip_while(|it| it != "--").skip(1).collect()
}

/// What follows `--socket` in what has been typed.
fn sockets(words: &[OsString]) -> Vec<PathBuf> {
    let mut sockets = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let socket = match word.to_str() {
            Some("--socket" | "-s") => words.next().map(PathBuf::from),
            Some(word) => word.strip_prefix("--socket=").map(PathBuf::from),
            None => None,
        };
        sockets.extend(socket.filter(|it| !it.as_os_str().is_empty()));
    }
    sockets
}

/// What every daemon that answers says.
fn each<T: Send>(ask: impl Fn(&Daemon) -> Result<Vec<T>> + Sync) -> Vec<T> {
    let daemons = Daemons::find(sockets(&words()), PATIENCE, false);
    let answers = daemons.ask(ask).into_iter().flatten();
    let answers = answers.filter_map(|(_, answer)| answer.ok());
    answers.flatten().collect()
}

fn beginning_with(current: &OsStr, names: Vec<String>) -> Vec<CompletionCandidate> {
    let current = current.to_string_lossy();
    let mut known = HashSet::new();
    let names = names.into_iter().filter(|it| it.starts_with(&*current));
    // Two daemons may have one of the same name.
    let names = names.filter(|it| known.insert(it.clone()));
    names.map(CompletionCandidate::new).collect()
}

fn cores(current: &OsStr) -> Vec<CompletionCandidate> {
    let names = |daemon: &Daemon| {
        let cores = daemon.list()?.cores;
        Ok(cores.into_iter().map(|core| core.name).collect())
    };
    beginning_with(current, each(names))
}

/// Of the core that has been typed.
fn coredumps(current: &OsStr) -> Vec<CompletionCandidate> {
    let words = words();
    let names = |daemon: &Daemon| {
        let mut names = Vec::new();
        for core in daemon.list()?.cores {
            if words.iter().any(|word| *word == *core.name) {
                let dumps = crate::dumps(daemon, &core.name)?;
                names.extend(dumps.into_iter().map(|dump| dump.name));
            }
        }
        Ok(names)
    };
    beginning_with(current, each(names))
}

/// Of the firmware directory, or with a slash any file.
fn firmware(current: &OsStr) -> Vec<CompletionCandidate> {
    if current.to_string_lossy().contains('/') {
        return PathCompleter::file().complete(current);
    }
    beginning_with(current, each(firmware_files))
}

/// The files of a daemon's firmware directory.
pub fn firmware_files(daemon: &Daemon) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Files {
        files: Vec<String>,
    }
    let Files { files } = daemon.call("io.rprocd.FirmwareFiles", &json!({}))?;
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sockets_that_have_been_typed_are_asked() {
        let words = [
            "rprocctl",
            "--socket",
            "/a",
            "-s",
            "/b",
            "--socket=/c",
            "info",
            "-s",
            "",
        ];
        let words = words.map(OsString::from);
        assert_eq!(sockets(&words), ["/a", "/b", "/c"].map(PathBuf::from));
        assert!(sockets(&words[..1]).is_empty());
    }

    #[test]
    fn every_argument_that_is_a_core_is_completed() {
        fn check(command: &Command, path: &str, found: &mut usize) {
            for arg in command.get_arguments().filter(|it| it.get_id() == "core") {
                let known = arg.get::<ArgValueCompleter>().is_some();
                assert!(known, "{path} {}", command.get_name());
                *found += 1;
            }
            for verb in command.get_subcommands() {
                check(verb, &format!("{path} {}", command.get_name()), found);
            }
        }
        let mut found = 0;
        check(&with_names(Arguments::command()), "", &mut found);
        assert!(found > 20, "{found}");
    }
}
