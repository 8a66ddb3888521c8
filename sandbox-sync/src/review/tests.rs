//! Lists, choices and plans on small trees.

use proptest::prelude::*;

use super::chosen::{Trees, plan};
use super::*;
use crate::Lists;
use crate::reconcile::Op;
use crate::reconcile::tests::{any_base, any_tree, tree};
use crate::report::Side;
use crate::rules::Rules;
use crate::tree::Tree;

fn rules() -> Rules {
    Rules::new(&Lists::default()).unwrap()
}

fn said(changes: &Changes) -> Vec<String> {
    let word = |change: &Change| {
        let kind = match &change.kind {
            Kind::Added => "+".to_owned(),
            Kind::Changed => "~".to_owned(),
            Kind::Mode => "x".to_owned(),
            Kind::Removed => "-".to_owned(),
            Kind::Renamed { from, .. } => format!("{from}>"),
        };
        let marks: String = change
            .marks
            .iter()
            .map(|mark| match mark {
                Mark::RunsUnasked => '!',
                Mark::BuildInput => 'b',
                Mark::Conflict => '?',
            })
            .collect();
        format!("{kind}{}{marks}", change.path)
    };
    changes.changes.iter().map(word).collect()
}

#[track_caller]
fn lists([base, host, guest]: [&str; 3], expected: &[&str]) -> Changes {
    let changes = listed(&tree(base), &tree(host), &tree(guest));
    assert_eq!(said(&changes), expected);
    changes
}

#[test]
fn each_kind_of_change_is_told_apart() {
    let base = "a=1 b=2 c=3 d/e=4 l@a";
    let guest = "a=0 c2=3 d/ n=5 l@b";
    lists(
        [base, base, guest],
        &["~a", "-b", "c>c2", "-d/e", "~l", "+n"],
    );
    let mut executable = tree("a=1");
    let entry = Entry::File {
        digest: Digest::of(b"1"),
        size: 1,
        executable: true,
    };
    executable.set(RelPath::new("a").unwrap(), Some(entry));
    assert_eq!(
        said(&listed(&tree("a=1"), &tree("a=1"), &executable)),
        ["xa"]
    );
}

#[test]
fn s50_every_deletion_is_listed_and_secrets_are_not() {
    lists(
        ["d/a=1 d/b=2", "d/a=1 d/b=2", "d=3"],
        &["~d", "-d/a", "-d/b"],
    );
    lists(["", "", ".env=1 .git/index=2"], &["+.git"]);
}

#[test]
fn what_runs_unasked_and_what_builds_is_marked() {
    let guest = ".git/hooks/x=1 Makefile=1 .github/workflows/ci.yml=1 src=1 .vscode@src";
    let changes = lists(
        ["", "", guest],
        &[
            "+.git",
            "+.git/hooks!",
            "+.git/hooks/x!",
            "+.github",
            "+.github/workflowsb",
            "+.github/workflows/ci.ymlb",
            "+.vscode!",
            "+Makefileb",
            "+src",
        ],
    );
    assert!(!changes.is_empty());
    lists(["a=0", "a=1", "a=2"], &["~a?"]);
    // A marked path is not hidden in a rename.
    lists(
        ["a=1", "a=1", ".git/hooks/a=1"],
        &["+.git", "+.git/hooks!", "+.git/hooks/a!", "-a"],
    );
}

#[test]
fn patterns_choose_as_a_person_means_them() {
    let changes = lists(
        [
            "old/a=1",
            "old/a=1",
            "src/a.rs=2 src/b/c.rs=3 top.rs=4 new/a=1",
        ],
        &[
            "+new",
            "old/a>new/a",
            "-old",
            "+src",
            "+src/a.rs",
            "+src/b",
            "+src/b/c.rs",
            "+top.rs",
        ],
    );
    let chosen = |pattern: &str| said(&changes.only(pattern)).join(" ");
    assert_eq!(chosen("src"), "+src +src/a.rs +src/b +src/b/c.rs");
    assert_eq!(chosen("./src/b/"), "+src/b +src/b/c.rs");
    assert_eq!(chosen("src/*.rs"), "+src/a.rs");
    assert_eq!(chosen("*.rs"), "+src/a.rs +src/b/c.rs +top.rs");
    assert_eq!(chosen("a.rs"), "", "a name alone is a path from the root");
    assert_eq!(chosen("new"), "+new +new/a", "one end of a rename");
    assert_eq!(chosen("old"), "-old/a -old");
    assert_eq!(changes.only("."), changes);
    assert_eq!(chosen("a//b"), "");
    assert!(changes.matching(&["a//b"]).is_err());
}

/// Plans everything that `pattern` chooses and says what comes of the host's tree.
fn applied([base, host, guest]: [&str; 3], pattern: &str) -> (Tree, Vec<String>) {
    let [base, host, guest] = [base, host, guest].map(tree);
    let changes = listed(&base, &host, &guest).only(pattern);
    let rules = rules();
    let (host, guest, rules) = (&host, &guest, &rules);
    let target = Side::Host;
    let planned = plan(
        &changes.changes,
        Trees {
            host,
            guest,
            rules,
            target,
        },
    );
    let refused = planned.refused.iter().map(|one| one.path.to_string());
    (after(host, &planned.ops), refused.collect())
}

