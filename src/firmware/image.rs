//! The ELF image: which bytes go where, where the core begins, and where its resource table is.
//!
//! Wire format: the System V ABI's ELF (`elf.h`), little-endian, both classes. goblin reads the
//! headers, always into their wide form; every judgement is made here.
//!
//! As in Linux's loader a segment goes to its `p_paddr`, the live resource table is at its
//! section's `sh_addr`, and the core begins at `e_entry`. The three need not agree: firmware that
//! is copied or mapped to where it runs has `p_vaddr` other than `p_paddr`, and then `e_entry` and
//! `sh_addr` are what the linker knows, virtual addresses. Nothing is translated here.

use std::fmt;
use std::ops::Range;

use goblin::container::{Container, Ctx, Endian};
use goblin::elf::Elf;
use goblin::elf::header::{
    EI_CLASS, EI_DATA, EI_VERSION, ELFCLASS32, ELFCLASS64, ELFDATA2LSB, ELFMAG, ET_EXEC,
    EV_CURRENT, Header, et_to_str, machine_to_str,
};
use goblin::elf::program_header::{PT_LOAD, ProgramHeader};
use goblin::elf::section_header::{
    SHN_LORESERVE, SHN_UNDEF, SHT_NOBITS, SHT_NULL, SHT_STRTAB, SectionHeader,
};
use thiserror::Error;

use super::resource_table::{ResourceTable, TableError};
use super::riscv::{self, EM_RISCV, Lack, RISCV_ATTRIBUTES};
use crate::engine::{ElfClass, ImageRules, TableRule};
use crate::memory::DeviceAddress;

/// The name of the section that holds the resource table, with its end.
const TABLE_SECTION: &[u8] = b".resource_table\0";
/// `PN_XNUM`: the number of program headers does not fit its field.
const PN_XNUM: u16 = 0xffff;
const END_OF_32_BITS: u64 = 1 << 32;

/// A class, and what it means for reading.
struct Layout {
    class: ElfClass,
    container: Container,
    /// Bytes of the three headers.
    header: u16,
    program: u16,
    section: u16,
}

const ELF32: Layout = Layout {
    class: ElfClass::Elf32,
    container: Container::Little,
    header: 52,
    program: 32,
    section: 40,
};

const ELF64: Layout = Layout {
    class: ElfClass::Elf64,
    container: Container::Big,
    header: 64,
    program: 56,
    section: 64,
};

