//! What the guest did and the host has not taken over yet: to look at, to apply, to discard.
//!
//! ```text
//!  trees ── list ─▶ changes ── only ─▶ chosen ─┬─ apply ───▶ host   one transaction, can be undone
//!                   (diffs, marks)             └─ discard ─▶ guest  goes back to what the host has
//! ```
//!
//! A [`Change`] says by digest what was on either side when it was shown. Applying it means exactly that: where
//! the host's side has moved on, or the guest now has other contents, it is refused, and with it everything
//! that was chosen beside it (`S49`). So a guest cannot have applied what nobody saw, however it times its
//! writes.
//!
//! In the mode [review](crate::Mode::Review) everything that the guest did is listed; in the two-way modes it
//! is what they hold back: conflicts, and what the host would run without being asked. The list is whole,
//! deletions included, however long it is; contents beyond [`MAX_TEXT`] and [`MAX_SHOWN`] are left out and
//! said to be.

use std::collections::HashMap;

use sandbox_base::ErrorKind;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::glob::Glob;
use crate::path::RelPath;
use crate::reconcile::{Input, join};
use crate::report::Problem;
use crate::rules::Flow;
use crate::tree::{Digest, Entry, Tree};

pub(crate) mod chosen;
mod show;
pub(crate) mod text;
#[cfg(unix)]
pub(crate) mod undo;
#[cfg(fuzzing)]
pub use undo::read_for_fuzzing as read_undo_for_fuzzing;

pub use show::Patch;
pub use text::{Hunk, Line, LineSide};

/// The longest file whose difference is shown, in bytes, on either side.
pub const MAX_TEXT: u64 = 1 << 20;

/// How much of differences is shown in all, in bytes; what comes after is listed without.
pub const MAX_SHOWN: usize = 16 << 20;

/// What waits, in the order of paths.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Changes {
    /// One for each path, but for renames, which are one for two.
    pub changes: Vec<Change>,
}

/// One thing that the guest did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Change {
    /// The path.
    pub path: RelPath,
    /// What was done.
    pub kind: Kind,
    /// What the host has at the path.
    pub host: Option<Entry>,
    /// What the guest has there.
    pub guest: Option<Entry>,
    /// What to look at twice.
    pub marks: Vec<Mark>,
    /// The difference of the contents.
    pub contents: Contents,
    /// The numbers of the hunks that were chosen, from 0; all without.
    pub picked: Option<Vec<usize>>,
}

/// What the guest did to a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Kind {
    /// The host has nothing there.
    Added,
    /// The contents differ, or the type does.
    Changed,
    /// Only the executable bit differs.
    Mode,
    /// The guest has nothing there any more.
    Removed,
    /// The same contents were at another path, which the guest does not have any more.
    Renamed {
        /// Where they were.
        from: RelPath,
        /// What the host has there.
        old: Entry,
    },
}

/// Why a change deserves a second look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Mark {
    /// The host would run it, or have it decide what is run, without being asked.
    RunsUnasked,
    /// It is part of how the project is built, tested or worked on.
    BuildInput,
    /// The host changed it, too: applying overwrites that, discarding the guest's.
    Conflict,
}

/// The difference between what the two sides have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Contents {
    /// There is none: a folder, another mode, a new name.
    Same,
    /// Two texts, one of them perhaps empty.
    Text(Vec<Hunk>),
    /// Not two texts: see the sizes.
    Binary,
    /// Longer than is shown.
    Omitted,
    /// They could not be read as they were listed: something changed meanwhile.
    Unread,
}

/// What came of applying, discarding or taking back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// The paths that were changed.
    pub done: Vec<RelPath>,
    /// What stood in the way. What is applied or taken back is done as a whole or not at all: with one
    /// refusal nothing was changed. What is discarded is refused path by path.
    pub refused: Vec<Problem>,
}

impl Changes {
    /// Tells whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Returns what a pattern chooses, see [`Changes::matching`]; what is no pattern chooses nothing.
    #[must_use]
    pub fn only(&self, pattern: impl AsRef<str>) -> Self {
        self.matching(&[pattern]).unwrap_or_default()
    }

    /// Returns what any of the patterns chooses: a path with everything beneath it, `*` and `?` within a
    /// name, `**` across names. A pattern begins at the root, but a single name with a wildcard in it is
    /// looked for everywhere. Of a rename of which only one end is chosen, that end is left: an addition or
    /// a removal.
    ///
    /// # Errors
    ///
    /// `Invalid`, with the first pattern that is none.
    pub fn matching(&self, patterns: &[impl AsRef<str>]) -> Result<Self, Error> {
        let chooses = chooser(patterns)?;
        let changes = self.changes.iter();
        Ok(Self {
            changes: changes
                .filter_map(|change| change.chosen_by(&chooses))
                .collect(),
        })
    }

