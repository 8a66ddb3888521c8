//! What the last look found damaged or missing, on disk and as data.
//!
//! ```text
//! "sandbox damage 1\n"   BLAKE3 of the rest   postcard(Hurt)
//! ```
//!
//! It names the very copies that are bad: a blob in one pack, a clone by its inode. So what a later snapshot
//! writes anew counts as whole at once, and a file that says too much costs a second look and nothing else.

use std::collections::HashSet;
use std::io;

use serde::{Deserialize, Serialize};

use super::damage::damaged;
use crate::tree::Digest;

const MAGIC: &[u8] = b"sandbox damage 1\n";

/// What is not to be relied on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hurt {
    /// Blobs that are damaged, and the names of their packs.
    pub(crate) blobs: HashSet<(String, Digest)>,
    /// Clones that are damaged, and their inodes.
    pub(crate) clones: HashSet<(Digest, u64)>,
    /// What some snapshot needs and there was no whole copy of; recipes that name such a blob as well.
    pub(crate) gone: HashSet<Digest>,
}

impl Hurt {
    pub(crate) fn is_nothing(&self) -> bool {
        self.blobs.is_empty() && self.clones.is_empty() && self.gone.is_empty()
    }

    pub(crate) fn encode(&self) -> io::Result<Vec<u8>> {
        let body = postcard::to_stdvec(self).map_err(io::Error::other)?;
        Ok([MAGIC, blake3::hash(&body).as_bytes(), &body].concat())
    }

    /// Reads what [`Hurt::encode`] made.
    pub(crate) fn decode(bytes: &[u8]) -> io::Result<Self> {
        let bad = || damaged("the list of what is damaged cannot be read");
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(bad)?;
        let (digest, body) = rest.split_at_checked(32).ok_or_else(bad)?;
        match blake3::hash(body).as_bytes()[..] == *digest {
            true => postcard::from_bytes(body).map_err(|_| bad()),
            false => Err(bad()),
        }
    }
}
