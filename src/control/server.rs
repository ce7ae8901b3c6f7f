//! The listener, the clients, and the answers.
//!
//! What belongs here: one subscriber of the daemon's event loop that holds all of the control
//! socket. What does not: anything that takes long; the loop waits for it.

use std::collections::{BTreeSet, HashMap};
use std::error::Error;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use log::{debug, error, info, warn};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::codec::Codec;
use super::trace::{MAX_TRACE_BYTES, TracePiece};
use super::{INTERFACE, INTERFACE_NAME};
use crate::firmware::Snapshot;
use crate::report::sentence;
use crate::rproc::{Core, Holder};
use crate::vdev::{SessionError, bind};

/// Clients at one time; one more is hung up on.
pub const MAX_CLIENTS: usize = 16;
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
        let Caller { number, holds } = caller;
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
    /// Answers not yet written.
    output: Vec<u8>,
}

/// The control socket. Dropping it removes the socket and ends the connections.
pub struct ControlServer {
    path: PathBuf,
    listener: UnixListener,
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
    /// Listens on `path`, for what can be asked of `cores`. Another firmware for one of them is a
    /// file in `firmware_directory`.
    ///
    /// # Errors
    /// [`SessionError`], as for the socket of a vdev.
    pub fn new(
        path: &Path,
        cores: Arc<Vec<Core>>,
        firmware_directory: &Path,
    ) -> Result<Self, SessionError> {
        let listener = bind(path)?;
        listener
            .set_nonblocking(true)
            .map_err(|source| SessionError::Bind {
                path: path.to_owned(),
                source,
            })?;
        Ok(Self {
            path: path.to_owned(),
            listener,
            service: Service {
                cores,
                firmware_directory: firmware_directory.to_owned(),
            },
            clients: HashMap::new(),
            connections: 0,
        })
    }

    fn accept(&mut self, ops: &mut EventOps<'_>) {
        let stream = match self.listener.accept() {
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
                debug!("control connection {number}: begins");
                let client = Client {
                    caller: Caller {
                        number,
                        holds: BTreeSet::new(),
                    },
                    stream,
                    codec: Codec::default(),
                    output: Vec::new(),
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
        let _ = fs::remove_file(&self.path);
    }
}

impl MutEventSubscriber for ControlServer {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(cause) = ops.add(Events::new(&self.listener, EventSet::IN)) {
            error!("control: the socket cannot be served: {cause}");
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.fd() == self.listener.as_raw_fd() {
            self.accept(ops);
        } else {
            self.serve(events.fd(), ops);
        }
    }
}

/// Reads what a client says, if its answers have been taken, and writes answers. An error ends
/// the connection.
fn converse(client: &mut Client, service: &Service) -> io::Result<()> {
    if client.output.is_empty() {
        let mut bytes = [0u8; 4096];
        match client.stream.read(&mut bytes) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(len) => {
                for message in client.codec.push(&bytes[..len]).map_err(io::Error::other)? {
                    let answer = answer(&message, service, &mut client.caller)?;
                    client.output.extend_from_slice(&answer);
                }
            }
            Err(cause) if cause.kind() == ErrorKind::WouldBlock => {}
            Err(cause) => return Err(cause),
        }
    }
    while !client.output.is_empty() {
        match client.stream.write(&client.output) {
            Ok(len) => drop(client.output.drain(..len)),
            Err(cause) if cause.kind() == ErrorKind::WouldBlock => break,
            Err(cause) => return Err(cause),
        }
    }
    Ok(())
}

/// The bytes of the answer to one message; none for a call that wants none. A message that is no
/// call at all ends the connection, since Varlink has no answer to it.
fn answer(message: &[u8], service: &Service, caller: &mut Caller) -> io::Result<Vec<u8>> {
    let call: Call = serde_json::from_slice(message)
        .map_err(|cause| io::Error::other(format!("a message is no Varlink call: {cause}")))?;
    let answer = match perform(&call, service, caller) {
        Ok(parameters) => json!({ "parameters": parameters }),
        Err(Refusal(error, parameters)) => json!({ "error": error, "parameters": parameters }),
    };
    if call.oneway {
        return Ok(Vec::new());
    }
    let mut bytes = answer.to_string().into_bytes();
    bytes.push(0);
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
    let number = caller.number;
    info!(
        "control connection {number}: {} {}",
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
