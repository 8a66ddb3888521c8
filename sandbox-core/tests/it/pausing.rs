//! Sandboxes that stand still and go on.

use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sandbox_core::{ErrorKind, Sandbox, State, Stdio, Workspace};
use tokio::io::AsyncWriteExt;

use crate::place::{Place, promptly, sh};

/// How long it stands still.
const STILL: Duration = Duration::from_secs(3);

async fn state(sandbox: &Sandbox) -> State {
    sandbox.describe().await.unwrap().state
}

/// Seconds that the guest counts since it was booted.
async fn uptime(sandbox: &Sandbox) -> f64 {
    let said = sh(sandbox, "cut -d' ' -f1 /proc/uptime").await;
    said.parse().unwrap()
}

fn now() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_sandbox_stands_still_and_goes_on_at_the_right_time() {
    let place = Place::new();
    let project = place.folder.path().join("project");
    fs::create_dir(&project).unwrap();
    let workspace = Workspace::sync(&project);
    let sandbox = place.microvm().workspace(workspace).create().await.unwrap();
    let inside = project.to_str().unwrap();
    let mut waiting = sandbox.command("sh");
    waiting.args(["-c", "read line; echo $line >last; exit 3"]);
    let mut waiting = waiting.stdin(Stdio::piped()).spawn().await.unwrap();
    sh(&sandbox, &format!("echo inside >{inside}/first")).await;

    let (start, before) = (Instant::now(), uptime(&sandbox).await);
    sandbox.pause().await.unwrap();
    sandbox.pause().await.unwrap();
    assert_eq!(state(&sandbox).await, State::Paused);
    // What was done inside is outside.
    assert_eq!(fs::read(project.join("first")).unwrap(), b"inside\n");
    fs::write(project.join("meanwhile"), "outside").unwrap();
    let refused = [
        promptly(sandbox.command("true").status()).await.err(),
        promptly(sandbox.sync()).await.err(),
        promptly(sandbox.snapshot("now")).await.err(),
        promptly(sandbox.start()).await.err(),
    ];
    for error in refused {
        assert_eq!(error.unwrap().kind(), ErrorKind::Conflict);
    }
    tokio::time::sleep(STILL).await;
    sandbox.resume().await.unwrap();
    sandbox.resume().await.unwrap();
    assert_eq!(state(&sandbox).await, State::Running);

    let (after, all) = (uptime(&sandbox).await, start.elapsed());
    let counted = after - before;
    assert!(counted > 0.0, "{counted}");
    assert!(
        counted < (all - STILL).as_secs_f64() + 0.5,
        "{counted} of {all:?}"
    );
    let earliest = now();
    let clock: f64 = sh(&sandbox, "date +%s.%N").await.parse().unwrap();
    assert!(
        (earliest - 0.05..now() + 0.05).contains(&clock),
        "{clock} after {earliest}"
    );
    promptly(sandbox.sync()).await.unwrap();
    assert_eq!(
        sh(&sandbox, &format!("cat {inside}/meanwhile")).await,
        "outside"
    );
    let mut line = waiting.stdin.take().unwrap();
    line.write_all(b"later\n").await.unwrap();
    drop(line);
    let ended = promptly(waiting.wait()).await.unwrap();
    assert_eq!(ended.code(), Some(3));
    sandbox.remove().await.unwrap();
    place.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_sandbox_can_be_stopped_and_removed_also_by_others() {
    let place = Place::new();
    let sandbox = place.microvm().name("still").detached().create().await;
    let sandbox = sandbox.unwrap();
    let other = Sandbox::connect_in(place.dirs.clone(), "still");
    let other = other.await.unwrap();
    sh(&sandbox, "echo kept >~/note").await;
    sandbox.pause().await.unwrap();
    assert_eq!(state(&other).await, State::Paused);
    let refused = promptly(other.command("true").status()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict, "{refused}");
    other.resume().await.unwrap();
    assert_eq!(sh(&sandbox, "cat ~/note").await, "kept");

    other.pause().await.unwrap();
    promptly(sandbox.stop()).await.unwrap();
    assert_eq!(state(&sandbox).await, State::Stopped);
    let error = sandbox.resume().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disconnected);
    sandbox.start().await.unwrap();
    assert_eq!(sh(&sandbox, "cat ~/note").await, "kept");
    sandbox.pause().await.unwrap();
    promptly(other.remove()).await.unwrap();
    place.assert_empty().await;
}
