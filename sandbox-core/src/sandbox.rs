//! The sandbox, as a harness holds it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sandbox_base::{Dirs, Error, ErrorKind};
use sandbox_net::{
    credentials::Secret,
    event::Subscription,
    policy::{Layers, RuleSet},
};
use sandbox_sync::Resolution;
use sandbox_vm::Agent;
use sandbox_vm::agent::NewFile;

use crate::builder::SandboxBuilder;
use crate::check::{self, NetworkCheck};
use crate::command::Command;
use crate::control::Remote;
use crate::copy;
use crate::description::Description;
use crate::helper;
use crate::host::default_dirs;
use crate::lifecycle::{Lifetime, State};
#[cfg(unix)]
use crate::owner::Outside;
#[cfg(unix)]
use crate::owner::fork;
use crate::owner::{Defaults, Owner, to_its_end};
use crate::progress::Progress;
#[cfg(unix)]
use crate::saved::{SandboxSnapshot, Saved, workspaces_name};
#[cfg(unix)]
use crate::snapshots::{HurtSnapshot, RestoreReport, Snapshots, WorkspaceSnapshot};
use crate::spec::Workspace;
use crate::state::{Record, Store, blocking, check_name};
use crate::supervisor::{self, Creation};
use crate::workspace::{Changes, Decision, ReviewReport, SyncReport, SyncStatus};

/// The longest file that [`Sandbox::read`] takes into memory, in bytes.
pub const MAX_READ: u64 = 1 << 30;

/// How long an owner that is about to go, or to answer a question, may take.
const OWNER_PATIENCE: Duration = Duration::from_secs(10);

/// How long the kernel may take to clear away a killed owner.
const DEATH_PATIENCE: Duration = Duration::from_secs(3);

/// How long to wait before looking again.
const STEP: Duration = Duration::from_millis(10);

/// A machine of one's own, with its workspaces, its egress and its files.
///
/// Made by [`Sandbox::builder`], or found again by [`Sandbox::connect`]. An attached sandbox (the
/// default) belongs to the handle: dropping it ends the machine and removes everything without waiting;
/// [`Sandbox::remove`] waits and says what went wrong. A detached one outlives its handles.
///
/// All methods can be called from several tasks at once.
#[derive(Debug)]
pub struct Sandbox {
    pub(crate) name: String,
    pub(crate) store: Store,
    pub(crate) link: Link,
}

/// How the sandbox is reached.
#[derive(Debug)]
pub(crate) enum Link {
    /// This process owns it.
    Own(Arc<Owner>),
    /// Another process owns it, or nobody while it is stopped. Never held while something is waited for.
    Other(Mutex<Option<Remote>>),
}

impl Sandbox {
    /// Begins a new sandbox.
    pub fn builder() -> SandboxBuilder {
        SandboxBuilder::new()
    }

    /// Finds a sandbox that another process, or an earlier one, has made, in the places that the
    /// environment names.
    ///
    /// # Errors
    ///
    /// `NotFound` when there is none of that name.
    pub async fn connect(name: impl Into<String>) -> Result<Self, Error> {
        Self::connect_in(default_dirs()?, name).await
    }

    /// Finds a sandbox in given places.
    ///
    /// # Errors
    ///
    /// `NotFound` when there is none of that name.
    pub async fn connect_in(dirs: Dirs, name: impl Into<String>) -> Result<Self, Error> {
        let (name, store) = (name.into(), Store::new(dirs));
        let remote = reach(&store, &name).await?.1;
        Ok(Self {
            name,
            store,
            link: Link::Other(Mutex::new(remote)),
        })
    }

    /// Lists the sandboxes in given places, and removes what dead owners left there.
    ///
    /// # Errors
    ///
    /// What the file system answers.
    pub async fn list_in(dirs: Dirs) -> Result<Vec<Description>, Error> {
        let store = Store::new(dirs);
        let listed = {
            let store = store.clone();
            blocking(move || store.list()).await?
        };
        let mut descriptions = Vec::new();
        for found in listed {
            if !found.owned {
                descriptions.push(Description::of(&found.record));
                continue;
            }
            let asked = async {
                match reach(&store, &found.record.name).await? {
                    (_, Some(remote)) => remote.describe().await,
                    (record, None) => Ok(Description::of(&record)),
                }
            };
            match tokio::time::timeout(OWNER_PATIENCE, asked).await {
                Ok(Ok(told)) => descriptions.push(told),
                // It went meanwhile.
                Ok(Err(error)) if error.kind() == ErrorKind::NotFound => {}
                // An owner that is not ready, ends at this moment, or hangs.
                _ => descriptions.push(Description::of(&found.record)),
            }
        }
        Ok(descriptions)
    }

    /// Returns its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns what it is and how it runs.
    ///
    /// # Errors
    ///
    /// `NotFound` when it has been removed.
    pub async fn describe(&self) -> Result<Description, Error> {
        match &self.link {
            Link::Own(owner) => owner.describe(),
            Link::Other(_) => match self.remote().await? {
                (_, Some(remote)) => remote.describe().await,
                (record, None) => Ok(Description::of(&record)),
            },
        }
    }

