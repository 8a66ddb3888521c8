//! The task behind a [`Session`](crate::Session).

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use sandbox_base::{BoxStream, ErrorKind};
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::base::Base;
use crate::cycle::{Engine, Failure, Outcome};
use crate::error::Error;
use crate::options::Options;
use crate::peer::Peer;
use crate::probe::probe;
use crate::protocol::{self, Hello};
use crate::replica::{Replica, Setup, Worker};
use crate::report::{Event, Report, Standing};
use crate::root::Root;
use crate::rules::Rules;
use crate::safety::{Halt, Resolution};
use crate::scan::Bounds;
use crate::scope::Scope;
use crate::session::{Order, halted};
use crate::snapshot::Since;
use crate::stage::Staging;
use crate::watch::Watch;

type Channels = (
    mpsc::Receiver<Order>,
    broadcast::Sender<Event>,
    Arc<Mutex<Standing>>,
);

/// Hands freed memory back to the kernel.
pub(crate) async fn release() {
    let released = tokio::task::spawn_blocking(sandbox_base::memory::release).await;
    if let Err(error) = released {
        tracing::debug!(%error, "freed memory was kept");
    }
}

/// Opens both sides, runs the first cycle and leaves a task behind.
pub(crate) async fn start(
    root: &Path,
    stream: BoxStream,
    mut options: Options,
    (orders, events, standing): Channels,
) -> Result<(Report, JoinHandle<()>), Error> {
    let rules = Arc::new(Rules::new(&options.lists)?);
    let resolution = options.resolution.take();
    let (path, setup) = (root.to_owned(), options.clone());
    let opened = tokio::task::spawn_blocking(move || open(&path, &setup)).await;
    let opened =
        opened.map_err(|error| Error::io("open the workspace", std::io::Error::other(error)));
    let (root, base, watch) = opened??;
    let watch = Arc::new(watch);
    let peer = Peer::connect(stream, hello(&root, &options), options.limits).await?;
    let setup = Setup {
        rules: rules.clone(),
        bounds: bounds(&options),
        staging: options.staging.clone(),
        owner: None,
        trusts_sender: false,
    };
    let replica = Replica::new(root, setup, watch.clone());
    let place = (replica.root().clone(), watch.clone());
    let since = Arc::new(Since::new(place, &options.lists));
    let engine = Engine {
        root: replica.root().clone(),
        host: Worker::new(replica),
        peer,
        base: Worker::new(base),
        rules,
        // Who never writes to the root has nothing in its staging.
        settled: !options.writes_to_host(),
        options,
        scope: Scope::default(),
        much: false,
    };
    let mut driver = Driver {
        engine,
        watch,
        since,
        events,
        standing,
        rested: Instant::now(),
        looked: Instant::now(),
        halt: None,
        untidy: false,
    };
    driver
        .engine
        .recover()
        .await
        .map_err(|failure| failure.error)?;
    let initial = driver.cycle(resolution, true).await;
    let mut initial = initial.map_err(|failure| failure.error)?;
    initial.clip();
    let kept = Arc::new(initial.clone());
    driver.stand(|standing| standing.last = kept);
    Ok((initial, tokio::spawn(driver.run(orders))))
}

fn open(path: &Path, options: &Options) -> Result<(Root, Base, Watch), Error> {
    let root = Root::open(path).map_err(|error| Error::io("open the workspace", error))?;
    if options.locks_host() {
        root.lock().map_err(|error| match error.kind() {
            std::io::ErrorKind::ResourceBusy => {
                let detail = format!("another session synchronizes {}", root.path().display());
                Error::new(ErrorKind::Conflict, "open the workspace", detail)
            }
            _ => Error::io("lock the workspace", error),
        })?;
    }
    if options.writes_to_host() {
        Staging::sweep(&root, options.staging.as_deref())
            .map_err(|error| Error::io("clear what an earlier session left", error))?;
    }
    let staging = options
        .writes_to_host()
        .then_some(options.staging.as_deref());
    let names = probe(&root, staging);
    root.set_names(names.map_err(|error| Error::io("look how names behave", error))?);
    let base = Base::open(options.base_file.as_deref(), root.path());
    let watch = match options.watch {
        true => Watch::start(&root),
        false => Watch::nothing(),
    };
    Ok((root, base, watch))
}

