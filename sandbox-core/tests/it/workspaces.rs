//! Workspaces and copies, in one microVM.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use sandbox_core::{ErrorKind, Sandbox, State, Workspace};

use crate::place::{Place, count_microvm, eventually, kill, promptly, sh};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_on_one_side_is_there_on_the_other() {
    let place = Place::new();
    let project = place.project(&[("a", "one\n"), (".git/HEAD", "ref: refs/heads/main\n")]);
    let given = place.folder.path().join("given");
    fs::create_dir(&given).unwrap();
    fs::write(given.join("data"), "original\n").unwrap();
    let sandbox = place
        .microvm()
        .workspace(Workspace::sync(&project))
        .workspace(Workspace::read_only(&given).at("/given"))
        .create()
        .await
        .unwrap();
    changes_cross_while_a_command_runs(&sandbox, &project).await;
    what_is_read_only_or_runs_unasked_stays_inside(&sandbox, &project, &given).await;
    copies_come_back_as_they_were(&sandbox, &place).await;
    promptly(sandbox.remove()).await.unwrap();
    place.assert_empty().await;
}

/// The disk that comes back after a kill or a power cut may lack what the two sides had agreed on. That is
/// no deletion: least of all where the whole disk is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_lost_its_disk_takes_no_file_of_the_host_along() {
    let place = Place::new();
    let project = place.project(&[("a", "one\n"), ("b/c", "two\n")]);
    let sandbox = place
        .microvm()
        .workspace(Workspace::sync(&project))
        .create()
        .await
        .unwrap();
    let machine = sandbox.describe().await.unwrap().machine.unwrap();
    kill(machine.pid.unwrap());
    while promptly(sandbox.describe()).await.unwrap().state == State::Running {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let folder = place.dirs.state.join("sandboxes").join(sandbox.name());
    fs::remove_file(folder.join("disk.ext4")).unwrap();
    count_microvm();
    sandbox.start().await.unwrap();
    assert_eq!(sh(&sandbox, "cat a b/c").await, "one\ntwo");
    assert_eq!(fs::read(project.join("a")).unwrap(), b"one\n");
    assert_eq!(fs::read(project.join("b/c")).unwrap(), b"two\n");
    promptly(sandbox.remove()).await.unwrap();
}

async fn changes_cross_while_a_command_runs(sandbox: &Sandbox, project: &Path) {
    // Says a word, waits for an answer, and says one more at its end.
    let script =
        "echo hello > word; until [ -e answer ]; do sleep 0.1; done; cat answer; echo end > end";
    let mut command = sandbox.command("sh");
    command
        .args(["-c", script])
        .stdout(sandbox_core::Stdio::piped());
    let child = command.spawn().await.unwrap();
    eventually("the word came out", || fs::read(project.join("word"))).await;
    fs::write(project.join("answer"), "heard\n").unwrap();
    let output = promptly(child.wait_with_output()).await.unwrap();
    assert_eq!(output.stdout, b"heard\n");
    assert_eq!(fs::read(project.join("end")).unwrap(), b"end\n");
}

async fn what_is_read_only_or_runs_unasked_stays_inside(
    sandbox: &Sandbox,
    project: &Path,
    given: &Path,
) {
    let script = "cat /given/data; echo changed > /given/data; echo new > /given/new;
        mkdir -p .git/hooks; echo evil > .git/hooks/pre-commit; chmod +x .git/hooks/pre-commit; echo b > b";
    assert_eq!(sh(sandbox, script).await, "original");
    let reports = promptly(sandbox.sync()).await.unwrap();
    assert!(project.join("b").exists(), "the rest came: {reports:?}");
    assert!(
        !project.join(".git/hooks/pre-commit").exists(),
        "{reports:?}"
    );
    let held: Vec<&String> = reports.iter().flat_map(|report| &report.held).collect();
    assert!(
        held.iter().any(|path| path.contains("hooks")),
        "{reports:?}"
    );
    assert_eq!(fs::read(given.join("data")).unwrap(), b"original\n");
    assert!(!given.join("new").exists());
}

