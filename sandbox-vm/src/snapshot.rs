//! Machines that are saved while they run: memory, devices and disks of one moment, as a folder.
//!
//! [`Machine::snapshot`](crate::Machine::snapshot) makes such a folder, and
//! [`MachineSpec::snapshot`](crate::hypervisor::MachineSpec::snapshot) starts a machine from it: the processes inside go
//! on where they were, as often as one likes and beside the machine that was saved. What one does, another does not see.
//!
//! ```text
//! FOLDER/snapshot.json   what it is of, and what the other files were when they were written
//!        memory          the guest's memory, with holes for pages of zeros
//!        state           its devices
//!        disk0 …         its writable disks, by their places in the list
//! ```
//!
//! The folder appears whole or not at all: it is written beside its place, flushed, and renamed. Nothing is written to
//! it afterwards but the times of files that were moved with it. Who can write there can be any machine's kernel: it is
//! its owner's alone.
//!
//! A snapshot fits the machine that it is of: the same program, kernel, agent, processors, memory and lengths of disks
//! ([`TemplateKey`]). Anything else is refused with what differs. One that is damaged is refused too, as
//! far as files that were changed say so ([`crate::template`] has the same bounds).

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sandbox_base::{ErrorKind, durable};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::intact::{Check, Intact};
use crate::template::TemplateKey;

/// The version of [`Description`].
const VERSION: u32 = 1;

/// The longest description, in bytes.
const MAX_DESCRIPTION: u64 = 1 << 20;

const DESCRIPTION: &str = "snapshot.json";

/// What came of saving a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Taken {
    /// For how long the guest stood still.
    pub stopped: Duration,
    /// How much of the memory was the machine's own, in bytes; the rest is that of what it was restored from.
    pub own_memory: u64,
    /// How much of that had changed between the first look at it and the second, for which the guest stood still.
    pub changed_memory: u64,
}

/// What a snapshot's folder says about it.
#[derive(Debug, Serialize, Deserialize)]
struct Description {
    version: u32,
    key: TemplateKey,
    created: SystemTime,
    tsc_khz: Option<u64>,
    memory: Intact,
    state: Intact,
    /// By their places; `None` for those that cannot be written to.
    disks: Vec<Option<Intact>>,
}

/// A snapshot that a machine can be started from.
#[derive(Debug)]
#[cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "Linux has the only backend so far")
)]
pub(crate) struct Opened {
    pub(crate) key: TemplateKey,
    pub(crate) tsc_khz: Option<u64>,
    folder: PathBuf,
    disks: Vec<bool>,
}

/// A snapshot that is being made; what there is of it goes when this is dropped.
#[derive(Debug)]
#[cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "Linux has the only backend so far")
)]
pub(crate) struct Making {
    partial: PathBuf,
    target: PathBuf,
}

#[cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "Linux has the only backend so far")
)]
impl Making {
    /// Begins a snapshot in `target`, which must not be there; its parent must.
    pub(crate) fn begin(target: &Path) -> Result<Self, Error> {
        let failed = |error| Error::io(format!("begin a snapshot in {}", target.display()), error);
        let name = target.file_name().ok_or_else(|| {
            failed(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it has no name",
            ))
        })?;
        if target.symlink_metadata().is_ok() {
            return Err(failed(io::ErrorKind::AlreadyExists.into()));
        }
        let mut partial = std::ffi::OsString::from(".");
        partial.push(name);
        partial.push(".partial");
        let partial = target.with_file_name(partial);
        #[cfg_attr(not(unix), allow(unused_mut, reason = "Unix has modes"))]
        let mut folder = fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut folder, 0o700);
        // What a process left that died in it.
        match fs::remove_dir_all(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => folder.create(&partial).map_err(failed)?,
        }
        Ok(Self {
            partial,
            target: target.to_owned(),
        })
    }

    pub(crate) fn memory(&self) -> PathBuf {
        self.partial.join("memory")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.partial.join("state")
    }

    /// Returns where the writable disk at this place in the list is to be.
    pub(crate) fn disk(&self, place: usize) -> PathBuf {
        disk(&self.partial, place)
    }

    /// Describes what was written. Blocks until it is on the disk.
    pub(crate) fn finish(self, key: TemplateKey, tsc_khz: Option<u64>) -> Result<Finished, Error> {
        let file = |path: &Path| {
            File::open(path)?.sync_all()?;
            Intact::of(path)
        };
        let write = || {
            let disks = key.disks.iter().enumerate();
            let disks = disks.map(|(place, shape)| match shape.read_only {
                true => Ok(None),
                false => file(&self.disk(place)).map(Some),
            });
            let description = Description {
                version: VERSION,
                created: SystemTime::now(),
                tsc_khz,
                memory: file(&self.memory())?,
                state: file(&self.state())?,
                disks: disks.collect::<io::Result<_>>()?,
                key: key.clone(),
            };
            let text = serde_json::to_vec_pretty(&description)?;
            durable::write(&self.partial.join(DESCRIPTION), &text)
        };
        write().map_err(|error| self.failed(error))?;
        Ok(Finished(self))
    }

    fn failed(&self, error: io::Error) -> Error {
        let operation = format!("keep the snapshot {}", self.target.display());
        Error::io(operation, error)
    }
}

