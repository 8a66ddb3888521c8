//! From a folder to the nodes of a snapshot, on all processors.
//!
//! A stack of folders is worked off by several threads. Each reads the names of one folder, asks for the facts
//! of each, and compares them with what the previous snapshot says of that folder: a file whose length, mode,
//! times and inode are the same has the same contents, and what the rules say of a name that was there they
//! say again. Only the others are read. In the end the listings are put together from the leaves up, and one
//! that is what it was costs no more than being compared.
//!
//! Where a session's [watch](crate::watch) says what may have changed since that snapshot, only those names are
//! looked at, and what no event tells of: files that were too young to be known again, and what could not be
//! read. Of all else the listings stand as they are, unread where nothing beneath them is dirty.
//!
//! A file is read between two looks at its facts. Where they differ it was being written and is read again,
//! up to [`TRIES`] times; what is still being written then is in the snapshot as it was read, is said to be
//! torn, and is read again by the next one (`S52`). So is what was changed within [`RACY`] of being read.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::ops::Bound;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fastcdc::v2020::StreamCDC;
use rustix::fs::FileType;

use super::clones;
use super::damage::is_damage;
use super::folder::{Beneath, Contents, File, Folder, Named, Node, PERMISSIONS, Recipe, Seen};
use super::found::{Found, Listed, Part};
use super::packs::{Packs, Writer};
use crate::path::RelPath;
use crate::root::{Facts, Root};
use crate::rules::{Flow, Rules};
use crate::scan::{Bounds, names, open_file};
use crate::tree::{Digest, MAX_TARGET, Reason, portable_target};
use crate::watch::Depth;

/// As in a scan: how long after a change the same facts may still mean other contents.
const RACY: Duration = Duration::from_secs(2);
/// How often a file is read that is being written.
const TRIES: usize = 3;
/// Longer files are cut into blobs by their contents.
const WHOLE: usize = 256 * 1024;
const SHORTEST: usize = 16 * 1024;
const AVERAGE: usize = 64 * 1024;
/// More threads than this wait for each other.
const MOST_THREADS: usize = 8;

/// What a walk needs to know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Walk<'a> {
    pub(crate) root: &'a Root,
    pub(crate) rules: &'a Rules,
    pub(crate) bounds: Bounds,
    pub(crate) packs: &'a Packs,
    /// The listing of the root in an earlier snapshot, which was taken by the same rules.
    pub(crate) previous: Option<Digest>,
    /// What may have changed since that snapshot, where something vouches for all else.
    pub(crate) dirt: Option<&'a BTreeMap<RelPath, Depth>>,
    /// The time since 1970.
    pub(crate) now: Duration,
    /// Where contents go; without it nothing is stored.
    pub(crate) writer: Option<&'a Writer<'a>>,
}

/// A folder to be read.
#[derive(Debug)]
struct Job {
    number: usize,
    path: Option<RelPath>,
    flow: Flow,
    previous: Option<Digest>,
    /// Whether to look only at what is dirty and what no listing vouches for.
    partly: bool,
}

/// What the threads share.
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    numbers: AtomicUsize,
    entries: AtomicUsize,
}

struct State {
    jobs: Vec<Job>,
    busy: usize,
    failed: Option<io::Error>,
}

