//! The table of small cases, and the properties that hold for all trees.

use proptest::prelude::*;

use super::*;
use crate::rules::Lists;
use crate::tree::{Digest, Reason};

/// A tree from `path=contents` words; `path/` is a folder, `path@target` a link, `path!` untracked, and
/// folders above are implied.
pub(crate) fn tree(words: &str) -> Tree {
    let mut tree = Tree::default();
    for word in words.split_whitespace() {
        let (path, entry) = if let Some((path, text)) = word.split_once('=') {
            (path, file(text))
        } else if let Some((path, target)) = word.split_once('@') {
            let target = target.as_bytes().into();
            (path, Entry::Symlink { target })
        } else if let Some(path) = word.strip_suffix('!') {
            (path, Entry::Untracked(Reason::Special))
        } else {
            (word.trim_end_matches('/'), Entry::Directory)
        };
        let path = RelPath::new(path).unwrap();
        let mut above = path.parent();
        while let Some(folder) = above {
            above = folder.parent();
            tree.set(folder, Some(Entry::Directory));
        }
        tree.set(path, Some(entry));
    }
    tree
}

pub(super) fn file(text: &str) -> Entry {
    Entry::File {
        digest: Digest::of(text.as_bytes()),
        size: text.len() as u64,
        executable: false,
    }
}

pub(crate) fn no_rules() -> Rules {
    let mut lists = Lists::default();
    for list in [
        &mut lists.ignore,
        &mut lists.mask,
        &mut lists.seed,
        &mut lists.held,
    ] {
        list.clear();
    }
    Rules::new(&lists).unwrap()
}

/// What the two sides and the base are after a plan was carried out.
#[derive(Debug)]
pub(crate) struct After {
    pub(crate) plan: Plan,
    pub(crate) base: Tree,
    pub(crate) host: Tree,
    pub(crate) guest: Tree,
}

pub(crate) fn run(input: Input<'_>) -> After {
    let plan = reconcile(input);
    let [mut base, mut host, mut guest] = [input.base, input.host, input.guest].map(Tree::clone);
    for (ops, side) in [(&plan.to_host, &mut host), (&plan.to_guest, &mut guest)] {
        for op in ops {
            assert_eq!(
                side.entry(&op.path),
                op.old.as_ref(),
                "an operation on what is not there"
            );
            side.set(op.path.clone(), op.new.clone());
            base.set(op.path.clone(), op.new.clone());
        }
    }
    for op in &plan.copies {
        assert_eq!(guest.entry(&op.path), None, "a copy on what is there");
        guest.set(op.path.clone(), op.new.clone());
    }
    for (path, entry) in &plan.agreed {
        base.set(path.clone(), entry.clone());
    }
    After {
        plan,
        base,
        host,
        guest,
    }
}

/// Runs a case both ways round and compares with what is expected of host and guest.
#[track_caller]
fn case([base, host, guest]: [&str; 3], [host_after, guest_after]: [&str; 2], conflicts: &[&str]) {
    let rules = no_rules();
    let (base, host, guest) = (tree(base), tree(host), tree(guest));
    let (host_after, guest_after) = (tree(host_after), tree(guest_after));
    for flipped in [false, true] {
        let (a, b) = if flipped {
            (&guest, &host)
        } else {
            (&host, &guest)
        };
        let (a_after, b_after) = if flipped {
            (&guest_after, &host_after)
        } else {
            (&host_after, &guest_after)
        };
        let mode = Mode::TwoWaySafe;
        let after = run(Input {
            base: &base,
            host: a,
            guest: b,
            rules: &rules,
            mode,
            folds: Folds::default(),
        });
        assert_eq!(after.host, *a_after, "host, flipped: {flipped}");
        assert_eq!(after.guest, *b_after, "guest, flipped: {flipped}");
        let listed: Vec<_> = after
            .plan
            .conflicts
            .iter()
            .map(|c| c.path.to_string())
            .collect();
        assert_eq!(listed, conflicts);
    }
}

#[test]
fn s01_both_create_the_same() {
    case(["", "a=1", "a=1"], ["a=1"; 2], &[]);
}

#[test]
fn s02_both_modify_differently() {
    case(["a=0", "a=1", "a=2"], ["a=1", "a=2"], &["a"]);
    case(["", "a=1", "a=2"], ["a=1", "a=2"], &["a"]);
}

