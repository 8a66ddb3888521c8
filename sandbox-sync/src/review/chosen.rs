//! From chosen changes to operations on one side: pure, and nothing is taken for granted.
//!
//! The same function serves both directions: applying makes the host's tree what the guest has, discarding
//! the guest's what the host has. Each path must still be, on both sides, what was shown.

use std::collections::BTreeMap;

use crate::path::RelPath;
use crate::reconcile::Op;
use crate::report::{Problem, Side};
use crate::review::{Change, Kind};
use crate::rules::{Flow, Rules};
use crate::tree::{Entry, Tree};

/// The trees of both sides, and which of them is to be changed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trees<'a> {
    pub(crate) host: &'a Tree,
    pub(crate) guest: &'a Tree,
    pub(crate) rules: &'a Rules,
    /// The side that is changed.
    pub(crate) target: Side,
}

/// What is to be done, and what cannot.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) ops: Vec<Op>,
    pub(crate) refused: Vec<Problem>,
}

/// Plans to bring what was chosen to the target.
pub(crate) fn plan(changes: &[Change], trees: Trees<'_>) -> Planned {
    let mut planned = Planned::default();
    let mut wanted: BTreeMap<RelPath, Op> = BTreeMap::new();
    for (path, host, guest) in changes.iter().flat_map(ends) {
        match trees.check(path, [host, guest]) {
            Ok(op) => drop(wanted.insert(path.clone(), op)),
            Err(text) => planned.refused.push(trees.problem(path, &text)),
        }
    }
    for path in wanted.keys().cloned().collect::<Vec<_>>() {
        if let Err(text) = trees.make_folders(&path, &mut wanted) {
            planned.refused.push(trees.problem(&path, &text));
        }
    }
    let full = trees.full_folders(&wanted);
    for path in full {
        let stays = wanted.get(&path).is_some_and(|op| op.new.is_none());
        if stays {
            // Something that was not chosen is left in it.
            drop(wanted.remove(&path));
        } else {
            wanted.retain(|other, _| *other != path && !other.is_beneath(&path));
            let text = "the folder in its place holds something that was not chosen";
            planned.refused.push(trees.problem(&path, text));
        }
    }
    planned.ops = wanted.into_values().collect();
    planned
}

type End<'a> = (&'a RelPath, Option<&'a Entry>, Option<&'a Entry>);

/// Returns the one or two paths of a change, with what was shown of either side.
fn ends(change: &Change) -> Vec<End<'_>> {
    let mut ends = vec![(&change.path, change.host.as_ref(), change.guest.as_ref())];
    if let Kind::Renamed { from, old } = &change.kind {
        ends.push((from, Some(old), None));
    }
    ends
}

impl<'a> Trees<'a> {
    fn sides(&self) -> [&'a Tree; 2] {
        match self.target {
            Side::Host => [self.host, self.guest],
            Side::Guest => [self.guest, self.host],
        }
    }

    /// Makes the operation that brings a path to the target, if both sides are as they were shown.
    fn check(&self, path: &RelPath, shown: [Option<&Entry>; 2]) -> Result<Op, String> {
        let flow = self.rules.walk().flow(path);
        if matches!(flow, Flow::Ignored | Flow::Masked | Flow::Seed) {
            return Err("it is not synchronized".into());
        }
        if self.host.entry(path) != shown[0] {
            return Err("it was changed on the host since it was shown".into());
        }
        if self.guest.entry(path) != shown[1] {
            return Err("it was changed in the guest since it was shown".into());
        }
        let [target, source] = self.sides();
        let (old, new) = (target.entry(path).cloned(), source.entry(path).cloned());
        if [&old, &new].into_iter().flatten().any(Entry::is_untracked) {
            return Err("it is not synchronized".into());
        }
        let path = path.clone();
        Ok(Op { path, old, new })
    }

    /// Adds the folders above a path that the target lacks and the other side has.
    fn make_folders(
        &self,
        path: &RelPath,
        wanted: &mut BTreeMap<RelPath, Op>,
    ) -> Result<(), String> {
        if wanted.get(path).is_none_or(|op| op.new.is_none()) {
            return Ok(());
        }
        let [target, source] = self.sides();
        let mut above = path.parent();
        while let Some(folder) = above {
            above = folder.parent();
            let there = match wanted.get(&folder) {
                Some(op) => op.new.as_ref(),
                None => target.entry(&folder),
            };
            match there {
                Some(Entry::Directory) => {}
                None if source.entry(&folder) == Some(&Entry::Directory) => {
                    let new = Some(Entry::Directory);
                    let (path, old) = (folder.clone(), target.entry(&folder).cloned());
                    drop(wanted.insert(folder, Op { path, old, new }));
                }
                _ => return Err(format!("{folder} is no folder, and was not chosen")),
            }
        }
        Ok(())
    }

    /// Returns the folders that are to go although something in them stays, deepest first.
    fn full_folders(&self, wanted: &BTreeMap<RelPath, Op>) -> Vec<RelPath> {
        let [target, _] = self.sides();
        let is_folder = |entry: Option<&Entry>| entry.is_some_and(Entry::is_directory);
        let goes = |op: &Op| is_folder(op.old.as_ref()) && !is_folder(op.new.as_ref());
        let mut full: Vec<RelPath> = Vec::new();
        for op in wanted.values().rev().filter(|op| goes(op)) {
            let stays = |path: &RelPath| {
                let kept = wanted.get(path).is_none_or(|op| op.new.is_some());
                path.is_beneath(&op.path) && (kept || full.contains(path))
            };
            if target.beneath(&op.path).any(stays) {
                full.push(op.path.clone());
            }
        }
        full
    }

    fn problem(&self, path: &RelPath, text: &str) -> Problem {
        let (side, path, text) = (self.target, path.clone(), text.to_owned());
        Problem { side, path, text }
    }
}
