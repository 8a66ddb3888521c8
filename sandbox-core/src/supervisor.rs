//! Detached sandboxes: a supervisor process each, and no daemon.
//!
//! The process that creates or starts one runs the helper binary as its supervisor, hands it a job on
//! its standard input and waits for one line. From then on the supervisor is the owner, until the machine
//! ends or the sandbox is removed.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use sandbox_base::{Dirs, Error, ErrorKind};
use sandbox_vm::Progress;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use crate::control;
use crate::host::default_hypervisor;
use crate::owner::Owner;
use crate::state::Store;

/// The first argument that makes the helper binary a supervisor.
pub const VERB: &str = "supervisor";

/// The longest line either side says, in bytes.
const MAX_LINE: u64 = 1 << 20;

/// How long an answer that is on its way may take before the process ends.
const FAREWELL: Duration = Duration::from_millis(200);

#[derive(Debug, Serialize, Deserialize)]
struct Job {
    dirs: Dirs,
    name: String,
    /// The supervisor's own program: it carries no copy of itself.
    helper: PathBuf,
}

/// What a supervisor says once: nothing, or why not.
#[derive(Debug, Serialize, Deserialize)]
struct Word {
    failed: Option<(ErrorKind, String, Option<String>)>,
}

/// Runs the helper binary as the supervisor of a sandbox that has no owner, and waits until it runs.
pub(crate) async fn launch(helper: &Path, dirs: &Dirs, name: &str) -> Result<(), Error> {
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
    stdin.write_all(&line).await.map_err(io)?;
    let mut answer = Vec::new();
    BufReader::new(stdout)
        .take(MAX_LINE)
        .read_until(b'\n', &mut answer)
        .await
        .map_err(io)?;
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
    let mut line = Vec::new();
    BufReader::new(tokio::io::stdin())
        .take(MAX_LINE)
        .read_until(b'\n', &mut line)
        .await?;
    let job: Job = serde_json::from_slice(&line).map_err(io::Error::other)?;
    let started = start(&job).await;
    let word = Word {
        failed: started.as_ref().err().map(|error| {
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
    let owner = started.map_err(|error| io::Error::other(error.to_string()))?;
    owner.stopped().await;
    tokio::time::sleep(FAREWELL).await;
    Ok(())
}

async fn start(job: &Job) -> Result<Arc<Owner>, Error> {
    let store = Store::new(job.dirs.clone());
    let owned = store.adopt(&job.name)?;
    let hypervisor = default_hypervisor(&job.dirs, job.helper.clone(), Progress::silent())?;
    let owner = Owner::new(owned, hypervisor, job.dirs.clone(), Progress::silent());
    owner.start().await?;
    control::serve(&owner).await?;
    Ok(owner)
}
