//! Large files of which little changed, and files with holes.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sandbox_sync::{Session, guest};
use tokio::io::duplex;

use crate::pair::{Pair, assert_clean};
use crate::stream::{End, Metered};

/// Small, because what hashes is slow in tests; the benchmark takes a gigabyte.
const LENGTH: usize = 1 << 20;

fn large() -> Vec<u8> {
    let mut word = 1u64;
    let next = |_| {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word.to_le_bytes()
    };
    (0..LENGTH / 8).flat_map(next).collect()
}

#[tokio::test]
async fn a_large_file_with_few_changes_moves_little_in_both_directions() {
    let pair = Pair::new();
    fs::write(pair.host("large"), large()).unwrap();
    let moved = Arc::new(AtomicU64::new(0));
    let (ours, theirs) = duplex(64 * 1024);
    drop(tokio::spawn(guest::serve(
        Box::new(theirs),
        guest::Options::default(),
    )));
    let stream = Box::new(Metered::new(ours, End::Never).counting(&moved));
    let host = pair.host("");
    let session = Session::start(&host, stream, pair.options()).await.unwrap();
    assert!(moved.load(Ordering::Relaxed) > LENGTH as u64);
    for (from, to) in [
        (pair.host("large"), pair.guest("large")),
        (pair.guest("large"), pair.host("large")),
    ] {
        let mut contents = fs::read(&from).unwrap();
        // A hundredth in one place, and a byte that moves everything after it.
        contents[3 << 18..][..LENGTH / 100].reverse();
        contents.insert(1 << 18, 0);
        fs::write(&from, &contents).unwrap();
        let before = moved.load(Ordering::Relaxed);
        assert_clean(&session.flush().await.unwrap());
        let bytes = moved.load(Ordering::Relaxed) - before;
        // Two places, each within a few blocks of 64 KiB at most.
        assert!(bytes < LENGTH as u64 / 3, "{bytes} bytes to {to:?}");
        assert!(fs::read(to).unwrap() == contents);
    }
    session.stop().await.unwrap();
}

#[tokio::test]
async fn s40_files_stay_sparse() {
    let pair = Pair::new();
    let file = fs::File::create(pair.host("sparse")).unwrap();
    file.write_all_at(b"middle", 1 << 20).unwrap();
    file.set_len(2 << 20).unwrap();
    fs::File::create(pair.host("hole"))
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let session = pair.start().await;
    assert_clean(session.initial());
    for name in ["sparse", "hole"] {
        assert!(fs::read(pair.host(name)).unwrap() == fs::read(pair.guest(name)).unwrap());
        let blocks = fs::metadata(pair.guest(name)).unwrap().blocks();
        assert!(blocks * 512 < 1 << 19, "{name} takes {blocks} blocks");
    }
    // And by way of blocks of an old version.
    file.write_all_at(b"more", 3 << 19).unwrap();
    assert_clean(&session.flush().await.unwrap());
    assert!(fs::read(pair.host("sparse")).unwrap() == fs::read(pair.guest("sparse")).unwrap());
    let blocks = fs::metadata(pair.guest("sparse")).unwrap().blocks();
    assert!(blocks * 512 < 1 << 19, "{blocks} blocks");
}
