//! Machines that are saved while they run, and copies that go on from there.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use sandbox_vm::channel::protocol::Stdio;
use sandbox_vm::hypervisor::{HypervisorExt, MachineSpec};
use sandbox_vm::template::{Started, Templates};
use sandbox_vm::{Agent, ErrorKind, Machine};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::{self, command};

const PATIENCE: Duration = Duration::from_secs(60);

/// Counts in its own memory, and shows it.
const COUNTER: &str =
    "n=0; while :; do n=$((n+1)); echo $n > /dev/shm/n; echo $n; sleep 0.02; done";

struct Booted {
    machine: Arc<dyn Machine>,
    agent: Agent,
    folder: tempfile::TempDir,
}

async fn boot() -> Booted {
    boot_with(|_| {}).await
}

async fn boot_with(change: impl FnOnce(&mut MachineSpec)) -> Booted {
    let folder = support::folder();
    let mut spec = support::with_default_image(folder.path()).await;
    spec.templates = Templates::Use;
    change(&mut spec);
    let (machine, agent) = support::microvm().boot(&spec, PATIENCE).await.unwrap();
    Booted {
        machine,
        agent,
        folder,
    }
}

/// Starts a machine that goes on from a snapshot.
async fn resume(snapshot: &Path) -> Booted {
    let snapshot = snapshot.to_owned();
    boot_with(|spec| {
        // It comes with the snapshot.
        fs::remove_file(&spec.disks[1].path).unwrap();
        spec.snapshot = Some(snapshot);
    })
    .await
}

impl Booted {
    async fn says(&self, script: &str) -> String {
        support::says(&self.agent, script).await
    }

    async fn count(&self) -> u64 {
        loop {
            // Between the truncation and the write there is nothing.
            let said = self.says("cat /dev/shm/n 2>/dev/null || true").await;
            if let Ok(count) = said.trim().parse() {
                return count;
            }
        }
    }

