//! The type of an address as the remote core sees it.

use std::fmt;

/// A device address (da): a byte address as the remote core sees it.
///
/// It is an allegation. Nothing but [`Ram`](super::Ram) turns it into memory, and only after the
/// whole span has been checked. It never mixes with a guest-physical address
/// (`vm_memory::GuestAddress`) or with a host pointer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceAddress(pub u64);

impl DeviceAddress {
    /// The address `bytes` further on, or `None` where the address space ends.
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }

    /// How far this address lies above `base`, or `None` if it lies below.
    pub fn offset_from(self, base: Self) -> Option<u64> {
        self.0.checked_sub(base.0)
    }
}

impl fmt::Display for DeviceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

impl fmt::Debug for DeviceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
