//! What becomes of names that are one, on a model of file systems that fold.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::tests::{
    After, any_base, any_tree, carry_out, cases, graft, no_rules, run, tree,
};
use super::super::{Input, Mode, reconcile, reconcile_within};
use crate::fold::{Folding, Folds};
use crate::path::RelPath;
use crate::report::Side;
use crate::rules::{Lists, Rules};
use crate::tree::{Entry, Tree};

const CASE: Folding = Folding {
    case: true,
    form: false,
    rewrites: false,
};
const BOTH: Folding = Folding {
    case: true,
    form: true,
    rewrites: false,
};
const NONE: Folding = Folding {
    case: false,
    form: false,
    rewrites: false,
};

/// Runs a case where the host folds, and the same one with the sides exchanged; returns the conflicts, each
/// with the name that it collides with.
#[track_caller]
fn case(host: Folding, [base, own, other]: [&str; 3], after: [&str; 2]) -> Vec<String> {
    let rules = no_rules();
    let mode = Mode::TwoWaySafe;
    let [base, own, other, own_after, other_after] =
        [base, own, other, after[0], after[1]].map(tree);
    let [one, flipped] = [false, true].map(|flipped| {
        let (host_tree, guest_tree) = if flipped {
            (&other, &own)
        } else {
            (&own, &other)
        };
        let folds = if flipped {
            Folds {
                host: NONE,
                guest: host,
            }
        } else {
            Folds { host, guest: NONE }
        };
        let input = Input {
            base: &base,
            host: host_tree,
            guest: guest_tree,
            rules: &rules,
            mode,
            folds,
        };
        let after = run(input);
        let (found, found_other) = if flipped {
            (&after.guest, &after.host)
        } else {
            (&after.host, &after.guest)
        };
        assert_eq!(*found, own_after, "the side that folds, flipped: {flipped}");
        assert_eq!(
            *found_other, other_after,
            "the other side, flipped: {flipped}"
        );
        after
            .plan
            .conflicts
            .iter()
            .map(|conflict| match &conflict.collision {
                Some(collision) => {
                    assert_eq!(collision.side == Side::Guest, flipped);
                    format!("{}~{}", conflict.path, collision.with)
                }
                None => conflict.path.to_string(),
            })
            .collect::<Vec<_>>()
    });
    assert_eq!(one, flipped);
    one
}

#[test]
fn s10_two_names_that_would_be_one_file_are_a_conflict() {
    let both_new = case(CASE, ["", "", "A=1 a=2 b=1"], ["b=1", "A=1 a=2 b=1"]);
    assert_eq!(both_new, ["A~a", "a~A"]);
    let one_is_there = case(CASE, ["A=0", "A=0", "A=0 a=2"], ["A=0", "A=0 a=2"]);
    assert_eq!(one_is_there, ["a~A"]);
    let one_each = case(CASE, ["", "A=1", "a=2"], ["A=1", "a=2"]);
    assert_eq!(one_each, ["A~a", "a~A"]);
    // What is not synchronized is there all the same.
    let untracked = case(CASE, ["", "A!", "a=2"], ["A!", "a=2"]);
    assert_eq!(untracked, ["a~A"]);
    // The same contents are no reason to merge.
    let equal = case(CASE, ["", "A=1", "a=1"], ["A=1", "a=1"]);
    assert_eq!(equal, ["A~a", "a~A"]);
}

#[test]
fn s10_other_names_flow_and_the_conflict_ends_with_a_rename() {
    let still_flows = case(CASE, ["A=0", "A=0", "A=1 a=2"], ["A=0", "A=1 a=2"]);
    assert_eq!(
        still_flows,
        ["A~a", "a~A"],
        "which of the two was meant is not known"
    );
    let renamed = case(CASE, ["A=0", "A=0", "A=1 b=2"], ["A=1 b=2"; 2]);
    assert_eq!(renamed, [""; 0]);
    let removed = case(CASE, ["A=0", "A=0", "a=2"], ["a=2"; 2]);
    assert_eq!(removed, [""; 0]);
}

