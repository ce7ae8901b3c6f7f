//! Which rprocd is asked: there may be one for each core.
//!
//! What belongs here: finding the sockets, asking one daemon or all of them, and finding the one
//! that has a core. What does not: what is asked.
//!
//! A daemon that does not answer hides nobody else: it is told on the standard error, and shows in
//! the exit status.

use std::cell::{Cell, RefCell};
use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::failure::{DENIED, Failure, NO_SUCH_CORE, Result, UNREACHABLE, USAGE};
use rprocd::control::client::{CallError, Connection};
use rprocd::control::{Class, class};
use rprocd::rproc::CoreStatus;

/// Where daemons have their sockets unless they are told otherwise.
const FOLDER: &str = "/run/rprocd";
/// What a control socket is called there.
const CONTROL: &str = "control";
/// Names sockets, separated by colons.
const VARIABLE: &str = "RPROCD_SOCKET";

/// One rprocd: where it is, and how it is talked to.
#[derive(Clone)]
pub struct Daemon {
    /// Its control socket.
    pub socket: PathBuf,
    /// How long an answer may take.
    pub patience: Duration,
    /// Programs read what is shown.
    pub json: bool,
}

/// The answer to `List`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct List {
    /// The cores.
    pub cores: Vec<CoreStatus>,
    /// The number of the next event.
    pub next_event: u64,
}

impl Daemon {
    /// A connection for a method.
    pub fn connect(&self, method: &str) -> Result<Connection> {
        let opened = Connection::open(&self.socket, self.patience);
        let opened = opened.or_else(|cause| match (&cause, self.monitor()) {
            (CallError::Denied(_), Some(monitor)) if class(method) == Class::Observe => {
                // Why the first one is not for this user says more than why this one is not.
                Connection::open(&monitor, self.patience).map_err(|_| cause)
            }
            _ => Err(cause),
        });
        opened.map_err(|cause| self.failed(cause))
    }

    /// The socket for those who only look, where the configuration is as usual.
    fn monitor(&self) -> Option<PathBuf> {
        let name = self.socket.file_name()?.to_str()?;
        let monitor = name.replacen(CONTROL, "monitor", 1);
        (monitor != name).then(|| self.socket.with_file_name(monitor))
    }

    /// It is this daemon that has failed.
    pub fn failed(&self, cause: CallError) -> Failure {
        let names_none = matches!(
            cause,
            CallError::HungUp | CallError::TimedOut { .. } | CallError::NotUnderstood { .. }
        );
        let mut failure = Failure::from(cause).at(&self.socket);
        let socket = self.socket.display().to_string();
        if names_none && !failure.text.contains(&socket) {
            // That is all that the sentence lacks.
            failure.text = format!("{}: {}", self.socket.display(), failure.text);
        }
        failure
    }

    /// One call, one answer.
    pub fn call<T: DeserializeOwned>(&self, method: &str, parameters: &Value) -> Result<T> {
        let answer = self.connect(method)?.call(method, parameters);
        answer.map_err(|cause| self.failed(cause))
    }

    /// The same, with an open file.
    pub fn call_with(&self, method: &str, parameters: &Value, file: &File) -> Result<Value> {
        let mut connection = self.connect(method)?;
        let answer = connection
            .send(method, parameters, false, &[file.as_fd()])
            .and_then(|()| connection.answer(method));
        Ok(answer.map_err(|cause| self.failed(cause))?.parameters)
    }

    /// All its cores.
    pub fn list(&self) -> Result<List> {
        self.call("io.rprocd.List", &json!({}))
    }

    /// One core of that name.
    pub fn core(&self, name: &str) -> Result<CoreStatus> {
        let found = self.list()?.cores.into_iter().find(|it| it.name == name);
        found.ok_or_else(|| self.failed(CallError::NoSuchCore(name.to_owned())))
    }

