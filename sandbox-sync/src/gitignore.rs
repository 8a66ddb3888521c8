//! The `.gitignore` files of a folder, as rules of a workspace.
//!
//! They are read once, before a session or a snapshot, and travel as text: what they say cannot change while
//! a session runs, so a file that is edited meanwhile never reads as a deletion (`S29`); the next session
//! goes by it. The guest may have written them, so they are bounded, and all they can do is to leave paths
//! alone.
//!
//! Patterns mean what they mean to git, with two exceptions: one that git applies to folders only, as
//! `build/`, is applied to files of that name too, because a path has to mean the same on both sides
//! whatever is there; and what git tracks although it is ignored is ignored here. `.git/info/exclude` and
//! the user's own lists are not read.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use sandbox_base::ErrorKind;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::path::RelPath;

/// How long all files together may be, in bytes, and how many names are looked at to find them.
const BYTES: u64 = 1 << 20;
const NAMES: usize = 1_000_000;

/// One `.gitignore`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct IgnoreFile {
    /// The folder that it lies in; `None` for the root.
    pub folder: Option<RelPath>,
    /// What it says.
    pub text: String,
}

/// The files, ready to be asked, those of the deepest folders first: they decide first.
#[derive(Debug, Clone, Default)]
pub(crate) struct GitIgnore(Vec<(Option<RelPath>, Gitignore)>);

impl GitIgnore {
    pub(crate) fn new(files: &[IgnoreFile]) -> Result<Self, Error> {
        let mut all = Self::default();
        for file in files {
            all.add(file)?;
        }
        Ok(all)
    }

    fn add(&mut self, file: &IgnoreFile) -> Result<(), Error> {
        let mut builder = GitignoreBuilder::new("");
        for line in file.text.lines() {
            // A line that is no pattern is none to git either.
            if let Err(error) = builder.add_line(None, line) {
                tracing::debug!(%error, "a line of a .gitignore is no pattern");
            }
        }
        let built = builder.build().map_err(|error| {
            Error::new(ErrorKind::Invalid, "read a .gitignore", error.to_string())
        })?;
        let depth = |folder: &Option<RelPath>| folder.as_ref().map_or(0, RelPath::depth);
        let at = self
            .0
            .partition_point(|(folder, _)| depth(folder) >= depth(&file.folder));
        self.0.insert(at, (file.folder.clone(), built));
        Ok(())
    }

    /// Tells whether `path`, whose folder is not ignored, is ignored.
    pub(crate) fn ignores(&self, path: &RelPath) -> bool {
        if self.0.is_empty() || path.components().any(|name| name == b".git") {
            return false;
        }
        let holds = |(folder, rules): &(Option<RelPath>, Gitignore)| {
            let rest = match folder {
                None => path.as_bytes(),
                Some(folder) if path.is_beneath(folder) => {
                    &path.as_bytes()[folder.as_bytes().len() + 1..]
                }
                Some(_) => return None,
            };
            match rules.matched(native(rest), true) {
                Match::None => None,
                Match::Ignore(_) => Some(true),
                Match::Whitelist(_) => Some(false),
            }
        };
        self.0.iter().find_map(holds).unwrap_or(false)
    }
}

#[cfg(unix)]
fn native(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    std::ffi::OsStr::from_bytes(bytes).into()
}

#[cfg(not(unix))]
fn native(bytes: &[u8]) -> PathBuf {
    String::from_utf8_lossy(bytes).into_owned().into()
}

