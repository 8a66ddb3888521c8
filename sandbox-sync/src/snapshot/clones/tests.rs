//! Long files on file systems that can share blocks, which the tests make for themselves, and on one that cannot.

use std::path::Path;
use std::process::Command;

use sandbox_base::ErrorKind;
use tempfile::TempDir;

use super::*;
use crate::snapshot::{Options, Space, Store};

const LONG: usize = 32 << 20;

/// A file system in a file, on a loop device.
struct Disk(TempDir);

impl Disk {
    /// Makes one; `None`, with the reason printed, where this user or machine cannot.
    fn new(kind: &str) -> Option<Self> {
        let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        let lacking = if !rustix::process::geteuid().is_root() {
            "mounting an image needs root"
        } else if !Path::new("/dev/loop-control").exists() {
            "there are no loop devices"
        } else if !known.lines().any(|line| line.trim() == kind) {
            "this kernel does not know it"
        } else {
            ""
        };
        if !lacking.is_empty() {
            println!("skipped: {kind}: {lacking}");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        // The least that the larger of the two wants.
        File::create(&image).unwrap().set_len(400 << 20).unwrap();
        let program = format!("mkfs.{kind}");
        let Ok(made) = Command::new(&program).arg("-q").arg(&image).output() else {
            println!("skipped: {kind}: there is no {program}");
            return None;
        };
        assert!(
            made.status.success(),
            "{program}: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        fs::create_dir(folder.path().join("disk")).unwrap();
        let disk = Self(folder);
        let mounted = Command::new("mount")
            .args(["-o", "loop"])
            .arg(image)
            .arg(disk.path(""))
            .status();
        assert!(mounted.unwrap().success(), "mount");
        fs::create_dir(disk.path("root")).unwrap();
        Some(disk)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join("disk").join(path)
    }

    fn space(&self, name: &str) -> Space {
        Store::open(self.path("store"))
            .unwrap()
            .space(name)
            .unwrap()
    }

    /// How many bytes are in use, once everything is written.
    fn used(&self) -> u64 {
        let folder = File::open(self.path("")).unwrap();
        rustix::fs::syncfs(&folder).unwrap();
        let facts = rustix::fs::fstatvfs(&folder).unwrap();
        (facts.f_blocks - facts.f_bfree) * facts.f_frsize
    }

    fn clones(&self) -> Vec<PathBuf> {
        let clones = fs::read_dir(self.path("store/clones")).unwrap();
        clones.map(|clone| clone.unwrap().path()).collect()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(self.path("")).status().unwrap();
        assert!(done.success() || std::thread::panicking(), "umount");
    }
}

/// Bytes that no compression makes shorter.
fn random(seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; LONG];
    blake3::Hasher::new()
        .update(&[seed])
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// What holds wherever blocks can be shared.
fn shares(kind: &str) {
    let Some(disk) = Disk::new(kind) else {
        return;
    };
    let (root, options) = (disk.path("root"), Options::default());
    let (one, two) = (random(1), random(2));
    fs::write(root.join("long"), &one).unwrap();
    fs::write(root.join("short"), &one[..10_000]).unwrap();
    let space = disk.space("one");
    let before = disk.used();
    let taken = space.snapshot(&root, "first", &options).unwrap();
    assert_eq!((taken.cloned, taken.read), (1, 2));
    let grown = disk.used().saturating_sub(before);
    assert!(
        grown < 4 << 20,
        "{kind}: a clone of {LONG} bytes took {grown}"
    );
    assert!(taken.added < 100_000, "{}", taken.added);

    // The same contents, in another place and another space, are there once.
    fs::copy(root.join("long"), root.join("again")).unwrap();
    let other = disk.space("other");
    assert_eq!(other.snapshot(&root, "same", &options).unwrap().cloned, 2);
    assert_eq!(disk.clones().len(), 1);
    fs::remove_file(root.join("again")).unwrap();

    // What is written to the original later is not in the clone.
    fs::write(root.join("long"), &two).unwrap();
    space.snapshot(&root, "second", &options).unwrap();
    assert_eq!(disk.clones().len(), 2);
    let before = disk.used();
    let restored = space.restore(&root, ("first", &[]), &options).unwrap();
    assert_eq!((restored.cloned, restored.refused.len()), (1, 0));
    assert!(fs::read(root.join("long")).unwrap() == one);
    let grown = disk.used().saturating_sub(before);
    assert!(grown < 4 << 20, "{kind}: what was restored took {grown}");

    // Only what nobody needs goes.
    let store = Store::open(disk.path("store")).unwrap();
    store.collect().unwrap();
    assert_eq!(disk.clones().len(), 2);
    space.clear().unwrap();
    assert_eq!(store.collect().unwrap().freed / LONG as u64, 1);
    assert_eq!(disk.clones().len(), 1);
    let back = other
        .restore(&root, ("same", &["again"]), &options)
        .unwrap();
    assert_eq!(back.done.len(), 1);
    assert!(fs::read(root.join("again")).unwrap() == one);
}

#[test]
fn long_files_share_their_blocks_on_btrfs() {
    shares("btrfs");
}

#[test]
fn long_files_share_their_blocks_on_xfs() {
    shares("xfs");
}

#[test]
fn i15_a_clone_that_is_damaged_is_told_never_restored_and_made_anew() {
    let Some(disk) = Disk::new("btrfs") else {
        return;
    };
    let (root, options) = (disk.path("root"), Options::default());
    fs::write(root.join("long"), random(1)).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(2_100));
    let space = disk.space("one");
    space.snapshot(&root, "first", &options).unwrap();
    let clone = disk.clones().remove(0);
    let mut bytes = fs::read(&clone).unwrap();
    bytes[LONG / 2] ^= 1;
    fs::write(&clone, bytes).unwrap();

    fs::rename(root.join("long"), disk.path("kept")).unwrap();
    let refused = space.restore(&root, ("first", &[]), &options);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Damaged);
    assert!(!root.join("long").exists());
    fs::rename(disk.path("kept"), root.join("long")).unwrap();

