//! What a person who waits is told.
//!
//! Obtaining a kernel and building an image take seconds to minutes. Each reports its steps through one
//! callback, as data: whoever embeds the crate draws its own bar, and nothing here writes to a terminal.

use serde::{Deserialize, Serialize};

/// One step of something that takes long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Step {
    /// A distribution package is being downloaded.
    Downloading {
        /// The package's name.
        package: String,
    },
    /// The package lists of the distribution are being fetched, because the host has none or old ones.
    UpdatingPackageLists,
    /// A package is being unpacked into the cache.
    Unpacking {
        /// The package's name.
        package: String,
    },
    /// The default image is being put together from the distribution's packages.
    Bootstrapping {
        /// What the bootstrap program says, one line.
        message: String,
    },
    /// A root image is being written.
    WritingImage {
        /// Files, folders and other entries written so far.
        entries: u64,
        /// Bytes of file contents written so far.
        bytes: u64,
    },
}

/// Where steps are reported to. Cheap to clone; called from any thread.
pub type Progress = sandbox_base::Progress<Step>;
