//! Files and folders between host and guest, as tar archives on a stream.
//!
//! What comes out of a guest is a stranger's archive. It is unpacked into a fresh folder beside its
//! target, where nothing of the host can be in the way and no link exists that the archive did not make
//! itself; only regular files, folders and links that stay within are made. What came whole is then moved
//! to where it belongs.

use std::fs;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use sandbox_base::{BoxStream, Error, ErrorKind};
use sandbox_vm::Agent;
use tokio_util::io::SyncIoBridge;

use crate::sandbox::{blocking, bytes_of};

/// The most entries of an archive.
const MAX_ENTRIES: usize = 4_000_000;

/// The most bytes that an archive's files may have together.
const MAX_BYTES: u64 = 1 << 40;

/// How far the packing side may run ahead of the sending one, in bytes.
const PIPE: usize = 256 * 1024;

/// Copies a file or folder of the host in.
pub(crate) async fn copy_in(
    agent: &Agent,
    from: &Path,
    to: &Path,
    user: Option<&str>,
) -> Result<(), Error> {
    let operation = format!("copy {} in", from.display());
    let meta = fs::metadata(from).map_err(|error| Error::io(operation.clone(), error))?;
    // A file becomes `to` itself; what a folder holds goes into `to`.
    let (parent, name) = if meta.is_dir() {
        (to, None)
    } else {
        let name = to.file_name().ok_or_else(|| {
            Error::new(ErrorKind::Invalid, operation.clone())
                .with_detail("the target names no file")
        })?;
        (to.parent().unwrap_or(to), Some(name.to_owned()))
    };
    let (ours, mut theirs) = tokio::io::duplex(PIPE);
    let source = from.to_owned();
    let packing = blocking(move || {
        let mut archive = tar::Builder::new(SyncIoBridge::new(ours));
        archive.follow_symlinks(false);
        let packed = match name {
            None => archive.append_dir_all(".", &source),
            Some(name) => fs::File::open(&source)
                .and_then(|mut file| archive.append_file(Path::new(&name), &mut file)),
        };
        let done = packed.and_then(|()| archive.into_inner()?.shutdown());
        done.map_err(|error| Error::io(operation, error))
    });
    let sending = agent.unpack(bytes_of(parent)?, user, &mut theirs);
    let (packed, sent) = tokio::join!(packing, sending);
    packed.and(sent)
}

/// Copies a file or folder inside out.
pub(crate) async fn copy_out(agent: &Agent, from: &Path, to: &Path) -> Result<(), Error> {
    let stream = agent.pack(bytes_of(from)?).await?;
    let operation = format!("copy {} out", from.display());
    let target = std::path::absolute(to).map_err(|error| Error::io(operation.clone(), error))?;
    let single = from.file_name().map(PathBuf::from);
    blocking(move || {
        let parent = target.parent().ok_or_else(|| {
            Error::new(ErrorKind::Invalid, operation.clone())
                .with_detail("the target names no file")
        })?;
        let io = |error| Error::io(operation.clone(), error);
        fs::create_dir_all(parent).map_err(io)?;
        let staging = staging(parent).map_err(io)?;
        let done = receive(stream, &staging, &operation)
            .and_then(|folder| install(&staging, &target, single.as_deref(), folder).map_err(io));
        // Empty by now, or half of something that failed.
        drop(fs::remove_dir_all(&staging));
        done
    })
    .await
}

fn staging(parent: &Path) -> io::Result<PathBuf> {
    let random = sandbox_vm::agent::new_exec_id()
        .map_err(io::Error::other)?
        .0;
    let path = parent.join(format!(".sandbox-{:032x}", u128::from_be_bytes(random)));
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(&path)?;
    Ok(path)
}

/// Unpacks a stranger's archive into a fresh folder; tells whether it was a folder's.
fn receive(stream: BoxStream, staging: &Path, operation: &str) -> Result<bool, Error> {
    let io = |error| Error::io(operation, error);
    let mut archive = tar::Archive::new(SyncIoBridge::new(stream));
    let mut budget = Budget {
        entries: MAX_ENTRIES,
        bytes: MAX_BYTES,
    };
    let mut folder = false;
    for entry in archive.entries().map_err(io)? {
        let mut entry = entry.map_err(io)?;
        let path = entry.path().map_err(io)?.into_owned();
        budget
            .spend(entry.size())
            .map_err(|detail| refused(operation, detail))?;
        let inside = beneath(&path).ok_or_else(|| {
            refused(
                operation,
                format!("the archive names {:?}", path.display().to_string()),
            )
        })?;
        folder |= inside.as_os_str().is_empty();
        unpack(&mut entry, staging, &inside).map_err(io)?;
    }
    Ok(folder)
}

fn refused(operation: &str, detail: String) -> Error {
    Error::new(ErrorKind::Protocol, operation).with_detail(detail)
}

struct Budget {
    entries: usize,
    bytes: u64,
}

