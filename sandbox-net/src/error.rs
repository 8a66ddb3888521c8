//! The crate's one error type.
//!
//! A denial is not an error: it is a value, [`Denial`](crate::policy::Denial), with its reason. Errors are for
//! input that cannot be read (a rule, a target) and for operations that the system refuses.

use std::borrow::Cow;

use sandbox_base::{BoxError, ErrorKind};

/// What failed, of what kind, and why.
///
/// The message names the operation; the reason is in [`source`](std::error::Error::source).
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation}")]
pub struct Error {
    kind: ErrorKind,
    operation: Cow<'static, str>,
    #[source]
    source: Option<BoxError>,
}

impl Error {
    /// Returns the kind of failure, for a caller that acts on it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    pub(crate) fn new(
        kind: ErrorKind,
        operation: impl Into<Cow<'static, str>>,
        source: impl Into<BoxError>,
    ) -> Self {
        Self {
            kind,
            operation: operation.into(),
            source: Some(source.into()),
        }
    }

    pub(crate) fn invalid(
        operation: impl Into<Cow<'static, str>>,
        source: impl Into<BoxError>,
    ) -> Self {
        Self {
            kind: ErrorKind::Invalid,
            operation: operation.into(),
            source: Some(source.into()),
        }
    }

    pub(crate) fn io(operation: impl Into<Cow<'static, str>>, source: std::io::Error) -> Self {
        Self {
            kind: ErrorKind::from(&source),
            operation: operation.into(),
            source: Some(source.into()),
        }
    }
}
