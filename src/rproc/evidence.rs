//! What is kept of an incarnation that crashed: a coredump, before anything is loaded again.
//!
//! What belongs here: whether one is written, what goes into it, and how long that may take. What
//! does not: the file (see [`coredump`](crate::coredump)).

use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use log::{error, info, warn};

use super::boot::BootPlan;
use super::pulse::Pulse;
use super::status::DumpCount;
use super::timeline::micros;
use crate::coredump::{
    Class, Dump, DumpStore, FirmwareId, Limits, Mode, Outcome, Segment, Source, StoreError,
    StoredDump, Style, within,
};
use crate::engine::{Crash, Engine, Evidence};
use crate::firmware::Snapshot;
use crate::memory::{DeviceAddress, Ram};

/// Whether and how coredumps of a core are written.
#[derive(Debug)]
pub struct Coredumps {
    mode: Mode,
    /// How long a recovery waits for one in [`Mode::Enabled`].
    patience: Duration,
    style: Style,
    store: Option<DumpStore>,
    counts: DumpCount,
}

impl Coredumps {
    /// None are written.
    pub fn disabled() -> Self {
        Self {
            mode: Mode::Disabled,
            patience: Duration::ZERO,
            style: Style::default(),
            store: None,
            counts: DumpCount::default(),
        }
    }

    /// They are written to `directory`, within `patience` in [`Mode::Enabled`]. Dumps of an earlier
    /// process stay and count.
    ///
    /// # Errors
    /// [`StoreError`] if that is no place for dumps; nothing is created.
    pub fn new(
        directory: &Path,
        core: &str,
        limits: Limits,
        mode: Mode,
        patience: Duration,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            mode,
            patience,
            style: Style::default(),
            store: Some(DumpStore::open(directory, core, limits)?),
            counts: DumpCount::default(),
        })
    }

    /// The same, for tools that look segments up by name.
    #[must_use]
    pub fn with_style(mut self, style: Style) -> Self {
        self.style = style;
        self
    }

    /// In which mode.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Writes what a process before this one left behind of a core's memory when it ended without
    /// a word. Of registers nothing is known. Returns what became of it, unless none was wanted.
    pub fn save_left_behind(
        &mut self,
        core: &str,
        memory: &Ram,
        class: Class,
        machine: u16,
    ) -> Option<Outcome> {
        let store = match (&mut self.store, self.mode) {
            (None, _) | (_, Mode::Disabled) => return None,
            (Some(store), Mode::Enabled | Mode::Inline) => store,
        };
        if memory.untouched_from(memory.base(), memory.len()) == memory.len() {
            // It was never booted.
            return None;
        }
        let begun = Instant::now();
        let mut dump = Dump {
            incarnation: 0,
            time: SystemTime::now(),
            reason: "rprocd ended without a word; this is the core's memory as it was then",
            firmware: None,
            class,
            machine,
            boot: DeviceAddress(0),
            registers: None,
            segments: vec![Segment {
                name: "ram".to_owned(),
                da: memory.base(),
                len: memory.len(),
                source: Source::Memory(memory),
            }],
            style: self.style,
        };
        let outcome = store.save(&mut dump, &mut within(self.patience));
        self.count(&outcome, begun.elapsed());
        warn!("{core}: left behind by an rprocd that ended without a word: {outcome}");
        Some(outcome)
    }

    /// Another mode. Says whether that can be: without a place there are no dumps.
    pub(super) fn set_mode(&mut self, mode: Mode) -> bool {
        let can = self.store.is_some() || mode == Mode::Disabled;
        if can {
            self.mode = mode;
        }
        can
    }

    /// Those that are kept, the oldest first.
    pub(super) fn list(&self) -> io::Result<Vec<StoredDump>> {
        self.store.as_ref().map_or(Ok(Vec::new()), DumpStore::list)
    }

    /// What became of them so far.
    pub(super) fn counts(&self) -> DumpCount {
        self.counts
    }

    fn count(&mut self, outcome: &Outcome, time: Duration) {
        let counts = &mut self.counts;
        match outcome {
            Outcome::Written { bytes, .. } => {
                counts.written += 1;
                counts.bytes += bytes;
            }
            Outcome::Partial { bytes, .. } => {
                counts.partial += 1;
                counts.bytes += bytes;
            }
            Outcome::Failed { .. } => counts.failed += 1,
            Outcome::Skipped { .. } => counts.skipped += 1,
        }
        counts.microseconds += micros(time);
    }

    /// Writes what there is to be known of a core that has stopped after a crash. Whatever becomes
    /// of it, the core is recovered. Returns what became of it, unless none was wanted.
    pub(super) fn save(
        &mut self,
        core: &str,
        engine: &mut dyn Engine,
        plan: &BootPlan,
        firmware: Option<&Snapshot>,
        (incarnation, crash): (u32, &Crash),
        pulse: &Pulse,
    ) -> Option<Outcome> {
        let store = match (&mut self.store, self.mode) {
            (None, _) | (_, Mode::Disabled) => return None,
            (Some(store), Mode::Enabled | Mode::Inline) => store,
        };
        let begun = Instant::now();
        let ram = engine.ram().clone();
        let Evidence {
            class,
            machine,
            registers,
            stack,
            segments: of_engine,
        } = engine.coredump(crash);
        let reason = format!("{}: {}", crash.kind, crash.detail);
        let mut dump = Dump {
            incarnation,
            time: SystemTime::now(),
            reason: &reason,
            firmware: firmware.map(|snapshot| FirmwareId {
                name: snapshot.name(),
                sha256: snapshot.sha256(),
            }),
            class,
            machine,
            boot: plan.boot,
            registers,
            segments: segments(plan, &ram, stack),
            style: self.style,
        };
        dump.segments.extend(of_engine);
        let outcome = match self.mode {
            Mode::Inline => store.save(&mut dump, &mut || {
                // It may take as long as it likes, as long as it goes on.
                pulse.beat();
                ControlFlow::Continue(())
            }),
            Mode::Enabled | Mode::Disabled => store.save(&mut dump, &mut within(self.patience)),
        };
        self.count(&outcome, begun.elapsed());
        match &outcome {
            Outcome::Written { .. } | Outcome::Skipped { .. } => info!("{core}: {outcome}"),
            Outcome::Partial { .. } => warn!("{core}: {outcome}"),
            Outcome::Failed { .. } => error!("{core}: {outcome}"),
        }
        Some(outcome)
    }
}

