//! Machines for sandboxes: hypervisor backends, images, and the channel to the guest.

mod cache;

pub mod agent;
pub mod backend;
pub mod channel;
#[cfg(all(feature = "testing", unix))]
pub mod conformance;
pub mod disk;
#[cfg(all(feature = "guest", target_os = "linux"))]
pub mod guest;
pub mod hypervisor;
pub mod image;
mod intact;
pub mod kernel;
mod process;
mod progress;
pub mod snapshot;
pub mod template;
pub mod users;

pub use agent::Agent;
pub use hypervisor::{Hypervisor, HypervisorExt, Machine};
pub use progress::{Progress, Step};
pub use sandbox_base::{Error, ErrorKind};
