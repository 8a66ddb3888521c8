//! The query of a request's target, as pairs that keep their spelling; pure.

use http::{Uri, uri::PathAndQuery};

use crate::credentials::Secret;

/// A query. What is not touched is written back byte for byte.
#[derive(Debug, Default)]
pub(super) struct Query {
    pairs: Vec<Pair>,
    changed: bool,
}

struct Pair {
    text: String,
    /// It holds a secret: out of sight from then on.
    ours: bool,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.ours { ".." } else { &self.text })
    }
}

impl Pair {
    fn name(&self) -> Vec<u8> {
        decode(self.text.split('=').next().unwrap_or_default())
    }

    fn value(&self) -> Vec<u8> {
        decode(self.text.split_once('=').map_or("", |(_, value)| value))
    }

    fn is_named(&self, name: &str) -> bool {
        !self.ours && self.name().eq_ignore_ascii_case(name.as_bytes())
    }
}

impl Query {
    pub(super) fn read(query: Option<&str>) -> Self {
        let pairs = query.into_iter().flat_map(|query| query.split('&'));
        let pairs = pairs.map(|text| Pair {
            text: text.to_owned(),
            ours: false,
        });
        Self {
            pairs: pairs.collect(),
            changed: false,
        }
    }

    /// Hands out every pair as it is written, secrets aside.
    pub(super) fn each_text(&self, mut take: impl FnMut(&[u8])) {
        for pair in self.pairs.iter().filter(|pair| !pair.ours) {
            take(pair.text.as_bytes());
        }
    }

    /// Tells whether a parameter has a value that is not ours.
    pub(super) fn holds(&self, name: &str) -> bool {
        self.pairs
            .iter()
            .any(|pair| pair.is_named(name) && !pair.value().is_empty())
    }

    /// Puts a secret into the first parameter of the name that holds the placeholder; returns whether one does.
    pub(super) fn swap(&mut self, name: &str, placeholder: &str, secret: &Secret) -> bool {
        let placeholder = placeholder.as_bytes();
        let mut pairs = self.pairs.iter_mut();
        let found = pairs.find(|pair| pair.is_named(name) && pair.value() == placeholder);
        let Some(pair) = found else {
            return false;
        };
        let name = pair.text.split('=').next().unwrap_or_default();
        pair.text = format!("{name}={}", encode(secret.expose()));
        pair.ours = true;
        self.changed = true;
        true
    }

    /// Removes every other parameter of the name, in any case.
    pub(super) fn strip(&mut self, name: &str) {
        let before = self.pairs.len();
        self.pairs.retain(|pair| !pair.is_named(name));
        self.changed |= self.pairs.len() != before;
    }

    /// Writes a changed query back.
    pub(super) fn write(self, uri: &mut Uri) {
        if !self.changed {
            return;
        }
        let texts: Vec<_> = self.pairs.iter().map(|pair| pair.text.as_str()).collect();
        let path = match texts.as_slice() {
            [] => uri.path().to_owned(),
            texts => format!("{}?{}", uri.path(), texts.join("&")),
        };
        let mut parts = uri.clone().into_parts();
        let path = PathAndQuery::try_from(path).expect("escaped and accepted text stays a path");
        parts.path_and_query = Some(path);
        *uri = Uri::from_parts(parts).expect("only the query is another one");
    }
}

/// RFC 3986, 2.1, and `+` for a space, as forms write it.
pub(super) fn decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let digit = |at: usize| {
            bytes
                .get(at)
                .and_then(|byte| char::from(*byte).to_digit(16))
        };
        match (bytes[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high << 4 | low) as u8);
                at += 2;
            }
            (b'+', ..) => out.push(b' '),
            (byte, ..) => out.push(byte),
        }
        at += 1;
    }
    out
}

/// Escapes all but the unreserved characters of RFC 3986, 2.3.
pub(super) fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 3);
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            text.push(char::from(*byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing_cases::cases;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(cases())]

        #[test]
        fn what_is_encoded_decodes(bytes: Vec<u8>) {
            prop_assert_eq!(decode(&encode(&bytes)), bytes);
        }

        #[test]
        fn an_untouched_query_stays_as_it_is(query in "[a-z=&%+;.]{0,20}") {
            let mut uri: Uri = format!("/p?{query}").parse().unwrap();
            let before = uri.clone();
            Query::read(uri.query()).write(&mut uri);
            prop_assert_eq!(uri, before);
        }
    }
}
