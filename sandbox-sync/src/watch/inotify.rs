//! The kernel's own events (`man 7 inotify`), one watch for each folder that a scan has read.
//!
//! Watches belong to folders, not to paths: a folder that is moved keeps its watch and its old path here
//! until the scan, which its move made dirty, finds it elsewhere and says so. Events are queued by the call
//! that changes something, so whoever drains the queue knows all that was done before.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::sync::Notify;

use super::{Depth, Dirt};
use crate::path::RelPath;
use crate::root::Root;
use crate::rules::STAGING_PREFIX;
use crate::tree::Tree;

/// Everything that may change what a scan finds. Reading is not in it: our own scans do that.
const MASK: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// How much is read from the queue at a time.
const BUFFER: usize = 16 * 1024;

/// File systems whose changes are all made by this kernel, by their magic numbers (`man 2 statfs`): ext4,
/// xfs, btrfs, tmpfs, overlayfs, f2fs, bcachefs, zfs, ramfs. Any other is not believed.
const LOCAL: [u64; 9] = [
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0x0102_1994,
    0x794c_7630,
    0xf2f5_2010,
    0xca45_1a4e,
    0x2fc1_2fc1,
    0x8584_58f6,
];

/// A running watch.
#[derive(Debug)]
pub(super) struct Events {
    inner: Arc<Inner>,
    /// The thread that waits for events ends when this is closed.
    _alive: OwnedFd,
}

#[derive(Debug)]
struct Inner {
    queue: OwnedFd,
    local: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The folder of each watch; the root is `None`.
    folders: HashMap<i32, Option<RelPath>>,
    dirt: Dirt,
    /// The same since [`Events::renew`], whatever was looked at meanwhile.
    kept: Dirt,
    /// Folders that could not be read: nothing is known of what lies in them.
    shunned: Dirt,
    /// A folder of the last scan has no watch.
    blind: bool,
}

impl Events {
    pub(super) fn start(root: &Root, changed: Arc<Notify>) -> io::Result<Self> {
        let kind = rustix::fs::fstatfs(root.folder())?.f_type;
        let inner = Arc::new(Inner {
            queue: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?,
            // The field's type differs between architectures.
            local: u64::try_from(kind).is_ok_and(|kind| LOCAL.contains(&(kind & 0xffff_ffff))),
            state: Mutex::new(State {
                folders: HashMap::new(),
                dirt: Dirt::Everything,
                kept: Dirt::Everything,
                shunned: Dirt::default(),
                blind: false,
            }),
        });
        let (end, alive) = pipe_with(PipeFlags::CLOEXEC)?;
        let waiting = inner.clone();
        let thread = std::thread::Builder::new().name("sync-watch".into());
        thread.spawn(move || wait(&waiting, (&end, &changed)))?;
        Ok(Self {
            inner,
            _alive: alive,
        })
    }

    pub(super) fn vouch(&self) -> bool {
        self.inner.local && !self.inner.state().blind
    }

    pub(super) fn take(&self) -> Dirt {
        let (mut state, _) = self.inner.drain();
        let dirt = std::mem::take(&mut state.dirt);
        if state.blind || !self.inner.local {
            // The scan that follows sets all watches again.
            state.blind = false;
            return Dirt::Everything;
        }
        dirt
    }

    pub(super) fn renew(&self) -> Dirt {
        let (mut state, _) = self.inner.drain();
        let next = match state.blind || !self.inner.local {
            true => Dirt::Everything,
            false => state.dirt.clone().with(&state.shunned),
        };
        std::mem::replace(&mut state.kept, next)
    }

    pub(super) fn found(&self, paths: &[RelPath]) {
        let mut state = self.inner.state();
        for path in paths {
            state.kept.add(path.clone(), Depth::Beneath);
        }
    }

    pub(super) fn share(&self, tree: &Tree) {
        let mut state = self.inner.state();
        for path in state.folders.values_mut().flatten() {
            if let Some((same, _)) = tree.key_value(path) {
                *path = same.clone();
            }
        }
    }

    pub(super) fn shun(&self, path: &RelPath) {
        let mut state = self.inner.state();
        state.kept.add(path.clone(), Depth::Beneath);
        state.shunned.add(path.clone(), Depth::Beneath);
    }

    pub(super) fn mark(&self, path: &RelPath) {
        self.inner.state().add(path, Depth::Beneath);
    }

    pub(super) fn put_back(&self, paths: BTreeMap<RelPath, Depth>) {
        let mut state = self.inner.state();
        for (path, depth) in paths {
            state.dirt.add(path, depth);
        }
    }

