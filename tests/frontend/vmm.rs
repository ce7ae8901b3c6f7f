//! The VMM: owns guest memory and the connection, and speaks vhost-user in a real VMM's order.
//!
//! What belongs here: which message goes when, in the manner of each VMM. What does not: what is in
//! the rings; the driver writes those, as in a guest.

use std::path::Path;
use std::sync::Arc;

use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::driver::{DriverQueue, Events, RingLayout};
use super::ram::GuestRam;

/// The device announces its channels by messages (rpmsg's only own feature).
pub const F_NAME_SERVICE: u64 = 1 << 0;
/// A chain may be in a table of its own.
pub const F_INDIRECT: u64 = 1 << 28;
/// Kicks and calls are asked for by index.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// Not a legacy device.
pub const F_VERSION_1: u64 = 1 << 32;
/// Packed virtqueues.
pub const F_PACKED: u64 = 1 << 34;
/// In vhost-user only: there are protocol features.
pub const F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// The rpmsg device's queues.
pub const QUEUES: usize = 2;

/// Why something did not work, as a sentence.
pub type Failure = String;

/// Whose manners to use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manner {
    /// QEMU's `vhost-user-test-device`.
    Qemu,
    /// cloud-hypervisor: no feature bits of the device's own, ring base = the available index.
    CloudHypervisor,
    /// crosvm: addresses before bases, features only if they changed, no acknowledgements.
    Crosvm,
}

/// What the VMM and the guest's driver are like.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whose manners to use.
    pub manner: Manner,
    /// Entries of each queue.
    pub queue_size: u16,
    /// The guest accepts EVENT_IDX.
    pub event_idx: bool,
    /// The guest accepts INDIRECT.
    pub indirect: bool,
    /// The guest accepts announcements.
    pub name_service: bool,
    /// Regions of guest memory, 1 or 2.
    pub regions: usize,
    /// Protocol features that this VMM does not know.
    pub unknown: VhostUserProtocolFeatures,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            manner: Manner::Qemu,
            queue_size: 256,
            event_idx: true,
            indirect: true,
            name_service: true,
            regions: 2,
            unknown: VhostUserProtocolFeatures::empty(),
        }
    }
}

/// A queue as the VMM knows it.
struct Ring {
    layout: RingLayout,
    events: Events,
    /// Where to go on at the next start.
    base: u16,
}

/// One VMM with one device.
pub struct Vmm {
    options: Options,
    ram: Arc<GuestRam>,
    frontend: Option<Frontend>,
    offered: u64,
    protocol_offered: VhostUserProtocolFeatures,
    protocol: VhostUserProtocolFeatures,
    queue_count: u64,
    /// What the device was last told to use.
    features_sent: Option<u64>,
    rings: Vec<Ring>,
    /// Takes the calls while the guest's own are not connected, as QEMU does.
    masked: Vec<EventFd>,
    errors: Vec<EventFd>,
}

fn event() -> EventFd {
    EventFd::new(EFD_NONBLOCK).expect("an eventfd")
}

/// Turns the crate's errors into sentences.
trait Said<T> {
    fn said(self, what: &str) -> Result<T, Failure>;
}

impl<T> Said<T> for vhost::Result<T> {
    fn said(self, what: &str) -> Result<T, Failure> {
        self.map_err(|error| format!("{what} failed: {error}"))
    }
}

impl Vmm {
    /// Connects to a device and says what is said before a driver is there.
    pub fn connect(path: &Path, options: Options) -> Result<Self, Failure> {
        let ram = GuestRam::new(options.regions);
        let mut vmm = Self {
            options,
            ram,
            frontend: None,
            offered: 0,
            protocol_offered: VhostUserProtocolFeatures::empty(),
            protocol: VhostUserProtocolFeatures::empty(),
            queue_count: 0,
            features_sent: None,
            rings: Vec::new(),
            masked: (0..QUEUES).map(|_| event()).collect(),
            errors: (0..QUEUES).map(|_| event()).collect(),
        };
        vmm.reconnect(path)?;
        Ok(vmm)
    }

