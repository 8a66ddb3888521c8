//! Where new contents wait, complete and verified, until one rename puts them in place.
//!
//! Whoever opens the folder has its lock, so that of two sessions on one root (one that writes by itself, others that
//! apply what somebody chose) each clears and keeps what is its own. It lies outside the tree where the embedder named
//! one on the same file system, else in the root under a name that no scan looks at; it exists only while something is
//! being applied, and after a session that ended half-way, for what it had received: that is [kept](kept) for the next
//! one (`S53`).
//!
//! The name of an object that takes the place of another is made of two digests: of what it holds, and of what it is
//! going to be swapped with (with `part-` in front while it is being written). So after a crash what matches its name
//! is of no further use but as contents, and what does not may be the only copy of something that was swapped out
//! before it could be verified: that is moved to `rescued-…` and left there (`S16`, `S48`). What takes nothing's place
//! is never swapped: it is `part-…` until it is in place.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use crate::root::{DIRECTORY, Facts, Root, lock, unlock, within};
use crate::rules::STAGING_PREFIX;
use crate::scan::{BUFFER, names, open_file};
use crate::tree::{Digest, Entry};

mod kept;

use kept::{Found, Hint, Kept, is_full};

/// Who owns what is created: user and group, by number.
pub(crate) type Owner = (u32, u32);

/// A file's modification time: seconds since 1970 and nanoseconds.
pub(crate) type Modified = (i64, u32);

/// What the names of files begin with that are not complete.
pub(crate) const PARTIAL: &str = "part-";

/// Keeps git from what is kept in a root: the file and what it says.
const IGNORE: (&str, &[u8]) = (".gitignore", b"*\n");

/// So many zeros in a row are left out of a file: a multiple of the block of any file system in use.
const HOLE: usize = 64 * 1024;
static ZEROS: [u8; HOLE] = [0; HOLE];

/// How long to wait for another session's turn to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Up to this many files are flushed one by one; beyond, the whole file system is at once.
const FLUSH_EACH: usize = 8;

/// An open staging folder.
#[derive(Debug)]
pub(crate) struct Staging {
    folder: Arc<OwnedFd>,
    /// The folder that holds it, where it lies in the root and goes when it is empty.
    in_root: Option<OwnedFd>,
    owner: Option<Owner>,
    next: u64,
    kept: Arc<Kept>,
    /// What is still here in the end is left to the next session.
    leaves: bool,
}

/// What something in the folder is good for.
enum Left {
    Rubbish,
    /// It may be the only copy of what was swapped out.
    Precious,
    /// It may be contents that were received.
    Contents(Hint),
}

impl Staging {
    /// Opens `outside` where it lies on the root's file system, else a folder in the root. Waits for another session
    /// that has it open.
    ///
    /// # Errors
    ///
    /// `ResourceBusy` where that takes too long.
    pub(crate) fn open(
        root: &Root,
        outside: Option<&Path>,
        owner: Option<Owner>,
    ) -> io::Result<Self> {
        Self::open_within(PATIENCE, root, outside, owner)
    }

    /// Opens it as [`Staging::open`] does, unless another session has it open at this moment.
    ///
    /// # Errors
    ///
    /// `ResourceBusy` then.
    pub(crate) fn open_now(root: &Root, outside: Option<&Path>) -> io::Result<Self> {
        Self::open_within(Duration::ZERO, root, outside, None)
    }

    fn open_within(
        patience: Duration,
        root: &Root,
        outside: Option<&Path>,
        owner: Option<Owner>,
    ) -> io::Result<Self> {
        let outside = outside.map(|path| open_outside(root, path, patience));
        let (folder, in_root) = match outside {
            Some(Ok(folder)) => (folder, None),
            Some(Err(error)) if error.kind() == io::ErrorKind::ResourceBusy => return Err(error),
            _ => (open_inside(root, patience)?, Some(root.directory(None)?)),
        };
        let folder = Arc::new(folder);
        let staging = Self {
            kept: Arc::new(Kept::within(folder.clone())),
            folder,
            in_root,
            owner,
            next: 0,
            leaves: false,
        };
        staging.recover(true)?;
        Ok(staging)
    }

    /// Clears what an earlier session left in the root or outside, but for what is kept; who has it open clears it.
    pub(crate) fn sweep(root: &Root, outside: Option<&Path>) -> io::Result<()> {
        Self::pass(root, outside, true)
    }

    /// Clears also what is kept: nobody wants it any more.
    pub(crate) fn clear(root: &Root, outside: Option<&Path>) -> io::Result<()> {
        Self::pass(root, outside, false)
    }

