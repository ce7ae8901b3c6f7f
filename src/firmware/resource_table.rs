//! The resource table: what a firmware wants from its host.
//!
//! Wire format: `include/linux/rsc_table.h` and `include/linux/remoteproc.h` of Linux. All words
//! are 32 bits, little-endian, and every address is 32 bits wide, whatever the ELF class.
//!
//! ```text
//! table:   ver  num  reserved[2]  offset[num]  ...entries, wherever the offsets say
//! entry:   type, then by type (offsets from the start of the entry):
//!   0 carveout  da +4  pa +8  len +12  flags +16  reserved +20  name[32] +24
//!   1 devmem    the same
//!   2 trace     da +4  len +8  reserved +12  name[32] +16
//!   3 vdev      id +4  notifyid +8  dfeatures +12  gfeatures +16  config_len +20
//!               status u8 +24  num_of_vrings u8 +25  reserved[2] u8 +26
//!               vrings of 20 bytes +28: da +0  align +4  num +8  notifyid +12  pa +16
//!               then config_len bytes
//!   128..=512   vendor's own
//! ```
//!
//! The reading is stricter than Linux's: entries lie apart from each other, ring sizes are powers
//! of two, names end with a NUL. Whatever Linux leaves undefined is refused here, before anything
//! is loaded. Alignment is nobody's duty: every word is read and written byte by byte.

use std::fmt;

use thiserror::Error;

use crate::engine::NotifyId;
use crate::memory::DeviceAddress;

/// The largest table: 64 KiB. Linux has no limit; tables of the field are below 1 KiB.
pub const TABLE_MAX_BYTES: usize = 64 << 10;
/// The most entries in a table. Linux has no limit; firmware of the field has fewer than 20.
pub const TABLE_MAX_ENTRIES: u32 = 256;
/// `FW_RSC_ADDR_ANY`: the host chooses the address. 0 is an address like any other.
pub const ADDRESS_ANY: u32 = 0xffff_ffff;
/// The most vrings of one vdev.
pub const VDEV_MAX_VRINGS: u8 = 2;
/// The largest queue size of a split ring (virtio 1.2, 2.7).
pub const VRING_MAX_NUM: u32 = 32768;
/// The smallest alignment of a used ring: what its elements need (virtio 1.2, 2.7).
pub const VRING_MIN_ALIGN: u32 = 4;
/// The largest alignment of a used ring: 1 MiB, far above any page size.
pub const VRING_MAX_ALIGN: u32 = 1 << 20;

const HEADER_BYTES: usize = 16;
const TYPE_BYTES: usize = 4;
const NAME_BYTES: usize = 32;
const VDEV_BYTES: usize = 24;
const VRING_BYTES: usize = 20;
/// A descriptor table lies on a multiple of this (virtio 1.2, 2.7).
const DESCRIPTOR_ALIGN: u32 = 16;
const END_OF_32_BITS: u64 = 1 << 32;

/// Which entry an error or a notice is about. Shown as `resource table entry 2 (vdev 0)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryId {
    /// Place in the offset array, counted from 0.
    pub index: usize,
    /// What it is.
    pub kind: EntryKind,
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "resource table entry {} ({})", self.index, self.kind)
    }
}

/// The type of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryKind {
    /// `RSC_CARVEOUT`, 0.
    Carveout,
    /// `RSC_DEVMEM`, 1.
    Devmem,
    /// `RSC_TRACE`, 2.
    Trace,
    /// `RSC_VDEV`, 3, and its number among the vdevs of the table, counted from 0.
    Vdev(usize),
    /// `RSC_VENDOR_START..=RSC_VENDOR_END`, 128 to 512: the type.
    Vendor(u32),
    /// Anything else: the type.
    Unknown(u32),
}

impl fmt::Display for EntryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Carveout => f.write_str("carveout"),
            Self::Devmem => f.write_str("devmem"),
            Self::Trace => f.write_str("trace"),
            Self::Vdev(number) => write!(f, "vdev {number}"),
            Self::Vendor(kind) => write!(f, "vendor type {kind}"),
            Self::Unknown(kind) => write!(f, "unknown type {kind}"),
        }
    }
}

