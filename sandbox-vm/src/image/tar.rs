//! Reads a tar stream from a stranger, entry by entry.
//!
//! POSIX ustar and pax (`man 5 pax`, IEEE 1003.1) with GNU's long names: what Docker, Podman, GNU tar and
//! mmdebstrap write. The library gives us the header's fields; the sequence of entries we read ourselves,
//! because there a pax record or a long name may be as long as its header claims, a value may not hold a
//! newline (file capabilities do), and a size in a pax record is not followed in all of its modes.
//!
//! Ignored: owners' names (numbers count), access and change times, global pax headers (comments of
//! `git archive`), volume labels. Refused: sparse files and types that we do not know; to leave a file out
//! would be worse.

use std::io::{self, Read};

use super::builder::Builder;
use super::tree::{Entry, MAX_ATTRIBUTES, MAX_PATH, Metadata};
use crate::Error;
use sandbox_base::ErrorKind;

const BLOCK: usize = 512;
/// Longest extended header: a path, a link, all attributes, and some more.
const MAX_EXTENSION: u64 = (2 * MAX_PATH + 2 * MAX_ATTRIBUTES + (16 << 10)) as u64;

/// Why a stream is not a tar archive that we take.
#[derive(Debug, thiserror::Error)]
pub(super) enum TarError {
    #[error("it is not a tar archive, or damaged")]
    Damaged,
    #[error("it is cut off")]
    CutOff,
    #[error("it has an extended header of more than {MAX_EXTENSION} bytes")]
    LongExtension,
    #[error("it has a sparse file; make the archive without sparse files")]
    Sparse,
    #[error("it has an entry of the unknown type {0:?}")]
    UnknownType(char),
    #[error(transparent)]
    Read(#[from] io::Error),
}

/// What an entry of an archive is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    /// Its contents are the reader's [`Reader::contents`] until the next entry.
    File {
        size: u64,
    },
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    CharacterDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

/// One entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) path: Vec<u8>,
    pub(super) metadata: Metadata,
    pub(super) kind: Kind,
}

/// What headers in front of an entry say about it.
#[derive(Debug, Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    modified: Option<(i64, u32)>,
    metadata: Metadata,
}

/// An archive that is being read.
#[derive(Debug)]
pub(super) struct Reader<R> {
    source: R,
    /// Bytes of the present entry's contents that were not read.
    left: u64,
    /// Bytes behind the contents, up to the next header.
    padding: u64,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(source: R) -> Self {
        Self {
            source,
            left: 0,
            padding: 0,
        }
    }

