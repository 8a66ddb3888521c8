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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn put(tree: &mut Tree, path: &str, entry: Entry) -> Result<NodeId, Refusal> {
        tree.insert(path.as_bytes(), Metadata::default(), entry)
    }

    fn link_to(target: &str) -> Entry {
        Entry::Symlink(target.as_bytes().into())
    }

    /// All paths, in order.
    fn paths(tree: &Tree) -> Vec<String> {
        let mut all = Vec::new();
        let mut stack = vec![(String::new(), ROOT)];
        while let Some((path, id)) = stack.pop() {
            for (name, &child) in tree.node_at(id).children.iter().rev() {
                let name = String::from_utf8_lossy(name);
                stack.push((format!("{path}/{name}"), child));
            }
            all.push(path);
        }
        all.retain(|path| !path.is_empty());
        all
    }

    #[test]
    fn a_path_cannot_leave_the_image() {
        let mut tree = Tree::new();
        for path in ["..", "a/../../b", "/..", "a\0b"] {
            assert_eq!(
                put(&mut tree, path, Entry::Fifo),
                Err(Refusal::BadPath),
                "{path}"
            );
        }
        assert_eq!(tree.link(b"a", b"../etc/shadow"), Err(Refusal::BadPath));
        assert_eq!(paths(&tree), [""; 0]);
    }

    #[test]
    fn links_in_the_middle_of_a_path_are_followed_within_the_image() {
        let mut tree = Tree::new();
        put(&mut tree, "bin", link_to("usr/bin")).unwrap();
        put(&mut tree, "up", link_to("../../../..")).unwrap();
        put(&mut tree, "abs", link_to("/usr")).unwrap();
        put(&mut tree, "usr/bin", Entry::Directory).unwrap();
        put(&mut tree, "bin/a", Entry::Fifo).unwrap();
        put(&mut tree, "up/b", Entry::Fifo).unwrap();
        put(&mut tree, "abs/c", Entry::Fifo).unwrap();
        let expected = [
            "/abs",
            "/b",
            "/bin",
            "/up",
            "/usr",
            "/usr/bin",
            "/usr/bin/a",
            "/usr/c",
        ];
        assert_eq!(paths(&tree), expected);
    }

    #[test]
    fn a_circle_of_links_is_refused() {
        let mut tree = Tree::new();
        put(&mut tree, "a", link_to("b")).unwrap();
        put(&mut tree, "b", link_to("a")).unwrap();
        assert_eq!(
            put(&mut tree, "a/x", Entry::Fifo),
            Err(Refusal::TooManyLinks)
        );
    }

    #[test]
    fn a_folder_keeps_what_it_holds_and_anything_else_is_replaced() {
        let mut tree = Tree::new();
        put(&mut tree, "d/x", Entry::Fifo).unwrap();
        put(&mut tree, "d", Entry::Directory).unwrap();
        assert_eq!(paths(&tree), ["/d", "/d/x"]);
        put(&mut tree, "d", Entry::Fifo).unwrap();
        assert_eq!(paths(&tree), ["/d"]);
        assert_eq!(
            put(&mut tree, "d/x", Entry::Fifo),
            Err(Refusal::NotADirectory)
        );
        assert_eq!(put(&mut tree, "/", Entry::Fifo), Err(Refusal::RootReplaced));
    }

    #[test]
    fn whiteouts_hide_lower_layers_only() {
        let mut tree = Tree::new();
        for path in ["d/old", "d/sub/old", "gone/x", "both"] {
            put(&mut tree, path, Entry::Fifo).unwrap();
        }
        tree.begin_layer();
        put(&mut tree, "d/sub/new", Entry::Fifo).unwrap();
        put(&mut tree, "both", Entry::Fifo).unwrap();
        tree.opaque(b"d").unwrap();
        tree.whiteout(b"gone").unwrap();
        tree.whiteout(b"both").unwrap();
        tree.whiteout(b"never/was").unwrap();
        assert_eq!(paths(&tree), ["/both", "/d", "/d/sub", "/d/sub/new"]);
    }

    #[test]
    fn contents_are_unused_when_their_last_name_is_gone() {
        let stored = Stored::for_test(7);
        let mut tree = Tree::new();
        put(&mut tree, "a", Entry::File(stored)).unwrap();
        tree.link(b"b", b"a").unwrap();
        assert_eq!(tree.link(b"c", b"nothing"), Err(Refusal::BadHardLink));
        tree.begin_layer();
        tree.whiteout(b"a").unwrap();
        assert_eq!(tree.take_unused(), []);
        put(&mut tree, "b", Entry::Fifo).unwrap();
        assert_eq!(tree.take_unused(), [stored]);
    }

    #[test]
    fn a_hard_link_onto_itself_is_harmless() {
        let mut tree = Tree::new();
        let id = put(&mut tree, "a", Entry::File(Stored::for_test(1))).unwrap();
        tree.link(b"a", b"a").unwrap();
        assert_eq!(tree.node_at(id).names, 1);
        assert_eq!(tree.take_unused(), []);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Put(String, u8),
        Link(String, String),
        Whiteout(String),
        Opaque(String),
        Layer,
    }

    fn step() -> impl Strategy<Value = Step> {
        let path = || "[ab](/[ab]){0,3}";
        prop_oneof![
            4 => (path(), 0u8..4).prop_map(|(path, kind)| Step::Put(path, kind)),
            2 => (path(), path()).prop_map(|(path, target)| Step::Link(path, target)),
            1 => path().prop_map(Step::Whiteout),
            1 => path().prop_map(Step::Opaque),
            1 => Just(Step::Layer),
        ]
    }

    proptest! {
        /// Each name counts once, and contents are unused exactly when no name leads to them.
        #[test]
        fn names_and_contents_are_accounted_for(steps in prop::collection::vec(step(), 1..60)) {
            let mut tree = Tree::new();
            let (mut stored, mut unused) = (0u64, Vec::new());
            for step in steps {
                // A refusal is an answer; only its effects count here.
                let _refused = match step {
                    Step::Put(path, 0) => put(&mut tree, &path, Entry::Directory).map(drop),
                    Step::Put(path, 1) => put(&mut tree, &path, link_to("/a/b")).map(drop),
                    Step::Put(path, _) => {
                        let done = put(&mut tree, &path, Entry::File(Stored::for_test(stored)));
                        stored += u64::from(done.is_ok());
                        done.map(drop)
                    }
                    Step::Link(path, target) => tree.link(path.as_bytes(), target.as_bytes()),
                    Step::Whiteout(path) => tree.whiteout(path.as_bytes()),
                    Step::Opaque(path) => tree.opaque(path.as_bytes()),
                    Step::Layer => { tree.begin_layer(); Ok(()) }
                };
                unused.extend(tree.take_unused());
            }
            let mut names = BTreeMap::<NodeId, u32>::new();
            let mut stack = vec![ROOT];
            while let Some(id) = stack.pop() {
                for &child in tree.node_at(id).children.values() {
                    *names.entry(child).or_default() += 1;
                    stack.push(child);
                }
            }
            let mut used = 0;
            for (id, count) in names {
                prop_assert_eq!(tree.node_at(id).names, count);
                used += u64::from(matches!(tree.node_at(id).entry, Entry::File(_)));
            }
            prop_assert_eq!(used + unused.len() as u64, stored);
        }
    }
}
