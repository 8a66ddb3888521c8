//! The snapshots of one sandbox or folder.

use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sandbox_base::ErrorKind;
use sandbox_base::lock::FileLock;

use super::damage::is_damage;
use super::diff::{Side, diff};
use super::found::Found;
use super::load::{Nodes, load, load_differing, tree};
use super::manifest::{LONGEST, Manifest};
use super::name::Name;
use super::pack::partial_name;
use super::packs::Writer;
use super::report::{Against, Options, Restored, Snapshot, Taken};
use super::restore::Target;
use super::retention::Retention;
use super::since::{Known, Since, digest};
use super::verify::{HurtSnapshot, Missing, Search};
use super::walk::Walk;
use super::{Store, failed, private};
use crate::error::Error;
use crate::review::{Changes, chooser};
use crate::root::Root;
use crate::rules::Rules;
use crate::scan::Bounds;
use crate::stage::Staging;
use crate::tree::Digest;

const SUFFIX: &str = ".snap";
/// How automatic snapshots are called, with a number after it.
const AUTOMATIC: &str = "auto-";
/// The same of those that a restore takes first.
const BEFORE: &str = "before-restore-";

/// The snapshots of one sandbox or folder, in a [`Store`].
///
/// All methods block; call them where blocking is allowed.
#[derive(Debug, Clone)]
pub struct Space {
    store: Store,
    name: Name,
}

impl Space {
    pub(super) fn new(store: Store, name: Name) -> Self {
        Self { store, name }
    }

    /// Takes a snapshot of the folder `root`, called `name`.
    ///
    /// # Errors
    ///
    /// `Invalid` where it is no [`Name`], the folder holds the store, or a pattern is none; `Conflict` where
    /// there is one of that name; `Exhausted` where the folder is larger than allowed or the disk is full: what
    /// was there stays as it was then. And what the file system answers.
    pub fn snapshot(&self, root: &Path, name: &str, options: &Options) -> Result<Taken, Error> {
        self.snapshot_since((root, None), Some(name), options)
    }

    /// Takes a snapshot of the folder `root` that gets the next automatic name.
    ///
    /// # Errors
    ///
    /// As [`Space::snapshot`].
    pub fn snapshot_automatic(&self, root: &Path, options: &Options) -> Result<Taken, Error> {
        self.snapshot_since((root, None), None, options)
    }

    /// Takes a snapshot, by that name or the next automatic one, knowing what may have changed since another.
    pub(crate) fn snapshot_since(
        &self,
        (root, since): (&Path, Option<&Since>),
        name: Option<&str>,
        options: &Options,
    ) -> Result<Taken, Error> {
        let name = name.map(Name::new).transpose()?;
        let setup = Setup::new(options)?;
        let root = self.open_root(root)?;
        let lock = self.lock("take a snapshot")?;
        // First, for the walk may take long; the name is only taken in the end.
        let taken = name.as_ref().filter(|name| self.file(name).exists());
        if let Some(name) = taken {
            return Err(self.exists(name));
        }
        let place = (&root, &setup, since);
        let taken = self.take(&lock, place, &mut |numbers| match &name {
            Some(name) => (name.clone(), false),
            None => (numbers.next(AUTOMATIC), true),
        });
        let (manifest, counts) = taken.map_err(|error| match (error.kind(), &name) {
            (io::ErrorKind::AlreadyExists, Some(name)) => self.exists(name),
            _ => failed("take a snapshot")(error),
        })?;
        Ok(Taken::new(manifest, counts))
    }

    /// Lists the snapshots that can be read, the oldest first.
    ///
    /// # Errors
    ///
    /// What the file system answers.
    pub fn list(&self) -> Result<Vec<Snapshot>, Error> {
        let manifests = self.manifests().map_err(failed("list snapshots"))?;
        Ok(manifests.into_iter().map(Snapshot::new).collect())
    }

    /// Lists what leads from the snapshot `name` to `other`, with the differences of contents, as a review
    /// does: in each change the host's side is the snapshot's, the guest's the other's.
    ///
    /// # Errors
    ///
    /// `NotFound` where there is no such snapshot, `Damaged` where it is not whole, and what the file system
    /// answers.
    pub fn diff(
        &self,
        name: &str,
        other: Against<'_>,
        options: &Options,
    ) -> Result<Changes, Error> {
        let setup = Setup::new(options)?;
        let lock = self.lock("compare snapshots")?;
        let (packs, entries) = (&self.store.packs, setup.bounds.entries);
        let root = self.find(name)?.tree;
        let compared = match other {
            Against::Snapshot(other) => {
                let roots = [root, self.find(other)?.tree];
                let nodes = load_differing(packs, roots, entries);
                let nodes = nodes.map_err(failed("read a snapshot"))?;
                let [old, new] = nodes.each_ref().map(tree);
                let sides = nodes.each_ref().map(|nodes| Side::Stored(packs, nodes));
                diff([(&old, sides[0]), (&new, sides[1])], &setup.rules)
            }
            Against::Folder(folder) => {
                let nodes = load(packs, root, entries).map_err(failed("read a snapshot"))?;
                let folder = self.open_root(folder)?;
                let found = self.walk(&lock, (&folder, &setup, None), None);
                let new = found.map_err(failed("look at the folder"))?.tree();
                let old = (&tree(&nodes), Side::Stored(packs, &nodes));
                diff([old, (&new, Side::Folder(&folder))], &setup.rules)
            }
        };
        compared.map_err(failed("compare snapshots"))
    }

