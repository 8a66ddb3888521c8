//! Long files as files of their own, which share their blocks with the files that they were taken of.
//!
//! Where the store lies on the file system of the folder and that one can share blocks (btrfs, xfs), a long
//! file is not read into packs: the kernel makes a second file of the same blocks, at one moment. What was
//! cloned is read through once for its digest, which is its name. It takes room only as the original changes.
//! Elsewhere nothing is tried twice, and the file goes into packs.
//!
//! As with packs, a clone has its name only once it is durable, and only its owner may read it.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use super::damage::damaged;
use super::pack::{partial_name, sweep_partial};
use crate::scan::BUFFER;
use crate::stage::{flush_filesystem, share_blocks};
use crate::tree::Digest;

/// Shorter files go into packs, where they cost less than a file each.
pub(crate) const LEAST: u64 = 4 << 20;
/// So many are flushed one by one; more with their file system.
const FLUSHED_TOGETHER: usize = 16;

/// The clones of a store.
#[derive(Debug)]
pub(crate) struct Clones {
    folder: PathBuf,
}

/// A clone that has no name yet; dropped before [`Clones::keep`], it is removed.
#[derive(Debug)]
pub(crate) struct Cloned {
    path: PathBuf,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

impl Drop for Cloned {
    fn drop(&mut self) {
        match fs::remove_file(&self.path) {
            // It has its name.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::debug!(%error, "cannot clear a partial clone"),
            Ok(()) => {}
        }
    }
}

impl Clones {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Clones the first `size` bytes of a file; `None` where that cannot be done here.
    pub(crate) fn clone_of(&self, file: &File, size: u64) -> io::Result<Option<Cloned>> {
        match DirBuilder::new().mode(0o700).create(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let path = self.folder.join(partial_name());
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let mut cloned = options.open(&path)?;
        let mut clone = Cloned {
            path,
            digest: Digest::of(b""),
            size,
        };
        if !share_blocks(&cloned, file)? {
            return Ok(None);
        }
        // It may have grown since it was looked at.
        clone.size = cloned.metadata()?.len().min(size);
        cloned.set_len(clone.size)?;
        clone.digest = digest_of(&mut cloned)?.0;
        Ok(Some(clone))
    }

    /// Makes clones durable and gives them their names, which stay only once the folder is flushed.
    pub(crate) fn keep(&self, clones: Vec<Cloned>) -> io::Result<()> {
        if clones.is_empty() {
            return Ok(());
        }
        let folder = File::open(&self.folder)?;
        match clones.len() > FLUSHED_TOGETHER {
            true => flush_filesystem(&folder.into())?,
            false => clones
                .iter()
                .try_for_each(|clone| File::open(&clone.path)?.sync_all())?,
        }
        for clone in clones {
            fs::rename(&clone.path, self.path(&clone.digest))?;
        }
        File::open(&self.folder)?.sync_all()
    }

    /// Opens a clone; what is read from it is for the caller to verify.
    pub(crate) fn open(&self, digest: &Digest) -> io::Result<File> {
        File::open(self.path(digest)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => damaged(format!("the clone {digest} is missing")),
            _ => error,
        })
    }

    /// Reads a clone through.
    pub(crate) fn verify(&self, digest: &Digest) -> io::Result<()> {
        let (found, _) = digest_of(&mut self.open(digest)?)?;
        match found == *digest {
            true => Ok(()),
            false => Err(damaged(format!("the clone {digest} is damaged"))),
        }
    }

    /// Removes the clones that are not needed and what a process left that died, and returns how long they
    /// were; to be called while nobody writes.
    pub(crate) fn collect(&self, needed: &HashSet<Digest>) -> io::Result<u64> {
        let mut freed = 0;
        if !self.folder.is_dir() {
            return Ok(0);
        }
        sweep_partial(&self.folder)?;
        let needed: HashSet<String> = needed.iter().map(ToString::to_string).collect();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let is_needed = entry
                .file_name()
                .to_str()
                .is_some_and(|name| needed.contains(name));
            if !is_needed {
                freed += entry.metadata()?.len();
                fs::remove_file(entry.path())?;
            }
        }
        File::open(&self.folder)?.sync_all()?;
        Ok(freed)
    }

    /// Returns which clones there are, and their inodes.
    pub(crate) fn all(&self) -> io::Result<Vec<(Digest, u64)>> {
        let mut all = Vec::new();
        if !self.folder.is_dir() {
            return Ok(all);
        }
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let digest = name
                .to_str()
                .and_then(|name| blake3::Hash::from_hex(name).ok());
            if let Some(digest) = digest {
                all.push((digest.into(), entry.metadata()?.ino()));
            }
        }
        Ok(all)
    }

    /// Returns the inode of a clone that is there.
    pub(crate) fn inode(&self, digest: &Digest) -> Option<u64> {
        let meta = fs::symlink_metadata(self.path(digest)).ok()?;
        meta.is_file().then(|| meta.ino())
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.to_string())
    }
}

/// Reads a file through from where it stands, and returns its digest and how much was read.
pub(crate) fn digest_of(file: &mut impl io::Read) -> io::Result<(Digest, u64)> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER * 8];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((hasher.finalize().into(), hasher.count())),
            Ok(read) => drop(hasher.update(&buffer[..read])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests;
