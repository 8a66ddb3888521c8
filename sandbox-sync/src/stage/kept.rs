//! What an earlier session received and did not come to put in place (`S53`).
//!
//! Every staged file is named by what it shall hold from the beginning, so a session that ends half-way, however
//! it ends, leaves what it received where the next one finds it, and one that does not pays nothing for that. The
//! next one renames it to `kept-…` with a part of its digest. That is a hint and no more: whoever may write to the
//! folder may have changed the file, be about to, or have it open under another name. So what is kept is never put
//! in place itself. It is copied, the copy is verified like contents from the other side, and what is not what was
//! asked for is asked for again.
//!
//! What is kept is bounded, so that no guest fills the host's disk session by session: in bytes, in age, and it is
//! the first thing to go when the disk is full. A file that had not arrived as a whole is not kept; where a
//! process was killed it may be there, and goes when it is looked at.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, FileType};

use crate::root::Facts;
use crate::scan::open_file;
use crate::tree::Digest;

/// What the names of kept files begin with.
pub(super) const PREFIX: &str = "kept-";

/// The most bytes that are kept, of the newest files: more than most projects have, less than a disk.
const MOST: u64 = 2 << 30;

/// What a file counts as at least, which bounds their number too: what it takes on most file systems.
const BLOCK: u64 = 4096;

/// How long it is worth keeping: a machine that was off over night goes on in the morning.
const AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// The beginning of a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Hint(u64);

/// How many digits a hint has.
const DIGITS: usize = 16;

impl Hint {
    pub(super) fn of(digest: &Digest) -> Self {
        let (first, _) = digest.as_bytes().split_first_chunk().expect("it has 32");
        Self(u64::from_be_bytes(*first))
    }

    /// Reads the digits that a name goes on with.
    pub(super) fn read(rest: &str) -> Option<Self> {
        let digits = rest.get(..DIGITS)?;
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let number = u64::from_str_radix(digits, 16).ok();
        number.filter(|_| digits.bytes().all(is_digit)).map(Self)
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A file that may be worth keeping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) name: String,
    pub(super) hint: Hint,
    size: u64,
    /// When it was received, in seconds: no program can set that time.
    received: i64,
}

impl Found {
    /// Looks at a name; `None` where no file is.
    pub(super) fn at(folder: &OwnedFd, name: &str, hint: Hint) -> io::Result<Option<Self>> {
        let facts = Facts::at(folder, name.as_bytes())?;
        let facts = facts.filter(|facts| facts.kind == FileType::RegularFile);
        Ok(facts.map(|facts| Self {
            name: name.to_owned(),
            hint,
            size: facts.size,
            received: facts.changed.0,
        }))
    }
}

/// Tells what stays and what does not.
fn choose(mut found: Vec<Found>, now: Duration) -> (Vec<Found>, Vec<Found>) {
    found.sort_by_key(|found| Reverse(found.received));
    let (mut left, mut seen) = (MOST, HashSet::new());
    let oldest = i64::try_from(now.saturating_sub(AGE).as_secs()).unwrap_or(i64::MAX);
    found.into_iter().partition(|found| {
        let size = found.size.max(BLOCK);
        let stays = found.received >= oldest && size <= left && seen.insert(found.hint);
        if stays {
            left -= size;
        }
        stays
    })
}

/// What is kept in one folder.
#[derive(Debug)]
pub(super) struct Kept {
    folder: Arc<OwnedFd>,
    hints: Mutex<HashSet<Hint>>,
}

impl Kept {
    pub(super) fn within(folder: Arc<OwnedFd>) -> Self {
        let hints = Mutex::default();
        Self { folder, hints }
    }

    /// Keeps what is worth it, under its name, and removes the rest.
    pub(super) fn take_in(&self, found: Vec<Found>) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let (stays, goes) = choose(found, now.unwrap_or_default());
        for found in goes {
            self.remove(&found.name)?;
        }
        let mut hints = self.hints();
        hints.clear();
        for Found { name, hint, .. } in stays {
            let kept = format!("{PREFIX}{hint}");
            if name != kept {
                rustix::fs::renameat(&self.folder, name, &self.folder, kept)?;
            }
            hints.insert(hint);
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.hints().is_empty()
    }

    /// Opens what may be these contents; it is for the caller to verify.
    pub(super) fn open(&self, (digest, size): (Digest, u64)) -> Option<(File, Facts)> {
        let hint = Hint::of(&digest);
        if !self.hints().contains(&hint) {
            return None;
        }
        let opened = open_file(&self.folder, format!("{PREFIX}{hint}").as_bytes());
        opened.ok().filter(|(_, facts)| facts.size == size)
    }

    /// Removes what may be these contents, if there is any.
    pub(super) fn forget(&self, digest: &Digest) {
        let hint = Hint::of(digest);
        if self.hints().remove(&hint)
            && let Err(error) = self.remove(&format!("{PREFIX}{hint}"))
        {
            tracing::debug!(%error, "cannot clear a kept file");
        }
    }

    /// Removes everything to make room; `false` where nothing was kept.
    pub(super) fn make_room(&self) -> bool {
        let hints = std::mem::take(&mut *self.hints());
        let removed = hints.iter().map(|hint| {
            let removed = self.remove(&format!("{PREFIX}{hint}"));
            u32::from(removed.is_ok())
        });
        removed.sum::<u32>() > 0
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.folder, name, AtFlags::empty())?)
    }

    fn hints(&self) -> MutexGuard<'_, HashSet<Hint>> {
        self.hints.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells whether an error says that the disk, or the share of it that may be used, is full.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(number: u64, size: u64, received: i64) -> Found {
        Found {
            name: number.to_string(),
            hint: Hint(number),
            size,
            received,
        }
    }

    fn chosen(found: Vec<Found>, now: Duration) -> Vec<u64> {
        let (stays, _) = choose(found, now);
        stays.into_iter().map(|found| found.hint.0).collect()
    }

    const DAY: i64 = 24 * 60 * 60;

    #[test]
    fn s53_the_newest_files_are_kept_up_to_a_number_of_bytes() {
        let half = MOST / 2;
        let files = vec![
            found(1, half, 1),
            found(2, half, 3),
            found(3, half, 2),
            found(4, 0, 4),
        ];
        assert_eq!(chosen(files, Duration::ZERO), [4, 2]);
        // Empty ones count, too.
        let most = MOST / BLOCK;
        let many = (0..most + 10).map(|number| found(number, 0, 0));
        assert_eq!(chosen(many.collect(), Duration::ZERO).len() as u64, most);
    }

    #[test]
    fn s53_what_is_older_than_a_day_is_not_kept() {
        let files = vec![found(1, 1, 9), found(2, 1, 10), found(3, 1, DAY)];
        let now = Duration::from_secs(u64::try_from(DAY + 10).unwrap());
        assert_eq!(chosen(files, now), [3, 2]);
    }

    #[test]
    fn a_hint_is_read_back() {
        let digest = Digest::of(b"x");
        let hint = Hint::of(&digest);
        assert_eq!(Hint::read(&format!("{digest}-1")), Some(hint));
        assert_eq!(Hint::read(&format!("{hint}-1")), Some(hint));
        for other in [
            "",
            "x",
            "+123456789abcdef",
            "0123456789ABCDEF",
            "0123456789abcdé",
        ] {
            assert_eq!(Hint::read(other), None, "{other}");
        }
    }
}