    /// Makes the folder `root` what the snapshot `name` has, where the patterns choose it; everything without
    /// any. Patterns are those of [`Changes::matching`]. What is there and was not is removed.
    ///
    /// An automatic snapshot of the folder is taken first. What is changed meanwhile is refused, path by
    /// path, and keeps what it has.
    ///
    /// # Errors
    ///
    /// `NotFound` where there is no such snapshot, or no path that the patterns choose on either side; `Damaged` where
    /// it is not whole (nothing is written to the folder then); `Conflict` where a session synchronizes the folder, which
    /// restores with [`Session::restore`](crate::Session::restore); else as [`Space::snapshot`].
    pub fn restore(
        &self,
        root: &Path,
        (name, patterns): (&str, &[&str]),
        options: &Options,
    ) -> Result<Restored, Error> {
        let root = self.open_root(root)?;
        root.lock().map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy => {
                let detail = format!("a session synchronizes {}", root.path().display());
                Error::new(ErrorKind::Conflict, "restore a snapshot", detail)
            }
            _ => Error::io("lock the folder", error),
        })?;
        Staging::sweep(&root, options.staging.as_deref())
            .map_err(failed("clear what an earlier restore left"))?;
        self.restore_locked((&root, None), (name, patterns), options)
    }

    /// Restores beneath a root that is locked already.
    pub(crate) fn restore_locked(
        &self,
        (root, since): (&Root, Option<&Since>),
        (name, patterns): (&str, &[&str]),
        options: &Options,
    ) -> Result<Restored, Error> {
        let setup = Setup::new(options)?;
        let chooses = chooser(patterns)?;
        let lock = self.lock("restore a snapshot")?;
        let wanted = self.find(name)?.tree;
        let next = &mut |numbers: Numbers| (numbers.next(BEFORE), true);
        let taken = self.take(&lock, (root, &setup, since), next);
        let (manifest, _) = taken.map_err(failed("take a snapshot before the restore"))?;
        let (packs, entries) = (&self.store.packs, setup.bounds.entries);
        let differing = load_differing(packs, [manifest.tree, wanted], entries)
            .map_err(failed("read a snapshot"))?;
        let is_chosen = |nodes: &Nodes| nodes.keys().any(&chooses);
        let mut known = patterns.is_empty() || differing.iter().any(is_chosen);
        if !known {
            // It may be there and be the same.
            known = is_chosen(&load(packs, wanted, entries).map_err(failed("read a snapshot"))?);
        }
        if !known {
            let detail = "no path of the snapshot or of the folder is called so";
            return Err(Error::new(
                ErrorKind::NotFound,
                "choose what to restore",
                detail,
            ));
        }
        let target = Target {
            root,
            rules: &setup.rules,
            staging: options.staging.as_deref(),
            packs,
        };
        let [now, nodes] = differing;
        let outcome = target.restore(&tree(&now), &nodes, |path| {
            patterns.is_empty() || chooses(path)
        });
        let outcome = outcome.map_err(failed("restore a snapshot"))?;
        let (outcome, cloned) = outcome;
        Ok(Restored {
            before: manifest.name,
            done: outcome.done,
            refused: outcome.refused,
            cloned,
        })
    }

    /// Removes a snapshot, whole or damaged. What it took is free after the next [`Store::collect`].
    ///
    /// # Errors
    ///
    /// `NotFound` where there is none of that name, and what the file system answers.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let name = Name::new(name)?;
        let _lock = self.lock("remove a snapshot")?;
        fs::remove_file(self.file(&name)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => self.missing(&name),
            _ => Error::io("remove a snapshot", error),
        })
    }

    /// Removes the automatic snapshots that `retention` does not keep, and returns their names.
    ///
    /// # Errors
    ///
    /// What the file system answers.
    pub fn prune(&self, retention: Retention) -> Result<Vec<Name>, Error> {
        let _lock = self.lock("prune snapshots")?;
        let all = self.manifests().map_err(failed("prune snapshots"))?;
        let automatic = all.iter().filter(|one| one.automatic);
        let automatic: Vec<_> = automatic
            .map(|one| (one.name.clone(), one.created()))
            .collect();
        let gone = retention.gone(&automatic);
        for name in &gone {
            fs::remove_file(self.file(name)).map_err(failed("prune snapshots"))?;
        }
        Ok(gone.into_iter().collect())
    }

    /// Removes all snapshots of this space.
    ///
    /// # Errors
    ///
    /// What the file system answers.
    pub fn clear(&self) -> Result<(), Error> {
        let _lock = self.lock("remove snapshots")?;
        match fs::remove_dir_all(self.folder()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("remove snapshots", error))
            }
            _ => Ok(()),
        }
    }

    /// Adds what of each snapshot is missing.
    pub(super) fn verify(&self, search: &mut Search<'_>) -> io::Result<Vec<HurtSnapshot>> {
        let (mut hurt, mut names) = (Vec::new(), self.names()?);
        names.sort();
        for name in names {
            let mut missing = Missing::default();
            let whole = match self.read(&name) {
                Ok(manifest) => search.folder((None, manifest.tree), &mut missing)?,
                Err(error) if is_damage(&error) => false,
                Err(error) if error.kind() == io::ErrorKind::NotFound => true,
                Err(error) => return Err(error),
            };
            if !whole {
                let (paths, more) = missing.named();
                hurt.push(HurtSnapshot {
                    space: self.name.clone(),
                    name,
                    paths,
                    more,
                });
            }
        }
        Ok(hurt)
    }

    /// Returns the trees of all snapshots; each must be readable.
    pub(super) fn trees(&self) -> io::Result<Vec<Digest>> {
        let names = self.names()?.into_iter();
        names.map(|name| Ok(self.read(&name)?.tree)).collect()
    }

    pub(super) fn folder(&self) -> PathBuf {
        self.store.folder.join("spaces").join(self.name.as_str())
    }

    fn file(&self, name: &Name) -> PathBuf {
        self.folder().join(format!("{name}{SUFFIX}"))
    }

    fn lock(&self, operation: &'static str) -> Result<FileLock, Error> {
        self.store.lock(false).map_err(failed(operation))
    }

    fn exists(&self, name: &Name) -> Error {
        let detail = format!("there is a snapshot {name} in {}", self.name);
        Error::new(ErrorKind::Conflict, "take a snapshot", detail)
    }

    fn missing(&self, name: &Name) -> Error {
        let detail = format!("there is no snapshot {name} in {}", self.name);
        Error::new(ErrorKind::NotFound, "find a snapshot", detail)
    }

    /// Opens the folder that a snapshot is taken of, which must not hold the store.
    fn open_root(&self, root: &Path) -> Result<Root, Error> {
        let root = Root::open(root).map_err(|error| Error::io("open the folder", error))?;
        let store = self
            .store
            .folder
            .canonicalize()
            .map_err(failed("find the store"))?;
        match store.starts_with(root.path()) {
            false => Ok(root),
            true => {
                let detail = format!("{} is in the folder itself", store.display());
                Err(Error::new(
                    ErrorKind::Invalid,
                    "use the store of snapshots",
                    detail,
                ))
            }
        }
    }

    fn names(&self) -> io::Result<Vec<Name>> {
        let entries = match fs::read_dir(self.folder()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let file = entry?.file_name();
            let name = file.to_str().and_then(|file| file.strip_suffix(SUFFIX));
            names.extend(name.and_then(|name| Name::new(name).ok()));
        }
        Ok(names)
    }

    fn read(&self, name: &Name) -> io::Result<Manifest> {
        let file = fs::File::open(self.file(name))?;
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, LONGEST), &mut bytes)?;
        Manifest::decode(name, &bytes)
    }

    /// Returns what can be read, the oldest first.
    fn manifests(&self) -> io::Result<Vec<Manifest>> {
        let mut manifests = Vec::new();
        for name in self.names()? {
            match self.read(&name) {
                Ok(manifest) => manifests.push(manifest),
                Err(error) if is_damage(&error) => {
                    tracing::warn!(%error, "a snapshot is left aside")
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        manifests.sort_by(|one, other| (one.created, &one.name).cmp(&(other.created, &other.name)));
        Ok(manifests)
    }

    /// Reads the manifest of that name.
    pub(super) fn find(&self, name: &str) -> Result<Manifest, Error> {
        let name = Name::new(name)?;
        self.read(&name).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => self.missing(&name),
            _ => failed("read a snapshot")(error),
        })
    }

    fn walk(
        &self,
        _: &FileLock,
        (root, setup, known): (&Root, &Setup, Option<&Known>),
        writer: Option<&Writer<'_>>,
    ) -> io::Result<Found> {
        let manifests = self.manifests()?;
        let same = |one: &&Manifest| {
            (&one.root[..], one.device, one.rules)
                == (
                    root.path().as_os_str().as_bytes(),
                    root.device(),
                    setup.digest,
                )
        };
        let previous = || manifests.iter().filter(same).map(|one| one.tree);
        // While there is a snapshot of it, everything is there that it needs: only then it is taken over
        // unread.
        let known = known.filter(|(tree, _)| previous().any(|one| one == *tree));
        // What is hurt is looked for everywhere.
        let known = known.filter(|_| !self.store.packs.is_hurt_at_all());
        let walk = Walk {
            root,
            rules: &setup.rules,
            bounds: setup.bounds,
            packs: &self.store.packs,
            previous: known
                .map(|(tree, _)| *tree)
                .or_else(|| previous().next_back()),
            now: now(),
            dirt: known.map(|(_, dirt)| dirt),
            writer,
        };
        walk.run()
    }

    /// Takes a snapshot under the store's lock, and returns how many files were read, bytes added and files cloned.
    fn take(
        &self,
        lock: &FileLock,
        (root, setup, since): (&Root, &Setup, Option<&Since>),
        name: &mut dyn FnMut(Numbers) -> (Name, bool),
    ) -> io::Result<(Manifest, [u64; 3])> {
        let created = now();
        let writer = Writer::new(&self.store.packs);
        let by = (setup.digest, setup.bounds);
        let known = since.and_then(|since| since.begin(root, by));
        let mut found = self.walk(lock, (root, setup, known.as_ref()), Some(&writer))?;
        let (tree, beneath) = found.store(&writer)?;
        let added = writer.finish()?;
        let mut numbers = Numbers(self.names()?);
        loop {
            let (name, automatic) = name(numbers.clone());
            let manifest = Manifest {
                name,
                created: (created.as_secs(), created.subsec_nanos()),
                automatic,
                root: root.path().as_os_str().as_bytes().into(),
                device: root.device(),
                rules: setup.digest,
                tree,
                counts: beneath.counts,
                torn: found.torn.clone(),
            };
            match self.write(&manifest) {
                // Somebody else took the number meanwhile.
                Err(error) if automatic && error.kind() == io::ErrorKind::AlreadyExists => {
                    numbers.0.push(manifest.name);
                }
                Err(error) => return Err(error),
                Ok(()) => {
                    if let Some(since) = since {
                        since.taken(root, by, tree);
                    }
                    return Ok((manifest, [found.read, added, writer.cloned()]));
                }
            }
        }
    }

    /// Writes a snapshot's own file: all of it or, where there is one of that name, nothing.
    fn write(&self, manifest: &Manifest) -> io::Result<()> {
        let folder = self.folder();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)?;
        let temporary = folder.join(partial_name());
        let write = || {
            let mut file = private().create_new(true).open(&temporary)?;
            file.write_all(&manifest.encode()?)?;
            file.sync_all()?;
            // A link, since a rename would replace.
            fs::hard_link(&temporary, self.file(&manifest.name))
        };
        let written = write();
        let removed = fs::remove_file(&temporary);
        written.and(removed)?;
        fs::File::open(&folder)?.sync_all()?;
        fs::File::open(self.store.folder.join("spaces"))?.sync_all()
    }
}

