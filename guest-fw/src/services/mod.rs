//! Far sides of Linux's own drivers, which more than one image serves.

mod sample;
mod terminal;

pub use sample::Sample;
pub use terminal::Terminal;
