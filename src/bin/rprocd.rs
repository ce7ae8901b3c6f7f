//! `rprocd`: the daemon. Configuration, cores, sockets, then events until a signal ends it.

use std::error::Error;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use clap::Parser;
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use log::{LevelFilter, error, info, warn};
use sd_notify::NotifyState;

use rprocd::config::{Config, CoreConfig, CoredumpConfig, EngineConfig};
use rprocd::control::{ControlServer, Service};
use rprocd::coredump::{DumpStore, Mode, StoreError};
use rprocd::engine::Engine;
use rprocd::engine::rv32::{Rv32, board};
use rprocd::firmware::Snapshot;
use rprocd::memory::{DeviceAddress, Ram};
use rprocd::report::sentence;
use rprocd::rproc::{Core, Coredumps, EventLog, Firmware, Holder, Policies};
use rprocd::vdev::Listening;

/// Owns remote cores and serves them to guest VMs over vhost-user.
///
/// Logs go to standard error. SIGTERM and SIGINT end it: guests are hung up on, cores are stopped,
/// sockets are removed.
#[derive(Parser)]
#[command(version, max_term_width = 80)]
struct Arguments {
    /// The configuration (TOML)
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = "/etc/rprocd/rprocd.toml"
    )]
    config: PathBuf,
    /// Check the configuration and the firmware it names, start nothing
    #[arg(long)]
    check_config: bool,
    /// What to log: error, warn, info, debug, trace, off
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: LevelFilter,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    env_logger::Builder::new()
        .filter_level(arguments.log_level)
        .init();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            error!("{}", sentence(&*cause));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let config = Config::load(&arguments.config)?;
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
        cores.push(Core::new(
            &core.name,
            engine,
            firmware,
            policies(core),
            coredumps(core).map_err(|cause| about(core, cause.into()))?,
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
                listening.push(Listening::start(&vdev.socket, &vdev.permissions, face)?);
                core.set_socket(index, std::path::absolute(&vdev.socket)?);
                info!("{label}: listening on {}", vdev.socket.display());
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
        let mut server = ControlServer::new(&control.socket, &control.permissions, service)?;
        info!("control: listening on {}", control.socket.display());
        if let Some((monitor, permissions)) = &control.monitor {
            server = server.with_monitor(monitor, permissions)?;
            info!("control: listening on {}, for looking", monitor.display());
        }
        events.add_subscriber(Arc::new(Mutex::new(server)));
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
    Ok(())
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
