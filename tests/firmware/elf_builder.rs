//! Builds ELF images for tests: headers first, then contents, then section headers at the end.

use super::table_builder::Table;

/// Where fields are in the ELF32 file that [`Elf::build`] makes.
pub mod field {
    pub const EI_CLASS: usize = 4;
    pub const EI_DATA: usize = 5;
    pub const EI_VERSION: usize = 6;
    pub const E_TYPE: usize = 16;
    pub const E_MACHINE: usize = 18;
    pub const E_VERSION: usize = 20;
    pub const E_PHOFF: usize = 28;
    pub const E_SHOFF: usize = 32;
    pub const E_EHSIZE: usize = 40;
    pub const E_PHENTSIZE: usize = 42;
    pub const E_PHNUM: usize = 44;
    pub const E_SHENTSIZE: usize = 46;
    pub const E_SHNUM: usize = 48;
    pub const E_SHSTRNDX: usize = 50;

    /// Byte `at` of program header `index`.
    pub fn program(index: usize, at: usize) -> usize {
        52 + 32 * index + at
    }
    pub const P_OFFSET: usize = 4;
    pub const P_PADDR: usize = 12;
    pub const P_FILESZ: usize = 16;
    pub const P_MEMSZ: usize = 20;

    /// Byte `at` of section header `index`.
    pub fn section(image: &[u8], index: usize, at: usize) -> usize {
        let start = image[E_SHOFF..].first_chunk().unwrap();
        u32::from_le_bytes(*start) as usize + 40 * index + at
    }
    pub const SH_NAME: usize = 0;
    pub const SH_TYPE: usize = 4;
    pub const SH_ADDR: usize = 12;
    pub const SH_OFFSET: usize = 16;
    pub const SH_SIZE: usize = 20;
}

/// A segment: its type, where it was linked to, where it goes, its bytes and its size in memory.
#[derive(Clone)]
struct Segment {
    kind: u32,
    vaddr: u32,
    paddr: u32,
    bytes: Vec<u8>,
    memsz: u32,
}

/// A section: name, type, address, and which bytes of the file.
#[derive(Clone)]
struct Section {
    name: &'static str,
    kind: u32,
    addr: u32,
    content: Content,
}

#[derive(Clone)]
enum Content {
    OfSegment(usize),
    Own(Vec<u8>),
}

/// An image in the making.
#[derive(Clone)]
pub struct Elf {
    wide: bool,
    machine: u16,
    flags: u32,
    entry: u32,
    segments: Vec<Segment>,
    sections: Vec<Section>,
}

impl Elf {
    /// A RISC-V program that begins at `entry`, with nothing in it.
    pub fn new(entry: u32) -> Self {
        Self {
            wide: false,
            machine: 243,
            flags: 0,
            entry,
            segments: Vec::new(),
            sections: Vec::new(),
        }
    }

    /// Makes it ELF64. What [`field`] says is then wrong.
    pub fn wide(mut self) -> Self {
        self.wide = true;
        self
    }

    /// Makes it a program for another machine.
    pub fn machine(mut self, machine: u16) -> Self {
        self.machine = machine;
        self
    }

    /// Sets `e_flags`.
    pub fn flags(mut self, flags: u32) -> Self {
        self.flags = flags;
        self
    }

    /// Adds the attributes of an image that was built with this `-march`, as linkers do: a section,
    /// and a segment that is not loaded.
    pub fn attributes(self, arch: &str) -> Self {
        const RISCV_ATTRIBUTES: u32 = 0x7000_0003;
        // The stack's alignment, then the string.
        let mut attributes = b"\x04\x10\x05".to_vec();
        attributes.extend(arch.bytes().chain([0]));
        let mut bytes = b"A".to_vec();
        bytes.extend(word(attributes.len() + 15).to_le_bytes());
        bytes.extend(b"riscv\0\x01");
        bytes.extend(word(attributes.len() + 5).to_le_bytes());
        bytes.extend(attributes);
        let mut image = self.segment(RISCV_ATTRIBUTES, 0, &bytes, 0);
        image.sections.push(Section {
            name: ".riscv.attributes",
            kind: RISCV_ATTRIBUTES,
            addr: 0,
            content: Content::OfSegment(image.segments.len() - 1),
        });
        image
    }

    /// Adds a `PT_LOAD` segment.
    pub fn load(self, paddr: u32, bytes: &[u8], memsz: u32) -> Self {
        self.segment(1, paddr, bytes, memsz)
    }

    /// Adds a `PT_LOAD` segment that was linked to another address than it is loaded to.
    pub fn load_from(mut self, vaddr: u32, paddr: u32, bytes: &[u8], memsz: u32) -> Self {
        self = self.segment(1, paddr, bytes, memsz);
        self.segments.last_mut().unwrap().vaddr = vaddr;
        self
    }

    /// Adds a segment of any type.
    pub fn segment(mut self, kind: u32, paddr: u32, bytes: &[u8], memsz: u32) -> Self {
        self.segments.push(Segment {
            kind,
            vaddr: paddr,
            paddr,
            bytes: bytes.to_vec(),
            memsz,
        });
        self
    }

