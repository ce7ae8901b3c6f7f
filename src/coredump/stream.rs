//! From the description to a file: piece by piece, with zeros left out, and true wherever it ends.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::dump::{Dump, Memory, Segment, Source};
use super::layout::{Layout, PAGE};
use super::notes::State;
use crate::memory::DeviceAddress;

/// So much of a segment is in memory at once.
pub const PIECE: usize = 64 * 1024;

const PAGE_BYTES: usize = PAGE as usize;

/// What a dump is written to: a new, empty file.
pub(super) trait Output {
    /// Writes all of `bytes` at `offset`.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes the file end at `len`, with a hole where nothing was written.
    fn set_len(&mut self, len: u64) -> io::Result<()>;
}

impl Output for File {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }
}

/// A hook for [`DumpStore::save`](super::DumpStore::save) that ends the dump after `time`.
pub fn within(time: Duration) -> impl FnMut() -> ControlFlow<String> {
    let begun = Instant::now();
    move || {
        if begun.elapsed() < time {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(format!("the time for it, {time:?}, is over"))
        }
    }
}

/// What became of a dump.
#[derive(Debug)]
pub(super) struct Streamed {
    /// Why the dump is not whole, if it is not.
    pub cut_short: Option<String>,
    /// Bytes that could not be read and are 0xFF.
    pub unreadable: u64,
}

/// Writes `dump`, at most `quota` bytes not counting holes. `proceed` is asked before each piece.
///
/// # Errors
/// Why not even the notes were written.
pub(super) fn stream(
    core: &str,
    dump: &mut Dump<'_>,
    output: &mut dyn Output,
    quota: u64,
    proceed: &mut dyn FnMut() -> ControlFlow<String>,
) -> Result<Streamed, String> {
    let layout = Layout::new(core, dump);
    let head = layout.head.len() as u64;
    if head > quota {
        return Err(format!(
            "its headers and notes alone are {head} bytes, the quota is {quota}"
        ));
    }
    output
        .write_at(0, &layout.head)
        .map_err(|error| format!("its headers and notes cannot be written: {error}"))?;

    let mut writer = Writer {
        output,
        left: quota - head,
        quota,
        done: head,
        unreadable: 0,
        proceed,
        piece: vec![0; PIECE],
    };
    let mut cut_short = writer.segments(dump, &layout).err();
    let Writer {
        done, unreadable, ..
    } = writer;
    // Where the last piece did not fit its beginning may be there; that is cut off.
    let length = output.set_len(done);
    if let Err(error) = &length {
        let why = || format!("the file's length cannot be set to {done}: {error}");
        cut_short = cut_short.or_else(|| Some(why()));
    } else {
        let state = State {
            finished: cut_short.is_none(),
            end: done,
            unreadable,
            left_out: layout.left_out,
        };
        // It is in a block that exists. Should it fail all the same, the note says what it said
        // from the beginning: not finished.
        if let Err(error) = output.write_at(layout.state_at, &state.bytes()) {
            let why = || format!("the note that it is whole cannot be written: {error}");
            cut_short = cut_short.or_else(|| Some(why()));
        }
    }
    if cut_short.is_none() && layout.left_out > 0 {
        cut_short = Some(format!(
            "{} of its {} segments are left out, as {:?} cannot express them or they are too many",
            layout.left_out,
            dump.segments.len(),
            dump.class,
        ));
    }
    Ok(Streamed {
        cut_short,
        unreadable,
    })
}

struct Writer<'a> {
    output: &'a mut dyn Output,
    /// Bytes that may still be written.
    left: u64,
    quota: u64,
    /// Up to there the file is what it should be.
    done: u64,
    unreadable: u64,
    proceed: &'a mut dyn FnMut() -> ControlFlow<String>,
    piece: Vec<u8>,
}

impl Writer<'_> {
    /// Writes all segments. An error is why that ended early.
    fn segments(&mut self, dump: &mut Dump<'_>, layout: &Layout) -> Result<(), String> {
        for placed in &layout.placed {
            self.done = placed.offset;
            let segment = &mut dump.segments[placed.index];
            let before = self.unreadable;
            let written = self.segment(segment, placed.offset);
            let unreadable = self.unreadable - before;
            if unreadable > 0 {
                let noted = self
                    .output
                    .write_at(placed.unreadable_at, &unreadable.to_le_bytes());
                written?;
                noted.map_err(|error| format!("a note cannot be written: {error}"))?;
            } else {
                written?;
            }
        }
        debug_assert!(self.done <= layout.len);
        Ok(())
    }

    fn segment(&mut self, segment: &mut Segment<'_>, offset: u64) -> Result<(), String> {
        let mut at = 0;
        while at < segment.len {
            if let ControlFlow::Break(why) = (self.proceed)() {
                return Err(why);
            }
            let left = segment.len - at;
            let zeros = known_zeros(segment, at, left);
            if zeros > 0 {
                at += zeros;
                self.done = offset + at;
                continue;
            }
            let len = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
            let mut piece = std::mem::take(&mut self.piece);
            self.unreadable += fill(segment, at, &mut piece[..len]);
            let written = self.write(offset + at, &piece[..len]);
            self.piece = piece;
            written?;
            at += len as u64;
            self.done = offset + at;
        }
        Ok(())
    }

    /// Writes those pages of `piece` that are not zero. `offset` is a multiple of the page size.
    fn write(&mut self, offset: u64, piece: &[u8]) -> Result<(), String> {
        let mut pages = piece.chunks(PAGE_BYTES).map(is_zero).enumerate().peekable();
        while let Some((first, zero)) = pages.next() {
            if zero {
                continue;
            }
            let mut last = first;
            while let Some((next, _)) = pages.next_if(|(_, zero)| !zero) {
                last = next;
            }
            let from = first * PAGE_BYTES;
            let to = ((last + 1) * PAGE_BYTES).min(piece.len());
            let bytes = &piece[from..to];
            let Some(left) = self.left.checked_sub(bytes.len() as u64) else {
                return Err(format!("the quota of {} bytes is used up", self.quota));
            };
            self.output
                .write_at(offset + from as u64, bytes)
                .map_err(|error| format!("it cannot be written: {error}"))?;
            self.left = left;
        }
        Ok(())
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    // In chunks, so that it is done many bytes at once.
    let mut chunks = bytes.chunks_exact(64);
    chunks.all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
        && chunks.remainder().iter().all(|byte| *byte == 0)
}

