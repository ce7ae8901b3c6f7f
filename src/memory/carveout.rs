//! Carveouts: named spans of a core's RAM, none overlapping another.
//!
//! What belongs here: where carveouts lie, and why one is refused. What does not: why somebody
//! wants one (the resource table, vrings, buffers), and what is stored in it.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;
use vm_memory::VolatileSlice;

use super::{DeviceAddress, MemoryError, Ram};

/// A named span of device addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Carveout {
    /// At most 31 bytes, as in the resource table. Not necessarily unique.
    pub name: String,
    /// First byte.
    pub da: DeviceAddress,
    /// Size in bytes, never 0.
    pub len: u64,
}

impl Carveout {
    /// First byte after the carveout.
    pub fn end(&self) -> DeviceAddress {
        DeviceAddress(self.da.0 + self.len)
    }

    fn holds(&self, da: DeviceAddress, len: u64) -> bool {
        da >= self.da && da.checked_add(len).is_some_and(|end| end <= self.end())
    }
}

impl fmt::Display for Carveout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" ({} to {})", self.name, self.da, self.end())
    }
}

/// How much of a core's memory its firmware may have as carveouts, those that rprocd makes for it
/// (vrings, buffers, the image itself) included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CarveoutLimits {
    /// Bytes, all carveouts together.
    pub bytes: u64,
    /// How many.
    pub count: usize,
}

impl CarveoutLimits {
    /// Enough for 32 vdevs with two vrings and a pool of buffers each, and 32 more.
    pub const DEFAULT_COUNT: usize = 128;
}

impl Default for CarveoutLimits {
    /// As many bytes as there are.
    fn default() -> Self {
        Self {
            bytes: u64::MAX,
            count: Self::DEFAULT_COUNT,
        }
    }
}

/// Why a carveout, or an access to one, is refused.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CarveoutError {
    /// A fixed carveout is not inside the core's RAM.
    #[error("carveout \"{name}\"")]
    Outside {
        /// The carveout's name.
        name: String,
        /// Where it was wanted and what there is.
        source: MemoryError,
    },
    /// A fixed carveout runs into another one.
    #[error("carveout {wanted} overlaps carveout {other}; give one of them another address")]
    Overlap {
        /// The refused one.
        wanted: Carveout,
        /// The one that was there.
        other: Carveout,
    },
    /// There is no hole that is large enough.
    #[error(
        "no room for carveout \"{name}\": it needs {len:#x} bytes aligned to {align:#x}, the \
         largest hole has {largest:#x}; give the core more memory (memory-mib)"
    )]
    NoRoom {
        /// The carveout's name.
        name: String,
        /// Bytes wanted.
        len: u64,
        /// Alignment wanted, in bytes.
        align: u64,
        /// Bytes in the largest hole, alignment considered.
        largest: u64,
    },
    /// The carveouts would have more bytes than the core's quota.
    #[error(
        "carveout \"{name}\" has {len:#x} bytes and those before it have {used:#x}, together at \
         most {quota:#x} are allowed; raise carveout-quota-mib or ask for less"
    )]
    Quota {
        /// The carveout's name.
        name: String,
        /// Its bytes.
        len: u64,
        /// Bytes of the carveouts there are.
        used: u64,
        /// Bytes allowed.
        quota: u64,
    },
    /// There are as many carveouts as the core may have.
    #[error(
        "carveout \"{name}\" would be number {}, at most {count} are allowed; raise \
         carveout-count or ask for fewer", *count + 1
    )]
    Count {
        /// The carveout's name.
        name: String,
        /// Carveouts allowed.
        count: usize,
    },
    /// A carveout of that name exists and is too small for what is to be put in it.
    #[error(
        "carveout {carveout} has {have:#x} bytes from {from} on, {need:#x} are needed; make it \
         larger in the resource table"
    )]
    TooSmall {
        /// The carveout.
        carveout: Carveout,
        /// Where in it.
        from: DeviceAddress,
        /// Bytes from there to its end.
        have: u64,
        /// Bytes needed.
        need: u64,
    },
    /// A carveout of that name exists and begins where what is to be put in it cannot begin.
    #[error(
        "carveout {carveout} must begin at a multiple of {align:#x} for what is to be put in it; \
         give it another address in the resource table"
    )]
    Misaligned {
        /// The carveout.
        carveout: Carveout,
        /// Alignment needed, in bytes.
        align: u64,
    },
    /// An access is in no carveout, or not wholly in one.
    #[error("{len:#x} bytes at {da} lie outside every carveout ({known})")]
    NotCarvedOut {
        /// First byte of the access.
        da: DeviceAddress,
        /// Bytes accessed.
        len: u64,
        /// The carveouts there are.
        known: String,
    },
}

/// The carveouts of one core: a map of its RAM.
#[derive(Clone, Debug)]
pub struct CarveoutMap {
    ram: Arc<Ram>,
    limits: CarveoutLimits,
    list: Vec<Carveout>,
}

impl CarveoutMap {
    /// A map of `ram` with nothing in it, that takes carveouts within `limits`.
    pub fn new(ram: Arc<Ram>, limits: CarveoutLimits) -> Self {
        Self {
            ram,
            limits,
            list: Vec::new(),
        }
    }

