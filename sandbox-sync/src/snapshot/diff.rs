//! What differs between two trees, shown as in a review.

use std::io::{self, Read};

use super::folder::Node;
use super::load::{Nodes, bytes};
use super::packs::Packs;
use crate::fold::Folds;
use crate::path::RelPath;
use crate::reconcile::{Input, Mode};
use crate::review::{self, Changes, Look, MAX_SHOWN};
use crate::root::Root;
use crate::rules::Rules;
use crate::scan::open_file;
use crate::tree::{Digest, Tree};

/// Where one side's contents are.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Side<'a> {
    Stored(&'a Packs, &'a Nodes),
    Folder(&'a Root),
}

impl Side<'_> {
    /// Reads a file; `None` where it is not what it was.
    fn read(&self, path: &RelPath, (digest, size): (Digest, u64)) -> io::Result<Option<Vec<u8>>> {
        match self {
            Self::Stored(packs, nodes) => match nodes.get(path) {
                Some(Node::File(file)) => bytes(packs, file).map(Some),
                _ => Ok(None),
            },
            Self::Folder(root) => {
                let read = || {
                    let (file, _) = open_file(&root.parent_of(path)?, path.name())?;
                    let mut bytes = Vec::new();
                    // One more than there should be shows in the digest.
                    file.take(size + 1).read_to_end(&mut bytes)?;
                    io::Result::Ok(bytes)
                };
                Ok(read().ok().filter(|bytes| Digest::of(bytes) == digest))
            }
        }
    }
}

/// Lists what leads from one tree to the other. In each change the host's side is the one tree's, the
/// guest's the other's.
pub(crate) fn diff([old, new]: [(&Tree, Side<'_>); 2], rules: &Rules) -> io::Result<Changes> {
    let mut listed = review::list(Input {
        base: old.0,
        host: old.0,
        guest: new.0,
        rules,
        mode: Mode::Review,
        folds: Folds::default(),
    });
    let mut room = MAX_SHOWN;
    for change in &mut listed.changes {
        change.contents = match review::look(change) {
            Look::Nothing => review::Contents::Same,
            Look::Omitted => review::Contents::Omitted,
            Look::Texts { .. } if room == 0 => review::Contents::Omitted,
            Look::Texts { host, guest } => {
                let read = |side: Side<'_>, content| match content {
                    Some(content) => side.read(&change.path, content),
                    None => Ok(Some(Vec::new())),
                };
                let (before, after) = (read(old.1, host)?, read(new.1, guest)?);
                review::contents(before.as_deref(), after.as_deref(), &mut room)
            }
        };
    }
    Ok(listed)
}
