//! Internal pieces that more than one of the sandbox crates needs.
//!
//! This crate exists so that a durable file, a lock or a bounded message is written once. It has no
//! stability promise of its own: embedders use `sandbox-core`, which re-exports what they meet.
//!
//! | module | holds |
//! |---|---|
//! | [`error`] | [`Error`], what failed and what to do about it |
//! | [`kind`] | [`ErrorKind`], the one vocabulary of failures that a caller can act on |
//! | [`stream`] | [`ByteStream`], what every channel between host and guest is made of |
//! | [`frame`] | length-delimited messages with a bound on both sides |
//! | [`durable`] | files that are old or new after a crash, never torn |
//! | [`lock`] | who owns a folder, told by the kernel, released by death |
//! | [`memory`] | freed memory handed back to the kernel |
//! | [`progress`] | steps of something that takes long, told to whoever shows them |
//! | [`dirs`] | where state, cache and sockets live |
//! | [`watchdog`] | a child process that cannot outlive its owner, and what it leaves is removed |

pub mod dirs;
pub mod durable;
pub mod error;
pub mod frame;
pub mod kind;
pub mod lock;
pub mod memory;
pub mod progress;
pub mod stream;
#[cfg(target_os = "linux")]
pub mod watchdog;

pub use dirs::Dirs;
pub use error::Error;
pub use kind::{BoxError, ErrorKind};
pub use progress::Progress;
pub use stream::{BoxStream, ByteStream};
