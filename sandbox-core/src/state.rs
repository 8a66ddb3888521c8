//! What is on disk: one folder per sandbox, who owns it, and what a crash left.
//!
//! ```text
//!  <state>/lock                     held while folders are made, looked over or removed
//!  <state>/sandboxes/<name>/        lock        held by the owner for as long as it lives
//!                                   record.json what the sandbox is made of
//!                                   disk.ext4   the writable layer of its root
//!                                   disk.next   the layer that is about to replace it, or what a crash left of it
//!                                   base-N      what workspace N agreed on last
//!                                   snapshots/  of the whole sandbox
//!                                   unclean     while a machine runs, or after a crash
//!                                   events.jsonl what its egress decided
//!  <runtime>/<id>/                  control.sock, and the machine's own folder
//! ```
//!
//! A folder whose lock is free has no owner: it is a stopped detached sandbox, or the remains of an owner
//! that died (an attached one, or one that was still being created). [`Store::list`] tells them apart and
//! removes the remains. While a dead owner's watchdog is at work it claims the runtime folder
//! (`sandbox_base::watchdog::claim`): until it is done, the name is not taken anew and the disk not used,
//! so that it never removes what is somebody else's by then.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sandbox_base::lock::FileLock;
#[cfg(target_os = "linux")]
use sandbox_base::watchdog;
use sandbox_base::{Dirs, Error, ErrorKind, durable};
use serde::{Deserialize, Serialize};

use crate::lifecycle::{Lifetime, State};
use crate::spec::Spec;

/// The version of what is written; another one is refused, by name.
const FORMAT: u32 = 1;

/// How long to wait for another process that makes or removes folders.
const PATIENCE: Duration = Duration::from_secs(30);

/// Only backends of Linux have watchdogs.
#[cfg(not(target_os = "linux"))]
mod watchdog {
    pub(super) fn claim(
        _folder: &std::path::Path,
    ) -> std::io::Result<Option<sandbox_base::lock::FileLock>> {
        Err(std::io::ErrorKind::NotFound.into())
    }
}

/// How long to wait before looking again.
const STEP: Duration = Duration::from_millis(5);

/// What is written about a sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) format: u32,
    pub(crate) name: String,
    /// Names its runtime folder, which is another one for each owner: short, because a socket's path has 107 bytes.
    pub(crate) id: String,
    /// Tells it from all other sandboxes that ever were, for as long as it is there.
    #[serde(default)]
    pub(crate) identity: String,
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
    store: Store,
    _lock: FileLock,
}

/// A sandbox that was found.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) record: Record,
    pub(crate) owned: bool,
    /// Whether its owner is about to go, or a dead owner's watchdog is still at work.
    pub(crate) going: bool,
    /// Whether it is what a dead owner's watchdog is removing.
    remains: bool,
}

impl Record {
    /// Tells whether the sandbox outlives its owner. One that was still being created does not: whoever
    /// wanted it was never told that it is there.
    fn outlives_owner(&self) -> bool {
        self.lifetime == Lifetime::Detached && self.state != State::Creating
    }
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

    fn runtime(&self, record: &Record) -> PathBuf {
        self.dirs.runtime.join(&record.id)
    }

    /// Returns the socket of a sandbox's owner.
    pub(crate) fn control_socket(&self, record: &Record) -> PathBuf {
        self.runtime(record).join("control.sock")
    }

    /// Takes a name for this process. Waits for what a dead owner's watchdog still removes.
    pub(crate) fn create(
        &self,
        name: &str,
        lifetime: Lifetime,
        spec: Spec,
    ) -> Result<Owned, Error> {
        check_name(name)?;
        let _guard = self.when(|| {
            Ok(match self.look(name)? {
                None => Some(()),
                Some(found) if found.remains => None,
                Some(_) => {
                    let detail = "the name is taken; remove that sandbox or choose another name";
                    return Err(conflict("create", name, detail));
                }
            })
        })?;
        let folder = self.folder(name);
        make_private(&folder)?;
        let lock = self
            .lock(name)?
            .ok_or_else(|| conflict("create", name, "another process owns it"))?;
        let id = new_id()?;
        let record = Record {
            format: FORMAT,
            name: name.to_owned(),
            identity: id.clone(),
            id,
            lifetime,
            created: now(),
            state: State::Creating,
            spec,
        };
        self.own(record, lock)
    }

