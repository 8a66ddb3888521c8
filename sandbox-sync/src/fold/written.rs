//! Names as they were written, where the host's file system keeps them in a form of its own.
//!
//! HFS+ decomposes what it is given: who makes `é` of one character finds it of two. Taken at its word that is
//! a rename, and the other side's name would follow. So before anything is compared, a name of the host's takes
//! the bytes by which base or guest know it, wherever they differ by their canonical form alone. The host's
//! file system understands either, so plans, contents and the base go by the bytes of who wrote the name.
//!
//! Only the host's own word counts for this. A guest's that says the same of itself has its names taken as they
//! are; then the other side's follow them once.

use std::collections::HashMap;

use unicode_normalization::UnicodeNormalization;

use crate::path::RelPath;
use crate::tree::Tree;

/// Returns `tree` under the names that the base has for the same, or else the guest; others stay.
pub(crate) fn as_written(tree: &Tree, others: [&Tree; 2]) -> Tree {
    // What was agreed on before what one side has: of the other names nobody said that they are the same.
    let written = others.map(by_form);
    let mut folders: HashMap<RelPath, RelPath> = HashMap::new();
    let mut found = Tree::default();
    for (path, entry) in tree.iter() {
        let parent = path.parent();
        let above = parent.map(|parent| folders.get(&parent).cloned().unwrap_or(parent));
        let own = RelPath::join(above.as_ref(), path.name()).unwrap_or_else(|_| path.clone());
        let form = form(path);
        let known = others.iter().zip(&written).find_map(|(other, written)| {
            let by_form = || (*written.get(form.as_ref()?)?).cloned();
            let is_known = other.entry(&own).is_some();
            if is_known {
                Some(own.clone())
            } else {
                by_form()
            }
        });
        let fits = |known: &RelPath| known.parent() == above && found.entry(known).is_none();
        let name = known.filter(fits).unwrap_or(own);
        if name != *path && entry.is_directory() {
            folders.insert(path.clone(), name.clone());
        }
        found.set(name, Some(entry.clone()));
    }
    found
}

/// Returns the paths by their decomposed form, `None` where several have one: which is meant is not known.
fn by_form(tree: &Tree) -> HashMap<String, Option<&RelPath>> {
    let mut found: HashMap<String, Option<&RelPath>> = HashMap::new();
    for (path, _) in tree.iter() {
        if let Some(form) = form(path) {
            let one = found.entry(form).or_insert(Some(path));
            *one = one.filter(|one| *one == path);
        }
    }
    found
}

/// Returns a path in its decomposed form, `None` where there is but one.
fn form(path: &RelPath) -> Option<String> {
    let text = std::str::from_utf8(path.as_bytes()).ok();
    text.filter(|text| !text.is_ascii())
        .map(|text| text.nfd().collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fold::{Folding, Folds};
    use crate::reconcile::tests::{any_tree, no_rules, run, tree};
    use crate::reconcile::{Input, Mode};

    const HFS: Folding = Folding {
        case: true,
        form: true,
        rewrites: true,
    };

    /// What is left of names on such a file system.
    fn kept(tree: &Tree) -> Tree {
        let kept =
            |path: &RelPath| RelPath::new(form(path).unwrap_or_else(|| path.to_string())).unwrap();
        tree.iter()
            .map(|(path, entry)| (kept(path), entry.clone()))
            .collect()
    }

    /// Runs one cycle and returns base, host and guest after it, and how much was done.
    fn cycle([base, host, guest]: [&Tree; 3]) -> ([Tree; 3], usize) {
        let (rules, mode) = (no_rules(), Mode::TwoWaySafe);
        let folds = Folds {
            host: HFS,
            guest: Folding::default(),
        };
        let host = as_written(host, [base, guest]);
        let after = run(Input {
            base,
            host: &host,
            guest,
            rules: &rules,
            mode,
            folds,
        });
        let done = after.plan.to_host.len() + after.plan.to_guest.len();
        ([after.base, kept(&after.host), after.guest], done)
    }

    #[test]
    fn s11_each_side_keeps_the_bytes_of_its_names() {
        let composed = tree("\u{e9}t\u{e9}/caf\u{e9}=1 \u{e9}t\u{e9}/a=2");
        let empty = Tree::default();
        let ([base, host, guest], _) = cycle([&empty, &empty, &composed]);
        assert_eq!((&guest, &host), (&composed, &kept(&composed)));
        let ([base, host, guest], done) = cycle([&base, &host, &guest]);
        assert_eq!((&guest, &host, done), (&composed, &kept(&composed), 0));
        // What the host adds, changes and removes arrives where the guest has it.
        let mut changed = host.clone();
        let path = |text: &str| RelPath::new(text).unwrap();
        let other = tree("x=3");
        let three = other.entry(&path("x"));
        changed.set(path("e\u{301}te\u{301}/cafe\u{301}"), three.cloned());
        changed.set(path("e\u{301}te\u{301}/nai\u{308}f"), three.cloned());
        changed.set(path("e\u{301}te\u{301}/a"), None);
        let ([base, host, guest], _) = cycle([&base, &changed, &guest]);
        let expected = tree("\u{e9}t\u{e9}/caf\u{e9}=3 \u{e9}t\u{e9}/nai\u{308}f=3");
        assert_eq!((&guest, &host), (&expected, &changed));
        assert_eq!(cycle([&base, &host, &guest]).1, 0);
    }

    fn composed(tree: &Tree) -> Tree {
        let name = |path: &RelPath| {
            let text = path
                .to_string()
                .replace('a', "\u{e9}")
                .replace('b', "e\u{301}");
            RelPath::new(text).unwrap()
        };
        tree.iter()
            .map(|(path, entry)| (name(path), entry.clone()))
            .collect()
    }

    proptest! {
        #[test]
        fn s11_names_come_to_rest_and_nothing_is_lost(guest in any_tree(), added in any_tree()) {
            let (guest, added) = (composed(&guest), kept(&added));
            let empty = Tree::default();
            let (first, _) = cycle([&empty, &added, &guest]);
            let [base, host, after] = &first;
            prop_assert_eq!(after.check(), Ok(()));
            prop_assert_eq!(host.check(), Ok(()));
            // No name of the guest's is another one, and none of its files is gone.
            for (path, entry) in guest.iter() {
                prop_assert_eq!(after.entry(path), Some(entry), "{}", path);
            }
            for (path, entry) in added.iter() {
                prop_assert_eq!(host.entry(path), Some(entry), "{}", path);
            }
            let (again, done) = cycle([base, host, after]);
            prop_assert_eq!(done, 0);
            prop_assert_eq!(&again[1..], &first[1..]);
        }
    }
}
