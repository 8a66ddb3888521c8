//! Snapshots of a sandbox's workspaces, in one store for all sandboxes.
//!
//! Each workspace has a space of its own there, by the sandbox's identity and the workspace's number, so a
//! later sandbox of the same name does not find them. While the sandbox runs they are taken and restored by
//! its sessions, between two cycles; at rest by whoever asks. Looking at them needs nobody.

use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use sandbox_base::{Dirs, Error, ErrorKind};
use sandbox_sync::snapshot::{
    Against, Options, Restored, Retention, Snapshot, Space, Store, Taken,
};
use serde::{Deserialize, Serialize};

use crate::spec::Workspace;
use crate::state::Record;
use crate::workspace::{Changes, WorkspaceChanges, texts};

/// Every so many automatic snapshots, what no snapshot needs any more is removed.
const COLLECT: u64 = 16;

/// A snapshot of one workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkspaceSnapshot {
    /// The folder outside.
    pub workspace: PathBuf,
    /// What it is called.
    pub name: String,
    /// When it was taken, in seconds since 1970.
    pub created: u64,
    /// Whether nobody named it, so that it goes in time.
    pub automatic: bool,
    /// How many files it holds.
    pub files: u64,
    /// How long they are together.
    pub bytes: u64,
    /// Files that were being written meanwhile, and may be a mixture in it.
    pub torn: Vec<String>,
}

/// What came of restoring one workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RestoreReport {
    /// The folder outside.
    pub workspace: String,
    /// The snapshot of the folder as it was.
    pub before: String,
    /// The paths that are now what the snapshot has.
    pub done: Vec<String>,
    /// The paths that are not, with the reasons.
    pub refused: Vec<String>,
}

/// A snapshot of one workspace that cannot be restored whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HurtSnapshot {
    /// The folder outside.
    pub workspace: PathBuf,
    /// What it is called.
    pub name: String,
    /// What of it is damaged or missing, at most a hundred paths; none where that is all of it.
    pub paths: Vec<String>,
    /// How many more paths there are.
    pub more: u64,
}

/// Where the snapshots of one sandbox are.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshots {
    store: PathBuf,
    sandbox: String,
}

impl Snapshots {
    pub(crate) fn new(dirs: &Dirs, record: &Record) -> Self {
        Self {
            store: dirs.state.join("snapshots"),
            sandbox: record.identity.clone(),
        }
    }

    /// Returns the space of the workspace of that number.
    pub(crate) fn space(&self, workspace: usize) -> Result<Space, Error> {
        let store = Store::open(&self.store).map_err(failed)?;
        let name = format!("{}.{workspace}", self.sandbox);
        store.space(&name).map_err(failed)
    }

    /// Takes a snapshot of each workspace; without a name, an automatic one.
    pub(crate) fn take(
        &self,
        workspaces: &[Workspace],
        name: Option<&str>,
    ) -> Result<Vec<WorkspaceSnapshot>, Error> {
        let mut all = Vec::new();
        for (index, workspace) in workspaces.iter().enumerate() {
            let (space, options) = (self.space(index)?, options(workspace)?);
            let taken = match name {
                Some(name) => space.snapshot(&workspace.host, name, &options),
                None => space.snapshot_automatic(&workspace.host, &options),
            };
            all.push(taken_of(workspace, taken.map_err(failed)?));
        }
        self.tidy(&all)?;
        Ok(all)
    }

