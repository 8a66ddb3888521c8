//! One folder of a snapshot as bytes, and the recipe of a long file: pure.
//!
//! A folder lists its names in order, each with what is there. What is beneath a folder in it is named by the
//! digest of that folder's bytes, so equal folders are stored once, however many snapshots have them, and a
//! snapshot in which one file changed adds the folders above that file and nothing else. Beside that digest
//! stands what lies beneath in all, so a folder that is taken over unread still counts.

use std::io;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::damage::damaged;
use super::manifest::Counts;
use crate::root::Facts;
use crate::stage::Modified;
use crate::tree::{Digest, Entry, Reason};

/// The bits of a mode that are kept: permissions, never setuid, setgid or sticky (`S38`).
pub(crate) const PERMISSIONS: u32 = 0o777;

/// What is at one name of a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Node {
    Folder {
        listing: Digest,
        mode: u32,
        beneath: Beneath,
    },
    File(File),
    Link(#[serde(with = "bytes")] Vec<u8>),
    /// It was there and is not in the snapshot.
    Untracked(Reason),
}

/// What lies beneath a folder, in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Beneath {
    pub(crate) counts: Counts,
    /// Whether nothing of it has to be looked at again even where no event tells of a change.
    pub(crate) settled: bool,
}

impl Default for Beneath {
    /// Returns what lies beneath an empty folder.
    fn default() -> Self {
        Self {
            counts: Counts::default(),
            settled: true,
        }
    }
}

impl Beneath {
    /// Adds what is at one more name.
    pub(crate) fn add(&mut self, node: &Node) {
        let mut more = Counts::default();
        match node {
            Node::Folder { beneath, .. } => {
                more = beneath.counts;
                more.folders = more.folders.saturating_add(1);
            }
            Node::File(file) => (more.files, more.bytes) = (1, file.size),
            Node::Link(_) => more.links = 1,
            Node::Untracked(_) => more.untracked = 1,
        }
        self.counts = self.counts.plus(more);
        self.settled &= node.is_settled();
    }
}

/// A file of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct File {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) modified: Modified,
    /// Where the contents are.
    pub(crate) contents: Contents,
    /// By what the same contents are recognized the next time; `None` where they have to be read again,
    /// because the file was being written, or was younger than what clocks can tell apart (`S52`).
    pub(crate) seen: Option<Seen>,
}

/// Where a file's contents are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Contents {
    /// In one blob, which has the file's digest.
    Whole,
    /// In several, listed by the recipe of this digest.
    Parts(Digest),
    /// In a [clone](super::clones), which has the file's digest.
    Clone,
}

/// What the kernel said of a file when it was read, besides what the file's entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) inode: u64,
    pub(crate) changed: (i64, u32),
}

impl File {
    /// Tells whether a file with these facts has these contents.
    pub(crate) fn is_still(&self, facts: &Facts) -> bool {
        let seen = Seen {
            inode: facts.inode,
            changed: facts.changed,
        };
        let same = (self.size, self.mode, self.modified)
            == (facts.size, facts.mode & PERMISSIONS, facts.modified);
        same && self.seen == Some(seen)
    }
}

impl Node {
    /// Tells whether this is still so as long as no event says otherwise: not of what was read too early to
    /// be known again, nor of what could not be read or has something mounted over it.
    pub(crate) fn is_settled(&self) -> bool {
        match self {
            Self::Folder { beneath, .. } => beneath.settled,
            Self::File(file) => file.seen.is_some(),
            Self::Link(_) => true,
            Self::Untracked(reason) => {
                !matches!(reason, Reason::Unreadable | Reason::OtherFilesystem)
            }
        }
    }

    /// Returns this as an entry of a tree.
    pub(crate) fn entry(&self) -> Entry {
        match self {
            Self::Folder { .. } => Entry::Directory,
            Self::File(file) => Entry::File {
                digest: file.digest,
                size: file.size,
                executable: file.mode & 0o100 != 0,
            },
            Self::Link(target) => Entry::Symlink {
                target: target.as_slice().into(),
            },
            Self::Untracked(reason) => Entry::Untracked(*reason),
        }
    }
}