    /// Takes over a sandbox that no process owns. Waits for an owner that is about to go, and for a dead
    /// one's watchdog.
    pub(crate) fn adopt(&self, name: &str) -> Result<Owned, Error> {
        check_name(name)?;
        let mut adopted = None;
        let _guard = self.when(|| {
            let found = self.look(name)?.ok_or_else(|| unknown(name))?;
            if found.owned && !found.going {
                return Err(conflict("take over", name, "another process owns it"));
            }
            let lock = if found.going { None } else { self.lock(name)? };
            adopted = lock.map(|lock| (found.record, lock));
            Ok(adopted.is_some().then_some(()))
        })?;
        let (mut record, lock) = adopted.ok_or_else(|| unknown(name))?;
        // A runtime folder of its own for each owner: what was left of the last one is never met.
        record.id = new_id()?;
        self.own(record, lock)
    }

    fn own(&self, record: Record, lock: FileLock) -> Result<Owned, Error> {
        let owned = Owned {
            folder: self.folder(&record.name),
            runtime: self.runtime(&record),
            store: self.clone(),
            record,
            _lock: lock,
        };
        owned.save()?;
        make_private(&owned.runtime)?;
        Ok(owned)
    }

    /// Lists the sandboxes and removes what dead owners left. What cannot be read is passed over with a
    /// warning, and never removed.
    pub(crate) fn list(&self) -> Result<Vec<Found>, Error> {
        let _guard = self.guard(PATIENCE)?;
        let mut found = Vec::new();
        let mut unreadable = false;
        for name in self.names()? {
            match self.look(&name) {
                Ok(one) => found.extend(one),
                Err(error) => {
                    unreadable = true;
                    tracing::warn!(%error, name, "passed over");
                }
            }
        }
        // One that could not be read has a runtime folder, too.
        if !unreadable {
            self.remove_lost_runtime_folders(&found);
        }
        found.retain(|one| !one.remains);
        Ok(found)
    }

    /// Returns the names there are, and removes what is left of half a removal.
    fn names(&self) -> Result<Vec<String>, Error> {
        let entries =
            fs::read_dir(self.sandboxes()).map_err(|error| Error::io("list sandboxes", error))?;
        let mut names = Vec::new();
        for entry in entries.flatten() {
            match entry.file_name().into_string() {
                Ok(name) if name.starts_with('.') => drop(fs::remove_dir_all(entry.path())),
                Ok(name) if check_name(&name).is_ok() => names.push(name),
                _ => {}
            }
        }
        names.sort();
        Ok(names)
    }

    /// Finds one sandbox.
    pub(crate) fn find(&self, name: &str) -> Result<Found, Error> {
        check_name(name)?;
        let _guard = self.guard(PATIENCE)?;
        let found = self.look(name)?.filter(|found| !found.remains);
        found.ok_or_else(|| unknown(name))
    }

    /// Takes a sandbox's lock; `None` when it has an owner.
    fn lock(&self, name: &str) -> Result<Option<FileLock>, Error> {
        FileLock::try_acquire(&self.folder(name).join("lock"))
            .map_err(|error| Error::io(format!("look at the sandbox {name}"), error))
    }

    /// Looks at one folder; removes it when it is a dead owner's. The guard must be held.
    fn look(&self, name: &str) -> Result<Option<Found>, Error> {
        let folder = self.folder(name);
        if !folder.is_dir() {
            return Ok(None);
        }
        let lock = match self.lock(name) {
            // A watchdog was quicker.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            lock => lock?,
        };
        let record = match read_record(&folder) {
            Ok(record) => record,
            // Made, but never written down.
            Err(error) if error.kind() == ErrorKind::NotFound && lock.is_some() => {
                remove_tree(&folder)?;
                return Ok(None);
            }
            Err(error) => return Err(unreadable(name, &folder, error)),
        };
        match lock {
            None => Ok(Some(Found {
                going: record.lifetime == Lifetime::Detached && record.state == State::Stopped,
                owned: true,
                remains: false,
                record,
            })),
            Some(lock) => self.without_owner(record, lock),
        }
    }

