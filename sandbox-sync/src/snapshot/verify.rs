//! Every byte of a store is read and verified.
//!
//! A blob is not read again to be shared, so damage of a disk goes unnoticed until somebody restores. Whoever
//! has a store verified learns which snapshots are hurt before that. What was found is written down; the next
//! snapshot reads the files of which there is no whole copy again, where the folder still has them, and stores
//! them anew: then the older snapshots that share their contents are whole as well.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use super::damage::is_damage;
use super::folder::{Contents, File, Node, Recipe};
use super::hurt::Hurt;
use super::name::Name;
use super::pack::Pack;
use super::packs::Packs;
use crate::path::RelPath;
use crate::tree::Digest;

/// More paths of one snapshot than this are counted and not named.
const NAMED: usize = 100;

/// What a look at everything in a store found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified {
    /// How many blobs and clones were read.
    pub read: u64,
    /// How many of them are damaged; another copy of the same contents may be whole.
    pub damaged: u64,
    /// The snapshots that cannot be restored whole, by space and name.
    pub hurt: Vec<HurtSnapshot>,
}

/// A snapshot that cannot be restored whole.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HurtSnapshot {
    /// The space that it is in.
    pub space: Name,
    /// What it is called.
    pub name: Name,
    /// What of it is not there, in the order of paths, at most a hundred; of a folder whose listing is lost,
    /// the folder. Empty where that is the root, or the snapshot's own file.
    pub paths: Vec<RelPath>,
    /// How many more there are.
    pub more: u64,
}

/// Reads all blobs and clones and returns how many there are, and the copies that are bad.
pub(super) fn read_all(packs: &Packs) -> io::Result<(u64, Hurt)> {
    let (mut read, mut hurt) = (0, Hurt::default());
    let note = |result: io::Result<()>| match result {
        Err(error) if is_damage(&error) => Ok(true),
        Err(error) => Err(error),
        Ok(()) => Ok(false),
    };
    for pack in packs.all() {
        for (digest, place) in pack.index.iter() {
            read += 1;
            if note(pack.read(&digest, place).map(drop))? {
                hurt.blobs.insert((pack_name(&pack), digest));
            }
        }
    }
    for (digest, inode) in packs.clones.all()? {
        read += 1;
        if note(packs.clones.verify(&digest))? {
            hurt.clones.insert((digest, inode));
        }
    }
    Ok((read, hurt))
}

/// Returns what a pack is called.
pub(super) fn pack_name(pack: &Pack) -> String {
    let name = pack.path().file_name().map(Path::new);
    name.map(|name| name.display().to_string())
        .unwrap_or_default()
}

/// Looks for what snapshots need and there is no whole copy of.
#[derive(Debug)]
pub(super) struct Search<'a> {
    pub(super) packs: &'a Packs,
    pub(super) hurt: Hurt,
    /// How much is missing beneath folders that were looked at already: with most snapshots, all of them.
    known: HashMap<Digest, bool>,
}

/// What is missing in one snapshot.
#[derive(Debug, Default)]
pub(super) struct Missing {
    pub(super) paths: Vec<RelPath>,
    pub(super) count: u64,
}

impl Missing {
    fn add(&mut self, path: Option<RelPath>) {
        self.count += 1;
        self.paths.extend(path);
    }

    /// Returns the first paths in order, and how many more there are.
    pub(super) fn named(mut self) -> (Vec<RelPath>, u64) {
        self.paths.sort();
        self.paths.truncate(NAMED);
        let more = self.count.saturating_sub(self.paths.len() as u64);
        (self.paths, more)
    }
}

impl<'a> Search<'a> {
    pub(super) fn new(packs: &'a Packs, hurt: Hurt) -> Self {
        Self {
            packs,
            hurt,
            known: HashMap::new(),
        }
    }

    /// Notes what is missing of a folder with this listing; returns whether nothing is.
    pub(super) fn folder(
        &mut self,
        (path, listing): (Option<&RelPath>, Digest),
        missing: &mut Missing,
    ) -> io::Result<bool> {
        if self.known.get(&listing) == Some(&true) {
            return Ok(true);
        }
        let folder = match self.packs.read_folder(&listing) {
            Ok(folder) => folder,
            Err(error) if is_damage(&error) => {
                self.hurt.gone.insert(listing);
                missing.add(path.cloned());
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let mut whole = true;
        for (name, node) in folder.0 {
            let Ok(path) = RelPath::join(path, &name.0) else {
                continue;
            };
            whole &= match node {
                Node::Folder { listing, .. } => self.folder((Some(&path), listing), missing)?,
                Node::File(file) if !self.file(&file)? => {
                    missing.add(Some(path));
                    false
                }
                _ => true,
            };
        }
        self.known.insert(listing, whole);
        Ok(whole)
    }

    /// Tells whether there is a whole copy of a file, and notes what of it is gone.
    fn file(&mut self, file: &File) -> io::Result<bool> {
        let gone = match file.contents {
            Contents::Whole => (!self.packs.contains(&file.digest)).then_some(file.digest),
            Contents::Clone => (!self.packs.has_clone(&file.digest)).then_some(file.digest),
            Contents::Parts(recipe) => match self.packs.read(&recipe) {
                Ok(bytes) => {
                    let parts = Recipe::decode(&bytes)?.0;
                    let all = parts.iter().all(|part| self.packs.contains(part));
                    (!all).then_some(recipe)
                }
                Err(error) if is_damage(&error) => Some(recipe),
                Err(error) => return Err(error),
            },
        };
        self.hurt.gone.extend(gone);
        Ok(gone.is_none())
    }
}
