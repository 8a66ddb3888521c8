//! Which way each path flows, as data.
//!
//! Lists decide, in this order: what lies in our own staging, **ignore** (stays on its own side,
//! nobody looks at it), **mask** (the same, because it looks like a secret; reported), **output** (the guest
//! writes, the host receives, and nothing of the host's enters the guest), **seed** (the host's
//! version enters the guest once, then each side keeps its own), **held** (the host's version flows to the
//! guest; what the guest changes waits for review, because the host would run it without being asked; in an
//! output folder, too, though nothing flows there).
//! Everything else flows both ways. Masks and held entries are compared without regard to ASCII case, so
//! that `.GIT/config` is no way around on a host that folds case. What else a host's file system takes for one
//! with a name of theirs is held as well (`.g\u{200c}it` on HFS+, see [`fold`](crate::fold)).
//!
//! Not covered: Windows short names (`GIT~1`) of what is not there yet, and bare repositories that a guest lays out in an ordinary folder (`HEAD`, `config`,
//! `objects`, `refs` beside each other), which `git` accepts unless `safe.bareRepository` is `explicit`.

use std::path::Path;

use sandbox_base::ErrorKind;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::gitignore::{self, GitIgnore, IgnoreFile};
use crate::glob::Glob;
use crate::path::RelPath;
use crate::tree::Entry;

/// The names that our own staging folders begin with, wherever they lie.
pub(crate) const STAGING_PREFIX: &str = ".sandbox-sync-";

/// Paths that hold secrets by convention.
const MASK: &[&str] = &[
    ".env",
    ".env.*",
    "*.pem",
    "*.key",
    "*.p12",
    "*.pfx",
    "*.jks",
    "*.keystore",
    "*.kdbx",
    "*.ppk",
    "id_rsa",
    "id_dsa",
    "id_ecdsa",
    "id_ed25519",
    ".netrc",
    ".pgpass",
    ".git-credentials",
    ".ssh",
    ".aws",
    ".gnupg",
    ".kube/config",
    ".docker/config.json",
    ".vault-token",
    ".htpasswd",
];

/// Masked by pattern, yet meant to be shared: templates without values.
const UNMASK: &[&str] = &[".env.example", ".env.sample", ".env.template", ".env.dist"];

/// Paths that a host runs, or that decide what it runs, without being asked.
const HELD: &[&str] = &[
    ".git/hooks",
    ".git/config",
    ".git/config.worktree",
    ".git/info/attributes",
    ".git/commondir",
    ".git/objects/info/alternates",
    ".git/modules/**/hooks",
    ".git/modules/**/config",
    ".git/worktrees/**/config.worktree",
    ".git/worktrees/**/commondir",
    ".git/worktrees/**/gitdir",
    ".gitmodules",
    ".gitattributes",
    ".husky",
    ".envrc",
    ".mise.toml",
    "mise.toml",
    ".mise/config.toml",
    ".vscode/tasks.json",
    ".vscode/settings.json",
    ".vscode/launch.json",
    ".idea",
    ".devcontainer",
    ".claude",
    ".mcp.json",
];

/// Paths that decide how a project is built, tested or worked on: they flow, being what one edits.
const BUILD_INPUT: &[&str] = &[
    ".pre-commit-config.yaml",
    ".cargo/config",
    ".cargo/config.toml",
    "build.rs",
    "rust-toolchain",
    "rust-toolchain.toml",
    "package.json",
    ".npmrc",
    ".yarnrc.yml",
    "Makefile",
    "GNUmakefile",
    "conftest.py",
    "setup.py",
    ".venv/bin",
    "venv/bin",
    "AGENTS.md",
    "CLAUDE.md",
    "GEMINI.md",
    ".cursorrules",
    ".cursor/rules",
    ".github/copilot-instructions.md",
    ".github/workflows",
    ".gitlab-ci.yml",
    ".circleci",
    ".travis.yml",
    "azure-pipelines.yml",
    "Jenkinsfile",
];

/// What a running git owns on each side: two indexes describe two working copies (`S42`).
const SEED: &[&str] = &[
    ".git/index",
    ".git/modules/**/index",
    ".git/worktrees/**/index",
];

/// A lock of one side's git means nothing on the other.
const IGNORE: &[&str] = &[".git/**/*.lock"];

/// What tools make anew on each machine, and often differently.
const GENERATED: &[&str] = &[
    "node_modules",
    "bower_components",
    ".venv",
    "venv",
    "__pycache__",
    ".tox",
    ".nox",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    "target",
    ".gradle",
    ".next",
    ".nuxt",
    ".parcel-cache",
    ".turbo",
    ".terraform",
    "zig-cache",
    ".zig-cache",
];

