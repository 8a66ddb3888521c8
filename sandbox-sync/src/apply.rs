//! Carries out operations on one root, beneath it, one rename at a time.
//!
//! Each path is old or new, never mixed, and what was not seen by the scan is never overwritten:
//!
//! - something new is renamed into place with `RENAME_NOREPLACE` (`S15`);
//! - a replacement is *exchanged* with what is there (`RENAME_EXCHANGE`), what came out is read and compared
//!   with what the scan had found, and swapped back where it differs (`S14`);
//! - a removal moves the thing out first, and back where it differs;
//! - a folder is removed only by `rmdir`, so one that holds anything else stays (`S28`).
//!
//! Folders and contents come first, parents before children, git's objects before everything and its refs
//! after everything; removals come last, deepest first. If an object of a repository could not be put in
//! place, no ref is moved and nothing of any repository is removed in that run (`S42`). Beneath a folder that
//! could not be made nothing is done: its name may lead into another one (`GIT~1` into `.git`). File systems
//! without the two rename flags get a check and a plain rename, which leaves a window between the two.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, RenameFlags};
use rustix::io::Errno;

use crate::path::RelPath;
use crate::reconcile::Op;
use crate::root::{Facts, Root};
use crate::scan::observe;
use crate::stage::{Ready, Staging, flush_filesystem};
use crate::tree::Entry;

mod turn;

use turn::{Turned, Turns};

/// Up to this many folders are flushed one by one.
const FLUSH_EACH: usize = 8;

/// Why one operation was not carried out; the path is as it was.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// What is there is not what the scan saw.
    Changed,
    /// A folder holds something that is not synchronized or is new.
    NotEmpty,
    /// Something before it in the same repository failed.
    Postponed,
    /// The new contents never arrived.
    NoContents(String),
    Io(io::Error),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed => f.write_str("it was changed meanwhile"),
            Self::NotEmpty => {
                f.write_str("the folder holds something that is new or not synchronized")
            }
            Self::Postponed => f.write_str("postponed: an object of the repository is missing"),
            Self::NoContents(reason) => write!(f, "the contents did not arrive: {reason}"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::DirectoryNotEmpty => Self::NotEmpty,
            io::ErrorKind::AlreadyExists => Self::Changed,
            _ => Self::Io(error),
        }
    }
}

impl From<Errno> for Refusal {
    fn from(error: Errno) -> Self {
        io::Error::from(error).into()
    }
}

/// The staged file of each operation that has one, or why it has none.
pub(crate) type Staged = HashMap<usize, Result<Ready, String>>;

/// What came of each operation, in their order: for a file that is in place, what it is known by.
pub(crate) type Outcomes = Vec<Result<Option<Facts>, Refusal>>;

/// Carries out `ops` and makes them durable; one answer per operation.
pub(crate) fn apply(
    root: &Root,
    staging: &mut Staging,
    ops: &[Op],
    staged: &Staged,
) -> io::Result<Outcomes> {
    let mut applier = Applier {
        root,
        staging,
        touched: BTreeSet::new(),
        folder: None,
        turned: Turned::default(),
    };
    let turns = Turns::of(ops, root.names().folding);
    let mut without = BTreeSet::new();
    let mut results: Vec<_> = ops.iter().map(|_| Err(Refusal::Postponed)).collect();
    let mut object_missing = false;
    for index in order(ops) {
        let op = &ops[index];
        let part = GitPart::of(&op.path);
        let removes = op.new.is_none() && part != GitPart::Outside;
        if object_missing && (part == GitPart::Refs || removes) {
            continue;
        }
        if turns.is_removal(index) || is_beneath(&op.path, &without) {
            continue;
        }
        results[index] = match turns.removal(index) {
            Some(removal) => applier.turn((&ops[removal], op), staged.get(&index), index),
            None => applier.carry_out(op, staged.get(&index)),
        };
        if let Some(removal) = turns.removal(index) {
            results[removal] = match &results[index] {
                Ok(_) => Ok(None),
                Err(_) => Err(Refusal::Postponed),
            };
            without.extend(results[index].is_err().then(|| ops[removal].path.clone()));
        }
        let makes_folder = op.new.as_ref().is_some_and(Entry::is_directory);
        if makes_folder && results[index].is_err() {
            without.insert(op.path.clone());
        }
        object_missing |= part == GitPart::Objects && results[index].is_err() && op.new.is_some();
    }
    for index in applier.not_turned() {
        results[index] = Err(Refusal::Changed);
        if let Some(removal) = turns.removal(index) {
            results[removal] = Err(Refusal::Changed);
        }
    }
    applier.flush()?;
    Ok(results)
}

