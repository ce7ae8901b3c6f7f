//! What is in a core's memory, and what its resource table says, for those who ask.
//!
//! What belongs here: both as plain values with names. What does not: what they mean for a boot.

use serde::{Deserialize, Serialize};

use super::boot::BootPlan;
use super::firmware::Firmware;
use crate::firmware::{Entry, Image, ResourceTable};
use crate::memory::DeviceAddress;

/// `Region` of `io.rprocd.varlink`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Region {
    /// ram, carveout, segment, trace or table.
    pub kind: String,
    /// Its name, if it has one.
    pub name: String,
    /// First byte.
    pub da: u64,
    /// Size.
    pub bytes: u64,
}

impl Region {
    pub(super) fn new(kind: &str, name: &str, da: DeviceAddress, bytes: u64) -> Self {
        Self {
            kind: kind.to_owned(),
            name: name.to_owned(),
            da: da.0,
            bytes,
        }
    }
}

/// `Field` of `io.rprocd.varlink`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Field {
    /// As in Linux's `remoteproc.h`.
    pub name: String,
    /// Its value.
    pub value: u64,
}

/// `Resource` of `io.rprocd.varlink`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Resource {
    /// carveout, devmem, trace, vdev, vendor or unknown.
    pub kind: String,
    /// Its name, if it has one.
    pub name: String,
    /// Its fields, in order.
    pub fields: Vec<Field>,
    /// Of a vdev: its vrings.
    pub vrings: Vec<ResourceVring>,
}

/// `ResourceVring` of `io.rprocd.varlink`. systemd's parser has no lists of lists.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ResourceVring {
    /// Its fields, in order.
    pub fields: Vec<Field>,
}

impl BootPlan {
    /// What is where.
    pub(super) fn regions(&self, image: &Image) -> Vec<Region> {
        let carveouts = self.carveouts.iter();
        let carveouts = carveouts.map(|it| Region::new("carveout", &it.name, it.da, it.len));
        let traces = self.traces.iter();
        let traces = traces.map(|it| Region::new("trace", &it.name, it.da, it.len));
        let table = self.table.place();
        let table = table.map(|(da, len)| Region::new("table", "", da, len));
        // A core that runs already was not loaded from the image.
        let loaded = (self.boot.0 != 0).then(|| segments(image));
        let segments = loaded.into_iter().flatten();
        carveouts
            .chain(segments)
            .chain(traces)
            .chain(table)
            .collect()
    }
}

impl Firmware {
    /// What the image says of the memory.
    pub(super) fn regions(&self) -> Vec<Region> {
        segments(&self.image).collect()
    }
}

fn segments(image: &Image) -> impl Iterator<Item = Region> {
    image.segments.iter().map(|segment| {
        let name = format!("segment {}", segment.index);
        Region::new("segment", &name, segment.da, segment.memsz)
    })
}

/// The entries of a table: their places as in `pristine`, which has been checked, their values as in
/// `now`, which the firmware may have written. Both are as long.
pub(super) fn resources(pristine: &[u8], now: &[u8]) -> Vec<Resource> {
    let Ok(table) = ResourceTable::parse(pristine) else {
        return Vec::new();
    };
    let word = |offset: usize| -> u64 {
        let bytes = now.get(offset..offset + 4);
        bytes.map_or(0, |it| {
            u32::from_le_bytes([it[0], it[1], it[2], it[3]]).into()
        })
    };
    let byte = |offset: usize| -> u64 { now.get(offset).copied().unwrap_or(0).into() };
    // Words that follow each other.
    let words = |offset: usize, names: &[&str]| -> Vec<Field> {
        let fields = names.iter().enumerate();
        let field = |(index, name): (usize, &&str)| field(name, word(offset + 4 * index));
        fields.map(field).collect()
    };
    let entry = |entry: &Entry| {
        let (kind, name, offset) = match entry {
            Entry::Carveout(it) => ("carveout", it.name.to_string(), it.offset),
            Entry::Devmem(it) => ("devmem", it.name.to_string(), it.offset),
            Entry::Trace(it) => ("trace", it.name.to_string(), it.offset),
            Entry::Vdev(it) => ("vdev", String::new(), it.offset),
            Entry::Vendor(it) => ("vendor", String::new(), it.offset),
            Entry::Unknown(it) => ("unknown", String::new(), it.offset),
        };
        let fields = offset + 4;
        let mut vrings = Vec::new();
        let fields = match entry {
            Entry::Carveout(_) | Entry::Devmem(_) => words(fields, &["da", "pa", "len", "flags"]),
            Entry::Trace(_) => words(fields, &["da", "len", "reserved"]),
            Entry::Vdev(vdev) => {
                for vring in &vdev.vrings {
                    let names = ["da", "align", "num", "notifyid", "pa"];
                    vrings.push(ResourceVring {
                        fields: words(vring.offset, &names),
                    });
                }
                let names = ["id", "notifyid", "dfeatures", "gfeatures", "config_len"];
                let mut fields = words(fields, &names);
                for (index, name) in ["status", "num_of_vrings"].into_iter().enumerate() {
                    fields.push(field(name, byte(vdev.status_offset() + index)));
                }
                fields
            }
            Entry::Vendor(raw) | Entry::Unknown(raw) => {
                vec![
                    field("type", raw.kind.into()),
                    field("bytes", raw.payload.len() as u64),
                ]
            }
        };
        Resource {
            kind: kind.to_owned(),
            name,
            fields,
            vrings,
        }
    };
    table.entries().iter().map(entry).collect()
}

fn field(name: &str, value: u64) -> Field {
    Field {
        name: name.to_owned(),
        value,
    }
}
