//! What has to be there while a core runs, besides the core: Linux's `struct rproc_subdev`.
//!
//! What belongs here: the trait, and the order in which several are brought up and down. What does
//! not: the vdevs, which are subdevices too but belong to the machine; they are started last and
//! stopped first, as in Linux, where they come after those of the platform.

use super::boot::{BootError, BootPlan};

/// Something that goes up and down with a core. Every method but [`Subdevice::stop`] may assume
/// that the ones before it were called in the order of this list.
pub trait Subdevice: Send {
    /// For messages.
    fn name(&self) -> &str;

    /// The core is loaded and about to start.
    ///
    /// # Errors
    /// Why the core must not start; nothing of this subdevice is left behind.
    fn prepare(&mut self, plan: &BootPlan) -> Result<(), Refusal> {
        let _ = plan;
        Ok(())
    }

    /// The core has started.
    ///
    /// # Errors
    /// Why the core must stop again; nothing of this start is left behind.
    fn start(&mut self, plan: &BootPlan) -> Result<(), Refusal> {
        let _ = plan;
        Ok(())
    }

    /// The core is about to stop, or has `crashed`, and then does not answer any more.
    fn stop(&mut self, plan: &BootPlan, crashed: bool) {
        let _ = (plan, crashed);
    }

    /// The core has stopped.
    fn unprepare(&mut self) {}
}

/// Why a subdevice does not go up.
pub type Refusal = Box<dyn std::error::Error + Send + Sync>;

/// Those of one core, in order, and how far they are up.
#[derive(Default)]
pub(super) struct Subdevices {
    list: Vec<Box<dyn Subdevice>>,
    prepared: bool,
    started: bool,
}

impl Subdevices {
    pub(super) fn add(&mut self, subdevice: Box<dyn Subdevice>) {
        self.list.push(subdevice);
    }

    /// Forward; where one fails, those before it are unprepared in reverse.
    pub(super) fn prepare(&mut self, plan: &BootPlan) -> Result<(), BootError> {
        for index in 0..self.list.len() {
            if let Err(source) = self.list[index].prepare(plan) {
                for earlier in self.list[..index].iter_mut().rev() {
                    earlier.unprepare();
                }
                return Err(refused(&*self.list[index], "prepare", source));
            }
        }
        self.prepared = true;
        Ok(())
    }

    /// Forward; where one fails, those before it are stopped in reverse, as if the core had
    /// crashed: it is about to be stopped, whatever it does.
    pub(super) fn start(&mut self, plan: &BootPlan) -> Result<(), BootError> {
        for index in 0..self.list.len() {
            if let Err(source) = self.list[index].start(plan) {
                for earlier in self.list[..index].iter_mut().rev() {
                    earlier.stop(plan, true);
                }
                return Err(refused(&*self.list[index], "start", source));
            }
        }
        self.started = true;
        Ok(())
    }

    /// In reverse; once for each start.
    pub(super) fn stop(&mut self, plan: &BootPlan, crashed: bool) {
        if !std::mem::take(&mut self.started) {
            return;
        }
        for subdevice in self.list.iter_mut().rev() {
            subdevice.stop(plan, crashed);
        }
    }

    /// In reverse; once for each preparation.
    pub(super) fn unprepare(&mut self) {
        if !std::mem::take(&mut self.prepared) {
            return;
        }
        for subdevice in self.list.iter_mut().rev() {
            subdevice.unprepare();
        }
    }
}

fn refused(subdevice: &dyn Subdevice, step: &'static str, source: Refusal) -> BootError {
    BootError::Subdevice {
        name: subdevice.name().to_owned(),
        step,
        source,
    }
}
