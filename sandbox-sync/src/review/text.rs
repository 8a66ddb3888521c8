//! The difference of two texts, as hunks that can be chosen one by one.
//!
//! What is shown is safe to print: control characters and those that reorder or hide text are escaped when
//! the difference is made, not when it is printed (`S50`). What is written never comes from here: chosen
//! hunks are put together from the bytes themselves, which are the same that were shown by their digests.

use std::ops::Range;

use imara_diff::{Algorithm, Diff, InternedInput};
use serde::{Deserialize, Serialize};

use crate::path::is_format_control;

/// How many equal lines surround a change.
const CONTEXT: u32 = 3;

/// The most lines that are shown of one file.
const MAX_LINES: usize = 20_000;

/// The most lines of both texts that are compared: heuristics bound the time, but what a guest made up for it
/// takes long all the same.
const MAX_COMPARED: usize = 100_000;

/// How far into a file to look for a NUL, which no text has; git looks as far.
const SNIFFED: usize = 8000;

/// A few changes that lie close together, with equal lines around them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Hunk {
    /// Where it begins in the old text, as the number of lines before it.
    pub before: u32,
    /// How many lines of the old text it covers.
    pub before_lines: u32,
    /// Where it begins in the new text.
    pub after: u32,
    /// How many lines of the new text it covers.
    pub after_lines: u32,
    /// Its lines, those that are removed before those that replace them.
    pub lines: Vec<Line>,
}

/// One line of a [`Hunk`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Line {
    /// Whether it is in the old text, in the new one, or in both.
    pub side: LineSide,
    /// The line without its end, with everything escaped that a terminal would act on.
    pub text: String,
    /// Whether it ends with a newline; the last one of a file may not.
    pub ends: bool,
}

/// Which of the two texts a line is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum LineSide {
    /// Both.
    Same,
    /// The old one.
    Removed,
    /// The new one.
    Added,
}

/// Tells whether bytes are a text, by git's rule: there is no NUL near the beginning.
pub(crate) fn is_text(bytes: &[u8]) -> bool {
    !bytes[..bytes.len().min(SNIFFED)].contains(&0)
}

/// Returns what turns `before` into `after`; `None` where that is more than is shown.
pub(crate) fn hunks(before: &[u8], after: &[u8]) -> Option<Vec<Hunk>> {
    let [old, new] = [lines(before), lines(after)];
    if old.len() + new.len() > MAX_COMPARED {
        return None;
    }
    let mut shown = 0;
    let mut hunks = Vec::new();
    for group in groups(&old, &new) {
        let hunk = hunk(&group, &old, &new);
        shown += hunk.lines.len();
        if shown > MAX_LINES {
            return None;
        }
        hunks.push(hunk);
    }
    Some(hunks)
}

/// Returns `before` with the hunks of these numbers carried out; `None` where there is no such hunk.
pub(crate) fn with_hunks(before: &[u8], after: &[u8], picked: &[usize]) -> Option<Vec<u8>> {
    let [old, new] = [lines(before), lines(after)];
    let groups = groups(&old, &new);
    if picked.iter().any(|number| *number >= groups.len()) {
        return None;
    }
    let mut result = Vec::new();
    let mut done = 0;
    for (number, group) in groups.iter().enumerate() {
        if !picked.contains(&number) {
            continue;
        }
        for change in &group.changes {
            result.extend_from_slice(&old[range(&(done..change.before.start))].concat());
            result.extend_from_slice(&new[range(&change.after)].concat());
            done = change.before.end;
        }
    }
    result.extend_from_slice(&old[done as usize..].concat());
    Some(result)
}

/// Changes whose surroundings touch.
struct Group {
    changes: Vec<imara_diff::Hunk>,
}

fn groups(old: &[&[u8]], new: &[&[u8]]) -> Vec<Group> {
    let mut input = InternedInput::default();
    input.update_before(old.iter().copied());
    input.update_after(new.iter().copied());
    let mut diff = Diff::compute(Algorithm::Histogram, &input);
    diff.postprocess_lines(&input);
    let mut groups: Vec<Group> = Vec::new();
    for change in diff.hunks() {
        let near = |group: &&mut Group| {
            let last = group.changes.last();
            last.is_some_and(|last| change.before.start - last.before.end <= 2 * CONTEXT)
        };
        match groups.last_mut().filter(near) {
            Some(group) => group.changes.push(change),
            None => groups.push(Group {
                changes: vec![change],
            }),
        }
    }
    groups
}

