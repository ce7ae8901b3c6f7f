//! `rprocd`: the daemon. Configuration, cores, sockets, then events until a signal ends it.

mod arguments;
mod logs;
mod watchdog;

use std::error::Error;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use clap::Parser;
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use log::{LevelFilter, error, info, warn};
use sd_notify::NotifyState;

use arguments::{Arguments, Level};
use logs::Destination;
use rprocd::config::{Config, ConfigError, CoreConfig, CoredumpConfig, EngineConfig};
use rprocd::config::{Problem, Severity, any_error, keys};
use rprocd::control::{ControlServer, Service};
use rprocd::coredump::{Class, Mode, StoreError};
use rprocd::engine::ImageRules;
use rprocd::engine::rv32::board;
use rprocd::memory::{DeviceAddress, Ram};
use rprocd::prepare::{self, Purpose, prepare};
use rprocd::report::sentence;
use rprocd::rproc::{Core, Coredumps, EventLog, Holder, Policies};
use rprocd::vdev::{Listening, MEMORY_NAME, Passed, Permissions, SessionError, Socket};
use watchdog::Watchdog;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.print_capabilities {
        println!("{CAPABILITIES}");
        return ExitCode::SUCCESS;
    }
    if arguments.check_config {
        return check(&arguments);
    }
    let to = logs::begin(match arguments.log_level {
        Level::Off => LevelFilter::Off,
        Level::Error => LevelFilter::Error,
        Level::Warn => LevelFilter::Warn,
        Level::Info => LevelFilter::Info,
        Level::Debug => LevelFilter::Debug,
        Level::Trace => LevelFilter::Trace,
    });
    let refused = |problems: &[Problem]| {
        tell(problems, to);
        let file = arguments.config.display();
        error!("{file} is refused, as told above; nothing was started");
        ExitCode::from(arguments::REFUSED)
    };
    match run(&arguments, to) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Refused(problems)) => refused(&problems),
        Err(Failure::Other(cause)) => {
            error!("{}", sentence(&*cause));
            ExitCode::FAILURE
        }
    }
}

/// Why it ends before it is asked to.
enum Failure {
    /// The configuration cannot be used here.
    Refused(Vec<Problem>),
    Other(Box<dyn Error>),
}

impl<E: Into<Box<dyn Error>>> From<E> for Failure {
    fn from(cause: E) -> Self {
        Self::Other(cause.into())
    }
}

/// Says what is wrong with a configuration. The journal has a line for each problem, a person the
/// line of the file as well.
fn tell(problems: &[Problem], to: Destination) {
    for problem in problems {
        let text = match to {
            Destination::Journal => problem.to_string(),
            Destination::Person => problem.shown(),
        };
        match problem.severity {
            Severity::Error => error!("{text}"),
            Severity::Warning => warn!("{text}"),
        }
    }
}

/// Why a file cannot be read, and what to do.
fn unread(cause: &ConfigError) -> String {
    let mut text = sentence(cause);
    if let ConfigError::Read { source, .. } = cause
        && source.kind() == io::ErrorKind::NotFound
    {
        text += "; name a file with --config FILE (rprocd.toml(5) has an example)";
    }
    text
}

