//! Snapshots of whole sandboxes, and the way back to them.

use std::fs;
use std::path::Path;

use sandbox_core::{ErrorKind, Outside, Sandbox, Started, Workspace};

use crate::place::{Place, promptly, sh};

/// Counts in its own memory, without anybody who waits for it.
const COUNTER: &str = "setsid sh -c 'n=0; while :; do n=$((n+1)); echo $n > /dev/shm/c.new; \
    mv /dev/shm/c.new /dev/shm/c; sleep 0.05; done' </dev/null >/dev/null 2>&1 & \
    until [ -s /dev/shm/c ]; do sleep 0.05; done";

async fn count(sandbox: &Sandbox) -> u64 {
    sh(sandbox, "cat /dev/shm/c").await.parse().unwrap()
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn r14_a_sandbox_goes_back_and_the_folder_outside_only_when_told() {
    let place = Place::new();
    let project = place.folder.path().join("project");
    fs::create_dir(&project).unwrap();
    write(&project.join("agreed"), "one");
    let inside = project.to_str().unwrap();
    let builder = place.microvm().workspace(Workspace::sync(&project));
    let sandbox = builder.create().await.unwrap();
    // What nobody waits for lives as long as the session of a command that is still there.
    let mut keeper = sandbox.command("sh");
    let keeper = keeper.arg("-c").arg(format!("{COUNTER}; exec sleep 1000"));
    let mut keeper = keeper.spawn().await.unwrap();
    while sh(&sandbox, "cat /dev/shm/c 2>/dev/null || echo")
        .await
        .is_empty()
    {}
    sh(
        &sandbox,
        &format!("echo made >{inside}/made; echo then >~/then"),
    )
    .await;
    sandbox.sync().await.unwrap();
    let taken = sandbox.snapshot("before").await.unwrap();
    println!("{taken:?}");
    assert_eq!(sandbox.snapshots().await.unwrap(), [taken]);
    let again = sandbox.snapshot("before").await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Conflict);
    let counted = count(&sandbox).await;

    sh(
        &sandbox,
        &format!("rm ~/then {inside}/made; echo two >{inside}/agreed; echo x >~/x"),
    )
    .await;
    sandbox.sync().await.unwrap();
    write(&project.join("outside"), "later");
    assert!(!project.join("made").exists());
    let missing = sandbox.rollback("never", Outside::Keep).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);

    sandbox.rollback("before", Outside::Keep).await.unwrap();
    let machine = sandbox.describe().await.unwrap().machine.unwrap();
    assert_eq!(machine.started, Started::Resumed);
    assert_eq!(
        sh(&sandbox, "cat ~/then; ls ~/x 2>/dev/null || echo gone").await,
        "then\ngone"
    );
    let (one, other) = (count(&sandbox).await, count(&sandbox).await);
    assert!(
        one <= other && other < counted + 2000,
        "{counted}, {one}, {other}"
    );
    // Outside nothing was touched, and what was done there is inside again.
    sandbox.sync().await.unwrap();
    assert_eq!(read(&project.join("agreed")), "two\n");
    assert!(!project.join("made").exists());
    let list = format!("cat {inside}/agreed; ls {inside}");
    assert_eq!(sh(&sandbox, &list).await, "two\nagreed\noutside");
    let ended = promptly(keeper.wait()).await.unwrap_err();
    assert_eq!(ended.kind(), ErrorKind::RolledBack, "{ended}");

    sandbox.rollback("before", Outside::Restore).await.unwrap();
    sandbox.sync().await.unwrap();
    assert_eq!(read(&project.join("agreed")), "one");
    assert_eq!(read(&project.join("made")), "made\n");
    assert!(!project.join("outside").exists());
    assert_eq!(sh(&sandbox, &list).await, "oneagreed\nmade");
    // What was there is kept.
    let kept = sandbox.workspace_snapshots().await.unwrap();
    assert!(kept.iter().any(|one| one.automatic), "{kept:?}");
    // It works on as before, and can be saved again.
    sh(&sandbox, &format!("echo after >{inside}/after")).await;
    sandbox.sync().await.unwrap();
    assert_eq!(read(&project.join("after")), "after\n");
    sandbox.snapshot("second").await.unwrap();
    sandbox.remove_snapshot("before").await.unwrap();
    let names: Vec<_> = sandbox.snapshots().await.unwrap();
    assert_eq!(names.len(), 1);
    sandbox.rollback("second", Outside::Keep).await.unwrap();
    assert_eq!(sh(&sandbox, "cat ~/then").await, "then");
    sandbox.remove().await.unwrap();
    place.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r15_a_snapshot_that_cannot_be_used_leaves_the_sandbox_as_it_is() {
    let place = Place::new();
    let sandbox = place.microvm().name("kept").detached().create().await;
    drop(sandbox.unwrap());
    let sandbox = Sandbox::connect_in(place.dirs.clone(), "kept")
        .await
        .unwrap();
    sh(&sandbox, "echo first >~/mark").await;
    sandbox.snapshot("first").await.unwrap();
    sandbox.snapshot("other").await.unwrap();
    sh(&sandbox, "echo now >~/mark").await;
    let folder = place
        .dirs
        .state
        .join("sandboxes/kept/snapshots/first/machine");
    let memory = fs::File::options().write(true).open(folder.join("memory"));
    std::os::unix::fs::FileExt::write_all_at(&memory.unwrap(), b"x", 4096).unwrap();
    let damaged = sandbox.rollback("first", Outside::Keep).await.unwrap_err();
    assert_eq!(damaged.kind(), ErrorKind::Damaged, "{damaged}");
    assert_eq!(sh(&sandbox, "cat ~/mark").await, "now");
    // Nothing of the attempt is in the way of the next one, through the supervisor too.
    let mut waiting = sandbox.command("sleep").arg("1000").spawn().await.unwrap();
    sandbox.rollback("other", Outside::Keep).await.unwrap();
    let ended = promptly(waiting.wait()).await.unwrap_err();
    assert_eq!(ended.kind(), ErrorKind::RolledBack, "{ended}");
    assert_eq!(sh(&sandbox, "cat ~/mark").await, "first");
    sandbox.stop().await.unwrap();
    let stopped = sandbox.snapshot("third").await.unwrap_err();
    assert_eq!(stopped.kind(), ErrorKind::Disconnected);
    assert_eq!(sandbox.snapshots().await.unwrap().len(), 2);
    // Its disk is the snapshot's, and it starts again.
    sandbox.start().await.unwrap();
    assert_eq!(sh(&sandbox, "cat ~/mark").await, "first");
    sandbox.remove().await.unwrap();
    place.assert_empty().await;
}
