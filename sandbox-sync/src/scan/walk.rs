//! Looks at folders, several at a time.
//!
//! A folder is a piece of work: its names are read, the facts of each are compared with what the tree
//! remembers, and the folders in it become work of their own. One thread begins; where there is more to do
//! than a few folders, others join it. What they find is the same for any number of threads and any order:
//! each path is looked at once, and the finds are sorted by path before they are used.
//!
//! Folders are opened by their path beneath the root when their turn comes, so no more of them are open than
//! there are threads.

use std::collections::HashMap;
use std::hash::RandomState;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::names::Names;
use super::{Changed, Place, RACY, hash, open_file, read_link};
use crate::apply::GitPart;
use crate::path::RelPath;
use crate::root::Facts;
use crate::rules::Flow;
use crate::tree::{Entry, Item, Reason, Tree};
use crate::watch::Watch;

/// So many folders are looked at before other threads are asked to help.
pub(super) const ALONE: usize = 16;
/// More threads than this wait for each other and for the disk.
const THREADS: usize = 8;

/// What is the same for all threads.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    pub(super) place: Place<'a>,
    /// What was found before.
    pub(super) known: &'a Tree,
    pub(super) key: &'a RandomState,
    pub(super) watch: Option<&'a Watch>,
    /// The time since 1970.
    pub(super) now: Duration,
    /// How many names were seen.
    pub(super) count: AtomicUsize,
}

/// A folder to look at; `None` is the root.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) path: Option<RelPath>,
    pub(super) flow: Flow,
}

/// What is not as it was.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// What is new or another one; beneath folders everything that is has its own item.
    pub(super) new: Vec<Item>,
    /// What is no more, and everything beneath it.
    pub(super) gone: Vec<RelPath>,
    /// Folders that are no longer there (`None`), or could not be read.
    failed: HashMap<RelPath, Option<Reason>>,
}

/// One thread's own.
#[derive(Debug, Default)]
pub(super) struct Worker {
    pub(super) found: Found,
    /// The folders that it came upon.
    pub(super) below: Vec<Task>,
    names: Names,
    buffer: Vec<u8>,
}

