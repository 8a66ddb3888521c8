//! Detached sandboxes: a supervisor process each, and no daemon.
//!
//! The process that creates or starts one runs the helper binary as its supervisor, hands it a job on
//! its standard input and waits for a line that says how that ended; lines before it tell how far it is.
//! Should it go before that, the supervisor gives up: what was being created is removed, what was being
//! started is stopped. From then on the supervisor is the owner, until the machine ends or the sandbox is
//! removed.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use sandbox_base::{Dirs, Error, ErrorKind};
use sandbox_net::{UpstreamProxy, inspect::Inspector};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;

use crate::control::{self, Answers};
use crate::host::default_hypervisor;
use crate::layers::Loaded;
use crate::lifecycle::Lifetime;
use crate::owner::{Means, Owner};
use crate::progress::{Progress, Step};
use crate::spec::Spec;
use crate::state::{Store, blocking};

/// The first argument that makes the helper binary a supervisor.
pub const VERB: &str = "supervisor";

/// The longest line either side says, in bytes.
const MAX_LINE: u64 = 1 << 20;

/// How many steps may wait to be told; those in between are left out.
const STEPS: usize = 1;

const OPERATION: &str = "start the sandbox's supervisor";

#[derive(Debug, Serialize, Deserialize)]
struct Job {
    dirs: Dirs,
    name: String,
    /// What to create; without, the sandbox is there and is started.
    create: Option<Creation>,
    /// The supervisor's own program: it carries no copy of itself.
    helper: PathBuf,
}

/// What a sandbox is created from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Creation {
    pub(crate) spec: Spec,
    /// Without, its machine starts from its image.
    pub(crate) origin: Option<Origin>,
}

/// What a copy comes from, for the process that is to own it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Origin {
    /// What was saved, which is there until the copy runs.
    pub(crate) folder: PathBuf,
    /// The secrets that were revoked.
    pub(crate) revoked: Vec<String>,
}

impl Origin {
    /// Has a copy's secrets be revoked that its origin's are.
    fn revoke(&self, inspector: Option<&Inspector>) {
        let credentials = inspector.and_then(Inspector::credentials);
        for name in &self.revoked {
            credentials.map(|credentials| credentials.revoke(name));
        }
    }
}

impl Creation {
    pub(crate) fn new(spec: Spec) -> Self {
        Self { spec, origin: None }
    }
}

/// What a supervisor says, a line each: how far it has come, and once, as the last, how it ended.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    Step(Step),
    Started,
    Failed(ErrorKind, String, Option<String>),
}

impl Word {
    fn of(error: &Error) -> Self {
        let detail = error.detail().map(str::to_owned);
        let source = std::error::Error::source(error).map(ToString::to_string);
        let operation = error.operation().to_owned();
        Self::Failed(error.kind(), operation, detail.or(source))
    }

    fn line(&self) -> io::Result<Vec<u8>> {
        let mut text = serde_json::to_vec(self).map_err(io::Error::other)?;
        text.push(b'\n');
        Ok(text)
    }
}

/// Runs the helper binary as the supervisor of a sandbox that has no owner, or is to be created, and waits
/// until it runs. Dropping the future has the supervisor give up.
pub(crate) async fn launch(
    helper: &Path,
    dirs: &Dirs,
    (name, create): (&str, Option<Creation>),
    progress: &Progress,
) -> Result<(), Error> {
    let io = |error| Error::io(OPERATION, error);
    let mut process = tokio::process::Command::new(helper);
    process
        .arg(VERB)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    #[cfg(unix)]
    process.process_group(0);
    let mut child = process.spawn().map_err(io)?;
    let job = Job {
        dirs: dirs.clone(),
        name: name.to_owned(),
        create,
        helper: helper.to_owned(),
    };
    let mut line = serde_json::to_vec(&job)
        .map_err(|error| Error::new(ErrorKind::Io, OPERATION).with_source(error))?;
    line.push(b'\n');
    let mut stdin = child
        .stdin
        .take()
        .ok_or_else(|| io(io::ErrorKind::BrokenPipe.into()))?;
    let stdout = child
        .stdout
        .take()
        .ok_or_else(|| io(io::ErrorKind::BrokenPipe.into()))?;
    // Kept open until the answer is there: its end says that nobody waits any more.
    stdin.write_all(&line).await.map_err(io)?;
    let outcome = listen(BufReader::new(stdout), progress).await;
    drop(stdin);
    // It goes on by itself; reaped here if it should end while this process lives.
    tokio::spawn(async move { child.wait().await });
    outcome
}

