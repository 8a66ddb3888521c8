//! Hints that something changed; nothing depends on them but latency.
//!
//! Events are neither complete nor exact (`I7`): a tree that is copied into a watched one loses many of
//! them, queues overflow, debouncers drop the flag that says so. So an event says one thing, "look again",
//! and looking means a scan of the whole root, in which new folders and everything else is found. A watch
//! that cannot be set up is reported once and replaced by looking more often.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Config, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use crate::rules::STAGING_PREFIX;

/// How often to look where nothing can be watched.
pub(crate) const WITHOUT_WATCH: Duration = Duration::from_secs(2);

/// A running watch of one root; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Watch {
    watcher: Option<RecommendedWatcher>,
    dirty: Arc<Notify>,
}

impl Watch {
    /// Watches `root` and everything beneath it. Blocks while the watches are set up.
    pub(crate) fn start(root: &Path) -> Self {
        let dirty = Arc::new(Notify::new());
        let hint = dirty.clone();
        let on_event = move |event: notify::Result<Event>| {
            if event.as_ref().map_or(true, is_change) {
                hint.notify_one();
            }
        };
        // A link in the tree may lead anywhere, to the root of the file system for one.
        let config = Config::default().with_follow_symlinks(false);
        let watcher = RecommendedWatcher::new(on_event, config)
        .and_then(|mut watcher| {
            watcher.watch(root, RecursiveMode::Recursive)?;
            Ok(watcher)
        })
        .inspect_err(|error| {
            tracing::warn!(%error, "cannot watch the workspace; looking every few seconds instead");
        })
        .ok();
        Self { watcher, dirty }
    }

    /// Waits for a hint; one that came before is not lost.
    pub(crate) async fn changed(&self) {
        self.dirty.notified().await;
    }

    /// Returns `interval`, shortened where nothing is watched.
    pub(crate) fn interval(&self, interval: Duration) -> Duration {
        match self.watcher {
            Some(_) => interval,
            None => interval.min(WITHOUT_WATCH),
        }
    }
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
