//! Templates: machines that were saved once, to be restored instead of booted.
//!
//! A template is what a kernel and its agent are when they have booted and wait for their host: the memory
//! as a file, which every machine maps privately, and the state of the devices. Nothing of a sandbox is in it,
//! neither settings nor disks: it is saved before its host has said a word, with empty disks of the same
//! shapes. So one template serves all sandboxes of its [`TemplateKey`], also those that start again.
//!
//! ```text
//!            lock, boot,            check
//!            save, rename          ┌─────┐
//!  absent ─────────────────▶ ready ◀─────┘ fits ──▶ restored machines
//!    ▲                         │
//!    └────── renamed away ─────┘ damaged, does not fit, cannot be restored, removed, pruned
//! ```
//!
//! | state | on disk, in `templates` | after a crash in it |
//! |---|---|---|
//! | absent | at most `.KEY.lock` | |
//! | being built | the lock, held; `.KEY.partial` | the lock is free; the next builder or [`TemplateStore::prune`] removes the rest |
//! | ready | `KEY/template.json`, `KEY/used`, `KEY/NONCE/memory`, `KEY/NONCE/state` | |
//! | being removed | `.KEY.PID.gone` | as being built |
//!
//! Who finds no template builds it under its lock; who finds the lock taken waits, within a bound, and starts
//! a machine of its own otherwise. A template is never changed: another one replaces it, in another folder
//! (`NONCE`), so that nobody can take memory from one and state from the other. Machines keep the memory that
//! they have mapped, whatever becomes of its name.
//!
//! What makes a template damaged: its description does not decode, is of another version or another key; its
//! state's digest differs; its memory's file is not as it was written (length, inode and times: reading all of
//! it on each start would take longer than the start), and neither is its digest. Bits that a disk turns over
//! by itself in a file that nobody wrote to are not found out.
//!
//! The folder is its owner's alone: who can write there can be any sandbox's kernel.

mod key;
mod store;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use key::{DiskShape, TemplateKey};
pub use store::{Limits, Template, TemplateStore};

#[cfg(target_os = "linux")]
pub(crate) use key::host_processor;
#[cfg(target_os = "linux")]
pub(crate) use store::{Building, Saved};

#[cfg(test)]
pub(crate) use key::tests;

/// Whether machines may be restored instead of booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Templates {
    /// Restored where that can be done; the first one of its kind is booted and saved.
    #[default]
    Use,
    /// Each one boots.
    Off,
}

/// How a machine came to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Started {
    /// A kernel booted.
    Cold(ColdReason),
    /// Restored from the template of this key's digest.
    Restored(String),
    /// It went on from a snapshot.
    Resumed,
}

/// Why a machine was booted and not restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ColdReason {
    /// The backend has no templates.
    Unsupported,
    /// It was asked for.
    Off,
    /// Another process builds the template, and takes long.
    Busy,
    /// The template could not be saved.
    NotSaved(String),
    /// The template could not be restored; it has been removed.
    NotRestored(String),
    /// One or the other happened to this value of the backend before.
    FailedBefore,
}

impl fmt::Display for ColdReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported => f.write_str("the backend has no templates"),
            Self::Off => f.write_str("templates are switched off"),
            Self::Busy => f.write_str("another process has been building the template for long"),
            Self::FailedBefore => f.write_str("templates have failed before"),
            Self::NotSaved(why) => write!(f, "the template cannot be saved: {why}"),
            Self::NotRestored(why) => write!(f, "the template cannot be restored: {why}"),
        }
    }
}
