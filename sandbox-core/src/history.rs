//! Whether what the two sides of a workspace agreed on last still describes the sandbox's disk.
//!
//! A synchronizer that believes a history which its disk does not share takes files that the disk never
//! got, or lost, for files that somebody deleted, and deletes them on the other side. So the histories
//! (`base-N`) are forgotten when the disk is a fresh one, and when the machine did not end in order: from
//! the start of a machine to its orderly end a mark lies in the sandbox's folder. Without history the two
//! sides are united, and what differs is a conflict: nothing is lost.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sandbox_base::{Error, durable};

/// Lies in the folder while a machine runs, and after one that did not end in order.
const MARK: &str = "unclean";

/// Returns where the history of a workspace is kept.
pub(crate) fn base(folder: &Path, workspace: usize) -> PathBuf {
    folder.join(format!("base-{workspace}"))
}

/// Returns where what applies replace in a workspace is kept.
pub(crate) fn undo(folder: &Path, workspace: usize) -> PathBuf {
    folder.join(format!("undo-{workspace}"))
}

/// Begins a run of the machine: forgets the histories if they may not fit the disk, and sets the mark.
pub(crate) fn begin(folder: &Path, fresh_disk: bool) -> Result<(), Error> {
    let mark = folder.join(MARK);
    let begun = if fresh_disk || mark.exists() {
        forget(folder)
    } else {
        Ok(())
    };
    begun
        .and_then(|()| durable::write(&mark, b""))
        .map_err(|error| Error::io("note that the machine starts", error))
}

/// Ends a run whose machine flushed its disk and powered off: what is on the disk is made durable, then
/// the mark is taken away.
pub(crate) fn end_in_order(folder: &Path, disk: &Path) -> Result<(), Error> {
    let flushed = match fs::File::open(disk) {
        Ok(disk) => disk.sync_all(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    flushed
        .and_then(|()| fs::remove_file(folder.join(MARK)))
        .map_err(|error| Error::io("note that the machine ended in order", error))
}

/// Forgets what one workspace had agreed on.
pub(crate) fn forget_one(folder: &Path, workspace: usize) -> Result<(), Error> {
    match fs::remove_file(base(folder, workspace)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("forget what a workspace agreed on", error))
        }
        _ => Ok(()),
    }
}

/// Copies the histories to another folder: those of a snapshot belong to its disk.
pub(crate) fn copy(folder: &Path, to: &Path) -> Result<(), Error> {
    let copy = || {
        for name in histories(folder)? {
            fs::copy(folder.join(&name), to.join(&name))?;
        }
        Ok(())
    };
    copy().map_err(|error| Error::io("keep what workspaces agreed on", error))
}

/// Replaces the histories by those of the disk that takes the place of the present one. Interrupted, it leaves a
/// mark with which they are forgotten.
pub(crate) fn replace(folder: &Path, from: &Path) -> Result<(), Error> {
    let failed = |error| Error::io("take back what workspaces agreed on", error);
    forget(folder).map_err(failed)?;
    copy(from, folder)
}

fn histories(folder: &Path) -> io::Result<Vec<OsString>> {
    let names = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name()));
    let is_history = |name: &OsString| name.as_encoded_bytes().starts_with(b"base-");
    let kept = |name: &io::Result<OsString>| name.as_ref().map_or(true, is_history);
    names.filter(kept).collect()
}

fn forget(folder: &Path) -> io::Result<()> {
    for name in histories(folder)? {
        fs::remove_file(folder.join(name))?;
    }
    durable::sync_parent(&folder.join(MARK))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_history() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(base(folder.path(), 0), "history").unwrap();
        folder
    }

    #[test]
    fn an_orderly_end_keeps_the_history() {
        let folder = with_history();
        begin(folder.path(), false).unwrap();
        end_in_order(folder.path(), Path::new("/nonexistent")).unwrap();
        begin(folder.path(), false).unwrap();
        assert!(base(folder.path(), 0).exists());
    }

    #[test]
    fn a_machine_that_did_not_end_in_order_has_no_history() {
        let folder = with_history();
        begin(folder.path(), false).unwrap();
        begin(folder.path(), false).unwrap();
        assert!(!base(folder.path(), 0).exists());
    }

    #[test]
    fn a_fresh_disk_has_no_history() {
        let folder = with_history();
        begin(folder.path(), true).unwrap();
        assert!(!base(folder.path(), 0).exists());
    }
}
