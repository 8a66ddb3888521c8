//! Three trees in, a plan out: no file system, no clock, no peer.
//!
//! For each path there is what both sides last agreed on (base) and what each side has now. One rule
//! decides a path alone:
//!
//! | host | guest | plan |
//! |---|---|---|
//! | equal to the guest | | agreed, becomes the base |
//! | as in base | changed | the guest's change goes to the host |
//! | changed | as in base | the host's change goes to the guest |
//! | changed | deleted | the change survives and returns (`S03`) |
//! | deleted | changed | likewise |
//! | changed | changed | conflict: both keep their own, nothing is written (`S02`) |
//!
//! Then one pass from the leaves up makes the plan fit together: a folder that one side deleted and in
//! which the other's work survives comes back (`S04`); a folder that became a file on one side, and in
//! which the other's work survives, is a conflict together with everything beneath it (`S07`). Paths that
//! are ignored, masked or untracked take part as things that exist and are never touched, so their
//! folders stay too (`S28`).
//!
//! A change that the [rules](crate::rules) hold is like a conflict: each side keeps its own and the report
//! says so. Without such rules the function is symmetric in the two sides, in the mode two-way-safe.
//!
//! The other [modes](Mode) change only what becomes of the guest's changes: `Review` and `ReadOnly` hold them
//! all, `TwoWayHostWins` turns a conflict of two files into a change of the guest's, after a copy of the
//! guest's own version was put beside it under a name that nothing has. Output paths flow to the host alone,
//! except in `Review`, where nothing does.
//!
//! A plan for everything costs as much as there are paths. [`reconcile_within`] looks only at paths that are
//! not what they were, at what is beneath them, and at the folders that lead there, and returns the same
//! plan, provided that everything else came out of an earlier plan with nothing left to do: what a row
//! becomes depends on its own three entries and on rows above and beneath it, never on its neighbours.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::fold::Folds;
use crate::path::RelPath;
use crate::report::{Collision, Conflict, Held, HeldReason, Side};
use crate::rules::{Flow, Rules};
use crate::tree::{Digest, Entry, Tree};

mod folded;

use folded::Siblings;

/// Which way workspaces flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Mode {
    /// Changes go both ways; where both sides changed the same path, each keeps its own and the conflict
    /// is reported until it is resolved by making the two equal or removing one.
    #[default]
    TwoWaySafe,
    /// As `TwoWaySafe`, but where both sides changed a file or link, the host's version takes the name; the
    /// guest's is kept beside it as `NAME.overruled-DIGEST` on both sides. Conflicts of folders and within a
    /// repository, where a copy would mean something, stay conflicts.
    TwoWayHostWins,
    /// The host's changes go to the guest; what the guest writes waits until it is
    /// [applied](crate::Session::apply) or discarded.
    Review,
    /// The host's changes go to the guest; what the guest writes never comes back, and is not overwritten
    /// in the guest either. [Output paths](crate::Lists::output) are the exception.
    ReadOnly,
}

impl Mode {
    /// Tells whether the guest's changes, those of output paths aside, reach the host by themselves.
    #[must_use]
    pub fn is_two_way(self) -> bool {
        matches!(self, Self::TwoWaySafe | Self::TwoWayHostWins)
    }

    /// Returns the name that people write: `two-way-safe` and so on.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TwoWaySafe => "two-way-safe",
            Self::TwoWayHostWins => "two-way-host-wins",
            Self::Review => "review",
            Self::ReadOnly => "read-only",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One path of one side: what the plan found there and what it shall become.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Op {
    pub(crate) path: RelPath,
    pub(crate) old: Option<Entry>,
    pub(crate) new: Option<Entry>,
}

/// What has to be done so that both sides agree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Changes of the host's tree, by path.
    pub(crate) to_host: Vec<Op>,
    /// Changes of the guest's tree, by path.
    pub(crate) to_guest: Vec<Op>,
    /// Paths on which both sides agree already, where the base says otherwise.
    pub(crate) agreed: Vec<(RelPath, Option<Entry>)>,
    pub(crate) conflicts: Vec<Conflict>,
    /// Files to make in the guest's tree that the host does not have: not agreed on, so that they flow to
    /// the host like any other that is new.
    pub(crate) copies: Vec<Op>,
    /// Conflicts that the host won.
    pub(crate) overruled: Vec<Conflict>,
    pub(crate) held: Vec<Held>,
}

