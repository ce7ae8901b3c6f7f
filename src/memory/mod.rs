//! Device addresses become bytes here, and nowhere else.
//!
//! What belongs here: the type of a device address, the memory that a core sees as its RAM, and
//! the carveouts placed in it. What does not: what the bytes mean, and any knowledge of guests
//! (their memory is another address space, with types of its own).

mod address;
mod carveout;
mod map;
mod ram;

pub use address::DeviceAddress;
pub use carveout::{Carveout, CarveoutError, CarveoutLimits, CarveoutMap};
pub use map::{MemoryMap, wrap};
pub use ram::{HUGE_PAGE, MemoryError, Pages, Ram};
