//! Measures the promises of the README.

fn main() {}
