//! Guest memory: what a VMM shares with its vhost-user backends.
//!
//! What belongs here: the memfd, its regions and a simple allocator. What does not: what lies in
//! the memory. The three ways to name a byte (guest-physical address, offset in the file, the
//! VMM's own address) are kept different on purpose, and no difference between two of them is the
//! same in two regions, so that a backend that confuses them reads the wrong byte.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{AtomicAccess, Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

/// Where one region lies.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// Its guest-physical address.
    pub guest: u64,
    /// Its address in the VMM; this VMM never goes there, so it can be anything.
    pub user: u64,
    /// Its offset in the file.
    pub offset: u64,
    /// Its size in bytes.
    pub size: u64,
}

/// 4 MiB hold the rings of two queues of 32768 entries, and all buffers of an rpmsg driver.
const REGION_SIZE: u64 = 4 << 20;

/// The first region comes second in the file, and above the second one in the VMM.
const REGIONS: [Region; 2] = [
    Region {
        guest: 0x4000_0000,
        user: 0x7f31_0000_0000,
        offset: 0x51_0000,
        size: REGION_SIZE,
    },
    Region {
        guest: 0x1_0000_0000,
        user: 0x7f20_0020_0000,
        offset: 0x1_0000,
        size: REGION_SIZE,
    },
];

/// The memory of one guest.
pub struct GuestRam {
    /// One mapping for each region. Not a `GuestMemoryMmap`: its look-up costs more than all else
    /// that the driver does for a message, and the benchmarks would measure that.
    mapped: Vec<MmapRegion>,
    file: Arc<File>,
    regions: Vec<Region>,
    /// For each region: how much of it is allocated.
    used: Vec<AtomicU64>,
}

impl GuestRam {
    /// Makes a guest's memory of one or two regions in one sealed memfd.
    pub fn new(regions: usize) -> Arc<Self> {
        let regions = REGIONS[..regions].to_vec();
        let length = REGIONS
            .iter()
            .map(|region| region.offset + region.size)
            .max()
            .unwrap_or(0);
        let fd = memfd_create("guest-ram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .expect("memory for the guest");
        ftruncate(&fd, length).expect("memory for the guest");
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::SEAL).expect("a sealed memfd");
        let file = Arc::new(File::from(fd));

        let mapped = regions
            .iter()
            .map(|region| {
                let offset = FileOffset::from_arc(Arc::clone(&file), region.offset);
                let size = usize::try_from(region.size).expect("a region fits in this process");
                MmapRegion::from_file(offset, size).expect("a mapping of the guest")
            })
            .collect();
        let used = regions.iter().map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self {
            mapped,
            file,
            regions,
            used,
        })
    }

    /// Where the regions lie.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The memory table as the protocol carries it.
    pub fn table(&self) -> Vec<VhostUserMemoryRegionInfo> {
        self.regions
            .iter()
            .map(|region| VhostUserMemoryRegionInfo {
                guest_phys_addr: region.guest,
                memory_size: region.size,
                userspace_addr: region.user,
                mmap_offset: region.offset,
                mmap_handle: self.file.as_raw_fd(),
            })
            .collect()
    }

    /// The VMM's address of a guest-physical one.
    pub fn user_address(&self, guest: u64) -> u64 {
        self.regions
            .iter()
            .find(|region| (region.guest..region.guest + region.size).contains(&guest))
            .map(|region| guest - region.guest + region.user)
            .expect("an address in guest memory")
    }

    /// Allocates zeroed memory in a region (the last one if there are fewer).
    pub fn allocate(&self, region: usize, size: u64, align: u64) -> u64 {
        let index = region.min(self.regions.len() - 1);
        let region = self.regions[index];
        let start = self.used[index]
            .load(Ordering::Relaxed)
            .next_multiple_of(align);
        assert!(start + size <= region.size, "guest memory is used up");
        self.used[index].store(start + size, Ordering::Relaxed);
        let guest = region.guest + start;
        let length = usize::try_from(size).expect("a size that fits in this process");
        self.write(guest, &vec![0; length]);
        guest
    }

    /// Forgets all allocations: the next driver gets the same memory, zeroed.
    pub fn release_all(&self) {
        for used in &self.used {
            // Not from 0: the first bytes of a region would hide a missing translation.
            used.store(0x1000, Ordering::Relaxed);
        }
    }

    /// The memory from an address to the end of its region.
    #[inline]
    fn from(&self, guest: u64) -> VolatileSlice<'_> {
        for (region, mapping) in self.regions.iter().zip(&self.mapped) {
            let offset = guest.wrapping_sub(region.guest);
            if offset < region.size {
                let slice = mapping.as_volatile_slice().offset(offset as usize);
                return slice.expect("an offset within the region");
            }
        }
        panic!("{guest:#x} is not in guest memory");
    }

    /// Copies into guest memory.
    #[inline]
    pub fn write(&self, guest: u64, bytes: &[u8]) {
        self.from(guest)
            .write_slice(bytes, 0)
            .expect("bytes within one region");
    }

    /// Copies out of guest memory.
    #[inline]
    pub fn read(&self, guest: u64, bytes: &mut [u8]) {
        self.from(guest)
            .read_slice(bytes, 0)
            .expect("bytes within one region");
    }

    /// An atomic load.
    #[inline]
    pub fn load<T: AtomicAccess>(&self, guest: u64, order: Ordering) -> T {
        self.from(guest).load(0, order).expect("an aligned address")
    }

    /// An atomic store.
    #[inline]
    pub fn store<T: AtomicAccess>(&self, guest: u64, value: T, order: Ordering) {
        self.from(guest)
            .store(value, 0, order)
            .expect("an aligned address");
    }
}
