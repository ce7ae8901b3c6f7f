//! Driving a core that runs: one turn.
//!
//! ```text
//!            ┌──────────────────────────── something moved ────────────────────────┐
//!            ▼                                                                      │
//!   relay to the core ─► firmware runs ─► relay to the guests ──────────────────────┤
//!                                                                                   │ nothing
//!        sleep ◄── nothing came ── guests are asked to kick ◄── time is over ── linger
//! ```
//!
//! A vdev is *active* from a kick of either side until the guest has been asked to kick again.
//! Nobody looks at the others, so what an idle one costs does not depend on how busy the rest is.

use std::hint;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use log::{error, info};

use super::guests::STATUS_FAILED;
use super::{BUDGET, End, Incarnation, Machine, Next, State};
use crate::engine::{Engine, NotifyId, NotifySet, Run, RunEnd};
use crate::rproc::events::What;
use crate::vdev::{QUEUE_TO_GUEST, Round, Vdev};

/// Rounds of relay and run in one turn; then whoever waits for the core gets a chance.
const ROUNDS_PER_TURN: u32 = 64;

/// Rounds for which a vdev that keeps the relay busy may make the others wait: each is at most
/// [`MESSAGES_PER_BURST`](crate::vdev::MESSAGES_PER_BURST) messages a direction.
const ROUNDS_BETWEEN_LOOKS: u32 = 4;

/// Rounds in which others moved something and it did not, after which a vdev is not looked at any
/// more until it kicks.
const ROUNDS_TO_INACTIVE: u16 = 4096;

/// Looks at the rings between two times of giving way to other threads while lingering: about a
/// microsecond. Giving way at each look would triple the time to notice something; never doing it
/// would keep the one who is waited for from running where processors are few.
const LOOKS_PER_YIELD: u32 = 64;

/// The shortest time worth lingering.
const SHORTEST_LINGER: Duration = Duration::from_micros(4);

/// What a turn of driving leaves for later; the sooner, the smaller.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Later {
    /// Drive again at once: the firmware is busy.
    AtOnce,
    /// Drive again at that time, unless an event comes before.
    At(Instant),
    /// Nothing until an event comes.
    Nothing,
}

/// What a core does between two events, before it sleeps: it looks at the rings, for an answer
/// within the window costs no kick and no wake-up. It gives way to other threads all the while.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Linger {
    /// It sleeps at once.
    #[default]
    Never,
    /// It lingers up to so long. The window grows while events come within it and shrinks while
    /// they do not, so that an idle core does not linger at all.
    UpTo(Duration),
    /// It never sleeps as long as a guest is there: busy mode, for hosts with processors to spare.
    Always,
}

/// Who drives, as far as a turn must know.
pub struct Driver<'a> {
    /// Is it the core's own thread?
    pub own: bool,
    /// Has it time to linger?
    pub lingers: bool,
    /// Does somebody wait for the core?
    pub pending: &'a dyn Fn() -> bool,
    /// Has it something else to do by now?
    pub overdue: &'a dyn Fn() -> bool,
    /// Hears each time that there is nothing left to relay.
    pub relayed: &'a dyn Fn(),
}

impl Driver<'_> {
    /// One that has all the time in the world, and does not linger.
    pub const PATIENT: Driver<'static> = Driver {
        own: false,
        lingers: false,
        pending: &|| false,
        overdue: &|| false,
        relayed: &|| {},
    };
}

/// Which vdevs are looked at. A core has at most 32: there are 64 notify ids.
pub(super) struct Watch {
    linger: Linger,
    /// Vdevs whose guests have kicked; set by any thread.
    kicked: Arc<AtomicU32>,
    active: u32,
    /// Of the active ones, those to be relayed in the next round.
    hot: u32,
    /// For each vdev: rounds since it moved anything.
    still: [u16; 32],
    rounds: u32,
    /// How long the next lingering may take.
    window: Duration,
    /// When the core was last left to sleep.
    slept: Option<Instant>,
}

