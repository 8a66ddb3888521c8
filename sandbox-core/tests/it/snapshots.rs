//! Snapshots of workspaces: before commands, by the owner, and through its socket.

use std::fs;
use std::path::Path;

use sandbox_core::{ErrorKind, Outside, Sandbox, Workspace};

use crate::place::{Place, count_microvm, promptly, sh};

/// The owner takes and restores between two cycles; another handle has it do so through its socket.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_did_is_taken_back_while_it_runs() {
    let place = Place::new();
    let project = place.project(&[("src/a", "old\n"), (".env", "SECRET\n")]);
    let builder = place
        .microvm()
        .name("rolled-back")
        .workspace(Workspace::sync(&project));
    let owner = builder.snapshot_before_commands().create().await.unwrap();
    let sandbox = Sandbox::connect_in(place.dirs.clone(), "rolled-back")
        .await
        .unwrap();
    sh(&sandbox, "echo new > src/a; echo n > src/n").await;
    drop(promptly(sandbox.sync()).await.unwrap());
    assert_eq!(fs::read(project.join("src/a")).unwrap(), b"new\n");
    assert_eq!(names(&sandbox).await, ["auto-000001"]);
    promptly(sandbox.snapshot_workspaces(Some("after")))
        .await
        .unwrap();
    let twice = promptly(sandbox.snapshot_workspaces(Some("after"))).await;
    assert_eq!(twice.unwrap_err().kind(), ErrorKind::Conflict);

    let changes = promptly(sandbox.compare_workspaces("auto-000001", Some("after")))
        .await
        .unwrap();
    let changes = &changes.workspaces[0].changes.changes;
    let paths: Vec<String> = changes.iter().map(|one| one.path.to_string()).collect();
    assert_eq!(paths, ["src/a", "src/n"]);
    let reports = promptly(sandbox.restore_workspaces("auto-000001", &[]))
        .await
        .unwrap();
    assert_eq!(
        (&reports[0].done[..], reports[0].refused.len()),
        (&paths[..], 0)
    );
    assert_eq!(fs::read(project.join("src/a")).unwrap(), b"old\n");
    assert_eq!(fs::read(project.join(".env")).unwrap(), b"SECRET\n");
    drop(promptly(sandbox.sync()).await.unwrap());
    assert_eq!(sh(&sandbox, "cat src/a; ls src").await, "old\na");

    let some = ["src/n".to_owned()];
    promptly(owner.restore_workspaces("after", &some))
        .await
        .unwrap();
    assert_eq!(fs::read(project.join("src/n")).unwrap(), b"n\n");
    assert_eq!(
        fs::read(project.join("src/a")).unwrap(),
        b"old\n",
        "not chosen"
    );
    promptly(sandbox.remove_workspace_snapshot("after"))
        .await
        .unwrap();
    let gone = promptly(sandbox.restore_workspaces("after", &[])).await;
    assert_eq!(gone.unwrap_err().kind(), ErrorKind::NotFound);
    at_rest_it_is_taken_back_by_whoever_asks(&owner, &project).await;
    promptly(owner.remove()).await.unwrap();
    let spaces = place.dirs.state.join("snapshots/spaces");
    assert_eq!(fs::read_dir(spaces).unwrap().count(), 0);
    place.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_the_sandboxs_and_not_its_owners() {
    let place = Place::new();
    let project = place.project(&[("a", "old\n")]);
    let builder = place.microvm().name("kept").detached();
    let builder = builder.workspace(Workspace::sync(&project));
    let sandbox = builder.create().await.unwrap();
    promptly(sandbox.snapshot_workspaces(Some("first")))
        .await
        .unwrap();
    promptly(sandbox.snapshot("whole")).await.unwrap();
    promptly(sandbox.stop()).await.unwrap();
    fs::write(project.join("a"), "new\n").unwrap();
    assert_eq!(names(&sandbox).await, ["first", "machine-whole"]);
    count_microvm();
    promptly(sandbox.start()).await.unwrap();
    assert_eq!(names(&sandbox).await, ["first", "machine-whole"]);
    count_microvm();
    promptly(sandbox.rollback("whole", Outside::Restore))
        .await
        .unwrap();
    assert_eq!(fs::read(project.join("a")).unwrap(), b"old\n");
    // Without that of the folder there is no way back for it, and nothing is touched.
    promptly(sandbox.remove_workspace_snapshot("machine-whole"))
        .await
        .unwrap();
    sh(&sandbox, "echo here >~/here").await;
    let gone = promptly(sandbox.rollback("whole", Outside::Restore)).await;
    assert_eq!(gone.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(sh(&sandbox, "cat ~/here").await, "here");
    promptly(sandbox.rollback("whole", Outside::Keep))
        .await
        .unwrap();
    promptly(sandbox.remove()).await.unwrap();
    let spaces = place.dirs.state.join("snapshots/spaces");
    assert_eq!(fs::read_dir(spaces).unwrap().count(), 0);
    place.assert_empty().await;
}

/// Nobody owns it then, so there is no session: the folder is restored as it lies there, and what was restored goes
/// in when the machine starts again.
async fn at_rest_it_is_taken_back_by_whoever_asks(sandbox: &Sandbox, project: &Path) {
    sh(sandbox, "echo newest > src/a; echo m > src/m").await;
    promptly(sandbox.stop()).await.unwrap();
    assert_eq!(fs::read(project.join("src/a")).unwrap(), b"newest\n");
    let reports = promptly(sandbox.restore_workspaces("auto-000001", &[])).await;
    let reports = reports.unwrap();
    assert_eq!(reports[0].done, ["src/a", "src/m", "src/n"]);
    assert_eq!(fs::read(project.join("src/a")).unwrap(), b"old\n");
    // As it was before is kept as well.
    let listed = names(sandbox).await;
    assert!(listed.contains(&reports[0].before), "{listed:?}");
    count_microvm();
    sandbox.start().await.unwrap();
    assert_eq!(sh(sandbox, "cat src/a; ls src").await, "old\na");
}

async fn names(sandbox: &Sandbox) -> Vec<String> {
    let listed = promptly(sandbox.workspace_snapshots()).await.unwrap();
    listed.into_iter().map(|one| one.name).collect()
}