    /// A sandbox that outlives its owner is stopped, whatever its record says; another one is remains.
    fn without_owner(&self, mut record: Record, lock: FileLock) -> Result<Option<Found>, Error> {
        let remains = !record.outlives_owner();
        record.state = State::Stopped;
        let runtime = self.runtime(&record);
        let claim = match watchdog::claim(&runtime) {
            Ok(Some(claim)) => Some(claim),
            Ok(None) => {
                return Ok(Some(Found {
                    record,
                    owned: false,
                    going: true,
                    remains,
                }));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(Error::io("look for a watchdog", error)),
        };
        // With the claim held: a watchdog that comes late finds no folder, and starts nothing.
        remove_tree(&runtime)?;
        drop(claim);
        if remains {
            remove_tree(&self.folder(&record.name))?;
            drop(lock);
            tracing::info!(name = record.name, "removed what a dead owner left");
            return Ok(None);
        }
        Ok(Some(Found {
            record,
            owned: false,
            going: false,
            remains,
        }))
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
                let is_id = name.len() == ID_LENGTH && name.bytes().all(|b| b.is_ascii_hexdigit());
                is_id || name.starts_with('.')
            });
            if ours && !known && !matches!(watchdog::claim(&entry.path()), Ok(None)) {
                drop(remove_tree(&entry.path()));
            }
        }
    }

    /// Waits until an attempt under the guard succeeds, and returns with the guard held.
    fn when(
        &self,
        mut attempt: impl FnMut() -> Result<Option<()>, Error>,
    ) -> Result<FileLock, Error> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let guard = self.guard(PATIENCE)?;
            if attempt()?.is_some() {
                return Ok(guard);
            }
            drop(guard);
            if Instant::now() > deadline {
                return Err(Error::new(ErrorKind::TimedOut, "take a sandbox over")
                    .with_detail("what its last owner left is not gone yet"));
            }
            std::thread::sleep(STEP);
        }
    }

    /// Keeps other processes from making, looking over or removing folders meanwhile.
    fn guard(&self, patience: Duration) -> Result<FileLock, Error> {
        const OPERATION: &str = "use the folder for sandboxes";
        make_private(&self.sandboxes())?;
        make_private(&self.dirs.runtime)?;
        let path = self.dirs.state.join("lock");
        let deadline = Instant::now() + patience;
        loop {
            match FileLock::try_acquire(&path).map_err(|error| Error::io(OPERATION, error))? {
                Some(lock) => return Ok(lock),
                None if Instant::now() > deadline => {
                    let detail = format!("another process holds {} for too long", path.display());
                    return Err(Error::new(ErrorKind::TimedOut, OPERATION).with_detail(detail));
                }
                None => std::thread::sleep(STEP),
            }
        }
    }
}

impl Owned {
    /// Writes the record down.
    pub(crate) fn save(&self) -> Result<(), Error> {
        self.write(&self.record)
    }

    fn write(&self, record: &Record) -> Result<(), Error> {
        let operation = || format!("write the record of the sandbox {}", record.name);
        let text = serde_json::to_vec_pretty(record)
            .map_err(|error| Error::new(ErrorKind::Io, operation()).with_source(error))?;
        durable::write(&self.folder.join("record.json"), &text)
            .map_err(|error| Error::io(operation(), error))
    }

    /// Changes the record and writes it down; what cannot be written is not changed.
    pub(crate) fn change(&mut self, how: impl FnOnce(&mut Record)) -> Result<(), Error> {
        let mut record = self.record.clone();
        how(&mut record);
        self.write(&record)?;
        self.record = record;
        Ok(())
    }

    /// Moves to another state and writes it down.
    pub(crate) fn enter(&mut self, state: State) -> Result<(), Error> {
        self.change(|record| record.state = state)
    }

    /// Returns the writable layer of its root.
    pub(crate) fn disk(&self) -> PathBuf {
        self.folder.join("disk.ext4")
    }

    /// Returns the places of all sandboxes.
    pub(crate) fn dirs(&self) -> &Dirs {
        &self.store.dirs
    }

