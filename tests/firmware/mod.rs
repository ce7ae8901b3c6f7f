//! Firmware images and resource tables, honest and hostile. What belongs here: every refusal once,
//! and what holds for whatever is accepted. What does not: how an accepted image boots.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

pub mod elf_builder;
mod image;
mod invariants;
mod real_images;
mod resource_table;
mod seeds;
pub mod table_builder;
