//! When to stop and ask: an emptied, deleted or replaced root, a vanished repository, mass deletion.
//!
//! A synchronizer cannot tell a deletion that was meant from an unmounted disk, a lost container file
//! system or an agent's slip. So the deletions that cannot be taken back by looking at the other side are
//! not carried out before somebody said so. Nothing is written on either side while a session is halted.
//!
//! The threshold for mass deletion is a share *and* a number: more than half of the files, which normal
//! work on a large tree does not remove between two cycles, and at least fifty of them, so that small
//! trees can be worked on freely. What `git gc` removes because a pack has it would be more in a small
//! repository: loose objects do not count as far as the packs of the side that lost them have room for them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::path::RelPath;
use crate::reconcile::{Op, Plan};
use crate::report::Side;
use crate::tree::Tree;

/// Why the session stopped before it wrote anything.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Halt {
    /// One side has nothing any more, while the other still has what both had.
    Emptied {
        /// The side that is empty.
        side: Side,
    },
    /// The root is gone, or is no longer the folder that the session was opened on.
    RootReplaced {
        /// The side whose root it is.
        side: Side,
    },
    /// More of the files than [`Thresholds`] allow would be deleted at once.
    MassDeletion {
        /// The side on which they were deleted.
        side: Side,
        /// How many files would go.
        files: usize,
        /// How many files there were.
        of: usize,
    },
    /// The repository at the top of the workspace is gone on one side.
    RepositoryDeleted {
        /// The side on which it was deleted.
        side: Side,
    },
}

impl fmt::Display for Halt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |side: &Side| match side {
            Side::Host => "host",
            Side::Guest => "guest",
        };
        match self {
            Self::Emptied { side } => write!(f, "the workspace was emptied in the {}", name(side)),
            Self::RootReplaced { side } => {
                write!(
                    f,
                    "the workspace's root is gone or was replaced in the {}",
                    name(side)
                )
            }
            Self::MassDeletion { side, files, of } => {
                write!(
                    f,
                    "{files} of {of} files were deleted in the {}",
                    name(side)
                )
            }
            Self::RepositoryDeleted { side } => {
                write!(f, "the repository (.git) was deleted in the {}", name(side))
            }
        }?;
        f.write_str("; nothing was written on either side, ")?;
        f.write_str(match self {
            Self::RootReplaced { .. } => "put it back or open a new session",
            _ => "resume with `Propagate` if it was meant or with `Restore` if not",
        })
    }
}

/// The answer to a [`Halt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Resolution {
    /// The deletion was meant: carry it out on the other side.
    Propagate,
    /// It was not: bring back what is gone from the side that still has it.
    Restore,
}

/// How much may go at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Thresholds {
    /// The share of all files, in per cent, above which a deletion halts.
    pub percent: u8,
    /// The number of files from which on it does.
    pub files: usize,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            percent: 50,
            files: 50,
        }
    }
}

impl Thresholds {
    /// Sets the share, in per cent, and the number of files above which a deletion halts.
    #[must_use]
    pub fn with_limits(mut self, percent: u8, files: usize) -> Self {
        (self.percent, self.files) = (percent, files);
        self
    }
}

/// Looks for a reason not to carry out `plan`.
pub(crate) fn check(
    base: &Tree,
    [host, guest]: [&Tree; 2],
    plan: &Plan,
    thresholds: Thresholds,
) -> Option<Halt> {
    // Nothing halts but a deletion; most plans have none, and the trees need not be counted.
    if !plan.to_host.iter().chain(&plan.to_guest).any(is_deletion) {
        return None;
    }
    // A deletion on one side is carried out on the other.
    let cases = [
        (Side::Host, host, &plan.to_guest),
        (Side::Guest, guest, &plan.to_host),
    ];
    let files = base
        .iter()
        .filter(|(_, entry)| !entry.is_directory())
        .count();
    cases.into_iter().find_map(|(side, tree, ops)| {
        let deleted = || ops.iter().filter(|op| is_deletion(op));
        let gone = deleted()
            .filter(|op| op.old.as_ref().is_some_and(|e| !e.is_directory()))
            .count();
        let too_many = |gone: usize| {
            let share = gone.saturating_mul(100) > files.saturating_mul(thresholds.percent.into());
            share && gone >= thresholds.files
        };
        let packed = || {
            let loose = deleted().filter(|op| is_loose_object(&op.path)).count();
            loose.min(packed_objects(tree))
        };
        if tree.tracked() == 0 && base.len() > 1 && gone > 0 {
            Some(Halt::Emptied { side })
        } else if deleted().any(|op| op.path.as_bytes() == b".git/HEAD") {
            Some(Halt::RepositoryDeleted { side })
        } else if too_many(gone) && too_many(gone - packed()) {
            Some(Halt::MassDeletion {
                side,
                files: gone,
                of: files,
            })
        } else {
            None
        }
    })
}

