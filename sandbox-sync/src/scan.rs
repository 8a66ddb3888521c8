//! From the file system to a [`Tree`].
//!
//! A whole scan walks the root and asks for the facts of every name; contents are read only where the
//! facts (device, inode, size, mode, both times) differ from the last scan's. A file that was changed
//! within [`RACY`] of being looked at is read again the next time: a second edit within the clock's
//! resolution leaves the facts as they were (`S25`). Between two whole scans, what a [watch](crate::watch)
//! calls dirty is looked at in the same way, and only that; each folder is watched before it is read.
//!
//! What cannot be read, is no file, folder or link, or lies on another file system becomes
//! [`Entry::Untracked`], never an absence: an absence would be a deletion.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::hash::RandomState;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::path::RelPath;
use crate::root::{DIRECTORY, Facts, Root};
use crate::rules::{Flow, Rules};
use crate::tree::{Digest, Entry, Reason, Tree, portable_target};
use crate::watch::{Depth, Dirt, Watch};

/// How long after a change the same facts may still mean other contents: the coarsest file systems in use
/// (FAT, HFS+) count in steps of two seconds.
const RACY: Duration = Duration::from_secs(2);
/// How much of a file is in memory at a time.
pub(crate) const BUFFER: usize = 128 * 1024;

/// What bounds a scan.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) entries: usize,
    pub(crate) file_bytes: u64,
}

/// Scans one root again and again, remembering digests.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    known: HashMap<RelPath, Known>,
    /// The key of the fingerprints.
    key: RandomState,
    watch: Option<Arc<Watch>>,
}

/// A root and what governs its scans.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) root: &'a Root,
    pub(crate) rules: &'a Rules,
    pub(crate) bounds: Bounds,
}

/// What a scan remembers of a file.
#[derive(Debug, Clone, Copy)]
struct Known {
    /// A fingerprint of its facts, under a key of this scanner: a tenth of their size. A guest that found two
    /// sets of facts with one fingerprint could hide a change of its own, and nothing else.
    facts: u64,
    digest: Digest,
    racy: bool,
}

impl Scanner {
    /// Makes a scanner that has `watch` watch what it reads.
    pub(crate) fn watching(watch: Arc<Watch>) -> Self {
        Self {
            watch: Some(watch),
            ..Self::default()
        }
    }

    /// Returns what is in the root now.
    ///
    /// # Errors
    ///
    /// When the root itself cannot be read, or holds more than `bounds` allow.
    pub(crate) fn scan(&mut self, root: &Root, rules: &Rules, bounds: Bounds) -> io::Result<Tree> {
        let mut walk = self.walk(Place {
            root,
            rules,
            bounds,
        });
        walk.seen.reserve(self.known.len());
        walk.folder(&root.directory(None)?, None, Flow::Both)?;
        let Walk { seen, tree, .. } = walk;
        self.known = seen;
        Ok(tree)
    }

    /// Brings `tree`, which an earlier scan found, up to date where it is dirty. Returns the paths that
    /// are not what they were.
    ///
    /// # Errors
    ///
    /// As [`Scanner::scan`]; what `tree` and the scanner hold is of no use then.
    pub(crate) fn look(
        &mut self,
        place: Place<'_>,
        (tree, dirt): (&mut Tree, BTreeMap<RelPath, Depth>),
    ) -> io::Result<Vec<RelPath>> {
        let mut changed = Vec::new();
        for (path, depth) in Dirt::tops(dirt) {
            let (path, depth) = visible(tree, path, depth);
            self.look_at(place, tree, (path, depth, &mut changed))?;
        }
        Ok(changed)
    }

    fn look_at(
        &mut self,
        place: Place<'_>,
        tree: &mut Tree,
        (path, depth, changed): (RelPath, Depth, &mut Vec<RelPath>),
    ) -> io::Result<()> {
        let folder = match (place.root.parent_of(&path), path.parent()) {
            (Ok(folder), _) => folder,
            (Err(error), None) => return Err(error),
            // Something took the place of the folder, or it cannot be entered.
            (Err(_), Some(parent)) => {
                return self.look_at(place, tree, (parent, Depth::Beneath, changed));
            }
        };
        let was_folder = tree.entry(&path).is_some_and(Entry::is_directory);
        let facts = Facts::at(&folder, path.name());
        let is_folder = |facts: &Facts| facts.kind == FileType::Directory;
        let still_folder = was_folder && matches!(&facts, Ok(Some(facts)) if is_folder(facts));
        if depth == Depth::Name && still_folder {
            return Ok(());
        }
        let old: Tree = tree
            .whole(&path)
            .map(|(path, entry)| (path.clone(), entry.clone()))
            .collect();
        let others = tree.len() - old.len();
        let mut walk = self.walk(place);
        walk.bounds.entries = place.bounds.entries.saturating_sub(others);
        let flow = place.rules.walk().flow(&path);
        // The name did not come from a listing: what a rule says about it matters only if it is there.
        if !matches!(facts, Ok(None))
            && let Some(entry) = walk.entry(&folder, &path, flow)?
        {
            walk.tree.set(path.clone(), Some(entry));
        }
        if walk.tree.len() > walk.bounds.entries {
            return Err(too_many(place.bounds));
        }
        let Walk {
            seen, tree: new, ..
        } = walk;
        for (path, _) in old.iter() {
            self.known.remove(path);
        }
        self.known.extend(seen);
        for (path, entry) in old.changes_to(&new) {
            tree.set(path.clone(), entry.cloned());
            changed.push(path.clone());
        }
        if let Some(watch) = &self.watch
            && was_folder
            && !new.entry(&path).is_some_and(Entry::is_directory)
        {
            watch.forget(&path);
        }
        Ok(())
    }

