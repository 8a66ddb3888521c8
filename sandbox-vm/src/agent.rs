//! The host's half of the conversation: what a harness asks of the agent inside.
//!
//! An [`Agent`] opens one stream per request, over the machine's own channel or over another process's
//! ([`StreamOpener`]): both look the same to the caller. What comes back is a stranger's: bounded,
//! decoded without panics, and text from it is shown escaped.

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use sandbox_base::frame::{read_message, write_message};
use sandbox_base::{BoxStream, ErrorKind};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::Error;
use crate::channel::protocol::{
    Entropy, Exec, ExecControl, ExecEvent, ExecId, Exit, Failure, FileReply, FileRequest,
    GuestOpen, Hello, MAX_MESSAGE, MAX_OPEN, Open, Prepared, Reply, Setup, Stdio, VERSIONS,
    Welcome,
};
use crate::channel::{Channel, Hold, Incoming, Side, Stream};

const GREET: &str = "greet the guest";

/// How long a guest that stood still may take to answer.
const WAKE_PATIENCE: Duration = Duration::from_secs(10);

/// How long a channel may take to say how it ended, once a stream of it has.
const ENDING_PATIENCE: Duration = Duration::from_secs(1);

/// How long a guest may take to fall silent. It has a frame to finish at most, but may be emulated on a busy host.
const HOLD_PATIENCE: Duration = Duration::from_secs(20);

/// Opens streams to an agent, wherever its channel is.
#[async_trait]
pub trait StreamOpener: fmt::Debug + Send + Sync + 'static {
    /// Opens a stream that the agent will answer.
    ///
    /// # Errors
    ///
    /// `BrokenPipe` when the agent is gone.
    async fn open(&self) -> io::Result<BoxStream>;

    /// Brings the channel to rest, as [`Channel::hold`] does.
    ///
    /// # Errors
    ///
    /// Those of [`Channel::hold`]; `Unsupported` from who is not the machine's owner, without more.
    async fn hold(&self) -> io::Result<Hold> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[async_trait]
impl StreamOpener for Channel {
    async fn open(&self) -> io::Result<BoxStream> {
        Ok(Box::new(Channel::open(self).await?))
    }

    async fn hold(&self) -> io::Result<Hold> {
        Channel::hold(self).await
    }
}

/// The agent of one guest, as the host sees it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Agent {
    opener: Arc<dyn StreamOpener>,
    incoming: Arc<tokio::sync::Mutex<Option<Incoming>>>,
    prepared: Arc<OnceLock<Prepared>>,
}

impl Agent {
    /// Starts a channel over a machine's byte stream, agrees with its agent on a version, and gives the guest
    /// fresh entropy and the time.
    ///
    /// # Errors
    ///
    /// `Disconnected` when the stream ends, `Unsupported` when there is no common version, `Protocol`
    /// when what answers is no agent.
    pub async fn connect(stream: BoxStream) -> Result<Self, Error> {
        let (channel, incoming) = Channel::start(stream, Side::Host);
        let agent = Self {
            opener: Arc::new(channel.clone()),
            incoming: Arc::new(tokio::sync::Mutex::new(Some(incoming))),
            prepared: Arc::default(),
        };
        let welcome: Welcome = match agent.ask(GREET, &Open::Hello(greeting()?)).await {
            Ok(welcome) => welcome,
            Err(error) => return Err(explain(error, &channel).await),
        };
        if !VERSIONS.contains(&welcome.version) {
            let detail = format!("it chose version {}", welcome.version);
            return Err(Error::new(ErrorKind::Protocol, GREET).with_detail(detail));
        }
        Ok(agent)
    }