/// The lists, as patterns: names joined by `/`; `*`, `?` within a name, `**` across names; at any depth
/// unless they begin with `/`; covering what is beneath a match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Lists {
    /// The one name in the roots that a session is about; all others stay on their own side. See [`Lists::with_only`].
    pub only: Option<Vec<u8>>,
    /// Stays on its own side.
    pub ignore: Vec<String>,
    /// What says the same in git's own words; see [`Lists::with_gitignore_of`].
    pub gitignore: Vec<IgnoreFile>,
    /// Never enters the guest, never comes back.
    pub mask: Vec<String>,
    /// Exceptions from `mask`.
    pub unmask: Vec<String>,
    /// Comes out of the guest and never enters it: write-only for the guest, as a folder for results.
    pub output: Vec<String>,
    /// Enters the guest once; then each side keeps its own.
    pub seed: Vec<String>,
    /// Flows to the guest; what the guest changes is not applied but reported.
    pub held: Vec<String>,
    /// Flows both ways; what the guest changes is marked where it is reviewed.
    pub build_input: Vec<String>,
}

impl Default for Lists {
    /// Returns the lists of the threat model: known secrets masked, what runs unasked held, git's index
    /// and locks kept apart, nothing else ignored.
    fn default() -> Self {
        let list = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        Self {
            only: None,
            ignore: list(IGNORE),
            gitignore: Vec::new(),
            mask: list(MASK),
            unmask: list(UNMASK),
            output: Vec::new(),
            seed: list(SEED),
            held: list(HELD),
            build_input: list(BUILD_INPUT),
        }
    }
}

impl Lists {
    /// Has a session be about one file, or folder, of this name in the two roots, and leave all others there alone. Any
    /// number of such sessions share a root; two of them for one name are to each other as two people who edit it.
    #[must_use]
    pub fn with_only(mut self, name: impl Into<Vec<u8>>) -> Self {
        self.only = Some(name.into());
        self
    }

    /// Tells whether a path is kept from the guest by what it is called.
    ///
    /// # Errors
    ///
    /// `Invalid`, with the first pattern that is none.
    pub fn masks(&self, path: &RelPath) -> Result<bool, Error> {
        Ok(Rules::new(self)?.flow_in(Flow::Both, path) == Flow::Masked)
    }

    /// Adds a pattern of paths that stay on their own side.
    #[must_use]
    pub fn with_ignore(mut self, pattern: impl Into<String>) -> Self {
        self.ignore.push(pattern.into());
        self
    }

    /// Leaves on its own side what tools make anew on each machine: `node_modules`, `target`, `.venv`,
    /// `__pycache__` and their like.
    #[must_use]
    pub fn with_ignore_generated(mut self) -> Self {
        self.ignore.extend(Self::generated());
        self
    }

    /// Returns the patterns of [`Lists::with_ignore_generated`].
    pub fn generated() -> impl Iterator<Item = String> {
        GENERATED.iter().map(ToString::to_string)
    }

    /// Leaves on its own side what the `.gitignore` files of a folder name, as they are now: a session goes
    /// by what they said when it was opened, and what a later one ignores it leaves untouched on both
    /// sides. A pattern for folders, as `build/`, counts for files too. What git tracks although it is
    /// ignored is ignored.
    ///
    /// # Errors
    ///
    /// `Exhausted` where the files are longer together than a mebibyte, or lie among more than a million
    /// names; `NotFound` and `PermissionDenied` for the folder.
    pub fn with_gitignore_of(mut self, folder: &Path) -> Result<Self, Error> {
        self.gitignore.extend(gitignore::read(folder)?);
        Ok(self)
    }

    /// Adds a pattern of paths that never enter the guest.
    #[must_use]
    pub fn with_mask(mut self, pattern: impl Into<String>) -> Self {
        self.mask.push(pattern.into());
        self
    }

    /// Tells whether every pattern can be read, before a session is opened with them.
    ///
    /// # Errors
    ///
    /// `Invalid`, with the first pattern that is none: empty, or with an empty name in it.
    pub fn check(&self) -> Result<(), Error> {
        Rules::new(self).map(drop)
    }

    /// Lets paths through that a mask would keep back.
    #[must_use]
    pub fn with_unmask(mut self, pattern: impl Into<String>) -> Self {
        self.unmask.push(pattern.into());
        self
    }

    /// Adds a pattern of paths that come out of the guest and never enter it.
    #[must_use]
    pub fn with_output(mut self, pattern: impl Into<String>) -> Self {
        self.output.push(pattern.into());
        self
    }

