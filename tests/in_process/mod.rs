//! Cores and their sockets in this process: rprocd's library without its daemon.
//!
//! What belongs here: putting a core together, and an engine whose firmware is a few lines of Rust.
//! The benchmarks include this folder as well, so there are no tests in it. What does not belong
//! here: what is at the other end of a socket (`frontend`).

// Tests and benchmarks each use parts that the other does not.
#![allow(dead_code)]

pub mod native;

use std::path::{Path, PathBuf};

use rprocd::engine::Engine;
use rprocd::engine::rv32::{Rv32, board};
use rprocd::firmware::Snapshot;
use rprocd::memory::{DeviceAddress, Ram};
use rprocd::rproc::{Core, Coredumps, Firmware, Grants, Holder, Policies};
use rprocd::vdev::{Listening, Permissions};

use native::{MAX_VDEVS, Native};

/// A core that runs, and its vdevs' sockets.
pub struct Served {
    /// Dropped first: nobody comes any more.
    pub listening: Vec<Listening>,
    /// The core.
    pub core: Core,
}

/// Where a vdev's socket is.
pub fn socket(prefix: &Path, vdev: usize) -> PathBuf {
    let mut path = prefix.as_os_str().to_owned();
    path.push(format!(".{vdev}"));
    path.into()
}

/// Starts a core and serves its vdevs without name service, at `prefix.N` counted from `first`.
pub fn serve(
    prefix: &Path,
    first: usize,
    vdevs: usize,
    mut engine: Box<dyn Engine>,
    image: Snapshot,
    policies: Policies,
) -> Result<Served, String> {
    let said = |error: &dyn std::error::Error| rprocd::report::sentence(error);
    let firmware = Firmware::new(image, &mut *engine, vdevs, Grants::default())
        .map_err(|error| said(&error))?;
    let name = format!("core{first}");
    let core = Core::new(&name, engine, firmware, policies, Coredumps::disabled())
        .map_err(|error| error.to_string())?;
    core.start(Holder::Operator).map_err(|error| said(&error))?;
    let mut listening = Vec::new();
    for index in 0..vdevs {
        let face = core
            .face(index, false)
            .ok_or("the core has too few vdevs")?;
        let path = socket(prefix, first + index);
        listening.push(
            Listening::start(&path, &Permissions::default(), face).map_err(|error| said(&error))?,
        );
    }
    Ok(Served { listening, core })
}

/// Starts a core with an image of guest-fw, and serves its one vdev.
pub fn serve_rv32(prefix: &Path, image: &Path, policies: Policies) -> Result<Served, String> {
    let base = DeviceAddress(board::ram::BASE.into());
    let ram = Ram::new("rv32", base, 4 << 20).map_err(|error| error.to_string())?;
    let engine = Rv32::new(ram).map_err(|error| error.to_string())?;
    let bytes = std::fs::read(image)
        .map_err(|error| format!("cannot read {}: {error}", image.display()))?;
    let image = Snapshot::from_bytes("image.elf", bytes);
    serve(prefix, 0, 1, Box::new(engine), image, policies)
}

/// Starts native cores with `vdevs` vdevs altogether, as few as can have so many.
pub fn serve_native(
    prefix: &Path,
    vdevs: usize,
    policies: &Policies,
) -> Result<Vec<Served>, String> {
    let mut cores = Vec::new();
    for first in (0..vdevs).step_by(MAX_VDEVS) {
        let count = MAX_VDEVS.min(vdevs - first);
        let engine = Box::new(Native::new(count)?);
        let image = native::image(count);
        cores.push(serve(
            prefix,
            first,
            count,
            engine,
            image,
            policies.clone(),
        )?);
    }
    Ok(cores)
}
