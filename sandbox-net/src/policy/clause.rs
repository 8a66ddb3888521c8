//! One rule: a host, and of it all requests or some.

use std::fmt;

use crate::{
    Error,
    policy::{Pattern, Requests},
};

/// A host pattern, with the requests that it is about unless it is about everything the host is sent.
///
/// Its text is `example.com`, or `api.example.com GET, HEAD /repos/**`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clause {
    pub(super) pattern: Pattern,
    /// Never empty.
    pub(super) requests: Option<Requests>,
}

impl Clause {
    /// Reads the host of a rule in a list.
    pub(super) fn load(list: &str, host: &str, requests: Option<Requests>) -> Result<Self, Error> {
        let failed = |error: Error| {
            let rule = host.escape_debug();
            Error::invalid(format!("load {list} rule `{rule}`"), error)
        };
        let pattern = Pattern::parse(host).map_err(failed)?;
        let wrong = |reason| {
            Err(Error::invalid(
                format!("load {list} rule `{pattern}`"),
                reason,
            ))
        };
        match &requests {
            Some(requests) if requests.is_empty() => {
                return wrong("it names neither methods nor paths; write the host alone");
            }
            Some(_) if pattern.network().is_some() => {
                return wrong("a rule with methods or paths names a host, not an address");
            }
            _ => {}
        }
        Ok(Self { pattern, requests })
    }

    /// Returns the host pattern.
    pub fn pattern(&self) -> &Pattern {
        &self.pattern
    }

    /// Returns which requests it is about, `None` if about all.
    pub fn requests(&self) -> Option<&Requests> {
        self.requests.as_ref()
    }
}

impl fmt::Display for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.requests {
            Some(requests) => write!(f, "{} {requests}", self.pattern),
            None => self.pattern.fmt(f),
        }
    }
}
