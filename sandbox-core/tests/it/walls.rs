//! What is set for a sandbox holds inside, and what happens when its machine is gone.

use std::time::Duration;

use sandbox_core::{ErrorKind, ExtraDisk, Limits, State, Tmpfs};

use crate::place::{Place, eventually, kill, promptly, sh};

#[tokio::test(flavor = "multi_thread")]
async fn settings_hold_inside_and_a_killed_machine_is_told_at_once() {
    let place = Place::new();
    let limits = Limits::default().memory_mib(512).cpus(1).processes(40);
    let disk = place.folder.path().join("extra.ext4");
    let size = sandbox_core::vm::disk::MIN_BYTES;
    sandbox_core::vm::disk::create(&place.dirs.cache, size, &disk)
        .await
        .unwrap();
    let sandbox = place
        .microvm()
        .read_only_root()
        .tmpfs(Tmpfs::new("/mnt", 4))
        .disk(ExtraDisk::ext4(&disk, "/srv"))
        .env("GREETING", "hello there")
        .user("nobody")
        .limits(limits)
        .create()
        .await
        .unwrap();
    assert_eq!(
        sh(&sandbox, "echo $GREETING; id -un; nproc").await,
        "hello there\nnobody\n1"
    );
    let mut command = sandbox.command("sh");
    let script = "echo x > /root-file && exit 1; echo x > /mnt/small && echo x > /srv/file && grep -q ' /srv ext4 ' /proc/mounts";
    let output = command
        .user("root")
        .args(["-c", script])
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("Read-only"), "{stderr}");
    let full = sandbox
        .command("sh")
        .args([
            "-c",
            "head -c 8M /dev/zero > /mnt/large; stat -c %s /mnt/large",
        ])
        .user("root")
        .output()
        .await
        .unwrap();
    let size: u64 = String::from_utf8_lossy(&full.stdout)
        .trim()
        .parse()
        .unwrap();
    assert!(size <= 4 << 20, "{size} bytes");
    let forks = "i=0; while [ $i -lt 80 ]; do sleep 20 & i=$((i+1)); done; echo survived";
    let output = sandbox
        .command("sh")
        .args(["-c", forks])
        .timeout(Duration::from_secs(20))
        .output()
        .await
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.to_lowercase().contains("fork"),
        "80 processes ran: {output:?}"
    );

    let pid = sandbox
        .describe()
        .await
        .unwrap()
        .machine
        .unwrap()
        .pid
        .unwrap();
    let mut child = sandbox.command("sleep").arg("1000").spawn().await.unwrap();
    kill(pid);
    let ended = promptly(child.wait()).await.unwrap_err();
    assert_eq!(ended.kind(), ErrorKind::Disconnected);
    let state = async || sandbox.describe().await.unwrap().state;
    while promptly(state()).await == State::Running {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let refused = sandbox.read("/etc/passwd").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Disconnected);
    assert!(refused.to_string().contains("start it"), "{refused}");
    drop(sandbox);
    place.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_time_is_over_is_stopped() {
    let place = Place::new();
    let sandbox = place
        .microvm()
        .limits(Limits::default().run_time(Duration::from_secs(2)))
        .create()
        .await
        .unwrap();
    let ended = promptly(sandbox.command("sleep").arg("1000").status()).await;
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::Disconnected);
    eventually("stopped", || {
        let processes = place.processes();
        processes.is_empty().then_some(()).ok_or(processes)
    })
    .await;
    promptly(sandbox.remove()).await.unwrap();
    place.assert_empty().await;
}
