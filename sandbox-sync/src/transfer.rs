//! Moves contents between a stream and a disk: async on one side, blocking on the other, a few pieces
//! of memory in between.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::error::Error;
use crate::protocol::{CHUNK, Part, Piece};
use crate::replica::{Batch, Olds, Wanted, read_out};
use crate::root::Root;

/// How many bundles are in memory between stream and disk.
const IN_FLIGHT: usize = 4;

/// Pieces go from thread to thread together, up to so many or so many bytes: most files are short, and waking
/// a thread takes longer than reading one of them.
const TOGETHER: usize = 64;

/// Pieces, in order.
pub(crate) type Bundle = Vec<Piece>;

/// Ties pieces together.
#[derive(Debug)]
pub(crate) struct Bundler {
    queue: mpsc::Sender<Bundle>,
    bundle: Bundle,
    bytes: usize,
}

impl Bundler {
    fn new(queue: mpsc::Sender<Bundle>) -> Self {
        let (bundle, bytes) = (Bundle::new(), 0);
        Self {
            queue,
            bundle,
            bytes,
        }
    }

    /// Adds a piece and returns the bundle that is full with it.
    fn add(&mut self, piece: Piece) -> Option<Bundle> {
        self.bytes += piece.bytes.len();
        self.bundle.push(piece);
        (self.bytes >= CHUNK || self.bundle.len() >= TOGETHER).then(|| self.rest())
    }

    fn rest(&mut self) -> Bundle {
        self.bytes = 0;
        std::mem::take(&mut self.bundle)
    }

    /// Sends a piece, sooner or later; `false` where nobody wants it any more.
    pub(crate) fn send(&mut self, piece: Piece) -> bool {
        match self.add(piece) {
            Some(bundle) => self.queue.blocking_send(bundle).is_ok(),
            None => true,
        }
    }
}

/// Where pieces come from.
pub(crate) trait Source {
    /// Returns the next piece; anything else is an error.
    fn next_piece(&mut self) -> impl Future<Output = Result<Piece, Error>> + Send;
}

/// Fills `batch` with what it needs, which must come in order and no longer than announced.
pub(crate) async fn receive(batch: Batch, source: &mut impl Source) -> Result<Batch, Error> {
    let needed = batch.needed().to_vec();
    let olds = batch.olds().clone();
    let (pieces, queue) = mpsc::channel(IN_FLIGHT);
    let disk = tokio::task::spawn_blocking(move || batch.fill(queue));
    let mut pieces = Bundler::new(pieces);
    let received = pass_on((needed, olds), source, &mut pieces).await;
    // Also after a failure: what arrived as a whole is staged, and all that is kept before the session ends.
    let rest = pieces.rest();
    let passed_on = pieces.queue.send(rest).await;
    drop(pieces);
    let mut batch = disk.await.map_err(writer_ended)?;
    received?;
    passed_on.map_err(writer_ended)?;
    batch.leave(false);
    Ok(batch)
}

async fn pass_on(
    (needed, olds): (Vec<(u32, u64)>, Olds),
    source: &mut impl Source,
    pieces: &mut Bundler,
) -> Result<(), Error> {
    for (item, size) in needed {
        let mut left = size;
        loop {
            let piece = source.next_piece().await?;
            let length = piece.length();
            // Blocks that it does not have, or bytes as well (`S36`).
            let invented = piece.blocks.is_some_and(|blocks| {
                let span = olds.get(&item).and_then(|old| old.span(blocks));
                span.is_none() || !piece.bytes.is_empty()
            });
            let stalls = piece.part == Part::More && length == 0;
            if piece.item != item || length > left || stalls || invented {
                return Err(Error::protocol("contents that nobody asked for"));
            }
            left -= length;
            let ended = piece.part != Part::More;
            if let Some(bundle) = pieces.add(piece) {
                pieces.queue.send(bundle).await.map_err(writer_ended)?;
            }
            if ended {
                break;
            }
        }
    }
    Ok(())
}