impl Walk<'_> {
    /// Looks at the folders that `worker` came upon and at everything beneath them.
    ///
    /// # Errors
    ///
    /// When the root cannot be read, or there are more names than the bounds allow.
    pub(super) fn run(&self, mut worker: Worker) -> io::Result<Found> {
        for _ in 0..ALONE {
            let Some(task) = worker.below.pop() else {
                return Ok(worker.found);
            };
            self.folder(&task, &mut worker)?;
        }
        let queue = Queue::new(std::mem::take(&mut worker.below));
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let found = thread::scope(|scope| {
            let help = || {
                let mut worker = Worker::default();
                self.work(&queue, &mut worker);
                worker.found
            };
            let helpers: Vec<_> = (1..threads.min(THREADS))
                .map(|_| scope.spawn(help))
                .collect();
            self.work(&queue, &mut worker);
            let mut found = worker.found;
            for helper in helpers {
                found.add(
                    helper
                        .join()
                        .map_err(|_| io::Error::other("a scan's thread ended"))?,
                );
            }
            Ok::<_, io::Error>(found)
        })?;
        match queue.state().failed.take() {
            Some(error) => Err(error),
            None => Ok(found),
        }
    }

    fn work(&self, queue: &Queue, worker: &mut Worker) {
        let _end = OnPanic(queue);
        let mut last = None;
        while let Some(task) = queue.next(last.take(), &mut worker.below) {
            last = Some(self.folder(&task, worker));
        }
    }

    /// Looks at one folder. An error ends the whole walk; a folder that cannot be read does not.
    fn folder(&self, task: &Task, worker: &mut Worker) -> io::Result<()> {
        let Some(path) = &task.path else {
            return self.read(task, worker);
        };
        let Err(error) = self.read(task, worker) else {
            return Ok(());
        };
        let errno = Errno::from_io_error(&error);
        let reason = match error.kind() {
            io::ErrorKind::QuotaExceeded => return Err(error),
            io::ErrorKind::NotFound => None,
            _ if errno == Some(Errno::NAMETOOLONG) => Some(Reason::NameTooLong),
            _ if errno == Some(Errno::XDEV) => Some(Reason::OtherFilesystem),
            _ => Some(Reason::Unreadable),
        };
        if reason.is_some() {
            self.shun(path);
        }
        worker.found.failed.insert(path.clone(), reason);
        Ok(())
    }

    /// Has the watch know that it does not see what lies beneath a path.
    fn shun(&self, path: &RelPath) {
        if let Some(watch) = self.watch {
            watch.shun(path);
        }
    }

    fn read(&self, task: &Task, worker: &mut Worker) -> io::Result<()> {
        let path = task.path.as_ref();
        let folder = self.place.root.directory(path)?;
        // Only folders tell: overlayfs gives files the device of the layer that they lie in.
        if Facts::new(&rustix::fs::fstat(&folder)?).device != self.place.root.device() {
            return Err(Errno::XDEV.into());
        }
        // First the watch: what changes while the names are read makes an event (`S23`).
        if let Some(watch) = self.watch {
            watch.add(&folder, path);
        }
        let mut names = std::mem::take(&mut worker.names);
        names.read(&folder)?;
        // The whole folder stays on its side, since the name alone cannot be said.
        if names.len() > 0 && RelPath::is_too_long_for(path, names.longest()) {
            return Err(Errno::NAMETOOLONG.into());
        }
        let seen = self.count.fetch_add(names.len(), Ordering::Relaxed) + names.len();
        if seen > self.place.bounds.entries {
            return Err(self.place.bounds.exceeded());
        }
        self.children((&folder, task), &names, worker);
        worker.names = names;
        Ok(())
    }

    /// Looks at everything in a folder, and at what was in it.
    fn children(&self, (folder, above): (&OwnedFd, &Task), names: &Names, worker: &mut Worker) {
        let mut known = self.known.children(above.path.as_ref()).peekable();
        for (name, kind) in names.iter() {
            while let Some(gone) = known.next_if(|item| item.path().name() < name) {
                worker.found.gone.push(gone.path().clone());
            }
            let item = known.next_if(|item| item.path().name() == name);
            let child = Child {
                folder,
                above,
                name,
                item,
            };
            self.child(&child, kind, worker);
        }
        let gone = known.map(|item| item.path().clone());
        worker.found.gone.extend(gone);
    }

    /// Looks at one name; `kind` is what its folder says that it is.
    pub(super) fn child(&self, child: &Child<'_>, kind: FileType, worker: &mut Worker) {
        let known = child.item.map(Item::entry);
        // Rules do not change: what a name meant it means still.
        if matches!(
            known,
            Some(Entry::Untracked(Reason::Ignored | Reason::Masked))
        ) {
            return;
        }
        let is_known = kind != FileType::Directory
            && matches!(known, Some(Entry::File { .. } | Entry::Symlink { .. }));
        let flow = if is_known {
            Flow::Both
        } else {
            let Some(path) = child.path() else { return };
            self.place.rules.flow_in(child.above.flow, &path)
        };
        let entry = match flow {
            Flow::Ignored => Some(Entry::Untracked(Reason::Ignored)),
            Flow::Masked => Some(Entry::Untracked(Reason::Masked)),
            _ if kind == FileType::Directory => enter(child, flow, worker),
            _ => match Facts::at(child.folder, child.name) {
                // Since the listing it became one.
                Ok(Some(facts)) if facts.kind == FileType::Directory => {
                    return self.child(child, FileType::Directory, worker);
                }
                Ok(Some(facts)) => return self.thing(child, facts, worker),
                // Gone between the listing and now.
                Ok(None) => None,
                Err(_) => {
                    // It may be a folder.
                    if let Some(path) = child.path() {
                        self.shun(&path);
                    }
                    Some(Entry::Untracked(Reason::Unreadable))
                }
            },
        };
        child.is(entry, (0, &mut worker.found));
    }

    /// Looks at what is no folder.
    fn thing(&self, child: &Child<'_>, facts: Facts, worker: &mut Worker) {
        let memo = facts.fingerprint(self.key);
        if child.item.is_some_and(|item| item.memo() == memo) {
            return;
        }
        let Some(path) = child.path() else { return };
        let made = self.place.made.item(&path);
        if let Some(made) = made.filter(|made| made.memo() == memo) {
            return child.is(Some(made.entry().clone()), (memo, &mut worker.found));
        }
        let bounds = self.place.bounds;
        let looked = match facts.kind {
            FileType::RegularFile if facts.size > bounds.file_bytes => {
                Ok((Entry::Untracked(Reason::TooLarge), None))
            }
            FileType::RegularFile => self.file(child, &mut worker.buffer),
            FileType::Symlink => {
                read_link(child.folder, child.name, &path).map(|link| (link, Some(facts)))
            }
            _ => Ok((Entry::Untracked(Reason::Special), None)),
        };
        let (entry, facts) = match looked {
            Ok((entry, facts)) => (Some(entry), facts),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (None, None),
            Err(_) => (Some(Entry::Untracked(Reason::Unreadable)), None),
        };
        let memo = facts.map_or(0, |facts| self.memo(&facts));
        child.is(entry, (memo, &mut worker.found));
    }

    fn file(&self, child: &Child<'_>, buffer: &mut Vec<u8>) -> io::Result<(Entry, Option<Facts>)> {
        let (mut file, facts) = open_file(child.folder, child.name)?;
        let (digest, size) = hash(&mut file, facts.size, buffer)?;
        let entry = Entry::File {
            digest,
            size,
            executable: facts.is_executable(),
        };
        Ok((entry, Some(Facts { size, ..facts })))
    }

    /// Returns what to know a thing by that has these facts: nothing while the same facts may still come to
    /// mean other contents.
    fn memo(&self, facts: &Facts) -> u64 {
        let changed = Duration::new(u64::try_from(facts.changed.0).unwrap_or(0), facts.changed.1);
        let racy = changed + RACY >= self.now;
        if racy { 0 } else { facts.fingerprint(self.key) }
    }
}

