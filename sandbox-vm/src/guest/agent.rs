//! The streams that the host opens, each handed to what answers it.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sandbox_base::BoxStream;
use sandbox_base::frame::{read_message, write_message};
use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;

use super::arrival;
use super::group::Groups;
use super::process::Reaper;
use super::services::{Services, Session};
use super::{exec, files, identity, setup};
use crate::channel::protocol::{
    ExecId, Failure, FailureKind, Hello, MAX_MESSAGE, MAX_OPEN, Open, Prepared, Reply, Setup,
    Stdio, VERSIONS, Welcome, agree,
};
use crate::channel::{Channel, Side, Stream};

/// How long a command waits for the streams it was promised, and a stream for its command. The host sends both
/// at once, and is trusted: the limit only keeps what a broken one forgot from staying for ever, and a guest that is
/// emulated on a busy host takes long for hundreds of commands at once.
const RENDEZVOUS_PATIENCE: Duration = Duration::from_secs(60);

/// How long the last answer may take on its way to the host, which may not read it.
const FAREWELL_PATIENCE: Duration = Duration::from_secs(1);

/// What the agent is in the place where it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// The first process of a machine or container: it prepares the place and reaps orphans.
    FirstProcess,
    /// A plain process among others. No wall at all: for tests.
    PlainProcess,
}

/// The agent: what outlives a session with the host.
#[derive(Debug, Clone)]
pub struct Agent(Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) role: Role,
    pub(crate) services: Services,
    pub(crate) reaper: Reaper,
    pub(crate) groups: Groups,
    pub(crate) session: Session,
    waiting: Mutex<HashMap<(ExecId, Stdio), Meeting>>,
    settings: Mutex<Arc<setup::Settings>>,
    /// What came of the setup, once it is done, and the name that the machine has.
    prepared: tokio::sync::Mutex<Option<(Prepared, String)>>,
}

/// A stream that waits for its command, or a command that waits for its stream.
#[derive(Debug)]
enum Meeting {
    Stream(Stream),
    Command(oneshot::Sender<Stream>),
}

impl Agent {
    /// Makes an agent and starts reaping children, on the current single-threaded runtime.
    ///
    /// # Errors
    ///
    /// When signals cannot be watched.
    pub fn new(role: Role, services: Services) -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            role,
            services,
            reaper: Reaper::start()?,
            groups: Groups::default(),
            session: Session::default(),
            waiting: Mutex::default(),
            settings: Mutex::default(),
            prepared: tokio::sync::Mutex::default(),
        })))
    }

    /// Serves one session with the host until its stream ends. A plain process then kills everything
    /// that it has started: nothing else would.
    pub async fn serve(&self, stream: BoxStream) {
        let (channel, mut incoming) = Channel::start(stream, Side::Guest);
        self.0.session.replace(Some(channel));
        while let Some(stream) = incoming.next().await {
            let agent = self.0.clone();
            tokio::spawn(async move {
                if let Err(error) = agent.answer(stream).await {
                    tracing::debug!(%error, "stream ended early");
                }
            });
        }
        self.0.session.replace(None);
        lock(&self.0.waiting).clear();
        if self.0.role == Role::PlainProcess {
            self.0.reaper.end_everything().await;
        }
    }
}

impl Shared {
    async fn answer(self: Arc<Self>, mut stream: Stream) -> io::Result<()> {
        match read_message(&mut stream, MAX_OPEN).await? {
            Open::Hello(hello) => {
                write_message(&mut stream, &self.welcome(&hello), MAX_MESSAGE).await
            }
            Open::Setup(wanted) => {
                let done = self.prepare(*wanted).await;
                write_message(&mut stream, &done, MAX_MESSAGE).await
            }
            Open::Exec(command) => exec::run(self, *command, stream).await,
            Open::Stdio {
                exec,
                stream: which,
            } => {
                acknowledge(&mut stream).await?;
                self.deliver((exec, which), stream).await;
                Ok(())
            }
            Open::File(request) => files::answer(&self, request, stream).await,
            Open::Service(name) => self.serve_named(&name, stream).await,
            Open::Power => {
                let done: Reply<()> = Ok(());
                if self.role == Role::FirstProcess {
                    tokio::task::spawn_blocking(rustix::fs::sync).await?;
                }
                write_message(&mut stream, &done, MAX_MESSAGE).await?;
                self.end().await
            }
        }
    }

