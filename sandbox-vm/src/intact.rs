//! Files that must still be what they were.
//!
//! Reading all of a memory on each start would take longer than the start. So a file that was not written to,
//! by what the file system says of it, is taken for what it was, and only another one is read.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
#[cfg(not(unix))]
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// What a file was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Intact {
    digest: String,
    stamp: Stamp,
}

/// What has become of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Check {
    /// Nothing was done to it.
    Same,
    /// It was copied to another place, perhaps, and is the same for all that. What is known of it has changed.
    Moved,
    /// Its contents are others.
    Other,
}

/// What changes with every change of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    length: u64,
    inode: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Intact {
    /// Reads a file, and remembers what it is.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        Ok(Self {
            digest: digest(path)?,
            stamp: Stamp::of(path)?,
        })
    }

    /// Tells whether a file still is what it was.
    pub(crate) fn check(&mut self, path: &Path) -> io::Result<Check> {
        let stamp = Stamp::of(path)?;
        if stamp == self.stamp {
            return Ok(Check::Same);
        }
        if digest(path)? != self.digest {
            return Ok(Check::Other);
        }
        self.stamp = stamp;
        Ok(Check::Moved)
    }
}

impl Stamp {
    #[cfg(unix)]
    fn of(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self {
            length: metadata.len(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    #[cfg(not(unix))]
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        let since = metadata.modified()?.duration_since(SystemTime::UNIX_EPOCH);
        let since = since.unwrap_or_default();
        let modified = (
            since.as_secs().cast_signed(),
            i64::from(since.subsec_nanos()),
        );
        Ok(Self {
            length: metadata.len(),
            inode: 0,
            modified,
            changed: modified,
        })
    }
}

/// How much is read at once.
const BLOCK: usize = 256 << 10;

/// Returns where the next block begins that is not in a hole (`man 2 lseek`, `SEEK_DATA`): a disk may be a hundred
/// times as long as what is in it.
#[cfg(target_os = "linux")]
fn next_data(file: &File, position: u64) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let data = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(position)) {
        Ok(data) => data / BLOCK as u64 * BLOCK as u64,
        Err(rustix::io::Errno::NXIO) => length,
        // A file system that cannot tell.
        Err(rustix::io::Errno::INVAL) => position,
        Err(error) => return Err(error.into()),
    };
    // The question has moved it.
    rustix::fs::seek(file, rustix::fs::SeekFrom::Start(position))?;
    Ok(data.max(position))
}

#[cfg(not(target_os = "linux"))]
fn next_data(_: &File, position: u64) -> io::Result<u64> {
    Ok(position)
}

/// Returns the digest of a file's contents. Blocks of zeros, of which a memory mostly consists, count by where
/// they end.
pub(crate) fn digest(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let (mut block, mut position) = (vec![0; BLOCK], 0u64);
    loop {
        let next = next_data(&file, position)?;
        if next > position {
            position = file.seek(SeekFrom::Start(next))?;
        }
        let count = (&mut file).take(block.len() as u64).read(&mut block)?;
        if count == 0 {
            hasher.update(&position.to_le_bytes());
            return Ok(hasher.finalize().to_hex().to_string());
        }
        // Compared as a whole, which is a call of the C library, not a loop.
        let zero = block[0] == 0 && block[..count - 1] == block[1..count];
        if !zero {
            hasher.update(&position.to_le_bytes());
            hasher.update(&block[..count]);
        }
        position += count as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    proptest! {
        /// A hole is as good as zeros, wherever it is.
        #[test]
        fn holes_and_zeros_are_the_same(
            pieces in prop::collection::vec((0u64..1 << 21, 1usize..9000, any::<u8>()), 0..6),
            length in 0u64..1 << 21,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let (sparse, whole) = (folder.path().join("sparse"), folder.path().join("whole"));
            let mut file = File::create(&sparse).unwrap();
            file.set_len(length).unwrap();
            for (position, count, byte) in pieces {
                file.seek(SeekFrom::Start(position)).unwrap();
                file.write_all(&vec![byte; count]).unwrap();
            }
            fs::write(&whole, fs::read(&sparse).unwrap()).unwrap();
            prop_assert_eq!(digest(&sparse).unwrap(), digest(&whole).unwrap());
        }
    }
}