/// Reads the files beneath `root`, those in ignored folders aside, whose content git does not look at either.
///
/// # Errors
///
/// `Exhausted` where they are longer together than a mebibyte, or a million names do not suffice to find
/// them; `NotFound` and `PermissionDenied` for the root. Folders within it that cannot be read have none.
pub(crate) fn read(root: &Path) -> Result<Vec<IgnoreFile>, Error> {
    let failed = |error| Error::io("read the .gitignore files", error);
    fs::read_dir(root).map_err(failed)?;
    let (mut files, mut rules) = (Vec::new(), GitIgnore::default());
    let (mut bytes, mut names) = (BYTES, NAMES);
    let mut folders: Vec<Option<RelPath>> = vec![None];
    while let Some(folder) = folders.pop() {
        let path = folder.as_ref().map_or_else(
            || root.to_owned(),
            |folder| root.join(native(folder.as_bytes())),
        );
        if let Some(text) = text(&path.join(".gitignore"), &mut bytes).map_err(failed)? {
            let file = IgnoreFile {
                folder: folder.clone(),
                text,
            };
            rules.add(&file)?;
            files.push(file);
        }
        for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
            names = names
                .checked_sub(1)
                .ok_or_else(|| failed(io::ErrorKind::QuotaExceeded.into()))?;
            let Ok(below) = RelPath::join(folder.as_ref(), entry.file_name().as_encoded_bytes())
            else {
                continue;
            };
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_folder && below.name() != b".git" && !rules.ignores(&below) {
                folders.push(Some(below));
            }
        }
    }
    Ok(files)
}

/// Reads one file, if it is one; a link is none, as to git.
fn text(path: &Path, left: &mut u64) -> io::Result<Option<String>> {
    if !fs::symlink_metadata(path).is_ok_and(|facts| facts.is_file()) {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    let read = fs::File::open(path)?
        .take(*left + 1)
        .read_to_end(&mut bytes)?;
    *left = left
        .checked_sub(read as u64)
        .ok_or(io::ErrorKind::QuotaExceeded)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(files: &[(&str, &str)]) -> GitIgnore {
        let file = |(folder, text): &(&str, &str)| IgnoreFile {
            folder: RelPath::new(folder).ok(),
            text: (*text).to_owned(),
        };
        GitIgnore::new(&files.iter().map(file).collect::<Vec<_>>()).unwrap()
    }

    #[track_caller]
    fn check(rules: &GitIgnore, path: &str, expected: bool) {
        let path = RelPath::new(path).unwrap();
        assert_eq!(rules.ignores(&path), expected, "{path}");
    }

    #[test]
    fn patterns_mean_what_they_mean_to_git() {
        let rules = rules(&[
            (
                "",
                "# no pattern\n*.o\n/target\nbuild/\n!keep.o\ndoc/*.txt\n[ab]*.log\n\\#x\nc/**/d\n",
            ),
            ("sub", "*.tmp\n!*.o\n"),
        ]);
        for path in [
            "x.o",
            "a/x.o",
            "target",
            "build",
            "a/build",
            "doc/x.txt",
            "a1.log",
            "#x",
            "c/1/2/d",
            "sub/x.tmp",
        ] {
            check(&rules, path, true);
        }
        for path in [
            "keep.o",
            "a/target",
            "a/doc/x.txt",
            "doc/a/x.txt",
            "c1.log",
            "x.tmp",
            "sub/x.o",
            "no pattern",
        ] {
            check(&rules, path, false);
        }
    }

    #[test]
    fn a_repository_is_never_ignored() {
        let rules = rules(&[("", "*\n")]);
        check(&rules, ".git", false);
        check(&rules, ".git/HEAD", false);
        check(&rules, "a", true);
    }

    #[test]
    fn files_are_found_where_git_looks() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(".gitignore", "ignored/\n");
        write("a/b/.gitignore", "x\n");
        write("ignored/.gitignore", "y\n");
        write(".git/.gitignore", "z\n");
        fs::create_dir(folder.path().join("c")).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink("../a/b/.gitignore", folder.path().join("c/.gitignore"))
            .unwrap();
        let mut found: Vec<_> = read(folder.path())
            .unwrap()
            .into_iter()
            .map(|file| file.text)
            .collect();
        found.sort();
        assert_eq!(found, ["ignored/\n", "x\n"]);
    }

    #[test]
    fn what_is_too_long_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(".gitignore"), "x\n".repeat(1 << 20)).unwrap();
        assert_eq!(
            read(folder.path()).unwrap_err().kind(),
            ErrorKind::Exhausted
        );
        assert!(read(&folder.path().join("gone")).is_err());
    }
}