/// Why a resource table is refused. Nothing of a refused table is used.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum TableError {
    /// There is no room for the header.
    #[error("resource table has {bytes} bytes, must have at least {HEADER_BYTES}")]
    TooShort {
        /// Bytes there are.
        bytes: usize,
    },
    /// It is larger than [`TABLE_MAX_BYTES`].
    #[error("resource table has {bytes} bytes, must have at most {TABLE_MAX_BYTES}")]
    TooLong {
        /// Bytes there are.
        bytes: usize,
    },
    /// `ver` is not 1.
    #[error("resource table: ver is {ver}, must be 1")]
    Version {
        /// The version.
        ver: u32,
    },
    /// A reserved word of the header is set.
    #[error("resource table: reserved[{word}] is {value:#x}, must be 0")]
    HeaderReserved {
        /// Which of the two.
        word: usize,
        /// What it holds.
        value: u32,
    },
    /// There are more than [`TABLE_MAX_ENTRIES`].
    #[error("resource table: num is {num}, must be at most {TABLE_MAX_ENTRIES}")]
    TooManyEntries {
        /// Entries declared.
        num: u32,
    },
    /// The offset array does not fit.
    #[error(
        "resource table: num is {num}, which needs a table of {needs} bytes or more, it has {has}"
    )]
    OffsetsTruncated {
        /// Entries declared.
        num: u32,
        /// Bytes of header and offset array.
        needs: usize,
        /// Bytes of the table.
        has: usize,
    },
    /// An entry begins in the header, in the offset array or past the end.
    #[error(
        "resource table entry {index}: offset is {offset}, must be {first} or more \
         and leave 4 bytes of the table's {table}"
    )]
    Offset {
        /// Place in the offset array.
        index: usize,
        /// Its offset.
        offset: u32,
        /// First byte after the offset array.
        first: usize,
        /// Bytes of the table.
        table: usize,
    },
    /// An entry does not fit into the table.
    #[error("{entry} needs {needs} bytes, {has} are left in the table")]
    EntryTruncated {
        /// Which entry.
        entry: EntryId,
        /// Bytes of the entry, its type included.
        needs: u64,
        /// Bytes from its start to the end of the table.
        has: usize,
    },
    /// Two entries share bytes.
    #[error("{entry} begins at offset {offset}, inside entry {other}, which ends at {end}")]
    EntriesOverlap {
        /// The entry that begins later.
        entry: EntryId,
        /// Where it begins.
        offset: usize,
        /// Index of the entry that it begins in.
        other: usize,
        /// First byte after that.
        end: usize,
    },
    /// A reserved field is set.
    #[error("{entry}: reserved is {value:#x}, must be 0")]
    Reserved {
        /// Which entry.
        entry: EntryId,
        /// What the field holds.
        value: u32,
    },
    /// A name fills its field.
    #[error("{entry}: name has no NUL in its {NAME_BYTES} bytes, must have at most 31 and a NUL")]
    NameUnterminated {
        /// Which entry.
        entry: EntryId,
    },
    /// A span of memory is empty.
    #[error("{entry}: len is 0, must be at least 1")]
    Empty {
        /// Which entry.
        entry: EntryId,
    },
    /// A span of memory goes past 4 GiB.
    #[error(
        "{entry}: {field} is {start:#x} and len is {len:#x}, must end at most at {END_OF_32_BITS:#x}"
    )]
    Wraps {
        /// Which entry.
        entry: EntryId,
        /// `da` or `pa`.
        field: &'static str,
        /// Where the span begins.
        start: u32,
        /// Its bytes.
        len: u32,
    },
    /// Two carveouts have one name (two without a name, too).
    #[error("{entry}: name is \"{name}\", taken by entry {other}, must be unique among carveouts")]
    CarveoutName {
        /// The later entry.
        entry: EntryId,
        /// The name.
        name: Name,
        /// Index of the earlier entry.
        other: usize,
    },
    /// A vdev has no vring, or more than [`VDEV_MAX_VRINGS`].
    #[error("{entry}: num_of_vrings is {value}, must be 1 to {VDEV_MAX_VRINGS}")]
    VringCount {
        /// Which entry.
        entry: EntryId,
        /// Vrings declared.
        value: u8,
    },
    /// The size of a vring is no power of two, or too large.
    #[error(
        "{entry}, vring {vring}: num is {num}, must be a power of two from 1 to {VRING_MAX_NUM}"
    )]
    VringNum {
        /// Which entry.
        entry: EntryId,
        /// Which of its vrings.
        vring: usize,
        /// Its size.
        num: u32,
    },
    /// The alignment of a vring is no power of two, or out of range.
    #[error(
        "{entry}, vring {vring}: align is {align}, must be a power of two \
         from {VRING_MIN_ALIGN} to {VRING_MAX_ALIGN}"
    )]
    VringAlign {
        /// Which entry.
        entry: EntryId,
        /// Which of its vrings.
        vring: usize,
        /// Its alignment.
        align: u32,
    },
    /// A vring with a fixed address is not where its alignment wants it. Firmware that aligns
    /// addresses and firmware that aligns offsets would disagree about the used ring.
    #[error("{entry}, vring {vring}: da is {da:#x}, must be a multiple of {multiple}")]
    VringMisaligned {
        /// Which entry.
        entry: EntryId,
        /// Which of its vrings.
        vring: usize,
        /// Its address.
        da: u32,
        /// Its alignment, at least 16.
        multiple: u32,
    },
    /// A vring with a fixed address goes past 4 GiB.
    #[error(
        "{entry}, vring {vring}: da is {da:#x} and the ring has {bytes} bytes, \
         must end at most at {END_OF_32_BITS:#x}"
    )]
    VringWraps {
        /// Which entry.
        entry: EntryId,
        /// Which of its vrings.
        vring: usize,
        /// Its address.
        da: u32,
        /// Bytes of the ring.
        bytes: u64,
    },
    /// All vdevs together have more vrings than there are notify ids.
    #[error(
        "{entry}: the table has {total} vrings up to here, must have at most {}",
        NotifyId::LIMIT
    )]
    TooManyVrings {
        /// The entry with which it became too many.
        entry: EntryId,
        /// Vrings so far.
        total: usize,
    },
}

