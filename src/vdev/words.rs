//! Words of shared memory, looked up once.
//!
//! A ring is touched several times for each message. To find, check and align its bytes anew at
//! each touch costs more than the message; so the parts of a ring are turned into slices of atomic
//! words when the ring is set up, and the memory that they lie in is kept mapped as long as they
//! exist.
//!
//! What belongs here: that, for guest memory and for a core's. What does not: what the words mean.
//!
//! This module may use `unsafe` for one thing: making the slice.
#![expect(
    unsafe_code,
    reason = "a slice of atomics over memory that others write to; the relay spends half its time \
              on checks without it"
)]

use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

use crate::memory::{DeviceAddress, Ram};

/// What shared memory can be seen as: an integer that can be read and written while others write
/// it.
pub trait Word: sealed::Sealed {}

mod sealed {
    pub trait Sealed {}
}

impl sealed::Sealed for AtomicU16 {}
impl sealed::Sealed for AtomicU32 {}
impl sealed::Sealed for AtomicU64 {}
impl Word for AtomicU16 {}
impl Word for AtomicU32 {}
impl Word for AtomicU64 {}

/// Why memory cannot be seen as words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoWords {
    /// It is not, or not wholly, inside one mapping.
    Outside,
    /// The mapping does not align it.
    Misaligned,
}

/// Words of guest memory or of a core's, which stays mapped while they are there.
pub struct Words<T> {
    first: NonNull<T>,
    count: usize,
    /// What `first` points into.
    _memory: Arc<dyn Send + Sync>,
}

impl<T: Word> Words<T> {
    /// `count` words of guest memory.
    ///
    /// # Errors
    /// [`NoWords`] unless they lie in one region that aligns them.
    pub fn of_guest(
        memory: &Arc<GuestMemoryMmap>,
        address: GuestAddress,
        count: usize,
    ) -> Result<Self, NoWords> {
        let bytes = memory
            .get_slice(address, count * size_of::<T>())
            .map_err(|_| NoWords::Outside)?;
        Self::over(&bytes, count, memory.clone())
    }

    /// `count` words of a core's memory.
    ///
    /// # Errors
    /// [`NoWords`] unless they lie in it, aligned.
    pub fn of_core(ram: &Arc<Ram>, da: DeviceAddress, count: usize) -> Result<Self, NoWords> {
        let bytes = ram
            .slice(da, (count * size_of::<T>()) as u64)
            .map_err(|_| NoWords::Outside)?;
        Self::over(&bytes, count, ram.clone())
    }

    /// `bytes` must lie in a mapping that `memory` owns, and be `count` words long.
    fn over(
        bytes: &VolatileSlice<'_>,
        count: usize,
        memory: Arc<dyn Send + Sync>,
    ) -> Result<Self, NoWords> {
        let guard = bytes.ptr_guard_mut();
        let first = NonNull::new(guard.as_ptr().cast::<T>()).ok_or(NoWords::Outside)?;
        if !first.is_aligned() || bytes.len() < count * size_of::<T>() {
            return Err(NoWords::Misaligned);
        }
        Ok(Self {
            first,
            count,
            _memory: memory,
        })
    }
}

impl<T: Word> Deref for Words<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `from_raw_parts` wants of `first` and `count`:
        // - not null, aligned, and `count` words within one allocation: checked in `over`, which
        //   is the only place that makes a `Words`;
        // - initialized: it is mapped memory, and every pattern of bits is a value of an atomic
        //   integer (`Word` is sealed);
        // - not changed while the slice lives, except inside `UnsafeCell`: atomic integers are
        //   that. Others (a guest, a firmware) do change the memory; all of this process's
        //   accesses to it are atomic here and volatile elsewhere;
        // - alive as long as the slice: `_memory` owns the mapping, which does not move, and the
        //   slice borrows `self`.
        unsafe { slice::from_raw_parts(self.first.as_ptr(), self.count) }
    }
}

// SAFETY: a `Words` is what `Arc<[T]>` would be: shared ownership (`_memory` is `Send` and `Sync`)
// of atomic integers, which any thread may use.
unsafe impl<T: Word + Sync> Send for Words<T> {}
// SAFETY: as above; a shared `Words` gives out nothing but `&[T]`.
unsafe impl<T: Word + Sync> Sync for Words<T> {}

impl<T> fmt::Debug for Words<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} words at {:p}", self.count, self.first)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use vm_memory::Bytes;

    use super::*;

    fn guest() -> Arc<GuestMemoryMmap> {
        let regions = [(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)];
        Arc::new(GuestMemoryMmap::from_ranges(&regions).unwrap())
    }

    #[test]
    fn words_are_the_memory_itself_and_outlive_its_other_owners() {
        let memory = guest();
        let words = Words::<AtomicU32>::of_guest(&memory, GuestAddress(0x10), 4).unwrap();
        memory.write_obj(7u32, GuestAddress(0x14)).unwrap();
        assert_eq!(words[1].load(Ordering::Relaxed), 7);
        words[3].store(9, Ordering::Relaxed);
        assert_eq!(memory.read_obj::<u32>(GuestAddress(0x1c)).unwrap(), 9);
        drop(memory);
        assert_eq!(words[3].load(Ordering::Relaxed), 9);
    }

    #[test]
    fn words_lie_in_one_mapping_or_are_refused() {
        let memory = guest();
        let refused = |address, count| {
            Words::<AtomicU64>::of_guest(&memory, GuestAddress(address), count).unwrap_err()
        };
        assert_eq!(refused(0xff8, 2), NoWords::Outside, "over a seam");
        assert_eq!(refused(0x1ff8, 2), NoWords::Outside, "over the end");
        assert_eq!(refused(u64::MAX - 7, 2), NoWords::Outside);
        assert_eq!(refused(0x14, 2), NoWords::Misaligned);
        let ram = Ram::new("test", DeviceAddress(0x8000_0000), 0x1000).unwrap();
        let refused = |da, count| Words::<AtomicU16>::of_core(&ram, DeviceAddress(da), count);
        assert_eq!(refused(0x8000_0001, 1).unwrap_err(), NoWords::Misaligned);
        assert_eq!(refused(0x8000_0ffe, 2).unwrap_err(), NoWords::Outside);
        assert_eq!(refused(0x8000_0ffe, 1).unwrap().len(), 1);
    }
}