impl Watch {
    pub(super) fn new(linger: Linger) -> Self {
        Self {
            linger,
            kicked: Arc::default(),
            active: u32::MAX,
            hot: u32::MAX,
            still: [0; 32],
            rounds: 0,
            window: Duration::ZERO,
            slept: None,
        }
    }

    /// Where guests' kicks are left: a bit for each vdev.
    pub(super) fn kicked(&self) -> Arc<AtomicU32> {
        self.kicked.clone()
    }

    /// Something other than a kick has happened: every vdev is looked at.
    pub(super) fn wake_all(&mut self) {
        self.wake(u32::MAX);
    }

    fn wake(&mut self, vdevs: u32) {
        self.active |= vdevs;
        self.hot |= vdevs;
    }

    fn take_kicked(&mut self) {
        if self.kicked.load(Ordering::Relaxed) != 0 {
            let kicked = self.kicked.swap(0, Ordering::AcqRel);
            self.wake(kicked);
        }
    }

    /// The core was woken: had it been better to linger?
    fn woken(&mut self) {
        let (Linger::UpTo(most), Some(slept)) = (self.linger, self.slept.take()) else {
            return;
        };
        if slept.elapsed() < most {
            self.grow(most);
        } else {
            self.shrink();
        }
    }

    fn grow(&mut self, most: Duration) {
        self.window = (self.window * 2).clamp(SHORTEST_LINGER.min(most), most);
    }

    fn shrink(&mut self) {
        self.window /= 2;
        if self.window < SHORTEST_LINGER {
            self.window = Duration::ZERO;
        }
    }
}

/// The numbers of the bits that are set.
fn bits(mut set: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lowest = set.checked_ilog2()?;
        set &= !(1 << lowest);
        Some(lowest as usize)
    })
}

/// What ended a time of lingering.
enum Lingered {
    /// Something may be moved.
    Found,
    /// Somebody waits for the core.
    Pending,
    /// Nothing came, or it was not the time to linger.
    Nothing,
}

impl Machine {
    /// Drives the core: relays, lets the firmware run, relays again, until nothing moves any more
    /// or others should get a chance.
    pub fn drive(&mut self, driver: &Driver<'_>) -> Later {
        if matches!(self.state, State::Crashed(..)) {
            self.recover_if_due();
            self.watch.wake_all();
        }
        self.watch.take_kicked();
        self.watch.woken();
        for _ in 0..ROUNDS_PER_TURN {
            if self.state.driven().is_none() {
                return self.without_firmware();
            }
            let (end, mut progress) = self.round();
            if !self.unnoticed.is_empty() {
                progress |= self.start_late_vdevs(matches!(end, RunEnd::Waiting { .. }));
                self.watch.wake_all();
            }
            match end {
                RunEnd::Waiting { until } if !progress => {
                    (driver.relayed)();
                    if self.watch_unkicked() {
                        continue;
                    }
                    match self.linger(driver, until) {
                        Lingered::Found => continue,
                        Lingered::Pending => return Later::AtOnce,
                        Lingered::Nothing => {}
                    }
                    if self.ask_for_kicks() {
                        continue;
                    }
                    return until.map_or(Later::Nothing, Later::At);
                }
                RunEnd::Waiting { .. } => {}
                RunEnd::BudgetSpent => {
                    if (driver.pending)() || (driver.overdue)() {
                        return Later::AtOnce;
                    }
                }
                RunEnd::PoweredOff => {
                    self.powered_off();
                    return Later::Nothing;
                }
                RunEnd::Crashed(crash) => {
                    self.crashed(crash);
                    self.recover_if_due();
                    self.watch.wake_all();
                }
            }
        }
        Later::AtOnce
    }

    /// There is no firmware that runs: guests are told what there is to tell, and no more.
    fn without_firmware(&mut self) -> Later {
        self.watch.take_kicked();
        // A guest that goes on offering what is of no use does not keep us.
        for _ in 0..ROUNDS_PER_TURN {
            for index in bits(self.watch.active & self.vdev_mask()) {
                self.vdevs[index].relay_farewells();
            }
            if !self.ask_for_kicks() {
                break;
            }
        }
        match self.state {
            State::Crashed(_, Next::Restart(at), _) => Later::At(at),
            _ => Later::Nothing,
        }
    }

