//! Boot: first a plan in which everything has been checked, then the plan is carried out.
//!
//! What belongs here: what an image asks for, judged against a core's memory, and the order in
//! which it is put there. What does not: when to boot, and what happens afterwards.
//!
//! The order is Linux's (`rproc_fw_boot()` and `rproc_start()` in
//! `drivers/remoteproc/remoteproc_core.c`): boot address, the engine's own look at the image, the
//! resources in table order, the carveouts and what is written back of them, the segments, the
//! table in its place. The difference is that nothing of the core is touched before the last check.
//!
//! A core that runs already is planned by its table alone: there is nothing to load.

use std::ops::Range;
use std::sync::Arc;

use log::{info, warn};
use thiserror::Error;
use vm_memory::{Bytes, VolatileSlice};

use super::grants::{Grants, VendorRule};
use super::table::LiveTable;
use crate::engine::{Engine, EngineError, LoadedTable, Loader, NotifyId, VendorEntry};
use crate::firmware::{
    DevmemEntry, Entry, EntryId, Image, Name, RawEntry, ResourceTable, TableError, TableSection,
    TraceEntry, VdevEntry,
};
use crate::memory::{CarveoutError, CarveoutMap, DeviceAddress, MemoryError, Ram};
use crate::vdev::{BUFFER_LEN, DriverRing, QUEUES, VIRTIO_ID_RPMSG, VringShape};

/// Carveouts that we place ourselves begin on pages.
const PAGE: u64 = 4096;
/// What a carveout is called that is made for an image's segments.
pub(super) const IMAGE_CARVEOUT: &str = "image";

/// Buffers begin with words, so a pool that a firmware places lies on a multiple of this.
const BUFFER_ALIGN: u64 = 4;