/// Why an image is refused. Nothing of a refused image is loaded.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The file ends before its ELF header does.
    #[error("image has {bytes} bytes, must have at least {needs}")]
    TooShort {
        /// Bytes there are.
        bytes: usize,
        /// Bytes of an ELF header.
        needs: usize,
    },
    /// The first four bytes are not ELF's.
    #[error("image begins with {}, must begin with \\x7fELF", magic.escape_ascii())]
    NotElf {
        /// The first four bytes.
        magic: [u8; 4],
    },
    /// It is of the class that the core does not take.
    #[error("image is {class}, must be {needs} for this core")]
    OtherClass {
        /// The image's.
        class: ElfClass,
        /// The core's.
        needs: ElfClass,
    },
    /// `EI_CLASS` is neither.
    #[error("image: EI_CLASS is {class}, must be {ELFCLASS32} (ELF32) or {ELFCLASS64} (ELF64)")]
    Class {
        /// The class.
        class: u8,
    },
    /// It is not little-endian.
    #[error("image: EI_DATA is {data}, must be {ELFDATA2LSB} (little-endian)")]
    Endian {
        /// The encoding.
        data: u8,
    },
    /// It is of an unknown ELF version.
    #[error("image: {field} is {version}, must be {EV_CURRENT}")]
    Version {
        /// `EI_VERSION` or `e_version`.
        field: &'static str,
        /// The version.
        version: u32,
    },
    /// The ELF library could not read a header, for a reason not foreseen here.
    #[error("image: the {what} cannot be read")]
    Unreadable {
        /// Which headers.
        what: &'static str,
        /// What the library said.
        source: goblin::error::Error,
    },
    /// It is no program: relocatable, position-independent, a core dump.
    #[error("image: e_type is {kind} ({}), must be {ET_EXEC} (EXEC)", et_to_str(*kind))]
    Type {
        /// The type.
        kind: u16,
    },
    /// It is for another machine.
    #[error(
        "image: e_machine is {machine} ({}), must be {needs} ({name})", machine_to_str(*machine)
    )]
    Machine {
        /// The machine.
        machine: u16,
        /// What the engine takes.
        needs: u16,
        /// What that is called.
        name: &'static str,
    },
    /// Its flags want what the core has not.
    #[error(
        "image: e_flags is {flags:#x}, so it needs {needs}; this core is {march} and has not; \
         build it with -march={march} -mabi={mabi}"
    )]
    RiscvFlags {
        /// The flags.
        flags: u32,
        /// What they want, in words.
        needs: &'static str,
        /// What the core is.
        march: &'static str,
        /// What its firmware is built with.
        mabi: &'static str,
    },
    /// It was built for extensions that the core has not.
    #[error(
        "image, {place}: Tag_RISCV_arch is \"{arch}\"; this core is {march} and lacks {missing}; \
         build it with -march={march} -mabi={mabi}"
    )]
    RiscvExtensions {
        /// Which section or segment says so.
        place: String,
        /// What it was built for.
        arch: String,
        /// What of that the core has not.
        missing: String,
        /// What the core is.
        march: &'static str,
        /// What its firmware is built with.
        mabi: &'static str,
    },
    /// A header has a size other than the class gives it.
    #[error("image: {field} is {size}, must be {needs}")]
    HeaderSize {
        /// `e_ehsize`, `e_phentsize` or `e_shentsize`.
        field: &'static str,
        /// The size in the file.
        size: u16,
        /// The size of the class.
        needs: u16,
    },
    /// There are no program headers.
    #[error("image: e_phnum is 0, must be at least 1")]
    NoProgramHeaders,
    /// There are so many headers that their number is elsewhere.
    #[error("image: {field} is {value:#x}, extended numbering, must be below {limit:#x}")]
    ExtendedNumbering {
        /// `e_phnum`, `e_shnum` or `e_shstrndx`.
        field: &'static str,
        /// The value that says so.
        value: u16,
        /// The smallest value that is not a plain number.
        limit: u32,
    },
    /// A header table begins inside the ELF header or does not fit into the file.
    #[error(
        "image: the {what} are {count} times {size} bytes at offset {offset}, \
         must lie after the ELF header and within the file's {file} bytes"
    )]
    TableOutside {
        /// `program headers` or `section headers`.
        what: &'static str,
        /// Where they begin.
        offset: u64,
        /// How many there are.
        count: u16,
        /// Bytes of one.
        size: u16,
        /// Bytes of the file.
        file: usize,
    },
    /// There are section headers, but their number is 0.
    #[error("image: e_shoff is {offset} and e_shnum is 0, must both be 0 or neither")]
    SectionsUncounted {
        /// Where the section headers are.
        offset: u64,
    },
    /// The section of the names does not exist.
    #[error("image: e_shstrndx is {index}, must be below e_shnum, {count}")]
    NamesIndex {
        /// The index.
        index: u16,
        /// Number of sections.
        count: u16,
    },
    /// The section of the names holds something else.
    #[error("image, section {section}: sh_type is {kind}, must be {SHT_STRTAB} (STRTAB) for names")]
    NamesType {
        /// The section.
        section: usize,
        /// Its type.
        kind: u32,
    },
    /// The section of the names does not end with a NUL.
    #[error(
        "image, section {section}: the names are {size} bytes, must be 1 or more and end in NUL"
    )]
    NamesUnterminated {
        /// The section.
        section: usize,
        /// Its bytes.
        size: u64,
    },
    /// A section does not fit into the file.
    #[error(
        "image, section {section}: sh_offset is {offset} and sh_size is {size}, \
         must end within the file's {file} bytes"
    )]
    SectionOutside {
        /// The section.
        section: usize,
        /// Where it begins.
        offset: u64,
        /// Its bytes.
        size: u64,
        /// Bytes of the file.
        file: usize,
    },
    /// The name of a section is not among the names.
    #[error(
        "image, section {section}: sh_name is {name}, must be below {names}, the bytes of names"
    )]
    SectionName {
        /// The section.
        section: usize,
        /// Where its name is.
        name: usize,
        /// Bytes of the section of the names.
        names: usize,
    },
    /// A segment has more bytes in the file than in memory.
    #[error(
        "image, segment {segment}: p_filesz is {filesz:#x}, must be at most p_memsz, {memsz:#x}"
    )]
    SegmentSize {
        /// The program header.
        segment: usize,
        /// Bytes in the file.
        filesz: u64,
        /// Bytes in memory.
        memsz: u64,
    },
    /// A segment does not fit into the file.
    #[error(
        "image, segment {segment}: p_offset is {offset} and p_filesz is {filesz}, \
         must end within the file's {file} bytes"
    )]
    SegmentOutside {
        /// The program header.
        segment: usize,
        /// Where it begins.
        offset: u64,
        /// Bytes in the file.
        filesz: u64,
        /// Bytes of the file.
        file: usize,
    },
    /// A segment goes past 4 GiB.
    #[error(
        "image, segment {segment}: p_paddr is {paddr:#x} and p_memsz is {memsz:#x}, \
         must end at most at {END_OF_32_BITS:#x}"
    )]
    SegmentWraps {
        /// The program header.
        segment: usize,
        /// Where it goes.
        paddr: u64,
        /// Bytes in memory.
        memsz: u64,
    },
    /// Two segments share device addresses.
    #[error(
        "image, segment {segment}: p_paddr is {paddr:#x}, inside segment {other}, \
         which ends at {end:#x}"
    )]
    SegmentsOverlap {
        /// The segment that begins later.
        segment: usize,
        /// Where it begins.
        paddr: u64,
        /// The segment that it begins in.
        other: usize,
        /// First byte after that.
        end: u64,
    },
    /// Nothing is to be loaded.
    #[error("image has no PT_LOAD segment with bytes in memory, must have at least one")]
    NoSegments,
    /// The core would begin where nothing was loaded.
    #[error("image: e_entry is {entry}, must be inside a loaded segment (by p_vaddr or p_paddr)")]
    EntryOutside {
        /// Where it would begin.
        entry: DeviceAddress,
    },
    /// There are two resource tables.
    #[error("image: sections {first} and {second} are both .resource_table, must be one at most")]
    TwoTables {
        /// One section.
        first: usize,
        /// The other.
        second: usize,
    },
    /// The resource table has no bytes in the file.
    #[error("image, section {section} (.resource_table): it has no bytes in the file (NOBITS)")]
    TableNoBits {
        /// The section.
        section: usize,
    },
    /// There is no resource table.
    #[error(
        "image has no section .resource_table, which this core requires; \
         it says what memory and devices the firmware wants"
    )]
    NoTable,
    /// There is a resource table of no bytes.
    #[error(
        "image, section {section} (.resource_table): it has 0 bytes, and this core requires a table"
    )]
    TableEmpty {
        /// The section.
        section: usize,
    },
    /// The live table would go past 4 GiB.
    #[error(
        "image, section {section} (.resource_table): sh_addr is {addr:#x} and sh_size is {size:#x}, \
         must end at most at {END_OF_32_BITS:#x}"
    )]
    TableWraps {
        /// The section.
        section: usize,
        /// Where the live table would be.
        addr: u64,
        /// Its bytes.
        size: u64,
    },
    /// The resource table itself is refused.
    #[error("image, section {section} (.resource_table): the table is refused")]
    Table {
        /// The section.
        section: usize,
        /// Why.
        source: TableError,
    },
}

