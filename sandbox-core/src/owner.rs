//! The process that owns a sandbox: it starts and ends the machine and holds what belongs to it.
//!
//! What is done to a sandbox is done under one lock, one thing after the other. Tasks that outlive a
//! call hold parts of the sandbox, never the owner itself, so that dropping the last handle drops the
//! machine: its watchdog's pipe closes, and everything goes.

#[cfg(unix)]
pub(crate) mod fork;
mod pause;
#[cfg(unix)]
mod rollback;

#[cfg(unix)]
pub use rollback::Outside;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use sandbox_base::{Dirs, Error, ErrorKind};
use sandbox_net::approval::Approvals;
use sandbox_net::credentials::{Credentials, Secret};
use sandbox_net::inspect::{Inspector, trust};
use sandbox_net::{
    Proxy, UpstreamProxy,
    policy::{Layers, RuleSet},
    resolve::Resolver,
};
use sandbox_sync::Options;
use sandbox_vm::channel::protocol::{self, Prepared, Root, Setup};
use sandbox_vm::hypervisor::{Disk, HypervisorExt, MachineSpec};
use sandbox_vm::image::{ImageStore, RootImage};
use sandbox_vm::template::Templates;
use sandbox_vm::{Agent, Hypervisor, Machine, disk, users};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::check::{NetworkCheck, no_target};
use crate::description::{CaptureState, Description};
use crate::history;
use crate::layers::Loaded;
use crate::lifecycle::{Lifetime, Move, State};
use crate::network;
use crate::progress::{Progress, Step};
#[cfg(unix)]
use crate::saved;
#[cfg(unix)]
use crate::snapshots::Snapshots;
use crate::spec::{Spec, Workspace, check_apart};
use crate::state::{Owned, Record, blocking};
use crate::workspace::{SyncReport, Workspaces};

/// How long a guest may take to flush its disks and power off.
const POWER_OFF_PATIENCE: Duration = Duration::from_secs(10);

/// How long a dropped handle may wait for another process that looks the folders over.
const DROP_PATIENCE: Duration = Duration::from_secs(2);

/// The longest file of users that is read from a guest, in bytes.
const MAX_PASSWD: u64 = 1 << 20;

/// A sandbox in the process that owns it.
#[derive(Debug)]
pub(crate) struct Owner {
    hypervisor: Arc<dyn Hypervisor>,
    dirs: Dirs,
    progress: Progress,
    resolver: Option<Arc<dyn Resolver>>,
    approvals: Option<Approvals>,
    upstream: Option<UpstreamProxy>,
    /// The program that this process is the supervisor of the sandbox by, if it is.
    supervised_by: Option<PathBuf>,
    pub(crate) proxy: Proxy,
    /// Who looks into TLS and holds the secrets; its authority lives as long as this value.
    inspector: Option<Inspector>,
    /// The rules above the sandbox's own, as they were read last.
    above: Mutex<Loaded>,
    /// Held while something is done to the sandbox; empty once it is removed.
    owned: tokio::sync::Mutex<Option<Owned>>,
    /// What the record said last, for those who do not want to wait.
    seen: Mutex<Option<Record>>,
    running: watch::Sender<Option<Running>>,
    tasks: Mutex<Vec<AbortHandle>>,
    /// Whether it is removed with this value, whatever its lifetime.
    fleeting: AtomicBool,
    /// How often it went back to a snapshot.
    generation: AtomicU64,
}

/// What there is while the machine runs.
#[derive(Debug, Clone)]
pub(crate) struct Running {
    pub(crate) agent: Agent,
    pub(crate) machine: Arc<dyn Machine>,
    pub(crate) workspaces: Arc<Workspaces>,
    pub(crate) defaults: Arc<Defaults>,
    /// While the machine stands still: the workspaces whose synchronizing goes on with it.
    paused: Option<Arc<Vec<usize>>>,
}