    /// Gives a guest that stood still the time, and fresh entropy. Cancel safe.
    ///
    /// # Errors
    ///
    /// `TimedOut` when the guest does not answer within 10 s, `Disconnected` when it is gone, what it answers.
    pub async fn wake(&self) -> Result<(), Error> {
        const OPERATION: &str = "wake the guest";
        let hello = Open::Hello(greeting()?);
        match tokio::time::timeout(WAKE_PATIENCE, self.ask(OPERATION, &hello)).await {
            Ok(welcome) => welcome.map(|_: Welcome| ()),
            Err(_) => Err(
                Error::new(ErrorKind::TimedOut, OPERATION).with_detail(format!(
                    "the guest has not answered within {} s",
                    WAKE_PATIENCE.as_secs()
                )),
            ),
        }
    }

    /// Speaks to an agent that another process is connected to.
    pub fn through(opener: Arc<dyn StreamOpener>) -> Self {
        Self {
            opener,
            incoming: Arc::default(),
            prepared: Arc::default(),
        }
    }

    /// Returns the streams that the guest opens, each with the name of the service it wants. `None`
    /// when they were taken already, or belong to another process.
    pub async fn services(&self) -> Option<GuestStreams> {
        Some(GuestStreams(self.incoming.lock().await.take()?))
    }

    /// Opens a raw stream to the agent, for another process to speak on.
    ///
    /// # Errors
    ///
    /// `Disconnected` when the guest is gone.
    pub async fn raw(&self) -> Result<BoxStream, Error> {
        self.opener
            .open()
            .await
            .map_err(|error| Error::io("reach the guest", error))
    }

    /// Prepares the guest; once per machine, before any command.
    ///
    /// # Errors
    ///
    /// What the guest answers.
    pub async fn setup(&self, setup: &Setup) -> Result<(), Error> {
        let open = Open::Setup(Box::new(setup.clone()));
        let prepared = self.ask("prepare the guest", &open).await?;
        // A guest is prepared once; what it said then stays.
        self.prepared.set(prepared).ok();
        Ok(())
    }

    /// Returns what came of [`Self::setup`] when it was asked for through this agent or a clone of it.
    pub fn prepared(&self) -> Option<&Prepared> {
        self.prepared.get()
    }

    /// Brings the conversation with the guest to rest, so that the guest can be saved: until what is returned is
    /// dropped, no byte travels either way. Commands go on inside; what they say waits.
    ///
    /// Cancel safe; the conversation goes on then.
    ///
    /// # Errors
    ///
    /// `TimedOut` when the guest does not fall silent within 20 s, `Conflict` when it is held already,
    /// `Disconnected` when it is gone, `Unsupported` in a process that is not the machine's owner.
    pub async fn hold(&self) -> Result<Hold, Error> {
        const OPERATION: &str = "bring the guest to rest";
        match tokio::time::timeout(HOLD_PATIENCE, self.opener.hold()).await {
            Ok(Err(error)) if error.kind() == io::ErrorKind::ResourceBusy => {
                Err(Error::new(ErrorKind::Conflict, OPERATION).with_detail("it is at rest already"))
            }
            Ok(held) => held.map_err(|error| Error::io(OPERATION, error)),
            Err(_) => Err(
                Error::new(ErrorKind::TimedOut, OPERATION).with_detail(format!(
                    "the guest has not fallen silent within {} s",
                    HOLD_PATIENCE.as_secs()
                )),
            ),
        }
    }

    /// Has the guest flush its disks and power off. The machine ends soon after.
    ///
    /// # Errors
    ///
    /// `Disconnected` when it has gone already.
    pub async fn power_off(&self) -> Result<(), Error> {
        self.ask("power the guest off", &Open::Power).await
    }

    /// Opens a stream to a service inside.
    ///
    /// # Errors
    ///
    /// `Unsupported` when the agent was built without it.
    pub async fn service(&self, name: &str) -> Result<BoxStream, Error> {
        let operation = "reach a service inside";
        let mut stream = self.raw().await?;
        send(&mut stream, &Open::Service(name.to_owned()), operation).await?;
        let () = answer(&mut stream, operation).await?;
        Ok(stream)
    }