/// A name of an entry: up to 31 bytes, none of them NUL. What the bytes are is the firmware's
/// business, so they are shown escaped.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Name(Vec<u8>);

impl Name {
    /// The bytes before the NUL.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Is it exactly this?
    pub fn is(&self, name: &str) -> bool {
        self.0 == name.as_bytes()
    }

    /// Is there no name?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// One entry of a table.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Entry {
    /// Memory that the firmware uses.
    Carveout(CarveoutEntry),
    /// A device of the host that the firmware uses.
    Devmem(DevmemEntry),
    /// A text buffer that the firmware logs to.
    Trace(TraceEntry),
    /// A virtio device that the firmware is.
    Vdev(VdevEntry),
    /// An entry of a vendor's own, unread.
    Vendor(RawEntry),
    /// An entry of a type that does not exist, to be skipped and mentioned in the log.
    Unknown(RawEntry),
}

impl Entry {
    /// Which one it is.
    pub fn id(&self) -> EntryId {
        match self {
            Self::Carveout(entry) => entry.id(),
            Self::Devmem(entry) => entry.id(),
            Self::Trace(entry) => entry.id(),
            Self::Vdev(entry) => entry.id(),
            Self::Vendor(entry) => EntryId {
                index: entry.index,
                kind: EntryKind::Vendor(entry.kind),
            },
            Self::Unknown(entry) => EntryId {
                index: entry.index,
                kind: EntryKind::Unknown(entry.kind),
            },
        }
    }
}

/// `struct fw_rsc_carveout`. The host writes `da`, `pa` and `len` back before the load.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CarveoutEntry {
    /// Place in the offset array.
    pub index: usize,
    /// First byte of the entry, from the start of the table.
    pub offset: usize,
    /// Where the firmware wants it; `None`: anywhere.
    pub da: Option<DeviceAddress>,
    /// The host-physical address as the image has it: a placeholder.
    pub pa: u32,
    /// Bytes, never 0. A fixed span ends within 4 GiB.
    pub len: u64,
    /// IOMMU flags.
    pub flags: u32,
    /// Unique among the carveouts of the table.
    pub name: Name,
}

