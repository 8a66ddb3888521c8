//! Commands inside, with the names and behaviour of `tokio::process`.
//!
//! What differs, and why:
//!
//! * `spawn` is asynchronous: whether the program exists is known inside.
//! * Standard input is empty unless asked for: an embedder's own is not handed to a stranger by default.
//! * Before a command starts and after it has ended the workspaces are brought into agreement, so that
//!   what was saved outside is there, and what it made is here when [`Child::wait`] returns.
//! * Only what [`Command::env`] names is added to the environment; the host's own never enters.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use sandbox_base::{BoxStream, Error, ErrorKind};
use sandbox_vm::agent::{ExecController, ExecEnd, new_exec_id};
use sandbox_vm::channel::protocol::{self, Exec, ExecControl, ExitCause, TerminalSize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, watch};

use crate::owner::Defaults;
use crate::sandbox::{Flusher, Sandbox, bytes_of};

/// The most output that [`Command::output`] keeps of each stream, in bytes. More is read and dropped, so
/// that the command goes on, and said in [`Output::truncated`].
pub const MAX_OUTPUT: usize = 256 << 20;

/// How long the last of an inherited stream may be on its way after the command has ended.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

/// A command to be run inside a sandbox.
#[derive(Debug)]
pub struct Command<'a> {
    sandbox: &'a Sandbox,
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    env_remove: Vec<OsString>,
    env_clear: bool,
    current_dir: Option<PathBuf>,
    user: Option<String>,
    stdin: Option<Stdio>,
    stdout: Option<Stdio>,
    stderr: Option<Stdio>,
    terminal: Option<TerminalSize>,
    timeout: Option<Duration>,
    kill_on_drop: bool,
}

/// What becomes of one of a command's standard streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stdio(Use);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Null,
    Piped,
    Inherit,
}

impl Stdio {
    /// Connects it to the [`Child`].
    pub fn piped() -> Self {
        Self(Use::Piped)
    }

    /// Connects it to nothing: input ends at once, output is dropped.
    pub fn null() -> Self {
        Self(Use::Null)
    }

    /// Connects it to this process's own stream.
    pub fn inherit() -> Self {
        Self(Use::Inherit)
    }
}

impl<'a> Command<'a> {
    pub(crate) fn new(sandbox: &'a Sandbox, program: &OsStr) -> Self {
        Self {
            sandbox,
            argv: vec![program.to_owned()],
            env: Vec::new(),
            env_remove: Vec::new(),
            env_clear: false,
            current_dir: None,
            user: None,
            stdin: None,
            stdout: None,
            stderr: None,
            terminal: None,
            timeout: None,
            kill_on_drop: false,
        }
    }

