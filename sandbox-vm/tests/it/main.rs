//! Everything that needs real programs, real packages or a kernel.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]
#![allow(clippy::print_stdout, reason = "a skipped check says why")]

#[cfg(all(feature = "testing", target_os = "linux"))]
mod bad_days;
#[cfg(all(feature = "testing", target_os = "linux"))]
mod conformance;
mod disk;
mod erofs;
mod image;
mod kernel;
#[cfg(all(feature = "testing", target_os = "linux"))]
mod machine;
mod oci;
#[cfg(all(feature = "testing", target_os = "linux"))]
mod snapshot;
#[cfg(all(feature = "testing", target_os = "linux"))]
mod support;
#[cfg(all(feature = "testing", target_os = "linux"))]
mod template;
