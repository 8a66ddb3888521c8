//! Services that agents use, with their variables, hosts and places, as data.

use crate::{
    Error,
    credentials::{Credential, Grant, Place, Source},
};

/// A service whose credential needs no more than its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Service {
    /// The name to choose it by.
    pub name: &'static str,
    /// The variables in which its clients look for the credential, the usual one first.
    pub variables: &'static [&'static str],
    /// The hosts that take it, on port 443.
    pub hosts: &'static [&'static str],
    /// What its clients expect a credential to begin with.
    pub prefix: &'static str,
    places: &'static [Stand],
}

/// A [`Place`] as a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stand {
    Header(&'static str),
    Bearer,
    Scheme(&'static str),
    Basic,
    Query(&'static str),
}

impl Stand {
    fn place(self) -> Place {
        match self {
            Self::Header(name) => Place::Header(name.to_owned()),
            Self::Bearer => Place::Bearer,
            Self::Scheme(scheme) => Place::Scheme(scheme.to_owned()),
            Self::Basic => Place::Basic,
            Self::Query(name) => Place::Query(name.to_owned()),
        }
    }
}

/// A service that takes `Authorization: Bearer` at one host.
const fn bearer(
    name: &'static str,
    variables: &'static [&'static str],
    hosts: &'static [&'static str],
    prefix: &'static str,
) -> Service {
    Service {
        name,
        variables,
        hosts,
        prefix,
        places: &[Stand::Bearer],
    }
}

const ALL: [Service; 8] = [
    Service {
        name: "anthropic",
        variables: &["ANTHROPIC_API_KEY"],
        hosts: &["api.anthropic.com"],
        prefix: "sk-ant-",
        places: &[Stand::Header("x-api-key"), Stand::Bearer],
    },
    bearer("openai", &["OPENAI_API_KEY"], &["api.openai.com"], "sk-"),
    Service {
        name: "gemini",
        variables: &["GEMINI_API_KEY", "GOOGLE_API_KEY"],
        hosts: &["generativelanguage.googleapis.com"],
        prefix: "AIza",
        // Bearer is for its endpoint that speaks OpenAI's language.
        places: &[
            Stand::Header("x-goog-api-key"),
            Stand::Query("key"),
            Stand::Bearer,
        ],
    },
    Service {
        name: "github",
        variables: &["GITHUB_TOKEN", "GH_TOKEN"],
        hosts: &["api.github.com", "github.com", "uploads.github.com"],
        prefix: "ghp_",
        // git itself sends it as a password.
        places: &[Stand::Bearer, Stand::Scheme("token"), Stand::Basic],
    },
    bearer("groq", &["GROQ_API_KEY"], &["api.groq.com"], "gsk_"),
    bearer("mistral", &["MISTRAL_API_KEY"], &["api.mistral.ai"], ""),
    bearer(
        "openrouter",
        &["OPENROUTER_API_KEY"],
        &["openrouter.ai"],
        "sk-or-",
    ),
    bearer("xai", &["XAI_API_KEY"], &["api.x.ai"], "xai-"),
];

impl Service {
    /// Lists the services, by name.
    pub fn all() -> &'static [Service] {
        &ALL
    }

    /// Finds a service by its name.
    pub fn named(name: &str) -> Option<&'static Service> {
        ALL.iter().find(|service| service.name == name)
    }

    /// Makes its credential from a source, granted to its hosts, its placeholder in its variables.
    ///
    /// # Errors
    ///
    /// None for the services of this table.
    pub fn credential(&self, source: Source) -> Result<Credential, Error> {
        let mut credential = Credential::new(self.name, source).prefix(self.prefix);
        for host in self.hosts {
            let places = self.places.iter().map(|stand| stand.place());
            credential = credential.grant(Grant::new(host, places)?);
        }
        let variables = self.variables.iter();
        Ok(variables.fold(credential, |credential, name| credential.variable(*name)))
    }

    /// Makes its credential from this process's own variable of the usual name.
    ///
    /// # Errors
    ///
    /// As [`credential`](Self::credential).
    pub fn from_environment(&self) -> Result<Credential, Error> {
        let name = self.variables.first().copied().unwrap_or_default();
        self.credential(Source::Environment(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_makes_a_credential_that_can_be_written_down() {
        for service in Service::all() {
            let credential = service.from_environment().unwrap();
            let text = serde_json::to_string(&credential).unwrap();
            let read: Credential = serde_json::from_str(&text).unwrap();
            assert_eq!(read.grants(), credential.grants(), "{text}");
            assert_eq!(Service::named(service.name), Some(service));
        }
    }

    #[test]
    fn no_variable_is_used_twice() {
        let all = Service::all().iter().flat_map(|service| service.variables);
        let mut names: Vec<_> = all.collect();
        let before = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), before);
    }
}