    /// Connects again; the guest, its memory and its rings stay what they were.
    pub fn reconnect(&mut self, path: &Path) -> Result<(), Failure> {
        self.hang_up();
        let frontend = Frontend::connect(path, QUEUES as u64).said("connecting")?;
        self.frontend = Some(frontend);
        match self.options.manner {
            Manner::Qemu => self.greet_as_qemu(),
            Manner::CloudHypervisor | Manner::Crosvm => self.greet_as_others(),
        }
    }

    /// Ends the connection without a word.
    pub fn hang_up(&mut self) {
        self.frontend = None;
        self.features_sent = None;
    }

    fn greet_as_qemu(&mut self) -> Result<(), Failure> {
        self.learn_features()?;
        self.agree_on_protocol()?;
        self.frontend().set_owner().said("SET_OWNER")?;
        self.learn_features()?;
        for index in 0..QUEUES {
            self.acknowledged(true);
            let frontend = self.frontend();
            frontend
                .set_vring_call(index, &self.masked[index])
                .said("SET_VRING_CALL")?;
            frontend
                .set_vring_err(index, &self.errors[index])
                .said("SET_VRING_ERR")?;
            self.acknowledged(false);
        }
        Ok(())
    }

    fn greet_as_others(&mut self) -> Result<(), Failure> {
        self.frontend().set_owner().said("SET_OWNER")?;
        self.learn_features()?;
        self.agree_on_protocol()
    }

    fn learn_features(&mut self) -> Result<(), Failure> {
        self.offered = self.frontend().get_features().said("GET_FEATURES")?;
        Ok(())
    }

    fn agree_on_protocol(&mut self) -> Result<(), Failure> {
        let unknown = self.options.unknown;
        let frontend = self.frontend_mut();
        let offered = frontend
            .get_protocol_features()
            .said("GET_PROTOCOL_FEATURES")?;
        let protocol = offered.difference(unknown);
        frontend
            .set_protocol_features(protocol)
            .said("SET_PROTOCOL_FEATURES")?;
        let mut count = QUEUES as u64;
        if protocol.contains(VhostUserProtocolFeatures::MQ) {
            count = frontend.get_queue_num().said("GET_QUEUE_NUM")?;
        }
        if self.options.manner == Manner::CloudHypervisor {
            self.acknowledged(true);
        }
        self.protocol_offered = offered;
        self.protocol = protocol;
        self.queue_count = count;
        Ok(())
    }

    /// The connection, for what this VMM does not do by itself.
    pub fn frontend(&self) -> &Frontend {
        self.frontend.as_ref().expect("a connected VMM")
    }

    /// The same, for requests that want it exclusively.
    pub fn frontend_mut(&mut self) -> &mut Frontend {
        self.frontend.as_mut().expect("a connected VMM")
    }

    /// Guest memory.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// What it was made with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The next driver will be like this. Memory and manner stay.
    pub fn set_driver(&mut self, change: impl FnOnce(&mut Options)) {
        change(&mut self.options);
    }

    /// The device's features as offered, bit 30 included.
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// The protocol features as offered.
    pub fn protocol_offered(&self) -> VhostUserProtocolFeatures {
        self.protocol_offered
    }

    /// The number of queues that the device has.
    pub fn queue_count(&self) -> u64 {
        self.queue_count
    }

    /// What the guest's driver accepts of what this VMM lets through.
    pub fn guest_features(&self) -> u64 {
        let mut known = F_VERSION_1;
        for (wanted, bit) in [
            (self.options.event_idx, F_EVENT_IDX),
            (
                self.options.indirect && self.options.manner != Manner::Crosvm,
                F_INDIRECT,
            ),
            (
                self.options.name_service && self.options.manner != Manner::CloudHypervisor,
                F_NAME_SERVICE,
            ),
        ] {
            if wanted {
                known |= bit;
            }
        }
        self.offered & known
    }

