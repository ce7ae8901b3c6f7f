//! The lifecycle of remote cores.
//!
//! What belongs here: states and what leads from one to another, boot and its reverse, notify ids,
//! who drives a core. What does not: what an image says ([`firmware`](crate::firmware)), what runs
//! it ([`engine`](crate::engine)), what happens on a vdev's rings ([`vdev`](crate::vdev)).
//!
//! | module | |
//! |---|---|
//! | `admission` | what may be asked in which state |
//! | `machine` | the states, and one turn of driving |
//! | `boot` | from an image to a running core |
//! | `firmware` | the configured firmware, and what VMMs are told because of it |
//! | `grants` | what an operator lets a firmware have |
//! | `check` | what a boot would do, for a person |
//! | `table` | the resource table of a running core |
//! | `subdevice` | what goes up and down with a core |
//! | `holders` | who wants a core running |
//! | `drive` | the thread that brings the work drives |
//! | `console` | what a core writes to a UART, kept and logged |
//! | `core` | the core's own thread, and asking a core for something |
//! | `recovery` | whether and when a crashed core is started again |
//! | `evidence` | what is kept of one that crashed |
//! | `pulse` | whether whoever drives gets anywhere |
//! | `events` | what happened, numbered, for those who watch |
//! | `histogram` | how often something took how long |
//! | `resources` | memory and resource table as plain values |
//! | `timeline` | how long each step took |
//! | `status` | a core's figures |
//! | `trace` | what a firmware writes into its trace buffers, followed and kept |

mod admission;
mod boot;
mod check;
mod console;
mod core;
mod drive;
mod events;
mod evidence;
mod firmware;
mod grants;
mod histogram;
mod holders;
mod machine;
mod pulse;
mod recovery;
mod resources;
mod status;
mod subdevice;
mod table;
mod timeline;
mod trace;

pub use admission::{Admission, CoreState, Verb, admit};
pub use boot::{BootError, BootPlan, Clean, TraceBuffer, VdevPlan, check_vdevs};
pub use check::{Check, CheckOptions, check};
pub use core::Core;
pub use drive::Driven;
pub use events::{EVENTS_KEPT, Event, EventLog, Excerpt, What};
pub use evidence::Coredumps;
pub use firmware::{Firmware, FirmwareError};
pub use grants::{DevmemGrant, Grants, VendorRule};
pub use histogram::{Histogram, RECOVERY_BOUNDS, RELAY_BOUNDS};
pub use holders::Holder;
pub use machine::{Departure, Driver, Later, Linger, Machine, Policies, RequestError, vdev_label};
pub use recovery::{CrashHistory, Decision, RecoveryPolicy};
pub use resources::{Field, Region, Resource, ResourceVring};
pub use status::{
    AnnouncedStatus, CoreStatus, CrashCount, DirectionStatus, DumpCount, StepStatus,
    TimelineStatus, TraceCount, VdevStatus, VringStatus,
};
pub use subdevice::{Refusal, Subdevice};
pub use table::LiveTable;
pub use timeline::Timeline;
pub use trace::{
    LOG_BYTES, MAX_FOLLOWED, MAX_FOLLOWED_OF_CORE, NamedTrace, OldText, TraceFollower, TraceText,
};
