//! The on-disk format, as bytes. Pure.
//!
//! What we write of EROFS is its oldest and plainest part, which every kernel since 5.4 mounts: 4 KiB
//! blocks, 64-byte inodes, data in one run of blocks, the last piece of it possibly right behind the inode
//! ("inline"). Everything is little-endian. The structures are those of the kernel's
//! `fs/erofs/erofs_fs.h` and `Documentation/filesystems/erofs.rst`.

use std::collections::BTreeMap;

/// Bytes of a block.
pub(super) const BLOCK: u64 = 4096;
/// Bytes of an inode without its extended attributes.
pub(super) const INODE: u64 = 64;
/// Inodes are numbered by their place in units of this many bytes.
pub(super) const SLOT: u64 = 32;

const SUPERBLOCK_AT: usize = 1024;
const MAGIC: u32 = 0xE0F5_E1E2;
const COMPAT_CHECKSUM: u32 = 1;
const COMPAT_MTIME: u32 = 2;

/// What the superblock says.
#[derive(Debug)]
pub(super) struct Superblock {
    pub(super) root: u16,
    pub(super) inodes: u64,
    pub(super) blocks: u32,
    pub(super) metadata_block: u32,
    pub(super) uuid: [u8; 16],
}

impl Superblock {
    /// Returns the whole first block of the image.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; SUPERBLOCK_AT];
        block.extend(MAGIC.to_le_bytes());
        block.extend([0; 4]); // checksum, below
        block.extend((COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        block.extend([BLOCK.trailing_zeros() as u8, 0]); // block size, no extension slots
        block.extend(self.root.to_le_bytes());
        block.extend(self.inodes.to_le_bytes());
        block.extend([0; 12]); // build time: none, so that the same input gives the same bytes
        block.extend(self.blocks.to_le_bytes());
        block.extend(self.metadata_block.to_le_bytes());
        block.extend([0; 4]); // no shared extended attributes
        block.extend(self.uuid);
        // No volume name, no incompatible feature, no compression, no further device.
        block.resize(BLOCK as usize, 0);
        let checksum = crc32c(&block[SUPERBLOCK_AT..]);
        block[SUPERBLOCK_AT + 4..SUPERBLOCK_AT + 8].copy_from_slice(&checksum.to_le_bytes());
        block
    }
}

/// CRC-32C as the kernel's `crc32c(~0, …)` computes it: without the final inversion.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82F6_3B78;
    bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (POLYNOMIAL & 0u32.wrapping_sub(crc & 1))
        })
    })
}

/// Where an inode's data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// All of it in blocks from here on; also for inodes without data.
    Plain { first_block: u32 },
    /// Whole blocks from here on, the rest behind the inode.
    Inline { first_block: u32 },
    /// None: the number of a device.
    Device { major: u32, minor: u32 },
}

/// One inode, without extended attributes and inline data, which follow it.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) layout: Layout,
    /// Length of what [`xattrs`] made for it.
    pub(super) xattr_bytes: usize,
    /// Type and permissions, as `st_mode`.
    pub(super) mode: u16,
    pub(super) size: u64,
    pub(super) number: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) seconds: i64,
    pub(super) nanoseconds: u32,
    pub(super) links: u32,
}

impl Inode {
    pub(super) fn encode(&self) -> [u8; INODE as usize] {
        const EXTENDED: u16 = 1;
        let (layout, union) = match self.layout {
            Layout::Plain { first_block } => (0u16, first_block),
            Layout::Inline { first_block } => (2, first_block),
            Layout::Device { major, minor } => (0, device_number(major, minor)),
        };
        // Zero for none, else one more than the four-byte units behind the 12-byte header.
        let xattr_units = self
            .xattr_bytes
            .checked_sub(12)
            .map_or(0, |rest| rest / 4 + 1);
        let mut inode = [0; INODE as usize];
        let mut put = |at: usize, bytes: &[u8]| inode[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(EXTENDED | layout << 1).to_le_bytes());
        put(2, &(xattr_units as u16).to_le_bytes());
        put(4, &self.mode.to_le_bytes());
        put(8, &self.size.to_le_bytes());
        put(16, &union.to_le_bytes());
        put(20, &self.number.to_le_bytes());
        put(24, &self.uid.to_le_bytes());
        put(28, &self.gid.to_le_bytes());
        put(32, &self.seconds.to_le_bytes());
        put(40, &self.nanoseconds.to_le_bytes());
        put(44, &self.links.to_le_bytes());
        inode
    }
}

