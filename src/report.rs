//! How an error becomes a sentence: the error, then its causes.
//!
//! What belongs here: that one printer. An error's own text never repeats its cause.

use std::error::Error;
use std::fmt::Write;

/// The error and its causes in one line (more where a cause has more): `cannot X: because Y`.
pub fn sentence(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string cannot fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_follow_what_they_cause() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read the manual")]
        struct Outer(#[source] std::fmt::Error);
        let text = sentence(&Outer(std::fmt::Error));
        assert_eq!(text, format!("cannot read the manual: {}", std::fmt::Error));
    }
}
