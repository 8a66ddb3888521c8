//! The names of models, as Docker's users write them.
//!
//! ```text
//!   smollm2                       docker.io/ai/smollm2:latest      `ai` is Docker's organisation
//!   ai/smollm2:360M-Q4_K_M        docker.io/ai/smollm2:360M-Q4_K_M
//!   hf.co/Org/Repo-GGUF:Q4_K_M    huggingface.co/Org/Repo-GGUF:Q4_K_M
//!   localhost:5000/m@sha256:…     localhost:5000/m@sha256:…        a digest stands for itself
//! ```
//!
//! The grammar is that of image references in the `distribution` project: the first part is a
//! registry if it has a dot or a colon or is `localhost`; the rest is lower case, except on Hugging
//! Face, whose repositories are not. Names come from configuration and from guests, and end up in URLs
//! and paths; so no part is empty, starts with a dot, or holds anything but letters, digits and
//! `._-`, and nothing is longer than a registry takes.
//!
//! Not here: whether a model exists, and ids of a local store (a digest with no name before it).

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use sandbox_base::ErrorKind;

use crate::{Error, Result};

/// Registry and repository together, as `distribution` limits them.
const MAX_PATH: usize = 255;
/// As the OCI distribution specification limits tags.
const MAX_TAG: usize = 128;

const DOCKER_HUB: &str = "docker.io";
const HUGGING_FACE: &str = "huggingface.co";

/// The name of a model, with everything filled in that Docker's users leave out.
///
/// Two names are equal if they mean the same model: `smollm2` equals `docker.io/ai/smollm2:latest`.
/// It displays in full; [`spelling`](Self::spelling) is what was written.
#[derive(Clone)]
pub struct ModelName {
    spelling: String,
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl ModelName {
    /// Reads a name.
    ///
    /// # Errors
    ///
    /// `Invalid`, saying which part is wrong.
    pub fn parse(text: &str) -> Result<Self> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(checked_digest(digest)?)),
            None => (text, None),
        };
        let (path, tag) = split_tag(rest)?;
        refuse_bare_digest(path, tag)?;
        let (registry, repository) = split_registry(path)?;
        if registry.len() + 1 + repository.len() > MAX_PATH {
            return Err(invalid(format!(
                "registry and repository exceed {MAX_PATH} characters"
            )));
        }
        let upper_case = registry == HUGGING_FACE;
        for part in repository.split('/') {
            check_part(part, upper_case)?;
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some("latest".to_owned()),
        };
        Ok(Self {
            spelling: text.to_owned(),
            registry,
            repository,
            tag,
            digest,
        })
    }

    /// Returns what was written, as a server that knows it by this spelling wants it.
    pub fn spelling(&self) -> &str {
        &self.spelling
    }

    /// Returns the registry, such as `docker.io` or `localhost:5000`; never empty.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Returns the repository, such as `ai/smollm2`; never empty.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the tag: the one written, or `latest` where there is no digest either.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the digest, such as `sha256:…`. Where there is one, it decides and the tag is a note.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    fn key(&self) -> (&str, &str, Option<&str>, Option<&str>) {
        (
            self.registry(),
            self.repository(),
            self.tag(),
            self.digest(),
        )
    }
}

impl FromStr for ModelName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ModelName({self})")
    }
}

impl PartialEq for ModelName {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for ModelName {}

impl Hash for ModelName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl PartialOrd for ModelName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ModelName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

/// Splits a tag off: what follows the last colon, unless that colon is a registry's port.
fn split_tag(text: &str) -> Result<(&str, Option<&str>)> {
    let Some((path, tag)) = text.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) else {
        return Ok((text, None));
    };
    let starts_well = tag.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    let characters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if !starts_well || tag.len() > MAX_TAG || !tag.chars().all(characters) {
        return Err(invalid(format!(
            "the tag is not 1 to {MAX_TAG} letters, digits, '_', '.' or '-'"
        )));
    }
    Ok((path, Some(tag)))
}

/// Refuses what looks like a digest but would be read as the model `sha256` or as a strange name.
fn refuse_bare_digest(path: &str, tag: Option<&str>) -> Result<()> {
    let algorithm = tag.is_some() && matches!(path, "sha256" | "sha512");
    if algorithm || is_lower_hex(path, 64) {
        return Err(invalid(
            "a digest needs a name before it: NAME@sha256:…".to_owned(),
        ));
    }
    Ok(())
}

