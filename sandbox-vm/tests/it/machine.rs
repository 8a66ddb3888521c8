//! Machines that really boot.

use std::path::PathBuf;
use std::time::Duration;

use sandbox_vm::agent::new_exec_id;
use sandbox_vm::backend::qemu::{Qemu, QemuConfig};
use sandbox_vm::channel::protocol::{Exec, Stdio};
use sandbox_vm::hypervisor::{HypervisorExt, MachineSpec};
use tokio::io::AsyncReadExt;

fn helper() -> PathBuf {
    std::env::var_os("SANDBOX_HELPER")
        .expect("SANDBOX_HELPER names the helper binary")
        .into()
}

fn command(words: &[&str]) -> Exec {
    Exec {
        id: new_exec_id().unwrap(),
        argv: words.iter().map(|w| w.as_bytes().to_vec()).collect(),
        env: vec![],
        env_remove: vec![],
        env_clear: false,
        cwd: None,
        user: None,
        stdio: vec![Stdio::Out, Stdio::Err],
        terminal: None,
        timeout_ms: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_boots_and_runs_a_command() {
    let folder = tempfile::tempdir().unwrap();
    let cache =
        std::env::var_os("SANDBOX_TEST_CACHE").map_or(folder.path().join("cache"), Into::into);
    let qemu = Qemu::new(QemuConfig::new(helper(), cache));
    let spec = MachineSpec::new("first", folder.path().join("m"));
    let start = std::time::Instant::now();
    let (machine, agent) = qemu.boot(&spec, Duration::from_secs(60)).await.unwrap();
    println!("booted in {:?}", start.elapsed());
    for _ in 0..3 {
        let start = std::time::Instant::now();
        let mut running = agent.exec(command(&["/init", "x"])).await.unwrap();
        let mut text = String::new();
        running
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .await
            .unwrap();
        let exit = running.end.wait().await.unwrap();
        println!("{:?} {text} {exit:?}", start.elapsed());
    }
    machine.kill().await.unwrap();
    assert!(!spec.folder.exists());
}