/// How many of the `left` bytes from `at` on are known to be zero, in whole pages of the file.
fn known_zeros(segment: &Segment<'_>, at: u64, left: u64) -> u64 {
    let Source::Memory(memory) = segment.source else {
        return 0;
    };
    let Some(da) = segment.da.checked_add(at) else {
        return 0;
    };
    let zeros = memory.zeros_from(da, left).min(left);
    if zeros == left {
        zeros
    } else {
        zeros - zeros % PAGE
    }
}

/// Fills `piece` from offset `at` of the segment on; returns how many bytes could not be read.
fn fill(segment: &mut Segment<'_>, at: u64, piece: &mut [u8]) -> u64 {
    match &mut segment.source {
        Source::Custom(fill) => {
            piece.fill(0);
            match fill(at, piece) {
                Ok(()) => 0,
                Err(_) => blank(piece),
            }
        }
        Source::Memory(memory) => {
            if read(*memory, segment.da, at, piece) {
                return 0;
            }
            let mut unreadable = 0;
            for (number, page) in piece.chunks_mut(PAGE_BYTES).enumerate() {
                if !read(*memory, segment.da, at + (number * PAGE_BYTES) as u64, page) {
                    unreadable += blank(page);
                }
            }
            unreadable
        }
    }
}

fn read(memory: &dyn Memory, da: DeviceAddress, at: u64, piece: &mut [u8]) -> bool {
    da.checked_add(at)
        .is_some_and(|da| memory.read(da, piece).is_ok())
}

fn blank(piece: &mut [u8]) -> u64 {
    piece.fill(0xff);
    piece.len() as u64
}

#[cfg(test)]
mod tests {
    use super::super::dump::{Class, Registers, Style, Unreadable};
    use super::super::layout::Placed;
    use super::*;
    use std::time::UNIX_EPOCH;

    const PLENTY: u64 = 1 << 30;

    /// A file in memory that takes `left` bytes and then fails, in the middle of a write if need
    /// be, as a file system does.
    struct Disk {
        bytes: Vec<u8>,
        left: usize,
        written: usize,
    }

    impl Disk {
        fn new(left: usize) -> Self {
            Self {
                bytes: Vec::new(),
                left,
                written: 0,
            }
        }
    }

    impl Output for Disk {
        fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
            let at = usize::try_from(offset).unwrap();
            // What was written already can be written again.
            let known = self.bytes.len().saturating_sub(at).min(bytes.len());
            let new = (bytes.len() - known).min(self.left);
            let end = at + known + new;
            if self.bytes.len() < end {
                self.bytes.resize(end, 0);
            }
            self.bytes[at..end].copy_from_slice(&bytes[..known + new]);
            self.left -= new;
            self.written += known + new;
            if known + new < bytes.len() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            Ok(())
        }

