//! Snapshots beside a session, beside each other, on a disk that is full, and `kill -9` in the middle.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use sandbox_sync::ErrorKind;
use sandbox_sync::snapshot::{Against, Options, Space, Store};

use crate::pair::{Pair, assert_clean, read, write};

const CRASH: &str = "SANDBOX_SYNC_SNAPSHOT_CRASH";
const FULL: &str = "SANDBOX_SYNC_SNAPSHOT_FULL";
const FILES: usize = 40;

fn space(folder: &Path, name: &str) -> Space {
    let store = Store::open(folder.join("store")).unwrap();
    store.space(name).unwrap()
}

#[tokio::test]
async fn s51_what_is_restored_beside_a_session_flows_into_the_guest() {
    let pair = Pair::new();
    write(pair.host("src/a"), "old");
    write(pair.host("src/b"), "old");
    let session = pair.start().await;
    let space = space(pair.folder(), "one");
    let taken = session
        .snapshot(&space, Some("old"), Options::default())
        .await
        .unwrap();
    assert_eq!(taken.snapshot.counts.files, 2);
    write(pair.guest("src/a"), "the agent's");
    write(pair.guest("src/c"), "the agent's");
    assert_clean(&session.flush().await.unwrap());
    assert_eq!(read(pair.host("src/a")), "the agent's");

    // Whoever does not ask the session is refused.
    let refused = space.restore(&pair.host(""), ("old", &[]), &Options::default());
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Conflict);

    let restored = session
        .restore(&space, ("old", &[]), Options::default())
        .await
        .unwrap();
    assert_eq!((restored.done.len(), restored.refused.len()), (2, 0));
    assert_clean(&session.flush().await.unwrap());
    for side in [pair.host("src"), pair.guest("src")] {
        assert_eq!(read(side.join("a")), "old");
        assert!(!side.join("c").exists());
    }
    let (before, chosen) = (restored.before.as_str(), ["src/c".to_owned()]);
    let back = session.restore(&space, (before, &chosen), Options::default());
    assert_eq!(back.await.unwrap().done.len(), 1);
    session.stop().await.unwrap();
    assert_eq!(read(pair.guest("src/c")), "the agent's");
}

#[tokio::test]
async fn i7_a_session_s_next_snapshot_has_what_the_guest_did_and_reads_no_more() {
    let pair = Pair::new();
    for number in 0..40 {
        write(pair.host(&format!("src/{}/{number}", number % 4)), "old");
    }
    let session = pair.start().await;
    let space = space(pair.folder(), "one");
    let take = || session.snapshot(&space, None, Options::default());
    // What is younger than two seconds is read again.
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    assert_eq!(take().await.unwrap().read, 40);
    write(pair.guest("src/1/1"), "the agent's");
    write(pair.guest("new/folder/a"), "the agent's");
    fs::remove_file(pair.guest("src/2/2")).unwrap();
    fs::rename(pair.guest("src/3"), pair.guest("moved")).unwrap();
    assert_clean(&session.flush().await.unwrap());
    let taken = take().await.unwrap();
    assert_eq!((taken.read, taken.snapshot.counts.files), (12, 40));
    session.stop().await.unwrap();
    // Nothing is missing in it, and nothing is too much.
    let root = pair.host("");
    let against = Against::Folder(&root);
    let name = taken.snapshot.name.as_str();
    let differs = space.diff(name, against, &Options::default()).unwrap();
    assert_eq!(differs.changes.len(), 0, "{:?}", differs.changes);
}

#[test]
fn a_collector_in_between_takes_nothing_from_who_writes() {
    let pair = Pair::new();
    let rounds = 15;
    thread::scope(|scope| {
        for writer in 0..2 {
            let folder = pair.folder();
            scope.spawn(move || {
                // Each opens the store for itself, as processes do.
                let space = space(folder, &format!("w{writer}"));
                let root = folder.join(format!("root{writer}"));
                for round in 0..rounds {
                    write(root.join("same"), vec![7; 9_000]);
                    write(
                        root.join(format!("f{}", round % 4)),
                        format!("{writer} {round}").repeat(999),
                    );
                    space
                        .snapshot(&root, &format!("s{round}"), &Options::default())
                        .unwrap();
                    if round % 3 == 2 {
                        space.remove(&format!("s{}", round - 1)).unwrap();
                    }
                }
            });
        }
        let store = Store::open(pair.folder().join("store")).unwrap();
        scope.spawn(move || {
            for _ in 0..rounds * 2 {
                store.collect().unwrap();
            }
        });
    });
    for writer in 0..2 {
        let space = space(pair.folder(), &format!("w{writer}"));
        let root = pair.folder().join(format!("root{writer}"));
        for snapshot in space.list().unwrap() {
            let name = snapshot.name.as_str();
            let restored = space
                .restore(&root, (name, &[]), &Options::default())
                .unwrap();
            assert_eq!(restored.refused.len(), 0);
            let round = name
                .trim_start_matches('s')
                .trim_start_matches("before-restore-");
            if let (Ok(round), true) = (round.parse::<usize>(), name.starts_with('s')) {
                let text = format!("{writer} {round}").repeat(999);
                assert!(read(root.join(format!("f{}", round % 4))) == text, "{name}");
            }
        }
    }
}

