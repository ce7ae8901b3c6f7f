//! Firmware images and resource tables, honest and hostile. What belongs here: every refusal once,
//! what holds for whatever is accepted, and the plan of a boot. What does not: how a booted core
//! behaves.
//!
//! | module | what is held |
//! |---|---|
//! | `image`, `resource_table` | each refusal of an ELF file and of a table |
//! | `plan` | each refusal of a boot, and the report about one |
//! | `look_alikes` | the shapes of real firmware |
//! | `real_images`, `of_others` | real files |
//! | `seeds` | the fuzz targets' corpus, replayed |
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

pub mod elf_builder;
mod image;
mod invariants;
mod look_alikes;
mod of_others;
mod plan;
mod real_images;
mod resource_table;
mod seeds;
pub mod table_builder;