/// Judges the configuration and says so, as `rprocctl config check` does.
fn check(arguments: &Arguments) -> ExitCode {
    match prepare::check(&arguments.config) {
        Ok(verdict) => {
            for problem in &verdict.problems {
                eprintln!("{}", problem.shown());
            }
            let summary = verdict.summary();
            if verdict.accepted {
                println!("{summary}");
                return ExitCode::SUCCESS;
            }
            eprintln!("rprocd: {summary}");
            ExitCode::from(arguments::REFUSED)
        }
        Err(cause) => {
            eprintln!("rprocd: {}", unread(&cause));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments, to: Destination) -> Result<(), Failure> {
    let checked = Config::check_file(&arguments.config).map_err(|cause| unread(&cause))?;
    let source = checked.source;
    let Some(mut config) = checked.config else {
        return Err(Failure::Refused(checked.problems));
    };
    let mut passed = Passed::from_systemd()?;
    let mut for_the_guest = guest_socket(arguments, &mut config)?;
    let (prepared, found) = prepare(&config, &source, Purpose::Start);
    let mut problems = checked.problems;
    problems.extend(found);
    problems.sort_by_key(|it| (it.line, it.column));
    if any_error(&problems) {
        return Err(Failure::Refused(problems));
    }
    tell(&problems, to);

    // Before any thread, so that the signal finds its way whatever happens next.
    let (wake, ended) = UnixStream::pair()?;
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::low_level::pipe::register(signal, wake.try_clone()?)?;
    }

    // A limit on the size of files is to shorten a coredump, by a write that fails, and not to end
    // the daemon. What the handler sets nobody asks.
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default())?;

    let mut cores = Vec::new();
    for (core, (engine, firmware)) in config.cores.iter().zip(prepared) {
        let mut dumps = coredumps(core).map_err(|cause| about(core, &cause))?;
        if let Some(memory) = passed.take_memory(&core.name) {
            save_left_behind(core, memory, &mut dumps);
        }
        keep_memory(&core.name, engine.ram());
        cores.push(Core::new(
            &core.name,
            engine,
            firmware,
            policies(core),
            dumps,
        )?);
    }
    let cores = Arc::new(cores);
    let log = Arc::new(EventLog::new()?);
    for core in cores.iter() {
        core.tell(log.clone());
    }
    // All sockets are made before anything else begins, so that all that cannot be are told at once.
    let mut unmade = Vec::new();
    let mut bind = |path: &Path, permissions: &Permissions, key: String| {
        let made = passed.take_or_bind(path, permissions);
        made.inspect_err(|cause| {
            let mut what = sentence(cause);
            if matches!(cause, SessionError::Bind { .. })
                && let Some(why) = prepare::why_no_socket(path)
            {
                what += &format!("; {why}");
            }
            unmade.push(source.problem(Severity::Error, &key, what));
        })
        .ok()
    };
    let mut faces = Vec::new();
    for (number, (config, core)) in config.cores.iter().zip(cores.iter()).enumerate() {
        for (index, vdev) in config.vdevs.iter().enumerate() {
            if let Some(face) = core.face(index, vdev.announce) {
                let key = keys::VDEV_SOCKET.name;
                let key = format!("core[{number}].vdev[{index}].{key}");
                let socket = match for_the_guest.take() {
                    Some(socket) => Some(socket),
                    None => bind(&vdev.socket, &vdev.permissions, key),
                };
                faces.push((core, index, face, socket));
            }
        }
    }
    let mut control = None;
    let mut monitor = None;
    if let Some(config) = &config.control {
        let key = format!("control.{}", keys::CONTROL_SOCKET.name);
        control = bind(&config.socket, &config.permissions, key);
        if let Some((path, permissions)) = &config.monitor {
            let key = format!("control.{}", keys::CONTROL_MONITOR.name);
            monitor = bind(path, permissions, key);
        }
    }
    if !unmade.is_empty() {
        unmade.sort_by_key(|it| (it.line, it.column));
        tell(&unmade, to);
        return Err("not all sockets can be made, as told above; nothing was started".into());
    }
    let mut listening = Vec::new();
    for (core, index, face, socket) in faces {
        let Some(socket) = socket else { continue };
        let path = std::path::absolute(socket.path()).unwrap_or_default();
        info!("{}: listening on {}", face.label(), path.display());
        core.set_socket(index, path);
        listening.push(Listening::on(socket, face)?);
    }
    for (config, core) in config.cores.iter().zip(cores.iter()) {
        if config.auto_boot {
            core.start(Holder::Operator)?;
        }
    }

    let ending = Arc::new(AtomicBool::new(false));
    let mut events = EventManager::<Arc<Mutex<dyn MutEventSubscriber>>>::new()?;
    events.add_subscriber(Arc::new(Mutex::new(Signals {
        pipe: ended,
        ending: ending.clone(),
    })));
    if let Some(socket) = control {
        let service = Service {
            cores: cores.clone(),
            events: log.clone(),
            firmware_directory: config.firmware_directory.clone(),
        };
        info!("control: listening on {}", socket.path().display());
        let mut server = ControlServer::new(socket, service)?;
        if let Some(socket) = monitor {
            let path = socket.path().display().to_string();
            server = server.with_monitor(socket)?;
            info!("control: listening on {path}, for looking");
        }
        events.add_subscriber(Arc::new(Mutex::new(server)));
    }
    if let Some(path) = passed.left().next() {
        return Err(format!(
            "systemd passes a socket at {}, and nothing in {} listens there; give both the same \
             path",
            path.display(),
            arguments.config.display()
        )
        .into());
    }
    if let Some(limit) = sd_notify::watchdog_enabled() {
        let watchdog = Watchdog::new(limit, cores.clone())?;
        events.add_subscriber(Arc::new(Mutex::new(watchdog)));
    }
    info!("ready");
    tell_systemd(&[
        NotifyState::Ready,
        NotifyState::Status(&format!("{} core(s)", cores.len())),
    ]);
    while !ending.load(Ordering::SeqCst) {
        events.run()?;
    }
    info!("ending: a signal asks for it");
    tell_systemd(&[NotifyState::Stopping]);
    // Guests first, then the control socket, then the cores.
    drop(listening);
    drop(events);
    for core in &config.cores {
        // What ends with a word leaves nothing to look at.
        forget_memory(&core.name);
    }
    Ok(())
}

