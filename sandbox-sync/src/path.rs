//! Paths inside a workspace, valid by construction.
//!
//! A [`RelPath`] is one or more names joined by `/`, relative to the root. It can only be made by
//! [`RelPath::new`], also when it arrives from a peer, so no other module has to ask whether a path is
//! absolute, empty, too long or contains `..`: such a path does not exist as a value. Names are bytes, as
//! Unix has them; they need not be UTF-8.
//!
//! Paths are ordered by component, so a folder is followed at once by everything beneath it.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The longest name of one file or folder, in bytes (`NAME_MAX` of every common file system).
pub const MAX_NAME: usize = 255;
/// The longest path, in bytes; `PATH_MAX` less room for the root in front of it.
pub const MAX_PATH: usize = 3072;
/// The most names that one path may have; recursion over a tree is bounded by it.
pub const MAX_DEPTH: usize = 256;

/// A path relative to the root of a workspace. Clones share their bytes: the trees of a session hold most
/// paths two or three times.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RelPath(Arc<[u8]>);

/// Why bytes are not a [`RelPath`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidPath {
    /// The path or one of its names is empty; this covers absolute paths and doubled separators.
    #[error("empty name in a path")]
    Empty,
    /// A name is `.` or `..`.
    #[error("`.` or `..` in a path")]
    Dots,
    /// A name contains a NUL byte.
    #[error("NUL in a path")]
    Nul,
    /// Longer than [`MAX_NAME`], [`MAX_PATH`] or [`MAX_DEPTH`] allow.
    #[error("path too long or too deep")]
    TooLong,
}

impl RelPath {
    /// Checks and keeps `bytes`.
    ///
    /// # Errors
    ///
    /// The first rule that `bytes` break.
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self, InvalidPath> {
        let bytes = bytes.as_ref();
        if bytes.len() > MAX_PATH {
            return Err(InvalidPath::TooLong);
        }
        let mut depth = 0;
        for name in bytes.split(|byte| *byte == b'/') {
            depth += 1;
            check_name(name)?;
        }
        if depth > MAX_DEPTH {
            return Err(InvalidPath::TooLong);
        }
        Ok(Self(bytes.into()))
    }

    /// Returns the path as bytes, names joined by `/`.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the names from the root downwards.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/')
    }

    /// Returns the last name.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        self.components().next_back().unwrap_or_default()
    }

    /// Returns the folder that holds this path, `None` where that is the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        let slash = self.0.iter().rposition(|byte| *byte == b'/')?;
        Some(Self(self.0[..slash].into()))
    }

    /// Returns how many names the path has, at least one.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.components().count()
    }

    /// Tells whether `self` lies strictly beneath `folder`.
    #[must_use]
    pub fn is_beneath(&self, folder: &Self) -> bool {
        self.0
            .strip_prefix(&*folder.0)
            .is_some_and(|rest| rest.first() == Some(&b'/'))
    }

    /// Returns what comes, in the order of paths, after everything beneath this one and before the next
    /// name beside it. It is a place in an order and no path to go to.
    pub(crate) fn behind(&self) -> Self {
        Self([&self.0, &b"\x01"[..]].concat().into())
    }

    /// Returns the same path in memory of its own.
    pub(crate) fn apart(&self) -> Self {
        Self(Arc::from(&*self.0))
    }

    /// Tells whether [`RelPath::join`] would refuse each of these names, which are `longest` bytes or less.
    pub(crate) fn is_too_long_for(folder: Option<&Self>, longest: usize) -> bool {
        let (length, depth) = folder.map_or((0, 0), |path| (path.0.len() + 1, path.depth()));
        longest > MAX_NAME || length + longest > MAX_PATH || depth + 1 > MAX_DEPTH
    }

    /// Returns the path one name deeper; `folder` is `None` at the root.
    ///
    /// # Errors
    ///
    /// As [`RelPath::new`].
    pub fn join(folder: Option<&Self>, name: &[u8]) -> Result<Self, InvalidPath> {
        match folder {
            None => Self::new(name),
            Some(folder) => Self::new([&folder.0, name].join(&b'/')),
        }
    }
}

fn check_name(name: &[u8]) -> Result<(), InvalidPath> {
    match name {
        b"" => Err(InvalidPath::Empty),
        b"." | b".." => Err(InvalidPath::Dots),
        _ if name.len() > MAX_NAME => Err(InvalidPath::TooLong),
        _ if name.contains(&0) => Err(InvalidPath::Nul),
        _ => Ok(()),
    }
}

