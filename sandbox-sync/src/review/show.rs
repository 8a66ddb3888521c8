//! A change as a patch that a person reads.

use std::fmt;

use crate::path::RelPath;
use crate::review::{Change, Contents, Hunk, Kind, LineSide};
use crate::tree::Entry;

/// A change in the form of `git diff`, with everything escaped that a terminal would act on. It is meant to
/// be read, not to be fed to `patch`.
#[derive(Debug, Clone, Copy)]
pub struct Patch<'a>(pub(super) &'a Change);

impl Change {
    /// Returns the change in the form of `git diff`.
    #[must_use]
    pub fn patch(&self) -> Patch<'_> {
        Patch(self)
    }

    /// Returns how many lines are added and removed, where that is known.
    #[must_use]
    pub fn line_counts(&self) -> Option<(usize, usize)> {
        let Contents::Text(hunks) = &self.contents else {
            return None;
        };
        let count = |side| {
            let lines = hunks.iter().flat_map(|hunk| &hunk.lines);
            lines.filter(|line| line.side == side).count()
        };
        Some((count(LineSide::Added), count(LineSide::Removed)))
    }
}

impl fmt::Display for Patch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let change = self.0;
        let path = &change.path;
        let from = match &change.kind {
            Kind::Renamed { from, .. } => from,
            _ => path,
        };
        writeln!(f, "diff a/{from} b/{path}")?;
        head(f, change)?;
        match &change.contents {
            Contents::Same => Ok(()),
            Contents::Binary => writeln!(f, "Binary: {}", sizes(change)),
            Contents::Omitted => writeln!(f, "Too long to be shown: {}", sizes(change)),
            Contents::Unread => writeln!(f, "It changed while it was read"),
            Contents::Text(hunks) => {
                let side = |entry: &Option<Entry>, letter, path: &RelPath| match entry {
                    Some(Entry::File { .. }) => format!("{letter}/{path}"),
                    _ => "/dev/null".to_owned(),
                };
                writeln!(f, "--- {}", side(&change.host, 'a', path))?;
                writeln!(f, "+++ {}", side(&change.guest, 'b', path))?;
                hunks.iter().try_for_each(|hunk| write!(f, "{hunk}"))
            }
        }
    }
}

/// Writes what is to be said besides the contents.
fn head(f: &mut fmt::Formatter<'_>, change: &Change) -> fmt::Result {
    match &change.kind {
        Kind::Renamed { from, .. } => {
            writeln!(f, "rename from {from}")?;
            writeln!(f, "rename to {}", change.path)?;
        }
        Kind::Added => writeln!(f, "new {}", type_of(change.guest.as_ref()))?,
        Kind::Removed => writeln!(f, "deleted {}", type_of(change.host.as_ref()))?,
        Kind::Changed | Kind::Mode => {}
    }
    let before = match &change.kind {
        Kind::Renamed { old, .. } => Some(old),
        _ => change.host.as_ref(),
    };
    let [before, after] =
        [before, change.guest.as_ref()].map(|entry| entry.map(|_| type_of(entry)));
    match (before, after) {
        (Some(before), Some(after)) if before != after => {
            writeln!(f, "old {before}")?;
            writeln!(f, "new {after}")
        }
        _ => Ok(()),
    }
}

fn type_of(entry: Option<&Entry>) -> String {
    match entry {
        Some(Entry::Directory) => "folder".into(),
        Some(Entry::File {
            executable: true, ..
        }) => "file, executable".into(),
        Some(Entry::File { .. }) => "file".into(),
        Some(Entry::Symlink { target }) => format!("link to {}", super::text::harmless(target)),
        Some(Entry::Untracked(_)) | None => "nothing".into(),
    }
}

fn sizes(change: &Change) -> String {
    let size = |entry: &Option<Entry>| match entry.as_ref().and_then(Entry::content) {
        Some((_, size)) => format!("{size} bytes"),
        None => "nothing".to_owned(),
    };
    format!("{} to {}", size(&change.host), size(&change.guest))
}

/// In the unified form.
impl fmt::Display for Hunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A side without lines is said to begin at the line before.
        let place = |start: u32, lines: u32| (start + u32::from(lines > 0), lines);
        let (before, before_lines) = place(self.before, self.before_lines);
        let (after, after_lines) = place(self.after, self.after_lines);
        writeln!(f, "@@ -{before},{before_lines} +{after},{after_lines} @@")?;
        for line in &self.lines {
            let sign = match line.side {
                LineSide::Same => ' ',
                LineSide::Removed => '-',
                LineSide::Added => '+',
            };
            writeln!(f, "{sign}{}", line.text)?;
            if !line.ends {
                writeln!(f, "\\ No newline at end of file")?;
            }
        }
        Ok(())
    }
}
