//! What the guest gets in place of a secret.
//!
//! A placeholder is `<prefix>sbxplaceholder<32 characters of a-z and 2-7>`: 160 random bits, so that nobody guesses
//! one; a fixed word in it, so that people and programs see what it is; letters and digits only, so that no
//! usual encoding changes it. The prefix is for clients that look at a key's first characters.

use std::fmt;

use sandbox_base::ErrorKind;

use crate::Error;

/// The word by which every placeholder is known.
pub const MARKER: &str = "sbxplaceholder";
/// The random characters after the marker: 160 bits, 5 to a character.
const RANDOM: usize = 32;
/// The longest prefix.
const MAX_PREFIX: usize = 32;
/// RFC 4648, section 6, in lower case.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A placeholder. It is worth nothing outside its sandbox, and so may be shown.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Placeholder(String);

impl Placeholder {
    /// Makes one that nobody can guess.
    ///
    /// # Errors
    ///
    /// `Invalid` for a prefix with other characters than letters, digits, `-` and `_`, or more than 32;
    /// `Io` if the system has no random numbers.
    pub(crate) fn new(prefix: &str) -> Result<Self, Error> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if prefix.len() > MAX_PREFIX || !prefix.bytes().all(fits) {
            let reason =
                "its prefix is longer than 32 or has other characters than a-z, 0-9, - and _";
            return Err(Error::invalid("make a placeholder", reason));
        }
        let mut random = [0; RANDOM];
        getrandom::fill(&mut random)
            .map_err(|error| Error::new(ErrorKind::Io, "make a placeholder", error.to_string()))?;
        let characters = random.map(|byte| char::from(ALPHABET[usize::from(byte & 31)]));
        Ok(Self(
            prefix
                .chars()
                .chain(MARKER.chars())
                .chain(characters)
                .collect(),
        ))
    }

    /// Returns it as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Placeholder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Placeholder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_are_never_the_same_and_have_the_one_shape() {
        let (one, other) = (
            Placeholder::new("sk-").unwrap(),
            Placeholder::new("sk-").unwrap(),
        );
        assert_ne!(one, other);
        let random = one.as_str().strip_prefix("sk-sbxplaceholder").unwrap();
        assert_eq!(random.len(), RANDOM);
        assert!(random.bytes().all(|byte| ALPHABET.contains(&byte)));
    }

    #[test]
    fn a_prefix_that_an_encoding_would_change_is_refused() {
        for prefix in ["a b", "a%", "ä", "\"", &"a".repeat(33)] {
            assert!(Placeholder::new(prefix).is_err(), "{prefix}");
        }
    }
}
