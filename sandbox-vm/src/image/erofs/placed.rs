//! A file that is written at places, mostly one behind the other.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};

use super::StoreError;

/// A file that is written at places, mostly one behind the other.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) file: BufWriter<File>,
    pub(super) position: u64,
}

impl Placed {
    pub(super) fn new(file: File) -> Self {
        Self {
            file: BufWriter::with_capacity(256 << 10, file),
            position: 0,
        }
    }

    fn seek(&mut self, at: u64) -> io::Result<()> {
        if self.position != at {
            self.file.seek(SeekFrom::Start(at))?;
            self.position = at;
        }
        Ok(())
    }

    pub(super) fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.seek(at)?;
        self.file.write_all(bytes)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn zero(&mut self, at: u64, count: u64) -> io::Result<()> {
        if count == 0 {
            return Ok(());
        }
        self.seek(at)?;
        self.position += io::copy(&mut io::repeat(0).take(count), &mut self.file)?;
        Ok(())
    }

    pub(super) fn copy(
        &mut self,
        at: u64,
        source: &mut dyn Read,
        count: u64,
    ) -> Result<(), StoreError> {
        if count == 0 {
            return Ok(());
        }
        self.seek(at).map_err(StoreError::Target)?;
        let mut buffer = vec![0; count.min(128 << 10) as usize];
        let mut left = count;
        while left > 0 {
            let wanted = left.min(buffer.len() as u64) as usize;
            let read = match source.read(&mut buffer[..wanted]) {
                Ok(0) => return Err(StoreError::Short),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(StoreError::Source(error)),
            };
            self.file
                .write_all(&buffer[..read])
                .map_err(StoreError::Target)?;
            self.position += read as u64;
            left -= read as u64;
        }
        Ok(())
    }

    pub(super) fn read(&mut self, at: u64, count: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count as usize];
        self.file.flush()?;
        let file = self.file.get_mut();
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut bytes)?;
        self.position = at + count;
        Ok(bytes)
    }
}
