//! The workspaces of a running sandbox: one synchronizing session each.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sandbox_base::{BoxStream, Error, ErrorKind};
use sandbox_sync::{
    Conflict, HeldReason, Lists, Mode, Options, RelPath, Report, Resolution, Session, review,
};
use sandbox_vm::Agent;
use serde::{Deserialize, Serialize};

use crate::history;
#[cfg(unix)]
use crate::snapshots::{self, RestoreReport, Snapshots, WorkspaceSnapshot};
use crate::spec::Workspace;
#[cfg(unix)]
use crate::state::blocking;

/// The agent's service that the sessions speak to.
pub(crate) const SERVICE: &str = "sync";

/// What one look at a workspace did and what it left alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SyncReport {
    /// The folder outside.
    pub workspace: String,
    /// Paths of the host that were changed.
    pub to_host: Vec<String>,
    /// Paths inside that were changed.
    pub to_guest: Vec<String>,
    /// Paths that both sides changed: each keeps its own.
    pub conflicts: Vec<String>,
    /// Those of the conflicts that nobody's changes made, with the reason in words: two names that one side's
    /// file system takes for one.
    #[serde(default)]
    pub collisions: BTreeMap<String, String>,
    /// Paths that both sides changed and where the host's version won; the one from inside lies beside it.
    #[serde(default)]
    pub overruled: Vec<String>,
    /// Paths changed inside that do not come back by themselves, because they run without being asked, or
    /// because the workspace is read-only.
    pub held: Vec<String>,
    /// Paths changed inside that wait for review.
    #[serde(default)]
    pub waiting: Vec<String>,
    /// Paths that could not be brought into agreement, with the reason.
    pub problems: Vec<String>,
}

impl SyncReport {
    fn new(workspace: &Path, report: &Report) -> Self {
        let held = |waits: bool| {
            let held = report.held.iter();
            texts(
                held.filter(|one| (one.reason == HeldReason::Review) == waits)
                    .map(|one| &one.path),
            )
        };
        Self {
            workspace: workspace.display().to_string(),
            to_host: texts(report.to_host.iter().map(|one| &one.path)),
            to_guest: texts(report.to_guest.iter().map(|one| &one.path)),
            conflicts: texts(report.conflicts.iter().map(|one| &one.path)),
            collisions: collisions(report),
            overruled: texts(report.overruled.iter().map(|one| &one.path)),
            held: held(false),
            waiting: held(true),
            problems: report
                .problems
                .iter()
                .map(|one| format!("{}: {}", one.path, one.text))
                .collect(),
        }
    }
}

fn collisions(report: &Report) -> BTreeMap<String, String> {
    let words = |one: &Conflict| Some((one.path.to_string(), one.collision.as_ref()?.to_string()));
    report.conflicts.iter().filter_map(words).collect()
}

pub(crate) fn texts<'a>(paths: impl Iterator<Item = &'a RelPath>) -> Vec<String> {
    paths.map(ToString::to_string).collect()
}

/// How a workspace stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SyncStatus {
    /// The folder outside.
    pub workspace: String,
    /// The folder inside.
    pub guest: String,
    /// Which way changes flow.
    pub mode: Mode,
    /// Whether nothing is synchronized until [`Sandbox::set_sync_paused`](crate::Sandbox::set_sync_paused) says so.
    pub paused: bool,
    /// What stopped it until [`Sandbox::resume_sync`](crate::Sandbox::resume_sync) answers.
    pub halted: Option<String>,
    /// Why the last look failed.
    pub failed: Option<String>,
    /// What the last look did and left alone.
    pub last: SyncReport,
}

/// What the guest did in the workspaces and this side has not taken over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Changes {
    /// One for each workspace, in their order.
    pub workspaces: Vec<WorkspaceChanges>,
}

/// What the guest did in one workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkspaceChanges {
    /// The folder outside.
    pub workspace: PathBuf,
    /// What was done in it.
    pub changes: review::Changes,
}