/// Why an image cannot be booted on a core, or a core that runs cannot be attached.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BootError {
    /// A carveout, vring or buffer pool cannot be placed.
    #[error("{entry}")]
    Place {
        /// The entry that asks for it.
        entry: EntryId,
        /// Why not.
        source: CarveoutError,
    },
    /// A segment or a trace buffer is not in a carveout.
    #[error("{what} must lie in a carveout of the resource table")]
    NotInCarveout {
        /// "segment 3", "the trace buffer of resource table entry 2".
        what: String,
        /// Where it lies instead.
        source: CarveoutError,
    },
    /// A segment is not in the core's memory.
    #[error("{what} must lie in the core's memory")]
    OutsideMemory {
        /// "segment 3".
        what: String,
        /// Where it lies instead.
        source: MemoryError,
    },
    /// The memory that the segments need cannot be carved out.
    #[error("the memory of the image's segments cannot be carved out")]
    PlaceImage(#[source] CarveoutError),
    /// The configuration does not grant what a devmem entry asks for.
    #[error(
        "{entry} (\"{name}\") wants the host's {len:#x} bytes at pa {pa:#010x}, which the \
         configuration does not grant; a [[core.devmem]] section with pa, length and perhaps \
         name would"
    )]
    DevmemNotGranted {
        /// The entry.
        entry: EntryId,
        /// Its name.
        name: String,
        /// First host-physical address.
        pa: u64,
        /// Bytes.
        len: u64,
    },
    /// The engine knows a vendor entry and cannot do what it asks.
    #[error("{entry} is refused")]
    Vendor {
        /// The entry.
        entry: EntryId,
        /// What the engine says.
        source: EngineError,
    },
    /// The engine does not know a vendor entry, and the configuration insists.
    #[error(
        "{entry} is not known to engine {engine}; vendor-resources = \"ignore\" would pass over it"
    )]
    VendorUnknown {
        /// The entry.
        entry: EntryId,
        /// The engine's kind.
        engine: &'static str,
    },
    /// The engine has something against the image.
    #[error("the engine refuses the image")]
    Sanity(#[source] EngineError),
    /// The core cannot be made ready.
    #[error("the core cannot be prepared")]
    Prepare(#[source] EngineError),
    /// The core cannot begin where the image wants it to.
    #[error("the core cannot begin at the boot address")]
    Boot(#[source] EngineError),
    /// The engine cannot use what is in the image for it.
    #[error("the engine cannot use the image")]
    ParseFw(#[source] EngineError),
    /// The engine loads images itself, and did not load this one.
    #[error("the engine cannot load the image")]
    Load(#[source] EngineError),
    /// Something that has to be there while the core runs cannot be made ready.
    #[error("subdevice {name} does not {step}")]
    Subdevice {
        /// Which.
        name: String,
        /// "prepare" or "start".
        step: &'static str,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The engine does not say where a core that runs already has its table.
    #[error("the resource table of the core that runs cannot be found")]
    FindTable(#[source] EngineError),
    /// The table of a core that runs already is not in its memory.
    #[error("the resource table of the core that runs must lie in its memory")]
    TableOutside(#[source] MemoryError),
    /// The table of a core that runs already cannot be used.
    #[error("the resource table of the core that runs ({len} bytes at {da}) is refused")]
    Table {
        /// Where it is.
        da: DeviceAddress,
        /// Its bytes.
        len: u64,
        /// What is wrong with it.
        source: Box<TableError>,
    },
    /// A core that runs already is not what guests were told it is.
    #[error(
        "vdev {vdev} of the core that runs is {found}, the configured firmware's is {expected}; \
         guests are told what that firmware says"
    )]
    Identity {
        /// Which vdev, counted from 0.
        vdev: usize,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// The core that runs is not taken over.
    #[error("the engine does not attach to the core")]
    Attach(#[source] EngineError),
    /// The engine does not map what a devmem entry asks for.
    #[error("{entry} is refused")]
    Devmem {
        /// The entry.
        entry: EntryId,
        /// What the engine says.
        source: EngineError,
    },
    /// A vdev of a kind that is not relayed.
    #[error(
        "{entry}: virtio device id {id} cannot be served; rprocd relays id 7 (rpmsg) with 2 vrings"
    )]
    DeviceId {
        /// The entry.
        entry: EntryId,
        /// Its virtio device id.
        id: u32,
    },
    /// A vdev with a number of vrings that its kind does not have.
    #[error("{entry}: an rpmsg device has 2 vrings, this one has {vrings}")]
    Vrings {
        /// The entry.
        entry: EntryId,
        /// How many it has.
        vrings: usize,
    },
    /// Image and configuration do not agree on the number of vdevs.
    #[error(
        "the image declares {image} vdev(s), the configuration has {configured} [[core.vdev]] \
         section(s); there must be one for each"
    )]
    VdevCount {
        /// Vdevs in the image.
        image: usize,
        /// Vdevs in the configuration.
        configured: usize,
    },
    /// The core's memory cannot be used.
    #[error("the core's memory cannot be used")]
    Memory(#[from] MemoryError),
    /// The engine does not start.
    #[error("the engine does not start")]
    Start(#[source] EngineError),
}

/// What is zeroed before an image is loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Clean {
    /// All of the core's memory.
    All,
    /// What the image's segments ask for beyond their content, and no more.
    Bss,
}

/// Zeroes `memory` from `offset` on.
fn zero(memory: &VolatileSlice<'_>, offset: usize) {
    const ZEROES: [u8; 4096] = [0; 4096];
    let mut at = offset;
    while let Ok(rest) = memory.offset(at) {
        let len = rest.len().min(ZEROES.len());
        if len == 0 {
            return;
        }
        rest.copy_from(&ZEROES[..len]);
        at += len;
    }
}

/// A trace buffer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TraceBuffer {
    /// The name in the resource table.
    pub name: String,
    /// First byte.
    pub da: DeviceAddress,
    /// Where that is in the engine's memory; nearly always the same.
    pub place: DeviceAddress,
    /// Bytes.
    pub len: u64,
}

/// One vring with its place and its buffers.
#[derive(Clone, Debug)]
struct VringPlan {
    shape: VringShape,
    da: DeviceAddress,
    buffers: DeviceAddress,
    id: NotifyId,
    da_offset: usize,
}

/// One vdev with everything that its start needs.
#[derive(Clone, Debug)]
pub struct VdevPlan {
    entry: VdevEntry,
    vrings: [VringPlan; QUEUES],
}

impl VdevPlan {
    /// The vdev's entry in the resource table.
    pub fn entry(&self) -> &VdevEntry {
        &self.entry
    }

    /// Each vring: where it is, its bytes, its notify id.
    pub fn vrings(&self) -> impl Iterator<Item = (DeviceAddress, u64, NotifyId)> {
        self.vrings
            .iter()
            .map(|vring| (vring.da, vring.shape.len, vring.id))
    }

    /// Where the buffers of all its vrings begin.
    pub fn buffers(&self) -> DeviceAddress {
        self.vrings[0].buffers
    }

    /// The notify ids of its vrings.
    pub fn ids(&self) -> [NotifyId; QUEUES] {
        [self.vrings[0].id, self.vrings[1].id]
    }

    /// Where the vrings are: offset of the `da` field in the table, and the value for it.
    pub fn vring_places(&self) -> impl Iterator<Item = (usize, DeviceAddress)> {
        self.vrings.iter().map(|vring| (vring.da_offset, vring.da))
    }

    /// Makes the rings, zeroed.
    ///
    /// # Errors
    /// [`MemoryError`] if one is not inside the core's memory.
    pub fn make_rings(&self, map: &CarveoutMap) -> Result<[DriverRing; QUEUES], MemoryError> {
        let make = |vring: &VringPlan| {
            DriverRing::new(map.ram(), vring.da, vring.shape, vring.buffers, BUFFER_LEN)
        };
        Ok([make(&self.vrings[0])?, make(&self.vrings[1])?])
    }
}

/// Everything that a boot will do, checked.
#[derive(Debug)]
pub struct BootPlan {
    /// Where everything lies.
    pub carveouts: CarveoutMap,
    /// The table as the core will find it.
    pub table: LiveTable,
    /// In table order.
    pub vdevs: Vec<VdevPlan>,
    /// In table order.
    pub traces: Vec<TraceBuffer>,
    /// Where the core begins; 0 for one that runs already.
    pub boot: DeviceAddress,
    /// What is odd and no reason to refuse, a sentence each.
    pub notices: Vec<String>,
    /// Does the firmware count on all of the core's memory? One whose table has no place for its
    /// segments does: its stack, say, is wherever its linker script puts it.
    pub whole_ram: bool,
    /// What is loaded where, in the order of the image.
    loads: Vec<Load>,
}

/// A segment and its place in the engine's memory.
#[derive(Clone, Debug)]
struct Load {
    to: DeviceAddress,
    memsz: u64,
    file: Range<usize>,
}

/// Can the kinds of vdev that an image declares be served, and are there as many as configured?
/// What a VMM is told depends on nothing else, so this is asked before any boot.
///
/// # Errors
/// [`BootError::VdevCount`], [`BootError::DeviceId`] or
/// [`BootError::Vrings`].
pub fn check_vdevs(image: &Image, configured: usize) -> Result<Vec<&VdevEntry>, BootError> {
    let vdevs = servable_vdevs(image)?;
    if vdevs.len() != configured {
        return Err(BootError::VdevCount {
            image: vdevs.len(),
            configured,
        });
    }
    Ok(vdevs)
}

fn servable_vdevs(image: &Image) -> Result<Vec<&VdevEntry>, BootError> {
    let vdevs: Vec<_> = image
        .table
        .iter()
        .flat_map(|section| section.table.vdevs())
        .collect();
    for vdev in &vdevs {
        let entry = vdev.id();
        if vdev.device_id != VIRTIO_ID_RPMSG {
            return Err(BootError::DeviceId {
                entry,
                id: vdev.device_id,
            });
        }
        if vdev.vrings.len() != QUEUES {
            return Err(BootError::Vrings {
                entry,
                vrings: vdev.vrings.len(),
            });
        }
    }
    Ok(vdevs)
}

/// Where the engine's memory has the bytes that the core sees at `da`: by the engine's own
/// account, or in a carveout.
fn reach(
    map: &CarveoutMap,
    engine: &dyn Engine,
    da: DeviceAddress,
    len: u64,
) -> Result<DeviceAddress, CarveoutError> {
    if let Some(place) = engine.translate(da, len)
        && map.ram().slice(place, len).is_ok()
    {
        return Ok(place);
    }
    map.slice(da, len).map(|_| da)
}

impl BootPlan {
    /// Plans the boot of `image`, read from `file`, on `engine`, for a core with `configured`
    /// vdevs and with what its firmware is granted.
    ///
    /// # Errors
    /// A [`BootError`] for the first thing that cannot be done.
    pub fn new(
        image: &Image,
        file: &[u8],
        engine: &mut dyn Engine,
        configured: usize,
        grants: &Grants,
    ) -> Result<Self, BootError> {
        check_vdevs(image, configured)?;
        Draft::new(image, engine.ram().clone(), grants).finish(file, engine)
    }

    /// Plans the taking over of a core that runs already and has its table at `found`, if it has
    /// one. Returns the table's bytes as they were found, too.
    ///
    /// # Errors
    /// A [`BootError`] for the first thing that cannot be done.
    pub fn of_running(
        found: Option<LoadedTable>,
        engine: &mut dyn Engine,
        configured: usize,
        grants: &Grants,
    ) -> Result<(Self, Vec<u8>), BootError> {
        let mut image = Image {
            segments: Vec::new(),
            boot: DeviceAddress(0),
            table: None,
            notices: Vec::new(),
        };
        let mut pristine = Vec::new();
        if let Some(LoadedTable { da, len }) = found {
            let place = engine.translate(da, len).unwrap_or(da);
            let memory = engine
                .ram()
                .slice(place, len)
                .map_err(BootError::TableOutside)?;
            // Copied out once, then judged: the core may write to it meanwhile.
            pristine = vec![0; memory.len()];
            memory.copy_to(&mut pristine);
            let table = ResourceTable::parse(&pristine).map_err(|source| BootError::Table {
                da,
                len,
                source: Box::new(source),
            })?;
            image.table = Some(TableSection {
                index: 0,
                file: 0..0,
                da,
                len,
                table,
            });
        }
        check_vdevs(&image, configured)?;
        let mut plan = Draft::new(&image, engine.ram().clone(), grants).resources(engine)?;
        // Whatever the carveouts say: that is where the engine found it.
        if let Some(section) = &image.table {
            let place = engine.translate(section.da, section.len);
            plan.table.place_at(Some(place.unwrap_or(section.da)));
        }
        Ok((plan, pristine))
    }

    /// Loads the image's segments, and puts the table where the core looks for it.
    ///
    /// # Errors
    /// [`BootError::Memory`] or [`BootError::Load`].
    pub fn load(
        &mut self,
        image: &Image,
        file: &[u8],
        engine: &mut dyn Engine,
        clean: Clean,
    ) -> Result<(), BootError> {
        let ram = self.carveouts.ram();
        if clean == Clean::All {
            ram.clear()?;
        }
        if engine.load(image, file).map_err(BootError::Load)? == Loader::Rprocd {
            for Load {
                to,
                memsz,
                file: content,
            } in &self.loads
            {
                let memory = ram.slice(*to, *memsz)?;
                let content = file.get(content.clone()).unwrap_or_default();
                let loaded = memory.write_slice(content, 0);
                debug_assert!(
                    loaded.is_ok(),
                    "an image's file size is at most its memory size"
                );
                if clean == Clean::Bss {
                    zero(&memory, content.len());
                }
            }
        }
        if let Some(section) = &image.table {
            let place = engine.find_loaded_rsc_table(section);
            let place = place.and_then(|da| reach(&self.carveouts, engine, da, section.len).ok());
            self.table.place_at(place);
        }
        self.table.publish();
        Ok(())
    }

    /// Logs where everything lies.
    pub fn log(&self, core: &str) {
        for notice in &self.notices {
            warn!("{core}: {notice}");
        }
        for carveout in self.carveouts.iter() {
            info!("{core}: carveout {carveout}");
        }
        for vdev in &self.vdevs {
            let [to_guest, to_core] = vdev.ids();
            info!(
                "{core}: vdev{}: virtio id {}, notify ids {} and {}",
                vdev.entry.number, vdev.entry.device_id, to_guest.0, to_core.0
            );
        }
    }
}

/// A plan in the making. What has been placed so far can be looked at when the rest is refused.
pub(super) struct Draft<'a> {
    image: &'a Image,
    grants: &'a Grants,
    /// The carveouts so far.
    pub(super) map: CarveoutMap,
    notices: Vec<String>,
    whole_ram: bool,
}

impl<'a> Draft<'a> {
    pub(super) fn new(image: &'a Image, ram: Arc<Ram>, grants: &'a Grants) -> Self {
        Self {
            image,
            grants,
            map: CarveoutMap::new(ram, grants.carveouts),
            notices: image.notices.clone(),
            whole_ram: false,
        }
    }

    /// Plans all of it, whatever number of vdevs is configured.
    pub(super) fn finish(
        &mut self,
        file: &[u8],
        engine: &mut dyn Engine,
    ) -> Result<BootPlan, BootError> {
        let boot = engine.get_boot_addr(self.image);
        engine
            .parse_fw(self.image, file)
            .map_err(BootError::ParseFw)?;
        let plan = self.resources(engine)?;
        // What else is wrong says more than an address does.
        Ok(BootPlan {
            boot: boot.map_err(BootError::Boot)?,
            ..plan
        })
    }

    /// Plans what table and segments ask for.
    fn resources(&mut self, engine: &mut dyn Engine) -> Result<BootPlan, BootError> {
        let vdevs = servable_vdevs(self.image)?;
        let section = self.image.table.as_ref();
        let pristine = section.map_or(&[][..], |section| section.table.bytes());
        let mut table = LiveTable::new(self.map.ram().clone(), pristine);

        // Those with an address first: what is placed by us must fit around them.
        let (fixed, anywhere): (Vec<_>, Vec<_>) = section
            .into_iter()
            .flat_map(|section| section.table.carveouts())
            .partition(|carveout| carveout.da.is_some());
        let mut placed = Vec::new();
        for carveout in fixed {
            let Some(da) = carveout.da else { continue };
            let name = carveout.name.to_string();
            let made = self
                .map
                .add_fixed(&name, da, carveout.len)
                .map_err(|source| BootError::Place {
                    entry: carveout.id(),
                    source,
                })?;
            placed.push((carveout, made));
        }
        let loads = self.place_segments(engine)?;
        for carveout in anywhere {
            let made = self
                .map
                .add_anywhere(&carveout.name.to_string(), carveout.len, PAGE)
                .map_err(|source| BootError::Place {
                    entry: carveout.id(),
                    source,
                })?;
            placed.push((carveout, made));
        }
        for (carveout, made) in placed {
            // There is no other address space: the physical address is the device address.
            table.prepare_u32(carveout.da_offset(), low_32(made.da.0));
            table.prepare_u32(carveout.pa_offset(), low_32(made.da.0));
            table.prepare_u32(carveout.len_offset(), low_32(made.len));
        }
        let mut traces = Vec::new();
        for entry in section.into_iter().flat_map(|found| found.table.entries()) {
            match entry {
                Entry::Devmem(devmem) => self.devmem(devmem, engine)?,
                Entry::Vendor(vendor) => self.vendor(entry.id(), vendor, engine)?,
                Entry::Unknown(_) => self
                    .notices
                    .push(format!("{} is skipped: there is no such type", entry.id())),
                Entry::Trace(trace) => traces.push(self.trace(trace, engine)?),
                Entry::Carveout(_) | Entry::Vdev(_) => {}
            }
        }
        let mut next_id = 0;
        let vdevs = vdevs
            .into_iter()
            .map(|entry| plan_vdev(entry, &mut self.map, &mut table, &mut next_id))
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(section) = section {
            if let Ok(place) = reach(&self.map, engine, section.da, section.len) {
                table.place_at(Some(place));
            } else {
                self.notices.push(format!(
                    "the resource table is in no carveout ({} bytes at {}): the core will not \
                     see what is written to it (addresses of vrings, status)",
                    section.len, section.da
                ));
            }
        }
        Ok(BootPlan {
            carveouts: self.map.clone(),
            table,
            vdevs,
            traces,
            boot: DeviceAddress(0),
            notices: std::mem::take(&mut self.notices),
            whole_ram: self.whole_ram,
            loads,
        })
    }

    /// Sees to it that each segment lies in a carveout. Segments have addresses of their own, so
    /// only carveouts with an address can have been meant for them; where an image has none, it
    /// counts on memory that its platform has anyway (Linux's drivers register such regions), and
    /// that is the core's RAM.
    fn place_segments(&mut self, engine: &dyn Engine) -> Result<Vec<Load>, BootError> {
        let meant = self
            .image
            .table
            .iter()
            .flat_map(|section| section.table.carveouts())
            .any(|carveout| carveout.da.is_some() && !is_reserved(&carveout.name));
        if !meant {
            self.whole_ram = true;
            self.carve_out_segments(engine)?;
        }
        let mut loads = Vec::new();
        for segment in &self.image.segments {
            let to = reach(&self.map, engine, segment.da, segment.memsz).map_err(|source| {
                BootError::NotInCarveout {
                    what: format!("segment {}", segment.index),
                    source,
                }
            })?;
            loads.push(Load {
                to,
                memsz: segment.memsz,
                file: segment.file.clone(),
            });
        }
        Ok(loads)
    }

    /// Makes a carveout of the pages of each segment that the engine has no place for; those that touch become one. Where a page is
    /// shared with a span that the table fixes (a vring), the table has it.
    fn carve_out_segments(&mut self, engine: &dyn Engine) -> Result<(), BootError> {
        let ram = self.map.ram();
        let mut fixed: Vec<(u64, u64)> = self
            .map
            .iter()
            .map(|carveout| (carveout.da.0, carveout.end().0))
            .collect();
        let vrings = self
            .image
            .table
            .iter()
            .flat_map(|section| section.table.vdevs())
            .flat_map(|vdev| &vdev.vrings);
        fixed.extend(vrings.filter_map(|vring| {
            let da = vring.da?.0;
            Some((da, da + vring.ring_bytes()))
        }));
        let mut spans = Vec::new();
        for segment in &self.image.segments {
            if engine.translate(segment.da, segment.memsz).is_some() {
                continue;
            }
            ram.slice(segment.da, segment.memsz)
                .map_err(|source| BootError::OutsideMemory {
                    what: format!("segment {}", segment.index),
                    source,
                })?;
            let (first, end) = (segment.da.0, segment.end().0);
            let mut span = (first - first % PAGE, end.next_multiple_of(PAGE));
            for &(from, to) in &fixed {
                if to <= first {
                    span.0 = span.0.max(to);
                } else if from >= end {
                    span.1 = span.1.min(from);
                }
            }
            spans.push(span);
        }
        spans.sort_unstable();
        let mut joined: Vec<(u64, u64)> = Vec::new();
        for (start, end) in spans {
            match joined.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => joined.push((start, end)),
            }
        }
        for (start, end) in joined {
            self.map
                .add_fixed(IMAGE_CARVEOUT, DeviceAddress(start), end - start)
                .map_err(BootError::PlaceImage)?;
        }
        Ok(())
    }

    /// The operator is asked first, then the engine.
    fn devmem(&self, devmem: &DevmemEntry, engine: &mut dyn Engine) -> Result<(), BootError> {
        if !self.grants.devmem.iter().any(|grant| grant.covers(devmem)) {
            return Err(BootError::DevmemNotGranted {
                entry: devmem.id(),
                name: devmem.name.to_string(),
                pa: devmem.pa,
                len: devmem.len,
            });
        }
        engine
            .map_devmem(devmem.da, devmem.pa, devmem.len)
            .map_err(|source| BootError::Devmem {
                entry: devmem.id(),
                source,
            })
    }

    fn vendor(
        &mut self,
        entry: EntryId,
        vendor: &RawEntry,
        engine: &mut dyn Engine,
    ) -> Result<(), BootError> {
        let handled = engine
            .handle_rsc(vendor.kind, &vendor.payload)
            .map_err(|source| BootError::Vendor { entry, source })?;
        match (handled, self.grants.vendor) {
            (VendorEntry::Handled, _) => Ok(()),
            (VendorEntry::Unknown, VendorRule::Refuse) => Err(BootError::VendorUnknown {
                entry,
                engine: engine.kind(),
            }),
            (VendorEntry::Unknown, VendorRule::Ignore) => {
                self.notices.push(format!(
                    "{entry} is ignored: engine {} does not know it",
                    engine.kind()
                ));
                Ok(())
            }
        }
    }

    fn trace(&self, trace: &TraceEntry, engine: &dyn Engine) -> Result<TraceBuffer, BootError> {
        let place = reach(&self.map, engine, trace.da, trace.len).map_err(|source| {
            BootError::NotInCarveout {
                what: format!("the trace buffer of {}", trace.id()),
                source,
            }
        })?;
        Ok(TraceBuffer {
            name: trace.name.to_string(),
            da: trace.da,
            place,
            len: trace.len,
        })
    }
}

/// Is it one of the names under which Linux looks for the memory of a vdev?
fn is_reserved(name: &Name) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let name = name.to_string();
    let Some(rest) = name.strip_prefix("vdev") else {
        return false;
    };
    match (rest.split_once("vring"), rest.strip_suffix("buffer")) {
        (Some((vdev, vring)), _) => number(vdev) && number(vring),
        (None, Some(vdev)) => number(vdev),
        (None, None) => false,
    }
}