    /// Starts a command. Its standard streams named in `exec.stdio` come with it; unread ones hold a
    /// window each and nothing else.
    ///
    /// Dropping the returned command's control kills all of its processes.
    ///
    /// # Errors
    ///
    /// `NotFound` for a program, user or folder that is not there, `PermissionDenied`, `Exhausted`.
    pub async fn exec(&self, exec: Exec) -> Result<RunningExec, Error> {
        const OPERATION: &str = "start a command";
        let mut control = self.raw().await?;
        let (id, wanted) = (exec.id, exec.stdio.clone());
        send(&mut control, &Open::Exec(Box::new(exec)), OPERATION).await?;
        let (mut stdin, mut stdout, mut stderr) = (None, None, None);
        for which in wanted {
            let mut stream = self.raw().await?;
            send(
                &mut stream,
                &Open::Stdio {
                    exec: id,
                    stream: which,
                },
                OPERATION,
            )
            .await?;
            match which {
                Stdio::In => stdin = Some(stream),
                Stdio::Out => stdout = Some(stream),
                Stdio::Err => stderr = Some(stream),
            }
        }
        match read_message(&mut control, MAX_MESSAGE).await {
            Ok(ExecEvent::Started(pid)) => {
                let (reader, writer) = tokio::io::split(control);
                let control = ExecController(writer);
                Ok(RunningExec {
                    pid,
                    stdin,
                    stdout,
                    stderr,
                    control,
                    end: ExecEnd(reader),
                })
            }
            Ok(ExecEvent::Failed(failure)) => Err(failed(OPERATION, failure)),
            Ok(ExecEvent::Exited(_)) => Err(Error::new(ErrorKind::Protocol, OPERATION)),
            Err(error) => Err(Error::io(OPERATION, error)),
        }
    }

    /// Reads a whole regular file of at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// `NotFound`, `PermissionDenied`; `Exhausted` when it is longer than `limit`.
    pub async fn read(&self, path: &[u8], limit: u64) -> Result<Vec<u8>, Error> {
        const OPERATION: &str = "read a file inside";
        let mut stream = self.raw().await?;
        let request = FileRequest::Read {
            path: path.to_vec(),
        };
        send(&mut stream, &Open::File(request), OPERATION).await?;
        let reply: FileReply = answer(&mut stream, OPERATION).await?;
        let size = reply.size.unwrap_or(0);
        let mut bytes = Vec::new();
        let io = |error| Error::io(OPERATION, error);
        (&mut stream)
            .take(limit.saturating_add(1))
            .read_to_end(&mut bytes)
            .await
            .map_err(io)?;
        if bytes.len() as u64 > limit || size > limit {
            let detail = format!("it is longer than {limit} bytes");
            return Err(Error::new(ErrorKind::Exhausted, OPERATION).with_detail(detail));
        }
        if (bytes.len() as u64) < size {
            let detail = format!("{} of {size} bytes came", bytes.len());
            return Err(Error::new(ErrorKind::Disconnected, OPERATION).with_detail(detail));
        }
        Ok(bytes)
    }

    /// Writes a whole file, old or new, never torn, also when the future is dropped half-way; missing
    /// folders are made.
    ///
    /// # Errors
    ///
    /// `PermissionDenied`, `Conflict` when a folder is there, `Exhausted` on a full disk.
    pub async fn write(&self, file: NewFile<'_>, contents: &[u8]) -> Result<(), Error> {
        let request = FileRequest::Write {
            path: file.path.to_vec(),
            size: contents.len() as u64,
            mode: file.mode,
            user: file.user.map(str::to_owned),
        };
        let mut contents = contents;
        self.send_bytes("write a file inside", request, &mut contents)
            .await
    }