    /// Text, or with `--json` the value.
    pub fn shown(&self, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<String> {
        shown(self.json, value, text)
    }
}

/// Text, or with `--json` the value.
pub fn shown(json: bool, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<String> {
    if !json {
        return Ok(text());
    }
    let text = serde_json::to_string_pretty(value)
        .map_err(|cause| Failure::new(1, format!("the answer cannot be shown: {cause}")))?;
    Ok(text + "\n")
}

/// A core, and the daemon that has it.
#[derive(Clone, Serialize)]
pub struct Seen {
    /// The daemon's socket.
    pub daemon: PathBuf,
    #[serde(flatten)]
    pub core: CoreStatus,
}

/// The cores, each called by a name of its own: where two daemons have one of the same name, with the
/// socket.
pub fn named(seen: &[Seen]) -> Vec<CoreStatus> {
    let named = |it: &Seen| {
        let mut core = it.core.clone();
        if seen
            .iter()
            .filter(|other| other.core.name == core.name)
            .count()
            > 1
        {
            core.name = format!("{} ({})", core.name, it.daemon.display());
        }
        core
    };
    seen.iter().map(named).collect()
}

/// Every rprocd that is asked.
pub struct Daemons {
    /// What `--socket` says.
    options: Vec<PathBuf>,
    sockets: RefCell<Vec<PathBuf>>,
    patience: Duration,
    /// Programs read what is shown.
    pub json: bool,
    /// The exit status so far.
    status: Cell<u8>,
}

impl Daemons {
    /// Those of the options, or else of the environment, or else all of the host.
    pub fn find(options: Vec<PathBuf>, patience: Duration, json: bool) -> Self {
        let daemons = Self {
            options,
            sockets: RefCell::default(),
            patience,
            json,
            status: Cell::new(0),
        };
        daemons.look_again();
        daemons
    }

    /// Adds those that have come since.
    pub fn look_again(&self) {
        let found = if self.options.is_empty() {
            match env::var_os(VARIABLE).filter(|it| !it.is_empty()) {
                Some(paths) => listed(&paths),
                None => below(Path::new(FOLDER)),
            }
        } else {
            self.options.clone()
        };
        let mut sockets = self.sockets.borrow_mut();
        for socket in found {
            if !sockets.contains(&socket) {
                sockets.push(socket);
            }
        }
    }

    /// Their sockets.
    pub fn sockets(&self) -> Vec<String> {
        let sockets = self.sockets.borrow();
        sockets.iter().map(|it| it.display().to_string()).collect()
    }

    /// The exit status of what has been done.
    pub fn status(&self) -> u8 {
        self.status.get()
    }

    /// Tells of what has failed beside what has not.
    pub fn complain(&self, failure: &Failure) {
        failure.tell(self.json);
        if self.status.get() == 0 {
            self.status.set(failure.status);
        }
    }

    fn daemon(&self, socket: &Path) -> Daemon {
        Daemon {
            socket: socket.to_owned(),
            patience: self.patience,
            json: self.json,
        }
    }

    /// All of them.
    ///
    /// # Errors
    /// There is none.
    pub fn all(&self) -> Result<Vec<Daemon>> {
        let sockets = self.sockets.borrow();
        let daemons: Vec<_> = sockets.iter().map(|it| self.daemon(it)).collect();
        if !daemons.is_empty() {
            return Ok(daemons);
        }
        let denied = fs::read_dir(FOLDER)
            .is_err_and(|cause| cause.kind() == io::ErrorKind::PermissionDenied);
        if denied {
            let text = format!(
                "you may not look into {FOLDER}, where the sockets of rprocd are; ask who runs it for \
                 its group, or name a socket with --socket"
            );
            return Err(Failure::new(DENIED, text));
        }
        Err(Failure::new(
            UNREACHABLE,
            format!(
                "no rprocd runs on this host: there is neither {FOLDER}/{CONTROL} nor \
                 {FOLDER}/*/{CONTROL}. Start one: `systemctl start rprocd` for the cores of \
                 /etc/rprocd/rprocd.toml, `systemctl start rprocd@NAME` for /etc/rprocd/NAME.toml, \
                 or `rprocd --config FILE`. If its socket is somewhere else, name it with --socket or \
                 in {VARIABLE}"
            ),
        ))
    }

    /// Asks all of them at the same time, and returns what came of it, in their order.
    pub fn ask<T: Send>(
        &self,
        ask: impl Fn(&Daemon) -> Result<T> + Sync,
    ) -> Result<Vec<(Daemon, Result<T>)>> {
        let daemons = self.all()?;
        let ask = &ask;
        let answers: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = daemons
                .iter()
                .map(|daemon| scope.spawn(move || ask(daemon)))
                .collect();
            threads.into_iter().map(|it| it.join()).collect()
        });
        let lost = |_| Failure::new(1, "a thread of rprocctl ended in an internal error");
        let answers = answers.into_iter().map(|it| it.map_err(lost).flatten());
        Ok(daemons.into_iter().zip(answers).collect())
    }

