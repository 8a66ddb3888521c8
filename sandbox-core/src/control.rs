//! The owner's socket: how other processes use a sandbox.
//!
//! It lies in the sandbox's runtime folder, mode 0700, so who can connect is who could signal the owner.
//! The connection is a channel of many streams like the one to the guest ([`sandbox_vm::channel`]), and
//! each stream begins with one message:
//!
//! | opened with | then |
//! |---|---|
//! | `Guest` | the stream is spliced to one to the guest's agent: commands, files |
//! | `Call` | the owner does it and answers |

use std::io;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use sandbox_base::frame::{read_message, write_message};
use sandbox_base::{BoxStream, Error, ErrorKind};
use sandbox_net::policy::{Layers, RuleSet};
use sandbox_sync::Resolution;
use sandbox_vm::Agent;
use sandbox_vm::agent::StreamOpener;
use sandbox_vm::channel::{Channel, Incoming, Side, Stream};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::check::NetworkCheck;
use crate::description::Description;
#[cfg(unix)]
use crate::owner::Outside;
use crate::owner::{Defaults, Owner};
#[cfg(unix)]
use crate::saved::SandboxSnapshot;
#[cfg(unix)]
use crate::snapshots::{RestoreReport, WorkspaceSnapshot};
use crate::spec::Workspace;
use crate::workspace::{Changes, Decision, ReviewReport, SyncReport, SyncStatus, Workspaces};

/// The longest message, in bytes: a report can name many paths.
const MAX_MESSAGE: usize = 64 << 20;

/// How long an answer that is on its way may take.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long to wait before listening again where that failed.
const BREATH: Duration = Duration::from_millis(100);

/// First message of a stream.
#[derive(Debug, Serialize, Deserialize)]
enum Open {
    Guest,
    Call(Call),
}

/// What an owner can be asked to do.
#[derive(Debug, Serialize, Deserialize)]
enum Call {
    Describe,
    Defaults,
    Generation,
    Flush,
    Pause,
    Resume,
    Stop,
    Remove,
    Network,
    /// A policy as JSON: what it holds is that crate's own.
    SetNetwork(String),
    /// Rules to add, likewise.
    ExtendNetwork(String),
    RevokeSecret(String),
    ReloadSecret(String),
    NetworkLayers,
    ReloadNetwork,
    Changes,
    /// What was chosen, as JSON.
    Decide(Decision, String),
    Undo,
    /// The name, or none for an automatic one.
    #[cfg(unix)]
    Snapshot(Option<String>),
    /// The name, and patterns of paths.
    #[cfg(unix)]
    Restore(String, Vec<String>),
    /// Of the whole sandbox.
    #[cfg(unix)]
    Save(String),
    #[cfg(unix)]
    RollBack(String, Outside),
    /// The names of the copies.
    #[cfg(unix)]
    Fork(Vec<String>),
    /// As JSON.
    AddWorkspace(String),
    SyncStatus,
    PauseSync(bool),
    /// Whether what was deleted is deleted on the other side, too.
    ResumeSync(bool),
    /// Other rules than those of the sandbox as JSON, if any, and a target.
    CheckNetwork(Option<String>, String),
}

/// Answers travel as JSON inside: they are what programs outside read, too.
type Answer = Result<String, Refusal>;

#[derive(Debug, Serialize, Deserialize)]
struct Refusal {
    kind: ErrorKind,
    operation: String,
    detail: Option<String>,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let mut detail = error.detail().map(str::to_owned);
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            let text = cause.to_string();
            detail = Some(detail.map_or(text.clone(), |detail| format!("{detail}: {text}")));
            source = cause.source();
        }
        Self {
            kind: error.kind(),
            operation: error.operation().to_owned(),
            detail,
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        let error = Self::new(refusal.kind, refusal.operation);
        match refusal.detail {
            Some(detail) => error.with_detail(detail),
            None => error,
        }
    }
}

/// Begins to serve an owner's socket.
#[cfg(unix)]
pub(crate) async fn serve(owner: &Arc<Owner>) -> Result<Answers, Error> {
    let path = owner.socket().await?;
    drop(std::fs::remove_file(&path));
    let listener = tokio::net::UnixListener::bind(&path)
        .map_err(|error| Error::io(format!("listen on {}", path.display()), error))?;
    let weak = Arc::downgrade(owner);
    let (open, answers) = mpsc::channel(1);
    let task = tokio::spawn(async move {
        // Goes with this task, which goes with the owner.
        let (_serving, served) = watch::channel(());
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let connection = Channel::start(Box::new(stream), Side::Guest);
                    let life = (served.clone(), open.clone());
                    tokio::spawn(converse(weak.clone(), connection, life));
                }
                // This process has no descriptor to spare at the moment.
                Err(error) => {
                    tracing::warn!(%error, "a client of the sandbox was not heard");
                    tokio::time::sleep(BREATH).await;
                }
            }
        }
    });
    owner.keep(task.abort_handle());
    Ok(Answers(answers))
}