    /// Begins a command: `program` is looked for in the `PATH` inside, and no shell comes between.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command<'_> {
        Command::new(self, program.as_ref())
    }

    /// Reads a whole file inside, of at most [`MAX_READ`] bytes.
    ///
    /// # Errors
    ///
    /// `NotFound`, `PermissionDenied`, `Invalid` for what is no regular file, `Exhausted` for what is
    /// longer, `Disconnected` when the sandbox does not run.
    pub async fn read(&self, path: impl AsRef<Path>) -> Result<Vec<u8>, Error> {
        self.agent()
            .await?
            .read(bytes_of(path.as_ref())?, MAX_READ)
            .await
    }

    /// Writes a whole file inside, with mode 0644, owned by the sandbox's user. It is old or new, never
    /// torn; missing folders are made.
    ///
    /// # Errors
    ///
    /// `PermissionDenied`, `Conflict` when a folder is there, `Exhausted` on a full disk, `Disconnected`.
    pub async fn write(
        &self,
        path: impl AsRef<Path>,
        contents: impl AsRef<[u8]>,
    ) -> Result<(), Error> {
        let defaults = self.defaults().await?;
        let file = NewFile::at(bytes_of(path.as_ref())?).with_user(defaults.user.as_deref());
        self.agent().await?.write(file, contents.as_ref()).await
    }

    /// Copies a file or folder of the host to the path `to` inside; what is there is merged with.
    ///
    /// # Errors
    ///
    /// `NotFound` for what is not there, and what either file system answers.
    pub async fn copy_in(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), Error> {
        let defaults = self.defaults().await?;
        let agent = self.agent().await?;
        copy::copy_in(&agent, from.as_ref(), to.as_ref(), defaults.user.as_deref()).await
    }

    /// Copies a file or folder inside to the path `to` of the host; what is there is merged with.
    ///
    /// What comes is a stranger's: only regular files, folders and links that stay within are made, never
    /// outside of `to`, without set-user-id bits.
    ///
    /// # Errors
    ///
    /// `NotFound` for what is not there, `Protocol` for what tries to get out, and what either file
    /// system answers.
    pub async fn copy_out(
        &self,
        from: impl AsRef<Path>,
        to: impl AsRef<Path>,
    ) -> Result<(), Error> {
        copy::copy_out(&self.agent().await?, from.as_ref(), to.as_ref()).await
    }

    /// Brings both sides of every workspace into agreement now, and says what that did.
    ///
    /// # Errors
    ///
    /// `Conflict` when a safety stop asks for a decision (nothing was written then), `Disconnected`.
    pub async fn sync(&self) -> Result<Vec<SyncReport>, Error> {
        match &self.link {
            Link::Own(owner) => owner.flush().await,
            Link::Other(_) => self.runner().await?.flush().await,
        }
    }

    /// Lists what the guest did that this side has not taken over: everything in a workspace for
    /// [review](crate::Workspace::review), in others what is held back and what both sides changed.
    ///
    /// # Errors
    ///
    /// `Conflict` when a safety stop asks for a decision, `Disconnected` when it does not run.
    pub async fn changes(&self) -> Result<Changes, Error> {
        match &self.link {
            Link::Own(owner) => {
                let workspaces = owner.running()?.workspaces;
                workspaces.changes().await
            }
            Link::Other(_) => self.runner().await?.changes().await,
        }
    }

    /// Makes the workspaces outside what was chosen: each as one transaction, all of it or, with the reasons
    /// in its report, nothing. What is written is what was listed: a path that has changed since is a
    /// reason. [`Sandbox::undo_apply`] takes it back.
    ///
    /// # Errors
    ///
    /// `Unsupported` for a read-only workspace, and for single hunks of what flows by itself; as
    /// [`Sandbox::changes`].
    pub async fn apply(&self, chosen: &Changes) -> Result<Vec<ReviewReport>, Error> {
        self.decide(Decision::Apply, chosen).await
    }

    /// Makes the copies inside what this side has where it was chosen; what the guest did there is gone.
    ///
    /// # Errors
    ///
    /// As [`Sandbox::changes`].
    pub async fn discard(&self, chosen: &Changes) -> Result<Vec<ReviewReport>, Error> {
        self.decide(Decision::Discard, chosen).await
    }

    async fn decide(
        &self,
        decision: Decision,
        chosen: &Changes,
    ) -> Result<Vec<ReviewReport>, Error> {
        match &self.link {
            Link::Own(owner) => {
                let workspaces = owner.running()?.workspaces;
                workspaces.decide(decision, chosen).await
            }
            Link::Other(_) => self.runner().await?.decide(decision, chosen).await,
        }
    }

    /// Takes the last [`Sandbox::apply`] of each workspace back; what it had applied waits again.
    ///
    /// # Errors
    ///
    /// `NotFound` where there is none; as [`Sandbox::changes`].
    pub async fn undo_apply(&self) -> Result<Vec<ReviewReport>, Error> {
        match &self.link {
            Link::Own(owner) => {
                let workspaces = owner.running()?.workspaces;
                workspaces.undo().await
            }
            Link::Other(_) => self.runner().await?.undo().await,
        }
    }

    /// Takes a snapshot of every workspace's folder outside; without a name, one that gets the next automatic
    /// name and goes in time. What the guest did is in it as far as it has been brought here; what is masked
    /// or ignored is not.
    ///
    /// # Errors
    ///
    /// `Invalid` for a name that is none, `Conflict` where there is one of that name, `NotFound` when the sandbox
    /// has been removed; and what the file system answers.
    #[cfg(unix)]
    pub async fn snapshot_workspaces(
        &self,
        name: Option<&str>,
    ) -> Result<Vec<WorkspaceSnapshot>, Error> {
        if let Link::Own(owner) = &self.link
            && let Ok(running) = owner.running()
        {
            return running.workspaces.snapshot(name).await;
        }
        if let Link::Other(_) = &self.link
            && let (_, Some(remote)) = self.remote().await?
        {
            return remote.snapshot(name).await;
        }
        let name = name.map(str::to_owned);
        self.at_rest(move |snapshots, workspaces| snapshots.take(workspaces, name.as_deref()))
            .await
    }

    /// Lists the snapshots of every workspace, the oldest first.
    ///
    /// # Errors
    ///
    /// `NotFound` when it has been removed, and what the file system answers.
    #[cfg(unix)]
    pub async fn workspace_snapshots(&self) -> Result<Vec<WorkspaceSnapshot>, Error> {
        self.at_rest(|snapshots, workspaces| snapshots.list(workspaces))
            .await
    }

    /// Lists what leads from a snapshot to another one, or to the folders outside as they are. In each change
    /// the host's side is the snapshot's, the guest's the other's.
    ///
    /// # Errors
    ///
    /// `NotFound` where no workspace has such a snapshot, `Damaged` where it is not whole; as
    /// [`Sandbox::workspace_snapshots`].
    #[cfg(unix)]
    pub async fn compare_workspaces(
        &self,
        name: &str,
        other: Option<&str>,
    ) -> Result<Changes, Error> {
        let (name, other) = (name.to_owned(), other.map(str::to_owned));
        self.at_rest(move |snapshots, workspaces| {
            snapshots.diff(workspaces, (&name, other.as_deref()))
        })
        .await
    }

    /// Makes the workspaces' folders outside what a snapshot has, where the patterns (those of
    /// [`Changes::matching`]) choose it; everything without any. An automatic snapshot of them is taken first, and
    /// what changes meanwhile is left as it is and told. While it runs, the copies inside follow.
    ///
    /// # Errors
    ///
    /// `NotFound` where no workspace has such a snapshot or path, `Damaged` where it is not whole (nothing is
    /// written there then); `Unsupported` for a read-only workspace that runs; as
    /// [`Sandbox::snapshot_workspaces`].
    #[cfg(unix)]
    pub async fn restore_workspaces(
        &self,
        name: &str,
        patterns: &[String],
    ) -> Result<Vec<RestoreReport>, Error> {
        if let Link::Own(owner) = &self.link
            && let Ok(running) = owner.running()
        {
            return running.workspaces.restore(name, patterns).await;
        }
        if let Link::Other(_) = &self.link
            && let (_, Some(remote)) = self.remote().await?
        {
            return remote.restore(name, patterns).await;
        }
        let (name, patterns) = (name.to_owned(), patterns.to_vec());
        self.at_rest(move |snapshots, workspaces| snapshots.restore(workspaces, (&name, &patterns)))
            .await
    }

    /// Reads and verifies all snapshots there are, and lists those of this sandbox that cannot be restored whole.
    /// The next snapshot stores anew what of them the folders outside still have.
    ///
    /// # Errors
    ///
    /// As [`Sandbox::workspace_snapshots`].
    #[cfg(unix)]
    pub async fn verify_workspace_snapshots(&self) -> Result<Vec<HurtSnapshot>, Error> {
        self.at_rest(|snapshots, workspaces| snapshots.verify(workspaces))
            .await
    }

    /// Removes a snapshot of every workspace that has it.
    ///
    /// # Errors
    ///
    /// `NotFound` where none has; as [`Sandbox::workspace_snapshots`].
    #[cfg(unix)]
    pub async fn remove_workspace_snapshot(&self, name: &str) -> Result<(), Error> {
        let name = name.to_owned();
        self.at_rest(move |snapshots, workspaces| snapshots.remove(workspaces, &name))
            .await
    }

    /// Works on the store of snapshots, for which nothing has to run.
    #[cfg(unix)]
    async fn at_rest<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Snapshots, &[Workspace]) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let record = find(&self.store, &self.name).await?.record;
        let snapshots = Snapshots::new(&self.store.dirs, &record);
        blocking(move || work(&snapshots, &record.spec.workspaces)).await
    }

    /// Takes a snapshot of the whole sandbox while it runs: memory with all processes, disk and workspaces of one
    /// moment. Commands go on; they stand still for some tens of milliseconds, longer the more of its memory and
    /// disk the sandbox has changed, and what they say waits a little longer. It goes with the sandbox.
    ///
    /// The folders outside are kept as the workspaces' snapshot `machine-NAME`
    /// ([`Sandbox::workspace_snapshots`]), without what is masked or ignored.
    ///
    /// Goes on when the future is dropped.
    ///
    /// # Errors
    ///
    /// `Invalid` for a name that is none, `Conflict` where there is one of that name, `Unsupported`, with the reason,
    /// for a machine that cannot be saved (one that was booted and not restored from a template, say) or that writes
    /// to a disk image of the host, `Exhausted` when the disk is full, `Disconnected` when it does not run. It runs on
    /// then, and nothing is left behind.
    #[cfg(unix)]
    pub async fn snapshot(&self, name: &str) -> Result<SandboxSnapshot, Error> {
        match &self.link {
            Link::Own(owner) => owner.save(name).await,
            Link::Other(_) => self.runner().await?.save(name).await,
        }
    }

    /// Lists the snapshots of the whole sandbox, the oldest first.
    ///
    /// # Errors
    ///
    /// `NotFound` when it has been removed, and what the file system answers.
    #[cfg(unix)]
    pub async fn snapshots(&self) -> Result<Vec<SandboxSnapshot>, Error> {
        self.saved(|saved| saved.list()).await
    }

    /// Goes back to a snapshot: processes, files and memory inside are what they were, with new randomness and
    /// the present time. What was done inside since is gone; commands that were started since then end, and
    /// the handles of those that run in the snapshot, with `RolledBack`. The egress policy stays what it is
    /// now.
    ///
    /// The folders outside stay what they are unless `outside` says otherwise, and nothing there is overwritten
    /// without having been kept.
    ///
    /// Until the snapshot's machine runs, the present one is not touched. Goes on when the future is dropped.
    ///
    /// # Errors
    ///
    /// `NotFound` where there is none of that name, `Damaged` where it is not what was saved, `Unsupported` where it does
    /// not fit this host any more: the sandbox runs on as it is then. `Disconnected` when it does not run. Where the
    /// folders outside cannot be restored, their error, and the sandbox has gone back.
    #[cfg(unix)]
    pub async fn rollback(&self, name: &str, outside: Outside) -> Result<(), Error> {
        match &self.link {
            Link::Own(owner) => owner.roll_back(name, outside).await,
            Link::Other(_) => self.runner().await?.roll_back(name, outside).await,
        }
    }

    /// Makes copies of the running sandbox, which are called as it is with a number: see
    /// [`fork_named`](Self::fork_named).
    ///
    /// # Errors
    ///
    /// Those of [`fork_named`](Self::fork_named).
    #[cfg(unix)]
    pub async fn fork(&self, count: usize) -> Result<Vec<Self>, Error> {
        let names = fork::free_names(&self.store, &self.name, count).await?;
        self.fork_named(names).await
    }

    /// Makes copies of the running sandbox: sandboxes of these names, in whose guests all processes go on where
    /// they are now, each with memory and a disk of its own. This one stands still for as long as for a
    /// [snapshot](Self::snapshot).
    ///
    /// Nothing that makes a machine what it is is shared: a copy has another host name, other randomness, identities of
    /// machine and boot, placeholders and authority. Programs that have read these before know the old ones; what
    /// a program drew from the system's randomness before and keeps, it has in all copies. Commands that run are not
    /// attached to anybody in a copy. The egress policy is what it is now, and each goes its own way from there.
    ///
    /// A copy's workspaces have the same folders outside. What was two-way waits for [review](Self::changes) in a
    /// copy, output paths too, and comes out where somebody [applies](Self::apply) it.
    ///
    /// Copies live as long as their origin was to: as long as their handles, or until they are removed. All of them are
    /// made or none. Those of a detached sandbox are made to the end when the future is dropped.
    ///
    /// # Errors
    ///
    /// `Conflict` where a name is taken, where the sandbox is paused, and where it goes with a handle that is not this
    /// one; `Disconnected` where it does not run; `Unsupported` where its machine cannot be saved while it runs.
    #[cfg(unix)]
    pub async fn fork_named(
        &self,
        names: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Vec<Self>, Error> {
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        names.iter().try_for_each(|name| check_name(name))?;
        if names.is_empty() {
            return Ok(Vec::new());
        }
        match &self.link {
            Link::Own(owner) => {
                let copies = owner.fork(names.clone()).await?;
                let handles = names.into_iter().zip(copies).map(|(name, owner)| Self {
                    name,
                    store: self.store.clone(),
                    link: Link::Own(owner),
                });
                Ok(handles.collect())
            }
            Link::Other(_) => {
                self.runner().await?.fork(names.clone()).await?;
                let mut handles = Vec::new();
                for name in names {
                    handles.push(Self::connect_in(self.store.dirs.clone(), name).await?);
                }
                Ok(handles)
            }
        }
    }

    /// Removes a snapshot of the whole sandbox, and that of its workspaces.
    ///
    /// # Errors
    ///
    /// `NotFound` where there is none of that name, and what the file system answers.
    #[cfg(unix)]
    pub async fn remove_snapshot(&self, name: &str) -> Result<(), Error> {
        let owned = name.to_owned();
        self.saved(move |saved| saved.remove(&owned)).await?;
        match self.remove_workspace_snapshot(&workspaces_name(name)).await {
            // A sandbox without workspaces, or somebody removed it before.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    #[cfg(unix)]
    async fn saved<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Saved) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let record = find(&self.store, &self.name).await?.record;
        let saved = Saved::of(&self.store.folder(&record.name));
        blocking(move || work(&saved)).await
    }

    /// Adds a workspace to the running sandbox, now and for later starts; returns when it is in. The first one is where
    /// commands start from then on. Goes on when the future is dropped.
    ///
    /// # Errors
    ///
    /// `NotFound` and `PermissionDenied` for its folder; `Invalid` for a path inside that is none, or lies in another
    /// workspace; `Conflict` where another sandbox writes to the folder by itself, or this one is paused; `Disconnected`
    /// where it does not run. The sandbox is as it was then.
    pub async fn add_workspace(&self, workspace: Workspace) -> Result<(), Error> {
        match &self.link {
            Link::Own(owner) => owner.add_workspace(workspace).await,
            Link::Other(_) => {
                // By this process's folder, if it is a relative path.
                let workspace = blocking(move || workspace.resolved()).await?;
                self.runner().await?.add_workspace(&workspace).await
            }
        }
    }

    /// Tells how each workspace stands, by its last look.
    ///
    /// # Errors
    ///
    /// `Disconnected` when it does not run.
    pub async fn sync_status(&self) -> Result<Vec<SyncStatus>, Error> {
        match &self.link {
            Link::Own(owner) => Ok(owner.running()?.workspaces.status()),
            Link::Other(_) => self.runner().await?.sync_status().await,
        }
    }

    /// Stops synchronizing the workspaces, at the ends of commands and of the machine too, or goes on. Not kept
    /// beyond the machine's end.
    ///
    /// # Errors
    ///
    /// `Disconnected` when it does not run.
    pub async fn set_sync_paused(&self, paused: bool) -> Result<(), Error> {
        match &self.link {
            Link::Own(owner) => {
                let workspaces = owner.running()?.workspaces;
                workspaces.set_paused(paused).await
            }
            Link::Other(_) => self.runner().await?.pause_sync(paused).await,
        }
    }

    /// Answers the safety stops of the workspaces that have one, and says what that did there.
    ///
    /// # Errors
    ///
    /// As [`Sandbox::sync`].
    pub async fn resume_sync(&self, resolution: Resolution) -> Result<Vec<SyncReport>, Error> {
        match &self.link {
            Link::Own(owner) => {
                let workspaces = owner.running()?.workspaces;
                workspaces.resume(resolution).await
            }
            Link::Other(_) => self.runner().await?.resume_sync(resolution).await,
        }
    }

    /// Returns the egress policy.
    ///
    /// # Errors
    ///
    /// `NotFound` when it has been removed.
    pub async fn network(&self) -> Result<RuleSet, Error> {
        match &self.link {
            Link::Own(owner) => owner.network(),
            Link::Other(_) => match self.remote().await? {
                (_, Some(remote)) => remote.network().await,
                (record, None) => Ok(record.spec.network),
            },
        }
    }

    /// Returns all rules in force, with whose they are: those of the organization and of the user as they were read
    /// last, and the sandbox's own. Where nothing runs, as they would be read now.
    ///
    /// # Errors
    ///
    /// `NotFound` when it has been removed; as [`PolicySource::load`](crate::PolicySource::load) where nothing runs.
    pub async fn network_layers(&self) -> Result<Layers, Error> {
        match &self.link {
            Link::Own(owner) => owner.network_layers(),
            Link::Other(_) => match self.remote().await? {
                (_, Some(remote)) => remote.network_layers().await,
                (record, None) => {
                    let spec = record.spec;
                    blocking(move || Ok(spec.above.load()?.layers(&spec.network))).await
                }
            },
        }
    }

    /// Reads the rules of the organization and of the user again, which hold from then on as those of
    /// [`Sandbox::set_network`] do. Where nothing runs, they are read to tell what is wrong with them.
    ///
    /// # Errors
    ///
    /// `NotFound` when it has been removed; as [`PolicySource::load`](crate::PolicySource::load), with what is in force
    /// left as it is.
    pub async fn reload_network(&self) -> Result<(), Error> {
        match &self.link {
            Link::Own(owner) => owner.reload_network().await,
            Link::Other(_) => match self.remote().await? {
                (_, Some(remote)) => remote.reload_network().await,
                (record, None) => {
                    let above = record.spec.above;
                    blocking(move || above.load().map(drop)).await
                }
            },
        }
    }

    /// Tells what would be decided about a target, why, and which way a connection would go, without connecting: by
    /// the rules in force, or with `rules` in place of the sandbox's own. The target is as for
    /// [`sandbox_net::check`]; its name is looked up if the rules allow that. Where nothing runs, as if it were started
    /// now.
    ///
    /// # Errors
    ///
    /// `NotFound` when it has been removed, `Invalid` for what is no target; where nothing runs, as
    /// [`PolicySource::load`](crate::PolicySource::load) and [`UpstreamProxy::load`](crate::UpstreamProxy::load).
    pub async fn check_network(
        &self,
        target: &str,
        rules: Option<RuleSet>,
    ) -> Result<NetworkCheck, Error> {
        match &self.link {
            Link::Own(owner) => owner.check_network(target, rules).await,
            Link::Other(_) => match self.remote().await? {
                (_, Some(remote)) => remote.check_network(target, rules.as_ref()).await,
                (record, None) => check::at_rest(record.spec, rules, target).await,
            },
        }
    }

    /// Replaces the egress policy: from the next decision on, for live connections too, and after every
    /// later start.
    ///
    /// # Errors
    ///
    /// `NotFound` when it has been removed, and what the file system answers.
    pub async fn set_network(&self, policy: RuleSet) -> Result<(), Error> {
        match &self.link {
            Link::Own(owner) => owner.set_network(policy).await,
            Link::Other(_) => match self.remote().await? {
                (_, Some(remote)) => remote.set_network(&policy).await,
                (_, None) => {
                    let (store, name) = (self.store.clone(), self.name.clone());
                    blocking(move || {
                        let mut owned = store.adopt(&name)?;
                        owned.change(|record| record.spec.network = policy)
                    })
                    .await
                }
            },
        }
    }

    /// Adds rules to the egress policy in force, in force like those of [`Sandbox::set_network`]; those that are
    /// there already stay as they are. The mode of what is added means nothing. Returns the policy that came of
    /// it. Callers in several processes lose nothing of each other's.
    ///
    /// # Errors
    ///
    /// As for [`Sandbox::set_network`].
    pub async fn extend_network(&self, rules: RuleSet) -> Result<RuleSet, Error> {
        match &self.link {
            Link::Own(owner) => owner.extend_network(&rules).await,
            Link::Other(_) => match self.remote().await? {
                (_, Some(remote)) => remote.extend_network(&rules).await,
                (_, None) => {
                    let (store, name) = (self.store.clone(), self.name.clone());
                    blocking(move || {
                        let mut owned = store.adopt(&name)?;
                        let policy = owned.record.spec.network.clone().extended(&rules);
                        owned.change(|record| record.spec.network = policy.clone())?;
                        Ok(policy)
                    })
                    .await
                }
            },
        }
    }

    /// Drops the value of a secret: requests with its placeholder are refused from the next one on. Where it is
    /// named by reference, [`reload_secret`](Self::reload_secret) brings it back, and so does a later start in another
    /// process.
    ///
    /// # Errors
    ///
    /// `NotFound` without such a secret; `Disconnected` where another process owned the sandbox and nothing runs.
    pub async fn revoke_secret(&self, name: &str) -> Result<(), Error> {
        match &self.link {
            Link::Own(owner) => owner.revoke_secret(name),
            Link::Other(_) => self.runner().await?.revoke_secret(name).await,
        }
    }

    /// Fetches the value of a secret again from where it comes from, for requests that are still to come; also after
    /// it was revoked. The placeholder stays.
    ///
    /// # Errors
    ///
    /// As [`revoke_secret`](Self::revoke_secret), and what fetching it answers; the value stays as it was then.
    pub async fn reload_secret(&self, name: &str) -> Result<(), Error> {
        match &self.link {
            Link::Own(owner) => owner.reload_secret(name).await,
            Link::Other(_) => self.runner().await?.reload_secret(name).await,
        }
    }

    /// Replaces the value of a secret, for requests that are still to come; the placeholder stays.
    ///
    /// # Errors
    ///
    /// `NotFound` without such a secret, `Invalid` for a value that does not fit it, `Unsupported` where another
    /// process owns the sandbox: values are not sent to it, [`reload_secret`](Self::reload_secret) makes it look.
    pub async fn replace_secret(&self, name: &str, value: Secret) -> Result<(), Error> {
        match &self.link {
            Link::Own(owner) => owner.replace_secret(name, value),
            Link::Other(_) => {
                let error = Error::new(ErrorKind::Unsupported, "replace a secret");
                Err(error
                    .with_detail("another process owns the sandbox; have it reload the secret"))
            }
        }
    }

    /// Subscribes to what the egress decides from now on; `None` where another process owns the sandbox,
    /// whose log ([`Sandbox::network_log`]) has it.
    pub fn network_events(&self) -> Option<Subscription> {
        match &self.link {
            Link::Own(owner) => Some(owner.proxy.subscribe()),
            Link::Other(_) => None,
        }
    }

    /// Returns the file that what the egress decides is appended to, one JSON object a line.
    pub fn network_log(&self) -> PathBuf {
        self.store.folder(&self.name).join("events.jsonl")
    }

    /// Brings the workspaces into agreement and has the machine stand still: commands, too, go on with
    /// [`Sandbox::resume`] and not before. It keeps its memory and takes no processor time. Meanwhile whatever asks
    /// something of the guest is refused, with `Conflict`; describing, stopping and removing it is not, nor is
    /// changing its network's rules. Its run time goes on. Idempotent; goes on when the future is dropped.
    ///
    /// # Errors
    ///
    /// `Disconnected` when it does not run, `Unsupported` when its backend cannot; it runs on then.
    pub async fn pause(&self) -> Result<(), Error> {
        match &self.link {
            Link::Own(owner) => owner.pause().await,
            Link::Other(_) => self.runner().await?.pause().await,
        }
    }

    /// Has a paused sandbox go on where it stood still, with the clock set to what time it is. Idempotent; goes on
    /// when the future is dropped.
    ///
    /// # Errors
    ///
    /// `Disconnected` when it does not run; `TimedOut` when its guest does not answer, whose clock may be wrong then.
    pub async fn resume(&self) -> Result<(), Error> {
        match &self.link {
            Link::Own(owner) => owner.resume().await,
            Link::Other(_) => self.runner().await?.resume().await,
        }
    }

    /// Brings the workspaces into agreement, powers the guest off and ends the machine; the disk is
    /// kept. Idempotent. Goes on when the future is dropped half-way, or is begun anew.
    ///
    /// # Errors
    ///
    /// `NotFound` when it has been removed; what could not be removed of the machine.
    pub async fn stop(&self) -> Result<(), Error> {
        match &self.link {
            Link::Own(owner) => owner.stop().await,
            Link::Other(_) => {
                let (record, remote) = self.remote().await?;
                let Some(remote) = remote else {
                    return Ok(());
                };
                remote.stop().await?;
                if record.lifetime == Lifetime::Detached {
                    gone(&remote).await?;
                }
                Ok(())
            }
        }
    }

    /// Starts a stopped sandbox again, from its disk. An attached one's start goes on when the future is
    /// dropped; a detached one's is given up then.
    ///
    /// # Errors
    ///
    /// `Conflict` when it runs; those of [`SandboxBuilder::create`].
    pub async fn start(&self) -> Result<(), Error> {
        match &self.link {
            Link::Own(owner) => {
                let owner = owner.clone();
                to_its_end(async move { owner.start(None).await }).await
            }
            Link::Other(link) => {
                if let (record, Some(remote)) = self.remote().await? {
                    let has_stopped = match remote.describe().await {
                        Ok(description) => description.state == State::Stopped,
                        // Its owner is dying.
                        Err(error) if error.kind() == ErrorKind::Disconnected => true,
                        Err(error) => return Err(error),
                    };
                    let about_to_go = record.lifetime == Lifetime::Detached && has_stopped;
                    if !about_to_go {
                        return Err(Error::new(ErrorKind::Conflict, "start the sandbox")
                            .with_detail("it runs, or its owner must start it"));
                    }
                    gone(&remote).await?;
                }
                let remote = launch(&self.store, &self.name, None, &Progress::silent()).await?;
                keep(link, Some(remote));
                Ok(())
            }
        }
    }

    /// Ends the machine at once and removes everything: processes, disk, sockets, records. What was
    /// changed inside and has not come back is lost; [`Sandbox::stop`] or [`Sandbox::sync`] first keeps it.
    ///
    /// # Errors
    ///
    /// What could not be removed, by name.
    pub async fn remove(self) -> Result<(), Error> {
        match self.link {
            Link::Own(owner) => owner.remove().await,
            Link::Other(_) => {
                let (record, remote) = self.remote().await?;
                if let Some(remote) = remote {
                    remote.remove().await?;
                    if record.lifetime == Lifetime::Detached {
                        gone(&remote).await?;
                    }
                    return Ok(());
                }
                let (store, name) = (self.store, self.name);
                blocking(move || store.adopt(&name)?.remove()).await
            }
        }
    }

    pub(crate) async fn agent(&self) -> Result<Agent, Error> {
        match &self.link {
            Link::Own(owner) => Ok(owner.running()?.agent),
            Link::Other(_) => Ok(self.runner().await?.agent()),
        }
    }

    pub(crate) async fn defaults(&self) -> Result<Defaults, Error> {
        match &self.link {
            Link::Own(owner) => Ok((*owner.running()?.defaults).clone()),
            Link::Other(_) => self.runner().await?.defaults().await,
        }
    }

    pub(crate) fn flusher(&self) -> Flusher {
        match &self.link {
            Link::Own(owner) => Flusher(FlusherLink::Own(Arc::downgrade(owner))),
            Link::Other(link) => Flusher(FlusherLink::Other(kept(link))),
        }
    }

    /// Returns its record and, while a process owns it, the connection to that.
    async fn remote(&self) -> Result<(Record, Option<Remote>), Error> {
        let Link::Other(link) = &self.link else {
            return Err(Error::new(ErrorKind::Conflict, "reach the sandbox's owner"));
        };
        let Some(remote) = kept(link) else {
            let (record, remote) = reach(&self.store, &self.name).await?;
            keep(link, remote.clone());
            return Ok((record, remote));
        };
        Ok((find(&self.store, &self.name).await?.record, Some(remote)))
    }

    /// Returns the connection to its owner, without which nothing runs.
    async fn runner(&self) -> Result<Remote, Error> {
        if let Link::Other(link) = &self.link
            && let Some(remote) = kept(link)
        {
            return Ok(remote);
        }
        self.remote().await?.1.ok_or_else(|| {
            Error::new(ErrorKind::Disconnected, "use the sandbox")
                .with_detail("it is not running; start it first")
        })
    }
}