    /// Removes the automatic snapshots that are not kept, after others were taken, and from time to time
    /// what nothing needs.
    pub(crate) fn tidy(&self, taken: &[WorkspaceSnapshot]) -> Result<(), Error> {
        for (index, one) in taken.iter().enumerate().filter(|(_, one)| one.automatic) {
            let gone = self
                .space(index)?
                .prune(Retention::default())
                .map_err(failed)?;
            let digits = one
                .name
                .rsplit('-')
                .next()
                .and_then(|digits| digits.parse().ok());
            if !gone.is_empty() && digits.is_none_or(|number: u64| number.is_multiple_of(COLLECT)) {
                let store = Store::open(&self.store).map_err(failed)?;
                store.collect().map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Lists what there is of every workspace, the oldest first.
    pub(crate) fn list(&self, workspaces: &[Workspace]) -> Result<Vec<WorkspaceSnapshot>, Error> {
        let mut all = Vec::new();
        for (index, workspace) in workspaces.iter().enumerate() {
            let listed = self.space(index)?.list().map_err(failed)?;
            all.extend(
                listed
                    .into_iter()
                    .map(|one| WorkspaceSnapshot::new(workspace, one)),
            );
        }
        Ok(all)
    }

    /// Compares a snapshot with another one, or with the folders as they are.
    pub(crate) fn diff(
        &self,
        workspaces: &[Workspace],
        (name, other): (&str, Option<&str>),
    ) -> Result<Changes, Error> {
        let compared = each(workspaces, |index, workspace| {
            let other = other.map_or(Against::Folder(&workspace.host), Against::Snapshot);
            let changes = self.space(index)?.diff(name, other, &options(workspace)?);
            Ok(WorkspaceChanges {
                workspace: workspace.host.clone(),
                changes: changes.map_err(failed)?,
            })
        });
        Ok(Changes {
            workspaces: compared?,
        })
    }

    /// Makes the folders what a snapshot has, where the patterns choose it.
    pub(crate) fn restore(
        &self,
        workspaces: &[Workspace],
        (name, patterns): (&str, &[String]),
    ) -> Result<Vec<RestoreReport>, Error> {
        let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
        each(workspaces, |index, workspace| {
            let (space, options) = (self.space(index)?, options(workspace)?);
            let restored = space.restore(&workspace.host, (name, &patterns), &options);
            Ok(restored_of(workspace, &restored.map_err(failed)?))
        })
    }

    /// Reads and verifies everything, and lists what is hurt of these workspaces.
    pub(crate) fn verify(&self, workspaces: &[Workspace]) -> Result<Vec<HurtSnapshot>, Error> {
        let store = Store::open(&self.store).map_err(failed)?;
        let found = store.verify().map_err(failed)?;
        let mut all = Vec::new();
        for (index, workspace) in workspaces.iter().enumerate() {
            let space = format!("{}.{index}", self.sandbox);
            let own = found.hurt.iter().filter(|one| one.space.as_str() == space);
            all.extend(own.map(|one| HurtSnapshot {
                workspace: workspace.host.clone(),
                name: one.name.to_string(),
                paths: one.paths.iter().map(ToString::to_string).collect(),
                more: one.more,
            }));
        }
        Ok(all)
    }

    /// Removes a snapshot of every workspace that has it.
    pub(crate) fn remove(&self, workspaces: &[Workspace], name: &str) -> Result<(), Error> {
        each(workspaces, |index, _| {
            self.space(index)?.remove(name).map_err(failed)
        })?;
        let store = Store::open(&self.store).map_err(failed)?;
        store.collect().map(drop).map_err(failed)
    }

    /// Removes all of them, with the sandbox.
    pub(crate) fn forget(&self, workspaces: usize) -> Result<(), Error> {
        if !self.store.exists() {
            return Ok(());
        }
        let mut any = false;
        for index in 0..workspaces {
            let space = self.space(index)?;
            any |= !space.list().map_err(failed)?.is_empty();
            space.clear().map_err(failed)?;
        }
        match any {
            true => {
                let store = Store::open(&self.store).map_err(failed)?;
                store.collect().map(drop).map_err(failed)
            }
            false => Ok(()),
        }
    }
}

/// Does something for each workspace; it is missing only if it is in all of them.
pub(crate) fn each<T>(
    workspaces: &[Workspace],
    mut work: impl FnMut(usize, &Workspace) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    let (mut done, mut missing) = (Vec::new(), None);
    for (index, workspace) in workspaces.iter().enumerate() {
        match work(index, workspace) {
            Ok(one) => done.push(one),
            Err(error) if error.kind() == ErrorKind::NotFound => missing = Some(error),
            Err(error) => return Err(error),
        }
    }
    match missing {
        Some(error) if done.is_empty() => Err(error),
        _ => Ok(done),
    }
}

/// Returns how the snapshots of a workspace are taken: what it ignores and masks is in none.
pub(crate) fn options(workspace: &Workspace) -> Result<Options, Error> {
    let lists = workspace.lists().map_err(failed)?;
    Ok(Options::default().with_lists(lists))
}

impl WorkspaceSnapshot {
    fn new(workspace: &Workspace, snapshot: Snapshot) -> Self {
        let created = snapshot.created.duration_since(UNIX_EPOCH);
        Self {
            workspace: workspace.host.clone(),
            name: snapshot.name.into(),
            created: created.map_or(0, |since| since.as_secs()),
            automatic: snapshot.automatic,
            files: snapshot.counts.files,
            bytes: snapshot.counts.bytes,
            torn: texts(snapshot.torn.iter()),
        }
    }
}

pub(crate) fn taken_of(workspace: &Workspace, taken: Taken) -> WorkspaceSnapshot {
    WorkspaceSnapshot::new(workspace, taken.snapshot)
}

pub(crate) fn restored_of(workspace: &Workspace, restored: &Restored) -> RestoreReport {
    let refused = restored.refused.iter();
    RestoreReport {
        workspace: workspace.host.display().to_string(),
        before: restored.before.to_string(),
        done: texts(restored.done.iter()),
        refused: refused
            .map(|one| format!("{}: {}", one.path, one.text))
            .collect(),
    }
}

pub(crate) fn failed(error: sandbox_sync::Error) -> Error {
    Error::new(error.kind(), "use the snapshots of the workspaces")
        .with_detail(error.to_string())
        .with_source(error)
}
