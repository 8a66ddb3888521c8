//! The proxy with real sockets: on loopback, which rules open by address and port as they would for anybody, and in
//! network namespaces (`networks`), where addresses need no opening.
//!
//! `threats.md` beside this folder says which row of the threat model each test covers.

// Helpers of tests are tests to a reader, but not to the lint.
#![allow(clippy::unwrap_used)]

mod support;

mod answers;
mod captured;
mod exchange;
mod guest;
mod inspect;
mod limits;
mod neighbours;
#[cfg(target_os = "linux")]
mod networks;
mod services;
mod smuggling;
#[cfg(target_os = "linux")]
mod sockets;
mod tunnel;
mod upstream;
#[cfg(target_os = "linux")]
mod world;