/// A `PT_LOAD` segment with bytes in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Which program header, counted from 0.
    pub index: usize,
    /// Where it goes: `p_paddr`.
    pub da: DeviceAddress,
    /// Where the linker put it: `p_vaddr`. Nothing is loaded by it.
    pub va: u64,
    /// Its bytes in the file, inside the bytes that were parsed; at most `memsz`.
    pub file: Range<usize>,
    /// Bytes in memory, never 0; what the file does not give is zero. Ends within 4 GiB.
    pub memsz: u64,
}

impl Segment {
    /// Does the segment hold all of `da .. da + len`?
    pub fn holds(&self, da: DeviceAddress, len: u64) -> bool {
        da.offset_from(self.da)
            .and_then(|offset| offset.checked_add(len))
            .is_some_and(|end| end <= self.memsz)
    }

    /// The same by virtual address.
    pub fn holds_virtual(&self, va: u64, len: u64) -> bool {
        va.checked_sub(self.va)
            .and_then(|offset| offset.checked_add(len))
            .is_some_and(|end| end <= self.memsz)
    }

    /// First device address after it.
    pub fn end(&self) -> DeviceAddress {
        DeviceAddress(self.da.0 + self.memsz)
    }
}

/// The section `.resource_table`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableSection {
    /// Which section header, counted from 0.
    pub index: usize,
    /// Its bytes in the file, inside the bytes that were parsed.
    pub file: Range<usize>,
    /// Where the live table is: `sh_addr`, of any alignment. Whether anything is loaded there is
    /// another question; Linux works on its own copy if not, see [`Image::table_is_loaded`].
    pub da: DeviceAddress,
    /// Bytes. The span ends within 4 GiB.
    pub len: u64,
    /// What it says.
    pub table: ResourceTable,
}

