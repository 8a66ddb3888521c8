//! Host names in the one form that anything is compared in.
//!
//! A name is accepted only if its canonical form differs from what was written in nothing but ASCII case and
//! one trailing dot; everything else is refused, never repaired, so that no two readers can see two names in
//! one text. Refused are:
//!
//! - anything outside ASCII letters, digits, `-`, `_` and `.` (percent signs, full-width digits, ideographic
//!   full stops, soft hyphens, control characters, U-labels: write the A-label, `xn--…`);
//! - empty labels, labels over 63 and names over 253 bytes (RFC 1035, 2.3.4), labels with `-` at an end
//!   (RFC 1123, 2.1);
//! - names whose last label is a number in any base: `127.1`, `0x7f000001` and `2130706433` are addresses to
//!   `inet_aton`, so they must never be names here (WHATWG URL, "ends in a number");
//! - A-labels that do not decode, or that decode to ASCII alone (`xn--example-`).
//!
//! An underscore is accepted in every label but the last: RFC 952 has none, but hosts in daily use do
//! (`my_bucket.s3.example`), and no resolver or matcher reads it as anything else.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use crate::{Error, policy::punycode};

/// The longest name in bytes, without a trailing dot (RFC 1035, 2.3.4 as text).
const MAX_NAME: usize = 253;
/// The longest label in bytes (RFC 1035, 2.3.4).
const MAX_LABEL: usize = 63;

/// A host name in canonical form: lower-case ASCII, no trailing dot, not an address in any spelling.
///
/// Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Arc<str>);

impl HostName {
    /// Reads a name.
    ///
    /// # Errors
    ///
    /// `Invalid` with the reason, as the module's documentation lists them.
    pub fn parse(text: &str) -> Result<Self, Error> {
        canonical(text)
            .map(|name| Self(name.into()))
            .map_err(|reason| {
                Error::invalid(format!("read host name `{}`", text.escape_debug()), reason)
            })
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name without its first label, unless only one label is left.
    pub fn parent(&self) -> Option<&str> {
        parent(&self.0)
    }

    /// Tells whether RFC 6761 keeps the name for this machine itself: `localhost` and all below it.
    pub fn is_localhost(&self) -> bool {
        &*self.0 == "localhost"
            || self.0.ends_with(".localhost")
            || matches!(&*self.0, "ip6-localhost" | "ip6-loopback")
    }
}

/// Returns the part of a canonical name after its first label.
pub(crate) fn parent(name: &str) -> Option<&str> {
    name.split_once('.').map(|(_, rest)| rest)
}

/// Checks a name and returns it lower-case and without its trailing dot, or says what is wrong with it.
pub(super) fn canonical(text: &str) -> Result<String, &'static str> {
    let name = text.strip_suffix('.').unwrap_or(text);
    if name.is_empty() {
        return Err("it is empty");
    }
    if name.len() > MAX_NAME {
        return Err("it is longer than 253 bytes");
    }
    let name = name.to_ascii_lowercase();
    name.split('.').try_for_each(check_label)?;
    let last = name.rsplit('.').next().unwrap_or(&name);
    if is_number(last) {
        return Err(
            "its last label is a number, so other software may read it as an address; write an \
             IPv4 address as four decimal numbers without leading zeros",
        );
    }
    if last.contains('_') {
        return Err("its last label has an underscore");
    }
    Ok(name)
}

fn check_label(label: &str) -> Result<(), &'static str> {
    if label.is_empty() {
        return Err("it has an empty label");
    }
    if label.len() > MAX_LABEL {
        return Err("a label is longer than 63 bytes");
    }
    if !label.is_ascii() {
        return Err("it is not ASCII; write an internationalized name in its `xn--` form");
    }
    if !label
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    {
        return Err("it has a character that no host name has");
    }
    if label.starts_with('-') || label.ends_with('-') {
        return Err("a label begins or ends with a hyphen");
    }
    match label.strip_prefix("xn--") {
        Some(encoded) if !punycode::is_plausible(encoded) => {
            Err("an `xn--` label does not decode to an internationalized name")
        }
        _ => Ok(()),
    }
}

/// Whether `inet_aton` or a URL parser would read the label as a number.
fn is_number(label: &str) -> bool {
    label.bytes().all(|byte| byte.is_ascii_digit())
        || label
            .strip_prefix("0x")
            .is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for HostName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

impl Borrow<str> for HostName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing_cases::cases;
    use proptest::prelude::*;

    fn refused(text: &str) -> bool {
        HostName::parse(text).is_err()
    }

    #[test]
    fn e36_e37_case_and_one_trailing_dot_are_folded() {
        for text in ["Example.COM", "example.com.", "EXAMPLE.com."] {
            assert_eq!(HostName::parse(text).unwrap().as_str(), "example.com");
        }
        assert!(refused("example.com.."));
    }

    #[test]
    fn e19_numbers_are_never_names() {
        for text in [
            "127.1",
            "0177.0.0.1",
            "0x7f000001",
            "2130706433",
            "0x7f.1",
            "1.2.3.4",
            "01.02.03.04",
            "127.0.0.1.",
            "0x",
            "a.0x",
            "a.1",
        ] {
            assert!(refused(text), "{text}");
        }
        assert!(!refused("1.2.3.4.example.com"));
        assert!(!refused("0x7f.example"));
    }

    #[test]
    fn e20_unicode_spellings_are_refused() {
        for text in [
            "127。0。0。1",
            "①②⑦.example",
            "exämple.com",
            "ex\u{ad}ample.com",
        ] {
            assert!(refused(text), "{text}");
        }
    }

    #[test]
    fn e38_a_labels_that_decode_to_nothing_new_are_refused() {
        for text in [
            "xn--example-.org",
            "xn--a",
            "xn--.com",
            "xn--a-.com",
            "xn--99999999.com",
        ] {
            assert!(refused(text), "{text}");
        }
        for text in ["xn--bcher-kva.example", "xn--fiqs8s", "xn--i-7iq.ws"] {
            assert!(!refused(text), "{text}");
        }
    }

    #[test]
    fn e39_e41_e42_junk_inside_a_name_is_refused() {
        for text in [
            "a%2eb", "a b.com", "a\\b.com", "a#b", "a?b", "a/b", "a\tb", "a\nb", "a\0b", "[a.com]",
            "u@a.com", "a:80", "", ".", "..", ".a", "a..b", "-a.com", "a-.com", "*.com", "a.b_c",
        ] {
            assert!(refused(text), "{text:?}");
        }
        assert!(!refused("my_bucket.s3.example"));
    }

    #[test]
    fn lengths_are_bounded() {
        assert!(!refused(&"a".repeat(63)));
        assert!(refused(&"a".repeat(64)));
        let long = format!("{}ab", "abc.".repeat(63));
        assert_eq!(long.len(), 254);
        assert!(refused(&long));
        assert!(!refused(&long[1..]));
    }

    proptest! {
        #![proptest_config(cases())]

        #[test]
        fn what_is_accepted_differs_in_case_and_dot_only(text in "[a-zA-Z0-9._-]{0,40}") {
            if let Ok(name) = HostName::parse(&text) {
                let expected = text.strip_suffix('.').unwrap_or(&text).to_ascii_lowercase();
                prop_assert_eq!(name.as_str(), expected.as_str());
                prop_assert!(name.as_str().parse::<std::net::IpAddr>().is_err());
            }
        }

        /// Twin of the fuzz target `name`, with the one before.
        #[test]
        fn arbitrary_text_never_panics(text: String) {
            drop(HostName::parse(&text));
        }
    }
}