fn hunk(group: &Group, old: &[&[u8]], new: &[&[u8]]) -> Hunk {
    let (first, last) = match &group.changes[..] {
        [first, .., last] => (first, last),
        [only] => (only, only),
        [] => unreachable!("a group begins with a change"),
    };
    let ahead = first.before.start.min(CONTEXT);
    let end = (last.before.end + CONTEXT).min(u32::try_from(old.len()).unwrap_or(u32::MAX));
    let (before, after) = (first.before.start - ahead, first.after.start - ahead);
    let mut shown = Vec::new();
    let mut show = |side, from: &[&[u8]]| shown.extend(from.iter().map(|text| line(side, text)));
    let mut done = before;
    for change in &group.changes {
        show(LineSide::Same, &old[range(&(done..change.before.start))]);
        show(LineSide::Removed, &old[range(&change.before)]);
        show(LineSide::Added, &new[range(&change.after)]);
        done = change.before.end;
    }
    show(LineSide::Same, &old[range(&(done..end))]);
    Hunk {
        before,
        before_lines: end - before,
        after,
        after_lines: last.after.end + (end - last.before.end) - after,
        lines: shown,
    }
}

fn range(lines: &Range<u32>) -> Range<usize> {
    lines.start as usize..lines.end as usize
}

/// Splits a text into lines, with their ends.
fn lines(text: &[u8]) -> Vec<&[u8]> {
    text.split_inclusive(|byte| *byte == b'\n').collect()
}

fn line(side: LineSide, bytes: &[u8]) -> Line {
    let (bytes, ends) = match bytes.strip_suffix(b"\n") {
        Some(bytes) => (bytes, true),
        None => (bytes, false),
    };
    let text = harmless(bytes);
    Line { side, text, ends }
}

/// Escapes what a terminal would act on, and bytes that are no text.
pub(crate) fn harmless(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\t' => text.push('\t'),
                '\r' => text.push_str("\\r"),
                _ if character.is_control() || is_format_control(character) => {
                    text.extend(character.escape_unicode());
                }
                _ => text.push(character),
            }
        }
        for byte in chunk.invalid() {
            write!(text, "\\x{byte:02x}").expect("a string takes everything");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn s50_a_text_cannot_act_on_the_terminal_that_shows_it() {
        let hunks = hunks(
            b"",
            b"a\x1b[2Jb\xff\r\nint x; // \xe2\x80\xae evil \xe2\x81\xa6\n\tend\x9b",
        );
        let hunk = &hunks.unwrap()[0];
        let texts: Vec<&str> = hunk.lines.iter().map(|line| &line.text[..]).collect();
        assert_eq!(
            texts,
            [
                r"a\u{1b}[2Jb\xff\r",
                r"int x; // \u{202e} evil \u{2066}",
                "\tend\\x9b"
            ]
        );
        assert!(!hunk.lines[2].ends);
    }

    #[test]
    fn changes_far_apart_are_hunks_of_their_own() {
        let old: String = (0..40).map(|n| format!("{n}\n")).collect();
        let new = old.replace("\n5\n", "\nfive\n").replace("\n30\n", "\n");
        let hunks = hunks(old.as_bytes(), new.as_bytes()).unwrap();
        let places: Vec<_> = hunks
            .iter()
            .map(|hunk| (hunk.before, hunk.before_lines, hunk.after, hunk.after_lines))
            .collect();
        assert_eq!(places, [(2, 7, 2, 7), (27, 7, 27, 6)]);
        let second = with_hunks(old.as_bytes(), new.as_bytes(), &[1]).unwrap();
        assert_eq!(second, old.replace("\n30\n", "\n").into_bytes());
        assert_eq!(with_hunks(b"a", b"b", &[1]), None);
    }

    #[test]
    fn i13_what_is_shown_of_a_file_is_bounded_and_takes_no_quadratic_time() {
        // Two texts of the same lines in another order, with nothing unique in them.
        let text = |step: usize| -> Vec<u8> {
            let number = |n: usize| (n * step % 1009).to_string() + "\n";
            (0..MAX_COMPARED / 2)
                .map(number)
                .collect::<String>()
                .into_bytes()
        };
        let began = std::time::Instant::now();
        assert_eq!(hunks(&text(7), &text(601)), None);
        assert!(began.elapsed().as_secs() < 30, "{:?}", began.elapsed());
        let began = std::time::Instant::now();
        assert_eq!(hunks(&b"\n".repeat(1 << 20), &text(1)), None);
        assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
    }

    proptest! {
        #[test]
        fn all_hunks_make_the_new_text_and_none_the_old(
            old in "[ab\n]{0,60}",
            new in "[ab\n]{0,60}",
        ) {
            let count = hunks(old.as_bytes(), new.as_bytes()).unwrap().len();
            let all: Vec<usize> = (0..count).collect();
            let with = |picked: &[usize]| with_hunks(old.as_bytes(), new.as_bytes(), picked).unwrap();
            prop_assert_eq!(with(&all), new.as_bytes());
            prop_assert_eq!(with(&[]), old.as_bytes());
        }
    }
}
