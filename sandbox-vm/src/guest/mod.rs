//! The guest's half: the agent that runs commands, moves files and opens streams to the host.
//!
//! The same code is the first process of a microVM, of a container, or a plain child process in tests
//! ([`Role`]). It runs on a single-threaded runtime: what forks and what reaps never run at once, which
//! the module `process` relies on.
//!
//! | module | holds |
//! |---|---|
//! | [`init`] | the first moments of a machine: file systems, kernel modules, the port |
//! | `agent` | the streams that the host opens, each handed to what answers it |
//! | `arrival` | what a machine must not share with others of the same saved state: randomness, time, disks |
//! | `setup` | root, mounts, name, limits, as the host asks |
//! | `process` | fork, exec and reap |
//! | `exec` | one command with its streams, signals and time limit |
//! | `group` | the control group of a command: who belongs to it, what killed it |
//! | `network` | the one way out, and the namespace where it ends; `netlink` its messages |
//! | `files` | reading, writing, packing and unpacking |
//!
//! The host is trusted here, as it must be: it owns the machine. Commands are not: nothing they do to
//! files, names or processes may make the agent panic or stop.

mod agent;
mod arrival;
mod descriptor;
mod exec;
mod files;
mod group;
mod identity;
pub mod init;
mod netlink;
mod network;
mod port;
mod process;
mod services;
mod setup;

pub use agent::{Agent, Role};
pub use network::CaptureNet;
pub use services::{Captured, HostStreams, Services, Serving};
