//! Detached sandboxes: a supervisor process each, and no daemon.
//!
//! The process that creates or starts one runs the helper binary as its supervisor, hands it a job on
//! its standard input and waits for one line. Should it go before that line, the supervisor gives up: what
//! was being created is removed, what was being started is stopped. From then on the supervisor is the
//! owner, until the machine ends or the sandbox is removed.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use sandbox_base::{Dirs, Error, ErrorKind};
use sandbox_vm::Progress;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};

use crate::control::{self, Answers};
use crate::host::default_hypervisor;
use crate::lifecycle::Lifetime;
use crate::owner::Owner;
use crate::sandbox::blocking;
use crate::spec::Spec;
use crate::state::Store;

/// The first argument that makes the helper binary a supervisor.
pub const VERB: &str = "supervisor";

/// The longest line either side says, in bytes.
const MAX_LINE: u64 = 1 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct Job {
    dirs: Dirs,
    name: String,
    /// What to create; without, the sandbox is there and is started.
    create: Option<Spec>,
    /// The supervisor's own program: it carries no copy of itself.
    helper: PathBuf,
}

/// What a supervisor says once: nothing, or why not.
#[derive(Debug, Serialize, Deserialize)]
struct Word {
    failed: Option<(ErrorKind, String, Option<String>)>,
}

/// Runs the helper binary as the supervisor of a sandbox that has no owner, or is to be created, and waits
/// until it runs. Dropping the future has the supervisor give up.
pub(crate) async fn launch(
    helper: &Path,
    dirs: &Dirs,
    name: &str,
    create: Option<Spec>,
) -> Result<(), Error> {
    const OPERATION: &str = "start the sandbox's supervisor";
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
    let mut answer = Vec::new();
    BufReader::new(stdout)
        .take(MAX_LINE)
        .read_until(b'\n', &mut answer)
        .await
        .map_err(io)?;
    drop(stdin);
    // It goes on by itself; reaped here if it should end while this process lives.
    tokio::spawn(async move { child.wait().await });
    let word: Word = serde_json::from_slice(&answer).map_err(|_| {
        Error::new(ErrorKind::Disconnected, OPERATION).with_detail("it ended without a word")
    })?;
    match word.failed {
        None => Ok(()),
        Some((kind, operation, detail)) => Err(match detail {
            Some(detail) => Error::new(kind, operation).with_detail(detail),
            None => Error::new(kind, operation),
        }),
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
    let started = tokio::select! {
        started = start(&job) => started,
        () = end_of(&mut stdin) => Err(Error::new(ErrorKind::Disconnected, "start the sandbox")
            .with_detail("who asked for it is gone")),
    };
    let failed = started.as_ref().err();
    let word = Word {
        failed: failed.map(|error| {
            let detail = error.detail().map(str::to_owned);
            let source = std::error::Error::source(error).map(ToString::to_string);
            (
                error.kind(),
                error.operation().to_owned(),
                detail.or(source),
            )
        }),
    };
    let mut text = serde_json::to_vec(&word).map_err(io::Error::other)?;
    text.push(b'\n');
    let mut stdout = tokio::io::stdout();
    // Whoever asked may be gone; the sandbox runs all the same.
    drop(stdout.write_all(&text).await);
    drop(stdout.flush().await);
    let (owner, answers) = started.map_err(|error| io::Error::other(error.to_string()))?;
    owner.stopped().await;
    // With the owner the lock goes: what is told from here on is true.
    drop(owner);
    answers.arrived().await;
    Ok(())
}

async fn end_of(stdin: &mut (impl AsyncRead + Unpin)) {
    let mut byte = [0];
    while let Ok(1..) = stdin.read(&mut byte).await {}
}

async fn start(job: &Job) -> Result<(Arc<Owner>, Answers), Error> {
    let hypervisor = default_hypervisor(&job.dirs, job.helper.clone(), Progress::silent())?;
    let store = Store::new(job.dirs.clone());
    let (name, create) = (job.name.clone(), job.create.clone());
    let created = create.is_some();
    let owned = blocking(move || match create {
        Some(spec) => store.create(&name, Lifetime::Detached, spec),
        None => store.adopt(&name),
    })
    .await?;
    let owner = Owner::new(
        owned,
        hypervisor,
        None,
        job.dirs.clone(),
        Progress::silent(),
    );
    // Until it runs, what was created goes with the owner.
    owner.set_fleeting(created);
    owner.start().await?;
    let answers = control::serve(&owner).await?;
    owner.set_fleeting(false);
    Ok((owner, answers))
}