    /// One round of relay, run and relay. Says how the run ended, and whether anything moved.
    fn round(&mut self) -> (RunEnd, bool) {
        let all = self.vdev_mask();
        let Some(Incarnation { plan, owners, .. }) = self.state.driven() else {
            return (RunEnd::Waiting { until: None }, false);
        };
        let (vdevs, watch) = (&mut self.vdevs, &mut self.watch);
        watch.take_kicked();
        watch.rounds = watch.rounds.wrapping_add(1);
        if watch.hot == 0 || watch.rounds.is_multiple_of(ROUNDS_BETWEEN_LOOKS) {
            watch.hot |= may_move(vdevs, watch.active & all);
        }
        let hot = watch.hot & all;
        let (mut moved, mut has_news) = (0, false);
        let mut conclude = |round: Round, index: usize, engine: &mut dyn Engine| {
            moved |= u32::from(round.progress) << index;
            if round.failed {
                let vdev = &plan.vdevs[index];
                plan.table
                    .write_u8(vdev.entry().status_offset(), STATUS_FAILED);
                engine.kick(vdev.ids()[QUEUE_TO_GUEST]);
            } else if let Some(id) = round.kick {
                engine.kick(id);
            }
        };
        for index in bits(hot) {
            conclude(vdevs[index].relay_to_core(), index, &mut *self.engine);
        }
        let Run {
            kicks,
            stray_kicks,
            end,
        } = self.engine.run(BUDGET);
        self.traces.look(&plan.traces, plan.carveouts.ram());
        watch.wake(owners.of(kicks) & all);
        // Whether or not it kicked: the rings say what there is, a kick is only a hint.
        let hot = watch.hot & all;
        for index in bits(hot) {
            conclude(vdevs[index].relay_farewells(), index, &mut *self.engine);
            conclude(vdevs[index].relay_to_guest(), index, &mut *self.engine);
        }
        if bits(hot).any(|index| vdevs[index].has_news()) {
            has_news = true;
        }
        self.unknown_kicks = self
            .unknown_kicks
            .saturating_add(stray_kicks)
            .saturating_add(u64::from(kicks.without(owners.known).len()));
        // A firmware may give buffers back and have nothing to say.
        for index in bits(hot & !moved) {
            moved |= u32::from(vdevs[index].can_go_on()) << index;
        }
        watch.hot = moved;
        if moved != 0 && watch.linger == Linger::Always {
            for index in bits(watch.active & all) {
                let still = &mut watch.still[index];
                *still = if moved & (1 << index) == 0 {
                    still.saturating_add(1)
                } else {
                    0
                };
                if *still >= ROUNDS_TO_INACTIVE && !vdevs[index].ask_for_kicks() {
                    *still = 0;
                    watch.active &= !(1 << index);
                }
            }
        }
        if has_news {
            self.tell_news();
        }
        (end, moved != 0)
    }

    /// A bit for each vdev.
    fn vdev_mask(&self) -> u32 {
        let count = u32::try_from(self.vdevs.len()).unwrap_or(u32::MAX);
        1u32.checked_shl(count).unwrap_or(0).wrapping_sub(1)
    }

    /// Makes vdevs active that have something to move and of which nobody has said so. A firmware
    /// that does not kick is found here.
    fn watch_unkicked(&mut self) -> bool {
        let found = may_move(&self.vdevs, self.vdev_mask() & !self.watch.active);
        self.watch.wake(found);
        found != 0
    }

