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

type Listing = BTreeSet<Vec<u8>>;

/// What folders list, read once each.
#[derive(Debug)]
pub(super) struct Listed<'a> {
    root: &'a Root,
    folders: HashMap<Option<RelPath>, Option<Rc<Listing>>>,
}

impl<'a> Listed<'a> {
    /// `None` where names are what they seem.
    pub(super) fn of(root: &'a Root) -> Option<Self> {
        let folders = HashMap::new();
        (!root.names().folding.is_none()).then_some(Self { root, folders })
    }

    /// Returns the names that a folder lists, `None` where it cannot be read.
    fn names(&mut self, folder: Option<&RelPath>) -> Option<Rc<Listing>> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fold::Folding;
    use crate::probe::Names;

    #[test]
    fn s10_a_name_is_looked_at_by_what_its_folder_calls_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("Dir")).unwrap();
        for name in ["read", "other", "Dir/x"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let root = Root::open(folder.path()).unwrap();
        assert!(Listed::of(&root).is_none(), "nothing is folded");
        let case = Folding {
            case: true,
            ..Folding::default()
        };
        root.set_names(Names {
            folding: case,
            renames: true,
        });
        let mut listed = Listed::of(&root).unwrap();
        let path = |text: &str| RelPath::new(text).unwrap();
        for (text, is_there) in [
            ("read", true),
            ("Read", false),
            ("Dir/x", true),
            ("dir", false),
            ("dir/x", false),
            ("Dir/y", false),
        ] {
            assert_eq!(listed.is_there(&path(text)), is_there, "{text}");
        }
        // What it is called now, and what it was called.
        let known = crate::reconcile::tests::tree("READ=1 dir/x=1");
        let dirt = [(path("Read"), Depth::Name), (path("DIR"), Depth::Beneath)];
        let all = listed.with_others(dirt.into(), &known);
        let all: Vec<_> = all
            .iter()
            .map(|(path, depth)| format!("{path} {depth:?}"))
            .collect();
        let expected = [
            "DIR Beneath",
            "Dir Beneath",
            "READ Name",
            "Read Name",
            "dir Beneath",
            "read Name",
        ];
        assert_eq!(all, expected);
    }
}
