//! A folder of this host as the source of an image.
//!
//! What is below the folder on the same file system is taken as it is, with owners as numbers; a mount
//! point is taken as an empty folder, so that a system's tree with `/proc` in it gives an image of what is
//! on disk. Sockets are left out: there is nobody behind them in a guest. The walk follows no symbolic
//! link. It takes the folder as its owner has made it and expects nobody to change it meanwhile: a file
//! that shrinks under the reader is an error.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sandbox_base::ErrorKind;
use sha2::{Digest, Sha256};

use super::builder::Builder;
use super::tree::{Entry, Metadata};
use crate::Error;
use crate::process::Cancel;

/// One entry as the walk meets it.
struct Found {
    /// Relative to the top; empty for the top itself.
    inside: PathBuf,
    path: PathBuf,
    metadata: fs::Metadata,
}

/// Mixes what identifies the folder's contents into `key`, without reading any file.
pub(super) fn fingerprint(top: &Path, key: &mut Sha256, cancel: &Cancel) -> Result<(), Error> {
    walk(top, |found| {
        cancel.check("look through the folder")?;
        let bytes = found.inside.as_os_str().as_bytes();
        key.update((bytes.len() as u64).to_le_bytes());
        key.update(bytes);
        let m = &found.metadata;
        for number in [
            u64::from(m.mode()),
            u64::from(m.uid()),
            u64::from(m.gid()),
            m.size(),
            m.mtime() as u64,
            m.mtime_nsec() as u64,
            m.ctime() as u64,
            m.ctime_nsec() as u64,
            m.dev(),
            m.ino(),
            m.rdev(),
        ] {
            key.update(number.to_le_bytes());
        }
        Ok(())
    })
}

/// Takes the folder into an image.
pub(super) fn take(top: &Path, builder: &mut Builder<'_>) -> Result<(), Error> {
    let mut linked = HashMap::new();
    let mut buffers = Buffers::new();
    walk(top, |found| {
        let inside = found.inside.as_os_str().as_bytes();
        let identity = (found.metadata.dev(), found.metadata.ino());
        let many = found.metadata.nlink() > 1 && !found.metadata.is_dir();
        if let Some(&id) = linked.get(&identity).filter(|_| many) {
            return builder.link_to(inside, id);
        }
        let Some(entry) = entry_of(&found, builder)? else {
            return Ok(());
        };
        let id = builder.insert(inside, metadata_of(&found, &mut buffers)?, entry)?;
        if many {
            linked.insert(identity, id);
        }
        Ok(())
    })
}

/// Calls `visit` for the top and all below it, each folder before what it holds, names sorted.
fn walk(top: &Path, mut visit: impl FnMut(Found) -> Result<(), Error>) -> Result<(), Error> {
    let failed = |path: &Path, error| Error::io(format!("read {}", path.display()), error);
    let metadata = fs::metadata(top).map_err(|error| failed(top, error))?;
    if !metadata.is_dir() {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("use the folder {}", top.display()),
        )
        .with_detail("it is not a folder"));
    }
    let device = metadata.dev();
    let mut stack = vec![Found {
        inside: PathBuf::new(),
        path: top.to_owned(),
        metadata,
    }];
    while let Some(found) = stack.pop() {
        let descend = found.metadata.is_dir() && found.metadata.dev() == device;
        let (inside, path) = (found.inside.clone(), found.path.clone());
        visit(found)?;
        if !descend {
            continue;
        }
        let mut names: Vec<OsString> = fs::read_dir(&path)
            .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect())
            .map_err(|error| failed(&path, error))?;
        names.sort_unstable_by(|a, b| b.cmp(a));
        for name in names {
            let path = path.join(&name);
            let metadata = fs::symlink_metadata(&path).map_err(|error| failed(&path, error))?;
            stack.push(Found {
                inside: inside.join(name),
                path,
                metadata,
            });
        }
    }
    Ok(())
}

fn entry_of(found: &Found, builder: &mut Builder<'_>) -> Result<Option<Entry>, Error> {
    let kind = found.metadata.file_type();
    // The type of device numbers differs between systems.
    let number = found.metadata.rdev() as rustix::fs::Dev;
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    Ok(Some(if kind.is_dir() {
        Entry::Directory
    } else if kind.is_file() {
        let mut file = open(&found.path)?;
        let path = found.path.as_os_str().as_bytes();
        Entry::File(builder.store(path, &mut file, found.metadata.size())?)
    } else if kind.is_symlink() {
        let target = fs::read_link(&found.path)
            .map_err(|error| Error::io(format!("read {}", found.path.display()), error))?;
        Entry::Symlink(target.into_os_string().into_vec().into())
    } else if kind.is_char_device() {
        Entry::CharacterDevice { major, minor }
    } else if kind.is_block_device() {
        Entry::BlockDevice { major, minor }
    } else if kind.is_fifo() {
        Entry::Fifo
    } else {
        return Ok(None);
    }))
}

fn open(path: &Path) -> Result<File, Error> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .map_err(|error| Error::io(format!("open {}", path.display()), error))
}

fn metadata_of(found: &Found, buffers: &mut Buffers) -> Result<Metadata, Error> {
    let mut metadata = Metadata {
        permissions: (found.metadata.mode() & 0o7777) as u16,
        uid: found.metadata.uid(),
        gid: found.metadata.gid(),
        seconds: found.metadata.mtime(),
        nanoseconds: u32::try_from(found.metadata.mtime_nsec()).unwrap_or(0),
        attributes: None,
    };
    buffers
        .read_attributes(&found.path, &mut metadata)
        .map_err(|error| {
            Error::io(
                format!("read the attributes of {}", found.path.display()),
                error.into(),
            )
        })?;
    Ok(metadata)
}

/// Room for the longest list of names and the longest value that Linux has, kept from entry to entry.
struct Buffers {
    names: Vec<u8>,
    value: Vec<u8>,
}

impl Buffers {
    const LONGEST: usize = 64 << 10;

    fn new() -> Self {
        Self {
            names: vec![0; Self::LONGEST],
            value: vec![0; Self::LONGEST],
        }
    }

    fn read_attributes(&mut self, path: &Path, metadata: &mut Metadata) -> rustix::io::Result<()> {
        use rustix::io::Errno;
        let length = match rustix::fs::llistxattr(path, &mut *self.names) {
            Err(Errno::NOTSUP | Errno::PERM) => 0,
            length => length?,
        };
        let names = self.names[..length].split(|&byte| byte == 0);
        for name in names.filter(|name| !name.is_empty()) {
            let length = match rustix::fs::lgetxattr(path, name, &mut *self.value) {
                // Not for this user's eyes, or gone.
                Err(Errno::PERM | Errno::ACCESS | Errno::NODATA) => continue,
                length => length?,
            };
            metadata.keep_attribute(name, &self.value[..length]);
        }
        Ok(())
    }
}