/// An image of which everything has been checked that can be checked without the core's memory.
///
/// Whether the segments lie in memory of the core is not known here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    /// What is to be loaded, in the order of the file. Never empty; none overlaps another.
    pub segments: Vec<Segment>,
    /// Where the core begins. `e_entry` is inside one of the segments, by physical or by virtual
    /// address; what the engine says instead ([`ImageRules::boot`]) is its own business.
    pub boot: DeviceAddress,
    /// The resource table, if there is one.
    pub table: Option<TableSection>,
    /// What is odd and no reason to refuse, a sentence each.
    pub notices: Vec<String>,
}

impl Image {
    /// Checks a whole image.
    ///
    /// # Errors
    /// One [`ImageError`] for the first thing that is wrong.
    pub fn parse(bytes: &[u8], rules: &ImageRules) -> Result<Self, ImageError> {
        let layout = ident(bytes, rules)?;
        let header = Elf::parse_header(bytes).map_err(|source| ImageError::Unreadable {
            what: "ELF header",
            source,
        })?;
        check_header(&header, layout, rules)?;

        let (segments, of_program) = segments(bytes, &header, layout)?;
        let entry = DeviceAddress(header.e_entry);
        let inside =
            |segment: &Segment| segment.holds(entry, 1) || segment.holds_virtual(entry.0, 1);
        if rules.boot.is_none() && !segments.iter().any(inside) {
            return Err(ImageError::EntryOutside { entry });
        }
        let mut image = Self {
            segments,
            boot: rules.boot.unwrap_or(entry),
            table: None,
            notices: Vec::new(),
        };
        let Sections { table, attributes } = sections(bytes, &header, layout)?;
        match table {
            Found::Table(table) => image.table = Some(table),
            Found::Empty { .. } | Found::Nothing if rules.table == TableRule::Optional => {}
            Found::Empty { section } => return Err(ImageError::TableEmpty { section }),
            Found::Nothing => return Err(ImageError::NoTable),
        }
        // A program that was stripped of its sections has its attributes as a segment.
        if let Some(attributes) = attributes.or(of_program) {
            image.check_attributes(bytes, &header, &attributes, rules)?;
        }
        image.notice(&header, rules);
        Ok(image)
    }

