//! From the file system to a [`Tree`].
//!
//! A whole scan [walks](walk) the root and asks for the facts of every name; contents are read only where the
//! facts (device, inode, size, mode, both times) differ from the last scan's. The tree itself remembers them,
//! as a fingerprint under a key of the scanner: a tenth of their size. A guest that found two sets of facts
//! with one fingerprint could hide a change of its own, and nothing else. A file that was changed
//! within [`RACY`] of being looked at is read again the next time: a second edit within the clock's
//! resolution leaves the facts as they were (`S25`). Between two whole scans, what a [watch](crate::watch)
//! calls dirty is looked at in the same way, and only that; each folder is watched before it is read.
//!
//! What cannot be read, is no file, folder or link, or lies on another file system becomes
//! [`Entry::Untracked`], never an absence: an absence would be a deletion.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::hash::RandomState;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FileType, Mode, OFlags};

use crate::path::RelPath;
use crate::root::{DIRECTORY, Facts, Root};
use crate::rules::{Flow, Rules};
use crate::tree::{Digest, Entry, Reason, Tree, portable_target};
use crate::watch::{Depth, Dirt, Watch};

mod listed;
mod names;
mod walk;

use listed::Listed;
use walk::{Child, Task, Walk, Worker};

/// How long after a change the same facts may still mean other contents: the coarsest file systems in use
/// (FAT, HFS+) count in steps of two seconds.
const RACY: Duration = Duration::from_secs(2);
/// How much of a file is in memory at a time.
pub(crate) const BUFFER: usize = 128 * 1024;

/// What bounds a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) entries: usize,
    pub(crate) file_bytes: u64,
}

impl Bounds {
    fn exceeded(self) -> io::Error {
        let reason = format!("more than {} entries", self.entries);
        io::Error::new(io::ErrorKind::QuotaExceeded, reason)
    }
}

/// What a scan found that is not what it was.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    /// The paths, in order.
    pub(crate) paths: Vec<RelPath>,
    /// Those of them where a repository keeps its objects and nothing was before.
    pub(crate) new: HashSet<RelPath>,
}

/// Scans one root again and again, under the same rules.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
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
    /// What was put in place since the last scan, known by its facts right afterwards.
    pub(crate) made: &'a Tree,
}

impl Scanner {
    /// Makes a scanner that has `watch` watch what it reads.
    pub(crate) fn watching(watch: Arc<Watch>) -> Self {
        Self {
            watch: Some(watch),
            ..Self::default()
        }
    }

    /// Returns what to know a file by that was just put in place and given its time: whoever writes to it later
    /// gives it another one. None where it is not what it should be.
    pub(crate) fn memo_of(&self, entry: &Entry, facts: &Facts) -> Option<u64> {
        let is_executable = facts.is_executable();
        let is_entry =
            matches!(entry, Entry::File { executable, .. } if *executable == is_executable);
        is_entry.then(|| facts.fingerprint(&self.key))
    }

    /// Looks at everything and brings `tree`, which this scanner found before or which is empty, up to
    /// date.
    ///
    /// # Errors
    ///
    /// When the root itself cannot be read, or holds more than the bounds allow; `tree` stays as it was.
    pub(crate) fn scan(&self, place: Place<'_>, tree: &mut Arc<Tree>) -> io::Result<Changed> {
        let mut worker = Worker::default();
        let (path, flow) = (None, Flow::Both);
        worker.below.push(Task { path, flow });
        let found = self.walk(place, tree).run(worker)?;
        Ok(match found.is_nothing() {
            true => Changed::default(),
            false => found.settle(Arc::make_mut(tree)),
        })
    }

    /// Brings `tree` up to date where it is dirty.
    ///
    /// # Errors
    ///
    /// As [`Scanner::scan`], but that `tree` may say a part of what is too much.
    pub(crate) fn look(
        &self,
        place: Place<'_>,
        (tree, dirt): (&mut Arc<Tree>, BTreeMap<RelPath, Depth>),
    ) -> io::Result<Changed> {
        let mut listed = Listed::of(place.root);
        let dirt = match &mut listed {
            Some(listed) => listed.with_others(dirt, tree),
            None => dirt,
        };
        let walk = self.walk(place, tree);
        let mut look = Look {
            walk: &walk,
            listed,
            worker: Worker::default(),
            looked: HashSet::new(),
            above: None,
            folders: Vec::new(),
        };
        for (path, depth) in Dirt::tops(dirt) {
            look.at(visible(tree, path, depth))?;
        }
        let (worker, folders) = (look.worker, look.folders);
        let found = walk.run(worker)?;
        if found.is_nothing() {
            return Ok(Changed::default());
        }
        let changed = found.settle(Arc::make_mut(tree));
        let is_folder = |path: &RelPath| tree.entry(path).is_some_and(Entry::is_directory);
        if let Some(watch) = &self.watch {
            for path in folders.iter().filter(|path| !is_folder(path)) {
                watch.forget(path);
            }
        }
        match tree.len() > place.bounds.entries {
            true => Err(place.bounds.exceeded()),
            false => Ok(changed),
        }
    }

