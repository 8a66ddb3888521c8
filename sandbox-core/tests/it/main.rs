//! Sandboxes in real microVMs.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod attached;
mod bad_days;
mod builds;
mod capture;
mod commands;
mod detached;
mod forks;
mod network;
mod pausing;
mod place;
mod pool;
mod real_work;
mod review;
mod rounds;
mod saved;
mod secrets;
mod snapshots;
mod template;
mod walls;
mod workspaces;