    fn snapshot_path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn snapshot(&self, name: &str) -> PathBuf {
        let path = self.snapshot_path(name);
        let taken = self.machine.snapshot(&self.agent, &path).await.unwrap();
        println!("{name}: {taken:?}");
        path
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r12_copies_go_on_where_it_was_saved_and_share_nothing() {
    let first = boot().await;
    assert!(matches!(
        first.machine.facts().started,
        Started::Restored(_)
    ));
    let mut counter = command(&["sh", "-c", COUNTER]);
    counter.stdio = vec![Stdio::In, Stdio::Out];
    let mut counter = first.agent.exec(counter).await.unwrap();
    let mut lines = BufReader::new(counter.stdout.take().unwrap()).lines();
    while lines.next_line().await.unwrap() != Some("20".into()) {}
    first
        .says("echo saved > /root/mark; head -c 40000000 /dev/urandom > /dev/shm/own")
        .await;
    let own = first.says("sha256sum < /dev/shm/own").await;

    let saved = first.snapshot("one").await;
    let mut last = 0;
    // It goes on, and what it says is neither lost nor said twice.
    for _ in 0..20 {
        let line = lines.next_line().await.unwrap().unwrap();
        let number: u64 = line.parse().unwrap();
        assert!(last == 0 || number == last + 1, "{number} after {last}");
        last = number;
    }
    first.says("echo later > /root/mark; rm /dev/shm/own").await;
    let went_on = first.count().await;
    first.machine.kill().await.unwrap();

    let start = Instant::now();
    let (a, b) = (resume(&saved).await, resume(&saved).await);
    println!("two copies within {:?}", start.elapsed());
    let random = "head -c 32 /dev/urandom | od -An -tx1";
    assert_ne!(a.says(random).await, b.says(random).await);
    for copy in [&a, &b] {
        assert_eq!(copy.machine.facts().started, Started::Resumed);
        assert_eq!(copy.says("cat /root/mark").await, "saved\n");
        assert_eq!(copy.says("sha256sum < /dev/shm/own").await, own);
        // The command is alive, with the number in its memory, and nobody listens to it.
        let (one, other) = (copy.count().await, copy.count().await);
        assert!(one >= 20 && other >= one, "{one}, {other}");
        assert!(other < went_on + 500);
        let asked = SystemTime::now();
        let inside: u64 = copy.says("date +%s").await.trim().parse().unwrap();
        let asked = asked.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        assert!(inside.abs_diff(asked.as_secs()) <= 5, "{inside}");
    }
    a.says("echo a > /root/mark; echo a > /dev/shm/mark").await;
    assert_eq!(
        b.says("cat /root/mark; ls /dev/shm/mark 2>&1 || true")
            .await
            .lines()
            .next(),
        Some("saved")
    );

    // A copy can be saved as well, when what it came from is gone.
    let before = b.count().await;
    fs::remove_dir_all(&saved).unwrap();
    let second = b.snapshot("two").await;
    b.machine.kill().await.unwrap();
    let c = resume(&second).await;
    assert!(c.count().await >= before);
    assert_eq!(c.says("cat /root/mark").await, "saved\n");
    assert_eq!(c.says("sha256sum < /dev/shm/own").await, own);
    a.machine.kill().await.unwrap();
    c.machine.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn r13_what_cannot_be_saved_goes_on_and_leaves_nothing() {
    let booted = boot().await;
    let listing = || {
        let mut names: Vec<_> = fs::read_dir(booted.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    let before = listing();
    let taken = booted.snapshot_path("taken");
    fs::create_dir(&taken).unwrap();
    let error = booted.machine.snapshot(&booted.agent, &taken).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Conflict);
    fs::remove_dir(&taken).unwrap();
    let nowhere = booted.snapshot_path("no/where");
    let error = booted.machine.snapshot(&booted.agent, &nowhere).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::NotFound);
    let held = booted.agent.hold().await.unwrap();
    let error = booted.machine.snapshot(&booted.agent, &taken).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Conflict);
    drop(held);
    assert_eq!(booted.says("echo well").await, "well\n");
    assert_eq!(listing(), before);

    // Given up at any moment: what stands still goes on.
    for milliseconds in [1, 20, 60, 120, 200, 300, 500] {
        let path = booted.snapshot_path(&format!("given-up-{milliseconds}"));
        let patience = Duration::from_millis(milliseconds);
        let saving = booted.machine.snapshot(&booted.agent, &path);
        match tokio::time::timeout(patience, saving).await {
            Ok(saved) => drop(saved.unwrap()),
            Err(_) => assert!(!path.exists()),
        }
        assert_eq!(booted.says("echo well").await, "well\n");
    }
    let saved = booted.snapshot("whole").await;
    booted.machine.kill().await.unwrap();
    let error = booted.machine.snapshot(&booted.agent, &taken).await;
    println!("{}", error.unwrap_err());

    let other = resume_refused(&saved, |spec| spec.memory_mib += 64).await;
    assert_eq!(other.kind(), ErrorKind::Unsupported);
    assert!(other.detail().unwrap().contains("memory"), "{other}");
    let memory = fs::File::options().write(true).open(saved.join("memory"));
    std::os::unix::fs::FileExt::write_all_at(&memory.unwrap(), b"x", 1 << 20).unwrap();
    let damaged = resume_refused(&saved, |_| {}).await;
    assert_eq!(damaged.kind(), ErrorKind::Damaged);
    assert!(damaged.to_string().contains("memory"), "{damaged}");
}

async fn resume_refused(
    snapshot: &Path,
    change: impl FnOnce(&mut MachineSpec),
) -> sandbox_vm::Error {
    let folder = support::folder();
    let mut spec = support::with_default_image(folder.path()).await;
    fs::remove_file(&spec.disks[1].path).unwrap();
    spec.snapshot = Some(snapshot.to_owned());
    change(&mut spec);
    let refused = support::microvm().boot(&spec, PATIENCE).await.unwrap_err();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    refused
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_was_booted_cannot_be_saved_and_says_so() {
    let booted = boot_with(|spec| spec.templates = Templates::Off).await;
    let target = booted.snapshot_path("s");
    let error = booted.machine.snapshot(&booted.agent, &target).await;
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.detail().unwrap().contains("booted"), "{error}");
    assert_eq!(booted.says("echo well").await, "well\n");
    booted.machine.kill().await.unwrap();
}
