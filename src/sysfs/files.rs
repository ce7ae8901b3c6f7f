//! Reads and writes, as calls of `io.rprocd`.
//!
//! What belongs here: which calls a file stands for, and the errno of each failure. What does not:
//! the file system that asks.

use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::tree::Content;
use super::{tables, words};
use crate::control::TracePiece;
use crate::control::client::{self, CallError, Connection};
use crate::rproc::{CoreStatus, Region, Resource};

/// The most that is taken at once, as sysfs does.
pub const MAX_WRITE_BYTES: usize = 4096;
/// The most of a trace buffer's text that is read in one go.
const MAX_TRACE_BYTES: usize = 16 << 20;
/// How long rprocd may take to show something.
const LOOKING: Duration = Duration::from_secs(10);
/// How long it may take to change something: an inline dump of a large core takes its time. As
/// long as Linux keeps one for who is slow to fetch it.
const CHANGING: Duration = Duration::from_secs(300);

/// Who answers calls.
pub trait Daemon: Send + Sync {
    /// One call, one answer.
    ///
    /// # Errors
    /// [`CallError`].
    fn ask(&self, method: &str, parameters: &Value) -> Result<Value, CallError>;
}

/// rprocd, behind its control socket. Every call has a connection of its own, so that a daemon
/// that was restarted is found again, and who does nothing holds none.
pub struct Socket(pub PathBuf);

impl Daemon for Socket {
    fn ask(&self, method: &str, parameters: &Value) -> Result<Value, CallError> {
        let looks = ["List", "Trace", "Memory", "Resources"];
        let looks = looks.iter().any(|it| method.ends_with(it));
        let patience = if looks { LOOKING } else { CHANGING };
        Connection::open(&self.0, patience)?.call(method, parameters)
    }
}

/// Why a read or a write is refused.
#[derive(Debug)]
pub struct Refusal {
    /// What the caller is told.
    pub errno: Errno,
    /// The reason, where the errno does not say it.
    pub why: Option<String>,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self { errno, why: None }
    }
}

impl From<CallError> for Refusal {
    fn from(cause: CallError) -> Self {
        let errno = match &cause {
            CallError::Unreachable { source, .. } => {
                if source.kind() == std::io::ErrorKind::PermissionDenied {
                    Errno::ACCESS
                } else {
                    // As Linux, of a device that is being removed.
                    Errno::NODEV
                }
            }
            CallError::NoSuchCore(_) => Errno::NODEV,
            CallError::Denied(_) => Errno::ACCESS,
            CallError::TimedOut { .. } => Errno::TIMEDOUT,
            _ => Errno::IO,
        };
        Self {
            errno,
            why: Some(cause.to_string()),
        }
    }
}

type Result<T, E = Refusal> = std::result::Result<T, E>;

/// The cores' files.
pub struct Files<D> {
    daemon: D,
}

impl<D: Daemon> Files<D> {
    /// Those of the cores of `daemon`.
    pub fn new(daemon: D) -> Self {
        Self { daemon }
    }

    fn ask<T: DeserializeOwned>(&self, method: &str, parameters: &Value) -> Result<T> {
        let answer = self.daemon.ask(method, parameters)?;
        Ok(client::read(method, answer)?)
    }

    fn cores(&self) -> Result<Vec<CoreStatus>> {
        #[derive(Deserialize)]
        struct List {
            cores: Vec<CoreStatus>,
        }
        let List { cores } = self.ask("io.rprocd.List", &json!({}))?;
        Ok(cores)
    }

    fn core(&self, place: u32) -> Result<CoreStatus> {
        let mut cores = self.cores()?;
        let place = place as usize;
        if place >= cores.len() {
            // A daemon with fewer cores has taken this one's place.
            return Err(Errno::NODEV.into());
        }
        Ok(cores.swap_remove(place))
    }