/// A snapshot that is whole and has no name yet; dropped before [`Finished::publish`], it goes.
#[derive(Debug)]
#[cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "Linux has the only backend so far")
)]
pub(crate) struct Finished(Making);

#[cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "Linux has the only backend so far")
)]
impl Finished {
    /// Gives it its name: a moment's work.
    pub(crate) fn publish(self) -> Result<(), Error> {
        let Making { partial, target } = &self.0;
        // Another one of the name is not replaced.
        let renamed = match target.symlink_metadata() {
            Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
            Err(_) => fs::rename(partial, target),
        };
        let published = renamed.and_then(|()| durable::sync_parent(target));
        published.map_err(|error| self.0.failed(error))
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        // Gone already, when it was finished.
        drop(fs::remove_dir_all(&self.partial));
    }
}

#[cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "Linux has the only backend so far")
)]
impl Opened {
    pub(crate) fn memory(&self) -> PathBuf {
        self.folder.join("memory")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Returns the disk at this place in the list, if it is one that is saved.
    pub(crate) fn disk(&self, place: usize) -> Option<PathBuf> {
        let saved = self.disks.get(place).copied().unwrap_or(false);
        saved.then(|| disk(&self.folder, place))
    }
}

fn disk(folder: &Path, place: usize) -> PathBuf {
    folder.join(format!("disk{place}"))
}

/// Opens the snapshot in `folder`, after a look at all of its files.
///
/// # Errors
///
/// `NotFound` where there is none, `Damaged` where it is not what was saved, `Unsupported` for another version's.
#[cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "Linux has the only backend so far")
)]
pub(crate) fn open(folder: &Path) -> Result<Opened, Error> {
    let operation = format!("open the snapshot {}", folder.display());
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::InvalidData => {
            Error::new(ErrorKind::Damaged, operation.clone()).with_detail(error.to_string())
        }
        _ => Error::io(operation.clone(), error),
    };
    let mut description = match read(folder).map_err(failed)? {
        Ok(description) => description,
        Err(version) => {
            return Err(Error::new(ErrorKind::Unsupported, operation)
                .with_detail(format!("it is of version {version}, not {VERSION}")));
        }
    };
    if description.check(folder).map_err(failed)? {
        let text = serde_json::to_vec_pretty(&description).map_err(|error| failed(error.into()))?;
        durable::write(&folder.join(DESCRIPTION), &text).map_err(failed)?;
    }
    Ok(Opened {
        key: description.key,
        tsc_khz: description.tsc_khz,
        folder: folder.to_owned(),
        disks: description.disks.iter().map(Option::is_some).collect(),
    })
}

