//! The firmware that a core is configured with, and what VMMs are told because of it.
//!
//! What belongs here: an image that was judged for a core, and the identities of its vdevs. What
//! does not: how images are read (see [`firmware`](crate::firmware)), and booting them.
//!
//! A VMM asks a vdev what it is when it connects, whether or not the core runs, and never again.
//! So the answer comes from the configured firmware's table, and cannot change under a VMM that
//! has heard it.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use thiserror::Error;

use super::boot::{BootError, BootPlan};
use super::grants::Grants;
use crate::engine::Engine;
use crate::firmware::{Image, ImageError, Snapshot, VdevEntry};

/// A firmware that has been read and judged.
pub struct Firmware {
    pub(super) snapshot: Snapshot,
    pub(super) image: Image,
    pub(super) grants: Grants,
}

/// Why a firmware cannot be used on a core.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FirmwareError {
    /// The image is refused as it is.
    #[error("firmware {name} is refused")]
    Image {
        /// The file's name.
        name: String,
        /// What is wrong.
        source: Box<ImageError>,
    },
    /// The image does not go with this core.
    #[error("firmware {name} cannot be used on this core")]
    Core {
        /// The file's name.
        name: String,
        /// Why not.
        source: Box<BootError>,
    },
    /// A VMM is connected and has been told something else.
    #[error(
        "firmware {name} would change vdev {vdev} from {told} to {would_be}, and a VMM that has \
         been told the former is connected; disconnect it first"
    )]
    Identity {
        /// The file's name.
        name: String,
        /// Which vdev, counted from 0.
        vdev: usize,
        /// What the VMM was told.
        told: String,
        /// What it would have to be told.
        would_be: String,
    },
}

impl Firmware {
    /// Judges a firmware for an engine, a number of configured vdevs and what it is granted.
    ///
    /// # Errors
    /// [`FirmwareError`]; nothing of the firmware has been used.
    pub fn new(
        snapshot: Snapshot,
        engine: &mut dyn Engine,
        configured: usize,
        grants: Grants,
    ) -> Result<Self, FirmwareError> {
        let image = Image::parse(snapshot.bytes(), &engine.image_rules()).map_err(|cause| {
            FirmwareError::Image {
                name: snapshot.name().to_owned(),
                source: Box::new(cause),
            }
        })?;
        // The plan is made again at each boot; here it only must be possible.
        engine
            .sanity_check(&image, snapshot.bytes())
            .map_err(BootError::Sanity)
            .and_then(|()| BootPlan::new(&image, snapshot.bytes(), engine, configured, &grants))
            .map_err(|cause| FirmwareError::Core {
                name: snapshot.name().to_owned(),
                source: Box::new(cause),
            })?;
        Ok(Self {
            snapshot,
            image,
            grants,
        })
    }

    /// What the image says.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Its vdevs, in table order.
    pub(super) fn vdevs(&self) -> impl Iterator<Item = &VdevEntry> {
        self.image
            .table
            .iter()
            .flat_map(|section| section.table.vdevs())
    }
}

/// What a VMM is told of a vdev.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Identity {
    device_id: u32,
    pub(super) dfeatures: u32,
    queues: usize,
    config: Vec<u8>,
}

impl From<&VdevEntry> for Identity {
    fn from(entry: &VdevEntry) -> Self {
        Self {
            device_id: entry.device_id,
            dfeatures: entry.dfeatures,
            queues: entry.vrings.len(),
            config: entry.config.clone(),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "virtio device {} with features {:#x}, {} queues, {} bytes of configuration",
            self.device_id,
            self.dfeatures,
            self.queues,
            self.config.len()
        )?;
        if !self.config.is_empty() {
            write!(f, " ({})", self.config.escape_ascii())?;
        }
        Ok(())
    }
}

/// The identities of a core's vdevs, and which of them a VMM that is connected has heard.
pub(super) struct Identities(Mutex<Vec<(Identity, bool)>>);

impl Identities {
    pub(super) fn of(firmware: &Firmware) -> Self {
        Self(Mutex::new(
            firmware
                .vdevs()
                .map(|entry| (Identity::from(entry), false))
                .collect(),
        ))
    }

    fn list(&self) -> MutexGuard<'_, Vec<(Identity, bool)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn len(&self) -> usize {
        self.list().len()
    }

    /// Tells a VMM the features of a vdev.
    pub(super) fn tell(&self, vdev: usize) -> u32 {
        let mut list = self.list();
        list.get_mut(vdev).map_or(0, |(identity, told)| {
            *told = true;
            identity.dfeatures
        })
    }

    /// The VMM of a vdev is gone, and what it was told with it.
    pub(super) fn forget(&self, vdev: usize) {
        if let Some((_, told)) = self.list().get_mut(vdev) {
            *told = false;
        }
    }

    /// Takes over those of another firmware, unless a VMM would have been told a lie.
    pub(super) fn replace(&self, firmware: &Firmware) -> Result<(), FirmwareError> {
        let mut list = self.list();
        for (vdev, ((old, told), entry)) in list.iter().zip(firmware.vdevs()).enumerate() {
            let new = Identity::from(entry);
            if *told && new != *old {
                return Err(FirmwareError::Identity {
                    name: firmware.snapshot.name().to_owned(),
                    vdev,
                    told: old.to_string(),
                    would_be: new.to_string(),
                });
            }
        }
        for ((old, _), entry) in list.iter_mut().zip(firmware.vdevs()) {
            *old = Identity::from(entry);
        }
        Ok(())
    }

    /// Is a core that runs already what VMMs are told? Its configuration space may have moved on.
    pub(super) fn check<'a>(
        &self,
        found: impl Iterator<Item = &'a VdevEntry>,
    ) -> Result<(), BootError> {
        for (vdev, ((expected, _), entry)) in self.list().iter().zip(found).enumerate() {
            let mut found = Identity::from(entry);
            if found.config.len() == expected.config.len() {
                found.config.clone_from(&expected.config);
            }
            if found != *expected {
                return Err(BootError::Identity {
                    vdev,
                    found: found.to_string(),
                    expected: expected.to_string(),
                });
            }
        }
        Ok(())
    }
}
