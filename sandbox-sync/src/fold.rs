//! Which names a file system takes for one.
//!
//! Some compare names without regard to case (vfat, exFAT, NTFS), to the Unicode form that a letter is
//! written in (`é` as one character or as two), or to both (APFS, HFS+, folders of ext4, f2fs and tmpfs with
//! the attribute `F`). Two names are one there if their [keys](Folding::key) are equal.
//!
//! A key is coarser than what any one of them does, since their tables differ by version and vendor: case
//! goes by what the standard library makes of a character in upper and in lower case, so `ß` is `ss` and the
//! dotless `ı` is `i`; where forms are folded, characters that are ignored by default are left out
//! (`DerivedCoreProperties.txt` of Unicode: HFS+ and ext4 do so, APFS does not). Only about marks beside an iota
//! subscript, whose capital is no mark, they disagree in a way that no key covers. Taking two names for one
//! that are not costs a conflict; the other way round, what a file system folds and this does not is refused
//! when it is written, see [`apply`](crate::apply).
//!
//! Names that are no UTF-8 are compared by their bytes. A key costs no more than a few times the name's
//! length, which [`MAX_NAME`](crate::path::MAX_NAME) bounds, and names in ASCII take no table.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization;

use crate::path::RelPath;
use crate::report::Side;

mod written;

pub(crate) use written::as_written;

/// What a file system makes no difference between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub(crate) struct Folding {
    /// Upper and lower case.
    pub(crate) case: bool,
    /// The canonical forms of Unicode.
    pub(crate) form: bool,
    /// It keeps names in a form of its own (HFS+: decomposed) and not as they were written.
    pub(crate) rewrites: bool,
}

impl Folding {
    /// Tells whether names are different wherever their bytes are.
    pub(crate) fn is_none(self) -> bool {
        !(self.case || self.form)
    }

    /// Returns what takes for one whatever either of the two does.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            case: self.case || other.case,
            form: self.form || other.form,
            rewrites: self.rewrites || other.rewrites,
        }
    }

    /// Returns what is equal for names that are one.
    pub(crate) fn key(self, name: &[u8]) -> Cow<'_, [u8]> {
        if name.is_ascii() {
            return match self.case && name.iter().any(u8::is_ascii_uppercase) {
                true => Cow::Owned(name.to_ascii_lowercase()),
                false => Cow::Borrowed(name),
            };
        }
        match std::str::from_utf8(name) {
            Ok(text) if !self.is_none() => Cow::Owned(self.fold(text).into_bytes()),
            _ => Cow::Borrowed(name),
        }
    }

    fn fold(self, text: &str) -> String {
        // Before marks are put in order: what is left out parts none.
        let kept = text.chars().filter(|c| !(self.form && is_ignorable(*c)));
        match (self.case, self.form) {
            (false, false) => kept.collect(),
            (true, false) => kept.flat_map(in_one_case).collect(),
            (false, true) => kept.nfd().collect(),
            // Caseless matching of canonical forms, as Unicode 3.13 (D145) has it.
            (true, true) => kept.nfd().flat_map(in_one_case).nfd().collect(),
        }
    }

    /// Returns the key of each name, joined as the path is.
    pub(crate) fn key_of(self, path: &RelPath) -> Vec<u8> {
        let keys: Vec<_> = path.components().map(|name| self.key(name)).collect();
        keys.join(&b'/')
    }
}

/// How each of the two sides folds names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Folds {
    pub(crate) host: Folding,
    /// By the guest's own word: it decides what enters the guest and nothing else.
    pub(crate) guest: Folding,
}

impl Folds {
    pub(crate) fn is_none(self) -> bool {
        self.host.is_none() && self.guest.is_none()
    }

    /// Returns the sides that fold, and how.
    pub(crate) fn sides(self) -> impl Iterator<Item = (Side, Folding)> {
        let sides = [(Side::Host, self.host), (Side::Guest, self.guest)];
        sides.into_iter().filter(|(_, folding)| !folding.is_none())
    }
}

/// Returns a character in a case that all its cases lead to: some have no lower case of their own (`ẞ`,
/// `ı`) but an upper case that has.
fn in_one_case(character: char) -> impl Iterator<Item = char> {
    let lower = character.to_lowercase();
    lower
        .flat_map(char::to_uppercase)
        .flat_map(char::to_lowercase)
}

/// Tells whether a character has the property `Default_Ignorable_Code_Point`.
fn is_ignorable(character: char) -> bool {
    matches!(character, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
        | '\u{fff0}'..='\u{fff8}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests;