    /// Which cores there are: for each, its trace buffers.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn traces(&self) -> Result<Vec<usize>, Refusal> {
        let cores = self.cores()?;
        Ok(cores.iter().map(|core| core.traces.len()).collect())
    }

    /// What is in a file.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn read(&self, place: u32, content: Content) -> Result<Vec<u8>, Refusal> {
        if content == Content::DebugCrash {
            return Err(Errno::INVAL.into());
        }
        let core = self.core(place)?;
        let of = json!({ "core": core.name });
        let line = match content {
            Content::Name | Content::DebugName => core.name,
            Content::State => core.state,
            // What runs there was not loaded by us.
            Content::Firmware if core.state == "attached" => "unknown".to_owned(),
            Content::Firmware => core.firmware,
            Content::Recovery | Content::DebugRecovery => {
                (if core.recovery { "enabled" } else { "disabled" }).to_owned()
            }
            Content::Coredump | Content::DebugCoredump => core.coredump_mode,
            Content::DebugTable => {
                #[derive(Deserialize)]
                struct Entries {
                    entries: Vec<Resource>,
                }
                // An offline core has none; what its file says is no table in memory.
                let entries = if has_memory(&core.state) {
                    let Entries { entries } = self.ask("io.rprocd.Resources", &of)?;
                    entries
                } else {
                    Vec::new()
                };
                if entries.is_empty() {
                    "No resource table found".to_owned()
                } else {
                    return Ok(tables::resource_table(&entries).into_bytes());
                }
            }
            Content::DebugCarveouts => {
                #[derive(Deserialize)]
                struct Regions {
                    regions: Vec<Region>,
                }
                if !has_memory(&core.state) {
                    return Ok(Vec::new());
                }
                let Regions { regions } = self.ask("io.rprocd.Memory", &of)?;
                return Ok(tables::carveouts(&regions).into_bytes());
            }
            Content::DebugTrace(index) => return self.trace(&core.name, index as usize),
            Content::DebugCrash => String::new(),
        };
        Ok((line + "\n").into_bytes())
    }

    /// All that is kept of a trace buffer, up to where it was when it was first asked.
    fn trace(&self, core: &str, index: usize) -> Result<Vec<u8>> {
        #[derive(Deserialize)]
        struct Answer {
            buffers: Vec<TracePiece>,
        }
        let mut text = Vec::new();
        let mut since: Vec<u64> = Vec::new();
        let mut end = None;
        loop {
            let asked = json!({ "core": core, "since": since });
            let Answer { buffers } = self.ask("io.rprocd.Trace", &asked)?;
            let Some(piece) = buffers.get(index) else {
                return Err(Errno::NODEV.into());
            };
            let end = *end.get_or_insert(piece.end);
            text.extend_from_slice(piece.text.as_bytes());
            if piece.text.is_empty() || piece.next >= end || text.len() > MAX_TRACE_BYTES {
                return Ok(text);
            }
            since = buffers.iter().map(|piece| piece.next).collect();
        }
    }

    /// Takes what is written into a file, all of it at once.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn write(&self, place: u32, content: Content, bytes: &[u8]) -> Result<(), Refusal> {
        if bytes.is_empty() || bytes.len() > MAX_WRITE_BYTES {
            return Err(Errno::INVAL.into());
        }
        match content {
            Content::State => self.set_state(place, bytes),
            Content::Firmware => self.set_firmware(place, bytes),
            Content::Recovery => self.set_recovery(place, words::whole(bytes, RECOVERY)),
            Content::DebugRecovery if bytes.len() > 10 => Err(Errno::INVAL.into()),
            Content::DebugRecovery => self.set_recovery(place, words::prefix(bytes, RECOVERY)),
            Content::Coredump => self.set_coredump(place, words::whole(bytes, COREDUMP)),
            Content::DebugCoredump if bytes.len() > 20 => Err(Errno::INVAL.into()),
            Content::DebugCoredump => self.set_coredump(place, words::prefix(bytes, COREDUMP)),
            Content::DebugCrash => self.crash(place, bytes),
            Content::Name
            | Content::DebugName
            | Content::DebugTable
            | Content::DebugCarveouts
            | Content::DebugTrace(_) => Err(Errno::INVAL.into()),
        }
    }

    /// Asks, and on a refusal looks at the state: it tells what was wrong.
    fn change(
        &self,
        place: u32,
        method: &str,
        parameters: &Value,
        errno: impl FnOnce(&str) -> Option<Errno>,
    ) -> Result<()> {
        match self.daemon.ask(method, parameters) {
            Ok(_) => Ok(()),
            Err(CallError::Refused(why) | CallError::AlreadySo(why)) => {
                match errno(&self.core(place)?.state) {
                    Some(errno) => Err(Refusal {
                        errno,
                        why: Some(why),
                    }),
                    None => Ok(()),
                }
            }
            Err(cause) => Err(cause.into()),
        }
    }

    fn set_state(&self, place: u32, bytes: &[u8]) -> Result<()> {
        let verbs = ["start", "stop", "detach"];
        let verb = words::whole(bytes, verbs).ok_or(Errno::INVAL)?;
        let of = json!({ "core": self.core(place)?.name });
        let (method, errno): (_, fn(&str) -> Errno) = match verb {
            0 => ("io.rprocd.Start", |state| match state {
                "running" | "attached" | "suspended" => Errno::BUSY,
                _ => Errno::IO,
            }),
            1 => ("io.rprocd.Stop", |state| match state {
                "offline" | "detached" => Errno::INVAL,
                _ => Errno::IO,
            }),
            _ => ("io.rprocd.Detach", |state| match state {
                "attached" => Errno::IO,
                _ => Errno::INVAL,
            }),
        };
        self.change(place, method, &of, |state| Some(errno(state)))
    }

    fn set_firmware(&self, place: u32, bytes: &[u8]) -> Result<()> {
        let core = self.core(place)?;
        if core.state != "offline" {
            return Err(Errno::BUSY.into());
        }
        let name = words::line(bytes);
        let name = std::str::from_utf8(name).map_err(|_| Errno::INVAL)?;
        if name.is_empty() {
            return Err(Errno::INVAL.into());
        }
        let parameters = json!({ "core": core.name, "firmware": name });
        self.change(place, "io.rprocd.SetFirmware", &parameters, |state| {
            Some(if state == "offline" {
                Errno::INVAL
            } else {
                Errno::BUSY
            })
        })
    }

    fn set_recovery(&self, place: u32, word: Option<usize>) -> Result<()> {
        let word = word.ok_or(Errno::INVAL)?;
        let core = self.core(place)?.name;
        // What is not crashed needs no recovery, and that is no failure.
        let errno = |state: &str| (state == "crashed").then_some(Errno::IO);
        if RECOVERY[word] == "recover" {
            return self.change(place, "io.rprocd.Recover", &json!({ "core": core }), errno);
        }
        let parameters = json!({ "core": core, "enabled": RECOVERY[word] == "enabled" });
        self.change(place, "io.rprocd.SetRecovery", &parameters, errno)
    }

    fn set_coredump(&self, place: u32, word: Option<usize>) -> Result<()> {
        let core = self.core(place)?;
        if core.state == "crashed" {
            return Err(Errno::BUSY.into());
        }
        let word = word.ok_or(Errno::INVAL)?;
        let parameters = json!({ "core": core.name, "mode": COREDUMP[word] });
        // There is no folder for them in the configuration.
        let errno = |_: &str| Some(Errno::OPNOTSUPP);
        self.change(place, "io.rprocd.SetCoredump", &parameters, errno)
    }

    fn crash(&self, place: u32, bytes: &[u8]) -> Result<()> {
        words::number(bytes)?;
        let of = json!({ "core": self.core(place)?.name });
        // Linux passes over a report of what does not run, and over a second one.
        self.change(place, "io.rprocd.Crash", &of, |state| {
            matches!(state, "running" | "attached" | "suspended").then_some(Errno::IO)
        })
    }
}

