//! What is in an rpmsg buffer: the header, and the messages of the name service.
//!
//! Encoding only. Who sends what, and when, belongs to [`crate::bus`].

use crate::memory::{Slot, Span};

/// Bytes in a buffer.
pub const BUFFER_SIZE: u32 = 512;
/// Bytes in the header of a message.
pub const HEADER_SIZE: u32 = 16;
/// Bytes in the longest payload.
pub const MTU: u32 = BUFFER_SIZE - HEADER_SIZE;
/// The address at which both sides listen for announcements.
pub const NAME_SERVICE: u32 = 53;
/// Bytes in the name of a channel; the last one is a NUL.
pub const NAME_SIZE: usize = 32;
/// Bytes in a message of the name service.
pub const ANNOUNCEMENT_SIZE: usize = NAME_SIZE + 8;

const SRC: u32 = 0;
const DST: u32 = 4;
const RESERVED: u32 = 8;
const LEN: u32 = 12;

/// The header of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The sender's address.
    pub src: u32,
    /// The receiver's address.
    pub dst: u32,
    /// Bytes of payload.
    pub len: u16,
}

impl Header {
    /// Reads the header of the message in `buffer`, and finds its payload. Nothing when the
    /// buffer is shorter than a header or than the message claims to be.
    #[inline]
    pub fn read(buffer: Span) -> Option<(Self, Span)> {
        if buffer.len() < HEADER_SIZE {
            return None;
        }
        let header = Self {
            src: buffer.read_u32(SRC),
            dst: buffer.read_u32(DST),
            len: buffer.read_u16(LEN),
        };
        let payload = buffer.part(HEADER_SIZE, u32::from(header.len))?;
        Some((header, payload))
    }

    /// Writes the header to the start of `buffer`.
    #[inline]
    pub fn write(&self, buffer: Slot<BUFFER_SIZE>) {
        buffer.write_u32::<SRC>(self.src);
        buffer.write_u32::<DST>(self.dst);
        buffer.write_u32::<RESERVED>(0);
        // And no flags, behind it.
        buffer.write_u32::<LEN>(u32::from(self.len));
    }
}

/// A message of the name service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Announcement {
    /// The channel's name, NUL-padded.
    pub name: [u8; NAME_SIZE],
    /// The endpoint's address.
    pub address: u32,
    /// Does the channel go away?
    pub destroy: bool,
}

impl Announcement {
    const DESTROY: u32 = 1;

    /// Announces `name` at `address`. A name longer than 31 bytes is cut.
    pub fn create(name: &str, address: u32) -> Self {
        let mut padded = [0; NAME_SIZE];
        for (to, byte) in padded[..NAME_SIZE - 1].iter_mut().zip(name.as_bytes()) {
            *to = *byte;
        }
        Self {
            name: padded,
            address,
            destroy: false,
        }
    }

    /// The payload that says so.
    pub fn to_bytes(&self) -> [u8; ANNOUNCEMENT_SIZE] {
        let mut bytes = [0; ANNOUNCEMENT_SIZE];
        bytes[..NAME_SIZE].copy_from_slice(&self.name);
        bytes[NAME_SIZE..NAME_SIZE + 4].copy_from_slice(&self.address.to_le_bytes());
        let flags = if self.destroy { Self::DESTROY } else { 0 };
        bytes[NAME_SIZE + 4..].copy_from_slice(&flags.to_le_bytes());
        bytes
    }

    /// What `payload` says, if it has the right length.
    pub fn read(payload: Span) -> Option<Self> {
        if payload.len() != ANNOUNCEMENT_SIZE as u32 {
            return None;
        }
        let mut name = [0; NAME_SIZE];
        payload.read_bytes(0, &mut name);
        Some(Self {
            name,
            address: payload.read_u32(NAME_SIZE as u32),
            destroy: payload.read_u32(NAME_SIZE as u32 + 4) & Self::DESTROY != 0,
        })
    }

    /// The name without its padding.
    pub fn name(&self) -> &[u8] {
        let end = self
            .name
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(NAME_SIZE);
        &self.name[..end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::testing::leak;

    #[test]
    fn a_header_is_sixteen_bytes_little_endian() {
        let buffer = leak(512);
        Header {
            src: 0x400,
            dst: 0x35,
            len: 40,
        }
        .write(buffer.slot(0).unwrap());
        let mut bytes = [0; 16];
        buffer.read_bytes(0, &mut bytes);
        assert_eq!(bytes, [0, 4, 0, 0, 0x35, 0, 0, 0, 0, 0, 0, 0, 40, 0, 0, 0]);
        let (header, payload) = Header::read(buffer).unwrap();
        assert_eq!((header.src, header.dst, payload.len()), (0x400, 0x35, 40));
    }

    #[test]
    fn a_message_that_claims_more_than_its_buffer_is_none() {
        let buffer = leak(512);
        Header {
            src: 1,
            dst: 2,
            len: 5,
        }
        .write(buffer.slot(0).unwrap());
        assert!(Header::read(buffer.part(0, 21).unwrap()).is_some());
        assert!(Header::read(buffer.part(0, 20).unwrap()).is_none());
        assert!(Header::read(buffer.part(0, 15).unwrap()).is_none());
        Header {
            src: 1,
            dst: 2,
            len: 0xFFFF,
        }
        .write(buffer.slot(0).unwrap());
        assert!(Header::read(buffer).is_none());
    }

    #[test]
    fn an_announcement_is_forty_bytes_and_comes_back_the_same() {
        let bytes = Announcement::create("rpmsg-raw", 1024).to_bytes();
        assert_eq!(bytes.len(), 40);
        assert_eq!(&bytes[..12], b"rpmsg-raw\0\0\0");
        assert_eq!(bytes[32..], [0, 4, 0, 0, 0, 0, 0, 0]);
        let span = leak(40);
        span.write_bytes(&bytes);
        let read = Announcement::read(span).unwrap();
        assert_eq!(
            (read.name(), read.address, read.destroy),
            (&b"rpmsg-raw"[..], 1024, false)
        );
        assert_eq!(Announcement::read(span.part(0, 39).unwrap()), None);
    }

    #[test]
    fn a_name_that_is_too_long_still_ends_in_a_nul() {
        let announcement = Announcement::create(&"n".repeat(40), 1);
        assert_eq!(announcement.name().len(), 31);
    }
}
