//! Snapshots of whole sandboxes: the machine as it ran, and what its workspaces were.
//!
//! ```text
//! <sandbox>/snapshots/NAME/snapshot.json   when it was taken
//!                          machine/        memory, devices and disk of one moment (`sandbox_vm::snapshot`)
//!                          base-N          what workspace N had agreed on at that moment
//! ```
//!
//! The folders outside are in the store of the workspaces' snapshots, as the snapshot `machine-NAME`. A folder here
//! is whole or not there: it is written under another name and renamed. What a crash left is removed by the next one
//! that takes a snapshot. All of it goes with the sandbox.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use sandbox_base::{Error, ErrorKind, durable};
use serde::{Deserialize, Serialize};

use crate::history;
use crate::state::check_name;

/// The version of [`Description`].
const VERSION: u32 = 1;

const DESCRIPTION: &str = "snapshot.json";

/// What a snapshot's folder is called before it is whole.
const PARTIAL: &str = ".partial";

/// A snapshot of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SandboxSnapshot {
    /// What it is called.
    pub name: String,
    /// When it was taken, in seconds since 1970.
    pub created: u64,
    /// For how long the sandbox stood still, in milliseconds.
    pub stopped_ms: u64,
    /// What it takes on the disk, in bytes; blocks that are shared with others count.
    pub bytes: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Description {
    version: u32,
    created: u64,
    stopped_ms: u64,
}

/// The snapshots of one sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Saved {
    folder: PathBuf,
}

/// A snapshot that is being made; what there is of it goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Making {
    saved: Saved,
    name: String,
    partial: Passing,
}

/// A folder for what is saved and has no name: it goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Passing(PathBuf);

/// Returns what the snapshot of the workspaces is called that belongs to one of the sandbox.
pub(crate) fn workspaces_name(name: &str) -> String {
    format!("machine-{name}")
}

impl Saved {
    /// Uses the snapshots in a sandbox's folder.
    pub(crate) fn of(sandbox: &Path) -> Self {
        Self {
            folder: sandbox.join("snapshots"),
        }
    }

    /// Begins a snapshot, of which there must be none of that name.
    pub(crate) fn begin(&self, name: &str) -> Result<Making, Error> {
        check_name(name)?;
        if self.folder.join(name).symlink_metadata().is_ok() {
            return Err(
                Error::new(ErrorKind::Conflict, format!("take the snapshot {name}"))
                    .with_detail("there is one of that name; remove it or choose another name"),
            );
        }
        Ok(Making {
            saved: self.clone(),
            name: name.to_owned(),
            partial: self.begin_passing()?,
        })
    }

    /// Begins what is to have no name. There is one at a time: what is there was left by a process that died.
    pub(crate) fn begin_passing(&self) -> Result<Passing, Error> {
        let failed = |error| Error::io("begin a snapshot", error);
        let partial = self.folder.join(PARTIAL);
        match fs::remove_dir_all(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&partial)
                .map_err(failed)?,
        }
        Ok(Passing(partial))
    }

    /// Lists what there is, the oldest first. What cannot be read is passed over with a warning.
    pub(crate) fn list(&self) -> Result<Vec<SandboxSnapshot>, Error> {
        let failed = |error| Error::io("list the snapshots", error);
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name().into_string();
            let Some(name) = name.ok().filter(|name| check_name(name).is_ok()) else {
                continue;
            };
            match self.describe(&name) {
                Ok(snapshot) => found.push(snapshot),
                Err(error) => tracing::warn!(%error, name, "a snapshot is passed over"),
            }
        }
        found.sort_by(|one, other| (one.created, &one.name).cmp(&(other.created, &other.name)));
        Ok(found)
    }

    /// Returns the folder of a snapshot that is there.
    pub(crate) fn find(&self, name: &str) -> Result<PathBuf, Error> {
        self.describe(name)?;
        Ok(self.folder.join(name))
    }

    /// Removes a snapshot, whole or damaged. A machine that went on from it goes on.
    pub(crate) fn remove(&self, name: &str) -> Result<(), Error> {
        check_name(name)?;
        let (folder, gone) = (
            self.folder.join(name),
            self.folder.join(PARTIAL).join("gone"),
        );
        let operation = || format!("remove the snapshot {name}");
        // At one stroke, then its files; what stays behind is the next one's to remove.
        let renamed = fs::create_dir_all(self.folder.join(PARTIAL))
            .and_then(|()| fs::rename(&folder, &gone))
            .map_err(|error| match folder.exists() {
                true => Error::io(operation(), error),
                false => unknown(name),
            });
        let removed = fs::remove_dir_all(self.folder.join(PARTIAL));
        renamed?;
        removed.map_err(|error| Error::io(operation(), error))
    }

    fn describe(&self, name: &str) -> Result<SandboxSnapshot, Error> {
        check_name(name)?;
        let folder = self.folder.join(name);
        let operation = || format!("read the snapshot {name}");
        let text = fs::read(folder.join(DESCRIPTION)).map_err(|error| match folder.exists() {
            true => Error::io(operation(), error),
            false => unknown(name),
        })?;
        let description: Description = serde_json::from_slice(&text).map_err(|error| {
            Error::new(ErrorKind::Damaged, operation()).with_detail(error.to_string())
        })?;
        if description.version != VERSION {
            let detail = format!("it is of version {}, not {VERSION}", description.version);
            return Err(Error::new(ErrorKind::Unsupported, operation()).with_detail(detail));
        }
        Ok(SandboxSnapshot {
            name: name.to_owned(),
            created: description.created,
            stopped_ms: description.stopped_ms,
            bytes: taken(&folder),
        })
    }
}

