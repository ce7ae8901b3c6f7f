//! What the relay must know of rpmsg: the header, and name service.
//!
//! What belongs here: reading a header, and the book of what the firmware has announced. What
//! does not: endpoints, channels, payloads. They are the guest's and the firmware's.
//!
//! Wire format: Linux `drivers/rpmsg/virtio_rpmsg_bus.c` (`struct rpmsg_hdr`) and
//! `include/linux/rpmsg/ns.h` (`struct rpmsg_ns_msg`), all little-endian:
//!
//! | header | bytes | | name service payload | bytes |
//! |---|---|---|---|---|
//! | source address | u32 at 0 | | name, padded with NUL | 32 at 0 |
//! | destination address | u32 at 4 | | endpoint address | u32 at 32 |
//! | reserved | u32 at 8 | | flags: bit 0 withdraws | u32 at 36 |
//! | payload length in bytes | u16 at 12 | | | |
//! | flags | u16 at 14 | | | |

/// Virtio device id of rpmsg.
pub const VIRTIO_ID_RPMSG: u32 = 7;
/// `VIRTIO_RPMSG_F_NS`: the device announces its endpoints by name service.
pub const VIRTIO_RPMSG_F_NS: u64 = 1 << 0;
/// Bytes in the header of a message.
pub const HEADER_LEN: usize = 16;
/// Bytes in a buffer, header included (Linux `MAX_RPMSG_BUF_SIZE`).
pub const BUFFER_LEN: u32 = 512;
/// The address that name service messages go to.
pub const NS_ADDRESS: u32 = 53;
/// Bytes in a name service payload.
pub const NS_LEN: usize = 40;
/// The most announced endpoints that are remembered for one vdev.
pub const MAX_ANNOUNCED: usize = 256;
/// The most changes that are remembered until somebody asks: a vdev's whole book.
const MAX_NEWS: usize = 256;

/// A message's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Address of the endpoint that sent it.
    pub source: u32,
    /// Address of the endpoint that it is for.
    pub destination: u32,
    /// Bytes of payload after the header.
    pub payload_len: u16,
}

impl Header {
    /// Reads a header.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Self {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        Self::from_words([word(0), word(8)])
    }

    /// Reads a header from its two words, the first of which has the first bytes in its low end.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "fields of a word")]
    pub fn from_words([first, second]: [u64; 2]) -> Self {
        Self {
            source: first as u32,
            destination: (first >> 32) as u32,
            payload_len: (second >> 32) as u16,
        }
    }

    /// Bytes in the whole message.
    pub fn message_len(self) -> usize {
        HEADER_LEN + usize::from(self.payload_len)
    }
}

/// One announced endpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Announced {
    /// The service's name, as far as the first NUL; not necessarily text.
    pub name: Vec<u8>,
    /// The endpoint's address.
    pub address: u32,
}

impl Announced {
    /// The whole message, header included, by which the firmware would withdraw the endpoint.
    pub fn withdrawal(&self) -> [u8; HEADER_LEN + NS_LEN] {
        let mut message = [0; HEADER_LEN + NS_LEN];
        message[..4].copy_from_slice(&self.address.to_le_bytes());
        message[4..8].copy_from_slice(&NS_ADDRESS.to_le_bytes());
        message[12] = NS_LEN as u8;
        let payload = &mut message[HEADER_LEN..];
        let name = self.name.len().min(32);
        payload[..name].copy_from_slice(&self.name[..name]);
        payload[32..36].copy_from_slice(&self.address.to_le_bytes());
        payload[36] = 1;
        message
    }
}

/// An endpoint that came or went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum News {
    /// It was announced.
    Announced(Announced),
    /// It was withdrawn, or is gone with its firmware.
    Withdrawn(Announced),
}

/// What the firmware has announced and not withdrawn.
#[derive(Clone, Default, Debug)]
pub struct Announcements {
    list: Vec<Announced>,
    /// What has changed since somebody asked.
    news: Vec<News>,
}

