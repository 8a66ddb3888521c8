//! What a cycle did and what it left alone.

use std::fmt;

use crate::path::RelPath;
use crate::safety::Halt;
use crate::tree::{Entry, Reason};

/// One of the two replicas of a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Side {
    /// The machine that the sandbox runs on; its tree is the one to protect.
    Host,
    /// The inside of the sandbox.
    Guest,
}

/// As a noun: `host` or `guest`.
impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Guest => "guest",
        })
    }
}

/// What happened to one path of one side.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// The path.
    pub path: RelPath,
    /// What was there before, `None` for an addition.
    pub old: Option<Entry>,
    /// What is there now, `None` for a removal.
    pub new: Option<Entry>,
}

/// A path that both sides changed since they last agreed, or that one of them cannot hold beside another.
/// Each keeps its own.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Conflict {
    /// The path; for a folder on one side and a file on the other, everything beneath it too.
    pub path: RelPath,
    /// What the host has.
    pub host: Option<Entry>,
    /// What the guest has.
    pub guest: Option<Entry>,
    /// The other name that would be the same file; `None` where both sides changed the path. Nothing beneath
    /// such a path is synchronized either.
    pub collision: Option<Collision>,
}

/// Two names that are different and yet one file, because a file system folds case or Unicode forms. The way
/// out is to rename or remove one of the two on the side that has both, or on either where each has one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Collision {
    /// The side that cannot hold both.
    pub side: Side,
    /// The other name, with the folders above it.
    pub with: RelPath,
}

impl fmt::Display for Collision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "it and {} would be one file in the {}, whose file system folds names; rename one of the two",
            self.with, self.side
        )
    }
}

/// In words, without the path.
impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.collision {
            Some(collision) => collision.fmt(f),
            None => f.write_str("both sides changed it"),
        }
    }
}

/// A change in the guest that was not applied to the host.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Held {
    /// The path.
    pub path: RelPath,
    /// What the guest has there, `None` where it removed it.
    pub guest: Option<Entry>,
    /// Why it was held.
    pub reason: HeldReason,
}

/// Why a change in the guest was not applied to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HeldReason {
    /// The held list names it: the host would run it without being asked.
    RunsOnHost,
    /// The workspace is one for review: it waits to be applied or discarded.
    Review,
    /// The workspace is read-only.
    ReadOnly,
}

/// A path that was left as it is although it should have changed, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// The side on which it was met.
    pub side: Side,
    /// The path.
    pub path: RelPath,
    /// What stood in the way, in words. From the guest, it is the guest's word.
    pub text: String,
}

/// Something that is there and not synchronized.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Untracked {
    /// The side that has it.
    pub side: Side,
    /// The path; for a folder, everything beneath it too.
    pub path: RelPath,
    /// Why it is not synchronized; never [`Reason::Ignored`], which is not reported.
    pub reason: Reason,
}

/// What one cycle did and what it left alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Changes of the host's tree, in the order of paths.
    pub to_host: Vec<Change>,
    /// Changes of the guest's tree, as the guest reports them.
    pub to_guest: Vec<Change>,
    /// Paths that both sides changed.
    pub conflicts: Vec<Conflict>,
    /// Conflicts that the host's version won, see [`Mode::TwoWayHostWins`](crate::Mode::TwoWayHostWins).
    pub overruled: Vec<Conflict>,
    /// Changes in the guest that wait for review or never come back.
    pub held: Vec<Held>,
    /// Paths that could not be brought into agreement this time; the next cycle tries again.
    pub problems: Vec<Problem>,
    /// What is there and not synchronized: masked, special, leading out.
    pub untracked: Vec<Untracked>,
    /// How many more changes of the host's tree there were than are listed, see [`Report::MOST_KEPT`].
    pub more_to_host: u64,
    /// The same of the guest's tree.
    pub more_to_guest: u64,
}

impl Report {
    /// How many changes of each tree the report of a session's first cycle lists: the session keeps it, and
    /// a first copy would make it the largest thing that it keeps. All other reports list everything.
    pub const MOST_KEPT: usize = 100;

    /// Lists no more changes than are kept, and has nothing in common with what is in memory anyway.
    pub(crate) fn clip(&mut self) {
        for (changes, more) in [
            (&mut self.to_host, &mut self.more_to_host),
            (&mut self.to_guest, &mut self.more_to_guest),
        ] {
            *more += changes.len().saturating_sub(Self::MOST_KEPT) as u64;
            changes.truncate(Self::MOST_KEPT);
            changes.shrink_to_fit();
            for change in changes {
                change.path = change.path.apart();
            }
        }
    }

    /// Tells whether the two sides agree, what is held, untracked or ignored aside.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.conflicts.is_empty() && self.problems.is_empty()
    }

    /// Tells whether the cycle changed nothing on either side.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.to_host.is_empty() && self.to_guest.is_empty()
    }
}

/// How a session stands: what its last cycle found.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Standing {
    /// What the last cycle that was not halted did and left alone.
    pub last: std::sync::Arc<Report>,
    /// What the session waits for an answer to, see [`Session::resume`](crate::Session::resume).
    pub halted: Option<Halt>,
    /// Whether nothing is synchronized until the session is [unpaused](crate::Session::set_paused).
    pub paused: bool,
    /// Why the session is over, or its last cycle failed, in words.
    pub failed: Option<String>,
}

/// What a session tells while it is open.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// A cycle ended and had something to say: not quiet, not settled, or asked for.
    Synchronized(std::sync::Arc<Report>),
    /// The session halted and asks, see [`Session::resume`](crate::Session::resume).
    Halted(Halt),
    /// A cycle failed, in words; the session goes on if it can.
    Failed(String),
    /// The session is over, and root, lock and stream are let go.
    Ended,
}
