//! The writable layer of a machine: a sparse ext4 image, empty at the start.
//!
//! Making a file system takes `mke2fs` tens of milliseconds, so one empty image per size is made once and
//! kept in the cache (`disks/`); a machine gets a copy, which shares blocks with the original where the
//! file system can (reflink) and else copies only what is not a hole, a few hundred kilobytes.
//!
//! The file system is made for a layer that lives as long as its machine:
//!
//! * no journal: it protects against a crash of the guest's kernel, after which the layer is thrown away or
//!   restored from a snapshot that was taken of a flushed disk. It would double every write of metadata.
//! * inode tables and block groups are initialized lazily, and no blocks are reserved for root;
//! * a fixed UUID and hash seed: all copies are the same bytes until a guest writes, which is what makes
//!   templates and deduplication work. Nothing outside a guest sees the UUID.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use sandbox_base::ErrorKind;

use crate::process::{self, Cancel, Tool};
use crate::{Error, cache};

const MKE2FS: Tool = Tool {
    program: "mke2fs",
    package: "e2fsprogs",
};

/// Smallest disk: below it ext4 has hardly room for itself.
pub const MIN_BYTES: u64 = 16 << 20;
/// Largest disk: what ext4 with 4 KiB blocks and 32-bit block numbers holds.
pub const MAX_BYTES: u64 = 16 << 40;
/// Free space that the host must have beyond the copy itself, so that a machine can start to work.
const HEADROOM: u64 = 64 << 20;
/// Part of the names in the cache: raise it with any change of how the file system is made.
const RECIPE: u32 = 1;

/// Creates an empty ext4 disk of `bytes` (rounded up to a MiB) in the new file `target`.
///
/// The file is sparse: it takes room on the host as the guest writes. Dropping the future leaves at most
/// a part of `target`, which the caller's folder owns.
///
/// # Errors
///
/// `Invalid` for a size out of bounds, `NotFound` when `mke2fs` is missing, `Exhausted` when the host's
/// disk is nearly full, `Conflict` when `target` exists, or what the file system answers.
pub async fn create(cache: &Path, bytes: u64, target: &Path) -> Result<(), Error> {
    let (cache, target) = (cache.to_owned(), target.to_owned());
    process::blocking("create a disk", move |cancel| {
        let template = template(&cache, bytes, cancel)?;
        copy(&template, &target)
    })
    .await
}

/// Returns the path of the empty disk of this size in the cache, making it when it is missing.
fn template(cache: &Path, bytes: u64, cancel: &Cancel) -> Result<PathBuf, Error> {
    if !(MIN_BYTES..=MAX_BYTES).contains(&bytes) {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("create a disk of {bytes} bytes"),
        )
        .with_detail(format!("a disk has {MIN_BYTES} to {MAX_BYTES} bytes")));
    }
    let mebibytes = bytes.div_ceil(1 << 20);
    let name = format!("ext4-{mebibytes}m-{RECIPE}");
    let folder = cache::entry(&cache.join("disks"), &name, |folder| {
        make(&folder.join("disk.img"), mebibytes, cancel)
    })?;
    Ok(folder.join("disk.img"))
}

fn make(path: &Path, mebibytes: u64, cancel: &Cancel) -> Result<(), Error> {
    let mut command = MKE2FS.command();
    // Neither the host's configuration nor its clock has a part in the result.
    command
        .env("MKE2FS_CONFIG", "/dev/null")
        .env("E2FSPROGS_FAKE_TIME", "1");
    command.args([
        "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-L", "layer",
    ]);
    command.args(["-O", FEATURES, "-U", UUID, "-E", EXTENDED]);
    command.arg(path).arg(format!("{mebibytes}M"));
    MKE2FS
        .output(&mut command, 1 << 16, cancel)
        .map_err(|error| {
            Error::new(
                error.kind(),
                format!("make an empty disk of {mebibytes} MiB"),
            )
            .with_source(error)
        })?;
    Ok(())
}

