//! The error of this crate: what was being done, what can be done about it.

use std::io;

use sandbox_base::{BoxError, ErrorKind};

/// A failure of a session as a whole.
///
/// What concerns a single path is not an error but a [`Problem`](crate::Problem) in the report; the rest
/// of the tree is synchronized all the same.
#[derive(Debug, thiserror::Error)]
#[error("sync: cannot {operation}{}", .detail.as_deref().map(|d| format!(": {d}")).unwrap_or_default())]
pub struct Error {
    kind: ErrorKind,
    operation: &'static str,
    detail: Option<String>,
    #[source]
    source: Option<BoxError>,
}

impl Error {
    /// Returns what the caller can act on.
    ///
    /// [`ErrorKind::Conflict`] means that the session halted to ask (see [`crate::safety`]) or that
    /// another session holds the root; [`ErrorKind::Protocol`] that the guest broke the rules.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Returns what was being attempted, as it completes "cannot …".
    #[must_use]
    pub fn operation(&self) -> &'static str {
        self.operation
    }

    pub(crate) fn new(kind: ErrorKind, operation: &'static str, detail: impl Into<String>) -> Self {
        Self {
            kind,
            operation,
            detail: Some(detail.into()),
            source: None,
        }
    }

    pub(crate) fn io(operation: &'static str, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        Self {
            kind: ErrorKind::from(&source),
            operation,
            detail: None,
            source: Some(Box::new(source)),
        }
    }

    pub(crate) fn protocol(detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Protocol, "go on with this peer", detail)
    }

    pub(crate) fn disconnected(operation: &'static str) -> Self {
        Self::new(ErrorKind::Disconnected, operation, "the other side is gone")
    }
}