/// The child's work; without the variable that the parent sets there is none.
#[test]
fn crash_child() {
    let Some(folder) = env::var_os(CRASH) else {
        return;
    };
    let folder = PathBuf::from(folder);
    let (space, root) = (space(&folder, "one"), folder.join("host"));
    let store = Store::open(folder.join("store")).unwrap();
    println!("ready");
    for version in 0u64.. {
        for number in 0..FILES {
            // By rename: a file that is torn is then torn by us.
            write(folder.join("next"), format!("{version:09}").repeat(2_000));
            fs::rename(folder.join("next"), root.join(format!("f{number}"))).unwrap();
        }
        let taken = space
            .snapshot_automatic(&root, &Options::default())
            .unwrap();
        let all = space.list().unwrap();
        let oldest = all[0].name.as_str();
        space
            .restore(&root, (oldest, &[]), &Options::default())
            .unwrap();
        if version % 3 == 1 {
            space.remove(taken.snapshot.name.as_str()).unwrap();
            store.collect().unwrap();
        }
    }
}

#[test]
fn s16_a_killed_process_loses_no_snapshot_and_tears_no_file() {
    let pair = Pair::new();
    let root = pair.host("");
    for number in 0..FILES {
        write(
            pair.host(&format!("f{number}")),
            format!("{:09}", 0).repeat(2_000),
        );
    }
    let space = space(pair.folder(), "one");
    space.snapshot(&root, "first", &Options::default()).unwrap();
    for round in 0..10u64 {
        killed_after(pair.folder(), Duration::from_millis(5 + round * 9));
        for number in 0..FILES {
            let text = read(pair.host(&format!("f{number}")));
            assert!(
                text.len() == 18_000 && text == text[..9].repeat(2_000),
                "f{number} is torn"
            );
        }
        // Everything that is listed is whole, before and after what was left is cleared.
        for collects in [false, true] {
            if collects {
                Store::open(pair.folder().join("store"))
                    .unwrap()
                    .collect()
                    .unwrap();
            }
            for snapshot in space.list().unwrap() {
                let name = snapshot.name.as_str();
                let other = sandbox_sync::snapshot::Against::Snapshot("first");
                space.diff(name, other, &Options::default()).unwrap();
            }
        }
        let restored = space
            .restore(&root, ("first", &[]), &Options::default())
            .unwrap();
        assert_eq!(restored.refused.len(), 0);
        for number in 0..FILES {
            assert!(read(pair.host(&format!("f{number}"))).starts_with("000000000000000000"));
        }
        let left: Vec<_> = fs::read_dir(&root)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left.len(), FILES, "{left:?}");
        for snapshot in space
            .list()
            .unwrap()
            .into_iter()
            .filter(|one| one.automatic)
        {
            space.remove(snapshot.name.as_str()).unwrap();
        }
    }
    let packs = fs::read_dir(pair.folder().join("store/packs")).unwrap();
    assert!(packs.count() > 0);
}

fn killed_after(folder: &Path, time: Duration) {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "snapshot::crash_child", "--nocapture"])
        .env(CRASH, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(
        lines.any(|line| line.unwrap().contains("ready")),
        "the child never began"
    );
    thread::sleep(time);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The work inside the namespace; without the variable that the parent sets there is none.
#[test]
fn full_child() {
    let Some(folder) = env::var_os(FULL) else {
        return;
    };
    let folder = PathBuf::from(folder);
    fs::create_dir(folder.join("small")).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs"])
        .arg(folder.join("small"))
        .status();
    assert!(mounted.unwrap().success());
    let store = Store::open(folder.join("small/store")).unwrap();
    let (space, root) = (store.space("one").unwrap(), folder.join("host"));
    write(root.join("a"), "fits");
    space.snapshot(&root, "fits", &Options::default()).unwrap();
    // Not to be compressed.
    let mut word = 1u64;
    let noise: Vec<u8> = (0..400_000)
        .flat_map(|_| {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            word.to_be_bytes()
        })
        .collect();
    write(root.join("b"), noise);
    let error = space
        .snapshot(&root, "does-not", &Options::default())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
    let packs = fs::read_dir(folder.join("small/store/packs")).unwrap();
    assert_eq!(packs.count(), 1, "nothing is left of it");
    assert_eq!(space.list().unwrap().len(), 1);
    // A restore does not begin without the snapshot before it.
    write(root.join("a"), "changed");
    let error = space
        .restore(&root, ("fits", &[]), &Options::default())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
    assert_eq!(read(root.join("a")), "changed");
    fs::remove_file(root.join("b")).unwrap();
    let restored = space
        .restore(&root, ("fits", &[]), &Options::default())
        .unwrap();
    assert_eq!(
        (restored.done.len(), read(root.join("a"))),
        (1, "fits".into())
    );
    println!("all was seen");
}

#[cfg(target_os = "linux")]
#[test]
fn s45_a_full_disk_leaves_store_and_folder_as_they_were() {
    let pair = Pair::new();
    let done = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount"])
        .arg(env::current_exe().unwrap())
        .args(["--exact", "snapshot::full_child", "--nocapture"])
        .env(FULL, pair.folder())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&done.stdout);
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(told.contains("all was seen"), "{told}{errors}");
}
