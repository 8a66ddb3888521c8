//! `sync snapshot create`, `ls`, `diff`, `restore`, `rm`, `verify`: the workspaces as they were.

use std::time::{Duration, UNIX_EPOCH};

use sandbox_core::{Dirs, HurtSnapshot, RestoreReport, Sandbox, WorkspaceSnapshot};

use crate::cli::Snapshot;
use crate::failure::{Failure, one_line, warn};
use crate::list::age;
use crate::output::{self, QUIET, styled};
use crate::review;

/// Some path could not be restored, or a snapshot is damaged.
const REFUSED: u8 = 1;

/// Takes, shows, compares, restores or removes snapshots of workspaces.
pub(crate) async fn snapshot(dirs: &Dirs, verb: Snapshot) -> Result<u8, Failure> {
    let connect = |name: String| Sandbox::connect_in(dirs.clone(), name);
    match verb {
        Snapshot::Create(arguments) => {
            let sandbox = connect(arguments.name).await?;
            let taken = sandbox
                .snapshot_workspaces(arguments.snapshot.as_deref())
                .await?;
            for torn in taken.iter().flat_map(|one| &one.torn) {
                warn(&format!("{torn} was being written, and may be a mixture"));
            }
            if let Some(one) = taken.first() {
                output::print(format!("{}\n", one.name).as_bytes())?;
            }
            Ok(0)
        }
        Snapshot::Ls(arguments) => {
            let listed = connect(arguments.name).await?.workspace_snapshots().await?;
            if arguments.json {
                let json = serde_json::to_value(&listed);
                output::print_json(&json.map_err(|error| Failure::from_error(&error))?)?;
            } else {
                output::print(listed.iter().map(line).collect::<String>().as_bytes())?;
            }
            Ok(0)
        }
        Snapshot::Diff(arguments) => {
            let sandbox = connect(arguments.name).await?;
            let other = arguments.other.as_deref();
            let changes = sandbox
                .compare_workspaces(&arguments.snapshot, other)
                .await?;
            output::page(&match arguments.stat {
                true => review::stat(&changes),
                false => review::patches(&changes),
            })?;
            Ok(0)
        }
        Snapshot::Restore(arguments) => {
            let sandbox = connect(arguments.name).await?;
            let (name, paths) = (&arguments.snapshot, &arguments.paths);
            tell(&sandbox.restore_workspaces(name, paths).await?)
        }
        Snapshot::Rm(arguments) => {
            let sandbox = connect(arguments.name).await?;
            sandbox
                .remove_workspace_snapshot(&arguments.snapshot)
                .await?;
            Ok(0)
        }
        Snapshot::Verify(arguments) => {
            let sandbox = connect(arguments.name).await?;
            let hurt = sandbox.verify_workspace_snapshots().await?;
            output::print(hurt.iter().map(damage).collect::<String>().as_bytes())?;
            Ok(if hurt.is_empty() { 0 } else { REFUSED })
        }
    }
}

fn damage(one: &HurtSnapshot) -> String {
    let folder = one_line(&one.workspace.display().to_string());
    let mut lines: String = (one.paths.iter())
        .map(|path| format!("{}  {folder}/{path}\n", one.name))
        .collect();
    if one.paths.is_empty() {
        lines += &format!("{}  {folder}\n", one.name);
    } else if one.more > 0 {
        lines += &format!(
            "{}  {folder}  {}\n",
            one.name,
            styled(QUIET, format!("and {} more", one.more))
        );
    }
    lines
}

fn line(one: &WorkspaceSnapshot) -> String {
    let at = UNIX_EPOCH + Duration::from_secs(one.created);
    let age = age(at.elapsed().unwrap_or_default());
    let automatic = if one.automatic { ", automatic" } else { "" };
    let about = format!(
        "{} files, {} bytes, {age} ago{automatic}",
        one.files, one.bytes
    );
    let folder = one_line(&one.workspace.display().to_string());
    format!("{}  {folder}  {}\n", one.name, styled(QUIET, about))
}

fn tell(reports: &[RestoreReport]) -> Result<u8, Failure> {
    let (mut text, mut status) = (String::new(), 0);
    for report in reports {
        let folder = one_line(&report.workspace);
        for path in &report.done {
            text += &format!("{folder}/{path}\n");
        }
        for problem in &report.refused {
            warn(&format!("{folder}: {problem}"));
            status = REFUSED;
        }
        warn(&format!("{folder} as it was is {}", report.before));
    }
    output::print(text.as_bytes())?;
    Ok(status)
}
