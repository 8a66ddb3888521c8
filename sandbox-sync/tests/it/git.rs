//! A real git at work on both sides (S42).

use std::path::Path;
use std::process::Command;

use crate::pair::{Pair, assert_clean, read, write};

/// Runs git with no configuration but what is given here.
fn git(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args(["-c", "gc.auto=0", "-c", "init.defaultBranch=main"])
        .args(arguments)
        .current_dir(folder)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .env("GIT_CEILING_DIRECTORIES", folder.parent().unwrap())
        .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_NAME"), "a")))
        .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_EMAIL"), "a@example.org")))
        .output()
        .unwrap();
    assert!(output.status.success(), "git {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn s42_commits_and_collections_of_the_guest_arrive_whole() {
    let pair = Pair::new();
    let (host, guest) = (pair.host(""), pair.guest(""));
    git(&host, &["init", "-q"]);
    write(pair.host("a"), "1");
    git(&host, &["add", "."]);
    git(&host, &["commit", "-qm", "one"]);
    let session = pair.start().await;
    assert_eq!(
        git(&guest, &["status", "--porcelain"]),
        "",
        "the guest has a full checkout"
    );
    for number in 0..5 {
        write(pair.guest("a"), number.to_string());
        git(&guest, &["commit", "-qam", "more"]);
    }
    git(&guest, &["branch", "topic"]);
    assert_clean(&session.flush().await.unwrap());
    git(&host, &["fsck", "--strict"]);
    assert_eq!(git(&host, &["rev-list", "--count", "topic"]), "6");
    assert_eq!(read(pair.host("a")), "4");
    git(&guest, &["gc", "-q", "--prune=now"]);
    assert_clean(&session.flush().await.unwrap());
    git(&host, &["fsck", "--strict"]);
    git(&host, &["reset", "-q"]);
    assert_eq!(git(&host, &["status", "--porcelain"]), "");
    git(
        &host,
        &["commit", "-q", "--allow-empty", "-m", "from the host"],
    );
    assert_clean(&session.flush().await.unwrap());
    git(&guest, &["fsck", "--strict"]);
    assert_eq!(git(&guest, &["rev-list", "--count", "HEAD"]), "7");
}
