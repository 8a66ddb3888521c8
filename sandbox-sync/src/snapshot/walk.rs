//! From a folder to the nodes of a snapshot, on all processors.
//!
//! A stack of folders is worked off by several threads. Each reads the names of one folder, asks for the facts
//! of each, and compares them with what the previous snapshot says of that folder: a file whose length, mode,
//! times and inode are the same has the same contents, and what the rules say of a name that was there they
//! say again. Only the others are read. In the end the listings are put together from the leaves up, and one
//! that is what it was costs no more than being compared.
//!
//! A file is read between two looks at its facts. Where they differ it was being written and is read again,
//! up to [`TRIES`] times; what is still being written then is in the snapshot as it was read, is said to be
//! torn, and is read again by the next one (`S52`). So is what was changed within [`RACY`] of being read.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fastcdc::v2020::StreamCDC;
use rustix::fs::FileType;

use super::damage::is_damage;
use super::folder::{Contents, File, Folder, Named, Node, PERMISSIONS, Recipe, Seen};
use super::found::{Found, Listed, Part};
use super::packs::{Packs, Writer};
use crate::path::RelPath;
use crate::root::{Facts, Root};
use crate::rules::{Flow, Rules};
use crate::scan::{Bounds, names, open_file};
use crate::tree::{Digest, MAX_TARGET, Reason, portable_target};

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
}

/// What the threads share.
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    numbers: AtomicUsize,
    entries: AtomicUsize,
    now: Duration,
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
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let first = Job {
            number: 0,
            path: None,
            flow: Flow::Both,
            previous: self.previous,
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
            now: now.unwrap_or_default(),
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
        };
        let (names, folder) = match self.names(listed.path.as_ref()) {
            Ok(read) => read,
            Err(error) if listed.path.is_none() => return Err(error),
            Err(error) => {
                let gone = error.kind() == io::ErrorKind::NotFound;
                listed.failed = Some((!gone).then_some(Reason::Unreadable));
                return Ok((listed, Vec::new()));
            }
        };
        self.admit(shared, names.len())?;
        let mut jobs = Vec::new();
        for name in names {
            let old = listed
                .previous
                .as_ref()
                .and_then(|(_, old)| old.node(&name));
            let place = Place {
                shared,
                folder: &folder,
                path: listed.path.as_ref(),
                flow: job.flow,
            };
            match self.name(place, (&name, old), part)? {
                Some(What::Enter(mut job, mode)) => {
                    job.number = shared.numbers.fetch_add(1, Ordering::Relaxed);
                    listed.children.push((listed.entries.len(), job.number));
                    // The listing is filled in when it is known.
                    let listing = job.previous.unwrap_or_else(|| Digest::of(b""));
                    listed
                        .entries
                        .push((Named(name), Node::Folder { listing, mode }));
                    jobs.push(job);
                }
                Some(What::Is(node)) => listed.entries.push((Named(name), node)),
                None => {}
            }
        }
        Ok((listed, jobs))
    }

    /// Reads the names of a folder, in order.
    fn names(&self, path: Option<&RelPath>) -> io::Result<(Vec<Vec<u8>>, OwnedFd)> {
        let folder = self.root.directory(path)?;
        let mut names = names(&folder)?;
        names.sort_unstable();
        Ok((names, folder))
    }

    /// Counts so many more entries.
    fn admit(&self, shared: &Shared, entries: usize) -> io::Result<()> {
        let before = shared.entries.fetch_add(entries, Ordering::Relaxed);
        if before + entries <= self.bounds.entries {
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
                let job = Job {
                    number: 0,
                    path: Some(path),
                    flow,
                    previous,
                };
                Ok(Some(What::Enter(job, facts.mode & PERMISSIONS)))
            }
            (FileType::RegularFile, Some(Node::File(file))) if file.is_still(&facts) => {
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
                seen: (settled && changed + RACY < place.shared.now).then_some(seen),
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
    shared: &'a Shared,
    folder: &'a OwnedFd,
    path: Option<&'a RelPath>,
    flow: Flow,
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
