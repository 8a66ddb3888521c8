//! The one vocabulary of failures that a caller can act on.
//!
//! Shared by all crates, also by those with an error type of their own, so that `sandbox-core` can pass a
//! failure on without translating it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A source error of any type, as kept inside the crates' own error types.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// What went wrong, in terms of what the caller can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller lacks a right; the message names it.
    PermissionDenied,
    /// The thing named does not exist.
    NotFound,
    /// The thing named exists already, or somebody else holds it.
    Conflict,
    /// This host, backend or build cannot do it; the message says why. Nothing weaker was done instead.
    Unsupported,
    /// The input is not acceptable; trying again unchanged fails again.
    Invalid,
    /// A bounded wait ended; the message says what was waited for.
    TimedOut,
    /// A limit was reached: memory, disk, processes, open files, or a bound of ours.
    Exhausted,
    /// The other side broke the protocol. Its session is over; the host's state is intact.
    Protocol,
    /// The other side is gone: a guest that died, a closed channel, a killed hypervisor.
    Disconnected,
    /// The sandbox went back to a snapshot: what was asked about is of a time that it has left.
    RolledBack,
    /// Denied by policy; not a failure of anything.
    Denied,
    /// What was stored is not what was written, by its checksum; nothing was made of it.
    Damaged,
    /// An operation of the system failed; the source tells.
    Io,
}

impl ErrorKind {
    /// Returns the kind as a lower-case word, as it appears in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PermissionDenied => "permission-denied",
            Self::NotFound => "not-found",
            Self::Conflict => "conflict",
            Self::Unsupported => "unsupported",
            Self::Invalid => "invalid",
            Self::TimedOut => "timed-out",
            Self::Exhausted => "exhausted",
            Self::Protocol => "protocol",
            Self::Disconnected => "disconnected",
            Self::RolledBack => "rolled-back",
            Self::Denied => "denied",
            Self::Damaged => "damaged",
            Self::Io => "io",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<&std::io::Error> for ErrorKind {
    fn from(error: &std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        match error.kind() {
            Io::NotFound => Self::NotFound,
            Io::PermissionDenied | Io::ReadOnlyFilesystem => Self::PermissionDenied,
            Io::AlreadyExists | Io::ResourceBusy => Self::Conflict,
            Io::InvalidInput | Io::InvalidFilename => Self::Invalid,
            Io::TimedOut => Self::TimedOut,
            Io::StorageFull | Io::QuotaExceeded | Io::OutOfMemory | Io::FileTooLarge => {
                Self::Exhausted
            }
            Io::InvalidData => Self::Protocol,
            Io::BrokenPipe
            | Io::ConnectionReset
            | Io::ConnectionAborted
            | Io::ConnectionRefused
            | Io::NotConnected
            | Io::UnexpectedEof => Self::Disconnected,
            Io::Unsupported => Self::Unsupported,
            _ => Self::Io,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_exhaustion_and_not_just_io() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        assert_eq!(ErrorKind::from(&full), ErrorKind::Exhausted);
    }
}
