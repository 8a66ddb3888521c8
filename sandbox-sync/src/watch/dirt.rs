//! Names and folders that have to be looked at again, as data.

#![cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "elsewhere everything is dirty")
)]

use std::collections::BTreeMap;

use crate::path::RelPath;

/// More than this many are not worth telling apart: reading everything costs less.
const MOST: usize = 1 << 16;

/// How much of a path has to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Depth {
    /// What is there; of a folder that was known to be one, not what is in it.
    Name,
    /// What is there, and everything in it.
    Beneath,
}

/// What may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Dirt {
    Everything,
    Paths(BTreeMap<RelPath, Depth>),
}

impl Default for Dirt {
    /// Returns nothing.
    fn default() -> Self {
        Self::Paths(BTreeMap::new())
    }
}

impl Dirt {
    /// Adds a path; whoever asked for more has it.
    pub(crate) fn add(&mut self, path: RelPath, depth: Depth) {
        let Self::Paths(paths) = self else {
            return;
        };
        let known = paths.entry(path).or_insert(depth);
        *known = depth.max(*known);
        if paths.len() > MOST {
            *self = Self::Everything;
        }
    }

    /// Returns this with everything that `other` has.
    pub(crate) fn with(mut self, other: &Self) -> Self {
        match other {
            Self::Everything => self = Self::Everything,
            Self::Paths(paths) => {
                for (path, depth) in paths {
                    self.add(path.clone(), *depth);
                }
            }
        }
        self
    }

    /// Returns the paths in order, without those beneath a path that is looked at whole.
    pub(crate) fn tops(paths: BTreeMap<RelPath, Depth>) -> Vec<(RelPath, Depth)> {
        let mut tops: Vec<(RelPath, Depth)> = Vec::new();
        let mut whole: Option<usize> = None;
        for (path, depth) in paths {
            if whole.is_some_and(|at| path.is_beneath(&tops[at].0)) {
                continue;
            }
            if depth == Depth::Beneath {
                whole = Some(tops.len());
            }
            tops.push((path, depth));
        }
        tops
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::new(text).unwrap()
    }

    #[test]
    fn what_lies_in_a_dirty_folder_is_looked_at_once() {
        let mut dirt = Dirt::default();
        for (text, depth) in [
            ("a", Depth::Name),
            ("a/b", Depth::Beneath),
            ("a/b/c", Depth::Beneath),
            ("a/b/d", Depth::Name),
            ("a-b", Depth::Name),
            ("a", Depth::Name),
        ] {
            dirt.add(path(text), depth);
        }
        let Dirt::Paths(paths) = dirt else {
            panic!("a few paths are not everything");
        };
        let tops = Dirt::tops(paths);
        let names: Vec<_> = tops.iter().map(|(path, _)| path.to_string()).collect();
        assert_eq!(names, ["a", "a/b", "a-b"]);
    }

    #[test]
    fn a_deeper_look_stays_and_too_many_are_everything() {
        let mut dirt = Dirt::default();
        dirt.add(path("a"), Depth::Beneath);
        dirt.add(path("a"), Depth::Name);
        assert!(matches!(&dirt, Dirt::Paths(paths) if paths[&path("a")] == Depth::Beneath));
        for number in 0..=MOST {
            dirt.add(path(&number.to_string()), Depth::Name);
        }
        assert_eq!(dirt, Dirt::Everything);
    }
}
