//! What a well-behaved pair does.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use crate::pair::{Pair, assert_clean, names, read, write};

#[tokio::test]
async fn the_first_copy_brings_everything_over() {
    let pair = Pair::new();
    write(pair.host("a/b.txt"), "one");
    write(pair.host("run.sh"), "#!/bin/sh\n");
    fs::set_permissions(pair.host("run.sh"), PermissionsExt::from_mode(0o755)).unwrap();
    fs::create_dir(pair.host("empty")).unwrap();
    symlink("a/b.txt", pair.host("link")).unwrap();
    let session = pair.start().await;
    assert_clean(session.initial());
    assert_eq!(read(pair.guest("a/b.txt")), "one");
    assert!(pair.guest("empty").is_dir());
    assert_eq!(
        fs::read_link(pair.guest("link")).unwrap().to_str(),
        Some("a/b.txt")
    );
    assert_eq!(
        fs::metadata(pair.guest("run.sh"))
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o755
    );
    let modified = |path| fs::metadata(path).unwrap().modified().unwrap();
    assert_eq!(
        modified(pair.guest("a/b.txt")),
        modified(pair.host("a/b.txt"))
    );
    let again = session.flush().await.unwrap();
    assert!(again.is_quiet(), "{again:#?}");
}

#[tokio::test]
async fn changes_go_both_ways() {
    let pair = Pair::new();
    write(pair.host("a"), "one");
    write(pair.host("gone"), "x");
    write(pair.host("keep"), "x");
    let session = pair.start().await;
    write(pair.host("a"), "two");
    write(pair.guest("made/here"), "new");
    fs::remove_file(pair.guest("gone")).unwrap();
    let report = session.flush().await.unwrap();
    assert_clean(&report);
    assert_eq!(read(pair.guest("a")), "two");
    assert_eq!(read(pair.host("made/here")), "new");
    assert!(!pair.host("gone").exists());
    assert_eq!(
        names(&report.to_host, |c| &c.path),
        ["gone", "made", "made/here"]
    );
    assert_eq!(names(&report.to_guest, |c| &c.path), ["a"]);
    let last = session.stop().await.unwrap();
    assert!(last.is_quiet());
    assert!(!pair.host(".sandbox-sync-staging").exists());
    assert!(!pair.guest(".sandbox-sync-staging").exists());
}
