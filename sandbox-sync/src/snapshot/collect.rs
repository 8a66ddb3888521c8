//! What no snapshot needs goes.
//!
//! The collector alone holds the store's lock. It first reads every snapshot of every space down to the last
//! listing and recipe; where one of them cannot be read, nothing goes at all. Packs of which nothing is needed
//! are removed; of packs that are needed for less than half of what they hold, and of many short ones, what is
//! needed is copied into new packs, which are durable and in place before the first old one is removed. So
//! after a crash everything that is needed is there, perhaps twice, and the next collector goes on.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::sync::Arc;

use super::folder::{Contents, Node, Recipe};
use super::pack::{Pack, sweep_partial};
use super::packs::{Packs, Writer};
use crate::tree::Digest;

/// More packs than this that are shorter than [`SHORT`] become one.
const MANY: usize = 16;
const SHORT: u64 = 16 << 20;

/// What a collector did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Collected {
    /// How many blobs the snapshots need.
    pub blobs: u64,
    /// How many bytes less the packs take, and how long the clones were that went: what they shared with
    /// other files takes its room still.
    pub freed: u64,
}

/// Removes from the packs what none of the trees with these listings needs; to be called under the store's
/// exclusive lock.
pub(crate) fn collect(
    packs: &Packs,
    trees: impl IntoIterator<Item = Digest>,
) -> io::Result<Collected> {
    let (mut needed, mut clones) = (HashSet::new(), HashSet::new());
    for tree in trees {
        mark(packs, tree, (&mut needed, &mut clones))?;
    }
    sweep_partial(packs.folder())?;
    let before = packs.all();
    let (rewritten, unneeded) = plan(&before, &needed);
    let writer = Writer::moving(packs);
    for pack in &rewritten {
        for (digest, place) in pack
            .index
            .iter()
            .filter(|(digest, _)| needed.contains(digest))
        {
            // Damaged here, it may be whole in another pack; if it is not, nothing goes.
            let blob = pack.read(&digest, place);
            writer.put(digest, &blob.or_else(|_| packs.read(&digest))?)?;
        }
    }
    writer.finish()?;
    let written = writer.written();
    for pack in rewritten.iter().chain(&unneeded) {
        // The same blobs in the same order have the same name.
        if written.iter().all(|path| path != pack.path()) {
            fs::remove_file(pack.path())?;
        }
    }
    fs::File::open(packs.folder())?.sync_all()?;
    packs.refresh()?;
    let long = |packs: &[Arc<Pack>]| packs.iter().map(|pack| pack.length).sum::<u64>();
    let cloned = packs.clones.collect(&clones)?;
    Ok(Collected {
        blobs: (needed.len() + clones.len()) as u64,
        freed: long(&before).saturating_sub(long(&packs.all())) + cloned,
    })
}

/// Adds everything that a tree needs.
fn mark(
    packs: &Packs,
    tree: Digest,
    (needed, clones): (&mut HashSet<Digest>, &mut HashSet<Digest>),
) -> io::Result<()> {
    let mut rest = vec![tree];
    while let Some(listing) = rest.pop() {
        if !needed.insert(listing) {
            continue;
        }
        for (_, node) in packs.read_folder(&listing)?.0 {
            match node {
                Node::Folder { listing, .. } => rest.push(listing),
                Node::File(file) => match file.contents {
                    Contents::Whole => drop(needed.insert(file.digest)),
                    Contents::Clone => drop(clones.insert(file.digest)),
                    Contents::Parts(recipe) => {
                        if needed.insert(recipe) {
                            needed.extend(Recipe::decode(&packs.read(&recipe)?)?.0);
                        }
                    }
                },
                Node::Link(_) | Node::Untracked(_) => {}
            }
        }
    }
    Ok(())
}

/// Chooses the packs whose needed blobs are copied, and those that have none.
fn plan(packs: &[Arc<Pack>], needed: &HashSet<Digest>) -> (Vec<Arc<Pack>>, Vec<Arc<Pack>>) {
    let (mut sparse, mut short, mut unneeded) = (Vec::new(), Vec::new(), Vec::new());
    for pack in packs {
        let (mut all, mut live) = (0u64, 0u64);
        for (digest, place) in pack.index.iter() {
            all += u64::from(place.stored) + 1;
            live += u64::from(needed.contains(&digest)) * (u64::from(place.stored) + 1);
        }
        let of = match (live, pack.length) {
            (0, _) => &mut unneeded,
            (live, _) if live * 2 < all => &mut sparse,
            (_, length) if length < SHORT => &mut short,
            _ => continue,
        };
        of.push(pack.clone());
    }
    if short.len() > MANY {
        sparse.append(&mut short);
    }
    (sparse, unneeded)
}
