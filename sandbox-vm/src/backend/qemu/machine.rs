//! One running machine.

use std::fs::{self, File};
use std::io::{self, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use sandbox_base::watchdog::{Event, Job, Watchdog};
use sandbox_base::{BoxStream, ErrorKind};
use serde_json::json;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Mutex;

use super::arguments::{Endpoints, Launch, arguments};
use super::config::QemuConfig;
use super::qmp::Qmp;
use super::running::Ancestry;
use crate::hypervisor::{Isolation, Machine, MachineEnd, MachineFacts, MachineSpec};
use crate::snapshot::Taken;
use crate::template::{ColdReason, Started};
use crate::{Agent, Error};

const OPERATION: &str = "start QEMU";

/// The socket of the guest's virtio-serial port, in the machine's folder.
pub(super) const AGENT_SOCKET: &str = "agent.sock";

/// The socket of QEMU's control protocol, in the machine's folder.
pub(super) const QMP_SOCKET: &str = "qmp.sock";

/// How long QEMU may take to obey before it is killed.
const QUIT_PATIENCE: Duration = Duration::from_millis(500);

/// How long QEMU may take to obey; the longest is to read or write a machine's state, a third of a megabyte.
const ORDER_PATIENCE: Duration = Duration::from_secs(10);

/// A machine that QEMU runs.
#[derive(Debug)]
pub(super) struct QemuMachine {
    facts: MachineFacts,
    folder: PathBuf,
    watchdog: Watchdog,
    qmp: Arc<Mutex<Option<Qmp>>>,
    channel: Mutex<Option<UnixStream>>,
    /// What it was restored from, or why it cannot be saved while it runs.
    ancestry: Result<Arc<Ancestry>, String>,
}

/// Starts QEMU under a watchdog and waits for its connections.
pub(super) async fn start(
    config: &QemuConfig,
    launch: &Launch<'_>,
    spec: &MachineSpec,
) -> Result<QemuMachine, Error> {
    let folder = create_folder(&spec.folder)?;
    let started = start_in(&folder, config, launch, spec).await;
    if started.is_err() {
        // The watchdog removes it too; whichever comes second finds nothing.
        drop(fs::remove_dir_all(&folder));
    }
    started
}

async fn start_in(
    folder: &Path,
    config: &QemuConfig,
    launch: &Launch<'_>,
    spec: &MachineSpec,
) -> Result<QemuMachine, Error> {
    let (agent, qmp) = (folder.join(AGENT_SOCKET), folder.join(QMP_SOCKET));
    let agent_listener = listen(&agent)?;
    let qmp_listener = listen(&qmp)?;
    let ends = Endpoints {
        agent: &agent,
        qmp: &qmp,
    };
    let job = Job::new(arguments(launch, spec, ends))
        .with_removal(folder)
        .with_removal_when_orphaned(spec.remove_when_orphaned.iter().cloned());
    let watchdog = Watchdog::start(&config.helper, &job)
        .await
        .map_err(|error| Error::io(OPERATION, error))?;
    let connected = async {
        let (control, _) = qmp_listener.accept().await?;
        let (channel, _) = agent_listener.accept().await?;
        let (qmp, version) = Qmp::greet(control).await?;
        io::Result::Ok((channel, qmp, version))
    };
    let (channel, qmp_control, version) = tokio::select! {
        connected = tokio::time::timeout(config.start_patience, connected) => match connected {
            Ok(Ok(connected)) => connected,
            // Ended here and not by the drop: who tries again in the same folder must find it gone.
            failed => {
                let end = watchdog.end().await;
                return Err(did_not_connect(failed.ok().and_then(Result::err), config, &end));
            }
        },
        event = watchdog.ended() => return Err(died(&event)),
    };
    for socket in [&agent, &qmp] {
        drop(fs::remove_file(socket));
    }
    tracing::debug!(pid = watchdog.pid(), %version, name = spec.name, "QEMU runs");
    Ok(QemuMachine {
        facts: MachineFacts {
            backend: super::NAME,
            isolation: Isolation::VirtualMachine,
            acceleration: launch.acceleration,
            pid: Some(watchdog.pid()),
            started: Started::Cold(ColdReason::Off),
        },
        folder: folder.to_owned(),
        watchdog,
        qmp: Arc::new(Mutex::new(Some(qmp_control))),
        channel: Mutex::new(Some(channel)),
        ancestry: Err("it was booted, and only restored machines can be".to_owned()),
    })
}

impl QemuMachine {
    /// Notes that it was restored from a template.
    pub(super) fn restored_from(mut self, template: String) -> Self {
        self.facts.started = Started::Restored(template);
        self
    }

    /// Notes why it was not restored.
    pub(super) fn booted_because(mut self, reason: ColdReason) -> Self {
        self.facts.started = Started::Cold(reason);
        self
    }

    /// Notes that it went on from a snapshot.
    pub(super) fn resumed(mut self) -> Self {
        self.facts.started = Started::Resumed;
        self
    }

    /// Notes what it was restored from. That may be of a form that is not known here: then it runs all the same.
    pub(super) fn descended_from(mut self, ancestry: io::Result<Ancestry>) -> Self {
        self.ancestry = ancestry.map(Arc::new).map_err(|error| error.to_string());
        self
    }

    pub(super) fn ancestry(&self) -> Result<&Arc<Ancestry>, &str> {
        self.ancestry.as_ref().map_err(String::as_str)
    }

    /// Returns the conversation with QEMU, which ends when the machine does.
    pub(super) fn control(&self) -> Arc<Mutex<Option<Qmp>>> {
        self.qmp.clone()
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.facts.pid
    }

    /// Waits until the guest's agent answers, without beginning a session with it.
    pub(super) async fn sign_of_life(&self, patience: Duration) -> Result<(), Error> {
        const OPERATION: &str = "wait for a guest's sign of life";
        self.greet(OPERATION, patience, async |channel| {
            crate::channel::sign_of_life(channel).await
        })
        .await
    }

    /// Begins a session with a guest that was saved in the middle of one.
    pub(super) async fn take_over(&self, patience: Duration) -> Result<(), Error> {
        const OPERATION: &str = "take over a guest";
        self.greet(OPERATION, patience, async |channel| {
            crate::channel::take_over(channel).await
        })
        .await
    }

    async fn greet(
        &self,
        operation: &'static str,
        patience: Duration,
        greeting: impl AsyncFnOnce(&mut UnixStream) -> io::Result<()>,
    ) -> Result<(), Error> {
        let mut channel = self.channel.lock().await;
        let channel = channel
            .as_mut()
            .ok_or_else(|| Error::new(ErrorKind::Conflict, operation))?;
        tokio::select! {
            sign = tokio::time::timeout(patience, greeting(channel)) => match sign {
                Ok(sign) => sign.map_err(|error| Error::io(operation, error)),
                Err(_) => Err(Error::new(ErrorKind::TimedOut, operation)
                    .with_detail(format!("no answer within {} s", patience.as_secs()))),
            },
            event = self.watchdog.ended() => Err(died(&event)),
        }
    }

    /// Stops the guest and writes the state of its devices.
    pub(super) async fn save(&self, state: &File) -> Result<(), Error> {
        self.order("save a machine", async |qmp| qmp.save(state).await)
            .await
    }

    /// Reads the state of the devices and lets the guest go on.
    pub(super) async fn load(&self, mut state: &File) -> Result<(), Error> {
        // The descriptor shares its place with the one that QEMU gets.
        state
            .rewind()
            .map_err(|error| Error::io("restore a machine", error))?;
        self.order("restore a machine", async |qmp| qmp.load(state).await)
            .await
    }

    async fn order(
        &self,
        operation: &'static str,
        work: impl AsyncFnOnce(&mut Qmp) -> io::Result<()>,
    ) -> Result<(), Error> {
        let mut qmp = self.qmp.lock().await;
        let qmp = qmp
            .as_mut()
            .ok_or_else(|| Error::new(ErrorKind::Disconnected, operation))?;
        tokio::select! {
            done = tokio::time::timeout(ORDER_PATIENCE, work(qmp)) => match done {
                Ok(Ok(())) => Ok(()),
                // A state that QEMU refuses ends it; its log says why.
                Ok(Err(error)) => match tokio::time::timeout(QUIT_PATIENCE, self.watchdog.ended()).await {
                    Ok(event) => Err(died(&event)),
                    Err(_) => Err(Error::io(operation, error)),
                },
                Err(_) => Err(Error::new(ErrorKind::TimedOut, operation)),
            },
            event = self.watchdog.ended() => Err(died(&event)),
        }
    }

    /// Ends it as [`Machine::kill`] does, for one that nobody else has seen.
    pub(super) async fn end(&self) -> Result<(), Error> {
        self.kill().await
    }
}

#[async_trait]
impl Machine for QemuMachine {
    fn facts(&self) -> &MachineFacts {
        &self.facts
    }

    async fn connect(&self) -> Result<BoxStream, Error> {
        match self.channel.lock().await.take() {
            Some(stream) => Ok(Box::new(stream)),
            None => Err(Error::new(ErrorKind::Conflict, "connect to a guest")
                .with_detail("its one connection is taken")),
        }
    }

    async fn snapshot(&self, agent: &Agent, target: &Path) -> Result<Taken, Error> {
        self.save_running(agent, target).await
    }

    async fn pause(&self) -> Result<(), Error> {
        let stop = async |qmp: &mut Qmp| qmp.execute("stop", json!({})).await.map(drop);
        self.order("pause a machine", stop).await
    }

    async fn resume(&self) -> Result<(), Error> {
        let go_on = async |qmp: &mut Qmp| qmp.execute("cont", json!({})).await.map(drop);
        self.order("resume a machine", go_on).await
    }

    fn wait(&self) -> BoxFuture<'static, MachineEnd> {
        let ended = self.watchdog.ended();
        Box::pin(async move { end_of(&ended.await) })
    }

    async fn kill(&self) -> Result<(), Error> {
        if let Some(mut qmp) = self.qmp.lock().await.take() {
            // In order, so that what the disks were given is written; else by the signal below.
            let quit = qmp.execute("quit", json!({}));
            drop(tokio::time::timeout(QUIT_PATIENCE, quit).await);
        }
        match self.watchdog.end().await {
            Event::Ended { left, .. } if !left.is_empty() => {
                Err(Error::new(ErrorKind::Io, "remove a machine").with_detail(left.join(", ")))
            }
            _ => remove_rest(&self.folder),
        }
    }
}