/// Forgets, in the base, what one side deleted: then the other side's version is new and comes back.
pub(crate) fn forget_deleted(base: &mut Tree, sides: [&Tree; 2]) {
    let lost: Vec<RelPath> = base
        .iter()
        .map(|(path, _)| path)
        .filter(|path| sides.iter().any(|side| side.entry(path).is_none()))
        .cloned()
        .collect();
    for path in lost {
        base.set(path, None);
    }
}

/// Tells whether a repository keeps one object at `path`, as a file of its own.
fn is_loose_object(path: &RelPath) -> bool {
    let mut names = path.components().rev();
    let mut is = |holds: fn(&[u8]) -> bool| names.next().is_some_and(holds);
    is(|name| name.len() >= 38 && name.iter().all(u8::is_ascii_hexdigit))
        && is(|name| name.len() == 2 && name.iter().all(u8::is_ascii_hexdigit))
        && is(|name| name == b"objects")
        && names.any(|name| name == b".git")
}

/// Returns about how many objects the packs of all repositories in `tree` hold, by the lengths of their
/// indexes (`gitformat-pack(5)`): a table of 1,024 bytes and some more, then 28 bytes for each object.
fn packed_objects(tree: &Tree) -> usize {
    let indexes = tree.iter().filter(|(path, _)| {
        let mut names = path.components().rev();
        names.next().is_some_and(|name| name.ends_with(b".idx"))
            && names.next() == Some(b"pack")
            && names.next() == Some(b"objects")
            && names.any(|name| name == b".git")
    });
    let sizes = indexes.filter_map(|(_, entry)| Some(entry.content()?.1));
    let objects = sizes
        .map(|size| size.saturating_sub(1_072) / 28)
        .sum::<u64>();
    usize::try_from(objects).unwrap_or(usize::MAX)
}

fn is_deletion(op: &Op) -> bool {
    op.new.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Digest, Entry};

    fn file(size: u64) -> Entry {
        Entry::File {
            digest: Digest::of(b""),
            size,
            executable: false,
        }
    }

    /// What is said of a guest that lost a hundred loose objects of a tree with few other files, and has this
    /// index of a pack.
    fn halt(index: Option<(&str, u64)>) -> Option<Halt> {
        let path = |text: &str| RelPath::new(text).unwrap();
        let loose = |number: usize| path(&format!(".git/objects/ab/{number:038x}"));
        let mut base = Tree::default();
        base.set(path("a"), Some(file(1)));
        let mut guest = base.clone();
        if let Some((name, size)) = index {
            guest.set(path(name), Some(file(size)));
        }
        let mut plan = Plan::default();
        for number in 0..100 {
            base.set(loose(number), Some(file(1)));
            plan.to_host.push(Op {
                path: loose(number),
                old: Some(file(1)),
                new: None,
            });
        }
        check(&base, [&base, &guest], &plan, Thresholds::default())
    }

    #[test]
    fn s21_what_git_packs_is_not_deleted() {
        let pack = ".git/objects/pack/pack-1.idx";
        assert_eq!(halt(Some((pack, 1_072 + 100 * 28))), None);
        let mass = |halt: Option<Halt>| matches!(halt, Some(Halt::MassDeletion { .. }));
        assert!(mass(halt(None)), "no pack");
        assert!(mass(halt(Some((pack, 1_072 + 20 * 28)))), "no room");
        assert!(
            mass(halt(Some(("pack/pack-1.idx", 1 << 20)))),
            "no repository"
        );
    }
}