impl CarveoutEntry {
    /// Which entry it is, for messages.
    pub fn id(&self) -> EntryId {
        EntryId {
            index: self.index,
            kind: EntryKind::Carveout,
        }
    }

    /// Where `da` (u32) is in the table.
    pub fn da_offset(&self) -> usize {
        self.offset + 4
    }

    /// Where `pa` (u32) is in the table.
    pub fn pa_offset(&self) -> usize {
        self.offset + 8
    }

    /// Where `len` (u32) is in the table.
    pub fn len_offset(&self) -> usize {
        self.offset + 12
    }
}

/// `struct fw_rsc_devmem`. Nothing is written back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DevmemEntry {
    /// Place in the offset array.
    pub index: usize,
    /// First byte of the entry, from the start of the table.
    pub offset: usize,
    /// Where the firmware wants the device.
    pub da: DeviceAddress,
    /// Where the device is, a host-physical address.
    pub pa: u64,
    /// Bytes, never 0. Both spans end within 4 GiB.
    pub len: u64,
    /// IOMMU flags.
    pub flags: u32,
    /// Not unique.
    pub name: Name,
}

impl DevmemEntry {
    /// Which entry it is, for messages.
    pub fn id(&self) -> EntryId {
        EntryId {
            index: self.index,
            kind: EntryKind::Devmem,
        }
    }
}

/// `struct fw_rsc_trace`. Nothing is written back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TraceEntry {
    /// Place in the offset array.
    pub index: usize,
    /// First byte of the entry, from the start of the table.
    pub offset: usize,
    /// The buffer. Whether it is memory of the core is not known here.
    pub da: DeviceAddress,
    /// Bytes, never 0. The span ends within 4 GiB.
    pub len: u64,
    /// Not unique.
    pub name: Name,
}

impl TraceEntry {
    /// Which entry it is, for messages.
    pub fn id(&self) -> EntryId {
        EntryId {
            index: self.index,
            kind: EntryKind::Trace,
        }
    }
}

/// `struct fw_rsc_vdev`. The host writes `gfeatures`, `status` and the config bytes; the `notifyid`
/// of the vdev itself is dead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VdevEntry {
    /// Place in the offset array.
    pub index: usize,
    /// First byte of the entry, from the start of the table.
    pub offset: usize,
    /// Number among the vdevs of the table, counted from 0 in table order.
    pub number: usize,
    /// The virtio device id; rpmsg is 7.
    pub device_id: u32,
    /// Feature bits 0 to 31 that the firmware offers.
    pub dfeatures: u32,
    /// One or two.
    pub vrings: Vec<VringEntry>,
    /// The config space as the image has it.
    pub config: Vec<u8>,
}

impl VdevEntry {
    /// Which entry it is, for messages.
    pub fn id(&self) -> EntryId {
        EntryId {
            index: self.index,
            kind: EntryKind::Vdev(self.number),
        }
    }

    /// Where `gfeatures` (u32) is in the table.
    pub fn gfeatures_offset(&self) -> usize {
        self.offset + 16
    }

    /// Where `status` (u8) is in the table.
    pub fn status_offset(&self) -> usize {
        self.offset + 24
    }

    /// Where the config space is in the table; `config.len()` bytes.
    pub fn config_offset(&self) -> usize {
        self.offset + TYPE_BYTES + VDEV_BYTES + VRING_BYTES * self.vrings.len()
    }
}

/// `struct fw_rsc_vdev_vring`. The host writes `notifyid` before the load and `da` when the driver
/// sets the ring up; the `notifyid` and `pa` of the image are placeholders.
///
/// The ring's parts, from its start: descriptors, then [`VringEntry::avail_offset`], then
/// [`VringEntry::used_offset`], and [`VringEntry::ring_bytes`] in all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VringEntry {
    /// First byte, from the start of the table.
    pub offset: usize,
    /// Where the firmware wants the ring, a multiple of `align` and of 16; `None`: anywhere.
    pub da: Option<DeviceAddress>,
    /// Alignment of the used ring: a power of two, 4 to 1 MiB.
    pub align: u32,
    /// Queue size: a power of two, 1 to 32768.
    pub num: u16,
}

