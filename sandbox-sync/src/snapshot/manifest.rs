//! One snapshot's own file: what it is called, when and of what it was taken, and the digest of its tree: pure.
//!
//! ```text
//! "sandbox snapshot 1\n"   BLAKE3 of the rest   postcard(Manifest)
//! ```

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::damage::damaged;
use super::name::Name;
use crate::path::RelPath;
use crate::tree::Digest;

const MAGIC: &[u8] = b"sandbox snapshot 1\n";
/// The longest one, in bytes: it lists the paths that were being written.
pub(crate) const LONGEST: u64 = 64 << 20;

/// How much a snapshot holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Counts {
    /// Files.
    pub files: u64,
    /// Folders, the root aside.
    pub folders: u64,
    /// Symbolic links.
    pub links: u64,
    /// What was there and is not in the snapshot, ignored paths included.
    pub untracked: u64,
    /// The length of all files together.
    pub bytes: u64,
}

impl Counts {
    pub(crate) fn plus(self, more: Self) -> Self {
        Self {
            files: self.files.saturating_add(more.files),
            folders: self.folders.saturating_add(more.folders),
            links: self.links.saturating_add(more.links),
            untracked: self.untracked.saturating_add(more.untracked),
            bytes: self.bytes.saturating_add(more.bytes),
        }
    }

    /// Returns how many names there are.
    pub(crate) fn names(self) -> u64 {
        [self.files, self.folders, self.links, self.untracked]
            .into_iter()
            .fold(0, u64::saturating_add)
    }
}

/// What is known of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) name: Name,
    /// Seconds and nanoseconds since 1970.
    pub(crate) created: (u64, u32),
    pub(crate) automatic: bool,
    /// The folder that it was taken of, as bytes, and the device that it lay on.
    pub(crate) root: Vec<u8>,
    pub(crate) device: u64,
    /// The digest of the rules about what is in it.
    pub(crate) rules: Digest,
    /// The digest of the root's listing.
    pub(crate) tree: Digest,
    pub(crate) counts: Counts,
    /// Files that were being written each time that they were read.
    pub(crate) torn: Vec<RelPath>,
}

impl Manifest {
    pub(crate) fn encode(&self) -> io::Result<Vec<u8>> {
        let body = postcard::to_stdvec(self).map_err(io::Error::other)?;
        Ok([MAGIC, blake3::hash(&body).as_bytes(), &body].concat())
    }

    /// Reads the manifest of the snapshot that is called `name`.
    pub(crate) fn decode(name: &Name, bytes: &[u8]) -> io::Result<Self> {
        let bad = |what: &str| damaged(format!("the snapshot {name} {what}"));
        let rest = bytes
            .strip_prefix(MAGIC)
            .ok_or_else(|| bad("is of another version, or none"))?;
        let (digest, body) = rest
            .split_at_checked(32)
            .ok_or_else(|| bad("is cut short"))?;
        if blake3::hash(body).as_bytes()[..] != *digest {
            return Err(bad("has another checksum"));
        }
        let manifest: Self = match postcard::take_from_bytes(body) {
            Ok((manifest, [])) => manifest,
            _ => return Err(bad("cannot be read")),
        };
        match manifest.name == *name {
            true => Ok(manifest),
            false => Err(bad("has the file of another")),
        }
    }

    pub(crate) fn created(&self) -> SystemTime {
        let (seconds, nanos) = self.created;
        let since =
            Duration::from_secs(seconds) + Duration::from_nanos(nanos.min(999_999_999).into());
        UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH)
    }

    pub(crate) fn root(&self) -> PathBuf {
        use std::os::unix::ffi::OsStringExt;
        std::ffi::OsString::from_vec(self.root.clone()).into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn manifest(name: &str) -> Manifest {
        Manifest {
            name: Name::new(name).unwrap(),
            created: (1, 2),
            automatic: true,
            root: b"/w".into(),
            device: 7,
            rules: Digest::of(b"rules"),
            tree: Digest::of(b"tree"),
            counts: Counts::default(),
            torn: vec![RelPath::new("a/b").unwrap()],
        }
    }

    #[test]
    fn it_is_read_as_it_was_written_and_under_its_name_only() {
        let one = manifest("one");
        let bytes = one.encode().unwrap();
        assert_eq!(Manifest::decode(&one.name, &bytes).unwrap(), one);
        let other = Name::new("other").unwrap();
        assert!(super::super::damage::is_damage(
            &Manifest::decode(&other, &bytes).unwrap_err()
        ));
    }

    proptest! {
        #[test]
        fn a_damaged_one_is_refused(at: prop::sample::Index, bit in 0u8..8, cut: prop::sample::Index) {
            let one = manifest("one");
            let bytes = one.encode().unwrap();
            let mut flipped = bytes.clone();
            flipped[at.index(bytes.len())] ^= 1 << bit;
            for bytes in [&flipped[..], &bytes[..cut.index(bytes.len())]] {
                let error = Manifest::decode(&one.name, bytes).unwrap_err();
                prop_assert!(super::super::damage::is_damage(&error));
            }
        }
    }
}