    /// Returns the next entry, passing over what was not read of the present one's contents.
    pub(super) fn next(&mut self) -> Result<Option<Member>, TarError> {
        let mut extension = Extension::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = filled(&header.as_old().size, header.entry_size())?;
            match header.entry_type().as_byte() {
                b'L' => extension.path = Some(until_nul(self.extension(size)?)),
                b'K' => extension.link = Some(until_nul(self.extension(size)?)),
                b'x' => parse_pax(&self.extension(size)?, &mut extension)?,
                b'g' | b'V' => self.announce(size),
                _ => return self.member(&header, size, extension).map(Some),
            }
        }
    }

    /// Returns a reader of the present file's contents.
    pub(super) fn contents(&mut self) -> Contents<'_, R> {
        Contents(self)
    }

    fn announce(&mut self, size: u64) {
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn skip(&mut self) -> Result<(), TarError> {
        let behind = self.left.saturating_add(self.padding);
        (self.left, self.padding) = (0, 0);
        let skipped = io::copy(&mut self.source.by_ref().take(behind), &mut io::sink())?;
        if skipped < behind {
            Err(TarError::CutOff)
        } else {
            Ok(())
        }
    }

    /// Reads a header; `None` at the end, which is a block of zeros or the end of the stream.
    fn header(&mut self) -> Result<Option<tar::Header>, TarError> {
        let mut block = Vec::with_capacity(BLOCK);
        self.source
            .by_ref()
            .take(BLOCK as u64)
            .read_to_end(&mut block)?;
        if block.is_empty() {
            return Ok(None);
        }
        if block.len() < BLOCK {
            return Err(TarError::CutOff);
        }
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let header = tar::Header::from_byte_slice(&block).clone();
        let sum = |bytes: &[u8]| bytes.iter().map(|&byte| u32::from(byte)).sum::<u32>();
        let expected = sum(&block[..148]) + 8 * u32::from(b' ') + sum(&block[156..]);
        match header.cksum() {
            Ok(found) if found == expected => Ok(Some(header)),
            _ => Err(TarError::Damaged),
        }
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_EXTENSION {
            return Err(TarError::LongExtension);
        }
        self.announce(size);
        let mut bytes = Vec::new();
        self.contents().read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn member(
        &mut self,
        header: &tar::Header,
        size: u64,
        extension: Extension,
    ) -> Result<Member, TarError> {
        let path = extension
            .path
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = || -> Vec<u8> {
            let written = || {
                header
                    .link_name_bytes()
                    .map(|l| l.into_owned())
                    .unwrap_or_default()
            };
            extension.link.clone().unwrap_or_else(written)
        };
        let kind = match header.entry_type().as_byte() {
            b'0' | b'\0' | b'7' if path.ends_with(b"/") => Kind::Directory,
            b'0' | b'\0' | b'7' => Kind::File {
                size: extension.size.unwrap_or(size),
            },
            b'1' => Kind::HardLink(link()),
            b'2' => Kind::Symlink(link()),
            b'3' => device(header).map(|(major, minor)| Kind::CharacterDevice(major, minor))?,
            b'4' => device(header).map(|(major, minor)| Kind::BlockDevice(major, minor))?,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'S' => return Err(TarError::Sparse),
            other => return Err(TarError::UnknownType(char::from(other))),
        };
        if let Kind::File { size } = kind {
            self.announce(size);
        }
        let metadata = metadata(header, (extension.uid, extension.gid), extension.modified)?;
        let metadata = Metadata {
            attributes: extension.metadata.attributes,
            ..metadata
        };
        Ok(Member {
            path,
            metadata,
            kind,
        })
    }
}

/// The contents of the present file.
#[derive(Debug)]
pub(super) struct Contents<'a, R>(&'a mut Reader<R>);

impl<R: Read> Read for Contents<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.source.by_ref().take(self.0.left).read(buffer)?;
        if read == 0 && self.0.left > 0 && !buffer.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the archive is cut off",
            ));
        }
        self.0.left -= read as u64;
        Ok(read)
    }
}

fn device(header: &tar::Header) -> Result<(u32, u32), TarError> {
    let number = |field: io::Result<Option<u32>>| field.ok().flatten().ok_or(TarError::Damaged);
    Ok((
        number(header.device_major())?,
        number(header.device_minor())?,
    ))
}

fn metadata(
    header: &tar::Header,
    (uid, gid): (Option<u32>, Option<u32>),
    modified: Option<(i64, u32)>,
) -> Result<Metadata, TarError> {
    let fields = header.as_old();
    let owner = |known: Option<u32>, blank: &[u8], field: io::Result<u64>| match known {
        Some(id) => Ok(id),
        None => u32::try_from(filled(blank, field)?).map_err(|_| TarError::Damaged),
    };
    let (seconds, nanoseconds) = match modified {
        Some(time) => time,
        None => (filled(&fields.mtime, header.mtime())?.cast_signed(), 0),
    };
    Ok(Metadata {
        permissions: (filled(&fields.mode, header.mode().map(u64::from))? & 0o7777) as u16,
        uid: owner(uid, &fields.uid, header.uid())?,
        gid: owner(gid, &fields.gid, header.gid())?,
        seconds,
        nanoseconds,
        attributes: None,
    })
}

/// Takes a field that some writers leave blank for zero.
fn filled(bytes: &[u8], field: io::Result<u64>) -> Result<u64, TarError> {
    if bytes.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return Ok(0);
    }
    field.map_err(|_| TarError::Damaged)
}

fn until_nul(mut name: Vec<u8>) -> Vec<u8> {
    name.truncate(
        name.iter()
            .position(|&byte| byte == 0)
            .unwrap_or(name.len()),
    );
    name
}

/// Reads pax records, each `LENGTH KEY=VALUE\n`, the length counting all of it.
fn parse_pax(mut records: &[u8], extension: &mut Extension) -> Result<(), TarError> {
    while !records.is_empty() && records[0] != 0 {
        let space = records
            .iter()
            .position(|&byte| byte == b' ')
            .ok_or(TarError::Damaged)?;
        let length: usize = number(&records[..space])?;
        let record = records.get(space + 1..length).ok_or(TarError::Damaged)?;
        let record = record.strip_suffix(b"\n").ok_or(TarError::Damaged)?;
        let equals = record
            .iter()
            .position(|&byte| byte == b'=')
            .ok_or(TarError::Damaged)?;
        take_record(&record[..equals], &record[equals + 1..], extension)?;
        records = &records[length..];
    }
    Ok(())
}

