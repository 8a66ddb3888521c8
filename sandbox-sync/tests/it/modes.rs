//! The modes, between two folders.

use std::fs;

use sandbox_sync::{ErrorKind, Halt, HeldReason, Lists, Mode, Resolution};

use crate::pair::{Pair, assert_clean, names, read, write};

#[tokio::test]
async fn in_review_nothing_reaches_the_host_by_itself() {
    let pair = Pair::new();
    write(pair.host("a"), "host");
    write(pair.host("gone"), "host");
    let options = pair.options().with_mode(Mode::Review);
    let session = pair.start_with(options).await.unwrap();
    write(pair.guest("a"), "guest");
    write(pair.guest("new/n"), "guest");
    fs::remove_file(pair.guest("gone")).unwrap();
    write(pair.host("b"), "host");
    let report = session.flush().await.unwrap();
    assert_eq!(names(&report.to_guest, |change| &change.path), ["b"]);
    assert!(report.to_host.is_empty(), "{report:#?}");
    let held = names(&report.held, |held| &held.path);
    assert_eq!(held, ["a", "gone", "new", "new/n"]);
    let reason = |reason| move |held: &sandbox_sync::Held| held.reason == reason;
    assert!(report.held.iter().all(reason(HeldReason::Review)));
    assert_eq!(
        (read(pair.host("a")), read(pair.host("gone"))),
        ("host".into(), "host".into())
    );
    assert!(!pair.host("new").exists());
}

#[tokio::test]
async fn i1_what_the_host_overrules_is_kept_on_both_sides() {
    let pair = Pair::new();
    write(pair.host("a"), "before");
    let options = pair.options().with_mode(Mode::TwoWayHostWins);
    let session = pair.start_with(options).await.unwrap();
    write(pair.host("a"), "host");
    write(pair.guest("a"), "guest");
    let report = session.flush().await.unwrap();
    assert_eq!(names(&report.overruled, |one| &one.path), ["a"]);
    assert_clean(&report);
    let report = session.flush().await.unwrap();
    let [copy] = &names(&report.to_host, |change| &change.path)[..] else {
        panic!("{report:#?}");
    };
    assert!(copy.starts_with("a.overruled-"), "{copy}");
    for side in [pair.host(""), pair.guest("")] {
        assert_eq!(read(side.join("a")), "host");
        assert_eq!(read(side.join(copy)), "guest");
    }
    assert!(session.flush().await.unwrap().is_quiet());
}

#[tokio::test]
async fn only_the_output_folder_comes_out_of_a_read_only_workspace() {
    let pair = Pair::new();
    write(pair.host("a"), "host");
    write(pair.host("out/earlier"), "host");
    let lists = Lists::default().with_output("/out");
    let options = pair.options().with_mode(Mode::ReadOnly).with_lists(lists);
    let session = pair.start_with(options).await.unwrap();
    assert!(!pair.guest("out").exists(), "the host's results stay out");
    write(pair.guest("a"), "guest");
    write(pair.guest("out/result"), "guest");
    write(pair.guest("out/.envrc"), "guest");
    let report = session.flush().await.unwrap();
    assert_eq!(
        names(&report.to_host, |change| &change.path),
        ["out/result"]
    );
    assert_eq!(names(&report.held, |held| &held.path), ["a", "out/.envrc"]);
    assert_eq!(read(pair.host("a")), "host");
    assert_eq!(read(pair.host("out/earlier")), "host");
    assert_eq!(read(pair.host("out/result")), "guest");
}

#[tokio::test]
async fn a_paused_session_waits_and_says_so() {
    let pair = Pair::new();
    write(pair.host("a"), "0");
    write(pair.host("b"), "0");
    let session = pair.start().await;
    session.set_paused(true).await.unwrap();
    write(pair.host("a"), "1");
    let refused = session.flush().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert_eq!(read(pair.guest("a")), "0");
    assert!(session.standing().paused);
    session.set_paused(false).await.unwrap();
    drop(session.flush().await.unwrap());
    assert_eq!(read(pair.guest("a")), "1");

    fs::remove_file(pair.guest("a")).unwrap();
    fs::remove_file(pair.guest("b")).unwrap();
    session.flush().await.unwrap_err();
    let halted = session.standing().halted;
    assert!(matches!(halted, Some(Halt::Emptied { .. })), "{halted:?}");
    drop(session.resume(Resolution::Restore).await.unwrap());
    assert!(session.standing().halted.is_none());
}