/// Returns the owner that was reached before, unless it is gone.
fn kept(link: &Mutex<Option<Remote>>) -> Option<Remote> {
    let link = link.lock().unwrap_or_else(PoisonError::into_inner);
    link.clone().filter(|remote| !remote.has_ended())
}

fn keep(link: &Mutex<Option<Remote>>, remote: Option<Remote>) {
    *link.lock().unwrap_or_else(PoisonError::into_inner) = remote;
}

/// Waits until a supervisor that has nothing left to do is gone, and with it the lock.
async fn gone(remote: &Remote) -> Result<(), Error> {
    tokio::time::timeout(OWNER_PATIENCE, remote.ended())
        .await
        .map_err(|_| Error::new(ErrorKind::TimedOut, "wait for the supervisor's end"))
}

/// Finds a sandbox and connects to its owner, when it has one.
async fn reach(store: &Store, name: &str) -> Result<(Record, Option<Remote>), Error> {
    let deadline = Instant::now() + DEATH_PATIENCE;
    loop {
        let found = find(store, name).await?;
        if !found.owned {
            return Ok((found.record, None));
        }
        match Remote::connect(&store.control_socket(&found.record)).await {
            Ok(remote) => return Ok((found.record, Some(remote))),
            // Its owner went in order while it was being reached.
            Err(_) if found.going => return Ok((found.record, None)),
            Err(error) if matches!(found.record.state, State::Creating | State::Starting) => {
                return Err(Error::new(ErrorKind::Conflict, "reach the sandbox's owner")
                    .with_detail("the sandbox is still being started")
                    .with_source(error));
            }
            Err(error) if Instant::now() > deadline => return Err(error),
            // A killed process closes its socket a moment before it lets go of its lock.
            Err(_) => tokio::time::sleep(STEP).await,
        }
    }
}

