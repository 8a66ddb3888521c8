//! Start-up times.

fn main() {}
