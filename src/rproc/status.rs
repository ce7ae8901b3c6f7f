//! A core's figures, as they go over the control socket.
//!
//! What belongs here: plain values and their names in JSON. What does not: how they come about,
//! and how they are shown.

use serde::{Deserialize, Serialize};

use super::timeline::Timeline;
use crate::vdev::{Counters, VdevSnapshot};

/// One core.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CoreStatus {
    /// The name in the configuration.
    pub name: String,
    /// In Linux's spelling: offline, suspended, running, crashed, attached, detached.
    pub state: String,
    /// Who wants it running.
    pub holders: Vec<String>,
    /// The kind of engine.
    pub engine: String,
    /// The firmware's file name.
    pub firmware: String,
    /// The first 16 digits of the file's SHA-256.
    pub firmware_sha256: String,
    /// Number of the last boot; 0 before the first.
    pub incarnation: u32,
    /// Crashes since the daemon started.
    pub crashes: u32,
    /// Is a crashed core started again without being asked?
    pub recovery: bool,
    /// While the core is crashed: what comes next. "restart in 0.2 s", "held after 10 crashes",
    /// "recovery is disabled".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// The last crash: in which incarnation, of which type, what happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_crash: Option<String>,
    /// What became of the coredump of the last crash, if one was wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_dump: Option<String>,
    /// Kicks of the firmware with notify ids that no vring has, since the daemon started.
    pub unknown_kicks: u64,
    /// How long the last boot, stop, recovery, attach and detach took.
    pub timelines: Vec<TimelineStatus>,
    /// The core's vdevs, in the order of the resource table.
    pub vdevs: Vec<VdevStatus>,
}

/// The last change of one kind.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TimelineStatus {
    /// "boot", "stop", "recovery", "attach" or "detach".
    pub what: String,
    /// All steps together, in microseconds.
    pub microseconds: u64,
    /// Its steps, in order.
    pub steps: Vec<StepStatus>,
}

/// One step of a change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepStatus {
    /// "load", "start" and the like.
    pub step: String,
    /// How long it took.
    pub microseconds: u64,
}

impl From<&Timeline> for TimelineStatus {
    fn from(timeline: &Timeline) -> Self {
        let micros =
            |time: std::time::Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Self {
            what: timeline.what.to_owned(),
            microseconds: micros(timeline.total()),
            steps: timeline
                .steps
                .iter()
                .map(|(step, time)| StepStatus {
                    step: (*step).to_owned(),
                    microseconds: micros(*time),
                })
                .collect(),
        }
    }
}

/// One vdev.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VdevStatus {
    /// Is a guest's driver attached?
    pub guest_attached: bool,
    /// Has the firmware been told that a driver is there?
    pub driver_ok: bool,
    /// Messages that the firmware holds.
    pub core_holds: u16,
    /// Does a message wait for a buffer of the guest?
    pub starved: bool,
    /// From the core to the guest.
    pub to_guest: DirectionStatus,
    /// From the guest to the core.
    pub to_core: DirectionStatus,
    /// What the firmware has announced and not withdrawn.
    pub announced: Vec<AnnouncedStatus>,
}

/// One direction of a vdev, counted since the daemon started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectionStatus {
    /// Messages relayed.
    pub messages: u64,
    /// Their bytes, headers included.
    pub bytes: u64,
    /// Kicks of the core, or calls of the guest.
    pub notifications: u64,
    /// Chains of the guest that could not be used.
    pub bad_chains: u64,
    /// Messages dropped: shorter than they say.
    pub malformed: u64,
    /// Messages dropped: larger than the receiver's buffers.
    pub too_long: u64,
    /// Announcements held back from a guest without name service.
    pub withheld: u64,
    /// Messages that died with an incarnation of the core.
    pub lost: u64,
}

/// One announced endpoint.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AnnouncedStatus {
    /// The service's name; bytes that are no printable ASCII are escaped.
    pub name: String,
    /// The endpoint's address.
    pub address: u32,
}

impl From<Counters> for DirectionStatus {
    fn from(counters: Counters) -> Self {
        let Counters {
            messages,
            bytes,
            notifications,
            bad_chains,
            malformed,
            too_long,
            withheld,
            lost,
        } = counters;
        Self {
            messages,
            bytes,
            notifications,
            bad_chains,
            malformed,
            too_long,
            withheld,
            lost,
        }
    }
}

impl From<&VdevSnapshot> for VdevStatus {
    fn from(vdev: &VdevSnapshot) -> Self {
        Self {
            guest_attached: vdev.guest_up,
            driver_ok: vdev.core_up,
            core_holds: vdev.core_holds,
            starved: vdev.starved,
            to_guest: vdev.to_guest.into(),
            to_core: vdev.to_core.into(),
            announced: vdev
                .announcements
                .iter()
                .map(|announced| AnnouncedStatus {
                    name: announced.name.escape_ascii().to_string(),
                    address: announced.address,
                })
                .collect(),
        }
    }
}