/// The answers that are on their way.
#[derive(Debug)]
pub(crate) struct Answers(mpsc::Receiver<()>);

impl Answers {
    /// Waits until all have arrived. To be called once no more are to come: the owner has been dropped.
    pub(crate) async fn arrived(mut self) {
        while self.0.recv().await.is_some() {}
    }
}

#[cfg(not(unix))]
pub(crate) async fn serve(_owner: &Arc<Owner>) -> Result<Answers, Error> {
    Err(Error::new(ErrorKind::Unsupported, "serve other processes")
        .with_detail("this system has no Unix sockets that the sandbox could use"))
}

/// Answers a client until it or the owner is gone. An idle client is not waited for; answers are.
async fn converse(
    owner: Weak<Owner>,
    (channel, mut incoming): (Channel, Incoming),
    (mut served, open): (watch::Receiver<()>, mpsc::Sender<()>),
) {
    let pending = open.downgrade();
    drop(open);
    let mut answers = JoinSet::new();
    loop {
        let stream = tokio::select! {
            stream = incoming.next() => stream,
            _ = served.changed() => None,
            Some(_) = answers.join_next() => continue,
        };
        let Some(stream) = stream else { break };
        let (owner, pending) = (owner.clone(), pending.upgrade());
        answers.spawn(async move {
            if let Err(error) = answer(owner, stream, pending).await {
                tracing::debug!(%error, "a control stream ended early");
            }
        });
    }
    // The owner's end is what the last answer may tell of.
    let told = async { while answers.join_next().await.is_some() {} };
    drop(tokio::time::timeout(FAREWELL, told).await);
    channel.close().await;
}

async fn answer(
    owner: Weak<Owner>,
    mut stream: Stream,
    pending: Option<mpsc::Sender<()>>,
) -> io::Result<()> {
    let open = read_message(&mut stream, MAX_MESSAGE).await?;
    let Some(owner) = owner.upgrade() else {
        return Ok(());
    };
    match open {
        Open::Guest => {
            let guest = async { owner.running()?.agent.raw().await }.await;
            drop((owner, pending));
            let mut guest = guest.map_err(|error| io::Error::other(error.to_string()))?;
            tokio::io::copy_bidirectional(&mut stream, &mut guest).await?;
            Ok(())
        }
        Open::Call(call) => {
            let answer: Answer = obey(owner, call).await.map_err(Refusal::from);
            write_message(&mut stream, &answer, MAX_MESSAGE).await?;
            tokio::io::AsyncWriteExt::shutdown(&mut stream).await?;
            // The asker drops the stream once it has read: until then this process stays.
            let mut byte = [0];
            let read = tokio::io::AsyncReadExt::read(&mut stream, &mut byte);
            drop(tokio::time::timeout(FAREWELL, read).await);
            Ok(())
        }
    }
}

