//! A transfer that was cut off goes on where it was (S53): what had arrived is neither asked for nor sent again.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sandbox_sync::{Session, guest};
use tokio::io::duplex;

use crate::pair::{Pair, assert_clean, read, write};
use crate::stream::{End, Metered};

const FILES: usize = 40;
const LENGTH: usize = 20_000;
const STAGING: &str = ".sandbox-sync-staging";

/// Which half what is sent comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Host,
    Guest,
}

impl From {
    fn at(self, pair: &Pair, path: &str) -> PathBuf {
        match self {
            Self::Host => pair.host(path),
            Self::Guest => pair.guest(path),
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Host => Self::Guest,
            Self::Guest => Self::Host,
        }
    }
}

/// Contents that are no other file's.
fn contents(number: usize) -> Vec<u8> {
    let mut bytes = format!("{number} ").repeat(LENGTH / 2);
    bytes.truncate(LENGTH);
    bytes.into_bytes()
}

fn name(number: usize) -> String {
    format!("d{}/f{number}", number % 3)
}

/// A pair one side of which has files, and what they come to.
fn filled(from: From) -> (Pair, u64) {
    let pair = Pair::new();
    fs::create_dir(pair.guest("")).unwrap();
    for number in 0..FILES {
        write(from.at(&pair, &name(number)), contents(number));
    }
    (pair, (FILES * LENGTH) as u64)
}

/// Runs a session until its end, or that of its stream, and returns how many bytes went over it.
async fn run(pair: &Pair, from: From, end: End) -> u64 {
    let moved = Arc::new(AtomicU64::new(0));
    let (ours, theirs) = duplex(4096);
    // The side that sends is the one whose writing ends.
    let (host, guest) = match from {
        From::Host => (end, End::Never),
        From::Guest => (End::Never, end),
    };
    let ours = Box::new(Metered::new(ours, host).counting(&moved));
    let theirs = Box::new(Metered::new(theirs, guest));
    let guest = tokio::spawn(guest::serve(theirs, guest::Options::default()));
    let started = Session::start(&pair.host(""), ours, pair.options()).await;
    assert_eq!(started.is_ok(), end == End::Never, "{started:?}");
    if let Ok(session) = started {
        assert_clean(session.initial());
        drop(session.stop().await.unwrap());
    }
    drop(guest.await.unwrap());
    moved.load(Ordering::Relaxed)
}

/// What is kept in a root.
fn kept(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root.join(STAGING)) else {
        return Vec::new();
    };
    let paths = entries.map(|entry| entry.unwrap().path());
    let is_kept = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("kept-") || name.starts_with("part-")
    };
    paths.filter(is_kept).collect()
}

#[track_caller]
fn assert_arrived(pair: &Pair, from: From) {
    for number in 0..FILES {
        let arrived = fs::read(from.other().at(pair, &name(number))).unwrap();
        assert!(arrived == contents(number), "{}", name(number));
    }
    for root in [pair.host(""), pair.guest("")] {
        assert!(!root.join(STAGING).exists(), "nothing is left in {root:?}");
    }
}

#[tokio::test]
async fn s53_what_had_arrived_before_the_peer_went_away_is_not_sent_again() {
    for from in [From::Host, From::Guest] {
        let (pair, all) = filled(from);
        let cut = all * 6 / 10;
        run(&pair, from, End::Breaks(usize::try_from(cut).unwrap())).await;
        let root = from.other().at(&pair, "");
        let arrived = kept(&root).len();
        // All but what was cut, and what the two had said.
        let most = FILES * 6 / 10;
        assert!((most - 2..=most).contains(&arrived), "{from:?}: {arrived}");
        assert!(
            fs::read_dir(&root).unwrap().count() == 1,
            "nothing is in place"
        );
        assert_eq!(read(root.join(STAGING).join(".gitignore")), "*\n");

        let moved = run(&pair, from, End::Never).await;
        let rest = ((FILES - arrived) * LENGTH) as u64;
        // And what the two have to say besides.
        let told = 20_000;
        assert!(
            (rest..rest + told).contains(&moved),
            "{from:?}: {moved} bytes for {rest} that were missing"
        );
        assert_arrived(&pair, from);
    }
}

#[tokio::test]
async fn s53_what_arrived_for_the_host_outlives_a_guest_that_goes_away_before_it_is_applied() {
    let (pair, all) = filled(From::Guest);
    for number in 0..FILES {
        write(pair.host(&format!("h{number}")), contents(FILES + number));
    }
    // The host has everything from the guest before it sends its own.
    let half = usize::try_from(all / 2).unwrap();
    run(&pair, From::Host, End::Breaks(half)).await;
    assert_eq!(kept(&pair.host("")).len(), FILES);
    let moved = run(&pair, From::Host, End::Never).await;
    assert!(moved < all, "{moved} bytes for half of {all}");
    assert_arrived(&pair, From::Guest);
}

