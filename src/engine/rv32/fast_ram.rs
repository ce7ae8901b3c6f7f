//! The RAM as the interpreter touches it: one comparison, then one host instruction.
//!
//! What belongs here: turning a bus address into an access of the shared mapping; this is the one
//! file of the engine with unsafe code. What does not: registers of devices, traps, and anything
//! that looks at what was read.
//!
//! The same bytes are read and written by the relay (under the same core's lock, which is what
//! keeps its plain volatile accesses from running at the same time as these) and one day perhaps
//! by another process, so no plain reference to them is ever made. Aligned accesses are relaxed
//! atomics of their own size, misaligned ones go byte by byte, and what the A extension does is
//! done by the host's atomics on the same word.
#![expect(
    unsafe_code,
    reason = "a checked slice for each load and store of the firmware costs more than the load"
)]

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering};

use super::board;
use super::op::Kind;
use crate::memory::Ram;

/// A view of the RAM for the length of a turn. Addresses are bus addresses, places count from the
/// first byte of RAM; every access answers `None` where not all of its bytes are RAM.
#[derive(Clone, Copy)]
pub(super) struct FastRam<'a> {
    start: *mut u8,
    /// At most 2 GiB: RAM begins at 0x8000_0000 and ends at 4 GiB or below.
    len: u32,
    ram: PhantomData<&'a Ram>,
}

impl<'a> FastRam<'a> {
    /// A view of `ram`, whose base must be the board's; with another base it is a view of nothing.
    pub(super) fn new(ram: &'a Ram) -> Self {
        let fits = ram.base().0 == u64::from(board::ram::BASE);
        Self {
            start: ram.as_ptr(),
            len: u32::try_from(ram.len()).ok().filter(|_| fits).unwrap_or(0),
            ram: PhantomData,
        }
    }

    /// Are all of `count` (1 to 4) bytes from `address` RAM?
    pub(super) fn contains(self, address: u32, count: u32) -> bool {
        u64::from(place(address)) + u64::from(count) <= u64::from(self.len)
    }

