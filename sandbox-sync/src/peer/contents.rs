//! Files of the guest, in memory, for a review.

use super::{Peer, Request, Source, batches};
use crate::cycle::Wish;
use crate::error::Error;
use crate::path::RelPath;
use crate::protocol::Part;

impl Peer {
    /// Reads files of the guest, no further than it said they go; `None` for those that it cannot read.
    /// Whether they are what it said is for the caller to find out.
    pub(crate) async fn contents(&mut self, files: &[Wish]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        if files.is_empty() {
            return Ok(Vec::new());
        }
        for part in requests(files) {
            self.say(&Request::Fetch(part)).await?;
        }
        self.say(&Request::FetchEnd).await?;
        self.flush().await?;
        let mut contents = Vec::new();
        for (item, (_, _, size)) in (0u32..).zip(files) {
            contents.push(self.one(item, *size).await?);
        }
        Ok(contents)
    }

    async fn one(&mut self, item: u32, size: u64) -> Result<Option<Vec<u8>>, Error> {
        let mut bytes = Vec::new();
        loop {
            let piece = self.next_piece().await?;
            // There is no old version that it could refer to.
            let stalls =
                piece.part == Part::More && piece.bytes.is_empty() || piece.blocks.is_some();
            let length = (bytes.len() + piece.bytes.len()) as u64;
            if piece.item != item || length > size || stalls {
                return Err(Error::protocol("contents that nobody asked for"));
            }
            bytes.extend_from_slice(&piece.bytes);
            match piece.part {
                Part::More => {}
                Part::Last => return Ok(Some(bytes)),
                Part::Failed => return Ok(None),
            }
        }
    }
}

/// Returns what to ask for, in messages of a bounded length.
fn requests(files: &[Wish]) -> Vec<Vec<(u32, RelPath, u64)>> {
    let numbered = (0u32..).zip(files);
    let files = numbered.map(|(item, (path, _, size))| (item, path.clone(), *size));
    batches(files, |(_, path, _)| path.as_bytes().len()).collect()
}