/// The three trees and what governs them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Input<'a> {
    pub(crate) base: &'a Tree,
    pub(crate) host: &'a Tree,
    pub(crate) guest: &'a Tree,
    pub(crate) rules: &'a Rules,
    pub(crate) mode: Mode,
    /// Which names are one on which side.
    pub(crate) folds: Folds,
}

/// Plans what makes the two sides agree. The same inputs give the same plan.
pub(crate) fn reconcile(input: Input<'_>) -> Plan {
    let joined = join([input.base, input.host, input.guest].map(Tree::iter));
    finish(input, joined)
}

/// Plans as [`reconcile`] does where only `changed` paths may need anything.
pub(crate) fn reconcile_within(input: Input<'_>, changed: &BTreeSet<RelPath>) -> Plan {
    let one_with = folded::one_with(input, changed);
    let (mut paths, mut whole) = (Vec::new(), None::<RelPath>);
    for path in one_with.as_ref().unwrap_or(changed) {
        let top = top(input, path);
        if whole
            .as_ref()
            .is_some_and(|whole| top.is_beneath(whole) || top == *whole)
        {
            continue;
        }
        paths.push(top.clone());
        whole = Some(top);
    }
    let mut joined = Vec::new();
    let mut led: Option<&RelPath> = None;
    for top in &paths {
        for folder in above(top) {
            // The folders that lead here and did not lead to the one before.
            if led.is_none_or(|led| !led.is_beneath(&folder)) {
                joined.extend(known(input, &folder));
            }
        }
        joined.extend(join(
            [input.base, input.host, input.guest].map(|tree| tree.whole(top)),
        ));
        led = Some(top);
    }
    finish(input, joined.into_iter())
}

/// Returns the folders above `path`, from the root downwards.
fn above(path: &RelPath) -> Vec<RelPath> {
    let mut above: Vec<_> = std::iter::successors(path.parent(), RelPath::parent).collect();
    above.reverse();
    above
}

/// Returns `path`, or the first path above it that is not a folder on both sides: what becomes of such a
/// path depends on everything beneath it.
fn top(input: Input<'_>, path: &RelPath) -> RelPath {
    let plain = |folder: &RelPath| {
        let sides = [input.host, input.guest];
        sides
            .iter()
            .all(|side| side.entry(folder).is_some_and(Entry::is_directory))
    };
    let first = above(path).into_iter().find(|folder| !plain(folder));
    first.unwrap_or_else(|| path.clone())
}

/// Returns what the three trees have at one path, under a key that lives as long as they do.
fn known<'a>(input: Input<'a>, path: &RelPath) -> Option<Joined<'a>> {
    let found = [input.base, input.host, input.guest].map(|tree| tree.key_value(path));
    let key = found.iter().flatten().map(|(path, _)| *path).next()?;
    Some((key, found.map(|found| found.map(|(_, entry)| entry))))
}

fn finish<'a>(input: Input<'a>, joined: impl Iterator<Item = Joined<'a>>) -> Plan {
    let mut rows = match input.folds.is_none() {
        true => rows(input, joined.map(|(path, found)| (path, found, found[0]))),
        false => rows(input, folded::with_agreed(input, joined)),
    };
    let siblings = Siblings::of(&rows, input.folds);
    fit_together(&mut rows, siblings);
    block_beneath(&mut rows);
    plan(rows, input.guest)
}

/// A path and what base, host and guest have there.
type Joined<'a> = (&'a RelPath, [Option<&'a Entry>; 3]);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Agree,
    ToHost,
    ToGuest,
    Conflict,
    /// The host's version takes the name, the guest's another.
    Overrule,
    Held(HeldReason),
    /// Each side keeps what it has; nothing to say about it.
    Keep,
}

