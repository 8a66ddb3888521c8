//! A root becomes what a snapshot has.
//!
//! It is a write to the host like every other: planned from what a walk has just found, staged and verified,
//! and carried out by [`apply`](crate::apply), which overwrites nothing but what the walk saw. What it saw is
//! in the snapshot that was taken of it first, so whatever a restore replaces can be had again, and what
//! changes under its hands is refused, path by path (`S51`). Afterwards each path is looked at once more.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use rustix::fs::Mode;
use rustix::io::Errno;

use super::damage::damaged;
use super::folder::{Contents, Node, PERMISSIONS};
use super::load::{Nodes, contents, tree};
use super::packs::Packs;
use crate::apply::{Staged, apply};
use crate::path::RelPath;
use crate::reconcile::Op;
use crate::report::{Problem, Side};
use crate::review::Outcome;
use crate::root::Root;
use crate::rules::{Flow, Rules};
use crate::scan::observe;
use crate::stage::{Staging, flush};
use crate::tree::{Entry, Tree};

/// So many files stay open until they are flushed one by one; more are flushed with their file system.
const FLUSHED_TOGETHER: usize = 16;

/// What a restore writes to, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) root: &'a Root,
    pub(crate) rules: &'a Rules,
    /// Where new contents wait; in the root where there is no such place.
    pub(crate) staging: Option<&'a Path>,
    pub(crate) packs: &'a Packs,
}

impl Target<'_> {
    /// Makes what is there now what `nodes` have, where `chooses` says so; tells also how many files share
    /// their blocks with the store.
    pub(crate) fn restore(
        &self,
        now: &Tree,
        nodes: &Nodes,
        chooses: impl Fn(&RelPath) -> bool,
    ) -> io::Result<(Outcome, u64)> {
        let (ops, mut refused) = plan(now, &tree(nodes), (self.rules, &chooses));
        if ops.is_empty() {
            let done = Vec::new();
            return Ok((Outcome { done, refused }, 0));
        }
        let mut staging = Staging::open(self.root, self.staging, None)?;
        let (staged, cloned) = self.stage(&mut staging, &ops, nodes)?;
        let answers = apply(self.root, &mut staging, &ops, &staged)?;
        let mut done = Vec::new();
        for (op, answer) in ops.iter().zip(answers) {
            match answer {
                Ok(_) => done.push(op),
                Err(refusal) => refused.push(problem(&op.path, refusal.to_string())),
            }
        }
        self.open_up(&done, nodes);
        refused.extend(done.iter().filter_map(|op| self.differs(op)));
        refused.sort_by(|one, other| one.path.cmp(&other.path));
        let refused_at = |path| refused.binary_search_by(|one| one.path.cmp(path)).is_ok();
        let done = done.into_iter().map(|op| &op.path);
        let done = done.filter(|path| !refused_at(path)).cloned().collect();
        Ok((Outcome { done, refused }, cloned))
    }

    /// Puts the contents of files where one rename puts them in place. What the store does not have whole
    /// stops everything, before anything was written to the root.
    fn stage(&self, staging: &mut Staging, ops: &[Op], nodes: &Nodes) -> io::Result<(Staged, u64)> {
        let (mut staged, mut files, mut cloned) = (Staged::new(), Vec::new(), 0);
        for (index, op) in ops.iter().enumerate() {
            let (Some(Entry::File { digest, size, .. }), Some(Node::File(file))) =
                (&op.new, nodes.get(&op.path))
            else {
                continue;
            };
            let executable = file.mode & 0o100 != 0;
            let mut new = staging.file((*digest, *size), executable, op.old.as_ref())?;
            let shared = match file.contents {
                Contents::Clone => new.share(&self.packs.clones.open(&file.digest)?)?,
                _ => false,
            };
            cloned += u64::from(shared);
            if !shared {
                contents(self.packs, file, |blob| new.write(blob))?;
            }
            let (name, open) = new
                .finish(Some(file.modified))
                .map_err(|error| damaged(format!("{} is not what was taken: {error}", op.path)))?;
            // Where it replaces a file, that file's mode stays.
            if !matches!(op.old, Some(Entry::File { .. })) {
                rustix::fs::fchmod(&open, permissions(file.mode))?;
            }
            if files.len() < FLUSHED_TOGETHER {
                files.push(open);
            } else if !cfg!(target_os = "linux") {
                open.sync_all()?;
            }
            drop(staged.insert(index, Ok(name)));
        }
        flush(&files, staging.folder())?;
        Ok((staged, cloned))
    }

    /// Gives folders that were made the modes that they had; the deepest first, since a mode may forbid to
    /// go on.
    fn open_up(&self, done: &[&Op], nodes: &Nodes) {
        let modes: BTreeMap<&RelPath, u32> = (done.iter())
            .filter_map(|op| match (&op.new, nodes.get(&op.path)) {
                (Some(Entry::Directory), Some(Node::Folder { mode, .. })) => {
                    Some((&op.path, *mode))
                }
                _ => None,
            })
            .collect();
        for (path, mode) in modes.into_iter().rev() {
            let folder = self.root.directory(Some(path));
            let set = folder.and_then(|folder| Ok(rustix::fs::fchmod(folder, permissions(mode))?));
            if let Err(error) = set {
                tracing::debug!(%error, %path, "a restored folder keeps another mode");
            }
        }
    }

    /// Looks at what was restored; the problem is that it is something else again.
    fn differs(&self, op: &Op) -> Option<Problem> {
        let parent = self.root.parent_of(&op.path);
        let there = parent.and_then(|parent| observe(&parent, op.path.name(), &op.path));
        match there {
            Ok(there) if there == op.new => None,
            // Its folder is gone as well, or is something else now.
            Err(error) if op.new.is_none() && leads_nowhere(&error) => None,
            Ok(_) => Some(problem(
                &op.path,
                "it was changed again after it was restored",
            )),
            Err(error) => Some(problem(&op.path, error.to_string())),
        }
    }
}

