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
mod placed;
mod plan;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};

use super::tree::{Entry, NodeId, Tree};
use format::{BLOCK, INODE, Inode, Layout, SLOT, Superblock};
use placed::Placed;
use plan::{FIRST_INODE, Plan, attributes};

/// Longest piece of data behind an inode. Longer ones would often not fit what is left of a block and
/// leave it empty; those take a block of their own.
const MAX_INLINE: u64 = 2048;

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
