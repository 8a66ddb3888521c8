//! The integration tests of `sandbox-sync`: two folders, or a folder and a hostile peer, over an
//! in-memory stream. `tests/threats.md` says which test stands for which row of the threat model.

#![allow(clippy::print_stdout, reason = "a skipped check says why")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod beside;
mod crash;
mod database;
mod delta;
mod folded;
mod full;
mod git;
mod ignore;
mod model;
mod modes;
mod pair;
mod resume;
mod review;
mod safety;
mod single;
mod snapshot;
mod stream;
mod two_way;
