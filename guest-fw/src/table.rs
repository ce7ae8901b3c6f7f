//! The resource table: what this image asks of the host, and what the host answers in it.
//!
//! One static in the section `.resource_table`, made at compile time. The host writes into it
//! after the load (notify ids) and while the core runs (`vring.da`, `gfeatures`, `status`), so at
//! run time it is read through a [`Span`] and nothing else. What the values lead to belongs to
//! [`crate::bus`].

#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::mem::offset_of;

use crate::layout;
use crate::memory::{Slot, Span};

/// "Anywhere" or "not known yet": the host replaces it.
const ANY: u32 = 0xFFFF_FFFF;
const TYPE_CARVEOUT: u32 = 0;
const TYPE_TRACE: u32 = 2;
const TYPE_VDEV: u32 = 3;
/// The virtio id of an rpmsg device.
const VIRTIO_ID_RPMSG: u32 = 7;

/// Feature bit of an rpmsg device: channels are announced to the driver.
pub const FEATURE_NAME_SERVICE: u32 = 1 << 0;
/// Feature bit of every virtio device: each side names the index at which it wants to hear of the
/// other.
pub const FEATURE_EVENT_IDX: u32 = 1 << 29;
/// Bit of the status byte: the driver is up, rings and addresses are valid.
pub const STATUS_DRIVER_OK: u8 = 1 << 2;
/// Buffers in each vring.
pub const RING_SIZE: u32 = 256;
/// Alignment of a vring and of its used part.
const RING_ALIGN: u32 = 4096;

#[repr(C)]
struct Carveout {
    kind: u32,
    da: layout::Word,
    pa: u32,
    len: layout::Word,
    flags: u32,
    reserved: u32,
    name: [u8; 32],
}

#[repr(C)]
struct Trace {
    kind: u32,
    da: layout::Word,
    len: layout::Word,
    reserved: u32,
    name: [u8; 32],
}

#[repr(C)]
struct Vring {
    da: u32,
    align: u32,
    num: u32,
    notify_id: u32,
    pa: u32,
}

#[repr(C)]
struct Vdev {
    kind: u32,
    id: u32,
    notify_id: u32,
    dfeatures: u32,
    gfeatures: u32,
    config_len: u32,
    status: u8,
    num_of_vrings: u8,
    reserved: [u8; 2],
    vrings: [Vring; 2],
}

#[repr(C)]
struct ResourceTable {
    version: u32,
    entries: u32,
    reserved: [u32; 2],
    offsets: [u32; 3],
    carveout: Carveout,
    trace: Trace,
    vdev: Vdev,
}

// The table has no padding; the host counts bytes.
const _: () = assert!(size_of::<Carveout>() == 56);
const _: () = assert!(size_of::<Trace>() == 48);
const _: () = assert!(size_of::<Vdev>() == 28 + 2 * 20);
const _: () = assert!(size_of::<ResourceTable>() == 28 + 56 + 48 + 68);

const fn name(text: &str) -> [u8; 32] {
    let mut name = [0; 32];
    let mut index = 0;
    while index < text.len() {
        name[index] = text.as_bytes()[index];
        index += 1;
    }
    name
}

impl ResourceTable {
    const fn new() -> Self {
        const VRING: Vring = Vring {
            da: ANY,
            align: RING_ALIGN,
            num: RING_SIZE,
            notify_id: ANY,
            pa: 0,
        };
        Self {
            version: 1,
            entries: 3,
            reserved: [0; 2],
            offsets: [
                offset_of!(ResourceTable, carveout) as u32,
                offset_of!(ResourceTable, trace) as u32,
                offset_of!(ResourceTable, vdev) as u32,
            ],
            carveout: Carveout {
                kind: TYPE_CARVEOUT,
                da: layout::CARVEOUT,
                pa: ANY,
                len: layout::CARVEOUT_SIZE,
                flags: 0,
                reserved: 0,
                name: name("firmware"),
            },
            trace: Trace {
                kind: TYPE_TRACE,
                da: layout::TRACE,
                len: layout::TRACE_SIZE,
                reserved: 0,
                name: name("trace0"),
            },
            vdev: Vdev {
                kind: TYPE_VDEV,
                id: VIRTIO_ID_RPMSG,
                notify_id: 0,
                dfeatures: FEATURE_NAME_SERVICE | FEATURE_EVENT_IDX,
                gfeatures: 0,
                config_len: 0,
                status: 0,
                num_of_vrings: 2,
                reserved: [0; 2],
                vrings: [VRING, VRING],
            },
        }
    }
}

#[repr(transparent)]
struct Shared(UnsafeCell<ResourceTable>);