async fn copies_come_back_as_they_were(sandbox: &Sandbox, place: &Place) {
    let from = place.folder.path().join("from");
    fs::create_dir_all(from.join("empty")).unwrap();
    fs::create_dir_all(from.join("deep/er")).unwrap();
    fs::write(from.join("two\nlines"), "x").unwrap();
    fs::write(from.join("deep/er/tool"), "#!/bin/sh\n").unwrap();
    fs::write(from.join("secret"), "s").unwrap();
    symlink("er/tool", from.join("deep/link")).unwrap();
    for (name, mode) in [("deep/er/tool", 0o755), ("secret", 0o400), ("empty", 0o700)] {
        fs::set_permissions(from.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let hole = fs::File::create(from.join("hole")).unwrap();
    hole.set_len(1 << 20).unwrap();
    promptly(sandbox.copy_in(&from, "/copied")).await.unwrap();
    let to = place.folder.path().join("to");
    promptly(sandbox.copy_out("/copied", &to)).await.unwrap();
    assert_eq!(tree(&to), tree(&from));
    // One file, to a name of its own and into a folder.
    promptly(sandbox.copy_in(from.join("secret"), "/single"))
        .await
        .unwrap();
    promptly(sandbox.copy_out("/single", place.folder.path().join("alone")))
        .await
        .unwrap();
    assert_eq!(fs::read(place.folder.path().join("alone")).unwrap(), b"s");
    promptly(sandbox.copy_out("/single", &to)).await.unwrap();
    assert_eq!(fs::read(to.join("single")).unwrap(), b"s");
    let missing = sandbox.copy_out("/not-there", &to).await.unwrap_err();
    assert_eq!(missing.kind(), sandbox_core::ErrorKind::NotFound);
}

/// Describes every file of a tree: path, kind and mode, contents.
fn tree(root: &Path) -> Vec<(String, u32, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let (path, meta) = (entry.path(), entry.metadata().unwrap());
            let contents = if meta.is_dir() {
                folders.push(path.clone());
                Vec::new()
            } else if meta.is_symlink() {
                fs::read_link(&path)
                    .unwrap()
                    .into_os_string()
                    .into_encoded_bytes()
            } else {
                fs::read(&path).unwrap()
            };
            let name = path.strip_prefix(root).unwrap().display().to_string();
            found.push((name, meta.permissions().mode(), contents));
        }
    }
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn single_files_are_workspaces_too() {
    let place = Place::new();
    let project = place.project(&[
        ("one", "1\n"),
        ("two", "2\n"),
        ("three", "3\n"),
        (".env", "S=1"),
    ]);
    let refused = async |workspace: Workspace| {
        let created = Sandbox::builder()
            .dirs(place.dirs.clone())
            .workspace(workspace);
        let error = created.create().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    };
    refused(Workspace::sync(project.join("one")).at("/srv/other")).await;
    refused(Workspace::sync(project.join("one")).at("/one")).await;
    refused(Workspace::sync(project.join(".env"))).await;
    let builder = place.microvm();
    let builder = builder.workspace(Workspace::sync(project.join("one")));
    let builder = builder.workspace(Workspace::review(project.join("two")).at("/srv/two"));
    let sandbox = builder.create().await.unwrap();
    let inside = project.display();
    let seen = sh(
        &sandbox,
        &format!("ls -A {inside} /srv; cat {inside}/one /srv/two"),
    )
    .await;
    assert_eq!(seen, format!("/srv:\ntwo\n\n{inside}:\none\n1\n2"));
    sh(
        &sandbox,
        &format!("echo 11 >{inside}/one; echo 22 >/srv/two; touch {inside}/new"),
    )
    .await;
    promptly(sandbox.sync()).await.unwrap();
    let read = |name: &str| std::fs::read_to_string(project.join(name)).unwrap();
    assert_eq!((read("one"), read("two")), ("11\n".into(), "2\n".into()));
    let waiting = sandbox.changes().await.unwrap();
    assert_eq!(waiting.workspaces[1].changes.changes.len(), 1);
    promptly(sandbox.apply(&waiting)).await.unwrap();
    assert_eq!(read("two"), "22\n");
    // One more of the same folder, and the folder itself is another sandbox's.
    promptly(sandbox.add_workspace(Workspace::sync(project.join("three"))))
        .await
        .unwrap();
    assert_eq!(sh(&sandbox, &format!("cat {inside}/three")).await, "3");
    let other = place
        .microvm()
        .workspace(Workspace::sync(&project))
        .create()
        .await
        .unwrap();
    assert_eq!(sh(&other, "cat one two three").await, "11\n22\n3");
    assert!(!project.join("new").exists());
    promptly(other.remove()).await.unwrap();
    promptly(sandbox.remove()).await.unwrap();
    place.assert_empty().await;
}
