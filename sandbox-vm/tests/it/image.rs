//! Images of all sources, judged by other programs.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use sandbox_base::ErrorKind;
use sandbox_vm::Progress;
use sandbox_vm::image::{Image, ImageStore};

use crate::erofs::{self, Mounted, look};

/// Makes a folder with every kind of entry that this user may make.
fn every_kind(top: &Path) {
    let put = |name: &str, size: usize| {
        let bytes: Vec<u8> = (0..size).map(|n| (n * 7 + n / 251) as u8).collect();
        fs::write(top.join(name), bytes).unwrap();
    };
    for size in [
        0, 1, 2047, 2048, 2049, 4095, 4096, 4097, 6144, 8192, 300_001,
    ] {
        put(&format!("file-{size}"), size);
    }
    fs::create_dir_all(top.join("deep/er/and/deeper")).unwrap();
    put("deep/er/and/deeper/leaf", 10);
    fs::create_dir(top.join("empty")).unwrap();
    fs::create_dir(top.join("many")).unwrap();
    for n in 0..2000 {
        put(&format!("many/a-rather-long-name-for-a-file-{n}"), n % 7);
    }
    put(&"n".repeat(255), 3);
    symlink("file-1", top.join("short-link")).unwrap();
    symlink("x".repeat(4000), top.join("long-link")).unwrap();
    fs::hard_link(top.join("file-4097"), top.join("deep/same")).unwrap();
    fs::hard_link(top.join("file-1"), top.join("deep/same-small")).unwrap();
    fs::set_permissions(top.join("file-1"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::set_permissions(top.join("empty"), fs::Permissions::from_mode(0o1777)).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(top.join("fifo"))
            .status()
            .unwrap()
            .success()
    );
    let set = |name: &str, attribute: &str, value: &[u8]| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::lsetxattr(top.join(name), attribute, value, flags).unwrap();
    };
    set("file-2048", "user.note", b"kept");
    set("file-2047", "user.long", &[5; 3000]);
    set("deep", "user.folder", b"");
    if rustix::process::geteuid().is_root() {
        let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        set("file-4096", "security.capability", capability);
        let node = |name: &str, kind: &str, number: [&str; 2]| {
            let made = Command::new("mknod")
                .arg(top.join(name))
                .arg(kind)
                .args(number)
                .status();
            assert!(made.unwrap().success());
        };
        node("null", "c", ["1", "3"]);
        node("big-numbers", "b", ["259", "70000"]);
        std::os::unix::fs::chown(top.join("empty"), Some(70_000), Some(80_000)).unwrap();
    }
}

#[tokio::test]
async fn a_directory_comes_back_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    every_kind(folder.path());
    let cache = tempfile::tempdir().unwrap();
    let store = ImageStore::new(cache.path());
    let image = store
        .prepare(&Image::directory(folder.path()), Progress::silent())
        .await
        .unwrap();
    let mode = fs::metadata(&image.path).unwrap().permissions().mode();
    assert_eq!(
        mode & 0o777,
        0o400,
        "other users may not read what they could not read before"
    );
    erofs::check(&image.path);
    compare(folder.path(), &image.path);
}

#[tokio::test]
async fn a_tar_comes_back_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    every_kind(folder.path());
    let place = tempfile::tempdir().unwrap();
    let store = ImageStore::new(place.path());
    let forms = [
        ("plain", "--format=gnu"),
        ("pax", "--format=posix"),
        ("gz", "--gzip"),
    ];
    for (name, form) in forms {
        let archive = place.path().join(format!("{name}.tar"));
        let mut tar = Command::new("tar");
        tar.args([
            form,
            "--format=posix",
            "--xattrs",
            "--xattrs-include=*",
            "-cf",
        ]);
        let made = tar
            .arg(&archive)
            .arg("-C")
            .arg(folder.path())
            .arg(".")
            .status()
            .unwrap();
        assert!(made.success());
        let image = store
            .prepare(&Image::tar(&archive), Progress::silent())
            .await
            .unwrap();
        erofs::check(&image.path);
        compare(folder.path(), &image.path);
    }
}