/// Tells whether a path lies beneath one of the folders.
fn is_beneath(path: &RelPath, folders: &BTreeSet<RelPath>) -> bool {
    !folders.is_empty()
        && std::iter::successors(path.parent(), RelPath::parent)
            .any(|above| folders.contains(&above))
}

/// Returns the indexes of `ops` in the order in which they are carried out.
fn order(ops: &[Op]) -> Vec<usize> {
    let is_directory = |entry: &Option<Entry>| entry.as_ref().is_some_and(Entry::is_directory);
    let is_last = |op: &Op| op.new.is_none() || (is_directory(&op.old) && !is_directory(&op.new));
    let (mut last, mut first): (Vec<_>, Vec<_>) = (0..ops.len()).partition(|i| is_last(&ops[*i]));
    // Folders by path alone, so that each comes after the one that holds it.
    let (mut ordered, mut files): (Vec<_>, Vec<_>) =
        first.drain(..).partition(|i| is_directory(&ops[*i].new));
    ordered.sort_by(|a, b| ops[*a].path.cmp(&ops[*b].path));
    files.sort_by_key(|i| (GitPart::of(&ops[*i].path), &ops[*i].path));
    ordered.append(&mut files);
    last.sort_by(|a, b| ops[*b].path.cmp(&ops[*a].path));
    ordered.append(&mut last);
    ordered
}

/// The parts of a repository, in the order in which they may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum GitPart {
    Objects,
    Outside,
    Inside,
    Refs,
}

impl GitPart {
    pub(crate) fn of(path: &RelPath) -> Self {
        let mut names = path.components().skip_while(|name| *name != b".git");
        if names.next().is_none() {
            return Self::Outside;
        }
        for name in names {
            match name {
                b"objects" => return Self::Objects,
                b"refs" | b"logs" | b"packed-refs" => return Self::Refs,
                // HEAD, ORIG_HEAD, FETCH_HEAD and their like
                name if name.ends_with(b"HEAD") => return Self::Refs,
                _ => {}
            }
        }
        Self::Inside
    }

    /// Returns where the objects may be that a ref leads to: beside it, and in the repository that holds it; for an
    /// object, the folder of them all.
    pub(crate) fn objects_of(path: &RelPath) -> impl Iterator<Item = RelPath> + use<> {
        let folders: Vec<RelPath> = std::iter::successors(path.parent(), RelPath::parent).collect();
        let is_git = |folder: &RelPath| folder.components().any(|name| name == b".git");
        let objects = |folder: &RelPath| match folder.name() {
            b"objects" => Some(folder.clone()),
            _ => RelPath::join(Some(folder), b"objects").ok(),
        };
        let found: Vec<_> = folders
            .iter()
            .filter(|folder| is_git(folder))
            .filter_map(objects)
            .collect();
        found.into_iter()
    }
}

struct Applier<'a> {
    root: &'a Root,
    staging: &'a mut Staging,
    /// Folders whose entries changed.
    touched: BTreeSet<Option<RelPath>>,
    /// The folder that was opened last; neighbours are carried out one after the other.
    folder: Option<Open>,
    turned: Turned,
}