impl Making {
    /// Returns where the machine is to be saved.
    pub(crate) fn machine(&self) -> PathBuf {
        self.partial.machine()
    }

    /// Makes it a snapshot: with what the workspaces of the sandbox in `folder` have agreed on. Blocks until it is
    /// on the disk.
    pub(crate) fn finish(self, folder: &Path, stopped_ms: u64) -> Result<SandboxSnapshot, Error> {
        let failed = |error| Error::io(format!("keep the snapshot {}", self.name), error);
        let partial = self.partial.folder();
        history::copy(folder, partial)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let description = Description {
            version: VERSION,
            created: now.map_or(0, |now| now.as_secs()),
            stopped_ms,
        };
        let text = serde_json::to_vec_pretty(&description).map_err(|error| failed(error.into()))?;
        durable::write(&partial.join(DESCRIPTION), &text).map_err(failed)?;
        let target = self.saved.folder.join(&self.name);
        fs::rename(partial, &target)
            .and_then(|()| durable::sync_parent(&target))
            .map_err(failed)?;
        self.saved.describe(&self.name)
    }
}

impl Passing {
    pub(crate) fn folder(&self) -> &Path {
        &self.0
    }

    /// Returns where the machine is to be saved.
    pub(crate) fn machine(&self) -> PathBuf {
        machine(&self.0)
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        // Gone already, when it became a snapshot.
        drop(fs::remove_dir_all(&self.0));
    }
}

/// Returns where the machine is in a snapshot's folder.
pub(crate) fn machine(folder: &Path) -> PathBuf {
    folder.join("machine")
}

fn unknown(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("find the snapshot {name}"))
        .with_detail("the sandbox has none of that name")
}

/// Returns what a folder and what is in it take on the disk, in bytes.
fn taken(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => taken(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    });
    bytes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(sandbox: &Path, name: &str) -> Result<SandboxSnapshot, Error> {
        let making = Saved::of(sandbox).begin(name)?;
        fs::create_dir(making.machine()).unwrap();
        fs::write(making.machine().join("memory"), [1; 5000]).unwrap();
        making.finish(sandbox, 40)
    }

    #[test]
    fn what_is_taken_is_listed_and_removed() {
        let sandbox = tempfile::tempdir().unwrap();
        let saved = Saved::of(sandbox.path());
        assert!(saved.list().unwrap().is_empty());
        fs::write(history::base(sandbox.path(), 0), "agreed").unwrap();
        let one = make(sandbox.path(), "one").unwrap();
        assert!(one.bytes >= 5000 && one.stopped_ms == 40);
        assert_eq!(saved.list().unwrap(), [one]);
        let folder = saved.find("one").unwrap();
        assert_eq!(fs::read(history::base(&folder, 0)).unwrap(), b"agreed");
        let again = make(sandbox.path(), "one").unwrap_err();
        assert_eq!(again.kind(), ErrorKind::Conflict);
        saved.remove("one").unwrap();
        assert_eq!(saved.remove("one").unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(fs::read_dir(&saved.folder).unwrap().count(), 0);
    }

    #[test]
    fn what_is_not_whole_is_none_and_what_is_damaged_can_be_removed() {
        let sandbox = tempfile::tempdir().unwrap();
        let saved = Saved::of(sandbox.path());
        let making = saved.begin("half").unwrap();
        fs::write(making.partial.folder().join("memory"), "half").unwrap();
        // A crash: nobody removes it.
        std::mem::forget(making);
        assert!(saved.list().unwrap().is_empty());
        assert_eq!(saved.find("half").unwrap_err().kind(), ErrorKind::NotFound);
        make(sandbox.path(), "whole").unwrap();
        fs::write(saved.folder.join("whole").join(DESCRIPTION), "{").unwrap();
        assert_eq!(saved.find("whole").unwrap_err().kind(), ErrorKind::Damaged);
        assert!(saved.list().unwrap().is_empty());
        saved.remove("whole").unwrap();
        for name in ["", "..", "a/b", ".partial", "A"] {
            assert_eq!(saved.begin(name).unwrap_err().kind(), ErrorKind::Invalid);
            assert_eq!(saved.remove(name).unwrap_err().kind(), ErrorKind::Invalid);
        }
    }
}
