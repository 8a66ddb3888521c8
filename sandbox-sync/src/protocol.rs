//! What host and guest say to each other.
//!
//! The host asks, the guest answers; only [`Reply::Dirty`] comes unasked. Messages are framed and bounded
//! by [`sandbox_base::frame`]; contents follow a [`Piece`]'s header as raw bytes, so they are neither
//! encoded nor copied.
//!
//! ```text
//! host                                guest
//! Hello{version, root, owner, …}  →
//!                                 ←   Hello{version, folding}
//! Scan                            →
//!                                 ←   Found* (what is new, changed or gone since the last scan), Scanned
//! Fetch*, Have*, FetchEnd         →   (and what it has of their old versions)
//!                                 ←   Piece* (every file, in the order asked for)
//! Ops*, OpsEnd                    →
//!                                 ←   Need*, Have*, NeedEnd (what it cannot copy from its own files)
//! Piece* (in the order needed)    →
//!                                 ←   Outcome*, OutcomeEnd (once everything is durable)
//! ```
//!
//! Every phase is one round trip, however many files it moves. In each, one side only writes and the other
//! only reads, so neither can wait for the other while that waits for it.
//!
//! The guest is not believed: lists are bounded in number and in bytes, paths are valid by construction,
//! trees are checked as a whole, indexes must ascend, contents are hashed while they are written.

use std::io;

use sandbox_base::frame;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::fold::Folding;
use crate::path::RelPath;
use crate::reconcile::Op;
use crate::rules::Lists;
use crate::tree::Entry;

/// The version of this protocol; both sides must speak the same.
pub(crate) const VERSION: u32 = 6;
/// The longest message, contents aside.
pub(crate) const MESSAGE: usize = 1 << 20;
/// The most bytes of contents in one piece.
pub(crate) const CHUNK: usize = 128 * 1024;
/// How many bytes of a list go into one message, roughly.
const BATCH: usize = 128 * 1024;
/// How many marks of blocks go into one message.
pub(crate) const MARKS: usize = BATCH / size_of::<Mark>();
/// The longest text of an error that is kept from a guest, in bytes.
pub(crate) const TEXT: usize = 512;

/// The first half of a block's BLAKE3 digest.
pub(crate) type Mark = [u8; 16];

/// Consecutive blocks of an old version, in the place of contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Blocks {
    pub(crate) first: u32,
    pub(crate) count: u32,
    /// How many bytes they are.
    pub(crate) length: u64,
}

/// What the guest is told first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) version: u32,
    /// An absolute path, as the guest's kernel writes it.
    pub(crate) root: Vec<u8>,
    pub(crate) owner: Option<(u32, u32)>,
    pub(crate) lists: Lists,
    pub(crate) entries: u64,
    pub(crate) file_bytes: u64,
    /// Whether the guest shall watch its root; otherwise each scan reads everything.
    pub(crate) watch: bool,
}

/// What the host says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Request {
    Hello(Box<Hello>),
    /// Whether to look at everything, whatever the guest's watch says.
    Scan(bool),
    /// Number, path and length of each file.
    Fetch(Vec<(u32, RelPath, u64)>),
    /// The number of a file, and (more of) the marks of its old version here.
    Have(u32, Vec<Mark>),
    FetchEnd,
    Ops(Vec<Op>),
    OpsEnd,
    Piece(Header),
}

/// What the guest says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Reply {
    Hello {
        version: u32,
        /// What the file system of its root takes for one.
        folding: Folding,
    },
    Dirty,
    Found(Vec<(RelPath, Option<Entry>)>),
    Scanned,
    /// The root is gone or was replaced.
    RootGone,
    Piece(Header),
    Need(Vec<u32>),
    /// The number of a file that it needs, and (more of) the marks of its old version there.
    Have(u32, Vec<Mark>),
    NeedEnd,
    /// For each operation in turn, what stood in the way.
    Outcome(Vec<Option<String>>),
    OutcomeEnd,
    /// The request as a whole failed; the session is over.
    Failed(String),
}

/// What stands before the raw bytes of a piece.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Header {
    item: u32,
    part: Part,
    modified: Option<(i64, u32)>,
    length: u32,
    blocks: Option<Blocks>,
}