fn after(target: &Tree, ops: &[Op]) -> Tree {
    let mut target = target.clone();
    for op in ops {
        assert_eq!(target.entry(&op.path), op.old.as_ref());
        target.set(op.path.clone(), op.new.clone());
    }
    target
}

#[test]
fn what_was_chosen_brings_its_folders_along_and_leaves_the_rest() {
    let done = |text: &str| (tree(text), Vec::<String>::new());
    assert_eq!(applied(["", "", "a/b/c=1 a/d=2"], "a/b/c"), done("a/b/c=1"));
    // A folder goes only with everything in it.
    assert_eq!(applied(["a/b=1 a/c=2", "a/b=1 a/c=2", ""], "a"), done(""));
    assert_eq!(
        applied(["a/b=1 a/c=2", "a/b=1 a/c=2", ""], "a/b"),
        done("a/c=2")
    );
    assert_eq!(applied(["a/b=1", "a/b=1 a/x!", ""], "a"), done("a/x!"));
    // One that is replaced by a file cannot keep anything.
    let types = ["a/b=1", "a/b=1", "a=2"];
    assert_eq!(applied(types, "a"), done("a=2"));
    let (tree_after, refused) = applied(["a/b=1", "a/b=1 a/x=3", "a=2"], "a");
    assert_eq!(
        (tree_after, refused),
        (tree("a/b=1 a/x=3"), vec!["a".into(),])
    );
}

#[test]
fn s49_a_side_that_moved_on_is_refused() {
    let [base, shown, host, guest] = ["a=0 b=0", "a=1 b=1", "a=0 b=9", "a=8 b=1"].map(tree);
    let changes = listed(&base, &base, &shown);
    let rules = rules();
    for target in [Side::Host, Side::Guest] {
        let trees = Trees {
            host: &host,
            guest: &guest,
            rules: &rules,
            target,
        };
        let planned = plan(&changes.changes, trees);
        assert_eq!(planned.ops, []);
        let texts: Vec<_> = planned.refused.iter().map(|one| &one.text[..]).collect();
        assert_eq!(
            texts,
            [
                "it was changed in the guest since it was shown",
                "it was changed on the host since it was shown"
            ]
        );
    }
}

#[test]
fn i8_what_is_masked_is_not_written_whoever_chose_it() {
    let entry = tree("x=1").entry(&RelPath::new("x").unwrap()).cloned();
    let mut changes = listed(&tree(""), &tree(""), &tree("x=1"));
    changes.changes[0].path = RelPath::new(".env").unwrap();
    let mut guest = Tree::default();
    guest.set(RelPath::new(".env").unwrap(), entry);
    let (host, rules, target) = (Tree::default(), rules(), Side::Host);
    let trees = Trees {
        host: &host,
        guest: &guest,
        rules: &rules,
        target,
    };
    let planned = plan(&changes.changes, trees);
    assert_eq!((planned.ops.len(), planned.refused.len()), (0, 1));
}

#[test]
fn names_and_contents_survive_json() {
    let mut changes = listed(&tree("b@x"), &tree("b@x"), &tree("a=1"));
    changes.changes[0].path = RelPath::new(b"\xffname").unwrap();
    let text = serde_json::to_string(&changes).unwrap();
    assert_eq!(serde_json::from_str::<Changes>(&text).unwrap(), changes);
}

proptest! {
    #[test]
    fn applying_all_makes_the_host_what_the_guest_has(base in any_base(), guest in any_tree()) {
        let rules = rules();
        for target in [Side::Host, Side::Guest] {
            let changes = listed(&base, &base, &guest);
            let (host, guest, rules) = (&base, &guest, &rules);
            let planned = plan(&changes.changes, Trees { host, guest, rules, target });
            let (target, source) = match target {
                Side::Host => (host, guest),
                Side::Guest => (guest, host),
            };
            let made = after(target, &planned.ops);
            // What was refused is a folder that was to become something else and holds what cannot go.
            if planned.refused.is_empty() {
                prop_assert_eq!(made.check(), Ok(()));
                for (path, entry) in source.iter().filter(|(_, entry)| !entry.is_untracked()) {
                    let beneath_untracked = made.iter().any(|(other, entry)| {
                        entry.is_untracked() && (path == other || path.is_beneath(other) || other.is_beneath(path))
                    });
                    prop_assert!(beneath_untracked || made.entry(path) == Some(entry), "{}", path);
                }
            }
        }
    }

    #[test]
    fn any_choice_leaves_a_tree(base in any_base(), guest in any_tree(), picks in any::<u64>()) {
        let (rules, target) = (rules(), Side::Host);
        let mut changes = listed(&base, &base, &guest);
        let mut number = 0;
        changes.changes.retain(|_| { number += 1; picks >> (number % 64) & 1 == 1 });
        let (host, guest, rules) = (&base, &guest, &rules);
        let planned = plan(&changes.changes, Trees { host, guest, rules, target });
        if planned.refused.is_empty() {
            prop_assert_eq!(after(host, &planned.ops).check(), Ok(()));
        }
    }
}
