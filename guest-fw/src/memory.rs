//! Memory that somebody else writes to at the same time: rings, message buffers, the resource
//! table, the trace.
//!
//! The one place that turns an address into memory. A [`Span`] is checked once when it is made;
//! from then on every access through it is bounded and safe. What the bytes mean belongs
//! elsewhere. All accesses are volatile: what is read may differ at the next reading, so callers
//! copy out first and judge the copy.

#![allow(unsafe_code)]

/// A stretch of shared memory, aligned to 4 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Aligned to 4 bytes.
    first: *mut u8,
    len: u32,
}

impl Span {
    /// A span of `len` bytes from `first`.
    ///
    /// # Panics
    /// When `first` is not aligned to 4 bytes.
    ///
    /// # Safety
    /// The bytes must stay valid for reads and writes to the end of the program, and no Rust
    /// reference may cover them while the span (or one derived from it) is used.
    pub unsafe fn new(first: *mut u8, len: u32) -> Self {
        assert!(
            first.addr().is_multiple_of(4),
            "a span starts at an odd address"
        );
        Self { first, len }
    }

    /// Bytes in the span.
    pub fn len(self) -> u32 {
        self.len
    }

    /// Is it zero bytes long?
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The part of `len` bytes from `offset`, or nothing when it reaches beyond the end or
    /// `offset` is not a multiple of 4.
    pub fn part(self, offset: u32, len: u32) -> Option<Self> {
        if offset > self.len || len > self.len - offset || !offset.is_multiple_of(4) {
            return None;
        }
        Some(Self {
            first: self.first.wrapping_add(offset as usize),
            len,
        })
    }

    /// A pointer to the `T` at `offset`: in bounds, and aligned because spans are.
    #[inline(always)]
    fn at<T>(self, offset: u32) -> *mut T {
        const { assert!(align_of::<T>() <= 4) };
        let bytes = size_of::<T>() as u32;
        assert!(
            offset <= self.len && bytes <= self.len - offset,
            "access beyond the span"
        );
        assert!(
            offset.is_multiple_of(align_of::<T>() as u32),
            "access at an odd offset"
        );
        self.first.wrapping_add(offset as usize).cast()
    }

    /// The byte at `offset`. Panics beyond the end, as do all accesses.
    #[inline(always)]
    pub fn read_u8(self, offset: u32) -> u8 {
        // SAFETY: `at` gives a pointer into the span, which `new`'s caller keeps valid.
        unsafe { self.at::<u8>(offset).read_volatile() }
    }

    /// The 16-bit little-endian word at `offset`, a multiple of 2.
    #[inline(always)]
    pub fn read_u16(self, offset: u32) -> u16 {
        // SAFETY: `at` gives an aligned pointer into the span, which `new`'s caller keeps valid.
        u16::from_le(unsafe { self.at::<u16>(offset).read_volatile() })
    }

    /// The 32-bit little-endian word at `offset`, a multiple of 4.
    #[inline(always)]
    pub fn read_u32(self, offset: u32) -> u32 {
        // SAFETY: `at` gives an aligned pointer into the span, which `new`'s caller keeps valid.
        u32::from_le(unsafe { self.at::<u32>(offset).read_volatile() })
    }

    /// Writes the byte at `offset`.
    #[inline(always)]
    pub fn write_u8(self, offset: u32, value: u8) {
        // SAFETY: `at` gives a pointer into the span, which `new`'s caller keeps valid.
        unsafe { self.at::<u8>(offset).write_volatile(value) };
    }

    /// Writes the 16-bit word at `offset`, a multiple of 2.
    #[inline(always)]
    pub fn write_u16(self, offset: u32, value: u16) {
        // SAFETY: `at` gives an aligned pointer into the span, which `new`'s caller keeps valid.
        unsafe { self.at::<u16>(offset).write_volatile(value.to_le()) };
    }

    /// Writes the 32-bit word at `offset`, a multiple of 4.
    #[inline(always)]
    pub fn write_u32(self, offset: u32, value: u32) {
        // SAFETY: `at` gives an aligned pointer into the span, which `new`'s caller keeps valid.
        unsafe { self.at::<u32>(offset).write_volatile(value.to_le()) };
    }

    /// Copies all of `from` to the start of this span, a word at a time: an interpreter runs
    /// this, and each instruction saved is time on the wire.
    ///
    /// Not inlined: on its own it gets by without saving registers.
    #[inline(never)]
    pub fn copy_from(self, from: Span) {
        assert!(from.len <= self.len, "copy beyond the span");
        let mut to = self.first;
        let mut source = from.first.cast_const();
        let mut left = from.len;
        while left >= 32 {
            // SAFETY: both spans have at least `left` bytes from here, and both are aligned.
            unsafe { copy_block(to.cast(), source.cast()) };
            to = to.wrapping_add(32);
            source = source.wrapping_add(32);
            left -= 32;
        }
        while left >= 4 {
            // SAFETY: the source has four bytes from here, aligned.
            let word = unsafe { source.cast::<u32>().read_volatile() };
            // SAFETY: the target is no shorter than the source, and aligned.
            unsafe { to.cast::<u32>().write_volatile(word) };
            to = to.wrapping_add(4);
            source = source.wrapping_add(4);
            left -= 4;
        }
        while left > 0 {
            // SAFETY: the source has a byte left.
            let byte = unsafe { source.read_volatile() };
            // SAFETY: the target is no shorter than the source.
            unsafe { to.write_volatile(byte) };
            to = to.wrapping_add(1);
            source = source.wrapping_add(1);
            left -= 1;
        }
    }

