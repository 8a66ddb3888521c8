//! Rules that are ready made.
//!
//! | preset | allows |
//! |---|---|
//! | [`Preset::Locked`] | nothing |
//! | [`Preset::Balanced`] | [`CURATED`] hosts, and the package registries that this host itself uses |
//! | [`Preset::Open`] | every public address on ports 80 and 443 |
//!
//! The curated list names single hosts: model interfaces, and where source code is kept. It has no wildcard, and no
//! host that hands out storage to whoever asks for it. It is a convenience, not a wall: whoever may push to a
//! source host, or put a question to a model, can carry data there. It changes with [`CURATED_VERSION`] only.
//!
//! Which package registries there are is not for this crate to say: `registry` reads what the host's own package
//! managers are configured for, mirrors included. It is pure: it gets texts, and
//! [`registries`](crate::registries) reads the files and asks the tools.

mod registry;
#[cfg(test)]
mod tests;

use std::{fmt, str::FromStr};

pub(crate) use registry::default_of_help;
pub use registry::{Manager, Note, Registries, Registry};

use crate::{Error, policy::RuleSet};

/// The version of [`CURATED`]: it rises whenever a host comes or goes.
pub const CURATED_VERSION: u32 = 1;

/// What [`Preset::Balanced`] allows wherever it is used: each host with what it is for.
pub const CURATED: &[(&str, &str)] = &[
    ("api.anthropic.com", "Anthropic, model interface"),
    ("api.openai.com", "OpenAI, model interface"),
    (
        "generativelanguage.googleapis.com",
        "Google Gemini, model interface",
    ),
    ("api.mistral.ai", "Mistral, model interface"),
    ("api.deepseek.com", "DeepSeek, model interface"),
    ("api.x.ai", "xAI, model interface"),
    ("api.groq.com", "Groq, model interface"),
    ("openrouter.ai", "OpenRouter, model interface"),
    ("github.com", "GitHub, repositories"),
    ("api.github.com", "GitHub, interface"),
    ("codeload.github.com", "GitHub, archives of repositories"),
    ("raw.githubusercontent.com", "GitHub, single files"),
    ("gitlab.com", "GitLab, repositories and interface"),
    ("bitbucket.org", "Bitbucket, repositories"),
    ("api.bitbucket.org", "Bitbucket, interface"),
    ("codeberg.org", "Codeberg, repositories and interface"),
];

/// A ready-made set of rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Preset {
    /// Nothing is allowed.
    Locked,
    /// Models, source hosts and this host's package registries are allowed.
    Balanced,
    /// Everything public is allowed.
    Open,
}

impl Preset {
    /// All presets, the narrowest first.
    pub const ALL: [Self; 3] = [Self::Locked, Self::Balanced, Self::Open];

    /// Returns the rules. Registries matter to [`Balanced`](Self::Balanced) only.
    pub fn rules(self, registries: &Registries) -> RuleSet {
        match self {
            Self::Locked => RuleSet::deny(),
            Self::Open => RuleSet::open(),
            Self::Balanced => balanced(registries),
        }
    }

    /// Returns the name, as [`FromStr`] reads it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Locked => "locked",
            Self::Balanced => "balanced",
            Self::Open => "open",
        }
    }
}

fn balanced(registries: &Registries) -> RuleSet {
    let curated = CURATED.iter().map(|(host, _)| (*host).to_owned());
    let registries = registries.found().iter().map(Registry::pattern);
    curated
        .chain(registries)
        .fold(RuleSet::deny(), |rules, host| {
            rules
                .allow(&host)
                .expect("the list and registries hold hosts in canonical form, and public ones")
        })
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Preset {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let found = Self::ALL.into_iter().find(|preset| preset.as_str() == text);
        found.ok_or_else(|| {
            Error::invalid(
                format!("find the preset `{}`", text.escape_debug()),
                "there are `locked`, `balanced` and `open`",
            )
        })
    }
}
