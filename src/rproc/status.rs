//! A core's figures, as they go over the control socket.
//!
//! What belongs here: plain values and their names in JSON. What does not: how they come about,
//! and how they are shown.

use serde::{Deserialize, Serialize};

use super::histogram::Histogram;
use super::timeline::{Timeline, micros};
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
    /// How long the incarnation that is there has been.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uptime_microseconds: Option<u64>,
    /// How long the core has executed instructions since the daemon started, if its engine can
    /// tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ran_microseconds: Option<u64>,
    /// The same, of the incarnation that is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incarnation_ran_microseconds: Option<u64>,
    /// The program counter of the incarnation that is there, if the engine can tell: of the next
    /// instruction, or of the one with which the core waits or died.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pc: Option<u64>,
    /// Where its memory begins.
    pub memory_da: u64,
    /// How large its memory is.
    pub memory_bytes: u64,
    /// Crashes since the daemon started.
    pub crashes: u32,
    /// The same, by type.
    pub crashes_by_reason: Vec<CrashCount>,
    /// From a crash to the next incarnation.
    pub recovery_time: Histogram,
    /// From a guest's kick until all that came of it was relayed.
    pub relay_time: Histogram,
    /// Whether and how coredumps are written: disabled, enabled, inline.
    pub coredump_mode: String,
    /// What became of coredumps.
    pub coredumps: DumpCount,
    /// Its traces: the trace buffers in the order of the resource table; and `uart`, behind those that
    /// there were when the firmware first wrote to it.
    pub traces: Vec<TraceCount>,
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
    /// Where the last incarnation ended by itself: that, and what follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// Kicks of the firmware with notify ids that no vring has, since the daemon started.
    pub unknown_kicks: u64,
    /// How long the last boot, stop, recovery, attach and detach took.
    pub timelines: Vec<TimelineStatus>,
    /// The core's vdevs, in the order of the resource table.
    pub vdevs: Vec<VdevStatus>,
}

/// Crashes of one type.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CrashCount {
    /// The type.
    pub reason: String,
    /// How many.
    pub count: u64,
}

/// What became of coredumps, since the daemon started.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct DumpCount {
    /// Whole ones.
    pub written: u64,
    /// Those whose end is missing.
    pub partial: u64,
    /// Not wanted, because of the quota.
    pub skipped: u64,
    /// Those that could not be written.
    pub failed: u64,
    /// Bytes on the disk, of all of them.
    pub bytes: u64,
    /// How long they took, all together.
    pub microseconds: u64,
}

/// What was found in a trace, since the daemon started.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct TraceCount {
    /// The buffer's name in the resource table, or `uart`.
    pub name: String,
    /// Bytes of text.
    pub bytes: u64,
    /// How often text was overwritten unseen.
    pub overruns: u64,
}

/// A vring on the core's side.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VringStatus {
    /// Its notify id, once the core has booted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notify_id: Option<u32>,
    /// Where it is, once the core has booted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub da: Option<u64>,
    /// Descriptors.
    pub size: u16,
    /// Alignment.
    pub align: u32,
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
    /// Virtio device id.
    pub device_id: u32,
    /// Device features that the firmware offers.
    pub features: u32,
    /// What a VMM is offered, once there is something for one to connect to: features of the
    /// device, the rings and the transport.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offered_features: Option<u64>,
    /// What the guest's driver accepted of that, while it is attached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted_features: Option<u64>,
    /// Length of its configuration space.
    pub config_bytes: usize,
    /// Where a VMM connects, if anything listens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// Its vrings.
    pub vrings: Vec<VringStatus>,
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
        // What the firmware's table says is the machine's to fill in.
        Self {
            device_id: 0,
            features: 0,
            offered_features: None,
            accepted_features: vdev.accepted,
            config_bytes: 0,
            socket: None,
            vrings: Vec::new(),
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