#[test]
fn s03_modification_survives_deletion() {
    case(["a=0", "a=1", ""], ["a=1"; 2], &[]);
}

#[test]
fn s04_a_deleted_folder_returns_with_what_is_new_in_it() {
    case(["d/a=0", "", "d/a=0 d/n=1"], ["d/n=1"; 2], &[]);
    case(["d/a=0 d/b=0", "", "d/a=1 d/b=0"], ["d/a=1"; 2], &[]);
    case(
        ["d/e/f/a=0", "", "d/e/f/a=0 d/e/f/n=1"],
        ["d/e/f/n=1"; 2],
        &[],
    );
}

#[test]
fn s05_full_deletion_wins_over_partial() {
    case(["d/a=0 d/b=0", "", "d/a=0"], ["", ""], &[]);
}

#[test]
fn s06_type_changes_are_carried_over() {
    case(["x=0", "x/a=1", "x=0"], ["x/a=1"; 2], &[]);
    case(["x/a=0 x/d/b=0", "x=1", "x/a=0 x/d/b=0"], ["x=1"; 2], &[]);
    case(["x=0", "x@y", "x=0"], ["x@y"; 2], &[]);
    case(["x@y", "x/", "x@y"], ["x/"; 2], &[]);
}

#[test]
fn s07_type_change_against_edit_is_a_conflict() {
    case(["x/a=0", "x=1", "x/a=2"], ["x=1", "x/a=2"], &["x"]);
    case(
        ["x/a=0 x/b=0", "x=1", "x/a=0 x/b=0 x/c/n=1"],
        ["x=1", "x/a=0 x/b=0 x/c/n=1"],
        &["x"],
    );
    case(["x=0", "x/a=1", "x=2"], ["x/a=1", "x=2"], &["x"]);
}

#[test]
fn s08_a_rename_and_an_edit_of_the_old_name() {
    case(["a=0", "b=0", "a=1"], ["a=1 b=0"; 2], &[]);
}

#[test]
fn s09_a_swap() {
    case(["a=1 b=2", "a=2 b=1", "a=1 b=2"], ["a=2 b=1"; 2], &[]);
}

#[test]
fn s18_without_history_the_sides_are_united() {
    case(
        ["", "a=1 b=1 d/x=1", "a=2 c=1 d/y=1"],
        ["a=1 b=1 c=1 d/x=1 d/y=1", "a=2 b=1 c=1 d/x=1 d/y=1"],
        &["a"],
    );
}

#[test]
fn s28_a_folder_stays_for_what_is_untracked_in_it() {
    case(["d/a=0", "", "d/a=0 d/i!"], ["", "d/i!"], &[]);
    case(
        ["d/a=0", "d=1", "d/a=0 d/i!"],
        ["d=1", "d/a=0 d/i!"],
        &["d"],
    );
}

#[test]
fn s29_what_became_untracked_is_no_deletion() {
    case(["a=0", "a=0", "a!"], ["a=0", "a!"], &[]);
    case(["d/a=0", "d/a=0", "d!"], ["d/a=0", "d!"], &[]);
}

