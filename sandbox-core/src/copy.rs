//! Files and folders between host and guest, as tar archives on a stream.
//!
//! What comes out of a guest is a stranger's archive. It is unpacked into a fresh folder beside its
//! target, where nothing of the host can be in the way and no link exists that the archive did not make
//! itself; only regular files, folders and links that stay within are made. What came whole is then moved
//! to where it belongs.

use std::cell::Cell;
use std::fs;
use std::io::{self, Read, Seek, Write};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use sandbox_base::{BoxStream, Error, ErrorKind};
use sandbox_vm::Agent;
use tokio_util::io::SyncIoBridge;

use crate::sandbox::bytes_of;
use crate::state::blocking;

/// The most entries of an archive.
const MAX_ENTRIES: usize = 4_000_000;

/// The most bytes that an archive's files may have together.
const MAX_BYTES: u64 = 1 << 40;

/// The most bytes of one entry's headers: its names, above all.
const MAX_HEADERS: u64 = 1 << 20;

/// The longest path of an archive, in bytes, as on Linux.
const MAX_PATH: usize = 4096;

/// The deepest path of an archive: what is unpacked is walked by functions that call themselves.
const MAX_DEPTH: usize = 256;

/// How much of a file is looked at at once, in bytes.
const PIECE: usize = 64 * 1024;

/// How far the packing side may run ahead of the sending one, in bytes.
const PIPE: usize = 256 * 1024;

/// Copies a file or folder of the host in.
pub(crate) async fn copy_in(
    agent: &Agent,
    from: &Path,
    to: &Path,
    user: Option<&str>,
) -> Result<(), Error> {
    let operation = format!("copy {} in", from.display());
    let meta = fs::metadata(from).map_err(|error| Error::io(operation.clone(), error))?;
    // A file becomes `to` itself; what a folder holds goes into `to`.
    let (parent, name) = if meta.is_dir() {
        (to, None)
    } else {
        let name = to.file_name().ok_or_else(|| {
            Error::new(ErrorKind::Invalid, operation.clone())
                .with_detail("the target names no file")
        })?;
        (to.parent().unwrap_or(to), Some(name.to_owned()))
    };
    let (ours, mut theirs) = tokio::io::duplex(PIPE);
    let source = from.to_owned();
    let packing = blocking(move || {
        let mut archive = tar::Builder::new(SyncIoBridge::new(ours));
        archive.follow_symlinks(false);
        let packed = match name {
            None => archive.append_dir_all(".", &source),
            Some(name) => fs::File::open(&source)
                .and_then(|mut file| archive.append_file(Path::new(&name), &mut file)),
        };
        let done = packed.and_then(|()| archive.into_inner()?.shutdown());
        done.map_err(|error| Error::io(operation, error))
    });
    let sending = agent.unpack(bytes_of(parent)?, user, &mut theirs);
    let (packed, sent) = tokio::join!(packing, sending);
    packed.and(sent)
}

/// Copies a file or folder inside out.
pub(crate) async fn copy_out(agent: &Agent, from: &Path, to: &Path) -> Result<(), Error> {
    let stream = agent.pack(bytes_of(from)?).await?;
    let operation = format!("copy {} out", from.display());
    let target = std::path::absolute(to).map_err(|error| Error::io(operation.clone(), error))?;
    let single = from.file_name().map(PathBuf::from);
    blocking(move || {
        let parent = target.parent().ok_or_else(|| {
            Error::new(ErrorKind::Invalid, operation.clone())
                .with_detail("the target names no file")
        })?;
        let io = |error| Error::io(operation.clone(), error);
        fs::create_dir_all(parent).map_err(io)?;
        let staging = staging(parent).map_err(io)?;
        let done = receive(stream, &staging, &operation)
            .and_then(|folder| install(&staging, &target, single.as_deref(), folder).map_err(io));
        // Empty by now, or half of something that failed.
        drop(fs::remove_dir_all(&staging));
        done
    })
    .await
}

fn staging(parent: &Path) -> io::Result<PathBuf> {
    let random = sandbox_vm::agent::new_exec_id()
        .map_err(io::Error::other)?
        .0;
    let path = parent.join(format!(".sandbox-{:032x}", u128::from_be_bytes(random)));
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(&path)?;
    Ok(path)
}