#[test]
fn s10_a_rename_to_another_case_is_carried_over() {
    for folding in [CASE, BOTH] {
        assert!(case(folding, ["A=1", "A=1", "a=1"], ["a=1"; 2]).is_empty());
        assert!(case(folding, ["A=1", "a=1", "A=1"], ["a=1"; 2]).is_empty());
        assert!(case(folding, ["A=1", "A=1", "a=2"], ["a=2"; 2]).is_empty());
        assert!(
            case(
                folding,
                ["D/x=1", "D/x=1", "d/x=1 d/y=1"],
                ["d/x=1 d/y=1"; 2]
            )
            .is_empty()
        );
        assert!(case(folding, ["D/X=1", "D/X=1", "d/x=1"], ["d/x=1"; 2]).is_empty());
    }
    // Meanwhile the other side worked on it: both stay, and nothing is in two places.
    let edited = case(CASE, ["A=1", "A=2", "a=1"], ["A=2", "a=1"]);
    assert_eq!(edited, ["A~a", "a~A"]);
    let worked_in = case(
        CASE,
        ["D/x=1", "D/x=1 D/n=1", "d/x=1"],
        ["D/x=1 D/n=1", "d/x=1"],
    );
    assert_eq!(worked_in, ["D~d", "d~D"]);
}

#[test]
fn s10_s16_a_rename_that_was_carried_out_in_part_is_finished() {
    for [base, own, other] in [
        // The new contents are there and the name is not.
        ["A=1", "A=2", "a=2"],
        // The folder has its name, and nothing in it has.
        ["D/X=1 D/y=1", "d/X=1 d/y=1", "d/x=2 d/y=2"],
        ["D/X=1", "d/X=2", "d/x=2"],
    ] {
        let conflicts = case(CASE, [base, own, other], [other; 2]);
        assert!(conflicts.is_empty(), "{base} {own} {other}: {conflicts:?}");
    }
}

#[test]
fn s10_a_name_that_both_have_is_no_rename() {
    let one_more = case(CASE, ["a=1", "a=1", "A=1 a=2"], ["a=1", "A=1 a=2"]);
    assert_eq!(one_more, ["A~a", "a~A"]);
    let one_more = case(CASE, ["A=1", "A=1", "A=2 a=1"], ["A=1", "A=2 a=1"]);
    assert_eq!(one_more, ["A~a", "a~A"]);
}

#[test]
fn s10_nothing_beneath_a_folder_that_collides_is_touched() {
    let folders = case(
        CASE,
        ["", "", "D/x=1 d/x=2 d/y=2 e=1"],
        ["e=1", "D/x=1 d/x=2 d/y=2 e=1"],
    );
    assert_eq!(folders, ["D~d", "d~D"]);
    let beside_a_file = case(CASE, ["", "d=1", "D/x=1"], ["d=1", "D/x=1"]);
    assert_eq!(beside_a_file, ["D~d", "d~D"]);
    let deep = case(CASE, ["", "a/b/C=1", "a/b/c/x=1"], ["a/b/C=1", "a/b/c/x=1"]);
    assert_eq!(deep, ["a/b/C~a/b/c", "a/b/c~a/b/C"]);
}

#[test]
fn s10_what_a_file_system_folded_away_is_no_deletion() {
    // Both were there, then the workspace was moved to where they are one.
    let moved = case(CASE, ["A=1 a=2", "A=2", "A=1 a=2"], ["A=2", "A=1 a=2"]);
    assert_eq!(moved, ["A~a", "a~A"]);
    let same = case(CASE, ["A=1 a=2", "A=1", "A=1 a=2"], ["A=1", "A=1 a=2"]);
    assert_eq!(same, ["a~A"]);
    let folders = case(
        CASE,
        ["D/x=1 d/x=2 d/y=2", "D/x=2 D/y=2", "D/x=1 d/x=2 d/y=2"],
        ["D/x=2 D/y=2", "D/x=1 d/x=2 d/y=2"],
    );
    assert_eq!(
        folders,
        ["d~D"],
        "and what became of `D` is not carried over"
    );
    // One after the other they can be deleted.
    assert!(case(CASE, ["A=1 a=2", "A=1", "A=1"], ["A=1"; 2]).is_empty());
    assert!(case(CASE, ["A=1", "", "A=1"], [""; 2]).is_empty());
}

#[test]
fn s11_forms_of_one_name_are_a_conflict_only_where_they_are_one() {
    let [composed, decomposed] = ["\u{e9}=1", "e\u{301}=2"];
    let two = format!("{composed} {decomposed}");
    let conflicts = case(BOTH, ["", "", &two], ["", &two]);
    assert_eq!(conflicts, ["e\u{301}~\u{e9}", "\u{e9}~e\u{301}"]);
    assert!(case(CASE, ["", "", &two], [&two; 2]).is_empty());
    assert!(case(NONE, ["", "", &two], [&two; 2]).is_empty());
    // Which bytes a name has stays a matter of who wrote it.
    let renamed = case(
        BOTH,
        ["\u{e9}=1", "\u{e9}=1", "e\u{301}=1"],
        ["e\u{301}=1"; 2],
    );
    assert!(renamed.is_empty());
}

