//! What guests do to a core: they come, go, and read and write configuration space.

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{error, info, warn};
use vm_memory::GuestMemoryMmap;

use super::{BUDGET, Departure, Incarnation, Machine, Origin, State};
use crate::engine::{Engine, RunEnd};
use crate::report::sentence;
use crate::rproc::boot::BootPlan;
use crate::rproc::events::What;
use crate::rproc::holders::Holder;
use crate::vdev::{
    DriverRing, GuestQueue, GuestState, QUEUE_TO_GUEST, QUEUES, RING_F_EVENT_IDX, RingFault, Vdev,
};

/// How many budgets a firmware has to notice that its vdev was reset.
const BUDGETS_TO_NOTICE_A_RESET: u32 = 16;
/// And how long the vdev's next start waits for one that needs more.
const TIME_TO_NOTICE_A_RESET: Duration = Duration::from_secs(2);

/// `VIRTIO_CONFIG_S_ACKNOWLEDGE` of virtio 1.2, section 2.1.
const STATUS_ACKNOWLEDGE: u8 = 1;
/// `VIRTIO_CONFIG_S_DRIVER`.
const STATUS_DRIVER: u8 = 2;
/// `VIRTIO_CONFIG_S_DRIVER_OK`.
const STATUS_DRIVER_OK: u8 = 4;
/// `VIRTIO_CONFIG_S_FAILED`.
pub(super) const STATUS_FAILED: u8 = 0x80;

/// The device's own feature bits, of the 32 in the table (virtio 1.2, section 2.2): the others
/// belong to ring and transport.
const DEVICE_FEATURES: u32 = 0x00ff_ffff;

impl Machine {
    /// A guest gives a queue of a vdev.
    ///
    /// # Errors
    /// A [`RingFault`] if the queue's ring cannot be used.
    pub fn attach(
        &mut self,
        vdev: usize,
        index: usize,
        queue: GuestQueue,
    ) -> Result<GuestState, RingFault> {
        let state = self.vdevs[vdev].attach(index, queue)?;
        if state == GuestState::Incomplete {
            return Ok(state);
        }
        let arriving = Holder::Guest { vdev };
        if state == GuestState::Fresh {
            self.departed(vdev);
        }
        if self.policies.boot_on_guest
            && !self.holders.contains(&arriving)
            && let Err(cause) = self.start(arriving)
        {
            let label = self.vdevs[vdev].label();
            error!("{label}: for its guest: {}", sentence(&cause));
        }
        if !self.vdevs[vdev].core_is_up() {
            self.start_vdev(vdev);
        }
        self.tell(What::Guest, Some(vdev), |_| "attached".to_owned());
        Ok(state)
    }

    /// A guest takes a queue of a vdev back.
    pub fn detach(&mut self, vdev: usize, index: usize) -> Option<u16> {
        self.vdevs[vdev].detach(index)
    }

    /// The guest of a vdev is gone, and its queues with it.
    pub fn guest_gone(&mut self, vdev: usize) {
        for index in 0..QUEUES {
            self.vdevs[vdev].detach(index);
        }
        self.tell(What::Guest, Some(vdev), |_| "gone".to_owned());
        let leaving = Holder::Guest { vdev };
        if self.holders.are_only(&leaving) && !matches!(self.state, State::Attached(_)) {
            // The core is stopped right away. A restart, or the time to notice a reset, would be
            // for nobody.
            self.vdevs[vdev].reset();
        } else {
            self.departed(vdev);
        }
        if let Err(cause) = self.release(&leaving) {
            error!("{}", sentence(&cause));
        }
    }

    /// The guest that a vdev had is gone.
    fn departed(&mut self, vdev: usize) {
        let was_served = self.vdevs[vdev].core_is_up();
        let booted = matches!(
            &self.state,
            State::Running(Incarnation {
                origin: Origin::Booted,
                ..
            })
        );
        match self.policies.departures.get(vdev) {
            Some(Departure::RestartCore) if was_served && booted => {
                // The next guest hears nothing of what this one was told.
                self.vdevs[vdev].reset();
                info!(
                    "{}: the guest is gone, the core is restarted",
                    self.vdevs[vdev].label()
                );
                self.restart_for_departure();
            }
            _ => self.reset_vdev(vdev),
        }
    }

    /// The memory of a vdev's guest was laid out anew.
    pub fn set_memory(&mut self, vdev: usize, memory: Arc<GuestMemoryMmap>) {
        self.vdevs[vdev].set_memory(&memory);
    }

    /// Reads a vdev's configuration space, from the core if it is up; zeroes past its end.
    pub fn read_config(&mut self, vdev: usize, offset: u32, into: &mut [u8]) {
        into.fill(0);
        let Some((config, at)) = self.config_span(vdev, offset, into.len()) else {
            return;
        };
        let into = &mut into[..config.len()];
        match self.state.alive() {
            Some(incarnation) => incarnation.plan.table.read(at, into),
            None => into.copy_from_slice(&config),
        }
    }

    /// Writes a vdev's configuration space, if the core is up; what lies past its end is ignored.
    pub fn write_config(&mut self, vdev: usize, offset: u32, bytes: &[u8]) {
        let Some((config, at)) = self.config_span(vdev, offset, bytes.len()) else {
            return;
        };
        if let Some(incarnation) = self.state.alive() {
            incarnation.plan.table.write(at, &bytes[..config.len()]);
        }
    }

