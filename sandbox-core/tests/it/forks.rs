//! Copies of running sandboxes.

use std::collections::BTreeSet;
use std::fs;

use sandbox_core::net::credentials::{Credential, Grant, Place as Where, Secret, Source};
use sandbox_core::sync::Mode;
use sandbox_core::{ErrorKind, Lifetime, NetworkPolicy, Sandbox, Started, State, Workspace};

use crate::place::{Place, count_microvm, promptly, root, sh};

/// What no two machines may have in common, each as one line.
const IDENTITY: &str = "hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id; \
    head -c 16 /dev/urandom | base64; cat /proc/sys/kernel/random/uuid";

#[tokio::test(flavor = "multi_thread")]
async fn r16_copies_go_on_where_their_origin_was_and_share_nothing_but_that() {
    let place = Place::new();
    let project = place.project(&[("agreed", "one\n")]);
    let inside = project.to_str().unwrap();
    let builder = place.microvm().name("lab");
    let builder = builder.workspace(Workspace::sync(&project));
    let builder = builder.secret(credential("sold", "the first value"));
    let origin = builder.create().await.unwrap();
    // A process with something in its memory that no file has.
    let mut keeper = origin.command("sh");
    let keeper = keeper.arg("-c").arg(
        "told=in-memory; while :; do [ -e /tmp/ask ] && echo $told $(hostname) >/tmp/new && mv /tmp/new /tmp/answer; sleep 0.1; done",
    );
    let _keeper = keeper.spawn().await.unwrap();
    sh(
        &origin,
        &format!("echo kept >~/file; echo two >{inside}/agreed"),
    )
    .await;
    root(&origin, "cat /proc/sys/kernel/random/boot_id").await;
    origin
        .replace_secret("sold", Secret::new("the second value").unwrap())
        .await
        .unwrap();

    let copies = promptly(origin.fork(3)).await.unwrap();
    (0..copies.len()).for_each(|_| count_microvm());
    let names: Vec<_> = copies.iter().map(Sandbox::name).collect();
    assert_eq!(names, ["lab-1", "lab-2", "lab-3"]);
    let mut all = vec![&origin];
    all.extend(&copies);
    let mut seen = BTreeSet::new();
    for sandbox in &all {
        let own = sh(sandbox, IDENTITY).await;
        assert_eq!(own.lines().count(), 5, "{own}");
        assert_eq!(own.lines().next(), Some(sandbox.name()));
        for line in own.lines() {
            assert!(seen.insert(line.to_owned()), "{line} is twice there");
        }
        let placeholder = sh(sandbox, "echo $SOLD").await;
        assert!(seen.insert(placeholder), "a placeholder is shared");
        // A copy is not behind, nor ahead.
        let now: i64 = sh(sandbox, "date +%s").await.parse().unwrap();
        let here = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        assert!((now - i64::try_from(here.unwrap().as_secs()).unwrap()).abs() < 30);
        assert_eq!(sh(sandbox, "cat ~/file").await, "kept");
        sh(
            sandbox,
            "touch /tmp/ask; until [ -s /tmp/answer ]; do sleep 0.1; done",
        )
        .await;
        let answer = format!("in-memory {}", sandbox.name());
        assert_eq!(sh(sandbox, "cat /tmp/answer").await, answer);
        let description = sandbox.describe().await.unwrap();
        assert_eq!(description.lifetime, Lifetime::Attached);
        assert_eq!(description.state, State::Running);
    }
    let machine = copies[0].describe().await.unwrap().machine.unwrap();
    assert_eq!(machine.started, Started::Resumed);

    // What is done in one is done in no other, on its disk and in its memory.
    sh(&copies[0], "echo own >~/file; echo own >/dev/shm/own").await;
    for other in [&origin, &copies[1]] {
        let seen = sh(other, "cat ~/file; ls /dev/shm").await;
        assert_eq!(seen, "kept");
    }

    // Of the folder outside there is one: a copy's work comes out when it is applied.
    let modes = copies[0].sync_status().await.unwrap();
    assert_eq!(modes[0].mode, Mode::Review);
    for (copy, text) in [(&copies[0], "first"), (&copies[1], "second")] {
        sh(copy, &format!("echo {text} >{inside}/{text}")).await;
        copy.sync().await.unwrap();
    }
    assert!(!project.join("first").exists());
    let waiting = copies[1].changes().await.unwrap();
    let applied = copies[1].apply(&waiting).await.unwrap();
    assert!(
        applied.iter().all(|one| one.refused.is_empty()),
        "{applied:?}"
    );
    assert_eq!(
        fs::read_to_string(project.join("second")).unwrap(),
        "second\n"
    );
    assert_eq!(fs::read_to_string(project.join("agreed")).unwrap(), "two\n");
    assert!(!project.join("first").exists());
    for sandbox in [&origin, &copies[0]] {
        sandbox.sync().await.unwrap();
        assert_eq!(sh(sandbox, &format!("cat {inside}/second")).await, "second");
    }

    // Each has rules of its own from now on; a copy is copied as well, and outlives its origin.
    let open = NetworkPolicy::deny().allow("127.0.0.1/32:4444").unwrap();
    copies[2].set_network(open).await.unwrap();
    let allows = async |sandbox: &Sandbox| {
        let checked = sandbox.check_network("127.0.0.1:4444", None).await.unwrap();
        checked.allowed
    };
    assert!(!allows(&origin).await && allows(&copies[2]).await);
    let taken = copies[0]
        .fork_named(["of-a-copy", "lab-2"])
        .await
        .unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Conflict, "{taken}");
    let of_copy = promptly(copies[2].fork_named(["of-a-copy"])).await.unwrap();
    count_microvm();
    promptly(origin.remove()).await.unwrap();
    drop(copies);
    assert_eq!(
        sh(&of_copy[0], "hostname; cat ~/file").await,
        "of-a-copy\nkept"
    );
    assert!(allows(&of_copy[0]).await);
    drop(of_copy);
    place.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_a_detached_sandbox_have_supervisors_of_their_own() {
    let place = Place::new();
    let project = place.project(&[("a", "0")]);
    let builder = place.microvm().name("base").detached();
    let origin = builder.workspace(Workspace::sync(&project)).create();
    let origin = origin.await.unwrap();
    assert!(origin.fork(0).await.unwrap().is_empty());
    let wrong = origin.fork_named(["No such name"]).await.unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::Invalid);
    let twice = promptly(origin.fork_named(["same", "same"]))
        .await
        .unwrap_err();
    assert_eq!(twice.kind(), ErrorKind::Conflict, "{twice}");
    origin.pause().await.unwrap();
    assert_eq!(
        origin.fork(1).await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
    origin.resume().await.unwrap();

    let copies = promptly(origin.fork(2)).await.unwrap();
    (0..copies.len() + 1).for_each(|_| count_microvm());
    drop(copies);
    promptly(origin.remove()).await.unwrap();
    let listed = Sandbox::list_in(place.dirs.clone()).await.unwrap();
    let names: Vec<_> = listed.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["base-1", "base-2"]);
    let [one, two] = ["base-1", "base-2"].map(|name| Sandbox::connect_in(place.dirs.clone(), name));
    let (one, two) = (one.await.unwrap(), two.await.unwrap());
    assert_eq!(sh(&one, "hostname").await, "base-1");
    // It is a sandbox like any other: stopped and started again, from its own disk.
    root(&one, "echo stays >/kept-file").await;
    promptly(one.stop()).await.unwrap();
    promptly(one.start()).await.unwrap();
    assert_eq!(sh(&one, "cat /kept-file; hostname").await, "stays\nbase-1");
    assert_eq!(
        sh(&two, "cat /kept-file 2>/dev/null || echo none").await,
        "none"
    );
    for sandbox in [one, two] {
        promptly(sandbox.remove()).await.unwrap();
    }
    place.assert_empty().await;
}

#[tokio::test]
async fn what_does_not_run_or_belongs_to_others_is_not_copied() {
    let place = Place::new();
    let own = place.microvm().name("mine").create().await.unwrap();
    let other = Sandbox::connect_in(place.dirs.clone(), "mine")
        .await
        .unwrap();
    let refused = other.fork(1).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict, "{refused}");
    promptly(own.stop()).await.unwrap();
    let refused = own.fork(1).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Disconnected, "{refused}");
    drop(own);
    place.assert_empty().await;
}

fn credential(name: &str, value: &str) -> Credential {
    let grant = Grant::new("sold.example", [Where::Bearer]);
    let value = Source::Value(Secret::new(value).unwrap());
    Credential::new(name, value)
        .grant(grant.unwrap())
        .variable(name.to_uppercase())
}
