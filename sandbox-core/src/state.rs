//! What is on disk: one folder per sandbox, who owns it, and what a crash left.
//!
//! ```text
//!  <state>/lock                     held while folders are made, looked over or removed
//!  <state>/sandboxes/<name>/        lock        held by the owner for as long as it lives
//!                                   record.json what the sandbox is made of
//!                                   disk.ext4   the writable layer of its root
//!                                   base-N      what workspace N agreed on last
//!                                   events.jsonl what its egress decided
//!  <runtime>/<id>/                  control.sock, and the machine's own folder
//! ```
//!
//! A folder whose lock is free has no owner: it is a stopped detached sandbox, or the remains of an owner
//! that died. [`Store::list`] tells them apart and removes the remains.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sandbox_base::lock::FileLock;
use sandbox_base::{Dirs, Error, ErrorKind, durable};
use serde::{Deserialize, Serialize};

use crate::lifecycle::{Lifetime, State};
use crate::spec::Spec;

/// The version of what is written; another one is refused, by name.
const FORMAT: u32 = 1;

/// How long to wait for another process that makes or removes folders.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is written about a sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) format: u32,
    pub(crate) name: String,
    /// Names its runtime folder: short, because a socket's path has 107 bytes.
    pub(crate) id: String,
    pub(crate) lifetime: Lifetime,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) state: State,
    pub(crate) spec: Spec,
}

/// The folders of all sandboxes.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pub(crate) dirs: Dirs,
}

/// A sandbox's folder, owned by this process.
#[derive(Debug)]
pub(crate) struct Owned {
    pub(crate) record: Record,
    pub(crate) folder: PathBuf,
    pub(crate) runtime: PathBuf,
    _lock: FileLock,
}

/// A sandbox that was found.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) record: Record,
    pub(crate) owned: bool,
}

impl Store {
    pub(crate) fn new(dirs: Dirs) -> Self {
        Self { dirs }
    }

