//! What one cycle hands to the next: the paths that a plan has to look at.

use std::collections::{BTreeMap, BTreeSet};

use crate::path::RelPath;
use crate::report::{Report, Side, Untracked};
use crate::tree::{Entry, Reason, Tree};

/// What the next plan has to look at: what changed since the last plan that was carried out, and what that
/// one left undone.
#[derive(Debug, Default)]
pub(crate) struct Scope {
    /// `None` means everything.
    paths: Option<BTreeSet<RelPath>>,
    /// What is there and not synchronized, of all that was looked at so far.
    untracked: BTreeMap<RelPath, Vec<Untracked>>,
}

impl Scope {
    /// Returns the paths to look at, `None` for everything.
    pub(crate) fn paths(&self) -> Option<&BTreeSet<RelPath>> {
        self.paths.as_ref()
    }

    /// Returns what is there and not synchronized, in the order of paths.
    pub(crate) fn untracked(&self) -> Vec<Untracked> {
        self.untracked.values().flatten().cloned().collect()
    }

    /// Forgets what was settled: the next plan looks at everything.
    pub(crate) fn widen(&mut self) {
        self.paths = None;
    }

    /// Adds paths that are not what they were.
    pub(crate) fn add(&mut self, changed: impl IntoIterator<Item = RelPath>) {
        if let Some(paths) = &mut self.paths {
            paths.extend(changed);
        }
    }

    /// Brings the list of what is not synchronized up to date.
    pub(crate) fn list_untracked(&mut self, host: &Tree, guest: &Tree) {
        let Some(paths) = &self.paths else {
            self.untracked.clear();
            for path in host.untracked().chain(guest.untracked()) {
                self.untracked
                    .insert(path.clone(), untracked(path, [host, guest]));
            }
            return;
        };
        for path in paths {
            match untracked(path, [host, guest]) {
                none if none.is_empty() => drop(self.untracked.remove(path)),
                some => drop(self.untracked.insert(path.clone(), some)),
            }
        }
    }

    /// Goes on from a plan that was carried out: what it changed, which no scan has seen yet, and what it
    /// left undone is all there is to look at.
    pub(crate) fn settle(&mut self, report: &Report) {
        let changes = report.to_host.iter().chain(&report.to_guest);
        let paths = changes
            .map(|change| &change.path)
            .chain(report.conflicts.iter().map(|conflict| &conflict.path))
            .chain(report.held.iter().map(|held| &held.path))
            .chain(report.problems.iter().map(|problem| &problem.path));
        self.paths = Some(paths.cloned().collect());
    }
}

/// Returns what is at `path` on either side and not synchronized.
fn untracked(path: &RelPath, [host, guest]: [&Tree; 2]) -> Vec<Untracked> {
    let of = |(side, tree): (Side, &Tree)| match tree.entry(path) {
        Some(Entry::Untracked(reason)) if *reason != Reason::Ignored => Some(Untracked {
            side,
            path: path.clone(),
            reason: *reason,
        }),
        _ => None,
    };
    let sides = [(Side::Host, host), (Side::Guest, guest)];
    sides.into_iter().filter_map(of).collect()
}
