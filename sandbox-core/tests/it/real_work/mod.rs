//! Real trees, worked on by real tools inside, while somebody edits the same trees outside.
//!
//! Three workspaces in one microVM: a repository that git branches, rebases and collects, a C program that
//! make builds, a Python project that gets an environment of its own. `hands.py` works in each of them on both
//! sides at the same time. In the end the two sides are the same but for what is listed as a conflict, every
//! note is one that somebody wrote, as a whole, and nothing that was saved is gone.
//!
//! `SANDBOX_SLOW` takes larger trees and many more steps; `SANDBOX_SEED` repeats a run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use sandbox_core::{Sandbox, SyncReport, Workspace};
use serde::Deserialize;

use crate::place::{Place, promptly, sh};

mod trees;

use trees::{git, run};

const HANDS: &str = include_str!("hands.py");
const LOOK: &str = include_str!("look.py");

/// How long the tools may take under emulation.
const PATIENCE: Duration = Duration::from_secs(2400);

/// How large everything is.
struct Scale {
    commits: usize,
    topics: usize,
    steps: usize,
    c: &'static str,
    c_work: &'static str,
    python: &'static str,
    python_work: &'static str,
}

impl Scale {
    fn of_this_run() -> Self {
        let slow = std::env::var_os("SANDBOX_SLOW").is_some();
        Self {
            commits: if slow { 800 } else { 300 },
            topics: if slow { 4 } else { 1 },
            steps: if slow { 300 } else { 40 },
            c: if slow { "busybox" } else { "figlet" },
            c_work: match slow {
                true => {
                    "make -s allnoconfig >/dev/null && make -s -j2 libbb >/dev/null && make -s clean >/dev/null && \
                     sed -i '$a /* sandbox-hands sed 1 */' libbb/ask_confirmation.c && \
                     make -s -j2 busybox >/dev/null && test -x busybox"
                }
                false => {
                    "sed -i '$a /* sandbox-hands sed 1 */' chkfont.c && make -s chkfont && ./chkfont fonts/banner.flf"
                }
            },
            python: if slow { "python-django" } else { "jinja2" },
            python_work: match slow {
                true => {
                    "python3 -m venv .venv && .venv/bin/pip install -q --no-index --no-deps \
                     --no-build-isolation --no-use-pep517 . && .venv/bin/python -c 'import django' && \
                     python3 -m compileall -q django/core"
                }
                false => {
                    "python3 -m venv --without-pip .venv && .venv/bin/python -m compileall -q src tests"
                }
            },
        }
    }

    /// What git is told to do inside.
    fn git_work(&self) -> String {
        format!(
            r#"for round in $(seq 1 {}); do
                 git checkout -q -b "topic-$round" "main~$round"
                 for commit in 1 2; do
                   sed -i "\$a topic $round $commit" "loose/$((round % 20))"
                   mkdir -p topics && echo "$round $commit" > "topics/$round-$commit"
                   git add topics loose && git commit -q -m "topic $round $commit"
                 done
                 git rebase -q -X theirs main
                 git checkout -q earlier-50 && git checkout -q main
                 git merge -q --no-ff -m "merge $round" "topic-$round"
                 test $((round % 3)) -ne 1 || git gc --quiet
               done
               git branch -q -d topic-1 && git tag done"#,
            self.topics
        )
    }
}

/// What somebody says who has worked on a tree.
#[derive(Debug, Deserialize)]
struct Worked {
    number: u64,
    there: BTreeMap<String, String>,
}

/// What one path holds, as `look.py` says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Seen {
    path: String,
    kind: String,
    digest: String,
    #[serde(default)]
    plain: String,
    #[serde(default)]
    note: String,
}

type Look = BTreeMap<String, Seen>;

/// One workspace and who works in it.
struct Tree {
    root: PathBuf,
    /// What both sides edit of what was there.
    sources: Vec<String>,
    before: Look,
    work: String,
}

