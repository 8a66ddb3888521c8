//! What the other side has already of a large file is named instead of sent.
//!
//! The side that receives a new version cuts its old one into blocks where the contents say so (FastCDC),
//! about 16 KiB each, and tells a short digest of every block. The side that sends cuts the new version in
//! the same way: what is inserted or removed moves the blocks after it and does not change them. Blocks that
//! the other side has go as their numbers, the rest as bytes.
//!
//! Nothing rests on the short digests: what was put together is hashed as a whole like every file, and
//! refused where it is not what the scan found. What a hostile peer can say is bounded (`S36`): so many
//! digests, blocks that exist, no more bytes than the file was announced with. Cutting takes the same time
//! for any contents, and equal blocks count once, so no contents make it slow (`S37`).

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::protocol::{Blocks, Mark};
use crate::scan::BUFFER;
use fastcdc::v2020::StreamCDC;

/// Shorter files are sent as they are.
pub(crate) const LEAST: u64 = 256 * 1024;

/// The shortest block but for the last one of a file.
pub(crate) const SHORTEST: usize = 4 * 1024;
const AVERAGE: usize = 16 * 1024;
/// The longest block, which one piece can hold.
const LONGEST: usize = 64 * 1024;

/// The most blocks that one side tells in one batch: 16 GiB of files, 16 MiB of digests.
pub(crate) const MOST: usize = 1 << 20;

/// An old version that is at hand, cut into blocks.
#[derive(Debug)]
pub(crate) struct Old {
    file: File,
    /// Where each block ends.
    ends: Vec<u64>,
}

impl Old {
    /// Cuts `file` into at most `most` blocks and returns their marks; `None` where it is longer.
    pub(crate) fn read(file: File, most: usize) -> io::Result<Option<(Self, Vec<Mark>)>> {
        let (mut ends, mut marks) = (Vec::new(), Vec::new());
        for block in cut(&file) {
            let block = block?;
            if ends.len() >= most {
                return Ok(None);
            }
            ends.push(ends.last().copied().unwrap_or(0) + block.len() as u64);
            marks.push(mark(&block));
        }
        Ok(Some((Self { file, ends }, marks)))
    }

    /// Returns where `blocks` lie, if there are such blocks and they are as long as they are said to be.
    pub(crate) fn span(&self, blocks: Blocks) -> Option<Range<u64>> {
        let first = blocks.first as usize;
        let last = first.checked_add(blocks.count.checked_sub(1)? as usize)?;
        let start = match first.checked_sub(1) {
            None => 0,
            Some(before) => *self.ends.get(before)?,
        };
        let end = *self.ends.get(last)?;
        (end - start == blocks.length).then_some(start..end)
    }

    /// Hands the contents of `blocks` to `write`, a buffer at a time.
    pub(crate) fn copy(
        &self,
        blocks: Blocks,
        mut write: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let missing = || io::Error::other("blocks that the old version does not have");
        let Range { mut start, end } = self.span(blocks).ok_or_else(missing)?;
        let mut buffer = vec![0; BUFFER];
        while start < end {
            let length = usize::try_from(end - start).map_or(BUFFER, |left| left.min(BUFFER));
            self.file.read_exact_at(&mut buffer[..length], start)?;
            write(&buffer[..length])?;
            start += length as u64;
        }
        Ok(())
    }
}

/// The blocks that the other side has, by their marks.
#[derive(Debug)]
pub(crate) struct Index(HashMap<Mark, u32>);

impl Index {
    /// Numbers `marks` in their order; of equal ones the first counts.
    pub(crate) fn new(marks: Vec<Mark>) -> Self {
        let mut index = HashMap::with_capacity(marks.len());
        for (mark, number) in marks.into_iter().zip(0..) {
            index.entry(mark).or_insert(number);
        }
        Self(index)
    }
}

/// A part of a new version.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Bytes(Vec<u8>),
    Blocks(Blocks),
}

/// Cuts `file` and returns it as parts: blocks of `index` where it has them, and at most `longest` bytes
/// at a time where it has not.
pub(crate) fn parts<'a>(
    file: impl Read + 'a,
    index: &'a Index,
    longest: usize,
) -> impl Iterator<Item = io::Result<Part>> + 'a {
    let mut blocks = cut(file).peekable();
    std::iter::from_fn(move || {
        let block = match blocks.next()? {
            Ok(block) => block,
            Err(error) => return Some(Err(error)),
        };
        let known = |block: &io::Result<Vec<u8>>| match block {
            Ok(block) => index.0.get(&mark(block)).copied(),
            Err(_) => None,
        };
        let Some(first) = index.0.get(&mark(&block)).copied() else {
            let mut bytes = block;
            let unknown = |next: &io::Result<Vec<u8>>| next.is_ok() && known(next).is_none();
            while let Some(Ok(next)) = blocks.peek()
                && bytes.len() + next.len() <= longest
                && let Some(Ok(next)) = blocks.next_if(unknown)
            {
                bytes.extend_from_slice(&next);
            }
            return Some(Ok(Part::Bytes(bytes)));
        };
        let mut run = Blocks {
            first,
            count: 1,
            length: block.len() as u64,
        };
        while let Some(Ok(next)) =
            blocks.next_if(|next| known(next) == run.first.checked_add(run.count))
        {
            run.count += 1;
            run.length += next.len() as u64;
        }
        Some(Ok(Part::Blocks(run)))
    })
}