    pub(crate) fn control_socket(&self) -> PathBuf {
        self.runtime.join("control.sock")
    }

    /// Removes everything. The lock goes last, with its file.
    pub(crate) fn remove(self) -> Result<(), Error> {
        self.remove_within(PATIENCE)
    }

    /// Removes everything, unless another process is in the way for longer than `patience`: then it is
    /// left for whoever looks next.
    pub(crate) fn remove_within(self, patience: Duration) -> Result<(), Error> {
        let _guard = self.store.guard(patience)?;
        remove_tree(&self.runtime)?;
        #[cfg(unix)]
        forget_snapshots(&self.store, &self.record);
        remove_tree(&self.folder)
    }
}

/// Takes a name, as [`Store::create`] does, without blocking. Dropping the future gives it back.
pub(crate) async fn create(
    store: &Store,
    name: &str,
    lifetime: Lifetime,
    spec: Spec,
) -> Result<Owned, Error> {
    /// Removed again by who takes it, should nobody wait for it any more.
    struct Unclaimed(Option<Owned>);

    impl Drop for Unclaimed {
        fn drop(&mut self) {
            if let Some(Err(error)) = self.0.take().map(Owned::remove) {
                tracing::warn!(%error, "a name that nobody waited for is still taken");
            }
        }
    }

    let (store, name) = (store.clone(), name.to_owned());
    let taken = blocking(move || {
        let owned = store.create(&name, lifetime, spec)?;
        Ok(Unclaimed(Some(owned)))
    });
    let owned = taken.await?.0.take();
    owned.ok_or_else(|| Error::new(ErrorKind::Io, "take a sandbox's name"))
}

