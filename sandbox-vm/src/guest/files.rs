//! Reading, writing, packing and unpacking files inside, for the host.
//!
//! Paths are the guest's own: what a name leads to inside is the guest's business. Work that blocks runs
//! on the blocking pool, so a slow disk holds up no other stream.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, chown, lchown};
use std::path::{Path, PathBuf};

use sandbox_base::frame::write_message;
use tokio::io::AsyncWriteExt;
use tokio_util::io::SyncIoBridge;

use super::agent::Shared;
use crate::channel::Stream;
use crate::channel::protocol::{Failure, FailureKind, FileReply, FileRequest, MAX_MESSAGE, Reply};
use crate::users::{self, User};

/// Answers one request on its stream.
pub(crate) async fn answer(
    _agent: &Shared,
    request: FileRequest,
    mut stream: Stream,
) -> io::Result<()> {
    if let Some(failure) = relative(&request) {
        return refuse(stream, failure).await;
    }
    match request {
        FileRequest::Read { path } => send(stream, open(&to_path(&path))).await,
        FileRequest::Pack { path } => pack(stream, to_path(&path)).await,
        FileRequest::Write {
            path,
            size,
            mode,
            user,
        } => {
            let path = to_path(&path);
            let begun = begin_write(&path, mode, user.as_deref());
            receive(stream, begun, move |staged, bytes| staged.take(bytes, size)).await
        }
        FileRequest::Unpack { path, user } => {
            let begun = begin_unpack(&to_path(&path), user.as_deref());
            if let Err(failure) = &begun {
                let refusal: Reply<FileReply> = Err(failure.clone());
                return write_message(&mut stream, &refusal, MAX_MESSAGE).await;
            }
            receive(stream, begun, unpack).await
        }
    }
}

/// The agent's working directory is its own business: a relative path means nothing to the host.
fn relative(request: &FileRequest) -> Option<Failure> {
    let (FileRequest::Read { path }
    | FileRequest::Pack { path }
    | FileRequest::Write { path, .. }
    | FileRequest::Unpack { path, .. }) = request;
    let message = || format!("{}: not an absolute path", to_path(path).display());
    (!path.starts_with(b"/")).then(|| Failure::new(FailureKind::Invalid, message()))
}

fn to_path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

/// Opens a regular file and tells its size, where that means something: files of `/proc` have contents
/// and no size.
fn open(path: &Path) -> Reply<(fs::File, Option<u64>)> {
    let about = |error: &io::Error| Failure::io(path.display(), error);
    let file = open_without_waiting(path).map_err(|e| about(&e))?;
    let meta = file.metadata().map_err(|e| about(&e))?;
    if !meta.is_file() {
        let message = format!("{} is not a regular file", path.display());
        return Err(Failure::new(FailureKind::Invalid, message));
    }
    Ok((file, Some(meta.len()).filter(|size| *size > 0)))
}

async fn send(mut stream: Stream, opened: Reply<(fs::File, Option<u64>)>) -> io::Result<()> {
    let (file, size) = match opened {
        Ok(opened) => opened,
        Err(failure) => return refuse(stream, failure).await,
    };
    let reply: Reply<FileReply> = Ok(FileReply { size });
    write_message(&mut stream, &reply, MAX_MESSAGE).await?;
    let mut bridge = SyncIoBridge::new(stream);
    let mut stream = tokio::task::spawn_blocking(move || {
        copy(&mut file.take(size.unwrap_or(u64::MAX)), &mut bridge)?;
        io::Result::Ok(bridge.into_inner())
    })
    .await??;
    stream.shutdown().await
}

