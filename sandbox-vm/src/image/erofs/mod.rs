//! Writes a read-only EROFS image, in pure Rust, on every host.
//!
//! No library that can write the format fits: those there are read only, or bring a TLS library and a
//! store of their own with them. We need little of it (see `format`), and that little is uncompressed on
//! purpose: a guest under software emulation would pay for decompression a second time.
//!
//! ```text
//! block 0    superblock
//! block 1…   contents of files, in the order in which they were stored
//!            contents of large folders and long symbolic links
//!            inodes, each with its extended attributes, small folders, short links and the last
//!            piece of a file's contents right behind it
//! ```
//!
//! Contents are written as they come, so that an archive is read once and never held in memory; short last
//! pieces wait in a temporary file until their inodes are placed. Room of files that an upper layer hides
//! is given to later files, and what then remains of it is zeroed. The same calls give the same bytes.

mod format;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};

use super::tree::{Entry, Node, NodeId, ROOT, Tree};
use format::{BLOCK, EntryType, INODE, Inode, Layout, SLOT, Superblock};

/// Longest piece of data behind an inode. Longer ones would often not fit what is left of a block and
/// leave it empty; those take a block of their own.
const MAX_INLINE: u64 = 2048;
/// Where the first inode is: not at zero, because programs take inode number 0 for "none".
const FIRST_INODE: u64 = 2 * SLOT;

/// Where the contents of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stored {
    size: u64,
    first_block: u32,
    /// Where the last piece waits, if it goes behind the inode.
    tail: Option<u64>,
}

impl Stored {
    fn inline_bytes(&self) -> u64 {
        self.tail.map_or(0, |_| self.size % BLOCK)
    }

    /// Contents that are nowhere, told apart by their size.
    #[cfg(test)]
    pub(super) fn for_test(size: u64) -> Self {
        Self {
            size,
            first_block: 0,
            tail: None,
        }
    }

    fn blocks(&self) -> u64 {
        (self.size - self.inline_bytes()).div_ceil(BLOCK)
    }
}

/// Why contents could not be stored.
#[derive(Debug)]
pub(super) enum StoreError {
    /// Reading them failed.
    Source(io::Error),
    /// They are shorter than was announced.
    Short,
    /// Writing the image failed.
    Target(io::Error),
    /// The image would become larger than its limit.
    TooLarge,
}

/// An image that is being written.
#[derive(Debug)]
pub(super) struct Writer {
    image: Placed,
    tails: Placed,
    next_block: u64,
    /// Unused runs of blocks: first block and count.
    free: BTreeMap<u64, u64>,
    limit: u64,
}

impl Writer {
    /// Writes to the empty file `image`, with `spool` for what must wait. An image never becomes larger
    /// than about `limit` bytes.
    pub(super) fn new(image: File, spool: File, limit: u64) -> Self {
        Self {
            image: Placed::new(image),
            tails: Placed::new(spool),
            next_block: 1,
            free: BTreeMap::new(),
            limit: limit.min(u64::from(u32::MAX) / 2 * BLOCK),
        }
    }

    /// Returns how many bytes the image has so far.
    pub(super) fn bytes(&self) -> u64 {
        self.next_block * BLOCK + self.tails.position
    }

    /// Stores the contents of a file of `size` bytes.
    pub(super) fn store(&mut self, source: &mut dyn Read, size: u64) -> Result<Stored, StoreError> {
        if size > self.limit || self.bytes() + size > self.limit {
            return Err(StoreError::TooLarge);
        }
        let rest = size % BLOCK;
        let inline = rest > 0 && rest <= MAX_INLINE;
        let whole = if inline { size - rest } else { size };
        let first_block = self.allocate(whole.div_ceil(BLOCK));
        self.image.copy(first_block * BLOCK, source, whole)?;
        // The room may have been another file's: the end of the last block must not show what that held.
        let padding = whole.next_multiple_of(BLOCK) - whole;
        let end = first_block * BLOCK + whole;
        self.image.zero(end, padding).map_err(StoreError::Target)?;
        let mut stored = Stored {
            size,
            first_block: first_block as u32,
            tail: None,
        };
        if inline {
            let at = self.tails.position;
            stored.tail = Some(at);
            self.tails.copy(at, source, rest)?;
        }
        Ok(stored)
    }

    /// Takes back the room of contents that no file has any more.
    pub(super) fn release(&mut self, stored: &Stored) {
        let blocks = stored.blocks();
        if blocks > 0 {
            self.free.insert(u64::from(stored.first_block), blocks);
        }
    }

