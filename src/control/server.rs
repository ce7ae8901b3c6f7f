//! The listener, the clients, and the answers.
//!
//! What belongs here: one subscriber of the daemon's event loop that holds all of the control
//! socket. What does not: anything that takes long; the loop waits for it.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::error::Error;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use log::{debug, error, info, warn};
use rustix::net::sockopt::socket_peercred;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::access::{Access, Class, class};
use super::codec::{Codec, CodecError, Message};
use super::trace::{MAX_TRACE_BYTES, TracePiece};
use super::{INTERFACE, INTERFACE_NAME};
use crate::firmware::Snapshot;
use crate::report::sentence;
use crate::rproc::{Core, Holder};
use crate::vdev::{Permissions, SessionError, bind};

/// Clients at one time; one more is hung up on.
pub const MAX_CLIENTS: usize = 16;
/// How long a message may take from its first byte to its last.
pub const MESSAGE_PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of answers that wait for a client, beyond which its calls wait too.
const MAX_OUTPUT_BYTES: usize = 256 << 10;
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

/// A connection, as the cores know it.
struct Caller {
    /// Counted from 1.
    number: u64,
    /// Who it was when it connected: "pid 12, uid 0".
    identity: String,
    access: Access,
    /// The cores that it has started for as long as it is there, by their places.
    holds: BTreeSet<usize>,
}

impl Caller {
    fn holder(&self) -> Holder {
        Holder::Connection {
            number: self.number,
        }
    }
}

/// What is asked.
struct Service {
    cores: Arc<Vec<Core>>,
    /// Where another firmware is looked for.
    firmware_directory: PathBuf,
}

impl Service {
    /// A connection is over, and holds nothing any more.
    fn release(&self, caller: &Caller) {
        let Caller { number, holds, .. } = caller;
        debug!("control connection {number}: gone");
        for core in holds.iter().filter_map(|place| self.cores.get(*place)) {
            info!(
                "control connection {number}: gone, lets go of {}",
                core.name()
            );
            if let Err(cause) = core.release(caller.holder()) {
                error!("{}", sentence(&cause));
            }
        }
    }
}

struct Client {
    caller: Caller,
    stream: UnixStream,
    codec: Codec,
    /// Calls not yet answered.
    calls: VecDeque<Message>,
    /// Answers not yet written.
    output: Vec<u8>,
    /// What it said last cannot be read; it is hung up on when it has its answers.
    fault: Option<CodecError>,
    /// When the message that it is in the middle of began.
    begun: Option<Instant>,
}

/// A socket that operators connect to.
struct Door {
    path: PathBuf,
    listener: UnixListener,
    access: Access,
}