/// What a hole between carveouts is called in a dump.
const HOLE: &str = "ram";

/// The carveouts, and the rest of the memory where the firmware counts on all of it or has its
/// stack there. What has the stack comes first: a dump that is cut short ends early. Pages that were
/// never touched take no place in the file.
fn segments<'a>(
    plan: &BootPlan,
    memory: &'a Ram,
    stack: Option<DeviceAddress>,
) -> Vec<Segment<'a>> {
    let has_stack = |da: DeviceAddress, len: u64| {
        // A full stack points to its end.
        stack.is_some_and(|stack| stack.offset_from(da).is_some_and(|offset| offset <= len))
    };
    let carveouts = plan.carveouts.iter();
    let mut spans: Vec<_> = carveouts
        .map(|carveout| (carveout.name.as_str(), carveout.da, carveout.len))
        .collect();
    let in_carveout = spans.iter().any(|(_, da, len)| has_stack(*da, *len));
    let holes = plan.carveouts.holes();
    spans.extend(
        holes
            .into_iter()
            .filter(|(da, len)| plan.whole_ram || (!in_carveout && has_stack(*da, *len)))
            .map(|(da, len)| (HOLE, da, len)),
    );
    spans.sort_by_key(|(_, da, len)| !has_stack(*da, *len));
    spans
        .into_iter()
        .map(|(name, da, len)| Segment {
            name: name.to_owned(),
            da,
            len,
            source: Source::Memory(memory),
        })
        .collect()
}
