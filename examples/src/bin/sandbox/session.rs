//! One command inside, joined to this process's streams, signals and terminal.
//!
//! ```text
//!  stdin ───▶ ┌─────────┐ ───▶ stdout   bytes untouched, as they come
//!  signals ─▶ │ command │ ───▶ stderr   (with a terminal: all on stdout)
//!  resizes ─▶ └─────────┘ ───▶ exit status
//! ```
//!
//! With a terminal Ctrl-C is a byte like any other and goes inside. Without one it is a signal: it is
//! passed to the command, which has a moment to end; then it is killed, and so it is on a second signal.

use std::future::Future;
use std::io::{self, IsTerminal};
use std::pin::pin;
use std::time::Duration;

use sandbox_core::{Child, ChildStdin, Command, Error, ExitStatus, Stdio};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::failure::{self, Failure, TIMED_OUT, by_signal};
use crate::interrupt::Interrupts;
use crate::output::unwritten;
use crate::terminal::{self, RawMode};

/// How long a command may take to end after a signal was passed to it.
const GRACE: Duration = Duration::from_secs(5);

/// How long output that is on its way may stay silent after the command has ended: a process that it left
/// behind may hold its streams open for ever.
const SILENCE: Duration = Duration::from_secs(2);

/// How much is read at once.
const CHUNK: usize = 64 * 1024;

/// Which of this process's streams the command gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Streams {
    /// Whether it reads this process's standard input.
    pub(crate) input: bool,
    /// Whether it has a terminal.
    pub(crate) terminal: bool,
}

impl Streams {
    /// For a command of `run`: a terminal where both ends are one, else the input of a pipe or file, but
    /// never a terminal's without being one inside.
    pub(crate) fn of_a_command() -> Self {
        let person = io::stdin().is_terminal();
        let terminal = person && io::stdout().is_terminal();
        Self {
            input: terminal || !person,
            terminal,
        }
    }

    /// For a shell: a terminal where a person types, else the input is its script.
    pub(crate) fn of_a_shell() -> Self {
        Self {
            input: true,
            terminal: io::stdin().is_terminal(),
        }
    }
}

/// Runs a command to its end and returns the exit status that it gives this process.
pub(crate) async fn run(
    command: &mut Command<'_>,
    streams: Streams,
    interrupts: &mut Interrupts,
) -> Result<u8, Failure> {
    let child = spawn(command, streams, interrupts).await?;
    attend(
        child.map_err(|error| Failure::spawn(&error))?,
        streams,
        interrupts,
    )
    .await
}

/// Starts a command. The inner error is the sandbox's, for a caller who has another command to try.
pub(crate) async fn spawn(
    command: &mut Command<'_>,
    streams: Streams,
    interrupts: &mut Interrupts,
) -> Result<Result<Child, Error>, Failure> {
    let input = if streams.input {
        Stdio::piped()
    } else {
        Stdio::null()
    };
    command
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    if streams.terminal {
        command.pty_size(terminal::size().unwrap_or_default());
    }
    interrupts.or(command.spawn()).await
}

/// Carries everything between a command and this process until it has ended.
pub(crate) async fn attend(
    mut child: Child,
    streams: Streams,
    interrupts: &mut Interrupts,
) -> Result<u8, Failure> {
    let raw = streams.terminal && streams.input && io::stdin().is_terminal();
    let raw = raw
        .then(RawMode::enter)
        .transpose()
        .map_err(|error| Failure::new("use the terminal", error))?;
    let input = child.stdin.take().map(|stdin| tokio::spawn(feed(stdin)));
    let (over, told) = watch::channel(false);
    let mut output = Pump::start(child.stdout.take(), tokio::io::stdout(), told.clone());
    let errors = Pump::start(child.stderr.take(), tokio::io::stderr(), told);

    let ended = converse(&mut child, &mut output, interrupts).await;
    over.send_replace(true);
    if let Some(input) = input {
        input.abort();
    }
    let written = async { tokio::join!(output.finish(), errors.finish()).0 };
    let ended = match ended? {
        End::Command(status) => {
            let written = interrupts.or(written).await?;
            written.map_err(|error| unwritten(&error)).map(|()| status)
        }
        End::Signal(number) => {
            // A reader that does not read must not keep the tool from ending.
            drop(tokio::time::timeout(SILENCE, written).await);
            Err(Failure::signal(number))
        }
    };
    drop(raw);
    ended.map(exit_status)
}

