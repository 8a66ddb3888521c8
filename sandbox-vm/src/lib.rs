//! Machines.
pub mod channel;
#[cfg(all(feature = "guest", target_os = "linux"))]
pub mod guest;