impl Announcements {
    /// In the order of their announcement.
    pub fn iter(&self) -> impl Iterator<Item = &Announced> {
        self.list.iter()
    }

    /// Forgets all, and returns it: the incarnation or the vdev that announced them is gone.
    pub fn take(&mut self) -> Vec<Announced> {
        let gone = std::mem::take(&mut self.list);
        for announced in &gone {
            self.add_news(News::Withdrawn(announced.clone()));
        }
        gone
    }

    /// What has changed since the last time. Of a flood, as many are remembered as a book has.
    pub fn take_news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    /// Has anything changed since the last time?
    pub fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    fn add_news(&mut self, news: News) {
        if self.news.len() < MAX_NEWS {
            self.news.push(news);
        }
    }

    /// Takes note of a name service payload on its way to the guest. The book is bounded: past
    /// [`MAX_ANNOUNCED`] an endpoint is relayed but not remembered.
    pub fn note(&mut self, payload: &[u8; NS_LEN]) {
        let (name, rest) = payload.split_at(32);
        let name = name
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or_default()
            .to_vec();
        let address = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]);
        let withdraws = rest[4] & 1 != 0;
        let announced = Announced { name, address };
        let known = self.list.contains(&announced);
        if withdraws && known {
            self.list.retain(|known| *known != announced);
            self.add_news(News::Withdrawn(announced));
        } else if !withdraws && !known && self.list.len() < MAX_ANNOUNCED {
            self.list.push(announced.clone());
            self.add_news(News::Announced(announced));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(name: &str, address: u32, flags: u32) -> [u8; NS_LEN] {
        let mut payload = [0; NS_LEN];
        payload[..name.len()].copy_from_slice(name.as_bytes());
        payload[32..36].copy_from_slice(&address.to_le_bytes());
        payload[36..].copy_from_slice(&flags.to_le_bytes());
        payload
    }

    #[test]
    fn a_header_is_read_field_by_field() {
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = 0x01;
        bytes[5] = 0x04;
        bytes[12..14].copy_from_slice(&496u16.to_le_bytes());
        let header = Header::parse(&bytes);
        assert_eq!(
            header,
            Header {
                source: 1,
                destination: 0x400,
                payload_len: 496
            }
        );
        assert_eq!(header.message_len(), 512);
    }

    #[test]
    fn an_announcement_is_remembered_until_it_is_withdrawn() {
        let mut book = Announcements::default();
        book.note(&payload("rpmsg-raw", 1024, 0));
        book.note(&payload("rpmsg-raw", 1024, 0));
        book.note(&payload("rpmsg-tty", 1025, 0));
        assert_eq!(book.iter().count(), 2);
        book.note(&payload("rpmsg-raw", 1024, 1));
        let left: Vec<_> = book.iter().map(|known| known.address).collect();
        assert_eq!(left, [1025]);
        book.note(&payload("never announced", 7, 1));
        assert_eq!(book.iter().count(), 1);
    }

    #[test]
    fn a_withdrawal_undoes_the_announcement_that_it_is_made_of() {
        let mut book = Announcements::default();
        book.note(&payload("rpmsg-raw", 1024, 0));
        let message = book.iter().next().unwrap().withdrawal();
        let (header, payload) = message.split_at(HEADER_LEN);
        let header = Header::parse(header.try_into().unwrap());
        assert_eq!((header.source, header.destination), (1024, NS_ADDRESS));
        assert_eq!(header.message_len(), message.len());
        book.note(payload.try_into().unwrap());
        assert_eq!(book.iter().count(), 0);
    }

    #[test]
    fn a_flood_of_announcements_is_bounded() {
        let mut book = Announcements::default();
        for address in 0..10_000 {
            book.note(&payload("flood", address, 0));
        }
        assert_eq!(book.iter().count(), MAX_ANNOUNCED);
    }

    #[test]
    fn a_name_without_nul_ends_with_its_field() {
        let mut book = Announcements::default();
        book.note(&payload("01234567890123456789012345678901", 1, 0));
        assert_eq!(book.iter().next().unwrap().name.len(), 32);
    }
}