/// Unpacks a stranger's archive into a fresh folder; tells whether it was a folder's.
fn receive(stream: BoxStream, staging: &Path, operation: &str) -> Result<bool, Error> {
    let io = |error| Error::io(operation, error);
    let meter = Meter::default();
    let mut archive = tar::Archive::new(Metered {
        stream: SyncIoBridge::new(stream),
        meter: meter.clone(),
    });
    let mut budget = Budget {
        entries: MAX_ENTRIES,
        bytes: MAX_BYTES,
    };
    let mut folder = false;
    let mut entries = archive.entries().map_err(io)?;
    loop {
        meter.allow(MAX_HEADERS);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(io)?;
        let path = entry.path().map_err(io)?.into_owned();
        budget
            .spend(entry.size())
            .map_err(|detail| refused(operation, detail))?;
        let inside = beneath(&path).ok_or_else(|| {
            let shown: String = path.display().to_string().chars().take(200).collect();
            refused(operation, format!("the archive names {shown:?}"))
        })?;
        folder |= inside.as_os_str().is_empty();
        meter.allow(u64::MAX);
        unpack(&mut entry, staging, &inside).map_err(io)?;
        // What was left out is read all the same, before the next headers are counted.
        io::copy(&mut entry, &mut io::sink()).map_err(io)?;
    }
    if meter.0.ended.get() {
        return Err(Error::new(ErrorKind::Disconnected, operation)
            .with_detail("the archive ends before its end"));
    }
    Ok(folder)
}

/// How many bytes may be read before the next entry, and whether there are any more.
#[derive(Debug, Clone, Default)]
struct Meter(Rc<Reading>);

#[derive(Debug, Default)]
struct Reading {
    allowance: Cell<u64>,
    ended: Cell<bool>,
}

impl Meter {
    fn allow(&self, bytes: u64) {
        self.0.allowance.set(bytes);
    }
}

/// A stream whose headers, which are kept in memory, cannot be of any length.
struct Metered<R> {
    stream: R,
    meter: Meter,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let reading = &self.meter.0;
        let allowance = reading.allowance.get();
        let most = buffer
            .len()
            .min(usize::try_from(allowance).unwrap_or(usize::MAX));
        if most == 0 && !buffer.is_empty() {
            let reason = "the headers of an entry are too long";
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        let count = self.stream.read(&mut buffer[..most])?;
        reading.allowance.set(allowance - count as u64);
        reading.ended.set(reading.ended.get() || count == 0);
        Ok(count)
    }
}

fn refused(operation: &str, detail: String) -> Error {
    Error::new(ErrorKind::Protocol, operation).with_detail(detail)
}

struct Budget {
    entries: usize,
    bytes: u64,
}

impl Budget {
    fn spend(&mut self, bytes: u64) -> Result<(), String> {
        self.entries = self
            .entries
            .checked_sub(1)
            .ok_or("the archive has too many entries")?;
        self.bytes = self
            .bytes
            .checked_sub(bytes)
            .ok_or("the archive is too large")?;
        Ok(())
    }
}

/// Returns a path of an archive without its `.` parts; `None` for one that could lead elsewhere, or is
/// longer or deeper than a path of Linux can be.
fn beneath(path: &Path) -> Option<PathBuf> {
    if path.as_os_str().len() > MAX_PATH || path.components().count() > MAX_DEPTH {
        return None;
    }
    let mut inside = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => inside.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(inside)
}

