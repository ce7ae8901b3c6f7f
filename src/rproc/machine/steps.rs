//! The steps of coming up and going down, in Linux's order, and how each failure is undone.

use log::{error, info};

use super::guests;
use super::{End, Incarnation, Machine, Next, Origin, RequestError, State};
use crate::engine::EngineError;
use crate::report::sentence;
use crate::rproc::VdevPlan;
use crate::rproc::admission::Verb;
use crate::rproc::boot::{BootError, BootPlan, Clean};
use crate::rproc::firmware::Firmware;
use crate::rproc::timeline::Stopwatch;
use crate::rproc::trace::OldText;

impl Machine {
    /// Boots what is offline or crashed, from the beginning. Offline if that fails.
    pub(super) fn boot_afresh(&mut self) -> Result<(), RequestError> {
        match &self.state {
            State::Crashed(_, Next::Stuck, _) => {
                self.end_after_crash(&mut self.stopwatch("stop"))
                    .map_err(|cause| self.engine_failed(Verb::Start, cause))?;
                self.engine.unprepare();
            }
            State::Crashed(..) => self.engine.unprepare(),
            _ => {}
        }
        self.state = State::Offline;
        let mut stopwatch = self.stopwatch("boot");
        match self.boot(&mut stopwatch) {
            Ok(incarnation) => {
                self.enter(State::Running(incarnation));
                self.record(stopwatch);
                Ok(())
            }
            Err(cause) => {
                self.holders.clear();
                self.enter(State::Offline);
                Err(RequestError::Boot {
                    core: self.name.clone(),
                    source: Box::new(cause),
                })
            }
        }
    }

    /// Linux's `rproc_fw_boot()`.
    fn boot(&mut self, stopwatch: &mut Stopwatch) -> Result<Incarnation, BootError> {
        if !self.engine.abilities().boots {
            return Err(BootError::Start(self.engine.cannot("boot a core")));
        }
        let Firmware {
            snapshot, image, ..
        } = &self.firmware;
        self.engine
            .sanity_check(image, snapshot.bytes())
            .map_err(BootError::Sanity)?;
        stopwatch.lap("sanity check");
        self.engine.prepare().map_err(BootError::Prepare)?;
        stopwatch.lap("prepare");
        let begun = self.boot_prepared(stopwatch);
        if begun.is_err() {
            self.engine.unprepare();
        }
        begun
    }

    fn boot_prepared(&mut self, stopwatch: &mut Stopwatch) -> Result<Incarnation, BootError> {
        let Firmware {
            snapshot,
            image,
            grants,
        } = &self.firmware;
        let plan = BootPlan::new(
            image,
            snapshot.bytes(),
            &mut *self.engine,
            self.vdevs.len(),
            grants,
        )?;
        stopwatch.lap("resources");
        self.bring_up(plan, Clean::All, stopwatch)
    }

    /// Loads and starts what has been planned: the part of a boot that a recovery does again.
    /// Linux's `rproc_start()`.
    pub(super) fn bring_up(
        &mut self,
        mut plan: BootPlan,
        clean: Clean,
        stopwatch: &mut Stopwatch,
    ) -> Result<Incarnation, BootError> {
        let Firmware {
            snapshot, image, ..
        } = &self.firmware;
        let number = self.incarnations.wrapping_add(1);
        plan.load(image, snapshot.bytes(), &mut *self.engine, clean)?;
        let old = match clean {
            Clean::All => OldText::None,
            Clean::Bss => OldText::Kept,
        };
        self.traces
            .begin(&plan.traces, plan.carveouts.ram(), old, number);
        stopwatch.lap("load");
        self.subdevices.prepare(&plan)?;
        stopwatch.lap("prepare subdevices");
        if let Err(cause) = self.engine.start(plan.boot, number) {
            self.subdevices.unprepare();
            return Err(BootError::Start(cause));
        }
        stopwatch.lap("start");
        self.begin(number, &mut plan)?;
        stopwatch.lap("start vdevs");
        info!(
            "{}: incarnation {number} boots firmware {} (sha256 {}) at {} on engine {}",
            self.name,
            self.firmware.snapshot.name(),
            self.firmware.snapshot.short_hash(),
            plan.boot,
            self.engine.kind(),
        );
        Ok(Incarnation::new(plan, Origin::Booted, &*self.engine))
    }

