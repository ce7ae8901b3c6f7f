//! The lifecycle of remote cores.
//!
//! What belongs here: states and what leads from one to another, boot and its reverse, notify ids,
//! who drives a core. What does not: what an image says ([`firmware`](crate::firmware)), what runs
//! it ([`engine`](crate::engine)), what happens on a vdev's rings ([`vdev`](crate::vdev)).
//!
//! | module | |
//! |---|---|
//! | `machine` | the states, and one turn of driving |
//! | `boot` | from an image to a running core |
//! | `grants` | what an operator lets a firmware have |
//! | `check` | what a boot would do, for a person |
//! | `table` | the resource table of a running core |
//! | `drive` | the thread that brings the work drives |
//! | `core` | the core's own thread, and asking a core for something |
//! | `recovery` | whether and when a crashed core is started again |
//! | `status` | a core's figures |

mod boot;
mod check;
mod core;
mod drive;
mod grants;
mod machine;
mod recovery;
mod status;
mod table;

pub use boot::{BootError, BootPlan, Clean, TraceBuffer, VdevPlan, check_vdevs};
pub use check::{Check, CheckOptions, check};
pub use core::Core;
pub use drive::Driven;
pub use grants::{DevmemGrant, Grants, VendorRule};
pub use machine::{
    Departure, Firmware, FirmwareError, Later, Machine, Policies, RequestError, vdev_label,
};
pub use recovery::{CrashHistory, Decision, RecoveryPolicy};
pub use status::{AnnouncedStatus, CoreStatus, DirectionStatus, VdevStatus};
pub use table::LiveTable;
