//! Machines for sandboxes: hypervisor backends, images, and the channel to the guest.

mod cache;

pub mod disk;
mod error;
pub mod image;

pub mod kernel;
mod process;
mod progress;

pub use error::Error;
pub use progress::{Progress, Step};
