//! Sandboxes in real microVMs.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod commands;
mod place;