fn cut(file: impl Read) -> impl Iterator<Item = io::Result<Vec<u8>>> {
    let blocks = StreamCDC::new(file, SHORTEST, AVERAGE, LONGEST);
    blocks.map(|block| match block {
        Ok(block) => Ok(block.data),
        Err(error) => Err(io::Error::from(error)),
    })
}

fn mark(block: &[u8]) -> Mark {
    let digest = blake3::hash(block);
    let (half, _) = digest.as_bytes().split_at(size_of::<Mark>());
    half.try_into().expect("it was split at that length")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn text(length: usize, seed: u64) -> Vec<u8> {
        let mut word = seed * 2 + 1;
        let next = |_| {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            word as u8
        };
        (0..length).map(next).collect()
    }

    fn old(contents: &[u8]) -> (Old, Vec<Mark>) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(contents).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        Old::read(file, MOST).unwrap().unwrap()
    }

    /// Sends `new` to who has `old`; returns what arrives and how many bytes were sent for it.
    fn send(before: &[u8], new: &[u8]) -> (Vec<u8>, usize) {
        let (old, marks) = old(before);
        let index = Index::new(marks);
        let (mut arrived, mut sent) = (Vec::new(), 0);
        for part in parts(new, &index, 128 * 1024) {
            match part.unwrap() {
                Part::Bytes(bytes) => {
                    assert!(bytes.len() <= 128 * 1024);
                    sent += bytes.len();
                    arrived.extend_from_slice(&bytes);
                }
                Part::Blocks(blocks) => {
                    let write = |bytes: &[u8]| io::Write::write_all(&mut arrived, bytes);
                    old.copy(blocks, write).unwrap();
                }
            }
        }
        (arrived, sent)
    }

    #[test]
    fn what_was_inserted_is_sent_and_what_moved_is_not() {
        let before = text(4 << 20, 1);
        let mut new = before.clone();
        drop(new.splice(1_000_000..1_000_000, text(5_000, 2)));
        drop(new.drain(3_000_000..3_000_100));
        let (arrived, sent) = send(&before, &new);
        assert!(arrived == new);
        assert!(sent < 300_000, "{sent}");
    }

    #[test]
    fn s36_blocks_that_do_not_exist_are_refused() {
        let (old, marks) = old(&text(1 << 20, 1));
        let count = u32::try_from(marks.len()).unwrap();
        let length = 1 << 20;
        let whole = Blocks {
            first: 0,
            count,
            length,
        };
        assert_eq!(old.span(whole), Some(0..length));
        for (first, count, length) in [
            (0, 0, 0),
            (0, 0, length),
            (0, count + 1, length),
            (1, count, length),
            (count, 1, 1),
            (0, count, length - 1),
            (0, count, u64::MAX),
            (u32::MAX, u32::MAX, 1),
            (u32::MAX, 0, 0),
        ] {
            let blocks = Blocks {
                first,
                count,
                length,
            };
            assert_eq!(old.span(blocks), None, "{blocks:?}");
            assert!(old.copy(blocks, |_| Ok(())).is_err());
        }
    }

    #[test]
    fn s37_equal_blocks_count_once_and_too_many_are_none() {
        let zeros = vec![0; 8 << 20];
        let (_, marks) = old(&zeros);
        assert!(marks.len() <= zeros.len() / SHORTEST);
        let index = Index::new(marks);
        assert!(index.0.len() <= 2, "all blocks but the last are equal");
        let (arrived, sent) = send(&zeros, &zeros);
        assert!(arrived == zeros && sent == 0);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&zeros).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        assert!(Old::read(file, 10).unwrap().is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn what_arrives_is_what_was_sent(
            before in prop::collection::vec((0u64..4, 0usize..90_000), 0..6),
            new in prop::collection::vec((0u64..4, 0usize..90_000), 0..6),
        ) {
            let join = |texts: Vec<(u64, usize)>| -> Vec<u8> {
                texts.into_iter().flat_map(|(seed, length)| text(length, seed)).collect()
            };
            let (before, new) = (join(before), join(new));
            prop_assert!(send(&before, &new).0 == new);
        }
    }
}
