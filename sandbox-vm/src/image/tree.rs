//! A file system tree as data: what an image will hold.
//!
//! Entries of archives and folders go in here and never onto the host's file system, so that nothing an
//! image says (a path that climbs out, a symbolic link to `/etc`, a device node, a set-user-id file) can
//! touch the host. File contents are elsewhere; the tree knows where.
//!
//! Layers follow the OCI image specification's "Image Layer Filesystem Changeset": an entry replaces what
//! was at its path, except that a folder entry keeps what an existing folder holds; a whiteout hides what
//! lower layers put at a path; an opaque whiteout hides what lower layers put in a folder. Symbolic links
//! in the middle of a path are followed within the tree, as if it were the root: an upper layer may put
//! `bin/tool` where a lower one has made `bin` a link to `usr/bin`.
//!
//! Everything is bounded, because layers come from strangers. What is replaced is reported through
//! [`Tree::take_unused`], so that its room in the image can be used again.

use std::collections::BTreeMap;

use super::erofs::Stored;

/// Most entries of an image, those that upper layers hide included.
pub(super) const MAX_ENTRIES: usize = 4 << 20;
/// Longest path within an image, as Linux has it (`PATH_MAX`).
pub(super) const MAX_PATH: usize = 4096;
/// Longest name, as Linux has it (`NAME_MAX`).
pub(super) const MAX_NAME: usize = 255;
/// Longest target of a symbolic link, as Linux has it.
pub(super) const MAX_TARGET: usize = 4095;
/// Most bytes of extended attributes of one entry: the longest single value of Linux.
pub(super) const MAX_ATTRIBUTES: usize = 64 << 10;
/// Most links that one path may lead through, as Linux has it.
const MAX_HOPS: u32 = 40;

/// Why an entry cannot be part of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("a path is longer than {MAX_PATH} bytes, or a part of it longer than {MAX_NAME}")]
    TooLong,
    #[error("a path leads out of the image or holds a NUL byte")]
    BadPath,
    #[error(
        "a symbolic link's target is empty, longer than {MAX_TARGET} bytes, or holds a NUL byte"
    )]
    BadTarget,
    #[error("an entry has more than {MAX_ATTRIBUTES} bytes of extended attributes")]
    TooManyAttributes,
    #[error("the image has more than {MAX_ENTRIES} entries")]
    TooManyEntries,
    #[error("a path leads through more than {MAX_HOPS} symbolic links")]
    TooManyLinks,
    #[error("a path leads through something that is not a folder")]
    NotADirectory,
    #[error("a hard link leads to nothing, or to a folder")]
    BadHardLink,
    #[error("the root of an image must be a folder")]
    RootReplaced,
}

impl Refusal {
    /// Answers whether a bound of ours was reached; else the input is not acceptable.
    pub(super) fn is_limit(self) -> bool {
        matches!(self, Self::TooManyEntries | Self::TooManyAttributes)
    }
}

/// Extended attributes by full name.
pub(super) type Attributes = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// What every kind of entry has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Metadata {
    /// Permissions, set-user-id and the like: the lower 12 bits of `st_mode`.
    pub(super) permissions: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) seconds: i64,
    pub(super) nanoseconds: u32,
    /// `None` for none, which is nearly always.
    pub(super) attributes: Option<Box<Attributes>>,
}

impl Metadata {
    /// What a folder gets that no entry describes.
    fn implied() -> Self {
        Self {
            permissions: 0o755,
            ..Self::default()
        }
    }

    /// Keeps an extended attribute if a guest may see it: `user.*`, except those that overlayfs reads
    /// as its own, and file capabilities.
    pub(super) fn keep_attribute(&mut self, name: &[u8], value: &[u8]) {
        let user = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
        if user || name == b"security.capability" {
            self.attributes
                .get_or_insert_default()
                .insert(name.into(), value.into());
        }
    }
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    Directory,
    File(Stored),
    Symlink(Box<[u8]>),
    CharacterDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

/// Names an entry of one tree.
pub(super) type NodeId = u32;

/// The root folder.
pub(super) const ROOT: NodeId = 0;

#[derive(Debug)]
pub(super) struct Node {
    pub(super) metadata: Metadata,
    pub(super) entry: Entry,
    /// What a folder holds, by name; empty for other kinds.
    pub(super) children: BTreeMap<Box<[u8]>, NodeId>,
    /// Names that lead to it. Folders have one.
    pub(super) names: u32,
    /// The layer that described it last.
    layer: u32,
}

/// A tree that grows entry by entry.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    layer: u32,
    unused: Vec<Stored>,
}