    /// Has the core what the image says that it was built for?
    fn check_attributes(
        &mut self,
        bytes: &[u8],
        header: &Header,
        Attributes { place, file }: &Attributes,
        rules: &ImageRules,
    ) -> Result<(), ImageError> {
        let Some(riscv) = rules.riscv.filter(|_| header.e_machine == EM_RISCV) else {
            return Ok(());
        };
        let section = bytes.get(file.clone()).unwrap_or_default();
        match riscv::of_attributes(section, &riscv) {
            Ok(Some(Lack::Extensions { arch, missing })) => Err(ImageError::RiscvExtensions {
                place: place.clone(),
                arch,
                missing: missing.join(", "),
                march: riscv.march,
                mabi: riscv.mabi,
            }),
            Ok(_) => Ok(()),
            Err(why) => {
                self.notices.push(format!(
                    "{place} says nothing of the extensions that the image needs: {why}"
                ));
                Ok(())
            }
        }
    }

    fn notice(&mut self, header: &Header, rules: &ImageRules) {
        let entry = DeviceAddress(header.e_entry);
        if let Some(boot) = rules.boot
            && boot != entry
        {
            self.notices.push(format!(
                "e_entry is {entry}, and this core begins at {boot} whatever the image says"
            ));
        } else if !self.segments.iter().any(|segment| segment.holds(entry, 1)) {
            self.notices.push(format!(
                "e_entry, {entry}, is a virtual address: no segment is loaded there; the core \
                 begins at that address as it is"
            ));
        }
        let Some(table) = &self.table else { return };
        let by_virtual = self.segments.iter().find(|segment| {
            segment.holds_virtual(table.da.0, table.len) && !segment.holds(table.da, table.len)
        });
        if let Some(segment) = by_virtual
            && !self.table_is_loaded()
        {
            self.notices.push(format!(
                "the resource table's sh_addr, {}, is in segment {} by p_vaddr, which is loaded \
                 to {}: the live copy is looked for at sh_addr, as Linux does",
                table.da, segment.index, segment.da
            ));
        }
    }

    /// Is the live table inside what is loaded, so that the core sees it? True if there is none.
    pub fn table_is_loaded(&self) -> bool {
        self.table.as_ref().is_none_or(|table| {
            self.segments
                .iter()
                .any(|segment| segment.holds(table.da, table.len))
        })
    }
}

/// One line for each segment, for the boot address and for each entry of the table; no line end
/// after the last.
impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Segment {
            index,
            da,
            file,
            memsz,
            ..
        } in &self.segments
        {
            let filesz = file.len();
            writeln!(f, "segment {index}: da {da}, {filesz} bytes of {memsz}")?;
        }
        write!(f, "boot address {}", self.boot)?;
        match &self.table {
            None => f.write_str("\nno resource table"),
            Some(TableSection { da, len, table, .. }) => {
                write!(f, "\nresource table: da {da}, {len} bytes")?;
                if !table.entries().is_empty() {
                    write!(f, "\n{table}")?;
                }
                Ok(())
            }
        }
    }
}

/// Checks the identification, and gives what goes with the class.
fn ident(bytes: &[u8], rules: &ImageRules) -> Result<&'static Layout, ImageError> {
    let too_short = |layout: &Layout| ImageError::TooShort {
        bytes: bytes.len(),
        needs: usize::from(layout.header),
    };
    let (Some(magic), Some(ident)) = (
        bytes.first_chunk::<4>(),
        bytes.get(..usize::from(ELF32.header)),
    ) else {
        return Err(too_short(&ELF32));
    };
    if magic != ELFMAG {
        return Err(ImageError::NotElf { magic: *magic });
    }
    let layout = match ident[EI_CLASS] {
        ELFCLASS32 => &ELF32,
        ELFCLASS64 => &ELF64,
        class => return Err(ImageError::Class { class }),
    };
    if let Some(needs) = rules.class
        && layout.class != needs
    {
        return Err(ImageError::OtherClass {
            class: layout.class,
            needs,
        });
    }
    if bytes.len() < usize::from(layout.header) {
        return Err(too_short(layout));
    }
    if ident[EI_DATA] != ELFDATA2LSB {
        return Err(ImageError::Endian {
            data: ident[EI_DATA],
        });
    }
    if ident[EI_VERSION] != EV_CURRENT {
        return Err(ImageError::Version {
            field: "EI_VERSION",
            version: ident[EI_VERSION].into(),
        });
    }
    Ok(layout)
}