impl Door {
    fn open(path: &Path, permissions: &Permissions, access: Access) -> Result<Self, SessionError> {
        let listener = bind(path, permissions)?;
        listener
            .set_nonblocking(true)
            .map_err(|source| SessionError::Bind {
                path: path.to_owned(),
                source,
            })?;
        Ok(Self {
            path: path.to_owned(),
            listener,
            access,
        })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The control socket, and the one for those who only look. Dropping it removes them and ends the
/// connections.
pub struct ControlServer {
    doors: Vec<Door>,
    /// Runs out when a message has taken too long.
    timer: OwnedFd,
    patience: Duration,
    service: Service,
    clients: HashMap<i32, Client>,
    /// Connections so far.
    connections: u64,
}

#[derive(Deserialize)]
struct Call {
    method: String,
    #[serde(default)]
    parameters: Value,
    #[serde(default)]
    oneway: bool,
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
struct FirmwareParameters {
    core: String,
    firmware: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TraceParameters {
    core: String,
    since: Option<Vec<u64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DescriptionParameters {
    interface: String,
}

/// An answer that is an error: its name and parameters.
struct Refusal(String, Value);

impl ControlServer {
    /// Listens on `path`, for what can be asked of `cores` by those who have the permission. Another
    /// firmware for one of them is a file in `firmware_directory`.
    ///
    /// # Errors
    /// [`SessionError`], as for the socket of a vdev.
    pub fn new(
        path: &Path,
        permissions: &Permissions,
        cores: Arc<Vec<Core>>,
        firmware_directory: &Path,
    ) -> Result<Self, SessionError> {
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )
        .map_err(|cause| SessionError::Bind {
            path: path.to_owned(),
            source: cause.into(),
        })?;
        Ok(Self {
            doors: vec![Door::open(path, permissions, Access::Control)?],
            timer,
            patience: MESSAGE_PATIENCE,
            service: Service {
                cores,
                firmware_directory: firmware_directory.to_owned(),
            },
            clients: HashMap::new(),
            connections: 0,
        })
    }

    /// Listens on `path` too, for those who may look and change nothing.
    ///
    /// # Errors
    /// [`SessionError`], as for the first socket.
    pub fn with_monitor(
        mut self,
        path: &Path,
        permissions: &Permissions,
    ) -> Result<Self, SessionError> {
        let door = Door::open(path, permissions, Access::Monitor)?;
        self.doors.push(door);
        Ok(self)
    }

    /// Another time than [`MESSAGE_PATIENCE`].
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    fn accept(&mut self, door: usize, ops: &mut EventOps<'_>) {
        let Door {
            listener, access, ..
        } = &self.doors[door];
        let access = *access;
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(cause) => {
                debug!("control: accept: {cause}");
                return;
            }
        };
        if self.clients.len() == MAX_CLIENTS {
            warn!("control: a client is refused: {MAX_CLIENTS} are connected");
            return;
        }
        let fd = stream.as_raw_fd();
        let added = stream
            .set_nonblocking(true)
            .map_err(|cause| cause.to_string())
            .and_then(|()| {
                ops.add(Events::new(&stream, EventSet::IN))
                    .map_err(|cause| cause.to_string())
            });
        match added {
            Ok(()) => {
                self.connections += 1;
                let number = self.connections;
                let identity = identity(&stream);
                debug!("control connection {number} ({identity}): begins");
                let client = Client {
                    caller: Caller {
                        number,
                        identity,
                        access,
                        holds: BTreeSet::new(),
                    },
                    stream,
                    codec: Codec::default(),
                    calls: VecDeque::new(),
                    output: Vec::new(),
                    fault: None,
                    begun: None,
                };
                self.clients.insert(fd, client);
            }
            Err(cause) => error!("control: a client cannot be served: {cause}"),
        }
    }

    fn serve(&mut self, fd: i32, ops: &mut EventOps<'_>) {
        let Some(client) = self.clients.get_mut(&fd) else {
            return;
        };
        let number = client.caller.number;
        if let Err(cause) = converse(client, &self.service) {
            if cause.kind() != ErrorKind::UnexpectedEof {
                debug!("control connection {number}: is hung up on: {cause}");
            }
            self.hang_up(fd, ops);
            return;
        }
        self.set_timer();
        let Some(client) = self.clients.get(&fd) else {
            return;
        };
        // Nothing more is read from a client that does not take its answers.
        let wanted = if client.output.is_empty() {
            EventSet::IN
        } else {
            EventSet::OUT
        };
        if let Err(cause) = ops.modify(Events::new(&client.stream, wanted)) {
            error!("control connection {number}: cannot be served any more: {cause}");
            self.hang_up(fd, ops);
        }
    }

    /// Has the timer run out when the next message has taken too long.
    fn set_timer(&mut self) {
        let begun = self.clients.values().filter_map(|it| it.begun).min();
        // All zeroes stop it, so it runs for a nanosecond at least.
        let left = begun.map(|begun| {
            let left = self.patience.saturating_sub(begun.elapsed());
            left.max(Duration::from_nanos(1))
        });
        let set = Timespec::try_from(left.unwrap_or_default()).map_err(io::Error::other);
        let set = set.and_then(|it_value| {
            let it_interval = Timespec::default();
            let value = Itimerspec {
                it_interval,
                it_value,
            };
            Ok(timerfd_settime(
                &self.timer,
                TimerfdTimerFlags::empty(),
                &value,
            )?)
        });
        if let Err(cause) = set {
            error!("control: messages may take for ever: {cause}");
        }
    }

    /// Hangs up on those whose message takes too long.
    fn end_messages(&mut self, ops: &mut EventOps<'_>) {
        let patience = self.patience;
        let late = |client: &Client| {
            let begun = client.begun?;
            (begun.elapsed() >= patience).then_some(client.caller.number)
        };
        let late: Vec<_> = self
            .clients
            .iter()
            .filter_map(|(fd, client)| Some((*fd, late(client)?)))
            .collect();
        for (fd, number) in late {
            warn!(
                "control connection {number}: is hung up on: its message has not ended after \
                 {patience:?}"
            );
            self.hang_up(fd, ops);
        }
        self.set_timer();
    }

    fn hang_up(&mut self, fd: i32, ops: &mut EventOps<'_>) {
        if let Some(client) = self.clients.remove(&fd) {
            let _ = ops.remove(Events::empty(&client.stream));
            // A client that has asked for the end and waits for ours knows that it is done.
            self.service.release(&client.caller);
        }
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        for client in self.clients.values() {
            self.service.release(&client.caller);
        }
    }
}

impl MutEventSubscriber for ControlServer {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let doors = self.doors.iter().map(|door| door.listener.as_raw_fd());
        for fd in doors.chain([self.timer.as_raw_fd()]) {
            if let Err(cause) = ops.add(Events::new_raw(fd, EventSet::IN)) {
                error!("control: the socket cannot be served: {cause}");
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let fd = events.fd();
        let door = |door: &Door| door.listener.as_raw_fd() == fd;
        if let Some(door) = self.doors.iter().position(door) {
            self.accept(door, ops);
        } else if fd == self.timer.as_raw_fd() {
            self.end_messages(ops);
        } else {
            self.serve(fd, ops);
        }
    }
}

/// Who is at the other end, as the kernel has it.
fn identity(stream: &UnixStream) -> String {
    match socket_peercred(stream) {
        Ok(peer) => format!(
            "pid {}, uid {}",
            peer.pid.as_raw_nonzero(),
            peer.uid.as_raw()
        ),
        Err(cause) => format!("of nobody knows whom: {cause}"),
    }
}

/// Answers what a client has asked, reads what it says now if its answers have been taken, and
/// answers that. An error ends the connection.
fn converse(client: &mut Client, service: &Service) -> io::Result<()> {
    reply(client, service)?;
    if !client.output.is_empty() {
        return Ok(());
    }
    if let Some(fault) = client.fault {
        return Err(io::Error::other(fault));
    }
    let mut bytes = [0u8; 4096];
    match client.stream.read(&mut bytes) {
        Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
        Ok(len) => client.fault = client.codec.push(&bytes[..len], &mut client.calls).err(),
        Err(cause) if cause.kind() == ErrorKind::WouldBlock => {}
        Err(cause) => return Err(cause),
    }
    if !client.calls.is_empty() {
        // What it is in the middle of now is another message.
        client.begun = None;
    }
    reply(client, service)?;
    // While nothing is read from it, it cannot end its message.
    let waited_for = client.output.is_empty() && client.codec.is_within_message();
    client.begun = waited_for.then(|| client.begun.unwrap_or_else(Instant::now));
    match client.fault {
        Some(fault) if client.output.is_empty() => Err(io::Error::other(fault)),
        _ => Ok(()),
    }
}

/// Answers calls and writes answers, as long as they are taken.
fn reply(client: &mut Client, service: &Service) -> io::Result<()> {
    loop {
        while client.output.len() < MAX_OUTPUT_BYTES
            && let Some(message) = client.calls.pop_front()
        {
            let answer = answer(&message, service, &mut client.caller)?;
            client.output.extend_from_slice(&answer);
        }
        if client.output.is_empty() {
            return Ok(());
        }
        match client.stream.write(&client.output) {
            Ok(len) => drop(client.output.drain(..len)),
            Err(cause) if cause.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(cause) => return Err(cause),
        }
    }
}

/// The bytes of the answer to one message; none for a call that wants none. A message that is no
/// call at all ends the connection, since Varlink has no answer to it.
fn answer(message: &Message, service: &Service, caller: &mut Caller) -> io::Result<Vec<u8>> {
    let call: Call = serde_json::from_slice(&message.text)
        .map_err(|cause| io::Error::other(format!("a message is no Varlink call: {cause}")))?;
    let answer = match perform(&call, service, caller) {
        Ok(parameters) => json!({ "parameters": parameters }),
        Err(Refusal(error, parameters)) => json!({ "error": error, "parameters": parameters }),
    };
    if call.oneway {
        return Ok(Vec::new());
    }
    let mut bytes = answer.to_string().into_bytes();
    bytes.push(message.end.byte());
    Ok(bytes)
}

fn parameters<T: DeserializeOwned>(call: &Call) -> Result<T, Refusal> {
    let given = if call.parameters.is_null() {
        json!({})
    } else {
        call.parameters.clone()
    };
    T::deserialize(given).map_err(|cause| {
        Refusal(
            format!("{SERVICE_INTERFACE}.InvalidParameter"),
            json!({ "parameter": cause.to_string() }),
        )
    })
}

/// The core that a call is about.
fn core<'a>(call: &Call, cores: &'a [Core]) -> Result<&'a Core, Refusal> {
    let CoreParameters { core } = parameters(call)?;
    named(&core, cores)
}

/// The core of a name.
fn named<'a>(name: &str, cores: &'a [Core]) -> Result<&'a Core, Refusal> {
    place(name, cores).map(|place| &cores[place])
}