    /// The engine has started or attached: what goes up after it. If that fails, the core is
    /// stopped (Linux does that to an attached one, too).
    fn begin(&mut self, number: u32, plan: &mut BootPlan) -> Result<(), BootError> {
        // Even if what follows fails: the engine may still report a crash of this number.
        self.incarnations = number;
        self.ended = None;
        if let Err(cause) = self.subdevices.start(plan) {
            if let Err(cause) = self.engine.stop() {
                error!("{}: cannot be stopped again: {cause}", self.name);
            }
            self.subdevices.unprepare();
            return Err(cause);
        }
        self.unnoticed.clear();
        if number == 1 {
            plan.log(&self.name);
        }
        for (index, vdev) in self.vdevs.iter_mut().enumerate() {
            if vdev.guest_is_up() {
                guests::start_vdev(vdev, plan, index, &mut *self.engine);
            }
        }
        Ok(())
    }

    /// Linux's `rproc_attach()`. Detached if that fails.
    pub(super) fn attach_core(&mut self) -> Result<(), RequestError> {
        let mut stopwatch = self.stopwatch("attach");
        let begun = match self.engine.prepare() {
            Err(cause) => Err(BootError::Prepare(cause)),
            Ok(()) => {
                stopwatch.lap("prepare");
                let begun = self.attach_prepared(&mut stopwatch);
                if begun.is_err() {
                    self.engine.unprepare();
                }
                begun
            }
        };
        match begun {
            Ok(incarnation) => {
                self.enter(State::Attached(incarnation));
                self.record(stopwatch);
                Ok(())
            }
            Err(cause) => {
                self.enter(State::Detached);
                self.holders.clear();
                Err(RequestError::Attach {
                    core: self.name.clone(),
                    source: Box::new(cause),
                })
            }
        }
    }

    fn attach_prepared(&mut self, stopwatch: &mut Stopwatch) -> Result<Incarnation, BootError> {
        let engine = &mut *self.engine;
        let found = engine
            .get_loaded_rsc_table()
            .map_err(BootError::FindTable)?;
        let configured = self.vdevs.len();
        let (mut plan, pristine) =
            BootPlan::of_running(found, engine, configured, &self.firmware.grants)?;
        self.identities
            .check(plan.vdevs.iter().map(VdevPlan::entry))?;
        stopwatch.lap("resources");
        let number = self.incarnations.wrapping_add(1);
        plan.table.publish();
        self.traces
            .begin(&plan.traces, plan.carveouts.ram(), OldText::None, number);
        let attached = self.subdevices.prepare(&plan).and_then(|()| {
            if let Err(cause) = self.engine.attach(number) {
                self.subdevices.unprepare();
                return Err(BootError::Attach(cause));
            }
            stopwatch.lap("attach");
            self.begin(number, &mut plan)
        });
        if let Err(cause) = attached {
            plan.table.restore(&pristine);
            return Err(cause);
        }
        stopwatch.lap("start vdevs");
        info!(
            "{}: incarnation {number} was attached on engine {}",
            self.name,
            self.engine.kind()
        );
        Ok(Incarnation::new(
            plan,
            Origin::Attached { pristine },
            &*self.engine,
        ))
    }

    /// The incarnation ends: vdevs and subdevices go down, then the engine. Guests know, and no
    /// vdev has rings on the core's side any more. Memory and state are as they were.
    ///
    /// # Errors
    /// What the engine says. What has gone down stays down, and is not stopped twice.
    pub(super) fn take_down(
        &mut self,
        crashed: bool,
        end: End,
        stopwatch: &mut Stopwatch,
    ) -> Result<(), EngineError> {
        let Some(Incarnation { plan, origin, .. }) = self.state.incarnation() else {
            return Ok(());
        };
        for vdev in self.vdevs.iter_mut().rev() {
            vdev.core_gone();
        }
        self.subdevices.stop(plan, crashed);
        stopwatch.lap("stop vdevs");
        match (end, origin) {
            (End::Detach, Origin::Attached { pristine }) => {
                plan.table.restore(pristine);
                self.engine.detach()?;
            }
            (End::Detach, Origin::Booted) => self.engine.detach()?,
            (End::Stop, _) => self.engine.stop()?,
        }
        self.traces.look_last(&plan.traces, plan.carveouts.ram());
        stopwatch.lap("stop");
        self.subdevices.unprepare();
        self.tell_news();
        Ok(())
    }

    /// What was prepared is no longer needed, and nobody holds the core.
    pub(super) fn gone(&mut self, state: State) {
        self.engine.unprepare();
        self.holders.clear();
        self.enter(state);
    }

    /// Stops and boots a core, for the same holders: what a guest that is gone leaves behind.
    pub(super) fn restart_for_departure(&mut self) {
        let mut stopwatch = self.stopwatch("stop");
        let ended = match self.take_down(false, End::Stop, &mut stopwatch) {
            Ok(()) => {
                self.engine.unprepare();
                self.record(stopwatch);
                self.state = State::Offline;
                self.boot_afresh()
            }
            Err(cause) => Err(self.engine_failed(Verb::Stop, cause)),
        };
        if let Err(cause) = ended {
            error!("{}", sentence(&cause));
        }
    }
}