    /// Prepares the place, once: a machine that was saved after that is what it is, and its next host is told
    /// what the first one was. What commands get from then on is the new host's, and so is the name.
    async fn prepare(self: &Arc<Self>, wanted: Setup) -> Reply<Prepared> {
        let mut prepared = self.prepared.lock().await;
        if let Some((prepared, name)) = &mut *prepared {
            let another = !wanted.hostname.is_empty() && *name != wanted.hostname;
            if another && self.role == Role::FirstProcess {
                identity::rename(name, &wanted.hostname)
                    .map_err(|error| Failure::io("identity of a copy", &error))?;
                *name = wanted.hostname;
            }
            self.replace_settings(setup::Settings {
                env: wanted.env,
                limits: wanted.limits,
            });
            return Ok(prepared.clone());
        }
        let name = wanted.hostname.clone();
        let done = setup::apply(self, wanted).await?;
        Ok(prepared.insert((done, name)).0.clone())
    }

    fn welcome(&self, hello: &Hello) -> Reply<Welcome> {
        let version = agree(hello).ok_or_else(|| {
            let message = format!(
                "the agent speaks versions {} to {}, the host {} to {}",
                VERSIONS.start(),
                VERSIONS.end(),
                hello.lowest,
                hello.highest
            );
            Failure::new(FailureKind::Unsupported, message)
        })?;
        if self.role == Role::FirstProcess {
            arrival::take(hello)?;
        }
        Ok(Welcome {
            version,
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            first_process: self.role == Role::FirstProcess,
        })
    }

    async fn serve_named(&self, name: &str, mut stream: Stream) -> io::Result<()> {
        let Some(handler) = self.services.stream(name).cloned() else {
            let message = format!("this agent has no service named {name:?}");
            let refusal: Reply<()> = Err(Failure::new(FailureKind::Unsupported, message));
            return write_message(&mut stream, &refusal, MAX_MESSAGE).await;
        };
        let ready: Reply<()> = Ok(());
        write_message(&mut stream, &ready, MAX_MESSAGE).await?;
        handler(stream).await;
        Ok(())
    }

    /// Ends the session and with it the process, or the machine: not before the host has been answered, as
    /// what was written is only on its way.
    async fn end(&self) -> io::Result<()> {
        if let Some(channel) = self.session.current() {
            channel.close().await;
            drop(tokio::time::timeout(FAREWELL_PATIENCE, channel.ended()).await);
        }
        match self.role {
            Role::FirstProcess => Err(super::init::power_off()),
            Role::PlainProcess => Ok(()),
        }
    }

    pub(crate) fn settings(&self) -> Arc<setup::Settings> {
        lock(&self.settings).clone()
    }

    pub(crate) fn replace_settings(&self, settings: setup::Settings) {
        *lock(&self.settings) = Arc::new(settings);
    }

    /// Hands a stream to the command that it names, which may not be here yet.
    async fn deliver(&self, key: (ExecId, Stdio), stream: Stream) {
        let met = lock(&self.waiting).remove(&key);
        match met {
            // A command that is gone drops the stream, which resets it.
            Some(Meeting::Command(command)) => drop(command.send(stream)),
            _ => {
                lock(&self.waiting).insert(key, Meeting::Stream(stream));
                tokio::time::sleep(RENDEZVOUS_PATIENCE).await;
                lock(&self.waiting).remove(&key);
            }
        }
    }

    /// Takes the stream that the host promised a command.
    pub(crate) async fn claim(&self, key: (ExecId, Stdio)) -> Result<Stream, Failure> {
        let missing = || {
            let message = format!(
                "the host named {:?} of a command and did not open it",
                key.1
            );
            Failure::new(FailureKind::Invalid, message)
        };
        let (sender, receiver) = oneshot::channel();
        match lock(&self.waiting).remove(&key) {
            Some(Meeting::Stream(stream)) => return Ok(stream),
            Some(Meeting::Command(_)) => return Err(missing()),
            None => {}
        }
        lock(&self.waiting).insert(key, Meeting::Command(sender));
        let waited = tokio::time::timeout(RENDEZVOUS_PATIENCE, receiver).await;
        lock(&self.waiting).remove(&key);
        waited.map_err(|_| missing())?.map_err(|_| missing())
    }
}

/// Tells the host that a stream is taken. The multiplexer does so only with the first bytes that are
/// sent, a command may never send any, and past 256 unanswered streams it opens no more.
async fn acknowledge(stream: &mut Stream) -> io::Result<()> {
    let sent = stream.write(&[]).await?;
    debug_assert_eq!(sent, 0, "a frame without contents");
    stream.flush().await
}

/// A poisoned lock still holds sound data: nothing is left half-changed under these.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