fn hello(root: &Root, options: &Options) -> Hello {
    let guest_root = options.guest_root.as_deref().unwrap_or(root.path());
    Hello {
        version: protocol::VERSION,
        root: guest_root.as_os_str().as_encoded_bytes().to_vec(),
        owner: options.guest_owner,
        lists: options.lists.clone(),
        entries: options.limits.entries as u64,
        file_bytes: options.limits.file_bytes,
        watch: options.watch,
    }
}

fn bounds(options: &Options) -> Bounds {
    Bounds {
        entries: options.limits.entries,
        file_bytes: options.limits.file_bytes,
    }
}

/// How many times as long changes may take to settle as it has to be quiet for that: a cycle for each few files
/// that somebody writes costs more than one for all of them.
const UNSETTLED: u32 = 10;

mod alone;
mod review;

/// What woke the task.
enum Wake {
    Order(Option<Order>),
    Hint,
    /// Everything was last looked at long enough ago.
    Look,
    Ended(Error),
}

struct Driver {
    engine: Engine,
    watch: Arc<Watch>,
    /// What is known since the last snapshot.
    since: Arc<Since>,
    events: broadcast::Sender<Event>,
    standing: Arc<Mutex<Standing>>,
    /// When as much time has passed since the last cycle as it took: cycles that nobody asked for never
    /// take more than half of the time.
    rested: Instant,
    /// When everything was last looked at.
    looked: Instant,
    /// What the last cycle stopped for; it is told once, however often it is looked at again.
    halt: Option<Halt>,
    /// A cycle had so much to do that what is kept of it lies scattered.
    untidy: bool,
}