/// Has a folder looked at later, which may show that it is none or cannot be read.
fn enter(child: &Child<'_>, flow: Flow, worker: &mut Worker) -> Option<Entry> {
    let path = Some(child.path()?);
    worker.below.push(Task { path, flow });
    Some(Entry::Directory)
}

/// A name in an open folder.
#[derive(Debug)]
pub(super) struct Child<'a> {
    pub(super) folder: &'a OwnedFd,
    pub(super) above: &'a Task,
    pub(super) name: &'a [u8],
    /// What was there.
    pub(super) item: Option<&'a Item>,
}

impl Child<'_> {
    fn path(&self) -> Option<RelPath> {
        match self.item {
            Some(item) => Some(item.path().clone()),
            // It was asked before whether the folder's names fit.
            None => RelPath::join(self.above.path.as_ref(), self.name).ok(),
        }
    }

    /// Notes what is there now, to be known by `memo`, where it is not what was there.
    pub(super) fn is(&self, entry: Option<Entry>, (memo, found): (u64, &mut Found)) {
        match (self.item, entry) {
            (Some(item), Some(entry)) if *item.entry() == entry => item.remember(memo),
            (_, Some(entry)) => {
                let Some(path) = self.path() else { return };
                let item = Item::new(path, entry);
                item.remember(memo);
                found.new.push(item);
            }
            (Some(item), None) => found.gone.push(item.path().clone()),
            (None, None) => {}
        }
    }
}

impl Found {
    fn add(&mut self, other: Self) {
        self.new.extend(other.new);
        self.gone.extend(other.gone);
        self.failed.extend(other.failed);
    }

    /// Tells whether everything is as it was.
    pub(super) fn is_nothing(&self) -> bool {
        self.new.is_empty() && self.gone.is_empty() && self.failed.is_empty()
    }

    /// Carries everything over to `tree`.
    pub(super) fn settle(self, tree: &mut Tree) -> Changed {
        let news = self.new.iter().map(Item::path);
        let is_new =
            |path: &&RelPath| GitPart::of(path) == GitPart::Objects && tree.entry(path).is_none();
        let new = news.filter(is_new).cloned().collect();
        let paths = self.carry_over(tree);
        Changed { paths, new }
    }

    /// Returns the paths that are not what they were, in order.
    fn carry_over(mut self, tree: &mut Tree) -> Vec<RelPath> {
        // A folder that could not be read was taken for one at first.
        self.new
            .retain(|item| !self.failed.contains_key(item.path()));
        for (path, reason) in self.failed {
            match reason {
                Some(reason) => self.new.push(Item::new(path, Entry::Untracked(reason))),
                None => self.gone.push(path),
            }
        }
        self.gone.sort();
        self.new.sort();
        let mut changed = Vec::with_capacity(self.gone.len() + self.new.len());
        if tree.is_empty() {
            changed.extend(self.new.iter().map(|item| item.path().clone()));
            *tree = Tree::from_iter(self.new);
            return changed;
        }
        for path in self.gone {
            if tree.entry(&path).is_some_and(Entry::is_directory) {
                changed.extend(tree.remove_beneath(&path));
            }
            if tree.entry(&path).is_some() {
                tree.set(path.clone(), None);
                changed.push(path);
            }
        }
        for item in self.new {
            let old = tree.entry(item.path());
            if old == Some(item.entry()) {
                continue;
            }
            if old.is_some_and(Entry::is_directory) {
                changed.extend(tree.remove_beneath(item.path()));
            }
            changed.push(item.path().clone());
            tree.put(item);
        }
        changed.sort();
        changed.dedup();
        changed
    }
}

/// Keeps the others from waiting for a thread that will never be done.
struct OnPanic<'a>(&'a Queue);

impl Drop for OnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let error = io::Error::other("a thread of a scan panicked");
            self.0.state().failed.get_or_insert(error);
            self.0.more.notify_all();
        }
    }
}

/// The folders that nobody looks at yet.
#[derive(Debug)]
struct Queue {
    state: Mutex<State>,
    more: Condvar,
}

#[derive(Debug)]
struct State {
    tasks: Vec<Task>,
    /// How many threads look at a folder, and may come upon others.
    busy: usize,
    failed: Option<io::Error>,
}

impl Queue {
    fn new(tasks: Vec<Task>) -> Self {
        let state = Mutex::new(State {
            tasks,
            busy: 0,
            failed: None,
        });
        let more = Condvar::new();
        Self { state, more }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what became of a thread's last folder and what it came upon there, and returns its next one;
    /// `None` when all is done.
    fn next(&self, last: Option<io::Result<()>>, below: &mut Vec<Task>) -> Option<Task> {
        let mut state = self.state();
        if below.len() > 1 {
            self.more.notify_all();
        }
        state.tasks.append(below);
        if let Some(result) = last {
            state.busy -= 1;
            if let Err(error) = result {
                state.failed.get_or_insert(error);
            }
        }
        loop {
            if state.failed.is_none()
                && let Some(task) = state.tasks.pop()
            {
                state.busy += 1;
                return Some(task);
            }
            if state.failed.is_some() || state.busy == 0 {
                self.more.notify_all();
                return None;
            }
            let waited = self.more.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}