/// Removes the snapshots of a sandbox's workspaces. A store that cannot be used is nobody's to keep a sandbox
/// for; what is left in it is told.
#[cfg(unix)]
fn forget_snapshots(store: &Store, record: &Record) {
    let snapshots = crate::snapshots::Snapshots::new(&store.dirs, record);
    if let Err(error) = snapshots.forget(record.spec.workspaces.len()) {
        tracing::warn!(%error, "the snapshots of the workspaces stay");
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
    let mut record: Record = serde_json::from_slice(&text).map_err(invalid)?;
    // Earlier versions went by what its first owner was called.
    if record.identity.is_empty() {
        record.identity.clone_from(&record.id);
    }
    Ok(record)
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

fn conflict(verb: &str, name: &str, detail: &str) -> Error {
    Error::new(ErrorKind::Conflict, format!("{verb} the sandbox {name}")).with_detail(detail)
}

/// A record of another version, or one that was damaged, belongs to somebody's data.
fn unreadable(name: &str, folder: &Path, error: Error) -> Error {
    let reason = error.detail().unwrap_or("its record makes no sense");
    let detail = format!("{reason}; its files are in {}", folder.display());
    Error::new(error.kind(), format!("read the sandbox {name}"))
        .with_detail(detail)
        .with_source(error)
}

pub(crate) fn unknown(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("find the sandbox {name}"))
        .with_detail("there is none of that name")
}

const ID_LENGTH: usize = 12;

fn new_id() -> Result<String, Error> {
    let random = sandbox_vm::agent::new_exec_id()?.0;
    let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
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

/// Removes a folder. Its name is free at one stroke, and what is half removed is recognised by its name.
fn remove_tree(path: &Path) -> Result<(), Error> {
    let failed = |error| Error::io(format!("remove {}", path.display()), error);
    let gone = path.with_file_name(format!(".{}", new_id()?));
    match fs::rename(path, &gone) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        renamed => renamed.map_err(failed)?,
    }
    match fs::remove_dir_all(&gone) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

/// Runs what waits for the file system, or for another process's lock, where waiting is allowed.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::new(ErrorKind::Io, "wait for the file system").with_source(error))?
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

    fn place() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(Dirs::beneath(folder.path()));
        (folder, store)
    }

    fn create(store: &Store, name: &str, lifetime: Lifetime) -> Owned {
        store.create(name, lifetime, Spec::bare()).unwrap()
    }

    fn stopped(store: &Store, name: &str) {
        let mut owned = create(store, name, Lifetime::Detached);
        owned.enter(State::Stopped).unwrap();
    }

    fn count(path: &Path) -> usize {
        fs::read_dir(path).unwrap().count()
    }

    #[test]
    fn a_dead_owners_attached_sandbox_is_removed_by_who_looks_next() {
        let (_folder, store) = place();
        drop(create(&store, "a", Lifetime::Attached));
        assert_eq!(
            count(&store.sandboxes()),
            1,
            "an owner's death removes nothing"
        );
        assert!(store.list().unwrap().is_empty());
        assert_eq!(count(&store.sandboxes()), 0);
        assert_eq!(count(&store.dirs.runtime), 0);
    }

    #[test]
    fn a_detached_sandbox_whose_creation_was_cut_short_is_removed_by_who_looks_next() {
        let (_folder, store) = place();
        drop(create(&store, "a", Lifetime::Detached));
        assert_eq!(store.find("a").unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(count(&store.sandboxes()), 0);
        let mut started = create(&store, "a", Lifetime::Detached);
        started.enter(State::Starting).unwrap();
        drop(started);
        assert_eq!(store.find("a").unwrap().record.state, State::Stopped);
    }

    #[test]
    fn a_detached_sandbox_without_an_owner_is_stopped_and_keeps_its_disk() {
        let (_folder, store) = place();
        let mut owned = create(&store, "a", Lifetime::Detached);
        fs::write(owned.folder.join("disk.ext4"), "precious").unwrap();
        owned.enter(State::Running).unwrap();
        assert!(store.list().unwrap()[0].owned);
        drop(owned);
        let found = store.list().unwrap();
        assert_eq!(
            (found[0].record.state, found[0].owned),
            (State::Stopped, false)
        );
        assert_eq!(
            count(&store.dirs.runtime),
            0,
            "sockets of the dead are removed"
        );
        let adopted = store.adopt("a").unwrap();
        assert_eq!(
            fs::read(adopted.folder.join("disk.ext4")).unwrap(),
            b"precious"
        );
        adopted.remove().unwrap();
        assert_eq!(count(&store.sandboxes()), 0);
    }

    #[test]
    fn a_taken_name_is_a_conflict_until_it_is_removed() {
        let (_folder, store) = place();
        let owned = create(&store, "a", Lifetime::Attached);
        let taken = store
            .create("a", Lifetime::Attached, Spec::bare())
            .unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::Conflict);
        assert_eq!(store.adopt("a").unwrap_err().kind(), ErrorKind::Conflict);
        owned.remove().unwrap();
        stopped(&store, "a");
        let taken = store
            .create("a", Lifetime::Attached, Spec::bare())
            .unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::Conflict, "also without an owner");
        assert_eq!(store.adopt("b").unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn of_many_who_create_one_name_one_wins() {
        let (_folder, store) = place();
        let results: Vec<Result<Owned, Error>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| store.create("a", Lifetime::Attached, Spec::bare())))
                .collect();
            threads.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert_eq!(results.iter().filter(|one| one.is_ok()).count(), 1);
        for refused in results.iter().filter_map(|one| one.as_ref().err()) {
            assert_eq!(refused.kind(), ErrorKind::Conflict, "{refused}");
        }
        assert_eq!(count(&store.dirs.runtime), 1);
    }

    #[test]
    fn a_record_that_cannot_be_read_is_refused_by_name_and_kept() {
        let (_folder, store) = place();
        stopped(&store, "good");
        for (name, text, kind) in [
            ("torn", "{\"format\": 1, \"na", ErrorKind::Invalid),
            ("newer", "{\"format\": 2}", ErrorKind::Unsupported),
        ] {
            let folder = store.folder(name);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("record.json"), text).unwrap();
            fs::write(folder.join("disk.ext4"), "precious").unwrap();
            let error = store.find(name).map(|found| found.owned).unwrap_err();
            assert_eq!(error.kind(), kind);
            assert!(error.to_string().contains(name), "{error}");
            assert_eq!(store.adopt(name).unwrap_err().kind(), kind);
            let taken = store.create(name, Lifetime::Attached, Spec::bare());
            assert_eq!(taken.unwrap_err().kind(), kind);
            assert_eq!(store.list().unwrap().len(), 1, "the others are listed");
            assert!(folder.join("disk.ext4").exists(), "{name}");
        }
    }

    #[test]
    fn a_half_made_folder_and_half_a_removal_are_removed() {
        let (_folder, store) = place();
        fs::create_dir_all(store.folder("never-written")).unwrap();
        fs::create_dir_all(store.sandboxes().join(".123/deep")).unwrap();
        fs::create_dir_all(store.sandboxes().join("Not Ours")).unwrap();
        assert!(store.list().unwrap().is_empty());
        assert_eq!(
            count(&store.sandboxes()),
            1,
            "what is not ours is left alone"
        );
    }

    #[test]
    fn a_lost_runtime_folder_is_removed_unless_it_may_be_in_use() {
        let (_folder, store) = place();
        let owned = create(&store, "a", Lifetime::Attached);
        let lost = store.dirs.runtime.join("0123456789ab");
        fs::create_dir_all(&lost).unwrap();
        let claimed = store.dirs.runtime.join("ba9876543210");
        fs::create_dir_all(&claimed).unwrap();
        let claim = watchdog::claim(&claimed).unwrap().unwrap();
        fs::create_dir_all(store.dirs.runtime.join("another-program")).unwrap();
        assert_eq!(store.list().unwrap().len(), 1);
        assert!(owned.runtime.exists() && claimed.exists() && !lost.exists());
        drop(claim);
        store.list().unwrap();
        assert!(!claimed.exists());
        assert_eq!(count(&store.dirs.runtime), 2);
    }

    #[test]
    fn what_a_watchdog_is_removing_is_neither_listed_nor_taken_anew() {
        let (_folder, store) = place();
        let owned = create(&store, "a", Lifetime::Attached);
        let (folder, runtime) = (owned.folder.clone(), owned.runtime.clone());
        drop(owned);
        let claim = watchdog::claim(&runtime).unwrap().unwrap();
        assert!(store.list().unwrap().is_empty());
        assert_eq!(store.find("a").unwrap_err().kind(), ErrorKind::NotFound);
        assert!(folder.exists(), "that is the watchdog's work");
        let next = std::thread::scope(|scope| {
            let next = scope.spawn(|| create(&store, "a", Lifetime::Attached));
            std::thread::sleep(Duration::from_millis(50));
            assert!(!next.is_finished(), "the name is not free yet");
            remove_tree(&folder).unwrap();
            remove_tree(&runtime).unwrap();
            drop(claim);
            next.join().unwrap()
        });
        assert!(next.folder.join("record.json").exists());
    }

    #[test]
    fn an_owner_that_has_stopped_is_waited_for() {
        let (_folder, store) = place();
        let mut owned = create(&store, "a", Lifetime::Detached);
        let before = owned.record.id.clone();
        owned.enter(State::Stopped).unwrap();
        std::thread::scope(|scope| {
            let next = scope.spawn(|| store.adopt("a"));
            std::thread::sleep(Duration::from_millis(50));
            drop(owned);
            let adopted = next.join().unwrap().unwrap();
            assert_ne!(
                adopted.record.id, before,
                "each owner has its own folder for sockets"
            );
            assert_eq!(adopted.record.identity, before, "it is the same sandbox");
        });
    }

    #[test]
    fn a_record_of_an_earlier_version_has_an_identity() {
        let (_folder, store) = place();
        let owned = create(&store, "a", Lifetime::Detached);
        let mut record = serde_json::to_value(&owned.record).unwrap();
        record.as_object_mut().unwrap().remove("identity");
        let path = owned.folder.join("record.json");
        fs::write(path, record.to_string()).unwrap();
        let read = read_record(&owned.folder).unwrap();
        assert_eq!(read.identity, owned.record.id);
    }

    #[test]
    fn a_removal_looks_whole_to_others() {
        let (_folder, store) = place();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..25 {
                        match store.create("a", Lifetime::Attached, Spec::bare()) {
                            Ok(owned) => owned.remove().unwrap(),
                            Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error}"),
                        }
                        store.list().unwrap();
                    }
                });
            }
        });
        assert_eq!(count(&store.sandboxes()), 0);
        assert_eq!(count(&store.dirs.runtime), 0);
    }
}