    /// The RAM that the carveouts lie in.
    pub fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// In the order of their making.
    pub fn iter(&self) -> impl Iterator<Item = &Carveout> {
        self.list.iter()
    }

    /// The first carveout of that name.
    pub fn named(&self, name: &str) -> Option<&Carveout> {
        self.list.iter().find(|carveout| carveout.name == name)
    }

    /// The spans of the RAM between the carveouts: first address and length, rising.
    pub fn holes(&self) -> Vec<(DeviceAddress, u64)> {
        let mut taken: Vec<(u64, u64)> = self
            .list
            .iter()
            .map(|carveout| (carveout.da.0, carveout.end().0))
            .collect();
        taken.sort_unstable();
        taken.push((self.ram.end().0, self.ram.end().0));
        let mut holes = Vec::new();
        let mut from = self.ram.base().0;
        for (start, end) in taken {
            if start > from {
                holes.push((DeviceAddress(from), start - from));
            }
            from = end;
        }
        holes
    }

    fn within_limits(&self, name: &str, len: u64) -> Result<(), CarveoutError> {
        let CarveoutLimits { bytes, count } = self.limits;
        if self.list.len() >= count {
            return Err(CarveoutError::Count {
                name: name.to_owned(),
                count,
            });
        }
        let used = self.list.iter().map(|carveout| carveout.len).sum::<u64>();
        if used.saturating_add(len) > bytes {
            return Err(CarveoutError::Quota {
                name: name.to_owned(),
                len,
                used,
                quota: bytes,
            });
        }
        Ok(())
    }

    /// Makes a carveout at a given address.
    ///
    /// # Errors
    /// [`CarveoutError::Outside`], [`CarveoutError::Overlap`], [`CarveoutError::Quota`] or
    /// [`CarveoutError::Count`]; the map is then as before.
    pub fn add_fixed(
        &mut self,
        name: &str,
        da: DeviceAddress,
        len: u64,
    ) -> Result<Carveout, CarveoutError> {
        self.ram
            .slice(da, len)
            .map_err(|source| CarveoutError::Outside {
                name: name.to_owned(),
                source,
            })?;
        let wanted = Carveout {
            name: name.to_owned(),
            da,
            len,
        };
        if let Some(other) = self
            .list
            .iter()
            .find(|other| da < other.end() && other.da < wanted.end())
        {
            return Err(CarveoutError::Overlap {
                wanted,
                other: other.clone(),
            });
        }
        self.within_limits(name, len)?;
        self.list.push(wanted.clone());
        Ok(wanted)
    }

    /// Makes a carveout in the first hole that takes it. `align` is a power of two, in bytes.
    ///
    /// # Errors
    /// [`CarveoutError::NoRoom`], [`CarveoutError::Quota`] or [`CarveoutError::Count`]; the map is
    /// then as before.
    pub fn add_anywhere(
        &mut self,
        name: &str,
        len: u64,
        align: u64,
    ) -> Result<Carveout, CarveoutError> {
        self.within_limits(name, len)?;
        let mut taken: Vec<(u64, u64)> = self
            .list
            .iter()
            .map(|carveout| (carveout.da.0, carveout.end().0))
            .collect();
        taken.sort_unstable();
        taken.push((self.ram.end().0, self.ram.end().0));
        let mut largest = 0;
        let mut hole_start = self.ram.base().0;
        for (start, end) in taken {
            let aligned = hole_start.next_multiple_of(align);
            let room = start.saturating_sub(aligned);
            if room >= len {
                let carveout = Carveout {
                    name: name.to_owned(),
                    da: DeviceAddress(aligned),
                    len,
                };
                self.list.push(carveout.clone());
                return Ok(carveout);
            }
            largest = largest.max(room);
            hole_start = end;
        }
        Err(CarveoutError::NoRoom {
            name: name.to_owned(),
            len,
            align,
            largest,
        })
    }

    /// The bytes `da .. da + len`, which must lie in one carveout.
    ///
    /// # Errors
    /// [`CarveoutError::NotCarvedOut`] otherwise.
    pub fn slice(&self, da: DeviceAddress, len: u64) -> Result<VolatileSlice<'_>, CarveoutError> {
        let refused = || CarveoutError::NotCarvedOut {
            da,
            len,
            known: if self.list.is_empty() {
                "there is none".to_owned()
            } else {
                self.list
                    .iter()
                    .map(Carveout::to_string)
                    .collect::<Vec<_>>()
                    .join(", ")
            },
        };
        if !self.list.iter().any(|carveout| carveout.holds(da, len)) {
            return Err(refused());
        }
        self.ram.slice(da, len).map_err(|_| refused())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0x8000_0000;

    fn map() -> CarveoutMap {
        limited(CarveoutLimits::default())
    }

    fn limited(limits: CarveoutLimits) -> CarveoutMap {
        let ram = Ram::new("test", DeviceAddress(BASE), 0x10_0000).unwrap();
        CarveoutMap::new(ram, limits)
    }

