//! systemd's watchdog: it is told now and then that all is well, or restarts the daemon.
//!
//! What belongs here: when it is told. What does not: what is well; a core's pulse says that.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use log::{error, warn};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use sd_notify::NotifyState;

use rprocd::rproc::Core;

/// Tells systemd, unless a core's driver gets nowhere. That the event loop comes here says that it
/// does not hang itself.
pub struct Watchdog {
    timer: OwnedFd,
    cores: Arc<Vec<Core>>,
    /// The cores' pulses when they were last looked at.
    pulses: Vec<Option<u64>>,
}

impl Watchdog {
    /// One that tells it twice within `limit`.
    pub fn new(limit: Duration, cores: Arc<Vec<Core>>) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let period = Timespec::try_from((limit / 2).max(Duration::from_millis(1)))
            .map_err(io::Error::other)?;
        let often = Itimerspec {
            it_interval: period,
            it_value: period,
        };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &often)?;
        Ok(Self {
            timer,
            pulses: vec![None; cores.len()],
            cores,
        })
    }

    /// Has every core been driven on, or is it waiting?
    fn all_is_well(&mut self) -> bool {
        let mut well = true;
        for (core, before) in self.cores.iter().zip(&mut self.pulses) {
            let now = core.pulse();
            if now.is_some() && now == *before {
                warn!("{}: whoever drives it gets nowhere", core.name());
                well = false;
            }
            *before = now;
        }
        well
    }
}

impl MutEventSubscriber for Watchdog {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(cause) = ops.add(Events::new(&self.timer, EventSet::IN)) {
            error!("systemd's watchdog will not be told that all is well: {cause}");
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        let _ = rustix::io::read(&self.timer, &mut [0u8; 8]);
        if self.all_is_well() {
            super::tell_systemd(&[NotifyState::Watchdog]);
        }
    }
}
