//! The base: the last tree on which both sides agreed, as a file.
//!
//! ```text
//! "sandbox-sync base 1\n"   BLAKE3 of the rest   postcard(root's path, entries)
//! ```
//!
//! It is replaced as a whole after everything that it says is durable on both sides. A file that is
//! missing, torn, of another version or of another root is an *empty* history: then each side's files are
//! new, the two are united, and where they differ there is a conflict. It is never read as "everything was
//! deleted" (`S17`, `S18`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sandbox_base::durable;

use crate::path::RelPath;
use crate::tree::{Entry, Item, Tree};

const MAGIC: &[u8] = b"sandbox-sync base 1\n";
const HEADER: usize = MAGIC.len() + 32;
/// A base of a million entries has about a tenth of this.
const LONGEST: u64 = 1 << 30;

/// The agreed tree and where it is kept.
#[derive(Debug)]
pub(crate) struct Base {
    tree: Arc<Tree>,
    root: Vec<u8>,
    file: Option<PathBuf>,
}

impl Base {
    /// Reads what `file` says about `root`.
    pub(crate) fn open(file: Option<&Path>, root: &Path) -> Self {
        let root = root.as_os_str().as_encoded_bytes().to_vec();
        let tree = file.and_then(|file| match read(file, &root) {
            Ok(tree) => Some(tree),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(%error, file = %file.display(), "the base is unusable; starting without history");
                None
            }
        });
        Self {
            tree: Arc::new(tree.unwrap_or_default()),
            root,
            file: file.map(Path::to_owned),
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
    }

    /// Takes in what was agreed, items or paths where nothing is, and writes it down, if that changes anything.
    pub(crate) fn record(&mut self, agreed: Vec<Result<Item, RelPath>>) -> io::Result<()> {
        if agreed.is_empty() {
            return Ok(());
        }
        let tree = Arc::make_mut(&mut self.tree);
        for item in agreed {
            match item {
                Ok(item) => tree.put(item),
                Err(path) => tree.set(path, None),
            }
        }
        match &self.file {
            None => Ok(()),
            Some(file) => durable::write(file, &encode(&self.root, &self.tree)?),
        }
    }
}

fn encode(root: &[u8], tree: &Tree) -> io::Result<Vec<u8>> {
    let entries: Vec<(&RelPath, &Entry)> = tree.iter().collect();
    let body = postcard::to_stdvec(&(root, entries)).map_err(io::Error::other)?;
    let mut file = Vec::with_capacity(HEADER + body.len());
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(blake3::hash(&body).as_bytes());
    file.extend_from_slice(&body);
    Ok(file)
}

fn read(file: &Path, root: &[u8]) -> io::Result<Tree> {
    let invalid = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason.to_owned());
    if fs::metadata(file)?.len() > LONGEST {
        return Err(invalid("longer than any base"));
    }
    let bytes = fs::read(file)?;
    let (header, body) = bytes
        .split_at_checked(HEADER)
        .ok_or_else(|| invalid("too short"))?;
    let digest = header
        .strip_prefix(MAGIC)
        .ok_or_else(|| invalid("of another version"))?;
    if blake3::hash(body).as_bytes()[..] != *digest {
        return Err(invalid("its checksum does not match"));
    }
    let (of, entries): (Vec<u8>, Vec<(RelPath, Entry)>) =
        postcard::from_bytes(body).map_err(|error| invalid(&error.to_string()))?;
    if of != root {
        return Err(invalid("of another root"));
    }
    Ok(Tree::from_iter(entries))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Digest;
    use proptest::prelude::*;

    fn recorded(file: &Path) -> Base {
        let mut base = Base::open(Some(file), Path::new("/w"));
        let file = Entry::File {
            digest: Digest::of(b"x"),
            size: 1,
            executable: true,
        };
        let entries = [("a", Entry::Directory), ("a/b", file)];
        let agreed = entries.map(|(p, e)| Ok(Item::new(RelPath::new(p).unwrap(), e)));
        base.record(agreed.into()).unwrap();
        base
    }

    #[test]
    fn what_was_recorded_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("base");
        let base = recorded(&file);
        assert_eq!(Base::open(Some(&file), Path::new("/w")).tree(), base.tree());
    }

    #[test]
    fn s18_a_base_of_another_root_is_no_history() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("base");
        drop(recorded(&file));
        assert!(
            Base::open(Some(&file), Path::new("/other"))
                .tree()
                .is_empty()
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn s17_a_damaged_base_is_no_history(cut: prop::sample::Index, flip: prop::sample::Index, bit in 0u8..8) {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("base");
            drop(recorded(&file));
            let bytes = fs::read(&file).unwrap();
            let mut damaged = bytes.clone();
            damaged[flip.index(bytes.len())] ^= 1 << bit;
            for bytes in [&damaged[..], &bytes[..cut.index(bytes.len())]] {
                fs::write(&file, bytes).unwrap();
                prop_assert!(Base::open(Some(&file), Path::new("/w")).tree().is_empty());
            }
        }
    }
}
