//! One side of a workspace: a root, what the last scan found in it, and how it is changed.
//!
//! Host and guest use the same type; the host drives its own directly and the guest's over the
//! [protocol](crate::protocol). Everything here blocks and belongs on a blocking thread.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::apply::{GitPart, Outcomes, Staged, apply};
use crate::delta::{self, Index, Old};
use crate::path::RelPath;
use crate::protocol::{CHUNK, MARKS, Mark, Part, Piece};
use crate::reconcile::Op;
use crate::root::{Facts, Root};
use crate::rules::Rules;
use crate::scan::{Bounds, Changed, Place, Scanner, open_file};
use crate::stage::{Modified, Owner, Ready, StagedFile, Staging, flush};
use crate::transfer::{Bundle, Bundler};
use crate::tree::{Digest, Entry, Item, Tree};
use crate::watch::{Depth, Dirt, Watch};

/// How often the objects of a repository are looked at again while somebody takes some away.
const LOOKS: usize = 4;

/// What a replica needs to know besides its root.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) rules: Arc<Rules>,
    pub(crate) bounds: Bounds,
    pub(crate) staging: Option<PathBuf>,
    pub(crate) owner: Option<Owner>,
    /// Whoever sends contents is trusted to have verified them.
    pub(crate) trusts_sender: bool,
}

/// One side of a workspace.
#[derive(Debug)]
pub(crate) struct Replica {
    root: Arc<Root>,
    setup: Setup,
    watch: Arc<Watch>,
    scanner: Scanner,
    tree: Arc<Tree>,
    /// What was put in place since the last scan, which need not read it again.
    made: Tree,
    /// What earlier sessions received is cleared.
    settled: bool,
}

impl Replica {
    pub(crate) fn new(root: Root, setup: Setup, watch: Arc<Watch>) -> Self {
        Self {
            root: Arc::new(root),
            setup,
            scanner: Scanner::watching(watch.clone()),
            watch,
            tree: Arc::default(),
            made: Tree::default(),
            settled: false,
        }
    }

    pub(crate) fn root(&self) -> &Arc<Root> {
        &self.root
    }

    /// Returns what the last scan found.
    pub(crate) fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    /// Looks at what is dirty, or at everything where nothing vouches for the rest or a `thorough` look is
    /// asked for, and returns the paths that are not what they were.
    ///
    /// Answers `NotFound` where the root is gone or is another folder now.
    pub(crate) fn scan(&mut self, thorough: bool) -> io::Result<Vec<RelPath>> {
        if !self.root.is_in_place() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut changed = self.look(thorough)?;
        let mut objects = self.objects_behind(&changed.paths);
        for _ in 0..LOOKS {
            if objects.is_empty() {
                break;
            }
            let later = self.look_at_objects(objects)?;
            objects = self.objects_behind(&later.paths);
            self.join(&mut changed, later);
        }
        Ok(changed.paths)
    }

    /// Adds what a later look found. What had come since the last scan and is gone again never was.
    fn join(&self, changed: &mut Changed, later: Changed) {
        let is_gone = |path: &RelPath| self.tree.entry(path).is_none();
        let came = later
            .new
            .into_iter()
            .filter(|path| changed.paths.binary_search(path).is_err());
        let came: Vec<RelPath> = came.collect();
        changed.paths.extend(later.paths);
        changed.paths.sort();
        changed.paths.dedup();
        changed.new.extend(came);
        changed
            .paths
            .retain(|path| !(changed.new.contains(path) && is_gone(path)));
        changed.new.retain(|path| !is_gone(path));
    }

    /// Returns the folders of the objects that a look may have come too early for: those that a ref leads to
    /// which has moved, and the pack that has what was taken away beside it (`S42`). All of them were there
    /// before it was found, so the next look finds them.
    fn objects_behind(&self, found: &[RelPath]) -> BTreeSet<RelPath> {
        let leans = |path: &&RelPath| match GitPart::of(path) {
            GitPart::Refs => true,
            GitPart::Objects => self.tree.entry(path).is_none(),
            GitPart::Outside | GitPart::Inside => false,
        };
        let folders = found.iter().filter(leans).flat_map(GitPart::objects_of);
        folders
            .filter(|path| self.tree.entry(path).is_some())
            .collect()
    }

