//! The owner's side of a watchdog.

use std::io::{self, PipeWriter, Write as _};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio::sync::watch;

use super::{Event, IN_ORDER, Job, VERB};

/// How long a watchdog may take to start its child.
const START_PATIENCE: Duration = Duration::from_secs(20);

/// The longest line that a watchdog says, in bytes.
const MAX_LINE: u64 = 256 << 10;

/// A running watchdog with its child. Dropping it ends both in order, without waiting: whoever drops it is
/// alive, and removes what is its own itself.
#[derive(Debug)]
pub struct Watchdog {
    pipe: Mutex<Option<Pipe>>,
    pid: u32,
    end: watch::Receiver<Option<Event>>,
}

impl Watchdog {
    /// Starts the helper binary as a watchdog over `job`, and its child.
    ///
    /// Dropping the future ends both.
    ///
    /// # Errors
    ///
    /// When the helper or the child cannot be started; the job's paths are removed then.
    pub async fn start(helper: &Path, job: &Job) -> io::Result<Self> {
        let mut watchdog = Command::new(helper)
            .arg(VERB)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // A Ctrl-C at the owner's terminal must not reach it: it has to clean up after the owner.
            .process_group(0)
            .spawn()
            .map_err(|error| about(helper, &error))?;
        let mut stdin = watchdog.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let stdout = watchdog.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut line = serde_json::to_vec(job).map_err(io::Error::other)?;
        line.push(b'\n');
        stdin.write_all(&line).await?;
        let pipe = Pipe(stdin.into_owned_fd()?.into());
        let mut events = BufReader::new(stdout);
        let first = tokio::time::timeout(START_PATIENCE, next(&mut events)).await;
        let pid = match first.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? {
            Event::Started(pid) => pid,
            Event::Refused(reason) => return Err(io::Error::other(reason)),
            Event::Ended { output, .. } => return Err(io::Error::other(output)),
        };
        let (sender, end) = watch::channel(None);
        tokio::spawn(async move {
            let last = next(&mut events)
                .await
                .unwrap_or_else(|error| Event::Ended {
                    code: None,
                    signal: None,
                    output: format!("its watchdog is gone: {error}"),
                    left: Vec::new(),
                });
            // Reaps the watchdog itself; whatever it says has been heard.
            drop(watchdog.wait().await);
            sender.send_replace(Some(last));
        });
        Ok(Self {
            pipe: Mutex::new(Some(pipe)),
            pid,
            end,
        })
    }

    /// Returns the child's process number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until the child has ended and its files are removed. Cancel safe; may be called again. The
    /// future does not keep the watchdog alive.
    pub fn ended(&self) -> impl Future<Output = Event> + Send + use<> {
        let mut end = self.end.clone();
        async move {
            let told = end.wait_for(Option::is_some).await;
            told.ok()
                .and_then(|event| event.clone())
                .unwrap_or_else(|| Event::Ended {
                    code: None,
                    signal: None,
                    output: "its watchdog is gone".into(),
                    left: Vec::new(),
                })
        }
    }

    /// Tells whether the watchdog is gone, with its child.
    pub fn is_gone(&self) -> bool {
        self.end.borrow().is_some()
    }

    /// Ends the child and waits until it is gone and its files are removed. Idempotent; goes on when
    /// the future is dropped.
    pub async fn end(&self) -> Event {
        drop(
            self.pipe
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        self.ended().await
    }
}

/// The pipe that a watchdog listens at. A dropped one says that its owner goes in order; a dead owner's
/// says nothing.
#[derive(Debug)]
struct Pipe(PipeWriter);

impl Drop for Pipe {
    fn drop(&mut self) {
        // A few bytes, for which an emptied pipe has room; a watchdog that is gone has nothing to be told.
        drop(self.0.write_all(IN_ORDER));
    }
}

async fn next(events: &mut BufReader<tokio::process::ChildStdout>) -> io::Result<Event> {
    let mut line = Vec::new();
    events.take(MAX_LINE).read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_slice(&line).map_err(io::Error::other)
}

fn about(helper: &Path, error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("helper binary {}: {error}", helper.display()),
    )
}