    #[test]
    fn a_carveout_anywhere_takes_the_first_hole_that_fits() {
        let mut map = map();
        map.add_fixed("a", DeviceAddress(BASE), 0x1000).unwrap();
        map.add_fixed("b", DeviceAddress(BASE + 0x3000), 0x1000)
            .unwrap();
        assert_eq!(
            map.add_anywhere("c", 0x3000, 0x1000).unwrap().da.0,
            BASE + 0x4000
        );
        assert_eq!(
            map.add_anywhere("d", 0x2000, 0x1000).unwrap().da.0,
            BASE + 0x1000
        );
    }

    #[test]
    fn holes_and_carveouts_are_all_of_the_ram() {
        let mut map = map();
        assert_eq!(map.holes(), [(DeviceAddress(BASE), 0x10_0000)]);
        for (da, len) in [(0x3000, 0x1000), (0, 0x10), (0x4000, 8), (0xf_f000, 0x1000)] {
            map.add_fixed("a", DeviceAddress(BASE + da), len).unwrap();
        }
        let holes: Vec<_> = map
            .holes()
            .iter()
            .map(|(da, len)| (da.0 - BASE, *len))
            .collect();
        assert_eq!(holes, [(0x10, 0x2ff0), (0x4008, 0xf_aff8)]);
    }

    #[test]
    fn a_hole_is_measured_after_alignment() {
        let mut map = map();
        map.add_fixed("a", DeviceAddress(BASE), 0x10).unwrap();
        let error = map
            .add_anywhere("b", 0x10_0000 - 0x10, 0x1000)
            .unwrap_err()
            .to_string();
        assert!(error.contains("largest hole has 0xff000"), "{error}");
    }

    #[test]
    fn overlapping_carveouts_are_refused_by_name() {
        let mut map = map();
        map.add_fixed("a", DeviceAddress(BASE + 0x1000), 0x1000)
            .unwrap();
        for (da, len) in [(0x0, 0x1001), (0x1fff, 0x1), (0x0, 0x4000), (0x1800, 0x10)] {
            let error = map
                .add_fixed("b", DeviceAddress(BASE + da), len)
                .unwrap_err();
            assert!(matches!(error, CarveoutError::Overlap { .. }), "{error}");
        }
        map.add_fixed("c", DeviceAddress(BASE), 0x1000).unwrap();
        map.add_fixed("d", DeviceAddress(BASE + 0x2000), 0x1000)
            .unwrap();
    }

    #[test]
    fn a_carveout_outside_the_ram_is_refused() {
        let mut map = map();
        for (da, len) in [
            (BASE - 1, 2),
            (BASE, 0x10_0001),
            (BASE + 0x10_0000, 1),
            (u64::MAX, 2),
        ] {
            let error = map.add_fixed("a", DeviceAddress(da), len).unwrap_err();
            assert!(matches!(error, CarveoutError::Outside { .. }), "{error}");
        }
        assert_eq!(map.iter().count(), 0);
    }

    #[test]
    fn carveouts_are_limited_in_bytes_all_together() {
        let mut map = limited(CarveoutLimits {
            bytes: 0x3000,
            ..CarveoutLimits::default()
        });
        map.add_fixed("a", DeviceAddress(BASE), 0x1000).unwrap();
        map.add_anywhere("b", 0x1000, 0x1000).unwrap();
        for refused in [
            map.add_anywhere("c", 0x1001, 1),
            map.add_fixed("c", DeviceAddress(BASE + 0x8000), 0x1001),
        ] {
            assert_eq!(
                refused.unwrap_err().to_string(),
                "carveout \"c\" has 0x1001 bytes and those before it have 0x2000, together at \
                 most 0x3000 are allowed; raise carveout-quota-mib or ask for less"
            );
        }
        map.add_anywhere("c", 0x1000, 0x1000).unwrap();
    }

    #[test]
    fn carveouts_are_limited_in_number() {
        let mut map = limited(CarveoutLimits {
            count: 2,
            ..CarveoutLimits::default()
        });
        map.add_fixed("a", DeviceAddress(BASE), 1).unwrap();
        map.add_anywhere("b", 1, 1).unwrap();
        assert_eq!(
            map.add_anywhere("c", 1, 1).unwrap_err().to_string(),
            "carveout \"c\" would be number 3, at most 2 are allowed; raise carveout-count or ask \
             for fewer"
        );
        assert_eq!(map.iter().count(), 2);
    }

    #[test]
    fn an_access_must_lie_in_one_carveout() {
        let mut map = map();
        map.add_fixed("a", DeviceAddress(BASE), 0x1000).unwrap();
        map.add_fixed("b", DeviceAddress(BASE + 0x1000), 0x1000)
            .unwrap();
        assert_eq!(
            map.slice(DeviceAddress(BASE + 0xff0), 0x10).unwrap().len(),
            0x10
        );
        assert!(map.slice(DeviceAddress(BASE + 0xff0), 0x11).is_err());
        assert!(map.slice(DeviceAddress(BASE + 0x2000), 1).is_err());
        assert!(map.slice(DeviceAddress(u64::MAX), 1).is_err());
    }
}
