//! Cores that linger.
