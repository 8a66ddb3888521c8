//! Several sessions on one of the host's folders: one that writes by itself, and others that write what was chosen.

use std::fs;

use sandbox_sync::{ErrorKind, Mode, Session};

use crate::pair::{Pair, assert_clean, read, write};

/// Starts a session of another guest on the same folder.
async fn start_review(pair: &Pair, name: &str) -> Session {
    let options = pair
        .options()
        .with_mode(Mode::Review)
        .with_guest_root(pair.folder().join(name))
        .with_base_file(pair.outside(&format!("{name}-base")))
        .with_undo(pair.outside(&format!("{name}-undo")));
    pair.start_with(options).await.unwrap()
}

async fn start_reviews(pair: &Pair) -> [Session; 2] {
    [
        start_review(pair, "one").await,
        start_review(pair, "two").await,
    ]
}

#[tokio::test]
async fn who_reviews_works_beside_who_synchronizes() {
    let pair = Pair::new();
    write(pair.host("a"), "0");
    let own = pair.start().await;
    let forks = start_reviews(&pair).await;
    for (name, session) in ["one", "two"].into_iter().zip(&forks) {
        write(pair.folder().join(name).join("a"), name);
        write(pair.folder().join(name).join(name), name);
        drop(session.flush().await.unwrap());
    }
    assert_eq!(read(pair.host("a")), "0");

    let one = forks[0].changes().await.unwrap();
    assert!(forks[0].apply(&one).await.unwrap().refused.is_empty());
    assert_clean(&own.flush().await.unwrap());
    assert_eq!(
        (read(pair.guest("a")), read(pair.guest("one"))),
        ("one".into(), "one".into())
    );

    // What the other one did to the same file is a conflict now; what it did beside it is not.
    let two = forks[1].changes().await.unwrap();
    let outcome = forks[1].apply(&two.only("two")).await.unwrap();
    assert!(outcome.refused.is_empty(), "{outcome:?}");
    assert_eq!(
        (read(pair.host("a")), read(pair.host("two"))),
        ("one".into(), "two".into())
    );
    assert_eq!(read(pair.folder().join("two/a")), "two");

    // Nobody else may write by itself, and only who did stands in the way of that.
    let error = pair.start_with(pair.options()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    drop(own.stop().await.unwrap());
    drop(pair.start().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn applies_wait_for_each_other() {
    const FILES: usize = 300;
    let pair = Pair::new();
    write(pair.host("a"), "0");
    let own = pair.start().await;
    let forks = start_reviews(&pair).await;
    let fill = |folder: &str| {
        for file in 0..FILES {
            let path = pair.folder().join(folder).join(format!("{folder}-{file}"));
            write(path, format!("{folder} {file}"));
        }
    };
    ["guest", "one", "two"].into_iter().for_each(fill);
    let apply = async |session: &Session| {
        let changes = session.changes().await.unwrap();
        let outcome = session.apply(&changes).await.unwrap();
        assert!(outcome.refused.is_empty(), "{:?}", outcome.refused);
    };
    let (report, (), ()) = tokio::join!(own.flush(), apply(&forks[0]), apply(&forks[1]));
    drop(report.unwrap());
    for folder in ["guest", "one", "two"] {
        for file in 0..FILES {
            let name = format!("{folder}-{file}");
            assert_eq!(read(pair.host(&name)), format!("{folder} {file}"));
        }
    }
    let names = fs::read_dir(pair.host("")).unwrap().flatten();
    let names = names.map(|entry| entry.file_name().into_string().unwrap());
    let left: Vec<_> = names.filter(|name| name.starts_with('.')).collect();
    assert!(left.is_empty(), "{left:?}");
}