        fn set_len(&mut self, len: u64) -> io::Result<()> {
            self.bytes.resize(usize::try_from(len).unwrap(), 0);
            Ok(())
        }
    }

    fn byte(at: u64) -> u8 {
        (at % 250) as u8 + 1
    }

    fn dump(lens: &[u64]) -> Dump<'static> {
        let segments = lens.iter().map(|len| Segment {
            name: format!("segment{len}"),
            da: DeviceAddress(0x1000),
            len: *len,
            source: Source::Custom(Box::new(|at, piece| {
                for (byte_at, place) in (at..).zip(piece) {
                    *place = byte(byte_at);
                }
                Ok(())
            })),
        });
        Dump {
            incarnation: 1,
            time: UNIX_EPOCH,
            reason: "a test",
            firmware: None,
            class: Class::Elf32,
            machine: 243,
            boot: DeviceAddress(0),
            registers: Some(Registers::riscv32(0, 0, &[0; 32])),
            segments: segments.collect(),
            style: Style::ProgramHeaders,
        }
    }

    fn go_on() -> ControlFlow<String> {
        ControlFlow::Continue(())
    }

    fn word(bytes: &[u8], at: u64) -> u64 {
        let at = usize::try_from(at).unwrap();
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// Where the disk is full, or the quota used up, must not matter: what is there says what it
    /// is, and what it says is there.
    #[test]
    fn wherever_the_disk_is_full_the_file_is_true() {
        let lens = [100, 70_000, 0, 4096, 9000];
        let layout = Layout::new("test", &dump(&lens));
        let (head, whole) = (layout.head.len(), usize::try_from(layout.len).unwrap());
        let ends = (0..whole + 100)
            .step_by(997)
            .chain([head - 1, head, head + 1, whole]);
        for (end, quota) in ends.flat_map(|end| [(end, false), (end, true)]) {
            let (mut disk, limit) = match quota {
                true => (Disk::new(usize::MAX), end as u64),
                false => (Disk::new(end), PLENTY),
            };
            let mut dump = dump(&lens);
            let streamed = stream("test", &mut dump, &mut disk, limit, &mut go_on);
            let Ok(streamed) = streamed else {
                assert!(end < head, "{end}");
                continue;
            };
            assert!(end >= head);
            let finished = disk.bytes[usize::try_from(layout.state_at).unwrap() + 4];
            assert_eq!(finished == 1, streamed.cut_short.is_none());
            let valid = word(&disk.bytes, layout.state_at + 8);
            assert_eq!(valid, disk.bytes.len() as u64);
            if finished == 1 {
                assert_eq!(valid, layout.len);
            }
            for Placed { index, offset, .. } in &layout.placed {
                for at in 0..lens[*index] {
                    if let Some(found) = disk.bytes.get(usize::try_from(offset + at).unwrap()) {
                        assert_eq!(*found, byte(at), "disk of {end}: {index} at {at}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_dump_that_fills_the_quota_exactly_is_whole() {
        let layout = Layout::new("test", &dump(&[4096]));
        let exactly = layout.head.len() as u64 + 4096;
        for (quota, whole) in [(exactly, true), (exactly - 1, false)] {
            let mut disk = Disk::new(usize::MAX);
            let streamed =
                stream("test", &mut dump(&[4096]), &mut disk, quota, &mut go_on).unwrap();
            assert_eq!(streamed.cut_short.is_none(), whole);
        }
    }

    #[test]
    fn memory_is_asked_for_in_pieces_and_known_zeros_are_not_asked_for() {
        struct Half;
        impl Memory for Half {
            fn read(&self, da: DeviceAddress, piece: &mut [u8]) -> Result<(), Unreadable> {
                assert!(piece.len() <= PIECE);
                assert!(da.0 >= 1 << 40, "{da} is known to be zero");
                piece.fill(1);
                Ok(())
            }

            fn zeros_from(&self, da: DeviceAddress, _: u64) -> u64 {
                // More than was asked about does no harm, and pages are kept whole.
                ((1 << 40) + 1_u64).saturating_sub(da.0)
            }
        }
        let mut dump = dump(&[]);
        dump.class = Class::Elf64;
        dump.segments.push(Segment {
            name: String::new(),
            da: DeviceAddress(0),
            len: (1 << 40) + 4096,
            source: Source::Memory(&Half),
        });
        struct Count(u64, u64);
        impl Output for Count {
            fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
                assert!(offset < PAGE || offset.is_multiple_of(PAGE), "{offset:#x}");
                self.0 += bytes.len() as u64;
                Ok(())
            }
            fn set_len(&mut self, len: u64) -> io::Result<()> {
                self.1 = len;
                Ok(())
            }
        }
        let mut count = Count(0, 0);
        let streamed = stream("test", &mut dump, &mut count, PLENTY, &mut go_on).unwrap();
        assert_eq!(streamed.cut_short, None);
        assert!(count.0 < 3 * 4096, "{}", count.0);
        assert!(count.1 > 1 << 40);
    }

    #[test]
    fn pages_of_zeros_are_not_written() {
        let content = |at: u64| u8::from(matches!(at, 4096 | 70_000 | 149_999));
        let mut dump = dump(&[]);
        dump.segments.push(Segment {
            name: String::new(),
            da: DeviceAddress(0),
            len: 150_000,
            source: Source::Custom(Box::new(move |from, piece| {
                for (at, place) in (from..).zip(piece) {
                    *place = content(at);
                }
                Ok(())
            })),
        });
        let layout = Layout::new("test", &dump);
        let mut disk = Disk::new(usize::MAX);
        stream("test", &mut dump, &mut disk, PLENTY, &mut go_on).unwrap();
        let head = layout.head.len();
        // Three pages, the last one short, and the state.
        assert_eq!(disk.written, head + 2 * 4096 + 150_000 % 4096 + 32);
        let offset = usize::try_from(layout.placed[0].offset).unwrap();
        for (at, found) in (0..).zip(&disk.bytes[offset..]) {
            assert_eq!(*found, content(at), "{at}");
        }
        assert_eq!(disk.bytes.len() as u64, layout.len);
    }
}
