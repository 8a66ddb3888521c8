//! All packs of a store as one: what is in them, and what is added.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::damage::{damaged, is_damage};
use super::folder::Folder;
use super::pack::{Pack, PackWriter, Packed, is_pack};
use crate::tree::Digest;

/// A pack is ended when it has so many bytes: what a collector rewrites at a time.
const LONG: u64 = 128 << 20;

/// The packs of a store, as far as they were there when they were last looked for.
#[derive(Debug)]
pub(crate) struct Packs {
    folder: PathBuf,
    open: RwLock<HashMap<PathBuf, Arc<Pack>>>,
}

impl Packs {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            open: RwLock::default(),
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Opens what is new and lets go of what is gone; to be called under the store's lock. A pack whose
    /// index is damaged is left aside: what is only in it is missing then.
    pub(crate) fn refresh(&self) -> io::Result<()> {
        let mut there = HashSet::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(is_pack) {
                there.insert(entry.path());
            }
        }
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        open.retain(|path, _| there.contains(path));
        for path in there {
            if open.contains_key(&path) {
                continue;
            }
            match Pack::open(&path) {
                Ok(pack) => drop(open.insert(path, Arc::new(pack))),
                Err(error) if is_damage(&error) => {
                    tracing::warn!(%error, "a pack of snapshots is left aside");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Returns the packs that are open.
    pub(crate) fn all(&self) -> Vec<Arc<Pack>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.values().cloned().collect()
    }

    pub(crate) fn contains(&self, digest: &Digest) -> bool {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.values().any(|pack| pack.index.find(digest).is_some())
    }

    /// Reads a blob, from whichever pack has it whole.
    pub(crate) fn read(&self, digest: &Digest) -> io::Result<Vec<u8>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let mut told = None;
        for pack in open.values() {
            let Some(place) = pack.index.find(digest) else {
                continue;
            };
            match pack.read(digest, place) {
                Err(error) if is_damage(&error) => told = Some(error),
                other => return other,
            }
        }
        Err(told.unwrap_or_else(|| damaged(format!("the blob {digest} is missing"))))
    }

    pub(crate) fn read_folder(&self, listing: &Digest) -> io::Result<Folder> {
        Folder::decode(&self.read(listing)?)
    }
}

/// Adds blobs that no pack has, from any thread.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    packs: &'a Packs,
    state: Mutex<State>,
    /// Whether to write also what a pack has already: blobs are being moved.
    moves: bool,
}

#[derive(Debug, Default)]
struct State {
    pack: Option<PackWriter>,
    added: HashSet<Digest>,
    finished: Vec<PathBuf>,
    bytes: u64,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(packs: &'a Packs) -> Self {
        Self {
            packs,
            state: Mutex::default(),
            moves: false,
        }
    }

    /// Makes one that writes what it is given even where a pack has it.
    pub(crate) fn moving(packs: &'a Packs) -> Self {
        Self {
            moves: true,
            ..Self::new(packs)
        }
    }

    /// Adds a blob unless it is there.
    pub(crate) fn put(&self, digest: Digest, blob: &[u8]) -> io::Result<()> {
        if !self.moves && self.packs.contains(&digest) {
            return Ok(());
        }
        if !self.lock().added.insert(digest) {
            return Ok(());
        }
        // Outside of the lock, so that several threads compress at once.
        let packed = Packed::new(blob)?;
        let mut state = self.lock();
        if state.pack.is_none() {
            state.pack = Some(PackWriter::create(&self.packs.folder)?);
        }
        if let Some(pack) = &mut state.pack {
            pack.append(digest, &packed)?;
            if pack.length() > LONG {
                state.end()?;
            }
        }
        Ok(())
    }

    /// Makes everything that was added durable, and returns how many bytes it takes.
    pub(crate) fn finish(&self) -> io::Result<u64> {
        let mut state = self.lock();
        state.end()?;
        if !state.finished.is_empty() {
            fs::File::open(&self.packs.folder)?.sync_all()?;
            self.packs.refresh()?;
        }
        Ok(state.bytes)
    }

    /// Returns the packs that were written and have their names.
    pub(crate) fn written(&self) -> Vec<PathBuf> {
        self.lock().finished.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn end(&mut self) -> io::Result<()> {
        if let Some(pack) = self.pack.take() {
            self.bytes += pack.length();
            self.finished.push(pack.finish()?);
        }
        Ok(())
    }
}
