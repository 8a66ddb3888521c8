//! The only list of backends.

#[cfg(unix)]
pub mod qemu;

#[cfg(all(feature = "testing", unix))]
pub mod plain;
