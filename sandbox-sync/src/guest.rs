//! The half that runs inside: does what the host asks, to one root.
//!
//! It trusts the host, which told it root, owner and rules, also to have verified the contents that it sends:
//! digests take time in a machine that is emulated. It uses the same scan and the same apply as the
//! host does, so a program in the sandbox that races with it loses nothing either. Between requests it
//! sends hints that something changed.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sandbox_base::{BoxStream, ErrorKind};
use tokio::io::{AsyncWriteExt, BufReader, BufWriter, ReadHalf, WriteHalf};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::apply::Refusal;
use crate::delta::Index;
use crate::driver::release;
use crate::error::Error;
use crate::probe::probe;
use crate::protocol::{self, Hello, Mark, Piece, Received, Reply, Request, batches, clip, weight};
use crate::reconcile::Op;
use crate::replica::{Replica, Setup, Wanted, Worker};
use crate::root::Root;
use crate::rules::Rules;
use crate::scan::Bounds;
use crate::stage::Staging;
use crate::transfer::{self, Source};
use crate::tree::{Entry, MANY, Tree};
use crate::watch::Watch;

/// How long to collect changes before a hint goes out.
const SETTLE: Duration = Duration::from_millis(2);

/// How long an earlier session may take to end; the host, which decides who may come, has let go of it.
const PATIENCE: Duration = Duration::from_secs(20);

/// How the guest's half runs; what concerns the workspace comes from the host.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Options {
    /// A folder in which new contents wait, on the file system of the root; by default, and where it lies
    /// elsewhere, a folder in the root is used while changes are applied. What a session that ended half-way had
    /// received stays there for the next one, at most 2 GiB.
    pub staging: Option<PathBuf>,
    /// The folder that is served, whatever the host names; by default the one that it names.
    pub root: Option<PathBuf>,
}

impl Options {
    /// Serves this folder and no other.
    #[must_use]
    pub fn with_root(mut self, path: impl Into<PathBuf>) -> Self {
        self.root = Some(path.into());
        self
    }

    /// Sets where new contents wait.
    #[must_use]
    pub fn with_staging(mut self, path: impl Into<PathBuf>) -> Self {
        self.staging = Some(path.into());
        self
    }
}

type Writer = Arc<Mutex<BufWriter<WriteHalf<BoxStream>>>>;

/// Serves one workspace until the host closes the stream.
///
/// The root is created if it is missing. Dropping the future ends the session; what is being applied at
/// that moment runs to its end on its own thread, so no file is torn.
///
/// # Errors
///
/// When the host speaks another version, the root cannot be opened, or the stream breaks within a message.
/// Before it ends, the host was told.
pub async fn serve(stream: BoxStream, options: Options) -> Result<(), Error> {
    let (read, write) = tokio::io::split(stream);
    let mut reader = BufReader::with_capacity(64 * 1024, read);
    let writer: Writer = Arc::new(Mutex::new(BufWriter::with_capacity(64 * 1024, write)));
    let Some(hello) = hello(&mut reader).await? else {
        return Ok(());
    };
    let opened = tokio::task::spawn_blocking(move || open(hello, options)).await;
    let opened =
        opened.map_err(|error| Error::io("open the workspace", io::Error::other(error)))?;
    let (replica, watch) = match opened {
        Ok(opened) => opened,
        Err(error) => return Err(refuse(&writer, error).await),
    };
    let hints = Hints(tokio::spawn(hint(watch, writer.clone())));
    let mut guest = Guest {
        root: replica.root().clone(),
        replica: Worker::new(replica),
        reader,
        writer,
        looked: false,
    };
    guest
        .say(&Reply::Hello {
            version: protocol::VERSION,
            folding: guest.root.names().folding,
        })
        .await?;
    guest.flush().await?;
    let result = guest.serve().await;
    drop(hints);
    match result {
        Err(error) => Err(refuse(&guest.writer, error).await),
        Ok(()) => Ok(()),
    }
}

async fn hello(reader: &mut BufReader<ReadHalf<BoxStream>>) -> Result<Option<Hello>, Error> {
    match protocol::read::<Request>(reader).await {
        Ok(Received::Message(Request::Hello(hello))) => Ok(Some(*hello)),
        Ok(_) => Err(Error::protocol("the host did not introduce itself")),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(stream_error(error)),
    }
}