#[derive(Debug)]
struct Row<'a> {
    path: &'a RelPath,
    base: Option<&'a Entry>,
    /// What was agreed on, also under another name.
    agreed: Option<&'a Entry>,
    host: Option<&'a Entry>,
    guest: Option<&'a Entry>,
    act: Act,
    /// The row of the folder that holds this one.
    parent: Option<usize>,
    /// Something beneath exists on that side once the plan is carried out.
    host_needed: bool,
    guest_needed: bool,
    /// The side on which it would be one with another row.
    collides: Option<(Side, usize)>,
    /// It, or the folder that it is, may be a mixture of several: nothing beneath it is touched.
    blocks: bool,
}

impl<'a> Row<'a> {
    fn host_after(&self) -> Option<&'a Entry> {
        if self.act == Act::ToHost {
            self.guest
        } else {
            self.host
        }
    }

    fn guest_after(&self) -> Option<&'a Entry> {
        if matches!(self.act, Act::ToGuest | Act::Overrule) {
            self.host
        } else {
            self.guest
        }
    }

    fn conflict(&self, collision: Option<Collision>) -> Conflict {
        Conflict {
            path: self.path.clone(),
            host: self.host.cloned(),
            guest: self.guest.cloned(),
            collision,
        }
    }

    fn has_non_directory(&self) -> bool {
        [self.host, self.guest]
            .into_iter()
            .flatten()
            .any(|entry| !entry.is_directory())
    }
}

/// Decides each path alone, by what is there and by what was agreed on before it had its name.
fn rows<'a>(
    input: Input<'a>,
    joined: impl Iterator<Item = (&'a RelPath, [Option<&'a Entry>; 3], Option<&'a Entry>)>,
) -> Vec<Row<'a>> {
    let mut flows = input.rules.walk();
    let mut above: Vec<usize> = Vec::new();
    let mut rows: Vec<Row<'_>> = Vec::new();
    for (path, [base, host, guest], agreed) in joined {
        while above
            .last()
            .is_some_and(|row| !path.is_beneath(rows[*row].path))
        {
            above.pop();
        }
        // A name that one side lacks was not deleted there: under that name it never was.
        let both = host.is_some() && guest.is_some();
        let sides = [if both { agreed } else { base }, host, guest];
        let act = decide(input, path, sides, flows.flow(path));
        let parent = above.last().copied();
        above.push(rows.len());
        let [host_needed, guest_needed] = [false; 2];
        rows.push(Row {
            path,
            base,
            agreed,
            host,
            guest,
            act,
            parent,
            host_needed,
            guest_needed,
            collides: None,
            blocks: false,
        });
    }
    rows
}

fn decide(input: Input<'_>, path: &RelPath, sides: [Option<&Entry>; 3], flow: Flow) -> Act {
    let [base, host, guest] = sides;
    let untracked = |side: Option<&Entry>| side.is_some_and(Entry::is_untracked);
    match flow {
        _ if untracked(host) || untracked(guest) => return Act::Keep,
        Flow::Ignored | Flow::Masked => return Act::Keep,
        _ if host == guest => return Act::Agree,
        Flow::Seed if base.is_none() && guest.is_none() => return Act::ToGuest,
        Flow::Seed => return Act::Keep,
        Flow::Output => return decide_output(input, path, sides),
        Flow::OutputHeld if guest == base => return Act::Keep,
        Flow::Both | Flow::Held | Flow::OutputHeld => {}
    }
    if guest == base {
        return Act::ToGuest;
    }
    if input.mode == Mode::ReadOnly {
        return Act::Held(HeldReason::ReadOnly);
    }
    let type_held = guest.is_some_and(|entry| input.rules.holds_type(path, entry))
        || held_as_another(input, (path, guest));
    if matches!(flow, Flow::Held | Flow::OutputHeld) || type_held {
        return Act::Held(HeldReason::RunsOnHost);
    }
    match (host, guest) {
        _ if input.mode == Mode::Review && host == base => Act::Held(HeldReason::Review),
        _ if host == base => Act::ToHost,
        (None, Some(_)) if input.mode == Mode::Review => Act::Held(HeldReason::Review),
        (None, Some(_)) => Act::ToHost,
        (Some(_), None) => Act::ToGuest,
        (Some(host), Some(guest)) if overrules(input, path, [host, guest]) => Act::Overrule,
        _ => Act::Conflict,
    }
}

