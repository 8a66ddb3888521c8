//! A tree as data: what is at each path, by content, without times, owners or inodes.
//!
//! The three inputs of the three-way merge are trees of this kind. Two entries are the same
//! when a program that reads them cannot tell them apart: same type, same bytes, same executable bit,
//! same link target. A tree that came from a peer is checked with [`Tree::check`] before anything looks
//! at it.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Bound;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::path::RelPath;

mod item;

pub(crate) use item::Item;

/// The longest symlink target that is synchronized, in bytes.
pub const MAX_TARGET: usize = 1024;

/// After so many paths at once a tree is worth packing, and what the work took worth handing back.
pub(crate) const MANY: usize = 1_000;

/// The BLAKE3 digest of a file's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// As its bytes, or in hexadecimal where people read it.
impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serializer.is_human_readable() {
            true => serializer.collect_str(self),
            false => self.0.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            return <[u8; 32]>::deserialize(deserializer).map(Self);
        }
        let text = String::deserialize(deserializer)?;
        let hash = blake3::Hash::from_hex(text).map_err(de::Error::custom)?;
        Ok(Self(hash.into()))
    }
}

impl Digest {
    /// Returns the digest of bytes in memory.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).into())
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for Digest {
    fn from(digest: [u8; 32]) -> Self {
        Self(digest)
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(hash.into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digit = |value: u8| char::from_digit(value.into(), 16).unwrap_or('0');
        let digits = self
            .0
            .iter()
            .flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]);
        f.write_str(&digits.collect::<String>())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.8}", self.to_string())
    }
}

/// What is at one path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Entry {
    /// A folder; what is in it has paths of its own.
    Directory,
    /// A regular file.
    File {
        /// The digest of its bytes.
        digest: Digest,
        /// Its length in bytes.
        size: u64,
        /// Whether its owner may execute it; no other mode bit is synchronized.
        executable: bool,
    },
    /// A symbolic link whose target stays inside the root, see [`portable_target`].
    Symlink {
        /// The target as it is written in the link.
        target: Box<[u8]>,
    },
    /// Something that is there, stays where it is, and is not synchronized.
    Untracked(Reason),
}

/// Why something is not synchronized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Reason {
    /// An ignore rule names it.
    Ignored,
    /// A mask names it: it looks like a secret.
    Masked,
    /// A device, socket, FIFO or another thing that is neither file, folder nor link.
    Special,
    /// A symlink that leads out of the root, or whose target is no portable text.
    EscapingSymlink,
    /// Another file system is mounted there.
    OtherFilesystem,
    /// It could not be read.
    Unreadable,
    /// Its name or path is longer than what is synchronized.
    NameTooLong,
    /// The file is larger than the limit.
    TooLarge,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ignored => "ignored by a rule",
            Self::Masked => "masked: it looks like a secret",
            Self::Special => "neither file, folder nor symlink",
            Self::EscapingSymlink => "a symlink that leads out of the workspace",
            Self::OtherFilesystem => "on another file system",
            Self::Unreadable => "it cannot be read",
            Self::NameTooLong => "its path is too long or too deep",
            Self::TooLarge => "larger than the limit for one file",
        })
    }
}

impl Entry {
    /// Tells whether this is a folder whose contents are synchronized.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        matches!(self, Self::Directory)
    }

    /// Tells whether this is there but not synchronized.
    #[must_use]
    pub fn is_untracked(&self) -> bool {
        matches!(self, Self::Untracked(_))
    }

    /// Returns digest and length of a file.
    #[must_use]
    pub fn content(&self) -> Option<(Digest, u64)> {
        match self {
            Self::File { digest, size, .. } => Some((*digest, *size)),
            _ => None,
        }
    }
}