impl Changes {
    /// Tells whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.workspaces.iter().all(|one| one.changes.is_empty())
    }

    /// Returns what a pattern chooses in any workspace; what is no pattern chooses nothing. See
    /// [`review::Changes::matching`].
    #[must_use]
    pub fn only(&self, pattern: impl AsRef<str>) -> Self {
        self.map(|changes| changes.only(&pattern))
    }

    /// Returns what any of the patterns chooses.
    ///
    /// # Errors
    ///
    /// `Invalid`, with the first pattern that is none.
    pub fn matching(&self, patterns: &[impl AsRef<str>]) -> Result<Self, Error> {
        review::Changes::default()
            .matching(patterns)
            .map_err(|error| {
                Error::new(error.kind(), "choose changes").with_detail(error.to_string())
            })?;
        Ok(self.map(|changes| changes.matching(patterns).unwrap_or_default()))
    }

    /// Returns the changes that a condition holds for.
    #[must_use]
    pub fn filter(&self, mut holds: impl FnMut(&review::Change) -> bool) -> Self {
        self.map(|changes| changes.filter(&mut holds))
    }

    fn map(&self, mut choose: impl FnMut(&review::Changes) -> review::Changes) -> Self {
        let workspaces = self.workspaces.iter().map(|one| WorkspaceChanges {
            workspace: one.workspace.clone(),
            changes: choose(&one.changes),
        });
        Self {
            workspaces: workspaces.collect(),
        }
    }
}

/// What came of applying, discarding or taking back in one workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ReviewReport {
    /// The folder outside.
    pub workspace: String,
    /// The paths that were changed.
    pub done: Vec<String>,
    /// What stood in the way, with the reasons. What is applied is done as a whole or, with one of these,
    /// not at all; what is discarded path by path.
    pub refused: Vec<String>,
}

/// What to do with changes that were chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Decision {
    Apply,
    Discard,
}

/// The sessions of one running machine.
#[derive(Debug, Default)]
pub(crate) struct Workspaces {
    sessions: Vec<Arc<(Workspace, Session)>>,
    #[cfg(unix)]
    snapshots: Snapshots,
}

impl Workspaces {
    /// Opens a session for each workspace, with what `options` says of all of them, and brings both sides
    /// into agreement.
    pub(crate) async fn open(
        agent: &Agent,
        workspaces: &[Workspace],
        folder: &Path,
        options: Options,
    ) -> Result<Self, Error> {
        let mut all = Self::default();
        for workspace in workspaces {
            all = all.and(agent, workspace, folder, options.clone()).await?;
        }
        Ok(all)
    }

    /// Opens one more. The others go on, also by what is here.
    pub(crate) async fn and(
        &self,
        agent: &Agent,
        workspace: &Workspace,
        folder: &Path,
        options: Options,
    ) -> Result<Self, Error> {
        let index = self.sessions.len();
        let stream: BoxStream = agent.service(SERVICE).await?;
        let lists = lists(workspace).await?;
        let options = options
            .with_mode(workspace.mode)
            .with_lists(lists)
            .with_guest_root(&workspace.guest)
            .with_base_file(history::base(folder, index))
            .with_undo(history::undo(folder, index));
        let session = Session::start(&workspace.host, stream, options)
            .await
            .map_err(|error| failed(&workspace.host, error))?;
        let mut sessions = self.sessions.clone();
        sessions.push(Arc::new((workspace.clone(), session)));
        Ok(Self {
            sessions,
            #[cfg(unix)]
            snapshots: self.snapshots.clone(),
        })
    }

    fn each(&self) -> impl Iterator<Item = &(Workspace, Session)> {
        self.sessions.iter().map(|one| &**one)
    }

    /// Says where the snapshots are.
    #[cfg(unix)]
    pub(crate) fn with_snapshots(mut self, snapshots: Snapshots) -> Self {
        self.snapshots = snapshots;
        self
    }

