//! The workspaces of a running sandbox: one synchronizing session each.

use std::path::Path;
use std::sync::Arc;

use sandbox_base::{BoxStream, Error};
use sandbox_sync::{Mode, Options, Report, Session};
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
    /// Paths changed inside that do not come back by themselves, because they run without being asked.
    pub held: Vec<String>,
    /// Paths that could not be brought into agreement, with the reason.
    pub problems: Vec<String>,
}

impl SyncReport {
    fn new(workspace: &Path, report: &Report) -> Self {
        Self {
            workspace: workspace.display().to_string(),
            to_host: report
                .to_host
                .iter()
                .map(|one| one.path.to_string())
                .collect(),
            to_guest: report
                .to_guest
                .iter()
                .map(|one| one.path.to_string())
                .collect(),
            conflicts: report
                .conflicts
                .iter()
                .map(|one| one.path.to_string())
                .collect(),
            held: report.held.iter().map(|one| one.path.to_string()).collect(),
            problems: report
                .problems
                .iter()
                .map(|one| format!("{}: {}", one.path, one.text))
                .collect(),
        }
    }
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
            let mode = if workspace.read_only {
                Mode::ReadOnly
            } else {
                Mode::TwoWaySafe
            };
            let options = options
                .clone()
                .with_mode(mode)
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