async fn pack(mut stream: Stream, path: PathBuf) -> io::Result<()> {
    let meta = match fs::symlink_metadata(&path) {
        Ok(meta) => meta,
        Err(error) => return refuse(stream, Failure::io(path.display(), &error)).await,
    };
    let reply: Reply<FileReply> = Ok(FileReply { size: None });
    write_message(&mut stream, &reply, MAX_MESSAGE).await?;
    let bridge = SyncIoBridge::new(stream);
    let mut stream = tokio::task::spawn_blocking(move || {
        let mut archive = tar::Builder::new(bridge);
        archive.follow_symlinks(false);
        if meta.is_dir() {
            add_tree(&mut archive, &path)?;
        } else {
            let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
            add(&mut archive, &path, Path::new(name))?;
        }
        Ok::<_, io::Error>(archive.into_inner()?.into_inner())
    })
    .await??;
    stream.shutdown().await
}

fn add_tree(archive: &mut tar::Builder<impl Write>, root: &Path) -> io::Result<()> {
    let mut folders = vec![PathBuf::new()];
    archive.append_dir(".", root)?;
    while let Some(folder) = folders.pop() {
        for entry in unless_gone(fs::read_dir(root.join(&folder)))?
            .into_iter()
            .flatten()
        {
            let entry = entry?;
            let name = folder.join(entry.file_name());
            // What is missing is noticed before anything of it is in the archive.
            unless_gone(add(archive, &entry.path(), &name))?;
            if entry.file_type()?.is_dir() {
                folders.push(name);
            }
        }
    }
    Ok(())
}

/// Passes over what was removed between the look at a folder and the look at what it held.
fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// Adds a file, link or folder. Sockets, devices and the like mean nothing elsewhere and are left out.
fn add(archive: &mut tar::Builder<impl Write>, path: &Path, name: &Path) -> io::Result<()> {
    let kind = fs::symlink_metadata(path)?.file_type();
    if kind.is_dir() || kind.is_symlink() {
        return archive.append_path_with_name(path, name);
    }
    if !kind.is_file() {
        return Ok(());
    }
    let file = open_without_waiting(path)?;
    let meta = file.metadata()?;
    let mut header = tar::Header::new_gnu();
    header.set_metadata(&meta);
    // Exactly as much as the header says, whatever the file's writers do meanwhile.
    let contents = file.chain(io::repeat(0)).take(meta.len());
    archive.append_data(&mut header, name, contents)
}

/// A FIFO without a writer would hold the reader up for ever.
fn open_without_waiting(path: &Path) -> io::Result<fs::File> {
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    fs::OpenOptions::new()
        .read(true)
        .custom_flags(nonblocking)
        .open(path)
}

async fn refuse(mut stream: Stream, failure: Failure) -> io::Result<()> {
    let refusal: Reply<FileReply> = Err(failure);
    write_message(&mut stream, &refusal, MAX_MESSAGE).await?;
    stream.shutdown().await
}

/// Takes the bytes that follow a request, then tells how it went.
async fn receive<T: Send + 'static>(
    mut stream: Stream,
    begun: Reply<T>,
    take: impl FnOnce(T, &mut dyn Read) -> Reply<u64> + Send + 'static,
) -> io::Result<()> {
    let begun = match begun {
        Ok(begun) => begun,
        Err(failure) => return refuse(stream, failure).await,
    };
    let reply: Reply<FileReply> = Ok(FileReply { size: None });
    write_message(&mut stream, &reply, MAX_MESSAGE).await?;
    let mut bridge = SyncIoBridge::new(stream);
    let (done, mut stream) = tokio::task::spawn_blocking(move || {
        let done = take(begun, &mut bridge);
        // What is left over would hold up the other side, which wants to send it before it listens.
        if done.is_err() {
            drop(io::copy(&mut bridge, &mut io::sink()));
        }
        (done, bridge.into_inner())
    })
    .await?;
    let reply: Reply<FileReply> = done.map(|size| FileReply { size: Some(size) });
    write_message(&mut stream, &reply, MAX_MESSAGE).await?;
    stream.shutdown().await
}

/// A file that is being written beside its target.
struct Staged {
    file: fs::File,
    temporary: PathBuf,
    target: PathBuf,
}

