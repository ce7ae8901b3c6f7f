//! Integration tests.
//!
//! | module | what is held against what |
//! |---|---|
//! | `activity` | what a status, an event or a trace says of firmware that spins, waits, ends or prints |
//! | `control` | the control socket in front of cores with a journal |
//! | `coredump` | dumps of firmware that died against gdb and readelf |
//! | `crash` | the real daemon against firmware that dies |
//! | `daemons` | rprocctl against several daemons, and none |
//! | `dumps` | the real daemon's coredumps against gdb, quotas and full disks |
//! | `engine` | the rv32 engine against riscv-tests, QEMU, and hostile firmware |
//! | `examples` | the files of `examples/`, used as they say |
//! | `firmware` | the public reading of images against builders of our own and real files |
//! | `frontend` | not tests: a VMM and an rpmsg driver in this process |
//! | `guest` | the real daemon against that VMM and that driver |
//! | `harness` | that VMM and that driver against a device that is known to be right, or wrong |
//! | `hot_path` | kicks, calls, wake-ups of a message, and cores that linger, counted exactly |
//! | `in_process` | not tests: cores and sockets in this process, one with an engine of a few lines |
//! | `lifecycle` | states and their changes against Linux's order, a table and a model |
//! | `operator` | command lines and the control socket |
//! | `rows` | which test holds which numbered hostile input |
//! | `running` | the library's cores against scripts of firmware that turns hostile while it runs |
//! | `scripted` | the library's cores and sockets with an engine that runs a script |
//! | `sysfs` | the cores as files against a vendor's script and single system calls; with feature `rprocfs` |
//! | `trace` | trace buffers, followed by an operator |
//! | `wear` | the real daemon after many sessions, and while nothing happens |

#![allow(
    clippy::unwrap_used,
    reason = "a test that unwraps an error fails, as it should"
)]

mod activity;
mod control;
mod coredump;
mod crash;
mod daemons;
mod dumps;
mod engine;
mod examples;
mod firmware;
mod frontend;
mod guest;
mod harness;
mod hostile_operators;
mod hot_path;
mod in_process;
mod lifecycle;
mod operator;
mod packaging;
mod promises;
mod rows;
mod rprocctl;
mod running;
mod scripted;
#[cfg(feature = "rprocfs")]
mod sysfs;
mod trace;
mod varlink;
mod watching;
mod wear;

// As the benchmarks name them.
use firmware::{elf_builder, table_builder};
