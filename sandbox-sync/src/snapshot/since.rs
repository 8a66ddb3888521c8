//! What a session knows when it takes a snapshot: what may have changed since the last one that it took.
//!
//! The watch keeps that from one to the next. It is worth something only together with that very snapshot: of
//! the same root, by the same rules and bounds, and still in the space. In every other case the walk reads
//! everything, as it does where the watch lost sight (`I7`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::path::RelPath;
use crate::root::Root;
use crate::rules::Lists;
use crate::scan::Bounds;
use crate::tree::Digest;
use crate::watch::{Depth, Dirt, Watch};

/// What is known since the last snapshot of a session.
#[derive(Debug)]
pub(crate) struct Since {
    root: Arc<Root>,
    watch: Arc<Watch>,
    /// The rules of the session: what they leave out is not watched.
    rules: Option<Digest>,
    last: Mutex<Option<Last>>,
}

/// The last snapshot, whose listings stand where nothing is dirty.
#[derive(Debug, Clone, Copy)]
struct Last {
    tree: Digest,
    bounds: Bounds,
}

/// The listing to begin with, and what may be different by now.
pub(crate) type Known = (Digest, BTreeMap<RelPath, Depth>);

impl Since {
    pub(crate) fn new((root, watch): (Arc<Root>, Arc<Watch>), lists: &Lists) -> Self {
        Self {
            root,
            watch,
            rules: digest(lists).ok(),
            last: Mutex::default(),
        }
    }

    pub(crate) fn root(&self) -> &Root {
        &self.root
    }

    /// Begins another snapshot of `root`: returns what is known, and keeps from now on what the next one has
    /// to know. Until [`Since::taken`] there is no last snapshot.
    pub(super) fn begin(&self, root: &Root, (rules, bounds): (Digest, Bounds)) -> Option<Known> {
        let fits = self.fits(root, rules);
        let last = self.last().take().filter(|last| last.bounds == bounds);
        match (last, self.watch.renew()) {
            (Some(last), Dirt::Paths(dirt)) if fits => Some((last.tree, dirt)),
            _ => None,
        }
    }

    /// Says that the snapshot that was begun is there.
    pub(super) fn taken(&self, root: &Root, (rules, bounds): (Digest, Bounds), tree: Digest) {
        if self.fits(root, rules) {
            *self.last() = Some(Last { tree, bounds });
        }
    }

    fn fits(&self, root: &Root, rules: Digest) -> bool {
        self.root.is(root) && self.rules == Some(rules)
    }

    fn last(&self) -> MutexGuard<'_, Option<Last>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns by what rules are known to be the same.
pub(super) fn digest(lists: &Lists) -> Result<Digest, postcard::Error> {
    Ok(Digest::of(&postcard::to_stdvec(lists)?))
}

#[cfg(test)]
pub(super) mod tests;
