//! What can go wrong, in terms of what a caller can do about it.
//!
//! One public [`Error`] with the shared [`ErrorKind`]; what a server said about a failure travels as
//! its source, a [`ServerError`], because its words are the server's and not ours.

use std::borrow::Cow;
use std::fmt;

use sandbox_base::{BoxError, ErrorKind};

/// What the operations of this crate return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed operation: what was tried, why it failed, and the cause where there is one.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation}: {reason}")]
pub struct Error {
    kind: ErrorKind,
    operation: &'static str,
    reason: Cow<'static, str>,
    #[source]
    source: Option<BoxError>,
}

impl Error {
    /// Describes a failure of `operation` (what follows "cannot", such as "list the models").
    ///
    /// Public because back ends may live in other crates.
    pub fn new(
        kind: ErrorKind,
        operation: &'static str,
        reason: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            kind,
            operation,
            reason: reason.into(),
            source: None,
        }
    }

    /// Adds the cause; the reason must not repeat what it says.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Returns what a caller can act on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Returns the server's own words, where a server answered with an error.
    pub fn server(&self) -> Option<&ServerError> {
        self.source.as_deref()?.downcast_ref()
    }

    /// Removes `secret` from what a server said, for servers that echo the key they refuse.
    #[cfg(feature = "endpoint")]
    pub(crate) fn without(mut self, secret: &str) -> Self {
        let said = self
            .source
            .as_deref_mut()
            .and_then(|s| s.downcast_mut::<ServerError>());
        if let Some(said) = said {
            said.redact(secret);
        }
        self
    }
}

/// What a server said about a failure, in OpenAI's terms.
///
/// Untrusted text: cut to 1024 characters each, control characters replaced, the API key removed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerError {
    /// The HTTP status; `None` for an error in the middle of a stream.
    pub status: Option<u16>,
    /// The machine-readable code, such as `context_length_exceeded`; numbers are written out.
    pub code: Option<String>,
    /// The class of error, such as `invalid_request_error`.
    pub class: Option<String>,
    /// The text for people; empty where the server said nothing.
    pub message: String,
}

impl ServerError {
    #[cfg(feature = "endpoint")]
    fn redact(&mut self, secret: &str) {
        if secret.is_empty() {
            return;
        }
        let parts = [
            self.code.as_mut(),
            self.class.as_mut(),
            Some(&mut self.message),
        ];
        for text in parts.into_iter().flatten() {
            *text = text.replace(secret, "[redacted]");
        }
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.code, self.message.as_str()) {
            (Some(code), "") => write!(f, "the server gave the code {code} and no message"),
            (None, "") => f.write_str("the server gave no message"),
            (_, message) => f.write_str(message),
        }
    }
}

impl std::error::Error for ServerError {}