/// An open folder of the root.
struct Open {
    path: Option<RelPath>,
    folder: OwnedFd,
    /// It is among those whose entries changed.
    is_touched: bool,
}

impl Applier<'_> {
    fn carry_out(
        &mut self,
        op: &Op,
        staged: Option<&Result<Ready, String>>,
    ) -> Result<Option<Facts>, Refusal> {
        let parent = op.path.parent();
        let (folder, mut is_touched) = match self.folder.take() {
            Some(open) if open.path == parent => (open.folder, open.is_touched),
            _ => (self.root.directory(parent.as_ref())?, false),
        };
        let result = self.within(&folder, op, staged).map(|()| {
            let ready = staged.and_then(|staged| staged.as_ref().ok())?;
            ready.is_at((&folder, op.path.name()))
        });
        if result.is_ok() && !is_touched {
            is_touched = true;
            self.touched.insert(parent.clone());
        }
        // What an operation on a folder did to it is seen by opening it again.
        self.folder = Some(Open {
            path: parent,
            folder,
            is_touched,
        });
        result
    }

    fn within(
        &mut self,
        folder: &OwnedFd,
        op: &Op,
        staged: Option<&Result<Ready, String>>,
    ) -> Result<(), Refusal> {
        let new = match &op.new {
            None => return self.remove(folder, op),
            Some(Entry::Directory) if op.old.is_none() => {
                return Ok(self.staging.create_directory(folder, op.path.name())?);
            }
            Some(Entry::Directory) => self.staging.directory(op.old.as_ref())?,
            Some(Entry::Symlink { target }) => self.staging.symlink(target, op.old.as_ref())?,
            Some(Entry::File { .. }) => match staged {
                Some(Ok(ready)) => ready.name.clone(),
                Some(Err(reason)) => return Err(Refusal::NoContents(reason.clone())),
                None => return Err(Refusal::NoContents("never asked for".into())),
            },
            Some(Entry::Untracked(_)) => return Err(Refusal::Postponed),
        };
        let Some(old) = &op.old else {
            // What cannot be put in place is never swapped with anything: it is cleared with the folder.
            return rename_new((self.staging.folder(), &new), (folder, op.path.name()));
        };
        let made = Facts::at(self.staging.folder(), new.as_bytes())?;
        let result = self.replace(folder, op, old, &new);
        if let (Err(_), Some(made)) = (&result, made) {
            self.clear(&new, made.inode);
        }
        result
    }

    /// Swaps `new` with what is there, and back where that is not `old`.
    fn replace(&self, folder: &OwnedFd, op: &Op, old: &Entry, new: &str) -> Result<(), Refusal> {
        let name = op.path.name();
        let stage = self.staging.folder();
        self.keep_mode(folder, op, new)?;
        match exchange((stage, new.as_bytes()), (folder, name)) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Err(Refusal::Changed),
            // No exchange here, or not for folders that lie in a lower layer.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP | Errno::XDEV) => {
                return self.replace_checked(folder, op, old, new);
            }
            Err(error) => return Err(error.into()),
        }
        let mut verdict = match observe(stage, new.as_bytes(), &op.path) {
            Ok(Some(found)) if found == *old => Ok(()),
            Ok(_) => Err(Refusal::Changed),
            Err(error) => Err(error.into()),
        };
        if verdict.is_ok() {
            let flags = if old.is_directory() {
                AtFlags::REMOVEDIR
            } else {
                AtFlags::empty()
            };
            verdict = rustix::fs::unlinkat(stage, new, flags).map_err(Refusal::from);
        }
        if verdict.is_err() {
            exchange((stage, new.as_bytes()), (folder, name))?;
        }
        verdict
    }

    /// Replaces without the exchange: looks, then renames.
    fn replace_checked(
        &self,
        folder: &OwnedFd,
        op: &Op,
        old: &Entry,
        new: &str,
    ) -> Result<(), Refusal> {
        let name = op.path.name();
        let stage = self.staging.folder();
        if observe(folder, name, &op.path)?.as_ref() != Some(old) {
            return Err(Refusal::Changed);
        }
        let makes_directory = op.new.as_ref().is_some_and(Entry::is_directory);
        if old.is_directory() {
            rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR)?;
        } else if makes_directory {
            rustix::fs::unlinkat(folder, name, AtFlags::empty())?;
        }
        Ok(rustix::fs::renameat(stage, new, folder, name)?)
    }

    fn remove(&mut self, folder: &OwnedFd, op: &Op) -> Result<(), Refusal> {
        let name = op.path.name();
        let Some(old) = &op.old else { return Ok(()) };
        if old.is_directory() {
            return Ok(rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR)?);
        }
        let moved = self.staging.free_name(old);
        let stage = self.staging.folder();
        rename_new((folder, name), (stage, moved.as_bytes()))?;
        let found = observe(stage, moved.as_bytes(), &op.path);
        if matches!(&found, Ok(Some(found)) if found == old) {
            return Ok(self.staging.discard(&moved)?);
        }
        // Where something new has taken the name, it stays in staging and is rescued from there.
        rename_new((stage, moved.as_bytes()), (folder, name))?;
        Err(Refusal::Changed)
    }

    /// Gives a file that replaces another the mode that the other had, the executable bits aside.
    fn keep_mode(&self, folder: &OwnedFd, op: &Op, new: &str) -> Result<(), Refusal> {
        let (Some(Entry::File { .. }), Some(Entry::File { executable, .. })) = (&op.old, &op.new)
        else {
            return Ok(());
        };
        let Some(facts) = Facts::at(folder, op.path.name())? else {
            return Err(Refusal::Changed);
        };
        // Never more than permission bits: no setuid, setgid or sticky bit is carried over (`S38`).
        let readable = facts.mode & 0o666;
        let mode = if *executable {
            readable | (readable & 0o444) >> 2
        } else {
            readable
        };
        let mode = Mode::from_bits_truncate(mode as rustix::fs::RawMode);
        Ok(rustix::fs::chmodat(
            self.staging.folder(),
            new,
            mode,
            AtFlags::empty(),
        )?)
    }

    /// Removes what an operation that failed has made. Something else under its name was swapped out
    /// and could not be swapped back: it stays, and is rescued when the folder is opened again.
    fn clear(&self, name: &str, made: u64) {
        let stage = self.staging.folder();
        let ours = |facts: &Facts| facts.inode == made;
        let Ok(Some(facts)) = Facts::at(stage, name.as_bytes()) else {
            return;
        };
        let flags = match facts.kind {
            FileType::Directory => AtFlags::REMOVEDIR,
            _ => AtFlags::empty(),
        };
        if ours(&facts)
            && let Err(error) = rustix::fs::unlinkat(stage, name, flags)
        {
            tracing::debug!(%error, name, "cannot clear a staged object");
        }
    }

    fn flush(&self) -> io::Result<()> {
        if self.touched.len() > FLUSH_EACH {
            return flush_filesystem(self.root.folder());
        }
        for path in &self.touched {
            match self.root.directory(path.as_ref()) {
                Ok(folder) => rustix::fs::fsync(folder)?,
                // Removed since, which its own parent tells.
                Err(_) => flush_filesystem(self.root.folder())?,
            }
        }
        Ok(())
    }
}