    /// Packs a file or folder as a tar archive and returns its bytes as they come; sockets, devices and
    /// the like are left out. The archive is a stranger's. One that could not be finished reads as
    /// `ConnectionReset` at its end.
    ///
    /// # Errors
    ///
    /// `NotFound`, `PermissionDenied`.
    pub async fn pack(&self, path: &[u8]) -> Result<BoxStream, Error> {
        const OPERATION: &str = "pack files inside";
        let mut stream = self.raw().await?;
        let request = FileRequest::Pack {
            path: path.to_vec(),
        };
        send(&mut stream, &Open::File(request), OPERATION).await?;
        let _: FileReply = answer(&mut stream, OPERATION).await?;
        Ok(stream)
    }

    /// Unpacks a tar archive beneath a folder inside.
    ///
    /// # Errors
    ///
    /// `PermissionDenied`, `Exhausted` on a full disk, `Io` for an archive that makes no sense.
    pub async fn unpack(
        &self,
        path: &[u8],
        user: Option<&str>,
        archive: &mut (impl AsyncRead + Unpin + ?Sized),
    ) -> Result<(), Error> {
        let request = FileRequest::Unpack {
            path: path.to_vec(),
            user: user.map(str::to_owned),
        };
        self.send_bytes("unpack files inside", request, archive)
            .await
    }

    async fn send_bytes(
        &self,
        operation: &'static str,
        request: FileRequest,
        bytes: &mut (impl AsyncRead + Unpin + ?Sized),
    ) -> Result<(), Error> {
        let io = |error| Error::io(operation, error);
        let mut stream = self.raw().await?;
        send(&mut stream, &Open::File(request), operation).await?;
        let _: FileReply = answer(&mut stream, operation).await?;
        tokio::io::copy(bytes, &mut stream).await.map_err(io)?;
        stream.shutdown().await.map_err(io)?;
        let _: FileReply = answer(&mut stream, operation).await?;
        Ok(())
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        open: &Open,
    ) -> Result<T, Error> {
        let mut stream = self.raw().await?;
        send(&mut stream, open, operation).await?;
        answer(&mut stream, operation).await
    }
}

/// A file to be written inside.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct NewFile<'a> {
    path: &'a [u8],
    mode: u32,
    user: Option<&'a str>,
}

impl<'a> NewFile<'a> {
    /// A file at an absolute path, with mode 0644, owned by the agent's own user.
    pub fn at(path: &'a [u8]) -> Self {
        Self {
            path,
            mode: 0o644,
            user: None,
        }
    }

    /// Replaces the permission bits.
    #[must_use]
    pub fn with_mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// Gives it to a user, by name or numbers.
    #[must_use]
    pub fn with_user(mut self, user: Option<&'a str>) -> Self {
        self.user = user;
        self
    }
}

/// A command that runs inside.
#[non_exhaustive]
pub struct RunningExec {
    /// Its process number inside.
    pub pid: u32,
    /// Its standard input, when asked for.
    pub stdin: Option<BoxStream>,
    /// Its standard output, when asked for; with a terminal, all output.
    pub stdout: Option<BoxStream>,
    /// Its standard error, when asked for.
    pub stderr: Option<BoxStream>,
    /// What it can be told.
    pub control: ExecController,
    /// How it ends.
    pub end: ExecEnd,
}

impl fmt::Debug for RunningExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningExec")
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}

/// Tells a running command what to do. Dropping both this and its [`ExecEnd`] kills the command.
pub struct ExecController(tokio::io::WriteHalf<BoxStream>);

impl fmt::Debug for ExecController {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ExecController")
    }
}

impl ExecController {
    /// Tells it. A command that has ended hears nothing, which is no error.
    ///
    /// Not cancel safe.
    pub async fn tell(&mut self, control: ExecControl) {
        drop(write_message(&mut self.0, &control, MAX_MESSAGE).await);
    }
}

/// Tells how a running command ended.
pub struct ExecEnd(tokio::io::ReadHalf<BoxStream>);

impl fmt::Debug for ExecEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ExecEnd")
    }
}