    fn sandboxes(&self) -> PathBuf {
        self.dirs.state.join("sandboxes")
    }

    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        self.sandboxes().join(name)
    }

    /// Returns the socket of a sandbox's owner.
    pub(crate) fn control_socket(&self, record: &Record) -> PathBuf {
        self.dirs.runtime.join(&record.id).join("control.sock")
    }

    /// Takes a name for this process.
    pub(crate) fn create(
        &self,
        name: &str,
        lifetime: Lifetime,
        spec: Spec,
    ) -> Result<Owned, Error> {
        check_name(name)?;
        let _guard = self.guard()?;
        let folder = self.folder(name);
        if folder.exists() && self.look(name)?.is_some() {
            return Err(
                Error::new(ErrorKind::Conflict, format!("create the sandbox {name}"))
                    .with_detail("the name is taken; remove that sandbox or choose another name"),
            );
        }
        make_private(&folder)?;
        let lock = FileLock::try_acquire(&folder.join("lock"))
            .map_err(|error| Error::io("lock the sandbox", error))?
            .ok_or_else(|| Error::new(ErrorKind::Conflict, format!("create the sandbox {name}")))?;
        let record = Record {
            format: FORMAT,
            name: name.to_owned(),
            id: new_id(name)?,
            lifetime,
            created: now(),
            state: State::Creating,
            spec,
        };
        let runtime = self.dirs.runtime.join(&record.id);
        let owned = Owned {
            record,
            folder,
            runtime,
            _lock: lock,
        };
        owned.save()?;
        make_private(&owned.runtime)?;
        Ok(owned)
    }

    /// Takes over a sandbox that no process owns.
    pub(crate) fn adopt(&self, name: &str) -> Result<Owned, Error> {
        let _guard = self.guard()?;
        let found = self.look(name)?.ok_or_else(|| unknown(name))?;
        let folder = self.folder(name);
        let lock = FileLock::try_acquire(&folder.join("lock"))
            .map_err(|error| Error::io("lock the sandbox", error))?
            .ok_or_else(|| {
                Error::new(ErrorKind::Conflict, format!("take over the sandbox {name}"))
                    .with_detail("another process owns it")
            })?;
        let runtime = self.dirs.runtime.join(&found.record.id);
        make_private(&runtime)?;
        Ok(Owned {
            record: found.record,
            folder,
            runtime,
            _lock: lock,
        })
    }

    /// Lists the sandboxes and removes what dead owners left.
    pub(crate) fn list(&self) -> Result<Vec<Found>, Error> {
        let _guard = self.guard()?;
        let entries = match fs::read_dir(self.sandboxes()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("list sandboxes", error)),
        };
        let mut names: Vec<String> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        let mut found = Vec::new();
        for name in names {
            found.extend(self.look(&name)?);
        }
        self.remove_lost_runtime_folders(&found);
        Ok(found)
    }

    /// Finds one sandbox.
    pub(crate) fn find(&self, name: &str) -> Result<Found, Error> {
        check_name(name)?;
        let _guard = self.guard()?;
        self.look(name)?.ok_or_else(|| unknown(name))
    }

    /// Looks at one folder; removes it when it is a dead owner's. The guard must be held.
    fn look(&self, name: &str) -> Result<Option<Found>, Error> {
        let folder = self.folder(name);
        if !folder.is_dir() {
            return Ok(None);
        }
        let lock = FileLock::try_acquire(&folder.join("lock"))
            .map_err(|error| Error::io(format!("look at the sandbox {name}"), error))?;
        let record = read_record(&folder);
        match (record, lock) {
            (Ok(record), None) => Ok(Some(Found {
                record,
                owned: true,
            })),
            // It is being created: there is no more to say than its name.
            (Err(error), None) => {
                tracing::debug!(%error, name, "owned, but without a record");
                Ok(None)
            }
            (Ok(record), Some(_)) if record.lifetime == Lifetime::Detached => {
                Ok(Some(self.stopped(record)?))
            }
            (record, Some(_lock)) => {
                // A record of another version is somebody's data, not remains.
                if let Err(error) = &record
                    && error.kind() == ErrorKind::Unsupported
                {
                    return Err(Error::new(error.kind(), format!("read the sandbox {name}"))
                        .with_detail(error.to_string()));
                }
                if let Ok(record) = record {
                    remove_tree(&self.dirs.runtime.join(&record.id))?;
                }
                remove_tree(&folder)?;
                tracing::info!(name, "removed what a dead owner left");
                Ok(None)
            }
        }
    }

    /// A detached sandbox without an owner is stopped, whatever its record says.
    fn stopped(&self, mut record: Record) -> Result<Found, Error> {
        remove_tree(&self.dirs.runtime.join(&record.id))?;
        record.state = State::Stopped;
        Ok(Found {
            record,
            owned: false,
        })
    }

    /// A runtime folder whose sandbox is gone belonged to an owner that died between the two removals.
    fn remove_lost_runtime_folders(&self, found: &[Found]) {
        let Ok(entries) = fs::read_dir(&self.dirs.runtime) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let known = found.iter().any(|one| *one.record.id == *name);
            let ours = name.to_str().is_some_and(|name| {
                name.len() == ID_LENGTH && name.bytes().all(|byte| byte.is_ascii_hexdigit())
            });
            if ours && !known && !self.being_created(&entry.path()) {
                drop(fs::remove_dir_all(entry.path()));
            }
        }
    }

    /// Records are written before runtime folders are made, under the guard: one without the other is
    /// never a sandbox that is being created, unless its record could not be read.
    fn being_created(&self, runtime: &Path) -> bool {
        let Ok(entries) = fs::read_dir(self.sandboxes()) else {
            return false;
        };
        entries.flatten().any(|entry| {
            read_record(&entry.path()).is_ok_and(|record| runtime.ends_with(&record.id))
        })
    }

    /// Keeps other processes from making, looking over or removing folders meanwhile.
    pub(crate) fn guard(&self) -> Result<FileLock, Error> {
        const OPERATION: &str = "use the folder for sandboxes";
        make_private(&self.sandboxes())?;
        make_private(&self.dirs.runtime)?;
        let path = self.dirs.state.join("lock");
        let deadline = Instant::now() + PATIENCE;
        loop {
            match FileLock::try_acquire(&path).map_err(|error| Error::io(OPERATION, error))? {
                Some(lock) => return Ok(lock),
                None if Instant::now() > deadline => {
                    let detail = format!("another process holds {} for too long", path.display());
                    return Err(Error::new(ErrorKind::TimedOut, OPERATION).with_detail(detail));
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

impl Owned {
    /// Writes the record down.
    pub(crate) fn save(&self) -> Result<(), Error> {
        let operation = || format!("write the record of the sandbox {}", self.record.name);
        let text = serde_json::to_vec_pretty(&self.record)
            .map_err(|error| Error::new(ErrorKind::Io, operation()).with_source(error))?;
        durable::write(&self.folder.join("record.json"), &text)
            .map_err(|error| Error::io(operation(), error))
    }

    /// Moves to another state and writes it down.
    pub(crate) fn enter(&mut self, state: State) -> Result<(), Error> {
        self.record.state = state;
        self.save()
    }

    pub(crate) fn control_socket(&self) -> PathBuf {
        self.runtime.join("control.sock")
    }

    /// Removes everything. The lock goes last, with its file.
    pub(crate) fn remove(self) -> Result<(), Error> {
        remove_tree(&self.runtime)?;
        remove_tree(&self.folder)
    }
}

fn read_record(folder: &Path) -> Result<Record, Error> {
    const OPERATION: &str = "read a sandbox's record";
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let text = fs::read(folder.join("record.json")).map_err(|error| Error::io(OPERATION, error))?;
    let invalid = |error| Error::new(ErrorKind::Invalid, OPERATION).with_source(error);
    let Format { format } = serde_json::from_slice(&text).map_err(invalid)?;
    if format != FORMAT {
        let detail = format!("it has format {format}, this version reads format {FORMAT}");
        return Err(Error::new(ErrorKind::Unsupported, OPERATION).with_detail(detail));
    }
    serde_json::from_slice(&text).map_err(invalid)
}

/// A name is a host name's label: it becomes one inside, and a folder outside.
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let fits = !name.is_empty()
        && name.len() <= 63
        && name.bytes().all(good)
        && !name.starts_with('-')
        && !name.ends_with('-');
    if fits {
        return Ok(());
    }
    let detail = "a name has 1 to 63 of the characters a-z, 0-9 and -, and no - at its ends";
    Err(Error::new(ErrorKind::Invalid, format!("use the name {name:?}")).with_detail(detail))
}

pub(crate) fn unknown(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("find the sandbox {name}"))
        .with_detail("there is none of that name")
}

const ID_LENGTH: usize = 12;

fn new_id(name: &str) -> Result<String, Error> {
    let random = sandbox_vm::agent::new_exec_id()?.0;
    let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    tracing::debug!(name, id = &hex[..ID_LENGTH], "named the runtime folder");
    Ok(hex[..ID_LENGTH].to_owned())
}

fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

fn make_private(path: &Path) -> Result<(), Error> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder
        .create(path)
        .map_err(|error| Error::io(format!("make the folder {}", path.display()), error))
}

fn remove_tree(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels() {
        for good in ["a", "my-sandbox-2", &"x".repeat(63)] {
            check_name(good).unwrap();
        }
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a_b",
            "a/b",
            "..",
            "a b",
            &"x".repeat(64),
        ] {
            assert_eq!(
                check_name(bad).unwrap_err().kind(),
                ErrorKind::Invalid,
                "{bad:?}"
            );
        }
    }
}
