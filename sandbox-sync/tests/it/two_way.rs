//! What a well-behaved pair does.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::Duration;

use sandbox_sync::{ErrorKind, Event, Options, Report, Session};

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

#[tokio::test]
async fn s02_a_conflict_keeps_both_until_it_is_resolved() {
    let pair = Pair::new();
    write(pair.host("a"), "0");
    let session = pair.start().await;
    write(pair.host("a"), "host");
    write(pair.guest("a"), "guest");
    for _ in 0..2 {
        let report = session.flush().await.unwrap();
        assert_eq!(names(&report.conflicts, |c| &c.path), ["a"]);
        assert_eq!(
            (read(pair.host("a")), read(pair.guest("a"))),
            ("host".into(), "guest".into())
        );
    }
    fs::remove_file(pair.guest("a")).unwrap();
    assert_clean(&session.flush().await.unwrap());
    assert_eq!(read(pair.guest("a")), "host");
}

#[tokio::test]
async fn s06_types_change_in_place() {
    let pair = Pair::new();
    write(pair.host("to-folder"), "x");
    write(pair.host("to-file/a/b"), "x");
    write(pair.host("to-link"), "x");
    let session = pair.start().await;
    fs::remove_file(pair.guest("to-folder")).unwrap();
    write(pair.guest("to-folder/in"), "y");
    fs::remove_dir_all(pair.guest("to-file")).unwrap();
    write(pair.guest("to-file"), "y");
    fs::remove_file(pair.guest("to-link")).unwrap();
    symlink("to-file", pair.guest("to-link")).unwrap();
    assert_clean(&session.flush().await.unwrap());
    assert_eq!(read(pair.host("to-folder/in")), "y");
    assert_eq!(read(pair.host("to-file")), "y");
    assert!(pair.host("to-link").is_symlink());
    assert!(session.flush().await.unwrap().is_quiet());
}

#[tokio::test]
async fn s09_a_swap_and_a_rename_of_a_folder() {
    let pair = Pair::new();
    write(pair.host("a"), "1");
    write(pair.host("b"), "2");
    write(pair.host("dir/x"), "3");
    let session = pair.start().await;
    fs::rename(pair.guest("a"), pair.guest("t")).unwrap();
    fs::rename(pair.guest("b"), pair.guest("a")).unwrap();
    fs::rename(pair.guest("t"), pair.guest("b")).unwrap();
    fs::rename(pair.guest("dir"), pair.guest("moved")).unwrap();
    assert_clean(&session.flush().await.unwrap());
    assert_eq!(
        (read(pair.host("a")), read(pair.host("b"))),
        ("2".into(), "1".into())
    );
    assert_eq!(read(pair.host("moved/x")), "3");
    assert!(!pair.host("dir").exists());
}

#[tokio::test]
async fn s25_an_edit_that_leaves_size_and_time_alone_is_seen() {
    let pair = Pair::new();
    write(pair.host("a"), "one");
    let session = pair.start().await;
    let before = fs::metadata(pair.host("a")).unwrap().modified().unwrap();
    write(pair.host("a"), "two");
    fs::File::options()
        .write(true)
        .open(pair.host("a"))
        .unwrap()
        .set_modified(before)
        .unwrap();
    assert_clean(&session.flush().await.unwrap());
    assert_eq!(read(pair.guest("a")), "two");
}

#[tokio::test]
async fn s27_a_touch_moves_nothing() {
    let pair = Pair::new();
    write(pair.host("a"), "one");
    let session = pair.start().await;
    let file = fs::File::options()
        .write(true)
        .open(pair.host("a"))
        .unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    assert!(session.flush().await.unwrap().is_quiet());
}

#[tokio::test]
async fn modes_of_the_host_survive_a_replacement() {
    let pair = Pair::new();
    write(pair.host("private"), "one");
    fs::set_permissions(pair.host("private"), PermissionsExt::from_mode(0o600)).unwrap();
    let session = pair.start().await;
    write(pair.guest("private"), "two");
    fs::set_permissions(pair.guest("private"), PermissionsExt::from_mode(0o755)).unwrap();
    assert_clean(&session.flush().await.unwrap());
    assert_eq!(read(pair.host("private")), "two");
    assert_eq!(
        fs::metadata(pair.host("private"))
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o700
    );
}

#[tokio::test]
async fn s18_lost_history_unites_the_sides() {
    let pair = Pair::new();
    write(pair.host("same"), "1");
    write(pair.host("both"), "1");
    drop(pair.start().await.stop().await.unwrap());
    fs::write(pair.outside("base"), "garbage").unwrap();
    write(pair.host("mine"), "1");
    write(pair.guest("theirs"), "1");
    write(pair.guest("both"), "2");
    fs::remove_file(pair.guest("same")).unwrap();
    let session = pair.start().await;
    assert_eq!(names(&session.initial().conflicts, |c| &c.path), ["both"]);
    assert_eq!(read(pair.guest("same")), "1");
    assert_eq!(read(pair.guest("mine")), "1");
    assert_eq!(read(pair.host("theirs")), "1");
}

#[tokio::test]
async fn history_carries_a_deletion_into_the_next_session() {
    let pair = Pair::new();
    write(pair.host("a"), "1");
    write(pair.host("b"), "1");
    drop(pair.start().await.stop().await.unwrap());
    fs::remove_file(pair.host("a")).unwrap();
    let session = pair.start().await;
    assert!(!pair.guest("a").exists());
    assert_eq!(names(&session.initial().to_guest, |c| &c.path), ["a"]);
}