type Place<'a> = (&'a OwnedFd, &'a [u8]);

fn exchange(one: Place<'_>, other: Place<'_>) -> Result<(), Errno> {
    rustix::fs::renameat_with(one.0, one.1, other.0, other.1, RenameFlags::EXCHANGE)
}

/// Renames onto a name that must be free.
fn rename_new(from: (&OwnedFd, impl AsRef<[u8]>), to: Place<'_>) -> Result<(), Refusal> {
    let name = from.1.as_ref();
    match rustix::fs::renameat_with(from.0, name, to.0, to.1, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => match Facts::at(to.0, to.1)? {
            Some(_) => Err(Refusal::Changed),
            None => Ok(rustix::fs::renameat(from.0, name, to.0, to.1)?),
        },
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Digest;

    fn op(word: &str) -> Op {
        let entry = |text: &str| match text {
            "-" => None,
            "d" => Some(Entry::Directory),
            _ => Some(Entry::File {
                digest: Digest::of(text.as_bytes()),
                size: 1,
                executable: false,
            }),
        };
        let (path, change) = word.split_once('=').unwrap();
        let (old, new) = change.split_once('>').unwrap();
        Op {
            path: RelPath::new(path).unwrap(),
            old: entry(old),
            new: entry(new),
        }
    }

    #[test]
    fn s42_objects_come_before_everything_and_refs_after_it() {
        let ops = [
            ".git=->d",
            ".git/HEAD=->1",
            ".git/objects=->d",
            ".git/objects/aa=->1",
            ".git/packed-refs=->1",
            ".git/refs=->d",
            ".git/refs/main=->1",
            ".git/refs/old=1>-",
            ".git/objects/bb=1>-",
            "a=->1",
            "d=d>1",
            "d/x=1>-",
        ]
        .map(op);
        let order: Vec<_> = order(&ops)
            .into_iter()
            .map(|i| ops[i].path.to_string())
            .collect();
        let expected = [
            ".git",
            ".git/objects",
            ".git/refs",
            ".git/objects/aa",
            "a",
            ".git/HEAD",
            ".git/packed-refs",
            ".git/refs/main",
            "d/x",
            "d",
            ".git/refs/old",
            ".git/objects/bb",
        ];
        assert_eq!(order, expected);
    }

    /// A root with `files`, and a staging folder in it.
    fn root(files: &[(&str, &str)]) -> (tempfile::TempDir, Root, Staging) {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            std::fs::create_dir_all(folder.path().join(path).parent().unwrap()).unwrap();
            std::fs::write(folder.path().join(path), text).unwrap();
        }
        let root = Root::open(folder.path()).unwrap();
        let staging = Staging::open(&root, None, None).unwrap();
        (folder, root, staging)
    }

    fn stage(staging: &mut Staging, text: &str) -> Result<Ready, String> {
        let content = (Digest::of(text.as_bytes()), text.len() as u64);
        let mut file = staging.file(content, false, None).unwrap();
        file.write(text.as_bytes()).unwrap();
        Ok(file.finish(None).unwrap().0)
    }

    fn file(text: &str) -> Entry {
        Entry::File {
            digest: Digest::of(text.as_bytes()),
            size: text.len() as u64,
            executable: false,
        }
    }

    #[test]
    fn s14_s15_what_the_scan_did_not_see_is_never_overwritten() {
        let (folder, root, mut staging) =
            root(&[("a", "edited"), ("b", "appeared"), ("c", "edited")]);
        let path = |p: &str| RelPath::new(p).unwrap();
        let ops = [
            Op {
                path: path("a"),
                old: Some(file("scanned")),
                new: Some(file("new")),
            },
            Op {
                path: path("b"),
                old: None,
                new: Some(file("new")),
            },
            Op {
                path: path("c"),
                old: Some(file("scanned")),
                new: None,
            },
        ];
        let staged = (0..2)
            .map(|index| (index, stage(&mut staging, "new")))
            .collect();
        let results = apply(&root, &mut staging, &ops, &staged).unwrap();
        assert!(
            results
                .iter()
                .all(|result| matches!(result, Err(Refusal::Changed))),
            "{results:?}"
        );
        for (name, text) in [("a", "edited"), ("b", "appeared"), ("c", "edited")] {
            assert_eq!(
                std::fs::read_to_string(folder.path().join(name)).unwrap(),
                text
            );
        }
        drop(staging);
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            3,
            "nothing is left in the tree"
        );
    }

    #[test]
    fn s10_nothing_is_done_beneath_a_folder_that_could_not_be_made() {
        // As `GIT~1` is there and no scan has seen it: it is another name of `.git`.
        let (folder, root, mut staging) = root(&[("GIT~1/hooks/sample", "own")]);
        let path = |p: &str| RelPath::new(p).unwrap();
        let new = |path, new| Op {
            path,
            old: None,
            new: Some(new),
        };
        let ops = [
            new(path("GIT~1"), Entry::Directory),
            new(path("GIT~1/hooks"), Entry::Directory),
            new(path("GIT~1/hooks/pre-commit"), file("evil")),
            new(path("fine"), file("evil")),
        ];
        let staged = (2..4)
            .map(|index| (index, stage(&mut staging, "evil")))
            .collect();
        let results = apply(&root, &mut staging, &ops, &staged).unwrap();
        let done: Vec<_> = results.iter().map(Result::is_ok).collect();
        assert_eq!(done, [false, false, false, true]);
        let hooks = std::fs::read_dir(folder.path().join("GIT~1/hooks")).unwrap();
        assert_eq!(hooks.count(), 1);
    }

    #[test]
    fn s42_no_ref_moves_when_an_object_is_missing() {
        let (folder, root, mut staging) =
            root(&[(".git/refs/main", "old"), (".git/objects/aa", "x")]);
        let path = |p: &str| RelPath::new(p).unwrap();
        let ops = [
            Op {
                path: path(".git/objects/bb"),
                old: None,
                new: Some(file("object")),
            },
            Op {
                path: path(".git/refs/main"),
                old: Some(file("old")),
                new: Some(file("new")),
            },
            Op {
                path: path(".git/objects/aa"),
                old: Some(file("x")),
                new: None,
            },
        ];
        let mut staged = Staged::from([(1, stage(&mut staging, "new"))]);
        drop(staged.insert(0, Err("it did not arrive".into())));
        let results = apply(&root, &mut staging, &ops, &staged).unwrap();
        assert!(results.iter().all(Result::is_err));
        assert_eq!(
            std::fs::read_to_string(folder.path().join(".git/refs/main")).unwrap(),
            "old"
        );
        assert!(folder.path().join(".git/objects/aa").exists());
    }

    #[test]
    fn s16_what_a_crash_left_in_staging_is_cleared_or_rescued() {
        let (folder, root, mut staging) = root(&[]);
        let name = stage(&mut staging, "complete").unwrap();
        let place = folder.path().join(".sandbox-sync-staging");
        std::fs::write(place.join("part-x"), "torn").unwrap();
        let swapped_out = format!("{}-{}-8", Digest::of(b"new"), Digest::of(b"old"));
        std::fs::write(place.join(swapped_out), "old").unwrap();
        std::fs::write(
            place.join(format!("{}-{}-9", Digest::of(b"new"), Digest::of(b"old"))),
            "the only copy",
        )
        .unwrap();
        // The kernel takes the lock back from who died.
        crate::root::unlock(staging.folder());
        std::mem::forget(staging);
        assert!(place.join(name.name).exists());
        let left = || -> Vec<_> {
            let entries = std::fs::read_dir(&place).unwrap();
            entries.map(|entry| entry.unwrap().path()).collect()
        };
        let staging = Staging::open(&root, None, None).unwrap();
        let kept = left()
            .into_iter()
            .filter(|path| !path.to_string_lossy().contains("/rescued-"));
        let kept: Vec<_> = kept
            .map(|path| std::fs::read_to_string(path).unwrap())
            .collect();
        assert_eq!(kept, ["complete"], "before anything is staged");
        drop(staging);
        let left = left();
        assert_eq!(left.len(), 1);
        assert_eq!(std::fs::read_to_string(&left[0]).unwrap(), "the only copy");
    }
}