#[test]
fn s41_a_held_change_stays_in_the_guest() {
    let rules = Rules::new(&Lists::default()).unwrap();
    let mode = Mode::TwoWaySafe;
    let base = tree(".git/config=0 .git/HEAD=0 .vscode/tasks.json=0 src=0");
    for (guest, held, host_after) in [
        (
            ".git/config=1 .git/HEAD=1 .vscode/tasks.json=0 src=0",
            ".git/config",
            ".git/config=0 .git/HEAD=1 .vscode/tasks.json=0 src=0",
        ),
        // A link in place of the folder, with a task list at its target.
        (
            ".git/config=0 .git/HEAD=0 .vscode@evil evil/tasks.json=1 src=0",
            ".vscode",
            ".git/config=0 .git/HEAD=0 .vscode/tasks.json=0 evil/tasks.json=1 src=0",
        ),
        // Removing it is a change too, and its folder stays for it.
        (
            ".git/HEAD=0 src=0",
            ".git/config .vscode/tasks.json",
            ".git/config=0 .git/HEAD=0 .vscode/tasks.json=0 src=0",
        ),
        (
            ".git/config=0 .git/HEAD=0 .vscode/tasks.json=0 src=0 new/.git/hooks/x=1",
            "new/.git/hooks new/.git/hooks/x",
            ".git/config=0 .git/HEAD=0 .vscode/tasks.json=0 src=0 new/.git/",
        ),
    ] {
        let guest = tree(guest);
        let after = run(Input {
            base: &base,
            host: &base,
            guest: &guest,
            rules: &rules,
            mode,
            folds: Folds::default(),
        });
        let listed: Vec<_> = after
            .plan
            .held
            .iter()
            .map(|held| held.path.to_string())
            .collect();
        assert_eq!(listed.join(" "), held);
        assert_eq!(after.host, tree(host_after));
        assert_eq!(after.guest, guest, "the guest keeps what it has");
        let again = reconcile(Input {
            base: &after.base,
            host: &after.host,
            guest: &after.guest,
            rules: &rules,
            mode,
            folds: Folds::default(),
        });
        assert_eq!((again.to_host, again.to_guest), (vec![], vec![]));
    }
}

#[test]
fn held_files_of_the_host_flow_to_the_guest() {
    let rules = Rules::new(&Lists::default()).unwrap();
    let (base, host) = (tree(".git/config=0"), tree(".git/config=1"));
    let mode = Mode::TwoWaySafe;
    let after = run(Input {
        base: &base,
        host: &host,
        guest: &base,
        rules: &rules,
        mode,
        folds: Folds::default(),
    });
    assert_eq!(after.guest, host);
}

#[test]
fn s42_the_index_is_seeded_once() {
    let rules = Rules::new(&Lists::default()).unwrap();
    let mode = Mode::TwoWaySafe;
    let (empty, host) = (Tree::default(), tree(".git/index=0"));
    let first = run(Input {
        base: &empty,
        host: &host,
        guest: &empty,
        rules: &rules,
        mode,
        folds: Folds::default(),
    });
    assert_eq!(first.guest, host);
    for (host, guest) in [
        (".git/index=1", ".git/index=0"),
        (".git/index=0", ".git/index=1"),
        (".git/index=0", ".git/"),
    ] {
        let (host, guest) = (tree(host), tree(guest));
        let plan = reconcile(Input {
            base: &first.base,
            host: &host,
            guest: &guest,
            rules: &rules,
            mode,
            folds: Folds::default(),
        });
        assert_eq!(plan, Plan::default(), "{host:?} {guest:?}");
    }
}

#[test]
fn nothing_comes_back_from_a_read_only_workspace() {
    let rules = no_rules();
    let mode = Mode::ReadOnly;
    let (base, host, guest) = (
        tree("a=0 b=0 c=0"),
        tree("a=1 b=0 c=1"),
        tree("a=0 b=2 c=2 d=2"),
    );
    let after = run(Input {
        base: &base,
        host: &host,
        guest: &guest,
        rules: &rules,
        mode,
        folds: Folds::default(),
    });
    assert_eq!(after.host, host);
    assert_eq!(after.guest, tree("a=1 b=2 c=2 d=2"));
    assert!(
        after
            .plan
            .held
            .iter()
            .all(|held| held.reason == HeldReason::ReadOnly)
    );
}

/// The trees that come of one run in a mode, with `out` as an output folder.
#[track_caller]
fn in_mode(mode: Mode, [base, host, guest]: [&str; 3]) -> After {
    let rules = Rules::new(&Lists::default().with_output("/out")).unwrap();
    let (base, host, guest) = (tree(base), tree(host), tree(guest));
    let (base, host, guest) = (&base, &host, &guest);
    let rules = &rules;
    run(Input {
        base,
        host,
        guest,
        rules,
        mode,
        folds: Folds::default(),
    })
}

