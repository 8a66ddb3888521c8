//! Renames between names that are one: `A` to `a` where the file system folds case.
//!
//! A plan says such a rename like any other, as a removal and an addition. Carried out one after the other they
//! would meet in one file: the addition finds its name taken, and the removal takes the file away. So the two
//! are put together and the file, or folder with everything in it, is renamed; new contents are swapped in
//! before, under the old name. What is beneath a renamed folder is put together in the same way.
//!
//! Where one rename does that (vfat, exFAT, APFS, HFS+) the thing is there at every instant. Where the kernel
//! takes both names for one and does nothing (ext4, f2fs, tmpfs) it goes by way of staging: a crash between the
//! two renames leaves it there, whence it is rescued (`S16`), and the next session makes what is missing anew
//! from the other side.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::OwnedFd;

use super::{Applier, Refusal, rename_new};
use crate::fold::Folding;
use crate::path::RelPath;
use crate::reconcile::Op;
use crate::root::Facts;
use crate::scan::{names, observe};
use crate::stage::Ready;
use crate::tree::Entry;

/// The removal that belongs to each addition, and the addition that belongs to each removal.
#[derive(Debug, Default)]
pub(super) struct Turns {
    removal: HashMap<usize, usize>,
    addition: HashMap<usize, usize>,
}

impl Turns {
    /// Puts together what belongs together; looks at nothing where nothing is folded.
    pub(super) fn of(ops: &[Op], folding: Folding) -> Self {
        let mut found = Self::default();
        if folding.is_none() {
            return found;
        }
        let mut removals: HashMap<Vec<u8>, usize> = HashMap::new();
        for (index, op) in ops.iter().enumerate() {
            if op.new.is_none() && op.old.is_some() {
                removals.insert(folding.key_of(&op.path), index);
            }
        }
        for (index, op) in ops.iter().enumerate() {
            let Some(new) = op.new.as_ref().filter(|_| op.old.is_none()) else {
                continue;
            };
            let removal = removals.get(&folding.key_of(&op.path)).copied();
            let old = removal.and_then(|removal| ops[removal].old.as_ref());
            // What changes its type as well takes two cycles: the one goes in the first of them.
            if let (Some(removal), Some(old)) = (removal, old)
                && old.is_directory() == new.is_directory()
            {
                found.removal.insert(index, removal);
                found.addition.insert(removal, index);
            }
        }
        found
    }

    /// Returns the removal that `index` is put together with, if it is an addition.
    pub(super) fn removal(&self, index: usize) -> Option<usize> {
        self.removal.get(&index).copied()
    }

    /// Tells whether `index` is a removal that is carried out with an addition.
    pub(super) fn is_removal(&self, index: usize) -> bool {
        self.addition.contains_key(&index)
    }
}

/// What was renamed, to be looked for once everything is done.
#[derive(Debug, Default)]
pub(super) struct Turned {
    /// The names in folders in which something was renamed, as far as they are known.
    listed: BTreeMap<Option<RelPath>, BTreeSet<Vec<u8>>>,
    /// The folder, the new name, and the operation.
    done: Vec<(Option<RelPath>, Vec<u8>, usize)>,
}

