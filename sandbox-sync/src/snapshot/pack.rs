//! Packs: files of many blobs, written once and never changed.
//!
//! ```text
//! "sandbox pack 1\n\0"   blob …   index   length of the index   BLAKE3 of both   "sandbox pack 1\n\0"
//! ```
//!
//! A pack is written under a name of its own, flushed, and renamed to the digest of its index; before that,
//! nobody reads it. Blobs are compressed where that makes them shorter. Each is verified by its digest
//! whenever it is read, so damage is told and never becomes contents.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use super::damage::damaged;
use super::index::{Codec, Index, Place};
use crate::tree::Digest;

const MAGIC: &[u8; 16] = b"sandbox pack 1\n\0";
const FOOTER: usize = 8 + 32 + MAGIC.len();
/// The longest blob, in bytes: a folder of some millions of names.
pub(crate) const LONGEST: usize = 256 << 20;
/// What the names of files begin with that are being written.
const PARTIAL: &str = ".part-";
const SUFFIX: &str = ".pack";

/// An open pack.
#[derive(Debug)]
pub(crate) struct Pack {
    path: PathBuf,
    file: File,
    pub(crate) index: Index,
    /// How long it is, in bytes.
    pub(crate) length: u64,
}

impl Pack {
    /// Opens a pack; its index is verified, its blobs are when they are read.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let cut = || damaged(format!("the pack {} is cut short", path.display()));
        let blobs_and_index = length
            .checked_sub((MAGIC.len() + FOOTER) as u64)
            .ok_or_else(cut)?;
        let mut footer = [0; FOOTER];
        file.read_exact_at(&mut footer, length - FOOTER as u64)?;
        let (size, rest) = footer.split_first_chunk().ok_or_else(cut)?;
        let (digest, magic) = rest.split_at(32);
        let size = u64::from_le_bytes(*size);
        if magic != MAGIC || size > blobs_and_index {
            return Err(damaged(format!("the pack {} has no index", path.display())));
        }
        let start = length - FOOTER as u64 - size;
        let mut index = Vec::new();
        file.seek(SeekFrom::Start(start))?;
        (&mut file).take(size).read_to_end(&mut index)?;
        let found = index_digest(&index);
        let named = path.file_name() == Some(file_name(found).as_ref());
        if found.as_bytes() != digest || !named {
            return Err(damaged(format!(
                "the pack {} has another index",
                path.display()
            )));
        }
        let index = Index::decode(index, MAGIC.len() as u64..start)?;
        let path = path.to_owned();
        Ok(Self {
            path,
            file,
            index,
            length,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the blob at `place` and verifies it.
    pub(crate) fn read(&self, digest: &Digest, place: Place) -> io::Result<Vec<u8>> {
        let bad = || damaged(format!("a blob of {} is damaged", self.path.display()));
        let (stored, length) = (place.stored as usize, place.length as usize);
        if length > LONGEST || stored > LONGEST {
            return Err(bad());
        }
        let mut bytes = vec![0; stored];
        self.file
            .read_exact_at(&mut bytes, place.offset)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => bad(),
                _ => error,
            })?;
        let bytes = match place.codec {
            Codec::Plain => bytes,
            Codec::Lz4 => lz4_flex::block::decompress(&bytes, length).map_err(|_| bad())?,
        };
        match bytes.len() == length && Digest::of(&bytes) == *digest {
            true => Ok(bytes),
            false => Err(bad()),
        }
    }
}

/// Returns the file name of a pack.
fn file_name(index: Digest) -> String {
    format!("{index}{SUFFIX}")
}

/// Tells whether a file of this name is a pack.
pub(crate) fn is_pack(name: &str) -> bool {
    name.ends_with(SUFFIX) && !name.starts_with('.')
}

fn index_digest(index: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(index);
    hasher.update(&(index.len() as u64).to_le_bytes());
    hasher.finalize().into()
}

/// A blob as it is stored.
#[derive(Debug)]
pub(crate) struct Packed {
    bytes: Vec<u8>,
    codec: Codec,
    length: u32,
}

impl Packed {
    /// Compresses a blob, unless it does not become shorter.
    pub(crate) fn new(blob: &[u8]) -> io::Result<Self> {
        if blob.len() > LONGEST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let length = u32::try_from(blob.len()).map_err(io::Error::other)?;
        let packed = lz4_flex::block::compress(blob);
        let (bytes, codec) = match packed.len() < blob.len() {
            true => (packed, Codec::Lz4),
            false => (blob.to_vec(), Codec::Plain),
        };
        Ok(Self {
            bytes,
            codec,
            length,
        })
    }
}

/// A pack that is being written. Dropped before [`PackWriter::finish`], it is removed.
#[derive(Debug)]
pub(crate) struct PackWriter {
    temporary: PathBuf,
    file: io::BufWriter<File>,
    records: Vec<(Digest, Place)>,
    at: u64,
    done: bool,
}

impl PackWriter {
    pub(crate) fn create(folder: &Path) -> io::Result<Self> {
        let temporary = folder.join(partial_name());
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        let mut writer = Self {
            temporary,
            file: io::BufWriter::with_capacity(1 << 20, file),
            records: Vec::new(),
            at: MAGIC.len() as u64,
            done: false,
        };
        writer.file.write_all(MAGIC)?;
        Ok(writer)
    }

    /// Returns how many bytes of blobs there are.
    pub(crate) fn length(&self) -> u64 {
        self.at
    }

    /// Appends a blob that is not in this pack yet.
    pub(crate) fn append(&mut self, digest: Digest, blob: &Packed) -> io::Result<()> {
        let stored = u32::try_from(blob.bytes.len()).map_err(io::Error::other)?;
        let place = Place {
            offset: self.at,
            stored,
            length: blob.length,
            codec: blob.codec,
        };
        self.file.write_all(&blob.bytes)?;
        self.records.push((digest, place));
        self.at += u64::from(stored);
        Ok(())
    }

    /// Makes it durable and gives it its name, which its folder keeps only once that is flushed.
    pub(crate) fn finish(mut self) -> io::Result<PathBuf> {
        let index = Index::new(std::mem::take(&mut self.records));
        let digest = index_digest(index.as_bytes());
        self.file.write_all(index.as_bytes())?;
        self.file
            .write_all(&(index.as_bytes().len() as u64).to_le_bytes())?;
        self.file.write_all(digest.as_bytes())?;
        self.file.write_all(MAGIC)?;
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        let path = self.temporary.with_file_name(file_name(digest));
        fs::rename(&self.temporary, &path)?;
        self.done = true;
        Ok(path)
    }
}

impl Drop for PackWriter {
    fn drop(&mut self) {
        if !self.done
            && let Err(error) = fs::remove_file(&self.temporary)
        {
            tracing::debug!(%error, "cannot clear a partial pack");
        }
    }
}

/// Returns a name that no other file of this or another process has.
pub(crate) fn partial_name() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{PARTIAL}{}-{number}", process::id())
}

/// Removes from a folder what a process left that died while it wrote: to be called while nobody writes.
pub(crate) fn sweep_partial(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(PARTIAL.as_bytes()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
