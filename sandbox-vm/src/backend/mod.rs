//! The only list of backends.

#[cfg(target_os = "linux")]
pub mod qemu;