/// What a command gets that names nothing else.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Defaults {
    pub(crate) user: Option<String>,
    pub(crate) cwd: Option<PathBuf>,
    /// Whether a snapshot of the workspaces is taken first.
    #[serde(default)]
    pub(crate) snapshots: bool,
    /// How often the sandbox had gone back to a snapshot.
    #[serde(default)]
    pub(crate) generation: u64,
}

/// What a sandbox is run by: values of this process, none of which can be written down.
#[derive(Debug)]
pub(crate) struct Means {
    pub(crate) hypervisor: Arc<dyn Hypervisor>,
    /// The host's own without.
    pub(crate) resolver: Option<Arc<dyn Resolver>>,
    /// Nobody is asked without.
    pub(crate) approvals: Option<Approvals>,
    pub(crate) inspector: Option<Inspector>,
    /// The rules above the sandbox's own.
    pub(crate) above: Loaded,
    /// The proxy that this host goes through, if it does.
    pub(crate) upstream: Option<UpstreamProxy>,
    pub(crate) progress: Progress,
    /// The program that this process is the supervisor of the sandbox by, if it is.
    pub(crate) supervised_by: Option<PathBuf>,
}

fn no_secret(name: &str) -> Error {
    let operation = format!("use the secret `{}`", name.escape_debug());
    Error::new(ErrorKind::NotFound, operation).with_detail("the sandbox has none of this name")
}

impl Owner {
    /// Makes the owner of a sandbox that has no machine yet.
    pub(crate) fn new(owned: Owned, dirs: Dirs, means: Means) -> Arc<Self> {
        let Means {
            hypervisor,
            resolver,
            approvals,
            inspector,
            above,
            upstream,
            progress,
            supervised_by,
        } = means;
        let record = &owned.record;
        let log = (record.name.as_str(), owned.folder.join("events.jsonl"));
        let policy = above.policy(&record.spec.network);
        let proxy = network::proxy(
            (policy, approvals.clone()),
            (resolver.clone(), inspector.as_ref(), upstream.clone()),
            log,
        );
        let (proxy, logging) = proxy;
        let seen = Mutex::new(Some(owned.record.clone()));
        Arc::new(Self {
            hypervisor,
            dirs,
            progress,
            resolver,
            approvals,
            upstream,
            supervised_by,
            proxy,
            inspector,
            above: Mutex::new(above),
            owned: tokio::sync::Mutex::new(Some(owned)),
            seen,
            running: watch::Sender::new(None),
            tasks: Mutex::new(vec![logging]),
            fleeting: AtomicBool::new(false),
            generation: AtomicU64::new(0),
        })
    }

    /// Starts the machine and opens the workspaces, from what was saved in a folder if one is given. On failure nothing
    /// runs, and the disk is as it was.
    ///
    /// Dropping the future ends what was started, without waiting.
    pub(crate) async fn start(self: &Arc<Self>, from: Option<&Path>) -> Result<(), Error> {
        let mut guard = self.owned.lock().await;
        let owned = guard.as_mut().ok_or_else(removed)?;
        if owned.record.state != State::Creating {
            let next = owned.record.state.after(Move::Start).ok_or_else(|| {
                Error::new(ErrorKind::Conflict, "start the sandbox").with_detail("it runs")
            })?;
            self.enter(owned, next)?;
        }
        let started = match self.boot(owned, from).await {
            Ok(running) => {
                let next = owned.record.state.after(Move::Booted);
                self.enter(owned, next.unwrap_or(State::Running))
                    .map(|()| running)
            }
            Err(error) => Err(error),
        };
        match started {
            Ok(running) => {
                self.watch_machine(&running, owned.record.spec.limits.run_time);
                self.running.send_replace(Some(running));
                Ok(())
            }
            Err(error) => {
                self.enter(owned, State::Stopped)?;
                Err(error)
            }
        }
    }

    /// Says whether a detached sandbox, too, is removed when this value is dropped: while it is created.
    pub(crate) fn set_fleeting(&self, fleeting: bool) {
        self.fleeting.store(fleeting, Ordering::Relaxed);
    }

    fn enter(&self, owned: &mut Owned, state: State) -> Result<(), Error> {
        owned.enter(state)?;
        self.show(Some(&owned.record));
        Ok(())
    }

