//! Device addresses become bytes here, and nowhere else.
//!
//! What belongs here: the type of a device address, the memory that a core sees as its RAM, and
//! the carveouts placed in it. What does not: what the bytes mean, and any knowledge of guests
//! (their memory is another address space, with types of its own).

mod address;
mod carveout;
mod ram;

pub use address::DeviceAddress;
pub use carveout::{Carveout, CarveoutError, CarveoutMap};
pub use ram::{MemoryError, Ram};
