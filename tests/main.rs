//! Integration tests.
//!
//! | module | what is held against what |
//! |---|---|
//! | `engine` | the rv32 engine against riscv-tests, QEMU, and hostile firmware |
//! | `firmware` | the public reading of images against builders of our own and real files |
//! | `frontend` | the real daemon against a VMM and an rpmsg driver in this process |

mod engine;
mod firmware;
mod frontend;
