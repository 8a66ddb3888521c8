//! What the guest did is shown, and what was shown is applied: nothing else, and all or nothing.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use sandbox_sync::review::{Changes, Contents, Kind, Mark};
use sandbox_sync::{ErrorKind, Mode, Options, RelPath, Session};

use crate::pair::{Pair, names, read, write};

fn options(pair: &Pair) -> Options {
    let options = pair.options().with_mode(Mode::Review);
    options.with_undo(pair.outside("undo"))
}

async fn start(pair: &Pair) -> Session {
    pair.start_with(options(pair)).await.unwrap()
}

fn paths(changes: &Changes) -> Vec<String> {
    names(&changes.changes, |change| &change.path)
}

#[tokio::test]
async fn changes_are_shown_as_a_patch_and_applied_as_they_were_shown() {
    let pair = Pair::new();
    write(pair.host("src/a.rs"), "one\ntwo\nthree\n");
    write(pair.host("moved"), "contents");
    write(pair.host("gone"), "gone\n");
    write(pair.host("tool"), "#!/bin/sh\n");
    write(pair.host("blob"), b"\0one");
    let session = start(&pair).await;
    write(pair.guest("src/a.rs"), "one\n2\nthree\n");
    fs::rename(pair.guest("moved"), pair.guest("src/moved")).unwrap();
    fs::remove_file(pair.guest("gone")).unwrap();
    fs::set_permissions(pair.guest("tool"), fs::Permissions::from_mode(0o755)).unwrap();
    write(pair.guest("blob"), b"\0three");
    write(pair.guest("new/deep/n"), "new");
    symlink("a.rs", pair.guest("src/link")).unwrap();

    let changes = session.changes().await.unwrap();
    let shown: Vec<String> = changes
        .changes
        .iter()
        .map(|c| c.patch().to_string())
        .collect();
    let expected = [
        "diff a/blob b/blob\nBinary: 4 bytes to 6 bytes\n",
        "diff a/gone b/gone\ndeleted file\n--- a/gone\n+++ /dev/null\n@@ -1,1 +0,0 @@\n-gone\n",
        "diff a/new b/new\nnew folder\n",
        "diff a/new/deep b/new/deep\nnew folder\n",
        "diff a/new/deep/n b/new/deep/n\nnew file\n--- /dev/null\n+++ b/new/deep/n\n@@ -0,0 +1,1 @@\n+new\n\
         \\ No newline at end of file\n",
        "diff a/src/a.rs b/src/a.rs\n--- a/src/a.rs\n+++ b/src/a.rs\n@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n",
        "diff a/src/link b/src/link\nnew link to a.rs\n",
        "diff a/moved b/src/moved\nrename from moved\nrename to src/moved\n",
        "diff a/tool b/tool\nold file\nnew file, executable\n",
    ];
    assert_eq!(shown, expected);

    let chosen = changes
        .matching(&["src", "tool", "moved", "new/deep/n"])
        .unwrap();
    let outcome = session.apply(&chosen).await.unwrap();
    assert_eq!(outcome.refused, []);
    assert_eq!(read(pair.host("src/a.rs")), "one\n2\nthree\n");
    assert_eq!(read(pair.host("src/moved")), "contents");
    assert_eq!(
        fs::read_link(pair.host("src/link")).unwrap(),
        PathBuf::from("a.rs")
    );
    assert_eq!(read(pair.host("new/deep/n")), "new");
    assert!(!pair.host("moved").exists());
    assert!(
        fs::metadata(pair.host("tool"))
            .unwrap()
            .permissions()
            .mode()
            & 0o100
            != 0
    );
    assert_eq!(read(pair.host("gone")), "gone\n");
    assert_eq!(paths(&session.changes().await.unwrap()), ["blob", "gone"]);

    let outcome = session.undo().await.unwrap();
    assert_eq!(outcome.refused, []);
    assert_eq!(read(pair.host("src/a.rs")), "one\ntwo\nthree\n");
    assert_eq!(read(pair.host("moved")), "contents");
    assert!(!pair.host("src/moved").exists() && !pair.host("new").exists());
    assert_eq!(session.changes().await.unwrap(), changes, "it waits again");
    assert_eq!(read(pair.guest("src/a.rs")), "one\n2\nthree\n");
    let again = session.undo().await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn s49_what_changed_after_it_was_shown_is_not_applied_and_nothing_beside_it() {
    let pair = Pair::new();
    write(pair.host("a"), "0");
    write(pair.host("b"), "0");
    let session = start(&pair).await;
    write(pair.guest("a"), "seen");
    write(pair.guest("b"), "seen");
    let changes = session.changes().await.unwrap();
    write(pair.guest("b"), "unseen");
    let outcome = session.apply(&changes).await.unwrap();
    assert_eq!(names(&outcome.refused, |one| &one.path), ["b"]);
    assert_eq!(outcome.done, []);
    assert_eq!(
        (read(pair.host("a")), read(pair.host("b"))),
        ("0".into(), "0".into())
    );
    // The host's own progress is as safe.
    let changes = session.changes().await.unwrap();
    write(pair.host("a"), "mine");
    let outcome = session.apply(&changes).await.unwrap();
    assert_eq!(names(&outcome.refused, |one| &one.path), ["a"]);
    assert_eq!(
        (read(pair.host("a")), read(pair.host("b"))),
        ("mine".into(), "0".into())
    );
    // Shown as what it is now: a conflict, which applying decides.
    let changes = session.changes().await.unwrap();
    assert_eq!(changes.changes[0].marks, [Mark::Conflict]);
    assert_eq!(session.apply(&changes.only("a")).await.unwrap().refused, []);
    assert_eq!(read(pair.host("a")), "seen");
    write(pair.host("a"), "mine again");
    let outcome = session.undo().await.unwrap();
    assert_eq!(names(&outcome.refused, |one| &one.path), ["a"]);
    assert_eq!(read(pair.host("a")), "mine again");
}

#[tokio::test]
async fn a_folder_that_cannot_go_takes_the_whole_transaction_back() {
    let pair = Pair::new();
    write(pair.host("a"), "0");
    write(pair.host("d/x"), "0");
    let session = start(&pair).await;
    write(pair.guest("a"), "1");
    write(pair.guest("n"), "1");
    fs::remove_dir_all(pair.guest("d")).unwrap();
    write(pair.guest("d"), "now a file");
    let changes = session.changes().await.unwrap();
    // What no scan sees, so that the last rename is the first to notice.
    write(pair.host("d/.sandbox-sync-hidden"), "");
    let outcome = session.apply(&changes).await.unwrap();
    assert!(!outcome.refused.is_empty());
    assert_eq!(
        (read(pair.host("a")), read(pair.host("d/x"))),
        ("0".into(), "0".into())
    );
    assert!(!pair.host("n").exists());
    assert_eq!(read(pair.guest("d")), "now a file");
    assert_eq!(session.changes().await.unwrap(), changes);
}

#[tokio::test]
async fn hunks_are_applied_one_by_one() {
    let pair = Pair::new();
    let text: String = (0..40).map(|n| format!("{n}\n")).collect();
    write(pair.host("a"), &text);
    let session = start(&pair).await;
    write(
        pair.guest("a"),
        text.replace("\n5\n", "\nfive\n")
            .replace("\n30\n", "\nthirty\n"),
    );
    let path = RelPath::new("a").unwrap();
    let changes = session.changes().await.unwrap();
    let second = changes.only_hunks(&path, &[1]).unwrap();
    assert_eq!(session.apply(&second).await.unwrap().refused, []);
    assert_eq!(read(pair.host("a")), text.replace("\n30\n", "\nthirty\n"));
    let changes = session.changes().await.unwrap();
    let Contents::Text(hunks) = &changes.changes[0].contents else {
        panic!("{changes:?}");
    };
    assert_eq!(
        (hunks.len(), &changes.changes[0].marks[..]),
        (1, &[][..]),
        "the first one waits"
    );
    assert!(changes.only_hunks(&path, &[1]).is_err());
    assert_eq!(session.undo().await.unwrap().refused, []);
    assert_eq!(read(pair.host("a")), text);
}

#[tokio::test]
async fn what_is_discarded_goes_back_to_what_the_host_has() {
    let pair = Pair::new();
    write(pair.host("a"), "0");
    write(pair.host("d/x"), "0");
    write(pair.host("keep"), "0");
    let session = start(&pair).await;
    write(pair.guest("a"), "1");
    write(pair.guest("keep"), "1");
    write(pair.guest("new/n"), "1");
    fs::remove_dir_all(pair.guest("d")).unwrap();
    let changes = session.changes().await.unwrap();
    let outcome = session
        .discard(&changes.matching(&["a", "d", "new"]).unwrap())
        .await
        .unwrap();
    assert_eq!(outcome.refused, []);
    assert_eq!(
        (read(pair.guest("a")), read(pair.guest("d/x"))),
        ("0".into(), "0".into())
    );
    assert!(!pair.guest("new").exists());
    assert_eq!(paths(&session.changes().await.unwrap()), ["keep"]);
    // Not what was written since it was shown.
    write(pair.guest("keep"), "2");
    let outcome = session.discard(&changes.only("keep")).await.unwrap();
    assert_eq!((outcome.done.len(), outcome.refused.len()), (0, 1));
    assert_eq!(read(pair.guest("keep")), "2");
}

#[tokio::test]
async fn i14_what_runs_unasked_is_applied_when_it_was_chosen() {
    let pair = Pair::new();
    write(pair.host(".git/HEAD"), "ref: refs/heads/main\n");
    let options = options(&pair).with_mode(Mode::TwoWaySafe);
    let session = pair.start_with(options).await.unwrap();
    write(pair.guest(".git/hooks/pre-commit"), "#!/bin/sh\n");
    write(pair.guest("src"), "flows");
    let changes = session.changes().await.unwrap();
    assert_eq!(paths(&changes), [".git/hooks", ".git/hooks/pre-commit"]);
    assert!(
        changes
            .changes
            .iter()
            .all(|change| change.is_marked(Mark::RunsUnasked))
    );
    assert_eq!(read(pair.host("src")), "flows");
    assert!(!pair.host(".git/hooks").exists());
    assert_eq!(session.apply(&changes).await.unwrap().refused, []);
    assert!(pair.host(".git/hooks/pre-commit").exists());
    assert!(session.changes().await.unwrap().is_empty());
}

#[tokio::test]
async fn nothing_is_applied_to_a_read_only_workspace_or_without_a_way_back() {
    let pair = Pair::new();
    write(pair.host("a"), "0");
    let read_only = options(&pair).with_mode(Mode::ReadOnly);
    let no_way_back = pair.options().with_mode(Mode::Review);
    for (options, kind) in [
        (read_only, ErrorKind::Unsupported),
        (no_way_back, ErrorKind::Invalid),
    ] {
        let session = pair.start_with(options).await.unwrap();
        write(pair.guest("a"), "1");
        let changes = session.changes().await.unwrap();
        assert_eq!(changes.changes[0].kind, Kind::Changed);
        assert_eq!(session.apply(&changes).await.unwrap_err().kind(), kind);
        assert_eq!(read(pair.host("a")), "0");
        // What is discarded is the guest's alone.
        assert_eq!(session.discard(&changes).await.unwrap().refused, []);
        assert_eq!(read(pair.guest("a")), "0");
        drop(session.stop().await.unwrap());
    }
}

/// As if the process had died half-way through the renames.
#[tokio::test]
async fn s16_an_apply_that_did_not_end_is_taken_back_by_the_next_session() {
    let pair = Pair::new();
    write(pair.host("a"), "0");
    write(pair.host("b"), "0");
    write(pair.host("gone"), "0");
    let session = start(&pair).await;
    write(pair.guest("a"), "1");
    write(pair.guest("b"), "1");
    write(pair.guest("d/n"), "1");
    fs::remove_file(pair.guest("gone")).unwrap();
    let changes = session.changes().await.unwrap();
    let base = fs::read(pair.outside("base")).unwrap();
    assert_eq!(session.apply(&changes).await.unwrap().refused, []);
    drop(session);
    fs::rename(pair.outside("undo/done"), pair.outside("undo/pending")).unwrap();
    write(pair.outside("base"), base);
    write(pair.host("b"), "0");
    let session = loop {
        // The earlier session lets go of the root in its own time.
        match pair.start_with(options(&pair)).await {
            Ok(session) => break session,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict),
        }
    };
    for name in ["a", "b", "gone"] {
        assert_eq!(read(pair.host(name)), "0", "{name}");
    }
    assert!(!pair.host("d").exists());
    assert_eq!(session.changes().await.unwrap(), changes);
    assert_eq!(
        session.undo().await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

const FOLDER: &str = "SANDBOX_SYNC_REVIEW_FOLDER";
const FILES: usize = 40;

/// The child's work: applies and takes back without end.
#[tokio::test]
async fn child() {
    let Some(folder) = env::var_os(FOLDER) else {
        return;
    };
    let pair = Pair::at(PathBuf::from(folder));
    let session = start(&pair).await;
    println!("ready");
    loop {
        let changes = session.changes().await.unwrap();
        assert_eq!(session.apply(&changes).await.unwrap().refused, []);
        assert_eq!(session.undo().await.unwrap().refused, []);
    }
}

/// Wherever it is killed, the host has all of the apply or nothing once the next session has begun, and the
/// guest's work is never lost.
#[tokio::test]
async fn s16_a_killed_apply_is_whole_or_nothing() {
    let pair = Pair::new();
    for number in 0..FILES {
        write(pair.host(&format!("d{}/{number}", number % 5)), "old");
    }
    drop(start(&pair).await.stop().await.unwrap());
    for number in (0..FILES).filter(|number| number % 3 > 0) {
        write(pair.guest(&format!("d{}/{number}", number % 5)), "new");
    }
    for number in (0..FILES).filter(|number| number % 3 == 0) {
        fs::remove_file(pair.guest(&format!("d{}/{number}", number % 5))).unwrap();
        write(
            pair.guest(&format!("n{}/{number}", number % 5)),
            format!("added {number}"),
        );
    }
    let guest = tree(&pair.guest(""));
    let host = tree(&pair.host(""));
    for round in 0..15u64 {
        killed_after(&pair, Duration::from_millis(2 + round * 7));
        let session = start(&pair).await;
        let there = tree(&pair.host(""));
        assert!(there == host || there == guest, "round {round}: {there:#?}");
        assert_eq!(tree(&pair.guest("")), guest, "round {round}");
        if there == guest {
            // The apply had ended: it can be taken back by another session.
            assert_eq!(session.undo().await.unwrap().refused, []);
            assert_eq!(tree(&pair.host("")), host, "round {round}");
        }
        drop(session.stop().await.unwrap());
        assert_eq!(tree(&pair.guest("")), guest, "round {round}");
    }
}

fn tree(root: &std::path::Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().display().to_string();
                found.push((name, read(&path)));
            }
        }
    }
    found.sort();
    found
}

fn killed_after(pair: &Pair, time: Duration) {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "review::child", "--nocapture"])
        .env(FOLDER, pair.folder())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let ready = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .any(|line| line.unwrap().contains("ready"));
    assert!(ready, "the child never began");
    std::thread::sleep(time);
    child.kill().unwrap();
    child.wait().unwrap();
}