impl VringEntry {
    /// Where `da` (u32) is in the table.
    pub fn da_offset(&self) -> usize {
        self.offset
    }

    /// Where `notifyid` (u32) is in the table.
    pub fn notifyid_offset(&self) -> usize {
        self.offset + 12
    }

    /// What the start of the ring must be a multiple of.
    pub fn start_align(&self) -> u32 {
        self.align.max(DESCRIPTOR_ALIGN)
    }

    /// Where the available ring begins in the ring.
    pub fn avail_offset(&self) -> u64 {
        16 * u64::from(self.num)
    }

    /// Where the used ring begins in the ring.
    pub fn used_offset(&self) -> u64 {
        let avail = 2 * (3 + u64::from(self.num));
        (self.avail_offset() + avail).next_multiple_of(u64::from(self.align))
    }

    /// Bytes of the ring (`vring_size` of Linux), not rounded to pages.
    pub fn ring_bytes(&self) -> u64 {
        self.used_offset() + 6 + 8 * u64::from(self.num)
    }
}

/// An entry whose payload is not read here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RawEntry {
    /// Place in the offset array.
    pub index: usize,
    /// First byte of the entry, from the start of the table.
    pub offset: usize,
    /// Its type.
    pub kind: u32,
    /// What follows the type, up to the next entry or the end of the table: the entry does not
    /// tell its size.
    pub payload: Vec<u8>,
}

/// A resource table of which every field has been checked, with its pristine bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResourceTable {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

impl ResourceTable {
    /// Reads and checks a whole table.
    ///
    /// # Errors
    /// One [`TableError`] for the first thing that is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, TableError> {
        let offsets = offsets(bytes)?;
        let mut starts = offsets.clone();
        starts.sort_unstable();

        let mut walk = Walk::default();
        let mut spans = Vec::with_capacity(offsets.len());
        for (index, &offset) in offsets.iter().enumerate() {
            let next = starts.partition_point(|&start| start <= offset);
            let next = starts.get(next).copied().unwrap_or(bytes.len());
            let end = walk.entry(bytes, index, offset, next)?;
            spans.push((offset, end, index));
        }

        spans.sort_unstable();
        for pair in spans.windows(2) {
            if let &[(_, end, other), (offset, _, index)] = pair
                && offset < end
                && let Some(entry) = walk.entries.get(index)
            {
                return Err(TableError::EntriesOverlap {
                    entry: entry.id(),
                    offset,
                    other,
                    end,
                });
            }
        }
        Ok(Self {
            bytes: bytes.to_vec(),
            entries: walk.entries,
        })
    }

    /// The table as the image has it: what every boot begins with.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All entries in table order, those to be skipped included.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The carveouts in table order.
    pub fn carveouts(&self) -> impl Iterator<Item = &CarveoutEntry> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Carveout(carveout) => Some(carveout),
            _ => None,
        })
    }

    /// The devmem entries in table order.
    pub fn devmems(&self) -> impl Iterator<Item = &DevmemEntry> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Devmem(devmem) => Some(devmem),
            _ => None,
        })
    }

    /// The trace buffers in table order.
    pub fn traces(&self) -> impl Iterator<Item = &TraceEntry> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Trace(trace) => Some(trace),
            _ => None,
        })
    }

    /// The vdevs in table order: the n-th has `number` n.
    pub fn vdevs(&self) -> impl Iterator<Item = &VdevEntry> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Vdev(vdev) => Some(vdev),
            _ => None,
        })
    }

    /// The entries that are skipped because their type does not exist, for the log.
    pub fn skipped(&self) -> impl Iterator<Item = EntryId> {
        self.entries
            .iter()
            .map(Entry::id)
            .filter(|id| matches!(id.kind, EntryKind::Unknown(_)))
    }
}