/// Linux writes the low half of an address into the table's 32 bits; ours all end within 4 GiB.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a core's memory ends within 4 GiB"
)]
fn low_32(address: u64) -> u32 {
    address as u32
}

fn plan_vdev(
    entry: &VdevEntry,
    map: &mut CarveoutMap,
    table: &mut LiveTable,
    next_id: &mut u8,
) -> Result<VdevPlan, BootError> {
    let refused = |source| BootError::Place {
        entry: entry.id(),
        source,
    };
    // A carveout of the reserved name is used; else one is made.
    let claim = |map: &mut CarveoutMap, name: &str, da: Option<DeviceAddress>, len, align: u64| {
        if let Some(found) = map.named(name) {
            // An address of the entry's own has been checked with the table.
            if da.is_none() && !found.da.0.is_multiple_of(align) {
                return Err(CarveoutError::Misaligned {
                    carveout: found.clone(),
                    align,
                });
            }
            // An address of the entry's own must lie in it (Linux `rproc_check_carveout_da()`).
            let from = da.unwrap_or(found.da);
            let have = if from < found.da {
                0
            } else {
                found.end().0.saturating_sub(from.0)
            };
            return if have < len {
                Err(CarveoutError::TooSmall {
                    carveout: found.clone(),
                    from,
                    have,
                    need: len,
                })
            } else {
                Ok(from)
            };
        }
        match da {
            Some(da) => map.add_fixed(name, da, len),
            None => map.add_anywhere(name, len, align.max(PAGE)),
        }
        .map(|made| made.da)
    };
    // Linux resets a device before it looks for a driver (`register_virtio_device()`).
    table.prepare_u8(entry.status_offset(), 0);
    let mut places = Vec::new();
    for (number, vring) in entry.vrings.iter().enumerate() {
        let name = format!("vdev{}vring{number}", entry.number);
        let shape = VringShape::of(vring);
        let align = u64::from(vring.start_align());
        let da = claim(map, &name, vring.da, shape.len, align).map_err(refused)?;
        places.push((vring, shape, da));
    }
    let pool_len = places
        .iter()
        .map(|(_, shape, _)| u64::from(shape.num) * u64::from(BUFFER_LEN))
        .sum::<u64>()
        .next_multiple_of(PAGE);
    let name = format!("vdev{}buffer", entry.number);
    let mut buffers = claim(map, &name, None, pool_len, BUFFER_ALIGN).map_err(refused)?;
    let mut vrings = Vec::new();
    for (vring, shape, da) in places {
        let id = NotifyId(*next_id);
        // The resource table's check keeps the sum of all vrings within the ids there are.
        *next_id += 1;
        table.prepare_u32(vring.notifyid_offset(), u32::from(id.0));
        vrings.push(VringPlan {
            shape,
            da,
            buffers,
            id,
            da_offset: vring.da_offset(),
        });
        buffers = DeviceAddress(buffers.0 + u64::from(shape.num) * u64::from(BUFFER_LEN));
    }
    let count = vrings.len();
    let vrings = vrings.try_into().map_err(|_| BootError::Vrings {
        entry: entry.id(),
        vrings: count,
    })?;
    Ok(VdevPlan {
        entry: entry.clone(),
        vrings,
    })
}