    /// Takes a snapshot of every workspace, between two cycles; without a name, an automatic one.
    #[cfg(unix)]
    pub(crate) async fn snapshot(
        &self,
        name: Option<&str>,
    ) -> Result<Vec<WorkspaceSnapshot>, Error> {
        let mut all = Vec::new();
        for (index, one) in self.sessions.iter().enumerate() {
            let (workspace, session) = &**one;
            let space = self.snapshots.space(index)?;
            let taken = session
                .snapshot(&space, name, snapshots::options(workspace)?)
                .await;
            let taken = taken.map_err(|error| failed(&workspace.host, error))?;
            all.push(snapshots::taken_of(workspace, taken));
        }
        let (snapshots, taken) = (self.snapshots.clone(), all.clone());
        blocking(move || snapshots.tidy(&taken)).await?;
        Ok(all)
    }

    /// Makes the folders outside what a snapshot has, between two cycles.
    #[cfg(unix)]
    pub(crate) async fn restore(
        &self,
        name: &str,
        patterns: &[String],
    ) -> Result<Vec<RestoreReport>, Error> {
        let (mut reports, mut missing) = (Vec::new(), None);
        for (index, one) in self.sessions.iter().enumerate() {
            let (workspace, session) = &**one;
            let space = self.snapshots.space(index)?;
            let options = snapshots::options(workspace)?;
            match session.restore(&space, (name, patterns), options).await {
                Ok(restored) => reports.push(snapshots::restored_of(workspace, &restored)),
                Err(error) if error.kind() == ErrorKind::NotFound => missing = Some(error),
                Err(error) => return Err(failed(&workspace.host, error)),
            }
        }
        match missing {
            Some(error) if reports.is_empty() => Err(snapshots::failed(error)),
            _ => Ok(reports),
        }
    }

    /// Lists what waits in every workspace.
    pub(crate) async fn changes(&self) -> Result<Changes, Error> {
        let mut workspaces = Vec::new();
        for (workspace, session) in self.each() {
            let listed = session.changes().await;
            workspaces.push(WorkspaceChanges {
                workspace: workspace.host.clone(),
                changes: listed.map_err(|error| failed(&workspace.host, error))?,
            });
        }
        Ok(Changes { workspaces })
    }

    /// Carries out what was decided, in each workspace by itself.
    pub(crate) async fn decide(
        &self,
        decision: Decision,
        chosen: &Changes,
    ) -> Result<Vec<ReviewReport>, Error> {
        let mut reports = Vec::new();
        for one in chosen
            .workspaces
            .iter()
            .filter(|one| !one.changes.is_empty())
        {
            let found = self.each().find(|(workspace, _)| is_of(one, workspace));
            let (workspace, session) = found.ok_or_else(|| {
                let operation = format!("find the workspace {}", one.workspace.display());
                Error::new(ErrorKind::NotFound, operation)
            })?;
            let outcome = match decision {
                Decision::Apply => session.apply(&one.changes).await,
                Decision::Discard => session.discard(&one.changes).await,
            };
            let outcome = outcome.map_err(|error| failed(&workspace.host, error))?;
            reports.push(ReviewReport::new(&workspace.host, &outcome));
        }
        Ok(reports)
    }