/// Tells whether a link with this target, wherever it stands beneath the root, resolves beneath the root.
///
/// `depth` is the number of names in the link's own path. `..` is accepted only in front: the folders
/// above a link are real folders, so leading `..` climb exactly where they seem to, while `..` after a
/// name could climb from wherever another link leads (`S31`).
#[must_use]
pub fn portable_target(depth: usize, target: &[u8]) -> bool {
    if target.is_empty() || target.len() > MAX_TARGET || target.contains(&0) {
        return false;
    }
    let mut names = target.split(|byte| *byte == b'/');
    let climbs = names
        .by_ref()
        .take_while(|name| matches!(*name, b".." | b"."))
        .filter(|name| *name == b"..")
        .count();
    // `take_while` has eaten the first ordinary name; what follows must not climb. An absolute target
    // begins with an empty name.
    !target.starts_with(b"/") && climbs < depth && names.all(|name| name != b"..")
}

/// What is at each path of a root; the root itself has no entry.
///
/// Trees that agree share what they hold: a clone costs a pointer for each entry.
#[derive(Debug, Clone, Default)]
pub struct Tree(BTreeSet<Item>);

impl PartialEq for Tree {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl Eq for Tree {}

impl Tree {
    /// Returns what is at `path`.
    #[must_use]
    pub fn entry(&self, path: &RelPath) -> Option<&Entry> {
        self.0.get(path).map(Item::entry)
    }

    /// Sets or, with `None`, removes what is at `path`.
    pub fn set(&mut self, path: RelPath, entry: Option<Entry>) {
        match entry {
            Some(entry) => self.put(Item::new(path, entry)),
            None => drop(self.0.remove(&path)),
        }
    }

    /// Sets what is at the path of `item`.
    pub(crate) fn put(&mut self, item: Item) {
        drop(self.0.replace(item));
    }

    /// Returns what is at `path` as other trees can hold it.
    pub(crate) fn item(&self, path: &RelPath) -> Option<&Item> {
        self.0.get(path)
    }

    /// Holds the same in half the memory, where many entries were set one after the other.
    pub(crate) fn pack(&mut self) {
        self.0 = std::mem::take(&mut self.0).into_iter().collect();
    }

    /// Moves everything to memory of its own, one after the other: what is freed then is whole pages.
    pub(crate) fn compact(&mut self) {
        self.0 = self.0.iter().map(Item::apart).collect();
    }

    /// Holds what `other` holds wherever the two are equal.
    pub(crate) fn share_all(&mut self, other: &Self) {
        let own = |item: Item| match other.same(item.path(), item.entry()) {
            Some(same) => same,
            None => item,
        };
        self.0 = std::mem::take(&mut self.0).into_iter().map(own).collect();
    }

    /// Returns what is at `path`, where that is `entry`, as other trees can hold it.
    pub(crate) fn same(&self, path: &RelPath, entry: &Entry) -> Option<Item> {
        let item = self.item(path).filter(|item| item.entry() == entry);
        item.cloned()
    }

    /// Holds what `other` holds at `path` where the two are equal, so that it is in memory once.
    pub(crate) fn share(&mut self, other: &Self, path: &RelPath) {
        if let (Some(own), Some(item)) = (self.0.get(path), other.0.get(path))
            && !own.is(item)
            && own.entry() == item.entry()
        {
            self.put(item.clone());
        }
    }

    /// Removes everything strictly beneath `folder` and returns the paths.
    pub(crate) fn remove_beneath(&mut self, folder: &RelPath) -> Vec<RelPath> {
        let gone: Vec<RelPath> = self.beneath(folder).cloned().collect();
        for path in &gone {
            self.0.remove(path);
        }
        gone
    }

    /// Returns the paths strictly beneath `folder`.
    pub(crate) fn beneath<'a>(&'a self, folder: &'a RelPath) -> impl Iterator<Item = &'a RelPath> {
        self.after(Some(folder))
            .map(Item::path)
            .take_while(move |path| path.is_beneath(folder))
    }

