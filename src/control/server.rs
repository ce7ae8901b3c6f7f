//! The listener, the clients, and which thread answers them.
//!
//! What belongs here: one subscriber of the daemon's event loop that holds all of the control
//! socket. What does not: what the methods do; see [`verbs`](super::verbs).
//!
//! The loop waits for nobody. A call that may wait for a core is answered by another thread; a client
//! has one such call at a time, and the next one waits. So there are enough of these threads if there
//! are as many as clients.
//!
//! A client that is told of events has no queue: when it has taken what it was given, it is given
//! what the log has then, and how much was lost. Events are told in lots: from the first of one on,
//! the log wakes nobody until it is time to tell them all.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use log::{debug, error, warn};
use rustix::fd::AsFd;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use serde_json::json;

use super::INTERFACE_NAME;
use super::access::Access;
use super::codec::{Codec, CodecError, End, Message};
use super::verbs::{Call, Caller, Refusal, Said, Service, Stream, excerpt};
use super::workers::Workers;
use crate::vdev::{SessionError, Socket};

/// Clients at one time; one more is hung up on.
pub const MAX_CLIENTS: usize = 16;
/// How long a message may take from its first byte to its last.
pub const MESSAGE_PATIENCE: Duration = Duration::from_secs(5);
/// How long events are gathered before those who watch are told: one change of a core is some
/// fifteen of them, and each telling takes a CPU from somebody, as often as there are watchers.
const EVENTS_PERIOD: Duration = Duration::from_millis(10);
/// How often those who follow a trace are told what is new in it.
const TRACE_PERIOD: Duration = Duration::from_millis(100);
/// Bytes read at a time.
const READ_BYTES: usize = 4096;
/// Descriptors that may come with a call.
const MAX_FDS: usize = 4;

/// What a thread brings back when it has answered.
struct Done {
    caller: Caller,
    /// `None` if there is nothing to say.
    answer: Option<Result<Said, Refusal>>,
    /// What goes on.
    stream: Option<Stream>,
}

/// What is done about a client's last call.
enum Work {
    /// Nothing: it is answered.
    None,
    /// A thread is at it.
    Thread {
        result: Receiver<Done>,
        end: End,
        oneway: bool,
        /// The core whose events the client is told meanwhile, and the next of them.
        progress: Option<(String, u64)>,
    },
    /// Answers go on until it hangs up.
    Stream(Stream, End),
}

struct Client {
    number: u64,
    /// While a thread has it there is none here.
    caller: Option<Caller>,
    stream: UnixStream,
    codec: Codec,
    /// Descriptors that came with a message whose end has not come.
    fds: Vec<OwnedFd>,
    /// Calls not yet answered.
    calls: VecDeque<(Message, Vec<OwnedFd>)>,
    work: Work,
    /// An answer, and descriptors that go with it, not yet written.
    output: Vec<u8>,
    output_fds: Vec<OwnedFd>,
    /// What it said last cannot be read; it is hung up on when it has its answers.
    fault: Option<CodecError>,
    /// It says no more: it is hung up on when it has its answers.
    ended: bool,
    /// When the message that it is in the middle of began.
    begun: Option<Instant>,
    /// It is hung up on, and what it held is being let go of.
    leaving: bool,
}

impl Client {
    /// Is there room for what it says next? One call at a time, but the end of the connection is
    /// to be noticed.
    fn listens(&self) -> bool {
        !self.leaving
            && !self.ended
            && self.fault.is_none()
            && self.output.is_empty()
            && self.calls.is_empty()
    }

    /// Puts an answer behind what is to be written.
    fn answer(&mut self, answer: Result<Said, Refusal>, continues: bool, end: End) {
        let answer = match answer {
            Ok(Said { parameters, fds }) => {
                self.output_fds.extend(fds);
                if continues {
                    json!({ "parameters": parameters, "continues": true })
                } else {
                    json!({ "parameters": parameters })
                }
            }
            Err(Refusal(error, parameters)) => json!({ "error": error, "parameters": parameters }),
        };
        self.output.extend_from_slice(answer.to_string().as_bytes());
        self.output.push(end.byte());
    }