    /// New rings for a new driver, in zeroed memory. All memory of the last driver is free again.
    pub fn new_queues(&mut self) -> Vec<DriverQueue> {
        let event_idx = self.guest_features() & F_EVENT_IDX != 0;
        self.ram.release_all();
        self.rings.clear();
        (0..QUEUES)
            .map(|_| {
                let layout = RingLayout::allocate(&self.ram, self.options.queue_size);
                let events = Events::new();
                self.rings.push(Ring {
                    layout,
                    events: events.share(),
                    base: 0,
                });
                DriverQueue::new(Arc::clone(&self.ram), layout, event_idx, events)
            })
            .collect()
    }

    /// Sets or clears NEED_REPLY for what follows, as far as the manner has it.
    fn acknowledged(&self, wanted: bool) {
        let wanted = match self.options.manner {
            Manner::Qemu => wanted,
            Manner::CloudHypervisor => true,
            Manner::Crosvm => false,
        };
        let flag = if wanted && self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            VhostUserHeaderFlag::NEED_REPLY
        } else {
            VhostUserHeaderFlag::empty()
        };
        self.frontend().set_hdr_flags(flag);
    }

    /// The driver said DRIVER_OK.
    pub fn driver_start(&mut self) -> Result<(), Failure> {
        let features = self.guest_features() | (self.offered & F_PROTOCOL_FEATURES);
        if self.options.manner != Manner::Crosvm || self.features_sent != Some(features) {
            self.frontend()
                .set_features(features)
                .said("SET_FEATURES")?;
            self.features_sent = Some(features);
        }
        self.acknowledged(true);
        let table = self.ram.table();
        self.frontend()
            .set_mem_table(&table)
            .said("SET_MEM_TABLE")?;
        self.acknowledged(false);
        match self.options.manner {
            Manner::Qemu => self.start_as_qemu(),
            Manner::CloudHypervisor => self.start_as_cloud_hypervisor(),
            Manner::Crosvm => self.start_as_crosvm(),
        }
    }

    fn start_as_qemu(&mut self) -> Result<(), Failure> {
        for index in 0..self.rings.len() {
            self.send_num(index)?;
            self.send_base(index, self.rings[index].base)?;
            self.send_addresses(index)?;
            self.acknowledged(true);
            self.send_kick(index)?;
            self.frontend()
                .set_vring_call(index, &self.masked[index])
                .said("SET_VRING_CALL")?;
            self.acknowledged(false);
        }
        self.acknowledged(true);
        self.enable(true)?;
        for index in 0..self.rings.len() {
            self.send_call(index)?;
            // A call that came in between is not lost.
            if self.masked[index].read().is_ok() {
                self.rings[index]
                    .events
                    .call
                    .write(1)
                    .map_err(|error| error.to_string())?;
            }
        }
        self.acknowledged(false);
        Ok(())
    }

    fn start_as_cloud_hypervisor(&mut self) -> Result<(), Failure> {
        for index in 0..self.rings.len() {
            self.send_num(index)?;
        }
        for index in 0..self.rings.len() {
            self.send_addresses(index)?;
            let avail = self.rings[index].layout.avail + 2;
            let base = self.ram.load(avail, std::sync::atomic::Ordering::Acquire);
            self.send_base(index, base)?;
            self.send_call(index)?;
            self.send_kick(index)?;
        }
        self.enable(true)
    }

    fn start_as_crosvm(&mut self) -> Result<(), Failure> {
        for index in 0..self.rings.len() {
            self.send_num(index)?;
            self.send_addresses(index)?;
            self.send_base(index, self.rings[index].base)?;
            self.send_call(index)?;
            self.send_kick(index)?;
            self.frontend_mut()
                .set_vring_enable(index, true)
                .said("SET_VRING_ENABLE")?;
        }
        Ok(())
    }

    /// Stops the rings, as at a reset of the driver and at a stop of the machine; where each ring
    /// would go on.
    pub fn driver_stop(&mut self) -> Result<Vec<u16>, Failure> {
        if self.options.manner == Manner::Qemu {
            self.acknowledged(true);
            self.enable(false)?;
            self.acknowledged(false);
        }
        let mut bases = Vec::new();
        for index in 0..self.rings.len() {
            if self.options.manner != Manner::Qemu {
                self.frontend_mut()
                    .set_vring_enable(index, false)
                    .said("SET_VRING_ENABLE")?;
            }
            let base = self
                .frontend()
                .get_vring_base(index)
                .said("GET_VRING_BASE")?;
            let base =
                u16::try_from(base).map_err(|_| format!("ring {index} stopped at base {base}"))?;
            self.rings[index].base = base;
            bases.push(base);
        }
        Ok(bases)
    }

    /// Stops the machine; the rings stay in memory as they are. What each ring would go on with.
    pub fn pause(&mut self) -> Result<Vec<u16>, Failure> {
        if self.options.manner == Manner::CloudHypervisor {
            self.enable(false)?;
            return Ok(Vec::new());
        }
        self.driver_stop()
    }

    /// The machine goes on after [`Vmm::pause`].
    pub fn resume(&mut self) -> Result<(), Failure> {
        if self.options.manner == Manner::CloudHypervisor {
            return self.enable(true);
        }
        self.driver_start()
    }

    /// Enables or disables all rings.
    pub fn enable(&mut self, on: bool) -> Result<(), Failure> {
        for index in 0..self.rings.len() {
            self.frontend_mut()
                .set_vring_enable(index, on)
                .said("SET_VRING_ENABLE")?;
        }
        Ok(())
    }

    fn send_num(&self, index: usize) -> Result<(), Failure> {
        self.frontend()
            .set_vring_num(index, self.rings[index].layout.size)
            .said("SET_VRING_NUM")
    }

    fn send_base(&self, index: usize, base: u16) -> Result<(), Failure> {
        self.frontend()
            .set_vring_base(index, base)
            .said("SET_VRING_BASE")
    }

    fn send_addresses(&self, index: usize) -> Result<(), Failure> {
        let layout = self.rings[index].layout;
        let data = VringConfigData {
            queue_max_size: layout.size,
            queue_size: layout.size,
            flags: 0,
            desc_table_addr: self.ram.user_address(layout.descriptors),
            used_ring_addr: self.ram.user_address(layout.used),
            avail_ring_addr: self.ram.user_address(layout.avail),
            log_addr: None,
        };
        self.frontend()
            .set_vring_addr(index, &data)
            .said("SET_VRING_ADDR")
    }

    fn send_kick(&self, index: usize) -> Result<(), Failure> {
        let kick = &self.rings[index].events.kick;
        self.frontend()
            .set_vring_kick(index, kick)
            .said("SET_VRING_KICK")
    }

    fn send_call(&self, index: usize) -> Result<(), Failure> {
        let call = &self.rings[index].events.call;
        self.frontend()
            .set_vring_call(index, call)
            .said("SET_VRING_CALL")
    }

    /// Reads from the device's configuration space.
    pub fn get_config(&mut self, offset: u32, size: u32) -> Result<Vec<u8>, Failure> {
        let nothing = vec![0; size as usize];
        let (_, bytes) = self
            .frontend_mut()
            .get_config(offset, size, VhostUserConfigFlags::WRITABLE, &nothing)
            .said("GET_CONFIG")?;
        Ok(bytes)
    }

    /// Writes to the device's configuration space.
    pub fn set_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Failure> {
        self.frontend_mut()
            .set_config(offset, VhostUserConfigFlags::WRITABLE, bytes)
            .said("SET_CONFIG")
    }

    /// Waits until the device has worked off all that was said before, by asking something.
    pub fn settle(&self) -> Result<(), Failure> {
        self.frontend()
            .get_features()
            .said("GET_FEATURES")
            .map(|_| ())
    }
}

const _: () = assert!(VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == F_PROTOCOL_FEATURES);
