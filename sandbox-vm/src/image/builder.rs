//! One image in the making: a tree, the file that its contents go to, and who is told.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sandbox_base::ErrorKind;

use super::erofs::{StoreError, Stored, Writer};
use super::tree::{Entry, Metadata, NodeId, Refusal, Tree};
use crate::process::Cancel;
use crate::{Error, Progress, Step};

/// Largest image that is made: well above what anybody has, well below a disk.
pub(super) const MAX_IMAGE_BYTES: u64 = 256 << 30;
/// How many entries are put in between two reports of progress.
const REPORT_EVERY: u64 = 2000;

/// Takes entries and contents in any order and makes an image of them.
#[derive(Debug)]
pub(super) struct Builder<'a> {
    /// The source's name, for messages.
    source: String,
    target: PathBuf,
    tree: Tree,
    writer: Writer,
    progress: &'a Progress,
    cancel: &'a Cancel,
    entries: u64,
}

impl<'a> Builder<'a> {
    /// Starts an image in the file `target`, whose folder also takes what must wait.
    pub(super) fn create(
        target: &Path,
        source: impl Into<String>,
        progress: &'a Progress,
        cancel: &'a Cancel,
    ) -> Result<Self, Error> {
        let failed = |error| Error::io(format!("create {}", target.display()), error);
        let folder = target.parent().unwrap_or(Path::new("."));
        let image = new_file(target).map_err(failed)?;
        let spool = tempfile::tempfile_in(folder).map_err(failed)?;
        Ok(Self {
            source: source.into(),
            target: target.to_owned(),
            tree: Tree::new(),
            writer: Writer::new(image, spool, MAX_IMAGE_BYTES),
            progress,
            cancel,
            entries: 0,
        })
    }

    /// Starts the next layer.
    pub(super) fn begin_layer(&mut self) {
        self.tree.begin_layer();
    }

    /// Stores the contents of a file that is put in afterwards.
    pub(super) fn store(
        &mut self,
        path: &[u8],
        contents: &mut dyn Read,
        size: u64,
    ) -> Result<Stored, Error> {
        self.writer.store(contents, size).map_err(|error| {
            let operation = format!("read {} of {}", name(path), self.source);
            match error {
                StoreError::Source(error) => Error::io(operation, error),
                StoreError::Short => Error::new(ErrorKind::Invalid, operation).with_detail(
                    "it is shorter than announced: cut off, or changed while it was read",
                ),
                StoreError::Target(error) => self.write_failed(error),
                StoreError::TooLarge => Error::new(ErrorKind::Exhausted, operation).with_detail(
                    format!("the image would have more than {MAX_IMAGE_BYTES} bytes"),
                ),
            }
        })
    }

    /// Puts an entry in.
    pub(super) fn insert(
        &mut self,
        path: &[u8],
        metadata: Metadata,
        entry: Entry,
    ) -> Result<NodeId, Error> {
        self.change(path, |tree| tree.insert(path, metadata, entry))
    }

    /// Puts a hard link to the entry at `target` in.
    pub(super) fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), Error> {
        self.change(path, |tree| tree.link(path, target))
    }

    /// Puts a hard link to a known entry in.
    #[cfg(unix)]
    pub(super) fn link_to(&mut self, path: &[u8], id: NodeId) -> Result<(), Error> {
        self.change(path, |tree| tree.link_to(path, id))
    }

    /// Hides what lower layers have at a path.
    pub(super) fn whiteout(&mut self, path: &[u8]) -> Result<(), Error> {
        self.change(path, |tree| tree.whiteout(path))
    }

    /// Hides what lower layers have in a folder.
    pub(super) fn opaque(&mut self, path: &[u8]) -> Result<(), Error> {
        self.change(path, |tree| tree.opaque(path))
    }

    /// Ends the image; `identity` becomes the file system's UUID.
    pub(super) fn finish(self, identity: [u8; 16]) -> Result<(), Error> {
        let (target, entries) = (self.target, self.tree.entries());
        self.writer
            .finish(&self.tree, identity)
            .and_then(|file| Ok(file.metadata()?.len()))
            .map(|bytes| tracing::info!(source = self.source, entries, bytes, "image written"))
            .map_err(|error| Error::io(format!("write {}", target.display()), error))?;
        make_read_only(&target)
    }

    fn change<T>(
        &mut self,
        path: &[u8],
        change: impl FnOnce(&mut Tree) -> Result<T, Refusal>,
    ) -> Result<T, Error> {
        self.entries += 1;
        if self.entries.is_multiple_of(REPORT_EVERY) {
            let (entries, bytes) = (self.entries, self.writer.bytes());
            self.progress.report(Step::WritingImage { entries, bytes });
        }
        self.cancel.check("write the image")?;
        let done = change(&mut self.tree).map_err(|refusal| {
            let kind = if refusal.is_limit() {
                ErrorKind::Exhausted
            } else {
                ErrorKind::Invalid
            };
            Error::new(
                kind,
                format!("take {} of {} into the image", name(path), self.source),
            )
            .with_source(refusal)
        })?;
        for stored in self.tree.take_unused() {
            self.writer.release(&stored);
        }
        Ok(done)
    }

    fn write_failed(&self, error: std::io::Error) -> Error {
        Error::io(format!("write {}", self.target.display()), error)
    }
}

fn name(path: &[u8]) -> String {
    let shown = &path[..path.len().min(200)];
    format!("{:?}", String::from_utf8_lossy(shown))
}

/// Creates a file for its owner alone: it holds what other users may not be allowed to read.
fn new_file(path: &Path) -> io::Result<File> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// The file is shared by machines; nothing should write to it by mistake.
fn make_read_only(path: &Path) -> Result<(), Error> {
    fs::metadata(path)
        .and_then(|metadata| {
            let mut permissions = metadata.permissions();
            permissions.set_readonly(true);
            fs::set_permissions(path, permissions)
        })
        .map_err(|error| Error::io(format!("protect {}", path.display()), error))
}
