//! Where state, cache and sockets live.
//!
//! One value, passed down: no crate asks the environment by itself, so that tests and embedders never
//! share anything by accident. The defaults follow the XDG base directory specification.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The folders that a sandbox instance uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Dirs {
    /// What must outlive a reboot: one folder per sandbox.
    pub state: PathBuf,
    /// What can be made again: images, kernels, templates, the helper binary.
    pub cache: PathBuf,
    /// What the user writes: rules for all sandboxes.
    pub config: PathBuf,
    /// What lives as long as its process: sockets. Kept short, because a socket's path has 108 bytes.
    pub runtime: PathBuf,
}

impl Dirs {
    /// Puts all of them beneath one folder. For tests, and for embedders who keep their own place.
    pub fn beneath(root: impl AsRef<Path>) -> Self {
        let root = root.as_ref();
        Self {
            state: root.join("state"),
            cache: root.join("cache"),
            config: root.join("config"),
            runtime: root.join("run"),
        }
    }

    /// Takes the places that the XDG base directory specification names, asking `variable` for the
    /// environment: `$XDG_STATE_HOME/sandbox`, `$XDG_CACHE_HOME/sandbox`, `$XDG_CONFIG_HOME/sandbox`,
    /// `$XDG_RUNTIME_DIR/sandbox`, or their stated defaults beneath `$HOME`. Without a runtime folder, sockets
    /// live with the state. Relative values are ignored, as the specification asks. Answers `None` without
    /// `$HOME`.
    pub fn from_environment(variable: impl Fn(&str) -> Option<OsString>) -> Option<Self> {
        let absolute = |name: &str| {
            variable(name)
                .map(PathBuf::from)
                .filter(|p| p.is_absolute())
        };
        let home = absolute("HOME").or_else(|| absolute("USERPROFILE"));
        let or_home = |name: &str, rest: &str| {
            absolute(name)
                .or_else(|| Some(home.as_ref()?.join(rest)))
                .map(|p| p.join("sandbox"))
        };
        let state = or_home("XDG_STATE_HOME", ".local/state")?;
        let cache = or_home("XDG_CACHE_HOME", ".cache")?;
        let config = or_home("XDG_CONFIG_HOME", ".config")?;
        let runtime =
            absolute("XDG_RUNTIME_DIR").map_or_else(|| state.join("run"), |p| p.join("sandbox"));
        Some(Self {
            state,
            cache,
            config,
            runtime,
        })
    }

    /// Replaces the state folder.
    #[must_use]
    pub fn with_state(mut self, path: impl Into<PathBuf>) -> Self {
        self.state = path.into();
        self
    }

    /// Replaces the cache folder.
    #[must_use]
    pub fn with_cache(mut self, path: impl Into<PathBuf>) -> Self {
        self.cache = path.into();
        self
    }

    /// Replaces the folder of what the user writes.
    #[must_use]
    pub fn with_config(mut self, path: impl Into<PathBuf>) -> Self {
        self.config = path.into();
        self
    }

    /// Replaces the folder for sockets.
    #[must_use]
    pub fn with_runtime(mut self, path: impl Into<PathBuf>) -> Self {
        self.runtime = path.into();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(pairs: &[(&str, &str)]) -> Option<Dirs> {
        let find = |name: &str| {
            pairs
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, value)| OsString::from(value))
        };
        Dirs::from_environment(find)
    }

    #[test]
    fn xdg_variables_win_over_home() {
        let dirs = from(&[("HOME", "/home/me"), ("XDG_CACHE_HOME", "/fast")]).unwrap();
        assert_eq!(dirs.cache, Path::new("/fast/sandbox"));
        assert_eq!(dirs.state, Path::new("/home/me/.local/state/sandbox"));
        assert_eq!(dirs.config, Path::new("/home/me/.config/sandbox"));
        assert_eq!(dirs.runtime, dirs.state.join("run"));
    }

    #[test]
    fn relative_values_are_ignored() {
        let dirs = from(&[("HOME", "/home/me"), ("XDG_STATE_HOME", "here")]).unwrap();
        assert_eq!(dirs.state, Path::new("/home/me/.local/state/sandbox"));
    }

    #[test]
    fn without_a_home_there_is_no_answer() {
        assert_eq!(from(&[]), None);
    }
}
