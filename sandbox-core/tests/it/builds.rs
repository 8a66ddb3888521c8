//! A real project is built and tested inside, and what was built is outside.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use sandbox_core::{Sandbox, Workspace};

use crate::place::{Place, promptly};

#[tokio::test(flavor = "multi_thread")]
async fn a_real_projects_own_tests_pass_inside() {
    let place = Place::new();
    let figlet = place.folder.path().join("figlet");
    fetch_example(&figlet);
    let sandbox = place
        .microvm()
        .workspace(Workspace::sync(&figlet).at("/figlet"))
        .create()
        .await
        .unwrap();
    a_real_project_is_built_and_tested_inside(&sandbox, &figlet).await;
    promptly(sandbox.remove()).await.unwrap();
}

async fn a_real_project_is_built_and_tested_inside(sandbox: &Sandbox, figlet: &Path) {
    let mut command = sandbox.command("sh");
    command.args(["-c", "make && make check"]);
    let output = promptly_built(command.output()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(said.contains("All tests passed"), "{said}");
    let built = figlet.join("figlet");
    assert!(fs::metadata(&built).unwrap().permissions().mode() & 0o100 != 0);
    let shown = Command::new(&built)
        .args(["-d", "fonts", "-f", "banner", "x"])
        .current_dir(figlet)
        .output()
        .unwrap();
    assert!(
        shown.status.success() && !shown.stdout.is_empty(),
        "{shown:?}"
    );
}

/// A compiler under emulation takes its time.
async fn promptly_built<T>(future: impl Future<Output = T>) -> T {
    let patience = std::time::Duration::from_secs(240);
    tokio::time::timeout(patience, future)
        .await
        .expect("it hangs")
}

fn fetch_example(to: &Path) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/fetch-example");
    let output = Command::new(script).arg(to).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
