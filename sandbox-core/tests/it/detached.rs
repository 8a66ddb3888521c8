//! Sandboxes that outlive their handles, in the care of a supervisor.

use std::sync::{Arc, Mutex};

use sandbox_core::{ErrorKind, Lifetime, Progress, Sandbox, State, Step, Workspace, sync};

use crate::place::{Place, eventually, kill, promptly, root, sh};

#[tokio::test(flavor = "multi_thread")]
async fn a_detached_sandbox_lives_until_it_is_removed() {
    let place = Place::new();
    let project = place.project(&[("a", "from outside\n")]);
    let (progress, told) = listener();
    let one = place
        .microvm()
        .name("kept")
        .progress(progress)
        .workspace(Workspace::sync(&project))
        .detached()
        .create()
        .await
        .unwrap();
    // The copying is the supervisor's work, and is told here.
    assert!(told.lock().unwrap().iter().any(is_copying), "{told:?}");
    let two = Sandbox::connect_in(place.dirs.clone(), "kept")
        .await
        .unwrap();
    // Two handles at once, and a question beside them: nobody waits for the other or skips a flush.
    let (first, second, told) = tokio::join!(
        sh(&one, "cat a; echo one > one; sleep 1"),
        sh(&two, "echo two > two; sleep 1; echo done"),
        one.describe(),
    );
    assert_eq!((first.as_str(), second.as_str()), ("from outside", "done"));
    assert_eq!(told.unwrap().state, State::Running);
    for name in ["one", "two"] {
        let text = std::fs::read_to_string(project.join(name)).unwrap();
        assert_eq!(text.trim(), name);
    }
    let taken = Sandbox::builder()
        .dirs(place.dirs.clone())
        .name("kept")
        .create()
        .await;
    assert_eq!(taken.unwrap_err().kind(), ErrorKind::Conflict);

    stopping_keeps_the_disk_and_the_last_changes(&place, &one, &two, &project).await;
    a_dead_supervisor_takes_the_machine_along_and_not_the_disk(&place, &two).await;

    promptly(two.remove()).await.unwrap();
    assert_eq!(
        place.leftovers(),
        [""; 0],
        "a removal is over when it returns"
    );
    assert_eq!(
        one.describe().await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

fn listener() -> (Progress, Arc<Mutex<Vec<Step>>>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let listener = told.clone();
    let progress = Progress::new(move |step| listener.lock().unwrap().push(step));
    (progress, told)
}

fn is_copying(step: &Step) -> bool {
    matches!(step, Step::Workspace(sync::Step::Sending(copied)) if copied.of_files == 1)
}

/// The change is made by a process that nobody waits for: only the flush of `stop` brings it out.
async fn stopping_keeps_the_disk_and_the_last_changes(
    place: &Place,
    one: &Sandbox,
    two: &Sandbox,
    project: &std::path::Path,
) {
    root(one, "echo stays > /kept-file").await;
    sh(
        one,
        "(sleep 1; seq 20000 > many; echo last > last) > /dev/null 2>&1 &",
    )
    .await;
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    promptly(one.stop()).await.unwrap();
    promptly(one.stop()).await.unwrap();
    assert!(project.join("last").exists() && project.join("many").exists());
    let processes = place.processes();
    assert!(processes.is_empty(), "{processes:?}");
    let listed = Sandbox::list_in(place.dirs.clone()).await.unwrap();
    assert_eq!((listed.len(), listed[0].state), (1, State::Stopped));
    assert_eq!(listed[0].lifetime, Lifetime::Detached);
    let refused = one.command("true").output().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Disconnected);
    assert!(refused.to_string().contains("start it"), "{refused}");
    // Started by one handle, used by the other.
    count_boot(place);
    promptly(one.start()).await.unwrap();
    assert_eq!(sh(two, "cat /kept-file last").await, "stays\nlast");
    let again = two.start().await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Conflict);
}

async fn a_dead_supervisor_takes_the_machine_along_and_not_the_disk(place: &Place, two: &Sandbox) {
    root(two, "echo synced > /synced-file; sync").await;
    let mut child = two.command("sleep").arg("1000").spawn().await.unwrap();
    kill(place.process("supervisor"));
    let ended = promptly(child.wait()).await.unwrap_err();
    assert_eq!(ended.kind(), ErrorKind::Disconnected);
    // At once, while the watchdog may still be at work.
    let listed = Sandbox::list_in(place.dirs.clone()).await.unwrap();
    assert_eq!(listed[0].state, State::Stopped);
    count_boot(place);
    promptly(two.start()).await.unwrap();
    assert_eq!(sh(two, "cat /synced-file").await, "synced");
    eventually("one machine", || {
        let mut machines = place.processes();
        machines.retain(|(_, line)| line.contains("qemu-system"));
        (machines.len() == 1).then_some(()).ok_or(machines)
    })
    .await;
}

fn count_boot(place: &Place) {
    drop(place.microvm());
}
