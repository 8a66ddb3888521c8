//! From a stored tree to its paths, and from a file of it to its bytes.

use std::collections::BTreeMap;
use std::io::{self, Read};

use super::damage::damaged;
use super::folder::{Contents, File, Node, Recipe};
use super::packs::Packs;
use crate::path::RelPath;
use crate::scan::BUFFER;
use crate::tree::{Digest, Tree};

/// What a snapshot has at each path.
pub(crate) type Nodes = BTreeMap<RelPath, Node>;

/// Reads the tree whose root has this listing, of at most `entries` paths.
///
/// Every listing is verified on the way; what cannot be in a tree (a name with `/` or `..` in it, a link that
/// leads out, too many entries) is damage as well: whatever the store says, nothing but a tree beneath the
/// root comes of it.
pub(crate) fn load(packs: &Packs, root: Digest, entries: usize) -> io::Result<Nodes> {
    let [nodes, _] = read(packs, [Some(root), None], entries)?;
    Ok(nodes)
}

/// Reads what differs between two trees, as [`load`] does: of folders that are the same in both, nothing but
/// that they are there.
pub(crate) fn load_differing(
    packs: &Packs,
    roots: [Digest; 2],
    entries: usize,
) -> io::Result<[Nodes; 2]> {
    read(packs, roots.map(Some), entries)
}

fn read(packs: &Packs, roots: [Option<Digest>; 2], entries: usize) -> io::Result<[Nodes; 2]> {
    let mut both = [Nodes::new(), Nodes::new()];
    let mut rest: Vec<(Option<RelPath>, [Option<Digest>; 2])> = vec![(None, roots)];
    while let Some((path, listings)) = rest.pop() {
        if listings[0] == listings[1] {
            continue;
        }
        let mut beneath: BTreeMap<RelPath, [Option<Digest>; 2]> = BTreeMap::new();
        for (side, listing) in listings.iter().enumerate() {
            let folder = listing
                .map(|listing| packs.read_folder(&listing))
                .transpose()?;
            for (name, node) in folder.unwrap_or_default().0 {
                let Some(child) = child(path.as_ref(), (&name.0, &node))? else {
                    continue;
                };
                if both[side].len() >= entries {
                    let reason = format!("more than {entries} entries");
                    return Err(io::Error::new(io::ErrorKind::QuotaExceeded, reason));
                }
                if let Node::Folder { listing, .. } = &node {
                    beneath.entry(child.clone()).or_default()[side] = Some(*listing);
                }
                both[side].insert(child, node);
            }
        }
        rest.extend(
            beneath
                .into_iter()
                .map(|(path, listings)| (Some(path), listings)),
        );
    }
    for nodes in &both {
        if let Err(path) = tree(nodes).check() {
            return Err(damaged(format!("{path} cannot be in a tree")));
        }
    }
    Ok(both)
}

/// Returns the path of a name. One that no path can have was noted when it was found, and is nothing that
/// could be written.
fn child(path: Option<&RelPath>, (name, node): (&[u8], &Node)) -> io::Result<Option<RelPath>> {
    match (RelPath::join(path, name), node) {
        (Ok(child), _) if !name.contains(&b'/') => Ok(Some(child)),
        (Err(_), Node::Untracked(_)) if !name.contains(&b'/') => Ok(None),
        _ => Err(damaged("a name that cannot be")),
    }
}

/// Returns nodes as a tree.
pub(crate) fn tree(nodes: &Nodes) -> Tree {
    nodes
        .iter()
        .map(|(path, node)| (path.clone(), node.entry()))
        .collect()
}

/// Hands the contents of a file to `write`, a blob at a time. Each blob is verified; that they make up the
/// file is for the caller to verify.
pub(crate) fn contents(
    packs: &Packs,
    file: &File,
    mut write: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    match file.contents {
        Contents::Whole => write(&packs.read(&file.digest)?),
        Contents::Parts(recipe) => {
            for blob in Recipe::decode(&packs.read(&recipe)?)?.0 {
                write(&packs.read(&blob)?)?;
            }
            Ok(())
        }
        Contents::Clone => {
            let mut clone = packs.clones.open(&file.digest)?;
            let mut buffer = vec![0; BUFFER];
            loop {
                match clone.read(&mut buffer)? {
                    0 => return Ok(()),
                    read => write(&buffer[..read])?,
                }
            }
        }
    }
}

/// Reads a short file into memory.
pub(crate) fn bytes(packs: &Packs, file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    contents(packs, file, |blob| {
        if (bytes.len() + blob.len()) as u64 > file.size {
            return Err(damaged("a file is longer than it was"));
        }
        bytes.extend_from_slice(blob);
        Ok(())
    })?;
    match Digest::of(&bytes) == file.digest {
        true => Ok(bytes),
        false => Err(damaged("a file's blobs are not the file")),
    }
}