/// Has the kernel mount the image, and compares all that is visible in it with `folder`.
fn compare(folder: &Path, image: &Path) {
    let Some(mounted) = Mounted::new(image) else {
        return;
    };
    let (before, after) = (look(folder), look(mounted.path()));
    assert!(before.keys().eq(after.keys()), "other names");
    for (path, seen) in &before {
        let (was, is) = (brief(seen), brief(&after[path]));
        assert!(
            *seen == after[path],
            "{}: {was:?} became {is:?}",
            path.display()
        );
    }
}

fn brief(seen: &erofs::Seen) -> impl std::fmt::Debug + '_ {
    (
        &seen.attributes,
        seen.mode,
        seen.owner,
        seen.modified,
        seen.device,
        seen.links,
        seen.contents.len(),
    )
}

#[tokio::test]
async fn the_same_folder_is_taken_from_the_cache_and_a_changed_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a"), "1").unwrap();
    let cache = tempfile::tempdir().unwrap();
    let store = ImageStore::new(cache.path());
    let source = Image::directory(folder.path());
    let first = store.prepare(&source, Progress::silent()).await.unwrap();
    let made = fs::metadata(&first.path).unwrap().modified().unwrap();
    assert_eq!(
        store.prepare(&source, Progress::silent()).await.unwrap(),
        first
    );
    assert_eq!(fs::metadata(&first.path).unwrap().modified().unwrap(), made);

    let bytes = fs::read(&first.path).unwrap();
    let again = store.rebuild(&source, Progress::silent()).await.unwrap();
    assert_eq!(
        fs::read(&again.path).unwrap(),
        bytes,
        "the same input gives the same bytes"
    );

    fs::write(folder.path().join("a"), "2").unwrap();
    let changed = store.prepare(&source, Progress::silent()).await.unwrap();
    assert_ne!(changed.digest, first.digest);
}

#[tokio::test]
async fn a_missing_or_wrong_source_is_told_and_leaves_nothing() {
    let cache = tempfile::tempdir().unwrap();
    let store = ImageStore::new(cache.path());
    let sources = [
        (Image::directory("/no/such/folder"), ErrorKind::NotFound),
        (Image::directory("/etc/passwd"), ErrorKind::Invalid),
        (Image::tar("/no/such.tar"), ErrorKind::NotFound),
        (Image::tar("/etc/passwd"), ErrorKind::Invalid),
        (Image::tar("/dev/null"), ErrorKind::Invalid),
        (Image::oci_layout("/no/such/layout"), ErrorKind::NotFound),
        (Image::oci_layout(cache.path()), ErrorKind::NotFound),
    ];
    for (source, kind) in sources {
        let error = store
            .prepare(&source, Progress::silent())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), kind, "{source:?}: {error}");
    }
    let left = fs::read_dir(cache.path().join("images")).unwrap();
    let left: Vec<_> = left
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(left.iter().all(|name| name.ends_with(".lock")), "{left:?}");
}

#[tokio::test]
async fn the_default_image_has_what_a_build_needs() {
    let (cache, _folder) = crate::kernel::cache();
    let image = ImageStore::new(&cache)
        .prepare(&Image::Default, Progress::silent())
        .await
        .unwrap();
    assert_eq!(image.config.user.as_deref(), Some("agent"));
    erofs::check(&image.path);
    let Some(mounted) = Mounted::new(&image.path) else {
        return;
    };
    for program in ["gcc", "make", "git", "python3", "sudo", "ps"] {
        let path = mounted.path().join("usr/bin").join(program);
        assert!(path.symlink_metadata().is_ok(), "{program}");
    }
    let users = fs::read_to_string(mounted.path().join("etc/passwd")).unwrap();
    assert!(users.contains("agent:x:1000:1000:"), "{users}");
    let sources = fs::read_dir(mounted.path().join("etc/apt/sources.list.d"))
        .unwrap()
        .count();
    assert_eq!(sources, 0, "sources of nobody else");
}
