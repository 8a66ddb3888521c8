//! What is in a pack: records of fixed length, ordered by digest: pure.
//!
//! They stay as the bytes that they are on disk; looking one up is a binary search, so that opening a store
//! costs reading and no parsing.

use std::io;

use super::damage::damaged;
use crate::tree::Digest;

/// The length of a record: digest, offset, stored length, length, codec.
pub(crate) const RECORD: usize = 32 + 8 + 4 + 4 + 1;

/// Where a blob is in its pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Where it begins.
    pub(crate) offset: u64,
    /// How many bytes it takes there.
    pub(crate) stored: u32,
    /// How many bytes it has.
    pub(crate) length: u32,
    pub(crate) codec: Codec,
}

/// How a blob is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    Plain = 0,
    Lz4 = 1,
}

/// The index of one pack.
#[derive(Debug, Default)]
pub(crate) struct Index(Vec<u8>);

impl Index {
    /// Puts `records` in order; each digest is there once.
    pub(crate) fn new(mut records: Vec<(Digest, Place)>) -> Self {
        records.sort_unstable_by_key(|(digest, _)| *digest);
        let mut bytes = Vec::with_capacity(records.len() * RECORD);
        for (digest, place) in records {
            bytes.extend_from_slice(digest.as_bytes());
            bytes.extend_from_slice(&place.offset.to_le_bytes());
            bytes.extend_from_slice(&place.stored.to_le_bytes());
            bytes.extend_from_slice(&place.length.to_le_bytes());
            bytes.push(place.codec as u8);
        }
        Self(bytes)
    }

    /// Reads the index of a pack whose blobs lie in `blobs`.
    pub(crate) fn decode(bytes: Vec<u8>, blobs: std::ops::Range<u64>) -> io::Result<Self> {
        let index = Self(bytes);
        if !index.0.len().is_multiple_of(RECORD) {
            return Err(damaged("an index of no whole number of records"));
        }
        let digests = index.0.chunks_exact(RECORD).map(|record| &record[..32]);
        if !digests.is_sorted_by(|one, next| one < next) {
            return Err(damaged("an index is not in order"));
        }
        let fits = |place: Place| {
            let end = place.offset.checked_add(place.stored.into());
            place.offset >= blobs.start && end.is_some_and(|end| end <= blobs.end)
        };
        match index
            .0
            .chunks_exact(RECORD)
            .all(|record| place(record).is_some_and(fits))
        {
            true => Ok(index),
            false => Err(damaged("an index names what is not in its pack")),
        }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns where the blob of this digest is.
    pub(crate) fn find(&self, digest: &Digest) -> Option<Place> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let record = &self.0[middle * RECORD..][..RECORD];
            match record[..32].cmp(digest.as_bytes()) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return place(record),
            }
        }
        None
    }

    /// Returns how many blobs there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len() / RECORD
    }

    /// Returns the blobs with their places.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Digest, Place)> {
        let record = |record: &[u8]| {
            let digest: [u8; 32] = record.first_chunk().copied()?;
            Some((Digest::from(digest), place(record)?))
        };
        self.0.chunks_exact(RECORD).filter_map(record)
    }
}

fn place(record: &[u8]) -> Option<Place> {
    let (offset, rest) = record.get(32..)?.split_first_chunk()?;
    let (stored, rest) = rest.split_first_chunk()?;
    let (length, codec) = rest.split_first_chunk()?;
    let codec = match codec {
        [0] => Codec::Plain,
        [1] => Codec::Lz4,
        _ => return None,
    };
    Some(Place {
        offset: u64::from_le_bytes(*offset),
        stored: u32::from_le_bytes(*stored),
        length: u32::from_le_bytes(*length),
        codec,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn records(seeds: &std::collections::BTreeSet<u16>) -> Vec<(Digest, Place)> {
        let record = |seed: &u16| {
            let place = Place {
                offset: u64::from(*seed),
                stored: 3,
                length: u32::from(*seed) * 2,
                codec: if seed.is_multiple_of(2) {
                    Codec::Plain
                } else {
                    Codec::Lz4
                },
            };
            (Digest::of(&seed.to_le_bytes()), place)
        };
        seeds.iter().map(record).collect()
    }

    proptest! {
        #[test]
        fn everything_that_was_put_in_is_found_and_nothing_else(seeds: std::collections::BTreeSet<u16>, other: u64) {
            let records = records(&seeds);
            let index = Index::new(records.clone());
            let index = Index::decode(index.0, 0..1 << 20).unwrap();
            prop_assert_eq!(index.len(), records.len());
            for (digest, place) in records {
                prop_assert_eq!(index.find(&digest), Some(place));
            }
            prop_assert_eq!(index.find(&Digest::of(&other.to_le_bytes())), None);
        }

        #[test]
        fn other_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), end: u64) {
            if let Ok(index) = Index::decode(bytes, 16..end) {
                prop_assert!(index.find(&Digest::of(b"x")).is_none_or(|place| place.offset >= 16));
                prop_assert!(index.iter().all(|(_, place)| place.offset >= 16));
            }
        }
    }

    #[test]
    fn what_lies_outside_of_the_pack_is_damage() {
        let records = records(&[9].into());
        for blobs in [10..100, 0..11] {
            let bytes = Index::new(records.clone()).0;
            assert!(super::super::damage::is_damage(
                &Index::decode(bytes, blobs).unwrap_err()
            ));
        }
    }
}