    fn walk<'a>(&'a self, place: Place<'a>) -> Walk<'a> {
        Walk {
            root: place.root,
            rules: place.rules,
            bounds: place.bounds,
            known: &self.known,
            key: &self.key,
            watch: self.watch.as_deref(),
            seen: HashMap::new(),
            tree: Tree::default(),
            now: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
        }
    }
}

/// Returns `path`, or what is above it where the tree does not have all the folders that lead to it.
fn visible(tree: &Tree, path: RelPath, depth: Depth) -> (RelPath, Depth) {
    let mut above = path.parent();
    let mut found = (path, depth);
    while let Some(folder) = above {
        above = folder.parent();
        if !tree.entry(&folder).is_some_and(Entry::is_directory) {
            found = (folder, Depth::Beneath);
        }
    }
    found
}

fn too_many(bounds: Bounds) -> io::Error {
    let reason = format!("more than {} entries", bounds.entries);
    io::Error::new(io::ErrorKind::QuotaExceeded, reason)
}

struct Walk<'a> {
    root: &'a Root,
    rules: &'a Rules,
    bounds: Bounds,
    known: &'a HashMap<RelPath, Known>,
    key: &'a RandomState,
    watch: Option<&'a Watch>,
    seen: HashMap<RelPath, Known>,
    tree: Tree,
    now: Duration,
}

impl Walk<'_> {
    /// Reads one folder and everything beneath it; the depth of paths bounds the recursion.
    fn folder(&mut self, folder: &OwnedFd, path: Option<&RelPath>, flow: Flow) -> io::Result<()> {
        // First the watch: what changes while the names are read makes an event (`S23`).
        if let Some(watch) = self.watch {
            watch.add(folder, path);
        }
        for name in names(folder)? {
            if self.tree.len() >= self.bounds.entries {
                return Err(too_many(self.bounds));
            }
            // The name came from the kernel: the only way to fail is to be too long or too deep, and
            // then the whole folder stays on its side, since the name alone cannot be said.
            let Ok(child) = RelPath::join(path, &name) else {
                return Err(Errno::NAMETOOLONG.into());
            };
            let flow = self.rules.flow_in(flow, &child);
            if let Some(entry) = self.entry(folder, &child, flow)? {
                self.tree.set(child, Some(entry));
            }
        }
        Ok(())
    }

    /// Returns what `path` is, having put what is beneath it into the tree.
    fn entry(&mut self, folder: &OwnedFd, path: &RelPath, flow: Flow) -> io::Result<Option<Entry>> {
        match flow {
            Flow::Ignored => return Ok(Some(Entry::Untracked(Reason::Ignored))),
            Flow::Masked => return Ok(Some(Entry::Untracked(Reason::Masked))),
            _ => {}
        }
        let facts = match Facts::at(folder, path.name()) {
            Ok(Some(facts)) => facts,
            // Gone between the listing and now.
            Ok(None) => return Ok(None),
            Err(_) => return Ok(Some(Entry::Untracked(Reason::Unreadable))),
        };
        let entry = match facts.kind {
            // Only folders tell: overlayfs gives files the device of the layer that they lie in.
            FileType::Directory if facts.device != self.root.device() => {
                Ok(Entry::Untracked(Reason::OtherFilesystem))
            }
            FileType::Directory => return self.enter(folder, path, flow),
            FileType::RegularFile if facts.size > self.bounds.file_bytes => {
                Ok(Entry::Untracked(Reason::TooLarge))
            }
            FileType::RegularFile => self.file(folder, path, facts),
            FileType::Symlink => symlink(folder, path),
            _ => Ok(Entry::Untracked(Reason::Special)),
        };
        match entry {
            Ok(entry) => Ok(Some(entry)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(_) => Ok(Some(Entry::Untracked(Reason::Unreadable))),
        }
    }

    fn enter(&mut self, folder: &OwnedFd, path: &RelPath, flow: Flow) -> io::Result<Option<Entry>> {
        let result = rustix::fs::openat(folder, path.name(), DIRECTORY, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|child| self.folder(&child, Some(path), flow));
        match result {
            Ok(()) => Ok(Some(Entry::Directory)),
            Err(error) if error.kind() == io::ErrorKind::QuotaExceeded => Err(error),
            Err(error) => {
                self.tree.remove_beneath(path);
                let gone = error.kind() == io::ErrorKind::NotFound;
                let too_long = error.raw_os_error() == Some(Errno::NAMETOOLONG.raw_os_error());
                let reason = if too_long {
                    Reason::NameTooLong
                } else {
                    Reason::Unreadable
                };
                Ok((!gone).then_some(Entry::Untracked(reason)))
            }
        }
    }

    fn file(&mut self, folder: &OwnedFd, path: &RelPath, facts: Facts) -> io::Result<Entry> {
        let known = self
            .known
            .get(path)
            .filter(|known| !known.racy && known.facts == facts.fingerprint(self.key));
        let (facts, digest) = match known {
            Some(known) => (facts, known.digest),
            None => {
                let (mut file, facts) = open_file(folder, path.name())?;
                let (digest, size) = hash(&mut file, facts.size)?;
                (Facts { size, ..facts }, digest)
            }
        };
        let changed = Duration::new(u64::try_from(facts.changed.0).unwrap_or(0), facts.changed.1);
        let racy = changed + RACY >= self.now;
        self.seen.insert(
            path.clone(),
            Known {
                facts: facts.fingerprint(self.key),
                digest,
                racy,
            },
        );
        Ok(Entry::File {
            digest,
            size: facts.size,
            executable: facts.is_executable(),
        })
    }
}

