//! `rprocd`.

fn main() {}