fn open(hello: Hello, options: Options) -> Result<(Replica, Arc<Watch>), Error> {
    use std::os::unix::ffi::OsStringExt;
    if hello.version != protocol::VERSION {
        let detail = format!(
            "it speaks version {}, the guest {}",
            hello.version,
            protocol::VERSION
        );
        return Err(Error::new(
            ErrorKind::Unsupported,
            "speak to the host",
            detail,
        ));
    }
    let named = || PathBuf::from(std::ffi::OsString::from_vec(hello.root));
    let path = options.root.unwrap_or_else(named);
    let root = create_root(&path, hello.owner).and_then(|()| Root::open(&path));
    let root = root.map_err(|error| Error::io("open the workspace in the guest", error))?;
    if hello.lists.only.is_none() {
        root.lock_within(PATIENCE)
            .map_err(|error| Error::io("wait for an earlier session in the guest to end", error))?;
    }
    Staging::sweep(&root, options.staging.as_deref())
        .map_err(|error| Error::io("clear what an earlier session left in the guest", error))?;
    let names = probe(&root, Some(options.staging.as_deref()));
    root.set_names(names.map_err(|error| Error::io("look how names behave in the guest", error))?);
    let setup = Setup {
        rules: Arc::new(Rules::new(&hello.lists)?),
        bounds: Bounds {
            entries: usize::try_from(hello.entries).unwrap_or(usize::MAX),
            file_bytes: hello.file_bytes,
        },
        staging: options.staging,
        owner: hello.owner,
        trusts_sender: true,
    };
    let watch = match hello.watch {
        true => Watch::start(&root),
        false => Watch::nothing(),
    };
    let watch = Arc::new(watch);
    Ok((Replica::new(root, setup, watch.clone()), watch))
}

/// Creates the root, owned as its files will be; the folders above it belong to the agent's user.
fn create_root(path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    std::fs::create_dir_all(path)?;
    match owner {
        Some((user, group)) => std::os::unix::fs::chown(path, Some(user), Some(group)),
        None => Ok(()),
    }
}

async fn refuse(writer: &Writer, error: Error) -> Error {
    let text = match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    let mut writer = writer.lock().await;
    // The host may be gone; the first error is the one to report.
    if protocol::write(&mut *writer, &Reply::Failed(clip(&text)))
        .await
        .is_ok()
    {
        drop(writer.flush().await);
    }
    error
}

/// The task that sends hints; ends with this.
struct Hints(JoinHandle<()>);

impl Drop for Hints {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn hint(watch: Arc<Watch>, writer: Writer) {
    loop {
        let interval = watch.interval(Duration::MAX);
        // Where nothing can be watched the host is asked to look from time to time.
        drop(tokio::time::timeout(interval, watch.changed()).await);
        tokio::time::sleep(SETTLE).await;
        let mut writer = writer.lock().await;
        let sent = protocol::write(&mut *writer, &Reply::Dirty).await;
        if sent.is_err() || writer.flush().await.is_err() {
            return;
        }
    }
}

struct Guest {
    root: Arc<Root>,
    replica: Worker<Replica>,
    reader: BufReader<ReadHalf<BoxStream>>,
    writer: Writer,
    /// The host has asked what is there.
    looked: bool,
}

impl Guest {
    async fn serve(&mut self) -> Result<(), Error> {
        let mut fetch = Vec::new();
        let mut marks = Marks::new();
        let mut ops = Vec::new();
        loop {
            let request = match protocol::read::<Request>(&mut self.reader).await {
                Ok(Received::Message(request)) => request,
                Ok(Received::Piece(_)) => return Err(Error::protocol("contents out of turn")),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(stream_error(error)),
            };
            match request {
                Request::Scan(thorough) => self.scan(thorough).await?,
                Request::Fetch(part) => fetch.extend(part),
                Request::Have(item, part) => marks.entry(item).or_default().extend(part),
                Request::FetchEnd => {
                    let files = std::mem::take(&mut fetch);
                    self.fetch(files, std::mem::take(&mut marks)).await?;
                }
                Request::Ops(part) => ops.extend(part),
                Request::OpsEnd => self.carry_out(std::mem::take(&mut ops)).await?,
                Request::Hello(_) | Request::Piece(_) => {
                    return Err(Error::protocol("a request out of turn"));
                }
            }
            self.flush().await?;
        }
    }

    async fn scan(&mut self, thorough: bool) -> Result<(), Error> {
        // A second question means that the first was settled, as far as the guest can know.
        let settles = std::mem::replace(&mut self.looked, true);
        let scan = move |replica: &mut Replica| {
            if settles {
                replica.settle();
            }
            let changed = replica.scan(thorough)?;
            Ok(found(changed, replica.tree()))
        };
        let scanned: io::Result<_> = self.replica.run(scan).await.map_err(work_error)?;
        let found = match scanned {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return self.say(&Reply::RootGone).await;
            }
            Err(error) => return Err(Error::io("scan the workspace in the guest", error)),
        };
        let many = found.len() > MANY;
        let bytes = |item: &(_, Option<Entry>)| path_bytes(&item.0) + weight(item.1.as_ref());
        for part in batches(found, bytes) {
            self.say(&Reply::Found(part)).await?;
        }
        self.say(&Reply::Scanned).await?;
        self.release_if(many).await
    }

