//! The writable layer, judged by e2fsprogs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use sandbox_base::ErrorKind;
use sandbox_vm::disk;

#[tokio::test]
async fn a_disk_is_a_sound_empty_sparse_ext4() {
    let cache = tempfile::tempdir().unwrap();
    for mebibytes in [16, 200, 10 << 10] {
        let target = cache.path().join(format!("{mebibytes}.img"));
        disk::create(cache.path(), mebibytes << 20, &target)
            .await
            .unwrap();
        let checked = Command::new("/sbin/e2fsck")
            .args(["-f", "-n"])
            .arg(&target)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&checked.stdout);
        assert!(checked.status.success(), "{said}");
        let metadata = fs::metadata(&target).unwrap();
        assert_eq!(metadata.len(), mebibytes << 20);
        assert!(
            metadata.blocks() * 512 < 4 << 20,
            "{} of {mebibytes} MiB taken",
            metadata.blocks() * 512
        );
        assert_eq!(metadata.mode() & 0o777, 0o600);
    }
}

#[tokio::test]
async fn disks_of_one_size_are_equal_and_apart() {
    let cache = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| cache.path().join(name));
    disk::create(cache.path(), disk::MIN_BYTES, &a)
        .await
        .unwrap();
    disk::create(cache.path(), disk::MIN_BYTES, &b)
        .await
        .unwrap();
    assert_eq!(fs::read(&a).unwrap(), fs::read(&b).unwrap());
    fs::write(&a, "a guest was here").unwrap();
    assert_eq!(fs::metadata(&b).unwrap().len(), disk::MIN_BYTES);
}

#[tokio::test]
async fn a_taken_name_and_a_wrong_size_are_refused() {
    let cache = tempfile::tempdir().unwrap();
    let target = cache.path().join("taken");
    fs::write(&target, "precious").unwrap();
    let error = disk::create(cache.path(), disk::MIN_BYTES, &target)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(fs::read(&target).unwrap(), b"precious");
    for bytes in [0, disk::MIN_BYTES - 1, disk::MAX_BYTES + 1] {
        let error = disk::create(cache.path(), bytes, &target)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
}
