//! What `.gitignore` files name stays on its own side, and nothing is lost when they change (S29).

use std::fs;

use sandbox_sync::{Lists, Options};

use crate::pair::{Pair, assert_clean, names, read, write};

/// Options by what the host's `.gitignore` files say now.
fn options(pair: &Pair) -> Options {
    let lists = Lists::default().with_gitignore_of(&pair.host("")).unwrap();
    pair.options().with_lists(lists)
}

#[tokio::test]
async fn what_git_ignores_stays_on_its_side_on_request() {
    let pair = Pair::new();
    write(pair.host(".gitignore"), "/out\n*.log\n!keep.log\n");
    write(pair.host("sub/.gitignore"), "cache/\n");
    for path in ["out/x", "a.log", "keep.log", "sub/cache/x", "cache/x"] {
        write(pair.host(path), "host");
    }
    let session = pair.start_with(options(&pair)).await.unwrap();
    assert_clean(session.initial());
    for (path, crosses) in [
        ("out", false),
        ("a.log", false),
        ("sub/cache", false),
        ("keep.log", true),
        ("cache/x", true),
    ] {
        assert_eq!(pair.guest(path).exists(), crosses, "{path}");
    }
    write(pair.guest("out/x"), "guest");
    write(pair.guest("sub/cache/y"), "guest");
    let report = session.flush().await.unwrap();
    assert!(report.is_quiet(), "{report:#?}");
    assert_eq!(read(pair.host("out/x")), "host");
}

/// What is ignored from now on stays where it is on both sides, also where one of them removes it.
#[tokio::test]
async fn s29_a_changed_gitignore_is_no_deletion() {
    let pair = Pair::new();
    for path in ["out/x", "out/y", "a"] {
        write(pair.host(path), "both");
    }
    let session = pair.start_with(options(&pair)).await.unwrap();
    // It is written while the session runs, by the guest: the session goes on as before.
    write(pair.guest(".gitignore"), "out\n");
    write(pair.guest("out/z"), "new");
    assert_clean(&session.flush().await.unwrap());
    assert_eq!(read(pair.host("out/z")), "new");
    session.stop().await.unwrap();

    let session = pair.start_with(options(&pair)).await.unwrap();
    assert!(session.initial().is_quiet(), "{:#?}", session.initial());
    fs::remove_file(pair.guest("out/x")).unwrap();
    write(pair.host("out/y"), "host");
    let report = session.stop().await.unwrap();
    assert!(report.is_quiet(), "{report:#?}");
    assert_eq!(read(pair.host("out/x")), "both");
    assert_eq!(read(pair.guest("out/y")), "both");

    // Ignored no more: what one side removed meanwhile goes, what one side changed comes.
    fs::remove_file(pair.guest(".gitignore")).unwrap();
    fs::remove_file(pair.host(".gitignore")).unwrap();
    write(pair.guest("out/z"), "guest");
    write(pair.host("out/z"), "host");
    let session = pair.start_with(options(&pair)).await.unwrap();
    let report = session.initial();
    assert_eq!(names(&report.conflicts, |one| &one.path), ["out/z"]);
    assert_eq!(read(pair.guest("out/y")), "host");
    assert_eq!(read(pair.host("out/z")), "host");
    assert_eq!(read(pair.guest("out/z")), "guest");
}
