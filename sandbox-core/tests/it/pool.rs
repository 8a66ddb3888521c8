//! Sandboxes that are ready before anybody asks for them, and what is added to one that runs.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use sandbox_core::vm::backend::qemu::{Qemu, QemuConfig};
use sandbox_core::{ErrorKind, Pool, PoolLimits, Sandbox, State, Workspace};

use crate::place::{Place, count_microvm, kill, promptly, sh};

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_has_sandboxes_ready_and_makes_up_for_what_is_taken() {
    let place = Place::new();
    let builder = place.microvm();
    let pool = Pool::start(builder, PoolLimits::new(8).memory_mib(2500)).unwrap();
    promptly(pool.filled()).await.unwrap();
    assert_eq!(pool.ready(), 2, "by their memory");
    let one = promptly(pool.take()).await.unwrap();
    let project = place.project(&[("a", "0\n")]);
    promptly(one.add_workspace(Workspace::sync(&project)))
        .await
        .unwrap();
    assert_eq!(sh(&one, "cat a; echo inside >b").await, "0");
    promptly(one.sync()).await.unwrap();
    assert_eq!(fs::read(project.join("b")).unwrap(), b"inside\n");
    promptly(pool.filled()).await.unwrap();

    // One that died meanwhile is not given out, and no other is like it.
    let mut machines = place.processes();
    machines.retain(|(_, line)| line.contains("qemu-system"));
    let description = one.describe().await.unwrap();
    let own = description.machine.unwrap().pid.unwrap();
    for (pid, _) in machines.into_iter().filter(|(pid, _)| *pid != own) {
        kill(pid);
    }
    let run = async || {
        let listed = Sandbox::list_in(place.dirs.clone()).await.unwrap();
        listed
            .iter()
            .filter(|one| one.state == State::Running)
            .count()
    };
    while run().await > 1 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let other = promptly(pool.take()).await.unwrap();
    assert_eq!(sh(&other, "echo well").await, "well");
    assert_ne!(one.name(), other.name());
    (0..5).for_each(|_| count_microvm());
    promptly(pool.close()).await.unwrap();
    let listed = Sandbox::list_in(place.dirs.clone()).await.unwrap();
    assert_eq!(listed.len(), 2, "those that were taken");
    drop((one, other));
    place.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_dropped_takes_what_nobody_took_along() {
    let place = Place::new();
    let pool = Pool::start(place.microvm(), PoolLimits::new(2)).unwrap();
    while pool.ready() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // While another one is being made.
    drop(pool);
    place.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_pool_cannot_make_is_told() {
    let place = Place::new();
    let project = place.project(&[("a", "")]);
    let base = || Sandbox::builder().dirs(place.dirs.clone());
    for builder in [
        base().name("one"),
        base().detached(),
        base().workspace(Workspace::sync(&project)),
    ] {
        let refused = Pool::start(builder, PoolLimits::new(1)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
    }
    let missing = QemuConfig::new("/nonexistent/helper", &place.dirs.cache);
    let missing = missing.with_program("/nonexistent/qemu");
    let builder = base().hypervisor(Arc::new(Qemu::new(missing)));
    let pool = Pool::start(builder, PoolLimits::new(1)).unwrap();
    let failed = promptly(pool.filled()).await.unwrap_err();
    assert_eq!(failed.operation(), "fill a pool of sandboxes");
    promptly(pool.take()).await.unwrap_err();
    promptly(pool.close()).await.unwrap();
    place.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workspaces_are_added_to_what_runs_and_are_there_after_a_start() {
    let place = Place::new();
    let (one, two) = (
        place.folder.path().join("one"),
        place.folder.path().join("two"),
    );
    for (folder, text) in [(&one, "1"), (&two, "2")] {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("said"), text).unwrap();
    }
    let sandbox = place
        .microvm()
        .name("lab")
        .detached()
        .create()
        .await
        .unwrap();
    let added = sandbox
        .add_workspace(Workspace::sync(place.folder.path().join("none")))
        .await;
    assert_eq!(added.unwrap_err().kind(), ErrorKind::NotFound);
    promptly(sandbox.add_workspace(Workspace::sync(&one)))
        .await
        .unwrap();
    promptly(sandbox.add_workspace(Workspace::review(&two)))
        .await
        .unwrap();
    assert_eq!(sh(&sandbox, "pwd").await, one.to_str().unwrap());
    for again in [&one, &one.join("deeper")] {
        fs::create_dir_all(again).unwrap();
        let nested = sandbox.add_workspace(Workspace::sync(again)).await;
        assert_eq!(nested.unwrap_err().kind(), ErrorKind::Invalid);
    }
    let write = format!(
        "echo in >{0}/in; echo in >{1}/in",
        one.display(),
        two.display()
    );
    sh(&sandbox, &write).await;
    promptly(sandbox.stop()).await.unwrap();
    fs::write(two.join("said"), "3").unwrap();
    count_microvm();
    promptly(sandbox.start()).await.unwrap();
    let read = format!("cat {0}/in {1}/in {1}/said", one.display(), two.display());
    assert_eq!(sh(&sandbox, &read).await, "in\nin\n3");
    assert_eq!(
        (one.join("in").exists(), two.join("in").exists()),
        (true, false)
    );
    assert_eq!(sandbox.sync_status().await.unwrap().len(), 2);
    promptly(sandbox.remove()).await.unwrap();
    place.assert_empty().await;
}