impl Description {
    /// Looks at all files; `true` where they are the same in another place, which it notes.
    fn check(&mut self, folder: &Path) -> io::Result<bool> {
        let damaged = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        if self.disks.len() != self.key.disks.len() {
            return Err(damaged("its disks are not those of its machine".into()));
        }
        let disks = self.disks.iter_mut().enumerate();
        let disks =
            disks.filter_map(|(place, disk)| Some((format!("disk{place}"), disk.as_mut()?)));
        let files = [
            ("memory".to_owned(), &mut self.memory),
            ("state".to_owned(), &mut self.state),
        ];
        let mut moved = false;
        for (name, file) in files.into_iter().chain(disks) {
            let checked = file.check(&folder.join(&name)).map_err(|error| {
                let gone = error.kind() == io::ErrorKind::NotFound;
                if gone {
                    damaged(format!("its {name} is gone"))
                } else {
                    error
                }
            })?;
            match checked {
                Check::Same => {}
                Check::Moved => moved = true,
                Check::Other => return Err(damaged(format!("its {name} is not what was saved"))),
            }
        }
        Ok(moved)
    }
}

/// Reads a description, or the version that it is of.
fn read(folder: &Path) -> io::Result<Result<Description, u32>> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let mut text = Vec::new();
    let file = File::open(folder.join(DESCRIPTION))?;
    file.take(MAX_DESCRIPTION).read_to_end(&mut text)?;
    let invalid = |error: serde_json::Error| io::Error::new(io::ErrorKind::InvalidData, error);
    match serde_json::from_slice(&text).map_err(invalid)? {
        Version { version: VERSION } => Ok(Ok(serde_json::from_slice(&text).map_err(invalid)?)),
        Version { version } => Ok(Err(version)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::tests::key;

    fn saved(place: &Path) -> PathBuf {
        let target = place.join("s");
        let making = Making::begin(&target).unwrap();
        let mut key = key();
        key.disks[0].read_only = false;
        for (path, text) in [
            (making.memory(), "memory"),
            (making.state(), "state"),
            (making.disk(0), "disk"),
        ] {
            fs::write(path, text).unwrap();
        }
        assert!(!target.exists());
        let finished = making.finish(key, Some(1000)).unwrap();
        assert!(!target.exists());
        finished.publish().unwrap();
        target
    }

    #[test]
    fn what_is_saved_is_opened_also_in_another_place() {
        let place = tempfile::tempdir().unwrap();
        let folder = saved(place.path());
        let opened = open(&folder).unwrap();
        assert_eq!(fs::read(opened.memory()).unwrap(), b"memory");
        assert_eq!(fs::read(opened.disk(0).unwrap()).unwrap(), b"disk");
        assert_eq!((opened.tsc_khz, opened.disk(1)), (Some(1000), None));
        let copy = place.path().join("copy");
        fs::create_dir(&copy).unwrap();
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
        }
        open(&copy).unwrap();
        open(&copy).unwrap();
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 2);
    }

    #[test]
    fn r13_what_is_damaged_is_refused_and_not_there_is_not_found() {
        let place = tempfile::tempdir().unwrap();
        let kind = |folder: &Path| open(folder).unwrap_err().kind();
        assert_eq!(kind(&place.path().join("none")), ErrorKind::NotFound);
        for name in ["memory", "state", "disk0"] {
            let folder = saved(place.path());
            fs::write(folder.join(name), "other").unwrap();
            assert_eq!(kind(&folder), ErrorKind::Damaged, "{name}");
            fs::remove_file(folder.join(name)).unwrap();
            assert_eq!(kind(&folder), ErrorKind::Damaged, "{name}");
            fs::remove_dir_all(folder).unwrap();
        }
        let folder = saved(place.path());
        let text = fs::read_to_string(folder.join(DESCRIPTION)).unwrap();
        for cut in [0, 1, text.len() / 2, text.len() - 1] {
            fs::write(folder.join(DESCRIPTION), &text[..cut]).unwrap();
            assert_eq!(kind(&folder), ErrorKind::Damaged);
        }
        let other = text.replace("\"version\": 1", "\"version\": 2");
        fs::write(folder.join(DESCRIPTION), other).unwrap();
        assert_eq!(kind(&folder), ErrorKind::Unsupported);
    }

    #[test]
    fn r13_what_is_not_finished_leaves_nothing_and_replaces_nothing() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("s");
        let making = Making::begin(&target).unwrap();
        fs::write(making.memory(), "half").unwrap();
        // Killed here, it would be found by the next one.
        std::mem::forget(making);
        let folder = saved(place.path());
        let again = Making::begin(&folder).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::Conflict);
        drop(Making::begin(&place.path().join("t")).unwrap());
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
        open(&folder).unwrap();
    }
}
