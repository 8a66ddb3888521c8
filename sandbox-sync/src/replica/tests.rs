use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::*;
use crate::rules::Lists;
use crate::transfer::{self, Source};

const TEXT: &[u8] = b"what was sent";
/// What the sender says it is, so that a look that reads it would tell.
const NAME: &[u8] = b"what is said!";
const LATER: &[u8] = b"what is later";

fn path() -> RelPath {
    RelPath::new("x").unwrap()
}

fn entry(text: &[u8]) -> Entry {
    Entry::File {
        digest: Digest::of(text),
        size: text.len() as u64,
        executable: false,
    }
}

fn replica(folder: &Path, trusts_sender: bool) -> Replica {
    let setup = Setup {
        rules: Arc::new(Rules::new(&Lists::default()).unwrap()),
        bounds: Bounds {
            entries: 10,
            file_bytes: 1 << 20,
        },
        staging: None,
        owner: None,
        trusts_sender,
    };
    let root = Root::open(folder).unwrap();
    Replica::new(root, setup, Arc::new(Watch::nothing()))
}

/// Sends one short file.
struct Sends;

impl Source for Sends {
    async fn next_piece(&mut self) -> Result<Piece, crate::Error> {
        Ok(Piece {
            item: 0,
            part: Part::Last,
            modified: Some((1_000_000_000, 5)),
            bytes: TEXT.to_vec(),
            blocks: None,
        })
    }
}

/// Has a file put in place that is not what it is said to be, and says what came of it.
async fn put(replica: &mut Replica) -> Outcomes {
    let ops = vec![Op {
        path: path(),
        old: None,
        new: Some(entry(NAME)),
    }];
    let batch = replica.prepare(ops).unwrap();
    let batch = transfer::receive(batch, &mut Sends).await.unwrap();
    let (ops, outcomes) = batch.apply().unwrap();
    replica.made(&ops, &outcomes);
    outcomes
}

fn found(replica: &mut Replica) -> Option<Entry> {
    replica.scan(true).unwrap();
    replica.tree().entry(&path()).cloned()
}

#[tokio::test]
async fn s35_only_who_trusts_the_sender_takes_its_word() {
    let folder = tempfile::tempdir().unwrap();
    let mut suspicious = replica(folder.path(), false);
    assert!(put(&mut suspicious).await[0].is_err());
    assert_eq!(found(&mut suspicious), None);
    drop(suspicious);
    let mut trusting = replica(folder.path(), true);
    assert!(put(&mut trusting).await[0].is_ok());
    // It was not read since it was put there.
    assert_eq!(found(&mut trusting), Some(entry(NAME)));
    assert_eq!(found(&mut trusting), Some(entry(NAME)));
}

#[tokio::test]
async fn s25_what_was_put_in_place_is_read_again_once_somebody_wrote_to_it() {
    let ways: [fn(&Path); 3] = [
        |file| fs::write(file, LATER).unwrap(),
        |file| {
            let time = fs::metadata(file).unwrap().modified().unwrap();
            // Another tick of the kernel's clock.
            std::thread::sleep(Duration::from_millis(50));
            let mut file = fs::File::options().write(true).open(file).unwrap();
            file.write_all(LATER).unwrap();
            file.set_modified(time).unwrap();
        },
        |file| {
            let saved = file.with_extension("saved");
            fs::write(&saved, LATER).unwrap();
            fs::rename(saved, file).unwrap();
        },
    ];
    for write in ways {
        let folder = tempfile::tempdir().unwrap();
        let mut replica = replica(folder.path(), true);
        assert!(put(&mut replica).await[0].is_ok());
        write(&folder.path().join("x"));
        assert_eq!(found(&mut replica), Some(entry(LATER)));
    }
}

#[test]
fn s25_another_file_is_not_what_was_staged() {
    let folder = tempfile::tempdir().unwrap();
    let root = Root::open(folder.path()).unwrap();
    let mut staging = Staging::open(&root, None, None).unwrap();
    let content = (Digest::of(TEXT), TEXT.len() as u64);
    let mut file = staging.file(content, false, None).unwrap();
    file.write(TEXT).unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let (ready, _) = file.finish(Some((1_000_000_000, 0))).unwrap();
    let staged = (staging.folder(), ready.name.as_bytes());
    assert!(ready.is_at(staged).is_some());
    fs::write(folder.path().join("x"), NAME).unwrap();
    let other = fs::File::options()
        .write(true)
        .open(folder.path().join("x"));
    other.unwrap().set_modified(time).unwrap();
    assert!(ready.is_at((root.folder(), b"x")).is_none());
}

#[tokio::test]
async fn s13_what_is_no_longer_what_was_found_is_not_sent_as_if_it_were() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("x"), TEXT).unwrap();
    let root = Arc::new(Root::open(folder.path()).unwrap());
    for (said, part) in [(TEXT, Part::Last), (NAME, Part::Failed)] {
        let wanted = Wanted {
            item: 0,
            path: path(),
            size: TEXT.len() as u64,
            digest: Some(Digest::of(said)),
            index: None,
        };
        let (mut bundles, _reader) = transfer::send(root.clone(), vec![wanted]);
        assert_eq!(bundles.recv().await.unwrap()[0].part, part);
    }
}