    /// Adds a pattern of paths whose changes in the guest wait for review.
    #[must_use]
    pub fn with_held(mut self, pattern: impl Into<String>) -> Self {
        self.held.push(pattern.into());
        self
    }
}

/// Which way one path flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    Both,
    /// Host to guest; the guest's changes are reported.
    Held,
    /// Guest to host.
    Output,
    /// Held, within an output folder: neither way.
    OutputHeld,
    /// Host to guest where the guest has nothing and never had.
    Seed,
    Ignored,
    Masked,
}

/// The lists, ready to be asked.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    only: Option<Vec<u8>>,
    ignore: Vec<Glob>,
    gitignore: GitIgnore,
    mask: Vec<Glob>,
    unmask: Vec<Glob>,
    output: Vec<Glob>,
    seed: Vec<Glob>,
    held: Vec<Glob>,
    build_input: Vec<Glob>,
    /// Folders that lead to a held path: as anything but a folder they would lead elsewhere.
    held_unless_directory: Vec<Glob>,
}

impl Rules {
    pub(crate) fn new(lists: &Lists) -> Result<Self, Error> {
        let held = parse(&lists.held, true)?;
        Ok(Self {
            only: lists.only.clone(),
            ignore: parse(&lists.ignore, false)?,
            gitignore: GitIgnore::new(&lists.gitignore)?,
            mask: parse(&lists.mask, true)?,
            unmask: parse(&lists.unmask, true)?,
            output: parse(&lists.output, false)?,
            seed: parse(&lists.seed, true)?,
            build_input: parse(&lists.build_input, true)?,
            held_unless_directory: held.iter().flat_map(Glob::leading).collect(),
            held,
        })
    }

    /// Returns how `path` flows, given how the folder that holds it does.
    pub(crate) fn flow_in(&self, folder: Flow, path: &RelPath) -> Flow {
        let names: Vec<&[u8]> = path.components().collect();
        let any = |globs: &[Glob]| globs.iter().any(|glob| glob.matches(&names));
        match folder {
            Flow::Ignored | Flow::Masked | Flow::Seed | Flow::OutputHeld => folder,
            _ if path.name().starts_with(STAGING_PREFIX.as_bytes()) => Flow::Ignored,
            _ if self.only.as_deref().is_some_and(|only| names[0] != only) => Flow::Ignored,
            _ if any(&self.ignore) || self.gitignore.ignores(path) => Flow::Ignored,
            _ if any(&self.mask) && !any(&self.unmask) => Flow::Masked,
            Flow::Both | Flow::Output if folder == Flow::Output || any(&self.output) => {
                match any(&self.held) {
                    true => Flow::OutputHeld,
                    false => Flow::Output,
                }
            }
            _ if any(&self.seed) => Flow::Seed,
            Flow::Both if any(&self.held) => Flow::Held,
            folder => folder,
        }
    }

    /// Tells whether the guest's `entry` at `path`, which flows freely by name, must be held for its
    /// type: a link or file in the place of a folder that leads to held paths would put others there.
    pub(crate) fn holds_type(&self, path: &RelPath, entry: &Entry) -> bool {
        let is_link = matches!(entry, Entry::Symlink { .. });
        let names: Vec<&[u8]> = path.components().collect();
        let leads = |glob: &Glob| (is_link || !glob.ends_in_any()) && glob.matches(&names);
        !entry.is_directory() && self.held_unless_directory.iter().any(leads)
    }

    /// Tells whether `path` decides how the project is built, tested or worked on.
    pub(crate) fn is_build_input(&self, path: &RelPath) -> bool {
        let names: Vec<&[u8]> = path.components().collect();
        let covers = |end| {
            self.build_input
                .iter()
                .any(|glob| glob.matches(&names[..end]))
        };
        (1..=names.len()).any(covers)
    }

    /// Starts classifying paths in tree order.
    pub(crate) fn walk(&self) -> FlowWalk<'_> {
        FlowWalk {
            rules: self,
            above: Vec::new(),
        }
    }
}

fn parse(patterns: &[String], fold_case: bool) -> Result<Vec<Glob>, Error> {
    patterns
        .iter()
        .map(|pattern| {
            Glob::parse(pattern, fold_case).ok_or_else(|| {
                let detail = format!("{pattern:?} is no pattern");
                Error::new(ErrorKind::Invalid, "read the path rules", detail)
            })
        })
        .collect()
}

/// Classifies paths that come in order, asking the lists once per path and not once per ancestor.
pub(crate) struct FlowWalk<'a> {
    rules: &'a Rules,
    above: Vec<(RelPath, Flow)>,
}

