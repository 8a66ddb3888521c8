//! Rules above a sandbox's own: those of an organization and of a user ([`Layers`] says how they add up).
//!
//! They are read when the sandbox starts and when it is told to read them again; what they forbid, no rule of the
//! sandbox allows. A file that is not there holds no rules; one that is there and cannot be read stops the start, and
//! leaves what is in force as it is.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sandbox_base::{Error, ErrorKind};
use sandbox_net::EgressPolicy;
use sandbox_net::policy::{Layers, RuleSet};
use serde::{Deserialize, Serialize};

/// The longest file of rules, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// Where the rules of an organization or a user are.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PolicySource {
    /// Here. A detached sandbox writes them down.
    Rules(Box<RuleSet>),
    /// In a file, TOML unless its name ends with `.json`, in the form of [`RuleSet::from_toml`]. One that is not
    /// there holds no rules.
    File(PathBuf),
}

impl PolicySource {
    /// Names a file; its path is made absolute.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self::File(std::path::absolute(&path).unwrap_or(path))
    }

    /// Reads the rules as they are now; `None` for a file that is not there.
    ///
    /// # Errors
    ///
    /// `Invalid` with the file, the line and the column of what is wrong, and what the file system answers.
    pub fn load(&self) -> Result<Option<RuleSet>, Error> {
        match self {
            Self::Rules(rules) => Ok(Some(RuleSet::clone(rules))),
            Self::File(path) => read(path),
        }
    }
}

impl From<RuleSet> for PolicySource {
    fn from(rules: RuleSet) -> Self {
        Self::Rules(Box::new(rules))
    }
}

fn read(path: &Path) -> Result<Option<RuleSet>, Error> {
    let operation = || format!("read the rules of {}", path.display());
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(operation(), error)),
    };
    let mut text = String::new();
    let read = file.take(MAX_FILE + 1).read_to_string(&mut text);
    read.map_err(|error| Error::io(operation(), error))?;
    if text.len() as u64 > MAX_FILE {
        return Err(Error::new(ErrorKind::Invalid, operation()).with_detail("it is too long"));
    }
    let read = match path
        .extension()
        .is_some_and(|extension| extension == "json")
    {
        true => RuleSet::from_json(&text),
        false => RuleSet::from_toml(&text),
    };
    read.map(Some).map_err(|error| {
        let mut why = error.to_string();
        if let Some(cause) = std::error::Error::source(&error) {
            why += &format!(": {cause}");
        }
        Error::new(error.kind(), operation()).with_detail(why)
    })
}

/// The rules above a sandbox's own, as they are written down.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Above {
    pub(crate) organization: Option<PolicySource>,
    pub(crate) user: Option<PolicySource>,
}

impl Above {
    /// Reads all of them as they are now.
    pub(crate) fn load(&self) -> Result<Loaded, Error> {
        let load = |source: &Option<PolicySource>| {
            let rules = source.as_ref().map_or(Ok(None), PolicySource::load);
            rules.map(|rules| rules.map(Arc::new))
        };
        Ok(Loaded {
            organization: load(&self.organization)?,
            user: load(&self.user)?,
        })
    }
}

/// The rules above a sandbox's own. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Loaded {
    organization: Option<Arc<RuleSet>>,
    user: Option<Arc<RuleSet>>,
}

impl Loaded {
    /// Returns all layers.
    pub(crate) fn layers(&self, sandbox: &RuleSet) -> Layers {
        let mut layers = Layers::new();
        if let Some(rules) = &self.organization {
            layers = layers.organization(Arc::clone(rules));
        }
        if let Some(rules) = &self.user {
            layers = layers.user(Arc::clone(rules));
        }
        layers.sandbox(sandbox.clone())
    }

    /// Returns what is enforced: the sandbox's own rules where there are no others.
    pub(crate) fn policy(&self, sandbox: &RuleSet) -> Arc<dyn EgressPolicy> {
        match (&self.organization, &self.user) {
            (None, None) => Arc::new(sandbox.clone()),
            _ => Arc::new(self.layers(sandbox)),
        }
    }

    /// Tells whether a rule of any layer names methods or paths.
    pub(crate) fn judges_requests(&self, sandbox: &RuleSet) -> bool {
        let above = [&self.organization, &self.user].into_iter().flatten();
        let mut all = above.map(|rules| &**rules).chain([sandbox]);
        all.any(RuleSet::judges_requests)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_net::policy::{Carriage, Facts, Layer, Mode};

    fn denied_by(policy: &dyn EgressPolicy, target: &str) -> Option<Layer> {
        let target = target.parse().unwrap();
        let verdict = policy.judge(&Facts::new(&target, Carriage::Tunnel));
        verdict.denial().map(|denial| denial.layer().unwrap())
    }

    #[test]
    fn e48_a_sandboxs_allow_lifts_no_block_above_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("policy.toml");
        std::fs::write(&file, "block = ['evil.example.com']\n").unwrap();
        let user = RuleSet::deny().block("late.example.com").unwrap();
        let above = Above {
            organization: Some(PolicySource::file(&file)),
            user: Some(user.into()),
        };
        let sandbox = RuleSet::new(Mode::Allow).allow("*.example.com").unwrap();
        let policy = above.load().unwrap().policy(&sandbox);
        let by = |target| denied_by(&*policy, target);
        assert_eq!(by("evil.example.com:443"), Some(Layer::Organization));
        assert_eq!(by("late.example.com:443"), Some(Layer::User));
        assert_eq!(by("good.example.com:443"), None);
        // A file may be made later, and counts once it is read again.
        let none = Above {
            organization: Some(PolicySource::file(folder.path().join("none.toml"))),
            user: None,
        };
        assert!(none.load().unwrap().policy(&sandbox).rules().is_some());
        let written = serde_json::to_string(&above).unwrap();
        let read: Above = serde_json::from_str(&written).unwrap();
        let policy = read.load().unwrap().policy(&sandbox);
        assert_eq!(
            denied_by(&*policy, "late.example.com:443"),
            Some(Layer::User)
        );
    }

    #[test]
    fn e58_requests_are_judged_if_any_layer_says_so() {
        let plain = RuleSet::deny().allow("a.com").unwrap();
        let text = "block = [{ host = 'a.com', methods = ['DELETE'] }]";
        let judging = || Some(RuleSet::from_toml(text).unwrap().into());
        let above = |organization, user| Above { organization, user }.load().unwrap();
        assert!(!above(None, None).judges_requests(&plain));
        assert!(above(judging(), None).judges_requests(&plain));
        assert!(above(None, judging()).judges_requests(&plain));
        assert!(above(None, None).judges_requests(&RuleSet::from_toml(text).unwrap()));
    }

    #[test]
    fn e47_a_file_that_cannot_be_read_names_itself_and_the_line() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text, expected) in [
            ("a.toml", "block = []\nallow = ['*']\n", "line 2"),
            ("b.toml", "blocked = ['a.com']\n", "line 1"),
            ("c.json", "{\"mode\": \"deny\",\n\"allow\": [7]}", "line 2"),
            ("d.toml", "mode = \n", "line 1"),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            let error = PolicySource::file(&path).load().unwrap_err();
            let shown = error.to_string();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{shown}");
            assert!(
                error.operation().contains(path.to_str().unwrap()),
                "{shown}"
            );
            assert!(error.detail().unwrap().contains(expected), "{error:?}");
        }
        let path = folder.path().join("e.toml");
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(PolicySource::file(&path).load().is_err());
        assert!(
            PolicySource::file(folder.path()).load().is_err(),
            "a folder"
        );
    }
}
