//! Where each inode goes, decided before the first is written: folders name their entries by place.

use std::collections::BTreeMap;

use super::MAX_INLINE;
use super::format::{self, BLOCK, EntryType, INODE, SLOT};
use crate::image::tree::{Entry, Node, NodeId, ROOT, Tree};

/// Where the first inode is: not at zero, because programs take inode number 0 for "none".
pub(super) const FIRST_INODE: u64 = 2 * SLOT;

/// Where one inode goes.
#[derive(Debug)]
pub(super) struct Place {
    /// Bytes from the start of the metadata.
    pub(super) offset: u64,
    /// Bytes of contents, except for files.
    pub(super) size: u64,
    /// How many of the contents' last bytes are behind the inode.
    pub(super) inline: u64,
    /// Blocks for the rest of a folder's or link's contents.
    pub(super) own_blocks: u64,
    pub(super) first_block: u32,
    pub(super) links: u32,
}

/// Where all inodes go.
#[derive(Debug)]
pub(super) struct Plan {
    /// All entries, each before what it holds.
    pub(super) order: Vec<NodeId>,
    pub(super) places: BTreeMap<NodeId, Place>,
    parents: BTreeMap<NodeId, NodeId>,
    pub(super) bytes: u64,
}

impl Plan {
    pub(super) fn of(tree: &Tree) -> Self {
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
    pub(super) fn contents(&self, tree: &Tree, id: NodeId) -> Vec<u8> {
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

pub(super) fn attributes(node: &Node) -> Vec<u8> {
    node.metadata
        .attributes
        .as_deref()
        .map(format::xattrs)
        .unwrap_or_default()
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
