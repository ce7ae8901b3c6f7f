//! What the methods do: from a call to what a core is asked, and back to an answer.
//!
//! What belongs here: parameters, answers, and who may ask. What does not: sockets, and on which
//! thread this runs; some of it waits for a core, so that is not the event loop's.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use log::{info, warn};
use rustix::fs::{Mode as FileMode, OFlags};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::access::{Access, Class, class, is_known};
use super::trace::{MAX_TRACE_BYTES, TracePiece};
use super::{INTERFACE, INTERFACE_NAME};
use crate::config::Config;
use crate::coredump::Mode;
use crate::firmware::Snapshot;
use crate::report::sentence;
use crate::rproc::{Core, EventLog, Excerpt, Holder, RequestError, check};

/// The interface that every Varlink service has.
const SERVICE_INTERFACE: &str = "org.varlink.service";
const SERVICE_DESCRIPTION: &str = "# What every Varlink service answers.
interface org.varlink.service
method GetInfo() -> (
  vendor: string, product: string, version: string, url: string, interfaces: []string
)
method GetInterfaceDescription(interface: string) -> (description: string)
error InterfaceNotFound (interface: string)
error MethodNotFound (method: string)
error MethodNotImplemented (method: string)
error InvalidParameter (parameter: string)
";
/// Events in one answer.
const MAX_EVENTS: usize = 128;
/// Names of firmware files in one answer.
const MAX_FIRMWARE_FILES: usize = 1024;

/// What is asked about.
pub struct Service {
    /// The cores, in the order of the configuration.
    pub cores: Arc<Vec<Core>>,
    /// Where they tell what happens to them.
    pub events: Arc<EventLog>,
    /// Where another firmware is looked for.
    pub firmware_directory: PathBuf,
}

/// A connection, as the cores know it.
pub(super) struct Caller {
    /// Counted from 1.
    pub(super) number: u64,
    /// Who it was when it connected: "pid 12, uid 0".
    pub(super) identity: String,
    pub(super) access: Access,
    /// The cores that it has started for as long as it is there, by their places.
    pub(super) holds: BTreeSet<usize>,
}

impl Caller {
    fn holder(&self) -> Holder {
        Holder::Connection {
            number: self.number,
        }
    }
}

/// What a client wants.
#[derive(Deserialize)]
pub(super) struct Call {
    pub(super) method: String,
    #[serde(default)]
    parameters: Value,
    #[serde(default)]
    pub(super) oneway: bool,
    #[serde(default)]
    pub(super) more: bool,
    /// Descriptors that came with it.
    #[serde(skip)]
    pub(super) fds: Vec<OwnedFd>,
}

/// What an answer says, and descriptors that go with it.
#[derive(Default)]
pub(super) struct Said {
    pub(super) parameters: Value,
    pub(super) fds: Vec<OwnedFd>,
}

impl From<Value> for Said {
    fn from(parameters: Value) -> Self {
        Self {
            parameters,
            fds: Vec::new(),
        }
    }
}

/// An answer that is an error: its name and parameters.
pub(super) struct Refusal(pub(super) String, pub(super) Value);

