//! Builds resource tables for tests.

/// `FW_RSC_ADDR_ANY`.
pub const ANY: u32 = 0xffff_ffff;

/// A table in the making: each entry with its type and payload.
#[derive(Clone, Default)]
pub struct Table {
    entries: Vec<Vec<u8>>,
}

/// A vring: da, align, num.
pub type Vring = (u32, u32, u32);

impl Table {
    /// Without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// An entry of each kind, in this order: carveout, trace, vdev with two vrings and 4 config
    /// bytes, devmem, vendor (200), unknown (77).
    pub fn sample() -> Self {
        Self::new()
            .carveout(0x8010_0000, 0x1000, "heap")
            .trace(0x8000_0080, 0x80, "log")
            .vdev(
                7,
                1,
                &[(ANY, 16, 256), (0x8020_0000, 4096, 8)],
                &[1, 2, 3, 4],
            )
            .devmem(0x1000_0000, 0x2000_0000, 0x1000, "uart")
            .raw(200, &[9; 8])
            .raw(77, &[])
    }

    /// Adds words after a type.
    pub fn raw(mut self, kind: u32, payload: &[u8]) -> Self {
        let mut entry = kind.to_le_bytes().to_vec();
        entry.extend(payload);
        self.entries.push(entry);
        self
    }

    /// Adds a carveout.
    pub fn carveout(self, da: u32, len: u32, name: &str) -> Self {
        self.raw(0, &payload(&[da, 0, len, 0, 0], name))
    }

    /// Adds a devmem entry.
    pub fn devmem(self, da: u32, pa: u32, len: u32, name: &str) -> Self {
        self.raw(1, &payload(&[da, pa, len, 0, 0], name))
    }

    /// Adds a trace buffer.
    pub fn trace(self, da: u32, len: u32, name: &str) -> Self {
        self.raw(2, &payload(&[da, len, 0], name))
    }

    /// Adds a vdev.
    pub fn vdev(self, id: u32, features: u32, vrings: &[Vring], config: &[u8]) -> Self {
        let mut bytes = Vec::new();
        for word in [id, 31, features, 0, u32::try_from(config.len()).unwrap()] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend([0, u8::try_from(vrings.len()).unwrap(), 0, 0]);
        for (da, align, num) in vrings {
            for word in [*da, *align, *num, 31, 0] {
                bytes.extend(word.to_le_bytes());
            }
        }
        bytes.extend(config);
        self.raw(3, &bytes)
    }

    /// Where entry `index` begins in the table.
    pub fn offset(&self, index: usize) -> usize {
        let padded = |entry: &Vec<u8>| entry.len().next_multiple_of(4);
        16 + 4 * self.entries.len() + self.entries[..index].iter().map(padded).sum::<usize>()
    }

    /// The table, entries one behind the other on multiples of 4.
    pub fn build(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [1, u32::try_from(self.entries.len()).unwrap(), 0, 0] {
            bytes.extend(word.to_le_bytes());
        }
        for index in 0..self.entries.len() {
            bytes.extend(u32::try_from(self.offset(index)).unwrap().to_le_bytes());
        }
        for entry in &self.entries {
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes.extend(entry);
        }
        bytes
    }
}

fn payload(words: &[u32], name: &str) -> Vec<u8> {
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let mut field = [0; 32];
    field[..name.len()].copy_from_slice(name.as_bytes());
    bytes.extend(field);
    bytes
}