fn take_record(key: &[u8], value: &[u8], extension: &mut Extension) -> Result<(), TarError> {
    match key {
        b"path" => extension.path = Some(value.to_vec()),
        b"linkpath" => extension.link = Some(value.to_vec()),
        b"size" => extension.size = Some(number(value)?),
        b"uid" => extension.uid = Some(number(value)?),
        b"gid" => extension.gid = Some(number(value)?),
        b"mtime" => extension.modified = Some(time(value)?),
        _ if key.starts_with(b"GNU.sparse.") => return Err(TarError::Sparse),
        _ => {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                extension.metadata.keep_attribute(name, value);
            }
        }
    }
    Ok(())
}

fn number<T: std::str::FromStr>(text: &[u8]) -> Result<T, TarError> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(TarError::Damaged)
}

/// Reads seconds since 1970 with an optional fraction, perhaps negative: `-1.25` is 2 seconds before, and
/// 0.75 after that.
fn time(text: &[u8]) -> Result<(i64, u32), TarError> {
    let text = std::str::from_utf8(text).map_err(|_| TarError::Damaged)?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = number(whole.as_bytes())?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(TarError::Damaged);
    }
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanoseconds: u32 = number(digits.as_bytes())?;
    if text.starts_with('-') && nanoseconds > 0 {
        let earlier = seconds.checked_sub(1).ok_or(TarError::Damaged)?;
        return Ok((earlier, 1_000_000_000 - nanoseconds));
    }
    Ok((seconds, nanoseconds))
}

/// Whether names that begin with `.wh.` hide what lower layers have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whiteouts {
    Apply,
    Ignore,
}

/// Takes all entries of an archive into an image and returns how many there were.
pub(super) fn take(
    source: impl Read,
    name: &str,
    whiteouts: Whiteouts,
    builder: &mut Builder<'_>,
) -> Result<u64, Error> {
    let mut reader = Reader::new(source);
    let mut count = 0;
    while let Some(member) = reader.next().map_err(|error| refused(name, error))? {
        count += 1;
        let hidden = hidden(&member.path).filter(|_| whiteouts == Whiteouts::Apply);
        match hidden {
            Some(Hidden::Everything { folder }) => builder.opaque(folder)?,
            Some(Hidden::Name(path)) => builder.whiteout(&path)?,
            None => take_member(member, &mut reader, builder)?,
        }
    }
    Ok(count)
}

fn take_member<R: Read>(
    member: Member,
    reader: &mut Reader<R>,
    builder: &mut Builder<'_>,
) -> Result<(), Error> {
    let entry = match member.kind {
        Kind::HardLink(target) => return builder.link(&member.path, &target),
        Kind::File { size } => {
            Entry::File(builder.store(&member.path, &mut reader.contents(), size)?)
        }
        Kind::Directory => Entry::Directory,
        Kind::Symlink(target) => Entry::Symlink(target.into()),
        Kind::CharacterDevice(major, minor) => Entry::CharacterDevice { major, minor },
        Kind::BlockDevice(major, minor) => Entry::BlockDevice { major, minor },
        Kind::Fifo => Entry::Fifo,
    };
    builder
        .insert(&member.path, member.metadata, entry)
        .map(drop)
}

/// What a whiteout hides.
#[derive(Debug, PartialEq, Eq)]
enum Hidden<'a> {
    Everything { folder: &'a [u8] },
    Name(Vec<u8>),
}

fn hidden(path: &[u8]) -> Option<Hidden<'_>> {
    let start = path
        .iter()
        .rposition(|&byte| byte == b'/')
        .map_or(0, |slash| slash + 1);
    let (folder, name) = path.split_at(start);
    let name = name.strip_prefix(b".wh.")?;
    Some(match name.strip_prefix(b".wh.") {
        Some(b".opq") => Hidden::Everything { folder },
        // Other names of this form are book-keeping of old storage drivers and hide nothing that exists.
        _ => Hidden::Name([folder, name].concat()),
    })
}