impl Applier<'_> {
    /// Carries out a removal and the addition of the same under another name of the same file.
    pub(super) fn turn(
        &mut self,
        (from, to): (&Op, &Op),
        staged: Option<&Result<Ready, String>>,
        index: usize,
    ) -> Result<Option<Facts>, Refusal> {
        let (Some(old), Some(new)) = (&from.old, &to.new) else {
            return Err(Refusal::Postponed);
        };
        let parent = to.path.parent();
        let folder = self.root.directory(parent.as_ref())?;
        let name = from.path.name();
        if old != new {
            let stands_in = match (new, staged) {
                (Entry::File { digest, .. }, Some(Ok(staged))) => {
                    Some(Ok(self.staging.stand_in(staged, (*digest, old))?))
                }
                _ => None,
            };
            let staged = stands_in.as_ref().or(staged);
            let path = RelPath::join(parent.as_ref(), name).map_err(std::io::Error::other)?;
            let op = Op {
                path,
                old: from.old.clone(),
                new: to.new.clone(),
            };
            self.within(&folder, &op, staged)?;
        } else if observe(&folder, name, &to.path)?.as_ref() != Some(old) {
            return Err(Refusal::Changed);
        }
        self.touched.insert(parent.clone());
        if name == to.path.name() {
            // Only a folder above has another name.
            return Ok(None);
        }
        self.rename((parent, &folder), (name, to.path.name(), new))?;
        self.turned
            .done
            .push((to.path.parent(), to.path.name().to_vec(), index));
        Ok(None)
    }

    /// Gives what is at one name another name of the same file.
    fn rename(
        &mut self,
        (path, folder): (Option<RelPath>, &OwnedFd),
        (from, to, what): (&[u8], &[u8], &Entry),
    ) -> Result<(), Refusal> {
        let folding = self.root.names().folding;
        let kept = |name: &[u8]| as_kept(folding, name);
        // Listed, and not looked up: looked up, both are there.
        let listed = match self.turned.listed.entry(path) {
            std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::btree_map::Entry::Vacant(unknown) => {
                unknown.insert(names(folder)?.iter().map(|name| kept(name)).collect())
            }
        };
        if listed.contains(&kept(to)) || !listed.remove(&kept(from)) {
            return Err(Refusal::Changed);
        }
        listed.insert(kept(to));
        if self.root.names().renames {
            return Ok(rustix::fs::renameat(folder, from, folder, to)?);
        }
        let moved = self.staging.passing_name();
        let stage = self.staging.folder();
        rename_new((folder, from), (stage, moved.as_bytes()))?;
        let found = observe(
            stage,
            moved.as_bytes(),
            &RelPath::new(to).map_err(std::io::Error::other)?,
        );
        let verdict = match found {
            Ok(Some(found)) if found == *what => {
                rename_new((stage, moved.as_bytes()), (folder, to))
            }
            Ok(_) => Err(Refusal::Changed),
            Err(error) => Err(error.into()),
        };
        if verdict.is_err() {
            // Where something new has taken the name, it stays in staging and is rescued from there.
            rename_new((stage, moved.as_bytes()), (folder, from))?;
        }
        verdict
    }

    /// Looks for the new names and returns the operations whose names are not there.
    pub(super) fn not_turned(&mut self) -> Vec<usize> {
        let mut listed: Option<(Option<RelPath>, BTreeSet<Vec<u8>>)> = None;
        let mut missing = Vec::new();
        let folding = self.root.names().folding;
        let mut done = std::mem::take(&mut self.turned.done);
        done.sort();
        for (path, name, index) in done {
            if listed.as_ref().is_none_or(|(last, _)| *last != path) {
                let folder = self.root.directory(path.as_ref());
                let found = folder.and_then(|folder| names(&folder)).unwrap_or_default();
                let found = found.iter().map(|name| as_kept(folding, name));
                listed = Some((path, found.collect()));
            }
            if listed
                .as_ref()
                .is_none_or(|(_, names)| !names.contains(&as_kept(folding, &name)))
            {
                missing.push(index);
            }
        }
        missing
    }
}

/// Returns a name as it can be compared with what a folder lists, which may be in another form.
fn as_kept(folding: Folding, name: &[u8]) -> Vec<u8> {
    let form = Folding {
        form: folding.rewrites,
        ..Folding::default()
    };
    form.key(name).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::tests::tree;

    /// Operations from `path=old>new` words as trees have them, `-` for nothing and `d` for a folder.
    fn ops(words: &[&str]) -> Vec<Op> {
        let op = |word: &&str| {
            let (path, change) = word.split_once('=').unwrap();
            let (old, new) = change.split_once('>').unwrap();
            let entry = |text: &str| match text {
                "-" => None,
                "d" => Some(Entry::Directory),
                text => tree(&format!("x={text}"))
                    .iter()
                    .next()
                    .map(|(_, entry)| entry.clone()),
            };
            Op {
                path: RelPath::new(path).unwrap(),
                old: entry(old),
                new: entry(new),
            }
        };
        words.iter().map(op).collect()
    }

    #[test]
    fn s10_a_removal_and_an_addition_under_names_that_are_one_are_a_rename() {
        let ops = ops(&[
            "A=1>-", "a=->2", "D=d>-", "D/X=1>-", "d=d>d", "d=->d", "d/x=->1", "T=d>-", "t=->1",
            "b=->1", "c=1>-", "E=1>2", "e=->1",
        ]);
        let folding = Folding {
            case: true,
            ..Folding::default()
        };
        let turns = Turns::of(&ops, folding);
        let found: Vec<_> = (0..ops.len())
            .filter_map(|index| Some((turns.removal(index)?, index)))
            .collect();
        assert_eq!(found, [(0, 1), (2, 5), (3, 6)]);
        let removals = (0..ops.len()).filter(|index| turns.is_removal(*index));
        assert_eq!(removals.collect::<Vec<_>>(), [0, 2, 3]);
        let none = Turns::of(&ops, Folding::default());
        assert!((0..ops.len()).all(|index| none.removal(index).is_none()));
    }
}