fn check_header(header: &Header, layout: &Layout, rules: &ImageRules) -> Result<(), ImageError> {
    if header.e_version != u32::from(EV_CURRENT) {
        return Err(ImageError::Version {
            field: "e_version",
            version: header.e_version,
        });
    }
    if header.e_type != ET_EXEC {
        return Err(ImageError::Type {
            kind: header.e_type,
        });
    }
    if let Some((needs, name)) = rules.machine
        && header.e_machine != needs
    {
        return Err(ImageError::Machine {
            machine: header.e_machine,
            needs,
            name,
        });
    }
    header_size("e_ehsize", header.e_ehsize, layout.header)?;
    if let Some(riscv) = rules.riscv
        && header.e_machine == EM_RISCV
        && let Some(Lack::Flag(needs)) = riscv::of_flags(header.e_flags, &riscv)
    {
        return Err(ImageError::RiscvFlags {
            flags: header.e_flags,
            needs,
            march: riscv.march,
            mabi: riscv.mabi,
        });
    }
    Ok(())
}

fn header_size(field: &'static str, size: u16, needs: u16) -> Result<(), ImageError> {
    if size == needs {
        return Ok(());
    }
    Err(ImageError::HeaderSize { field, size, needs })
}

/// Where a table of headers begins, if it lies after the ELF header and within the file.
fn table_start(
    bytes: &[u8],
    what: &'static str,
    offset: u64,
    count: u16,
    size: u16,
    header: u16,
) -> Result<usize, ImageError> {
    // Both factors are 16 bits wide: no overflow.
    span(bytes, offset, u64::from(count) * u64::from(size))
        .filter(|span| span.start >= usize::from(header))
        .map(|span| span.start)
        .ok_or(ImageError::TableOutside {
            what,
            offset,
            count,
            size,
            file: bytes.len(),
        })
}

/// The range `offset .. offset + len`, if it lies within the bytes.
fn span(bytes: &[u8], offset: u64, len: u64) -> Option<Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    let end = usize::try_from(offset.checked_add(len)?).ok()?;
    bytes.get(start..end).map(|_| start..end)
}

fn context(layout: &Layout) -> Ctx {
    Ctx::new(layout.container, Endian::Little)
}

/// Where the image says what it was built for.
struct Attributes {
    /// Which section or segment, in words.
    place: String,
    /// Its bytes in the file, inside the bytes that are parsed.
    file: Range<usize>,
}

