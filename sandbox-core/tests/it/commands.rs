//! Commands in one sandbox that several tests look at, one machine for all.

use std::time::Duration;

use sandbox_core::{Sandbox, Stdio};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::place::Place;

#[tokio::test(flavor = "multi_thread")]
async fn commands_files_and_workspaces_behave() {
    let place = Place::new();
    let project = place.project(&[
        ("hello.txt", "hello\n"),
        ("src/main.c", "int main(){return 0;}\n"),
    ]);
    let start = std::time::Instant::now();
    let sandbox = place
        .microvm()
        .workspace(sandbox_core::Workspace::sync(&project))
        .create()
        .await
        .unwrap();
    println!("created in {:?}", start.elapsed());
    output_is_split_and_the_code_comes_back(&sandbox).await;
    println!("{:?}", start.elapsed());
    input_flows_and_ends(&sandbox).await;
    time_runs_out(&sandbox).await;
    println!("{:?}", start.elapsed());
    let output = sandbox
        .command("sh")
        .arg("-c")
        .arg("id -un; pwd; cat hello.txt; echo made > new.txt; gcc -o src/main src/main.c")
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(
        std::fs::read_to_string(project.join("new.txt")).unwrap(),
        "made\n"
    );
    assert!(project.join("src/main").exists());
    println!("{:?}", start.elapsed());
    sandbox.remove().await.unwrap();
    println!("{:?}", start.elapsed());
    for left in [&place.dirs.state.join("sandboxes"), &place.dirs.runtime] {
        assert_eq!(std::fs::read_dir(left).unwrap().count(), 0);
    }
}

async fn output_is_split_and_the_code_comes_back(sandbox: &Sandbox) {
    let output = sandbox
        .command("sh")
        .args(["-c", "echo out; echo err >&2; exit 7"])
        .output()
        .await
        .unwrap();
    assert_eq!(output.stdout, b"out\n");
    assert_eq!(output.stderr, b"err\n");
    assert_eq!(output.status.code(), Some(7));
}

async fn input_flows_and_ends(sandbox: &Sandbox) {
    let mut command = sandbox.command("wc");
    let mut child = command
        .arg("-c")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .await
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&[b'x'; 100_000]).await.unwrap();
    stdin.shutdown().await.unwrap();
    let mut text = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .await
        .unwrap();
    assert_eq!(text.trim(), "100000");
    assert!(child.wait().await.unwrap().success());
}

async fn time_runs_out(sandbox: &Sandbox) {
    let status = sandbox
        .command("sh")
        .args(["-c", "setsid sleep 100 & sleep 100"])
        .timeout(Duration::from_millis(500))
        .status()
        .await
        .unwrap();
    assert!(status.timed_out(), "{status}");
}