fn writer_ended(error: impl Into<sandbox_base::BoxError>) -> Error {
    Error::io("receive contents", std::io::Error::other(error))
}

/// Starts reading files; their pieces come out of the queue in order, some at a time. The task ends when they are all
/// sent or the queue is dropped.
pub(crate) fn send(
    root: Arc<Root>,
    wanted: Vec<Wanted>,
) -> (mpsc::Receiver<Bundle>, JoinHandle<()>) {
    let (pieces, queue) = mpsc::channel(IN_FLIGHT);
    let mut pieces = Bundler::new(pieces);
    let reader = tokio::task::spawn_blocking(move || {
        read_out(&root, wanted, &mut pieces);
        let rest = pieces.rest();
        // Nobody may want it any more.
        drop(pieces.queue.blocking_send(rest));
    });
    (queue, reader)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Blocks;
    use crate::reconcile::Op;
    use crate::replica::{Replica, Setup};
    use crate::rules::{Lists, Rules};
    use crate::scan::Bounds;
    use crate::tree::{Digest, Entry};
    use crate::watch::Watch;

    /// Says one piece.
    struct Says(Option<Piece>);

    impl Source for Says {
        async fn next_piece(&mut self) -> Result<Piece, Error> {
            self.0.take().ok_or_else(|| Error::protocol("the end"))
        }
    }

    /// A large file and the wish for another one of the same length in its place.
    fn batch(folder: &tempfile::TempDir) -> Batch {
        std::fs::write(folder.path().join("x"), vec![7; 1 << 20]).unwrap();
        let setup = Setup {
            rules: Arc::new(Rules::new(&Lists::default()).unwrap()),
            bounds: Bounds {
                entries: 10,
                file_bytes: 1 << 30,
            },
            staging: None,
            owner: None,
            trusts_sender: false,
        };
        let root = Root::open(folder.path()).unwrap();
        let mut replica = Replica::new(root, setup, Arc::new(Watch::nothing()));
        replica.scan(true).unwrap();
        let path = crate::RelPath::new("x").unwrap();
        let old = replica.tree().entry(&path).cloned();
        let new = Some(Entry::File {
            digest: Digest::of(b"another"),
            size: 1 << 20,
            executable: false,
        });
        replica.prepare(vec![Op { path, old, new }]).unwrap()
    }

    #[tokio::test]
    async fn s36_blocks_that_are_not_there_end_the_session() {
        let folder = tempfile::tempdir().unwrap();
        let mut measured = batch(&folder);
        let count = u32::try_from(
            measured
                .take_marks()
                .map(|(_, part)| part.len())
                .sum::<usize>(),
        );
        drop(measured);
        let whole = Blocks {
            first: 0,
            count: count.unwrap(),
            length: 1 << 20,
        };
        let piece = |item, blocks, bytes: &[u8]| Piece {
            item,
            part: Part::Last,
            modified: None,
            bytes: bytes.to_vec(),
            blocks: Some(blocks),
        };
        let longer = Blocks {
            count: whole.count + 1,
            ..whole
        };
        let lying = Blocks { length: 1, ..whole };
        let none = Blocks {
            count: 0,
            length: 0,
            ..whole
        };
        for lie in [
            piece(0, longer, b""),
            piece(0, lying, b""),
            piece(0, none, b""),
            piece(0, whole, b"and more"),
            piece(1, whole, b""),
        ] {
            let told = format!("{lie:?}");
            let received = receive(batch(&folder), &mut Says(Some(lie))).await;
            assert!(received.is_err(), "{told}");
        }
        // What is there is taken, and refused in the end, since it is not what was promised (`S35`).
        let received = receive(batch(&folder), &mut Says(Some(piece(0, whole, b"")))).await;
        let (_, outcomes) = received.unwrap().apply().unwrap();
        assert!(outcomes[0].is_err());
    }
}