fn unpack(entry: &mut tar::Entry<'_, impl Read>, staging: &Path, inside: &Path) -> io::Result<()> {
    let target = staging.join(inside);
    if has_link_above(staging, inside) {
        let reason = format!("{} lies behind a link", inside.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    if let Some(parent) = target.parent().filter(|_| !inside.as_os_str().is_empty()) {
        fs::create_dir_all(parent)?;
    }
    match entry.header().entry_type() {
        tar::EntryType::Directory => {
            fs::create_dir_all(&target)?;
            if inside.as_os_str().is_empty() {
                return Ok(());
            }
            // Its owner gets in, whatever the archive says: the files in it are still to come.
            set_mode(&target, entry.header().mode()? | 0o700)
        }
        kind if kind.is_file() || kind.is_gnu_sparse() => {
            let mut options = fs::OpenOptions::new();
            options.write(true).create_new(true);
            let file = options.open(&target)?;
            write_sparsely(entry, &file)?;
            let seconds = std::time::Duration::from_secs(entry.header().mtime()?);
            // A time that this system does not know is no reason to refuse the file.
            if let Some(time) = std::time::UNIX_EPOCH.checked_add(seconds) {
                drop(file.set_modified(time));
            }
            set_mode(&target, entry.header().mode()?)
        }
        tar::EntryType::Symlink => match entry.link_name()? {
            Some(link) if stays_within(inside, &link) => make_link(&link, &target),
            _ => {
                tracing::warn!(path = %inside.display(), "a link that leads out is left out");
                Ok(())
            }
        },
        other => {
            tracing::warn!(path = %inside.display(), ?other, "a special file is left out");
            Ok(())
        }
    }
}

/// Writes what is not zero, so that a file that is mostly holes takes no more room here than there.
fn write_sparsely(entry: &mut impl Read, mut file: &fs::File) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut length = 0;
    loop {
        let count = entry.read(&mut buffer)?;
        if count == 0 {
            return file.set_len(length);
        }
        let bytes = &buffer[..count];
        if bytes.iter().any(|byte| *byte != 0) {
            file.seek(io::SeekFrom::Start(length))?;
            file.write_all(bytes)?;
        }
        length += count as u64;
    }
}

/// Gives a file the permission bits of an archive: never those that change who runs it.
#[cfg(unix)]
fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(
        path,
        std::os::unix::fs::PermissionsExt::from_mode(mode & 0o777),
    )
}

#[cfg(not(unix))]
fn set_mode(_path: &Path, _mode: u32) -> io::Result<()> {
    Ok(())
}

/// Tells whether a part of the path before its last is a link: the archive made one and now writes
/// through it.
fn has_link_above(root: &Path, inside: &Path) -> bool {
    let parents = inside
        .ancestors()
        .skip(1)
        .filter(|parent| !parent.as_os_str().is_empty());
    parents
        .into_iter()
        .any(|parent| root.join(parent).is_symlink())
}