/// A name within a folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Named(#[serde(with = "bytes")] pub(crate) Vec<u8>);

/// A folder's names, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Folder(pub(crate) Vec<(Named, Node)>);

impl Folder {
    /// Returns what is at `name`.
    pub(crate) fn node(&self, name: &[u8]) -> Option<&Node> {
        let found = self
            .0
            .binary_search_by(|(named, _)| named.0.as_slice().cmp(name));
        found.ok().map(|index| &self.0[index].1)
    }

    pub(crate) fn encode(&self) -> io::Result<Vec<u8>> {
        postcard::to_stdvec(self).map_err(io::Error::other)
    }

    /// Reads what [`Folder::encode`] made.
    pub(crate) fn decode(bytes: &[u8]) -> io::Result<Self> {
        let folder: Self = whole(bytes, "a folder")?;
        if folder.0.is_sorted_by(|(one, _), (next, _)| one < next) {
            Ok(folder)
        } else {
            Err(damaged("a folder's names are not in order"))
        }
    }
}

/// The blobs that make up a long file, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recipe(pub(crate) Vec<Digest>);

impl Recipe {
    pub(crate) fn encode(&self) -> io::Result<Vec<u8>> {
        postcard::to_stdvec(self).map_err(io::Error::other)
    }

    pub(crate) fn decode(bytes: &[u8]) -> io::Result<Self> {
        whole(bytes, "a recipe")
    }
}

/// Decodes all of `bytes`.
fn whole<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str) -> io::Result<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(damaged(format!("{what} cannot be read"))),
    }
}

/// Bytes as bytes, not one by one.
mod bytes {
    use super::{Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node() -> impl Strategy<Value = Node> {
        let digest = any::<u64>().prop_map(|seed| Digest::of(&seed.to_le_bytes()));
        let seen = prop::option::of((any::<u64>(), any::<(i64, u32)>()));
        let file = (
            digest.clone(),
            any::<(u64, u32)>(),
            any::<(i64, u32)>(),
            seen,
            any::<bool>(),
        );
        prop_oneof![
            (digest, any::<(u32, u64, bool)>()).prop_map(|(listing, (mode, files, settled))| {
                let counts = Counts {
                    files,
                    ..Counts::default()
                };
                let beneath = Beneath { counts, settled };
                Node::Folder {
                    listing,
                    mode,
                    beneath,
                }
            }),
            file.prop_map(
                |(digest, (size, mode), modified, seen, whole)| Node::File(File {
                    digest,
                    size,
                    mode,
                    modified,
                    contents: if whole {
                        Contents::Whole
                    } else {
                        Contents::Parts(digest)
                    },
                    seen: seen.map(|(inode, changed)| Seen { inode, changed }),
                })
            ),
            prop::collection::vec(any::<u8>(), 0..20).prop_map(Node::Link),
            Just(Node::Untracked(Reason::Masked)),
        ]
    }

    fn folder() -> impl Strategy<Value = Folder> {
        let names =
            prop::collection::btree_map(prop::collection::vec(any::<u8>(), 1..9), node(), 0..9);
        names.prop_map(|names| {
            Folder(
                names
                    .into_iter()
                    .map(|(n, node)| (Named(n), node))
                    .collect(),
            )
        })
    }

    proptest! {
        #[test]
        fn a_folder_is_read_as_it_was_written(folder in folder()) {
            prop_assert_eq!(Folder::decode(&folder.encode().unwrap()).unwrap(), folder);
        }

        #[test]
        fn other_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            drop((Folder::decode(&bytes), Recipe::decode(&bytes)));
        }
    }

    #[test]
    fn names_out_of_order_and_twice_are_damage() {
        let named = |name: &[u8]| (Named(name.into()), Node::Untracked(Reason::Special));
        for names in [[named(b"b"), named(b"a")], [named(b"a"), named(b"a")]] {
            let bytes = Folder(names.into()).encode().unwrap();
            assert!(super::super::damage::is_damage(
                &Folder::decode(&bytes).unwrap_err()
            ));
        }
    }
}
