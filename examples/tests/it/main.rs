//! The command line tool, as a person and a script use it: the built program, its streams and its exit
//! status. What needs a machine boots a real one.

#![allow(clippy::unwrap_used, reason = "what is not so in a test ends the test")]

mod egress;
mod interrupts;
mod kept;
mod offline;
mod once;
mod support;
mod terminal;