/// Tells whether the guest's path is one with another on the host that is held, masked or seeded. ASCII is
/// no matter of it: the rules themselves have no regard to its case.
fn held_as_another(input: Input<'_>, (path, guest): (&RelPath, Option<&Entry>)) -> bool {
    let folding = input.folds.host;
    if folding.is_none() || path.as_bytes().is_ascii() {
        return false;
    }
    let Ok(path) = RelPath::new(folding.key_of(path)) else {
        // A name of nothing but characters that are left out.
        return true;
    };
    let flow = input.rules.walk().flow(&path);
    let by_name = matches!(
        flow,
        Flow::Held | Flow::OutputHeld | Flow::Masked | Flow::Seed
    );
    by_name || guest.is_some_and(|entry| input.rules.holds_type(&path, entry))
}

/// Decides a path that only the guest writes to: what the host did there is its own business, but is not
/// overwritten either.
fn decide_output(input: Input<'_>, path: &RelPath, sides: [Option<&Entry>; 3]) -> Act {
    let [base, host, guest] = sides;
    if guest == base {
        return Act::Keep;
    }
    let type_held = guest.is_some_and(|entry| input.rules.holds_type(path, entry));
    if type_held || held_as_another(input, (path, guest)) {
        return Act::Held(HeldReason::RunsOnHost);
    }
    match (host, guest) {
        _ if input.mode == Mode::Review => Act::Held(HeldReason::Review),
        (None, _) => Act::ToHost,
        (Some(_), _) if host == base => Act::ToHost,
        (Some(_), None) => Act::Keep,
        (Some(_), Some(_)) => Act::Conflict,
    }
}

/// Tells whether the host's version takes the name: where it is the mode, the guest's can be kept beside
/// it, and neither is a folder.
fn overrules(input: Input<'_>, path: &RelPath, [host, guest]: [&Entry; 2]) -> bool {
    input.mode == Mode::TwoWayHostWins
        && !(host.is_directory() || guest.is_directory())
        && !path
            .components()
            .any(|name| name.eq_ignore_ascii_case(b".git"))
        && copy_path(input.guest, path, guest).is_some_and(|copy| {
            // A name that is as free here as it is in the guest, or has the very same already.
            let there = input.host.entry(&copy);
            there.is_none_or(|entry| entry == guest)
        })
}

/// Returns where a copy of the guest's `entry` lies or can lie; `None` where something else is.
fn copy_path(guest: &Tree, path: &RelPath, entry: &Entry) -> Option<RelPath> {
    let digest = match entry {
        Entry::File { digest, .. } => *digest,
        Entry::Symlink { target } => Digest::of(target),
        Entry::Directory | Entry::Untracked(_) => return None,
    };
    let mut name = path.name().to_vec();
    name.extend_from_slice(format!(".overruled-{:.8}", digest.to_string()).as_bytes());
    let copy = RelPath::join(path.parent().as_ref(), &name).ok()?;
    guest
        .entry(&copy)
        .is_none_or(|there| there == entry)
        .then_some(copy)
}