/// One line for each entry; no line end after the last.
impl fmt::Display for ResourceTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, entry) in self.entries.iter().enumerate() {
            if place > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{entry}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let EntryId { index, kind } = self.id();
        write!(f, "{index}: {kind}")?;
        match self {
            Self::Carveout(CarveoutEntry {
                da,
                len,
                flags,
                name,
                ..
            }) => {
                let da = Place(*da);
                write!(f, " \"{name}\", da {da}, len {len:#x}, flags {flags:#x}")
            }
            Self::Devmem(DevmemEntry {
                da,
                pa,
                len,
                flags,
                name,
                ..
            }) => write!(
                f,
                " \"{name}\", da {da}, pa {pa:#010x}, len {len:#x}, flags {flags:#x}"
            ),
            Self::Trace(TraceEntry { da, len, name, .. }) => {
                write!(f, " \"{name}\", da {da}, len {len:#x}")
            }
            Self::Vdev(vdev) => {
                write!(
                    f,
                    ", virtio id {}, features {:#x}, config {} bytes",
                    vdev.device_id,
                    vdev.dfeatures,
                    vdev.config.len()
                )?;
                for (number, vring) in vdev.vrings.iter().enumerate() {
                    write!(
                        f,
                        ", vring {number}: da {}, num {}, align {}",
                        Place(vring.da),
                        vring.num,
                        vring.align
                    )?;
                }
                Ok(())
            }
            Self::Vendor(raw) => write!(f, ", {} bytes", raw.payload.len()),
            Self::Unknown(_) => f.write_str(", skipped"),
        }
    }
}

struct Place(Option<DeviceAddress>);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(da) => write!(f, "{da}"),
            None => f.write_str("any"),
        }
    }
}

/// Checks the header and the offset array, and gives where the entries begin.
fn offsets(bytes: &[u8]) -> Result<Vec<usize>, TableError> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Err(TableError::TooShort { bytes: bytes.len() });
    };
    if bytes.len() > TABLE_MAX_BYTES {
        return Err(TableError::TooLong { bytes: bytes.len() });
    }
    let ver = word(header, 0);
    if ver != 1 {
        return Err(TableError::Version { ver });
    }
    for reserved in [0, 1] {
        let value = word(header, 8 + 4 * reserved);
        if value != 0 {
            return Err(TableError::HeaderReserved {
                word: reserved,
                value,
            });
        }
    }
    let num = word(header, 4);
    if num > TABLE_MAX_ENTRIES {
        return Err(TableError::TooManyEntries { num });
    }
    // At most 256: no overflow.
    let array = 4 * num as usize;
    let first = HEADER_BYTES + array;
    let Some(array) = rest.get(..array) else {
        return Err(TableError::OffsetsTruncated {
            num,
            needs: first,
            has: bytes.len(),
        });
    };
    let (words, _) = array.as_chunks::<4>();
    words
        .iter()
        .enumerate()
        .map(|(index, word)| {
            let offset = u32::from_le_bytes(*word);
            let at = offset as usize;
            if at < first || bytes.len().saturating_sub(at) < TYPE_BYTES {
                return Err(TableError::Offset {
                    index,
                    offset,
                    first,
                    table: bytes.len(),
                });
            }
            Ok(at)
        })
        .collect()
}

/// What the walk over the entries has seen so far.
#[derive(Default)]
struct Walk {
    entries: Vec<Entry>,
    vdevs: usize,
    vrings: usize,
}

