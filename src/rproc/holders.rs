//! Who wants a core running: names instead of Linux's count, so that an operator can see them.
//!
//! What belongs here: the set. What does not: what follows when it becomes empty.

use std::collections::BTreeSet;
use std::fmt;

/// Somebody who wants a core running.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Holder {
    /// The operator: by `auto-boot`, which is a standing order, or by a start.
    Operator,
    /// The guest of a vdev, where the core is booted for guests. Holds until its VMM is gone.
    Guest {
        /// Which vdev, counted from 0.
        vdev: usize,
    },
    /// A control connection, for as long as it is open. Linux's shutdown-on-release, for one
    /// connection and not for all of them.
    Connection {
        /// Its number, as in the log.
        number: u64,
    },
}

impl Holder {
    /// A guest's, which has no say in whether a core that crashed is started again.
    pub(super) fn is_guest(&self) -> bool {
        matches!(self, Self::Guest { .. })
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator => f.write_str("operator"),
            Self::Guest { vdev } => write!(f, "guest of vdev {vdev}"),
            Self::Connection { number } => write!(f, "control connection {number}"),
        }
    }
}

/// All who want a core running.
#[derive(Default, Debug)]
pub(super) struct Holders(BTreeSet<Holder>);

impl Holders {
    /// Adds one; false if it was there.
    pub(super) fn add(&mut self, holder: Holder) -> bool {
        self.0.insert(holder)
    }

    /// Takes one away; true if it was the last.
    pub(super) fn remove(&mut self, holder: &Holder) -> bool {
        self.0.remove(holder) && self.0.is_empty()
    }

    pub(super) fn contains(&self, holder: &Holder) -> bool {
        self.0.contains(holder)
    }

    /// Is there nobody but this one?
    pub(super) fn are_only(&self, holder: &Holder) -> bool {
        self.0.len() == 1 && self.contains(holder)
    }

    /// Nobody any more.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// In words, in order.
    pub(super) fn names(&self) -> Vec<String> {
        self.0.iter().map(Holder::to_string).collect()
    }
}