    /// Writes as much as is taken.
    fn write(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            let sent = if self.output_fds.is_empty() {
                rustix::net::send(&self.stream, &self.output, SendFlags::NOSIGNAL)
            } else {
                let fds: Vec<_> = self.output_fds.iter().map(AsFd::as_fd).collect();
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
                    return Err(io::Error::other("too many descriptors for one answer"));
                }
                let iov = [IoSlice::new(&self.output)];
                sendmsg(&self.stream, &iov, &mut control, SendFlags::NOSIGNAL)
            };
            match sent {
                Ok(len) => {
                    self.output_fds.clear();
                    self.output.drain(..len);
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(cause) => return Err(cause.into()),
            }
        }
        Ok(())
    }

    /// Reads what there is, once.
    fn read(&mut self) -> io::Result<()> {
        let mut bytes = [0; READ_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &self.stream,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        );
        let len = match received {
            Ok(received) => received.bytes,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(()),
            Err(cause) => return Err(cause.into()),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds
                    .extend(fds.take(MAX_FDS - self.fds.len().min(MAX_FDS)));
            }
        }
        if len == 0 {
            self.ended = true;
            return Ok(());
        }
        let mut messages = Vec::new();
        self.fault = self.codec.push(&bytes[..len], &mut messages).err();
        if !messages.is_empty() {
            // What it is in the middle of now is another message.
            self.begun = None;
        }
        self.calls
            .extend(messages.into_iter().map(|message| (message, Vec::new())));
        // The kernel ends a read behind bytes that descriptors came with, so they belong to what
        // came last.
        if !self.codec.is_within_message()
            && let Some((_, fds)) = self.calls.back_mut()
        {
            *fds = std::mem::take(&mut self.fds);
        }
        Ok(())
    }
}

/// A socket that operators connect to.
struct Door {
    listener: UnixListener,
    access: Access,
    // Goes with it.
    _socket: Socket,
}

impl Door {
    fn open(socket: Socket, access: Access) -> Result<Self, SessionError> {
        let listener = socket.listener().and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        let listener = listener.map_err(|source| SessionError::Bind {
            path: socket.path().to_owned(),
            source,
        })?;
        Ok(Self {
            listener,
            access,
            _socket: socket,
        })
    }
}

/// The control socket, and the one for those who only look. Dropping it removes them and ends the
/// connections.
pub struct ControlServer {
    doors: Vec<Door>,
    /// Runs out when a message has taken too long, or it is time to tell events or to look at a
    /// trace.
    timer: OwnedFd,
    /// When the first event happened that has not been told.
    untold: Option<Instant>,
    patience: Duration,
    service: Arc<Service>,
    clients: HashMap<i32, Client>,
    workers: Workers,
    /// Connections so far.
    connections: u64,
}