    /// Copies `bytes` to the start of this span.
    pub fn write_bytes(self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<4>();
        let mut offset = 0;
        for word in words {
            self.write_u32(offset, u32::from_le_bytes(*word));
            offset += 4;
        }
        for byte in rest {
            self.write_u8(offset, *byte);
            offset += 1;
        }
    }

    /// Copies the bytes from `offset` (any) into `bytes`; returns how many there were.
    pub fn read_bytes(self, offset: u32, bytes: &mut [u8]) -> usize {
        let there = self.len.saturating_sub(offset);
        let count = bytes.len().min(there as usize);
        for (index, byte) in bytes[..count].iter_mut().enumerate() {
            *byte = self.read_u8(offset + index as u32);
        }
        count
    }
}

/// Copies eight words.
///
/// # Safety
/// `from` must be valid for reading and `to` for writing 32 bytes, both aligned to 4.
#[inline(always)]
#[allow(
    clippy::multiple_unsafe_ops_per_block,
    reason = "sixteen times the same one"
)]
unsafe fn copy_block(to: *mut u32, from: *const u32) {
    // SAFETY: the caller vouches for eight words at both ends; the indices are below eight.
    // All reads go first: the loads of one block have no store between them to wait for.
    unsafe {
        let block = [
            from.read_volatile(),
            from.add(1).read_volatile(),
            from.add(2).read_volatile(),
            from.add(3).read_volatile(),
            from.add(4).read_volatile(),
            from.add(5).read_volatile(),
            from.add(6).read_volatile(),
            from.add(7).read_volatile(),
        ];
        to.write_volatile(block[0]);
        to.add(1).write_volatile(block[1]);
        to.add(2).write_volatile(block[2]);
        to.add(3).write_volatile(block[3]);
        to.add(4).write_volatile(block[4]);
        to.add(5).write_volatile(block[5]);
        to.add(6).write_volatile(block[6]);
        to.add(7).write_volatile(block[7]);
    }
}

/// The device addresses at which the host may place rings and buffers.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    bytes: Span,
    first: u32,
}

impl Window {
    /// The memory `bytes`, which the host knows as the device addresses from `first`.
    pub fn new(bytes: Span, first: u32) -> Self {
        Self { bytes, first }
    }

    /// The `len` bytes at device address `da`, or nothing when they are not all in the window or
    /// not aligned to 4 bytes.
    #[inline]
    pub fn span(&self, da: u64, len: u32) -> Option<Span> {
        let da = u32::try_from(da).ok()?;
        self.bytes.part(da.checked_sub(self.first)?, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::testing::leak;

    #[test]
    fn copies_of_every_length_move_exactly_that_many_bytes() {
        for len in 0..=496 {
            let from = leak(512);
            let to = leak(512);
            for offset in 0..512 {
                from.write_u8(offset, (offset * 7 + 1) as u8);
                to.write_u8(offset, 0xEE);
            }
            to.copy_from(from.part(0, len).unwrap());
            for offset in 0..512 {
                let expected = if offset < len {
                    (offset * 7 + 1) as u8
                } else {
                    0xEE
                };
                assert_eq!(
                    to.read_u8(offset),
                    expected,
                    "length {len}, offset {offset}"
                );
            }
        }
    }

    #[test]
    fn slices_go_in_and_come_out_again() {
        let span = leak(16);
        span.write_bytes(b"hello world");
        let mut out = [0; 8];
        assert_eq!(span.read_bytes(3, &mut out), 8);
        assert_eq!(&out, b"lo world");
        assert_eq!(span.read_bytes(12, &mut out), 4);
        assert_eq!(span.read_bytes(99, &mut out), 0);
    }

    #[test]
    fn a_window_gives_nothing_outside_of_itself() {
        let window = Window::new(leak(4096), 0x8004_0000);
        assert!(window.span(0x8004_0000, 4096).is_some());
        assert!(window.span(0x8004_0FFC, 4).is_some());
        for (da, len) in [
            (0x8003_FFFC, 8),
            (0x8004_0000, 4097),
            (0x8004_1000, 4),
            (0x8004_0FFC, u32::MAX),
            (0x8004_0002, 4),
            (0x1_8004_0000, 4),
            (u64::MAX, 1),
            (0, 0),
        ] {
            assert!(window.span(da, len).is_none(), "{da:#x}, {len:#x}");
        }
    }

    #[test]
    #[should_panic(expected = "beyond the span")]
    fn an_access_beyond_a_span_does_not_happen() {
        leak(8).part(0, 6).unwrap().read_u32(4);
    }
}

/// Memory for tests.
#[cfg(test)]
pub(crate) mod testing {
    use super::Span;

    /// Zeroed memory that is never given back, so that spans stay valid.
    pub(crate) fn leak(bytes: usize) -> Span {
        let words = Box::leak(vec![0_u32; bytes.div_ceil(4)].into_boxed_slice());
        // SAFETY: leaked, so valid for ever, and the only reference to it ends here.
        unsafe { Span::new(words.as_mut_ptr().cast(), bytes as u32) }
    }
}