    /// Writes the tree and ends the image. Returns its file, flushed to the operating system.
    pub(super) fn finish(mut self, tree: &Tree, uuid: [u8; 16]) -> io::Result<File> {
        let mut plan = Plan::of(tree);
        for (first, count) in std::mem::take(&mut self.free) {
            self.image.zero(first * BLOCK, count * BLOCK)?;
        }
        for id in plan.order.clone() {
            let blocks = plan.places[&id].own_blocks;
            if blocks > 0 {
                let first = self.allocate(blocks);
                let contents = plan.contents(tree, id);
                let whole = contents.len() as u64 - plan.places[&id].inline;
                self.image
                    .write(first * BLOCK, &contents[..whole as usize])?;
                plan.places
                    .entry(id)
                    .and_modify(|place| place.first_block = first as u32);
            }
        }
        let metadata_block = self.next_block;
        let start = metadata_block * BLOCK;
        for &id in &plan.order {
            self.write_inode(tree, &plan, id, start)?;
        }
        let end = (start + plan.bytes).next_multiple_of(BLOCK);
        let superblock = Superblock {
            root: (FIRST_INODE / SLOT) as u16,
            inodes: plan.order.len() as u64,
            blocks: u32::try_from(end / BLOCK).map_err(io::Error::other)?,
            metadata_block: metadata_block as u32,
            uuid,
        };
        self.image.write(0, &superblock.encode())?;
        let file = self
            .image
            .file
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        file.set_len(end)?;
        Ok(file)
    }

    fn write_inode(&mut self, tree: &Tree, plan: &Plan, id: NodeId, start: u64) -> io::Result<()> {
        let (node, place) = (tree.node_at(id), &plan.places[&id]);
        let at = start + place.offset;
        let (size, first_block) = match &node.entry {
            Entry::File(stored) => (stored.size, stored.first_block),
            _ => (place.size, place.first_block),
        };
        let layout = match node.entry {
            Entry::CharacterDevice { major, minor } | Entry::BlockDevice { major, minor } => {
                Layout::Device { major, minor }
            }
            _ if place.inline > 0 => Layout::Inline { first_block },
            _ => Layout::Plain { first_block },
        };
        let xattrs = attributes(node);
        let inode = Inode {
            layout,
            xattr_bytes: xattrs.len(),
            mode: kind_bits(&node.entry) | node.metadata.permissions & 0o7777,
            size,
            number: (place.offset / SLOT) as u32,
            uid: node.metadata.uid,
            gid: node.metadata.gid,
            seconds: node.metadata.seconds,
            nanoseconds: node.metadata.nanoseconds,
            links: place.links,
        };
        self.image.write(at, &inode.encode())?;
        self.image.write(at + INODE, &xattrs)?;
        let behind = at + INODE + xattrs.len() as u64;
        if let Entry::File(Stored {
            tail: Some(tail), ..
        }) = node.entry
        {
            let bytes = self.tails.read(tail, place.inline)?;
            self.image.write(behind, &bytes)
        } else if place.inline > 0 {
            let contents = plan.contents(tree, id);
            self.image
                .write(behind, &contents[contents.len() - place.inline as usize..])
        } else {
            Ok(())
        }
    }

    /// Finds room for `count` blocks: a gap that is large enough, or the end.
    fn allocate(&mut self, count: u64) -> u64 {
        if count == 0 {
            return 0;
        }
        let gap = self
            .free
            .iter()
            .find(|&(_, &length)| length >= count)
            .map(|(&f, &l)| (f, l));
        if let Some((first, length)) = gap {
            self.free.remove(&first);
            if length > count {
                self.free.insert(first + count, length - count);
            }
            return first;
        }
        let first = self.next_block;
        self.next_block += count;
        first
    }
}

/// Where one inode goes.
#[derive(Debug)]
struct Place {
    /// Bytes from the start of the metadata.
    offset: u64,
    /// Bytes of contents, except for files.
    size: u64,
    /// How many of the contents' last bytes are behind the inode.
    inline: u64,
    /// Blocks for the rest of a folder's or link's contents.
    own_blocks: u64,
    first_block: u32,
    links: u32,
}

/// Where all inodes go.
#[derive(Debug)]
struct Plan {
    /// All entries, each before what it holds.
    order: Vec<NodeId>,
    places: BTreeMap<NodeId, Place>,
    parents: BTreeMap<NodeId, NodeId>,
    bytes: u64,
}

impl Plan {
    fn of(tree: &Tree) -> Self {
        let mut plan = Self {
            order: Vec::new(),
            places: BTreeMap::new(),
            parents: BTreeMap::new(),
            bytes: FIRST_INODE,
        };
        let mut stack = vec![(ROOT, ROOT)];
        while let Some((id, parent)) = stack.pop() {
            if plan.places.contains_key(&id) {
                continue; // a further name of a file
            }
            plan.place(tree, id);
            if tree.node_at(id).entry == Entry::Directory {
                plan.parents.insert(id, parent);
            }
            let children = tree.node_at(id).children.values();
            stack.extend(children.rev().map(|&child| (child, id)));
        }
        plan
    }

