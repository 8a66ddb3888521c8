//! What an apply replaced, kept so that it can be taken back.
//!
//! ```text
//! undo/
//!   objects/DIGEST   contents that the host had
//!   pending          the record of an apply, or of taking one back, that has begun: the next session takes it back
//!   done             the record of the last apply that ended: taken back when that is asked for
//! ```
//!
//! The objects and the record are durable before the first rename, so a crash in the middle leaves
//! everything that is needed to have none of it. A record has a checksum; one that is damaged is told and not
//! followed. Only the last apply is kept: its objects replace those of the one before.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use sandbox_base::durable;
use serde::{Deserialize, Serialize};

use crate::path::RelPath;
use crate::reconcile::Op;
use crate::replica::Batch;
use crate::root::Root;
use crate::scan::open_file;
use crate::stage::Modified;
use crate::tree::{Digest, Entry};

const MAGIC: &[u8] = b"sandbox-sync undo 1\n";
const PENDING: &str = "pending";
const DONE: &str = "done";
const OBJECTS: &str = "objects";
/// The longest record, in bytes: of a million paths.
const LONGEST: u64 = 1 << 30;

/// One operation of an apply, with what it takes to have it undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Step {
    pub(crate) op: Op,
    /// What the two sides had agreed on before.
    pub(crate) base: Option<Entry>,
    /// When the old file was last written to.
    modified: Option<Modified>,
}

impl Step {
    pub(crate) fn new(op: Op, base: Option<Entry>) -> Self {
        let modified = None;
        Self { op, base, modified }
    }

    /// Returns the operation that takes this one back.
    pub(crate) fn inverse(&self) -> Op {
        Op {
            path: self.op.path.clone(),
            old: self.op.new.clone(),
            new: self.op.old.clone(),
        }
    }
}

/// The folder that undo works from. Only one session uses it at a time, the one that has locked the root.
#[derive(Debug, Clone)]
pub(crate) struct Undo(PathBuf);

impl Undo {
    pub(crate) fn at(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    /// Keeps what `steps` are going to replace in `root`, and notes that they have begun. What was kept
    /// before is forgotten.
    ///
    /// Answers `InvalidData` where a file is not what the scan saw.
    pub(crate) fn begin(&self, root: &Root, mut steps: Vec<Step>) -> io::Result<()> {
        let objects = self.0.join(OBJECTS);
        remove_if_there(fs::remove_file(self.0.join(DONE)))?;
        remove_if_there(fs::remove_dir_all(&objects))?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&objects)?;
        for step in &mut steps {
            let old = step.op.old.as_ref().and_then(Entry::content);
            if let Some((digest, _)) = old {
                step.modified = Some(keep(root, &step.op.path, (digest, &objects))?);
            }
        }
        File::open(&objects)?.sync_all()?;
        durable::write(&self.0.join(PENDING), &encode(&steps)?)
    }

    /// Notes that what has begun was carried out.
    pub(crate) fn finish(&self) -> io::Result<()> {
        let done = self.0.join(DONE);
        fs::rename(self.0.join(PENDING), &done)?;
        durable::sync_parent(&done)
    }

    /// Notes that what was carried out is being taken back: dying meanwhile, that goes on in the next session.
    pub(crate) fn begin_back(&self) -> io::Result<()> {
        let pending = self.0.join(PENDING);
        fs::rename(self.0.join(DONE), &pending)?;
        durable::sync_parent(&pending)
    }

    /// Forgets what has begun, once it is as if it never had, or what was done, once it is taken back.
    pub(crate) fn forget(&self) -> io::Result<()> {
        remove_if_there(fs::remove_file(self.0.join(PENDING)))?;
        remove_if_there(fs::remove_file(self.0.join(DONE)))?;
        remove_if_there(fs::remove_dir_all(self.0.join(OBJECTS)))
    }

    /// Returns what has begun and did not end.
    pub(crate) fn pending(&self) -> io::Result<Option<Vec<Step>>> {
        read(&self.0.join(PENDING))
    }

    /// Returns what was carried out last.
    pub(crate) fn done(&self) -> io::Result<Option<Vec<Step>>> {
        read(&self.0.join(DONE))
    }

    /// Gives a batch of inverse operations the contents that were kept; they are verified on the way.
    pub(crate) fn provide(&self, batch: &mut Batch, steps: &[Step]) -> io::Result<()> {
        for (item, _) in batch.needed().to_vec() {
            let path = batch.path(item);
            let step = steps.iter().find(|step| Some(&step.op.path) == path);
            let step = step.ok_or(io::ErrorKind::NotFound)?;
            let digest = step.op.old.as_ref().and_then(Entry::content);
            let (digest, _) = digest.ok_or(io::ErrorKind::NotFound)?;
            let mut object = File::open(self.0.join(OBJECTS).join(digest.to_string()))?;
            batch.provide(item, &mut object, step.modified)?;
        }
        Ok(())
    }
}

/// Copies a file of the root into the objects, and returns when it was written to.
fn keep(root: &Root, path: &RelPath, (digest, objects): (Digest, &Path)) -> io::Result<Modified> {
    let (mut file, facts) = open_file(&root.parent_of(path)?, path.name())?;
    let mut object = File::create(objects.join(digest.to_string()))?;
    let mut hasher = blake3::Hasher::new();
    let mut copied = HashingRead(&mut file, &mut hasher);
    io::copy(&mut copied, &mut object)?;
    if Digest::from(hasher.finalize()) != digest {
        let text = format!("{path} was changed meanwhile");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    object.sync_all()?;
    Ok(facts.modified)
}

struct HashingRead<'a>(&'a mut File, &'a mut blake3::Hasher);

impl Read for HashingRead<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(buffer)?;
        self.1.update(&buffer[..read]);
        Ok(read)
    }
}

fn encode(steps: &[Step]) -> io::Result<Vec<u8>> {
    let body = postcard::to_stdvec(steps).map_err(io::Error::other)?;
    Ok([MAGIC, blake3::hash(&body).as_bytes(), &body].concat())
}

fn read(file: &Path) -> io::Result<Option<Vec<Step>>> {
    let length = match fs::metadata(file) {
        Ok(meta) => meta.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > LONGEST {
        return Err(damaged());
    }
    decode(&fs::read(file)?).map(Some)
}

fn damaged() -> io::Error {
    let reason = "the record of an apply is damaged";
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn decode(bytes: &[u8]) -> io::Result<Vec<Step>> {
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(damaged)?;
    let (digest, body) = rest.split_at_checked(32).ok_or_else(damaged)?;
    if blake3::hash(body).as_bytes()[..] != *digest {
        return Err(damaged());
    }
    postcard::from_bytes(body).map_err(|_| damaged())
}

/// Reads what a record may hold; the checksum is made to fit, which no fuzzer finds by itself.
#[cfg(fuzzing)]
pub fn read_for_fuzzing(bytes: &[u8]) -> bool {
    drop(decode(bytes));
    let steps = decode(&[MAGIC, blake3::hash(bytes).as_bytes(), bytes].concat());
    steps.is_ok_and(|steps| steps.iter().all(|step| step.inverse().path == step.op.path))
}

fn remove_if_there(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
