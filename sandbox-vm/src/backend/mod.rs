//! The only list of backends.

#[cfg(all(feature = "testing", target_os = "linux"))]
pub mod plain;
#[cfg(target_os = "linux")]
pub mod qemu;
