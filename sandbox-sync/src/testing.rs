//! A syncer that synchronizes nothing, for tests of what uses one.
//!
//! It remembers what it was asked and answers with empty reports; the stream is dropped at once. An
//! embedder's tests see whether workspaces are opened, flushed and stopped when they should be.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use sandbox_base::BoxStream;
use tokio::sync::broadcast;

use crate::error::Error;
use crate::options::Options;
use crate::report::{Event, Report};
use crate::safety::Resolution;
use crate::syncer::{Review, Syncer, Workspace};

/// What a [`FakeSyncer`] was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Call {
    /// A workspace was opened on this folder.
    Open(PathBuf),
    /// A cycle was asked for.
    Flush,
    /// A safety stop was answered.
    Resume(Resolution),
    /// The workspace was stopped.
    Stop,
}

/// A syncer that synchronizes nothing and remembers what it was asked.
#[derive(Debug, Clone, Default)]
pub struct FakeSyncer {
    calls: Arc<Mutex<Vec<Call>>>,
}

impl FakeSyncer {
    /// Returns one that has not been asked anything.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns what it and its workspaces were asked so far, in order.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.calls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn note(&self, call: Call) {
        self.calls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(call);
    }
}

#[async_trait]
impl Syncer for FakeSyncer {
    async fn open(
        &self,
        root: &Path,
        _stream: BoxStream,
        _options: Options,
    ) -> Result<Box<dyn Workspace>, Error> {
        self.note(Call::Open(root.to_owned()));
        let (events, _) = broadcast::channel(1);
        let (syncer, report) = (self.clone(), Report::default());
        Ok(Box::new(FakeWorkspace {
            syncer,
            events,
            report,
        }))
    }
}

#[derive(Debug)]
struct FakeWorkspace {
    syncer: FakeSyncer,
    events: broadcast::Sender<Event>,
    report: Report,
}

#[async_trait]
impl Workspace for FakeWorkspace {
    fn initial(&self) -> &Report {
        &self.report
    }

    async fn flush(&self) -> Result<Report, Error> {
        self.syncer.note(Call::Flush);
        Ok(Report::default())
    }

    async fn resume(&self, resolution: Resolution) -> Result<Report, Error> {
        self.syncer.note(Call::Resume(resolution));
        Ok(Report::default())
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    fn review(&self) -> Option<&dyn Review> {
        None
    }

    async fn stop(self: Box<Self>) -> Result<Report, Error> {
        self.syncer.note(Call::Stop);
        Ok(Report::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_remembers_what_it_was_asked() {
        let syncer = FakeSyncer::new();
        let (stream, _) = tokio::io::duplex(1);
        let root = Path::new("/w");
        let workspace = syncer
            .open(root, Box::new(stream), Options::default())
            .await
            .unwrap();
        assert!(workspace.flush().await.unwrap().is_quiet());
        assert!(workspace.stop().await.unwrap().is_quiet());
        assert_eq!(
            syncer.calls(),
            [Call::Open(root.into()), Call::Flush, Call::Stop]
        );
    }
}
