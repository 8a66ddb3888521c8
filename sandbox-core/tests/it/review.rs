//! What waits for review, through the owner and through its socket.

use std::fs;
use std::path::Path;

use sandbox_core::sync::review::Mark;
use sandbox_core::sync::{Mode, Resolution};
use sandbox_core::{Changes, Sandbox, Workspace};

use crate::place::{Place, promptly, root, sh};

/// Two workspaces of one sandbox, each with its mode; nobody here owns it, so all goes through its socket.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_listed_applied_taken_back_and_discarded() {
    let place = Place::new();
    let project = place.project(&[("src/a", "one\ntwo\n"), ("b", "old\n"), ("key.secret", "s")]);
    let other = place.folder.path().join("other");
    fs::create_dir_all(other.join("out")).unwrap();
    fs::write(other.join("c"), "c\n").unwrap();
    fs::write(other.join("out/earlier"), "").unwrap();
    let other = other.canonicalize().unwrap();
    let builder = place.microvm().name("reviewed").detached();
    let builder = builder
        .workspace(Workspace::review(&project).mask("*.secret"))
        .workspace(Workspace::read_only(&other).output("/out"));
    let sandbox = builder.create().await.unwrap();
    let script = format!(
        "printf 'one\\n2\\n' > src/a; echo new > b; mkdir -p n .git/hooks; echo n > n/n; \
         printf 'x\\033[2J\\n' > .git/hooks/post-checkout; test ! -e key.secret; \
         cd {}; test ! -e out; mkdir out; echo made > out/made; echo changed > c",
        other.display()
    );
    root(&sandbox, &script).await;
    let reports = promptly(sandbox.sync()).await.unwrap();
    assert!(
        reports[0].waiting.contains(&"src/a".to_owned()),
        "{reports:?}"
    );
    assert_eq!(reports[0].held, [".git/hooks", ".git/hooks/post-checkout"]);
    assert_eq!(fs::read(project.join("src/a")).unwrap(), b"one\ntwo\n");
    assert_eq!(fs::read(other.join("out/made")).unwrap(), b"made\n");
    assert_eq!(fs::read(other.join("c")).unwrap(), b"c\n");

    let changes = promptly(sandbox.changes()).await.unwrap();
    let expected = [
        ".git",
        ".git/hooks",
        ".git/hooks/post-checkout",
        "b",
        "n",
        "n/n",
        "src/a",
        "c",
    ];
    assert_eq!(paths(&changes), expected);
    it_is_applied_as_it_was_shown(&sandbox, &project, &changes).await;
    it_stands_as_it_says(&sandbox, &project).await;
    promptly(sandbox.remove()).await.unwrap();
    place.assert_empty().await;
}

async fn it_is_applied_as_it_was_shown(sandbox: &Sandbox, project: &Path, changes: &Changes) {
    let hook = changes.only(".git/hooks/post-checkout");
    let hook = &hook.workspaces[0].changes.changes[0];
    assert!(hook.is_marked(Mark::RunsUnasked));
    assert!(
        hook.patch().to_string().contains("+x\\u{1b}[2J\n"),
        "{}",
        hook.patch()
    );
    // What was changed since is refused, and with it what was chosen beside it.
    root(sandbox, "echo newer > b").await;
    let both = changes.matching(&["b", "src/**"]).unwrap();
    let reports = promptly(sandbox.apply(&both)).await.unwrap();
    assert_eq!((reports.len(), reports[0].done.len()), (1, 0));
    assert!(reports[0].refused[0].starts_with("b: "), "{reports:?}");
    assert_eq!(fs::read(project.join("src/a")).unwrap(), b"one\ntwo\n");

    let reports = promptly(sandbox.apply(&changes.only("src/**")))
        .await
        .unwrap();
    assert_eq!(reports[0].done, ["src/a"]);
    assert_eq!(fs::read(project.join("src/a")).unwrap(), b"one\n2\n");
    let reports = promptly(sandbox.undo_apply()).await.unwrap();
    assert_eq!(reports[0].done, ["src/a"]);
    assert_eq!(fs::read(project.join("src/a")).unwrap(), b"one\ntwo\n");
    assert_eq!(sh(sandbox, "cat src/a").await, "one\n2");

    let unwanted = changes.matching(&["n", ".git", "src"]).unwrap();
    let reports = promptly(sandbox.discard(&unwanted)).await.unwrap();
    assert_eq!(reports[0].refused, [""; 0]);
    assert_eq!(sh(sandbox, "cat src/a; ls -A").await, "one\ntwo\nb\nsrc");
    let left = promptly(sandbox.changes()).await.unwrap();
    assert_eq!(paths(&left), ["b", "c"]);
}

async fn it_stands_as_it_says(sandbox: &Sandbox, project: &Path) {
    promptly(sandbox.set_sync_paused(true)).await.unwrap();
    fs::write(project.join("later"), "later\n").unwrap();
    assert_eq!(promptly(sandbox.sync()).await.unwrap(), []);
    let status = promptly(sandbox.sync_status()).await.unwrap();
    assert!(status.iter().all(|one| one.paused));
    assert_eq!(
        (status[0].mode, status[1].mode),
        (Mode::Review, Mode::ReadOnly)
    );
    assert_eq!(sh(sandbox, "ls").await, "b\nsrc");
    promptly(sandbox.set_sync_paused(false)).await.unwrap();
    drop(promptly(sandbox.sync()).await.unwrap());
    assert_eq!(sh(sandbox, "cat later").await, "later");
    // Everything is gone here: that asks.
    for name in ["b", "later", "src/a"] {
        fs::remove_file(project.join(name)).unwrap();
    }
    fs::remove_dir(project.join("src")).unwrap();
    fs::remove_file(project.join("key.secret")).unwrap();
    promptly(sandbox.sync()).await.unwrap_err();
    let status = promptly(sandbox.sync_status()).await.unwrap();
    assert!(
        status[0].halted.is_some() && status[1].halted.is_none(),
        "{status:?}"
    );
    let reports = promptly(sandbox.resume_sync(Resolution::Propagate))
        .await
        .unwrap();
    assert_eq!(reports.len(), 1);
    assert_eq!(sh(sandbox, "ls").await, "b", "what waits stays");
}

fn paths(changes: &Changes) -> Vec<String> {
    let all = changes
        .workspaces
        .iter()
        .flat_map(|one| &one.changes.changes);
    all.map(|change| change.path.to_string()).collect()
}