impl Walk {
    /// Checks the entry at `offset` and keeps it. `next` is where the next entry begins or the
    /// table ends. Returns where the entry ends.
    fn entry(
        &mut self,
        table: &[u8],
        index: usize,
        offset: usize,
        next: usize,
    ) -> Result<usize, TableError> {
        // The offset has been checked: 4 bytes are there.
        let left = table.get(offset..).unwrap_or_default();
        let mut at = At {
            id: EntryId {
                index,
                kind: EntryKind::Unknown(0),
            },
            left,
        };
        let kind = word(at.take::<TYPE_BYTES>(0)?, 0);
        at.id.kind = match kind {
            0 => EntryKind::Carveout,
            1 => EntryKind::Devmem,
            2 => EntryKind::Trace,
            3 => EntryKind::Vdev(self.vdevs),
            128..=512 => EntryKind::Vendor(kind),
            _ => EntryKind::Unknown(kind),
        };
        let (entry, bytes) = match at.id.kind {
            EntryKind::Carveout => (
                Entry::Carveout(self.carveout(&at, offset)?),
                TYPE_BYTES + 52,
            ),
            EntryKind::Devmem => (Entry::Devmem(devmem(&at, offset)?), TYPE_BYTES + 52),
            EntryKind::Trace => (Entry::Trace(trace(&at, offset)?), TYPE_BYTES + 44),
            EntryKind::Vdev(_) => {
                let (vdev, bytes) = self.vdev(&at, offset)?;
                (Entry::Vdev(vdev), bytes)
            }
            EntryKind::Vendor(_) | EntryKind::Unknown(_) => {
                let payload = table.get(offset + TYPE_BYTES..next).unwrap_or_default();
                let raw = RawEntry {
                    index,
                    offset,
                    kind,
                    payload: payload.to_vec(),
                };
                let entry = match at.id.kind {
                    EntryKind::Vendor(_) => Entry::Vendor(raw),
                    _ => Entry::Unknown(raw),
                };
                (entry, next - offset)
            }
        };
        self.entries.push(entry);
        Ok(offset + bytes)
    }

    fn carveout(&self, at: &At<'_>, offset: usize) -> Result<CarveoutEntry, TableError> {
        let body = at.take::<52>(TYPE_BYTES)?;
        let (da, len) = (word(body, 0), word(body, 8));
        at.reserved(word(body, 16))?;
        let da = if da == ADDRESS_ANY {
            at.not_empty(len)?;
            None
        } else {
            Some(at.span("da", da, len)?)
        };
        let name = at.name(body, 20)?;
        let same = self.entries.iter().find_map(|entry| match entry {
            Entry::Carveout(other) if other.name == name => Some(other.index),
            _ => None,
        });
        if let Some(other) = same {
            return Err(TableError::CarveoutName {
                entry: at.id,
                name,
                other,
            });
        }
        Ok(CarveoutEntry {
            index: at.id.index,
            offset,
            da,
            pa: word(body, 4),
            len: u64::from(len),
            flags: word(body, 12),
            name,
        })
    }

    fn vdev(&mut self, at: &At<'_>, offset: usize) -> Result<(VdevEntry, usize), TableError> {
        let body = at.take::<VDEV_BYTES>(TYPE_BYTES)?;
        let [.., _status, count, reserved_low, reserved_high] = *body;
        at.reserved(u32::from(u16::from_le_bytes([reserved_low, reserved_high])))?;
        if count == 0 || count > VDEV_MAX_VRINGS {
            return Err(TableError::VringCount {
                entry: at.id,
                value: count,
            });
        }
        let config_len = word(body, 16);
        let config_at = TYPE_BYTES + VDEV_BYTES + VRING_BYTES * usize::from(count);
        let needs = config_at as u64 + u64::from(config_len);
        let config = usize::try_from(needs)
            .ok()
            .and_then(|end| at.left.get(config_at..end))
            .ok_or_else(|| at.truncated(needs))?;

        let vrings = (0..usize::from(count))
            .map(|number| vring(at, number, offset))
            .collect::<Result<Vec<_>, _>>()?;
        self.vrings += vrings.len();
        if self.vrings > usize::from(NotifyId::LIMIT) {
            return Err(TableError::TooManyVrings {
                entry: at.id,
                total: self.vrings,
            });
        }
        let vdev = VdevEntry {
            index: at.id.index,
            offset,
            number: self.vdevs,
            device_id: word(body, 0),
            dfeatures: word(body, 8),
            vrings,
            config: config.to_vec(),
        };
        self.vdevs += 1;
        Ok((vdev, config_at + config.len()))
    }
}

fn devmem(at: &At<'_>, offset: usize) -> Result<DevmemEntry, TableError> {
    let body = at.take::<52>(TYPE_BYTES)?;
    let (da, pa, len) = (word(body, 0), word(body, 4), word(body, 8));
    at.reserved(word(body, 16))?;
    let da = at.span("da", da, len)?;
    at.span("pa", pa, len)?;
    Ok(DevmemEntry {
        index: at.id.index,
        offset,
        da,
        pa: u64::from(pa),
        len: u64::from(len),
        flags: word(body, 12),
        name: at.name(body, 20)?,
    })
}