    async fn fetch(
        &mut self,
        files: Vec<(u32, crate::RelPath, u64)>,
        mut marks: Marks,
    ) -> Result<(), Error> {
        let wanted = |(item, path, size)| Wanted {
            item,
            path,
            size,
            // The host takes nobody's word for it.
            digest: None,
            index: marks.remove(&item).map(Index::new),
        };
        let wanted = files.into_iter().map(wanted).collect();
        let (mut pieces, _reader) = transfer::send(self.root.clone(), wanted);
        while let Some(bundle) = pieces.recv().await {
            let mut writer = self.writer.lock().await;
            for piece in bundle {
                let sent = protocol::write_piece::<Reply>(&mut *writer, &piece).await;
                sent.map_err(stream_error)?;
            }
        }
        Ok(())
    }

    async fn carry_out(&mut self, ops: Vec<Op>) -> Result<(), Error> {
        let prepare = move |replica: &mut Replica| replica.prepare(ops);
        let batch = self.replica.run(prepare).await.map_err(work_error)?;
        let mut batch = batch.map_err(|error| Error::io("stage in the guest", error))?;
        let needed: Vec<u32> = batch.needed().iter().map(|(item, _)| *item).collect();
        for part in batches(needed, |_| 0) {
            self.say(&Reply::Need(part)).await?;
        }
        for (item, marks) in batch.take_marks() {
            self.say(&Reply::Have(item, marks)).await?;
        }
        self.say(&Reply::NeedEnd).await?;
        self.flush().await?;
        let batch = transfer::receive(batch, self).await?;
        let apply = move |replica: &mut Replica| {
            let (ops, outcomes) = batch.apply()?;
            replica.made(&ops, &outcomes);
            io::Result::Ok(outcomes)
        };
        let applied = self.replica.run(apply).await.map_err(work_error)?;
        let results = applied.map_err(|error| Error::io("apply in the guest", error))?;
        let many = results.len() > MANY;
        let outcome =
            |result: Result<_, Refusal>| result.err().map(|refusal| clip(&refusal.to_string()));
        let outcomes = results.into_iter().map(outcome);
        for part in batches(outcomes, |outcome| outcome.as_ref().map_or(0, String::len)) {
            self.say(&Reply::Outcome(part)).await?;
        }
        self.say(&Reply::OutcomeEnd).await?;
        self.release_if(many).await
    }

    /// Hands memory back after much work, once the host has its answer.
    async fn release_if(&mut self, many: bool) -> Result<(), Error> {
        if many {
            self.flush().await?;
            let compacted = self.replica.run(Replica::compact).await;
            compacted.map_err(work_error)?;
            release().await;
        }
        Ok(())
    }

    async fn say(&mut self, reply: &Reply) -> Result<(), Error> {
        let mut writer = self.writer.lock().await;
        protocol::write(&mut *writer, reply)
            .await
            .map_err(stream_error)
    }

    async fn flush(&mut self) -> Result<(), Error> {
        self.writer.lock().await.flush().await.map_err(stream_error)
    }
}

impl Source for Guest {
    async fn next_piece(&mut self) -> Result<Piece, Error> {
        match protocol::read::<Request>(&mut self.reader).await {
            Ok(Received::Piece(piece)) => Ok(piece),
            Ok(Received::Message(_)) => Err(Error::protocol("a request in place of contents")),
            Err(error) => Err(stream_error(error)),
        }
    }
}

/// What the host has of the old versions of files that it asks for.
type Marks = HashMap<u32, Vec<Mark>>;

type Found = Vec<(crate::RelPath, Option<Entry>)>;

fn found(mut changed: Vec<crate::RelPath>, tree: &Tree) -> Found {
    // Looked at twice, told once.
    changed.sort();
    changed.dedup();
    let entry = |path: crate::RelPath| {
        let entry = tree.entry(&path).cloned();
        (path, entry)
    };
    changed.into_iter().map(entry).collect()
}

fn path_bytes(path: &crate::RelPath) -> usize {
    path.as_bytes().len()
}

fn stream_error(error: io::Error) -> Error {
    Error::io("speak to the host", error)
}

fn work_error(error: io::Error) -> Error {
    Error::io("work in the guest", error)
}

/// Reads what a host may say, message by message.
#[cfg(fuzzing)]
pub fn read_for_fuzzing(mut bytes: &[u8]) {
    let read = async {
        while let Ok(message) = protocol::read::<Request>(&mut bytes).await {
            drop(message);
        }
    };
    crate::peer::block_on_for_fuzzing(read);
}
