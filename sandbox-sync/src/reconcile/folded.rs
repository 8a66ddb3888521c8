//! Siblings that one side cannot tell apart.
//!
//! Where a file system [folds](crate::fold) names, several rows of a plan may stand for one file. Two things
//! must not come of that: what is written for one name landing in the file of another (`S10`, `S11`), and one
//! file in the place of several being read as an edit of the one and a deletion of the others. So all rows of
//! such a group become conflicts and each side keeps what it has
//!
//! - where, after the plan, a side that folds would have two of the names or more, and does not have them
//!   all today: what it has beside each other already, its file system tells apart;
//! - where both sides had agreed on two of the names or more, the other side still has them, and the side
//!   that folds has some and lacks some: the workspace was moved to another file system, say.
//!
//! Everything beneath them is left alone as well. A rename from one name of a group to another is no conflict:
//! after it, there is one of them. Where it was carried out in part before a crash, the name or the folder above
//! is another one already, or the new contents are there under the old name: so what was agreed on counts for
//! the new name where nothing has the old one, and of two names with the same contents, each on its own side,
//! the one that came takes the place of the one that went.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

use super::{Act, Input, Joined, Row};
use crate::fold::{Folding, Folds};
use crate::path::RelPath;
use crate::report::Side;
use crate::tree::Entry;

/// Rows in one folder whose names are one on a side.
#[derive(Debug)]
struct Group {
    side: Side,
    rows: Vec<usize>,
}

/// The row of a folder, and the key of a name in it.
type Place<'a> = (Option<usize>, Cow<'a, [u8]>);

/// The groups of all folders, by the row of the folder.
#[derive(Debug, Default)]
pub(super) struct Siblings {
    groups: HashMap<Option<usize>, Vec<Group>>,
    /// Both sides fold.
    both_fold: bool,
}

impl Siblings {
    /// Finds all groups; looks at nothing where no side folds.
    pub(super) fn of(rows: &[Row<'_>], folds: Folds) -> Self {
        let mut found = Self {
            both_fold: folds.sides().count() > 1,
            ..Self::default()
        };
        for (side, folding) in folds.sides() {
            // The first row with a key, and the place of its group once there is another.
            let mut first: HashMap<Place<'_>, (usize, Option<usize>)> = HashMap::new();
            for (index, row) in rows.iter().enumerate() {
                let key = (row.parent, folding.key(name(row)));
                let (alone, group) = first.entry(key).or_insert((index, None));
                if *alone == index {
                    continue;
                }
                let groups = found.groups.entry(row.parent).or_default();
                match group {
                    Some(at) => groups[*at].rows.push(index),
                    None => {
                        let rows = vec![*alone, index];
                        *group = Some(groups.len());
                        groups.push(Group { side, rows });
                    }
                }
            }
        }
        found
    }

    /// Makes conflicts of what collides in one folder, and tells whether anything did. Everything in the
    /// folder is to be decided before, and the folder after.
    pub(super) fn part(&mut self, rows: &mut [Row<'_>], folder: Option<usize>) -> bool {
        if self.groups.is_empty() {
            return false;
        }
        let Some(groups) = self.groups.remove(&folder) else {
            return false;
        };
        let mut of_row: HashMap<usize, Vec<usize>> = HashMap::new();
        for (at, group) in groups.iter().enumerate() {
            for row in &group.rows {
                of_row.entry(*row).or_default().push(at);
            }
        }
        let renamed: Vec<_> = groups
            .iter()
            .map(|group| group.finish_rename(rows, self.both_fold))
            .collect();
        // What one group keeps may collide in a group of the other side.
        let mut queue: Vec<usize> = (0..groups.len()).collect();
        let mut parted = vec![false; groups.len()];
        while let Some(at) = queue.pop() {
            if !(parted[at] || renamed[at]) && groups[at].collides(rows) {
                parted[at] = true;
                groups[at].part(rows);
                queue.extend(groups[at].rows.iter().flat_map(|row| &of_row[row]));
            }
        }
        parted.contains(&true)
    }
}

impl Group {
    /// Carries a rename over that the side that folds has the contents of already; `false` where it is none.
    fn finish_rename(&self, rows: &mut [Row<'_>], both_fold: bool) -> bool {
        let there = || self.rows.iter().filter(|row| rows[**row].is_somewhere());
        let went = there().find(|row| self.has(&rows[**row]));
        let came = there().find(|row| self.other_has(&rows[**row]));
        let (Some(&went), Some(&came)) = (went, came) else {
            return false;
        };
        let carries = match self.side {
            Side::Host => Act::ToHost,
            Side::Guest => Act::ToGuest,
        };
        let [own, other] = [went, came].map(|row| &rows[row]);
        let is = own.host.or(own.guest);
        // Agreed on under a name that is gone: where both fold, either could be the new one.
        let is_old = own.base.is_some() || own.agreed.is_some() && !both_fold;
        // Each is on one side.
        let apart = !self.other_has(own) && !self.has(other);
        let is_one = apart
            && there().count() == 2
            && (is_old && other.base.is_none() && other.act == carries)
            && matches!(own.act, Act::ToHost | Act::ToGuest)
            && (is == own.agreed || is == other.host.or(other.guest))
            && !is.is_some_and(Entry::is_directory);
        if is_one {
            rows[went].act = carries;
        }
        is_one
    }

    fn collides(&self, rows: &[Row<'_>]) -> bool {
        let rows = || self.rows.iter().map(|row| &rows[*row]);
        let after = |row: &&Row<'_>| match self.side {
            Side::Host => row.host_after().is_some(),
            Side::Guest => row.guest_after().is_some(),
        };
        let would_have = || rows().filter(after);
        if would_have().count() > 1 && would_have().any(|row| !self.has(row)) {
            return true;
        }
        let agreed = || rows().filter(|row| row.base.is_some() && self.other_has(row));
        agreed().count() > 1
            && agreed().any(|row| !self.has(row))
            && rows().any(|row| self.has(row))
    }

    fn has(&self, row: &Row<'_>) -> bool {
        match self.side {
            Side::Host => row.host.is_some(),
            Side::Guest => row.guest.is_some(),
        }
    }

    fn other_has(&self, row: &Row<'_>) -> bool {
        match self.side {
            Side::Host => row.guest.is_some(),
            Side::Guest => row.host.is_some(),
        }
    }

    fn part(&self, rows: &mut [Row<'_>]) {
        let there: Vec<usize> = self
            .rows
            .iter()
            .copied()
            .filter(|row| rows[*row].is_somewhere())
            .collect();
        let agreed = |row: &Row<'_>| row.base.is_some() && self.other_has(row);
        let mixed = self.rows.iter().filter(|row| agreed(&rows[**row])).count() > 1;
        for index in &self.rows {
            let with = there.iter().find(|other| *other != index);
            let row = &mut rows[*index];
            match row.act {
                Act::ToHost | Act::ToGuest | Act::Conflict | Act::Overrule => {
                    row.act = Act::Conflict;
                    row.collides = row.collides.or(with.map(|with| (self.side, *with)));
                    row.blocks = true;
                }
                Act::Agree => row.blocks |= mixed,
                Act::Held(_) | Act::Keep => {}
            }
        }
    }
}

impl Row<'_> {
    fn is_somewhere(&self) -> bool {
        self.host.is_some() || self.guest.is_some()
    }
}

fn name<'a>(row: &Row<'a>) -> &'a [u8] {
    row.path.name()
}

/// Adds what both sides agreed on: for a path without a base, what they did for another name of it that nothing
/// has any more.
pub(super) fn with_agreed<'a>(
    input: Input<'_>,
    joined: impl Iterator<Item = Joined<'a>>,
) -> impl Iterator<Item = (&'a RelPath, [Option<&'a Entry>; 3], Option<&'a Entry>)> {
    let folding = input.folds.host.or(input.folds.guest);
    let joined: Vec<_> = joined.collect();
    let mut gone: HashMap<Vec<u8>, Option<&Entry>> = HashMap::new();
    for (path, found) in &joined {
        if let [Some(base), None, None] = found {
            let one = gone.entry(folding.key_of(path));
            // Of two it is not known which.
            one.and_modify(|one| *one = None).or_insert(Some(base));
        }
    }
    joined.into_iter().map(move |(path, found)| {
        let before = || gone.get(&folding.key_of(path)).copied().flatten();
        let agreed = match found[0] {
            None if !gone.is_empty() => before(),
            base => base,
        };
        (path, found, agreed)
    })
}

