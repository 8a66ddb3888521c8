//! What is refused before anything is started for it.

use std::path::Path;

use sandbox_vm::backend::qemu::{AccelerationPolicy, Qemu, QemuConfig};
use sandbox_vm::hypervisor::{Disk, MachineSpec};
use sandbox_vm::kernel::Kernel;
use sandbox_vm::{Error, ErrorKind, Hypervisor};

use super::start::{any_kernel, script};
use crate::support;

/// Starts what must be refused, and checks that nothing is left of it.
async fn refusal(config: QemuConfig, spec: &MachineSpec) -> Error {
    let error = Qemu::new(config).start(spec).await.unwrap_err();
    assert!(!spec.folder.exists(), "{error}");
    error
}

/// A backend that would say so if it were started.
fn config(folder: &Path) -> QemuConfig {
    let program = script(folder, "echo it was started >&2");
    QemuConfig::new(support::helper(), folder.join("cache"))
        .with_program(program)
        .with_kernel(any_kernel())
        .with_acceleration(AccelerationPolicy::Emulate)
}

#[tokio::test]
async fn a_missing_qemu_is_unsupported_and_says_what_to_install() {
    let folder = support::folder();
    let spec = MachineSpec::new("x", folder.path().join("m"));
    let config = config(folder.path()).with_program("/no/such/qemu");
    let error = refusal(config.clone(), &spec).await;
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("qemu-system-x86"), "{error}");
    let probed = Qemu::new(config).probe().await.unwrap_err();
    assert_eq!(probed.kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn a_machine_too_small_is_invalid() {
    let folder = support::folder();
    let spec = MachineSpec::new("x", folder.path().join("m"));
    for (cpus, memory_mib) in [(0, 512), (65, 512), (1, 0), (1, 127)] {
        let mut spec = spec.clone();
        (spec.cpus, spec.memory_mib) = (cpus, memory_mib);
        let error = refusal(config(folder.path()), &spec).await;
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
}

#[tokio::test]
async fn disks_that_cannot_be_used_are_told_by_name() {
    let folder = support::folder();
    let unreadable = folder.path().join("unreadable");
    std::fs::write(&unreadable, b"x").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o000);
    std::fs::set_permissions(&unreadable, mode).unwrap();
    let mut cases = vec![
        (Disk::read_only("/no/such/disk"), ErrorKind::NotFound),
        (Disk::writable("/no/such/disk"), ErrorKind::NotFound),
        (Disk::read_only("/etc"), ErrorKind::Invalid),
    ];
    if rustix::process::geteuid().is_root() {
        println!("skipped: an unreadable disk; root reads everything");
    } else {
        cases.push((Disk::read_only(&unreadable), ErrorKind::PermissionDenied));
        cases.push((Disk::writable("/etc/passwd"), ErrorKind::PermissionDenied));
    }
    for (disk, wanted) in cases {
        let mut spec = MachineSpec::new("x", folder.path().join("m"));
        spec.disks = vec![disk.clone()];
        let error = refusal(config(folder.path()), &spec).await;
        assert_eq!(error.kind(), wanted, "{error}");
        let path = disk.path.display().to_string();
        assert!(error.to_string().contains(&path), "{error}");
    }
}

#[tokio::test]
async fn a_missing_kernel_or_helper_is_not_found() {
    let error = Kernel::from_files("/no/such/kernel", None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let folder = support::folder();
    let spec = MachineSpec::new("x", folder.path().join("m"));
    let mut config = config(folder.path());
    config.helper = "/no/such/helper".into();
    let error = refusal(config, &spec).await;
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

#[tokio::test]
async fn a_folder_too_deep_for_sockets_says_so() {
    let folder = support::folder();
    let spec = MachineSpec::new("x", folder.path().join("d".repeat(100)));
    let error = refusal(config(folder.path()), &spec).await;
    assert!(error.to_string().contains("shorter folder"), "{error}");
}
