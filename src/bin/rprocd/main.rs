//! `rprocd`: the daemon. Configuration, cores, sockets, then events until a signal ends it.

mod arguments;
mod logs;
mod watchdog;

use std::error::Error;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use clap::Parser;
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use log::{LevelFilter, error, info, warn};
use sd_notify::NotifyState;

use arguments::{Arguments, Level};
use rprocd::config::{Config, CoreConfig, CoredumpConfig, EngineConfig};
use rprocd::control::{ControlServer, Service};
use rprocd::coredump::{Class, DumpStore, Mode, StoreError};
use rprocd::engine::rv32::{Rv32, board};
use rprocd::engine::{Engine, ImageRules};
use rprocd::firmware::Snapshot;
use rprocd::memory::{DeviceAddress, Ram};
use rprocd::report::sentence;
use rprocd::rproc::{Core, Coredumps, EventLog, Firmware, Holder, Policies};
use rprocd::vdev::{Listening, MEMORY_NAME, Passed, Socket};
use watchdog::Watchdog;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.print_capabilities {
        println!("{CAPABILITIES}");
        return ExitCode::SUCCESS;
    }
    logs::begin(match arguments.log_level {
        Level::Off => LevelFilter::Off,
        Level::Error => LevelFilter::Error,
        Level::Warn => LevelFilter::Warn,
        Level::Info => LevelFilter::Info,
        Level::Debug => LevelFilter::Debug,
        Level::Trace => LevelFilter::Trace,
    });
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            error!("{}", sentence(&*cause));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let mut config = Config::load(&arguments.config)?;
    let mut passed = Passed::from_systemd()?;
    let mut for_the_guest = guest_socket(arguments, &mut config)?;
    let mut prepared = Vec::new();
    for core in &config.cores {
        prepared.push(prepare(&config, core).map_err(|cause| about(core, cause))?);
    }
    if arguments.check_config {
        println!(
            "{}: ok, {} core(s)",
            arguments.config.display(),
            prepared.len()
        );
        return Ok(());
    }

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
        let mut dumps = coredumps(core).map_err(|cause| about(core, cause.into()))?;
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
    let mut listening = Vec::new();
    for (config, core) in config.cores.iter().zip(cores.iter()) {
        for (index, vdev) in config.vdevs.iter().enumerate() {
            if let Some(face) = core.face(index, vdev.announce) {
                let label = face.label().to_owned();
                let socket = match for_the_guest.take() {
                    Some(socket) => socket,
                    None => passed.take_or_bind(&vdev.socket, &vdev.permissions)?,
                };
                let path = std::path::absolute(socket.path()).unwrap_or_default();
                info!("{label}: listening on {}", path.display());
                core.set_socket(index, path);
                listening.push(Listening::on(socket, face)?);
            }
        }
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
    if let Some(control) = &config.control {
        let service = Service {
            cores: cores.clone(),
            events: log.clone(),
            firmware_directory: config.firmware_directory.clone(),
        };
        let socket = passed.take_or_bind(&control.socket, &control.permissions)?;
        let mut server = ControlServer::new(socket, service)?;
        info!("control: listening on {}", control.socket.display());
        if let Some((monitor, permissions)) = &control.monitor {
            server = server.with_monitor(passed.take_or_bind(monitor, permissions)?)?;
            info!("control: listening on {}, for looking", monitor.display());
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

fn about(core: &CoreConfig, cause: Box<dyn Error>) -> Box<dyn Error> {
    format!("core {}: {}", core.name, sentence(&*cause)).into()
}

/// Everything of a core that can be had without starting it.
fn prepare(
    config: &Config,
    core: &CoreConfig,
) -> Result<(Box<dyn Engine>, Firmware), Box<dyn Error>> {
    let EngineConfig::Rv32 {
        memory_bytes,
        pages,
    } = core.engine;
    let base = DeviceAddress(u64::from(board::ram::BASE));
    let ram = Ram::with_pages(&format!("rprocd-{}", core.name), base, memory_bytes, pages)?;
    let mut engine: Box<dyn Engine> = Box::new(Rv32::new(ram)?);
    if core.coredump.mode != Mode::Disabled {
        DumpStore::check(&core.coredump.directory, &core.name)?;
    }
    let snapshot = Snapshot::read(&config.firmware_directory, &core.firmware)?;
    let firmware = Firmware::new(
        snapshot,
        &mut *engine,
        core.vdevs.len(),
        core.grants.clone(),
    )?;
    Ok((engine, firmware))
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
