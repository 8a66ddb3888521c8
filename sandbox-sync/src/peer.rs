//! The host's view of the guest: asks, and believes nothing.
//!
//! A task of its own reads the stream into a short queue, so that a hint is noticed whatever else is going
//! on. Any error of the stream or the protocol is final: the peer is not spoken to again.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use sandbox_base::{BoxStream, ErrorKind};
use tokio::io::{AsyncWriteExt, BufReader, BufWriter, ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use crate::delta::{self, Index};
use crate::error::Error;
use crate::fold::Folding;
use crate::options::Limits;
use crate::path::RelPath;
use crate::progress::Progress;
use crate::protocol::{self, Hello, Mark, Piece, Received, Reply, Request, batches, clip, weight};
use crate::reconcile::Op;
use crate::replica::{Batch, Wanted};
use crate::root::Root;
use crate::transfer::{self, Bundle, Source};
use crate::tree::{Entry, Item, MANY, Tree};

mod contents;
mod meter;

use meter::Meter;

/// How long the paths of a tree may be on average: what it costs to hold it is bounded, not only the
/// number of its entries.
const PATH_BYTES: usize = 256;

/// Messages that were read and not yet looked at.
const QUEUE: usize = 8;

/// The guest's half, as the host sees it.
pub(crate) struct Peer {
    writer: BufWriter<WriteHalf<BoxStream>>,
    incoming: mpsc::Receiver<io::Result<Received<Reply>>>,
    dirty: Arc<Notify>,
    reader: JoinHandle<()>,
    tree: Tree,
    /// By its own word.
    folding: Folding,
    /// What the paths and targets of `tree` take.
    bytes: usize,
    limits: Limits,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Peer {
    /// Introduces the host and waits for the guest's answer.
    pub(crate) async fn connect(
        stream: BoxStream,
        hello: Hello,
        limits: Limits,
    ) -> Result<Self, Error> {
        let (read, write) = tokio::io::split(stream);
        let dirty = Arc::new(Notify::new());
        let (queue, incoming) = mpsc::channel(QUEUE);
        let mut peer = Self {
            writer: BufWriter::with_capacity(64 * 1024, write),
            incoming,
            reader: tokio::spawn(read_all(read, queue, dirty.clone())),
            dirty,
            tree: Tree::default(),
            folding: Folding::default(),
            bytes: 0,
            limits,
        };
        let version = hello.version;
        peer.say(&Request::Hello(Box::new(hello))).await?;
        peer.flush().await?;
        match peer.message().await? {
            Reply::Hello {
                version: theirs,
                folding,
            } if theirs == version => {
                peer.folding = folding;
                Ok(peer)
            }
            Reply::Hello {
                version: theirs, ..
            } => Err(Error::new(
                ErrorKind::Unsupported,
                "speak to the guest",
                format!("it speaks version {theirs}, the host {version}"),
            )),
            reply => Err(unexpected(reply)),
        }
    }

    /// Returns what the guest said it has, after the last scan.
    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Returns what the guest says that its file system takes for one.
    pub(crate) fn folding(&self) -> Folding {
        self.folding
    }

    /// Holds what `other` holds wherever the two are equal.
    pub(crate) fn share_all(&mut self, other: &Tree) {
        self.tree.share_all(other);
    }

    /// Returns what is notified when the guest hints that something changed.
    pub(crate) fn hint(&self) -> Arc<Notify> {
        self.dirty.clone()
    }

    /// Waits, while nothing is asked, for the peer to go or to talk out of turn. Cancel safe.
    pub(crate) async fn ended(&mut self) -> Error {
        match self.incoming.recv().await {
            None => Error::disconnected("synchronize"),
            Some(Err(error)) => stream_error(error),
            Some(Ok(Received::Message(reply))) => unexpected(reply),
            Some(Ok(Received::Piece(_))) => Error::protocol("contents that nobody asked for"),
        }
    }

    /// Asks for what changed since the last scan, which the guest finds by a `thorough` look or by its
    /// watch, and returns the paths; `None` means that the guest's root is gone. What is in `base` as well is
    /// held once.
    pub(crate) async fn scan(
        &mut self,
        thorough: bool,
        base: &Tree,
    ) -> Result<Option<BTreeSet<RelPath>>, Error> {
        self.say(&Request::Scan(thorough)).await?;
        self.flush().await?;
        let mut seen = BTreeSet::new();
        loop {
            match self.message().await? {
                Reply::Found(entries) => {
                    for (path, entry) in entries {
                        let item = match entry {
                            None => Err(path),
                            Some(entry) => Ok(base
                                .same(&path, &entry)
                                .unwrap_or_else(|| Item::new(path, entry))),
                        };
                        self.found(item, &mut seen)?;
                    }
                }
                Reply::Scanned => break,
                Reply::RootGone => return Ok(None),
                reply => return Err(unexpected(reply)),
            }
        }
        let checked = self.tree.check_at(&seen);
        checked.map_err(|path| Error::protocol(format!("a tree that cannot be, at {path}")))?;
        Ok(Some(seen))
    }

    /// Has the guest's tree hold what `host` holds where the two are equal.
    pub(crate) fn share(&mut self, host: &Tree, paths: &[RelPath]) {
        for path in paths {
            self.tree.share(host, path);
        }
        if paths.len() > MANY {
            self.tree.pack();
        }
    }

    /// Takes in what is at a path now, or that nothing is.
    fn found(
        &mut self,
        item: Result<Item, RelPath>,
        seen: &mut BTreeSet<RelPath>,
    ) -> Result<(), Error> {
        let bytes = |item: &Item| item.path().as_bytes().len() + weight(Some(item.entry()));
        let (path, entry) = match &item {
            Ok(item) => (item.path().clone(), Some(item.entry())),
            Err(path) => (path.clone(), None),
        };
        let old = self.tree.item(&path);
        if entry.is_none() && old.is_none() {
            return Err(Error::protocol(format!(
                "the removal of {path}, which was never there"
            )));
        }
        let size = entry
            .and_then(Entry::content)
            .map_or(0, |content| content.1);
        if size > self.limits.file_bytes {
            return Err(Error::protocol(format!("{path} with {size} bytes")));
        }
        self.bytes -= old.map_or(0, bytes);
        self.bytes += item.as_ref().map_or(0, bytes);
        match item {
            Ok(item) => self.tree.put(item),
            Err(path) => self.tree.set(path, None),
        }
        let most = self.limits.entries;
        if self.tree.len() > most || self.bytes > most.saturating_mul(PATH_BYTES) {
            return Err(Error::protocol(format!(
                "more than {most} entries, or their paths too long"
            )));
        }
        match seen.contains(&path) {
            true => Err(Error::protocol(format!("{path} twice in one scan"))),
            false => {
                seen.insert(path);
                Ok(())
            }
        }
    }

    /// Fills `batch` with the contents of the guest's files.
    pub(crate) async fn fetch(&mut self, mut batch: Batch) -> Result<Batch, Error> {
        let wanted = batch.wanted();
        if wanted.is_empty() {
            return Ok(batch);
        }
        for part in batches(wanted, |want| want.path.as_bytes().len()) {
            let part = part
                .into_iter()
                .map(|want| (want.item, want.path, want.size))
                .collect();
            self.say(&Request::Fetch(part)).await?;
        }
        for (item, marks) in batch.take_marks() {
            self.say(&Request::Have(item, marks)).await?;
        }
        self.say(&Request::FetchEnd).await?;
        self.flush().await?;
        transfer::receive(batch, self).await
    }

    /// Has the guest carry out `ops`, sending it from `root` what it needs; one answer per operation.
    pub(crate) async fn carry_out(
        &mut self,
        ops: &[Op],
        root: Arc<Root>,
        progress: &Progress,
    ) -> Result<Vec<Result<(), String>>, Error> {
        let bytes =
            |op: &&Op| op.path.as_bytes().len() + weight(op.old.as_ref()) + weight(op.new.as_ref());
        for part in batches(ops, bytes) {
            self.say(&Request::Ops(part.into_iter().cloned().collect()))
                .await?;
        }
        self.say(&Request::OpsEnd).await?;
        self.flush().await?;
        let needed = self.needed(ops).await?;
        let meter = Meter::start(progress, &needed);
        let (pieces, reader) = transfer::send(root, needed);
        let sent = self.pass_on(pieces, meter).await;
        // Nothing of the session is still at work on the root when it ends.
        let read = reader.await.map_err(io::Error::other);
        sent?;
        read.map_err(|error| Error::io("read the host's files", error))?;
        self.outcomes(ops.len()).await
    }

    /// Reads what came of so many operations, in words where something stood in the way.
    async fn outcomes(&mut self, count: usize) -> Result<Vec<Result<(), String>>, Error> {
        let mut outcomes = Vec::new();
        loop {
            match self.message().await? {
                Reply::Outcome(part) => outcomes.extend(part),
                Reply::OutcomeEnd if outcomes.len() == count => break,
                reply => return Err(unexpected(reply)),
            }
            if outcomes.len() > count {
                return Err(Error::protocol("more outcomes than operations"));
            }
        }
        let outcome = |problem: Option<String>| problem.map_or(Ok(()), |text| Err(clip(&text)));
        Ok(outcomes.into_iter().map(outcome).collect())
    }

    async fn pass_on(
        &mut self,
        mut pieces: mpsc::Receiver<Bundle>,
        mut meter: Meter<'_>,
    ) -> Result<(), Error> {
        let silence = self.limits.silence;
        while let Some(bundle) = pieces.recv().await {
            for piece in bundle {
                let written = protocol::write_piece::<Request>(&mut self.writer, &piece);
                timed(silence, written).await?;
                meter.sent(&piece);
            }
        }
        self.flush().await
    }

    /// Reads which contents the guest lacks: files among `ops`, ascending.
    async fn needed(&mut self, ops: &[Op]) -> Result<Vec<Wanted>, Error> {
        let mut needed: Vec<Wanted> = Vec::new();
        let mut had = Had::default();
        loop {
            let part = match self.message().await? {
                Reply::Need(part) => part,
                Reply::Have(item, marks) => {
                    had.add(ops, &needed, (item, marks))?;
                    continue;
                }
                Reply::NeedEnd => {
                    for want in &mut needed {
                        want.index = had.marks.remove(&want.item).map(Index::new);
                    }
                    return Ok(needed);
                }
                reply => return Err(unexpected(reply)),
            };
            for item in part {
                let ascends = needed.last().is_none_or(|last| last.item < item);
                let op = ops.get(item as usize).filter(|_| ascends);
                let content = op.and_then(|op| op.new.as_ref()?.content().map(|c| (op, c)));
                let Some((op, (digest, size))) = content else {
                    return Err(Error::protocol("a need for what was not offered"));
                };
                needed.push(Wanted {
                    item,
                    path: op.path.clone(),
                    size,
                    digest: Some(digest),
                    index: None,
                });
            }
        }
    }

    async fn say(&mut self, request: &Request) -> Result<(), Error> {
        let silence = self.limits.silence;
        timed(silence, protocol::write(&mut self.writer, request)).await
    }

    async fn flush(&mut self) -> Result<(), Error> {
        timed(self.limits.silence, self.writer.flush()).await
    }

    async fn message(&mut self) -> Result<Reply, Error> {
        match self.receive().await? {
            Received::Message(Reply::Failed(text)) => Err(Error::new(
                ErrorKind::Io,
                "synchronize in the guest",
                clip(&text),
            )),
            Received::Message(reply) => Ok(reply),
            Received::Piece(_) => Err(Error::protocol("contents that nobody asked for")),
        }
    }

    async fn receive(&mut self) -> Result<Received<Reply>, Error> {
        let received = tokio::time::timeout(self.limits.silence, self.incoming.recv()).await;
        match received.map_err(|_| silent(self.limits.silence))? {
            Some(received) => received.map_err(stream_error),
            None => Err(Error::disconnected("synchronize")),
        }
    }
}

/// What the guest says that it has of the old versions of files that it needs (`S36`).
#[derive(Default)]
struct Had {
    marks: HashMap<u32, Vec<Mark>>,
    total: usize,
}

impl Had {
    /// Takes in more marks: of a file that it needs and that replaces another, no more than that one can
    /// have, and no more in all than an honest guest tells.
    fn add(
        &mut self,
        ops: &[Op],
        needed: &[Wanted],
        (item, marks): (u32, Vec<Mark>),
    ) -> Result<(), Error> {
        let asked = needed.binary_search_by_key(&item, |want| want.item).is_ok();
        let op = ops.get(item as usize).filter(|_| asked);
        let old = op.and_then(|op| op.old.as_ref()?.content());
        let of = self.marks.entry(item).or_default();
        self.total += marks.len();
        let most = old.map_or(0, |(_, size)| size / delta::SHORTEST as u64 + 1);
        let all = (of.len() + marks.len()) as u64;
        if marks.is_empty() || all > most || self.total > delta::MOST {
            return Err(Error::protocol("blocks of what it cannot have"));
        }
        of.extend(marks);
        Ok(())
    }
}

impl Source for Peer {
    async fn next_piece(&mut self) -> Result<Piece, Error> {
        match self.receive().await? {
            Received::Piece(piece) => Ok(piece),
            Received::Message(Reply::Failed(text)) => Err(Error::new(
                ErrorKind::Io,
                "synchronize in the guest",
                clip(&text),
            )),
            Received::Message(reply) => Err(unexpected(reply)),
        }
    }
}

async fn timed(
    silence: Duration,
    write: impl Future<Output = io::Result<()>>,
) -> Result<(), Error> {
    let written = tokio::time::timeout(silence, write).await;
    written.map_err(|_| silent(silence))?.map_err(stream_error)
}

async fn read_all(
    stream: ReadHalf<BoxStream>,
    queue: mpsc::Sender<io::Result<Received<Reply>>>,
    dirty: Arc<Notify>,
) {
    // A message is read in three steps; the stream need not be asked for each of them.
    let mut stream = BufReader::with_capacity(64 * 1024, stream);
    loop {
        let received = protocol::read::<Reply>(&mut stream).await;
        if matches!(received, Ok(Received::Message(Reply::Dirty))) {
            dirty.notify_one();
            continue;
        }
        let ends = received.is_err();
        if queue.send(received).await.is_err() || ends {
            return;
        }
    }
}

fn unexpected(reply: Reply) -> Error {
    let name = match reply {
        Reply::Hello { .. } => "Hello",
        Reply::Dirty => "Dirty",
        Reply::Found(_) => "Found",
        Reply::Scanned => "Scanned",
        Reply::RootGone => "RootGone",
        Reply::Piece(_) => "Piece",
        Reply::Need(_) => "Need",
        Reply::Have(..) => "Have",
        Reply::NeedEnd => "NeedEnd",
        Reply::Outcome(_) => "Outcome",
        Reply::OutcomeEnd => "OutcomeEnd",
        Reply::Failed(_) => "Failed",
    };
    Error::protocol(format!(
        "it answered {name}, which is no answer to the question"
    ))
}

fn silent(silence: Duration) -> Error {
    let detail = format!("the guest was silent for {} s", silence.as_secs_f32());
    Error::new(ErrorKind::TimedOut, "synchronize", detail)
}

fn stream_error(error: io::Error) -> Error {
    Error::io("speak to the guest", error)
}

#[cfg(fuzzing)]
mod fuzzing;
#[cfg(fuzzing)]
pub(crate) use fuzzing::block_on as block_on_for_fuzzing;
#[cfg(fuzzing)]
pub use fuzzing::hear as hear_for_fuzzing;

#[cfg(test)]
mod tests;