    fn walk<'a>(&'a self, place: Place<'a>, known: &'a Tree) -> Walk<'a> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Walk {
            place,
            known,
            key: &self.key,
            watch: self.watch.as_deref(),
            now: now.unwrap_or_default(),
            count: AtomicUsize::new(0),
        }
    }
}

/// A look at single paths.
struct Look<'a> {
    walk: &'a Walk<'a>,
    /// What is there, where a look-up does not tell.
    listed: Option<Listed<'a>>,
    worker: Worker,
    looked: HashSet<RelPath>,
    /// The folder that was opened last; neighbours are looked at one after the other.
    above: Option<(Task, OwnedFd)>,
    /// What was a folder before.
    folders: Vec<RelPath>,
}

impl Look<'_> {
    /// Looks at one path and has the folders there looked at later.
    fn at(&mut self, (path, depth): (RelPath, Depth)) -> io::Result<()> {
        let parent = path.parent();
        let (above, folder) = match self.above.take() {
            Some(open) if open.0.path == parent => open,
            _ => match (self.folder(parent.as_ref()), &parent) {
                (Ok(folder), _) => (self.task(parent), folder),
                (Err(error), None) => return Err(error),
                // Something took the place of the folder, or it cannot be entered.
                (Err(_), Some(parent)) => match self.looked.insert(parent.clone()) {
                    true => return self.at((parent.clone(), Depth::Beneath)),
                    false => return Ok(()),
                },
            },
        };
        let item = self.walk.known.item(&path);
        let was_folder = item.is_some_and(|item| item.entry().is_directory());
        let facts = match self.is_there(&path) {
            true => Facts::at(&folder, path.name()),
            false => Ok(None),
        };
        let is_folder = matches!(&facts, Ok(Some(facts)) if facts.kind == FileType::Directory);
        if !(depth == Depth::Name && was_folder && is_folder) {
            let child = Child {
                folder: &folder,
                above: &above,
                name: path.name(),
                item,
            };
            match facts {
                // The name did not come from a listing: what a rule says about it matters only if it is there.
                Ok(None) => child.is(None, (0, &mut self.worker.found)),
                Ok(Some(facts)) => self.walk.child(&child, facts.kind, &mut self.worker),
                Err(_) => self.walk.child(&child, FileType::Unknown, &mut self.worker),
            }
            if was_folder {
                self.folders.push(path);
            }
        }
        self.above = Some((above, folder));
        Ok(())
    }

    fn is_there(&mut self, path: &RelPath) -> bool {
        let listed = self.listed.as_mut();
        listed.is_none_or(|listed| listed.is_there(path))
    }

    /// Opens a folder that has just this name.
    fn folder(&mut self, path: Option<&RelPath>) -> io::Result<OwnedFd> {
        match path {
            Some(path) if !self.is_there(path) => Err(io::ErrorKind::NotFound.into()),
            _ => self.walk.place.root.directory(path),
        }
    }

    fn task(&self, path: Option<RelPath>) -> Task {
        let flow = |path| self.walk.place.rules.walk().flow(path);
        let flow = path.as_ref().map_or(Flow::Both, flow);
        Task { path, flow }
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
            let (digest, size) = hash(&mut file, facts.size, &mut Vec::new())?;
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

/// Returns the names in a folder, in the order of their bytes.
pub(crate) fn names(folder: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = names::Names::default();
    // A descriptor of its own, which reads from the beginning.
    names.read(&rustix::fs::openat(folder, ".", DIRECTORY, Mode::empty())?)?;
    Ok(names.iter().map(|(name, _)| name.to_vec()).collect())
}

/// Reads a file through, which is about `size` bytes long, by way of `buffer`.
fn hash(file: &mut File, size: u64, buffer: &mut Vec<u8>) -> io::Result<(Digest, u64)> {
    // Room for one more byte shows whether there is more.
    let length = usize::try_from(size).map_or(BUFFER, |size| size.saturating_add(1).min(BUFFER));
    if buffer.len() < length {
        buffer.resize(length, 0);
    }
    let buffer = &mut buffer[..length];
    let mut read = file.read(buffer)?;
    if read < length && read as u64 == size {
        // Most files end here.
        return Ok((Digest::of(&buffer[..read]), size));
    }
    let mut hasher = blake3::Hasher::new();
    while read > 0 {
        hasher.update(&buffer[..read]);
        read = file.read(buffer)?;
    }
    Ok((hasher.finalize().into(), hasher.count()))
}

#[cfg(test)]
mod tests {
    use super::walk::ALONE;
    use super::*;
    use crate::rules::Lists;

    fn scan(scanner: &Scanner, root: &Root, entries: usize) -> io::Result<Tree> {
        let mut tree = Arc::default();
        scan_again(scanner, (root, entries), &mut tree)?;
        Ok((*tree).clone())
    }

    fn scan_again(
        scanner: &Scanner,
        (root, entries): (&Root, usize),
        tree: &mut Arc<Tree>,
    ) -> io::Result<Vec<RelPath>> {
        let rules = &Rules::new(&Lists::default()).unwrap();
        let bounds = Bounds {
            entries,
            file_bytes: 100,
        };
        let place = Place {
            root,
            rules,
            bounds,
            made: &Tree::default(),
        };
        Ok(scanner.scan(place, tree)?.paths)
    }

    #[test]
    fn s25_a_file_that_was_just_changed_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a"), "now").unwrap();
        let root = Root::open(folder.path()).unwrap();
        let scanner = Scanner::default();
        let first = scan(&scanner, &root, 10).unwrap();
        // As if it had been written twice within one step of the clock, and read in between.
        let path = RelPath::new("a").unwrap();
        let before = Entry::File {
            digest: Digest::of(b"old"),
            size: 3,
            executable: false,
        };
        let item = crate::tree::Item::new(path.clone(), before);
        item.remember(first.item(&path).unwrap().memo());
        let mut tree = Arc::new(Tree::from_iter([item]));
        let changed = scan_again(&scanner, (&root, 10), &mut tree).unwrap();
        assert_eq!((*tree == first, changed), (true, vec![path]));
    }

    /// What is beneath a folder, read by one thread and in the plainest way.
    fn plainly(folder: &std::path::Path, beneath: &str, found: &mut Tree) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{beneath}{}", entry.file_name().to_str().unwrap());
            let what = if entry.file_type().unwrap().is_dir() {
                plainly(&entry.path(), &format!("{path}/"), found);
                Entry::Directory
            } else {
                let bytes = std::fs::read(entry.path()).unwrap();
                Entry::File {
                    digest: Digest::of(&bytes),
                    size: bytes.len() as u64,
                    executable: false,
                }
            };
            found.set(RelPath::new(path).unwrap(), Some(what));
        }
    }

    #[test]
    fn several_threads_find_what_one_does_and_tell_what_changed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: String| folder.path().join(name);
        for number in 0..40 * ALONE {
            let within = at(format!("{}/{}/{number}", number % 3, number % 7));
            std::fs::create_dir_all(&within).unwrap();
            for name in ["a", "b", "c"] {
                std::fs::write(within.join(name), format!("{name}{number}")).unwrap();
            }
        }
        let root = Root::open(folder.path()).unwrap();
        let (scanner, mut tree) = (Scanner::default(), Arc::default());
        let all = scan_again(&scanner, (&root, 10_000), &mut tree).unwrap();
        assert!(all.is_sorted() && all.len() == tree.len());
        for number in (0..40 * ALONE).step_by(5) {
            let within = at(format!("{}/{}/{number}", number % 3, number % 7));
            match number % 4 {
                0 => std::fs::write(within.join("b"), "other").unwrap(),
                1 => std::fs::remove_dir_all(&within).unwrap(),
                2 => std::fs::create_dir(within.join("d")).unwrap(),
                _ => {
                    std::fs::remove_dir_all(&within).unwrap();
                    std::fs::write(within, "a file now").unwrap();
                }
            }
        }
        let (before, mut after) = (tree.clone(), Tree::default());
        let changed = scan_again(&scanner, (&root, 10_000), &mut tree).unwrap();
        plainly(folder.path(), "", &mut after);
        assert!(*tree == after);
        let expected: Vec<_> = before
            .changes_to(&after)
            .map(|(path, _)| path.clone())
            .collect();
        assert_eq!(changed, expected);
        assert!(
            scan_again(&scanner, (&root, 10_000), &mut tree)
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn s40_too_many_entries_and_too_long_files_are_told() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("long"), vec![0; 101]).unwrap();
        std::fs::write(folder.path().join("short"), "x").unwrap();
        let root = Root::open(folder.path()).unwrap();
        let tree = scan(&Scanner::default(), &root, 2).unwrap();
        let long = RelPath::new("long").unwrap();
        assert_eq!(tree.entry(&long), Some(&Entry::Untracked(Reason::TooLarge)));
        let error = scan(&Scanner::default(), &root, 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
    }
}
