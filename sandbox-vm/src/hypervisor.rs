//! The seam: what a backend is, and what a machine of it can do.
//!
//! A [`Hypervisor`] starts machines; a [`Machine`] is one that runs. Neither knows what is said over the
//! channel: [`HypervisorExt::boot`] adds the conversation with the agent, so that every backend gets it
//! by implementing the two small traits.
//!
//! ```text
//!  Hypervisor ── start(MachineSpec) ──▶ Machine ── connect() ──▶ BoxStream ──▶ Agent
//!      │ probe()                          │ facts(), wait(), kill()
//!      ▼                                  ▼
//!  Availability, with its reasons       gone: process, disks, sockets
//! ```

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use sandbox_base::{BoxStream, ErrorKind};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::agent::Agent;
use crate::snapshot::Taken;
use crate::template::{Started, Templates};

/// A way to wall something off: one backend with its configuration.
///
/// Implementations never fall back to less than they are: what cannot be had is `Unsupported`, with the
/// reason.
#[async_trait]
pub trait Hypervisor: fmt::Debug + Send + Sync + 'static {
    /// Returns the backend's name, as in the tool's `--backend`.
    fn name(&self) -> &'static str;

    /// Returns what machines of this backend can do.
    fn capabilities(&self) -> Capabilities;

    /// Finds out whether machines can be started here, and how they would run.
    ///
    /// Idempotent, bounded in time, and remembered where it is costly (once per boot of the host).
    ///
    /// # Errors
    ///
    /// `Unsupported` with the reason and what to do about it.
    async fn probe(&self) -> Result<Availability, Error>;

    /// Starts a machine and returns as soon as its hypervisor runs; the guest may still be booting.
    ///
    /// Dropping the future ends what was started.
    ///
    /// # Errors
    ///
    /// `Unsupported` where the backend is missing, `NotFound` and `Invalid` for what the specification
    /// names, `Exhausted` for memory and disk. Nothing is left behind.
    async fn start(&self, spec: &MachineSpec) -> Result<Arc<dyn Machine>, Error>;
}

/// A machine that was started.
///
/// Dropping the last handle ends it as [`Machine::kill`] does.
#[async_trait]
pub trait Machine: fmt::Debug + Send + Sync + 'static {
    /// Returns what it is and how it runs.
    fn facts(&self) -> &MachineFacts;

    /// Connects to the guest's agent. One connection at a time: a second one waits for the first to end
    /// or answers `Conflict`.
    ///
    /// # Errors
    ///
    /// `Disconnected` when the machine has ended.
    async fn connect(&self) -> Result<BoxStream, Error>;

    /// Saves the machine while it runs: memory, devices and disks of one moment, in the new folder `target`
    /// ([`crate::snapshot`]). The guest stands still for a moment, and `agent`, which speaks with it, is brought to
    /// rest for that ([`Agent::hold`]). Folders on one file system with the machine's, where that shares blocks, make
    /// it shortest.
    ///
    /// The future may be dropped: the machine goes on then, and nothing is left behind.
    ///
    /// # Errors
    ///
    /// `Unsupported`, with the reason, for a backend or a machine that cannot be saved; those of [`Agent::hold`];
    /// `Conflict` when `target` is there, `Exhausted` when the disk is full. The machine goes on all the same.
    async fn snapshot(&self, agent: &Agent, target: &Path) -> Result<Taken, Error> {
        let _ = (agent, target);
        Err(unsupported("save a machine while it runs", self.facts()))
    }

    /// Has the machine stand still with all it has: none of its instructions is executed until
    /// [`Machine::resume`]. Who speaks with the guest waits meanwhile. Idempotent.
    ///
    /// # Errors
    ///
    /// `Unsupported` for a backend that cannot; `Disconnected` when the machine has ended.
    async fn pause(&self) -> Result<(), Error> {
        Err(unsupported("pause a machine", self.facts()))
    }

    /// Lets a paused machine go on. The guest's clocks have stood still, too: [`Agent::wake`] tells it what time it
    /// is. Idempotent.
    ///
    /// # Errors
    ///
    /// Those of [`Machine::pause`].
    async fn resume(&self) -> Result<(), Error> {
        Err(unsupported("resume a machine", self.facts()))
    }

    /// Waits until the machine has ended and says how. Cancel safe; may be called again. The future does
    /// not keep the machine alive.
    fn wait(&self) -> BoxFuture<'static, MachineEnd>;

    /// Ends the machine at once and waits until its process is gone and its files are removed.
    /// Idempotent; goes on when the future is dropped.
    ///
    /// # Errors
    ///
    /// What could not be removed, by name.
    async fn kill(&self) -> Result<(), Error>;
}

