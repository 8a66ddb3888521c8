//! Workspaces for sandboxes: a two-way file synchronizer that loses nothing.
#![cfg_attr(
    not(unix),
    allow(
        dead_code,
        unused_imports,
        reason = "the parts that reach the file system are Unix's so far"
    )
)]

mod base;
mod error;
mod glob;
mod options;
pub mod path;
mod protocol;
mod reconcile;
mod report;
mod rules;
pub mod safety;
mod session;
mod syncer;
pub mod tree;
mod watch;

#[cfg(unix)]
mod apply;
#[cfg(unix)]
mod cycle;
#[cfg(unix)]
mod driver;
#[cfg(unix)]
pub mod guest;
#[cfg(unix)]
mod peer;
#[cfg(unix)]
mod replica;
#[cfg(unix)]
mod root;
#[cfg(unix)]
mod scan;
#[cfg(unix)]
mod stage;
#[cfg(unix)]
mod transfer;

pub use error::Error;
pub use options::{Limits, Options};
pub use path::RelPath;
pub use reconcile::Mode;
pub use report::{Change, Conflict, Event, Held, HeldReason, Problem, Report, Side, Untracked};
pub use rules::Lists;
pub use safety::{Halt, Resolution, Thresholds};
pub use sandbox_base::ErrorKind;
pub use session::Session;
pub use syncer::{Syncer, TwoWay, Workspace};
pub use tree::Entry;
