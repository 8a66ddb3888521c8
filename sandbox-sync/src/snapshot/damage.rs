//! What is not as it was written.

use std::io;

/// Something in a store is not what was written there; nothing is made of it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Damaged(String);

/// Makes the error of something that is damaged.
pub(crate) fn damaged(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, Damaged(what.into()))
}

/// Tells whether an error is one of [`damaged`].
pub(crate) fn is_damage(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Damaged>())
}