    fn show(&self, record: Option<&Record>) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = record.cloned();
    }

    /// Returns what the record said last, without waiting for what is being done.
    fn record(&self) -> Result<Record, Error> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.clone().ok_or_else(removed)
    }

    async fn boot(&self, owned: &Owned, from: Option<&Path>) -> Result<Running, Error> {
        self.read_layers(owned).await?;
        let spec = &owned.record.spec;
        let image = self.image(spec).await?;
        let disk = owned.disk();
        let fresh = spec.read_only_root || !disk.exists();
        history::begin(&owned.folder, fresh)?;
        match from {
            // It comes with its disk.
            Some(from) => history::copy(from, &owned.folder)?,
            None if !spec.read_only_root && fresh => {
                let bytes = u64::from(spec.limits.disk_mib) << 20;
                disk::create(&self.dirs.cache, bytes, &disk).await?;
            }
            None => {}
        }
        let mut machine = self.machine(owned, &image, disk);
        #[cfg(unix)]
        {
            machine.snapshot = from.map(saved::machine);
        }
        let (machine, agent) = self.hypervisor.boot(&machine, spec.boot_patience).await?;
        match self.furnish(owned, &image, machine.clone(), agent).await {
            Ok(running) => Ok(running),
            Err(error) => {
                if let Err(left) = machine.kill().await {
                    tracing::warn!(error = %left, "a failed start left something behind");
                }
                Err(error)
            }
        }
    }

    /// Returns the image of the root, made when it is missing.
    async fn image(&self, spec: &Spec) -> Result<RootImage, Error> {
        let progress = self.progress.part(Step::Machine);
        let store = ImageStore::new(&self.dirs.cache);
        store.prepare(&spec.image.image(), progress).await
    }

    /// Describes the sandbox's machine.
    fn machine(&self, owned: &Owned, image: &RootImage, disk: PathBuf) -> MachineSpec {
        let mut machine = machine_spec(owned, image, disk);
        machine.setup.env = environment(&owned.record.spec, image, self.inspector.as_ref());
        if self.hypervisor.capabilities().capture {
            machine.setup.capture = Some(network::capture(&self.proxy));
        }
        machine
    }

    /// Gives a booted machine its egress and its workspaces.
    async fn furnish(
        &self,
        owned: &Owned,
        image: &RootImage,
        machine: Arc<dyn Machine>,
        agent: Agent,
    ) -> Result<Running, Error> {
        let spec = &owned.record.spec;
        if let Some(streams) = agent.services().await {
            // Ends with the guest's channel.
            tokio::spawn(network::serve(self.proxy.clone(), streams));
        }
        if let Some(inspector) = &self.inspector {
            network::install_trust(&agent, inspector).await?;
        }
        let user = spec.user.clone().or_else(|| image.config.user.clone());
        let workspaces = match spec.workspaces.is_empty() {
            true => Workspaces::default(),
            false => {
                let options = self.sync_options(&agent, user.as_deref()).await?;
                Workspaces::open(&agent, &spec.workspaces, &owned.folder, options).await?
            }
        };
        #[cfg(unix)]
        let workspaces = workspaces.with_snapshots(Snapshots::new(&self.dirs, &owned.record));
        let cwd = spec
            .workspaces
            .first()
            .map(|workspace| workspace.guest.clone());
        let cwd = cwd.or_else(|| image.config.working_dir.clone().map(PathBuf::from));
        Ok(Running {
            agent,
            machine,
            workspaces: Arc::new(workspaces),
            defaults: Arc::new(Defaults {
                user,
                cwd,
                snapshots: spec.snapshots && !spec.workspaces.is_empty(),
                generation: self.generation(),
            }),
            paused: None,
        })
    }

    /// Returns what holds for every workspace: whose what goes in becomes, and who is told how far that is.
    async fn sync_options(&self, agent: &Agent, user: Option<&str>) -> Result<Options, Error> {
        let progress = self.progress.part(Step::Workspace);
        let options = Options::default().with_progress(progress);
        Ok(match user {
            Some(user) => {
                let (user, group) = numbers(agent, user).await?;
                options.with_guest_owner(user, group)
            }
            None => options,
        })
    }

    /// Opens one more workspace, now and at later starts. Goes on when the future is dropped.
    pub(crate) async fn add_workspace(self: &Arc<Self>, workspace: Workspace) -> Result<(), Error> {
        let owner = self.clone();
        to_its_end(async move {
            let mut guard = owner.owned.lock().await;
            let owned = guard.as_mut().ok_or_else(removed)?;
            let mut running = owner.running()?;
            let workspace = blocking(move || workspace.resolved()).await?;
            let mut workspaces = owned.record.spec.workspaces.clone();
            workspaces.push(workspace.clone());
            check_apart(&workspaces)?;
            let user = running.defaults.user.as_deref();
            let options = owner.sync_options(&running.agent, user).await?;
            // What a later start would take for what they had agreed on is another one's.
            history::forget_one(&owned.folder, workspaces.len() - 1)?;
            let opened = running
                .workspaces
                .and(&running.agent, &workspace, &owned.folder, options);
            running.workspaces = Arc::new(opened.await?);
            let spec = &owned.record.spec;
            let mut defaults = Defaults::clone(&running.defaults);
            if spec.workspaces.is_empty() {
                defaults.cwd = Some(workspace.guest.clone());
                defaults.snapshots = spec.snapshots;
            }
            running.defaults = Arc::new(defaults);
            owned.change(|record| record.spec.workspaces = workspaces)?;
            owner.show(Some(&owned.record));
            owner.running.send_modify(|present| {
                // Its machine may have ended meanwhile.
                if present.is_some() {
                    *present = Some(running);
                }
            });
            Ok(())
        })
        .await
    }

    /// Notes the machine's end when it comes by itself, and brings it about when its time is over.
    fn watch_machine(self: &Arc<Self>, running: &Running, run_time: Option<Duration>) {
        // Weak, and the machine too: a task must not keep alive what dropping a handle is to end.
        let (owner, machine) = (Arc::downgrade(self), Arc::downgrade(&running.machine));
        let ended = running.machine.wait();
        let task = tokio::spawn(async move {
            let time_is_over = async {
                match run_time {
                    Some(time) => tokio::time::sleep(time).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = ended => {}
                () = time_is_over => {
                    tracing::info!("the run time is over");
                    if let Some(machine) = machine.upgrade() {
                        drop(machine.kill().await);
                    }
                }
            }
            if let Some(owner) = owner.upgrade() {
                owner.machine_ended(&machine).await;
            }
        });
        self.keep(task.abort_handle());
    }

    async fn machine_ended(&self, machine: &Weak<dyn Machine>) {
        let mut guard = self.owned.lock().await;
        let present = self
            .running
            .borrow()
            .as_ref()
            .map(|running| Arc::downgrade(&running.machine));
        if !present.is_some_and(|present| present.ptr_eq(machine)) {
            return;
        }
        self.running.send_replace(None);
        if let Some(owned) = guard.as_mut()
            && let Some(next) = owned.record.state.after(Move::Ended)
            && let Err(error) = self.enter(owned, next)
        {
            tracing::warn!(%error, "the end of a machine is not written down");
        }
    }

    /// Brings what was changed inside to the host, powers the guest off and ends the machine. The disk
    /// is kept. Idempotent; goes on when the future is dropped.
    pub(crate) async fn stop(self: &Arc<Self>) -> Result<(), Error> {
        let owner = self.clone();
        to_its_end(async move {
            let mut guard = owner.owned.lock().await;
            if let Some(owned) = guard.as_mut()
                && owned.record.state == State::Paused
                && let Err(error) = owner.go_on(owned).await
            {
                // It is ended all the same.
                tracing::warn!(%error, "a paused sandbox did not go on");
            }
            let ended = owner.end_machine().await;
            let Some(owned) = guard.as_mut() else {
                return ended.map(drop);
            };
            let ended = match ended {
                Ok(true) => history::end_in_order(&owned.folder, &owned.disk()),
                other => other.map(drop),
            };
            match owned.record.state.after(Move::Ended) {
                Some(next) => owner.enter(owned, next).and(ended),
                None => ended,
            }
        })
        .await
    }

    /// Ends the machine, if there is one, and tells whether its guest powered off in order.
    async fn end_machine(&self) -> Result<bool, Error> {
        // New commands are refused from here on; those that run end with the guest.
        let Some(running) = self.running.send_replace(None) else {
            return Ok(false);
        };
        if let Err(error) = running.workspaces.flush().await {
            tracing::warn!(%error, "the last look at the workspaces failed");
        }
        let power_off = async {
            running.agent.power_off().await?;
            running.machine.wait().await;
            Ok::<(), Error>(())
        };
        // A guest that does not obey is ended all the same.
        let powered_off = tokio::time::timeout(POWER_OFF_PATIENCE, power_off).await;
        running.machine.kill().await?;
        Ok(matches!(powered_off, Ok(Ok(()))))
    }

    /// Ends the machine at once and removes everything. Idempotent; goes on when the future is dropped.
    pub(crate) async fn remove(self: &Arc<Self>) -> Result<(), Error> {
        let owner = self.clone();
        to_its_end(async move {
            let mut guard = owner.owned.lock().await;
            let killed = match owner.running.send_replace(None) {
                Some(running) => running.machine.kill().await,
                None => Ok(()),
            };
            let Some(owned) = guard.take() else {
                return killed;
            };
            owner.show(None);
            // Also after a machine that left something: what can be removed is.
            blocking(move || owned.remove()).await.and(killed)
        })
        .await
    }

    /// Replaces the egress policy, now and for later starts.
    pub(crate) async fn set_network(&self, policy: RuleSet) -> Result<(), Error> {
        self.change_network(|_| policy).await.map(drop)
    }

    /// Adds rules to the egress policy, now and for later starts; returns what it is then.
    pub(crate) async fn extend_network(&self, rules: &RuleSet) -> Result<RuleSet, Error> {
        self.change_network(|present| present.extended(rules)).await
    }

    /// One change after the other: none is lost to another at the same time.
    async fn change_network(
        &self,
        change: impl FnOnce(RuleSet) -> RuleSet,
    ) -> Result<RuleSet, Error> {
        let mut guard = self.owned.lock().await;
        let owned = guard.as_mut().ok_or_else(removed)?;
        let policy = change(owned.record.spec.network.clone());
        owned.change(|record| record.spec.network = policy.clone())?;
        self.show(Some(&owned.record));
        self.proxy.set_policy(self.above().policy(&policy));
        Ok(policy)
    }

    /// Reads the rules above the sandbox's own again, and enforces them. What cannot be read changes nothing.
    pub(crate) async fn reload_network(&self) -> Result<(), Error> {
        let guard = self.owned.lock().await;
        self.read_layers(guard.as_ref().ok_or_else(removed)?).await
    }

    async fn read_layers(&self, owned: &Owned) -> Result<(), Error> {
        let above = owned.record.spec.above.clone();
        let read = blocking(move || above.load()).await?;
        let policy = read.policy(&owned.record.spec.network);
        *self.above.lock().unwrap_or_else(PoisonError::into_inner) = read;
        self.proxy.set_policy(policy);
        Ok(())
    }

    fn above(&self) -> Loaded {
        let above = self.above.lock();
        above.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns all rules in force, with whose they are.
    pub(crate) fn network_layers(&self) -> Result<Layers, Error> {
        Ok(self.above().layers(&self.network()?))
    }

    /// Tells what would be done about a target, by the rules in force or by others of the sandbox's own.
    pub(crate) async fn check_network(
        &self,
        target: &str,
        rules: Option<RuleSet>,
    ) -> Result<NetworkCheck, Error> {
        let rules = rules.map_or_else(|| self.network(), Ok)?;
        let policy = self.above().policy(&rules);
        let checked = self.proxy.check_by(&*policy, target).await;
        checked.map(Into::into).map_err(no_target)
    }

    /// Drops the value of a secret, until it is replaced or reloaded.
    pub(crate) fn revoke_secret(&self, name: &str) -> Result<(), Error> {
        match self.credentials(name)?.revoke(name) {
            true => Ok(()),
            false => Err(no_secret(name)),
        }
    }

    pub(crate) fn replace_secret(&self, name: &str, value: Secret) -> Result<(), Error> {
        let replaced = self.credentials(name)?.replace(name, value);
        replaced.map_err(network::unusable)
    }

    pub(crate) async fn reload_secret(&self, name: &str) -> Result<(), Error> {
        let reloaded = self.credentials(name)?.reload(name).await;
        reloaded.map_err(network::unusable)
    }

    fn credentials(&self, name: &str) -> Result<&Credentials, Error> {
        let inspector = self.inspector.as_ref();
        let credentials = inspector.and_then(Inspector::credentials);
        credentials.ok_or_else(|| no_secret(name))
    }

    pub(crate) fn network(&self) -> Result<RuleSet, Error> {
        Ok(self.record()?.spec.network)
    }

    /// Returns what there is while the machine runs, and does not stand still.
    pub(crate) fn running(&self) -> Result<Running, Error> {
        const OPERATION: &str = "use the sandbox";
        match self.running.borrow().clone() {
            Some(running) if running.paused.is_none() => Ok(running),
            Some(_) => Err(Error::new(ErrorKind::Conflict, OPERATION)
                .with_detail("it is paused; resume it first")),
            None => Err(Error::new(ErrorKind::Disconnected, OPERATION)
                .with_detail("it is not running; start it first")),
        }
    }

    /// Returns how often the sandbox has gone back to a snapshot in the care of this owner.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Brings both sides of every workspace into agreement.
    pub(crate) async fn flush(&self) -> Result<Vec<SyncReport>, Error> {
        // Not the machine: what waits here must not keep it alive.
        let workspaces = self.running()?.workspaces;
        workspaces.flush().await
    }

    /// Waits until there is no machine (any more) and what ended it is done. Cancel safe.
    pub(crate) async fn stopped(&self) {
        let mut running = self.running.subscribe();
        loop {
            // The sender lives as long as `self`.
            drop(running.wait_for(Option::is_none).await);
            // Whoever ends the machine holds this until everything is written down or removed, or another machine
            // has taken its place.
            let _guard = self.owned.lock().await;
            if self.running.borrow().is_none() {
                return;
            }
        }
    }

    pub(crate) fn describe(&self) -> Result<Description, Error> {
        let mut description = Description::of(&self.record()?);
        if let Some(running) = self.running.borrow().as_ref() {
            let capture = self.capture_of(&running.agent);
            description.add_machine(running.machine.facts(), capture);
        }
        Ok(description)
    }

    fn capture_of(&self, agent: &Agent) -> CaptureState {
        let reason = match agent.prepared() {
            _ if !self.hypervisor.capabilities().capture => {
                "this backend has no way to capture connections".to_owned()
            }
            Some(Prepared { uncaptured: None }) => return CaptureState::Works,
            Some(Prepared {
                uncaptured: Some(reason),
            }) => reason.escape_debug().to_string(),
            None => "the guest has not said so".to_owned(),
        };
        CaptureState::Missing { reason }
    }

    pub(crate) async fn socket(&self) -> Result<PathBuf, Error> {
        let guard = self.owned.lock().await;
        Ok(guard.as_ref().ok_or_else(removed)?.control_socket())
    }

    pub(crate) fn keep(&self, task: AbortHandle) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|task| !task.is_finished());
        tasks.push(task);
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        for task in self
            .tasks
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
        {
            task.abort();
        }
        // The machine goes first, by its watchdog; what it still has open can be removed meanwhile.
        self.running.send_replace(None);
        let fleeting = *self.fleeting.get_mut();
        if let Some(owned) = self.owned.get_mut().take()
            && (fleeting || owned.record.lifetime == Lifetime::Attached)
            && let Err(error) = owned.remove_within(DROP_PATIENCE)
        {
            tracing::warn!(%error, "a dropped sandbox left something behind");
        }
    }
}

