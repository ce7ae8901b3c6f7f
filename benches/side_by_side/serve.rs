//! What a contestant does in its own process.
//!
//! What belongs here: each kind that is not a program of its own, until it is ended. What does not:
//! driving it.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use rprocd::rproc::{Linger, Policies};

use crate::floor;
use crate::frontend::echo_device::EchoDevice;
use crate::guest;
use crate::in_process::{serve_native, serve_rv32};

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

fn native(socket: &str, manner: Manner, vdevs: usize) -> Result<(), String> {
    let _cores = serve_native(Path::new(socket), vdevs, &manner.policies())?;
    for_ever()
}

fn rv32(socket: &str, manner: Manner, image: &str) -> Result<(), String> {
    let _core = serve_rv32(Path::new(socket), Path::new(image), manner.policies())?;
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