/// Returns `changed` with all paths whose names, or those of the folders above, are one with theirs on a side;
/// `None` where no side folds.
pub(super) fn one_with(input: Input<'_>, changed: &BTreeSet<RelPath>) -> Option<BTreeSet<RelPath>> {
    if input.folds.is_none() {
        return None;
    }
    // Coarse enough for both, so that what is one with one of them is among them too.
    let folding = input.folds.host.or(input.folds.guest);
    let mut wanted: HashMap<Option<RelPath>, BTreeSet<Vec<u8>>> = HashMap::new();
    for path in changed {
        let mut next = Some(path.clone());
        while let Some(path) = next {
            next = path.parent();
            let keys = wanted.entry(path.parent()).or_default();
            // Who is there has brought the folders above it, too.
            if !keys.insert(folding.key(path.name()).into_owned()) {
                break;
            }
        }
    }
    let mut all = changed.clone();
    for (folder, keys) in &wanted {
        all.extend(in_folder(input, (folder.as_ref(), keys), folding));
    }
    Some(all)
}

/// Returns what in a folder has one of the keys and is not alone with it.
fn in_folder(
    input: Input<'_>,
    (folder, keys): (Option<&RelPath>, &BTreeSet<Vec<u8>>),
    folding: Folding,
) -> Vec<RelPath> {
    let mut found: HashMap<Vec<u8>, BTreeSet<&RelPath>> = HashMap::new();
    for tree in [input.base, input.host, input.guest] {
        for item in tree.children(folder) {
            let key = folding.key(item.path().name());
            if keys.contains(&*key) {
                found
                    .entry(key.into_owned())
                    .or_default()
                    .insert(item.path());
            }
        }
    }
    let groups = found.into_values().filter(|paths| paths.len() > 1);
    groups.flatten().cloned().collect()
}

#[cfg(test)]
mod tests;