// SAFETY: never accessed but through the span that `vdev_entry` makes, whose accesses are volatile
// words; there is one hart.
unsafe impl Sync for Shared {}

#[cfg_attr(target_os = "none", unsafe(link_section = ".resource_table"))]
#[used]
static TABLE: Shared = Shared(UnsafeCell::new(ResourceTable::new()));

/// Where the host placed a vring and how it is shaped, as copied out of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VringPlace {
    /// Device address.
    pub da: u32,
    /// Alignment of the used part.
    pub align: u32,
    /// Descriptors.
    pub num: u32,
    /// What to kick the host with, and what the host kicks with.
    pub notify_id: u32,
}

/// The vdev entry, as it is now.
#[derive(Clone, Copy)]
pub struct VdevEntry {
    entry: Span,
    /// The same, for what is read at every kick.
    often: Slot<{ VdevEntry::SIZE }>,
}

impl VdevEntry {
    /// Bytes in the entry.
    pub const SIZE: u32 = size_of::<Vdev>() as u32;

    /// The entry of this image.
    pub fn of_image() -> Self {
        // The pointer is made of the whole cell, so it may be used for the entry's bytes.
        let entry = TABLE
            .0
            .get()
            .cast::<u8>()
            .wrapping_add(offset_of!(ResourceTable, vdev));
        // SAFETY: the entry lies in a static, valid for ever, inside an UnsafeCell to which no
        // reference is ever made.
        Self::new(unsafe { Span::new(entry, Self::SIZE) })
    }

    /// The entry in `span`.
    ///
    /// # Panics
    /// When `span` is shorter than [`Self::SIZE`].
    pub fn new(span: Span) -> Self {
        Self {
            entry: span,
            often: span.slot(0).expect("a whole entry"),
        }
    }

    /// Is the driver up? Only then do the rings exist.
    #[inline]
    pub fn driver_ok(&self) -> bool {
        const STATUS: u32 = offset_of!(Vdev, status) as u32;
        self.often.read_u8::<STATUS>() & STATUS_DRIVER_OK != 0
    }

    /// The features that the driver accepted.
    pub fn gfeatures(&self) -> u32 {
        self.entry.read_u32(offset_of!(Vdev, gfeatures) as u32)
    }

    /// The device addresses of the vrings.
    #[inline]
    pub fn vring_das(&self) -> [u32; 2] {
        const FIRST: u32 = VdevEntry::vring_offset(0) + offset_of!(Vring, da) as u32;
        const SECOND: u32 = VdevEntry::vring_offset(1) + offset_of!(Vring, da) as u32;
        [
            self.often.read_u32::<FIRST>(),
            self.often.read_u32::<SECOND>(),
        ]
    }

    /// All of vring `index`.
    pub fn vring(&self, index: u32) -> VringPlace {
        let at = Self::vring_offset(index);
        let field = |offset: usize| self.entry.read_u32(at + offset as u32);
        VringPlace {
            da: field(offset_of!(Vring, da)),
            align: field(offset_of!(Vring, align)),
            num: field(offset_of!(Vring, num)),
            notify_id: field(offset_of!(Vring, notify_id)),
        }
    }

    const fn vring_offset(index: u32) -> u32 {
        offset_of!(Vdev, vrings) as u32 + index * size_of::<Vring>() as u32
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! The host's hand in the table.

    use super::*;

    pub(crate) fn write(entry: Span, status: u8, gfeatures: u32, das: [u32; 2]) {
        entry.write_u32(offset_of!(Vdev, gfeatures) as u32, gfeatures);
        for (index, da) in das.into_iter().enumerate() {
            let vring = VdevEntry::vring_offset(index as u32);
            entry.write_u32(vring + offset_of!(Vring, da) as u32, da);
            entry.write_u32(vring + offset_of!(Vring, align) as u32, RING_ALIGN);
            entry.write_u32(vring + offset_of!(Vring, num) as u32, RING_SIZE);
            entry.write_u32(
                vring + offset_of!(Vring, notify_id) as u32,
                4 + index as u32,
            );
        }
        entry.write_u8(offset_of!(Vdev, status) as u32, status);
    }

    pub(crate) fn write_num(entry: Span, num: u32) {
        entry.write_u32(
            VdevEntry::vring_offset(0) + offset_of!(Vring, num) as u32,
            num,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_starts_without_a_driver_and_asks_for_two_vrings_anywhere() {
        let entry = VdevEntry::of_image();
        assert!(!entry.driver_ok());
        for index in 0..2 {
            let vring = entry.vring(index);
            assert_eq!((vring.da, vring.num, vring.align), (ANY, 256, 4096));
        }
    }
}
