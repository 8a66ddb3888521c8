//! A root pinned by a descriptor, and folders beneath it that cannot lie elsewhere.
//!
//! The root is opened once; whatever later takes its path does not become the root (`S20`, `S56`). Every
//! folder beneath it is opened by the kernel's own rule, `openat2(2)` with `RESOLVE_BENEATH`,
//! `RESOLVE_NO_SYMLINKS`, `RESOLVE_NO_MAGICLINKS` and `RESOLVE_NO_XDEV`, or, where that call is missing,
//! name by name with `O_NOFOLLOW`. Everything is then done to one name within an open folder, so a folder
//! that is swapped for a link meanwhile leads nowhere (`S32`).

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::path::RelPath;
use crate::probe::Names;

/// The flags of every folder that we open.
pub(crate) const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// What the kernel says about one name, in types that do not differ between platforms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) kind: FileType,
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) modified: (i64, u32),
    pub(crate) changed: (i64, u32),
}

impl Facts {
    #[allow(
        clippy::unnecessary_cast,
        clippy::cast_possible_truncation,
        reason = "the fields' types differ between platforms; nanoseconds fit 32 bits"
    )]
    pub(crate) fn new(stat: &Stat) -> Self {
        Self {
            kind: FileType::from_raw_mode(stat.st_mode),
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mode: stat.st_mode as u32,
            modified: (stat.st_mtime as i64, stat.st_mtime_nsec as u32),
            changed: (stat.st_ctime as i64, stat.st_ctime_nsec as u32),
        }
    }

    /// Tells about `name` in `folder`, not following a link; `None` where there is nothing.
    pub(crate) fn at(folder: &OwnedFd, name: &[u8]) -> io::Result<Option<Self>> {
        match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Self::new(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns a number that is another one for other facts, save by a chance of 1 in 2^64.
    pub(crate) fn fingerprint(&self, key: &RandomState) -> u64 {
        // The mode tells the kind as well.
        let identity = (self.device, self.inode, self.mode);
        key.hash_one((identity, self.size, self.modified, self.changed))
    }

    pub(crate) fn is_executable(&self) -> bool {
        self.mode & 0o100 != 0
    }
}

/// The root of one replica.
#[derive(Debug)]
pub(crate) struct Root {
    path: PathBuf,
    folder: OwnedFd,
    device: u64,
    inode: u64,
    names: OnceLock<Names>,
}

impl Root {
    /// Opens the folder at `path`; links in the path are followed once, here.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let path = path.canonicalize()?;
        let folder = rustix::fs::open(&path, DIRECTORY, Mode::empty())?;
        let facts = Facts::new(&rustix::fs::fstat(&folder)?);
        Ok(Self {
            path,
            folder,
            device: facts.device,
            inode: facts.inode,
            names: OnceLock::new(),
        })
    }

    /// Returns which names are one here, as far as somebody [found out](Root::set_names).
    pub(crate) fn names(&self) -> Names {
        self.names.get().copied().unwrap_or_default()
    }

    /// Says which names are one here; what was said first holds.
    pub(crate) fn set_names(&self, names: Names) {
        self.names.get_or_init(|| names);
    }

    /// Takes the lock of this root, so that no second session writes to it by itself; released on drop or death.
    ///
    /// # Errors
    ///
    /// `ResourceBusy` while another session has it.
    pub(crate) fn lock(&self) -> io::Result<()> {
        lock(&self.folder)
    }

    /// Takes the lock of this root, waiting no longer than `patience` for an earlier session to end.
    pub(crate) fn lock_within(&self, patience: Duration) -> io::Result<()> {
        within(patience, || self.lock())
    }

    /// Tells whether the path still leads to the folder that was opened.
    pub(crate) fn is_in_place(&self) -> bool {
        rustix::fs::lstat(&self.path)
            .map(|stat| Facts::new(&stat))
            .is_ok_and(|facts| (facts.device, facts.inode) == (self.device, self.inode))
    }

    /// Tells whether both are one folder.
    pub(crate) fn is(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn device(&self) -> u64 {
        self.device
    }

    pub(crate) fn folder(&self) -> &OwnedFd {
        &self.folder
    }

    /// Opens the folder at `path`, the root for `None`; its names are read from the first one.
    pub(crate) fn directory(&self, path: Option<&RelPath>) -> io::Result<OwnedFd> {
        match path {
            None => Ok(rustix::fs::openat(
                &self.folder,
                ".",
                DIRECTORY,
                Mode::empty(),
            )?),
            Some(path) => open_beneath(&self.folder, path),
        }
    }

    /// Opens the folder that holds `path`.
    pub(crate) fn parent_of(&self, path: &RelPath) -> io::Result<OwnedFd> {
        self.directory(path.parent().as_ref())
    }
}

#[cfg(target_os = "linux")]
fn open_beneath(root: &OwnedFd, path: &RelPath) -> io::Result<OwnedFd> {
    use rustix::fs::ResolveFlags;
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    // The kernel asks for another try where a rename raced with the walk (`man 2 openat2`).
    for _ in 0..8 {
        match rustix::fs::openat2(root, path.as_bytes(), DIRECTORY, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            // Kernels before 5.6, and filters that do not know the call.
            Err(Errno::NOSYS | Errno::PERM) => return open_by_name(root, path),
            result => return Ok(result?),
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

#[cfg(not(target_os = "linux"))]
fn open_beneath(root: &OwnedFd, path: &RelPath) -> io::Result<OwnedFd> {
    open_by_name(root, path)
}

impl Drop for Root {
    fn drop(&mut self) {
        unlock(&self.folder);
    }
}

/// Takes the lock of a folder for whoever opened it.
///
/// # Errors
///
/// `ResourceBusy` while somebody else has it.
pub(crate) fn lock(folder: &OwnedFd) -> io::Result<()> {
    match rustix::fs::flock(folder, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Err(io::ErrorKind::ResourceBusy.into()),
        // Some network file systems have no locks; nobody can hold one there.
        Err(Errno::NOLCK | Errno::NOTSUP | Errno::INVAL | Errno::NOSYS) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Lets go of a folder's lock. A descriptor that a child process inherited for the moment between its fork and its exec
/// would keep it; so it is let go by name.
pub(crate) fn unlock(folder: &OwnedFd) {
    if let Err(error) = rustix::fs::flock(folder, FlockOperation::Unlock) {
        tracing::debug!(%error, "cannot let go of a folder's lock");
    }
}

/// Tries again what somebody else is in the way of, for as long as `patience`. Blocks.
pub(crate) fn within<T>(
    patience: Duration,
    mut attempt: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    let until = Instant::now() + patience;
    loop {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

/// Opens name by name; a link or another file system at any of them is an error.
fn open_by_name(root: &OwnedFd, path: &RelPath) -> io::Result<OwnedFd> {
    let device = Facts::new(&rustix::fs::fstat(root)?).device;
    let mut folder = root.try_clone()?;
    for name in path.components() {
        folder = rustix::fs::openat(&folder, name, DIRECTORY, Mode::empty())?;
        if Facts::new(&rustix::fs::fstat(&folder)?).device != device {
            return Err(Errno::XDEV.into());
        }
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn s31_s32_no_link_is_followed_by_either_way_of_opening() {
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir(outside.path().join("sub")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        symlink(outside.path(), folder.path().join("out")).unwrap();
        symlink("a", folder.path().join("in")).unwrap();
        symlink("in/../..", folder.path().join("chain")).unwrap();
        let root = Root::open(folder.path()).unwrap();
        for (path, found) in [
            ("a/b", true),
            ("out/sub", false),
            ("in/b", false),
            ("chain", false),
        ] {
            let path = RelPath::new(path).unwrap();
            assert_eq!(open_beneath(&root.folder, &path).is_ok(), found, "{path}");
            assert_eq!(
                open_by_name(&root.folder, &path).is_ok(),
                found,
                "{path} by name"
            );
        }
    }

    #[test]
    fn s20_a_replaced_root_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root");
        fs::create_dir(&path).unwrap();
        let root = Root::open(&path).unwrap();
        assert!(root.is_in_place());
        fs::rename(&path, folder.path().join("old")).unwrap();
        assert!(!root.is_in_place());
        symlink("old", &path).unwrap();
        assert!(!root.is_in_place());
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(!root.is_in_place());
    }

    #[test]
    fn s55_a_second_writer_of_a_root_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let first = Root::open(folder.path()).unwrap();
        first.lock().unwrap();
        let second = Root::open(folder.path()).unwrap();
        assert_eq!(
            second.lock().unwrap_err().kind(),
            io::ErrorKind::ResourceBusy
        );
        drop(first);
        second.lock().unwrap();
    }
}