impl ExecEnd {
    /// Waits for the end.
    ///
    /// Not cancel safe: a future dropped half-way loses the answer.
    ///
    /// # Errors
    ///
    /// `Disconnected` when the guest died first.
    pub async fn wait(mut self) -> Result<Exit, Error> {
        const OPERATION: &str = "wait for a command";
        match read_message(&mut self.0, MAX_MESSAGE).await {
            Ok(ExecEvent::Exited(exit)) => Ok(exit),
            Ok(ExecEvent::Failed(failure)) => Err(failed(OPERATION, failure)),
            Ok(ExecEvent::Started(_)) => Err(Error::new(ErrorKind::Protocol, OPERATION)),
            Err(error) => {
                Err(Error::io(OPERATION, error)
                    .with_detail("the guest ended before the command did"))
            }
        }
    }
}

/// The streams that a guest opens to the host.
#[derive(Debug)]
pub struct GuestStreams(Incoming);

impl GuestStreams {
    /// Waits for the next stream; `None` when the guest is gone. Cancel safe.
    pub async fn next(&mut self) -> Option<Stream> {
        self.0.next().await
    }

    /// Reads the name of the service that a stream wants. To be called from a task of its own, under a
    /// time limit: the guest may take for ever to say it.
    ///
    /// # Errors
    ///
    /// `Protocol` for anything but a name.
    pub async fn service_of(stream: &mut Stream) -> Result<String, Error> {
        let GuestOpen::Service(name) = read_message(stream, MAX_MESSAGE)
            .await
            .map_err(|error| Error::io("answer a stream of the guest", error))?;
        Ok(name)
    }
}

/// Makes a name for a command that no other client of the machine can guess.
///
/// # Errors
///
/// When the system has no randomness to give.
pub fn new_exec_id() -> Result<ExecId, Error> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).map_err(|error| no_randomness("name a command", &error))?;
    Ok(ExecId(bytes))
}

fn no_randomness(operation: &'static str, error: &getrandom::Error) -> Error {
    Error::new(ErrorKind::Io, operation).with_detail(error.to_string())
}

/// Returns what the host says to a guest: what time it is, and randomness for it alone.
fn greeting() -> Result<Hello, Error> {
    let mut entropy = [0; 32];
    getrandom::fill(&mut entropy).map_err(|error| no_randomness(GREET, &error))?;
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).ok();
    Ok(Hello {
        lowest: *VERSIONS.start(),
        highest: *VERSIONS.end(),
        entropy: Entropy(entropy),
        clock: since_1970
            .and_then(|now| Some((i64::try_from(now.as_secs()).ok()?, now.subsec_nanos()))),
    })
}

/// Tells a peer that went away from one that is no agent: its streams read as ended in both cases.
async fn explain(error: Error, channel: &Channel) -> Error {
    if error.kind() != ErrorKind::Disconnected {
        return error;
    }
    drop(tokio::time::timeout(ENDING_PATIENCE, channel.ended()).await);
    if channel.was_broken_by_peer() {
        return Error::new(ErrorKind::Protocol, GREET)
            .with_detail("what it sent is not the agent's protocol")
            .with_source(error);
    }
    error
}

async fn send(
    stream: &mut (impl AsyncWrite + Unpin),
    open: &Open,
    operation: &'static str,
) -> Result<(), Error> {
    write_message(stream, open, MAX_OPEN)
        .await
        .map_err(|error| Error::io(operation, error))
}

async fn answer<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
    operation: &'static str,
) -> Result<T, Error> {
    let reply: Reply<T> = read_message(stream, MAX_MESSAGE)
        .await
        .map_err(|error| Error::io(operation, error))?;
    reply.map_err(|failure| failed(operation, failure))
}

fn failed(operation: &'static str, failure: Failure) -> Error {
    let text: String = failure.message.chars().take(1000).collect();
    Error::new(failure.kind.into(), operation).with_detail(text.escape_debug().to_string())
}