/// Takes the owner: an answer on its way must not keep alive what it says is gone.
async fn obey(owner: Arc<Owner>, call: Call) -> Result<String, Error> {
    match call {
        Call::Describe => json(&owner.describe()?),
        Call::Defaults => json(&*owner.running()?.defaults),
        Call::Generation => json(&owner.generation()),
        Call::Flush => {
            let workspaces = owner.running()?.workspaces;
            drop(owner);
            json(&workspaces.flush().await?)
        }
        Call::Changes => json(&of(owner)?.changes().await?),
        Call::Decide(decision, chosen) => {
            let chosen = from_json(&chosen)?;
            json(&of(owner)?.decide(decision, &chosen).await?)
        }
        Call::Undo => json(&of(owner)?.undo().await?),
        #[cfg(unix)]
        Call::Snapshot(name) => json(&of(owner)?.snapshot(name.as_deref()).await?),
        #[cfg(unix)]
        Call::Restore(name, patterns) => json(&of(owner)?.restore(&name, &patterns).await?),
        #[cfg(unix)]
        Call::Save(name) => json(&owner.save(&name).await?),
        #[cfg(unix)]
        Call::RollBack(name, outside) => json(&owner.roll_back(&name, outside).await?),
        #[cfg(unix)]
        Call::Fork(names) => json(&owner.fork_detached(names).await?),
        Call::AddWorkspace(workspace) => json(&owner.add_workspace(from_json(&workspace)?).await?),
        Call::SyncStatus => json(&of(owner)?.status()),
        Call::PauseSync(paused) => json(&of(owner)?.set_paused(paused).await?),
        Call::ResumeSync(propagates) => json(&of(owner)?.resume(resolution(propagates)).await?),
        Call::Pause => json(&owner.pause().await?),
        Call::Resume => json(&owner.resume().await?),
        Call::Stop => json(&owner.stop().await?),
        Call::Remove => json(&owner.remove().await?),
        Call::Network => json(&owner.network()?),
        Call::NetworkLayers => json(&owner.network_layers()?),
        Call::ReloadNetwork => json(&owner.reload_network().await?),
        Call::CheckNetwork(rules, target) => {
            let rules = rules.map(|rules| from_json(&rules)).transpose()?;
            json(&owner.check_network(&target, rules).await?)
        }
        Call::SetNetwork(policy) => json(&owner.set_network(from_json(&policy)?).await?),
        Call::ExtendNetwork(rules) => json(&owner.extend_network(&from_json(&rules)?).await?),
        Call::RevokeSecret(name) => json(&owner.revoke_secret(&name)?),
        Call::ReloadSecret(name) => json(&owner.reload_secret(&name).await?),
    }
}

/// Returns the workspaces, which do not keep the machine alive.
fn of(owner: Arc<Owner>) -> Result<Arc<Workspaces>, Error> {
    Ok(owner.running()?.workspaces)
}

fn resolution(propagates: bool) -> Resolution {
    match propagates {
        true => Resolution::Propagate,
        false => Resolution::Restore,
    }
}

/// A sandbox that another process owns.
#[derive(Debug, Clone)]
pub(crate) struct Remote {
    channel: Channel,
}

impl Remote {
    /// Connects to an owner's socket.
    #[cfg(unix)]
    pub(crate) async fn connect(path: &Path) -> Result<Self, Error> {
        let stream = tokio::net::UnixStream::connect(path)
            .await
            .map_err(|error| Error::io("reach the sandbox's owner", error))?;
        let (channel, _incoming) = Channel::start(Box::new(stream), Side::Host);
        Ok(Self { channel })
    }

    #[cfg(not(unix))]
    pub(crate) async fn connect(_path: &Path) -> Result<Self, Error> {
        Err(Error::new(
            ErrorKind::Unsupported,
            "reach the sandbox's owner",
        ))
    }

    /// Speaks to the guest through the owner.
    pub(crate) fn agent(&self) -> Agent {
        Agent::through(Arc::new(self.clone()))
    }

    pub(crate) async fn describe(&self) -> Result<Description, Error> {
        self.call(Call::Describe).await
    }

    pub(crate) async fn defaults(&self) -> Result<Defaults, Error> {
        self.call(Call::Defaults).await
    }

    pub(crate) async fn generation(&self) -> Result<u64, Error> {
        self.call(Call::Generation).await
    }

    pub(crate) async fn flush(&self) -> Result<Vec<SyncReport>, Error> {
        self.call(Call::Flush).await
    }

    pub(crate) async fn pause(&self) -> Result<(), Error> {
        self.call(Call::Pause).await
    }

    pub(crate) async fn resume(&self) -> Result<(), Error> {
        self.call(Call::Resume).await
    }

    pub(crate) async fn stop(&self) -> Result<(), Error> {
        self.call(Call::Stop).await
    }

    pub(crate) async fn remove(&self) -> Result<(), Error> {
        self.call(Call::Remove).await
    }

    pub(crate) async fn network(&self) -> Result<RuleSet, Error> {
        self.call(Call::Network).await
    }

    pub(crate) async fn network_layers(&self) -> Result<Layers, Error> {
        self.call(Call::NetworkLayers).await
    }

    pub(crate) async fn reload_network(&self) -> Result<(), Error> {
        self.call(Call::ReloadNetwork).await
    }

    pub(crate) async fn check_network(
        &self,
        target: &str,
        rules: Option<&RuleSet>,
    ) -> Result<NetworkCheck, Error> {
        let rules = rules.map(json).transpose()?;
        self.call(Call::CheckNetwork(rules, target.to_owned()))
            .await
    }

