//! What a walk found: put together, stored from the leaves up, seen as a tree.

use std::collections::HashMap;
use std::io;

use super::folder::{Beneath, Folder, Named, Node};
use super::packs::Writer;
use crate::path::RelPath;
use crate::tree::{Digest, Entry, Reason, Tree};

/// What a walk found.
#[derive(Debug)]
pub(crate) struct Found {
    folders: Vec<Listed>,
    /// How many files were read.
    pub(crate) read: u64,
    pub(crate) torn: Vec<RelPath>,
}

/// One folder that was found.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) path: Option<RelPath>,
    pub(super) entries: Vec<(Named, Node)>,
    /// Which of the entries are folders that were entered, and their numbers.
    pub(super) children: Vec<(usize, usize)>,
    pub(super) previous: Option<(Digest, Folder)>,
    /// Why it could not be read; `Ok` where it is gone.
    pub(super) failed: Option<Option<Reason>>,
    /// The listing and what lies beneath, where it is stored already.
    pub(super) stored: Option<(Digest, Beneath)>,
}

impl Listed {
    /// Stores the listing of a folder in which everything is known.
    pub(super) fn store(&mut self, writer: &Writer<'_>) -> io::Result<(Digest, Beneath)> {
        let mut beneath = Beneath::default();
        for (_, node) in &self.entries {
            beneath.add(node);
        }
        let digest = match &self.previous {
            Some((digest, previous)) if previous.0 == self.entries => *digest,
            _ => {
                let bytes = Folder(std::mem::take(&mut self.entries));
                let encoded = bytes.encode()?;
                self.entries = bytes.0;
                let digest = Digest::of(&encoded);
                writer.put(digest, &encoded)?;
                digest
            }
        };
        Ok((digest, beneath))
    }
}

/// What one thread found.
#[derive(Default)]
pub(super) struct Part {
    pub(super) folders: Vec<(usize, Listed)>,
    pub(super) read: u64,
    pub(super) torn: Vec<RelPath>,
    pub(super) buffer: Vec<u8>,
}

impl Found {
    pub(super) fn new(parts: Vec<Part>, folders: usize) -> io::Result<Self> {
        let mut found = Self {
            folders: Vec::new(),
            read: 0,
            torn: Vec::new(),
        };
        let mut listed: Vec<Option<Listed>> = (0..folders).map(|_| None).collect();
        for part in parts {
            found.read += part.read;
            found.torn.extend(part.torn);
            for (number, folder) in part.folders {
                listed[number] = Some(folder);
            }
        }
        found.torn.sort();
        let missing = || io::Error::other("a folder was not read");
        for folder in listed {
            found.folders.push(folder.ok_or_else(missing)?);
        }
        found.prune();
        Ok(found)
    }

    /// Says of folders that could not be read why, and leaves out those that are gone.
    fn prune(&mut self) {
        let failed: HashMap<usize, Option<Reason>> = (self.folders.iter().enumerate())
            .filter_map(|(number, folder)| Some((number, folder.failed?)))
            .collect();
        if failed.is_empty() {
            return;
        }
        for folder in &mut self.folders {
            let mut gone = Vec::new();
            folder
                .children
                .retain(|(entry, number)| match failed.get(number) {
                    None => true,
                    Some(Some(reason)) => {
                        folder.entries[*entry].1 = Node::Untracked(*reason);
                        false
                    }
                    Some(None) => {
                        gone.push(*entry);
                        false
                    }
                });
            for entry in gone.into_iter().rev() {
                drop(folder.entries.remove(entry));
                for (later, _) in &mut folder.children {
                    *later -= usize::from(*later > entry);
                }
            }
        }
    }

    /// Stores the listings and returns the one of the root, with what lies beneath it.
    pub(crate) fn store(&mut self, writer: &Writer<'_>) -> io::Result<(Digest, Beneath)> {
        let mut done = vec![None; self.folders.len()];
        // A folder has a higher number than the one that holds it.
        for (number, folder) in self.folders.iter_mut().enumerate().rev() {
            for (entry, child) in &folder.children {
                if let (
                    Node::Folder {
                        listing, beneath, ..
                    },
                    Some(found),
                ) = (&mut folder.entries[*entry].1, done[*child])
                {
                    (*listing, *beneath) = found;
                }
            }
            done[number] = Some(match folder.stored {
                Some(stored) => stored,
                None => folder.store(writer)?,
            });
        }
        done[0].ok_or_else(|| io::Error::other("no root was read"))
    }

    /// Returns what was found as a tree, of a walk that read everything.
    pub(crate) fn tree(&self) -> Tree {
        let entries = self.folders.iter().flat_map(|folder| {
            let entry = |(name, node): &(Named, Node)| -> Option<(RelPath, Entry)> {
                let path = RelPath::join(folder.path.as_ref(), &name.0).ok()?;
                Some((path, node.entry()))
            };
            folder.entries.iter().filter_map(entry)
        });
        entries.collect()
    }
}
