//! The names in a folder, in one buffer that is used again.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::FileType;

/// Names in the order of their bytes, with what the folder says that they are.
#[derive(Debug, Default)]
pub(super) struct Names {
    bytes: Vec<u8>,
    list: Vec<(u32, u32, FileType)>,
}

impl Names {
    /// Reads the names in `folder`, which is read from its beginning, in the place of what was read before.
    pub(super) fn read(&mut self, folder: &OwnedFd) -> io::Result<()> {
        self.bytes.clear();
        self.list.clear();
        self.fill(folder)?;
        let bytes = &self.bytes;
        let name = |(start, end, _): &(u32, u32, FileType)| &bytes[*start as usize..*end as usize];
        self.list.sort_unstable_by(|a, b| name(a).cmp(name(b)));
        Ok(())
    }

    #[cfg(target_os = "linux")]
    fn fill(&mut self, folder: &OwnedFd) -> io::Result<()> {
        // Room for many names, and for the longest one at least.
        let mut buffer = [std::mem::MaybeUninit::uninit(); 16 * 1024];
        let mut entries = rustix::fs::RawDir::new(folder, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            self.add(entry.file_name().to_bytes(), entry.file_type())?;
        }
        Ok(())
    }

    #[cfg(not(target_os = "linux"))]
    fn fill(&mut self, folder: &OwnedFd) -> io::Result<()> {
        for entry in rustix::fs::Dir::read_from(folder)? {
            let entry = entry?;
            self.add(entry.file_name().to_bytes(), entry.file_type())?;
        }
        Ok(())
    }

    fn add(&mut self, name: &[u8], kind: FileType) -> io::Result<()> {
        if matches!(name, b"." | b"..") {
            return Ok(());
        }
        let start = u32::try_from(self.bytes.len()).map_err(io::Error::other)?;
        self.bytes.extend_from_slice(name);
        let end = u32::try_from(self.bytes.len()).map_err(io::Error::other)?;
        self.list.push((start, end, kind));
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// Returns the length of the longest name.
    pub(super) fn longest(&self) -> usize {
        let lengths = self.list.iter().map(|(start, end, _)| end - start);
        lengths.max().unwrap_or(0) as usize
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], FileType)> {
        let name = |(start, end, kind): &(u32, u32, FileType)| {
            (&self.bytes[*start as usize..*end as usize], *kind)
        };
        self.list.iter().map(name)
    }
}
