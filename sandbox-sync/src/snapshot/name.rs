//! Names of snapshots and of the spaces they are in: safe as names of files anywhere.

use std::fmt;

use sandbox_base::ErrorKind;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The longest name, in bytes: with what is added to it, it is a file's name everywhere.
pub const MAX_LENGTH: usize = 100;

/// A name of a snapshot or of a space: ASCII letters and digits, and after the first character also `.`, `_`
/// and `-`; at most [`MAX_LENGTH`] long.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// Checks and keeps a name.
    ///
    /// # Errors
    ///
    /// `Invalid` where it is none.
    pub fn new(name: impl Into<String>) -> Result<Self, Error> {
        let name = name.into();
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let begins = name
            .as_bytes()
            .first()
            .is_some_and(u8::is_ascii_alphanumeric);
        if begins && name.len() <= MAX_LENGTH && name.bytes().all(valid) {
            return Ok(Self(name));
        }
        let shown: String = name.chars().take(MAX_LENGTH).collect();
        let detail = format!(
            "{shown:?} is no name: letters, digits, and after the first of them `.`, `_`, `-`; at most {MAX_LENGTH}"
        );
        Err(Error::new(ErrorKind::Invalid, "name a snapshot", detail))
    }

    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = Error;

    fn try_from(name: String) -> Result<Self, Error> {
        Self::new(name)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_a_plain_file_name_is_a_name() {
        for name in ["a", "before-the-agent", "v1.2_x", "0"] {
            assert_eq!(Name::new(name).unwrap().as_str(), name);
        }
        let long = "a".repeat(MAX_LENGTH + 1);
        for name in [
            "", ".", "..", ".hidden", "-x", "a/b", "a b", "a\0", "ä", &long,
        ] {
            assert_eq!(
                Name::new(name).unwrap_err().kind(),
                ErrorKind::Invalid,
                "{name:?}"
            );
        }
    }
}