/// The kernel's 32-bit encoding of a device number (`new_encode_dev`).
fn device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12
}

/// Encodes extended attributes: a header, then each with its name's prefix as a number. Attributes of a
/// name space that has no number are left out. Empty for none.
pub(super) fn xattrs(attributes: &BTreeMap<Box<[u8]>, Box<[u8]>>) -> Vec<u8> {
    const PREFIXES: [(&[u8], u8); 3] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6)];
    let mut entries = Vec::new();
    for (name, value) in attributes {
        let known = PREFIXES
            .iter()
            .find_map(|&(p, n)| Some((name.strip_prefix(p)?, n)));
        let Some((name, index)) = known else { continue };
        let (Ok(name_length), Ok(length)) = (u8::try_from(name.len()), u16::try_from(value.len()))
        else {
            continue;
        };
        entries.extend([name_length, index]);
        entries.extend(length.to_le_bytes());
        entries.extend(name);
        entries.extend_from_slice(value);
        entries.resize(entries.len().next_multiple_of(4), 0);
    }
    if entries.is_empty() {
        return entries;
    }
    let mut all = vec![0; 12];
    all.append(&mut entries);
    all
}

/// What a directory entry leads to, as the format numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum EntryType {
    File = 1,
    Directory = 2,
    CharacterDevice = 3,
    BlockDevice = 4,
    Fifo = 5,
    Symlink = 7,
}

const DIRENT: usize = 12;

/// Returns how many bytes [`directory`] makes of these names.
pub(super) fn directory_size<'a>(names: impl Iterator<Item = &'a [u8]>) -> u64 {
    let (mut blocks, mut used) = (0, 0);
    for name in names {
        let needs = DIRENT + name.len();
        if used + needs > BLOCK as usize {
            blocks += 1;
            used = 0;
        }
        used += needs;
    }
    blocks * BLOCK + used as u64
}

/// Encodes a directory: blocks that each hold a table of entries and then their names. The names must be
/// sorted by their bytes, `.` and `..` among them: the kernel searches by halving.
pub(super) fn directory(entries: &[(&[u8], u64, EntryType)]) -> Vec<u8> {
    let mut bytes: Vec<u8> = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
        let mut used = 0;
        let fits = rest.iter().take_while(|(name, ..)| {
            used += DIRENT + name.len();
            used <= BLOCK as usize
        });
        let (block, after) = rest.split_at(fits.count());
        let mut name_at = DIRENT * block.len();
        for &(name, nid, kind) in block {
            bytes.extend(nid.to_le_bytes());
            bytes.extend((name_at as u16).to_le_bytes());
            bytes.extend([kind as u8, 0]);
            name_at += name.len();
        }
        block
            .iter()
            .for_each(|(name, ..)| bytes.extend_from_slice(name));
        rest = after;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_checksum_is_crc32c() {
        // The check value of RFC 3720's CRC-32C is with the final inversion.
        assert_eq!(!crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn device_numbers_are_the_kernels() {
        assert_eq!(device_number(5, 1), 0x501);
        assert_eq!(device_number(0x123, 0x45678), 0x4561_2378);
    }

    #[test]
    fn attributes_carry_their_prefix_as_a_number() {
        let attributes = BTreeMap::from([
            ((*b"user.a").into(), (*b"xy").into()),
            ((*b"system.other").into(), (*b"left out").into()),
        ]);
        let bytes = xattrs(&attributes);
        assert_eq!(bytes[..12], [0; 12]);
        assert_eq!(bytes[12..], *b"\x01\x01\x02\x00axy\x00");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn a_directory_has_the_size_that_was_announced(names in prop::collection::btree_set("[a-z]{1,100}", 1..300)) {
            let entries: Vec<_> = names.iter().map(|n| (n.as_bytes(), 7, EntryType::File)).collect();
            let bytes = directory(&entries);
            prop_assert_eq!(bytes.len() as u64, directory_size(names.iter().map(|n| n.as_bytes())));
            // Read it back as the kernel does.
            let mut found = Vec::new();
            for block in bytes.chunks(BLOCK as usize) {
                let offset = |n: usize| usize::from(u16::from_le_bytes([block[12 * n + 8], block[12 * n + 9]]));
                let count = offset(0) / DIRENT;
                for n in 0..count {
                    let end = if n + 1 < count { offset(n + 1) } else { block.len() };
                    let name = &block[offset(n)..end];
                    let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
                    found.push(String::from_utf8(name[..end].to_vec()).unwrap());
                }
            }
            prop_assert!(found.iter().eq(names.iter()));
        }
    }
}