    fn pass(root: &Root, outside: Option<&Path>, keeps: bool) -> io::Result<()> {
        if outside.is_some() || Facts::at(root.folder(), in_root_name().as_bytes())?.is_some() {
            match Self::open_now(root, outside) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
                opened => opened?.leave(keeps),
            }
        }
        Ok(())
    }

    /// Decides whether what is still here when this is dropped is left to the next session.
    pub(crate) fn leave(&mut self, leaves: bool) {
        self.leaves = leaves;
    }

    /// Opens what an earlier session received and may be these contents: whoever copies it verifies it.
    pub(crate) fn kept(&self, content: (Digest, u64)) -> Option<(File, Facts)> {
        self.kept.open(content)
    }

    /// Removes what an earlier session received of these contents.
    pub(crate) fn forget_kept(&self, digest: &Digest) {
        self.kept.forget(digest);
    }

    pub(crate) fn folder(&self) -> &OwnedFd {
        &self.folder
    }

    /// Starts a file that shall hold `size` bytes of `digest`.
    pub(crate) fn file(
        &mut self,
        content: (Digest, u64),
        executable: bool,
        replaces: Option<&Entry>,
    ) -> io::Result<StagedFile> {
        let (partial, name) = match replaces {
            Some(_) => {
                let name = self.name(Some(content.0), replaces);
                (format!("{PARTIAL}{name}"), name)
            }
            None => {
                self.next += 1;
                let name = format!("{PARTIAL}{}-{}", Hint::of(&content.0), self.next);
                (name.clone(), name)
            }
        };
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Without an owner of its own the file gets what the process's umask leaves.
        let mode = match (self.owner.is_some(), executable) {
            (true, true) => 0o755,
            (true, false) => 0o644,
            (false, true) => 0o777,
            (false, false) => 0o666,
        };
        let open = || {
            let mode = Mode::from_raw_mode(mode);
            rustix::fs::openat(&self.folder, &partial, flags, mode).map_err(io::Error::from)
        };
        let file = match open() {
            Err(error) if is_full(&error) && self.kept.make_room() => open()?,
            opened => opened?,
        };
        Ok(StagedFile {
            partial: Partial {
                folder: self.folder.clone(),
                name: Some(partial),
            },
            name,
            file: file.into(),
            hasher: Some(blake3::Hasher::new()),
            count: 0,
            content,
            owner: self.owner,
            hole: false,
            kept: self.kept.clone(),
        })
    }

    /// Makes a symlink and returns its name here.
    pub(crate) fn symlink(
        &mut self,
        target: &[u8],
        replaces: Option<&Entry>,
    ) -> io::Result<String> {
        let name = self.name(None, replaces);
        rustix::fs::symlinkat(target, &self.folder, &name)?;
        self.own(&self.folder, name.as_bytes())?;
        Ok(name)
    }

    /// Makes an empty folder and returns its name here.
    pub(crate) fn directory(&mut self, replaces: Option<&Entry>) -> io::Result<String> {
        let name = self.name(None, replaces);
        self.create_directory(&self.folder, name.as_bytes())?;
        Ok(name)
    }

    /// Makes an empty folder somewhere.
    pub(crate) fn create_directory(&self, folder: &OwnedFd, name: &[u8]) -> io::Result<()> {
        let mode = if self.owner.is_some() { 0o755 } else { 0o777 };
        rustix::fs::mkdirat(folder, name, Mode::from_raw_mode(mode))?;
        self.own(folder, name)
    }

    /// Returns a name that is free here, for what should be `old` when it is moved in.
    pub(crate) fn free_name(&mut self, old: &Entry) -> String {
        self.name(None, Some(old))
    }

    /// Gives a staged file that was to take nothing's place a name by which it can be swapped with `old`.
    pub(crate) fn stand_in(
        &mut self,
        staged: &Ready,
        (holds, old): (Digest, &Entry),
    ) -> io::Result<Ready> {
        let name = self.name(Some(holds), Some(old));
        rustix::fs::renameat(&self.folder, &staged.name, &self.folder, &name)?;
        let facts = staged.facts;
        Ok(Ready { name, facts })
    }

    /// Returns a name that is free here, for what is the only copy as long as it is here.
    pub(crate) fn passing_name(&mut self) -> String {
        self.name(None, None)
    }

    /// Removes a file or link that is not needed any more.
    pub(crate) fn discard(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.folder, name, AtFlags::empty())?)
    }

    fn own(&self, folder: &OwnedFd, name: &[u8]) -> io::Result<()> {
        let Some((user, group)) = self.owner else {
            return Ok(());
        };
        let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        Ok(rustix::fs::chownat(
            folder,
            name,
            Some(user),
            Some(group),
            flags,
        )?)
    }

    fn name(&mut self, holds: Option<Digest>, replaces: Option<&Entry>) -> String {
        self.next += 1;
        let replaces = replaces.and_then(Entry::content).map(|content| content.0);
        let text = |digest: Option<Digest>| digest.map(|d| d.to_string()).unwrap_or_default();
        format!("{}-{}-{}", text(holds), text(replaces), self.next)
    }

    /// Clears what a crash left: rubbish goes, what may be somebody's only copy is set aside, and contents are
    /// kept if anything is.
    fn recover(&self, keeps: bool) -> io::Result<()> {
        let mut contents = Vec::new();
        for name in names(&self.folder)? {
            // Our own names are text; anything else is not ours.
            let Ok(text) = std::str::from_utf8(&name) else {
                continue;
            };
            if text.starts_with("rescued-") || text == IGNORE.0 {
                continue;
            }
            let found = match self.judge(text)? {
                Left::Precious => {
                    self.rescue(text)?;
                    continue;
                }
                Left::Contents(hint) if keeps => Found::at(&self.folder, text, hint)?,
                Left::Contents(_) | Left::Rubbish => None,
            };
            match found {
                Some(found) => contents.push(found),
                None => self.remove(text)?,
            }
        }
        self.kept.take_in(contents)
    }

    fn judge(&self, text: &str) -> io::Result<Left> {
        let contents = |hint: Option<Hint>| hint.map_or(Left::Rubbish, Left::Contents);
        let mut prefixes = [PARTIAL, kept::PREFIX].into_iter();
        if let Some(rest) = prefixes.find_map(|prefix| text.strip_prefix(prefix)) {
            return Ok(contents(Hint::read(rest)));
        }
        // Links and folders carry nothing that the tree or the other side does not have.
        let Ok((file, _)) = open_file(&self.folder, text.as_bytes()) else {
            return Ok(Left::Rubbish);
        };
        let digest = digest_of(file)?.to_string();
        Ok(match text.split('-').position(|part| part == digest) {
            Some(0) => contents(Hint::read(text)),
            Some(_) => Left::Rubbish,
            None => Left::Precious,
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let removed = rustix::fs::unlinkat(&self.folder, name, AtFlags::empty());
        match removed {
            Err(Errno::ISDIR | Errno::PERM) => {
                match rustix::fs::unlinkat(&self.folder, name, AtFlags::REMOVEDIR) {
                    // A folder that was on its way to another name.
                    Err(Errno::NOTEMPTY) => self.rescue(name),
                    removed => Ok(removed?),
                }
            }
            // What cannot be removed is seen by the next session.
            _ => Ok(()),
        }
    }

    fn rescue(&self, name: &str) -> io::Result<()> {
        tracing::warn!(name, "kept what a crash left in staging");
        let rescued = format!("rescued-{name}");
        Ok(rustix::fs::renameat(
            &self.folder,
            name,
            &self.folder,
            rescued,
        )?)
    }

    /// Hides what is kept in a root from git, or takes that back.
    fn hide(&self) -> io::Result<()> {
        let (name, text) = IGNORE;
        if self.in_root.is_none() || self.kept.is_empty() {
            return match rustix::fs::unlinkat(&self.folder, name, AtFlags::empty()) {
                Err(Errno::NOENT) | Ok(()) => Ok(()),
                Err(error) => Err(error.into()),
            };
        }
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        match rustix::fs::openat(&self.folder, name, flags, mode) {
            Ok(file) => File::from(file).write_all(text),
            Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = self.recover(self.leaves).and_then(|()| self.hide()) {
            tracing::debug!(%error, "cannot clear the staging folder");
        }
        if let Some(root) = &self.in_root {
            // Fails where something was rescued or is kept, and then the folder has to stay.
            let removed = rustix::fs::unlinkat(root, in_root_name(), AtFlags::REMOVEDIR);
            if let Err(error) = removed {
                tracing::debug!(%error, "the staging folder stays");
            }
        }
        unlock(&self.folder);
    }
}

fn in_root_name() -> String {
    format!("{STAGING_PREFIX}staging")
}

fn open_outside(root: &Root, path: &Path, patience: Duration) -> io::Result<OwnedFd> {
    std::fs::create_dir_all(path)?;
    let folder = rustix::fs::open(path, DIRECTORY, Mode::empty())?;
    within(patience, || lock(&folder))?;
    rustix::fs::fchmod(&folder, Mode::RWXU)?;
    if Facts::new(&rustix::fs::fstat(&folder)?).device == root.device() {
        Ok(folder)
    } else {
        Err(io::ErrorKind::CrossesDevices.into())
    }
}

fn open_inside(root: &Root, patience: Duration) -> io::Result<OwnedFd> {
    within(patience, || {
        match rustix::fs::mkdirat(root.folder(), in_root_name(), Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let opened = rustix::fs::openat(root.folder(), in_root_name(), DIRECTORY, Mode::empty());
        let folder = match opened {
            Err(Errno::NOENT) => return Err(io::ErrorKind::ResourceBusy.into()),
            opened => opened?,
        };
        lock(&folder)?;
        // Whoever had it before may have removed it.
        let found = Facts::at(root.folder(), in_root_name().as_bytes())?;
        let ours = Facts::new(&rustix::fs::fstat(&folder)?);
        match found.is_some_and(|found| found.inode == ours.inode) {
            true => Ok(folder),
            false => Err(io::ErrorKind::ResourceBusy.into()),
        }
    })
}

fn digest_of(mut file: File) -> io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    io::copy(&mut file, &mut hasher)?;
    Ok(hasher.finalize().into())
}

/// A file that is being written; only [`StagedFile::finish`] makes it one that can be installed.
/// Dropped before that, it is removed.
#[derive(Debug)]
pub(crate) struct StagedFile {
    partial: Partial,
    name: String,
    file: File,
    /// None where the sender's word is taken.
    hasher: Option<blake3::Hasher>,
    /// How many bytes it has so far.
    count: u64,
    content: (Digest, u64),
    owner: Option<Owner>,
    /// The file ends in a hole so far.
    hole: bool,
    kept: Arc<Kept>,
}

/// A file that is not complete, removed when this is dropped.
#[derive(Debug)]
struct Partial {
    folder: Arc<OwnedFd>,
    name: Option<String>,
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(name) = &self.name
            && let Err(error) = rustix::fs::unlinkat(&self.folder, name, AtFlags::empty())
        {
            tracing::debug!(%error, "cannot clear a partial file");
        }
    }
}

impl StagedFile {
    /// Takes the sender's word that what it sends has the digest that was announced; for who trusts it anyway.
    pub(crate) fn trusting(self) -> Self {
        let hasher = None;
        Self { hasher, ..self }
    }

    fn digest(&mut self, bytes: &[u8]) {
        self.count += bytes.len() as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
    }

    /// Appends; more bytes than were announced are refused before they are written.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.count + bytes.len() as u64 > self.content.1 {
            return Err(mismatch());
        }
        self.digest(bytes);
        let mut rest = bytes;
        while !rest.is_empty() {
            let blocks = |zero: bool| {
                rest.chunks(HOLE)
                    .take_while(move |block| is_hole(block) == zero)
            };
            self.hole = is_hole(&rest[..rest.len().min(HOLE)]);
            let (now, later) = rest.split_at(blocks(self.hole).map(<[u8]>::len).sum());
            if self.hole {
                let length = i64::try_from(now.len()).map_err(io::Error::other)?;
                self.file.seek(SeekFrom::Current(length))?;
            } else {
                self.write_out(now)?;
            }
            rest = later;
        }
        Ok(())
    }

    /// Writes, in the place of what is kept where there is no other room.
    fn write_out(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.file.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_full(&error) && self.kept.make_room() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes over all blocks of a source, as far as the file system can share them, and reads what came of
    /// it; `false`, and nothing is done, where it cannot. Nothing may have been written before.
    pub(crate) fn share(&mut self, source: &File) -> io::Result<bool> {
        if !share_blocks(&self.file, source)? {
            return Ok(false);
        }
        if self.file.metadata()?.len() != self.content.1 {
            return Err(mismatch());
        }
        let mut buffer = vec![0; BUFFER];
        loop {
            match self.file.read(&mut buffer)? {
                0 => return Ok(true),
                read => self.digest(&buffer[..read]),
            }
        }
    }

    /// Appends everything from a source of our own.
    pub(crate) fn copy(&mut self, source: &mut impl Read) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        loop {
            match source.read(&mut buffer)? {
                0 => return Ok(()),
                read => self.write(&buffer[..read])?,
            }
        }
    }

    /// Verifies length and digest, and sets owner and time.
    pub(crate) fn finish(mut self, modified: Option<Modified>) -> io::Result<(Ready, File)> {
        let (digest, size) = self.content;
        let is_other = |hasher: &blake3::Hasher| Digest::from(hasher.finalize()) != digest;
        if self.count != size || self.hasher.as_ref().is_some_and(is_other) {
            return Err(mismatch());
        }
        if self.hole {
            self.file.set_len(size)?;
        }
        if let Some((user, group)) = self.owner {
            let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
            rustix::fs::fchown(&self.file, Some(user), Some(group))?;
        }
        let mut facts = None;
        if let Some(time) = modified.and_then(system_time) {
            self.file.set_modified(time)?;
            facts = Some(Facts::new(&rustix::fs::fstat(&self.file)?));
        }
        let folder = &self.partial.folder;
        if let Some(partial) = self
            .partial
            .name
            .as_ref()
            .filter(|name| **name != self.name)
        {
            rustix::fs::renameat(folder, partial, folder, &self.name)?;
        }
        self.partial.name = None;
        let name = self.name;
        Ok((Ready { name, facts }, self.file))
    }
}