impl Tree {
    /// Makes a tree with an empty root folder.
    pub(super) fn new() -> Self {
        let mut tree = Self {
            nodes: Vec::new(),
            layer: 0,
            unused: Vec::new(),
        };
        tree.nodes
            .push(tree.node(Metadata::implied(), Entry::Directory));
        tree
    }

    /// Starts the next layer: whiteouts hide what was there until now.
    pub(super) fn begin_layer(&mut self) {
        self.layer += 1;
    }

    pub(super) fn node_at(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    /// Returns how many entries were ever put in.
    pub(super) fn entries(&self) -> usize {
        self.nodes.len()
    }

    /// Returns the contents of files that are gone since the last call.
    pub(super) fn take_unused(&mut self) -> Vec<Stored> {
        std::mem::take(&mut self.unused)
    }

    /// Puts an entry at `path`, making the folders that lead there.
    pub(super) fn insert(
        &mut self,
        path: &[u8],
        metadata: Metadata,
        entry: Entry,
    ) -> Result<NodeId, Refusal> {
        check_attributes(&metadata)?;
        if let Entry::Symlink(target) = &entry
            && (target.is_empty() || target.len() > MAX_TARGET || target.contains(&0))
        {
            return Err(Refusal::BadTarget);
        }
        let Some((parents, name)) = split(path)? else {
            if entry != Entry::Directory {
                return Err(Refusal::RootReplaced);
            }
            return Ok(self.describe_again(ROOT, metadata));
        };
        let parent = self.resolve(&parents, true)?;
        let existing = self.child(parent, name);
        if let Some(existing) = existing
            && entry == Entry::Directory
            && self.is_directory(existing)
        {
            return Ok(self.describe_again(existing, metadata));
        }
        let node = self.node(metadata, entry);
        let id = self.push(node)?;
        self.attach(parent, name, id);
        Ok(id)
    }

    /// Puts a second name for the entry at `target` at `path`.
    pub(super) fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), Refusal> {
        let (target_parents, target_name) = split(target)?.ok_or(Refusal::BadHardLink)?;
        let target_parent = self.resolve(&target_parents, false)?;
        let id = self
            .child(target_parent, target_name)
            .ok_or(Refusal::BadHardLink)?;
        self.link_to(path, id)
    }

    /// As [`Self::link`], for an entry that is known by its identity.
    pub(super) fn link_to(&mut self, path: &[u8], id: NodeId) -> Result<(), Refusal> {
        if self.is_directory(id) {
            return Err(Refusal::BadHardLink);
        }
        let (parents, name) = split(path)?.ok_or(Refusal::RootReplaced)?;
        let parent = self.resolve(&parents, true)?;
        if self.child(parent, name) != Some(id) {
            self.nodes[id as usize].names += 1;
            self.attach(parent, name, id);
        }
        self.nodes[id as usize].layer = self.layer;
        Ok(())
    }

    /// Hides what lower layers put at `path`.
    pub(super) fn whiteout(&mut self, path: &[u8]) -> Result<(), Refusal> {
        let (parents, name) = split(path)?.ok_or(Refusal::BadPath)?;
        let parent = match self.resolve(&parents, false) {
            Err(Refusal::BadHardLink) => return Ok(()),
            parent => parent?,
        };
        if let Some(id) = self.child(parent, name)
            && !self.hide_lower(id)
        {
            self.nodes[parent as usize].children.remove(name);
        }
        Ok(())
    }

    /// Hides what lower layers put in the folder at `path`.
    pub(super) fn opaque(&mut self, path: &[u8]) -> Result<(), Refusal> {
        let parts = parts(path)?;
        let folder = self.resolve(&parts, true)?;
        let names: Vec<_> = self.nodes[folder as usize]
            .children
            .iter()
            .map(|(n, &id)| (n.clone(), id))
            .collect();
        for (name, id) in names {
            if !self.hide_lower(id) {
                self.nodes[folder as usize].children.remove(&name);
            }
        }
        Ok(())
    }

    fn node(&self, metadata: Metadata, entry: Entry) -> Node {
        Node {
            metadata,
            entry,
            children: BTreeMap::new(),
            names: 1,
            layer: self.layer,
        }
    }

    fn push(&mut self, node: Node) -> Result<NodeId, Refusal> {
        if self.nodes.len() >= MAX_ENTRIES {
            return Err(Refusal::TooManyEntries);
        }
        let id = self.nodes.len() as NodeId;
        self.nodes.push(node);
        Ok(id)
    }

    fn describe_again(&mut self, id: NodeId, metadata: Metadata) -> NodeId {
        let node = &mut self.nodes[id as usize];
        node.metadata = metadata;
        node.layer = self.layer;
        id
    }

    fn child(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        self.nodes[parent as usize].children.get(name).copied()
    }

