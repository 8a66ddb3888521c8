//! The base: the last tree on which both sides agreed, as a file.
//!
//! The file is a [journal](journal): the whole tree as it was once, and what each cycle changed since. A cycle
//! appends its record after everything that it says is durable on both sides, and flushes it; when the
//! records come to more than the tree in front of them, the file is replaced by one that begins with the
//! tree as it is.
//!
//! A crash while a record is appended leaves the records before it: a base that is too old by that one
//! cycle, which is what a crash before the append leaves as well. A file that is missing, damaged otherwise,
//! of another version or of another root is an *empty* history: then each side's files are
//! new, the two are united, and where they differ there is a conflict. It is never read as "everything was
//! deleted" (`S17`, `S18`).

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sandbox_base::durable;

use crate::path::RelPath;
use crate::tree::{Entry, Item, MANY, Tree};

mod journal;

use journal::Chain;

/// A base of a million entries has about a tenth of this.
const LONGEST: u64 = 1 << 30;
/// Up to so many bytes of records are kept whatever the tree takes: replacing a file costs more.
const SLACK: u64 = 256 * 1024;

/// The agreed tree and where it is kept.
#[derive(Debug)]
pub(crate) struct Base {
    tree: Arc<Tree>,
    root: Vec<u8>,
    file: Option<PathBuf>,
    journal: Option<Journal>,
}

/// What is known of a file to which records can be appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Journal {
    chain: Chain,
    /// How long the file is, and how much of that is not the tree in front.
    length: u64,
    records: u64,
}

/// What one cycle changed.
type Changes<'a> = Vec<(&'a RelPath, Option<&'a Entry>)>;

impl Base {
    /// Reads what `file` says about `root`.
    pub(crate) fn open(file: Option<&Path>, root: &Path) -> Self {
        let root = root.as_os_str().as_encoded_bytes().to_vec();
        let read = file.and_then(|file| match read(file, &root) {
            Ok(read) => Some(read),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(%error, file = %file.display(), "the base is unusable; starting without history");
                None
            }
        });
        let (tree, journal) = read.unwrap_or_default();
        Self {
            tree: Arc::new(tree),
            root,
            file: file.map(Path::to_owned),
            journal,
        }
    }

    pub(crate) fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    /// Holds what `other` holds at `paths` where the two are equal.
    pub(crate) fn share(&mut self, other: &Tree, paths: &[RelPath]) {
        let tree = Arc::make_mut(&mut self.tree);
        for path in paths {
            tree.share(other, path);
        }
        if paths.len() > MANY {
            tree.pack();
        }
    }

    /// Holds what `other` holds wherever the two are equal.
    pub(crate) fn share_all(&mut self, other: &Tree) {
        Arc::make_mut(&mut self.tree).share_all(other);
    }

    /// Takes in what was agreed, items or paths where nothing is, and writes it down, if that changes
    /// anything.
    pub(crate) fn record(&mut self, agreed: Vec<Result<Item, RelPath>>) -> io::Result<()> {
        if agreed.is_empty() {
            return Ok(());
        }
        let change = |item: &Result<Item, RelPath>| match item {
            Ok(item) => (item.path().clone(), Some(item.entry().clone())),
            Err(path) => (path.clone(), None),
        };
        let changes = match (&self.file, self.journal) {
            (Some(_), Some(journal)) if journal.has_room() => {
                let changes: Vec<_> = agreed.iter().map(change).collect();
                Some(postcard::to_stdvec(&changes).map_err(io::Error::other)?)
            }
            _ => None,
        };
        let tree = Arc::make_mut(&mut self.tree);
        for item in agreed {
            match item {
                Ok(item) => tree.put(item),
                Err(path) => tree.set(path, None),
            }
        }
        self.write(changes)
    }

    /// Appends what changed, or writes everything where it cannot be appended.
    fn write(&mut self, changes: Option<Vec<u8>>) -> io::Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        // Until it has ended well, nothing can follow what was begun.
        let journal = self.journal.take();
        if let (Some(journal), Some(changes)) = (journal, changes) {
            match journal.append(file, &changes) {
                Ok(journal) => {
                    self.journal = Some(journal);
                    return Ok(());
                }
                Err(error) => tracing::debug!(%error, "the base is written anew"),
            }
        }
        let entries: Changes<'_> = self.tree.iter().map(|(p, e)| (p, Some(e))).collect();
        let body = postcard::to_stdvec(&(&self.root, entries)).map_err(io::Error::other)?;
        let (bytes, chain) = journal::begin(&body)?;
        durable::write(file, &bytes)?;
        self.journal = Some(Journal {
            chain,
            length: bytes.len() as u64,
            records: 0,
        });
        Ok(())
    }
}

impl Journal {
    fn has_room(self) -> bool {
        self.records <= SLACK.max(self.length - self.records) && self.length < LONGEST / 2
    }

    fn append(self, file: &Path, changes: &[u8]) -> io::Result<Self> {
        let (record, chain) = journal::append(self.chain, changes)?;
        let mut file = OpenOptions::new().append(true).open(file)?;
        if file.metadata()?.len() != self.length {
            return Err(io::Error::other("somebody else wrote to it"));
        }
        file.write_all(&record)?;
        file.sync_data()?;
        let more = record.len() as u64;
        Ok(Self {
            chain,
            length: self.length + more,
            records: self.records + more,
        })
    }
}

fn read(file: &Path, root: &[u8]) -> io::Result<(Tree, Option<Journal>)> {
    if fs::metadata(file)?.len() > LONGEST {
        return Err(invalid("longer than any base"));
    }
    let bytes = fs::read(file)?;
    let (of, tree, journal) = replay(&bytes)?;
    match of == root {
        true => Ok((tree, journal)),
        false => Err(invalid("of another root")),
    }
}

/// Returns what a file says: of which root, which tree, and what can follow.
fn replay(bytes: &[u8]) -> io::Result<(Vec<u8>, Tree, Option<Journal>)> {
    let read = journal::read(bytes).map_err(invalid)?;
    let (first, rest) = read.records.split_first().ok_or_else(|| invalid("empty"))?;
    let (root, entries) = decode::<(Vec<u8>, Vec<Change>)>(first)?;
    let entries = entries.into_iter();
    let mut tree = Tree::from_iter(entries.filter_map(|(path, entry)| Some((path, entry?))));
    for record in rest {
        for (path, entry) in decode::<Vec<Change>>(record)? {
            tree.set(path, entry);
        }
    }
    let records = rest.iter().map(|body| body.len() as u64).sum();
    let length = bytes.len() as u64;
    let journal = |chain| Journal {
        chain,
        length,
        records,
    };
    Ok((root, tree, read.chain.map(journal)))
}

type Change = (RelPath, Option<Entry>);

fn decode<T: serde::de::DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    postcard::from_bytes(body).map_err(|error| invalid(&error.to_string()))
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_owned())
}

/// Reads what a file of a base may hold; `true` where it stands. The digests are made to fit, which no
/// fuzzer finds by itself.
#[cfg(fuzzing)]
pub fn read_for_fuzzing(bytes: &[u8]) -> bool {
    drop(replay(bytes));
    let mut parts = bytes.split(|byte| *byte == 0xff);
    let Ok((mut file, mut chain)) = journal::begin(parts.next().unwrap_or_default()) else {
        return false;
    };
    for part in parts {
        let Ok((record, after)) = journal::append(chain, part) else {
            return false;
        };
        file.extend_from_slice(&record);
        chain = after;
    }
    replay(&file).is_ok()
}

#[cfg(test)]
mod tests;
