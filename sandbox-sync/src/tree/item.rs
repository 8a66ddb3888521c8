//! A path and what is there, held once by all trees that agree on it.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Entry;
use crate::path::RelPath;

/// A path and what is there; clones share it. Ordered, and equal, by path alone.
#[derive(Debug, Clone)]
pub(crate) struct Item(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: RelPath,
    entry: Entry,
    /// What the scanner of this side knows the thing by, no part of what it is; 0 is nothing.
    memo: AtomicU64,
}

impl Item {
    pub(crate) fn new(path: RelPath, entry: Entry) -> Self {
        let memo = AtomicU64::new(0);
        Self(Arc::new(Inner { path, entry, memo }))
    }

    /// Returns the same in memory of its own.
    pub(crate) fn apart(&self) -> Self {
        let item = Self::new(self.path().apart(), self.entry().clone());
        item.remember(self.memo());
        item
    }

    pub(crate) fn path(&self) -> &RelPath {
        &self.0.path
    }

    pub(crate) fn entry(&self) -> &Entry {
        &self.0.entry
    }

    pub(crate) fn pair(&self) -> (&RelPath, &Entry) {
        (self.path(), self.entry())
    }

    /// Tells whether the two are one.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Returns what [`Item::remember`] was told last, 0 where it was not.
    pub(crate) fn memo(&self) -> u64 {
        self.0.memo.load(Relaxed)
    }

    pub(crate) fn remember(&self, memo: u64) {
        self.0.memo.store(memo, Relaxed);
    }
}

impl Borrow<RelPath> for Item {
    fn borrow(&self) -> &RelPath {
        self.path()
    }
}

impl Ord for Item {
    fn cmp(&self, other: &Self) -> Ordering {
        self.path().cmp(other.path())
    }
}

impl PartialOrd for Item {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Item {
    fn eq(&self, other: &Self) -> bool {
        self.path() == other.path()
    }
}

impl Eq for Item {}