    /// The byte at the place `offset`.
    #[inline(always)]
    fn byte(self, offset: u32) -> Option<&'a AtomicU8> {
        if offset >= self.len {
            return None;
        }
        // SAFETY: `add` wants the result inside the one mapping that `start` points to: `offset`
        // is below `len`, the mapping's size, which is at most 2 GiB and so fits in `isize`.
        let at = unsafe { self.start.add(offset as usize) };
        // SAFETY: `from_ptr` wants alignment (a byte has none), memory valid for reads and writes
        // during `'a` (the `Ram` is borrowed for `'a`, is mapped so and sealed against shrinking),
        // and no conflicting non-atomic access at the same time (who touches the RAM of a core holds
        // its lock, and so does who runs it).
        Some(unsafe { AtomicU8::from_ptr(at) })
    }

    /// The half-word at the place `offset`, if it is aligned.
    #[inline(always)]
    fn half(self, offset: u32) -> Option<&'a AtomicU16> {
        // Alignment and bound in one comparison: the rotation moves an odd address's low bit to
        // the top, which makes it larger than any length.
        if offset.rotate_right(1) >= self.len >> 1 {
            return None;
        }
        // SAFETY: `add` wants the result inside the one mapping that `start` points to: `offset`
        // is even and below the even `len`, the mapping's size, which fits in `isize`.
        let at = unsafe { self.start.add(offset as usize) };
        // SAFETY: `from_ptr` wants alignment (`start` is a page's, `offset` is even), memory valid
        // for reads and writes during `'a` (`offset + 2 <= len`; the `Ram` is borrowed for `'a`
        // and sealed against shrinking), and no conflicting non-atomic access at the same time
        // (who touches the RAM of a core holds its lock, and so does who runs it).
        Some(unsafe { AtomicU16::from_ptr(at.cast()) })
    }

    /// The word at the place `offset`, if it is aligned.
    #[inline(always)]
    fn word(self, offset: u32) -> Option<&'a AtomicU32> {
        // As in `half`, with the two low bits.
        if offset.rotate_right(2) >= self.len >> 2 {
            return None;
        }
        // SAFETY: `add` wants the result inside the one mapping that `start` points to: `offset`
        // is a multiple of 4 below `len`, the mapping's size, which fits in `isize`.
        let at = unsafe { self.start.add(offset as usize) };
        // SAFETY: `from_ptr` wants alignment (`start` is a page's, `offset` a multiple of 4),
        // memory valid for reads and writes during `'a` (`offset + 4 <= len`, `len` being a
        // multiple of 4096; the `Ram` is borrowed for `'a` and sealed against shrinking), and no
        // conflicting non-atomic access at the same time (who touches the RAM of a core holds its
        // lock, and so does who runs it).
        Some(unsafe { AtomicU32::from_ptr(at.cast()) })
    }

    // Accesses at a place, aligned to their own size.

    #[inline(always)]
    pub(super) fn load_byte_at(self, place: u32) -> Option<u8> {
        Some(self.byte(place)?.load(Ordering::Relaxed))
    }

    #[inline(always)]
    pub(super) fn load_half_at(self, place: u32) -> Option<u16> {
        Some(u16::from_le(self.half(place)?.load(Ordering::Relaxed)))
    }

    #[inline(always)]
    pub(super) fn load_word_at(self, place: u32) -> Option<u32> {
        Some(u32::from_le(self.word(place)?.load(Ordering::Relaxed)))
    }

    #[inline(always)]
    pub(super) fn store_byte_at(self, place: u32, value: u8) -> Option<()> {
        self.byte(place)?.store(value, Ordering::Relaxed);
        Some(())
    }

    #[inline(always)]
    pub(super) fn store_half_at(self, place: u32, value: u16) -> Option<()> {
        self.half(place)?.store(value.to_le(), Ordering::Relaxed);
        Some(())
    }

    #[inline(always)]
    pub(super) fn store_word_at(self, place: u32, value: u32) -> Option<()> {
        self.word(place)?.store(value.to_le(), Ordering::Relaxed);
        Some(())
    }

    // Accesses at any address.

    pub(super) fn load_half(self, address: u32) -> Option<u16> {
        self.load(address, 2).map(|value| value as u16)
    }

    pub(super) fn load_word(self, address: u32) -> Option<u32> {
        self.load(address, 4)
    }

    /// Loads `count` bytes, 1, 2 or 4, at any address.
    pub(super) fn load(self, address: u32, count: u32) -> Option<u32> {
        let place = place(address);
        let aligned = match count {
            2 => self.load_half_at(place).map(u32::from),
            4 => self.load_word_at(place),
            _ => None,
        };
        aligned.or_else(|| {
            self.contains(address, count).then_some(())?;
            (0..count).try_fold(0, |value, i| {
                let byte = self.load_byte_at(place.wrapping_add(i))?;
                Some(value | u32::from(byte) << (8 * i))
            })
        })
    }

    /// Stores the low `count` bytes of `value`, 1, 2 or 4, at any address.
    pub(super) fn store(self, address: u32, value: u32, count: u32) -> Option<()> {
        let place = place(address);
        let aligned = match count {
            2 => self.store_half_at(place, value as u16),
            4 => self.store_word_at(place, value),
            _ => None,
        };
        aligned.or_else(|| {
            // All or nothing: the check comes before the first byte.
            self.contains(address, count).then_some(())?;
            (0..count).try_for_each(|i| {
                self.store_byte_at(place.wrapping_add(i), (value >> (8 * i)) as u8)
            })
        })
    }

    /// An atomic memory operation on the aligned word at `address`; gives the old value. `None`
    /// also where `kind` is no such operation.
    ///
    /// Always sequentially consistent, which is as strong as `aq` and `rl` together.
    #[inline(never)]
    pub(super) fn amo(self, kind: Kind, address: u32, operand: u32) -> Option<u32> {
        let word = self.word(place(address))?;
        let order = Ordering::SeqCst;
        // Words of the RAM are little-endian whatever the host is.
        let change = |f: &dyn Fn(u32) -> u32| {
            let update = |old| f(u32::from_le(old)).to_le();
            let mut old = word.load(Ordering::Relaxed);
            loop {
                match word.compare_exchange_weak(old, update(old), order, Ordering::Relaxed) {
                    Ok(was) => return was,
                    Err(now) => old = now,
                }
            }
        };
        let raw = operand.to_le();
        let old = match kind {
            Kind::AmoSwap => word.swap(raw, order),
            Kind::AmoXor => word.fetch_xor(raw, order),
            Kind::AmoAnd => word.fetch_and(raw, order),
            Kind::AmoOr => word.fetch_or(raw, order),
            Kind::AmoAdd => change(&|old| old.wrapping_add(operand)),
            Kind::AmoMin => change(&|old| old.cast_signed().min(operand.cast_signed()) as u32),
            Kind::AmoMax => change(&|old| old.cast_signed().max(operand.cast_signed()) as u32),
            Kind::AmoMinu => change(&|old| old.min(operand)),
            Kind::AmoMaxu => change(&|old| old.max(operand)),
            _ => return None,
        };
        Some(u32::from_le(old))
    }

    /// What LR reads: the aligned word at `address`.
    pub(super) fn load_reserved(self, address: u32) -> Option<u32> {
        Some(u32::from_le(
            self.word(place(address))?.load(Ordering::SeqCst),
        ))
    }

    /// What SC does once there is a reservation: stores `value` if the word still is `expected`.
    /// Says whether it did.
    pub(super) fn store_conditional(self, address: u32, expected: u32, value: u32) -> Option<bool> {
        let done = self.word(place(address))?.compare_exchange(
            expected.to_le(),
            value.to_le(),
            Ordering::SeqCst,
            Ordering::SeqCst,
        );
        Some(done.is_ok())
    }
}

