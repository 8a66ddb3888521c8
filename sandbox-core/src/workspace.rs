//! The workspaces of a running sandbox: one synchronizing session each.

use std::path::Path;
use std::sync::Arc;

use sandbox_base::{BoxStream, Error};
use sandbox_sync::{HeldReason, Options, RelPath, Report, Session};
use sandbox_vm::Agent;
use serde::{Deserialize, Serialize};

use crate::history;
use crate::spec::Workspace;

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

fn texts<'a>(paths: impl Iterator<Item = &'a RelPath>) -> Vec<String> {
    paths.map(ToString::to_string).collect()
}

/// The sessions of one running machine.
#[derive(Debug, Default)]
pub(crate) struct Workspaces {
    sessions: Vec<(Workspace, Session)>,
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
        let mut sessions = Vec::new();
        for (index, workspace) in workspaces.iter().enumerate() {
            let stream: BoxStream = agent.service(SERVICE).await?;
            let options = options
                .clone()
                .with_mode(workspace.mode)
                .with_lists(workspace.lists())
                .with_guest_root(&workspace.guest)
                .with_base_file(history::base(folder, index));
            let session = Session::start(&workspace.host, stream, options)
                .await
                .map_err(|error| failed(&workspace.host, error))?;
            sessions.push((workspace.clone(), session));
        }
        Ok(Self { sessions })
    }

    /// Brings both sides of every workspace into agreement now.
    pub(crate) async fn flush(self: &Arc<Self>) -> Result<Vec<SyncReport>, Error> {
        let mut reports = Vec::new();
        for (workspace, session) in &self.sessions {
            let report = session
                .flush()
                .await
                .map_err(|error| failed(&workspace.host, error))?;
            reports.push(SyncReport::new(&workspace.host, &report));
        }
        Ok(reports)
    }
}

fn failed(workspace: &Path, error: sandbox_sync::Error) -> Error {
    Error::new(error.kind(), format!("synchronize {}", workspace.display()))
        .with_detail(error.to_string())
        .with_source(error)
}
