//! What an operator lets the firmware of a core have, beyond the core's own memory.
//!
//! What belongs here: plain values, from the configuration. What does not: whether a firmware
//! keeps to them; that is judged where its boot is planned.

use crate::firmware::{DevmemEntry, Name};
use crate::memory::CarveoutLimits;

/// A span of host-physical addresses that a devmem entry may name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DevmemGrant {
    /// First byte.
    pub pa: u64,
    /// Bytes, never 0.
    pub length: u64,
    /// The entry must have this name; empty: any.
    pub name: String,
}

impl DevmemGrant {
    /// Does the grant cover all that the entry asks for?
    pub fn covers(&self, entry: &DevmemEntry) -> bool {
        let inside = entry
            .pa
            .checked_sub(self.pa)
            .and_then(|offset| offset.checked_add(entry.len))
            .is_some_and(|end| end <= self.length);
        inside && (self.name.is_empty() || Name::is(&entry.name, &self.name))
    }
}

/// What becomes of an entry of the vendor range that the engine does not know.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum VendorRule {
    /// It is passed over with a notice, as in Linux.
    #[default]
    Ignore,
    /// The firmware is refused.
    Refuse,
}

/// All of it. The default grants no device, and as much memory as there is.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Grants {
    /// How much memory.
    pub carveouts: CarveoutLimits,
    /// Which devices of the host. The engine is asked after this list, and can still refuse.
    pub devmem: Vec<DevmemGrant>,
    /// Vendor entries.
    pub vendor: VendorRule,
}
