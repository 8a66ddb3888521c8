//! Everything that needs real programs, real packages or a kernel.

mod erofs;
mod image;
mod kernel;