enum End {
    Command(ExitStatus),
    Signal(i32),
}

/// Waits for the end of a command, passing on what happens here meanwhile.
async fn converse(
    child: &mut Child,
    output: &mut Pump,
    interrupts: &mut Interrupts,
) -> Result<End, Failure> {
    let mut resizes =
        terminal::resizes().map_err(|error| Failure::new("listen to signals", error))?;
    loop {
        tokio::select! {
            status = child.wait() => return Ok(End::Command(status?)),
            signal = interrupts.next() => {
                end_by_signal(child, signal, interrupts).await?;
                return Ok(End::Signal(signal));
            }
            _ = resizes.recv() => {
                if let Some(size) = terminal::size() {
                    child.resize(size).await;
                }
            }
            () = output.failed() => child.kill().await?,
        }
    }
}

async fn end_by_signal(
    child: &mut Child,
    signal: i32,
    interrupts: &mut Interrupts,
) -> Result<(), Failure> {
    child.signal(signal).await;
    tokio::select! {
        status = child.wait() => {
            status?;
            return Ok(());
        }
        () = tokio::time::sleep(GRACE) => {}
        _ = interrupts.next() => {}
    }
    Ok(child.kill().await?)
}

fn exit_status(status: ExitStatus) -> u8 {
    if status.timed_out() {
        failure::warn("the command's time ran out");
        return TIMED_OUT;
    }
    if status.out_of_memory() {
        failure::warn("memory ran out inside; --memory gives a new sandbox more");
    }
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code & 0xff).unwrap_or(u8::MAX),
        (None, Some(signal)) => by_signal(signal),
        (None, None) => failure::FAILED,
    }
}

/// Carries standard input in until it ends or nobody reads it any more.
async fn feed(mut stdin: ChildStdin) {
    let mut from = tokio::io::stdin();
    // A command that does not read its input is no failure.
    drop(tokio::io::copy(&mut from, &mut stdin).await);
    drop(stdin.shutdown().await);
}

/// One stream on its way out.
struct Pump {
    task: Option<JoinHandle<io::Result<()>>>,
    result: io::Result<()>,
}

impl Pump {
    fn start(
        from: Option<impl AsyncRead + Unpin + Send + 'static>,
        to: impl AsyncWrite + Unpin + Send + 'static,
        over: watch::Receiver<bool>,
    ) -> Self {
        let task = from.map(|from| tokio::spawn(pump(from, to, over)));
        Self {
            task,
            result: Ok(()),
        }
    }

    /// Waits until it cannot be written any more; for ever if that does not happen. Cancel safe.
    async fn failed(&mut self) {
        if let Some(task) = &mut self.task {
            self.result = flatten(task.await);
            self.task = None;
            if self.result.is_err() {
                return;
            }
        }
        std::future::pending().await
    }

    /// Waits until all of it is written.
    async fn finish(self) -> io::Result<()> {
        match self.task {
            Some(task) => flatten(task.await),
            None => self.result,
        }
    }
}

fn flatten(joined: Result<io::Result<()>, tokio::task::JoinError>) -> io::Result<()> {
    joined.unwrap_or_else(|error| Err(io::Error::other(error)))
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut over: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let Some(read) = unless_abandoned(from.read(&mut buffer), &mut over).await else {
            return Ok(());
        };
        // How the command ended says why its stream broke.
        let Ok(count @ 1..) = read else {
            return Ok(());
        };
        to.write_all(&buffer[..count]).await?;
        to.flush().await?;
    }
}

/// Waits for more output; answers `None` when the command is over and none has come for a while.
async fn unless_abandoned<T>(
    read: impl Future<Output = T>,
    over: &mut watch::Receiver<bool>,
) -> Option<T> {
    let mut read = pin!(read);
    tokio::select! {
        done = &mut read => return Some(done),
        _ = over.wait_for(|over| *over) => {}
    }
    tokio::time::timeout(SILENCE, read).await.ok()
}