impl ControlServer {
    /// Listens on `socket`, for what can be asked of `service`.
    ///
    /// # Errors
    /// [`SessionError`], when the host has no descriptor or thread left.
    pub fn new(socket: Socket, service: Service) -> Result<Self, SessionError> {
        let path = socket.path().to_owned();
        let refused = |source: io::Error| SessionError::Bind {
            path: path.clone(),
            source,
        };
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )
        .map_err(|cause| refused(cause.into()))?;
        let workers = Workers::new(MAX_CLIENTS).map_err(refused)?;
        Ok(Self {
            doors: vec![Door::open(socket, Access::Control)?],
            timer,
            untold: None,
            patience: MESSAGE_PATIENCE,
            service: Arc::new(service),
            clients: HashMap::new(),
            workers,
            connections: 0,
        })
    }

    /// Listens on `socket` too, for those who may look and change nothing.
    ///
    /// # Errors
    /// [`SessionError`], as for the first socket.
    pub fn with_monitor(mut self, socket: Socket) -> Result<Self, SessionError> {
        self.doors.push(Door::open(socket, Access::Monitor)?);
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
                    number,
                    caller: Some(Caller {
                        number,
                        identity,
                        access,
                        holds: Default::default(),
                    }),
                    stream,
                    codec: Codec::default(),
                    fds: Vec::new(),
                    calls: VecDeque::new(),
                    work: Work::None,
                    output: Vec::new(),
                    output_fds: Vec::new(),
                    fault: None,
                    ended: false,
                    begun: None,
                    leaving: false,
                };
                self.clients.insert(fd, client);
            }
            Err(cause) => error!("control: a client cannot be served: {cause}"),
        }
    }

    /// Something has happened to a client: goes on with it as far as nobody has to be waited for.
    fn serve(&mut self, fd: i32, readable: bool, ops: &mut EventOps<'_>) {
        let Some(client) = self.clients.get_mut(&fd) else {
            return;
        };
        if client.leaving {
            return;
        }
        if let Err(cause) = converse(client, fd, readable, &self.service, &self.workers) {
            if cause.kind() != ErrorKind::UnexpectedEof {
                debug!(
                    "control connection {}: is hung up on: {cause}",
                    client.number
                );
            }
            self.hang_up(fd, ops);
            return;
        }
        // Nothing more is read from a client that does not take its answers.
        let mut wanted = EventSet::empty();
        if client.listens() {
            wanted |= EventSet::IN;
        }
        if !client.output.is_empty() {
            wanted |= EventSet::OUT;
        }
        let number = client.number;
        if let Err(cause) = ops.modify(Events::new(&client.stream, wanted)) {
            error!("control connection {number}: cannot be served any more: {cause}");
            self.hang_up(fd, ops);
        }
    }

    /// Threads have answered.
    fn take_finished(&mut self, ops: &mut EventOps<'_>) {
        for fd in self.workers.take_finished() {
            let Some(client) = self.clients.get_mut(&fd) else {
                continue;
            };
            take_answer(client, &self.service);
            if client.leaving {
                self.let_go(fd);
            } else {
                self.serve(fd, false, ops);
            }
        }
    }

    /// There are events, or it is time to look at traces.
    fn tell_watchers(&mut self, ops: &mut EventOps<'_>) {
        let watchers: Vec<_> = self
            .clients
            .iter()
            .filter(|(_, client)| is_watching(client))
            .map(|(fd, _)| *fd)
            .collect();
        for fd in watchers {
            self.serve(fd, false, ops);
        }
    }

    /// What the loop is to be woken for next.
    fn set_wakings(&mut self) {
        let clients = || self.clients.values();
        let watched = self.untold.is_none() && clients().any(is_watching);
        self.service.events.set_watched(watched);
        let events = self
            .untold
            .map(|it| EVENTS_PERIOD.saturating_sub(it.elapsed()));
        let begun = clients().filter_map(|it| it.begun).min();
        let message = begun.map(|begun| self.patience.saturating_sub(begun.elapsed()));
        let traces = clients().any(|it| matches!(it.work, Work::Stream(Stream::Trace { .. }, _)));
        let left = [events, message, traces.then_some(TRACE_PERIOD)];
        // All zeroes stop it, so it runs for a nanosecond at least.
        let left = left.into_iter().flatten().min();
        let left = left.map(|left| left.max(Duration::from_nanos(1)));
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
            (begun.elapsed() >= patience).then_some(client.number)
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
    }

    /// Nothing is read from a client or written to it any more. Its end of the connection stays
    /// open until what it held is let go of: one that waits for ours knows then that it is done.
    fn hang_up(&mut self, fd: i32, ops: &mut EventOps<'_>) {
        let Some(client) = self.clients.get_mut(&fd) else {
            return;
        };
        let _ = ops.remove(Events::empty(&client.stream));
        debug!("control connection {}: gone", client.number);
        client.leaving = true;
        client.begun = None;
        if let Work::Thread { .. } = client.work {
            // It is let go of when the thread is back.
            return;
        }
        client.work = Work::None;
        self.let_go(fd);
    }

    /// What a client held is let go of, which may wait for a core.
    fn let_go(&mut self, fd: i32) {
        let Some(client) = self.clients.get_mut(&fd) else {
            return;
        };
        if client.caller.as_ref().is_none_or(|it| it.holds.is_empty()) {
            self.clients.remove(&fd);
            return;
        }
        let service = self.service.clone();
        let release = move |mut caller: Caller| {
            service.release(&mut caller);
            Done {
                caller,
                answer: None,
                stream: None,
            }
        };
        match have_done(client, fd, &self.workers, release) {
            Ok(result) => {
                client.work = Work::Thread {
                    result,
                    end: End::Nul,
                    oneway: true,
                    progress: None,
                };
            }
            Err(_) => drop(self.clients.remove(&fd)),
        }
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.service.events.set_watched(false);
        for client in self.clients.values_mut() {
            if let Work::Thread { .. } = client.work {
                take_answer(client, &self.service);
            }
            if let Some(caller) = &mut client.caller {
                self.service.release(caller);
            }
        }
    }
}

