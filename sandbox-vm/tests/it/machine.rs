//! Machines that boot, one after the other.

use std::path::Path;
use std::time::Duration;

use sandbox_vm::Progress;
use sandbox_vm::backend::qemu::Qemu;
use sandbox_vm::hypervisor::{HypervisorExt, MachineSpec};
use sandbox_vm::kernel::Kernel;
use sandbox_vm::template::Templates;
use tokio::io::AsyncReadExt;

use crate::support::{self, command};

/// After which a silent boot is tried once more.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn cold_boots_do_not_hang() {
    let slow = std::env::var_os("SANDBOX_SLOW").is_some();
    if !slow {
        println!("3 boots instead of 100: SANDBOX_SLOW is not set");
    }
    for round in 0..if slow { 100 } else { 3 } {
        let folder = support::folder();
        let qemu = support::microvm();
        let mut spec = MachineSpec::new("cold", folder.path().join("m"));
        spec.templates = Templates::Off;
        let start = std::time::Instant::now();
        let (machine, agent) = qemu.boot(&spec, PATIENCE).await.unwrap();
        println!("boot {round}: {:?}", start.elapsed());
        assert!(start.elapsed() < PATIENCE, "it was silent and tried again");
        // The one program that an empty root has: the agent, which says that it is not for people.
        let mut running = agent.exec(command(&["/init", "x"])).await.unwrap();
        let mut text = String::new();
        let mut stderr = running.stderr.take().unwrap();
        stderr.read_to_string(&mut text).await.unwrap();
        assert!(text.contains("not by hand"), "{text}");
        assert_eq!(running.end.wait().await.unwrap().code, Some(1));
        machine.kill().await.unwrap();
        assert!(!spec.folder.exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_that_cannot_capture_boots_and_says_so() {
    let folder = support::folder();
    let cache = support::cache();
    let whole = Kernel::from_distribution(&cache, Progress::silent());
    let whole = whole.await.unwrap();
    let modules = folder.path().join("modules");
    link_but(whole.modules_dir.as_deref().unwrap(), &modules, "veth.ko");
    let kernel = Kernel::from_files(whole.image, Some(modules)).unwrap();
    let mut spec = MachineSpec::new("old", folder.path().join("m"));
    spec.setup.capture = Some(support::capture());
    support::count_microvm();
    let qemu = Qemu::new(support::config().with_kernel(kernel));
    let (machine, agent) = qemu.boot(&spec, PATIENCE).await.unwrap();
    let reason = agent.prepared().unwrap().uncaptured.as_ref().unwrap();
    assert!(reason.contains("veth"), "{reason}");
    let running = agent.exec(command(&["/init", "x"])).await.unwrap();
    assert_eq!(running.end.wait().await.unwrap().code, Some(1));
    machine.kill().await.unwrap();
}

/// Links the files of a folder into another one, but for those of a name.
fn link_but(from: &Path, to: &Path, name: &str) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            link_but(&entry.path(), &target, name);
        } else if !entry.file_name().to_string_lossy().starts_with(name) {
            std::os::unix::fs::symlink(entry.path(), target).unwrap();
        }
    }
}