#[test]
fn in_review_the_guests_changes_wait_and_the_hosts_arrive() {
    let after = in_mode(
        Mode::Review,
        ["a=0 b=0 c=0 d/x=0", "a=0 b=1 c=1 d/x=0", "a=2 b=0 c=2 n=2"],
    );
    assert_eq!(after.host, tree("a=0 b=1 c=1 d/x=0"));
    assert_eq!(after.guest, tree("a=2 b=1 c=2 n=2"));
    let held: Vec<_> = after
        .plan
        .held
        .iter()
        .map(|held| (held.path.to_string(), held.reason))
        .collect();
    let waits = |path: &str| (path.to_owned(), HeldReason::Review);
    assert_eq!(held, [waits("a"), waits("d"), waits("d/x"), waits("n")]);
    assert_eq!(after.plan.conflicts.len(), 1, "c, which both changed");
    // What was deleted in the guest and changed on the host returns, as in every mode.
    let after = in_mode(Mode::Review, ["d/x=0 d/y=0", "d/x=1 d/y=0", ""]);
    assert_eq!(after.guest, tree("d/x=1"));
}

#[test]
fn the_host_wins_and_the_guests_version_is_kept_beside_it() {
    let copy = format!("a.overruled-{:.8}", Digest::of(b"2").to_string());
    let after = in_mode(Mode::TwoWayHostWins, ["a=0", "a=1", "a=2"]);
    assert_eq!(after.host, tree("a=1"));
    assert_eq!(after.guest, tree(&format!("a=1 {copy}=2")));
    assert_eq!(
        (after.plan.conflicts.len(), after.plan.overruled.len()),
        (0, 1)
    );
    // Already there, from an earlier time.
    let there = format!("a=2 {copy}=2");
    let after = in_mode(Mode::TwoWayHostWins, ["a=0", "a=1", &there]);
    assert_eq!(after.guest, tree(&format!("a=1 {copy}=2")));
    // Where the guest's version has no place to go, nothing is overruled.
    for guest in [format!("a=2 {copy}=3"), format!("a=2 {copy}/x=3")] {
        let after = in_mode(Mode::TwoWayHostWins, ["a=0", "a=1", &guest]);
        assert_eq!(after.guest, tree(&guest));
        assert_eq!(after.plan.conflicts.len(), 1);
    }
    for [base, host, guest] in [
        [".git/refs/m=0", ".git/refs/m=1", ".git/refs/m=2"],
        ["x=0", "x/a=1", "x=2"],
    ] {
        let after = in_mode(Mode::TwoWayHostWins, [base, host, guest]);
        assert_eq!((after.host, after.guest), (tree(host), tree(guest)));
    }
    // A change beats a deletion here, too.
    let after = in_mode(Mode::TwoWayHostWins, ["a=0", "", "a=1"]);
    assert_eq!(after.host, tree("a=1"));
}

#[test]
fn an_output_folder_flows_out_and_never_in() {
    for mode in [Mode::TwoWaySafe, Mode::TwoWayHostWins, Mode::ReadOnly] {
        let host = "a=1 out/mine=1 out/both=1 out/old=0";
        let after = in_mode(
            mode,
            [
                "out/old=0 out/gone=0",
                host,
                "out/new=2 out/both=2 out/old=2",
            ],
        );
        assert_eq!(
            after.host,
            tree("a=1 out/mine=1 out/both=1 out/old=2 out/new=2"),
            "{mode}"
        );
        assert_eq!(
            after.guest,
            tree("a=1 out/new=2 out/both=2 out/old=2"),
            "{mode}"
        );
        let listed: Vec<_> = after.plan.conflicts.iter().map(|c| &c.path).collect();
        assert_eq!(listed, [&RelPath::new("out/both").unwrap()], "{mode}");
    }
    // What the host cleared away stays away until the guest writes it anew.
    let after = in_mode(Mode::TwoWaySafe, ["out/a=0", "", "out/a=0"]);
    assert_eq!((after.host, after.guest), (tree(""), tree("out/a=0")));
    let after = in_mode(Mode::TwoWaySafe, ["out/a=0", "", "out/a=1"]);
    assert_eq!(after.host, tree("out/a=1"));
    let after = in_mode(Mode::Review, ["", "", "out/a=1"]);
    assert_eq!(after.host, tree(""), "in review nothing comes by itself");
}

#[test]
fn i6_a_folder_that_stays_for_what_it_holds_is_looked_at_whole() {
    let [base, host, guest] = ["c/ c/b/", "", "c/ c/a! c/b/"].map(tree);
    let rules = no_rules();
    let mode = Mode::TwoWaySafe;
    let first = Input {
        base: &base,
        host: &host,
        guest: &guest,
        rules: &rules,
        mode,
        folds: Folds::default(),
    };
    let (after, changed) = carry_out(first, None);
    let input = Input {
        base: &after.base,
        host: &after.host,
        guest: &after.guest,
        rules: &rules,
        mode,
        folds: Folds::default(),
    };
    assert_eq!(reconcile_within(input, &changed), reconcile(input));
}