#[test]
fn s10_s11_no_other_name_gets_around_what_is_held() {
    let rules = Rules::new(&Lists::default()).unwrap();
    let base = tree("a=1");
    let mode = Mode::TwoWaySafe;
    for (name, comes) in [
        (".g\u{200c}it/hooks/x=1", false),
        (".G\u{200c}IT/config=1", false),
        (".v\u{17f}code/tasks.json=1", false),
        (".v\u{17f}code@a", false),
        ("\u{e9}t\u{e9}/tasks.json=1", true),
    ] {
        let guest = tree(&format!("a=1 {name}"));
        for (host, comes) in [(BOTH, comes), (NONE, true)] {
            let folds = Folds { host, guest: NONE };
            let after = run(Input {
                base: &base,
                host: &base,
                guest: &guest,
                rules: &rules,
                mode,
                folds,
            });
            let files = after.host.iter().filter(|(_, entry)| !entry.is_directory());
            assert_eq!(files.count() == 2, comes, "{name}: {:?}", after.host);
        }
    }
}

/// Gives the names of a tree cases and forms, by their place in it.
fn named(tree: &Tree, seed: u64) -> Tree {
    let name = |path: &RelPath| {
        let names: Vec<String> = path
            .components()
            .enumerate()
            .map(|(depth, name)| {
                let choice = (seed >> ((depth * 8 + usize::from(name[0] - b'a') * 2) % 60)) & 3;
                match (name, choice) {
                    (b"a", 1 | 2) => "A".into(),
                    (b"b", 1) => "a".into(),
                    (b"c", 0) => "\u{e9}".into(),
                    (b"c", 1) => "e\u{301}".into(),
                    (b"c", 2) => "\u{c9}".into(),
                    _ => String::from_utf8(name.to_vec()).unwrap(),
                }
            })
            .collect();
        RelPath::new(names.join("/")).unwrap()
    };
    let mut found = Tree::default();
    for (path, entry) in tree.iter() {
        let path = name(path);
        let is_beneath_a_folder = path.parent().is_none_or(|above| {
            found
                .entry(&above)
                .is_some_and(|entry| entry.is_directory())
        });
        if is_beneath_a_folder && found.entry(&path).is_none() {
            found.set(path, Some(entry.clone()));
        }
    }
    found
}

/// What a file system with this folding can hold of a tree: of names that are one, the first.
fn held_by(folding: Folding, tree: &Tree) -> Tree {
    let mut keys = BTreeSet::new();
    let mut found = Tree::default();
    for (path, entry) in tree.iter() {
        let above = path.parent();
        if above.is_none_or(|above| found.entry(&above).is_some())
            && keys.insert(folding.key_of(path))
        {
            found.set(path.clone(), Some(entry.clone()));
        }
    }
    found
}

fn any_folding() -> impl Strategy<Value = Folding> {
    (any::<bool>(), any::<bool>()).prop_map(|(case, form)| Folding {
        case,
        form,
        rewrites: false,
    })
}

