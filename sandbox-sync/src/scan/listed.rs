//! Which names are really there, where looking one up finds another.
//!
//! On a file system that folds names, a name that a folder does not list can be looked up all the same, and
//! what tells of changes may call a file by a name that somebody used for it. A walk goes by what folders
//! list; a look at single paths goes by this.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use crate::path::RelPath;
use crate::root::Root;
use crate::tree::Tree;
use crate::watch::Depth;

/// What folders list, read once each.
#[derive(Debug)]
pub(super) struct Listed<'a> {
    root: &'a Root,
    folders: HashMap<Option<RelPath>, Option<Rc<BTreeSet<Vec<u8>>>>>,
}

impl<'a> Listed<'a> {
    /// `None` where names are what they seem.
    pub(super) fn of(root: &'a Root) -> Option<Self> {
        let folders = HashMap::new();
        (!root.names().folding.is_none()).then_some(Self { root, folders })
    }

    /// Returns the names that a folder lists, `None` where it cannot be read.
    fn names(&mut self, folder: Option<&RelPath>) -> Option<Rc<BTreeSet<Vec<u8>>>> {
        let folder = folder.cloned();
        if let Some(known) = self.folders.get(&folder) {
            return known.clone();
        }
        let opened = self.root.directory(folder.as_ref());
        let names = opened.and_then(|folder| super::names(&folder)).ok();
        let names = names.map(|names| Rc::new(names.into_iter().collect()));
        self.folders.insert(folder, names.clone());
        names
    }

    /// Tells whether a path and all folders above it have just these names, as far as they can be read:
    /// what is not known to be away is looked up.
    pub(super) fn is_there(&mut self, path: &RelPath) -> bool {
        let mut next = Some(path.clone());
        while let Some(path) = next {
            next = path.parent();
            let names = self.names(next.as_ref());
            if names.is_some_and(|names| !names.contains(path.name())) {
                return false;
            }
        }
        true
    }

    /// Adds what is one with a path that has to be looked at: what is there, and what `tree` has.
    pub(super) fn with_others(
        &mut self,
        dirt: BTreeMap<RelPath, Depth>,
        tree: &Tree,
    ) -> BTreeMap<RelPath, Depth> {
        let folding = self.root.names().folding;
        let mut by_folder: BTreeMap<Option<RelPath>, HashMap<Vec<u8>, Depth>> = BTreeMap::new();
        for (path, depth) in &dirt {
            let keys = by_folder.entry(path.parent()).or_default();
            let known = keys
                .entry(folding.key(path.name()).into_owned())
                .or_insert(*depth);
            *known = (*known).max(*depth);
        }
        let mut all = dirt;
        for (folder, keys) in by_folder {
            let names = self.names(folder.as_ref());
            let known = tree
                .children(folder.as_ref())
                .map(|item| item.path().name());
            let there = names
                .iter()
                .flat_map(|names| names.iter().map(Vec::as_slice));
            for name in there.chain(known) {
                let wanted = keys.get(&*folding.key(name));
                if let (Some(depth), Ok(path)) = (wanted, RelPath::join(folder.as_ref(), name)) {
                    let known = all.entry(path).or_insert(*depth);
                    *known = (*known).max(*depth);
                }
            }
        }
        all
    }
}
