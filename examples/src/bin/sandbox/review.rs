//! `diff`, `apply` and `discard`.
//!
//! What is printed of the guest's is escaped where it is made, in the library; colours and a pager are for a
//! person only.

use sandbox_core::sync::review::{Change, Contents, Kind, Mark};
use sandbox_core::sync::{Entry, RelPath};
use sandbox_core::{Changes, Dirs, ReviewReport, Sandbox};
use serde_json::{Value, json};

use crate::cli;
use crate::failure::{Failure, one_line, warn};
use crate::output::{self, BAD, GOOD, HEAD, QUIET, styled};

/// What was chosen could not be done.
const REFUSED: u8 = 1;

/// Shows what the guest did.
pub(crate) async fn diff(dirs: &Dirs, arguments: &cli::Diff) -> Result<u8, Failure> {
    let sandbox = Sandbox::connect_in(dirs.clone(), &arguments.name).await?;
    let changes = chosen(sandbox.changes().await?, &arguments.paths)?;
    if arguments.json {
        output::print_json(&as_json(&changes))?;
    } else if arguments.stat {
        output::page(&stat(&changes))?;
    } else {
        output::page(&patches(&changes))?;
    }
    Ok(0)
}

/// Writes what was chosen to the workspaces.
pub(crate) async fn apply(dirs: &Dirs, arguments: &cli::Apply) -> Result<u8, Failure> {
    let sandbox = Sandbox::connect_in(dirs.clone(), &arguments.name).await?;
    if arguments.undo {
        return tell(&sandbox.undo_apply().await?);
    }
    let all = sandbox.changes().await?;
    let wanted = match arguments.hunks.is_empty() {
        true => chosen(all, &arguments.paths)?,
        false => hunks(&all, &arguments.hunks)?,
    };
    let needs_force =
        |change: &Change| change.is_marked(Mark::RunsUnasked) || change.is_marked(Mark::Conflict);
    let (wanted, left) = match arguments.force {
        true => (wanted, Changes::default()),
        false => (
            wanted.filter(|change| !needs_force(change)),
            wanted.filter(needs_force),
        ),
    };
    for change in left.workspaces.iter().flat_map(|one| &one.changes.changes) {
        warn(&format!(
            "{} is left out: {}; see --force",
            change.path,
            marks(change)
        ));
    }
    let reports = sandbox.apply(&wanted).await?;
    tell(&reports)
}

/// Has the guest go back to what this side has.
pub(crate) async fn discard(dirs: &Dirs, arguments: &cli::Discard) -> Result<u8, Failure> {
    let sandbox = Sandbox::connect_in(dirs.clone(), &arguments.name).await?;
    let wanted = chosen(sandbox.changes().await?, &arguments.paths)?;
    tell(&sandbox.discard(&wanted).await?)
}

/// Chooses by patterns; everything without any. A pattern that chooses nothing is a mistake.
fn chosen(all: Changes, patterns: &[String]) -> Result<Changes, Failure> {
    for pattern in patterns {
        if all.matching(&[pattern])?.is_empty() {
            let reason = "nothing that waits is called so; see `sandbox diff --stat`";
            return Err(Failure::new(format!("find {pattern}"), reason));
        }
    }
    match patterns {
        [] => Ok(all),
        _ => Ok(all.matching(patterns)?),
    }
}

/// Chooses hunks of one file each, in the workspace that has it.
fn hunks(all: &Changes, hunks: &[cli::Hunks]) -> Result<Changes, Failure> {
    let mut chosen = all.filter(|_| false);
    for cli::Hunks { path, numbers } in hunks {
        let failed = |reason: &dyn std::fmt::Display| {
            Failure::new(format!("choose hunks of {path}"), reason)
        };
        let path = RelPath::new(path).map_err(|error| failed(&error))?;
        let numbers: Vec<usize> = numbers.iter().map(|number| number - 1).collect();
        let has = |one: &&sandbox_core::WorkspaceChanges| {
            one.changes.changes.iter().any(|change| change.path == path)
        };
        let found = all.workspaces.iter().find(has);
        let found = found.ok_or_else(|| failed(&"nothing that waits is called so"))?;
        let picked = found.changes.only_hunks(&path, &numbers);
        let picked = picked.map_err(|error| Failure::from_error(&error))?;
        for one in &mut chosen.workspaces {
            if one.workspace == found.workspace {
                one.changes.changes.extend(picked.changes.iter().cloned());
            }
        }
    }
    Ok(chosen)
}

fn tell(reports: &[ReviewReport]) -> Result<u8, Failure> {
    let mut text = String::new();
    let mut status = 0;
    for report in reports {
        for path in &report.done {
            text += &format!("{}/{path}\n", one_line(&report.workspace));
        }
        for problem in &report.refused {
            warn(&format!("{}: {problem}", report.workspace));
            status = REFUSED;
        }
    }
    output::print(text.as_bytes())?;
    Ok(status)
}

