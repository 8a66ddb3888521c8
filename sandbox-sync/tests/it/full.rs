//! A disk that is full (S45, S53): a small file system of its own, in a mount namespace of its own.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use sandbox_sync::Side;

use crate::pair::{Pair, assert_clean, names, read, write};

const FOLDER: &str = "SANDBOX_SYNC_FULL_FOLDER";

/// The pair inside the namespace, whose guest has a megabyte; without the variable that the parent sets there is
/// none.
fn pair() -> Option<Pair> {
    let pair = Pair::at(PathBuf::from(env::var_os(FOLDER)?));
    fs::create_dir(pair.guest("")).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(pair.guest(""))
        .status();
    assert!(mounted.unwrap().success());
    Some(pair)
}

#[tokio::test]
async fn child() {
    let Some(pair) = pair() else {
        return;
    };
    // To the side that is full: what fits arrives, what does not is told.
    write(pair.host("a/small"), "fits");
    write(pair.host("b/large"), vec![1; 2 << 20]);
    let session = pair.start().await;
    let problems = &session.initial().problems;
    assert_eq!(names(problems, |problem| &problem.path), ["b/large"]);
    assert_eq!(problems[0].side, Side::Guest);
    assert_eq!(read(pair.guest("a/small")), "fits");
    assert!(!pair.guest("b/large").exists());

    // An old version stays whole where the new one does not fit, on either side.
    write(pair.host("a/small"), vec![2; 2 << 20]);
    let report = session.flush().await.unwrap();
    assert_eq!(
        names(&report.problems, |problem| &problem.path),
        ["a/small", "b/large"]
    );
    assert_eq!(read(pair.guest("a/small")), "fits");
    let left: Vec<_> = fs::read_dir(pair.guest(""))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert!(
        left.iter().all(|name| name == "a" || name == "b"),
        "{left:?}"
    );

    // Once there is room it goes on by itself.
    write(pair.host("a/small"), "fits again");
    write(pair.host("b/large"), "no longer large");
    assert_clean(&session.flush().await.unwrap());
    assert_eq!(read(pair.guest("a/small")), "fits again");
    assert_eq!(read(pair.guest("b/large")), "no longer large");
    session.stop().await.unwrap();
    println!("all was seen");
}

#[tokio::test]
async fn child_that_keeps() {
    let Some(pair) = pair() else {
        return;
    };
    // What earlier sessions received and this one has no use for gives way, wherever the room ends.
    for number in 0..7 {
        let kept = format!(".sandbox-sync-staging/part-{number:016x}-1");
        write(pair.guest(&kept), vec![1; 100 << 10]);
    }
    write(pair.host("a/large"), vec![2; 600 << 10]);
    let session = pair.start().await;
    assert_clean(session.initial());
    assert!(fs::read(pair.guest("a/large")).unwrap() == vec![2; 600 << 10]);
    session.stop().await.unwrap();
    println!("all was seen");
}

#[cfg(target_os = "linux")]
#[test]
fn s45_a_full_disk_is_a_problem_of_what_does_not_fit() {
    inside("full::child");
}

#[cfg(target_os = "linux")]
#[test]
fn s53_what_is_kept_gives_way_on_a_full_disk() {
    inside("full::child_that_keeps");
}

/// Runs a test in a mount namespace of its own.
#[cfg(target_os = "linux")]
fn inside(test: &str) {
    let pair = Pair::new();
    let done = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount"])
        .arg(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(FOLDER, pair.folder())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&done.stdout);
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(told.contains("all was seen"), "{told}{errors}");
}