impl MutEventSubscriber for ControlServer {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let doors = self.doors.iter().map(|door| door.listener.as_raw_fd());
        let others = [
            self.timer.as_raw_fd(),
            self.workers.bell().as_raw_fd(),
            self.service.events.bell().as_raw_fd(),
        ];
        for fd in doors.chain(others) {
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
            let _ = rustix::io::read(&self.timer, &mut [0u8; 8]);
            self.end_messages(ops);
            let due = |it: &mut Instant| it.elapsed() >= EVENTS_PERIOD;
            if self.untold.take_if(due).is_some() {
                // What happens while they are told rings again.
                self.service.events.set_watched(true);
            }
            self.tell_watchers(ops);
        } else if fd == self.workers.bell().as_raw_fd() {
            self.take_finished(ops);
        } else if fd == self.service.events.bell().as_raw_fd() {
            self.service.events.heard();
            self.untold.get_or_insert_with(Instant::now);
        } else {
            let set = events.event_set();
            let listens = self.clients.get(&fd).is_some_and(Client::listens);
            let writes = self
                .clients
                .get(&fd)
                .is_some_and(|it| !it.output.is_empty());
            if set.intersects(EventSet::HANG_UP | EventSet::ERROR) && !listens && !writes {
                // Nobody is there for an answer. The kernel would say so without end.
                self.hang_up(fd, ops);
            } else {
                self.serve(fd, true, ops);
            }
        }
        self.set_wakings();
    }
}

