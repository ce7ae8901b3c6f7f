//! What a contestant does in its own process.
//!
//! What belongs here: each kind that is not a program of its own, until it is ended. What does not:
//! driving it.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rprocd::engine::Engine;
use rprocd::engine::rv32::{Rv32, board};
use rprocd::firmware::Snapshot;
use rprocd::memory::{DeviceAddress, Ram};
use rprocd::rproc::{Core, Coredumps, Firmware, Grants, Holder, Linger, Policies};
use rprocd::vdev::Listening;

use crate::floor;
use crate::frontend::echo_device::EchoDevice;
use crate::guest;
use crate::native::{self, MAX_VDEVS, Native};

/// How rprocd waits when there is nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Manner {
    /// It sleeps.
    Sleeps,
    /// It looks for a while first.
    Lingers,
    /// It looks for ever.
    Polls,
}

impl Manner {
    /// The word for it on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Sleeps => "sleeps",
            Self::Lingers => "lingers",
            Self::Polls => "polls",
        }
    }

    fn parse(word: &str) -> Result<Self, String> {
        [Self::Sleeps, Self::Lingers, Self::Polls]
            .into_iter()
            .find(|manner| manner.word() == word)
            .ok_or_else(|| format!("a peer does not wait in the manner {word:?}"))
    }

    fn policies(self) -> Policies {
        Policies {
            linger: match self {
                Self::Sleeps => Linger::Never,
                Self::Lingers => Linger::UpTo(guest::LINGER),
                Self::Polls => Linger::Always,
            },
            ..Policies::default()
        }
    }
}

/// Serves `words`: a kind, a socket, and what the kind wants besides. Comes back only if that
/// cannot be done.
pub fn serve(words: &[String]) -> Result<(), String> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["native", socket, manner, vdevs] => {
            let vdevs = vdevs.parse().map_err(|_| format!("{vdevs} is no number"))?;
            native(socket, Manner::parse(manner)?, vdevs)
        }
        ["rv32", socket, manner, image] => rv32(socket, Manner::parse(manner)?, image),
        ["plain", socket] => {
            let _device = EchoDevice::serve(Path::new(socket), false, None);
            for_ever()
        }
        ["floor", socket, manner] => {
            floor::serve_echo(Path::new(socket), Manner::parse(manner)? == Manner::Polls)
        }
        ["line", socket] => floor::serve_line(Path::new(socket)),
        ["event", socket] => floor::serve_event(Path::new(socket)),
        ["stream", socket] => stream(Path::new(socket)),
        _ => Err(format!("there is no contestant {words:?}")),
    }
}

fn for_ever() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// Starts a core and serves its vdevs, at `socket.N` counted from `first`.
fn core(
    socket: &str,
    first: usize,
    vdevs: usize,
    mut engine: Box<dyn Engine>,
    image: Snapshot,
    policies: Policies,
) -> Result<(Core, Vec<Listening>), String> {
    let said = |error: &dyn std::error::Error| rprocd::report::sentence(error);
    let firmware = Firmware::new(image, &mut *engine, vdevs, Grants::default())
        .map_err(|error| said(&error))?;
    let name = format!("core{first}");
    let core = Core::new(&name, engine, firmware, policies, Coredumps::disabled())
        .map_err(|error| error.to_string())?;
    core.start(Holder::Operator).map_err(|error| said(&error))?;
    let mut listening = Vec::new();
    for index in 0..vdevs {
        let path = format!("{socket}.{}", first + index);
        let face = core
            .face(index, false)
            .ok_or("the core has too few vdevs")?;
        listening.push(Listening::start(Path::new(&path), face).map_err(|error| said(&error))?);
    }
    Ok((core, listening))
}

fn native(socket: &str, manner: Manner, vdevs: usize) -> Result<(), String> {
    let mut cores = Vec::new();
    for first in (0..vdevs).step_by(MAX_VDEVS) {
        let count = MAX_VDEVS.min(vdevs - first);
        let engine = Box::new(Native::new(count)?);
        let image = native::image(count);
        cores.push(core(
            socket,
            first,
            count,
            engine,
            image,
            manner.policies(),
        )?);
    }
    for_ever()
}

fn rv32(socket: &str, manner: Manner, image: &str) -> Result<(), String> {
    let base = DeviceAddress(board::ram::BASE.into());
    let ram = Ram::new("rv32", base, 4 << 20).map_err(|error| error.to_string())?;
    let engine = Rv32::new(Arc::clone(&ram)).map_err(|error| error.to_string())?;
    let bytes = std::fs::read(image).map_err(|error| format!("cannot read {image}: {error}"))?;
    let image = Snapshot::from_bytes("echo.elf", bytes);
    let _core = core(socket, 0, 1, Box::new(engine), image, manner.policies())?;
    for_ever()
}

/// Echoes each connection's bytes.
fn stream(path: &Path) -> Result<(), String> {
    let listener = UnixListener::bind(path).map_err(|error| error.to_string())?;
    for stream in listener.incoming() {
        let mut stream = stream.map_err(|error| error.to_string())?;
        std::thread::spawn(move || {
            let mut bytes = vec![0; 64 << 10];
            while let Ok(count) = stream.read(&mut bytes) {
                if count == 0 || stream.write_all(&bytes[..count]).is_err() {
                    return;
                }
            }
        });
    }
    Ok(())
}