    let store = Store::open(disk.path("store")).unwrap();
    let found = store.verify().unwrap();
    assert_eq!((found.damaged, found.hurt.len()), (1, 1));
    assert_eq!(found.hurt[0].paths, [crate::RelPath::new("long").unwrap()]);
    space.snapshot(&root, "healed", &options).unwrap();
    let found = store.verify().unwrap();
    assert_eq!((found.damaged, found.hurt.len()), (0, 0));
    fs::remove_file(root.join("long")).unwrap();
    space.restore(&root, ("first", &[]), &options).unwrap();
    assert!(fs::read(root.join("long")).unwrap() == random(1));
}

#[test]
fn where_blocks_cannot_be_shared_long_files_go_into_packs() {
    let shm = Path::new("/dev/shm");
    if !shm.is_dir() {
        println!("skipped: there is no tmpfs");
        return;
    }
    let place = tempfile::tempdir_in(shm).unwrap();
    let (root, store) = (place.path().join("root"), place.path().join("store"));
    fs::create_dir(&root).unwrap();
    for name in ["a", "b"] {
        fs::write(root.join(name), random(name.as_bytes()[0])).unwrap();
    }
    let space = Store::open(&store).unwrap().space("one").unwrap();
    let taken = space.snapshot(&root, "first", &Options::default()).unwrap();
    assert_eq!((taken.read, taken.cloned), (2, 0));
    assert!(taken.added > 2 * LONG as u64);
    assert_eq!(fs::read_dir(store.join("clones")).unwrap().count(), 0);
    fs::remove_file(root.join("a")).unwrap();
    let restored = space
        .restore(&root, ("first", &[]), &Options::default())
        .unwrap();
    assert_eq!((restored.done.len(), restored.cloned), (1, 0));
    assert!(fs::read(root.join("a")).unwrap() == random(b'a'));
}