/// Where in RAM an address is; one that is not in RAM is at or beyond its end.
#[inline(always)]
fn place(address: u32) -> u32 {
    address.wrapping_sub(board::ram::BASE)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::memory::DeviceAddress;

    const BASE: u32 = board::ram::BASE;

    // What only tests do.
    impl FastRam<'_> {
        pub(crate) fn load_byte(self, address: u32) -> Option<u8> {
            self.load(address, 1).map(|value| value as u8)
        }

        pub(crate) fn store_byte(self, address: u32, value: u8) -> Option<()> {
            self.store(address, value.into(), 1)
        }

        pub(crate) fn store_half(self, address: u32, value: u16) -> Option<()> {
            self.store(address, value.into(), 2)
        }

        pub(crate) fn store_word(self, address: u32, value: u32) -> Option<()> {
            self.store(address, value, 4)
        }
    }

    fn ram(base: u64, len: u64) -> Arc<Ram> {
        Ram::new("test", DeviceAddress(base), len).unwrap()
    }

    #[test]
    fn exactly_the_bytes_of_the_ram_answer() {
        let ram = ram(u64::from(BASE), 4096);
        let view = FastRam::new(&ram);
        let end = BASE + 4096;
        for (address, byte, half, word) in [
            (0, false, false, false),
            (BASE - 4, false, false, false),
            (BASE - 1, false, false, false),
            (BASE, true, true, true),
            (BASE + 1, true, true, true),
            (end - 4, true, true, true),
            (end - 3, true, true, false),
            (end - 2, true, true, false),
            (end - 1, true, false, false),
            (end, false, false, false),
            (u32::MAX, false, false, false),
        ] {
            assert_eq!(view.load_byte(address).is_some(), byte, "{address:#x}");
            assert_eq!(view.load_half(address).is_some(), half, "{address:#x}");
            assert_eq!(view.load_word(address).is_some(), word, "{address:#x}");
            assert_eq!(view.store_byte(address, 1).is_some(), byte);
            assert_eq!(view.store_half(address, 1).is_some(), half);
            assert_eq!(view.store_word(address, 1).is_some(), word);
            let aligned = word && address.is_multiple_of(4);
            assert_eq!(view.amo(Kind::AmoAdd, address, 1).is_some(), aligned);
            assert_eq!(view.load_reserved(address).is_some(), aligned);
            assert_eq!(view.store_conditional(address, 0, 0).is_some(), aligned);
        }
    }

    #[test]
    fn nothing_wraps_around_where_the_ram_ends_with_the_address_space() {
        let ram = ram(u64::from(BASE), 0x8000_0000);
        let view = FastRam::new(&ram);
        assert_eq!(view.store_word(0xffff_fffc, 0x0403_0201), Some(()));
        assert_eq!(view.load_half(0xffff_fffd), Some(0x0302));
        assert_eq!(view.load_byte(u32::MAX), Some(4));
        assert_eq!(view.load_half(u32::MAX), None);
        assert_eq!(view.load_word(0xffff_fffd), None);
        for below in [0, 1, 2, 3, BASE - 4, BASE - 3, BASE - 2, BASE - 1] {
            assert_eq!(view.load_word(below), None);
            assert_eq!(view.load_half(below), None);
        }
    }

    #[test]
    fn ram_elsewhere_is_not_looked_at() {
        let ram = ram(0x4000_0000, 4096);
        let view = FastRam::new(&ram);
        assert_eq!(view.load_byte(BASE), None);
        assert_eq!(view.load_byte(0x4000_0000), None);
    }

    #[test]
    fn a_misaligned_store_changes_its_own_bytes_only() {
        let ram = ram(u64::from(BASE), 4096);
        let view = FastRam::new(&ram);
        view.store_word(BASE, u32::MAX).unwrap();
        view.store_word(BASE + 4, u32::MAX).unwrap();
        view.store_word(BASE + 3, 0x1122_3344).unwrap();
        assert_eq!(view.load_word(BASE), Some(0x44ff_ffff));
        assert_eq!(view.load_word(BASE + 4), Some(0xff11_2233));
        assert_eq!(view.load_word(BASE + 3), Some(0x1122_3344));
    }
}