    /// Adds an argument.
    pub fn arg(&mut self, argument: impl AsRef<OsStr>) -> &mut Self {
        self.argv.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args(&mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> &mut Self {
        self.argv
            .extend(arguments.into_iter().map(|one| one.as_ref().to_owned()));
        self
    }

    /// Adds or replaces a variable of its environment.
    pub fn env(&mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        self.env
            .push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Adds or replaces variables of its environment.
    pub fn envs(
        &mut self,
        variables: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>,
    ) -> &mut Self {
        for (name, value) in variables {
            self.env(name, value);
        }
        self
    }

    /// Takes a variable out of its environment.
    pub fn env_remove(&mut self, name: impl AsRef<OsStr>) -> &mut Self {
        self.env.retain(|(one, _)| one != name.as_ref());
        self.env_remove.push(name.as_ref().to_owned());
        self
    }

    /// Begins with an empty environment, without even `PATH` and the proxy's variables.
    pub fn env_clear(&mut self) -> &mut Self {
        self.env.clear();
        self.env_clear = true;
        self
    }

    /// Sets its working directory inside: an absolute path. Without, it is the first workspace, else the
    /// image's, else the user's home.
    pub fn current_dir(&mut self, path: impl Into<PathBuf>) -> &mut Self {
        self.current_dir = Some(path.into());
        self
    }

    /// Sets the user inside, by name or as `uid` or `uid:gid`. Without, it is the sandbox's.
    pub fn user(&mut self, user: impl Into<String>) -> &mut Self {
        self.user = Some(user.into());
        self
    }

    /// Sets its standard input: empty without.
    pub fn stdin(&mut self, stdio: Stdio) -> &mut Self {
        self.stdin = Some(stdio);
        self
    }

    /// Sets its standard output: inherited without, piped for [`Command::output`].
    pub fn stdout(&mut self, stdio: Stdio) -> &mut Self {
        self.stdout = Some(stdio);
        self
    }

    /// Sets its standard error: inherited without, piped for [`Command::output`].
    pub fn stderr(&mut self, stdio: Stdio) -> &mut Self {
        self.stderr = Some(stdio);
        self
    }

    /// Gives it a terminal of 24 lines and 80 columns. All its output comes by standard output then.
    pub fn pty(&mut self) -> &mut Self {
        self.pty_size(TerminalSize::default())
    }

    /// Gives it a terminal of a size.
    pub fn pty_size(&mut self, size: TerminalSize) -> &mut Self {
        self.terminal = Some(size);
        self
    }

    /// Kills all of its processes after so long, also those that left its process group.
    pub fn timeout(&mut self, time: Duration) -> &mut Self {
        self.timeout = Some(time);
        self
    }

    /// Kills all of its processes when the [`Child`] is dropped. Without, it runs to its end.
    pub fn kill_on_drop(&mut self, kill: bool) -> &mut Self {
        self.kill_on_drop = kill;
        self
    }

    /// Starts it.
    ///
    /// Dropping the future kills what may have been started.
    ///
    /// # Errors
    ///
    /// `NotFound` for a program, user or folder that is not there, `PermissionDenied`, `Invalid` for a
    /// string with a NUL or a path that is not absolute, `Exhausted`, `Disconnected`.
    pub async fn spawn(&mut self) -> Result<Child, Error> {
        let inherit = Stdio::inherit();
        self.spawn_with(inherit, inherit).await
    }

    /// Runs it to its end, with its output going where this process's goes.
    ///
    /// # Errors
    ///
    /// Those of [`Command::spawn`] and [`Child::wait`].
    pub async fn status(&mut self) -> Result<ExitStatus, Error> {
        self.spawn().await?.wait().await
    }

    /// Runs it to its end and returns its output, at most [`MAX_OUTPUT`] bytes of each stream.
    ///
    /// # Errors
    ///
    /// Those of [`Command::spawn`] and [`Child::wait`].
    pub async fn output(&mut self) -> Result<Output, Error> {
        let piped = Stdio::piped();
        self.spawn_with(piped, piped)
            .await?
            .wait_with_output()
            .await
    }

    async fn spawn_with(&mut self, stdout: Stdio, stderr: Stdio) -> Result<Child, Error> {
        let flusher = self.sandbox.flusher();
        if let Err(error) = flusher.flush().await {
            tracing::warn!(%error, "the workspaces are not in agreement");
        }
        let uses = [
            (protocol::Stdio::In, self.stdin.unwrap_or(Stdio::null())),
            (protocol::Stdio::Out, self.stdout.unwrap_or(stdout)),
            (protocol::Stdio::Err, self.stderr.unwrap_or(stderr)),
        ];
        let defaults = self.sandbox.defaults().await?;
        let generation = defaults.generation;
        let exec = self.exec(&uses, defaults).await?;
        let running = self.sandbox.agent().await?.exec(exec).await?;
        let mut child = Child {
            stdin: running.stdin.map(ChildStdin),
            stdout: running.stdout.map(ChildStdout),
            stderr: running.stderr.map(ChildStderr),
            pid: running.pid,
            control: None,
            end: watch::channel(None).1,
            kill_on_drop: self.kill_on_drop,
        };
        let inherited = child.inherit(&uses);
        child.attend(
            running.control,
            running.end,
            (flusher, generation, inherited),
        );
        Ok(child)
    }

    async fn exec(
        &self,
        uses: &[(protocol::Stdio, Stdio)],
        defaults: Defaults,
    ) -> Result<Exec, Error> {
        #[cfg(unix)]
        if defaults.snapshots {
            drop(self.sandbox.snapshot_workspaces(None).await?);
        }
        let cwd = self.current_dir.clone().or(defaults.cwd);
        let cwd = match &cwd {
            Some(path) => Some(bytes_of(path)?.to_vec()),
            None => None,
        };
        let pair = |(name, value): &(OsString, OsString)| Ok((bytes(name)?, bytes(value)?));
        Ok(Exec {
            id: new_exec_id()?,
            argv: self
                .argv
                .iter()
                .map(|one| bytes(one))
                .collect::<Result<_, Error>>()?,
            env: self.env.iter().map(pair).collect::<Result<_, Error>>()?,
            env_remove: self
                .env_remove
                .iter()
                .map(|one| bytes(one))
                .collect::<Result<_, _>>()?,
            env_clear: self.env_clear,
            cwd,
            user: self.user.clone().or(defaults.user),
            stdio: uses
                .iter()
                .filter(|(which, stdio)| {
                    let merged = self.terminal.is_some() && *which == protocol::Stdio::Err;
                    stdio.0 != Use::Null && !merged
                })
                .map(|(which, _)| *which)
                .collect(),
            terminal: self.terminal,
            timeout_ms: self
                .timeout
                .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        })
    }
}

fn bytes(text: &OsStr) -> Result<Vec<u8>, Error> {
    let bytes = text.as_encoded_bytes();
    if bytes.contains(&0) {
        return Err(Error::new(ErrorKind::Invalid, "start a command")
            .with_detail(format!("{text:?} has a NUL in it")));
    }
    Ok(bytes.to_vec())
}

/// A command that runs.
#[derive(Debug)]
pub struct Child {
    /// Its standard input, when piped. Dropping it ends the input.
    pub stdin: Option<ChildStdin>,
    /// Its standard output, when piped. Unread, it holds up the command, not the sandbox.
    pub stdout: Option<ChildStdout>,
    /// Its standard error, when piped.
    pub stderr: Option<ChildStderr>,
    pid: u32,
    control: Option<mpsc::Sender<ExecControl>>,
    end: watch::Receiver<Option<Ended>>,
    kill_on_drop: bool,
}

type Ended = Result<ExitStatus, (ErrorKind, String)>;

impl Child {
    /// Returns its process number inside.
    pub fn id(&self) -> u32 {
        self.pid
    }

    /// Waits until it has ended and what it made is on the host. Its standard input is ended first.
    ///
    /// Cancel safe; may be called again.
    ///
    /// # Errors
    ///
    /// `Disconnected` when the machine ended first, `RolledBack` when the sandbox went back to a snapshot.
    pub async fn wait(&mut self) -> Result<ExitStatus, Error> {
        drop(self.stdin.take());
        let told = self.end.wait_for(Option::is_some).await;
        let ended = told.ok().and_then(|ended| ended.clone());
        ended
            .unwrap_or_else(|| Err((ErrorKind::Disconnected, String::new())))
            .map_err(|(kind, detail)| Error::new(kind, "wait for a command").with_detail(detail))
    }

    /// Returns how it ended, if it has.
    ///
    /// # Errors
    ///
    /// As [`Child::wait`].
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>, Error> {
        match self.end.borrow().clone() {
            None => Ok(None),
            Some(Ok(status)) => Ok(Some(status)),
            Some(Err((kind, detail))) => {
                Err(Error::new(kind, "wait for a command").with_detail(detail))
            }
        }
    }

    /// Waits until it has ended and returns its output, at most [`MAX_OUTPUT`] bytes of each stream.
    ///
    /// # Errors
    ///
    /// As [`Child::wait`].
    pub async fn wait_with_output(mut self) -> Result<Output, Error> {
        let (stdout, stderr) = (self.stdout.take(), self.stderr.take());
        let (stdout, stderr, status) = tokio::join!(collect(stdout), collect(stderr), self.wait());
        Ok(Output {
            status: status?,
            truncated: stdout.1 || stderr.1,
            stdout: stdout.0,
            stderr: stderr.0,
        })
    }

    /// Kills all of its processes, and waits until it has ended.
    ///
    /// # Errors
    ///
    /// As [`Child::wait`].
    pub async fn kill(&mut self) -> Result<(), Error> {
        self.tell(ExecControl::Kill).await;
        self.wait().await.map(drop)
    }

    /// Sends a signal, by its number on Linux, to its process group.
    pub async fn signal(&self, number: i32) {
        self.tell(ExecControl::Signal(number)).await;
    }

    /// Changes the size of its terminal.
    pub async fn resize(&self, size: TerminalSize) {
        self.tell(ExecControl::Resize(size)).await;
    }

    /// A command that has ended hears nothing.
    async fn tell(&self, control: ExecControl) {
        if let Some(sender) = &self.control {
            let _ = sender.send(control).await;
        }
    }

    /// Connects the inherited streams to this process's own.
    fn inherit(&mut self, uses: &[(protocol::Stdio, Stdio)]) -> Vec<tokio::task::JoinHandle<()>> {
        let inherited = |which| uses.contains(&(which, Stdio::inherit()));
        let mut output = Vec::new();
        if inherited(protocol::Stdio::In)
            && let Some(mut stdin) = self.stdin.take()
        {
            tokio::spawn(async move {
                drop(tokio::io::copy(&mut tokio::io::stdin(), &mut stdin).await);
            });
        }
        if inherited(protocol::Stdio::Out)
            && let Some(mut stdout) = self.stdout.take()
        {
            output.push(tokio::spawn(async move {
                drop(tokio::io::copy(&mut stdout, &mut tokio::io::stdout()).await);
            }));
        }
        if inherited(protocol::Stdio::Err)
            && let Some(mut stderr) = self.stderr.take()
        {
            output.push(tokio::spawn(async move {
                drop(tokio::io::copy(&mut stderr, &mut tokio::io::stderr()).await);
            }));
        }
        output
    }

    /// Starts the task that carries controls in and the end out. It holds the command's control stream:
    /// when it ends early, the command is killed.
    fn attend(
        &mut self,
        mut controller: ExecController,
        end: ExecEnd,
        (flusher, generation, inherited): (Flusher, u64, Vec<tokio::task::JoinHandle<()>>),
    ) {
        let (sender, mut controls) = mpsc::channel::<ExecControl>(16);
        let (told, ended) = watch::channel(None);
        (self.control, self.end) = (Some(sender), ended);
        let kill_on_drop = self.kill_on_drop;
        tokio::spawn(async move {
            let end = end.wait();
            tokio::pin!(end);
            let mut listening = true;
            let exit = loop {
                tokio::select! {
                    exit = &mut end => break exit,
                    control = controls.recv(), if listening => match control {
                        Some(control) => controller.tell(control).await,
                        // The child was dropped, after all that it was told before.
                        None => {
                            listening = false;
                            if kill_on_drop {
                                controller.tell(ExecControl::Kill).await;
                            }
                        }
                    },
                }
            };
            for stream in inherited {
                // What a background process holds open goes on without being waited for.
                drop(tokio::time::timeout(LAST_OUTPUT, stream).await);
            }
            if exit.is_ok()
                && let Err(error) = flusher.flush().await
            {
                tracing::warn!(%error, "the workspaces are not in agreement");
            }
            let ended = match exit {
                Ok(exit) => Ok(ExitStatus(exit)),
                Err(_) if flusher.has_gone_back(generation).await => {
                    Err((ErrorKind::RolledBack, String::new()))
                }
                Err(error) => Err((error.kind(), error.detail().unwrap_or_default().to_owned())),
            };
            told.send_replace(Some(ended));
        });
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus(protocol::Exit);

impl ExitStatus {
    /// Tells whether it ended by itself with the code 0.
    pub fn success(&self) -> bool {
        self.0.code == Some(0)
    }

    /// Returns its exit code, when it ended by itself.
    pub fn code(&self) -> Option<i32> {
        self.0.code
    }

    /// Returns the signal that ended it.
    pub fn signal(&self) -> Option<i32> {
        self.0.signal
    }

    /// Tells whether its time ran out.
    pub fn timed_out(&self) -> bool {
        self.0.cause == ExitCause::Timeout
    }

    /// Tells whether the kernel killed one of its processes because memory ran out. The command itself may
    /// have survived that.
    pub fn out_of_memory(&self) -> bool {
        self.0.cause == ExitCause::OutOfMemory
    }
}

impl std::fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.0.code, self.0.signal) {
            (Some(code), _) => write!(f, "exit status: {code}")?,
            (None, Some(signal)) => write!(f, "signal: {signal}")?,
            (None, None) => f.write_str("ended")?,
        }
        match self.0.cause {
            ExitCause::Timeout => f.write_str(" (its time ran out)"),
            ExitCause::OutOfMemory => f.write_str(" (memory ran out)"),
            _ => Ok(()),
        }
    }
}

/// What a command left.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
    /// Whether it wrote more than was kept.
    pub truncated: bool,
}

async fn collect(stream: Option<impl AsyncRead + Unpin>) -> (Vec<u8>, bool) {
    let Some(mut stream) = stream else {
        return (Vec::new(), false);
    };
    let mut kept = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut more = false;
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        let room = MAX_OUTPUT - kept.len();
        more |= count > room;
        kept.extend(&buffer[..count.min(room)]);
    }
    (kept, more)
}

/// The standard input of a command. `shutdown` or drop ends it.
pub struct ChildStdin(BoxStream);

/// The standard output of a command.
pub struct ChildStdout(BoxStream);

/// The standard error of a command.
pub struct ChildStderr(BoxStream);

macro_rules! debug_by_name {
    ($($name:ident),*) => {$(
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    )*};
}

debug_by_name!(ChildStdin, ChildStdout, ChildStderr);

impl AsyncWrite for ChildStdin {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

macro_rules! read_through {
    ($($name:ident),*) => {$(
        impl AsyncRead for $name {
            fn poll_read(
                mut self: Pin<&mut Self>,
                context: &mut Context<'_>,
                buffer: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                Pin::new(&mut self.0).poll_read(context, buffer)
            }
        }
    )*};
}

read_through!(ChildStdout, ChildStderr);