    /// Looks at objects alone: a ref that is read now might lead to others.
    fn look_at_objects(&mut self, folders: BTreeSet<RelPath>) -> io::Result<Changed> {
        let is_object = |path: &RelPath, _: &mut Depth| GitPart::of(path) == GitPart::Objects;
        let objects = match self.watch.take() {
            Dirt::Everything => {
                self.watch.lose();
                let whole = |path| (path, Depth::Beneath);
                folders.into_iter().map(whole).collect()
            }
            Dirt::Paths(mut paths) => {
                let objects = paths.extract_if(.., is_object).collect();
                self.watch.put_back(paths);
                objects
            }
        };
        let place = Place {
            root: &self.root,
            rules: &self.setup.rules,
            bounds: self.setup.bounds,
            made: &self.made,
        };
        let looked = self.scanner.look(place, (&mut self.tree, objects));
        looked.inspect_err(|_| self.watch.lose())
    }

    fn look(&mut self, thorough: bool) -> io::Result<Changed> {
        let place = Place {
            root: &self.root,
            rules: &self.setup.rules,
            bounds: self.setup.bounds,
            made: &self.made,
        };
        let scanned = match self.watch.take() {
            Dirt::Paths(paths) if !thorough => self.scanner.look(place, (&mut self.tree, paths)),
            _ => {
                let scanned = self.scanner.scan(place, &mut self.tree);
                // Some of it no event may have told of.
                scanned.inspect(|changed| self.watch.found(&changed.paths))
            }
        };
        let changed = scanned.inspect_err(|_| self.watch.lose())?;
        // All of it was looked at, since it was marked.
        self.made = Tree::default();
        Ok(changed)
    }

    /// Notes what a batch of this replica has put in place.
    pub(crate) fn made(&mut self, ops: &[Op], outcomes: &Outcomes) {
        for (op, outcome) in ops.iter().zip(outcomes) {
            if let (Some(entry), Ok(Some(facts))) = (&op.new, outcome)
                && let Some(memo) = self.scanner.memo_of(entry, facts)
            {
                let item = Item::new(op.path.clone(), entry.clone());
                item.remember(memo);
                self.made.put(item);
            }
        }
    }

    /// Moves what the last scan found to memory of its own: between its pieces there may lie what the work took
    /// that found it, and the kernel gets only whole pages back.
    pub(crate) fn compact(&mut self) {
        Arc::make_mut(&mut self.tree).compact();
        self.watch.share(&self.tree);
    }

    /// Clears what earlier sessions received, once: a whole cycle had no use for it.
    pub(crate) fn settle(&mut self) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        if let Err(error) = Staging::clear(&self.root, self.setup.staging.as_deref()) {
            tracing::debug!(%error, "cannot clear what an earlier session received");
        }
    }

    /// Starts a batch: stages what is at hand here, so that only the rest has to be sent.
    pub(crate) fn prepare(&self, ops: Vec<Op>) -> io::Result<Batch> {
        let setup = &self.setup;
        // Whatever comes of them, and whether or not it makes an event, the next scan looks there.
        for op in &ops {
            self.watch.mark(&op.path);
        }
        let staging = Staging::open(&self.root, setup.staging.as_deref(), setup.owner)?;
        let mut batch = Batch {
            root: self.root.clone(),
            trusts_sender: setup.trusts_sender,
            staging,
            ops,
            staged: Staged::new(),
            files: Vec::new(),
            needed: Vec::new(),
            olds: Olds::new(),
            marks: Vec::new(),
        };
        batch.stage_known(&self.tree);
        batch.cut_old();
        Ok(batch)
    }
}

/// Operations on their way into one root.
#[derive(Debug)]
pub(crate) struct Batch {
    root: Arc<Root>,
    trusts_sender: bool,
    staging: Staging,
    ops: Vec<Op>,
    staged: Staged,
    files: Vec<File>,
    needed: Vec<(u32, u64)>,
    olds: Olds,
    /// The marks of `olds`, until somebody tells them.
    marks: Vec<(u32, Vec<Mark>)>,
}

/// The old versions that blocks are taken from, by the operation that replaces them.
pub(crate) type Olds = HashMap<u32, Arc<Old>>;

impl Batch {
    /// Returns the indexes of the operations whose contents have to be sent, ascending, with lengths.
    pub(crate) fn needed(&self) -> &[(u32, u64)] {
        &self.needed
    }

    /// Returns where the other side has what this batch needs: at the same paths.
    pub(crate) fn wanted(&self) -> Vec<Wanted> {
        let wanted = |&(item, size): &(u32, u64)| Wanted {
            item,
            path: self.ops[item as usize].path.clone(),
            size,
            digest: None,
            index: None,
        };
        self.needed.iter().map(wanted).collect()
    }