/// Passes on what a supervisor reports, until it says how its start ended.
async fn listen(mut stdout: impl AsyncBufRead + Unpin, progress: &Progress) -> Result<(), Error> {
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut stdout).take(MAX_LINE);
        let read = bounded.read_until(b'\n', &mut line).await;
        read.map_err(|error| Error::io(OPERATION, error))?;
        let word = serde_json::from_slice(&line).map_err(|_| {
            Error::new(ErrorKind::Disconnected, OPERATION).with_detail("it ended without a word")
        })?;
        match word {
            Word::Step(step) => progress.report(step),
            Word::Started => return Ok(()),
            Word::Failed(kind, operation, None) => return Err(Error::new(kind, operation)),
            Word::Failed(kind, operation, Some(detail)) => {
                return Err(Error::new(kind, operation).with_detail(detail));
            }
        }
    }
}

/// Runs as a supervisor: reads the job from standard input, starts the sandbox, says how that went on
/// standard output, and returns when the sandbox has stopped. For the helper binary.
///
/// # Errors
///
/// When there is no job, or the sandbox could not be started.
pub async fn run() -> io::Result<()> {
    let mut stdin = BufReader::new(tokio::io::stdin());
    let mut line = Vec::new();
    (&mut stdin)
        .take(MAX_LINE)
        .read_until(b'\n', &mut line)
        .await?;
    let job: Job = serde_json::from_slice(&line).map_err(io::Error::other)?;
    let (progress, mut steps) = report();
    let started = tokio::select! {
        started = start(&job, progress) => started,
        error = tell(&mut steps) => Err(error),
        () = end_of(&mut stdin) => Err(Error::new(ErrorKind::Disconnected, "start the sandbox")
            .with_detail("who asked for it is gone")),
    };
    let word = match &started {
        Ok(_) => Word::Started,
        Err(error) => Word::of(error),
    };
    // Whoever asked may be gone; the sandbox runs all the same.
    drop(say(&word).await);
    let (owner, answers) = started.map_err(|error| io::Error::other(error.to_string()))?;
    owner.stopped().await;
    // With the owner the lock goes: what is told from here on is true.
    drop(owner);
    answers.arrived().await;
    Ok(())
}

/// Returns where steps are reported to, and where they come out.
fn report() -> (Progress, mpsc::Receiver<Step>) {
    let (sender, steps) = mpsc::channel(STEPS);
    // A step that finds no room is passed over by a later one.
    let progress = Progress::new(move |step| drop(sender.try_send(step)));
    (progress, steps)
}

/// Says each step, until the one who asked is gone.
async fn tell(steps: &mut mpsc::Receiver<Step>) -> Error {
    while let Some(step) = steps.recv().await {
        if let Err(error) = say(&Word::Step(step)).await {
            return Error::io("report to who asked", error);
        }
    }
    std::future::pending().await
}

async fn say(word: &Word) -> io::Result<()> {
    let mut stdout = tokio::io::stdout();
    stdout.write_all(&word.line()?).await?;
    stdout.flush().await
}

/// Fetches what the settings only refer to.
async fn means(spec: &Spec) -> Result<(Loaded, Option<Inspector>, Option<UpstreamProxy>), Error> {
    let above = spec.above.clone();
    let above = blocking(move || above.load()).await?;
    let upstream = match spec.upstream.clone() {
        Some(upstream) => blocking(move || upstream.load()).await?,
        None => None,
    };
    let judges_requests = above.judges_requests(&spec.network);
    let inspector = spec.inspection.begin(judges_requests, Vec::new()).await?;
    Ok((above, inspector, upstream))
}

async fn end_of(stdin: &mut (impl AsyncRead + Unpin)) {
    let mut byte = [0];
    while let Ok(1..) = stdin.read(&mut byte).await {}
}

async fn start(job: &Job, progress: Progress) -> Result<(Arc<Owner>, Answers), Error> {
    let part = progress.part(Step::Machine);
    let hypervisor = default_hypervisor(&job.dirs, job.helper.clone(), part)?;
    let store = Store::new(job.dirs.clone());
    let name = job.name.clone();
    let (create, origin) = match job.create.clone() {
        Some(Creation { spec, origin }) => (Some(spec), origin),
        None => (None, None),
    };
    let created = create.is_some();
    let owned = blocking(move || match create {
        Some(spec) => store.create(&name, Lifetime::Detached, spec),
        None => store.adopt(&name),
    })
    .await?;
    let spec = &owned.record.spec;
    let (above, inspector, upstream) = match means(spec).await {
        Ok(means) => means,
        Err(error) if created => {
            blocking(move || owned.remove()).await?;
            return Err(error);
        }
        Err(error) => return Err(error),
    };
    if let Some(origin) = &origin {
        origin.revoke(inspector.as_ref());
    }
    let means = Means {
        hypervisor,
        resolver: None,
        approvals: None,
        inspector,
        above,
        upstream,
        progress,
        supervised_by: Some(job.helper.clone()),
    };
    let owner = Owner::new(owned, job.dirs.clone(), means);
    // Until it runs, what was created goes with the owner.
    owner.set_fleeting(created);
    let from = origin.as_ref().map(|origin| origin.folder.as_path());
    owner.start(from).await?;
    let answers = control::serve(&owner).await?;
    owner.set_fleeting(false);
    Ok((owner, answers))
}