/// Trees of up to three levels over few names and few contents, so that the sides meet.
pub(crate) fn any_tree() -> impl Strategy<Value = Tree> {
    let leaf = prop_oneof![
        6 => (0..3u8).prop_map(|text| Some(file(&text.to_string()))),
        1 => Just(Some(Entry::Symlink { target: b"a"[..].into() })),
        1 => Just(Some(Entry::Untracked(Reason::Ignored))),
        3 => Just(None),
    ];
    let level = |entries: BoxedStrategy<Node>| prop::collection::btree_map("[abc]", entries, 0..4);
    let leaf = leaf.prop_map(Node::Leaf).boxed();
    let node = |below: BoxedStrategy<Node>| {
        prop_oneof![leaf.clone(), level(below).prop_map(Node::Folder)].boxed()
    };
    let depth3 = node(leaf.clone());
    let depth2 = node(depth3);
    level(depth2).prop_map(|root| {
        let mut tree = Tree::default();
        Node::Folder(root).plant(None, &mut tree);
        tree
    })
}

#[derive(Debug, Clone)]
enum Node {
    Leaf(Option<Entry>),
    Folder(std::collections::BTreeMap<String, Node>),
}

impl Node {
    fn plant(self, path: Option<RelPath>, tree: &mut Tree) {
        match (self, path) {
            (Self::Leaf(entry), Some(path)) => tree.set(path, entry),
            (Self::Leaf(_), None) => {}
            (Self::Folder(children), path) => {
                for (name, child) in children {
                    let path = RelPath::join(path.as_ref(), name.as_bytes()).unwrap();
                    child.plant(Some(path), tree);
                }
                if let Some(path) = path {
                    tree.set(path, Some(Entry::Directory));
                }
            }
        }
    }
}

/// What was agreed holds no untracked entries.
pub(crate) fn any_base() -> impl Strategy<Value = Tree> {
    any_tree().prop_map(|tree| {
        let tracked = tree.iter().filter(|(_, entry)| !entry.is_untracked());
        tracked
            .map(|(path, entry)| (path.clone(), entry.clone()))
            .collect()
    })
}

fn any_mode() -> impl Strategy<Value = Mode> {
    prop_oneof![
        Just(Mode::TwoWaySafe),
        Just(Mode::TwoWayHostWins),
        Just(Mode::Review),
        Just(Mode::ReadOnly),
    ]
}

/// Returns `tree` with what another one has at a path and beneath it, where that makes a tree.
pub(super) fn graft(tree: &Tree, (other, path): (&Tree, &RelPath)) -> Tree {
    let parent = path.parent();
    if parent.is_some_and(|parent| tree.entry(&parent) != Some(&Entry::Directory)) {
        return tree.clone();
    }
    let stay = |other: &RelPath| other != path && !other.is_beneath(path);
    let kept = tree.iter().filter(|(path, _)| stay(path));
    kept.chain(other.whole(path))
        .map(|(path, entry)| (path.clone(), entry.clone()))
        .collect()
}

/// Carries out a plan but for what has to do with one path, and returns what is left to look at.
pub(super) fn carry_out(input: Input<'_>, failing: Option<&RelPath>) -> (After, BTreeSet<RelPath>) {
    let plan = reconcile(input);
    let mut left: BTreeSet<RelPath> = plan.conflicts.iter().map(|one| one.path.clone()).collect();
    left.extend(plan.held.iter().map(|one| one.path.clone()));
    let fails = |path: &RelPath| {
        failing.is_some_and(|failing| {
            path == failing || path.is_beneath(failing) || failing.is_beneath(path)
        })
    };
    let [mut base, mut host, mut guest] = [input.base, input.host, input.guest].map(Tree::clone);
    for (path, entry) in &plan.agreed {
        base.set(path.clone(), entry.clone());
    }
    for (ops, side) in [(&plan.to_host, &mut host), (&plan.to_guest, &mut guest)] {
        for op in ops {
            // What was tried is looked at again, whatever came of it.
            left.insert(op.path.clone());
            if !fails(&op.path) {
                side.set(op.path.clone(), op.new.clone());
                base.set(op.path.clone(), op.new.clone());
            }
        }
    }
    let after = After {
        base,
        host,
        guest,
        plan,
    };
    (after, left)
}