    /// The part of a vdev's configuration space that an access touches: its bytes in the table
    /// that the core began with, and their offset in the table.
    fn config_span(&self, vdev: usize, offset: u32, len: usize) -> Option<(Vec<u8>, usize)> {
        let entry = match self.state.incarnation() {
            Some(incarnation) => incarnation.plan.vdevs.get(vdev)?.entry(),
            None => self.firmware.vdevs().nth(vdev)?,
        };
        let rest = entry.config.get(offset as usize..)?;
        let part = &rest[..len.min(rest.len())];
        (!part.is_empty()).then(|| (part.to_vec(), entry.config_offset() + offset as usize))
    }

    /// Tells the firmware that the driver of a vdev is gone: status 0, and a kick so that it
    /// looks. Linux writes the same and leaves the firmware to find out by itself.
    fn reset_vdev(&mut self, index: usize) {
        let vdev = &mut self.vdevs[index];
        let was_up = vdev.core_is_up();
        vdev.reset();
        self.tell_news();
        if !was_up {
            return;
        }
        let vdev = &mut self.vdevs[index];
        let Some(incarnation) = self.state.alive() else {
            return;
        };
        let plan = &incarnation.plan.vdevs[index];
        incarnation
            .plan
            .table
            .write_u8(plan.entry().status_offset(), 0);
        self.engine.kick(plan.ids()[QUEUE_TO_GUEST]);
        info!("{}: reset", vdev.label());
        for _ in 0..BUDGETS_TO_NOTICE_A_RESET {
            match self.engine.run(BUDGET).end {
                RunEnd::BudgetSpent => {}
                // A crash or a power off is still there when the core is driven next.
                RunEnd::Waiting { .. } | RunEnd::PoweredOff | RunEnd::Crashed(_) => return,
            }
        }
        // Its rings must not be made anew under it.
        info!(
            "{}: the firmware is busy and has not seen the reset yet",
            vdev.label()
        );
        self.unnoticed.retain(|(late, _)| *late != index);
        self.unnoticed
            .push((index, Instant::now() + TIME_TO_NOTICE_A_RESET));
    }

    /// Starts the vdevs that wait for the firmware to see a reset, if it has come to wait, and so
    /// has looked, or does not within the time that it has. Says whether any was started.
    pub(super) fn start_late_vdevs(&mut self, firmware_waits: bool) -> bool {
        let now = Instant::now();
        let mut started = false;
        for (index, until) in std::mem::take(&mut self.unnoticed) {
            if !firmware_waits && now < until {
                self.unnoticed.push((index, until));
                continue;
            }
            let vdev = &self.vdevs[index];
            if !firmware_waits {
                warn!(
                    "{}: the firmware has been busy for {TIME_TO_NOTICE_A_RESET:?} since the \
                     reset; its rings are made anew whether or not it has seen it",
                    vdev.label()
                );
            }
            if vdev.guest_is_up() && !vdev.core_is_up() {
                self.start_vdev(index);
                started = true;
            }
        }
        started
    }

    /// Starts a vdev whose guest is there, if the core is driven and has seen the last reset.
    pub(super) fn start_vdev(&mut self, index: usize) {
        if self.unnoticed.iter().any(|(late, _)| *late == index) {
            return;
        }
        if let Some(incarnation) = self.state.driven() {
            let vdev = &mut self.vdevs[index];
            start_vdev(vdev, &mut incarnation.plan, index, &mut *self.engine);
        }
    }
}

/// Makes the core's rings and tells the firmware that a driver is there, in Linux's order
/// (`rproc_virtio.c`): rings, features, addresses, then the status, then a kick of vring 0.
pub(super) fn start_vdev(
    vdev: &mut Vdev,
    plan: &mut BootPlan,
    index: usize,
    engine: &mut dyn Engine,
) {
    let BootPlan {
        carveouts,
        table,
        vdevs,
        ..
    } = plan;
    let plan = &vdevs[index];
    let entry = plan.entry();
    // The ring features between rprocd and the firmware are theirs alone.
    let event_idx = entry.dfeatures & RING_F_EVENT_IDX as u32;
    let started = plan.make_rings(carveouts).and_then(|mut rings| {
        if event_idx != 0 {
            rings.iter_mut().for_each(DriverRing::set_event_idx);
        }
        vdev.start(rings, plan.ids())
    });
    if let Err(cause) = started {
        error!("{}: cannot be started: {cause}", vdev.label());
        table.write_u8(entry.status_offset(), STATUS_FAILED);
        return;
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the table has the low 32 bits"
    )]
    let features = vdev.features() as u32 & entry.dfeatures & DEVICE_FEATURES | event_idx;
    table.write_u8(entry.status_offset(), STATUS_ACKNOWLEDGE);
    table.write_u8(entry.status_offset(), STATUS_ACKNOWLEDGE | STATUS_DRIVER);
    table.write_u32(entry.gfeatures_offset(), features);
    for (offset, da) in plan.vring_places() {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a core's memory ends in 4 GiB"
        )]
        table.write_u32(offset, da.0 as u32);
    }
    table.write_u8(
        entry.status_offset(),
        STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_DRIVER_OK,
    );
    engine.kick(plan.ids()[QUEUE_TO_GUEST]);
    info!("{}: driver ok (features {features:#x})", vdev.label());
}
