//! Folders in the cache that are there whole or not at all.
//!
//! An entry is built in a sibling folder under a lock, flushed, and renamed into place. So two processes
//! that need the same entry build it once (the second waits and finds it), and a build that failed or was
//! killed leaves nothing that a later call would mistake for an entry: its remains are removed by the next
//! builder, who can tell because it holds the lock.

use std::fs;
use std::path::{Path, PathBuf};

use sandbox_base::durable;
use sandbox_base::lock::FileLock;

use crate::Error;

/// Returns `parent/name`, building it with `build` when it is missing. Blocks while another process
/// builds the same entry.
pub(crate) fn entry(
    parent: &Path,
    name: &str,
    build: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<PathBuf, Error> {
    let target = parent.join(name);
    if target.exists() {
        return Ok(target);
    }
    let _lock = lock(parent, name)?;
    if target.exists() {
        return Ok(target);
    }
    replace_locked(&target, build)?;
    Ok(target)
}

/// Builds `parent/name` anew even if it exists. Who has files of the old one open keeps them.
pub(crate) fn rebuild(
    parent: &Path,
    name: &str,
    build: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<PathBuf, Error> {
    let target = parent.join(name);
    let _lock = lock(parent, name)?;
    replace_locked(&target, build)?;
    Ok(target)
}

/// Takes the lock that belongs to `parent/name`, creating `parent`.
pub(crate) fn lock(parent: &Path, name: &str) -> Result<FileLock, Error> {
    let failed = |error| {
        Error::io(
            format!("lock the cache entry {}", parent.join(name).display()),
            error,
        )
    };
    fs::create_dir_all(parent).map_err(failed)?;
    FileLock::acquire(&parent.join(format!(".{name}.lock"))).map_err(failed)
}

fn replace_locked(
    target: &Path,
    build: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<(), Error> {
    let partial = sibling(target, "partial");
    let failed = |error| Error::io(format!("fill the cache entry {}", target.display()), error);
    remove_if_there(&partial).map_err(failed)?;
    fs::create_dir(&partial).map_err(failed)?;
    let result = build(&partial).and_then(|()| publish(&partial, target).map_err(failed));
    if result.is_err() {
        // The first error is the one to report; what stays is removed by the next builder.
        drop(remove_if_there(&partial));
    }
    result
}

/// Flushes what was built and gives it its name, in place of what has it. To be called under the lock.
pub(crate) fn publish(partial: &Path, target: &Path) -> std::io::Result<()> {
    flush(partial)?;
    let old = sibling(target, "old");
    remove_if_there(&old)?;
    if target.exists() {
        fs::rename(target, &old)?;
    }
    fs::rename(partial, target)?;
    durable::sync_parent(target)?;
    remove_if_there(&old)
}

/// Flushes the whole file system that holds `folder`: one call for any number of files.
#[cfg(target_os = "linux")]
fn flush(folder: &Path) -> std::io::Result<()> {
    Ok(rustix::fs::syncfs(fs::File::open(folder)?)?)
}

#[cfg(not(target_os = "linux"))]
fn flush(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::OpenOptions::new()
                .write(true)
                .open(entry.path())?
                .sync_all()?;
        }
    }
    Ok(())
}

fn sibling(target: &Path, what: &str) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.{what}"))
}

fn remove_if_there(path: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_base::ErrorKind;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn concurrent_callers_build_an_entry_once() {
        let folder = tempfile::tempdir().unwrap();
        let built = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let path = entry(folder.path(), "a", |partial| {
                        built.fetch_add(1, Ordering::Relaxed);
                        fs::write(partial.join("file"), b"x").unwrap();
                        Ok(())
                    });
                    assert_eq!(fs::read(path.unwrap().join("file")).unwrap(), b"x");
                });
            }
        });
        assert_eq!(built.into_inner(), 1);
    }

    #[test]
    fn a_failed_build_leaves_no_entry_and_no_remains() {
        let folder = tempfile::tempdir().unwrap();
        let error = entry(folder.path(), "a", |partial| {
            fs::write(partial.join("half"), b"x").unwrap();
            Err(Error::new(ErrorKind::Invalid, "build"))
        })
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let left: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left, [".a.lock"]);
    }

    #[test]
    fn remains_of_a_killed_builder_are_not_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(".a.partial")).unwrap();
        fs::write(folder.path().join(".a.partial/stale"), b"x").unwrap();
        let path = entry(folder.path(), "a", |_| Ok(())).unwrap();
        assert_eq!(fs::read_dir(path).unwrap().count(), 0);
    }

    #[test]
    fn a_rebuild_replaces_the_entry() {
        let folder = tempfile::tempdir().unwrap();
        entry(folder.path(), "a", |p| {
            fs::write(p.join("old"), b"").unwrap();
            Ok(())
        })
        .unwrap();
        let path = rebuild(folder.path(), "a", |p| {
            fs::write(p.join("new"), b"").unwrap();
            Ok(())
        })
        .unwrap();
        assert!(path.join("new").exists() && !path.join("old").exists());
    }
}