    /// Looks at the rings for a while, before the core is left to sleep.
    fn linger(&mut self, driver: &Driver<'_>, until: Option<Instant>) -> Lingered {
        let window = match self.watch.linger {
            _ if !self.vdevs.iter().any(Vdev::is_served) => return Lingered::Nothing,
            Linger::Never => return Lingered::Nothing,
            // The core's own thread is the one that never sleeps.
            Linger::Always if !driver.own => return Lingered::Pending,
            Linger::Always => None,
            Linger::UpTo(_) if !driver.lingers || self.watch.window.is_zero() => {
                return Lingered::Nothing;
            }
            Linger::UpTo(_) => Some(self.watch.window),
        };
        let active = self.watch.active & self.vdev_mask();
        let begun = Instant::now();
        loop {
            for _ in 0..LOOKS_PER_YIELD {
                let found = may_move(&self.vdevs, active);
                if found != 0 {
                    self.watch.hot |= found;
                    if let Linger::UpTo(most) = self.watch.linger {
                        self.watch.grow(most);
                    }
                    return Lingered::Found;
                }
                if (driver.pending)() {
                    return Lingered::Pending;
                }
                hint::spin_loop();
            }
            thread::yield_now();
            let now = Instant::now();
            if until.is_some_and(|until| until <= now) || (driver.overdue)() {
                return Lingered::Pending;
            }
            if window.is_some_and(|window| window <= now - begun) {
                self.watch.shrink();
                return Lingered::Nothing;
            }
            if self.watch_unkicked() {
                return Lingered::Found;
            }
        }
    }

    /// Nobody will look for a while: asks guests to kick. `true` if something has come meanwhile.
    fn ask_for_kicks(&mut self) -> bool {
        let mut found = 0;
        for index in bits(self.watch.active & self.vdev_mask()) {
            found |= u32::from(self.vdevs[index].ask_for_kicks()) << index;
        }
        self.watch.active = found;
        self.watch.hot = found;
        if found == 0 && self.watch.linger != Linger::Never {
            self.watch.slept = Some(Instant::now());
        }
        found != 0
    }

    fn powered_off(&mut self) {
        let ran_for = self
            .state
            .incarnation()
            .map_or(Duration::ZERO, |it| it.since.elapsed());
        let ended = format!(
            "incarnation {} ended by itself (power off) after {:.3} s; the core stays offline until \
             it is started{}",
            self.incarnations,
            ran_for.as_secs_f64(),
            if self.policies.boot_on_guest {
                " or the driver of a guest comes"
            } else {
                ""
            }
        );
        info!("{}: {ended}", self.name);
        self.tell(What::Ended, None, |_| ended.clone());
        self.ended = Some(ended);
        let mut stopwatch = self.stopwatch("stop");
        if let Err(cause) = self.take_down(false, End::Stop, &mut stopwatch) {
            error!("{}: cannot be stopped: {cause}", self.name);
        }
        // It has ended, whatever the engine says.
        self.gone(State::Offline);
        self.record(stopwatch);
    }
}

/// Of these vdevs, those in which something may be moved.
#[inline]
fn may_move(vdevs: &[Vdev], of: u32) -> u32 {
    let mut found = 0;
    for index in bits(of) {
        found |= u32::from(vdevs[index].may_move()) << index;
    }
    found
}

/// Which vdev a notify id belongs to.
pub(super) struct Owners {
    known: NotifySet,
    /// For each id: a bit for the vdev.
    vdevs: [u32; 64],
}

impl Owners {
    /// Of vdevs in order, each with its ids.
    pub(super) fn new(ids: impl IntoIterator<Item = [NotifyId; 2]>) -> Self {
        let mut owners = Self {
            known: NotifySet::default(),
            vdevs: [0; 64],
        };
        for (index, ids) in ids.into_iter().enumerate() {
            for id in ids {
                owners.known.insert(id);
                if let Some(vdevs) = owners.vdevs.get_mut(usize::from(id.0)) {
                    *vdevs = 1u32.checked_shl(index as u32).unwrap_or(0);
                }
            }
        }
        owners
    }

    fn of(&self, mut kicks: NotifySet) -> u32 {
        let mut vdevs = 0;
        while kicks.0 != 0 {
            vdevs |= self.vdevs[kicks.0.trailing_zeros() as usize];
            kicks.0 &= kicks.0 - 1;
        }
        vdevs
    }
}

#[cfg(test)]
mod tests;
