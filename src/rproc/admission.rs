//! What may be asked of a core in which state: one table, for the code and for its tests.
//!
//! What belongs here: states, requests, and the answer for each pair. What does not: carrying a
//! request out, and whether that succeeds.

use std::fmt;

/// The state of a core. Shown in Linux's spelling (`drivers/remoteproc/remoteproc_sysfs.c`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CoreState {
    /// Nothing runs.
    Offline,
    /// It was booted, and is paused.
    Suspended,
    /// It was booted, and runs.
    Running,
    /// It ran, and died.
    Crashed,
    /// It ran already, and was taken over.
    Attached,
    /// It runs, and is not ours at the moment.
    Detached,
    /// It is being removed. Linux has a flag and no word for it.
    Deleted,
}

impl CoreState {
    /// All of them, in the order of the table's columns.
    pub const ALL: [Self; 7] = [
        Self::Offline,
        Self::Suspended,
        Self::Running,
        Self::Crashed,
        Self::Attached,
        Self::Detached,
        Self::Deleted,
    ];

    /// Linux's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::Suspended => "suspended",
            Self::Running => "running",
            Self::Crashed => "crashed",
            Self::Attached => "attached",
            Self::Detached => "detached",
            Self::Deleted => "deleted",
        }
    }
}

impl fmt::Display for CoreState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What is asked of a core: by an operator, by a guest that comes or goes, by its engine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Verb {
    /// Boot it; attach it if it runs already; restart it if it crashed.
    Start,
    /// Stop it, whoever wants it running.
    Stop,
    /// Take it over.
    Attach,
    /// Let go of it.
    Detach,
    /// Pause it.
    Suspend,
    /// Let it go on.
    Resume,
    /// Restart it if it crashed, whatever the recovery policy says.
    Recover,
    /// Give it another firmware.
    SetFirmware,
    /// Its engine says that it died.
    ReportCrash,
    /// Remove it.
    Delete,
}

impl Verb {
    /// All of them, in the order of the table's rows.
    pub const ALL: [Self; 10] = [
        Self::Start,
        Self::Stop,
        Self::Attach,
        Self::Detach,
        Self::Suspend,
        Self::Resume,
        Self::Recover,
        Self::SetFirmware,
        Self::ReportCrash,
        Self::Delete,
    ];
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Attach => "attach",
            Self::Detach => "detach",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
            Self::Recover => "recover",
            Self::SetFirmware => "change the firmware of",
            Self::ReportCrash => "report a crash of",
            Self::Delete => "delete",
        })
    }
}

/// The answer to a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admission {
    /// It is carried out.
    Accept,
    /// There is nothing to do.
    AlreadySo,
    /// It is not done, and this is why, as the end of a sentence.
    Refuse(&'static str),
}

use Admission::{Accept as YES, AlreadySo as SO, Refuse};

const NOTHING_RUNS: Admission = Refuse("nothing runs; start it");
const PAUSED: Admission = Refuse("it is suspended; resume it, or stop it");
const NOT_OURS: Admission = Refuse("it runs without rprocd; attach it first");
const OURS: Admission = Refuse("rprocd booted it, and drives it already");
const BOOTED: Admission = Refuse("rprocd booted it; stop it");
const DEAD: Admission = Refuse("it crashed; start it, or stop it");
const GOING: Admission = Refuse("it is being removed");
const STOP_FIRST: Admission = Refuse("its firmware is in use; stop it first");
const NO_FIRMWARE: Admission = Refuse("what runs there was not loaded by rprocd");
const FOREIGN: Admission = Refuse("rprocd did not boot it; detach it, or stop it");

/// Rows: [`Verb::ALL`]. Columns: [`CoreState::ALL`].
#[rustfmt::skip]
const TABLE: [[Admission; CoreState::ALL.len()]; Verb::ALL.len()] = [
    //               offline       suspended   running     crashed     attached     detached     deleted
    /* start      */ [YES,          PAUSED,     SO,         YES,        SO,          YES,         GOING],
    /* stop       */ [SO,           YES,        YES,        YES,        YES,         NOT_OURS,    GOING],
    /* attach     */ [NOTHING_RUNS, OURS,       OURS,       DEAD,       SO,          YES,         GOING],
    /* detach     */ [NOTHING_RUNS, BOOTED,     BOOTED,     DEAD,       YES,         SO,          GOING],
    /* suspend    */ [NOTHING_RUNS, SO,         YES,        DEAD,       FOREIGN,     NOT_OURS,    GOING],
    /* resume     */ [NOTHING_RUNS, YES,        SO,         DEAD,       SO,          NOT_OURS,    GOING],
    /* recover    */ [SO,           SO,         SO,         YES,        SO,          SO,          GOING],
    /* firmware   */ [YES,          STOP_FIRST, STOP_FIRST, STOP_FIRST, NO_FIRMWARE, NO_FIRMWARE, GOING],
    /* crash      */ [SO,           YES,        YES,        SO,         YES,         SO,          GOING],
    /* delete     */ [YES,          YES,        YES,        YES,        YES,         YES,         SO],
];

/// The answer to `verb` in `state`.
///
/// Where it is not Linux's (`remoteproc_core.c`, `remoteproc_sysfs.c`): a crashed core can be
/// started, a suspended one stopped, and one that crashed while it was detached is nobody's
/// concern.
pub fn admit(state: CoreState, verb: Verb) -> Admission {
    TABLE[verb as usize][state as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_s_rows_and_columns_are_in_the_order_of_the_lists() {
        for (index, state) in CoreState::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, index);
        }
        for (index, verb) in Verb::ALL.into_iter().enumerate() {
            assert_eq!(verb as usize, index);
        }
    }

    #[test]
    fn a_firmware_is_changed_offline_and_in_no_other_state() {
        for state in CoreState::ALL {
            let accepted = admit(state, Verb::SetFirmware) == Admission::Accept;
            assert_eq!(accepted, state == CoreState::Offline, "{state}");
        }
    }

    #[test]
    fn nothing_is_asked_of_a_core_that_is_being_removed() {
        for verb in Verb::ALL {
            assert_ne!(admit(CoreState::Deleted, verb), Admission::Accept, "{verb}");
        }
    }

    #[test]
    fn every_refusal_ends_a_sentence_and_every_state_can_be_left() {
        for state in CoreState::ALL {
            let mut exits = 0;
            for verb in Verb::ALL {
                match admit(state, verb) {
                    Admission::Accept => exits += 1,
                    Admission::AlreadySo => {}
                    Admission::Refuse(why) => assert!(!why.is_empty() && !why.ends_with('.')),
                }
            }
            assert!(exits > 0 || state == CoreState::Deleted, "{state}");
        }
    }
}
