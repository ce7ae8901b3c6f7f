//! A core's RAM: one sealed memfd, mapped once.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, SeekFrom, fallocate, fcntl_add_seals, memfd_create,
};
use thiserror::Error;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

use super::DeviceAddress;

/// What can be wrong with memory of a core.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MemoryError {
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

/// The RAM of a core: a span of device addresses backed by a memfd of ours.
///
/// The memfd is sealed against growing and shrinking, so no access inside the span can fault.
/// Bytes are shared with whatever executes the firmware and must be read as volatile:
/// [`VolatileSlice`] does, plain references to them are never made.
#[derive(Debug)]
pub struct Ram {
    base: DeviceAddress,
    region: MmapRegion,
}

impl Ram {
    const PAGE: u64 = 4096;
    const END_OF_32_BITS: u64 = 1 << 32;

    /// Creates zeroed RAM of `len` bytes at `base`. `name` is what `/proc/PID/maps` shows.
    ///
    /// # Errors
    /// [`MemoryError::Shape`] for a size that is no multiple of a page or an end past 4 GiB;
    /// [`MemoryError::Create`] and [`MemoryError::Map`] when the host refuses.
    pub fn new(name: &str, base: DeviceAddress, len: u64) -> Result<Arc<Self>, MemoryError> {
        let end = base
            .checked_add(len)
            .filter(|end| end.0 <= Self::END_OF_32_BITS);
        if len == 0 || !len.is_multiple_of(Self::PAGE) || end.is_none() {
            return Err(MemoryError::Shape { base, len });
        }
        let create = |source: rustix::io::Errno| MemoryError::Create {
            len,
            source: source.into(),
        };
        let fd =
            memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).map_err(create)?;
        rustix::fs::ftruncate(&fd, len).map_err(create)?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(create)?;
        let size = usize::try_from(len).map_err(|_| MemoryError::Shape { base, len })?;
        let region = MmapRegion::from_file(FileOffset::new(File::from(fd), 0), size)
            .map_err(|source| MemoryError::Map { len, source })?;
        Ok(Arc::new(Self { base, region }))
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

    /// Zeroes all of it and gives the pages back to the host.
    ///
    /// # Errors
    /// [`MemoryError::Clear`] when the host refuses; the content is then unspecified.
    pub fn clear(&self) -> Result<(), MemoryError> {
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

    /// Where the memory starts in this process, for an engine that executes from it. Valid for
    /// [`Ram::len`] bytes as long as the `Ram` lives.
    pub fn as_ptr(&self) -> *mut u8 {
        self.region.as_ptr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

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
        const BASE: u64 = 0x8000_0000;
        let ram = Ram::new("test", DeviceAddress(BASE), 64 << 20).unwrap();
        let end = ram.len() - 3;
        assert_eq!(ram.untouched_from(ram.base(), ram.len()), ram.len());
        let slice = ram.slice(DeviceAddress(BASE + end), 3).unwrap();
        slice.write_slice(b"end", 0).unwrap();
        let before = backed(&ram);
        let mut bytes = vec![1; 32 << 20];
        ram.read_sparse(ram.base(), &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0));
        assert_eq!(backed(&ram), before);
        let mut text = [0; 3];
        ram.read_sparse(DeviceAddress(BASE + end), &mut text)
            .unwrap();
        assert_eq!(&text, b"end");
        // Page by page, not byte by byte.
        assert_eq!(
            ram.untouched_from(ram.base(), ram.len()),
            ram.len() - Ram::PAGE
        );
        assert_eq!(ram.untouched_from(ram.base(), 5), 5);
        assert_eq!(ram.untouched_from(DeviceAddress(BASE + end), 3), 0);
        for outside in [BASE - 1, BASE + end + 1, u64::MAX] {
            assert!(ram.read_sparse(DeviceAddress(outside), &mut text).is_err());
            assert_eq!(ram.untouched_from(DeviceAddress(outside), 3), 0);
        }
    }
}