    /// Returns the changes that a condition holds for.
    #[must_use]
    pub fn filter(&self, mut holds: impl FnMut(&Change) -> bool) -> Self {
        let changes = self.changes.iter();
        Self {
            changes: changes.filter(|change| holds(change)).cloned().collect(),
        }
    }

    /// Returns the change of one path with some of its hunks, by their numbers from 0.
    ///
    /// # Errors
    ///
    /// `NotFound` where there is no change of that path, or no hunk of that number.
    pub fn only_hunks(&self, path: &RelPath, hunks: &[usize]) -> Result<Self, Error> {
        let missing = |what: &str| {
            let detail = format!("there is no {what} of {path}");
            Error::new(ErrorKind::NotFound, "choose hunks", detail)
        };
        let found = self.changes.iter().find(|change| change.path == *path);
        let mut change = found.ok_or_else(|| missing("change"))?.clone();
        let count = match &change.contents {
            Contents::Text(hunks) => hunks.len(),
            _ => 0,
        };
        if let Some(number) = hunks.iter().find(|number| **number >= count) {
            return Err(missing(&format!("hunk {}", number + 1)));
        }
        change.picked = Some(hunks.to_vec());
        Ok(Self {
            changes: vec![change],
        })
    }
}

impl Change {
    /// Tells whether it has this mark.
    #[must_use]
    pub fn is_marked(&self, mark: Mark) -> bool {
        self.marks.contains(&mark)
    }

    fn chosen_by(&self, chooses: &impl Fn(&RelPath) -> bool) -> Option<Self> {
        let Kind::Renamed { from, old } = &self.kind else {
            return chooses(&self.path).then(|| self.clone());
        };
        let (kind, path, host, guest) = match (chooses(from), chooses(&self.path)) {
            (true, true) => return Some(self.clone()),
            (false, true) => (Kind::Added, &self.path, None, self.guest.clone()),
            (true, false) => (Kind::Removed, from, Some(old.clone()), None),
            (false, false) => return None,
        };
        Some(Self {
            path: path.clone(),
            kind,
            host,
            guest,
            ..self.clone()
        })
    }
}

/// Returns what tells whether any of the patterns chooses a path, see [`Changes::matching`].
pub(crate) fn chooser<T: AsRef<str>>(
    patterns: &[T],
) -> Result<impl Fn(&RelPath) -> bool + use<T>, Error> {
    let globs: Result<Vec<Glob>, Error> = patterns.iter().map(|text| glob(text.as_ref())).collect();
    let globs = globs?;
    Ok(move |path: &RelPath| {
        let names: Vec<&[u8]> = path.components().collect();
        let covers = |end| globs.iter().any(|glob| glob.matches(&names[..end]));
        (1..=names.len()).any(covers)
    })
}

/// Reads a pattern as a person means it who looks at a list of paths.
fn glob(text: &str) -> Result<Glob, Error> {
    let text = text.strip_prefix("./").unwrap_or(text);
    let everywhere = text.starts_with("**") || !text.contains('/') && text.contains(['*', '?']);
    let tied = match everywhere || text.starts_with('/') {
        true => text.to_owned(),
        false if text == "." => "/**".to_owned(),
        false => format!("/{text}"),
    };
    Glob::parse(&tied, false).ok_or_else(|| {
        let detail = format!("{text:?} is no pattern");
        Error::new(ErrorKind::Invalid, "choose changes", detail)
    })
}

/// Lists what the guest has changed and the host has not, contents aside.
pub(crate) fn list(input: Input<'_>) -> Changes {
    let mut flows = input.rules.walk();
    let mut changes = Vec::new();
    for (path, [base, host, guest]) in join([input.base, input.host, input.guest].map(Tree::iter)) {
        let flow = flows.flow(path);
        let untracked = [host, guest].into_iter().flatten().any(Entry::is_untracked);
        let stays = matches!(flow, Flow::Ignored | Flow::Masked | Flow::Seed);
        if untracked || stays || host == guest || guest == base {
            continue;
        }
        let runs = matches!(flow, Flow::Held | Flow::OutputHeld)
            || guest.is_some_and(|entry| input.rules.holds_type(path, entry));
        let marks = [
            (runs, Mark::RunsUnasked),
            (input.rules.is_build_input(path), Mark::BuildInput),
            (host != base, Mark::Conflict),
        ];
        changes.push(Change {
            path: path.clone(),
            kind: kind(host, guest),
            host: host.cloned(),
            guest: guest.cloned(),
            marks: marks
                .into_iter()
                .filter_map(|(is, mark)| is.then_some(mark))
                .collect(),
            contents: Contents::Same,
            picked: None,
        });
    }
    Changes {
        changes: pair_renames(changes),
    }
}

