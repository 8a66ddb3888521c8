//! Machines that are restored from one template: fast, sound, and apart from each other.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use sandbox_vm::backend::qemu::Qemu;
use sandbox_vm::hypervisor::{HypervisorExt, MachineSpec};
use sandbox_vm::template::{ColdReason, Started, TemplateStore, Templates};
use sandbox_vm::{Agent, Machine};

use crate::support;

const PATIENCE: Duration = Duration::from_secs(60);

/// A backend whose templates are its own; kernels and ramdisks are those of all tests.
struct Own {
    cache: tempfile::TempDir,
    qemu: Qemu,
}

fn own() -> Own {
    let cache = support::folder();
    for shared in ["kernels", "disks", "images", "initrd", "probe"] {
        let target = support::cache().join(shared);
        fs::create_dir_all(&target).unwrap();
        std::os::unix::fs::symlink(target, cache.path().join(shared)).unwrap();
    }
    let mut config = support::config();
    config.cache = cache.path().to_owned();
    Own {
        qemu: Qemu::new(config.with_templates(Templates::Use)),
        cache,
    }
}

impl Own {
    fn store(&self) -> TemplateStore {
        TemplateStore::new(self.cache.path())
    }

    /// Returns the folder of the one template's files.
    fn files(&self) -> PathBuf {
        let [template] = &self.store().list().unwrap()[..] else {
            panic!("there is not one template");
        };
        let folder = self.cache.path().join("templates").join(&template.name);
        let folders = fs::read_dir(folder).unwrap().flatten();
        let mut found = folders
            .map(|entry| entry.path())
            .filter(|path| path.is_dir());
        found.next().unwrap()
    }
}

struct Booted {
    machine: std::sync::Arc<dyn Machine>,
    agent: Agent,
    _folder: tempfile::TempDir,
}

async fn boot(own: &Own) -> Booted {
    boot_with(own, |_| {}).await
}

async fn boot_with(own: &Own, change: impl FnOnce(&mut MachineSpec)) -> Booted {
    support::count_microvm();
    let folder = support::folder();
    let mut spec = support::with_default_image(folder.path()).await;
    change(&mut spec);
    let (machine, agent) = own.qemu.boot(&spec, PATIENCE).await.unwrap();
    Booted {
        machine,
        agent,
        _folder: folder,
    }
}

impl Booted {
    fn restored(&self) -> bool {
        matches!(self.machine.facts().started, Started::Restored(_))
    }

    /// Runs a script and returns what it says.
    async fn says(&self, script: &str) -> String {
        support::says(&self.agent, script).await
    }
}