    /// Adds a section with bytes of its own that are not loaded.
    pub fn section(mut self, name: &'static str, kind: u32, addr: u32, bytes: &[u8]) -> Self {
        self.sections.push(Section {
            name,
            kind,
            addr,
            content: Content::Own(bytes.to_vec()),
        });
        self
    }

    /// Adds a resource table as linkers do: a loaded segment, and a section over the same bytes.
    pub fn table(self, da: u32, table: &[u8]) -> Self {
        self.table_from(da, da, table)
    }

    /// The same, linked to `vaddr` (which is the section's address) and loaded to `paddr`.
    pub fn table_from(mut self, vaddr: u32, paddr: u32, table: &[u8]) -> Self {
        let len = u32::try_from(table.len()).unwrap();
        self = self.load_from(vaddr, paddr, table, len);
        self.sections.push(Section {
            name: ".resource_table",
            kind: 1,
            addr: vaddr,
            content: Content::OfSegment(self.segments.len() - 1),
        });
        self
    }

    /// Index of the section that holds the names.
    pub fn names_index(&self) -> usize {
        self.sections.len() + 1
    }

    /// The image. Section 0 is empty, then come those that were added, then the names.
    pub fn build(&self) -> Vec<u8> {
        let (header_size, program_size, section_size) = if self.wide {
            (64, 56, 64)
        } else {
            (52, 32, 40)
        };
        let mut image = vec![0; header_size + program_size * self.segments.len()];
        let mut places = Vec::new();
        for segment in &self.segments {
            places.push((image.len(), segment.bytes.len()));
            image.extend(&segment.bytes);
        }

        let mut names = vec![0];
        let mut headers = vec![self.section_header(0, 0, 0, 0, 0)];
        for section in &self.sections {
            let (offset, size) = match &section.content {
                Content::OfSegment(index) => places[*index],
                Content::Own(bytes) => {
                    let place = (image.len(), bytes.len());
                    image.extend(bytes);
                    place
                }
            };
            let name = names.len();
            names.extend(section.name.bytes().chain([0]));
            headers.push(self.section_header(name, section.kind, section.addr, offset, size));
        }
        let name = names.len();
        names.extend(b".shstrtab\0");
        headers.push(self.section_header(name, 3, 0, image.len(), names.len()));
        image.extend(&names);

        let shoff = image.len();
        let count = headers.len();
        for header in headers {
            assert_eq!(header.len(), section_size);
            image.extend(header);
        }

        let mut header = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        header[field::EI_CLASS] = if self.wide { 2 } else { 1 };
        header.extend(2_u16.to_le_bytes());
        header.extend(self.machine.to_le_bytes());
        header.extend(1_u32.to_le_bytes());
        self.address(&mut header, word(self.entry as usize));
        self.address(&mut header, word(header_size));
        self.address(&mut header, word(shoff));
        header.extend(self.flags.to_le_bytes());
        for value in [
            header_size,
            program_size,
            self.segments.len(),
            section_size,
            count,
            self.names_index(),
        ] {
            header.extend(half(value).to_le_bytes());
        }
        for (segment, (offset, size)) in self.segments.iter().zip(places) {
            header.extend(segment.kind.to_le_bytes());
            if self.wide {
                header.extend(7_u32.to_le_bytes());
            }
            for value in [
                word(offset),
                segment.vaddr,
                segment.paddr,
                word(size),
                segment.memsz,
            ] {
                self.address(&mut header, value);
            }
            if !self.wide {
                header.extend(7_u32.to_le_bytes());
            }
            self.address(&mut header, 4);
        }
        image[..header.len()].copy_from_slice(&header);
        image
    }

    fn section_header(
        &self,
        name: usize,
        kind: u32,
        addr: u32,
        offset: usize,
        size: usize,
    ) -> Vec<u8> {
        let mut header = word(name).to_le_bytes().to_vec();
        header.extend(kind.to_le_bytes());
        for value in [0, addr, word(offset), word(size)] {
            self.address(&mut header, value);
        }
        header.extend([0; 8]);
        self.address(&mut header, 1);
        self.address(&mut header, 0);
        header
    }

    /// A field as wide as the class's addresses.
    fn address(&self, bytes: &mut Vec<u8>, value: u32) {
        bytes.extend(value.to_le_bytes());
        if self.wide {
            bytes.extend([0; 4]);
        }
    }
}

fn word(value: usize) -> u32 {
    u32::try_from(value).unwrap()
}

fn half(value: usize) -> u16 {
    u16::try_from(value).unwrap()
}

/// Overwrites two bytes.
pub fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

/// Overwrites four bytes.
pub fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Code at 0x80000000 with zeroed memory behind it, and a table of one of each at 0x80001000.
pub fn sample() -> Elf {
    Elf::new(0x8000_0004)
        .load(0x8000_0000, &[0x13; 16], 0x100)
        .table(0x8000_1000, &Table::sample().build())
}