    fn is_directory(&self, id: NodeId) -> bool {
        self.nodes[id as usize].entry == Entry::Directory
    }

    fn attach(&mut self, parent: NodeId, name: &[u8], id: NodeId) {
        if let Some(old) = self.nodes[parent as usize].children.insert(name.into(), id) {
            self.remove_below(old, |_| true);
        }
    }

    /// Removes of the subtree what lower layers put there; answers whether anything of it stays.
    fn hide_lower(&mut self, id: NodeId) -> bool {
        let layer = self.layer;
        self.remove_below(id, |node| node.layer < layer)
    }

    /// Removes each entry of a subtree that is `doomed`; a folder stays for what stays in it. Answers
    /// whether the top stays. Without recursion: the depth is the image's to choose.
    fn remove_below(&mut self, top: NodeId, doomed: impl Fn(&Node) -> bool) -> bool {
        let mut order = vec![(top, None)];
        let mut next = 0;
        while let Some(&(id, _)) = order.get(next) {
            let children = &self.nodes[id as usize].children;
            order.extend(
                children
                    .iter()
                    .map(|(name, &child)| (child, Some((id, name.clone())))),
            );
            next += 1;
        }
        let mut top_stays = true;
        for (id, place) in order.into_iter().rev() {
            let node = &self.nodes[id as usize];
            if !node.children.is_empty() || !doomed(node) {
                continue;
            }
            self.forget_name(id);
            match place {
                Some((parent, name)) => drop(self.nodes[parent as usize].children.remove(&name)),
                None => top_stays = false,
            }
        }
        top_stays
    }

    fn forget_name(&mut self, id: NodeId) {
        let node = &mut self.nodes[id as usize];
        node.names -= 1;
        if node.names == 0
            && let Entry::File(stored) = node.entry
        {
            self.unused.push(stored);
        }
    }

    /// Follows `path` to a folder, through symbolic links, never above the root.
    fn resolve(&mut self, path: &[&[u8]], create: bool) -> Result<NodeId, Refusal> {
        let mut rest: Vec<Box<[u8]>> = path.iter().rev().map(|&part| part.into()).collect();
        let mut trail = vec![ROOT];
        let mut hops = 0;
        while let Some(part) = rest.pop() {
            let here = trail.last().copied().unwrap_or(ROOT);
            match &*part {
                b"" | b"." => continue,
                b".." => {
                    if trail.len() > 1 {
                        trail.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let Some(id) = self.child(here, &part) else {
                if !create {
                    return Err(Refusal::BadHardLink);
                }
                if part.len() > MAX_NAME {
                    return Err(Refusal::TooLong);
                }
                let node = self.node(Metadata::implied(), Entry::Directory);
                let id = self.push(node)?;
                self.attach(here, &part, id);
                trail.push(id);
                continue;
            };
            match &self.nodes[id as usize].entry {
                Entry::Directory => trail.push(id),
                Entry::Symlink(target) => {
                    hops += 1;
                    if hops > MAX_HOPS {
                        return Err(Refusal::TooManyLinks);
                    }
                    if target.starts_with(b"/") {
                        trail.truncate(1);
                    }
                    rest.extend(target.split(|&b| b == b'/').rev().map(Box::from));
                }
                _ => return Err(Refusal::NotADirectory),
            }
        }
        Ok(trail.last().copied().unwrap_or(ROOT))
    }
}

/// A path's parent folders and its last part.
type Split<'a> = (Vec<&'a [u8]>, &'a [u8]);

/// Splits a path into its parents and its last part; `None` for the root.
fn split(path: &[u8]) -> Result<Option<Split<'_>>, Refusal> {
    let mut parts = parts(path)?;
    Ok(parts.pop().map(|name| (parts, name)))
}

/// Splits a path as archives have it: relative to the root, perhaps with `./` or `/` in front.
fn parts(path: &[u8]) -> Result<Vec<&[u8]>, Refusal> {
    if path.len() > MAX_PATH {
        return Err(Refusal::TooLong);
    }
    let mut parts = Vec::new();
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(Refusal::BadPath),
            _ if part.contains(&0) => return Err(Refusal::BadPath),
            _ if part.len() > MAX_NAME => return Err(Refusal::TooLong),
            _ => parts.push(part),
        }
    }
    Ok(parts)
}

fn check_attributes(metadata: &Metadata) -> Result<(), Refusal> {
    let size = |attributes: &Attributes| -> usize {
        attributes
            .iter()
            .map(|(name, value)| name.len() + value.len() + 8)
            .sum()
    };
    match &metadata.attributes {
        Some(attributes) if size(attributes) > MAX_ATTRIBUTES => Err(Refusal::TooManyAttributes),
        _ => Ok(()),
    }
}
