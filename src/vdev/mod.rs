//! One virtio device that a firmware declares, served to one guest.
//!
//! ```text
//!            VMM                     this room                        core
//!  socket ── backend (vhost-user) ── Vdev ─┬─ guest_ring   relay ── driver_ring ── carveouts
//!            session, vrings               └─ guest_ring   relay ── driver_ring
//! ```
//!
//! What belongs here: the vhost-user face, both sides' rings, and the relay between them. What
//! does not: the lifecycle of the core and the engine that runs it.

mod backend;
mod device;
mod driver_ring;
mod farewell;
mod features;
mod guest_ring;
#[cfg(test)]
mod mock;
#[cfg(test)]
mod model;
mod relay;
mod rpmsg;
mod session;
mod socket;
mod vring;
mod words;

pub use backend::{GuestFace, MAX_QUEUE_SIZE};
pub use device::{GuestQueue, GuestState, RING_F_EVENT_IDX, Round, Vdev, VdevSnapshot};
pub use driver_ring::{DriverBurst, DriverRing, FirmwareFault, VringShape};
pub use features::{feature_names, offered};
pub use guest_ring::{
    Burst, ChainFault, Direction, GuestRing, MAX_BUFFERS_PER_CHAIN, Next, RingFault, RingFeatures,
    RingLayout,
};
pub use relay::{Counters, MESSAGES_PER_BURST, RelayFault};
pub use rpmsg::{
    Announced, Announcements, BUFFER_LEN, HEADER_LEN, Header, MAX_ANNOUNCED, NS_ADDRESS, NS_LEN,
    News, VIRTIO_ID_RPMSG, VIRTIO_RPMSG_F_NS,
};
pub use session::{Listening, Permissions, SessionError, bind};
pub use socket::{MEMORY_NAME, Passed, Socket};
pub use vring::Vring;

/// Queues of a vdev, and vrings: one for each direction.
pub const QUEUES: usize = 2;
/// The queue of messages to the guest; vring 0 of the vdev.
pub const QUEUE_TO_GUEST: usize = 0;
/// The queue of messages to the core; vring 1 of the vdev.
pub const QUEUE_TO_CORE: usize = 1;