#[tokio::test(flavor = "multi_thread")]
async fn trees_that_both_sides_work_on_are_the_same_in_the_end() {
    let (place, scale) = (Place::new(), Scale::of_this_run());
    let seed = seed();
    println!("SANDBOX_SEED={seed}");
    let trees = trees(place.folder.path(), &scale);
    let mut builder = place.microvm();
    for tree in &trees {
        builder = builder.workspace(Workspace::sync(&tree.root));
    }
    let sandbox = builder.create().await.unwrap();
    sandbox.write("/tmp/hands.py", HANDS).await.unwrap();
    sandbox.write("/tmp/look.py", LOOK).await.unwrap();

    let outside = trees
        .each_ref()
        .map(|tree| hands(tree, (seed, scale.steps)));
    let (repository, done) = (trees[0].root.clone(), Arc::new(AtomicBool::new(false)));
    let beside = tokio::task::spawn_blocking({
        let done = done.clone();
        move || commit_beside(&repository, &done)
    });
    let [one, two, three] = trees
        .each_ref()
        .map(|tree| work_inside(&sandbox, tree, (seed, scale.steps)));
    let inside: [Worked; 3] = tokio::join!(one, two, three).into();
    done.store(true, Ordering::Relaxed);
    let commits = beside.await.unwrap();
    let outside = outside.map(ended);

    settled(&sandbox).await;
    both_change_one_file(&sandbox, &trees[0].root).await;
    let reports = settled(&sandbox).await;
    for (index, tree) in trees.iter().enumerate() {
        let worked = [&outside[index], &inside[index]];
        the_two_are_the_same(&sandbox, (tree, &reports[index]), worked).await;
    }
    the_repository_is_whole(&sandbox, &trees[0].root, (&scale, commits)).await;
    promptly(sandbox.remove()).await.unwrap();
}

/// Returns where the dice begin: elsewhere each time, unless that is said.
fn seed() -> u64 {
    let said = std::env::var("SANDBOX_SEED").ok();
    said.map_or_else(
        || {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            u64::from(now.unwrap().subsec_nanos())
        },
        |seed| seed.parse().unwrap(),
    )
}

fn trees(folder: &Path, scale: &Scale) -> [Tree; 3] {
    let roots = ["repository", "c", "python"].map(|name| folder.join(name));
    trees::repository(&roots[0], scale.commits);
    trees::source(scale.c, &roots[1]);
    trees::source(scale.python, &roots[2]);
    let works = [
        scale.git_work(),
        scale.c_work.to_owned(),
        scale.python_work.to_owned(),
    ];
    let sources = [("", 0), (".c", 12), (".py", 12)];
    let mut all = roots.into_iter().zip(works).zip(sources);
    std::array::from_fn(|_| {
        let ((root, work), (ending, most)) = all.next().unwrap();
        let root = root.canonicalize().unwrap();
        std::fs::create_dir_all(root.join("notes/both")).unwrap();
        for number in 0..6 {
            let note = "by host 0 1\nhost 0 0\nend host 0\n";
            std::fs::write(root.join(format!("notes/both/{number}")), note).unwrap();
        }
        let before = look(&root);
        let files = before.values().filter(|seen| seen.kind == "file");
        let sources = files
            .map(|seen| seen.path.clone())
            .filter(|path| most > 0 && path.ends_with(ending) && !path.starts_with("notes"));
        Tree {
            sources: sources.take(most).collect(),
            root,
            before,
            work,
        }
    })
}

/// Begins to work on a tree outside.
fn hands(tree: &Tree, (seed, steps): (u64, usize)) -> Child {
    let mut command = Command::new("python3");
    command.args(["-c", HANDS, "host", &seed.to_string()]);
    command.args([&steps.to_string(), "120"]).arg(&tree.root);
    command.args(&tree.sources).stdout(Stdio::piped());
    command.spawn().unwrap()
}

