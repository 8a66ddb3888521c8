//! Finds placeholders in bytes that stream by, in the encodings that bring them along; pure.
//!
//! One automaton over all placeholders moves over each byte twice: as it is, and with `%41` and `\u0041` decoded. It
//! knows each placeholder as text and as Base64 at each of the three places in a group of four where it can begin,
//! in both alphabets. Its state is carried from one piece to the next, so it makes no difference how bytes are cut,
//! and nothing is held.
//!
//! What it does not see: what is compressed, encrypted, or encoded twice. A placeholder that gets away so is still
//! worth nothing: only the proxy can turn it into its secret.

use std::{fmt, sync::Arc};

use aho_corasick::{
    Anchored, MatchKind,
    automaton::{Automaton, StateID},
    nfa::contiguous::NFA,
};
use base64::{Engine, engine::general_purpose};

use crate::credentials::placeholder::{MARKER, Placeholder};

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// The placeholder with this number, in some encoding; `plain` if as text.
    Entry { index: usize, plain: bool },
    /// The word that is in every placeholder, as text.
    Marker,
}

/// What is looked for.
pub(crate) struct Needles {
    automaton: NFA,
    /// What each pattern of the automaton means.
    meaning: Vec<Found>,
}

impl Needles {
    /// Looks for these placeholders, numbered in their order.
    pub(crate) fn new<'a>(placeholders: impl Iterator<Item = &'a Placeholder>) -> Self {
        let mut patterns = vec![MARKER.as_bytes().to_vec()];
        let mut meaning = vec![Found::Marker];
        for (index, placeholder) in placeholders.enumerate() {
            // Without its prefix, which is easily left out.
            let text = placeholder.as_str();
            let core = &text[text.find(MARKER).unwrap_or(0)..];
            for (pattern, plain) in forms(core.as_bytes()) {
                patterns.push(pattern);
                meaning.push(Found::Entry { index, plain });
            }
        }
        let automaton = NFA::builder()
            .match_kind(MatchKind::Standard)
            .build(&patterns)
            .expect("a few patterns of less than 100 bytes fit");
        Self { automaton, meaning }
    }
}

impl fmt::Debug for Needles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Needles({})", self.meaning.len())
    }
}

/// The forms that text takes in bytes around it, and whether it is plain there.
fn forms(text: &[u8]) -> Vec<(Vec<u8>, bool)> {
    let mut forms = vec![(text.to_vec(), true)];
    for before in 0..3 {
        let padded = [&[0; 2][..before], text].concat();
        for engine in [
            general_purpose::STANDARD_NO_PAD,
            general_purpose::URL_SAFE_NO_PAD,
        ] {
            let encoded = engine.encode(&padded).into_bytes();
            // The characters at both ends that depend on what stands around are left out.
            let (first, end) = ((8 * before).div_ceil(6), 8 * padded.len() / 6);
            let form = (encoded[first..end].to_vec(), false);
            if !forms.contains(&form) {
                forms.push(form);
            }
        }
    }
    forms
}

/// Looks through one stream of bytes.
#[derive(Debug, Clone)]
pub(crate) struct Scanner {
    needles: Arc<Needles>,
    raw: StateID,
    decoded: StateID,
    escape: Escape,
}

impl Scanner {
    pub(crate) fn new(needles: Arc<Needles>) -> Self {
        let start = needles
            .automaton
            .start_state(Anchored::No)
            .expect("the automaton is built for unanchored searches");
        Self {
            needles,
            raw: start,
            decoded: start,
            escape: Escape::default(),
        }
    }

    /// Takes the next bytes and tells what ends in them. What is plain is told once by each of the two readings.
    pub(crate) fn push(&mut self, bytes: &[u8], mut found: impl FnMut(Found)) {
        let needles = Arc::clone(&self.needles);
        let (raw, decoded) = (&mut self.raw, &mut self.decoded);
        for byte in bytes {
            needles.step(raw, *byte, &mut found);
            self.escape
                .push(*byte, |byte| needles.step(decoded, byte, &mut found));
        }
    }
}

impl Needles {
    fn step(&self, state: &mut StateID, byte: u8, found: &mut impl FnMut(Found)) {
        *state = self.automaton.next_state(Anchored::No, *state, byte);
        if self.automaton.is_match(*state) {
            for at in 0..self.automaton.match_len(*state) {
                found(self.meaning[self.automaton.match_pattern(*state, at).as_usize()]);
            }
        }
    }
}

/// Decodes `%41` and `\u0041`, and leaves everything else as it is.
#[derive(Debug, Clone, Default)]
struct Escape {
    /// The beginning of what may become an escape.
    pending: [u8; 6],
    length: usize,
}

