//! What is to be dumped: nothing here reads or writes any of it.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use thiserror::Error;

use crate::memory::{DeviceAddress, Ram};

/// Whether a core that died is dumped. Linux's words, in its sysfs file `coredump`.
///
/// In every mode the evidence comes before the recovery, because a boot clears the core's memory.
/// What differs is how long the recovery waits for it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Mode {
    /// Not at all. The default, as in Linux.
    #[default]
    Disabled,
    /// Within a time that the caller gives; what is not written by then is missing from the dump.
    /// (Linux copies all memory first, and recovers while somebody reads the copy.)
    Enabled,
    /// Whole, however long that takes. (Linux waits until somebody has read the dump and
    /// released it, for up to five minutes.)
    Inline,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Disabled, Self::Enabled, Self::Inline];

    /// Linux's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Enabled => "enabled",
            Self::Inline => "inline",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// No [`Mode`] is called that.
#[derive(Debug, Error)]
#[error("coredump mode is {0:?}, must be \"disabled\", \"enabled\" or \"inline\"")]
pub struct UnknownMode(pub String);

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(word: &str) -> Result<Self, UnknownMode> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.name() == word)
            .ok_or_else(|| UnknownMode(word.to_owned()))
    }
}

/// How the file is laid out; see [the file](super#the-file).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Style {
    /// For debuggers.
    #[default]
    ProgramHeaders,
    /// For tools that look a segment up by name.
    Sections,
}

/// The ELF class: how wide the core's addresses are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// 32 bits.
    Elf32,
    /// 64 bits.
    Elf64,
}

/// Bytes that cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unreadable;

/// Memory that a dump can read, by device address.
pub trait Memory: Sync {
    /// Fills `piece` with the bytes from `da` on.
    ///
    /// # Errors
    /// [`Unreadable`] unless all of them can be read. Smaller pieces are then tried.
    fn read(&self, da: DeviceAddress, piece: &mut [u8]) -> Result<(), Unreadable>;

    /// How many of the `len` bytes from `da` on are zero for sure and need no reading. 0 is
    /// always right.
    fn zeros_from(&self, da: DeviceAddress, len: u64) -> u64 {
        let _ = (da, len);
        0
    }
}

impl Memory for Ram {
    fn read(&self, da: DeviceAddress, piece: &mut [u8]) -> Result<(), Unreadable> {
        self.read_sparse(da, piece).map_err(|_| Unreadable)
    }

    fn zeros_from(&self, da: DeviceAddress, len: u64) -> u64 {
        self.untouched_from(da, len)
    }
}

/// Fills a piece of a segment that is not plain memory: offset in the segment, and the piece.
/// Linux's custom segments.
pub type Fill<'a> = Box<dyn FnMut(u64, &mut [u8]) -> Result<(), Unreadable> + Send + 'a>;

/// Where a segment's bytes come from.
pub enum Source<'a> {
    /// Memory of the core.
    Memory(&'a dyn Memory),
    /// The engine's own way.
    Custom(Fill<'a>),
}

impl fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory(_) => "Memory",
            Self::Custom(_) => "Custom",
        })
    }
}

/// A span of device addresses that goes into the dump.
#[derive(Debug)]
pub struct Segment<'a> {
    /// The carveout's name.
    pub name: String,
    /// First byte.
    pub da: DeviceAddress,
    /// Bytes.
    pub len: u64,
    /// Who has them.
    pub source: Source<'a>,
}

/// The registers when the core ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registers {
    /// The signal that a debugger shows as the cause of death (`SIGSEGV` is 11); 0 for none.
    pub signal: u16,
    /// In the order of the machine's `gregset`. For RISC-V: pc, then x1 to x31.
    pub values: Vec<u64>,
}

impl Registers {
    /// Those of a 32-bit RISC-V core. `x` begins with x0, which is not kept.
    pub fn riscv32(signal: u16, pc: u32, x: &[u32; 32]) -> Self {
        let values = std::iter::once(pc)
            .chain(x[1..].iter().copied())
            .map(u64::from);
        Self {
            signal,
            values: values.collect(),
        }
    }
}

/// Which firmware ran.
#[derive(Clone, Copy, Debug)]
pub struct FirmwareId<'a> {
    /// The file's name.
    pub name: &'a str,
    /// SHA-256 of the whole file.
    pub sha256: [u8; 32],
}

/// One dump: all that is known of a core at its end.
#[derive(Debug)]
pub struct Dump<'a> {
    /// Which incarnation of the core.
    pub incarnation: u32,
    /// When it died.
    pub time: SystemTime,
    /// Why it is dumped, in a sentence.
    pub reason: &'a str,
    /// What it ran, if that is known.
    pub firmware: Option<FirmwareId<'a>>,
    /// How wide its addresses are.
    pub class: Class,
    /// `e_machine`; 243 is RISC-V.
    pub machine: u16,
    /// Where it began: `e_entry`.
    pub boot: DeviceAddress,
    /// Its registers, if the engine knows them.
    pub registers: Option<Registers>,
    /// Its memory. Put first what matters most: a dump that is cut short ends early.
    pub segments: Vec<Segment<'a>>,
    /// How the file is laid out.
    pub style: Style,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_linux_s_words_and_no_others() {
        for mode in Mode::ALL {
            assert_eq!(mode.to_string().parse::<Mode>().unwrap(), mode);
        }
        assert_eq!(Mode::default(), Mode::Disabled);
        for word in ["default", "Enabled", "", "inline\n"] {
            let error = word.parse::<Mode>().unwrap_err().to_string();
            assert!(error.contains("must be \"disabled\""), "{error}");
        }
    }

    #[test]
    fn riscv_registers_begin_with_pc_and_leave_x0_out() {
        let mut x = [0; 32];
        for (number, register) in x.iter_mut().enumerate() {
            *register = u32::try_from(number).unwrap() + 100;
        }
        let registers = Registers::riscv32(4, 7, &x);
        assert_eq!(registers.values.len(), 32);
        assert_eq!(registers.values[..3], [7, 101, 102]);
        assert_eq!(registers.values[31], 131);
    }
}