/// Where in its file a piece stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Part {
    More,
    Last,
    /// The file could not be read (any more).
    Failed,
}

/// A part of one file's contents.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    /// The index of the operation, or of the request, that the file belongs to.
    pub(crate) item: u32,
    pub(crate) part: Part,
    pub(crate) modified: Option<(i64, u32)>,
    pub(crate) bytes: Vec<u8>,
    /// In the place of bytes: what the receiver has in its old version.
    pub(crate) blocks: Option<Blocks>,
}

impl Piece {
    /// Returns how many bytes of the file it stands for, by its own word.
    pub(crate) fn length(&self) -> u64 {
        self.blocks
            .map_or(self.bytes.len() as u64, |blocks| blocks.length)
    }
}

/// A message of either side that may announce a piece.
pub(crate) trait Message: Serialize + for<'de> Deserialize<'de> {
    fn piece(header: Header) -> Self;
    fn header(&self) -> Option<Header>;
}

impl Message for Request {
    fn piece(header: Header) -> Self {
        Self::Piece(header)
    }
    fn header(&self) -> Option<Header> {
        match self {
            Self::Piece(header) => Some(*header),
            _ => None,
        }
    }
}

impl Message for Reply {
    fn piece(header: Header) -> Self {
        Self::Piece(header)
    }
    fn header(&self) -> Option<Header> {
        match self {
            Self::Piece(header) => Some(*header),
            _ => None,
        }
    }
}

/// A message as it was received.
#[derive(Debug)]
pub(crate) enum Received<M> {
    Message(M),
    Piece(Piece),
}

/// Reads a message, with its contents where it announces some.
pub(crate) async fn read<M: Message>(
    reader: &mut (impl AsyncRead + Unpin),
) -> io::Result<Received<M>> {
    let message: M = frame::read_message(reader, MESSAGE).await?;
    let Some(header) = message.header() else {
        return Ok(Received::Message(message));
    };
    let length = header.length as usize;
    if length > CHUNK {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a piece that is too long",
        ));
    }
    let mut bytes = vec![0; length];
    reader.read_exact(&mut bytes).await?;
    let Header {
        item,
        part,
        modified,
        blocks,
        ..
    } = header;
    Ok(Received::Piece(Piece {
        item,
        part,
        modified,
        bytes,
        blocks,
    }))
}

/// Writes a message without flushing.
pub(crate) async fn write<M: Message>(
    writer: &mut (impl AsyncWrite + Unpin),
    message: &M,
) -> io::Result<()> {
    writer.write_all(&frame::encode(message, MESSAGE)?).await
}

/// Writes a piece without flushing.
pub(crate) async fn write_piece<M: Message>(
    writer: &mut (impl AsyncWrite + Unpin),
    piece: &Piece,
) -> io::Result<()> {
    let header = Header {
        item: piece.item,
        part: piece.part,
        modified: piece.modified,
        length: u32::try_from(piece.bytes.len()).map_err(io::Error::other)?,
        blocks: piece.blocks,
    };
    write(writer, &M::piece(header)).await?;
    writer.write_all(&piece.bytes).await
}

/// Cuts a list into messages of about [`BATCH`] bytes, by the size that `weigh` gives each item.
pub(crate) fn batches<T>(
    items: impl IntoIterator<Item = T>,
    weigh: impl Fn(&T) -> usize,
) -> impl Iterator<Item = Vec<T>> {
    let mut items = items.into_iter().peekable();
    std::iter::from_fn(move || {
        items.peek()?;
        let mut weight = 0;
        let mut batch = Vec::new();
        while weight < BATCH
            && let Some(item) = items.next()
        {
            weight += weigh(&item) + 64;
            batch.push(item);
        }
        Some(batch)
    })
}

/// Returns the bytes that an entry takes in a message, beyond a constant.
pub(crate) fn weight(entry: Option<&Entry>) -> usize {
    match entry {
        Some(Entry::Symlink { target }) => target.len(),
        _ => 0,
    }
}

/// Shortens a text that came from, or goes to, the other side.
pub(crate) fn clip(text: &str) -> String {
    let mut end = text.len().min(TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end]
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
