//! How snapshots are taken, what is known of them, and what came of it: data.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::manifest::{Counts, Manifest};
use super::name::Name;
use crate::options::Limits;
use crate::path::RelPath;
use crate::report::Problem;
use crate::rules::Lists;
use crate::scan::Bounds;

/// How snapshots are taken and restored.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Options {
    /// Which paths are left out: what is ignored or masked. Of the other lists nothing matters here.
    pub lists: Lists,
    /// What bounds a tree and its files.
    pub limits: Limits,
    /// A folder of our own in which new contents wait during a restore, on the file system of the root;
    /// where it lies elsewhere or is not given, a folder in the root is used meanwhile.
    pub staging: Option<PathBuf>,
}

impl Options {
    /// Sets which paths are left out.
    #[must_use]
    pub fn with_lists(mut self, lists: Lists) -> Self {
        self.lists = lists;
        self
    }

    /// Sets what bounds a tree and its files.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets where new contents wait during a restore.
    #[must_use]
    pub fn with_staging(mut self, folder: impl Into<PathBuf>) -> Self {
        self.staging = Some(folder.into());
        self
    }

    pub(super) fn bounds(&self) -> Bounds {
        Bounds {
            entries: self.limits.entries,
            file_bytes: self.limits.file_bytes,
        }
    }
}

/// What is known of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// What it is called, once in its space.
    pub name: Name,
    /// When it was begun.
    pub created: SystemTime,
    /// Whether nobody named it: [`Space::prune`](super::Space::prune) may remove it.
    pub automatic: bool,
    /// The folder that it was taken of.
    pub root: PathBuf,
    /// How much it holds.
    pub counts: Counts,
    /// Files that were being written each time that they were read: what is in the snapshot may be a mixture.
    pub torn: Vec<RelPath>,
}

impl Snapshot {
    pub(super) fn new(manifest: Manifest) -> Self {
        Self {
            created: manifest.created(),
            root: manifest.root(),
            name: manifest.name,
            automatic: manifest.automatic,
            counts: manifest.counts,
            torn: manifest.torn,
        }
    }
}

/// What taking a snapshot did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Taken {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// How many files were read: the others are what an earlier snapshot has.
    pub read: u64,
    /// How many bytes the packs of the store grew by, the snapshot's own file aside.
    pub added: u64,
    /// How many of the files that were read share their blocks with the folder's and were not copied: long
    /// ones, where the file system can do that (btrfs, xfs). They take room as the folder's change.
    pub cloned: u64,
}

/// What came of a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Restored {
    /// The automatic snapshot of the folder as it was.
    pub before: Name,
    /// The paths that are now what the snapshot has.
    pub done: Vec<RelPath>,
    /// The paths that are not, with the reasons; each is old or new.
    pub refused: Vec<Problem>,
    /// How many files share their blocks with the store and were not copied.
    pub cloned: u64,
}

/// What a snapshot is compared with.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Against<'a> {
    /// Another snapshot of the space.
    Snapshot(&'a str),
    /// A folder as it is now.
    Folder(&'a Path),
}

impl Taken {
    pub(super) fn new(manifest: Manifest, [read, added, cloned]: [u64; 3]) -> Self {
        let snapshot = Snapshot::new(manifest);
        Self {
            snapshot,
            read,
            added,
            cloned,
        }
    }
}
