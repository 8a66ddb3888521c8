//! A microVM per AI agent, embedded.
//!
//! A harness that runs an agent's commands gives each agent a machine of its own: with its own kernel,
//! its workspace kept the same outside and inside, its network judged by name and by address, and nothing
//! left behind when it goes. No daemon, no account, no cloud.
//!
//! ```no_run
//! use sandbox_core::{NetworkPolicy, Limits, Sandbox, Workspace};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let sandbox = Sandbox::builder()
//!     .workspace(Workspace::sync("/home/me/project")) // appears at the same path inside
//!     .network(NetworkPolicy::deny().allow("*.example.com")?)
//!     .limits(Limits::default().cpus(2).memory_mib(2048))
//!     .create()
//!     .await?;
//! let tests = sandbox.command("npm").arg("test").output().await?; // reads like tokio::process
//! println!("{}", String::from_utf8_lossy(&tests.stdout));
//! let changes = sandbox.changes().await?; // what waits for review, with its differences
//! sandbox.apply(&changes.only("src/**")).await?; // exactly what was listed, or nothing
//! sandbox.remove().await?;
//! # Ok(())
//! # }
//! ```
//!
//! ```text
//!  harness ── Sandbox ─┬─ sandbox-vm      machine, channel to the agent inside
//!                      ├─ sandbox-sync    workspaces
//!                      ├─ sandbox-net     egress proxy
//!                      └─ sandbox-models  local models (not granted to sandboxes yet)
//! ```
//!
//! # What it is not
//!
//! Emulation is no wall by QEMU's own word: where the processor cannot run guests, machines are emulated,
//! and say so ([`Description::machine`]). Other walls than QEMU and models inside are
//! still to come.

#![cfg_attr(
    not(unix),
    allow(
        dead_code,
        unused_imports,
        unused_mut,
        reason = "what serves other processes needs Unix so far"
    )
)]

mod builder;
mod check;
mod command;
mod control;
mod copy;
mod description;
pub mod docs;
mod helper;
mod history;
mod host;
mod layers;
mod lifecycle;
mod network;
mod owner;
mod pool;
mod progress;
mod sandbox;
#[cfg(unix)]
mod saved;
#[cfg(unix)]
mod snapshots;
mod spec;
mod state;
pub mod supervisor;
mod upstream;
mod workspace;

pub use builder::SandboxBuilder;
pub use check::NetworkCheck;
pub use command::{
    Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, MAX_OUTPUT, Output, Stdio,
};
pub use description::{CaptureState, Description, MachineDescription};
pub use host::{Backend, Host, default_dirs};
pub use layers::PolicySource;
pub use lifecycle::{Lifetime, State};
#[cfg(unix)]
pub use owner::Outside;
pub use pool::{Pool, PoolLimits};
pub use progress::{Progress, Step};
pub use sandbox::{MAX_READ, Sandbox};
pub use sandbox_base::{Dirs, Error, ErrorKind};
pub use sandbox_net::{self as net, policy::RuleSet as NetworkPolicy};
pub use sandbox_sync as sync;
pub use sandbox_vm::channel::protocol::TerminalSize;
pub use sandbox_vm::hypervisor::{Acceleration, Isolation};
pub use sandbox_vm::image::Image;
pub use sandbox_vm::template::{ColdReason, Started, TemplateStore, Templates};
pub use sandbox_vm::{self as vm, Hypervisor};
#[cfg(unix)]
pub use saved::SandboxSnapshot;
#[cfg(unix)]
pub use snapshots::{HurtSnapshot, RestoreReport, WorkspaceSnapshot};
pub use spec::{ExtraDisk, Limits, Tmpfs, Workspace};
pub use upstream::UpstreamProxy;
pub use workspace::{Changes, ReviewReport, SyncReport, SyncStatus, WorkspaceChanges};
