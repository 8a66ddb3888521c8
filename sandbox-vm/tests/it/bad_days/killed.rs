//! Processes that are killed: QEMU, its watchdog, its owner.

use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sandbox_vm::ErrorKind;
use sandbox_vm::hypervisor::{HypervisorExt, MachineSpec};

use super::start::parent_of;
use crate::support::{self, command, runs, soon};

const BOOT_PATIENCE: Duration = Duration::from_secs(60);

/// Names the folder in which this process is to start a machine and wait for its own death.
const OWNER_FOLDER: &str = "SANDBOX_TEST_OWNER_FOLDER";

fn kill(pid: u32) {
    let pid = Pid::from_raw(pid.cast_signed()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_qemu_disconnects_its_commands() {
    let folder = support::folder();
    let spec = support::with_default_image(folder.path()).await;
    let (machine, agent) = support::microvm().boot(&spec, BOOT_PATIENCE).await.unwrap();
    let running = agent.exec(command(&["sleep", "1000"])).await.unwrap();
    kill(machine.facts().pid.unwrap());
    let error = running.end.wait().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disconnected, "{error}");
    let end = machine.wait().await;
    let failure = end.failure.unwrap();
    assert!(failure.contains("signal 9"), "{failure}");
    let error = agent.exec(command(&["true"])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disconnected, "{error}");
    assert!(!spec.folder.exists());
    machine.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_watchdog_takes_qemu_along() {
    let folder = support::folder();
    let spec = MachineSpec::new("dog", folder.path().join("m"));
    let (machine, agent) = support::microvm().boot(&spec, BOOT_PATIENCE).await.unwrap();
    let qemu = machine.facts().pid.unwrap();
    kill(parent_of(qemu));
    let end = machine.wait().await;
    assert!(end.failure.is_some(), "{end}");
    soon("QEMU is gone", || !runs(qemu)).await;
    let error = agent.power_off().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disconnected, "{error}");
    drop(machine);
    assert!(!spec.folder.exists(), "the owner removes what is left");
}

#[test]
fn a_killed_owner_leaves_nothing() {
    if let Some(folder) = std::env::var_os(OWNER_FOLDER) {
        return be_an_owner(Path::new(&folder));
    }
    let folder = support::folder();
    let mut owner = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "bad_days::killed::a_killed_owner_leaves_nothing"])
        .env(OWNER_FOLDER, folder.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let note = folder.path().join("running");
        let mut ended = None;
        soon_within(BOOT_PATIENCE * 3, || {
            ended = owner.try_wait().unwrap();
            ended.is_some() || note.exists()
        })
        .await;
        assert!(ended.is_none(), "the owner ended by itself: {ended:?}");
        let qemu: u32 = std::fs::read_to_string(&note).unwrap().parse().unwrap();
        let watchdog = parent_of(qemu);
        let machine = folder.path().join("m");
        assert!(runs(qemu) && runs(watchdog) && machine.exists());
        owner.kill().unwrap();
        owner.wait().unwrap();
        soon("no process is left", || !runs(qemu) && !runs(watchdog)).await;
        assert!(!machine.exists(), "the machine's folder");
        assert!(!folder.path().join("orphan").exists(), "its other files");
        assert!(folder.path().join("bystander").exists());
    });
}

async fn soon_within(bound: Duration, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(bound, waiting).await.unwrap();
}

/// Starts a machine, notes its process, and waits to be killed.
fn be_an_owner(folder: &Path) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        for name in ["orphan", "bystander"] {
            std::fs::create_dir(folder.join(name)).unwrap();
            std::fs::write(folder.join(name).join("file"), b"x").unwrap();
        }
        let mut spec = MachineSpec::new("orphan", folder.join("m"));
        spec.remove_when_orphaned = vec![folder.join("orphan")];
        let booted = support::microvm().boot(&spec, BOOT_PATIENCE).await.unwrap();
        let pid = booted.0.facts().pid.unwrap().to_string();
        std::fs::write(folder.join("note"), pid).unwrap();
        std::fs::rename(folder.join("note"), folder.join("running")).unwrap();
        // Should the test that waits for this be gone, this goes too.
        tokio::time::sleep(BOOT_PATIENCE).await;
    });
}
