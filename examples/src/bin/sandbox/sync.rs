//! `sync status`, `sync flush`, `sync conflicts`, `sync resume`, `sync pause`, and `sync snapshot` by its own file.

use sandbox_core::sync::Resolution;
use sandbox_core::{Dirs, Sandbox, SyncReport, SyncStatus};

use crate::cli::{self, Sync};
use crate::failure::{Failure, one_line};
use crate::output::{self, BAD, GOOD, QUIET, styled};
use crate::snapshot;

/// There is a conflict, or a stop that asks.
const UNSETTLED: u8 = 1;

/// Looks at or steers the synchronization of workspaces.
pub(crate) async fn sync(dirs: &Dirs, verb: Sync) -> Result<u8, Failure> {
    let connect = |name: String| Sandbox::connect_in(dirs.clone(), name);
    match verb {
        Sync::Status(arguments) => {
            let status = connect(arguments.name).await?.sync_status().await?;
            if arguments.json {
                let json = serde_json::to_value(&status);
                output::print_json(&json.map_err(|error| Failure::from_error(&error))?)?;
            } else {
                output::print(status.iter().map(line).collect::<String>().as_bytes())?;
            }
            Ok(0)
        }
        Sync::Flush(arguments) => tell(&connect(arguments.name).await?.sync().await?),
        Sync::Conflicts(arguments) => {
            let status = connect(arguments.name).await?.sync_status().await?;
            conflicts(&status)
        }
        Sync::Resume(arguments) => {
            resume(&connect(arguments.name.clone()).await?, &arguments).await
        }
        Sync::Pause(arguments) => {
            connect(arguments.name).await?.set_sync_paused(true).await?;
            Ok(0)
        }
        Sync::Snapshot(verb) => snapshot::snapshot(dirs, verb).await,
    }
}

async fn resume(sandbox: &Sandbox, arguments: &cli::Resume) -> Result<u8, Failure> {
    let resolution = match (arguments.propagate, arguments.restore) {
        (true, _) => Some(Resolution::Propagate),
        (_, true) => Some(Resolution::Restore),
        _ => None,
    };
    sandbox.set_sync_paused(false).await?;
    match resolution {
        Some(resolution) => tell(&sandbox.resume_sync(resolution).await?),
        None => tell(&sandbox.sync().await?),
    }
}

fn line(status: &SyncStatus) -> String {
    let last = &status.last;
    let state = match (&status.halted, &status.failed) {
        (Some(halt), _) => styled(BAD, format!("halted: {}", one_line(halt))),
        (_, Some(failed)) => styled(BAD, format!("failed: {}", one_line(failed))),
        _ if status.paused => styled(QUIET, "paused"),
        _ if last.conflicts.is_empty() && last.problems.is_empty() => styled(GOOD, "in step"),
        _ => styled(BAD, "not in step"),
    };
    let counts = [
        (last.waiting.len(), "waiting for review"),
        (last.conflicts.len(), "in conflict"),
        (last.held.len(), "held"),
        (last.problems.len(), "with a problem"),
    ];
    let counts: String = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!(", {count} {what}"))
        .collect();
    let folder = one_line(&status.workspace);
    format!("{folder}  {}  {state}{counts}\n", status.mode)
}

/// Lists what both sides changed, and what stopped a workspace until it is answered.
fn conflicts(status: &[SyncStatus]) -> Result<u8, Failure> {
    let mut text = String::new();
    for one in status {
        let folder = one_line(&one.workspace);
        for path in &one.last.conflicts {
            text += &match one.last.collisions.get(path) {
                Some(why) => format!("{folder}/{path}: {why}\n"),
                None => format!("{folder}/{path}\n"),
            };
        }
        if let Some(halt) = &one.halted {
            text += &format!("{folder}: {}\n", one_line(halt));
        }
    }
    output::print(text.as_bytes())?;
    Ok(if text.is_empty() { 0 } else { UNSETTLED })
}

/// Prints what was done, and warns of what was not.
fn tell(reports: &[SyncReport]) -> Result<u8, Failure> {
    let mut text = String::new();
    let mut status = 0;
    for report in reports {
        let folder = one_line(&report.workspace);
        for path in &report.to_host {
            text += &format!("out  {folder}/{path}\n");
        }
        for path in &report.to_guest {
            text += &format!("in   {folder}/{path}\n");
        }
        for path in &report.conflicts {
            crate::failure::warn(&match report.collisions.get(path) {
                Some(why) => format!("{folder}/{path}: {why}"),
                None => format!("{folder}/{path} was changed here and inside"),
            });
            status = UNSETTLED;
        }
        for problem in &report.problems {
            crate::failure::warn(&format!("{folder}: {problem}"));
            status = UNSETTLED;
        }
    }
    output::print(text.as_bytes())?;
    Ok(status)
}