#[tokio::test]
async fn s53_a_kept_file_that_was_changed_is_not_used() {
    for from in [From::Host, From::Guest] {
        let (pair, all) = filled(from);
        let cut = usize::try_from(all * 6 / 10).unwrap();
        run(&pair, from, End::Breaks(cut)).await;
        let root = from.other().at(&pair, "");
        let secret = pair.outside("secret");
        write(&secret, "not for the tree");
        let mut paths = kept(&root).into_iter();
        // Other bytes, fewer bytes, more, another file, and things that are no files.
        let mut next = || paths.next().unwrap();
        fs::write(next(), vec![7; LENGTH]).unwrap();
        fs::write(next(), "").unwrap();
        fs::write(next(), vec![7; LENGTH + 1]).unwrap();
        let (linked, link, folder) = (next(), next(), next());
        fs::remove_file(&linked).unwrap();
        fs::hard_link(&secret, linked).unwrap();
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(&secret, link).unwrap();
        fs::remove_file(&folder).unwrap();
        fs::create_dir(folder).unwrap();
        run(&pair, from, End::Never).await;
        assert_arrived(&pair, from);
        assert_eq!(read(&secret), "not for the tree");
    }
}

#[tokio::test]
async fn s53_who_holds_a_kept_file_open_does_not_hold_what_is_put_in_place() {
    let (pair, all) = filled(From::Guest);
    let cut = usize::try_from(all * 6 / 10).unwrap();
    run(&pair, From::Guest, End::Breaks(cut)).await;
    let aliases: Vec<_> = kept(&pair.host(""))
        .into_iter()
        .enumerate()
        .map(|(number, path)| {
            let alias = pair.outside(&format!("alias{number}"));
            fs::hard_link(path, &alias).unwrap();
            alias
        })
        .collect();
    run(&pair, From::Guest, End::Never).await;
    for alias in aliases {
        fs::write(alias, "changed afterwards").unwrap();
    }
    assert_arrived(&pair, From::Guest);
}

#[tokio::test]
async fn s53_what_is_kept_goes_after_a_cycle_that_had_no_use_for_it() {
    for from in [From::Host, From::Guest] {
        let (pair, all) = filled(from);
        let cut = usize::try_from(all * 6 / 10).unwrap();
        run(&pair, from, End::Breaks(cut)).await;
        assert!(!kept(&from.other().at(&pair, "")).is_empty());
        for number in 0..3 {
            fs::remove_dir_all(from.at(&pair, &format!("d{number}"))).unwrap();
        }
        run(&pair, from, End::Never).await;
        for root in [pair.host(""), pair.guest("")] {
            assert_eq!(fs::read_dir(&root).unwrap().count(), 0, "{root:?}");
        }
    }
}

#[tokio::test]
async fn s53_what_a_guest_leaves_on_the_host_session_by_session_is_bounded() {
    let (pair, _) = filled(From::Guest);
    let staging = pair.host(STAGING);
    fs::create_dir(&staging).unwrap();
    let left = |number: u64| staging.join(format!("part-{number:016x}-1"));
    for number in 0..5 {
        // Holes: they count as what they would be.
        let file = fs::File::create(left(number)).unwrap();
        file.set_len(1 << 30).unwrap();
    }
    run(&pair, From::Guest, End::Breaks(5_000)).await;
    let bytes: u64 = kept(&pair.host(""))
        .iter()
        .map(|path| fs::metadata(path).unwrap().len())
        .sum();
    assert_eq!(bytes, 2 << 30);
}

const FOLDER: &str = "SANDBOX_SYNC_RESUME_FOLDER";

/// The work of the process that is killed; without the variable that the parent sets there is none.
#[tokio::test]
async fn child() {
    let Some(folder) = env::var_os(FOLDER) else {
        return;
    };
    let pair = Pair::at(PathBuf::from(folder));
    let (ours, theirs) = duplex(4096);
    let ours = Metered::new(ours, End::Stalls(FILES * LENGTH * 8 / 10));
    drop(tokio::spawn(guest::serve(
        Box::new(theirs),
        guest::Options::default(),
    )));
    let (host, options) = (pair.host(""), pair.options());
    drop(tokio::spawn(async move {
        Session::start(&host, Box::new(ours), options).await
    }));
    for _ in 0..10_000 {
        if kept(&pair.guest("")).len() > FILES / 2 {
            println!("ready");
            // Until it is killed.
            std::future::pending().await
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn s53_what_had_arrived_when_the_process_was_killed_is_not_sent_again() {
    let (pair, _) = filled(From::Host);
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "resume::child", "--nocapture"])
        .env(FOLDER, pair.folder())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let ready = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .any(|line| line.unwrap().contains("ready"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(ready, "the child never began");
    assert!(kept(&pair.guest("")).len() > FILES / 2);
    // The last of them may not be whole.
    let moved = run(&pair, From::Host, End::Never).await;
    let rest = ((FILES - FILES / 2) * LENGTH) as u64 + 20_000;
    assert!(moved < rest, "{moved} bytes");
    assert_arrived(&pair, From::Host);
}