/// Tells whether a link at `path` beneath a root leads to something beneath it, by its text alone: `..`
/// only at its beginning, where it stands for folders and not for what links lead to.
fn stays_within(path: &Path, link: &Path) -> bool {
    let mut depth = path.components().count().saturating_sub(1);
    let mut down = false;
    for component in link.components() {
        match component {
            Component::Normal(_) => down = true,
            Component::CurDir => {}
            Component::ParentDir if down || depth == 0 => return false,
            Component::ParentDir => depth -= 1,
            Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    true
}

#[cfg(unix)]
fn make_link(link: &Path, target: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(link, target)
}

#[cfg(not(unix))]
fn make_link(_link: &Path, target: &Path) -> io::Result<()> {
    tracing::warn!(path = %target.display(), "links are left out on this system");
    Ok(())
}

/// Moves what came to where it belongs: a folder's contents into the target, a file to the target.
fn install(staging: &Path, target: &Path, name: Option<&Path>, folder: bool) -> io::Result<()> {
    if folder {
        return merge(staging, target);
    }
    let name = name.ok_or(io::ErrorKind::InvalidInput)?;
    let target = if target.is_dir() {
        target.join(name)
    } else {
        target.to_owned()
    };
    fs::rename(staging.join(name), target)
}

fn merge(from: &Path, to: &Path) -> io::Result<()> {
    match fs::symlink_metadata(to) {
        Ok(meta) if meta.is_dir() => {}
        // The target itself may be a link to a folder: it is the caller's own choice.
        Ok(meta) if meta.is_symlink() && to.is_dir() => {}
        Ok(_) => return Err(io::ErrorKind::NotADirectory.into()),
        Err(_) => fs::create_dir(to)?,
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let below = fs::symlink_metadata(&target).is_ok_and(|meta| meta.is_dir());
        if entry.file_type()?.is_dir() && below {
            merge(&entry.path(), &target)?;
        } else {
            fs::rename(entry.path(), target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_could_lead_elsewhere_is_none() {
        assert_eq!(beneath(Path::new("./a/./b")), Some(PathBuf::from("a/b")));
        assert_eq!(beneath(Path::new("../a")), None);
        assert_eq!(beneath(Path::new("a/../../b")), None);
        assert_eq!(beneath(Path::new("/etc/passwd")), None);
    }

    #[test]
    fn a_link_is_judged_from_where_it_lies() {
        assert!(stays_within(Path::new("a/b"), Path::new("../c")));
        assert!(!stays_within(Path::new("a/b"), Path::new("../../c")));
        assert!(!stays_within(Path::new("b"), Path::new("..")));
        assert!(!stays_within(Path::new("b"), Path::new("/etc")));
    }

    #[test]
    fn a_link_does_not_go_up_from_where_another_link_leads() {
        // With `d -> .` beside it, `d/..` would be the folder above the root.
        assert!(!stays_within(Path::new("a"), Path::new("d/..")));
        assert!(stays_within(Path::new("a/b"), Path::new("./../c/d")));
    }

    #[test]
    fn an_archive_cannot_write_through_its_own_link() {
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("elsewhere", root.path().join("a")).unwrap();
        assert!(has_link_above(root.path(), Path::new("a/b")));
        assert!(!has_link_above(root.path(), Path::new("a")));
    }

    struct Archive(tar::Builder<Vec<u8>>);

    impl Archive {
        fn new() -> Self {
            Self(tar::Builder::new(Vec::new()))
        }

        /// Adds an entry with whatever name: the library's own functions refuse bad ones.
        fn add(mut self, kind: tar::EntryType, name: &str, link: &str, bytes: &[u8]) -> Self {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(0o7644);
            header.set_size(bytes.len() as u64);
            let old = header.as_old_mut();
            old.name[..name.len()].copy_from_slice(name.as_bytes());
            old.linkname[..link.len()].copy_from_slice(link.as_bytes());
            header.set_cksum();
            self.0.append(&header, bytes).unwrap();
            self
        }

        fn file(self, name: &str, bytes: &[u8]) -> Self {
            self.add(tar::EntryType::Regular, name, "", bytes)
        }

        fn link(self, name: &str, to: &str) -> Self {
            self.add(tar::EntryType::Symlink, name, to, b"")
        }

        fn bytes(self) -> Vec<u8> {
            self.0.into_inner().unwrap()
        }
    }

    /// Unpacks an archive as it would come from a guest.
    async fn receive_bytes(bytes: Vec<u8>) -> (tempfile::TempDir, Result<bool, Error>) {
        let root = tempfile::tempdir().unwrap();
        let staging = root.path().join("staging");
        fs::create_dir(&staging).unwrap();
        let (ours, mut theirs) = tokio::io::duplex(4096);
        let sending = async move {
            drop(tokio::io::AsyncWriteExt::write_all(&mut theirs, &bytes).await);
        };
        let receiving =
            tokio::task::spawn_blocking(move || receive(Box::new(ours), &staging, "copy x out"));
        let ((), received) = tokio::join!(sending, receiving);
        (root, received.unwrap())
    }

    fn names(root: &tempfile::TempDir) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(root.path().join("staging"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn names_that_lead_out_are_refused_and_make_nothing() {
        for name in ["../out", "/tmp/out", "a/../../out", ".."] {
            let (root, received) = receive_bytes(Archive::new().file(name, b"x").bytes()).await;
            assert_eq!(received.unwrap_err().kind(), ErrorKind::Protocol, "{name}");
            assert!(!root.path().join("out").exists(), "{name}");
        }
    }

    #[tokio::test]
    async fn nothing_is_written_through_a_link_of_the_archive() {
        for to in ["..", "/tmp", "."] {
            let archive = Archive::new().link("a", to).file("a/out", b"x");
            let (root, received) = receive_bytes(archive.bytes()).await;
            assert!(!root.path().join("out").exists(), "{to}");
            // A link that leads out is left out, and its name becomes a plain folder.
            assert_eq!(received.is_err(), to == ".", "{to}");
        }
        let archive = Archive::new().link("a", "b").file("a", b"x");
        let (root, received) = receive_bytes(archive.bytes()).await;
        assert_eq!(received.unwrap_err().kind(), ErrorKind::Conflict);
        assert!(!root.path().join("staging/b").exists());
    }

    #[tokio::test]
    async fn hard_links_devices_and_fifos_are_left_out() {
        use tar::EntryType as Type;
        let archive = Archive::new()
            .add(Type::Link, "hard", "/etc/passwd", b"")
            .add(Type::Char, "char", "", b"")
            .add(Type::Block, "block", "", b"")
            .add(Type::Fifo, "fifo", "", b"")
            .link("climbing", "../x")
            .file("kept", b"x");
        let (root, received) = receive_bytes(archive.bytes()).await;
        received.unwrap();
        assert_eq!(names(&root), ["kept"]);
    }

    #[tokio::test]
    async fn permission_bits_come_and_those_that_change_the_user_do_not() {
        use std::os::unix::fs::PermissionsExt;
        let (root, received) = receive_bytes(Archive::new().file("a", b"x").bytes()).await;
        received.unwrap();
        let meta = fs::metadata(root.path().join("staging/a")).unwrap();
        assert_eq!(meta.permissions().mode() & 0o7777, 0o644);
    }

    #[tokio::test]
    async fn an_archive_that_is_cut_off_is_not_taken_for_whole() {
        let whole = Archive::new().file("a", b"x").file("b", b"y").bytes();
        for length in (0..whole.len() - 1024).step_by(256) {
            let (_root, received) = receive_bytes(whole[..length].to_vec()).await;
            received.expect_err("it is cut off");
        }
        receive_bytes(whole).await.1.unwrap();
    }

    #[tokio::test]
    async fn a_name_without_end_and_a_path_without_bottom_are_refused() {
        let name = vec![b'n'; 3 << 20];
        let archive = Archive::new().add(tar::EntryType::GNULongName, "x", "", &name);
        let (_root, received) = receive_bytes(archive.file("a", b"x").bytes()).await;
        assert_eq!(received.unwrap_err().kind(), ErrorKind::Protocol);
        let deep = b"d/".repeat(1000);
        let archive = Archive::new().add(tar::EntryType::GNULongName, "x", "", &deep);
        let (root, received) = receive_bytes(archive.file("a", b"x").bytes()).await;
        assert_eq!(received.unwrap_err().kind(), ErrorKind::Protocol);
        assert!(names(&root).is_empty());
    }

    #[tokio::test]
    async fn a_time_beyond_all_times_is_no_panic() {
        let mut header = tar::Header::new_gnu();
        header.set_path("a").unwrap();
        header.set_size(0);
        header.set_mode(0o600);
        header.set_mtime(u64::MAX);
        header.set_cksum();
        let mut archive = Archive::new();
        archive.0.append(&header, io::empty()).unwrap();
        receive_bytes(archive.bytes()).await.1.unwrap();
    }

    #[tokio::test]
    async fn a_sparse_file_comes_whole_and_takes_no_room() {
        use std::os::unix::fs::{FileExt, MetadataExt};
        let folder = tempfile::tempdir().unwrap();
        let file = fs::File::create(folder.path().join("sparse")).unwrap();
        file.set_len(1 << 30).unwrap();
        file.write_at(b"end", (1 << 30) - 3).unwrap();
        let mut archive = Archive::new();
        let source = folder.path().join("sparse");
        archive.0.append_path_with_name(source, "sparse").unwrap();
        let bytes = archive.bytes();
        assert!(
            bytes.len() < 1 << 20,
            "the packing side packs holes as holes"
        );
        let (root, received) = receive_bytes(bytes).await;
        received.unwrap();
        let meta = fs::metadata(root.path().join("staging/sparse")).unwrap();
        assert_eq!(meta.len(), 1 << 30);
        assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
    }

    #[test]
    fn what_is_claimed_to_be_larger_than_allowed_is_refused_before_it_comes() {
        let mut budget = Budget {
            entries: 2,
            bytes: 10,
        };
        budget.spend(10).unwrap();
        budget.spend(1).unwrap_err();
        budget.spend(0).unwrap_err();
    }
}