impl FlowWalk<'_> {
    pub(crate) fn flow(&mut self, path: &RelPath) -> Flow {
        while self
            .above
            .last()
            .is_some_and(|(above, _)| !path.is_beneath(above))
        {
            self.above.pop();
        }
        let flow = match path.parent() {
            Some(parent) if self.above.last().is_none_or(|(above, _)| *above != parent) => {
                self.flow(&parent)
            }
            _ => self.above.last().map_or(Flow::Both, |(_, flow)| *flow),
        };
        let flow = self.rules.flow_in(flow, path);
        self.above.push((path.clone(), flow));
        flow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(path: &str) -> Flow {
        let rules = Rules::new(&Lists::default()).unwrap();
        rules.walk().flow(&RelPath::new(path).unwrap())
    }

    #[test]
    fn s41_what_runs_unasked_is_held() {
        for path in [
            ".git/hooks/pre-commit",
            ".git/config",
            "sub/.git/config",
            ".GIT/Config",
            ".husky/_/x",
            ".envrc",
            ".vscode/tasks.json",
            ".idea/workspace.xml",
            ".claude/settings.json",
            ".git/modules/a/b/hooks/post-checkout",
        ] {
            assert_eq!(flow(path), Flow::Held, "{path}");
        }
        for path in [
            ".git/HEAD",
            ".git/refs/heads/main",
            ".vscode/extensions.json",
            "hooks/x",
        ] {
            assert_eq!(flow(path), Flow::Both, "{path}");
        }
    }

    #[test]
    fn s41_a_link_in_the_place_of_a_held_folder_is_held() {
        let rules = Rules::new(&Lists::default()).unwrap();
        let link = Entry::Symlink {
            target: b"evil"[..].into(),
        };
        for path in [
            ".git",
            "a/.git",
            ".vscode",
            ".git/modules",
            ".git/modules/x",
            ".git/info",
        ] {
            let path = RelPath::new(path).unwrap();
            assert!(rules.holds_type(&path, &link), "{path}");
            assert!(!rules.holds_type(&path, &Entry::Directory), "{path}");
        }
        let file = Entry::File {
            digest: crate::tree::Digest::of(b""),
            size: 0,
            executable: false,
        };
        assert!(
            rules.holds_type(&RelPath::new(".git").unwrap(), &file),
            "gitdir: elsewhere"
        );
        assert!(!rules.holds_type(&RelPath::new(".git/modules/x/HEAD").unwrap(), &file));
        assert!(!rules.holds_type(&RelPath::new("src").unwrap(), &link));
    }

    #[test]
    fn secrets_are_masked_and_templates_are_not() {
        for path in [
            ".env",
            "a/.env.local",
            "k/server.PEM",
            ".ssh/known_hosts",
            "id_rsa",
        ] {
            assert_eq!(flow(path), Flow::Masked, "{path}");
        }
        assert_eq!(flow(".env.example"), Flow::Both);
    }

    #[test]
    fn s42_index_and_locks_stay_apart() {
        assert_eq!(flow(".git/index"), Flow::Seed);
        assert_eq!(flow(".git/index.lock"), Flow::Ignored);
        assert_eq!(flow(".git/refs/heads/main.lock"), Flow::Ignored);
        assert_eq!(flow("Cargo.lock"), Flow::Both);
    }

    #[test]
    fn an_output_folder_is_one_way_but_for_what_runs_or_is_secret() {
        let lists = Lists::default().with_output("/out");
        let rules = Rules::new(&lists).unwrap();
        for (path, flow) in [
            ("out", Flow::Output),
            ("out/a/b", Flow::Output),
            ("out/.git/index", Flow::Output),
            ("out/.git/hooks/pre-commit", Flow::OutputHeld),
            ("out/.env", Flow::Masked),
            ("a/out", Flow::Both),
        ] {
            assert_eq!(
                rules.walk().flow(&RelPath::new(path).unwrap()),
                flow,
                "{path}"
            );
        }
    }

    #[test]
    fn s48_our_own_staging_is_never_looked_at() {
        assert_eq!(flow("a/.sandbox-sync-1/x"), Flow::Ignored);
    }

    #[test]
    fn s44_what_is_made_anew_stays_on_its_side_if_that_is_asked_for() {
        let rules = Rules::new(&Lists::default().with_ignore_generated()).unwrap();
        for path in ["node_modules", "a/target", ".venv"] {
            let path_of = RelPath::new(path).unwrap();
            assert_eq!(rules.walk().flow(&path_of), Flow::Ignored, "{path}");
            assert_eq!(flow(path), Flow::Both, "{path}");
        }
    }

    #[test]
    fn a_bad_pattern_is_an_error_and_not_an_empty_list() {
        let error = Rules::new(&Lists::default().with_mask("a//b")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
}