    pub(super) fn lose(&self) {
        self.inner.state().shake();
    }

    pub(super) fn add(&self, folder: &OwnedFd, path: Option<&RelPath>) {
        // The open folder itself, wherever it is by now.
        let place = format!("/proc/self/fd/{}", folder.as_raw_fd());
        let watch = inotify::add_watch(&self.inner.queue, place, MASK);
        let mut state = self.inner.state();
        match watch {
            Ok(watch) => {
                drop(state.folders.insert(watch, path.cloned()));
                if let (Dirt::Paths(shunned), Some(path)) = (&mut state.shunned, path) {
                    shunned.remove(path);
                }
            }
            Err(error) => {
                if !state.blind {
                    tracing::warn!(%error, "cannot watch a folder; reading everything each time");
                }
                (state.blind, state.kept) = (true, Dirt::Everything);
            }
        }
    }

    pub(super) fn forget(&self, path: &RelPath) {
        let gone = |folder: &Option<RelPath>| {
            folder
                .as_ref()
                .is_some_and(|folder| folder == path || folder.is_beneath(path))
        };
        let mut state = self.inner.state();
        for (watch, _) in state.folders.extract_if(|_, folder| gone(folder)) {
            if let Err(error) = inotify::remove_watch(&self.inner.queue, watch) {
                tracing::trace!(%error, "the folder was deleted, and its watch with it");
            }
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what the kernel has queued; `true` where it may matter.
    fn drain(&self) -> (MutexGuard<'_, State>, bool) {
        let mut state = self.state();
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut reader = Reader::new(&self.queue, &mut buffer);
        let mut matters = false;
        loop {
            match reader.next() {
                Ok(event) => matters |= state.take_in(&event),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return (state, matters),
                Err(error) => {
                    tracing::warn!(%error, "cannot read what changed in the workspace");
                    state.blind = true;
                    state.shake();
                    return (state, true);
                }
            }
        }
    }
}

impl State {
    fn add(&mut self, path: &RelPath, depth: Depth) {
        self.dirt.add(path.clone(), depth);
        self.kept.add(path.clone(), depth);
    }

    /// Makes everything dirty.
    fn shake(&mut self) {
        (self.dirt, self.kept) = (Dirt::Everything, Dirt::Everything);
    }

    fn take_in(&mut self, event: &inotify::Event<'_>) -> bool {
        let is = |flags: ReadFlags| event.events().intersects(flags);
        let Some(folder) = self.folders.get(&event.wd()) else {
            // The watch was let go, and the kernel says so. All else is not understood (`S22`): an overflow.
            if is(ReadFlags::IGNORED) {
                return false;
            }
            self.shake();
            return true;
        };
        let path = match event.file_name().map(std::ffi::CStr::to_bytes) {
            Some(name) if name.starts_with(STAGING_PREFIX.as_bytes()) => return false,
            // A name that is too long to be said concerns its folder.
            Some(name) => RelPath::join(folder.as_ref(), name)
                .ok()
                .or_else(|| folder.clone()),
            None => folder.clone(),
        };
        if is(ReadFlags::IGNORED) {
            self.folders.remove(&event.wd());
        }
        let shallow = !is(ReadFlags::ISDIR
            | ReadFlags::CREATE
            | ReadFlags::DELETE
            | ReadFlags::MOVED_FROM
            | ReadFlags::MOVED_TO
            | ReadFlags::DELETE_SELF
            | ReadFlags::MOVE_SELF
            | ReadFlags::UNMOUNT
            | ReadFlags::IGNORED);
        let depth = if shallow && event.file_name().is_some() {
            Depth::Name
        } else {
            Depth::Beneath
        };
        match path {
            Some(path) => self.add(&path, depth),
            None => self.shake(),
        }
        true
    }
}

/// Passes on that something changed, until the other end of the pipe is closed.
fn wait(inner: &Inner, (end, changed): (&OwnedFd, &Notify)) {
    loop {
        let mut ready = [
            PollFd::new(&inner.queue, PollFlags::IN),
            PollFd::new(end, PollFlags::IN),
        ];
        match poll(&mut ready, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                tracing::warn!(%error, "the watch of the workspace ended");
                let mut state = inner.state();
                state.blind = true;
                state.shake();
                return;
            }
        }
        if !ready[1].revents().is_empty() {
            return;
        }
        let (state, matters) = inner.drain();
        drop(state);
        if matters {
            changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests;
