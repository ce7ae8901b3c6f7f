//! What a message costs, in exact counts.
//!
//! What belongs here: kicks, calls, sleeps and wake-ups that a message takes, and how a core waits
//! in the real daemon. What does not: time, which depends on the machine (`benches`), and counts
//! of a whole process, which the tests that run beside these would disturb (`tests/alone`).

mod counts;
mod waiting;
