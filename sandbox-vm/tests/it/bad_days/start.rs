//! QEMU that does not start, and guests that do not answer: programs and peers in their place.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sandbox_vm::backend::qemu::{AccelerationPolicy, Qemu, QemuConfig};
use sandbox_vm::hypervisor::{HypervisorExt, MachineSpec};
use sandbox_vm::kernel::Kernel;
use sandbox_vm::template::Templates;
use sandbox_vm::{Error, ErrorKind, Hypervisor};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::support::{self, soon};

/// How long the test waits for what never comes.
const PATIENCE: Duration = Duration::from_millis(500);

/// Writes a program that says a version like QEMU, and else notes its process and runs `script`.
pub(super) fn script(folder: &Path, script: &str) -> PathBuf {
    let path = folder.join("qemu");
    let pids = folder.join("pids");
    let text = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo QEMU emulator version 0 && exit\n\
         echo $$ >>{}\n{script}\n",
        pids.display()
    );
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A kernel that nobody boots.
pub(super) fn any_kernel() -> Kernel {
    Kernel::from_files(support::helper(), None).unwrap()
}

/// A place with a program instead of QEMU.
struct Place {
    folder: tempfile::TempDir,
    qemu: Qemu,
    spec: MachineSpec,
}

impl Place {
    fn new(text: &str) -> Self {
        let folder = support::folder();
        let config = QemuConfig::new(support::helper(), folder.path().join("cache"))
            .with_program(script(folder.path(), text))
            .with_kernel(any_kernel())
            .with_acceleration(AccelerationPolicy::Emulate)
            .with_templates(Templates::Off)
            .with_start_patience(PATIENCE);
        let spec = MachineSpec::new("bad", folder.path().join("m"));
        Self {
            qemu: Qemu::new(config),
            folder,
            spec,
        }
    }

    async fn failure(&self) -> Error {
        self.qemu.boot(&self.spec, PATIENCE).await.unwrap_err()
    }

    fn pids(&self) -> Vec<u32> {
        let pids = std::fs::read_to_string(self.folder.path().join("pids")).unwrap();
        pids.lines().map(|line| line.parse().unwrap()).collect()
    }

    /// Checks that it was tried so often, and that nothing is left of it.
    fn assert_gone(&self, tries: usize) {
        let pids = self.pids();
        assert_eq!(pids.len(), tries);
        assert!(!pids.iter().any(|pid| support::runs(*pid)), "{pids:?}");
        assert!(!self.spec.folder.exists());
    }

    /// Connects to the machine's sockets in QEMU's place.
    async fn connect(&self) -> (UnixStream, UnixStream) {
        let (qmp, agent) = (
            self.spec.folder.join("qmp.sock"),
            self.spec.folder.join("agent.sock"),
        );
        let pids = self.folder.path().join("pids");
        soon("it runs", || {
            qmp.exists() && agent.exists() && pids.exists()
        })
        .await;
        let qmp = UnixStream::connect(qmp).await.unwrap();
        (qmp, UnixStream::connect(agent).await.unwrap())
    }
}

/// Speaks QEMU's control protocol as far as a start needs it, then says nothing more.
async fn greet(qmp: &mut UnixStream) {
    let greeting = "{\"QMP\":{\"version\":{\"qemu\":{\"major\":0,\"minor\":0,\"micro\":0}}}}\n";
    qmp.write_all(greeting.as_bytes()).await.unwrap();
    let mut line = String::new();
    BufReader::new(&mut *qmp)
        .read_line(&mut line)
        .await
        .unwrap();
    assert!(line.contains("qmp_capabilities"), "{line}");
    qmp.write_all(b"{\"return\":{}}\n").await.unwrap();
}

#[tokio::test]
async fn qemu_that_exits_at_once_is_quoted() {
    let place = Place::new("echo first >&2; echo qemu: the moon is not full >&2; exit 3");
    let error = place.failure().await;
    assert_eq!(error.kind(), ErrorKind::Io);
    let text = error.to_string();
    assert!(text.contains("exited with 3"), "{text}");
    assert!(text.contains("the moon is not full"), "{text}");
    place.assert_gone(1);
}