/// Is the client told what happens?
fn is_watching(client: &Client) -> bool {
    matches!(
        client.work,
        Work::Stream(..)
            | Work::Thread {
                progress: Some(_),
                ..
            }
    )
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

/// Takes what the client's thread brings back.
fn take_answer(client: &mut Client, service: &Service) {
    let Work::Thread {
        result,
        end,
        oneway,
        progress,
    } = std::mem::replace(&mut client.work, Work::None)
    else {
        return;
    };
    let Ok(done) = result.recv() else {
        // The panic has been printed.
        error!(
            "control connection {}: its call ended in an internal error",
            client.number
        );
        client.ended = true;
        return;
    };
    client.caller = Some(done.caller);
    if client.leaving {
        return;
    }
    if let Some((core, next)) = progress {
        tell_progress(client, service, &core, next, end);
    }
    let continues = done.stream.is_some();
    if let Some(stream) = done.stream {
        client.work = Work::Stream(stream, end);
    }
    if let Some(answer) = done.answer.filter(|_| !oneway) {
        client.answer(answer, continues, end);
    }
}

/// Tells what has happened to a core while a change is on its way; returns the next event.
fn tell_progress(client: &mut Client, service: &Service, core: &str, next: u64, end: End) -> u64 {
    let found = service.excerpt(Some(core), Some(next));
    for event in &found.events {
        client.answer(Ok(json!({ "event": event }).into()), true, end);
    }
    found.next
}

/// Answers what a client has asked, reads what it says now if its answers have been taken, and
/// answers that. An error ends the connection.
fn converse(
    client: &mut Client,
    fd: i32,
    readable: bool,
    service: &Arc<Service>,
    workers: &Workers,
) -> io::Result<()> {
    client.write()?;
    if readable && client.listens() {
        client.read()?;
    }
    while client.output.is_empty() {
        if go_on(client, fd, service, workers)? {
            client.write()?;
            continue;
        }
        let Some((message, fds)) = client.calls.pop_front() else {
            let fault = client.fault.take_if(|_| matches!(client.work, Work::None));
            let Some(fault) = fault else { break };
            // Whoever has not got as far as the end of a message may have none in mind.
            refuse_to_listen(client, &fault, End::LineFeed);
            client.output.push(End::Nul.byte());
            client.write()?;
            continue;
        };
        if !matches!(client.work, Work::None) {
            client.calls.push_front((message, fds));
            break;
        }
        begin(client, fd, &message, fds, service, workers)?;
        client.write()?;
    }
    // While nothing is read from it, it cannot end its message.
    let waited_for = client.listens() && client.codec.is_within_message();
    client.begun = waited_for.then(|| client.begun.unwrap_or_else(Instant::now));
    let idle = client.output.is_empty() && client.calls.is_empty();
    match client.work {
        Work::None | Work::Stream(..) if idle && client.ended => {
            Err(ErrorKind::UnexpectedEof.into())
        }
        _ => Ok(()),
    }
}

/// What a client said is no call. It is told so, and hung up on: nobody knows where the next message
/// begins, or what else it takes us for.
fn refuse_to_listen(client: &mut Client, cause: &dyn std::error::Error, end: End) {
    let number = client.number;
    debug!("control connection {number}: is hung up on: what it said is no call: {cause}");
    let reason = format!("this is no Varlink call, so the connection ends: {cause}");
    let refusal = Refusal(
        format!("{INTERFACE_NAME}.NotACall"),
        json!({ "reason": reason }),
    );
    client.answer(Err(refusal), false, end);
    client.calls.clear();
    client.fault = None;
    client.ended = true;
}

/// Answers a call, or has a thread do it.
fn begin(
    client: &mut Client,
    fd: i32,
    message: &Message,
    fds: Vec<OwnedFd>,
    service: &Arc<Service>,
    workers: &Workers,
) -> io::Result<()> {
    let end = message.end;
    let mut call: Call = match serde_json::from_slice(&message.text) {
        Ok(call) => call,
        Err(cause) => {
            refuse_to_listen(client, &cause, end);
            return Ok(());
        }
    };
    call.fds = fds;
    let Some(caller) = &client.caller else {
        return Err(io::Error::other("its last call has not ended"));
    };
    let at_once = match service.admit(&call, caller) {
        Err(refusal) => Some(Err(refusal)),
        Ok(()) => match service.stream(&call) {
            Err(refusal) => Some(Err(refusal)),
            Ok(Some(stream)) => {
                // In front of the first look at the log, or nobody would ring for what happens
                // behind it.
                service.events.set_watched(true);
                client.work = Work::Stream(stream, end);
                return Ok(());
            }
            Ok(None) => service.perform_at_once(&call),
        },
    };
    if let Some(answer) = at_once {
        if !call.oneway {
            client.answer(answer, false, end);
        }
        return Ok(());
    }
    let oneway = call.oneway;
    let progress = service
        .progress_of(&call)
        .filter(|_| !oneway)
        .map(|core| (core, service.events.next()));
    if progress.is_some() {
        service.events.set_watched(true);
    }
    let perform = {
        let service = service.clone();
        move |mut caller: Caller| {
            let answer = service.perform(&mut call, &mut caller);
            Done {
                caller,
                answer: Some(answer),
                stream: None,
            }
        }
    };
    client.work = Work::Thread {
        result: have_done(client, fd, workers, perform)?,
        end,
        oneway,
        progress,
    };
    Ok(())
}

/// Has a thread do something for a client, who lends it its caller.
fn have_done(
    client: &mut Client,
    fd: i32,
    workers: &Workers,
    work: impl FnOnce(Caller) -> Done + Send + 'static,
) -> io::Result<Receiver<Done>> {
    let caller = client.caller.take();
    let caller = caller.ok_or_else(|| io::Error::other("its last call has not ended"))?;
    Ok(workers.have_done(fd, move || work(caller)))
}

/// What is new for a client that watches. Says whether there is something to write.
fn go_on(
    client: &mut Client,
    fd: i32,
    service: &Arc<Service>,
    workers: &Workers,
) -> io::Result<bool> {
    match std::mem::replace(&mut client.work, Work::None) {
        Work::None => {}
        Work::Thread {
            result,
            end,
            oneway,
            progress,
        } => {
            let progress = progress.map(|(core, next)| {
                let next = tell_progress(client, service, &core, next, end);
                (core, next)
            });
            client.work = Work::Thread {
                result,
                end,
                oneway,
                progress,
            };
        }
        Work::Stream(
            Stream::Events {
                core,
                next,
                mut begun,
            },
            end,
        ) => {
            let found = service.excerpt(core.as_deref(), Some(next));
            if !begun || !found.events.is_empty() || found.lost > 0 {
                begun = true;
                client.answer(Ok(excerpt(&found).into()), true, end);
            }
            let next = found.next;
            client.work = Work::Stream(Stream::Events { core, next, begun }, end);
        }
        Work::Stream(stream @ Stream::Trace { .. }, end) if !service.has_new(&stream) => {
            client.work = Work::Stream(stream, end);
        }
        Work::Stream(Stream::Trace { place, since, seen }, end) => {
            let service = service.clone();
            let follow = move |caller: Caller| {
                let (answer, stream) = service.follow(place, since, seen);
                Done {
                    caller,
                    answer: answer.map(Ok),
                    stream: Some(stream),
                }
            };
            client.work = Work::Thread {
                result: have_done(client, fd, workers, follow)?,
                end,
                oneway: false,
                progress: None,
            };
        }
    }
    Ok(!client.output.is_empty())
}