/// A file that is complete and waits.
#[derive(Debug)]
pub(crate) struct Ready {
    /// Its name in the staging folder.
    pub(crate) name: String,
    /// What it is known by wherever it is moved, where it was given a time: whoever writes to it later gives it
    /// another one.
    facts: Option<Facts>,
}

impl Ready {
    /// Returns the facts of what lies at `name`, if it is this file as it was staged.
    pub(crate) fn is_at(&self, (folder, name): (&OwnedFd, &[u8])) -> Option<Facts> {
        let told = |facts: &Facts| (facts.inode, facts.size, facts.modified);
        let staged = self.facts.as_ref()?;
        let found = Facts::at(folder, name).ok()??;
        (told(staged) == told(&found)).then_some(found)
    }
}

/// Tells a whole block of zeros, which need not be written: sparse files stay sparse (`S40`).
fn is_hole(block: &[u8]) -> bool {
    block == ZEROS
}

fn mismatch() -> io::Error {
    io::Error::other("the contents are not what the scan found; it may have been changed meanwhile")
}

fn system_time((seconds, nanos): Modified) -> Option<SystemTime> {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    time?.checked_add(Duration::from_nanos(nanos.min(999_999_999).into()))
}

/// Makes `to`, which is empty, a file of the same blocks as `from`; `false` where the file system cannot.
#[cfg(target_os = "linux")]
pub(crate) fn share_blocks(to: impl AsFd, from: impl AsFd) -> io::Result<bool> {
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => Ok(true),
        // Another file system; one that cannot; one that cannot with these two files.
        Err(
            Errno::XDEV
            | Errno::OPNOTSUPP
            | Errno::NOTTY
            | Errno::INVAL
            | Errno::NOSYS
            | Errno::PERM,
        ) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Elsewhere it is not tried.
#[cfg(not(target_os = "linux"))]
pub(crate) fn share_blocks(_: impl AsFd, _: impl AsFd) -> io::Result<bool> {
    Ok(false)
}

/// Makes files durable: a few one by one, many with one flush of their file system.
pub(crate) fn flush(files: &[File], folder: &OwnedFd) -> io::Result<()> {
    if cfg!(target_os = "linux") && files.len() > FLUSH_EACH {
        return flush_filesystem(folder);
    }
    files.iter().try_for_each(File::sync_all)
}

#[cfg(target_os = "linux")]
pub(crate) fn flush_filesystem(folder: &OwnedFd) -> io::Result<()> {
    Ok(rustix::fs::syncfs(folder)?)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn flush_filesystem(folder: &OwnedFd) -> io::Result<()> {
    Ok(rustix::fs::fsync(folder)?)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn s55_a_staging_folder_is_one_sessions_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let outside = folder.path().join("outside");
        for outside in [None, Some(outside.as_path())] {
            let root = Root::open(folder.path()).unwrap();
            let first = Staging::open(&root, outside, None).unwrap();
            thread::scope(|scope| {
                let (opened, second) = mpsc::channel();
                let (path, beside) = (folder.path(), outside);
                scope.spawn(move || {
                    let root = Root::open(path).unwrap();
                    let mut staging = Staging::open(&root, beside, None).unwrap();
                    opened.send(()).unwrap();
                    // Not a folder that the first one has removed meanwhile.
                    let file = staging.file(([0; 32].into(), 0), false, None);
                    drop(file.unwrap());
                });
                let early = second.recv_timeout(Duration::from_millis(100));
                assert_eq!(early, Err(mpsc::RecvTimeoutError::Timeout));
                drop(first);
                second.recv().unwrap();
            });
        }
    }
}
