//! An open workspace: synchronizes by itself until it is stopped.
//!
//! A task owns both ends and does one thing at a time: it waits for an order, a hint from either side, or
//! the time of the next look, lets changes settle, and runs a cycle. Handles only send it orders, so
//! dropping one of their futures never interrupts a cycle.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use sandbox_base::{BoxStream, ErrorKind};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::error::Error;
use crate::options::Options;
use crate::report::{Event, Report, Standing};
use crate::review::{Changes, Outcome};
use crate::safety::Resolution;

/// How many events a slow subscriber may lag behind before it misses some.
const EVENTS: usize = 256;

/// What a handle asks of the task about what waits.
#[derive(Debug)]
pub(crate) enum ReviewOrder {
    Changes(oneshot::Sender<Result<Changes, Error>>),
    Apply(Changes, oneshot::Sender<Result<Outcome, Error>>),
    Discard(Changes, oneshot::Sender<Result<Outcome, Error>>),
    Undo(oneshot::Sender<Result<Outcome, Error>>),
}

/// What a handle asks of the task.
#[derive(Debug)]
pub(crate) enum Order {
    Flush(oneshot::Sender<Result<Report, Error>>),
    Resume(Resolution, oneshot::Sender<Result<Report, Error>>),
    Stop(oneshot::Sender<Result<Report, Error>>),
    Pause(bool, oneshot::Sender<Result<(), Error>>),
    Review(ReviewOrder),
    #[cfg(unix)]
    Alone(Alone),
}

/// Work on the host's root that no cycle comes between; it answers by itself.
#[cfg(unix)]
pub(crate) struct Alone {
    pub(crate) work: Box<Work>,
    /// Whether it writes to the root.
    pub(crate) writes: bool,
}

#[cfg(unix)]
type Work = dyn FnOnce(Result<&crate::snapshot::Since, Error>) + Send;

#[cfg(unix)]
impl std::fmt::Debug for Alone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Alone")
    }
}

/// An open workspace. Dropping it ends the session after the cycle that is running, if any;
/// [`Session::stop`] runs a last one first.
#[derive(Debug)]
pub struct Session {
    orders: mpsc::Sender<Order>,
    events: broadcast::Sender<Event>,
    standing: Arc<Mutex<Standing>>,
    initial: Report,
    task: JoinHandle<()>,
}

impl Session {
    /// Opens `root` against the guest at the other end of `stream` and brings the two into agreement.
    ///
    /// A session that writes to `root` by itself (two ways, or output paths) locks it against a second one of that
    /// kind, until it ends. Any number of others work beside it: what they apply is to it as if a person had done it.
    /// Needs a Tokio runtime with time. Dropping the future ends the session; files are old or new then, and the next
    /// session goes on.
    ///
    /// # Errors
    ///
    /// `NotFound` or `PermissionDenied` for the root; `Conflict` when another session has locked it or when a
    /// safety stop asks for a decision (nothing was written then; start again with
    /// [`Options::with_resolution`]); `Protocol`, `Disconnected` or `TimedOut` for the guest; `Unsupported`
    /// on hosts that are not Unix and for a guest of another version.
    pub async fn start(root: &Path, stream: BoxStream, options: Options) -> Result<Self, Error> {
        let (orders, queue) = mpsc::channel(8);
        let (events, _) = broadcast::channel(EVENTS);
        let standing = Arc::new(Mutex::new(Standing::default()));
        #[cfg(unix)]
        let (initial, task) = crate::driver::start(
            root,
            stream,
            options,
            (queue, events.clone(), standing.clone()),
        )
        .await?;
        #[cfg(not(unix))]
        let (initial, task) = unsupported(root, stream, options, queue)?;
        Ok(Self {
            orders,
            events,
            standing,
            initial,
            task,
        })
    }

    /// Returns what the first cycle did.
    #[must_use]
    pub fn initial(&self) -> &Report {
        &self.initial
    }

