//! Events of `notify`, where only hints are to be had: they tell when to look, not where.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use notify::event::{AccessKind, AccessMode};
use notify::{Config, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use super::{Depth, Dirt};
use crate::path::RelPath;
use crate::rules::STAGING_PREFIX;

/// A running watcher.
#[derive(Debug)]
pub(super) struct Events {
    _watcher: RecommendedWatcher,
}

impl Events {
    /// Watches the root and everything beneath it. Blocks while the watches are set up.
    #[cfg(unix)]
    pub(super) fn start(root: &crate::root::Root, changed: Arc<Notify>) -> io::Result<Self> {
        let on_event = move |event: notify::Result<Event>| {
            if event.as_ref().map_or(true, is_change) {
                changed.notify_one();
            }
        };
        // A link in the tree may lead anywhere, to the root of the file system for one.
        let config = Config::default().with_follow_symlinks(false);
        let mut watcher = RecommendedWatcher::new(on_event, config).map_err(io::Error::other)?;
        let watched = watcher.watch(root.path(), RecursiveMode::Recursive);
        watched.map_err(io::Error::other)?;
        Ok(Self { _watcher: watcher })
    }

    #[allow(clippy::unused_self, reason = "the same shape as on Linux")]
    pub(super) fn vouch(&self) -> bool {
        // Hints are enough to look no more often than asked for.
        true
    }

    #[allow(clippy::unused_self, reason = "the same shape as on Linux")]
    pub(super) fn take(&self) -> Dirt {
        Dirt::Everything
    }

    #[allow(clippy::unused_self, reason = "the same shape as on Linux")]
    pub(super) fn renew(&self) -> Dirt {
        Dirt::Everything
    }

    #[allow(clippy::unused_self, reason = "the same shape as on Linux")]
    pub(super) fn found(&self, _: &[RelPath]) {}

    #[allow(clippy::unused_self, reason = "the same shape as on Linux")]
    pub(super) fn share(&self, _: &crate::tree::Tree) {}

    #[allow(clippy::unused_self, reason = "the same shape as on Linux")]
    pub(super) fn shun(&self, _: &RelPath) {}

    #[allow(clippy::unused_self, reason = "the same shape as on Linux")]
    pub(super) fn mark(&self, _: &RelPath) {}

    #[allow(clippy::unused_self, reason = "the same shape as on Linux")]
    pub(super) fn put_back(&self, _: BTreeMap<RelPath, Depth>) {}

    #[allow(clippy::unused_self, reason = "the same shape as on Linux")]
    pub(super) fn lose(&self) {}

    #[cfg(unix)]
    #[allow(clippy::unused_self, reason = "the same shape as on Linux")]
    pub(super) fn add(&self, _: &std::os::fd::OwnedFd, _: Option<&RelPath>) {}

    #[allow(clippy::unused_self, reason = "the same shape as on Linux")]
    pub(super) fn forget(&self, _: &RelPath) {}
}

/// Tells reading, which our own scans do all the time, from changing.
fn is_change(event: &Event) -> bool {
    let reads = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
        EventKind::Access(_) => true,
        _ => false,
    };
    let staging = |path: &std::path::PathBuf| {
        path.components().any(|name| {
            name.as_os_str()
                .as_encoded_bytes()
                .starts_with(STAGING_PREFIX.as_bytes())
        })
    };
    let ours = !event.paths.is_empty() && event.paths.iter().all(staging);
    event.need_rescan() || !(reads || ours)
}