fn trace(at: &At<'_>, offset: usize) -> Result<TraceEntry, TableError> {
    let body = at.take::<44>(TYPE_BYTES)?;
    let (da, len) = (word(body, 0), word(body, 4));
    at.reserved(word(body, 8))?;
    Ok(TraceEntry {
        index: at.id.index,
        offset,
        da: at.span("da", da, len)?,
        len: u64::from(len),
        name: at.name(body, 12)?,
    })
}

fn vring(at: &At<'_>, number: usize, entry_offset: usize) -> Result<VringEntry, TableError> {
    let start = TYPE_BYTES + VDEV_BYTES + VRING_BYTES * number;
    let body = at.take::<VRING_BYTES>(start)?;
    let (da, align, num) = (word(body, 0), word(body, 4), word(body, 8));
    let size = u16::try_from(num)
        .ok()
        .filter(|size| size.is_power_of_two());
    let Some(size) = size else {
        return Err(TableError::VringNum {
            entry: at.id,
            vring: number,
            num,
        });
    };
    if !align.is_power_of_two() || !(VRING_MIN_ALIGN..=VRING_MAX_ALIGN).contains(&align) {
        return Err(TableError::VringAlign {
            entry: at.id,
            vring: number,
            align,
        });
    }
    let vring = VringEntry {
        offset: entry_offset + start,
        da: (da != ADDRESS_ANY).then_some(DeviceAddress(u64::from(da))),
        align,
        num: size,
    };
    if vring.da.is_some() {
        if !da.is_multiple_of(vring.start_align()) {
            return Err(TableError::VringMisaligned {
                entry: at.id,
                vring: number,
                da,
                multiple: vring.start_align(),
            });
        }
        if u64::from(da) + vring.ring_bytes() > END_OF_32_BITS {
            return Err(TableError::VringWraps {
                entry: at.id,
                vring: number,
                da,
                bytes: vring.ring_bytes(),
            });
        }
    }
    Ok(vring)
}

/// An entry being read: its name for messages, and the table from its first byte on.
struct At<'a> {
    id: EntryId,
    left: &'a [u8],
}

impl<'a> At<'a> {
    /// `N` bytes of the entry, `start` bytes into it.
    fn take<const N: usize>(&self, start: usize) -> Result<&'a [u8; N], TableError> {
        self.left
            .get(start..)
            .and_then(|rest| rest.first_chunk())
            .ok_or_else(|| self.truncated((start + N) as u64))
    }

    fn truncated(&self, needs: u64) -> TableError {
        TableError::EntryTruncated {
            entry: self.id,
            needs,
            has: self.left.len(),
        }
    }

    fn reserved(&self, value: u32) -> Result<(), TableError> {
        if value == 0 {
            return Ok(());
        }
        Err(TableError::Reserved {
            entry: self.id,
            value,
        })
    }

    fn not_empty(&self, len: u32) -> Result<(), TableError> {
        if len == 0 {
            return Err(TableError::Empty { entry: self.id });
        }
        Ok(())
    }

    /// A span that is not empty and ends within 4 GiB.
    fn span(&self, field: &'static str, start: u32, len: u32) -> Result<DeviceAddress, TableError> {
        self.not_empty(len)?;
        if u64::from(start) + u64::from(len) > END_OF_32_BITS {
            return Err(TableError::Wraps {
                entry: self.id,
                field,
                start,
                len,
            });
        }
        Ok(DeviceAddress(u64::from(start)))
    }

    /// The name in the 32 bytes at `start` of `body`.
    fn name(&self, body: &[u8], start: usize) -> Result<Name, TableError> {
        let field = body.get(start..start + NAME_BYTES).unwrap_or_default();
        field
            .iter()
            .position(|&byte| byte == 0)
            .and_then(|end| field.get(..end))
            .map(|name| Name(name.to_vec()))
            .ok_or(TableError::NameUnterminated { entry: self.id })
    }
}

/// The word at `at`, which every caller gives as a constant inside `N`.
fn word<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