fn unsupported(operation: &str, facts: &MachineFacts) -> Error {
    Error::new(ErrorKind::Unsupported, operation)
        .with_detail(format!("the backend {} cannot", facts.backend))
}

/// Convenience for every [`Hypervisor`].
#[async_trait]
pub trait HypervisorExt: Hypervisor {
    /// Starts a machine, waits for its agent and prepares the guest.
    ///
    /// A boot that stays silent for `patience` is killed and tried once more: under emulation a kernel
    /// may hang in its first moments, and the next one does not. The second try is never restored from a
    /// template.
    ///
    /// Dropping the future ends what was started.
    ///
    /// # Errors
    ///
    /// Those of [`Hypervisor::start`]; `TimedOut` when the guest stayed silent twice; `Disconnected`
    /// when it died on the way, with the last lines of its console.
    async fn boot(
        &self,
        spec: &MachineSpec,
        patience: Duration,
    ) -> Result<(Arc<dyn Machine>, Agent), Error> {
        match boot_once(self, spec, patience).await {
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                tracing::warn!(backend = self.name(), %error, "the guest stayed silent; once more");
                let mut spec = spec.clone();
                spec.templates = Templates::Off;
                boot_once(self, &spec, patience).await
            }
            done => done,
        }
    }
}

impl<T: Hypervisor + ?Sized> HypervisorExt for T {}

async fn boot_once<T: Hypervisor + ?Sized>(
    hypervisor: &T,
    spec: &MachineSpec,
    patience: Duration,
) -> Result<(Arc<dyn Machine>, Agent), Error> {
    const OPERATION: &str = "boot a guest";
    let machine = hypervisor.start(spec).await?;
    let greet = async {
        let agent = Agent::connect(machine.connect().await?).await?;
        tracing::debug!(name = spec.name, "the guest answers");
        agent.setup(&spec.setup).await?;
        tracing::debug!(name = spec.name, "the guest is prepared");
        Ok(agent)
    };
    let greeted = tokio::select! {
        greeted = tokio::time::timeout(patience, greet) => greeted,
        _ = machine.wait() => Ok(Err(Error::new(ErrorKind::Disconnected, OPERATION))),
    };
    let refused = match greeted {
        Ok(Ok(agent)) => return Ok((machine, agent)),
        Ok(Err(error)) => error,
        Err(_) => Error::new(ErrorKind::TimedOut, OPERATION).with_detail(format!(
            "no answer from the guest within {} s",
            patience.as_secs()
        )),
    };
    if let Err(error) = machine.kill().await {
        tracing::warn!(%error, "a failed boot left something behind");
    }
    let end = machine.wait().await;
    Err(match refused.kind() {
        // A machine that dies closes its channel first; how it died says more.
        ErrorKind::Disconnected => {
            Error::new(ErrorKind::Disconnected, OPERATION).with_detail(end.to_string())
        }
        ErrorKind::TimedOut => {
            let said = format!("its console said: {}", end.last_lines());
            let reason = refused.detail().unwrap_or("no answer from the guest");
            Error::new(ErrorKind::TimedOut, OPERATION).with_detail(format!("{reason}; {said}"))
        }
        _ => refused,
    })
}

/// What a machine is made of.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct MachineSpec {
    /// A short name for people, process lists and logs.
    pub name: String,
    /// A folder that belongs to this machine alone; what is put there is removed with it.
    pub folder: PathBuf,
    /// Files and folders to remove with the machine when its owner died without a word. The last one is
    /// a folder, which is claimed meanwhile (`sandbox_base::watchdog::claim`).
    pub remove_when_orphaned: Vec<PathBuf>,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Disks in the order in which the guest sees them; the first ones are the root's.
    pub disks: Vec<Disk>,
    /// What the agent is asked to prepare.
    pub setup: crate::channel::protocol::Setup,
    /// Whether it may be restored instead of booted, by a backend that has templates.
    pub templates: Templates,
    /// The folder of a snapshot from which it goes on instead of booting. Its writable disks are made then, as copies of
    /// those that were saved, and must not be there; `setup` has been done.
    pub snapshot: Option<PathBuf>,
}

