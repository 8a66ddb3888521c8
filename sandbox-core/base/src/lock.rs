//! Who owns a folder, told by the kernel and released by death.
//!
//! An advisory lock on an open file (`flock` on Unix, `LockFileEx` on Windows, through the standard
//! library): it goes with the last descriptor, so a killed process never leaves it behind, and there is
//! no stale lock to guess about. The file itself stays; removing it would let two processes lock two
//! files of one name.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// A lock, held until it is dropped; then it is let go by name, because a child process may have inherited
/// the descriptor for the moment between its fork and its exec.
#[derive(Debug)]
pub struct FileLock {
    path: PathBuf,
    file: File,
}

impl FileLock {
    /// Takes the lock alone, at once, or answers `None` when another process, or another handle in this one,
    /// holds it. The file is created when it is missing; its folder must exist.
    ///
    /// # Errors
    ///
    /// What the file system answers.
    pub fn try_acquire(path: &Path) -> io::Result<Option<Self>> {
        let file = open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self {
                path: path.to_owned(),
                file,
            })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Takes the lock alone, waiting for as long as another holds it. Blocks the thread: call it where
    /// blocking is allowed.
    ///
    /// # Errors
    ///
    /// What the file system answers.
    pub fn acquire(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        file.lock()?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Takes the lock together with others who share it, at once, or answers `None` while one holds it alone.
    ///
    /// # Errors
    ///
    /// As [`FileLock::try_acquire`].
    pub fn try_acquire_shared(path: &Path) -> io::Result<Option<Self>> {
        let file = open(path)?;
        match file.try_lock_shared() {
            Ok(()) => Ok(Some(Self {
                path: path.to_owned(),
                file,
            })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Tells whether the file that is locked still is the one of its name: somebody may have removed it while it was
    /// waited for.
    #[cfg(unix)]
    pub fn is_in_place(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let there = std::fs::symlink_metadata(&self.path).map(identity);
        matches!((there, self.file.metadata().map(identity)), (Ok(there), Ok(here)) if there == here)
    }

    /// Takes the lock together with others who share it, waiting for as long as one holds it alone. Blocks
    /// the thread: call it where blocking is allowed.
    ///
    /// # Errors
    ///
    /// What the file system answers.
    pub fn acquire_shared(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        file.lock_shared()?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Returns the path of the lock's file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        if let Err(error) = self.file.unlock() {
            tracing::debug!(%error, path = %self.path.display(), "cannot let go of a lock");
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_lock_is_refused_and_a_dropped_one_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let held = FileLock::try_acquire(&path).unwrap().unwrap();
        assert!(FileLock::try_acquire(&path).unwrap().is_none());
        drop(held);
        assert!(FileLock::try_acquire(&path).unwrap().is_some());
    }

    #[test]
    fn a_shared_lock_is_shared_and_keeps_out_who_wants_it_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let one = FileLock::acquire_shared(&path).unwrap();
        let two = FileLock::acquire_shared(&path).unwrap();
        drop(one);
        assert!(FileLock::try_acquire(&path).unwrap().is_none());
        assert!(FileLock::try_acquire_shared(&path).unwrap().is_some());
        drop(two);
        let alone = FileLock::try_acquire(&path).unwrap().unwrap();
        assert!(FileLock::try_acquire_shared(&path).unwrap().is_none());
        #[cfg(unix)]
        {
            assert!(alone.is_in_place());
            std::fs::remove_file(&path).unwrap();
            let another = FileLock::try_acquire(&path).unwrap().unwrap();
            assert!(another.is_in_place() && !alone.is_in_place());
        }
    }
}