    fn place(&mut self, tree: &Tree, id: NodeId) {
        let node = tree.node_at(id);
        let fixed = INODE + attributes(node).len() as u64;
        let (size, inline) = match &node.entry {
            Entry::File(stored) => (0, stored.inline_bytes()),
            Entry::Directory => tail(format::directory_size(names(node))),
            Entry::Symlink(target) => tail(target.len() as u64),
            _ => (0, 0),
        };
        // Neither the inode nor the data behind it may cross from one block into the next; the attributes
        // between them may.
        let mut offset = self.bytes.next_multiple_of(SLOT);
        while offset % BLOCK + INODE > BLOCK
            || inline > 0 && (offset + fixed) % BLOCK + inline > BLOCK
        {
            offset += SLOT;
        }
        self.order.push(id);
        self.bytes = offset + fixed + inline;
        let folders = node
            .children
            .values()
            .filter(|&&c| tree.node_at(c).entry == Entry::Directory);
        let links = match node.entry {
            Entry::Directory => 2 + folders.count() as u32,
            _ => node.names,
        };
        let own_blocks = (size - inline.min(size)).div_ceil(BLOCK);
        self.places.insert(
            id,
            Place {
                offset,
                size,
                inline,
                own_blocks,
                first_block: 0,
                links,
            },
        );
    }

    fn nid(&self, id: NodeId) -> u64 {
        self.places[&id].offset / SLOT
    }

    /// Returns the contents of a folder or a symbolic link.
    fn contents(&self, tree: &Tree, id: NodeId) -> Vec<u8> {
        let node = tree.node_at(id);
        match &node.entry {
            Entry::Symlink(target) => target.to_vec(),
            Entry::Directory => {
                let (own, parent) = (self.nid(id), self.nid(self.parents[&id]));
                let children = node.children.iter();
                let mut entries: Vec<(&[u8], u64, EntryType)> = children
                    .map(|(name, &c)| (&**name, self.nid(c), entry_type(&tree.node_at(c).entry)))
                    .collect();
                entries.push((b".", own, EntryType::Directory));
                entries.push((b"..", parent, EntryType::Directory));
                entries.sort_unstable_by_key(|&(name, ..)| name);
                format::directory(&entries)
            }
            _ => Vec::new(),
        }
    }
}

/// Returns a size and how much of it goes behind the inode.
fn tail(size: u64) -> (u64, u64) {
    let rest = size % BLOCK;
    (size, if rest <= MAX_INLINE { rest } else { 0 })
}

/// The names in a folder, sorted, with the two that every folder has.
fn names(node: &Node) -> impl Iterator<Item = &[u8]> {
    let mut names: Vec<&[u8]> = node.children.keys().map(|name| &**name).collect();
    names.extend([&b"."[..], b".."]);
    names.sort_unstable();
    names.into_iter()
}

fn attributes(node: &Node) -> Vec<u8> {
    node.metadata
        .attributes
        .as_deref()
        .map(format::xattrs)
        .unwrap_or_default()
}

fn kind_bits(entry: &Entry) -> u16 {
    match entry {
        Entry::Fifo => 0o010_000,
        Entry::CharacterDevice { .. } => 0o020_000,
        Entry::Directory => 0o040_000,
        Entry::BlockDevice { .. } => 0o060_000,
        Entry::File(_) => 0o100_000,
        Entry::Symlink(_) => 0o120_000,
    }
}

fn entry_type(entry: &Entry) -> EntryType {
    match entry {
        Entry::Fifo => EntryType::Fifo,
        Entry::CharacterDevice { .. } => EntryType::CharacterDevice,
        Entry::Directory => EntryType::Directory,
        Entry::BlockDevice { .. } => EntryType::BlockDevice,
        Entry::File(_) => EntryType::File,
        Entry::Symlink(_) => EntryType::Symlink,
    }
}

/// A file that is written at places, mostly one behind the other.
#[derive(Debug)]
struct Placed {
    file: BufWriter<File>,
    position: u64,
}

impl Placed {
    fn new(file: File) -> Self {
        Self {
            file: BufWriter::with_capacity(256 << 10, file),
            position: 0,
        }
    }

    fn seek(&mut self, at: u64) -> io::Result<()> {
        if self.position != at {
            self.file.seek(SeekFrom::Start(at))?;
            self.position = at;
        }
        Ok(())
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.seek(at)?;
        self.file.write_all(bytes)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn zero(&mut self, at: u64, count: u64) -> io::Result<()> {
        if count == 0 {
            return Ok(());
        }
        self.seek(at)?;
        self.position += io::copy(&mut io::repeat(0).take(count), &mut self.file)?;
        Ok(())
    }

    fn copy(&mut self, at: u64, source: &mut dyn Read, count: u64) -> Result<(), StoreError> {
        if count == 0 {
            return Ok(());
        }
        self.seek(at).map_err(StoreError::Target)?;
        let mut buffer = vec![0; count.min(128 << 10) as usize];
        let mut left = count;
        while left > 0 {
            let wanted = left.min(buffer.len() as u64) as usize;
            let read = match source.read(&mut buffer[..wanted]) {
                Ok(0) => return Err(StoreError::Short),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(StoreError::Source(error)),
            };
            self.file
                .write_all(&buffer[..read])
                .map_err(StoreError::Target)?;
            self.position += read as u64;
            left -= read as u64;
        }
        Ok(())
    }

    fn read(&mut self, at: u64, count: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count as usize];
        self.file.flush()?;
        let file = self.file.get_mut();
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut bytes)?;
        self.position = at + count;
        Ok(bytes)
    }
}
