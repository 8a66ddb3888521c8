//! All packs of a store as one: what is in them, and what is added.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use super::clones::{Cloned, Clones};
use super::damage::{damaged, is_damage};
use super::folder::{Contents, File, Folder, Recipe};
use super::hurt::Hurt;
use super::pack::{Pack, PackWriter, Packed, is_pack};
use super::verify::pack_name;
use crate::tree::Digest;

/// A pack is ended when it has so many bytes: what a collector rewrites at a time.
const LONG: u64 = 128 << 20;

/// The packs of a store, as far as they were there when they were last looked for.
#[derive(Debug)]
pub(crate) struct Packs {
    folder: PathBuf,
    open: RwLock<HashMap<PathBuf, Arc<Pack>>>,
    hurt: RwLock<Hurt>,
    /// What is beside them in files of its own.
    pub(crate) clones: Clones,
}

impl Packs {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self {
            clones: Clones::new(folder.with_file_name("clones")),
            folder,
            open: RwLock::default(),
            hurt: RwLock::default(),
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

    /// Tells whether there is a copy of a blob that was not found damaged.
    pub(crate) fn contains(&self, digest: &Digest) -> bool {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let hurt = self.hurt();
        open.values().any(|pack| {
            let is_good =
                || hurt.blobs.is_empty() || !hurt.blobs.contains(&(pack_name(pack), *digest));
            pack.index.find(digest).is_some() && is_good()
        })
    }

    /// Tells whether there is a clone that was not found damaged.
    pub(crate) fn has_clone(&self, digest: &Digest) -> bool {
        let inode = self.clones.inode(digest);
        inode.is_some_and(|inode| !self.hurt().clones.contains(&(*digest, inode)))
    }

    /// Tells whether a file has to be stored anew, as far as that is known.
    pub(crate) fn is_hurt(&self, file: &File) -> bool {
        let is_gone = |digest| self.hurt().gone.contains(digest);
        match &file.contents {
            Contents::Whole => is_gone(&file.digest) && !self.contains(&file.digest),
            Contents::Clone => is_gone(&file.digest) && !self.has_clone(&file.digest),
            Contents::Parts(recipe) => {
                let parts = || Ok(Recipe::decode(&self.read(recipe)?)?.0);
                let whole = |parts: io::Result<Vec<Digest>>| {
                    parts.is_ok_and(|parts| parts.iter().all(|part| self.contains(part)))
                };
                is_gone(recipe) && !whole(parts())
            }
        }
    }

    /// Tells whether anything was found damaged or missing.
    pub(crate) fn is_hurt_at_all(&self) -> bool {
        !self.hurt().is_nothing()
    }

    /// Goes by what a look at everything found, or what an earlier one wrote down.
    pub(crate) fn set_hurt(&self, hurt: Hurt) {
        *self.hurt.write().unwrap_or_else(PoisonError::into_inner) = hurt;
    }

    fn hurt(&self) -> RwLockReadGuard<'_, Hurt> {
        self.hurt.read().unwrap_or_else(PoisonError::into_inner)
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
    /// Whether the store and the folder turned out to share no blocks.
    apart: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    pack: Option<PackWriter>,
    added: HashSet<Digest>,
    finished: Vec<PathBuf>,
    bytes: u64,
    clones: Vec<Cloned>,
    cloned: u64,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(packs: &'a Packs) -> Self {
        Self {
            packs,
            state: Mutex::default(),
            moves: false,
            apart: AtomicBool::new(false),
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

    /// Adds a file whole, by its blocks, and returns its digest and length; `None` where that cannot be done.
    pub(crate) fn put_clone(
        &self,
        file: &fs::File,
        size: u64,
    ) -> io::Result<Option<(Digest, u64)>> {
        if self.apart.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let Some(clone) = self.packs.clones.clone_of(file, size)? else {
            tracing::debug!("the store shares no blocks with the folder: long files are copied");
            self.apart.store(true, Ordering::Relaxed);
            return Ok(None);
        };
        let found = (clone.digest, clone.size);
        let mut state = self.lock();
        state.cloned += 1;
        if !self.packs.has_clone(&found.0) && state.added.insert(found.0) {
            state.clones.push(clone);
        }
        Ok(Some(found))
    }

    /// Returns how many files were added by their blocks.
    pub(crate) fn cloned(&self) -> u64 {
        self.lock().cloned
    }

    /// Makes everything that was added durable, and returns how many bytes it takes.
    pub(crate) fn finish(&self) -> io::Result<u64> {
        let mut state = self.lock();
        state.end()?;
        self.packs.clones.keep(std::mem::take(&mut state.clones))?;
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