/// What QEMU's `docs/interop/vhost-user.json` has of us: it needs to know no more than the type.
const CAPABILITIES: &str = r#"{"type": "rpmsg", "features": []}"#;

/// The socket that the command line names for the guest, in place of the configured one.
fn guest_socket(
    arguments: &Arguments,
    config: &mut Config,
) -> Result<Option<Socket>, Box<dyn Error>> {
    if arguments.fd.is_none() && arguments.socket_path.is_none() {
        return Ok(None);
    }
    let [core] = &mut config.cores[..] else {
        let cores = config.cores.len();
        return Err(format!(
            "--fd and --socket-path are for a configuration of one core, and {} has {cores}",
            arguments.config.display()
        )
        .into());
    };
    let [vdev] = &mut core.vdevs[..] else {
        return Err(format!(
            "--fd and --socket-path are for a core with one vdev, and {} has {}",
            core.name,
            core.vdevs.len()
        )
        .into());
    };
    if let Some(path) = &arguments.socket_path {
        vdev.socket.clone_from(path);
    }
    Ok(arguments.fd.map(Socket::from_number).transpose()?)
}

/// Writes a coredump of the memory that an rprocd before this one left behind.
fn save_left_behind(core: &CoreConfig, memory: OwnedFd, dumps: &mut Coredumps) {
    let EngineConfig::Rv32 { .. } = core.engine;
    let base = DeviceAddress(u64::from(board::ram::BASE));
    let machine = ImageRules::RV32.machine.map_or(0, |(machine, _)| machine);
    match Ram::left_behind(base, memory) {
        Ok(ram) => drop(dumps.save_left_behind(&core.name, &ram, Class::Elf32, machine)),
        Err(cause) => warn!("{}: {}", core.name, sentence(&cause)),
    }
}

/// Gives a core's memory to systemd, which gives it back if this process ends without a word.
fn keep_memory(core: &str, ram: &Ram) {
    forget_memory(core);
    let name = format!("{MEMORY_NAME}{core}");
    let what = [NotifyState::FdStore, NotifyState::FdName(&name)];
    if let Some(file) = ram.file()
        && let Err(cause) = sd_notify::notify_with_fds(&what, &[file])
    {
        warn!("systemd cannot be given the memory of {core}: {cause}");
    }
}

/// Has systemd let go of a core's memory.
fn forget_memory(core: &str) {
    let name = format!("{MEMORY_NAME}{core}");
    tell_systemd(&[NotifyState::FdStoreRemove, NotifyState::FdName(&name)]);
}

/// Tells systemd, if it is what started us.
fn tell_systemd(what: &[NotifyState<'_>]) {
    if let Err(cause) = sd_notify::notify(what) {
        warn!("systemd cannot be told how things are: {cause}");
    }
}

fn about(core: &CoreConfig, cause: &dyn Error) -> String {
    format!("core {}: {}", core.name, sentence(cause))
}

fn policies(core: &CoreConfig) -> Policies {
    Policies {
        recovery: core.recovery,
        departures: core.vdevs.iter().map(|vdev| vdev.on_departure).collect(),
        boot_on_guest: core.boot_on_guest,
        linger: core.linger,
    }
}

fn coredumps(core: &CoreConfig) -> Result<Coredumps, StoreError> {
    let CoredumpConfig {
        mode,
        directory,
        limits,
        patience,
        style,
    } = &core.coredump;
    match mode {
        Mode::Disabled => Ok(Coredumps::disabled()),
        Mode::Enabled | Mode::Inline => {
            let dumps = Coredumps::new(directory, &core.name, *limits, *mode, *patience)?;
            Ok(dumps.with_style(*style))
        }
    }
}

/// The end of the pipe that signals come out of.
struct Signals {
    pipe: UnixStream,
    ending: Arc<AtomicBool>,
}

impl MutEventSubscriber for Signals {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(cause) = ops.add(Events::new(&self.pipe, EventSet::IN)) {
            error!("signals cannot be waited for: {cause}");
            self.ending.store(true, Ordering::SeqCst);
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        self.ending.store(true, Ordering::SeqCst);
    }
}
