//! The seam: what somebody who runs sandboxes needs from a synchronizer.

use std::fmt::Debug;
use std::path::Path;

use async_trait::async_trait;
use sandbox_base::BoxStream;
use tokio::sync::broadcast;

use crate::error::Error;
use crate::options::Options;
use crate::report::{Event, Report};
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

    /// Runs a last cycle and ends the session, which is over afterwards even if that fails.
    ///
    /// # Errors
    ///
    /// As [`Session::flush`].
    async fn stop(self: Box<Self>) -> Result<Report, Error>;
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

    async fn stop(self: Box<Self>) -> Result<Report, Error> {
        Self::stop(*self).await
    }
}