fn refused(name: &str, error: TarError) -> Error {
    let operation = format!("read the archive {name}");
    match error {
        TarError::Read(error) if error.kind() == io::ErrorKind::InvalidData => {
            Error::new(ErrorKind::Invalid, operation).with_source(error)
        }
        TarError::Read(error) => Error::io(operation, error),
        other => Error::new(ErrorKind::Invalid, operation).with_source(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(kind: tar::EntryType, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_uid(1);
        header.set_gid(2);
        header.set_mtime(3);
        header
    }

    fn members(bytes: &[u8]) -> Result<Vec<(Member, Vec<u8>)>, TarError> {
        let mut reader = Reader::new(bytes);
        let mut all = Vec::new();
        while let Some(member) = reader.next()? {
            let mut contents = Vec::new();
            if let Kind::File { .. } = member.kind {
                reader.contents().read_to_end(&mut contents)?;
            }
            all.push((member, contents));
        }
        Ok(all)
    }

    #[test]
    fn long_names_and_attributes_with_newlines_come_through() {
        let long = "d/".repeat(200) + "file";
        let mut archive = tar::Builder::new(Vec::new());
        archive
            .append_data(&mut header(tar::EntryType::Regular, 3), &long, &b"abc"[..])
            .unwrap();
        let records = [
            ("SCHILY.xattr.security.capability", &b"\x01\n\n\0"[..]),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("mtime", b"-1.25"),
            ("uid", b"70000"),
        ];
        archive.append_pax_extensions(records).unwrap();
        archive
            .append_data(&mut header(tar::EntryType::Regular, 0), "f", &b""[..])
            .unwrap();
        let all = members(&archive.into_inner().unwrap()).unwrap();
        assert_eq!(all[0].0.path, long.as_bytes());
        assert_eq!(all[0].1, b"abc");
        let metadata = &all[1].0.metadata;
        assert_eq!((metadata.uid, metadata.gid), (70_000, 2));
        assert_eq!((metadata.seconds, metadata.nanoseconds), (-2, 750_000_000));
        let attributes = metadata.attributes.as_deref().unwrap();
        assert_eq!(
            attributes.len(),
            1,
            "overlayfs's own attributes are not taken"
        );
        assert_eq!(&*attributes[&b"security.capability"[..]], b"\x01\n\n\0");
    }

    #[test]
    fn an_extended_header_is_bounded_before_it_is_read() {
        let mut header = header(tar::EntryType::XHeader, MAX_EXTENSION + 1);
        header.set_cksum();
        let error = members(header.as_bytes()).unwrap_err();
        assert!(matches!(error, TarError::LongExtension), "{error:?}");
    }

    #[test]
    fn a_cut_off_archive_is_told() {
        let mut archive = tar::Builder::new(Vec::new());
        let mut head = header(tar::EntryType::Regular, 2000);
        archive.append_data(&mut head, "f", &[7; 2000][..]).unwrap();
        let whole = archive.into_inner().unwrap();
        for length in [100, 600, 2000, 2500] {
            members(&whole[..length]).unwrap_err();
        }
    }

    #[test]
    fn garbage_is_no_archive() {
        assert!(matches!(members(&[b'x'; 1024]), Err(TarError::Damaged)));
    }

    #[test]
    fn whiteouts_are_recognized() {
        assert_eq!(hidden(b"a/.wh.b"), Some(Hidden::Name(b"a/b".to_vec())));
        assert_eq!(
            hidden(b"a/.wh..wh..opq"),
            Some(Hidden::Everything { folder: b"a/" })
        );
        assert_eq!(hidden(b"a.wh.b"), None);
    }

    proptest! {
        #[test]
        fn damaged_archives_never_panic(at in 0usize..3000, byte: u8, mend: bool) {
            let mut archive = tar::Builder::new(Vec::new());
            archive.append_pax_extensions([("size", &b"3"[..]), ("mtime", b"1.5")]).unwrap();
            archive.append_data(&mut header(tar::EntryType::Regular, 3), "f", &b"abc"[..]).unwrap();
            let mut bytes = archive.into_inner().unwrap();
            let at = at % bytes.len();
            bytes[at] = byte;
            if mend {
                let block = at / BLOCK * BLOCK;
                let mut header = tar::Header::from_byte_slice(&bytes[block..block + BLOCK]).clone();
                header.set_cksum();
                bytes[block..block + BLOCK].copy_from_slice(header.as_bytes());
            }
            drop(members(&bytes));
        }
    }
}