/// Runs the supervisor of a sandbox without an owner, or of one to create, and connects to it.
pub(crate) async fn launch(
    store: &Store,
    name: &str,
    create: Option<Creation>,
    progress: &Progress,
) -> Result<Remote, Error> {
    let helper = helper::path(&store.dirs.cache)?;
    supervisor::launch(&helper, &store.dirs, (name, create), progress).await?;
    let found = find(store, name).await?;
    Remote::connect(&store.control_socket(&found.record)).await
}

async fn find(store: &Store, name: &str) -> Result<crate::state::Found, Error> {
    let (store, name) = (store.clone(), name.to_owned());
    blocking(move || store.find(&name)).await
}

/// Brings workspaces into agreement at the ends of commands, without keeping the sandbox alive.
#[derive(Debug)]
pub(crate) struct Flusher(FlusherLink);

#[derive(Debug)]
enum FlusherLink {
    Own(std::sync::Weak<Owner>),
    Other(Option<Remote>),
}

impl Flusher {
    pub(crate) async fn flush(&self) -> Result<(), Error> {
        match &self.0 {
            FlusherLink::Own(owner) => match owner.upgrade() {
                Some(owner) => {
                    let workspaces = owner.running()?.workspaces;
                    // A look that takes long must not keep a dropped sandbox alive.
                    drop(owner);
                    workspaces.flush().await.map(drop)
                }
                None => Ok(()),
            },
            FlusherLink::Other(Some(remote)) => remote.flush().await.map(drop),
            FlusherLink::Other(None) => Ok(()),
        }
    }

    /// Tells whether the sandbox has gone back to a snapshot since it had done so `before` times.
    pub(crate) async fn has_gone_back(&self, before: u64) -> bool {
        let now = match &self.0 {
            FlusherLink::Own(owner) => owner.upgrade().map(|owner| owner.generation()),
            FlusherLink::Other(Some(remote)) => remote.generation().await.ok(),
            FlusherLink::Other(None) => None,
        };
        now.is_some_and(|now| now > before)
    }
}

/// A path inside, as the bytes that Linux knows it by.
pub(crate) fn bytes_of(path: &Path) -> Result<&[u8], Error> {
    let absolute = path.has_root();
    if absolute {
        return Ok(path.as_os_str().as_encoded_bytes());
    }
    Err(Error::new(
        ErrorKind::Invalid,
        format!("use the path {} inside", path.display()),
    )
    .with_detail("it must be absolute"))
}

impl State {
    /// Tells whether commands can run.
    pub fn is_running(self) -> bool {
        self == Self::Running
    }
}
