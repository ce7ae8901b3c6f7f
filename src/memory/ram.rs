//! A core's RAM: one sealed memfd, mapped once.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, SeekFrom, fallocate, fcntl_add_seals, fcntl_get_seals,
    memfd_create,
};
use thiserror::Error;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

use super::DeviceAddress;

/// What can be wrong with memory of a core.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// What is said to be an older core's RAM is none.
    #[error("the memory that was left behind cannot be used: {reason}")]
    LeftBehind {
        /// Why not.
        reason: String,
    },
    /// The size is not a positive multiple of the page size, or ends past 4 GiB.
    #[error(
        "memory of {len:#x} bytes at {base} is refused: \
         the size must be a multiple of 4096 from 4096 on, and the end at most 0x100000000"
    )]
    Shape {
        /// First byte.
        base: DeviceAddress,
        /// Bytes asked for.
        len: u64,
    },
    /// The host did not give the memory.
    #[error("cannot create {len:#x} bytes of shared memory (memfd)")]
    Create {
        /// Bytes asked for.
        len: u64,
        /// What the host said.
        source: std::io::Error,
    },
    /// Huge pages, and the size is no whole number of them.
    #[error(
        "memory of {len:#x} bytes in huge pages is refused: the size must be a multiple of \
         {HUGE_PAGE:#x}, a huge page"
    )]
    HugeShape {
        /// Bytes asked for.
        len: u64,
    },
    /// The host has not enough huge pages. Ordinary ones are not taken in their place: who asks
    /// for huge pages counts on them.
    #[error(
        "cannot get {len:#x} bytes of memory in huge pages ({} of 2 MiB); reserve more \
         (sysctl vm.nr_hugepages) or take huge-pages out of the configuration", *len / HUGE_PAGE
    )]
    Huge {
        /// Bytes asked for.
        len: u64,
        /// What the host said.
        source: std::io::Error,
    },
    /// The host did not map the memory.
    #[error("cannot map {len:#x} bytes of shared memory")]
    Map {
        /// Bytes asked for.
        len: u64,
        /// What the host said.
        source: vm_memory::mmap::MmapRegionError,
    },
    /// The host did not zero the memory.
    #[error("cannot clear {len:#x} bytes of shared memory")]
    Clear {
        /// Bytes to clear.
        len: u64,
        /// What the host said.
        source: std::io::Error,
    },
    /// The host did not give the memory's content.
    #[error("cannot read {len:#x} bytes of shared memory at {da}")]
    Read {
        /// First byte.
        da: DeviceAddress,
        /// Bytes wanted.
        len: usize,
        /// What the host said.
        source: std::io::Error,
    },
    /// What is to be read and written whole is not where that can be done.
    #[error("words of {align} bytes at {da} are refused: the address is no multiple of {align}")]
    Misaligned {
        /// First byte.
        da: DeviceAddress,
        /// Bytes in a word.
        align: usize,
    },
    /// A span of device addresses is not, or not wholly, inside the memory.
    #[error("{len:#x} bytes at {da} are outside the core's memory ({base} to {end})")]
    Outside {
        /// First byte of the span.
        da: DeviceAddress,
        /// Bytes in the span.
        len: u64,
        /// First byte of the memory.
        base: DeviceAddress,
        /// First byte after the memory.
        end: DeviceAddress,
    },
}

/// A huge page: 2 MiB, the size that every host of ours has.
pub const HUGE_PAGE: u64 = 2 << 20;

/// What kind of pages a core's RAM is made of.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Pages {
    /// Ordinary ones, given when first touched.
    #[default]
    Normal,
    /// Huge ones ([`HUGE_PAGE`]), all taken when the RAM is created and kept while it lives: a
    /// page that is not there when it is touched would be a SIGBUS.
    Huge,
}