/// Answers that go on until the client hangs up.
pub(super) enum Stream {
    Events {
        core: Option<String>,
        next: u64,
        /// The first answer comes at once, whatever has happened.
        begun: bool,
    },
    Trace {
        /// The core's place.
        place: usize,
        since: Vec<u64>,
        /// [`Core::looks_with_text`] when it was last asked.
        seen: Option<u64>,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoParameters {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CoreParameters {
    core: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct StartParameters {
    core: String,
    while_connected: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecoveryParameters {
    core: String,
    enabled: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModeParameters {
    core: String,
    mode: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DumpParameters {
    core: String,
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct FirmwareParameters {
    core: String,
    firmware: Option<String>,
    file_descriptor: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TraceParameters {
    core: String,
    since: Option<Vec<u64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventParameters {
    core: Option<String>,
    since: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TextParameters {
    text: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DescriptionParameters {
    interface: String,
}

impl Service {
    /// A connection is over, and holds nothing any more.
    pub(super) fn release(&self, caller: &mut Caller) {
        let number = caller.number;
        let holds = std::mem::take(&mut caller.holds);
        for core in holds.into_iter().filter_map(|it| self.cores.get(it)) {
            info!(
                "control connection {number}: gone, lets go of {}",
                core.name()
            );
            if let Err(cause) = core.release(caller.holder()) {
                warn!("{}", sentence(&cause));
            }
        }
    }

    /// Is the caller allowed what it asks?
    ///
    /// # Errors
    /// A refusal, which has been logged.
    pub(super) fn admit(&self, call: &Call, caller: &Caller) -> Result<(), Refusal> {
        if caller.access == Access::Control || class(&call.method) == Class::Observe {
            return Ok(());
        }
        let Caller {
            number, identity, ..
        } = caller;
        warn!(
            "control connection {number} ({identity}): {} is refused: the socket is for looking",
            call.method.escape_debug()
        );
        Err(Refusal(
            format!("{INTERFACE_NAME}.Denied"),
            json!({
                "method": call.method,
                "reason": "this socket is for looking only; changes are made through the control \
                           socket",
            }),
        ))
    }

    /// Answers a call that waits for nobody; `None` for one that may.
    pub(super) fn perform_at_once(&self, call: &Call) -> Option<Result<Said, Refusal>> {
        let answer = match call.method.as_str() {
            "io.rprocd.Events" => self.events(call),
            "io.rprocd.CheckConfig" => check_config(call),
            "org.varlink.service.GetInfo" => get_info(call),
            "org.varlink.service.GetInterfaceDescription" => describe(call),
            known if is_known(known) => return None,
            other => Err(Refusal(
                format!("{SERVICE_INTERFACE}.MethodNotFound"),
                json!({ "method": other }),
            )),
        };
        Some(answer.map(Into::into))
    }

    /// Does the call want answers that go on? They have no end of their own.
    ///
    /// # Errors
    /// A refusal.
    pub(super) fn stream(&self, call: &Call) -> Result<Option<Stream>, Refusal> {
        if !call.more {
            return Ok(None);
        }
        match call.method.as_str() {
            "io.rprocd.Events" => {
                let EventParameters { core, since } = parameters(call)?;
                if let Some(core) = &core {
                    self.place(core)?;
                }
                Ok(Some(Stream::Events {
                    core,
                    next: since.unwrap_or_else(|| self.events.next()),
                    begun: false,
                }))
            }
            "io.rprocd.Trace" => {
                let TraceParameters { core, since } = parameters(call)?;
                Ok(Some(Stream::Trace {
                    place: self.place(&core)?,
                    since: since.unwrap_or_default(),
                    seen: None,
                }))
            }
            _ => Ok(None),
        }
    }

    /// The core whose events tell how a change goes on, if the call wants to hear.
    pub(super) fn progress_of(&self, call: &Call) -> Option<String> {
        let changes = class(&call.method) != Class::Observe;
        let core = call.parameters.get("core").and_then(Value::as_str);
        core.filter(|_| call.more && changes).map(str::to_owned)
    }

    /// Answers any other call; this may wait for a core.
    pub(super) fn perform(&self, call: &mut Call, caller: &mut Caller) -> Result<Said, Refusal> {
        let fds = std::mem::take(&mut call.fds);
        let call = &*call;
        let answer = match call.method.as_str() {
            "io.rprocd.List" => {
                let NoParameters {} = parameters(call)?;
                // In this order, what happens in between is told twice and not never.
                let next = self.events.next();
                let cores: Vec<_> = self.cores.iter().map(Core::status).collect();
                json!({ "cores": cores, "nextEvent": next })
            }
            "io.rprocd.Trace" => {
                let TraceParameters { core, since } = parameters(call)?;
                json!({ "buffers": self.trace(self.place(&core)?, since.unwrap_or_default()) })
            }
            "io.rprocd.Memory" => json!({ "regions": self.core(call)?.regions() }),
            "io.rprocd.Resources" => json!({ "entries": self.core(call)?.resources() }),
            "io.rprocd.Coredumps" => coredumps(self.core(call)?)?,
            "io.rprocd.OpenCoredump" => {
                let DumpParameters { core, name } = parameters(call)?;
                return open_coredump(self.named(&core)?, &name);
            }
            "io.rprocd.FirmwareFiles" => {
                let NoParameters {} = parameters(call)?;
                json!({ "files": firmware_files(&self.firmware_directory) })
            }
            "io.rprocd.CheckFirmware" => self.check_firmware(call, fds)?,
            "io.rprocd.Start" => self.start(call, caller)?,
            "io.rprocd.Stop" => change(call, caller, self.core(call)?, Core::stop)?,
            "io.rprocd.Attach" => change(call, caller, self.core(call)?, Core::attach)?,
            "io.rprocd.Detach" => change(call, caller, self.core(call)?, Core::detach)?,
            "io.rprocd.Suspend" => change(call, caller, self.core(call)?, Core::suspend)?,
            "io.rprocd.Resume" => change(call, caller, self.core(call)?, Core::resume)?,
            "io.rprocd.Recover" => change(call, caller, self.core(call)?, Core::recover)?,
            "io.rprocd.Crash" => change(call, caller, self.core(call)?, Core::inject_crash)?,
            "io.rprocd.SetRecovery" => {
                let RecoveryParameters { core, enabled } = parameters(call)?;
                let core = self.named(&core)?;
                change(call, caller, core, |core| core.set_recovery(enabled))?
            }
            "io.rprocd.SetCoredump" => {
                let ModeParameters { core, mode } = parameters(call)?;
                let core = self.named(&core)?;
                let mode: Mode = mode.parse().map_err(|cause| refused(core, &cause))?;
                change(call, caller, core, |core| core.set_coredump(mode))?
            }
            "io.rprocd.SetFirmware" => {
                let FirmwareParameters { core, firmware, .. } = parameters(call)?;
                let core = self.named(&core)?;
                let Some(name) = firmware else {
                    return Err(invalid("firmware: the file's name is missing"));
                };
                change(call, caller, core, |core| -> Result<(), Box<dyn Error>> {
                    let snapshot = self.snapshot(call, Some(&name), fds)?;
                    Ok(core.set_firmware(snapshot)?)
                })?
            }
            // Every method of the interface is above, or waits for nobody.
            other => {
                let error = format!("{SERVICE_INTERFACE}.MethodNotImplemented");
                return Err(Refusal(error, json!({ "method": other })));
            }
        };
        Ok(answer.into())
    }

    fn place(&self, name: &str) -> Result<usize, Refusal> {
        let found = self.cores.iter().position(|core| core.name() == name);
        found.ok_or_else(|| {
            Refusal(
                format!("{INTERFACE_NAME}.NoSuchCore"),
                json!({ "core": name }),
            )
        })
    }

    /// The core of a name.
    fn named(&self, name: &str) -> Result<&Core, Refusal> {
        self.place(name).map(|place| &self.cores[place])
    }

    /// The core that a call is about, and nothing else.
    fn core(&self, call: &Call) -> Result<&Core, Refusal> {
        let CoreParameters { core } = parameters(call)?;
        self.named(&core)
    }

    /// A start for the operator, or for as long as the connection is there.
    fn start(&self, call: &Call, caller: &mut Caller) -> Result<Value, Refusal> {
        let StartParameters {
            core,
            while_connected,
        } = parameters(call)?;
        let place = self.place(&core)?;
        let core = &self.cores[place];
        if while_connected != Some(true) {
            return change(call, caller, core, |core| core.start(Holder::Operator));
        }
        let holder = caller.holder();
        let started = change(call, caller, core, |core| core.start(holder))?;
        caller.holds.insert(place);
        Ok(started)
    }

    fn events(&self, call: &Call) -> Result<Value, Refusal> {
        let EventParameters { core, since } = parameters(call)?;
        if let Some(core) = &core {
            self.place(core)?;
        }
        Ok(excerpt(&self.excerpt(core.as_deref(), since)))
    }

    /// The next events, of one core or of all.
    pub(super) fn excerpt(&self, core: Option<&str>, since: Option<u64>) -> Excerpt {
        let mut excerpt = self.events.since(since, MAX_EVENTS);
        if let Some(core) = core {
            excerpt.events.retain(|event| event.core == core);
        }
        excerpt
    }

    /// What follows in the trace buffers of a core.
    fn trace(&self, place: usize, since: Vec<u64>) -> Vec<TracePiece> {
        let pieces = self.cores[place].traces(since, MAX_TRACE_BYTES);
        pieces.into_iter().map(TracePiece::new).collect()
    }

    /// May there be something for one who follows a trace? That waits for nobody.
    pub(super) fn has_new(&self, stream: &Stream) -> bool {
        match stream {
            Stream::Events { next, .. } => self.events.next() > *next,
            Stream::Trace { place, seen, .. } => {
                *seen != Some(self.cores[*place].looks_with_text())
            }
        }
    }

    /// What is new for one who follows a trace; the first answer comes whether or not something is.
    pub(super) fn follow(
        &self,
        place: usize,
        since: Vec<u64>,
        seen: Option<u64>,
    ) -> (Option<Said>, Stream) {
        let looks = self.cores[place].looks_with_text();
        let buffers = self.trace(place, since);
        let says = |it: &TracePiece| !it.text.is_empty() || it.lost > 0 || it.overruns > 0;
        let any = buffers.iter().any(says);
        let all = buffers.iter().all(|it| it.next >= it.end);
        let stream = Stream::Trace {
            place,
            since: buffers.iter().map(|it| it.next).collect(),
            // What did not fit is asked for at once.
            seen: (all || !any).then_some(looks),
        };
        let answer = (any || seen.is_none()).then(|| json!({ "buffers": buffers }).into());
        (answer, stream)
    }

    /// The firmware that a call is about: a file of that name in the firmware directory, or what
    /// came with the call.
    fn snapshot(
        &self,
        call: &Call,
        name: Option<&str>,
        mut fds: Vec<OwnedFd>,
    ) -> Result<Snapshot, Box<dyn Error>> {
        let FirmwareParameters {
            file_descriptor, ..
        } = parameters(call).map_err(|Refusal(error, _)| error)?;
        let name = name.unwrap_or("firmware");
        let Some(place) = file_descriptor else {
            return Ok(Snapshot::read(&self.firmware_directory, name)?);
        };
        if place >= fds.len() {
            let came = fds.len();
            return Err(format!(
                "fileDescriptor is {place}, and {came} came with the call; they are counted from 0"
            )
            .into());
        }
        Ok(Snapshot::from_file(
            name,
            File::from(fds.swap_remove(place)),
        )?)
    }

    fn check_firmware(&self, call: &Call, fds: Vec<OwnedFd>) -> Result<Value, Refusal> {
        let FirmwareParameters {
            core,
            firmware,
            file_descriptor,
        } = parameters(call)?;
        if firmware.is_none() && file_descriptor.is_none() {
            return Err(invalid("firmware or fileDescriptor: one of them is needed"));
        }
        let core = self.named(&core)?;
        let snapshot = self.snapshot(call, firmware.as_deref(), fds);
        let snapshot = snapshot.map_err(|cause| refused(core, &*cause))?;
        let report = check(&snapshot, &core.check_options());
        let report = report.map_err(|cause| refused(core, &cause))?;
        Ok(json!({
            "accepted": report.refusal().is_none(),
            "report": report.to_string(),
        }))
    }
}

/// An answer to `Events`.
pub(super) fn excerpt(excerpt: &Excerpt) -> Value {
    let Excerpt { events, lost, next } = excerpt;
    json!({ "events": events, "lost": lost, "next": next })
}

fn parameters<T: DeserializeOwned>(call: &Call) -> Result<T, Refusal> {
    let given = if call.parameters.is_null() {
        json!({})
    } else {
        call.parameters.clone()
    };
    T::deserialize(given).map_err(|cause| invalid(&cause.to_string()))
}

fn invalid(what: &str) -> Refusal {
    Refusal(
        format!("{SERVICE_INTERFACE}.InvalidParameter"),
        json!({ "parameter": what }),
    )
}

fn refused(core: &Core, cause: &(dyn Error + 'static)) -> Refusal {
    let error = match cause.downcast_ref() {
        Some(RequestError::AlreadySo { .. }) => "AlreadySo",
        _ => "Refused",
    };
    Refusal(
        format!("{INTERFACE_NAME}.{error}"),
        json!({ "core": core.name(), "reason": sentence(cause) }),
    )
}

/// Changes a core, as a method wants it.
fn change<E: Into<Box<dyn Error>>>(
    call: &Call,
    caller: &Caller,
    core: &Core,
    verb: impl FnOnce(&Core) -> Result<(), E>,
) -> Result<Value, Refusal> {
    let Caller {
        number, identity, ..
    } = caller;
    info!(
        "control connection {number} ({identity}): {} {}",
        call.method,
        core.name()
    );
    let changed = verb(core).map(|()| json!({}));
    changed.map_err(|cause| refused(core, &*cause.into()))
}

/// The names of the files in the firmware directory, in order. A directory that cannot be read has
/// none: who names a file of it is told why.
fn firmware_files(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .filter(|it| fs::metadata(it.path()).is_ok_and(|it| it.is_file()))
        .filter_map(|it| it.file_name().into_string().ok())
        .take(MAX_FIRMWARE_FILES)
        .collect();
    names.sort_unstable();
    names
}

fn coredumps(core: &Core) -> Result<Value, Refusal> {
    let dumps = core.coredumps().map_err(|cause| refused(core, &cause))?;
    let dumps: Vec<_> = dumps
        .iter()
        .filter_map(|dump| {
            // It may be removed at any time, for a newer one.
            let time = fs::metadata(&dump.path).and_then(|it| it.modified()).ok()?;
            let time = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            Some(json!({
                "name": file_name(&dump.path),
                "incarnation": dump.incarnation,
                "bytes": dump.bytes,
                "time": u64::try_from(time.as_micros()).unwrap_or(u64::MAX),
                "complete": !dump.partial,
            }))
        })
        .collect();
    Ok(json!({ "dumps": dumps }))
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn open_coredump(core: &Core, name: &str) -> Result<Said, Refusal> {
    let dumps = core.coredumps().map_err(|cause| refused(core, &cause))?;
    let Some(dump) = dumps.iter().find(|dump| file_name(&dump.path) == name) else {
        let cause = format!(
            "core {} has no coredump {name:?}; `rprocctl coredump list` shows those that there are, and \
             the oldest go when there are too many",
            core.name()
        );
        return Err(refused(core, &*Box::<dyn Error>::from(cause)));
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(&dump.path, flags, FileMode::empty());
    Ok(Said {
        parameters: json!({ "fileDescriptor": 0 }),
        fds: vec![file.map_err(|cause| refused(core, &cause))?],
    })
}

fn check_config(call: &Call) -> Result<Value, Refusal> {
    let TextParameters { text } = parameters(call)?;
    Ok(match Config::parse(&text, Path::new("rprocd.toml")) {
        Ok(config) => {
            let cores: Vec<_> = config.cores.into_iter().map(|core| core.name).collect();
            json!({ "cores": cores })
        }
        Err(cause) => json!({ "cores": [], "problem": sentence(&cause) }),
    })
}

fn get_info(call: &Call) -> Result<Value, Refusal> {
    let NoParameters {} = parameters(call)?;
    Ok(json!({
        "vendor": "rprocd",
        "product": "rprocd",
        "version": env!("CARGO_PKG_VERSION"),
        "url": "",
        "interfaces": [SERVICE_INTERFACE, INTERFACE_NAME],
    }))
}

fn describe(call: &Call) -> Result<Value, Refusal> {
    let DescriptionParameters { interface } = parameters(call)?;
    let description = match interface.as_str() {
        INTERFACE_NAME => INTERFACE,
        SERVICE_INTERFACE => SERVICE_DESCRIPTION,
        _ => {
            return Err(Refusal(
                format!("{SERVICE_INTERFACE}.InterfaceNotFound"),
                json!({ "interface": interface }),
            ));
        }
    };
    Ok(json!({ "description": description }))
}