#[tokio::test]
async fn qemu_that_never_connects_is_killed_and_tried_once_more() {
    let place = Place::new("echo deep in thought; exec sleep 1000");
    let error = place.failure().await;
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.to_string().contains("deep in thought"), "{error}");
    place.assert_gone(2);
}

#[tokio::test]
async fn qemu_that_speaks_something_else_broke_the_protocol() {
    let place = Place::new("exec sleep 1000");
    let peer = async {
        let (mut qmp, agent) = place.connect().await;
        qmp.write_all(b"SSH-2.0-OpenSSH\n").await.unwrap();
        std::future::pending::<()>().await;
        drop(agent);
    };
    let error = tokio::select! {
        error = place.failure() => error,
        () = peer => unreachable!(),
    };
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    place.assert_gone(1);
}

#[tokio::test]
async fn a_guest_that_never_answers_is_killed_and_tried_once_more() {
    let place = Place::new("echo Calibrating clock...; exec sleep 1000");
    let peers = async {
        let mut open = Vec::new();
        for _ in 0..2 {
            let (mut qmp, agent) = place.connect().await;
            greet(&mut qmp).await;
            soon("the sockets' names are removed", || {
                !place.spec.folder.join("qmp.sock").exists()
            })
            .await;
            open.push((qmp, agent));
        }
        std::future::pending::<()>().await;
    };
    let error = tokio::select! {
        error = place.failure() => error,
        () = peers => unreachable!(),
    };
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.to_string().contains("Calibrating clock"), "{error}");
    place.assert_gone(2);
}

#[tokio::test]
async fn a_dropped_start_leaves_nothing() {
    let place = Place::new("exec sleep 1000");
    let started = tokio::select! {
        started = place.qemu.start(&place.spec) => Some(started),
        () = soon("it runs", || place.folder.path().join("pids").exists()) => None,
    };
    assert!(started.is_none(), "{started:?}");
    soon("all is gone", || {
        !place.spec.folder.exists() && !place.pids().iter().any(|pid| support::runs(*pid))
    })
    .await;
}

#[tokio::test]
async fn a_console_without_end_keeps_nobody_from_ending_it() {
    let place = Place::new("exec yes this is the console");
    let (start, peer) = tokio::join!(place.qemu.start(&place.spec), async {
        let (mut qmp, agent) = place.connect().await;
        greet(&mut qmp).await;
        (qmp, agent)
    });
    let machine = start.unwrap();
    let watchdog = parent_of(machine.facts().pid.unwrap());
    // Long enough to hear some megabytes.
    tokio::time::sleep(PATIENCE).await;
    assert!(resident_kib(watchdog) < 32 << 10, "the watchdog holds it");
    let killed = tokio::time::timeout(Duration::from_secs(30), machine.kill()).await;
    killed.expect("the watchdog is deaf").unwrap();
    let end = machine.wait().await;
    assert!(!end.console.is_empty());
    assert!(end.console.len() <= 16 << 10, "{}", end.console.len());
    place.assert_gone(1);
    drop(peer);
}

#[tokio::test]
async fn a_kernel_that_is_none_is_told_in_qemus_words() {
    let folder = support::folder();
    let junk = folder.path().join("junk");
    std::fs::write(&junk, b"no kernel").unwrap();
    let config = support::config()
        .with_kernel(Kernel::from_files(&junk, None).unwrap())
        .with_acceleration(AccelerationPolicy::Emulate);
    let spec = MachineSpec::new("junk", folder.path().join("m"));
    let error = Qemu::new(config).boot(&spec, PATIENCE).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert!(error.to_string().contains("qemu: "), "{error}");
    assert!(!spec.folder.exists());
}

pub(super) fn parent_of(pid: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line.unwrap().trim().parse().unwrap()
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.unwrap().trim().trim_end_matches(" kB");
    number.parse().unwrap()
}