const FEATURES: &str = "none,extent,filetype,dir_index,large_file,huge_file,flex_bg,extra_isize,\
                        dir_nlink,sparse_super,ext_attr,64bit,uninit_bg,^has_journal,^resize_inode";
const EXTENDED: &str = "lazy_itable_init=1,nodiscard,root_owner=0:0,\
                        hash_seed=7c5e1f0a-4f3b-4a43-9d0f-6d61c0a5b001";
const UUID: &str = "7c5e1f0a-4f3b-4a43-9d0f-6d61c0a5b000";

/// Copies a sparse file to the new file `target`, sharing its blocks where the file system can.
pub(crate) fn copy(template: &Path, target: &Path) -> Result<(), Error> {
    let source = File::open(template);
    let failed = |error| Error::io(format!("create the disk {}", target.display()), error);
    copy_open(&source.map_err(failed)?, target)
}

/// As [`copy`], of a file that is open, whatever has become of its name.
pub(crate) fn copy_open(source: &File, target: &Path) -> Result<(), Error> {
    let failed = |error| Error::io(format!("create the disk {}", target.display()), error);
    check_space(target, source)?;
    let copy = new_file(target).map_err(failed)?;
    let result = fill(source, &copy);
    if result.is_err() {
        // The first error is the one to report.
        drop(fs::remove_file(target));
    }
    result.map_err(failed)
}

/// Creates a file for its owner alone: what a guest writes is not for other users.
fn new_file(path: &Path) -> io::Result<File> {
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Fills a new file with a copy of a sparse one.
#[cfg(target_os = "linux")]
pub(crate) fn fill(source: &File, copy: &File) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(copy, source).is_ok() {
        return Ok(());
    }
    let length = source.metadata()?.len();
    copy.set_len(length)?;
    copy_data(source, copy, length)
}

/// Copies what is not a hole (`man 2 lseek`, `SEEK_DATA`).
#[cfg(target_os = "linux")]
fn copy_data(source: &File, copy: &File, length: u64) -> io::Result<()> {
    use rustix::fs::{SeekFrom, seek};
    use rustix::io::Errno;
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; 128 << 10];
    let mut position = 0;
    while position < length {
        position = match seek(source, SeekFrom::Data(position)) {
            Err(Errno::NXIO) => return Ok(()),
            found => found?,
        };
        let end = seek(source, SeekFrom::Hole(position))?;
        while position < end {
            let wanted = (end - position).min(buffer.len() as u64) as usize;
            source.read_exact_at(&mut buffer[..wanted], position)?;
            copy.write_all_at(&buffer[..wanted], position)?;
            position += wanted as u64;
        }
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn fill(mut source: &File, mut copy: &File) -> io::Result<()> {
    use std::io::{Read, Seek, SeekFrom, Write};
    let length = source.metadata()?.len();
    let mut buffer = vec![0; 128 << 10];
    loop {
        match source.read(&mut buffer)? {
            0 => return copy.set_len(length),
            read if buffer[..read].iter().all(|&byte| byte == 0) => {
                copy.seek(SeekFrom::Current(read as i64))?;
            }
            read => copy.write_all(&buffer[..read])?,
        }
    }
}

/// Refuses to fill the host's disk with the copy: a guest that meets a full disk under it sees I/O errors
/// that nobody can explain to it.
#[cfg(unix)]
fn check_space(target: &Path, source: &File) -> Result<(), Error> {
    use std::os::unix::fs::MetadataExt;
    let folder = target.parent().filter(|p| !p.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let failed = |error| Error::io(format!("create the disk {}", target.display()), error);
    let room = rustix::fs::statvfs(folder).map_err(|error| failed(error.into()))?;
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    let needed = source.metadata().map_err(failed)?.blocks() * 512 + HEADROOM;
    if free >= needed {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Exhausted,
        format!("create the disk {}", target.display()),
    )
    .with_detail(format!(
        "{free} bytes are free there, {needed} are needed; free some space"
    )))
}

#[cfg(not(unix))]
fn check_space(_: &Path, _: &File) -> Result<(), Error> {
    let _ = HEADROOM;
    Ok(())
}