    /// Returns what is in `folder` (`None` is the root) without what is deeper, by name.
    pub(crate) fn children<'a>(
        &'a self,
        folder: Option<&'a RelPath>,
    ) -> impl Iterator<Item = &'a Item> {
        let mut rest = self.after(folder).peekable();
        std::iter::from_fn(move || {
            let within = |item: &&Item| folder.is_none_or(|folder| item.path().is_beneath(folder));
            let item = rest.next().filter(within)?;
            let deeper = |next: &&Item| next.path().is_beneath(item.path());
            if item.entry().is_directory() && rest.peek().is_some_and(deeper) {
                let behind = item.path().behind();
                rest = self.range(Bound::Included(&behind)).peekable();
            }
            Some(item)
        })
    }

    fn after(&self, path: Option<&RelPath>) -> std::collections::btree_set::Range<'_, Item> {
        self.range(path.map_or(Bound::Unbounded, Bound::Excluded))
    }

    fn range(&self, from: Bound<&RelPath>) -> std::collections::btree_set::Range<'_, Item> {
        self.0.range::<RelPath, _>((from, Bound::Unbounded))
    }

    /// Returns what is at `path`, with the path as it is kept here.
    pub(crate) fn key_value(&self, path: &RelPath) -> Option<(&RelPath, &Entry)> {
        self.0.get(path).map(Item::pair)
    }

    /// Returns what is at `path` and beneath it, in order.
    pub(crate) fn whole<'a>(
        &'a self,
        path: &'a RelPath,
    ) -> impl Iterator<Item = (&'a RelPath, &'a Entry)> {
        let within = move |(other, _): &(&RelPath, _)| *other == path || other.is_beneath(path);
        let from = self.range(Bound::Included(path));
        from.map(Item::pair).take_while(within)
    }

    /// Returns the entries, each folder before what is in it.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&RelPath, &Entry)> {
        self.0.iter().map(Item::pair)
    }

    /// Returns how many entries there are, untracked ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Tells whether there is no entry at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns how many entries are synchronized.
    #[must_use]
    pub fn tracked(&self) -> usize {
        self.iter()
            .filter(|(_, entry)| !entry.is_untracked())
            .count()
    }

    /// Returns the paths that are not synchronized, without those that a rule ignores.
    pub(crate) fn untracked(&self) -> impl Iterator<Item = &RelPath> {
        let named = |entry: &Entry| match entry {
            Entry::Untracked(reason) => *reason != Reason::Ignored,
            _ => false,
        };
        self.iter()
            .filter(move |(_, entry)| named(entry))
            .map(|(path, _)| path)
    }

    /// Checks what a peer could have made up: entries whose parent is no folder, and links that lead out.
    ///
    /// # Errors
    ///
    /// The first path that cannot be.
    pub fn check(&self) -> Result<(), RelPath> {
        for (path, entry) in self.iter() {
            let orphan = path
                .parent()
                .is_some_and(|parent| self.entry(&parent) != Some(&Entry::Directory));
            let escapes = match entry {
                Entry::Symlink { target } => !portable_target(path.depth(), target),
                _ => false,
            };
            if orphan || escapes {
                return Err(path.clone());
            }
        }
        Ok(())
    }

    /// Checks what [`Tree::check`] does where only `changed` was not checked before.
    pub(crate) fn check_at<'a>(
        &self,
        changed: impl IntoIterator<Item = &'a RelPath>,
    ) -> Result<(), RelPath> {
        for path in changed {
            let within = || self.whole(path).take(2);
            let orphan = |path: &RelPath| {
                let parent = path.parent();
                parent.is_some_and(|parent| self.entry(&parent) != Some(&Entry::Directory))
            };
            // What is there and the first thing beneath it: both need a folder above them.
            if let Some((path, _)) = within().find(|(path, _)| orphan(path)) {
                return Err(path.clone());
            }
            if let Some(Entry::Symlink { target }) = self.entry(path)
                && !portable_target(path.depth(), target)
            {
                return Err(path.clone());
            }
        }
        Ok(())
    }

    /// Returns what turns `self` into `newer`, one change per path, in order.
    pub fn changes_to<'a>(
        &'a self,
        newer: &'a Self,
    ) -> impl Iterator<Item = (&'a RelPath, Option<&'a Entry>)> {
        let (mut old, mut new) = (self.iter().peekable(), newer.iter().peekable());
        std::iter::from_fn(move || {
            loop {
                let (Some((before, _)), Some((now, _))) = (old.peek(), new.peek()) else {
                    let set = new.next().map(|(path, entry)| (path, Some(entry)));
                    return set.or_else(|| old.next().map(|(path, _)| (path, None)));
                };
                match before.cmp(now) {
                    Ordering::Less => return old.next().map(|(path, _)| (path, None)),
                    Ordering::Greater => {
                        return new.next().map(|(path, entry)| (path, Some(entry)));
                    }
                    Ordering::Equal => {}
                }
                let ((_, before), (path, now)) = (old.next()?, new.next()?);
                if before != now {
                    return Some((path, Some(now)));
                }
            }
        })
    }
}