    /// The answers of those that answer; the others are told of.
    ///
    /// # Errors
    /// None answers.
    pub fn each<T: Send>(
        &self,
        ask: impl Fn(&Daemon) -> Result<T> + Sync,
    ) -> Result<Vec<(Daemon, T)>> {
        let (mut answers, mut failures) = (Vec::new(), Vec::new());
        for (daemon, answer) in self.ask(ask)? {
            match answer {
                Ok(answer) => answers.push((daemon, answer)),
                Err(failure) => failures.push(failure),
            }
        }
        if answers.is_empty()
            && let Some(last) = failures.pop()
        {
            for failure in &failures {
                failure.tell(self.json);
            }
            return Err(last);
        }
        for failure in &failures {
            self.complain(failure);
        }
        Ok(answers)
    }

    /// The only one.
    ///
    /// # Errors
    /// There are several, or there is none.
    pub fn only(&self, what: &str) -> Result<Daemon> {
        let mut daemons = self.all()?;
        if daemons.len() > 1 {
            let sockets = self.sockets();
            let text = format!(
                "{what} is for one rprocd, and there are {}; choose one with --socket: {}",
                sockets.len(),
                sockets.join(", ")
            );
            return Err(Failure::new(USAGE, text));
        }
        Ok(daemons.remove(0))
    }

    /// The one that has a core of this name.
    ///
    /// # Errors
    /// None has it, or more than one.
    pub fn of_core(&self, name: &str) -> Result<Daemon> {
        let mut daemons = self.all()?;
        if daemons.len() == 1 {
            // It says so itself if it has not.
            return Ok(daemons.remove(0));
        }
        let (mut having, mut failures) = (Vec::new(), Vec::new());
        for (daemon, list) in self.ask(Daemon::list)? {
            match list {
                Ok(list) if list.cores.iter().any(|core| core.name == name) => having.push(daemon),
                Ok(_) => {}
                Err(failure) => failures.push(failure),
            }
        }
        match having.len() {
            1 => Ok(having.remove(0)),
            0 => {
                // It may be one of those that do not answer.
                for failure in &failures {
                    self.complain(failure);
                }
                let mut failure = Failure::from(CallError::NoSuchCore(name.to_owned()));
                if let Some(first) = failures.first() {
                    failure.status = first.status;
                    failure.text = format!("no rprocd that answers has a core \"{name}\"");
                }
                Err(failure)
            }
            _ => {
                let sockets: Vec<_> = having.iter().map(|it| it.socket.display()).collect();
                let sockets: Vec<_> = sockets.iter().map(ToString::to_string).collect();
                let text = format!(
                    "there is a core \"{name}\" in {} daemons, at {}; say which with --socket",
                    sockets.len(),
                    sockets.join(" and at ")
                );
                Err(Failure::new(USAGE, text))
            }
        }
    }

    /// All cores of those that answer.
    pub fn cores(&self) -> Result<Vec<Seen>> {
        Ok(seen(self.each(Daemon::list)?))
    }

