//! Integration tests.
//!
//! | module | what is held against what |
//! |---|---|
//! | `crash` | the real daemon against firmware that dies |
//! | `engine` | the rv32 engine against riscv-tests, QEMU, and hostile firmware |
//! | `firmware` | the public reading of images against builders of our own and real files |
//! | `frontend` | the real daemon against a VMM and an rpmsg driver in this process |
//! | `operator` | command lines and the control socket |

#![allow(
    clippy::unwrap_used,
    reason = "a test that unwraps an error fails, as it should"
)]

mod crash;
mod engine;
mod firmware;
mod frontend;
mod operator;
