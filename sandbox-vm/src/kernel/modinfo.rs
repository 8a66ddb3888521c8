//! What a kernel module says about itself: the `.modinfo` section of its ELF file.
//!
//! A distribution's kernel package has no `modules.dep`: it is made by `depmod` when the package is
//! installed, which we never do. The module files name what they need themselves, and reading that takes
//! no program and no root. The section holds `key=value` strings, each ended by a NUL byte: `depends=`
//! (comma-separated module names, of what must be loaded before) and `softdep=` (`pre:` and `post:` lists,
//! of what should be loaded if it exists). Only 64-bit little-endian ELF is read, which is what every
//! architecture that we run guests on uses; see `man 5 elf`.

/// What a module needs, by name, dashes written as underscores.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ModuleInfo {
    /// What must be loaded before it.
    pub(super) depends: Vec<String>,
    /// What should be loaded before it, if there is such a module.
    pub(super) softly: Vec<String>,
}

/// Reads the needs of a module from the bytes of its uncompressed file; `None` when it is not a module.
pub(super) fn parse(file: &[u8]) -> Option<ModuleInfo> {
    let section = modinfo_section(file)?;
    let mut info = ModuleInfo::default();
    for entry in section.split(|&byte| byte == 0) {
        let Ok(entry) = std::str::from_utf8(entry) else {
            continue;
        };
        if let Some(names) = entry.strip_prefix("depends=") {
            info.depends
                .extend(names.split(',').filter(|n| !n.is_empty()).map(normalize));
        } else if let Some(rule) = entry.strip_prefix("softdep=") {
            info.softly.extend(before(rule).map(normalize));
        }
    }
    Some(info)
}

/// Writes a module's name the way that the kernel compares them: `virtio-rng` is `virtio_rng`.
pub(super) fn normalize(name: &str) -> String {
    name.replace('-', "_")
}

fn before(rule: &str) -> impl Iterator<Item = &str> {
    let mut wanted = false;
    rule.split_whitespace().filter(move |word| {
        match *word {
            "pre:" => wanted = true,
            "post:" => wanted = false,
            _ => return wanted,
        }
        false
    })
}

fn modinfo_section(file: &[u8]) -> Option<&[u8]> {
    const ELF64_LITTLE_ENDIAN: &[u8] = b"\x7fELF\x02\x01";
    if !file.starts_with(ELF64_LITTLE_ENDIAN) {
        return None;
    }
    let table = usize::try_from(u64_at(file, 0x28)?).ok()?;
    let entry_size = usize::from(u16_at(file, 0x3a)?);
    let count = usize::from(u16_at(file, 0x3c)?);
    let names = usize::from(u16_at(file, 0x3e)?);
    let header = |index: usize| file.get(table.checked_add(index.checked_mul(entry_size)?)?..);
    let contents = |header: &[u8]| {
        let start = usize::try_from(u64_at(header, 0x18)?).ok()?;
        let length = usize::try_from(u64_at(header, 0x20)?).ok()?;
        file.get(start..start.checked_add(length)?)
    };
    let names = contents(header(names)?)?;
    (0..count).find_map(|index| {
        let header = header(index)?;
        let name = names.get(usize::try_from(u32_at(header, 0)?).ok()?..)?;
        name.starts_with(b".modinfo\0").then(|| contents(header))?
    })
}

fn bytes_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes_at(bytes, offset).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes_at(bytes, offset).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes_at(bytes, offset).map(u64::from_le_bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A file with nothing but a section table: a null section, the names, `.modinfo`.
    pub(crate) fn elf(modinfo: &[u8]) -> Vec<u8> {
        let names = b"\0.shstrtab\0.modinfo\0";
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(0x40, 0);
        let names_at = file.len() as u64;
        file.extend(names);
        let info_at = file.len() as u64;
        file.extend(modinfo);
        let table = file.len() as u64;
        for (name, at, length) in [
            (0, 0, 0),
            (1, names_at, names.len()),
            (11, info_at, modinfo.len()),
        ] {
            let mut header = vec![0; 0x40];
            header[..4].copy_from_slice(&u32::to_le_bytes(name));
            header[0x18..0x20].copy_from_slice(&u64::to_le_bytes(at));
            header[0x20..0x28].copy_from_slice(&(length as u64).to_le_bytes());
            file.extend(header);
        }
        file[0x28..0x30].copy_from_slice(&table.to_le_bytes());
        file[0x3a..0x40].copy_from_slice(&[0x40, 0, 3, 0, 1, 0]);
        file
    }

    #[test]
    fn needs_are_read_and_written_with_underscores() {
        let info = parse(&elf(
            b"license=GPL\0softdep=pre: crc32c-x y post: z\0depends=virtio,virtio-ring\0",
        ));
        let info = info.unwrap();
        assert_eq!(info.depends, ["virtio", "virtio_ring"]);
        assert_eq!(info.softly, ["crc32c_x", "y"]);
    }

    #[test]
    fn what_is_not_a_module_is_told_apart_from_a_module_without_needs() {
        assert_eq!(parse(b"#!/bin/sh\n"), None);
        assert_eq!(parse(&elf(b"depends=\0")), Some(ModuleInfo::default()));
    }

    proptest! {
        #[test]
        fn damaged_files_never_panic(at in 0usize..0x120, byte: u8, cut in 0usize..0x140) {
            let mut file = elf(b"depends=a,b\0");
            let length = file.len();
            file[at % length] = byte;
            file.truncate(cut);
            drop(parse(&file));
        }
    }
}
