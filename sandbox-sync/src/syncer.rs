//! The seam: what somebody who runs sandboxes needs from a synchronizer.

use std::fmt::Debug;
use std::path::Path;

use async_trait::async_trait;
use sandbox_base::BoxStream;
use tokio::sync::broadcast;

use crate::error::Error;
use crate::options::Options;
use crate::report::{Event, Report};
use crate::review::{Changes, Outcome};
use crate::safety::Resolution;
use crate::session::Session;

/// Opens workspaces.
#[async_trait]
pub trait Syncer: Debug + Send + Sync + 'static {
    /// Opens the host's folder `root` against the guest's half at the other end of `stream`, and brings the
    /// two into agreement before it returns.
    ///
    /// Opening the same root again after the session ended goes on where it was. Dropping the future ends
    /// the session; each file is old or new then.
    ///
    /// # Errors
    ///
    /// As [`Session::start`].
    async fn open(
        &self,
        root: &Path,
        stream: BoxStream,
        options: Options,
    ) -> Result<Box<dyn Workspace>, Error>;
}

/// An open workspace, which synchronizes by itself until it is stopped or dropped.
#[async_trait]
pub trait Workspace: Debug + Send + Sync + 'static {
    /// Returns what the first cycle did.
    fn initial(&self) -> &Report;

    /// Runs a full cycle now, see [`Session::flush`]. Dropping the future does not interrupt it.
    ///
    /// # Errors
    ///
    /// As [`Session::flush`].
    async fn flush(&self) -> Result<Report, Error>;

    /// Answers a safety stop, see [`Session::resume`]. Dropping the future does not interrupt the cycle.
    ///
    /// # Errors
    ///
    /// As [`Session::flush`].
    async fn resume(&self, resolution: Resolution) -> Result<Report, Error>;

    /// Returns a new stream of what happens from now on.
    fn events(&self) -> broadcast::Receiver<Event>;

    /// Returns how what waits is looked at and decided, where the syncer can hold something back.
    fn review(&self) -> Option<&dyn Review>;

    /// Runs a last cycle and ends the session, which is over afterwards even if that fails.
    ///
    /// # Errors
    ///
    /// As [`Session::flush`].
    async fn stop(self: Box<Self>) -> Result<Report, Error>;
}

/// What waits in the guest: see the [module](crate::review). Dropping a future does not interrupt the work.
#[async_trait]
pub trait Review: Debug + Send + Sync + 'static {
    /// Lists what waits, see [`Session::changes`].
    ///
    /// # Errors
    ///
    /// As [`Session::changes`].
    async fn changes(&self) -> Result<Changes, Error>;

    /// Makes the host's folder what was chosen, see [`Session::apply`].
    ///
    /// # Errors
    ///
    /// As [`Session::apply`].
    async fn apply(&self, chosen: &Changes) -> Result<Outcome, Error>;

    /// Makes the guest's copy what the host has, see [`Session::discard`].
    ///
    /// # Errors
    ///
    /// As [`Session::discard`].
    async fn discard(&self, chosen: &Changes) -> Result<Outcome, Error>;

    /// Takes the last apply back, see [`Session::undo`].
    ///
    /// # Errors
    ///
    /// As [`Session::undo`].
    async fn undo(&self) -> Result<Outcome, Error>;
}

/// The two-way synchronizer of this crate.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct TwoWay;

impl TwoWay {
    /// Returns the synchronizer; it has no state of its own.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

#[async_trait]
impl Syncer for TwoWay {
    async fn open(
        &self,
        root: &Path,
        stream: BoxStream,
        options: Options,
    ) -> Result<Box<dyn Workspace>, Error> {
        Ok(Box::new(Session::start(root, stream, options).await?))
    }
}

#[async_trait]
impl Workspace for Session {
    fn initial(&self) -> &Report {
        Self::initial(self)
    }

    async fn flush(&self) -> Result<Report, Error> {
        Self::flush(self).await
    }

    async fn resume(&self, resolution: Resolution) -> Result<Report, Error> {
        Self::resume(self, resolution).await
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        Self::events(self)
    }

    fn review(&self) -> Option<&dyn Review> {
        Some(self)
    }

    async fn stop(self: Box<Self>) -> Result<Report, Error> {
        Self::stop(*self).await
    }
}

#[async_trait]
impl Review for Session {
    async fn changes(&self) -> Result<Changes, Error> {
        Self::changes(self).await
    }

    async fn apply(&self, chosen: &Changes) -> Result<Outcome, Error> {
        Self::apply(self, chosen).await
    }

    async fn discard(&self, chosen: &Changes) -> Result<Outcome, Error> {
        Self::discard(self, chosen).await
    }

    async fn undo(&self) -> Result<Outcome, Error> {
        Self::undo(self).await
    }
}