    /// Returns the path of an operation.
    pub(crate) fn path(&self, item: u32) -> Option<&RelPath> {
        self.ops.get(item as usize).map(|op| &op.path)
    }

    /// Fills in contents that are at hand elsewhere, which need not be sent then.
    pub(crate) fn provide(
        &mut self,
        item: u32,
        source: &mut impl Read,
        modified: Option<Modified>,
    ) -> io::Result<()> {
        let Some(mut file) = self.start(item as usize)? else {
            return Ok(());
        };
        file.copy(source)?;
        let (ready, file) = file.finish(modified)?;
        self.keep(file)?;
        drop(self.staged.insert(item as usize, Ok(ready)));
        self.needed.retain(|(needed, _)| *needed != item);
        self.marks.retain(|(marked, _)| *marked != item);
        drop(self.olds.remove(&item));
        Ok(())
    }

    /// Returns the first path whose contents did not arrive, and why.
    pub(crate) fn missing(&self) -> Option<(&RelPath, &str)> {
        self.staged.iter().find_map(|(index, staged)| {
            let reason = staged.as_ref().err()?;
            Some((&self.ops[*index].path, &reason[..]))
        })
    }

    pub(crate) fn olds(&self) -> &Olds {
        &self.olds
    }

    /// Returns the marks of old versions, in messages' sizes, once.
    pub(crate) fn take_marks(&mut self) -> impl Iterator<Item = (u32, Vec<Mark>)> + use<> {
        let parts = |(item, marks): (u32, Vec<Mark>)| {
            let parts: Vec<_> = marks.chunks(MARKS).map(<[Mark]>::to_vec).collect();
            parts.into_iter().map(move |part| (item, part))
        };
        std::mem::take(&mut self.marks).into_iter().flat_map(parts)
    }

    /// Cuts what large files replace into blocks, so that only what is new has to be sent. What cannot be
    /// read is sent whole.
    fn cut_old(&mut self) {
        let mut left = delta::MOST;
        for &(item, size) in &self.needed {
            let op = &self.ops[item as usize];
            let old = op.old.as_ref().and_then(Entry::content);
            if size < delta::LEAST || old.is_none_or(|old| old.1 < delta::LEAST) {
                continue;
            }
            let folder = self.root.parent_of(&op.path);
            let opened = folder.and_then(|folder| open_file(&folder, op.path.name()));
            let cut = opened.and_then(|(file, _)| Old::read(file, left));
            if let Ok(Some((old, marks))) = cut {
                left -= marks.len();
                drop(self.olds.insert(item, Arc::new(old)));
                self.marks.push((item, marks));
            }
        }
    }

    /// Copies what the root has elsewhere, so that renames and changed modes send nothing, and what an earlier
    /// session received.
    fn stage_known(&mut self, tree: &Tree) {
        let mut wanted: HashMap<Digest, usize> = HashMap::new();
        for (_, (digest, _)) in contents(&self.ops) {
            *wanted.entry(digest).or_default() += 1;
        }
        let at_hand: HashMap<Digest, &RelPath> = tree
            .iter()
            .filter_map(|(path, entry)| Some((entry.content()?.0, path)))
            .filter(|(digest, _)| wanted.contains_key(digest))
            .collect();
        for (index, (digest, size)) in contents(&self.ops).collect::<Vec<_>>() {
            let source = at_hand.get(&digest);
            if source.is_none_or(|path| self.copy(index, path).is_err())
                && self.copy_kept(index, (digest, size)).is_err()
            {
                let item = u32::try_from(index).expect("the number of operations is bounded");
                self.needed.push((item, size));
            }
            let uses = wanted.get_mut(&digest).expect("each was counted");
            *uses -= 1;
            if *uses == 0 {
                self.staging.forget_kept(&digest);
            }
        }
    }

    fn copy(&mut self, index: usize, path: &RelPath) -> io::Result<()> {
        let source = open_file(&self.root.parent_of(path)?, path.name())?;
        self.copy_from(index, source)
    }

    /// Copies what an earlier session received, if it is that (`S53`).
    fn copy_kept(&mut self, index: usize, content: (Digest, u64)) -> io::Result<()> {
        let kept = self.staging.kept(content);
        self.copy_from(index, kept.ok_or(io::ErrorKind::NotFound)?)
    }

