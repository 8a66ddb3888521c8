//! Everything that needs real programs, real packages or a kernel.

mod disk;
mod erofs;
mod image;
mod kernel;