/// Goes from the leaves up and keeps or restores the folders in which something survives.
fn fit_together(rows: &mut [Row<'_>], mut siblings: Siblings) {
    for index in (0..rows.len()).rev() {
        // Everything in it is decided by now.
        if siblings.part(rows, Some(index)) {
            need_again(rows, index);
        }
        let row = &mut rows[index];
        let is_directory = |entry: Option<&Entry>| entry.is_some_and(Entry::is_directory);
        let host_misfit = row.host_needed && !is_directory(row.host_after());
        let guest_misfit = row.guest_needed && !is_directory(row.guest_after());
        if host_misfit || guest_misfit {
            row.act = match (is_directory(row.host), is_directory(row.guest)) {
                // Deleted on the other side: it returns where something will lie in it there.
                (true, false) if row.guest.is_none() && row.guest_needed => Act::ToGuest,
                (false, true) if row.host.is_none() && row.host_needed => Act::ToHost,
                (true, false) if row.guest.is_none() => Act::Keep,
                (false, true) if row.host.is_none() => Act::Keep,
                // Something else took its place there.
                _ => Act::Conflict,
            };
        }
        let (host, guest) = (row.host_after().is_some(), row.guest_after().is_some());
        if let Some(parent) = row.parent {
            rows[parent].host_needed |= host;
            rows[parent].guest_needed |= guest;
        }
    }
    siblings.part(rows, None);
}

/// Finds out anew on which sides something is in a folder once the plan is carried out.
fn need_again(rows: &mut [Row<'_>], folder: usize) {
    let path = rows[folder].path;
    let beneath = rows[folder + 1..]
        .iter()
        .take_while(|row| row.path.is_beneath(path));
    let within = beneath.filter(|row| row.parent == Some(folder));
    let needed = within.fold((false, false), |(host, guest), row| {
        let after = (row.host_after().is_some(), row.guest_after().is_some());
        (host || after.0, guest || after.1)
    });
    (rows[folder].host_needed, rows[folder].guest_needed) = needed;
}

/// Leaves everything alone beneath a path on which the two sides do not agree to have a folder.
fn block_beneath(rows: &mut [Row<'_>]) {
    let mut blocked = vec![false; rows.len()];
    for index in 0..rows.len() {
        let row = &mut rows[index];
        let inherited = row.parent.is_some_and(|parent| blocked[parent]);
        if inherited {
            row.act = Act::Keep;
        }
        let undecided = matches!(row.act, Act::Conflict | Act::Held(_) | Act::Keep);
        blocked[index] = inherited || row.blocks || (undecided && row.has_non_directory());
    }
}

fn plan(rows: Vec<Row<'_>>, guest: &Tree) -> Plan {
    let mut plan = Plan::default();
    for row in &rows {
        let path = row.path.clone();
        let op = |old: Option<&Entry>, new: Option<&Entry>| Op {
            path: row.path.clone(),
            old: old.cloned(),
            new: new.cloned(),
        };
        match row.act {
            Act::Keep => {}
            Act::Agree if row.base == row.host => {}
            Act::Agree => plan.agreed.push((path, row.host.cloned())),
            Act::ToHost => plan.to_host.push(op(row.host, row.guest)),
            Act::ToGuest => plan.to_guest.push(op(row.guest, row.host)),
            Act::Conflict => plan.conflicts.push(row.conflict(collision(row, &rows))),
            Act::Overrule => {
                let own = row
                    .guest
                    .and_then(|own| Some((copy_path(guest, &path, own)?, own)));
                // What is there already is the same.
                if let Some((copy, own)) = own.filter(|(copy, _)| guest.entry(copy).is_none()) {
                    let (path, new) = (copy, Some(own.clone()));
                    plan.copies.push(Op {
                        path,
                        old: None,
                        new,
                    });
                }
                plan.to_guest.push(op(row.guest, row.host));
                plan.overruled.push(row.conflict(None));
            }
            Act::Held(reason) => plan.held.push(Held {
                path,
                guest: row.guest.cloned(),
                reason,
            }),
        }
    }
    plan
}

fn collision(row: &Row<'_>, rows: &[Row<'_>]) -> Option<Collision> {
    let (side, other) = row.collides?;
    let with = rows[other].path.clone();
    Some(Collision { side, with })
}

/// Walks three trees at once, in path order.
pub(crate) fn join<'a>(
    walks: [impl Iterator<Item = (&'a RelPath, &'a Entry)>; 3],
) -> impl Iterator<Item = Joined<'a>> {
    let mut walks = walks.map(Iterator::peekable);
    std::iter::from_fn(move || {
        let path = walks
            .iter_mut()
            .filter_map(|walk| walk.peek().map(|(path, _)| *path))
            .min()?;
        let entries = walks.each_mut().map(|walk| {
            walk.next_if(|(next, _)| *next == path)
                .map(|(_, entry)| entry)
        });
        Some((path, entries))
    })
}

#[cfg(test)]
pub(crate) mod tests;
