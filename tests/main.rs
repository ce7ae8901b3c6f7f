//! Integration tests.

mod frontend;
