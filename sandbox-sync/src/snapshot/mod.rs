//! Snapshots of a workspace's folder: as it was, to compare with, to go back to.
//!
//! ```text
//! STORE/                      0700
//!   format                    "sandbox snapshots 2\n"
//!   lock                      shared by who writes or reads, exclusive for the collector
//!   packs/DIGEST.pack         blobs: contents of files, listings of folders; see `pack`
//!   damaged                   what the last `Store::verify` found, if anything; see `hurt`
//!   clones/DIGEST             long files, where the file system can share blocks; see `clones`
//!   spaces/SPACE/NAME.snap    one snapshot: the digest of its root's listing; see `manifest`
//! ```
//!
//! A [`Store`] is a folder beside the sandboxes, shared by all of them; each keeps its snapshots in a [`Space`]
//! of its own. What they have in common is there once: contents are named by their digests, long files are cut
//! where their contents say so, and the listing of a folder in which nothing changed is the one that is there.
//! So a later snapshot reads what changed, asks for the facts of everything else, and writes little. Packs
//! rather than a file for each blob, since most files are short and making one costs more than reading one.
//! A session that takes a second one looks only at what its watch saw change since the first.
//!
//! # What is in one
//!
//! The *host's* folder: what the guest did is in it as far as it has flowed there. Files with permissions and
//! modification times, folders, empty ones too, and links that stay inside. What is masked or ignored
//! by the [`Lists`](crate::Lists) is not: it is neither read nor written nor removed (`I8`), so no secret is
//! copied to another place, and a folder that holds one stays. Neither are links that lead out, devices, other file
//! systems; owners, extended attributes and hard links; a restore leaves what it finds of them alone.
//!
//! A file that is written while it is read may be a mixture of old and new: it is said to be torn, and read
//! again by the next snapshot.
//!
//! # Going back
//!
//! [`Space::restore`] first takes an automatic snapshot of the folder as it is, then writes what differs
//! as a synchronizer does: beneath the root, staged, verified, one rename at a time, and never over what that
//! first snapshot did not see. So nothing that was there is lost, whatever is restored, and who writes at the
//! same time keeps what they wrote and is told of (`S51`); what they write between the two renames of one swap
//! is set aside in the staging folder as `rescued-…`. Each path is old or new; a crash leaves some of them old,
//! and the same restore finishes it. The guest's copy follows with the next cycle of its session, like any
//! change of the host's; where that deletes much, the cycle asks first.
//!
//! # What a crash leaves
//!
//! A pack has its name only once it is durable, a snapshot its file only once all packs have theirs. Before
//! that there are files that begin with `.part-`, or a pack that nobody needs; the next [`Store::collect`] removes
//! both. The collector waits until nobody writes or reads, keeps everything that any snapshot needs, and
//! removes nothing at all where it cannot read one. The kernel releases the lock of a process that dies.
//!
//! # What is trusted
//!
//! The folder is its owner's alone; one that others can write to is refused. Every byte that is read from it is
//! verified, and what does not fit its digest is [`Damaged`](ErrorKind::Damaged), never contents. A blob is
//! not read again to be shared: a later snapshot may name one that a disk has damaged meanwhile. [`Store::verify`]
//! reads everything, says which snapshots are hurt, and has the next snapshot store anew what it can.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sandbox_base::lock::FileLock;
use sandbox_base::{ErrorKind, durable};

use crate::error::Error;

mod clones;
mod collect;
mod damage;
mod diff;
mod folder;
mod found;
mod hurt;
mod index;
mod load;
mod manifest;
mod name;
mod pack;
mod packs;
mod report;
mod restore;
mod retention;
mod since;
mod space;
mod verify;
mod walk;

pub use collect::Collected;
pub use manifest::Counts;
pub use name::{MAX_LENGTH, Name};
pub use report::{Against, Options, Restored, Snapshot, Taken};
pub use retention::Retention;
pub use space::Space;
pub use verify::{HurtSnapshot, Verified};

pub(crate) use since::Since;

use damage::is_damage;
use hurt::Hurt;
use pack::sweep_partial;
use packs::Packs;

/// What the last look at everything found, if that was something.
const HURT: &str = "damaged";
const FORMAT: &[u8] = b"sandbox snapshots 2\n";

/// A folder of snapshots. Clones share what they know of it.
///
/// All methods block; call them where blocking is allowed.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
    packs: Arc<Packs>,
}