/// The RAM of a core: a span of device addresses backed by a memfd of ours.
///
/// The memfd is sealed against growing and shrinking, so no access inside the span can fault.
/// Bytes are shared with whatever executes the firmware and must be read as volatile:
/// [`VolatileSlice`] does, plain references to them are never made.
#[derive(Debug)]
pub struct Ram {
    base: DeviceAddress,
    region: MmapRegion,
    pages: Pages,
}

impl Ram {
    const PAGE: u64 = 4096;
    const END_OF_32_BITS: u64 = 1 << 32;
    /// Without these an access could fault.
    const SEALS: SealFlags = SealFlags::SHRINK
        .union(SealFlags::GROW)
        .union(SealFlags::SEAL);

    /// Creates zeroed RAM of `len` bytes at `base`. `name` is what `/proc/PID/maps` shows.
    ///
    /// # Errors
    /// [`MemoryError::Shape`] for a size that is no multiple of a page or an end past 4 GiB;
    /// [`MemoryError::Create`] and [`MemoryError::Map`] when the host refuses.
    pub fn new(name: &str, base: DeviceAddress, len: u64) -> Result<Arc<Self>, MemoryError> {
        Self::with_pages(name, base, len, Pages::Normal)
    }

    /// As [`Ram::new`], of pages of a kind.
    ///
    /// # Errors
    /// As [`Ram::new`]; for huge pages [`MemoryError::HugeShape`], and [`MemoryError::Huge`] when
    /// the host has too few.
    pub fn with_pages(
        name: &str,
        base: DeviceAddress,
        len: u64,
        pages: Pages,
    ) -> Result<Arc<Self>, MemoryError> {
        if !Self::can_be(base, len) {
            return Err(MemoryError::Shape { base, len });
        }
        if pages == Pages::Huge && !len.is_multiple_of(HUGE_PAGE) {
            return Err(MemoryError::HugeShape { len });
        }
        let create = |source: rustix::io::Errno| {
            let source = source.into();
            match pages {
                Pages::Normal => MemoryError::Create { len, source },
                Pages::Huge => MemoryError::Huge { len, source },
            }
        };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let flags = match pages {
            Pages::Normal => flags,
            Pages::Huge => flags | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
        };
        let fd = memfd_create(name, flags).map_err(create)?;
        rustix::fs::ftruncate(&fd, len).map_err(create)?;
        if pages == Pages::Huge {
            fallocate(&fd, FallocateFlags::empty(), 0, len).map_err(create)?;
        }
        fcntl_add_seals(&fd, Self::SEALS).map_err(create)?;
        Self::map(base, len, fd, pages)
    }

    /// RAM that a process before this one left behind, for looking at it.
    ///
    /// # Errors
    /// [`MemoryError::LeftBehind`] if it is none of ours; [`MemoryError::Map`].
    pub fn left_behind(base: DeviceAddress, memory: OwnedFd) -> Result<Arc<Self>, MemoryError> {
        let refused = |reason: String| MemoryError::LeftBehind { reason };
        let look = |cause: rustix::io::Errno| refused(format!("it is no memfd: {cause}"));
        let seals = fcntl_get_seals(&memory).map_err(look)?;
        if !seals.contains(Self::SEALS) {
            return Err(refused("its size can change".to_owned()));
        }
        let size = rustix::fs::fstat(&memory).map_err(look)?.st_size;
        let len = u64::try_from(size).unwrap_or(0);
        if !Self::can_be(base, len) {
            return Err(refused(format!("it has {len} bytes")));
        }
        Self::map(base, len, memory, Pages::Normal)
    }

    /// Whole pages, and no end past 4 GiB?
    fn can_be(base: DeviceAddress, len: u64) -> bool {
        let end = base.checked_add(len);
        len != 0
            && len.is_multiple_of(Self::PAGE)
            && end.is_some_and(|end| end.0 <= Self::END_OF_32_BITS)
    }

