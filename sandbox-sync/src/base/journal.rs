//! Records one after the other, of which a crash takes away the last at most: bytes in, records out.
//!
//! ```text
//! "sandbox-sync base 2\n"   record*
//! record: length (4, little endian)   mark (8)   digest (32)   body (length)
//! ```
//!
//! The digest is the BLAKE3 of the digest before, the length and the body, so a record stands for everything
//! in front of it; the mark, which is of the digest before and the length, tells a length that was written
//! from one that was not. What an interrupted write leaves is a last record that is short or damaged, or
//! zeros in its place: then the records before it stand. Damage anywhere else is no work of a crash, and what
//! comes after it may be what matters: then nothing stands.

use std::io;

const MAGIC: &[u8] = b"sandbox-sync base 2\n";
const MARK: usize = 8;
const DIGEST: usize = 32;
const HEADER: usize = size_of::<u32>() + MARK + DIGEST;

/// The digest of everything so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chain([u8; DIGEST]);

impl Chain {
    fn mark(self, length: u32) -> [u8; MARK] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&length.to_le_bytes());
        let mut mark = [0; MARK];
        hasher.finalize_xof().fill(&mut mark);
        mark
    }

    fn after(self, length: u32, body: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&length.to_le_bytes()).update(body);
        Self(hasher.finalize().into())
    }
}

/// Returns the bytes of a journal with one record, and what the next one is tied to.
pub(super) fn begin(body: &[u8]) -> io::Result<(Vec<u8>, Chain)> {
    let (record, chain) = append(Chain([0; DIGEST]), body)?;
    Ok(([MAGIC, &record].concat(), chain))
}

/// Returns the bytes of one more record.
pub(super) fn append(chain: Chain, body: &[u8]) -> io::Result<(Vec<u8>, Chain)> {
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let after = chain.after(length, body);
    let header = [&length.to_le_bytes()[..], &chain.mark(length), &after.0];
    Ok(([&header.concat(), body].concat(), after))
}

/// What stands in a journal.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Read<'a> {
    /// The bodies of the records, at least one.
    pub(super) records: Vec<&'a [u8]>,
    /// What the next record is tied to; `None` where the last one is torn and none can follow.
    pub(super) chain: Option<Chain>,
}

/// Reads a journal from its bytes.
///
/// # Errors
///
/// What is wrong with it, where not even one record stands or damage lies in the middle.
pub(super) fn read(bytes: &[u8]) -> Result<Read<'_>, &'static str> {
    let mut rest = bytes.strip_prefix(MAGIC).ok_or("of another version")?;
    let mut chain = Chain([0; DIGEST]);
    let mut records = Vec::new();
    while !rest.is_empty() {
        match record(chain, rest) {
            Ok((body, after, behind)) => {
                records.push(body);
                (chain, rest) = (after, behind);
            }
            Err(Broken::Middle) => return Err("damaged in the middle"),
            Err(Broken::Torn) if records.is_empty() => return Err("its only record is torn"),
            Err(Broken::Torn) => {
                let chain = None;
                return Ok(Read { records, chain });
            }
        }
    }
    let chain = Some(chain);
    match records.is_empty() {
        true => Err("too short"),
        false => Ok(Read { records, chain }),
    }
}

enum Broken {
    /// As an interrupted write leaves it.
    Torn,
    Middle,
}

/// Splits one record off.
fn record(chain: Chain, bytes: &[u8]) -> Result<(&[u8], Chain, &[u8]), Broken> {
    let (header, rest) = bytes.split_at_checked(HEADER).ok_or(Broken::Torn)?;
    let (length, sums) = header.split_at(size_of::<u32>());
    let (mark, digest) = sums.split_at(MARK);
    let length = u32::from_le_bytes(length.try_into().expect("it was split at that length"));
    if chain.mark(length) != *mark {
        let torn = bytes.iter().all(|byte| *byte == 0);
        return Err(if torn { Broken::Torn } else { Broken::Middle });
    }
    let (body, behind) = rest.split_at_checked(length as usize).ok_or(Broken::Torn)?;
    let after = chain.after(length, body);
    match after.0 == *digest {
        true => Ok((body, after, behind)),
        false if behind.is_empty() => Err(Broken::Torn),
        false => Err(Broken::Middle),
    }
}