impl Walk<'_> {
    /// Reads the root and everything beneath it.
    ///
    /// # Errors
    ///
    /// When the root cannot be read, holds more than is allowed, or contents cannot be stored.
    pub(crate) fn run(&self) -> io::Result<Found> {
        let first = Job {
            number: 0,
            path: None,
            flow: Flow::Both,
            previous: self.previous,
            partly: self.dirt.is_some(),
        };
        let shared = Shared {
            state: Mutex::new(State {
                jobs: vec![first],
                busy: 0,
                failed: None,
            }),
            changed: Condvar::new(),
            numbers: AtomicUsize::new(1),
            entries: AtomicUsize::new(0),
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let parts: Vec<Part> = std::thread::scope(|scope| {
            let work = |_| scope.spawn(|| self.work(&shared));
            let threads: Vec<_> = (0..threads.min(MOST_THREADS)).map(work).collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined
                .map(|part| part.expect("no thread of a walk panics"))
                .collect()
        });
        let failed = shared.lock().failed.take();
        match failed {
            Some(error) => Err(error),
            None => Found::new(parts, shared.numbers.into_inner()),
        }
    }

    fn work(&self, shared: &Shared) -> Part {
        let mut part = Part::default();
        while let Some(job) = shared.next() {
            let number = job.number;
            let result = self.folder(shared, job, &mut part);
            let mut state = shared.lock();
            state.busy -= 1;
            match result {
                Ok((listed, jobs)) => {
                    state.jobs.extend(jobs);
                    part.folders.push((number, listed));
                }
                Err(error) => state.failed = Some(error),
            }
            shared.changed.notify_all();
        }
        part
    }

    fn folder(&self, shared: &Shared, job: Job, part: &mut Part) -> io::Result<(Listed, Vec<Job>)> {
        let mut listed = Listed {
            path: job.path,
            entries: Vec::new(),
            children: Vec::new(),
            previous: self.previous(job.previous)?,
            failed: None,
            stored: None,
        };
        let look = match self.look(job.partly, &listed) {
            Ok(look) => look,
            Err(error) if listed.path.is_none() => return Err(error),
            Err(error) => {
                let gone = error.kind() == io::ErrorKind::NotFound;
                listed.failed = Some((!gone).then_some(Reason::Unreadable));
                return Ok((listed, Vec::new()));
            }
        };
        self.admit(shared, look.names.len())?;
        let mut jobs = Vec::new();
        for name in look.names {
            let old = listed
                .previous
                .as_ref()
                .and_then(|(_, old)| old.node(&name));
            let stands = |node: &&Node| node.is_settled() && !look.dirty.contains(&name[..]);
            if let Some(node) = old.filter(stands).filter(|_| look.partly) {
                let node = node.clone();
                self.admit_beneath(shared, &node)?;
                listed.entries.push((Named(name), node));
                continue;
            }
            let place = Place {
                folder: &look.folder,
                path: listed.path.as_ref(),
                flow: job.flow,
                partly: look.partly,
            };
            match self.name(place, (&name, old), part)? {
                Some(What::Enter(mut job, mode)) => {
                    job.number = shared.numbers.fetch_add(1, Ordering::Relaxed);
                    listed.children.push((listed.entries.len(), job.number));
                    // The rest is filled in when it is known.
                    let node = Node::Folder {
                        listing: job.previous.unwrap_or_else(|| Digest::of(b"")),
                        mode,
                        beneath: Beneath::default(),
                    };
                    listed.entries.push((Named(name), node));
                    jobs.push(job);
                }
                Some(What::Is(node)) => listed.entries.push((Named(name), node)),
                None => {}
            }
        }
        // Here, on all processors, where nothing beneath is waited for.
        if let Some(writer) = self.writer.filter(|_| listed.children.is_empty()) {
            listed.stored = Some(listed.store(writer)?);
        }
        Ok((listed, jobs))
    }

    /// Opens a folder and finds what there is to look at: all of its names, or those that are dirty and
    /// those that were there.
    fn look(&self, partly: bool, listed: &Listed) -> io::Result<Look<'_>> {
        let path = listed.path.as_ref();
        let folder = self.root.directory(path)?;
        let known = listed.previous.as_ref().filter(|_| partly);
        let (Some((_, known)), Some(dirt)) = (known, self.dirt) else {
            let mut names = names(&folder)?;
            names.sort_unstable();
            return Ok(Look {
                folder,
                names,
                partly: false,
                dirty: BTreeSet::new(),
            });
        };
        let dirty = dirty_in(dirt, path);
        let known = known.0.iter().map(|(name, _)| &name.0[..]);
        let names: BTreeSet<&[u8]> = known.chain(dirty.iter().copied()).collect();
        Ok(Look {
            folder,
            names: names.into_iter().map(<[u8]>::to_vec).collect(),
            partly: true,
            dirty,
        })
    }

    /// Counts what lies beneath a folder that is taken over.
    fn admit_beneath(&self, shared: &Shared, node: &Node) -> io::Result<()> {
        match node {
            Node::Folder { beneath, .. } => {
                let names = usize::try_from(beneath.counts.names());
                self.admit(shared, names.unwrap_or(usize::MAX))
            }
            _ => Ok(()),
        }
    }

    /// Counts so many more entries.
    fn admit(&self, shared: &Shared, entries: usize) -> io::Result<()> {
        let before = shared.entries.fetch_add(entries, Ordering::Relaxed);
        if before.saturating_add(entries) <= self.bounds.entries {
            return Ok(());
        }
        let reason = format!("more than {} entries", self.bounds.entries);
        Err(io::Error::new(io::ErrorKind::QuotaExceeded, reason))
    }

    /// Reads the listing of an earlier snapshot; a damaged one is none.
    fn previous(&self, listing: Option<Digest>) -> io::Result<Option<(Digest, Folder)>> {
        let Some(listing) = listing else {
            return Ok(None);
        };
        match self.packs.read_folder(&listing) {
            Ok(folder) => Ok(Some((listing, folder))),
            Err(error) if is_damage(&error) => {
                tracing::warn!(%error, "an earlier snapshot is damaged; its files are read again");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Says what is at one name; `None` where it is gone.
    fn name(
        &self,
        place: Place<'_>,
        (name, old): (&[u8], Option<&Node>),
        part: &mut Part,
    ) -> io::Result<Option<What>> {
        // Where it did not come from the folder itself, what a rule says about it matters only if it is there.
        if place.partly && matches!(Facts::at(place.folder, name), Ok(None)) {
            return Ok(None);
        }
        let Some(flow) = self.flow(place, (name, old)) else {
            return Ok(Some(What::Is(Node::Untracked(Reason::NameTooLong))));
        };
        let untracked = |reason| Ok(Some(What::Is(Node::Untracked(reason))));
        match flow {
            Flow::Ignored => return untracked(Reason::Ignored),
            Flow::Masked => return untracked(Reason::Masked),
            _ => {}
        }
        let facts = match Facts::at(place.folder, name) {
            Ok(Some(facts)) => facts,
            Ok(None) => return Ok(None),
            Err(_) => return untracked(Reason::Unreadable),
        };
        match (facts.kind, old) {
            (FileType::Directory, _) if facts.device != self.root.device() => {
                untracked(Reason::OtherFilesystem)
            }
            (FileType::Directory, old) => {
                let previous = match old {
                    Some(Node::Folder { listing, .. }) => Some(*listing),
                    _ => None,
                };
                let path = RelPath::join(place.path, name).map_err(io::Error::other)?;
                let partly = place.partly && !self.is_dirty_beneath(&path);
                let job = Job {
                    number: 0,
                    path: Some(path),
                    flow,
                    previous,
                    partly,
                };
                Ok(Some(What::Enter(job, facts.mode & PERMISSIONS)))
            }
            (FileType::RegularFile, Some(Node::File(file)))
                if file.is_still(&facts) && !self.packs.is_hurt(file) =>
            {
                Ok(Some(What::Is(Node::File(file.clone()))))
            }
            (FileType::RegularFile, _) if facts.size > self.bounds.file_bytes => {
                untracked(Reason::TooLarge)
            }
            (FileType::RegularFile, _) => match self.file(place, name, part) {
                Ok(file) => Ok(Some(What::Is(Node::File(file)))),
                Err(Unread::Store(error)) => Err(error),
                Err(Unread::File(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(Unread::File(_)) => untracked(Reason::Unreadable),
            },
            (FileType::Symlink, _) => Ok(link(place, name).map(What::Is)),
            _ => untracked(Reason::Special),
        }
    }

    fn is_dirty_beneath(&self, path: &RelPath) -> bool {
        let depth = self.dirt.and_then(|dirt| dirt.get(path));
        depth == Some(&Depth::Beneath)
    }

    /// Says what the rules say of a name; `None` where no path can have it.
    fn flow(&self, place: Place<'_>, (name, old): (&[u8], Option<&Node>)) -> Option<Flow> {
        // They are those of the earlier snapshot, and see nothing but the path.
        Some(match old {
            Some(Node::Untracked(Reason::Ignored)) => Flow::Ignored,
            Some(Node::Untracked(Reason::Masked)) => Flow::Masked,
            Some(Node::File(_) | Node::Link(_)) => Flow::Both,
            _ => {
                let path = RelPath::join(place.path, name).ok()?;
                self.rules.flow_in(place.flow, &path)
            }
        })
    }

    fn file(&self, place: Place<'_>, name: &[u8], part: &mut Part) -> Result<File, Unread> {
        part.read += 1;
        let mut left = TRIES;
        loop {
            left -= 1;
            let (file, before) = open_file(place.folder, name).map_err(Unread::File)?;
            let (digest, size, contents) = self.contents(&file, before.size, part)?;
            let after = rustix::fs::fstat(&file).map_err(|error| Unread::File(error.into()))?;
            let settled = Facts::new(&after) == before && size == before.size;
            if !settled && left > 0 {
                continue;
            }
            if !settled {
                part.torn.extend(RelPath::join(place.path, name));
            }
            let changed = u64::try_from(before.changed.0).unwrap_or(0);
            let changed = Duration::new(changed, before.changed.1);
            let seen = Seen {
                inode: before.inode,
                changed: before.changed,
            };
            return Ok(File {
                digest,
                size,
                mode: before.mode & PERMISSIONS,
                modified: before.modified,
                contents,
                seen: (settled && changed + RACY < self.now).then_some(seen),
            });
        }
    }

    /// Reads a file that is `size` bytes long, and stores it. What is appended meanwhile is not read.
    fn contents(
        &self,
        file: &std::fs::File,
        size: u64,
        part: &mut Part,
    ) -> Result<(Digest, u64, Contents), Unread> {
        let put = |digest, blob: &[u8]| match self.writer {
            Some(writer) => writer.put(digest, blob).map_err(Unread::Store),
            None => Ok(()),
        };
        if let Some(writer) = self.writer.filter(|_| size >= clones::LEAST)
            && let Some((digest, size)) = writer.put_clone(file, size).map_err(Unread::Store)?
        {
            return Ok((digest, size, Contents::Clone));
        }
        let mut file = file.take(size);
        if size <= WHOLE as u64 {
            part.buffer.clear();
            file.read_to_end(&mut part.buffer).map_err(Unread::File)?;
            let digest = Digest::of(&part.buffer);
            put(digest, &part.buffer)?;
            return Ok((digest, part.buffer.len() as u64, Contents::Whole));
        }
        let (mut whole, mut recipe) = (blake3::Hasher::new(), Recipe::default());
        for blob in StreamCDC::new(file, SHORTEST, AVERAGE, WHOLE) {
            let blob = blob.map_err(|error| Unread::File(error.into()))?.data;
            whole.update(&blob);
            let digest = Digest::of(&blob);
            put(digest, &blob)?;
            recipe.0.push(digest);
        }
        let recipe = recipe.encode().map_err(Unread::Store)?;
        let listed = Digest::of(&recipe);
        put(listed, &recipe)?;
        Ok((
            whole.finalize().into(),
            whole.count(),
            Contents::Parts(listed),
        ))
    }
}

/// Whose fault it is that a file has no contents.
enum Unread {
    File(io::Error),
    Store(io::Error),
}

/// A folder that is being read.
#[derive(Clone, Copy)]
struct Place<'a> {
    folder: &'a OwnedFd,
    path: Option<&'a RelPath>,
    flow: Flow,
    partly: bool,
}

/// What there is to look at in an open folder.
struct Look<'a> {
    folder: OwnedFd,
    /// In order.
    names: Vec<Vec<u8>>,
    /// Whether a name stands as it was unless it is dirty.
    partly: bool,
    dirty: BTreeSet<&'a [u8]>,
}

/// Returns the names in `folder` at or beneath which something is dirty.
fn dirty_in<'a>(
    dirt: &'a BTreeMap<RelPath, Depth>,
    folder: Option<&RelPath>,
) -> BTreeSet<&'a [u8]> {
    let from = folder.map_or(Bound::Unbounded, Bound::Excluded);
    let beneath = dirt.range::<RelPath, _>((from, Bound::Unbounded));
    let beneath =
        beneath.take_while(|(path, _)| folder.is_none_or(|folder| path.is_beneath(folder)));
    let depth = folder.map_or(0, RelPath::depth);
    let names = beneath.filter_map(|(path, _)| path.components().nth(depth));
    names.collect()
}

/// What is at a name.
enum What {
    Is(Node),
    Enter(Job, u32),
}

fn link(place: Place<'_>, name: &[u8]) -> Option<Node> {
    let depth = place.path.map_or(0, RelPath::depth) + 1;
    let target = match rustix::fs::readlinkat(place.folder, name, Vec::with_capacity(MAX_TARGET)) {
        Ok(target) => target.into_bytes(),
        Err(rustix::io::Errno::NOENT) => return None,
        Err(_) => return Some(Node::Untracked(Reason::Unreadable)),
    };
    Some(match portable_target(depth, &target) {
        true => Node::Link(target),
        false => Node::Untracked(Reason::EscapingSymlink),
    })
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the next folder, once there is one; `None` when all is done or something failed.
    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.failed.is_some() {
                return None;
            }
            if let Some(job) = state.jobs.pop() {
                state.busy += 1;
                return Some(job);
            }
            if state.busy == 0 {
                return None;
            }
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}