/// How many bytes of two paths are compared at a time.
const SPAN: usize = 8;

impl Ord for RelPath {
    fn cmp(&self, other: &Self) -> Ordering {
        // NUL cannot occur in a name, so putting it in the separator's place orders by component.
        let key = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
        // Neighbours share most of their bytes, which are compared many at a time.
        let (own, theirs) = (self.0.chunks_exact(SPAN), other.0.chunks_exact(SPAN));
        let same = own.zip(theirs).take_while(|(a, b)| a == b).count() * SPAN;
        let (own, theirs) = (&self.0[same..], &other.0[same..]);
        own.iter().map(key).cmp(theirs.iter().map(key))
    }
}

impl PartialOrd for RelPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Control and bidirectional characters are escaped, so a name cannot lie about itself on a terminal.
impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                if character.is_control() || is_format_control(character) {
                    write!(f, "{}", character.escape_unicode())?;
                } else {
                    write!(f, "{character}")?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// The invisible characters that reorder or hide text: zero-width ones, embeddings, isolates, tags.
pub(crate) fn is_format_control(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{61c}' | '\u{e0000}'..='\u{e007f}')
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// As its bytes, or as text where people read it and it is text.
impl Serialize for RelPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) if serializer.is_human_readable() => serializer.serialize_str(text),
            _ => serializer.serialize_bytes(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for RelPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = RelPath;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the bytes of a path")
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<RelPath, E> {
                RelPath::new(bytes).map_err(E::custom)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<RelPath, E> {
                RelPath::new(text).map_err(E::custom)
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut bytes: A) -> Result<RelPath, A::Error> {
                let mut path = Vec::new();
                while let Some(byte) = bytes.next_element()? {
                    path.push(byte);
                }
                RelPath::new(path).map_err(de::Error::custom)
            }
        }
        match deserializer.is_human_readable() {
            true => deserializer.deserialize_any(Visitor),
            false => deserializer.deserialize_bytes(Visitor),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s33_paths_that_leave_or_bend_the_tree_do_not_exist() {
        for (bytes, why) in [
            (&b""[..], InvalidPath::Empty),
            (b"/etc", InvalidPath::Empty),
            (b"a//b", InvalidPath::Empty),
            (b"a/", InvalidPath::Empty),
            (b".", InvalidPath::Dots),
            (b"a/../b", InvalidPath::Dots),
            (b"../x", InvalidPath::Dots),
            (b"a\0b", InvalidPath::Nul),
            (&[b'x'; 256], InvalidPath::TooLong),
            (&[b'x'; 4096], InvalidPath::TooLong),
            (&b"a/".repeat(300)[..599], InvalidPath::TooLong),
        ] {
            assert_eq!(RelPath::new(bytes), Err(why), "{bytes:?}");
            let wire = postcard::to_stdvec(&serde_bytes_like(bytes)).unwrap();
            assert!(
                postcard::from_bytes::<RelPath>(&wire).is_err(),
                "{bytes:?} from a peer"
            );
        }
        assert!(RelPath::new("a..b/.c/...").is_ok());
    }

    fn serde_bytes_like(bytes: &[u8]) -> Vec<u8> {
        bytes.to_vec()
    }

    #[test]
    fn a_folder_is_followed_by_what_is_beneath_it() {
        let mut paths: Vec<_> = ["a-b", "a/z", "a", "a.c", "a/b/c"]
            .map(|p| RelPath::new(p).unwrap())
            .into();
        paths.sort();
        let order: Vec<_> = paths.iter().map(ToString::to_string).collect();
        assert_eq!(order, ["a", "a/b/c", "a/z", "a-b", "a.c"]);
    }

    #[test]
    fn s50_names_cannot_hide_themselves() {
        let path = RelPath::new("a\u{1b}[2K\u{202e}gpj.exe\nb".as_bytes()).unwrap();
        assert_eq!(path.to_string(), r"a\u{1b}[2K\u{202e}gpj.exe\u{a}b");
        assert_eq!(RelPath::new(b"\xff").unwrap().to_string(), r"\xff");
    }

    #[test]
    fn beneath_is_by_component() {
        let [a, ab, child] = ["a", "ab", "a/b"].map(|p| RelPath::new(p).unwrap());
        assert!(child.is_beneath(&a));
        assert!(!ab.is_beneath(&a) && !a.is_beneath(&a));
        assert_eq!(child.parent(), Some(a));
    }
}
