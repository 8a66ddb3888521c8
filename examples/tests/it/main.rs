//! The command line tool, as a person and a script use it: the built program, its streams and its exit
//! status. What needs a machine boots a real one.

#![allow(clippy::unwrap_used, reason = "what is not so in a test ends the test")]

mod egress;
mod interrupts;
mod kept;
#[cfg(target_os = "linux")]
mod networks;
mod offline;
mod once;
mod review;
mod saved;
mod support;
#[cfg(unix)]
mod sync;
mod terminal;
#[cfg(target_os = "linux")]
#[path = "../../../sandbox-net/tests/it/world/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "the tests of the network use more of it"
)]
mod world;