pub(super) fn cases() -> ProptestConfig {
    let cases = std::env::var("SANDBOX_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok());
    ProptestConfig::with_cases(cases.unwrap_or(256))
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn plans_keep_the_invariants(base in any_base(), host in any_tree(), guest in any_tree()) {
        let rules = no_rules();
        let mode = Mode::TwoWaySafe;
        let after = run(Input { base: &base, host: &host, guest: &guest, rules: &rules, mode, folds: Folds::default() });

        prop_assert_eq!(after.host.check(), Ok(()), "a tree again");
        prop_assert_eq!(after.guest.check(), Ok(()), "a tree again");

        // I1: what changed since the last agreement survives at its path, on one of the sides.
        for (path, entry) in host.iter().chain(guest.iter()) {
            if !entry.is_directory() && base.entry(path) != Some(entry) {
                let kept = [&after.host, &after.guest].iter().any(|side| side.entry(path) == Some(entry));
                prop_assert!(kept, "{:?} at {} is lost", entry, path);
            }
        }

        // I4: a second run plans nothing, and lists the same conflicts.
        let input = Input { base: &after.base, host: &after.host, guest: &after.guest, rules: &rules, mode, folds: Folds::default() };
        let again = reconcile(input);
        prop_assert_eq!(&again.to_host, &vec![]);
        prop_assert_eq!(&again.to_guest, &vec![]);
        prop_assert_eq!(&again.agreed, &vec![]);
        prop_assert_eq!(&again.conflicts, &after.plan.conflicts);

        // I5: the sides agree, conflicts and what is untracked (with the folders it needs) aside.
        for (path, [_, host, guest]) in join([&after.base, &after.host, &after.guest].map(Tree::iter)) {
            let excused = |other: &RelPath| other == path || path.is_beneath(other) || other.is_beneath(path);
            let conflict = after.plan.conflicts.iter().any(|conflict| excused(&conflict.path));
            let untracked = [&after.host, &after.guest].iter().any(|tree| {
                tree.iter().any(|(other, entry)| entry.is_untracked() && excused(other))
            });
            prop_assert!(host == guest || conflict || untracked, "{} differs", path);
        }

        // I8: untracked things are not touched.
        for (before, after) in [(&host, &after.host), (&guest, &after.guest)] {
            for (path, entry) in before.iter().filter(|(_, entry)| entry.is_untracked()) {
                prop_assert_eq!(after.entry(path), Some(entry));
            }
        }
    }

    #[test]
    fn each_mode_keeps_its_promise(base in any_base(), host in any_tree(), guest in any_tree(), mode in any_mode()) {
        let rules = Rules::new(&Lists { output: vec!["/a/b".into()], ..Lists::default() }).unwrap();
        let after = run(Input { base: &base, host: &host, guest: &guest, rules: &rules, mode, folds: Folds::default() });
        prop_assert_eq!(after.host.check(), Ok(()), "a tree again");
        prop_assert_eq!(after.guest.check(), Ok(()), "a tree again");
        let output = RelPath::new("a/b").unwrap();
        let is_output = |path: &RelPath| *path == output || path.is_beneath(&output);
        for op in &after.plan.to_host {
            let leads = output.is_beneath(&op.path) && op.new.as_ref().is_none_or(Entry::is_directory);
            prop_assert!(mode.is_two_way() || mode == Mode::ReadOnly && (is_output(&op.path) || leads),
                "{} came to the host in {}", op.path, mode);
        }
        for op in &after.plan.to_guest {
            prop_assert!(!is_output(&op.path), "{} entered the guest", op.path);
        }
        // I4: it comes to rest, after one more run that takes the copies to the host.
        let again = run(Input { base: &after.base, host: &after.host, guest: &after.guest, rules: &rules, mode, folds: Folds::default() });
        prop_assert!(mode == Mode::TwoWayHostWins || again.plan.to_host.is_empty());
        let rest = run(Input { base: &again.base, host: &again.host, guest: &again.guest, rules: &rules, mode, folds: Folds::default() });
        prop_assert!(rest.plan.to_host.is_empty() && rest.plan.to_guest.is_empty(), "{:?}", rest.plan);
        // I1, in every mode: what changed survives on one of the sides, at its path or at the copy's.
        for (path, entry) in host.iter().chain(guest.iter()) {
            if !entry.is_directory() && base.entry(path) != Some(entry) {
                let copy = copy_path(&rest.guest, path, entry);
                let kept = [&rest.host, &rest.guest].iter().any(|side| {
                    side.entry(path) == Some(entry)
                        || copy.as_ref().is_some_and(|copy| side.entry(copy) == Some(entry))
                });
                prop_assert!(kept, "{:?} at {} is lost in {}", entry, path, mode);
            }
        }
    }

    #[test]
    fn i6_a_plan_for_what_changed_is_the_plan_for_everything(
        (base, host, guest) in (any_base(), any_tree(), any_tree()),
        (host_new, guest_new) in (any_tree(), any_tree()),
        at in prop::collection::vec("[abc](/[abc]){0,2}", 0..3),
        failing in prop::option::of("[abc](/[abc]){0,2}"),
        mode in prop_oneof![Just(Mode::TwoWaySafe), Just(Mode::Review), Just(Mode::ReadOnly)],
    ) {
        let lists = Lists { held: vec!["a/b".into(), "c".into()], ..Lists::default() };
        let rules = Rules::new(&lists).unwrap();
        let failing = failing.map(|path| RelPath::new(path).unwrap());
        let first = Input { base: &base, host: &host, guest: &guest, rules: &rules, mode, folds: Folds::default() };
        let (after, mut changed) = carry_out(first, failing.as_ref());
        let paths: Vec<_> = at.iter().map(|path| RelPath::new(path).unwrap()).collect();
        let [host, guest] = [(&after.host, host_new), (&after.guest, guest_new)].map(|(tree, new)| {
            let mixed = paths.iter().fold(tree.clone(), |tree, path| graft(&tree, (&new, path)));
            changed.extend(tree.changes_to(&mixed).map(|(path, _)| path.clone()));
            mixed
        });
        let input = Input { base: &after.base, host: &host, guest: &guest, rules: &rules, mode, folds: Folds::default() };
        prop_assert_eq!(reconcile_within(input, &changed), reconcile(input));
    }

    #[test]
    fn i12_the_two_sides_are_treated_alike(base in any_base(), host in any_tree(), guest in any_tree()) {
        let rules = no_rules();
        let mode = Mode::TwoWaySafe;
        let one = reconcile(Input { base: &base, host: &host, guest: &guest, rules: &rules, mode, folds: Folds::default() });
        let other = reconcile(Input { base: &base, host: &guest, guest: &host, rules: &rules, mode, folds: Folds::default() });
        prop_assert_eq!(one.to_host, other.to_guest);
        prop_assert_eq!(one.to_guest, other.to_host);
        prop_assert_eq!(one.agreed, other.agreed);
    }

    #[test]
    fn i14_nothing_held_ever_reaches_the_host(base in any_base(), host in any_tree(), guest in any_tree()) {
        let lists = Lists { held: vec!["a/b".into(), "c".into()], ..Lists::default() };
        let rules = Rules::new(&lists).unwrap();
        let mode = Mode::TwoWaySafe;
        let after = run(Input { base: &base, host: &host, guest: &guest, rules: &rules, mode, folds: Folds::default() });
        prop_assert_eq!(after.host.check(), Ok(()));
        prop_assert_eq!(after.guest.check(), Ok(()));
        let mut flows = rules.walk();
        for op in &after.plan.to_host {
            prop_assert_ne!(flows.flow(&op.path), Flow::Held, "{}", op.path);
            let leads = op.new.as_ref().is_some_and(|entry| rules.holds_type(&op.path, entry));
            prop_assert!(!leads, "{}", op.path);
        }
        let input = Input { base: &after.base, host: &after.host, guest: &after.guest, rules: &rules, mode, folds: Folds::default() };
        let again = reconcile(input);
        prop_assert_eq!((again.to_host, again.to_guest), (vec![], vec![]));
    }
}