const RECOVERY: [&str; 3] = ["enabled", "disabled", "recover"];
const COREDUMP: [&str; 3] = ["disabled", "enabled", "inline"];

/// Are there carveouts and a table in such a core's memory?
fn has_memory(state: &str) -> bool {
    !matches!(state, "offline" | "detached")
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A daemon with one core, in any state, that takes or refuses what is asked.
    struct Fake {
        state: &'static str,
        refuses: bool,
        asked: Mutex<Vec<String>>,
    }

    impl Daemon for Fake {
        fn ask(&self, method: &str, parameters: &Value) -> Result<Value, CallError> {
            match method {
                "io.rprocd.List" => Ok(json!({ "cores": [core(self.state)], "nextEvent": 0 })),
                "io.rprocd.Trace" => {
                    let since = parameters["since"][0].as_u64().unwrap_or(0);
                    let text = ["one\n", "two\n"].get(since as usize).copied();
                    let piece = json!({
                        "text": text.unwrap_or_default(), "next": (since + 1).min(2), "end": 2,
                        "lost": 0, "overruns": 0,
                    });
                    Ok(json!({ "buffers": [piece] }))
                }
                "io.rprocd.Resources" => Ok(json!({ "entries": [] })),
                "io.rprocd.Memory" => Ok(json!({ "regions": [] })),
                _ if self.refuses => Err(CallError::Refused("for a reason".to_owned())),
                _ => {
                    let asked = format!("{method} {parameters}");
                    self.asked.lock().unwrap().push(asked);
                    Ok(json!({}))
                }
            }
        }
    }

    fn core(state: &str) -> Value {
        let histogram = json!({ "boundsMicroseconds": [], "counts": [0], "sumMicroseconds": 0 });
        json!({
            "name": "m0", "state": state, "holders": [], "engine": "rv32", "firmware": "a.elf",
            "firmwareSha256": "", "incarnation": 1, "memoryDa": 0, "memoryBytes": 0, "crashes": 0,
            "crashesByReason": [], "recoveryTime": histogram, "relayTime": histogram,
            "coredumpMode": "inline", "recovery": true, "unknownKicks": 0, "timelines": [],
            "coredumps": {
                "written": 0, "partial": 0, "skipped": 0, "failed": 0, "bytes": 0, "microseconds": 0
            },
            "traces": [{ "name": "log", "bytes": 0, "overruns": 0 }], "vdevs": [],
        })
    }

    fn files(state: &'static str, refuses: bool) -> Files<Fake> {
        Files::new(Fake {
            state,
            refuses,
            asked: Mutex::default(),
        })
    }

    fn text(state: &'static str, content: Content) -> String {
        let bytes = files(state, false).read(0, content).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    /// What a write asks of the daemon, or its errno.
    fn written(state: &'static str, content: Content, bytes: &[u8]) -> Result<String, Errno> {
        let files = files(state, false);
        let written = files.write(0, content, bytes);
        let asked = files.daemon.asked.lock().unwrap().join(";");
        written.map(|()| asked).map_err(|refusal| refusal.errno)
    }

    fn refused(state: &'static str, content: Content, bytes: &[u8]) -> Result<(), Errno> {
        let written = files(state, true).write(0, content, bytes);
        written.map_err(|refusal| refusal.errno)
    }

    const OF: &str = r#"{"core":"m0"}"#;

    #[test]
    fn each_file_is_a_line() {
        for (content, expected) in [
            (Content::Name, "m0\n"),
            (Content::State, "running\n"),
            (Content::Firmware, "a.elf\n"),
            (Content::Recovery, "enabled\n"),
            (Content::Coredump, "inline\n"),
            (Content::DebugTable, "No resource table found\n"),
            (Content::DebugCarveouts, ""),
            (Content::DebugTrace(0), "one\ntwo\n"),
        ] {
            assert_eq!(text("running", content), expected, "{content:?}");
        }
        assert_eq!(text("attached", Content::Firmware), "unknown\n");
        let missing = files("running", false).read(0, Content::DebugTrace(1));
        assert_eq!(missing.unwrap_err().errno, Errno::NODEV);
        let missing = files("running", false).read(1, Content::Name);
        assert_eq!(missing.unwrap_err().errno, Errno::NODEV);
    }

    #[test]
    fn words_become_calls() {
        for (content, bytes, call, parameters) in [
            (Content::State, &b"start\n"[..], "Start", OF),
            (Content::State, b"stop", "Stop", OF),
            (Content::State, b"detach\n", "Detach", OF),
            (Content::Recovery, b"recover\n", "Recover", OF),
            (Content::DebugRecovery, b"r", "Recover", OF),
            (Content::DebugCrash, b"1\n", "Crash", OF),
            (Content::DebugCrash, b"0x10", "Crash", OF),
        ] {
            let asked = written("running", content, bytes);
            assert_eq!(asked, Ok(format!("io.rprocd.{call} {parameters}")));
        }
        let asked = written("offline", Content::Firmware, b"b.elf\nrest\n");
        let expected = r#"io.rprocd.SetFirmware {"core":"m0","firmware":"b.elf"}"#;
        assert_eq!(asked.as_deref(), Ok(expected));
        let asked = written("running", Content::DebugCoredump, b"i");
        let expected = r#"io.rprocd.SetCoredump {"core":"m0","mode":"inline"}"#;
        assert_eq!(asked.as_deref(), Ok(expected));
        let asked = written("running", Content::Recovery, b"disabled");
        let expected = r#"io.rprocd.SetRecovery {"core":"m0","enabled":false}"#;
        assert_eq!(asked.as_deref(), Ok(expected));
    }

    #[test]
    fn junk_is_refused_before_anything_is_asked() {
        for (state, content, bytes, errno) in [
            ("running", Content::State, &b"go"[..], Errno::INVAL),
            ("running", Content::State, b"", Errno::INVAL),
            ("running", Content::State, b"start\n\n", Errno::INVAL),
            ("running", Content::State, &[b's'; 4097], Errno::INVAL),
            ("offline", Content::Firmware, b"\n", Errno::INVAL),
            ("offline", Content::Firmware, b"\xff", Errno::INVAL),
            ("running", Content::Firmware, b"\n", Errno::BUSY),
            ("running", Content::Firmware, b"b.elf", Errno::BUSY),
            ("running", Content::Coredump, b"default", Errno::INVAL),
            ("crashed", Content::Coredump, b"default", Errno::BUSY),
            ("crashed", Content::Coredump, b"inline", Errno::BUSY),
            ("running", Content::Recovery, b"on", Errno::INVAL),
            (
                "running",
                Content::DebugRecovery,
                b"enabled\n\0\0\0",
                Errno::INVAL,
            ),
            ("running", Content::DebugCrash, b"now", Errno::INVAL),
            ("running", Content::DebugCrash, b"4294967296", Errno::RANGE),
            ("running", Content::Name, b"m1", Errno::INVAL),
        ] {
            let asked = written(state, content, bytes);
            assert_eq!(asked, Err(errno), "{state} {content:?} {bytes:?}");
        }
    }

    #[test]
    fn a_refusal_is_told_by_the_state() {
        for (state, content, word, errno) in [
            ("running", Content::State, "start", Some(Errno::BUSY)),
            ("attached", Content::State, "start", Some(Errno::BUSY)),
            ("suspended", Content::State, "start", Some(Errno::BUSY)),
            ("offline", Content::State, "start", Some(Errno::IO)),
            ("offline", Content::State, "stop", Some(Errno::INVAL)),
            ("detached", Content::State, "stop", Some(Errno::INVAL)),
            ("running", Content::State, "detach", Some(Errno::INVAL)),
            ("offline", Content::Firmware, "b.elf", Some(Errno::INVAL)),
            ("running", Content::Recovery, "recover", None),
            ("crashed", Content::Recovery, "recover", Some(Errno::IO)),
            ("offline", Content::DebugCrash, "1", None),
            (
                "running",
                Content::Coredump,
                "inline",
                Some(Errno::OPNOTSUPP),
            ),
        ] {
            let result = refused(state, content, word.as_bytes());
            assert_eq!(result.err(), errno, "{state} {content:?} {word}");
        }
    }

    #[test]
    fn who_cannot_be_asked_has_an_errno_too() {
        let unreachable = |kind: std::io::ErrorKind| CallError::Unreachable {
            path: "/run/none".into(),
            source: kind.into(),
        };
        for (cause, errno) in [
            (unreachable(std::io::ErrorKind::NotFound), Errno::NODEV),
            (
                unreachable(std::io::ErrorKind::PermissionDenied),
                Errno::ACCESS,
            ),
            (CallError::HungUp, Errno::IO),
            (CallError::NoSuchCore("m0".into()), Errno::NODEV),
            (CallError::Denied("monitor".into()), Errno::ACCESS),
        ] {
            let refusal = Refusal::from(cause);
            assert_eq!(refusal.errno, errno);
            assert!(refusal.why.is_some());
        }
    }
}
