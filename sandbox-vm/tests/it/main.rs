//! Everything that needs real programs, real packages or a kernel.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod default_image;
mod disk;
mod erofs;
mod image;
mod kernel;
mod machine;