impl Store {
    /// Opens the store in `folder`, which is made when it is missing.
    ///
    /// # Errors
    ///
    /// `PermissionDenied` where others may write to it; `Unsupported` where it is one of another version;
    /// and what the file system answers.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, Error> {
        let folder = folder.into();
        prepare(&folder).map_err(failed("open the store of snapshots"))?;
        let meta = fs::metadata(&folder).map_err(failed("open the store of snapshots"))?;
        if meta.mode() & 0o022 != 0 || meta.uid() != rustix::process::geteuid().as_raw() {
            let detail = format!("others may write to {}", folder.display());
            return Err(Error::new(
                ErrorKind::PermissionDenied,
                "trust the store of snapshots",
                detail,
            ));
        }
        let format =
            fs::read(folder.join("format")).map_err(failed("open the store of snapshots"))?;
        if format != FORMAT {
            let detail = format!("{} is of another version", folder.display());
            return Err(Error::new(
                ErrorKind::Unsupported,
                "open the store of snapshots",
                detail,
            ));
        }
        let packs = Arc::new(Packs::new(folder.join("packs")));
        Ok(Self { folder, packs })
    }

    /// Returns the space of that name, where the snapshots of one sandbox or folder are.
    ///
    /// # Errors
    ///
    /// `Invalid` where it is no [`Name`].
    pub fn space(&self, name: &str) -> Result<Space, Error> {
        Ok(Space::new(self.clone(), Name::new(name)?))
    }

    /// Lists the spaces that have had a snapshot, by name.
    ///
    /// # Errors
    ///
    /// What the file system answers.
    pub fn spaces(&self) -> Result<Vec<Name>, Error> {
        let found = self
            .space_names()
            .map_err(failed("list the spaces of snapshots"))?;
        Ok(found)
    }

    /// Removes what no snapshot needs, and what a process left that died. Waits until nobody takes, reads or
    /// restores one.
    ///
    /// # Errors
    ///
    /// `Damaged` where a snapshot cannot be read to its end (nothing is removed then: remove that
    /// snapshot first), and what the file system answers.
    pub fn collect(&self) -> Result<Collected, Error> {
        self.collect_now()
            .map_err(failed("collect what no snapshot needs"))
    }

    fn collect_now(&self) -> io::Result<Collected> {
        let _alone = self.lock(true)?;
        let mut trees = Vec::new();
        for name in self.space_names()? {
            let space = Space::new(self.clone(), name);
            trees.extend(space.trees()?);
            sweep_partial(&space.folder())?;
        }
        collect::collect(&self.packs, trees)
    }

    /// Reads and verifies everything, and says which snapshots are hurt. It is written down as well: from then
    /// on, a snapshot stores contents anew of which there is no whole copy, where the folder has them.
    ///
    /// Takes as long as reading the store does. Snapshots can be taken meanwhile.
    ///
    /// # Errors
    ///
    /// What the file system answers.
    pub fn verify(&self) -> Result<Verified, Error> {
        self.verify_now()
            .map_err(failed("verify the store of snapshots"))
    }

    fn verify_now(&self) -> io::Result<Verified> {
        let _lock = self.lock(false)?;
        let (read, bad) = verify::read_all(&self.packs)?;
        let damaged = (bad.blobs.len() + bad.clones.len()) as u64;
        self.packs.set_hurt(bad.clone());
        let mut search = verify::Search::new(&self.packs, bad);
        let mut hurt = Vec::new();
        for name in self.space_names()? {
            hurt.extend(Space::new(self.clone(), name).verify(&mut search)?);
        }
        let found = search.hurt;
        match (found.is_nothing(), fs::remove_file(self.folder.join(HURT))) {
            (false, _) => durable::write(&self.folder.join(HURT), &found.encode()?)?,
            (true, Err(error)) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            (true, _) => {}
        }
        self.packs.set_hurt(found);
        Ok(Verified {
            read,
            damaged,
            hurt,
        })
    }

    /// Reads what the last [`Store::verify`] wrote down; where that cannot be read, it is nothing.
    fn read_hurt(&self) -> io::Result<Hurt> {
        let read = match fs::read(self.folder.join(HURT)) {
            Ok(bytes) => Hurt::decode(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Hurt::default()),
            Err(error) => Err(error),
        };
        match read {
            Err(error) if is_damage(&error) => {
                tracing::warn!(%error, "verify the store of snapshots again");
                Ok(Hurt::default())
            }
            other => other,
        }
    }

    fn space_names(&self) -> io::Result<Vec<Name>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.folder.join("spaces"))? {
            let name = entry?.file_name();
            names.extend(name.to_str().and_then(|name| Name::new(name).ok()));
        }
        names.sort();
        Ok(names)
    }

    /// Waits for the lock, and looks for packs that are new or gone.
    fn lock(&self, alone: bool) -> io::Result<FileLock> {
        let path = self.folder.join("lock");
        let lock = match alone {
            true => FileLock::acquire(&path)?,
            false => FileLock::acquire_shared(&path)?,
        };
        self.packs.refresh()?;
        self.packs.set_hurt(self.read_hurt()?);
        Ok(lock)
    }
}

/// Makes the folders and files of an empty store where they are missing.
fn prepare(folder: &Path) -> io::Result<()> {
    let make = |folder: PathBuf| {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
    };
    make(folder.to_owned())?;
    if folder.join("format").exists() {
        return Ok(());
    }
    make(folder.join("packs"))?;
    make(folder.join("spaces"))?;
    let lock = folder.join("lock");
    if !lock.exists() {
        // Two processes may do this at once: the file that is locked must stay the same one.
        match private().create_new(true).open(lock) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    // Last, so that a store of a format has everything.
    durable::write(&folder.join("format"), FORMAT)
}

/// Returns how files are opened that are written here.
fn private() -> fs::OpenOptions {
    let mut options = File::options();
    options.write(true);
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Makes the error of what failed here.
fn failed(operation: &'static str) -> impl Fn(io::Error) -> Error {
    move |error| match is_damage(&error) {
        true => Error::new(ErrorKind::Damaged, operation, error.to_string()),
        false => Error::io(operation, error),
    }
}

#[cfg(test)]
mod tests;