impl FromIterator<(RelPath, Entry)> for Tree {
    fn from_iter<I: IntoIterator<Item = (RelPath, Entry)>>(entries: I) -> Self {
        let items = entries.into_iter();
        Self(items.map(|(path, entry)| Item::new(path, entry)).collect())
    }
}

/// As many at once they take half the memory that one after the other would.
impl FromIterator<Item> for Tree {
    fn from_iter<I: IntoIterator<Item = Item>>(items: I) -> Self {
        Self(items.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s30_s31_only_links_that_stay_inside_are_portable() {
        for (depth, target, portable) in [
            (1, "a", true),
            (1, "a/b", true),
            (1, "./a", true),
            (2, "..", true),
            (3, "../../a", true),
            (1, "..", false),
            (2, "../..", false),
            (3, "./../../..", false),
            (2, "a/..", false),
            (4, "a/../..", false),
            (1, "/etc/passwd", false),
            (1, "", false),
            (1, "a\0b", false),
        ] {
            assert_eq!(
                portable_target(depth, target.as_bytes()),
                portable,
                "{target} at depth {depth}"
            );
        }
    }

    #[test]
    fn s34_a_child_of_a_file_is_refused() {
        let path = |p: &str| RelPath::new(p).unwrap();
        let file = Entry::File {
            digest: Digest::of(b""),
            size: 0,
            executable: false,
        };
        let tree: Tree = [(path("a"), file.clone()), (path("a/b"), file.clone())]
            .into_iter()
            .collect();
        assert_eq!(tree.check(), Err(path("a/b")));
        let tree: Tree = [(path("x/y"), file)].into_iter().collect();
        assert_eq!(tree.check(), Err(path("x/y")));
    }

    #[test]
    fn the_children_of_a_folder_come_without_what_is_deeper() {
        let names = [
            "a", "a/b", "a/b/c", "a/b\x01", "a/b-", "a\x01", "a-b", "a-b/x", "z",
        ];
        let path = |p: &str| RelPath::new(p).unwrap();
        let tree: Tree = names
            .map(|p| (path(p), Entry::Directory))
            .into_iter()
            .collect();
        let children = |folder: Option<RelPath>| {
            let names = tree
                .children(folder.as_ref())
                .map(|item| item.path().as_bytes().to_vec());
            names
                .map(|name| String::from_utf8(name).unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(children(None), ["a", "a\x01", "a-b", "z"]);
        assert_eq!(children(Some(path("a"))), ["a/b", "a/b\x01", "a/b-"]);
        assert_eq!(children(Some(path("a/b"))), ["a/b/c"]);
        assert!(children(Some(path("z"))).is_empty());
    }

    #[test]
    fn what_trees_agree_on_is_held_once() {
        let path = RelPath::new("a").unwrap();
        let one = |entry: Entry| Tree::from_iter([(path.clone(), entry)]);
        let (mut own, same) = (one(Entry::Directory), one(Entry::Directory));
        own.share(&same, &path);
        assert!(own.item(&path).unwrap().is(same.item(&path).unwrap()));
        let other = one(Entry::Untracked(Reason::Special));
        own.share(&other, &path);
        assert_eq!(own.entry(&path), Some(&Entry::Directory));
    }

    #[test]
    fn changes_lead_from_one_tree_to_the_other() {
        let path = |p: &str| RelPath::new(p).unwrap();
        let old: Tree = [(path("a"), Entry::Directory), (path("b"), Entry::Directory)]
            .into_iter()
            .collect();
        let new: Tree = [(path("b"), Entry::Directory), (path("c"), Entry::Directory)]
            .into_iter()
            .collect();
        let mut patched = old.clone();
        for (path, entry) in old.changes_to(&new) {
            patched.set(path.clone(), entry.cloned());
        }
        assert_eq!(patched, new);
    }
}