/// Runs work to its end, also when the future is dropped.
pub(crate) async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    tokio::spawn(work)
        .await
        .map_err(|error| Error::new(ErrorKind::Io, "finish").with_source(error))?
}

fn machine_spec(owned: &Owned, image: &RootImage, disk: PathBuf) -> MachineSpec {
    let spec = &owned.record.spec;
    let mut machine = MachineSpec::new(&owned.record.name, owned.runtime.join("m"));
    machine.cpus = spec.limits.cpus;
    machine.memory_mib = spec.limits.memory_mib;
    machine.disks = vec![Disk::read_only(&image.path)];
    if !spec.read_only_root {
        machine.disks.push(Disk::writable(disk));
    }
    let first = machine.disks.len();
    machine
        .disks
        .extend(spec.disks.iter().map(|disk| match disk.read_only {
            true => Disk::read_only(&disk.image),
            false => Disk::writable(&disk.image),
        }));
    machine.setup = setup(owned, first);
    if spec.cold {
        machine.templates = Templates::Off;
    }
    machine.remove_when_orphaned = match owned.record.lifetime {
        Lifetime::Attached => vec![owned.folder.clone(), owned.runtime.clone()],
        Lifetime::Detached => vec![owned.runtime.clone()],
    };
    machine
}

/// `first` is the place of the first extra disk in the machine's list.
fn setup(owned: &Owned, first: usize) -> Setup {
    let spec = &owned.record.spec;
    let disks = spec
        .disks
        .iter()
        .enumerate()
        .map(|(index, disk)| protocol::Mount::Disk {
            target: disk.target.display().to_string(),
            device: format!("disk{}", first + index),
            fs_type: disk.fs_type.clone(),
            read_only: disk.read_only,
        });
    let mount = |tmpfs: &crate::spec::Tmpfs| protocol::Mount::Tmpfs {
        target: tmpfs.target.display().to_string(),
        size: u64::from(tmpfs.size_mib) << 20,
    };
    Setup {
        root: Some(Root {
            lower: "disk0".into(),
            lower_type: "erofs".into(),
            upper: (!spec.read_only_root).then(|| ("disk1".into(), "ext4".into())),
        }),
        mounts: spec.tmpfs.iter().map(mount).chain(disks).collect(),
        hostname: owned.record.name.clone(),
        // Filled in by who knows the image and the secrets.
        env: Vec::new(),
        limits: protocol::Limits {
            processes: spec.limits.processes,
            open_files: spec.limits.open_files,
        },
        forward: vec![network::forward()],
        capture: None,
    }
}

/// What every command finds in its environment: the image's, the proxy's, the sandbox's own.
fn environment(
    spec: &Spec,
    image: &RootImage,
    inspector: Option<&Inspector>,
) -> Vec<(String, String)> {
    let split = |text: &String| {
        let (name, value) = text.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    };
    let mut env: Vec<(String, String)> = image.config.env.iter().filter_map(split).collect();
    env.extend(network::environment(inspector));
    env.extend(spec.env.iter().cloned());
    if inspector.is_some() {
        trust::add_variables(&mut env);
    }
    env
}

/// Looks a user up in the guest's own files.
async fn numbers(agent: &Agent, user: &str) -> Result<(u32, u32), Error> {
    let read = |path: &'static [u8]| async move {
        let bytes = agent.read(path, MAX_PASSWD).await.unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let (passwd, group) = (read(b"/etc/passwd").await, read(b"/etc/group").await);
    let found = users::find(user, &passwd, &group).map_err(|failure| {
        Error::new(failure.kind.into(), "find the sandbox's user").with_detail(failure.message)
    })?;
    Ok((found.uid, found.gid))
}

fn removed() -> Error {
    Error::new(ErrorKind::NotFound, "use the sandbox").with_detail("it has been removed")
}
