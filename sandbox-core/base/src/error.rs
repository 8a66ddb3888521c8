//! The error type that crates share.
//!
//! It says what was attempted, of which kind the failure is (what the caller can do about it), and, where
//! that is known, what to do. What the system or another library answered is the source and is never
//! repeated in the message.

use std::fmt;
use std::io;

use crate::kind::{BoxError, ErrorKind};

/// What failed, and what the caller can do about it.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    operation: String,
    detail: Option<String>,
    source: Option<BoxError>,
}

impl Error {
    /// Makes an error for an operation in words that follow "cannot": `"open the image /tmp/x"`.
    pub fn new(kind: ErrorKind, operation: impl Into<String>) -> Self {
        Self {
            kind,
            operation: operation.into(),
            detail: None,
            source: None,
        }
    }

    /// Makes an error from what the operating system answered; the kind is derived from it.
    pub fn io(operation: impl Into<String>, source: io::Error) -> Self {
        Self::new(ErrorKind::from(&source), operation).with_source(source)
    }

    /// Adds the reason, and what to do about it where that is known.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds the error that caused this one.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Returns what the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Returns what was attempted, in words that follow "cannot".
    pub fn operation(&self) -> &str {
        &self.operation
    }

    /// Returns the reason and the advice, where there is more to say than the operation.
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}", self.operation)?;
        match &self.detail {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let source = self.source.as_deref()?;
        Some(source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    #[test]
    fn the_message_gives_the_advice_and_leaves_the_source_to_the_chain() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let error = Error::io("write the image", full).with_detail("free some space");
        assert_eq!(error.kind(), ErrorKind::Exhausted);
        assert_eq!(error.to_string(), "cannot write the image: free some space");
        assert!(error.source().is_some());
    }
}
