//! Integration tests.
//!
//! | module | what is held against what |
//! |---|---|
//! | `firmware` | the public reading of images against builders of our own and real files |
//! | `frontend` | the real daemon against a VMM and an rpmsg driver in this process |

mod firmware;
mod frontend;