impl Driver {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        self.tidy().await;
        while self.step(&mut orders).await {
            self.tidy().await;
        }
        // Whoever asks still learns from the closed channel that the session is over. Root, lock and
        // stream are let go before anybody is told.
        let Self {
            engine,
            watch,
            since,
            events,
            ..
        } = self;
        drop((engine, watch, since, orders));
        drop(events.send(Event::Ended));
    }

    /// Waits for something to do and does it; `false` ends the session.
    async fn step(&mut self, orders: &mut mpsc::Receiver<Order>) -> bool {
        let order = match self.wake(orders).await {
            Wake::Order(None) => return false,
            Wake::Order(Some(order)) => order,
            woken @ (Wake::Hint | Wake::Look) => match self.settle(orders).await {
                Wake::Order(None) => return false,
                Wake::Order(Some(order)) => order,
                Wake::Hint | Wake::Look => {
                    return self.unasked(matches!(woken, Wake::Look)).await;
                }
                Wake::Ended(error) => return self.fail(&error),
            },
            Wake::Ended(error) => return self.fail(&error),
        };
        let (resolution, answer, goes_on) = match order {
            Order::Flush(answer) => (None, answer, true),
            Order::Resume(resolution, answer) => (Some(resolution), answer, true),
            Order::Stop(answer) => (None, answer, false),
            Order::Review(order) => return self.review(order).await,
            Order::Alone(work) => return self.alone(work).await,
            Order::Pause(paused, answer) => {
                self.stand(|standing| standing.paused = paused);
                drop(answer.send(Ok(())));
                // What changed meanwhile was told by hints that are gone.
                return self.unasked(true).await;
            }
        };
        // The last look of a session, and one that decides about deletions, trusts no watch.
        let thorough = resolution.is_some() || !goes_on;
        let result = self.cycle(resolution, thorough).await;
        let fatal = result.as_ref().is_err_and(|failure| failure.fatal);
        // The asker may have gone away; the cycle was run all the same.
        drop(answer.send(result.map_err(|failure| failure.error)));
        goes_on && !fatal
    }

    /// Hands back what a large cycle took, once the next one has let go of its report.
    async fn tidy(&mut self) {
        if std::mem::take(&mut self.engine.much) {
            self.untidy = true;
            release().await;
        } else if std::mem::take(&mut self.untidy) {
            if let Err(failure) = self.engine.compact().await {
                tracing::debug!(error = %failure.error, "what is kept stays scattered");
            }
            release().await;
        }
    }

    async fn wake(&mut self, orders: &mut mpsc::Receiver<Order>) -> Wake {
        let look = self.looked + self.watch.interval(self.engine.options.rescan);
        let hint = self.engine.peer.hint();
        tokio::select! {
            order = orders.recv() => Wake::Order(order),
            () = self.watch.changed() => Wake::Hint,
            () = async move { hint.notified().await } => Wake::Hint,
            error = self.engine.peer.ended() => Wake::Ended(error),
            () = tokio::time::sleep_until(look) => Wake::Look,
        }
    }

    /// Waits for changes to settle, but not for ever; an order comes first.
    async fn settle(&mut self, orders: &mut mpsc::Receiver<Order>) -> Wake {
        let settle = self.engine.options.settle;
        let (mut quiet, last) = (Instant::now() + settle, Instant::now() + settle * UNSETTLED);
        let hint = self.engine.peer.hint();
        loop {
            tokio::select! {
                order = orders.recv() => return Wake::Order(order),
                error = self.engine.peer.ended() => return Wake::Ended(error),
                () = self.watch.changed() => quiet = Instant::now() + settle,
                () = hint.notified() => quiet = Instant::now() + settle,
                () = tokio::time::sleep_until(quiet.min(last).max(self.rested)) => return Wake::Hint,
            }
        }
    }

    async fn unasked(&mut self, thorough: bool) -> bool {
        if self.is_paused() {
            return true;
        }
        match self.cycle(None, thorough).await {
            Ok(_) => true,
            Err(failure) => {
                tracing::debug!(error = %failure.error, "a cycle failed");
                !failure.fatal
            }
        }
    }

    /// Runs a cycle and tells what came of it. A halt is an error that leaves the session open.
    async fn cycle(
        &mut self,
        resolution: Option<Resolution>,
        thorough: bool,
    ) -> Result<Report, Failure> {
        if self.is_paused() {
            let detail = "it is paused";
            let error = Error::new(ErrorKind::Conflict, "synchronize", detail);
            return Err(Failure::mild(error));
        }
        let began = Instant::now();
        let outcome = self.engine.cycle(resolution, thorough).await;
        self.rested = Instant::now() + began.elapsed();
        if thorough {
            self.looked = Instant::now();
        }
        match outcome {
            Ok(Outcome::Done(report)) => {
                self.halt = None;
                let report = Arc::new(report);
                self.stand(|standing| {
                    (standing.halted, standing.failed) = (None, None);
                    standing.last = report.clone();
                });
                if !(report.is_quiet() && report.is_settled()) {
                    self.tell(Event::Synchronized(report.clone()));
                }
                let told = Report::clone(&report);
                drop(report);
                Ok(told)
            }
            Ok(Outcome::Halted(halt)) => {
                let error = halted(&halt);
                if self.halt.as_ref() != Some(&halt) {
                    self.tell(Event::Halted(halt.clone()));
                }
                self.stand(|standing| standing.halted = Some(halt.clone()));
                self.halt = Some(halt);
                Err(Failure {
                    error,
                    fatal: false,
                })
            }
            Err(failure) => {
                self.fail(&failure.error);
                Err(failure)
            }
        }
    }

    fn fail(&self, error: &Error) -> bool {
        let source = std::error::Error::source(error);
        let cause = source
            .map(|source| format!(": {source}"))
            .unwrap_or_default();
        let text = format!("{error}{cause}");
        self.stand(|standing| standing.failed = Some(text.clone()));
        self.tell(Event::Failed(text));
        false
    }

    fn is_paused(&self) -> bool {
        let standing = self.standing.lock();
        standing.unwrap_or_else(PoisonError::into_inner).paused
    }

    fn stand(&self, change: impl FnOnce(&mut Standing)) {
        let standing = self.standing.lock();
        change(&mut standing.unwrap_or_else(PoisonError::into_inner));
    }

    fn tell(&self, event: Event) {
        // Nobody has to listen.
        drop(self.events.send(event));
    }
}
