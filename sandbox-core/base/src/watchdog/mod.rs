//! A child process that cannot outlive its owner, and whose files go with it.
//!
//! ```text
//!  owner ──pipe──▶ watchdog ──parent of──▶ child (QEMU)
//!        ◀─lines──
//! ```
//!
//! The owner (an embedder's process, a supervisor) starts the helper binary as a watchdog and hands it a
//! [`Job`] on its standard input, which it then keeps open. The watchdog starts the child and waits for
//! the first of two things: the child ends, or the pipe closes, because the owner wants it to or because
//! it is dead, however it died. Either way the child is killed, the job's paths are removed, and the
//! watchdog ends. An owner that goes in order says so first; paths that are to be removed only after
//! one that did not are named apart. Should somebody kill the watchdog, the kernel kills the child (`PR_SET_PDEATHSIG`);
//! the files are then left for the owner, or for whoever looks next.
//!
//! | who is killed | the child | the files |
//! |---|---|---|
//! | owner | by the watchdog | by the watchdog |
//! | watchdog | by the kernel | by the owner |
//! | both at once | by the kernel | by the next process that looks |
//!
//! What an orphaned watchdog removes it claims for as long as it lives ([`claim`]): whoever finds a dead
//! owner's files can tell whether somebody is at work on them, and nobody makes new ones under their names
//! before the old ones are gone.
//!
//! Nothing of the job is on a command line, where every user of the host could read it.

mod owner;
mod run;

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::lock::FileLock;

pub use owner::Watchdog;
pub use run::run;

/// The first argument that makes the helper binary a watchdog.
pub const VERB: &str = "watchdog";

/// What an owner says before it closes the pipe in order.
const IN_ORDER: &[u8] = b"done\n";

/// The longest job, in bytes of JSON.
const MAX_JOB: usize = 1 << 20;

/// The lock that says that a watchdog lives.
const CLAIM: &str = "watchdog.lock";

/// Takes the claim of watchdogs to a folder, so that none can begin or be at work there: the folder is the last of
/// what their jobs name for removal after a dead owner. `None` while one lives. They share it among themselves, and the
/// last one to live removes.
///
/// # Errors
///
/// `NotFound` when there is no such folder, and then no watchdog that could begin; else what the file
/// system answers.
pub fn claim(folder: &Path) -> io::Result<Option<FileLock>> {
    FileLock::try_acquire(&folder.join(CLAIM))
}

/// What a watchdog is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Job {
    /// The child's program and arguments.
    pub argv: Vec<String>,
    /// Files and folders to remove once the child is gone.
    pub remove: Vec<PathBuf>,
    /// Files and folders to remove only when the owner went without a word; the last one is claimed.
    pub remove_when_orphaned: Vec<PathBuf>,
}

impl Job {
    /// A job that runs `argv` and removes nothing.
    pub fn new(argv: Vec<String>) -> Self {
        Self {
            argv,
            remove: Vec::new(),
            remove_when_orphaned: Vec::new(),
        }
    }

    /// Adds a file or folder to remove once the child is gone.
    #[must_use]
    pub fn with_removal(mut self, path: impl Into<PathBuf>) -> Self {
        self.remove.push(path.into());
        self
    }

    /// Adds files and folders to remove, in this order, only when the owner went without a word. The last
    /// one is a folder, which the watchdog claims ([`claim`]): without it the child is not started.
    #[must_use]
    pub fn with_removal_when_orphaned(mut self, paths: impl IntoIterator<Item = PathBuf>) -> Self {
        self.remove_when_orphaned.extend(paths);
        self
    }
}

/// What a watchdog tells its owner, one JSON object on a line each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The child runs, as this process.
    Started(u32),
    /// The child could not be started.
    Refused(String),
    /// The child ended, and everything is removed.
    Ended {
        /// Its exit code, when it ended by itself.
        code: Option<i32>,
        /// The signal that ended it.
        signal: Option<i32>,
        /// The last of what it wrote to its standard output and error. At most 16 KiB of that are ever
        /// kept, in memory: a guest that writes to its console for ever fills nobody's disk.
        output: String,
        /// What could not be removed.
        left: Vec<String>,
    },
}
