//! Moves contents between a stream and a disk: async on one side, blocking on the other, a few pieces
//! of memory in between.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::error::Error;
use crate::protocol::{Part, Piece};
use crate::replica::{Batch, Wanted, read_out};
use crate::root::Root;

/// How many pieces are in memory between stream and disk.
const IN_FLIGHT: usize = 8;

/// Where pieces come from.
pub(crate) trait Source {
    /// Returns the next piece; anything else is an error.
    fn next_piece(&mut self) -> impl Future<Output = Result<Piece, Error>> + Send;
}

/// Fills `batch` with what it needs, which must come in order and no longer than announced.
pub(crate) async fn receive(batch: Batch, source: &mut impl Source) -> Result<Batch, Error> {
    let needed = batch.needed().to_vec();
    let (pieces, queue) = mpsc::channel(IN_FLIGHT);
    let disk = tokio::task::spawn_blocking(move || batch.fill(queue));
    let received = pass_on(needed, source, pieces).await;
    // Also after a failure: what was staged is cleared before the session ends.
    let batch = disk.await.map_err(writer_ended)?;
    received.map(|()| batch)
}

async fn pass_on(
    needed: Vec<(u32, u64)>,
    source: &mut impl Source,
    pieces: mpsc::Sender<Piece>,
) -> Result<(), Error> {
    for (item, size) in needed {
        let mut left = size;
        loop {
            let piece = source.next_piece().await?;
            let length = piece.bytes.len() as u64;
            let stalls = piece.part == Part::More && length == 0;
            if piece.item != item || length > left || stalls {
                return Err(Error::protocol("contents that nobody asked for"));
            }
            left -= length;
            let ended = piece.part != Part::More;
            pieces.send(piece).await.map_err(writer_ended)?;
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

/// Starts reading files; their pieces come out of the queue in order. The task ends when they are all
/// sent or the queue is dropped.
pub(crate) fn send(
    root: Arc<Root>,
    wanted: Vec<Wanted>,
) -> (mpsc::Receiver<Piece>, JoinHandle<()>) {
    let (pieces, queue) = mpsc::channel(IN_FLIGHT);
    let reader = tokio::task::spawn_blocking(move || read_out(&root, wanted, &pieces));
    (queue, reader)
}