fn begin_write(path: &Path, mode: u32, user: Option<&str>) -> Reply<Staged> {
    let owner = owner(user)?;
    let about = |error: &io::Error| Failure::io(path.display(), error);
    let parent = path.parent().ok_or_else(|| {
        Failure::new(
            FailureKind::Invalid,
            format!("{} names no file", path.display()),
        )
    })?;
    make_folders(parent, owner.as_ref()).map_err(|e| about(&e))?;
    if path.is_dir() {
        return Err(Failure::new(
            FailureKind::Conflict,
            format!("{} is a folder", path.display()),
        ));
    }
    let mut random = [0u8; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| about(&error.into()))?;
    let temporary = parent.join(format!(".sandbox-{:016x}", u64::from_ne_bytes(random)));
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode & 0o777)
        .open(&temporary)
        .map_err(|e| about(&e))?;
    if let Some(user) = owner {
        rustix::fs::fchown(
            &file,
            Some(rustix::fs::Uid::from_raw(user.uid)),
            Some(rustix::fs::Gid::from_raw(user.gid)),
        )
        .map_err(|error| about(&error.into()))?;
    }
    Ok(Staged {
        file,
        temporary,
        target: path.to_owned(),
    })
}

impl Staged {
    /// A stream that was reset reads as ended: only the size tells whole contents from a part.
    fn take(mut self, bytes: &mut dyn Read, size: u64) -> Reply<u64> {
        let done = io::copy(bytes, &mut self.file).and_then(|came| {
            if came != size {
                let message = format!("{came} of {size} bytes came");
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
            }
            fs::rename(&self.temporary, &self.target).map(|()| size)
        });
        done.map_err(|error| {
            drop(fs::remove_file(&self.temporary));
            Failure::io(self.target.display(), &error)
        })
    }
}

fn begin_unpack(path: &Path, user: Option<&str>) -> Reply<(PathBuf, Option<User>)> {
    let owner = owner(user)?;
    make_folders(path, owner.as_ref()).map_err(|error| Failure::io(path.display(), &error))?;
    Ok((path.to_owned(), owner))
}

fn unpack((folder, owner): (PathBuf, Option<User>), bytes: &mut dyn Read) -> Reply<u64> {
    let about = |error: &io::Error| Failure::io(folder.display(), error);
    let mut archive = tar::Archive::new(bytes);
    archive.set_preserve_permissions(true);
    archive.set_preserve_mtime(true);
    let mut size = 0;
    for entry in archive.entries().map_err(|e| about(&e))? {
        let mut entry = entry.map_err(|e| about(&e))?;
        size += entry.size();
        let inside = entry.unpack_in(&folder).map_err(|e| about(&e))?;
        if let (true, Some(user), Ok(path)) = (inside, &owner, entry.path()) {
            // The archive's own owners are the host's and mean nothing here.
            drop(lchown(folder.join(path), Some(user.uid), Some(user.gid)));
        }
    }
    // The padding behind the last entry.
    io::copy(archive.into_inner(), &mut io::sink()).map_err(|e| about(&e))?;
    Ok(size)
}

fn owner(user: Option<&str>) -> Reply<Option<User>> {
    let Some(user) = user else { return Ok(None) };
    let found = users::find_here(user)?;
    let own = rustix::process::getuid();
    // An unprivileged agent (in tests) owns what it makes and cannot give it away.
    Ok((own.is_root() || own.as_raw() != found.uid).then_some(found))
}

/// Makes a folder and its missing parents, owned by `owner`.
fn make_folders(path: &Path, owner: Option<&User>) -> io::Result<()> {
    let missing: Vec<&Path> = path
        .ancestors()
        .take_while(|folder| fs::symlink_metadata(folder).is_err())
        .collect();
    fs::create_dir_all(path)?;
    if let Some(user) = owner {
        for folder in missing {
            if fs::metadata(folder)?.uid() != user.uid {
                chown(folder, Some(user.uid), Some(user.gid))?;
            }
        }
    }
    Ok(())
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer)? {
            0 => return to.flush(),
            count => to.write_all(&buffer[..count])?,
        }
    }
}