impl Drop for QemuMachine {
    fn drop(&mut self) {
        // A living watchdog does it, once its pipe closes.
        if self.watchdog.is_gone()
            && let Err(error) = remove_rest(&self.folder)
        {
            tracing::warn!(%error, "a dropped machine left something behind");
        }
    }
}

fn end_of(event: &Event) -> MachineEnd {
    let Event::Ended {
        code,
        signal,
        output,
        ..
    } = event
    else {
        return MachineEnd {
            failure: Some("QEMU is gone".into()),
            console: String::new(),
        };
    };
    let failure = match (code, signal) {
        (Some(0), _) => None,
        (Some(code), _) => Some(format!("QEMU exited with {code}")),
        (None, Some(signal)) => Some(format!("QEMU was killed by signal {signal}")),
        (None, None) => Some("QEMU is gone".to_owned()),
    };
    MachineEnd {
        failure,
        console: output.clone(),
    }
}

fn died(event: &Event) -> Error {
    Error::new(ErrorKind::Io, OPERATION).with_detail(end_of(event).to_string())
}

/// Says why QEMU was given up: what its connection answered, or nothing when time ran out.
fn did_not_connect(answer: Option<io::Error>, config: &QemuConfig, end: &Event) -> Error {
    let console = end_of(end).last_lines();
    match answer {
        Some(error) if error.kind() == io::ErrorKind::InvalidData => {
            Error::io(OPERATION, error).with_detail("what it said is not QEMU's control protocol")
        }
        // It ended while it was being greeted; its log says why.
        Some(_) => died(end),
        None => Error::new(ErrorKind::TimedOut, OPERATION).with_detail(format!(
            "it did not connect within {} s; it said: {console}",
            config.start_patience.as_secs_f32()
        )),
    }
}

/// Removes what a watchdog leaves that was killed itself. Otherwise there is nothing.
fn remove_rest(folder: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(
            format!("remove the folder {}", folder.display()),
            error,
        )),
        _ => Ok(()),
    }
}

/// Makes the machine's folder, for its owner alone.
fn create_folder(path: &Path) -> Result<PathBuf, Error> {
    use std::os::unix::fs::DirBuilderExt;
    let failed = |error| Error::io(format!("make the folder {}", path.display()), error);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed)?;
    path.canonicalize().map_err(failed)
}

fn listen(path: &Path) -> Result<UnixListener, Error> {
    drop(fs::remove_file(path));
    UnixListener::bind(path).map_err(|error| {
        let error = Error::io(format!("listen on {}", path.display()), error);
        match path.as_os_str().len() {
            108.. => {
                error.with_detail("a socket's path has at most 107 bytes; choose a shorter folder")
            }
            _ => error,
        }
    })
}
