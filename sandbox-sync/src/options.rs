//! How a workspace is synchronized; all of it is data.

use std::path::PathBuf;
use std::time::Duration;

use crate::progress::Progress;
use crate::reconcile::Mode;
use crate::rules::Lists;
use crate::safety::{Resolution, Thresholds};

/// How the host's half synchronizes one workspace.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// Which way changes flow.
    pub mode: Mode,
    /// Which paths are exceptions.
    pub lists: Lists,
    /// Where the guest's copy lies; the host's own path by default.
    pub guest_root: Option<PathBuf>,
    /// Whom the files in the guest belong to, user and group by number; the agent itself by default.
    pub guest_owner: Option<(u32, u32)>,
    /// Where the last agreed tree is kept between sessions; without it every session starts without
    /// history and unites the two sides.
    pub base_file: Option<PathBuf>,
    /// A folder of our own in which new contents wait, one per workspace, on the file system of the root;
    /// where it lies elsewhere or is not given, a folder in the root is used while changes are applied. What a
    /// session that ended half-way had received stays there for the next one, at most 2 GiB.
    pub staging: Option<PathBuf>,
    /// A folder of our own in which what [an apply](crate::Session::apply) replaces is kept, one per
    /// workspace; without it nothing can be applied.
    pub undo: Option<PathBuf>,
    /// How much may be deleted at once.
    pub thresholds: Thresholds,
    /// The answer to what made the last session halt, for this session's first cycle.
    pub resolution: Option<Resolution>,
    /// What bounds trees, files and waits.
    pub limits: Limits,
    /// How long nothing must change before the session looks; where changes go on it looks after ten times as
    /// long.
    pub settle: Duration,
    /// How often both sides are looked at as a whole, although nobody told of a change.
    pub rescan: Duration,
    /// Whether both sides are watched, so that a cycle looks only at what changed. Without it, or where
    /// nothing can vouch for a root, every cycle looks at everything.
    pub watch: bool,
    /// Who is told how far a large copy has come.
    pub progress: Progress,
}

/// Longer waits are none.
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl Default for Options {
    /// Returns two-way-safe, the threat model's lists, 5 ms to settle, both sides watched and looked at as
    /// a whole each minute.
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            lists: Lists::default(),
            guest_root: None,
            guest_owner: None,
            base_file: None,
            staging: None,
            undo: None,
            thresholds: Thresholds::default(),
            resolution: None,
            limits: Limits::default(),
            settle: Duration::from_millis(5),
            rescan: Duration::from_secs(60),
            watch: true,
            progress: Progress::silent(),
        }
    }
}

impl Options {
    /// Tells whether a session may ever write to the host's folder.
    pub(crate) fn writes_to_host(&self) -> bool {
        self.mode != Mode::ReadOnly || !self.lists.output.is_empty()
    }

    /// Tells whether a session writes to the host's folder, whatever is in it, without being asked each time.
    pub(crate) fn locks_host(&self) -> bool {
        let writes_by_itself = self.mode.is_two_way() || !self.lists.output.is_empty();
        writes_by_itself && self.lists.only.is_none()
    }

    /// Sets which way changes flow.
    #[must_use]
    pub fn with_mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets which paths are exceptions.
    #[must_use]
    pub fn with_lists(mut self, lists: Lists) -> Self {
        self.lists = lists;
        self
    }

    /// Sets where the guest's copy lies.
    #[must_use]
    pub fn with_guest_root(mut self, path: impl Into<PathBuf>) -> Self {
        self.guest_root = Some(path.into());
        self
    }

    /// Sets whom the files in the guest belong to.
    #[must_use]
    pub fn with_guest_owner(mut self, user: u32, group: u32) -> Self {
        self.guest_owner = Some((user, group));
        self
    }

    /// Sets where the last agreed tree is kept.
    #[must_use]
    pub fn with_base_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.base_file = Some(path.into());
        self
    }

    /// Sets where new contents wait.
    #[must_use]
    pub fn with_staging(mut self, path: impl Into<PathBuf>) -> Self {
        self.staging = Some(path.into());
        self
    }

    /// Sets where what an apply replaces is kept.
    #[must_use]
    pub fn with_undo(mut self, path: impl Into<PathBuf>) -> Self {
        self.undo = Some(path.into());
        self
    }

    /// Sets how much may be deleted at once.
    #[must_use]
    pub fn with_thresholds(mut self, thresholds: Thresholds) -> Self {
        self.thresholds = thresholds;
        self
    }

    /// Answers what made the last session halt.
    #[must_use]
    pub fn with_resolution(mut self, resolution: Resolution) -> Self {
        self.resolution = Some(resolution);
        self
    }

    /// Sets what bounds trees, files and waits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets who is told how far a large copy has come.
    #[must_use]
    pub fn with_progress(mut self, progress: Progress) -> Self {
        self.progress = progress;
        self
    }

    /// Sets whether both sides are watched.
    #[must_use]
    pub fn with_watch(mut self, watch: bool) -> Self {
        self.watch = watch;
        self
    }

    /// Sets how long to wait for more changes, and how often to look without being told; a year at most.
    #[must_use]
    pub fn with_timing(mut self, settle: Duration, rescan: Duration) -> Self {
        (self.settle, self.rescan) = (settle.min(YEAR), rescan.min(YEAR));
        self
    }
}

/// What bounds a workspace, so that neither side can make the other hold or wait without end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// The most entries of one side; a tree with more is refused as a whole.
    pub entries: usize,
    /// The longest file, in bytes; a longer one stays on its side and is reported.
    pub file_bytes: u64,
    /// The longest silence of the guest while it owes an answer.
    pub silence: Duration,
}

impl Default for Limits {
    /// Returns a million entries (about 300 MB of memory at the worst), 16 GiB, and two minutes, in which
    /// an emulated guest reads several gigabytes.
    fn default() -> Self {
        Self {
            entries: 1_000_000,
            file_bytes: 16 << 30,
            silence: Duration::from_secs(120),
        }
    }
}

impl Limits {
    /// Sets the most entries of one side.
    #[must_use]
    pub fn with_entries(mut self, entries: usize) -> Self {
        self.entries = entries;
        self
    }

    /// Sets the longest file, in bytes.
    #[must_use]
    pub fn with_file_bytes(mut self, bytes: u64) -> Self {
        self.file_bytes = bytes;
        self
    }

    /// Sets the longest silence of the guest while it owes an answer.
    #[must_use]
    pub fn with_silence(mut self, silence: Duration) -> Self {
        self.silence = silence;
        self
    }
}
