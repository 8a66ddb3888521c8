//! What a person who waits is told.
//!
//! Obtaining a kernel and building an image take seconds to minutes. Each reports its steps through one
//! callback, as data: whoever embeds the crate draws its own bar, and nothing here writes to a terminal.

use std::fmt;
use std::sync::Arc;

/// One step of something that takes long.
#[derive(Debug, Clone, PartialEq, Eq)]
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
#[derive(Clone, Default)]
pub struct Progress(Option<Arc<dyn Fn(Step) + Send + Sync>>);

impl Progress {
    /// Reports to `callback`, which must not block.
    pub fn new(callback: impl Fn(Step) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(callback)))
    }

    /// Reports to nobody.
    pub fn silent() -> Self {
        Self(None)
    }

    /// Reports one step.
    pub(crate) fn report(&self, step: Step) {
        tracing::debug!(?step, "progress");
        if let Some(callback) = &self.0 {
            callback(step);
        }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.0.is_some() {
            "callback"
        } else {
            "silent"
        };
        f.debug_tuple("Progress").field(&name).finish()
    }
}