fn digest(path: &Path) -> String {
    let mut hasher = blake3::Hasher::new();
    std::io::copy(&mut fs::File::open(path).unwrap(), &mut hasher).unwrap();
    hasher.finalize().to_hex().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn r01_to_r06_copies_of_one_template_share_nothing() {
    let own = own();
    let first = boot(&own).await;
    let memory = own.files().join("memory");
    let before = digest(&memory);
    // Not started together: what differs must not do so because a clock does.
    let second = boot(&own).await;
    assert!(first.restored() && second.restored());
    assert_eq!(
        first.machine.facts().started,
        second.machine.facts().started
    );

    // The first program in each reads random numbers first of all.
    let random = "head -c 32 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/uuid \
                  /proc/sys/kernel/random/boot_id /etc/machine-id";
    let (a, b) = (first.says(random).await, second.says(random).await);
    for (a, b) in a.lines().zip(b.lines()) {
        assert_ne!(a, b, "the same in both");
    }
    assert_eq!((a.lines().count(), b.lines().count()), (5, 5), "{a}{b}");
    assert_eq!(first.says("hostname").await, "test\n");

    // What one writes, to its disk and its memory, the other does not see.
    let write = "echo mine > /mark; dd if=/dev/urandom of=/dev/shm/full bs=1M count=64 2>&1; \
                 rm /dev/shm/full; sync";
    first.says(write).await;
    assert_eq!(
        second.says("ls /mark 2>/dev/null || echo none").await,
        "none\n"
    );
    let third = boot(&own).await;
    assert!(third.restored());
    assert_eq!(
        third.says("ls /mark 2>/dev/null || echo none").await,
        "none\n"
    );
    for booted in [first, second, third] {
        booted.machine.kill().await.unwrap();
    }
    assert_eq!(digest(&memory), before, "somebody wrote to the template");
}

#[tokio::test(flavor = "multi_thread")]
async fn r02_the_clock_is_right_after_a_restore_and_monotonic_goes_on() {
    let own = own();
    boot(&own).await.machine.kill().await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    for _ in 0..3 {
        let booted = boot(&own).await;
        assert!(booted.restored());
        // Asked until an answer came fast enough to tell: between question and answer is the guest's time.
        let mut tolerance = Duration::MAX;
        for _ in 0..10 {
            let asked = SystemTime::now();
            let said = booted.says("date +%s%N; cut -d' ' -f1 /proc/uptime").await;
            let answered = SystemTime::now();
            let mut lines = said.lines();
            let nanoseconds = lines.next().unwrap().parse().unwrap();
            let inside = SystemTime::UNIX_EPOCH + Duration::from_nanos(nanoseconds);
            let late = asked.duration_since(inside).unwrap_or_default();
            let early = inside.duration_since(answered).unwrap_or_default();
            assert!(
                late.max(early) < Duration::from_millis(50),
                "{late:?} late, {early:?} early"
            );
            tolerance = tolerance.min(answered.duration_since(asked).unwrap());
            // Its kernel has run for as long as it took to boot it, not for less.
            assert!(lines.next().unwrap().parse::<f64>().unwrap() > 0.1);
        }
        println!("seen within {tolerance:?}");
        booted.machine.kill().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r05_a_disk_that_the_template_never_saw_is_read_as_it_is() {
    let own = own();
    let first = boot(&own).await;
    first.says("echo kept > /kept; sync").await;
    first.agent.power_off().await.unwrap();
    first.machine.wait().await;
    let layer = first._folder.path().join("layer.ext4");
    // The disk of a stopped machine, in another one that is restored.
    let second = boot_with(&own, |spec| spec.disks[1].path = layer.clone()).await;
    assert!(second.restored());
    assert_eq!(second.says("cat /kept").await, "kept\n");
    second.machine.kill().await.unwrap();
    // Another shape of a disk is another machine.
    let other = boot_with(&own, |spec| {
        spec.disks.truncate(1);
        spec.setup.root.as_mut().unwrap().upper = None;
    });
    let other = other.await;
    assert!(other.restored());
    assert_eq!(own.store().list().unwrap().len(), 2);
    other.machine.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn r07_a_template_that_cannot_be_restored_is_dropped_and_the_machine_boots() {
    let own = own();
    boot(&own).await.machine.kill().await.unwrap();
    let files = own.files();
    // Sound by its own account, and no state of a machine.
    let state = vec![0x5a; 4096];
    fs::write(files.join("state"), &state).unwrap();
    let path = files.with_file_name("template.json");
    let mut description: serde_json::Value =
        serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let mut hasher = blake3::Hasher::new();
    hasher.update(&0u64.to_le_bytes());
    // All bytes are equal and not zero: still a block that counts.
    hasher.update(&state);
    hasher.update(&(state.len() as u64).to_le_bytes());
    description["state"] = hasher.finalize().to_hex().to_string().into();
    fs::write(&path, serde_json::to_vec(&description).unwrap()).unwrap();
    let booted = boot(&own).await;
    let Started::Cold(ColdReason::NotRestored(reason)) = &booted.machine.facts().started else {
        panic!("{:?}", booted.machine.facts());
    };
    assert!(reason.contains("QEMU"), "{reason}");
    assert_eq!(booted.says("echo works").await, "works\n");
    assert!(own.store().list().unwrap().is_empty());
    booted.machine.kill().await.unwrap();
    let next = boot(&own).await;
    assert_eq!(
        next.machine.facts().started,
        Started::Cold(ColdReason::FailedBefore)
    );
    next.machine.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn r08_what_is_saved_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let own = own();
    boot(&own).await.machine.kill().await.unwrap();
    let files = own.files();
    for (path, mode) in [
        (own.cache.path().join("templates"), 0o700),
        (files.join("memory"), 0o600),
        (files.join("state"), 0o600),
    ] {
        let found = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{}", path.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r11_a_removed_templates_machines_go_on_and_the_next_one_is_built_anew() {
    let own = own();
    let first = boot(&own).await;
    let name = own.store().list().unwrap()[0].name.clone();
    own.store().remove(&name).unwrap();
    assert!(own.store().list().unwrap().is_empty());
    // Pages that it has not touched yet are read from a file without a name.
    first
        .says("find / -xdev -type f 2>/dev/null | head -n 300 | xargs cat > /dev/null 2>&1; echo")
        .await;
    let second = boot(&own).await;
    assert_eq!(
        first.machine.facts().started,
        second.machine.facts().started
    );
    for booted in [first, second] {
        booted.machine.kill().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r09_machines_that_start_at_once_share_one_template_and_later_ones_are_fast() {
    let own = own();
    let both = tokio::join!(boot(&own), boot(&own));
    assert!(both.0.restored() && both.1.restored());
    assert_eq!(own.store().list().unwrap().len(), 1);
    both.0.machine.kill().await.unwrap();
    both.1.machine.kill().await.unwrap();
    let time = async |templates| {
        let start = Instant::now();
        let booted = boot_with(&own, |spec| spec.templates = templates).await;
        let took = start.elapsed();
        assert_eq!(booted.restored(), templates == Templates::Use);
        booted.machine.kill().await.unwrap();
        took
    };
    let (restored, cold) = (time(Templates::Use).await, time(Templates::Off).await);
    println!("restored in {restored:?}, booted in {cold:?}");
    assert!(
        restored < cold / 2,
        "restored in {restored:?}, booted in {cold:?}"
    );
}
