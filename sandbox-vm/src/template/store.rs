//! The templates in the cache.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sandbox_base::ErrorKind;
use sandbox_base::durable;
use sandbox_base::lock::FileLock;
use serde::{Deserialize, Serialize};

use super::key::TemplateKey;
use crate::Error;
use crate::intact::{Check, Intact, digest};

/// The version of [`Description`].
const VERSION: u32 = 1;

/// The longest description, in bytes.
const MAX_DESCRIPTION: u64 = 1 << 20;

const DESCRIPTION: &str = "template.json";
const USED: &str = "used";

/// The templates of one cache folder. Stores on the same folder, in this or other processes, share them.
#[derive(Debug, Clone)]
pub struct TemplateStore {
    folder: PathBuf,
}

/// A template, for people.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Template {
    /// The digest of its key, which is its name.
    pub name: String,
    /// What it is a template of.
    pub key: TemplateKey,
    /// When it was saved.
    pub created: SystemTime,
    /// When a machine was restored from it last, or when it was saved.
    pub used: SystemTime,
    /// What it takes on the disk, in bytes.
    pub bytes: u64,
}

/// How many templates are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// What all of them may take on the disk, in bytes: those not used for longest go first. 4 GiB by
    /// default, which is some thirty of 512 MiB of memory.
    pub bytes: u64,
    /// For how long one may be unused. 30 days by default.
    pub unused: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 4 << 30,
            unused: Duration::from_secs(30 * 24 * 60 * 60),
        }
    }
}

impl Limits {
    /// Replaces what all templates may take on the disk, in bytes.
    #[must_use]
    pub fn with_bytes(mut self, bytes: u64) -> Self {
        self.bytes = bytes;
        self
    }

    /// Replaces for how long a template may be unused.
    #[must_use]
    pub fn with_unused(mut self, unused: Duration) -> Self {
        self.unused = unused;
        self
    }
}

/// A template that can be restored.
#[derive(Debug)]
#[cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "Linux has the only backend so far")
)]
pub(crate) struct Saved {
    pub(crate) memory: PathBuf,
    pub(crate) state: File,
    pub(crate) tsc_khz: Option<u64>,
}

/// A template that is being built: its lock, and the folder that is to become it.
#[derive(Debug)]
#[cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "Linux has the only backend so far")
)]
pub(crate) struct Building {
    target: PathBuf,
    partial: PathBuf,
    nonce: String,
    _lock: FileLock,
}

/// What a template's folder says about it.
#[derive(Debug, Serialize, Deserialize)]
struct Description {
    version: u32,
    key: TemplateKey,
    created: SystemTime,
    tsc_khz: Option<u64>,
    nonce: String,
    memory: Intact,
    state: String,
}

impl TemplateStore {
    /// Uses the folder `templates` in `cache`, which is made when it is needed.
    pub fn new(cache: &Path) -> Self {
        Self {
            folder: cache.join("templates"),
        }
    }

    /// Returns all templates that can be read, the one used last first.
    ///
    /// # Errors
    ///
    /// When the folder cannot be read. That there is none is no error.
    pub fn list(&self) -> Result<Vec<Template>, Error> {
        let mut found: Vec<Template> = self
            .names()?
            .iter()
            .filter(|name| !name.starts_with('.'))
            .filter_map(|name| self.describe(name))
            .collect();
        found.sort_by_key(|template| std::cmp::Reverse(template.used));
        Ok(found)
    }

