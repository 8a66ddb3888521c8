//! Sandboxes that are ready before anybody asks for them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sandbox_base::{Error, ErrorKind};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::builder::SandboxBuilder;
use crate::lifecycle::State;
use crate::sandbox::Sandbox;

/// How long to wait after the first failure; twice as long after each further one.
const FIRST_BREATH: Duration = Duration::from_millis(500);

/// The longest wait.
const LONGEST_BREATH: Duration = Duration::from_secs(30);

/// How many sandboxes a pool keeps ready, at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolLimits {
    /// How many.
    pub size: usize,
    /// The memory of all of them together, in MiB, as their own limits say it.
    pub memory_mib: Option<u64>,
}

impl PoolLimits {
    /// So many sandboxes, whatever their memory.
    pub fn new(size: usize) -> Self {
        Self {
            size,
            memory_mib: None,
        }
    }

    /// Bounds their memory, in MiB.
    #[must_use]
    pub fn memory_mib(mut self, mib: u64) -> Self {
        self.memory_mib = Some(mib);
        self
    }

    /// Returns how many of that memory each there may be.
    fn count(self, each_mib: u32) -> usize {
        let by_memory = self.memory_mib.map(|mib| mib / u64::from(each_mib.max(1)));
        let by_memory = by_memory.and_then(|count| usize::try_from(count).ok());
        self.size.min(by_memory.unwrap_or(usize::MAX))
    }
}

/// Sandboxes of one kind that run before anybody asks for them: what one is to do begins at once, as in a sandbox that
/// has run for a while. Each has run a command, because the first one after a start is the slowest.
///
/// ```no_run
/// use sandbox_core::{Pool, PoolLimits, Sandbox, Workspace};
///
/// # async fn example() -> Result<(), sandbox_core::Error> {
/// let pool = Pool::start(Sandbox::builder(), PoolLimits::new(4).memory_mib(8192))?;
/// let sandbox = pool.take().await?;
/// sandbox.add_workspace(Workspace::sync("/home/me/project")).await?;
/// # Ok(())
/// # }
/// ```
///
/// What is taken is made up for in the background, one after the other. Dropping the pool removes the sandboxes
/// that nobody has taken; those that were taken go with their own handles.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    filling: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    builder: SandboxBuilder,
    wanted: usize,
    ready: Mutex<VecDeque<Sandbox>>,
    standing: watch::Sender<Standing>,
}

/// What a pool has come to.
#[derive(Debug, Clone, Default)]
struct Standing {
    ready: usize,
    /// Why the last sandbox could not be made.
    failed: Option<(ErrorKind, String)>,
}

impl Pool {
    /// Begins to make sandboxes as `builder` says, with names that are made up. Needs a Tokio runtime.
    ///
    /// # Errors
    ///
    /// `Invalid` for a builder that names its sandbox, that makes detached ones (which would outlive the pool), or with a
    /// workspace that is synchronized two ways, which only one sandbox can have: [`Sandbox::add_workspace`] adds it.
    pub fn start(builder: SandboxBuilder, limits: PoolLimits) -> Result<Self, Error> {
        builder.check_for_many().map_err(|detail| {
            Error::new(ErrorKind::Invalid, "start a pool of sandboxes").with_detail(detail)
        })?;
        let shared = Arc::new(Shared {
            wanted: limits.count(builder.memory_mib()),
            builder,
            ready: Mutex::default(),
            standing: watch::Sender::default(),
        });
        let filling = tokio::spawn(shared.clone().fill());
        Ok(Self { shared, filling })
    }

    /// Returns how many are ready.
    pub fn ready(&self) -> usize {
        self.shared.ready().len()
    }

    /// Waits until as many are ready as the limits allow. Cancel safe.
    ///
    /// # Errors
    ///
    /// Why the last one could not be made; the pool goes on trying.
    pub async fn filled(&self) -> Result<(), Error> {
        let mut standing = self.shared.standing.subscribe();
        let wanted = self.shared.wanted;
        let done = |standing: &Standing| standing.ready >= wanted || standing.failed.is_some();
        // The sender lives as long as `self`.
        let Ok(standing) = standing.wait_for(done).await else {
            return Ok(());
        };
        match &standing.failed {
            Some((kind, detail)) if standing.ready < wanted => {
                Err(Error::new(*kind, "fill a pool of sandboxes").with_detail(detail.clone()))
            }
            _ => Ok(()),
        }
    }

    /// Takes a sandbox that is ready, or makes one where none is. It belongs to the caller from then on.
    ///
    /// Dropping the future removes what it was about to return.
    ///
    /// # Errors
    ///
    /// Those of [`SandboxBuilder::create`], where none was ready.
    pub async fn take(&self) -> Result<Sandbox, Error> {
        while let Some(sandbox) = self.shared.pop() {
            // Its machine may have died meanwhile.
            match sandbox.describe().await {
                Ok(description) if description.state == State::Running => return Ok(sandbox),
                _ => drop(sandbox.remove().await),
            }
        }
        self.shared.builder.clone().create().await
    }

    /// Removes the sandboxes that nobody has taken, and waits until they are gone.
    ///
    /// # Errors
    ///
    /// The last one's of what could not be removed.
    pub async fn close(mut self) -> Result<(), Error> {
        self.filling.abort();
        // What was being made goes with the task.
        drop((&mut self.filling).await);
        let mut closed = Ok(());
        while let Some(sandbox) = self.shared.pop() {
            closed = sandbox.remove().await.and(closed);
        }
        closed
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.filling.abort();
        self.shared.ready().clear();
    }
}

impl Shared {
    fn ready(&self) -> MutexGuard<'_, VecDeque<Sandbox>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pop(&self) -> Option<Sandbox> {
        let mut ready = self.ready();
        let taken = ready.pop_front();
        self.tell(ready.len(), None);
        taken
    }

    fn push(&self, sandbox: Sandbox) {
        let mut ready = self.ready();
        ready.push_back(sandbox);
        self.tell(ready.len(), None);
    }

    fn tell(&self, ready: usize, failed: Option<&Error>) {
        let failed = failed.map(|error| (error.kind(), error.to_string()));
        self.standing.send_replace(Standing { ready, failed });
    }

    /// Makes sandboxes for as long as there are too few.
    async fn fill(self: Arc<Self>) {
        let mut standing = self.standing.subscribe();
        let mut breath = FIRST_BREATH;
        loop {
            let few = |standing: &Standing| standing.ready < self.wanted;
            if standing.wait_for(few).await.is_err() {
                return;
            }
            match self.make().await {
                Ok(sandbox) => {
                    breath = FIRST_BREATH;
                    self.push(sandbox);
                }
                Err(error) => {
                    tracing::warn!(%error, "a sandbox of a pool could not be made");
                    let count = self.ready().len();
                    self.tell(count, Some(&error));
                    tokio::time::sleep(breath).await;
                    breath = (breath * 2).min(LONGEST_BREATH);
                }
            }
        }
    }

    async fn make(&self) -> Result<Sandbox, Error> {
        let sandbox = self.builder.clone().create().await?;
        // An image may have no such program: the way there is the same.
        drop(sandbox.command("true").status().await);
        Ok(sandbox)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_limits_hold() {
        let limits = PoolLimits::new(4);
        assert_eq!(limits.count(1024), 4);
        assert_eq!(limits.memory_mib(2500).count(1024), 2);
        assert_eq!(limits.memory_mib(100).count(1024), 0);
        assert_eq!(limits.memory_mib(1 << 40).count(1024), 4);
    }
}