    /// Copies a file, and verifies what was copied.
    fn copy_from(&mut self, index: usize, (mut source, facts): (File, Facts)) -> io::Result<()> {
        let Some(mut file) = self.start(index)? else {
            return Ok(());
        };
        file.copy(&mut source)?;
        let (ready, file) = file.finish(Some(facts.modified))?;
        self.keep(file)?;
        drop(self.staged.insert(index, Ok(ready)));
        Ok(())
    }

    fn start(&mut self, index: usize) -> io::Result<Option<StagedFile>> {
        let Some(op) = self.ops.get(index) else {
            return Ok(None);
        };
        let Some(Entry::File {
            digest,
            size,
            executable,
        }) = &op.new
        else {
            return Ok(None);
        };
        let file = self
            .staging
            .file((*digest, *size), *executable, op.old.as_ref())?;
        Ok(Some(file))
    }

    /// Decides whether what arrived is left to the next session where it is not applied (`S53`).
    pub(crate) fn leave(&mut self, leaves: bool) {
        self.staging.leave(leaves);
    }

    /// Writes pieces as they arrive, in the order of [`Batch::needed`], until the sender is dropped; whoever
    /// knows that this was all says so by [`Batch::leave`].
    pub(crate) fn fill(mut self, mut bundles: mpsc::Receiver<Bundle>) -> Self {
        self.leave(true);
        let mut pieces =
            std::iter::from_fn(move || bundles.blocking_recv()).flat_map(Bundle::into_iter);
        while let Some(piece) = pieces.next() {
            let index = piece.item as usize;
            let result = self.receive(piece, &mut pieces);
            drop(self.staged.insert(index, result));
        }
        self
    }

    /// Receives one file, beginning with `piece`; after a failure the rest of it is read and dropped.
    fn receive(
        &mut self,
        mut piece: Piece,
        pieces: &mut impl Iterator<Item = Piece>,
    ) -> Result<Ready, String> {
        let mut file = self.start(piece.item as usize).and_then(|file| {
            file.ok_or_else(|| io::Error::other("contents for something that is no file"))
        });
        let modified = piece.modified;
        let old = self.olds.get(&piece.item).cloned();
        if self.trusts_sender && old.is_none() {
            // With blocks from here in it nobody else can vouch for it.
            file = file.map(StagedFile::trusting);
        }
        let outcome = loop {
            if let Ok(open) = &mut file
                && let Err(error) = write(open, (&piece, old.as_deref()))
            {
                file = Err(error);
            }
            match piece.part {
                Part::More => {}
                Part::Last => break file.and_then(|file| file.finish(modified)),
                Part::Failed => {
                    break Err(io::Error::other(
                        "the other side could not read what its scan found",
                    ));
                }
            }
            piece = match pieces.next() {
                Some(piece) => piece,
                None => break Err(io::ErrorKind::UnexpectedEof.into()),
            };
        };
        let kept = outcome.and_then(|(ready, file)| self.keep(file).map(|()| ready));
        kept.map_err(|error| error.to_string())
    }

    /// Keeps a file open until it is flushed, as far as files are flushed one by one.
    fn keep(&mut self, file: File) -> io::Result<()> {
        if self.files.len() < FLUSHED_TOGETHER {
            self.files.push(file);
            Ok(())
        } else if cfg!(target_os = "linux") {
            // So many are flushed with their file system.
            Ok(())
        } else {
            file.sync_all()
        }
    }

    /// Makes the contents durable, puts everything in place, and makes that durable.
    pub(crate) fn apply(mut self) -> io::Result<(Vec<Op>, Outcomes)> {
        self.leave(false);
        flush(&self.files, self.staging.folder())?;
        self.files.clear();
        let results = apply(&self.root, &mut self.staging, &self.ops, &self.staged)?;
        Ok((self.ops, results))
    }
}

/// More open files than this are flushed with their file system, so only that many need to stay open.
const FLUSHED_TOGETHER: usize = 16;

fn write(file: &mut StagedFile, (piece, old): (&Piece, Option<&Old>)) -> io::Result<()> {
    match (piece.blocks, old) {
        (None, _) => file.write(&piece.bytes),
        (Some(blocks), Some(old)) => old.copy(blocks, |bytes| file.write(bytes)),
        (Some(_), None) => Err(io::Error::other("blocks of no old version")),
    }
}

fn contents(ops: &[Op]) -> impl Iterator<Item = (usize, (Digest, u64))> {
    let content = |op: &Op| op.new.as_ref().and_then(Entry::content);
    ops.iter()
        .enumerate()
        .filter_map(move |(index, op)| Some((index, content(op)?)))
}