/// The segments to be loaded, and the one with the attributes.
fn segments(
    bytes: &[u8],
    header: &Header,
    layout: &Layout,
) -> Result<(Vec<Segment>, Option<Attributes>), ImageError> {
    if header.e_phnum == 0 {
        return Err(ImageError::NoProgramHeaders);
    }
    if header.e_phnum == PN_XNUM {
        return Err(ImageError::ExtendedNumbering {
            field: "e_phnum",
            value: header.e_phnum,
            limit: PN_XNUM.into(),
        });
    }
    header_size("e_phentsize", header.e_phentsize, layout.program)?;
    let start = table_start(
        bytes,
        "program headers",
        header.e_phoff,
        header.e_phnum,
        layout.program,
        layout.header,
    )?;
    let headers = ProgramHeader::parse(bytes, start, header.e_phnum.into(), context(layout))
        .map_err(|source| ImageError::Unreadable {
            what: "program headers",
            source,
        })?;

    let mut segments = Vec::new();
    let mut attributes = None;
    for (index, header) in headers.iter().enumerate() {
        if header.p_type == PT_LOAD {
            segments.extend(segment(bytes, index, header)?);
        } else if header.p_type == RISCV_ATTRIBUTES
            && let Some(file) = span(bytes, header.p_offset, header.p_filesz)
        {
            attributes = Some(Attributes {
                place: format!("segment {index} (PT_RISCV_ATTRIBUTES)"),
                file,
            });
        }
    }
    if segments.is_empty() {
        return Err(ImageError::NoSegments);
    }

    let mut by_address: Vec<&Segment> = segments.iter().collect();
    by_address.sort_unstable_by_key(|segment| (segment.da, segment.index));
    for pair in by_address.windows(2) {
        if let [low, high] = pair
            && high.da.0 < low.da.0 + low.memsz
        {
            return Err(ImageError::SegmentsOverlap {
                segment: high.index,
                paddr: high.da.0,
                other: low.index,
                end: low.da.0 + low.memsz,
            });
        }
    }
    Ok((segments, attributes))
}

/// Checks one `PT_LOAD`. `None`: it has no bytes in memory.
fn segment(
    bytes: &[u8],
    index: usize,
    header: &ProgramHeader,
) -> Result<Option<Segment>, ImageError> {
    let &ProgramHeader {
        p_offset,
        p_paddr,
        p_vaddr,
        p_filesz,
        p_memsz,
        ..
    } = header;
    if p_filesz > p_memsz {
        return Err(ImageError::SegmentSize {
            segment: index,
            filesz: p_filesz,
            memsz: p_memsz,
        });
    }
    if p_memsz == 0 {
        return Ok(None);
    }
    // A segment of zeroes alone has no place in the file, whatever its offset says.
    let file = if p_filesz == 0 {
        Some(0..0)
    } else {
        span(bytes, p_offset, p_filesz)
    };
    let file = file.ok_or(ImageError::SegmentOutside {
        segment: index,
        offset: p_offset,
        filesz: p_filesz,
        file: bytes.len(),
    })?;
    if p_paddr
        .checked_add(p_memsz)
        .is_none_or(|end| end > END_OF_32_BITS)
    {
        return Err(ImageError::SegmentWraps {
            segment: index,
            paddr: p_paddr,
            memsz: p_memsz,
        });
    }
    Ok(Some(Segment {
        index,
        da: DeviceAddress(p_paddr),
        va: p_vaddr,
        file,
        memsz: p_memsz,
    }))
}

/// What became of the search for a resource table.
enum Found {
    Nothing,
    /// A section with the name and no bytes.
    Empty {
        section: usize,
    },
    Table(TableSection),
}

/// What the sections hold.
struct Sections {
    table: Found,
    attributes: Option<Attributes>,
}

/// Checks the sections, finds and checks the resource table, and finds the attributes.
fn sections(bytes: &[u8], header: &Header, layout: &Layout) -> Result<Sections, ImageError> {
    let count = header.e_shnum;
    if count == 0 && header.e_shoff == 0 {
        return Ok(Sections {
            table: Found::Nothing,
            attributes: None,
        });
    }
    if count == 0 {
        return Err(ImageError::SectionsUncounted {
            offset: header.e_shoff,
        });
    }
    for (field, value) in [("e_shnum", count), ("e_shstrndx", header.e_shstrndx)] {
        if u32::from(value) >= SHN_LORESERVE {
            return Err(ImageError::ExtendedNumbering {
                field,
                value,
                limit: SHN_LORESERVE,
            });
        }
    }
    header_size("e_shentsize", header.e_shentsize, layout.section)?;
    let start = table_start(
        bytes,
        "section headers",
        header.e_shoff,
        count,
        layout.section,
        layout.header,
    )?;
    let sections =
        SectionHeader::parse(bytes, start, count.into(), context(layout)).map_err(|source| {
            ImageError::Unreadable {
                what: "section headers",
                source,
            }
        })?;

    let mut contents = Vec::with_capacity(sections.len());
    let mut attributes = None;
    for (index, section) in sections.iter().enumerate() {
        let file = content(bytes, index, section)?;
        if section.sh_type == RISCV_ATTRIBUTES {
            attributes = Some(Attributes {
                place: format!("section {index} (.riscv.attributes)"),
                file: file.clone(),
            });
        }
        contents.push(file);
    }
    let table = table(bytes, header, &sections, &contents)?;
    Ok(Sections { table, attributes })
}