    /// Says which cores there are, where one was named that is not.
    pub fn suggest(&self, mut failure: Failure) -> Failure {
        let Some(name) = failure
            .unknown_core
            .take_if(|_| failure.status == NO_SUCH_CORE)
        else {
            return failure;
        };
        let lists = self.ask(Daemon::list).into_iter().flatten();
        let names: Vec<_> = lists
            .filter_map(|(_, list)| list.ok())
            .flat_map(|list| list.cores)
            .map(|core| core.name)
            .collect();
        let like = |it: &&String| strsim::damerau_levenshtein(it, &name);
        let nearest = names.iter().min_by_key(like);
        let nearest = nearest.filter(|it| like(it) <= 1 + name.chars().count() / 4);
        failure.text = match nearest {
            _ if names.is_empty() => format!("there is no core \"{name}\", nor any other"),
            Some(nearest) => format!("there is no core \"{name}\"; did you mean \"{nearest}\"?"),
            None => format!(
                "there is no core \"{name}\"; there are: {}",
                names.join(", ")
            ),
        };
        failure
    }
}

/// The cores of some lists.
pub fn seen(lists: Vec<(Daemon, List)>) -> Vec<Seen> {
    let seen = |(daemon, list): (Daemon, List)| {
        let socket = daemon.socket;
        let seen = move |core| Seen {
            daemon: socket.clone(),
            core,
        };
        list.cores.into_iter().map(seen)
    };
    lists.into_iter().flat_map(seen).collect()
}

/// Paths that are separated by colons.
fn listed(paths: &OsStr) -> Vec<PathBuf> {
    let paths = paths.as_bytes().split(|byte| *byte == b':');
    let paths = paths.filter(|path| !path.is_empty());
    paths
        .map(|path| PathBuf::from(OsStr::from_bytes(path)))
        .collect()
}

/// The control sockets in a folder, and in the folders in it.
fn below(folder: &Path) -> Vec<PathBuf> {
    let is_socket = |path: &PathBuf| match fs::metadata(path) {
        Ok(found) => found.file_type().is_socket(),
        // Who connects is told that this is not for them.
        Err(cause) => cause.kind() == io::ErrorKind::PermissionDenied,
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut inside: Vec<_> = entries.map(|it| it.path().join(CONTROL)).collect();
    inside.sort_unstable();
    let own = folder.join(CONTROL);
    [own].into_iter().chain(inside).filter(is_socket).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn every_control_socket_of_the_folder_and_of_those_in_it_is_found_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["m1", "m0", "m2"] {
            fs::create_dir(path(name)).unwrap();
        }
        // A socket that is left behind is found: it is told that nobody listens.
        for name in [
            "control",
            "monitor",
            "m1/control",
            "m1/monitor",
            "m0/control",
        ] {
            drop(UnixListener::bind(path(name)).unwrap());
        }
        fs::write(path("m2/control"), "no socket").unwrap();
        let expected = ["control", "m0/control", "m1/control"].map(path);
        assert_eq!(below(folder.path()), expected);
        assert!(below(&path("none")).is_empty());
    }

    #[test]
    fn paths_in_the_environment_are_separated_by_colons() {
        let paths = listed(OsStr::new("/a/control::/b c/control:"));
        assert_eq!(paths, [Path::new("/a/control"), Path::new("/b c/control")]);
    }

    #[test]
    fn the_monitor_socket_is_beside_the_control_socket() {
        let monitor = |socket: &str| {
            let daemon = Daemon {
                socket: socket.into(),
                patience: Duration::ZERO,
                json: false,
            };
            daemon.monitor()
        };
        let beside = monitor("/run/rprocd/control/control");
        assert_eq!(beside, Some("/run/rprocd/control/monitor".into()));
        assert_eq!(monitor("/t/control.sock"), Some("/t/monitor.sock".into()));
        assert_eq!(monitor("/t/other"), None);
    }
}