    pub(crate) async fn set_network(&self, policy: &RuleSet) -> Result<(), Error> {
        self.call(Call::SetNetwork(json(policy)?)).await
    }

    pub(crate) async fn extend_network(&self, rules: &RuleSet) -> Result<RuleSet, Error> {
        self.call(Call::ExtendNetwork(json(rules)?)).await
    }

    pub(crate) async fn revoke_secret(&self, name: &str) -> Result<(), Error> {
        self.call(Call::RevokeSecret(name.to_owned())).await
    }

    pub(crate) async fn reload_secret(&self, name: &str) -> Result<(), Error> {
        self.call(Call::ReloadSecret(name.to_owned())).await
    }

    pub(crate) async fn add_workspace(&self, workspace: &Workspace) -> Result<(), Error> {
        self.call(Call::AddWorkspace(json(workspace)?)).await
    }

    pub(crate) async fn changes(&self) -> Result<Changes, Error> {
        self.call(Call::Changes).await
    }

    pub(crate) async fn decide(
        &self,
        decision: Decision,
        chosen: &Changes,
    ) -> Result<Vec<ReviewReport>, Error> {
        self.call(Call::Decide(decision, json(chosen)?)).await
    }

    pub(crate) async fn undo(&self) -> Result<Vec<ReviewReport>, Error> {
        self.call(Call::Undo).await
    }

    #[cfg(unix)]
    pub(crate) async fn snapshot(
        &self,
        name: Option<&str>,
    ) -> Result<Vec<WorkspaceSnapshot>, Error> {
        self.call(Call::Snapshot(name.map(str::to_owned))).await
    }

    #[cfg(unix)]
    pub(crate) async fn restore(
        &self,
        name: &str,
        patterns: &[String],
    ) -> Result<Vec<RestoreReport>, Error> {
        self.call(Call::Restore(name.to_owned(), patterns.to_vec()))
            .await
    }

    #[cfg(unix)]
    pub(crate) async fn save(&self, name: &str) -> Result<SandboxSnapshot, Error> {
        self.call(Call::Save(name.to_owned())).await
    }

    #[cfg(unix)]
    pub(crate) async fn fork(&self, names: Vec<String>) -> Result<(), Error> {
        self.call(Call::Fork(names)).await
    }

    #[cfg(unix)]
    pub(crate) async fn roll_back(&self, name: &str, outside: Outside) -> Result<(), Error> {
        self.call(Call::RollBack(name.to_owned(), outside)).await
    }

    pub(crate) async fn sync_status(&self) -> Result<Vec<SyncStatus>, Error> {
        self.call(Call::SyncStatus).await
    }

    pub(crate) async fn pause_sync(&self, paused: bool) -> Result<(), Error> {
        self.call(Call::PauseSync(paused)).await
    }

    pub(crate) async fn resume_sync(
        &self,
        resolution: Resolution,
    ) -> Result<Vec<SyncReport>, Error> {
        let propagates = resolution == Resolution::Propagate;
        self.call(Call::ResumeSync(propagates)).await
    }

    /// Tells whether the owner is gone.
    pub(crate) fn has_ended(&self) -> bool {
        self.channel.has_ended()
    }

    /// Waits until the owner is gone.
    pub(crate) async fn ended(&self) {
        self.channel.ended().await;
    }

    async fn call<T: DeserializeOwned>(&self, call: Call) -> Result<T, Error> {
        const OPERATION: &str = "ask the sandbox's owner";
        let io = |error| Error::io(OPERATION, error);
        let mut stream = self.channel.open().await.map_err(io)?;
        write_message(&mut stream, &Open::Call(call), MAX_MESSAGE)
            .await
            .map_err(io)?;
        let answer: Answer = read_message(&mut stream, MAX_MESSAGE).await.map_err(io)?;
        from_json(&answer?)
    }
}

#[async_trait]
impl StreamOpener for Remote {
    async fn open(&self) -> io::Result<BoxStream> {
        let mut stream = self.channel.open().await?;
        write_message(&mut stream, &Open::Guest, MAX_MESSAGE).await?;
        Ok(Box::new(stream))
    }
}

fn json(value: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(value)
        .map_err(|error| Error::new(ErrorKind::Io, "write an answer down").with_source(error))
}

fn from_json<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    serde_json::from_str(text)
        .map_err(|error| Error::new(ErrorKind::Protocol, "read an answer").with_source(error))
}
