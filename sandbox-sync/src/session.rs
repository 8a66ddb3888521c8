//! An open workspace: synchronizes by itself until it is stopped.
//!
//! A task owns both ends and does one thing at a time: it waits for an order, a hint from either side, or
//! the time of the next look, lets changes settle, and runs a cycle. Handles only send it orders, so
//! dropping one of their futures never interrupts a cycle.

use std::path::Path;

use sandbox_base::{BoxStream, ErrorKind};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::error::Error;
use crate::options::Options;
use crate::report::{Event, Report};
use crate::safety::Resolution;

/// How many events a slow subscriber may lag behind before it misses some.
const EVENTS: usize = 256;

/// What a handle asks of the task.
#[derive(Debug)]
pub(crate) enum Order {
    Flush(oneshot::Sender<Result<Report, Error>>),
    Resume(Resolution, oneshot::Sender<Result<Report, Error>>),
    Stop(oneshot::Sender<Result<Report, Error>>),
}

/// An open workspace. Dropping it ends the session after the cycle that is running, if any;
/// [`Session::stop`] runs a last one first.
#[derive(Debug)]
pub struct Session {
    orders: mpsc::Sender<Order>,
    events: broadcast::Sender<Event>,
    initial: Report,
    task: JoinHandle<()>,
}

impl Session {
    /// Opens `root` against the guest at the other end of `stream` and brings the two into agreement.
    ///
    /// `root` is locked against a second session that writes to it, until the session ends. Needs a Tokio
    /// runtime with time. Dropping the future ends the session; files are old or new then, and the next
    /// session goes on.
    ///
    /// # Errors
    ///
    /// `NotFound` or `PermissionDenied` for the root; `Conflict` when another session holds it or when a
    /// safety stop asks for a decision (nothing was written then; start again with
    /// [`Options::with_resolution`]); `Protocol`, `Disconnected` or `TimedOut` for the guest; `Unsupported`
    /// on hosts that are not Unix and for a guest of another version.
    pub async fn start(root: &Path, stream: BoxStream, options: Options) -> Result<Self, Error> {
        let (orders, queue) = mpsc::channel(8);
        let (events, _) = broadcast::channel(EVENTS);
        #[cfg(unix)]
        let (initial, task) =
            crate::driver::start(root, stream, options, (queue, events.clone())).await?;
        #[cfg(not(unix))]
        let (initial, task) = unsupported(root, stream, options, queue)?;
        Ok(Self {
            orders,
            events,
            initial,
            task,
        })
    }

    /// Returns what the first cycle did.
    #[must_use]
    pub fn initial(&self) -> &Report {
        &self.initial
    }

    /// Runs a full cycle now: what was changed on either side before the call is on the other side
    /// afterwards, or in the report.
    ///
    /// Dropping the future does not interrupt the cycle.
    ///
    /// # Errors
    ///
    /// `Conflict` when a safety stop asks for a decision (nothing was written; see [`Session::resume`]),
    /// `Disconnected` when the session is over, and what the host's file system or the guest answer.
    pub async fn flush(&self) -> Result<Report, Error> {
        self.order(Order::Flush).await
    }

    /// Answers a safety stop and runs a full cycle with that answer.
    ///
    /// Without a stop it is [`Session::flush`] with the answer given in advance: `Propagate` lets any
    /// deletion pass, `Restore` brings back everything that one side deleted since the last cycle.
    ///
    /// # Errors
    ///
    /// As [`Session::flush`].
    pub async fn resume(&self, resolution: Resolution) -> Result<Report, Error> {
        self.order(|answer| Order::Resume(resolution, answer)).await
    }

    /// Returns a new stream of what happens from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Runs a last cycle and ends the session; the stream to the guest is closed either way, and the root
    /// is free for another session.
    ///
    /// # Errors
    ///
    /// As [`Session::flush`].
    pub async fn stop(self) -> Result<Report, Error> {
        let report = self.order(Order::Stop).await;
        let ended = self.task.await.map_err(std::io::Error::other);
        ended.map_err(|error| Error::io("end the session", error))?;
        report
    }

    async fn order(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<Report, Error>>) -> Order,
    ) -> Result<Report, Error> {
        let (answer, answered) = oneshot::channel();
        let gone = || Error::disconnected("synchronize");
        self.orders.send(order(answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

#[cfg(not(unix))]
fn unsupported(
    root: &Path,
    _stream: BoxStream,
    _options: Options,
    _queue: mpsc::Receiver<Order>,
) -> Result<(Report, JoinHandle<()>), Error> {
    let detail = format!(
        "{}: folders are reached only on Unix so far",
        root.display()
    );
    Err(Error::new(
        ErrorKind::Unsupported,
        "open the workspace",
        detail,
    ))
}

/// Makes the error that asks.
pub(crate) fn halted(halt: &crate::safety::Halt) -> Error {
    Error::new(ErrorKind::Conflict, "synchronize", halt.to_string())
}
