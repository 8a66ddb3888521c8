//! Takes a secret's value out of an answer that streams by; pure.
//!
//! Each occurrence, byte for byte, becomes as many `*`, so that no length changes. Held back is only what may be the
//! beginning of a value, which is less than a value's length, so that streams stay streams.

use crate::credentials::Secret;

/// What a value's bytes become.
const STAR: u8 = b'*';

/// Scrubs one stream.
#[derive(Debug, Default)]
pub(crate) struct Scrubber {
    secrets: Vec<Secret>,
    held: Vec<u8>,
}

impl Scrubber {
    /// Scrubs these values.
    pub(crate) fn new(secrets: Vec<Secret>) -> Self {
        Self {
            secrets,
            held: Vec::new(),
        }
    }

    /// Tells whether there is nothing to take out.
    pub(crate) fn is_idle(&self) -> bool {
        self.secrets.is_empty()
    }

    /// Tells whether nothing is held back.
    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Takes the next bytes and returns those that may go on.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut all = std::mem::take(&mut self.held);
        all.extend_from_slice(bytes);
        // The beginnings are found before anything is replaced: values may overlap.
        let keep = self
            .secrets
            .iter()
            .map(|secret| partial(&all, secret.expose()))
            .max();
        let keep = keep.unwrap_or(0);
        self.replace(&mut all);
        self.held = all.split_off(all.len() - keep);
        all
    }

    /// Ends the stream; returns what was held back.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    /// Replaces every whole value in place.
    pub(crate) fn replace(&self, bytes: &mut [u8]) -> bool {
        let mut replaced = false;
        for secret in &self.secrets {
            let value = secret.expose();
            let mut from = 0;
            while let Some(at) = find(&bytes[from..], value) {
                bytes[from + at..from + at + value.len()].fill(STAR);
                from += at + value.len();
                replaced = true;
            }
        }
        replaced
    }
}

/// Returns how many bytes at the end are the beginning, not all, of a value.
fn partial(bytes: &[u8], value: &[u8]) -> usize {
    let most = bytes.len().min(value.len() - 1);
    let ends = |length: &usize| bytes.ends_with(&value[..*length]);
    (1..=most).rev().find(ends).unwrap_or(0)
}

fn find(bytes: &[u8], value: &[u8]) -> Option<usize> {
    let first = value[0];
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|byte| *byte == first) {
        let at = from + at;
        if bytes[at..].starts_with(value) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing_cases::cases;
    use proptest::prelude::*;

    fn scrub(secrets: &[&str], pieces: &[&[u8]]) -> Vec<u8> {
        let secrets = secrets.iter().map(|value| Secret::new(*value).unwrap());
        let mut scrubber = Scrubber::new(secrets.collect());
        let mut out: Vec<u8> = pieces
            .iter()
            .flat_map(|piece| scrubber.push(piece))
            .collect();
        out.extend(scrubber.finish());
        out
    }

    #[test]
    fn what_cannot_be_a_beginning_is_not_held_back() {
        let mut scrubber = Scrubber::new(vec![Secret::new("secret-value").unwrap()]);
        assert_eq!(scrubber.push(b"data: hello\n\n"), b"data: hello\n\n");
        assert_eq!(scrubber.push(b"data: sec"), b"data: ");
        assert_eq!(scrubber.push(b"ond"), b"second");
    }

    proptest! {
        #![proptest_config(cases())]

        #[test]
        fn e70_no_value_is_left_however_it_is_cut(
            texts in prop::collection::vec("[ab]{0,9}", 0..8),
            cuts in prop::collection::vec(1usize..7, 1..6),
        ) {
            let (one, other) = ("abab", "bbaa");
            let whole = texts.concat().into_bytes();
            let (mut rest, mut cut, mut pieces) = (&whole[..], cuts.iter().cycle(), Vec::new());
            while !rest.is_empty() {
                let (now, later) = rest.split_at((*cut.next().unwrap()).min(rest.len()));
                pieces.push(now);
                rest = later;
            }
            let out = scrub(&[one, other], &pieces);
            prop_assert_eq!(out.len(), whole.len());
            prop_assert!(find(&out, one.as_bytes()).is_none());
            prop_assert!(find(&out, other.as_bytes()).is_none());
        }
    }
}