    /// Takes the last apply of each workspace back.
    pub(crate) async fn undo(&self) -> Result<Vec<ReviewReport>, Error> {
        let mut reports = Vec::new();
        for (workspace, session) in self.each() {
            match session.undo().await {
                Ok(outcome) => reports.push(ReviewReport::new(&workspace.host, &outcome)),
                Err(error)
                    if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unsupported) => {}
                Err(error) => return Err(failed(&workspace.host, error)),
            }
        }
        match reports.is_empty() {
            true => Err(Error::new(ErrorKind::NotFound, "take an apply back")
                .with_detail("nothing was applied, or it was taken back already")),
            false => Ok(reports),
        }
    }

    /// Stops synchronizing where that goes on, with every cycle at its end, and returns which sessions those were.
    pub(crate) async fn rest(&self) -> Result<Vec<usize>, Error> {
        let mut resting = Vec::new();
        for (index, one) in self.sessions.iter().enumerate() {
            let (workspace, session) = &**one;
            if session.standing().paused {
                continue;
            }
            match session.set_paused(true).await {
                Ok(()) => resting.push(index),
                Err(error) => {
                    self.go_on(&resting).await;
                    return Err(failed(&workspace.host, error));
                }
            }
        }
        Ok(resting)
    }

    /// Goes on where [`Workspaces::rest`] stopped.
    pub(crate) async fn go_on(&self, resting: &[usize]) {
        for one in resting.iter().filter_map(|index| self.sessions.get(*index)) {
            let (workspace, session) = &**one;
            if let Err(error) = session.set_paused(false).await {
                let workspace = workspace.host.display();
                tracing::warn!(%error, %workspace, "a workspace is not synchronized any more");
            }
        }
    }

    /// Ends all sessions as they are.
    pub(crate) async fn close(&self) {
        for (_, session) in self.each() {
            session.close().await;
        }
    }

    /// Tells how every workspace stands.
    pub(crate) fn status(&self) -> Vec<SyncStatus> {
        let status = |(workspace, session): &(Workspace, Session)| {
            let standing = session.standing();
            SyncStatus {
                workspace: workspace.host.display().to_string(),
                guest: workspace.guest.display().to_string(),
                mode: workspace.mode,
                paused: standing.paused,
                halted: standing.halted.map(|halt| halt.to_string()),
                failed: standing.failed,
                last: SyncReport::new(&workspace.host, &standing.last),
            }
        };
        self.each().map(status).collect()
    }

    /// Stops synchronizing every workspace, or goes on.
    pub(crate) async fn set_paused(&self, paused: bool) -> Result<(), Error> {
        for (workspace, session) in self.each() {
            let set = session.set_paused(paused).await;
            set.map_err(|error| failed(&workspace.host, error))?;
        }
        Ok(())
    }

    /// Answers the safety stops of the workspaces that have one.
    pub(crate) async fn resume(&self, resolution: Resolution) -> Result<Vec<SyncReport>, Error> {
        let mut reports = Vec::new();
        for (workspace, session) in self.each() {
            if session.standing().halted.is_none() {
                continue;
            }
            let report = session.resume(resolution).await;
            let report = report.map_err(|error| failed(&workspace.host, error))?;
            reports.push(SyncReport::new(&workspace.host, &report));
        }
        Ok(reports)
    }

    /// Brings both sides of every workspace into agreement now, those that are paused aside.
    pub(crate) async fn flush(self: &Arc<Self>) -> Result<Vec<SyncReport>, Error> {
        let mut reports = Vec::new();
        for (workspace, session) in self.each() {
            if session.standing().paused {
                continue;
            }
            let report = session
                .flush()
                .await
                .map_err(|error| failed(&workspace.host, error))?;
            reports.push(SyncReport::new(&workspace.host, &report));
        }
        Ok(reports)
    }
}

impl ReviewReport {
    fn new(workspace: &Path, outcome: &review::Outcome) -> Self {
        let refused = outcome.refused.iter();
        Self {
            workspace: workspace.display().to_string(),
            done: texts(outcome.done.iter()),
            refused: refused
                .map(|one| format!("{}: {}", one.path, one.text))
                .collect(),
        }
    }
}

/// Tells whether changes are of a workspace: of one folder there may be several, each about one file.
fn is_of(changes: &WorkspaceChanges, workspace: &Workspace) -> bool {
    let is_about = |change: &review::Change| match &workspace.only {
        Some(only) => change.path.components().next() == Some(only.as_bytes()),
        None => true,
    };
    changes.workspace == workspace.host && changes.changes.changes.iter().all(is_about)
}

/// Returns the lists that a workspace goes by, which may have to be looked for in it.
async fn lists(workspace: &Workspace) -> Result<Lists, Error> {
    let asked = workspace.clone();
    let lists = tokio::task::spawn_blocking(move || asked.lists()).await;
    let lists =
        lists.map_err(|error| Error::io("read the path rules", std::io::Error::other(error)))?;
    lists.map_err(|error| failed(&workspace.host, error))
}

fn failed(workspace: &Path, error: sandbox_sync::Error) -> Error {
    Error::new(error.kind(), format!("synchronize {}", workspace.display()))
        .with_detail(error.to_string())
        .with_source(error)
}