/// Finds and checks the resource table among the sections, whose bytes in the file are `contents`.
fn table(
    bytes: &[u8],
    header: &Header,
    sections: &[SectionHeader],
    contents: &[Range<usize>],
) -> Result<Found, ImageError> {
    let count = header.e_shnum;
    let index = usize::from(header.e_shstrndx);
    if u32::from(header.e_shstrndx) == SHN_UNDEF {
        // Sections without names: none of them can be the table.
        return Ok(Found::Nothing);
    }
    let (Some(section), Some(range)) = (sections.get(index), contents.get(index)) else {
        return Err(ImageError::NamesIndex {
            index: header.e_shstrndx,
            count,
        });
    };
    if section.sh_type != SHT_STRTAB {
        return Err(ImageError::NamesType {
            section: index,
            kind: section.sh_type,
        });
    }
    let names = bytes.get(range.clone()).unwrap_or_default();
    if names.last() != Some(&0) {
        return Err(ImageError::NamesUnterminated {
            section: index,
            size: section.sh_size,
        });
    }

    let mut found: Option<(usize, &SectionHeader, &Range<usize>)> = None;
    for (index, (section, range)) in sections.iter().zip(contents).enumerate() {
        if section.sh_type == SHT_NULL {
            continue;
        }
        let Some(name) = names.get(section.sh_name..).filter(|name| !name.is_empty()) else {
            return Err(ImageError::SectionName {
                section: index,
                name: section.sh_name,
                names: names.len(),
            });
        };
        if !name.starts_with(TABLE_SECTION) {
            continue;
        }
        if let Some((first, ..)) = found {
            return Err(ImageError::TwoTables {
                first,
                second: index,
            });
        }
        found = Some((index, section, range));
    }
    match found {
        None => Ok(Found::Nothing),
        Some((section, header, _)) if header.sh_size == 0 => Ok(Found::Empty { section }),
        Some((index, section, file)) => {
            table_section(bytes, index, section, file.clone()).map(Found::Table)
        }
    }
}

/// The bytes of a section in the file; none if it has none.
fn content(
    bytes: &[u8],
    index: usize,
    section: &SectionHeader,
) -> Result<Range<usize>, ImageError> {
    if section.sh_type == SHT_NULL || section.sh_type == SHT_NOBITS {
        return Ok(0..0);
    }
    span(bytes, section.sh_offset, section.sh_size).ok_or(ImageError::SectionOutside {
        section: index,
        offset: section.sh_offset,
        size: section.sh_size,
        file: bytes.len(),
    })
}

fn table_section(
    bytes: &[u8],
    index: usize,
    section: &SectionHeader,
    file: Range<usize>,
) -> Result<TableSection, ImageError> {
    let (addr, size) = (section.sh_addr, section.sh_size);
    if section.sh_type == SHT_NOBITS {
        return Err(ImageError::TableNoBits { section: index });
    }
    if addr
        .checked_add(size)
        .is_none_or(|end| end > END_OF_32_BITS)
    {
        return Err(ImageError::TableWraps {
            section: index,
            addr,
            size,
        });
    }
    let table =
        ResourceTable::parse(bytes.get(file.clone()).unwrap_or_default()).map_err(|source| {
            ImageError::Table {
                section: index,
                source,
            }
        })?;
    Ok(TableSection {
        index,
        file,
        da: DeviceAddress(addr),
        len: size,
        table,
    })
}
