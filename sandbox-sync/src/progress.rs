//! What a person who waits for a large tree is told.

use serde::{Deserialize, Serialize};

/// One step of a cycle that takes long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Step {
    /// Contents are being sent to the guest.
    Sending(Copied),
}

/// How far a copy has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Copied {
    /// Files done.
    pub files: u64,
    /// Files in all.
    pub of_files: u64,
    /// Bytes done.
    pub bytes: u64,
    /// Bytes in all, by the sizes that the files had when they were looked at.
    pub of_bytes: u64,
}

/// Where steps are reported to. Cheap to clone; called from any thread.
pub type Progress = sandbox_base::Progress<Step>;