impl Escape {
    fn push(&mut self, byte: u8, mut emit: impl FnMut(u8)) {
        let fits = match (self.length, self.pending[0]) {
            (0, _) => matches!(byte, b'%' | b'\\'),
            (1, b'\\') => matches!(byte, b'u' | b'\\'),
            _ => byte.is_ascii_hexdigit(),
        };
        if !fits {
            self.pending[..self.length]
                .iter()
                .for_each(|byte| emit(*byte));
            let began = self.length > 0;
            self.length = 0;
            // It may begin another one.
            if began {
                self.push(byte, emit);
            } else {
                emit(byte);
            }
            return;
        }
        self.pending[self.length] = byte;
        self.length += 1;
        match &self.pending[..self.length] {
            [b'%', high, low] => emit(hex(&[*high, *low])),
            [b'\\', b'\\'] => emit(b'\\'),
            // Beyond ASCII there is nothing to find: any other byte does.
            [b'\\', b'u', b'0', b'0', high, low] => emit(hex(&[*high, *low])),
            [b'\\', b'u', _, _, _, _] => emit(0xff),
            _ => return,
        }
        self.length = 0;
    }
}

fn hex(digits: &[u8]) -> u8 {
    digits
        .iter()
        .filter_map(|digit| char::from(*digit).to_digit(16))
        .fold(0, |value, digit| value << 4 | digit as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing_cases::cases;
    use proptest::prelude::*;

    fn placeholders() -> Vec<Placeholder> {
        ["", "sk-ant-"]
            .map(|prefix| Placeholder::new(prefix).unwrap())
            .into()
    }

    fn scanner(placeholders: &[Placeholder]) -> Scanner {
        Scanner::new(Arc::new(Needles::new(placeholders.iter())))
    }

    fn entries(scanner: &mut Scanner, bytes: &[u8]) -> Vec<usize> {
        let mut entries = Vec::new();
        scanner.push(bytes, |found| {
            if let Found::Entry { index, .. } = found {
                entries.push(index);
            }
        });
        entries.dedup();
        entries
    }

    /// A text in one of the encodings of E66.
    fn encode(text: &str, form: usize) -> Vec<u8> {
        match form {
            0 => text
                .bytes()
                .flat_map(|byte| format!("%{byte:02X}").into_bytes())
                .collect(),
            1 => text
                .bytes()
                .flat_map(|byte| format!("\\u{byte:04x}").into_bytes())
                .collect(),
            2 => general_purpose::STANDARD.encode(text).into_bytes(),
            3 => general_purpose::URL_SAFE
                .encode(format!("u:{text}"))
                .into_bytes(),
            4 => general_purpose::STANDARD
                .encode(format!("x{text}\n"))
                .into_bytes(),
            // Only some characters, as lazy encoders and JSON with `\u` for letters do.
            5 => text
                .replace('s', "%73")
                .replace('b', "\\u0062")
                .into_bytes(),
            _ => text.as_bytes().to_vec(),
        }
    }

    proptest! {
        #![proptest_config(cases())]

        #[test]
        fn e66_every_encoding_is_found_however_it_is_cut(
            form in 0usize..7,
            which in 0usize..2,
            before in prop::collection::vec(any::<u8>(), 0..40),
            after in prop::collection::vec(any::<u8>(), 0..40),
            cuts in prop::collection::vec(1usize..20, 1..10),
        ) {
            // What stands before must not itself take a part away; a space ends every escape.
            let placeholders = placeholders();
            let text = encode(placeholders[which].as_str(), form);
            let bytes = [&before[..], b" ", &text, &after].concat();
            let mut scanner = scanner(&placeholders);
            let (mut rest, mut cut, mut found) = (&bytes[..], cuts.iter().cycle(), Vec::new());
            while !rest.is_empty() {
                let (now, later) = rest.split_at((*cut.next().unwrap()).min(rest.len()));
                found.extend(entries(&mut scanner, now));
                rest = later;
            }
            prop_assert!(found.contains(&which));
            prop_assert!(!found.contains(&(1 - which)));
        }

        #[test]
        fn other_bytes_are_never_taken_for_one(bytes: Vec<u8>) {
            prop_assert!(entries(&mut scanner(&placeholders()), &bytes).is_empty());
        }

        #[test]
        fn a_plain_one_is_found_whatever_stands_around(before: Vec<u8>, after: Vec<u8>) {
            let placeholders = placeholders();
            let bytes = [&before[..], placeholders[1].as_str().as_bytes(), &after].concat();
            prop_assert_eq!(entries(&mut scanner(&placeholders), &bytes), vec![1]);
        }
    }

    #[test]
    fn the_marker_alone_is_told_apart() {
        let mut found = Vec::new();
        let mut scanner = scanner(&placeholders());
        scanner.push(b"x sbxplaceholderaaaa", |what| found.push(what));
        assert_eq!(
            found,
            [Found::Marker, Found::Marker],
            "once as it is, once decoded"
        );
    }

    #[test]
    fn an_escaped_backslash_begins_no_escape() {
        let mut out = Vec::new();
        let mut escape = Escape::default();
        for byte in *br"a\\u0041\u0042%%43%4%zz\n" {
            escape.push(byte, |byte| out.push(byte));
        }
        assert_eq!(out, br"a\u0041B%C%4%zz\n");
    }
}
