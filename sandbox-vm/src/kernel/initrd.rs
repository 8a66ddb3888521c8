//! The initial ramdisk: a cpio archive in memory that holds the agent and the modules it loads.
//!
//! The format is "newc" (`man 5 cpio`): a header of fixed-width hexadecimal numbers, the name, the
//! contents, both padded to four bytes, until an entry named `TRAILER!!!`. It is not compressed: unpacking
//! costs the guest more than reading a few megabytes, above all without hardware virtualization.
//!
//! ```text
//! /init            the agent, mode 0755: the first process
//! /modules/order   file names in load order, one a line
//! /modules/NN-*.ko uncompressed modules
//! /dev/console     character device 5:1, so that the kernel can give /init an open console
//! ```
//!
//! Times and inode numbers are fixed: the same input gives the same bytes.

/// A file to be loaded into the guest's kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Module {
    /// The module's name, dashes written as underscores.
    pub name: String,
    /// The uncompressed contents of its file.
    pub contents: Vec<u8>,
}

impl Module {
    /// Makes a module of a name and the uncompressed contents of its file.
    pub fn new(name: impl Into<String>, contents: Vec<u8>) -> Self {
        Self {
            name: name.into(),
            contents,
        }
    }
}

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const PLAIN: u32 = 0o100_644;
const CONSOLE: u32 = 0o020_600;

/// Returns an initial ramdisk with `agent` as the first process and `modules` in load order.
///
/// # Panics
///
/// Never for contents under 4 GiB each, which is what the format can hold.
pub fn build(agent: &[u8], modules: &[Module]) -> Vec<u8> {
    let total: usize = modules.iter().map(|m| m.contents.len()).sum();
    let mut archive = Archive::with_capacity(agent.len() + total + 64 * 1024);
    for name in ["dev", "proc", "sys", "modules", "root"] {
        archive.add(name, DIRECTORY, &[]);
    }
    archive.device("dev/console", CONSOLE, (5, 1));
    archive.add("init", EXECUTABLE, agent);
    let mut order = String::new();
    for (number, module) in modules.iter().enumerate() {
        let file = format!("{number:02}-{}.ko", module.name);
        archive.add(&format!("modules/{file}"), PLAIN, &module.contents);
        order.push_str(&file);
        order.push('\n');
    }
    archive.add("modules/order", PLAIN, order.as_bytes());
    archive.finish()
}

struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn with_capacity(capacity: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(capacity),
            entries: 0,
        }
    }

    fn add(&mut self, name: &str, mode: u32, contents: &[u8]) {
        self.entry(name, mode, (0, 0), contents);
    }

    fn device(&mut self, name: &str, mode: u32, number: (u32, u32)) {
        self.entry(name, mode, number, &[]);
    }

    fn entry(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), contents: &[u8]) {
        self.entries += 1;
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        let size = u32::try_from(contents.len()).expect("a cpio entry is smaller than 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("names here are short");
        // inode, mode, uid, gid, links, mtime, size, device (2), special device (2), name size, checksum
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            size,
            0,
            0,
            major,
            minor,
            name_size,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode, device number, contents.
    type Entry = (String, u32, (u32, u32), Vec<u8>);

    /// Reads an archive the way that the kernel's `init/initramfs.c` does.
    fn read(mut bytes: &[u8]) -> Vec<Entry> {
        let mut entries = Vec::new();
        loop {
            let (header, rest) = bytes.split_at(110);
            assert_eq!(&header[..6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&header[6 + 8 * n..14 + 8 * n]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (size, name_size) = (field(6) as usize, field(11) as usize);
            let name = std::str::from_utf8(&rest[..name_size - 1])
                .unwrap()
                .to_owned();
            let data = (110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                assert_eq!(bytes.len(), data, "nothing follows the trailer");
                return entries;
            }
            let contents = bytes[data..data + size].to_vec();
            entries.push((name, field(1), (field(9), field(10)), contents));
            bytes = &bytes[(data + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn the_archive_reads_back_in_order() {
        let modules = [
            Module::new("virtio_ring", vec![7; 5]),
            Module::new("virtio", vec![8; 3]),
        ];
        let entries = read(&build(b"agent", &modules));
        let find = |name: &str| entries.iter().find(|e| e.0 == name).unwrap();
        assert_eq!(find("init").1, 0o100_755);
        assert_eq!(find("init").3, b"agent");
        assert_eq!(
            (find("dev/console").1, find("dev/console").2),
            (0o020_600, (5, 1))
        );
        assert_eq!(find("modules/01-virtio.ko").3, [8; 3]);
        assert_eq!(
            find("modules/order").3,
            b"00-virtio_ring.ko\n01-virtio.ko\n"
        );
        let parent = entries.iter().position(|e| e.0 == "modules").unwrap();
        let child = entries
            .iter()
            .position(|e| e.0.starts_with("modules/"))
            .unwrap();
        assert!(parent < child, "a folder comes before what it holds");
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        let modules = [Module::new("a", vec![1])];
        assert_eq!(build(b"x", &modules), build(b"x", &modules));
    }
}