    /// What a sealed memfd of `len` bytes has.
    fn map(
        base: DeviceAddress,
        len: u64,
        memory: OwnedFd,
        pages: Pages,
    ) -> Result<Arc<Self>, MemoryError> {
        let bytes = usize::try_from(len).map_err(|_| MemoryError::Shape { base, len })?;
        let region = MmapRegion::from_file(FileOffset::new(File::from(memory), 0), bytes)
            .map_err(|source| MemoryError::Map { len, source })?;
        Ok(Arc::new(Self {
            base,
            region,
            pages,
        }))
    }

    /// The memory itself, for somebody who is to keep it when this process is gone.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.region.file_offset().map(|it| it.file().as_fd())
    }

    /// First device address.
    pub fn base(&self) -> DeviceAddress {
        self.base
    }

    /// Size in bytes; never 0, a multiple of 4096.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> u64 {
        self.region.size() as u64
    }

    /// First device address after the memory.
    pub fn end(&self) -> DeviceAddress {
        DeviceAddress(self.base.0 + self.len())
    }

    /// The bytes `da .. da + len`.
    ///
    /// # Errors
    /// [`MemoryError::Outside`] unless all of them are inside the memory.
    pub fn slice(&self, da: DeviceAddress, len: u64) -> Result<VolatileSlice<'_>, MemoryError> {
        let outside = || MemoryError::Outside {
            da,
            len,
            base: self.base,
            end: self.end(),
        };
        let offset = da.offset_from(self.base).ok_or_else(outside)?;
        let (Ok(offset), Ok(count)) = (usize::try_from(offset), usize::try_from(len)) else {
            return Err(outside());
        };
        self.region.get_slice(offset, count).map_err(|_| outside())
    }

    /// Copies the bytes from `da` on, without making the host back what was never touched. (A read
    /// through the mapping would: a page of zeros for each.)
    ///
    /// # Errors
    /// [`MemoryError::Outside`] unless all of them are inside the memory; [`MemoryError::Read`]
    /// when the host does not give them.
    pub fn read_sparse(&self, da: DeviceAddress, into: &mut [u8]) -> Result<(), MemoryError> {
        let memory = self.slice(da, into.len() as u64)?;
        let (Some(backing), Some(offset)) = (self.region.file_offset(), da.offset_from(self.base))
        else {
            memory.copy_to(into);
            return Ok(());
        };
        let len = into.len();
        backing
            .file()
            .read_exact_at(into, offset)
            .map_err(|source| MemoryError::Read { da, len, source })
    }

    /// How many of the `len` bytes from `da` on were never touched, so that they are zero; 0 also
    /// where the host does not know.
    pub fn untouched_from(&self, da: DeviceAddress, len: u64) -> u64 {
        let (Ok(_), Some(backing), Some(offset)) = (
            self.slice(da, len),
            self.region.file_offset(),
            da.offset_from(self.base),
        ) else {
            return 0;
        };
        // It moves the file's position, which nobody uses.
        match rustix::fs::seek(backing.file(), SeekFrom::Data(offset)) {
            Ok(data) => data.saturating_sub(offset).min(len),
            // Nothing but a hole from there to the end.
            Err(rustix::io::Errno::NXIO) => len,
            Err(_) => 0,
        }
    }

    /// Zeroes all of it, and gives the pages back to the host unless they are huge.
    ///
    /// # Errors
    /// [`MemoryError::Clear`] when the host refuses; the content is then unspecified.
    pub fn clear(&self) -> Result<(), MemoryError> {
        if self.pages == Pages::Huge {
            self.fill_with_zeroes();
            return Ok(());
        }
        let Some(backing) = self.region.file_offset() else {
            return Ok(());
        };
        fallocate(
            backing.file(),
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            0,
            self.len(),
        )
        .map_err(|errno| MemoryError::Clear {
            len: self.len(),
            source: errno.into(),
        })
    }

    fn fill_with_zeroes(&self) {
        const CHUNK: [u8; 4096] = [0; 4096];
        let memory = self.region.as_volatile_slice();
        for offset in (0..memory.len()).step_by(CHUNK.len()) {
            // The length is a multiple of the chunk's.
            let _ = memory.write_slice(&CHUNK, offset);
        }
    }

    /// Where the memory starts in this process, for an engine that executes from it. Valid for
    /// [`Ram::len`] bytes as long as the `Ram` lives.
    pub fn as_ptr(&self) -> *mut u8 {
        self.region.as_ptr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: DeviceAddress = DeviceAddress(0x8000_0000);

    /// Bytes of the host's that back the RAM.
    fn backed(ram: &Ram) -> u64 {
        let backing = ram.region.file_offset().unwrap();
        rustix::fs::fstat(backing.file())
            .unwrap()
            .st_blocks
            .cast_unsigned()
            * 512
    }

    #[test]
    fn reading_sparsely_backs_nothing_and_sees_what_was_written() {
        let ram = Ram::new("test", BASE, 64 << 20).unwrap();
        let end = ram.len() - 3;
        assert_eq!(ram.untouched_from(ram.base(), ram.len()), ram.len());
        let slice = ram.slice(DeviceAddress(BASE.0 + end), 3).unwrap();
        slice.write_slice(b"end", 0).unwrap();
        let before = backed(&ram);
        let mut bytes = vec![1; 32 << 20];
        ram.read_sparse(ram.base(), &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0));
        assert_eq!(backed(&ram), before);
        let mut text = [0; 3];
        ram.read_sparse(DeviceAddress(BASE.0 + end), &mut text)
            .unwrap();
        assert_eq!(&text, b"end");
        // Page by page, not byte by byte.
        assert_eq!(
            ram.untouched_from(ram.base(), ram.len()),
            ram.len() - Ram::PAGE
        );
        assert_eq!(ram.untouched_from(ram.base(), 5), 5);
        assert_eq!(ram.untouched_from(DeviceAddress(BASE.0 + end), 3), 0);
        for outside in [BASE.0 - 1, BASE.0 + end + 1, u64::MAX] {
            assert!(ram.read_sparse(DeviceAddress(outside), &mut text).is_err());
            assert_eq!(ram.untouched_from(DeviceAddress(outside), 3), 0);
        }
    }

    #[test]
    fn huge_pages_come_whole() {
        let error = Ram::with_pages("test", BASE, HUGE_PAGE + 4096, Pages::Huge).unwrap_err();
        assert_eq!(
            error.to_string(),
            "memory of 0x201000 bytes in huge pages is refused: the size must be a multiple of \
             0x200000, a huge page"
        );
    }

    #[test]
    fn huge_pages_are_given_or_refused_and_never_replaced_by_others() {
        let error = match Ram::with_pages("test", BASE, HUGE_PAGE, Pages::Huge) {
            Ok(ram) => {
                let slice = ram.slice(BASE, HUGE_PAGE).unwrap();
                slice.write_obj(7u8, 4097).unwrap();
                ram.clear().unwrap();
                assert_eq!(slice.read_obj::<u8>(4097).unwrap(), 0);
                // More than any host has.
                Ram::with_pages("test", BASE, 1 << 31, Pages::Huge).err()
            }
            Err(error) => Some(error),
        };
        if let Some(error) = error {
            let shown = error.to_string();
            assert!(shown.contains("bytes of memory in huge pages"), "{shown}");
            assert!(shown.contains("vm.nr_hugepages"), "{shown}");
        }
    }

    #[test]
    fn cleared_memory_is_zero() {
        let ram = Ram::new("test", BASE, 8192).unwrap();
        let slice = ram.slice(BASE, 8192).unwrap();
        slice.write_obj(7u8, 5000).unwrap();
        ram.clear().unwrap();
        assert_eq!(slice.read_obj::<u8>(5000).unwrap(), 0);
        slice.write_obj(7u8, 5000).unwrap();
        ram.fill_with_zeroes();
        assert_eq!(slice.read_obj::<u8>(5000).unwrap(), 0);
    }
}