fn kind(host: Option<&Entry>, guest: Option<&Entry>) -> Kind {
    match (host, guest) {
        (None, _) => Kind::Added,
        (_, None) => Kind::Removed,
        (Some(host), Some(guest))
            if host.content().is_some() && host.content() == guest.content() =>
        {
            Kind::Mode
        }
        _ => Kind::Changed,
    }
}

/// Makes one of each addition and the removal of the same contents. Nothing is guessed from contents that
/// are only alike; an empty file is not taken for another; what is marked stays by itself.
fn pair_renames(changes: Vec<Change>) -> Vec<Change> {
    let content = |entry: &Option<Entry>| {
        let content = entry.as_ref().and_then(Entry::content);
        content
            .filter(|(_, size)| *size > 0)
            .map(|(digest, _)| digest)
    };
    let mut removed: HashMap<Digest, Vec<RelPath>> = HashMap::new();
    for change in changes
        .iter()
        .rev()
        .filter(|change| change.marks.is_empty())
    {
        if let (Kind::Removed, Some(digest)) = (&change.kind, content(&change.host)) {
            removed.entry(digest).or_default().push(change.path.clone());
        }
    }
    let mut entries: HashMap<RelPath, Entry> = HashMap::new();
    for change in &changes {
        if let (Kind::Removed, Some(host)) = (&change.kind, &change.host) {
            entries.insert(change.path.clone(), host.clone());
        }
    }
    let mut renamed = Vec::new();
    let mut paired = Vec::new();
    for mut change in changes {
        let found = match (&change.kind, content(&change.guest)) {
            (Kind::Added, Some(digest)) if change.marks.is_empty() => removed.get_mut(&digest),
            _ => None,
        };
        if let Some(from) = found.and_then(Vec::pop)
            && let Some(old) = entries.remove(&from)
        {
            renamed.push(from.clone());
            change.kind = Kind::Renamed { from, old };
        }
        paired.push(change);
    }
    paired.retain(|change| change.kind != Kind::Removed || !renamed.contains(&change.path));
    paired
}

/// What has to be read of each side to show the difference of one change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// Nothing, for this is what there is to say.
    Nothing,
    Omitted,
    Texts {
        host: Option<(Digest, u64)>,
        guest: Option<(Digest, u64)>,
    },
}

/// Says what to read of a change.
pub(crate) fn look(change: &Change) -> Look {
    let content = |entry: &Option<Entry>| entry.as_ref().and_then(Entry::content);
    let [host, guest] = [content(&change.host), content(&change.guest)];
    let same = matches!(change.kind, Kind::Mode | Kind::Renamed { .. });
    match [host, guest] {
        _ if same => Look::Nothing,
        [None, None] => Look::Nothing,
        sides if sides.iter().flatten().any(|(_, size)| *size > MAX_TEXT) => Look::Omitted,
        _ => Look::Texts { host, guest },
    }
}

/// Makes the difference of what was read; `None` stands for what could not be.
pub(crate) fn contents(before: Option<&[u8]>, after: Option<&[u8]>, room: &mut usize) -> Contents {
    let (Some(before), Some(after)) = (before, after) else {
        return Contents::Unread;
    };
    if !(text::is_text(before) && text::is_text(after)) {
        return Contents::Binary;
    }
    let Some(hunks) = text::hunks(before, after) else {
        return Contents::Omitted;
    };
    let lines = hunks.iter().flat_map(|hunk| &hunk.lines);
    let shown: usize = lines.map(|line| line.text.len() + size_of::<Line>()).sum();
    match room.checked_sub(shown) {
        Some(left) => {
            *room = left;
            Contents::Text(hunks)
        }
        None => Contents::Omitted,
    }
}

/// Returns the trees that [`list`] is about, with nothing else known.
#[cfg(test)]
pub(crate) fn listed(
    base: &crate::tree::Tree,
    host: &crate::tree::Tree,
    guest: &crate::tree::Tree,
) -> Changes {
    let rules = crate::rules::Rules::new(&crate::Lists::default()).unwrap();
    let (mode, rules) = (crate::Mode::Review, &rules);
    list(Input {
        base,
        host,
        guest,
        rules,
        mode,
        folds: crate::fold::Folds::default(),
    })
}

#[cfg(test)]
mod tests;