/// All changes as patches, with what to look at twice in front of each.
pub(crate) fn patches(changes: &Changes) -> String {
    let mut text = String::new();
    for (folder, change) in listed(changes) {
        text += &folder.unwrap_or_default();
        if !change.marks.is_empty() {
            text += &format!("{}\n", styled(BAD, format!("! {}", marks(change))));
        }
        for line in change.patch().to_string().lines() {
            let style = match line.as_bytes() {
                [b'd', b'i', b'f', b'f', ..] => HEAD,
                [b'@', b'@', ..] => QUIET,
                [b'+', ..] => GOOD,
                [b'-', ..] => BAD,
                _ => output::PLAIN,
            };
            text += &format!("{}\n", styled(style, line));
        }
    }
    text
}

/// One line for each change, and how many there are.
pub(crate) fn stat(changes: &Changes) -> String {
    let mut text = String::new();
    let (mut count, mut all_added, mut all_removed) = (0, 0, 0);
    for (folder, change) in listed(changes) {
        text += &folder.unwrap_or_default();
        let (letter, from) = letter(change);
        let size = match change.line_counts() {
            Some((added, removed)) => {
                (all_added, all_removed) = (all_added + added, all_removed + removed);
                format!(
                    "{} {}",
                    styled(GOOD, format!("+{added}")),
                    styled(BAD, format!("-{removed}"))
                )
            }
            None => said(&change.contents).to_owned(),
        };
        let marked = match change.marks[..] {
            [] => String::new(),
            _ => styled(BAD, format!("  ! {}", marks(change))),
        };
        count += 1;
        text += &format!("{letter} {from}{}  {size}{marked}\n", change.path);
    }
    text + &format!("{count} changed, {all_added} lines added, {all_removed} removed\n")
}

/// The changes, the first of each workspace with its folder where there are several.
fn listed(changes: &Changes) -> impl Iterator<Item = (Option<String>, &Change)> {
    let several = changes
        .workspaces
        .iter()
        .filter(|one| !one.changes.is_empty());
    let several = several.count() > 1;
    changes.workspaces.iter().flat_map(move |one| {
        let folder = one_line(&one.workspace.display().to_string());
        let mut head = several.then(|| format!("{}\n", styled(HEAD, format!("# {folder}"))));
        one.changes
            .changes
            .iter()
            .map(move |change| (head.take(), change))
    })
}

fn letter(change: &Change) -> (char, String) {
    match &change.kind {
        Kind::Added => ('A', String::new()),
        Kind::Removed => ('D', String::new()),
        Kind::Renamed { from, .. } => ('R', format!("{from} to ")),
        _ => ('M', String::new()),
    }
}

fn said(contents: &Contents) -> &'static str {
    match contents {
        Contents::Binary => "binary",
        Contents::Omitted => "too long to be shown",
        Contents::Unread => "changed while it was read",
        _ => "",
    }
}

fn marks(change: &Change) -> String {
    let word = |mark: &Mark| match mark {
        Mark::RunsUnasked => "would run here without being asked",
        Mark::BuildInput => "decides how the project is built or worked on",
        Mark::Conflict => "was changed here, too",
        _ => "marked",
    };
    let words: Vec<&str> = change.marks.iter().map(word).collect();
    words.join("; ")
}

fn as_json(changes: &Changes) -> Value {
    let workspaces = changes.workspaces.iter().map(|one| {
        let changes = one.changes.changes.iter().map(change_as_json);
        json!({
            "workspace": one.workspace.display().to_string(),
            "changes": changes.collect::<Vec<Value>>(),
        })
    });
    Value::Array(workspaces.collect())
}

fn change_as_json(change: &Change) -> Value {
    let kind = match &change.kind {
        Kind::Added => "added",
        Kind::Removed => "removed",
        Kind::Renamed { .. } => "renamed",
        Kind::Mode => "mode",
        _ => "changed",
    };
    let from = match &change.kind {
        Kind::Renamed { from, .. } => Some(from),
        _ => None,
    };
    let contents = match &change.contents {
        Contents::Same => "same",
        Contents::Text(_) => "text",
        Contents::Binary => "binary",
        Contents::Omitted => "omitted",
        _ => "unread",
    };
    json!({
        "path": change.path,
        "kind": kind,
        "from": from,
        "marks": change.marks,
        "host": change.host.as_ref().map(entry_as_json),
        "guest": change.guest.as_ref().map(entry_as_json),
        "contents": contents,
        "added": change.line_counts().map(|counts| counts.0),
        "removed": change.line_counts().map(|counts| counts.1),
        "patch": change.patch().to_string(),
    })
}

fn entry_as_json(entry: &Entry) -> Value {
    match entry {
        Entry::Directory => json!({"type": "folder"}),
        Entry::File {
            digest,
            size,
            executable,
        } => json!({"type": "file", "size": size, "executable": executable, "blake3": digest}),
        Entry::Symlink { target } => {
            json!({"type": "link", "target": String::from_utf8_lossy(target)})
        }
        _ => json!({"type": "untracked"}),
    }
}