/// A value that is worked with on blocking threads, one piece of work at a time.
///
/// Dropping the future of [`Worker::run`] lets the work end by itself; the value is gone then, and later
/// work is refused.
#[derive(Debug)]
pub(crate) struct Worker<T>(Option<T>);

impl<T: Send + 'static> Worker<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Some(value))
    }

    pub(crate) async fn run<R: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut T) -> R + Send + 'static,
    ) -> io::Result<R> {
        let gone = || io::Error::other("an earlier piece of work did not end");
        let mut value = self.0.take().ok_or_else(gone)?;
        let run = move || {
            let result = work(&mut value);
            (value, result)
        };
        let (value, result) = tokio::task::spawn_blocking(run)
            .await
            .map_err(io::Error::other)?;
        self.0 = Some(value);
        Ok(result)
    }
}

/// One file that the other side needs.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// Its operation.
    pub(crate) item: u32,
    pub(crate) path: RelPath,
    pub(crate) size: u64,
    /// What it has to have where the other side takes our word for it.
    pub(crate) digest: Option<Digest>,
    /// What the other side has of its old version.
    pub(crate) index: Option<Index>,
}

/// Reads files and sends them as pieces, in order; ends early when the receiver is dropped.
pub(crate) fn read_out(root: &Root, wanted: Vec<Wanted>, pieces: &mut Bundler) {
    // The folder that was opened last; neighbours are read one after the other.
    let mut last: Option<(Option<RelPath>, OwnedFd)> = None;
    for want in wanted {
        let failed = |_| Piece {
            item: want.item,
            part: Part::Failed,
            modified: None,
            bytes: vec![],
            blocks: None,
        };
        let parent = want.path.parent();
        if last.as_ref().is_none_or(|(path, _)| *path != parent) {
            let folder = root.directory(parent.as_ref());
            last = folder.ok().map(|folder| (parent, folder));
        }
        let opened = match &last {
            Some((_, folder)) => open_file(folder, want.path.name()),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        let sent = match opened {
            Ok((file, facts)) => match &want.index {
                Some(index) => read_parts((file, facts), (&want, index), pieces),
                None => read_one(file, facts, &want, pieces),
            },
            Err(error) => pieces.send(failed(error)),
        };
        if !sent {
            return;
        }
    }
}

fn read_one(mut file: File, facts: Facts, want: &Wanted, pieces: &mut Bundler) -> bool {
    let mut left = want.size;
    let mut hasher = want.digest.map(|_| blake3::Hasher::new());
    loop {
        let length = left.min(CHUNK as u64);
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(CHUNK)];
        let result = file.read_exact(&mut bytes);
        left -= length;
        if let Some(hasher) = &mut hasher {
            hasher.update(&bytes);
        }
        let is_other = || {
            let digest = hasher.as_ref().map(|hasher| hasher.finalize().into());
            digest != want.digest
        };
        let part = match result {
            Err(_) => Part::Failed,
            Ok(()) if left == 0 && is_other() => Part::Failed,
            Ok(()) if left == 0 => Part::Last,
            Ok(()) => Part::More,
        };
        if part == Part::Failed {
            bytes.clear();
        }
        let modified = Some(facts.modified);
        let piece = Piece {
            item: want.item,
            part,
            modified,
            bytes,
            blocks: None,
        };
        if !pieces.send(piece) {
            return false;
        }
        if part != Part::More {
            return true;
        }
    }
}

/// Reads a file of which the other side has an old version; a file that has not the length that it was
/// asked for with has failed.
fn read_parts(
    (file, facts): (File, Facts),
    (want, index): (&Wanted, &Index),
    pieces: &mut Bundler,
) -> bool {
    let piece = |part, what| {
        let (bytes, blocks) = match what {
            delta::Part::Bytes(bytes) => (bytes, None),
            delta::Part::Blocks(blocks) => (Vec::new(), Some(blocks)),
        };
        Piece {
            item: want.item,
            part,
            modified: Some(facts.modified),
            bytes,
            blocks,
        }
    };
    let failed = || piece(Part::Failed, delta::Part::Bytes(Vec::new()));
    let mut left = want.size;
    for what in delta::parts(file.take(want.size), index, CHUNK) {
        let Ok(what) = what else {
            return pieces.send(failed());
        };
        let mut piece = piece(Part::More, what);
        left -= piece.length();
        if left == 0 {
            piece.part = Part::Last;
        }
        if !pieces.send(piece) {
            return false;
        }
    }
    left == 0 || pieces.send(failed())
}

#[cfg(test)]
mod tests;