    /// Returns how the session stands, without asking anything.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let standing = self.standing.lock();
        standing.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops synchronizing until it is told to go on; a cycle that runs is not interrupted. Meanwhile
    /// [`Session::flush`] is refused, also the last one of [`Session::stop`]; a review is not.
    ///
    /// # Errors
    ///
    /// `Disconnected` when the session is over.
    pub async fn set_paused(&self, paused: bool) -> Result<(), Error> {
        self.ask(|answer| Order::Pause(paused, answer)).await
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

    /// Runs a full cycle and lists what the guest did that the host has not taken over: everything in the
    /// mode [`Review`](crate::Mode::Review), in the others what is held and where both sides changed a path.
    ///
    /// Dropping the future does not interrupt it.
    ///
    /// # Errors
    ///
    /// As [`Session::flush`].
    pub async fn changes(&self) -> Result<Changes, Error> {
        let order = |answer| Order::Review(ReviewOrder::Changes(answer));
        self.ask(order).await
    }

    /// Makes the host's folder what was chosen, as one transaction: all of it or, with the reasons in the
    /// [`Outcome`], nothing. What is written is what was shown: a path that has changed since, on either
    /// side, is a reason. [`Session::undo`] takes it back.
    ///
    /// A process that dies meanwhile leaves it to the next session to take back what it has done. Dropping
    /// the future does not interrupt it.
    ///
    /// # Errors
    ///
    /// `Invalid` without [`Options::with_undo`]; `Unsupported` for a read-only workspace, and for single
    /// hunks of what flows by itself; `Conflict` for a safety stop; and what the host's file system or the
    /// guest answer.
    pub async fn apply(&self, chosen: &Changes) -> Result<Outcome, Error> {
        let chosen = chosen.clone();
        let order = |answer| Order::Review(ReviewOrder::Apply(chosen, answer));
        self.ask(order).await
    }

    /// Makes the guest's copy what the host has where it was chosen; what the guest did there is gone. A path
    /// that has changed since it was shown is left alone and told.
    ///
    /// # Errors
    ///
    /// `Unsupported` for single hunks; else as [`Session::flush`].
    pub async fn discard(&self, chosen: &Changes) -> Result<Outcome, Error> {
        let chosen = chosen.clone();
        let order = |answer| Order::Review(ReviewOrder::Discard(chosen, answer));
        self.ask(order).await
    }

    /// Takes the last [`Session::apply`] back, also one of an earlier session: the host's folder is what it
    /// was, and what had been applied waits again. Refused as a whole where the host has changed one of the
    /// paths since; what changes at that very moment stays and is told.
    ///
    /// # Errors
    ///
    /// `NotFound` where there is none, or it was taken back already; else as [`Session::apply`].
    pub async fn undo(&self) -> Result<Outcome, Error> {
        let order = |answer| Order::Review(ReviewOrder::Undo(answer));
        self.ask(order).await
    }

    /// Takes a [snapshot](crate::snapshot) of the host's folder between two cycles; without a name, an
    /// automatic one.
    ///
    /// From the second one on, with the same lists as the session's own, only what the watch saw change since
    /// the last is looked at; what changes without an event is found as by a cycle, see
    /// [`Options::with_timing`].
    ///
    /// Dropping the future does not interrupt it.
    ///
    /// # Errors
    ///
    /// As [`Space::snapshot`](crate::snapshot::Space::snapshot); `Disconnected` when the session is over.
    #[cfg(unix)]
    pub async fn snapshot(
        &self,
        space: &crate::snapshot::Space,
        name: Option<&str>,
        options: crate::snapshot::Options,
    ) -> Result<crate::snapshot::Taken, Error> {
        let (space, name) = (space.clone(), name.map(str::to_owned));
        self.alone(false, move |since| {
            let since = since?;
            let root = since.root().path();
            space.snapshot_since((root, Some(since)), name.as_deref(), &options)
        })
        .await
    }

    /// Makes the host's folder what a snapshot has, between two cycles; see
    /// [`Space::restore`](crate::snapshot::Space::restore). A cycle follows, which takes it to the guest; what
    /// the guest changed meanwhile is a conflict then, and a mass deletion asks first.
    ///
    /// Dropping the future does not interrupt it.
    ///
    /// # Errors
    ///
    /// `Unsupported` where the session never writes to the host; else as
    /// [`Space::restore`](crate::snapshot::Space::restore); `Disconnected` when the session is over.
    #[cfg(unix)]
    pub async fn restore(
        &self,
        space: &crate::snapshot::Space,
        (name, patterns): (&str, &[String]),
        options: crate::snapshot::Options,
    ) -> Result<crate::snapshot::Restored, Error> {
        let (space, name, patterns) = (space.clone(), name.to_owned(), patterns.to_vec());
        self.alone(true, move |since| {
            let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
            let since = since?;
            let place = (since.root(), Some(since));
            space.restore_locked(place, (&name, &patterns), &options)
        })
        .await
    }

    #[cfg(unix)]
    async fn alone<T: Send + 'static>(
        &self,
        writes: bool,
        work: impl FnOnce(Result<&crate::snapshot::Since, Error>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.ask(|answer| {
            // Whoever asked may have gone away.
            let work =
                move |since: Result<&crate::snapshot::Since, Error>| drop(answer.send(work(since)));
            let work = Box::new(work);
            Order::Alone(Alone { work, writes })
        })
        .await
    }

    async fn ask<T>(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Order,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        let gone = || Error::disconnected("ask the session");
        self.orders.send(order(answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
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

    /// Ends the session without another cycle, for whoever shares it, and waits until the root is free for another
    /// session. Cancel safe.
    pub async fn close(&self) {
        const STEP: std::time::Duration = std::time::Duration::from_millis(2);
        // What ended already needs no order.
        drop(self.set_paused(true).await);
        drop(self.order(Order::Stop).await);
        while !self.task.is_finished() {
            tokio::time::sleep(STEP).await;
        }
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