/// Says what has to be done, and what cannot be: pure.
fn plan(
    now: &Tree,
    wanted: &Tree,
    (rules, chooses): (&Rules, &impl Fn(&RelPath) -> bool),
) -> (Vec<Op>, Vec<Problem>) {
    let mut flows = rules.walk();
    let (mut ops, mut refused): (BTreeMap<RelPath, Op>, Vec<Problem>) = Default::default();
    for (path, new) in now.changes_to(wanted) {
        let stays = matches!(flows.flow(path), Flow::Ignored | Flow::Masked);
        if stays || !chooses(path) {
            continue;
        }
        let old = now.entry(path);
        match (old, new) {
            // It was not in the snapshot, so there is nothing to say about it.
            (_, Some(Entry::Untracked(_))) | (Some(Entry::Untracked(_)), None) => {}
            (Some(Entry::Untracked(reason)), Some(_)) => {
                refused.push(problem(
                    path,
                    format!("what is there is in no snapshot: {reason}"),
                ));
            }
            _ => {
                let op = |path: &RelPath| Op {
                    path: path.clone(),
                    old: now.entry(path).cloned(),
                    new: wanted.entry(path).cloned(),
                };
                // The folders that lead to it come back with it.
                let mut above = new.and_then(|_| path.parent());
                while let Some(folder) = above {
                    above = folder.parent();
                    if now.entry(&folder).is_none() {
                        ops.insert(folder.clone(), op(&folder));
                    }
                }
                ops.insert(path.clone(), op(path));
            }
        }
    }
    (ops.into_values().collect(), refused)
}

fn problem(path: &RelPath, text: impl Into<String>) -> Problem {
    Problem {
        side: Side::Host,
        path: path.clone(),
        text: text.into(),
    }
}

/// Tells whether an error means that there is no such folder.
fn leads_nowhere(error: &io::Error) -> bool {
    let none = [Errno::NOENT, Errno::NOTDIR, Errno::LOOP].map(Errno::raw_os_error);
    error
        .raw_os_error()
        .is_some_and(|found| none.contains(&found))
}

fn permissions(mode: u32) -> Mode {
    let mode = (mode & PERMISSIONS) as rustix::fs::RawMode;
    Mode::from_bits_truncate(mode)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::rules::Lists;

    #[test]
    fn s51_what_is_something_else_after_a_restore_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (root, rules) = (
            Root::open(folder.path()).unwrap(),
            Rules::new(&Lists::default()).unwrap(),
        );
        let target = Target {
            root: &root,
            rules: &rules,
            staging: None,
            packs: &Packs::new(folder.path().join("none")),
        };
        let op = |new: Option<&[u8]>| Op {
            path: RelPath::new("d/a").unwrap(),
            old: None,
            new: new.map(|text| Entry::File {
                digest: crate::tree::Digest::of(text),
                size: text.len() as u64,
                executable: false,
            }),
        };
        assert!(target.differs(&op(None)).is_none(), "neither is its folder");
        fs::create_dir(folder.path().join("d")).unwrap();
        fs::write(folder.path().join("d/a"), "restored").unwrap();
        assert!(target.differs(&op(Some(b"restored"))).is_none());
        assert!(target.differs(&op(Some(b"another"))).is_some());
        assert!(target.differs(&op(None)).is_some());
    }
}
