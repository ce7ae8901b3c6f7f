//! Carveouts: named spans of a core's RAM, none overlapping another.

use super::DeviceAddress;

/// A named span of device addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Carveout {
    /// At most 31 bytes, as in the resource table.
    pub name: String,
    /// First byte.
    pub da: DeviceAddress,
    /// Size in bytes, never 0.
    pub len: u64,
}

/// The carveouts of one core.
#[derive(Clone, Default, Debug)]
pub struct CarveoutMap {
    list: Vec<Carveout>,
}

impl CarveoutMap {
    /// In the order of their making.
    pub fn iter(&self) -> impl Iterator<Item = &Carveout> {
        self.list.iter()
    }
}