impl Budget {
    fn spend(&mut self, bytes: u64) -> Result<(), String> {
        self.entries = self
            .entries
            .checked_sub(1)
            .ok_or("the archive has too many entries")?;
        self.bytes = self
            .bytes
            .checked_sub(bytes)
            .ok_or("the archive is too large")?;
        Ok(())
    }
}

/// Returns a path of an archive without its `.` parts; `None` for one that could lead elsewhere.
fn beneath(path: &Path) -> Option<PathBuf> {
    let mut inside = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => inside.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(inside)
}

fn unpack(entry: &mut tar::Entry<'_, impl Read>, staging: &Path, inside: &Path) -> io::Result<()> {
    let target = staging.join(inside);
    if has_link_above(staging, inside) {
        let reason = format!("{} lies behind a link", inside.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    if let Some(parent) = target.parent().filter(|_| !inside.as_os_str().is_empty()) {
        fs::create_dir_all(parent)?;
    }
    match entry.header().entry_type() {
        tar::EntryType::Directory => fs::create_dir_all(&target),
        tar::EntryType::Regular | tar::EntryType::Continuous => {
            let mut options = fs::OpenOptions::new();
            options.write(true).create_new(true);
            #[cfg(unix)]
            {
                let mode = entry.header().mode()? & 0o777;
                std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode | 0o600);
            }
            let mut file = options.open(&target)?;
            io::copy(entry, &mut file)?;
            let seconds = std::time::Duration::from_secs(entry.header().mtime()?);
            file.set_modified(std::time::UNIX_EPOCH + seconds)
        }
        tar::EntryType::Symlink => match entry.link_name()? {
            Some(link) if stays_within(inside, &link) => make_link(&link, &target),
            _ => {
                tracing::warn!(path = %inside.display(), "a link that leads out is left out");
                Ok(())
            }
        },
        other => {
            tracing::warn!(path = %inside.display(), ?other, "a special file is left out");
            Ok(())
        }
    }
}

/// Tells whether a part of the path before its last is a link: the archive made one and now writes
/// through it.
fn has_link_above(root: &Path, inside: &Path) -> bool {
    let parents = inside
        .ancestors()
        .skip(1)
        .filter(|parent| !parent.as_os_str().is_empty());
    parents
        .into_iter()
        .any(|parent| root.join(parent).is_symlink())
}

/// Tells whether a link at `path` beneath a root leads to something beneath it, by its text alone.
fn stays_within(path: &Path, link: &Path) -> bool {
    let mut depth = path.components().count().saturating_sub(1);
    for component in link.components() {
        match component {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir => match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => return false,
            },
            Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    true
}

#[cfg(unix)]
fn make_link(link: &Path, target: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(link, target)
}

#[cfg(not(unix))]
fn make_link(_link: &Path, target: &Path) -> io::Result<()> {
    tracing::warn!(path = %target.display(), "links are left out on this system");
    Ok(())
}

/// Moves what came to where it belongs: a folder's contents into the target, a file to the target.
fn install(staging: &Path, target: &Path, name: Option<&Path>, folder: bool) -> io::Result<()> {
    if folder {
        return merge(staging, target);
    }
    let name = name.ok_or(io::ErrorKind::InvalidInput)?;
    let target = if target.is_dir() {
        target.join(name)
    } else {
        target.to_owned()
    };
    fs::rename(staging.join(name), target)
}

fn merge(from: &Path, to: &Path) -> io::Result<()> {
    match fs::symlink_metadata(to) {
        Ok(meta) if meta.is_dir() => {}
        // The target itself may be a link to a folder: it is the caller's own choice.
        Ok(meta) if meta.is_symlink() && to.is_dir() => {}
        Ok(_) => return Err(io::ErrorKind::NotADirectory.into()),
        Err(_) => fs::create_dir(to)?,
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let below = fs::symlink_metadata(&target).is_ok_and(|meta| meta.is_dir());
        if entry.file_type()?.is_dir() && below {
            merge(&entry.path(), &target)?;
        } else {
            fs::rename(entry.path(), target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_could_lead_elsewhere_is_none() {
        assert_eq!(beneath(Path::new("./a/./b")), Some(PathBuf::from("a/b")));
        assert_eq!(beneath(Path::new("../a")), None);
        assert_eq!(beneath(Path::new("a/../../b")), None);
        assert_eq!(beneath(Path::new("/etc/passwd")), None);
    }

    #[test]
    fn a_link_is_judged_from_where_it_lies() {
        assert!(stays_within(Path::new("a/b"), Path::new("../c")));
        assert!(!stays_within(Path::new("a/b"), Path::new("../../c")));
        assert!(!stays_within(Path::new("b"), Path::new("..")));
        assert!(!stays_within(Path::new("b"), Path::new("/etc")));
    }

    #[test]
    fn an_archive_cannot_write_through_its_own_link() {
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("elsewhere", root.path().join("a")).unwrap();
        assert!(has_link_above(root.path(), Path::new("a/b")));
        assert!(!has_link_above(root.path(), Path::new("a")));
    }
}
