//! A real git at work on both sides (S42).

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use sandbox_sync::Session;

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

/// Waits as somebody who works in a repository does between two steps: mostly less than a cycle takes.
fn pause(step: usize) {
    let longer = if step.is_multiple_of(5) { 12 } else { 3 };
    std::thread::sleep(Duration::from_millis(longer));
}

/// Opens a session that synchronizes by itself.
async fn at_work(pair: &Pair) -> Session {
    let timing = (Duration::from_millis(1), Duration::from_secs(60));
    let options = pair.options().with_timing(timing.0, timing.1);
    pair.start_with(options).await.unwrap()
}

/// Whoever looks at the host's repository while refs move finds what they lead to. No git is fast enough to
/// show it: here the objects are empty files, and packs that take the place of others hold the number of the
/// last object.
#[tokio::test(flavor = "multi_thread")]
async fn s42_what_a_ref_leads_to_is_there_before_it() {
    let pair = Pair::new();
    let (host, guest) = (pair.host(".git"), pair.guest(".git"));
    for folder in ["refs", "objects/aa", "objects/bb"] {
        std::fs::create_dir_all(host.join(folder)).unwrap();
    }
    for name in ["HEAD", "refs/main", "objects/aa/0"] {
        write(host.join(name), "0");
    }
    let session = at_work(&pair).await;
    let working = std::thread::spawn(move || {
        let until = Instant::now() + Duration::from_secs(2);
        let mut number = 0;
        while Instant::now() < until {
            number += 1;
            pause(number);
            let folder = ["aa", "bb"][number % 2];
            write(guest.join(format!("objects/{folder}/{number}")), "");
            write(guest.join("ref~"), number.to_string());
            std::fs::rename(guest.join("ref~"), guest.join("refs/main")).unwrap();
        }
        number
    });
    let mut seen = 0;
    while !working.is_finished() {
        let number: usize = read(host.join("refs/main")).parse().unwrap();
        let folder = if number == 0 {
            "aa"
        } else {
            ["aa", "bb"][number % 2]
        };
        let object = host.join(format!("objects/{folder}/{number}"));
        assert!(object.exists(), "{number} is not there");
        seen += usize::from(number > 0);
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    assert!(seen > 0, "nothing arrived meanwhile");
    let number = working.join().unwrap();
    assert_clean(&session.flush().await.unwrap());
    assert_eq!(read(host.join("refs/main")), number.to_string());
}

/// What git took away because a pack has it goes on the host once the pack is there.
#[tokio::test(flavor = "multi_thread")]
async fn s42_objects_go_after_the_pack_that_has_them_came() {
    let pair = Pair::new();
    let (host, guest) = (pair.host(".git"), pair.guest(".git"));
    for folder in ["refs", "objects/aa", "objects/pack"] {
        std::fs::create_dir_all(host.join(folder)).unwrap();
    }
    for name in ["HEAD", "refs/main", "objects/aa/0"] {
        write(host.join(name), "0");
    }
    let session = at_work(&pair).await;
    let working = std::thread::spawn(move || {
        let until = Instant::now() + Duration::from_secs(2);
        let mut number = 0;
        while Instant::now() < until {
            pause(number);
            write(guest.join(format!("objects/pack/{number}")), "");
            std::fs::remove_file(guest.join(format!("objects/aa/{number}"))).unwrap();
            number += 1;
            write(guest.join(format!("objects/aa/{number}")), "");
        }
        number
    });
    let mut known = 0;
    while !working.is_finished() {
        // Whatever has come is there loose or packed, in this order; the last one may not have come.
        let is =
            |place: &str, number: usize| host.join(format!("objects/{place}/{number}")).exists();
        while is("aa", known + 1) || is("pack", known + 1) {
            known += 1;
        }
        for number in 0..=known {
            let loose = is("aa", number);
            assert!(loose || is("pack", number), "{number} is gone");
        }
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    assert!(known > 0, "nothing arrived meanwhile");
    working.join().unwrap();
    assert_clean(&session.flush().await.unwrap());
}
