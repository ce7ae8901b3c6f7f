//! `rprocctl`.

fn main() {}