fn ended(child: Child) -> Worked {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Works on a tree inside, with tools and by hand at once.
async fn work_inside(sandbox: &Sandbox, tree: &Tree, (seed, steps): (u64, usize)) -> Worked {
    let mut hands = sandbox.command("python3");
    hands.args(["/tmp/hands.py", "guest", &seed.to_string()]);
    hands.args([&steps.to_string(), "60"]).arg(&tree.root);
    hands.args(&tree.sources);
    let mut tools = sandbox.command("bash");
    tools
        .args(["-euc", &tree.work])
        .current_dir(&tree.root)
        .env("GIT_EDITOR", "true");
    let both = async { tokio::join!(hands.output(), tools.output()) };
    let (hands, tools) = tokio::time::timeout(PATIENCE, both)
        .await
        .expect("it hangs");
    let (hands, tools) = (hands.unwrap(), tools.unwrap());
    assert!(tools.status.success(), "{}: {tools:?}", tree.work);
    assert!(hands.status.success(), "{hands:?}");
    serde_json::from_slice(&hands.stdout).unwrap()
}

/// Makes commits on a branch of the host's until it is done, without the working copy, and looks whether
/// everything that git needs is always there. Returns how many there are.
fn commit_beside(repository: &Path, done: &AtomicBool) -> usize {
    let mut commits = 0;
    let mut last = git(repository, &["rev-parse", "main"]);
    while !done.load(Ordering::Relaxed) {
        let message = format!("host {commits}");
        let tree = git(repository, &["rev-parse", "main^{tree}"]);
        let commit = ["commit-tree", "-p", &last, "-m", &message, &tree];
        let next = git(repository, &commit);
        git(repository, &["update-ref", "refs/heads/host", &next]);
        git(repository, &["log", "--oneline", "-20", "--stat", "main"]);
        (last, commits) = (next, commits + 1);
        std::thread::sleep(Duration::from_millis(150));
    }
    commits
}

/// Has both sides save one file while nothing flows: that has to be listed, and each keeps its own.
async fn both_change_one_file(sandbox: &Sandbox, root: &Path) {
    promptly(sandbox.set_sync_paused(true)).await.unwrap();
    let path = "notes/both/0";
    std::fs::write(root.join(path), "by host 0 0\nend host 0\n").unwrap();
    let inside = root.join(path).display().to_string();
    sh(
        sandbox,
        &format!("printf 'by guest 0 0\nend guest 0\n' > {inside}"),
    )
    .await;
    promptly(sandbox.set_sync_paused(false)).await.unwrap();
    let reports = settled(sandbox).await;
    assert!(
        reports[0].conflicts.contains(&path.to_owned()),
        "{reports:?}"
    );
    assert_eq!(
        std::fs::read(root.join(path)).unwrap(),
        b"by host 0 0\nend host 0\n"
    );
    assert_eq!(
        sh(sandbox, &format!("head -1 {inside}")).await,
        "by guest 0 0"
    );
}

/// Waits until there is nothing more to do, and returns what is left alone then.
async fn settled(sandbox: &Sandbox) -> Vec<SyncReport> {
    for _ in 0..20 {
        let reports = promptly(sandbox.sync()).await.unwrap();
        let is_quiet = |one: &SyncReport| {
            one.to_host.is_empty() && one.to_guest.is_empty() && one.problems.is_empty()
        };
        if reports.iter().all(is_quiet) {
            return reports;
        }
    }
    panic!("{:?}", promptly(sandbox.sync()).await.unwrap());
}

async fn the_two_are_the_same(
    sandbox: &Sandbox,
    (tree, report): (&Tree, &SyncReport),
    worked: [&Worked; 2],
) {
    let looks = [look(&tree.root), look_inside(sandbox, &tree.root).await];
    // A collection inside writes the log anew of a ref that somebody moves outside.
    let both_edit = |path: &String| {
        path.starts_with("notes/both/")
            || path == ".git/logs/refs/heads/host"
            || tree.sources.contains(path)
    };
    assert!(report.conflicts.iter().all(both_edit), "{report:?}");
    let conflicts: BTreeSet<&String> = report.conflicts.iter().collect();
    let held: BTreeSet<&String> = report.held.iter().collect();
    let paths: BTreeSet<&String> = looks.iter().flat_map(BTreeMap::keys).collect();
    for path in paths {
        let [host, guest] = looks.each_ref().map(|look| look.get(path));
        match conflicts.contains(path) {
            true => assert_ne!(host, guest, "{path} is no conflict"),
            false if stays_apart(path, [host, guest]) || held.contains(path) => {}
            false => assert_eq!(host, guest, "{path}"),
        }
    }
    for seen in looks.iter().flat_map(BTreeMap::values) {
        if let Some((side, number)) = seen.note.split_once(' ') {
            let most = worked[usize::from(side == "guest")].number;
            assert!(number.parse::<u64>().unwrap() <= most, "{seen:?}");
        } else {
            assert_eq!(seen.note, "", "{seen:?}");
        }
    }
    for look in &looks {
        nothing_is_lost(tree, look, worked);
    }
}

/// Everything that was saved and not removed again is there, with what was saved last.
fn nothing_is_lost(tree: &Tree, look: &Look, worked: [&Worked; 2]) {
    for (worked, side) in worked.into_iter().zip(["host", "guest"]) {
        let own = format!("notes/{side}/");
        let found: BTreeMap<String, String> = look
            .values()
            .filter(|seen| seen.path.starts_with(&own) && seen.kind == "file")
            .map(|seen| (seen.path.clone(), seen.note.clone()))
            .collect();
        assert_eq!(found, worked.there);
    }
    for seen in tree.before.values() {
        // What an installation writes anew is its own affair, too.
        let is_made = seen.path.contains(".egg-info/");
        if is_made || seen.path.starts_with(".git") || seen.path.starts_with("notes/") {
            continue;
        }
        if stays_apart(&seen.path, [Some(seen), None]) {
            continue;
        }
        let now = look.get(&seen.path);
        let now = now.unwrap_or_else(|| panic!("{} is lost", seen.path));
        // What git has there it says itself.
        if !tree.before.contains_key(".git") {
            assert_eq!(
                (&now.kind, &now.plain),
                (&seen.kind, &seen.plain),
                "{}",
                seen.path
            );
        }
    }
}

/// Tells whether each side keeps what it has at a path: git's index, what looks like a secret, and links
/// that lead out.
fn stays_apart(path: &str, sides: [Option<&Seen>; 2]) -> bool {
    let leads_out = |seen: &&Seen| seen.kind == "link" && seen.digest.starts_with('/');
    path == ".git/index" || path.ends_with(".pem") || sides.iter().flatten().any(leads_out)
}

async fn the_repository_is_whole(
    sandbox: &Sandbox,
    root: &Path,
    (scale, commits): (&Scale, usize),
) {
    assert!(commits > 0);
    let inside = async |line: &str| sh(sandbox, &format!("cd {} && {line}", root.display())).await;
    git(root, &["fsck", "--full", "--strict", "--no-dangling"]);
    inside("git fsck --full --strict --no-dangling").await;
    let refs = ["for-each-ref", "--format=%(refname) %(objectname)"];
    let there = git(root, &refs);
    assert_eq!(
        there,
        inside("git for-each-ref --format='%(refname) %(objectname)'").await
    );
    assert!(there.contains("refs/tags/done"), "{there}");
    // The index is each side's own.
    git(root, &["reset", "-q"]);
    assert_eq!(git(root, &["status", "--porcelain"]), "");
    assert_eq!(inside("git status --porcelain").await, "");
    let of_host = git(root, &["rev-list", "--count", "--grep=^host ", "host"]);
    assert_eq!(of_host, commits.to_string());
    let topics = git(root, &["rev-list", "--count", "--grep=^topic ", "main"]);
    assert_eq!(topics, (2 * scale.topics).to_string());
}

fn look(root: &Path) -> Look {
    seen(&run(Command::new("python3").args(["-c", LOOK]).arg(root)))
}

async fn look_inside(sandbox: &Sandbox, root: &Path) -> Look {
    let mut command = sandbox.command("python3");
    let output = command.arg("/tmp/look.py").arg(root).output();
    let output = tokio::time::timeout(PATIENCE, output)
        .await
        .expect("it hangs");
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    seen(&String::from_utf8(output.stdout).unwrap())
}

fn seen(lines: &str) -> Look {
    lines
        .lines()
        .map(|line| serde_json::from_str::<Seen>(line).unwrap())
        .map(|seen| (seen.path.clone(), seen))
        .collect()
}
