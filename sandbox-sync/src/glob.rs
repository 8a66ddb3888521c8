//! Patterns over paths, for the ignore, mask and held lists.
//!
//! A pattern is names joined by `/`. `*` stands for any part of a name, `?` for one byte, `**` for any
//! number of names. A pattern matches at any depth; a leading `/` ties it to the root. What is beneath a
//! match is covered too, which is the business of [`rules`](crate::rules). There are no classes, no
//! braces and no negation: a list that protects should be readable at a glance.

/// One pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Glob {
    parts: Vec<Part>,
    fold_case: bool,
    /// The last part is one name alone, or two that differ by case.
    ends_plain: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// `**`
    AnyNames,
    Name(Vec<u8>),
}

impl Glob {
    /// Reads a pattern; `None` where it is empty or has an empty name in it.
    pub(crate) fn parse(pattern: &str, fold_case: bool) -> Option<Self> {
        let (anchored, pattern) = match pattern.strip_prefix('/') {
            Some(rest) => (true, rest),
            None => (false, pattern),
        };
        let pattern = pattern.strip_suffix('/').unwrap_or(pattern);
        let mut parts = if anchored {
            vec![]
        } else {
            vec![Part::AnyNames]
        };
        for name in pattern.split('/') {
            match name {
                "" => return None,
                "**" => parts.push(Part::AnyNames),
                name if fold_case => parts.push(Part::Name(name.to_ascii_lowercase().into())),
                name => parts.push(Part::Name(name.into())),
            }
        }
        Some(Self::of(parts, fold_case))
    }

    fn of(parts: Vec<Part>, fold_case: bool) -> Self {
        let plain = |name: &Vec<u8>| !name.iter().any(|byte| matches!(byte, b'*' | b'?'));
        let ends_plain = matches!(parts.last(), Some(Part::Name(name)) if plain(name));
        Self {
            parts,
            fold_case,
            ends_plain,
        }
    }

    /// Tells whether the pattern names exactly the path of these names.
    pub(crate) fn matches(&self, names: &[&[u8]]) -> bool {
        self.may_match(names) && names_match(&self.parts, names, self.fold_case)
    }

    /// Rules most paths out by their last name, without looking at the rest.
    fn may_match(&self, names: &[&[u8]]) -> bool {
        match (self.parts.last(), names.last()) {
            (Some(Part::Name(pattern)), Some(name)) if self.ends_plain => {
                pattern.len() == name.len() && name_matches(pattern, name, self.fold_case)
            }
            _ => true,
        }
    }

    /// Tells whether the pattern ends in `**` and so names everything beneath a folder.
    pub(crate) fn ends_in_any(&self) -> bool {
        self.parts.last() == Some(&Part::AnyNames)
    }

    /// Returns the patterns of the folders that lead to a match, outermost first.
    pub(crate) fn leading(&self) -> impl Iterator<Item = Self> {
        (1..self.parts.len())
            .filter(|end| self.parts[..*end] != [Part::AnyNames])
            .map(|end| Self::of(self.parts[..end].to_vec(), self.fold_case))
    }
}

fn names_match(parts: &[Part], names: &[&[u8]], fold: bool) -> bool {
    match (parts, names) {
        ([], []) => true,
        ([Part::AnyNames], _) => true,
        // The usual pattern, one or a few names at any depth, is decided by its last name.
        ([Part::AnyNames, rest @ ..], _) if !rest.contains(&Part::AnyNames) => names
            .len()
            .checked_sub(rest.len())
            .is_some_and(|skip| names_match(rest, &names[skip..], fold)),
        ([Part::AnyNames, rest @ ..], _) => {
            (0..=names.len()).any(|skip| names_match(rest, &names[skip..], fold))
        }
        ([Part::Name(pattern), rest @ ..], [name, beneath @ ..]) => {
            name_matches(pattern, name, fold) && names_match(rest, beneath, fold)
        }
        _ => false,
    }
}

/// Matches one name in time linear in its length for each `*`; a pattern to `fold` is in lower case.
fn name_matches(pattern: &[u8], name: &[u8], fold: bool) -> bool {
    let byte_at = |n: usize| {
        if fold {
            name[n].to_ascii_lowercase()
        } else {
            name[n]
        }
    };
    let (mut p, mut n) = (0, 0);
    let mut retry = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p, n));
                p += 1;
            }
            Some(byte) if *byte == b'?' || *byte == byte_at(n) => {
                p += 1;
                n += 1;
            }
            _ => match &mut retry {
                Some((star, from)) => {
                    *from += 1;
                    (p, n) = (*star + 1, *from);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::RelPath;

    #[track_caller]
    fn check(pattern: &str, path: &str, expected: bool) {
        let glob = Glob::parse(pattern, true).unwrap();
        let path = RelPath::new(path).unwrap();
        let names: Vec<_> = path.components().collect();
        assert_eq!(glob.matches(&names), expected, "{pattern} on {path}");
    }

    #[test]
    fn patterns_match_at_any_depth_unless_anchored() {
        check(".env", ".env", true);
        check(".env", "a/b/.ENV", true);
        check("/.env", "a/.env", false);
        check("*.pem", "a/x.pem", true);
        check("*.pem", "a/pem", false);
        check(".git/hooks/*", "x/.git/hooks/pre-commit", true);
        check(".git/hooks", "x/.git/hooks/pre-commit", false);
        check(".git/modules/**/config", ".git/modules/a/b/config", true);
        check(".git/modules/**/config", ".git/modules/config", true);
        check("a*b*c", "aXbXbc", true);
        check("a?c", "ac", false);
    }

    #[test]
    fn an_empty_name_is_no_pattern() {
        for pattern in ["", "/", "a//b"] {
            assert_eq!(Glob::parse(pattern, false), None, "{pattern}");
        }
    }
}