    /// Removes the template whose name is or begins with `name`. Machines that were restored from it go on.
    ///
    /// # Errors
    ///
    /// `NotFound` when there is none, `Conflict` when several names begin so, or what the file system answers.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let operation = || format!("remove the template {}", name.escape_debug());
        let names = self.names()?;
        let mut matching = names
            .iter()
            .filter(|known| !known.starts_with('.') && known.starts_with(name));
        match (matching.next(), matching.next()) {
            _ if name.is_empty() => Err(Error::new(ErrorKind::NotFound, operation())),
            (Some(known), None) => self.drop_entry(known),
            (None, _) => Err(Error::new(ErrorKind::NotFound, operation())),
            _ => Err(Error::new(ErrorKind::Conflict, operation())
                .with_detail("several templates have names that begin so")),
        }
    }

    /// Removes templates until the limits are kept, and what dead builders left; returns the names of the
    /// templates.
    ///
    /// # Errors
    ///
    /// What the file system answers; the rest is removed all the same.
    pub fn prune(&self, limits: &Limits) -> Result<Vec<String>, Error> {
        let mut outcome = self.remove_remains();
        let (now, mut bytes, mut removed) = (SystemTime::now(), 0u64, Vec::new());
        for template in self.list()? {
            let unused = now.duration_since(template.used).unwrap_or_default();
            bytes = bytes.saturating_add(template.bytes);
            if unused <= limits.unused && bytes <= limits.bytes {
                continue;
            }
            bytes = bytes.saturating_sub(template.bytes);
            match self.drop_entry(&template.name) {
                Ok(()) => removed.push(template.name),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome.map(|()| removed)
    }

    /// Returns the template of a key, checked; `None` when there is none. One that is damaged, or that
    /// `fits` refuses, is removed and was none.
    #[cfg_attr(
        not(target_os = "linux"),
        allow(dead_code, reason = "Linux has the only backend so far")
    )]
    pub(crate) fn find(
        &self,
        key: &TemplateKey,
        fits: impl FnOnce(&Saved) -> bool,
    ) -> Result<Option<Saved>, Error> {
        let name = key.digest();
        let folder = self.folder.join(&name);
        let reason = match open(&folder, key) {
            Ok(saved) if fits(&saved) => {
                // When it was used only matters to what is pruned first.
                drop(touch(&folder.join(USED)));
                return Ok(Some(saved));
            }
            Ok(_) => "it was saved on a host whose clock runs at another rate".to_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !folder.exists() => {
                return Ok(None);
            }
            Err(error) => error.to_string(),
        };
        tracing::warn!(template = name, reason, "a template is dropped");
        self.drop_entry(&name).map(|()| None)
    }

    /// Begins a template, unless another process is building it.
    #[cfg_attr(
        not(target_os = "linux"),
        allow(dead_code, reason = "Linux has the only backend so far")
    )]
    pub(crate) fn begin(&self, key: &TemplateKey) -> Result<Option<Building>, Error> {
        let name = key.digest();
        let failed = |error| Error::io(format!("begin the template {name}"), error);
        make_folder(&self.folder).map_err(failed)?;
        let lock = self.folder.join(format!(".{name}.lock"));
        let Some(lock) = FileLock::try_acquire(&lock).map_err(failed)? else {
            return Ok(None);
        };
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce).map_err(|error| failed(io::Error::other(error.to_string())))?;
        let building = Building {
            target: self.folder.join(&name),
            partial: self.folder.join(format!(".{name}.partial")),
            nonce: format!("{:016x}", u64::from_ne_bytes(nonce)),
            _lock: lock,
        };
        remove_if_there(&building.partial).map_err(failed)?;
        make_folder(&building.partial.join(&building.nonce)).map_err(failed)?;
        Ok(Some(building))
    }

    /// Removes a template by its whole name, if it is there: at one stroke, then its files.
    pub(crate) fn drop_entry(&self, name: &str) -> Result<(), Error> {
        let gone = self
            .folder
            .join(format!(".{name}.{}.gone", std::process::id()));
        let removed = remove_if_there(&gone)
            .and_then(|()| match fs::rename(self.folder.join(name), &gone) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            })
            .and_then(|()| remove_if_there(&gone));
        removed.map_err(|error| Error::io(format!("remove the template {name}"), error))
    }

    /// Removes what builders and removers left that died.
    fn remove_remains(&self) -> Result<(), Error> {
        let mut outcome = Ok(());
        for name in self.names()? {
            let path = self.folder.join(&name);
            let key = name.strip_suffix(".partial");
            let lock = key.map(|key| self.folder.join(format!("{key}.lock")));
            let free = match &lock {
                Some(lock) => FileLock::try_acquire(lock).ok().flatten(),
                None => None,
            };
            if free.is_some() || name.ends_with(".gone") {
                let removed = remove_if_there(&path);
                let failed = |error| Error::io(format!("remove {}", path.display()), error);
                outcome = outcome.and(removed.map_err(failed));
            }
        }
        outcome
    }

    fn describe(&self, name: &str) -> Option<Template> {
        let folder = self.folder.join(name);
        let description = read_description(&folder).ok()?;
        let used = fs::metadata(folder.join(USED)).and_then(|used| used.modified());
        let bytes = |file: &str| taken(&folder.join(&description.nonce).join(file));
        Some(Template {
            name: name.to_owned(),
            created: description.created,
            used: used.unwrap_or(description.created),
            bytes: bytes("memory") + bytes("state"),
            key: description.key,
        })
    }

    fn names(&self) -> Result<Vec<String>, Error> {
        let failed = |error| Error::io(format!("read {}", self.folder.display()), error);
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        entries
            .map(|entry| Ok(entry.map_err(failed)?.file_name().into_string().ok()))
            .filter_map(Result::transpose)
            .collect()
    }
}