/// The options, ready to be used.
struct Setup {
    rules: Rules,
    bounds: Bounds,
    /// By which snapshots are known that were taken by the same rules.
    digest: Digest,
}

impl Setup {
    fn new(options: &Options) -> Result<Self, Error> {
        let digest = digest(&options.lists)
            .map_err(|error| Error::io("read the path rules", io::Error::other(error)))?;
        Ok(Self {
            rules: Rules::new(&options.lists)?,
            bounds: options.bounds(),
            digest,
        })
    }
}

/// Returns the time since 1970.
fn now() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default();
    #[cfg(test)]
    let now = now + super::since::tests::AHEAD.get();
    now
}

/// The names that are taken.
#[derive(Clone)]
struct Numbers(Vec<Name>);

impl Numbers {
    /// Returns the name with the number after the highest that is taken.
    fn next(&self, prefix: &str) -> Name {
        let number = |name: &Name| -> Option<u64> {
            let automatic = [AUTOMATIC, BEFORE].into_iter();
            let rest = automatic.filter_map(|prefix| name.as_str().strip_prefix(prefix));
            rest.filter_map(|digits| digits.parse().ok()).next()
        };
        let highest = self.0.iter().filter_map(number).max().unwrap_or(0);
        let name = format!("{prefix}{:06}", highest.saturating_add(1));
        Name::new(name).expect("a prefix and digits are a name")
    }
}