/// Returns what is at `name` in `folder` now, reading it through; `None` where there is nothing.
///
/// What is in a folder is not looked at.
pub(crate) fn observe(folder: &OwnedFd, name: &[u8], path: &RelPath) -> io::Result<Option<Entry>> {
    let Some(facts) = Facts::at(folder, name)? else {
        return Ok(None);
    };
    Ok(Some(match facts.kind {
        FileType::Directory => Entry::Directory,
        FileType::RegularFile => {
            let (mut file, facts) = open_file(folder, name)?;
            let (digest, size) = hash(&mut file, facts.size)?;
            let executable = facts.is_executable();
            Entry::File {
                digest,
                size,
                executable,
            }
        }
        FileType::Symlink => read_link(folder, name, path)?,
        _ => Entry::Untracked(Reason::Special),
    }))
}

/// Opens a regular file for reading; a FIFO in its place neither blocks nor opens.
pub(crate) fn open_file(folder: &OwnedFd, name: &[u8]) -> io::Result<(File, Facts)> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, name, flags, Mode::empty())?;
    let facts = Facts::new(&rustix::fs::fstat(&file)?);
    match facts.kind {
        FileType::RegularFile => Ok((File::from(file), facts)),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "no longer a regular file",
        )),
    }
}

fn symlink(folder: &OwnedFd, path: &RelPath) -> io::Result<Entry> {
    read_link(folder, path.name(), path)
}

fn read_link(folder: &OwnedFd, name: &[u8], path: &RelPath) -> io::Result<Entry> {
    let target = rustix::fs::readlinkat(folder, name, Vec::new())?.into_bytes();
    Ok(if portable_target(path.depth(), &target) {
        Entry::Symlink {
            target: target.into(),
        }
    } else {
        Entry::Untracked(Reason::EscapingSymlink)
    })
}

/// Returns the names in a folder, in no order.
pub(crate) fn names(folder: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        match entry.file_name().to_bytes() {
            b"." | b".." => {}
            name => names.push(name.to_vec()),
        }
    }
    Ok(names)
}

/// Reads a file through, which is about `size` bytes long.
fn hash(file: &mut File, size: u64) -> io::Result<(Digest, u64)> {
    let mut hasher = blake3::Hasher::new();
    // Most files are short: a large buffer for each of them costs more than reading it does.
    let length = usize::try_from(size).map_or(BUFFER, |size| size.saturating_add(1).min(BUFFER));
    let mut buffer = vec![0; length];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((hasher.finalize().into(), hasher.count())),
            read => drop(hasher.update(&buffer[..read])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Lists;

    fn scan(scanner: &mut Scanner, root: &Root, entries: usize) -> io::Result<Tree> {
        let rules = Rules::new(&Lists::default()).unwrap();
        let bounds = Bounds {
            entries,
            file_bytes: 100,
        };
        scanner.scan(root, &rules, bounds)
    }

    #[test]
    fn s25_a_file_that_was_just_changed_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a"), "now").unwrap();
        let root = Root::open(folder.path()).unwrap();
        let mut scanner = Scanner::default();
        let first = scan(&mut scanner, &root, 10).unwrap();
        // As if it had been written twice within one step of the clock, and read in between.
        for known in scanner.known.values_mut() {
            known.digest = Digest::of(b"before");
        }
        assert_eq!(scan(&mut scanner, &root, 10).unwrap(), first);
    }

    #[test]
    fn s40_too_many_entries_and_too_long_files_are_told() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("long"), vec![0; 101]).unwrap();
        std::fs::write(folder.path().join("short"), "x").unwrap();
        let root = Root::open(folder.path()).unwrap();
        let tree = scan(&mut Scanner::default(), &root, 2).unwrap();
        let long = RelPath::new("long").unwrap();
        assert_eq!(tree.entry(&long), Some(&Entry::Untracked(Reason::TooLarge)));
        let error = scan(&mut Scanner::default(), &root, 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
    }
}
