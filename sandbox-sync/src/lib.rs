//! Workspaces for sandboxes: a two-way file synchronizer that loses nothing.
//!
//! One half, [`Session`], runs beside the project's folder; the other, [`guest::serve`], runs where the copy
//! is to be: inside a sandbox, in a child process, or in the same process. Between them is one byte stream,
//! whatever carries it. The crate knows nothing of machines.
//!
//! ```text
//!            host                                       guest
//!   folder ── scan ──┐     (watched: only dirt)   ┌── scan ── folder
//!                    ├─ reconcile ─ safety ─ plan │
//!   base file ───────┘        │      byte stream  │
//!   folder ── apply ── stage ─┴───────────────────┴─ stage ── apply ── folder
//! ```
//!
//! The guest is not trusted: what it says is bounded and checked before anything acts on it, and what it
//! changes reaches the host only beneath the root, as files, folders and links that stay inside, without
//! special mode bits, and never in a place that the host would run unasked.
//!
//! ```
//! # #[cfg(unix)]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! use sandbox_sync::{Options, Session, guest};
//!
//! let folder = tempfile::tempdir()?;
//! let (project, copy) = (folder.path().join("project"), folder.path().join("copy"));
//! std::fs::create_dir(&project)?;
//! std::fs::write(project.join("a.txt"), "from the host")?;
//!
//! // Any stream does; this one stays in memory.
//! let (ours, theirs) = tokio::io::duplex(64 * 1024);
//! let guest = tokio::spawn(guest::serve(Box::new(theirs), guest::Options::default()));
//!
//! let options = Options::default().with_guest_root(&copy);
//! let session = Session::start(&project, Box::new(ours), options).await?;
//! assert_eq!(std::fs::read_to_string(copy.join("a.txt"))?, "from the host");
//!
//! std::fs::write(copy.join("b.txt"), "from the guest")?;
//! let report = session.stop().await?;
//! assert_eq!(report.to_host.len(), 1);
//! assert_eq!(std::fs::read_to_string(project.join("b.txt"))?, "from the guest");
//! guest.await??;
//! # Ok(()) })
//! # }
//! # #[cfg(not(unix))]
//! # fn main() {}
//! ```
//!
//! # What holds
//!
//! - Each file is old or new after a crash at any point, never torn, and what was not seen by the scan is
//!   never overwritten.
//! - Where both sides changed a path, both keep their own and the report lists the [`Conflict`].
//! - An emptied, deleted or replaced root, a deleted repository and a mass deletion stop the session before
//!   anything is written; see [`safety`].
//! - A transfer that was cut off goes on where it was: files that had arrived as a whole are kept, 2 GiB of them
//!   and for a day, until the next session has taken what it still wants of them, by digest.
//! - A history that is lost or damaged unites the two sides; it is never read as a deletion.
//!
//! # Review
//!
//! In the mode [`Review`](Mode::Review) what the guest does waits. [`Session::changes`] lists it, with the
//! differences of texts; [`Session::apply`] writes what was chosen of it as one transaction, bound to what
//! was shown by digests, and [`Session::undo`] takes that back; [`Session::discard`] has the guest go back to
//! what the host has. What the two-way modes hold back is decided in the same way. See [`review`].
//!
//! # Snapshots
//!
//! `snapshot::Store` keeps the host's folder as it was, for many sandboxes in one place: taken by a name or before
//! each command, compared, restored. What is restored flows into the guest like any change of the host's.
//!
//! # What it is not
//!
//! No backup, no version control, no shared file system: a change arrives once it was noticed, which on
//! local Linux file systems takes milliseconds, and elsewhere a scan of both sides. A change that makes no
//! event (through another hard link outside the root, or a shared mapping that stays open) is found by the
//! whole scan each minute. It carries contents, the owner's executable bit, link targets and modification
//! times; not owners, other mode bits, extended attributes, access lists or hard links, which become
//! separate files. It does not merge within a file. A program that writes through a
//! descriptor which it opened before the file was replaced writes to the old file, as with an editor that
//! saves by rename. A database that keeps a log beside it is several files that arrive one after the other:
//! whole once its writer has stopped, while it writes a mixture, so ignore it or stop its writer. Only Unix
//! hosts so far.
//!
//! # Names
//!
//! Some file systems take `A` and `a`, or the two ways to write `é`, for one file. Each side tries at the start
//! of a session whether its root does. Two names that would be one file on a side stay where they are, with
//! what is beneath them, and are a [`Conflict`] with a [`Collision`] until one of the two is renamed; a rename
//! from one to the other is carried over like any other. What is found for the root counts for all of it: on
//! macOS and Windows that is a property of the volume, on ext4, f2fs and tmpfs of each folder, so one that folds
//! in a root that does not is not foreseen, and the second name is a problem when it is written. Where the host
//! keeps names in a form of its own (HFS+), each side has its own bytes of them.
//!
//! # Ignored
//!
//! [`Lists`] name what stays on its own side. Nothing does by default but git's locks;
//! [`Lists::with_ignore_generated`] adds what tools make anew on each machine, and
//! [`Lists::with_gitignore_of`] what `.gitignore` files name. What is ignored from some session on stays as it
//! is on both sides.
//!
//! # Git
//!
//! `.git` flows both ways, so the guest works in a full checkout and its commits arrive. Objects are put in
//! place before everything else and refs after everything else; when an object is missing, no ref moves.
//! The index is copied into the guest once and then belongs to each side, as do lock files: after a commit
//! in the guest, `git status` on the host compares the new `HEAD` with the host's old index until
//! `git reset` (without `--hard`) refreshes it. Hooks, configuration, attributes and what else makes git
//! run something never come back by themselves; see [`Lists`]. A ref that both sides moved is a conflict.
//!
//! # Features
//!
//! `testing`: a fake [`Syncer`] for embedders' tests.
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
mod fold;
#[cfg(all(fuzzing, unix))]
pub mod fuzzing;
mod gitignore;
mod glob;
mod options;
pub mod path;
mod progress;
mod protocol;
mod reconcile;
mod report;
pub mod review;
mod rules;
pub mod safety;
mod session;
mod syncer;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tree;

#[cfg(unix)]
mod apply;
#[cfg(unix)]
mod cycle;
#[cfg(unix)]
mod delta;
#[cfg(unix)]
mod driver;
#[cfg(unix)]
pub mod guest;
#[cfg(unix)]
mod peer;
#[cfg(unix)]
mod probe;
#[cfg(unix)]
mod replica;
#[cfg(unix)]
mod root;
#[cfg(unix)]
mod scan;
#[cfg(unix)]
mod scope;
#[cfg(unix)]
pub mod snapshot;
#[cfg(unix)]
mod stage;
#[cfg(unix)]
mod transfer;
#[cfg(unix)]
mod watch;

pub use error::Error;
pub use gitignore::IgnoreFile;
pub use options::{Limits, Options};
pub use path::RelPath;
pub use progress::{Copied, Progress, Step};
pub use reconcile::Mode;
pub use report::{
    Change, Collision, Conflict, Event, Held, HeldReason, Problem, Report, Side, Standing,
    Untracked,
};
pub use rules::Lists;
pub use safety::{Halt, Resolution, Thresholds};
pub use sandbox_base::ErrorKind;
pub use session::Session;
pub use syncer::{Review, Syncer, TwoWay, Workspace};
pub use tree::Entry;
