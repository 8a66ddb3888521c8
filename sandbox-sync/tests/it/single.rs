//! Sessions about one file of a folder.

use std::fs;

use sandbox_sync::{ErrorKind, Lists, Session};

use crate::pair::{Pair, assert_clean, read, write};

async fn start(pair: &Pair, name: &str) -> Session {
    let options = pair
        .options()
        .with_lists(Lists::default().with_only(name))
        .with_base_file(pair.outside(&format!("base-{name}")));
    pair.start_with(options).await.unwrap()
}

#[tokio::test]
async fn only_the_one_file_flows_and_others_have_sessions_of_their_own() {
    let pair = Pair::new();
    for name in ["a", "b", "folder/a"] {
        write(pair.host(name), format!("host {name}"));
    }
    write(pair.guest("c"), "guest c");
    let a = start(&pair, "a").await;
    assert_eq!(read(pair.guest("a")), "host a");
    assert!(!pair.guest("b").exists() && !pair.guest("folder").exists());
    let b = start(&pair, "b").await;
    write(pair.guest("a"), "guest a");
    write(pair.host("b"), "host b again");
    assert_clean(&a.flush().await.unwrap());
    assert_eq!(read(pair.host("a")), "guest a");
    assert_eq!(read(pair.guest("b")), "host b");
    assert_clean(&b.flush().await.unwrap());
    assert_eq!(read(pair.guest("b")), "host b again");
    assert!(!pair.host("c").exists() && !pair.guest("folder").exists());
    assert_eq!(read(pair.guest("c")), "guest c");

    // A folder's session beside them has the lock of its root for itself.
    let folder = pair.options().with_base_file(pair.outside("base"));
    let whole = pair.start_with(folder.clone()).await.unwrap();
    assert_eq!(read(pair.guest("folder/a")), "host folder/a");
    let again = pair.start_with(folder).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Conflict);
    for session in [a, b, whole] {
        drop(session.stop().await.unwrap());
    }
}

#[tokio::test]
async fn the_one_file_goes_and_comes_back_and_nothing_beside_it() {
    let pair = Pair::new();
    write(pair.host("a"), "0");
    write(pair.host("b"), "0");
    let session = start(&pair, "a").await;
    fs::remove_file(pair.guest("a")).unwrap();
    assert_clean(&session.flush().await.unwrap());
    assert!(!pair.host("a").exists());
    write(pair.host("a"), "1");
    assert_clean(&session.flush().await.unwrap());
    assert_eq!(
        (read(pair.guest("a")), read(pair.host("b"))),
        ("1".into(), "0".into())
    );
}
