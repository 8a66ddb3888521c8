//! Sandboxes that go with their handle.

use std::time::Duration;

use sandbox_core::{ErrorKind, Lifetime, Sandbox, State};

use crate::place::{Place, promptly, root, sh};

#[tokio::test(flavor = "multi_thread")]
async fn an_attached_sandbox_is_used_from_elsewhere_and_goes_with_its_handle() {
    let place = Place::new();
    let own = place.microvm().name("mine").create().await.unwrap();
    let other = Sandbox::connect_in(place.dirs.clone(), "mine")
        .await
        .unwrap();
    assert_eq!(sh(&other, "echo heard").await, "heard");
    let listed = Sandbox::list_in(place.dirs.clone()).await.unwrap();
    assert_eq!(
        (listed[0].state, listed[0].lifetime),
        (State::Running, Lifetime::Attached)
    );

    // A stop from elsewhere: the owner stays, with the disk.
    root(&own, "echo stays > /kept-file").await;
    promptly(other.stop()).await.unwrap();
    assert_eq!(own.describe().await.unwrap().state, State::Stopped);
    let refused = own.command("true").status().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Disconnected);
    assert!(refused.to_string().contains("start it"), "{refused}");
    let refused = other.start().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict, "only its owner can");

    // A start whose future is dropped goes on, and costs nothing.
    drop(place.microvm());
    tokio::select! {
        biased;
        ended = own.start() => panic!("it came to its end at once: {ended:?}"),
        () = std::future::ready(()) => {}
    }
    // Waits its turn.
    let again = promptly(own.start()).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Conflict, "{again}");
    assert_eq!(sh(&other, "cat /kept-file").await, "stays");

    // Dropped in the middle of a command: everything goes, and the name is free at once.
    let mut child = own.command("sleep").arg("1000").spawn().await.unwrap();
    drop(own);
    assert!(
        Sandbox::list_in(place.dirs.clone())
            .await
            .unwrap()
            .is_empty()
    );
    let ended = promptly(child.wait()).await.unwrap_err();
    assert_eq!(ended.kind(), ErrorKind::Disconnected);
    place.assert_empty().await;
    assert_eq!(
        other.describe().await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_that_is_dropped_leaves_nothing_and_the_name_is_free() {
    let place = Place::new();
    // At any moment; one that has come through until then goes with its handle.
    let cut_off = async |moment| {
        let create = place.microvm().name("mine").create();
        drop(tokio::time::timeout(Duration::from_millis(moment), create).await);
    };
    for moment in [0, 1, 2, 4, 8, 16, 50, 300] {
        cut_off(moment).await;
        place.assert_empty().await;
    }
    cut_off(150).await;
    // The one before may still be dying: it must not take this one along.
    let next = place.microvm().name("mine").create().await.unwrap();
    assert_eq!(sh(&next, "echo fine").await, "fine");
    promptly(next.remove()).await.unwrap();
    place.assert_empty().await;
}