#[tokio::test]
async fn two_thousand_files_and_large_ones_arrive() {
    let pair = Pair::new();
    for number in 0..2000 {
        write(
            pair.host(&format!("d{}/f{number}", number % 40)),
            number.to_string(),
        );
    }
    let large: Vec<u8> = (0..5_000_000u32).map(|n| (n % 251) as u8).collect();
    write(pair.guest("from/guest"), &large);
    write(pair.host("from-host"), &large);
    write(pair.host("nothing"), "");
    let session = pair.start().await;
    assert_clean(session.initial());
    assert_eq!(read(pair.guest("d39/f1999")), "1999");
    assert_eq!(fs::read(pair.host("from/guest")).unwrap(), large);
    assert_eq!(fs::read(pair.guest("from-host")).unwrap(), large);
    assert_eq!(session.initial().to_guest.len(), Report::MOST_KEPT);
    assert_eq!(session.initial().more_to_guest, 1942);
    assert!(session.flush().await.unwrap().is_quiet());
}

#[tokio::test]
async fn changes_arrive_by_themselves() {
    let pair = Pair::new();
    write(pair.host("a"), "1");
    let options = pair
        .options()
        .with_timing(Duration::from_millis(20), Duration::from_secs(3600));
    let session = pair.start_with(options).await.unwrap();
    let mut events = session.events();
    write(pair.guest("deep/down/here"), "2");
    until(&mut events, || pair.host("deep/down/here").exists()).await;
    write(pair.host("a"), "3");
    until(&mut events, || read(pair.guest("a")) == "3").await;
}

#[tokio::test]
async fn who_goes_on_writing_is_looked_at_now_and_then() {
    let pair = Pair::new();
    let options = pair
        .options()
        .with_timing(Duration::from_millis(100), Duration::from_secs(3600));
    let session = pair.start_with(options).await.unwrap();
    let mut events = session.events();
    for number in 0..150 {
        write(pair.host(&number.to_string()), "1");
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    // It is never quiet for long enough, yet the first ones did not wait for the last.
    assert!(pair.guest("0").exists());
    let mut looks = 0;
    until(&mut events, || {
        looks += 1;
        pair.guest("149").exists()
    })
    .await;
    assert!(looks < 8, "{looks}");
}

/// Waits for reports until `done`; the bound is far above anything that is not a hang.
async fn until(
    events: &mut tokio::sync::broadcast::Receiver<Event>,
    mut done: impl FnMut() -> bool,
) {
    while !done() {
        let event = tokio::time::timeout(Duration::from_secs(60), events.recv()).await;
        drop(event.expect("a change was never noticed").unwrap());
    }
}

#[tokio::test]
async fn a_guest_that_goes_away_ends_the_session() {
    let pair = Pair::new();
    write(pair.host("a"), "1");
    let (session, guest) = pair.start_both(pair.options()).await;
    let session = session.unwrap();
    let mut events = session.events();
    guest.abort();
    while !matches!(events.recv().await, Ok(Event::Ended)) {}
    let error = session.flush().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disconnected);
    assert_eq!(read(pair.host("a")), "1");
}

#[tokio::test]
async fn an_unusable_root_is_an_error_that_says_so() {
    let pair = Pair::new();
    let (ours, _theirs) = tokio::io::duplex(1024);
    let missing = pair.outside("missing");
    let started = Session::start(&missing, Box::new(ours), Options::default()).await;
    assert_eq!(started.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn s46_a_folder_that_cannot_be_written_is_a_problem_of_its_own() {
    let pair = Pair::new();
    write(pair.host("other"), "1");
    write(pair.host("d/keep"), "1");
    let session = pair.start().await;
    // Root may write everywhere, so what stands in the way is something that nobody can write through.
    write(pair.host("d/keep"), "2");
    fs::remove_dir_all(pair.guest("d")).unwrap();
    symlink("/nowhere", pair.guest("d")).unwrap();
    write(pair.host("other"), "2");
    drop(session.flush().await.unwrap());
    assert_eq!(read(pair.guest("other")), "2");
    assert_eq!(read(pair.host("d/keep")), "2");
}

#[tokio::test]
async fn s47_s48_staging_lies_where_it_was_asked_for() {
    let pair = Pair::new();
    write(pair.host("a"), "1");
    let options = pair.options().with_staging(pair.outside("staging"));
    let session = pair.start_with(options).await.unwrap();
    // In the tree it would be seen: nobody can make a folder of that name while a file is there.
    write(pair.host(".sandbox-sync-staging"), "in the way");
    write(pair.guest("a"), "2");
    assert_clean(&session.flush().await.unwrap());
    assert_eq!(read(pair.host("a")), "2");
    assert_eq!(fs::read_dir(pair.outside("staging")).unwrap().count(), 0);
}

#[tokio::test]
async fn s16_what_a_crash_left_is_cleared_when_the_next_session_starts() {
    let pair = Pair::new();
    write(pair.host("a"), "1");
    drop(pair.start().await.stop().await.unwrap());
    write(pair.host(".sandbox-sync-staging/part-x"), "torn");
    write(pair.guest(".sandbox-sync-staging/part-x"), "torn");
    drop(pair.start().await.stop().await.unwrap());
    assert!(!pair.host(".sandbox-sync-staging").exists());
    assert!(!pair.guest(".sandbox-sync-staging").exists());
}

#[tokio::test]
async fn files_in_the_guest_belong_to_whom_they_should() {
    let pair = Pair::new();
    write(pair.host("d/a"), "1");
    symlink("d", pair.host("l")).unwrap();
    let here = fs::metadata(pair.host("")).unwrap();
    let options = pair.options().with_guest_owner(here.uid(), here.gid());
    drop(pair.start_with(options).await.unwrap());
    for path in ["", "d", "d/a", "l"] {
        let facts = fs::symlink_metadata(pair.guest(path)).unwrap();
        assert_eq!(
            (facts.uid(), facts.gid()),
            (here.uid(), here.gid()),
            "{path}"
        );
    }
}
