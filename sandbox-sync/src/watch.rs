//! What may have changed since the last look.
//!
//! Where a watch can vouch for a root, a cycle reads again only what the watch calls [`Dirt`], and costs as
//! much as there are changes. It vouches by its construction, not by hope: on Linux the scan itself sets the
//! watch of a folder *before* it reads the folder's names, so whatever the names do not show yet makes an
//! event (`S23`). Whatever shakes that makes everything dirty, and the next cycle reads the whole root
//! (`I7`): an overflow of the kernel's queue (`S22`), a watch that could not be set or was lost, an event
//! that says nothing or comes from an unknown folder, a file system that is not known to be local.
//!
//! ```text
//!  kernel ── events ──→ Dirt ──→ scan: reads names and folders anew, sets watches first
//!               └─ hint ──→ the session's task, which lets changes settle
//! ```
//!
//! Some changes make no event at all: those of another machine on a network file system, through another
//! hard link outside the root, through a shared mapping until it is let go. So every root is still read
//! whole from time to time.
//!
//! Beside what the next cycle has to look at, the watch keeps what the next snapshot has to look at: the same
//! events, since the last one ([`Watch::renew`]). It begins with what no scan had looked at by then, since the
//! folders in it may not be watched, keeps what whole scans find without an event, and never leaves out what
//! lies in a folder that could not be read. Elsewhere than on Linux events are only hints, and every cycle reads everything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::path::RelPath;

mod dirt;
#[cfg(not(target_os = "linux"))]
mod hints;
#[cfg(target_os = "linux")]
mod inotify;

pub(crate) use dirt::{Depth, Dirt};
#[cfg(not(target_os = "linux"))]
use hints::Events;
#[cfg(target_os = "linux")]
use inotify::Events;

/// How often to look where nothing vouches for a root.
pub(crate) const WITHOUT_WATCH: Duration = Duration::from_secs(2);

/// A running watch of one root; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Watch {
    events: Option<Events>,
    changed: Arc<Notify>,
    /// Somebody wants to be told soon.
    wanted: bool,
}

impl Watch {
    /// Watches `root`; what cannot be watched is told once and replaced by looking more often.
    #[cfg(unix)]
    pub(crate) fn start(root: &crate::root::Root) -> Self {
        let changed = Arc::new(Notify::new());
        let events = Events::start(root, changed.clone()).inspect_err(|error| {
            tracing::warn!(%error, "cannot watch the workspace; looking every few seconds instead");
        });
        Self {
            events: events.ok(),
            changed,
            wanted: true,
        }
    }

    /// Watches nothing, so every cycle looks at everything.
    pub(crate) fn nothing() -> Self {
        Self {
            events: None,
            changed: Arc::default(),
            wanted: false,
        }
    }

    /// Waits for a hint; one that came before is not lost.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Returns `interval`, shortened where nothing vouches for the root.
    pub(crate) fn interval(&self, interval: Duration) -> Duration {
        match &self.events {
            Some(events) if events.vouch() => interval,
            None if !self.wanted => interval,
            _ => interval.min(WITHOUT_WATCH),
        }
    }

    /// Returns what may have changed until now and was not returned before; the caller looks at all of it,
    /// or says that it could not with [`Watch::lose`].
    pub(crate) fn take(&self) -> Dirt {
        self.events.as_ref().map_or(Dirt::Everything, Events::take)
    }

    /// Returns what may have changed since the last call, `Everything` at first and where that is not known,
    /// and begins anew with what no scan has looked at yet: a folder in it may not be watched.
    pub(crate) fn renew(&self) -> Dirt {
        self.events.as_ref().map_or(Dirt::Everything, Events::renew)
    }

    /// Calls paths dirty for [`Watch::renew`] that changed without an event.
    pub(crate) fn found(&self, paths: &[RelPath]) {
        if let Some(events) = &self.events {
            events.found(paths);
        }
    }

    /// Notes that a folder could not be read, and is not watched for all that anybody knows.
    pub(crate) fn shun(&self, path: &RelPath) {
        if let Some(events) = &self.events {
            events.shun(path);
        }
    }

    /// Holds paths as `tree` holds them.
    pub(crate) fn share(&self, tree: &crate::tree::Tree) {
        if let Some(events) = &self.events {
            events.share(tree);
        }
    }

    /// Calls a path dirty that we are about to change.
    pub(crate) fn mark(&self, path: &RelPath) {
        if let Some(events) = &self.events {
            events.mark(path);
        }
    }

    /// Calls dirty again what was taken and is left for the next look, and hints at it.
    pub(crate) fn put_back(&self, paths: BTreeMap<RelPath, Depth>) {
        if let Some(events) = &self.events
            && !paths.is_empty()
        {
            events.put_back(paths);
            self.changed.notify_one();
        }
    }

    /// Makes everything dirty: what was dirty was not looked at.
    pub(crate) fn lose(&self) {
        if let Some(events) = &self.events {
            events.lose();
        }
    }

    /// Watches an open folder; to be called before its names are read.
    #[cfg(unix)]
    pub(crate) fn add(&self, folder: &std::os::fd::OwnedFd, path: Option<&RelPath>) {
        if let Some(events) = &self.events {
            events.add(folder, path);
        }
    }

    /// Lets go of a folder that is none any more, and of everything beneath it.
    pub(crate) fn forget(&self, path: &RelPath) {
        if let Some(events) = &self.events {
            events.forget(path);
        }
    }
}