impl MachineSpec {
    /// Describes a machine with one processor and 512 MiB of memory, in a folder of its own. It may be restored,
    /// if its backend restores.
    pub fn new(name: impl Into<String>, folder: impl Into<PathBuf>) -> Self {
        let (name, folder) = (name.into(), folder.into());
        Self {
            name,
            folder,
            cpus: 1,
            memory_mib: 512,
            templates: Templates::Use,
            ..Self::default()
        }
    }
}

/// A disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Disk {
    /// The image, raw.
    pub path: PathBuf,
    /// Whether the guest can write to it.
    pub read_only: bool,
}

impl Disk {
    /// A disk that the guest can only read. Many machines can share its image.
    pub fn read_only(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            read_only: true,
        }
    }

    /// A disk that belongs to this machine.
    pub fn writable(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            read_only: false,
        }
    }
}

/// What a backend's machines can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Capabilities {
    /// The class of the wall.
    pub isolation: Isolation,
    /// Whether commands can run as any user, root included.
    pub users: bool,
    /// Whether the machine's root is made by its agent from disks.
    pub disks: bool,
    /// Whether every process of a command can be killed, limited and accounted for, also one that left
    /// its session: the guest's kernel keeps commands in control groups.
    pub control_groups: bool,
    /// Whether connections and name lookups of programs that know of no proxy can be led to the host. A
    /// kernel may still lack what it takes: [`Agent::prepared`] tells.
    pub capture: bool,
    /// Whether machines are restored from templates where that is possible ([`crate::template`]).
    pub templates: bool,
    /// Whether machines can be paused.
    pub pause: bool,
}

impl Capabilities {
    #[cfg_attr(
        not(target_os = "linux"),
        allow(dead_code, reason = "Linux has all backends so far")
    )]
    pub(crate) fn new(isolation: Isolation) -> Self {
        Self {
            isolation,
            users: true,
            disks: true,
            control_groups: true,
            capture: true,
            templates: false,
            pause: false,
        }
    }
}

/// What stands between the guest and the host, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Isolation {
    /// Nothing: a plain process. For tests only.
    None,
    /// The host's kernel, with namespaces and filters in front of it.
    SharedKernel,
    /// A kernel in user space answers most system calls.
    UserSpaceKernel,
    /// A kernel of its own in a virtual machine.
    VirtualMachine,
}

/// How a machine's instructions are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Acceleration {
    /// By the processor.
    Hardware,
    /// By software, many times slower. QEMU's authors do not call this a security boundary.
    Emulated,
    /// There is no virtual machine.
    NotApplicable,
}

/// That a backend can be used here, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Availability {
    /// The backend's program and version, for people.
    pub version: String,
    /// How machines would run.
    pub acceleration: Acceleration,
    /// What a person should know: why there is no acceleration, say.
    pub notes: Vec<String>,
}

/// What a machine is and how it runs.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MachineFacts {
    /// The backend's name.
    pub backend: &'static str,
    /// The class of the wall.
    pub isolation: Isolation,
    /// How it runs.
    pub acceleration: Acceleration,
    /// The process that is the machine, where there is one.
    pub pid: Option<u32>,
    /// Whether it was restored, or why it was booted.
    pub started: Started,
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct MachineEnd {
    /// Why, when it was not in order: neither the guest powered off nor was it asked to end.
    pub failure: Option<String>,
    /// The last of what the guest wrote to its console, and the hypervisor to its own output: bytes of
    /// a stranger.
    pub console: String,
}

impl MachineEnd {
    /// Returns the last lines of the console, escaped for a terminal.
    pub fn last_lines(&self) -> String {
        let lines: Vec<&str> = self
            .console
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        let last = &lines[lines.len().saturating_sub(5)..];
        let escaped: Vec<String> = last
            .iter()
            .map(|line| {
                line.chars()
                    .take(300)
                    .collect::<String>()
                    .escape_debug()
                    .to_string()
            })
            .collect();
        if escaped.is_empty() {
            "(nothing)".into()
        } else {
            escaped.join(" | ")
        }
    }
}

impl fmt::Display for MachineEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.failure {
            None => f.write_str("the machine ended")?,
            Some(failure) => f.write_str(failure)?,
        }
        write!(f, "; its console said: {}", self.last_lines())
    }
}
