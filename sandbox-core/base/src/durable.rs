//! Files that are old or new after a crash, never torn.
//!
//! The recipe is the usual one: write a sibling, flush it to the device, rename it over the target, flush
//! the folder (`man 2 rename`, `man 2 fsync`). On Windows the folder cannot be flushed; the rename is
//! atomic there too, but may be undone by a power cut.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

/// Replaces `path` with `contents`, readable by the owner alone (mode 0600 on Unix).
///
/// Either the old or the new contents are there afterwards, whenever the process or the machine dies.
///
/// # Errors
///
/// What the file system answers; the old file is intact then and no temporary file is left.
pub fn write(path: &Path, contents: &[u8]) -> io::Result<()> {
    let (temporary, mut file) = create_sibling(path)?;
    let result = file
        .write_all(contents)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| sync_parent(path));
    if result.is_err() {
        // The first error is the one to report.
        drop(fs::remove_file(&temporary));
    }
    result
}

/// Flushes the folder that holds `path`, so that a rename or removal in it survives a power cut.
///
/// # Errors
///
/// What the file system answers.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        Ok(())
    }
}

fn create_sibling(path: &Path) -> io::Result<(PathBuf, File)> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "a durable file needs a file name",
        )
    })?;
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let mut sibling = std::ffi::OsString::from(".");
    sibling.push(name);
    sibling.push(format!(".{}-{number}.tmp", process::id()));
    let temporary = path.with_file_name(sibling);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(&temporary)?;
    Ok((temporary, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_is_replaced_and_no_temporary_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record.json");
        write(&path, b"old").unwrap();
        write(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_rename_leaves_the_target_and_no_temporary() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        fs::create_dir(&path).unwrap();
        write(&path, b"new").unwrap_err();
        assert!(path.is_dir());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
