//! Judges of an image that are not ours: the tools of erofs-utils, and the kernel.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Has `fsck.erofs` judge the image.
pub(crate) fn check(image: &Path) {
    let output = Command::new("fsck.erofs")
        .arg("--extract")
        .arg(image)
        .output();
    let output = output.expect("these tests need the package erofs-utils");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "fsck.erofs: {text}");
}

/// An image mounted by the running kernel.
#[derive(Debug)]
pub(crate) struct Mounted(tempfile::TempDir);

impl Mounted {
    /// Mounts the image; `None`, with the reason printed, where this user or kernel cannot.
    pub(crate) fn new(image: &Path) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: mounting an image on a loop device needs root");
            return None;
        }
        let known = fs::read_to_string("/proc/filesystems").unwrap();
        if !known.contains("\terofs\n") || !Path::new("/dev/loop-control").exists() {
            println!("skipped: this kernel has no EROFS or no loop devices");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let mount = ["-t", "erofs", "-o", "loop,ro"];
        let done = Command::new("mount")
            .args(mount)
            .arg(image)
            .arg(folder.path())
            .status()
            .unwrap();
        assert!(done.success(), "the kernel refuses the image");
        Some(Self(folder))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(self.0.path()).status().unwrap();
        assert!(done.success(), "umount");
    }
}

/// All that is visible of an entry.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) modified: (i64, i64),
    pub(crate) device: u64,
    pub(crate) links: u64,
    pub(crate) contents: Vec<u8>,
    pub(crate) attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Reads a tree below `top`, everything of it.
pub(crate) fn look(top: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut all = BTreeMap::new();
    let mut folders = vec![top.to_owned()];
    while let Some(folder) = folders.pop() {
        all.insert(
            folder.strip_prefix(top).unwrap().to_owned(),
            look_at(&folder),
        );
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                folders.push(path);
            } else {
                all.insert(path.strip_prefix(top).unwrap().to_owned(), look_at(&path));
            }
        }
    }
    all
}

fn look_at(path: &Path) -> Seen {
    let metadata = path.symlink_metadata().unwrap();
    let contents = if metadata.is_file() {
        fs::read(path).unwrap()
    } else if metadata.is_symlink() {
        fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec()
    } else {
        Vec::new()
    };
    let is_device = metadata.mode() & 0o170_000 == 0o020_000;
    Seen {
        mode: metadata.mode(),
        owner: (metadata.uid(), metadata.gid()),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        device: if is_device { metadata.rdev() } else { 0 },
        links: metadata.nlink(),
        contents,
        attributes: attributes(path),
    }
}

fn attributes(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 1 << 16];
    let length = rustix::fs::llistxattr(path, &mut names).unwrap_or(0);
    let names = names[..length].split(|&b| b == 0).filter(|n| !n.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 1 << 16];
        let length = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
        value[..length].to_vec()
    };
    names.map(|name| (name.to_vec(), value(name))).collect()
}