fn place(name: &str, cores: &[Core]) -> Result<usize, Refusal> {
    let found = cores.iter().position(|core| core.name() == name);
    found.ok_or_else(|| {
        Refusal(
            format!("{INTERFACE_NAME}.NoSuchCore"),
            json!({ "core": name }),
        )
    })
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
    verb(core).map(|()| json!({})).map_err(|cause| {
        Refusal(
            format!("{INTERFACE_NAME}.Refused"),
            json!({ "core": core.name(), "reason": sentence(&*cause.into()) }),
        )
    })
}

/// A start for the operator, or for as long as the connection is there.
fn start(call: &Call, cores: &[Core], caller: &mut Caller) -> Result<Value, Refusal> {
    let StartParameters {
        core,
        while_connected,
    } = parameters(call)?;
    let place = place(&core, cores)?;
    let core = &cores[place];
    if while_connected != Some(true) {
        return change(call, caller, core, |core| core.start(Holder::Operator));
    }
    let holder = caller.holder();
    let started = change(call, caller, core, |core| core.start(holder))?;
    caller.holds.insert(place);
    Ok(started)
}

fn perform(call: &Call, service: &Service, caller: &mut Caller) -> Result<Value, Refusal> {
    let cores = &service.cores[..];
    if caller.access == Access::Monitor && class(&call.method) != Class::Observe {
        let Caller {
            number, identity, ..
        } = caller;
        warn!(
            "control connection {number} ({identity}): {} is refused: the socket is for looking",
            call.method
        );
        return Err(Refusal(
            format!("{INTERFACE_NAME}.Denied"),
            json!({
                "method": call.method,
                "reason": "this socket is for looking only; changes are made through the control \
                           socket",
            }),
        ));
    }
    match call.method.as_str() {
        "io.rprocd.List" => {
            let NoParameters {} = parameters(call)?;
            let mut list = Vec::new();
            for core in cores {
                list.push(core.status());
            }
            Ok(json!({ "cores": list }))
        }
        "io.rprocd.Start" => start(call, cores, caller),
        "io.rprocd.Stop" => change(call, caller, core(call, cores)?, Core::stop),
        "io.rprocd.Attach" => change(call, caller, core(call, cores)?, Core::attach),
        "io.rprocd.Detach" => change(call, caller, core(call, cores)?, Core::detach),
        "io.rprocd.Suspend" => change(call, caller, core(call, cores)?, Core::suspend),
        "io.rprocd.Resume" => change(call, caller, core(call, cores)?, Core::resume),
        "io.rprocd.Recover" => change(call, caller, core(call, cores)?, Core::recover),
        "io.rprocd.SetRecovery" => {
            let RecoveryParameters { core, enabled } = parameters(call)?;
            let core = named(&core, cores)?;
            change(call, caller, core, |core| core.set_recovery(enabled))
        }
        "io.rprocd.SetFirmware" => {
            let FirmwareParameters { core, firmware } = parameters(call)?;
            let core = named(&core, cores)?;
            change(call, caller, core, |core| -> Result<(), Box<dyn Error>> {
                let snapshot = Snapshot::read(&service.firmware_directory, &firmware)?;
                Ok(core.set_firmware(snapshot)?)
            })
        }
        "io.rprocd.Trace" => {
            let TraceParameters { core, since } = parameters(call)?;
            let core = named(&core, cores)?;
            let buffers: Vec<_> = core
                .traces(since.unwrap_or_default(), MAX_TRACE_BYTES)
                .into_iter()
                .map(|(piece, end)| TracePiece::new(piece, end))
                .collect();
            Ok(json!({ "buffers": buffers }))
        }
        "org.varlink.service.GetInfo" => {
            let NoParameters {} = parameters(call)?;
            Ok(json!({
                "vendor": "rprocd",
                "product": "rprocd",
                "version": env!("CARGO_PKG_VERSION"),
                "url": "",
                "interfaces": [SERVICE_INTERFACE, INTERFACE_NAME],
            }))
        }
        "org.varlink.service.GetInterfaceDescription" => {
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
        other => Err(Refusal(
            format!("{SERVICE_INTERFACE}.MethodNotFound"),
            json!({ "method": other }),
        )),
    }
}