fn any_named() -> impl Strategy<Value = [Tree; 3]> {
    let trees = (any_base(), any_tree(), any_tree());
    (trees, any::<[u64; 3]>(), any::<bool>()).prop_map(|((base, host, guest), seeds, alike)| {
        let seeds = if alike { [seeds[0]; 3] } else { seeds };
        [
            named(&base, seeds[0]),
            named(&host, seeds[1]),
            named(&guest, seeds[2]),
        ]
    })
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn s10_s11_no_plan_puts_two_names_where_they_are_one(
        [base, host, guest] in any_named(),
        (on_host, on_guest) in (any_folding(), any_folding()),
    ) {
        let rules = no_rules();
        let mode = Mode::TwoWaySafe;
        let folds = Folds { host: on_host, guest: on_guest };
        let [host, guest] = [held_by(on_host, &host), held_by(on_guest, &guest)];
        let input = Input { base: &base, host: &host, guest: &guest, rules: &rules, mode, folds };
        let after = run(input);
        prop_assert_eq!(after.host.check(), Ok(()), "a tree again");
        prop_assert_eq!(after.guest.check(), Ok(()), "a tree again");
        prop_assert_eq!(&held_by(on_host, &after.host), &after.host);
        prop_assert_eq!(&held_by(on_guest, &after.guest), &after.guest);

        // I1: what changed since the last agreement survives at its path, on one of the sides, or at another
        // name of it, if it is not the same that both had there.
        let any = on_host.or(on_guest);
        let by_key = |tree: &Tree, path: &RelPath, entry: &Entry| {
            tree.iter().any(|(other, there)| there == entry && any.key_of(other) == any.key_of(path))
        };
        for (path, entry) in host.iter().chain(guest.iter()) {
            if !entry.is_directory() && !by_key(&base, path, entry) {
                let kept = [&after.host, &after.guest].iter().any(|side| by_key(side, path, entry));
                prop_assert!(kept, "{:?} at {} is lost", entry, path);
            }
        }
        // Nothing at a path that collides, or beneath it, is written or removed.
        for conflict in after.plan.conflicts.iter().filter(|conflict| conflict.collision.is_some()) {
            let ops = after.plan.to_host.iter().chain(&after.plan.to_guest);
            for op in ops {
                prop_assert!(op.path != conflict.path && !op.path.is_beneath(&conflict.path), "{}", op.path);
            }
        }
        // I4: a second run plans nothing, and lists the same conflicts but for those beneath a folder that is taken
        // for a mixture now: both names have been agreed on.
        let After { base, host, guest, plan } = after;
        let again = reconcile(Input { base: &base, host: &host, guest: &guest, ..input });
        prop_assert_eq!(&again.to_host, &vec![]);
        prop_assert_eq!(&again.to_guest, &vec![]);
        for conflict in &again.conflicts {
            prop_assert!(plan.conflicts.contains(conflict), "{:?} is new", conflict);
        }
        for conflict in &plan.conflicts {
            let is_said = |one: &crate::Conflict| {
                let mut above = std::iter::successors(conflict.path.parent(), RelPath::parent);
                one == conflict || above.any(|folder| any.key_of(&folder) == any.key_of(&one.path))
            };
            prop_assert!(again.conflicts.iter().any(is_said), "{:?} is not said", conflict);
        }
    }

    #[test]
    fn s10_s11_where_no_two_names_are_one_folding_changes_nothing(
        (base, host, guest) in (any_base(), any_tree(), any_tree()),
        (on_host, on_guest) in (any_folding(), any_folding()),
    ) {
        let rules = no_rules();
        let (mode, folds) = (Mode::TwoWaySafe, Folds { host: on_host, guest: on_guest });
        let input = Input { base: &base, host: &host, guest: &guest, rules: &rules, mode, folds };
        let folds = Folds::default();
        prop_assert_eq!(reconcile(input), reconcile(Input { folds, ..input }));
    }

    #[test]
    fn i6_a_plan_for_what_changed_is_the_plan_for_everything_where_names_fold(
        [base, host, guest] in any_named(),
        [_, host_new, guest_new] in any_named(),
        at in prop::collection::vec("[aAb\u{e9}](/[aAb\u{e9}]){0,2}", 0..3),
        failing in prop::option::of("[aAb](/[aAb]){0,2}"),
        (on_host, on_guest) in (any_folding(), any_folding()),
    ) {
        let rules = no_rules();
        let mode = Mode::TwoWaySafe;
        let folds = Folds { host: on_host, guest: on_guest };
        let [host, guest] = [held_by(on_host, &host), held_by(on_guest, &guest)];
        let failing = failing.map(|path| RelPath::new(path).unwrap());
        let first = Input { base: &base, host: &host, guest: &guest, rules: &rules, mode, folds };
        let (after, mut changed) = carry_out(first, failing.as_ref());
        let paths: Vec<_> = at.iter().map(|path| RelPath::new(path).unwrap()).collect();
        let [host, guest] = [(&after.host, host_new), (&after.guest, guest_new)].map(|(tree, new)| {
            let mixed = paths.iter().fold(tree.clone(), |tree, path| graft(&tree, (&new, path)));
            changed.extend(tree.changes_to(&mixed).map(|(path, _)| path.clone()));
            mixed
        });
        let input = Input { base: &after.base, host: &host, guest: &guest, rules: &rules, mode, folds };
        prop_assert_eq!(reconcile_within(input, &changed), reconcile(input));
    }

    #[test]
    fn i12_the_two_sides_are_treated_alike_where_names_fold(
        [base, host, guest] in any_named(),
        (on_host, on_guest) in (any_folding(), any_folding()),
    ) {
        let rules = no_rules();
        let mode = Mode::TwoWaySafe;
        let folds = Folds { host: on_host, guest: on_guest };
        let one = reconcile(Input { base: &base, host: &host, guest: &guest, rules: &rules, mode, folds });
        let folds = Folds { host: on_guest, guest: on_host };
        let other = reconcile(Input { base: &base, host: &guest, guest: &host, rules: &rules, mode, folds });
        prop_assert_eq!(one.to_host, other.to_guest);
        prop_assert_eq!(one.to_guest, other.to_host);
        prop_assert_eq!(one.agreed, other.agreed);
    }
}