#[cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "Linux has the only backend so far")
)]
impl Building {
    /// Returns where the memory is to be, in a folder that is there.
    pub(crate) fn memory(&self) -> PathBuf {
        self.partial.join(&self.nonce).join("memory")
    }

    /// Returns where the state is to be.
    pub(crate) fn state(&self) -> PathBuf {
        self.partial.join(&self.nonce).join("state")
    }

    /// Makes what was built the template of `key`, in place of one that may be there. Blocks until it is on
    /// the disk.
    pub(crate) fn finish(self, key: &TemplateKey, tsc_khz: Option<u64>) -> Result<(), Error> {
        let failed = |error| Error::io("keep a template", error);
        let memory = self.memory();
        let description = Description {
            version: VERSION,
            key: key.clone(),
            created: SystemTime::now(),
            tsc_khz,
            nonce: self.nonce.clone(),
            state: digest(&self.state()).map_err(failed)?,
            memory: Intact::of(&memory).map_err(failed)?,
        };
        let text = serde_json::to_vec_pretty(&description).map_err(|error| failed(error.into()))?;
        touch(&self.partial.join(USED)).map_err(failed)?;
        durable::write(&self.partial.join(DESCRIPTION), &text).map_err(failed)?;
        crate::cache::publish(&self.partial, &self.target).map_err(failed)
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        // The lock is still held. What stays is removed by the next builder.
        drop(remove_if_there(&self.partial));
    }
}

/// Opens a template after a look at all that can be looked at in a moment.
#[cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "Linux has the only backend so far")
)]
fn open(folder: &Path, key: &TemplateKey) -> io::Result<Saved> {
    let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut description = read_description(folder)?;
    if description.key != *key {
        return Err(damaged("it is another machine's"));
    }
    let files = folder.join(&description.nonce);
    let (memory, state) = (files.join("memory"), files.join("state"));
    if digest(&state)? != description.state {
        return Err(damaged("its state is not what was saved"));
    }
    match description.memory.check(&memory)? {
        Check::Same => {}
        Check::Moved => {
            let text = serde_json::to_vec_pretty(&description)?;
            durable::write(&folder.join(DESCRIPTION), &text)?;
        }
        Check::Other => return Err(damaged("its memory is not what was saved")),
    }
    Ok(Saved {
        memory,
        state: File::open(state)?,
        tsc_khz: description.tsc_khz,
    })
}

fn read_description(folder: &Path) -> io::Result<Description> {
    let mut text = Vec::new();
    let file = File::open(folder.join(DESCRIPTION))?;
    file.take(MAX_DESCRIPTION).read_to_end(&mut text)?;
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let Version { version } = serde_json::from_slice(&text)?;
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    if version != VERSION {
        return Err(invalid(format!(
            "it is of version {version}, not {VERSION}"
        )));
    }
    let description: Description = serde_json::from_slice(&text)?;
    let nonce = &description.nonce;
    if nonce.len() != 16 || !nonce.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(invalid("its folder has no such name".into()));
    }
    Ok(description)
}

/// Returns what a file takes on the disk, in bytes.
#[cfg(unix)]
fn taken(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::symlink_metadata(path).map_or(0, |metadata| metadata.blocks() * 512)
}

#[cfg(not(unix))]
fn taken(path: &Path) -> u64 {
    fs::symlink_metadata(path).map_or(0, |metadata| metadata.len())
}

fn touch(path: &Path) -> io::Result<()> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    file.set_modified(SystemTime::now())
}

/// Makes a folder for its owner alone.
#[cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "Linux has the only backend so far")
)]
fn make_folder(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests;