fn split_registry(path: &str) -> Result<(String, String)> {
    let is_registry = |first: &str| first.contains(['.', ':']) || first == "localhost";
    match path.split_once('/') {
        Some((first, rest)) if is_registry(first) => {
            let registry = checked_registry(first)?;
            let official = registry == DOCKER_HUB && !rest.contains('/');
            let repository = if official {
                format!("library/{rest}")
            } else {
                rest.to_owned()
            };
            Ok((registry, repository))
        }
        Some(_) => Ok((DOCKER_HUB.to_owned(), path.to_owned())),
        None => Ok((DOCKER_HUB.to_owned(), format!("ai/{path}"))),
    }
}

/// Checks `host[:port]` and gives the one spelling of registries that have several.
fn checked_registry(text: &str) -> Result<String> {
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let label = |label: &str| {
        label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if !host.split('.').all(label) {
        return Err(invalid("the registry is not a host name".to_owned()));
    }
    // Digits first: a number's own parser takes a sign too.
    let number = |port: &str| {
        let digits = port.bytes().all(|b| b.is_ascii_digit());
        digits && port.parse::<u16>().is_ok_and(|number| number > 0)
    };
    if !port.is_none_or(number) {
        return Err(invalid(
            "the registry's port is not from 1 to 65535".to_owned(),
        ));
    }
    let registry = text.to_ascii_lowercase();
    Ok(match registry.as_str() {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB.to_owned(),
        "hf.co" => HUGGING_FACE.to_owned(),
        _ => registry,
    })
}

/// Checks one part of a repository: runs of letters and digits, joined by `.`, `_`, `__` or dashes.
fn check_part(part: &str, upper_case: bool) -> Result<()> {
    let word = |c: char| {
        c.is_ascii_lowercase() || c.is_ascii_digit() || (upper_case && c.is_ascii_uppercase())
    };
    let separators = part.split(word).filter(|between| !between.is_empty());
    let joined = part.starts_with(word) && part.ends_with(word);
    let good = |s: &str| matches!(s, "." | "_" | "__") || s.bytes().all(|b| b == b'-');
    if joined && separators.into_iter().all(good) {
        return Ok(());
    }
    let case = if upper_case { "" } else { "lower-case " };
    Err(invalid(format!(
        "a part of the repository is not {case}letters and digits, joined by '.', '_', '__' or '-'"
    )))
}

fn checked_digest(text: &str) -> Result<String> {
    let good = match text.split_once(':') {
        Some(("sha256", hex)) => is_lower_hex(hex, 64),
        Some(("sha512", hex)) => is_lower_hex(hex, 128),
        _ => false,
    };
    if !good {
        return Err(invalid(
            "the digest is not sha256: or sha512: and lower-case hex".to_owned(),
        ));
    }
    Ok(text.to_owned())
}

fn is_lower_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn invalid(reason: String) -> Error {
    Error::new(ErrorKind::Invalid, "read the model's name", reason)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn full(text: &str) -> String {
        ModelName::parse(text).map_or_else(|e| panic!("{text}: {e}"), |name| name.to_string())
    }

    #[test]
    fn what_users_leave_out_is_filled_in() {
        let hex = "a".repeat(64);
        for (written, meant) in [
            ("smollm2", "docker.io/ai/smollm2:latest"),
            ("ai/smollm2", "docker.io/ai/smollm2:latest"),
            ("llama3.2:1b", "docker.io/ai/llama3.2:1b"),
            ("index.docker.io/ai/smollm2", "docker.io/ai/smollm2:latest"),
            ("docker.io/smollm2", "docker.io/library/smollm2:latest"),
            (
                "hf.co/Org/Repo-GGUF:Q4_K_M",
                "huggingface.co/Org/Repo-GGUF:Q4_K_M",
            ),
            ("HuggingFace.co/a/b", "huggingface.co/a/b:latest"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000/a/b:x", "localhost:5000/a/b:x"),
            ("my/a__b---c.d", "docker.io/my/a__b---c.d:latest"),
        ] {
            assert_eq!(full(written), meant, "{written}");
        }
        let pinned = format!("ai/m@sha256:{hex}");
        assert_eq!(full(&pinned), format!("docker.io/{pinned}"));
        let both = format!("ai/m:t@sha256:{hex}");
        assert_eq!(full(&both), format!("docker.io/{both}"));
    }

    #[test]
    fn spellings_of_one_model_are_equal_and_kept() {
        let short: ModelName = "smollm2".parse().expect("valid");
        let long: ModelName = "docker.io/ai/smollm2:latest".parse().expect("valid");
        assert_eq!(short, long);
        assert_eq!(short.spelling(), "smollm2");
    }

    #[test]
    fn what_is_no_name_is_invalid() {
        let hex = "a".repeat(64);
        let long = "a".repeat(256);
        let tag = format!("m:{}", "t".repeat(129));
        let bare = format!("sha256:{hex}");
        let upper = format!("m@sha256:{}", "A".repeat(64));
        for text in [
            "",
            " ",
            "/",
            "a/",
            "/a",
            "a//b",
            "a:",
            ":t",
            "a:b:c",
            "A/b",
            "a b",
            "a\n",
            "ai/Smol",
            "..",
            "a/../b",
            "hf.co/../x",
            "hf.co/a/.b",
            "-a",
            "a-",
            "a___b",
            "a..b",
            "é",
            "a@",
            "a@b",
            "a@sha256:12",
            "a@md5:aa",
            "x:0/a",
            "x:65536/a",
            "x:+1/a",
            "x:/a",
            ".x/a",
            "x-.y/a",
            "hf.co",
            "hf.co/",
            "http://x/a",
            "a:.t",
            "a?b",
            "a%2fb",
            &hex,
            &long,
            &tag,
            &bare,
            &upper,
        ] {
            if text == "hf.co" {
                // One part is never a registry: this is the odd model `ai/hf.co`.
                assert_eq!(full(text), "docker.io/ai/hf.co:latest");
                continue;
            }
            let error = ModelName::parse(text).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Invalid, "{text}");
        }
    }

    fn cases() -> ProptestConfig {
        let cases = std::env::var("SANDBOX_CASES")
            .ok()
            .and_then(|n| n.parse().ok());
        ProptestConfig::with_cases(cases.unwrap_or(256))
    }

    proptest! {
        #![proptest_config(cases())]

        #[test]
        fn the_full_form_of_a_name_is_that_name(
            registry in prop::option::of("[a-z]{1,5}\\.[a-z]{2,3}(:[1-9][0-9]{0,3})?/|localhost/|hf\\.co/"),
            // No dot in the first part, which would make it a registry.
            path in "[a-z0-9]{1,6}(-[a-z0-9]{1,4})?(/[a-z0-9]{1,5}([._-][a-z0-9]{1,4}){0,2}){0,2}",
            tag in prop::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,8}"),
            digest in prop::option::of("sha256:[0-9a-f]{64}"),
        ) {
            let mut text = registry.unwrap_or_default() + &path;
            if let Some(tag) = &tag {
                text = format!("{text}:{tag}");
            }
            if let Some(digest) = &digest {
                text = format!("{text}@{digest}");
            }
            let name = ModelName::parse(&text).expect("built by the grammar");
            let again = ModelName::parse(&name.to_string()).expect("the full form is a name");
            prop_assert_eq!(&again, &name);
            prop_assert_eq!(again.to_string(), name.to_string());
            prop_assert_eq!(name.spelling(), text);
            prop_assert_eq!(name.digest(), digest.as_deref());
            if tag.is_some() {
                prop_assert_eq!(name.tag(), tag.as_deref());
            }
        }

        #[test]
        fn nothing_that_is_accepted_can_leave_a_folder_or_a_url(
            text in "([a-zA-Z0-9._:@/%?#\\\\ -]|[\\PC]|\\x00|\n){0,40}"
        ) {
            if let Ok(name) = ModelName::parse(&text) {
                let full = name.to_string();
                prop_assert!(full.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-:/@".contains(&b)));
                prop_assert!(name.repository().split('/').all(|p| !p.is_empty() && !p.starts_with('.')));
                prop_assert_eq!(ModelName::parse(&full).expect("still a name"), name);
            }
        }
    }
}
